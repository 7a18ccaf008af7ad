"""Each override of custom_resource.py mends a defect that plain crhelper shows in the same test."""

from __future__ import annotations

import json
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from crhelper import CfnResource

from emulators.sink import Sink
from usage_plan_key import custom_resource
from usage_plan_key.custom_resource import GUARD_TIME, CustomResource
from usage_plan_key.errors import EventError, NotSentError, OutOfTimeError, TurnOverError, UndeliveredError
from usage_plan_key.model import Response
from usage_plan_key.request import parse
from usage_plan_key.response import LONGEST_RESPONSE, Sender

from . import answers
from .answers import ATTACHED, EVENTS, ID, VALUE, WHERE, Context, Lines, asked, failed
from .memory import Clock, within

environment, sink, everything = answers.environment, answers.sink, answers.everything

Serve = Callable[[], Response]
NO_ANSWER = failed("No answer in time")


def raises(error: Exception) -> Response:
    raise error


def prepared(
    event: dict[str, Any], serve: Serve, deliver: Callable[[bytes], Any], give_up: Serve = lambda: NO_ANSWER
) -> CustomResource:
    """Make a request's crhelper as `provider` does."""
    request = parse(event)
    resource = CustomResource(request, lambda: give_up()._replace(id=request.answer_id), deliver, WHERE)
    for register in (resource.create, resource.update, resource.delete):
        register(resource.served_by(serve))
    return resource


def answers_to(event: dict[str, Any], serve: Serve, context: Any = None, **more: Serve) -> list[Any]:
    """Serve a request; return what is delivered."""
    delivered: list[bytes] = []
    prepared(event, serve, delivered.append, **more).answer(event, context or Context())
    return [json.loads(one) for one in delivered]


class Ours:
    guard = GUARD_TIME

    def __init__(self) -> None:
        self._sender = Sender()

    def __call__(
        self, event: dict[str, Any], given: Response | Serve = ATTACHED, seconds: float = 900
    ) -> None:
        deliver = partial(self._sender.deliver, parse(event), within(60, Clock()))
        resource = prepared(event, given if callable(given) else lambda: given, deliver)
        resource.answer(event, Context(seconds))


class Plain:
    """crhelper as its README has it: one helper, and a function that returns an id or raises."""

    guard = 0.5

    def __init__(self) -> None:
        self._helper: Any = None

    def __call__(
        self, event: dict[str, Any], given: Response | Serve = ATTACHED, seconds: float = 900
    ) -> None:
        self._helper = helper = self._helper or CfnResource()

        def served(_event: Any, _context: Any) -> str:
            response = given() if callable(given) else given
            if not response.success:
                raise RuntimeError(response.reason)
            helper.Data["KeyName"] = response.key_name
            if response.value is not None:
                helper.Data["Value"], helper.NoEcho = response.value, True
            return response.id

        for register in (helper.create, helper.update, helper.delete):
            register(served)
        helper(event, Context(seconds))


