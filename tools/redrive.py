"""Puts requests back from the two dead-letter queues: shows them, or sends each one and then deletes it.

    pip install boto3
    python redrive.py --region eu-central-1           # shows what is there, and changes nothing
    python redrive.py --region eu-central-1 --send    # puts it back

The queues are those in the outputs of the function's stack (--stack, usage-plan-key by default). A stack's
requests go back in their order. The command deletes a message only after SQS has taken it into the function's
queue. If a call fails, the command stops: what it has not sent stays where it is, and the next run goes on.
If the function gets a request twice, it serves it once.

A message that is no request stays, because the function would put it aside again. The command shows neither
ResponseURLs nor properties: both may be secret.

Permissions: cloudformation:DescribeStacks on the stack; sqs:ReceiveMessage, sqs:DeleteMessage and
sqs:ChangeMessageVisibility on Undelivered and Unanswered; sqs:SendMessage on Requests; with KmsKeyArn also
kms:Decrypt and kms:GenerateDataKey on the key.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qs

import boto3
from botocore.exceptions import BotoCoreError, ClientError

SOURCES: Final = ("Undelivered", "Unanswered")
#: Seconds for which SQS hides a message that this command has taken; a run that breaks off costs this time.
HIDDEN: Final = 900
#: Seconds for which SQS's pre-signed URLs are valid, and after which an old ResponseURL expires.
SIGNED_FOR: Final = 7200


class RedriveError(Exception):
    """Raised when the command cannot go on; its text is one sentence for the user."""


class Letter:
    """A message of a dead-letter queue."""

    def __init__(self, message: dict[str, Any]) -> None:
        """Find the request in it: as the function queued it, or in Lambda's record of a failed invocation."""
        self.id: str = message["MessageId"]
        self.receipt: str = message["ReceiptHandle"]
        self.body: str = message["Body"]
        self.sent = int(message["Attributes"]["SentTimestamp"]) / 1000
        try:
            found = json.loads(self.body)
            self.event: dict[str, Any] | None = found.get("event") or found["requestPayload"]
            self.about = "{RequestType} {LogicalResourceId} of {StackId}".format_map(self.event)
            # Unanswered has no groups: the function's queue has one for each stack.
            stack = hashlib.sha256(self.event["StackId"].encode()).hexdigest()
            self.group: str = message["Attributes"].get("MessageGroupId", stack)
        except (ValueError, LookupError, TypeError, AttributeError):
            self.event, self.about = None, "no request"

    @property
    def issued(self) -> float:
        """When CloudFormation has issued the request; when somebody sent the message, if nothing says so."""
        query = parse_qs(str((self.event or {}).get("ResponseURL")).partition("?")[2])
        with suppress(LookupError, ValueError):
            return datetime.fromisoformat(query["X-Amz-Date"][0]).timestamp()
        with suppress(LookupError, ValueError):
            return int(query["Expires"][0]) - SIGNED_FOR
        return self.sent

    def __str__(self) -> str:
        """Show it without its secrets."""
        when = datetime.fromtimestamp(self.issued if self.event else self.sent, UTC)
        return f"{when:%Y-%m-%d %H:%M:%S}Z  {self.about}"


def outputs(cloudformation: Any, stack: str) -> dict[str, str]:
    """Read the queues' URLs from the stack, and say where it is."""
    (found,) = cloudformation.describe_stacks(StackName=stack)["Stacks"]
    _, _, _, region, account, _ = found["StackId"].split(":", 5)
    print(f"Account {account}, region {region}, stack {stack}")
    urls = {it["OutputKey"]: it["OutputValue"] for it in found.get("Outputs", [])}
    try:
        return {name: urls[f"{name}QueueUrl"] for name in ("Requests", *SOURCES)}
    except KeyError as error:
        raise RedriveError(f"the stack {stack} has no output {error}: is it the function's?") from error


def batches(sqs: Any, url: str) -> Iterator[list[Letter]]:
    """Take all messages, in the order in which they have to go back.

    A FIFO queue hands out a group's next messages when those before are deleted: each batch goes back first.
    Another queue has no order: all its messages come at once, by the times when their requests were issued.
    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/FIFO-queues-understanding-logic.html
    """
    every: list[Letter] = []
    while messages := sqs.receive_message(
        QueueUrl=url,
        MaxNumberOfMessages=10,
        WaitTimeSeconds=2,  # Without a wait SQS may ask some of its servers only.
        VisibilityTimeout=HIDDEN,
        MessageSystemAttributeNames=["MessageGroupId", "SentTimestamp"],
    ).get("Messages"):
        letters = [Letter(message) for message in messages]
        if url.endswith(".fifo"):
            yield letters
        else:
            every += letters
    yield sorted(every, key=lambda letter: (letter.issued, letter.sent))


def redrive(sqs: Any, name: str, url: str, requests: str, *, send: bool) -> None:
    """Show a queue's messages; send its requests, and delete each that is sent."""
    kept: list[Letter] = []
    count = 0
    try:
        for batch in batches(sqs, url):
            kept += batch
            for letter in batch:
                if send and letter.event is not None:
                    # For five minutes SQS drops a repetition of the id, by a run after one that broke off.
                    sqs.send_message(
                        QueueUrl=requests,
                        MessageBody=letter.body,
                        MessageGroupId=letter.group,
                        MessageDeduplicationId=letter.id,
                    )
                    kept.remove(letter)
                    count += 1
                    sqs.delete_message(QueueUrl=url, ReceiptHandle=letter.receipt)
                print(f"{'stays' if letter in kept else 'sent '}  {name}  {letter}")
    finally:
        for letter in kept:
            with suppress(ClientError, BotoCoreError):  # It comes back by itself, after HIDDEN seconds.
                sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=letter.receipt, VisibilityTimeout=0)
        print(f"{name}: {count} sent, {len(kept)} still there")


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        "redrive.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stack", default="usage-plan-key", help="the function's stack")
    parser.add_argument("--region", help="its region; without it, boto3's")
    parser.add_argument("--profile", help="a profile of ~/.aws/config")
    parser.add_argument("--send", action="store_true", help="put the requests back")
    given = parser.parse_args(arguments)
    try:
        session = boto3.Session(profile_name=given.profile, region_name=given.region)
        urls = outputs(session.client("cloudformation"), given.stack)
        sqs = session.client("sqs")
        for name in SOURCES:
            redrive(sqs, name, urls[name], urls["Requests"], send=given.send)
    except (RedriveError, BotoCoreError, ClientError) as error:
        print(f"redrive.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
