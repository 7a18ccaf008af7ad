"""Runs rollbacks in every order, and functions that die."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .model import Account, Sent
from .waves import SPREAD, furnish, name

Pair = tuple[str, str]
INVENTED = "stack-resource-1ABCDEFGH"


@dataclass(frozen=True)
class Storm:
    """The result of a storm.

    Attributes:
        left: Attached associations that should not be there.
        gone: Associations that should be there and are not.
        held: Associations that the ledger still holds for a deleted resource.
        seconds: From the first failure to the last answer.
        calls: To API Gateway.
        deaths: Of functions.
        unanswered: Requests that nobody answered.
        contradicted: Requests with two different answers.
        billed: How many seconds the function ran.
    """

    left: set[Pair]
    gone: set[Pair]
    held: set[str]
    seconds: float
    calls: int
    deaths: int
    unanswered: int
    contradicted: int
    billed: float

    @property
    def clean(self) -> bool:
        """Whether nothing is left or gone, and each request had one answer."""
        return not (self.left or self.gone or self.held or self.contradicted)


class Stack:
    """A stack that CloudFormation creates at once; when one resource fails, it rolls all of them back."""

    def __init__(self, account: Account, name: str, *, late: float = 0.0, twice: float = 0.0) -> None:
        """Begin.

        Args:
            account: Where.
            name: The stack's.
            late: The share of requests that Lambda hands in seconds late, perhaps after later ones.
            twice: The share that it hands in twice.
        """
        self.account = account
        self.name = name
        self.failed_at: float | None = None
        self.over_at = 0.0
        self.believed: dict[str, str] = {}
        self._late, self._twice = late, twice
        self._creates: dict[str, tuple[Sent, str, str]] = {}

    def create(self, logical: str, key: str, plan: str, on_existing: str = "Fail") -> None:
        """Send a Create, unless the stack is rolling back already."""
        if self.failed_at is None:
            delays = self._delays()
            sent = self.account.send(
                "Create",
                self.name,
                logical,
                key,
                plan,
                delays=delays,
                on_existing=on_existing,
                heard=self._created,
            )
            self._creates[logical] = sent, key, plan

    def _created(self, sent: Sent) -> None:
        logical = sent.event["LogicalResourceId"]
        if self.failed_at is not None:
            return  # Nobody listens any more.
        if sent.success:
            self.believed[logical] = sent.answers[0][1]["PhysicalResourceId"]
            return
        world = self.account.world
        self.failed_at = world.now
        # CloudFormation takes an answer a second or so after its PUT.
        world.at(world.dice.uniform(0.2, 1.5), self._roll_back)

    def _roll_back(self) -> None:
        for logical in self._creates:
            self.account.world.at(self.account.world.dice.uniform(0, SPREAD), partial(self._delete, logical))

    def _delete(self, logical: str) -> None:
        sent, key, plan = self._creates[logical]
        heard = [answer for at, answer in sent.answers if self.failed_at is not None and at <= self.failed_at]
        id_ = heard[0]["PhysicalResourceId"] if heard else INVENTED
        self.account.send(
            "Delete", self.name, logical, key, plan, id_, delays=self._delays(), heard=self._deleted
        )

    def _deleted(self, sent: Sent) -> None:
        self.over_at = self.account.world.now
        if sent.success:
            self.believed.pop(sent.event["LogicalResourceId"], None)

    def _delays(self) -> list[float]:
        return handed_in(self.account, self._late, self._twice)


def rollback(
    keys: int,
    account: Account,
    *,
    before: float = 0.3,
    late: float = 0.1,
    twice: float = 0.1,
    wrong: int | None = None,
) -> Storm:
    """Create a stack in which one key id is wrong.

    Args:
        keys: How many resources.
        account: Where.
        before: The share of keys that are in the plan already: through another stack, or through none.
        late: See `Stack`.
        twice: See `Stack`.
        wrong: The number of the wrong key, and CloudFormation sends them in turn; else any, in any order.
    """
    world, gateway, dice = account.world, account.gateway, account.world.dice
    furnish(gateway, keys)
    for number in range(keys):
        if dice.random() < before:
            if dice.random() < 0.5:
                account.prepare("Create", "another", name(number), name(number), "free")
            else:
                gateway.attached.add((name(number), "free"))
    attached = set(gateway.attached)
    gateway.calls.clear()
    stack = Stack(account, "stack", late=late, twice=twice)
    ordered = wrong is not None
    wrong = dice.randrange(keys) if wrong is None else wrong
    del gateway.keys[name(wrong)]
    attached = {pair for pair in attached if pair[0] != name(wrong)}
    gateway.attached &= attached
    for number in range(keys):
        key = name(number)
        there = (key, "free") in attached
        existing = dice.choice(["Adopt", "Take", "Adopt", "Fail"]) if there else "Fail"
        at = number * SPREAD / keys if ordered else dice.uniform(0, SPREAD)
        world.at(at, partial(stack.create, f"resource{number}", key, "free", existing))
    account.run()
    return _storm(account, attached, stack, stack.over_at - (stack.failed_at or 0.0))


class Moving:
    """A stack whose update moves every key from Free to Pro; when one fails, CloudFormation rolls it back."""

    def __init__(self, account: Account, late: float, twice: float) -> None:
        """See `Stack`."""
        self.failed_at: float | None = None
        self.over_at = 0.0
        self._account = account
        self._late, self._twice = late, twice
        self._updates: dict[str, Sent] = {}
        self._open: set[str] = set()

    def move(self, key: str, plan: str) -> None:
        """Send an Update, unless the stack is rolling back already."""
        if self.failed_at is None:
            self._updates[key] = self._send("Update", key, plan, f"{key}:free", self._moved)

    def _send(self, kind: str, key: str, plan: str, id_: str, heard: Callable[[Sent], None]) -> Sent:
        delays = handed_in(self._account, self._late, self._twice)
        return self._account.send(kind, "stack", key, key, plan, id_, delays=delays, heard=heard)

    def _moved(self, sent: Sent) -> None:
        if self.failed_at is None and not sent.success:
            world = self._account.world
            self.failed_at = world.now
            world.at(world.dice.uniform(0.2, 1.5), self._roll_back)

    def _new(self, key: str) -> str | None:
        """Find the id that CloudFormation took as the resource's new one."""
        at, answer = self._updates[key].answers[0] if self._updates[key].answers else (float("inf"), {})
        taken = self.failed_at is not None and at <= self.failed_at and answer["Status"] == "SUCCESS"
        return str(answer["PhysicalResourceId"]) if taken else None

    def _roll_back(self) -> None:
        world = self._account.world
        self._open = set(self._updates)
        for key in self._updates:
            # Nobody has verified whether it carries the new id or the old one.
            id_ = world.dice.choice([self._new(key) or f"{key}:free", f"{key}:free"])
            world.at(
                world.dice.uniform(0, SPREAD),
                partial(self._send, "Update", key, "free", id_, self._moved_back),
            )

    def _moved_back(self, sent: Sent) -> None:
        self.over_at = self._account.world.now
        self._open.discard(sent.event["LogicalResourceId"])
        if not self._open:
            for key in self._updates:
                if id_ := self._new(key):
                    self._send("Delete", key, "pro", id_, lambda sent: None)


