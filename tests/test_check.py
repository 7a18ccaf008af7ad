"""A part of the exhaustive check. `make check` plays all of it, with more surprises in each play."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor

import pytest

from .check.__main__ import explore
from .check.broken import RULES, explore_broken
from .check.searches import SEARCHES


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with ProcessPoolExecutor() as made:
        yield made


def test_no_short_order_of_events_with_one_surprise_breaks_a_promise(pool: Executor) -> None:
    found = dict(
        zip(SEARCHES, pool.map(explore, SEARCHES, [150] * len(SEARCHES), [1] * len(SEARCHES)), strict=True)
    )
    assert {name: one.wrong for name, one in found.items() if one.wrong} == {}
    assert min(one.runs for one in found.values()) > 10


def test_the_check_finds_each_broken_rule_and_nothing_in_the_intact_function(pool: Executor) -> None:
    for rule, (found, intact) in zip(RULES, pool.map(explore_broken, range(len(RULES))), strict=True):
        assert [what for what in found.wrong if what.startswith(rule.promise)], rule.name
        assert intact.wrong == {}, rule.name
        assert intact.runs >= found.runs
