"""The services around the function, small enough to copy. The fate of each call is a choice."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, TypeVar
from unittest import mock

import botocore.session
from botocore.exceptions import ClientError, ConnectionClosedError

from emulators import fake, rules
from emulators.dynamodb import DynamoDb
from emulators.fake import Key, Plan
from tests.memory import Inline
from usage_plan_key import decide, retry, service
from usage_plan_key.api_gateway import ApiGateway
from usage_plan_key.custom_resource import CustomResource
from usage_plan_key.decide import Answer, Back, Facts, GoOn, Repeat, Step
from usage_plan_key.ledger import Table
from usage_plan_key.model import Association, Holder, Snapshot
from usage_plan_key.provider import Provider
from usage_plan_key.queue import VISIBILITY, Queue
from usage_plan_key.request import SIGNED_FOR, Request, repair_event
from usage_plan_key.retry import Deadline

Pair = tuple[str, str]
"""A key and a plan."""
T = TypeVar("T")

#: template.yaml's Timeout; when Lambda invokes again after an error; when a 202 comes into force.
TIMEOUT: Final = 90.0
AGAIN: Final = (60.0, 120.0)
LATER: Final = 3.0
START: Final = 1_800_000_000.0
STACK: Final = "arn:aws:cloudformation:eu-central-1:1:stack/{0}/{0}-uuid"
#: Decisions in one invocation at most; more go round in a circle.
MOST_DECISIONS: Final = 500

DIES: Final = ("the function dies before", "the function dies after")
REFUSED: Final = ("denied", "its reply lost", "its reply lost, and denied when repeated")
#: The fates of a call, beside the usual one. A fault costs one of the search's faults.
FATES: Final[Mapping[str, tuple[str, ...]]] = {
    "create_usage_plan_key": (*DIES, *REFUSED, "busy", "throttled for 100 s"),
    "delete_usage_plan_key": (*DIES, *REFUSED, "busy", "throttled for 100 s"),
    "get_usage_plan_key": (DIES[0], "denied"),
    "get_usage_plans": (DIES[0], "denied"),
    "transact_get_items": (DIES[0], "denied"),
    "transact_write_items": (*DIES, *REFUSED),
    "send_message": (*DIES, "denied"),
    "deliver": (*DIES, "denied"),
}
#: After these nobody knows what the call did.
UNCLEAR: Final = {*DIES, *REFUSED[1:]}
#: A death here comes between the mark on the ledger's page and the attaching itself.
BETWEEN: Final = {("transact_write_items", DIES[1]), ("create_usage_plan_key", DIES[0])}
#: What CloudFormation may date a request with: an emulator dates none, and a clock may be wrong.
DATES: Final = {"dated": 0, "undated": None, "dated an hour ahead": 3600}


class Death(BaseException):
    """Lambda ends the function."""


class BrokenError(BaseException):
    """Raised at a broken promise; the function catches every Exception."""


class Message(NamedTuple):
    """A message in the queue."""

    request: str
    group: str
    body: str
    sent: float
    visible: float = 0.0
    receives: int = 0
    first: float = 0.0


class Asked(NamedTuple):
    """A request of CloudFormation's; `wants` holds the properties, `old` the earlier ones."""

    kind: str
    who: tuple[str, str]
    wants: Any
    old: Any
    id: str | None
    issued: int
    answer: str = ""
    cancelled: bool = False
    date: str = "dated"
    unwritten: bool = False
    """Its answer may be nowhere in the ledger, so a second one may differ."""
    begun: int = -1
    """How much had happened when the function began it."""

    @property
    def takes(self) -> bool:
        """It may take over what somebody else has attached."""
        return self.kind == "Update" and self.wants.on_existing == "Take"

    @property
    def pairs(self) -> set[Pair]:
        """The associations that it may be about."""
        named = {pair(self.id)} if self.id and ":" in self.id else set()
        return named | {given.pair for given in (self.wants, self.old) if given}


