"""Puts requests into the queue and reads them from it; knows nothing of usage plans.

An SQS FIFO queue serves one message group, a stack, one message at a time and in order.
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/FIFO-queues.html
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from botocore.exceptions import BotoCoreError, ClientError

from .errors import FailedError, OutOfTimeError, UnclearError
from .redaction import shown
from .retry import BEFORE_DELIVERY, BEFORE_SHORT_CALL, Deadline, readable, retry, transient

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

#: Bytes of a message at most; template.yaml repeats it.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
LONGEST_MESSAGE: Final = 1_048_576
#: Seconds for which SQS hides a received message; template.yaml repeats it.
VISIBILITY: Final = 180


class Message(NamedTuple):
    """A message in the queue.

    Attributes:
        id: SQS's id; the function reports it to have the message again.
        group: Its message group: its stack.
        receipt: SQS's handle; it changes the visibility.
        body: The text from SQS; it is secret, because a request's ResponseURL is.
        event: The request in it; None if there is none.
        arrived: When the request arrived, in epoch seconds. In Lambda's record it is when Lambda gave up;
            if neither `put` nor Lambda has said, when somebody sent this message.
        fenced: The function fenced the request when it arrived.
        receives: How often SQS has delivered it.
        first: When SQS first delivered it, in epoch seconds.
    """

    id: str
    group: str
    receipt: str
    body: str
    event: object
    arrived: float
    fenced: bool
    receives: int
    first: float

    def __repr__(self) -> str:
        """Hide the secret."""
        return f"Message({self.id!r})"


def messages(records: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Read the records of an invocation by the queue.

    A message comes from `put`. Or it is Lambda's own record of a failed invocation, from an operator
    (https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-retain-records.html), or a bare request.
    """
    return [_message(record) for record in records]


def _message(record: Mapping[str, Any]) -> Message:
    try:
        body = json.loads(record["body"])
    except (ValueError, RecursionError):
        body = None
    found = body if isinstance(body, dict) else {}
    attributes = record.get("attributes", {})
    sent = int(attributes.get("SentTimestamp", 0)) / 1000
    arrived = found.get("arrived", _given_up(found))
    # math.isfinite raises at an integer of 400 digits, and the whole batch would fail with it.
    if not (isinstance(arrived, int | float) and 0 <= arrived < math.inf):
        arrived = sent
    return Message(
        id=record["messageId"],
        group=attributes.get("MessageGroupId", ""),
        receipt=record["receiptHandle"],
        body=record["body"],
        event=next((found[name] for name in ("event", "requestPayload") if name in found), body),
        # A request arrives before anybody sends it here, whatever the message says.
        arrived=min(arrived, sent or arrived),
        fenced="arrived" in found,
        receives=int(attributes.get("ApproximateReceiveCount", 1)),
        first=int(attributes.get("ApproximateFirstReceiveTimestamp", 0)) / 1000 or math.inf,
    )


def _given_up(found: Mapping[str, Any]) -> float | None:
    try:
        return datetime.fromisoformat(found["timestamp"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return None


class Queue:
    """The queue that template.yaml declares, and its dead-letter queue."""

    def __init__(self, client: SQSClient, url: str, undelivered: str | None = None) -> None:
        """Take a client whose own retries are off: there is one policy."""
        self._client = client
        self._url = url
        self._undelivered = undelivered

    def put(self, event: Mapping[str, Any], arrived: float, deadline: Deadline) -> None:
        """Queue a request. SQS drops another one with the same RequestId within five minutes.

        Raises:
            FailedError: SQS refused it.
            UnclearError: Nobody knows whether SQS took it.
        """
        body = json.dumps({"event": event, "arrived": arrived}, separators=(",", ":"))
        what = "Could not queue the request"
        if len(body) > LONGEST_MESSAGE:
            raise FailedError(
                f"{what}: it has {len(body)} bytes, and a message takes {LONGEST_MESSAGE}. "
                "Shorten its properties"
            )
        try:
            self._send(
                self._url, body, _hashed(event["StackId"]), _hashed(event["RequestId"]), deadline, what
            )
        except OutOfTimeError as error:
            if not error.nothing_changed:
                raise UnclearError(str(error)) from error
            raise
        except (ClientError, BotoCoreError) as error:
            raise FailedError(
                f"{what}: {shown(error)}. Check that the queue is there and that the role may use it"
            ) from error

    def put_aside(self, message: Message, deadline: Deadline) -> bool:
        """Send a message that is no request to the dead-letter queue; False if SQS has to do that later."""
        if self._undelivered is None:
            return False
        self._send(
            self._undelivered,
            message.body,
            message.group,
            _hashed(message.id),
            deadline,
            "Could not put a message aside",
            BEFORE_DELIVERY,
        )
        return True

    def give_back(self, hidden: Sequence[tuple[Message, int]], deadline: Deadline) -> None:
        """Give messages back in their places, each after so many seconds: a group's keep their order.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibilityBatch.html

        Raises:
            Exception: SQS did not take them. They come again after their visibility time-out.
        """
        entries: Any = [
            {"Id": str(number), "ReceiptHandle": message.receipt, "VisibilityTimeout": seconds}
            for number, (message, seconds) in enumerate(hidden)
        ]
        call = partial(self._client.change_message_visibility_batch, QueueUrl=self._url, Entries=entries)
        reply = retry(call, "Could not give messages back", deadline, transient, BEFORE_DELIVERY)
        if failed := reply.get("Failed"):
            raise FailedError(f"SQS refused {len(failed)} of {len(entries)}: {failed[0].get('Code')}")

    def _send(
        self,
        url: str,
        body: str,
        group: str,
        deduplication: str,
        deadline: Deadline,
        what: str,
        needs: float = BEFORE_SHORT_CALL,
    ) -> None:
        call = partial(
            self._client.send_message,
            QueueUrl=url,
            MessageBody=body,
            MessageGroupId=group,
            MessageDeduplicationId=deduplication,
        )
        retry(readable(call, "SQS", lambda reply: "MessageId" in reply), what, deadline, transient, needs)


def _hashed(text: str) -> str:
    """Shorten a text: group and deduplication ids have at most 128 characters, of a limited set."""
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
