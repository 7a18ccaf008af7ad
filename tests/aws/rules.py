"""What API Gateway refuses about usage plan keys and no emulator does.

| asked | refused with |
|---|---|
| anything, beyond 10 calls a second with a burst of 40 | 429 TooManyRequestsException, `Retry-After` |
| create or delete while another one is under way | 409 ConflictException, `try again later` |
| create with another type than `API_KEY` | 400 BadRequestException |
| an unknown plan or key; get or delete of a key that is not in the plan | 404 NotFoundException |
| create of what is there already | 409 ConflictException |
| create while another plan of the key covers the same API stage | 409 ConflictException, or 400 BadRequestException |

The codes are the API reference's. No document says which code refuses a second plan for a stage, so the tests
play both. Only the text of concurrent modification is known (serverless/serverless #12065); those of the two
other conflicts are made up and do not say "try again later", and a 404 has one text for the plan and for the
key, as AWS has been seen to mix them up: nothing can be told from a text.

Everything here is pure, but for `OneAtATime` and `Bucket`: these remember; their clock is handed in.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import ceil, inf
from threading import Lock
from typing import Protocol

Clock = Callable[[], float]
"""Seconds, monotonic."""


class World(Protocol):
    """The present state of API Gateway, as far as the rules ask for it."""

    shared_stage: "Refusal"
    """One of `SHARED_STAGES`."""

    def stages(self, plan: str) -> Collection[str] | None:
        """The stages that the plan covers, each `api:stage`; None for an unknown plan."""

    def has_key(self, key: str) -> bool:
        """Whether this is the id of an API key."""

    def plans_of(self, key: str) -> Collection[str]:
        """The plans that the key is in."""


@dataclass(frozen=True)
class Refusal:
    """An error answer of API Gateway."""

    status: int
    code: str
    message: str
    retry_after: int | None = None


BAD_TYPE = Refusal(400, "BadRequestException", "API Key Type should be 'API_KEY'.")
NOT_FOUND = Refusal(404, "NotFoundException", "Invalid Usage Plan ID specified")
DUPLICATE = Refusal(409, "ConflictException", "The API Key is already part of this Usage Plan")
SHARED_STAGES = [
    Refusal(409, "ConflictException", "The API Key is in a Usage Plan with the same API stage"),
    Refusal(400, "BadRequestException", "The API Key is in a Usage Plan with the same API stage"),
]
BUSY = Refusal(
    409,
    "ConflictException",
    "Unable to complete operation due to concurrent modification. Please try again later.",
)


def too_many(seconds: float) -> Refusal:
    """Refused by the bucket, which has a token again in so many seconds; `Retry-After` is in whole ones."""
    return Refusal(429, "TooManyRequestsException", "Too Many Requests", max(1, ceil(seconds)))


def create(world: World, plan: str, key: str, key_type: str) -> Refusal | None:
    """CreateUsagePlanKey."""
    if key_type != "API_KEY":
        return BAD_TYPE
    stages = world.stages(plan)
    if stages is None or not world.has_key(key):
        return NOT_FOUND
    plans = world.plans_of(key)
    if plan in plans:
        return DUPLICATE
    if any(set(stages) & set(world.stages(other) or ()) for other in plans):
        return world.shared_stage
    return None


def get(world: World, plan: str, key: str) -> Refusal | None:
    """GetUsagePlanKey."""
    return None if plan in world.plans_of(key) else NOT_FOUND


def delete(world: World, plan: str, key: str) -> Refusal | None:
    """DeleteUsagePlanKey."""
    return get(world, plan, key)


class OneAtATime:
    """Creates and deletes pass one at a time, and each takes a while; whoever comes meanwhile is refused."""

    def __init__(self, seconds: float, clock: Clock) -> None:
        """Each call takes `seconds` of the clock's time."""
        self.seconds = seconds
        self._clock = clock
        self._lock = Lock()
        self._entered = 0.0
        self._shut_until = -inf

    def enter(self) -> Refusal | None:
        """Go in, or be refused."""
        with self._lock:
            now = self._clock()
            if now < self._shut_until:
                return BUSY
            self._entered, self._shut_until = now, inf
            return None

    def leave(self) -> float:
        """The work is done. Others are refused for this many seconds more, until the call has taken its time."""
        with self._lock:
            self._shut_until = self._entered + self.seconds
            return max(0.0, self._shut_until - self._clock())


class Bucket:
    """The token bucket that all calls of an account draw from (API Gateway limits page: 10 a second, burst 40)."""

    def __init__(self, clock: Clock, rate: float = 10, burst: float = 40) -> None:
        """Starts full."""
        self._clock, self._rate, self._burst = clock, rate, burst
        self._lock = Lock()
        self._tokens, self._filled = float(burst), clock()

    def take(self) -> Refusal | None:
        """Draw a token, or be refused."""
        with self._lock:
            now = self._clock()
            self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
            self._filled = now
            if self._tokens < 1:
                return too_many((1 - self._tokens) / self._rate)
            self._tokens -= 1
            return None
