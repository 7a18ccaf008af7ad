"""The services around the function, in virtual time: API Gateway, DynamoDB, SQS and Lambda, CloudFormation.

| step | takes |
|---|---|
| a create or a delete that API Gateway serves, whatever its result | 300 ms |
| a create or a delete that API Gateway refuses as busy or throttled | nothing: the worst case for retries |
| a read from API Gateway | 50 ms |
| a call to DynamoDB or SQS | 10 ms |
| from the queue to the function | 50 ms |
| the PUT of an answer | 60 ms |
"""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from heapq import nsmallest
from types import SimpleNamespace
from typing import Any, Final, TypeVar, cast
from unittest import mock

from botocore.exceptions import ClientError

from emulators import fake
from emulators.rules import Bucket, OneAtATime, Refusal
from usage_plan_key import custom_resource, retry
from usage_plan_key.api_gateway import ApiGateway
from usage_plan_key.ledger import Table
from usage_plan_key.provider import Provider
from usage_plan_key.queue import VISIBILITY, Queue
from usage_plan_key.request import Request
from usage_plan_key.response import Sender
from usage_plan_key.retry import Deadline

from .world import Background, Death, Process, Signal, World

SERIAL_CALL: Final = 0.3
READ: Final = 0.05
CALL: Final = 0.01
HOP: Final = 0.05
PUT: Final = 0.06
#: template.yaml's: the function's Timeout, and the queue's maxReceiveCount, BatchSize, MaximumConcurrency.
TIMEOUT: Final = 90.0
MOST_RECEIVES: Final = 1000
BATCH: Final = 10
WORKERS: Final = 2
#: Lambda tries an asynchronous invocation again after AGAIN seconds if it failed. If the account has no
#: concurrency left, Lambda waits for NO_ROOM: the first of these seconds, doubled each time up to the second.
#: https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-error-handling.html
AGAIN: Final = (60.0, 120.0)
NO_ROOM: Final = (1.0, 300.0)
#: SQS hides a message for so many seconds at most.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html
LONGEST_VISIBILITY: Final = 43_200
EXPIRED: Final = {"Code": "InvalidParameterValue", "Message": "The receipt handle has expired"}
#: Items of a transaction at most.
#: https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TransactGetItems.html
MOST_ITEMS: Final = 100
#: Lambda stops a function after this many invocations in one chain, if it sends messages to its own queue.
#: https://docs.aws.amazon.com/lambda/latest/dg/invocation-recursion.html
MOST_ROUNDS: Final = 16

T = TypeVar("T")


class Gateway(fake.ApiGateway):
    """The API Gateway of emulators/fake.py, whose calls take virtual time."""

    def __init__(self, world: World) -> None:
        """An empty account."""
        super().__init__(OneAtATime(SERIAL_CALL, world.time), Bucket(world.time))
        self._world = world
        self.refused: Counter[int] = Counter()
        self.history: list[tuple[float, int]] = []
        """How many keys were attached, and when."""
        self.crashers = ""
        """How keys named crasher… end the function: it crashes, or it hangs."""
        self.shut: tuple[float, int | None] = 0.0, None
        """API Gateway throttles every call until this time, with this `Retry-After`."""
        self.stuck: dict[str, Refusal] = {}
        """How API Gateway refuses every create of these keys."""

    def create_usage_plan_key(self, *, usagePlanId: str, keyId: str, keyType: str) -> dict[str, Any]:  # noqa: N803
        """CreateUsagePlanKey."""
        if keyId.startswith("crasher") and self._world.process:
            if self.crashers == "hang":
                self._world.sleep(1e6)
            self._world.kill(self._world.process)
            raise Death
        if keyId in self.stuck:
            operation = self._call("CreateUsagePlanKey")
            with self._counted():
                fake._raise(self.stuck[keyId], operation)  # noqa: SLF001  # a part of it
        return super().create_usage_plan_key(usagePlanId=usagePlanId, keyId=keyId, keyType=keyType)

    def _call(self, operation: str) -> str:
        if self._world.frozen:
            return operation
        with self._counted():
            super()._call(operation)
            until, retry_after = self.shut
            if self._world.now < until:
                refusal = Refusal(429, "TooManyRequestsException", "Too Many Requests", retry_after)
                fake._raise(refusal, operation)  # noqa: SLF001  # a part of it
        if operation.startswith("Get"):
            self._world.sleep(READ)
        return operation

    def _enter(self, operation: str) -> None:
        if not self._world.frozen:
            with self._counted():
                super()._enter(operation)

    def _leave(self) -> None:
        if not self._world.frozen and self.one_at_a_time:
            self.history.append((self._world.now, len(self.attached)))
            self._world.sleep(self.one_at_a_time.leave())

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            self.refused[error.response["ResponseMetadata"]["HTTPStatusCode"]] += 1
            raise


