"""One home for every wait: the deadline, the back-off, and when to try again."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, TypeVar

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

#: Seconds that one call to AWS may take: to connect, and then to wait for the reply.
CONNECT_TIMEOUT: Final = 2.0
READ_TIMEOUT: Final = 5.0
#: Seconds that one attempt to write to the ledger or to deliver the answer may take: both services reply in
#: milliseconds.
SHORT_CONNECT_TIMEOUT: Final = 1.0
SHORT_READ_TIMEOUT: Final = 2.0
#: Seconds that a call to API Gateway needs when it begins: its own time-outs, then to write and deliver.
BEFORE_CALL: Final = CONNECT_TIMEOUT + READ_TIMEOUT + 12.0
#: Seconds that an attempt to deliver needs when it begins: its own time-outs.
BEFORE_DELIVERY: Final = SHORT_CONNECT_TIMEOUT + SHORT_READ_TIMEOUT
#: Seconds that the last look into API Gateway needs when it begins: its own time-outs, then to deliver. With
#: less left, the function begins nothing.
BEFORE_LOOK: Final = CONNECT_TIMEOUT + READ_TIMEOUT + BEFORE_DELIVERY
#: Seconds that an attempt to write to the ledger needs when it begins: its own time-outs, then to deliver.
BEFORE_SHORT_CALL: Final = SHORT_CONNECT_TIMEOUT + SHORT_READ_TIMEOUT + BEFORE_DELIVERY
#: The back-off in seconds: full jitter below a cap that doubles from the first figure to the second.
#: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
CAPS: Final = (0.5, 20.0)
#: The pause in seconds while API Gateway is busy. The queue's other worker keeps it busy for one batch at
#: most.
BUSY_PAUSE: Final = (1.0, 2.0)

#: Seconds of one sleep. After each, a request that CloudFormation has given up makes way for its successor.
SLICE: Final = 20.0

T = TypeVar("T")


class Clock(Protocol):
    """Time, as in the `time` module; a simulation brings its own."""

    def time(self) -> float:
        """Tell the seconds since the epoch."""

    def sleep(self, seconds: float, /) -> None:
        """Let this many seconds pass."""


class Dice(Protocol):
    """Jitter, as in the `random` module."""

    def uniform(self, a: float, b: float, /) -> float:
        """Roll a number between the two."""


class Again(NamedTuple):
    """Permission to try a call again.

    Attributes:
        after: Seconds that the server asked to wait, its `Retry-After`.
        unclear: Nobody knows whether the server carried the call out; otherwise it did not.
        busy: API Gateway is busy with others: it takes one call at a time, and ten a second.
        patience: Seconds of attempts after the first such error.
    """

    after: float = 0.0
    unclear: bool = False
    busy: bool = False
    patience: float = math.inf


ONCE_MORE: Final = Again()


@dataclass(slots=True)
class Attempts:
    """The count of one call's attempts, and whether a failed one may have taken effect."""

    count: int = 0
    unclear: bool = False


