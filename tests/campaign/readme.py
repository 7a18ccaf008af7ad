"""A handler as crhelper's README leads to, in the campaign's world.

It is crhelper, with its defaults, and a function for each kind of request. It has no queue and no ledger:
boto3's own five attempts help it, and after a death Lambda's second and third.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Self
from unittest import mock

import crhelper.utils
from botocore.exceptions import ClientError
from botocore.loaders import Loader
from botocore.retryhandler import create_retry_handler
from botocore.translate import build_retry_config
from crhelper import CfnResource

from .world import Death, World


class Boto3:
    """A client of boto3's with its default retries, decided by botocore itself, in virtual time."""

    def __init__(self, world: World, line: Any) -> None:
        self._world, self._line = world, line
        retries = Loader().load_data("_retry")
        config = build_retry_config("apigateway", retries["retry"], retries["definitions"])
        self._again = create_retry_handler(config, "apigateway")

    def __getattr__(self, operation: str) -> Any:
        return functools.partial(self._call, getattr(self._line, operation))

    def _call(self, call: Any, **named: Any) -> Any:
        again: Any = self._again  # its stub lacks botocore's arguments
        asked: dict[str, Any] = {"context": {}}
        attempt = 1
        while True:
            try:
                return call(**named)
            except ClientError as error:
                reply = SimpleNamespace(status_code=error.response["ResponseMetadata"]["HTTPStatusCode"])
                pause = again(attempt, (reply, error.response), None, request_dict=asked)
                if pause is None:
                    raise
            except Exception as error:  # noqa: BLE001  # botocore raises it again where it is final
                pause = again(attempt, None, error, request_dict=asked)
            self._world.clock.sleep(pause)
            attempt += 1


def attach(api: Any, id_: str) -> None:
    """The only thing that Create does; and Update, where the id changes."""
    key_id, _, plan_id = id_.partition(":")
    api.create_usage_plan_key(usagePlanId=plan_id, keyId=key_id, keyType="API_KEY")


def verify(api: Any, id_: str) -> None:
    """The only thing that Update does where the id stays."""
    key_id, _, plan_id = id_.partition(":")
    api.get_usage_plan_key(usagePlanId=plan_id, keyId=key_id)


def detach(api: Any, id_: str) -> None:
    """The only thing that Delete does."""
    key_id, _, plan_id = id_.partition(":")
    api.delete_usage_plan_key(usagePlanId=plan_id, keyId=key_id)


class _Helper(CfnResource):
    """crhelper, in virtual time: it sleeps on the world's clock, which its timer goes by too."""

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
        client = Boto3(world, api)

        def wanted(event: dict[str, Any]) -> str:
            return f"{event['ResourceProperties']['KeyId']}:{event['ResourceProperties']['UsagePlanId']}"

        @helper.create
        def create(event: dict[str, Any], context: object) -> str:
            attach(client, wanted(event))
            return wanted(event)

        @helper.update
        def update(event: dict[str, Any], context: object) -> str:
            if wanted(event) == event["PhysicalResourceId"]:
                verify(client, wanted(event))
            else:
                attach(client, wanted(event))
            return wanted(event)

        @helper.delete
        def delete(event: dict[str, Any], context: object) -> None:
            detach(client, event["PhysicalResourceId"])

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
            mock.patch.object(
                logging.getLogger("crhelper"), "level", logging.DEBUG
            ),  # This function hushes it.
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
