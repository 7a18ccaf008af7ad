"""How an answer leaves: each override of answer.py mends a defect that plain crhelper has, which the same test shows."""

from __future__ import annotations

import contextlib
import json
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import boto3
import pytest
import urllib3
from crhelper import CfnResource

from usage_plan_key import answer as answer_module
from usage_plan_key.answer import GUARD_TIME, MOST_BYTES, Resource, Sender, UndeliveredError, body, redacted
from usage_plan_key.lifecycle import Answer
from usage_plan_key.request import EventError, Request, parse
from usage_plan_key.retry import Deadline
from usage_plan_key.service import Served

from .memory import Clock
from .sink import SIGNATURE, Put, Sink

EVENTS = {path.stem: json.loads(path.read_text()) for path in sorted(Path("events").glob("*.json"))}
ID = "a1b2c3d4e5:f7r3e3"
VALUE = "s3cr3t-s3cr3t-s3cr3t-s3cr3t"
STREAM = "2026/03/02/[$LATEST]5f3c"
ATTACHED = Served(Answer(success=True, id=ID, outcome="ATTACHED", key_name="alice"))


class Context:
    """Lambda's, of a function whose time is up in so many seconds."""

    aws_request_id = "1d5dac8f"
    log_stream_name = STREAM

    def __init__(self, seconds: float = 900) -> None:
        self._end = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return int((self._end - time.monotonic()) * 1000)


Serve = Callable[[], Served]
Run = Callable[[Context], None]


class Prepare(Protocol):
    """Makes ready to answer an event; what comes of it serves the event and answers it."""

    #: How long before the function's end its guard strikes, in seconds.
    guard: float

    def __call__(self, event: Mapping[str, Any], serve: Serve, give_up: Serve = ...) -> Run: ...


def hopeless(request: Request) -> Served:
    return Served(Answer(success=False, id=request.answer_id, reason="No answer in time"))


class Ours:
    guard = GUARD_TIME

    def __init__(self) -> None:
        self._sender = Sender()

    def __call__(self, event: Mapping[str, Any], serve: Serve, give_up: Serve | None = None) -> Run:
        request = parse(event)
        deliver = partial(self._sender.deliver, request, Deadline(60, Clock()))
        resource = Resource(request, serve, give_up or partial(hopeless, request), deliver, STREAM)
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
            if not given.answer.success:
                raise RuntimeError(given.answer.reason)
            helper.Data["KeyName"] = given.answer.key_name
            if given.value is not None:
                helper.Data["Value"] = given.value
                helper.NoEcho = True
            return given.answer.id

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


def failed(reason: str = "The plan is full") -> Served:
    return Served(Answer(success=False, id=ID, reason=reason))


def attached() -> Served:
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
        kind()(asked, lambda: Served(ATTACHED.answer, VALUE))(Context())
        assert everything.secrets(sink.url) == []

    @mended
    def test_noecho_is_set_anew_on_every_answer(self, kind: type[Prepare], sink: Sink) -> None:
        prepare, asked = kind(), event(sink)
        with_value = {**asked, "ResourceProperties": {**asked["ResourceProperties"], "IncludeValue": "true"}}
        prepare(with_value, lambda: Served(ATTACHED.answer, VALUE))(Context())
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

        def hang() -> Served:
            assert sink.wait(), "the guard does not strike"
            return ATTACHED

        kind()(asked, hang)(Context(kind.guard + 0.1))
        given = [(answer["Status"], answer["PhysicalResourceId"]) for answer in sink.answers]
        assert given == [("FAILED", asked.get("PhysicalResourceId", ID))]

    @mended
    @pytest.mark.parametrize("stack", [EVENTS["create"]["StackId"], "no-arn"])
    def test_a_create_that_fails_has_the_id_that_its_properties_give(self, kind: type[Prepare], sink: Sink, stack: str) -> None:
        def serve() -> Served:
            raise RuntimeError("no such thing")

        kind()(event(sink, StackId=stack), serve)(Context())
        (answer,) = sink.answers
        assert (answer["Status"], answer["PhysicalResourceId"]) == ("FAILED", ID)
        assert "no such thing" in answer["Reason"]

    @mended
    def test_an_answer_has_at_most_4096_bytes(self, kind: type[Prepare], sink: Sink) -> None:
        named = Answer(success=True, id=ID, outcome="ATTACHED", key_name="🔑" * 1024)
        kind()(event(sink), lambda: Served(named))(Context())
        assert len(sink.puts[0].body) <= MOST_BYTES

    @mended
    @pytest.mark.parametrize("letter", ["x", "ß", "€", "🔑", '"', "\\", "\n", "\x00"], ids=ascii)
    @pytest.mark.parametrize("length", [300, 5000])
    def test_a_long_reason_keeps_its_beginning_and_names_the_log_stream(
        self, kind: type[Prepare], sink: Sink, letter: str, length: int
    ) -> None:
        kind()(event(sink), lambda: failed("What matters. " + letter * length))(Context())
        (answer,) = sink.answers
        assert answer["Reason"].startswith("What matters. " + letter * 200)
        assert answer["Reason"].endswith(f" (log stream: {STREAM})")
        assert len(sink.puts[0].body) <= MOST_BYTES

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


