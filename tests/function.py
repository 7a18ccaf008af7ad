"""Drives the function's tests: the function, with every service that it talks to in memory."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import pytest
from botocore.exceptions import ClientError

from emulators import fake
from emulators.dynamodb import DynamoDb
from emulators.fake import Key, Plan
from tests.memory import Clock, Inline
from usage_plan_key import decide, retry
from usage_plan_key.api_gateway import ApiGateway
from usage_plan_key.custom_resource import CustomResource
from usage_plan_key.decide import Answer, Back, Facts, GoOn, Repeat, Step
from usage_plan_key.ledger import Table
from usage_plan_key.model import Association, AssociationRecord, Holder, Note, ResourceRecord, Snapshot
from usage_plan_key.provider import Provider, about
from usage_plan_key.queue import VISIBILITY, Queue
from usage_plan_key.request import SIGNED_FOR, Request
from usage_plan_key.retry import Clock as AnyClock
from usage_plan_key.retry import Deadline

STACK = "arn:aws:cloudformation:eu-west-1:1:stack/{}/0"
SIGNATURE = "marked-signature"
Pair = tuple[str, str]
"""A key and a plan."""


def refusal(status: int, code: str, text: str = "", **headers: str) -> ClientError:
    about: Any = {"HTTPStatusCode": status, "HTTPHeaders": headers}
    return ClientError({"Error": {"Code": code, "Message": text}, "ResponseMetadata": about}, "Call")


def throttled(seconds: float) -> ClientError:
    return refusal(429, "TooManyRequestsException", "Too Many Requests", **{"retry-after": str(seconds)})


def cancelled(*codes: str) -> ClientError:
    """DynamoDB's refusal of a transaction."""
    error = refusal(400, "TransactionCanceledException")
    error.response["CancellationReasons"] = [{"Code": code} for code in codes]
    return error


BUSY = refusal(409, "ConflictException", "Please try again later.")
DOWN = refusal(503, "ServiceUnavailable")
QUOTA = refusal(429, "LimitExceededException", "Maximum number reached")


class Death(BaseException):
    """Lambda ends the function here and now."""


class BrokenError(BaseException):
    """Raised at a broken promise; the function catches every Exception."""


class _Line:
    """A client of the function's; `Services.call` decides on the fate of its calls."""

    def __init__(self, services: Services, client: Any) -> None:
        self._services, self._client = services, client
        self.meta, self.exceptions = (getattr(client, name, None) for name in ("meta", "exceptions"))

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def call(**named: Any) -> Any:
            about = (named["keyId"], named["usagePlanId"]) if {"keyId", "usagePlanId"} <= {*named} else None
            return self._services.call(operation, partial(getattr(self._client, operation), **named), about)

        return call


class Message(NamedTuple):
    """A message in the queue."""

    request: str
    group: str
    body: str
    sent: float
    visible: float = 0.0
    receives: int = 0
    first: float = 0.0

    @property
    def receipt(self) -> str:
        """The handle of its last receive."""
        return f"{self.request} {self.receives}"

    def received(self, now: float) -> Message:
        """The message once the queue has handed it out."""
        return self._replace(receives=self.receives + 1, visible=now + VISIBILITY, first=self.first or now)

    def record(self) -> dict[str, Any]:
        """The message in a batch."""
        delivered = record(
            self.body,
            MessageGroupId=self.group,
            ApproximateReceiveCount=str(self.receives),
            ApproximateFirstReceiveTimestamp=str(int(self.first * 1000)),
            SentTimestamp=str(int(self.sent * 1000)),
        )
        return delivered | {"messageId": self.request, "receiptHandle": self.receipt}


class Services:
    """What is around the function: Lambda's context, the services that it calls, and the way of an answer."""

    aws_request_id = "8c5a3a0e"
    function_name = "usage-plan-key"
    invoked_function_arn = "arn:aws:lambda:eu-west-1:1:function:usage-plan-key"
    log_group_name = "/aws/lambda/usage-plan-key"
    log_stream_name = "stream"
    now = 1_764_000_000.0
    messages: dict[str, Message]
    """The queue's, by RequestId."""
    leaving: dict[Pair, float]
    """What is detached, and when it leaves: DeleteUsagePlanKey answers 202."""

    def __init__(self, clock: AnyClock | None = None) -> None:
        self.clock, self.ends = clock or self, math.inf
        self.api, self.db = fake.ApiGateway(), DynamoDb()

    def line(self, client: Any) -> Any:
        """Connect the function with a client."""
        return _Line(self, client)

    def provider(self, **more: Any) -> Provider:
        usual = {
            "api": ApiGateway(self.line(self.api)),
            "table": Table(self.line(self.db), "ledger"),
            "sender": self,
            "clock": self.clock,
            "background": Inline,
        }
        return Provider(**{**usual, **more})

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.now += seconds
        for one in [one for one, due in self.leaving.items() if due <= self.now]:
            del self.leaving[one]
            self.api.attached.discard(one)
            self.say(f"{':'.join(one)} leaves now")

    def say(self, text: str) -> None:
        """Note what happens."""

    def call(self, operation: str, make: Callable[[], Any], about: Pair | None = None) -> Any:
        """A call of the function's meets its fate."""
        return make()

    def get_remaining_time_in_millis(self) -> int:
        return int(1000 * (self.ends - self.clock.time()))

    def send_message(self, *, QueueUrl: str, MessageBody: str, MessageGroupId: str, **_: str) -> Any:
        if QueueUrl != "queue":
            raise BrokenError("a message is put aside")
        id_ = json.loads(MessageBody)["event"]["RequestId"]
        self.messages.setdefault(id_, Message(id_, MessageGroupId, MessageBody, self.clock.time()))
        return {"MessageId": id_}

    def change_message_visibility_batch(self, *, Entries: Sequence[Mapping[str, Any]], **_: str) -> Any:
        until = {one["ReceiptHandle"]: self.clock.time() + one["VisibilityTimeout"] for one in Entries}
        for id_, one in self.messages.items():
            self.messages[id_] = one._replace(visible=until.get(one.receipt, one.visible))
        return {"Successful": [{"Id": one["Id"]} for one in Entries], "Failed": []}

    def prepare(self) -> None:
        """There is nothing to prepare."""

    def check(self, request: Request) -> None:
        """Every ResponseURL may have the answer."""


