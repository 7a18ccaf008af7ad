"""Models others: each resource calls CreateUsagePlanKey, all at once; a policy decides after an error.

Each policy says how long to wait after a refused attempt (the first is 1), or None to give up.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from botocore.exceptions import ClientError

from .model import SERIAL_CALL, Account
from .waves import SPREAD, OtherCaller, Result, furnish, name

Policy = Callable[[int, int, Random], float | None]
"""From the status, the attempt and the dice."""


def native(status: int, attempt: int, dice: Random) -> float | None:
    """AWS::ApiGateway::UsagePlanKey: fails at a 409 (serverless #12065). We assume that it retries a 429."""
    return dice.uniform(0, min(20.0, 0.5 * 2**attempt)) if status == 429 else None


def crhelper(status: int, attempt: int, dice: Random) -> float | None:
    """The handler of crhelper's README: boto3's five attempts at a 429 (data/_retry.json), one at a 409."""
    return dice.random() * 2 ** (attempt - 1) if status == 429 and attempt < 5 else None


def terraform(status: int, attempt: int, dice: Random) -> float | None:
    """Terraform's provider: 25 attempts, also at "try again later".

    internal/service/apigateway/service_package.go says when it tries again. Its back-off is the old SDK's
    (internal/conns, v1CompatibleBackoff): 30 ms, or 500 ms after a 429, doubled each time up to 300 s. Here
    all resources start at once, as in CloudFormation; Terraform itself starts ten at a time.
    """
    seconds = (0.5 if status == 429 else 0.03) * dice.uniform(1, 2) * 2**attempt
    if attempt >= 25:
        return None
    return seconds if seconds <= 300 else dice.uniform(150, 300)


POLICIES: Final[dict[str, Policy]] = {
    "native type": native,
    "crhelper's README": crhelper,
    "Terraform's retries": terraform,
}


def wave(policy: str, keys: int, seed: int) -> Result:
    """Attach so many keys at once by a policy."""
    account = Account(seed, queue=False)
    world, gateway = account.world, account.gateway
    furnish(gateway, keys)
    open_: set[str] = set()
    gateway.history.append((0.0, 0))
    last = 0.0

    def create(key: str) -> None:
        nonlocal last
        attempt = 0
        pause: float | None = 0.0
        while pause is not None:
            attempt += 1
            world.sleep(pause)
            if world.now > 3600:  # CloudFormation has given up.
                break
            try:
                gateway.create_usage_plan_key(usagePlanId="free", keyId=key, keyType="API_KEY")
            except ClientError as error:
                pause = POLICIES[policy](
                    error.response["ResponseMetadata"]["HTTPStatusCode"], attempt, world.dice
                )
            else:
                break
        last = max(last, world.now)
        open_.discard(key)

    for number in range(keys):
        key = name(number)
        open_.add(key)
        world.at(world.dice.uniform(0, SPREAD), lambda key=key: world.spawn(create, key))  # type: ignore[misc]
    other_caller = OtherCaller(world, gateway, lambda: bool(open_))
    account.run()
    return Result(
        name=policy,
        keys=keys,
        succeeded=len(gateway.attached),
        seconds=last,
        limit=keys * SERIAL_CALL,
        calls=gateway.calls.total(),
        throttled=gateway.refused[429],
        busy=gateway.refused[409],
        asked=other_caller.asked,
        served=other_caller.served,
        history=gateway.history,
    )