class DynamoDb:
    """One table, with transactions that check a version."""

    def __init__(self, world: World) -> None:
        """An empty one."""
        self._world = world
        self.items: dict[str, dict[str, Any]] = {}
        self.meta = SimpleNamespace(region_name="eu-central-1")

    def transact_get_items(self, *, TransactItems: Sequence[Mapping[str, Any]]) -> dict[str, Any]:  # noqa: N803
        """TransactGetItems."""
        if not 1 <= len(TransactItems) <= MOST_ITEMS:
            raise AssertionError(f"no transaction that DynamoDB takes: {len(TransactItems)} items")
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

    def has_answer(self, event: Mapping[str, Any]) -> bool:
        """Tell whether the ledger has an answer to a request."""
        page = self.items.get(f"holder#{event['StackId']}#{event['LogicalResourceId']}", {})
        notes = (note["M"] for note in page.get("notes", {"L": []})["L"])
        return any(note["id"]["S"] == event["RequestId"] and "answer" in note for note in notes)

    @staticmethod
    def _holds(change: Mapping[str, Any], item: Mapping[str, Any] | None) -> bool:
        if change["ConditionExpression"] == "attribute_not_exists(pk)":
            return item is None
        if change["ConditionExpression"] != "version = :version":
            raise AssertionError(f"a condition that is not modelled: {change['ConditionExpression']}")
        return item is not None and item.get("version") == change["ExpressionAttributeValues"][":version"]


@dataclass(eq=False)
class _Message:
    """A message in the queue, in flight while it has a receipt. `rounds`: the invocations in its chain."""

    number: int
    group: str
    body: str
    sent: float
    rounds: int
    receives: int = 0
    first: float = 0.0
    receipt: str = ""
    hidden: float = 0.0


