"""Every error, and when the function raises it."""

from __future__ import annotations

import math


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


class NotBegunError(OutOfTimeError):
    """Raised when no time was left for even one attempt."""


class TurnOverError(OutOfTimeError):
    """Raised when the function's time is nearly up and CloudFormation's is not. The next invocation goes on.

    Attributes:
        opens: API Gateway has asked for no call before this time, in epoch seconds.
    """

    def __init__(self, text: str, opens: float = -math.inf) -> None:
        super().__init__(text)
        self.opens = opens


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