def handed_in(account: Account, late: float, twice: float) -> list[float]:
    """Say when Lambda hands a request in, in seconds from now; see `Stack`."""
    dice = account.world.dice
    delays = [dice.uniform(2, 8) if dice.random() < late else dice.uniform(0, 0.2)]
    return delays + ([dice.uniform(0, 10)] if dice.random() < twice else [])


def update_rollback(keys: int, account: Account, *, late: float = 0.1, twice: float = 0.1) -> Storm:
    """Move a stack's keys between plans that share a stage; one plan is missing, so all move back."""
    world, gateway = account.world, account.gateway
    furnish(gateway, keys)
    for number in range(keys):
        account.prepare("Create", "stack", name(number), name(number), "free")
    attached = set(gateway.attached)
    gateway.calls.clear()
    stack = Moving(account, late, twice)
    wrong = world.dice.randrange(keys)
    for number in range(keys):
        plan = "gone" if number == wrong else "pro"
        world.at(world.dice.uniform(0, SPREAD), partial(stack.move, name(number), plan))
    account.run()
    return _storm(account, attached, None, stack.over_at - (stack.failed_at or 0.0))


class Mortal:
    """A stack whose functions die. It deletes each failed resource, and half of the others minutes later."""

    def __init__(self, account: Account, share: float, steps: int) -> None:
        """Let a share of the functions die, within so many steps."""
        self.believed: set[Pair] = set()
        self._account, self._share, self._steps = account, share, steps
        account.fate = self._fate

    def _fate(self, events: Sequence[Mapping[str, Any]]) -> int | None:
        dice = self._account.world.dice
        return dice.randrange(self._steps if events else 8) if dice.random() < self._share else None

    def create(self, key: str) -> None:
        """Create an association, named as its key."""
        sent = self._account.send("Create", "stack", key, key, "free", heard=self._created)
        self._account.world.at(3600, lambda: None if sent.answers else self._delete(key, INVENTED))

    def _created(self, sent: Sent) -> None:
        world, key = self._account.world, sent.event["LogicalResourceId"]
        if not sent.answer:
            return  # The answer came after CloudFormation's time; the Delete is on its way.
        id_ = sent.answer["PhysicalResourceId"]
        if not sent.success:
            world.at(1.0, partial(self._delete, key, id_))
            return
        self.believed.add((key, "free"))
        if world.dice.random() < 0.5:
            world.at(world.dice.uniform(1, 300), partial(self._delete, key, id_))

    def _delete(self, key: str, id_: str, attempt: int = 1) -> None:
        sent = self._account.send("Delete", "stack", key, key, "free", id_, heard=self._deleted)
        if attempt < 3:
            again = partial(self._delete, key, id_, attempt + 1)
            self._account.world.at(3601, lambda: None if sent.success else again())

    def _deleted(self, sent: Sent) -> None:
        if sent.success:
            self.believed.discard((sent.event["LogicalResourceId"], "free"))


