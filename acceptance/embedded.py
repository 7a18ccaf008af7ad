"""An AWS on this machine: MiniStack, mended, with API Gateway's own rules before it.

The run is a user with the policy of docs/acceptance.md, and MiniStack holds the user to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from emulators.ministack import PATIENCE, REGION, Aws, running

from .world import ROOT, Place, zipped

ACCOUNT = "000000000000"


def policy(account: str, region: str) -> str:
    """Read the policy in the manual."""
    page = (ROOT / "docs" / "acceptance.md").read_text()
    (found,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    return str(found).replace("111122223333", account).replace("eu-central-1", region)


def user(aws: Aws) -> tuple[str, str]:
    """Make a user who may do what the policy allows; return the access key."""
    iam = aws.client("iam")
    iam.create_user(UserName="acceptance")
    iam.put_user_policy(
        UserName="acceptance", PolicyName="acceptance", PolicyDocument=policy(ACCOUNT, REGION)
    )
    made = iam.create_access_key(UserName="acceptance")["AccessKey"]
    return made["AccessKeyId"], made["SecretAccessKey"]


def place(port: int, certificate: Path, api: str, keys: tuple[str, str], **more: Any) -> Place:
    """Reach a MiniStack at this port, and its API Gateway at this URL.

    Nothing comes late here, and the limits are for a slow machine.
    """

    def endpoint(service: str) -> dict[str, Any]:
        url = api if service == "apigateway" else f"https://localhost:{port}"
        config = Config(
            proxies={},
            read_timeout=PATIENCE,
            s3={"addressing_style": "path"},
            signature_version="s3v4" if service == "s3" else None,
        )
        return {"endpoint_url": url, "verify": str(certificate), "config": config}

    return Place(
        boto3.Session(*keys),
        REGION,
        artifact=partial(zipped, ROOT / "handler"),
        endpoint=endpoint,
        pause=0.1,
        patience=PATIENCE,
        parameters={"ApiGatewayEndpoint": api, "ResponseHost": f"localhost:{port}"},
        **more,
    )


def place_of(aws: Aws) -> Place:
    """Make a user on this MiniStack, and reach it as that user."""
    held = partial(aws.proxy.holding, "CreateUsagePlanKey")
    return place(aws.port, aws.certificate, aws.proxy.url, user(aws), held=held)


@contextmanager
def embedded() -> Iterator[Place]:
    """Run an AWS on this machine."""
    with running() as aws:
        yield place_of(aws)
