"""Every file in events/ leads from the Lambda entry to its answer, under sam local and deployed."""

from __future__ import annotations

import gc
import importlib
import io
import json
import logging
import re
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from emulators.dynamodb import DynamoDb
from emulators.fake import ApiGateway, Key, Plan
from emulators.sink import Sink
from usage_plan_key.errors import EventError, UndeliveredError

from . import answers
from .answers import EVENTS, VALUE, WHERE, Context, Lines, asked
from .memory import Clock

environment, sink, everything = answers.environment, answers.sink, answers.everything

KEY, FREE, PRO = "a1b2c3d4e5", "f7r3e3", "p9r0p1"
IN_FREE, IN_PRO = (KEY, FREE), (KEY, PRO)
CLIENT = boto3.client
STACK = "arn:aws:cloudformation:eu-central-1:123456789012:stack/customers/5a1e6f40"


class World:
    """The Lambda entry over services in memory. Plans Free and Pro cover the same stage."""

    def __init__(self, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sink, self.api, self.db = sink, ApiGateway(), DynamoDb("eu-central-1")
        self.api.plans = {FREE: Plan("Free", (("api1", "prod"),)), PRO: Plan("Pro", (("api1", "prod"),))}
        self.api.keys = {KEY: Key("alice", VALUE)}
        self.sent: list[dict[str, Any]] = []
        unknown = ClientError({"Error": {"Code": "ValidationError"}}, "DescribeStacks")
        self.services: dict[str, Any] = {"apigateway": self.api, "dynamodb": self.db, "sqs": self}
        self.services["cloudformation"] = SimpleNamespace(describe_stacks=lambda **_: raises(unknown))
        self.configs: dict[str, Any] = {}
        self.lines = io.StringIO()
        """The function's log."""
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(boto3, "client", self._client)

    def _client(self, service: str, config: Any) -> Any:
        self.configs[service] = config
        return self.services[service]

    def send_message(self, **message: Any) -> dict[str, str]:
        self.sent.append(message)
        return {"MessageId": "m"}

    def deploy(self, clock: Any = None, **environment: str) -> None:
        """Start the function anew, in this environment, and by default without waiting."""
        for name, value in environment.items():
            self._monkeypatch.setenv(name, value)
        for chatty in ("boto", "boto3", "botocore", "urllib3", "crhelper"):
            logging.getLogger(chatty).setLevel(logging.NOTSET)
        self.app = importlib.reload(importlib.import_module("usage_plan_key.app"))
        self.app.logger.registered_handler.setStream(self.lines)
        self.clock = clock or Clock()
        self._monkeypatch.setattr(self.app, "provider", replace(self.app.provider, clock=self.clock))

    def invoke(self, event: Any, seconds: float = 900) -> Any:
        return self.app.handler(event, Context(seconds, self.clock))

    def led_here(self, event: dict[str, Any]) -> dict[str, Any]:
        """The event with its ResponseURL's path and signature on the sink."""
        url = re.sub(r"https://[^/]+", self.sink.url.split("/stack")[0], event["ResponseURL"])
        return {**event, "ResponseURL": url}

    def answer(self, event: dict[str, Any], seconds: float = 900) -> dict[str, Any]:
        """Send an event; return its one answer."""
        before = len(self.sink.puts)
        assert self.invoke(self.led_here(event), seconds) is None
        (put,) = self.sink.puts[before:]
        return put.answer

    def after(self, name: str) -> None:
        """Bring about the situation of a file's request, then forget its log."""
        before, attached, _, _ = SITUATIONS[name]
        self.api.attached |= attached
        for earlier in before:
            self.answer(EVENTS[earlier])
        self.lines.truncate(self.lines.seek(0))

    @property
    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines.getvalue().splitlines()]


def raises(error: Exception) -> Any:
    raise error


