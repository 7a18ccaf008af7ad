"""An invocation queues CloudFormation's request or serves it, in its time; or it lets go for an operator."""

from collections.abc import Iterator
from typing import Any

import pytest

from usage_plan_key.errors import EventError, FailedError
from usage_plan_key.provider import DELIVERY_TIME, LAST_SECONDS, about
from usage_plan_key.request import Request
from usage_plan_key.retry import Deadline

from .function import STACK
from .story import Story, played, staged


@pytest.fixture
def story() -> Iterator[Story]:
    with staged() as story:
        yield story


test_a_request_arrives = played("""
one whose time is nearly over is answered at once, and any other may wait in the queue
    queue; arrive create A free for=10 = FAILED was over before its turn came; arrive create B gold for=11
    = unsent; calls none -> attached nothing
the queue refuses it: it is answered at once
    queue; at send denied; create A free = FAILED Could not queue the request: An error occurred
    (AccessDeniedException)|Check that the queue is there and that the role may use it; calls none ->
    attached nothing
the queue throttles it to the end of its time
    queue; at send limit*; create A free = FAILED Could not queue the request: gave up after; at send ->
    attached nothing
a Create that is refused for its host fences: retained, declared again and failing detaches no customer
    queue; create A free; time 60; two: arrive create A free; at check elsewhere*; serve two = FAILED leads
    elsewhere; calls none; create A free = FAILED leads elsewhere; at check; calls none; delete A free;
    calls none -> attached free
an internal error is a FAILED answer, otherwise CloudFormation would wait for an hour
    queue; create A free; at fence crash; delete A free = FAILED An internal error, please report it:
    ZeroDivisionError: oops|Still attached; log ERROR An internal error; log Traceback -> attached free
each line of the log describes it
    queue; create A free; log INFO Asked: Create alice:free, OnExisting Fail; log INFO SUCCESS ATTACHED;
    update A free free Adopt; log INFO Asked: Update alice:free, OnExisting Adopt; delete A free; log INFO
    Asked: Delete alice:free; create A nothing = FAILED; log INFO Asked: Create with unusable properties;
    update A free nothing = FAILED; log INFO Asked: Update with unusable properties; log ERROR FAILED The
    properties are not usable -> attached nothing
""")

test_its_time_counts_from_its_issue_beyond_the_first_minute = played("""
it waits in vain, and is answered in its last minute
    queue; at create busy*; late: issue create A free for=600; time 60; serve late = waits; time 480;
    again = waits; time 50; again = FAILED attempts in 5 -> attached nothing
it arrives late
    queue; at create busy*; late: issue create A free for=600; time 300; serve late = waits; time 240;
    again = waits; time 50; again = FAILED attempts in 2 -> attached nothing
put back from a dead-letter queue days later it touches nothing, and its answer does not come again
    queue; one: arrive create A free for=600; time 259200; serve one = FAILED was over; calls none; at put
    cut; put one; serve one = unsent -> attached nothing
there is no time for a last look: it touches nothing, and its answer comes again
    queue; one: arrive create A free for=600; time 590; at put cut; serve one = fails; log ERROR Not
    delivered: ; serve one = FAILED was over; calls none -> attached nothing
there is time for a last look
    queue; one: arrive create A free for=600; time 570; serve one = ATTACHED -> attached free
an answer that was given is given again in the last seconds
    queue; one: create A free; time 3595; again one = ATTACHED; time 4; again one = ATTACHED -> attached
    free
and after them
    queue; one: create A free; time 3605; again one = ATTACHED; time 3600; seconds 8; again one = ATTACHED
    -> attached free
an answer that CloudFormation waits for no longer does not come again
    queue; at put {time 3600}cut; create A free = unsent -> attached free
""")

test_lambda_invokes_again = played("""
no time was left to queue it
    queue; seconds 5; arrive create A free for=11 = raises -> attached nothing
its time is over, and none was left to look it up
    queue; seconds 1; arrive create A free for=10 = raises -> attached nothing
nobody knows whether SQS has it: no answer contradicts the queue's
    queue; at send cut*; arrive create A free = raises; at send -> attached nothing
nor after a proxy's page
    queue; at send html*; arrive create A free = raises; at send -> attached nothing
""")


