"""The function's two roles: CloudFormation's invocations go into the queue, and the queue's batches are served."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import threading
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar

import pytest
from botocore.exceptions import ClientError, NoCredentialsError, ReadTimeoutError

from tests.aws.fake import ApiGateway as StrictApi
from tests.aws.fake import Key, Plan
from tests.memory import Clock, Inline, MemoryLedger
from usage_plan_key.api_gateway import ApiGateway
from usage_plan_key.custom_resource import CustomResource
from usage_plan_key.errors import EventError, FailedError, NotBegunError, TurnOverError, UnclearError
from usage_plan_key.provider import CLOSING_TIME, GIVING_TIME, LAST_SECONDS, PATIENCE, Provider, _threads, about
from usage_plan_key.queue import LONGEST_MESSAGE, VISIBILITY, Queue, messages
from usage_plan_key.request import SIGNED_FOR, Request
from usage_plan_key.retry import BEFORE_LOOK, Deadline

STACK = "arn:aws:cloudformation:eu-west-1:1:stack/{}/0"
BUSY = ClientError(
    {"Error": {"Code": "ConflictException", "Message": "Please try again later."}, "ResponseMetadata": {"HTTPStatusCode": 409}},  # type: ignore[typeddict-item]
    "CreateUsagePlanKey",
)


def throttled(seconds: int) -> ClientError:
    error = {"Code": "TooManyRequestsException", "Message": "Too Many Requests"}
    about = {"HTTPStatusCode": 429, "HTTPHeaders": {"retry-after": str(seconds)}}
    return ClientError({"Error": error, "ResponseMetadata": about}, "CreateUsagePlanKey")  # type: ignore[typeddict-item]


class Death(BaseException):
    """The function ends here and now."""


class Sqs:
    """What is sent and given back; `fails` is raised at the next calls."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.aside: list[dict[str, Any]] = []
        self.given_back: list[str] = []
        self.fails: list[Exception] = []

    def send_message(self, **message: Any) -> dict[str, str]:
        if self.fails:
            raise self.fails.pop(0)
        (self.sent if message["QueueUrl"] == "https://queue" else self.aside).append(message)
        return {"MessageId": "sent"}

    def change_message_visibility(self, *, QueueUrl: str, ReceiptHandle: str, VisibilityTimeout: int) -> None:
        if self.fails:
            raise self.fails.pop(0)
        assert (QueueUrl, VisibilityTimeout) == ("https://queue", 0)
        self.given_back.append(ReceiptHandle)


class World:
    """The function, with everything that it talks to in memory."""

    aws_request_id = "8c5a3a0e"
    function_name = "usage-plan-key"
    invoked_function_arn = "arn:aws:lambda:eu-west-1:1:function:usage-plan-key"
    log_group_name = "/aws/lambda/usage-plan-key"
    log_stream_name = "stream"

    def __init__(self) -> None:
        self.clock = Clock()
        self.api = StrictApi()
        self.api.plans = {"free": Plan("Free", (("api", "prod"),))}
        self.api.keys = {name: Key(name, f"value-of-{name}") for name in ("alice", "bob", "carol", "dora")}
        self.sqs = Sqs()
        self.ledger = MemoryLedger()
        self.answers: list[dict[str, Any]] = []
        self.prepared = 0
        """How often what delivers answers was made ready."""
        self.unreachable = False
        self.at_delivery: Callable[[], object] = lambda: None
        self.seconds = 90.0
        self.stacks: dict[str, str | Exception] = {}
        """What CloudFormation says of stacks."""
        self.function = Provider(
            api=ApiGateway(self),  # type: ignore[arg-type]  # a fake
            sender=self,  # type: ignore[arg-type]  # a fake
            table=self.ledger,  # type: ignore[arg-type]  # a fake
            queue=Queue(self.sqs, "https://queue", "https://undelivered"),  # type: ignore[arg-type]  # a fake
            cloudformation=lambda: self,
            clock=self.clock,
            background=Inline,
        )
        self.at_create: list[BaseException] = []
        self.before_create: Callable[[], object] = lambda: None

        self.ends = math.inf

    def get_remaining_time_in_millis(self) -> int:
        return int((min(self.ends, self.clock.now + self.seconds) - self.clock.now) * 1000)

    def describe_stacks(self, *, StackName: str) -> dict[str, Any]:
        said = self.stacks.get(StackName, ClientError({"Error": {"Code": "ValidationError", "Message": "?"}}, "DescribeStacks"))
        if isinstance(said, Exception):
            raise said
        return {"Stacks": [{"StackStatus": said}]}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.api, name)

    def create_usage_plan_key(self, **arguments: Any) -> Any:
        self.before_create()
        if self.at_create:
            raise self.at_create.pop(0)
        return self.api.create_usage_plan_key(**arguments)

    def prepare(self) -> None:
        self.prepared += 1

    def check(self, request: Request) -> None:
        """Any ResponseURL will do."""

    def deliver(self, request: Request, deadline: Deadline, body: bytes) -> None:
        assert about.get()["RequestId"] == request.id
        self.at_delivery()
        if self.unreachable:
            raise OSError
        self.answers.append(json.loads(body))

    def arrives(self, name: str, kind: str = "Create", stack: str = "one", **more: Any) -> dict[str, Any]:
        event = {
            "RequestType": kind,
            "RequestId": f"{kind}-{stack}-{name}",
            "StackId": STACK.format(stack),
            "LogicalResourceId": name.title(),
            "ResponseURL": f"https://x/?Expires={int(self.clock.now) + SIGNED_FOR}",
            "ResourceProperties": {"KeyId": name, "UsagePlanId": "free"},
        } | more
        assert self.function.on_event(event, self) is None
        return event

    def records(self, *receives: int, first: float | None = None) -> list[dict[str, Any]]:
        """What was sent so far, as a batch; how often each was received, and since when."""
        counts = receives or [1] * len(self.sqs.sent)
        return [
            record(
                message["MessageBody"],
                number,
                ApproximateReceiveCount=str(count),
                ApproximateFirstReceiveTimestamp=str(int(1000 * (first or self.clock.now))),
                MessageGroupId=message["MessageGroupId"],
            )
            for number, (message, count) in enumerate(zip(self.sqs.sent, counts, strict=True))
        ]

    def batch(self, records: list[dict[str, Any]]) -> list[str]:
        """Serve a batch; what is reported to come again. The function's time is its own."""
        self.ends = self.clock.now + self.seconds
        try:
            return [item["itemIdentifier"] for item in self.function.on_batch(records, self)["batchItemFailures"]]
        finally:
            self.ends = math.inf

    def serve(self, *receives: int, first: float | None = None) -> list[str]:
        """Serve what was sent."""
        records = self.records(*receives, first=first)
        self.sqs.sent.clear()
        return self.batch(records)

    def served(self) -> list[tuple[str, str]]:
        return [(answer["LogicalResourceId"], answer["Status"]) for answer in self.answers]


def record(body: str, number: int = 0, **attributes: str) -> dict[str, Any]:
    usual = {"ApproximateReceiveCount": "1", "MessageGroupId": "group", "SentTimestamp": "1764000000000"}
    return {
        "messageId": f"message-{number}",
        "receiptHandle": f"receipt-{number}",
        "attributes": usual | attributes,
        "body": body,
    }


