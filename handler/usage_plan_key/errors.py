"""What can go wrong, and when it is raised."""

from __future__ import annotations

import math


class FailedError(Exception):
    """Raised when a request is to be answered FAILED; its text is the Reason.

    Attributes:
        nothing_changed: Nothing can have been attached by this attempt, so what it wrote down can be taken
            back.
    """

    def __init__(self, reason: str, *, nothing_changed: bool = True) -> None:
        super().__init__(reason)
        self.nothing_changed = nothing_changed


class MissingError(FailedError):
    """Raised when API Gateway has no such key or no such plan."""


class SupersededError(FailedError):
    """Raised when CloudFormation has sent a newer request for the same resource: it has given this one up."""


class OutOfTimeError(FailedError):
    """Raised when there is no time left for another attempt: CloudFormation's is nearly up."""


class NotBegunError(OutOfTimeError):
    """Raised when there was no time left for even one attempt."""


class TurnOverError(OutOfTimeError):
    """Raised when the function's time is nearly up and CloudFormation's is not: the next invocation serves the request again.

    Attributes:
        opens: Until when API Gateway has asked not to be called, in epoch seconds.
    """

    def __init__(self, text: str, opens: float = -math.inf) -> None:
        super().__init__(text)
        self.opens = opens


class EventError(ValueError):
    """Raised when an event lacks what an answer needs: there is nobody to answer, or nothing to answer with."""


class UnclearError(Exception):
    """Raised when nobody knows whether the queue has taken a request. Tried again, it is recognised."""


class UnreadableError(Exception):
    """Raised when a reply says that a call was served and cannot be read: a proxy's page, say, or one that was cut short."""


class UndeliveredError(Exception):
    """Raised when an answer could not be delivered: the invocation fails, so that the request is served again."""


class IncompleteError(Exception):
    """Raised at the end of a watch that has not seen everything; what it has seen is reported."""
