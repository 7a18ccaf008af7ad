"""The function dies, meets others, or loses its ledger at any step; the next delivery ends well."""

from __future__ import annotations

import itertools

import pytest

from usage_plan_key.ledger import Table
from usage_plan_key.request import parse
from usage_plan_key.retry import Deadline
from usage_plan_key.service import Service

from .story import Death, play, staged, stories


@stories("""
a Create
    create A free
a Create that joins
    create B free; create A free
a Create with its value
    create A free Value
a repair
    create A free; hand- free; update A free free
a repair of what was there before
    hand+ free; create A free Adopt; hand- free; update A free free Adopt
taking over
    hand+ free; create A free Take; update A free free Take
a replacement
    create A free; update A free gold
a move
    create A free; update A free pro
a move that takes over
    hand+ free; create A free Take; update A free pro Take old=Take
a move back
    create A free; update A free pro; time 60; update A free free
an Update in place that releases a leftover
    create A free; update A free gold; update A free free
a Delete
    create A free; delete A free
a Delete of one of two
    create B free; create A free; delete A free
a Delete of what was there before
    hand+ free; create A free Adopt; delete A free
a Delete after a move
    create A free; update A free pro; delete A pro
a cancelled Create's Delete, with several holds
    create A free; update A #former gold; delete A #invented
""")
@pytest.mark.parametrize("queue", ["", "queue; "], ids=["no queue", "queue"])
def test_a_death_between_any_two_steps_is_harmless(line: str, queue: str) -> None:
    """After a death before or after any call, the next delivery ends as if nothing had been."""
    *before, last = (queue + line).split("; ")
    undisturbed = play(f"{'; '.join(before)}; one: {last}" if before else f"one: {last}")
    for moment in itertools.count(1):
        with staged() as story:
            story.play("; ".join(before))
            story.moments = iter(range(1, moment))
            try:
                story.play(f"one: {last} = ok")
            except Death:
                pytest.fail("the driver tells it")
            except AssertionError:
                assert story.told[-1].startswith("one:")
                assert story.died
            else:
                assert moment > 4
                break
            story.moments = None
            story.play("again one = ok")
        assert story.api.attached == undisturbed.api.attached, f"moment {moment}"
        found, expected = (
            {one: entry._replace(detached=0) for one, entry in told._pages().entries.items() if entry.holders}
            for told in (story, undisturbed)
        )
        assert found == expected, f"moment {moment}"


@stories("""
the fourth time it is answered FAILED
    queue; at create dies*4; create A free = dies; again = dies; again = dies; again = dies; again =
    FAILED 3 invocations died at this request. Look into the function's log; calls none; held
    free=A!wanted+attaching; delete A free -> attached nothing
what goes back has not died
    queue; at create busy*; create A free = waits; time 2; again = waits; time 5; again = waits; time 9;
    again = waits; time 9; again = waits; at create; time 9; again = ATTACHED ->
    attached free
a death between two waits counts, and the waits do not take it off
    queue; at create busy*3 dies; create A free = waits; time 2; again = waits; time 5; again = dies; at
    create busy*; again = waits; time 20; again = waits; at create; time 20; again = ATTACHED -> attached
    free
deaths at the delivery of the answer count, and after three nobody sends it again
    queue; at put dies*4; create A free = dies; again = dies; again = dies; again = dies; again = unsent;
    log ERROR Create alice:free, OnExisting Fail: functions have died at its delivery, so the answer is
    not sent again; held free=A -> attached free
deaths before the answer and at its delivery count together
    queue; at create dies*2; at put dies*3; create A free = dies; again = dies; again = dies; again =
    dies; again = dies; again = unsent -> attached free
what was not delivered, and nobody died, is sent again for as long as CloudFormation waits
    queue; at put cut*5; create A free = fails; again = fails; again = fails; again = fails; again =
    fails; again = ATTACHED; again = ATTACHED -> attached free
its time is over: deaths do not matter
    queue; at create dies; late: issue create A free for=100; serve late = dies; time 200; again late =
    FAILED was over; delete A free -> attached nothing
""")
def test_deaths_are_counted(line: str) -> None:
    play(line)


