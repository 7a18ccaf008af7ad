"""template.yaml's function serves real templates on MiniStack, under API Gateway's own rules.

MiniStack sends no Delete after a failed Create, and no request twice. The tests send these to the function
themselves, as CloudFormation does: asynchronously and with a pre-signed ResponseURL.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest
from boto3.dynamodb.types import TypeDeserializer, TypeSerializer

from emulators import rules
from emulators.ministack import ANSWER_BUCKET, REGION, Aws, InvokeError, Template, packaged, running
from examples.demo import (
    FUNCTION,
    PROVIDER,
    ROOT,
    Customers,
    example,
    failing,
    kept_as_secret,
    moved,
    renamed,
    shifted,
)

NUMBERS = count(1)
SECOND = {"FunctionArnParameterName": ""}
"""A second stack of template.yaml in the region: the SSM parameter is the first one's."""


@pytest.fixture(scope="module")
def aws() -> Iterator[Aws]:
    """MiniStack, with the function deployed."""
    with running() as aws:
        deployment = aws.deploy(PROVIDER, provider(aws), **aws.emulated)
        assert deployment.status == "CREATE_COMPLETE", deployment.events
        yield aws


@pytest.fixture
def stack(aws: Aws) -> Iterator[Customers]:
    """A place for a stack of its own. Whatever the test does, no secret is in the log afterwards."""
    stack = Customers(aws, f"customers-{next(NUMBERS)}")
    yield stack
    assert stack.leaked() == []


@pytest.fixture
def deployed(stack: Customers) -> Customers:
    """The example, deployed."""
    assert stack.deploy(example()).status == "CREATE_COMPLETE"
    stack.requests(5)
    stack.detached()
    return stack


@pytest.fixture
def plans_and_keys(stack: Customers) -> Customers:
    """The example's plans and keys, and nobody in a plan."""
    assert stack.deploy(without_associations(example())).status == "CREATE_COMPLETE"
    return stack


def without_associations(template: Template) -> Template:
    kept = {name: it for name, it in template["Resources"].items() if it["Type"] != "Custom::UsagePlanKey"}
    return {"Parameters": template["Parameters"], "Resources": kept}


def native(template: Template) -> Template:
    """The example with the native type's associations, with the policy Retain."""
    for resource in template["Resources"].values():
        if resource["Type"] == "Custom::UsagePlanKey":
            kept = {name: resource["Properties"][name] for name in ("KeyId", "UsagePlanId")}
            resource |= {"Type": "AWS::ApiGateway::UsagePlanKey", "DeletionPolicy": "Retain"}
            resource["Properties"] = {**kept, "KeyType": "API_KEY"}
    return {name: template[name] for name in ("Parameters", "Resources")}


def taking(template: Template) -> Template:
    """The example's associations under new logical ids, with `Take`."""
    resources = {
        name + ("Taken" if resource["Type"] == "Custom::UsagePlanKey" else ""): resource
        for name, resource in template["Resources"].items()
    }
    for resource in resources.values():
        if resource["Type"] == "Custom::UsagePlanKey":
            resource["Properties"]["OnExisting"] = "Take"
    return {"Parameters": template["Parameters"], "Resources": resources}


def outcomes(stack: Customers, expected: int) -> dict[tuple[str, str], str]:
    """List each resource's request and outcome."""
    return {(it.kind, it.logical_id): it.outcome or it.status for it in stack.requests(expected)}


