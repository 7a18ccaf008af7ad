"""Every template in examples/ deploys on MiniStack; every snippet of docs/use-from.md is in its file."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from samtranslator.yaml_helper import yaml_parse

from emulators.ministack import CODE_BUCKET, Aws, Template, packaged, running
from examples.demo import FUNCTION, PROVIDER, ROOT, Customers, example

from .test_migrate import STEPS, Migration, shown

EXAMPLES = ROOT / "examples"
DOCUMENT = ROOT / "docs" / "use-from.md"
NUMBERS = count(1)
#: CloudFormation sees no change in a policy only; it does in metadata.
RETAINED = {"DeletionPolicy": "Retain", "Metadata": {"Migration": "retain"}}
OURS, NATIVE = "Custom::UsagePlanKey", "AWS::ApiGateway::UsagePlanKey"
NESTED = "AWS::CloudFormation::Stack"


class Plans:
    """The main example's two plans, which share a stage, and a stack that puts keys into them."""

    stack = ""
    """Its name, another one in each test."""
    _there = False

    def __init__(self, aws: Aws) -> None:
        """Expect template.yaml's function and the main example on this AWS."""
        self.aws, self.api = aws, aws.client("apigateway")
        self.free, self.pro = (aws.outputs("customers")[f"{name}PlanId"] for name in ("Free", "Pro"))
        self.parameters = {"PlanId": self.free, "FreePlanId": self.free, "ProPlanId": self.pro}
        self.parameters["ServiceToken"] = aws.outputs(PROVIDER)["FunctionArn"]

    def key_in_free(self) -> str:
        """The id of a new key that somebody has put into the Free plan by hand."""
        key = self.api.create_api_key(enabled=True)["id"]
        self.api.create_usage_plan_key(usagePlanId=self.free, keyId=key, keyType="API_KEY")
        return str(key)

    def deploy(self, template: Template, **parameters: str) -> set[str]:
        """Deploy the stack; return where the keys are that it declares."""
        needed = {name for name, it in template.get("Parameters", {}).items() if "Default" not in it}
        given = {name: value for name, value in self.parameters.items() if name in needed} | parameters
        deployment = self.aws.deploy(self.stack, template, **given)
        self._there = True
        assert deployment.status in ("CREATE_COMPLETE", "UPDATE_COMPLETE"), deployment.failures
        return self.where()

    def delete(self) -> None:
        """Delete the stack, if it is there."""
        if self._there:
            assert self.aws.delete(self.stack).status == "DELETE_COMPLETE"
        self._there = False

    def attached(self) -> set[str]:
        """Every association that there is."""
        plans = [plan["id"] for plan in self.api.get_usage_plans(limit=500)["items"]]
        keys = {plan: self.api.get_usage_plan_keys(usagePlanId=plan, limit=500)["items"] for plan in plans}
        return {f"{key['id']}:{plan}" for plan in plans for key in keys[plan]}

    def declared(self, stack: str = "") -> dict[str, str]:
        """Every association that the stack and its nested stacks declare, by its logical id."""
        describe = self.aws.client("cloudformation").describe_stack_resources
        found: dict[str, str] = {}
        for resource in describe(StackName=stack or self.stack)["StackResources"]:
            name, id_ = resource["LogicalResourceId"], resource["PhysicalResourceId"]
            if resource["ResourceType"] in (OURS, NATIVE):
                found[name] = id_
            elif resource["ResourceType"] == NESTED:
                found |= {f"{name}.{inner}": it for inner, it in self.declared(id_).items()}
        return found

    def where(self) -> set[str]:
        """Each association that the stack declares and that is attached: `Acme in Free`."""
        names = {id_: re.sub("Plan$|^ApiGatewayUsagePlan", "", name) for name, id_ in self.ids().items()}
        names |= {self.free: "Free", self.pro: "Pro"}
        declared, attached = self.declared(), self.attached()
        assert attached >= set(declared.values())
        plans = {name: id_.partition(":")[2] for name, id_ in declared.items()}
        return {f"{name} in {names.get(plan, plan)}" for name, plan in plans.items()}

    def ids(self) -> dict[str, str]:
        """The physical ids of the stack's resources."""
        return self.aws.physical_ids(self.stack)

    def detached(self) -> list[str]:
        """The keys that the function has detached until now."""
        return [call.key for call in self.aws.proxy.calls if call.operation == "DeleteUsagePlanKey"]


