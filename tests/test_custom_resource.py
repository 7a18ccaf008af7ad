"""Each override of custom_resource.py mends a defect that plain crhelper shows in the same test."""

import json
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import boto3
import pytest
from crhelper import CfnResource

from emulators.sink import Sink
from usage_plan_key import custom_resource
from usage_plan_key.custom_resource import GUARD_TIME, CustomResource
from usage_plan_key.errors import EventError, UndeliveredError
from usage_plan_key.model import Response
from usage_plan_key.request import parse
from usage_plan_key.response import Sender

from . import answers
from .answers import ATTACHED, ID, VALUE, WHERE, Context, Lines, asked, errors, failed, secrets
from .memory import Clock, within

environment, sink, everything = answers.environment, answers.sink, answers.everything

Serve = Callable[[], Response]
NO_ANSWER = failed("No answer in time")


def prepared(
    event: dict[str, Any], serve: Serve, deliver: Callable[[bytes], Any], give_up: Serve = lambda: NO_ANSWER
) -> CustomResource:
    """Make a request's crhelper as `provider` does."""
    request = parse(event)
    resource = CustomResource(request, give_up, deliver, WHERE)
    for register in (resource.create, resource.update, resource.delete):
        register(resource.served_by(serve))
    return resource


LOGGERS = ("boto", "boto3", "botocore", "urllib3", "crhelper")
#: The root logger's level. The others have none of their own, until somebody sets one.
LEVEL = 5


DEFECT = [
    pytest.mark.xfail(raises=AssertionError, reason="crhelper's defect"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # It closes no socket either.
]


class Ours:
    """The function's crhelper, and all that it does to its surroundings."""

    make: Any = Sender
    guard = GUARD_TIME

    def __init__(self, sink: Sink, log: Lines, patch: pytest.MonkeyPatch) -> None:
        self.sink, self.log = sink, log
        self.naps, self.clients, self.contexts = Mock(), Mock(), Mock(wraps=ssl.create_default_context)
        patch.setattr("crhelper.resource_helper.CfnResource._wait_for_cwlogs.__defaults__", (self.naps,))
        patch.setattr("crhelper.utils.time", SimpleNamespace(sleep=self._sleep))
        patch.setattr(boto3, "client", self.clients)
        patch.setattr(ssl, "create_default_context", self.contexts)
        for name in LOGGERS:
            log.set_level(logging.NOTSET, name)  # So pytest sets back its level.
        log.set_level(LEVEL)
        patch.setattr(custom_resource, "_FRESH", custom_resource._fresh())
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.NOTSET)
        self._helper = self.make()

    @property
    def last(self) -> dict[str, Any]:
        return self.sink.answers[-1]

    def _sleep(self, seconds: float) -> None:
        assert len(self.sink.puts) < 100, "it would go on for ever"

    def __call__(self, name: str, given: Response | str = ATTACHED, **fields: Any) -> list[Any]:
        """Serve the event of a file, with changes; give the ends of all answers so far."""

        def serve() -> Response:
            if given == "hangs":
                assert self.sink.wait(len(self.sink.puts) + 1), "the guard does not strike"
            if given == "fails":
                raise RuntimeError
            return given if isinstance(given, Response) else ATTACHED

        event = asked(name, **{"ResponseURL": self.sink.url, **fields})
        context = Context(self.guard + 0.1 if given == "hangs" else 900)
        with suppress(EventError, UndeliveredError):
            self._serve({field: it for field, it in event.items() if it}, serve, context)
        return [(answer["Status"], answer["PhysicalResourceId"]) for answer in self.sink.answers]

    def _serve(self, event: dict[str, Any], serve: Serve, context: Context) -> None:
        deliver = partial(self._helper.deliver, parse(event), within(60, Clock()))
        prepared(event, serve, deliver).answer(event, context)


