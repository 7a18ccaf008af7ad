"""The function dies, runs out of time or loses its ledger at any step; the next delivery ends well."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from usage_plan_key.api_gateway import ApiGateway
from usage_plan_key.errors import FailedError, OutOfTimeError, TurnOverError
from usage_plan_key.model import Holder, Response, Snapshot
from usage_plan_key.request import MOST_SKEW, Delete, Request, Update
from usage_plan_key.retry import Deadline
from usage_plan_key.service import Service

from . import cloudformation
from .cloudformation import (
    BUSY,
    CREATE,
    DELETE,
    DENIED,
    FREE,
    GET,
    GOLD,
    LOST,
    PRO,
    TAKE,
    CloudFormation,
    Death,
    Step,
    dies_at,
    error,
    failed,
    fails,
    followed_by,
    holder,
    outcome,
    pair,
    preceded_by,
    rolled,
    served,
    served_then,
    usual,
)

pytestmark = pytest.mark.usefixtures("either_conflict")
cfn = cloudformation.cfn


Given = Callable[[CloudFormation], Request]


def _fresh(cfn: CloudFormation) -> Request:
    return cfn.a_create("A", FREE)


def _joining(cfn: CloudFormation) -> Request:
    cfn.create("B", FREE)
    return cfn.a_create("A", FREE)


def _repairing(cfn: CloudFormation) -> Request:
    cfn.create("A", FREE)
    cfn.by_hand(FREE, attached=False)
    return cfn.an_update("A", FREE, FREE)


def _taking(cfn: CloudFormation) -> Request:
    cfn.by_hand(FREE)
    cfn.create("A", FREE, TAKE)
    return cfn.an_update("A", FREE, FREE, TAKE)


def _replacing(cfn: CloudFormation) -> Request:
    cfn.create("A", FREE)
    return cfn.an_update("A", FREE, GOLD)


def _moving(cfn: CloudFormation) -> Request:
    cfn.create("A", FREE)
    return cfn.an_update("A", FREE, PRO)


def _moving_back(cfn: CloudFormation) -> Request:
    cfn.create("A", FREE)
    cfn.update("A", FREE, PRO)
    return cfn.an_update("A", FREE, FREE)


def _deleting(cfn: CloudFormation) -> Request:
    cfn.create("A", FREE)
    return cfn.a_delete("A", FREE)


def _deleting_one_of_two(cfn: CloudFormation) -> Request:
    cfn.create("B", FREE)
    cfn.create("A", FREE)
    return cfn.a_delete("A", FREE)


def _deleting_all(cfn: CloudFormation) -> Request:
    cfn.create("A", FREE)
    cfn.update("A", FREE, GOLD)
    return cfn.a_delete("A", "invented")


@pytest.mark.parametrize(
    "given",
    [
        _fresh, _joining, _repairing, _taking, _replacing, _moving, _moving_back,
        _deleting, _deleting_one_of_two, _deleting_all,
    ],
)  # fmt: skip
def test_a_death_between_any_two_steps_is_harmless(given: Given) -> None:
    """After a death at any call or write, the next delivery ends as if undisturbed."""
    undisturbed = CloudFormation()
    expected = undisturbed.send(given(undisturbed))
    assert expected.success
    for last in itertools.count(1):
        cfn = CloudFormation()
        request = given(cfn)
        steps = itertools.count(1)

        def tick(last: int = last, steps: Iterator[int] = steps) -> None:
            if next(steps) == last:
                raise Death

        cfn.tick = tick
        try:
            cfn.send(request)
        except Death:
            cfn.tick = lambda: None
        else:
            assert last > 4
            break
        answer = cfn.send(request)
        assert (answer.success, answer.id) == (True, expected.id), f"step {last}: {answer.reason}"
        assert cfn.attached == undisturbed.attached, f"step {last}"
        assert cfn.holders(FREE) == undisturbed.holders(FREE), f"step {last}"
        assert not [entry for entry in cfn.entries.values() if entry.detaching]
        marks = [
            [(entry.preexisting, entry.taken_over) for entry in ledger.entries.values()]
            for ledger in (cfn, undisturbed)
        ]
        assert marks[0] == marks[1], f"step {last}"


class TestDeaths:
    """The function marks a request that comes again as begun; a mark from before means a death."""

    @staticmethod
    def serve(cfn: CloudFormation, request: Request, seconds: float = 90) -> Response:
        """Serve a request that came before, within so many seconds of the function's time."""
        deadline = Deadline(3600, cfn.clock, Random(0), turn=seconds)
        return served(Service(request, cfn, ApiGateway(cfn), deadline, redelivered=True))  # type: ignore[arg-type]  # a fake

    def test_the_fourth_time_it_is_answered_failed(self, cfn: CloudFormation) -> None:
        request = cfn.a_create("A", FREE)
        cfn.arrives(request)
        for death in range(3):
            assert cfn.service(request).died() is (death > 0 or None)
            cfn.at(CREATE, fails(Death()))
            cfn.at(GET, fails(Death()))
            with pytest.raises(Death):
                self.serve(cfn, request)
        assert failed(self.serve(cfn, request), "3 invocations died at this request")
        assert not cfn.service(request).died(), "it was answered"

    def test_answered_or_gone_back_it_is_no_suspect(self, cfn: CloudFormation) -> None:
        request = cfn.a_create("A", FREE)
        cfn.at(CREATE, *[fails(BUSY)] * 999)
        with pytest.raises(TurnOverError):
            self.serve(cfn, request)
        assert not cfn.service(request).died()
        cfn.at(CREATE)
        assert self.serve(cfn, request).success
        assert cfn.records[holder("A")].begun == ""

    def test_a_request_that_comes_again_costs_one_write_more(self, cfn: CloudFormation) -> None:
        writes: list[object] = []
        cfn.tick = lambda: writes.append(None)
        cfn.create("A", FREE)
        first = len(writes)
        writes.clear()
        request = cfn.a_create("B", GOLD)
        cfn.arrives(request)
        self.serve(cfn, request)
        assert len(writes) == first + 2, "one write more, seen before and after"

    def test_a_turn_ends_though_its_mark_cannot_be_taken_off(
        self, cfn: CloudFormation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any, **__: Any) -> Any:
            raise FailedError("the ledger is out of reach")

        monkeypatch.setattr("usage_plan_key.rules.rest", refuse)
        cfn.script[CREATE] = itertools.repeat(fails(BUSY))
        with pytest.raises(TurnOverError):
            self.serve(cfn, cfn.a_create("A", FREE), seconds=60)

    def test_the_mark_is_taken_off_in_the_requests_own_time(
        self, cfn: CloudFormation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clocks: list[object] = []
        change = cfn.change

        def watched(
            holder_: Holder, associations: Any, rule: Any, deadline: Deadline, seen: Snapshot | None = None
        ) -> Snapshot:
            clocks.append(deadline.clock)
            return change(holder_, associations, rule, deadline, seen)

        monkeypatch.setattr(cfn, "change", watched)
        cfn.script[CREATE] = itertools.repeat(fails(BUSY))
        with pytest.raises(TurnOverError):
            self.serve(cfn, cfn.a_create("A", FREE), seconds=60)
        assert set(clocks) == {cfn.clock}
        assert cfn.records[holder("A")].begun == ""


def a_dead_move(cfn: CloudFormation, at: Step | None = None) -> Update:
    """Detach a key for a move, die when the function attaches it, and give back the request."""
    cfn.create("A", FREE)
    request = cfn.an_update("A", FREE, PRO)
    cfn.at(DELETE, followed_by(lambda: cfn.at(CREATE, at or fails(Death()))))
    with pytest.raises(Death):
        cfn.send(request)
    return request


class TestAnEarlierDelivery:
    """The request's own earlier delivery has died half way."""

    def test_a_failure_gives_way_to_the_answer_that_another_delivery_has_written(
        self, cfn: CloudFormation
    ) -> None:
        request = cfn.a_create("A", FREE)
        given = cfn.send(request)
        assert given.success
        assert cfn.service(request).fail("the guard has struck") == given

    def test_a_repeated_create_that_cannot_look_keeps_its_hold(self, cfn: CloudFormation) -> None:
        """Its first delivery may have attached the key, so the hold stays; the next Delete detaches it."""
        request = cfn.a_create("A", FREE)
        cfn.at(CREATE, served_then(Death()))
        with pytest.raises(Death):
            cfn.send(request)
        cfn.at(GET, fails(DENIED))
        assert failed(cfn.send(request), "apigateway:GET")
        assert cfn.holders(FREE) == {holder("A")}
        cfn.delete("A", FREE)
        assert not cfn.attached

    def test_a_key_of_an_earlier_delivery_stays_held_where_the_ledger_cannot_be_read(
        self, cfn: CloudFormation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        request = cfn.a_create("A", FREE)
        cfn.at(CREATE, served_then(Death()))
        with pytest.raises(Death):
            cfn.send(request)
        change, calls = cfn.change, iter(range(99))

        def unreadable(*arguments: Any) -> Snapshot:
            if next(calls) == 1:
                raise FailedError("the ledger is out of reach")
            return change(*arguments)

        monkeypatch.setattr(cfn, "change", unreadable)
        assert failed(served(cfn.service(request)), "out of reach")
        assert cfn.holders(FREE) == {holder("A")}

    def test_a_key_that_no_earlier_delivery_has_attached_is_let_go_at_a_refusal(
        self, cfn: CloudFormation
    ) -> None:
        request = cfn.a_create("A", FREE)
        cfn.at(CREATE, fails(Death()))
        with pytest.raises(Death):
            cfn.send(request)
        cfn.at(CREATE, fails(DENIED))
        assert failed(cfn.send(request), "permission is missing")
        assert not cfn.entries

    def test_a_move_whose_earlier_delivery_died_is_a_move(self, cfn: CloudFormation) -> None:
        request = a_dead_move(cfn)
        cfn.at(CREATE)
        assert outcome(cfn.send(request)) == "MOVED"

    def test_a_move_that_died_after_it_attached_is_verified(self, cfn: CloudFormation) -> None:
        request = a_dead_move(cfn, served_then(Death()))
        assert outcome(cfn.send(request)) == "VERIFIED"

    def test_a_move_that_died_is_none_where_somebody_else_attaches_the_key(self, cfn: CloudFormation) -> None:
        request = a_dead_move(cfn)
        cfn.at(CREATE, preceded_by(lambda: cfn.by_hand(PRO)))
        assert outcome(cfn.send(request)) == "VERIFIED"

    def test_a_move_that_died_is_undone_where_the_next_delivery_fails_before_it_attaches(
        self, cfn: CloudFormation
    ) -> None:
        request = a_dead_move(cfn)
        assert cfn.attached == set()
        cfn.at(CREATE)
        cfn.at(GET, fails(DENIED))
        assert failed(cfn.send(request), "permission is missing")
        assert cfn.attached == {FREE}

    def test_a_detaching_that_may_have_been_served_keeps_its_mark(self, cfn: CloudFormation) -> None:
        """The move's next delivery knows which key to attach again."""

        def late(_: Callable[[], Any]) -> Any:
            cfn.clock.now += 89
            raise error(409, "ConflictException", "odd")

        cfn.create("A", FREE)
        cfn.resumable, cfn.seconds = True, 100
        cfn.at(DELETE, served_then(LOST), late)
        request = cfn.an_update("A", FREE, PRO)
        with pytest.raises(TurnOverError):
            cfn.send(request)
        assert cfn.entry(FREE).moved_by == request.id

    def test_a_delete_lets_go_of_an_association_that_a_dead_move_has_marked(
        self, cfn: CloudFormation
    ) -> None:
        """No holder remains without a stack."""
        cfn.create("A", FREE)
        cfn.at(DELETE, fails(Death()))
        with pytest.raises(Death):
            cfn.send(cfn.an_update("A", FREE, PRO))
        assert cfn.delete("A", FREE).success
        assert not cfn.attached
        assert pair(FREE) not in cfn.entries


class TestADeadMark:
    """A Delete died while it detached the wanted association."""

    @pytest.fixture
    def dead(self, cfn: CloudFormation) -> Delete:
        """B's Delete has died between its mark and its call."""
        cfn.create("B", FREE)
        request = cfn.a_delete("B", FREE)
        cfn.at(DELETE, fails(Death()))
        with pytest.raises(Death):
            cfn.send(request)
        assert cfn.entry(FREE).detaching is not None
        return request

    def test_it_waits_for_the_mark_to_go_and_then_attaches(self, cfn: CloudFormation, dead: Delete) -> None:
        """The marker's own next delivery finishes it."""
        cfn.clock.meanwhile = [lambda: None, lambda: cfn.send(dead)]
        assert outcome(cfn.create("A", FREE)) == "ATTACHED"
        assert cfn.holders(FREE) == {holder("A")}
        assert cfn.attached == {FREE}

    def test_out_of_time_it_names_the_holder_that_it_waited_for_and_changes_nothing(
        self, cfn: CloudFormation, dead: Delete
    ) -> None:
        """The mark and the association stay as they are."""
        cfn.seconds = 300
        assert failed(
            cfn.create("A", FREE), "API key alice to usage plan free", "B of stack one is detaching it"
        )
        assert cfn.holders(FREE) == {dead.holder}
        assert cfn.attached == {FREE}

    def test_superseded_while_it_waits_it_touches_nothing(self, cfn: CloudFormation, dead: Delete) -> None:
        request = cfn.a_create("A", FREE)
        cfn.clock.meanwhile = [lambda: cfn.arrives(cfn.a_delete("A", "invented"))]
        cfn.calls()
        assert failed(cfn.send(request), "Superseded")
        assert cfn.holders(FREE) == {dead.holder}
        assert not cfn.calls()

    def test_each_wait_for_a_detaching_counts_as_an_attempt(self, cfn: CloudFormation) -> None:
        cfn.create("B", FREE)
        dies_at(cfn, cfn.a_delete("B", FREE))
        began = cfn.clock.now
        assert rolled(cfn, cfn.a_create("A", FREE)) == [(0, 0.5), (0, 1), (0, 2), (0, 4)]
        assert cfn.clock.now - began == 1 + 4 * 1, "the request's second, and a second for each attempt"

    def test_a_waiting_request_finishes_a_stale_mark(self, cfn: CloudFormation, dead: Delete) -> None:
        marked = cfn.entry(FREE).detaching
        assert marked
        cfn.clock.now = marked - 1.5
        waits: list[float] = []
        cfn.clock.meanwhile = [lambda: waits.append(cfn.clock.now)] * 9
        assert outcome(cfn.create("A", FREE)) == "ATTACHED"
        assert len(waits) == 1
        assert cfn.holders(FREE) == {holder("A")}
        assert dead.holder not in cfn.records or not cfn.records[dead.holder].holds

    def test_a_mark_says_until_when_its_function_can_run(self, cfn: CloudFormation) -> None:
        """After a death others wait no longer than that function could have run."""
        cfn.create("A", FREE)
        cfn.dies = 90
        dies_at(cfn, cfn.a_delete("A", FREE))
        assert cfn.entry(FREE).detaching == int(cfn.clock.now) + 90 + MOST_SKEW

    def test_a_stale_mark_that_its_marker_finishes_first_is_left_to_it(
        self, cfn: CloudFormation, dead: Delete, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Before it finishes, the marker's Delete ends and a third resource attaches the key."""
        marked = cfn.entry(FREE).detaching
        assert marked
        cfn.clock.now = marked
        change = cfn.change

        def preceded(holder_: Holder, *rest: Any) -> Snapshot:
            if holder_ == dead.holder:
                monkeypatch.setattr(cfn, "change", change)
                assert cfn.send(dead).success
                assert outcome(cfn.create("C", FREE)) == "ATTACHED"
            return change(holder_, *rest)

        monkeypatch.setattr(cfn, "change", preceded)
        assert outcome(cfn.create("A", FREE)) == "JOINED"
        assert cfn.calls()["DeleteUsagePlanKey"] == 1, "the marker's"
        assert cfn.attached == {FREE}
        assert cfn.holders(FREE) == {holder("A"), holder("C")}

    @pytest.mark.parametrize("wanted", [FREE, GOLD], ids=["the same", "another"])
    def test_the_holders_next_request_finishes_at_once_the_work_of_its_dead_one(
        self, cfn: CloudFormation, dead: Delete, wanted: str
    ) -> None:
        began = cfn.clock.now
        assert outcome(cfn.update("B", "former", wanted)) == "ATTACHED"
        assert cfn.clock.now - began == 1
        assert cfn.attached == {wanted}
        assert cfn.entry(FREE).detaching is None

    def test_a_superseded_request_finishes_nothing(self, cfn: CloudFormation, dead: Delete) -> None:
        """It does not even finish the work that its dead predecessor began."""
        late = cfn.an_update("B", FREE, GOLD)
        cfn.arrives(cfn.an_update("B", FREE, PRO))
        cfn.calls()
        assert failed(cfn.send(late), "Superseded")
        assert not cfn.calls()
        assert cfn.holders(FREE) == {dead.holder}

    def test_a_mark_is_renewed_while_it_is_finished(self, cfn: CloudFormation) -> None:
        """The new time keeps others from taking it for stale at the same time."""
        cfn.create("A", FREE)
        dies_at(cfn, cfn.a_delete("A", FREE))
        cfn.clock.now += 100
        marks: list[int | None] = []
        cfn.at(DELETE, preceded_by(lambda: marks.append(cfn.entry(FREE).detaching)))
        cfn.update("A", "former", GOLD)
        assert marks == [int(cfn.clock.now) + 900 + MOST_SKEW]

    def test_a_mark_that_its_marker_renewed_meanwhile_is_left_to_it(
        self, cfn: CloudFormation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cfn.create("A", FREE)
        dies_at(cfn, cfn.a_delete("A", FREE))
        marked = cfn.entry(FREE).detaching
        assert marked
        cfn.clock.now, cfn.seconds = marked, 3600
        anew = int(cfn.clock.now) + 5
        change = cfn.change

        def preceded(holder_: Holder, *rest: Any) -> Snapshot:
            if holder_ == holder("A"):
                monkeypatch.setattr(cfn, "change", change)
                cfn.entries[pair(FREE)] = cfn.entry(FREE)._replace(detaching=anew)
                cfn.clock.meanwhile = [lambda: marks.append(cfn.entry(FREE).detaching)]
            return change(holder_, *rest)

        marks: list[int | None] = []
        monkeypatch.setattr(cfn, "change", preceded)
        assert outcome(cfn.create("B", FREE, stack="two")) == "ATTACHED"
        assert marks == [anew]


class TestOutOfTime:
    """The queue delivers a request again if the function's time ends before CloudFormation's."""

    @pytest.fixture
    def cfn(self, cfn: CloudFormation) -> CloudFormation:
        cfn.resumable = True
        return cfn

    def goes_on(self, cfn: CloudFormation, request: Request, operation: str, *steps: Step) -> Response:
        cfn.at(operation, *steps, *[fails(BUSY)] * 999)
        with pytest.raises(OutOfTimeError):
            cfn.send(request)
        assert request.id not in cfn.records[request.holder].answers
        cfn.at(operation)
        return cfn.send(request)

    def test_a_create_goes_on(self, cfn: CloudFormation) -> None:
        """The function answers only at the request's end."""
        assert outcome(self.goes_on(cfn, cfn.a_create("A", FREE), CREATE)) == "ATTACHED"
        assert cfn.holders(FREE) == {holder("A")}

    def test_a_move_goes_on(self, cfn: CloudFormation) -> None:
        """The detached association stays held, and nobody attaches it again meanwhile."""
        cfn.create("A", FREE)
        assert self.goes_on(cfn, cfn.an_update("A", FREE, PRO), CREATE, usual).success
        assert cfn.attached == {PRO}
        assert cfn.holders(FREE) == {holder("A")}

    def test_a_move_goes_on_to_its_end(self, cfn: CloudFormation) -> None:
        """If API Gateway refuses for good in the end, the move attaches the earlier association again."""
        cfn.create("A", FREE)
        request = cfn.an_update("A", FREE, PRO)
        cfn.at(CREATE, usual, *[fails(BUSY)] * 999)
        with pytest.raises(OutOfTimeError):
            cfn.send(request)
        assert not cfn.attached
        cfn.at(CREATE, fails(DENIED))
        assert failed(cfn.send(request), "apigateway:POST")
        assert cfn.attached == {FREE}

    def test_a_delete_goes_on(self, cfn: CloudFormation) -> None:
        """No answer says that the key stays attached while the Delete goes on."""
        cfn.create("A", FREE)
        assert self.goes_on(cfn, cfn.a_delete("A", FREE), DELETE).success
        assert not cfn.attached

    def test_a_request_refused_for_good_does_not_go_on(self, cfn: CloudFormation) -> None:
        """Another turn would bring only time."""
        cfn.at(CREATE, fails(DENIED))
        assert failed(cfn.create("A", FREE), "apigateway:POST")


class TestNoLedgerInReach:
    """A read or a write of the ledger fails."""

    def test_a_ledger_that_is_out_of_reach_leaves_nobody_hanging(
        self, cfn: CloudFormation, caplog: pytest.LogCaptureFixture
    ) -> None:

        def broken() -> None:
            raise FailedError("no table")

        request = cfn.a_create("A", FREE)
        cfn.tick = broken
        assert failed(served(cfn.service(request)), "no table")
        assert "Could not write the answer down" in caplog.text
        assert not cfn.calls()

    def test_a_ledger_that_cannot_be_read_fails_the_request(
        self, cfn: CloudFormation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        request = cfn.a_create("A", FREE)
        cfn.arrives(request)
        change, calls = cfn.change, iter(range(99))

        def unreadable(*arguments: Any) -> Snapshot:
            if next(calls) == 1:
                raise FailedError("nobody knows", nothing_changed=False)
            return change(*arguments)

        monkeypatch.setattr(cfn, "change", unreadable)
        assert served(cfn.service(request)).reason == "nobody knows"

    def test_a_hold_that_cannot_be_read_back_fails_with_the_first_error(self, cfn: CloudFormation) -> None:
        request = cfn.a_create("A", FREE)
        cfn.arrives(request)
        cfn.lose_writes = 1
        outages = iter([0])  # Before the first write; after it, and from then on, the ledger is out of reach.
        cfn.tick = lambda: cfn.outage(next(outages, 99))
        assert failed(served(cfn.service(request)), "nobody knows whether it was written")