Kind = type[Ours] | type[Plain]
DEFECT = [
    pytest.mark.xfail(raises=AssertionError, reason="crhelper's defect"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # It closes no socket either.
]


@pytest.fixture(autouse=True)
def levels() -> Iterator[None]:
    """Loggers have no levels of their own, and afterwards those that they had."""
    loggers = [logging.getLogger(name) for name in (None, "boto", "boto3", "botocore", "urllib3", "crhelper")]
    before = [logger.level for logger in loggers]
    for logger in loggers[1:]:
        logger.setLevel(logging.NOTSET)
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record crhelper's sleeps on a Delete, without waiting."""
    naps: list[float] = []
    monkeypatch.setattr("crhelper.resource_helper.CfnResource._wait_for_cwlogs.__defaults__", (naps.append,))
    return naps


@pytest.mark.parametrize("kind", [pytest.param(Ours), pytest.param(Plain, marks=DEFECT)])
class TestMended:
    """Each test passes with the overrides and fails without. Strict: a mended defect's override goes."""

    def test_a_delete_does_not_sleep(self, kind: Kind, sink: Sink, naps: list[float]) -> None:
        kind()(asked("delete", ResponseURL=sink.url))
        assert (naps, len(sink.puts)) == ([], 1)

    def test_no_boto3_client_is_made(self, kind: Kind, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[str] = []
        monkeypatch.setattr(boto3, "client", lambda service, **_: made.append(service))
        monkeypatch.setattr(custom_resource, "_FRESH", custom_resource._fresh())
        kind()(asked(ResponseURL=sink.url))
        assert made == []

    def test_the_root_loggers_level_stays(self, kind: Kind, sink: Sink) -> None:
        run, root = kind(), logging.getLogger()
        for level in (logging.WARNING, 15, logging.ERROR):
            root.setLevel(level)
            custom_resource._fresh()
            run(asked(ResponseURL=sink.url))
            assert root.level == level
        assert len(sink.puts) == 3

    @pytest.mark.parametrize("name", ["create", "update-move", "delete"])
    @pytest.mark.parametrize("reply", [200, 403])
    def test_nothing_secret_is_logged(
        self, kind: Kind, sink: Sink, name: str, reply: int, everything: Lines
    ) -> None:
        sink.replies = [reply]
        kind()(asked(name, "true", ResponseURL=sink.url), ATTACHED._replace(value=VALUE))
        assert everything.secrets(sink.url) == []

    def test_noecho_is_set_anew_on_every_answer(self, kind: Kind, sink: Sink) -> None:
        run = kind()
        run(asked("create", "true", ResponseURL=sink.url), ATTACHED._replace(value=VALUE))
        run(asked(ResponseURL=sink.url))
        assert [answer["NoEcho"] for answer in sink.answers] == [True, False]

    @pytest.mark.parametrize("lacking", ["StackId", "ResponseURL", "RequestType"])
    def test_a_fault_of_a_second_event_is_not_answered_to_the_first_ones_url(
        self, kind: Kind, sink: Sink, lacking: str
    ) -> None:
        run, event = kind(), asked(ResponseURL=sink.url)
        run(event)
        del event[lacking]
        with suppress(EventError):
            run(event)
        assert len(sink.puts) == 1

    @pytest.mark.parametrize(("replies", "puts", "errors"), [([503, 500], 3, 0), ([403], 1, 1)])
    def test_a_5xx_is_tried_again_and_a_4xx_is_an_error(
        self, kind: Kind, sink: Sink, replies: list[Any], puts: int, errors: int, everything: Lines
    ) -> None:
        sink.replies = list(replies)
        kind()(asked(ResponseURL=sink.url))
        assert (len(sink.puts), len(everything.errors)) == (puts, errors)

    def test_network_errors_are_not_retried_for_ever(
        self, kind: Kind, sink: Sink, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def sleep(seconds: float) -> None:
            assert len(sink.puts) < 100, "it would go on for ever"

        monkeypatch.setattr("crhelper.utils.time.sleep", sleep)
        sink.replies = ["close"] * 1000
        with pytest.raises(UndeliveredError):
            kind()(asked(ResponseURL=sink.url))

    @pytest.mark.parametrize("name", ["create", "update-move", "delete"])
    def test_when_time_is_up_there_is_one_answer_and_it_has_an_id(
        self, kind: Kind, sink: Sink, name: str
    ) -> None:
        def hang() -> Response:
            assert sink.wait(), "the guard does not strike"
            return ATTACHED

        kind()(asked(name, ResponseURL=sink.url), hang, kind.guard + 0.1)
        given = [(answer["Status"], answer["PhysicalResourceId"]) for answer in sink.answers]
        assert given == [("FAILED", EVENTS[name].get("PhysicalResourceId", ID))]

    @pytest.mark.parametrize("stack", [EVENTS["create"]["StackId"], "no-arn"])
    def test_a_create_that_fails_has_the_id_that_its_properties_give(
        self, kind: Kind, sink: Sink, stack: str
    ) -> None:
        kind()(asked(ResponseURL=sink.url, StackId=stack), lambda: raises(RuntimeError("no such thing")))
        (answer,) = sink.answers
        assert (answer["Status"], answer["PhysicalResourceId"]) == ("FAILED", ID)
        assert "no such thing" in answer["Reason"]

    @pytest.mark.parametrize(
        "given", [ATTACHED._replace(key_name="🔑" * 1024), failed("What matters. " + "€" * 5000)]
    )
    def test_a_long_answer_keeps_its_beginning(self, kind: Kind, sink: Sink, given: Response) -> None:
        kind()(asked(ResponseURL=sink.url), given)
        (answer,) = sink.answers
        assert len(sink.puts[0].body) <= LONGEST_RESPONSE
        assert given.success or answer["Reason"].startswith("What matters. €€€")

    def test_one_tls_context_and_one_connection_serve_all(
        self, kind: Kind, sink: Sink, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make, made = ssl.create_default_context, []

        def counted(*args: Any, **kwargs: Any) -> ssl.SSLContext:
            made.append(args)
            return make(*args, **kwargs)

        monkeypatch.setattr(ssl, "create_default_context", counted)
        run = kind()
        for name in ("create", "update-verify", "delete"):
            run(asked(name, ResponseURL=sink.url))
        assert (len(sink.puts), len(made), len(sink.connections)) == (3, 1, 1)


class TestAlwaysAnswered:
    """An unexpected error becomes one FAILED answer, and a request whose turn is over has none."""

    @pytest.mark.parametrize(
        ("serve", "seconds", "reason"),
        [
            (partial(raises, RuntimeError("no such thing")), 900, "RuntimeError: no such thing"),
            (partial(raises, OutOfTimeError("time is up")), 900, "OutOfTimeError: time is up"),
            (lambda: ATTACHED._replace(key_name=object()), 900, "TypeError: "),  # type: ignore[arg-type]  # so it fails
            (lambda: ATTACHED, "soon", "unsupported operand"),
        ],
        ids=["an error", "time that is up", "an answer without a body", "a context without a time"],
    )
    def test_an_error_is_answered(
        self, serve: Serve, seconds: Any, reason: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """No turn follows on OutOfTimeError: only TurnOverError says that the queue delivers it again."""
        context = (
            Context() if seconds == 900 else SimpleNamespace(get_remaining_time_in_millis=lambda: seconds)
        )
        (told,) = answers_to(asked(), serve, context)
        assert (told["Status"], told["PhysicalResourceId"]) == ("FAILED", ID)
        assert told["Reason"].startswith(f"An internal error, please report it: {reason}")
        assert told["Reason"].endswith(f" ({WHERE})")
        assert seconds == "soon" or [record.message for record in caplog.records] == ["An internal error"]

    @pytest.mark.parametrize("error", [TurnOverError("It", "the turn is over"), NotSentError("dead")])
    def test_a_postponed_request_is_not(self, error: Exception) -> None:
        with pytest.raises(type(error), match=str(error)):
            prepared(asked(), lambda: raises(error), self.fail).answer(asked(), Context())

    def fail(self, body: bytes) -> None:
        raise AssertionError(body)

    @pytest.mark.parametrize("name", EVENTS)
    def test_crhelpers_own_keys_in_an_event_change_nothing(self, name: str) -> None:
        """Plain crhelper would call a polling function, which does not exist."""
        keys = {"CrHelperPoll": True, "CrHelperData": "x", "CrHelperPermission": 1, "CrHelperRule": None}
        (told,) = answers_to(EVENTS[name] | keys, lambda: ATTACHED)
        assert told["Status"] == "SUCCESS"

    @pytest.mark.parametrize("before", [None, "true", "its own"])
    def test_sam_locals_variable_stays_as_it_was(
        self, before: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("AWS_SAM_LOCAL", raising=False)
        if before is not None:
            monkeypatch.setenv("AWS_SAM_LOCAL", before)
        with custom_resource._as_if_local():
            assert os.environ["AWS_SAM_LOCAL"] == "true"
        assert os.environ.get("AWS_SAM_LOCAL") == before


class TestGuard:
    """The guard answers when a call hangs until the function's time is nearly up."""

    SHORT = GUARD_TIME + 0.05

    @pytest.mark.parametrize("first", ["guard", "call"])
    def test_there_is_one_answer_and_the_invocation_lasts_until_it_is_delivered(
        self, first: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Both come at the same time. Lambda freezes every thread when the handler returns."""
        about: ContextVar[str] = ContextVar("about", default="nothing")
        in_call, in_guard, seen = threading.Event(), threading.Event(), []
        delivered: list[bytes] = []

        def serve() -> Response:
            in_call.set()
            assert in_guard.wait(5)
            time.sleep(0.1 * (first == "guard"))
            return ATTACHED

        def give_up() -> Response:
            seen.append(about.get())
            assert in_call.wait(5)
            in_guard.set()
            time.sleep(0.1 * (first == "call"))
            return NO_ANSWER

        def deliver(body: bytes) -> None:
            time.sleep(0.2)
            delivered.append(body)

        token = about.set("this request")
        prepared(asked(), serve, deliver, give_up).answer(asked(), Context(self.SHORT))
        about.reset(token)
        told = [json.loads(one)["Status"] for one in delivered]
        time.sleep(0.3)  # The second one says nothing.
        assert (told, len(delivered)) == (["FAILED" if first == "guard" else "SUCCESS"], 1)
        assert seen == ["this request"], "for its log lines"
        assert "The function's time is nearly up, and a call hangs" in caplog.messages

    def test_its_timer_keeps_no_process_alive_and_leaves_its_time_to_answer(self) -> None:
        timers: list[threading.Timer] = []

        def serve() -> Response:
            timers.extend(each for each in threading.enumerate() if isinstance(each, threading.Timer))
            return ATTACHED

        answers_to(asked(), serve)
        (timer,) = timers
        assert timer.daemon
        assert timer.interval == pytest.approx(900 - 10, abs=0.1)
        assert timer.finished.is_set(), "it does not strike once the request is served"

    def test_the_first_body_stands(self) -> None:
        """Between the guard's answer and its delivery the call under way may end."""
        delivered: list[bytes] = []
        resource = prepared(asked(), lambda: ATTACHED, delivered.append)
        resource._put_together(lambda: NO_ANSWER)
        resource.answer(asked(), Context())
        assert [json.loads(one)["Status"] for one in delivered] == ["FAILED"]

    @pytest.mark.parametrize("fault", [RuntimeError("no such thing"), UndeliveredError("no time is left")])
    def test_a_fault_of_its_own_is_not_lost(self, fault: Exception) -> None:
        """It answers with an internal error, or the invocation fails as it could not deliver."""
        struck = threading.Event()

        def serve() -> Response:
            assert struck.wait(5)
            time.sleep(0.1)
            return ATTACHED

        def give_up() -> Response:
            struck.set()
            return NO_ANSWER if isinstance(fault, UndeliveredError) else raises(fault)

        if isinstance(fault, RuntimeError):
            (told,) = answers_to(asked(), serve, Context(self.SHORT), give_up=give_up)
            assert "no such thing" in told["Reason"]
            return
        with pytest.raises(UndeliveredError):
            prepared(asked(), serve, lambda _: raises(fault), give_up).answer(asked(), Context(self.SHORT))
