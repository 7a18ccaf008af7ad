"""An Update moves a key between plans that share a stage, with a way back, and only where it may."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from emulators.fake import Plan
from usage_plan_key.api_gateway import ApiGateway
from usage_plan_key.errors import OutOfTimeError
from usage_plan_key.model import AssociationRecord
from usage_plan_key.request import OnExisting
from usage_plan_key.retry import BEFORE_CALL, CONNECT_TIMEOUT, READ_TIMEOUT

from . import cloudformation
from .cloudformation import (
    ADOPT,
    BAD,
    BUSY,
    CREATE,
    DELETE,
    DENIED,
    FAIL,
    FREE,
    GOLD,
    LOST,
    PRO,
    TAKE,
    CloudFormation,
    failed,
    fails,
    followed_by,
    holder,
    outcome,
    pair,
    preceded_by,
    rolled,
    served_then,
    usual,
)

pytestmark = pytest.mark.usefixtures("either_conflict")
cfn = cloudformation.cfn


def test_a_plan_that_may_not_be_left_is_named_with_the_reason(cfn: CloudFormation) -> None:
    cfn.create("B", FREE)
    assert failed(
        cfn.create("A", PRO),
        "the key is in usage plan free (Free) for the API stage api:prod already, "
        "and API Gateway takes a key once for each stage. That association is held by B of stack one",
    )


class TestMoving:
    """An Update moves a key between plans that share a stage."""

    def test_the_old_one_is_detached_and_the_wanted_one_attached(self, cfn: CloudFormation) -> None:
        """The Delete for the old one then has nothing to detach."""
        cfn.create("A", FREE)
        answer = cfn.update("A", FREE, PRO)
        assert outcome(answer) == "MOVED"
        assert answer.id == PRO
        assert cfn.attached == {PRO}
        assert cfn.holders(FREE) == {holder("A")}
        cfn.calls()
        assert cfn.delete("A", FREE).success
        assert not cfn.calls()
        assert not cfn.holders(FREE)

    def test_a_key_that_was_there_before_may_be_moved_once_it_was_taken(self, cfn: CloudFormation) -> None:
        cfn.by_hand(FREE)
        cfn.create("A", FREE, TAKE)
        cfn.update("A", FREE, FREE, TAKE)
        assert outcome(cfn.update("A", FREE, PRO, TAKE)) == "MOVED"

    @pytest.mark.parametrize("carried", [FREE, PRO], ids=["with the old id", "with the new id"])
    def test_a_rollback_moves_it_back(self, cfn: CloudFormation, carried: str) -> None:
        cfn.create("A", FREE)
        cfn.update("A", FREE, PRO)
        assert outcome(cfn.update("A", carried, FREE)) == "MOVED"
        cfn.delete("A", PRO)
        assert cfn.attached == {FREE}

    def test_the_old_one_is_marked_while_it_is_detached(self, cfn: CloudFormation) -> None:
        marks: list[AssociationRecord] = []
        cfn.create("A", FREE)
        cfn.at(DELETE, preceded_by(lambda: marks.append(cfn.entry(FREE))))
        request = cfn.an_update("A", FREE, PRO)
        cfn.send(request)
        assert [(entry.detaching is not None, entry.moved_by) for entry in marks] == [(True, request.id)]
        assert cfn.entry(FREE).detaching is None

    def test_a_refusal_that_still_names_the_detached_plan_is_retried(self, cfn: CloudFormation) -> None:
        """DeleteUsagePlanKey answers 202: detaching takes a moment, and the function detaches once."""
        cfn.create("A", FREE)
        cfn.calls()
        cfn.at(DELETE, lambda _: {})
        cfn.at(CREATE, usual, usual, usual, preceded_by(lambda: cfn.by_hand(FREE, attached=False)))
        assert outcome(cfn.update("A", FREE, PRO)) == "MOVED"
        assert cfn.attached == {PRO}
        assert cfn.calls()["CreateUsagePlanKey"] == 4

    def test_each_wait_for_a_detached_plan_counts_as_an_attempt(self, cfn: CloudFormation) -> None:
        """DeleteUsagePlanKey answered 202, and has not taken effect yet."""
        cfn.create("A", FREE)
        cfn.at(DELETE, lambda _: {})
        assert rolled(cfn, cfn.an_update("A", FREE, PRO)) == [(0, 0.5), (0, 1), (0, 2), (0, 4)]


class TestTheWayBack:
    """The function undoes a move that fails."""

    def test_refused_for_good_the_old_one_is_attached_again(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE)
        cfn.at(CREATE, usual, fails(DENIED))
        assert failed(cfn.update("A", FREE, PRO), "apigateway:POST")
        assert cfn.attached == {FREE}
        assert cfn.entries == {
            pair(FREE): AssociationRecord(frozenset({holder("A")}), begun_by="request-2 again")
        }

    def test_an_old_one_that_cannot_be_attached_again_is_an_error_and_stays_held_to_be_repaired(
        self, cfn: CloudFormation, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The Reason says so, too."""
        cfn.create("A", FREE)
        cfn.at(CREATE, usual, fails(DENIED), fails(BAD))
        assert failed(
            cfn.update("A", FREE, PRO),
            "apigateway:POST",
            "could not attach the detached key again",
            "usage plan free",
        )
        assert (
            "usage_plan_key.service",
            logging.ERROR,
            f"Not attached again: {FREE}",
        ) in caplog.record_tuples
        assert outcome(cfn.update("A", FREE, FREE)) == "REPAIRED"
        assert cfn.attached == {FREE}

    def test_where_nobody_knows_whether_the_old_one_is_back_its_delete_detaches_it(
        self, cfn: CloudFormation
    ) -> None:
        """A lost reply may have attached it, so the ledger drops the mark of the move."""
        cfn.create("A", FREE)
        cfn.at(CREATE, usual, fails(DENIED), served_then(LOST), fails(DENIED))
        assert failed(cfn.update("A", FREE, PRO), "could not attach the detached key again")
        assert cfn.attached == {FREE}
        assert cfn.entry(FREE).moved_by is None
        assert cfn.delete("A", FREE).success
        assert not cfn.attached

    def test_a_key_that_could_not_be_detached_is_as_it_was(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE)
        earlier = dict(cfn.entries)
        cfn.at(DELETE, fails(DENIED))
        assert failed(cfn.update("A", FREE, PRO), "apigateway:DELETE", "/usageplans/free/keys/alice")
        assert cfn.attached == {FREE}
        assert cfn.entries == earlier

    def test_a_move_is_undone_where_another_resource_has_joined_since_it_began(
        self, cfn: CloudFormation
    ) -> None:
        cfn.api.plans["beta"] = Plan("Beta", (("api", "beta"),))
        cfn.create("A", FREE)
        cfn.update("A", FREE, "alice:beta")
        cfn.at(DELETE, followed_by(lambda: cfn.create("B", "alice:beta")))
        assert failed(cfn.update("A", FREE, PRO), "usage plan beta (Beta)", "B of stack one")
        assert cfn.attached == {FREE, "alice:beta"}

    def test_a_move_that_cloudformation_gives_up_while_it_waits_puts_the_old_one_back(
        self, cfn: CloudFormation
    ) -> None:
        cfn.create("A", FREE)
        rollback = cfn.an_update("A", FREE, FREE, issued=int(cfn.clock.now) + 9)
        cfn.at(CREATE, usual, fails(BUSY))
        cfn.clock.meanwhile = [lambda: cfn.arrives(rollback)]
        assert failed(cfn.update("A", FREE, PRO), "Superseded")
        assert cfn.attached == {FREE}
        assert outcome(cfn.send(rollback)) == "VERIFIED"

    def test_a_plan_that_blocks_the_way_back_is_named(self, cfn: CloudFormation) -> None:
        """Somebody has put the key into a third plan for the stage."""
        cfn.api.plans["third"] = Plan("Third", (("api", "prod"),))
        cfn.create("A", FREE)
        cfn.at(DELETE, followed_by(lambda: cfn.by_hand("alice:third")))
        answer = cfn.update("A", FREE, PRO)
        assert failed(answer, "could not attach the detached key again: usage plan third (Third)")
        assert answer.reason.endswith("blocks it")
        assert not cfn.holders(PRO), "what was not attached is let go of all the same"

    @pytest.mark.parametrize("known", [False, True], ids=["seen for the first time", "known"])
    @pytest.mark.parametrize("resumable", [False, True], ids=["to be answered", "resumable"])
    def test_nothing_is_detached_unless_there_is_time_to_undo_it(
        self, cfn: CloudFormation, known: bool, resumable: bool
    ) -> None:
        cfn.warm = ApiGateway(cfn)  # type: ignore[arg-type]  # a fake
        cfn.create("A", FREE)
        if known:
            cfn.create("B", "bob:free")
            cfn.update("B", "bob:free", "bob:pro")
        cfn.seconds, cfn.resumable = BEFORE_CALL + 5, resumable
        update = cfn.an_update("A", FREE, PRO)
        if resumable:
            with pytest.raises(OutOfTimeError):
                cfn.send(update)
        else:
            assert failed(cfn.send(update), "no time was left")
        assert FREE in cfn.attached

    @pytest.mark.parametrize(("spare", "moves"), [(0.0, True), (-0.1, False)])
    def test_a_move_needs_time_for_the_detaching_and_to_undo_it(
        self, cfn: CloudFormation, spare: float, moves: bool
    ) -> None:
        cfn.create("A", FREE)
        cfn.seconds = 2 * (CONNECT_TIMEOUT + READ_TIMEOUT) + BEFORE_CALL + spare
        answer = cfn.update("A", FREE, PRO)
        assert answer.success is moves
        assert moves or answer.reason.startswith(
            "Could not attach API key alice to usage plan pro: no time was left"
        )

    def test_a_move_that_comes_to_nothing_gives_up_while_there_is_time_to_undo_it(
        self, cfn: CloudFormation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cfn.create("A", FREE)

        def create(**arguments: Any) -> Any:
            if arguments["usagePlanId"] == "pro" and FREE not in cfn.attached:
                cfn.clock.now += 1  # A call takes its time.
                raise BUSY
            return cfn.api.create_usage_plan_key(**arguments)

        monkeypatch.setattr(cfn, CREATE, create, raising=False)
        assert failed(cfn.update("A", FREE, PRO), "gave up after")
        assert cfn.attached == {FREE}


class TestBlocked:
    """An association that a move may not detach blocks it; the Reason names it."""

    def test_an_adopted_key_is_not_detached_for_a_move(self, cfn: CloudFormation) -> None:
        """A move leaves an adopted key alone; the Reason names plan, stage, holder and remedy."""
        cfn.by_hand(FREE)
        cfn.create("A", FREE, ADOPT)
        words = [
            "API key alice to usage plan pro",
            "usage plan free (Free)",
            "api:prod",
            "A of stack one, and was there before",
        ]
        assert failed(
            cfn.update("A", FREE, PRO), *words, "first set OnExisting to Take, deploy, then change the plan"
        )
        assert cfn.attached == {FREE}
        assert not cfn.holders(PRO)

    def test_a_key_that_no_stack_holds_is_not_touched(self, cfn: CloudFormation) -> None:
        cfn.by_hand(FREE)
        assert failed(cfn.create("A", PRO), "usage plan free (Free)", "api:prod", "held by no stack")
        assert cfn.attached == {FREE}

    @pytest.mark.parametrize("stack", ["one", "two"])
    def test_a_key_that_another_resource_holds_too_is_not_detached(
        self, cfn: CloudFormation, stack: str
    ) -> None:
        cfn.create("B", FREE, stack=stack)
        cfn.create("A", FREE, ADOPT)
        answer = cfn.update("A", FREE, PRO)
        assert failed(answer, f"held by A of stack one, B of stack {stack}, so the function left it alone")
        assert cfn.attached == {FREE}
        assert cfn.entry(FREE).detaching is None

    def test_a_create_never_moves(self, cfn: CloudFormation) -> None:
        """An association that an earlier life retained stays retained."""
        cfn.create("A", FREE)
        assert failed(cfn.create("A", PRO), "usage plan free (Free)", "A of stack one")
        assert cfn.attached == {FREE}

    def test_where_one_of_several_plans_in_the_way_is_not_ours_none_is_detached(
        self, cfn: CloudFormation
    ) -> None:
        cfn.api.plans["beta"] = Plan("Beta", (("api", "beta"),))
        cfn.create("A", FREE)
        cfn.by_hand("alice:beta")
        assert failed(cfn.update("A", FREE, PRO), "usage plan beta (Beta)", "api:beta")
        assert cfn.attached == {FREE, "alice:beta"}


class TestMovingAgain:
    """The function remembers that two plans share a stage."""

    @pytest.fixture
    def cfn(self, cfn: CloudFormation) -> CloudFormation:
        cfn.warm = ApiGateway(cfn)  # type: ignore[arg-type]  # a fake
        cfn.create("A", FREE)
        cfn.create("B", "bob:free")
        assert outcome(cfn.update("A", FREE, PRO)) == "MOVED"
        cfn.calls()
        return cfn

    def test_within_seconds_it_takes_two_calls(self, cfn: CloudFormation) -> None:
        assert outcome(cfn.update("B", "bob:free", "bob:pro")) == "MOVED"
        assert cfn.calls() == {"DeleteUsagePlanKey": 1, "CreateUsagePlanKey": 1}
        assert cfn.attached == {PRO, "bob:pro"}

    def test_a_plan_that_was_seen_longer_ago_is_looked_at_again(self, cfn: CloudFormation) -> None:
        cfn.clock.now += 61
        assert outcome(cfn.update("B", "bob:free", "bob:pro")) == "MOVED"
        assert cfn.calls()["GetUsagePlan"] == 1

    def test_an_association_that_it_may_not_detach_still_blocks_it(self, cfn: CloudFormation) -> None:
        cfn.create("C", "bob:free")
        assert failed(cfn.update("B", "bob:free", "bob:pro"), "C of stack one")
        assert cfn.attached == {PRO, "bob:free"}

    def test_a_plan_that_has_lost_the_stage_seconds_ago_is_moved_away_from_all_the_same(
        self, cfn: CloudFormation
    ) -> None:
        """It still moves the key: a look in the same batch counts. After its answer nothing is different."""
        cfn.api.plans["pro"] = Plan("Pro", (("api", "beta"),))
        assert outcome(cfn.update("B", "bob:free", "bob:pro")) == "MOVED"
        assert cfn.attached == {PRO, "bob:pro"}

    def test_for_a_plan_without_that_stage_nothing_is_detached(self, cfn: CloudFormation) -> None:
        assert outcome(cfn.update("B", "bob:free", "bob:gold")) == "ATTACHED"
        assert cfn.attached == {PRO, "bob:free", "bob:gold"}


class TestTakenThenMoved:
    """The next deployment can move a taken-over key; its rollback restores the key."""

    @pytest.fixture
    def cfn(self, cfn: CloudFormation) -> CloudFormation:
        cfn.by_hand(FREE)
        cfn.create("A", FREE, TAKE)
        return cfn

    def test_it_is_taken_over_by_the_move(self, cfn: CloudFormation) -> None:
        assert outcome(cfn.update("A", FREE, PRO, TAKE, took=True)) == "MOVED"
        assert cfn.attached == {PRO}
        assert cfn.delete("A", FREE, take=True).success
        assert cfn.delete("A", PRO, take=True).success
        assert not cfn.attached
        assert not cfn.entries

    @pytest.mark.parametrize(("on_existing", "took"), [(TAKE, False), (ADOPT, True), (FAIL, True)])
    def test_old_and_new_properties_have_to_say_so(
        self, cfn: CloudFormation, on_existing: OnExisting, took: bool
    ) -> None:
        assert failed(
            cfn.update("A", FREE, PRO, on_existing, took=took),
            "was there before it, so the function left it alone",
        )
        assert cfn.attached == {FREE}

    @pytest.mark.parametrize("carried", [FREE, PRO])
    def test_rolled_back_it_was_there_before(self, cfn: CloudFormation, carried: str) -> None:
        cfn.update("A", FREE, PRO, TAKE, took=True)
        assert cfn.update("A", carried, FREE, TAKE, took=True).success
        assert cfn.attached == {FREE}
        assert cfn.entry(FREE).preexisting
        assert cfn.delete("A", PRO, take=True).success
        assert cfn.delete("A", FREE, take=True).success
        assert cfn.attached == {FREE}, "it was never taken"

    def test_undone_at_once_it_was_there_before(self, cfn: CloudFormation) -> None:
        cfn.at(CREATE, usual, fails(DENIED))
        assert not cfn.update("A", FREE, PRO, TAKE, took=True).success
        assert cfn.attached == {FREE}
        assert cfn.entry(FREE).preexisting
        assert cfn.entry(FREE).moved_by is None

    def test_a_rollback_takes_nothing_over(self, cfn: CloudFormation) -> None:
        """This resource held its wanted association before."""
        cfn.update("A", FREE, GOLD, TAKE)
        assert cfn.entry(FREE).preexisting
        assert cfn.update("A", GOLD, FREE, TAKE, took=True).success
        assert cfn.entry(FREE).preexisting


class TestMovedAway:
    """The resource lets go of the association it moved from with its present one, at the latest."""

    def test_with_update_replace_policy_retain_nothing_stays_held(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE)
        cfn.update("A", FREE, PRO)
        assert cfn.holders(FREE), "a rollback may want it"
        assert cfn.delete("A", PRO).success
        assert not cfn.attached
        assert not cfn.entries

    def test_a_delete_of_the_old_one_leaves_the_rest(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE)
        cfn.update("A", FREE, PRO)
        cfn.delete("A", FREE)
        assert cfn.holders(PRO) == {holder("A")}
        assert cfn.attached == {PRO}

    def test_a_retained_association_stays_held(self, cfn: CloudFormation) -> None:
        """A replacement, not a move, left it."""
        cfn.create("A", FREE)
        cfn.update("A", FREE, GOLD)
        cfn.delete("A", GOLD)
        assert cfn.attached == {FREE}
        assert cfn.holders(FREE) == {holder("A")}
