"""The watch reports missing and foreign keys, has keys attached again, and shows no secret."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from io import StringIO
from random import Random
from types import SimpleNamespace
from typing import Any, ClassVar

import boto3
import pytest
from boto3.dynamodb.types import TypeSerializer
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from botocore.exceptions import ClientError, ReadTimeoutError
from moto import mock_aws

from emulators.dynamodb import DynamoDb
from emulators.fake import ApiGateway as StrictApi
from emulators.fake import Key, Plan
from emulators.rules import Bucket
from tests.function import BUSY, DOWN, Death, refusal, throttled
from tests.memory import Clock, Inline, within
from usage_plan_key import rules
from usage_plan_key.api_gateway import ApiGateway
from usage_plan_key.errors import EventError, FailedError, IncompleteError, TurnOverError
from usage_plan_key.ledger import Table, _entry_page, _record_page
from usage_plan_key.model import (
    Association,
    AssociationRecord,
    Belief,
    Hold,
    Holder,
    Note,
    Origin,
    ResourceRecord,
    Response,
    Snapshot,
)
from usage_plan_key.provider import Provider
from usage_plan_key.queue import Queue
from usage_plan_key.request import (
    REPAIR_TIME,
    Create,
    Delete,
    OnExisting,
    Repair,
    Request,
    Update,
    parse,
    repair_event,
)
from usage_plan_key.retry import Deadline
from usage_plan_key.rules import MOST_DEATHS
from usage_plan_key.service import Service
from usage_plan_key.watch import MOST_REPAIRS, RECENT, Watch, handler

FAIL, ADOPT, TAKE = OnExisting
# Free and Pro share a stage; Gold has one of its own.
FREE, PRO, GOLD = "alice:free", "alice:pro", "alice:gold"
CREATE, GET, DELETE = "create_usage_plan_key", "get_usage_plan_key", "delete_usage_plan_key"
THROTTLED = throttled(2)
DENIED = refusal(403, "AccessDeniedException", "Not authorized")
LOST = ReadTimeoutError(endpoint_url="https://apigateway")
LIST = "get_usage_plan_keys"
NOT_HELD = "the resource does not hold it any more, or no answer has said that it is attached"
PENDING = "a request of the resource is pending, and the function serves that one"
DELETED = ClientError({"Error": {"Code": "ValidationError", "Message": "?"}}, "DescribeStacks")
REFUSED = ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "Call")
SCHEDULED = {"detail-type": "Scheduled Event", "source": "aws.events", "resources": [], "detail": {}}


Step = Callable[[Callable[[], Any]], Any]
"""A step takes a call, and makes it or not."""


def fails(with_: BaseException) -> Step:
    """Refuse the call."""

    def step(_: Callable[[], Any]) -> Any:
        raise with_

    return step


def served_then(with_: BaseException) -> Step:
    """Serve the call, and lose its reply."""

    def step(call: Callable[[], Any]) -> Any:
        call()
        raise with_

    return step


def preceded_by(action: Callable[[], object]) -> Step:
    """Do something just before the call, as somebody else."""

    def step(call: Callable[[], Any]) -> Any:
        action()
        return call()

    return step


def pair(id_: str) -> Association:
    association = Association.parse(id_)
    assert association
    return association


def holder(name: str, stack: str = "one") -> Holder:
    return Holder(f"arn:aws:cloudformation:eu-west-1:1:stack/{stack}/0", name)


class Busy(Clock):
    """A clock that does the things in `meanwhile` while the function sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: list[Callable[[], object]] = []

    def sleep(self, seconds: float, /) -> None:
        super().sleep(seconds)
        if self.meanwhile:
            self.meanwhile.pop(0)()


def a_repair(id_: str = "r", name: str = "A", wanted: str = FREE) -> Repair:
    repair = parse(repair_event(id_, holder(name), pair(wanted)), repairs=True)
    assert isinstance(repair, Repair)
    return repair


