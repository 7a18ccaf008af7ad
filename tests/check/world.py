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
from dataclasses import dataclass, field, fields
from typing import Any, Final, NamedTuple, TypeVar
from unittest import mock

import botocore.session
from botocore.exceptions import ConnectionClosedError

from emulators.fake import Key, Plan
from tests.function import (
    STACK,
    BrokenError,
    Death,
    Message,
    Pair,
    Services,
    decided,
    event,
    refusal,
    still,
    throttled,
)
from usage_plan_key import service
from usage_plan_key.decide import Facts, Step
from usage_plan_key.model import Association, Holder, Snapshot
from usage_plan_key.provider import Provider
from usage_plan_key.queue import Queue
from usage_plan_key.request import Request, repair_event
from usage_plan_key.retry import Deadline

T = TypeVar("T")
Who = tuple[str, str]
"""A stack and a resource."""

#: template.yaml's Timeout; when Lambda invokes again after an error; when a 202 comes into force.
TIMEOUT: Final = 90.0
AGAIN: Final = (60.0, 120.0)
LATER: Final = 3.0
START: Final = 1_800_000_000.0
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
REFUSALS: Final = {
    "busy": refusal(409, "ConflictException", "Please try again later."),
    "throttled for 100 s": throttled(100),
    "denied": refusal(403, "AccessDeniedException", "no"),
}


