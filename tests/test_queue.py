"""The function's two roles: CloudFormation's invocations go into the queue, and the queue's batches are served."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from tests.aws.fake import ApiGateway as StrictApi
from tests.aws.fake import Key, Plan
from tests.memory import Clock, MemoryLedger
from usage_plan_key.api_gateway import ApiGateway
from usage_plan_key.invocation import Invocation, about
from usage_plan_key.queue import MOST_RECEIVES, Queue, UnclearError
from usage_plan_key.request import Request
from usage_plan_key.retry import Deadline

STACK = "arn:aws:cloudformation:eu-west-1:1:stack/{}/0"
BUSY = ClientError(
    {"Error": {"Code": "ConflictException", "Message": "Please try again later."}, "ResponseMetadata": {"HTTPStatusCode": 409}},  # type: ignore[typeddict-item]
    "CreateUsagePlanKey",
)


class Death(BaseException):
    """The function ends here and now."""


class Sqs:
    """What is sent and deleted; `fails` is raised at the next sends."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.fails: list[Exception] = []
        self.refuses: list[str] = []

    def send_message(self, **message: Any) -> None:
        if self.fails:
            raise self.fails.pop(0)
        self.sent.append(message)

    def send_message_batch(self, *, QueueUrl: str, Entries: list[dict[str, Any]]) -> dict[str, Any]:
        if self.fails:
            raise self.fails.pop(0)
        taken = [entry for entry in Entries if entry["Id"] not in self.refuses]
        self.sent += taken
        return {"Successful": [{"Id": entry["Id"]} for entry in taken], "Failed": [{"Id": id_} for id_ in self.refuses]}

    def delete_message_batch(self, *, QueueUrl: str, Entries: list[dict[str, Any]]) -> None:
        self.deleted += [entry["ReceiptHandle"] for entry in Entries]


class Inline(Executor):
    """A background that is done at once."""

    def submit(self, call: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*arguments, **named))
        except Exception as error:  # noqa: BLE001  # as an executor does
            future.set_exception(error)
        return future


class World:
    """The function, with everything that it talks to in memory."""

    aws_request_id = "8c5a3a0e"
    log_stream_name = "stream"

    def __init__(self) -> None:
        self.clock = Clock()
        self.api = StrictApi()
        self.api.plans = {"free": Plan("Free", (("api", "prod"),))}
        self.api.keys = {name: Key(name, f"value-of-{name}") for name in ("alice", "bob", "carol")}
        self.sqs = Sqs()
        self.ledger = MemoryLedger()
        self.answers: list[dict[str, Any]] = []
        self.prepared = 0
        """How often what delivers answers was made ready."""
        self.unreachable = False
        self.seconds = 120.0
        self.function = Invocation(
            api=ApiGateway(self),  # type: ignore[arg-type]  # a fake
            sender=self,  # type: ignore[arg-type]  # a fake
            table=self.ledger,  # type: ignore[arg-type]  # a fake
            queue=Queue(self.sqs, "https://queue"),  # type: ignore[arg-type]  # a fake
            clock=self.clock,
            background=Inline,
        )
        self.at_create: list[BaseException] = []
        self.before_create: Callable[[], object] = lambda: None

    def get_remaining_time_in_millis(self) -> int:
        return int(self.seconds * 1000)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.api, name)

    def create_usage_plan_key(self, **arguments: Any) -> Any:
        self.before_create()
        if self.at_create:
            raise self.at_create.pop(0)
        return self.api.create_usage_plan_key(**arguments)

    def prepare(self) -> None:
        self.prepared += 1

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
            "ResponseURL": f"https://x/?Expires={int(self.clock.now)}",
            "ResourceProperties": {"KeyId": name, "UsagePlanId": "free"},
        } | more
        assert self.function.by_cloudformation(event, self) is None
        return event

    def records(self, *receives: int) -> list[dict[str, Any]]:
        """What was sent so far, as a batch; how often each was received."""
        counts = receives or [1] * len(self.sqs.sent)
        return [
            {
                "messageId": f"message-{number}",
                "receiptHandle": f"receipt-{number}",
                "attributes": {"ApproximateReceiveCount": str(count), "MessageGroupId": message["MessageGroupId"]},
                "body": message["MessageBody"],
            }
            for number, (message, count) in enumerate(zip(self.sqs.sent, counts, strict=True))
        ]

    def serve(self, *receives: int) -> list[str]:
        """Serve what was sent; what is reported to come again."""
        records = self.records(*receives)
        self.sqs.sent.clear()
        return [item["itemIdentifier"] for item in self.function.by_queue(records, self)["batchItemFailures"]]

    def sent_again(self) -> list[tuple[str, int, int]]:
        """Which requests went back: RequestId, turn, and how often their serving was begun."""
        bodies = [json.loads(message["MessageBody"]) for message in self.sqs.sent]
        return [(body["event"]["RequestId"], body["turn"], body["received"]) for body in bodies]


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
        world.unreachable = False
        world.function.by_queue([received(message[0], 2)], world)
        assert world.answers[0]["Data"]["Outcome"] == "ATTACHED"
        assert world.api.calls["CreateUsagePlanKey"] == 1

    def test_out_of_the_functions_time_it_goes_back_with_all_behind_it(self, world: World) -> None:
        """CloudFormation waits for an hour: nobody is answered, and none has died."""
        for name in ("alice", "bob", "carol"):
            world.arrives(name)
        ids = {message["MessageDeduplicationId"] for message in world.sqs.sent}
        world.at_create = [BUSY] * 999
        assert world.serve() == []
        assert not world.answers
        assert world.sqs.deleted == ["receipt-0", "receipt-1", "receipt-2"]
        assert not ids & {message["MessageDeduplicationId"] for message in world.sqs.sent}, "it would be dropped"
        assert world.sent_again() == [("Create-one-alice", 1, 0), ("Create-one-bob", 1, 0), ("Create-one-carol", 1, 0)]
        world.at_create = []
        world.serve()
        assert [answer["Status"] for answer in world.answers] == ["SUCCESS"] * 3

    def test_going_back_clears_a_suspect(self, world: World) -> None:
        """It was begun and ran out of time, so nothing died of it."""
        world.arrives("alice")
        world.at_create = [BUSY] * 999
        world.serve(2)
        assert world.sent_again() == [("Create-one-alice", 1, 0)]

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