@pytest.fixture(scope="module")
def deployed_plans() -> Iterator[Plans]:
    """MiniStack, with the function and the main example deployed."""
    with running() as aws:
        template = packaged(ROOT / "template.yaml", aws.upload(ROOT / "handler"))
        for stack, parameters in ((PROVIDER, aws.emulated), ("customers", {})):
            deployment = aws.deploy(stack, template if parameters else example(), **parameters)
            assert deployment.status == "CREATE_COMPLETE", deployment.failures
        yield Plans(aws)


@pytest.fixture
def plans(deployed_plans: Plans) -> Iterator[Plans]:
    """The plans. Whatever a test deploys, its stack leaves nothing in them, and no key's value in the log."""
    it, before = deployed_plans, deployed_plans.attached()
    it.stack = f"example-{next(NUMBERS)}"
    yield it
    keys = it.api.get_api_keys(includeValues=True, limit=500)["items"]
    it.delete()
    assert it.attached() == before
    log = "\n".join(it.aws.log(it.aws.physical_ids(PROVIDER)[FUNCTION]))
    assert not [key["id"] for key in keys if key["value"] in log]


def template_of(name: str, aws: Aws) -> Template:
    """The example, with its nested stacks' templates uploaded, as `aws cloudformation package` does it."""
    template: Template = yaml_parse((EXAMPLES / name).read_text())
    for resource in template["Resources"].values():
        if isinstance(resource, dict) and resource["Type"] == NESTED:
            nested = resource["Properties"]["TemplateURL"]
            body = json.dumps(template_of(nested, aws), default=str)
            aws.client("s3").put_object(Bucket=CODE_BUCKET, Key=nested, Body=body)
            resource["Properties"]["TemplateURL"] = f"https://localhost:{aws.port}/{CODE_BUCKET}/{nested}"
    return template


#: Each example's deploys: its parameters, and where each key then is.
DEPLOYS = {
    "conditions.yaml": [
        ("Tier=Free", "Acme in Free"),
        ("Tier=Pro", "Acme in Pro"),
        ("Tier=Suspended", ""),
        ("Tier=Free VerifyTrigger=today", "Acme in Free"),
    ],
    "foreach.yaml": [
        ("", "Acme in Free, Globex in Free, Initech in Pro"),
        ("FreeCustomers=Acme ProCustomers=Initech,Globex", "Acme in Free, Globex in Pro, Initech in Pro"),
    ],
    "nested-customer.yaml": [("", "InPlan in Free")],
    "nested-customers.yaml": [("", "Acme.InPlan in Free, Globex.InPlan in Free")],
    "sam.yaml": [("", "Acme in Free")],
    "ssm-reference.yaml": [("", "Acme in Free")],
    "ssm-token.yaml": [("", "Acme in Free")],
}


@pytest.mark.parametrize("name", DEPLOYS)
def test_each_deploy_of_a_template_puts_the_keys_where_it_says(plans: Plans, name: str) -> None:
    """When the stack is gone, the fixture sees that every key is detached."""
    template, keys = template_of(name, plans.aws), set()
    for parameters, expected in DEPLOYS[name]:
        given = dict(each.split("=") for each in parameters.split())
        assert ", ".join(sorted(plans.deploy(template, **given))) == expected
        keys.add(frozenset(id_ for name, id_ in plans.ids().items() if name.endswith("Key")))
    assert len(keys) == 1, "no key is made anew"


def test_each_template_has_a_test() -> None:
    """The main example is the demo's, and has tests of its own."""
    told = {"customers.yaml", "adopt.yaml", "secret.yaml", "depends-on.yaml", *DEPLOYS}
    assert {path.name for path in EXAMPLES.glob("*.yaml")} == told


def test_sam_the_plan_that_sam_makes_will_do(plans: Plans) -> None:
    """SAM puts a key of its own into it, with the native type."""
    template = template_of("sam.yaml", plans.aws)
    resources = template["Resources"]
    del resources["FreePlan"]
    resources["Api"]["Properties"]["Auth"]["UsagePlan"] = {"CreateUsagePlan": "PER_API"}
    resources["Acme"]["Properties"]["UsagePlanId"] = {"Ref": "ApiUsagePlan"}
    assert plans.deploy(template) == {"Acme in ApiUsage", "ApiUsagePlanKey in ApiUsage"}


