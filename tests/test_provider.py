"""An invocation queues CloudFormation's request, or serves a batch, and the log says so."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar

import pytest
from botocore.exceptions import ClientError, NoCredentialsError, ReadTimeoutError

from usage_plan_key.custom_resource import GUARD_TIME, CustomResource
from usage_plan_key.errors import EventError, FailedError, NotBegunError, TurnOverError, UnclearError
from usage_plan_key.model import Association, Hold, Holder, Snapshot
from usage_plan_key.provider import LAST_SECONDS, about
from usage_plan_key.queue import LONGEST_MESSAGE
from usage_plan_key.request import SIGNED_FOR, Request
from usage_plan_key.retry import BEFORE_DELIVERY, BEFORE_LOOK, BEFORE_SHORT_CALL, Deadline
from usage_plan_key.service import LAST_TRY, LAST_WRITE

from . import function
from .function import BUSY, STACK, World, log, received, record
from .memory import within

world = function.world


class TestArriving:
    """CloudFormation invokes the function."""

    def test_a_request_is_fenced_and_queued_and_not_yet_served(self, world: World) -> None:
        """One message group for each stack, and the same deduplication id for the same request."""
        world.arrives("alice")
        world.arrives("alice")
        world.arrives("bob")
        world.arrives("carol", stack="two")
        first, repeated, sibling, stranger = world.sqs.sent
        assert (
            first["MessageDeduplicationId"]
            == repeated["MessageDeduplicationId"]
            != sibling["MessageDeduplicationId"]
        )
        assert first["MessageGroupId"] == sibling["MessageGroupId"] != stranger["MessageGroupId"]
        assert len(first["MessageGroupId"]) <= 128
        assert len(world.holders) == 3
        assert not world.prepared, "intake delivers nothing"
        assert not world.api.calls
        assert not world.answers

    def test_its_message_says_when_it_arrived(self, world: World) -> None:
        """CloudFormation's time counts from then."""
        arrived = world.clock.now
        world.arrives("alice")
        assert json.loads(world.sqs.sent[0]["MessageBody"])["arrived"] == arrived

    def test_one_whose_time_is_over_comes_again_where_the_function_has_no_time_to_look_it_up(
        self, world: World
    ) -> None:
        world.seconds = 1
        with pytest.raises(TurnOverError):
            world.arrives("alice", ResourceProperties={"ServiceTimeout": str(int(BEFORE_LOOK))})
        assert not world.answers

    def test_one_whose_time_is_nearly_over_is_answered_where_it_arrives(self, world: World) -> None:
        """`BEFORE_LOOK` seconds are too few to begin; with more, another invocation may still queue it."""
        properties = {"KeyId": "alice", "UsagePlanId": "free", "ServiceTimeout": str(int(BEFORE_LOOK))}
        world.arrives("alice", ResourceProperties=properties)
        assert "was over before its turn came" in world.answers[0]["Reason"]
        properties["ServiceTimeout"] = str(int(BEFORE_LOOK) + 1)
        world.arrives("bob", ResourceProperties=properties)
        assert (len(world.answers), len(world.sqs.sent)) == (1, 1)
        world.seconds = 5
        with pytest.raises(NotBegunError):
            world.arrives("carol", ResourceProperties=properties)

    def test_without_a_queue_the_sender_is_made_ready_at_once(self, world: World) -> None:
        world.function = replace(world.function, queue=None)
        world.before_create = lambda: ready.append(world.prepared)
        ready: list[int] = []
        world.arrives("alice")
        assert ready == [1]

    def test_refused_by_the_queue_it_is_answered_at_once(self, world: World) -> None:
        world.sqs.fails = [ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "SendMessage")]
        world.arrives("alice")
        assert world.answers[0]["Status"] == "FAILED"
        assert "queue" in world.answers[0]["Reason"]

    def test_where_nobody_knows_it_raises(self, world: World) -> None:
        """Lambda tries again with the same deduplication id, so no answer contradicts the queue's."""
        world.sqs.fails = [ReadTimeoutError(endpoint_url="https://queue")] * 999
        with pytest.raises(UnclearError):
            world.arrives("alice")
        assert not world.answers

    @pytest.mark.parametrize("kind", ["Create", "Delete"])
    @pytest.mark.parametrize(("size", "fits"), [(250_000, True), (1_000_000, True), (LONGEST_MESSAGE, False)])
    def test_a_request_that_does_not_fit_into_a_message_is_answered_failed(
        self, world: World, kind: str, size: int, fits: bool
    ) -> None:
        properties = {"KeyId": "alice", "UsagePlanId": "free", "VerifyTrigger": "x" * size}
        id_ = {"PhysicalResourceId": "alice:free"} if kind == "Delete" else {}
        world.arrives("alice", kind, ResourceProperties=properties, **id_)
        assert (len(world.sqs.sent), len(world.answers)) == ((1, 0) if fits else (0, 1))
        if not fits:
            assert f"takes {LONGEST_MESSAGE}. Shorten its properties" in world.answers[0]["Reason"]
            assert ("Still attached: alice:free" in world.answers[0]["Reason"]) is (kind == "Delete")

    @pytest.mark.parametrize("kind", ["Create", "Delete"])
    def test_an_unexpected_error_is_a_failed_answer(
        self, world: World, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Otherwise CloudFormation would wait for an hour."""
        monkeypatch.setattr("usage_plan_key.rules.fence", lambda *_, **__: 1 / 0)
        world.arrives("alice", kind, **({"PhysicalResourceId": "alice:free"} if kind == "Delete" else {}))
        assert world.served() == [("Alice", "FAILED")]
        assert "An internal error, please report it: ZeroDivisionError" in world.answers[0]["Reason"]
        assert ("ERROR", "An internal error", True) in [
            (line.levelname, line.message, bool(line.exc_info)) for line in caplog.records
        ]

    @pytest.mark.parametrize("code", ["RequestThrottled", "ThrottlingException"])
    def test_throttled_it_tries_again(self, world: World, code: str) -> None:
        world.sqs.fails = [ClientError({"Error": {"Code": code, "Message": ""}}, "SendMessage")]
        world.arrives("alice")
        assert len(world.sqs.sent) == 1

    def test_throttled_until_its_time_is_up_it_is_answered(self, world: World) -> None:
        """The queue has refused it each time, so no answer will come from there."""
        world.sqs.fails = [
            ClientError({"Error": {"Code": "RequestThrottled", "Message": ""}}, "SendMessage")
        ] * 999
        world.arrives("alice")
        assert world.served() == [("Alice", "FAILED")]
        assert "Could not queue the request: gave up after" in world.answers[0]["Reason"]
        assert not world.sqs.sent

    def test_a_reply_without_a_message_id_is_no_sign_that_it_is_queued(self, world: World) -> None:
        """After a proxy's page the function sends it again, and the queue takes it once."""
        replies: Any = iter([{"ResponseMetadata": {}}] * 2)
        send = world.sqs.send_message
        world.sqs.send_message = lambda **message: next(replies, None) or send(**message)  # type: ignore[method-assign]  # a proxy's
        world.arrives("alice")
        assert next(replies, "none is left") == "none is left"
        assert len(world.sqs.sent) == 1


class TestFencedFirst:
    """A template that declares a retained logical id again and fails must not detach a live customer."""

    def retained(self, world: World) -> None:
        world.arrives("alice")
        world.serve()
        world.clock.now += 60

    def test_refused_for_its_host(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.retained(world)

        def check(request: Request) -> None:
            raise FailedError("IncludeValue is true, and ResponseURL leads elsewhere")

        monkeypatch.setattr(world, "check", check)
        world.arrives("alice", RequestId="declared again")
        assert world.served()[-1] == ("Alice", "FAILED")
        monkeypatch.undo()
        world.clock.now += 5
        world.arrives("alice", "Delete", PhysicalResourceId="alice:free")
        world.serve()
        assert world.api.attached == {("alice", "free")}

    def test_refused_out_of_the_queue_too(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Somebody may write to the queue, or invoke the function with a batch."""

        def check(request: Request) -> None:
            raise FailedError("IncludeValue is true, and ResponseURL leads elsewhere")

        world.arrives("alice")
        monkeypatch.setattr(world, "check", check)
        assert world.serve() == []
        assert "leads elsewhere" in world.answers[0]["Reason"]
        assert not world.api.calls

    def test_handed_in_when_its_time_is_over(self, world: World) -> None:
        self.retained(world)
        issued = int(world.clock.now)
        world.clock.now += 2 * 3600
        world.arrives(
            "alice", RequestId="declared again", ResponseURL=f"https://x/?Expires={issued + SIGNED_FOR}"
        )
        assert "was over" in world.answers[-1]["Reason"]
        world.arrives("alice", "Delete", PhysicalResourceId="invented")
        world.serve()
        assert world.api.attached == {("alice", "free")}

    def test_an_issue_time_to_come_fences_nothing(self, world: World) -> None:
        world.arrives("alice")
        world.serve()
        later = f"https://x/?Expires={2**33 - 1}"
        world.arrives("alice", "Update", PhysicalResourceId="alice:free", ResponseURL=later)
        world.serve()
        world.clock.now += 5
        world.arrives("alice", "Delete", PhysicalResourceId="alice:free")
        world.serve()
        assert world.api.attached == set()


class TestTime:
    """CloudFormation's time counts from the issue time, beyond the first minute."""

    def event(self, world: World, *, age: float, timeout: int) -> dict[str, Any]:
        properties = {"KeyId": "alice", "UsagePlanId": "free", "ServiceTimeout": str(timeout)}
        url = f"https://x/?Expires={int(world.clock.now - age) + SIGNED_FOR}"
        return {"ResponseURL": url, "ResourceProperties": properties}

    @pytest.mark.parametrize("age", [-60, 0, 60])
    def test_a_clock_that_is_off_by_a_minute_does_not_hurt(self, world: World, age: float) -> None:
        world.arrives("alice", **self.event(world, age=age, timeout=60))
        world.serve()
        assert world.served() == [("Alice", "SUCCESS")]

    @pytest.mark.parametrize(("age", "seconds"), [(0, 600), (60, 600), (300, 360), (-300, 600)])
    def test_a_request_that_waits_in_vain_is_answered_in_time(
        self, world: World, age: float, seconds: float
    ) -> None:
        world.arrives("alice", **self.event(world, age=age, timeout=600))
        (message,), arrived = world.records(), world.clock.now
        world.at_create = [BUSY] * 9999
        receives = 0
        while not world.answers and world.clock.now < arrived + 700:
            receives += 1
            world.batch([received(message, receives)])
            world.clock.now += max(world.sqs.given_back[-1].values(), default=0)
        assert seconds - LAST_TRY - 30 <= world.clock.now - arrived <= seconds

    def test_one_that_arrives_when_its_time_is_over_is_answered_and_not_queued(self, world: World) -> None:
        world.arrives("alice", **self.event(world, age=700, timeout=600))
        assert world.served() == [("Alice", "FAILED")]
        assert "was over before its turn came" in world.answers[0]["Reason"]
        assert (world.sqs.sent, world.api.calls.total()) == ([], 0)

    def test_a_delete_that_arrives_when_its_time_is_over_stops_no_later_request(self, world: World) -> None:
        world.arrives(
            "alice", "Delete", PhysicalResourceId="alice:free", **self.event(world, age=700, timeout=600)
        )
        assert world.served() == [("Alice", "FAILED")]
        world.arrives("alice")
        world.serve()
        assert world.served()[1:] == [("Alice", "SUCCESS")]

    def test_a_request_put_back_from_a_dead_letter_queue_days_later_touches_nothing(
        self, world: World
    ) -> None:
        world.arrives("alice")
        records = world.records()
        world.clock.now += 3 * 24 * 3600
        assert world.batch(records) == []
        assert world.served() == [("Alice", "FAILED")]
        assert not world.api.calls

    def test_a_request_with_no_time_for_a_last_look_is_over(self, world: World) -> None:
        world.arrives(
            "alice", ResourceProperties={"KeyId": "alice", "UsagePlanId": "free", "ServiceTimeout": "600"}
        )
        records = world.records()
        world.clock.now += 600 - BEFORE_LOOK
        world.batch(records)
        assert "was over before its turn came" in world.answers[0]["Reason"]

    def test_lambdas_record_says_when_it_has_given_up(self, world: World) -> None:
        """A request without an issue time is over if somebody puts it back days later."""
        event = world.arrives("alice", ResponseURL="https://x/")
        world.sqs.sent.clear()
        gave_up = datetime.fromtimestamp(world.clock.now, UTC).isoformat()
        letter = json.dumps({"version": "1.0", "timestamp": gave_up, "requestPayload": event})
        world.clock.now += 3 * 24 * 3600
        sent = str(int(world.clock.now * 1000))
        assert world.batch([record(letter, SentTimestamp=sent)]) == []
        assert world.served() == [("Alice", "FAILED")]
        assert not world.api.calls

    @pytest.mark.parametrize("seconds", [15, 8])
    def test_one_that_is_over_gets_its_answer_again_however_little_time_the_function_has(
        self, world: World, seconds: float
    ) -> None:
        world.arrives("alice")
        (message,) = world.records()
        world.serve()
        world.clock.now += 2 * 3600
        world.seconds = seconds
        assert world.batch([received(message, 2)]) == []
        assert world.answers[0] == world.answers[1]

    def test_a_request_whose_time_is_over_does_not_come_again_for_an_undelivered_answer(
        self, world: World
    ) -> None:
        """CloudFormation waits for it no longer."""
        world.arrives("alice")
        records = world.records()
        world.clock.now += 2 * 3600
        world.unreachable = True
        assert world.batch(records) == []

    @pytest.mark.parametrize("left", [20, 15, 10, 7, 5, 3, 1, 0, -5])
    def test_an_answer_that_was_given_is_given_again_whatever_time_is_left(
        self, world: World, left: float
    ) -> None:
        world.arrives("alice")
        (message,) = world.records()
        world.serve()
        world.clock.now += 3600 - left
        assert world.batch([received(message, 2)]) == []
        assert len(world.answers) == 2
        assert world.answers[0] == world.answers[1]

    def test_an_answer_that_cloudformation_waits_for_no_longer_does_not_come_again(
        self, world: World
    ) -> None:
        event = world.arrives("alice")
        ends = int(world.clock.now) + 3600

        def late() -> None:
            world.clock.now = ends
            raise OSError

        assert event
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
        self, world: World, said: str | None
    ) -> None:
        if said:
            world.stacks[STACK.format("one")] = said
        assert world.function.let_go(self.ASKED, world) == {"LetGo": ["alice:free"]}
        assert not world.held
        assert world.api.attached == {("alice", "free")}
        assert world.function.let_go(self.ASKED, world) == {"LetGo": []}

    def test_it_may_hold_more_than_a_transaction_takes(self, world: World) -> None:
        holder, plans = Holder(STACK.format("one"), "Alice"), [f"plan{number}" for number in range(120)]
        for held in [Association("alice", plan) for plan in plans]:
            hold = partial(Snapshot.held, holder=holder, association=held, hold=Hold("r"))
            world.table.change(holder, [held], hold, within(60, world.clock))
        assert len(world.function.let_go(self.ASKED, world)["LetGo"]) == 121
        assert not world.held

    @pytest.mark.parametrize(
        "said",
        [
            "UPDATE_COMPLETE",
            "DELETE_FAILED",
            "DELETE_IN_PROGRESS",
            ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "DescribeStacks"),
            NoCredentialsError(),
            "",
        ],
    )
    def test_a_stack_that_may_be_there_keeps_its_holds(self, world: World, said: str | Exception) -> None:
        world.stacks[STACK.format("one")] = said
        with pytest.raises(FailedError, match=STACK.format("one")):
            world.function.let_go(self.ASKED, world)
        assert world.held

    @pytest.mark.parametrize(
        "stack",
        [
            "one",
            STACK.format("one").replace(":1:", ":2:"),
            STACK.format("one").replace("eu-west-1", "eu-west-2"),
        ],
    )
    def test_a_stack_of_another_account_or_region_is_not_asked_about(self, world: World, stack: str) -> None:
        """Here CloudFormation would say that such a stack does not exist."""
        with pytest.raises(FailedError, match="no id of a stack"):
            world.function.let_go({"StackId": stack, "LogicalResourceId": "Alice"}, world)

    @pytest.mark.parametrize("asked", [None, [], {}, {"StackId": 7, "LogicalResourceId": "Alice"}])
    def test_an_event_that_names_no_resource_is_an_error(self, world: World, asked: object) -> None:
        with pytest.raises(EventError, match="StackId"):
            world.function.let_go(asked, world)

    def test_the_reason_of_a_refused_request_names_the_way_out(self, world: World) -> None:
        world.arrives("alice", stack="two")
        world.serve()
        said = world.answers[-1]["Reason"]
        event = json.loads(said[said.index("{") : said.rindex("}") + 1])
        assert event == {"LetGo": self.ASKED}

    def test_letting_go_is_logged(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        world.arrives("alice")
        bob = {"KeyId": "bob", "UsagePlanId": "free"}
        world.serve()
        world.clock.now += 1
        world.arrives("alice", "Update", PhysicalResourceId="alice:free", ResourceProperties=bob)
        world.serve()
        about.set({"left": "over"})
        world.function.let_go(TestLettingGo.ASKED, world)
        world.function.let_go(TestLettingGo.ASKED, world)
        assert about.get() == {}
        let_go = [text for level, text in log(caplog) if level == "WARNING"]
        assert let_go == [
            "Alice of stack one is gone: let go of alice:free, bob:free, and detached nothing",
            "Alice of stack one is gone: let go of nothing, and detached nothing",
        ]

    def test_letting_go_names_its_fields_and_its_reason_to_refuse(self, world: World) -> None:
        with pytest.raises(
            EventError,
            match=r'^LetGo takes \{"StackId": "...", "LogicalResourceId": "..."\}, and needs a ledger$',
        ):
            world.function.let_go({}, world)
        world.stacks[STACK.format("one")] = "UPDATE_COMPLETE"
        said = (
            f"^Stack {STACK.format('one')} is still there, so the function let go of nothing. "
            "Delete the resource from its template$"
        )
        with pytest.raises(FailedError, match=said):
            world.function.let_go(TestLettingGo.ASKED, world)

    def test_letting_go_has_the_functions_time(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        deadlines: list[Deadline] = []

        def gone(client: object, stack_id: str, arn: str, deadline: Deadline) -> bool:
            deadlines.append(deadline)
            return True

        monkeypatch.setattr("usage_plan_key.provider.stack_is_gone", gone)
        world.function.let_go(TestLettingGo.ASKED, world)
        (deadline,) = deadlines
        assert deadline == within(world.seconds, world.clock)


class TestTold:
    """An invocation logs, counts and prints, and gives each call its time."""

    def test_a_foreign_id_is_in_no_line(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        """A former provider's id may be a key's value."""
        caplog.set_level(logging.INFO)
        for on_existing in ("Adopt", "Bad"):
            properties = {"KeyId": "alice", "UsagePlanId": "free", "OnExisting": on_existing}
            world.arrives(
                "alice",
                "Update",
                PhysicalResourceId="s3cr3t-value",
                ResourceProperties=properties,
                RequestId=on_existing,
            )
            world.serve()
        assert [vars(line).get("AnswerId") for line in caplog.records if "status" in vars(line)] == [
            "alice:free",
            "a foreign id of 12 characters",
        ]
        assert "s3cr3t" not in str([vars(line) for line in caplog.records])

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ({}, "Asked: Create alice:free, OnExisting Fail"),
            (
                {"RequestType": "Update", "PhysicalResourceId": "alice:free"},
                "Asked: Update alice:free, OnExisting Fail",
            ),
            ({"RequestType": "Delete", "PhysicalResourceId": "alice:free"}, "Asked: Delete alice:free"),
            ({"ResourceProperties": {}}, "Asked: Create with unusable properties"),
            (
                {"RequestType": "Update", "PhysicalResourceId": "alice:free", "ResourceProperties": {}},
                "Asked: Update with unusable properties",
            ),
        ],
    )
    def test_the_log_names_the_request(
        self, world: World, more: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "usage_plan_key")
        world.arrives("alice", **more)
        assert log(caplog) == [("INFO", said)]

    def test_every_line_names_the_request_that_it_is_about(self, world: World) -> None:
        world.arrives("alice", "Delete", PhysicalResourceId="alice:free")
        assert about.get() == {
            "StackId": STACK.format("one"),
            "LogicalResourceId": "Alice",
            "RequestId": "Delete-one-alice",
            "RequestType": "Delete",
            "PhysicalResourceId": "alice:free",
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
        told = [[getattr(line, name) for name in names] for line in (served, refused)]
        assert told[0] == ["Create alice:free, OnExisting Fail", "ATTACHED", "SUCCESS", "alice:free"]
        assert told[1] == ["Create eve:free, OnExisting Fail", "FAILED", "FAILED", "eve:free"]

    def test_an_answer_that_is_not_delivered_is_logged(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        world.arrives("alice")
        world.at_delivery = lambda: 1 / 0
        assert world.serve() == ["message-0"]
        assert ("ERROR", "Not delivered: division by zero") in log(caplog)

    @pytest.mark.parametrize(("seconds", "left"), [(90, 20), (36, 36 - LAST_SECONDS - 15)])
    def test_a_delivery_has_twenty_seconds_or_the_time_that_is_left(
        self, world: World, seconds: float, left: float
    ) -> None:
        deadlines: list[Deadline] = []
        checked: list[str] = []
        world.deliver = lambda request, deadline, body: deadlines.append(deadline)  # type: ignore[method-assign]
        world.check = lambda request: checked.append(request.id)  # type: ignore[method-assign]
        world.before_create = lambda: world.clock.sleep(15)
        world.arrives("alice")
        checked.clear()
        world.seconds = seconds
        world.serve()
        (deadline,) = deadlines
        assert (deadline.clock, deadline.left()) == (world.clock, left)
        assert checked == ["Create-one-alice"]

    @pytest.mark.parametrize("on_batch", [False, True], ids=["by CloudFormation", "by the queue"])
    def test_the_guard_writes_its_answer_down_within_its_time(
        self, world: World, monkeypatch: pytest.MonkeyPatch, *, on_batch: bool
    ) -> None:
        given: list[Any] = []

        class Hangs(CustomResource):
            def answer(self, event: object, context: object) -> None:
                monkeypatch.setattr(world.table, "change", watched)
                given.append(self._give_up())

        def watched(holder: Any, associations: Any, rule: Any, deadline: Deadline, seen: Any = None) -> Any:
            given.append((deadline.clock is world.clock, deadline.left()))
            return change(holder, associations, rule, deadline, seen)

        change = world.table.change
        if on_batch:
            world.arrives("alice")
        else:
            world.function = replace(world.function, queue=None)
        monkeypatch.setattr("usage_plan_key.provider.CustomResource", Hangs)
        if on_batch:
            world.serve()
        else:
            world.arrives("alice")
        assert given[0] == (True, LAST_WRITE + BEFORE_SHORT_CALL - BEFORE_DELIVERY)
        assert given[0][1] < GUARD_TIME
        assert (
            given[1].reason
            == "No answer in time: a call of the function hangs. Look into its log, and deploy again"
        )

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
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    value = "s3cr3t-s3cr3t-s3cr3t-s3cr3t:f7r3e3"
    shown: list[object] = []
    world.before_create = lambda: shown.append(about.get()["PhysicalResourceId"])
    world.arrives("alice", "Update", PhysicalResourceId=value)
    world.serve()
    world.arrives("alice", "Delete", PhysicalResourceId=value)
    world.serve()
    assert world.served() == [("Alice", "SUCCESS"), ("Alice", "SUCCESS")]
    assert value not in caplog.text + repr(world.db.items) + repr(shown)
    assert shown == ["a foreign id of 34 characters"]
    assert world.api.attached == {("alice", "free")}, "it is no reason to release what is held"