class TestDying:
    def test_a_batch_is_one_stacks(self, world: World) -> None:
        """Whatever a function dies of takes no other stack with it: the others go back before anything is begun."""
        world.arrives("alice")
        world.arrives("bob", stack="two")
        world.arrives("carol")
        world.serve()
        assert [answer["LogicalResourceId"] for answer in world.answers] == ["Alice", "Carol"]
        assert world.sent_again() == [("Create-two-bob", 1, 0)]

    @pytest.mark.parametrize(("receives", "says"), [(1, False), (2, True)])
    def test_after_a_death_the_log_says_at_what_the_next_one_may_die(
        self, receives: int, says: bool, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "usage_plan_key")
        world.arrives("alice")
        caplog.clear()
        world.serve(receives)
        assert any("Its turn has come: Create alice:free" in line for line in caplog.messages) is says

    def test_what_a_function_died_with_is_served_alone(self, world: World) -> None:
        """The others go back: it is to take none with it, and their count is not raised by what they did not begin."""
        for name in ("alice", "bob", "carol"):
            world.arrives(name)
        world.at_create = [Death()]
        with pytest.raises(Death):
            world.serve()
        for name in ("alice", "bob", "carol"):
            world.arrives(name)
        world.serve(2, 3, 1)
        assert [answer["LogicalResourceId"] for answer in world.answers] == ["Bob"]
        assert world.sqs.deleted == ["receipt-0", "receipt-2"]
        assert world.sent_again() == [("Create-one-alice", 1, 1), ("Create-one-carol", 1, 0)]
        world.serve(1, 1)  # Alice still is a suspect.
        assert [answer["LogicalResourceId"] for answer in world.answers] == ["Bob", "Alice"]
        world.serve()
        assert len(world.answers) == 3

    def test_the_last_time_it_is_answered_failed_before_anything_else(self, world: World) -> None:
        world.arrives("alice")
        assert world.serve(MOST_RECEIVES) == []
        assert world.answers[0]["Status"] == "FAILED"
        assert f"{MOST_RECEIVES - 1} invocations died" in world.answers[0]["Reason"]
        assert not world.api.calls

    def test_the_last_time_it_is_answered_though_nothing_can_be_put_back(self, world: World) -> None:
        """Whatever else fails: nothing ends in the dead-letter queue unanswered."""
        world.arrives("alice")
        world.arrives("bob", "Delete", PhysicalResourceId="bob:free")
        records = world.records(1, MOST_RECEIVES)
        world.sqs.fails = [ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "SendMessageBatch")]
        with pytest.raises(ClientError):
            world.function.by_queue(records, world)
        assert world.answers[0]["Status"] == "FAILED"
        assert "What stays attached: bob:free" in world.answers[0]["Reason"]

    def test_what_could_not_be_put_back_is_not_deleted(self, world: World) -> None:
        world.arrives("alice")
        world.arrives("bob", stack="two")
        world.arrives("carol", stack="three")
        world.sqs.refuses = ["1"]
        with pytest.raises(UnclearError):
            world.serve()
        assert world.sqs.deleted == ["receipt-1"]

    def test_the_last_time_an_answer_that_was_given_stands(self, world: World) -> None:
        world.arrives("alice")
        message = world.records()
        world.serve()
        world.function.by_queue([received(message[0], MOST_RECEIVES)], world)
        assert world.answers[0] == world.answers[1]
