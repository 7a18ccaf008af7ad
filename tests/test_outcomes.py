"""What a Create or an Update comes to: the outcome, the calls, and the Reason of a refusal."""

from __future__ import annotations

from .story import play, stories


@stories("""
nobody, absent: attached with one call, and the hold stands at that call
    at create {held free=A!wanted+attaching}ok; create A free = ATTACHED; calls create=1; held free=A;
    beliefs A free=given; delete A free; calls delete=1; held nothing -> attached nothing
nobody, absent, Update with a foreign id: its Delete releases nothing
    update A #former free = ATTACHED; calls create=1; delete A #former; calls none -> attached free
nobody, present, Fail: refused, and not touched
    hand+ free; create A free = FAILED Could not attach API key alice to usage plan free: it is there
    already, not through this stack|Adopt would use it and leave it there on Delete|Take would use it and,
    from the next Update on, own it (; held nothing; calls create=1 get=1 -> attached free
nobody, present, Adopt: used, and left there by its Delete
    hand+ free; create A free Adopt = ADOPTED; held free=A!before; delete A free; held nothing -> attached
    free
nobody, present, Take: adopted first, so that no rollback detaches it
    hand+ free; create A free Take = ADOPTED; held free=A!before; delete A free Take -> attached free
this, present: verified with one look
    create A free; update A free free = VERIFIED; calls get=1 -> attached free
this, absent: repaired
    create A free; hand- free; update A free free = REPAIRED; calls create=1 get=1; held free=A ->
    attached free
this, present, Create: a repeated one is attached
    create A free; create A free = ATTACHED; beliefs A free=known; delete A free -> attached nothing
this, absent, Create: attached
    create A free; hand- free; create A free = ATTACHED -> attached free
this, ours, Take: there is nothing to take
    create A free Take; update A free free Take = VERIFIED; delete A free -> attached nothing
this, before, Take: taken, and a Delete with Take detaches it
    hand+ free; create A free Take; update A free free Take = TAKEN; held free=A!taken; delete A free Take
    -> attached nothing
this, taken, Take no longer said: stays
    hand+ free; create A free Take; update A free free Take = TAKEN; delete A free Adopt -> attached free
this, taken, changed back to Adopt: remembered, and a Delete with Take detaches it
    hand+ free; create A free Adopt; update A free free Take = TAKEN; update A free free Adopt = VERIFIED;
    update A free free Take = VERIFIED; held free=A!taken; delete A free Take -> attached nothing
this, before, Adopt: verified
    hand+ free; create A free Adopt; update A free free Adopt = VERIFIED; held free=A!before -> attached
    free
this, before, Create with Take: attached, and not taken
    hand+ free; create A free Take; create A free Take = ATTACHED; held free=A!before; delete A free Take
    -> attached free
this, before, Take with another id: not taken
    hand+ free; create A free Take; update A free gold Take; update A gold free Take = VERIFIED; held
    free=A!before gold=A; delete A gold Take; delete A free Take -> attached free
this, before, absent: repaired, so it is ours
    hand+ free; create A free Take; hand- free; update A free free Take = REPAIRED; held free=A; delete A
    free -> attached nothing
this, before, put back between the look and the call: not ours
    hand+ free; create A free Adopt; hand- free; at create {hand+ free}; update A free free Adopt =
    VERIFIED; held free=A!before; delete A free -> attached free
this, before, put back between the look and the call, Take: taken
    hand+ free; create A free Take; hand- free; at create {hand+ free}; update A free free Take = TAKEN;
    held free=A!taken -> attached free
this, before, absent: a repair that may have been served makes it ours
    hand+ free; create A free Adopt; hand- free; at create lost denied; update A free free Adopt = FAILED
    permission; held free=A!before+attaching; delete A free -> attached nothing
this, before, absent: a refused repair leaves hold and origin
    hand+ free; create A free Adopt; hand- free; at create denied; update A free free Adopt = FAILED
    permission; held free=A!before; beliefs A free=known -> attached nothing
this, before, absent: repaired it is ours, though the Update fails for a leftover
    hand+ free; create A free Adopt; update A free gold; hand- free; at delete denied; update A free free
    Adopt = FAILED apigateway:DELETE; held free=A gold=A -> attached free gold
sibling, present: joined, and the last one to go detaches it
    create A free; create B free = JOINED; calls get=1; delete A free; calls none; held free=B; delete B
    free; calls delete=1 -> attached nothing
sibling, absent: held together, and repaired
    create B free; hand- free; create A free = REPAIRED; held free=A,B -> attached free
sibling among strangers, present, Fail: joined
    create A free; create Z free Adopt = JOINED; create B free = JOINED; held free=A,B,Z -> attached free
strangers, present, Fail: refused without a call, and named
    create Z free; create A free = FAILED it is held by Z of stack two, and OnExisting is Fail. Adopt or
    Take would hold it too|the function detaches it when its last holder goes. If that stack is
    gone|"LetGo"; calls none; held free=Z -> attached free
strangers, absent, Fail: refused without a call
    create Z free; hand- free; create A free = FAILED Z of stack two; calls none; held free=Z -> attached
    nothing
strangers, present, Adopt: joined, and the last one to go detaches it
    create Z free; create A free Adopt = JOINED; delete Z free; held free=A; delete A free -> attached
    nothing
strangers, present, Take: joined
    create Z free; create A free Take = JOINED; delete A free Take; held free=Z; delete Z free -> attached
    nothing
strangers, absent, Adopt: held together, and repaired
    create Z free; hand- free; create A free Adopt = REPAIRED; held free=A,Z -> attached free
strangers, before, Adopt: nobody's own
    hand+ free; create Z free Adopt; create A free Adopt = JOINED; held free=A,Z!before; delete Z free;
    held free=A!before; delete A free -> attached free
strangers, before, taken, Take still said by the last one
    hand+ free; create A free Take; update A free free Take = TAKEN; create Z free Adopt; delete A free
    Take; held free=Z!taken; delete Z free -> attached free
a plan that is not there: named with the region, and nothing is held
    create A nope = FAILED Could not attach API key alice to usage plan nope in eu-west-1: there is no
    usage plan nope in eu-west-1. Check the id; held nothing; beliefs A -> attached nothing
a key that is not there
    create A carol:free = FAILED there is no API key carol in eu-west-1; held nothing -> attached nothing
an Update that fails answers with its own id, and keeps what it had
    create A free; update A free nope = FAILED there is no usage plan nope; held free=A; beliefs A
    free=known; delete A free -> attached nothing
unusable properties: all faults in one answer, and nothing is touched
    create A nothing = FAILED UsagePlanId is missing|KeyId is missing; calls none; held nothing; delete A
    #A; create A free; update A free nothing = FAILED The properties are not usable: UsagePlanId is
    missing; delete A free -> attached nothing
""")
def test_an_outcome(line: str) -> None:
    play(line)


