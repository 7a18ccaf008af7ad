"""The function writes an answer, checks its address, and delivers it."""

from __future__ import annotations

import json
import logging
import re
import ssl
import threading
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import urllib3

from emulators.sink import SIGNATURE, Proxy, Sink
from usage_plan_key import response
from usage_plan_key.errors import EventError, FailedError, UndeliveredError
from usage_plan_key.model import Response
from usage_plan_key.request import parse
from usage_plan_key.response import (
    LONGEST_RESPONSE,
    MOST_REDIRECTS,
    Sender,
    body,
    check_value_host,
    destination,
    redacted,
    where,
)

from . import answers
from .answers import ATTACHED, EVENTS, ID, VALUE, WHERE, Lines, asked, failed
from .memory import Clock, within

environment, sink, everything = answers.environment, answers.sink, answers.everything


@pytest.fixture(autouse=True)
def hushed(caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG urllib3 logs each URL; `app` and `custom_resource` have it hushed."""
    caplog.set_level(logging.ERROR, "urllib3")


WITH_VALUE = ATTACHED._replace(value=VALUE)
LONG = Response(success=True, id=ID, reason="r" * 4000, outcome="ATTACHED", key_name="k" * 999)


def made(answer: Response, where: str = WHERE, name: str = "create", **fields: Any) -> dict[str, Any]:
    """Put together and read the answer to an event of a file, with changes; it may not be too long."""
    sent = body(parse(asked(name, **fields)), answer, where)
    assert len(sent) <= LONGEST_RESPONSE
    return json.loads(sent.decode()) | {"bytes": len(sent)}  # type: ignore[no-any-return]  # an object


class TestBody:
    """An answer's bytes."""

    @pytest.mark.parametrize("include", ["true", "false"])
    def test_a_success_has_the_attributes(self, include: str) -> None:
        """`NoEcho` and the value, which may be empty, are there only where IncludeValue asks for it."""
        for answer in (WITH_VALUE, WITH_VALUE._replace(value="", outcome="LOST")):
            data = {"KeyId": "a1b2c3d4e5", "UsagePlanId": "f7r3e3", "KeyType": "API_KEY", "KeyName": "alice"}
            value = {"Value": answer.value} if include == "true" else {}
            assert json.loads(body(parse(asked(IncludeValue=include)), answer, WHERE)) == {
                "Status": "SUCCESS",
                "PhysicalResourceId": ID,
                "StackId": EVENTS["create"]["StackId"],
                "RequestId": EVENTS["create"]["RequestId"],
                "LogicalResourceId": "AliceInFree",
                "NoEcho": include == "true",
                "Data": data | value | {"Id": ID, "Outcome": answer.outcome},
            }

    @pytest.mark.parametrize(
        ("name", "answer"), [("create", failed()), ("delete", ATTACHED), ("create-bad-property", failed())]
    )
    def test_a_failure_and_a_delete_have_none(self, name: str, answer: Response) -> None:
        read = made(answer, name=name)
        assert ("Data" in read, read["NoEcho"]) == (False, False)
        assert read.get("Reason") == (None if answer.success else f"The plan is full ({WHERE})")
        assert read["Status"] == ("SUCCESS" if answer.success else "FAILED")

    @pytest.mark.parametrize("extra", range(4))
    @pytest.mark.parametrize("letter", ["x", "ß", "€", "🔑", '"', "\\", "\n", "\x00"], ids=ascii)
    def test_is_full_to_the_last_character_that_fits(self, letter: str, extra: int) -> None:
        """A Reason keeps its beginning and says where the log is; a key's name is cut too."""
        size = len(json.dumps(letter, ensure_ascii=False).encode()) - 2
        reason = made(failed("." * extra + letter * 4000))
        assert LONGEST_RESPONSE - size < reason["bytes"]
        assert re.fullmatch(
            rf"\.{{{extra}}}{re.escape(letter)}{{500,}}… \({re.escape(WHERE)}\)", reason["Reason"]
        )
        named = made(WITH_VALUE._replace(key_name="." * extra + letter * 4000), IncludeValue="true")
        assert LONGEST_RESPONSE - size < named["bytes"]
        assert named["Data"]["Value"] == VALUE
        assert re.fullmatch(rf"\.{{{extra}}}{re.escape(letter)}{{500,}}…", named["Data"]["KeyName"])

    def test_one_of_4096_bytes_is_whole_and_no_error(self, caplog: pytest.LogCaptureFixture) -> None:
        room = LONGEST_RESPONSE - made(failed(""), "")["bytes"]
        read = made(failed("x" * room), "")
        assert (read["bytes"], read["Reason"]) == (LONGEST_RESPONSE, "x" * room)
        assert made(failed("€" * 1000))["Reason"] == f"{'€' * 1000} ({WHERE})"
        assert not caplog.records

    def test_a_long_place_leaves_half_of_the_room_to_the_reason(self) -> None:
        room = LONGEST_RESPONSE - made(failed(""), "")["bytes"]
        assert made(failed("r" * 4000), "w" * 4000)["Reason"].count("w") == pytest.approx(room / 2, abs=6)

    @pytest.mark.parametrize("name", ["StackId", "RequestId", "LogicalResourceId", "PhysicalResourceId"])
    @pytest.mark.parametrize("id_", ["i" * 500, "i" * 3500, "i" * 3600, "i\ud83di", "€" * 1100], ids=len)
    @pytest.mark.parametrize("success", [True, False])
    def test_a_long_or_odd_id_is_whole_and_all_else_is_cut(
        self, name: str, id_: str, *, success: bool
    ) -> None:
        own = asked("update-verify", **{name: id_})["PhysicalResourceId"]
        for letter in ("k", "\ude00"):
            answer = LONG._replace(success=success, id=own, reason=letter * 4000, key_name=letter * 4000)
            read = made(answer, name="update-verify", **{name: id_})
            text = read["Data"]["KeyName"] if success else read["Reason"]
            assert (read[name], text[:3]) == (id_, letter * 3)
            assert text.endswith("…" if success else f"({WHERE})") or len(id_) > 500
            assert read["bytes"] > LONGEST_RESPONSE - 6

    @pytest.mark.parametrize("success", [True, False])
    def test_one_that_does_not_fit_at_all_is_sent_and_logged(
        self, everything: Lines, *, success: bool
    ) -> None:
        sent = body(parse(asked("update-verify", StackId="i" * 5000)), LONG._replace(success=success), WHERE)
        read = json.loads(sent)
        assert (read.get("Reason", ""), read.get("Data", {}).get("KeyName", "")) == ("", "")
        told = f"The answer has {len(sent)} bytes for its ids, and CloudFormation takes 4096"
        assert everything.errors == [told]

    @pytest.mark.parametrize("left", range(8))
    def test_no_room_is_left_over_and_none_is_missing(self, left: int) -> None:
        """If no letter fits, the sign of a cut does not fit either."""
        room = LONGEST_RESPONSE - made(ATTACHED._replace(key_name=""))["bytes"]
        stack = EVENTS["create"]["StackId"] + "x" * (room - left)
        read = made(ATTACHED._replace(key_name="k" * 9), StackId=stack)
        assert read["Data"]["KeyName"] == ("k" * (left - 3) + "…" if left >= 3 else "")

    @pytest.mark.parametrize("lacking", ["", "function", "log group", "log stream"])
    def test_it_says_where_the_log_is_as_far_as_it_knows(self, lacking: str) -> None:
        parts = {"function": "F", "log group": "G", "log stream": "S"}
        parts.pop(lacking, None)
        context = SimpleNamespace(
            **{f"{name.replace(' ', '_')}_name": value for name, value in parts.items()}
        )
        assert where(context) == ", ".join(" ".join(part) for part in parts.items())
        assert made(failed("No"), where(object()))["Reason"] == "No"

    def test_a_printed_one_is_indented_and_readable_and_shows_no_value(self) -> None:
        sent = json.dumps({"Data": {"KeyName": "Zoë", "Value": VALUE}}).encode()
        assert redacted(sent) == '{\n  "Data": {\n    "KeyName": "Zoë",\n    "Value": "(not shown)"\n  }\n}'
        assert redacted(b'{"Data": {"KeyName": "\\ud800"}}').encode()
        assert redacted(b"{}") == "{}"


def raw(status: str, *headers: str, text: str = "") -> bytes:
    """A reply as it goes over the wire."""
    lines = (f"HTTP/1.1 {status}", *headers, "connection: close", f"content-length: {len(text)}", "", text)
    return "\r\n".join(lines).encode()


def s3_says(code: str, status: str = "400 Bad Request") -> bytes:
    return raw(status, text=f"<Error><Code>{code}</Code><Message>No</Message></Error>")


def redirect(location: str, status: int = 307) -> bytes:
    return raw(f"{status} Elsewhere", f"location: {location}")


#: Every kind of reply to a PUT, by what the sender does about it.
TAKEN = [200, 201, 204, raw("200 OK", text="taken")[:-3], b"HTTP/1.1 200 OK\r\nserv"]
AGAIN = [
    *(408, 409, 429, 500, 503, 599, "close", b"HTTP/1.1 2"),
    *(s3_says("RequestTimeout"), s3_says("IncompleteBody"), s3_says("RequestTimeout")[:80]),
]
REFUSED = [
    *(300, 301, 302, 303, 304, 400, 403, 404, 407, 410, 428, 430, 499, raw("199 Odd")),
    *(
        s3_says("AccessDenied"),
        s3_says("RequestTimeout", "403 Forbidden"),
        raw("403 Forbidden", text="x")[:-1],
    ),
    raw("307 Temporary Redirect"),
]
#: Redirects that the sender does not follow.
ASTRAY = [
    ("http://127.0.0.1/", "is not https"),
    ("ftp://x", "is not https"),
    (f"https://me:{SIGNATURE}@127.0.0.1/", "has user info"),
    (f"https://127.0.0.1\\@x/?{SIGNATURE}", "has a backslash, white space or a control character"),
    (f"https://[{SIGNATURE}/", "cannot be read"),
]


def deliver(sink: Sink, seconds: float = 60.0, *, value: bool = False) -> float:
    """Deliver an answer, or one with a value to a sink that plays an emulator; return the seconds."""
    clock, own = Clock(), sink.url.split("/")[2]
    check = partial(check_value_host, region="eu-central-1", suffix="amazonaws.com", emulator=own)
    answer = {"Data": {"Value": VALUE}} if value else {"Status": "SUCCESS"}
    request = parse(asked(ResponseURL=sink.url))
    Sender(check).deliver(request, within(seconds, clock), json.dumps(answer).encode())
    return clock.now - Clock().now


class TestSender:
    """The sender delivers a PUT."""

    @pytest.mark.parametrize(
        ("reply", "end"),
        [
            *((reply, "") for reply in TAKEN),
            *((reply, "again") for reply in AGAIN),
            *(
                (reply, "CloudFormation refused the answer with status {}: it no longer waits")
                for reply in REFUSED
            ),
            *((redirect(to), f"Did not send the answer: the redirect {fault}") for to, fault in ASTRAY),
        ],
        ids=lambda each: ascii(each)[:99],
    )
    def test_a_reply_to_the_put(
        self, sink: Sink, reply: Any, end: str, everything: Lines, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It is taken, has the sender back off and try again, or is final, logged and counted."""
        sink.replies = [reply] * 5 if end == "again" else [reply]
        waited = deliver(sink)
        tried = [line for line in everything.messages if "The answer's PUT failed, trying again: " in line]
        status = reply.split()[1].decode() if isinstance(reply, bytes) else reply
        if end == "again":
            assert (len(sink.puts), len(tried), everything.errors) == (6, 5, [])
            assert 0 < waited < 0.5 * (1 + 2 + 4 + 8 + 16)
            assert all(line.endswith((f": status {status}", ": ProtocolError")) for line in tried)
        else:
            assert (len(sink.puts), waited, len(everything.errors), tried) == (1, 0, bool(end), [])
            assert not end or everything.errors[0].startswith(end.format(status))
        printed = capsys.readouterr().out
        assert bool(printed) is (end not in ("", "again"))
        assert not printed or (json.loads(printed)["AnswerRefused"], "UsagePlanKey" in printed) == (
            [1.0],
            True,
        )
        assert everything.secrets(sink.url) == []

    def test_sends_the_body_with_its_length_and_an_empty_content_type(self, sink: Sink) -> None:
        deliver(sink)
        (put,) = sink.puts
        assert (put.headers["content-type"], put.headers["content-length"]) == ("", "21")
        assert "transfer-encoding" not in put.headers
        assert re.fullmatch(rf"/stack%7Cresource\?X-Amz-Date=\w{{16}}&{SIGNATURE}", put.path)
        assert put.body == b'{"Status": "SUCCESS"}'

    @pytest.mark.parametrize("status", [307, 308])
    @pytest.mark.parametrize("to", ["/there?a=%7C", "https://127.0.0.1:PORT/there"])
    def test_follows_a_redirect(self, sink: Sink, status: int, to: str, everything: Lines) -> None:
        sink.replies = [redirect(to.replace("127.0.0.1:PORT", sink.url.split("/")[2]), status)]
        deliver(sink, value=True)
        assert [put.path.partition("?")[0] for put in sink.puts] == ["/stack%7Cresource", "/there"]
        assert [put.answer["Data"]["Value"] for put in sink.puts] == [VALUE, VALUE]
        assert everything.errors == []

    def test_follows_five_redirects_in_a_row_and_begins_anew_after_trouble(
        self, sink: Sink, everything: Lines
    ) -> None:
        sink.replies = [307] * MOST_REDIRECTS
        deliver(sink)
        assert (len(sink.puts), everything.errors) == (6, [])
        sink.replies = [307] * (MOST_REDIRECTS + 1)
        deliver(sink)
        assert (len(sink.puts), len(everything.errors)) == (12, 1)
        sink.replies = [307, 503]
        deliver(sink)
        paths = [put.path.partition("?")[0] for put in sink.puts[12:]]
        assert paths == ["/stack%7Cresource", "/elsewhere", "/stack%7Cresource"]

    def test_follows_none_when_no_time_is_left(self, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
        clock, slow = Clock(), urllib3.PoolManager.urlopen

        def urlopen(*args: Any, **kwargs: Any) -> Any:
            clock.now += 3
            return slow(*args, **kwargs)

        monkeypatch.setattr(urllib3.PoolManager, "urlopen", urlopen)
        sink.replies = [307] * 5
        with pytest.raises(UndeliveredError):
            Sender().deliver(parse(asked(ResponseURL=sink.url)), within(10.0, clock), b"{}")
        assert len(sink.puts) == 3, "each may take three seconds"

    def test_no_value_leaves_for_a_host_that_is_not_cloudformations(
        self, sink: Sink, everything: Lines
    ) -> None:
        """By a redirect or directly: a stranger may have put the request into the queue."""
        with Sink(certificate=sink.certificate.read_bytes()) as other:
            sink.replies = [redirect(other.url), redirect(other.url)]
            deliver(sink, value=True)
            assert (len(sink.puts), other.puts) == (1, [])
            assert (
                "to no host but cloudformation-custom-resource-response-eucentral1." in everything.errors[0]
            )
            deliver(sink)
            assert len(other.puts) == 1, "an answer without one does"
        sender = Sender(partial(check_value_host, region="eu-central-1", suffix="amazonaws.com"))
        request = parse(asked(ResponseURL=sink.url, IncludeValue="true"))
        for served in (WITH_VALUE, failed()):
            sender.deliver(request, within(60, Clock()), body(request, served, WHERE))
        assert [answer.get("Status") for answer in sink.answers[2:]] == ["FAILED"]
        assert len(everything.errors) == 2
        with pytest.raises(FailedError):
            sender.check(request)
        for harmless in (asked(), asked("delete", IncludeValue="true")):
            sender.check(parse(harmless | {"ResponseURL": sink.url}))

    @pytest.mark.parametrize("how", [500, "close", "an error with the URL", "a proxy that is down"])
    def test_says_when_it_could_not_deliver_but_not_where_to(
        self,
        sink: Sink,
        how: Any,
        everything: Lines,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def urlopen(_: object, __: str, url: str, **___: object) -> None:
            raise urllib3.exceptions.MaxRetryError(urllib3.HTTPSConnectionPool("127.0.0.1"), url)

        sink.replies = [how] * 1000
        if how == "an error with the URL":
            monkeypatch.setattr(urllib3.PoolManager, "urlopen", urlopen)
        elif how == "a proxy that is down":
            monkeypatch.setenv("HTTPS_PROXY", f"http://me:{VALUE}@127.0.0.1:1")
        with pytest.raises(UndeliveredError) as raised:
            deliver(sink, value=True)
        assert str(raised.value) == "Could not deliver the answer to 127.0.0.1: no time is left"
        assert raised.value.__suppress_context__, "urllib3's errors name the URL"
        assert everything.secrets(sink.url) == []
        tried = [line.split(": ")[1] for line in everything.messages if "trying again" in line]
        assert len(tried) == len(sink.puts) > 1 or (sink.puts == [] and len(tried) > 1)
        assert how != "an error with the URL" or {*tried} == {"MaxRetryError"}
        assert json.loads(capsys.readouterr().out)["AnswerUndelivered"] == [1.0]

    def test_does_not_wait_for_a_server_that_hangs(self, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
        timeout = response._PUT_TIMEOUT
        assert (timeout.connect_timeout, timeout.read_timeout) == (1.0, 2.0)
        monkeypatch.setattr(response, "_PUT_TIMEOUT", urllib3.Timeout(connect=1, read=0.1))
        sink.replies = ["hang", 200]
        began = time.monotonic()
        deliver(sink)
        assert len(sink.puts) == 2
        assert time.monotonic() - began < 3


class TestConnection:
    """The sender connects as boto3 would: the same certificates and proxies, and one TLS context for all."""

    def test_a_preparation_holds_nobody_up_and_is_made_anew_if_it_failed(
        self, sink: Sink, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Otherwise the process could answer no later request."""
        sender, go, made = Sender(), threading.Event(), response._tls

        def fails() -> ssl.SSLContext:
            assert go.wait(5), "nobody waits for it"
            raise MemoryError

        monkeypatch.setattr(response, "_tls", fails)
        ready = sender.prepare()
        go.set()
        with pytest.raises(MemoryError):
            ready.result()
        monkeypatch.setattr(response, "_tls", made)
        sender.deliver(parse(asked(ResponseURL=sink.url)), within(60.0, Clock()), b"{}")
        assert len(sink.puts) == 1
        assert sender.prepare() is sender.prepare(), "and what was made serves all that follow"

    @pytest.mark.parametrize(
        ("named", "puts"),
        [
            ({"AWS_CA_BUNDLE": "own"}, 1),
            ({"REQUESTS_CA_BUNDLE": "own"}, 1),
            ({"SSL_CERT_FILE": "own"}, 1),
            ({"AWS_CA_BUNDLE": "other", "REQUESTS_CA_BUNDLE": "own"}, 0),
            ({"AWS_CA_BUNDLE": "", "REQUESTS_CA_BUNDLE": "own"}, 1),
            ({}, 0),
        ],
        ids=str,
    )
    def test_trusts_the_certificates_that_boto3_is_told_to_trust(
        self, sink: Sink, named: dict[str, str], puts: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """AWS's bundle comes first, and a variable that is empty says nothing."""
        monkeypatch.delenv("SSL_CERT_FILE")
        other = Sink()
        paths = {"own": str(sink.certificate), "other": str(other.certificate), "": ""}
        for name, whose in named.items():
            monkeypatch.setenv(name, paths[whose])
        try:
            deliver(sink, seconds=5)
        except UndeliveredError:
            assert puts == 0
        assert len(sink.puts) == puts
        other.server_close()
        other._folder.cleanup()

    @pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
    @pytest.mark.parametrize("prefix", ["", "http://", "http://me:se%63ret@"])
    def test_goes_through_the_proxy_that_boto3_would_use(
        self, sink: Sink, name: str, prefix: str, monkeypatch: pytest.MonkeyPatch, everything: Lines
    ) -> None:
        """No attempt goes unlogged: urllib3 would try three times again in silence."""
        sink.replies = ["close", 200]
        with Proxy() as proxy:
            monkeypatch.setenv(name, f"{prefix}{proxy.netloc}")
            deliver(sink)
        tried = [line for line in everything.messages if "trying again" in line]
        assert (len(sink.puts), len(tried)) == (2, 1)
        authorization = "Basic bWU6c2VjcmV0" if "@" in prefix else None
        assert proxy.connects == [(sink.url.split("/")[2], authorization)] * 2

    def test_a_proxy_and_the_direct_way_share_one_tls_context(
        self, sink: Sink, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make, made = ssl.create_default_context, []

        def counted(*args: Any, **kwargs: Any) -> ssl.SSLContext:
            made.append(args)
            return make(*args, **kwargs)

        sender, request = Sender(), parse(asked(ResponseURL=sink.url))
        with Proxy() as proxy:
            monkeypatch.setattr(ssl, "create_default_context", counted)
            for past in ("", "localhost,127.0.0.1", "127.0.0.1", ""):
                monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.netloc}")
                monkeypatch.setenv("NO_PROXY", past)
                sender.deliver(request, within(60, Clock()), b"{}")
            assert (len(made), len(proxy.connects), len(sink.connections), len(sink.puts)) == (1, 1, 2, 4)
            for manager in sender._managers.values():
                manager.clear()


#: URLs in which parsers disagree about the host.
ODD = (
    *(r"elsewhere\@x.amazonaws.com/", r"elsewhere\.x.amazonaws.com/", r"x/\a", "x y/", " x/", "x/ a", "x\t/"),
    *("x/\r\nhost:y", "x\x00/", "x/\x7f", "x\N{NO-BREAK SPACE}/", "x\N{ZERO WIDTH SPACE}/", "x/\ud800"),
)


class TestDestination:
    """The sender connects to the address that it has checked."""

    @pytest.mark.parametrize(
        ("url", "host", "port"),
        [
            ("https://x.s3.amazonaws.com/arn%3Aaws%7CA?X-Amz-Date=2026", "x.s3.amazonaws.com", None),
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
            *((url, "is not https") for url in ("http://x/", "ftp://x/", "//x/", "/x", "x")),
            *((url, "has no host") for url in ("https:x", "https://", "https:///x", "https://:443/")),
            *((f"https://{user}x/", "has user info") for user in ("me@", "me:you@", "elsewhere%5C@")),
            *((f"https://{odd}", "has a backslash, white space or a control character") for odd in ODD),
            *((f"https://{odd}/", "cannot be read") for odd in ("x:99999", "x:y", "[x", "x\N{ACCOUNT OF}y")),
            ("https://\N{FULLWIDTH LATIN SMALL LETTER X}.amazonaws.com/", "cannot be read"),
        ],
    )
    def test_any_other_is_refused_in_one_sentence_that_says_nothing_of_it(
        self, sink: Sink, url: str, fault: str, everything: Lines
    ) -> None:
        """Under sam local any will do: SAM's own sample events have one of http."""
        signed = f"{url}?{SIGNATURE}" if url != "https://" else url
        with pytest.raises(EventError) as raised:
            destination(signed)
        assert fault in str(raised.value)
        assert re.search(r"\bthe ResponseURL\b", str(raised.value))
        assert SIGNATURE not in str(raised.value)
        assert raised.value.__suppress_context__ or raised.value.__context__ is None
        destination(signed, local=True)

    @pytest.mark.parametrize(
        "url", [r"https://127.0.0.1:PORT\@x.amazonaws.com/", "https://127.0.0.1:PORT/ a"]
    )
    def test_nothing_is_sent_where_it_is_refused(self, sink: Sink, url: str, everything: Lines) -> None:
        to = url.replace("127.0.0.1:PORT", sink.url.split("/")[2])
        Sender().deliver(parse(asked(ResponseURL=to)), within(60, Clock()), b"{}")
        assert (sink.connections, len(everything.errors)) == ([], 1)


BUCKET = "cloudformation-custom-resource-response-{}.s3{}{}.amazonaws.com{}"
OWN = "cloudformation-custom-resource-response-euwest1"
US = ("us-east-1", "amazonaws.com")
IRELAND = ("eu-west-1", "amazonaws.com")


class TestValueHost:
    """A key's value goes to CloudFormation's own host."""

    @pytest.mark.parametrize(
        ("host", "region", "suffix"),
        [
            # The hosts of real events.
            (BUCKET.format("useast1", "", "", ""), *US),
            (BUCKET.format("eucentral1", ".", "eu-central-1", ""), "eu-central-1", "amazonaws.com"),
            (BUCKET.format("euwest1", "-", "eu-west-1", ""), *IRELAND),
            (BUCKET.format("cnnorth1", ".", "cn-north-1", ".cn"), "cn-north-1", "amazonaws.com.cn"),
            (BUCKET.format("usgovwest1", ".", "us-gov-west-1", ""), "us-gov-west-1", "amazonaws.com"),
            (f"{OWN}.s3.eu-west-1.amazonaws.com:443", *IRELAND),
            (f"{OWN.upper()}.S3.EU-WEST-1.AmazonAWS.com", "eu-west-1", "amazonAWS.com"),
            ("localhost:4566", *IRELAND),
            ("LOCALHOST:4566", *IRELAND),
            ("elsewhere.com", "eu-west-1", ""),
            ("elsewhere.com", "eu-west-1", None),
        ],
    )
    def test_it_is_let_through(self, host: str, region: str, suffix: str | None) -> None:
        """Where no suffix is known, any host is."""
        url = destination(f"https://{host}/a?b")
        check_value_host(url, region=region, suffix=suffix, emulator="LocalHost:4566")

    @pytest.mark.parametrize(
        "host",
        [
            *("elsewhere.com", "s3.amazonaws.com", "x.amazonaws.com", "localhost", "localhost:4567"),
            *("localhost:443", "localhost.elsewhere.com:4566"),
            f"{OWN}-mine.s3.eu-west-1.amazonaws.com",
            f"mine.{OWN}.s3.eu-west-1.amazonaws.com",
            BUCKET.format("eucentral1", ".", "eu-central-1", ""),
            f"{OWN}.s3.eu-central-1.amazonaws.com",
            *(f"{OWN}.s3.eu-west-1.amazonaws.com{more}" for more in (".cn", ".", ".x.com", ":8443", ":0")),
            f"{OWN}.s3.eu-west-1xamazonaws.com",
            f"{OWN}.s3-website-eu-west-1.amazonaws.com",
            f"{OWN}.execute-api.eu-west-1.amazonaws.com",
        ],
    )
    def test_any_other_is_not(self, host: str) -> None:
        url = destination(f"https://{host}/a?{SIGNATURE}")
        for emulator in ("localhost:4566", "", None):
            with pytest.raises(FailedError) as raised:
                check_value_host(url, region="eu-west-1", suffix="amazonaws.com", emulator=emulator)
            assert str(raised.value) == (
                "IncludeValue is true, and the function sends a key's value to no host but "
                f"{OWN}.s3.eu-west-1.amazonaws.com, which is CloudFormation's. ResponseURL leads to {host}. "
                "Remove IncludeValue, or name an emulator's host in the parameter ResponseHost"
            )
