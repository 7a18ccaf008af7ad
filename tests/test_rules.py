"""The rules that a story cannot show row by row: beliefs, times, the fence's rank, and what Reasons say."""

from __future__ import annotations

import math
from typing import Any

import pytest

from usage_plan_key import decide, rules
from usage_plan_key.errors import TurnOverError
from usage_plan_key.model import (
    REMEMBERED,
    Association,
    AssociationRecord,
    Belief,
    Hold,
    Holder,
    Note,
    Origin,
    ResourceRecord,
    Response,
    Snapshot,
    Standing,
    digest,
)
from usage_plan_key.request import Create, Delete, Invalid, OnExisting, Request, Update
from usage_plan_key.rules import MOST_NOTES, Event
from usage_plan_key.service import looked_at

FREE, PRO, GOLD = (Association("alice", plan) for plan in ("free", "pro", "gold"))
THIS, SIBLING, NAMESAKE = (
    Holder(f"arn:aws:cloudformation:eu-west-1:1:stack/{stack}", name)
    for stack, name in (("one/1", "A"), ("one/1", "B"), ("one/2", "A"))
)
NOW = 1_764_000_000
COMMON: dict[str, Any] = {"holder": THIS, "response_url": "https://x", "service_timeout": 3600}


def create(wanted: Association = FREE, *, id_: str = "c", at: int | None = 1) -> Create:
    return Create(id=id_, wanted=wanted, issued=at, **COMMON)


def update(
    had: Association | str = FREE,
    wanted: Association = FREE,
    *,
    id_: str = "u",
    at: int | None = 2,
    **more: Any,
) -> Update:
    physical_id = had.id if isinstance(had, Association) else had
    return Update(id=id_, physical_id=physical_id, wanted=wanted, issued=at, **more, **COMMON)


def delete(had: Association | str = FREE, *, id_: str = "d", at: int | None = 3) -> Delete:
    return Delete(id=id_, physical_id=had.id if isinstance(had, Association) else had, issued=at, **COMMON)


INVALID = Invalid(id="i", physical_id=None, wanted=FREE, faults=("?",), issued=1, **COMMON)


def by(*holders: Holder, **marks: Any) -> AssociationRecord:
    return AssociationRecord(frozenset(holders), **{"origin": Origin.OURS, **marks})


def arrived(*requests: Request, record: ResourceRecord | None = None) -> ResourceRecord:
    record = record or ResourceRecord()
    for request in requests:
        record = rules.fence(record, request, NOW)
    return record


def answer(at: int = NOW, *, success: bool = True) -> Response:
    return Response(success=success, id="x", at=at)


@pytest.mark.parametrize(
    ("belief", "goes_on"),
    [
        (
            Belief.OPEN,
            "named: known, deleted: going, reborn: known, succeeded: given, left: open, failed: failed",
        ),
        (
            Belief.GIVEN,
            "named: known, deleted: going, reborn: known, succeeded: given, left: left, failed: given",
        ),
        (
            Belief.KNOWN,
            "named: known, deleted: going, reborn: known, succeeded: known, left: left, failed: known",
        ),
        (
            Belief.LEFT,
            "named: left, deleted: going, reborn: known, succeeded: known, left: left, failed: left",
        ),
        (
            Belief.GOING,
            "named: going, deleted: going, reborn: going, succeeded: known, left: going, failed: going",
        ),
        (
            Belief.FAILED,
            "named: failed, deleted: failed, reborn: failed, succeeded: given, left: failed, failed: failed",
        ),
    ],
)
def test_each_belief_goes_on_to_others(belief: Belief, goes_on: str) -> None:
    for way in goes_on.split(", "):
        event, _, expected = way.partition(": ")
        record = ResourceRecord({FREE: Hold("c", belief), PRO: Hold("c", belief)})
        holds = rules._believe(record, [FREE, None, GOLD], Event[event.upper()]).holds
        assert (holds[FREE].belief, holds[PRO].belief) == (expected, belief), event


