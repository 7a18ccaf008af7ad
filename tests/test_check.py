"""A part of the exhaustive check. `make check` plays all of it, with more surprises in each play."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

from .check.__main__ import explore
from .check.broken import RULES, explore_broken
from .check.searches import SEARCHES


def test_the_check_finds_each_broken_rule_and_as_far_nothing_in_the_intact_function() -> None:
    """In each search at least the short orders of events with one surprise."""
    most = dict.fromkeys([(name, 1) for name in SEARCHES], 150)
    with ProcessPoolExecutor() as pool:
        for rule, found in zip(RULES, pool.map(explore_broken, RULES), strict=True):
            assert [what for what in found.wrong if what.startswith(rule.promise)], rule.name
            search = rule.search, int(rule.surprises)
            most[search] = max(most.get(search, 0), found.runs)
        names, surprises = zip(*most, strict=True)
        intact = dict(zip(most, pool.map(explore, names, most.values(), surprises), strict=True))
    assert {search: found.wrong for search, found in intact.items() if found.wrong} == {}
    assert min(found.runs for found in intact.values()) > 10