@pytest.mark.usefixtures("either_conflict")
class TestDeploys:
    """Deployments of the example change its customers."""

    def test_create_attaches(self, stack: Customers) -> None:
        assert stack.deploy(example()).status == "CREATE_COMPLETE"
        assert set(outcomes(stack, 5).values()) == {"ATTACHED"}
        assert stack.plans() == {"Free": ["alice", "bob", "dora", "erin"], "Pro": ["carol"]}
        outputs = stack.aws.outputs(stack.name)
        assert (outputs["AliceId"], outputs["AliceOutcome"]) == (stack.id("alice in Free"), "ATTACHED")

    def test_a_changed_trigger_verifies(self, deployed: Customers) -> None:
        deployed.deploy(example(), verify_trigger=2)
        assert set(outcomes(deployed, 5).values()) == {"VERIFIED"}
        assert deployed.aws.outputs(deployed.name)["AliceOutcome"] == "VERIFIED"

    def test_a_key_that_was_removed_by_hand_is_attached_again(self, deployed: Customers) -> None:
        deployed.detach_by_hand("alice in Free")
        deployed.deploy(example(), verify_trigger=2)
        assert outcomes(deployed, 5)["Update", "Alice"] == "REPAIRED"
        assert "alice" in deployed.plans()["Free"]

    def test_a_changed_plan_moves(self, deployed: Customers) -> None:
        assert deployed.deploy(moved(example())).status == "UPDATE_COMPLETE"
        assert outcomes(deployed, 2) == {("Update", "Alice"): "MOVED", ("Delete", "Alice"): "SUCCESS"}
        assert deployed.plans() == {"Free": ["bob", "dora", "erin"], "Pro": ["alice", "carol"]}
        assert deployed.aws.outputs(deployed.name)["AliceId"] == deployed.id("alice in Pro")

    def test_a_rename_keeps_the_key_attached_all_along(self, deployed: Customers) -> None:
        assert deployed.deploy(renamed(example())).status == "UPDATE_COMPLETE"
        assert outcomes(deployed, 2) == {("Create", "CarolInc"): "JOINED", ("Delete", "Carol"): "SUCCESS"}
        assert deployed.detached() == []
        assert deployed.plans()["Pro"] == ["carol"]

    def test_a_shifted_list_keeps_its_keys_attached_all_along(self, deployed: Customers) -> None:
        assert deployed.deploy(shifted(example())).status == "UPDATE_COMPLETE"
        assert deployed.detached() == []
        assert deployed.plans()["Free"] == ["alice", "bob", "dora", "erin", "frank"]

    def test_a_value_goes_into_a_secret_and_follows_its_key(self, stack: Customers) -> None:
        """The stack's fixture checks that no log has it."""
        assert stack.deploy(kept_as_secret(example())).status == "CREATE_COMPLETE"
        assert stack.secret("AliceSecret") == stack.value("alice")
        other = kept_as_secret(example())
        other["Resources"]["Alice"]["Properties"]["KeyId"] = {"Ref": "FrankKey"}
        other["Resources"]["FrankKey"] = other["Resources"]["AliceKey"]
        assert stack.deploy(other).status == "UPDATE_COMPLETE"
        assert stack.secret("AliceSecret") == stack.value("frank")

    def test_a_failed_create_rolls_back_and_says_why(self, stack: Customers) -> None:
        deployment = stack.deploy(failing(example()))
        assert deployment.status == "ROLLBACK_COMPLETE"
        reason = deployment.reason("BobInPro")
        for part in (f"{stack.name}-free", ":prod", f"Bob of stack {stack.name}", "log stream"):
            assert part in reason
        assert stack.plans() == {}

    def test_a_failed_update_leaves_everything_as_it_was(self, deployed: Customers) -> None:
        before = deployed.plans()
        assert deployed.deploy(failing(example())).status == "UPDATE_ROLLBACK_COMPLETE"
        answer = deployed.send(
            "Delete", "BobInPro", "bob in Pro", PhysicalResourceId=deployed.id("bob in Pro")
        )
        assert answer["Status"] == "SUCCESS"
        assert deployed.detached() == ["grace in Free"]
        assert deployed.plans() == before

    def test_delete_leaves_nothing(self, deployed: Customers) -> None:
        assert deployed.delete().status == "DELETE_COMPLETE"
        assert sorted(deployed.detached()) == [
            "alice in Free",
            "bob in Free",
            "carol in Pro",
            "dora in Free",
            "erin in Free",
        ]
        assert deployed.left_in_ledger() == []

    def test_the_native_types_associations_are_taken_over_and_never_detached_on_the_way(
        self, stack: Customers
    ) -> None:
        """Retain, adopt, take (docs/migrate.md). Then the keys are ours and go with their stack."""
        assert stack.deploy(native(example())).status == "CREATE_COMPLETE"
        assert stack.deploy(taking(example())).status == "UPDATE_COMPLETE"
        assert outcomes(stack, 5)["Create", "AliceTaken"] == "ADOPTED"
        assert stack.deploy(taking(example()), verify_trigger=2).status == "UPDATE_COMPLETE"
        assert set(outcomes(stack, 5).values()) == {"TAKEN"}
        assert stack.detached() == []
        assert stack.plans() == {"Free": ["alice", "bob", "dora", "erin"], "Pro": ["carol"]}
        assert stack.deploy(without_associations(example())).status == "UPDATE_COMPLETE"
        assert stack.plans() == {"Free": [], "Pro": []}


