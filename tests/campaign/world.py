"""Lambda, SQS, DynamoDB, API Gateway, S3 and CloudFormation around the function's code, in virtual time.

Independent of the rules: nothing here reads `rules`. There is one thread. The function's calls have
numbers, and faults strike there.
"""

from __future__ import annotations

import copy
import heapq
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any, Final
from unittest import mock

from emulators import fake, rules
from emulators.dynamodb import DynamoDb
from emulators.fake import Key, Plan
from tests.memory import Clock, Inline
from usage_plan_key import custom_resource, retry
from usage_plan_key.api_gateway import ApiGateway
from usage_plan_key.custom_resource import CustomResource
from usage_plan_key.ledger import Table
from usage_plan_key.provider import Provider
from usage_plan_key.queue import VISIBILITY, Queue
from usage_plan_key.response import Sender

#: Secrets that the function writes nowhere: parts of every key's value, and of every ResponseURL.
VALUE_MARK: Final = "marked-value-of"
URL_MARK: Final = "marked-signature"
#: template.yaml's Timeout; and when Lambda invokes again after an error.
TIMEOUT: Final = 90.0
AGAIN: Final = (0.0, 60.0, 120.0)
#: Seconds that a call takes when all is well.
CALL: Final = 0.05
SERVICE_TIMEOUT: Final = 900
#: CloudFormation's answer may be so late: the function allows for clocks that differ.
GRACE: Final = 60


class Death(BaseException):
    """Lambda ends the function here and now."""


Strike = Callable[["World", Callable[[], Any]], Any]
"""The fate of a call: it may reach the service, before or after another event, and it may raise."""


@dataclass(frozen=True)
class Fault:
    """A fault at one call, or, lasting, at all calls of that service for so many seconds.

    Attributes:
        name: Its name.
        strike: The fate of the call.
        service: It strikes this service's first call then or later. Empty for any service.
        at: The number of the call.
        lasting: Seconds.
    """

    name: str
    strike: Strike
    service: str = ""
    at: int = 0
    lasting: float = 0.0


@dataclass
class Request:
    """A request of CloudFormation's, and its answers."""

    event: dict[str, Any]
    issued: float
    bodies: list[bytes] = field(default_factory=list)
    first: float = 0.0
    """When the first answer came."""
    cancelled: bool = False
    follower: tuple[Any, ...] = ()
    """CloudFormation's next request when it gives this one up."""

    @property
    def answer(self) -> dict[str, Any]:
        return json.loads(self.bodies[0])  # type: ignore[no-any-return]  # an object

    @property
    def success(self) -> bool:
        return bool(self.bodies) and self.answer["Status"] == "SUCCESS"

    @property
    def lost(self) -> bool:
        return self.success and self.answer.get("Data", {}).get("Outcome") == "LOST"


@dataclass
class Resource:
    """CloudFormation's belief about a resource."""

    id: str
    properties: dict[str, str]


@dataclass
class _Message:
    id: str
    group: str
    body: str
    sent: float
    visible: float = 0.0
    receives: int = 0
    first: float = 0.0


class _Line:
    """A client of the function's, whose calls have numbers."""

    def __init__(self, world: World, service: str, client: Any) -> None:
        self._world, self._service, self._client = world, service, client
        self.meta = SimpleNamespace(region_name="eu-central-1")

    def __getattr__(self, operation: str) -> Any:
        return lambda *args, **named: self._world.call(
            self._service, operation, lambda: getattr(self._client, operation)(*args, **named)
        )


class _DynamoDb(DynamoDb):
    """A table that an operator can restore."""

    def __init__(self) -> None:
        super().__init__()
        self._earlier: list[dict[str, dict[str, Any]]] = []
        """The pages before each change."""
        self.claimed: set[str] = set()
        """Ids of associations that were ours when an operator restored it."""

    def restore(self, changes: int) -> None:
        """Put back the pages from before the last so many changes."""
        if undone := self._earlier[-changes:]:
            self.items = undone[0]
            ours = (
                pk
                for pk, page in undone[0].items()
                if "attaching" in page or page.get("origin") == {"S": "ours"}
            )
            self.claimed |= {pk.partition("#")[2] for pk in ours}
        del self._earlier[-changes:]

    def transact_write_items(self, **call: Any) -> dict[str, Any]:
        before = self.items
        reply = super().transact_write_items(**call)
        if self.items is not before:
            self._earlier.append(before)
        return reply


