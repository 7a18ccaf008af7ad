"""Drives the service's tests: sends requests as CloudFormation does, and shows the results."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, TypeVar

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from emulators import rules
from emulators.fake import ApiGateway as StrictApi
from emulators.fake import Key, Plan
from tests.memory import Clock, MemoryLedger
from usage_plan_key.api_gateway import ApiGateway
from usage_plan_key.errors import FailedError
from usage_plan_key.ledger import StatelessLedger
from usage_plan_key.model import Association, AssociationRecord, Holder, Response, Snapshot
from usage_plan_key.request import Create, Delete, OnExisting, Request, Update
from usage_plan_key.retry import Deadline
from usage_plan_key.service import Service

FAIL, ADOPT, TAKE = OnExisting
# Free and Pro share a stage; Gold has one of its own.
FREE, PRO, GOLD = "alice:free", "alice:pro", "alice:gold"
CREATE, GET, DELETE = "create_usage_plan_key", "get_usage_plan_key", "delete_usage_plan_key"


def error(status: int, code: str, message: str = "") -> ClientError:
    response: Any = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(response, "Call")


BUSY = error(409, "ConflictException", rules.BUSY.message)
THROTTLED = error(429, "TooManyRequestsException", "Too Many Requests")
BROKEN = error(500, "InternalFailure", "Broken")
DENIED = error(403, "AccessDeniedException", "Not authorized")
BAD = error(400, "BadRequestException", "Bad")
LOST = ReadTimeoutError(endpoint_url="https://apigateway")


class Death(BaseException):
    """The function ends here and now."""


R = TypeVar("R", bound=Request)
Step = Callable[[Callable[[], Any]], Any]
"""A step takes a call, and makes it or not."""


def fails(with_: BaseException) -> Step:
    """Refuse the call."""

    def step(_: Callable[[], Any]) -> Any:
        raise with_

    return step


def served_then(with_: BaseException) -> Step:
    """Serve the call, and lose its reply."""

    def step(call: Callable[[], Any]) -> Any:
        call()
        raise with_

    return step


def preceded_by(action: Callable[[], object]) -> Step:
    """Do something just before the call, as somebody else."""

    def step(call: Callable[[], Any]) -> Any:
        action()
        return call()

    return step


def followed_by(action: Callable[[], object]) -> Step:
    """Do something just after the call, as somebody else."""

    def step(call: Callable[[], Any]) -> Any:
        reply = call()
        action()
        return reply

    return step


def usual(call: Callable[[], Any]) -> Any:
    return call()


class Watch(Clock):
    """A clock that does the things in `meanwhile` while the function sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: list[Callable[[], object]] = []

    def sleep(self, seconds: float, /) -> None:
        super().sleep(seconds)
        if self.meanwhile:
            self.meanwhile.pop(0)()


def served(service: Service) -> Response:
    """Serve a request by its type, as crhelper's dispatch does."""
    request = service._request
    return (
        service.delete()
        if isinstance(request, Delete)
        else service.update()
        if request.physical_id
        else service.create()
    )


