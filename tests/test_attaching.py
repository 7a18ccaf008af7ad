"""Create and Update attach the named association with the fewest calls, or say in a sentence why not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from botocore.exceptions import ClientError

from usage_plan_key.model import Holder, Snapshot
from usage_plan_key.request import Invalid, OnExisting

from . import cloudformation
from .cloudformation import (
    ADOPT,
    BAD,
    BROKEN,
    BUSY,
    CREATE,
    DENIED,
    FAIL,
    FREE,
    GET,
    GOLD,
    LOST,
    PRO,
    THROTTLED,
    CloudFormation,
    error,
    failed,
    fails,
    holder,
    outcome,
    preceded_by,
    served_then,
)

pytestmark = pytest.mark.usefixtures("either_conflict")
cfn = cloudformation.cfn


class TestAttaching:
    """A resource wants an association."""

    def test_an_unheld_key_that_is_not_in_the_plan_is_attached_with_one_call(
        self, cfn: CloudFormation
    ) -> None:
        """The answer has the id and the key's name."""
        answer = cfn.create("A", FREE)
        assert outcome(answer) == "ATTACHED"
        assert (answer.id, answer.key_name, answer.at) == (FREE, "Key of alice", int(cfn.clock.now))
        assert cfn.calls() == {"CreateUsagePlanKey": 1}
        assert cfn.attached == {FREE}
        assert cfn.holders(FREE) == {holder("A")}

    def test_at_the_call_the_holder_stands_in_the_ledger_already(self, cfn: CloudFormation) -> None:
        """Hold, then attach."""
        seen: list[set[Holder]] = []
        cfn.at(CREATE, preceded_by(lambda: seen.append(cfn.holders(FREE))))
        cfn.create("A", FREE)
        assert seen == [{holder("A")}]

    def test_an_update_of_a_held_and_attached_key_looks_and_does_no_more(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE)
        cfn.calls()
        assert outcome(cfn.update("A", FREE, FREE)) == "VERIFIED"
        assert cfn.calls() == {"GetUsagePlanKey": 1}

    def test_an_update_attaches_a_held_key_again_that_somebody_removed_by_hand(
        self, cfn: CloudFormation
    ) -> None:
        cfn.create("A", FREE)
        cfn.by_hand(FREE, attached=False)
        assert outcome(cfn.update("A", FREE, FREE)) == "REPAIRED"
        assert cfn.attached == {FREE}

    @pytest.mark.parametrize("present", [True, False], ids=["attached", "removed by hand"])
    def test_a_create_of_an_association_that_its_resource_holds_already_is_attached(
        self, cfn: CloudFormation, present: bool
    ) -> None:
        """Lambda repeated the Create, or CloudFormation retained the resource once."""
        cfn.create("A", FREE)
        if not present:
            cfn.by_hand(FREE, attached=False)
        assert outcome(cfn.create("A", FREE)) == "ATTACHED"
        assert cfn.attached == {FREE}

    def test_a_new_name_joins_and_the_delete_of_the_old_one_leaves_it_attached(
        self, cfn: CloudFormation
    ) -> None:
        """The new one's Delete detaches it."""
        cfn.create("Old", FREE)
        cfn.calls()
        assert outcome(cfn.create("New", FREE)) == "JOINED"
        assert cfn.delete("Old", FREE).success
        assert cfn.attached == {FREE}
        assert cfn.calls() == {"GetUsagePlanKey": 1}
        cfn.delete("New", FREE)
        assert not cfn.attached

    @pytest.mark.parametrize(
        ("stack", "on_existing"), [("one", FAIL), ("two", ADOPT)], ids=["a sibling", "another stack"]
    )
    def test_a_key_that_others_hold_and_somebody_removed_is_held_too_and_attached(
        self, cfn: CloudFormation, stack: str, on_existing: OnExisting
    ) -> None:
        cfn.create("B", FREE, stack=stack)
        cfn.by_hand(FREE, attached=False)
        assert outcome(cfn.create("A", FREE, on_existing)) == "REPAIRED"
        assert cfn.attached == {FREE}
        assert cfn.holders(FREE) == {holder("A"), holder("B", stack)}

    def test_no_request_looks_into_the_ledger_more_often_than_it_must(
        self, cfn: CloudFormation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each look into the ledger is a call to DynamoDB."""
        looks: list[int] = []
        change = cfn.change

        def counted(*arguments: Any) -> Snapshot:
            looks[-1] += 1
            return change(*arguments)

        monkeypatch.setattr(cfn, "change", counted)
        for act in (
            partial(cfn.create, "A", FREE),
            partial(cfn.update, "A", FREE, FREE),
            partial(cfn.update, "A", FREE, PRO),
            partial(cfn.delete, "A", FREE),
            partial(cfn.delete, "A", PRO),
            partial(cfn.delete, "A", PRO),
        ):
            looks.append(0)
            assert act().success
        assert looks == [4, 5, 7, 5, 4, 3]


class TestReplacing:
    """An Update names another association."""

    def test_the_answer_has_the_new_id_and_the_old_one_stays_until_its_delete_comes(
        self, cfn: CloudFormation
    ) -> None:
        cfn.create("A", FREE)
        answer = cfn.update("A", FREE, GOLD)
        assert outcome(answer) == "ATTACHED"
        assert answer.id == GOLD
        assert cfn.attached == {FREE, GOLD}
        cfn.delete("A", FREE)
        assert cfn.attached == {GOLD}

    @pytest.mark.parametrize("carried", [FREE, GOLD], ids=["with the old id", "with the new id"])
    def test_a_rollback_comes_out_right_whichever_id_it_carries(
        self, cfn: CloudFormation, carried: str
    ) -> None:
        cfn.create("A", FREE)
        cfn.update("A", FREE, GOLD)
        assert cfn.update("A", carried, FREE).id == FREE
        cfn.delete("A", GOLD)
        assert cfn.attached == {FREE}

    def test_a_foreign_id_is_served_like_any_other_and_its_delete_releases_nothing(
        self, cfn: CloudFormation
    ) -> None:
        assert cfn.update("A", "former", FREE).id == FREE
        assert cfn.delete("A", "former").id == "former"
        assert cfn.attached == {FREE}


class TestRefused:
    """API Gateway refuses to attach."""

    @pytest.mark.parametrize(
        ("wanted", "words"),
        [
            ("alice:nope", ["alice", "there is no usage plan nope", "eu-central-1"]),
            ("carol:free", ["free", "there is no API key carol", "eu-central-1"]),
        ],
        ids=["plan", "key"],
    )
    def test_a_plan_or_a_key_that_is_not_there_is_named_with_the_region_and_nothing_is_held(
        self, cfn: CloudFormation, wanted: str, words: list[str]
    ) -> None:
        answer = cfn.create("A", wanted)
        assert failed(answer, *words)
        assert (answer.id, answer.at) == (wanted, int(cfn.clock.now))
        assert not cfn.entries

    @pytest.mark.parametrize(
        ("refusal", "words"),
        [
            (BAD, ["bad request", "Bad", "Check KeyId and UsagePlanId"]),
            (
                error(401, "UnauthorizedException"),
                ["apigateway:POST on ", "eu-central-1::/usageplans/free/keys,"],
            ),
            (DENIED, ["apigateway:POST on ", "eu-central-1::/usageplans/free/keys,"]),
        ],
        ids=["bad request", "unauthorized", "access denied"],
    )
    def test_a_refusal_names_the_call_the_ids_and_the_remedy_and_the_hold_is_taken_back(
        self, cfn: CloudFormation, refusal: ClientError, words: list[str]
    ) -> None:
        """The Reason says where and why, too."""
        cfn.at(CREATE, fails(refusal))
        assert failed(cfn.create("A", FREE), "API key alice to usage plan free in eu-central-1", *words)
        assert not cfn.attached
        assert not cfn.entries

    def test_an_update_fails_with_its_own_id(self, cfn: CloudFormation) -> None:
        """Another id would mean replacement; the resource still holds its former association."""
        cfn.create("A", FREE)
        answer = cfn.update("A", FREE, "alice:nope")
        assert failed(answer)
        assert answer.id == FREE
        assert cfn.holders(FREE) == {holder("A")}

    def test_a_refused_repair_leaves_the_hold_and_its_marks(self, cfn: CloudFormation) -> None:
        cfn.by_hand(FREE)
        cfn.create("A", FREE, ADOPT)
        cfn.by_hand(FREE, attached=False)
        cfn.at(CREATE, fails(DENIED))
        assert failed(cfn.update("A", FREE, FREE, ADOPT))
        assert cfn.holders(FREE) == {holder("A")}
        assert cfn.entry(FREE).preexisting

    def test_a_joiner_that_cannot_look_holds_nothing(self, cfn: CloudFormation) -> None:
        """The other resource still holds it."""
        cfn.create("B", FREE)
        cfn.at(GET, fails(DENIED))
        assert failed(cfn.create("A", FREE), "apigateway:GET")
        assert cfn.holders(FREE) == {holder("B")}

    @pytest.mark.parametrize(
        "trouble", [BUSY, THROTTLED, BROKEN, LOST], ids=["busy", "throttled", "broken", "lost"]
    )
    def test_passing_trouble_is_waited_out(self, cfn: CloudFormation, trouble: Exception) -> None:
        cfn.at(CREATE, fails(trouble), fails(trouble))
        assert outcome(cfn.create("A", FREE)) == "ATTACHED"
        assert cfn.attached == {FREE}

    @pytest.mark.parametrize("trouble", [BUSY, THROTTLED], ids=["busy", "throttled"])
    def test_out_of_time_and_clearly_refused_it_says_how_often_it_tried_and_holds_nothing(
        self, cfn: CloudFormation, trouble: ClientError
    ) -> None:
        """The Reason names the last error, too."""
        cfn.at(CREATE, *[fails(trouble)] * 999)
        answer = cfn.create("A", FREE)
        assert failed(
            answer, "gave up after ", " attempts in 8", trouble.response["Error"]["Message"].rstrip(".")
        )
        assert not cfn.entries

    @pytest.mark.parametrize("trouble", [BROKEN, LOST], ids=["broken", "lost"])
    def test_out_of_time_and_perhaps_served_the_hold_stays(
        self, cfn: CloudFormation, trouble: Exception
    ) -> None:
        """So the Delete that follows detaches it."""
        cfn.at(CREATE, served_then(trouble), *[fails(BUSY)] * 999)
        answer = cfn.create("A", FREE)
        assert failed(answer)
        assert cfn.attached == {FREE}
        assert cfn.holders(FREE) == {holder("A")}
        cfn.delete("A", answer.id)
        assert not cfn.attached

    def test_after_a_lost_reply_it_finds_its_own(self, cfn: CloudFormation) -> None:
        """API Gateway refuses the next attempt as a duplicate; a Delete detaches the key."""
        cfn.at(CREATE, served_then(LOST))
        assert outcome(cfn.create("A", FREE)) == "ATTACHED"
        cfn.delete("A", FREE)
        assert not cfn.attached

    def test_of_unusable_properties_all_faults_are_named_and_nothing_is_touched(
        self, cfn: CloudFormation
    ) -> None:
        answer = cfn.send(cfn._request(Invalid, "A", physical_id=None, wanted=None, faults=("one", "two")))
        assert failed(answer, "one; two")
        assert answer.id == "A"
        assert not cfn.calls()

    @pytest.mark.parametrize("operation", [GET, "get_usage_plans"])
    def test_after_a_lost_reply_the_hold_stays_though_nobody_can_look(
        self, cfn: CloudFormation, operation: str
    ) -> None:
        step = served_then(LOST) if operation == GET else fails(LOST)
        cfn.at(CREATE, step, fails(error(409, "ConflictException", "Conflict")))
        cfn.at(operation, fails(DENIED))
        assert failed(cfn.create("A", FREE))
        assert cfn.holders(FREE) == {holder("A")}

    def test_an_internal_error_is_answered_and_a_key_that_may_be_attached_stays_held(
        self, cfn: CloudFormation, caplog: pytest.LogCaptureFixture
    ) -> None:
        cfn.at(CREATE, served_then(ZeroDivisionError("oops")))
        assert failed(cfn.create("A", FREE), "internal error", "ZeroDivisionError: oops")
        assert cfn.holders(FREE) == {holder("A")}
        assert "An internal error" in caplog.text

    def test_an_internal_error_is_logged_with_its_traceback(
        self, cfn: CloudFormation, caplog: pytest.LogCaptureFixture
    ) -> None:
        cfn.at(CREATE, fails(ZeroDivisionError()))
        assert failed(cfn.create("A", FREE), "An internal error, please report it: ZeroDivisionError")
        (line,) = [line for line in caplog.records if line.exc_info]
        assert line.message == "An internal error"


class TestValue:
    """API Gateway's reply may lack the value that IncludeValue asks for."""

    @staticmethod
    def without(call: Callable[[], Any]) -> Any:
        reply = call()
        del reply["value"]
        return reply

    def test_it_is_looked_for(self, cfn: CloudFormation) -> None:
        cfn.at(CREATE, self.without)
        assert cfn.send(cfn.a_create("A", FREE, include_value=True)).value == cfn.api.keys["alice"].value
        assert cfn.calls() == {"CreateUsagePlanKey": 1, "GetUsagePlanKey": 1}

    def test_without_one_the_answer_has_none_and_the_log_says_so(
        self, cfn: CloudFormation, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The key stays attached; if Fn::GetAtt needs the value, CloudFormation rolls back."""
        cfn.at(CREATE, self.without)
        cfn.at(GET, self.without)
        served = cfn.send(cfn.a_create("A", FREE, include_value=True))
        assert (served.success, served.value) == (True, None)
        said = "API Gateway does not return the value of API key alice, so the answer has none"
        assert ("usage_plan_key.service", logging.ERROR, said) in caplog.record_tuples
        assert cfn.attached == {FREE}

    def test_a_request_without_include_value_does_not_look_for_it(self, cfn: CloudFormation) -> None:
        cfn.at(CREATE, self.without)
        assert cfn.create("A", FREE).success
        assert cfn.calls() == {"CreateUsagePlanKey": 1}