def test_secret_the_value_is_in_the_secret_and_nowhere_in_the_stack(plans: Plans) -> None:
    """The fixture checks the log."""
    assert plans.deploy(template_of("secret.yaml", plans.aws)) == {"Acme in Free"}
    ids, client = plans.ids(), plans.aws.client
    value = plans.api.get_api_key(apiKey=ids["AcmeKey"], includeValue=True)["value"]
    assert client("secretsmanager").get_secret_value(SecretId=ids["AcmeSecret"])["SecretString"] == value
    for shows in ("describe_stacks", "get_template", "describe_stack_events"):
        assert value not in str(getattr(client("cloudformation"), shows)(StackName=plans.stack))


def test_adopt_a_key_that_was_taken_goes_with_the_stack_and_one_that_was_adopted_stays(plans: Plans) -> None:
    before, keys = plans.attached(), {name: plans.key_in_free() for name in ("AcmeKeyId", "GlobexKeyId")}
    template = template_of("adopt.yaml", plans.aws)
    for trigger, outcomes in (("1", "ADOPTED ADOPTED"), ("2", "TAKEN VERIFIED")):
        assert plans.deploy(template, **keys, VerifyTrigger=trigger) == {"Acme in Free", "Globex in Free"}
        assert plans.aws.outputs(plans.stack)["Outcomes"] == outcomes
    plans.delete()
    assert plans.attached() == before | {f"{keys['GlobexKeyId']}:{plans.free}"}
    plans.api.delete_usage_plan_key(usagePlanId=plans.free, keyId=keys["GlobexKeyId"])


def test_the_native_keys_of_depends_on_come_over_in_three_deploys(plans: Plans, tmp_path: Path) -> None:
    """docs/migrate.md: they stay attached all the time, and go with their stack when they are taken over."""
    it = Migration(tmp_path).begin((EXAMPLES / "depends-on.yaml").read_text())
    native, names = yaml_parse(it.text)["Resources"], ("Acme", "Globex", "Initech")
    chain = [native[name].get("DependsOn") for name in names]
    assert chain == [None, "Acme", "Globex"], "API Gateway refuses two at the same time"
    assert plans.deploy(yaml_parse(it.text)) == {f"{name} in Free" for name in names}
    told, detached, told_by = {}, plans.detached(), Customers(plans.aws, plans.stack)
    for step, ending, requests in zip(STEPS, ("", "KeyInPlan", "KeyInPlan"), (0, 3, 3), strict=True):
        assert it.run(step) == 0
        assert plans.deploy(yaml_parse(it.text)) == {f"{name}{ending} in Free" for name in names}
        body = plans.aws.client("cloudformation").get_template(StackName=plans.stack)["TemplateBody"]
        it.deployed.write_text(shown(body))
        told[step] = [(request.kind, request.outcome) for request in told_by.requests(requests)]
    assert told == {"retain": [], "replace": [("Create", "ADOPTED")] * 3, "take": [("Update", "TAKEN")] * 3}
    assert plans.detached() == detached
    keys = {plans.ids()[f"{name}Key"] for name in names}
    plans.delete()
    assert {*plans.detached()[len(detached) :]} == keys


# --- The Serverless Framework, and SAM ---


def service() -> Template:
    parsed: Template = yaml_parse((EXAMPLES / "serverless" / "serverless.yml").read_text())
    return parsed


