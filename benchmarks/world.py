"""Makes virtual time: each function has a thread, one thread runs at a time, time passes when all sleep."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: A date in the future, so that no code can mistake virtual time for real time.
BEGINNING = 2_000_000_000.0


class Death(BaseException):
    """The function ends here and now, whatever it was doing."""


@dataclass(eq=False)
class Process:
    """A function's threads, which die together.

    Attributes:
        ends: When Lambda ends it.
        steps: After so many steps (calls to others, and half-calls) it dies; None for never.
        dead: Whether it has died.
        rounds: Its number among the invocations in a chain of messages that the function sends to its own
            queue.
    """

    ends: float
    steps: int | None = None
    dead: bool = False
    rounds: int = 1
    threads: list[_Thread] = field(default_factory=list)


class _Thread:
    def __init__(self, process: Process | None) -> None:
        self.turn = threading.Lock()
        self.turn.acquire()
        self.process = process
        self.parked = False
        if process:
            process.threads.append(self)


class World:
    """A clock, and the threads that wake at a time.

    >>> world = World(seed=1)
    >>> world.spawn(world.sleep, 5.0)
    >>> world.run()
    >>> world.now
    5.0
    """

    def __init__(self, seed: int) -> None:
        """Begin."""
        self.dice = Random(seed)
        self.frozen = False
        """Whether time stands still, as during the preparations."""
        self._time = 0.0
        self._agenda: list[tuple[float, int, _Thread | Callable[[], object]]] = []
        self._number = count()
        self._main = self._current = _Thread(None)
        self._alive: set[_Thread] = set()
        self._errors: list[BaseException] = []

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return self._time

    def time(self) -> float:
        """See `retry.Clock`."""
        return BEGINNING + self._time

    def sleep(self, seconds: float, /) -> None:
        """Let time pass, in the running thread."""
        if self.frozen:
            return
        thread = self._current
        self._perhaps_die(thread, step=True)
        if thread.process and self._time + seconds > thread.process.ends - BEGINNING:
            seconds = max(0.0, thread.process.ends - BEGINNING - self._time)
            self._yield(thread, seconds)
            self.kill(thread.process)
            raise Death
        self._yield(thread, seconds)
        self._perhaps_die(thread)

    def at(self, seconds: float, action: Callable[[], object]) -> None:
        """Do something after so many seconds. It must not sleep."""
        heappush(self._agenda, (self._time + seconds, next(self._number), action))

    def spawn(self, call: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """Start a thread. It belongs to no process until it joins one."""
        self._spawn(lambda: call(*args, **kwargs), None)

    def _spawn(self, call: Callable[[], Any], process: Process | None) -> None:
        thread = _Thread(process)
        self._alive.add(thread)

        def body() -> None:
            thread.turn.acquire()
            try:
                call()
            except Death:
                pass
            except BaseException as error:  # noqa: BLE001  # `run` raises it
                self._errors.append(error)
            self._alive.discard(thread)
            self._next()

        threading.Thread(target=body, daemon=True).start()
        heappush(self._agenda, (self._time, next(self._number), thread))

    def within(self, process: Process, call: Callable[[], T]) -> T:
        """Run a call as a process, in the running thread.

        Raises:
            Death: The process died.
        """
        thread = self._current
        thread.process, before = process, thread.process
        process.threads.append(thread)
        try:
            return call()
        finally:
            thread.process = before
            process.threads.remove(thread)

    @property
    def process(self) -> Process | None:
        """The running thread's process."""
        return self._current.process

    def kill(self, process: Process) -> None:
        """End all threads of a process."""
        process.dead = True
        for thread in process.threads:
            self.wake(thread)

    def park(self) -> None:
        """Sleep until somebody wakes this thread."""
        thread = self._current
        thread.parked = True
        self._perhaps_die(thread)
        self._next()
        thread.turn.acquire()
        self._perhaps_die(thread)

    def wake(self, thread: _Thread) -> None:
        """Wake a thread that has parked."""
        if thread.parked:
            thread.parked = False
            heappush(self._agenda, (self._time, next(self._number), thread))

    def run(self) -> None:
        """Let time pass until nothing remains to do, then end the threads that still wait.

        Raises:
            BaseException: A thread raised it.
        """
        self._pass()
        for thread in self._alive:
            thread.process = Process(0.0, dead=True)
            self.wake(thread)
        self._pass()
        if self._errors:
            raise self._errors[0]

    def _pass(self) -> None:
        self._next()
        self._main.turn.acquire()
        self._current = self._main

    def _perhaps_die(self, thread: _Thread, *, step: bool = False) -> None:
        process = thread.process
        if process is None:
            return
        if step and process.steps is not None:
            process.steps -= 1
            if process.steps < 0:
                self.kill(process)
        if process.dead:
            raise Death

    def _yield(self, thread: _Thread, seconds: float) -> None:
        heappush(self._agenda, (self._time + max(0.0, seconds), next(self._number), thread))
        if self._next(thread):
            return
        thread.turn.acquire()

    def _next(self, running: _Thread | None = None) -> bool:
        """Hand over to the next thread; return True if that is the running one."""
        while self._agenda and not self._errors:
            self._time, _, whoever = heappop(self._agenda)
            if isinstance(whoever, _Thread):
                self._current = whoever
                if whoever is running:
                    return True
                whoever.turn.release()
                return False
            whoever()
        self._main.turn.release()
        return False


class Signal:
    """Wakes the threads that wait for it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._waiting: list[_Thread] = []

    def wait(self) -> None:
        """Wait until it is set the next time."""
        self._waiting.append(self._world._current)  # noqa: SLF001  # the same file
        self._world.park()

    def set(self) -> None:
        """Wake all waiting threads."""
        waiting, self._waiting = self._waiting, []
        for thread in waiting:
            self._world.wake(thread)


class Background(Executor):
    """An executor in virtual time. It dies with the process that made it."""

    def __init__(self, world: World, threads: int = 1) -> None:
        """Start up to so many threads, each when a job finds none idle, as ThreadPoolExecutor does."""
        self._world = world
        self._jobs: list[tuple[Future[Any], Callable[[], Any]]] = []
        self._signal = Signal(world)
        self._unborn, self._alive, self._idle = threads, 0, 0
        self._closed = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """See `Executor`."""
        future: Future[T] = Future()
        self._jobs.append((future, lambda: fn(*args, **kwargs)))
        if self._unborn and self._idle < len(self._jobs):
            self._unborn -= 1
            self._alive += 1
            self._idle += 1
            self._world._spawn(self._work, self._world.process)  # noqa: SLF001  # the same file
        self._signal.set()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `Executor`. A dead process waits for nobody."""
        self._closed = True
        self._signal.set()
        while self._alive and not (self._world.process and self._world.process.dead):
            self._signal.wait()

    def _work(self) -> None:
        while self._jobs or not self._closed:
            if not self._jobs:
                self._signal.wait()
                continue
            future, job = self._jobs.pop(0)
            self._idle -= 1
            try:
                future.set_result(job())
            except Exception as error:  # noqa: BLE001  # the future's to tell
                future.set_exception(error)
            self._idle += 1
        self._alive -= 1
        self._signal.set()