class Fifo:
    """An SQS FIFO queue, and its dead-letter queue.

    It delivers a group's messages in order, up to the first that is in flight or hidden:
    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/FIFO-queues-understanding-logic.html
    and https://github.com/localstack/localstack/pull/13386. SQS promises no order between groups, "messages
    with different message group ID values might be sent and received out of order", so the model has two.
    """

    URL: Final = "requests"

    def __init__(self, world: World, *, worst: bool = False, at_random: bool = False) -> None:
        """An empty one.

        Args:
            world: The time.
            worst: A batch takes one message of each group in turn, the worst case for other stacks.
                Otherwise it takes as many as it can of one group, then of the next, as SQS's page says. No
                document says how Lambda's poller takes them.
            at_random: Any group comes first. Otherwise that with the oldest message does, as AWS's blog says:
                https://aws.amazon.com/blogs/compute/solving-complex-ordering-challenges-with-amazon-sqs-fifo-queues/
        """
        self._world = world
        self._worst, self._at_random = worst, at_random
        self._groups: dict[str, list[_Message]] = {}
        self._ready: dict[str, int] = {}
        """The groups whose first message can be received, and that message's number."""
        self._flying: dict[str, _Message] = {}
        self._seen: dict[tuple[str, str], float] = {}
        self._number = itertools.count()
        self.dead: list[str] = []
        """The bodies of the messages in the dead-letter queue."""
        self.filled = Signal(world)
        self.receives = self.rounds = 0
        """How often the queue delivered one message, at most."""

    def send_message(
        self,
        *,
        QueueUrl: str,  # noqa: N803
        MessageBody: str,  # noqa: N803
        MessageGroupId: str,  # noqa: N803
        MessageDeduplicationId: str,  # noqa: N803
    ) -> dict[str, Any]:
        """SendMessage; the queue drops a duplicate within five minutes."""
        self._world.sleep(CALL / 2)
        key, now = (MessageGroupId, MessageDeduplicationId), self._world.now
        if QueueUrl != self.URL:
            self.dead.append(MessageBody)
        elif self._seen.get(key, -1e9) < now - 300:
            self._seen[key] = now
            rounds = self._world.process.rounds if self._world.process else 0
            message = _Message(next(self._number), MessageGroupId, MessageBody, self._world.time(), rounds)
            self._groups.setdefault(MessageGroupId, []).append(message)
            self._refresh(MessageGroupId)
        self._world.sleep(CALL / 2)
        return {"MessageId": MessageDeduplicationId}

    def change_message_visibility_batch(
        self,
        *,
        QueueUrl: str,  # noqa: N803
        Entries: Sequence[Mapping[str, Any]],  # noqa: N803
    ) -> dict[str, Any]:
        """ChangeMessageVisibilityBatch; SQS takes ten entries, and answers each by its own.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibilityBatch.html
        """
        if not 1 <= len({entry["Id"] for entry in Entries}) == len(Entries) <= 10:
            raise AssertionError(f"no batch that SQS takes: {Entries}")
        self._world.sleep(CALL / 2)
        changed = [self._change(entry["ReceiptHandle"], entry["VisibilityTimeout"]) for entry in Entries]
        self._world.sleep(CALL / 2)
        return {
            "Successful": [{"Id": entry["Id"]} for entry, done in zip(Entries, changed, strict=True) if done],
            "Failed": [
                {"Id": entry["Id"], "SenderFault": True, **EXPIRED}
                for entry, done in zip(Entries, changed, strict=True)
                if not done
            ],
        }

    def delete(self, receipt: str) -> None:
        """Take a message away; ignore a receipt that is no longer valid."""
        if message := self._flying.pop(receipt, None):
            self._remove(message)

    def depth(self) -> tuple[int, int, float]:
        """Tell how many messages are in flight and how many are not, and the oldest one's age.

        SQS leaves messages out of that age that it has delivered three times or more.
        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-available-cloudwatch-metrics.html
        """
        every = [message for group in self._groups.values() for message in group]
        sent = [message.sent for message in every if message.receives < 3]
        oldest = self._world.time() - min(sent, default=self._world.time())
        return len(self._flying), len(every) - len(self._flying), oldest

    def before(self, message: _Message) -> list[_Message]:
        """List the messages that stand before this one in its group."""
        group = self._groups.get(message.group, [])
        return group[: group.index(message)] if message in group else []

    def receive(self, most: int) -> list[_Message]:
        """Receive as Lambda does: a batch that may mix groups."""
        if self._at_random:
            names = self._world.dice.sample(list(self._ready), min(most, len(self._ready)))
        else:
            names = nsmallest(most, self._ready, key=self._ready.__getitem__)
        heads = [
            list(itertools.takewhile(lambda message: not message.receipt, self._groups[name][:most]))
            for name in names
        ]
        found = itertools.chain(*(itertools.zip_longest(*heads) if self._worst else heads))
        received = [message for message in found if message][:most]
        return [message for message in received if self._take(message)]

    def _take(self, message: _Message) -> bool:
        message.receives += 1
        message.first = message.first or self._world.time()
        self.receives, self.rounds = max(self.receives, message.receives), max(self.rounds, message.rounds)
        if message.receives > MOST_RECEIVES:
            self._remove(message)
            self.dead.append(message.body)
            return False
        message.receipt = f"{message.number} {message.receives}"
        self._flying[message.receipt] = message
        self._hide(message, VISIBILITY)
        self._refresh(message.group)
        return True

    def _remove(self, message: _Message) -> None:
        self._groups[message.group].remove(message)
        self._refresh(message.group)

    def _change(self, receipt: str, seconds: int) -> bool:
        if not 0 <= seconds <= LONGEST_VISIBILITY:
            raise AssertionError(f"no visibility time-out that SQS takes: {seconds}")
        if message := self._flying.get(receipt):
            self._hide(message, seconds)
        return message is not None

    def _hide(self, message: _Message, seconds: float) -> None:
        message.hidden = self._world.now + seconds
        self._world.at(seconds, partial(self._appear, message, message.hidden))

    def _appear(self, message: _Message, hidden: float) -> None:
        if (
            message.receipt and message.hidden == hidden
        ):  # Otherwise somebody has changed its time-out or received it again.
            self._flying.pop(message.receipt, None)
            message.receipt = ""
            self._refresh(message.group)

    def _refresh(self, name: str) -> None:
        """See whether a group can be received now; there are too many to look through at each receive."""
        group = self._groups.get(name)
        if not group:
            self._groups.pop(name, None)
        if group and not group[0].receipt:
            self._ready[name] = group[0].number
            self.filled.set()
        else:
            self._ready.pop(name, None)


def _record(message: _Message) -> dict[str, Any]:
    """A message as Lambda hands it to the function."""
    attributes = {
        "ApproximateReceiveCount": str(message.receives),
        "ApproximateFirstReceiveTimestamp": str(int(message.first * 1000)),
        "SentTimestamp": str(int(message.sent * 1000)),
        "MessageGroupId": message.group,
    }
    return {
        "messageId": str(message.number),
        "receiptHandle": message.receipt,
        "body": message.body,
        "attributes": attributes,
    }