@pytest.mark.parametrize(
    ("entry", "stands"),
    [
        (by(), Standing.NOBODY),
        (by(THIS), Standing.THIS),
        (by(THIS, SIBLING, NAMESAKE), Standing.THIS),
        (by(SIBLING), Standing.SIBLING),
        (by(SIBLING, NAMESAKE), Standing.SIBLING),
        (by(NAMESAKE), Standing.STRANGERS),
    ],
)
def test_a_stack_is_its_arn_and_not_its_name(entry: AssociationRecord, stands: Standing) -> None:
    assert rules.standing(entry, THIS) is stands


class TestNextTry:
    """When a refused request asks API Gateway again: its last try falls into 900 to 960 seconds from now."""

    @pytest.mark.parametrize(
        ("refusals", "roll", "until"),
        [
            (0, 0, 1),
            (0, 1, 2),
            (1, 0, 2),
            (1, 1, 4),
            (2, 0.5, 6),
            (5, 1, 64),
            (6, 1, 120),
            (20, 0, 60),
            (20, 1, 120),
        ],
    )
    def test_it_is_half_to_all_of_two_seconds_doubled_to_two_minutes(
        self, refusals: int, roll: float, until: int
    ) -> None:
        note, why = Note("c", refusals=refusals + 3, paced=3), TurnOverError("it", "no", refused=True)
        assert rules.next_try(note, why, NOW, (NOW + 900, NOW + 960), roll) == NOW + until
        if not refusals:
            assert rules.next_try(None, why, NOW, (NOW + 900, NOW + 960), roll) == NOW + until
        # While it is busy with others, a stack must not sleep when that ends.
        busy = TurnOverError("it", "busy", refused=True, is_busy=True)
        longest = math.ceil(min(8 + refusals / 4, 20, 2 ** (refusals + 1)))
        assert rules.next_try(note, busy, NOW, (NOW + 900, NOW + 960), 1) == NOW + longest

    @pytest.mark.parametrize(
        ("now", "after", "roll", "until"),
        [
            pytest.param(0, 30, 1, 30, id="what API Gateway asks for, without jitter"),
            pytest.param(0, 30.2, 1, 31, id="in whole seconds, and none too early"),
            pytest.param(899, 0, 0, 900, id="the last try: at its first moment"),
            pytest.param(899, 0, 1, 960, id="the last try: at its last moment"),
            pytest.param(850, 80, 0, 930, id="the last try: not before API Gateway has asked for it"),
            pytest.param(850, 80, 0.5, 945, id="the last try: between that and its last moment"),
            pytest.param(850, 110, 0.5, 960, id="API Gateway asks for the last moment itself"),
            pytest.param(850, 111, 0, 0, id="API Gateway asks for more time than there is"),
            pytest.param(900, 0, 0, 0, id="this was the last try"),
            pytest.param(899.9, 0, 0, 900, id="this was not the last try"),
        ],
    )
    def test_the_last_try_falls_at_random_into_its_time(
        self, now: float, after: float, roll: float, until: int
    ) -> None:
        why = TurnOverError("it", "no", refused=True, after=after)
        tried = rules.next_try(Note("c"), why, NOW + now, (NOW + 900, NOW + 960), roll)
        assert tried == (NOW + until if until else 0)


