"""Each override of custom_resource.py mends a defect that plain crhelper shows in the same test."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol

import boto3
import pytest
from crhelper import CfnResource

from emulators.sink import Sink
from usage_plan_key import custom_resource
from usage_plan_key.custom_resource import GUARD_TIME, CustomResource
from usage_plan_key.errors import EventError, OutOfTimeError, TurnOverError, UndeliveredError
from usage_plan_key.model import Response
from usage_plan_key.request import Request, parse
from usage_plan_key.response import LONGEST_RESPONSE, Sender, where

from . import answers
from .answers import ATTACHED, EVENTS, ID, VALUE, WHERE, Lines, event, failed
from .memory import Clock, within

environment, sink, everything = answers.environment, answers.sink, answers.everything


class Context:
    """Lambda's context of a function whose time is up in so many seconds."""

    aws_request_id = "1d5dac8f"
    function_name = "usage-plan-key"
    log_group_name = "/aws/lambda/usage-plan-key"
    log_stream_name = "2026/03/02/[$LATEST]5f3c"

    def __init__(self, seconds: float = 900) -> None:
        self._end = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return int((self._end - time.monotonic()) * 1000)


Serve = Callable[[], Response]


Run = Callable[[Context], None]


class Prepare(Protocol):
    """Prepares to answer an event; the call that it returns serves the event and answers it."""

    #: How long before the function's end its guard strikes, in seconds.
    guard: float

    def __call__(self, event: Mapping[str, Any], serve: Serve, give_up: Serve = ...) -> Run: ...


def hopeless(request: Request) -> Response:
    return Response(success=False, id=request.answer_id, reason="No answer in time")


def a_resource(
    request: Request, serve: Serve, give_up: Serve, deliver: Callable[[bytes], None], where_: str
) -> custom_resource.CustomResource:
    resource = CustomResource(request, give_up, deliver, where_)
    for register in (resource.create, resource.update, resource.delete):
        register(resource.served_by(serve))
    return resource


class Ours:
    guard = GUARD_TIME

    def __init__(self) -> None:
        self._sender = Sender()

    def __call__(self, event: Mapping[str, Any], serve: Serve, give_up: Serve | None = None) -> Run:
        request = parse(event)
        deliver = partial(self._sender.deliver, request, within(60, Clock()))
        resource = a_resource(
            request, serve, give_up or partial(hopeless, request), deliver, where(Context())
        )
        return partial(resource.answer, event)


class Plain:
    """crhelper as its README has it: one helper, and a function that returns an id or raises."""

    guard = 0.5

    def __init__(self) -> None:
        self._helper: Any = None

    def __call__(self, event: Mapping[str, Any], serve: Serve, give_up: Serve | None = None) -> Run:
        if self._helper is None:
            self._helper = CfnResource()
        helper = self._helper

        def served(event: Mapping[str, Any], context: Context) -> str:
            given = serve()
            if not given.success:
                raise RuntimeError(given.reason)
            helper.Data["KeyName"] = given.key_name
            if given.value is not None:
                helper.Data["Value"] = given.value
                helper.NoEcho = True
            return given.id

        for register in (helper.create, helper.update, helper.delete):
            register(served)
        return partial(helper, event)


#: The same test with and without the override. Strict: the day on which crhelper mends a defect, its override
#: goes.
mended = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(Ours, id="ours"),
        pytest.param(
            Plain,
            id="crhelper",
            marks=[
                pytest.mark.xfail(raises=AssertionError, reason="crhelper's defect"),
                pytest.mark.filterwarnings("ignore::ResourceWarning"),  # It closes no socket either.
            ],
        ),
    ],
)


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


def attached() -> Response:
    return ATTACHED


