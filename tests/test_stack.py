"""template.yaml's function on MiniStack: roles and queues, under API Gateway's own rules.

The demo plays whole deploys and checks each step. The other tests send requests to the function themselves,
as CloudFormation does: asynchronously and with a pre-signed ResponseURL.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest

from emulators.ministack import ANSWER_BUCKET, REGION, Aws, packaged
from examples import demo
from examples.demo import FUNCTION, PROVIDER, ROOT, Customers

NUMBERS = count(1)


def customers(aws: Aws, name: str) -> Customers:
    """The example's plans and keys, and nobody in a plan."""
    stack, template = Customers(aws, name), demo.example()
    kept = {name: it for name, it in template["Resources"].items() if it["Type"] != "Custom::UsagePlanKey"}
    template = {"Parameters": template["Parameters"], "Resources": kept}
    assert stack.deploy(template).status == "CREATE_COMPLETE"
    return stack


@pytest.fixture
def stack(aws: Aws) -> Iterator[Customers]:
    """Whatever the test does, no secret is in the log afterwards."""
    stack = customers(aws, f"customers-{next(NUMBERS)}")
    yield stack
    assert stack.leaked() == []


@pytest.fixture(scope="module")
def gated(aws: Aws) -> Customers:
    """The same, served by a second stack of template.yaml, for one plan and with the watch."""
    stack = customers(aws, "gated-customers")
    parameters = {
        "UsagePlanId": stack.id("Free"),
        "WatchSchedule": "rate(1 day)",
        "ApiGatewayEndpoint": aws.proxy.url,
        "FunctionArnParameterName": "",  # The SSM parameter is the first stack's.
    }
    template = packaged(ROOT / "template.yaml", aws.upload(ROOT / "handler"))
    deployment = aws.deploy("gated", template, **parameters)
    assert deployment.status == "CREATE_COMPLETE", deployment.failures
    stack.function = aws.physical_ids("gated")[FUNCTION]
    return stack


def asking(stack: Customers, association: str, **more: str) -> dict[str, Any]:
    key, plan = stack.id(association).split(":")
    return {"ResourceProperties": {"KeyId": key, "UsagePlanId": plan, **more}}


def test_the_demo_is_as_promised(aws: Aws) -> None:
    """It checks after each deploy: requests, answers, plans, what was detached, the log and the ledger."""
    demo.tell(demo.Story(), Customers(aws))


def test_a_dead_letter_that_the_command_puts_back_is_answered(stack: Customers) -> None:
    """tools/redrive.py, as an operator runs it, with Lambda's record of a failed invocation."""
    aws, s3, place = stack.aws, stack.aws._bucket(ANSWER_BUCKET), {"Bucket": ANSWER_BUCKET, "Key": "letter"}
    event = json.loads((ROOT / "events" / "create.json").read_text())
    event |= {"StackId": aws.stack_id(stack.name), **asking(stack, "alice in Free")}
    event["ResponseURL"] = s3.generate_presigned_url("put_object", Params=place)
    record = {"version": "1.0", "timestamp": f"{datetime.now(UTC):%FT%TZ}", "requestPayload": event}
    unanswered = aws.physical_ids(PROVIDER)["Unanswered"]
    aws.client("sqs").send_message(QueueUrl=unanswered, MessageBody=json.dumps(record))
    command = ["tools/redrive.py", "--region", REGION, "--stack", PROVIDER, "--send"]
    environment = {
        "AWS_ENDPOINT_URL": f"https://localhost:{aws.port}",
        "AWS_CA_BUNDLE": str(aws.certificate),
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    told = subprocess.check_output([sys.executable, *command], cwd=ROOT, env=environment, text=True)
    assert "Unanswered: 1 sent, 0 still there" in told
    s3.get_waiter("object_exists").wait(**place, WaiterConfig={"Delay": 1})
    assert json.load(s3.get_object(**place)["Body"])["Data"]["Outcome"] == "ATTACHED"


@pytest.mark.parametrize(
    ("association", "more", "said"),
    [
        ("carol in Free", {}, "ATTACHED"),
        ("dora in Pro", {}, "apigateway:POST"),  # It is not its one plan.
        ("dora in Free", {"IncludeValue": "true"}, "localhost"),  # Only CloudFormation's host gets a value.
    ],
)
def test_the_function_can_be_narrowed_to_one_plan(
    gated: Customers, association: str, more: dict[str, str], said: str
) -> None:
    """MiniStack holds a role to its policy: this shows that it is enough, and no more."""
    assert said in str(gated.send("Create", "Somebody", association, **asking(gated, association, **more)))


def test_the_watch_finds_a_key_that_somebody_attached_with_its_own_roles_policy(gated: Customers) -> None:
    gated.send("Create", "Alice", "alice in Free")
    api, (bob, free) = gated.aws.client("apigateway"), gated.id("bob in Free").split(":")
    api.create_usage_plan_key(usagePlanId=free, keyId=bob, keyType="API_KEY")
    gated.function = gated.aws.physical_ids("gated")["WatchFunction"]
    found = gated.aws.invoke(gated.function, {})
    assert [found[each] for each in ("plans", "missing", "unheld", "gone", "repairs")] == [1, 0, 1, 0, 0]
    assert gated.leaked() == []
