"""The built artifact answers every file in events/ under Lambda's runtime, cold, warm and out of time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from emulators.fake import ApiGateway, Key, Plan
from emulators.runtime import Api, Function, function
from emulators.sink import Sink
from usage_plan_key.retry import BEFORE_CALL

from .test_events import EVENTS, FREE, IN_FREE, KEY, PRO, SITUATIONS, VALUE, data, whole

#: A function's time-out in seconds that leaves time to begin a call to API Gateway, even on a busy machine.
SHORT = int(BEFORE_CALL) + 6
#: The end of a FAILED Reason under Lambda's emulator, which has names of its own.
EMULATORS = " (function usage-plan-key, log group /aws/lambda/Functions, log stream $LATEST)"


class World:
    """A function under the runtime, its strict API Gateway, and the sink for its answers."""

    def __init__(self, running: Function, api: Api, sink: Sink) -> None:
        self.running = running
        self.api = api
        self.sink = sink

    def answer(self, name: str) -> dict[str, Any]:
        """The one answer to a file, in the situation where it belongs."""
        before, attached, _, _ = SITUATIONS[name]
        self.api.gateway.attached = attached | ({IN_FREE} if "create" in before else set())
        sent = len(self.sink.puts)
        assert self.running.invoke({**EVENTS[name], "ResponseURL": self.sink.url}) is None
        (put,) = self.sink.puts[sent:]
        return put.answer


@contextmanager
def started(artifact: Path, timeout: int = 120, **environment: str) -> Iterator[World]:
    gateway = ApiGateway()
    gateway.plans = {FREE: Plan("Free", (("api1", "prod"),)), PRO: Plan("Pro", (("api1", "prod"),))}
    gateway.keys = {KEY: Key("alice", VALUE)}
    with ExitStack() as stack:
        api, sink = stack.enter_context(Api(gateway)), stack.enter_context(Sink())
        places = {"AWS_ENDPOINT_URL_API_GATEWAY": api.url, "SSL_CERT_FILE": str(sink.certificate)}
        running = stack.enter_context(function(artifact, places | environment, timeout=timeout))
        yield World(running, api, sink)


@pytest.fixture(scope="module", autouse=True)
def hanging(artifact: Path) -> Iterator[Sink]:
    """The sink for a request whose call to API Gateway hangs; the other tests run meanwhile."""
    with ThreadPoolExecutor(1) as background, started(artifact, SHORT) as world:
        world.api.hangs = True
        background.submit(world.running.invoke, {**EVENTS["create"], "ResponseURL": world.sink.url})
        yield world.sink


@pytest.mark.parametrize("name", EVENTS)
def test_each_file_is_answered_cold_and_warm(name: str, artifact: Path) -> None:
    """The same process gives the same answer again: it keeps nothing of the first request."""
    with started(artifact) as world:
        cold, pid = world.answer(name), world.running.pid
        warm = world.answer(name)
        assert world.running.pid == pid
        expected = whole(name)
        if "Reason" in expected:
            expected["Reason"] = expected["Reason"].rpartition(" (")[0] + EMULATORS
        assert [cold, warm] == [expected, expected]
        assert world.api.gateway.attached == SITUATIONS[name][3]


def test_all_files_are_answered_by_one_process(artifact: Path) -> None:
    with started(artifact) as world:
        answers = {name: world.answer(name) for name in EVENTS}
        assert {name: answer["Status"] for name, answer in answers.items()} == {
            name: whole(name)["Status"] for name in EVENTS
        }


def test_under_sam_local_the_answer_is_printed_and_returned_and_none_is_sent(artifact: Path) -> None:
    with started(artifact, AWS_SAM_LOCAL="true") as world:
        answered = world.running.invoke(EVENTS["create"])
        assert answered == whole("create") | {"Data": data("ATTACHED")}
        assert '"Outcome": "ATTACHED"' in world.running.log
        assert not world.sink.puts


def test_an_event_without_a_stack_id_is_an_error_and_the_next_one_is_served(
    artifact: Path,
) -> None:
    with started(artifact) as world:
        failed = world.running.invoke(
            {name: part for name, part in EVENTS["create"].items() if name != "StackId"}
        )
        assert failed["errorType"] == "EventError"
        assert world.answer("create")["Status"] == "SUCCESS"


def test_neither_values_nor_urls_are_in_the_log(artifact: Path) -> None:
    """At DEBUG, with everything that the runtime itself writes."""
    with started(artifact, POWERTOOLS_LOG_LEVEL="DEBUG") as world:
        event = {**EVENTS["create"], "ResponseURL": world.sink.url}
        event["ResourceProperties"] = {**event["ResourceProperties"], "IncludeValue": "true"}
        world.running.invoke(event)
        assert world.sink.answers[0]["Data"]["Value"] == VALUE
        assert "SUCCESS ATTACHED" in world.running.log
        assert VALUE not in world.running.log
        assert "X-Amz-Signature" not in world.running.log


def test_a_request_that_hangs_is_answered_before_the_functions_time_is_up(hanging: Sink) -> None:
    assert hanging.wait(seconds=SHORT)
    (answer,) = hanging.answers
    assert (answer["Status"], answer["PhysicalResourceId"]) == ("FAILED", f"{KEY}:{FREE}")
    assert answer["Reason"].startswith("No answer in time: a call of the function hangs")