class Deadline:
    """The end of the work on a request: of CloudFormation's time and, from the queue, of the function's."""

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
            seconds: Seconds until the answer has to be there.
            clock: Tells the time and sleeps.
            dice: Rolls the jitter.
            turn: Seconds until an unanswered request goes back into the queue.
            patience: Seconds to wait for others, before the request makes way for other stacks'.
            opens: API Gateway has asked for no call before this time, in epoch seconds.
            dies: Seconds until Lambda ends the function; no function runs longer than 15 minutes.
            is_over: CloudFormation has given the request up; `seconds` are left to look it up.
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
        """The same deadline, for the calls of a move: it keeps the time to undo the detaching."""
        return self._but(reserve=CONNECT_TIMEOUT + READ_TIMEOUT + BEFORE_CALL)

    def looking(self) -> Deadline:
        """The same deadline, for a look after which the function writes nothing more."""
        return self._but(reserve=BEFORE_LOOK)

    def short(self) -> Deadline:
        """The same deadline, for calls to all services but API Gateway: they need less time."""
        return self._but(reserve=BEFORE_SHORT_CALL, opens=-math.inf)

    def last(self) -> Deadline:
        """The same deadline, for the last step, the delivery."""
        return self._but(reserve=BEFORE_DELIVERY, opens=-math.inf)

    def watched(self, given_up: Callable[[], None]) -> Deadline:
        """The same deadline; each pause ends with `given_up`, which raises if CloudFormation has given up."""
        return self._but(given_up=given_up)

    def _but(self, **changes: Any) -> Deadline:
        """Copy without copy.copy, which asks the pickle protocol; each request needs several copies."""
        other = object.__new__(Deadline)
        vars(other).update(vars(self), **changes)
        return other

    def pause(
        self, attempt: int, what: str, last: object, again: Again = ONCE_MORE, until: float = math.inf
    ) -> None:
        """Sleep before another attempt (they count from 1), and call `given_up` at least every 20 seconds.

        The pause lasts for all of a server's `Retry-After`. Jitter ends at the last moment for another
        attempt, and before `until`.

        Raises:
            OutOfTimeError: Another call would not end in time.
            TurnOverError: It would not end within the function's time, or the patience is over.
        """
        now = self.clock.time()
        latest = min(min(self._end, self._turn) - self.reserve, until)
        first, last_cap = CAPS
        bounds = BUSY_PAUSE if again.busy else (0.0, min(last_cap, first * 2 ** min(attempt - 1, 10)))
        jittered = self._dice.uniform(*bounds)
        wake = now + max(again.after, min(jittered, latest - now))
        # At the last moment itself, the last attempt has just failed.
        if wake > self._end - self.reserve or now >= self._end - self.reserve:
            raise self._too_late(what, attempt, last)
        if now >= self._turn - self.reserve or wake > self._impatient:
            raise TurnOverError(f"{what}: {last}", wake if again.after else -math.inf)
        while (now := self.clock.time()) < wake:
            if now >= self._turn - self.reserve:
                raise TurnOverError(f"{what}: {last}")
            self.clock.sleep(min(SLICE, wake - now, self._turn - self.reserve - now))
            self.given_up()
        if now > wake + 1:  # `given_up` has taken more than a second.
            self.allow(what)

    def allow(self, what: str, ahead: float = 0.0) -> None:
        """Check that a call would end in time if it begins `ahead` seconds from now.

        Raises:
            NotBegunError: It would not.
            TurnOverError: It would not end within the function's time.
        """
        if self.clock.time() + ahead + self.reserve > self._end:
            raise NotBegunError(
                f"{what}: no time was left to begin. Raise ServiceTimeout, or the function's Timeout"
            )
        self.allow_turn(what, ahead)

    def allow_turn(self, what: str, ahead: float = 0.0) -> None:
        """Check only the function's time.

        Raises:
            TurnOverError: The call would not end within it.
        """
        if self.clock.time() + ahead + self.reserve > self._turn:
            raise TurnOverError(f"{what}: the function's time is nearly up")

    def _too_late(self, what: str, attempts: int, last: object) -> OutOfTimeError:
        return OutOfTimeError(
            f"{what}: gave up after {attempts} attempts in {self.clock.time() - self._began:.0f} s, because "
            "the time of CloudFormation (ServiceTimeout) or of the function is nearly up. The last error: "
            f"{str(last).rstrip('. ')}. Deploy again when that is over"
        )


def retry(
    call: Callable[[], T],
    what: str,
    deadline: Deadline,
    judge: Callable[[Exception], Again | None],
    attempts: Attempts | None = None,
) -> T:
    """Call until an attempt succeeds, `judge` declines another one, or no time is left.

    Args:
        call: The call; it makes one attempt.
        what: The step, as a Reason begins with it.
        deadline: The end of all attempts.
        judge: Tells from an error whether to try again.
        attempts: Counts for the caller, also when this raises.

    Raises:
        OutOfTimeError: No time is left.
        Exception: The error of `call` that `judge` declined.
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
                verdict = judge(error)
                now = deadline.clock.time()
                # Patience counts from the first of its errors in a row.
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


def readable(
    call: Callable[[], Any], service: str, is_whole: Callable[[Any], bool] = lambda _: True
) -> Callable[[], Any]:
    """Make a call that takes a reply only from this service, and only if nothing of it is missing.

    Args:
        call: One attempt.
        service: The service's name, for the error.
        is_whole: Tells whether a reply has all that the caller reads.

    Raises:
        UnreadableError: The reply is a proxy's page, cut short, or no JSON object. The made call raises it.
    """

    def checked() -> Any:
        try:
            reply = call()
        except (AttributeError, TypeError, ValueError) as error:  # botocore's, at JSON that is no object
            raise UnreadableError(f"the reply cannot be read ({type(error).__name__})") from error
        headers = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        # Some replies are empty, so only the type tells them from a proxy's page.
        if headers.get("content-type", "").startswith("text/html") or not is_whole(reply):
            raise UnreadableError(f"the reply is none of {service}'s, or is cut short")
        return reply

    return checked


#: Seconds of attempts at a quota. API Gateway reports some rates as one, and no waiting mends a quota.
QUOTA_PATIENCE: Final = 30.0
#: AWS's codes that come with 400 and mean 429. After those of TIMED_OUT, a call may have taken effect.
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
    """Tell whether to ask AWS again.

    429 carries `Retry-After`. The function matches one text, "try again later": API Gateway serves one
    CreateUsagePlanKey at a time in a region and answers the others 409 with it, 400 in old reports
    (https://github.com/serverless/serverless/issues/12065). LimitExceededException without `Retry-After`
    reports a quota (https://github.com/hashicorp/terraform-provider-aws/issues/37605), and at times a rate.
    """
    if isinstance(error, EndpointConnectionError | ConnectTimeoutError | ProxyConnectionError):
        return Again()  # The call never reached AWS.
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
    # A reply may hold null.
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