@dataclass
class State:
    """All that lasts between two invocations. Its containers are copied, their contents never change."""

    now: float = START
    items: dict[str, Any] = field(default_factory=dict)
    """The ledger's pages."""
    attached: set[Pair] = field(default_factory=set)
    leaving: dict[Pair, float] = field(default_factory=dict)
    """DeleteUsagePlanKey has answered 202 for them; when they leave."""
    messages: list[Message] = field(default_factory=list)
    arriving: list[tuple[float, int, str]] = field(default_factory=list)
    """When Lambda invokes the function with a request, after how many failures."""
    requests: dict[str, Asked] = field(default_factory=dict)
    stacks: dict[str, Any] = field(default_factory=dict)
    denied: set[str] = field(default_factory=set)
    """Operations that the role may not call at present."""
    deadly: set[str] = field(default_factory=set)
    """Operations at which the function dies at present."""
    vanished: bool = False
    """Somebody has deleted the key."""
    memory: dict[str, Any] = field(default_factory=dict)
    """What a warm function remembers of API Gateway."""
    may: dict[str, int] = field(default_factory=dict)
    """How often something may still happen; `surprises` for all but deployments together."""
    strangers: set[Pair] = field(default_factory=set)
    """Somebody else has attached them, and nobody may detach them."""
    either: set[Pair] = field(default_factory=set)
    """Nobody can tell whose they are."""
    left: set[Pair] = field(default_factory=set)
    """CloudFormation has given up deleting them."""
    kept: set[Pair] = field(default_factory=set)
    """CloudFormation has retained them, and nobody may detach them."""
    torn: dict[Pair, int] = field(default_factory=dict)
    """Somebody has detached them by hand; how much had happened then."""
    unclear: set[Pair] = field(default_factory=set)
    """A function died, or lost a reply, at a request about them that is not answered yet."""
    unrecorded: set[Pair] = field(default_factory=set)
    """The same, and it had changed something that it could not write down; until a SUCCESS about them."""
    met: tuple[str, ...] = ()
    """The surprises so far."""
    story: tuple[str, ...] = ()

    def copied(self) -> State:
        """A copy."""
        return replace(self, **{name: copy.copy(value) for name, value in vars(self).items()})

    def key(self) -> bytes:
        """A digest of what matters: times are relative, versions alike, and the way here forgotten."""
        now, told = self.now, dict(vars(self))
        for name in ("now", "met", "story"):
            del told[name]
        told["items"] = [(pk, _relative(page, now)) for pk, page in self.items.items()]
        told["memory"] = _relative(self.memory, now)
        told["messages"] = [
            (m.request, m.group, min(m.receives, 6), max(0, m.visible - now), _since(m.first, now))
            for m in self.messages
        ]
        told["requests"] = {
            id_: asked._replace(issued=_since(asked.issued, now), begun=asked.begun >= 0)
            for id_, asked in self.requests.items()
        }.items()
        told["leaving"] = {(one, due - now) for one, due in self.leaving.items()}
        told["arriving"] = [(due - now, *more) for due, *more in self.arriving]
        told["torn"] = set(self.torn)
        told["stacks"], told["may"] = self.stacks.items(), self.may.items()
        ordered = [
            value if isinstance(value, list | bool) and name != "items" else sorted(value)
            for name, value in told.items()
        ]
        return hashlib.blake2b(repr(ordered).encode(), digest_size=16).digest()


def _since(then: float, now: float) -> int:
    """The age of something: to the second for five minutes, then roughly."""
    age = int(now - then)
    return age if age < 300 else 300 + 300 * (age > 4000) + 300 * (age > 80_000)


def _relative(value: Any, now: float) -> Any:
    """The same with relative times, and without what no rule reads: versions and Reasons."""
    match value:
        case {"N": str(number)}:
            return _relative(float(number), now)
        case float():
            return _since(value, now) if abs(value - now) < 1e8 else value
        case dict():
            return sorted(
                (name, _relative(part, now))
                for name, part in value.items()
                if name not in ("version", "reason")
            )
        case list() | tuple():
            return [_relative(part, now) for part in value]
    return value


