"""Every file in events/ leads from the Lambda entry to its answer, under sam local and deployed."""

from __future__ import annotations

import gc
import importlib
import io
import json
import logging
import os
import re
from copy import deepcopy
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import EndpointConnectionError

from emulators.dynamodb import DynamoDb
from emulators.fake import ApiGateway, Key, Plan
from emulators.sink import Sink
from usage_plan_key.errors import EventError, UndeliveredError

from . import answers
from .answers import EVENTS, VALUE, WHERE, Context, Lines, asked
from .function import record, refusal
from .memory import Clock

environment, sink, everything = answers.environment, answers.sink, answers.everything

KEY, FREE, PRO = "a1b2c3d4e5", "f7r3e3", "p9r0p1"
IN_FREE, IN_PRO = (KEY, FREE), (KEY, PRO)
CLIENT = boto3.client
STACK = "arn:aws:cloudformation:eu-central-1:123456789012:stack/customers/5a1e6f40"


class World:
    """The Lambda entry over services in memory. Plans Free and Pro cover the same stage."""

    def __init__(self, sink: Sink, patch: pytest.MonkeyPatch) -> None:
        self.sink, self.api, self.db = sink, ApiGateway(), DynamoDb("eu-central-1")
        self.api.plans = {FREE: Plan("Free", (("api1", "prod"),)), PRO: Plan("Pro", (("api1", "prod"),))}
        self.api.keys = {KEY: Key("alice", VALUE)}
        self.sqs = Mock(**{"send_message.return_value": {"MessageId": "m"}})
        stacks = Mock(**{"describe_stacks.side_effect": refusal(400, "ValidationError")})
        services = {"apigateway": self.api, "dynamodb": self.db, "sqs": self.sqs, "cloudformation": stacks}
        self.made = Mock(side_effect=lambda service, config: services[service])
        self.log = io.StringIO()
        self._patch = patch
        patch.setattr(boto3, "client", self.made)

    def deploy(self, **environment: str) -> None:
        """Start the function anew, in this environment, without waiting."""
        for name, value in environment.items():
            self._patch.setenv(name, value)
        for chatty in ("boto3", "botocore", "urllib3", "crhelper"):
            logging.getLogger(chatty).setLevel(logging.NOTSET)
        self.app = importlib.reload(importlib.import_module("usage_plan_key.app"))
        self.app.logger.registered_handler.setStream(self.log)
        self.clock = Clock()
        self._patch.setattr(self.app, "provider", replace(self.app.provider, clock=self.clock))

    def invoke(self, event: Any, seconds: float = 900) -> Any:
        """Invoke it; a ResponseURL's path and signature are led to the sink."""
        if os.environ["LEDGER_TABLE"] and "ResponseURL" in event:
            to = self.sink.url.split("/stack")[0]
            event = {**event, "ResponseURL": re.sub("https://[^/]+", to, str(event["ResponseURL"]))}
        return self.app.handler(event, Context(seconds, self.clock))

    def answer(self, event: dict[str, Any]) -> dict[str, Any]:
        before = len(self.sink.puts)
        assert self.invoke(event) is None
        (put,) = self.sink.puts[before:]
        return put.answer

    def after(self, name: str) -> None:
        """Bring about the situation of a file's request, then forget its log."""
        before, attached, _, _ = SITUATIONS[name]
        self.api.attached |= attached
        for earlier in before:
            self.answer(EVENTS[earlier])
        self.log.truncate(self.log.seek(0))

    @property
    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


