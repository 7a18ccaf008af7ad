"""A strict API Gateway in front of an emulator that accepts everything.

The proxy checks calls about usage plan keys by rules.py. It reads the emulator's present state over the
emulator's API. It hands on every other call, and every call that passes, as it came, with the caller's
signature. It corrects two things of MiniStack's: GetUsagePlans ignores `keyId`, and a deleted key stays in
its plans.
"""

import json
import re
import ssl
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from . import rules
from .rules import Bucket, OneAtATime, Refusal

FRAMING = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect", "date", "server"}
"""Each side makes these headers anew."""
USAGE_PLAN_KEYS = re.compile(r"/usageplans/([^/]+)/keys(?:/([^/]+))?")
API_KEY = re.compile(r"/apikeys/([^/]+)")
OPERATIONS = {
    ("POST", False): "CreateUsagePlanKey",
    ("GET", True): "GetUsagePlanKey",
    ("DELETE", True): "DeleteUsagePlanKey",
}
LOST = Refusal(0, "", "the connection is closed instead of an answer")


@dataclass(frozen=True)
class Call:
    """A call about usage plan keys, and the status of its answer."""

    operation: str
    key: str
    plan: str
    status: int


@dataclass
class Proxy:
    """A running proxy: its URL, its calls so far, and the faults to come."""

    url: str
    one_at_a_time: OneAtATime
    calls: list[Call] = field(default_factory=list)
    _faults: list[tuple[str, Refusal]] = field(default_factory=list)

    def fail_next(self, operation: str, refusal: Refusal, times: int = 1) -> None:
        """Refuse the next calls of this operation, whatever the rules say."""
        self._faults += [(operation, refusal)] * times

    def lose_next(self, operation: str) -> None:
        """Carry out the next call of this operation and hang up without an answer."""
        self._faults.append((operation, LOST))

    def take_fault(self, operation: str) -> Refusal | None:
        """Give out the next fault that a test has ordered for this operation."""
        for fault in self._faults:
            if fault[0] == operation:
                self._faults.remove(fault)
                return fault[1]
        return None


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
        try:
            found = self._api.get_usage_plan(usagePlanId=plan)
        except self._api.exceptions.NotFoundException:
            return None
        return [f"{stage['apiId']}:{stage['stage']}" for stage in found["apiStages"]]

    def has_key(self, key: str) -> bool:
        """See `rules.World`."""
        return self._exists(self._api.get_api_key, apiKey=key)

    def plans_of(self, key: str) -> Collection[str]:
        """See `rules.World`."""
        plans = [plan["id"] for plan in self._api.get_usage_plans(limit=500)["items"]]
        return [
            plan for plan in plans if self._exists(self._api.get_usage_plan_key, usagePlanId=plan, keyId=key)
        ]

    def leave_plans(self, key: str) -> None:
        """Take a key that is deleted out of its plans, as AWS does (floci-io/floci #1883)."""
        for plan in self.plans_of(key):
            self._api.delete_usage_plan_key(usagePlanId=plan, keyId=key)

    def _exists(self, get: Callable[..., object], **what: str) -> bool:
        try:
            get(**what)
        except self._api.exceptions.NotFoundException:
            return False
        return True


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # Header and body leave together, so that no delayed ACK comes between them.
    server: "Server"

    def do_GET(self) -> None:
        """Serve any method alike."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = self._serve(body)
        if answer is None:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing on the console: `Proxy.calls` is the record."""

    def _serve(self, body: bytes) -> Answer | None:
        if refusal := self.server.bucket.take():
            return Answer.of(refusal)
        url = urlsplit(self.path)
        if match := USAGE_PLAN_KEYS.fullmatch(url.path):
            plan, key = (part and unquote(part) for part in match.groups())
            if operation := OPERATIONS.get((self.command, key is not None)):
                return self._usage_plan_key(operation, plan, key or _key_id(body), body)
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
            HTTPSConnection("localhost", server.emulator, timeout=30, context=server.tls)
        ) as connection:
            connection.request(self.command, self.path, body or None, headers)
            response = connection.getresponse()
            content = response.read()
        back = [(name, value) for name, value in response.getheaders() if name.lower() not in FRAMING]
        return Answer(response.status, back, content)

    def _usage_plan_key(self, operation: str, plan: str, key: str, body: bytes) -> Answer | None:
        proxy, one_at_a_time = self.server.proxy, self.server.proxy.one_at_a_time
        fault = proxy.take_fault(operation)
        if fault and fault is not LOST:
            answer = Answer.of(fault)
        elif operation == "GetUsagePlanKey":
            answer = self._checked(operation, plan, key, body)
        elif busy := one_at_a_time.enter():
            answer = Answer.of(busy)
        else:
            try:
                answer = self._checked(operation, plan, key, body)
            finally:
                time.sleep(one_at_a_time.leave())
        proxy.calls.append(Call(operation, key, plan, answer.status))
        return None if fault is LOST else answer

    def _checked(self, operation: str, plan: str, key: str, body: bytes) -> Answer:
        refusal = _refusal(self.server.present, operation, plan, key, body)
        return Answer.of(refusal) if refusal else self._hand_on(body)


class Server(ThreadingHTTPServer):
    """The proxy's server, which all connections share."""

    daemon_threads = True
    stopping = False
    request_queue_size = 128

    def __init__(
        self, api: Any, emulator: int, certificate: Path, one_at_a_time: OneAtATime, bucket: Bucket
    ) -> None:
        """Bind a free port of the loopback interface."""
        super().__init__(("127.0.0.1", 0), Handler)
        self.present, self.emulator, self.bucket = Present(api), emulator, bucket
        self.tls = ssl.create_default_context(cafile=certificate)
        self.proxy = Proxy(f"http://127.0.0.1:{self.server_port}", one_at_a_time)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that hang up in mid-call, and every error after the proxy has stopped."""
        if not (self.stopping or isinstance(sys.exception(), OSError)):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def strict(api: Any, port: int, certificate: Path, seconds: float = 0.03) -> Iterator[Proxy]:
    """Run a strict proxy before the emulator at this local port; a create or a delete takes `seconds`.

    `api` is a boto3 client for the emulator that may see all plans and keys.
    """
    clock = time.monotonic
    with Server(api, port, certificate, OneAtATime(seconds, clock), Bucket(clock)) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.proxy
        finally:
            server.stopping = True
            server.shutdown()
            thread.join()


def _key_id(body: bytes) -> str:
    return str(json.loads(body or b"{}").get("keyId", ""))


def _refusal(world: rules.World, operation: str, plan: str, key: str, body: bytes) -> Refusal | None:
    match operation:
        case "CreateUsagePlanKey":
            return rules.create(world, plan, key, str(json.loads(body).get("keyType")))
        case "GetUsagePlanKey":
            return rules.get(world, plan, key)
        case "DeleteUsagePlanKey":
            return rules.delete(world, plan, key)
    return None


def _of_key(world: rules.World, answer: Answer, key: str) -> Answer:
    """Leave out of a page the plans that the key is not in."""
    plans = world.plans_of(key)
    page = json.loads(answer.body)
    page["item"] = [plan for plan in page["item"] if plan["id"] in plans]
    return Answer(answer.status, answer.headers, json.dumps(page).encode())
