"""The rules by which API Gateway refuses calls about usage plan keys. No emulator has them.

| call | refusal |
|---|---|
| any call beyond 10 calls a second with a burst of 40 | 429 TooManyRequestsException, `Retry-After` |
| create or delete while another one is under way | 409 ConflictException, `try again later` |
| create with another type than `API_KEY` | 400 BadRequestException |
| an unknown plan or key; get or delete of a key that is not in the plan | 404 NotFoundException |
| create of an attached key | 409 ConflictException |
| create while another plan of the key covers a stage | 409 ConflictException, or 400 BadRequestException |

The API reference gives the codes. No document says which code refuses a second plan for a stage, so the
tests play both. Of the texts we know only the one of concurrent modification (serverless/serverless #12065).
We made up the texts of the two other conflicts; they do not say "try again later". A missing plan and a
missing key share one text, because AWS confuses the two: no code can tell anything from these texts.

The functions are pure. `OneAtATime` and `Bucket` keep state, and take their clock as an argument.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import ceil, inf
from threading import Lock
from typing import NamedTuple

Clock = Callable[[], float]
"""Seconds, monotonic."""


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
    Refusal(status, code, "The API Key is in a Usage Plan with the same API stage")
    for status, code in ((409, "ConflictException"), (400, "BadRequestException"))
]
MODIFIED = "Unable to complete operation due to concurrent modification. Please try again later."
BUSY = Refusal(409, "ConflictException", MODIFIED)


class Present(NamedTuple):
    """API Gateway's present state, as far as a rule reads it; a stage is `api:stage`."""

    stages: Collection[str] | None
    """The stages that the plan covers; None for an unknown plan."""
    plans: Mapping[str, Collection[str]] | None
    """The stages of each plan that the key is in; None for an unknown key."""


def create(
    present: Present, plan: str, key_type: str, shared_stage: Refusal = SHARED_STAGES[0]
) -> Refusal | None:
    """CreateUsagePlanKey."""
    if key_type != "API_KEY":
        return BAD_TYPE
    if present.stages is None or present.plans is None:
        return NOT_FOUND
    if plan in present.plans:
        return DUPLICATE
    shares = any({*present.stages} & {*stages} for stages in present.plans.values())
    return shared_stage if shares else None


def get(present: Present, plan: str) -> Refusal | None:
    """GetUsagePlanKey and DeleteUsagePlanKey."""
    return None if plan in (present.plans or ()) else NOT_FOUND


class OneAtATime:
    """Lets creates and deletes pass one at a time, each for a while; refuses those that come meanwhile."""

    def __init__(self, seconds: float, clock: Clock) -> None:
        """Let each call take `seconds` of the clock's time."""
        self.seconds = seconds
        self._clock = clock
        self._lock = Lock()
        self._entered = 0.0
        self._shut_until = -inf

    def enter(self) -> Refusal | None:
        """Let a call in, or refuse it."""
        with self._lock:
            now = self._clock()
            if now < self._shut_until:
                return BUSY
            self._entered, self._shut_until = now, inf
            return None

    def leave(self) -> float:
        """End the work; return the seconds until the call has taken its time and others can enter."""
        with self._lock:
            self._shut_until = self._entered + self.seconds
            return max(0.0, self._shut_until - self._clock())


class Bucket:
    """The token bucket of an account: 10 a second, burst 40 (API Gateway's limits page)."""

    def __init__(self, clock: Clock, rate: float = 10, burst: float = 40) -> None:
        """Start full."""
        self._clock, self._rate, self._burst = clock, rate, burst
        self._lock = Lock()
        self._tokens, self._filled = float(burst), clock()

    def take(self) -> Refusal | None:
        """Draw a token, or refuse the call."""
        with self._lock:
            now = self._clock()
            self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
            self._filled = now
            if self._tokens < 1:
                seconds = ceil((1 - self._tokens) / self._rate)
                return Refusal(429, "TooManyRequestsException", "Too Many Requests", max(1, seconds))
            self._tokens -= 1
            return None
