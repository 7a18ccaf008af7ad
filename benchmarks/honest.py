"""Checks virtual time: runs the real handler in processes, in real time, against the same rules.

Each process is a function that CloudFormation has invoked. It has no queue and no table, so it serves its
request at once, with `app.handler`, boto3 and HTTP, urllib3 and TLS. Only the machine is another one than in
virtual time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from statistics import mean
from threading import Thread
from typing import Any, Final

from botocore.exceptions import ClientError

from emulators.fake import ApiGateway
from emulators.rules import Bucket, OneAtATime
from emulators.sink import Sink

from .model import SERIAL_CALL, Account
from .waves import SPREAD, furnish, name, wave

#: The number of virtual runs to compare the real one with.
RUNS: Final = 20
CREATE: Final = {
    "RequestType": "Create",
    "StackId": "arn:aws:cloudformation:eu-central-1:111111111111:stack/honest/1",
    "ResourceType": "Custom::UsagePlanKey",
}


class Strict(ApiGateway):
    """emulators/fake.py's API Gateway, whose calls take their time in the caller's thread."""

    def __init__(self) -> None:
        super().__init__(OneAtATime(SERIAL_CALL, time.monotonic), Bucket(time.monotonic))
        self.attached_at: list[float] = []

    def _leave(self) -> None:
        if self.one_at_a_time:
            self.attached_at.append(time.time())
            time.sleep(self.one_at_a_time.leave())


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        """CreateUsagePlanKey; the waves make no other call."""
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        plan = self.path.split("/")[2]
        try:
            reply = self.server.api.create_usage_plan_key(
                usagePlanId=plan, keyId=asked["keyId"], keyType=asked["keyType"]
            )
        except ClientError as error:
            self._reply(dict(error.response), code=error.response["Error"]["Code"])
        else:
            self._reply(reply)

    def _reply(self, reply: dict[str, Any], code: str | None = None) -> None:
        about = reply.pop("ResponseMetadata")
        body = json.dumps(reply).encode()
        self.send_response_only(about["HTTPStatusCode"])
        for header, value in about["HTTPHeaders"].items():
            self.send_header(header, value)
        if code:
            self.send_header("x-amzn-errortype", code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self, api: ApiGateway) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.api = api


@contextmanager
def _served(api: ApiGateway) -> Iterator[str]:
    server = _Server(api)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Context:
    """Lambda's context, of a function that may run for 15 minutes."""

    aws_request_id = "honest"
    function_name = "honest"
    invoked_function_arn = "arn:aws:lambda:eu-central-1:111111111111:function:honest"
    log_group_name = "/aws/lambda/honest"
    log_stream_name = "honest"

    def __init__(self) -> None:
        self._ends = time.time() + 900

    def get_remaining_time_in_millis(self) -> int:
        return int((self._ends - time.time()) * 1000)


def worker() -> None:
    """One function: get ready, say so, wait for the event, serve it."""
    from usage_plan_key import app  # noqa: PLC0415  # only in the function's process

    print("ready", flush=True)
    at, event = json.loads(sys.stdin.readline())
    time.sleep(max(0.0, at - time.time()))
    app.handler(event, _Context())


def most(keys: int) -> int:
    """Nine of ten: the time of the last key is a matter of luck and tells less."""
    return keys * 9 // 10


def real(keys: int, seed: int) -> tuple[int, float, float, float]:
    """Run a wave; return successes, calls for each key, and when nine of ten and all were attached."""
    dice = Random(seed)
    api = Strict()
    furnish(api, keys)
    with _served(api) as url, Sink() as sink:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "AWS_ENDPOINT_URL_API_GATEWAY": url,
            "AWS_REGION": "eu-central-1",
            "AWS_DEFAULT_REGION": "eu-central-1",
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_EC2_METADATA_DISABLED": "true",
            "POWERTOOLS_LOG_LEVEL": "CRITICAL",
            "SSL_CERT_FILE": str(sink.certificate),
            "NO_PROXY": "*",
        }
        command = [sys.executable, "-m", "benchmarks.honest", "--worker"]
        workers = [
            subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for _ in range(keys)
        ]
        for process in workers:
            if process.stdout is None or process.stdout.readline() != "ready\n":
                raise RuntimeError("a worker did not start")
        began = time.time() + 1
        for number, process in enumerate(workers):
            key = name(number)
            event = {
                **CREATE,
                "RequestId": key,
                "LogicalResourceId": key,
                "ResponseURL": sink.url,
                "ResourceProperties": {"KeyId": key, "UsagePlanId": "free"},
            }
            if process.stdin:
                process.stdin.write(json.dumps([began + dice.uniform(0, SPREAD), event]) + "\n")
                process.stdin.flush()
        sink.wait(keys, 600.0)
        seconds = time.time() - began
        for process in workers:
            process.communicate()
        succeeded = sum(answer["Status"] == "SUCCESS" for answer in sink.answers)
    if succeeded != len(api.attached):
        raise AssertionError(f"{succeeded} answered SUCCESS, {len(api.attached)} attached")
    return succeeded, api.calls.total() / keys, api.attached_at[most(keys) - 1] - began, seconds


def main() -> int:
    """Compare; return 0 when real time is within 20 % of virtual time's prediction."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", action="store_true")
    parser.add_argument("--keys", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.worker:
        worker()
        return 0
    keys, seed = options.keys, options.seed
    runs = [wave("Create", keys, 1, Account(seed + run, queue=False, ledger=False)) for run in range(RUNS)]
    predicted = {
        "calls for each key": mean(run.calls_per_key for run in runs),
        "nine of ten attached, in times the serial limit": mean(
            run.history[most(keys)][0] / run.limit for run in runs
        ),
        "all attached, in times the serial limit (luck)": mean(run.ratio for run in runs),
    }
    succeeded, calls, nine, ten = real(keys, seed)
    measured = calls, nine / (keys * SERIAL_CALL), ten / (keys * SERIAL_CALL)
    print(f"create {keys}, each in a process of its own: {succeeded} succeeded")
    off = []
    for (what, virtual), figure in zip(predicted.items(), measured, strict=True):
        off.append(figure / virtual - 1)
        print(f"{what}: {figure:.2f}, predicted {virtual:.2f}: {off[-1]:+.0%}")
    return 0 if succeeded == keys and max(map(abs, off[:2])) <= 0.2 else 1


if __name__ == "__main__":
    sys.exit(main())
