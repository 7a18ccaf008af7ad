"""The function detaches only keys that a resource attached or took over, and leaves none unheld."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from emulators.fake import Plan
from usage_plan_key.model import NOBODY, REMEMBERED, AssociationRecord, Response
from usage_plan_key.request import Create, OnExisting, Update

from . import cloudformation
from .cloudformation import (
    ADOPT,
    BROKEN,
    BUSY,
    CREATE,
    DELETE,
    DENIED,
    FAIL,
    FREE,
    GET,
    GOLD,
    LOST,
    PRO,
    TAKE,
    CloudFormation,
    Death,
    failed,
    fails,
    followed_by,
    holder,
    outcome,
    pair,
    preceded_by,
    served_then,
)

pytestmark = pytest.mark.usefixtures("either_conflict")
cfn = cloudformation.cfn


class TestThereBefore:
    """Somebody else attached it."""

    def test_with_fail_it_is_refused_and_neither_held_nor_touched(self, cfn: CloudFormation) -> None:
        """The Reason names the choices that would do instead."""
        cfn.by_hand(FREE)
        assert failed(cfn.create("A", FREE), "Adopt", "leave it there on Delete", "Take", "own it")
        assert cfn.attached == {FREE}
        assert not cfn.entries

    @pytest.mark.parametrize("on_existing", [ADOPT, TAKE])
    def test_adopted_it_is_used_and_left_there_by_a_delete(
        self, cfn: CloudFormation, on_existing: OnExisting
    ) -> None:
        """A Delete with `Take` leaves it too, if no Update had `Take`."""
        cfn.by_hand(FREE)
        assert outcome(cfn.create("A", FREE, on_existing)) == "ADOPTED"
        assert cfn.delete("A", FREE, take=on_existing is TAKE).success
        assert cfn.attached == {FREE}
        assert not cfn.entries

    @pytest.mark.parametrize(
        ("take", "left"), [(True, set()), (False, {FREE})], ids=["Take", "Take no longer said"]
    )
    def test_from_the_next_update_with_take_on_it_is_owned(
        self, cfn: CloudFormation, take: bool, left: set[str]
    ) -> None:
        """A Delete detaches it if it still says so."""
        cfn.by_hand(FREE)
        cfn.create("A", FREE, TAKE)
        assert outcome(cfn.update("A", FREE, FREE, TAKE)) == "TAKEN"
        cfn.delete("A", FREE, take=take)
        assert cfn.attached == left

    def test_attached_anew_it_is_detached_with_its_last_holder(self, cfn: CloudFormation) -> None:
        cfn.by_hand(FREE)
        cfn.create("A", FREE, ADOPT)
        cfn.by_hand(FREE, attached=False)
        cfn.update("A", FREE, FREE, ADOPT)
        cfn.delete("A", FREE)
        assert not cfn.attached

    def test_put_back_between_the_look_and_the_call_it_is_still_not_ours(self, cfn: CloudFormation) -> None:
        cfn.by_hand(FREE)
        cfn.create("A", FREE, ADOPT)
        cfn.by_hand(FREE, attached=False)
        cfn.at(CREATE, preceded_by(lambda: cfn.by_hand(FREE)))
        assert outcome(cfn.update("A", FREE, FREE, ADOPT)) == "VERIFIED"
        cfn.delete("A", FREE)
        assert cfn.attached == {FREE}

    def test_repaired_it_is_ours_though_the_update_fails_for_a_leftover(self, cfn: CloudFormation) -> None:
        cfn.by_hand(FREE)
        cfn.create("A", FREE, ADOPT)
        cfn.update("A", FREE, GOLD)
        cfn.by_hand(FREE, attached=False)
        cfn.at(DELETE, fails(DENIED))
        assert failed(cfn.update("A", FREE, FREE, ADOPT), "apigateway:DELETE")
        assert FREE in cfn.attached
        assert not cfn.entry(FREE).preexisting

    def test_an_adopted_key_that_somebody_puts_back_during_its_repair_is_taken(
        self, cfn: CloudFormation
    ) -> None:
        cfn.by_hand(FREE)
        cfn.create("A", FREE, TAKE)
        cfn.by_hand(FREE, attached=False)
        cfn.at(CREATE, preceded_by(lambda: cfn.by_hand(FREE)))
        assert outcome(cfn.update("A", FREE, FREE, TAKE)) == "TAKEN"

    def test_a_repair_that_may_have_been_served_makes_it_ours(self, cfn: CloudFormation) -> None:
        cfn.by_hand(FREE)
        cfn.create("A", FREE, ADOPT)
        cfn.by_hand(FREE, attached=False)
        cfn.at(CREATE, served_then(LOST), fails(DENIED))
        assert failed(cfn.update("A", FREE, FREE, ADOPT))
        assert not cfn.entry(FREE).preexisting


class TestShared:
    """Several resources, of one stack or of several, hold it."""

    @pytest.mark.parametrize("present", [True, False], ids=["in the plan", "not in the plan"])
    def test_with_fail_a_key_of_other_stacks_is_refused_without_a_call_and_they_are_named(
        self, cfn: CloudFormation, present: bool
    ) -> None:
        """The key is in the plan, or not."""
        cfn.create("Theirs", FREE, stack="two")
        if not present:
            cfn.by_hand(FREE, attached=False)
        cfn.calls()
        assert failed(cfn.create("A", FREE), "Theirs of stack two", "Adopt", "Take")
        assert not cfn.calls()
        assert cfn.holders(FREE) == {holder("Theirs", "two")}

    @pytest.mark.parametrize("on_existing", [ADOPT, TAKE])
    def test_with_adopt_or_take_it_is_held_together_and_detached_with_the_last(
        self, cfn: CloudFormation, on_existing: OnExisting
    ) -> None:
        cfn.create("Theirs", FREE, stack="two")
        assert outcome(cfn.create("A", FREE, on_existing)) == "JOINED"
        cfn.delete("Theirs", FREE, stack="two")
        assert cfn.attached == {FREE}
        cfn.delete("A", FREE)
        assert not cfn.attached


class TestWhoseItIs:
    """An attached key is ours from the moment at which one of our resources began to attach it."""

    def test_a_joiner_of_a_hold_that_came_to_nothing_detaches_nothing(self, cfn: CloudFormation) -> None:
        """Another request supersedes stack one before it attaches; stack two joins meanwhile with Adopt."""
        cfn.by_hand(FREE)
        request = cfn.a_create("A", FREE)

        def meanwhile() -> None:
            assert cfn.create("B", FREE, ADOPT, stack="two").success
            cfn.arrives(cfn.a_delete("A", "invented"))

        cfn.at(CREATE, fails(BUSY))
        cfn.clock.meanwhile = [meanwhile]
        assert failed(cfn.send(request), "Superseded")
        assert cfn.delete("B", FREE, stack="two").success
        assert cfn.attached == {FREE}

    @pytest.mark.parametrize("on_existing", [FAIL, ADOPT])
    def test_a_key_was_there_before_if_no_holder_has_begun_to_attach_it(
        self, cfn: CloudFormation, on_existing: OnExisting
    ) -> None:
        cfn.create("A", FREE)
        cfn.entries[pair(FREE)] = cfn.entry(FREE)._replace(begun_by=NOBODY)
        answer = cfn.create("B", FREE, on_existing)
        assert cfn.entry(FREE).preexisting
        if on_existing is FAIL:
            assert failed(answer, "it is there already")
            assert cfn.holders(FREE) == {holder("A")}
        else:
            assert outcome(answer) == "ADOPTED"

    def test_a_hold_whose_reply_was_lost_is_read_back(self, cfn: CloudFormation) -> None:
        """The request ends before it begins to attach, so the key was there before."""
        cfn.by_hand(FREE)
        cfn.lose_writes = 1
        assert failed(cfn.create("A", FREE), "nobody knows")
        assert not cfn.holders(FREE)
        assert cfn.delete("A", FREE).success
        assert cfn.attached == {FREE}

    def test_a_late_create_of_an_older_life_does_not_keep_the_key_attached(self, cfn: CloudFormation) -> None:
        late = cfn.a_create("A", FREE)
        cfn.create("A", FREE)
        assert failed(cfn.send(late), "Superseded")
        assert cfn.delete("A", FREE).success
        assert not cfn.attached

    def test_a_clear_refusal_is_written_down_at_the_last_moment(self, cfn: CloudFormation) -> None:
        """API Gateway says that the key is there; the mark's first write fails, a later one succeeds."""
        cfn.by_hand(FREE)
        cfn.at(GET, followed_by(lambda: cfn.outage(2)))
        answer = cfn.create("A", FREE)
        assert failed(answer, "the ledger is out of reach")
        assert cfn.delete("A", FREE).success
        assert cfn.attached == {FREE}


