"""The queue gets the right calls, and the function reads its messages."""

import json
import math
from hashlib import sha256
from typing import Any
from unittest.mock import Mock

import pytest

from usage_plan_key.errors import FailedError
from usage_plan_key.queue import LONGEST_MESSAGE, Message, Queue, messages

from .function import record
from .memory import Clock, within

EVENT = {"StackId": "s", "RequestId": "\ud800"}


def read(body: object, number: int = 7, **attributes: str) -> Message:
    text = body if isinstance(body, str) else json.dumps(body)
    (message,) = messages([record(text, number, **attributes)])
    return message


class TestMessages:
    """The function reads each field of SQS's records."""

    def test_all_that_sqs_says_of_a_message_is_read(self) -> None:
        of_sqs: dict[str, Any] = {
            "MessageGroupId": "g",
            "SentTimestamp": "9000",
            "ApproximateReceiveCount": "3",
        }
        of_sqs["ApproximateFirstReceiveTimestamp"] = "10500"
        assert tuple(read("{}", **of_sqs)) == ("message-7", "g", "receipt-7", "{}", {}, 9, False, 3, 10.5)
        (bare,) = messages([{"messageId": "m", "receiptHandle": "r", "body": '{"event": 7, "arrived": 5}'}])
        assert tuple(bare) == ("m", "", "r", '{"event": 7, "arrived": 5}', 7, 5, True, 1, math.inf)
        assert read("no json").event is None
        assert repr(read({"event": "a secret"})) == "Message('message-7')", "a traceback shows it"

    @pytest.mark.parametrize(
        ("arrived", "found"), [("0", 0), ("0.5", 0.5), ("12", 9), ("Infinity", 9), ("NaN", 9), ('"5"', 9)]
    )
    def test_a_request_arrived_before_its_message_was_sent(self, arrived: str, found: float) -> None:
        assert read(f'{{"arrived": {arrived}}}', SentTimestamp="9000").arrived == found
        assert read('{"arrived": Infinity}', SentTimestamp="0").arrived == 0

    @pytest.mark.parametrize(("timestamp", "found"), [("1970-01-01T00:00:05Z", 5), ("5", 9), (5, 9)])
    def test_lambdas_record_says_when_lambda_gave_up(self, timestamp: object, found: float) -> None:
        message = read({"requestPayload": {"a": 1}, "timestamp": timestamp}, SentTimestamp="9000")
        assert (message.event, message.arrived, message.fenced) == ({"a": 1}, found, False)


class TestCalls:
    """The queue gets the right calls. test_provider.py and test_batch.py tell what comes of their errors."""

    @pytest.fixture
    def sqs(self) -> Any:
        return Mock(**{"send_message.return_value": {"MessageId": "m"}})

    @pytest.fixture
    def queue(self, sqs: Any) -> Queue:
        return Queue(sqs, "https://queue", "https://undelivered")

    def test_a_request_is_queued_as_short_json(self, sqs: Any, queue: Queue) -> None:
        """A message group for each stack, and a deduplication id for each request."""
        queue.put(EVENT, 5, within(60, Clock()))
        sqs.send_message.assert_called_once_with(
            QueueUrl="https://queue",
            MessageBody='{"event":{"StackId":"s","RequestId":"\\ud800"},"arrived":5}',
            MessageGroupId=sha256(b"s").hexdigest(),
            MessageDeduplicationId=sha256(rb"\ud800").hexdigest(),
        )

    def test_a_message_of_just_the_greatest_size_is_queued(self, sqs: Any, queue: Queue) -> None:
        frame = len('{"event":{"StackId":"s","RequestId":"r","Filler":""},"arrived":5}')
        event = {"StackId": "s", "RequestId": "r", "Filler": "x" * (LONGEST_MESSAGE - frame)}
        queue.put(event, 5, within(60, Clock()))
        said = f"it has {LONGEST_MESSAGE + 1} bytes, and a message takes {LONGEST_MESSAGE}. Shorten its"
        with pytest.raises(FailedError, match=said):
            queue.put(event | {"Filler": event["Filler"] + "x"}, 5, within(60, Clock()))
        assert len(sqs.send_message.call_args.kwargs["MessageBody"]) == LONGEST_MESSAGE

    def test_a_message_that_is_put_aside_twice_is_there_once(self, sqs: Any, queue: Queue) -> None:
        """Without a dead-letter queue it stays."""
        assert queue.put_aside(read("stray"), within(60, Clock()))
        sqs.send_message.assert_called_once_with(
            QueueUrl="https://undelivered",
            MessageBody="stray",
            MessageGroupId="group",
            MessageDeduplicationId=sha256(b"message-7").hexdigest(),
        )
        assert not Queue(sqs, "https://queue").put_aside(read("stray"), within(60, Clock()))

    def test_messages_go_back_in_one_call_each_for_its_time(self, sqs: Any, queue: Queue) -> None:
        """https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_BatchResultErrorEntry.html."""
        change, hidden = sqs.change_message_visibility_batch, [(read("{}", 1), 20), (read("{}", 2), 0)]
        change.return_value = {"Successful": [{"Id": "0"}, {"Id": "1"}]}
        queue.give_back(hidden, within(60, Clock()))
        entries = [
            {"Id": "0", "ReceiptHandle": "receipt-1", "VisibilityTimeout": 20},
            {"Id": "1", "ReceiptHandle": "receipt-2", "VisibilityTimeout": 0},
        ]
        change.assert_called_once_with(QueueUrl="https://queue", Entries=entries)
        change.return_value = {"Failed": [{"Id": "1", "Code": "ReceiptHandleIsInvalid"}]}
        with pytest.raises(FailedError, match=r"^SQS refused 1 of 2: ReceiptHandleIsInvalid$"):
            queue.give_back(hidden, within(60, Clock()))
