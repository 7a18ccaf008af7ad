"""An invocation queues CloudFormation's request or serves it, in its time; or it lets go for an operator."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Any
from unittest import mock

import pytest
from botocore.exceptions import NoCredentialsError

from usage_plan_key.custom_resource import GUARD_TIME, CustomResource
from usage_plan_key.errors import EventError, FailedError, NotBegunError, TurnOverError, UnclearError
from usage_plan_key.ledger import Table, at_once
from usage_plan_key.model import Association, Hold, Snapshot
from usage_plan_key.provider import DELIVERY_TIME, LAST_SECONDS, about
from usage_plan_key.request import Request
from usage_plan_key.retry import Deadline

from .function import STACK, refusal
from .story import Story, holder_of, played, staged, stories


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


@stories("""
none was left to queue it
    seconds 5; arrive create A free for=11
its time is over, and none was left to look it up
    seconds 1; arrive create A free for=10
nobody knows whether SQS has it: no answer contradicts the queue's
    at send cut*; arrive create A free
nor after a proxy's page
    at send html*; arrive create A free
""")
def test_lambda_invokes_again(line: str, story: Story) -> None:
    with pytest.raises((NotBegunError, TurnOverError, UnclearError)):
        story.play(f"queue; {line}")
    assert (story.put, story.messages) == ([], {})


def test_the_sender_is_made_ready_by_whoever_delivers(story: Story) -> None:
    """It becomes ready while the function waits for API Gateway; see response.Sender."""
    ready: list[str] = []
    story.prepare = lambda: ready.append(f"after {story.calls.total()} calls")  # type: ignore[method-assign]  # it counts
    story.play("arrive create A free = unsent")
    assert ready == []
    story.play("serve request-1; create B gold")
    assert ready == ["after 0 calls"] * 2


def test_a_create_that_is_refused_for_its_host_fences(story: Story) -> None:
    """A template that declares a retained logical id again and fails must not detach a live customer.

    Out of the queue it is refused too: somebody may write to that, or invoke the function with a batch.
    """

    def check(request: Request) -> None:
        raise FailedError("ResponseURL leads elsewhere")

    story.play("queue; create A free; time 60; two: arrive create A free")
    usual, story.check = story.check, check  # type: ignore[method-assign]  # it refuses
    story.play("serve two = FAILED leads elsewhere; calls none; create A free = FAILED leads elsewhere")
    story.check = usual  # type: ignore[method-assign]  # as it was
    story.play("calls none; delete A free; calls none -> attached free")


@pytest.mark.parametrize(("seconds", "left"), [(90, DELIVERY_TIME), (36, 36 - LAST_SECONDS - 15)])
def test_a_delivery_has_twenty_seconds_or_the_time_that_is_left(
    seconds: float, left: float, story: Story
) -> None:
    found: list[float] = []

    def deliver(request: Request, deadline: Deadline, body: bytes) -> None:
        found.append(deadline.ends - story.now)

    story.deliver = deliver  # type: ignore[method-assign]  # it measures
    story.play(f"queue; seconds {seconds}; at create {{time 15}}ok; create A free = unsent")
    assert found == [left]


@stories("""
a call hangs
    create A free = FAILED No answer in time: a call of the function hangs. Look into its log, and deploy
    again; held nothing -> attached nothing
a call hangs in the queue's invocation
    queue; create A free = FAILED No answer in time; held nothing -> attached nothing
the ledger is out of reach too
    at write ok slow*; create A free = FAILED No answer in time; at write -> attached nothing
the ledger is out of reach, and the function ends soon
    seconds 8; at write ok slow*; create A free = FAILED No answer in time; at write -> attached nothing
a refusal that comes late keeps its reason
    queue; at fence denied; create A free = FAILED Could not write the ledger -> attached nothing
