"""template.yaml's function on MiniStack: roles and queues, under API Gateway's own rules; and every example.

The demo plays whole deploys and checks each step. Other tests send requests to the function themselves, as
CloudFormation does: asynchronously and with a pre-signed ResponseURL. Every template in examples/ deploys,
and every snippet of docs/use-from.md is in its file.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from botocore.exceptions import ClientError
from samtranslator.yaml_helper import yaml_parse

from emulators.ministack import CODE_BUCKET, REGION, Aws, Template, packaged
from examples import demo
from examples.demo import FUNCTION, PROVIDER, ROOT, Customers

from .answers import EVENTS
from .test_docs import BLOCKS
from .test_migrate import STEPS, Migration, shown

EXAMPLES = ROOT / "examples"
DOCUMENT = ROOT / "docs" / "use-from.md"
NUMBERS = count(1)
NESTED = "AWS::CloudFormation::Stack"
INVENTED = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


class Names(dict[str, str]):
    """The names of keys and plans; a nested stack's keys have none."""

    def __missing__(self, id_: str) -> str:
        return "somebody"


def customers(aws: Aws, name: str) -> Customers:
    """The main example's plans and keys, and nobody in a plan. The plans share a stage."""
    stack, template = Customers(aws, name), demo.example()
    kept = {name: it for name, it in template["Resources"].items() if it["Type"] != "Custom::UsagePlanKey"}
    template = {"Parameters": template["Parameters"], "Resources": kept}
    assert stack.deploy(template).status == "CREATE_COMPLETE"
    return stack


@pytest.fixture(scope="module")
def main(aws: Aws) -> Customers:
    return customers(aws, "plans")


@pytest.fixture
def stack(main: Customers) -> Iterator[Customers]:
    """A stack that a test deploys. It leaves nothing in the plans, and no secret in the log."""
    stack = Customers(main.aws, f"example-{next(NUMBERS)}")
    stack.names = Names({id_: name.lower() for id_, name in main.names.items()})
    yield stack
    with suppress(ClientError):  # The test may have deleted it.
        assert stack.delete().status == "DELETE_COMPLETE"
    assert not any(stack.plans().values())
    assert stack.leaked() == []


# --- The function's stack ---


def test_the_demo_is_as_promised_and_as_the_manual_shows_it(
    aws: Aws, capsys: pytest.CaptureFixture[str]
) -> None:
    """It checks after each deploy: requests, answers, plans, what was detached, the log and the ledger."""
    demo.tell(demo.Story(), Customers(aws))
    told = re.sub("(?m)^   Deploying.*\n", "", capsys.readouterr().out)
    assert [line for line in told.splitlines() if len(line) > 80 or line.endswith("-")] == []
    steps = [re.sub("(?m)^   Deploying.*\n", "", text) for *_, text in BLOCKS if "   Stack: " in text]
    assert steps
    assert [step for step in steps if step not in told] == []


@pytest.fixture(scope="module")
def gated(aws: Aws) -> Customers:
    """Customers of a second stack of template.yaml, which is for one plan and has the watch."""
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


def test_a_dead_letter_that_the_command_puts_back_is_answered(aws: Aws) -> None:
    """tools/redrive.py, as an operator runs it, with Lambda's record of a failed invocation."""
    stack = customers(aws, "letters")
    event = aws.addressed(StackId=aws.stack_id(stack.name), **asking(stack, "alice in Free"))
    event = EVENTS["create"] | event
    record = {"version": "1.0", "timestamp": f"{datetime.now(UTC):%FT%TZ}", "requestPayload": event}
    unanswered = aws.physical_ids(PROVIDER)["Unanswered"]
    aws.client("sqs").send_message(QueueUrl=unanswered, MessageBody=json.dumps(record))
    command = ["tools/redrive.py", "--region", REGION, "--stack", PROVIDER, "--send"]
    place = {"AWS_ENDPOINT_URL": f"https://localhost:{aws.port}", "AWS_CA_BUNDLE": str(aws.certificate)}
    environment = place | INVENTED
    told = subprocess.check_output([sys.executable, *command], cwd=ROOT, env=environment, text=True)
    assert "Unanswered: 1 sent, 0 still there" in told
    assert aws.answer(event)["Data"]["Outcome"] == "ATTACHED"
    assert stack.leaked() == []


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


