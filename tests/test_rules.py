"""The pure functions keep every rule, row by row of the rules' tables."""

from typing import Any

import pytest

from usage_plan_key import rules
from usage_plan_key.errors import FailedError, SupersededError
from usage_plan_key.model import (
    NOBODY,
    REMEMBERED,
    Association,
    AssociationRecord,
    Hold,
    Holder,
    Outcome,
    ResourceRecord,
    Response,
    Snapshot,
    Standing,
    digest,
)
from usage_plan_key.request import (
    Create,
    CreateOrUpdate,
    Delete,
    Invalid,
    OnExisting,
    Repair,
    Request,
    Update,
)
from usage_plan_key.rules import MOST_ANSWERS

FREE, PRO, GOLD = (Association("alice", plan) for plan in ("free", "pro", "gold"))
THIS, SIBLING, NAMESAKE = (
    Holder(f"arn:aws:cloudformation:eu-west-1:1:stack/{stack}", name)
    for stack, name in (("one/1", "A"), ("one/1", "B"), ("one/2", "A"))
)
FAIL, ADOPT, TAKE = OnExisting
NOW = 1_764_000_000
COMMON: dict[str, Any] = {"holder": THIS, "response_url": "https://x", "service_timeout": 3600}


def create(
    wanted: Association = FREE, on_existing: OnExisting = FAIL, *, id_: str = "c", at: int | None = 1
) -> Create:
    return Create(id=id_, wanted=wanted, on_existing=on_existing, issued=at, **COMMON)


def update(
    had: Association | str = FREE,
    wanted: Association = FREE,
    on_existing: OnExisting = FAIL,
    *,
    id_: str = "u",
    at: int | None = 2,
) -> Update:
    physical_id = had.id if isinstance(had, Association) else had
    return Update(
        id=id_, physical_id=physical_id, wanted=wanted, on_existing=on_existing, issued=at, **COMMON
    )


def delete(had: Association | str = FREE, *, id_: str = "d", at: int | None = 3) -> Delete:
    return Delete(id=id_, physical_id=had.id if isinstance(had, Association) else had, issued=at, **COMMON)


def by(*holders: Holder, **marks: Any) -> AssociationRecord:
    return AssociationRecord(frozenset(holders), **marks)


def ledger(
    entry: AssociationRecord,
    record: ResourceRecord | None = None,
    of: Association = FREE,
    hold: Hold | None = None,
) -> Snapshot:
    """Both pages: the holds of this resource in `entry` stand in its record too."""
    record = record or ResourceRecord()
    if THIS in entry.holders:
        record = record._replace(holds={of: hold or Hold("earlier")} | dict(record.holds))
    return Snapshot(record, {of: entry})


def arrived(*requests: Request, record: ResourceRecord | None = None) -> ResourceRecord:
    record = record or ResourceRecord()
    for request in requests:
        record = rules.fence(record, request)
    return record


