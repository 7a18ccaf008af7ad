"""The queue gets the right calls, and the function reads its messages."""

from __future__ import annotations

import hashlib
import json
import math
import re
from functools import partial

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from usage_plan_key.errors import FailedError, UnclearError
from usage_plan_key.queue import LONGEST_MESSAGE, Queue, messages

from . import function
from .function import World, record
from .memory import within

world = function.world


class TestMessages:
    """The function reads each field of SQS's records."""

    def test_a_message_without_attributes_was_received_once_and_nobody_knows_when(self) -> None:
        (read,) = messages([{"messageId": "m", "receiptHandle": "r", "body": '{"event": 7, "arrived": 5}'}])
        assert read == ("m", "", "r", '{"event": 7, "arrived": 5}', 7, 5, True, 1, math.inf)

    def test_all_that_sqs_says_of_a_message_is_read(self) -> None:
        attributes = {
            "MessageGroupId": "g",
            "SentTimestamp": "9000",
            "ApproximateReceiveCount": "3",
            "ApproximateFirstReceiveTimestamp": "10500",
        }
        (read,) = messages([{"messageId": "m", "receiptHandle": "r", "body": "{}", "attributes": attributes}])
        assert read == ("m", "g", "r", "{}", {}, 9, False, 3, 10.5)

    @pytest.mark.parametrize(
        ("arrived", "read"),
        [
            (5, 5),
            (0.5, 0.5),
            (0, 0),
            (12, 9),
            (math.inf, 9),
            ("5", 9),
            (None, 9),
            (10**400, 9),
            (-(10**400), 9),
        ],
        ids=[
            "before",
            "half a second",
            "the epoch",
            "after",
            "never",
            "text",
            "null",
            "no float holds it",
            "nor this one",
        ],
    )
    def test_a_request_arrived_before_its_message_was_sent(self, arrived: object, read: float) -> None:
        (message,) = messages([record(json.dumps({"event": {}, "arrived": arrived}), SentTimestamp="9000")])
        assert (message.arrived, message.fenced) == (read, True)

    def test_a_message_without_any_time_arrived_long_ago(self) -> None:
        (message,) = messages([{"messageId": "m", "receiptHandle": "r", "body": '{"arrived": Infinity}'}])
        assert message.arrived == 0

    @pytest.mark.parametrize(("timestamp", "read"), [("1970-01-01T00:00:05Z", 5), ("5", 9), (5, 9)])
    def test_lambdas_record_says_when_lambda_gave_up(self, timestamp: object, read: float) -> None:
        body = json.dumps({"requestPayload": {"a": 1}, "timestamp": timestamp})
        (message,) = messages([record(body, SentTimestamp="9000")])
        assert (message.event, message.arrived, message.fenced) == ({"a": 1}, read, False)

    @pytest.mark.parametrize("arrived", ["NaN", "Infinity", "4102444800", '"soon"', "null"])
    def test_a_message_has_arrived_before_it_was_sent(self, world: World, arrived: str) -> None:
        event = json.dumps(world.arrives("alice"))
        sent = int(world.clock.now)
        body = f'{{"event": {event}, "arrived": {arrived}}}'
        (message,) = messages([record(body, SentTimestamp=str(sent * 1000))])
        assert message.arrived == sent

    def test_a_message_shows_nothing_but_its_id(self, world: World) -> None:
        """A ResponseURL is a secret, and a traceback shows the message's repr."""
        (message,) = messages([record('{"event": {"ResponseURL": "https://x/?Signature=s3cr3t"}}', 7)])
        assert repr(message) == "Message('message-7')"


