"""Whose a key is: the function detaches what it has attached or taken over, and leaves nothing unheld."""

from .story import played

test_whose_a_key_is = played("""
another stack attached it for a hold that is taken back: taking back is letting go, so it is detached
    queue; at create {create Z free Take = REPAIRED; delete Z free Take}denied; create A free = FAILED
    permission; held nothing; calls create=2 get=1 delete=1 -> attached nothing
the same in a move: the rollback is not wedged
    queue; create A free; at create:pro ok {create Z pro Take = REPAIRED; delete Z pro Take}denied; update
    A free pro = FAILED permission; held free=A+away; attached nothing; update A free free = REPAIRED;
    held free=A -> attached free
the hold that is taken back cannot be detached: it stays held, and its Delete detaches it
    queue; at create {create Z free Take = REPAIRED; delete Z free Take}denied; at delete denied; create A
    free = FAILED permission; held free=A; beliefs A free=failed; delete A free; held nothing -> attached
    nothing
a newer request wants what a failed one took: it stays, and the newer one has it
    queue; at create {create Z free Take = REPAIRED; delete Z free Take; new: arrive update A free
    free}denied; create A free = FAILED; held free=A; serve new = VERIFIED -> attached free
a hold whose write was carried out, its reply lost, and its repetition denied: nobody's own
    queue; at write lost denied; create A free = FAILED Could not write the ledger; calls none; hand+
    free; delete A free; held nothing -> attached free
a key that is there while a dead request has only held it was there before
    create A free; at delete dies; update A free pro = dies; hand- free; hand+ pro; create B pro Adopt =
    ADOPTED; held free=A+detaching+away pro=A,B!before; delete B pro -> attached pro
no repair of what was deleted, answered or not
    queue; create A free; at delete denied*3; delete A free = FAILED Still attached; delete A free =
    FAILED; delete A free = FAILED; hand- free; time 7200; repair A free = not no answer has said that it
    is attached; calls none -> attached nothing
no repair of what was moved away from
    queue; create A free; update A free pro; repair A free = not the resource does not hold it any more,
    or no answer has said -> attached pro
no repair while a request is pending
    queue; create A free; hand- free; arrive update A free free; repair A free = not a request of the
    resource is pending -> attached nothing
no repair of what is being detached
    queue; create A free; at delete lost denied; update A free pro = FAILED permission; held
    free=A+detaching+away; repair A free = not a request is detaching it; calls none; update A free free =
    REPAIRED; held free=A -> attached free
a repair at which functions die
    queue; create A free; hand- free; at create dies*4; fix: repair A free = dies; again fix = dies; again
    fix = dies; again fix = dies; again fix = not 3 invocations died -> attached nothing
a repair with an internal error
    queue; create A free; hand- free; at create crash; repair A free = not an internal error, please
    report it; held free=A+attaching; delete A free -> attached nothing
an operator lets go of it while a repair attaches it: an ERROR says what to do
    queue; create A free; hand- free; stack one none; at create ok{letgo A =
    ok; excuse free}; repair A free; held nothing; log
    ERROR Attached, and the resource does not hold it any more: detach alice:free by hand -> attached free
a repair in order more than a day after its answer
    queue; create A free; update A free nope = FAILED there is no; time 180000; hand- free; repair A free;
    held free=A -> attached free
a repair that is refused says so, and waits for nobody
    queue; create A free; hand- free; at create denied; repair A free = not permission; held free=A;
    delete A free -> attached nothing
a repair that another plan blocks
    queue; create A free; hand- free; hand+ pro; repair A free = not usage plan pro (Pro) for the API
    stage a:prod blocks it -> attached pro
a repair that API Gateway is too busy for comes again
    queue; create A free; hand- free; at create busy*; fix: repair A free = waits; at create; time 3;
    again fix; held free=A -> attached free
a repair that waits gives way at once to a request of its resource
    queue; create A free; hand- free; at create broken*; fix: repair A free = waits 2; arrive update A free
    free; again fix = not a request of the resource is pending; log Not repaired: alice:free for A of stack
    one: a request of the resource is pending -> attached nothing
a 202 that comes into force later: who adopts it waits, and attaches it anew
    create A free; at delete later=5; delete A free; create Z free Adopt = ATTACHED; held free=Z; delete Z
    free -> attached nothing
a 202 that comes into force later, while another request sets about attaching the key
    create A free; at delete later=10; delete A free; at create {create Z free Adopt = REPAIRED}denied;
    create C free = FAILED; time 15; held free=Z -> attached free
Adopt and Take look before they attach: a lost reply would make the key ours
    hand+ free; create A free Adopt = ADOPTED; calls get=1; create C free Take = JOINED; calls get=1;
    create B pro Adopt = FAILED plan free; held free=A,C!before -> attached free
what was taken over and moved is ours once another resource attaches it anew
    hand+ free; create A free Take = ADOPTED; update A free free Take P1 = TAKEN; update A free pro Take
    old=Take = MOVED; hand- pro; create Z free Adopt = REPAIRED; delete A free; delete A pro; delete Z free
    -> attached nothing
without a queue, a Create whose Delete is served before it ends is superseded
    at create ok{delete A #invented}; create A free = FAILED Superseded; held nothing -> attached nothing
a 202 that comes into force later, and it is replaced there and back
    create A free; update A free gold; at delete later=5; update A gold gold; delete A free; update A gold
    free = ATTACHED; delete A gold; held free=A -> attached free
a 202 that comes into force later, and a lost reply: it is not the function's own
    create A free; at delete later=5; delete A free; at create cut; create Z free = ATTACHED; calls
    create=4 get=2; held free=Z; time 9 -> attached free
an attempt that came to nothing is no reason to detach what somebody else attaches later
    hand+ free; create A free Adopt; hand- free; at create broken denied; update A free free = FAILED
    permission; held free=A!before+attaching; at create denied; update A free free = FAILED permission;
    held free=A!before; hand+ free; delete A free -> attached free
a key that stays for a minute after its detaching, and Fail
    create A free; delete A free; hand+ free; create Z free = FAILED it is there already; held nothing ->
    attached free
""")
