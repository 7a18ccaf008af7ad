"""The faults that can strike at one call, by the service that the function calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import urllib3
from botocore.exceptions import (
    ChecksumError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ReadTimeoutError,
    SSLError,
)
from botocore.parsers import ResponseParserError

from usage_plan_key.retry import CONNECT_TIMEOUT, READ_TIMEOUT, SHORT_READ_TIMEOUT

from .world import Death, Reply, Strike, World

Make = Callable[[], Any]


def refused(status: int, code: str, text: str = "", retry_after: int | None = None, **more: Any) -> Strike:
    """AWS says no, and has done nothing."""

    def strike(world: World, make: Make) -> Any:
        headers = {} if retry_after is None else {"retry-after": str(retry_after)}
        answered = {"HTTPStatusCode": status, "HTTPHeaders": headers}
        response: Any = {"Error": {"Code": code, "Message": text}, "ResponseMetadata": answered, **more}
        raise ClientError(response, "operation")

    return strike


def raised(make_error: Callable[[], BaseException], seconds: float = 0.0, *, served: bool = False) -> Strike:
    """The call raises after so many seconds; the service carried it out before, or never got it."""

    def strike(world: World, make: Make) -> Any:
        if served:
            make()
        world.clock.now += seconds
        raise make_error()

    return strike


def instead(reply: Any) -> Strike:
    """The service carries the call out, and returns something else."""

    def strike(world: World, make: Make) -> Any:
        make()
        return reply

    return strike


def answered_by_a_proxy(world: World, make: Make) -> Any:
    """The call never reached AWS, and a proxy's page came back as a success."""
    return {"ResponseMetadata": {"HTTPStatusCode": 200, "HTTPHeaders": {"content-type": "text/html"}}}


def without(name: str) -> Strike:
    """The service carries the call out, and the reply lacks a field."""

    def strike(world: World, make: Make) -> Any:
        reply = make()
        reply.pop(name, None)
        return reply

    return strike


def replied(status: int, body: bytes = b"", **headers: str) -> Strike:
    """S3 does not take the answer, and says so."""
    return lambda world, make: Reply(status, body, **headers)


def hangs(*, served: bool = False, ends: bool = False) -> Strike:
    """The call hangs, and the guard answers. The service carries it out before, or at its end, if ever."""

    def strike(world: World, make: Make) -> Any:
        reply = make() if served else None
        world.hang()
        if not ends:
            world.clock.now = max(world.clock.now, world.ends)
            raise Death
        return reply if served else make()

    return strike


def little_time(seconds: float) -> Strike:
    """Lambda ends the function in so many seconds."""

    def strike(world: World, make: Make) -> Any:
        world.clock.now = max(world.clock.now, world.ends - seconds)
        return make()

    return strike


def restored(changes: int) -> Strike:
    """An operator has restored the table to an earlier time."""

    def strike(world: World, make: Make) -> Any:
        world.table.restore(changes)
        return make()

    return strike


def hands_out_nothing(world: World, make: Make) -> Any:
    """SQS takes the message, and hands out none: for half a minute, or for as long as the fault lasts."""
    until, _ = world.lasting.get("sqs", (0.0, None))
    world.sqs.opens = max(until, world.clock.now + 30)
    return make()


def given_up(world: World, make: Make) -> Any:
    """CloudFormation gives up the request under way; its Delete, or its rollback, arrives meanwhile."""
    world.cloudformation.give_up()
    return make()


def received_twice(world: World, make: Make) -> Any:
    """The messages become visible too early, and a second function serves them meanwhile."""
    world.serve_again()
    return make()


def changed_page(change: Callable[[dict[str, Any]], object]) -> Strike:
    """DynamoDB has another page than the function wrote."""

    def strike(world: World, make: Make) -> Any:
        reply = make()
        for found in reply.get("Responses", []):
            if "Item" in found:
                change(found["Item"])
        return reply

    return strike


def _older(page: dict[str, Any]) -> None:
    """Before shapes had numbers, a page had no state, and foreign ids as they are."""
    if "foreign" in page:
        return
    for name in ("shape", "state", "begun_by", "digest", "begun", "deaths"):
        page.pop(name, None)


