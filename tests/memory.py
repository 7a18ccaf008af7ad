"""Fakes in memory: a clock that only sleeping moves, and an executor that does its work at once."""

from concurrent.futures import Executor, Future
from typing import Any

from usage_plan_key.retry import Deadline


class Clock:
    """Virtual time, in seconds, and the length of each sleep."""

    def __init__(self, now: float = 1_764_000_000.0) -> None:
        self.now, self.slept = now, list[float]()

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.now += seconds
        self.slept.append(seconds)


def within(seconds: float, clock: Clock, **more: Any) -> Deadline:
    """Make a deadline so many seconds from now."""
    return Deadline.by(clock.now + seconds, clock, **more)


class Inline(Executor):
    """An executor that does its work at once."""

    def submit(self, call: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*arguments, **named))
        except Exception as error:  # noqa: BLE001  # as an executor does
            future.set_exception(error)
        return future