class TestFence:
    """The newest request wins."""

    @pytest.mark.parametrize(
        ("requests", "order"),
        [
            pytest.param([create(at=1), delete(at=7)], "cd", id="by issue time"),
            pytest.param([update(at=8), delete(at=3)], "du", id="though it arrives late"),
            pytest.param([update(at=6), update(id_="v", at=6)], "uv", id="in a second by arrival"),
            pytest.param([update(at=6), update(at=6)], "u", id="itself again"),
            pytest.param(
                [delete("invented", at=6), create(at=6)], "cd", id="a cancelled Create, and its Delete"
            ),
            pytest.param([delete(FREE, at=6), create(at=6)], "dc", id="a Delete, and a new Create"),
            pytest.param(
                [update("former", at=5), delete("former", at=6), create(at=6)], "udc", id="a former one's"
            ),
            pytest.param([delete("invented", at=6), update(at=6)], "du", id="an Update passes it"),
            pytest.param([update(at=6), delete(at=None)], "ud", id="without a time it is issued now"),
            pytest.param(
                [update(at=NOW + 9), delete(at=None)], "ud", id="and never older than what stands there"
            ),
            pytest.param([update(at=None), delete(at=7)], "du", id="an older one after it"),
        ],
    )
    def test_each_request_has_its_rank(self, requests: list[Request], order: str) -> None:
        record = arrived(*requests)
        assert "".join(note.id for note in record.notes) == order
        for request in requests:
            assert rules.is_superseded(record, request) is (request.id != order[-1])

    def test_after_its_time_none_is_newer_than_another_of_its_second(self) -> None:
        record = rules.fence(arrived(create(at=6)), update(at=6), NOW, is_over=True)
        assert [note.id for note in record.notes] == ["u", "c"]

    @pytest.mark.parametrize(
        ("requests", "wants"),
        [
            pytest.param([create(FREE)], FREE, id="Create"),
            pytest.param([create(FREE), update(FREE, PRO)], PRO, id="Update"),
            pytest.param(
                [update(FREE, PRO), delete(FREE)], PRO, id="a Delete of the old one leaves the new one"
            ),
            pytest.param([create(FREE), delete(FREE)], None, id="a Delete of what is wanted"),
            pytest.param([create(FREE), delete("invented")], None, id="a Delete with an invented id"),
            pytest.param(
                [update("former", FREE), delete("former")], FREE, id="a Delete of a former provider's id"
            ),
            pytest.param([update(FREE, PRO, at=6), delete(PRO, at=3)], PRO, id="an older Delete"),
            pytest.param([create(FREE), INVALID], FREE, id="unusable properties"),
        ],
    )
    def test_each_request_decides_what_is_wanted(
        self, requests: list[Request], wants: Association | None
    ) -> None:
        assert arrived(*requests).wants == wants

    @pytest.mark.parametrize(("late", "belief"), [(False, Belief.GOING), (True, Belief.KNOWN)])
    def test_a_late_delete_names_a_hold_and_ends_no_belief_in_it(self, late: bool, belief: Belief) -> None:
        record = arrived(update(PRO, PRO, at=9), record=ResourceRecord({FREE: Hold("c"), PRO: Hold("u")}))
        after = arrived(delete(FREE, at=1 if late else 10), record=record)
        assert after.holds[FREE].belief is belief

    def test_foreign_ids_that_updates_bring_are_remembered(self) -> None:
        """A Delete's may be CloudFormation's invention."""
        record = arrived(update("former", at=1), update("another", id_="v", at=2), delete("invented"))
        assert record.foreign == {digest("former"), digest("another")}

    def test_an_id_that_no_text_can_hold_has_a_digest_too(self) -> None:
        assert digest("\ud800") != digest("\ud801")

    @pytest.mark.parametrize(
        ("request_", "spared"), [(create(PRO), None), (update(), None), (delete(), FREE)]
    )
    def test_a_retained_association_is_spared_until_the_next_create_or_update(
        self, request_: Request, spared: Association | None
    ) -> None:
        assert arrived(request_, record=ResourceRecord(retained=FREE)).retained == spared

    def test_a_late_create_begins_no_new_life(self) -> None:
        record = arrived(update(at=9), record=ResourceRecord({FREE: Hold("u")}))
        assert arrived(create(at=1), record=record).holds[FREE].belief is Belief.KNOWN
        record = arrived(update("former", at=9), record=ResourceRecord({FREE: Hold("u")}))
        assert arrived(create(at=1), record=record).holds[FREE].belief is Belief.OPEN