""")
def test_the_guard_answers_in_its_time(line: str, story: Story) -> None:
    """It writes its answer down, if it can."""

    def strike(guard: CustomResource) -> None:
        began = story.now = max(story.now, story.ends - GUARD_TIME)
        guard._timeout()
        took.append(story.now - began)

    took: list[float] = []
    with mock.patch.object(CustomResource, "_set_timeout", strike):
        story.play(line)
    assert took[0] < min(GUARD_TIME, story.seconds)
    unwritten = any("Could not write the answer down" in said for said in story.lines)
    assert unwritten is ("slow" in line)


# --- An operator lets go of a resource whose stack is gone without a Delete for it ---

GONE: Any = {"StackId": STACK.format("one"), "LogicalResourceId": "A"}


def let_go(story: Story, said: str | Exception = "DELETE_COMPLETE", asked: Any = GONE) -> dict[str, Any]:
    """Have a resource let go, while CloudFormation says this of its stack."""

    def describe_stacks(**_: Any) -> Any:
        if isinstance(said, Exception):
            raise said
        return {"Stacks": [{"StackStatus": said}]} if said else {}

    story.describe_stacks = describe_stacks  # type: ignore[method-assign]  # it varies
    story.ends = story.now + 60
    return story.function.let_go(asked, story)


def test_a_stack_that_is_gone_holds_nothing_and_nothing_is_detached(story: Story) -> None:
    """Its resource may hold more than a transaction takes."""

    def hold(state: Snapshot) -> Snapshot:
        return reduce(lambda held, one: held.held(holder_of("A"), one, Hold("r")), state.entries, state)

    many = [Association("alice", f"plan{number}") for number in range(120)]
    table = Table(story.db, "ledger")  # type: ignore[arg-type]  # a fake
    story.play("create A free")
    for part in at_once(many):
        table.change(holder_of("A"), part, hold, Deadline(ends=1e12))
    about.set({"left": "over"})
    assert let_go(story) == {"LetGo": ["alice:free", *(one.id for one in many)]}
    assert about.get() == {}
    story.play("excuse free; log WARNING A of stack one is gone: let go of alice:free, alice:plan0, ")
    assert let_go(story, refusal(400, "ValidationError", "does not exist")) == {"LetGo": []}
    story.play("log WARNING A of stack one is gone: let go of nothing, and detached nothing")
    story.play("held nothing -> attached free")


THERE = "^Stack .*/one/0 is still there, so the function let go of nothing. Delete the resource from its tem"
TAKES = r'^LetGo takes \{"StackId": "...", "LogicalResourceId": "..."\}, and needs a ledger$'


@pytest.mark.parametrize(
    ("said", "asked", "error"),
    [
        *((said, GONE, THERE) for said in ("UPDATE_COMPLETE", "DELETE_FAILED", "DELETE_IN_PROGRESS")),
        (refusal(400, "AccessDenied"), GONE, "about .*/one/0: .* needs cloudformation:DescribeStacks"),
        (NoCredentialsError(), GONE, "about .*/one/0: Unable to locate credentials"),
        ("", GONE, "about .*/one/0: .* the reply is none of CloudFormation's"),
        # About another account's stack CloudFormation would say here that it does not exist.
        ("DELETE_COMPLETE", GONE | {"StackId": GONE["StackId"].replace(":1:", ":2:")}, "is no id of a stack"),
        ("DELETE_COMPLETE", GONE | {"StackId": 7}, TAKES),
        ("DELETE_COMPLETE", {"StackId": GONE["StackId"]}, TAKES),
        ("DELETE_COMPLETE", [], TAKES),
    ],
)
def test_where_a_stack_may_be_there_it_keeps_its_holds(
    said: str | Exception, asked: Any, error: str, story: Story
) -> None:
    story.play("create A free")
    with pytest.raises((EventError, FailedError), match=error):
        let_go(story, said, asked)
    story.play("held free=A; no ledger")
    with pytest.raises(EventError, match=TAKES):
        let_go(story)


def test_letting_go_has_the_functions_time(story: Story) -> None:
    story.fates["read"] = ["slow*"]
    with pytest.raises(FailedError, match="gave up after"):
        let_go(story)
    assert 30 < story.now - (story.ends - 60) < 60
