"""No text that is not our own brings a secret into a Reason or a log line."""

from __future__ import annotations

import inspect
import json
import logging
import string
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import botocore.exceptions
import botocore.parsers
import pytest
import urllib3.exceptions
from botocore.exceptions import ClientError
from urllib3.connectionpool import HTTPConnectionPool

from usage_plan_key.cloudformation import stack_is_gone
from usage_plan_key.errors import FailedError, OutOfTimeError, TurnOverError, UnclearError
from usage_plan_key.queue import Queue
from usage_plan_key.redaction import response_url, shown, traceback, without_secrets
from usage_plan_key.retry import code, message

from . import function
from .function import STACK, World
from .memory import within

world = function.world

SIGNATURE, VALUE = "5f1c" * 16, "s3cr3t_value-of-a-key"
URL = f"https://b.s3.eu-west-1.amazonaws.com/path?X-Amz-Date=20261123T101112Z&X-Amz-Signature={SIGNATURE}"
PAGE = json.dumps({"echo": {"ResponseURL": URL.replace("&", "\\u0026"), "Value": VALUE}})
SECRETS = (SIGNATURE, VALUE)
MODULES = (botocore.exceptions, botocore.parsers, urllib3.exceptions)
CLASSES = [
    kind
    for module in MODULES
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
        needed = inspect.signature(kind.__init__).parameters.values()
        named = {
            one.name: text
            for one in needed
            if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD
        }
        named.pop("self", None)
        return kind(**{**fields, **named})
    pool = HTTPConnectionPool("b")
    pool.host = text
    reply = SimpleNamespace(tell=lambda: 1, length_remaining=1)
    for given in ((text,), (pool, text), (pool, text, Exception(text)), (reply, text.encode()), (1, 2), ()):
        with suppress(AttributeError, TypeError, ValueError):
            str(error := kind(*given))
            return error
    raise AssertionError(kind)


def hides(text: str) -> bool:
    return not any(secret in text for secret in SECRETS)


class TestTexts:
    """`shown` and its kin find each form of a secret, and leave the rest."""

    @pytest.mark.parametrize(
        "text",
        [
            URL,
            f"see {URL}, which is refused",
            quote(URL, safe=""),
            URL.replace("&", "&amp;"),
            URL.replace("&", "\\u0026"),
            URL.partition("amazonaws.com")[2],
            URL.partition("&")[2],
            f"Max retries exceeded with url: /path?Signature={quote('a+b/c=', safe='')}&x={SIGNATURE}",
            VALUE,
            f"({VALUE})",
            f'"{VALUE}"',
            "Ab1" * 14,
            "MyApiKeyThatIsAtLeast20Characters",
            PAGE,
        ],
    )
    def test_a_secret_is_taken_out(self, text: str) -> None:
        found = without_secrets(text)
        assert hides(found)
        assert not any(part in found for part in ("X-Amz", "Ab1Ab1", "MyApiKey", "a%2Bb"))

    @pytest.mark.parametrize(
        "text",
        [
            "An error occurred (ProvisionedThroughputExceededException) when calling TransactWriteItems",
            "arn:aws:sts::123456789012:assumed-role/usage-plan-key-FunctionRole-1ABCDEFGHIJKL/f may not",
            "no identity-based policy allows it to perform: dynamodb:TransactWriteItems",
            "ChangeMessageVisibilityBatch, RequestId: 2c3b3a4e-1f0d-4c8e-9b9a-0123456789ab",
            'Could not connect to "https://apigateway.eu-west-1.amazonaws.com/usageplans/p9/keys"',
            "Is it gone? Then a=b",
            "",
        ],
    )
    def test_what_is_none_stays(self, text: str) -> None:
        assert without_secrets(text) == text

    def test_the_response_url_is_taken_out_whatever_it_looks_like(self) -> None:
        before = response_url.set("https://emulator/answer")
        try:
            encoded = quote("https://emulator/answer", safe="")
            assert without_secrets(f"at https://emulator/answer, {encoded}") == "at (a URL), (a URL)"
        finally:
            response_url.reset(before)

    def test_our_own_errors_and_sentences_stay(self) -> None:
        own = "the ledger usage-plan-key-Ledger-1ABCDEFGHIJKL"
        assert shown(FailedError(own)) == shown(own) == own
        assert shown(ValueError(own)) != own

    def test_a_traceback_keeps_its_frames(self) -> None:
        frames = (
            "Traceback (most recent call last):\n"
            '  File "/var/task/usage_plan_key/a_module_with_a_long_name.py", line 7, in some_function_of_it\n'
            "    raise_the_error_of_the_test()"
        )
        assert traceback(f"{frames}\nValueError: {PAGE}\n  {VALUE}\n\n").startswith(f"{frames}\nValueError: ")
        assert hides(traceback(f"{frames}\nValueError: {PAGE}\n  {VALUE}\n\n{frames}\nx: {VALUE}"))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: f"{kind.__module__}.{kind.__qualname__}")