class TestAtTheSameTime:
    """Without a queue, and between stacks, functions serve requests at the same time."""

    @pytest.mark.parametrize(
        ("stack", "on_existing"), [("one", FAIL), ("two", ADOPT)], ids=["a sibling", "another stack"]
    )
    def test_of_two_one_attaches_it_and_the_other_joins(
        self, cfn: CloudFormation, stack: str, on_existing: OnExisting
    ) -> None:
        """The last to go detaches it."""
        cfn.at(CREATE, preceded_by(lambda: cfn.create("B", FREE, on_existing, stack=stack)))
        assert outcome(cfn.create("A", FREE)) == "JOINED"
        cfn.delete("A", FREE)
        assert cfn.attached == {FREE}
        cfn.delete("B", FREE, stack=stack)
        assert not cfn.attached

    @pytest.mark.parametrize("on_existing", [FAIL, ADOPT])
    def test_both_deliveries_of_a_request_give_the_answer_of_the_first(
        self, cfn: CloudFormation, on_existing: OnExisting
    ) -> None:
        """The request's key is held and ours."""
        request = cfn.a_create("A", FREE, on_existing)
        first: list[Response] = []
        cfn.at(CREATE, preceded_by(lambda: first.append(cfn.send(request))))
        assert cfn.send(request) == first[0]
        assert outcome(first[0]) == "ATTACHED"
        assert cfn.entry(FREE) == AssociationRecord(frozenset({holder("A")}))

    def test_a_key_that_a_delivery_attached_before_it_died_is_its_resources_own(
        self, cfn: CloudFormation
    ) -> None:
        request = cfn.a_create("A", FREE)

        def other_delivery() -> None:
            with pytest.raises(Death):
                cfn.send(request)

        cfn.at(CREATE, preceded_by(other_delivery), served_then(Death()))
        assert cfn.send(request).success
        assert cfn.entry(FREE) == AssociationRecord(frozenset({holder("A")}))

    def test_a_delivery_that_fails_takes_nothing_back_from_one_that_has_succeeded(
        self, cfn: CloudFormation
    ) -> None:
        request = cfn.a_create("A", FREE)

        def other_delivery(_: Callable[[], Any]) -> Any:
            assert cfn.send(request).success
            raise DENIED

        cfn.at(CREATE, other_delivery)
        assert cfn.send(request).success
        assert cfn.holders(FREE) == {holder("A")}

    def test_a_joiner_during_a_repair_does_not_put_back_the_mark_that_the_repair_cleared(
        self, cfn: CloudFormation
    ) -> None:
        cfn.by_hand(FREE)
        cfn.create("A", FREE, ADOPT)
        cfn.by_hand(FREE, attached=False)
        cfn.at(GET, preceded_by(lambda: cfn.update("A", FREE, FREE, ADOPT)))
        cfn.create("B", FREE)
        cfn.delete("A", FREE)
        cfn.delete("B", FREE)
        assert not cfn.attached

    def test_a_key_that_was_there_before_two_resources_is_neithers(self, cfn: CloudFormation) -> None:
        """API Gateway refuses while the other one holds it too."""
        cfn.by_hand(FREE)
        cfn.at(CREATE, preceded_by(lambda: cfn.create("B", FREE)))
        cfn.create("A", FREE)
        cfn.delete("A", FREE)
        cfn.delete("B", FREE)
        assert cfn.attached == {FREE}


