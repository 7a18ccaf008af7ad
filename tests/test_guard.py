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
    Guard().watch(0.05, lambda: struck.by("it")).cancel()
    assert struck.none(0.2)


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
    guard.watch(0.4, lambda: struck.by("later"))
    time.sleep(0.05)
    guard.watch(0.1, lambda: struck.by("sooner"))
    assert [struck.next(), struck.next()] == ["sooner", "later"]


def test_it_strikes_for_what_came_after_it_had_nothing_to_watch(struck: Struck) -> None:
    guard = Guard()
    guard.watch(0.05, lambda: struck.by("first"))
    assert struck.next() == "first"
    guard.watch(0.05, lambda: struck.by("second")).cancel()
    time.sleep(0.1)
    guard.watch(0.05, lambda: struck.by("third"))
    assert struck.next() == "third"


def test_there_is_one_thread_for_all_requests_and_those_that_are_over_in_time_do_not_wake_it(
    struck: Struck, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = Guard()
    looked: list[float] = []
    changed = guard._changed
    wait = changed.wait

    def counted(seconds: float | None) -> bool:
        looked.append(time.monotonic())
        return wait(seconds)

    monkeypatch.setattr(changed, "wait", counted)
    before = threading.active_count()
    for _ in range(20):
        watch = guard.watch(30.0, lambda: struck.by("it"))
        time.sleep(0.01)
        watch.cancel()
    assert threading.active_count() == before + 1
    assert len(looked) == 1
