"""No text that is not our own brings a secret into a Reason or a log line."""

from __future__ import annotations

import json
import logging
from unittest.mock import Mock
from urllib.parse import quote

import pytest
from botocore import exceptions as aws
from botocore.parsers import ResponseParserError
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import LocationParseError, MaxRetryError, ProtocolError

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
ERRORS: list[Exception] = [
    aws.ClientError({"Error": {"Code": VALUE, "Message": PAGE}}, "Call"),
    *(kind(endpoint_url=PAGE) for kind in (aws.EndpointConnectionError, aws.ReadTimeoutError)),
    aws.SSLError(endpoint_url=PAGE, error=Exception(PAGE)),
    *(kind(error=PAGE, proxy_url=PAGE) for kind in (aws.HTTPClientError, aws.ProxyConnectionError)),
    aws.ParamValidationError(report=PAGE),
    *(kind(PAGE) for kind in (ResponseParserError, ProtocolError, LocationParseError, ValueError, KeyError)),
    MaxRetryError(HTTPConnectionPool("b"), PAGE, ProtocolError(PAGE)),
]
NAMES = ("Signature", "AWSAccessKeyId", "Expires", "X-Amz-Security-Token")
URLS = [
    *(URL, quote(URL, safe=""), URL.replace("&", "&amp;"), URL.replace("&", "\\u0026")),
    *(URL.partition("amazonaws.com")[2], URL.partition("&")[2], "https://emulator/answer"),
    *(quote("x?a=b", safe=""), "x?a%3Db", "x%3Fa=b", *(f"{name}=x" for name in NAMES)),
]
WHOLE = [
    "a" * 19,
    "An error occurred (ProvisionedThroughputExceededException) when calling TransactWriteItems",
    "UnrecognizedServiceError: BandwidthLimitExceeded, AVeryLongNameOfAStateComplete",
    "arn:aws:sts::123456789012:assumed-role/usage-plan-key-FunctionRole-1ABCDEFGHIJKL/f may not",
    "no identity-based policy allows it to perform: dynamodb:TransactWriteItems",
    "ChangeMessageVisibilityBatch, RequestId: 2c3b3a4e-1f0d-4c8e-9b9a-0123456789ab",
    'Could not connect to "https://apigateway.eu-west-1.amazonaws.com/usageplans/p9/keys"',
    "Is it gone? Then a=b",
]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        *((url, "(a URL)") for url in URLS),
        *((text, text) for text in WHOLE),
        (f"see {URL}, which is refused", "see (a URL) which is refused"),
        ("Max retries exceeded with url: /path?Signature=a%2Bb", "Max retries exceeded with url: (a URL)"),
        ("the rest is SIGNATURE%3da%2Bb.", "the rest is (a URL)"),
        (f"at {quote('https://emulator/answer', safe='')}.", "at (a URL)."),
        (f'("{VALUE}")', '("(not shown: 21 characters)")'),
        *(
            (text, f"(not shown: {len(text)} characters)")
            for text in (VALUE, "a" * 20, "AKeyOf20CharactersXX")
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
    text = f"{frames}\nValueError: {VALUE}\n  {VALUE}\n\n{frames}\nx: {VALUE}"
    assert traceback(text) == text.replace(VALUE, "(not shown: 21 characters)")


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_no_error_shows_one(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever botocore and urllib3 raise: neither its text, nor its neighbour's Reason, nor a log line."""
    caplog.set_level(logging.DEBUG, "usage_plan_key")
    client = Mock()
    client.meta.region_name = "eu-west-1"
    for call in ("get_usage_plan_key", "transact_get_items", "send_message", "describe_stacks"):
        getattr(client, call).side_effect = error

    def soon() -> Deadline:
        return within(20, Clock())

    said = [shown(error), message(error), code(error), str(OutOfTimeError.told("x", 1, 2, error))]
    for ask in (
        lambda: ApiGateway(client).look(IN_FREE, soon()),
        lambda: Table(client, "ledger").read([(Holder("s", "Alice"), [IN_FREE])], soon()),
        lambda: Queue(client, "https://queue").put({"StackId": "s", "RequestId": "r"}, 5, soon()),
        lambda: stack_is_gone(client, STACK, FUNCTION, soon()),
    ):
        with pytest.raises(Exception) as failed:  # noqa: PT011  # `provider` answers with any
            ask()
        said.append(shown(failed.value))
    said += [str(TurnOverError("x", error)), *caplog.messages]
    assert [text for text in said if SIGNATURE in text or VALUE in text] == []
