"""The function writes its metrics in one line for each answer, without the request's data."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from usage_plan_key import metrics
from usage_plan_key.custom_resource import CustomResource
from usage_plan_key.model import Outcome
from usage_plan_key.retry import BEFORE_CALL

from . import function
from .function import BUSY, World, denied, received, record, throttled

world = function.world
Counted = Callable[[], list[dict[str, float]]]


@pytest.fixture
def counted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Counted:
    """What the function has written since the last look: each line's metrics, as CloudWatch reads them."""
    monkeypatch.setenv("POWERTOOLS_SERVICE_NAME", "usage-plan-key")

    def values(line: dict[str, Any]) -> dict[str, float]:
        (directive,) = line["_aws"]["CloudWatchMetrics"]
        units = {metric["Name"]: metric["Unit"] for metric in directive["Metrics"]}
        assert (directive["Namespace"], directive["Dimensions"]) == ("UsagePlanKey", [["service"]])
        assert line["service"] == "usage-plan-key"
        assert {*line} == {"_aws", "service", *units}, "nothing that is no metric: no id and no value"
        assert all((unit == "Seconds") is name.endswith("Seconds") for name, unit in units.items())
        assert {*units.values()} <= {"Seconds", "Count"}
        return {name: number for name in units for number in line[name]}

    return lambda: [values(json.loads(line)) for line in capsys.readouterr().out.splitlines()]


def test_a_line_has_the_outcome_the_calls_and_the_wait_of_each_request(
    world: World, counted: Counted
) -> None:
    properties = {"KeyId": "alice", "UsagePlanId": "free", "IncludeValue": "true"}
    world.arrives("alice", ResourceProperties=properties)
    world.arrives("bob", stack="two")
    world.arrives("carol", "Delete", PhysicalResourceId="carol:free")
    assert counted() == [], "intake counts nothing"
    world.clock.now += 7
    world.serve()
    attached = {"Attached": 1, "Attempts": 1, "QueueSeconds": 7}
    assert counted() == [attached, attached, {"Deleted": 1, "Attempts": 0, "QueueSeconds": 7}]


def test_each_turn_counts_its_calls_and_the_wait_ends_where_the_last_begins(
    world: World, counted: Counted
) -> None:
    world.at_create = [throttled(600)]
    world.arrives("alice")
    sent = world.records()
    expected = [
        (0, 1, {"Attempts": 1, "WaitedSeconds": 0}),
        (500, 2, {"Attempts": 0, "WaitedSeconds": 500}),  # It waits on, and the alarm hears it.
        (100, 3, {"Attached": 1, "Attempts": 1, "QueueSeconds": 600}),
    ]
    for later, receives, line in expected:
        world.clock.now += later
        world.batch([received(sent[0], receives)])
        assert counted() == [line]


@pytest.mark.parametrize(
    ("meets", "line"),
    [
        ({"at_create": [BUSY]}, {"Attached": 1, "Attempts": 2, "QueueSeconds": pytest.approx(8.5, abs=0.5)}),
        ({"seconds": BEFORE_CALL}, {"Attempts": 0, "WaitedSeconds": 7}),
        ({"unreachable": True}, {"Attached": 1, "Attempts": 1, "QueueSeconds": 7}),
    ],
    ids=["a refusal", "the function's end", "nobody to take the answer"],
)
def test_each_call_and_each_turn_counts(world: World, counted: Counted, meets: Any, line: Any) -> None:
    world.arrives("alice")
    world.clock.now += 7
    vars(world).update(meets)
    world.serve()
    assert counted() == [line]


def test_what_was_never_in_the_queue_did_not_wait(world: World, counted: Counted) -> None:
    world.sqs.fails = [denied("SendMessage")]
    world.arrives("alice")
    assert counted() == [{"Failed": 1, "Attempts": 0}]


def test_an_answer_of_the_guard_counts_once_though_the_call_returns(
    world: World, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(resource: CustomResource, event: Any, context: Any) -> None:
        world.before_create = resource._timeout  # The guard strikes during the call to API Gateway.
        real(resource, event, context)

    real = CustomResource.answer
    monkeypatch.setattr(CustomResource, "answer", answer)
    world.arrives("alice")
    world.serve()
    assert counted() == [{"Failed": 1, "Attempts": 1, "QueueSeconds": 0}]


def test_each_outcome_and_each_kind_of_trouble_has_its_name(counted: Counted) -> None:
    for outcome in Outcome:
        metrics.response(json.dumps({"Status": "SUCCESS", "Data": {"Outcome": outcome}}).encode(), 2, None)
    assert counted() == [{outcome.value.title(): 1, "Attempts": 2} for outcome in Outcome]
    metrics.no_request()
    metrics.answer_refused()
    metrics.answer_undelivered()
    assert counted() == [{"NoRequest": 1}, {"AnswerRefused": 1}, {"AnswerUndelivered": 1}]


def test_a_line_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread logs to the same stream, and its line must not fall inside a metric's."""
    written: list[str] = []
    monkeypatch.setattr(sys.stdout, "write", written.append)
    metrics.no_request()
    assert [(text.count("\n"), text[-2:]) for text in written] == [(1, "}\n")]


def test_under_sam_local_nothing_is_counted(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """The terminal shows the answer, and no line for a waiting request or a foreign message."""
    world.arrives("alice")
    sent = world.records()
    world.function = replace(world.function, local=True)
    world.at_create = [throttled(600)]
    assert world.batch([*sent, record("stray", 7)]) == ["message-0"]
    world.clock.now += 600
    assert world.batch(sent) == []
    assert "_aws" not in capsys.readouterr().out


def test_powertools_own_switch_turns_them_off(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERTOOLS_METRICS_DISABLED", "true")
    metrics.no_request()
    assert counted() == []
