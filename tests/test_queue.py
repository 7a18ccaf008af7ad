"""The queue gets the right calls, and the function reads its messages."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError

from usage_plan_key.errors import FailedError, UnclearError
from usage_plan_key.queue import LONGEST_MESSAGE, Message, Queue, messages

from . import function
from .function import World, denied, record, refusal
from .memory import within

world = function.world
EVENT = {"StackId": "s", "RequestId": "\ud800"}


def read(body: object, **attributes: str) -> Message:
    (message,) = messages([record(body if isinstance(body, str) else json.dumps(body), 7, **attributes)])
    return message


class TestMessages:
    """The function reads each field of SQS's records."""

    def test_all_that_sqs_says_of_a_message_is_read(self) -> None:
        of_sqs = {
            "MessageGroupId": "g",
            "SentTimestamp": "9000",
            "ApproximateReceiveCount": "3",
            "ApproximateFirstReceiveTimestamp": "10500",
        }
        assert tuple(read("{}", **of_sqs)) == ("message-7", "g", "receipt-7", "{}", {}, 9, False, 3, 10.5)
        (bare,) = messages([{"messageId": "m", "receiptHandle": "r", "body": '{"event": 7, "arrived": 5}'}])
        assert tuple(bare) == ("m", "", "r", '{"event": 7, "arrived": 5}', 7, 5, True, 1, math.inf)
        assert read("no json").event is None
        assert repr(read({"event": "a secret"})) == "Message('message-7')", "a traceback shows it"

    @pytest.mark.parametrize(
        ("arrived", "found"),
        [("5", 5), ("0.5", 0.5), ("0", 0), ("12", 9), ("Infinity", 9), ("NaN", 9), ('"5"', 9), ("null", 9)]
        + [pytest.param(f"{sign}{10**400}", 9, id=f"{sign}no float holds it") for sign in ("", "-")],
    )
    def test_a_request_arrived_before_its_message_was_sent(self, arrived: str, found: float) -> None:
        message = read(f'{{"event": {{}}, "arrived": {arrived}}}', SentTimestamp="9000")
        assert (message.arrived, message.fenced) == (found, True)
        assert read('{"arrived": Infinity}', SentTimestamp="0").arrived == 0

    @pytest.mark.parametrize(("timestamp", "found"), [("1970-01-01T00:00:05Z", 5), ("5", 9), (5, 9)])
    def test_lambdas_record_says_when_lambda_gave_up(self, timestamp: object, found: float) -> None:
        message = read({"requestPayload": {"a": 1}, "timestamp": timestamp}, SentTimestamp="9000")
        assert (message.event, message.arrived, message.fenced) == ({"a": 1}, found, False)


class TestCalls:
    """The queue gets the right calls; errors name the call that failed."""

    def queue(self, world: World) -> Queue:
        return Queue(world.sqs, "https://queue", "https://undelivered")  # type: ignore[arg-type]  # a fake

    def test_a_request_is_queued_as_short_json(self, world: World) -> None:
        self.queue(world).put(EVENT, 5, within(60, world.clock))
        (message,) = world.sqs.sent
        assert message["MessageBody"] == '{"event":{"StackId":"s","RequestId":"\\ud800"},"arrived":5}'
        assert re.fullmatch("[0-9a-f]{64}", message["MessageDeduplicationId"])
        assert message["MessageGroupId"] == hashlib.sha256(b"s").hexdigest()

    def test_a_message_of_just_the_greatest_size_is_queued(self, world: World) -> None:
        frame = len('{"event":{"StackId":"s","RequestId":"r","Filler":""},"arrived":5}')
        event = {"StackId": "s", "RequestId": "r", "Filler": "x" * (LONGEST_MESSAGE - frame)}
        self.queue(world).put(event, 5, within(60, world.clock))
        said = f"it has {LONGEST_MESSAGE + 1} bytes, and a message takes {LONGEST_MESSAGE}. Shorten its"
        with pytest.raises(FailedError, match=said):
            self.queue(world).put(event | {"Filler": event["Filler"] + "x"}, 5, within(60, world.clock))
        assert len(world.sqs.sent[0]["MessageBody"]) == LONGEST_MESSAGE

    def test_a_message_that_is_put_aside_twice_is_there_once(self, world: World) -> None:
        """Without a dead-letter queue it stays."""
        for number in (1, 1, 2):
            (stray,) = messages([record("stray", number)])
            assert self.queue(world).put_aside(stray, within(60, world.clock))
        first, repeated, other = (message["MessageDeduplicationId"] for message in world.sqs.aside)
        assert first == repeated != other
        assert not Queue(world.sqs, "https://queue").put_aside(read(""), within(60, world.clock))  # type: ignore[arg-type]  # a fake

    def test_messages_go_back_in_one_call_each_for_its_time(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_BatchResultErrorEntry.html."""
        first, second = messages([record("{}", 1), record("{}", 2)])
        self.queue(world).give_back([(first, 20), (second, 0)], within(60, world.clock))
        assert world.sqs.given_back == [{"receipt-1": 20, "receipt-2": 0}]
        reply = {"Successful": [{"Id": "0"}], "Failed": [{"Id": "1", "Code": "ReceiptHandleIsInvalid"}]}
        monkeypatch.setattr(world.sqs, "change_message_visibility_batch", lambda **_: reply)
        with pytest.raises(FailedError, match=r"^SQS refused 1 of 2: ReceiptHandleIsInvalid$"):
            self.queue(world).give_back([(first, 0), (second, 0)], within(60, world.clock))

    @pytest.mark.parametrize(
        ("call", "fails", "error", "said"),
        [
            ("put_aside", "throttled", FailedError, "^Could not put a message aside: gave up"),
            ("give_back", "throttled", FailedError, "^Could not give messages back: gave up"),
            ("put", "throttled", FailedError, "^Could not queue the request: gave up"),
            ("put", "denied", FailedError, "^Could not queue the request: .*AccessDenied.*Check that the qu"),
            ("put", "cut", UnclearError, "^Could not queue the request: gave up .*https://queue"),
            ("put", "a page", UnclearError, r"The last error: the reply is none of SQS's, or is cut short\."),
        ],
    )
    def test_an_error_names_the_call_that_failed(
        self,
        world: World,
        monkeypatch: pytest.MonkeyPatch,
        call: str,
        fails: str,
        error: type[Exception],
        said: str,
    ) -> None:
        arguments: dict[str, Any] = {
            "put_aside": [read("stray")],
            "give_back": [[(read("{}"), 0)]],
            "put": [EVENT, 5],
        }
        errors = {
            "throttled": refusal(400, "RequestThrottled"),
            "denied": denied("SendMessage"),
            "cut": ReadTimeoutError(endpoint_url="https://queue"),
        }
        if fails in errors:
            world.sqs.fails = [errors[fails]] * 999
        else:
            monkeypatch.setattr(world.sqs, "send_message", lambda **_: {"ResponseMetadata": {}})
        with pytest.raises(error, match=said) as raised:
            getattr(self.queue(world), call)(*arguments[call], within(60, world.clock))
        assert isinstance(raised.value, UnclearError) == (error is UnclearError)