@stories("""
a repeated Create that cannot look keeps its hold, and its Delete detaches the key
    at create dead; one: issue create A free; serve one = dies; at create odd; at get denied; again one =
    FAILED apigateway:GET; held free=A!wanted+attaching; delete A free -> attached nothing
a repeated Create whose ledger cannot be read keeps its hold
    at create dead; one: issue create A free; serve one = dies; at read denied*; again one = FAILED Could
    not read the ledger; at read; held free=A!wanted+attaching; delete A free -> attached nothing
nobody knows whether a dead delivery has attached it: at a refusal the hold stays
    at create dies; one: issue create A free; serve one = dies; at create denied; again one = FAILED
    permission; held free=A!wanted+attaching; delete A free; held nothing -> attached nothing
a dead move is a move
    create A free; at create ok dies; one: issue update A free pro; serve one = dies; again one = MOVED;
    held free=A+away pro=A -> attached pro
a move that died after it attached is found by the next delivery
    create A free; at create ok dead; one: issue update A free pro; serve one = dies; again one = MOVED;
    held free=A+away pro=A -> attached pro
a dead move is undone where the next delivery is refused for good
    create A free; at create ok dies; one: issue update A free pro; serve one = dies; attached nothing; at
    create:pro denied; again one = FAILED permission; held free=A+away pro=A!wanted+attaching; update A
    free free = REPAIRED; held free=A -> attached free
a detaching that may have been served keeps its mark, and a later turn knows what to attach again
    queue; create A free; one: issue update A free pro; at delete lost throttled=9; serve one = waits 9;
    held free=A+detaching+away; time 10; again one = MOVED; held free=A+away pro=A -> attached pro
a Delete lets go of what a dead move has marked
    create A free; at delete dies; update A free pro = dies; delete A free; held pro=A!wanted; delete A
    pro; held nothing -> attached nothing
a dead Delete's work is finished at once by its holder's next request
    create B free; at delete dies; delete B free = dies; update B #former free = ATTACHED; held free=B ->
    attached free
a dead Delete's work is finished at once by its holder's next request, whatever that wants
    create B free; at delete dies; delete B free = dies; update B #former gold = ATTACHED; held gold=B ->
    attached gold
a superseded request finishes nothing
    create B free; at delete dies; delete B free = dies; late: issue update B free gold; arrive update B
    free pro; serve late = FAILED Superseded; calls none; held free=B+detaching -> attached free
others wait for a dead Delete for as long as its function could run, and then finish it
    seconds 90; create B free; at delete dies; delete B free = dies; seconds 900; create A free =
    ATTACHED; calls delete=1 create=1; held free=A -> attached free
by a queue, others come back until then
    queue; create B free; at delete dies; delete B free = dies; create A free = waits 1-2; calls none;
    held free=B+detaching; time 151; again = ATTACHED; calls delete=1 create=1 -> attached free
out of time, it names the holder that it has waited for, and changes nothing
    seconds 900; create B free; at delete dies; delete B free = dies; seconds 300; create A free = FAILED
    Could not attach API key alice to usage plan free|B of stack one is detaching it; held
    free=B+detaching -> attached free
superseded while it waits, it touches nothing
    queue; create B free; at delete dies; delete B free = dies; create A free = waits 1-2; arrive delete A
    #invented; time 2; again request-3 = FAILED Superseded; calls none; held free=B+detaching -> attached
    free
the marker's own redelivery finishes it, and who waits attaches it anew
    create B free; at delete dies; two: issue delete B free; serve two = dies; asleep {again two}; create
    A free = ATTACHED; held free=A -> attached free
a stale mark whose finishing is refused stays with its marker, and the request fails
    seconds 90; create B free; at delete dies denied; delete B free = dies; time 300; create A free =
    FAILED apigateway:DELETE; held free=B; delete B free -> attached nothing
a stale mark whose finishing loses its reply stays a mark
    seconds 90; create B free; at delete dies lost denied; delete B free = dies; time 300; create A free =
    FAILED apigateway:DELETE; held free=B+detaching; delete B free -> attached nothing
a stale mark that its marker finishes first is left to it
    seconds 90; create B free; at delete dies; two: issue delete B free; serve two = dies; time 300; at
    read ok*2 {again two; create C free = ATTACHED}; create A free = JOINED; held free=A,C -> attached
    free
a stale mark that its marker has renewed is waited for
    seconds 90; create B free; at delete dies*2; two: issue delete B free; serve two = dies; time 300;
    seconds 900; at read ok*2 {again two = dies}; create A free = ATTACHED; held free=A -> attached free
""")
def test_what_a_dead_function_has_left(line: str) -> None:
    play(line)