def received(record: dict[str, Any], count: int) -> dict[str, Any]:
    """The same message, received once more."""
    return {**record, "attributes": {**record["attributes"], "ApproximateReceiveCount": str(count)}}


@pytest.fixture
def world() -> World:
    return World()


class TestArriving:
    def test_a_request_is_fenced_and_queued_and_not_yet_served(self, world: World) -> None:
        """One message group for each stack, and the same deduplication id for the same request."""
        world.arrives("alice")
        world.arrives("alice")
        world.arrives("bob")
        world.arrives("carol", stack="two")
        first, repeated, sibling, stranger = world.sqs.sent
        assert first["MessageDeduplicationId"] == repeated["MessageDeduplicationId"] != sibling["MessageDeduplicationId"]
        assert first["MessageGroupId"] == sibling["MessageGroupId"] != stranger["MessageGroupId"]
        assert len(first["MessageGroupId"]) <= 128
        assert len(world.ledger.records) == 3
        assert not world.prepared, "who only queues delivers nothing"
        assert not world.api.calls
        assert not world.answers

    def test_its_message_says_when_it_arrived(self, world: World) -> None:
        """CloudFormation's time is counted from then."""
        arrived = world.clock.now
        world.arrives("alice")
        assert json.loads(world.sqs.sent[0]["MessageBody"])["arrived"] == arrived

    def test_one_whose_time_is_over_comes_again_where_the_function_has_no_time_to_look_it_up(self, world: World) -> None:
        world.seconds = 1
        with pytest.raises(TurnOverError):
            world.arrives("alice", ResourceProperties={"ServiceTimeout": str(int(BEFORE_LOOK))})
        assert not world.answers

    def test_one_whose_time_is_nearly_over_is_answered_where_it_arrives(self, world: World) -> None:
        """`BEFORE_LOOK` seconds are too few to begin anything; with more, another invocation may have time to queue it."""
        properties = {"KeyId": "alice", "UsagePlanId": "free", "ServiceTimeout": str(int(BEFORE_LOOK))}
        world.arrives("alice", ResourceProperties=properties)
        assert "was over before its turn came" in world.answers[0]["Reason"]
        with pytest.raises(NotBegunError):
            world.arrives("bob", ResourceProperties={**properties, "ServiceTimeout": str(int(BEFORE_LOOK) + 1)})

    def test_what_makes_answers_is_made_ready_at_once_where_there_is_no_queue(self, world: World) -> None:
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
        """So Lambda tries again, with the same deduplication id, and no answer contradicts the one of the queue."""
        world.sqs.fails = [ReadTimeoutError(endpoint_url="https://queue")] * 999
        with pytest.raises(UnclearError):
            world.arrives("alice")
        assert not world.answers

    @pytest.mark.parametrize("kind", ["Create", "Delete"])
    @pytest.mark.parametrize(("size", "fits"), [(250_000, True), (1_000_000, True), (LONGEST_MESSAGE, False)])
    def test_what_does_not_fit_into_a_message_is_answered_failed(self, world: World, kind: str, size: int, fits: bool) -> None:
        properties = {"KeyId": "alice", "UsagePlanId": "free", "VerifyTrigger": "x" * size}
        id_ = {"PhysicalResourceId": "alice:free"} if kind == "Delete" else {}
        world.arrives("alice", kind, ResourceProperties=properties, **id_)
        assert (len(world.sqs.sent), len(world.answers)) == ((1, 0) if fits else (0, 1))
        if not fits:
            assert "Shorten its properties" in world.answers[0]["Reason"]
            assert ("What stays attached: alice:free" in world.answers[0]["Reason"]) is (kind == "Delete")

    @pytest.mark.parametrize("kind", ["Create", "Delete"])
    def test_an_unexpected_error_is_a_failed_answer(
        self, world: World, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Else CloudFormation would wait for an hour in silence."""
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
        world.sqs.fails = [ClientError({"Error": {"Code": "RequestThrottled", "Message": ""}}, "SendMessage")] * 999
        world.arrives("alice")
        assert world.served() == [("Alice", "FAILED")]
        assert "Could not queue the request: gave up after" in world.answers[0]["Reason"]
        assert not world.sqs.sent


class TestServing:
    def test_what_delivers_is_made_ready_before_anything_is_called(self, world: World) -> None:
        """While API Gateway is waited for, it becomes ready; see response.Sender."""
        world.arrives("alice")
        ready: list[int] = []
        world.before_create = lambda: ready.append(world.prepared)
        world.serve()
        assert ready == [1]

    def test_a_batch_is_served_in_order(self, world: World) -> None:
        for name in ("alice", "bob"):
            world.arrives(name)
        assert world.serve() == []
        assert [answer["LogicalResourceId"] for answer in world.answers] == ["Alice", "Bob"]
        assert world.api.attached == {("alice", "free"), ("bob", "free")}

    def test_what_was_given_up_while_it_waited_touches_nothing(self, world: World) -> None:
        """CloudFormation has sent its Delete, with an id that it has invented."""
        world.arrives("alice")
        world.arrives("alice", "Delete", PhysicalResourceId="invented")
        world.serve()
        assert [answer["Status"] for answer in world.answers] == ["FAILED", "SUCCESS"]
        assert "Superseded" in world.answers[0]["Reason"]
        assert not world.api.calls

    def test_what_was_not_delivered_comes_again_and_is_answered_the_same(self, world: World) -> None:
        world.arrives("alice")
        message = world.records()
        world.unreachable = True
        assert world.serve() == ["message-0"]
        assert not world.sqs.given_back, "whoever cannot be reached now is left in peace for a while"
        world.unreachable = False
        world.batch([received(message[0], 2)])
        assert world.answers[0]["Data"]["Outcome"] == "ATTACHED"
        assert world.api.calls["CreateUsagePlanKey"] == 1

    def test_an_answer_that_hangs_holds_up_none_of_the_nine_others(self, world: World) -> None:
        """Lambda hands over ten messages at most. Here each delivery waits until all ten are under way."""
        world.function = replace(world.function, background=_threads)
        for number in range(10):
            world.arrives("alice", "Delete", stack=str(number), PhysicalResourceId="alice:free")
        world.at_delivery = partial(threading.Barrier(10).wait, 5)
        assert world.serve() == []
        assert world.served() == [("Alice", "SUCCESS")] * 10

    def test_under_sam_local_a_batchs_answers_are_printed_and_not_sent(
        self, world: World, capsys: pytest.CaptureFixture[str]
    ) -> None:
        world.arrives("alice", ResourceProperties={"KeyId": "alice", "UsagePlanId": "free", "IncludeValue": "true"})
        world.function = replace(world.function, local=True)
        assert world.serve() == []
        printed = json.loads(capsys.readouterr().out)
        assert (printed["Status"], printed["Data"]["Value"]) == ("SUCCESS", "(not shown)")
        assert not world.answers

    def test_all_stacks_of_a_batch_are_served_each_in_order(self, world: World) -> None:
        world.arrives("alice")
        world.arrives("bob", stack="two")
        world.arrives("carol")
        assert world.serve() == []
        assert world.served() == [("Alice", "SUCCESS"), ("Bob", "SUCCESS"), ("Carol", "SUCCESS")]

    def test_out_of_the_functions_time_it_goes_back_in_place_with_all_behind_it(self, world: World) -> None:
        """CloudFormation waits for an hour: nobody is answered, none has died. A stack's later ones go first, its head last."""
        for name in ("alice", "bob", "carol"):
            world.arrives(name)
        messages = world.records(2, 2, 2)
        world.at_create = [BUSY] * 999
        assert world.batch(messages) == ["message-0", "message-1", "message-2"]
        assert not world.answers
        assert world.sqs.given_back == ["receipt-2", "receipt-1", "receipt-0"]
        assert len(world.sqs.sent) == 3, "nothing is ever sent back into the queue"
        world.at_create = []
        assert world.batch(messages) == []
        assert [answer["Status"] for answer in world.answers] == ["SUCCESS"] * 3

    def test_what_cannot_be_given_back_comes_again_all_the_same(self, world: World) -> None:
        world.arrives("alice")
        world.at_create = [BUSY] * 999
        records = world.records()
        world.sqs.fails = [ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "ChangeMessageVisibility")]
        assert world.batch(records) == ["message-0"]

    def test_without_a_queue_to_give_it_back_to_it_comes_again_all_the_same(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        """QUEUE_URL is missing, and the event source is there. No call is made that fails."""
        world.arrives("alice")
        world.at_create = [BUSY] * 999
        world.function = replace(world.function, queue=None)
        assert world.serve() == ["message-0"]
        assert not [line for line in caplog.records if line.levelno >= logging.WARNING]

    def test_a_retry_after_longer_than_the_functions_time_costs_one_call_a_turn(self, world: World) -> None:
        world.arrives("alice")
        records = world.records()
        world.at_create = [throttled(100)] * 2
        turns = 0
        began = world.clock.now
        while not world.answers:
            turns += 1
            world.batch(records)
        assert turns <= 3
        assert world.clock.now - began >= 100
        assert world.served() == [("Alice", "SUCCESS")]
        assert not world.at_create

    def test_a_wait_that_would_outlast_cloudformations_time_is_answered_now(self, world: World) -> None:
        world.arrives("alice", ResourceProperties={"KeyId": "alice", "UsagePlanId": "free", "ServiceTimeout": "110"})
        world.at_create = [throttled(100)]
        began = world.clock.now
        assert world.serve() == []
        assert world.served() == [("Alice", "FAILED")]
        assert world.clock.now - began < 1

    def test_what_is_cancelled_while_it_waits_makes_way_for_its_delete(self, world: World) -> None:
        """The Delete waits behind it, in the same batch."""
        world.arrives("alice")
        world.at_create = [throttled(600)]
        apart, delete = copy_context(), partial(world.arrives, "alice", "Delete", PhysicalResourceId="invented")
        world.before_create = lambda: apart.run(delete) if len(world.sqs.sent) < 2 else None
        began = world.clock.now
        records = world.records()
        assert world.batch(records) == []
        assert world.served() == [("Alice", "FAILED")]
        assert world.clock.now - began <= 21
        world.batch(world.records()[1:])
        assert world.served()[1:] == [("Alice", "SUCCESS")]

    def test_out_of_cloudformations_time_it_is_answered(self, world: World) -> None:
        world.arrives("alice", ResourceProperties={"KeyId": "alice", "UsagePlanId": "free", "ServiceTimeout": "60"})
        world.at_create = [BUSY] * 999
        world.serve()
        assert world.answers[0]["Status"] == "FAILED"
        assert "ServiceTimeout" in world.answers[0]["Reason"]
        assert not world.sqs.sent

    def test_a_lane_waits_for_the_door(self, world: World) -> None:
        world.arrives("alice")
        world.at_create = [BUSY] * 3
        began = world.clock.now
        world.serve()
        assert 3 <= world.clock.now - began <= 6

    def test_no_request_is_begun_with_the_functions_time_nearly_up(self, world: World) -> None:
        world.arrives("alice")
        world.seconds = 25
        assert world.serve() == ["message-0"]
        assert not world.api.calls


class TestTime:
    """CloudFormation's time counts from when the request was issued, beyond the first minute."""

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
    def test_what_waits_in_vain_is_answered_in_time(self, world: World, age: float, seconds: float) -> None:
        world.arrives("alice", **self.event(world, age=age, timeout=600))
        records, arrived = world.records(), world.clock.now
        world.at_create = [BUSY] * 9999
        while not world.answers:
            world.batch(records)
        assert seconds - 20 <= world.clock.now - arrived <= seconds

    def test_one_that_arrives_when_its_time_is_over_is_answered_and_not_queued(self, world: World) -> None:
        world.arrives("alice", **self.event(world, age=700, timeout=600))
        assert world.served() == [("Alice", "FAILED")]
        assert "was over before its turn came" in world.answers[0]["Reason"]
        assert (world.sqs.sent, world.api.calls.total()) == ([], 0)

    def test_a_delete_that_arrives_when_its_time_is_over_fences_nothing(self, world: World) -> None:
        """Requests that were issued after it, and have time, are still served."""
        world.arrives("alice", "Delete", PhysicalResourceId="alice:free", **self.event(world, age=700, timeout=600))
        assert world.served() == [("Alice", "FAILED")]
        assert [record.newest for record in world.ledger.records.values()] == [""]

    def test_what_is_put_back_from_a_dead_letter_queue_days_later_touches_nothing(self, world: World) -> None:
        world.arrives("alice")
        records = world.records()
        world.clock.now += 3 * 24 * 3600
        assert world.batch(records) == []
        assert world.served() == [("Alice", "FAILED")]
        assert not world.api.calls


class TestDying:
    def dies(self, world: World, records: list[dict[str, Any]]) -> None:
        world.at_create = [Death()]
        with pytest.raises(Death):
            world.batch(records)
        world.clock.now += VISIBILITY

    @pytest.mark.parametrize(("receives", "says"), [(1, False), (2, True)])
    def test_after_a_death_the_log_says_at_what_the_next_one_may_die(
        self, receives: int, says: bool, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "usage_plan_key")
        world.arrives("alice")
        caplog.clear()
        world.serve(receives)
        assert any("Its turn has come: Create alice:free" in line for line in caplog.messages) is says

    def test_a_request_that_a_function_died_at_is_served_alone_and_at_last_answered_failed(self, world: World) -> None:
        """Other stacks that share its batch wait for a visibility time-out, two at most; its own stack for four."""
        world.arrives("alice")
        world.arrives("bob", stack="two")
        world.arrives("carol")
        first = world.records()
        alice, bob, carol = first
        self.dies(world, first)
        self.dies(world, [received(record, 2) for record in first])
        assert world.sqs.given_back == ["receipt-1"], "another stack's goes back at once"
        self.dies(world, [received(record, 3) for record in first])
        assert world.sqs.given_back[1:] == ["receipt-2", "receipt-1"], "the suspect is alone"
        world.batch([received(bob, 4)])
        assert world.served() == [("Bob", "SUCCESS")]
        self.dies(world, [received(alice, 4), received(carol, 4)])
        world.batch([received(alice, 5), received(carol, 5)])
        assert world.served()[1:] == [("Alice", "FAILED")]
        assert "3 invocations died" in world.answers[1]["Reason"]
        world.batch([received(carol, 6)])
        assert world.served()[2:] == [("Carol", "SUCCESS")]

    def test_what_was_in_a_batch_that_died_is_served_apart_from_other_stacks(self, world: World) -> None:
        """At which of them it has died nobody knows yet."""
        world.arrives("alice")
        world.arrives("bob", stack="two")
        world.arrives("carol")
        failed = world.serve(2, 2, 1, first=world.clock.now - VISIBILITY)
        assert world.served() == [("Alice", "SUCCESS"), ("Carol", "SUCCESS")]
        assert failed == ["message-1"]
        assert world.sqs.given_back == ["receipt-1"]

    def test_what_went_back_in_time_is_no_suspect(self, world: World) -> None:
        world.arrives("alice")
        world.arrives("bob", stack="two")
        assert world.serve(7, 7, first=world.clock.now - VISIBILITY + 1) == []
        assert len(world.answers) == 2

    def test_where_nobody_can_see_whether_a_function_has_died_all_are_served(
        self, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The ledger cannot be read once."""
        world.arrives("alice")
        world.arrives("bob", stack="two")
        read, trouble = world.ledger.change, [FailedError("Could not read the ledger")]

        def change(*asked: Any) -> Any:
            if trouble:
                raise trouble.pop()
            return read(*asked)

        monkeypatch.setattr(world.ledger, "change", change)
        assert world.serve(2, 1) == []
        assert world.served() == [("Alice", "SUCCESS"), ("Bob", "SUCCESS")]
        said = "Could not see whether a function has died at Create alice:free, OnExisting Fail: Could not read the ledger"
        assert said in caplog.messages

    def test_a_delete_that_is_given_up_says_what_stays_attached(self, world: World) -> None:
        world.arrives("bob", "Delete", PhysicalResourceId="bob:free")
        holder = next(iter(world.ledger.records))
        world.ledger.records[holder] = world.ledger.records[holder]._replace(
            begun="Delete-one-bob", died="Delete-one-bob", deaths=2
        )
        world.serve(5)
        assert "3 invocations died" in world.answers[0]["Reason"]
        assert "What stays attached: bob:free" in world.answers[0]["Reason"]

    def test_an_answer_that_was_given_stands_though_a_function_died_after_it(self, world: World) -> None:
        world.arrives("alice")
        message = world.records()
        world.serve()
        world.batch([received(message[0], 9)])
        assert world.answers[0] == world.answers[1]

    def test_an_error_of_one_request_costs_its_own_stack_alone(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is not given back at once, or it would come again and again."""
        for name, stack in (("alice", "one"), ("bob", "two"), ("carol", "one")):
            world.arrives(name, stack=stack)

        def answer(self: Any, event: Any, context: Any) -> None:
            if event["LogicalResourceId"] == "Alice":
                raise RuntimeError("broken")
            real(self, event, context)

        real = CustomResource.answer
        monkeypatch.setattr(CustomResource, "answer", answer)
        assert sorted(world.serve()) == ["message-0", "message-2"]
        assert world.served() == [("Bob", "SUCCESS")]
        assert world.sqs.given_back == ["receipt-2"]

    def test_deaths_add_up_though_it_goes_back_in_between(self, world: World) -> None:
        """API Gateway keeps it waiting, now and then: that is no death, and none is forgotten."""
        world.arrives("alice")
        (message,) = world.records()
        for receives in range(1, 8):
            again = received(message, receives)
            if receives % 2:
                self.dies(world, [again])
            else:
                world.at_create = [BUSY] * 999
                assert world.batch([again]) == ["message-0"]
        world.at_create = []
        assert world.batch([received(message, 8)]) == []
        assert "3 invocations died" in world.answers[0]["Reason"]

    def test_a_mark_that_stands_is_not_taken_off_by_who_has_no_time_to_begin(self, world: World) -> None:
        world.arrives("alice")
        (message,) = world.records()
        self.dies(world, [received(message, 2)])
        world.seconds = 25
        assert world.batch([received(message, 3)]) == ["message-0"]
        (record,) = world.ledger.records.values()
        assert record.begun == "Create-one-alice"

    def test_what_only_waited_is_not_taken_for_what_was_in_a_death(self, world: World) -> None:
        """It was begun again since, and no function died."""
        world.arrives("alice")
        world.arrives("bob", stack="two")
        alice, bob = world.records(2, 1, first=world.clock.now)
        world.at_create = [BUSY] * 999
        assert world.batch([alice]) == ["message-0"]
        world.at_create = []
        world.clock.now += VISIBILITY
        assert world.batch([received(alice, 3), bob]) == []
        assert len(world.answers) == 2


class TestOthersOfTheBatch:
    """What one stack's request waits for costs the others little."""

    def test_who_has_to_wait_waits_when_all_others_are_served(self, world: World) -> None:
        """Also where API Gateway asks for a longer wait than the function's time."""
        for name, error in (("alice", throttled(100)), ("bob", BUSY)):
            world.answers.clear()
            world.arrives(name, stack=name)
            world.arrives("dora", "Delete", stack="two", PhysicalResourceId="dora:free", RequestId=f"dora after {name}")
            world.at_create, began = [error] * 999, world.clock.now
            world.at_delivery = partial(self.not_long_after, began, world.clock)
            assert world.serve() == ["message-0"]
            assert world.served() == [("Dora", "SUCCESS")]

    @staticmethod
    def not_long_after(began: float, clock: Clock) -> None:
        assert clock.now - began <= PATIENCE

    def test_it_is_not_asked_again_before_api_gateway_lets_it(self, world: World) -> None:
        """Nor for another stack: the whole account is throttled."""
        for name in ("alice", "bob", "carol"):
            world.arrives(name, stack=name)
        world.at_create = [throttled(40)]
        began = world.clock.now
        calls: list[float] = []
        world.before_create = lambda: calls.append(world.clock.now - began)
        assert world.serve() == []
        assert len(world.answers) == 3
        assert min(calls[1:]) >= 40

    def test_a_body_that_is_nested_too_deep_is_put_aside(self, world: World) -> None:
        for stray in ("[" * 200_000, '{"a":' * 100_000):
            world.arrives("alice", RequestId=stray[:9])
            assert world.batch([*world.records(), record(stray, 7)]) == []
            world.sqs.sent.clear()
        assert world.served() == [("Alice", "SUCCESS")] * 2
        assert len(world.sqs.aside) == 2

    def test_a_dead_letter_queue_that_is_throttled_costs_the_good_ones_nothing(self, world: World) -> None:
        world.arrives("alice")
        records = [record("hello", 7), *world.records()]
        error = ClientError({"Error": {"Code": "RequestThrottled", "Message": ""}}, "SendMessage")
        world.sqs.fails = [error] * 999
        began = world.clock.now
        assert world.batch(records) == ["message-7"]
        assert world.served() == [("Alice", "SUCCESS")]
        assert world.clock.now - began <= 2 * GIVING_TIME

    def test_giving_back_first_what_is_served_apart_leaves_time_to_serve(self, world: World) -> None:
        world.arrives("alice")
        world.arrives("bob", stack="two")

        def slow(**_: Any) -> None:
            world.clock.now += 3
            raise ReadTimeoutError(endpoint_url="https://sqs")

        world.sqs.change_message_visibility = slow  # type: ignore[method-assign]  # it hangs
        assert world.serve(2, 2, first=world.clock.now - VISIBILITY) == ["message-1"]
        assert world.served() == [("Alice", "SUCCESS")]

    def test_it_returns_before_lambda_ends_it(self, world: World) -> None:
        """Though nothing can be given back, and each attempt takes its whole time."""
        for number, name in enumerate(("alice", "bob", "carol")):
            world.arrives(name, stack=str(number))
        world.at_create = [BUSY] * 999

        def slow(**_: Any) -> None:
            world.clock.now += 3
            raise ReadTimeoutError(endpoint_url="https://sqs")

        world.sqs.change_message_visibility = slow  # type: ignore[method-assign]  # it hangs
        ends = world.clock.now + world.seconds
        assert len(world.serve()) == 3
        assert world.clock.now < ends

    def test_a_stacks_order_holds_though_an_operator_has_sent_a_request_in_another_group(self, world: World) -> None:
        world.arrives("alice")
        world.arrives("bob")
        first, second = world.records()
        second["attributes"]["MessageGroupId"] = "again"
        world.at_create = [BUSY] * 999
        assert world.batch([first, second]) == ["message-0", "message-1"]
        assert not world.answers

    def test_what_is_over_and_cannot_be_delivered_does_not_come_again(self, world: World) -> None:
        """CloudFormation waits for it no longer."""
        world.arrives("alice")
        records = world.records()
        world.clock.now += 2 * 3600
        world.unreachable = True
        assert world.batch(records) == []

    def test_an_answer_that_was_given_is_given_again_whatever_time_is_left(self, world: World) -> None:
        world.arrives("alice")
        (message,) = world.records()
        world.serve()
        ends = world.clock.now + 3600
        for left in (20, 15, 10, 7, 5, 3, 1, 0, -5):
            world.clock.now = ends - left
            assert world.batch([received(message, 2)]) == []
        assert {json.dumps(answer) for answer in world.answers} == {json.dumps(world.answers[0])}
        assert len(world.answers) == 10

    def test_one_that_is_over_goes_back_where_no_time_is_left_to_look_it_up(self, world: World) -> None:
        world.arrives("alice")
        (message,) = world.records()
        world.serve()
        world.clock.now += 2 * 3600
        world.seconds = 15
        assert world.batch([received(message, 2)]) == ["message-0"]
        assert len(world.answers) == 1

    def test_a_reply_without_a_message_id_is_no_sign_that_it_is_queued(self, world: World) -> None:
        """A proxy's page, say: it is sent again, and the queue takes it once."""
        replies: Any = iter([{"ResponseMetadata": {}}] * 2)
        send = world.sqs.send_message
        world.sqs.send_message = lambda **message: next(replies, None) or send(**message)  # type: ignore[method-assign]  # a proxy's
        world.arrives("alice")
        assert next(replies, "none is left") == "none is left"
        assert len(world.sqs.sent) == 1

    def test_lambdas_record_says_when_it_has_given_up(self, world: World) -> None:
        """Put back days later, a request that tells no issue time is over all the same."""
        event = world.arrives("alice", ResponseURL="https://x/")
        world.sqs.sent.clear()
        gave_up = datetime.fromtimestamp(world.clock.now, UTC).isoformat()
        letter = json.dumps({"version": "1.0", "timestamp": gave_up, "requestPayload": event})
        world.clock.now += 3 * 24 * 3600
        sent = str(int(world.clock.now * 1000))
        assert world.batch([record(letter, SentTimestamp=sent)]) == []
        assert world.served() == [("Alice", "FAILED")]
        assert not world.api.calls


class TestForged:
    """What somebody writes into an event or a message, who may do so, holds up nobody for longer than it has to."""

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

    @pytest.mark.parametrize("arrived", ["NaN", "Infinity", "4102444800", '"soon"', "null"])
    def test_a_message_has_arrived_before_it_was_sent(self, world: World, arrived: str) -> None:
        event = json.dumps(world.arrives("alice"))
        sent = int(world.clock.now)
        body = f'{{"event": {event}, "arrived": {arrived}}}'
        (message,) = messages([record(body, SentTimestamp=str(sent * 1000))])
        assert message.arrived == sent


class TestFencedFirst:
    """A retained logical id that is declared again and fails must not detach a live customer."""

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
        world.arrives("alice", RequestId="declared again", ResponseURL=f"https://x/?Expires={issued + SIGNED_FOR}")
        assert "was over" in world.answers[-1]["Reason"]
        world.arrives("alice", "Delete", PhysicalResourceId="invented")
        world.serve()
        assert world.api.attached == {("alice", "free")}


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
    assert value not in caplog.text + repr(world.ledger.records) + repr(shown)
    assert shown == ["a foreign id of 34 characters"]
    assert world.api.attached == {("alice", "free")}, "it is no reason to release what is held"


class TestStrays:
    """A record that is no request goes to the dead-letter queue, and costs nobody else anything."""

    @pytest.mark.parametrize(
        "body",
        [
            "",
            "hello",
            "7",
            "null",
            "[]",
            "{}",
            '{"event": null, "arrived": 1}',
            '{"event": {"RequestType": "Create"}, "arrived": 1}',
            '{"requestPayload": 7}',
            '{"Message": "a notification"}',
        ],
    )
    def test_it_is_put_aside_and_the_rest_is_served(self, world: World, body: str, caplog: pytest.LogCaptureFixture) -> None:
        world.arrives("alice")
        world.arrives("bob", stack="two")
        alice, bob = world.records()
        assert world.batch([alice, record(body, 7), bob]) == []
        assert world.served() == [("Alice", "SUCCESS"), ("Bob", "SUCCESS")]
        (aside,) = world.sqs.aside
        assert (aside["QueueUrl"], aside["MessageBody"], aside["MessageGroupId"]) == ("https://undelivered", body, "group")
        assert any("message-7 is no request" in line.message for line in caplog.records if line.levelname == "ERROR")

    def test_where_it_cannot_be_put_aside_it_comes_again(self, world: World) -> None:
        """Until SQS itself puts it aside."""
        world.sqs.fails = [ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "SendMessage")]
        assert world.batch([record("stray")]) == ["message-0"]
        assert not world.sqs.given_back

    @pytest.mark.parametrize("lacks", ["the queue", "its dead-letter queue"])
    def test_without_a_dead_letter_queue_it_comes_again(self, world: World, lacks: str, caplog: pytest.LogCaptureFixture) -> None:
        """And that is no trouble to log beside the stray."""
        queue = Queue(world.sqs, "https://queue") if lacks == "its dead-letter queue" else None  # type: ignore[arg-type]  # a fake
        world.function = replace(world.function, queue=queue)
        assert world.batch([record("stray")]) == ["message-0"]
        assert (world.sqs.sent, world.sqs.aside) == ([], [])
        assert [line.levelname for line in caplog.records] == ["ERROR"]

    def test_a_message_shows_none_of_what_it_carries(self, world: World) -> None:
        """A ResponseURL is a secret, and a traceback shows the message's repr."""
        (message,) = messages([record('{"event": {"ResponseURL": "https://x/?Signature=s3cr3t"}}', 7)])
        assert repr(message) == "Message('message-7')"

    def test_lambdas_record_of_a_failed_invocation_is_served_as_the_request_in_it(self, world: World) -> None:
        """It was not fenced when it arrived, so it is now."""
        world.arrives("alice")
        event = json.loads(world.sqs.sent[0]["MessageBody"])["event"]
        world.ledger.records.clear()
        body = json.dumps({"version": "1.0", "requestContext": {"condition": "RetriesExhausted"}, "requestPayload": event})
        assert world.batch([record(body, SentTimestamp=str(int(world.clock.now * 1000)))]) == []
        assert world.served() == [("Alice", "SUCCESS")]
        (page,) = world.ledger.records.values()
        assert page.newest == "Create-one-alice"

    def test_a_message_of_the_former_format_is_served(self, world: World) -> None:
        """It has waited in the queue during an upgrade."""
        world.arrives("alice")
        body = json.loads(world.sqs.sent[0]["MessageBody"]) | {"turn": 3, "received": 2}
        world.batch([record(json.dumps(body))])
        assert world.served() == [("Alice", "SUCCESS")]


class TestLettingGo:
    """An operator has a resource let go whose stack is gone without a Delete for it."""

    ASKED: ClassVar = {"StackId": STACK.format("one"), "LogicalResourceId": "Alice"}

    @pytest.fixture
    def world(self, world: World) -> World:
        world.arrives("alice")
        world.serve()
        return world

    @pytest.mark.parametrize("said", ["DELETE_COMPLETE", None], ids=["deleted", "does not exist"])
    def test_a_stack_that_is_gone_holds_nothing_and_nothing_is_detached(self, world: World, said: str | None) -> None:
        if said:
            world.stacks[STACK.format("one")] = said
        assert world.function.let_go(self.ASKED, world) == {"LetGo": ["alice:free"]}
        assert not world.ledger.entries
        assert world.api.attached == {("alice", "free")}
        assert world.function.let_go(self.ASKED, world) == {"LetGo": []}

    @pytest.mark.parametrize(
        "said",
        [
            "UPDATE_COMPLETE",
            "DELETE_FAILED",
            "DELETE_IN_PROGRESS",
            ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "DescribeStacks"),
            NoCredentialsError(),
        ],
    )
    def test_a_stack_that_may_be_there_keeps_what_it_holds(self, world: World, said: str | Exception) -> None:
        world.stacks[STACK.format("one")] = said
        with pytest.raises(FailedError, match=STACK.format("one")):
            world.function.let_go(self.ASKED, world)
        assert world.ledger.entries

    @pytest.mark.parametrize(
        "stack", ["one", STACK.format("one").replace(":1:", ":2:"), STACK.format("one").replace("eu-west-1", "eu-west-2")]
    )
    def test_a_stack_of_another_account_or_region_is_not_asked_about(self, world: World, stack: str) -> None:
        """Of it, CloudFormation would say here that it does not exist."""
        with pytest.raises(FailedError, match="no id of a stack"):
            world.function.let_go({"StackId": stack, "LogicalResourceId": "Alice"}, world)

    @pytest.mark.parametrize("asked", [None, [], {}, {"StackId": 7, "LogicalResourceId": "Alice"}])
    def test_what_is_not_named_is_an_error(self, world: World, asked: object) -> None:
        with pytest.raises(EventError, match="StackId"):
            world.function.let_go(asked, world)

    def test_the_way_out_is_named_to_whoever_is_kept_out(self, world: World) -> None:
        world.arrives("alice", stack="two")
        world.serve()
        said = world.answers[-1]["Reason"]
        event = json.loads(said[said.index("{") : said.rindex("}") + 1])
        assert event == {"LetGo": self.ASKED}