class TestMended:
    """The overrides mend each defect of crhelper."""

    @mended
    def test_a_delete_does_not_sleep(self, kind: type[Prepare], sink: Sink, naps: list[float]) -> None:
        kind()(event(sink, "delete"), attached)(Context())
        assert (naps, len(sink.puts)) == ([], 1)

    @mended
    def test_no_boto3_client_is_made(
        self, kind: type[Prepare], sink: Sink, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[str] = []
        monkeypatch.setattr(boto3, "client", lambda service, **_: made.append(service))
        kind()(event(sink), attached)(Context())
        assert made == []

    @pytest.mark.parametrize("before", [None, "true", "its own"])
    def test_the_variable_that_makes_it_skip_the_clients_stays_as_it_was(
        self, before: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("AWS_SAM_LOCAL", raising=False)
        if before is not None:
            monkeypatch.setenv("AWS_SAM_LOCAL", before)
        with custom_resource._as_if_local():
            assert os.environ["AWS_SAM_LOCAL"] == "true"
        assert os.environ.get("AWS_SAM_LOCAL") == before

    @mended
    @pytest.mark.parametrize("level", [logging.WARNING, logging.INFO], ids=logging.getLevelName)
    @pytest.mark.parametrize("late", [False, True], ids=["before it is made", "between two requests"])
    def test_the_root_loggers_level_stays(
        self, kind: type[Prepare], sink: Sink, level: int, *, late: bool
    ) -> None:
        root = logging.getLogger()
        root.setLevel(logging.ERROR if late else level)
        run = kind()(event(sink), attached)
        if late:
            root.setLevel(level)
        run(Context())
        assert root.level == level

    def test_the_root_logger_may_have_a_level_of_its_own(self, sink: Sink) -> None:
        logging.getLogger().setLevel(15)
        Ours()(event(sink), attached)(Context())
        assert [answer["Status"] for answer in sink.answers] == ["SUCCESS"]

    @mended
    @pytest.mark.parametrize("name", EVENTS)
    @pytest.mark.parametrize("reply", [200, 403])
    def test_nothing_secret_is_logged(
        self, kind: type[Prepare], sink: Sink, name: str, reply: int, everything: Lines
    ) -> None:
        sink.replies = [reply]
        asked = event(sink, name)
        asked["ResourceProperties"] = {**asked["ResourceProperties"], "IncludeValue": "true"}
        kind()(asked, lambda: ATTACHED._replace(value=VALUE))(Context())
        assert everything.secrets(sink.url) == []

    @mended
    def test_noecho_is_set_anew_on_every_answer(self, kind: type[Prepare], sink: Sink) -> None:
        prepare, asked = kind(), event(sink)
        with_value = {**asked, "ResourceProperties": {**asked["ResourceProperties"], "IncludeValue": "true"}}
        prepare(with_value, lambda: ATTACHED._replace(value=VALUE))(Context())
        prepare(asked, attached)(Context())
        assert [answer["NoEcho"] for answer in sink.answers] == [True, False]

    @mended
    @pytest.mark.parametrize(
        "lacking", ["StackId", "RequestId", "LogicalResourceId", "ResponseURL", "RequestType"]
    )
    def test_a_fault_of_a_second_event_is_not_answered_to_the_first_ones_url(
        self, kind: type[Prepare], sink: Sink, lacking: str
    ) -> None:
        prepare, asked = kind(), event(sink)
        prepare(asked, attached)(Context())
        broken = {name: value for name, value in asked.items() if name != lacking}
        with contextlib.suppress(EventError):
            prepare(broken, attached)(Context())
        assert len(sink.puts) == 1

    @mended
    def test_a_5xx_is_tried_again(self, kind: type[Prepare], sink: Sink) -> None:
        sink.replies = [503, 500, 200]
        kind()(event(sink), attached)(Context())
        assert len(sink.puts) == 3
        assert len({put.body for put in sink.puts}) == 1

    @mended
    def test_a_4xx_is_final_and_an_error(self, kind: type[Prepare], sink: Sink, everything: Lines) -> None:
        sink.replies = [403]
        kind()(event(sink), attached)(Context())
        assert len(sink.puts) == 1
        assert (
            "CloudFormation refused the answer with status 403: it no longer waits for it"
            in everything.errors
        )

    @mended
    def test_network_errors_are_not_retried_for_ever(
        self, kind: type[Prepare], sink: Sink, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sink.replies = ["close"] * 1000

        def sleep(seconds: float) -> None:
            assert len(sink.puts) < 100, "it would go on for ever"

        monkeypatch.setattr("crhelper.utils.time.sleep", sleep)
        with pytest.raises(UndeliveredError):
            kind()(event(sink), attached)(Context())
        assert len(sink.puts) > 1

    @mended
    @pytest.mark.parametrize("name", ["create", "update-move", "delete"])
    def test_when_time_is_up_there_is_one_answer_and_it_has_an_id(
        self, kind: type[Prepare], sink: Sink, name: str
    ) -> None:
        asked = event(sink, name)

        def hang() -> Response:
            assert sink.wait(), "the guard does not strike"
            return ATTACHED

        kind()(asked, hang)(Context(kind.guard + 0.1))
        given = [(answer["Status"], answer["PhysicalResourceId"]) for answer in sink.answers]
        assert given == [("FAILED", asked.get("PhysicalResourceId", ID))]

    @mended
    @pytest.mark.parametrize("stack", [EVENTS["create"]["StackId"], "no-arn"])
    def test_a_create_that_fails_has_the_id_that_its_properties_give(
        self, kind: type[Prepare], sink: Sink, stack: str
    ) -> None:
        def serve() -> Response:
            raise RuntimeError("no such thing")

        kind()(event(sink, StackId=stack), serve)(Context())
        (answer,) = sink.answers
        assert (answer["Status"], answer["PhysicalResourceId"]) == ("FAILED", ID)
        assert "no such thing" in answer["Reason"]

    @mended
    def test_an_answer_has_at_most_4096_bytes(self, kind: type[Prepare], sink: Sink) -> None:
        named = Response(success=True, id=ID, outcome="ATTACHED", key_name="🔑" * 1024)
        kind()(event(sink), lambda: named)(Context())
        assert len(sink.puts[0].body) <= LONGEST_RESPONSE

    @mended
    @pytest.mark.parametrize("letter", ["x", "ß", "€", "🔑", '"', "\\", "\n", "\x00"], ids=ascii)
    @pytest.mark.parametrize("length", [300, 5000])
    def test_a_long_reason_keeps_its_beginning_and_says_where_the_log_is(
        self, kind: type[Prepare], sink: Sink, letter: str, length: int
    ) -> None:
        kind()(event(sink), lambda: failed("What matters. " + letter * length))(Context())
        (answer,) = sink.answers
        assert answer["Reason"].startswith("What matters. " + letter * 200)
        assert answer["Reason"].endswith(f" ({WHERE})")
        assert len(sink.puts[0].body) <= LONGEST_RESPONSE

    @mended
    def test_one_tls_context_serves_all(
        self, kind: type[Prepare], sink: Sink, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make, made = ssl.create_default_context, []

        def counted(*args: Any, **kwargs: Any) -> ssl.SSLContext:
            made.append(args)
            return make(*args, **kwargs)

        monkeypatch.setattr(ssl, "create_default_context", counted)
        prepare = kind()
        for name in ("create", "update-verify", "delete"):
            prepare(event(sink, name), attached)(Context())
        assert (len(sink.puts), len(made)) == (3, 1)
        assert len(sink.connections) == 1

    @pytest.mark.parametrize("reply", [500, "close"])
    def test_says_when_it_could_not_deliver_but_not_where_to(
        self, sink: Sink, reply: Any, everything: Lines
    ) -> None:
        sink.replies = [reply] * 1000
        asked = event(sink)
        asked["ResourceProperties"] = {**asked["ResourceProperties"], "IncludeValue": "true"}
        with pytest.raises(UndeliveredError) as raised:
            Ours()(asked, lambda: ATTACHED._replace(value=VALUE))(Context())
        assert str(raised.value) == "Could not deliver the answer to 127.0.0.1: no time is left"
        assert raised.value.__suppress_context__, "urllib3's errors name the URL"
        assert everything.secrets(sink.url) == []
        tried_again = [record for record in everything.records if record.name == "usage_plan_key.response"]
        assert len(tried_again) == len(sink.puts) > 1

    def test_the_common_start_of_every_instance_is_made_without_a_trace(self, levels: None) -> None:
        root = logging.getLogger()
        root.setLevel(15)
        made = custom_resource._fresh()
        assert (root.level, made["_sleep_on_delete"]) == (15, 0)
        assert logging.getLogger("botocore").level == logging.ERROR


class TestAlwaysAnswered:
    """An unexpected error becomes one FAILED answer."""

    def failed(self, serve: Serve, give_up: Serve = failed, seconds: float = 900, **changes: Any) -> str:
        """The one answer's Reason."""
        delivered: list[bytes] = []
        asked = {**EVENTS["create"], **changes}
        a_resource(parse(asked), serve, give_up, delivered.append, WHERE).answer(asked, Context(seconds))
        (answer,) = [json.loads(one) for one in delivered]
        assert (answer["Status"], answer["PhysicalResourceId"]) == ("FAILED", ID)
        assert answer["Reason"].endswith(f" ({WHERE})")
        return str(answer["Reason"])

    def test_serving_that_raises(self, caplog: pytest.LogCaptureFixture) -> None:
        def serve() -> Response:
            raise RuntimeError("no such thing")

        assert self.failed(serve).startswith(
            "An internal error, please report it: RuntimeError: no such thing ("
        )
        assert [record.message for record in caplog.records] == ["An internal error"]

    def test_an_answer_that_cannot_be_put_together(self) -> None:
        odd: Any = object()
        named = Response(success=True, id=ID, outcome="ATTACHED", key_name=odd)
        assert self.failed(lambda: named).startswith("An internal error, please report it: TypeError: ")

    def test_time_that_is_up_unexpectedly(self) -> None:
        """Only the subclass TurnOverError says that the queue delivers the request again."""

        def serve() -> Response:
            raise OutOfTimeError("the time is up")

        assert "the time is up" in self.failed(serve)

    def test_a_guard_that_raises(self) -> None:
        struck = threading.Event()

        def serve() -> Response:
            assert struck.wait(5)
            time.sleep(0.1)
            return ATTACHED

        def give_up() -> Response:
            struck.set()
            raise RuntimeError("no such thing")

        assert "no such thing" in self.failed(serve, give_up, GUARD_TIME + 0.05)

    def test_a_context_that_does_not_tell_the_time(self) -> None:
        delivered: list[bytes] = []
        context = Context()
        context.get_remaining_time_in_millis = lambda: int("soon")  # type: ignore[method-assign]  # a stand-in
        asked = EVENTS["create"]
        a_resource(parse(asked), attached, failed, delivered.append, WHERE).answer(asked, context)
        (answer,) = [json.loads(one) for one in delivered]
        assert (answer["Status"], answer["PhysicalResourceId"]) == ("FAILED", ID)
        assert answer["Reason"].startswith("An internal error, please report it: invalid literal")

    @pytest.mark.parametrize("name", EVENTS)
    def test_crhelpers_own_keys_in_an_event_change_nothing(self, name: str) -> None:
        """Plain crhelper would call a polling function, which does not exist."""
        delivered: list[bytes] = []
        keys = {"CrHelperPoll": True, "CrHelperData": "x", "CrHelperPermission": 1, "CrHelperRule": None}
        asked = {**EVENTS[name], **keys}
        a_resource(parse(asked), attached, failed, delivered.append, WHERE).answer(asked, Context())
        assert [json.loads(one)["Status"] for one in delivered] == ["SUCCESS"]

    def test_a_request_whose_turn_is_over_is_not_answered(self) -> None:
        delivered: list[bytes] = []

        def serve() -> Response:
            raise TurnOverError("It", "the turn is over")

        asked = EVENTS["create"]
        with pytest.raises(TurnOverError, match="the turn is over"):
            a_resource(parse(asked), serve, failed, delivered.append, WHERE).answer(asked, Context())
        assert delivered == []

    def test_an_internal_error_is_failed(self) -> None:
        resource = a_resource(parse(EVENTS["create"]), attached, attached, lambda _: None, WHERE)
        told = json.loads(resource._internal_error("no such thing"))
        reason = f"An internal error, please report it: no such thing ({WHERE})"
        assert (told["Status"], told["PhysicalResourceId"], told["Reason"]) == ("FAILED", ID, reason)


class TestGuard:
    """The guard answers when a call hangs until the function's time is nearly up."""

    def test_the_answer_in_the_ledger_stands(self, sink: Sink) -> None:
        """The guard sends the ledger's answer, which the call under way may have just written."""
        prepare = Ours()

        def hang() -> Response:
            assert sink.wait()
            return failed()

        prepare(event(sink), hang, give_up=attached)(Context(GUARD_TIME + 0.05))
        assert [answer["Status"] for answer in sink.answers] == ["SUCCESS"]

    def test_its_timer_keeps_no_process_alive_and_leaves_its_time_to_answer(self, sink: Sink) -> None:
        timers: list[threading.Timer] = []

        def serve() -> Response:
            timers.extend(each for each in threading.enumerate() if isinstance(each, threading.Timer))
            return failed()

        Ours()(event(sink), serve)(Context(900))
        (timer,) = timers
        assert timer.daemon
        assert timer.interval == pytest.approx(900 - GUARD_TIME, abs=0.1)

    def test_it_knows_which_request_its_log_lines_are_about(self, sink: Sink) -> None:
        about: ContextVar[str] = ContextVar("about", default="nothing")
        seen: list[str] = []

        def hang() -> Response:
            assert sink.wait()
            return failed()

        def give_up() -> Response:
            seen.append(about.get())
            return failed()

        token = about.set("this request")
        Ours()(event(sink), hang, give_up)(Context(GUARD_TIME + 0.05))
        about.reset(token)
        assert seen == ["this request"]

    def test_does_not_strike_once_the_request_is_served(self, sink: Sink) -> None:
        struck: list[str] = []

        def give_up() -> Response:
            struck.append("guard")
            return failed()

        Ours()(event(sink), attached, give_up)(Context(GUARD_TIME + 0.3))
        time.sleep(0.4)
        assert (struck, len(sink.puts)) == ([], 1)

    @pytest.mark.parametrize("first", ["guard", "call"])
    def test_the_second_of_the_guard_and_the_call_says_nothing(self, first: str) -> None:
        """Both come at the same time; the function makes one body, and delivers it once."""
        delivered: list[bytes] = []
        in_call, in_guard = threading.Event(), threading.Event()

        def serve() -> Response:
            in_call.set()
            assert in_guard.wait(5)
            if first == "guard":
                time.sleep(0.1)
            return ATTACHED

        def give_up() -> Response:
            assert in_call.wait(5)
            in_guard.set()
            if first == "call":
                time.sleep(0.1)
            return failed()

        asked = EVENTS["create"]
        resource = a_resource(parse(asked), serve, give_up, delivered.append, WHERE)
        resource.answer(asked, Context(GUARD_TIME + 0.05))
        time.sleep(0.2)
        assert [json.loads(one)["Status"] for one in delivered] == [
            "SUCCESS" if first == "call" else "FAILED"
        ]

    def test_the_first_body_stands(self) -> None:
        """Between the guard's answer and its delivery the call under way may end."""
        delivered: list[bytes] = []
        asked = EVENTS["create"]
        resource = a_resource(parse(asked), attached, failed, delivered.append, WHERE)
        resource._put_together(failed)
        resource.answer(asked, Context())
        assert [json.loads(one)["Status"] for one in delivered] == ["FAILED"]

    def test_the_log_says_that_a_call_hangs(self, caplog: pytest.LogCaptureFixture) -> None:
        def serve() -> Response:
            time.sleep(0.2)
            return attached()

        asked = EVENTS["create"]
        a_resource(parse(asked), serve, failed, lambda _: None, WHERE).answer(
            asked, Context(GUARD_TIME + 0.05)
        )
        assert "The function's time is nearly up, and a call hangs" in caplog.messages

    def test_the_invocation_lasts_until_the_guards_answer_is_delivered(self) -> None:
        """Lambda freezes every thread when the handler returns."""
        delivered: list[bytes] = []
        striking = threading.Event()

        def deliver(answer: bytes) -> None:
            striking.set()
            time.sleep(0.2)
            delivered.append(answer)

        def serve() -> Response:
            assert striking.wait(5)
            return ATTACHED

        asked = EVENTS["create"]
        resource = a_resource(parse(asked), serve, failed, deliver, WHERE)
        resource.answer(asked, Context(GUARD_TIME + 0.05))
        count = len(delivered)
        time.sleep(0.3)  # Let no thread outlive the test.
        assert count == 1

    def test_the_invocation_fails_when_the_guards_answer_cannot_be_delivered(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(threading, "excepthook", lambda _: None)
        struck = threading.Event()

        def deliver(answer: bytes) -> None:
            struck.set()
            raise UndeliveredError("no time is left")

        def serve() -> Response:
            assert struck.wait(5)
            return ATTACHED

        asked = EVENTS["create"]
        resource = a_resource(parse(asked), serve, failed, deliver, WHERE)
        with pytest.raises(UndeliveredError):
            resource.answer(asked, Context(GUARD_TIME + 0.05))