class TestSender:
    """What becomes of a PUT."""

    def deliver(self, sink: Sink, seconds: float = 60.0) -> Clock:
        clock = Clock()
        Sender().deliver(parse(event(sink)), Deadline(seconds, clock), b'{"Status":"SUCCESS"}')
        return clock

    def test_what_could_not_be_made_ready_is_made_anew(self, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
        """Or no later request of the same process would be answered."""
        sender, made = Sender(), answer_module._pool

        def no_pool() -> urllib3.PoolManager:
            raise MemoryError

        monkeypatch.setattr(answer_module, "_pool", no_pool)
        with pytest.raises(MemoryError):
            sender.prepare().result()
        monkeypatch.setattr(answer_module, "_pool", made)
        sender.deliver(parse(event(sink)), Deadline(60.0, Clock()), b"{}")
        assert len(sink.puts) == 1
        assert sender.prepare() is sender.prepare(), "and what was made serves all that follow"

    def test_sends_the_body_with_its_length_and_an_empty_content_type(self, sink: Sink) -> None:
        self.deliver(sink)
        (put,) = sink.puts
        assert isinstance(put, Put)
        assert (put.headers["content-type"], put.headers["content-length"]) == ("", "20")
        assert "transfer-encoding" not in put.headers
        assert sink.url.endswith(put.path)
        assert SIGNATURE in put.path
        assert put.body == b'{"Status":"SUCCESS"}'

    @pytest.mark.parametrize("reply", [500, 503, 599, "close"])
    def test_backs_off_before_it_tries_again(self, sink: Sink, reply: Any) -> None:
        began = Clock().now
        sink.replies = [reply] * 5
        clock = self.deliver(sink)
        assert len(sink.puts) == 6
        assert 0 < clock.now - began < 0.5 * (1 + 2 + 4 + 8 + 16)

    @pytest.mark.parametrize("status", [300, 307, 400, 403, 404, 499])
    def test_what_is_not_2xx_or_5xx_is_final_and_counted(
        self, sink: Sink, status: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        sink.replies = [status]
        self.deliver(sink)
        assert len(sink.puts) == 1, "and not followed elsewhere, as it may carry a value"
        metric = json.loads(capsys.readouterr().out)
        assert metric["AnswerRefused"] == [1.0]
        (metrics,) = metric["_aws"]["CloudWatchMetrics"]
        assert metrics["Namespace"] == "UsagePlanKey"
        assert [named["Name"] for named in metrics["Metrics"]] == ["AnswerRefused"]

    def test_counts_nothing_when_the_answer_is_taken(self, sink: Sink, capsys: pytest.CaptureFixture[str]) -> None:
        self.deliver(sink)
        assert capsys.readouterr().out == ""

    def test_does_not_wait_for_one_who_hangs(self, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
        assert answer_module._PUT_TIMEOUT.read_timeout == 2.0
        monkeypatch.setattr(answer_module, "_PUT_TIMEOUT", urllib3.Timeout(connect=1, read=0.1))
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
            Ours()(asked, lambda: Served(ATTACHED.answer, VALUE))(Context())
        assert str(raised.value) == "Could not deliver the answer to 127.0.0.1: no time is left"
        assert raised.value.__suppress_context__, "urllib3's errors name the URL"
        assert everything.secrets(sink.url) == []
        tried_again = [record for record in everything.records if record.name == "usage_plan_key.answer"]
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

    def test_trusts_none_but_whom_it_knows(self, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(UndeliveredError):
            self.deliver(sink)
        assert sink.puts == []


class TestGuard:
    """When a call hangs until the function's time is nearly up."""

    def test_what_was_written_down_first_stands(self, sink: Sink) -> None:
        """The guard gives what the ledger says: it may be the answer that the call under way has just written."""
        prepare = Ours()

        def hang() -> Served:
            assert sink.wait()
            return failed()

        prepare(event(sink), hang, give_up=attached)(Context(GUARD_TIME + 0.05))
        assert [answer["Status"] for answer in sink.answers] == ["SUCCESS"]

    def test_does_not_strike_once_the_request_is_served(self, sink: Sink) -> None:
        struck: list[str] = []

        def give_up() -> Served:
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

        def serve() -> Served:
            in_call.set()
            assert in_guard.wait(5)
            if first == "guard":
                time.sleep(0.1)
            return ATTACHED

        def give_up() -> Served:
            assert in_call.wait(5)
            in_guard.set()
            if first == "call":
                time.sleep(0.1)
            return failed()

        asked = EVENTS["create"]
        resource = Resource(parse(asked), serve, give_up, delivered.append, STREAM)
        resource.answer(asked, Context(GUARD_TIME + 0.05))
        time.sleep(0.2)
        assert [json.loads(one)["Status"] for one in delivered] == ["SUCCESS" if first == "call" else "FAILED"]

    def test_the_first_body_stands(self) -> None:
        """Between the guard's answer and its delivery the call under way may end."""
        delivered: list[bytes] = []
        asked = EVENTS["create"]
        resource = Resource(parse(asked), attached, failed, delivered.append, STREAM)
        resource._put_together(failed())
        resource.answer(asked, Context())
        assert [json.loads(one)["Status"] for one in delivered] == ["FAILED"]

    def test_the_invocation_lasts_until_the_guards_answer_is_delivered(self) -> None:
        """Lambda freezes what still runs when the handler returns."""
        delivered: list[bytes] = []
        striking = threading.Event()

        def deliver(answer: bytes) -> None:
            striking.set()
            time.sleep(0.2)
            delivered.append(answer)

        def serve() -> Served:
            assert striking.wait(5)
            return ATTACHED

        asked = EVENTS["create"]
        resource = Resource(parse(asked), serve, failed, deliver, STREAM)
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

        def serve() -> Served:
            assert struck.wait(5)
            return ATTACHED

        asked = EVENTS["create"]
        resource = Resource(parse(asked), serve, failed, deliver, STREAM)
        with pytest.raises(UndeliveredError):
            resource.answer(asked, Context(GUARD_TIME + 0.05))


class TestBody:
    """An answer's bytes."""

    def test_a_success_has_the_attributes(self) -> None:
        assert json.loads(body(parse(EVENTS["create"]), ATTACHED, STREAM)) == {
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
    def test_a_failure_and_a_delete_have_none(self, name: str, served: Served) -> None:
        answer = json.loads(body(parse(EVENTS[name]), served, STREAM))
        assert "Data" not in answer
        assert answer["NoEcho"] is False
        assert ("Reason" in answer) is not served.answer.success

    def test_the_value_is_not_sent_unless_it_was_asked_for(self) -> None:
        assert VALUE not in body(parse(EVENTS["create"]), Served(ATTACHED.answer, VALUE), STREAM).decode()

    @pytest.mark.parametrize("extra", range(4))
    @pytest.mark.parametrize("letter", ["ß", "€", "🔑"], ids=ascii)
    def test_is_full_to_the_last_character_that_fits(self, letter: str, extra: int) -> None:
        """Whatever the bytes before it, the cut falls between two characters."""
        served = failed("." * extra + letter * 4000)
        sent = body(parse(EVENTS["create"]), served, STREAM)
        assert MOST_BYTES - len(letter.encode()) < len(sent) <= MOST_BYTES
        reason = json.loads(sent.decode())["Reason"]
        assert reason.strip(".").startswith(letter * 700)
        assert reason.endswith(f"{letter}… (log stream: {STREAM})")

    @pytest.mark.parametrize("letter", ["x", "€", "🔑", '"'], ids=ascii)
    def test_a_keys_name_is_cut_too(self, letter: str) -> None:
        asked = {**EVENTS["create"], "StackId": EVENTS["create"]["StackId"] + "x" * 300}
        asked["ResourceProperties"] = {**asked["ResourceProperties"], "IncludeValue": "true"}
        named = Answer(success=True, id=ID, outcome="ATTACHED", key_name=letter * 4000)
        sent = body(parse(asked), Served(named, VALUE), STREAM)
        assert MOST_BYTES - len(json.dumps(letter, ensure_ascii=False).encode()) < len(sent) <= MOST_BYTES
        data = json.loads(sent.decode())["Data"]
        assert data["Value"] == VALUE
        assert data["KeyName"] == letter * (len(data["KeyName"]) - 1) + "…"

    def test_what_fits_is_not_cut(self) -> None:
        answer = json.loads(body(parse(EVENTS["create"]), failed("€" * 1000), STREAM))
        assert answer["Reason"] == f"{'€' * 1000} (log stream: {STREAM})"

    def test_the_longest_event_fits(self) -> None:
        asked = {**EVENTS["delete"], "PhysicalResourceId": "€" * 341, "LogicalResourceId": "L" * 255}
        asked["StackId"] = f"arn:aws-us-gov:cloudformation:us-gov-west-1:123456789012:stack/{'s' * 128}/{'u' * 36}"
        answer = Answer(success=False, id=asked["PhysicalResourceId"], reason="€" * 4000)
        sent = body(parse(asked), Served(answer), "l" * 512)
        assert len(sent) <= MOST_BYTES
        assert json.loads(sent)["PhysicalResourceId"] == asked["PhysicalResourceId"]

    def test_no_value_is_printed(self) -> None:
        asked = {**EVENTS["create"]}
        asked["ResourceProperties"] = {**asked["ResourceProperties"], "IncludeValue": "true"}
        sent = body(parse(asked), Served(ATTACHED.answer, VALUE), STREAM)
        assert VALUE in sent.decode()
        assert VALUE not in redacted(sent)
        assert json.loads(redacted(sent))["Data"]["KeyName"] == "alice"
