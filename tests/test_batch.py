"""The function serves a batch: each stack in order, none for long, a death only at its stack's cost.

What becomes of one request that waits or dies is told in test_deaths.py.
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError

from tests.memory import within
from usage_plan_key import retry
from usage_plan_key.custom_resource import CustomResource
from usage_plan_key.errors import FailedError
from usage_plan_key.provider import CLOSING_TIME, GIVING_TIME, LAST_SECONDS, _threads, about
from usage_plan_key.queue import VISIBILITY, Queue, messages
from usage_plan_key.request import MOST_SKEW
from usage_plan_key.retry import BEFORE_CALL, QUOTA_PATIENCE, Deadline
from usage_plan_key.service import IN_PLACE

from . import function
from .function import BUSY, QUOTA, Death, World, denied, log, received, record, refusal, throttled

world = function.world
SLOW = refusal(400, "RequestThrottled")


@pytest.fixture(autouse=True)
def no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "random", Random(0))


def hang(world: World) -> None:
    """From now on SQS takes no message back, and each attempt takes its whole time."""

    def slow(**_: Any) -> None:
        world.clock.now += 3
        raise ReadTimeoutError(endpoint_url="https://sqs")

    world.sqs.change_message_visibility_batch = slow  # type: ignore[assignment, method-assign]  # it hangs


class TestServing:
    """The function serves all of a batch, each stack in order, or gives messages back in place."""

    def test_all_stacks_are_served_each_in_order(self, world: World) -> None:
        """The sender becomes ready while the function waits for API Gateway; see response.Sender."""
        for name, stack in (("alice", "one"), ("bob", "two"), ("carol", "one")):
            world.arrives(name, stack=stack)
        ready: list[int] = []
        world.before_create = lambda: ready.append(world.prepared)
        assert world.serve() == []
        assert world.served() == [("Alice", "SUCCESS"), ("Bob", "SUCCESS"), ("Carol", "SUCCESS")]
        assert world.api.attached == {(name, "free") for name in ("alice", "bob", "carol")}
        assert ready == [1, 1, 1]

    def test_an_undelivered_answer_comes_again_and_is_left_in_peace_for_a_while(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        world.arrives("alice")
        (message,) = world.records()
        world.unreachable = True
        assert world.serve() == ["message-0"]
        assert not world.sqs.given_back
        assert ("ERROR", "Not delivered: ") in log(caplog)
        assert world.batch([received(message, 2)]) == ["message-0"]
        assert not world.note("Create-one-alice").begun, "that was no death"
        world.unreachable = False
        assert world.batch([received(message, 3)]) == []
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

    def test_under_sam_local_answers_are_printed_and_not_sent(
        self, world: World, capsys: pytest.CaptureFixture[str]
    ) -> None:
        wanted = {"KeyId": "alice", "UsagePlanId": "free", "IncludeValue": "true"}
        world.arrives("alice", ResourceProperties=wanted)
        world.function = replace(world.function, local=True)
        assert world.serve() == []
        printed = json.loads(capsys.readouterr().out)
        assert (printed["Status"], printed["Data"]["Value"]) == ("SUCCESS", "(not shown)")
        assert not world.answers

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

    def test_an_error_of_one_request_costs_only_its_own_stack(
        self, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The function gives nothing of it back at once; otherwise it would come again and again."""
        caplog.set_level(logging.DEBUG, "usage_plan_key")
        for name, stack in (("alice", "one"), ("bob", "two"), ("carol", "one")):
            world.arrives(name, stack=stack)

        def answer(self: Any, event: Any, context: Any) -> None:
            if event["LogicalResourceId"] == "Alice":
                raise RuntimeError("broken")
            real(self, event, context)

        real = CustomResource.answer
        monkeypatch.setattr(CustomResource, "answer", answer)
        assert world.serve() == ["message-0", "message-2"]
        assert world.served() == [("Bob", "SUCCESS")]
        assert world.sqs.given_back == []
        assert log(caplog)[3:5] == [
            ("DEBUG", "Its turn has come: Create alice:free, OnExisting Fail"),
            ("ERROR", "Not answered, so it comes again when its visibility time-out is over"),
        ]


