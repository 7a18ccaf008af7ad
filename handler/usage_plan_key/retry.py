"""One home for every wait: the deadline, the back-off, and when to try again."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeVar

from botocore.exceptions import (
    ChecksumError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    ProxyConnectionError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from botocore.parsers import ResponseParserError

from .errors import FailedError, NotBegunError, OutOfTimeError, TurnOverError, UnreadableError

#: Seconds that one call to AWS may take: to connect, and then to be answered.
CONNECT_TIMEOUT: Final = 2.0
READ_TIMEOUT: Final = 5.0
#: Seconds that one attempt to write to the ledger or to deliver the answer may take: both answer in
#: milliseconds.
SHORT_CONNECT_TIMEOUT: Final = 1.0
SHORT_READ_TIMEOUT: Final = 2.0
#: Seconds that have to be left when a call to API Gateway begins: its own time-outs', and then to write down
#: and deliver.
BEFORE_CALL: Final = CONNECT_TIMEOUT + READ_TIMEOUT + 12.0
#: Seconds that have to be left when an attempt to deliver begins: its own time-outs'.
BEFORE_DELIVERY: Final = SHORT_CONNECT_TIMEOUT + SHORT_READ_TIMEOUT
#: Seconds that have to be left when the last look into API Gateway begins: its own time-outs', and to
#: deliver. With less left nothing is begun at all.
BEFORE_LOOK: Final = CONNECT_TIMEOUT + READ_TIMEOUT + BEFORE_DELIVERY
#: Seconds that have to be left when an attempt to write to the ledger begins: its own time-outs', and to
#: deliver.
BEFORE_SHORT_CALL: Final = SHORT_CONNECT_TIMEOUT + SHORT_READ_TIMEOUT + BEFORE_DELIVERY
#: The back-off: full jitter below a cap that doubles from the first to the second figure, in seconds.
#: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
CAPS: Final = (0.5, 20.0)
#: The pause where API Gateway is busy, in seconds. The queue's other worker keeps it busy for one batch at
#: most.
BUSY_PAUSE: Final = (1.0, 2.0)

#: Seconds that are slept at a time: a request that CloudFormation gives up meanwhile makes way for the one
#: that it sent instead.
SLICE: Final = 20.0

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


class Again(NamedTuple):
    """That a call may be tried again: it was not served, or (`unclear`) nobody knows whether it was.

    Attributes:
        after: Seconds that the server asked to wait, its `Retry-After`.
        busy: API Gateway is busy with others: it lets in one call at a time, and ten a second.
        patience: Seconds after the first such error at which it is not tried again.
    """

    after: float = 0.0
    unclear: bool = False
    busy: bool = False
    patience: float = math.inf


ONCE_MORE: Final = Again()


@dataclass(slots=True)
class Attempts:
    """The count of one call's attempts, and whether one that failed may have been served all the same."""

    count: int = 0
    unclear: bool = False


class Deadline:
    """Until when a request is worked on: CloudFormation's time; from the queue also the function's: then it goes back."""

    def __init__(
        self,
        seconds: float,
        clock: Clock = time,
        dice: Dice | None = None,
        *,
        turn: float = math.inf,
        patience: float = math.inf,
        opens: float = -math.inf,
        dies: float = 900.0,
        is_over: bool = False,
    ) -> None:
        """Begin.

        Args:
            seconds: How long from now the answer has to be there.
            clock: What tells the time and sleeps.
            dice: What rolls the jitter.
            turn: In how many seconds the request goes back into the queue, where it is not answered by then.
            patience: For how many seconds others are waited for, before the request makes way for other
                stacks'.
            opens: Before when API Gateway is not called, in epoch seconds.
            dies: In how many seconds Lambda ends the function; no function runs longer than 15 minutes.
            is_over: CloudFormation has given the request up; `seconds` are then what is left to look it up.
        """
        self.is_over = is_over
        self.clock = clock
        self._began = clock.time()
        self._end = self._began + seconds
        self._turn = self._began + turn
        #: When Lambda ends the function, in epoch seconds.
        self.dies = self._began + dies
        self._impatient = self._began + patience
        self.opens = opens
        self._dice = dice or random
        self.reserve = BEFORE_CALL
        self.given_up: Callable[[], None] = lambda: None

    def moving(self) -> Deadline:
        """The same deadline, for calls that something is detached for: afterwards there has to be time to undo that."""
        return self._with_reserve(CONNECT_TIMEOUT + READ_TIMEOUT + BEFORE_CALL)

    def looking(self) -> Deadline:
        """The same deadline, for a look after which nothing is written down any more."""
        return self._with_reserve(BEFORE_LOOK)

    def short(self) -> Deadline:
        """The same deadline, for calls to all others than API Gateway: some fit in when its time is over."""
        return self._of_another(BEFORE_SHORT_CALL)

    def last(self) -> Deadline:
        """The same deadline, for what comes last, the delivery."""
        return self._of_another(BEFORE_DELIVERY)

    def _with_reserve(self, seconds: float) -> Deadline:
        other = self._copy()
        other.reserve = seconds
        return other

    def _of_another(self, seconds: float) -> Deadline:
        other = self._with_reserve(seconds)
        other.opens = -math.inf
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

    def pause(
        self, attempt: int, what: str, last: object, again: Again = ONCE_MORE, until: float = math.inf
    ) -> None:
        """Sleep before another attempt (they count from 1), and look every so often whether the request was given up.

        A server's `Retry-After` is waited for in full. Jitter ends at the last moment at which an attempt can
        still be made, and before `until`.

        Raises:
            OutOfTimeError: Another call would not be over in time.
            TurnOverError: Not within the function's time. What there was of it has been waited.
        """
        now = self.clock.time()
        latest = min(min(self._end, self._turn) - self.reserve, until)
        first, last_cap = CAPS
        bounds = BUSY_PAUSE if again.busy else (0.0, min(last_cap, first * 2 ** min(attempt - 1, 10)))
        jittered = self._dice.uniform(*bounds)
        wake = now + max(again.after, min(jittered, latest - now))
        # At the last moment itself an attempt has just been made.
        if wake > self._end - self.reserve or now >= self._end - self.reserve:
            raise self._too_late(what, attempt, last)
        if now >= self._turn - self.reserve or wake > self._impatient:
            raise TurnOverError(f"{what}: {last}", wake if again.after else -math.inf)
        while (now := self.clock.time()) < wake:
            if now >= self._turn - self.reserve:
                raise TurnOverError(f"{what}: {last}")
            self.clock.sleep(min(SLICE, wake - now, self._turn - self.reserve - now))
            self.given_up()
        if now > wake + 1:  # To look whether it was given up has taken long.
            self.allow(what)

    def allow(self, what: str, ahead: float = 0.0) -> None:
        """Check that a call that begins `ahead` seconds from now would be over in time.

        Raises:
            NotBegunError: It would not.
            TurnOverError: Not within the function's time.
        """
        if self.clock.time() + ahead + self.reserve > self._end:
            raise NotBegunError(
                f"{what}: no time was left to begin. Raise ServiceTimeout, or the function's Timeout"
            )
        self.allow_turn(what, ahead)

    def allow_turn(self, what: str, ahead: float = 0.0) -> None:
        """Check the same for the function's time alone.

        Raises:
            TurnOverError: It would not.
        """
        if self.clock.time() + ahead + self.reserve > self._turn:
            raise TurnOverError(f"{what}: the function's time is nearly up")

    def _too_late(self, what: str, attempts: int, last: object) -> OutOfTimeError:
        return OutOfTimeError(
            f"{what}: gave up after {attempts} attempts in {self.clock.time() - self._began:.0f} s, for the time of "
            f"CloudFormation (ServiceTimeout) or of the function is nearly up. The last error: {str(last).rstrip('. ')}. "
            "Deploy again when that is over"
        )