class Plain(Ours):
    """crhelper as its README has it: one helper, and a function that returns an id or raises."""

    make = CfnResource
    guard = 0.5

    def _serve(self, event: dict[str, Any], serve: Serve, context: Context) -> None:
        def served(_event: Any, _context: Any) -> str:
            response = serve()
            if not response.success:
                raise RuntimeError(response.reason)
            self._helper.Data["KeyName"] = response.key_name
            if response.value is not None:
                self._helper.Data["Value"], self._helper.NoEcho = response.value, True
            return ID

        for register in (self._helper.create, self._helper.update, self._helper.delete):
            register(served)
        self._helper(event, context)


@pytest.fixture(params=[Ours, pytest.param(Plain, marks=DEFECT)])
def it(request: Any, sink: Sink, everything: Lines, monkeypatch: pytest.MonkeyPatch) -> Ours:
    return request.param(sink, everything, monkeypatch)  # type: ignore[no-any-return]  # it is one


EACH, SUCCESS, FAILED = "create update-move delete", ("SUCCESS", ID), ("FAILED", ID)
POLLS: Any = {"CrHelperPoll": True, "CrHelperData": {}, "CrHelperPermission": 1}
WITH_VALUE, LONG_NAME = ATTACHED._replace(value=VALUE), ATTACHED._replace(key_name="🔑" * 1024)
LONG_REASON = failed("What matters. " + "€" * 5000)
#: Of each: the requests, how they end, the replies to their answers, and what is then so.
MENDED: dict[str, tuple[str, Any, list[Any], Callable[[Ours], Any], Any]] = {
    "a Delete does not sleep": ("delete", ATTACHED, [], lambda it: it.naps.call_count, 0),
    "no boto3 client is made": ("create", ATTACHED, [], lambda it: it.clients.call_count, 0),
    "the root logger's level stays": ("create", ATTACHED, [], lambda _: logging.getLogger().level, LEVEL),
    "no secret is logged": (EACH, WITH_VALUE, [], lambda it: secrets(it.log, it.sink.url), []),
    "nor at a refusal": (EACH, WITH_VALUE, [403] * 3, lambda it: secrets(it.log, it.sink.url), []),
    "NoEcho is set anew": (EACH, WITH_VALUE, [], lambda it: it("create") and it.last["NoEcho"], False),
    "each URL has its own answer": ("create", ATTACHED, [], lambda it: it("create", StackId=""), [SUCCESS]),
    "a 5xx is tried again": ("create", ATTACHED, [503, 500], lambda it: len(it.sink.puts), 3),
    "a 4xx is an error": ("create", ATTACHED, [403], lambda it: len(errors(it.log)), 1),
    "network errors end": ("create", ATTACHED, ["close"] * 999, lambda it: len(it.sink.puts) < 99, True),
    "the guard answers once": ("create", "hangs", [], lambda it: it("delete", "hangs"), [FAILED] * 2),
    "a failed Create has its id": ("create", "fails", [], lambda it: it("delete", "fails"), [FAILED] * 2),
    "a long answer fits": ("create", LONG_NAME, [], lambda it: len(it.sink.puts[0].body) <= 4096, True),
    "a Reason has its beginning": ("create", LONG_REASON, [], lambda it: it.last["Reason"][:9], "What matt"),
    "all share a TLS context": (EACH, ATTACHED, [], lambda it: it.contexts.call_count, 1),
    "all share a connection": (EACH, ATTACHED, [], lambda it: len(it.sink.connections), 1),
    "its own keys change nothing": ("create", ATTACHED, [], lambda it: it("create", **POLLS), [SUCCESS] * 2),
}


@pytest.mark.parametrize(("names", "given", "replies", "fact", "expected"), MENDED.values(), ids=MENDED)
def test_a_defect_is_mended(
    it: Ours, names: str, given: Any, replies: list[Any], fact: Callable[[Ours], Any], expected: Any
) -> None:
    """Each passes with the overrides and fails without. Strict: a mended defect's override goes."""
    it.sink.replies = list(replies)
    for name in names.split():
        it(name, given, IncludeValue=str(given is WITH_VALUE).lower())
    assert fact(it) == expected


def answers_to(serve: Serve, context: Any = None) -> list[Any]:
    """Serve a request; return what is delivered."""
    delivered: list[bytes] = []
    prepared(asked(), serve, delivered.append).answer(asked(), context or Context())
    return [json.loads(one) for one in delivered]