class TestWanting:
    """A resource wants an association."""

    @pytest.mark.parametrize(
        ("entry", "stands"),
        [
            pytest.param(by(), Standing.NOBODY, id="nobody"),
            pytest.param(by(THIS), Standing.THIS, id="this alone"),
            pytest.param(by(THIS, SIBLING, NAMESAKE), Standing.THIS, id="this among others"),
            pytest.param(by(SIBLING), Standing.SIBLING, id="another of this stack"),
            pytest.param(by(SIBLING, NAMESAKE), Standing.SIBLING, id="another of this stack among strangers"),
            pytest.param(by(NAMESAKE), Standing.STRANGERS, id="a deleted stack's namesake is a stranger"),
        ],
    )
    def test_the_holders_decide_the_standing(self, entry: AssociationRecord, stands: Standing) -> None:
        """A stack is its ARN, not its name; the resource's own hold counts first, then a sibling's."""
        assert rules.standing(entry, THIS) is stands

    @pytest.mark.parametrize(
        ("request_", "entry", "present", "expected"),
        [
            pytest.param(create(), by(), False, Outcome.ATTACHED, id="nobody, absent: attached"),
            pytest.param(update(), by(), False, Outcome.ATTACHED, id="nobody, absent, Update: attached"),
            pytest.param(create(FREE, ADOPT), by(), True, Outcome.ADOPTED, id="nobody, present: adopted"),
            pytest.param(
                create(FREE, TAKE), by(), True, Outcome.ADOPTED, id="nobody, present, Take: adopted first"
            ),
            pytest.param(update(), by(THIS), True, Outcome.VERIFIED, id="this, present: verified"),
            pytest.param(
                update(FREE, FREE, TAKE),
                by(THIS),
                True,
                Outcome.VERIFIED,
                id="this, own already: nothing to take",
            ),
            pytest.param(
                update(FREE, FREE, TAKE),
                by(THIS, preexisting=True),
                True,
                Outcome.TAKEN,
                id="this, before, Take: taken",
            ),
            pytest.param(
                update(FREE, FREE, ADOPT),
                by(THIS, preexisting=True),
                True,
                Outcome.VERIFIED,
                id="this, before, Adopt",
            ),
            pytest.param(
                update(PRO, FREE, TAKE),
                by(THIS, preexisting=True),
                True,
                Outcome.VERIFIED,
                id="Take with another id",
            ),
            pytest.param(
                create(FREE, TAKE),
                by(THIS, preexisting=True),
                True,
                Outcome.ATTACHED,
                id="this, Create with Take",
            ),
            pytest.param(create(), by(THIS), True, Outcome.ATTACHED, id="this, present, Create: repeated"),
            pytest.param(update(), by(THIS), False, Outcome.REPAIRED, id="this, absent: repaired"),
            pytest.param(
                update(FREE, FREE, TAKE),
                by(THIS, preexisting=True),
                False,
                Outcome.REPAIRED,
                id="before, gone: repaired",
            ),
            pytest.param(create(), by(THIS), False, Outcome.ATTACHED, id="this, absent, Create: attached"),
            pytest.param(create(), by(SIBLING), True, Outcome.JOINED, id="sibling, present: joined"),
            pytest.param(create(), by(SIBLING), False, Outcome.REPAIRED, id="sibling, absent: repaired"),
            pytest.param(
                create(FREE, ADOPT), by(NAMESAKE), True, Outcome.JOINED, id="strangers, present: joined"
            ),
            pytest.param(
                create(FREE, TAKE), by(NAMESAKE), False, Outcome.REPAIRED, id="strangers, absent: repaired"
            ),
        ],
    )
    def test_the_holders_and_the_plan_decide_the_outcome(
        self, request_: CreateOrUpdate, entry: AssociationRecord, present: bool, expected: Outcome
    ) -> None:
        assert rules.outcome(request_, rules.standing(entry, THIS), entry, present=present) is expected

    @pytest.mark.parametrize("on_existing", OnExisting)
    @pytest.mark.parametrize(
        "entry", [by(), by(SIBLING), by(SIBLING, NAMESAKE)], ids=["nobody", "sibling", "both"]
    )
    def test_hold_comes_first(self, entry: AssociationRecord, on_existing: OnExisting) -> None:
        """The ledger has the holder on both pages, with the RequestId, before the function attaches."""
        state = rules.take_hold(ledger(entry), create(FREE, on_existing))
        assert state.entry(FREE).holders == entry.holders | {THIS}
        assert state.record.holds == {FREE: Hold("c")}

    def test_a_hold_that_stands_is_left_as_it_is(self) -> None:
        """Holding again keeps the request that took hold, and the mark that an id has named it."""
        state = ledger(by(THIS), hold=Hold("earlier", named=True))
        assert rules.take_hold(state, update()) == state

    def test_strangers_are_not_joined_unasked(self) -> None:
        """If only other stacks hold it, `Fail` refuses, and names resource, stack and alternatives."""
        with pytest.raises(FailedError, match=r"A of stack one\b.*Adopt or Take"):
            rules.take_hold(ledger(by(NAMESAKE)), create())

    @pytest.mark.parametrize("on_existing", [ADOPT, TAKE])
    def test_strangers_are_joined_when_told(self, on_existing: OnExisting) -> None:
        """With `Adopt` and `Take` it is held together with other stacks."""
        assert rules.take_hold(ledger(by(NAMESAKE)), create(FREE, on_existing)).entry(FREE) == by(
            THIS, NAMESAKE
        )


