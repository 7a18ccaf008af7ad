"""Runs the built artifact under Lambda's own runtime, without Docker.

The runtime is awslambdaric; RIE, the emulator inside sam's images, plays Lambda. `make test` puts both into
.venv/runtime. Both listen only on the loopback interface; by default RIE would listen on all interfaces.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from hashlib import md5
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from botocore.exceptions import ClientError

from .fake import ApiGateway
from .ministack import free_port
from .tls import Server

ROOT = Path(__file__).parents[1]
#: awslambdaric, and RIE's executable.
RUNTIME = ROOT / ".venv" / "runtime"
RIE = RUNTIME / "aws-lambda-rie"
HANDLER = "usage_plan_key.app.handler"
#: Starts awslambdaric as Lambda does: the artifact comes first on the path, and no package of this machine.
START = "import sys; sys.path[:0] = sys.argv[2:]; from awslambdaric.__main__ import main; main(sys.argv)"
#: Seconds until the emulator has to listen.
PATIENCE = 10.0


class StartError(Exception):
    """Raised when the emulator does not start."""


@dataclass
class Function:
    """A function under the runtime. Its first invocation starts it and imports its module."""

    process: subprocess.Popen[bytes]
    port: int
    output: Path

    def invoke(self, event: Mapping[str, Any]) -> Any:
        """Invoke it; return its result, or Lambda's account of its error."""
        path = "/2015-03-31/functions/function/invocations"
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
            connection.request("POST", path, json.dumps(event))
            answered = connection.getresponse().read().decode()
        try:
            return json.loads(answered)
        except ValueError:
            return answered  # Its time was up.

    @property
    def log(self) -> str:
        """Read the output of the function and the emulator."""
        return self.output.read_text()

    def milliseconds(self, phase: str, count: int = 1) -> float:
        """Read the duration of the n-th `INIT REPORT` or `INVOKE RTDONE`, which follows the answer."""
        line = re.compile(rf"{phase}\([^)]*?(?:durationMs|duration): ([\d.]+)")
        ends = time.monotonic() + 2
        while len(found := line.findall(self.log)) < count and time.monotonic() < ends:
            time.sleep(0.002)
        return float(found[count - 1])

    @property
    def pid(self) -> int:
        """Find the Python process, which is the emulator's child."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        (pid,) = (int(pid) for listed in children for pid in listed.read_text().split())
        return pid

    @property
    def peak_memory(self) -> int:
        """Read the most memory that it ever had, in kilobytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])