def deaths(keys: int, account: Account, *, share: float, steps: int = 60) -> Storm:
    """Create a stack, and delete half of it again, while a share of the functions die at random steps."""
    furnish(account.gateway, keys)
    stack = Mortal(account, share, steps)
    for number in range(keys):
        account.world.at(account.world.dice.uniform(0, SPREAD), partial(stack.create, name(number)))
    account.run()
    return _storm(account, stack.believed, None, 0.0)


@dataclass(frozen=True)
class Crashing:
    """The result of stacks beside requests that kill the function.

    Attributes:
        good: How many of the others' keys came out right.
        seconds: Until the last of the others' answers.
        over: Until the last answer to a stack that kills.
        deaths: Of functions.
        billed: How many seconds the function ran.
    """

    good: int
    seconds: float
    over: float
    deaths: int
    billed: float


def crashing(
    good: int, stacks: int, bad: int, account: Account, *, hang: bool = False, apart: bool = False
) -> Crashing:
    """Create stacks, and beside them requests each of which kills the function.

    Args:
        good: How many keys the others have.
        stacks: In so many stacks.
        bad: How many requests kill.
        account: Where.
        hang: They hang until Lambda ends the function; else they crash it.
        apart: Each of them is in a stack of its own; else all are in one.
    """
    world, gateway = account.world, account.gateway
    furnish(gateway, good)
    gateway.keys |= {f"crasher{number}": gateway.keys[name(0)] for number in range(bad)}
    gateway.crashers = "hang" if hang else "crash"
    sent: list[Sent] = []

    def start(number: int) -> None:
        sent.append(account.send("Create", f"good{number % stacks}", name(number), name(number), "free"))

    for number in range(good):
        world.at(world.dice.uniform(0, SPREAD), partial(start, number))
    killers = [Stack(account, f"bad{number}") for number in range(bad if apart else 1)]
    for number in range(bad):
        key = f"crasher{number}"
        world.at(
            world.dice.uniform(0, SPREAD), partial(killers[number % len(killers)].create, key, key, "free")
        )
    account.run()
    return Crashing(
        good=sum(request.success for request in sent),
        seconds=max(request.answers[0][0] for request in sent if request.answers),
        over=max(stack.over_at for stack in killers),
        deaths=account.deaths,
        billed=account.billed,
    )


def _storm(account: Account, wanted: set[Pair], stack: Stack | None, seconds: float) -> Storm:
    held = {
        pk
        for pk, item in account.table.items.items()
        if stack and pk.startswith("holder#") and f"/{stack.name}/" in pk and "holds" in item
    }
    different = sum(
        len({(answer["Status"], answer["PhysicalResourceId"]) for _, answer in sent.answers}) > 1
        for sent in account.sent.values()
    )
    return Storm(
        left=account.gateway.attached - wanted,
        gone=wanted - account.gateway.attached,
        held=held,
        seconds=seconds,
        calls=account.gateway.calls.total(),
        deaths=account.deaths,
        unanswered=sum(not sent.answers for sent in account.sent.values()),
        contradicted=different,
        billed=account.billed,
    )