def test_the_sender_is_made_ready_by_whoever_delivers(story: Story) -> None:
    """It becomes ready while the function waits for API Gateway; see response.Sender."""
    ready: list[str] = []
    story.prepare = lambda: ready.append(f"after {story.calls.total()} calls")  # type: ignore[method-assign]  # it counts
    story.play("arrive create A free = unsent")
    assert ready == []
    story.play("serve request-1; create B gold")
    assert ready == ["after 0 calls"] * 2


@pytest.mark.parametrize(("seconds", "left"), [(90, DELIVERY_TIME), (36, 36 - LAST_SECONDS - 15)])
def test_a_delivery_has_twenty_seconds_or_what_is_left(seconds: float, left: float, story: Story) -> None:
    found: list[float] = []

    def deliver(request: Request, deadline: Deadline, body: bytes) -> None:
        found.append(deadline.ends - story.now)

    story.deliver = deliver  # type: ignore[method-assign]  # it measures
    story.play(f"queue; seconds {seconds}; at create {{time 15}}ok; create A free = unsent")
    assert found == [left]


test_the_guard_answers_in_its_time = played("""
the ledger is out of reach too: nobody can write the answer down
    at create hangs; at write ok*2 slow*; create A free = dies; at write; log Could not write the answer
    down -> attached nothing
the same, and the function ends soon
    seconds 8; at write ok slow*; create A free = FAILED No answer in time; at write; log Could not write the
    answer down -> attached nothing
a refusal that comes late keeps its reason
    queue; at fence {time 81}denied; create A free = FAILED Could not write the ledger -> attached nothing
""")

test_an_operator_lets_go_of_a_resource_whose_stack_is_gone = played("""
it holds nothing, and nothing is detached
    create A free; crowd; stack one DELETE_COMPLETE; excuse free; letgo A = ok; log WARNING A of stack one is
    gone: let go of alice:free, alice:plan0, ; stack one none; letgo A = ok; log WARNING A of stack one is
    gone: let go of nothing, and detached nothing; held nothing -> attached free
its stack may be there: it keeps its holds
    create A free; letgo A = FAILED Stack arn:|/one/0 is still there, so the function let go of nothing.
    Delete the resource from its template; stack one DELETE_FAILED; letgo A = FAILED is still there; stack
    one DELETE_IN_PROGRESS; letgo A = FAILED is still there; at stack denied unsigned empty*; letgo A =
    FAILED about arn:|/one/0: |needs cloudformation:DescribeStacks; letgo A = FAILED Error when
    retrieving; letgo A = FAILED the reply is none of CloudFormation's; held free=A -> attached free
it has the function's time
    seconds 60; stack one none; at read slow*; letgo A = FAILED gave up after|in 5; at read -> attached
    nothing
""")


def test_letting_go_asks_about_no_other_accounts_stack_and_takes_a_whole_request(story: Story) -> None:
    """This account's CloudFormation would say that another one's stack does not exist."""
    whole: Any = {"StackId": STACK.format("one"), "LogicalResourceId": "A"}
    story.play("create A free; stack one DELETE_COMPLETE; time 1")
    with pytest.raises(FailedError, match="is no id of a stack"):
        story.function.let_go(whole | {"StackId": whole["StackId"].replace(":1:", ":2:")}, story)
    takes = r'^LetGo takes \{"StackId": "...", "LogicalResourceId": "..."\}, and needs a ledger$'
    odd: Any
    for odd in ([], {"StackId": whole["StackId"]}, whole | {"StackId": 7}):
        with pytest.raises(EventError, match=takes):
            story.function.let_go(odd, story)
    story.play("held free=A; no ledger")
    about.set({"left": "over"})
    with pytest.raises(EventError, match=takes):
        story.function.let_go(whole, story)
    assert about.get() == {}