@stories("""
two resources of a stack: one attaches it, the other joins, and the last to go detaches it
    at create {create B free = REPAIRED}; create A free = JOINED; delete A free; held free=B; delete B
    free -> attached nothing
two stacks
    at create {create Z free Adopt = REPAIRED}; create A free = JOINED; delete A free; held free=Z; delete
    Z free -> attached nothing
two deliveries of one request: one answer
    one: issue create A free; at create {again one = ATTACHED}; serve one = ATTACHED; held free=A ->
    attached free
two deliveries, with Adopt
    one: issue create A free Adopt; at create {again one = ATTACHED}; serve one = ATTACHED; held free=A ->
    attached free
two deliveries, of which the later one is refused: it takes nothing back
    one: issue create A free; at create {again one}denied; serve one = ATTACHED; held free=A -> attached
    free
a joiner during a repair does not put back what the repair has cleared
    hand+ free; create A free Adopt; hand- free; at get {update A free free Adopt = REPAIRED}; create B
    free = JOINED; delete A free; delete B free -> attached nothing
what was there before two resources is neither's
    hand+ free; at create {create B free Adopt = JOINED}; create A free Adopt; held free=A,B!before;
    delete A free; delete B free -> attached free
a joiner of a hold that comes to nothing: what is there was there before
    hand+ free; queue; at create busy*; create A free = waits; at create; time 2; create Z free Adopt =
    ADOPTED; arrive delete A #invented; again request-1 = FAILED Superseded; held free=Z!before; delete Z
    free -> attached free
a late Create of an older life does not keep the key attached
    late: issue create A free; create A free; serve late = FAILED Superseded; delete A free; held nothing
    -> attached nothing
others change the same pages: it decides anew
    create B free; at write {delete B free}; create A free = ATTACHED; held free=A -> attached free
others change the same pages while it detaches: it is not the last holder any more
    create A free; at write {create B free = JOINED}; delete A free; calls get=1; held free=B -> attached
    free
""")
def test_two_at_the_same_time(line: str) -> None:
    play(line)


@stories("""
a hold that cannot be written: nothing is called
    queue; at write denied*2; create A free = FAILED Could not write the ledger; calls none; held nothing
    -> attached nothing
an arrival that cannot be written
    queue; at fence denied; create A free = FAILED Could not write the ledger ledger|Check that the table
    is there -> attached nothing
a ledger that cannot be read: nothing is called
    queue; at read denied*; create A free = FAILED Could not read the ledger ledger in eu-west-1: ; calls
    none; at read -> attached nothing
a hold whose reply was lost is read back
    queue; at write lost; create A free = ATTACHED; held free=A -> attached free
a closing write that is refused: the key stays held, and its Delete detaches it
    queue; at write ok denied*2; create A free = FAILED Could not write the ledger; held
    free=A!wanted+attaching; delete A free -> attached nothing
a closing write that is refused once: FAILED, and the pages say what is so
    queue; at write ok denied; create A free = FAILED Could not write the ledger; held free=A; beliefs A
    free=failed; delete A free -> attached nothing
a closing write that is carried out, and its reply lost, and its repetition denied: the answer stands
    queue; at write ok lost denied; create A free = ATTACHED; held free=A -> attached free
what was there before is noted at the last moment
    queue; hand+ free; at get ok; at write ok denied; create A free = FAILED; held nothing; delete A free
    -> attached free
a Delete whose closing write is refused is done by the next one
    queue; create A free; at write ok denied*2; delete A free = FAILED Could not write the ledger|Still
    attached: alice:free, if it was; held free=A+detaching; delete A free; held nothing -> attached
    nothing
a move whose second mark is refused: nothing is detached
    queue; create A free; at write ok denied*; update A free pro = FAILED Could not write the ledger; at
    write; update A free free = VERIFIED -> attached free
a turn ends though nothing can be written of it
    queue; at create busy*; at write ok denied*; create A free = waits 0; at write; at create; time 3;
    again = ATTACHED -> attached free
throttled writes are tried again
    queue; at write throttled*2; create A free = ATTACHED -> attached free
""")
def test_a_ledger_out_of_reach(line: str) -> None:
    play(line)


