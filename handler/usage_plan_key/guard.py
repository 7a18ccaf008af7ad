"""Strikes when a request's time is nearly up, and the thread that serves it hangs."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable


class Watch:
    """That something is to be called at a time, unless it is cancelled before."""

    def __init__(self, guard: Guard, at: float, strike: Callable[[], object]) -> None:
        """Made by `Guard.watch`."""
        self._guard = guard
        self.at = at
        self.strike = strike

    def cancel(self) -> None:
        """Call it no more; what has been begun goes on."""
        self._guard.forget(self)


class Guard:
    """One thread watches all requests: threading.Timer starts one for each, which costs a fifth of what the whole request does.

    It sleeps until the earliest time that it knew of when it lay down, and looks then what is watched by now. A request that
    is over in time does not wake it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watches: set[Watch] = set()
        self._wakes = math.inf
        self._thread: threading.Thread | None = None

    def watch(self, seconds: float, strike: Callable[[], object]) -> Watch:
        """Have `strike` called, in a thread of its own, when so many seconds have passed."""
        watch = Watch(self, time.monotonic() + seconds, strike)
        with self._changed:
            self._watches.add(watch)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="guard", daemon=True)
                self._thread.start()
            elif watch.at < self._wakes:
                self._changed.notify()
        return watch

    def forget(self, watch: Watch) -> None:
        """See `Watch.cancel`."""
        with self._changed:
            self._watches.discard(watch)

    def _run(self) -> None:
        while True:
            # In a thread of its own, which is made where it strikes alone: one that hangs, too, must not keep it from the next.
            threading.Thread(target=self._next().strike, name="strike", daemon=True).start()

    def _next(self) -> Watch:
        with self._changed:
            while True:
                first = min(self._watches, key=lambda watch: watch.at, default=None)
                self._wakes = first.at if first else math.inf
                if first and first.at <= time.monotonic():
                    self._watches.remove(first)
                    self._wakes = math.inf
                    return first
                self._changed.wait(first.at - time.monotonic() if first else None)
