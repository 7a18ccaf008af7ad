"""The function writes an answer, checks its address, and delivers it."""

from __future__ import annotations

import json
import re
import ssl
import threading
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import urllib3

from emulators.sink import SIGNATURE, Proxy, Put, Sink
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
from .answers import ATTACHED, EVENTS, ID, VALUE, WHERE, Lines, event, failed
from .memory import Clock, within

environment, sink, everything = answers.environment, answers.sink, answers.everything


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

    @pytest.mark.parametrize(
        ("name", "served"), [("create", failed()), ("delete", ATTACHED), ("create-bad-property", failed())]
    )
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
        """The cut falls between two characters."""
        served = failed("." * extra + letter * 4000)
        sent = body(parse(EVENTS["create"]), served, WHERE)
        assert LONGEST_RESPONSE - len(letter.encode()) < len(sent) <= LONGEST_RESPONSE
        reason = json.loads(sent.decode())["Reason"]
        assert reason.strip(".").startswith(letter * 700)
        assert reason.endswith(f"{letter}… ({WHERE})")

    def test_an_answer_of_4096_bytes_is_whole_and_no_error(self, caplog: pytest.LogCaptureFixture) -> None:
        room = LONGEST_RESPONSE - len(body(parse(EVENTS["create"]), failed(""), ""))
        sent = body(parse(EVENTS["create"]), failed("x" * room), "")
        assert (len(sent), json.loads(sent)["Reason"]) == (LONGEST_RESPONSE, "x" * room)
        assert not caplog.records

    def test_a_long_place_leaves_half_of_the_room_to_the_reason(self) -> None:
        empty = len(body(parse(EVENTS["create"]), failed(""), ""))
        reason = json.loads(body(parse(EVENTS["create"]), failed("r" * 4000), "w" * 4000))["Reason"]
        assert reason.count("w") == pytest.approx((LONGEST_RESPONSE - empty) / 2, abs=6)

    @pytest.mark.parametrize("letter", ["x", "€", "🔑", '"'], ids=ascii)
    def test_a_keys_name_is_cut_too(self, letter: str) -> None:
        asked = {**EVENTS["create"], "StackId": EVENTS["create"]["StackId"] + "x" * 300}
        asked["ResourceProperties"] = {**asked["ResourceProperties"], "IncludeValue": "true"}
        named = Response(success=True, id=ID, outcome="ATTACHED", key_name=letter * 4000)
        sent = body(parse(asked), named._replace(value=VALUE), WHERE)
        assert (
            LONGEST_RESPONSE - len(json.dumps(letter, ensure_ascii=False).encode())
            < len(sent)
            <= LONGEST_RESPONSE
        )
        data = json.loads(sent.decode())["Data"]
        assert data["Value"] == VALUE
        assert data["KeyName"] == letter * (len(data["KeyName"]) - 1) + "…"

    @pytest.mark.parametrize("name", ["StackId", "RequestId", "LogicalResourceId", "PhysicalResourceId"])
    @pytest.mark.parametrize("length", [500, 3500, 3600])
    @pytest.mark.parametrize("success", [True, False])
    def test_a_long_id_cuts_all_else(self, name: str, length: int, *, success: bool) -> None:
        asked = {**EVENTS["update-verify"], name: "i" * length}
        answer = Response(
            success=success,
            id=asked["PhysicalResourceId"],
            reason="r" * 4000,
            outcome="ATTACHED",
            key_name="k" * 999,
        )
        sent = body(parse(asked), answer, WHERE)
        assert length < len(sent) <= LONGEST_RESPONSE
        read = json.loads(sent)
        assert read[name] == "i" * length
        if not success:
            assert read["Reason"].startswith("rrr")
        if length == 500:
            assert (
                read["Data"]["KeyName"].startswith("kkk")
                if success
                else read["Reason"].endswith(f"({WHERE})")
            )

    @pytest.mark.parametrize("success", [True, False])
    def test_an_answer_that_does_not_fit_at_all_is_sent_and_logged(
        self, everything: Lines, *, success: bool
    ) -> None:
        asked = {**EVENTS["update-verify"], "StackId": "i" * 5000}
        answer = Response(
            success=success,
            id=asked["PhysicalResourceId"],
            reason="r" * 4000,
            outcome="ATTACHED",
            key_name="k" * 999,
        )
        sent = body(parse(asked), answer, WHERE)
        read = json.loads(sent)
        assert (read.get("Reason", ""), read.get("Data", {}).get("KeyName", "")) == ("", "")
        assert everything.errors == [
            f"The answer has {len(sent)} bytes for its ids, and CloudFormation takes 4096"
        ]

    @pytest.mark.parametrize("left", range(8))
    def test_no_room_is_left_over_and_none_is_missing(self, left: int) -> None:
        """If no letter fits, the sign of a cut does not fit either."""
        empty = len(body(parse(EVENTS["create"]), Response(success=True, id=ID, outcome="ATTACHED"), WHERE))
        asked = {
            **EVENTS["create"],
            "StackId": EVENTS["create"]["StackId"] + "x" * (LONGEST_RESPONSE - empty - left),
        }
        named = Response(success=True, id=ID, outcome="ATTACHED", key_name="k" * 9)
        sent = body(parse(asked), named, WHERE)
        assert len(sent) <= LONGEST_RESPONSE
        assert json.loads(sent)["Data"]["KeyName"] == ("k" * (left - 3) + "…" if left >= 3 else "")

    @pytest.mark.parametrize("name", ["StackId", "RequestId", "LogicalResourceId", "PhysicalResourceId"])
    @pytest.mark.parametrize("success", [True, False])
    def test_a_lone_surrogate_breaks_nothing(self, name: str, *, success: bool) -> None:
        asked = {**EVENTS["update-verify"], name: "i\ud83di"}
        text = "\ude00" * 3000
        answer = Response(
            success=success, id=asked["PhysicalResourceId"], reason=text, outcome="ATTACHED", key_name=text
        )
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
    def test_a_part_that_a_stand_in_for_the_context_lacks_is_left_out(self, lacking: str) -> None:
        names = {"function_name": "F", "log_group_name": "G", "log_stream_name": "S"}
        names.pop(lacking)
        parts = {
            "function_name": "function F",
            "log_group_name": "log group G",
            "log_stream_name": "log stream S",
        }
        parts.pop(lacking)
        assert where(SimpleNamespace(**names)) == ", ".join(parts.values())

    def test_nothing_is_said_of_the_log_where_nothing_is_known(self) -> None:
        assert where(object()) == ""
        answer = json.loads(body(parse(EVENTS["create"]), failed("No"), where(object())))
        assert answer["Reason"] == "No"

    def test_a_reason_that_fits_is_not_cut(self) -> None:
        answer = json.loads(body(parse(EVENTS["create"]), failed("€" * 1000), WHERE))
        assert answer["Reason"] == f"{'€' * 1000} ({WHERE})"

    def test_the_longest_event_fits(self) -> None:
        asked = {**EVENTS["delete"], "PhysicalResourceId": "€" * 341, "LogicalResourceId": "L" * 255}
        asked["StackId"] = (
            f"arn:aws-us-gov:cloudformation:us-gov-west-1:123456789012:stack/{'s' * 128}/{'u' * 36}"
        )
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

    def test_a_printed_answer_is_indented_and_readable_and_shows_no_value(self) -> None:
        sent = json.dumps({"Data": {"KeyName": "Zoë", "Value": VALUE}}).encode()
        assert redacted(sent) == '{\n  "Data": {\n    "KeyName": "Zoë",\n    "Value": "(not shown)"\n  }\n}'


