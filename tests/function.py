"""Drives the function's tests: the function, with every service that it talks to in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from emulators.dynamodb import DynamoDb
from emulators.fake import ApiGateway as StrictApi
from emulators.fake import Key, Plan
from tests.memory import Clock, Inline
from usage_plan_key.api_gateway import ApiGateway
from usage_plan_key.ledger import Table
from usage_plan_key.model import Association, AssociationRecord, Holder, Note, ResourceRecord
from usage_plan_key.provider import Provider, about
from usage_plan_key.queue import Queue
from usage_plan_key.request import SIGNED_FOR, Request
from usage_plan_key.retry import Deadline

STACK = "arn:aws:cloudformation:eu-west-1:1:stack/{}/0"


def refusal(status: int, code: str, text: str = "") -> ClientError:
    error: Any = {"Error": {"Code": code, "Message": text}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(error, "CreateUsagePlanKey")


BUSY = refusal(409, "ConflictException", "Please try again later.")
DOWN = refusal(503, "ServiceUnavailable")
QUOTA = refusal(429, "LimitExceededException", "Maximum number reached")


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
        self.given_back: list[dict[str, int]] = []
        """For each call, the seconds for which each receipt's message is hidden."""
        self.fails: list[Exception] = []

    def send_message(self, **message: Any) -> dict[str, str]:
        if self.fails:
            raise self.fails.pop(0)
        (self.sent if message["QueueUrl"] == "https://queue" else self.aside).append(message)
        return {"MessageId": "sent"}

    def change_message_visibility_batch(
        self, *, QueueUrl: str, Entries: list[dict[str, Any]]
    ) -> dict[str, Any]:
        # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibilityBatch.html
        if self.fails:
            raise self.fails.pop(0)
        assert QueueUrl == "https://queue"
        assert 1 <= len(Entries) == len({entry["Id"] for entry in Entries}) <= 10
        self.given_back.append({entry["ReceiptHandle"]: entry["VisibilityTimeout"] for entry in Entries})
        return {"Successful": [{"Id": entry["Id"]} for entry in Entries]}


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
        self.db = DynamoDb()
        self.table = Table(self.db, "ledger")  # type: ignore[arg-type]  # a fake
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
            table=self.table,
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

    @property
    def holders(self) -> dict[Holder, ResourceRecord]:
        """The resources' pages."""
        return self.table.pages(Deadline(ends=math.inf, clock=self.clock)).records

    @property
    def held(self) -> dict[Association, AssociationRecord]:
        """The pages of associations that somebody holds."""
        pages = self.table.pages(Deadline(ends=math.inf, clock=self.clock)).entries
        return {association: entry for association, entry in pages.items() if entry.holders}

    def note(self, id_: str) -> Note:
        """What the ledger knows of a request."""
        return next(note for record in self.holders.values() for note in record.notes if note.id == id_)

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


def received(record: dict[str, Any], count: int = 2) -> dict[str, Any]:
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