class Choices:
    """Answers each question as it was answered before, then with the first option; and notes all options."""

    def __init__(self, given: Sequence[int] = ()) -> None:
        self.given = given
        self.taken: list[tuple[int, int]] = []

    def choose(self, options: Sequence[T]) -> T:
        """Take one of the options."""
        if len(options) == 1:
            return options[0]
        number = len(self.taken)
        pick = self.given[number] if number < len(self.given) else 0
        self.taken.append((pick, len(options)))
        return options[pick]


def every(run: Callable[[Choices], T]) -> Iterator[T]:
    """Run with all choices, one combination after the other."""
    given: list[int] = []
    while True:
        choices = Choices(given)
        yield run(choices)
        taken = choices.taken
        while taken and taken[-1][0] + 1 == taken[-1][1]:
            taken.pop()
        if not taken:
            return
        given = [pick for pick, _ in taken[:-1]] + [taken[-1][0] + 1]


class _Line:
    """A client of the function's; `World.call` decides on the fate of its calls."""

    def __init__(self, world: World, client: Any) -> None:
        self._world, self._client = world, client
        self.meta = SimpleNamespace(region_name="eu-central-1")
        self.exceptions = getattr(client, "exceptions", None)

    def __getattr__(self, operation: str) -> Any:
        def call(**named: Any) -> Any:
            about = (named["keyId"], named["usagePlanId"]) if {"keyId", "usagePlanId"} <= {*named} else None
            return self._world.call(operation, partial(getattr(self._client, operation), **named), about)

        return call


@dataclass
class Invocation:
    """What the world notes while Lambda runs the function."""

    ends: float = 0.0
    """When Lambda ends it."""
    serves: bool = False
    """The queue invokes it: meanwhile other things may happen."""
    about: frozenset[Pair] = frozenset()
    then_denied: str = ""
    changed: bool = False
    """It has changed something that it has not written down yet."""
    unreached: bool = False
    """It could not reach the ledger."""
    decisions: int = 0