@pytest.mark.parametrize(
    ("key_name", "left", "reason"),
    [(object(), 900_000, "TypeError: "), ("alice", "soon", "unsupported operand")],
    ids=["an answer without a body", "a context without a time"],
)
def test_an_unexpected_error_is_answered(key_name: Any, left: Any, reason: str, caplog: Lines) -> None:
    context = SimpleNamespace(get_remaining_time_in_millis=lambda: left)
    (told,) = answers_to(lambda: ATTACHED._replace(key_name=key_name), context)
    assert (told["Status"], told["PhysicalResourceId"]) == FAILED
    assert told["Reason"].startswith(f"An internal error, please report it: {reason}")
    assert told["Reason"].endswith(f" ({WHERE})")
    assert left == "soon" or caplog.messages == ["An internal error"]


@pytest.mark.parametrize("before", [None, "its own"])
def test_sam_locals_variable_stays_as_it_was(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"AWS_SAM_LOCAL": before} if before else {})
    with custom_resource._as_if_local():
        assert os.environ["AWS_SAM_LOCAL"] == "true"
    assert os.environ.get("AWS_SAM_LOCAL") == before


class TestGuard:
    """The guard answers when a call hangs until the function's time is nearly up."""

    def test_an_invocation_lasts_until_its_answer_is_delivered(self, caplog: Lines) -> None:
        """The call returns meanwhile. Lambda freezes every thread when the handler returns."""
        about: ContextVar[str] = ContextVar("about", default="nothing")
        struck, delivered = threading.Event(), list[bytes]()

        def serve() -> Response:
            assert struck.wait(5)
            return ATTACHED

        def deliver(body: bytes) -> None:
            assert about.get() == "this request", "for its log lines"
            struck.set()
            time.sleep(0.3)
            delivered.append(body)

        about.set("this request")
        prepared(asked(), serve, deliver).answer(asked(), Context(GUARD_TIME + 0.05))
        assert [json.loads(one)["Status"] for one in delivered] == ["FAILED"]
        assert "The function's time is nearly up, and a call hangs" in caplog.messages

    def test_its_timer_keeps_no_process_alive(self, monkeypatch: pytest.MonkeyPatch) -> None:
        timer = Mock()
        monkeypatch.setattr(threading, "Timer", timer)
        answers_to(lambda: ATTACHED)
        assert timer.call_args.args[0] == pytest.approx(900 - 10, abs=0.1)
        assert timer.return_value.daemon is True
        timer.return_value.start.assert_called_once_with()
        timer.return_value.cancel.assert_called_once_with()

    @pytest.mark.parametrize(
        ("serving", "delivering", "reason"),
        [
            (CustomResource._timeout, id, "No answer in time"),
            (lambda it: it._put_together(lambda: NO_ANSWER), id, "No answer in time"),
            (lambda it: it._put_together(Mock(side_effect=ValueError("broken"))), id, "ValueError: broken"),
            (id, CustomResource._timeout, "none"),
        ],
        ids=["during the call", "just before its end", "with a fault of its own", "during the delivery"],
    )
    def test_the_first_answer_stands_and_goes_out_once(
        self, serving: Callable[[Any], Any], delivering: Callable[[Any], Any], reason: str
    ) -> None:
        delivered: list[bytes] = []

        def serve() -> Response:
            serving(resource)
            return ATTACHED

        def deliver(body: bytes) -> None:
            delivered.append(body)
            delivering(resource)

        resource = prepared(asked(), serve, deliver)
        resource.answer(asked(), Context())
        assert [reason in json.loads(one).get("Reason", "none") for one in delivered] == [True]

    def test_its_delivery_fails_and_so_does_the_invocation(self) -> None:
        def serve() -> Response:
            resource._timeout()
            return ATTACHED

        resource = prepared(asked(), serve, Mock(side_effect=UndeliveredError("no time is left")))
        with pytest.raises(UndeliveredError):
            resource.answer(asked(), Context())
