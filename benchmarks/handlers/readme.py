"""The handler of crhelper's README: default helper, one client, a function for each request type."""

from typing import Any

import boto3
from crhelper import CfnResource

helper = CfnResource(
    json_logging=False, log_level="DEBUG", boto_level="CRITICAL", sleep_on_delete=120, ssl_verify=None
)
client = boto3.client("apigateway")


def _ids(event: dict[str, Any]) -> tuple[str, str]:
    return event["ResourceProperties"]["UsagePlanId"], event["ResourceProperties"]["KeyId"]


@helper.create
def create(event: dict[str, Any], context: object) -> str:
    """CreateUsagePlanKey."""
    plan_id, key_id = _ids(event)
    client.create_usage_plan_key(usagePlanId=plan_id, keyId=key_id, keyType="API_KEY")
    return f"{key_id}:{plan_id}"


@helper.update
def update(event: dict[str, Any], context: object) -> None:
    """GetUsagePlanKey."""
    plan_id, key_id = _ids(event)
    client.get_usage_plan_key(usagePlanId=plan_id, keyId=key_id)


@helper.delete
def delete(event: dict[str, Any], context: object) -> None:
    """DeleteUsagePlanKey."""
    plan_id, key_id = _ids(event)
    client.delete_usage_plan_key(usagePlanId=plan_id, keyId=key_id)


def handler(event: dict[str, Any], context: object) -> None:
    """Serve a request."""
    helper(event, context)
