"""A Delete detaches the keys that only its resource holds; what may go, and what stays."""

from __future__ import annotations

from usage_plan_key.ledger import Table
from usage_plan_key.model import Association, Belief, Hold, Snapshot
from usage_plan_key.retry import Deadline

from .story import holder_of, play, staged, stories

HOLDER = holder_of("A")


@stories("""
the last holder detaches it with one call, and the ledger forgets it
    create A free; delete A free; calls delete=1; held nothing; beliefs A; unlogged changes nothing ->
    attached nothing
not held: success, nothing is touched, and a line in the log
    hand+ free; delete A free; calls none; log does not hold alice:free, so Delete changes nothing ->
    attached free
an invented id is shown, and a foreign one is not
    delete A #stack-A-1ABC; log does not hold stack-A-1ABC, so; delete A #A; log does not hold A, so;
    delete A #s3cr3t-s3cr3t-s3cr3t:free; log does not hold a foreign id of 25 characters, so -> attached
    nothing
what is not there is forgiven: the key in the plan
    create A free; hand- free; delete A free; calls delete=1; held nothing -> attached nothing
what is not there is forgiven: the plan
    create A free; gone free; delete A free; held nothing -> attached nothing
what is not there is forgiven: the key
    create A free; gone alice; delete A free; held nothing -> attached nothing
unusable properties are no fault of a Delete
    create A free; delete A free nothing; held nothing -> attached nothing
an invented id releases what its cancelled Create took
    create A free; delete A #invented; held nothing -> attached nothing
with its own id it leaves the rest
    create A free; update A free pro; delete A free; held pro=A -> attached pro
a newer Update wants it again: it stays
    create A free; late: issue delete A free; arrive update A gold free; serve late; calls none; held
    free=A -> attached free
a newer Update wants it again, invented id: it stays
    create A free; late: issue delete A #invented; arrive update A gold free; serve late; calls none; held
    free=A -> attached free
it is wanted again while it is detached: the Update attaches it again
    create A free; update A #former gold; late: issue delete A #invented; newer: issue update A #former
    gold; at delete ok*1; serve late; held nothing; serve newer = ATTACHED; held gold=A -> attached gold
refused: the Reason names what it did not try, too
    create A free; update A #other bob:free; at delete denied; delete A #invented = FAILED
    apigateway:DELETE|Still attached: API key alice in usage plan free, API key bob in usage plan free;
    held free=A bob:free=A -> attached free bob:free
refused half way: the Reason does not name what is detached
    create A free; update A #other bob:free; at delete ok denied; delete A #invented = FAILED Still
    attached: API key bob in usage plan free (; held bob:free=A; delete A #invented -> attached nothing
refused: another Delete succeeds
    create A free; at delete denied; delete A free = FAILED Still attached: API key alice in usage plan
    free; held free=A; beliefs A free=going; delete A free -> attached nothing
busy to the end: how often it tried, and what stays
    create A free; at delete busy*; delete A free = FAILED gave up after|Still attached: API key alice in
    usage plan free; held free=A -> attached free
a conflict that nothing explains is tried three times
    create A free; at delete odd*3; delete A free = FAILED Conflict|Still attached; calls delete=3; held
    free=A -> attached free
a conflict that passes
    create A free; at delete odd*2; delete A free; calls delete=3 -> attached nothing
nobody knows whether it is detached: the mark stays, and another Delete finishes it
    create A free; at delete lost denied; delete A free = FAILED apigateway:DELETE; held free=A+detaching;
    delete A free; held nothing -> attached nothing
somebody else detached it, and the reply says so
    create A free; at delete {hand- free}; delete A free -> attached nothing
three, one after the other, by a queue
    queue; create A free; update A #former bob:free; update A #other gold; delete A #invented; held
    nothing; calls delete=3 -> attached nothing
""")
def test_a_delete(line: str) -> None:
    play(line)


@stories("""
a replacement: the old one stays until its Delete comes
    create A free; update A free gold = ATTACHED; attached free gold; delete A free; held gold=A ->
    attached gold
a replacement's rollback with the new id
    create A free; update A free gold; update A gold free = VERIFIED; attached free gold; delete A gold;
    held free=A -> attached free
what an id has named is CloudFormation's to delete or to retain
    create A free; update A free gold; update A gold gold; beliefs A free=left gold=known -> attached free
    gold
what no id has named goes with the next Update in place
    create A free; update A free gold; held free=A gold=A; update A free free = VERIFIED; held free=A;
    beliefs A free=known -> attached free
the same with a leftover that another one holds too
    create A free; update A free gold; create B gold = JOINED; update A free free = VERIFIED; held free=A
    gold=B -> attached free gold
a leftover is no matter for an Update to another one
    create A free; update A free gold; update A free bob:free = ATTACHED; held free=A gold=A bob:free=A ->
    attached free gold bob:free
a resource of the same name left it: it outlives a cancelled Create
    create A gold; create A free; delete A #invented; held gold=A -> attached gold
a resource of the same name left it, and the Create fails: its Delete spares it
    create A free; at get denied; create A free = FAILED permission; delete A free; held free=A ->
    attached free
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
the same Create once more, which fails again
    at create lost denied; create A free = FAILED permission; at get denied; create A free = FAILED
    permission; delete A free; held nothing -> attached nothing
what a failed Update may have attached is remembered for longer than its answer
    create A free; at create lost denied; update A free gold = FAILED permission; time 172800; update A
    free free; beliefs A free=known; delete A free; held nothing -> attached nothing
a success takes up what a failed one left
    create A free; at create lost denied; update A free gold = FAILED permission; beliefs A free=known
    gold=failed; update A free gold = VERIFIED; beliefs A free=left gold=given; delete A free; held
    gold=A!wanted+attaching -> attached gold
a success takes up what a failed one left, without issue times
    create A free undated; at create lost denied; update A free gold undated = FAILED permission; update A
    free gold undated = VERIFIED; delete A free undated; held gold=A!wanted+attaching -> attached gold
a failed Update without a rollback: the Delete detaches both
    create A free; at create lost busy*; update A free gold for=60 = FAILED gave up after; at create;
    delete A free; held nothing -> attached nothing
a cancelled Update's goes with its rollback
    create A free; update A free gold; update A free free = VERIFIED; held free=A -> attached free
a former provider's Delete releases nothing, and neither does the next foreign one
    update A #former free; update A free free; update A #another free; delete A #former; delete A
    #another; held free=A -> attached free
an Update with a foreign id is no replacement of what it held
    create A free; update A #former gold; beliefs A free=given gold=given; delete A #former; held free=A
    gold=A -> attached free gold
""")
def test_what_is_left_retained_or_cancelled(line: str) -> None:
    play(line)


