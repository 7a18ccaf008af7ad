"""The function's two roles: CloudFormation's invocations go into the queue, and the queue's batches are served."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any, ClassVar

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from tests.aws.fake import ApiGateway as StrictApi
from tests.aws.fake import Key, Plan
from tests.memory import Clock, Inline, MemoryLedger
from usage_plan_key.answer import Resource
from usage_plan_key.api_gateway import ApiGateway
from usage_plan_key.invocation import Invocation, about
from usage_plan_key.lifecycle import FailedError
from usage_plan_key.queue import MOST_BYTES, VISIBILITY, Queue, UnclearError
from usage_plan_key.request import SIGNED_FOR, EventError, Request
from usage_plan_key.retry import Deadline

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

    def send_message(self, **message: Any) -> None:
        if self.fails:
            raise self.fails.pop(0)
        (self.sent if message["QueueUrl"] == "https://queue" else self.aside).append(message)

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
        self.seconds = 90.0
        self.stacks: dict[str, str | ClientError] = {}
        """What CloudFormation says of stacks."""
        self.function = Invocation(
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
        if isinstance(said, ClientError):
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
        assert self.function.by_cloudformation(event, self) is None
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
            return [item["itemIdentifier"] for item in self.function.by_queue(records, self)["batchItemFailures"]]
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
    @pytest.mark.parametrize(("size", "fits"), [(250_000, True), (1_000_000, True), (MOST_BYTES, False)])
    def test_what_does_not_fit_into_a_message_is_answered_failed(self, world: World, kind: str, size: int, fits: bool) -> None:
        properties = {"KeyId": "alice", "UsagePlanId": "free", "VerifyTrigger": "x" * size}
        id_ = {"PhysicalResourceId": "alice:free"} if kind == "Delete" else {}
        world.arrives("alice", kind, ResourceProperties=properties, **id_)
        assert (len(world.sqs.sent), len(world.answers)) == ((1, 0) if fits else (0, 1))
        if not fits:
            assert "Shorten its properties" in world.answers[0]["Reason"]
            assert ("What stays attached: alice:free" in world.answers[0]["Reason"]) is (kind == "Delete")

    @pytest.mark.parametrize("kind", ["Create", "Delete"])
    def test_an_unexpected_error_is_a_failed_answer(self, world: World, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Else CloudFormation would wait for an hour in silence."""
        monkeypatch.setattr("usage_plan_key.lifecycle.arrive", lambda *_, **__: 1 / 0)
        world.arrives("alice", kind, **({"PhysicalResourceId": "alice:free"} if kind == "Delete" else {}))
        assert world.served() == [("Alice", "FAILED")]
        assert "An internal error, please report it: ZeroDivisionError" in world.answers[0]["Reason"]

    @pytest.mark.parametrize("code", ["RequestThrottled", "ThrottlingException"])
    def test_throttled_it_tries_again(self, world: World, code: str) -> None:
        world.sqs.fails = [ClientError({"Error": {"Code": code, "Message": ""}}, "SendMessage")]
        world.arrives("alice")
        assert len(world.sqs.sent) == 1


class TestServing:
    def test_what_delivers_is_made_ready_before_anything_is_called(self, world: World) -> None:
        """While API Gateway is waited for, it becomes ready; see answer.Sender."""
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

    def test_a_delete_that_is_given_up_says_what_stays_attached(self, world: World) -> None:
        world.arrives("bob", "Delete", PhysicalResourceId="bob:free")
        holder = next(iter(world.ledger.records))
        world.ledger.records[holder] = world.ledger.records[holder]._replace(begun="Delete-one-bob", deaths=2)
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

        real = Resource.answer
        monkeypatch.setattr(Resource, "answer", answer)
        assert world.serve() == ["message-0", "message-2"]
        assert world.served() == [("Bob", "SUCCESS")]
        assert world.sqs.given_back == ["receipt-2"]


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
        ],
    )
    def test_a_stack_that_may_be_there_keeps_what_it_holds(self, world: World, said: str | ClientError) -> None:
        world.stacks[STACK.format("one")] = said
        with pytest.raises(FailedError):
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