class TestWaiting:
    """A long wait is the queue's: what API Gateway refuses goes back at once, hidden in its place."""

    def test_it_waits_in_place_for_a_moment_and_only_until_it_has_gone_back_once(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "usage_plan_key")
        world.arrives("alice")
        (message,) = world.records()
        world.at_create, began = [BUSY] * 999, world.clock.now
        assert world.batch([message]) == ["message-0"]
        assert 1 <= world.clock.now - began <= IN_PLACE
        assert "Create alice:free, OnExisting Fail waits: Could not attach API key alice" in caplog.text
        asked, world.clock.now = len(world.at_create), world.note("Create-one-alice").until
        began = world.clock.now
        assert world.batch([received(message)]) == ["message-0"]
        assert (asked - len(world.at_create), world.clock.now) == (1, began)

    def test_its_stacks_later_ones_wait_behind_it_and_others_are_served_after_it_has_gone_back(
        self, world: World
    ) -> None:
        """One call gives them back. API Gateway's throttle holds up no request that asks it nothing."""
        world.arrives("alice")
        world.arrives("bob")
        world.arrives("dora", "Delete", "two", PhysicalResourceId="dora:free")
        world.arrives("carol")
        world.at_create, given = [throttled(7)], []
        world.at_delivery = lambda: given.extend(world.sqs.given_back)
        assert world.serve() == ["message-0", "message-1", "message-3"]
        assert given == world.sqs.given_back == [{"receipt-0": 7, "receipt-1": 0, "receipt-3": 0}]
        assert world.served() == [("Dora", "SUCCESS")]
        assert len(world.sqs.sent) == 0, "nothing is ever sent back into the queue"

    def test_a_look_reads_the_pages_of_a_batch_in_one_call_and_asks_nobody(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("alice", "bob"):
            world.arrives(name, stack=name)
        records = world.records()
        world.at_create, began = [throttled(25)] * 2, world.clock.now
        assert len(world.batch(records)) == 2
        made: list[str] = []

        def noted(name: str, call: Any, **arguments: Any) -> Any:
            made.append(name)
            return call(**arguments)

        for name in ("transact_get_items", "transact_write_items"):
            monkeypatch.setattr(world.db, name, partial(noted, name, getattr(world.db, name)))
        asked, world.clock.now = world.api.calls.total(), began + 20
        assert len(world.batch([received(record) for record in records])) == 2
        assert (made, world.api.calls.total()) == (["transact_get_items"], asked)
        assert world.sqs.given_back[-2:] == [{"receipt-0": 5}, {"receipt-1": 5}]

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
        assert "LimitExceededException: Maximum number reached (function" in world.answers[0]["Reason"]
        assert QUOTA_PATIENCE <= asked[-1] <= 2 * QUOTA_PATIENCE
        assert not world.held, "nothing is held for it"

    def test_what_has_no_time_in_this_turn_begins_nothing_and_is_not_hidden(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A mark of its death stands."""
        caplog.set_level(logging.INFO, "usage_plan_key")
        world.arrives("alice", stack="one")
        world.arrives("bob", stack="two")
        alice, bob = world.records()
        world.at_create = [Death()]
        with pytest.raises(Death):
            world.batch([received(alice)])
        world.seconds = CLOSING_TIME + LAST_SECONDS + BEFORE_CALL - 1
        assert world.batch([received(alice, 3), bob]) == ["message-1", "message-0"]
        assert world.sqs.given_back == [{"receipt-1": 0}, {"receipt-0": 0}]
        assert world.batch([bob, received(alice, 1)]) == ["message-1", "message-0"]
        assert world.sqs.given_back[2:] == [{"receipt-1": 0, "receipt-0": 0}]
        assert (world.answers, world.api.calls.total()) == ([], 0)
        assert (world.note("Create-one-alice").begun, world.note("Create-one-alice").refusals) == (True, 0)
        assert "waits: Could not serve Create: the function's time is nearly up" in caplog.text

    def test_what_sqs_does_not_take_back_comes_again_and_the_function_returns_in_time(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        for number, name in enumerate(("alice", "bob", "carol")):
            world.arrives(name, stack=str(number))
        records = world.records()
        world.at_create, refused = [BUSY] * 9999, denied("ChangeMessageVisibilityBatch")
        world.sqs.fails = [refused]
        assert world.batch(records[:1]) == ["message-0"]
        said = f"1 messages come again when their visibility time-out is over: {refused}"
        assert ("WARNING", said) in log(caplog)
        hang(world)
        ends = world.clock.now + world.seconds
        assert len(world.batch(records)) == 3
        assert world.clock.now < ends
        caplog.clear()
        world.function = replace(world.function, queue=None)
        assert world.batch(records[:1]) == ["message-0"]
        assert not log(caplog), "without a queue there is no call that fails"


class TestDying:
    """A request at which the function dies; other stacks of its batch wait for two visibility time-outs."""

    def dies(self, world: World, records: list[dict[str, Any]]) -> None:
        world.at_create = [Death()]
        with pytest.raises(Death):
            world.batch(records)
        world.clock.now += VISIBILITY

    def test_it_is_served_apart_and_at_last_answered_failed(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        """After a death the log names each request before the function begins it."""
        caplog.set_level(logging.INFO, "usage_plan_key")
        begins = ("INFO", "Its turn has come: Create alice:free, OnExisting Fail")
        world.arrives("alice")
        world.arrives("bob", stack="two")
        world.arrives("carol")
        first = world.records()
        alice, bob, carol = first
        self.dies(world, first)
        assert begins not in log(caplog)
        self.dies(world, [received(record, 2) for record in first])
        assert begins in log(caplog)
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

    @pytest.mark.parametrize(
        ("receives", "age", "served"),
        [
            ((2, 2, 1), VISIBILITY, ["Alice", "Carol"]),
            ((11, 11, 1), VISIBILITY, ["Alice", "Carol"]),
            ((20, 20, 1), VISIBILITY, ["Alice", "Bob", "Carol"]),
            ((7, 7, 1), VISIBILITY - 1, ["Alice", "Bob", "Carol"]),
            ((1, 1, 2), VISIBILITY, ["Alice", "Bob", "Carol"]),
        ],
        ids=[
            "nobody knows yet at which the function died",
            "others were served apart meanwhile",
            "it was received too often for that: it has waited",
            "it went back in time",
            "only the first of a stack counts",
        ],
    )
    def test_who_may_have_been_in_a_batch_that_died_is_served_apart_by_stack(
        self, world: World, receives: tuple[int, ...], age: float, served: list[str]
    ) -> None:
        world.arrives("alice")
        world.arrives("bob", stack="two")
        world.arrives("carol")
        failed = world.serve(*receives, first=world.clock.now - age)
        assert [name for name, _ in world.served()] == served
        assert failed == ([] if "Bob" in served else ["message-1"])
        assert world.sqs.given_back == ([] if "Bob" in served else [{"receipt-1": 0}])

    def test_giving_a_suspect_back_first_leaves_time_to_serve_the_others(self, world: World) -> None:
        world.arrives("alice")
        world.arrives("bob", stack="two")
        hang(world)
        assert world.serve(2, 2, first=world.clock.now - VISIBILITY) == ["message-1"]
        assert world.served() == [("Alice", "SUCCESS")]

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

    def test_where_nobody_can_see_whether_a_function_has_died_all_are_served(
        self, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One read of the ledger fails. It has the batch's time."""
        deadlines: list[Deadline] = []
        read = world.table.read

        def read_once(wanted: Any, deadline: Deadline) -> Any:
            deadlines.append(deadline)
            if deadlines[1:]:
                return read(wanted, deadline)
            raise FailedError("Could not read the ledger")

        world.arrives("alice")
        world.arrives("bob", stack="two")
        monkeypatch.setattr(world.table, "read", read_once)
        expected = within(world.seconds - LAST_SECONDS - CLOSING_TIME, world.clock)
        assert world.serve(2, 1) == []
        assert world.served() == [("Alice", "SUCCESS"), ("Bob", "SUCCESS")]
        said = "Could not look up a batch's requests together: Could not read the ledger"
        assert ("WARNING", said) in log(caplog)
        assert deadlines[0] == expected

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
        assert entry.detaching.until == int(ends) + MOST_SKEW

    def test_behind_a_call_that_has_hung_a_request_goes_back_and_is_not_answered(self, world: World) -> None:
        """With less time left than the guard's, the guard would strike at once."""
        world.arrives("alice", stack="one")
        world.arrives("bob", stack="two")

        def hang() -> None:
            world.clock.now, world.before_create = world.ends - 9, lambda: None

        world.before_create = hang
        assert world.serve() == ["message-0", "message-1"]
        assert world.answers == []


class TestStrays:
    """A record that is no request goes to the dead-letter queue, and costs nobody else anything."""

    @pytest.mark.parametrize(
        "body",
        [
            *("", "hello", "7", "null", "[]", "{}", '{"event": null, "arrived": 1}', '{"requestPayload": 7}'),
            '{"event": {"RequestType": "Create"}, "arrived": 1}',
            pytest.param(f'{{"arrived": {10**400}}}', id="arrived at no time that a float holds"),
            pytest.param("[" * 200_000, id="nested too deep"),
        ],
    )
    def test_it_is_put_aside_and_the_rest_is_served(
        self, world: World, body: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        world.arrives("alice")
        world.arrives("bob", stack="two")
        alice, bob = world.records()
        about.set({"left": "over"})
        assert world.batch([alice, record(body, 7), bob]) == []
        assert world.served() == [("Alice", "SUCCESS"), ("Bob", "SUCCESS")]
        (aside,) = world.sqs.aside
        found = (aside["QueueUrl"], aside["MessageBody"], aside["MessageGroupId"])
        assert found == ("https://undelivered", body, "group")
        ((level, said),) = log(caplog)
        assert (level, said.partition(": ")[0]) == ("ERROR", "Message message-7 is no request")

    @pytest.mark.parametrize("lacks", ["", "the queue", "its dead-letter queue"])
    def test_where_it_cannot_be_put_aside_it_comes_again(
        self,
        world: World,
        lacks: str,
        caplog: pytest.LogCaptureFixture,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """SQS itself puts it aside in the end."""
        refused = denied("SendMessage")
        if lacks:
            queue = Queue(world.sqs, "https://queue") if "letter" in lacks else None  # type: ignore[arg-type]  # a fake
            world.function = replace(world.function, queue=queue)
        world.sqs.fails = [refused]
        about.set({"left": "over"})
        assert world.batch([record("stray", 7)]) == ["message-7"]
        assert about.get() == {}, "lines before the first request are about none"
        assert (world.sqs.aside, world.sqs.given_back) == ([], [])
        first, *more = log(caplog)
        said = "Message message-7 is no request: not a CloudFormation custom resource event: "
        assert (first[0], first[1].startswith(said)) == ("ERROR", True)
        assert more == ([] if lacks else [("WARNING", f"Message message-7 stays in the queue: {refused}")])
        counted = json.loads(capsys.readouterr().out)
        assert (counted["NoRequest"], counted["_aws"]["CloudWatchMetrics"][0]["Namespace"]) == (
            [1],
            "UsagePlanKey",
        )

    @pytest.mark.parametrize(("left", "taken"), [(4, 1), (GIVING_TIME, 2), (90, 2)])
    def test_it_costs_little_of_the_others_time(self, world: World, left: float, taken: float) -> None:
        world.sqs.fails = [SLOW] * 999
        (stray,) = messages([record("stray")])
        began = world.clock.now
        assert not world.function._put_aside(stray, began + left)
        assert world.clock.now - began == taken

    @pytest.mark.parametrize("by", ["Lambda's record of a failed invocation", "the former format"])
    def test_a_request_in_another_form_is_served(self, world: World, by: str) -> None:
        """What nothing fenced at its arrival, the function fences now."""
        world.arrives("alice")
        found = json.loads(world.sqs.sent[0]["MessageBody"])
        body = found | {"turn": 3, "received": 2}
        if "Lambda" in by:
            world.db.items.clear()
            body = {"requestContext": {"condition": "RetriesExhausted"}, "requestPayload": found["event"]}
        sent = str(int(world.clock.now * 1000))
        assert world.batch([record(json.dumps(body), SentTimestamp=sent)]) == []
        assert world.served() == [("Alice", "SUCCESS")]
        (page,) = world.holders.values()
        assert page.newest
        assert page.newest.id == "Create-one-alice"
