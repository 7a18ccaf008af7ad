"""How an answer leaves: each override of custom_resource.py mends a defect that plain crhelper has, which the same test shows."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import boto3
import pytest
import urllib3
from crhelper import CfnResource

from usage_plan_key import custom_resource, response
from usage_plan_key.custom_resource import GUARD_TIME, CustomResource
from usage_plan_key.errors import EventError, FailedError, OutOfTimeError, TurnOverError, UndeliveredError
from usage_plan_key.model import Response
from usage_plan_key.request import Request, parse
from usage_plan_key.response import LONGEST_RESPONSE, MOST_REDIRECTS, Sender, body, check_value_host, destination, redacted, where
from usage_plan_key.retry import Deadline

from .memory import Clock
from .sink import SIGNATURE, Proxy, Put, Sink

EVENTS = {path.stem: json.loads(path.read_text()) for path in sorted(Path("events").glob("*.json"))}
ID = "a1b2c3d4e5:f7r3e3"
VALUE = "s3cr3t-s3cr3t-s3cr3t-s3cr3t"
WHERE = "function usage-plan-key, log group /aws/lambda/usage-plan-key, log stream 2026/03/02/[$LATEST]5f3c"
ATTACHED = Response(success=True, id=ID, outcome="ATTACHED", key_name="alice")


class Context:
    """Lambda's, of a function whose time is up in so many seconds."""

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
    """Makes ready to answer an event; what comes of it serves the event and answers it."""

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
        deliver = partial(self._sender.deliver, request, Deadline(60, Clock()))
        resource = a_resource(request, serve, give_up or partial(hopeless, request), deliver, where(Context()))
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


#: The same test with and without the override. Strict: the day on which crhelper mends a defect, its override goes.
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
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    for name in ("https_proxy", "http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


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
    """How long crhelper sleeps on a Delete; nobody waits for it."""
    naps: list[float] = []
    monkeypatch.setattr("crhelper.resource_helper.CfnResource._wait_for_cwlogs.__defaults__", (naps.append,))
    return naps


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sink]:
    with Sink() as sink:
        monkeypatch.setenv("SSL_CERT_FILE", str(sink.certificate))
        yield sink


def event(sink: Sink, name: str = "create", **changes: Any) -> dict[str, Any]:
    return {**EVENTS[name], "ResponseURL": sink.url, **changes}


def failed(reason: str = "The plan is full") -> Response:
    return Response(success=False, id=ID, reason=reason)


def attached() -> Response:
    return ATTACHED