# --- The examples ---


def deployed(stack: Customers, template: Template, **parameters: str) -> str:
    """Deploy the stack; return which keys are in which plans then."""
    given = {"PlanId": stack.id("free"), "FreePlanId": stack.id("free"), "ProPlanId": stack.id("pro")}
    known = template.get("Parameters", {})
    given = {name: it for name, it in (given | parameters).items() if name in known}
    deployment = stack.aws.deploy(stack.name, template, **given)
    assert deployment.status in ("CREATE_COMPLETE", "UPDATE_COMPLETE"), deployment.failures
    stack._learn(deployment)
    return ", ".join(f"{key} in {plan}" for plan, keys in stack.plans().items() for key in keys)


def template_of(name: str, aws: Aws) -> Template:
    """The example, with its nested stacks' templates uploaded, as `aws cloudformation package` does it."""
    template: Template = yaml_parse((EXAMPLES / name).read_text())
    if "resources" in template:  # The Serverless Framework makes the plan, and its own test sees it.
        plan = {"ApiGatewayUsagePlanFree": {"Type": "AWS::ApiGateway::UsagePlan", "Properties": {}}}
        return {"Resources": template["resources"]["Resources"] | plan}
    for resource in template["Resources"].values():
        if isinstance(resource, dict) and resource["Type"] == NESTED:
            nested = resource["Properties"]["TemplateURL"]
            body = json.dumps(template_of(nested, aws), default=str)
            aws.client("s3").put_object(Bucket=CODE_BUCKET, Key=nested, Body=body)
            resource["Properties"]["TemplateURL"] = f"https://localhost:{aws.port}/{CODE_BUCKET}/{nested}"
    return template


#: Each example's deploys: its parameters, and which key then is in which plan.
DEPLOYS = {
    "conditions.yaml": {
        "Tier=Free": "acme in free",
        "Tier=Pro": "acme in pro",
        "Tier=Suspended": "",
        "Tier=Free VerifyTrigger=today": "acme in free",
    },
    "foreach.yaml": {
        "": "acme in free, globex in free, initech in pro",
        "FreeCustomers=Acme,Initech ProCustomers=Globex": "acme in free, initech in free, globex in pro",
    },
    "nested-customers.yaml": {"": "somebody in free, somebody in free"},
    "sam.yaml": {"": "acme in Free"},
    "smallest.yaml": {"": "acme in Free"},
    "serverless/serverless.yml": {"": "acme in ApiGatewayUsagePlanFree"},
    "ssm-reference.yaml": {"": "acme in free"},
    "ssm-token.yaml": {"": "acme in free"},
}


@pytest.mark.parametrize("name", DEPLOYS)
def test_each_deploy_of_a_template_puts_the_keys_where_it_says(stack: Customers, name: str) -> None:
    """No key is made anew. When the stack is gone, the fixture sees that every key is detached."""
    template = template_of(name, stack.aws)
    for parameters, expected in DEPLOYS[name].items():
        assert deployed(stack, template, **dict(each.split("=") for each in parameters.split())) == expected
    assert len({*stack.names.values()}) == len(stack.names)


def test_each_template_has_a_test() -> None:
    """The main example is the demo's."""
    own = {"customers.yaml", "adopt.yaml", "secret.yaml", "depends-on.yaml", "nested-customer.yaml"}
    assert {path.name for path in EXAMPLES.glob("*.yaml")} <= own | DEPLOYS.keys()


def test_secret_the_value_is_in_the_secret_and_nowhere_in_the_stack(stack: Customers) -> None:
    """The fixture checks the log."""
    assert deployed(stack, template_of("secret.yaml", stack.aws)) == "acme in free"
    value, cloudformation = stack.value("acme"), stack.aws.client("cloudformation")
    assert stack.secret("AcmeSecret") == value
    for shows in ("describe_stacks", "get_template", "describe_stack_events"):
        assert value not in str(getattr(cloudformation, shows)(StackName=stack.name))


