"""The function writes its metrics in one line for each answer, without the request's data."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from usage_plan_key import metrics
from usage_plan_key.custom_resource import CustomResource

from .function import record
from .story import play, staged

Counted = Callable[[], list[dict[str, float]]]
ATTACHED, UNDELIVERED = {"Attached": 1, "Attempts": 1}, {"AnswerUndelivered": 1}


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


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("create A free Value", [ATTACHED]),
        ("queue; arrive create A free", []),
        ("queue; one: arrive create A free; time 7; serve one", [ATTACHED | {"QueueSeconds": 7}]),
        ("queue; delete A free", [{"Deleted": 1, "Attempts": 0, "QueueSeconds": 0}]),
        ("queue; at create busy; create A free", [{"Attached": 1, "Attempts": 2, "QueueSeconds": 2}]),
        ("queue; at send denied; create A free = FAILED", [{"Failed": 1, "Attempts": 0}]),
        ("queue; seconds 25; create A free = waits", [{"Attempts": 0, "WaitedSeconds": 0}]),
        (
            "queue; at create throttled=600; create A free = waits; time 500; again = waits; time 100; again",
            [  # The wait ends where the last turn begins, and the alarm hears that it waits on.
                {"Attempts": 1, "WaitedSeconds": 0},
                {"Attempts": 0, "WaitedSeconds": 500},
                ATTACHED | {"QueueSeconds": 600},
            ],
        ),
        ("queue; at put cut; create A free = fails", [ATTACHED | {"QueueSeconds": 0}]),
        (f"queue; at put dies*4; create A free = dies{'; again = dies' * 3}; again = unsent", [UNDELIVERED]),
    ],
)
def test_what_happens_is_counted(line: str, lines: list[dict[str, float]], counted: Counted) -> None:
    play(line)
    assert counted() == lines


def test_an_answer_of_the_guard_counts_once_though_the_call_returns(counted: Counted) -> None:
    with staged() as story, mock.patch.object(CustomResource, "_set_timeout", CustomResource._timeout):
        story.play("queue; create A free = FAILED No answer in time")
    assert counted() == [{"Failed": 1, "Attempts": 0, "QueueSeconds": 0}]


def test_a_line_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread logs to the same stream, and its line must not fall inside a metric's."""
    written: list[str] = []
    monkeypatch.setattr(sys.stdout, "write", written.append)
    metrics.no_request()
    assert [(text.count("\n"), text[-2:]) for text in written] == [(1, "}\n")]


def test_under_sam_local_answers_are_only_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """The terminal shows the answer, and no line for a waiting request or a foreign message."""
    with staged() as story:
        story.play("queue; one: arrive create A free Value")
        story.function = replace(story.function, local=True)
        story.play("at create throttled=20; serve one = waits; time 20; serve one = unsent -> attached free")
        assert story.function.on_batch([record("stray", 7)], story)["batchItemFailures"]
    printed = json.loads(capsys.readouterr().out)
    assert (printed["Status"], printed["Data"]["Value"]) == ("SUCCESS", "(not shown)")


def test_powertools_own_switch_turns_them_off(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERTOOLS_METRICS_DISABLED", "true")
    metrics.no_request()
    assert counted() == []