class TestMended:
    """What is wrong with crhelper is right here."""

    @mended
    def test_a_delete_does_not_sleep(self, kind: type[Prepare], sink: Sink, naps: list[float]) -> None:
        kind()(event(sink, "delete"), attached)(Context())
        assert (naps, len(sink.puts)) == ([], 1)

    @mended
    def test_no_boto3_client_is_made(self, kind: type[Prepare], sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[str] = []
        monkeypatch.setattr(boto3, "client", lambda service, **_: made.append(service))
        kind()(event(sink), attached)(Context())
        assert made == []

    @pytest.mark.parametrize("before", [None, "true", "its own"])
    def test_what_makes_it_skip_the_clients_stays_as_it_was(self, before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_SAM_LOCAL", raising=False)
        if before is not None:
            monkeypatch.setenv("AWS_SAM_LOCAL", before)
        with custom_resource._as_if_local():
            assert os.environ["AWS_SAM_LOCAL"] == "true"
        assert os.environ.get("AWS_SAM_LOCAL") == before

    @mended
    @pytest.mark.parametrize("level", [logging.WARNING, logging.INFO], ids=logging.getLevelName)
    @pytest.mark.parametrize("late", [False, True], ids=["before it is made", "between two requests"])
    def test_the_root_loggers_level_stays(self, kind: type[Prepare], sink: Sink, level: int, *, late: bool) -> None:
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
    def test_nothing_secret_is_logged(self, kind: type[Prepare], sink: Sink, name: str, reply: int, everything: Lines) -> None:
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
    @pytest.mark.parametrize("lacking", ["StackId", "RequestId", "LogicalResourceId", "ResponseURL", "RequestType"])
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
        assert "CloudFormation refused the answer with status 403: it waits for it no longer" in everything.errors

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
    def test_when_time_is_up_there_is_one_answer_and_it_has_an_id(self, kind: type[Prepare], sink: Sink, name: str) -> None:
        asked = event(sink, name)

        def hang() -> Response:
            assert sink.wait(), "the guard does not strike"
            return ATTACHED

        kind()(asked, hang)(Context(kind.guard + 0.1))
        given = [(answer["Status"], answer["PhysicalResourceId"]) for answer in sink.answers]
        assert given == [("FAILED", asked.get("PhysicalResourceId", ID))]

    @mended
    @pytest.mark.parametrize("stack", [EVENTS["create"]["StackId"], "no-arn"])
    def test_a_create_that_fails_has_the_id_that_its_properties_give(self, kind: type[Prepare], sink: Sink, stack: str) -> None:
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
    def test_one_tls_context_serves_all(self, kind: type[Prepare], sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
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


class Lines(logging.Handler):
    """Every record, of every logger that lets it through."""

    def __init__(self) -> None:
        super().__init__(level=1)
        self.records: list[logging.LogRecord] = []
        self.setFormatter(logging.Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        record.text = self.format(record)
        self.records.append(record)

    @property
    def errors(self) -> list[str]:
        return [record.getMessage() for record in self.records if record.levelno == logging.ERROR]

    def secrets(self, url: str) -> list[str]:
        """Each record that shows a secret in its text, its traceback or its attributes."""
        shown = [f"{record.name}: {record.__dict__}" for record in self.records]
        return [line for line in shown if VALUE in line or SIGNATURE in line or url in line]


@pytest.fixture
def everything() -> Iterator[Lines]:
    """The root logger at DEBUG, as Lambda's ApplicationLogLevel can have it."""
    lines, root, package = Lines(), logging.getLogger(), logging.getLogger("usage_plan_key")
    level, package_level = root.level, package.level
    root.addHandler(lines)
    root.setLevel(logging.DEBUG)
    package.setLevel(logging.DEBUG)
    yield lines
    root.removeHandler(lines)
    root.setLevel(level)
    package.setLevel(package_level)


def s3_says(code: str) -> bytes:
    """A 400 of S3's, as it goes over the wire."""
    xml = f"<Error><Code>{code}</Code><Message>No</Message></Error>"
    return f"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: {len(xml)}\r\n\r\n{xml}".encode()


def redirect(location: str, status: int = 307) -> bytes:
    return f"HTTP/1.1 {status} Elsewhere\r\nlocation: {location}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode()


class TestSender:
    """What becomes of a PUT."""

    def deliver(self, sink: Sink, seconds: float = 60.0) -> Clock:
        clock = Clock()
        Sender().deliver(parse(event(sink)), Deadline(seconds, clock), b'{"Status":"SUCCESS"}')
        return clock

    def deliver_value(self, sink: Sink) -> None:
        """Deliver a value, where the sink is an emulator that may have it."""
        own = sink.url.split("/")[2]
        check = partial(check_value_host, region="eu-central-1", suffix="amazonaws.com", emulator=own)
        Sender(check).deliver(parse(event(sink)), Deadline(60, Clock()), json.dumps({"Data": {"Value": VALUE}}).encode())

    def test_what_could_not_be_made_ready_is_made_anew(self, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
        """Or no later request of the same process would be answered."""
        sender, made = Sender(), response._tls

        def no_context() -> ssl.SSLContext:
            raise MemoryError

        monkeypatch.setattr(response, "_tls", no_context)
        with pytest.raises(MemoryError):
            sender.prepare().result()
        monkeypatch.setattr(response, "_tls", made)
        sender.deliver(parse(event(sink)), Deadline(60.0, Clock()), b"{}")
        assert len(sink.puts) == 1
        assert sender.prepare() is sender.prepare(), "and what was made serves all that follow"

    def test_sends_the_body_with_its_length_and_an_empty_content_type(self, sink: Sink) -> None:
        self.deliver(sink)
        (put,) = sink.puts
        assert isinstance(put, Put)
        assert (put.headers["content-type"], put.headers["content-length"]) == ("", "20")
        assert "transfer-encoding" not in put.headers
        assert re.fullmatch(rf"/stack%7Cresource\?X-Amz-Date=\w{{16}}&{SIGNATURE}", put.path)
        assert put.body == b'{"Status":"SUCCESS"}'

    @pytest.mark.parametrize(
        "reply",
        [
            *(408, 409, 429, 500, 503, 599, "close"),
            *(pytest.param(s3_says(code), id=code) for code in ("RequestTimeout", "IncompleteBody")),
            pytest.param(s3_says("RequestTimeout")[:80], id="a 400 that breaks off before it says why"),
            pytest.param(b"HTTP/1.1 2", id="a status that breaks off"),
        ],
    )
    def test_backs_off_before_it_tries_again(self, sink: Sink, reply: Any) -> None:
        began = Clock().now
        sink.replies = [reply] * 5
        clock = self.deliver(sink)
        assert len(sink.puts) == 6
        assert 0 < clock.now - began < 0.5 * (1 + 2 + 4 + 8 + 16)

    @pytest.mark.parametrize(
        "reply",
        [
            *(300, 301, 302, 303, 304, 400, 403, 404, 407, 410, 428, 430, 499),
            pytest.param(s3_says("AccessDenied"), id="AccessDenied"),
            pytest.param(s3_says("RequestTimeout").replace(b" 400 ", b" 403 "), id="the code of a 400 without its status"),
            pytest.param(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 9\r\n\r\n<", id="a 403 that breaks off"),
            pytest.param(b"HTTP/1.1 307 Temporary Redirect\r\ncontent-length: 0\r\n\r\n", id="a redirect to nowhere"),
            pytest.param(b"HTTP/1.1 199 Odd\r\ncontent-length: 0\r\n\r\n", id="199"),
        ],
    )
    def test_any_other_refusal_is_final_and_counted(self, sink: Sink, reply: Any, capsys: pytest.CaptureFixture[str]) -> None:
        sink.replies = [reply]
        self.deliver(sink)
        assert len(sink.puts) == 1
        metric = json.loads(capsys.readouterr().out)
        assert metric["AnswerRefused"] == [1.0]
        (metrics,) = metric["_aws"]["CloudWatchMetrics"]
        assert metrics["Namespace"] == "UsagePlanKey"
        assert [named["Name"] for named in metrics["Metrics"]] == ["AnswerRefused"]

    @pytest.mark.parametrize("reply", [b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nta", b"HTTP/1.1 200 OK\r\nserv", 201, 204])
    def test_a_reply_that_breaks_off_after_its_status_has_that_status(
        self, sink: Sink, reply: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        sink.replies = [reply]
        self.deliver(sink)
        assert len(sink.puts) == 1
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize("status", [307, 308])
    @pytest.mark.parametrize("relative", [True, False], ids=["relative", "absolute"])
    def test_follows_a_redirect(self, sink: Sink, status: int, capsys: pytest.CaptureFixture[str], *, relative: bool) -> None:
        sink.replies = [redirect("/there?a=%7C" if relative else sink.url.replace("/stack", "/there"), status)]
        self.deliver_value(sink)
        assert [put.path.partition("?")[0][:6] for put in sink.puts] == ["/stack", "/there"]
        assert [put.answer["Data"]["Value"] for put in sink.puts] == [VALUE, VALUE]
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize(("redirects", "taken"), [(MOST_REDIRECTS, True), (MOST_REDIRECTS + 1, False)])
    def test_follows_five_redirects_in_a_row(
        self, sink: Sink, redirects: int, capsys: pytest.CaptureFixture[str], *, taken: bool
    ) -> None:
        assert MOST_REDIRECTS == 5
        sink.replies = [307] * redirects
        self.deliver(sink)
        assert len(sink.puts) == 6
        assert ("AnswerRefused" in capsys.readouterr().out) is not taken

    def test_a_redirect_that_leads_to_trouble_is_begun_anew(self, sink: Sink) -> None:
        sink.replies = [307, 503]
        self.deliver(sink)
        assert [put.path.partition("?")[0] for put in sink.puts] == ["/stack%7Cresource", "/elsewhere", "/stack%7Cresource"]

    def test_follows_no_redirect_when_no_time_is_left(self, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = Clock()
        slow = urllib3.PoolManager.urlopen

        def urlopen(*args: Any, **kwargs: Any) -> Any:
            clock.now += 3
            return slow(*args, **kwargs)

        monkeypatch.setattr(urllib3.PoolManager, "urlopen", urlopen)
        sink.replies = [307] * 5
        with pytest.raises(UndeliveredError):
            Sender().deliver(parse(event(sink)), Deadline(10.0, clock), b"{}")
        assert len(sink.puts) == 3, "each may take three seconds"

    @pytest.mark.parametrize(
        ("location", "sentence"),
        [
            ("http://127.0.0.1/", "the redirect is not https"),
            (f"https://me:{SIGNATURE}@127.0.0.1/", "the redirect has user info"),
            (f"https://127.0.0.1\\@x/?{SIGNATURE}", "the redirect has a backslash, white space or a control character"),
            (f"https://[{SIGNATURE}/", "the redirect cannot be read"),
            ("ftp://x", "the redirect is not https"),
        ],
    )
    def test_a_redirect_that_must_not_be_followed_is_final(
        self, sink: Sink, location: str, sentence: str, everything: Lines, capsys: pytest.CaptureFixture[str]
    ) -> None:
        sink.replies = [redirect(location)]
        self.deliver(sink)
        assert (everything.errors, len(sink.puts)) == ([f"The answer was not sent: {sentence}"], 1)
        assert "AnswerRefused" in capsys.readouterr().out

    def test_a_value_is_not_redirected_elsewhere(self, sink: Sink, everything: Lines, capsys: pytest.CaptureFixture[str]) -> None:
        with Sink(certificate=sink.certificate.read_bytes()) as other:
            sink.replies = [redirect(other.url), redirect(other.url)]
            self.deliver_value(sink)
            assert (len(sink.puts), other.puts) == (1, [])
            assert (
                "no host but cloudformation-custom-resource-response-eucentral1.s3.eu-central-1.amazonaws.com"
                in everything.errors[0]
            )
            assert "AnswerRefused" in capsys.readouterr().out
            self.deliver(sink)
            assert len(other.puts) == 1, "what carries no value is"

    def test_no_value_leaves_for_a_host_that_is_not_cloudformations(self, sink: Sink, everything: Lines) -> None:
        """Whatever came before: the request may have been put into the queue by a stranger."""
        check = partial(check_value_host, region="eu-central-1", suffix="amazonaws.com", emulator="127.0.0.1:1")
        asked = event(sink)
        asked["ResourceProperties"] = {**asked["ResourceProperties"], "IncludeValue": "true"}
        request = parse(asked)
        for served in (ATTACHED._replace(value=VALUE), failed()):
            Sender(check).deliver(request, Deadline(60, Clock()), body(request, served, WHERE))
        assert [answer["Status"] for answer in sink.answers] == ["FAILED"]
        assert len(everything.errors) == 1

    def test_counts_nothing_when_the_answer_is_taken(self, sink: Sink, capsys: pytest.CaptureFixture[str]) -> None:
        self.deliver(sink)
        assert capsys.readouterr().out == ""

    def test_does_not_wait_for_one_who_hangs(self, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
        assert response._PUT_TIMEOUT.read_timeout == 2.0
        monkeypatch.setattr(response, "_PUT_TIMEOUT", urllib3.Timeout(connect=1, read=0.1))
        sink.replies = ["hang", 200]
        began = time.monotonic()
        self.deliver(sink)
        assert len(sink.puts) == 2
        assert time.monotonic() - began < 2

    @pytest.mark.parametrize("reply", [500, "close"])
    def test_says_when_it_could_not_deliver_but_not_where_to(self, sink: Sink, reply: Any, everything: Lines) -> None:
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

    def test_an_error_that_names_the_url_is_named_by_its_type_alone(
        self, sink: Sink, monkeypatch: pytest.MonkeyPatch, everything: Lines
    ) -> None:
        def request(_: object, __: str, url: str, **___: object) -> None:
            raise urllib3.exceptions.MaxRetryError(urllib3.HTTPSConnectionPool("127.0.0.1"), url)

        monkeypatch.setattr(urllib3.PoolManager, "urlopen", request)
        with pytest.raises(UndeliveredError):
            self.deliver(sink)
        assert "The answer's PUT failed, trying again: MaxRetryError" in [one.getMessage() for one in everything.records]
        assert everything.secrets(sink.url) == []

    @pytest.mark.parametrize("name", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
    def test_trusts_whom_boto3_is_told_to_trust(self, sink: Sink, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SSL_CERT_FILE")
        monkeypatch.setenv(name, str(sink.certificate))
        self.deliver(sink)
        assert len(sink.puts) == 1

    def test_the_bundle_of_aws_comes_first(self, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
        """As in botocore; and a variable that is empty says nothing."""
        monkeypatch.delenv("SSL_CERT_FILE")
        with Sink() as other:
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(sink.certificate))
            monkeypatch.setenv("AWS_CA_BUNDLE", str(other.certificate))
            with pytest.raises(UndeliveredError):
                self.deliver(sink)
            monkeypatch.setenv("AWS_CA_BUNDLE", "")
            self.deliver(sink)
            assert len(sink.puts) == 1

    @pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
    @pytest.mark.parametrize("prefix", ["", "http://", "http://me:se%63ret@"])
    def test_goes_through_the_proxy_that_boto3_would_use(
        self, sink: Sink, name: str, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Proxy() as proxy:
            monkeypatch.setenv(name, f"{prefix}{proxy.netloc}")
            self.deliver(sink)
        assert len(sink.puts) == 1
        authorization = "Basic bWU6c2VjcmV0" if "@" in prefix else None
        assert proxy.connects == [(sink.url.split("/")[2], authorization)]

    def test_goes_past_the_proxy_where_boto3_would(self, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
        with Proxy() as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.netloc}")
            monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
            self.deliver(sink)
        assert (len(sink.puts), proxy.connects) == (1, [])

    def test_a_proxy_and_the_direct_way_share_one_tls_context(self, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
        make, made = ssl.create_default_context, []

        def counted(*args: Any, **kwargs: Any) -> ssl.SSLContext:
            made.append(args)
            return make(*args, **kwargs)

        sender = Sender()
        with Proxy() as proxy:
            monkeypatch.setattr(ssl, "create_default_context", counted)
            for setting in (f"http://{proxy.netloc}", "", f"http://{proxy.netloc}"):
                monkeypatch.setenv("HTTPS_PROXY", setting)
                sender.deliver(parse(event(sink)), Deadline(60, Clock()), b"{}")
            assert (len(made), len(proxy.connects), len(sink.connections)) == (1, 1, 2)
            for manager in sender._managers.values():
                manager.clear()

    def test_a_proxy_that_cannot_be_reached_is_tried_again_and_not_named(
        self, sink: Sink, everything: Lines, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:{VALUE}@127.0.0.1:1")
        with pytest.raises(UndeliveredError) as raised:
            self.deliver(sink)
        assert VALUE not in str(raised.value)
        assert everything.secrets(sink.url) == []
        assert sink.puts == []

    def test_trusts_none_but_whom_it_knows(self, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(UndeliveredError):
            self.deliver(sink)
        assert sink.puts == []


#: What one parser takes for part of a host and another does not.
ODD = (
    *(r"elsewhere\@x.amazonaws.com/", r"elsewhere\.x.amazonaws.com/", r"x/\a", "x y/", " x/", "x/ a", "x\t/", "x/\r\nhost:y"),
    *("x\x00/", "x/\x7f", "x\N{NO-BREAK SPACE}/", "x\N{ZERO WIDTH SPACE}/", "x/\ud800"),
)


class TestDestination:
    """What is checked is what is connected to."""

    @pytest.mark.parametrize(
        ("url", "host", "port"),
        [
            ("https://x.s3.amazonaws.com/arn%3Aaws%7CAlice?X-Amz-Date=20260302T090000Z", "x.s3.amazonaws.com", None),
            ("HTTPS://X.amazonaws.com?a@b", "x.amazonaws.com", None),
            ("https://localhost:4566/a:b@c", "localhost", 4566),
            ("https://[::1]:4566/", "[::1]", 4566),
            ("https://x:/", "x", None),
            ("https://x/\N{LATIN SMALL LETTER E WITH ACUTE}", "x", None),
        ],
    )
    def test_a_url_of_https_has_a_host(self, url: str, host: str, port: int | None) -> None:
        read = destination(url)
        assert (read.scheme, read.host, read.port) == ("https", host, port)

    @pytest.mark.parametrize(
        ("url", "fault"),
        [
            ("http://x/", "is not https"),
            ("ftp://x/", "is not https"),
            ("//x/", "is not https"),
            ("/x", "is not https"),
            ("x", "is not https"),
            ("https:x", "has no host"),
            ("https://", "has no host"),
            ("https:///x", "has no host"),
            ("https://:443/", "has no host"),
            ("https://me@x/", "has user info"),
            ("https://me:you@x/", "has user info"),
            ("https://@x/", "has user info"),
            ("https://elsewhere%5C@x.amazonaws.com/", "has user info"),
            *((f"https://{odd}", "has a backslash, white space or a control character") for odd in ODD),
            ("https://x:99999/", "cannot be read"),
            ("https://x:y/", "cannot be read"),
            ("https://[x/", "cannot be read"),
            ("https://x\N{ACCOUNT OF}y/", "cannot be read"),
            ("https://\N{FULLWIDTH LATIN SMALL LETTER X}.amazonaws.com/", "cannot be read"),
            ("https://b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example/", ""),  # One parser encodes it, or cannot read it.
            ("https://[fe80::1%25eth0]/", "different hosts"),
        ],
    )
    def test_any_other_is_refused_in_one_sentence_that_says_nothing_of_it(self, url: str, fault: str) -> None:
        with pytest.raises(EventError) as raised:
            destination(f"{url}?{SIGNATURE}" if url != "https://" else url)
        assert fault in str(raised.value)
        assert "the ResponseURL" in str(raised.value)
        assert SIGNATURE not in str(raised.value)
        assert raised.value.__cause__ is None
        assert raised.value.__suppress_context__ or raised.value.__context__ is None

    @pytest.mark.parametrize("url", ["http://x/", "", "\\", "https://[", "pre-signed-url"])
    def test_under_sam_local_any_will_do(self, url: str) -> None:
        """SAM's own sample events have one of http."""
        destination(url, local=True)

    @pytest.mark.parametrize("url", [r"https://127.0.0.1:PORT\@x.amazonaws.com/", "https://127.0.0.1:PORT/ a"])
    def test_nothing_is_sent_where_it_is_refused(self, sink: Sink, url: str, everything: Lines) -> None:
        port = sink.url.split("/")[2].partition(":")[2]
        request = parse(event(sink))
        request.response_url = url.replace("PORT", port)
        Sender().deliver(request, Deadline(60, Clock()), b"{}")
        assert (sink.connections, len(everything.errors)) == ([], 1)


OWN = "cloudformation-custom-resource-response-euwest1"


class TestValueHost:
    """A key's value goes to CloudFormation's own host."""

    @pytest.mark.parametrize(
        ("host", "region", "suffix"),
        [
            # As they were seen in events; see FACTS.
            ("cloudformation-custom-resource-response-useast1.s3.amazonaws.com", "us-east-1", "amazonaws.com"),
            ("cloudformation-custom-resource-response-eucentral1.s3.eu-central-1.amazonaws.com", "eu-central-1", "amazonaws.com"),
            (f"{OWN}.s3-eu-west-1.amazonaws.com", "eu-west-1", "amazonaws.com"),
            ("cloudformation-custom-resource-response-cnnorth1.s3.cn-north-1.amazonaws.com.cn", "cn-north-1", "amazonaws.com.cn"),
            (
                "cloudformation-custom-resource-response-usgovwest1.s3.us-gov-west-1.amazonaws.com",
                "us-gov-west-1",
                "amazonaws.com",
            ),
            (f"{OWN}.s3.eu-west-1.amazonaws.com:443", "eu-west-1", "amazonaws.com"),
            (f"{OWN.upper()}.S3.EU-WEST-1.AmazonAWS.com", "eu-west-1", "amazonAWS.com"),
            ("localhost:4566", "eu-west-1", "amazonaws.com"),
            ("LOCALHOST:4566", "eu-west-1", "amazonaws.com"),
        ],
    )
    def test_it_is_let_through(self, host: str, region: str, suffix: str) -> None:
        check_value_host(destination(f"https://{host}/a?b"), region=region, suffix=suffix, emulator="LocalHost:4566")

    @pytest.mark.parametrize(
        "host",
        [
            "elsewhere.com",
            "s3.amazonaws.com",
            "x.amazonaws.com",
            f"{OWN}-mine.s3.eu-west-1.amazonaws.com",
            f"mine.{OWN}.s3.eu-west-1.amazonaws.com",
            "cloudformation-custom-resource-response-eucentral1.s3.eu-central-1.amazonaws.com",
            f"{OWN}.s3.eu-central-1.amazonaws.com",
            f"{OWN}.s3.eu-west-1.amazonaws.com.cn",
            f"{OWN}.s3.eu-west-1.amazonaws.com.",
            f"{OWN}.s3.eu-west-1.amazonaws.com.elsewhere.com",
            f"{OWN}.s3.eu-west-1xamazonaws.com",
            f"{OWN}.s3-website-eu-west-1.amazonaws.com",
            f"{OWN}.execute-api.eu-west-1.amazonaws.com",
            f"{OWN}.s3.eu-west-1.amazonaws.com:8443",
            f"{OWN}.s3.eu-west-1.amazonaws.com:0",
            "localhost",
            "localhost:4567",
            "localhost:443",
            "localhost.elsewhere.com:4566",
        ],
    )
    def test_any_other_is_not(self, host: str) -> None:
        url = destination(f"https://{host}/a?{SIGNATURE}")
        with pytest.raises(FailedError) as raised:
            check_value_host(url, region="eu-west-1", suffix="amazonaws.com", emulator="localhost:4566")
        assert host in str(raised.value)
        assert f"{OWN}.s3.eu-west-1.amazonaws.com" in str(raised.value)
        assert "IncludeValue" in str(raised.value)
        assert SIGNATURE not in str(raised.value)

    @pytest.mark.parametrize("suffix", ["", None])
    def test_is_not_checked_where_no_suffix_is_known(self, suffix: str | None) -> None:
        check_value_host(destination("https://elsewhere.com/"), region="eu-west-1", suffix=suffix)

    @pytest.mark.parametrize("emulator", ["", None])
    def test_no_emulator_is_no_host(self, emulator: str | None) -> None:
        with pytest.raises(FailedError):
            check_value_host(destination("https://x/"), region="eu-west-1", suffix="amazonaws.com", emulator=emulator)


class TestAlwaysAnswered:
    """What goes wrong where nobody expects it becomes one FAILED answer."""

    def failed(self, serve: Serve, give_up: Serve = failed, seconds: float = 900, **changes: Any) -> str:
        """The one answer's Reason."""
        delivered: list[bytes] = []
        asked = {**EVENTS["create"], **changes}
        a_resource(parse(asked), serve, give_up, delivered.append, WHERE).answer(asked, Context(seconds))
        (answer,) = [json.loads(one) for one in delivered]
        assert (answer["Status"], answer["PhysicalResourceId"]) == ("FAILED", ID)
        assert answer["Reason"].endswith(f" ({WHERE})")
        return str(answer["Reason"])

    def test_serving_that_raises(self) -> None:
        def serve() -> Response:
            raise RuntimeError("no such thing")

        assert self.failed(serve).startswith("An internal error, please report it: RuntimeError: no such thing (")

    def test_an_answer_that_cannot_be_put_together(self) -> None:
        odd: Any = object()
        named = Response(success=True, id=ID, outcome="ATTACHED", key_name=odd)
        assert self.failed(lambda: named).startswith("An internal error, please report it: TypeError: ")

    def test_time_that_is_up_unexpectedly(self) -> None:
        """TurnOverError alone, which is one, says that the request is served again."""

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
        """A polling function of its own would be called, and there is none."""
        delivered: list[bytes] = []
        keys = {"CrHelperPoll": True, "CrHelperData": "x", "CrHelperPermission": 1, "CrHelperRule": None}
        asked = {**EVENTS[name], **keys}
        a_resource(parse(asked), attached, failed, delivered.append, WHERE).answer(asked, Context())
        assert [json.loads(one)["Status"] for one in delivered] == ["SUCCESS"]

    def test_what_is_served_again_is_not_answered(self) -> None:
        delivered: list[bytes] = []

        def serve() -> Response:
            raise TurnOverError("the turn is over")

        asked = EVENTS["create"]
        with pytest.raises(TurnOverError, match="the turn is over"):
            a_resource(parse(asked), serve, failed, delivered.append, WHERE).answer(asked, Context())
        assert delivered == []


class TestGuard:
    """When a call hangs until the function's time is nearly up."""

    def test_what_was_written_down_first_stands(self, sink: Sink) -> None:
        """The guard gives what the ledger says: it may be the answer that the call under way has just written."""
        prepare = Ours()

        def hang() -> Response:
            assert sink.wait()
            return failed()

        prepare(event(sink), hang, give_up=attached)(Context(GUARD_TIME + 0.05))
        assert [answer["Status"] for answer in sink.answers] == ["SUCCESS"]

    def test_does_not_strike_once_the_request_is_served(self, sink: Sink) -> None:
        struck: list[str] = []

        def give_up() -> Response:
            struck.append("guard")
            return failed()

        Ours()(event(sink), attached, give_up)(Context(GUARD_TIME + 0.3))
        time.sleep(0.4)
        assert (struck, len(sink.puts)) == ([], 1)

    @pytest.mark.parametrize("first", ["guard", "call"])
    def test_whoever_comes_second_says_nothing(self, first: str) -> None:
        """Both are there at the same time; one body is made, and it is delivered once."""
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
        assert [json.loads(one)["Status"] for one in delivered] == ["SUCCESS" if first == "call" else "FAILED"]

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
        a_resource(parse(asked), serve, failed, lambda _: None, WHERE).answer(asked, Context(GUARD_TIME + 0.05))
        assert "The function's time is nearly up, and a call hangs" in caplog.messages

    def test_the_invocation_lasts_until_the_guards_answer_is_delivered(self) -> None:
        """Lambda freezes what still runs when the handler returns."""
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
        time.sleep(0.3)  # So that no thread outlives the test.
        assert count == 1

    def test_the_invocation_fails_when_the_guards_answer_cannot_be_delivered(self, monkeypatch: pytest.MonkeyPatch) -> None:
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


class TestBody:
    """An answer's bytes."""

    def test_a_success_has_the_attributes(self) -> None:
        assert json.loads(body(parse(EVENTS["create"]), ATTACHED, WHERE)) == {
            "Status": "SUCCESS",
            "PhysicalResourceId": ID,
            "StackId": EVENTS["create"]["StackId"],
            "RequestId": EVENTS["create"]["RequestId"],
            "LogicalResourceId": "AliceInFree",
            "NoEcho": False,
            "Data": {
                "Id": ID,
                "KeyId": "a1b2c3d4e5",
                "KeyName": "alice",
                "KeyType": "API_KEY",
                "UsagePlanId": "f7r3e3",
                "Outcome": "ATTACHED",
            },
        }

    @pytest.mark.parametrize(("name", "served"), [("create", failed()), ("delete", ATTACHED), ("create-bad-property", failed())])
    def test_a_failure_and_a_delete_have_none(self, name: str, served: Response) -> None:
        answer = json.loads(body(parse(EVENTS[name]), served, WHERE))
        assert "Data" not in answer
        assert answer["NoEcho"] is False
        assert ("Reason" in answer) is not served.success

    def test_the_value_is_not_sent_unless_it_was_asked_for(self) -> None:
        assert VALUE not in body(parse(EVENTS["create"]), ATTACHED._replace(value=VALUE), WHERE).decode()

    @pytest.mark.parametrize("extra", range(4))
    @pytest.mark.parametrize("letter", ["ß", "€", "🔑"], ids=ascii)
    def test_is_full_to_the_last_character_that_fits(self, letter: str, extra: int) -> None:
        """Whatever the bytes before it, the cut falls between two characters."""
        served = failed("." * extra + letter * 4000)
        sent = body(parse(EVENTS["create"]), served, WHERE)
        assert LONGEST_RESPONSE - len(letter.encode()) < len(sent) <= LONGEST_RESPONSE
        reason = json.loads(sent.decode())["Reason"]
        assert reason.strip(".").startswith(letter * 700)
        assert reason.endswith(f"{letter}… ({WHERE})")

    @pytest.mark.parametrize("letter", ["x", "€", "🔑", '"'], ids=ascii)
    def test_a_keys_name_is_cut_too(self, letter: str) -> None:
        asked = {**EVENTS["create"], "StackId": EVENTS["create"]["StackId"] + "x" * 300}
        asked["ResourceProperties"] = {**asked["ResourceProperties"], "IncludeValue": "true"}
        named = Response(success=True, id=ID, outcome="ATTACHED", key_name=letter * 4000)
        sent = body(parse(asked), named._replace(value=VALUE), WHERE)
        assert LONGEST_RESPONSE - len(json.dumps(letter, ensure_ascii=False).encode()) < len(sent) <= LONGEST_RESPONSE
        data = json.loads(sent.decode())["Data"]
        assert data["Value"] == VALUE
        assert data["KeyName"] == letter * (len(data["KeyName"]) - 1) + "…"

    @pytest.mark.parametrize("name", ["StackId", "RequestId", "LogicalResourceId", "PhysicalResourceId"])
    @pytest.mark.parametrize("length", [500, 3500, 3600])
    @pytest.mark.parametrize("success", [True, False])
    def test_a_long_id_cuts_all_else(self, name: str, length: int, *, success: bool) -> None:
        asked = {**EVENTS["update-verify"], name: "i" * length}
        answer = Response(
            success=success, id=asked["PhysicalResourceId"], reason="r" * 4000, outcome="ATTACHED", key_name="k" * 999
        )
        sent = body(parse(asked), answer, WHERE)
        assert length < len(sent) <= LONGEST_RESPONSE
        read = json.loads(sent)
        assert read[name] == "i" * length
        if not success:
            assert read["Reason"].startswith("rrr")
        if length == 500:
            assert read["Data"]["KeyName"].startswith("kkk") if success else read["Reason"].endswith(f"({WHERE})")

    @pytest.mark.parametrize("success", [True, False])
    def test_what_does_not_fit_at_all_is_sent_and_told(self, everything: Lines, *, success: bool) -> None:
        asked = {**EVENTS["update-verify"], "StackId": "i" * 5000}
        answer = Response(
            success=success, id=asked["PhysicalResourceId"], reason="r" * 4000, outcome="ATTACHED", key_name="k" * 999
        )
        sent = body(parse(asked), answer, WHERE)
        read = json.loads(sent)
        assert (read.get("Reason", ""), read.get("Data", {}).get("KeyName", "")) == ("", "")
        assert everything.errors == [f"The answer has {len(sent)} bytes for its ids, and CloudFormation takes 4096"]

    @pytest.mark.parametrize("left", range(8))
    def test_no_room_is_left_over_and_none_is_missing(self, left: int) -> None:
        """Where there is no room for one letter there is none for the sign that something was cut."""
        empty = len(body(parse(EVENTS["create"]), Response(success=True, id=ID, outcome="ATTACHED"), WHERE))
        asked = {**EVENTS["create"], "StackId": EVENTS["create"]["StackId"] + "x" * (LONGEST_RESPONSE - empty - left)}
        named = Response(success=True, id=ID, outcome="ATTACHED", key_name="k" * 9)
        sent = body(parse(asked), named, WHERE)
        assert len(sent) <= LONGEST_RESPONSE
        assert json.loads(sent)["Data"]["KeyName"] == ("k" * (left - 3) + "…" if left >= 3 else "")

    @pytest.mark.parametrize("name", ["StackId", "RequestId", "LogicalResourceId", "PhysicalResourceId"])
    @pytest.mark.parametrize("success", [True, False])
    def test_a_lone_surrogate_breaks_nothing(self, name: str, *, success: bool) -> None:
        asked = {**EVENTS["update-verify"], name: "i\ud83di"}
        text = "\ude00" * 3000
        answer = Response(success=success, id=asked["PhysicalResourceId"], reason=text, outcome="ATTACHED", key_name=text)
        sent = body(parse(asked), answer, "stream \ud800")
        assert LONGEST_RESPONSE - 6 < len(sent) <= LONGEST_RESPONSE
        read = json.loads(sent)
        assert read[name] == "i\ud83di"
        assert (read["Data"]["KeyName"] if success else read["Reason"]).startswith("\ude00" * 300)
        redacted(sent).encode()

    def test_a_lost_association_has_every_attribute(self) -> None:
        asked = {**EVENTS["update-verify"]}
        asked["ResourceProperties"] = {**asked["ResourceProperties"], "IncludeValue": "true"}
        request = parse(asked)
        lost = Response(success=True, id=request.answer_id, outcome="LOST", key_name="alice")
        answer = json.loads(body(request, lost._replace(value=""), WHERE))
        data = answer["Data"]
        assert (answer["Status"], answer["NoEcho"]) == ("SUCCESS", True)
        assert (data["Outcome"], data["KeyName"], data["Value"]) == ("LOST", "alice", "")
        assert {*data} == {"Id", "KeyId", "KeyName", "KeyType", "UsagePlanId", "Outcome", "Value"}
        unasked = json.loads(body(parse(EVENTS["update-verify"]), lost._replace(value=""), WHERE))
        assert "Value" not in unasked["Data"]

    @pytest.mark.parametrize("lacking", ["function_name", "log_group_name", "log_stream_name"])
    def test_what_a_stand_in_for_the_context_lacks_is_left_out(self, lacking: str) -> None:
        names = {"function_name": "F", "log_group_name": "G", "log_stream_name": "S"}
        names.pop(lacking)
        parts = {"function_name": "function F", "log_group_name": "log group G", "log_stream_name": "log stream S"}
        parts.pop(lacking)
        assert where(SimpleNamespace(**names)) == ", ".join(parts.values())

    def test_nothing_is_said_of_the_log_where_nothing_is_known(self) -> None:
        assert where(object()) == ""
        answer = json.loads(body(parse(EVENTS["create"]), failed("No"), where(object())))
        assert answer["Reason"] == "No"

    def test_what_fits_is_not_cut(self) -> None:
        answer = json.loads(body(parse(EVENTS["create"]), failed("€" * 1000), WHERE))
        assert answer["Reason"] == f"{'€' * 1000} ({WHERE})"

    def test_the_longest_event_fits(self) -> None:
        asked = {**EVENTS["delete"], "PhysicalResourceId": "€" * 341, "LogicalResourceId": "L" * 255}
        asked["StackId"] = f"arn:aws-us-gov:cloudformation:us-gov-west-1:123456789012:stack/{'s' * 128}/{'u' * 36}"
        answer = Response(success=False, id=asked["PhysicalResourceId"], reason="€" * 4000)
        sent = body(parse(asked), answer, "l" * 512)
        assert len(sent) <= LONGEST_RESPONSE
        assert json.loads(sent)["PhysicalResourceId"] == asked["PhysicalResourceId"]

    def test_no_value_is_printed(self) -> None:
        asked = {**EVENTS["create"]}
        asked["ResourceProperties"] = {**asked["ResourceProperties"], "IncludeValue": "true"}
        sent = body(parse(asked), ATTACHED._replace(value=VALUE), WHERE)
        assert VALUE in sent.decode()
        assert VALUE not in redacted(sent)
        assert json.loads(redacted(sent))["Data"]["KeyName"] == "alice"


class TestInFull:
    """What is said and shown, to the letter."""

    def test_a_printed_answer_is_indented_and_readable_and_shows_no_value(self) -> None:
        sent = json.dumps({"Data": {"KeyName": "Zoë", "Value": VALUE}}).encode()
        assert redacted(sent) == '{\n  "Data": {\n    "KeyName": "Zoë",\n    "Value": "(not shown)"\n  }\n}'

    def test_what_every_instance_begins_with_is_made_without_a_trace(self, levels: None) -> None:
        root = logging.getLogger()
        root.setLevel(15)
        made = custom_resource._fresh()
        assert (root.level, made["_sleep_on_delete"]) == (15, 0)
        assert logging.getLogger("botocore").level == logging.ERROR

    def test_an_internal_error_is_failed(self) -> None:
        resource = a_resource(parse(EVENTS["create"]), attached, attached, lambda _: None, WHERE)
        told = json.loads(resource._internal_error("no such thing"))
        reason = f"An internal error, please report it: no such thing ({WHERE})"
        assert (told["Status"], told["PhysicalResourceId"], told["Reason"]) == ("FAILED", ID, reason)