class TestBefore:
    """Some keys were in the plan before us."""

    def test_fail_refuses_it(self) -> None:
        """`Fail` refuses a key that is in the plan already, and names the effects of `Adopt` and `Take`."""
        with pytest.raises(
            FailedError, match=r"Adopt would .* leave it there on Delete; Take would .* own it"
        ):
            rules.check_existing(create())

    @pytest.mark.parametrize("on_existing", [ADOPT, TAKE])
    def test_it_is_used_when_told(self, on_existing: OnExisting) -> None:
        """`Adopt` and `Take` would have it all the same."""
        rules.check_existing(create(FREE, on_existing))

    @pytest.mark.parametrize(
        ("entry", "before"),
        [
            pytest.param(by(THIS, begun_by="c"), True, id="alone"),
            pytest.param(by(THIS, SIBLING, begun_by="c"), True, id="somebody has joined since"),
            pytest.param(
                by(THIS, SIBLING, begun_by=NOBODY), True, id="it was taken back by another delivery since"
            ),
            pytest.param(
                by(THIS, SIBLING, begun_by="u"),
                False,
                id="somebody has joined since, and set about attaching it",
            ),
            pytest.param(by(THIS, SIBLING), False, id="somebody has joined since, and attached it"),
        ],
    )
    def test_it_is_marked(self, entry: AssociationRecord, before: bool) -> None:
        """A key that its first holder found in the plan was there before all holders."""
        after = rules.found_attached(ledger(entry), create(FREE, ADOPT)).entry(FREE)
        assert after == (entry._replace(preexisting=True, begun_by=None) if before else entry)

    def test_attaching_anew_makes_it_ours(self) -> None:
        """A key that we attach again is ours: it loses the marks `preexisting` and `taken_over`."""
        state = ledger(by(THIS, preexisting=True, taken_over=True))
        assert rules.reattaching(state, create(FREE), FREE).entry(FREE) == by(THIS, begun_by="c again")

    def test_a_move_that_is_undone_leaves_the_marks_as_they_were(self) -> None:
        """After a move and its way back the owner is the same."""
        marks = {"preexisting": True, "taken_over": True}
        state = ledger(by(THIS, moved_by="u", **marks))
        assert rules.reattaching(state, create(FREE), FREE).entry(FREE) == by(
            THIS, begun_by="c again", **marks
        )

    @pytest.mark.parametrize(
        ("by_whom", "marked"),
        [pytest.param("this", True, id="this request"), pytest.param("other", False, id="another one since")],
    )
    def test_the_marks_are_put_back_where_it_was_not_attached(self, by_whom: str, marked: bool) -> None:
        """API Gateway refused to attach it again, so a key from before, or put back, is not ours."""
        request = create(FREE)
        cleared = by(THIS, begun_by="c again" if by_whom == "this" else "other")
        earlier = by(THIS, preexisting=True, taken_over=True, moved_by="u")
        after = rules.not_reattached(ledger(cleared), request, FREE, earlier).entry(FREE)
        assert after == (earlier if marked else cleared)

    def test_only_an_update_that_had_it_as_its_id_takes_it(self) -> None:
        """So no rollback, of the Create that found it or of the change to `Take`, can detach it."""
        before = by(THIS, preexisting=True)
        assert rules.takes(update(FREE, FREE, TAKE), before)
        assert not rules.takes(create(FREE, TAKE), before)
        assert not rules.takes(update(PRO, FREE, TAKE), before)
        assert not rules.takes(update(FREE, FREE, ADOPT), before)
        assert not rules.takes(update(FREE, FREE, TAKE), by(THIS))
        assert not rules.takes(update(FREE, FREE, TAKE), by(SIBLING, preexisting=True))

    def test_taking_is_written_down(self) -> None:
        """`taken_over` joins `preexisting`, which stays."""
        state = rules.present(ledger(by(THIS, preexisting=True)), update(FREE, FREE, TAKE))
        assert state.entry(FREE) == by(THIS, preexisting=True, taken_over=True)

    def test_a_change_back_from_take_keeps_the_mark(self) -> None:
        """`taken_over` is history; the Delete's own properties say whether it still counts."""
        state = ledger(by(THIS, preexisting=True, taken_over=True))
        assert rules.present(state, update()) == state

    @pytest.mark.parametrize(
        ("entry", "take", "owned"),
        [
            pytest.param(by(THIS), False, True, id="attached by us"),
            pytest.param(by(THIS, preexisting=True), False, False, id="before"),
            pytest.param(by(THIS, preexisting=True), True, False, id="before, Take but not taken"),
            pytest.param(by(THIS, preexisting=True, taken_over=True), True, True, id="taken"),
            pytest.param(
                by(THIS, preexisting=True, taken_over=True),
                False,
                False,
                id="taken, and Take is no longer said",
            ),
        ],
    )
    def test_whose_it_is(self, entry: AssociationRecord, take: bool, owned: bool) -> None:
        """Delete detaches our keys; a key from before us only if taken and if Delete still says `Take`."""
        assert entry.owned(take=take) is owned


class TestTakingBack:
    """API Gateway refused for good, so the request attached nothing."""

    def test_a_refused_request_lets_go_of_its_hold(self) -> None:
        """A page without holders goes."""
        state = rules.take_hold(ledger(by()), create())
        assert rules.take_back(state, create()) == Snapshot(ResourceRecord(), {FREE: by()})

    def test_others_keep_theirs(self) -> None:
        """Earlier holders still hold it."""
        earlier = by(SIBLING, preexisting=True)
        state = rules.take_hold(ledger(earlier), create())
        assert rules.take_back(state, create()) == Snapshot(ResourceRecord(), {FREE: earlier})

    @pytest.mark.parametrize(
        "entry", [by(THIS), by(SIBLING)], ids=["held by an earlier request", "let go of meanwhile"]
    )
    def test_it_touches_no_hold_that_it_has_not_taken(self, entry: AssociationRecord) -> None:
        """After a failed repair every resource keeps its holds."""
        assert rules.take_back(ledger(entry), create()) == ledger(entry)