def test_the_program_of_local_md_deploys_a_template() -> None:
    """docs/local.md, Your own template: as a reader runs it, in a process and on an AWS of its own."""
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "local.md").read_text(), re.DOTALL)
    command = [sys.executable, "-c", program.replace("mine.yaml", "examples/customers.yaml")]
    said = subprocess.check_output(command, cwd=ROOT, text=True)
    assert said.startswith("CREATE_COMPLETE")
    assert "'AliceOutcome': 'ATTACHED'" in said


def test_adopt_a_key_that_was_taken_goes_with_the_stack_and_one_that_was_adopted_stays(
    stack: Customers,
) -> None:
    api, free = stack.aws.client("apigateway"), stack.id("free")
    keys = {name: api.create_api_key(enabled=True)["id"] for name in ("Acme", "Globex")}
    for name, key in keys.items():
        api.create_usage_plan_key(usagePlanId=free, keyId=key, keyType="API_KEY")
        stack.names[key] = name
    given = {f"{name}KeyId": key for name, key in keys.items()}
    for trigger, outcomes in (("1", "ADOPTED ADOPTED"), ("2", "TAKEN VERIFIED")):
        deployed(stack, template_of("adopt.yaml", stack.aws), **given, VerifyTrigger=trigger)
        assert stack.aws.outputs(stack.name)["Outcomes"] == outcomes
    stack.delete()
    assert stack.plans()["free"] == ["Globex"]
    stack.detach_by_hand("Globex in free")


def test_the_native_keys_of_depends_on_come_over_in_three_deploys(stack: Customers, tmp_path: Path) -> None:
    """docs/migrate.md: they stay attached all the time, and go with their stack when they are taken over."""
    it = Migration(tmp_path).begin((EXAMPLES / "depends-on.yaml").read_text())
    native, names = yaml_parse(it.text)["Resources"], ("Acme", "Globex", "Initech")
    chain = [native[name].get("DependsOn") for name in names]
    assert chain == [None, "Acme", "Globex"], "API Gateway refuses two at the same time"
    attached = [f"{name.lower()} in free" for name in names]
    assert deployed(stack, yaml_parse(it.text)) == ", ".join(attached)
    for step in STEPS:
        assert it.run(step) == 0
        assert deployed(stack, yaml_parse(it.text)) == ", ".join(attached)
        body = stack.aws.client("cloudformation").get_template(StackName=stack.name)["TemplateBody"]
        it.deployed.write_text(shown(body))
    assert stack.detached() == []
    stack.delete()
    assert sorted(stack.detached()) == attached


def test_sam_the_key_that_it_attaches_is_retained_taken_and_moved(stack: Customers) -> None:
    """docs/use-from.md, A key that the tool attached. The plan that SAM makes will do for our keys, too."""
    made, retained, taken, moved = (template_of("sam.yaml", stack.aws) for _ in range(4))
    for template in (made, retained):
        template["Resources"]["Api"]["Properties"]["Auth"]["UsagePlan"] = {"CreateUsagePlan": "PER_API"}
        template["Resources"]["Acme"]["Properties"]["UsagePlanId"] = {"Ref": "ApiUsagePlan"}
    # CloudFormation sees no change in a policy only; it does in metadata.
    retained["Resources"]["Api"] |= {"DeletionPolicy": "Retain", "Metadata": {"Migration": "retain"}}
    for template in (made, retained):
        assert deployed(stack, template) == "acme in ApiUsage, apiapi in ApiUsage"
    for template, plan in ((taken, stack.id("ApiUsage")), (moved, {"Ref": "FreePlan"})):
        ours = template["Resources"]["Acme"]
        ids = {"KeyId": stack.id("apiapi"), "UsagePlanId": plan, "OnExisting": "Take"}
        template["Resources"]["Sams"] = ours | {"Properties": ours["Properties"] | ids}
    assert deployed(stack, taken) == "apiapi in ApiUsage, acme in Free"
    assert deployed(stack, moved) == "acme in Free, apiapi in Free"