class TestNotes:
    """The page of a resource remembers its requests for a day."""

    @pytest.mark.parametrize(("age", "kept"), [(REMEMBERED, False), (REMEMBERED - 1, True)])
    def test_an_older_answer_is_dropped(self, age: int, kept: bool) -> None:
        notes = Note("a", 1, answer=answer(NOW - age)), Note("b", 2)
        ids = [note.id for note in arrived(create(at=9), record=ResourceRecord(notes=notes)).notes]
        assert ids == ["a", "b", "c"] if kept else ids == ["b", "c"]

    def test_the_newest_ones_answer_stays_whatever_its_age(self) -> None:
        """Without it, the request would count as pending."""
        record = ResourceRecord(notes=(Note("new", 9, answer=answer(1)),))
        after = arrived(delete(at=3), record=record)
        assert [note.id for note in after.notes] == ["d", "new"]
        assert not rules.is_pending(after)

    def test_the_oldest_are_dropped_when_there_are_too_many(self) -> None:
        """A page cannot outgrow DynamoDB's limit."""
        notes = tuple(Note(f"r{number}", 1) for number in range(MOST_NOTES))
        kept = arrived(create(at=2), record=ResourceRecord(notes=notes)).notes
        assert [note.id for note in kept] == [note.id for note in notes[1:]] + ["c"]

    def test_the_first_answer_stands(self) -> None:
        record = rules.answered(ResourceRecord(), create(), answer())
        assert rules.answered(record, create(), answer(success=False)) == record
        assert record.notes == (Note("c", 1, answer=answer()),)

    def test_no_answer_has_a_value_and_no_page_a_foreign_id(self) -> None:
        given = answer()._replace(id="s3cr3t", value="s3cr3t")
        assert "s3cr3t" not in str(rules.answered(ResourceRecord(), delete("s3cr3t"), given))
        assert rules.answered(ResourceRecord(), delete(FREE), given).notes[0].answer == answer()._replace(
            id="s3cr3t"
        )

    @pytest.mark.parametrize(
        ("request_", "hold", "success", "spared"),
        [
            pytest.param(create(), Hold("c0"), False, FREE, id="a failed Create"),
            pytest.param(INVALID, Hold("c0"), False, FREE, id="a Create with unusable properties"),
            pytest.param(create(), Hold("c"), False, None, id="not what it took itself"),
            pytest.param(create(), Hold("c0", Belief.FAILED), False, None, id="not what a failed one took"),
            pytest.param(create(), None, False, None, id="not what is not held"),
            pytest.param(create(), Hold("c0"), True, None, id="not after a success"),
            pytest.param(update(), Hold("c0"), False, None, id="not after an Update"),
        ],
    )
    def test_a_failed_create_spares_what_an_earlier_life_retained(
        self, request_: Request, hold: Hold | None, success: bool, spared: Association | None
    ) -> None:
        record = arrived(request_, record=ResourceRecord({FREE: hold} if hold else {}))
        assert rules.answered(record, request_, answer(success=success)).retained == spared

    @staticmethod
    def gone_back(record: ResourceRecord, **why: Any) -> Note:
        """Give the request back to the queue; its last try is far away."""
        failure = TurnOverError("It", "is busy", **why)
        last = NOW + 900.0, NOW + 960.0
        facts = decide.Facts(now=NOW, dies=NOW + 90, last=last, failure=failure, touched=True)
        step = decide.next_step(Snapshot(record, {FREE: by(origin=Origin.WANTED)}), create(), facts)
        assert isinstance(step.act, decide.Back)
        return step.pages.record.notes[-1]

    def test_a_begun_one_that_is_begun_again_has_died(self) -> None:
        record = rules.begin(arrived(create()), create())
        assert record.notes == (Note("c", 1, begun=True),)
        record = rules.begin(record, create())
        assert record.notes == (Note("c", 1, begun=True, deaths=1),)
        back = self.gone_back(record)
        assert back == Note("c", 1, begun=False, deaths=1)
        assert rules.begin(record._replace(notes=(back,)), create()).notes == record.notes
        refused = self.gone_back(record, refused=True)
        assert refused == Note("c", 1, begun=False, deaths=1, refusals=1, until=NOW + 1)

    def test_what_goes_back_before_it_was_begun_is_not_begun(self) -> None:
        assert self.gone_back(arrived(create())) == Note("c", 1)


