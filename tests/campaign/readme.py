"""A handler as crhelper's README leads to, in the campaign's world: crhelper, with its defaults, and a function for each request.

It has no queue and no ledger: Lambda's own second and third attempt are all that helps it after a death.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Self
from unittest import mock

import crhelper.utils
from crhelper import CfnResource

from .world import Death, World


class _Helper(CfnResource):
    """crhelper, in virtual time: it sleeps on the world's clock, and its timer strikes when the world says so."""

    clock: Any = None

    def _wait_for_cwlogs(self, sleep: Any = None) -> None:
        super()._wait_for_cwlogs(sleep=self.clock.sleep)  # type: ignore[misc]  # not in its stub

    def _set_timeout(self) -> None:
        """See `Readme.on_event`."""

    def strike(self) -> None:
        """Crhelper's timer strikes."""
        self._timeout()  # type: ignore[attr-defined]  # not in its stub


class Readme:
    """Takes the place of the function."""

    def __init__(self, world: World, api: Any, s3: Any) -> None:
        self._world, self._s3 = world, s3
        with mock.patch.dict("os.environ", AWS_SAM_LOCAL="true"):  # Else it makes clients, for polling.
            self._helper = helper = _Helper(log_level="DEBUG", boto_level="CRITICAL")
        helper.clock = world.clock

        def ids(event: dict[str, Any]) -> tuple[str, str]:
            return event["ResourceProperties"]["UsagePlanId"], event["ResourceProperties"]["KeyId"]

        @helper.create
        def create(event: dict[str, Any], context: object) -> str:
            plan_id, key_id = ids(event)
            api.create_usage_plan_key(usagePlanId=plan_id, keyId=key_id, keyType="API_KEY")
            return f"{key_id}:{plan_id}"

        @helper.update
        def update(event: dict[str, Any], context: object) -> Any:
            plan_id, key_id = ids(event)
            if f"{key_id}:{plan_id}" == event["PhysicalResourceId"]:
                api.get_usage_plan_key(usagePlanId=plan_id, keyId=key_id)
                return f"{key_id}:{plan_id}"
            return create(event, context)

        @helper.delete
        def delete(event: dict[str, Any], context: object) -> None:
            key_id, _, plan_id = event["PhysicalResourceId"].partition(":")
            api.delete_usage_plan_key(usagePlanId=plan_id, keyId=key_id)

    def on_event(self, event: dict[str, Any], context: Any) -> None:
        """Serve a request."""
        with self._virtual():
            try:
                self._helper(event, context)
            except Death:
                if self._world.clock.now < self._world.ends:
                    raise
                # Half a second before its end, crhelper's timer has answered.
                self._world.ends += 60
                self._helper.strike()
                raise

    @contextlib.contextmanager
    def _virtual(self) -> Iterator[None]:
        def sleep(seconds: float) -> None:
            self._world.clock.sleep(seconds)
            if self._world.clock.now >= self._world.ends:
                raise Death

        connection = lambda host, context: _Connection(self._s3)  # noqa: E731  # a class's stand-in
        with (
            mock.patch.object(crhelper.utils, "time", SimpleNamespace(sleep=sleep)),
            mock.patch.object(crhelper.utils, "HTTPSConnection", connection),
            mock.patch("ssl.create_default_context"),
            mock.patch.object(logging.getLogger("crhelper"), "level", logging.DEBUG),  # This function hushes it.
        ):
            yield


class _Connection:
    """http.client's."""

    def __init__(self, s3: Any) -> None:
        self._s3 = s3

    def request(self, method: str, url: str, body: str, headers: Any) -> None:
        self._reply = self._s3.urlopen(method, url, body=body.encode())

    def getresponse(self) -> Self:
        return self

    @property
    def reason(self) -> int:
        return int(self._reply.status)