def compiled(service: Template) -> Template:
    """Make what the Serverless Framework makes of the service's plans, keys and own resources.

    https://github.com/serverless/serverless/blob/main/packages/serverless/lib/plugins/aws/package/compile/events/api-gateway/lib/usage-plan.js
    """
    resources: Template = {}
    api, name = service["provider"]["apiGateway"], service["service"]
    rest_api, deployed = {"Ref": "ApiGatewayRestApi"}, {"DependsOn": "ApiGatewayDeployment"}
    for plan, limits in (each for plans in api["usagePlan"] for each in plans.items()):
        throttle = {f"{key[0].upper()}{key[1:]}": value for key, value in limits["throttle"].items()}
        plans_own = {
            "ApiStages": [{"ApiId": rest_api, "Stage": "dev"}],
            "Description": f'Usage plan "{plan}" for {name} dev stage',
            "UsagePlanName": f"{name}-{plan}-dev",
            "Throttle": throttle,
        }
        made = {"Type": "AWS::ApiGateway::UsagePlan", **deployed, "Properties": plans_own}
        resources[f"ApiGatewayUsagePlan{plan}"] = made
    for plan, keys in (each for plans in api.get("apiKeys", []) for each in plans.items()):
        for number, key in enumerate(keys, 1):
            ids = {"KeyId": f"ApiGatewayApiKey{plan}{number}", "UsagePlanId": f"ApiGatewayUsagePlan{plan}"}
            stages = [{"RestApiId": rest_api, "StageName": "dev"}]
            properties: dict[str, Any] = {"Enabled": True, "Name": key, "StageKeys": stages}
            resources[ids["KeyId"]] = {
                "Type": "AWS::ApiGateway::ApiKey",
                **deployed,
                "Properties": properties,
            }
            properties = {name: {"Ref": id_} for name, id_ in ids.items()} | {"KeyType": "API_KEY"}
            resources[f"ApiGatewayUsagePlanKey{plan}{number}"] = {"Type": NATIVE, "Properties": properties}
    for logical_id, extension in service["resources"].get("extensions", {}).items():
        resources[logical_id] |= extension
    own: Template = service["resources"]["Resources"]
    return resources | own


def keyed(service: Template, *keys: dict[str, list[str]], **policy: Any) -> Template:
    """The service with keys that the framework makes, and a policy for the first."""
    service["provider"]["apiGateway"]["apiKeys"] = list(keys)
    names = ("ApiGatewayUsagePlanKeyFree1", "ApiGatewayApiKeyFree1")
    service["resources"]["extensions"] = dict.fromkeys(names, policy)
    return service


@pytest.mark.skipif(not shutil.which("serverless"), reason="the Serverless Framework is not installed")
@pytest.mark.parametrize("keys", [[], [{"Free": ["initech"]}, {"Pro": ["umbrella", "hooli"]}]])
def test_serverless_the_framework_compiles_it_as_these_tests_do(keys: list[Any], tmp_path: Path) -> None:
    """Packaging needs credentials, and no AWS."""
    expected = keyed(service(), *keys, **RETAINED) if keys else service()
    (tmp_path / "serverless.json").write_text(json.dumps(expected))
    shutil.copy(EXAMPLES / "serverless" / "hello.py", tmp_path)
    off = {"SLS_TELEMETRY_DISABLED": "1", "SLS_NOTIFICATIONS_MODE": "off", "SLS_OFFLINE": "1"}
    invented = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    subprocess.run(["serverless", "package"], cwd=tmp_path, env=os.environ | off | invented, check=True)
    text = (tmp_path / ".serverless" / "cloudformation-template-update-stack.json").read_text()
    resources = json.loads(re.sub(r"ApiGatewayDeployment\d+", "ApiGatewayDeployment", text))["Resources"]
    made = compiled(expected)
    assert {name: resources[name] for name in made} == made


def serverless(step: str = "", **own: Any) -> Template:
    """What the framework compiles with these resources of one's own, and an API that needs no function.

    Before it is retained, and at `retain`, there is a key that the framework makes.
    """
    it = service()
    if step:
        keyed(it, {"Free": ["acme"]}, **(RETAINED if step == "retain" else {}))
    if step or own:
        it["resources"]["Resources"] = own
    names = {"Api": "ApiGatewayRestApi", "Hello": "ApiGatewayMethodGet", "Deployment": "ApiGatewayDeployment"}
    text = json.dumps({name: example()["Resources"][name] for name in names})
    for ours, theirs in names.items():
        text = re.sub(rf'"{ours}(?=["./])', f'"{theirs}', text)
    api = json.loads(text)
    api["ApiGatewayDeployment"]["Properties"]["StageName"] = "dev"
    return {"Resources": api | compiled(it)}


def sam(step: str = "", **own: Any) -> Template:
    """sam.yaml's API with a plan Pro for the same stage. The step is as above."""
    template: Template = yaml_parse((EXAMPLES / "sam.yaml").read_text())
    resources = template["Resources"]
    del resources["Acme"], resources["AcmeKey"]
    resources |= {"ProPlan": resources["FreePlan"], **own}
    if step:
        resources["Api"]["Properties"]["Auth"]["UsagePlan"] = {"CreateUsagePlan": "PER_API"}
    if step == "retain":
        resources["Api"] |= RETAINED
    return template


