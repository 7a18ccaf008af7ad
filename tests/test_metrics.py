"""The function writes its metrics in one line for each answer, without the request's data."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from usage_plan_key import metrics
from usage_plan_key.custom_resource import CustomResource
from usage_plan_key.errors import UndeliveredError
from usage_plan_key.model import Outcome
from usage_plan_key.request import parse
from usage_plan_key.response import Sender
from usage_plan_key.retry import BEFORE_CALL

from .function import BUSY, World, received, record, throttled
from .memory import Clock, within

ROOT = Path(__file__).parents[1]
CREATE = ROOT / "events" / "create.json"
SERVICE = "usage-plan-key"


class Counted:
    """The lines that the function has written, each as its metrics and their values."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.capsys.readouterr().out.splitlines()]

    def __call__(self) -> list[dict[str, float]]:
        return [values(line) for line in self.lines()]


def values(line: dict[str, Any]) -> dict[str, float]:
    """Read a line's metrics, as CloudWatch does."""
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == "UsagePlanKey"
    assert directive["Dimensions"] == [["service"]]
    assert line["service"] == SERVICE
    names = [metric["Name"] for metric in directive["Metrics"]]
    assert {*line} == {"_aws", "service", *names}, "nothing that is no metric"
    return {name: number for name in names for number in line[name]}


@pytest.fixture
def counted(capsys: pytest.CaptureFixture[str]) -> Counted:
    return Counted(capsys)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("POWERTOOLS_SERVICE_NAME", SERVICE)
    return World()


def body(**fields: Any) -> bytes:
    return json.dumps({"Status": "SUCCESS", **fields}).encode()


class TestAnswers:
    def test_one_line_has_its_outcome_its_calls_and_how_long_it_waited(
        self, world: World, counted: Counted
    ) -> None:
        world.arrives("alice")
        world.clock.now += 7
        assert counted() == [], "intake counts nothing"
        world.serve()
        assert counted() == [{"Attached": 1, "Attempts": 1, "QueueSeconds": 7}]

    def test_each_request_of_a_batch_has_its_own(self, world: World, counted: Counted) -> None:
        world.arrives("alice")
        world.arrives("bob", stack="two")
        world.arrives("carol", "Delete", PhysicalResourceId="carol:free")
        world.serve()
        assert [{*line} & {"Attached", "Deleted"} for line in counted()] == [
            {"Attached"},
            {"Attached"},
            {"Deleted"},
        ]

    def test_a_request_that_was_never_in_the_queue_did_not_wait(self, world: World, counted: Counted) -> None:
        world.sqs.fails = [ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "SendMessage")]
        world.arrives("alice")
        assert world.answers[-1]["Status"] == "FAILED"
        assert counted() == [{"Failed": 1, "Attempts": 0}]

    def test_an_attempt_is_a_call_to_api_gateway_whatever_came_of_it(
        self, world: World, counted: Counted
    ) -> None:
        world.at_create = [BUSY]
        world.arrives("alice")
        world.serve()
        assert counted() == [{"Attached": 1, "Attempts": 2, "QueueSeconds": pytest.approx(1.5, abs=0.5)}]

    def test_the_calls_of_every_turn_are_counted_and_the_wait_ends_where_the_last_begins(
        self, world: World, counted: Counted
    ) -> None:
        world.at_create = [throttled(600)]
        world.arrives("alice")
        sent = world.records()
        assert world.batch(sent) == ["message-0"]
        assert counted() == [{"Attempts": 1, "WaitedSeconds": 0}]
        world.clock.now += 500
        assert world.batch([received(sent[0])]) == ["message-0"]
        assert counted() == [{"Attempts": 0, "WaitedSeconds": 500}], "it waits on, and the alarm hears it"
        world.clock.now += 100
        assert world.batch([received(sent[0], 3)]) == []
        assert counted() == [{"Attached": 1, "Attempts": 1, "QueueSeconds": 600}]

    def test_what_goes_back_for_want_of_the_functions_time_has_waited_too(
        self, world: World, counted: Counted
    ) -> None:
        world.arrives("alice")
        world.clock.now += 7
        world.seconds = BEFORE_CALL
        assert world.serve() == ["message-0"]
        assert counted() == [{"Attempts": 0, "WaitedSeconds": 7}]

    def test_an_answer_that_cannot_be_delivered_is_counted_too(self, world: World, counted: Counted) -> None:
        world.arrives("alice")
        world.unreachable = True
        assert world.serve() == ["message-0"]
        assert [{*line} for line in counted()] == [{"Attached", "Attempts", "QueueSeconds"}]

    def test_one_that_the_guard_gives_is_counted_once_though_the_call_returns(
        self, world: World, counted: Counted, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def answer(resource: CustomResource, event: Any, context: Any) -> None:
            world.before_create = resource._timeout  # The guard strikes during the call to API Gateway.
            real(resource, event, context)

        real = CustomResource.answer
        monkeypatch.setattr(CustomResource, "answer", answer)
        world.arrives("alice")
        world.serve()
        assert [answer["Status"] for answer in world.answers] == ["FAILED"]
        assert [{*line} for line in counted()] == [{"Failed", "Attempts", "QueueSeconds"}]

    def test_an_association_that_is_lost_is_counted(self, world: World, counted: Counted) -> None:
        """An Update brings the properties of the last success, and somebody has deleted the key since."""
        world.arrives("alice")
        world.serve()
        world.api.attached.clear()
        del world.api.keys["alice"]
        world.arrives("alice", "Update", PhysicalResourceId="alice:free")
        world.serve()
        assert world.answers[-1]["Data"]["Outcome"] == "LOST"
        assert [line.get("Lost", 0) for line in counted()] == [0, 1]

    @pytest.mark.parametrize("outcome", Outcome)
    def test_each_outcome_has_its_name(self, outcome: Outcome, world: World, counted: Counted) -> None:
        metrics.response(body(Data={"Outcome": outcome}), 2, None)
        assert counted() == [{outcome.value.title(): 1, "Attempts": 2}]

    def test_neither_an_id_nor_a_value_is_in_the_line(
        self, world: World, capsys: pytest.CaptureFixture[str]
    ) -> None:
        properties = {"KeyId": "alice", "UsagePlanId": "free", "IncludeValue": "true"}
        world.arrives("alice", ResourceProperties=properties)
        world.serve()
        assert world.answers[-1]["Data"]["Value"] == "value-of-alice"
        assert "alice" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("count", "name"),
    [
        (metrics.no_request, "NoRequest"),
        (metrics.answer_refused, "AnswerRefused"),
        (metrics.answer_undelivered, "AnswerUndelivered"),
    ],
)
@pytest.mark.usefixtures("world")
def test_each_kind_of_trouble_is_counted_by_name(
    count: Callable[[], None], name: str, counted: Counted
) -> None:
    count()
    assert counted() == [{name: 1}]