class TestRetained:
    """A resource's keys from an earlier life stay attached."""

    def test_an_association_that_an_id_has_named_stays_attached(self, cfn: CloudFormation) -> None:
        """CloudFormation may have retained it: with UpdateReplacePolicy no Delete comes."""
        cfn.create("A", FREE)
        cfn.update("A", FREE, GOLD)
        cfn.update("A", GOLD, GOLD)
        assert cfn.attached == {FREE, GOLD}

    @pytest.mark.parametrize("stages", ["its own", "one for all"])
    def test_a_resource_may_have_left_more_than_a_transaction_takes(
        self, cfn: CloudFormation, stages: str
    ) -> None:
        ids = [f"alice:plan{number}" for number in range(120)]
        for number, id_ in enumerate(ids):
            stage = ("api", "prod" if stages == "one for all" else f"stage{number}")
            cfn.api.plans[id_.partition(":")[2]] = Plan("Plan", (stage,))
        cfn.create("A", ids[0])
        for had, wanted in itertools.pairwise(ids):
            assert outcome(cfn.update("A", had, wanted)) == (
                "MOVED" if stages == "one for all" else "ATTACHED"
            )
        assert failed(cfn.update("A", ids[-1], "alice:nowhere"), "there is no usage plan nowhere")
        assert outcome(cfn.update("A", ids[-1], ids[-1])) == "VERIFIED"
        assert cfn.delete("A", ids[-1]).success
        assert cfn.attached == (set() if stages == "one for all" else {*ids[:-1]})
        assert len(cfn.entries) == len(cfn.attached)

    def test_a_key_that_a_resource_of_the_same_name_left_outlives_a_cancelled_create(
        self, cfn: CloudFormation
    ) -> None:
        """DeletionPolicy: Retain left it."""
        cfn.create("A", GOLD)
        cfn.create("A", FREE)
        cfn.delete("A", "invented")
        assert cfn.attached == {GOLD}

    def test_the_delete_of_a_failed_create_leaves_a_retained_key_attached(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE)
        cfn.at(GET, fails(DENIED))
        answer = cfn.create("A", FREE)
        assert failed(answer)
        cfn.delete("A", answer.id)
        assert cfn.attached == {FREE}