class TestEachError:
    """Whatever botocore and urllib3 raise, with a secret in each of its arguments."""

    def test_its_text_shows_none(self, kind: type[Exception]) -> None:
        error = raised(kind)
        assert hides(shown(error) + message(error) + code(error))
        assert hides(f"{OutOfTimeError.told('x', 1, 2, error)} {TurnOverError('x', error)}")

    def test_nor_does_any_neighbours(
        self, kind: type[Exception], world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        """API Gateway, the ledger, the queue and CloudFormation each fail with it, in every way in."""
        caplog.set_level(logging.DEBUG, "usage_plan_key")
        error = raised(kind)

        def fails(**_: Any) -> Any:
            raise error

        said = []
        world.sqs.send_message = fails  # type: ignore[method-assign]  # it fails
        world.sqs.change_message_visibility_batch = fails  # type: ignore[method-assign]  # it fails
        queue = Queue(world.sqs, "https://queue", "https://undelivered")  # type: ignore[arg-type]  # a fake
        event = {"StackId": "s", "RequestId": "r"}
        said += told(lambda: queue.put(event, 5, within(60, world.clock)))
        arn, down = world.invoked_function_arn, SimpleNamespace(describe_stacks=fails)
        said += told(lambda: stack_is_gone(down, STACK.format("one"), arn, within(60, world.clock)))
        del world.sqs.send_message
        world.arrives("alice")
        world.before_create = fails
        world.batch([*world.records(), function.record("stray", 7)])
        world.db.transact_get_items = fails  # type: ignore[method-assign]  # it fails
        world.clock.now += 4000
        world.serve(2)
        said += [json.dumps(world.answers)]
        assert caplog.messages, "so much for what it hides"
        assert hides(" ".join(said))
        assert hides(" ".join(record.getMessage() for record in caplog.records))


def told(call: Callable[[], object]) -> list[str]:
    try:
        call()
    except (FailedError, UnclearError) as error:
        return [str(error)]
    except Exception as error:  # noqa: BLE001  # `on_event` answers with it
        return [shown(error)]
    raise AssertionError("it has not failed")


def test_the_log_shows_none_in_a_line_or_a_traceback() -> None:
    program = f"""
import logging
import usage_plan_key.app
from botocore.exceptions import HTTPClientError
page = {PAGE!r}
log = logging.getLogger("usage_plan_key.service")
log.error("A URL in a line: %s", {URL!r})
try:
    try:
        raise HTTPClientError(error=page)
    except HTTPClientError as error:
        raise ValueError(page) from error
except ValueError:
    log.exception("An internal error")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1] / "handler",
        env={"AWS_DEFAULT_REGION": "us-east-1"},
        check=True,
        capture_output=True,
        text=True,
    )
    first, second = map(json.loads, done.stdout.splitlines())
    assert hides(done.stdout + done.stderr)
    assert first["message"] == "A URL in a line: (a URL)"
    assert (
        "raise HTTPClientError(error=page)" in second["exception"] or "HTTPClientError" in second["exception"]
    )
    assert second["exception"].count("Traceback (most recent call last):") == 2
