"""Every error, and when the function raises it."""

from __future__ import annotations

import math

from .redaction import shown


class FailedError(Exception):
    """Raised to answer a request FAILED; its text is the Reason.

    Attributes:
        nothing_changed: This attempt cannot have attached anything, so the ledger can take its marks back.
    """

    def __init__(self, reason: str, *, nothing_changed: bool = True) -> None:
        super().__init__(reason)
        self.nothing_changed = nothing_changed


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
        refused: API Gateway has refused it. Otherwise the function's time is nearly up, or API Gateway has
            asked for a pause after another request.
        is_busy: The refusal says that it serves others.
        patience: Seconds after the first such refusal in a row, until one is final. A refusal may report a
            quota, and no waiting mends that.
        after: Seconds that API Gateway has asked to wait.
        until: The queue hides it until then, in epoch seconds; 0 to have it again at once.
    """

    def __init__(
        self,
        what: str,
        last: object,
        *,
        refused: bool = False,
        is_busy: bool = False,
        patience: float = math.inf,
        after: float = 0.0,
        until: int = 0,
    ) -> None:
        super().__init__(f"{what}: {shown(last)}")
        self.what, self.last = what, last
        self.refused, self.is_busy, self.patience = refused, is_busy, patience
        self.after, self.until = after, until


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
