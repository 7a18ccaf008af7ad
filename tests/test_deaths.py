"""The function dies, meets others, or loses its ledger at any step; the next delivery ends well."""

import itertools
from typing import Any

import pytest

from .story import Story, play, played, staged, stories


@pytest.mark.parametrize("ending", ["dies", "hangs"])
@stories("""
a Create with its value
    create A free Value
a repair of what was there before
    hand+ free; create A free Adopt; hand- free; update A free free Adopt
a move back
    create A free; update A free pro; time 60; update A free free
a cancelled Create's Delete, with several holds
    create A free; update A #former gold; delete A #invented
""")
def test_a_death_or_a_hang_between_any_two_steps_is_harmless(line: str, ending: str) -> None:
    """After a death before or after any call, the next delivery ends as if nothing had been.

    If a call hangs, the guard answers, and what is attached stays held.
    """
    before, _, last = f"queue; {line}".rpartition("; ")
    undisturbed = left(play(f"{before}; {last}"))
    for moment in itertools.count(1):
        with staged() as story:
            story.ending = ending
            story.play(before)
            story.moments = iter(range(1, moment))
            story.play(f"one: {last} = any")
            is_over, story.moments = story.moments is not None, None
            story.play(f"again one = {'ok' if ending == 'dies' else 'any'}")
        assert ending == "hangs" or left(story) == undisturbed, f"moment {moment}"
        if is_over:
            assert moment > 4
            return


def left(story: Story) -> Any:
    """What is attached, and who holds it."""
    pages = {one: entry._replace(detached=0) for one, entry in story.pages().entries.items() if entry.holders}
    return story.api.attached, pages


test_a_call_that_hangs = played("""
the guard answers in time, and the same answer goes out again
    queue; at create hangs; create A free = dies; again = FAILED No answer in time: a call of the function
    hangs. Look into its log, and deploy again; held free=A!wanted+attaching; delete A free -> attached
    nothing
the answer is written when a call hangs: the guard gives that answer
    queue; at write ok hung; create A free = dies; again = ATTACHED -> attached free
a detaching hangs in a move: the rollback attaches the old one again
    queue; create A free; at delete hung; update A free pro = dies; again = FAILED No answer in time; held
    free=A+detaching+away pro=A!wanted; update A free free = REPAIRED -> attached free
S3 hangs, or may have taken the answer: it stands, and goes out again
    queue; at put hung lost; create A free = dies; again = fails; again = ATTACHED -> attached free
SQS loses its reply, or a proxy answers for it: the request is queued once
    queue; at send html lost empty; create A free = ATTACHED; calls create=1 -> attached free
without a queue
    at create hung; create A free = dies; again = FAILED No answer in time; delete A free -> attached
    nothing
""")

test_deaths_are_counted = played("""
the fourth time it is answered FAILED
    queue; at create dies*4; create A free = dies; again = dies; again = dies; again = dies; again =
    FAILED 3 invocations died at this request. Look into the function's log; calls none; held
    free=A!wanted+attaching; delete A free -> attached nothing
deaths before the answer and at its delivery count together, and after three nobody sends it again
    queue; at create dies*2; at put dies*2; create A free = dies; again = dies; again = dies; again =
    dies; again = unsent; log ERROR Create alice:free, OnExisting Fail: functions have died
    at its delivery, so the answer is not sent again; held free=A -> attached free
deaths before the answer, and then it was not delivered: it is sent again
    queue; at create dies*4; at put cut; create A free = dies; again = dies; again = dies; again = dies;
    again = fails; again = FAILED 3 invocations died at this request; delete A free -> attached nothing
what was not delivered, and the ledger cannot say so: it is sent again
    queue; at create dies; create A free = dies; at put cut; at write ok ok denied; again = fails; again =
    ATTACHED -> attached free
what was not delivered, and nobody died, is sent again for as long as CloudFormation waits
    queue; at put cut*5; create A free = fails; again = fails; again = fails; again = fails; again =
    fails; again = ATTACHED; again = ATTACHED -> attached free
""")

test_what_a_dead_function_has_left = played("""
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
by a queue, others come back until then
    queue; create B free; at delete dies; delete B free = dies; create A free = waits 1-2; calls none;
    held free=B+detaching; time 151; again = ATTACHED; calls delete=1 create=1 -> attached free
out of time, it names the holder that it has waited for, and changes nothing
    seconds 900; create B free; at delete dies; delete B free = dies; seconds 300; create A free = FAILED
    Could not attach API key alice to usage plan free|B of stack one is detaching it; held
    free=B+detaching -> attached free
a stale mark has one finisher, and its marker and all others wait for that one
    queue; create A free; at delete dies; one: issue delete A free; serve one = dies; time 151; at delete
    {again one = waits 1-2; create Y free Adopt = waits 1-2}; create Z free = ATTACHED; calls delete=1
    create=1; time 2; again one; calls none; held free=Z -> attached free
a stale mark whose finishing is refused stays with its marker, and the request fails
    seconds 90; create B free; at delete dies denied; delete B free = dies; time 300; create A free =
    FAILED apigateway:DELETE; held free=B; delete B free -> attached nothing
a stale mark whose finishing loses its reply stays a mark
    seconds 90; create B free; at delete dies lost denied; delete B free = dies; time 300; create A free =
    FAILED apigateway:DELETE; held free=B+detaching; delete B free -> attached nothing
a stale mark that its marker finishes first is left to it
    seconds 90; create B free; at delete dies; two: issue delete B free; serve two = dies; time 300; at
    read ok {again two; create C free = ATTACHED}; create A free = JOINED; held free=A,C -> attached free
""")

