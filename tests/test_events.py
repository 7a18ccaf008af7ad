"""Every file in events/ leads from the Lambda entry to its answer, under sam local and deployed."""

from __future__ import annotations

import copy
import importlib
import io
import json
import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError, NoCredentialsError
from moto import mock_aws

from emulators.fake import ApiGateway, Key, Plan
from emulators.sink import Sink
from usage_plan_key import api_gateway, retry, service
from usage_plan_key.custom_resource import GUARD_TIME
from usage_plan_key.errors import EventError, UndeliveredError
from usage_plan_key.provider import Provider

from .memory import Clock

EVENTS = {path.stem: json.loads(path.read_text()) for path in sorted(Path("events").glob("*.json"))}
KEY, FREE, PRO = "a1b2c3d4e5", "f7r3e3", "p9r0p1"
IN_FREE, IN_PRO = (KEY, FREE), (KEY, PRO)
VALUE = "s3cr3t-s3cr3t-s3cr3t-s3cr3t"
STREAM = "2026/03/02/[$LATEST]5f3c"
LOGS = f" (function usage-plan-key, log group /aws/lambda/usage-plan-key, log stream {STREAM})"


class Context:
    """Lambda's context of a function whose time is up in so many seconds of a clock."""

    aws_request_id = "8c5a3a0e"
    function_name = "usage-plan-key"
    invoked_function_arn = "arn:aws:lambda:eu-central-1:123456789012:function:usage-plan-key"
    log_group_name = "/aws/lambda/usage-plan-key"
    log_stream_name = STREAM

    def __init__(self, seconds: float, clock: retry.Clock) -> None:
        self._clock = clock
        self._end = clock.time() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return int((self._end - self._clock.time()) * 1000)


def event(name: str, **properties: str | None) -> dict[str, Any]:
    """A good event, with some of its properties changed (None: taken out)."""
    read = copy.deepcopy(EVENTS[name])
    changed = {**read["ResourceProperties"], **properties}
    read["ResourceProperties"] = {key: value for key, value in changed.items() if value is not None}
    return read  # type: ignore[no-any-return]  # an event is an object


def data(outcome: str, plan: str = FREE, **more: str) -> dict[str, str]:
    """The attributes of a success."""
    association = {"Id": f"{KEY}:{plan}", "KeyId": KEY, "UsagePlanId": plan}
    return {**association, "KeyName": "alice", "KeyType": "API_KEY", "Outcome": outcome, **more}