@contextmanager
def function(
    artifact: Path,
    environment: Mapping[str, str],
    *,
    handler: str = HANDLER,
    timeout: int = 60,
    python: str = sys.executable,
    runtime: Path = RUNTIME,
    start: str = START,
) -> Iterator[Function]:
    """Run a function.

    Args:
        artifact: The folder that Lambda has as /var/task.
        environment: Variables besides those that Lambda sets.
        handler: As in template.yaml.
        timeout: The function's time-out, in seconds.
        python: Its interpreter.
        runtime: The folder of awslambdaric for that interpreter.
        start: The code that the interpreter runs.
    """
    if not RIE.is_file():
        raise StartError(
            f"{RIE} is missing: run `make test`, on Linux (Lambda's emulator is made for no other system)"
        )
    ports = [free_port(), free_port()]
    rie, api = (f"127.0.0.1:{port}" for port in ports)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        output = Path(folder, "output")
        with output.open("wb") as sink:
            process = subprocess.Popen(
                [
                    *(
                        RIE,
                        "--log-level",
                        "info",
                        "--runtime-interface-emulator-address",
                        rie,
                        "--runtime-api-address",
                        api,
                    ),
                    *(python, "-I", "-S", "-c", start, handler, artifact, runtime),
                ],
                cwd=artifact,
                env={
                    "PATH": os.environ["PATH"],
                    "LANG": "C.UTF-8",
                    "AWS_LAMBDA_FUNCTION_NAME": "usage-plan-key",
                    "AWS_LAMBDA_FUNCTION_TIMEOUT": str(timeout),
                    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
                    "AWS_REGION": "eu-central-1",
                    "AWS_DEFAULT_REGION": "eu-central-1",
                    "AWS_ACCESS_KEY_ID": "testing",
                    "AWS_SECRET_ACCESS_KEY": "testing",
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            running = Function(process, ports[0], output)
            _wait(running)
            yield running
        finally:
            _stop(process)


def _wait(running: Function) -> None:
    ends = time.monotonic() + PATIENCE
    while running.process.poll() is None and time.monotonic() < ends:
        with suppress(OSError), socket.create_connection(("127.0.0.1", running.port), timeout=1):
            return
        time.sleep(0.005)
    raise StartError(f"Lambda's emulator did not start:\n{running.log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Kill it and its children at once; the function is in a process group of its own."""
    children = [
        int(pid)
        for listed in Path(f"/proc/{process.pid}/task").glob("*/children")
        for pid in listed.read_text().split()
    ]
    for pid in [*children, process.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


class Api:
    """The strict API Gateway of emulators/fake.py behind HTTP; a table and queue that take everything."""

    def __init__(self, gateway: ApiGateway, host: str = "127.0.0.1", certificate: Path | None = None) -> None:
        """Bind a free port of one address; with a certificate (after its key) use TLS."""
        self.gateway = gateway
        self.hangs = False
        """Whether it answers byte after byte, for ever, so that no socket times out."""
        self.takes = 0.0
        """Seconds that each call to API Gateway takes; the other calls take none."""
        self.lock = Lock()
        self.table: dict[str, Any] = {}
        self.queued: list[str] = []
        self.stopped = Event()
        self._server = _Server((host, 0), self, certificate)
        self.url = f"{'https' if certificate else 'http'}://{host}:{self._server.server_port}"

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(Server):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], api: Api, certificate: Path | None) -> None:
        super().__init__(address, _Handler, certificate)
        self.api = api


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # Header and body leave together: no delayed ACK in between.

    def do_GET(self) -> None:
        """Serve any method alike."""
        api = self.server.api
        body = self.rfile.read(int(self.headers["content-length"] or 0))
        if api.hangs:
            self._trickle()
            return
        with api.lock:
            status, answered = self._serve(json.loads(body) if body else {})
        content = json.dumps(answered).encode()
        self.send_response_only(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        if status >= 300:
            self.send_header("x-amzn-errortype", answered["code"])
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_DELETE = do_GET

    def _trickle(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
        while not self.server.api.stopped.wait(0.5):
            self.wfile.write(b".")
            self.wfile.flush()
        self.close_connection = True

    def _serve(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        api, (_, _, operation) = self.server.api, self.headers.get("x-amz-target", "").partition(".")
        match operation:
            case "TransactGetItems":
                pages = [api.table.get(item["Get"]["Key"]["pk"]["S"]) for item in asked["TransactItems"]]
                return 200, {"Responses": [{"Item": page} if page else {} for page in pages]}
            case "TransactWriteItems":
                for item in asked["TransactItems"]:
                    if "Put" in item:
                        api.table[item["Put"]["Item"]["pk"]["S"]] = item["Put"]["Item"]
                    elif "Delete" in item:
                        api.table.pop(item["Delete"]["Key"]["pk"]["S"], None)
                return 200, {}
            case "SendMessage":
                api.queued.append(asked["MessageBody"])
                digest = md5(asked["MessageBody"].encode(), usedforsecurity=False).hexdigest()
                return 200, {"MessageId": str(len(api.queued)), "MD5OfMessageBody": digest}
        time.sleep(api.takes)
        try:
            answered = self._ask_gateway(api.gateway, asked)
        except ClientError as error:
            message = error.response["Error"]["Message"]
            return error.response["ResponseMetadata"]["HTTPStatusCode"], {
                "code": error.response["Error"]["Code"],
                "message": message,
            }
        return answered.pop("ResponseMetadata")["HTTPStatusCode"], answered

    def _ask_gateway(self, gateway: ApiGateway, asked: dict[str, Any]) -> dict[str, Any]:
        url = urlsplit(self.path)
        match self.command, [unquote(part) for part in url.path.split("/")[2:]]:
            case "POST", [plan, "keys"]:
                return gateway.create_usage_plan_key(
                    usagePlanId=plan, keyId=asked["keyId"], keyType=asked["keyType"]
                )
            case "GET", [plan, "keys", key]:
                return gateway.get_usage_plan_key(usagePlanId=plan, keyId=key)
            case "DELETE", [plan, "keys", key]:
                return gateway.delete_usage_plan_key(usagePlanId=plan, keyId=key)
            case "GET", [plan]:
                return gateway.get_usage_plan(usagePlanId=plan)
        query = parse_qs(url.query)
        found = gateway.get_usage_plans(keyId=query["keyId"][0], limit=int(query["limit"][0]))
        return {**found, "item": found.pop("items")}  # The wire format has this name.

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its base's name for it
        """Say nothing."""
