"""A part of the fault campaign, and some malformed events. `make campaign` makes all of its plays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest

from usage_plan_key import response, rules
from usage_plan_key.api_gateway import ApiGateway
from usage_plan_key.model import Origin, Response
from usage_plan_key.service import Service

from .campaign import events
from .campaign.__main__ import ALIKE, Cell, at_random, calls, guards, made, pairs, single
from .campaign.play import play
from .campaign.stories import STORIES

KINDS: dict[str, Callable[[], Iterator[Cell]]] = {
    "single faults": lambda: islice(
        single(), 0, None, 61
    ),  # a step that has no factor in common with the faults of a call
    "two deaths": lambda: islice(pairs(), 0, None, 90),
    "the guard dies": lambda: islice(guards(), 0, None, 35),
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


def test_an_answer_that_could_not_be_written_down_may_be_given_anew_and_the_log_says_so() -> None:
    refused = (("hangs for ever", 4, 0.0), ("the table is gone", 4, 0.0))
    done = made(Cell("at random", "delete before create", refused, 0))
    assert not done.wrong
    assert any("two answers" in text for text in done.excepted)


def test_malformed_events_are_answered_or_refused_in_one_sentence() -> None:
    counts, wrong = events.told(range(3000))
    assert not wrong, wrong[:3]
    assert set(counts) == {"answered SUCCESS", "answered FAILED", "refused in one sentence"}


def broken(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Take one of its rules from the function."""

    def logged(url: str, **named: Any) -> Any:
        response.logger.debug(url)
        return read(url, **named)

    def failed(service: Service, reason: str) -> Response:
        return Response(success=False, id=service._request.answer_id, reason=reason)

    read = response.destination
    match how:
        case "nothing is superseded":
            monkeypatch.setattr(rules, "is_superseded", lambda record, request: False)
        case "what was there before is ours":
            ours = lambda state, request: state.with_entry(request.wanted, origin=Origin.OURS)  # noqa: E731
            monkeypatch.setattr(rules, "whose", ours)
        case "nothing is detached":
            monkeypatch.setattr(ApiGateway, "detach", lambda self, association, deadline: None)
        case "the guard's answer is not written down":
            monkeypatch.setattr(Service, "fail", failed)
        case "an invented id names nothing":
            monkeypatch.setattr(
                rules, "releases", lambda state, request: [named] if (named := request.identified) else []
            )
        case "nobody mends what a restored ledger has forgotten":
            monkeypatch.setattr("tests.campaign.play._mend", lambda cfn: None)
        case "URLs are logged":
            monkeypatch.setattr(response, "destination", logged)


@pytest.mark.parametrize(
    ("how", "story", "fault", "found"),
    [
        ("nothing is superseded", "delete before create", "", "left behind"),
        ("what was there before is ours", "adopt", "", "stranger"),
        ("nothing is detached", "create and delete", "", "left behind"),
        ("URLs are logged", "create", "", "a secret is written"),
        (
            "the guard's answer is not written down",
            "create",
            "hangs until the guard has answered",
            "two answers",
        ),
        ("an invented id names nothing", "create", "CloudFormation gives the request up", "left behind"),
        (
            "nobody mends what a restored ledger has forgotten",
            "rename",
            "restored to 2 changes ago",
            "when it is mended",
        ),
    ],
)
def test_a_function_without_one_of_its_rules_is_found_out(
    monkeypatch: pytest.MonkeyPatch, how: str, story: str, fault: str, found: str
) -> None:
    cells = [cell for cell in single() if cell.story == story and cell.faults[0][0] == fault] if fault else []
    broken(monkeypatch, how)
    plays = [made(cell) for cell in cells] or [play(story)]
    assert any(found in text for done in plays for text in done.wrong)


@pytest.mark.parametrize("by", ["README", "CDK"])
@pytest.mark.parametrize("story", ALIKE)
def test_others_end_well_without_faults_but_for_their_logs_and_repeated_requests(story: str, by: str) -> None:
    done = play(story, by=by)
    assert [
        text
        for text in done.wrong
        if "a secret" not in text and "anew" not in text and "two answers" not in text
    ] == []