@stories("""
a failed Update is taken back though the key is gone, and the next deploy fails again
    create A free P1; gone alice; update A free free Adopt P2 = FAILED there is no API key alice; update A
    free free P1 = LOST; log ERROR LOST: Could not attach API key alice to usage plan free in eu-west-1:
    there is no API key alice in eu-west-1. Check the id (not a name or a value) and the region.
    CloudFormation goes on as if the key were attached. The resource's next Update fails; update A free
    free P3 = FAILED there is no; update A free free P1 = LOST; delete A free; held nothing -> attached
    nothing
a failed Update is taken back though the plan is gone
    create A free P1; gone free; update A free free Adopt P2 = FAILED there is no usage plan free; update
    A free free P1 = LOST; held free=A; delete A free -> attached nothing
an Update that succeeded is taken back, with the old id
    create A free P1; update A free gold P2; gone alice; update A free free P1 = LOST; delete A gold; held
    free=A -> attached nothing
an Update that succeeded is taken back, with the new id
    create A free P1; update A free gold P2; gone alice; update A gold free P1 = LOST; delete A gold; held
    free=A -> attached nothing
a move is taken back
    create A free P1; update A free pro P2 = MOVED; gone alice; update A pro free P1 = LOST; delete A pro;
    delete A free; held nothing -> attached nothing
a move that died is taken back
    create A free P1; update A free pro P2; one: issue update A pro free P1; at create:free dies; serve
    one = dies; gone alice; again one = LOST -> attached nothing
refused for another reason it is not lost
    create A free P1; update A free gold P2; hand- free; at create denied; update A gold free P1 = FAILED
    permission is missing; held free=A gold=A -> attached gold
after its Delete, even a failed one, it is wanted anew: not lost
    create A free P1; update A free gold P2; at delete denied; delete A free = FAILED permission; gone
    alice; update A gold free P3 = FAILED there is no -> attached nothing
new properties, the same association: not lost
    create A free P1; update A free free P2; gone alice; update A free free P3 = FAILED there is no ->
    attached nothing
a Create: not lost
    create A free P1; gone alice; create A free P1 = FAILED there is no -> attached nothing
a month later it goes back on purpose: not lost
    create A free P1; update A free gold P2; gone free; time 2592000; update A gold free P3 = FAILED there
    is no usage plan free -> attached gold
within a day it is a rollback
    create A free P1; update A free gold P2; gone free; time 86390; update A gold free P3 = LOST ->
    attached gold
the value that was asked for is empty, and given again it is the same
    create A free P1 Value; gone free; one: issue update A free free P1 Value; serve one = LOST; again one
    = LOST -> attached nothing
another stack has joined the new plan during the deploy: X may not detach it, so its rollback is LOST
    create A free P1; update A free pro P2 = MOVED; create Z pro Adopt = JOINED; update A pro free P1 =
    LOST; held free=A+away pro=A,Z; delete A pro; held free=A+away pro=Z; delete Z pro; delete A free;
    held nothing -> attached nothing
another stack has joined, and it is no rollback: named
    create A free P1; update A free pro P2 = MOVED; create Z pro Adopt = JOINED; update A pro third P3 =
    FAILED Z of stack two; held free=A+away pro=A,Z -> attached pro
""")
def test_a_rollback_that_cannot_have_its_key_back(line: str) -> None:
    play(line)


def test_a_resource_may_have_left_more_than_a_transaction_takes() -> None:
    """Its requests are served with as few calls as any, and its Delete lets go of everything."""
    many = [Association("alice", f"plan{number}") for number in range(120)]
    with staged() as story:
        story.play("queue; one: create A free")
        table = Table(story.dynamodb, "ledger")  # type: ignore[arg-type]  # a fake

        def moved(state: Snapshot) -> Snapshot:
            for one in state.entries:
                state = state.held(HOLDER, one, Hold("one", Belief.LEFT, marked_by="one"))
                state = state.with_entry(one, away=True)
            return state

        for part in (many[:60], many[60:]):
            table.change(HOLDER, part, moved, Deadline(ends=1e12))
        story.play(
            "update A free gold = ATTACHED; ledger 1R 2W; update A gold nowhere = FAILED there is no;"
            "update A gold gold = VERIFIED; delete A gold; held free=A; beliefs A free=left;"
            "delete A free -> attached nothing"
        )
