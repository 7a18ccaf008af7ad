"""The rules that a story cannot show row by row: the fence, the memory, times, and whom a Reason names."""

import json
import math
from typing import Any

import pytest

from usage_plan_key import model, rules
from usage_plan_key.errors import Again
from usage_plan_key.model import (
    Association,
    AssociationRecord,
    Holder,
    Note,
    ResourceRecord,
    Response,
    Snapshot,
)
from usage_plan_key.request import Create, Delete, Invalid, Request, Update

FREE, PRO = Association("alice", "free"), Association("alice", "pro")
THIS, SIBLING, NAMESAKE = (
    Holder(f"arn:aws:cloudformation:eu-west-1:1:stack/{stack}", name)
    for stack, name in (("one/1", "A"), ("one/1", "B"), ("one/2", "A"))
)
FOUR = [Holder("arn:aws:cloudformation:eu-west-1:1:stack/two/1", name) for name in "DCBA"]
NOW = 1_764_000_000
COMMON: dict[str, Any] = {"holder": THIS, "response_url": "https://x", "service_timeout": 3600}
INVALID = Invalid(id="i", physical_id=None, wanted=FREE, faults=("?",), issued=1, **COMMON)
DONE = Response(success=True, at=NOW)


def create(wanted: Association = FREE, at: int | None = 1) -> Create:
    return Create(id="c", wanted=wanted, issued=at, **COMMON)


def update(had: str = FREE.id, wanted: Association = FREE, at: int | None = 2, id_: str = "u") -> Update:
    return Update(id=id_, physical_id=had, wanted=wanted, issued=at, **COMMON)


def delete(had: str = FREE.id, at: int | None = 3) -> Delete:
    return Delete(id="d", physical_id=had, issued=at, **COMMON)


def arrived(*requests: Request, record: ResourceRecord | None = None) -> ResourceRecord:
    record = record or ResourceRecord()
    for request in requests:
        record = rules.fence(record, request, NOW)
    return record


@pytest.mark.parametrize(
    ("requests", "order", "wants"),
    [
        pytest.param([create(at=1), delete(at=7)], "cd", None, id="by issue time"),
        pytest.param([update(at=8), delete(PRO.id, at=3)], "du", FREE, id="though it arrives late"),
        pytest.param([update(at=6), update(id_="v", at=6)], "uv", FREE, id="in a second by arrival"),
        pytest.param([update(at=6), update(at=6)], "u", FREE, id="itself again"),
        pytest.param([delete("invented", at=6), create(at=6)], "cd", None, id="a cancelled Create's Delete"),
        pytest.param([delete(at=6), create(at=6)], "dc", FREE, id="a Delete, and a new Create"),
        pytest.param(
            [update("former", at=5), delete("former", at=6), create(at=6)], "udc", FREE, id="a former one's"
        ),
        pytest.param([delete("invented", at=6), update(at=6)], "du", FREE, id="an Update passes it"),
        pytest.param([update(at=6), delete(at=None)], "ud", None, id="without a time it is issued now"),
        pytest.param([update(at=NOW + 9), delete(at=None)], "ud", None, id="and never older than another"),
        pytest.param([update(at=None), delete(at=7)], "du", FREE, id="an older one after it"),
        pytest.param([update(wanted=PRO), delete()], "ud", PRO, id="a Delete of the old one"),
        pytest.param([update("former"), delete("former")], "ud", FREE, id="a Delete of a former one's id"),
        pytest.param([create(PRO), INVALID], "ci", PRO, id="unusable properties"),
    ],
)
def test_each_request_has_its_rank_and_the_newest_decides_what_is_wanted(
    requests: list[Request], order: str, wants: Association | None
) -> None:
    record = arrived(*requests)
    assert ("".join(note.id for note in record.notes), record.wants) == (order, wants)
    for request in requests:
        assert rules.is_superseded(record, request) is (request.id != order[-1])


def test_after_its_time_none_is_newer_than_another_of_its_second() -> None:
    record = rules.fence(arrived(create(at=6)), update(at=6), NOW, is_over=True)
    assert [note.id for note in record.notes] == ["u", "c"]


