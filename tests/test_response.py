"""The function writes an answer, checks its address, and delivers it. `events` has whole answers."""

import json
import logging
import re
import ssl
import threading
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, call

import pytest
import urllib3

from emulators.sink import SIGNATURE, Proxy, Sink
from emulators.tls import self_signed
from usage_plan_key import response
from usage_plan_key.errors import EventError, FailedError, UndeliveredError
from usage_plan_key.model import Response
from usage_plan_key.request import parse
from usage_plan_key.response import LONGEST_RESPONSE, Sender, body, destination, where

from . import answers
from .answers import ATTACHED, EVENTS, VALUE, WHERE, Context, Lines, asked, errors, failed, secrets
from .memory import Clock, within

environment, sink, everything = answers.environment, answers.sink, answers.everything
WITH_VALUE = ATTACHED._replace(value=VALUE)
ends_either_way = pytest.mark.parametrize("success", [True, False])


@pytest.fixture(autouse=True)
def counted(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Mock:
    """The metrics. Hush urllib3 as `app` does: at DEBUG it logs each URL."""
    caplog.set_level(logging.ERROR, "urllib3")
    monkeypatch.setattr(response, "metrics", counted := Mock())
    return counted


def made(answer: Response, where: str = WHERE, **fields: Any) -> dict[str, Any]:
    """Put together and read the answer to a Create with changes, with its size and its longest text."""
    sent = body(parse(asked(**fields)), answer, where)
    read: dict[str, Any] = json.loads(sent)
    text = read["Reason"] if "Reason" in read else read["Data"]["KeyName"]
    return read | {"bytes": len(sent), "text": text}


def saying(text: str, success: bool) -> Response:
    """An answer with a long text."""
    return WITH_VALUE._replace(success=success, reason=text, key_name=text)


class TestBody:
    """An answer has at most 4,096 bytes."""

    @pytest.mark.parametrize("include", ["true", "false"])
    def test_a_value_is_there_only_where_it_is_asked_for_though_it_is_empty(self, include: str) -> None:
        for value in (VALUE, ""):
            read = made(ATTACHED._replace(value=value), IncludeValue=include)
            shown = read["NoEcho"], read["Data"].get("Value")
            assert shown == ((True, value) if include == "true" else (False, None))

    @ends_either_way
    @pytest.mark.parametrize("letter", ["x", "ß", "€", "🔑", '"', "\\", "\n", "\x00", "\ude00"], ids=ascii)
    @pytest.mark.parametrize("id_", ["i", "i" * 500, "i" * 3500, "i" * 3600, "\ud83d", "€" * 1100], ids=len)
    def test_a_long_text_is_cut_at_its_end(self, id_: str, letter: str, success: bool) -> None:
        """An id is whole, however long or odd it is, and a Reason says where the log is."""
        size = len(json.dumps(letter, ensure_ascii=False).encode(errors="backslashreplace")) - 2
        for extra in range(4):
            text = "." * extra + letter * 4000
            read = made(saying(text, success=success), StackId=id_, IncludeValue="true")
            assert LONGEST_RESPONSE - size < read["bytes"] <= LONGEST_RESPONSE
            kept, sign, end = read["text"].partition("…")
            assert (read["StackId"], sign, text[: len(kept)]) == (id_, "…", kept)
            assert read.get("Data", {}).get("Value", VALUE) == VALUE
            assert len(kept) > extra
            assert end == ("" if success else f" ({WHERE})") or len(id_) > 500

    @ends_either_way
    @pytest.mark.parametrize("room", [-900, -1, *range(12)])
    def test_a_text_that_fits_is_whole(self, room: int, success: bool, everything: Lines) -> None:
        """If even the ids do not fit, the answer goes out all the same."""
        empty, stack = made(saying("", success=success), "")["bytes"], EVENTS["create"]["StackId"]
        longer = stack + "x" * (LONGEST_RESPONSE - empty - room)
        read = made(saying("k" * 9, success=success), "", StackId=longer)
        assert read["text"] == ("k" * 9 if room >= 9 else "k" * (room - 3) + "…" if room >= 3 else "")
        told = f"The answer has {4096 - room} bytes for its ids, and CloudFormation takes 4096"
        assert errors(everything) == [told] * (room < 0)

    def test_a_long_place_leaves_half_of_the_room_to_the_reason(self) -> None:
        room = LONGEST_RESPONSE - made(failed(""), "")["bytes"]
        assert made(failed("r" * 4000), "w" * 4000)["text"].count("w") == pytest.approx(room / 2, abs=6)

    def test_it_says_where_the_log_is_as_far_as_it_knows(self) -> None:
        assert where(Context()) == WHERE
        assert where(SimpleNamespace(log_group_name="G")) == "log group G"
        assert made(failed("No"), where(object()))["Reason"] == "No"

    def test_a_printed_one_is_readable_and_shows_no_value(self) -> None:
        printed = response.redacted(json.dumps({"Data": {"KeyName": "Zoë", "Value": VALUE}}).encode())
        assert printed == '{\n  "Data": {\n    "KeyName": "Zoë",\n    "Value": "(not shown)"\n  }\n}'
        assert response.redacted(b'{"Reason": "\\ud800"}').encode()


def raw(status: str, *headers: str, text: str = "") -> bytes:
    """A reply as it goes over the wire."""
    lines = (f"HTTP/1.1 {status}", *headers, "connection: close", f"content-length: {len(text)}", "", text)
    return "\r\n".join(lines).encode()


def s3_says(code: str, status: str = "400 Bad Request") -> bytes:
    return raw(status, text=f"<Error><Code>{code}</Code><Message>No</Message></Error>")


def redirect(location: str, status: int = 307) -> bytes:
    return raw(f"{status} Elsewhere", f"location: {location}")


#: Every kind of reply to a PUT: taken, tried again, or final.
TAKEN: list[Any] = [200, 201, 204, raw("200 OK", text="taken")[:-3], b"HTTP/1.1 200 OK\r\nserv"]
AGAIN: list[Any] = [
    *(408, 409, 429, 500, 503, 599, "close", b"HTTP/1.1 2"),
    *(s3_says("RequestTimeout"), s3_says("IncompleteBody"), s3_says("RequestTimeout")[:80]),
]
REFUSED: list[Any] = [
    *(300, 301, 302, 303, 304, 400, 403, 404, 407, 410, 428, 430, 499, raw("199 Odd")),
    *(s3_says("AccessDenied"), s3_says("RequestTimeout", "403 Forbidden")),
    *(raw("403 Forbidden", text="x")[:-1], raw("307 Temporary Redirect")),
]
ASTRAY = [
    *(("http://127.0.0.1/", "is not https"), ("ftp://x", "is not https")),
    (f"https://me:{SIGNATURE}@127.0.0.1/", "has user info"),
    (f"https://127.0.0.1\\@x/?{SIGNATURE}", "has a backslash, white space or a control character"),
    (f"https://[{SIGNATURE}/", "cannot be read"),
]
#: Replies, the paths that the answer is sent to, and the error.
PUTS: list[tuple[list[Any], str, str]] = [
    *(([reply], "stack", "") for reply in TAKEN),
    *(([reply] * 5, "stack " * 6, "") for reply in AGAIN),
    *(([reply], "stack", "CloudFormation refused the answer with status STATUS: it no") for reply in REFUSED),
    *(([redirect(to)], "stack", f"Did not send the answer: the redirect {fault}") for to, fault in ASTRAY),
    *(([redirect("/there?a=%7C", status)], "stack there", "") for status in (307, 308)),
    ([redirect("https://127.0.0.1:PORT/there")], "stack there", ""),
    ([307] * 5, "stack" + " elsewhere" * 5, ""),
    ([307] * 6, "stack" + " elsewhere" * 5, "CloudFormation refused the answer with status 307"),
    ([307, 503], "stack elsewhere stack", ""),
]


def deliver(sink: Sink, *replies: Any, value: bool = True, own: str = "") -> float:
    """Deliver an answer, by default with a value, to a sink that is an emulator; return the seconds."""
    clock, emulator, sink.replies = Clock(), own or sink.place.removeprefix("https://"), [*replies]
    cloudformations: Any = {"region": "eu-central-1", "suffix": "amazonaws.com", "emulator": emulator}
    sender = Sender(partial(response.check_value_host, **cloudformations))
    answer = {"Data": {"Value": VALUE} if value else {}}
    sender.deliver(parse(asked(ResponseURL=sink.url)), within(60, clock), json.dumps(answer).encode())
    return clock.now - Clock().now


def tried(lines: Lines) -> list[str]:
    """Why the sender has tried again; no line shows a secret."""
    assert secrets(lines, "https://127.0.0.1") == []
    said = (line.partition("The answer's PUT failed, trying again: ") for line in lines.messages)
    return [why for _, found, why in said if found]


class TestSender:
    """The sender delivers a PUT."""

    @pytest.mark.parametrize(("replies", "paths", "error"), PUTS, ids=lambda each: ascii(each)[:99])
    def test_a_reply_is_taken_or_tried_again_or_followed_or_final(
        self, sink: Sink, replies: list[Any], paths: str, error: str, everything: Lines, counted: Mock
    ) -> None:
        """It follows five redirects in a row, and begins anew after trouble. What is final is counted."""
        port = str(sink.server_port).encode()
        replies = [reply.replace(b"PORT", port) if isinstance(reply, bytes) else reply for reply in replies]
        waited, last = deliver(sink, *replies), replies[-1]
        status = last.split()[1].decode() if isinstance(last, bytes) else last
        assert [re.findall(r"\w+", put.path)[0] for put in sink.puts] == paths.split()
        assert re.fullmatch(rf"/stack%7Cresource\?X-Amz-Date=\w{{16}}&{SIGNATURE}", sink.puts[0].path)
        sent = {(put.headers["content-type"], put.headers["content-length"], put.body) for put in sink.puts}
        assert sent == {("", "50", json.dumps({"Data": {"Value": VALUE}}).encode())}
        again = paths.split()[1:].count("stack")
        assert {*tried(everything)} <= {f"status {status}", "ProtocolError"}
        assert len(tried(everything)) == again
        assert 0 < waited < 0.5 * 2**again or not again
        error = error.replace("STATUS", str(status))
        assert [line[: len(error)] for line in errors(everything)] == [error] * bool(error)
        assert counted.method_calls == [call.answer_refused()] * bool(error)

    def test_does_not_wait_for_a_server_that_hangs(self, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
        timeout = response._PUT_TIMEOUT
        assert (timeout.connect_timeout, timeout.read_timeout) == (1.0, 2.0)
        monkeypatch.setattr(response, "_PUT_TIMEOUT", urllib3.Timeout(connect=1, read=0.1))
        deliver(sink, "hang", 200)
        assert len(sink.puts) == 2

    def test_follows_none_when_no_time_is_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = Clock()

        def redirects(*_: object, **__: object) -> urllib3.HTTPResponse:
            clock.now += 3
            return urllib3.HTTPResponse(status=307, headers={"location": "/elsewhere"})

        monkeypatch.setattr(urllib3.PoolManager, "urlopen", redirects)
        with pytest.raises(UndeliveredError):
            Sender().deliver(parse(asked()), within(10.0, clock), b"{}")
        assert clock.now == Clock().now + 9, "each may take three seconds"

    def test_no_value_leaves_for_another_host(self, sink: Sink, everything: Lines) -> None:
        """By a redirect or directly: a stranger may have put the request into the queue."""
        with Sink(certificate=sink.certificate.read_bytes()) as other:
            for value in (True, False):
                deliver(sink, redirect(other.url), value=value)
                assert (len(other.puts), len(errors(everything))) == (not value, 1)
        deliver(sink, own="elsewhere")
        assert (len(sink.puts), len(errors(everything))) == (2, 2)
        assert "to no host but cloudformation-custom-resource-response" in errors(everything)[1]

    def test_checks_the_host_of_a_request_for_a_value_before_it_is_served(self) -> None:
        check = Mock()
        for harmless in (asked(), asked("delete", "true"), asked("create-bad-property", "true")):
            Sender(check).check(parse(harmless))
        Sender(check).check(parse(asked("create", "true")))
        check.assert_called_once_with(destination(EVENTS["create"]["ResponseURL"]))

    @pytest.mark.parametrize("how", ["a 500", "an error with the URL", "a proxy that is down"])
    def test_says_when_it_could_not_deliver_but_not_where_to(
        self, sink: Sink, how: str, everything: Lines, counted: Mock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if how == "an error with the URL":
            error = urllib3.exceptions.MaxRetryError(urllib3.HTTPSConnectionPool("127.0.0.1"), sink.url)
            monkeypatch.setattr(urllib3.PoolManager, "urlopen", Mock(side_effect=error))
        elif how == "a proxy that is down":
            monkeypatch.setenv("HTTPS_PROXY", f"http://me:{VALUE}@127.0.0.1:1")
        with pytest.raises(
            UndeliveredError, match=r"^Could not deliver the answer to 127\.0\.0\.1: "
        ) as raised:
            deliver(sink, *[500] * 1000)
        assert raised.value.__suppress_context__, "urllib3's errors name the URL"
        assert len(tried(everything)) > 1
        assert len(sink.puts) == (len(tried(everything)) if how == "a 500" else 0)
        assert counted.method_calls == [call.answer_undelivered()]


class TestConnection:
    """The sender connects as boto3 would: the same certificates and proxies, and one TLS context for all."""

    def test_a_preparation_holds_nobody_up_and_is_made_anew_if_it_failed(
        self, sink: Sink, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Otherwise the process could answer no later request."""
        sender, go = Sender(), threading.Event()

        def fails() -> ssl.SSLContext:
            assert go.wait(5), "nobody waits for it"
            raise MemoryError

        with monkeypatch.context() as broken:
            broken.setattr(response, "_tls", fails)
            ready = sender.prepare()
            go.set()
            with pytest.raises(MemoryError):
                ready.result()
        sender.deliver(parse(asked(ResponseURL=sink.url)), within(60, Clock()), b"{}")
        assert len(sink.puts) == 1
        assert sender.prepare() is sender.prepare(), "and what was made serves all that follow"

    @pytest.mark.parametrize(
        ("settings", "came"),
        [
            *((f"{name}=OWN", "direct") for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")),
            ("AWS_CA_BUNDLE=OTHER REQUESTS_CA_BUNDLE=OWN", ""),
            ("AWS_CA_BUNDLE= REQUESTS_CA_BUNDLE=OWN", "direct"),
            ("", ""),
            ("SSL_CERT_FILE=OWN HTTPS_PROXY=PROXY NO_PROXY=localhost,127.0.0.1", "direct"),
            *((f"SSL_CERT_FILE=OWN {name}=PROXY", "tunnel None") for name in ("HTTPS_PROXY", "https_proxy")),
            ("AWS_CA_BUNDLE=OWN HTTPS_PROXY=http://me:se%63ret@PROXY", "tunnel Basic bWU6c2VjcmV0"),
        ],
    )
    def test_its_certificates_and_its_proxy_are_those_that_boto3_would_use(
        self, sink: Sink, settings: str, came: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """No attempt is silent: without a wait of ours urllib3 would have tried again."""
        made, sender, clock = Mock(wraps=ssl.create_default_context), Sender(), Clock()
        sink.replies = ["close", 200]
        monkeypatch.delenv("SSL_CERT_FILE")
        monkeypatch.setattr(ssl, "create_default_context", made)
        (tmp_path / "other").write_bytes(self_signed()[0])
        with Proxy(sink) as proxy:
            places = {"OWN": sink.certificate, "OTHER": tmp_path / "other", "PROXY": proxy.place[7:]}
            for name, _, value in (pair.partition("=") for pair in settings.split()):
                place = re.sub("[A-Z]{3,}", lambda found: str(places[found[0]]), value)
                monkeypatch.setenv(name, place)
            for _ in range(2):
                with nullcontext() if came else pytest.raises(UndeliveredError):
                    sender.deliver(parse(asked(ResponseURL=sink.url)), within(5, clock), b"{}")
                monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            for manager in sender._managers.values():
                manager.clear()
        assert (made.call_count, len(sink.puts)) == (1, 3 if came else 0), "one TLS context serves both ways"
        tunnels = [f"tunnel {authorization}" for _, authorization in proxy.connects]
        assert tunnels == [came] * 2 * came.startswith("tunnel")
        assert clock.now > Clock().now


#: URLs in which parsers disagree about the host.
ODD = (
    *(r"elsewhere\@x.amazonaws.com/", r"elsewhere\.x.amazonaws.com/", r"x/\a", "x y/", " x/", "x/ a", "x\t/"),
    *("x/\r\nhost:y", "x\x00/", "x/\x7f", "x\N{NO-BREAK SPACE}/", "x\N{ZERO WIDTH SPACE}/", "x/\ud800"),
)
#: Where a URL leads, as host and port; or why nothing is sent there.
DESTINATIONS = [
    ("https://x.s3.amazonaws.com/arn%3Aaws%7CA?X-Amz-Date=2026", ("x.s3.amazonaws.com", None)),
    ("HTTPS://X.amazonaws.com?a@b", ("x.amazonaws.com", None)),
    ("https://localhost:4566/a:b@c", ("localhost", 4566)),
    ("https://[::1]:4566/", ("[::1]", 4566)),
    ("https://x:/", ("x", None)),
    ("https://x/\N{LATIN SMALL LETTER E WITH ACUTE}", ("x", None)),
    *((url, "is not https") for url in ("http://x/", "ftp://x/", "//x/", "/x", "x")),
    *((url, "has no host") for url in ("https:x", "https://", "https:///x", "https://:443/")),
    *((f"https://{user}x/", "has user info") for user in ("me@", "me:you@", "elsewhere%5C@")),
    *((f"https://{odd}", "has a backslash, white space or a control character") for odd in ODD),
    *((f"https://{odd}/", "cannot be read") for odd in ("x:99999", "x:y", "[x", "x\N{ACCOUNT OF}y")),
    ("https://\N{FULLWIDTH LATIN SMALL LETTER X}.amazonaws.com/", "cannot be read"),
]


@pytest.mark.parametrize(("url", "leads"), DESTINATIONS, ids=ascii)
def test_the_sender_connects_to_the_address_that_it_has_checked(
    url: str, leads: Any, everything: Lines
) -> None:
    """A refusal shows nothing of the URL. Under sam local any will do: SAM's sample events have http."""
    if isinstance(leads, tuple):
        read = destination(url)
        assert (read.scheme, read.host, read.port) == ("https", *leads)
        return
    signed = f"{url}?{SIGNATURE}" if url != "https://" else url
    with pytest.raises(EventError, match=leads or None) as raised:
        destination(signed)
    assert re.search(r"\bthe ResponseURL\b", str(raised.value))
    assert SIGNATURE not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    Sender().deliver(parse(asked(ResponseURL=signed)), within(60, Clock()), b"{}")
    assert errors(everything) == [f"Did not send the answer: {raised.value}"]
    destination(signed, local=True)


BUCKET = "cloudformation-custom-resource-response-{}.s3{}{}.amazonaws.com{}"
OWN = "cloudformation-custom-resource-response-euwest1"
#: Hosts, the region and its suffix. The first ones are those of real events.
ALLOWED: list[tuple[str, str, str | None]] = [
    (BUCKET.format("useast1", "", "", ""), "us-east-1", "amazonaws.com"),
    (BUCKET.format("eucentral1", ".", "eu-central-1", ""), "eu-central-1", "amazonaws.com"),
    (BUCKET.format("euwest1", "-", "eu-west-1", ""), "eu-west-1", "amazonaws.com"),
    (BUCKET.format("cnnorth1", ".", "cn-north-1", ".cn"), "cn-north-1", "amazonaws.com.cn"),
    (f"{OWN}.s3.eu-west-1.amazonaws.com:443", "eu-west-1", "amazonaws.com"),
    (f"{OWN.upper()}.S3.EU-WEST-1.AmazonAWS.com", "eu-west-1", "amazonAWS.com"),
    *((host, "eu-west-1", "amazonaws.com") for host in ("localhost:4566", "LOCALHOST:4566")),
    *(("elsewhere.com", "eu-west-1", unknown) for unknown in ("", None)),
]
STRANGERS = [
    *("elsewhere.com", "s3.amazonaws.com", "x.amazonaws.com", "localhost", "localhost:4567"),
    *("localhost:443", "localhost.elsewhere.com:4566", f"{OWN}.s3.eu-west-1xamazonaws.com"),
    *(f"{own}.s3.eu-west-1.amazonaws.com" for own in (f"{OWN}-mine", f"mine.{OWN}", OWN[:-1])),
    *(f"{OWN}.s3.eu-west-1.amazonaws.com{more}" for more in (".cn", ".", ".x.com", ":8443", ":0")),
    *(f"{OWN}.{it}.amazonaws.com" for it in ("s3.eu-central-1", "s3-website-eu-west-1", "x.eu-west-1")),
]


@pytest.mark.parametrize(("host", "region", "suffix"), ALLOWED)
def test_a_value_goes_to_cloudformations_host(host: str, region: str, suffix: str | None) -> None:
    """Where no suffix is known, any host may have it."""
    url = destination(f"https://{host}/a?b")
    response.check_value_host(url, region=region, suffix=suffix, emulator="LocalHost:4566")


@pytest.mark.parametrize("host", STRANGERS)
def test_a_value_goes_to_no_other_host(host: str) -> None:
    url = destination(f"https://{host}/a?{SIGNATURE}")
    for emulator in ("localhost:4566", "", None):
        with pytest.raises(FailedError) as raised:
            response.check_value_host(url, region="eu-west-1", suffix="amazonaws.com", emulator=emulator)
        assert str(raised.value) == (
            "IncludeValue is true, and the function sends a key's value to no host but "
            f"{OWN}.s3.eu-west-1.amazonaws.com, which is CloudFormation's. ResponseURL leads to {host}. "
            "Remove IncludeValue, or name an emulator's host in the parameter ResponseHost"
        )
