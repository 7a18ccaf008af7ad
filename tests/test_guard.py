"""The guard: one thread, whatever it watches."""

from __future__ import annotations

import threading
import time
from queue import Empty, SimpleQueue

import pytest

from usage_plan_key.guard import Guard


class Struck:
    """What was called, in its order."""

    def __init__(self) -> None:
        self._names: SimpleQueue[str] = SimpleQueue()

    def by(self, name: str) -> None:
        self._names.put(name)

    def next(self, seconds: float = 5.0) -> str:
        return self._names.get(timeout=seconds)

    def none(self, seconds: float) -> bool:
        with pytest.raises(Empty):
            self._names.get(timeout=seconds)
        return True


@pytest.fixture
def struck() -> Struck:
    return Struck()


def test_it_strikes_when_the_time_has_come_and_not_before(struck: Struck) -> None:
    began = time.monotonic()
    Guard().watch(0.2, lambda: struck.by("it"))
    assert struck.next() == "it"
    assert time.monotonic() - began >= 0.2
    assert struck.none(0.1), "and once"


def test_it_does_not_strike_for_what_was_cancelled(struck: Struck) -> None:
    Guard().watch(0.5, lambda: struck.by("it")).cancel()
    assert struck.none(0.7)


def test_what_was_cancelled_may_be_cancelled_again(struck: Struck) -> None:
    watch = Guard().watch(0.05, lambda: struck.by("it"))
    assert struck.next() == "it"
    watch.cancel()
    watch.cancel()


def test_a_time_that_is_over_strikes_at_once(struck: Struck) -> None:
    Guard().watch(-1.0, lambda: struck.by("it"))
    assert struck.next() == "it"


def test_what_is_due_first_strikes_first_whenever_it_was_told_of(struck: Struck) -> None:
    """It sleeps until the later one by then, and is woken for the earlier one."""
    guard = Guard()
    guard.watch(2.0, lambda: struck.by("later"))
    time.sleep(0.05)
    guard.watch(0.1, lambda: struck.by("sooner"))
    assert [struck.next(), struck.next()] == ["sooner", "later"]


def test_it_strikes_for_what_came_after_it_had_nothing_to_watch(struck: Struck) -> None:
    guard = Guard()
    guard.watch(0.05, lambda: struck.by("first"))
    assert struck.next() == "first"
    time.sleep(0.1)
    guard.watch(0.05, lambda: struck.by("second"))
    assert struck.next() == "second"


@pytest.mark.parametrize("fault", ["hangs", "raises"])
def test_a_strike_that_comes_to_nothing_does_not_keep_it_from_the_next(
    fault: str, struck: Struck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    released = threading.Event()

    def strike() -> None:
        if fault == "raises":
            raise OSError
        released.wait(10)

    guard = Guard()
    guard.watch(0.0, strike)
    guard.watch(0.1, lambda: struck.by("next"))
    assert struck.next() == "next"
    released.set()


def test_requests_that_are_over_in_time_neither_wake_it_nor_start_threads(
    struck: Struck, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = Guard()
    looked = 0
    sleeps = threading.Event()
    wait = guard._changed.wait

    def counted(seconds: float | None) -> bool:
        nonlocal looked
        looked += 1
        sleeps.set()
        return wait(seconds)

    monkeypatch.setattr(guard._changed, "wait", counted)
    before = set(threading.enumerate())
    first = guard.watch(60.0, lambda: struck.by("it"))
    assert sleeps.wait(5)
    first.cancel()
    for _ in range(20):
        guard.watch(60.0, lambda: struck.by("it")).cancel()
    assert [thread.name for thread in set(threading.enumerate()) - before] == ["guard"]
    assert looked == 1
