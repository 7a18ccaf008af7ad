"""The function's metrics: it logs a line for each response, and CloudWatch turns the lines into metrics.

https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format.html

CloudWatch bills each name with each combination of its dimensions. So each outcome has a name of its own, and
Powertools' `service` is the only dimension: a dimension `Outcome` would make ten metrics of each on its line.
"""

from __future__ import annotations

import json
import sys
from typing import Final

from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit
from aws_lambda_powertools.metrics.functions import is_metrics_disabled

NAMESPACE: Final = "UsagePlanKey"
#: Seconds from a request's arrival to the turn that answers it.
QUEUE_SECONDS: Final = "QueueSeconds"
#: Seconds from a request's arrival to the moment at which it goes back into the queue.
WAITED_SECONDS: Final = "WaitedSeconds"


def response(body: bytes, attempts: int, waited: float | None) -> None:
    """Count a response by its outcome.

    Args:
        body: The response's body; only its outcome goes into the log.
        attempts: The calls to API Gateway in this turn.
        waited: The seconds that the request waited in the queue; None without a queue.
    """
    fields = json.loads(body)
    outcome = fields["Data"]["Outcome"].capitalize() if "Data" in fields else "Deleted"
    name = outcome if fields["Status"] == "SUCCESS" else "Failed"
    _emit({name: 1, "Attempts": attempts} | ({} if waited is None else {QUEUE_SECONDS: waited}))


def gone_back(attempts: int, waited: float) -> None:
    """Count the calls to API Gateway of a request that a later turn answers, and tell how long it has waited.

    SQS's own age leaves out messages that were received three times or more.
    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-available-cloudwatch-metrics.html
    """
    _emit({"Attempts": attempts, WAITED_SECONDS: waited})


def no_request() -> None:
    """Count a message that is no request."""
    _emit({"NoRequest": 1})


def answer_refused() -> None:
    """Count a response that CloudFormation refused; nobody sends it again."""
    _emit({"AnswerRefused": 1})


def answer_undelivered() -> None:
    """Count a response that the function could not deliver in time; its request comes again."""
    _emit({"AnswerUndelivered": 1})


def drift(missing: int) -> None:
    """Count the associations that the watch found missing; a 0 ends the alarm."""
    _emit({"Drift": missing})


def _emit(values: dict[str, float]) -> None:
    if is_metrics_disabled():
        return
    metrics = EphemeralMetrics(namespace=NAMESPACE)
    for name, value in values.items():
        metrics.add_metric(name, MetricUnit.Seconds if name.endswith("Seconds") else MetricUnit.Count, value)
    # Powertools prints in two writes, and another thread's line could come between them.
    sys.stdout.write(json.dumps(metrics.serialize_metric_set(), separators=(",", ":")) + "\n")
