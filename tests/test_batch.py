"""The function serves a batch: each stack in order, none for long, a death only at its stack's cost."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from tests.memory import within
from usage_plan_key.api_gateway import CLOSED_FOR
from usage_plan_key.custom_resource import CustomResource
from usage_plan_key.errors import FailedError
from usage_plan_key.model import Association, Holder, Snapshot
from usage_plan_key.provider import (
    CLOSING_TIME,
    GIVING_TIME,
    LAST_SECONDS,
    _threads,
    about,
)
from usage_plan_key.queue import VISIBILITY, Queue, messages
from usage_plan_key.request import MOST_SKEW, repair_event
from usage_plan_key.retry import BEFORE_CALL, QUOTA_PATIENCE, Deadline
from usage_plan_key.rules import BACK_OFF, MOST_DEATHS
from usage_plan_key.service import IN_PLACE, LAST_TRY, SPARE

from . import function
from .function import BUSY, DOWN, QUOTA, STACK, Death, World, denied, log, received, record, throttled

world = function.world


class TestServing:
    """The function serves all of a batch, each stack in order, or gives messages back in place."""

    def test_the_sender_is_made_ready_before_the_first_call(self, world: World) -> None:
        """The sender becomes ready while the function waits for API Gateway; see response.Sender."""
        world.arrives("alice")
        ready: list[int] = []
        world.before_create = lambda: ready.append(world.prepared)
        world.serve()
        assert ready == [1]

    def test_a_batch_is_served_in_order(self, world: World) -> None:
        for name in ("alice", "bob"):
            world.arrives(name)
        assert world.serve() == []
        assert [answer["LogicalResourceId"] for answer in world.answers] == ["Alice", "Bob"]
        assert world.api.attached == {("alice", "free"), ("bob", "free")}

    def test_a_request_given_up_while_it_waited_touches_nothing(self, world: World) -> None:
        """CloudFormation has sent its Delete, with an id that it has invented."""
        world.arrives("alice")
        world.arrives("alice", "Delete", PhysicalResourceId="invented")
        world.serve()
        assert [answer["Status"] for answer in world.answers] == ["FAILED", "SUCCESS"]
        assert "Superseded" in world.answers[0]["Reason"]
        assert not world.api.calls

    def test_a_request_with_an_undelivered_answer_comes_again_and_gets_the_same_answer(
        self, world: World
    ) -> None:
        world.arrives("alice")
        message = world.records()
        world.unreachable = True
        assert world.serve() == ["message-0"]
        assert not world.sqs.given_back, "whoever cannot be reached now is left in peace for a while"
        world.unreachable = False
        world.batch([received(message[0], 2)])
        assert world.answers[0]["Data"]["Outcome"] == "ATTACHED"
        assert world.api.calls["CreateUsagePlanKey"] == 1

    def test_an_answer_that_hangs_holds_up_none_of_the_nine_others(self, world: World) -> None:
        """Lambda hands over ten messages at most. Here each delivery waits until all ten are under way."""
        world.function = replace(world.function, background=_threads)
        for number in range(10):
            world.arrives("alice", "Delete", stack=str(number), PhysicalResourceId="alice:free")
        world.at_delivery = partial(threading.Barrier(10).wait, 5)
        assert world.serve() == []
        assert world.served() == [("Alice", "SUCCESS")] * 10

    def test_under_sam_local_a_batchs_answers_are_printed_and_not_sent(
        self, world: World, capsys: pytest.CaptureFixture[str]
    ) -> None:
        world.arrives(
            "alice", ResourceProperties={"KeyId": "alice", "UsagePlanId": "free", "IncludeValue": "true"}
        )
        world.function = replace(world.function, local=True)
        assert world.serve() == []
        printed = json.loads(capsys.readouterr().out)
        assert (printed["Status"], printed["Data"]["Value"]) == ("SUCCESS", "(not shown)")
        assert not world.answers

    def test_all_stacks_of_a_batch_are_served_each_in_order(self, world: World) -> None:
        world.arrives("alice")
        world.arrives("bob", stack="two")
        world.arrives("carol")
        assert world.serve() == []
        assert world.served() == [("Alice", "SUCCESS"), ("Bob", "SUCCESS"), ("Carol", "SUCCESS")]

    def test_a_message_that_sqs_does_not_take_back_comes_again_all_the_same(self, world: World) -> None:
        world.arrives("alice")
        world.at_create = [BUSY] * 999
        records = world.records()
        world.sqs.fails = [
            ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "ChangeMessageVisibility")
        ]
        assert world.batch(records) == ["message-0"]

    def test_without_a_queue_to_give_it_back_to_it_comes_again_all_the_same(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        """QUEUE_URL is missing, and the event source is there. The function makes no call that fails."""
        world.arrives("alice")
        world.at_create = [BUSY] * 999
        world.function = replace(world.function, queue=None)
        assert world.serve() == ["message-0"]
        assert not [line for line in caplog.records if line.levelno >= logging.WARNING]

    def test_no_request_is_begun_with_the_functions_time_nearly_up(self, world: World) -> None:
        world.arrives("alice")
        world.seconds = 25
        assert world.serve() == ["message-0"]
        assert not world.api.calls


class TestOthersOfTheBatch:
    """A stack that waits costs the others little."""

    def test_a_body_that_is_nested_too_deep_is_put_aside(self, world: World) -> None:
        for stray in ("[" * 200_000, '{"a":' * 100_000):
            world.arrives("alice", RequestId=stray[:9])
            assert world.batch([*world.records(), record(stray, 7)]) == []
            world.sqs.sent.clear()
        assert world.served() == [("Alice", "SUCCESS")] * 2
        assert len(world.sqs.aside) == 2

    def test_a_dead_letter_queue_that_is_throttled_costs_the_good_ones_nothing(self, world: World) -> None:
        world.arrives("alice")
        records = [record("hello", 7), *world.records()]
        error = ClientError({"Error": {"Code": "RequestThrottled", "Message": ""}}, "SendMessage")
        world.sqs.fails = [error] * 999
        began = world.clock.now
        assert world.batch(records) == ["message-7"]
        assert world.served() == [("Alice", "SUCCESS")]
        assert world.clock.now - began <= 2 * GIVING_TIME

    def test_giving_a_suspect_back_first_leaves_time_to_serve_the_others(self, world: World) -> None:
        world.arrives("alice")
        world.arrives("bob", stack="two")

        def slow(**_: Any) -> None:
            world.clock.now += 3
            raise ReadTimeoutError(endpoint_url="https://sqs")

        world.sqs.change_message_visibility_batch = slow  # type: ignore[assignment, method-assign]  # it hangs
        assert world.serve(2, 2, first=world.clock.now - VISIBILITY) == ["message-1"]
        assert world.served() == [("Alice", "SUCCESS")]

    def test_it_returns_before_lambda_ends_it(self, world: World) -> None:
        """It returns in time even if SQS takes nothing back and each attempt takes its whole time."""
        for number, name in enumerate(("alice", "bob", "carol")):
            world.arrives(name, stack=str(number))
        world.at_create = [BUSY] * 999

        def slow(**_: Any) -> None:
            world.clock.now += 3
            raise ReadTimeoutError(endpoint_url="https://sqs")

        world.sqs.change_message_visibility_batch = slow  # type: ignore[assignment, method-assign]  # it hangs
        ends = world.clock.now + world.seconds
        assert len(world.serve()) == 3
        assert world.clock.now < ends

    def test_a_stacks_order_holds_though_an_operator_has_sent_a_request_in_another_group(
        self, world: World
    ) -> None:
        world.arrives("alice")
        world.arrives("bob")
        first, second = world.records()
        second["attributes"]["MessageGroupId"] = "again"
        world.at_create = [BUSY] * 999
        assert world.batch([first, second]) == ["message-0", "message-1"]
        assert not world.answers


def calls(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the function's calls to the ledger from now on."""
    made: list[str] = []

    def noted(name: str) -> Any:
        real = getattr(world.db, name)

        def call(**arguments: Any) -> Any:
            made.append(name)
            return real(**arguments)

        return call

    for name in ("transact_get_items", "transact_write_items"):
        monkeypatch.setattr(world.db, name, noted(name))
    return made


