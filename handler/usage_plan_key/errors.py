"""Every error, and when the function raises it."""

from __future__ import annotations

import math
from typing import NamedTuple

from .redaction import shown


class Again(NamedTuple):
    """Permission to try a call again after an error.

    Attributes:
        after: Seconds that the server asked to wait, its `Retry-After`.
        unclear: Nobody knows whether the server carried the call out; otherwise it did not.
        busy: API Gateway is busy with others: it takes one call at a time, and ten a second.
        patience: Seconds of attempts after the first such error in a row. It may report a quota, and no
            waiting mends that.
    """

    after: float = 0.0
    unclear: bool = False
    busy: bool = False
    patience: float = math.inf


class FailedError(Exception):
    """Raised to answer a request FAILED; its text is the Reason.

    Attributes:
        nothing_changed: This attempt cannot have attached anything, so the ledger can take its marks back.
    """

    nothing_changed = True


class MissingError(FailedError):
    """Raised when API Gateway has no such key or no such plan."""


class SupersededError(FailedError):
    """Raised when CloudFormation has given a request up and sent a newer one for the same resource."""


class OutOfTimeError(FailedError):
    """Raised when CloudFormation's time leaves none for another attempt."""

    @classmethod
    def told(cls, what: str, attempts: int, seconds: float, last: object) -> OutOfTimeError:
        """Tell how many attempts failed in how many seconds, and how the last one did."""
        return cls(
            f"{what}: gave up after {attempts} attempts in {seconds:.0f} s, because the time of "
            "CloudFormation (ServiceTimeout) or of the function is nearly up. The last error: "
            f"{shown(last).rstrip('. ')}. Deploy again when that is over"
        )


class NotBegunError(OutOfTimeError):
    """Raised when no time was left for even one attempt."""


class TurnOverError(FailedError):
    """Raised when a request goes back into the queue. A later turn goes on with it.

    Attributes:
        what: The step that has to wait.
        last: Why.
        refusal: API Gateway's refusal. Without one, the function's time is nearly up, or API Gateway has
            asked for a pause after another request.
        until: The queue hides it until then, in epoch seconds; 0 to have it again at once.
    """

    def __init__(self, what: str, last: object, *, refusal: Again | None = None, until: int = 0) -> None:
        super().__init__(f"{what}: {shown(last)}")
        self.what, self.last, self.refusal, self.until = what, last, refusal, until


class BlockedError(FailedError):
    """Raised when another plan has the key, which this resource may not detach from there."""


class UnreadError(LookupError):
    """Raised when a rule asks for a page of the ledger that nobody has read; its argument names the page."""


class NotSentError(Exception):
    """Raised when functions have died at the delivery of an answer, so that nobody sends it again."""


class EventError(ValueError):
    """Raised when an event lacks a field that an answer needs."""


class UnclearError(Exception):
    """Raised when nobody knows whether the queue has taken a request. The queue recognises a repeated one."""


class UnreadableError(Exception):
    """Raised when a reply reports success and cannot be read: a proxy's page, or half a reply."""


class UndeliveredError(Exception):
    """Raised when an answer does not arrive: the invocation fails, so that the request comes again."""


class IncompleteError(Exception):
    """Raised at the end of a watch that has not seen everything, after it has reported the rest."""
