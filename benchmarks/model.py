"""The parts around us, in virtual time: API Gateway, DynamoDB, SQS and Lambda, CloudFormation.

| part | takes |
|---|---|
| a create or a delete that API Gateway's door lets in, whatever comes of it | 300 ms |
| one that the door or the bucket refuses | nothing: the worst for whoever retries |
| a read from API Gateway | 50 ms |
| a call to DynamoDB or SQS | 10 ms |
| from the queue to the function | 50 ms |
| the PUT of an answer | 60 ms |
"""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, TypeVar, cast
from unittest import mock

from botocore.exceptions import ClientError

from tests.aws import fake
from tests.aws.rules import Bucket, Door
from usage_plan_key import answer, retry
from usage_plan_key.answer import Sender
from usage_plan_key.api_gateway import ApiGateway
from usage_plan_key.invocation import Invocation
from usage_plan_key.ledger import Table
from usage_plan_key.queue import MOST_RECEIVES, Queue
from usage_plan_key.request import Request
from usage_plan_key.retry import Deadline

from .world import Background, Death, Process, Signal, World

DOOR: Final = 0.3
READ: Final = 0.05
CALL: Final = 0.01
HOP: Final = 0.05
PUT: Final = 0.06
#: template.yaml's: the function's Timeout and the queue's VisibilityTimeout, BatchSize, MaximumConcurrency.
TIMEOUT: Final = 90.0
#: Seconds for which a received message is invisible; template.yaml has it.
VISIBILITY: Final = 360.0
BATCH: Final = 10
LANES: Final = 2
#: Lambda tries an asynchronous invocation again after so many seconds.
AGAIN: Final = (60.0, 120.0)

T = TypeVar("T")


class Gateway(fake.ApiGateway):
    """tests/aws/fake.py's API Gateway, taking its time."""

    def __init__(self, world: World) -> None:
        """An empty account."""
        super().__init__(Door(DOOR, world.time), Bucket(world.time))
        self._world = world
        self.refused: Counter[int] = Counter()
        self.history: list[tuple[float, int]] = []
        """When how many were attached."""
        self.poison = ""
        """What keys named poison… do to the function: crash, or hang."""

    def create_usage_plan_key(self, *, usagePlanId: str, keyId: str, keyType: str) -> dict[str, Any]:  # noqa: N803
        """CreateUsagePlanKey."""
        if keyId.startswith("poison") and self._world.process:
            if self.poison == "hang":
                self._world.sleep(1e6)
            self._world.kill(self._world.process)
            raise Death
        return super().create_usage_plan_key(usagePlanId=usagePlanId, keyId=keyId, keyType=keyType)

    def _call(self, operation: str) -> str:
        if self._world.frozen:
            return operation
        with self._counted():
            super()._call(operation)
        if operation.startswith("Get"):
            self._world.sleep(READ)
        return operation

    def _enter(self, operation: str) -> None:
        if not self._world.frozen:
            with self._counted():
                super()._enter(operation)

    def _leave(self) -> None:
        if not self._world.frozen and self.door:
            self.history.append((self._world.now, len(self.attached)))
            self._world.sleep(self.door.leave())

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            self.refused[error.response["ResponseMetadata"]["HTTPStatusCode"]] += 1
            raise