class TestRequests:
    """Single requests meet obstacles."""

    def test_a_lost_reply_is_no_stranger(self, plans_and_keys: Customers) -> None:
        plans_and_keys.aws.proxy.lose_next("CreateUsagePlanKey")
        answer = plans_and_keys.send("Create", "Alice", "alice in Free")
        assert answer["Data"]["Outcome"] == "ATTACHED"
        assert plans_and_keys.plans()["Free"] == ["alice"]

    @pytest.mark.parametrize("passing", [rules.too_many(1)], ids=["throttled"])
    def test_the_function_waits_out_a_passing_refusal(
        self, plans_and_keys: Customers, passing: rules.Refusal
    ) -> None:
        plans_and_keys.aws.proxy.fail_next("CreateUsagePlanKey", passing)
        assert plans_and_keys.send("Create", "Alice", "alice in Free")["Data"]["Outcome"] == "ATTACHED"

    def test_five_at_once_are_all_served(
        self, plans_and_keys: Customers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(plans_and_keys.aws.proxy.one_at_a_time, "seconds", 0.3)
        many = ["alice", "bob", "carol", "dora", "erin"]
        with ThreadPoolExecutor(len(many)) as pool:
            answers = pool.map(
                lambda name: plans_and_keys.send("Create", name.title(), f"{name} in Free"), many
            )
            assert {answer["Data"]["Outcome"] for answer in answers} == {"ATTACHED"}
        assert plans_and_keys.plans()["Free"] == many
        ids = {plans_and_keys.id(name) for name in many}
        # The queue kept them from meeting at API Gateway.
        assert {call.status for call in plans_and_keys.aws.proxy.calls if call.key in ids} == {201}

    def test_the_same_request_has_the_same_answer(self, plans_and_keys: Customers) -> None:
        first = plans_and_keys.send("Create", "Alice", "alice in Free", RequestId="once")
        plans_and_keys.send(
            "Delete", "Alice", "alice in Free", PhysicalResourceId=first["PhysicalResourceId"]
        )
        # SQS drops a duplicate for five minutes. A request comes again if nobody could deliver its answer.
        again = plans_and_keys.send("Create", "Alice", "alice in Free", RequestId="once", by_queue=True)
        assert again == first
        assert plans_and_keys.plans()["Free"] == []

    def test_a_key_that_is_there_already_is_refused(self, plans_and_keys: Customers) -> None:
        attach_by_hand(plans_and_keys, "alice in Free")
        answer = plans_and_keys.send("Create", "Alice", "alice in Free")
        assert (answer["Status"], answer["PhysicalResourceId"]) == (
            "FAILED",
            plans_and_keys.id("alice in Free"),
        )
        assert all(word in answer["Reason"] for word in ("Adopt", "Take", "log stream"))
        answer = plans_and_keys.send(
            "Delete", "Alice", "alice in Free", PhysicalResourceId=answer["PhysicalResourceId"]
        )
        assert answer["Status"] == "SUCCESS"
        assert plans_and_keys.plans()["Free"] == ["alice"]

    def test_an_adopted_key_stays_when_its_resource_goes(self, plans_and_keys: Customers) -> None:
        attach_by_hand(plans_and_keys, "alice in Free")
        properties = adopting(plans_and_keys, "alice in Free")
        answer = plans_and_keys.send("Create", "Alice", "alice in Free", ResourceProperties=properties)
        assert answer["Data"]["Outcome"] == "ADOPTED"
        plans_and_keys.send(
            "Delete", "Alice", "alice in Free", PhysicalResourceId=answer["PhysicalResourceId"]
        )
        assert plans_and_keys.plans()["Free"] == ["alice"]

    def test_another_stack_is_named(self, plans_and_keys: Customers) -> None:
        plans_and_keys.send("Create", "Alice", "alice in Free")
        stranger = f"arn:aws:cloudformation:eu-central-1:000000000000:stack/elsewhere/{'0' * 8}"
        answer = plans_and_keys.send("Create", "Alicia", "alice in Free", StackId=stranger)
        assert answer["Status"] == "FAILED"
        assert f"Alice of stack {plans_and_keys.name}" in answer["Reason"]

    def test_an_unknown_plan_is_named(self, plans_and_keys: Customers) -> None:
        properties = {"KeyId": plans_and_keys.id("alice"), "UsagePlanId": "nowhere"}
        answer = plans_and_keys.send("Create", "Alice", "alice in Free", ResourceProperties=properties)
        assert answer["Status"] == "FAILED"
        assert "usage plan nowhere in eu-central-1" in answer["Reason"]

    def test_an_operator_lets_go_of_the_hold_of_a_stack_that_is_gone(self, plans_and_keys: Customers) -> None:
        """An operator's event lets go of a deleted stack's retained hold; an existing stack keeps it."""
        aws = plans_and_keys.aws
        key, plan = plans_and_keys.id("alice in Free").split(":")
        assert aws.deploy("former", retained(key, plan)).status == "CREATE_COMPLETE"
        held = {"StackId": aws.stack_id("former"), "LogicalResourceId": "Alice"}
        with pytest.raises(InvokeError, match="still there"):
            aws.invoke(plans_and_keys.function, {"LetGo": held})
        assert aws.delete("former").status == "DELETE_COMPLETE"
        answer = plans_and_keys.send("Create", "Alicia", "alice in Free")
        assert answer["Status"] == "FAILED"
        assert held["StackId"] in answer["Reason"]
        assert aws.invoke(plans_and_keys.function, {"LetGo": held}) == {"LetGo": [f"{key}:{plan}"]}
        assert plans_and_keys.plans()["Free"] == ["alice"]
        adopted = plans_and_keys.send(
            "Create", "Alicia", "alice in Free", ResourceProperties=adopting(plans_and_keys, "alice in Free")
        )
        assert adopted["Data"]["Outcome"] == "ADOPTED"

    def test_a_dead_letter_that_the_command_puts_back_is_answered(self, plans_and_keys: Customers) -> None:
        """tools/redrive.py, as an operator runs it, with Lambda's record of a failed invocation."""
        aws = plans_and_keys.aws
        key, plan = plans_and_keys.id("alice in Free").split(":")
        answer = {"Bucket": ANSWER_BUCKET, "Key": "dead-letter"}
        s3, sqs = aws._bucket(ANSWER_BUCKET), aws.client("sqs")
        event = {
            "RequestType": "Create",
            "RequestId": "dead-letter",
            "ResponseURL": s3.generate_presigned_url("put_object", Params=answer),
            "ResourceType": "Custom::UsagePlanKey",
            "StackId": aws.stack_id(plans_and_keys.name),
            "LogicalResourceId": "Alice",
            "ResourceProperties": {"KeyId": key, "UsagePlanId": plan},
        }
        record = {"version": "1.0", "timestamp": f"{datetime.now(UTC):%FT%TZ}", "requestPayload": event}
        unanswered = aws.physical_ids(PROVIDER)["Unanswered"]
        sqs.send_message(QueueUrl=unanswered, MessageBody=json.dumps(record))
        done = subprocess.run(
            [
                sys.executable,
                ROOT / "tools" / "redrive.py",
                "--region",
                REGION,
                "--stack",
                PROVIDER,
                "--send",
            ],
            env={
                "AWS_ENDPOINT_URL": f"https://localhost:{aws.port}",
                "AWS_CA_BUNDLE": str(aws.certificate),
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
            },
            check=False,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "Unanswered: 1 sent, 0 still there" in done.stdout
        assert "Messages" not in sqs.receive_message(QueueUrl=unanswered)
        deadline = time.monotonic() + 20
        while plans_and_keys.plans()["Free"] != ["alice"]:
            assert time.monotonic() < deadline, aws.log(plans_and_keys.function)
            time.sleep(0.1)

    def test_a_value_goes_to_no_other_host(self, plans_and_keys: Customers) -> None:
        """If no parameter names an emulator, only CloudFormation's own host gets it."""
        aws = plans_and_keys.aws
        aws.deploy("strict", provider(aws), **aws.emulated | {"ResponseHost": "", **SECOND})
        plans_and_keys.function = aws.physical_ids("strict")[FUNCTION]
        properties = adopting(plans_and_keys, "alice in Free") | {"IncludeValue": "true"}
        answer = plans_and_keys.send("Create", "Alice", "alice in Free", ResourceProperties=properties)
        assert answer["Status"] == "FAILED"
        assert "localhost" in answer["Reason"]
        assert plans_and_keys.plans()["Free"] == []


class TestRole:
    """MiniStack holds the function to its role's policy: the tests above show that it is enough."""

    def test_the_function_can_be_narrowed_to_one_plan(self, plans_and_keys: Customers) -> None:
        aws = plans_and_keys.aws
        plan = plans_and_keys.id("Pro")
        aws.deploy("narrow", provider(aws), UsagePlanId=plan, **aws.emulated, **SECOND)
        plans_and_keys.function = aws.physical_ids("narrow")[FUNCTION]
        assert plans_and_keys.send("Create", "Carol", "carol in Pro")["Data"]["Outcome"] == "ATTACHED"
        answer = plans_and_keys.send("Create", "Alice", "alice in Free")
        assert answer["Status"] == "FAILED"
        assert "apigateway:POST" in answer["Reason"]
        assert plans_and_keys.plans() == {"Free": [], "Pro": ["carol"]}


class TestGate:
    """An organisation's gate asks for a key and a network of its own: a stack with each deploys and serves.

    MiniStack's CloudFormation drops a function's key and network; tests/test_template.py has both.
    """

    def test_the_key_is_on_the_ledger_the_queues_and_the_logs(self, plans_and_keys: Customers) -> None:
        """A deployed stack gets the key by an update, and serves as before."""
        aws, arn = plans_and_keys.aws, key(plans_and_keys.aws)
        assert aws.deploy("sealed", provider(aws), **aws.emulated, **SECOND).status == "CREATE_COMPLETE"
        assert set(encrypted(aws, "sealed").values()) == {None}
        parameters = {"KmsKeyArn": arn} | aws.emulated | SECOND
        assert aws.deploy("sealed", provider(aws), **parameters).status == "UPDATE_COMPLETE"
        assert encrypted(aws, "sealed") == dict.fromkeys((*QUEUES, "Ledger", *LOGS), arn)
        plans_and_keys.function = aws.physical_ids("sealed")[FUNCTION]
        assert plans_and_keys.send("Create", "Alice", "alice in Free")["Data"]["Outcome"] == "ATTACHED"

    def test_in_a_network_lambda_may_make_interfaces_and_the_function_may_not(
        self, plans_and_keys: Customers
    ) -> None:
        aws = plans_and_keys.aws
        vpc = aws.client("ec2").create_vpc(CidrBlock="10.0.0.0/24")["Vpc"]["VpcId"]
        halves = [
            aws.client("ec2").create_subnet(VpcId=vpc, CidrBlock=cidr)["Subnet"]["SubnetId"]
            for cidr in ("10.0.0.0/25", "10.0.0.128/25")
        ]
        made = aws.client("ec2").create_security_group(GroupName="inside", Description="-", VpcId=vpc)
        network = {"SubnetIds": ",".join(halves), "SecurityGroupIds": made["GroupId"]}
        assert aws.deploy("inside", provider(aws), **network, **aws.emulated, **SECOND).status == (
            "CREATE_COMPLETE"
        )
        resources = aws.physical_ids("inside")
        asked = {"RoleName": resources["Role"], "PolicyName": "usage-plan-key-network"}
        policy = aws.client("iam").get_role_policy(**asked)["PolicyDocument"]["Statement"]
        ours = {it["Sid"]: it for it in policy}
        assert {sid: it["Effect"] for sid, it in ours.items()} == {
            "JoinNetwork": "Allow",
            "SeeNetwork": "Allow",
            "LeaveNetworkToLambda": "Deny",
        }
        function = aws.client("lambda").get_function(FunctionName=resources[FUNCTION])["Configuration"]
        denied = ours["LeaveNetworkToLambda"]["Condition"]["ArnEquals"]["lambda:SourceFunctionArn"]
        assert denied == function["FunctionArn"]
        plans_and_keys.function = resources[FUNCTION]
        assert plans_and_keys.send("Create", "Alice", "alice in Free")["Data"]["Outcome"] == "ATTACHED"

    def test_under_the_manuals_boundary_both_functions_do_their_work(self, plans_and_keys: Customers) -> None:
        """MiniStack holds a role to its boundary; its CloudFormation drops it, so the test sets it."""
        aws = plans_and_keys.aws
        boundary = (ROOT / "docs" / "deploy.md").read_text().partition("### With a boundary")[2]
        policy = boundary.partition("```json")[2].partition("```")[0]
        for name, value in (("111122223333", "0" * 12), ("usage-plan-key", "bounded")):
            policy = policy.replace(name, value)
        made = aws.client("iam").create_policy(PolicyName="bounded-boundary", PolicyDocument=policy)
        arn = made["Policy"]["Arn"]
        parameters = {"PermissionsBoundaryArn": arn} | aws.emulated | SECOND
        assert aws.deploy("bounded", provider(aws), **parameters).status == "CREATE_COMPLETE"
        resources = aws.physical_ids("bounded")
        for role in ("Role", "WatchRole"):
            aws.client("iam").put_role_permissions_boundary(RoleName=resources[role], PermissionsBoundary=arn)
        plans_and_keys.function = resources[FUNCTION]
        assert plans_and_keys.send("Create", "Alice", "alice in Free")["Data"]["Outcome"] == "ATTACHED"
        assert aws.invoke(resources["WatchFunction"], {})["associations"] == 1
        less = aws.client("iam").create_policy_version(
            PolicyArn=arn,
            PolicyDocument=policy.replace("apigateway:POST", "apigateway:PUT"),
            SetAsDefault=True,
        )
        assert less["PolicyVersion"]["IsDefaultVersion"]
        answer = plans_and_keys.send("Create", "Bob", "bob in Free")
        assert answer["Status"] == "FAILED"
        assert "apigateway:POST" in answer["Reason"]


class TestWatch:
    """The second function, with its own role's policy: somebody removes a key from its plan by hand."""

    def test_it_is_reported_and_attached_again_by_the_serving_function(
        self, plans_and_keys: Customers
    ) -> None:
        aws = plans_and_keys.aws
        parameters = {"WatchSchedule": "rate(1 day)", "WatchRepairs": "true"} | aws.emulated | SECOND
        assert aws.deploy("watched", provider(aws), **parameters).status == "CREATE_COMPLETE"
        resources = aws.physical_ids("watched")
        plans_and_keys.function, watch = resources[FUNCTION], resources["WatchFunction"]
        plans_and_keys.send("Create", "Alice", "alice in Free")
        attach_by_hand(plans_and_keys, "bob in Free")
        plans_and_keys.detach_by_hand("alice in Free")
        assert aws.invoke(watch, {})["missing"] == 0, "a request has touched it within the hour"
        two_hours_pass(aws, resources["Ledger"])
        found = aws.invoke(watch, {"Repair": False})
        counts = ("plans", "associations", "missing", "unheld", "gone", "repairs", "stacks_not_asked")
        assert [found[count] for count in counts] == [1, 1, 1, 1, 0, 0, 0]
        assert plans_and_keys.plans()["Free"] == ["bob"]
        assert aws.invoke(watch, {})["repairs"] == 1
        deadline = time.monotonic() + 20
        while plans_and_keys.plans()["Free"] != ["alice", "bob"]:
            assert time.monotonic() < deadline, aws.log(plans_and_keys.function)
            time.sleep(0.1)
        assert aws.invoke(watch, {})["missing"] == 0
        assert plans_and_keys.detached() == []
        plans_and_keys.function = watch
        assert plans_and_keys.leaked() == []
        log = "".join(aws.log(watch))
        assert (
            f"Missing: {plans_and_keys.id('alice in Free')}, held by Alice of stack {plans_and_keys.name}"
            in log
        )
        assert '"Drift":[1.0]' in log

    def test_unless_the_parameter_says_so_it_asks_for_no_repair(self, plans_and_keys: Customers) -> None:
        aws = plans_and_keys.aws
        watch = aws.physical_ids(PROVIDER)["WatchFunction"]
        with pytest.raises(InvokeError, match="WatchRepairs=true"):
            aws.invoke(watch, {"Repair": True})
        assert aws.invoke(watch, {"UsagePlanId": plans_and_keys.id("Free")})["plans"] == 1


QUEUES, LOGS = ("Requests", "Undelivered", "Unanswered"), ("LogGroup", "WatchLogGroup")


def key(aws: Aws) -> str:
    """Make a KMS key, and return its ARN."""
    return str(aws.client("kms").create_key()["KeyMetadata"]["Arn"])


def encrypted(aws: Aws, stack: str) -> dict[str, str | None]:
    """The KMS key on the stack's ledger, queues and logs."""
    ids = aws.physical_ids(stack)
    keys: dict[str, str | None] = {}
    for queue in QUEUES:
        asked = {"QueueUrl": ids[queue], "AttributeNames": ["KmsMasterKeyId"]}
        keys[queue] = (
            aws.client("sqs").get_queue_attributes(**asked).get("Attributes", {}).get("KmsMasterKeyId")
        )
    table = aws.client("dynamodb").describe_table(TableName=ids["Ledger"])["Table"]
    keys["Ledger"] = table.get("SSEDescription", {}).get("KMSMasterKeyArn")
    for name in LOGS:
        found = aws.client("logs").describe_log_groups(logGroupNamePrefix=ids[name])["logGroups"]
        (keys[name],) = (it.get("kmsKeyId") for it in found if it["logGroupName"] == ids[name])
    return keys


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


def provider(aws: Aws) -> Template:
    return packaged(ROOT / "template.yaml", aws.upload(ROOT / "handler"))


def retained(key: str, plan: str) -> Template:
    """A stack that leaves its only resource behind."""
    properties = {
        "ServiceToken": {"Fn::ImportValue": f"{PROVIDER}-FunctionArn"},
        "KeyId": key,
        "UsagePlanId": plan,
    }
    alice = {"Type": "Custom::UsagePlanKey", "DeletionPolicy": "Retain", "Properties": properties}
    return {"Resources": {"Alice": alice}}


def attach_by_hand(stack: Customers, association: str) -> None:
    key, plan = stack.id(association).split(":")
    stack.aws.client("apigateway").create_usage_plan_key(usagePlanId=plan, keyId=key, keyType="API_KEY")


def adopting(stack: Customers, association: str) -> dict[str, Any]:
    key, plan = stack.id(association).split(":")
    return {"KeyId": key, "UsagePlanId": plan, "OnExisting": "Adopt"}
