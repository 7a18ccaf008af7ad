"""Runs MiniStack, and mends it where AWS does something else. ministack.py starts this file as a program.

| | MiniStack 1.5.33 | AWS, and here |
|---|---|---|
| a rollback after a replacement | Delete of the new id | an Update back, then that Delete |
| a function dies of CloudFormation's request | no answer ever comes | two retries: as `changed` says |
| a function leaves messages | they come again after 180 s | the same; here after a second |
| many requests come at once | a process for each | the same; here four processes |
| a function cannot start | no line in its log | an [ERROR] |
| Lambda polls in vain | no figure | NumberOfEmptyReceives |
| ChangeMessageVisibilityBatch | a permission of that name | ChangeMessageVisibility |

No document says which id the Update back has. Here it is the new one, because it is the resource's id then.
https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-error-handling.html
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-batch-api-actions.html
"""

# ruff: noqa: SLF001  # it changes MiniStack's insides

import inspect
import sys
import time
from contextlib import nullcontext
from threading import Semaphore
from typing import Any

from hypercorn.__main__ import main
from ministack.core import iam_actions
from ministack.services import cloudwatch, lambda_svc, sqs
from ministack.services.cloudformation import stacks

HIDDEN = 1
"""Seconds until messages come again that a function has neither served nor given back."""
AT_ONCE = Semaphore(4)
"""Processes that take CloudFormation's requests: each takes half a second of a processor to start."""

ONLY_DELETED = """\
                or logical_id in replaced_ids):
            to_delete.append(logical_id)
            continue
"""
SENT_BACK = """\
                or logical_id in replaced_ids):
            rtype = res.get("ResourceType", "")
            if prev is not None and _sends_back_failed_update(rtype):
                prev["PhysicalResourceId"] = pid  # until the answer says another
                await revert(logical_id, rtype, pid, res["Properties"], prev["Properties"], res["Attributes"])
                if logical_id in rollback_failed_records or prev["PhysicalResourceId"] == pid:
                    continue
            to_delete.append(logical_id)
            continue
"""


def rewrite(module: Any, function: str, old: str, new: str) -> None:
    """Replace a part of a function's source."""
    source = inspect.getsource(getattr(module, function))
    assert source.count(old) == 1, f"this MiniStack's {function} is another one: look at it again"
    exec(source.replace(old, new), vars(module))  # noqa: S102  # MiniStack's source, and ours


def changed(function: dict[str, Any], most: float) -> None:
    """Wait until a function is changed, `most` seconds at most.

    AWS waits one minute, then two. A story that breaks the function mends it before that; so it has to be
    here, however slow the machine is.
    """
    broken, ends = function["RevisionId"], time.monotonic() + most
    while time.monotonic() < ends and (
        function["RevisionId"] == broken or function["LastUpdateStatus"] == "InProgress"
    ):
        time.sleep(0.1)


def mend() -> None:
    """Put the functions below in the place of MiniStack's."""
    rewrite(stacks, "_roll_back_operation", ONLY_DELETED, SENT_BACK)
    vars(lambda_svc)["changed"] = changed
    rewrite(lambda_svc, "invoke_async_with_retry", "time.sleep(delay)", "changed(config, delay)")

    execute, run_batch = lambda_svc._execute_function_with_config_scope, lambda_svc._run_sqs_batch
    receive, action = sqs._receive_messages_for_esm, iam_actions.extract_iam_action
    invoke = lambda_svc._execute_function_warm

    def execute_again(function: dict[str, Any], event: Any, *more: Any) -> Any:
        """Invoke asynchronously for CloudFormation."""
        if isinstance(event, dict) and "ResponseURL" in event:
            return lambda_svc.invoke_async_with_retry(function, event)
        return execute(function, event, *more)

    def invoke_told(function: Any, event: Any, request_id: str) -> dict[str, Any]:
        with AT_ONCE if "ResponseURL" in event else nullcontext():
            result: dict[str, Any] = invoke(function, event, request_id)
        if result.get("error") and not result.get("log"):
            result["log"] = "[ERROR] {errorType}: {errorMessage}".format(**result["body"])
        return result

    def run_batch_again(source: dict[str, Any], function: Any, event: Any, batch: Any, *queue: str) -> None:
        hidden = [message["visible_at"] for message in batch]
        run_batch(source, function, event, batch, *queue)
        for message, until in zip(batch, hidden, strict=True):
            if message["visible_at"] == until:  # the function has not given it back
                message["visible_at"] = time.time() + HIDDEN

    def receive_counted(url: str, most: int) -> list[Any]:
        found: list[Any] = receive(url, most)
        if not found:
            queue = {"QueueName": url.rpartition("/")[2]}
            cloudwatch.record_metric("AWS/SQS", "NumberOfEmptyReceives", 1, "Count", queue)
        return found

    def action_of_batch(service: str, *request: Any, **more: Any) -> Any:
        found = action(service, *request, **more)
        return found.removesuffix("Batch") if service == "sqs" and found else found

    iam_actions.extract_iam_action = action_of_batch
    lambda_svc._execute_function_with_config_scope = execute_again
    lambda_svc._execute_function_warm = invoke_told
    lambda_svc._run_sqs_batch = run_batch_again
    sqs._receive_messages_for_esm = receive_counted


if __name__ == "__main__":
    mend()
    sys.exit(main())