class TestMessages:
    """What SQS hands over is read field by field."""

    def test_a_message_without_attributes_was_received_once_and_nobody_knows_when(self) -> None:
        (read,) = messages([{"messageId": "m", "receiptHandle": "r", "body": '{"event": 7, "arrived": 5}'}])
        assert read == ("m", "", "r", '{"event": 7, "arrived": 5}', 7, 5, True, 1, math.inf)

    def test_all_that_sqs_says_of_a_message_is_read(self) -> None:
        attributes = {
            "MessageGroupId": "g",
            "SentTimestamp": "9000",
            "ApproximateReceiveCount": "3",
            "ApproximateFirstReceiveTimestamp": "10500",
        }
        (read,) = messages([{"messageId": "m", "receiptHandle": "r", "body": "{}", "attributes": attributes}])
        assert read == ("m", "g", "r", "{}", {}, 9, False, 3, 10.5)

    @pytest.mark.parametrize(
        ("arrived", "read"),
        [(5, 5), (12, 9), (math.inf, 9), ("5", 9), (None, 9)],
        ids=["before", "after", "never", "text", "null"],
    )
    def test_a_request_arrived_before_its_message_was_sent(self, arrived: object, read: float) -> None:
        (message,) = messages([record(json.dumps({"event": {}, "arrived": arrived}), SentTimestamp="9000")])
        assert (message.arrived, message.fenced) == (read, True)

    @pytest.mark.parametrize(("timestamp", "read"), [("1970-01-01T00:00:05Z", 5), ("5", 9), (5, 9)])
    def test_lambdas_record_says_when_lambda_gave_up(self, timestamp: object, read: float) -> None:
        body = json.dumps({"requestPayload": {"a": 1}, "timestamp": timestamp})
        (message,) = messages([record(body, SentTimestamp="9000")])
        assert (message.event, message.arrived, message.fenced) == ({"a": 1}, read, False)

    def test_a_message_shows_nothing_but_its_id(self) -> None:
        (read,) = messages([record("secret", 7)])
        assert repr(read) == "Message('message-7')"


