"""tools/redrive.py puts dead letters back, each once, in their order, and deletes only what it has sent.

moto plays SQS. tests/test_stack.py plays the command against the function itself.
"""

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from tools import redrive
from usage_plan_key.queue import Queue, messages
from usage_plan_key.retry import Deadline

EVENT = json.loads((Path(__file__).parents[1] / "events" / "create.json").read_text())
STACK = EVENT["StackId"]
GROUP = sha256(STACK.encode()).hexdigest()
"""The message group of the stack, as the function names it."""


class Letters:
    """The three queues, as the function's stack has them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make them, and let the command find them."""
        self.sqs: Any = boto3.client("sqs", "eu-central-1", aws_access_key_id="-", aws_secret_access_key="-")
        fifo: Any = {"FifoQueue": "true"}
        self.failed: dict[str, Any] = {}
        """The call that `fail` has let fail."""
        self.urls: dict[str, str] = {
            "Requests": self.sqs.create_queue(QueueName="requests.fifo", Attributes=fifo)["QueueUrl"],
            "Undelivered": self.sqs.create_queue(QueueName="undelivered.fifo", Attributes=fifo)["QueueUrl"],
            "Unanswered": self.sqs.create_queue(QueueName="unanswered")["QueueUrl"],
        }
        self.outputs = [
            {"OutputKey": f"{name}QueueUrl", "OutputValue": url} for name, url in self.urls.items()
        ]
        monkeypatch.setattr("tools.redrive.boto3.Session", lambda **_: self)

    def client(self, service: str) -> Any:
        """Be the session and CloudFormation."""
        return self.sqs if service == "sqs" else self

    def describe_stacks(self, StackName: str) -> Any:
        return {"Stacks": [{"StackId": STACK, "Outputs": self.outputs}]}

    def undelivered(self, name: str, stack: str = STACK) -> None:
        """The function's queue has given a request up: SQS moves the message as it is."""
        event = {**EVENT, "LogicalResourceId": name, "StackId": stack, "RequestId": name}
        Queue(self.sqs, self.urls["Undelivered"]).put(event, 0.0, Deadline(ends=math.inf))

    def unanswered(self, name: str, issued: str) -> None:
        """Lambda has given an invocation up; its URL says when it was made, or when it expires."""
        query = f"X-Amz-Date={issued}" if "T" in issued else f"Expires={issued}"
        url = f"https://bucket.test/key?{query}&X-Amz-Signature=secret"
        event = {**EVENT, "LogicalResourceId": name, "ResponseURL": url}
        record = {"version": "1.0", "timestamp": "2026-11-29T10:00:00Z", "requestPayload": event}
        self.sqs.send_message(QueueUrl=self.urls["Unanswered"], MessageBody=json.dumps(record))

    def there(self, queue: str) -> dict[str, list[str]]:
        """The resources whose requests are in a queue, by message group; this takes them away."""
        found: dict[str, list[str]] = {}
        place = {"QueueUrl": self.urls[queue]}
        while batch := self.sqs.receive_message(**place, MaxNumberOfMessages=10, AttributeNames=["All"]).get(
            "Messages"
        ):
            for it in batch:
                record = {"messageId": "", "receiptHandle": "", "body": it["Body"]}
                (read,) = messages([{**record, "attributes": it["Attributes"]}])
                assert isinstance(read.event, dict)
                found.setdefault(read.group, []).append(read.event["LogicalResourceId"])
                self.sqs.delete_message(**place, ReceiptHandle=it["ReceiptHandle"])
        return found

    def fail(self, monkeypatch: pytest.MonkeyPatch, operation: str, after: int) -> None:
        """Let a call of the command fail from this one on."""
        real, calls = getattr(self.sqs, operation), iter(range(1000))

        def call(**given: Any) -> Any:
            if next(calls) >= after:
                self.failed = given
                raise ClientError({"Error": {"Code": "AccessDenied"}}, operation)
            return real(**given)

        monkeypatch.setattr(self.sqs, operation, call)


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> Iterator[Letters]:
    with mock_aws():
        made = Letters(monkeypatch)
        receive = made.sqs.receive_message
        # Nobody else sends meanwhile, so nobody has to wait.
        monkeypatch.setattr(
            made.sqs, "receive_message", lambda **given: receive(**given | {"WaitTimeSeconds": 0})
        )
        yield made


