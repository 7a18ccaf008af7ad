"""What a Create or an Update comes to: the outcome, the calls, and the Reason of a refusal."""

from .story import played

test_an_outcome = played("""
nobody, absent: attached with one call, and the hold stands at that call
    at create {held free=A!wanted+attaching}ok; create A free = ATTACHED; calls create=1; held free=A;
    beliefs A free=given; delete A free; calls delete=1; held nothing -> attached nothing
nobody, present, Fail: refused, and not touched
    hand+ free; create A free = FAILED Could not attach API key alice to usage plan free: it is there
    already, not through this stack|Adopt would use it and leave it there on Delete|Take would use it and,
    from the next Update on, own it (; held nothing; calls create=1 get=1 -> attached free
nobody, present, Adopt: used, and left there by its Delete
    hand+ free; create A free Adopt = ADOPTED; held free=A!before; delete A free; held nothing -> attached
    free
this, absent, Create: attached
    create A free; hand- free; create A free = ATTACHED -> attached free
this, before, Take: taken, and a Delete with Take detaches it
    hand+ free; create A free Take; update A free free Take = TAKEN; held free=A!taken; delete A free Take
    -> attached nothing
this, taken, changed back to Adopt: remembered, and a Delete with Take detaches it
    hand+ free; create A free Adopt; update A free free Take = TAKEN; update A free free Adopt = VERIFIED;
    update A free free Take = VERIFIED; held free=A!taken; delete A free Take -> attached nothing
this, before, Create with Take: attached, and not taken
    hand+ free; create A free Take; create A free Take = ATTACHED; held free=A!before; delete A free Take
    -> attached free
this, before, absent: a repair that may have been served makes it ours
    hand+ free; create A free Adopt; hand- free; at create lost denied; update A free free Adopt = FAILED
    permission; held free=A!before+attaching; update A free pro = MOVED; held free=A+away pro=A ->
    attached pro
this, before, absent: a refused repair leaves hold and origin
    hand+ free; create A free Adopt; hand- free; at create denied; update A free free Adopt = FAILED
    permission; held free=A!before; beliefs A free=known -> attached nothing
sibling, absent: held together, and repaired
    create B free; hand- free; create A free = REPAIRED; held free=A,B -> attached free
sibling among strangers, present, Fail: joined
    create A free; create Z free Adopt = JOINED; create B free = JOINED; held free=A,B,Z -> attached free
strangers, before, taken, Take still said by the last one
    hand+ free; create A free Take; update A free free Take = TAKEN; create Z free Adopt; delete A free
    Take; held free=Z!taken; excuse free; delete Z free -> attached free
a plan that is not there: named with the region, and nothing is held
    create A nope = FAILED Could not attach API key alice to usage plan nope in eu-west-1: there is no
    usage plan nope in eu-west-1. Check the id; held nothing; beliefs A -> attached nothing
unusable properties, and the ledger refuses the answer once: the properties are the reason
    queue; create A free; at write denied; update A free nothing = FAILED The properties are not usable:
    UsagePlanId is missing; delete A free -> attached nothing
unusable properties: all faults in one answer, and nothing is touched
    create A nothing = FAILED UsagePlanId is missing|KeyId is missing; calls none; held nothing; delete A
    #A; create A free; update A free nothing = FAILED The properties are not usable: UsagePlanId is
    missing; delete A free -> attached nothing
""")

test_api_gateway_refuses = played("""
a joiner that cannot look holds nothing
    create B free; at get denied; create A free = FAILED apigateway:GET; held free=B -> attached free
broken to the end, and perhaps attached: the hold stays, and its Delete detaches it
    at create lost broken*; create A free = FAILED gave up after ; held free=A!wanted+attaching; beliefs A
    free=failed; at create unsigned; delete A free; create A free = FAILED Error when retrieving ->
    attached nothing
a lost reply finds its own
    at create lost; create A free = ATTACHED; calls create=2 get=1; held free=A; delete A free -> attached
    nothing
an internal error: answered, and what may be attached stays held
    at create crashed; create A free = FAILED An internal error, please report it: ZeroDivisionError:
    oops; log ERROR An internal error; log Traceback; held free=A!wanted+attaching; delete A free ->
    attached nothing
the Reason of a refused Delete names what stays, and so does an ERROR
    create A free; at delete denied; delete A free = FAILED apigateway:DELETE on
    |::/usageplans/free/keys/alice|Still attached: API key alice in usage plan free; log ERROR FAILED
    Could not detach API key alice; log Still attached: API key alice; held free=A; delete A free ->
    attached nothing
""")

test_include_value = played("""
none at all: the answer has none, and an ERROR says so
    at create bare; at get bare; create A free Value = ATTACHED; calls create=1 get=1; log ERROR API
    Gateway does not return the value of API key alice, so the answer has none -> attached free
nobody can look for it: the key is attached, and the Create fails; its Delete detaches it
    at create bare; at get denied; create A free Value = FAILED apigateway:GET; held free=A; beliefs A
    free=failed; delete A free -> attached nothing
""")

test_no_ledger = played("""
a Create holds nothing: what is there was there before
    no ledger; hand+ free; create A free = FAILED Adopt would; create A free Adopt = ADOPTED -> attached
    free
a foreign id names nothing
    no ledger; hand+ free; delete A #invented; calls none -> attached free
nothing is lost
    no ledger; gone alice; update A free free P1 = FAILED there is no -> attached nothing
""")