class CloudFormation(MemoryLedger):
    """Sends requests, and shows attached keys and their holders. It is its own ledger, to see each write."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Watch()
        self.meta = StrictApi().meta
        self.api = StrictApi()
        self.api.keys = {key: Key(f"Key of {key}", f"value-of-{key}") for key in ("alice", "bob")}
        self.api.plans = {
            "free": Plan("Free", (("api", "prod"),)),
            "pro": Plan("Pro", (("api", "prod"), ("api", "beta"))),
            "gold": Plan("Gold", (("other", "prod"),)),
        }
        self.script: dict[str, Iterator[Step]] = defaultdict(lambda: iter(()))
        self.tick: Callable[[], None] = lambda: None
        self.has_ledger = True
        self.refused_writes = 0
        self.lose_writes = 0
        """So many writes that hold something lose their replies."""
        self.seconds = 900.0
        self.dies = 900.0
        self.is_over = False
        self.resumable = False
        self.warm: ApiGateway | None = None
        self.serial = itertools.count(1)

    # Send requests.

    def a_create(self, name: str, wanted: str, on_existing: OnExisting = FAIL, **more: Any) -> Create:
        return self._request(Create, name, wanted=pair(wanted), on_existing=on_existing, **more)

    def an_update(
        self, name: str, had: str, wanted: str, on_existing: OnExisting = FAIL, **more: Any
    ) -> Update:
        return self._request(
            Update, name, physical_id=had, wanted=pair(wanted), on_existing=on_existing, **more
        )

    def a_delete(self, name: str, had: str, **more: Any) -> Delete:
        return self._request(Delete, name, physical_id=had, **more)

    def create(self, *what: Any, **more: Any) -> Response:
        return self.send(self.a_create(*what, **more))

    def update(self, *what: Any, **more: Any) -> Response:
        return self.send(self.an_update(*what, **more))

    def delete(self, *what: Any, **more: Any) -> Response:
        return self.send(self.a_delete(*what, **more))

    def _request(self, kind: Callable[..., R], name: str, *, stack: str = "one", **fields: Any) -> R:
        self.clock.now += 1
        fields = {"issued": int(self.clock.now), "id": f"request-{next(self.serial)}", **fields}
        return kind(holder=holder(name, stack), response_url="https://x", service_timeout=3600, **fields)

    def service(self, request: Request) -> Service:
        ledger = self if self.has_ledger else StatelessLedger(request)
        there, here = (3600, self.seconds) if self.resumable else (self.seconds, math.inf)
        deadline = Deadline(there, self.clock, Random(0), turn=here, dies=self.dies, is_over=self.is_over)
        return Service(request, ledger, self.warm or ApiGateway(self), deadline)  # type: ignore[arg-type]  # a fake

    def arrives(self, request: Request) -> None:
        """Fence the request, which then waits for its turn."""
        self.service(request).fence()

    def send(self, request: Request) -> Response:
        service = self.service(request)
        service.fence()
        return served(service)

    # Disturb calls and writes.

    def at(self, operation: str, *steps: Step) -> None:
        """Take these steps at the next calls of an operation; serve the later calls."""
        self.script[operation] = iter(steps)

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        call = getattr(self.api, operation)

        def scripted(**arguments: Any) -> Any:
            self.tick()
            reply = next(self.script[operation], usual)(lambda: call(**arguments))
            self.tick()
            return reply

        return scripted

    def outage(self, writes: int) -> None:
        """Fail so many writes from now on, at once."""
        self.refused_writes = writes

    def written(self, holder: Holder, after: Snapshot) -> None:
        self.tick()
        if self.refused_writes:
            self.refused_writes -= 1
            raise FailedError("the ledger is out of reach")
        super().written(holder, after)
        self.tick()
        if self.entries and self.lose_writes:
            self.lose_writes -= 1
            raise FailedError("nobody knows whether it was written", nothing_changed=False)

    # Show the state.

    @property
    def attached(self) -> set[str]:
        return {f"{key}:{plan}" for key, plan in self.api.attached}

    def by_hand(self, id_: str, *, attached: bool = True) -> None:
        key, plan = id_.split(":")
        (self.api.attached.add if attached else self.api.attached.remove)((key, plan))

    def entry(self, id_: str) -> AssociationRecord:
        return self.entries.get(pair(id_), AssociationRecord())

    def holders(self, id_: str) -> set[Holder]:
        return set(self.entry(id_).holders)

    def calls(self) -> dict[str, int]:
        """Count the calls since the last count."""
        calls = dict(self.api.calls)
        self.api.calls.clear()
        return calls


def pair(id_: str) -> Association:
    association = Association.parse(id_)
    assert association
    return association


def holder(name: str, stack: str = "one") -> Holder:
    return Holder(f"arn:aws:cloudformation:eu-west-1:1:stack/{stack}/0", name)


def failed(answer: Response, *words: str) -> bool:
    """Check that an answer is FAILED, and that its Reason has these words."""
    assert not answer.success
    missing = [word for word in words if word not in answer.reason]
    assert not missing, f"{missing} not in {answer.reason!r}"
    return True


def outcome(answer: Response) -> str:
    assert answer.success, answer.reason
    return answer.outcome


def dies_at(cfn: CloudFormation, request: Request) -> None:
    """Let the function die after it has marked an association, before it detaches the key."""
    cfn.at(DELETE, fails(Death()))
    with pytest.raises(Death):
        cfn.send(request)


class Rolls(Random):
    """Rolls the lower bound, and dies at the fifth roll."""

    def __init__(self) -> None:
        super().__init__()
        self.rolled: list[tuple[float, float]] = []

    def uniform(self, a: float, b: float) -> float:
        if len(self.rolled) == 4:
            raise Death
        self.rolled.append((a, b))
        return a


def rolled(cfn: CloudFormation, request: Request) -> list[tuple[float, float]]:
    """Find the bounds of the first four waits."""
    dice = Rolls()
    deadline = Deadline(900, cfn.clock, dice)
    cfn.arrives(request)
    service = Service(request, cfn, ApiGateway(cfn), deadline)  # type: ignore[arg-type]  # a fake
    with pytest.raises(Death):
        served(service)
    return dice.rolled


@pytest.fixture
def cfn() -> CloudFormation:
    return CloudFormation()