@stories("""
a bad request
    at create bad; create A free = FAILED API key alice to usage plan free in eu-west-1|bad request:
    Bad|Check KeyId and UsagePlanId; held nothing -> attached nothing
unauthorized
    at create unauthorized; create A free = FAILED API key alice to usage plan free in
    eu-west-1|apigateway:POST on |eu-west-1::/usageplans/free/keys,; held nothing -> attached nothing
access denied
    at create denied; create A free = FAILED apigateway:POST on |eu-west-1::/usageplans/free/keys,|Not
    authorized; held nothing; beliefs A; delete A free; calls none -> attached nothing
a joiner that cannot look holds nothing
    create B free; at get denied; create A free = FAILED apigateway:GET; held free=B -> attached free
busy, and then not
    at create busy*2; create A free = ATTACHED; calls create=3 -> attached free
throttled, and then not
    at create throttled*2; create A free = ATTACHED -> attached free
broken, and then not
    at create broken cut; create A free = ATTACHED -> attached free
busy to the end: how often it tried, the last error, and nothing is held
    at create busy*; create A free = FAILED gave up after | attempts in 8|Please try again later; held
    nothing -> attached nothing
throttled to the end: nothing is held
    at create throttled*; create A free = FAILED gave up after |Too Many Requests; held nothing ->
    attached nothing
broken to the end, and perhaps attached: the hold stays, and its Delete detaches it
    at create lost busy*; create A free = FAILED gave up after ; held free=A!wanted+attaching; beliefs A
    free=failed; at create; delete A free -> attached nothing
a lost reply finds its own
    at create lost; create A free = ATTACHED; calls create=2 get=1; held free=A; delete A free -> attached
    nothing
after a lost reply nobody can look: the hold stays
    at create lost odd; at get denied; create A free = FAILED apigateway:GET; held
    free=A!wanted+attaching; delete A free -> attached nothing
after a lost reply nobody can list the rivals: the hold stays
    at create cut odd; at plans denied; create A free = FAILED apigateway:GET; held
    free=A!wanted+attaching; delete A free -> attached nothing
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
def test_api_gateway_refuses(line: str) -> None:
    play(line)


@stories("""
a reply without it: it is looked for
    at create bare; create A free Value = ATTACHED; calls create=1 get=1 -> attached free
none at all: the answer has none, and an ERROR says so
    at create bare; at get bare; create A free Value = ATTACHED; calls create=1 get=1; log ERROR API
    Gateway does not return the value of API key alice, so the answer has none -> attached free
nobody asked for it: nobody looks
    at create bare; create A free = ATTACHED; calls create=1 -> attached free
nobody can look for it: the key is attached, and the Create fails; its Delete detaches it
    at create bare; at get denied; create A free Value = FAILED apigateway:GET; held free=A; beliefs A
    free=failed; delete A free -> attached nothing
""")
def test_include_value(line: str) -> None:
    play(line)


@stories("""
a resource holds what its id names
    no ledger; create A free = ATTACHED; update A free free = VERIFIED; hand- free; update A free free =
    REPAIRED; update A free pro = MOVED; delete A pro -> attached nothing
a Create holds nothing: what is there was there before
    no ledger; hand+ free; create A free = FAILED Adopt would; create A free Adopt = ADOPTED -> attached
    free
a foreign id names nothing
    no ledger; hand+ free; delete A #invented; calls none -> attached free
nothing is lost
    no ledger; gone alice; update A free free P1 = FAILED there is no -> attached nothing
""")
def test_no_ledger(line: str) -> None:
    play(line)
