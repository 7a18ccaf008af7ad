"""Every template in examples/ deploys on MiniStack; every snippet of docs/use-from.md is in its file."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from textwrap import dedent

import pytest
from botocore.exceptions import ClientError
from samtranslator.yaml_helper import yaml_parse

from emulators.ministack import CODE_BUCKET, Aws, Template
from examples.demo import ROOT, Customers

from .test_migrate import STEPS, Migration, shown
from .test_stack import customers

EXAMPLES = ROOT / "examples"
DOCUMENT = ROOT / "docs" / "use-from.md"
NUMBERS = count(1)
NESTED = "AWS::CloudFormation::Stack"


class Names(dict[str, str]):
    """The names of keys and plans; a nested stack's keys have none."""

    def __missing__(self, id_: str) -> str:
        return "somebody"


@pytest.fixture(scope="module")
def main(aws: Aws) -> Customers:
    """The main example's two plans, which share a stage."""
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
    """The main example is the demo's; the other two of these have tests of their own."""
    told = {
        "customers.yaml",
        "adopt.yaml",
        "secret.yaml",
        "depends-on.yaml",
        "nested-customer.yaml",
        *DEPLOYS,
    }
    assert {path.name for path in EXAMPLES.glob("*.yaml")} <= told


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
    invented = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    subprocess.run(["serverless", "package"], cwd=tmp_path, env=os.environ | off | invented, check=True)
    text = (tmp_path / ".serverless" / "cloudformation-template-update-stack.json").read_text()
    made = json.loads(text)["Resources"]
    plans = [made[f"ApiGatewayUsagePlan{plan}"]["Properties"] for plan in ("Free", "Pro", "Gold")]
    assert [it["UsagePlanName"] for it in plans] == [
        "customers-Free-dev",
        "customers-Pro-dev",
        "customers-gold-dev",
    ]
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
