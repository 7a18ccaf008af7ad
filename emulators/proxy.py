"""A strict API Gateway in front of an emulator that accepts everything.

The proxy checks calls about usage plan keys by rules.py. It reads the emulator's present state over the
emulator's API. It hands on every other call, and every call that passes, as it came, with the caller's
signature. It corrects two things of MiniStack's: GetUsagePlans ignores `keyId`, and a deleted key stays in
its plans.
"""

import json
import re
import ssl
import time
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from . import rules, tls
from .rules import Bucket, OneAtATime, Refusal

FRAMING = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}
"""Each side makes these headers anew."""
USAGE_PLAN_KEYS = re.compile(r"/usageplans/([^/]+)/keys(?:/([^/]+))?")
API_KEY = re.compile(r"/apikeys/([^/]+)")
OPERATIONS = {
    ("POST", False): "CreateUsagePlanKey",
    ("GET", True): "GetUsagePlanKey",
    ("DELETE", True): "DeleteUsagePlanKey",
}


@dataclass(frozen=True)
class Call:
    """A call about usage plan keys, and the status of its answer."""

    operation: str
    key: str
    plan: str
    status: int


@dataclass(frozen=True)
class Answer:
    """An answer on its way back."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @classmethod
    def of(cls, refusal: Refusal) -> "Answer":
        """Write a refusal as an error of the REST JSON protocol."""
        headers = [("Content-Type", "application/json"), ("x-amzn-ErrorType", refusal.code)]
        if refusal.retry_after is not None:
            headers.append(("Retry-After", str(refusal.retry_after)))
        return cls(refusal.status, headers, json.dumps({"message": refusal.message}).encode())


class Present:
    """The emulator's present state, read with a client that may see all of it: a `rules.World`."""

    shared_stage = rules.SHARED_STAGES[0]

    def __init__(self, api: Any) -> None:
        """Take a boto3 client for the emulator's API Gateway."""
        self._api = api

    def stages(self, plan: str) -> Collection[str] | None:
        """See `rules.World`."""
        found = self._found(self._api.get_usage_plan, usagePlanId=plan)
        return found and [f"{stage['apiId']}:{stage['stage']}" for stage in found["apiStages"]]

    def has_key(self, key: str) -> bool:
        """See `rules.World`."""
        return bool(self._found(self._api.get_api_key, apiKey=key))

    def plans_of(self, key: str) -> Collection[str]:
        """See `rules.World`."""
        plans = [plan["id"] for plan in self._api.get_usage_plans(limit=500)["items"]]
        get = self._api.get_usage_plan_key
        return [plan for plan in plans if self._found(get, usagePlanId=plan, keyId=key)]

    def leave_plans(self, key: str) -> None:
        """Take a key that is deleted out of its plans, as AWS does (floci-io/floci #1883)."""
        for plan in self.plans_of(key):
            self._api.delete_usage_plan_key(usagePlanId=plan, keyId=key)

    def _found(self, get: Callable[..., Any], **what: str) -> Any:
        try:
            return get(**what)
        except self._api.exceptions.NotFoundException:
            return None


class Handler(tls.Handler):
    """One connection of a client."""

    server: "Proxy"

    def do_GET(self) -> None:
        """Serve any method alike."""
        answer = self._serve(self.body())
        self.reply(answer.status, answer.headers, answer.body)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET

    def _serve(self, body: bytes) -> Answer:
        if refusal := self.server.bucket.take():
            return Answer.of(refusal)
        url = urlsplit(self.path)
        if match := USAGE_PLAN_KEYS.fullmatch(url.path):
            plan, key = (part and unquote(part) for part in match.groups())
            if operation := OPERATIONS.get((self.command, key is not None)):
                asked = json.loads(body or b"{}")
                return self._usage_plan_key(operation, plan, key or asked.get("keyId"), asked, body)
        if self.command == "DELETE" and (match := API_KEY.fullmatch(url.path)):
            self.server.present.leave_plans(unquote(match[1]))
        answer = self._hand_on(body)
        key_id = parse_qs(url.query).get("keyId")
        if self.command == "GET" and url.path == "/usageplans" and key_id and answer.status == 200:
            return _of_key(self.server.present, answer, key_id[0])
        return answer

    def _hand_on(self, body: bytes) -> Answer:
        """Hand this request on to the emulator; return its answer."""
        server = self.server
        headers = {name: value for name, value in self.headers.items() if name.lower() not in FRAMING}
        with closing(
            HTTPSConnection("localhost", server.emulator, timeout=30, context=server.trusting)
        ) as connection:
            connection.request(self.command, self.path, body or None, headers)
            response = connection.getresponse()
            content = response.read()
        back = [(name, value) for name, value in response.getheaders() if name.lower() not in FRAMING]
        return Answer(response.status, back, content)

    def _usage_plan_key(
        self, operation: str, plan: str, key: str, asked: dict[str, Any], body: bytes
    ) -> Answer:
        world, proxy = self.server.present, self.server
        changes = operation != "GetUsagePlanKey"
        refusal = proxy.one_at_a_time.enter() if changes else None
        if refusal:
            answer = Answer.of(refusal)
        else:
            try:
                if operation == "CreateUsagePlanKey":
                    refusal = rules.create(world, plan, key, asked.get("keyType", ""))
                else:
                    refusal = rules.get(world, plan, key)
                answer = Answer.of(refusal) if refusal else self._hand_on(body)
            finally:
                time.sleep(proxy.one_at_a_time.leave() if changes else 0)
        proxy.calls.append(Call(operation, key, plan, answer.status))
        return answer


class Proxy(tls.Server):
    """The proxy, which all connections share: its URL, and its calls so far."""

    def __init__(self, api: Any, emulator: int, certificate: Path, seconds: float = 0.03) -> None:
        """Stand before the emulator at this local port; a create or a delete takes `seconds`.

        `api` is a boto3 client for the emulator that may see all plans and keys.
        """
        super().__init__(Handler)
        self.url, self.calls = self.place, list[Call]()
        self.present, self.emulator = Present(api), emulator
        self.one_at_a_time, self.bucket = OneAtATime(seconds, time.monotonic), Bucket(time.monotonic)
        self.trusting = ssl.create_default_context(cafile=certificate)


def _of_key(world: rules.World, answer: Answer, key: str) -> Answer:
    """Leave out of a page the plans that the key is not in."""
    plans = world.plans_of(key)
    page = json.loads(answer.body)
    page["item"] = [plan for plan in page["item"] if plan["id"] in plans]
    return Answer(answer.status, answer.headers, json.dumps(page).encode())