def event(
    kind: str, id_: str, holder: Holder, properties: dict[str, str], issued: float | None, **more: Any
) -> dict[str, Any]:
    """Make an event as CloudFormation signs it; an emulator gives no date."""
    date = "" if issued is None else f"Expires={int(issued) + SIGNED_FOR}&"
    return {
        "RequestType": kind,
        "RequestId": id_,
        "StackId": holder.stack_id,
        "LogicalResourceId": holder.logical_id,
        "ResponseURL": f"https://bucket/{id_}?{date}X-Amz-Signature={SIGNATURE}",
        "ResourceProperties": properties,
    } | more


def decided(pages: Snapshot, request: Request, facts: Facts) -> Step:
    """`next_step`; and decided again on what it writes, it is the same."""
    step = decide.next_step(pages, request, facts)
    if isinstance(step.act, GoOn):  # Its name says that the next decision is another one.
        return step
    again = decide.next_step(step.pages, request, facts._replace(begins=False)).act
    same = type(again) is type(step.act) and (isinstance(again, Back) or again[:1] == step.act[:1])
    if not (same or (isinstance(step.act, Answer) and isinstance(again, Repeat))):
        raise BrokenError(f"it decides anew on what it has written: {step.act}, then {again}")
    return step


@contextmanager
def still() -> Iterator[None]:
    """No dice, and no timer threads."""
    with (
        mock.patch.object(retry, "random", SimpleNamespace(uniform=lambda low, high: high)),
        mock.patch.object(CustomResource, "_set_timeout"),
    ):
        yield


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


class World(Services):
    """The function and its queue, with a fate for each CreateUsagePlanKey."""

    def __init__(self) -> None:
        super().__init__(Clock())
        self.clock: Clock
        self.api.plans = {"free": Plan("Free", (("api", "prod"),))}
        self.api.keys = {name: Key(name, f"value-of-{name}") for name in ("alice", "bob", "carol", "dora")}
        self.sqs = Sqs()
        self.table = Table(self.db, "ledger")  # type: ignore[arg-type]  # a fake
        self.answers: list[dict[str, Any]] = []
        self.prepared = 0  # How often the function made the sender ready
        self.unreachable = False
        self.at_delivery: Callable[[], object] = lambda: None
        self.seconds = 90.0
        self.stacks: dict[str, str | Exception] = {}
        """The status that CloudFormation gives for each stack, or its error."""
        queue = Queue(self.sqs, "https://queue", "https://undelivered")  # type: ignore[arg-type]  # a fake
        self.function = self.provider(table=self.table, queue=queue, cloudformation=lambda: self)
        self.at_create: list[BaseException] = []
        self.before_create: Callable[[], object] = lambda: None

    def get_remaining_time_in_millis(self) -> int:
        return int((min(self.ends, self.clock.now + self.seconds) - self.clock.now) * 1000)

    def describe_stacks(self, *, StackName: str) -> dict[str, Any]:
        said = self.stacks.get(
            StackName, ClientError({"Error": {"Code": "ValidationError", "Message": "?"}}, "DescribeStacks")
        )
        if isinstance(said, Exception):
            raise said
        return {"Stacks": [{"StackStatus": said}]} if said else {}

    def call(self, operation: str, make: Callable[[], Any], about: Pair | None = None) -> Any:
        if operation == "create_usage_plan_key":
            self.before_create()
            if self.at_create:
                raise self.at_create.pop(0)
        return make()

    def prepare(self) -> None:
        self.prepared += 1

    def deliver(self, request: Request, deadline: Deadline, body: bytes) -> None:
        assert about.get()["RequestId"] == request.id
        self.at_delivery()
        if self.unreachable:
            raise OSError
        self.answers.append(json.loads(body))

    def arrives(self, name: str, kind: str = "Create", stack: str = "one", **more: Any) -> dict[str, Any]:
        holder = Holder(STACK.format(stack), name.title())
        wants = {"KeyId": name, "UsagePlanId": "free"}
        asked = event(kind, f"{kind}-{stack}-{name}", holder, wants, self.clock.now, **more)
        assert self.function.on_event(asked, self) is None
        return asked

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
def world() -> Iterator[World]:
    log = logging.getLogger("usage_plan_key")
    level = log.level
    log.setLevel(logging.NOTSET)  # app's own tests leave a level behind.
    yield World()
    log.setLevel(level)
