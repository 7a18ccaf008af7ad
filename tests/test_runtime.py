"""The built artifact answers every file in events/ under Lambda's runtime, cold, warm and out of time."""

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

from .answers import EVENTS, VALUE
from .test_events import FREE, IN_FREE, KEY, PRO, SITUATIONS, whole

#: A function's time-out in seconds that leaves time to begin a call to API Gateway, even on a busy machine.
SHORT = int(BEFORE_CALL) + 6
#: The end of a FAILED Reason under Lambda's emulator, which has names of its own.
EMULATORS = " (function usage-plan-key, log group /aws/lambda/Functions, log stream $LATEST)"


def gateway() -> ApiGateway:
    """Make an API Gateway with the events' key and two plans for one stage."""
    made = ApiGateway()
    made.plans = {FREE: Plan("Free", (("api1", "prod"),)), PRO: Plan("Pro", (("api1", "prod"),))}
    made.keys = {KEY: Key("alice", VALUE)}
    return made


class World:
    """A function under the runtime, its strict API Gateway, and the sink for its answers."""

    def __init__(self, running: Function, api: Api, sink: Sink) -> None:
        self.running, self.api, self.sink = running, api, sink

    def answer(self, name: str, **properties: str) -> dict[str, Any]:
        """The one answer to a file, in the situation where it belongs."""
        before, attached, _, _ = SITUATIONS[name]
        self.api.gateway.attached = attached | ({IN_FREE} if "create" in before else set())
        sent, asked = len(self.sink.puts), EVENTS[name]["ResourceProperties"] | properties
        event = {**EVENTS[name], "ResponseURL": self.sink.url, "ResourceProperties": asked}
        assert self.running.invoke(event) is None
        (put,) = self.sink.puts[sent:]
        return put.answer


@contextmanager
def started(artifact: Path, timeout: int = 120, **environment: str) -> Iterator[World]:
    with ExitStack() as stack:
        api, sink = stack.enter_context(Api(gateway())), stack.enter_context(Sink())
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


@pytest.fixture(scope="module")
def world(artifact: Path) -> Iterator[World]:
    """One process, which logs all that it can."""
    with started(artifact, POWERTOOLS_LOG_LEVEL="DEBUG") as world:
        yield world


@pytest.mark.parametrize("name", EVENTS)
def test_each_file_is_answered_twice_alike_by_one_process(name: str, world: World) -> None:
    """It keeps nothing of another request. The first file of all starts it."""
    expected = whole(name)
    if "Reason" in expected:
        expected["Reason"] = expected["Reason"].rpartition(" (")[0] + EMULATORS
    for _ in range(2):
        assert world.answer(name) == expected
        assert world.api.gateway.attached == SITUATIONS[name][3]


def test_an_event_without_a_stack_id_is_an_error_and_the_next_one_is_served(world: World) -> None:
    pid = world.running.pid
    failed = world.running.invoke({name: it for name, it in EVENTS["create"].items() if name != "StackId"})
    assert failed["errorType"] == "EventError"
    assert world.answer("create")["Status"] == "SUCCESS"
    assert world.running.pid == pid


def test_neither_values_nor_urls_are_in_the_log(world: World) -> None:
    """At DEBUG, with everything that the runtime itself writes, after all of these requests."""
    assert world.answer("create", IncludeValue="true")["Data"]["Value"] == VALUE
    assert "SUCCESS ATTACHED" in world.running.log
    assert VALUE not in world.running.log
    assert "X-Amz-Signature" not in world.running.log


def test_a_request_that_hangs_is_answered_before_the_functions_time_is_up(hanging: Sink) -> None:
    assert hanging.wait(seconds=SHORT)
    (answer,) = hanging.answers
    assert (answer["Status"], answer["PhysicalResourceId"]) == ("FAILED", f"{KEY}:{FREE}")
    assert answer["Reason"].startswith("No answer in time: a call of the function hangs")