def rolls(monkeypatch: pytest.MonkeyPatch, roll: float) -> None:
    """Have every roll for a wait in the queue come out so; in place a request waits for as long as it may."""
    monkeypatch.setattr("usage_plan_key.retry.random.uniform", lambda low, high: roll if high == 1 else high)


class TestWaiting:
    """A long wait is the queue's: what API Gateway refuses goes back at once, hidden in its place."""

    def test_it_waits_in_place_for_a_moment_and_only_until_it_has_gone_back_once(self, world: World) -> None:
        world.arrives("alice")
        (message,) = world.records()
        world.at_create, began = [BUSY] * 999, world.clock.now
        assert world.batch([message]) == ["message-0"]
        assert 1 <= world.clock.now - began <= IN_PLACE
        asked, world.clock.now = len(world.at_create), world.note("Create-one-alice").until
        began = world.clock.now
        assert world.batch([received(message)]) == ["message-0"]
        assert (asked - len(world.at_create), world.clock.now) == (1, began)

    def test_it_hides_until_its_time_and_its_stacks_later_ones_wait_behind_it(self, world: World) -> None:
        """One call gives them back at once, before the others of the batch are served."""
        world.arrives("alice")
        world.arrives("dora", stack="two")
        world.arrives("bob")
        world.arrives("carol")
        world.at_create = [throttled(7)]
        world.at_delivery = lambda: given.append(list(world.sqs.given_back))
        given: list[Any] = []
        assert world.serve() == ["message-0", "message-2", "message-3", "message-1"]
        assert world.sqs.given_back[0] == {"receipt-0": 7, "receipt-2": 0, "receipt-3": 0}
        assert len(world.sqs.sent) == 0, "nothing is ever sent back into the queue"

    def test_others_are_served_after_it_has_gone_back(self, world: World) -> None:
        world.arrives("alice")
        world.arrives("dora", "Delete", stack="two", PhysicalResourceId="dora:free")
        world.arrives("bob")
        world.at_create, given = [BUSY] * 999, []
        world.at_delivery = lambda: given.extend(world.sqs.given_back)
        assert world.serve() == ["message-0", "message-2"]
        assert [{*each} for each in given] == [{"receipt-0", "receipt-2"}]
        assert world.served() == [("Dora", "SUCCESS")]
        assert len(world.sqs.given_back) == 1, "one call"

    @pytest.mark.parametrize(("after", "looks"), [(7, [7]), (20, [20]), (50, [20, 20, 10])])
    def test_it_looks_every_twenty_seconds_and_asks_nobody_before_its_time(
        self, world: World, monkeypatch: pytest.MonkeyPatch, after: int, looks: list[int]
    ) -> None:
        world.arrives("alice")
        (message,) = world.records()
        world.at_create, began = [throttled(after)], world.clock.now
        world.batch([message])
        made = calls(world, monkeypatch)
        for number, seconds in enumerate(looks):
            assert world.sqs.given_back[number] == {"receipt-0": seconds}
            assert made == ["transact_get_items"] * number, "a look reads one page, and writes none"
            world.clock.now += seconds
            world.batch([received(message, 2 + number)])
        assert world.clock.now - began == after
        assert world.served() == [("Alice", "SUCCESS")]

    def test_the_pages_of_a_batch_are_read_in_one_call(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = ("alice", "bob", "carol", "dora")
        for name in names:
            world.arrives(name, stack=name)
        records = world.records()
        world.at_create = [DOWN] * 999
        assert len(world.batch(records)) == len(names)
        made, asked = calls(world, monkeypatch), len(world.at_create)
        world.clock.now = min(world.note(f"Create-{name}-{name}").until for name in names) - 1
        assert len(world.batch([received(record) for record in records])) == len(names)
        assert (made, len(world.at_create)) == (["transact_get_items"], asked)

    @pytest.mark.parametrize("roll", [0.0, 1.0])
    def test_its_own_refusals_double_its_pause_to_two_minutes(
        self, world: World, monkeypatch: pytest.MonkeyPatch, roll: float
    ) -> None:
        """Half to all of it is jitter. The receives do not count, and a Retry-After ends the doubling."""
        rolls(monkeypatch, roll)
        world.arrives("alice")
        (message,) = world.records()
        pauses = []
        for refused in range(1, 12):
            world.at_create = [throttled(45) if refused == 3 else DOWN]
            if refused == 1:
                world.at_create = [DOWN] * 99
            world.batch([received(message, 5 * refused)])
            note = world.note("Create-one-alice")
            assert note.refusals == refused
            pauses.append(note.until - world.clock.now)
            world.clock.now = note.until
        part = [seconds * (1 + roll) / 2 for seconds in (2, 4, 2, 4, 8, 16, 32, 64, 120, 120)]
        assert pauses == pytest.approx([*part[:2], 45, *part[2:]], abs=1)

    def test_a_follower_begins_its_own_count(self, world: World) -> None:
        world.arrives("alice")
        world.arrives("bob")
        alice, bob = world.records()
        for receives in range(1, 5):
            world.at_create = [DOWN] * 99
            world.batch([received(alice, receives), received(bob, receives)])
            world.clock.now = world.note("Create-one-alice").until
        world.at_create = []
        world.before_create = lambda: world.at_create.extend([DOWN] * 99) if world.answers else None
        world.batch([received(alice, 5), received(bob, 5)])
        note = world.note("Create-one-bob")
        assert (world.served(), note.refusals) == ([("Alice", "SUCCESS")], 1)
        assert note.until - world.clock.now <= 3

    def test_a_cancelled_create_makes_way_at_its_next_look_and_its_delete_follows(self, world: World) -> None:
        """However long API Gateway has asked to wait."""
        world.arrives("alice")
        (create,) = world.records()
        world.at_create, began = [throttled(600)], world.clock.now
        world.batch([create])
        world.clock.now += 5
        world.arrives("alice", "Delete", PhysicalResourceId="invented")
        delete = world.records()[1]
        world.clock.now = began + 20
        calls_before = world.api.calls.total()
        assert world.batch([received(create), delete]) == []
        assert world.served() == [("Alice", "FAILED"), ("Alice", "SUCCESS")]
        assert "Superseded" in world.answers[0]["Reason"]
        assert (world.api.calls.total(), world.clock.now - began) == (calls_before, 20)

    @pytest.mark.parametrize("roll", [0.0, 0.5, 1.0])
    def test_the_last_try_falls_into_the_last_minute_and_fails_there(
        self, world: World, monkeypatch: pytest.MonkeyPatch, roll: float
    ) -> None:
        rolls(monkeypatch, roll)
        properties = {"KeyId": "alice", "UsagePlanId": "free", "ServiceTimeout": "600"}
        world.arrives("alice", ResourceProperties=properties)
        (message,), began, asked = world.records(), world.clock.now, []
        world.before_create = lambda: asked.append(world.clock.now - began)
        world.at_create, receives = [DOWN] * 99, 0
        while not world.answers:
            receives += 1
            world.batch([received(message, receives)])
            world.clock.now += world.sqs.given_back[-1]["receipt-0"]
        latest = 600 - BEFORE_CALL - SPARE
        assert asked[-1] == pytest.approx(latest - LAST_TRY * (1 - roll), abs=1)
        assert asked[-1] < 600 - BEFORE_CALL
        assert asked[-2] < latest - LAST_TRY
        assert world.served() == [("Alice", "FAILED")]
        reason = world.answers[0]["Reason"]
        assert f"gave up after {world.note('Create-one-alice').refusals + 1} attempts in " in reason
        assert "ServiceTimeout" in reason

    def test_a_retry_after_beyond_its_time_is_answered_now(self, world: World) -> None:
        properties = {"KeyId": "alice", "UsagePlanId": "free", "ServiceTimeout": "110"}
        world.arrives("alice", ResourceProperties=properties)
        world.at_create = [throttled(100)]
        assert world.serve() == []
        assert world.served() == [("Alice", "FAILED")]

    def test_a_throttle_holds_other_requests_back_for_half_a_minute_at_most(self, world: World) -> None:
        world.arrives("alice", stack="one")
        world.arrives("bob", stack="two")
        world.arrives("carol", stack="one", RequestId="behind alice")
        records, began = world.records(), world.clock.now
        world.at_create = [throttled(900)]
        assert world.batch(records) == ["message-0", "message-2", "message-1"]
        assert world.sqs.given_back == [{"receipt-0": 20, "receipt-2": 0}, {"receipt-1": 20}]
        asked = world.api.calls.total()
        world.clock.now = began + 20
        assert world.batch([received(records[1])]) == ["message-1"]
        assert (world.sqs.given_back[-1], world.api.calls.total()) == ({"receipt-1": 10}, asked)
        world.clock.now = began + CLOSED_FOR + 1
        assert world.batch([received(records[1], 3)]) == []
        assert world.served() == [("Bob", "SUCCESS")]

    def test_a_throttle_holds_no_request_back_that_asks_api_gateway_nothing(self, world: World) -> None:
        world.arrives("alice")
        world.arrives("bob", "Delete", stack="two", PhysicalResourceId="bob:free")
        world.at_create = [throttled(900)]
        assert world.serve() == ["message-0"]
        assert world.served() == [("Bob", "SUCCESS")]

    def test_what_goes_back_for_want_of_the_functions_time_is_not_hidden(self, world: World) -> None:
        world.arrives("alice", stack="one")
        world.arrives("bob", stack="two")
        world.seconds = CLOSING_TIME + LAST_SECONDS + BEFORE_CALL - 1
        assert world.serve() == ["message-0", "message-1"]
        assert world.sqs.given_back == [{"receipt-0": 0, "receipt-1": 0}]
        assert world.note("Create-one-alice").refusals == 0

    @pytest.mark.parametrize("waits", [False, True])
    def test_a_quota_is_tried_for_half_a_minute_and_fails_with_its_text(
        self, world: World, waits: bool
    ) -> None:
        """Earlier refusals of another kind do not count."""
        world.arrives("alice")
        (message,), receives = world.records(), 1
        if waits:
            world.at_create = [throttled(600)]
            world.batch([message])
            world.clock.now += 600
        began, asked = world.clock.now, []
        world.before_create = lambda: asked.append(world.clock.now - began)
        world.at_create = [QUOTA] * 999
        while not world.answers:
            receives += 1
            world.batch([received(message, receives)])
            world.clock.now += world.sqs.given_back[-1]["receipt-0"] if not world.answers else 0
        assert (
            "eu-central-1: LimitExceededException: Maximum number reached (function"
            in world.answers[0]["Reason"]
        )
        assert QUOTA_PATIENCE <= asked[-1] <= 2 * QUOTA_PATIENCE
        assert world.served() == [("Alice", "FAILED")]
        assert not world.held, "nothing is held for it"

    @pytest.mark.parametrize("gives_way", [False, True])
    def test_a_repair_waits_like_any_other_and_gives_way_to_each(self, world: World, gives_way: bool) -> None:
        event = world.arrives("alice")
        world.serve()
        world.api.attached.clear()
        repair = repair_event("r", Holder(event["StackId"], "Alice"), Association("alice", "free"))
        assert world.function.queue
        world.function.queue.put(repair, world.clock.now, within(60, world.clock))
        (message,) = world.records()
        world.at_create = [throttled(60)]
        assert world.batch([message]) == ["message-0"]
        world.clock.now += 40
        if gives_way:
            world.arrives("alice", "Delete", PhysicalResourceId="alice:free")
        records = [received(message), *world.records()[1:]]
        assert world.batch(records) == ([] if gives_way else ["message-0"])
        assert world.served()[1:] == ([("Alice", "SUCCESS")] if gives_way else [])
        world.clock.now += 20
        assert gives_way or world.batch([received(message, 3)]) == [], "its time has come"
        assert world.api.attached == (set() if gives_way else {("alice", "free")})


class TestDying:
    """A request at which the function dies."""

    def dies(self, world: World, records: list[dict[str, Any]]) -> None:
        world.at_create = [Death()]
        with pytest.raises(Death):
            world.batch(records)
        world.clock.now += VISIBILITY

    @pytest.mark.parametrize(("receives", "says"), [(1, False), (2, True)])
    def test_after_a_death_the_log_names_each_request_before_the_function_begins_it(
        self, receives: int, says: bool, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "usage_plan_key")
        world.arrives("alice")
        caplog.clear()
        world.serve(receives)
        assert any("Its turn has come: Create alice:free" in line for line in caplog.messages) is says

    def test_a_request_that_kills_the_function_is_served_apart_and_at_last_answered_failed(
        self, world: World
    ) -> None:
        """Other stacks in its batch wait for two visibility time-outs at most; its own stack for four."""
        world.arrives("alice")
        world.arrives("bob", stack="two")
        world.arrives("carol")
        first = world.records()
        alice, bob, carol = first
        self.dies(world, first)
        self.dies(world, [received(record, 2) for record in first])
        assert world.sqs.given_back == [{"receipt-1": 0}], "another stack's goes back at once"
        self.dies(world, [received(record, 3) for record in first])
        assert world.sqs.given_back[1:] == [{"receipt-1": 0, "receipt-2": 0}], "the suspect is alone"
        world.batch([received(bob, 4)])
        assert world.served() == [("Bob", "SUCCESS")]
        self.dies(world, [received(alice, 4), received(carol, 4)])
        world.batch([received(alice, 5), received(carol, 5)])
        assert world.served()[1:] == [("Alice", "FAILED")]
        assert "3 invocations died" in world.answers[1]["Reason"]
        world.batch([received(carol, 6)])
        assert world.served()[2:] == [("Carol", "SUCCESS")]

    def test_the_requests_of_a_batch_that_died_are_served_apart_by_stack(self, world: World) -> None:
        """Nobody knows yet at which of them the function died."""
        world.arrives("alice")
        world.arrives("bob", stack="two")
        world.arrives("carol")
        failed = world.serve(2, 2, 1, first=world.clock.now - VISIBILITY)
        assert world.served() == [("Alice", "SUCCESS"), ("Carol", "SUCCESS")]
        assert failed == ["message-1"]
        assert world.sqs.given_back == [{"receipt-1": 0}]

    def test_a_request_that_went_back_in_time_is_no_suspect(self, world: World) -> None:
        world.arrives("alice")
        world.arrives("bob", stack="two")
        assert world.serve(7, 7, first=world.clock.now - VISIBILITY + 1) == []
        assert len(world.answers) == 2

    def test_where_nobody_can_see_whether_a_function_has_died_all_are_served(
        self, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One read of the ledger fails."""
        world.arrives("alice")
        world.arrives("bob", stack="two")

        def read(*_: Any) -> Any:
            raise FailedError("Could not read the ledger")

        monkeypatch.setattr(world.table, "read", read)
        assert world.serve(2, 1) == []
        assert world.served() == [("Alice", "SUCCESS"), ("Bob", "SUCCESS")]
        said = "Could not look up a batch's requests together: Could not read the ledger"
        assert ("WARNING", said) in log(caplog)

    def test_a_delete_that_is_given_up_names_the_key_that_stays_attached(self, world: World) -> None:
        world.arrives("bob", "Delete", PhysicalResourceId="bob:free")
        holder = Holder(STACK.format("one"), "Bob")

        def died(state: Snapshot) -> Snapshot:
            note = state.record.notes[0]._replace(begun=True, deaths=MOST_DEATHS - 1)
            return state.with_record(state.record.noted(note))

        world.table.change(holder, [], died, within(60, world.clock))
        world.serve(5)
        assert "3 invocations died" in world.answers[0]["Reason"]
        assert "Still attached: bob:free" in world.answers[0]["Reason"]

    def test_deaths_at_the_delivery_count_and_after_three_the_answer_is_not_sent_again(
        self, world: World, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The first delivery's death has no mark. The stack's next request is served."""

        def dies() -> None:
            raise Death

        world.arrives("alice")
        world.arrives("bob")
        alice, bob = world.records()
        world.at_delivery = dies
        for receives in range(1, MOST_DEATHS + 2):
            with pytest.raises(Death):
                world.batch([received(alice, receives)])
            world.clock.now += VISIBILITY
        world.at_delivery = lambda: None
        assert world.batch([received(alice, 9)]) == []
        assert world.answers == []
        said = "functions have died at its delivery, so the answer is not sent again"
        assert ("ERROR", f"Create alice:free, OnExisting Fail: {said}") in log(caplog)
        assert '"AnswerUndelivered":[1.0]' in capsys.readouterr().out
        assert world.batch([bob]) == []
        assert world.served() == [("Bob", "SUCCESS")]

    def test_an_answer_that_could_not_be_delivered_is_no_death(self, world: World) -> None:
        world.arrives("alice")
        (message,) = world.records()
        world.unreachable = True
        for receives in range(1, 3 * MOST_DEATHS):
            assert world.batch([received(message, receives)]) == ["message-0"]
            world.clock.now += VISIBILITY
        world.unreachable = False
        assert world.batch([received(message, 99)]) == []
        assert world.served() == [("Alice", "SUCCESS")]

    def test_an_answer_that_was_given_stands_though_a_function_died_after_it(self, world: World) -> None:
        world.arrives("alice")
        message = world.records()
        world.serve()
        world.batch([received(message[0], 9)])
        assert world.answers[0] == world.answers[1]

    def test_an_error_of_one_request_costs_only_its_own_stack(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The function gives nothing of it back at once; otherwise it would come again and again."""
        for name, stack in (("alice", "one"), ("bob", "two"), ("carol", "one")):
            world.arrives(name, stack=stack)

        def answer(self: Any, event: Any, context: Any) -> None:
            if event["LogicalResourceId"] == "Alice":
                raise RuntimeError("broken")
            real(self, event, context)

        real = CustomResource.answer
        monkeypatch.setattr(CustomResource, "answer", answer)
        assert sorted(world.serve()) == ["message-0", "message-2"]
        assert world.served() == [("Bob", "SUCCESS")]
        assert world.sqs.given_back == []

    def test_deaths_add_up_though_it_goes_back_in_between(self, world: World) -> None:
        """Waits for API Gateway between deaths count as no death, and erase none."""
        world.arrives("alice")
        (message,) = world.records()
        for receives in range(1, 8):
            again = received(message, receives)
            if receives % 2:
                self.dies(world, [again])
            else:
                world.at_create = [BUSY] * 999
                assert world.batch([again]) == ["message-0"]
                world.clock.now += BACK_OFF[1]
        world.at_create = []
        assert world.batch([received(message, 8)]) == []
        assert "3 invocations died" in world.answers[0]["Reason"]

    def test_a_request_without_time_to_begin_leaves_its_mark_standing(self, world: World) -> None:
        world.arrives("alice")
        (message,) = world.records()
        self.dies(world, [received(message, 2)])
        world.seconds = 25
        assert world.batch([received(message, 3)]) == ["message-0"]
        assert world.note("Create-one-alice").begun

    def test_a_request_that_only_waited_does_not_count_as_in_a_death(self, world: World) -> None:
        """A later delivery began it again, and that function did not die."""
        world.arrives("alice")
        world.arrives("bob", stack="two")
        alice, bob = world.records(2, 1, first=world.clock.now)
        world.at_create = [BUSY] * 999
        assert world.batch([alice]) == ["message-0"]
        world.at_create = []
        world.clock.now += VISIBILITY
        assert world.batch([received(alice, 3), bob]) == []
        assert len(world.answers) == 2

    def test_the_look_for_a_death_has_the_batchs_time(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        deadlines: list[Deadline] = []
        read = world.table.read

        def watched(wanted: Any, deadline: Deadline) -> Any:
            deadlines.append(deadline)
            return read(wanted, deadline)

        world.arrives("alice")
        monkeypatch.setattr(world.table, "read", watched)
        world.serve(2)
        assert deadlines == [within(world.seconds - LAST_SECONDS - CLOSING_TIME, world.clock)]

    def test_only_the_first_of_a_stack_may_have_been_in_a_batch_that_died(self, world: World) -> None:
        world.arrives("alice")
        world.arrives("carol")
        world.arrives("bob", stack="two")
        assert world.serve(1, 2, 1, first=world.clock.now - VISIBILITY) == []
        assert len(world.answers) == 3


class TestStrays:
    """A record that is no request goes to the dead-letter queue, and costs nobody else anything."""

    @pytest.mark.parametrize(
        "body",
        [
            "",
            "hello",
            "7",
            "null",
            "[]",
            "{}",
            '{"event": null, "arrived": 1}',
            '{"event": {"RequestType": "Create"}, "arrived": 1}',
            pytest.param(f'{{"arrived": {10**400}}}', id="arrived at no time that a float holds"),
            '{"requestPayload": 7}',
            '{"Message": "a notification"}',
        ],
    )
    def test_it_is_put_aside_and_the_rest_is_served(
        self, world: World, body: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        world.arrives("alice")
        world.arrives("bob", stack="two")
        alice, bob = world.records()
        assert world.batch([alice, record(body, 7), bob]) == []
        assert world.served() == [("Alice", "SUCCESS"), ("Bob", "SUCCESS")]
        (aside,) = world.sqs.aside
        assert (aside["QueueUrl"], aside["MessageBody"], aside["MessageGroupId"]) == (
            "https://undelivered",
            body,
            "group",
        )
        assert any(
            "message-7 is no request" in line.message for line in caplog.records if line.levelname == "ERROR"
        )

    def test_where_it_cannot_be_put_aside_it_comes_again(self, world: World) -> None:
        """SQS itself puts it aside in the end."""
        world.sqs.fails = [ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "SendMessage")]
        assert world.batch([record("stray")]) == ["message-0"]
        assert not world.sqs.given_back

    @pytest.mark.parametrize("lacks", ["the queue", "its dead-letter queue"])
    def test_without_a_dead_letter_queue_it_comes_again(
        self, world: World, lacks: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The log has only the error about the stray record."""
        queue = Queue(world.sqs, "https://queue") if lacks == "its dead-letter queue" else None  # type: ignore[arg-type]  # a fake
        world.function = replace(world.function, queue=queue)
        assert world.batch([record("stray")]) == ["message-0"]
        assert (world.sqs.sent, world.sqs.aside) == ([], [])
        assert [line.levelname for line in caplog.records] == ["ERROR"]

    def test_lambdas_record_of_a_failed_invocation_is_served_as_the_request_in_it(self, world: World) -> None:
        """The function fences it now, because nothing fenced it at its arrival."""
        world.arrives("alice")
        event = json.loads(world.sqs.sent[0]["MessageBody"])["event"]
        world.db.items.clear()
        body = json.dumps(
            {"version": "1.0", "requestContext": {"condition": "RetriesExhausted"}, "requestPayload": event}
        )
        assert world.batch([record(body, SentTimestamp=str(int(world.clock.now * 1000)))]) == []
        assert world.served() == [("Alice", "SUCCESS")]
        (page,) = world.holders.values()
        assert page.newest
        assert page.newest.id == "Create-one-alice"

    def test_a_message_of_the_former_format_is_served(self, world: World) -> None:
        """It has waited in the queue during an upgrade."""
        world.arrives("alice")
        body = json.loads(world.sqs.sent[0]["MessageBody"]) | {"turn": 3, "received": 2}
        world.batch([record(json.dumps(body))])
        assert world.served() == [("Alice", "SUCCESS")]

    def test_a_stray_is_counted_and_logged(
        self, world: World, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
    ) -> None:
        refused = denied("SendMessage")
        world.sqs.fails = [refused]
        world.batch([record("stray", 7)])
        counted = json.loads(capsys.readouterr().out)
        assert (counted["NoRequest"], counted["_aws"]["CloudWatchMetrics"][0]["Namespace"]) == (
            [1],
            "UsagePlanKey",
        )
        assert counted["_aws"]["CloudWatchMetrics"][0]["Metrics"] == [{"Name": "NoRequest", "Unit": "Count"}]
        first, second = log(caplog)
        assert first[0] == "ERROR"
        assert first[1].startswith(
            "Message message-7 is no request: not a CloudFormation custom resource event: "
        )
        assert second == ("WARNING", f"Message message-7 stays in the queue: {refused}")

    @pytest.mark.parametrize(("left", "taken"), [(4, 1), (GIVING_TIME, 2), (90, 2)])
    def test_a_stray_costs_little_of_the_others_time(self, world: World, left: float, taken: float) -> None:
        slow = ClientError({"Error": {"Code": "RequestThrottled", "Message": "slow"}}, "SendMessage")
        world.sqs.fails = [slow] * 999
        (stray,) = messages([record("stray")])
        began = world.clock.now
        assert not world.function._put_aside(stray, began + left)
        assert world.clock.now - began == taken


class TestTold:
    """The function logs a batch."""

    def test_a_waiting_request_logs_its_reason(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "usage_plan_key")
        world.arrives("alice")
        world.arrives("bob")
        world.at_create = [BUSY] * 999
        world.serve()
        (waits,) = [text for _, text in log(caplog) if " waits: " in text]
        assert waits.startswith("Create alice:free, OnExisting Fail waits: Could not attach API key alice")

    def test_a_request_without_time_in_this_turn_says_so_and_begins_nothing(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "usage_plan_key")
        world.seconds = CLOSING_TIME + LAST_SECONDS + BEFORE_CALL - 1
        world.arrives("alice")
        assert world.serve() == ["message-0"]
        (waits,) = [text for _, text in log(caplog) if " waits: " in text]
        assert waits.endswith("waits: Could not serve Create: the function's time is nearly up")
        assert (world.answers, world.api.calls) == ([], {})

    def test_a_message_that_sqs_does_not_take_back_is_logged(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        refused = denied("ChangeMessageVisibilityBatch")
        world.arrives("alice")
        world.at_create = [BUSY] * 999
        records = world.records()
        world.sqs.fails = [refused]
        world.batch(records)
        said = f"1 messages come again when their visibility time-out is over: {refused}"
        assert ("WARNING", said) in log(caplog)

    def test_a_batchs_log_lines_before_its_first_request_are_about_none(self, world: World) -> None:
        about.set({"left": "over"})
        world.batch([record("stray")])
        assert about.get() == {}

    def test_the_log_names_the_request_whose_turn_has_come_and_says_that_it_broke(
        self, world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        caplog.set_level(logging.DEBUG, "usage_plan_key")
        world.arrives("alice")
        monkeypatch.setattr(CustomResource, "answer", lambda *_: 1 / 0)
        assert world.serve() == ["message-0"]
        assert log(caplog)[1:] == [
            ("DEBUG", "Its turn has come: Create alice:free, OnExisting Fail"),
            ("ERROR", "Not answered, so it comes again when its visibility time-out is over"),
        ]


class TestTheEndOfTheFunction:
    """A function that Lambda ends leaves marks that the next one can judge."""

    def test_a_mark_says_until_when_this_function_can_run(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def dies(**_: object) -> None:
            raise Death

        world.arrives("alice")
        world.serve()
        world.arrives("alice", "Delete", PhysicalResourceId="alice:free")
        monkeypatch.setattr(world.api, "delete_usage_plan_key", dies)
        ends = world.clock.now + world.seconds
        with pytest.raises(Death):
            world.serve()
        (entry,) = world.held.values()
        assert entry.detaching == int(ends) + MOST_SKEW

    def test_a_repair_that_comes_again_is_marked_as_begun(self, world: World) -> None:
        event = world.arrives("alice")
        world.serve()
        world.api.attached.clear()
        wanted = Association("alice", "free")
        repair = repair_event("r", Holder(event["StackId"], "Alice"), wanted)
        assert world.function.queue
        for receives, begun in ((1, []), (2, [True])):
            world.function.queue.put(repair, world.clock.now, within(60, world.clock))
            world.at_create = [Death()]
            with pytest.raises(Death):
                world.serve(receives)
            (record,) = world.holders.values()
            assert [note.begun for note in record.notes if note.id == "r"] == begun


def test_behind_a_call_that_has_hung_a_request_goes_back_and_is_not_answered() -> None:
    """With less time left than the guard's, the guard would strike at once."""
    world = World()
    world.arrives("alice", stack="one")
    world.arrives("bob", stack="two")

    def hang() -> None:
        world.clock.now, world.before_create = world.ends - 9, lambda: None

    world.before_create = hang
    assert world.serve() == ["message-0", "message-1"]
    assert world.answers == []
