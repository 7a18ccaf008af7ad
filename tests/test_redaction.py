"""No text that is not our own brings a secret into a Reason or a log line."""

from __future__ import annotations

import inspect
import json
import logging
import string
from contextlib import suppress
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import botocore.exceptions
import botocore.parsers
import pytest
import urllib3.exceptions
from botocore.exceptions import ClientError
from urllib3.connectionpool import HTTPConnectionPool

from usage_plan_key.api_gateway import ApiGateway
from usage_plan_key.cloudformation import stack_is_gone
from usage_plan_key.errors import FailedError, OutOfTimeError, TurnOverError
from usage_plan_key.ledger import Table
from usage_plan_key.model import Association, Holder
from usage_plan_key.queue import Queue
from usage_plan_key.redaction import response_url, shown, traceback, without_secrets
from usage_plan_key.retry import Deadline, code, message

from .memory import Clock, within

SIGNATURE, VALUE = "5f1c" * 16, "s3cr3t_value-of-a-key"
URL = f"https://b.s3.eu-west-1.amazonaws.com/path?X-Amz-Date=20261123T101112Z&X-Amz-Signature={SIGNATURE}"
PAGE = json.dumps({"echo": {"ResponseURL": URL.replace("&", "\\u0026"), "Value": VALUE}})
IN_FREE = Association("alice", "free")
STACK = "arn:aws:cloudformation:eu-west-1:1:stack/one/0"
FUNCTION = "arn:aws:lambda:eu-west-1:1:function:usage-plan-key"
CLASSES = [
    kind
    for module in (botocore.exceptions, botocore.parsers, urllib3.exceptions)
    for _, kind in inspect.getmembers(module, inspect.isclass)
    if issubclass(kind, Exception) and kind.__module__.startswith(("botocore", "urllib3"))
]


def raised(kind: type[Exception], text: str = PAGE) -> Exception:
    """Make an error with a text in each of its arguments."""
    if issubclass(kind, ClientError):
        reply: Any = {"Error": {"Code": VALUE, "Message": text}}
        return kind(reply, "Call")
    if fmt := getattr(kind, "fmt", None):
        fields = {name: text for _, name, *_ in string.Formatter().parse(fmt) if name}
        needed = list(inspect.signature(kind.__init__).parameters.values())[1:]
        named = {
            one.name: text
            for one in needed
            if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD
        }
        return kind(**fields | named)
    pool = HTTPConnectionPool("b")
    pool.host = text
    reply = SimpleNamespace(tell=lambda: 1, length_remaining=1)
    for given in ((text,), (pool, text), (pool, text, Exception(text)), (reply, text.encode()), (1, 2), ()):
        with suppress(AttributeError, TypeError, ValueError):
            str(error := kind(*given))
            return error
    raise AssertionError(kind)


def hides(text: str) -> bool:
    return SIGNATURE not in text and VALUE not in text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (URL, "(a URL)"),
        (f"see {URL}, which is refused", "see (a URL) which is refused"),
        (quote(URL, safe=""), "(a URL)"),
        (quote("x?a=b", safe=""), "(a URL)"),
        ("x?a%3Db", "(a URL)"),
        ("x%3Fa=b", "(a URL)"),
        (URL.replace("&", "&amp;"), "(a URL)"),
        (URL.replace("&", "\\u0026"), "(a URL)"),
        (URL.partition("amazonaws.com")[2], "(a URL)"),
        (URL.partition("&")[2], "(a URL)"),
        ("Max retries exceeded with url: /path?Signature=a%2Bb", "Max retries exceeded with url: (a URL)"),
        ("the rest is SIGNATURE%3da%2Bb.", "the rest is (a URL)"),
        *(
            (f"{name}=x", "(a URL)")
            for name in ("Signature", "AWSAccessKeyId", "Expires", "X-Amz-Security-Token")
        ),
        (VALUE, "(not shown: 21 characters)"),
        (f'("{VALUE}")', '("(not shown: 21 characters)")'),
        ("a" * 20, "(not shown: 20 characters)"),
        ("MyApiKeyThatIsAtLeast20Characters", "(not shown: 33 characters)"),
        ("https://emulator/answer", "(a URL)"),
        (f"at {quote('https://emulator/answer', safe='')}.", "at (a URL)."),
        *(
            (text, text)
            for text in (
                "a" * 19,
                "An error occurred (ProvisionedThroughputExceededException) when calling TransactWriteItems",
                "UnrecognizedServiceError: BandwidthLimitExceeded, AVeryLongNameOfAStateComplete",
                "arn:aws:sts::123456789012:assumed-role/usage-plan-key-FunctionRole-1ABCDEFGHIJKL/f may not",
                "no identity-based policy allows it to perform: dynamodb:TransactWriteItems",
                "ChangeMessageVisibilityBatch, RequestId: 2c3b3a4e-1f0d-4c8e-9b9a-0123456789ab",
                'Could not connect to "https://apigateway.eu-west-1.amazonaws.com/usageplans/p9/keys"',
                "Is it gone? Then a=b",
            )
        ),
    ],
)
def test_a_secret_is_taken_out_and_the_rest_stays(text: str, left: str) -> None:
    """The request's own URL goes whatever it looks like; our own errors and sentences stay whole."""
    before = response_url.set("https://emulator/answer")
    try:
        assert without_secrets(text) == shown(ValueError(text)) == left
    finally:
        response_url.reset(before)
    assert shown(FailedError(text)) == shown(text) == text


def test_a_traceback_keeps_its_frames() -> None:
    frames = (
        "Traceback (most recent call last):\n"
        '  File "/var/task/usage_plan_key/a_module_with_a_long_name.py", line 7, in some_function_of_it\n'
        "    raise_the_error_of_the_test()"
    )
    hidden = "(not shown: 21 characters)"
    text = f"{frames}\nValueError: {VALUE}\n  {VALUE}\n\n{frames}\nx: {VALUE}"
    assert traceback(text) == text.replace(VALUE, hidden)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: f"{kind.__module__}.{kind.__qualname__}")
def test_no_error_shows_one(kind: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    """Whatever botocore and urllib3 raise: neither its text, nor its neighbour's Reason, nor a log line."""
    caplog.set_level(logging.DEBUG, "usage_plan_key")
    error = raised(kind)

    def fails(**_: Any) -> Any:
        raise error

    class Down:
        meta = SimpleNamespace(region_name="eu-west-1")
        get_usage_plan_key = transact_get_items = send_message = describe_stacks = staticmethod(fails)

    client: Any = Down()

    def soon() -> Deadline:
        return within(20, Clock())

    said = [shown(error), message(error), code(error), str(OutOfTimeError.told("x", 1, 2, error))]
    for call in (
        lambda: ApiGateway(client).look(IN_FREE, soon()),
        lambda: Table(client, "ledger").read([(Holder("s", "Alice"), [IN_FREE])], soon()),
        lambda: Queue(client, "https://queue").put({"StackId": "s", "RequestId": "r"}, 5, soon()),
        lambda: stack_is_gone(client, STACK, FUNCTION, soon()),
    ):
        try:
            call()
        except Exception as failed:  # noqa: BLE001  # `provider` answers with it
            said.append(shown(failed))
    assert len(said) == 8
    assert hides(f"{said} {TurnOverError('x', error)} {caplog.messages}")
