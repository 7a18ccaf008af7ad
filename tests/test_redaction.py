"""No text that is not our own brings a secret into a Reason or a log line."""

from urllib.parse import quote

import pytest

from usage_plan_key.errors import FailedError
from usage_plan_key.redaction import response_url, shown, traceback, without_secrets

SIGNATURE, VALUE = "5f1c" * 16, "s3cr3t_value-of-a-key"
URL = f"https://b.s3.eu-west-1.amazonaws.com/path?X-Amz-Date=20261123T101112Z&X-Amz-Signature={SIGNATURE}"
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


def test_an_error_of_several_lines_is_shown_in_one() -> None:
    """Botocore's ParamValidationError has a line for each fault, and a Reason has one."""
    assert shown(ValueError("Validation failed:\n  too short")) == "Validation failed: too short"


def test_a_traceback_keeps_its_frames() -> None:
    frames = (
        "Traceback (most recent call last):\n"
        '  File "/var/task/usage_plan_key/a_module_with_a_long_name.py", line 7, in some_function_of_it\n'
        "    raise_the_error_of_the_test()"
    )
    text = f"{frames}\nValueError: {VALUE}\n  {VALUE}\n\n{frames}\nx: {VALUE}"
    assert traceback(text) == text.replace(VALUE, "(not shown: 21 characters)")
