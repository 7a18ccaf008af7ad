"""Delete detaches the keys that only its resource holds, and succeeds only after that."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from usage_plan_key.model import AssociationRecord, Holder, Snapshot
from usage_plan_key.request import MOST_SKEW

from . import cloudformation
from .cloudformation import (
    BUSY,
    DELETE,
    DENIED,
    FREE,
    GOLD,
    LOST,
    PRO,
    CloudFormation,
    dies_at,
    failed,
    fails,
    holder,
    outcome,
    preceded_by,
    served_then,
    usual,
)

pytestmark = pytest.mark.usefixtures("either_conflict")
cfn = cloudformation.cfn


class TestDeleting:
    """Delete detaches, or lets go."""

    def test_the_last_holder_detaches_with_one_call_and_leaves_nothing_in_the_ledger(
        self, cfn: CloudFormation, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The answer has the event's id."""
        cfn.create("A", FREE)
        cfn.calls()
        caplog.set_level(logging.INFO)
        answer = cfn.delete("A", FREE)
        assert answer.success
        assert (answer.id, answer.at) == (FREE, int(cfn.clock.now))
        assert cfn.calls() == {"DeleteUsagePlanKey": 1}
        assert "Delete changes nothing" not in caplog.text
        assert not cfn.attached
        assert not cfn.entries

    @pytest.mark.parametrize(
        ("id_", "shown"),
        [
            (FREE, FREE),
            ("stack-A-1ABC", "stack-A-1ABC"),
            ("A", "A"),
            ("s3cr3t-s3cr3t-s3cr3t:free", "a foreign id of 25 characters"),
            ("aBcDEfGHiJKLmnoPQRAstUVwxyz0123456789abcd", "a foreign id of 41 characters"),
        ],
    )
    def test_not_held(
        self, cfn: CloudFormation, id_: str, shown: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It succeeds with the event's own id, changes nothing, and logs that."""
        caplog.set_level(logging.INFO)
        cfn.by_hand(FREE)
        answer = cfn.delete("A", id_)
        assert answer.success
        assert answer.id == id_
        assert not cfn.calls()
        assert f"does not hold {shown}, so Delete changes nothing" in caplog.text

    @pytest.mark.parametrize("gone", ["association", "plan", "key"])
    def test_not_found_is_forgiven_whatever_part_of_it_is_gone(self, cfn: CloudFormation, gone: str) -> None:
        cfn.create("A", FREE)
        cfn.by_hand(FREE, attached=False)
        cfn.api.plans.pop("free" if gone == "plan" else "", None)
        cfn.api.keys.pop("alice" if gone == "key" else "", None)
        assert cfn.delete("A", FREE).success
        assert not cfn.entries

    def test_with_an_invented_id_all_that_its_create_took_is_released(self, cfn: CloudFormation) -> None:
        """CloudFormation invents an id for a cancelled Create."""
        cfn.create("A", FREE)
        assert cfn.delete("A", "invented").id == "invented"
        assert not cfn.attached

    @pytest.mark.parametrize("id_", [FREE, "invented"])
    def test_an_association_that_a_newer_update_wants_stays_attached(
        self, cfn: CloudFormation, id_: str
    ) -> None:
        """The Update arrives before the function serves the Delete."""
        cfn.create("A", FREE)
        late = cfn.a_delete("A", id_)
        cfn.arrives(cfn.an_update("A", GOLD, FREE))
        cfn.send(late)
        assert cfn.attached == {FREE}
        assert cfn.holders(FREE) == {holder("A")}

    def test_an_association_that_is_wanted_again_meanwhile_is_neither_let_go_nor_detached(
        self, cfn: CloudFormation
    ) -> None:
        cfn.create("A", FREE)
        cfn.update("A", "former", GOLD)
        newer = cfn.an_update("A", "former", GOLD)
        cfn.at(DELETE, preceded_by(lambda: cfn.arrives(newer)))
        newer.issued = int(cfn.clock.now) + 9
        assert cfn.delete("A", "invented").success
        assert cfn.attached == {GOLD}
        assert cfn.holders(GOLD) == {holder("A")}

    @pytest.mark.parametrize(
        ("before", "writes"),
        [
            pytest.param(
                lambda cfn: cfn.create("B", FREE), 2, id="others hold it: arrived; released and answered"
            ),
            pytest.param(lambda cfn: None, 3, id="the last holder: arrived; marked; detached and answered"),
            pytest.param(
                lambda cfn: dies_at(cfn, cfn.an_update("A", FREE, PRO)),
                4,
                id="marked for a move: the mark is renewed and taken off first",
            ),
        ],
    )
    def test_a_deletes_last_write_has_its_answer(
        self,
        cfn: CloudFormation,
        before: Callable[[CloudFormation], object],
        writes: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        cfn.create("A", FREE)
        before(cfn)
        written: list[Holder] = []
        write = cfn.written

        def counted(holder_: Holder, after: Snapshot) -> None:
            written.append(holder_)
            write(holder_, after)

        monkeypatch.setattr(cfn, "written", counted)
        assert cfn.delete("A", FREE).success
        assert written == [holder("A")] * writes


class TestRefused:
    """The detaching fails."""

    def test_the_reason_and_an_error_name_the_key_that_stays_and_another_delete_succeeds(
        self, cfn: CloudFormation, caplog: pytest.LogCaptureFixture
    ) -> None:
        cfn.create("A", FREE)
        cfn.at(DELETE, fails(DENIED))
        answer = cfn.delete("A", FREE)
        assert failed(answer, "apigateway:DELETE", "Still attached: API key alice in usage plan free")
        assert answer.id == FREE
        assert (logging.ERROR, answer.reason) in [(level, text) for _, level, text in caplog.record_tuples]
        assert cfn.entry(FREE) == AssociationRecord(frozenset({holder("A")}))
        assert cfn.delete("A", FREE).success
        assert not cfn.attached

    def test_out_of_time_it_names_the_attempts_and_the_key_that_stays_attached(
        self, cfn: CloudFormation
    ) -> None:
        cfn.create("A", FREE)
        cfn.at(DELETE, *[fails(BUSY)] * 999)
        assert failed(
            cfn.delete("A", FREE), "gave up after", "Still attached: API key alice in usage plan free"
        )

    def test_where_nobody_knows_whether_it_is_detached_the_mark_stays(self, cfn: CloudFormation) -> None:
        """The mark keeps others from joining a key that may be gone; the next Delete finishes it."""
        cfn.create("A", FREE)
        cfn.at(DELETE, served_then(LOST), fails(DENIED))
        assert failed(cfn.delete("A", FREE), "apigateway:DELETE")
        assert cfn.entry(FREE).detaching is not None
        assert cfn.delete("A", FREE).success
        assert not cfn.entries

    def test_an_association_that_it_did_not_try_is_named_too(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE)
        cfn.update("A", "other", "bob:free")
        cfn.at(DELETE, fails(DENIED))
        assert failed(
            cfn.delete("A", "invented"),
            "Still attached: API key alice in",
            ", API key bob in usage plan free",
        )

    def test_there_is_no_success_before_all_is_released(self, cfn: CloudFormation) -> None:
        """The Reason does not name a detached association."""
        cfn.create("A", FREE)
        cfn.update("A", "other", "bob:free")
        cfn.at(DELETE, usual, fails(DENIED))
        answer = cfn.delete("A", "invented")
        assert failed(answer, "Still attached: API key bob in usage plan free")
        assert "alice" not in answer.reason
        assert cfn.attached == {"bob:free"}


class TestMeanwhile:
    """After a pause a Delete looks whether its mark still stands."""

    def test_a_detaching_that_another_worker_has_finished_is_not_done_again(
        self, cfn: CloudFormation
    ) -> None:
        """By then the key may be somebody else's."""
        cfn.create("A", FREE)
        delete = cfn.a_delete("A", FREE)

        def other_worker() -> None:
            cfn.at(DELETE)
            assert cfn.send(delete).success
            assert outcome(cfn.create("B", FREE, stack="two")) == "ATTACHED"

        cfn.at(DELETE, fails(BUSY))
        cfn.clock.meanwhile = [other_worker]
        assert cfn.send(delete).success
        assert cfn.attached == {FREE}

    def test_a_delete_whose_mark_somebody_else_has_finished_succeeds(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE)
        cfn.seconds = 3600

        def another() -> None:
            cfn.clock.now += 900 + MOST_SKEW
            cfn.at(DELETE)
            assert outcome(cfn.create("B", FREE, stack="two")) == "ATTACHED"

        cfn.at(DELETE, fails(BUSY))
        cfn.clock.meanwhile = [another]
        assert cfn.delete("A", FREE).success
        assert cfn.holders(FREE) == {holder("B", "two")}
        assert cfn.attached == {FREE}

    def test_a_key_that_another_has_attached_and_marked_meanwhile_is_left_to_it(
        self, cfn: CloudFormation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cfn.create("A", FREE)
        cfn.seconds = 3600
        asked: list[object] = []
        change = cfn.change

        def watched(holder_: Holder, *rest: Any) -> Snapshot:
            asked.append(holder_)
            return change(holder_, *rest)

        def another() -> None:
            cfn.clock.now += 900 + MOST_SKEW
            cfn.at(DELETE)
            cfn.create("B", FREE, stack="two")
            dies_at(cfn, cfn.a_delete("B", FREE, stack="two"))
            monkeypatch.setattr(cfn, "change", watched)

        cfn.at(DELETE, fails(BUSY))
        cfn.clock.meanwhile = [another]
        assert cfn.delete("A", FREE).success
        assert cfn.attached == {FREE}
        assert cfn.holders(FREE) == {holder("B", "two")}
        assert set(asked) == {holder("A")}