class World:
    """The watch's surroundings: requests of stacks, a ledger, a queue, API Gateway, and Lambda's context."""

    aws_request_id = "8c5a3a0e"
    function_name = "usage-plan-key-watch"
    invoked_function_arn = "arn:aws:lambda:eu-west-1:1:function:usage-plan-key-watch"
    log_group_name = log_stream_name = "log"

    def __init__(self) -> None:
        self.clock = Busy()
        self.api = StrictApi()
        self.meta = self.api.meta
        self.api.keys = {key: Key(f"Key of {key}", f"value-of-{key}") for key in ("alice", "bob")}
        self.api.plans = {
            "free": Plan("Free", (("api", "prod"),)),
            "pro": Plan("Pro", (("api", "prod"), ("api", "beta"))),
            "gold": Plan("Gold", (("other", "prod"),)),
        }
        self.db = DynamoDb()
        self.table = Table(self, "ledger")  # type: ignore[arg-type]  # a fake
        self.script: dict[str, Iterator[Step]] = defaultdict(lambda: iter(()))
        self.tick: Callable[[], None] = lambda: None
        """What happens before and after each call to API Gateway, and each write to the ledger."""
        self.serial = itertools.count(1)
        self.sent: list[dict[str, str]] = []
        self.sending_fails: list[Exception] = []
        self.stacks: dict[str, str | ClientError] = {}
        """CloudFormation's status or error for each unusual stack."""
        self.asked_about: list[str] = []
        self.called: list[float] = []
        """The times at which the watch asked for a plan's keys."""
        self.left = 900.0
        self.answers: list[dict[str, Any]] = []
        self.listed = ""
        """The plan that the watch asked for last."""

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        call = getattr(self.db if hasattr(self.db, operation) else self.api, operation)
        tick = operation not in ("transact_get_items", "scan")

        def scripted(**arguments: Any) -> Any:
            if tick:
                self.tick()
            if operation == LIST:
                self.listed = arguments["usagePlanId"]
            step = next(self.script[operation], None)
            reply = step(lambda: call(**arguments)) if step else call(**arguments)
            if tick:
                self.tick()
            return reply

        return scripted

    def at(self, operation: str, *steps: Step) -> None:
        """Take these steps at the next calls of an operation; serve the later calls."""
        self.script[operation] = iter(steps)

    # Send requests, and show what has become of them.

    def a_create(self, name: str, wanted: str, on_existing: OnExisting = FAIL, **more: Any) -> Create:
        return Create(**self._fields(name, **more), wanted=pair(wanted), on_existing=on_existing)

    def an_update(
        self, name: str, had: str, wanted: str, on_existing: OnExisting = FAIL, **more: Any
    ) -> Update:
        fields = self._fields(name, **more)
        return Update(**fields, physical_id=had, wanted=pair(wanted), on_existing=on_existing)

    def a_delete(self, name: str, had: str, **more: Any) -> Delete:
        return Delete(**self._fields(name, **more), physical_id=had)

    def _fields(self, name: str, *, stack: str = "one", **more: Any) -> dict[str, Any]:
        self.clock.now += 1
        fields = {"issued": int(self.clock.now), "id": f"request-{next(self.serial)}", **more}
        return {"holder": holder(name, stack), "response_url": "https://x", "service_timeout": 3600, **fields}

    def create(self, *what: Any, **more: Any) -> Response:
        return self.send(self.a_create(*what, **more))

    def update(self, *what: Any, **more: Any) -> Response:
        return self.send(self.an_update(*what, **more))

    def delete(self, *what: Any, **more: Any) -> Response:
        return self.send(self.a_delete(*what, **more))

    def service(self, request: Request, **more: Any) -> Service:
        deadline = within(900, self.clock, dies=self.clock.now + 900, dice=Random(0))
        return Service(request, self.table, ApiGateway(self), deadline, **more)  # type: ignore[arg-type]  # a fake

    def arrives(self, request: Request) -> None:
        """Fence the request, which then waits for its turn."""
        self.service(request).fence()

    def send(self, request: Request) -> Response:
        self.arrives(request)
        return self.service(request).serve()

    @property
    def attached(self) -> set[str]:
        return {f"{key}:{plan}" for key, plan in self.api.attached}

    def by_hand(self, id_: str, *, attached: bool = True) -> None:
        key, plan = id_.split(":")
        (self.api.attached.add if attached else self.api.attached.remove)((key, plan))

    def record(self, name: str = "A") -> ResourceRecord:
        return self.table.pages(within(60, self.clock)).records.get(holder(name), ResourceRecord())

    def entry(self, id_: str) -> AssociationRecord:
        return self.table.pages(within(60, self.clock)).entries.get(pair(id_), AssociationRecord())

    def holders(self, id_: str) -> set[Holder]:
        return set(self.entry(id_).holders)

    def calls(self) -> dict[str, int]:
        """Count the calls since the last count."""
        calls = dict(self.api.calls)
        self.api.calls.clear()
        return calls

    def get_remaining_time_in_millis(self) -> int:
        return int(self.left * 1000)

    def describe_stacks(self, *, StackName: str) -> dict[str, Any]:
        self.asked_about.append(StackName)
        said = self.stacks.get(StackName, "UPDATE_COMPLETE")
        if isinstance(said, ClientError):
            raise said
        return {"Stacks": [{"StackStatus": said}]}

    def send_message(self, **message: str) -> dict[str, str]:
        if self.sending_fails:
            raise self.sending_fails.pop(0)
        self.sent.append(message)
        return {"MessageId": "sent"}

    def change_message_visibility_batch(self, **_: Any) -> dict[str, Any]:
        """Take back all messages."""
        return {}

    # The serving function delivers its answers through these.

    def prepare(self) -> None:
        pass

    def check(self, request: Any) -> None:
        pass

    def deliver(self, request: Any, deadline: Deadline, body: bytes) -> None:
        self.answers.append(json.loads(body))

    # Send requests.

    def watch(self, event: object = None, *, repairs: bool = False) -> dict[str, Any]:
        """Run the watch, an hour and more after all that came before."""
        self.clock.now += RECENT + 60
        return self.watch_now(event, repairs=repairs)

    def watch_now(self, event: object = None, *, repairs: bool = False) -> dict[str, Any]:
        return Watch(
            api=ApiGateway(self),  # type: ignore[arg-type]  # a fake
            table=self.table,
            queue=Queue(self, "queue") if repairs else None,  # type: ignore[arg-type]  # a fake
            cloudformation=lambda: self,
            clock=self.clock,
            sample=Random(0).sample,
        ).run(event if event is not None else {}, self)

    def missing_key(self) -> None:
        """Attach Alice's key for a stack, and remove it by hand."""
        self.create("A", FREE)
        self.by_hand(FREE, attached=False)

    def a_repair(self, name: str = "A", wanted: str = FREE) -> Repair:
        return a_repair(f"repair-{next(self.serial)}", name, wanted)

    def repair(self, repair: Repair | None = None, *, redelivered: bool = False) -> None:
        """One delivery of a repair from the queue."""
        repair = repair or self.a_repair()
        self.service(repair, redelivered=redelivered).repair(repair)

    def function(self) -> Provider:
        return Provider(
            api=ApiGateway(self),  # type: ignore[arg-type]  # a fake
            sender=self,  # type: ignore[arg-type]  # a fake
            table=self.table,
            queue=Queue(self, "queue"),  # type: ignore[arg-type]  # a fake
            clock=self.clock,
            background=Inline,
        )

    def wired(self) -> Any:
        """As app.py wires it."""
        api = ApiGateway(self)  # type: ignore[arg-type]  # a fake
        return SimpleNamespace(api=api, table=self.table, queue=None, cloudformation=lambda: self)

    def batch(self, *, receives: int = 1) -> list[str]:
        """Invoke the serving function with the messages; return those that come again."""
        records = [
            {
                "messageId": str(number),
                "receiptHandle": str(number),
                "body": message["MessageBody"],
                "attributes": {
                    "MessageGroupId": message["MessageGroupId"],
                    "ApproximateReceiveCount": str(receives),
                },
            }
            for number, message in enumerate(self.sent)
        ]
        self.left = 90.0
        return [it["itemIdentifier"] for it in self.function().on_batch(records, self)["batchItemFailures"]]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "usage_plan_key")
    return caplog


def lines(log: pytest.LogCaptureFixture, begins: str) -> list[str]:
    """Take the log lines that begin with this text, and clear the log."""
    found = [record.getMessage() for record in log.records if record.getMessage().startswith(begins)]
    log.clear()
    return found


def drift(capsys: pytest.CaptureFixture[str]) -> list[float]:
    """The metric, as CloudWatch reads it from the log."""
    metrics = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"Drift"' in line]
    assert {m["_aws"]["CloudWatchMetrics"][0]["Namespace"] for m in metrics} <= {"UsagePlanKey"}
    return [value for metric in metrics for value in metric["Drift"]]


#: The page of an association that one resource holds, and has attached.
OURS = AssociationRecord(frozenset({holder("A")}), Origin.OURS)
VERSION = {"version": "v"}


def begun(world: World) -> bool:
    """Whether a mark stands on the page of resource A."""
    return any(note.begun for note in world.record().notes)


