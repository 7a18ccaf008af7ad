"""The Lambda entry: wiring."""

from __future__ import annotations

import gc

# Everything that init imports and makes stays. Collections during init would take a tenth of its time.
gc.disable()

import json
import logging
import os
from functools import partial
from typing import Any

import boto3
from aws_lambda_powertools import Logger
from botocore.config import Config

from .api_gateway import ApiGateway
from .ledger import Table
from .provider import Provider, about
from .queue import Queue
from .redaction import traceback, without_urls
from .response import Sender, check_value_host
from .retry import CONNECT_TIMEOUT, READ_TIMEOUT, SHORT_CONNECT_TIMEOUT, SHORT_READ_TIMEOUT


def _tell_what_it_is_about(record: logging.LogRecord) -> bool:
    vars(record).update(about.get({}))
    return True


def _line(fields: dict[str, Any]) -> str:
    """Write a line of the log. Only here does every text pass that is not our own, tracebacks too."""
    fields["message"] = without_urls(str(fields["message"]))
    if fields.get("exception"):
        fields["exception"] = traceback(fields["exception"])
    return _ENCODER.encode(fields)


_ENCODER = json.JSONEncoder(separators=(",", ":"), default=str)  # one for all lines
# The modules' loggers are its children, so their lines carry the same keys. Never log an event: events hold
# secrets.
logger = Logger(
    service="usage_plan_key",
    level=os.environ.get("POWERTOOLS_LOG_LEVEL", "INFO"),
    json_serializer=_line,
    serialize_stacktrace=False,  # `exception` has it
)
# Powertools names the logger after its service, but the logger needs the package's name. So the lines get
# the metrics' service here.
logger.append_keys(service=os.environ.get("POWERTOOLS_SERVICE_NAME"))
logger.registered_handler.addFilter(_tell_what_it_is_about)
# At DEBUG, these loggers write URLs, and replies with the keys' values.
for _chatty in ("boto3", "botocore", "urllib3"):
    logging.getLogger(_chatty).setLevel(logging.ERROR)


def _client(service: Any, connect: float, read: float) -> Any:
    """Make a client whose own retries are off: `retry` is the one policy."""
    config = Config(
        connect_timeout=connect,
        read_timeout=read,
        retries={"total_max_attempts": 1},
        # botocore would build its own twice for each request.
        user_agent=f"usage-plan-key Boto3/{boto3.__version__}",
        # `request` checks the ids, and the rest of every call is this code's own.
        parameter_validation=False,
    )
    return boto3.client(service, config=config)


_table = os.environ.get("LEDGER_TABLE")
_queue = os.environ.get("QUEUE_URL")
# Init makes these clients, because Lambda gives init a full CPU.
_apigateway = _client("apigateway", CONNECT_TIMEOUT, READ_TIMEOUT)
_check_host = partial(
    check_value_host,
    region=_apigateway.meta.region_name,
    suffix=os.environ.get("RESPONSE_URL_SUFFIX"),
    emulator=os.environ.get("RESPONSE_URL_HOST"),
)
provider = Provider(
    api=ApiGateway(_apigateway),
    table=Table(_client("dynamodb", SHORT_CONNECT_TIMEOUT, SHORT_READ_TIMEOUT), _table) if _table else None,
    queue=Queue(
        _client("sqs", SHORT_CONNECT_TIMEOUT, SHORT_READ_TIMEOUT), _queue, os.environ.get("UNDELIVERED_URL")
    )
    if _queue
    else None,
    sender=Sender(_check_host),
    local="AWS_SAM_LOCAL" in os.environ,
    # Only operators and the watch need this client, so init does not make it.
    cloudformation=lambda: _client("cloudformation", SHORT_CONNECT_TIMEOUT, READ_TIMEOUT),
)
# Without freeze, the first collection would scan everything that init made.
gc.freeze()
gc.enable()


def handler(event: object, context: Any) -> dict[str, Any] | None:
    """Take CloudFormation's request, serve the queue's batch, or let go for an operator; see `Provider`."""
    match event:
        case {"Records": [{"messageId": _, "receiptHandle": _, "body": _}, *_] as records}:
            return provider.on_batch(records, context)
        case {"LetGo": asked}:
            return provider.let_go(asked, context)
    return provider.on_event(event, context)