class DynamoDb:
    """One table: transactions on condition that a version is what it was."""

    def __init__(self, world: World) -> None:
        """An empty one."""
        self._world = world
        self.items: dict[str, dict[str, Any]] = {}
        self.meta = SimpleNamespace(region_name="eu-central-1")

    def transact_get_items(self, *, TransactItems: Sequence[Mapping[str, Any]]) -> dict[str, Any]:  # noqa: N803
        """TransactGetItems."""
        self._world.sleep(CALL / 2)
        found = [self.items.get(get["Get"]["Key"]["pk"]["S"]) for get in TransactItems]
        self._world.sleep(CALL / 2)
        return {"Responses": [{"Item": item} if item else {} for item in found]}

    def transact_write_items(self, *, TransactItems: Sequence[Mapping[str, Any]], **_: str) -> dict[str, Any]:  # noqa: N803
        """TransactWriteItems, all or nothing."""
        self._world.sleep(CALL / 2)
        changes = [(verb, change) for item in TransactItems for verb, change in item.items()]
        pks = [(change["Item"] if verb == "Put" else change["Key"])["pk"]["S"] for verb, change in changes]
        reasons = [
            {"Code": "None" if self._holds(change, self.items.get(pk)) else "ConditionalCheckFailed"}
            for pk, (_, change) in zip(pks, changes, strict=True)
        ]
        if any(reason["Code"] != "None" for reason in reasons):
            response = {"Error": {"Code": "TransactionCanceledException"}, "CancellationReasons": reasons}
            raise ClientError(cast("Any", response), "TransactWriteItems")
        for pk, (verb, change) in zip(pks, changes, strict=True):
            if verb == "Put":
                self.items[pk] = change["Item"]
            elif verb == "Delete":
                self.items.pop(pk, None)
            elif verb != "ConditionCheck":
                raise AssertionError(f"a part of a transaction that is not modelled: {verb}")
        self._world.sleep(CALL / 2)
        return {}

    @staticmethod
    def _holds(change: Mapping[str, Any], item: Mapping[str, Any] | None) -> bool:
        if change["ConditionExpression"] == "attribute_not_exists(pk)":
            return item is None
        if change["ConditionExpression"] != "version = :version":
            raise AssertionError(f"a condition that is not modelled: {change['ConditionExpression']}")
        return item is not None and item.get("version") == change["ExpressionAttributeValues"][":version"]


@dataclass(eq=False)
class _Held:
    """A message in the queue."""

    number: int
    group: str
    body: str
    receives: int = 0


@dataclass(eq=False)
class _Group:
    waiting: deque[_Held] = field(default_factory=deque)
    flying: dict[str, _Held] = field(default_factory=dict)


