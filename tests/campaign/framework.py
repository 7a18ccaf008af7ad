"""A handler behind CDK's provider framework, in the campaign's world, as CDK's documents describe it.

https://docs.aws.amazon.com/cdk/api/v2/docs/aws-cdk-lib.custom_resources-readme.html, "Provider Framework".
The rest is as in aws-cdk-lib/custom-resources/lib/provider-framework/runtime.

CloudFormation invokes the framework's function, with 15 minutes. That one invokes the user's function and
waits for it. It answers SUCCESS with that one's result, and FAILED where that one raises, dies or times out.
It answers a Create that fails with a marker as its id, and a Delete of the marker with SUCCESS, without the
user's function. It tries the PUT six times. It has no ledger and no queue: Lambda invokes a
framework that has died again, and that one invokes the user's function again.
"""

from __future__ import annotations

import json
from typing import Any, Final

from .readme import Boto3, attach, detach, verify
from .world import Death, World

#: The user's function: the page recommends no more.
USERS_TIMEOUT: Final = 14 * 60.0
MARKER: Final = "AWSCDK::CustomResourceProviderFramework::CREATE_FAILED"
#: Attempts of the PUT, and the longest pause before the second one; each later pause may be twice as long.
PUTS: Final = 6
FIRST_PAUSE: Final = 1.0


class Framework:
    """Takes the place of the function."""

    def __init__(self, world: World, api: Any, s3: Any) -> None:
        self._world, self._s3, self._api = world, s3, Boto3(world, api)

    def on_event(self, event: dict[str, Any], context: Any) -> None:
        """Serve a request, as the framework's function."""
        if event["RequestType"] == "Delete" and event["PhysicalResourceId"] == MARKER:
            return self._submit("SUCCESS", event, MARKER)
        try:
            made = self._invoke(event)
            id_ = made.get("PhysicalResourceId") or event.get("PhysicalResourceId") or event["RequestId"]
            return self._submit("SUCCESS", event, id_)
        except Exception as error:  # noqa: BLE001  # as the framework does
            return self._submit("FAILED", event, event.get("PhysicalResourceId") or MARKER, str(error))

    def _invoke(self, event: dict[str, Any]) -> dict[str, Any]:
        """Invoke the user's function, and wait for it. Lambda tells of its death and of its time-out."""
        world, ends = self._world, self._world.ends
        world.ends = min(ends, world.clock.now + USERS_TIMEOUT)
        try:
            return self._user(event)
        except Death:
            if world.clock.now >= ends:
                raise
            raise RuntimeError("Task timed out, or Runtime exited") from None
        finally:
            world.ends = ends

    def _user(self, event: dict[str, Any]) -> dict[str, Any]:
        """The page's skeleton, which prints the event, with one API call for each kind of request."""
        print(event)  # noqa: T201  # as there
        kind, properties = event["RequestType"], event["ResourceProperties"]
        wanted = f"{properties['KeyId']}:{properties['UsagePlanId']}"
        if kind == "Delete":
            detach(self._api, event["PhysicalResourceId"])
            return {}
        if kind == "Update" and wanted == event["PhysicalResourceId"]:
            verify(self._api, wanted)
        else:
            attach(self._api, wanted)
        return {"PhysicalResourceId": wanted}

    def _submit(self, status: str, event: dict[str, Any], id_: str, reason: str = "") -> None:
        """PUT the answer.

        Raises:
            Exception: S3 does not take it, or does not reply.
        """
        answer = {
            "Status": status,
            "Reason": reason or status,
            "PhysicalResourceId": id_,
            **{name: event[name] for name in ("StackId", "RequestId", "LogicalResourceId")},
            "NoEcho": False,
        }
        for attempt in range(PUTS):
            try:
                reply = self._s3.urlopen("PUT", event["ResponseURL"], body=json.dumps(answer).encode())
                if reply.status < 400:
                    return
                raise ConnectionError(f"Unsuccessful HTTP response: {reply.status}")
            except Exception:
                if attempt == PUTS - 1:
                    raise
            self._world.clock.sleep(self._world.dice.uniform(0, FIRST_PAUSE * 2**attempt))
