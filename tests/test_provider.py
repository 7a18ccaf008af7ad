"""An invocation queues CloudFormation's request, or serves a batch, and the log says so."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import pytest
from botocore.exceptions import NoCredentialsError, ReadTimeoutError

from usage_plan_key.custom_resource import GUARD_TIME, CustomResource
from usage_plan_key.errors import EventError, FailedError, NotBegunError, TurnOverError, UnclearError
from usage_plan_key.model import Association, Hold, Holder, Snapshot
from usage_plan_key.provider import LAST_SECONDS, about
from usage_plan_key.queue import LONGEST_MESSAGE
from usage_plan_key.request import SIGNED_FOR, Request
from usage_plan_key.retry import BEFORE_DELIVERY, BEFORE_LOOK, BEFORE_SHORT_CALL, Deadline
from usage_plan_key.service import LAST_TRY, LAST_WRITE

from . import function
from .function import BUSY, STACK, World, denied, log, received, refusal
from .memory import within

world = function.world
#: Seconds for the guard's answer.
LAST = LAST_WRITE + BEFORE_SHORT_CALL - BEFORE_DELIVERY
FREE: Any = {"PhysicalResourceId": "alice:free"}


def wanting(**more: str) -> dict[str, Any]:
    """Properties of a request."""
    return {"ResourceProperties": {"KeyId": "alice", "UsagePlanId": "free", **more}}


def aged(world: World, age: float, timeout: int = 600) -> dict[str, Any]:
    """A request that CloudFormation has issued so many seconds ago."""
    url = f"https://x/?Expires={int(world.clock.now - age) + SIGNED_FOR}"
    return {"ResponseURL": url, **wanting(ServiceTimeout=str(timeout))}


class TestArriving:
    """CloudFormation invokes the function."""

    def test_a_request_is_fenced_and_queued_and_not_yet_served(self, world: World) -> None:
        """One message group for each stack; the same deduplication id for the same request; its arrival."""
        world.arrives("alice")
        world.arrives("alice")
        world.arrives("bob")
        world.arrives("carol", stack="two")
        ids, groups = (
            [message[name] for message in world.sqs.sent]
            for name in ("MessageDeduplicationId", "MessageGroupId")
        )
        assert [ids.index(id_) for id_ in ids] == [0, 0, 2, 3]
        assert [groups.index(group) for group in groups] == [0, 0, 0, 3]
        assert json.loads(world.sqs.sent[0]["MessageBody"])["arrived"] == world.clock.now
        assert len(world.holders) == 3
        assert (world.prepared, world.api.calls, world.answers) == (0, {}, []), "intake delivers nothing"

    def test_one_whose_time_is_nearly_over_is_answered_where_it_arrives(self, world: World) -> None:
        """`BEFORE_LOOK` seconds are too few to begin; with more, another invocation may still queue it."""
        world.arrives("alice", **wanting(ServiceTimeout=str(int(BEFORE_LOOK))))
        assert "was over before its turn came" in world.answers[0]["Reason"]
        world.arrives("bob", **wanting(ServiceTimeout=str(int(BEFORE_LOOK) + 1)))
        assert (len(world.answers), len(world.sqs.sent)) == (1, 1)
        for seconds, more, error in ((5, 1, NotBegunError), (1, 0, TurnOverError)):
            world.seconds = seconds
            with pytest.raises(error):
                world.arrives("carol", **wanting(ServiceTimeout=str(int(BEFORE_LOOK) + more)))
        assert len(world.answers) == 1

    def test_without_a_queue_the_sender_is_made_ready_at_once(self, world: World) -> None:
        world.function = replace(world.function, queue=None)
        world.before_create = lambda: ready.append(world.prepared)
        ready: list[int] = []
        world.arrives("alice")
        assert ready == [1]

    @pytest.mark.parametrize(
        ("fails", "said"),
        [
            ([denied("SendMessage")], "Could not queue the request"),
            ([refusal(400, "RequestThrottled")] * 999, "Could not queue the request: gave up after"),
            ([refusal(400, "ThrottlingException")], ""),
            ([ReadTimeoutError(endpoint_url="https://queue")] * 999, UnclearError),
        ],
        ids=["refused: answered at once", "throttled to its end", "throttled once", "nobody knows"],
    )
    def test_the_queue_fails(self, world: World, fails: list[Exception], said: Any) -> None:
        """Where nobody knows, Lambda tries again: no answer contradicts the queue's."""
        world.sqs.fails = fails
        if said is UnclearError:
            with pytest.raises(UnclearError):
                world.arrives("alice")
        else:
            world.arrives("alice")
        assert world.served() == ([("Alice", "FAILED")] if isinstance(said, str) and said else [])
        assert all(said in answer["Reason"] for answer in world.answers)
        assert len(world.sqs.sent) == (said == "")

    @pytest.mark.parametrize("kind", ["Create", "Delete"])
    @pytest.mark.parametrize(("size", "fits"), [(1_000_000, True), (LONGEST_MESSAGE, False)])
    def test_a_request_that_does_not_fit_into_a_message_is_answered_failed(
        self, world: World, kind: str, size: int, fits: bool
    ) -> None:
        world.arrives(
            "alice", kind, **wanting(VerifyTrigger="x" * size), **(FREE if kind == "Delete" else {})
        )
        assert (len(world.sqs.sent), len(world.answers)) == ((1, 0) if fits else (0, 1))
        for answer in world.answers:
            assert f"takes {LONGEST_MESSAGE}. Shorten its properties" in answer["Reason"]
            assert ("Still attached: alice:free" in answer["Reason"]) is (kind == "Delete")

    def test_an_unexpected_error_is_a_failed_answer(
        self, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Otherwise CloudFormation would wait for an hour."""
        monkeypatch.setattr("usage_plan_key.rules.fence", lambda *_, **__: 1 / 0)
        world.arrives("alice", "Delete", **FREE)
        said = "An internal error, please report it: ZeroDivisionError: division by zero. Still attached"
        assert world.answers[0]["Reason"].startswith(said)
        assert ("ERROR", "An internal error", True) in [
            (line.levelname, line.message, bool(line.exc_info)) for line in caplog.records
        ]


def test_a_create_that_is_refused_for_its_host_fences(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that declares a retained logical id again and fails must not detach a live customer.

    Out of the queue it is refused too: somebody may write to that, or invoke the function with a batch.
    """

    def check(request: Request) -> None:
        raise FailedError("ResponseURL leads elsewhere")

    world.arrives("alice")
    world.serve()
    calls = world.api.calls.copy()
    world.clock.now += 60
    world.arrives("alice", RequestId="declared again")
    monkeypatch.setattr(world, "check", check)
    assert world.serve() == []
    world.arrives("alice", RequestId="and again")
    assert [status for _, status in world.served()] == ["SUCCESS", "FAILED", "FAILED"]
    assert all("leads elsewhere" in answer["Reason"] for answer in world.answers[1:])
    assert world.api.calls == calls
    monkeypatch.undo()
    world.clock.now += 5
    world.arrives("alice", "Delete", **FREE)
    world.serve()
    assert world.api.attached == {("alice", "free")}


class TestTime:
    """CloudFormation's time counts from the issue time, beyond the first minute."""

    @pytest.mark.parametrize(("age", "seconds"), [(60, 600), (300, 360), (-300, 600)])
    def test_a_request_that_waits_in_vain_is_answered_in_time(
        self, world: World, age: float, seconds: float
    ) -> None:
        world.arrives("alice", **aged(world, age))
        (message,), arrived = world.records(), world.clock.now
        world.at_create, receives = [BUSY] * 9999, 0
        while not world.answers and world.clock.now < arrived + 700:
            receives += 1
            world.batch([received(message, receives)])
            world.clock.now += max(world.sqs.given_back[-1].values(), default=0)
        assert seconds - LAST_TRY - 30 <= world.clock.now - arrived <= seconds
        assert "attempts in 5" in world.answers[0]["Reason"] or age == 300

    def test_one_that_arrives_when_its_time_is_over_is_answered_and_not_queued(self, world: World) -> None:
        """A Delete stops no later request."""
        world.arrives("alice", "Delete", **aged(world, 700), **FREE)
        assert world.served() == [("Alice", "FAILED")]
        assert "was over before its turn came" in world.answers[0]["Reason"]
        assert (world.sqs.sent, world.api.calls.total()) == ([], 0)
        world.arrives("alice")
        world.serve()
        assert world.served()[1:] == [("Alice", "SUCCESS")]

    @pytest.mark.parametrize(
        ("later", "over"),
        [(3 * 24 * 3600, True), (600 - BEFORE_LOOK, True), (600 - BEFORE_LOOK - 20, False)],
        ids=["put back from a dead-letter queue days later", "no time for a last look", "in time"],
    )
    def test_out_of_the_queue_when_its_time_is_over_it_touches_nothing(
        self, world: World, later: float, over: bool
    ) -> None:
        """CloudFormation waits for its answer no longer, so that does not come again either."""
        world.arrives("alice", **wanting(ServiceTimeout="600"))
        records = world.records()
        world.clock.now += later
        assert world.batch(records) == []
        assert ("was over" in world.answers[0].get("Reason", ""), not world.api.calls) == (over, over)
        world.unreachable = True
        assert world.batch(records) == ([] if later > 600 else ["message-0"])

    @pytest.mark.parametrize(
        ("left", "seconds"),
        [(20, 90), (10, 90), (5, 90), (1, 90), (0, 90), (-5, 90), (-3600, 15), (-3600, 8)],
    )
    def test_an_answer_that_was_given_is_given_again_whatever_time_is_left(
        self, world: World, left: float, seconds: float
    ) -> None:
        world.arrives("alice")
        (message,) = world.records()
        world.serve()
        world.clock.now += 3600 - left
        world.seconds = seconds
        assert world.batch([received(message, 2)]) == []
        assert len(world.answers) == 2
        assert world.answers[0] == world.answers[1]

    def test_an_answer_that_cloudformation_waits_for_no_longer_does_not_come_again(
        self, world: World
    ) -> None:
        ends = int(world.clock.now) + 3600

        def late() -> None:
            world.clock.now = ends
            raise OSError

        world.arrives("alice")
        world.at_delivery = late
        assert world.serve() == []


class TestLettingGo:
    """An operator lets go of a resource whose stack is gone without a Delete for it."""

    ASKED: ClassVar = {"StackId": STACK.format("one"), "LogicalResourceId": "Alice"}

    @pytest.fixture
    def world(self, world: World) -> World:
        world.arrives("alice")
        world.serve()
        return world

    @pytest.mark.parametrize("said", ["DELETE_COMPLETE", None], ids=["deleted", "does not exist"])
    def test_a_stack_that_is_gone_holds_nothing_and_nothing_is_detached(
        self, world: World, said: str | None, monkeypatch: pytest.MonkeyPatch, caplog: Any
    ) -> None:
        """Its resource may hold more than a transaction takes."""
        deadlines: list[Deadline] = []
        read = world.table.read

        def watched(wanted: Any, deadline: Deadline) -> Any:
            deadlines.append(deadline)
            return read(wanted, deadline)

        monkeypatch.setattr(world.table, "read", watched)
        if said:
            world.stacks[STACK.format("one")] = said
        holder, plans = Holder(STACK.format("one"), "Alice"), [f"plan{number}" for number in range(120)]
        for held in [Association("alice", plan) for plan in plans]:
            hold = partial(Snapshot.held, holder=holder, association=held, hold=Hold("r"))
            world.table.change(holder, [held], hold, within(60, world.clock))
        deadlines.clear()
        about.set({"left": "over"})
        let_go = world.function.let_go(self.ASKED, world)
        assert let_go == {"LetGo": ["alice:free", *(f"alice:{plan}" for plan in plans)]}
        assert deadlines[0] == within(world.seconds, world.clock)
        assert about.get() == {}
        assert not world.held
        assert world.api.attached == {("alice", "free")}
        assert world.function.let_go(self.ASKED, world) == {"LetGo": []}
        assert log(caplog) == [
            (
                "WARNING",
                f"Alice of stack one is gone: let go of {', '.join(let_go['LetGo'])}, and detached nothing",
            ),
            ("WARNING", "Alice of stack one is gone: let go of nothing, and detached nothing"),
        ]

    @pytest.mark.parametrize(
        "said",
        [
            "UPDATE_COMPLETE",
            "DELETE_FAILED",
            "DELETE_IN_PROGRESS",
            denied("DescribeStacks"),
            NoCredentialsError(),
            "",
        ],
        ids=lambda said: str(said)[:20],
    )
    def test_a_stack_that_may_be_there_keeps_its_holds(self, world: World, said: str | Exception) -> None:
        world.stacks[STACK.format("one")] = said
        with pytest.raises(FailedError, match=STACK.format("one")) as raised:
            world.function.let_go(self.ASKED, world)
        assert world.held
        assert said != "UPDATE_COMPLETE" or str(raised.value) == (
            f"Stack {STACK.format('one')} is still there, so the function let go of nothing. "
            "Delete the resource from its template"
        )

    @pytest.mark.parametrize("change", [("arn:aws", "n"), (":1:", ":2:"), ("eu-west-1", "eu-west-2")])
    def test_a_stack_of_another_account_or_region_is_not_asked_about(
        self, world: World, change: tuple[str, str]
    ) -> None:
        """Here CloudFormation would say that such a stack does not exist."""
        with pytest.raises(FailedError, match="no id of a stack"):
            world.function.let_go(self.ASKED | {"StackId": STACK.format("one").replace(*change)}, world)

    @pytest.mark.parametrize("asked", [None, [], {}, {"StackId": 7, "LogicalResourceId": "Alice"}])
    def test_an_event_that_names_no_resource_is_an_error(self, world: World, asked: object) -> None:
        said = r'^LetGo takes \{"StackId": "...", "LogicalResourceId": "..."\}, and needs a ledger$'
        with pytest.raises(EventError, match=said):
            world.function.let_go(asked, world)
        with pytest.raises(EventError, match=said):
            replace(world.function, table=None).let_go(self.ASKED, world)

    def test_the_reason_of_a_refused_request_names_the_way_out(self, world: World) -> None:
        world.arrives("alice", stack="two")
        world.serve()
        said = world.answers[-1]["Reason"]
        event = json.loads(said[said.index("{") : said.rindex("}") + 1])
        assert event == {"LetGo": self.ASKED}


class TestTold:
    """An invocation logs, counts and prints, and gives each call its time."""

    @pytest.mark.parametrize(
        ("kind", "more", "said"),
        [
            ("Create", {}, "Create alice:free, OnExisting Fail"),
            ("Update", FREE, "Update alice:free, OnExisting Fail"),
            ("Delete", FREE, "Delete alice:free"),
            ("Create", {"ResourceProperties": {}}, "Create with unusable properties"),
            ("Update", {**FREE, "ResourceProperties": {}}, "Update with unusable properties"),
        ],
    )
    def test_every_line_names_the_request(
        self, world: World, kind: str, more: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "usage_plan_key")
        world.arrives("alice", kind, **more)
        assert log(caplog) == [("INFO", f"Asked: {said}")]
        assert about.get() == {
            "StackId": STACK.format("one"),
            "LogicalResourceId": "Alice",
            "RequestId": f"{kind}-one-alice",
            "RequestType": kind,
            "PhysicalResourceId": more.get("PhysicalResourceId"),
            "function_request_id": "8c5a3a0e",
        }

    def test_the_outcome_is_logged_with_the_request(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "usage_plan_key")
        world.arrives("alice")
        world.arrives("eve")
        world.serve()
        served, refused = (line for line in caplog.records if hasattr(line, "outcome"))
        assert (served.levelname, served.message) == ("INFO", "SUCCESS ATTACHED")
        assert (refused.levelname, refused.message) == (
            "ERROR",
            f"FAILED {world.answers[1]['Reason'].partition(' (function')[0]}",
        )
        names = ("asked", "outcome", "status", "AnswerId")
        assert [[getattr(line, name) for name in names] for line in (served, refused)] == [
            ["Create alice:free, OnExisting Fail", "ATTACHED", "SUCCESS", "alice:free"],
            ["Create eve:free, OnExisting Fail", "FAILED", "FAILED", "eve:free"],
        ]

    @pytest.mark.parametrize(("seconds", "left"), [(90, 20), (36, 36 - LAST_SECONDS - 15)])
    def test_a_delivery_has_twenty_seconds_or_the_time_that_is_left(
        self, world: World, seconds: float, left: float
    ) -> None:
        found: list[Any] = []
        world.deliver = lambda request, deadline, body: found.append(deadline)  # type: ignore[method-assign]
        world.check = lambda request: found.append(request.id)  # type: ignore[method-assign]
        world.before_create = lambda: world.clock.sleep(15)
        world.arrives("alice")
        world.seconds = seconds
        world.serve()
        arrived, served, deadline = found
        assert arrived == served == "Create-one-alice"
        assert (deadline.clock, deadline.ends - world.clock.now) == (world.clock, left)

    @pytest.mark.parametrize(
        ("queued", "seconds", "left"),
        [(False, 90, LAST), (True, 90, LAST), (False, 5, 5)],
        ids=["by CloudFormation", "by the queue", "to the function's end"],
    )
    def test_the_guard_writes_its_answer_down_within_its_time(
        self, world: World, monkeypatch: pytest.MonkeyPatch, queued: bool, seconds: float, left: float
    ) -> None:
        given: list[Any] = []

        class Hangs(CustomResource):
            def answer(self, event: object, context: object) -> None:
                monkeypatch.setattr(world.table, "change", watched)
                given.append(self._give_up())

        def watched(holder: Any, associations: Any, rule: Any, deadline: Deadline, seen: Any = None) -> Any:
            given.append((deadline.clock is world.clock, deadline.ends - world.clock.now))
            return change(holder, associations, rule, deadline, seen)

        change = world.table.change
        if not queued:
            world.function = replace(world.function, queue=None)
        monkeypatch.setattr("usage_plan_key.provider.CustomResource", Hangs)
        world.seconds = seconds
        world.arrives("alice")
        world.serve()
        assert given[0] == (True, left)
        assert left < GUARD_TIME
        said = "No answer in time: a call of the function hangs. Look into its log, and deploy again"
        assert (given[1].reason == said) == (seconds == 90)

    def test_a_refusal_that_comes_when_the_guard_strikes_at_once_keeps_its_reason(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The function tries the ledger for longer than the guard waits."""

        def throttled(*_: Any) -> None:
            world.clock.sleep(world.seconds - 6)
            raise FailedError("Could not read the ledger: slow")

        monkeypatch.setattr(world.table, "change", throttled)
        world.ends = world.clock.now + world.seconds
        world.arrives("alice")
        assert world.answers[0]["Reason"].startswith("Could not read the ledger: slow")

    def test_a_former_providers_id_that_is_a_keys_value_is_not_written_anywhere(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is no reason to release what is held either."""
        caplog.set_level(logging.DEBUG)
        value, shown = "s3cr3t-s3cr3t-s3cr3t-s3cr3t:f7r3e3", "a foreign id of 34 characters"
        told: list[object] = []
        world.before_create = lambda: told.append(about.get()["PhysicalResourceId"])
        for kind, more in (("Update", {}), ("Delete", {}), ("Update", {"RequestId": "bad", **wanting(X="")})):
            world.arrives("alice", kind, PhysicalResourceId=value, **more)
            world.serve()
        assert [status for _, status in world.served()] == ["SUCCESS", "SUCCESS", "FAILED"]
        ids = [vars(line).get("AnswerId") for line in caplog.records if "status" in vars(line)]
        assert (ids, told) == (["alice:free", shown, shown], [shown])
        assert "s3cr3t" not in f"{[vars(line) for line in caplog.records]} {world.db.items}"
        assert world.api.attached == {("alice", "free")}