def test_serverless_its_resources_attach_the_key(plans: Plans) -> None:
    assert plans.deploy(serverless()) == {"Acme in Free"}


def association(key: str, plan: str, **more: str) -> Template:
    """Declare it by logical ids, which begin with a capital letter, or by ids."""
    ids = [{"Ref": name} if name[0].isupper() else name for name in (key, plan)]
    properties = {"ServiceToken": {"Fn::ImportValue": f"{PROVIDER}-FunctionArn"}, "ServiceTimeout": 60}
    return {"Type": OURS, "Properties": {**properties, "KeyId": ids[0], "UsagePlanId": ids[1], **more}}


@pytest.mark.parametrize(
    ("tool", "plan"), [(sam, "{}Plan"), (serverless, "ApiGatewayUsagePlan{}")], ids=["SAM", "Serverless"]
)
class TestMoves:
    """docs/use-from.md, Move a customer to another plan, with a tool that names associations after plans."""

    def test_two_customers_swap_plans(self, plans: Plans, tool: Callable[..., Template], plan: str) -> None:
        """First new ids and the old plans, then the new plans."""
        free, pro = (plan.format(name) for name in ("Free", "Pro"))
        keys = {name: {"Type": "AWS::ApiGateway::ApiKey"} for name in ("AcmeKey", "GlobexKey")}

        def deploy(**customers: str) -> set[str]:
            own = {name: association(*pair.split(" in ")) for name, pair in customers.items()}
            return plans.deploy(tool(**keys, **own))

        deploy(FreeCustomer=f"AcmeKey in {free}", ProCustomer=f"GlobexKey in {pro}")
        before, detached = set(plans.declared().values()), plans.detached()
        renamed = deploy(Acme=f"AcmeKey in {free}", Globex=f"GlobexKey in {pro}")
        assert renamed == {"Acme in Free", "Globex in Pro"}
        assert (set(plans.declared().values()), plans.detached()) == (before, detached)
        swapped = deploy(Acme=f"AcmeKey in {pro}", Globex=f"GlobexKey in {free}")
        assert swapped == {"Acme in Pro", "Globex in Free"}

    def test_a_key_that_the_tool_attached(
        self, plans: Plans, tool: Callable[..., Template], plan: str
    ) -> None:
        """Retain, take, move. The key stays attached until the move."""
        plans.deploy(tool("before"))
        (attached,) = plans.declared().values()
        key_id, plan_id = attached.split(":")
        plans.deploy(tool("retain"))
        plans.deploy(tool(Acme=association(key_id, plan_id, OnExisting="Take")))
        assert plans.declared() == {"Acme": attached}
        moved = plans.deploy(tool(Acme=association(key_id, plan.format("Pro"), OnExisting="Take")))
        assert moved == {"Acme in Pro"}
        assert [each for each in plans.attached() if each.startswith(key_id)] == [plans.declared()["Acme"]]


# --- Terraform ---

needs_terraform = pytest.mark.skipif(not shutil.which("terraform"), reason="terraform is not installed")


@needs_terraform
def test_terraform_its_template_attaches_the_keys(plans: Plans, tmp_path: Path) -> None:
    """Terraform itself evaluates it, without a provider, and so without a network."""
    keys = {name: plans.api.create_api_key(enabled=True)["id"] for name in ("Acme", "Globex")}
    customers = {name: {"key_id": key, "plan_id": plans.free} for name, key in keys.items()}
    shutil.copy(EXAMPLES / "terraform" / "template.tf", tmp_path)
    (tmp_path / "output.tf").write_text('output "template" {\n  value = local.template\n}\n')
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    environment = quiet | {"CHECKPOINT_DISABLE": "1", "TF_VAR_customers": json.dumps(customers)}

    def terraform(*arguments: str) -> str:
        return subprocess.check_output(("terraform", *arguments), cwd=tmp_path, env=environment, text=True)

    terraform("init", "-input=false")
    terraform("apply", "-auto-approve", "-input=false")
    template = terraform("output", "-raw", "template")
    assert len(template) / len(keys) * 260 < 51_200  # the document says that so many customers fit
    plans.deploy(json.loads(template))
    assert set(plans.declared().values()) == {f"{key}:{plans.free}" for key in keys.values()}


@needs_terraform
def test_terraform_the_files_are_formatted() -> None:
    subprocess.run(["terraform", "fmt", "-check", "-diff", EXAMPLES / "terraform"], check=True)


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