class TestCalls:
    """The queue gets the right calls; errors name the call that failed."""

    def queue(self, world: World) -> Queue:
        return Queue(world.sqs, "https://queue", "https://undelivered")  # type: ignore[arg-type]  # a fake

    def test_a_message_that_is_put_aside_twice_is_there_once(self, world: World) -> None:
        for number in (1, 1, 2):
            (stray,) = messages([record("stray", number)])
            assert self.queue(world).put_aside(stray, within(60, world.clock))
        first, repeated, other = (message["MessageDeduplicationId"] for message in world.sqs.aside)
        assert first == repeated != other

    def test_messages_go_back_in_one_call_each_for_its_time(self, world: World) -> None:
        first, second = messages([record("{}", 1), record("{}", 2)])
        self.queue(world).give_back([(first, 20), (second, 0)], within(60, world.clock))
        assert world.sqs.given_back == [{"receipt-1": 20, "receipt-2": 0}]

    def test_a_message_that_sqs_does_not_take_back_is_told(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_BatchResultErrorEntry.html."""
        reply = {"Successful": [{"Id": "0"}], "Failed": [{"Id": "1", "Code": "ReceiptHandleIsInvalid"}]}
        monkeypatch.setattr(world.sqs, "change_message_visibility_batch", lambda **_: reply)
        both = [(message, 0) for message in messages([record("{}", 1), record("{}", 2)])]
        with pytest.raises(FailedError, match=r"^SQS refused 1 of 2: ReceiptHandleIsInvalid$"):
            self.queue(world).give_back(both, within(60, world.clock))

    def test_without_a_dead_letter_queue_it_stays(self, world: World) -> None:
        (stray,) = messages([record("stray")])
        assert not Queue(world.sqs, "https://queue").put_aside(stray, within(60, world.clock))  # type: ignore[arg-type]  # a fake
        assert not world.sqs.aside

    def test_an_error_names_the_call_that_failed(self, world: World) -> None:
        (message,) = messages([record("stray")])
        event = {"StackId": "s", "RequestId": "r"}
        throttled = ClientError({"Error": {"Code": "RequestThrottled", "Message": "slow"}}, "Call")
        for begins, call in (
            ("Could not put a message aside: gave up", partial(self.queue(world).put_aside, message)),
            ("Could not give messages back: gave up", partial(self.queue(world).give_back, [(message, 0)])),
            ("Could not queue the request: gave up", partial(self.queue(world).put, event, 5)),
        ):
            world.sqs.fails = [throttled] * 999
            with pytest.raises(FailedError, match=f"^{begins}"):
                call(within(60, world.clock))
        world.sqs.fails = [ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "SendMessage")]
        with pytest.raises(
            FailedError, match=r"^Could not queue the request: .*AccessDenied.*Check that the queue is there"
        ):
            self.queue(world).put(event, 5, within(60, world.clock))

    def test_a_request_that_may_have_been_queued_is_unclear_and_says_why(self, world: World) -> None:
        world.sqs.fails = [ReadTimeoutError(endpoint_url="https://queue")] * 999
        with pytest.raises(UnclearError, match=r"^Could not queue the request: gave up .*https://queue"):
            self.queue(world).put({"StackId": "s", "RequestId": "r"}, 5, within(60, world.clock))

    def test_a_request_is_queued_as_short_json(self, world: World) -> None:
        self.queue(world).put({"StackId": "s", "RequestId": "\ud800"}, 5, within(60, world.clock))
        (message,) = world.sqs.sent
        assert message["MessageBody"] == '{"event":{"StackId":"s","RequestId":"\\ud800"},"arrived":5}'
        assert re.fullmatch("[0-9a-f]{64}", message["MessageDeduplicationId"])
        assert message["MessageGroupId"] == hashlib.sha256(b"s").hexdigest()

    def test_a_message_of_just_the_greatest_size_is_queued(self, world: World) -> None:
        event = {"StackId": "s", "RequestId": "r", "Filler": ""}
        self.queue(world).put(event, 5, within(60, world.clock))
        event["Filler"] = "x" * (LONGEST_MESSAGE - len(world.sqs.sent[0]["MessageBody"]))
        self.queue(world).put(event, 5, within(60, world.clock))
        assert len(world.sqs.sent[1]["MessageBody"]) == LONGEST_MESSAGE
        event["Filler"] += "x"
        with pytest.raises(
            FailedError, match=f"it has {LONGEST_MESSAGE + 1} bytes, and a message takes {LONGEST_MESSAGE}"
        ):
            self.queue(world).put(event, 5, within(60, world.clock))

    def test_a_body_that_is_no_json_has_no_event(self) -> None:
        (read,) = messages([record("no json")])
        assert read.event is None

    def test_a_reply_that_is_none_of_sqss_is_not_taken_for_one(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(world.sqs, "send_message", lambda **_: {"ResponseMetadata": {}})
        with pytest.raises(
            UnclearError, match=r"The last error: the reply is none of SQS's, or is cut short\."
        ):
            self.queue(world).put({"StackId": "s", "RequestId": "r"}, 5, within(60, world.clock))