def test_the_command_shows_what_is_there_without_its_secrets_and_changes_nothing(
    letters: Letters, capsys: pytest.CaptureFixture[str]
) -> None:
    letters.undelivered("Alice")
    letters.unanswered("Bob", "20261129T101112Z")
    for _ in range(2):
        assert redrive.main(["--region", "eu-central-1"]) == 0
        told = capsys.readouterr().out
        region, account = STACK.split(":")[3:5]
        assert told.splitlines()[0] == f"Account {account}, region {region}, stack usage-plan-key"
        assert f"stays  Unanswered  2026-11-29 10:11:12Z  Create Bob of {STACK}" in told
        assert f"Create Alice of {STACK}" in told
        assert "Undelivered: 0 sent, 1 still there" in told
        for secret in ("secret", "https://", *EVENT["ResourceProperties"].values()):
            assert secret not in told
    assert letters.there("Undelivered") == {GROUP: ["Alice"]}
    assert letters.there("Unanswered") == {"": ["Bob"]}
    assert letters.there("Requests") == {}


def test_requests_go_back_in_their_order_and_in_their_stacks_group(letters: Letters) -> None:
    """Also across the ten messages that SQS hands out at once.

    Lambda's records go by the times of issue. The group is the function's own, so a dead letter waits behind
    its stack's other requests.
    """
    other = STACK.replace("stack/", "stack/another-")
    for number in range(26):
        letters.undelivered(f"Key{number}", (STACK, other)[number % 2])
    for minute in (7, 1, 11, 4, 9, 2, 10, 5, 3, 8, 6, 0):
        at = datetime(2026, 11, 29, 10, minute, tzinfo=UTC)
        issued = f"{at:%Y%m%dT%H%M%SZ}" if minute % 2 else str(int(at.timestamp()) + 7200)
        letters.unanswered(f"Late{minute}", issued)
    assert redrive.main(["--send"]) == 0
    assert letters.there("Requests") == {
        GROUP: [f"Key{number}" for number in range(0, 26, 2)] + [f"Late{minute}" for minute in range(12)],
        sha256(other.encode()).hexdigest(): [f"Key{number}" for number in range(1, 26, 2)],
    }
    assert letters.there("Undelivered") == letters.there("Unanswered") == {}


@pytest.mark.parametrize("source", ["Undelivered", "Unanswered"])
def test_a_failed_send_deletes_nothing_and_sends_nothing_behind_it(
    source: str, letters: Letters, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So no request passes the one before it. What was not sent is there at once, for the next run."""
    for number in range(3):
        if source == "Undelivered":
            letters.undelivered(f"Key{number}")
        else:
            letters.unanswered(f"Key{number}", f"20261129T10110{number}Z")
    with monkeypatch.context() as broken:
        letters.fail(broken, "send_message", after=1)
        assert redrive.main(["--send"]) == 1
    told = capsys.readouterr()
    assert f"{source}: 1 sent, 2 still there" in told.out
    assert "AccessDenied" in told.err
    assert redrive.main(["--send"]) == 0
    assert letters.there("Requests") == {GROUP: ["Key0", "Key1", "Key2"]}
    assert letters.there(source) == {}


def test_a_failed_delete_loses_nothing_and_sends_nothing_twice(
    letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQS knows the message's id for five minutes. Later the function knows the request."""
    letters.unanswered("Alice", "20261129T101112Z")
    with monkeypatch.context() as broken:
        letters.fail(broken, "delete_message", after=0)
        assert redrive.main(["--send"]) == 1
    letters.sqs.change_message_visibility(**letters.failed, VisibilityTimeout=0)  # its time is over
    assert redrive.main(["--send"]) == 0
    assert letters.there("Requests") == {GROUP: ["Alice"]}
    assert letters.there("Unanswered") == {}


def test_without_the_stacks_outputs_the_command_touches_no_queue(
    letters: Letters, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no variable that may be unset: it reads where the requests go before it takes any."""
    letters.unanswered("Alice", "20261129T101112Z")
    letters.outputs = letters.outputs[1:]
    letters.fail(monkeypatch, "receive_message", after=0)
    assert redrive.main(["--send", "--stack", "customers"]) == 1
    assert capsys.readouterr().err == (
        "redrive.py: the stack customers has no output 'RequestsQueueUrl': is it the function's?\n"
    )


def test_a_message_that_is_no_request_stays(letters: Letters, capsys: pytest.CaptureFixture[str]) -> None:
    """And those behind it in its group go back."""
    bodies = ["hello", "[]", "{}", '{"event": 1}', '{"requestPayload": {"RequestType": "x"}}']
    place = {"QueueUrl": letters.urls["Undelivered"]}
    for body in (*bodies, json.dumps({"event": EVENT, "arrived": 0.0})):
        letters.sqs.send_message(
            **place,
            MessageGroupId="a",
            MessageBody=body,
            MessageDeduplicationId=sha256(body.encode()).hexdigest(),
        )
    assert redrive.main(["--send"]) == 0
    told = capsys.readouterr().out
    assert "Undelivered: 1 sent, 5 still there" in told
    assert told.count("no request") == 5
    assert letters.there("Requests") == {"a": [EVENT["LogicalResourceId"]]}
    found = letters.sqs.receive_message(**place, MaxNumberOfMessages=10)["Messages"]
    assert [message["Body"] for message in found] == bodies