class TestMoving:
    """API Gateway refuses, because the key is in a plan that covers the same API stage."""

    MAY: tuple[Any, ...] = (
        pytest.param(update(FREE, PRO), by(THIS), Hold("c", named=True), True, id="what its id names"),
        pytest.param(update(GOLD, PRO), by(THIS), Hold("u0"), True, id="what a superseded Update left"),
        pytest.param(
            update(GOLD, PRO), by(THIS), Hold("c", named=True), False, id="what another event's id has named"
        ),
        pytest.param(create(PRO), by(THIS), Hold("c0"), False, id="a Create has nothing yet"),
        pytest.param(update(FREE, PRO), by(THIS, SIBLING), Hold("c"), False, id="a sibling holds it too"),
        pytest.param(update(FREE, PRO), by(SIBLING), None, False, id="a sibling alone holds it"),
        pytest.param(update(FREE, PRO), by(), None, False, id="nobody holds it"),
        pytest.param(
            update(FREE, PRO), by(THIS, preexisting=True), Hold("c"), False, id="it was there before"
        ),
        pytest.param(
            update(FREE, PRO, TAKE), by(THIS, preexisting=True), Hold("c"), False, id="before, and not taken"
        ),
        pytest.param(
            update(FREE, PRO, TAKE), by(THIS, preexisting=True, taken_over=True), Hold("c"), True, id="taken"
        ),
        pytest.param(
            update(FREE, PRO),
            by(THIS, preexisting=True, taken_over=True),
            Hold("c"),
            False,
            id="taken, no longer said",
        ),
    )

    @pytest.mark.parametrize(("request_", "entry", "hold", "may"), MAY)
    def test_a_resource_may_move_only_its_own_association(
        self, request_: CreateOrUpdate, entry: AssociationRecord, hold: Hold | None, may: bool
    ) -> None:
        """It detaches for a move only an association of this life, without other holders."""
        assert rules.may_move(ledger(entry, hold=hold), request_, FREE) is may

    @pytest.mark.parametrize(("request_", "entry", "hold", "may"), MAY)
    def test_marked_before_it_is_detached(
        self, request_: CreateOrUpdate, entry: AssociationRecord, hold: Hold | None, may: bool
    ) -> None:
        """The mark has time and request; the ledger sets it only if it allows the move at that moment."""
        after = rules.move_away(ledger(entry, hold=hold), request_, FREE, NOW).entry(FREE)
        assert after == (entry._replace(detaching=NOW, moved_by="u") if may else entry)

    def test_the_detached_one_stays_held(self) -> None:
        """A moved-away association stays held until its Delete, which lets go without detaching."""
        state = rules.move_away(ledger(by(THIS)), update(FREE, PRO), FREE, NOW)
        state = rules.detached(state, THIS, FREE)
        assert state == ledger(by(THIS, moved_by="u"))
        state = rules.release(state, THIS, FREE, take=False, until=NOW)
        assert state == ledger(by())

    def test_a_refused_detaching_leaves_no_mark(self) -> None:
        """The refusal clears the marks of detaching and moving."""
        state = rules.move_away(ledger(by(THIS)), update(FREE, PRO), FREE, NOW)
        assert rules.still_attached(state, FREE) == ledger(by(THIS))


class TestLettingGo:
    """Mark, detach, then let go."""

    @pytest.mark.parametrize(
        ("entry", "take", "left"),
        [
            pytest.param(by(THIS), False, by(THIS, detaching=NOW), id="last holder: marked, to be detached"),
            pytest.param(by(THIS, SIBLING), False, by(SIBLING), id="one of several: out of the set"),
            pytest.param(
                by(THIS, NAMESAKE, preexisting=True),
                False,
                by(NAMESAKE, preexisting=True),
                id="the mark outlives it",
            ),
            pytest.param(by(THIS, preexisting=True), False, by(), id="there before us: stays attached"),
            pytest.param(
                by(THIS, preexisting=True), True, by(), id="there before us, Take never served by an Update"
            ),
            pytest.param(
                by(THIS, preexisting=True, taken_over=True), False, by(), id="taken, Take no longer said"
            ),
            pytest.param(
                by(THIS, preexisting=True, taken_over=True),
                True,
                by(THIS, preexisting=True, taken_over=True, detaching=NOW),
                id="taken",
            ),
            pytest.param(by(THIS, moved_by="u"), False, by(), id="moved away from: detached already"),
            pytest.param(
                by(THIS, detaching=NOW - 5),
                False,
                by(THIS, detaching=NOW),
                id="being detached: taken up again",
            ),
            pytest.param(by(SIBLING), False, by(SIBLING), id="not held: nothing is touched"),
        ],
    )
    def test_release(self, entry: AssociationRecord, take: bool, left: AssociationRecord) -> None:
        """The last holder of our key marks it first; other holders leave at once."""
        state = rules.release(ledger(entry), THIS, FREE, take=take, until=NOW)
        assert state.entry(FREE) == left
        assert (FREE in state.record.holds) is (THIS in left.holders)

    def test_no_delete_releases_the_association_that_the_newest_request_wants(self) -> None:
        """A newer request may want it again by the time that the function serves its Delete."""
        state = ledger(by(THIS), ResourceRecord(wants=FREE))
        assert rules.release(state, THIS, FREE, take=False, until=NOW) == state

    def test_after_the_detaching_the_holder_is_taken_out(self) -> None:
        """The page of an association goes with its last holder."""
        assert rules.detached(ledger(by(THIS, detaching=NOW)), THIS, FREE) == ledger(by())

    def test_the_mark_of_detaching_goes_with_its_holder(self) -> None:
        assert ledger(by(THIS, SIBLING, detaching=NOW)).let_go(THIS, FREE).entry(FREE) == by(SIBLING)

    @pytest.mark.parametrize(
        "entry", [by(THIS), by(SIBLING, detaching=NOW)], ids=["the mark is gone", "another's mark"]
    )
    def test_a_detaching_that_somebody_else_finished_changes_nothing(self, entry: AssociationRecord) -> None:
        """A late end of a detaching leaves later holders alone."""
        assert rules.detached(ledger(entry), THIS, FREE) == ledger(entry)


