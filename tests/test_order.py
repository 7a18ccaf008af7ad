"""The newest request wins, and the same request gets the same answer."""

from __future__ import annotations

import logging

import pytest

from emulators.fake import Plan
from usage_plan_key.api_gateway import ApiGateway
from usage_plan_key.errors import TurnOverError
from usage_plan_key.model import Response
from usage_plan_key.request import Create, Request, Update
from usage_plan_key.retry import Deadline
from usage_plan_key.service import Service

from . import cloudformation
from .cloudformation import (
    BUSY,
    CREATE,
    DENIED,
    FREE,
    GET,
    GOLD,
    PRO,
    THROTTLED,
    CloudFormation,
    error,
    failed,
    fails,
    holder,
    outcome,
    served,
)

pytestmark = pytest.mark.usefixtures("either_conflict")
cfn = cloudformation.cfn


class TestSuperseded:
    """A newer request has arrived."""

    @pytest.mark.parametrize("kind", [Create, Update])
    def test_a_create_or_an_update_fails_and_touches_nothing(
        self, cfn: CloudFormation, kind: type[Request]
    ) -> None:
        late = cfn.a_create("A", FREE) if kind is Create else cfn.an_update("A", GOLD, FREE)
        cfn.arrives(cfn.a_delete("A", "invented"))
        answer = cfn.send(late)
        assert failed(answer, "Superseded", "this one touched nothing")
        assert answer.id == late.answer_id
        assert not cfn.calls()
        assert not cfn.entries

    def test_between_two_attempts_it_stops_and_takes_back_its_hold(self, cfn: CloudFormation) -> None:
        cfn.at(CREATE, *[fails(BUSY)] * 9)
        cfn.clock.meanwhile = [lambda: None, lambda: cfn.arrives(cfn.a_delete("A", "invented"))]
        assert failed(cfn.create("A", FREE), "Superseded")
        assert not cfn.entries
        assert not cfn.attached

    def test_a_request_that_was_cancelled_meanwhile_gives_way_within_20_seconds(
        self, cfn: CloudFormation
    ) -> None:
        waits = error(429, "TooManyRequestsException", "Too Many Requests")
        waits.response["ResponseMetadata"]["HTTPHeaders"] = {"retry-after": "600"}
        cfn.at(CREATE, fails(waits))
        request = cfn.a_create("A", FREE)
        cfn.clock.meanwhile = [lambda: None, lambda: cfn.arrives(cfn.a_delete("A", "invented"))]
        began = cfn.clock.now
        assert failed(cfn.send(request), "Superseded")
        assert cfn.clock.now - began <= 41

    def test_without_issue_times_there_is_no_fence(self, cfn: CloudFormation) -> None:
        """The function takes each request as new."""
        late = cfn.a_create("A", FREE, issued=None)
        cfn.send(cfn.a_delete("A", "invented", issued=None))
        assert outcome(cfn.send(late)) == "ATTACHED"

    @pytest.mark.parametrize("is_over", [False, True], ids=["in time", "too late"])
    def test_a_request_not_fenced_at_its_arrival_is_fenced_when_its_turn_comes(
        self, cfn: CloudFormation, *, is_over: bool
    ) -> None:
        """Too late, the function fences only a Create: it begins a life, and its Delete may follow."""
        for request in (cfn.a_create("A", FREE), cfn.an_update("B", FREE, FREE)):
            deadline = Deadline(900, cfn.clock, is_over=is_over)
            served(Service(request, cfn, ApiGateway(cfn), deadline, fenced=False))  # type: ignore[arg-type]  # a fake
        assert [cfn.records[holder(name)].issued > 0 for name in "AB"] == [True, not is_over]


class TestSameSecond:
    """Among requests of the same second the order of arrival decides."""

    def test_an_update_follows_the_clean_up_of_the_operation_before(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE)
        cfn.update("A", FREE, GOLD)
        clean_up = cfn.a_delete("A", FREE)
        assert cfn.send(clean_up).success
        assert cfn.update("A", GOLD, PRO, issued=clean_up.issued).success

    def test_a_create_follows_the_delete_of_the_same_logical_id(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE)
        delete = cfn.a_delete("A", FREE)
        assert cfn.send(delete).success
        assert cfn.create("A", FREE, issued=delete.issued).success

    def test_a_cancelled_create_never_passes_its_delete(self, cfn: CloudFormation) -> None:
        create = cfn.a_create("A", FREE)
        delete = cfn.a_delete("A", "invented", issued=create.issued)
        assert cfn.send(delete).success
        assert failed(cfn.send(create), "Superseded")
        assert not cfn.attached

    def test_a_request_that_comes_again_passes_nothing(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE)
        update = cfn.an_update("A", FREE, PRO)
        rollback = cfn.an_update("A", FREE, FREE, issued=update.issued)
        cfn.arrives(update)
        cfn.arrives(rollback)
        cfn.arrives(update)
        assert failed(served(cfn.service(update)), "Superseded")
        assert served(cfn.service(rollback)).success
        assert cfn.attached == {FREE}

    def test_one_that_comes_when_its_time_is_over_is_not_newer_than_another_of_its_second(
        self, cfn: CloudFormation
    ) -> None:
        """Its first delivery found no ledger; the next Create has attached the key since."""
        request = cfn.a_create("A", FREE)
        assert cfn.create("A", FREE, issued=request.issued).success
        cfn.is_over = True
        assert not cfn.send(request).success
        cfn.is_over = False
        assert cfn.delete("A", FREE).success
        assert cfn.attached == set()


