"""The function serves a batch: each stack in order, none for long, a death only at its stack's cost."""

from __future__ import annotations

import json
import logging
import math
import threading
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from tests.memory import Clock
from usage_plan_key.custom_resource import CustomResource
from usage_plan_key.errors import FailedError, TurnOverError
from usage_plan_key.model import Association, Holder
from usage_plan_key.provider import (
    CLOSING_TIME,
    GIVING_TIME,
    LAST_SECONDS,
    PATIENCE,
    Provider,
    _threads,
    about,
)
from usage_plan_key.queue import VISIBILITY, Queue, messages
from usage_plan_key.request import MOST_SKEW, repair_event
from usage_plan_key.retry import BEFORE_CALL, Deadline

from . import function
from .function import BUSY, Death, World, denied, log, received, record, throttled

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

    def test_out_of_the_functions_time_it_goes_back_in_place_with_all_behind_it(self, world: World) -> None:
        """CloudFormation waits on, so all go back unanswered: a stack's later ones first, its head last."""
        for name in ("alice", "bob", "carol"):
            world.arrives(name)
        messages = world.records(2, 2, 2)
        world.at_create = [BUSY] * 999
        assert world.batch(messages) == ["message-0", "message-1", "message-2"]
        assert not world.answers
        assert world.sqs.given_back == ["receipt-2", "receipt-1", "receipt-0"]
        assert len(world.sqs.sent) == 3, "nothing is ever sent back into the queue"
        world.at_create = []
        assert world.batch(messages) == []
        assert [answer["Status"] for answer in world.answers] == ["SUCCESS"] * 3

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

    def test_a_retry_after_longer_than_the_functions_time_costs_one_call_a_turn(self, world: World) -> None:
        world.arrives("alice")
        records = world.records()
        world.at_create = [throttled(100)] * 2
        turns = 0
        began = world.clock.now
        while not world.answers:
            turns += 1
            world.batch(records)
        assert turns <= 3
        assert world.clock.now - began >= 100
        assert world.served() == [("Alice", "SUCCESS")]
        assert not world.at_create

    def test_a_wait_that_would_outlast_cloudformations_time_is_answered_now(self, world: World) -> None:
        world.arrives(
            "alice", ResourceProperties={"KeyId": "alice", "UsagePlanId": "free", "ServiceTimeout": "110"}
        )
        world.at_create = [throttled(100)]
        began = world.clock.now
        assert world.serve() == []
        assert world.served() == [("Alice", "FAILED")]
        assert world.clock.now - began < 1

    def test_a_request_cancelled_while_it_waits_makes_way_for_its_delete(self, world: World) -> None:
        """The Delete waits behind it, in the same batch."""
        world.arrives("alice")
        world.at_create = [throttled(600)]
        apart, delete = (
            copy_context(),
            partial(world.arrives, "alice", "Delete", PhysicalResourceId="invented"),
        )
        world.before_create = lambda: apart.run(delete) if len(world.sqs.sent) < 2 else None
        began = world.clock.now
        records = world.records()
        assert world.batch(records) == []
        assert world.served() == [("Alice", "FAILED")]
        assert world.clock.now - began <= 21
        world.batch(world.records()[1:])
        assert world.served()[1:] == [("Alice", "SUCCESS")]

    def test_out_of_cloudformations_time_it_is_answered(self, world: World) -> None:
        world.arrives(
            "alice", ResourceProperties={"KeyId": "alice", "UsagePlanId": "free", "ServiceTimeout": "60"}
        )
        world.at_create = [BUSY] * 999
        world.serve()
        assert world.answers[0]["Status"] == "FAILED"
        assert "ServiceTimeout" in world.answers[0]["Reason"]
        assert not world.sqs.sent

    def test_a_request_pauses_for_one_to_two_seconds_while_api_gateway_is_busy(self, world: World) -> None:
        world.arrives("alice")
        world.at_create = [BUSY] * 3
        began = world.clock.now
        world.serve()
        assert 3 <= world.clock.now - began <= 6

    def test_no_request_is_begun_with_the_functions_time_nearly_up(self, world: World) -> None:
        world.arrives("alice")
        world.seconds = 25
        assert world.serve() == ["message-0"]
        assert not world.api.calls