def retry(
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
    ends = math.inf
    try:
        deadline.allow(what)
        if (closed := deadline.opens - deadline.clock.time()) > 0:
            deadline.pause(1, what, "API Gateway has asked to wait", Again(after=closed))
        while True:
            attempts.count += 1
            try:
                return call()
            except Exception as error:
                verdict = again(error)
                now = deadline.clock.time()
                # What is tried for a while alone is so from its first error on.
                ends = (
                    min(ends, now + verdict.patience) if verdict and verdict.patience < math.inf else math.inf
                )
                if verdict is None or now >= ends:
                    raise
                attempts.unclear |= verdict.unclear
                deadline.pause(attempts.count, what, error, verdict, ends)
    except FailedError as failed:
        failed.nothing_changed = failed.nothing_changed and not attempts.unclear
        raise


#: Seconds for which a quota is tried. It is answered like a rate, and no waiting mends it.
QUOTA_PATIENCE: Final = 30.0
#: Codes of AWS's that come with 400 and mean 429, and those after which a call may have been served.
#: https://docs.aws.amazon.com/apigateway/latest/api/CommonErrors.html and botocore's standard retry mode
#: (https://docs.aws.amazon.com/sdkref/latest/guide/feature-retry-behavior.html)
THROTTLED: Final = frozenset(
    {
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "RequestThrottled",
        "RequestThrottledException",
        "TooManyRequestsException",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "SlowDown",
        "PriorRequestNotComplete",
    }
)
TIMED_OUT: Final = frozenset({"RequestTimeout", "RequestTimeoutException"})


def transient(error: Exception) -> Again | None:
    """Tell whether AWS may be asked again.

    429 carries `Retry-After`. "try again later" is the one text that is matched: API Gateway serves one
    CreateUsagePlanKey at a time in a region and answers the others 409 with it, 400 in old reports
    (https://github.com/serverless/serverless/issues/12065). LimitExceededException without `Retry-After` is
    how API Gateway reports a quota (https://github.com/hashicorp/terraform-provider-aws/issues/37605), and
    has been seen for a rate.
    """
    if isinstance(error, EndpointConnectionError | ConnectTimeoutError | ProxyConnectionError):
        return Again()  # It never got there.
    if isinstance(
        error, HTTPClientError | NoConnectionError | UnreadableError | ChecksumError | ResponseParserError
    ):
        return Again(unclear=True)
    if not isinstance(error, ClientError):
        return None
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status >= 500 or code(error) in TIMED_OUT:
        return Again(unclear=True)
    if code(error) == "LimitExceededException" and status == 429 and not retry_after(error):
        return Again(patience=QUOTA_PATIENCE)
    if status == 429 or code(error) in THROTTLED:
        return Again(after=retry_after(error), busy=True)
    return Again(busy=True) if "try again later" in message(error).lower() else None


def code(error: BaseException) -> str:
    """Name an error: AWS's code, else its class."""
    return (
        error.response.get("Error", {}).get("Code", "")
        if isinstance(error, ClientError)
        else type(error).__name__
    )


def message(error: Exception) -> str:
    """Give AWS's text of an error, else its own."""
    # A reply may have null there.
    return (
        str(error.response.get("Error", {}).get("Message") or "")
        if isinstance(error, ClientError)
        else str(error)
    )


def retry_after(error: ClientError) -> float:
    """Read `Retry-After`, in seconds; botocore hands it over as a header and as `retryAfterSeconds`."""
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    try:
        return max(
            0.0, float(str(headers.get("retry-after") or error.response.get("retryAfterSeconds") or 0))
        )
    except (TypeError, ValueError):
        return 0.0