@pytest.mark.skipif(not shutil.which("serverless"), reason="the Serverless Framework is not installed")
def test_serverless_the_framework_makes_these_plans_and_retains_its_keys(tmp_path: Path) -> None:
    """Packaging needs credentials, and no AWS."""
    given = yaml_parse((EXAMPLES / "serverless" / "serverless.yml").read_text())
    api, own = given["provider"]["apiGateway"], given["resources"]["Resources"]
    api["usagePlan"].append({"gold": api["usagePlan"][0]["Free"]})
    api["apiKeys"] = [{"Free": ["initech"]}, {"Pro": ["umbrella", "hooli"]}]
    keys = [f"ApiGateway{it}{key}" for it in ("ApiKey", "UsagePlanKey") for key in ("Free1", "Pro1", "Pro2")]
    given["resources"]["extensions"] = {id_: {"DeletionPolicy": "Retain"} for id_ in keys}
    (tmp_path / "serverless.json").write_text(json.dumps(given))
    shutil.copy(EXAMPLES / "serverless" / "hello.py", tmp_path)
    off = {"SLS_TELEMETRY_DISABLED": "1", "SLS_NOTIFICATIONS_MODE": "off", "SLS_OFFLINE": "1"}
    subprocess.run(["serverless", "package"], cwd=tmp_path, env=os.environ | off | INVENTED, check=True)
    text = (tmp_path / ".serverless" / "cloudformation-template-update-stack.json").read_text()
    made = json.loads(text)["Resources"]
    plans = [made[f"ApiGatewayUsagePlan{plan}"]["Properties"] for plan in ("Free", "Pro", "Gold")]
    assert [it["UsagePlanName"] for it in plans] == [f"customers-{it}-dev" for it in ("Free", "Pro", "gold")]
    assert {made[id_]["DeletionPolicy"] for id_ in keys} == {"Retain"}
    assert {id_: made[id_] for id_ in own} == own


# --- Terraform ---


@pytest.mark.skipif(not shutil.which("terraform"), reason="terraform is not installed")
def test_terraform_its_template_attaches_the_keys(stack: Customers, tmp_path: Path) -> None:
    """Terraform itself evaluates it, without a provider, and so without a network."""
    api, plan = stack.aws.client("apigateway"), stack.id("free")
    keys = [api.create_api_key(enabled=True)["id"] for _ in range(2)]
    given = {f"Key{at}": {"key_id": key, "plan_id": plan} for at, key in enumerate(keys)}
    shutil.copy(EXAMPLES / "terraform" / "template.tf", tmp_path)
    (tmp_path / "output.tf").write_text('output "template" {\n  value = local.template\n}\n')
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    environment = quiet | {"CHECKPOINT_DISABLE": "1", "TF_VAR_customers": json.dumps(given)}

    def terraform(*arguments: str | Path) -> str:
        return subprocess.check_output(("terraform", *arguments), cwd=tmp_path, env=environment, text=True)

    terraform("fmt", "-check", "-diff", EXAMPLES / "terraform")
    terraform("init", "-input=false")
    terraform("apply", "-auto-approve", "-input=false")
    template = terraform("output", "-raw", "template")
    assert len(template) / len(keys) * 260 < 51_200  # the document says that so many customers fit
    assert deployed(stack, json.loads(template)) == "somebody in free, somebody in free"


# --- The document ---

SECTIONS = DOCUMENT.read_text().split("\n## ")[1:]


def linked(text: str) -> set[Path]:
    return {(DOCUMENT.parent / link).resolve() for link in re.findall(r"\]\((\.\./examples/[^)#]+)\)", text)}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.partition("\n")[0])
def test_a_snippet_is_in_a_file_that_its_section_links(section: str) -> None:
    """The test compares lines without their indentation, and leaves out commands."""
    texts = [path.read_text().splitlines() for path in linked(section)]
    for language, snippet in re.findall(r"^```(\w+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
        length = snippet.count("\n")
        passages = {"\n".join(text[at : at + length]) for text in texts for at in range(len(text))}
        assert language == "sh" or snippet.removesuffix("\n") in map(dedent, passages)


def test_every_example_is_in_the_document() -> None:
    kinds = (".yaml", ".yml", ".tf", ".ts", ".py", ".json", ".txt")
    files = {path for path in EXAMPLES.rglob("*") if path.suffix in kinds}
    assert files - {*EXAMPLES.glob("*.py")} == linked(DOCUMENT.read_text())
