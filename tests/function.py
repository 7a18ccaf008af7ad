"""Drives the function's tests: the function, with every service that it talks to in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

from botocore.exceptions import ClientError

from emulators import fake
from emulators.dynamodb import DynamoDb
from tests.memory import Inline
from usage_plan_key import decide, retry
from usage_plan_key.api_gateway import ApiGateway
from usage_plan_key.custom_resource import CustomResource
from usage_plan_key.decide import Answer, Back, Facts, GoOn, Repeat, Step
from usage_plan_key.ledger import Table
from usage_plan_key.model import Holder, Snapshot
from usage_plan_key.provider import Provider
from usage_plan_key.queue import VISIBILITY
from usage_plan_key.request import SIGNED_FOR, Request
from usage_plan_key.retry import Clock as AnyClock

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
def still(guarded: Callable[[CustomResource], object] = lambda resource: None) -> Iterator[None]:
    """No dice, and no timer threads; `guarded` hears of each request that the guard would watch."""
    with (
        mock.patch.object(retry, "random", SimpleNamespace(uniform=lambda low, high: high)),
        mock.patch.object(CustomResource, "_set_timeout", guarded),
    ):
        yield


def record(body: str, number: int = 0, **attributes: str) -> dict[str, Any]:
    usual = {"ApproximateReceiveCount": "1", "MessageGroupId": "group", "SentTimestamp": "1764000000000"}
    return {
        "messageId": f"message-{number}",
        "receiptHandle": f"receipt-{number}",
        "attributes": usual | attributes,
        "body": body,
    }