class TestFailedBefore:
    """The function detaches a failed request's key, because CloudFormation never believed in it."""

    def unclear(self, cfn: CloudFormation, request: Create | Update) -> None:
        """API Gateway attaches it, its reply is lost, and the request fails."""
        cfn.at(CREATE, served_then(LOST), fails(DENIED))
        assert not cfn.send(request).success
        cfn.at(CREATE)

    def test_a_create_in_express_mode_and_then_another(self, cfn: CloudFormation) -> None:
        """No Delete follows the first; the second Create does not take it for retained."""
        self.unclear(cfn, cfn.a_create("A", FREE))
        assert cfn.attached == {FREE}
        assert cfn.create("A", GOLD).success
        assert cfn.delete("A", GOLD).success
        assert cfn.attached == set()

    def test_the_same_create_once_more_which_fails_again(self, cfn: CloudFormation) -> None:
        self.unclear(cfn, cfn.a_create("A", FREE))
        cfn.at(GET, fails(DENIED))
        assert not cfn.create("A", FREE).success
        assert cfn.delete("A", FREE).success
        assert cfn.attached == set()

    def test_an_update_without_a_rollback_is_remembered_for_longer_than_its_answer(
        self, cfn: CloudFormation
    ) -> None:
        cfn.create("A", FREE)
        self.unclear(cfn, cfn.an_update("A", FREE, GOLD))
        cfn.clock.now += 2 * REMEMBERED
        assert cfn.update("A", FREE, FREE).success
        assert cfn.delete("A", FREE).success
        assert cfn.attached == set()

    def test_an_association_that_a_success_took_up_is_its_own(self, cfn: CloudFormation) -> None:
        """Without issue times too: the clean-up of the old one leaves it attached."""
        cfn.create("A", FREE, issued=None)
        self.unclear(cfn, cfn.an_update("A", FREE, GOLD, issued=None))
        assert outcome(cfn.update("A", FREE, GOLD, issued=None)) == "VERIFIED"
        assert cfn.delete("A", FREE, issued=None).success
        assert cfn.attached == {GOLD}

    def test_a_delete_after_a_failed_update_without_a_rollback_detaches_both_associations(
        self, cfn: CloudFormation
    ) -> None:
        cfn.create("A", FREE)
        cfn.seconds = 60
        cfn.at(CREATE, served_then(BROKEN), *[fails(BROKEN)] * 99)
        assert failed(cfn.update("A", FREE, GOLD))
        cfn.seconds = 900
        cfn.at(CREATE)
        assert cfn.delete("A", FREE).success
        assert not cfn.attached
        assert not cfn.entries

    def test_a_rollback_releases_the_association_of_a_cancelled_update(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE)
        cfn.update("A", FREE, GOLD)  # CloudFormation cancelled it, and does not know its id.
        assert outcome(cfn.update("A", FREE, FREE)) == "VERIFIED"
        assert cfn.attached == {FREE}


class TestNoLedger:
    """Without a table the function takes the event at its word."""

    @pytest.fixture
    def cfn(self, cfn: CloudFormation) -> CloudFormation:
        cfn.has_ledger = False
        return cfn

    def test_a_resource_holds_the_association_that_its_id_names(self, cfn: CloudFormation) -> None:
        """So the function creates, verifies, repairs, moves and deletes it."""
        assert outcome(cfn.create("A", FREE)) == "ATTACHED"
        assert outcome(cfn.update("A", FREE, FREE)) == "VERIFIED"
        cfn.by_hand(FREE, attached=False)
        assert outcome(cfn.update("A", FREE, FREE)) == "REPAIRED"
        assert outcome(cfn.update("A", FREE, PRO)) == "MOVED"
        assert cfn.delete("A", PRO).success
        assert not cfn.attached
        assert not cfn.records

    def test_a_create_holds_nothing_yet(self, cfn: CloudFormation) -> None:
        """A key that is in the plan already was there before."""
        cfn.by_hand(FREE)
        assert failed(cfn.create("A", FREE), "Adopt", "Take")
        assert outcome(cfn.create("A", FREE, ADOPT)) == "ADOPTED"

    def test_a_foreign_id_names_nothing(self, cfn: CloudFormation) -> None:
        """Its Delete touches nothing."""
        cfn.by_hand(FREE)
        assert cfn.delete("A", "invented").success
        assert not cfn.calls()