class Asked(NamedTuple):
    """A request of CloudFormation's; `wants` holds the properties, `old` the earlier ones."""

    kind: str
    who: Who
    wants: Any
    old: Any
    id: str | None
    issued: int
    answer: str = ""
    cancelled: bool = False
    date: str = "dated"
    unwritten: bool = False  # Its answer may be nowhere in the ledger, so a second one may differ
    begun: int = -1  # How much had happened when the function began it

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
    items: dict[str, Any] = field(default_factory=dict)  # The ledger's pages
    attached: set[Pair] = field(default_factory=set)
    leaving: dict[Pair, float] = field(default_factory=dict)  # When they leave
    messages: dict[str, Message] = field(default_factory=dict)
    arriving: list[tuple[float, int, str]] = field(default_factory=list)
    """When Lambda invokes the function, after how many failures, with which request."""
    requests: dict[str, Asked] = field(default_factory=dict)
    stacks: dict[str, Any] = field(default_factory=dict)
    denied: set[str] = field(default_factory=set)  # Operations that the role may not call at present
    deadly: set[str] = field(default_factory=set)  # Operations at which the function dies at present
    vanished: bool = False  # Somebody has deleted the key
    memory: dict[str, Any] = field(default_factory=dict)  # What a warm function remembers of API Gateway
    may: dict[str, float] = field(default_factory=dict)  # How often something may still happen
    strangers: set[Pair] = field(default_factory=set)  # Somebody else's: nobody may detach them
    either: set[Pair] = field(default_factory=set)  # Nobody can tell whose they are
    left: set[Pair] = field(default_factory=set)  # CloudFormation has given up deleting them
    kept: set[Pair] = field(default_factory=set)  # Retained: nobody may detach them
    torn: dict[Pair, int] = field(default_factory=dict)  # Detached by hand; how much had happened then
    unclear: set[Pair] = field(default_factory=set)
    """A function died, or lost a reply, at a request about them that is not answered yet."""
    unrecorded: set[Pair] = field(default_factory=set)
    """The same, and it had changed something that it could not write down; until a SUCCESS about them."""
    met: tuple[str, ...] = ()  # The surprises so far
    story: tuple[str, ...] = ()

    def key(self) -> bytes:
        """A digest of what matters: times are relative, versions alike, and the way here forgotten."""
        now, told = self.now, {name: getattr(self, name) for name in STATE}
        for name in ("now", "met", "story"):
            del told[name]
        told["items"] = [(pk, _relative(page, now)) for pk, page in self.items.items()]
        told["memory"] = _relative(self.memory, now)
        told["messages"] = [
            (m.request, m.group, min(m.receives, 6), max(0, m.visible - now), _since(m.first, now))
            for m in self.messages.values()
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
    """The same with relative times."""
    match value:
        case {"N": str(number)}:
            return _relative(float(number), now)
        case float():
            return _since(value, now) if abs(value - now) < 1e8 else value
        case dict():
            parts = value.items()
            return sorted((name, _relative(it, now)) for name, it in parts if name not in UNREAD)
        case list() | tuple():
            return [_relative(part, now) for part in value]
    return value


class Choices:
    """Answers each question as it was answered before, then with the first option; and notes all options."""

    def __init__(self, given: Sequence[int] = ()) -> None:
        self.given = iter(given)
        self.taken: list[tuple[int, int]] = []

    def choose(self, options: Sequence[T]) -> T:
        if len(options) == 1:
            return options[0]
        pick = next(self.given, 0)
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


@dataclass
class Invocation:
    """What the world notes while Lambda runs the function."""

    serves: bool = False  # The queue invokes it: meanwhile other things may happen
    about: frozenset[Pair] = frozenset()
    then_denied: str = ""
    changed: bool = False  # It has changed something that it has not written down yet
    unreached: bool = False  # It could not reach the ledger
    decisions: int = 0


#: Parts of a page that no rule reads.
UNREAD: Final = ("version", "reason")
STATE: Final = tuple(one.name for one in fields(State))


class World(State, Services):
    """A state while something happens in it; made of another one, it is a copy."""

    def __init__(self, state: State | None = None, choices: Choices | None = None) -> None:
        named = {name: copy.copy(getattr(state, name)) for name in STATE} if state else {}
        State.__init__(self, **named)
        Services.__init__(self)
        self.choices = choices or Choices()
        self.meanwhile: Callable[[World], None] = lambda world: None
        """What else happens before a call of the function that serves requests."""
        self.now_runs = Invocation()
        self.api.keys = {} if self.vanished else {"k": Key("k", "value-of-k")}
        self.api.plans = {
            name: Plan(name.upper(), ((api, "prod"),)) for name, api in (("p", "a"), ("q", "a"), ("o", "b"))
        }
        self.db.items, self.api.attached = self.items, self.attached

    def say(self, text: str) -> None:
        self.story += (text,)

    def allows(self, what: str) -> bool:
        """Whether something may still happen."""
        may = self.may
        return may.get(what, 0) > 0 and (may["surprises"] > 0 or what.startswith("deploys"))

    def spend(self, what: str, surprise: str = "") -> None:
        self.may[what] -= 1
        if not what.startswith("deploys"):
            self.may["surprises"] -= 1
            self.met += (surprise or what,)

    # --- The function's calls ---

    def call(self, operation: str, make: Callable[[], Any], about: Pair | None = None) -> Any:
        """A call of the function's meets its fate."""
        runs = self.now_runs
        if runs.serves:
            self.meanwhile(self)
        if self.now >= self.ends or operation in self.deadly:
            raise Death
        denied = operation in self.denied
        if runs.then_denied == operation:
            runs.then_denied, denied = "", True
        fate = "denied" if denied else self._fate(operation, about)
        if fate == DIES[0]:
            raise Death
        if fate in REFUSALS:
            raise OSError("no") if operation == "deliver" else REFUSALS[fate]
        if fate == "takes force later" and about in self.attached and about is not None:
            self.leaving.setdefault(about, self.now + LATER)
            return {}
        try:
            reply = make()
            self.items = self.db.items
            runs.changed = (runs.changed or about is not None) and "transact" not in operation
        finally:
            if fate == DIES[1]:
                raise Death
            if fate in UNCLEAR:
                runs.then_denied = operation if "repeated" in fate else ""
                raise ConnectionClosedError(endpoint_url="https://aws")
        return reply

    def _fate(self, operation: str, about: Pair | None) -> str:
        runs = self.now_runs
        faults = (
            "faults of API Gateway" if "usage_plan" in operation and not self.allows("faults") else "faults"
        )
        fates = ["", *(FATES.get(operation, ()) if self.allows(faults) else ())]
        if operation == "delete_usage_plan_key" and self.allows("later"):
            fates.append("takes force later")
        fate = self.choices.choose(fates)
        if fate:
            self.spend("later" if fate == "takes force later" else faults, f"{operation} {fate}")
            self.say(f"{operation}{' ' + ':'.join(about) if about else ''}: {fate}")
        runs.unreached |= "transact" in operation and "denied" in fate
        doubtful = runs.about if runs.changed and fate else {about} if about and fate in UNCLEAR else set()
        self.unrecorded |= doubtful
        if (operation, fate) in BETWEEN:
            doubtful |= runs.about
        self.either |= doubtful & self.strangers
        self.strangers -= doubtful
        if fate in UNCLEAR:
            self.unclear |= runs.about
        return fate

    def decide(self, pages: Snapshot, request: Request, facts: Facts) -> Step:
        """Decide, and decide again on what the decision writes."""
        self.now_runs.decisions += 1
        if self.now_runs.decisions > MOST_DECISIONS:
            raise BrokenError("it goes round in a circle")
        return decided(pages, request, facts)

    # The way to CloudFormation

    def deliver(self, request: Any, deadline: Any, body: bytes) -> None:
        self.call("deliver", lambda: self._answered(json.loads(body)))

    def _answered(self, answer: dict[str, Any]) -> None:
        id_, success = answer["RequestId"], answer["Status"] == "SUCCESS"
        asked, outcome = self.requests[id_], answer.get("Data", {}).get("Outcome", "")
        told = f"{answer['Status']} {answer['PhysicalResourceId']} {outcome}"
        if asked.answer:
            if asked.answer != told and not asked.unwritten:
                raise BrokenError(f"two answers: {asked.answer}, and {told}")
            return
        self.requests[id_] = asked._replace(answer=told, unwritten=self.now_runs.unreached)
        reason = "" if success else answer["Reason"].split(" (function ")[0][:150]
        self.say(f"{id_} = {outcome or answer['Status']} {reason}".strip())
        if "Superseded" not in reason and "before its turn came" not in reason:  # Those touch nothing.
            self.unclear -= asked.pairs
        if success:
            self.unrecorded -= asked.pairs
            self.kept -= asked.pairs if asked.kind == "Create" and not asked.cancelled else set()
        if success and outcome != "LOST" and self.torn.get(asked.wants.pair, 10**9) <= asked.begun:
            del self.torn[asked.wants.pair]

    # --- Lambda and SQS ---

    def _invoke(self, about: set[Pair], call: Callable[[Provider], T], *, serves: bool = False) -> T:
        provider = self.provider(queue=Queue(self.line(self), "queue", "undelivered"))
        api = vars(provider.api)
        api |= {name: copy.copy(value) for name, value in self.memory.items()}
        before, self.memory = (self.now_runs, self.ends), {}
        self.now_runs, self.ends = Invocation(serves, frozenset(about)), self.now + TIMEOUT
        try:
            with mock.patch.object(service, "next_step", self.decide):
                returned = copy_context().run(call, provider)
            self.memory = {name: api[name] for name in api if name not in ("_client", "calls")}
            return returned
        finally:
            self.now_runs, self.ends = before

    def arrive(self, due: float, failures: int, id_: str) -> None:
        """Lambda invokes the function with a request."""
        self.arriving.remove((due, failures, id_))
        try:
            self._invoke(self.requests[id_].pairs, lambda function: function.on_event(self._event(id_), self))
        except (Exception, Death) as error:  # noqa: BLE001  # as Lambda does
            if not isinstance(error, Death):
                self.say(f"{id_} is not taken: {type(error).__name__}")
            if failures < len(AGAIN):
                self.arriving.append((self.now + AGAIN[failures], failures + 1, id_))

    def _event(self, id_: str) -> dict[str, Any]:
        asked = self.requests[id_]
        ahead = DATES[asked.date]
        more: dict[str, Any] = {"OldResourceProperties": asked.old.properties()} if asked.old else {}
        more |= {} if asked.id is None else {"PhysicalResourceId": asked.id}
        holder, issued = Holder(STACK.format(asked.who[0]), asked.who[1]), asked.issued
        date = None if ahead is None else issued + ahead
        return event(asked.kind, id_, holder, asked.wants.properties(), date, **more)

    def repair(self, who: Who, one: Pair) -> None:
        """The watch finds it missing, and queues a repair."""
        self.spend("repairs")
        id_ = f"repair {' '.join(who)} {':'.join(one)}"
        self.say(id_)
        event = repair_event(id_, Holder(STACK.format(who[0]), who[1]), Association(*one))
        queue = Queue(self, "queue", "undelivered")  # type: ignore[arg-type]  # a fake
        queue.put(event, self.now, Deadline.by(self.now + 90, self))

    def groups(self, *, flying: bool = False) -> list[str]:
        """The stacks whose messages the queue hands out now, or whose messages it hides."""
        hidden = {one.group for one in self.messages.values() if one.visible > self.now}
        return sorted(hidden if flying else {one.group for one in self.messages.values()} - hidden)

    def serve(self, group: str) -> None:
        """Lambda hands the function all of a stack's messages."""
        batch = {id_: one.received(self.now) for id_, one in self.messages.items() if one.group == group}
        self.messages = {id_: one for id_, one in self.messages.items() if id_ not in batch} | batch
        asked = {id_: self.requests[id_] for id_ in batch if id_ in self.requests}
        for id_, one in asked.items():
            if one.begun < 0:
                self.requests[id_] = one._replace(begun=len(self.story))
        about = {some for one in asked.values() for some in one.pairs}
        records = [message.record() for message in batch.values()]
        try:
            reply = self._invoke(about, lambda function: function.on_batch(records, self), serves=True)
        except Death:
            return
        for id_ in {*batch} - {item["itemIdentifier"] for item in reply["batchItemFailures"]}:
            self.messages.pop(id_, None)


def pair(physical_id: str) -> Pair:
    """The key and the plan in a physical id."""
    key, _, plan = physical_id.partition(":")
    return key, plan


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines, no metrics, no timer threads, no dice; and botocore reads its model of the API once."""
    session = botocore.session.get_session()
    with (
        mock.patch.dict(os.environ, {"POWERTOOLS_METRICS_DISABLED": "true"}),
        mock.patch.object(botocore.session, "get_session", return_value=session),
        still(),
    ):
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
