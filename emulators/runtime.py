"""Runs the built artifact under Lambda's own runtime, without Docker.

The runtime is awslambdaric; RIE, the emulator inside sam's images, plays Lambda. `make test` puts both into
.venv/runtime. Both listen only on the loopback interface; by default RIE would listen on all interfaces.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import md5
from http.client import HTTPConnection
from pathlib import Path
from threading import Event, Lock
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from botocore import xform_name
from botocore.exceptions import ClientError

from .dynamodb import DynamoDb
from .fake import ApiGateway
from .ministack import StartError, children, free_port, started
from .tls import Handler, Server

ROOT = Path(__file__).parents[1]
#: awslambdaric, and RIE's executable.
RUNTIME = ROOT / ".venv" / "runtime"
RIE = RUNTIME / "aws-lambda-rie"
HANDLER = "usage_plan_key.app.handler"
#: Starts awslambdaric as Lambda does: the artifact comes first on the path, and no package of this machine.
START = "import sys; sys.path[:0] = sys.argv[2:]; from awslambdaric.__main__ import main; main(sys.argv)"


@dataclass
class Function:
    """A function under the runtime. Its first invocation starts it and imports its module."""

    process: subprocess.Popen[bytes]
    port: int
    output: Path

    def invoke(self, event: Mapping[str, Any]) -> Any:
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
        (pid,) = children(self.process)
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
    """Run a handler of the artifact, with these variables besides Lambda's, and a time-out in seconds.

    The interpreter `python` has its awslambdaric in the folder `runtime`, and runs the code `start`.
    """
    if not RIE.is_file():
        raise StartError(f"{RIE} is missing: run `make test`, on Linux (RIE is made for no other system)")
    port, inner = free_port(), free_port()
    emulator = [RIE, "--log-level", "info", "--runtime-api-address", f"127.0.0.1:{inner}"]
    emulator += ["--runtime-interface-emulator-address", f"127.0.0.1:{port}"]
    given = {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "AWS_LAMBDA_FUNCTION_NAME": "usage-plan-key",
        "AWS_LAMBDA_FUNCTION_TIMEOUT": str(timeout),
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
        **dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION"), "eu-central-1"),
        **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "testing"),
        **environment,
    }
    command = [*emulator, python, "-I", "-S", "-c", start, handler, artifact, runtime]

    def ask() -> None:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        output = Path(folder, "output")
        with started(command, artifact, given, output, ask) as process:
            yield Function(process, port, output)


class Api(Server):
    """emulators/fake.py and emulators/dynamodb.py behind HTTP, and a queue that takes everything."""

    def __init__(self, gateway: ApiGateway, host: str = "127.0.0.1", certificate: Path | None = None) -> None:
        """Bind a free port of one address; with a certificate (after its key) use TLS."""
        super().__init__(_Handler, host, certificate)
        self.gateway, self.url, self.table, self.queued = gateway, self.place, DynamoDb(), list[str]()
        self.hangs = False
        """Whether it answers byte after byte, for ever, so that no socket times out."""
        self.takes = 0.0
        """Seconds that each call to API Gateway takes; the other calls take none."""
        self.lock, self.stopped = Lock(), Event()

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        super().__exit__()


class _Handler(Handler):
    server: Api

    def do_GET(self) -> None:
        api, body = self.server, self.body()
        if api.hangs:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
            while not api.stopped.wait(0.5):
                self.wfile.write(b".")
                self.wfile.flush()
            self.close_connection = True
            return
        with api.lock:
            status, answered = self._serve(json.loads(body) if body else {})
        headers = [("content-type", "application/json")]
        if status >= 300:
            headers.append(("x-amzn-errortype", answered["code"]))
        self.reply(status, headers, json.dumps(answered).encode())

    do_POST = do_DELETE = do_GET

    def _serve(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        api, (_, _, operation) = self.server, self.headers.get("x-amz-target", "").partition(".")
        try:
            if operation.startswith("Transact"):
                return 200, getattr(api.table, xform_name(operation))(**asked)
            if operation == "SendMessage":
                api.queued.append(asked["MessageBody"])
                digest = md5(asked["MessageBody"].encode(), usedforsecurity=False).hexdigest()
                return 200, {"MessageId": str(len(api.queued)), "MD5OfMessageBody": digest}
            time.sleep(api.takes)
            answered = self._ask_gateway(api.gateway, asked)
        except ClientError as error:
            said, status = error.response["Error"], error.response.get("ResponseMetadata", {})
            told = {"code": said["Code"], "message": said.get("Message", "")}
            return status.get("HTTPStatusCode", 400), told
        return answered.pop("ResponseMetadata")["HTTPStatusCode"], answered

    def _ask_gateway(self, gateway: ApiGateway, asked: dict[str, Any]) -> dict[str, Any]:
        url = urlsplit(self.path)
        match self.command, [unquote(part) for part in url.path.split("/")[2:]]:
            case "POST", [plan, "keys"]:
                return gateway.create_usage_plan_key(usagePlanId=plan, **asked)
            case "GET", [plan, "keys", key]:
                return gateway.get_usage_plan_key(usagePlanId=plan, keyId=key)
            case "DELETE", [plan, "keys", key]:
                return gateway.delete_usage_plan_key(usagePlanId=plan, keyId=key)
            case "GET", [plan]:
                return gateway.get_usage_plan(usagePlanId=plan)
        query = parse_qs(url.query)
        found = gateway.get_usage_plans(keyId=query["keyId"][0], limit=int(query["limit"][0]))
        return {**found, "item": found.pop("items")}  # The wire format has this name.
