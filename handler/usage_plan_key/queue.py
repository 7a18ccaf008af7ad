"""Into the queue and out of it; knows nothing of usage plans.

An SQS FIFO queue serves one message group, a stack, one message at a time and in order.
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/FIFO-queues.html
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from botocore.exceptions import BotoCoreError, ClientError

from .api_gateway import transient
from .lifecycle import FailedError
from .retry import Again, Deadline, OutOfTimeError, persist

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

#: How often a message is received at most; template.yaml has the same number. The last time it is answered FAILED.
MOST_RECEIVES: Final = 5


class UnclearError(Exception):
    """Raised when nobody knows whether the queue has taken a request. Tried again, it is recognised."""


class Message(NamedTuple):
    """A request in the queue.

    Attributes:
        id: SQS's, by which a failed one is reported.
        group: Its message group: its stack.
        receipt: What deletes it.
        event: CloudFormation's; its ResponseURL is a secret.
        arrived: When CloudFormation's invocation arrived, in epoch seconds.
        turn: How often it went back into the queue.
        receives: How often its serving was begun, this time included. More than once means that a function has died of it, or
            of one that was in the same batch.
    """

    id: str
    group: str
    receipt: str
    event: Mapping[str, Any]
    arrived: float
    turn: int
    receives: int

    def __repr__(self) -> str:
        """Show no secret."""
        return f"Message({self.id!r})"


def messages(records: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Read the records of an invocation by the queue."""
    return [
        Message(
            id=record["messageId"],
            group=record["attributes"]["MessageGroupId"],
            receipt=record["receiptHandle"],
            event=body["event"],
            arrived=body["arrived"],
            turn=body["turn"],
            receives=int(record["attributes"]["ApproximateReceiveCount"]) + body["received"],
        )
        for record in records
        for body in [json.loads(record["body"])]
    ]


class Queue:
    """The queue that template.yaml declares."""

    def __init__(self, client: SQSClient, url: str) -> None:
        """Take a client whose own retries are off: there is one policy."""
        self._client = client
        self._url = url

    def put(self, event: Mapping[str, Any], arrived: float, deadline: Deadline) -> None:
        """Queue a request. Delivered again within five minutes, it is taken for the same by its RequestId.

        Raises:
            FailedError: It was refused.
            UnclearError: Nobody knows whether it was taken.
        """
        what = "Could not queue the request"
        call = partial(self._client.send_message, QueueUrl=self._url, **_message(event, arrived))
        try:
            persist(call, what, deadline.short(), _again)
        except OutOfTimeError as error:
            if not error.clear:
                raise UnclearError(str(error)) from error
            raise
        except (ClientError, BotoCoreError) as error:
            raise FailedError(f"{what}: {error}. Check that the queue is there and that the role may use it") from error

    def put_back(self, batch: Sequence[Message], deadline: Deadline, *, begun: bool = False) -> None:
        """Queue messages again, behind the others of their stacks. What was `begun` ran out of time: nothing died of it.

        Raises:
            Exception: It could not be done. What was not deleted comes again by itself.
        """
        if not batch:
            return
        entries = [
            {
                "Id": str(number),
                **_message(message.event, message.arrived, message.turn + 1, 0 if begun else message.receives - 1),
            }
            for number, message in enumerate(batch)
        ]
        what = "Could not put requests back into the queue"
        send = partial(self._client.send_message_batch, QueueUrl=self._url, Entries=entries)  # type: ignore[arg-type]  # plain
        sent = persist(send, what, deadline.short(), _again)
        taken = {entry["Id"] for entry in sent.get("Successful", [])}
        receipts = [{"Id": id_, "ReceiptHandle": batch[int(id_)].receipt} for id_ in sorted(taken)]
        if receipts:
            delete = partial(self._client.delete_message_batch, QueueUrl=self._url, Entries=receipts)  # type: ignore[arg-type]  # plain
            persist(delete, what, deadline.short(), _again)
        if len(taken) < len(batch):
            raise UnclearError(f"{what}: {sent.get('Failed')}")


def _message(event: Mapping[str, Any], arrived: float, turn: int = 0, received: int = 0) -> dict[str, Any]:
    return {
        "MessageBody": json.dumps({"event": event, "arrived": arrived, "turn": turn, "received": received}),
        "MessageGroupId": _digest(event["StackId"]),
        "MessageDeduplicationId": _digest(f"{event['RequestId']} {turn}"),
    }


def _digest(text: str) -> str:
    """Shorten: group and deduplication ids have at most 128 characters, of a limited set."""
    return hashlib.sha256(text.encode()).hexdigest()


def _again(error: Exception) -> Again | None:
    """Read SQS's errors: being throttled comes with 400 or 403."""
    throttled = isinstance(error, ClientError) and "Throttl" in error.response["Error"]["Code"]
    return Again() if throttled else transient(error)
