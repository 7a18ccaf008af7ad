"""Drives the function's tests: the function, with every service that it talks to in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from emulators.fake import ApiGateway as StrictApi
from emulators.fake import Key, Plan
from tests.memory import Clock, Inline, MemoryLedger
from usage_plan_key.api_gateway import ApiGateway
from usage_plan_key.provider import Provider, about
from usage_plan_key.queue import Queue
from usage_plan_key.request import SIGNED_FOR, Request
from usage_plan_key.retry import Deadline

STACK = "arn:aws:cloudformation:eu-west-1:1:stack/{}/0"


BUSY_REPLY: Any = {
    "Error": {"Code": "ConflictException", "Message": "Please try again later."},
    "ResponseMetadata": {"HTTPStatusCode": 409},
}
BUSY = ClientError(BUSY_REPLY, "CreateUsagePlanKey")


def throttled(seconds: int) -> ClientError:
    error = {"Code": "TooManyRequestsException", "Message": "Too Many Requests"}
    about = {"HTTPStatusCode": 429, "HTTPHeaders": {"retry-after": str(seconds)}}
    return ClientError({"Error": error, "ResponseMetadata": about}, "CreateUsagePlanKey")  # type: ignore[typeddict-item]


class Death(BaseException):
    """The function ends here and now."""


class Sqs:
    """A queue that records its messages; raises the errors in `fails` at its next calls."""

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
    """The function, with every service that it talks to in memory."""

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
        """How often the function made the sender ready."""
        self.unreachable = False
        self.at_delivery: Callable[[], object] = lambda: None
        self.seconds = 90.0
        self.stacks: dict[str, str | Exception] = {}
        """The status that CloudFormation gives for each stack, or its error."""
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
        said = self.stacks.get(
            StackName, ClientError({"Error": {"Code": "ValidationError", "Message": "?"}}, "DescribeStacks")
        )
        if isinstance(said, Exception):
            raise said
        return {"Stacks": [{"StackStatus": said}]} if said else {}

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
        """Accept any ResponseURL."""

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
        """Make a batch of the messages so far; `receives` and `first` say how often and since when."""
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
        """Serve a batch within the function's time; return the messages that it reports as failed."""
        self.ends = self.clock.now + self.seconds
        try:
            return [
                item["itemIdentifier"] for item in self.function.on_batch(records, self)["batchItemFailures"]
            ]
        finally:
            self.ends = math.inf

    def serve(self, *receives: int, first: float | None = None) -> list[str]:
        """Serve the messages so far."""
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
    """Make the same message, received so often."""
    return {**record, "attributes": {**record["attributes"], "ApproximateReceiveCount": str(count)}}


def denied(operation: str) -> ClientError:
    return ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, operation)


def log(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [
        (line.levelname, line.message) for line in caplog.records if line.name == "usage_plan_key.provider"
    ]


@pytest.fixture
def world() -> World:
    return World()
