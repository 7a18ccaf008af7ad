"""A Delete detaches the keys that only its resource holds; what may go, and what stays."""

from .story import played

test_a_delete = played("""
the last holder detaches it with one call, and the ledger forgets it
    create A free; delete A free; calls delete=1; held nothing; beliefs A -> attached nothing
an invented id is shown, and a foreign one is not
    delete A #stack-A-1ABC; log does not hold stack-A-1ABC, so; delete A #A; log does not hold A, so;
    delete A #s3cr3t-s3cr3t-s3cr3t:free; log does not hold a foreign id of 25 characters, so -> attached
    nothing
what is not there is forgiven: the plan
    create A free; gone free; delete A free; held nothing -> attached nothing
an invented id releases what its cancelled Create took
    create A free; delete A #invented; held nothing -> attached nothing
a newer Update wants it again: it stays
    create A free; late: issue delete A free; arrive update A gold free; serve late; calls none; held
    free=A -> attached free
refused half way: the Reason does not name what is detached
    create A free; update A #other bob:free; at delete ok denied; delete A #invented = FAILED Still
    attached: API key bob in usage plan free (; held bob:free=A; delete A #invented -> attached nothing
a conflict that nothing explains is tried three times
    create A free; at delete odd*3; delete A free = FAILED Conflict|Still attached; calls delete=3; held
    free=A -> attached free
more than a transaction takes, left by Updates: it lets go of everything, with as few calls as ever
    queue; create A free; crowd; update A free gold = ATTACHED; ledger 1R 2W; update A gold nowhere = FAILED
    there is no; update A gold gold = VERIFIED; delete A gold; held free=A; beliefs A free=left; delete A
    free -> attached nothing
nobody knows whether it is detached: the mark stays, and another Delete finishes it
    create A free; at delete lost denied; delete A free = FAILED apigateway:DELETE; held free=A+detaching;
    delete A free; held nothing -> attached nothing
""")

test_what_is_left_retained_or_cancelled = played("""
the same with a leftover that another one holds too
    create A free; update A free gold; create B gold = JOINED; update A free free = VERIFIED; held free=A
    gold=B -> attached free gold
the same with unusable properties
    create A free; create A free P1 nonsense=1 = FAILED unknown property Nonsense; delete A free; held
    free=A -> attached free
spared once: after the next Create its Delete is meant
    create A free; at get denied; create A free = FAILED permission; create A free = ATTACHED; delete A
    free -> attached nothing
a superseded Create spares nothing: the newer one's Delete is to come
    late: issue create A free; create A free; serve late = FAILED Superseded; delete A free -> attached
    nothing
Express mode: no Delete follows a failed Create, and the next one does not take it for retained
    at create lost denied; create A free = FAILED permission; create A gold = ATTACHED; delete A gold;
    held nothing -> attached nothing
what a failed Update may have attached is remembered for longer than its answer
    create A free; at create lost denied; update A free gold = FAILED permission; time 172800; update A
    free free; beliefs A free=known; delete A free; held nothing -> attached nothing
a success takes up what a failed one left, without issue times
    create A free undated; at create lost denied; update A free gold undated = FAILED permission; update A
    free gold undated = VERIFIED; delete A free undated; held gold=A!wanted+attaching -> attached gold
a failed Update without a rollback: the Delete detaches both
    create A free; at create lost busy*; update A free gold for=60 = FAILED gave up after; at create;
    delete A free; held nothing -> attached nothing
an Update with a foreign id is no replacement of what it held
    create A free; update A #former gold; beliefs A free=given gold=given; delete A #former; held free=A
    gold=A -> attached free gold
""")

test_a_rollback_that_cannot_have_its_key_back = played("""
a failed Update is taken back though the key is gone, and the next deploy fails again
    create A free P1; gone alice; update A free free Adopt P2 = FAILED there is no API key alice; update A
    free free P1 = LOST; log ERROR LOST: Could not attach API key alice to usage plan free in eu-west-1:
    there is no API key alice; log CloudFormation goes on as if the key were attached. The resource's next
    Update fails; update A free free P3 = FAILED there is no; delete A free; held nothing -> attached
    nothing
an Update that succeeded is taken back, with the old id
    create A free P1; update A free gold P2; gone alice; update A free free P1 = LOST; delete A gold; held
    free=A -> attached nothing
the same, and the new key is detached as ever
    create A free P1; update A free gold P2; gone free; update A free free P1 = LOST; calls get=1 create=1
    plan=1 delete=1; held free=A -> attached nothing
a move that died is taken back
    create A free P1; update A free pro P2; one: issue update A pro free P1; at create:free dies; serve
    one = dies; gone alice; again one = LOST -> attached nothing
a change in place that succeeded is taken back though the key is gone, and the next deploy fails
    create A free P1; update A free free P2 = VERIFIED; gone alice; update A free free P1 = LOST; update A
    free free P2 = FAILED there is no API key alice; delete A free; held nothing -> attached nothing
refused for another reason it is not lost
    create A free P1; update A free gold P2; hand- free; at create denied; update A gold free P1 = FAILED
    permission is missing; held free=A gold=A -> attached gold
after its Delete, even a failed one, it is wanted anew: not lost
    create A free P1; update A free gold P2; at delete denied; delete A free = FAILED permission; gone
    alice; update A gold free P3 = FAILED there is no -> attached nothing
a Create: not lost
    create A free P1; gone alice; create A free P1 = FAILED there is no -> attached nothing
a month later it goes back on purpose: not lost
    create A free P1; update A free gold P2; gone free; time 2592000; update A gold free P3 = FAILED there
    is no usage plan free -> attached gold
the value that was asked for is empty, and given again it is the same
    create A free P1 Value; gone free; one: issue update A free free P1 Value; serve one = LOST; again one
    = LOST -> attached nothing
another stack has joined the new plan during the deploy: X may not detach it, so its rollback is LOST
    create A free P1; update A free pro P2 = MOVED; create Z pro Adopt = JOINED; update A pro free P1 =
    LOST; held free=A+away pro=A,Z; delete A pro; held free=A+away pro=Z; delete Z pro; delete A free;
    held nothing -> attached nothing
""")