class TestNotes:
    """The page of a resource remembers its requests for a day."""

    @pytest.mark.parametrize(
        ("age", "kept"), [(model.REMEMBERED, ["new", "c"]), (model.REMEMBERED - 1, ["old", "new", "c"])]
    )
    def test_an_older_answer_is_dropped_but_for_the_newest_ones(self, age: int, kept: list[str]) -> None:
        """Without its answer, the newest request would count as pending."""
        old, new = Note("old", 1, answer=DONE._replace(at=NOW - age)), Note("new", 2)
        record = ResourceRecord(notes=(old, new))
        assert [note.id for note in arrived(create(at=9), record=record).notes] == kept
        answered = ResourceRecord(notes=(Note("new", 9, answer=DONE._replace(at=1)),))
        assert not rules.is_pending(arrived(delete(at=3), record=answered))

    def test_a_page_cannot_outgrow_dynamodbs_limit(self) -> None:
        notes = tuple(Note(f"r{number}", 1) for number in range(rules.MOST_NOTES))
        kept = arrived(create(at=2), record=ResourceRecord(notes=notes)).notes
        assert [note.id for note in kept] == [note.id for note in notes[1:]] + ["c"]

    def test_the_first_answer_stands_without_its_value(self) -> None:
        given = DONE._replace(value="s3cr3t")
        record = rules.answered(ResourceRecord(), delete(), given)
        assert rules.answered(record, delete(), given._replace(success=False)) == record
        assert record.notes == (Note("d", 3, answer=DONE),)
        assert "s3cr3t" not in repr(given)


def test_an_answer_about_what_is_not_held_begins_no_belief() -> None:
    assert rules.answered(ResourceRecord(), update(wanted=PRO), DONE).holds == {}


def test_a_request_that_goes_back_has_not_died() -> None:
    died = rules.begin(rules.begin(arrived(create()), create()), create())
    (back,) = rules.refused(died, create(), Again(), NOW, NOW + 5).notes
    assert back == Note("c", 1, begun=False, deaths=1, refusals=1, until=NOW + 5)
    assert rules.gone_back(arrived(create()), create()).notes == (Note("c", 1),)
    assert rules.gone_back(ResourceRecord(), create()) == ResourceRecord(), "nobody has noted it"


def test_a_detaching_that_somebody_else_has_finished_changes_nothing() -> None:
    state = Snapshot(ResourceRecord(), {FREE: AssociationRecord(frozenset({THIS}), model.Origin.OURS)})
    assert rules.detached(state, THIS, FREE, NOW) == state


@pytest.mark.parametrize(
    ("refusals", "now", "after", "roll", "until"),
    [
        (0, 0, 0, 0, 1),
        (0, 0, 0, 1, 2),
        (2, 0, 0, 0.5, 6),
        (6, 0, 0, 1, 120),
        (40, 0, 0, 0, 60),
        pytest.param(0, 0, 30, 1, 30, id="what API Gateway asks for, without jitter"),
        pytest.param(0, 0, 30.2, 1, 31, id="in whole seconds, and none too early"),
        pytest.param(0, 899, 0, 0, 900, id="the last try: at its first moment"),
        pytest.param(0, 899, 0, 1, 960, id="the last try: at its last moment"),
        pytest.param(0, 850, 80, 0, 930, id="the last try: not before API Gateway has asked for it"),
        pytest.param(0, 850, 80, 0.5, 945, id="the last try: between that and its last moment"),
        pytest.param(0, 850, 110, 0.5, 960, id="API Gateway asks for the last moment itself"),
        pytest.param(0, 850, 111, 0, 0, id="API Gateway asks for more time than there is"),
        pytest.param(0, 900, 0, 0, 0, id="this was the last try"),
    ],
)
def test_the_next_try_comes_after_two_seconds_doubled_to_two_minutes_and_the_last_at_random(
    refusals: int, now: float, after: float, roll: float, until: int
) -> None:
    """The last try falls into 900 to 960 seconds from now."""
    note, last = Note("c", refusals=refusals + 3, paced=3), (NOW + 900, NOW + 960)
    again, expected = Again(after), NOW + until if until else 0
    assert rules.next_try(note, again, NOW + now, last, roll) == expected
    assert refusals or rules.next_try(None, again, NOW + now, last, roll) == expected
    # While API Gateway is busy with others, a stack must not sleep when that ends.
    longest = min(2 + refusals / 2, 20)
    assert rules.next_try(note, Again(busy=True), NOW, last, 1) == NOW + math.ceil(longest)


@pytest.mark.parametrize(
    ("holders", "named"),
    [
        ([THIS, SIBLING], "A of stack one, B of stack one"),
        ([SIBLING, NAMESAKE], "B of stack one, A of stack one (2)"),
        (FOUR, "A of stack two, B of stack two, C of stack two and 1 more"),
    ],
)
def test_what_blocks_a_key_is_named(holders: list[Holder], named: str) -> None:
    """The stories tell the remedies."""
    asked = {"StackId": min(holders)[0], "LogicalResourceId": min(holders)[1]}
    assert json.loads(rules.way_out(holders).partition(" with ")[2]) == {"LetGo": asked}
    entry = AssociationRecord(frozenset(holders), model.Origin.OURS)
    said = rules.left_alone(entry, update(wanted=PRO))
    assert f"That association is held by {named}, so the function left it alone. " in said


def test_any_text_may_be_a_foreign_id() -> None:
    assert len(model.digest("\ud800")) == len(model.digest("")) == 32