test_two_at_the_same_time = played("""
a joiner during a repair does not put back what the repair has cleared
    hand+ free; create A free Adopt; hand- free; at get {update A free free Adopt = REPAIRED}; create B
    free = JOINED; delete A free; delete B free -> attached nothing
what was there before two resources is neither's
    hand+ free; at get {create B free Adopt = ADOPTED}; create A free Adopt = JOINED; held free=A,B!before;
    delete A free; delete B free -> attached free
a joiner of a hold that comes to nothing: what is there was there before
    hand+ free; queue; at create busy*; create A free = waits; at create; time 2; create Z free Adopt =
    ADOPTED; arrive delete A #invented; again request-1 = FAILED Superseded; held free=Z!before; delete Z
    free -> attached free
""")

test_a_ledger_out_of_reach = played("""
reads that a pause mends; a null in the place of each page is an answer
    at read slow conflict broken html garbled short empty limit null; create A free = ATTACHED; ledger
    10R 3W -> attached free
writes that a pause mends, and pages that others have changed
    queue; at write slow progress conflict broken html garbled changed; create A free = ATTACHED; ledger
    2R 9W -> attached free
the attempts of one write share a token, so it is written once though its reply is lost
    queue; at write lost; create A free = ATTACHED; ledger 1R 3W -> attached free
a page that a newer version has written: nothing changes
    queue; one: arrive create A free; at read newer*; serve one = FAILED a newer version of the
    function has written it; at read; calls none; held nothing -> attached nothing
a table that is not there
    at read absent*; create A free = FAILED Could not read the ledger ledger in eu-west-1: An error
    occurred (ResourceNotFoundException)|Check that the table is there and that the role may use it; at
    read -> attached nothing
a transaction that is cancelled for good
    queue; at write invalid*; create A free = FAILED Could not write the ledger ledger in eu-west-1: An
    error occurred (TransactionCanceledException); at write -> attached nothing
a ledger that throttles to the end
    queue; at read slow*; create A free = FAILED Could not read the ledger ledger|gave up after 10
    attempts|(ProvisionedThroughputExceededException); at read -> attached nothing
a hold that cannot be written: nothing is called
    queue; at write denied*2; create A free = FAILED Could not write the ledger; calls none; held nothing
    -> attached nothing
an arrival that cannot be written
    queue; at fence denied; create A free = FAILED Could not write the ledger ledger|Check that the table
    is there -> attached nothing
a closing write that is refused: the key stays held, and its Delete detaches it
    queue; at write ok denied*2; create A free = FAILED Could not write the ledger; held
    free=A!wanted+attaching; delete A free -> attached nothing
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
""")

test_a_long_wait_is_the_queues = played("""
a move that waits for its 202 is not undone while it waits
    queue; create A free; at delete later=9; update A free pro = waits 1-2; time 3; again = waits; time
    10; again = MOVED -> attached pro
while API Gateway asks one to wait, the others wait too, for half a minute at most, and ask nobody
    queue; at create throttled=50; create A free = waits 20; create B gold = waits 20; calls none; time
    31; again = ATTACHED -> attached gold
to its last try, in the last minute: then it is answered
    queue; at create busy*; create A free for=300 = waits; time 150; again = waits; time 75; again =
    FAILED gave up after 3 attempts in 2 -> attached nothing
a wait beyond its end: it is answered at once
    queue; at create throttled=400; create A free for=300 = FAILED gave up after 1 attempts in 0 s ->
    attached nothing
within a short ServiceTimeout the last try falls into the second half
    queue; at create busy*; create A free for=100 = waits; time 20; again = waits; time 20; again = FAILED
    gave up after 3 attempts|try again later -> attached nothing
a Delete that is refused to its end names what stays
    queue; create A free; at delete busy*; delete A free for=300 = waits; time 150; again = waits; time
    75; again = FAILED gave up after| Still attached: API key alice in usage plan free -> attached free
the function's time is nearly up: it comes again at once
    queue; seconds 25; create A free = waits 0; calls none; seconds 90; again = ATTACHED -> attached free
""")
