"""The Lambda entry: wiring."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import boto3
from aws_lambda_powertools import Logger
from botocore.config import Config

from .answer import Resource, Sender, redacted
from .api_gateway import ApiGateway
from .ledger import EventsWord, Ledger, Table
from .lifecycle import FailedError
from .request import Create, Delete, Invalid, Request, Update, parse
from .retry import CONNECT_TIMEOUT, READ_TIMEOUT, SHORT_CONNECT_TIMEOUT, SHORT_READ_TIMEOUT, Deadline
from .service import Served, Service

#: Under sam local somebody waits at a terminal, and an endpoint that cannot be reached is tried for seconds alone.
LOCAL_TIME: Final = 30.0

# The modules' loggers are its children, so their lines carry the same keys. It never logs events: they hold secrets.
logger = Logger(service="usage_plan_key", level=os.environ.get("POWERTOOLS_LOG_LEVEL", "INFO"))
# At DEBUG, these write replies, with the keys' values, and URLs.
for _chatty in ("boto3", "botocore", "urllib3"):
    logging.getLogger(_chatty).setLevel(logging.ERROR)


def _client(service: Any, connect: float, read: float) -> Any:
    """Make a client whose own retries are off: `retry` is the one policy. Made during init, at full CPU."""
    config = Config(connect_timeout=connect, read_timeout=read, retries={"total_max_attempts": 1})
    return boto3.client(service, config=config)


_api = ApiGateway(_client("apigateway", CONNECT_TIMEOUT, READ_TIMEOUT))
_table_name = os.environ.get("LEDGER_TABLE")
_table = Table(_client("dynamodb", SHORT_CONNECT_TIMEOUT, SHORT_READ_TIMEOUT), _table_name) if _table_name else None
_sender = Sender()


def handler(event: Mapping[str, Any], context: Any) -> dict[str, Any] | None:
    """Serve a request of CloudFormation's. Under sam local, where nobody waits for it, the answer is printed and returned.

    Raises:
        EventError: The event lacks what an answer needs.
        UndeliveredError: The answer could not be delivered. Lambda invokes again, and the same answer goes out.
    """
    logger.clear_state()
    request = parse(event)
    logger.append_keys(
        StackId=request.holder.stack_id,
        LogicalResourceId=request.holder.logical_id,
        RequestId=request.id,
        RequestType=event["RequestType"],
        PhysicalResourceId=request.physical_id,
        function_request_id=context.aws_request_id,
    )
    local = "AWS_SAM_LOCAL" in os.environ
    left = context.get_remaining_time_in_millis() / 1000
    deadline = Deadline(min(left, request.service_timeout, LOCAL_TIME if local else left))
    ledger: Ledger = _table or EventsWord(request.holder, request.physical_id, request.id)
    service = Service(request, ledger, _api, deadline)
    answers: list[bytes] = []
    resource = Resource(
        request,
        serve=partial(_serve, service, request),
        give_up=partial(_give_up, service),
        deliver=answers.append if local else partial(_sender.deliver, request.response_url, Deadline(left)),
        log_stream=context.log_stream_name,
    )
    resource.answer(event, context)
    for answer in answers:
        print(redacted(answer))  # noqa: T201  # for the person at the terminal
        return json.loads(redacted(answer))  # type: ignore[no-any-return]  # a JSON object
    return None


def _serve(service: Service, request: Request) -> Served:
    logger.info("Asked: %s", _shown(request))
    try:
        _check_host(request)
        service.arrive()
    except FailedError as failed:
        served = Served(service.fail(str(failed)))
    else:
        served = service.serve()
    given = served.answer
    status = "SUCCESS" if given.success else "FAILED"
    keys = {"outcome": given.outcome or status, "status": status, "AnswerId": given.id}
    (logger.info if given.success else logger.error)("%s %s", status, given.outcome or given.reason, extra=keys)
    return served


def _give_up(service: Service) -> Served:
    return Served(service.fail("No answer in time: a call of the function hangs. Look into its log, and deploy again"))


def _check_host(request: Request) -> None:
    """A key's value goes to CloudFormation alone: whoever may invoke the function could name another host.

    Raises:
        FailedError: The value is asked for, and ResponseURL leads outside the partition's DNS suffix.
    """
    suffix = os.environ.get("RESPONSE_URL_SUFFIX")
    if suffix and isinstance(request, Create | Update) and request.include_value:
        host = urlsplit(request.response_url).hostname or ""
        if not host.endswith(f".{suffix}"):
            raise FailedError(f"IncludeValue is true, and ResponseURL's host {host} is not under {suffix}: no value goes there")


def _shown(request: Request) -> str:
    match request:
        case Create() | Update():
            return f"{type(request).__name__} {request.wanted.id}, OnExisting {request.on_existing}"
        case Delete():
            return f"Delete {request.physical_id}"
        case Invalid():
            return f"{'Update' if request.physical_id else 'Create'} with unusable properties"
