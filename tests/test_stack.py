"""template.yaml's function on MiniStack: roles, queues and a boundary, under API Gateway's own rules.

The demo plays whole deploys and checks each step. The other tests send requests to the function themselves,
as CloudFormation does: asynchronously and with a pre-signed ResponseURL.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest
from boto3.dynamodb.types import TypeDeserializer, TypeSerializer

from emulators.ministack import ANSWER_BUCKET, REGION, Aws, InvokeError, packaged
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
    """The same, served by a second stack of template.yaml with all that an organisation's gate asks for.

    MiniStack's CloudFormation drops keys and networks, which tests/test_template.py has, and a role's
    boundary, which MiniStack's IAM keeps.
    """
    stack = customers(aws, "gated-customers")
    ec2, iam = aws.client("ec2"), aws.client("iam")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/24")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/25")["Subnet"]["SubnetId"]
    group = ec2.create_security_group(GroupName="inside", Description="-", VpcId=vpc)["GroupId"]
    bound = iam.create_policy(PolicyName="gated-boundary", PolicyDocument=boundary())["Policy"]["Arn"]
    parameters = {
        "UsagePlanId": stack.id("Free"),
        "KmsKeyArn": aws.client("kms").create_key()["KeyMetadata"]["Arn"],
        "SubnetIds": subnet,
        "SecurityGroupIds": group,
        "PermissionsBoundaryArn": bound,
        "WatchSchedule": "rate(1 day)",
        "WatchRepairs": "true",
        "ApiGatewayEndpoint": aws.proxy.url,
        "FunctionArnParameterName": "",  # The SSM parameter is the first stack's.
    }
    template = packaged(ROOT / "template.yaml", aws.upload(ROOT / "handler"))
    deployment = aws.deploy("gated", template, **parameters)
    assert deployment.status == "CREATE_COMPLETE", deployment.failures
    resources = aws.physical_ids("gated")
    for role in ("Role", "WatchRole"):
        iam.put_role_permissions_boundary(RoleName=resources[role], PermissionsBoundary=bound)
    stack.function = resources[FUNCTION]
    return stack


def boundary() -> str:
    """The manual's boundary, for the stack `gated`."""
    section = (ROOT / "docs" / "deploy.md").read_text().partition("### With a boundary")[2]
    policy = section.partition("```json")[2].partition("```")[0]
    return policy.replace("111122223333", "0" * 12).replace("usage-plan-key", "gated")


def until(condition: Callable[[], bool], stack: Customers) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, stack.aws.log(stack.function)
        time.sleep(0.1)


def by_hand(stack: Customers, association: str) -> None:
    key, plan = stack.id(association).split(":")
    stack.aws.client("apigateway").create_usage_plan_key(usagePlanId=plan, keyId=key, keyType="API_KEY")


def asking(stack: Customers, association: str, **more: str) -> dict[str, Any]:
    key, plan = stack.id(association).split(":")
    return {"ResourceProperties": {"KeyId": key, "UsagePlanId": plan, **more}}


def test_the_demo_is_as_promised(aws: Aws) -> None:
    """It checks after each deploy: requests, answers, plans, what was detached, the log and the ledger."""
    demo.tell(demo.Story(), Customers(aws))


def test_five_requests_at_once_meet_in_the_queue_and_not_at_api_gateway(
    stack: Customers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack.aws.proxy.one_at_a_time, "seconds", 0.3)
    many = ["alice", "bob", "carol", "dora", "erin"]
    with ThreadPoolExecutor(len(many)) as pool:
        answers = pool.map(lambda name: stack.send("Create", name.title(), f"{name} in Free"), many)
        assert {answer["Data"]["Outcome"] for answer in answers} == {"ATTACHED"}
    assert stack.plans()["Free"] == many
    ids = {stack.id(name) for name in many}
    assert {call.status for call in stack.aws.proxy.calls if call.key in ids} == {201}


def test_an_operator_lets_go_of_the_hold_of_a_stack_that_is_gone(stack: Customers) -> None:
    """An operator's event lets go of a deleted stack's retained hold; an existing stack keeps it."""
    aws, association = stack.aws, stack.id("alice in Free")
    (asked,) = asking(stack, "alice in Free").values()
    properties = {"ServiceToken": {"Fn::ImportValue": f"{PROVIDER}-FunctionArn"}, **asked}
    retained = {"Type": "Custom::UsagePlanKey", "DeletionPolicy": "Retain", "Properties": properties}
    assert aws.deploy("former", {"Resources": {"Alice": retained}}).status == "CREATE_COMPLETE"
    held = {"StackId": aws.stack_id("former"), "LogicalResourceId": "Alice"}
    with pytest.raises(InvokeError, match="still there"):
        aws.invoke(stack.function, {"LetGo": held})
    assert aws.delete("former").status == "DELETE_COMPLETE"
    refused = stack.send("Create", "Alicia", "alice in Free")
    assert refused["Status"] == "FAILED"
    assert held["StackId"] in refused["Reason"]
    assert aws.invoke(stack.function, {"LetGo": held}) == {"LetGo": [association]}
    adopt = asking(stack, "alice in Free", OnExisting="Adopt")
    assert stack.send("Create", "Alicia", "alice in Free", **adopt)["Data"]["Outcome"] == "ADOPTED"