def s3_says(code: str) -> bytes:
    """A 400 of S3's, as it goes over the wire."""
    xml = f"<Error><Code>{code}</Code><Message>No</Message></Error>"
    return (
        f"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: {len(xml)}\r\n\r\n{xml}".encode()
    )


def redirect(location: str, status: int = 307) -> bytes:
    head = f"HTTP/1.1 {status} Elsewhere\r\nlocation: {location}"
    return f"{head}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode()


class TestSender:
    """The sender delivers a PUT."""

    def deliver(self, sink: Sink, seconds: float = 60.0) -> Clock:
        clock = Clock()
        Sender().deliver(parse(event(sink)), within(seconds, clock), b'{"Status":"SUCCESS"}')
        return clock

    def deliver_value(self, sink: Sink) -> None:
        """Deliver a value to a sink that plays an emulator with leave to have it."""
        own = sink.url.split("/")[2]
        check = partial(check_value_host, region="eu-central-1", suffix="amazonaws.com", emulator=own)
        Sender(check).deliver(
            parse(event(sink)), within(60, Clock()), json.dumps({"Data": {"Value": VALUE}}).encode()
        )

    def test_a_preparation_that_failed_is_made_anew(
        self, sink: Sink, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Otherwise the process could answer no later request."""
        sender, made = Sender(), response._tls

        def no_context() -> ssl.SSLContext:
            raise MemoryError

        monkeypatch.setattr(response, "_tls", no_context)
        with pytest.raises(MemoryError):
            sender.prepare().result()
        monkeypatch.setattr(response, "_tls", made)
        sender.deliver(parse(event(sink)), within(60.0, Clock()), b"{}")
        assert len(sink.puts) == 1
        assert sender.prepare() is sender.prepare(), "and what was made serves all that follow"

    def test_making_ready_holds_nobody_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        go, made = threading.Event(), ssl.create_default_context()

        def slowly() -> ssl.SSLContext:
            assert go.wait(5), "nobody waits for it"
            return made

        monkeypatch.setattr(response, "_tls", slowly)
        ready = Sender().prepare()
        go.set()
        assert ready.result() is made

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
            pytest.param(
                s3_says("RequestTimeout").replace(b" 400 ", b" 403 "),
                id="the code of a 400 without its status",
            ),
            pytest.param(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 9\r\n\r\n<", id="a 403 that breaks off"),
            pytest.param(
                b"HTTP/1.1 307 Temporary Redirect\r\ncontent-length: 0\r\n\r\n", id="a redirect to nowhere"
            ),
            pytest.param(b"HTTP/1.1 199 Odd\r\ncontent-length: 0\r\n\r\n", id="199"),
        ],
    )
    def test_any_other_refusal_is_final_and_counted(
        self, sink: Sink, reply: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        sink.replies = [reply]
        self.deliver(sink)
        assert len(sink.puts) == 1
        metric = json.loads(capsys.readouterr().out)
        assert metric["AnswerRefused"] == [1.0]
        (metrics,) = metric["_aws"]["CloudWatchMetrics"]
        assert metrics["Namespace"] == "UsagePlanKey"
        assert [named["Name"] for named in metrics["Metrics"]] == ["AnswerRefused"]

    @pytest.mark.parametrize(
        "reply", [b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nta", b"HTTP/1.1 200 OK\r\nserv", 201, 204]
    )
    def test_a_reply_that_breaks_off_after_its_status_has_that_status(
        self, sink: Sink, reply: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        sink.replies = [reply]
        self.deliver(sink)
        assert len(sink.puts) == 1
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize("status", [307, 308])
    @pytest.mark.parametrize("relative", [True, False], ids=["relative", "absolute"])
    def test_follows_a_redirect(
        self, sink: Sink, status: int, capsys: pytest.CaptureFixture[str], *, relative: bool
    ) -> None:
        sink.replies = [
            redirect("/there?a=%7C" if relative else sink.url.replace("/stack", "/there"), status)
        ]
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
        assert [put.path.partition("?")[0] for put in sink.puts] == [
            "/stack%7Cresource",
            "/elsewhere",
            "/stack%7Cresource",
        ]

    def test_follows_no_redirect_when_no_time_is_left(
        self, sink: Sink, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = Clock()
        slow = urllib3.PoolManager.urlopen

        def urlopen(*args: Any, **kwargs: Any) -> Any:
            clock.now += 3
            return slow(*args, **kwargs)

        monkeypatch.setattr(urllib3.PoolManager, "urlopen", urlopen)
        sink.replies = [307] * 5
        with pytest.raises(UndeliveredError):
            Sender().deliver(parse(event(sink)), within(10.0, clock), b"{}")
        assert len(sink.puts) == 3, "each may take three seconds"

    @pytest.mark.parametrize(
        ("location", "sentence"),
        [
            ("http://127.0.0.1/", "the redirect is not https"),
            (f"https://me:{SIGNATURE}@127.0.0.1/", "the redirect has user info"),
            (
                f"https://127.0.0.1\\@x/?{SIGNATURE}",
                "the redirect has a backslash, white space or a control character",
            ),
            (f"https://[{SIGNATURE}/", "the redirect cannot be read"),
            ("ftp://x", "the redirect is not https"),
        ],
    )
    def test_a_redirect_that_must_not_be_followed_is_final(
        self, sink: Sink, location: str, sentence: str, everything: Lines, capsys: pytest.CaptureFixture[str]
    ) -> None:
        sink.replies = [redirect(location)]
        self.deliver(sink)
        assert (everything.errors, len(sink.puts)) == ([f"Did not send the answer: {sentence}"], 1)
        assert "AnswerRefused" in capsys.readouterr().out

    def test_a_value_is_not_redirected_elsewhere(
        self, sink: Sink, everything: Lines, capsys: pytest.CaptureFixture[str]
    ) -> None:
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

    def test_no_value_leaves_for_a_host_that_is_not_cloudformations(
        self, sink: Sink, everything: Lines
    ) -> None:
        """Earlier checks do not count: a stranger may have put the request into the queue."""
        check = partial(
            check_value_host, region="eu-central-1", suffix="amazonaws.com", emulator="127.0.0.1:1"
        )
        asked = event(sink)
        asked["ResourceProperties"] = {**asked["ResourceProperties"], "IncludeValue": "true"}
        request = parse(asked)
        for served in (ATTACHED._replace(value=VALUE), failed()):
            Sender(check).deliver(request, within(60, Clock()), body(request, served, WHERE))
        assert [answer["Status"] for answer in sink.answers] == ["FAILED"]
        assert len(everything.errors) == 1

    def test_counts_nothing_when_the_answer_is_taken(
        self, sink: Sink, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.deliver(sink)
        assert capsys.readouterr().out == ""

    def test_a_status_that_is_tried_again_is_logged(
        self, sink: Sink, caplog: pytest.LogCaptureFixture
    ) -> None:
        sink.replies = [503, 200]
        self.deliver(sink)
        assert "The answer's PUT failed, trying again: status 503" in caplog.messages

    def test_does_not_wait_for_a_server_that_hangs(self, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
        assert response._PUT_TIMEOUT.read_timeout == 2.0
        monkeypatch.setattr(response, "_PUT_TIMEOUT", urllib3.Timeout(connect=1, read=0.1))
        sink.replies = ["hang", 200]
        began = time.monotonic()
        self.deliver(sink)
        assert len(sink.puts) == 2
        assert time.monotonic() - began < 2

    def test_an_error_whose_text_has_the_url_is_logged_only_by_its_type(
        self, sink: Sink, monkeypatch: pytest.MonkeyPatch, everything: Lines
    ) -> None:
        def request(_: object, __: str, url: str, **___: object) -> None:
            raise urllib3.exceptions.MaxRetryError(urllib3.HTTPSConnectionPool("127.0.0.1"), url)

        monkeypatch.setattr(urllib3.PoolManager, "urlopen", request)
        with pytest.raises(UndeliveredError):
            self.deliver(sink)
        assert "The answer's PUT failed, trying again: MaxRetryError" in [
            one.getMessage() for one in everything.records
        ]
        assert everything.secrets(sink.url) == []

    @pytest.mark.parametrize("name", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
    def test_trusts_the_certificates_that_boto3_is_told_to_trust(
        self, sink: Sink, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
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

    def test_no_attempt_through_a_proxy_goes_unlogged(
        self, sink: Sink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """urllib3 would try three times again in silence."""
        sink.replies = ["close", 200]
        with Proxy() as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.netloc)
            self.deliver(sink)
        tried = [record for record in caplog.records if "trying again" in record.message]
        assert (len(sink.puts), len(tried)) == (2, 1)

    def test_goes_past_the_proxy_where_boto3_would(self, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
        with Proxy() as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.netloc}")
            monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
            self.deliver(sink)
        assert (len(sink.puts), proxy.connects) == (1, [])

    def test_a_proxy_and_the_direct_way_share_one_tls_context(
        self, sink: Sink, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make, made = ssl.create_default_context, []

        def counted(*args: Any, **kwargs: Any) -> ssl.SSLContext:
            made.append(args)
            return make(*args, **kwargs)

        sender = Sender()
        with Proxy() as proxy:
            monkeypatch.setattr(ssl, "create_default_context", counted)
            for setting in (f"http://{proxy.netloc}", "", f"http://{proxy.netloc}"):
                monkeypatch.setenv("HTTPS_PROXY", setting)
                sender.deliver(parse(event(sink)), within(60, Clock()), b"{}")
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

    def test_trusts_no_unknown_certificate(self, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(UndeliveredError):
            self.deliver(sink)
        assert sink.puts == []


#: URLs in which parsers disagree about the host.
ODD = (
    *(
        r"elsewhere\@x.amazonaws.com/",
        r"elsewhere\.x.amazonaws.com/",
        r"x/\a",
        "x y/",
        " x/",
        "x/ a",
        "x\t/",
        "x/\r\nhost:y",
    ),
    *("x\x00/", "x/\x7f", "x\N{NO-BREAK SPACE}/", "x\N{ZERO WIDTH SPACE}/", "x/\ud800"),
)


class TestDestination:
    """The sender connects to the address that it has checked."""

    @pytest.mark.parametrize(
        ("url", "host", "port"),
        [
            (
                "https://x.s3.amazonaws.com/arn%3Aaws%7CAlice?X-Amz-Date=20260302T090000Z",
                "x.s3.amazonaws.com",
                None,
            ),
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
            (
                "https://b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example/",
                "",
            ),  # One parser encodes it, or cannot read it.
            ("https://[fe80::1%25eth0]/", "different hosts"),
        ],
    )
    def test_any_other_is_refused_in_one_sentence_that_says_nothing_of_it(self, url: str, fault: str) -> None:
        with pytest.raises(EventError) as raised:
            destination(f"{url}?{SIGNATURE}" if url != "https://" else url)
        assert fault in str(raised.value)
        assert re.search(r"\bthe ResponseURL\b", str(raised.value))
        assert SIGNATURE not in str(raised.value)
        assert raised.value.__cause__ is None
        assert raised.value.__suppress_context__ or raised.value.__context__ is None

    @pytest.mark.parametrize("url", ["http://x/", "", "\\", "https://[", "pre-signed-url"])
    def test_under_sam_local_any_will_do(self, url: str) -> None:
        """SAM's own sample events have one of http."""
        destination(url, local=True)

    @pytest.mark.parametrize(
        "url", [r"https://127.0.0.1:PORT\@x.amazonaws.com/", "https://127.0.0.1:PORT/ a"]
    )
    def test_nothing_is_sent_where_it_is_refused(self, sink: Sink, url: str, everything: Lines) -> None:
        port = sink.url.split("/")[2].partition(":")[2]
        request = parse(event(sink))
        request.response_url = url.replace("PORT", port)
        Sender().deliver(request, within(60, Clock()), b"{}")
        assert (sink.connections, len(everything.errors)) == ([], 1)


OWN = "cloudformation-custom-resource-response-euwest1"


class TestValueHost:
    """A key's value goes to CloudFormation's own host."""

    @pytest.mark.parametrize(
        ("host", "region", "suffix"),
        [
            # The hosts of real events.
            (
                "cloudformation-custom-resource-response-useast1.s3.amazonaws.com",
                "us-east-1",
                "amazonaws.com",
            ),
            (
                "cloudformation-custom-resource-response-eucentral1.s3.eu-central-1.amazonaws.com",
                "eu-central-1",
                "amazonaws.com",
            ),
            (f"{OWN}.s3-eu-west-1.amazonaws.com", "eu-west-1", "amazonaws.com"),
            (
                "cloudformation-custom-resource-response-cnnorth1.s3.cn-north-1.amazonaws.com.cn",
                "cn-north-1",
                "amazonaws.com.cn",
            ),
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
        check_value_host(
            destination(f"https://{host}/a?b"), region=region, suffix=suffix, emulator="LocalHost:4566"
        )

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
        assert str(raised.value) == (
            "IncludeValue is true, and the function sends a key's value to no host but "
            f"{OWN}.s3.eu-west-1.amazonaws.com, which is CloudFormation's. ResponseURL leads to {host}. "
            "Remove IncludeValue, or name an emulator's host in the parameter ResponseHost"
        )

    @pytest.mark.parametrize("suffix", ["", None])
    def test_is_not_checked_where_no_suffix_is_known(self, suffix: str | None) -> None:
        check_value_host(destination("https://elsewhere.com/"), region="eu-west-1", suffix=suffix)

    @pytest.mark.parametrize("emulator", ["", None])
    def test_no_emulator_is_no_host(self, emulator: str | None) -> None:
        with pytest.raises(FailedError):
            check_value_host(
                destination("https://x/"), region="eu-west-1", suffix="amazonaws.com", emulator=emulator
            )
