"""Shared by the tests of answers: events, a listener on the log, and a server for the answers."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emulators.sink import SIGNATURE, Sink
from usage_plan_key.model import Response

EVENTS = {path.stem: json.loads(path.read_text()) for path in sorted(Path("events").glob("*.json"))}
ID = "a1b2c3d4e5:f7r3e3"
VALUE = "s3cr3t-s3cr3t-s3cr3t-s3cr3t"
WHERE = "function usage-plan-key, log group /aws/lambda/usage-plan-key, log stream 2026/03/02/[$LATEST]5f3c"
ATTACHED = Response(success=True, outcome="ATTACHED", key_name="alice")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    proxies = ("https_proxy", "http_proxy", "all_proxy", "no_proxy")
    for name in (*proxies, *map(str.upper, proxies), "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


class Context:
    """Lambda's context of a function whose time is up in so many seconds of a clock."""

    aws_request_id = "8c5a3a0e"
    function_name = "usage-plan-key"
    invoked_function_arn = "arn:aws:lambda:eu-central-1:123456789012:function:usage-plan-key"
    log_group_name = "/aws/lambda/usage-plan-key"
    log_stream_name = "2026/03/02/[$LATEST]5f3c"

    def __init__(self, seconds: float = 900, clock: Any = time) -> None:
        self._clock, self._end = clock, clock.time() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return int((self._end - self._clock.time()) * 1000)


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sink]:
    with Sink() as sink:
        monkeypatch.setenv("SSL_CERT_FILE", str(sink.certificate))
        yield sink


def asked(name: str = "create", IncludeValue: str = "false", **fields: Any) -> dict[str, Any]:
    """An event of a file, with changes; the tests set a destination."""
    properties = EVENTS[name]["ResourceProperties"] | {"IncludeValue": IncludeValue}
    return {**EVENTS[name], "ResourceProperties": properties, **fields}


def failed(reason: str = "The plan is full") -> Response:
    return Response(success=False, reason=reason)


Lines = pytest.LogCaptureFixture


@pytest.fixture
def everything(caplog: Lines) -> Lines:
    """Set the root logger to DEBUG, as Lambda's ApplicationLogLevel can, and collect all records."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "usage_plan_key")
    return caplog


def errors(log: Lines) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelno == logging.ERROR]


def secrets(log: Lines, url: str) -> list[str]:
    """Find the records that show a secret in their text, traceback or attributes."""
    shown = [f"{record.name}: {record.getMessage()} {record.__dict__}" for record in log.records]
    return [line for line in shown if VALUE in line or SIGNATURE in line or url in line]