class TestReasons:
    """What a refusal says of the holders, and what to do."""

    SAID = "That association is held by {}, so the function left it alone. {}"
    SIBLINGS = (
        "Keep the logical id to move a key: declare this resource with the plan that the key has, deploy,"
        " then change the plan. If the id names the plan (CDK, SAM, Serverless), docs/use-from.md,"
        ' "Move a customer to another plan", has the steps'
    )
    ADOPTED = (
        "This resource adopted it: to move it, first set OnExisting to Take, deploy, then change the plan"
    )
    RETAINED = (
        "CloudFormation retained it: to move it, first declare this resource with the plan that it has there,"
        " deploy, then change the plan"
    )

    @pytest.mark.parametrize(
        ("entry", "holders", "what_to_do"),
        [
            (by(THIS, origin=Origin.BEFORE), "A of stack one, and was there before it", ADOPTED),
            (by(THIS, origin=Origin.TAKEN), "A of stack one, and was there before it", ADOPTED),
            (by(THIS), "A of stack one", RETAINED),
            (by(SIBLING), "B of stack one", SIBLINGS),
            (by(THIS, SIBLING), "A of stack one, B of stack one", SIBLINGS),
            (by(NAMESAKE), "A of stack one (2)", f"Remove it there first. {rules.way_out([NAMESAKE])}"),
            (
                by(SIBLING, NAMESAKE),
                "B of stack one, A of stack one (2)",
                f"Remove it there first. {rules.way_out([SIBLING])}",
            ),
            (by(), "no stack", "Remove it there first"),
        ],
    )
    def test_what_blocks_a_key_is_named_with_the_remedy(
        self, entry: AssociationRecord, holders: str, what_to_do: str
    ) -> None:
        assert rules.left_alone(entry, update(FREE, PRO)) == self.SAID.format(holders, what_to_do)

    def test_the_way_out_is_an_event_for_the_first_holder(self) -> None:
        assert rules.way_out([NAMESAKE, SIBLING]) == (
            'If that stack is gone, invoke the function by hand with {"LetGo": {"StackId": '
            '"arn:aws:cloudformation:eu-west-1:1:stack/one/1", "LogicalResourceId": "B"}}'
        )

    @pytest.mark.parametrize(
        ("names", "text"),
        [
            ("A", "A of stack one"),
            ("CBA", "A of stack one, B of stack one, C of stack one"),
            ("DCBA", "A of stack one, B of stack one, C of stack one and 1 more"),
        ],
    )
    def test_holders_are_named_three_at_most(self, names: str, text: str) -> None:
        assert rules.listed((Holder(THIS.stack_id, name) for name in names), THIS) == text

    def test_no_printed_response_shows_a_value(self) -> None:
        assert "s3cr3t" not in repr(Response(success=True, id="x", value="s3cr3t"))