class World:
    """A state while something happens in it."""

    aws_request_id = "invocation"
    function_name = "usage-plan-key"
    invoked_function_arn = "arn:aws:lambda:eu-central-1:1:function:usage-plan-key"
    log_group_name = "/aws/lambda/usage-plan-key"
    log_stream_name = "stream"

    def __init__(self, state: State, choices: Choices | None = None) -> None:
        self.state = state
        self.choices = choices or Choices()
        self.meanwhile: Callable[[World], None] = lambda world: None
        """What else happens before a call of the function that serves requests."""
        self.now_runs = Invocation()
        self.table = DynamoDb()
        self.api = fake.ApiGateway()
        self.api.keys = {} if state.vanished else {"k": Key("k", "value-of-k")}
        self.api.plans = {
            "p": Plan("P", (("api", "prod"),)),
            "q": Plan("Q", (("api", "prod"),)),
            "o": Plan("O", (("other", "prod"),)),
        }
        self.table.items, self.api.attached = state.items, state.attached

    # --- Time and tales ---

    def time(self) -> float:
        return self.state.now

    def sleep(self, seconds: float) -> None:
        self.state.now += seconds
        for one, due in list(self.state.leaving.items()):
            if due <= self.state.now:
                del self.state.leaving[one]
                self.state.attached.discard(one)
                self.say(f"{':'.join(one)} leaves now")

    def say(self, text: str) -> None:
        self.state.story += (text,)

    def may(self, what: str) -> bool:
        may = self.state.may
        return may.get(what, 0) > 0 and (may["surprises"] > 0 or what.startswith("deploys"))

    def spend(self, what: str, surprise: str = "") -> None:
        self.state.may[what] -= 1
        if not what.startswith("deploys"):
            self.state.may["surprises"] -= 1
            self.state.met += (surprise or what,)

    def get_remaining_time_in_millis(self) -> int:
        return int((self.now_runs.ends - self.state.now) * 1000)

    # --- The function's calls ---

    def call(self, operation: str, make: Callable[[], Any], about: Pair | None = None) -> Any:
        """A call of the function's meets its fate."""
        runs, state = self.now_runs, self.state
        if runs.serves:
            self.meanwhile(self)
        if state.now >= runs.ends or operation in state.deadly:
            raise Death
        denied = operation in state.denied
        if runs.then_denied == operation:
            runs.then_denied, denied = "", True
        fate = "denied" if denied else self._fate(operation, about)
        if fate == DIES[0]:
            raise Death
        if error := _refusal(fate, operation):
            raise error
        if fate == "takes force later" and about in state.attached and about is not None:
            state.leaving.setdefault(about, state.now + LATER)
            return {"ResponseMetadata": {"HTTPStatusCode": 202, "HTTPHeaders": {}}}
        try:
            reply = make()
            state.items = self.table.items
            runs.changed = (runs.changed or about is not None) and "transact" not in operation
        finally:
            if fate == DIES[1]:
                raise Death
            if fate in UNCLEAR:
                runs.then_denied = operation if "repeated" in fate else ""
                raise ConnectionClosedError(endpoint_url="https://aws")
        return reply

    def _fate(self, operation: str, about: Pair | None) -> str:
        runs, state = self.now_runs, self.state
        faults = "faults of API Gateway" if "usage_plan" in operation and not self.may("faults") else "faults"
        fates = ["", *(FATES.get(operation, ()) if self.may(faults) else ())]
        if operation == "delete_usage_plan_key" and self.may("later"):
            fates.append("takes force later")
        fate = self.choices.choose(fates)
        if fate:
            self.spend("later" if fate == "takes force later" else faults, f"{operation} {fate}")
            self.say(f"{operation}{' ' + ':'.join(about) if about else ''}: {fate}")
        runs.unreached |= "transact" in operation and "denied" in fate
        doubtful = runs.about if runs.changed and fate else {about} if about and fate in UNCLEAR else set()
        state.unrecorded |= doubtful
        if (operation, fate) in BETWEEN:
            doubtful |= runs.about
        state.either |= doubtful & state.strangers
        state.strangers -= doubtful
        if fate in UNCLEAR:
            state.unclear |= runs.about
        return fate

    def decide(self, pages: Snapshot, request: Request, facts: Facts) -> Step:
        """Decide, and decide again on what the decision writes."""
        self.now_runs.decisions += 1
        if self.now_runs.decisions > MOST_DECISIONS:
            raise BrokenError("it goes round in a circle")
        step = decide.next_step(pages, request, facts)
        if isinstance(step.act, GoOn):  # Its name says that the next decision is another one.
            return step
        again = decide.next_step(step.pages, request, facts._replace(begins=False)).act
        same = type(again) is type(step.act) and (isinstance(again, Back) or again[:1] == step.act[:1])
        if not (same or (isinstance(step.act, Answer) and isinstance(again, Repeat))):
            raise BrokenError(f"it decides anew on what it has written: {step.act}, then {again}")
        return step

    # SQS

    def send_message(self, *, QueueUrl: str, MessageBody: str, MessageGroupId: str, **_: str) -> Any:
        if QueueUrl != "queue":
            raise BrokenError("a message is put aside")
        id_ = json.loads(MessageBody)["event"]["RequestId"]
        if all(message.request != id_ for message in self.state.messages):
            self.state.messages.append(Message(id_, MessageGroupId, MessageBody, self.state.now))
        return {"MessageId": id_}

    def change_message_visibility_batch(self, *, Entries: Sequence[Mapping[str, Any]], **_: str) -> Any:
        until = {one["ReceiptHandle"]: self.state.now + one["VisibilityTimeout"] for one in Entries}
        self.state.messages = [
            m._replace(visible=until.get(f"{m.request} {m.receives}", m.visible)) for m in self.state.messages
        ]
        return {"Successful": [{"Id": one["Id"]} for one in Entries], "Failed": []}

    # The way to CloudFormation

    def prepare(self) -> None:
        """There is nothing to prepare."""

    def check(self, request: Any) -> None:
        """Every address may have the answer."""

    def deliver(self, request: Any, deadline: Any, body: bytes) -> None:
        self.call("deliver", lambda: self._answered(json.loads(body)))

    def _answered(self, answer: dict[str, Any]) -> None:
        state, id_, success = self.state, answer["RequestId"], answer["Status"] == "SUCCESS"
        asked, outcome = state.requests[id_], answer.get("Data", {}).get("Outcome", "")
        told = f"{answer['Status']} {answer['PhysicalResourceId']} {outcome}"
        if asked.answer:
            if asked.answer != told and not asked.unwritten:
                raise BrokenError(f"two answers: {asked.answer}, and {told}")
            return
        state.requests[id_] = asked._replace(answer=told, unwritten=self.now_runs.unreached)
        reason = "" if success else answer["Reason"].split(" (function ")[0][:150]
        self.say(f"{id_} = {outcome or answer['Status']} {reason}".strip())
        if "Superseded" not in reason and "before its turn came" not in reason:  # Those touch nothing.
            state.unclear -= asked.pairs
        if success:
            state.unrecorded -= asked.pairs
            state.kept -= asked.pairs if asked.kind == "Create" and not asked.cancelled else set()
        if success and outcome != "LOST" and state.torn.get(asked.wants.pair, 10**9) <= asked.begun:
            del state.torn[asked.wants.pair]

    # --- Lambda and SQS ---

    def _invoke(self, about: set[Pair], call: Callable[[Provider], T], *, serves: bool = False) -> T:
        line: Any = _Line(self, self)
        api = ApiGateway(_Line(self, self.api))  # type: ignore[arg-type]  # a fake
        vars(api).update({name: copy.copy(value) for name, value in self.state.memory.items()})
        provider = Provider(
            api=api,
            table=Table(_Line(self, self.table), "ledger"),  # type: ignore[arg-type]  # a fake
            queue=Queue(line, "queue", "undelivered"),
            sender=self,  # type: ignore[arg-type]  # a fake
            clock=self,
            background=Inline,
        )
        before, self.state.memory = self.now_runs, {}
        self.now_runs = Invocation(self.state.now + TIMEOUT, serves, frozenset(about))
        try:
            with mock.patch.object(service, "next_step", self.decide):
                returned = copy_context().run(call, provider)
            memory = vars(api).items()
            self.state.memory = {name: value for name, value in memory if name not in ("_client", "calls")}
            return returned
        finally:
            self.now_runs = before

    def arrive(self, due: float, failures: int, id_: str) -> None:
        """Lambda invokes the function with a request."""
        self.state.arriving.remove((due, failures, id_))
        try:
            self._invoke(
                self.state.requests[id_].pairs, lambda function: function.on_event(self._event(id_), self)
            )
        except (Exception, Death) as error:  # noqa: BLE001  # as Lambda does
            if not isinstance(error, Death):
                self.say(f"{id_} is not taken: {type(error).__name__}")
            if failures < len(AGAIN):
                self.state.arriving.append((self.state.now + AGAIN[failures], failures + 1, id_))

    def _event(self, id_: str) -> dict[str, Any]:
        asked = self.state.requests[id_]
        ahead = DATES[asked.date]
        date = "" if ahead is None else f"?Expires={asked.issued + ahead + SIGNED_FOR}"
        event: dict[str, Any] = {
            "RequestType": asked.kind,
            "RequestId": id_,
            "StackId": STACK.format(asked.who[0]),
            "LogicalResourceId": asked.who[1],
            "ResponseURL": f"https://x/{date}",
            "ResourceProperties": asked.wants.properties(),
        }
        if asked.old:
            event["OldResourceProperties"] = asked.old.properties()
        if asked.id is not None:
            event["PhysicalResourceId"] = asked.id
        return event

    def repair(self, who: tuple[str, str], one: Pair) -> None:
        """The watch queues a repair."""
        id_ = f"repair {' '.join(who)} {':'.join(one)}"
        self.say(id_)
        event = repair_event(id_, Holder(STACK.format(who[0]), who[1]), Association(*one))
        queue = Queue(self, "queue", "undelivered")  # type: ignore[arg-type]  # a fake
        queue.put(event, self.state.now, Deadline.by(self.state.now + 90, self))

    def groups(self, *, flying: bool = False) -> list[str]:
        """The stacks whose messages the queue hands out now, or whose messages it hides."""
        hidden = {message.group for message in self.state.messages if message.visible > self.state.now}
        return sorted(hidden if flying else {message.group for message in self.state.messages} - hidden)

    def serve(self, group: str) -> None:
        """Lambda hands the function all of a stack's messages."""
        now, state = self.state.now, self.state
        batch = [
            m._replace(receives=m.receives + 1, visible=now + VISIBILITY, first=m.first or now)
            for m in state.messages
            if m.group == group
        ]
        state.messages = [m for m in state.messages if m.group != group] + batch
        asked = {m.request: state.requests[m.request] for m in batch if m.request in state.requests}
        for id_, one in asked.items():
            if one.begun < 0:
                state.requests[id_] = one._replace(begun=len(state.story))
        about = {some for one in asked.values() for some in one.pairs}
        records = [_record(m) for m in batch]
        try:
            reply = self._invoke(about, lambda function: function.on_batch(records, self), serves=True)
        except Death:
            return
        failed = {item["itemIdentifier"] for item in reply["batchItemFailures"]}
        done = {m.request for m in batch} - failed
        state.messages = [m for m in state.messages if m.request not in done]