@stories("""
a Create
    queue; at create busy*3; create A free = waits; at create; time 5; again = ATTACHED; held free=A ->
    attached free
a move: what is detached stays held, and nobody attaches it meanwhile
    queue; create A free; at create ok busy*3; update A free pro = waits; attached nothing; held
    free=A+away; at create; time 9; again = MOVED; held free=A+away pro=A -> attached pro
a move to its end: if API Gateway refuses for good, the old one is attached again
    queue; create A free; at create ok busy*3; one: issue update A free pro; serve one = waits; at create
    denied; time 9; again one = FAILED permission; held free=A -> attached free
a move that waits for its 202 is not undone while it waits
    queue; create A free; at delete later=9; update A free pro = waits 1-2; time 3; again = waits; time
    10; again = MOVED -> attached pro
a Delete
    queue; create A free; at delete busy*3; delete A free = waits; held free=A; at delete; time 5; again;
    held nothing -> attached nothing
refused for good it does not wait
    queue; at create denied; create A free = FAILED apigateway:POST -> attached nothing
it waits longer with each of its own refusals, to two minutes
    queue; at create broken*; create A free = waits 1-2; time 2; again = waits 2-4; time 4; again = waits
    4-8; time 8; again = waits 8-16; time 16; again = waits 16-20 -> attached nothing
while API Gateway asks one to wait, the others wait too, for half a minute at most, and ask nobody
    queue; at create throttled=50; create A free = waits 20; create B gold = waits 20; calls none; time
    31; again = ATTACHED -> attached gold
it waits for as long as API Gateway asks
    queue; at create throttled=50; create A free = waits 20; time 20; again = waits 20; time 20; again =
    waits 10; calls none; time 10; again = ATTACHED -> attached free
to its last try, in the last minute: then it is answered
    queue; at create busy*; create A free for=300 = waits; time 150; again = waits; time 75; again =
    FAILED gave up after 3 attempts in 2 -> attached nothing
a wait beyond its end: it is answered at once
    queue; at create throttled=400; create A free for=300 = FAILED gave up after 1 attempts in 0 s ->
    attached nothing
a Delete that is refused to its end names what stays
    queue; create A free; at delete busy*; delete A free for=300 = waits; time 150; again = waits; time
    75; again = FAILED gave up after| Still attached: API key alice in usage plan free -> attached free
a quota is tried for half a minute, and then it fails
    at create quota*; create A free = FAILED LimitExceededException; held nothing -> attached nothing
the function's time is nearly up: it comes again at once
    queue; seconds 25; create A free = waits 0; calls none; seconds 90; again = ATTACHED -> attached free
""")
def test_a_long_wait_is_the_queues(line: str) -> None:
    play(line)


def test_the_guards_failure_gives_way_to_the_answer_that_stands() -> None:
    with staged() as story:
        story.play("one: create A free")
        table, clock = Table(story.dynamodb, "ledger"), story.clock  # type: ignore[arg-type]  # a fake
        deadline = Deadline(ends=clock.now + 60, clock=clock)
        given = Service(parse(story.events["one"]["event"]), table, story.function.api, deadline).fail(
            "It hangs"
        )
    assert (given.success, given.id, given.outcome) == (True, "alice:free", "ATTACHED")