class TestDelete:
    """A Delete releases associations."""

    HOLDS: tuple[Any, ...] = (
        pytest.param(
            delete(FREE), ResourceRecord({FREE: Hold("c"), PRO: Hold("u")}), [FREE], id="what its id names"
        ),
        pytest.param(delete(FREE), ResourceRecord({PRO: Hold("u")}), [], id="not what it does not hold"),
        pytest.param(
            delete(FREE), ResourceRecord({FREE: Hold("c")}, wants=FREE), [], id="not what is wanted again"
        ),
        pytest.param(
            delete(FREE),
            ResourceRecord({FREE: Hold("c")}, retained=FREE),
            [],
            id="not what a failed Create had not taken",
        ),
        pytest.param(
            delete("invented"),
            ResourceRecord({FREE: Hold("c"), PRO: Hold("u")}),
            [FREE, PRO],
            id="an invented id: all of its own",
        ),
        pytest.param(
            delete("invented"),
            ResourceRecord({FREE: Hold("c0", named=True), PRO: Hold("c")}),
            [PRO],
            id="not what was retained",
        ),
        pytest.param(
            delete("former"),
            ResourceRecord({FREE: Hold("u")}, foreign=frozenset({digest("former")})),
            [],
            id="not for a former provider's id",
        ),
    )

    @pytest.mark.parametrize(("request_", "record", "released"), HOLDS)
    def test_releases(self, request_: Delete, record: ResourceRecord, released: list[Association]) -> None:
        """An id that names an association releases it; an invented id, its cancelled Create's hold."""
        assert rules.releases(record, request_) == released


class TestLeftovers:
    """An Update finds the leftovers of a superseded one."""

    RECORD = ResourceRecord({FREE: Hold("c", named=True), PRO: Hold("u0"), GOLD: Hold("u1", named=True)})

    def test_an_association_that_no_id_has_named_is_released(self) -> None:
        """CloudFormation deletes or retains each association that an id has named."""
        assert rules.leftovers(self.RECORD, update(FREE, FREE)) == [PRO]

    @pytest.mark.parametrize("request_", [create(FREE), update(GOLD, FREE)], ids=["Create", "replacement"])
    def test_only_an_update_in_place_releases_anything(self, request_: CreateOrUpdate) -> None:
        """After a replacement CloudFormation sends Deletes itself."""
        assert rules.leftovers(self.RECORD, request_) == []

    def test_the_wanted_association_is_no_leftover(self) -> None:
        """This holds though no id has named it."""
        assert rules.leftovers(ResourceRecord({FREE: Hold("c")}), update(FREE, FREE)) == []


class TestFence:
    """The newest request wins."""

    @pytest.mark.parametrize(
        ("first", "second", "superseded"),
        [
            pytest.param(create(at=1), delete(at=7), True, id="a newer one"),
            pytest.param(update(at=8), delete(at=3), False, id="an older one"),
            pytest.param(update(at=6), update(id_="u2", at=6), True, id="the same second: the later arrival"),
            pytest.param(update(at=6), update(at=6), False, id="itself again"),
            pytest.param(update(at=None), delete(at=7), False, id="without an issue time of its own"),
            pytest.param(update(at=6), delete(at=None), False, id="without an issue time of the other"),
        ],
    )
    def test_a_request_supersedes_the_one_on_the_page_unless_it_is_older(
        self, first: Create | Update, second: Request, superseded: bool
    ) -> None:
        """Without issue times nothing fences."""
        record = arrived(first, second)
        if not superseded:
            rules.check_superseded(record, first)
            return
        with pytest.raises(SupersededError, match="Superseded"):
            rules.check_superseded(record, first)
        with pytest.raises(SupersededError):
            rules.take_hold(Snapshot(record, {FREE: by()}), first)

    def test_a_late_one_does_not_move_the_fence_back(self) -> None:
        """Requests may arrive in any order."""
        late = update(FREE, PRO, at=6)
        record = arrived(update(FREE, GOLD, id_="new", at=10), late)
        assert (record.newest, record.issued, record.wants) == ("new", 10, GOLD)
        with pytest.raises(SupersededError):
            rules.check_superseded(record, late)

    @pytest.mark.parametrize(
        ("requests", "wants"),
        [
            pytest.param([create(FREE)], FREE, id="Create"),
            pytest.param([create(FREE), update(FREE, PRO)], PRO, id="Update"),
            pytest.param([update(FREE, PRO), delete(FREE)], PRO, id="a Delete of the old leaves the new"),
            pytest.param([create(FREE), delete(FREE)], None, id="a Delete of what is wanted"),
            pytest.param([create(FREE), delete("invented")], None, id="a Delete with an invented id"),
            pytest.param(
                [update("former", FREE), delete("former")], FREE, id="a Delete of a former provider's id"
            ),
            pytest.param([update(FREE, PRO, at=6), delete(PRO, at=3)], PRO, id="an older Delete"),
            pytest.param([create(FREE, at=None)], None, id="without an issue time nothing is known"),
        ],
    )
    def test_each_request_decides_the_wanted_association(
        self, requests: list[Request], wants: Association | None
    ) -> None:
        """A Delete clears the wanted association only by its id, or by a foreign id without an Update."""
        assert arrived(*requests).wants == wants

    def test_an_event_names_the_association_in_its_id(self) -> None:
        """From then on it is CloudFormation's; also when the event is late, and also for a Delete."""
        holds = {FREE: Hold("c"), PRO: Hold("u0"), GOLD: Hold("u1")}
        record = arrived(update(FREE, GOLD, at=9), delete(PRO, at=1), record=ResourceRecord(holds, issued=8))
        assert {held: hold.named for held, hold in record.holds.items()} == {
            FREE: True,
            PRO: True,
            GOLD: False,
        }

    def test_foreign_ids_that_updates_bring_are_remembered(self) -> None:
        """An Update's is a former provider's; a Delete's may be CloudFormation's invention."""
        assert arrived(update("former"), delete("invented")).foreign == {digest("former")}

    def test_a_create_begins_a_new_life(self) -> None:
        """A Create marks holds of an earlier life as retained, but not its own holds."""
        record = arrived(create(id_="c2"), record=ResourceRecord({FREE: Hold("c1"), PRO: Hold("c2")}))
        assert record.holds == {FREE: Hold("c1", named=True), PRO: Hold("c2")}

    @pytest.mark.parametrize(
        ("request_", "spared"), [(create(PRO), None), (update(), None), (delete(), FREE)]
    )
    def test_a_retained_association_is_spared_only_from_deletes(
        self, request_: Request, spared: Association | None
    ) -> None:
        """The mark ends with the next Create or Update."""
        assert arrived(request_, record=ResourceRecord(retained=FREE)).retained == spared

    def test_an_answered_request_arrives_no_more(self) -> None:
        """A request that comes again after its answer changes nothing, whatever it would say."""
        record = ResourceRecord({FREE: Hold("c")}, answers={"d": Response(success=True, id="x")})
        assert arrived(delete(FREE), record=record) == record