class TestOthersOfTheBatch:
    """A stack that waits costs the others little."""

    def test_a_request_that_has_to_wait_waits_after_all_others_are_served(self, world: World) -> None:
        """Also where API Gateway asks for a longer wait than the function's time."""
        for name, error in (("alice", throttled(100)), ("bob", BUSY)):
            world.answers.clear()
            world.arrives(name, stack=name)
            world.arrives(
                "dora", "Delete", stack="two", PhysicalResourceId="dora:free", RequestId=f"dora after {name}"
            )
            world.at_create, began = [error] * 999, world.clock.now
            world.at_delivery = partial(self.not_long_after, began, world.clock)
            assert world.serve() == ["message-0"]
            assert world.served() == [("Dora", "SUCCESS")]

    @staticmethod
    def not_long_after(began: float, clock: Clock) -> None:
        assert clock.now - began <= PATIENCE

    def test_it_is_not_asked_again_before_api_gateway_lets_it(self, world: World) -> None:
        """The function asks for no other stack either, because API Gateway throttles the whole account."""
        for name in ("alice", "bob", "carol"):
            world.arrives(name, stack=name)
        world.at_create = [throttled(40)]
        began = world.clock.now
        calls: list[float] = []
        world.before_create = lambda: calls.append(world.clock.now - began)
        assert world.serve() == []
        assert len(world.answers) == 3
        assert min(calls[1:]) >= 40

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

        world.sqs.change_message_visibility = slow  # type: ignore[method-assign]  # it hangs
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

        world.sqs.change_message_visibility = slow  # type: ignore[method-assign]  # it hangs
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

    def test_a_waiting_request_makes_way_for_other_stacks_and_then_has_all_the_time(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        served: list[tuple[str, float, float]] = []

        def serve(self: Any, turn: Any, ends: float, patience: float, opens: float, *rest: Any) -> None:
            served.append((turn.request.wanted.key_id, patience, opens))
            world.clock.now += 35
            raise TurnOverError("busy", world.clock.now + 5)

        world.arrives("alice")
        world.arrives("carol")
        world.arrives("bob", stack="two")
        monkeypatch.setattr(Provider, "_handle", serve)
        began = world.clock.now
        assert world.serve() == ["message-0", "message-1", "message-2"]
        assert served == [
            ("alice", PATIENCE, -math.inf),
            ("bob", 40 - 35, began + 40),
            ("alice", math.inf, began + 75),
            ("bob", math.inf, began + 110),
        ]


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
        assert world.sqs.given_back == ["receipt-1"], "another stack's goes back at once"
        self.dies(world, [received(record, 3) for record in first])
        assert world.sqs.given_back[1:] == ["receipt-2", "receipt-1"], "the suspect is alone"
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
        assert world.sqs.given_back == ["receipt-1"]

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
        read, trouble = world.ledger.change, [FailedError("Could not read the ledger")]

        def change(*asked: Any) -> Any:
            if trouble:
                raise trouble.pop()
            return read(*asked)

        monkeypatch.setattr(world.ledger, "change", change)
        assert world.serve(2, 1) == []
        assert world.served() == [("Alice", "SUCCESS"), ("Bob", "SUCCESS")]
        said = (
            "Could not see whether a function has died at Create alice:free, OnExisting Fail:"
            " Could not read the ledger"
        )
        assert said in caplog.messages

    def test_a_delete_that_is_given_up_names_the_key_that_stays_attached(self, world: World) -> None:
        world.arrives("bob", "Delete", PhysicalResourceId="bob:free")
        holder = next(iter(world.ledger.records))
        world.ledger.records[holder] = world.ledger.records[holder]._replace(
            begun="Delete-one-bob", died="Delete-one-bob", deaths=2
        )
        world.serve(5)
        assert "3 invocations died" in world.answers[0]["Reason"]
        assert "Still attached: bob:free" in world.answers[0]["Reason"]

    def test_an_answer_that_was_given_stands_though_a_function_died_after_it(self, world: World) -> None:
        world.arrives("alice")
        message = world.records()
        world.serve()
        world.batch([received(message[0], 9)])
        assert world.answers[0] == world.answers[1]

    def test_an_error_of_one_request_costs_only_its_own_stack(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The function does not give it back at once; otherwise it would come again and again."""
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
        assert world.sqs.given_back == ["receipt-2"]

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
        world.at_create = []
        assert world.batch([received(message, 8)]) == []
        assert "3 invocations died" in world.answers[0]["Reason"]

    def test_a_request_without_time_to_begin_leaves_its_mark_standing(self, world: World) -> None:
        world.arrives("alice")
        (message,) = world.records()
        self.dies(world, [received(message, 2)])
        world.seconds = 25
        assert world.batch([received(message, 3)]) == ["message-0"]
        (record,) = world.ledger.records.values()
        assert record.begun == "Create-one-alice"

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
        change = world.ledger.change

        def watched(holder: Any, associations: Any, rule: Any, deadline: Deadline, seen: Any = None) -> Any:
            deadlines.append(deadline)
            return change(holder, associations, rule, deadline, seen)

        world.arrives("alice")
        monkeypatch.setattr(world.ledger, "change", watched)
        world.serve(2)
        assert all(deadline.clock is world.clock for deadline in deadlines)
        assert deadlines[0]._end == world.clock.now + world.seconds - LAST_SECONDS - CLOSING_TIME

    def test_a_look_for_a_death_that_fails_is_logged(
        self, world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(self: Any) -> bool:
            raise FailedError("the ledger is out of reach")

        world.arrives("alice")
        monkeypatch.setattr("usage_plan_key.service.Service.died", broken)
        assert world.serve(2) == []
        said = (
            "Could not see whether a function has died at Create alice:free, OnExisting Fail:"
            " the ledger is out of reach"
        )
        assert ("WARNING", said) in log(caplog)

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
        world.ledger.records.clear()
        body = json.dumps(
            {"version": "1.0", "requestContext": {"condition": "RetriesExhausted"}, "requestPayload": event}
        )
        assert world.batch([record(body, SentTimestamp=str(int(world.clock.now * 1000)))]) == []
        assert world.served() == [("Alice", "SUCCESS")]
        (page,) = world.ledger.records.values()
        assert page.newest == "Create-one-alice"

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
        waits = [text for _, text in log(caplog) if " waits: " in text]
        assert len(waits) == 2, "where there is one stack, nobody makes way"
        assert waits[0].startswith("Create alice:free, OnExisting Fail waits: Could not attach API key alice")
        assert (
            waits[1]
            == "Create bob:free, OnExisting Fail waits: an earlier request of its stack has no answer yet"
        )

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
        refused = denied("ChangeMessageVisibility")
        world.arrives("alice")
        world.at_create = [BUSY] * 999
        records = world.records()
        world.sqs.fails = [refused]
        world.batch(records)
        said = f"Message message-0 comes again when its visibility time-out is over: {refused}"
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
        (entry,) = world.ledger.entries.values()
        assert entry.detaching == int(ends) + MOST_SKEW

    def test_a_repair_that_comes_again_is_marked_as_begun(self, world: World) -> None:
        event = world.arrives("alice")
        world.serve()
        world.api.attached.clear()
        wanted = Association("alice", "free")
        repair = repair_event("r", Holder(event["StackId"], "Alice"), wanted)
        assert world.function.queue
        for receives, begun in ((1, ""), (2, "r")):
            world.function.queue.put(repair, world.clock.now, Deadline(60, world.clock))
            world.at_create = [Death()]
            with pytest.raises(Death):
                world.serve(receives)
            (record,) = world.ledger.records.values()
            assert record.begun == begun


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
