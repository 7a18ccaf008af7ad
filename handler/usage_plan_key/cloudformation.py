"""Asks CloudFormation whether a stack is gone, for an operator's event and for the watch only."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from .errors import FailedError
from .redaction import shown
from .retry import BEFORE_SHORT_CALL, Deadline, readable, retry, transient


def is_of(stack_id: str, function_arn: str) -> bool:
    """Tell whether this is the id of a stack in the function's region and account."""
    _, partition, _, region, account, *_ = f"{function_arn}::::::".split(":")
    ours = rf"arn:{partition}:cloudformation:{region}:{account}:stack/[A-Za-z0-9-]+/[A-Za-z0-9-]+"
    return bool(account and re.fullmatch(ours, stack_id))


def stack_is_gone(client: Any, stack_id: str, function_arn: str, deadline: Deadline) -> bool:
    """Ask whether a stack is deleted or does not exist.

    For 90 days CloudFormation describes a deleted stack, by its id, as DELETE_COMPLETE. Later it answers
    with a ValidationError.
    https://docs.aws.amazon.com/AWSCloudFormation/latest/APIReference/API_DescribeStacks.html

    Raises:
        FailedError: CloudFormation does not say, or the stack is in another region or account. About such a
            stack CloudFormation would say that it does not exist.
    """
    if not is_of(stack_id, function_arn):
        raise FailedError(
            f"{stack_id} is no id of a stack in this function's region and account, "
            "so the function let go of nothing"
        )
    what = f"Could not ask CloudFormation about {stack_id}"
    try:
        call = partial(client.describe_stacks, StackName=stack_id)
        asked = readable(call, "CloudFormation", lambda reply: "Stacks" in reply)
        reply = retry(asked, what, deadline, transient, BEFORE_SHORT_CALL)
    except ClientError as error:
        if error.response["Error"]["Code"] == "ValidationError":
            return True
        raise FailedError(
            f"{what}: {shown(error)}. The function's role needs cloudformation:DescribeStacks"
        ) from error
    except BotoCoreError as error:
        raise FailedError(f"{what}: {shown(error)}") from error
    return [stack["StackStatus"] for stack in reply["Stacks"]] == ["DELETE_COMPLETE"]