@pytest.mark.usefixtures("world")
def test_an_answer_out_of_time_is_undelivered_and_not_refused(counted: Counted) -> None:
    with pytest.raises(UndeliveredError):
        Sender().deliver(parse(json.loads(CREATE.read_text())), within(0, Clock()), body())
    assert counted() == [{"AnswerUndelivered": 1}]


def test_the_log_has_the_same_service() -> None:
    code = "import logging, usage_plan_key.app; logging.getLogger('usage_plan_key.service').error('x')"
    environment = {"AWS_DEFAULT_REGION": "us-east-1", "POWERTOOLS_SERVICE_NAME": SERVICE}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "handler",
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout)["service"] == SERVICE


@pytest.mark.usefixtures("world")
def test_seconds_are_seconds_and_the_rest_are_counts(counted: Counted) -> None:
    metrics.response(body(), 3, 1.5)
    metrics.gone_back(3, 1.5)
    lines = [line["_aws"]["CloudWatchMetrics"][0]["Metrics"] for line in counted.lines()]
    units = {metric["Name"]: metric["Unit"] for line in lines for metric in line}
    seconds = dict.fromkeys(("QueueSeconds", "WaitedSeconds"), "Seconds")
    assert units == {"Deleted": "Count", "Attempts": "Count", **seconds}


def test_a_line_is_written_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread logs to the same stream, and its line must not fall inside a metric's."""
    written: list[str] = []
    monkeypatch.setattr(sys.stdout, "write", written.append)
    metrics.no_request()
    assert [text[-2:] for text in written] == ["}\n"]


def test_under_sam_local_nothing_is_counted(world: World, counted: Counted) -> None:
    """The terminal shows the answer, and no line for a waiting request or a foreign message."""
    world.arrives("alice")
    sent = world.records()
    world.function = replace(world.function, local=True)
    world.at_create = [throttled(600)]
    assert world.batch([*sent, record("stray", 7)]) == ["message-0"]
    assert counted.lines() == []
    world.clock.now += 600
    assert world.batch(sent) == []
    assert "_aws" not in counted.capsys.readouterr().out


def test_powertools_own_switch_turns_them_off(
    world: World, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POWERTOOLS_METRICS_DISABLED", "true")
    world.arrives("alice")
    world.serve()
    assert counted() == []