@dataclass
class Context:
    """Lambda's context."""

    world: World
    ends: float
    aws_request_id: str = "invocation"
    function_name: str = "usage-plan-key"
    invoked_function_arn: str = "arn:aws:lambda:eu-central-1:1:function:usage-plan-key"
    log_group_name: str = "/aws/lambda/usage-plan-key"
    log_stream_name: str = "stream"

    def get_remaining_time_in_millis(self) -> int:
        """Tell how much longer the function may run."""
        return int((self.ends - self.world.time()) * 1000)


@dataclass(eq=False)
class Sent:
    """A request that CloudFormation has sent."""

    event: dict[str, Any]
    at: float
    answers: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    heard: Callable[[Sent], None] = lambda sent: None

    @property
    def resource(self) -> tuple[str, str]:
        """Its stack's name and its logical id."""
        return self.event["StackId"].split("/")[1], self.event["LogicalResourceId"]

    @property
    def answer(self) -> dict[str, Any] | None:
        """The answer that CloudFormation takes: the first one within the hour."""
        return self.answers[0][1] if self.answers and self.answers[0][0] <= self.at + 3600 else None

    @property
    def success(self) -> bool:
        """Whether its answer is SUCCESS."""
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
        workers: int = WORKERS,
        worst: bool = False,
        at_random: bool = False,
        without_room: float = 0.0,
        threads: int = 10,
    ) -> None:
        """An empty one.

        Args:
            seed: Of all that is random.
            queue: Whether requests pass through it; else the function serves each at once.
            ledger: Whether there is a table; else the function takes events at their word.
            timeout: The function's.
            batch: The event source's BatchSize.
            workers: Its MaximumConcurrency.
            worst: See `Fifo`.
            at_random: See `Fifo`.
            without_room: The share of invocations for which the account has no concurrency left: others use
                it.
            threads: Of the background that delivers answers.
        """
        self.world = World(seed)
        self.gateway = Gateway(self.world)
        self.table = DynamoDb(self.world)
        self.fifo = Fifo(self.world, worst=worst, at_random=at_random)
        self.sent: dict[str, Sent] = {}
        self.unanswered: list[Sent] = []
        """The requests that Lambda gave up after three attempts."""
        self.without_room = without_room
        self.fate: Callable[[Sequence[Mapping[str, Any]]], int | None] = lambda events: None
        """A function that serves these dies after so many steps; None for never."""
        self.deaths = self.invocations = 0
        """How often the function died, and how often the queue invoked it."""
        self.billed = 0.0
        """Seconds that all invocations took."""
        self.overtaken: list[tuple[str, str]] = []
        """Requests that waited in their stack, each with a later one whose answer came first."""
        self._messages: dict[str, _Message] = {}
        self._latest: dict[tuple[str, str], Sent] = {}
        self._timeout, self._batch, self._queue, self._ledger, self._threads = (
            timeout,
            batch,
            queue,
            ledger,
            threads,
        )
        self._ids = itertools.count(1)
        for _ in range(workers if queue else 0):
            self.world.spawn(self._worker)

    def invocation(self) -> Provider:
        """Make a new execution environment of the function."""
        return Provider(
            api=ApiGateway(cast("Any", self.gateway)),
            table=Table(cast("Any", self.table), "ledger") if self._ledger else None,
            queue=Queue(cast("Any", self.fifo), Fifo.URL, "undelivered")
            if self._queue and not self.world.frozen
            else None,
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
        """Send a request now; Lambda hands it in after each of `delays`."""
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
        sent = self.sent[id_] = self._latest[stack, logical] = Sent(event, self.world.now, heard=heard)
        for delay in delays:
            self.world.at(delay, partial(self.world.spawn, self._hand_in, sent))
        return sent

    def prepare(self, kind: str, stack: str, logical: str, key: str, plan: str) -> None:
        """Serve a request before time begins."""
        self.world.frozen = True
        sent = self.send(kind, stack, logical, key, plan, delays=())
        self.invocation().on_event(sent.event, Context(self.world, self.world.time() + 900))
        if not sent.success:
            raise AssertionError(sent.answers)
        self.world.frozen = False

    def run(self) -> None:
        """Let time pass until nothing remains to do.

        Raises:
            AssertionError: The function has answered a request before an earlier one of its stack.
        """
        with _simulated(self.world):
            self.world.run()
        if self.overtaken:
            raise AssertionError(f"(overtaken, by): {self.overtaken}")

    def check_order(self, sent: Sent) -> None:
        """Look whether an answer comes before that of an earlier request of the stack, which still waits.

        No request waits that CloudFormation has given up for a later one of its resource, or whose answer the
        ledger has: a function died while it delivered that, and delivers it again.
        """
        message = self._messages.get(sent.event["RequestId"])
        for earlier in self.fifo.before(message) if message else ():
            id_ = json.loads(earlier.body)["event"]["RequestId"]
            waiting = self.sent[id_]
            if not (
                waiting.answers
                or self._latest[waiting.resource] is not waiting
                or self.table.has_answer(waiting.event)
            ):
                self.overtaken.append((id_, sent.event["RequestId"]))

    def _hand_in(self, sent: Sent) -> None:
        """Lambda's asynchronous invocation: two more attempts after an error."""
        for pause in (*AGAIN, None):
            self._wait_for_room()
            time = self._timeout if self._queue else 900.0
            process = Process(
                self.world.time() + time, self.fate([]) if self._queue else self.fate([sent.event])
            )
            call = partial(self.invocation().on_event, sent.event, Context(self.world, process.ends))
            try:
                self._invoke(process, call)
            except (Exception, Death) as error:  # noqa: BLE001  # a function may end in any way
                self.deaths += isinstance(error, Death)
            else:
                return
            if pause is not None:
                self.world.sleep(pause)
        self.unanswered.append(sent)

    def _invoke(self, process: Process, call: Callable[[], T]) -> T:
        """Lambda bills an invocation, however it ends."""
        began = self.world.now
        try:
            return self.world.within(process, call)
        finally:
            self.billed += self.world.now - began

    def _wait_for_room(self) -> None:
        """Try again for as long as Lambda throttles the function.

        Half an hour at most: after CloudFormation's time a Delete fails, and no stack here sends another.
        """
        (pause, most), ends = NO_ROOM, self.world.now + 1800
        while self.world.now < ends and self.world.dice.random() < self.without_room:
            self.world.sleep(pause)
            pause = min(2 * pause, most)

    def _worker(self) -> None:
        """Serve the queue, as one of the functions that Lambda runs at the same time."""
        environment = self.invocation()
        while True:
            batch = self.fifo.receive(self._batch)
            if not batch:
                self.fifo.filled.wait()
                continue
            records, ends = [_record(message) for message in batch], self.world.now + VISIBILITY
            self.world.sleep(HOP)
            self._wait_for_room()
            rounds = 1 + max(message.rounds for message in batch)
            if rounds > MOST_ROUNDS or self.world.now >= ends:
                continue  # Lambda does not invoke the function; the messages come again.
            self.invocations += 1
            events = [json.loads(record["body"])["event"] for record in records]
            self._messages |= {
                event["RequestId"]: message for event, message in zip(events, batch, strict=True)
            }
            process = Process(self.world.time() + self._timeout, self.fate(events), rounds=rounds)
            call = partial(environment.on_batch, records, Context(self.world, process.ends))
            try:
                reply = self._invoke(process, call)
            except (Exception, Death):  # noqa: BLE001  # a function may end in any way; its messages come again
                self.deaths += 1
                environment = self.invocation()
                continue
            failed = {failure["itemIdentifier"] for failure in reply["batchItemFailures"]}
            for record in records:
                if record["messageId"] not in failed:
                    self.fifo.delete(record["receiptHandle"])


class _Put:
    """Stands in for `response.Sender`: CloudFormation takes an answer in 60 ms."""

    def __init__(self, account: Account) -> None:
        self._account = account

    def prepare(self) -> None:
        """It is ready."""

    def check(self, request: Request) -> None:
        """Any ResponseURL will do."""

    def deliver(self, request: Request, deadline: Deadline, body: bytes) -> None:
        world = self._account.world
        world.sleep(PUT / 2)
        sent = self._account.sent[request.id]
        sent.answers.append((world.now, json.loads(body)))
        if len(sent.answers) == 1:
            self._account.check_order(sent)
            sent.heard(sent)
        world.sleep(PUT / 2)


@contextmanager
def _simulated(world: World) -> Iterator[None]:
    """Replace the parts not handed in: the code's dice, and crhelper's timer, which runs in real time."""
    logging.disable(logging.CRITICAL)
    try:
        with (
            mock.patch.object(retry, "random", world.dice),
            mock.patch.object(custom_resource.CustomResource, "_set_timeout"),
        ):
            yield
    finally:
        logging.disable(logging.NOTSET)