@pytest.fixture
def world(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> World:
    """As deployed, but without the queue: a table for the ledger, and a server at ResponseURL."""
    world = World(sink, monkeypatch)
    world.deploy(LEDGER_TABLE="ledger")
    return world


@pytest.fixture
def local(world: World) -> World:
    """As under sam local: no table, and a ResponseURL that leads nowhere, whatever its host."""
    world.deploy(LEDGER_TABLE="", AWS_SAM_LOCAL="true", RESPONSE_URL_SUFFIX="x.com")
    return world


def data(outcome: str, plan: str = FREE) -> dict[str, Any]:
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
SPARED = DELETED | {"PhysicalResourceId": "AliceInFree"}
Situation = tuple[list[str], set[tuple[str, str]], dict[str, Any], set[tuple[str, str]]]
#: For each file: the files served before, other keys attached before, the answer, and the keys attached then.
SITUATIONS: dict[str, Situation] = {
    "create": ([], set(), data("ATTACHED"), {IN_FREE}),
    "create-adopt": ([], {IN_FREE}, data("ADOPTED"), {IN_FREE}),
    "create-bad-property": ([], set(), BAD, set()),
    "update-verify": (["create"], set(), data("VERIFIED"), {IN_FREE}),
    "update-move": (["create"], set(), data("MOVED", PRO), {IN_PRO}),
    "delete": (["create"], set(), DELETED, set()),
    "delete-after-failed-create": (["create-bad-property"], {IN_FREE}, SPARED, {IN_FREE}),
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
        known = {key: EVENTS[name].get(key) for key in keys} | {"function_request_id": "8c5a3a0e"}
        assert world.logged
        assert all({key: line.get(key) for key in known} == known for line in world.logged)
        (line,) = (line for line in world.logged if "outcome" in line)
        answer = SITUATIONS[name][2]
        outcome = answer.get("Data", {}).get("Outcome", answer["Status"])
        assert (line["outcome"], line["status"]) == (outcome, answer["Status"])
        assert line["AnswerId"] == answer["PhysicalResourceId"]
        assert line["level"] == ("ERROR" if "Reason" in answer else "INFO")
        assert line["asked"].startswith(EVENTS[name]["RequestType"])
        calls = world.api.calls.copy()
        assert world.answer(EVENTS[name]) == whole(name)
        assert (world.api.attached, world.api.calls) == (SITUATIONS[name][3], calls), "the ledger knows"

    @pytest.mark.parametrize("how", ["delivered", "refused", "undeliverable", "internal error"])
    def test_a_value_is_returned_where_it_is_asked_for_and_stays_secret(
        self, world: World, how: str, everything: Lines, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Every logger is at its lowest level, except those that the function sets."""
        world.app.logger.setLevel("DEBUG")
        if how == "internal error":
            world.app.provider.api._client = None
        world.sink.replies += {"refused": [403], "undeliverable": [500] * 99}.get(how, [])
        try:
            world.invoke(asked(IncludeValue="true"), 60)
        except UndeliveredError as error:
            world.log.write(str(error))
        put = world.sink.puts[-1]
        shown = (put.answer["NoEcho"], put.answer.get("Data", {}).get("Value"))
        assert shown == ((False, None) if how == "internal error" else (True, VALUE))
        said = world.log.getvalue() + "".join(capfd.readouterr())
        said += "".join(str(vars(record)) for record in everything.records)
        assert said
        assert VALUE not in said
        assert put.path.partition("X-Amz-Signature=")[2] not in said

    def test_a_former_providers_id_that_is_a_keys_value_stays_secret(self, world: World) -> None:
        """It is no reason to release what is held either."""
        bad = {**EVENTS["create-bad-property"], "RequestType": "Update"}
        for event in (EVENTS["update-verify"], EVENTS["delete"], bad):
            answer = world.answer({**event, "PhysicalResourceId": VALUE})
            assert answer["PhysicalResourceId"] in (f"{KEY}:{FREE}", VALUE)
        ids = [line["AnswerId"] for line in world.logged if "AnswerId" in line]
        assert ids == [f"{KEY}:{FREE}", *["a foreign id of 27 characters"] * 2]
        assert VALUE not in f"{world.log.getvalue()} {world.db.items}"
        assert world.api.attached == {IN_FREE}

    def test_botocores_whole_replies_stay_secret(self, world: World, everything: Lines) -> None:
        client = CLIENT("apigateway", "eu-central-1", aws_access_key_id="x", aws_secret_access_key="y")
        raw: Any = Mock(**{"stream.return_value": [json.dumps({"id": KEY, "value": VALUE}).encode()]})
        client.meta.events.register("before-send", lambda **_: AWSResponse("https://x", 201, {}, raw))  # type: ignore[arg-type]  # it may give a reply
        client.create_usage_plan_key(usagePlanId=FREE, keyId=KEY, keyType="API_KEY")
        assert everything.records == []

    def test_is_wired_to_its_services_and_to_a_log_without_secrets(self, world: World) -> None:
        world.deploy(POWERTOOLS_SERVICE_NAME="own", QUEUE_URL="https://queue")
        world.app.provider.cloudformation()
        configs = {made.args[0]: made.kwargs["config"] for made in world.made.call_args_list}
        timeouts = {name: (one.connect_timeout, one.read_timeout) for name, one in configs.items()}
        assert timeouts == {"apigateway": (2, 5), "dynamodb": (1, 2), "sqs": (1, 2), "cloudformation": (1, 5)}
        for config in configs.values():
            assert (config.retries, config.parameter_validation) == ({"total_max_attempts": 1}, False)
            assert config.user_agent == f"usage-plan-key Boto3/{boto3.__version__}"
        assert (gc.isenabled(), gc.get_freeze_count() > 10_000) == (True, True)
        try:
            raise ValueError(VALUE)
        except ValueError:
            world.app.logger.exception("A URL in a line: %s", "https://x?Signature=5f1c")
        (line,) = world.logged
        assert (line["message"], line["service"]) == ("A URL in a line: (a URL)", "own")
        assert line["exception"].endswith(f"ValueError: (not shown: {len(VALUE)} characters)")
        assert "stack_trace" not in line

    def test_with_a_queue_it_is_put_there_and_answered_when_the_queue_hands_it_over(
        self, world: World
    ) -> None:
        """A message that is no request is put aside."""
        world.deploy(QUEUE_URL="https://queue", UNDELIVERED_URL="https://aside")
        assert world.invoke(EVENTS["create"]) is None
        assert (world.sink.puts, world.api.attached) == ([], set())
        request = record(world.sqs.send_message.call_args.kwargs["MessageBody"])
        world.log.truncate(world.log.seek(0))
        assert world.invoke({"Records": [record("no request", 1), request]}) == {"batchItemFailures": []}
        assert "StackId" not in world.logged[0], "it is not about the request before"
        assert world.sink.answers == [whole("create")]
        sent = [call.kwargs["QueueUrl"] for call in world.sqs.send_message.call_args_list]
        assert sent == ["https://queue", "https://aside"]

    def test_an_operator_has_a_resource_let_go_whose_stack_cloudformation_does_not_know(
        self, world: World
    ) -> None:
        world.answer(EVENTS["create"] | {"StackId": STACK})
        let_go = {"StackId": STACK, "LogicalResourceId": "AliceInFree"}
        assert world.invoke({"LetGo": let_go}) == {"LetGo": [f"{KEY}:{FREE}"]}
        assert world.api.attached == {IN_FREE}

    @pytest.mark.parametrize(("emulator", "sent"), [("its own", True), ("127.0.0.1:1", False)])
    def test_a_value_is_sent_only_to_the_host_that_the_environment_names(
        self, world: World, emulator: str, *, sent: bool
    ) -> None:
        own = world.sink.url.split("/")[2]
        world.deploy(RESPONSE_URL_SUFFIX="x.com", RESPONSE_URL_HOST=emulator.replace("its own", own))
        answer = world.answer(asked(IncludeValue="true"))
        assert (VALUE in json.dumps(answer), bool(world.api.attached)) == (sent, sent)
        assert sent or "-eucentral1.s3.eu-central-1.x.com, " in answer["Reason"]
        assert world.answer(EVENTS["delete"])["Status"] == "SUCCESS", "without a value any host will do"

    @pytest.mark.parametrize("url", ["http://127.0.0.1/?X-Amz-Signature=5f1c", None])
    def test_an_event_that_cannot_be_answered_is_an_error_before_anything_is_touched(
        self, world: World, url: str | None
    ) -> None:
        world.answer(EVENTS["create"])
        calls = world.api.calls.copy()
        with pytest.raises(EventError, match="not https" if url else "lacks ResponseURL") as raised:
            world.app.handler({**EVENTS["update-verify"], "ResponseURL": url}, Context(900, world.clock))
        assert "X-Amz-Signature" not in str(raised.value)
        assert (len(world.sink.puts), world.api.calls) == (1, calls)
        world.app.logger.info("What comes next is not about the request before")
        assert "StackId" not in world.logged[-1]


class TestLocal:
    """Under sam local the function prints and returns the answer, and takes the event at its word."""

    @every_file
    def test_is_printed_and_returned_without_its_value(
        self, local: World, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before, attached, _, after = SITUATIONS[name]
        for value in ("false", "true"):
            local.api.attached = set(attached or ({IN_FREE} if "create" in before else ()))
            expected = deepcopy(whole(name))
            if value == "true" and "Data" in expected:
                expected["Data"]["Value"], expected["NoEcho"] = "(not shown)", True
            answer = local.invoke(asked(name, IncludeValue=value))
            assert answer == json.loads(capsys.readouterr().out) == expected
            assert (local.api.attached, local.sink.puts) == (after, [])
        assert VALUE not in local.log.getvalue()

    def test_an_http_url_will_do_as_sams_own_generated_event_has_one(self, local: World) -> None:
        """Its properties are not ours, and the answer says so."""
        http = EVENTS["create"] | {"ResponseURL": "http://pre-signed-S3-url-for-response"}
        assert local.invoke(http)["Status"] == "SUCCESS"
        properties = {"StackName": "stack-name", "List": ["1", "2", "3"]}
        assert "unknown property List" in local.invoke(http | {"ResourceProperties": properties})["Reason"]

    def test_ends_within_seconds_when_aws_cannot_be_asked(
        self, local: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fails = Mock(side_effect=EndpointConnectionError(endpoint_url="https://aws"))
        monkeypatch.setattr(local.api, "create_usage_plan_key", fails)
        began = local.clock.time()
        assert "Could not connect to the endpoint URL" in local.invoke(EVENTS["create"])["Reason"]
        assert local.clock.time() - began < 20
