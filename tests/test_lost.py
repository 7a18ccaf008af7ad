"""A rollback succeeds though its key or its plan is gone; nothing else does."""

from __future__ import annotations

import logging

import pytest

from usage_plan_key.model import REMEMBERED

from . import cloudformation
from .cloudformation import (
    ADOPT,
    CREATE,
    DELETE,
    DENIED,
    FREE,
    GOLD,
    PRO,
    CloudFormation,
    Death,
    failed,
    fails,
    followed_by,
    holder,
    outcome,
)

pytestmark = pytest.mark.usefixtures("either_conflict")
cfn = cloudformation.cfn


class TestLost:
    @staticmethod
    def gone(cfn: CloudFormation, thing: str = "alice") -> None:
        """Somebody deletes the key, or the plan."""
        cfn.api.attached = {pair for pair in cfn.api.attached if thing not in pair}
        cfn.api.keys.pop(thing, None)
        cfn.api.plans.pop(thing, None)

    @pytest.mark.parametrize("thing", ["alice", "free"])
    def test_a_failed_update_is_taken_back_though_the_key_is_gone(
        self, cfn: CloudFormation, thing: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        cfn.create("A", FREE, digest="P1")
        self.gone(cfn, thing)
        assert failed(
            cfn.update("A", FREE, FREE, ADOPT, digest="P2"),
            "there is no",
            "alice" if thing == "alice" else "plan free",
        )
        answer = cfn.update("A", FREE, FREE, digest="P1")
        assert outcome(answer) == "LOST"
        assert (answer.id, answer.key_name) == (FREE, "Key of alice")
        assert any("LOST" in record.message for record in caplog.records if record.levelname == "ERROR")
        assert failed(cfn.update("A", FREE, FREE, digest="P3"), "there is no"), "the next deploy fails again"
        assert outcome(cfn.update("A", FREE, FREE, digest="P1")) == "LOST"
        assert cfn.delete("A", FREE).success

    def test_a_lost_association_does_not_count_as_attached(self, cfn: CloudFormation) -> None:
        """A key that somebody puts back later stays when the resource goes."""
        cfn.create("A", FREE, digest="P1")
        cfn.delete("A", FREE)
        cfn.create("A", GOLD, digest="P1")
        self.gone(cfn)
        assert outcome(cfn.update("A", GOLD, FREE, digest="P1")) == "LOST"
        assert cfn.entry(FREE).begun_by is not None

    @pytest.mark.parametrize("carried", [FREE, GOLD])
    def test_an_update_that_succeeded_is_taken_back_though_the_key_is_gone(
        self, cfn: CloudFormation, carried: str
    ) -> None:
        """It wants its former association again, and no Delete has come for that."""
        cfn.create("A", FREE, digest="P1")
        cfn.update("A", FREE, GOLD, digest="P2")
        self.gone(cfn)
        assert outcome(cfn.update("A", carried, FREE, digest="P1")) == "LOST"
        assert cfn.delete("A", GOLD).success
        assert cfn.holders(FREE) == {holder("A")}

    def test_a_rollback_is_not_lost_where_api_gateway_refuses_for_another_reason(
        self, cfn: CloudFormation
    ) -> None:
        cfn.create("A", FREE, digest="P1")
        cfn.update("A", FREE, GOLD, digest="P2")
        cfn.by_hand(FREE, attached=False)
        cfn.at(CREATE, fails(DENIED))
        assert failed(cfn.update("A", GOLD, FREE, digest="P1"), "permission is missing")

    def test_after_its_delete_a_left_association_is_wanted_anew(self, cfn: CloudFormation) -> None:
        """The clean-up's Delete failed, so the hold stays: an Update to it is a deployment, and fails."""
        cfn.create("A", FREE, digest="P1")
        cfn.update("A", FREE, GOLD, digest="P2")
        cfn.at(DELETE, fails(DENIED))
        assert not cfn.delete("A", FREE).success
        self.gone(cfn)
        assert failed(cfn.update("A", GOLD, FREE, digest="P3"), "there is no")

    def test_an_update_fails_though_it_wants_its_former_association(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE, digest="P1")
        cfn.update("A", FREE, FREE, digest="P2")
        self.gone(cfn)
        assert failed(cfn.update("A", FREE, FREE, digest="P3"), "there is no")

    def test_a_create_fails_where_its_key_is_gone(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE, digest="P1")
        self.gone(cfn)
        assert failed(cfn.create("A", FREE, digest="P1"), "there is no")

    def test_without_a_ledger_nothing_is_lost(self, cfn: CloudFormation) -> None:
        cfn.has_ledger = False
        self.gone(cfn)
        assert failed(cfn.update("A", FREE, FREE, digest="P1"), "there is no")

    def test_a_value_that_was_asked_for_is_empty(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE, digest="P1")
        self.gone(cfn)
        served = cfn.send(cfn.an_update("A", FREE, FREE, digest="P1", include_value=True))
        assert (served.outcome, served.value) == ("LOST", "")

    def test_a_move_is_taken_back_though_the_key_is_gone(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE, digest="P1")
        assert outcome(cfn.update("A", FREE, PRO, digest="P2")) == "MOVED"
        self.gone(cfn)
        assert outcome(cfn.update("A", PRO, FREE, digest="P1")) == "LOST"
        assert cfn.delete("A", PRO).success
        assert cfn.delete("A", FREE).success
        assert not cfn.entries

    def test_an_update_that_goes_back_a_month_later_is_no_rollback(self, cfn: CloudFormation) -> None:
        """Under UpdateReplacePolicy Retain no Delete has come for the association that it goes back to."""
        cfn.create("A", FREE, digest="P1")
        cfn.update("A", FREE, GOLD, digest="P2")
        del cfn.api.plans["free"]
        cfn.clock.now += 30 * REMEMBERED
        assert failed(cfn.update("A", GOLD, FREE, digest="P3"), "there is no usage plan free")

    def test_given_again_the_answer_has_the_same_value(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE, digest="P1")
        del cfn.api.plans["free"]
        request = cfn.an_update("A", FREE, FREE, digest="P1", include_value=True)
        first = cfn.send(request)
        assert (first.outcome, first.value) == ("LOST", "")
        assert cfn.send(request) == first

    def test_a_lost_association_is_logged_in_full(
        self, cfn: CloudFormation, caplog: pytest.LogCaptureFixture
    ) -> None:
        cfn.create("A", FREE, digest="P1")
        self.gone(cfn)
        reason = cfn.update("A", FREE, FREE, ADOPT, digest="P2").reason
        assert outcome(cfn.update("A", FREE, FREE, digest="P1")) == "LOST"
        said = (
            f"LOST: {reason}. CloudFormation goes on as if the key were attached."
            " The resource's next Update fails"
        )
        assert ("usage_plan_key.service", logging.ERROR, said) in caplog.record_tuples

    def test_a_rollback_that_moved_and_died_is_lost_where_the_key_is_gone(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE, digest="P1")
        cfn.update("A", FREE, PRO, digest="P2")
        request = cfn.an_update("A", PRO, FREE, digest="P1")
        cfn.at(DELETE, followed_by(lambda: cfn.at(CREATE, fails(Death()))))
        with pytest.raises(Death):
            cfn.send(request)
        cfn.at(CREATE)
        self.gone(cfn)
        assert outcome(cfn.send(request)) == "LOST"