class TestMoves:
    """What an Update may detach to make room."""

    @pytest.mark.parametrize(
        ("hold", "moves"),
        [(None, True), (Hold("u"), True), (Hold("c"), False)],
        ids=["not held", "held by this Update", "held before: a rollback"],
    )
    def test_a_rollback_takes_nothing_over(self, hold: Hold | None, moves: bool) -> None:
        request = update(FREE, PRO, on_existing=OnExisting.TAKE, took=True)
        record = ResourceRecord({FREE: Hold("c")} | ({PRO: hold} if hold else {}))
        state = Snapshot(record, {FREE: by(THIS, origin=Origin.BEFORE)})
        assert rules.may_move(state, request, FREE) is moves

    @pytest.mark.parametrize(("age", "lost"), [(REMEMBERED, False), (REMEMBERED - 1, True)])
    def test_what_an_update_has_left_may_be_lost_for_a_day(self, age: int, lost: bool) -> None:
        record = ResourceRecord({FREE: Hold("c", Belief.LEFT, left=NOW - age)})
        assert rules.may_be_lost(record, update(PRO, FREE), NOW) is lost

    @pytest.mark.parametrize(
        ("digests", "lost"), [(("P", "P"), True), (("P", "Q"), False), (("", ""), False)]
    )
    def test_the_properties_of_the_last_success_may_be_lost(
        self, digests: tuple[str, str], lost: bool
    ) -> None:
        record = ResourceRecord(digest=digests[0])
        assert rules.may_be_lost(record, update(PRO, FREE, digest=digests[1]), NOW) is lost

    def test_no_detaching_is_renewed_where_none_stands_or_one_still_runs(self) -> None:
        def state(detaching: int | None) -> Snapshot:
            return Snapshot(ResourceRecord(), {FREE: by(THIS, detaching=detaching)})

        assert rules.renewed(state(None), FREE, NOW + 9, NOW) == state(None)
        assert rules.renewed(state(NOW), FREE, NOW + 9, NOW) == state(NOW)
        assert rules.renewed(state(NOW - 1), FREE, NOW + 9, NOW) == state(NOW + 9)

    @pytest.mark.parametrize("entry", [by(THIS), by(SIBLING, detaching=NOW)])
    def test_a_detaching_that_somebody_else_has_finished_changes_nothing(
        self, entry: AssociationRecord
    ) -> None:
        state = Snapshot(ResourceRecord(), {FREE: entry})
        assert rules.detached(state, THIS, FREE, NOW) == state

    def test_a_mark_goes_with_its_holder(self) -> None:
        state = Snapshot(ResourceRecord({FREE: Hold("c")}), {FREE: by(THIS, SIBLING, detaching=NOW)})
        assert state.let_go(THIS, FREE).entry(FREE) == by(SIBLING)

    def test_an_operator_lets_go_of_the_holds_whose_pages_are_there(self) -> None:
        record = ResourceRecord({FREE: Hold("c"), PRO: Hold("c")})
        state = Snapshot(record, {FREE: by(THIS, SIBLING)})
        after = rules.abandon(state, THIS)
        assert (after.record.holds, after.entries) == ({PRO: Hold("c")}, {FREE: by(SIBLING)})


def test_more_than_a_transaction_takes_is_let_go_of_in_parts() -> None:
    """What a Delete lets go of without a call goes first, and what it has to detach follows."""
    many = [Association("alice", f"plan{number}") for number in range(100)]
    holds = {one: Hold("u", Belief.LEFT, marked_by="u") for one in many} | {FREE: Hold("u")}
    state = Snapshot(ResourceRecord(holds), {one: by(THIS, away=True) for one in many} | {FREE: by(THIS)})
    acts, facts = [], decide.Facts(now=NOW, dies=NOW + 90)
    for _ in range(3):
        step = decide.next_step(state, delete(FREE), facts)
        assert len([one for one in step.pages.entries if step.pages.entry(one) != state.entry(one)]) <= 50
        acts.append(type(step.act).__name__)
        state, facts = step.pages, step.facts
    assert acts == ["GoOn", "GoOn", "Detach"]
    assert set(state.record.holds) == {FREE}


@pytest.mark.parametrize(
    ("request_", "first"),
    [
        (create(FREE), [FREE]),
        (update(PRO, FREE), [FREE, PRO]),
        (delete(PRO), [PRO]),
        (delete("invented"), []),
        (INVALID, []),
    ],
)
def test_serving_begins_with_one_read_of_the_ledger(request_: Request, first: list[Association]) -> None:
    assert looked_at(request_) == first