class _Sqs:
    """A FIFO queue and its dead-letter queue; Lambda receives with `batch`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.messages: list[_Message] = []
        self.dead: list[str] = []
        self.opens = 0.0
        """When it hands out messages again."""
        self._sent: dict[str, float] = {}
        self._ids = itertools.count(1)

    def send_message(
        self, *, QueueUrl: str, MessageBody: str, MessageGroupId: str, MessageDeduplicationId: str
    ) -> dict[str, str]:
        reply = {"MessageId": MessageDeduplicationId}
        if self._sent.get(MessageDeduplicationId, -1e9) >= self._clock.now - 300:
            return reply
        self._sent[MessageDeduplicationId] = self._clock.now
        if QueueUrl != "requests":
            self.dead.append(MessageBody)
        else:
            self.messages.append(
                _Message(f"m{next(self._ids)}", MessageGroupId, MessageBody, self._clock.now)
            )
        return reply

    def change_message_visibility_batch(
        self, *, QueueUrl: str, Entries: list[dict[str, Any]]
    ) -> dict[str, Any]:
        assert 1 <= len(Entries) <= 10
        for entry in Entries:
            for message in self.messages:
                if entry["ReceiptHandle"] == f"{message.id}/{message.receives}":
                    message.visible = self._clock.now + entry["VisibilityTimeout"]
        return {"Successful": [{"Id": entry["Id"]} for entry in Entries]}

    @property
    def next(self) -> float | None:
        """When there is something to receive."""
        times: dict[str, float] = {}
        for message in self.messages:
            times[message.group] = max(times.get(message.group, self.opens), message.visible)
        return min(times.values(), default=None)

    def batch(self) -> list[_Message]:
        """Receive at most ten: of each group that has none in flight, in order."""
        flying = {message.group for message in self.messages if message.visible > self._clock.now}
        batch = [message for message in self.messages if message.group not in flying][:10]
        for message in batch:
            message.receives += 1
            message.first = message.first or self._clock.now
            message.visible = self._clock.now + VISIBILITY
        return batch


class _Post(Sender):
    """Delivers to the world's S3, without a network."""

    def __init__(self, pool: _Line) -> None:
        super().__init__()
        self._pool = pool
        self._ready: Future[Any] = Future()
        self._ready.set_result(None)

    def prepare(self) -> Future[Any]:
        return self._ready

    def _manager(self, url: str, tls: Any) -> Any:
        return self._pool


