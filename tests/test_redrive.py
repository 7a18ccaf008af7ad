"""tools/redrive.py puts dead letters back, each once, in their order, and deletes only what it has sent.

moto plays SQS. tests/test_examples.py plays the command against the function itself.
"""

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from unittest import mock

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from tools import redrive
from usage_plan_key.queue import Queue, messages
from usage_plan_key.retry import Deadline

from .answers import EVENTS

EVENT = EVENTS["create"]
STACK = EVENT["StackId"]
GROUP = sha256(STACK.encode()).hexdigest()
"""The message group of the stack, as the function names it."""


class Letters:
    """The three queues, as the function's stack has them; and the command's session and CloudFormation."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        sqs: Any = boto3.client("sqs", "eu-central-1", aws_access_key_id="-", aws_secret_access_key="-")
        self.sqs, self._capsys = mock.Mock(wraps=sqs), capsys
        # Nobody else sends meanwhile, so nobody has to wait.
        receive = self.sqs.receive_message
        receive.side_effect = lambda **given: sqs.receive_message(**given | {"WaitTimeSeconds": 0})
        self.urls = {"Unanswered": sqs.create_queue(QueueName="unanswered")["QueueUrl"]}
        for name in ("Requests", "Undelivered"):
            fifo = sqs.create_queue(QueueName=f"{name}.fifo", Attributes={"FifoQueue": "true"})
            self.urls[name] = fifo["QueueUrl"]

    def client(self, service: str) -> Any:
        return self.sqs if service == "sqs" else self

    def describe_stacks(self, StackName: str) -> Any:
        outputs = [{"OutputKey": f"{name}QueueUrl", "OutputValue": url} for name, url in self.urls.items()]
        return {"Stacks": [{"StackId": STACK, "Outputs": outputs}]}

    def put(self, source: str, name: str, issued: str = "", stack: str = STACK) -> None:
        """A request is given up: by the function's queue, and SQS moves the message as it is; or by Lambda.

        Lambda's record has a URL that says when it was made, or when it expires.
        """
        query = f"X-Amz-Date={issued}" if "T" in issued else f"Expires={issued}"
        event = {**EVENT, "LogicalResourceId": name, "StackId": stack, "RequestId": name}
        event["ResponseURL"] = f"https://bucket.test/key?{query}&X-Amz-Signature=secret"
        if source == "Undelivered":
            Queue(self.sqs, self.urls[source]).put(event, 0.0, Deadline(ends=math.inf))
        else:
            record = {"version": "1.0", "timestamp": "2026-11-29T10:00:00Z", "requestPayload": event}
            self.sqs.send_message(QueueUrl=self.urls[source], MessageBody=json.dumps(record))

    def redrive(self, *arguments: str, status: int = 0) -> str:
        with mock.patch("tools.redrive.boto3.Session", return_value=self):
            assert redrive.main([*arguments]) == status
        return "".join(self._capsys.readouterr())

    def there(self, queue: str) -> dict[str, list[str]]:
        """The resources whose requests are in a queue, by message group; this takes them away."""
        found: dict[str, list[str]] = {}
        asked = {"QueueUrl": self.urls[queue], "MaxNumberOfMessages": 10, "AttributeNames": ["All"]}
        while batch := self.sqs.receive_message(**asked).get("Messages"):
            for it in batch:
                record = {"messageId": "", "receiptHandle": "", "body": it["Body"]}
                (read,) = messages([{**record, "attributes": it["Attributes"]}])
                assert isinstance(read.event, dict)
                found.setdefault(read.group, []).append(read.event["LogicalResourceId"])
                self.sqs.delete_message(QueueUrl=self.urls[queue], ReceiptHandle=it["ReceiptHandle"])
        return found


@pytest.fixture
def letters(capsys: pytest.CaptureFixture[str]) -> Iterator[Letters]:
    with mock_aws():
        yield Letters(capsys)


def test_the_command_shows_what_is_there_without_its_secrets_and_changes_nothing(letters: Letters) -> None:
    letters.put("Undelivered", "Alice")
    letters.put("Unanswered", "Bob", "20261129T101112Z")
    for _ in range(2):
        told = letters.redrive("--region", "eu-central-1")
        region, account = STACK.split(":")[3:5]
        assert told.splitlines()[0] == f"Account {account}, region {region}, stack usage-plan-key"
        assert f"stays  Unanswered  2026-11-29 10:11:12Z  Create Bob of {STACK}" in told
        assert f"Create Alice of {STACK}" in told
        assert "Undelivered: 0 sent, 1 still there" in told
        secrets = ("secret", "https://", *EVENT["ResourceProperties"].values())
        assert not [secret for secret in secrets if secret in told]
    there = {name: letters.there(name) for name in letters.urls}
    assert there == {"Undelivered": {GROUP: ["Alice"]}, "Unanswered": {"": ["Bob"]}, "Requests": {}}


def test_requests_go_back_in_their_order_and_in_their_stacks_group(letters: Letters) -> None:
    """Also across the ten messages that SQS hands out at once. Lambda's records go by the times of issue.

    The group is the function's own, so a dead letter waits behind its stack's other requests.
    """
    other = STACK.replace("stack/", "stack/another-")
    for number in range(26):
        letters.put("Undelivered", f"Key{number}", stack=(STACK, other)[number % 2])
    for minute in (7, 1, 11, 4, 9, 2, 10, 5, 3, 8, 6, 0):
        at = datetime(2026, 11, 29, 10, minute, tzinfo=UTC)
        issued = f"{at:%Y%m%dT%H%M%SZ}" if minute % 2 else str(int(at.timestamp()) + 7200)
        letters.put("Unanswered", f"Late{minute}", issued)
    letters.redrive("--send")
    assert letters.there("Requests") == {
        GROUP: [f"Key{number}" for number in range(0, 26, 2)] + [f"Late{minute}" for minute in range(12)],
        sha256(other.encode()).hexdigest(): [f"Key{number}" for number in range(1, 26, 2)],
    }
    assert letters.there("Undelivered") == letters.there("Unanswered") == {}


@pytest.mark.parametrize(
    ("source", "operation", "after"),
    [
        ("Undelivered", "send_message", 1),
        ("Unanswered", "send_message", 1),
        ("Unanswered", "delete_message", 0),
    ],
)
def test_a_failed_call_loses_nothing_and_sends_nothing_behind_it_or_twice(
    letters: Letters, source: str, operation: str, after: int
) -> None:
    """So no request passes the one before it. What was not sent is there at once, for the next run.

    SQS knows the id of a message that was not deleted for five minutes. Later the function knows the request.
    """
    for number in range(3):
        letters.put(source, f"Key{number}", f"20261129T10110{number}Z")
    call = getattr(letters.sqs, operation)
    call.side_effect = [mock.DEFAULT] * after + [ClientError({"Error": {"Code": "AccessDenied"}}, operation)]
    told = letters.redrive("--send", status=1)
    assert f"{source}: 1 sent, 2 still there" in told
    assert "AccessDenied" in told
    call.side_effect = None
    if operation == "delete_message":
        letters.sqs.change_message_visibility(
            **call.call_args.kwargs, VisibilityTimeout=0
        )  # its time is over
    letters.redrive("--send")
    assert letters.there("Requests") == {GROUP: ["Key0", "Key1", "Key2"]}
    assert letters.there(source) == {}


def test_without_the_stacks_outputs_the_command_touches_no_queue(letters: Letters) -> None:
    """It reads where the requests go before it takes any."""
    del letters.urls["Requests"]
    told = letters.redrive("--send", "--stack", "customers", status=1)
    letters.sqs.receive_message.assert_not_called()
    assert "the stack customers has no output 'RequestsQueueUrl': is it the function's?\n" in told


def test_a_message_that_is_no_request_stays(letters: Letters) -> None:
    """And those behind it in its group go back."""
    bodies = ["hello", "[]", "{}", '{"event": 1}', '{"requestPayload": {"RequestType": "x"}}']
    place = {"QueueUrl": letters.urls["Undelivered"], "MessageGroupId": "a"}
    for number, body in enumerate((*bodies, json.dumps({"event": EVENT, "arrived": 0.0}))):
        letters.sqs.send_message(**place, MessageBody=body, MessageDeduplicationId=str(number))
    told = letters.redrive("--send")
    assert "Undelivered: 1 sent, 5 still there" in told
    assert told.count("no request") == 5
    assert letters.there("Requests") == {"a": [EVENT["LogicalResourceId"]]}
    found = letters.sqs.receive_message(QueueUrl=place["QueueUrl"], MaxNumberOfMessages=10)["Messages"]
    assert [message["Body"] for message in found] == bodies
