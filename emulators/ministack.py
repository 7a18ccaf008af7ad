"""Starts MiniStack as the AWS of this machine, deploys to it, and ends it without a trace.

    with running() as aws:
        code = aws.upload(Path("handler"))
        template = packaged(Path("template.yaml"), code)
        aws.deploy("usage-plan-key", template, **aws.emulated)

MiniStack runs functions as subprocesses of its own Python. That Python finds their dependencies where this
process does, so a function's zip holds only its source. MiniStack's API Gateway accepts everything; proxy.py
stands before it and is strict. MiniStack enforces a function's role for API Gateway and DynamoDB.

No setting of the surroundings matters: MiniStack gets an environment made here, and this process drops every
AWS, proxy and certificate setting for as long as MiniStack runs.
"""

import hashlib
import io
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch
from urllib.request import urlopen
from uuid import uuid4

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, WaiterError
from samtranslator.yaml_helper import yaml_parse

from .proxy import Proxy
from .tls import self_signed

Template = dict[str, Any]
Process = subprocess.Popen[bytes]

REGION = "eu-central-1"
MENDED = str(Path(__file__).with_name("mended.py"))
CODE_BUCKET, ANSWER_BUCKET = "code", "answers"
PATIENCE = 600
"""Seconds until a wait fails. Each step takes two, but the machine may be slow."""
NEEDED = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL")
"""The variables that a Python may need to start."""
FOREIGN = re.compile(r"AWS_.*|.*_PROXY|.*CA_BUNDLE|.*SSL_CERT_(FILE|DIR)", re.IGNORECASE)
"""The variables that would lead a client elsewhere."""


class StartError(Exception):
    """An emulator did not start."""


@dataclass(frozen=True)
class Deployment:
    """How a stack operation ended."""

    status: str
    events: list[dict[str, Any]]
    """The stack's events of this operation, oldest first."""

    def reason(self, logical_id: str) -> str:
        """Say why this resource failed first; empty if it did not."""
        return next((reason for name, reason in self._failed() if name == logical_id), "")

    @property
    def failures(self) -> str:
        return "; ".join(f"{name}: {reason}" for name, reason in self._failed())

    def _failed(self) -> list[tuple[str, str]]:
        failed = [event for event in self.events if event["ResourceStatus"].endswith("_FAILED")]
        return [(event["LogicalResourceId"], event.get("ResourceStatusReason", "")) for event in failed]


class Request(NamedTuple):
    """A request of CloudFormation's and the function's answer, from the function's log."""

    kind: str
    logical_id: str
    asked_id: str | None  # None on Create
    status: str
    answered_id: str
    outcome: str  # empty on Delete, and if the request failed
    reason: str  # why it failed