def test_a_create_without_an_issue_time_begins_a_new_life_too() -> None:
    record = ResourceRecord({FREE: Hold("earlier")})
    assert rules.fence(record, create(at=None)).holds == {FREE: Hold("earlier", named=True)}


class TestAnswers:
    """The same request gets the same answer."""

    @staticmethod
    def answer(at: int = NOW, *, success: bool = True) -> Response:
        return Response(success=success, id="x", at=at)

    def test_the_first_one_stands(self) -> None:
        """Never two different answers."""
        record = rules.answered(ResourceRecord(), create(), self.answer())
        assert rules.answered(record, create(), self.answer(success=False)) == record
        assert record.answers == {"c": self.answer()}

    def test_one_ends_the_count_of_its_requests_deaths(self) -> None:
        record = rules.begin(rules.begin(ResourceRecord(), create()), create())
        assert (record.begun, record.died, record.deaths) == ("c", "c", 1)
        record = rules.answered(record, create(), self.answer())
        assert (record.begun, record.died, record.deaths) == ("", "", 0)

    def test_they_are_remembered_for_a_day(self) -> None:
        """A new answer drops an older one."""
        record = ResourceRecord(
            answers={"old": self.answer(NOW - REMEMBERED), "new": self.answer(NOW - REMEMBERED + 1)}
        )
        assert set(rules.answered(record, create(), self.answer()).answers) == {"new", "c"}

    def test_the_oldest_are_dropped_when_there_are_too_many(self) -> None:
        """A holder's page cannot outgrow DynamoDB's limit."""
        answers = {f"r{age}": self.answer(NOW - age) for age in range(1, MOST_ANSWERS + 1)}
        kept = rules.answered(ResourceRecord(answers=answers), create(), self.answer()).answers
        assert set(kept) == set(answers) - {f"r{MOST_ANSWERS}"} | {"c"}

    INVALID = Invalid(id="i", physical_id=None, wanted=FREE, faults=("?",), issued=1, **COMMON)

    @pytest.mark.parametrize(
        ("request_", "hold", "success", "spared"),
        [
            pytest.param(create(), Hold("c0"), False, FREE, id="a failed Create"),
            pytest.param(INVALID, Hold("c0"), False, FREE, id="a Create with unusable properties"),
            pytest.param(create(), Hold("c"), False, None, id="what it took itself is not spared"),
            pytest.param(create(), None, False, None, id="what is not held neither"),
            pytest.param(create(), Hold("c0"), True, None, id="after a success its Delete is meant"),
            pytest.param(update(), Hold("c0"), False, None, id="after a failed Update no Delete follows"),
        ],
    )
    def test_a_failed_create_spares_a_retained_association(
        self, request_: Request, hold: Hold | None, success: bool, spared: Association | None
    ) -> None:
        """CloudFormation deletes a failed Create's id; holds that an earlier life retained stay."""
        record = ResourceRecord({FREE: hold} if hold else {}, issued=1, arrived=(request_.id,))
        assert rules.answered(record, request_, self.answer(success=success)).retained == spared

    def test_a_create_that_was_superseded_spares_nothing(self) -> None:
        """A newer Create of the resource has attached the association, and its Delete is to come."""
        record = ResourceRecord({FREE: Hold("c0")}, issued=2, arrived=("c2",), wants=FREE)
        after = rules.answered(record, create(at=1), self.answer(success=False))
        assert (after.retained, after.wants) == (None, FREE)