URL: Final = "https://aws"
connection: Final[dict[str, Strike]] = {
    "no address": raised(partial(EndpointConnectionError, endpoint_url=URL)),
    "no connection in time": raised(partial(ConnectTimeoutError, endpoint_url=URL), CONNECT_TIMEOUT),
    "TLS fails": raised(partial(SSLError, endpoint_url=URL, error=OSError())),
    "no reply in time": raised(partial(ReadTimeoutError, endpoint_url=URL), READ_TIMEOUT),
    "reset": raised(partial(ConnectionClosedError, endpoint_url=URL)),
    "served, the reply lost": raised(partial(ReadTimeoutError, endpoint_url=URL), READ_TIMEOUT, served=True),
    "served, reset in mid-reply": raised(partial(ConnectionClosedError, endpoint_url=URL), served=True),
    "served, the reply cut short": raised(partial(ResponseParserError, "cut"), served=True),
    "500": refused(500, "InternalFailure"),
    "502": refused(502, "BadGateway"),
    "503": refused(503, "ServiceUnavailable"),
    "a proxy's page with 200": answered_by_a_proxy,
}
#: By changes; the last one leaves nothing of any story.
RESTORED: Final = {f"restored to {changes} changes ago": restored(changes) for changes in (1, 2, 4)} | {
    "restored to before the story": restored(1000)
}
#: The faults of the function itself.
deaths: Final[dict[str, Strike]] = {
    "dies before": raised(Death),
    "dies after": raised(Death, served=True),
    "hangs for ever": hangs(),
    "is served, and hangs for ever": hangs(served=True),
    "hangs until the guard has answered": hangs(ends=True),
    "is served, and hangs until the guard has answered": hangs(served=True, ends=True),
    **{f"{seconds} s left": little_time(seconds) for seconds in (0, 1, 3, 20)},
    "a second function at the same messages": received_twice,
}
#: The faults at a call to any service.
ANYWHERE: Final = {**deaths, "CloudFormation gives the request up": given_up}
FAULTS: Final[dict[str, dict[str, Strike]]] = {
    "apigateway": {
        **connection,
        "503, Retry-After": refused(503, "ServiceUnavailable", "", 7),
        "bad request": refused(400, "BadRequestException", "bad"),
        "unauthorized": refused(401, "UnauthorizedException", "who?"),
        "denied": refused(403, "AccessDeniedException", "with an explicit deny in a service control policy"),
        "not found": refused(404, "NotFoundException", "Invalid Usage Plan ID specified"),
        "conflict": refused(409, "ConflictException", "something"),
        "busy": refused(409, "ConflictException", "Please try again later."),
        "quota": refused(429, "LimitExceededException", "too many"),
        "throttled": refused(429, "TooManyRequestsException", "Too Many Requests", 2),
        "throttled for longer than the function runs": refused(
            429, "TooManyRequestsException", "Too Many Requests", 100
        ),
        "throttled, no Retry-After": refused(429, "TooManyRequestsException", "Too Many Requests"),
        "throttled with 400": refused(400, "ThrottlingException", "Rate exceeded"),
        "HTML with 200": instead({"ResponseMetadata": {"HTTPStatusCode": 200, "HTTPHeaders": {}}}),
        "no value in the reply": without("value"),
        "no name in the reply": without("name"),
    },
    "dynamodb": {
        **connection,
        **RESTORED,
        "denied": refused(400, "AccessDeniedException", "no"),
        "throttled": refused(400, "ThrottlingException", "slow"),
        "throughput exceeded": refused(400, "ProvisionedThroughputExceededException", "slow"),
        "the table is gone": refused(400, "ResourceNotFoundException", "no table"),
        "a conflict of transactions": refused(
            400, "TransactionCanceledException", CancellationReasons=[{"Code": "TransactionConflict"}]
        ),
        "a condition that fails": refused(
            400, "TransactionCanceledException", CancellationReasons=[{"Code": "ConditionalCheckFailed"}]
        ),
        "a page of a newer shape": changed_page(lambda page: page.update(shape={"N": "99"})),
        "a damaged page": changed_page(lambda page: page.update(holds={"S": "?"}, holders={"S": "?"})),
        "a page of an older shape": changed_page(_older),
        "a reply without its pages": without("Responses"),
        "served, a reply with another checksum": raised(
            partial(ChecksumError, checksum_type="crc32", expected_checksum="1", actual_checksum="2"),
            served=True,
        ),
    },
    "sqs": {
        **connection,
        "denied": refused(403, "AccessDenied", "no"),
        "no queue": refused(400, "AWS.SimpleQueueService.NonExistentQueue", "none"),
        # A queue has no limit of messages; SendMessage refuses messages that come too fast.
        # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html and
        # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/troubleshooting-fifo-throttling-issues.html
        "throttled": refused(400, "RequestThrottled", "slow"),
        "300 sends a second": refused(400, "ThrottlingException", "Rate exceeded"),
        "its KMS key is throttled": refused(400, "KmsThrottled", "slow"),
        # With 120,000 messages in flight, or in front in one group, SQS returns no error, and no message.
        # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/avoid-backlog-with-the-same-message-group-id.html
        "full: it hands out nothing": hands_out_nothing,
    },
    "s3": {
        "no address": raised(partial(urllib3.exceptions.NewConnectionError, None, "no address")),  # type: ignore[arg-type]  # not looked at
        "no reply in time": raised(
            partial(urllib3.exceptions.ReadTimeoutError, None, "", ""),  # type: ignore[arg-type]  # not looked at
            SHORT_READ_TIMEOUT,
        ),
        "reset": raised(partial(urllib3.exceptions.ProtocolError, "reset")),
        "TLS fails": raised(partial(urllib3.exceptions.SSLError, "no")),
        "taken, the reply lost": raised(partial(urllib3.exceptions.ProtocolError, "reset"), served=True),
        **{str(status): replied(status) for status in (403, 404, 408, 409, 429, 500, 503)},
        "307": replied(307, location="https://bucket.s3.eu-central-1.amazonaws.com/other"),
        "400 RequestTimeout": replied(400, b"<Error><Code>RequestTimeout</Code></Error>"),
    },
}
#: Nobody can tell whether AWS carried the call out: if somebody else has attached the same key, the function
#: takes it for ours. docs/reliability.md names this exception.
UNCLEAR: Final = {
    *(name for name in connection if name not in ("no address", "no connection in time")),
    *deaths,
    "503, Retry-After",
    "HTML with 200",
}
#: A lie where the key is there.
UNTRUE: Final = {("delete_usage_plan_key", "not found")}
#: The function makes no second attempt after these: nobody listens any more.
FINAL: Final = {"403", "404"}