class World:
    """The function and its surroundings. Plans Free and Pro cover the same stage."""

    def __init__(self, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sink = sink
        self.api = ApiGateway()
        self.api.plans = {FREE: Plan("Free", (("api1", "prod"),)), PRO: Plan("Pro", (("api1", "prod"),))}
        self.api.keys = {KEY: Key("alice", VALUE)}
        self.lines = io.StringIO()
        """The function's log."""
        self._monkeypatch = monkeypatch

    def deploy(self, **environment: str) -> None:
        """Start the function anew, in this environment, with the strict API Gateway and no waiting."""
        for name, value in environment.items():
            self._monkeypatch.setenv(name, value)
        for chatty in ("boto", "boto3", "botocore", "urllib3", "crhelper"):
            logging.getLogger(chatty).setLevel(logging.NOTSET)
        self.app = importlib.reload(importlib.import_module("usage_plan_key.app"))
        self.app.logger.registered_handler.setStream(self.lines)
        self.change(api=api_gateway.ApiGateway(self.api), clock=Clock())  # type: ignore[arg-type]  # a fake

    def change(self, **parts: Any) -> None:
        """Put other parts into the function."""
        self._monkeypatch.setattr(self.app, "provider", replace(self.invocation, **parts))

    @property
    def invocation(self) -> Provider:
        return self.app.provider  # type: ignore[no-any-return]  # a reloaded module

    def invoke(self, event: Mapping[str, Any], seconds: float = 900) -> Any:
        return self.app.handler(event, Context(seconds, self.invocation.clock))

    def answer(self, event: Mapping[str, Any], seconds: float = 900) -> dict[str, Any]:
        """Send an event; return its one answer."""
        before = len(self.sink.puts)
        assert self.invoke(self.led_here(event), seconds) is None
        (put,) = self.sink.puts[before:]
        return put.answer

    def led_here(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """The event with its ResponseURL's path and signature on the sink."""
        url = re.sub(r"https://[^/]+", self.sink.url.split("/stack")[0], event["ResponseURL"])
        return {**event, "ResponseURL": url}

    def after(self, name: str) -> None:
        """Bring about the situation of a file's request."""
        before, attached, _, _ = SITUATIONS[name]
        self.api.attached |= attached
        for earlier in before:
            self.answer(EVENTS[earlier])

    @property
    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines.getvalue().splitlines()]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """As deployed, but without the queue: a table for the ledger, and a server at ResponseURL."""
    with ExitStack() as stack:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
        stack.enter_context(mock_aws())
        boto3.client("dynamodb").create_table(
            TableName="ledger",
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        sink = stack.enter_context(Sink())
        world = World(sink, monkeypatch)
        world.deploy(LEDGER_TABLE="ledger", SSL_CERT_FILE=str(sink.certificate))
        yield world


@pytest.fixture
def local(world: World) -> World:
    """As under sam local: no table, and ResponseURL leads nowhere."""
    world.deploy(LEDGER_TABLE="", AWS_SAM_LOCAL="true")
    return world


Situation = tuple[list[str], set[tuple[str, str]], dict[str, Any], set[tuple[str, str]]]

#: For each file: the files served before, other keys attached before, the answer, and the keys attached then.
SITUATIONS: dict[str, Situation] = {
    "create": ([], set(), {"Status": "SUCCESS", "Data": data("ATTACHED")}, {IN_FREE}),
    "create-adopt": ([], {IN_FREE}, {"Status": "SUCCESS", "Data": data("ADOPTED")}, {IN_FREE}),
    "create-bad-property": (
        [],
        set(),
        {
            "Status": "FAILED",
            "PhysicalResourceId": "AliceInFree",
            "Reason": "The properties are not usable: "
            "unknown property Description (known are UsagePlanId, KeyId, KeyType, OnExisting,"
            " IncludeValue, VerifyTrigger);"
            f" unknown property KeyID (did you mean KeyId?); KeyId is missing{LOGS}",
        },
        set(),
    ),
    "update-verify": (["create"], set(), {"Status": "SUCCESS", "Data": data("VERIFIED")}, {IN_FREE}),
    "update-move": (
        ["create"],
        set(),
        {"Status": "SUCCESS", "PhysicalResourceId": f"{KEY}:{PRO}", "Data": data("MOVED", PRO)},
        {IN_PRO},
    ),
    "delete": (["create"], set(), {"Status": "SUCCESS"}, set()),
    "delete-after-failed-create": (
        ["create-bad-property"],
        {IN_FREE},
        {"Status": "SUCCESS", "PhysicalResourceId": "AliceInFree"},
        {IN_FREE},
    ),
}
every_file = pytest.mark.parametrize("name", EVENTS)


def whole(name: str) -> dict[str, Any]:
    """The answer to a file, with the fields that every answer has."""
    common = {
        "StackId": EVENTS[name]["StackId"],
        "RequestId": EVENTS[name]["RequestId"],
        "LogicalResourceId": EVENTS[name]["LogicalResourceId"],
        "PhysicalResourceId": f"{KEY}:{FREE}",
        "NoEcho": False,
    }
    return common | SITUATIONS[name][2]


def test_there_is_a_file_for_every_situation() -> None:
    assert set(EVENTS) == set(SITUATIONS)


def test_the_files_are_issued_one_after_the_other() -> None:
    """No file supersedes one that a test serves after it."""
    dates = [(re.findall(r"X-Amz-Date=(\w+)", file["ResponseURL"])[0], name) for name, file in EVENTS.items()]
    assert len(dates) == len({date for date, _ in dates})
    for name, (before, *_) in SITUATIONS.items():
        issued = {name: date for date, name in dates}
        assert all(issued[earlier] < issued[name] for earlier in before)


class TestDeployed:
    """Deployed, the function has its ledger and sends its answers."""

    @every_file
    def test_is_answered(self, world: World, name: str) -> None:
        world.after(name)
        assert world.answer(EVENTS[name]) == whole(name)
        assert world.api.attached == SITUATIONS[name][3]

    @every_file
    def test_a_repeated_delivery_is_given_the_same_answer(self, world: World, name: str) -> None:
        world.after(name)
        first = world.answer(EVENTS[name])
        calls = world.api.calls.copy()
        assert world.answer(EVENTS[name]) == first
        assert world.api.attached == SITUATIONS[name][3]
        assert world.api.calls == calls, "the ledger knows"

    def test_with_a_queue_it_is_put_there_and_answered_when_the_queue_hands_it_over(
        self, world: World
    ) -> None:
        sqs = boto3.client("sqs")
        queue = sqs.create_queue(QueueName="requests.fifo", Attributes={"FifoQueue": "true"})["QueueUrl"]
        world.deploy(QUEUE_URL=queue)
        assert world.invoke(world.led_here(EVENTS["create"])) is None
        assert (world.sink.puts, world.api.attached) == ([], set())
        (taken,) = sqs.receive_message(QueueUrl=queue, MessageSystemAttributeNames=["All"])["Messages"]
        record = {
            "messageId": taken["MessageId"],
            "receiptHandle": taken["ReceiptHandle"],
            "attributes": taken["Attributes"],
            "body": taken["Body"],
        }
        assert world.invoke({"Records": [record]}) == {"batchItemFailures": []}
        assert [put.answer for put in world.sink.puts] == [whole("create")]
        assert world.api.attached == {IN_FREE}

    def test_an_operator_has_a_resource_let_go_whose_stack_cloudformation_does_not_know(
        self, world: World
    ) -> None:
        stack = "arn:aws:cloudformation:eu-central-1:123456789012:stack/customers/5a1e6f40"
        asked = {"LetGo": {"StackId": stack, "LogicalResourceId": "AliceInFree"}}
        world.answer(EVENTS["create"] | {"StackId": stack})
        assert world.invoke(asked) == {"LetGo": [f"{KEY}:{FREE}"]}
        assert world.api.attached == {IN_FREE}

    @every_file
    def test_log_lines_name_the_request_and_its_outcome(self, world: World, name: str) -> None:
        world.after(name)
        answer = SITUATIONS[name][2]
        world.lines.truncate(world.lines.seek(0))
        world.answer(EVENTS[name])
        keys = ("StackId", "LogicalResourceId", "RequestId", "RequestType", "PhysicalResourceId")
        asked = {key: EVENTS[name].get(key) for key in keys}
        assert world.logged
        for line in world.logged:
            assert {key: line.get(key) for key in keys} == asked
        outcomes = [line["outcome"] for line in world.logged if "outcome" in line]
        assert outcomes == [answer.get("Data", {}).get("Outcome", answer["Status"])]
        last = world.logged[-1]
        assert last["asked"].startswith(EVENTS[name]["RequestType"])
        assert last["status"] == answer["Status"]

    def test_keys_of_an_earlier_request_are_gone_from_the_log(self, world: World) -> None:
        world.answer(EVENTS["create-bad-property"] | {"LogicalResourceId": "Other"})
        world.answer(EVENTS["delete"] | {"LogicalResourceId": "Other"})
        world.lines.truncate(world.lines.seek(0))
        world.answer(EVENTS["create"])
        (line,) = world.logged
        assert (line.get("PhysicalResourceId"), line["outcome"]) == (None, "ATTACHED")

    @every_file
    def test_a_value_is_returned_where_it_is_asked_for(self, world: World, name: str) -> None:
        world.after(name)
        answer = SITUATIONS[name][2]
        asked = event(name, IncludeValue="true")
        first, again = world.answer(asked), world.answer(asked)
        assert first.get("Data", {}).get("Value") == (VALUE if "Data" in answer else None)
        assert first["NoEcho"] is ("Data" in answer)
        assert again == first

    @pytest.mark.parametrize(
        ("suffix", "emulator", "sent"),
        [
            pytest.param("", "", True, id="not checked where it is not set"),
            pytest.param("amazonaws.com", "", False, id="elsewhere"),
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
        answer = world.answer(event("create", IncludeValue="true"))
        assert (answer["Status"] == "SUCCESS") is sent
        assert (VALUE in json.dumps(answer)) is sent
        assert bool(world.api.attached) is sent
        if not sent:
            assert answer["PhysicalResourceId"] == f"{KEY}:{FREE}"
            assert f"ResponseURL leads to {own}. Remove IncludeValue" in answer["Reason"]
            assert (
                f"cloudformation-custom-resource-response-eucentral1.s3.eu-central-1.{suffix}"
                in answer["Reason"]
            )

    @pytest.mark.parametrize("name", ["create", "delete"])
    def test_without_a_value_any_host_will_do(self, world: World, name: str) -> None:
        world.deploy(RESPONSE_URL_SUFFIX="amazonaws.com")
        assert world.answer(EVENTS[name])["Status"] == "SUCCESS"

    @pytest.mark.parametrize(
        ("name", "broken", "message"),
        [
            pytest.param("create", {"ResponseURL": "http://127.0.0.1/"}, "not https", id="http"),
            pytest.param("create", {"ResponseURL": "https:///path"}, "has no host", id="no host"),
            pytest.param("create", {"ResponseURL": None}, "lacks ResponseURL", id="no ResponseURL"),
            pytest.param(
                "create",
                {"RequestType": "Read"},
                "RequestType is none of Create, Update and Delete",
                id="unknown type",
            ),
            pytest.param("create", {"StackId": None}, "lacks StackId", id="no stack"),
            pytest.param("create", {"RequestId": ""}, "lacks RequestId", id="no request id"),
            pytest.param("create", {"LogicalResourceId": 7}, "lacks LogicalResourceId", id="no logical id"),
            pytest.param(
                "update-verify", {"PhysicalResourceId": ""}, "lacks PhysicalResourceId", id="update, no id"
            ),
            pytest.param(
                "delete", {"PhysicalResourceId": None}, "lacks PhysicalResourceId", id="delete, no id"
            ),
        ],
    )
    def test_an_event_that_cannot_be_answered_is_an_error_before_anything_is_touched(
        self, world: World, name: str, broken: dict[str, Any], message: str
    ) -> None:
        world.answer(EVENTS["create"])
        calls = world.api.calls.copy()
        with pytest.raises(EventError, match=message) as raised:
            world.invoke({**world.led_here(EVENTS[name]), **broken})
        assert "X-Amz-Signature" not in str(raised.value)
        assert (len(world.sink.puts), world.api.calls) == (1, calls)
        world.app.logger.info("What comes next is not about the request before")
        assert "StackId" not in world.logged[-1]

    @pytest.mark.parametrize(
        ("properties", "named"),
        [
            pytest.param({"UsagePlanId": None}, ["UsagePlanId is missing"], id="missing"),
            pytest.param({"UsagePlanId": ""}, ["UsagePlanId is empty"], id="empty"),
            pytest.param({"KeyId": "a b"}, ["KeyId is malformed"], id="malformed"),
            pytest.param(
                {"OnExisting": "Maybe"}, ["OnExisting is 'Maybe', not Fail or Adopt or Take"], id="choice"
            ),
            pytest.param(
                {"IncludeValue": "yes"}, ["IncludeValue is 'yes', not true or false"], id="no boolean"
            ),
            pytest.param(
                {"Keytype": "X", "KeyType": "Y"}, ["did you mean KeyType?", "KeyType is 'Y'"], id="both"
            ),
        ],
    )
    @pytest.mark.parametrize("name", ["create", "update-verify", "update-move"])
    def test_every_fault_of_a_good_event_that_was_broken_is_named(
        self, world: World, name: str, properties: dict[str, str | None], named: list[str]
    ) -> None:
        answer = world.answer(event(name, **properties))
        assert answer["Status"] == "FAILED"
        for fault in named:
            assert fault in answer["Reason"]
        ours = f"{KEY}:{FREE}" if {"UsagePlanId", "KeyId"}.isdisjoint(properties) else "AliceInFree"
        assert answer["PhysicalResourceId"] == (
            ours if name == "create" else EVENTS[name]["PhysicalResourceId"]
        )
        assert world.api.calls.total() == 0

    def test_a_value_in_the_place_of_an_id_is_not_shown(self, world: World) -> None:
        answer = world.answer(event("create", KeyId=VALUE))
        assert answer["PhysicalResourceId"] == "AliceInFree"
        assert VALUE not in json.dumps(answer) + world.lines.getvalue()

    def test_a_delete_is_never_refused_for_its_properties(self, world: World) -> None:
        world.answer(EVENTS["create"])
        broken = event("delete", KeyID="x", UsagePlanId="", OnExisting="Maybe")
        assert world.answer(broken) == whole("delete")
        assert world.api.attached == set()

    def test_a_key_that_is_there_already_is_refused_and_the_ways_out_are_named(self, world: World) -> None:
        world.api.attached = {IN_FREE}
        answer = world.answer(EVENTS["create"])
        assert (answer["Status"], answer["PhysicalResourceId"]) == ("FAILED", f"{KEY}:{FREE}")
        assert "Adopt would use it and leave it there on Delete; Take would" in answer["Reason"]
        assert answer["Reason"].endswith(LOGS)
        assert world.answer(EVENTS["delete"])["Status"] == "SUCCESS"
        assert world.api.attached == {IN_FREE}

    def test_an_answer_that_was_not_delivered_is_delivered_by_the_next_invocation(self, world: World) -> None:
        world.sink.replies = [500] * 99
        asked = world.led_here(EVENTS["create"])
        with pytest.raises(UndeliveredError, match=r"to 127\.0\.0\.1: no time is left"):
            world.invoke(asked, 60)
        tried = len(world.sink.puts)
        world.sink.replies = []
        world.invoke(asked)
        assert len(world.sink.puts) == tried + 1
        assert {put.body for put in world.sink.puts} == {world.sink.puts[0].body}
        assert world.sink.answers[-1] == whole("create")

    def test_one_connection_serves_all_invocations(self, world: World) -> None:
        for name in ("create", "update-verify", "update-move", "delete"):
            world.answer(EVENTS[name])
        assert len(world.sink.connections) == 1

    def test_a_call_that_hangs_is_answered_once_and_written_down(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.change(clock=time)  # The guard uses real time.
        monkeypatch.setattr(threading, "excepthook", lambda _: None)
        create = world.api.create_usage_plan_key

        def hang(**ids: str) -> Any:
            world.sink.wait(seconds=1)
            return create(**ids)

        monkeypatch.setattr(world.api, "create_usage_plan_key", hang)
        monkeypatch.setattr(service, "BEFORE_CALL", 0.0)
        asked = EVENTS["create"] | {"ResponseURL": world.sink.url}
        world.invoke(asked, GUARD_TIME + 0.3)
        assert [answer["Status"] for answer in world.sink.answers] == ["FAILED"]
        (answer,) = world.sink.answers
        assert answer["PhysicalResourceId"] == f"{KEY}:{FREE}"
        assert answer["Reason"].startswith("No answer in time: a call of the function hangs.")
        world.invoke(asked)
        assert world.sink.answers == [answer, answer]
        world.invoke(EVENTS["delete"] | {"ResponseURL": world.sink.url})
        assert world.sink.answers[-1]["Status"] == "SUCCESS"
        assert world.api.attached == set()

    def test_a_ledger_that_times_out_is_answered_failed(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each attempt takes its longest time; after the last the function can still deliver its answer."""
        clock, table = world.invocation.clock, world.invocation.table
        assert table is not None
        read, reads = table._client.transact_get_items, []

        def slow(**asked: Any) -> Any:
            reads.append(asked)
            if len(reads) == 1:  # The request arrives.
                return read(**asked)
            clock.sleep(retry.SHORT_CONNECT_TIMEOUT + retry.SHORT_READ_TIMEOUT)
            raise ConnectTimeoutError(endpoint_url="https://dynamodb.eu-central-1.amazonaws.com")

        monkeypatch.setattr(table._client, "transact_get_items", slow)
        monkeypatch.setattr("random.Random.uniform", lambda _, least, most: least)
        ends = clock.time() + 60
        answer = world.answer(EVENTS["create"], 60)
        assert clock.time() <= ends - retry.SHORT_CONNECT_TIMEOUT - retry.SHORT_READ_TIMEOUT
        assert answer["Status"] == "FAILED"
        assert answer["Reason"].startswith("Could not read the ledger ledger in eu-central-1: gave up after")

    def test_a_ledger_that_refuses_is_answered_failed(self, world: World) -> None:
        boto3.client("dynamodb").delete_table(TableName="ledger")
        answer = world.answer(EVENTS["create"])
        assert (answer["Status"], answer["PhysicalResourceId"]) == ("FAILED", f"{KEY}:{FREE}")
        assert answer["Reason"].startswith("Could not read the ledger ledger in eu-central-1: ")
        assert world.api.attached == set()


class TestSecrets:
    """No logger writes a key value or a pre-signed URL, at any level, whatever happens."""

    @pytest.fixture
    def shown(self, world: World) -> Iterator[list[str]]:
        """Collect all log text and attributes; every level is lowest except those the function sets."""
        shown: list[str] = []

        class Show(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                shown.append(f"{logging.Formatter().format(record)} {record.__dict__}")

        root, everything = logging.getLogger(), Show(level=1)
        level = root.level
        root.addHandler(everything)
        root.setLevel(logging.DEBUG)
        world.app.logger.setLevel("DEBUG")
        yield shown
        world.app.logger.setLevel("INFO")
        root.setLevel(level)
        root.removeHandler(everything)

    @every_file
    @pytest.mark.parametrize("how", ["delivered", "refused", "undeliverable", "internal error"])
    def test_stay_secret(
        self,
        world: World,
        shown: list[str],
        name: str,
        how: str,
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        world.after(name)
        asked = world.led_here(event(name, IncludeValue="true"))
        match how:
            case "refused":
                world.sink.replies = [403]
            case "undeliverable":
                world.sink.replies = ["close", 500] * 50
            case "internal error":
                world.change(api=api_gateway.ApiGateway(None))  # type: ignore[arg-type]  # that is the error
        try:
            world.invoke(asked, 60)
        except UndeliveredError as error:
            shown.append(str(error))
        signature = asked["ResponseURL"].partition("X-Amz-Signature=")[2]
        assert signature in world.sink.puts[-1].path, "it was there to be shown"
        shown += [world.lines.getvalue(), *capfd.readouterr()]
        assert not [one for one in shown if VALUE in one or signature in one]

    def test_stay_secret_in_boto3s_log_lines(
        self, world: World, shown: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At DEBUG, botocore logs whole replies."""
        real = boto3.client("apigateway")
        world.change(api=api_gateway.ApiGateway(real))
        key = real.create_api_key(name="alice", value=VALUE)["id"]
        plan = real.create_usage_plan(name="Free")["id"]
        shown.clear()
        answer = world.answer(event("create", KeyId=key, UsagePlanId=plan, IncludeValue="true"))
        assert answer["Data"]["Value"] == VALUE
        assert shown
        assert not [one for one in shown if VALUE in one]


class TestLocal:
    """Under sam local the function prints and returns the answer, and takes the event at its word."""

    @every_file
    def test_is_printed_and_returned(
        self, local: World, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before, attached, _, after = SITUATIONS[name]
        local.api.attached = attached or ({IN_FREE} if "create" in before else set())
        began = time.monotonic()
        answer = local.invoke(EVENTS[name])
        assert answer == whole(name)
        assert json.loads(capsys.readouterr().out) == answer
        assert local.api.attached == after
        assert local.sink.puts == []
        assert time.monotonic() - began < 2

    @pytest.mark.parametrize("name", ["create", "update-verify"])
    def test_no_value_is_printed_or_returned(
        self, local: World, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        local.api.attached = {IN_FREE} if name == "update-verify" else set()
        answer = local.invoke(event(name, IncludeValue="true"))
        assert answer["Data"]["Value"] == "(not shown)"
        assert answer["NoEcho"] is True
        assert VALUE not in capsys.readouterr().out + local.lines.getvalue()

    def test_an_http_url_will_do_as_sams_own_generated_event_has_one(self, local: World) -> None:
        """Its properties are not ours, and the answer says so."""
        http = {"ResponseURL": "http://pre-signed-S3-url-for-response"}
        assert local.invoke(EVENTS["create"] | http)["Status"] == "SUCCESS"
        generated = (
            EVENTS["create"]
            | http
            | {"ResourceProperties": {"StackName": "stack-name", "List": ["1", "2", "3"]}}
        )
        assert "unknown property List" in local.invoke(generated)["Reason"]

    @pytest.mark.parametrize("how", ["no credentials", "nobody there"])
    def test_ends_within_seconds_when_aws_cannot_be_asked(
        self, local: World, monkeypatch: pytest.MonkeyPatch, how: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        error = (
            NoCredentialsError()
            if how == "no credentials"
            else EndpointConnectionError(endpoint_url="https://aws")
        )

        def fail(**_: str) -> None:
            raise error

        monkeypatch.setattr(local.api, "create_usage_plan_key", fail)
        began = local.invocation.clock.time()
        answer = local.invoke(EVENTS["create"])
        assert answer["Status"] == "FAILED"
        assert str(error)[:40] in answer["Reason"]
        assert json.loads(capsys.readouterr().out) == answer
        assert local.invocation.clock.time() - began < 20
