"""One home for every wait: the deadline, the back-off, and when to try again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeVar

from .lifecycle import FailedError

#: Seconds that one call to AWS may take: to connect, and then to be answered.
CONNECT_TIMEOUT: Final = 2.0
READ_TIMEOUT: Final = 5.0
#: Seconds that one attempt to write to the ledger or to deliver the answer may take: both answer in milliseconds.
SHORT_CONNECT_TIMEOUT: Final = 1.0
SHORT_READ_TIMEOUT: Final = 2.0
#: Seconds that have to be left when a call to API Gateway begins: its own time-outs', and then to write down and deliver.
BEFORE_CALL: Final = CONNECT_TIMEOUT + READ_TIMEOUT + 12.0
#: Seconds that have to be left when an attempt to deliver begins: its own time-outs'.
BEFORE_DELIVERY: Final = SHORT_CONNECT_TIMEOUT + SHORT_READ_TIMEOUT
#: Seconds that have to be left when an attempt to write to the ledger begins: its own time-outs', and to deliver.
BEFORE_SHORT_CALL: Final = SHORT_CONNECT_TIMEOUT + SHORT_READ_TIMEOUT + BEFORE_DELIVERY
#: The back-off: full jitter below a cap that doubles from the first to the second figure, in seconds.
#: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
CAPS: Final = (0.5, 20.0)
#: The same where API Gateway is busy, and a crowd may be at its door (no queue). `make benchmark` shows what other caps come to.
CROWD_CAPS: Final = (5.0, 40.0)
#: How much longer than its `Retry-After` a crowd waits at most that is throttled, in seconds: that is the whole account's budget.
CROWD_THROTTLED: Final = 60.0
#: The pause of a lane that finds API Gateway busy, in seconds: whoever has its door keeps it for a batch, and the other lane is a
#: patient spare.
LANE_PAUSE: Final = (1.0, 2.0)

T = TypeVar("T")


class Clock(Protocol):
    """Time, as the `time` module has it; a simulation brings its own."""

    def time(self) -> float:
        """Tell the seconds since the epoch."""

    def sleep(self, seconds: float, /) -> None:
        """Let so many seconds pass."""


class Dice(Protocol):
    """Jitter, as the `random` module has it."""

    def uniform(self, a: float, b: float, /) -> float:
        """Roll a number between the two."""


class OutOfTimeError(FailedError):
    """Raised when there is no time left for another attempt."""


class Again(NamedTuple):
    """That a call may be tried again: it was not served, or (`unclear`) nobody knows whether it was.

    Attributes:
        after: Seconds that the server asked to wait, its `Retry-After`.
        busy: API Gateway is busy with others: it lets in one call at a time, and ten a second.
        throttled: It was the latter.
    """

    after: float = 0.0
    unclear: bool = False
    busy: bool = False
    throttled: bool = False


ONCE_MORE: Final = Again()


@dataclass(slots=True)
class Attempts:
    """The count of one call's attempts, and whether one that failed may have been served all the same."""

    count: int = 0
    unclear: bool = False


class Deadline:
    """Until when a request is worked on: the function's time or CloudFormation's, whichever ends first."""

    def __init__(self, seconds: float, clock: Clock = time, dice: Dice | None = None, *, lane: bool = False) -> None:
        """Begin.

        Args:
            seconds: How long from now the answer has to be there.
            clock: What tells the time and sleeps.
            dice: What rolls the jitter.
            lane: Served from the queue, by few at a time, and not where it arrived, in a crowd.
        """
        self.clock = clock
        self._began = clock.time()
        self._end = self._began + seconds
        self._lane = lane
        self._dice = dice or random
        self.reserve = BEFORE_CALL
        self.given_up: Callable[[], None] = lambda: None

    def moving(self) -> Deadline:
        """The same deadline, for calls that something is detached for: afterwards there has to be time to undo that."""
        return self._with_reserve(CONNECT_TIMEOUT + READ_TIMEOUT + BEFORE_CALL)

    def short(self) -> Deadline:
        """The same deadline, for calls to all others than API Gateway: some fit in when its time is over."""
        return self._with_reserve(BEFORE_SHORT_CALL)

    def last(self) -> Deadline:
        """The same deadline, for what comes last, the delivery."""
        return self._with_reserve(BEFORE_DELIVERY)

    def _with_reserve(self, seconds: float) -> Deadline:
        other = self._copy()
        other.reserve = seconds
        return other

    def _copy(self) -> Deadline:
        """Not copy.copy: several are made for each request, and that asks the pickle protocol each time."""
        other = object.__new__(Deadline)
        vars(other).update(vars(self))
        return other

    def watched(self, given_up: Callable[[], None]) -> Deadline:
        """The same deadline, which after each pause calls what raises when CloudFormation has given the request up."""
        watched = self._copy()
        watched.given_up = given_up
        return watched

    def pause(self, attempt: int, what: str, last: object, again: Again = ONCE_MORE) -> None:
        """Sleep before another attempt (they count from 1).

        Raises:
            OutOfTimeError: Another call would not be over in time.
        """
        first, last_cap = CROWD_CAPS if again.busy else CAPS
        bounds = LANE_PAUSE if self._lane and again.busy else (0.0, min(last_cap, first * 2 ** min(attempt - 1, 10)))
        if again.throttled and not self._lane:
            seconds = again.after + self._dice.uniform(0.0, CROWD_THROTTLED)
        else:
            seconds = max(again.after, self._dice.uniform(*bounds))
        self.allow(what, attempt, last, seconds)
        self.clock.sleep(seconds)
        self.given_up()

    def allow(self, what: str, attempts: int = 0, last: object = None, ahead: float = 0.0) -> None:
        """Check that a call that begins `ahead` seconds from now would be over in time.

        Raises:
            OutOfTimeError: It would not.
        """
        now = self.clock.time()
        if now + ahead + self.reserve <= self._end:
            return
        if not attempts:
            raise OutOfTimeError(f"{what}: no time was left to begin. Raise ServiceTimeout, or the function's Timeout")
        raise OutOfTimeError(
            f"{what}: gave up after {attempts} attempts in {now - self._began:.0f} s, for the time of CloudFormation "
            f"(ServiceTimeout) or of the function is nearly up. The last error: {str(last).rstrip('. ')}. "
            "Deploy again when that is over"
        )


def persist(
    call: Callable[[], T],
    what: str,
    deadline: Deadline,
    again: Callable[[Exception], Again | None],
    attempts: Attempts | None = None,
) -> T:
    """Call until it is served, or refused for good, or no time is left.

    Args:
        call: The call; it makes one attempt.
        what: What is being done, to begin a Reason with.
        deadline: Until when.
        again: Reads an error: whether to try again.
        attempts: Counted here for the caller, also when this raises.

    Raises:
        OutOfTimeError: No time is left.
        Exception: What `call` raised and `again` declined.
    """
    attempts = attempts or Attempts()
    try:
        deadline.allow(what)
        while True:
            attempts.count += 1
            try:
                return call()
            except Exception as error:
                verdict = again(error)
                if verdict is None:
                    raise
                attempts.unclear |= verdict.unclear
                deadline.pause(attempts.count, what, error, verdict)
    except FailedError as failed:
        failed.clear = failed.clear and not attempts.unclear
        raise
