"""One home for every wait: the deadline, the back-off, and when to try again."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeVar

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

from .errors import Again, FailedError, NotBegunError, OutOfTimeError, TurnOverError, UnreadableError
from .redaction import one_line, shown

#: Seconds that one call to AWS may take: to connect, and then to wait for the reply.
CONNECT_TIMEOUT: Final = 2.0
READ_TIMEOUT: Final = 5.0
#: Seconds that one attempt to write to the ledger or to deliver the answer may take: both services reply in
#: milliseconds.
SHORT_CONNECT_TIMEOUT: Final = 1.0
SHORT_READ_TIMEOUT: Final = 2.0
ONE_CALL: Final = CONNECT_TIMEOUT + READ_TIMEOUT
#: Seconds that a call to API Gateway needs when it begins: its own time-outs, then to write and deliver.
BEFORE_CALL: Final = ONE_CALL + 12.0
#: Seconds that an attempt to deliver needs when it begins: its own time-outs.
BEFORE_DELIVERY: Final = SHORT_CONNECT_TIMEOUT + SHORT_READ_TIMEOUT
#: Seconds that the last look into API Gateway needs when it begins: its own time-outs, then to deliver. With
#: less left, the function begins nothing.
BEFORE_LOOK: Final = ONE_CALL + BEFORE_DELIVERY
#: Seconds that an attempt to write to the ledger needs when it begins: its own time-outs, then to deliver.
BEFORE_SHORT_CALL: Final = SHORT_CONNECT_TIMEOUT + SHORT_READ_TIMEOUT + BEFORE_DELIVERY
#: The back-off in seconds: full jitter below a cap that doubles from the first figure to the second.
#: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
CAPS: Final = (0.5, 20.0)
#: The pause in seconds while API Gateway is busy. The queue's other worker keeps it busy for one batch at
#: most.
BUSY_PAUSE: Final = (1.0, 2.0)

T = TypeVar("T")


class Clock(Protocol):
    """Time, as in the `time` module; a simulation brings its own."""

    def time(self) -> float:
        """Tell the seconds since the epoch."""

    def sleep(self, seconds: float, /) -> None:
        """Let this many seconds pass."""


ONCE_MORE: Final = Again()


@dataclass(slots=True)
class Attempts:
    """The count of one call's attempts, and whether a failed one may have taken effect."""

    count: int = 0
    unclear: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """The end of the work on a request; all times are in epoch seconds.

    Attributes:
        ends: The answer has to be there by then.
        turn: The function starts nothing after that: an unanswered request goes back into the queue.
        patience: A request that has to wait longer than that goes back; without a queue it waits where it is.
        dies: Lambda ends the function by then.
        began: When the request arrived.
        is_over: CloudFormation has given the request up, and the time is there to look it up only.
        clock: Tells the time and sleeps.
        dice: Roll the jitter; otherwise the `random` module does.
    """

    ends: float
    turn: float = math.inf
    patience: float = math.inf
    dies: float = math.inf
    began: float = 0.0
    is_over: bool = False
    clock: Clock = time
    dice: random.Random | None = None

    @classmethod
    def by(cls, ends: float, clock: Clock, **more: Any) -> Deadline:
        """Make one for work that begins now."""
        return cls(ends=ends, clock=clock, **{"began": clock.time(), **more})

    def roll(self, low: float, high: float) -> float:
        """Roll a number."""
        return (self.dice or random).uniform(low, high)

    def but(self, **changes: Any) -> Deadline:
        """Make another one that differs."""
        return replace(self, **changes)

    def allow(self, what: str, needs: float) -> None:
        """Check that a call that takes so many seconds would end in time.

        Raises:
            NotBegunError: It would not.
            TurnOverError: It would not end within the function's time.
        """
        now = self.clock.time()
        if now + needs > self.ends:
            raise NotBegunError(
                f"{what}: no time was left to begin. Raise ServiceTimeout, or the function's Timeout"
            )
        if now + needs > self.turn:
            raise TurnOverError(what, "the function's time is nearly up")

    def pause(
        self,
        attempt: int,
        what: str,
        last: object,
        needs: float,
        again: Again = ONCE_MORE,
        until: float = math.inf,
    ) -> None:
        """Sleep before another attempt (they count from 1) that takes `needs` seconds.

        The pause lasts for all of a server's `Retry-After`. Jitter ends at the last moment for another
        attempt, and before `until`.

        Raises:
            OutOfTimeError: Another call would not end in time.
            TurnOverError: It would not end within the function's time, or the patience is over.
        """
        now = self.clock.time()
        latest = min(self.ends, self.turn) - needs
        first, last_cap = CAPS
        bounds = BUSY_PAUSE if again.busy else (0.0, min(last_cap, first * 2 ** min(attempt - 1, 10)))
        wake = now + max(again.after, min(self.roll(*bounds), latest - now, until - now))
        if wake > self.patience:
            told = f"{code(last)}: {message(last)}" if isinstance(last, ClientError) else last
            raise TurnOverError(what, told, refusal=again)
        # At the last moment itself, the last attempt has just failed.
        if wake > self.ends - needs or now >= self.ends - needs:
            raise OutOfTimeError.told(what, attempt, now - self.began, last)
        if wake > latest or now >= latest:
            raise TurnOverError(what, last)
        self.clock.sleep(wake - now)


def retry(
    call: Callable[[], T],
    what: str,
    deadline: Deadline,
    judge: Callable[[Exception], Again | None],
    needs: float,
    attempts: Attempts | None = None,
) -> T:
    """Call until an attempt succeeds, `judge` declines another one, or no time is left.

    Args:
        call: The call; it makes one attempt.
        what: The step, as a Reason begins with it.
        deadline: The end of all attempts.
        judge: Tells from an error whether to try again.
        needs: Seconds that an attempt needs when it begins, with all that has to follow.
        attempts: Counts for the caller, also when this raises.

    Raises:
        FailedError: No time is left, or the request goes back into the queue.
        Exception: The error of `call` that `judge` declined.
    """
    attempts = attempts or Attempts()
    ends = math.inf
    try:
        deadline.allow(what, needs)
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
                deadline.pause(attempts.count, what, error, needs, verdict, ends)
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
    if not isinstance(error, ClientError):
        return type(error).__name__
    return one_line(str(error.response.get("Error", {}).get("Code", "")))


def message(error: Exception) -> str:
    """Give AWS's text of an error, else its own, without secrets."""
    if not isinstance(error, ClientError):
        return shown(error)
    return one_line(str(error.response.get("Error", {}).get("Message") or ""))  # It may hold null.


def retry_after(error: ClientError) -> float:
    """Read `Retry-After`, in seconds; botocore hands it over as a header and as `retryAfterSeconds`."""
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    said = headers.get("retry-after") or error.response.get("retryAfterSeconds") or 0
    try:
        return max(0.0, float(str(said)))
    except ValueError:
        return 0.0
