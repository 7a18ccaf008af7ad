"""A part of the fault campaign: every 40th of its plays, and some malformed events. `make campaign` makes all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest

from usage_plan_key import response, rules
from usage_plan_key.api_gateway import ApiGateway

from .campaign import events
from .campaign.__main__ import Cell, at_random, calls, made, pairs, single
from .campaign.play import play
from .campaign.stories import STORIES

KINDS: dict[str, Callable[[], Iterator[Cell]]] = {
    "single faults": lambda: islice(single(), 0, None, 40),
    "two deaths": lambda: islice(pairs(), 0, None, 60),
    "several faults": lambda: at_random(1, 200),
}


@pytest.mark.parametrize("story", STORIES)
def test_a_story_without_faults_ends_well(story: str) -> None:
    done = play(story)
    assert (done.wrong, done.excepted, done.struck) == ([], [], [])
    assert done.calls == calls(story), "and as it did before"


@pytest.mark.parametrize("kind", KINDS)
def test_no_fault_breaks_a_promise(kind: str) -> None:
    cells: list[Cell] = list(KINDS[kind]())
    wrong = [(cell, done.wrong) for cell in cells if (done := made(cell)).wrong]
    assert not wrong, wrong[:3]
    assert len(cells) >= 200


def test_malformed_events_are_answered_or_refused_in_one_sentence() -> None:
    counts, wrong = events.told(range(3000))
    assert not wrong, wrong[:3]
    assert set(counts) == {"answered SUCCESS", "answered FAILED", "refused in one sentence"}


def broken(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The function, without one of its rules."""

    def logged(url: str, **named: Any) -> Any:
        response.logger.debug(url)
        return read(url, **named)

    read = response.destination
    match how:
        case "nothing is superseded":
            monkeypatch.setattr(rules, "check_superseded", lambda record, request: None)
        case "what was there before is ours":
            monkeypatch.setattr(rules, "_preexisting", lambda state, request: state)
        case "nothing is detached":
            monkeypatch.setattr(ApiGateway, "detach", lambda self, association, deadline: None)
        case "URLs are logged":
            monkeypatch.setattr(response, "destination", logged)


@pytest.mark.parametrize(
    ("how", "story", "found"),
    [
        ("nothing is superseded", "delete before create", "left behind"),
        ("what was there before is ours", "adopt", "stranger"),
        ("nothing is detached", "create and delete", "left behind"),
        ("URLs are logged", "create", "a secret is written"),
    ],
)
def test_a_function_without_one_of_its_rules_is_found_out(
    monkeypatch: pytest.MonkeyPatch, how: str, story: str, found: str
) -> None:
    broken(monkeypatch, how)
    assert any(found in text for text in play(story).wrong)