class Fifo:
    """An SQS FIFO queue: a group's messages in order, and none while others of it are in flight."""

    def __init__(self, world: World, visibility: float = VISIBILITY, *, mixing: bool = False) -> None:
        """An empty one.

        Args:
            world: The time.
            visibility: The queue's VisibilityTimeout.
            mixing: A batch takes from each group in turn, instead of as many as it can from one: the worst for neighbours.
        """
        self._world = world
        self._visibility = visibility
        self._mixing = mixing
        self._groups: dict[str, _Group] = {}
        self._seen: dict[tuple[str, str], float] = {}
        self._number = itertools.count()
        self.dead: list[_Held] = []
        self.filled = Signal(world)
        self.sent = 0

    def send_message(self, *, QueueUrl: str, **message: str) -> dict[str, Any]:  # noqa: N803
        """SendMessage; within five minutes the same one is taken once."""
        self._world.sleep(CALL / 2)
        self._accept(message)
        self._world.sleep(CALL / 2)
        return {}

    def send_message_batch(self, *, QueueUrl: str, Entries: list[dict[str, str]]) -> dict[str, Any]:  # noqa: N803
        """SendMessageBatch."""
        self._world.sleep(CALL / 2)
        for entry in Entries:
            self._accept(entry)
        self._world.sleep(CALL / 2)
        return {"Successful": [{"Id": entry["Id"]} for entry in Entries]}

    def delete_message_batch(self, *, QueueUrl: str, Entries: list[dict[str, str]]) -> dict[str, Any]:  # noqa: N803
        """DeleteMessageBatch."""
        self._world.sleep(CALL / 2)
        for entry in Entries:
            self.delete(entry["ReceiptHandle"])
        self._world.sleep(CALL / 2)
        return {}

    def _accept(self, message: dict[str, str]) -> None:
        group = message["MessageGroupId"]
        key = (group, message["MessageDeduplicationId"])
        if self._seen.get(key, -1e9) < self._world.now - 300:
            self._seen[key] = self._world.now
            self.sent += 1
            held = _Held(next(self._number), group, message["MessageBody"])
            self._groups.setdefault(group, _Group()).waiting.append(held)
            self.filled.set()

    def delete(self, receipt: str) -> None:
        """Take a message away; without a word if its receipt is no longer good."""
        group = self._groups[receipt.partition(" ")[0]]
        if group.flying.pop(receipt, None) and not group.flying:
            self.filled.set()

    def receive(self, most: int) -> list[dict[str, Any]]:
        """Receive as Lambda does: a batch that may mix groups."""
        taken: list[_Held] = []
        free = [group for group in self._groups.values() if group.waiting and not group.flying]
        free.sort(key=lambda group: group.waiting[0].number)
        share = max(1, most // max(1, len(free))) if self._mixing else most
        for group in free:
            turns = range(min(share, most - len(taken)))
            taken += [held for _ in turns if group.waiting and (held := self._take(group))]
        return [self._record(held) for held in taken]

    def _take(self, group: _Group) -> _Held | None:
        held = group.waiting.popleft()
        held.receives += 1
        if held.receives > MOST_RECEIVES:
            self.dead.append(held)
            return None
        return held

    def _record(self, held: _Held) -> dict[str, Any]:
        receipt = f"{held.group} {held.number} {held.receives}"
        self._groups[held.group].flying[receipt] = held
        self._world.at(self._visibility, partial(self._appear, held, receipt))
        attributes = {"ApproximateReceiveCount": str(held.receives), "MessageGroupId": held.group}
        return {"messageId": str(held.number), "receiptHandle": receipt, "body": held.body, "attributes": attributes}

    def _appear(self, held: _Held, receipt: str) -> None:
        group = self._groups[held.group]
        if group.flying.pop(receipt, None):
            group.waiting = deque(sorted([held, *group.waiting], key=lambda held: held.number))
            self.filled.set()


@dataclass
class Context:
    """Lambda's."""

    world: World
    ends: float
    aws_request_id: str = "invocation"
    log_stream_name: str = "stream"

    def get_remaining_time_in_millis(self) -> int:
        """How long the function may run yet."""
        return int((self.ends - self.world.time()) * 1000)


@dataclass(eq=False)
class Sent:
    """A request that CloudFormation has sent."""

    event: dict[str, Any]
    at: float
    answers: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    heard: Callable[[Sent], None] = lambda sent: None

    @property
    def answer(self) -> dict[str, Any] | None:
        """What CloudFormation takes: the first answer, within the hour."""
        return self.answers[0][1] if self.answers and self.answers[0][0] <= self.at + 3600 else None

    @property
    def success(self) -> bool:
        """Whether it was answered SUCCESS."""
        return bool(self.answer and self.answer["Status"] == "SUCCESS")


class Account:
    """CloudFormation, the deployed function, its table and queue, and API Gateway."""

    def __init__(
        self,
        seed: int,
        *,
        queue: bool = True,
        ledger: bool = True,
        timeout: float = TIMEOUT,
        batch: int = BATCH,
        lanes: int = LANES,
        mixing: bool = False,
        threads: int = 10,
    ) -> None:
        """An empty one.

        Args:
            seed: Of all that is random.
            queue: Whether requests pass through it; else they are served where they arrive.
            ledger: Whether there is a table; else events are taken at their word.
            timeout: The function's.
            batch: The event source's BatchSize.
            lanes: Its MaximumConcurrency.
            mixing: See `Fifo`.
            threads: Of the background that delivers answers.
        """
        self.world = World(seed)
        self.gateway = Gateway(self.world)
        self.table = DynamoDb(self.world)
        self.fifo = Fifo(self.world, mixing=mixing)
        self.sent: dict[str, Sent] = {}
        self.unanswered: list[Sent] = []
        """What Lambda gave up: three attempts at handing a request over have failed."""
        self.fate: Callable[[Sequence[Mapping[str, Any]]], int | None] = lambda events: None
        """After how many steps a function dies that serves these; None for never."""
        self.deaths = 0
        self.waiting: dict[str, float] = {}
        self._timeout, self._batch, self._queue, self._ledger, self._threads = timeout, batch, queue, ledger, threads
        self._ids = itertools.count(1)
        for _ in range(lanes if queue else 0):
            self.world.spawn(self._lane)

    def invocation(self) -> Invocation:
        """A new execution environment of the function."""
        return Invocation(
            api=ApiGateway(cast("Any", self.gateway)),
            table=Table(cast("Any", self.table), "ledger") if self._ledger else None,
            queue=Queue(cast("Any", self.fifo), "queue") if self._queue and not self.world.frozen else None,
            sender=cast("Sender", _Put(self)),
            clock=self.world,
            background=lambda: Background(self.world, self._threads),
        )

    def send(
        self,
        kind: str,
        stack: str,
        logical: str,
        key: str,
        plan: str,
        physical_id: str | None = None,
        *,
        delays: Sequence[float] = (0.0,),
        on_existing: str = "Fail",
        heard: Callable[[Sent], None] = lambda sent: None,
    ) -> Sent:
        """Send a request, now; it is handed in after `delays` (more than one: it comes again)."""
        signed = datetime.fromtimestamp(self.world.time(), UTC).strftime("%Y%m%dT%H%M%SZ")
        id_ = f"request-{next(self._ids)}"
        event = {
            "RequestType": kind,
            "RequestId": id_,
            "StackId": f"arn:aws:cloudformation:eu-central-1:1:stack/{stack}/1",
            "LogicalResourceId": logical,
            "ResponseURL": f"https://cloudformation.s3.amazonaws.com/?X-Amz-Date={signed}",
            "ResourceProperties": {"KeyId": key, "UsagePlanId": plan, "OnExisting": on_existing},
        }
        if physical_id is not None:
            event["PhysicalResourceId"] = physical_id
        sent = self.sent[id_] = Sent(event, self.world.now, heard=heard)
        for delay in delays:
            self.world.at(delay, partial(self.world.spawn, self._hand_in, sent))
        return sent

    def prepare(self, kind: str, stack: str, logical: str, key: str, plan: str) -> None:
        """Have a request served in no time, before the beginning."""
        self.world.frozen = True
        sent = self.send(kind, stack, logical, key, plan, delays=())
        self.invocation().by_cloudformation(sent.event, Context(self.world, self.world.time() + 900))
        if not sent.success:
            raise AssertionError(sent.answers)
        self.world.frozen = False

    def run(self) -> None:
        """Let time pass until all is done."""
        with _simulated(self.world):
            self.world.run()

    def _hand_in(self, sent: Sent) -> None:
        """Lambda's asynchronous invocation: two more attempts after an error."""
        for pause in (*AGAIN, None):
            time = self._timeout if self._queue else 900.0
            process = Process(self.world.time() + time, self.fate([]) if self._queue else self.fate([sent.event]))
            call = partial(self.invocation().by_cloudformation, sent.event, Context(self.world, process.ends))
            try:
                self.world.within(process, call)
            except (Exception, Death) as error:  # noqa: BLE001  # a function may end in any way
                self.deaths += isinstance(error, Death)
            else:
                return
            if pause is not None:
                self.world.sleep(pause)
        self.unanswered.append(sent)

    def _lane(self) -> None:
        """One of the functions that Lambda lets serve the queue at one time."""
        environment = self.invocation()
        while True:
            batch = self.fifo.receive(self._batch)
            if not batch:
                self.fifo.filled.wait()
                continue
            self.world.sleep(HOP)
            events = [json.loads(record["body"])["event"] for record in batch]
            process = Process(self.world.time() + self._timeout, self.fate(events))
            call = partial(environment.by_queue, batch, Context(self.world, process.ends))
            try:
                reply = self.world.within(process, call)
            except (Exception, Death):  # noqa: BLE001  # a function may end in any way; its messages come again
                self.deaths += 1
                environment = self.invocation()
                continue
            failed = {failure["itemIdentifier"] for failure in reply["batchItemFailures"]}
            for record in batch:
                if record["messageId"] not in failed:
                    self.fifo.delete(record["receiptHandle"])


class _Put:
    """Stands in for `answer.Sender`: CloudFormation takes an answer in 60 ms."""

    def __init__(self, account: Account) -> None:
        self._account = account

    def prepare(self) -> None:
        """It is ready."""

    def deliver(self, request: Request, deadline: Deadline, body: bytes) -> None:
        world = self._account.world
        world.sleep(PUT / 2)
        sent = self._account.sent[request.id]
        sent.answers.append((world.now, json.loads(body)))
        if len(sent.answers) == 1:
            sent.heard(sent)
        world.sleep(PUT / 2)


@contextmanager
def _simulated(world: World) -> Iterator[None]:
    """What is not handed in to the function's code: its dice, and crhelper's guard, a timer in real time."""
    logging.disable(logging.CRITICAL)
    try:
        with mock.patch.object(retry, "random", world.dice), mock.patch.object(answer.Resource, "_set_timeout"):
            yield
    finally:
        logging.disable(logging.NOTSET)
