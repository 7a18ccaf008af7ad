"""Runs MiniStack, and mends it where AWS does something else. ministack.py starts this file as a program.

| | MiniStack 1.5.33 | AWS, and here |
|---|---|---|
| a rollback after a replacement | Delete of the new id | an Update back, then that Delete |
| a function dies of CloudFormation's request | no answer ever comes | two retries |
| a function dies of a batch | it comes again after 180 s | the same; here after 3 s |
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
from typing import Any

from hypercorn.__main__ import main
from ministack.core import iam_actions
from ministack.services import cloudwatch, lambda_svc, sqs
from ministack.services.cloudformation import stacks

HIDDEN = 3
"""Seconds until the batch of a dead function comes again. AWS takes the queue's visibility time-out."""

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


def mend() -> None:
    """Put the functions below in the place of MiniStack's."""
    source = inspect.getsource(stacks._roll_back_operation)
    assert source.count(ONLY_DELETED) == 1, "this MiniStack rolls back in another way: look at it again"
    exec(source.replace(ONLY_DELETED, SENT_BACK), vars(stacks))  # noqa: S102  # MiniStack's source, and ours

    execute, run_batch = lambda_svc._execute_function_with_config_scope, lambda_svc._run_sqs_batch
    receive, action = sqs._receive_messages_for_esm, iam_actions.extract_iam_action
    invoke = lambda_svc._execute_function_warm

    def execute_again(function: dict[str, Any], event: Any, *more: Any) -> Any:
        """Invoke asynchronously for CloudFormation; the retries come after 3 and 6 seconds, not minutes."""
        if isinstance(event, dict) and "ResponseURL" in event:
            return lambda_svc.invoke_async_with_retry(function, event)
        return execute(function, event, *more)

    def invoke_told(*invocation: Any) -> dict[str, Any]:
        result: dict[str, Any] = invoke(*invocation)
        if result.get("error") and not result.get("log"):
            result["log"] = "[ERROR] {errorType}: {errorMessage}".format(**result["body"])
        return result

    def run_batch_again(source: dict[str, Any], function: Any, event: Any, batch: Any, *queue: str) -> None:
        run_batch(source, function, event, batch, *queue)
        if source["LastProcessingResult"] == "FAILED":
            for message in batch:
                message["visible_at"] = min(message["visible_at"], time.time() + HIDDEN)

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