def test_a_dead_letter_that_the_command_puts_back_is_answered(stack: Customers) -> None:
    """tools/redrive.py, as an operator runs it, with Lambda's record of a failed invocation."""
    aws, s3, sqs = stack.aws, stack.aws._bucket(ANSWER_BUCKET), stack.aws.client("sqs")
    answer = {"Bucket": ANSWER_BUCKET, "Key": "dead-letter"}
    event = {
        "RequestType": "Create",
        "RequestId": "dead-letter",
        "ResponseURL": s3.generate_presigned_url("put_object", Params=answer),
        "ResourceType": "Custom::UsagePlanKey",
        "StackId": aws.stack_id(stack.name),
        "LogicalResourceId": "Alice",
        **asking(stack, "alice in Free"),
    }
    record = {"version": "1.0", "timestamp": f"{datetime.now(UTC):%FT%TZ}", "requestPayload": event}
    unanswered = aws.physical_ids(PROVIDER)["Unanswered"]
    sqs.send_message(QueueUrl=unanswered, MessageBody=json.dumps(record))
    command = ["tools/redrive.py", "--region", REGION, "--stack", PROVIDER, "--send"]
    environment = {
        "AWS_ENDPOINT_URL": f"https://localhost:{aws.port}",
        "AWS_CA_BUNDLE": str(aws.certificate),
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    told = subprocess.check_output([sys.executable, *command], cwd=ROOT, env=environment, text=True)
    assert "Unanswered: 1 sent, 0 still there" in told
    assert "Messages" not in sqs.receive_message(QueueUrl=unanswered)
    until(lambda: stack.plans()["Free"] == ["alice"], stack)


def test_the_function_can_be_narrowed_to_one_plan(gated: Customers) -> None:
    """MiniStack holds a role to its policy: this and the tests above show that it is enough, and no more."""
    assert gated.send("Create", "Carol", "carol in Free")["Data"]["Outcome"] == "ATTACHED"
    answer = gated.send("Create", "Dora", "dora in Pro")
    assert answer["Status"] == "FAILED"
    assert "apigateway:POST" in answer["Reason"]
    assert gated.plans()["Pro"] == []


def test_the_manuals_boundary_leaves_the_function_no_permission_to_spare(aws: Aws, gated: Customers) -> None:
    """MiniStack holds a role to its boundary too: all `gated` tests work under it."""
    policy = {"PolicyArn": f"arn:aws:iam::{'0' * 12}:policy/gated-boundary", "SetAsDefault": True}
    less = boundary().replace("apigateway:POST", "apigateway:PUT")
    aws.client("iam").create_policy_version(**policy, PolicyDocument=less)
    answer = gated.send("Create", "Erin", "erin in Free")
    aws.client("iam").create_policy_version(**policy, PolicyDocument=boundary())
    assert answer["Status"] == "FAILED"
    assert "apigateway:POST" in answer["Reason"]
    assert gated.send("Create", "Erin", "erin in Free")["Data"]["Outcome"] == "ATTACHED"


def test_a_value_goes_to_no_other_host(gated: Customers) -> None:
    """Where no parameter names an emulator, only CloudFormation's own host gets it."""
    asked = asking(gated, "dora in Free", IncludeValue="true")
    answer = gated.send("Create", "Dora", "dora in Free", **asked)
    assert answer["Status"] == "FAILED"
    assert "localhost" in answer["Reason"]
    assert "dora" not in gated.plans()["Free"]


def test_the_watch_reports_a_key_that_somebody_removed_and_the_function_attaches_it_again(
    aws: Aws, gated: Customers
) -> None:
    """With its own role's policy."""
    resources = aws.physical_ids("gated")
    watch, counts = resources["WatchFunction"], ("plans", "missing", "unheld", "gone", "repairs")
    gated.send("Create", "Alice", "alice in Free")
    by_hand(gated, "bob in Free")
    gated.detach_by_hand("alice in Free")
    assert aws.invoke(watch, {})["missing"] == 0, "a request has touched it within the hour"
    two_hours_pass(aws, resources["Ledger"])
    found = aws.invoke(watch, {"Repair": False})
    assert [found[each] for each in counts] == [1, 1, 1, 0, 0]
    assert "alice" not in gated.plans()["Free"]
    assert aws.invoke(watch, {})["repairs"] == 1
    until(lambda: {"alice", "bob"} <= {*gated.plans()["Free"]}, gated)
    assert aws.invoke(watch, {})["missing"] == 0
    assert gated.detached() == []
    log = "".join(aws.log(watch))
    assert f"Missing: {gated.id('alice in Free')}, held by Alice of stack {gated.name}" in log
    assert '"Drift":[1.0]' in log
    assert gated.leaked() == []
    gated.function = watch
    assert gated.leaked() == []


def two_hours_pass(aws: Aws, table: str) -> None:
    """Make every time in the ledger two hours older."""
    client, read, write = aws.client("dynamodb"), TypeDeserializer().deserialize, TypeSerializer().serialize
    for item in client.scan(TableName=table)["Items"]:
        page = {name: read(value) for name, value in item.items()}
        if page["pk"].startswith("holder#"):
            for note in page["notes"]:
                note["issued"] -= 7200
                if "answer" in note:
                    note["answer"]["at"] -= 7200
            client.put_item(TableName=table, Item={name: write(value) for name, value in page.items()})


def test_unless_the_parameter_says_so_the_watch_asks_for_no_repair(stack: Customers) -> None:
    watch = stack.aws.physical_ids(PROVIDER)["WatchFunction"]
    with pytest.raises(InvokeError, match="WatchRepairs=true"):
        stack.aws.invoke(watch, {"Repair": True})
    assert stack.aws.invoke(watch, {"UsagePlanId": stack.id("Free")})["plans"] == 1