class TestSameAnswer:
    """An answer stands."""

    def test_a_request_that_comes_again_is_given_its_answer_again_and_nothing_is_touched(
        self, cfn: CloudFormation
    ) -> None:
        """Later requests do not change it."""
        request = cfn.a_create("A", FREE)
        answer = cfn.send(request)
        cfn.delete("A", FREE)
        cfn.calls()
        assert cfn.send(request) == answer
        assert not cfn.attached
        assert not cfn.calls()

    def test_failed_stays_failed_though_it_would_succeed_by_now(self, cfn: CloudFormation) -> None:
        request = cfn.a_create("A", "alice:nope")
        answer = cfn.send(request)
        cfn.api.plans["nope"] = Plan("Nope")
        assert cfn.send(request) == answer
        assert not cfn.attached

    def test_the_value_is_never_written_down(
        self, cfn: CloudFormation, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Only an answer to IncludeValue carries it; the function looks it up anew for a repeated answer."""
        request = cfn.a_create("A", FREE, include_value=True)
        assert cfn.send(request).value == "value-of-alice"
        assert "value-of-alice" not in repr(cfn.records)
        assert cfn.send(request).value == "value-of-alice"
        assert cfn.send(cfn.an_update("A", FREE, FREE)).value is None
        cfn.at(GET, fails(DENIED))
        assert cfn.send(request).value is None
        cfn.by_hand(FREE, attached=False)
        assert cfn.send(request).value is None
        assert "An internal error" not in caplog.text

    def test_a_value_that_there_is_no_time_to_look_up_is_looked_up_in_the_next_turn(
        self, cfn: CloudFormation
    ) -> None:
        """Otherwise the answer would lack the value, and Fn::GetAtt would fail."""
        request = cfn.a_create("A", FREE, include_value=True)
        first = cfn.send(request)
        cfn.resumable = True
        cfn.at(GET, *[fails(THROTTLED)] * 999)
        with pytest.raises(TurnOverError):
            cfn.send(request)
        cfn.at(GET)
        assert cfn.send(request) == first

    def test_a_printed_response_shows_no_value(self) -> None:
        assert "value-of-alice" not in repr(Response(success=True, id=FREE, value="value-of-alice"))

    def test_the_log_says_that_an_answer_is_given_again_and_that_nothing_is_touched(
        self, cfn: CloudFormation, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "usage_plan_key.service")
        request = cfn.a_delete("A", FREE)
        cfn.send(request)
        cfn.send(request)
        assert f"This resource does not hold {FREE}, so Delete changes nothing" in caplog.messages
        assert "The function answered this request before; the same answer goes out again" in caplog.messages

    def test_an_answer_is_given_again_without_the_value_that_cannot_be_looked_up(
        self, cfn: CloudFormation
    ) -> None:
        request = cfn.a_create("A", FREE, include_value=True)
        first = cfn.send(request)
        cfn.at(GET, fails(DENIED))
        assert cfn.send(request) == first._replace(value=None)

    def test_a_failure_that_cannot_be_written_down_is_answered_and_logged(
        self, cfn: CloudFormation, caplog: pytest.LogCaptureFixture
    ) -> None:
        request = cfn.a_create("A", FREE)
        cfn.arrives(request)
        cfn.outage(99)
        answer = served(cfn.service(request))
        assert answer == Response(
            success=False, id=FREE, reason="the ledger is out of reach", at=int(cfn.clock.now)
        )
        assert answer.success is False
        said = "Could not write the answer down: the ledger is out of reach"
        assert ("usage_plan_key.service", logging.ERROR, said) in caplog.record_tuples

    def test_an_answer_is_written_down_as_it_is_given(self, cfn: CloudFormation) -> None:
        cfn.create("A", FREE)
        request = cfn.a_delete("A", FREE)
        answer = cfn.send(request)
        assert answer == Response(success=True, id=FREE, at=int(cfn.clock.now))
        assert cfn.records[holder("A")].answers[request.id] == answer


class TestOver:
    """A request whose time is over touches nothing: CloudFormation may count it as failed."""

    @pytest.mark.parametrize("kind", ["create", "update", "delete"])
    def test_it_is_answered_failed_and_nothing_else(self, cfn: CloudFormation, kind: str) -> None:
        cfn.create("A", FREE)
        cfn.calls()
        before = dict(cfn.entries)
        cfn.is_over = True
        asked: dict[str, Request] = {
            "create": cfn.a_create("B", GOLD),
            "update": cfn.an_update("A", FREE, GOLD),
            "delete": cfn.a_delete("A", FREE),
        }
        service = cfn.service(asked[kind])
        answer = served(service)
        reason = "CloudFormation's time for this request (ServiceTimeout) was over before its turn came"
        assert answer.reason.removesuffix(". Still attached: alice:free, if it was") == reason
        assert (cfn.calls(), cfn.entries) == ({}, before)
        cfn.is_over = False
        assert served(cfn.service(asked[kind])) == answer, "the same again, though there is time"

    def test_one_that_was_answered_is_given_that_answer(self, cfn: CloudFormation) -> None:
        request = cfn.a_create("A", FREE)
        given = cfn.send(request)
        cfn.is_over = True
        assert served(cfn.service(request)) == given
        assert given.success