def _record(message: Message) -> dict[str, Any]:
    attributes = {
        "MessageGroupId": message.group,
        "ApproximateReceiveCount": str(message.receives),
        "ApproximateFirstReceiveTimestamp": str(int(message.first * 1000)),
        "SentTimestamp": str(int(message.sent * 1000)),
    }
    return {
        "messageId": message.request,
        "receiptHandle": f"{message.request} {message.receives}",
        "body": message.body,
        "attributes": attributes,
    }


def _refusal(fate: str, operation: str) -> Exception | None:
    """The error of a call that the service refuses."""
    if fate == "denied" and operation == "deliver":
        return OSError("no")
    status, code, text, after = {
        "busy": (409, "ConflictException", "Please try again later.", ""),
        "throttled for 100 s": (429, "TooManyRequestsException", "Too Many Requests", "100"),
        "denied": (400 if "transact" in operation else 403, "AccessDeniedException", "no", ""),
    }.get(fate, (0, "", "", ""))
    about = {"HTTPStatusCode": status, "HTTPHeaders": {"retry-after": after} if after else {}}
    response: Any = {"Error": {"Code": code, "Message": text}, "ResponseMetadata": about}
    return ClientError(response, operation) if status else None


def pair(physical_id: str) -> Pair:
    """The key and the plan in a physical id."""
    key, _, plan = physical_id.partition(":")
    return key, plan


def can_attach(world: World, one: Pair) -> bool:
    """Tell whether API Gateway would attach it."""
    return rules.create(world.api, one[1], one[0], "API_KEY") is None


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines, no metrics, no timer threads, no dice; and botocore reads its model of the API once."""
    session = botocore.session.get_session()
    with (
        mock.patch.dict(os.environ, {"POWERTOOLS_METRICS_DISABLED": "true"}),
        mock.patch.object(botocore.session, "get_session", return_value=session),
        mock.patch.object(retry, "random", SimpleNamespace(uniform=lambda a, b: b)),
        mock.patch.object(CustomResource, "_set_timeout"),
    ):
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