class TestCalls:
    """What the queue is told, and what is said where it does not answer."""

    def queue(self, world: World) -> Queue:
        return Queue(world.sqs, "https://queue", "https://undelivered")  # type: ignore[arg-type]  # a fake

    def test_a_message_that_is_put_aside_twice_is_there_once(self, world: World) -> None:
        for number in (1, 1, 2):
            (stray,) = messages([record("stray", number)])
            assert self.queue(world).put_aside(stray, Deadline(60, world.clock))
        first, repeated, other = (message["MessageDeduplicationId"] for message in world.sqs.aside)
        assert first == repeated != other

    def test_without_a_dead_letter_queue_it_stays(self, world: World) -> None:
        (stray,) = messages([record("stray")])
        assert not Queue(world.sqs, "https://queue").put_aside(stray, Deadline(60, world.clock))  # type: ignore[arg-type]  # a fake
        assert not world.sqs.aside

    def test_an_error_says_what_could_not_be_done(self, world: World) -> None:
        (message,) = messages([record("stray")])
        event = {"StackId": "s", "RequestId": "r"}
        throttled = ClientError({"Error": {"Code": "RequestThrottled", "Message": "slow"}}, "Call")
        for begins, call in (
            ("Could not put a message aside: gave up", partial(self.queue(world).put_aside, message)),
            ("Could not give a message back: gave up", partial(self.queue(world).give_back, message)),
            ("Could not queue the request: gave up", partial(self.queue(world).put, event, 5)),
        ):
            world.sqs.fails = [throttled] * 999
            with pytest.raises(FailedError, match=f"^{begins}"):
                call(Deadline(60, world.clock))
        world.sqs.fails = [ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "SendMessage")]
        with pytest.raises(FailedError, match=r"^Could not queue the request: .*AccessDenied.*Check that the queue is there"):
            self.queue(world).put(event, 5, Deadline(60, world.clock))

    def test_a_request_that_may_have_been_queued_is_unclear_and_says_why(self, world: World) -> None:
        world.sqs.fails = [ReadTimeoutError(endpoint_url="https://queue")] * 999
        with pytest.raises(UnclearError, match=r"^Could not queue the request: gave up .*https://queue"):
            self.queue(world).put({"StackId": "s", "RequestId": "r"}, 5, Deadline(60, world.clock))

    def test_a_request_is_queued_as_short_json(self, world: World) -> None:
        self.queue(world).put({"StackId": "s", "RequestId": "\ud800"}, 5, Deadline(60, world.clock))
        (message,) = world.sqs.sent
        assert message["MessageBody"] == '{"event":{"StackId":"s","RequestId":"\\ud800"},"arrived":5}'
        assert re.fullmatch("[0-9a-f]{64}", message["MessageDeduplicationId"])
        assert message["MessageGroupId"] == hashlib.sha256(b"s").hexdigest()

    def test_a_message_of_just_the_greatest_size_is_queued(self, world: World) -> None:
        event = {"StackId": "s", "RequestId": "r", "Filler": ""}
        self.queue(world).put(event, 5, Deadline(60, world.clock))
        event["Filler"] = "x" * (LONGEST_MESSAGE - len(world.sqs.sent[0]["MessageBody"]))
        self.queue(world).put(event, 5, Deadline(60, world.clock))
        assert len(world.sqs.sent[1]["MessageBody"]) == LONGEST_MESSAGE
        event["Filler"] += "x"
        with pytest.raises(FailedError, match=f"it has {LONGEST_MESSAGE + 1} bytes, and a message takes {LONGEST_MESSAGE}"):
            self.queue(world).put(event, 5, Deadline(60, world.clock))

    def test_a_body_that_is_no_json_has_no_event(self) -> None:
        (read,) = messages([record("no json")])
        assert read.event is None

    def test_a_reply_that_is_none_of_sqss_is_not_taken_for_one(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(world.sqs, "send_message", lambda **_: {"ResponseMetadata": {}})
        with pytest.raises(UnclearError, match=r"The last error: the reply is none of SQS's, or is cut short\."):
            self.queue(world).put({"StackId": "s", "RequestId": "r"}, 5, Deadline(60, world.clock))


class TestTold:
    """What an invocation logs, counts and prints, and how much time it gives to each call."""

    def log(self, caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
        return [(line.levelname, line.message) for line in caplog.records if line.name == "usage_plan_key.provider"]

    def refused(self, operation: str) -> ClientError:
        return ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, operation)

    def test_a_foreign_id_is_in_no_line(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        """A former provider's may be a key's value."""
        caplog.set_level(logging.INFO)
        for on_existing in ("Adopt", "Bad"):
            properties = {"KeyId": "alice", "UsagePlanId": "free", "OnExisting": on_existing}
            world.arrives(
                "alice", "Update", PhysicalResourceId="s3cr3t-value", ResourceProperties=properties, RequestId=on_existing
            )
            world.serve()
        assert [vars(line).get("AnswerId") for line in caplog.records if "status" in vars(line)] == [
            "alice:free",
            "a foreign id of 12 characters",
        ]
        assert "s3cr3t" not in str([vars(line) for line in caplog.records])

    def test_a_stray_is_counted_and_logged(
        self, world: World, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
    ) -> None:
        refused = self.refused("SendMessage")
        world.sqs.fails = [refused]
        world.batch([record("stray", 7)])
        counted = json.loads(capsys.readouterr().out)
        assert (counted["NoRequest"], counted["_aws"]["CloudWatchMetrics"][0]["Namespace"]) == ([1], "UsagePlanKey")
        assert counted["_aws"]["CloudWatchMetrics"][0]["Metrics"] == [{"Name": "NoRequest", "Unit": "Count"}]
        first, second = self.log(caplog)
        assert first[0] == "ERROR"
        assert first[1].startswith("Message message-7 is no request: not a CloudFormation custom resource event: ")
        assert second == ("WARNING", f"Message message-7 stays in the queue: {refused}")

    @pytest.mark.parametrize(("left", "taken"), [(4, 1), (GIVING_TIME, 2), (90, 2)])
    def test_a_stray_costs_little_of_the_others_time(self, world: World, left: float, taken: float) -> None:
        slow = ClientError({"Error": {"Code": "RequestThrottled", "Message": "slow"}}, "SendMessage")
        world.sqs.fails = [slow] * 999
        (stray,) = messages([record("stray")])
        began = world.clock.now
        assert not world.function._put_aside(stray, began + left)
        assert world.clock.now - began == taken

    def test_an_answer_that_is_not_delivered_is_logged(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        world.arrives("alice")
        world.at_delivery = lambda: 1 / 0
        assert world.serve() == ["message-0"]
        assert ("ERROR", "Not delivered: division by zero") in self.log(caplog)

    def test_an_answer_that_cloudformation_waits_for_no_longer_does_not_come_again(self, world: World) -> None:
        event = world.arrives("alice")
        ends = int(world.clock.now) + 3600

        def late() -> None:
            world.clock.now = ends
            raise OSError

        assert event
        world.at_delivery = late
        assert world.serve() == []

    def test_the_look_for_a_death_has_the_batchs_time(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        deadlines: list[Deadline] = []
        change = world.ledger.change

        def watched(holder: Any, associations: Any, rule: Any, deadline: Deadline, seen: Any = None) -> Any:
            deadlines.append(deadline)
            return change(holder, associations, rule, deadline, seen)

        world.arrives("alice")
        monkeypatch.setattr(world.ledger, "change", watched)
        world.serve(2)
        assert all(deadline.clock is world.clock for deadline in deadlines)
        assert deadlines[0]._end == world.clock.now + world.seconds - LAST_SECONDS - CLOSING_TIME

    def test_a_look_for_a_death_that_fails_is_logged(
        self, world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(self: Any) -> bool:
            raise FailedError("the ledger is out of reach")

        world.arrives("alice")
        monkeypatch.setattr("usage_plan_key.service.Service.died", broken)
        assert world.serve(2) == []
        said = "Could not see whether a function has died at Create alice:free, OnExisting Fail: the ledger is out of reach"
        assert ("WARNING", said) in self.log(caplog)

    def test_what_cannot_be_given_back_is_logged(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        refused = self.refused("ChangeMessageVisibility")
        world.arrives("alice")
        world.at_create = [BUSY] * 999
        records = world.records()
        world.sqs.fails = [refused]
        world.batch(records)
        said = f"Message message-0 comes again when its visibility time-out is over: {refused}"
        assert ("WARNING", said) in self.log(caplog)

    def test_what_is_let_go_is_logged(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
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
        let_go = [text for level, text in self.log(caplog) if level == "WARNING"]
        assert let_go == [
            "Alice of stack one is gone: let go of alice:free, bob:free, and detached nothing",
            "Alice of stack one is gone: let go of nothing, and detached nothing",
        ]

    def test_letting_go_says_what_it_takes_and_why_it_refuses(self, world: World) -> None:
        with pytest.raises(
            EventError, match=r'^LetGo takes \{"StackId": "...", "LogicalResourceId": "..."\}, and needs a ledger$'
        ):
            world.function.let_go({}, world)
        world.stacks[STACK.format("one")] = "UPDATE_COMPLETE"
        said = f"^Stack {STACK.format('one')} is still there, so nothing was let go of. Delete the resource from its template$"
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
        assert deadline.clock is world.clock
        assert (deadline._end - world.clock.now, deadline.reserve) == (world.seconds, Deadline(1, world.clock).short().reserve)

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ({}, "Asked: Create alice:free, OnExisting Fail"),
            ({"RequestType": "Update", "PhysicalResourceId": "alice:free"}, "Asked: Update alice:free, OnExisting Fail"),
            ({"RequestType": "Delete", "PhysicalResourceId": "alice:free"}, "Asked: Delete alice:free"),
            ({"ResourceProperties": {}}, "Asked: Create with unusable properties"),
            (
                {"RequestType": "Update", "PhysicalResourceId": "alice:free", "ResourceProperties": {}},
                "Asked: Update with unusable properties",
            ),
        ],
    )
    def test_the_log_says_what_is_asked(
        self, world: World, more: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "usage_plan_key")
        world.arrives("alice", **more)
        assert self.log(caplog) == [("INFO", said)]

    def test_every_line_says_which_request_it_is_about(self, world: World) -> None:
        world.arrives("alice", "Delete", PhysicalResourceId="alice:free")
        assert about.get() == {
            "StackId": STACK.format("one"),
            "LogicalResourceId": "Alice",
            "RequestId": "Delete-one-alice",
            "RequestType": "Delete",
            "PhysicalResourceId": "alice:free",
            "function_request_id": "8c5a3a0e",
        }

    def test_the_outcome_is_logged_with_what_was_asked(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
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

    def test_what_waits_says_for_what(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "usage_plan_key")
        world.arrives("alice")
        world.arrives("bob")
        world.at_create = [BUSY] * 999
        world.serve()
        waits = [text for _, text in self.log(caplog) if " waits: " in text]
        assert len(waits) == 2, "where there is one stack, nobody makes way"
        assert waits[0].startswith("Create alice:free, OnExisting Fail waits: Could not attach API key alice")
        assert waits[1] == "Create bob:free, OnExisting Fail waits: an earlier request of its stack is not answered yet"

    def test_who_waits_makes_way_for_other_stacks_and_then_has_all_the_time(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        served: list[tuple[str, float, float]] = []

        def serve(self: Any, turn: Any, ends: float, patience: float, opens: float, *rest: Any) -> None:
            served.append((turn.request.wanted.key_id, patience, opens))
            world.clock.now += 35
            raise TurnOverError("busy", world.clock.now + 5)

        world.arrives("alice")
        world.arrives("carol")
        world.arrives("bob", stack="two")
        monkeypatch.setattr(Provider, "_handle", serve)
        began = world.clock.now
        assert world.serve() == ["message-0", "message-1", "message-2"]
        assert served == [
            ("alice", PATIENCE, -math.inf),
            ("bob", 40 - 35, began + 40),
            ("alice", math.inf, began + 75),
            ("bob", math.inf, began + 110),
        ]

    def test_a_request_with_no_time_for_a_last_look_is_over(self, world: World) -> None:
        world.arrives("alice", ResourceProperties={"KeyId": "alice", "UsagePlanId": "free", "ServiceTimeout": "600"})
        records = world.records()
        world.clock.now += 600 - BEFORE_LOOK
        world.batch(records)
        assert "was over before its turn came" in world.answers[0]["Reason"]

    @pytest.mark.parametrize(("seconds", "left"), [(90, 20), (36, 36 - LAST_SECONDS - 15)])
    def test_a_delivery_has_twenty_seconds_or_what_is_left(self, world: World, seconds: float, left: float) -> None:
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
        assert deadline.clock is world.clock
        assert deadline._end - world.clock.now == left
        assert checked == ["Create-one-alice"]

    @pytest.mark.parametrize("on_batch", [False, True], ids=["by CloudFormation", "by the queue"])
    def test_who_gives_up_has_all_the_time_that_is_left(
        self, world: World, monkeypatch: pytest.MonkeyPatch, *, on_batch: bool
    ) -> None:
        given: list[Any] = []

        class Hangs(CustomResource):
            def answer(self, event: object, context: object) -> None:
                monkeypatch.setattr(world.ledger, "change", watched)
                given.append(self._give_up())

        def watched(holder: Any, associations: Any, rule: Any, deadline: Deadline, seen: Any = None) -> Any:
            given.append((deadline.clock is world.clock, deadline._end - world.clock.now))
            return change(holder, associations, rule, deadline, seen)

        change = world.ledger.change
        if on_batch:
            world.arrives("alice")
        else:
            world.function = replace(world.function, queue=None)
        monkeypatch.setattr("usage_plan_key.provider.CustomResource", Hangs)
        if on_batch:
            world.serve()
        else:
            world.arrives("alice")
        assert given[0] == (True, world.seconds - (LAST_SECONDS if on_batch else 0))
        assert given[1].reason == "No answer in time: a call of the function hangs. Look into its log, and deploy again"

    def test_what_a_batch_logs_before_its_first_request_is_about_none(self, world: World) -> None:
        about.set({"left": "over"})
        world.batch([record("stray")])
        assert about.get() == {}

    def test_the_log_says_whose_turn_has_come_and_what_has_broken(
        self, world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        caplog.set_level(logging.DEBUG, "usage_plan_key")
        world.arrives("alice")
        monkeypatch.setattr(CustomResource, "answer", lambda *_: 1 / 0)
        assert world.serve() == ["message-0"]
        assert self.log(caplog)[1:] == [
            ("DEBUG", "Its turn has come: Create alice:free, OnExisting Fail"),
            ("ERROR", "Not answered, so it comes again when its visibility time-out is over"),
        ]

    def test_only_the_first_of_a_stack_may_have_been_in_a_batch_that_died(self, world: World) -> None:
        world.arrives("alice")
        world.arrives("carol")
        world.arrives("bob", stack="two")
        assert world.serve(1, 2, 1, first=world.clock.now - VISIBILITY) == []
        assert len(world.answers) == 3