class TestMissing:
    """A resource counts on a key that is missing from its plan."""

    def test_all_is_well(
        self, world: World, log: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
    ) -> None:
        world.create("A", FREE)
        summary = world.watch(SCHEDULED)
        assert summary == {
            "plans": 1,
            "associations": 1,
            "missing": 0,
            "unheld": 0,
            "gone": 0,
            "repairs": 0,
            "stacks_not_asked": 0,
            "not_looked_at": 0,
            "seconds": 0,
        }
        assert drift(capsys) == [0]
        assert json.loads(lines(log, "Watched: ")[0].removeprefix("Watched: ")) == summary
        assert world.attached == {FREE}

    def test_its_holder_and_the_remedy_are_named(
        self, world: World, log: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
    ) -> None:
        world.missing_key()
        assert world.watch()["missing"] == 1
        (record,) = [record for record in log.records if record.levelno == logging.WARNING]
        for part in (
            "Missing: alice:free",
            "A of stack one",
            "usage plan free",
            "VerifyTrigger",
            "WatchRepairs",
        ):
            assert part in record.getMessage()
        stack = holder("A").stack_id
        assert (vars(record)["association"], vars(record)["holders"]) == (
            FREE,
            [{"stack_id": stack, "logical_id": "A"}],
        )
        assert drift(capsys) == [1]
        assert not world.attached, "it attaches nothing by itself"

    def test_the_metric_has_the_dimension_that_the_alarm_asks_for(
        self, world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("POWERTOOLS_SERVICE_NAME", "usage-plan-key")
        world.missing_key()
        world.watch()
        metric = json.loads(capsys.readouterr().out)
        assert metric["_aws"]["CloudWatchMetrics"][0]["Dimensions"] == [["service"]]
        assert (metric["service"], metric["Drift"]) == ("usage-plan-key", [1.0])

    def test_a_deleted_key_is_missing(self, world: World, log: pytest.LogCaptureFixture) -> None:
        world.missing_key()
        del world.api.keys["alice"]
        assert world.watch()["missing"] == 1
        assert "or the key is deleted" in lines(log, "Missing")[0]

    def test_a_deleted_plan_is_named(self, world: World, log: pytest.LogCaptureFixture) -> None:
        world.create("A", FREE)
        world.create("B", "bob:free")
        del world.api.plans["free"]
        assert world.watch(repairs=True)["missing"] == 2
        assert all(
            "there is no usage plan free" in line and "another UsagePlanId" in line
            for line in lines(log, "Missing")
        )
        assert not world.sent, "there is nothing to attach it to"

    def test_all_resources_that_count_on_it_are_named(
        self, world: World, log: pytest.LogCaptureFixture
    ) -> None:
        world.create("A", FREE)
        world.create("B", FREE)
        world.create("C", FREE, ADOPT, stack="two")
        world.by_hand(FREE, attached=False)
        assert world.watch()["missing"] == 1
        assert "held by A of stack one, B of stack one, C of stack two:" in lines(log, "Missing")[0]

    def test_a_key_that_was_lost_in_a_rollback_is_missing(
        self, world: World, log: pytest.LogCaptureFixture
    ) -> None:
        """CloudFormation continues as if it were attached."""
        world.create("A", FREE, digest="old")
        world.update("A", FREE, PRO, digest="new")
        del world.api.keys["alice"]
        world.api.attached.clear()
        assert world.update("A", PRO, FREE, digest="old").outcome == "LOST"
        assert world.watch(repairs=True)["missing"] == 1
        assert "No repair touches it: it was moved away from" in lines(log, "Missing")[0]
        assert not world.sent

    def test_adopted_and_gone_is_missing(self, world: World, log: pytest.LogCaptureFixture) -> None:
        world.by_hand(FREE)
        world.create("A", FREE, ADOPT)
        world.by_hand(FREE, attached=False)
        assert world.watch(repairs=True)["missing"] == 1
        assert "No repair touches it: it was there before the stack" in lines(log, "Missing")[0]
        assert not world.sent


class TestNoDrift:
    """The watch ignores associations at work, and those that nobody counts on."""

    def test_touched_within_an_hour(self, world: World) -> None:
        world.missing_key()
        world.clock.now += RECENT - 60
        assert world.watch_now()["missing"] == 0
        world.clock.now += 120
        assert world.watch_now()["missing"] == 1

    def test_answered_within_an_hour_without_an_issue_time(self, world: World) -> None:
        world.create("A", FREE, issued=None)
        world.by_hand(FREE, attached=False)
        assert world.watch_now()["missing"] == 0
        assert world.watch()["missing"] == 1

    def test_a_request_is_pending(self, world: World) -> None:
        world.missing_key()
        world.clock.now += RECENT + 60
        world.arrives(world.an_update("A", FREE, FREE))
        assert world.watch_now()["missing"] == 0

    def test_one_that_was_never_answered_hides_nothing_and_bars_a_repair(
        self, world: World, log: pytest.LogCaptureFixture
    ) -> None:
        world.missing_key()
        world.arrives(world.an_update("A", FREE, FREE))
        assert world.watch(repairs=True)["missing"] == 1
        assert "the last request of its resource never got an answer" in lines(log, "Missing")[0]
        assert not world.sent

    def test_being_attached(self, world: World) -> None:
        """A death has left it so; the function never answered its request."""
        world.at(CREATE, fails(Death()))
        with pytest.raises(Death):
            world.create("A", FREE)
        assert world.holders(FREE) == {holder("A")}
        assert world.watch()["missing"] == 0

    def test_being_detached(self, world: World) -> None:
        world.create("A", FREE)
        world.at("delete_usage_plan_key", served_then(Death()))
        with pytest.raises(Death):
            world.delete("A", FREE)
        assert world.entry(FREE).detaching
        assert world.watch()["missing"] == 0

    def test_moved_away_from(self, world: World) -> None:
        world.create("A", FREE)
        assert world.update("A", FREE, PRO).outcome == "MOVED"
        assert world.entry(FREE).away
        assert world.watch()["missing"] == 0

    def test_left_by_an_update(self, world: World) -> None:
        """Its Delete is to come, or CloudFormation retained it; no template declares it any more."""
        world.create("A", FREE)
        world.update("A", FREE, GOLD)
        world.by_hand(FREE, attached=False)
        assert world.watch()["missing"] == 0

    def test_left_by_an_update_whose_delete_failed(self, world: World) -> None:
        """The operator detaches it by hand, as the failed Delete's Reason asks; nobody counts on it."""
        world.create("A", FREE)
        world.update("A", FREE, GOLD)
        world.at("delete_usage_plan_key", *[fails(DENIED)] * 9)
        assert not world.delete("A", FREE).success
        world.by_hand(FREE, attached=False)
        assert world.watch(repairs=True)["missing"] == 0
        assert not world.sent

    def test_never_answered_success(self, world: World) -> None:
        world.at(CREATE, *[fails(LOST)] * 2, *[fails(DENIED)] * 9)
        assert not world.create("A", FREE).success
        assert world.holders(FREE), "nobody knows whether it was attached"
        assert world.watch()["missing"] == 0

    def test_detached_while_the_plans_are_looked_into(self, world: World) -> None:
        """The watch reports it neither as missing nor as foreign."""
        world.create("A", FREE)
        world.create("B", "bob:gold")
        world.clock.now += RECENT + 60

        def both() -> None:
            world.delete("A", FREE)
            world.delete("B", "bob:gold")

        world.clock.meanwhile = [
            lambda: None,
            both,
        ]  # The watch looks into one plan before this, and into one after it.
        summary = world.watch_now()
        assert (summary["missing"], summary["unheld"], world.attached) == (0, 0, set())

    def test_attached_while_the_plans_are_looked_into(self, world: World) -> None:
        """The watch does not report it as foreign."""
        world.create("A", FREE)
        world.clock.now += RECENT + 60
        world.clock.meanwhile = [lambda: world.create("B", "bob:free")]
        assert world.watch_now()["unheld"] == 0
        assert world.attached == {FREE, "bob:free"}

    @pytest.mark.parametrize("belief", Belief)
    def test_a_resource_counts_on_an_association_that_cloudformation_believes_in(
        self, belief: Belief
    ) -> None:
        record = ResourceRecord({pair(FREE): Hold("r", belief)})
        assert rules.counts_on(record, pair(FREE)) is (belief in (Belief.GIVEN, Belief.KNOWN))
        assert not rules.counts_on(record, pair(GOLD))


class TestUnheld:
    """A plan that the ledger knows has a key that nobody holds."""

    def test_a_line_each(self, world: World, log: pytest.LogCaptureFixture) -> None:
        world.create("A", FREE)
        world.by_hand("bob:free")
        world.by_hand("bob:gold")
        assert world.watch()["unheld"] == 1
        assert lines(log, "Held by nobody") == ["Held by nobody: bob in usage plan free"]
        assert world.attached == {FREE, "bob:free", "bob:gold"}

    def test_an_id_that_may_be_a_value_is_not_shown(
        self, world: World, log: pytest.LogCaptureFixture
    ) -> None:
        """A key of GenerateDistinctId: false has its value for its id."""
        world.create("A", FREE)
        for value in ("s" * 20, "t" * 20):
            world.api.keys[value] = Key("old", value)
            world.by_hand(f"{value}:free")
        assert world.watch()["unheld"] == 2
        assert "sss" not in log.text
        assert len({line for line in lines(log, "Held by nobody") if "an id of 20 characters" in line}) == 2


class TestGone:
    """Stacks that do not exist any more, and still hold."""

    @pytest.mark.parametrize("said", ["DELETE_COMPLETE", DELETED], ids=["deleted", "forgotten"])
    def test_named_with_the_command_and_not_let_go_of(
        self, world: World, log: pytest.LogCaptureFixture, said: str | ClientError
    ) -> None:
        world.create("A", FREE)
        world.create("B", "bob:free")
        world.create("C", GOLD, stack="two")
        world.stacks[holder("A").stack_id] = said
        assert world.watch()["gone"] == 2
        first, second = lines(log, "Gone")
        event = {"LetGo": {"StackId": holder("A").stack_id, "LogicalResourceId": "A"}}
        assert "alice:free" in first
        assert (
            "--function-name usage-plan-key --cli-binary-format raw-in-base64-out"
            f" --payload '{json.dumps(event)}'" in first
        )
        assert "bob:free" in second
        assert sorted(world.asked_about) == [holder("A").stack_id, holder("C", "two").stack_id], "once each"
        assert world.holders(FREE) == {holder("A")}

    def test_a_key_that_only_gone_stacks_count_on_is_no_drift(
        self, world: World, log: pytest.LogCaptureFixture
    ) -> None:
        world.missing_key()
        world.create("B", FREE, ADOPT, stack="two")
        world.by_hand(FREE, attached=False)
        world.stacks[holder("A").stack_id] = "DELETE_COMPLETE"
        assert world.watch(repairs=True)["missing"] == 1
        assert "held by B of stack two:" in lines(log, "Missing")[0]
        assert json.loads(world.sent[0]["MessageBody"])["event"]["LogicalResourceId"] == "B"
        world.stacks[holder("B", "two").stack_id] = "DELETE_COMPLETE"
        assert world.watch(repairs=True)["missing"] == 0
        assert len(world.sent) == 1

    def test_another_accounts_stack_is_not_asked_about(self, world: World) -> None:
        """This account's CloudFormation would say that it does not exist."""
        world.create("A", FREE)
        world.invoked_function_arn = "arn:aws:lambda:eu-west-1:2:function:usage-plan-key-watch"
        summary = world.watch()
        assert (summary["gone"], summary["stacks_not_asked"], world.asked_about) == (0, 1, [])

    def test_refused_it_asks_no_more_and_says_so(self, world: World, log: pytest.LogCaptureFixture) -> None:
        world.missing_key()
        world.create("B", GOLD, stack="two")
        world.stacks = dict.fromkeys((holder("A").stack_id, holder("B", "two").stack_id), REFUSED)
        with pytest.raises(IncompleteError, match=r'"missing": 1'):
            world.watch()
        assert len(world.asked_about) == 1
        assert "cloudformation:DescribeStacks" in lines(log, "Asked about no more stacks")[0]

    @pytest.mark.parametrize("why", ["refused", "another account's"])
    def test_a_stack_that_it_could_not_ask_about_gets_no_repair(
        self, world: World, log: pytest.LogCaptureFixture, why: str
    ) -> None:
        """The stack may be gone, and its key removed for good."""
        world.missing_key()
        if why == "refused":
            world.stacks = {holder("A").stack_id: REFUSED}
            with pytest.raises(IncompleteError):
                world.watch(repairs=True)
        else:
            world.invoked_function_arn = "arn:aws:lambda:eu-west-1:2:function:usage-plan-key-watch"
            world.watch(repairs=True)
        assert world.sent == []
        assert "No repair touches it: CloudFormation has not said whether its stack is there" in log.text

    def test_out_of_time_the_stacks_of_missing_keys_were_asked_about(self, world: World) -> None:
        """That is no failure: the next run draws others."""
        many(world, keys=3000, plans=1)
        for number in (7, 77, 177, 277):
            world.api.attached.remove((f"k{number}0", "p0"))
            world.stacks[holder(f"R{number}0", f"s{number}").stack_id] = "DELETE_COMPLETE"
        world.left = 120
        summary = world.watch()
        assert (summary["missing"], summary["gone"]) == (0, 40)
        assert 200 < summary["stacks_not_asked"] < 300
        assert summary["seconds"] <= 60

    def test_slowly(self, world: World) -> None:
        for number in range(9):
            world.create("A", FREE, ADOPT, stack=f"s{number}")
        assert world.watch()["seconds"] >= 4
        assert len(world.asked_about) == 9


class TestAsked:
    """An operator's event has its fields."""

    def test_only_one_plan(self, world: World, capsys: pytest.CaptureFixture[str]) -> None:
        """The alarm is about all plans, so one plan writes no metric."""
        world.missing_key()
        world.create("B", "bob:gold")
        summary = world.watch({"UsagePlanId": "gold"})
        assert (summary["plans"], summary["associations"], summary["missing"]) == (1, 1, 0)
        assert world.watch({"UsagePlanId": "free"})["missing"] == 1
        assert drift(capsys) == []

    def test_repairs_are_the_parameters_unless_it_says_so(self, world: World) -> None:
        world.missing_key()
        assert world.watch({"Repair": False}, repairs=True)["repairs"] == 0
        assert world.watch({"Repair": True}, repairs=True)["repairs"] == 1
        assert world.watch(repairs=True)["repairs"] == 1
        assert world.watch({})["repairs"] == 0
        with pytest.raises(EventError, match="WatchRepairs=true"):
            world.watch({"Repair": True})

    @pytest.mark.parametrize(
        "event", [{"repair": True}, {"Repair": "yes"}, {"UsagePlanId": "../x"}, {"UsagePlanId": 7}]
    )
    def test_anything_else_is_refused(self, world: World, event: dict[str, Any]) -> None:
        with pytest.raises(EventError, match="both optional"):
            world.watch(event, repairs=True)
        assert not world.called


class TestSlowly:
    """The watch makes one of the account's ten calls a second, and covers a full account in one run."""

    @pytest.fixture(autouse=True)
    def _timed(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let each call take 300 ms, and record it."""
        list_ = world.api.get_usage_plan_keys

        def timed(**arguments: Any) -> Any:
            world.called.append(world.clock.now)
            world.clock.now += 0.3
            return list_(**arguments)

        monkeypatch.setattr(world.api, LIST, timed)

    def gaps(self, world: World) -> set[bool]:
        return {later - earlier >= 1 for earlier, later in itertools.pairwise(world.called)}

    def test_10_000_associations_in_300_plans_fit_into_one_run(self, world: World) -> None:
        """A region's default limits of plans and keys, in a thousand stacks of ten resources."""
        many(world, keys=10_000, plans=300)
        world.api.attached.remove(("k77", "p77"))
        summary = world.watch()
        assert (summary["plans"], summary["associations"], summary["missing"]) == (300, 10_000, 1)
        assert summary["stacks_not_asked"] == 0
        assert summary["seconds"] < 900 - 60
        assert len(world.called) == 300
        assert self.gaps(world) == {True}

    def test_a_large_plan_is_read_500_a_page(self, world: World) -> None:
        many(world, keys=10_000, plans=1)
        assert world.watch()["missing"] == 0
        assert len(world.called) == 20
        assert self.gaps(world) == {True}

    def test_a_retried_call_keeps_the_pace(self, world: World) -> None:
        many(world, keys=50, plans=5)
        world.at(LIST, fails(THROTTLED), fails(DOWN), fails(BUSY))
        pauses = []
        world.tick = lambda: pauses.append(world.clock.now)
        assert world.watch()["missing"] == 0
        calls = pauses[::2]
        assert all(later - earlier >= 1 for earlier, later in itertools.pairwise(calls))

    def test_the_accounts_bucket_never_runs_dry(self, world: World) -> None:
        many(world, keys=300, plans=300)
        world.api.bucket = Bucket(world.clock.time, rate=1, burst=1)
        assert world.watch()["missing"] == 0
        assert len(world.called) == 300

    def test_out_of_time_it_reports_its_findings_so_far_and_fails(
        self, world: World, capsys: pytest.CaptureFixture[str], log: pytest.LogCaptureFixture
    ) -> None:
        """It does not say then that nothing is missing, so the alarm stays as it is."""
        many(world, keys=300, plans=300)
        world.left = 200
        with pytest.raises(IncompleteError, match=r'"plans": 12'):
            world.watch()
        assert "time is nearly up" in lines(log, "Not looked at")[0]
        assert drift(capsys) == []
        world.api.attached.clear()
        with pytest.raises(IncompleteError):
            world.watch()
        (missing,) = drift(capsys)
        assert missing > 100

    def test_a_plan_that_cannot_be_seen_costs_the_others_nothing(
        self, world: World, log: pytest.LogCaptureFixture
    ) -> None:
        many(world, keys=10, plans=5)
        world.at(LIST, fails(DENIED))
        world.api.attached.clear()
        with pytest.raises(IncompleteError, match=r'"plans": 4.*"missing": 8.*"not_looked_at": 1'):
            world.watch()
        (line,) = lines(log, "Not looked at")
        assert "apigateway:GET" in line
        assert "/usageplans/p" in line

    def test_a_plan_that_is_throttled_for_long_does_not_take_all_the_time(self, world: World) -> None:
        many(world, keys=10, plans=5)

        def throttled(call: Callable[[], Any]) -> Any:
            if world.listed == "p3":
                raise THROTTLED
            return call()

        world.at(LIST, *[throttled] * 99)
        with pytest.raises(IncompleteError, match=r'"plans": 4.*"not_looked_at": 1'):
            world.watch()

    def test_a_page_that_cannot_be_read_is_named_and_the_rest_is_reported(
        self, world: World, log: pytest.LogCaptureFixture
    ) -> None:
        world.missing_key()
        world.db.items["association#bob:free"] = {"pk": {"S": "association#bob:free"}, "format": {"N": "1"}}
        with pytest.raises(IncompleteError, match=r'"missing": 1.*"not_looked_at": 1'):
            world.watch()
        assert "association#bob:free" in lines(log, "Not looked at: page")[0]


def many(world: World, *, keys: int, plans: int) -> None:
    """Attach so many keys, each to one of so many plans, in stacks of ten resources."""
    at, write = int(world.clock.now), TypeSerializer().serialize
    for number in range(keys):
        key, plan = f"k{number}", f"p{number % plans}"
        one, held = holder(f"R{number}", f"s{number // 10}"), Association(key, plan)
        world.api.plans.setdefault(plan, Plan(plan))
        world.api.keys[key] = Key(key, f"value-of-{key}")
        world.api.attached.add((key, plan))
        answered = Note("r", at, answer=Response(success=True, id=held.id, at=at))
        record = ResourceRecord({held: Hold("r", Belief.GIVEN)}, (answered,))
        entry = AssociationRecord(frozenset({one}), Origin.OURS)
        for page in (_record_page(one, record, at), _entry_page(held, entry, at)):
            world.db.items[page["pk"]] = {name: write(value) for name, value in (page | VERSION).items()}


class TestSecrets:
    """API Gateway's answers hold the keys' values; some ids are values too."""

    @pytest.fixture
    def everything(self) -> Iterator[StringIO]:
        """Collect every logger's records at DEBUG, with each error's traceback and its local variables."""
        seen = StringIO()
        root = logging.getLogger()
        stream = logging.StreamHandler(seen)
        stream.setFormatter(_Everything())
        level = root.level
        root.addHandler(stream)
        root.setLevel(logging.DEBUG)
        yield seen
        root.setLevel(level)
        root.removeHandler(stream)

    @pytest.mark.parametrize(
        "reply",
        [
            {"items": [{"id": "alice", "value": "value-of-alice"}, {"value": "value-of-alice"}]},
            {"items": ["value-of-alice"]},
            {"items": "value-of-alice"},
            ["value-of-alice"],
        ],
        ids=["an item without an id", "no item", "no list", "no reply"],
    )
    def test_none_is_in_any_line_metric_message_error_or_frame(
        self, world: World, everything: StringIO, capsys: pytest.CaptureFixture[str], reply: Any
    ) -> None:
        old = "value-of-old-key-is-its-id"
        world.api.keys[old] = Key("old", old)
        world.missing_key()
        world.by_hand(f"{old}:free")
        world.by_hand("bob:free")
        shown = json.dumps(world.watch(repairs=True))
        world.at(LIST, *[lambda _: reply] * 999)
        with pytest.raises(IncompleteError) as raised:
            world.watch(repairs=True)
        shown += unfolded(raised.value)
        world.at(LIST, *[fails(DENIED)] * 2)
        with pytest.raises(IncompleteError) as raised:
            world.watch(repairs=True)
        shown += unfolded(raised.value) + json.dumps(world.sent)
        world.at(LIST, *[lambda _: reply] * 999)
        with pytest.raises(FailedError) as refused:
            ApiGateway(world).keys_in("free", within(60, world.clock), lambda: None)  # type: ignore[arg-type]  # a fake
        shown += unfolded(refused.value) + everything.getvalue() + "".join(capsys.readouterr())
        assert "Missing" in shown
        assert "bob" in shown
        assert "value-of" not in shown

    @pytest.mark.parametrize("kind", ["text/html", "application/json"])
    def test_none_is_shown_where_botocore_cannot_parse_it(self, everything: StringIO, kind: str) -> None:
        """Let botocore read a proxy's reply and a cut one; app.py silences botocore's log in this way."""
        client = boto3.client("apigateway", "eu-central-1", aws_access_key_id="x", aws_secret_access_key="y")
        client.meta.events.register("before-send", lambda **_: _cut(kind))  # type: ignore[arg-type]  # a handler may give a reply
        shown = ""
        with hushed():
            try:
                assert ApiGateway(client).keys_in("free", within(25, World().clock), lambda: None) == set()
            except FailedError as error:
                shown = unfolded(error)
        assert ("none of API Gateway's" in shown) is (kind == "text/html")
        assert "value-of" not in shown + everything.getvalue()


@contextmanager
def hushed() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("boto3", "botocore", "urllib3")]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    yield
    for logger in loggers:
        logger.setLevel(logging.NOTSET)


def _cut(kind: str) -> AWSResponse:
    reply = AWSResponse("https://apigateway", 200, HTTPHeaders.from_dict({"content-type": kind}), None)
    vars(reply)["_content"] = b'{"item": [{"id": ["value-of-alice"'
    return reply


class _Everything(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        return f"{record.getMessage()} {vars(record)} {unfolded(error) if error else ''}"


def unfolded(error: BaseException) -> str:
    """Show an error, its causes, and the local variables of the project's frames except this test's."""
    found: traceback.TracebackException | None = traceback.TracebackException.from_exception(
        error, capture_locals=True
    )
    text = ""
    while found is not None:
        frames = [frame for frame in found.stack if "/tests/" not in frame.filename]
        text += f"{found} " + " ".join(str(frame.locals) for frame in frames)
        found = found.__cause__ or found.__context__
    return text


class TestAskingForRepairs:
    """The queue attaches missing keys again, in order with their stack's requests."""

    def test_it_names_holder_and_association_and_nobody_to_answer(self, world: World) -> None:
        world.missing_key()
        assert world.watch(repairs=True)["repairs"] == 1
        (message,) = world.sent
        body = json.loads(message["MessageBody"])
        assert body["event"] == {
            "RequestType": "Repair",
            "RequestId": f"{world.aws_request_id}/{FREE}",
            "StackId": holder("A").stack_id,
            "LogicalResourceId": "A",
            "PhysicalResourceId": FREE,
        }
        assert message["MessageGroupId"] == hashlib.sha256(holder("A").stack_id.encode()).hexdigest()
        assert world.batch() == []
        assert world.attached == {FREE}
        assert not world.answers
        assert world.watch()["missing"] == 0

    def test_no_more_at_a_time_than_the_queue_takes_without_an_alarm(
        self, world: World, log: pytest.LogCaptureFixture
    ) -> None:
        many(world, keys=MOST_REPAIRS + 2, plans=1)
        world.api.attached.clear()
        summary = world.watch(repairs=True)
        assert (summary["missing"], summary["repairs"], len(world.sent)) == (
            MOST_REPAIRS + 2,
            MOST_REPAIRS,
            MOST_REPAIRS,
        )
        assert len(lines(log, "A later run")) == 2

    @pytest.mark.parametrize("error", [REFUSED, LOST], ids=["refused", "out of reach"])
    def test_a_queue_that_does_not_take_it_is_reported(
        self, world: World, log: pytest.LogCaptureFixture, error: Exception
    ) -> None:
        world.missing_key()
        world.sending_fails = [error] * 999
        with pytest.raises(IncompleteError, match=r'"missing": 1.*"repairs": 0'):
            world.watch(repairs=True)
        assert lines(log, "Queued no more repairs")

    def test_two_runs_at_a_time_do_no_harm(self, world: World) -> None:
        world.missing_key()
        world.watch(repairs=True)
        world.aws_request_id = "another"
        world.watch_now(repairs=True)
        assert len({message["MessageDeduplicationId"] for message in world.sent}) == 2
        assert world.batch() == []
        assert world.calls()["CreateUsagePlanKey"] == 2, "one for the stack, and one repair"
        assert world.attached == {FREE}

    @pytest.mark.parametrize(
        ("name", "repaired"), [("A", False), ("B", True)], ids=["its own", "another resource's"]
    )
    def test_a_request_behind_it_is_served_in_the_same_batch(
        self, world: World, log: pytest.LogCaptureFixture, name: str, repaired: bool
    ) -> None:
        """A Delete of its own resource has made it void; another one's waits until it is over."""
        world.create("B", GOLD)
        world.missing_key()
        world.watch(repairs=True)
        event = {
            "RequestType": "Delete",
            "RequestId": "delete",
            "StackId": holder(name).stack_id,
            "LogicalResourceId": name,
            "PhysicalResourceId": FREE if name == "A" else GOLD,
            "ResponseURL": f"https://x/?Expires={int(world.clock.now) + 7200}",
        }
        assert world.function().on_event(event, world) is None
        assert world.sent[0]["MessageGroupId"] == world.sent[1]["MessageGroupId"]
        world.at(CREATE, fails(BUSY))
        assert world.batch() == []
        assert [answer["Status"] for answer in world.answers] == ["SUCCESS"]
        assert world.attached == ({FREE} if repaired else {GOLD})
        assert bool(lines(log, "Repaired")) is repaired

    def test_it_waits_ten_minutes_at_most(self, world: World, log: pytest.LogCaptureFixture) -> None:
        world.missing_key()
        world.watch(repairs=True)
        world.clock.now += REPAIR_TIME
        assert world.batch() == []
        assert "over before its turn came" in lines(log, "Not repaired")[0]
        assert not world.attached

    def test_a_busy_api_gateway_is_waited_for_in_its_place(self, world: World) -> None:
        world.missing_key()
        world.watch(repairs=True)
        world.at(CREATE, *[fails(BUSY)] * 999)
        ends, turns = world.clock.now + REPAIR_TIME, 0
        while world.batch(receives=turns + 1):
            turns += 1
            assert world.clock.now < ends
            world.clock.now += 20
        assert 20 < turns < 40
        assert not world.attached
        assert not begun(world)
        assert world.watch()["missing"] == 1

    def test_no_invocation_by_cloudformation_takes_one(self, world: World) -> None:
        world.missing_key()
        event = repair_event("r", holder("A"), pair(FREE))
        with pytest.raises(EventError, match="RequestType"):
            world.function().on_event(event, world)
        with pytest.raises(EventError, match="RequestType"):
            parse(event)

    def test_without_a_ledger_there_are_none(self, world: World) -> None:
        """The function attaches no key on the event's word."""
        world.sent = [
            {
                "MessageBody": json.dumps({"event": repair_event("r", holder("A"), pair(FREE))}),
                "MessageGroupId": "g",
            }
        ]
        body = {"messageId": "1", "receiptHandle": "1", "body": world.sent[0]["MessageBody"]}
        function = replace(world.function(), table=None)
        assert function.on_batch([body], world) == {"batchItemFailures": [{"itemIdentifier": "1"}]}
        assert not world.attached


def failed_unclear(world: World) -> None:
    world.at(CREATE, *[fails(LOST)] * 2, *[fails(DENIED)] * 9)
    assert not world.create("A", FREE).success
    assert world.holders(FREE)


def moved_and_lost(world: World) -> None:
    world.create("A", FREE, digest="old")
    world.update("A", FREE, PRO, digest="new")
    alice = world.api.keys.pop("alice")
    world.api.attached.clear()
    assert world.update("A", PRO, FREE, digest="old").outcome == "LOST"
    world.api.keys["alice"] = alice


def adopted(world: World) -> None:
    world.by_hand(FREE)
    world.create("A", FREE, ADOPT)


def marked(world: World) -> None:
    """Answer a Delete FAILED while nobody knows whether it has detached."""
    world.create("A", FREE)
    world.at("delete_usage_plan_key", fails(LOST), *[fails(DENIED)] * 9)
    assert not world.delete("A", FREE).success
    assert world.entry(FREE).detaching


def pending(world: World, request: Callable[[], Any]) -> None:
    world.create("A", FREE)
    world.arrives(request())


class TestServingARepair:
    """A repair takes its steps while nothing speaks against it."""

    def test_attached_again_and_ours(self, world: World) -> None:
        world.missing_key()
        before = world.record()
        world.repair()
        assert world.attached == {FREE}
        assert world.entry(FREE) == OURS
        assert world.record() == before, "it fences nothing, and no answer is written down"
        assert world.delete("A", FREE).success
        assert not world.attached

    def test_taken_it_becomes_ours(self, world: World) -> None:
        world.by_hand(FREE)
        world.create("A", FREE, TAKE)
        assert world.update("A", FREE, FREE, TAKE).outcome == "TAKEN"
        world.by_hand(FREE, attached=False)
        world.repair()
        assert world.attached == {FREE}
        assert world.entry(FREE).origin is Origin.OURS

    def test_let_go_of_meanwhile_it_says_that_it_is_to_be_detached(
        self, world: World, log: pytest.LogCaptureFixture
    ) -> None:
        world.missing_key()

        def let_go() -> None:
            change = partial(rules.abandon, holder=holder("A"))
            world.table.change(holder("A"), [pair(FREE)], change, within(60, world.clock))

        world.at(CREATE, preceded_by(let_go))
        world.repair()
        assert lines(log, "Attached") == [
            "Attached, and the resource does not hold it any more: detach alice:free by hand"
        ]

    def test_one_that_has_an_answered_requests_id_is_dropped(
        self, world: World, log: pytest.LogCaptureFixture
    ) -> None:
        world.create("A", FREE)
        world.by_hand(FREE, attached=False)
        (note,) = world.record().notes
        world.repair(a_repair(note.id))
        assert lines(log, "Not repaired") == [
            "Not repaired: alice:free for A of stack one: its RequestId is one that the function has answered"
        ]
        assert not world.attached

    def test_the_log_says_that_it_is_repaired(self, world: World, log: pytest.LogCaptureFixture) -> None:
        world.missing_key()
        world.repair()
        assert "ERROR" not in {record.levelname for record in log.records}
        assert lines(log, "Repaired") == ["Repaired: alice:free for A of stack one"]

    def test_a_key_that_is_there_again_is_not_touched(
        self, world: World, log: pytest.LogCaptureFixture
    ) -> None:
        world.create("A", FREE)
        before = world.entry(FREE)
        world.calls()
        world.repair()
        assert "ERROR" not in {record.levelname for record in log.records}
        assert lines(log, "Not repaired") == [
            "Not repaired: alice:free for A of stack one: its key is there again"
        ]
        assert world.calls() == {"GetUsagePlanKey": 1}
        assert world.entry(FREE) == before

    def test_put_back_by_hand_just_now_it_keeps_its_marks(self, world: World) -> None:
        world.by_hand(FREE)
        world.create("A", FREE, TAKE)
        world.update("A", FREE, FREE, TAKE)
        world.by_hand(FREE, attached=False)
        before = world.entry(FREE)
        world.at(CREATE, preceded_by(lambda: world.by_hand(FREE)))
        world.repair()
        assert (world.attached, world.entry(FREE)) == ({FREE}, before)

    ROWS: ClassVar[dict[str, tuple[Callable[[World], object], str]]] = {
        "not held": (lambda world: None, NOT_HELD),
        "let go of": (lambda world: (world.create("A", FREE), world.delete("A", FREE)), NOT_HELD),
        "held by another resource only": (lambda world: world.create("B", FREE), NOT_HELD),
        "never attached": (failed_unclear, NOT_HELD),
        "left by an update": (
            lambda world: (world.create("A", FREE), world.update("A", FREE, GOLD)),
            NOT_HELD,
        ),
        "moved away from": (moved_and_lost, "it was moved away from"),
        "there before us": (
            adopted,
            "it was there before the stack, so somebody else may have removed it for good",
        ),
        "being detached": (marked, NOT_HELD),
        "an Update pending": (
            lambda world: pending(world, lambda: world.an_update("A", FREE, GOLD)),
            PENDING,
        ),
        "the same Update pending": (
            lambda world: pending(world, lambda: world.an_update("A", FREE, FREE)),
            PENDING,
        ),
        "a Delete pending": (lambda world: pending(world, lambda: world.a_delete("A", FREE)), PENDING),
        "a Create pending": (lambda world: pending(world, lambda: world.a_create("A", FREE)), PENDING),
    }

    @pytest.mark.parametrize(("before", "why"), ROWS.values(), ids=ROWS)
    def test_refused(
        self, world: World, log: pytest.LogCaptureFixture, before: Callable[[World], object], why: str
    ) -> None:
        before(world)
        world.api.attached.discard(("alice", "free"))
        pages, attached = dict(world.db.items), set(world.attached)
        world.calls()
        log.clear()
        world.repair()
        assert lines(log, "Not repaired") == [f"Not repaired: alice:free for A of stack one: {why}"]
        assert world.calls() == {}
        assert (world.db.items, world.attached) == (pages, attached)

    @pytest.mark.parametrize("missing", ["alice", "free"])
    def test_a_key_or_a_plan_that_is_gone_is_named(
        self, world: World, log: pytest.LogCaptureFixture, missing: str
    ) -> None:
        world.missing_key()
        before = world.entry(FREE)
        world.api.keys.pop(missing, None)
        world.api.plans.pop(missing, None)
        world.repair()
        assert missing in lines(log, "Not repaired")[0]
        assert world.entry(FREE) == before

    def test_another_plan_for_the_stage_does_not_make_way(
        self, world: World, log: pytest.LogCaptureFixture
    ) -> None:
        world.missing_key()
        before = world.entry(FREE)
        world.by_hand(PRO)
        world.repair()
        assert "blocks it" in lines(log, "Not repaired")[0]
        assert (world.attached, world.entry(FREE)) == ({PRO}, before)

    def test_refused_for_good_it_leaves_the_marks_as_they_were(self, world: World) -> None:
        world.missing_key()
        before = world.entry(FREE)
        world.at(CREATE, fails(DENIED))
        world.repair()
        assert world.entry(FREE) == before

    def test_nobody_knowing_whether_it_is_attached_it_is_ours(self, world: World) -> None:
        """The next repair, Update or Delete finds it."""
        world.missing_key()
        world.at(CREATE, served_then(LOST), fails(DENIED))
        world.at(GET, lambda call: call(), *[fails(DENIED)] * 9)
        world.repair()
        assert world.entry(FREE).attaching
        assert world.delete("A", FREE).success
        assert not world.attached

    def test_an_internal_error_costs_its_stack_nothing(
        self, world: World, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.missing_key()
        monkeypatch.setattr("usage_plan_key.rules.not_repairable", lambda *_: 1 / 0)
        world.repair()
        assert lines(log, "Not repaired") == [
            "Not repaired: alice:free for A of stack one: an internal error, please report it"
        ]

    def test_an_outage_of_the_ledger_costs_its_stack_nothing(self, world: World) -> None:
        world.missing_key()
        world.at("transact_write_items", fails(REFUSED))
        world.repair()
        assert not world.attached
        world.repair()
        assert world.attached == {FREE}

    def test_out_of_its_turn_it_goes_back_in_place_unmarked(self, world: World) -> None:
        world.missing_key()
        world.at(CREATE, *[fails(BUSY)] * 99)
        deadline = within(600, world.clock, patience=0.0, dies=world.clock.now + 90)
        repair = world.a_repair()
        with pytest.raises(TurnOverError):
            Service(repair, world.table, ApiGateway(world), deadline, redelivered=True).repair(repair)  # type: ignore[arg-type]  # a fake
        assert not begun(world)
        assert world.entry(FREE) == OURS


class TestDeaths:
    """The function dies before and after every call and write of a repair, and the repair comes again."""

    @pytest.mark.parametrize("how", ["held", "taken"])
    def test_the_same_repair_again_comes_out_right(self, how: str) -> None:
        """A later Delete detaches the key after any death."""
        deaths = 0
        for at in itertools.count(1):
            world = World()
            if how == "taken":
                world.by_hand(FREE)
                world.create("A", FREE, TAKE)
                world.update("A", FREE, FREE, TAKE)
                world.by_hand(FREE, attached=False)
            else:
                world.missing_key()
            repair, died = world.a_repair(), False
            world.tick = countdown(at)
            try:
                world.repair(repair)
            except Death:
                died = True
            world.tick = lambda: None
            if not died:
                break
            deaths += 1
            world.repair(repair, redelivered=True)
            assert world.attached == {FREE}, at
            assert world.entry(FREE) == OURS, at
            assert not begun(world)
            assert world.delete("A", FREE).success
            assert not world.attached, at
        assert deaths == 7, "at the look, and before and after an attaching and two writes"

    def test_a_request_between_the_death_and_the_repair_wins(self) -> None:
        """Each kind of request, after each death, while the repair comes again behind it."""
        for at in itertools.count(1):
            for kind in ("Update", "Move", "Delete"):
                world = World()
                world.missing_key()
                repair = world.a_repair()
                world.tick = countdown(at)
                try:
                    world.repair(repair)
                except Death:
                    pass
                else:
                    return
                finally:
                    world.tick = lambda: None
                if kind == "Delete":
                    assert world.delete("A", FREE).success
                else:
                    assert world.update("A", FREE, PRO if kind == "Move" else FREE).success
                expected = {"Update": {FREE}, "Move": {PRO}, "Delete": set()}[kind]
                assert world.attached == expected, (at, kind)
                world.repair(repair, redelivered=True)
                assert world.attached == expected, (at, kind)

    def test_after_three_deaths_it_is_dropped(self, world: World, log: pytest.LogCaptureFixture) -> None:
        world.missing_key()
        repair = world.a_repair()
        world.at(GET, *[fails(Death())] * 9)
        for _ in range(MOST_DEATHS):
            with pytest.raises(Death):
                world.repair(repair, redelivered=True)
        world.repair(repair, redelivered=True)
        assert f"{MOST_DEATHS} invocations died at this request" in lines(log, "Not repaired")[0]
        assert not begun(world)
        world.at(GET)
        world.repair(redelivered=True)
        assert world.attached == {FREE}, "another repair is another matter"


def countdown(at: int) -> Callable[[], None]:
    left = iter(range(at - 1, -1, -1))

    def tick() -> None:
        if next(left, 1) == 0:
            raise Death

    return tick


class TestRaces:
    """A request arrives at any moment of a repair; the queue serves CloudFormation's after it, in order."""

    KINDS: ClassVar[dict[str, Callable[[World], Any]]] = {
        "Delete": lambda world: world.a_delete("A", FREE),
        "Update": lambda world: world.an_update("A", FREE, FREE),
        "move": lambda world: world.an_update("A", FREE, PRO),
        "another plan": lambda world: world.an_update("A", FREE, GOLD),
    }
    AFTER: ClassVar[dict[str, set[str]]] = {
        "Delete": set(),
        "Update": {FREE},
        "move": {PRO},
        "another plan": {FREE, GOLD},
    }

    @pytest.mark.parametrize("kind", KINDS)
    def test_it_gives_way_and_the_request_comes_out_right(self, kind: str) -> None:
        arrivals = 0
        for at in itertools.count(1):
            world = World()
            world.missing_key()
            request = self.KINDS[kind](world)
            world.tick = self.once(at, partial(world.arrives, request), world)
            world.repair()
            if world.record().newest != world.record().note(request.id):
                break
            arrivals += 1
            assert world.service(request).serve().success, (at, kind)
            expected = self.AFTER[kind] if kind != "another plan" else world.attached | {GOLD}
            assert world.attached == expected, (at, kind)
            if kind == "Delete":
                assert not world.holders(FREE)
        assert arrivals == 7

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_rollback_comes_out_right(self, kind: str) -> None:
        """A rollback takes back the request that the function served after the repair."""
        if kind == "Delete":
            return
        for at in (1, 3, 5, 7):
            world = World()
            world.missing_key()
            request = self.KINDS[kind](world)
            world.tick = self.once(at, partial(world.arrives, request), world)
            world.repair()
            answer = world.service(request).serve()
            back = world.update("A", answer.id, FREE)
            assert back.success, (at, kind)
            if answer.id != FREE:
                assert world.delete("A", answer.id).success
            assert world.attached == {FREE}, (at, kind)

    def test_one_that_has_looked_attaches_nothing_any_more(
        self, world: World, log: pytest.LogCaptureFixture
    ) -> None:
        world.missing_key()
        update = world.an_update("A", FREE, GOLD)
        world.at(GET, preceded_by(lambda: world.arrives(update)))
        world.calls()
        world.repair()
        assert "pending" in lines(log, "Not repaired")[0]
        assert world.calls() == {"GetUsagePlanKey": 1}

    @staticmethod
    def once(at: int, action: Callable[[], object], world: World) -> Callable[[], None]:
        left = iter(range(at - 1, -1, -1))

        def tick() -> None:
            if next(left, 1) == 0:
                world.tick = lambda: None
                action()

        return tick


class TestScan:
    """The table's pages, as DynamoDB gives them: a megabyte at a time."""

    @pytest.fixture
    def table(self) -> Iterator[tuple[Table, Any]]:
        with mock_aws():
            client = boto3.client(
                "dynamodb", "eu-central-1", aws_access_key_id="x", aws_secret_access_key="y"
            )
            client.create_table(
                TableName="ledger",
                BillingMode="PAY_PER_REQUEST",
                AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
                KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
            )
            yield Table(client, "ledger"), client

    def test_all_pages_come_back_as_they_were_written(self, table: tuple[Table, Any], world: World) -> None:
        ledger, client = table
        for number in range(30):
            one, held = (
                Holder(f"arn:aws:cloudformation:eu-west-1:1:stack/s{number}/0", "A"),
                Association(f"k{number}", "free"),
            )
            answer = Response(True, held.id, "x" * 80_000, at=1)

            def hold(
                state: Snapshot, one: Holder = one, held: Association = held, answer: Response = answer
            ) -> Snapshot:
                state = state.held(one, held, Hold("r"))
                return state.with_record(state.record._replace(notes=(Note("r", answer=answer),)))

            ledger.change(one, [held], hold, within(60, world.clock))
        scans = []
        client.meta.events.register(
            "before-call.dynamodb.Scan", lambda params, **_: scans.append(json.loads(params["body"]))
        )
        pages = ledger.pages(within(60, world.clock))
        assert len(scans) > 2, "more than one page"
        assert {scan["ConsistentRead"] for scan in scans} == {True}
        assert (len(pages.records), len(pages.entries), pages.unread) == (30, 30, [])
        assert set(pages.entries[Association("k7", "free")].holders) <= pages.records.keys()
        assert pages.records[Holder("arn:aws:cloudformation:eu-west-1:1:stack/s7/0", "A")].notes[0].answer
        assert ledger.associations(within(60, world.clock)) == pages.entries.keys()

    @pytest.mark.parametrize(
        "page",
        [
            {"pk": {"S": "holder#s#A"}, "shape": {"N": "99"}},
            {"pk": {"S": "holder#s#A"}, "version": {"S": "v"}, "holds": {"S": "?"}},
            {"pk": {"S": "holder#A"}},
            {"pk": {"S": "association#?"}},
            {"pk": {"S": "nonsense"}},
        ],
        ids=["newer", "damaged", "no holder", "no association", "nothing"],
    )
    def test_a_page_that_cannot_be_read_costs_the_others_nothing(
        self, table: tuple[Table, Any], world: World, page: dict[str, Any]
    ) -> None:
        ledger, client = table
        ledger.change(
            holder("A"),
            [pair(FREE)],
            lambda state: state.held(holder("A"), pair(FREE), Hold("r")),
            within(60, world.clock),
        )
        client.put_item(TableName="ledger", Item=page)
        pages = ledger.pages(within(60, world.clock))
        (unread,) = pages.unread
        assert unread.startswith(page["pk"]["S"])
        assert pages.entries.keys() == {pair(FREE)}

    def test_a_table_that_is_not_there_is_named(self, table: tuple[Table, Any], world: World) -> None:
        with pytest.raises(FailedError, match="Could not read the ledger other"):
            Table(table[1], "other").associations(within(60, world.clock))


class TestEntry:
    """The Lambda entry: wired as the serving function is."""

    def test_it_runs_with_the_parts_that_app_has_made(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.missing_key()
        world.left = 900
        monkeypatch.setitem(sys.modules, "usage_plan_key.app", SimpleNamespace(provider=world.wired()))
        assert handler({"UsagePlanId": "free"}, world)["plans"] == 1

    def test_without_a_ledger_it_says_so(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        wired = SimpleNamespace(**vars(world.wired()) | {"table": None})
        monkeypatch.setitem(sys.modules, "usage_plan_key.app", SimpleNamespace(provider=wired))
        with pytest.raises(EventError, match="needs a ledger"):
            handler({}, world)
