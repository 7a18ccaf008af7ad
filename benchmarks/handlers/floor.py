"""The floor: a function that makes one client and one call; `answering` also delivers an answer."""

import json
from typing import Any

import boto3
import urllib3

_client = boto3.client("apigateway")
_pool = urllib3.PoolManager()


def calling(event: dict[str, Any], context: object) -> None:
    """Make the one call that the request is about."""
    key_id, plan_id = event["ResourceProperties"]["KeyId"], event["ResourceProperties"]["UsagePlanId"]
    match event["RequestType"]:
        case "Create":
            _client.create_usage_plan_key(usagePlanId=plan_id, keyId=key_id, keyType="API_KEY")
        case "Update":
            _client.get_usage_plan_key(usagePlanId=plan_id, keyId=key_id)
        case "Delete":
            _client.delete_usage_plan_key(usagePlanId=plan_id, keyId=key_id)


def answering(event: dict[str, Any], context: object) -> None:
    """Make the call, then PUT the answer."""
    calling(event, context)
    answer = {name: event[name] for name in ("StackId", "RequestId", "LogicalResourceId")}
    answer |= {"Status": "SUCCESS", "PhysicalResourceId": "id", "Data": {"Id": "id"}}
    _pool.request("PUT", event["ResponseURL"], body=json.dumps(answer), headers={"content-type": ""})