class Reply:
    """S3's, as urllib3 has it."""

    def __init__(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.status, self.data, self.headers = status, data, headers

    def drain_conn(self) -> None:
        """Do nothing: all of it is here."""


class World:
    """An account. Plans Free and Pro share a stage, Gold has one of its own."""

    def __init__(
        self,
        seed: int = 0,
        *,
        shared_stage: int = 0,
        skew: float = 0.0,
        function: Callable[[World, Any, Any], Any] | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self.clock = Clock()
        self.skew = skew
        """By how many seconds CloudFormation's clock is ahead of the function's."""
        self.api = fake.ApiGateway()
        self.api.shared_stage = rules.SHARED_STAGES[shared_stage]
        self.api.keys = {
            name: Key(name.capitalize(), f"{VALUE_MARK}-{name}-0123456789")
            for name in ("alice", "bob", "carol")
        }
        stage, other = ("api", "prod"), ("other", "prod")
        self.api.plans = {
            "free": Plan("Free", (stage,)),
            "pro": Plan("Pro", (stage,)),
            "gold": Plan("Gold", (other,)),
        }
        self.table = _DynamoDb()
        self.sqs = _Sqs(self.clock)
        self.requests: dict[str, Request] = {}
        self.calls: list[tuple[str, str]] = []
        """Of the function, in order: service and operation."""
        self.faults: list[Fault] = []
        self.struck: list[str] = []
        self.lasting: dict[str, tuple[float, Fault]] = {}
        self.unanswered: list[dict[str, Any]] = []
        """The events that Lambda gave up."""
        self.written: list[str] = []
        """Log lines and exceptions."""
        self.dice = Random(seed)
        self.cloudformation: CloudFormation
        self._timeout, self._function = timeout, function
        self._ids = itertools.count(1)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self.ends = 0.0
        """When Lambda ends the function that runs."""
        self._guard: _Guard | None = None
        """Of the request under way."""
        self._batch: list[_Message] = []
        self._warm = self._cold()

    # --- The services that the function talks to ---

    def _cold(self) -> Provider:
        line = partial(_Line, self)
        s3 = SimpleNamespace(urlopen=self._put)
        if self._function:
            return self._function(self, line("apigateway", self.api), line("s3", s3))  # type: ignore[no-any-return]  # another one
        return Provider(
            api=ApiGateway(line("apigateway", self.api)),  # type: ignore[arg-type]  # a fake
            table=Table(line("dynamodb", self.table), "ledger"),  # type: ignore[arg-type]  # a fake
            queue=Queue(line("sqs", self.sqs), "requests", "undelivered"),  # type: ignore[arg-type]  # a fake
            sender=_Post(line("s3", s3)),
            clock=self.clock,
            background=Inline,
        )

    def call(self, service: str, operation: str, make: Callable[[], Any]) -> Any:
        """One call of the function's."""
        number = len(self.calls)
        self.calls.append((service, operation))
        self.guarded()
        if self.clock.now >= self.ends:
            raise Death
        self.clock.now += CALL
        for fault in self.faults:
            if number >= fault.at and fault.service in ("", service):
                self.faults.remove(fault)
                self.struck.append(fault.name)
                if fault.lasting:
                    self.lasting[service] = self.clock.now + fault.lasting, fault
                return fault.strike(self, make)
        until, lasting = self.lasting.get(service, (0.0, None))
        return lasting.strike(self, make) if lasting and self.clock.now < until else make()

    def guarded(self) -> None:
        """If the time has come, the guard answers, while the call that is next or under way hangs."""
        if self._guard and self.clock.now >= self._guard.at:
            guard, self._guard = self._guard, None
            guard.context.run(guard.answer)

    def hang(self) -> None:
        """A call hangs, until the guard has answered; or, without a guard, until Lambda ends the function."""
        if not self._guard:
            self.clock.now = max(self.clock.now, self.ends)
            raise Death
        self.clock.now = max(self.clock.now, self._guard.at)
        self.guarded()

    def guard(self, resource: CustomResource) -> None:
        """Stand in for crhelper's timer."""
        timer = _Guard(self, self.ends - custom_resource.GUARD_TIME, copy_context(), resource._timeout)
        self._guard = resource._timer = timer

    def _put(self, method: str, url: str, *, body: bytes, **_: Any) -> Reply:
        answered = json.loads(body)
        request = self.requests[answered["RequestId"]]
        if not request.bodies:
            request.first = self.clock.now
        request.bodies.append(body)
        return Reply(200)

    # --- Lambda and SQS ---

    def invoke(self, call: Callable[[Provider, Any], Any]) -> Any:
        """Invoke the function once; return its result.

        Raises:
            Exception: As the function does.
            Death: Lambda has ended it.
        """
        before, self.ends = self.ends, self.clock.now + self._timeout
        guard, self._guard = self._guard, None
        try:
            return copy_context().run(call, self._warm, self._context())
        except Death:
            self._warm = self._cold()
            raise
        except Exception as error:
            self.written.append(f"{type(error).__name__}: {error}")
            raise
        finally:
            self.ends, self._guard = before, guard

    def _context(self) -> Any:
        ends = self.ends
        return SimpleNamespace(
            aws_request_id="invocation",
            function_name="usage-plan-key",
            invoked_function_arn="arn:aws:lambda:eu-central-1:1:function:usage-plan-key",
            log_group_name="/aws/lambda/usage-plan-key",
            log_stream_name="stream",
            get_remaining_time_in_millis=lambda: int((ends - self.clock.now) * 1000),
        )

    def hand_in(self, event: dict[str, Any], after: float = 0.0, attempts: int = len(AGAIN)) -> None:
        """Have Lambda invoke the function asynchronously with an event."""

        def attempt(number: int) -> None:
            try:
                self.invoke(lambda function, context: function.on_event(copy.deepcopy(event), context))
            except (Exception, Death):  # noqa: BLE001  # as Lambda does
                if number + 1 < attempts:
                    self.at(AGAIN[number + 1], partial(attempt, number + 1))
                else:
                    self.unanswered.append(event)

        self.at(after, partial(attempt, 0))

    def arrive(self) -> None:
        """The latest request arrives now."""
        newest = max(self._due, key=lambda due: due[1])
        self._due.remove(newest)
        heapq.heapify(self._due)
        newest[2]()

    def at(self, seconds: float, call: Callable[[], None]) -> None:
        """Do something later."""
        heapq.heappush(self._due, (self.clock.now + seconds, next(self._ids), call))

    def run(self, until: Callable[[], bool] = lambda: False, limit: float = 4 * 3600.0) -> None:
        """Let time pass until something is so, or nothing happens any more."""
        ends = self.clock.now + limit
        while not until():
            times = [
                due for due in (self._due[0][0] if self._due else None, self.sqs.next) if due is not None
            ]
            if not times or min(times) >= ends:
                self.clock.now = max(self.clock.now, ends if times or not until() else 0.0)
                return
            self.clock.now = max(self.clock.now, min(times))
            if self._due and self._due[0][0] <= self.clock.now:
                heapq.heappop(self._due)[2]()
            else:
                self._poll()

    def _poll(self) -> None:
        self._batch = batch = self.sqs.batch()
        self._serve(batch)

    def serve_again(self) -> None:
        """Hand the messages under way to a second function."""
        batch, self._batch = self._batch, []
        for message in batch:
            message.receives += 1
        if batch:
            self._serve(batch)

    def _serve(self, batch: list[_Message]) -> None:
        records = [record(message) for message in batch]
        try:
            reply = self.invoke(lambda function, context: function.on_batch(records, context))
        except (Exception, Death):  # noqa: BLE001  # as Lambda does
            return  # It comes again.
        failed = {item["itemIdentifier"] for item in reply["batchItemFailures"]}
        done = [message for message in batch if message.id not in failed]
        self.sqs.messages = [message for message in self.sqs.messages if message not in done]

    def heal(self) -> None:
        """From now on nothing goes wrong."""
        self.faults, self.lasting = [], {}
        self.sqs.opens = 0.0


@dataclass
class _Guard:
    """Crhelper's timer, in virtual time."""

    world: World
    at: float
    context: Context
    answer: Callable[[], None]

    def cancel(self) -> None:
        if self.world._guard is self:
            self.world._guard = None


def record(message: _Message) -> dict[str, Any]:
    """A message as Lambda hands it in."""
    attributes = {
        "MessageGroupId": message.group,
        "ApproximateReceiveCount": str(message.receives),
        "ApproximateFirstReceiveTimestamp": str(int(message.first * 1000)),
        "SentTimestamp": str(int(message.sent * 1000)),
    }
    receipt = f"{message.id}/{message.receives}"
    return {"messageId": message.id, "receiptHandle": receipt, "body": message.body, "attributes": attributes}


class CloudFormation:
    """Deploys resources one after the other, cleans up, and rolls back; and remembers its beliefs."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.resources: dict[tuple[str, str], Resource] = {}
        """By stack and logical id."""
        self.stuck: dict[tuple[str, str], Resource] = {}
        """DELETE_FAILED: it is there, or not; the next attempt to delete it has to succeed."""
        self.rolling_back: list[tuple[tuple[str, str], dict[str, str]]] = []
        """UPDATE_ROLLBACK_FAILED: the rollbacks to continue."""
        self.left: set[tuple[str, str]] = set()
        """(key, plan) pairs that a template retained, or whose clean-up Delete has failed in silence."""
        self.strangers: set[tuple[str, str]] = set()
        """(key, plan) pairs that somebody else has attached by hand."""
        self.since = 0
        """The number of the call at which they have."""
        self.late: list[Request] = []
        """The requests without an answer in time."""
        self._ids = itertools.count(1)
        self._sent: dict[tuple[Any, ...], Request] = {}
        """The requests that followed one that CloudFormation gave up."""
        world.cloudformation = self

    def ask(
        self,
        kind: str,
        who: tuple[str, str],
        properties: Mapping[str, str],
        old: Mapping[str, str] | None = None,
        physical_id: str | None = None,
    ) -> Request:
        """Send a request; it is on its way."""
        if sent := self._sent.pop((kind, who, physical_id), None):
            return sent
        world = self.world
        id_ = f"request-{next(self._ids)}"
        signed = datetime.fromtimestamp(world.clock.now + world.skew, UTC).strftime("%Y%m%dT%H%M%SZ")
        event: dict[str, Any] = {
            "RequestType": kind,
            "RequestId": id_,
            "StackId": stack_id(who[0]),
            "LogicalResourceId": who[1],
            "ResourceType": "Custom::UsagePlanKey",
            "ServiceToken": "arn:aws:lambda:eu-central-1:1:function:usage-plan-key",
            "ResponseURL": f"https://bucket.s3.amazonaws.com/{id_}?X-Amz-Date={signed}&X-Amz-Signature={URL_MARK}",
            "ResourceProperties": {**properties, "ServiceTimeout": str(SERVICE_TIMEOUT)},
        }
        if old is not None:
            event["OldResourceProperties"] = {**old, "ServiceTimeout": str(SERVICE_TIMEOUT)}
        if physical_id is not None:
            event["PhysicalResourceId"] = physical_id
        request = world.requests[id_] = Request(event, int(world.clock.now))
        world.hand_in(event)
        return request

    def attached_by_hand(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Somebody else attaches them."""
        self.world.api.attached |= {*pairs}
        self.strangers |= {*pairs}
        self.since = len(self.world.calls)

    def give_up(self) -> None:
        """Give up the request that is under way, as when another resource fails; the next one arrives."""
        for request in self.world.requests.values():
            if request.follower and not request.bodies and not request.cancelled:
                request.cancelled = True
                # A Delete may come in the second of its Create, but no rollback in that of its Update.
                self.world.clock.now += request.event["RequestType"] == "Update"
                kind, who, *_, id_ = request.follower
                self._sent[kind, who, id_] = self.ask(*request.follower)
                self.world.arrive()
                return

    def wait(self, request: Request) -> bool:
        """Wait for its answer, its cancellation or the end of its time; tell whether it is SUCCESS."""
        until = request.issued + SERVICE_TIMEOUT + GRACE
        self.world.run(
            lambda: bool(request.bodies) or request.cancelled, max(0.0, until - self.world.clock.now)
        )
        if not request.bodies and not request.cancelled:
            self.late.append(request)
        return request.success and not request.cancelled

    def create(self, stack: str, name: str, properties: dict[str, str]) -> bool:
        """Create a resource; roll it back if that fails."""
        who = stack, name
        request, invented = self.ask("Create", who, properties), f"{stack}-{name}-1ABCDEF"
        request.follower = "Delete", who, properties, None, invented
        if self.wait(request):
            self.resources[who] = Resource(request.answer["PhysicalResourceId"], properties)
            return True
        answered = request.bodies and not request.cancelled
        self.resources[who] = Resource(
            request.answer["PhysicalResourceId"] if answered else invented, properties
        )
        self.delete(stack, name)
        return False

    def update(self, stack: str, name: str, properties: dict[str, str], *, cleans_up: bool = True) -> bool:
        """Update a resource; roll it back if that fails."""
        who = stack, name
        resource = self.resources[who]
        request = self.ask("Update", who, properties, resource.properties, resource.id)
        request.follower = "Update", who, resource.properties, properties, resource.id
        if self.wait(request):
            old = resource.id
            self.resources[who] = Resource(request.answer["PhysicalResourceId"], properties)
            if cleans_up:
                self.clean_up(who, old, resource.properties)
            return True
        self.roll_back(who, properties)
        return False

    def clean_up(self, who: tuple[str, str], id_: str, properties: Mapping[str, str]) -> None:
        """Delete the id that an update has replaced; pass over a failure in silence."""
        if id_ != self.resources[who].id and not self.wait(self.ask("Delete", who, properties, None, id_)):
            self.left.add(pair(id_))

    def roll_back(self, who: tuple[str, str], properties: dict[str, str]) -> None:
        """After an Update that failed: the old properties again."""
        resource = self.resources[who]
        request = self.ask("Update", who, resource.properties, properties, resource.id)
        if not self.wait(request):
            self.rolling_back.append((who, properties))
        elif request.answer["PhysicalResourceId"] != resource.id:
            replaced, resource.id = resource.id, request.answer["PhysicalResourceId"]
            self.clean_up(who, replaced, properties)

    def undo(self, who: tuple[str, str], properties: dict[str, str]) -> None:
        """Take back an update that succeeded, because another resource's failed; clean up its new id."""
        resource = self.resources[who]
        request = self.ask("Update", who, properties, resource.properties, resource.id)
        made, mades = resource.id, resource.properties
        if self.wait(request):
            self.resources[who] = Resource(request.answer["PhysicalResourceId"], properties)
            self.clean_up(who, made, mades)
        else:
            self.resources[who] = Resource(made, properties)
            self.rolling_back.append((who, mades))

    def delete(self, stack: str, name: str) -> bool:
        """Delete a resource."""
        who = stack, name
        resource = self.resources.pop(who)
        if self.wait(self.ask("Delete", who, resource.properties, None, resource.id)):
            return True
        self.stuck[who] = resource
        return False

    def retain(self, stack: str, name: str) -> Resource:
        """Take a resource out of its stack and leave it as it is: CloudFormation sends no Delete."""
        resource = self.resources.pop((stack, name))
        self.left.add(pair(resource.id))
        return resource

    def settle(self, *, skips: bool = False) -> None:
        """All is well again: the function serves all that wait, and an operator continues all that failed.

        If the operator skips a resource in a rollback, CloudFormation believes that it rolled back.
        """
        self.world.heal()
        self.world.run(limit=SERVICE_TIMEOUT + 2 * VISIBILITY)
        for who, properties in self.rolling_back:
            resource = self.resources[who]
            request = self.ask("Update", who, resource.properties, properties, resource.id)
            succeeds = self.wait(request)
            if not succeeds and skips:
                continue
            if not succeeds:
                raise StuckError(f"the rollback of {who} cannot be continued: {request.bodies}")
            replaced, resource.id = resource.id, request.answer["PhysicalResourceId"]
            self.clean_up(who, replaced, properties)
        self.rolling_back.clear()
        for who, resource in self.stuck.items():
            request = self.ask("Delete", who, resource.properties, None, resource.id)
            if not self.wait(request):
                raise StuckError(f"{who} cannot be deleted: {request.bodies}")
        self.stuck.clear()

    def believed(self) -> set[tuple[str, str]]:
        """(key, plan) pairs; one with the answer LOST is none."""
        lost = {
            pair(request.answer["PhysicalResourceId"])
            for request in self.world.requests.values()
            if request.lost
        }
        return {pair(resource.id) for resource in self.resources.values()} - lost


class StuckError(Exception):
    """A stack does not come to rest although all is well again."""


def stack_id(stack: str) -> str:
    """A stack's ARN."""
    return f"arn:aws:cloudformation:eu-central-1:1:stack/{stack}/{stack}-uuid"


def pair(physical_id: str) -> tuple[str, str]:
    """(key, plan) of a physical id; a foreign id gives a pair that nobody attaches."""
    key, _, plan = physical_id.partition(":")
    return key, plan


@contextmanager
def watched(world: World) -> Iterator[None]:
    """Note all log lines, at every level; and have crhelper's guard strike in virtual time."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            world.written.append(self.format(record))

    def set_timeout(resource: CustomResource) -> None:
        world.guard(resource)

    notes, root = Notes(level=1), logging.getLogger()
    others = [(handler, handler.level) for handler in root.handlers]
    level, own = root.level, logging.getLogger("usage_plan_key")
    root.addHandler(notes)
    root.setLevel(logging.INFO)
    own.setLevel(logging.DEBUG)
    own.propagate, before = True, own.propagate
    for handler, _ in others:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        with (
            mock.patch.object(retry, "random", world.dice),
            mock.patch.object(CustomResource, "_set_timeout", set_timeout),
        ):
            yield
    finally:
        for handler, was in others:
            handler.setLevel(was)
        own.propagate = before
        own.setLevel(logging.NOTSET)
        root.setLevel(level)
        root.removeHandler(notes)