def test_the_reason_that_refuses_another_stacks_association_in_full() -> None:
    with pytest.raises(FailedError) as raised:
        rules.take_hold(ledger(by(Holder("arn:aws:cloudformation:eu-west-1:1:stack/two/1", "B"))), create())
    told, _, way_out = str(raised.value).partition(" If that stack is gone")
    assert told == (
        "Could not attach API key alice to usage plan free: it is held by B of stack two, and OnExisting is "
        "Fail. Adopt or Take would hold it too; the function detaches it when its last holder goes."
    )
    assert way_out


def test_a_repair_is_in_order_more_than_a_day_after_the_answer_that_said_attached() -> None:
    """A refused Update is the newest request, so the ledger keeps its answer only."""
    record = ResourceRecord(
        issued=2, arrived=("u",), wants=FREE, answers={"u": Response(success=False, id=FREE.id)}
    )
    repair = Repair(id="r", physical_id=FREE.id, wanted=FREE, issued=None, **COMMON)
    rules.check_repairable(ledger(by(THIS), record), repair)
    with pytest.raises(FailedError):
        rules.check_repairable(ledger(by(THIS, begun_by="earlier"), record), repair)


def test_the_newest_requests_answer_is_kept_also_when_it_is_old() -> None:
    """Without it, the request would count as pending."""
    old = Response(success=True, id=FREE.id, at=NOW)
    record = ResourceRecord({FREE: Hold("c")}, issued=9, arrived=("c",), answers={"c": old, "b": old})
    after = rules.answered(record, delete(FREE), Response(success=True, id=FREE.id, at=NOW + 2 * REMEMBERED))
    assert set(after.answers) == {"c", delete(FREE).id}
    assert not rules.is_pending(after)


def test_how_long_things_last() -> None:
    """Answers and fences last for a day."""
    assert REMEMBERED == 24 * 60 * 60


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ("A", "A of stack one"),
        ("CBA", "A of stack one, B of stack one, C of stack one"),
        ("DCBA", "A of stack one, B of stack one, C of stack one and 1 more"),
    ],
    ids=["one", "three", "four"],
)
def test_holders_are_named_three_at_most(names: str, text: str) -> None:
    """A Reason has room for some, always in the same order."""
    assert (
        rules.listed((Holder("arn:aws:cloudformation:eu-west-1:1:stack/one/1", name) for name in names), THIS)
        == text
    )


@pytest.mark.parametrize(
    ("request_", "looked_at"),
    [
        pytest.param(create(FREE), [FREE], id="Create"),
        pytest.param(update(PRO, FREE), [FREE, PRO], id="Update"),
        pytest.param(delete(PRO), [PRO], id="Delete"),
        pytest.param(delete("invented"), [], id="a foreign id"),
        pytest.param(TestAnswers.INVALID, [FREE], id="unusable properties"),
    ],
)
def test_serving_begins_with_one_read_of_the_ledger(request_: Request, looked_at: list[Association]) -> None:
    """The read covers the wanted and the named association."""
    assert rules.looked_at(request_) == looked_at


def test_a_page_that_was_not_read_is_an_error() -> None:
    """Nobody knows the holders of an unread page."""
    with pytest.raises(KeyError):
        ledger(by(), of=PRO).entry(FREE)


class TestLeftAlone:
    """The Reason names the holders of the association that blocks the key, and the remedy."""

    SAID = "That association is held by {}, so the function left it alone. {}"
    TWICE = (
        "To rename a resource and move its key, deploy twice: first give it the new logical id with"
        " the plan that it has, then change the plan."
        " If CloudFormation retained it, declare it again first. Else remove it there first"
    )

    @pytest.mark.parametrize(
        ("entry", "by_whom", "what_to_do"),
        [
            pytest.param(
                by(THIS, preexisting=True),
                "A of stack one, and was there before it",
                "This resource adopted it: to move it, first set OnExisting to Take, deploy,"
                " then change the plan",
                id="adopted",
            ),
            pytest.param(
                by(THIS),
                "A of stack one",
                "CloudFormation retained it: to move it, first declare this resource with the plan that it"
                " has there, deploy, then change the plan",
                id="retained",
            ),
            pytest.param(by(SIBLING), "B of stack one", TWICE, id="another of this stack"),
            pytest.param(
                by(THIS, SIBLING),
                "A of stack one, B of stack one",
                TWICE,
                id="this one and another of its stack",
            ),
            pytest.param(
                by(NAMESAKE),
                "A of stack one (2)",
                f"Remove it there first. {rules.way_out([NAMESAKE])}",
                id="a stranger",
            ),
            pytest.param(
                by(SIBLING, NAMESAKE),
                "B of stack one, A of stack one (2)",
                f"Remove it there first. {rules.way_out([SIBLING])}",
                id="another of this stack and a stranger",
            ),
            pytest.param(by(), "no stack", "Remove it there first", id="nobody"),
        ],
    )
    def test_it_names_the_holder_and_the_remedy(
        self, entry: AssociationRecord, by_whom: str, what_to_do: str
    ) -> None:
        assert rules.left_alone(entry, update(FREE, PRO)) == self.SAID.format(by_whom, what_to_do)

    def test_the_way_out_is_an_event_for_the_first_holder(self) -> None:
        assert rules.way_out([NAMESAKE, SIBLING]) == (
            'If that stack is gone, invoke the function by hand with {"LetGo": {"StackId": '
            '"arn:aws:cloudformation:eu-west-1:1:stack/one/1", "LogicalResourceId": "B"}}'
        )

    def test_a_refusal_for_an_existing_association_ends_with_the_effect_of_take(self) -> None:
        with pytest.raises(FailedError, match=r"from the next Update on, own it$"):
            rules.check_existing(create())

    def test_a_superseded_request_is_told_that_nothing_was_touched(self) -> None:
        with pytest.raises(SupersededError, match=r"^Superseded: .*; this one touched nothing$"):
            rules.check_superseded(arrived(create(at=1), delete(at=2)), create(at=1))


