"""Runs creates, deletes and moves all at once, beside another caller in the account."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from emulators import fake
from emulators.fake import Key, Plan

from .model import SERIAL_CALL, Account, Gateway, Sent
from .world import World

#: Within so many seconds CloudFormation starts the resources of a stack.
SPREAD = 2.0


@dataclass(frozen=True)
class Result:
    """The result of a wave.

    Attributes:
        name: Its title.
        keys: How many associations.
        succeeded: How many of them came out right.
        seconds: From the first request to the last answer.
        limit: The serial limit: calls * 300 ms.
        calls: To API Gateway.
        throttled: How many of them got a 429.
        busy: How many of them got a 409.
        asked: How often the other caller asked.
        served: How often API Gateway served the other caller.
        invocations: How often the queue invoked the function.
        receives: How often the queue delivered one message, at most.
        rounds: How many invocations one chain of messages had, at most.
        billed: How many seconds the function ran.
        history: How many keys were attached, and when.
    """

    name: str
    keys: int
    succeeded: int
    seconds: float
    limit: float
    calls: int
    throttled: int
    busy: int
    asked: int
    served: int
    invocations: int = 0
    receives: int = 0
    rounds: int = 0
    billed: float = 0.0
    history: list[tuple[float, int]] = field(repr=False, default_factory=list)

    @property
    def ratio(self) -> float:
        """Time against the serial limit."""
        return self.seconds / self.limit

    @property
    def calls_per_key(self) -> float:
        """Calls to API Gateway for each association."""
        return self.calls / self.keys

    @property
    def luck(self) -> float:
        """The share of the other caller's calls that API Gateway served."""
        return self.served / self.asked if self.asked else 1.0


class OtherCaller:
    """Another caller in the account: makes a call every two seconds, in up to three attempts, for an hour."""

    def __init__(self, world: World, gateway: Gateway, busy: Callable[[], bool]) -> None:
        """Begin; stop when nothing else is busy."""
        self.asked = self.served = 0
        self._world, self._gateway, self._busy = world, gateway, busy
        world.spawn(self._ask)

    def _ask(self) -> None:
        while True:
            self._world.sleep(self._world.dice.uniform(1, 3))
            if not self._busy() or self._world.now > 3600:
                return
            self.asked += 1
            for attempt in range(3):
                if attempt:
                    self._world.sleep(1.0)
                if self._gateway.bucket and not self._gateway.bucket.take():
                    self.served += 1
                    break


def name(number: int) -> str:
    """Name a key."""
    return f"key{number}"


def furnish(gateway: fake.ApiGateway, keys: int) -> None:
    """Add two plans that share a stage, and keys."""
    gateway.plans |= {"free": Plan("Free", (("api", "prod"),)), "pro": Plan("Pro", (("api", "prod"),))}
    gateway.keys |= {name(number): Key(name(number), "secret") for number in range(keys)}


def wave(kind: str, keys: int, stacks: int, account: Account, title: str = "") -> Result:
    """Create, delete or move (Free to Pro) so many keys in so many stacks, all at once."""
    world, gateway = account.world, account.gateway
    furnish(gateway, keys)
    if kind != "Create":
        for number in range(keys):
            account.prepare("Create", f"stack{number % stacks}", name(number), name(number), "free")
    gateway.history.append((0.0, len(gateway.attached)))
    open_: set[str] = set()
    sent: list[Sent] = []
    gateway.calls.clear()

    def start(number: int) -> None:
        plan = "pro" if kind == "Update" else "free"
        id_ = None if kind == "Create" else f"{name(number)}:free"
        request = account.send(
            kind, f"stack{number % stacks}", name(number), name(number), plan, id_, heard=over
        )
        sent.append(request)

    def over(request: Sent) -> None:
        open_.discard(request.event["LogicalResourceId"])
        if kind == "Update" and not open_:
            for key in gateway.keys:  # CloudFormation cleans up; the moves have detached these already.
                account.send(
                    "Delete", f"stack{int(key.removeprefix('key')) % stacks}", key, key, "free", f"{key}:free"
                )

    for number in range(keys):
        open_.add(name(number))
        world.at(world.dice.uniform(0, SPREAD), lambda number=number: start(number))  # type: ignore[misc]
    other_caller = OtherCaller(world, gateway, lambda: bool(open_))
    account.run()
    wanted = {
        "Create": {(name(n), "free") for n in range(keys)},
        "Update": {(name(n), "pro") for n in range(keys)},
    }
    right = wanted.get(kind, set())
    kept = {request.event["LogicalResourceId"] for request in sent if request.success}
    wrong = {key for key, _ in gateway.attached ^ right}
    last = max((request.answers[0][0] for request in sent if request.answers), default=0.0)
    return Result(
        name=title or f"{kind} {keys}",
        keys=keys,
        succeeded=len(kept - wrong),
        seconds=last,
        limit=keys * SERIAL_CALL * (2 if kind == "Update" else 1),
        calls=gateway.calls.total(),
        throttled=gateway.refused[429],
        busy=gateway.refused[409],
        asked=other_caller.asked,
        served=other_caller.served,
        invocations=account.invocations,
        receives=account.fifo.receives,
        rounds=account.fifo.rounds,
        billed=account.billed,
        history=gateway.history,
    )
