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
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPSConnection
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple
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


class Call(NamedTuple):
    """A call about usage plan keys, and the status of its answer."""

    operation: str
    key: str
    plan: str
    status: int


class Answer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Handler(tls.Handler):
    server: "Proxy"

    def do_GET(self) -> None:
        self.reply(*self._serve(self.body()))

    do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET

    def _serve(self, body: bytes) -> Answer:
        if refusal := self.server.bucket.take():
            return _refused(refusal)
        url = urlsplit(self.path)
        if match := USAGE_PLAN_KEYS.fullmatch(url.path):
            plan, key = (part and unquote(part) for part in match.groups())
            if operation := OPERATIONS.get((self.command, key is not None)):
                asked = json.loads(body or b"{}")
                return self._usage_plan_key(operation, plan, key or asked.get("keyId"), asked, body)
        if self.command == "DELETE" and (match := API_KEY.fullmatch(url.path)):
            self.server.leave_plans(unquote(match[1]))
        answer = self._hand_on(body)
        key_id = parse_qs(url.query).get("keyId")
        if self.command == "GET" and url.path == "/usageplans" and key_id and answer.status == 200:
            plans = self.server.present("", key_id[0]).plans or ()
            kept = [plan for plan in json.loads(answer.body)["item"] if plan["id"] in plans]
            return answer._replace(body=json.dumps(json.loads(answer.body) | {"item": kept}).encode())
        return answer

    def _hand_on(self, body: bytes) -> Answer:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in FRAMING}
        at, tls_ = self.server.emulator, self.server.trusting
        with closing(HTTPSConnection("localhost", at, timeout=300, context=tls_)) as connection:
            connection.request(self.command, self.path, body or None, headers)
            response = connection.getresponse()
            content = response.read()
        back = [(name, value) for name, value in response.getheaders() if name.lower() not in FRAMING]
        return Answer(response.status, back, content)

    def _usage_plan_key(
        self, operation: str, plan: str, key: str, asked: dict[str, Any], body: bytes
    ) -> Answer:
        proxy = self.server
        gate = None if operation == "GetUsagePlanKey" else proxy.one_at_a_time
        refusal = gate.enter() if gate else None
        if refusal is None:
            try:
                present = proxy.present(plan, key, all_plans=operation == "CreateUsagePlanKey")
                if operation == "CreateUsagePlanKey":
                    refusal = rules.create(present, plan, asked.get("keyType", ""), proxy.shared_stage)
                else:
                    refusal = rules.get(present, plan)
                answer = _refused(refusal) if refusal else self._hand_on(body)
            finally:
                time.sleep(gate.leave() if gate else 0)
        else:
            answer = _refused(refusal)
        proxy.calls.append(Call(operation, key, plan, answer.status))
        if (held := proxy.held) and held[:2] in ((operation, plan), (operation, "")):
            held[2].wait()
        return answer


class Proxy(tls.Server):
    """The proxy, which all connections share: its URL, and its calls so far."""

    shared_stage = rules.SHARED_STAGES[0]

    def __init__(self, api: Any, emulator: int, certificate: Path, seconds: float = 0.03) -> None:
        """Stand before the emulator at this local port; a create or a delete takes `seconds`.

        `api` is a boto3 client for the emulator that may see all plans and keys.
        """
        super().__init__(Handler)
        self.url, self.calls = self.place, list[Call]()
        self.emulator, self._api = emulator, api
        self.one_at_a_time, self.bucket = OneAtATime(seconds, time.monotonic), Bucket(time.monotonic)
        self.trusting = ssl.create_default_context(cafile=certificate)
        self.held: tuple[str, str, Event] | None = None

    @contextmanager
    def holding(self, operation: str, plan: str = "") -> Iterator[None]:
        """Carry out each such call, about this plan or any, and hold back the reply until the end."""
        self.held = operation, plan, Event()
        try:
            yield
        finally:
            self.held[2].set()
            self.held = None

    def present(self, plan: str, key: str, *, all_plans: bool = True) -> rules.Present:
        """Read the emulator's present state: is the key in all the plans, or in this one?"""
        stages = {
            each["id"]: [f"{stage['apiId']}:{stage['stage']}" for stage in each["apiStages"]]
            for each in self._api.get_usage_plans(limit=500)["items"]
        }
        get = self._api.get_usage_plan_key
        asked = stages if all_plans else stages.keys() & {plan}
        of_key = [id_ for id_ in asked if self._has(get, usagePlanId=id_, keyId=key)]
        known = self._has(self._api.get_api_key, apiKey=key)
        return rules.Present(stages.get(plan), {id_: stages[id_] for id_ in of_key} if known else None)

    def leave_plans(self, key: str) -> None:
        """Take a key that is deleted out of its plans, as AWS does (floci-io/floci #1883)."""
        for plan in self.present("", key).plans or ():
            self._api.delete_usage_plan_key(usagePlanId=plan, keyId=key)

    def _has(self, get: Callable[..., object], **what: str) -> bool:
        try:
            return bool(get(**what))
        except self._api.exceptions.NotFoundException:
            return False


def _refused(refusal: Refusal) -> Answer:
    headers = [("Content-Type", "application/json"), ("x-amzn-ErrorType", refusal.code)]
    if refusal.retry_after is not None:
        headers.append(("Retry-After", str(refusal.retry_after)))
    return Answer(refusal.status, headers, json.dumps({"message": refusal.message}).encode())