class TestMarks:
    """Each mark stands for one request, and ends with it."""

    def test_deaths_at_another_request_do_not_count(self) -> None:
        record = rules.begin(ResourceRecord(died="other", deaths=2), create())
        assert record == ResourceRecord(begun="c", died="c", deaths=0)

    def test_rest_takes_off_its_own_mark_and_keeps_the_deaths(self) -> None:
        assert rules.rest(ResourceRecord(begun="c", died="c", deaths=1), create()) == ResourceRecord(
            died="c", deaths=1
        )
        assert rules.rest(ResourceRecord(begun="other"), create()) == ResourceRecord(begun="other")

    def test_every_foreign_id_is_remembered(self) -> None:
        record = arrived(update("former", at=1), update("another", id_="u2", at=2))
        assert record.foreign == {digest("former"), digest("another")}

    def test_an_id_that_no_text_can_hold_has_a_digest_too(self) -> None:
        assert digest("\ud800") != digest("\ud801")

    def test_the_requests_of_an_earlier_second_are_forgotten(self) -> None:
        assert arrived(create(at=1), update(at=2)).arrived == ("u",)

    def test_a_new_life_has_left_nothing(self) -> None:
        record = arrived(create(id_="c2"), record=ResourceRecord({FREE: Hold("c1", left=NOW)}))
        assert record.holds == {FREE: Hold("c1", named=True)}

    @pytest.mark.parametrize(("age", "lost"), [(REMEMBERED, False), (REMEMBERED - 1, True)])
    def test_an_association_that_an_update_left_may_be_lost_for_a_day(self, age: int, lost: bool) -> None:
        record = ResourceRecord({FREE: Hold("c", left=NOW - age)})
        assert rules.may_be_lost(record, update(PRO, FREE), NOW) is lost

    def test_an_update_that_succeeds_clears_the_mark_left(self) -> None:
        record = rules.answered(
            ResourceRecord({FREE: Hold("c", left=NOW)}), update(), Response(success=True, id=FREE.id, at=NOW)
        )
        assert record.holds == {FREE: Hold("u")}

    def test_after_a_failed_update_the_resource_wants_its_former_association(self) -> None:
        record = arrived(update(FREE, PRO))
        assert (
            rules.answered(record, update(FREE, PRO), Response(success=False, id=FREE.id, at=NOW)).wants
            == FREE
        )

    def test_where_nothing_was_attached_again_nobody_has_begun(self) -> None:
        state = ledger(by(THIS, begun_by="c again"))
        earlier = by(THIS, begun_by=NOBODY)
        assert rules.not_reattached(state, create(), FREE, earlier).entry(FREE) == earlier

    def test_no_detaching_is_renewed_where_none_was_begun(self) -> None:
        assert rules.renewed(ledger(by(THIS)), FREE, NOW) == ledger(by(THIS))

    @pytest.mark.parametrize(
        ("hold", "moves"),
        [
            pytest.param(None, True, id="not held"),
            pytest.param(Hold("u"), True, id="held by this Update"),
            pytest.param(Hold("c"), False, id="held before: a rollback"),
        ],
    )
    def test_a_rollback_takes_nothing_over(self, hold: Hold | None, moves: bool) -> None:
        request = update(FREE, PRO, TAKE)
        request.took = True
        record = ResourceRecord({PRO: hold} if hold else {})
        assert rules.may_move(ledger(by(THIS, preexisting=True), record), request, FREE) is moves

    @pytest.mark.parametrize(
        "request_", [delete(FREE), delete("invented")], ids=["itself moved away from", "a foreign id"]
    )
    def test_a_moved_away_association_stays_unless_the_present_one_goes(self, request_: Delete) -> None:
        state = Snapshot(
            ResourceRecord({FREE: Hold("c"), PRO: Hold("u")}),
            {FREE: by(THIS, moved_by="u"), PRO: by(THIS, moved_by="u2")},
        )
        assert rules.let_go_of_moved(state, request_) == state