@pytest.fixture
def world(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> World:
    """As deployed, but without the queue: a table for the ledger, and a server at ResponseURL."""
    world = World(sink, monkeypatch)
    world.deploy(LEDGER_TABLE="ledger")
    return world


@pytest.fixture
def local(world: World) -> World:
    """As under sam local: no table, and ResponseURL leads nowhere."""
    world.deploy(LEDGER_TABLE="", AWS_SAM_LOCAL="true")
    return world


def data(outcome: str, plan: str = FREE) -> dict[str, Any]:
    """A success."""
    association = {"Id": f"{KEY}:{plan}", "KeyId": KEY, "UsagePlanId": plan}
    attributes = {**association, "KeyName": "alice", "KeyType": "API_KEY", "Outcome": outcome}
    return {"Status": "SUCCESS", "PhysicalResourceId": f"{KEY}:{plan}", "Data": attributes}


DELETED = {"Status": "SUCCESS", "PhysicalResourceId": f"{KEY}:{FREE}"}
BAD = {
    "Status": "FAILED",
    "PhysicalResourceId": "AliceInFree",
    "Reason": (
        "The properties are not usable: unknown property Description (known are UsagePlanId, KeyId, KeyType, "
        "OnExisting, IncludeValue, VerifyTrigger); unknown property KeyID (did you mean KeyId?); "
        f"KeyId is missing ({WHERE})"
    ),
}
Situation = tuple[list[str], set[tuple[str, str]], dict[str, Any], set[tuple[str, str]]]
#: For each file: the files served before, other keys attached before, the answer, and the keys attached then.
SITUATIONS: dict[str, Situation] = {
    "create": ([], set(), data("ATTACHED"), {IN_FREE}),
    "create-adopt": ([], {IN_FREE}, data("ADOPTED"), {IN_FREE}),
    "create-bad-property": ([], set(), BAD, set()),
    "update-verify": (["create"], set(), data("VERIFIED"), {IN_FREE}),
    "update-move": (["create"], set(), data("MOVED", PRO), {IN_PRO}),
    "delete": (["create"], set(), DELETED, set()),
    "delete-after-failed-create": (
        ["create-bad-property"],
        {IN_FREE},
        DELETED | {"PhysicalResourceId": "AliceInFree"},
        {IN_FREE},
    ),
}
every_file = pytest.mark.parametrize("name", EVENTS)


def whole(name: str) -> dict[str, Any]:
    """The answer to a file, with the fields that every answer has."""
    own = {field: EVENTS[name][field] for field in ("StackId", "RequestId", "LogicalResourceId")}
    return own | {"NoEcho": False} | SITUATIONS[name][2]


def test_there_is_a_file_for_every_situation_and_none_supersedes_a_later_one() -> None:
    assert set(EVENTS) == set(SITUATIONS)
    issued = {name: re.findall(r"X-Amz-Date=(\w+)", file["ResponseURL"])[0] for name, file in EVENTS.items()}
    assert len({*issued.values()}) == len(issued)
    for name, (before, *_) in SITUATIONS.items():
        assert all(issued[earlier] < issued[name] for earlier in before)


class TestDeployed:
    """Deployed, the function has its ledger and sends its answers."""

    @every_file
    def test_is_answered_alike_each_time_and_its_log_lines_name_it(self, world: World, name: str) -> None:
        world.after(name)
        assert world.answer(EVENTS[name]) == whole(name)
        assert world.api.attached == SITUATIONS[name][3]
        keys = ("StackId", "LogicalResourceId", "RequestId", "RequestType", "PhysicalResourceId")
        lines = world.logged
        assert lines
        for line in lines:
            assert {key: line.get(key) for key in keys} == {key: EVENTS[name].get(key) for key in keys}
        answer = SITUATIONS[name][2]
        outcomes = [line["outcome"] for line in lines if "outcome" in line]
        assert outcomes == [answer.get("Data", {}).get("Outcome", answer["Status"])]
        assert lines[-1]["asked"].startswith(EVENTS[name]["RequestType"])
        assert lines[-1]["status"] == answer["Status"]
        calls = world.api.calls.copy()
        assert world.answer(EVENTS[name]) == whole(name)
        assert (world.api.attached, world.api.calls) == (SITUATIONS[name][3], calls), "the ledger knows"

    @every_file
    @pytest.mark.parametrize("how", ["delivered", "refused", "undeliverable", "internal error"])
    def test_a_value_is_returned_where_it_is_asked_for_and_stays_secret(
        self, world: World, name: str, how: str, everything: Lines, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Every logger is at its lowest level, except those that the function sets."""
        world.after(name)
        world.app.logger.setLevel("DEBUG")
        if how == "internal error":
            world.app.provider.api._client = None
        world.sink.replies += [403] if how == "refused" else [500] * 99 if how == "undeliverable" else []
        try:
            world.invoke(world.led_here(asked(name, IncludeValue="true")), 60)
        except UndeliveredError as error:
            world.lines.write(str(error))
        put = world.sink.puts[-1]
        if how != "internal error":
            has_data = "Data" in SITUATIONS[name][2]
            assert put.answer.get("Data", {}).get("Value") == (VALUE if has_data else None)
            assert put.answer["NoEcho"] is has_data
        said = world.lines.getvalue() + "".join(capfd.readouterr())
        said += "".join(str(vars(record)) for record in everything.records)
        assert said
        assert VALUE not in said
        assert put.path.partition("X-Amz-Signature=")[2] not in said

    def test_botocores_whole_replies_stay_secret(self, world: World, everything: Lines) -> None:
        client = CLIENT("apigateway", "eu-central-1", aws_access_key_id="x", aws_secret_access_key="y")
        body = json.dumps({"id": KEY, "name": "alice", "value": VALUE}).encode()
        raw: Any = SimpleNamespace(stream=lambda: [body])
        client.meta.events.register("before-send", lambda **_: AWSResponse("https://x", 201, {}, raw))  # type: ignore[arg-type]  # it may give a reply
        client.create_usage_plan_key(usagePlanId=FREE, keyId=KEY, keyType="API_KEY")
        assert everything.records == []

    def test_is_wired_to_its_services_and_to_a_log_without_secrets(self, world: World) -> None:
        world.deploy(POWERTOOLS_SERVICE_NAME="own", QUEUE_URL="https://queue")
        world.app.provider.cloudformation()
        timeouts = {name: (one.connect_timeout, one.read_timeout) for name, one in world.configs.items()}
        assert timeouts == {"apigateway": (2, 5), "dynamodb": (1, 2), "sqs": (1, 2), "cloudformation": (1, 5)}
        for config in world.configs.values():
            assert (config.retries, config.parameter_validation) == ({"total_max_attempts": 1}, False)
            assert config.user_agent == f"usage-plan-key Boto3/{boto3.__version__}"
        assert (gc.isenabled(), gc.get_freeze_count() > 10_000) == (True, True)
        world.app.logger.error("A URL in a line: %s", "https://x?Signature=5f1c")
        try:
            raises(ValueError(VALUE))
        except ValueError:
            world.app.logger.exception("It failed")
        line, failure = world.logged
        assert (line["message"], line["service"]) == ("A URL in a line: (a URL)", "own")
        assert failure["exception"].startswith("Traceback (most recent call last):\n  File")
        assert failure["exception"].endswith(f"ValueError: (not shown: {len(VALUE)} characters)")
        assert "stack_trace" not in failure

    def test_with_a_queue_it_is_put_there_and_answered_when_the_queue_hands_it_over(
        self, world: World
    ) -> None:
        """A message that is no request is put aside."""
        world.deploy(QUEUE_URL="https://queue", UNDELIVERED_URL="https://aside")
        assert world.invoke(world.led_here(EVENTS["create"])) is None
        assert (world.sink.puts, world.api.attached) == ([], set())
        (sent,) = world.sent
        assert sent["QueueUrl"] == "https://queue"
        about = {"ApproximateReceiveCount": "1", "MessageGroupId": sent["MessageGroupId"]}
        record = {"messageId": "m", "receiptHandle": "r", "attributes": about, "body": sent["MessageBody"]}
        stray = record | {"messageId": "n", "body": "no request"}
        assert world.invoke({"Records": [record, stray]}) == {"batchItemFailures": []}
        assert world.sink.answers == [whole("create")]
        assert [message["QueueUrl"] for message in world.sent] == ["https://queue", "https://aside"]

    def test_an_operator_has_a_resource_let_go_whose_stack_cloudformation_does_not_know(
        self, world: World
    ) -> None:
        world.answer(EVENTS["create"] | {"StackId": STACK})
        assert world.invoke({"LetGo": {"StackId": STACK, "LogicalResourceId": "AliceInFree"}}) == {
            "LetGo": [f"{KEY}:{FREE}"]
        }
        assert world.api.attached == {IN_FREE}

    @pytest.mark.parametrize(
        ("suffix", "emulator", "sent"),
        [
            pytest.param("", "", True, id="not checked where it is not set"),
            pytest.param("0.0.1", "", False, id="a host under the suffix is not CloudFormation's bucket"),
            pytest.param("amazonaws.com", "its own", True, id="the emulator's"),
            pytest.param("amazonaws.com", "127.0.0.1:1", False, id="another port of the emulator's host"),
        ],
    )
    def test_a_value_is_sent_only_to_cloudformations_host(
        self, world: World, suffix: str, emulator: str, *, sent: bool
    ) -> None:
        own = world.sink.url.split("/")[2]
        world.deploy(RESPONSE_URL_SUFFIX=suffix, RESPONSE_URL_HOST=own if emulator == "its own" else emulator)
        answer = world.answer(asked(IncludeValue="true"))
        ends = answer["Status"] == "SUCCESS", VALUE in json.dumps(answer), bool(world.api.attached)
        assert ends == (sent, sent, sent)
        assert answer["PhysicalResourceId"] == f"{KEY}:{FREE}"
        bucket = f"cloudformation-custom-resource-response-eucentral1.s3.eu-central-1.{suffix}, "
        assert sent or (bucket in answer["Reason"] and f"leads to {own}. Remove" in answer["Reason"])
        assert world.answer(EVENTS["delete"])["Status"] == "SUCCESS", "without a value any host will do"

    @pytest.mark.parametrize(
        ("broken", "message"),
        [
            ({"ResponseURL": "http://127.0.0.1/"}, "not https"),
            ({"ResponseURL": None}, "lacks ResponseURL"),
            ({"RequestType": "Read"}, "RequestType is none of Create, Update and Delete"),
        ],
    )
    def test_an_event_that_cannot_be_answered_is_an_error_before_anything_is_touched(
        self, world: World, broken: dict[str, Any], message: str
    ) -> None:
        world.answer(EVENTS["create"])
        calls = world.api.calls.copy()
        with pytest.raises(EventError, match=message) as raised:
            world.invoke({**world.led_here(EVENTS["update-verify"]), **broken})
        assert "X-Amz-Signature" not in str(raised.value)
        assert (len(world.sink.puts), world.api.calls) == (1, calls)
        world.app.logger.info("What comes next is not about the request before")
        assert "StackId" not in world.logged[-1]

    def test_an_answer_that_was_not_delivered_is_delivered_by_the_next_invocation(self, world: World) -> None:
        world.sink.replies = [500] * 99
        event = world.led_here(EVENTS["create"])
        with pytest.raises(UndeliveredError, match=r"to 127\.0\.0\.1: no time is left"):
            world.invoke(event, 60)
        tried = len(world.sink.puts)
        world.sink.replies = []
        world.invoke(event)
        assert len(world.sink.puts) == tried + 1
        assert {put.body for put in world.sink.puts} == {world.sink.puts[0].body}
        assert world.sink.answers[-1] == whole("create")


class TestLocal:
    """Under sam local the function prints and returns the answer, and takes the event at its word."""

    @every_file
    def test_is_printed_and_returned_without_its_value(
        self, local: World, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before, attached, _, after = SITUATIONS[name]
        local.api.attached = attached or ({IN_FREE} if "create" in before else set())
        began = time.monotonic()
        answer = local.invoke(EVENTS[name])
        printed = capsys.readouterr().out
        assert answer == json.loads(printed) == whole(name)
        assert (local.api.attached, local.sink.puts) == (after, [])
        assert time.monotonic() - began < 2
        local.api.attached = attached or ({IN_FREE} if "create" in before else set())
        again = local.invoke(asked(name, IncludeValue="true"))
        assert again.get("Data", {}).get("Value") == ("(not shown)" if "Data" in answer else None)
        assert VALUE not in capsys.readouterr().out + local.lines.getvalue()

    def test_an_http_url_will_do_as_sams_own_generated_event_has_one(self, local: World) -> None:
        """Its properties are not ours, and the answer says so."""
        http = EVENTS["create"] | {"ResponseURL": "http://pre-signed-S3-url-for-response"}
        assert local.invoke(http)["Status"] == "SUCCESS"
        properties = {"StackName": "stack-name", "List": ["1", "2", "3"]}
        assert "unknown property List" in local.invoke(http | {"ResourceProperties": properties})["Reason"]

    @pytest.mark.parametrize(
        "error", [NoCredentialsError(), EndpointConnectionError(endpoint_url="https://aws")]
    )
    def test_ends_within_seconds_when_aws_cannot_be_asked(
        self, local: World, error: Exception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(local.api, "create_usage_plan_key", lambda **_: raises(error))
        began = local.clock.time()
        answer = local.invoke(EVENTS["create"])
        assert answer["Status"] == "FAILED"
        assert str(error)[:40] in answer["Reason"]
        assert local.clock.time() - began < 20