class Aws:
    def __init__(self, port: int, certificate: Path, proxy: Proxy) -> None:
        self.port, self.certificate, self.proxy = port, certificate, proxy
        self.emulated = {"ApiGatewayEndpoint": proxy.url, "ResponseHost": f"localhost:{port}"}
        """With these parameters of template.yaml the function finds this AWS, and sends it keys' values."""
        self._clients: dict[tuple[str, str], Any] = {}

    def client(self, service: str, url: str = "") -> Any:
        """Make a boto3 client that may do everything, for MiniStack or another endpoint."""
        if (service, url) not in self._clients:
            self._clients[service, url] = _client(service, url or _url(self.port), self.certificate)
        return self._clients[service, url]

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def upload(self, source: Path) -> dict[str, str]:
        """Zip a folder of Python source into the code bucket; return its place as a function's `CodeUri`."""
        content = _zipped(source)
        key = f"{hashlib.sha256(content).hexdigest()}.zip"
        self._bucket(CODE_BUCKET).put_object(Bucket=CODE_BUCKET, Key=key, Body=content)
        return {"Bucket": CODE_BUCKET, "Key": key}

    def requests(self, function: str) -> list[Request]:
        """List every request that the function has answered, oldest first."""
        lines = [json.loads(line) for line in self.log(function) if line.startswith("{")]
        return [
            Request(
                *(line["RequestType"], line["LogicalResourceId"], line.get("PhysicalResourceId")),
                *(line["status"], line["AnswerId"], line["outcome"].replace(line["status"], "")),
                line["message"].removeprefix("FAILED ") if line["status"] == "FAILED" else "",
            )
            for line in lines
            if "status" in line
        ]

    def addressed(self, **event: Any) -> dict[str, Any]:
        """Address a request to S3, whose URL carries the time of issue; MiniStack's own does not."""
        s3, name = self._bucket(ANSWER_BUCKET), str(uuid4())
        url = s3.generate_presigned_url("put_object", Params={"Bucket": ANSWER_BUCKET, "Key": name})
        return {"ResponseURL": url, "RequestId": name, "ResourceType": "Custom::UsagePlanKey", **event}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        s3, place = self.client("s3"), {"Bucket": ANSWER_BUCKET, "Key": request["RequestId"]}
        often = {"Delay": 0.05, "MaxAttempts": 20 * PATIENCE}
        try:
            s3.get_waiter("object_exists").wait(**place, WaiterConfig=often)
        except WaiterError as error:
            raise TimeoutError(f"There is no answer to {request}") from error
        return dict(json.load(s3.get_object(**place)["Body"]))

    def ask(self, function: str, event: dict[str, Any]) -> dict[str, Any]:
        """Send a request to a function as CloudFormation does, asynchronously, and wait for its answer."""
        request = self.addressed(**event)
        invoke = self.client("lambda").invoke
        invoke(FunctionName=function, InvocationType="Event", Payload=json.dumps(request))
        return self.answer(request)

    def invoke(self, function: str, event: dict[str, Any]) -> Any:
        reply = self.client("lambda").invoke(FunctionName=function, Payload=json.dumps(event))
        returned = json.load(reply["Payload"])
        assert "FunctionError" not in reply, returned
        return returned

    def deploy(self, stack: str, template: Template, **parameters: str) -> Deployment:
        cloudformation, before = self.client("cloudformation"), self._events(stack)
        operation = cloudformation.update_stack if before else cloudformation.create_stack
        operation(
            StackName=stack,
            TemplateBody=json.dumps(template, default=str),
            Parameters=[{"ParameterKey": name, "ParameterValue": it} for name, it in parameters.items()],
            Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
        )
        return self._finished(stack, before)

    def delete(self, stack: str) -> Deployment:
        stack_id = self.stack_id(stack)
        before = self._events(stack_id)
        self.client("cloudformation").delete_stack(StackName=stack_id)
        return self._finished(stack_id, before)

    def stack_id(self, stack: str) -> str:
        """Find the stack's id; a later stack may have the same name."""
        return str(self._stack(stack)["StackId"])

    def outputs(self, stack: str) -> dict[str, str]:
        outputs = self._stack(stack).get("Outputs", [])
        return {output["OutputKey"]: output["OutputValue"] for output in outputs}

    def physical_ids(self, stack: str) -> dict[str, str]:
        found = self.client("cloudformation").describe_stack_resources(StackName=stack)["StackResources"]
        return {resource["LogicalResourceId"]: resource["PhysicalResourceId"] for resource in found}

    def log(self, function: str) -> list[str]:
        configuration = self.client("lambda").get_function_configuration(FunctionName=function)
        group = configuration.get("LoggingConfig", {}).get("LogGroup", f"/aws/lambda/{function}")
        pages = self.client("logs").get_paginator("filter_log_events").paginate(logGroupName=group)
        # There is no group if the function has not run yet.
        return [event["message"] for event in _all(pages, "events", "ResourceNotFoundException")]

    def _stack(self, stack: str) -> dict[str, Any]:
        return dict(self.client("cloudformation").describe_stacks(StackName=stack)["Stacks"][0])

    def _bucket(self, name: str) -> Any:
        """Make the bucket if it is missing; return a client of S3."""
        s3 = self.client("s3")
        with suppress(s3.exceptions.BucketAlreadyOwnedByYou):
            s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
        return s3

    def _events(self, stack: str) -> list[dict[str, Any]]:
        pages = self.client("cloudformation").get_paginator("describe_stack_events").paginate(StackName=stack)
        return _all(pages, "StackEvents", "ValidationError")[::-1]

    def _finished(self, stack: str, before: list[dict[str, Any]]) -> Deployment:
        """Wait for a status that is final: all but `..._IN_PROGRESS`."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            status = self._stack(stack)["StackStatus"]
            if not status.endswith("_IN_PROGRESS"):
                return Deployment(status, self._events(stack)[len(before) :])
            time.sleep(0.1)
        last = self._events(stack)[-1]
        raise TimeoutError(f"{stack} hangs at {last['ResourceStatus']} of {last['LogicalResourceId']}")


def _all(pages: Any, part: str, missing: str) -> list[dict[str, Any]]:
    """Read a list page by page; none where AWS says with this code that there is nothing to list."""
    try:
        return [each for page in pages for each in page[part]]
    except ClientError as error:
        if error.response["Error"]["Code"] != missing:
            raise
        return []


def packaged(template: Path, code: dict[str, str]) -> Template:
    """Point a template's functions to their uploaded code, as `aws cloudformation package` does."""
    parsed: Template = yaml_parse(template.read_text())
    for resource in parsed["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":
            resource["Properties"]["CodeUri"] = code
    return parsed


@contextmanager
def running() -> Iterator[Aws]:
    """Run MiniStack with the strict proxy before it, on free ports of the loopback interface."""
    with ExitStack() as stack:
        stack.enter_context(unconfigured())
        folder = TemporaryDirectory(prefix="ministack-", ignore_cleanup_errors=True)
        directory = Path(stack.enter_context(folder))
        certificate, key = directory / "certificate.pem", directory / "key.pem"
        for path, pem in zip((certificate, key), self_signed(), strict=True):
            path.write_bytes(pem)
        port = free_port()
        stack.enter_context(_process(directory, port, certificate, key))
        api = stack.enter_context(closing(_client("apigateway", _url(port), certificate)))
        proxy = stack.enter_context(Proxy(api, port, certificate))
        yield stack.enter_context(closing(Aws(port, certificate, proxy)))


def _url(port: int) -> str:
    return f"https://localhost:{port}"


def _client(service: str, url: str, certificate: Path) -> Any:
    """Make a boto3 client with credentials that MiniStack takes for the account's root."""
    config = Config(proxies={}, retries={"total_max_attempts": 1})
    if service == "s3":
        config = config.merge(Config(s3={"addressing_style": "path"}, signature_version="s3v4"))
    make: Any = boto3.Session("test", "test", region_name=REGION).client  # its stubs want a literal
    return make(service, endpoint_url=url, verify=str(certificate), config=config)


@contextmanager
def unconfigured() -> Iterator[None]:
    """Hide AWS, proxy and certificate settings in the environment or a home directory from this process."""
    with patch.dict(os.environ):
        for name in [name for name in os.environ if FOREIGN.fullmatch(name)]:
            del os.environ[name]
        os.environ |= dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
        os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
        yield


@contextmanager
def _process(directory: Path, port: int, certificate: Path, key: Path) -> Iterator[None]:
    """Run MiniStack and its subprocesses as one process group."""
    environment = {name: os.environ[name] for name in NEEDED if name in os.environ} | {
        "HOME": str(directory),
        "TMPDIR": str(directory),
        "STATE_DIR": str(directory / "state"),
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "MINISTACK_HOST": "localhost",
        "MINISTACK_REGION": REGION,
        "USE_SSL": "1",
        "MINISTACK_SSL_CERT": str(certificate),
        "MINISTACK_SSL_KEY": str(key),
        "LAMBDA_EXECUTOR": "local",
        "LAMBDA_ASYNC_RETRY_BASE_SECONDS": "30",
        "AUTH": "true",
        # Otherwise it listens for MQTT on all interfaces, and removes containers of the machine's Docker:
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "DOCKER_HOST": f"unix://{directory}/no-docker",
        # The functions inherit this environment and need these:
        "SSL_CERT_FILE": str(certificate),
        "AWS_CA_BUNDLE": str(certificate),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    # Not `-m ministack`, which also takes port 443 if it may. With -P, `import ministack` does not find this
    # file.
    server = [sys.executable, "-P", MENDED, "--workers", "0", "--bind", f"127.0.0.1:{port}"]
    server += ["ministack.app:app", "--config", "python:ministack.core.hypercorn_conf"]
    tls, health = ssl.create_default_context(cafile=certificate), f"{_url(port)}/_ministack/health"

    def ask() -> None:
        urlopen(health, timeout=5, context=tls).close()  # noqa: S310  # it is https

    with started(server, directory, environment, directory / "ministack.log", ask):
        yield


@contextmanager
def started(
    command: list[Any], folder: Path, environment: Mapping[str, str], output: Path, ask: Callable[[], object]
) -> Iterator[Process]:
    """Run an emulator as a process group, from the moment at which it answers."""
    with output.open("wb") as sink:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline, answers = time.monotonic() + PATIENCE, False
        while not answers:
            if process.poll() is not None or time.monotonic() > deadline:
                said = output.read_text(errors="replace")[-2000:]
                raise StartError(f"{Path(command[0]).name} did not start:\n{said}")
            with suppress(OSError, HTTPException):
                ask()
                answers = True
            time.sleep(0.01)
        yield process
    finally:  # At once: it has nothing to save. Lambda's runtime is in a process group of its own.
        for pid in children(process):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def children(process: Process) -> list[int]:
    lists = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(pid) for listed in lists for pid in listed.read_text().split()]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _zipped(source: Path) -> bytes:
    """Zip the source; the same source gives the same bytes, whatever its times."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(source.rglob("*.py")):
            archive.writestr(zipfile.ZipInfo(path.relative_to(source).as_posix()), path.read_bytes())
    return buffer.getvalue()
