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

from emulators.ministack import CODE_BUCKET, Aws, Deployment, Template, packaged, running
from examples.demo import FUNCTION, PROVIDER, ROOT, example

EXAMPLES = ROOT / "examples"
DOCUMENT = ROOT / "docs" / "use-from.md"
#: The main example is the demo's, and has tests of its own.
TEMPLATES = sorted(path.name for path in EXAMPLES.glob("*.yaml") if path.name != "customers.yaml")
NUMBERS = count(1)
#: CloudFormation sees no change in a policy only; it does in metadata.
RETAINED = {"DeletionPolicy": "Retain", "Metadata": {"Migration": "retain"}}
OURS, NATIVE = "Custom::UsagePlanKey", "AWS::ApiGateway::UsagePlanKey"
NESTED = "AWS::CloudFormation::Stack"


class Plans:
    """The main example's two plans, which share a stage, and a stack that puts keys into them."""

    def __init__(self, aws: Aws) -> None:
        """Expect template.yaml's function and the main example on this AWS."""
        self.aws = aws
        self.stack = ""
        """Its name, another one in each test."""
        self._there = False
        outputs = aws.outputs("customers")
        self.free, self.pro = outputs["FreePlanId"], outputs["ProPlanId"]
        self.parameters = {
            "PlanId": self.free,
            "FreePlanId": self.free,
            "ProPlanId": self.pro,
            "ServiceToken": aws.outputs(PROVIDER)["FunctionArn"],
            "AcmeKeyId": self.key_in_free(),
            "GlobexKeyId": self.key_in_free(),
        }

    def key(self) -> str:
        """The id of a new key."""
        return str(self.aws.client("apigateway").create_api_key(enabled=True)["id"])

    def key_in_free(self) -> str:
        """The id of a new key that somebody has put into the Free plan by hand."""
        api, key = self.aws.client("apigateway"), self.key()
        api.create_usage_plan_key(usagePlanId=self.free, keyId=key, keyType="API_KEY")
        return key

    def deploy(self, template: Template, **parameters: str) -> Deployment:
        """Deploy a stack, with these parameters and with those that have no default."""
        needed = {name for name, it in template.get("Parameters", {}).items() if "Default" not in it}
        given = {name: self.parameters[name] for name in needed} | parameters
        deployment = self.aws.deploy(self.stack, template, **given)
        self._there = True
        return deployment

    def delete(self) -> None:
        """Delete it, if it is there."""
        if self._there:
            assert self.aws.delete(self.stack).status == "DELETE_COMPLETE"
            self._there = False

    def attached(self) -> set[str]:
        """Every association that there is."""
        api = self.aws.client("apigateway")
        plans = [plan["id"] for plan in api.get_usage_plans(limit=500)["items"]]
        keys = {plan: api.get_usage_plan_keys(usagePlanId=plan, limit=500)["items"] for plan in plans}
        return {f"{key['id']}:{plan}" for plan in plans for key in keys[plan]}

    def declared(self, stack: str = "") -> set[str]:
        """Every association that the stack and its nested stacks declare."""
        describe = self.aws.client("cloudformation").describe_stack_resources
        found: set[str] = set()
        for resource in describe(StackName=stack or self.stack)["StackResources"]:
            if resource["ResourceType"] in (OURS, NATIVE):
                found.add(resource["PhysicalResourceId"])
            elif resource["ResourceType"] == NESTED:
                found |= self.declared(resource["PhysicalResourceId"])
        return found

    def of_stack(self) -> set[str]:
        """Each attached key of the stack with its plan, by their logical ids."""
        names = {id_: name for name, id_ in self.ids().items()}
        pairs = [each.split(":") for each in self.attached()]
        return {f"{names[key]} in {names[plan]}" for key, plan in pairs if key in names and plan in names}

    def detached(self) -> int:
        """Count the detachments until now."""
        return [call.operation for call in self.aws.proxy.calls].count("DeleteUsagePlanKey")

    def ids(self) -> dict[str, str]:
        """Read the physical ids of the stack's resources."""
        return self.aws.physical_ids(self.stack)

    def outputs(self) -> dict[str, str]:
        """Read the stack's outputs."""
        return self.aws.outputs(self.stack)

    def of(self, name: str) -> str:
        """The plan that a customer's key is in, by the customer's logical id."""
        id_ = self.ids()[name]
        assert id_ in self.attached()
        return {self.free: "Free", self.pro: "Pro"}[id_.partition(":")[2]]


@pytest.fixture(scope="module")
def deployed_plans() -> Iterator[Plans]:
    """MiniStack, with the function and the main example deployed."""
    with running() as aws:
        template = packaged(ROOT / "template.yaml", aws.upload(ROOT / "handler"))
        function = aws.deploy(PROVIDER, template, **aws.emulated)
        assert function.status == "CREATE_COMPLETE", function.failures
        assert aws.deploy("customers", example()).status == "CREATE_COMPLETE"
        yield Plans(aws)


@pytest.fixture
def plans(deployed_plans: Plans) -> Iterator[Plans]:
    """The plans. Whatever a test deploys, its stack leaves nothing in them, and no key's value in the log."""
    aws, before = deployed_plans.aws, deployed_plans.attached()
    deployed_plans.stack = f"example-{next(NUMBERS)}"
    yield deployed_plans
    keys = aws.client("apigateway").get_api_keys(includeValues=True, limit=500)["items"]
    deployed_plans.delete()
    assert deployed_plans.attached() == before
    log = "\n".join(aws.log(aws.physical_ids(PROVIDER)[FUNCTION]))
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


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_attaches_every_declared_key(plans: Plans, name: str) -> None:
    """When the stack is gone, the fixture sees that every key is detached."""
    deployment = plans.deploy(template_of(name, plans.aws))
    assert deployment.status == "CREATE_COMPLETE", deployment.failures
    assert plans.declared()
    assert plans.declared() <= plans.attached()


def test_sam_the_plan_that_sam_makes_will_do(plans: Plans) -> None:
    """SAM puts a key of its own into it, with the native type."""
    template = template_of("sam.yaml", plans.aws)
    resources = template["Resources"]
    del resources["FreePlan"]
    resources["Api"]["Properties"]["Auth"]["UsagePlan"] = {"CreateUsagePlan": "PER_API"}
    resources["Acme"]["Properties"]["UsagePlanId"] = {"Ref": "ApiUsagePlan"}
    assert plans.deploy(template).status == "CREATE_COMPLETE"
    assert len(plans.declared() & plans.attached()) == 2


def test_foreach_a_name_that_goes_to_the_other_list_moves_its_key(plans: Plans) -> None:
    template = template_of("foreach.yaml", plans.aws)
    plans.deploy(template)
    assert {name: plans.of(name) for name in ("Acme", "Globex", "Initech")} == {
        "Acme": "Free",
        "Globex": "Free",
        "Initech": "Pro",
    }
    keys = {name: id_ for name, id_ in plans.ids().items() if name.endswith("Key")}
    moved = plans.deploy(template, FreeCustomers="Acme", ProCustomers="Initech,Globex")
    assert moved.status == "UPDATE_COMPLETE", moved.failures
    assert plans.of("Globex") == "Pro"
    assert keys.items() <= plans.ids().items()


def test_nested_the_parent_knows_the_keys_of_its_customers(plans: Plans) -> None:
    plans.deploy(template_of("nested-customers.yaml", plans.aws))
    outputs = plans.outputs()
    assert {f"{outputs[name]}:{plans.free}" for name in ("AcmeKeyId", "GlobexKeyId")} == plans.declared()


def test_secret_the_value_is_in_the_secret_and_nowhere_in_the_stack(plans: Plans) -> None:
    """The fixture checks the log."""
    plans.deploy(template_of("secret.yaml", plans.aws))
    ids = plans.ids()
    value = plans.aws.client("apigateway").get_api_key(apiKey=ids["AcmeKey"], includeValue=True)["value"]
    secrets, stacks = plans.aws.client("secretsmanager"), plans.aws.client("cloudformation")
    assert secrets.get_secret_value(SecretId=ids["AcmeSecret"])["SecretString"] == value
    for ask in (stacks.describe_stacks, stacks.get_template, stacks.describe_stack_events):
        assert value not in str(ask(StackName=plans.stack))


def test_conditions_a_customer_moves_leaves_and_comes_back(plans: Plans) -> None:
    template = template_of("conditions.yaml", plans.aws)
    for tier in ("Free", "Pro"):
        plans.deploy(template, Tier=tier)
        assert plans.of("Acme") == tier
    key = plans.ids()["AcmeKey"]
    plans.deploy(template, Tier="Suspended")
    assert not [association for association in plans.attached() if association.startswith(key)]
    plans.deploy(template, Tier="Free")
    assert plans.of("Acme") == "Free"
    plans.deploy(template, Tier="Free", VerifyTrigger="today")
    assert plans.outputs()["Outcome"] == "VERIFIED"


def test_adopt_a_key_that_was_taken_goes_with_the_stack_and_one_that_was_adopted_stays(plans: Plans) -> None:
    before, acme, globex = plans.attached(), plans.key_in_free(), plans.key_in_free()
    template = template_of("adopt.yaml", plans.aws)
    plans.deploy(template, AcmeKeyId=acme, GlobexKeyId=globex)
    assert plans.outputs()["Outcomes"] == "ADOPTED ADOPTED"
    plans.deploy(template, AcmeKeyId=acme, GlobexKeyId=globex, VerifyTrigger="2")
    assert plans.outputs()["Outcomes"] == "TAKEN VERIFIED"
    plans.delete()
    assert plans.attached() == before | {f"{globex}:{plans.free}"}
    plans.aws.client("apigateway").delete_usage_plan_key(usagePlanId=plans.free, keyId=globex)


def test_depends_on_no_two_associations_can_be_made_at_the_same_time() -> None:
    resources = yaml_parse((EXAMPLES / "depends-on.yaml").read_text())["Resources"]
    names = [name for name, it in resources.items() if it["Type"] == NATIVE]
    assert [resources[name].get("DependsOn") for name in names] == [None, *names[:-1]]


def service() -> Template:
    parsed: Template = yaml_parse((EXAMPLES / "serverless" / "serverless.yml").read_text())
    return parsed


def compiled(service: Template) -> Template:
    """Make what the Serverless Framework makes of the service's plans, keys and own resources.

    https://github.com/serverless/serverless/blob/main/packages/serverless/lib/plugins/aws/package/compile/events/api-gateway/lib/usage-plan.js
    """
    resources: Template = {}
    api, name = service["provider"]["apiGateway"], service["service"]
    for plan, settings in (each for plans in api["usagePlan"] for each in plans.items()):
        limits = {
            part: {key[0].upper() + key[1:]: value for key, value in settings[part].items()}
            for part in settings
        }
        resources[f"ApiGatewayUsagePlan{plan}"] = {
            "Type": "AWS::ApiGateway::UsagePlan",
            "DependsOn": "ApiGatewayDeployment",
            "Properties": {
                "ApiStages": [{"ApiId": {"Ref": "ApiGatewayRestApi"}, "Stage": "dev"}],
                "Description": f'Usage plan "{plan}" for {name} dev stage',
                "UsagePlanName": f"{name}-{plan}-dev",
                **{part[0].upper() + part[1:]: limit for part, limit in limits.items()},
            },
        }
    for plan, keys in (each for plans in api.get("apiKeys", []) for each in plans.items()):
        for number, key in enumerate(keys, 1):
            key_id, plan_id = (
                {"Ref": f"ApiGatewayApiKey{plan}{number}"},
                {"Ref": f"ApiGatewayUsagePlan{plan}"},
            )
            resources[key_id["Ref"]] = {
                "Type": "AWS::ApiGateway::ApiKey",
                "DependsOn": "ApiGatewayDeployment",
                "Properties": {
                    "Enabled": True,
                    "Name": key,
                    "StageKeys": [{"RestApiId": {"Ref": "ApiGatewayRestApi"}, "StageName": "dev"}],
                },
            }
            resources[f"ApiGatewayUsagePlanKey{plan}{number}"] = {
                "Type": NATIVE,
                "Properties": {"KeyId": key_id, "KeyType": "API_KEY", "UsagePlanId": plan_id},
            }
    for logical_id, extension in service["resources"].get("extensions", {}).items():
        resources[logical_id] |= extension
    own: Template = service["resources"]["Resources"]
    return resources | own


def with_api(resources: Template) -> Template:
    """The compiled template, with an API that needs no function."""
    own: Template = yaml_parse((EXAMPLES / "customers.yaml").read_text())["Resources"]
    names = {
        "Api": "ApiGatewayRestApi",
        "Hello": "ApiGatewayMethodHelloGet",
        "Deployment": "ApiGatewayDeployment",
    }
    text = json.dumps({name: own[name] for name in names})
    for ours, theirs in names.items():
        text = re.sub(rf'"{ours}(?=["./])', f'"{theirs}', text)
    api = json.loads(text)
    api["ApiGatewayDeployment"]["Properties"]["StageName"] = "dev"
    return {"Resources": api | resources}


@pytest.fixture(scope="module")
def framework() -> str:
    """The Serverless Framework's command, or that of its open fork."""
    found = shutil.which("osls") or shutil.which("serverless")
    if not found:
        pytest.skip("the Serverless Framework is not installed")
    return found


def keyed(service: Template) -> Template:
    """The service with keys that the framework makes, and a policy for the first."""
    service["provider"]["apiGateway"]["apiKeys"] = [{"Free": ["initech"]}, {"Pro": ["umbrella", "hooli"]}]
    names = ("ApiGatewayUsagePlanKeyFree1", "ApiGatewayApiKeyFree1")
    service["resources"]["extensions"] = dict.fromkeys(names, RETAINED)
    return service


@pytest.mark.parametrize("change", [lambda service: service, keyed], ids=["as it is", "with keys"])
def test_serverless_the_framework_compiles_it_as_these_tests_do(
    framework: str, change: Callable[[Template], Template], tmp_path: Path
) -> None:
    """Packaging needs credentials, and no AWS."""
    expected = change(service())
    (tmp_path / "serverless.json").write_text(json.dumps(expected))
    shutil.copy(EXAMPLES / "serverless" / "hello.py", tmp_path)
    off = {"SLS_TELEMETRY_DISABLED": "1", "SLS_NOTIFICATIONS_MODE": "off", "SLS_OFFLINE": "1"}
    invented = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    subprocess.run([framework, "package"], cwd=tmp_path, env=os.environ | off | invented, check=True)
    text = (tmp_path / ".serverless" / "cloudformation-template-update-stack.json").read_text()
    resources = json.loads(re.sub(r"ApiGatewayDeployment\d+", "ApiGatewayDeployment", text))["Resources"]
    made = compiled(expected)
    assert {name: resources[name] for name in made} == made


def test_serverless_its_resources_attach_the_key(plans: Plans) -> None:
    deployment = plans.deploy(with_api(compiled(service())))
    assert deployment.status == "CREATE_COMPLETE", deployment.failures
    free = plans.ids()["ApiGatewayUsagePlanFree"]
    assert {id_.partition(":")[2] for id_ in plans.declared() & plans.attached()} == {free}


def with_sam(**resources: Any) -> Template:
    """sam.yaml's API with a plan Pro for the same stage."""
    template: Template = yaml_parse((EXAMPLES / "sam.yaml").read_text())
    own = template["Resources"]
    del own["Acme"], own["AcmeKey"]
    own["ProPlan"] = own["FreePlan"]
    template["Resources"] = own | resources
    return template


def with_serverless(**resources: Any) -> Template:
    """What the framework compiles of serverless.yml with these resources."""
    example = service()
    example["resources"]["Resources"] = resources
    return with_api(compiled(example))


def association(key: str, plan: str, **more: str) -> Template:
    """Declare it by logical ids, which begin with a capital letter, or by ids."""
    ids = [{"Ref": name} if name[0].isupper() else name for name in (key, plan)]
    properties = {"ServiceToken": {"Fn::ImportValue": f"{PROVIDER}-FunctionArn"}, "ServiceTimeout": 60}
    return {
        "Type": OURS,
        "Properties": properties | dict(zip(("KeyId", "UsagePlanId"), ids, strict=True)) | more,
    }


@pytest.mark.parametrize(
    ("made", "free", "pro"),
    [
        pytest.param(with_sam, "FreePlan", "ProPlan", id="SAM"),
        pytest.param(with_serverless, "ApiGatewayUsagePlanFree", "ApiGatewayUsagePlanPro", id="Serverless"),
    ],
)
def test_move_two_customers_whose_ids_name_their_plans_swap_plans(
    plans: Plans, made: Callable[..., Template], free: str, pro: str
) -> None:
    """As the document says: first new ids and the old plans, then the new plans."""
    keys = {name: {"Type": "AWS::ApiGateway::ApiKey"} for name in ("AcmeKey", "GlobexKey")}

    def deploy(**resources: Any) -> set[str]:
        deployment = plans.deploy(made(**keys, **resources))
        assert deployment.status in ("CREATE_COMPLETE", "UPDATE_COMPLETE"), deployment.failures
        assert plans.declared() <= plans.attached()
        return plans.of_stack()

    before = {f"AcmeKey in {free}", f"GlobexKey in {pro}"}
    assert (
        deploy(FreeCustomer=association("AcmeKey", free), ProCustomer=association("GlobexKey", pro)) == before
    )
    detached = plans.detached()
    assert deploy(Acme=association("AcmeKey", free), Globex=association("GlobexKey", pro)) == before
    assert plans.detached() == detached
    after = {f"AcmeKey in {pro}", f"GlobexKey in {free}"}
    assert deploy(Acme=association("AcmeKey", pro), Globex=association("GlobexKey", free)) == after


def sam_made(step: str) -> Template:
    template = with_sam()
    api = template["Resources"]["Api"]
    if step in ("before", "retain"):
        api["Properties"]["Auth"]["UsagePlan"] = {"CreateUsagePlan": "PER_API"}
    if step == "retain":
        api |= RETAINED
    return template


def serverless_made(step: str) -> Template:
    example = service()
    example["resources"]["Resources"] = {}
    if step in ("before", "retain"):
        example["provider"]["apiGateway"]["apiKeys"] = [{"Free": ["acme"]}]
    if step == "retain":
        names = ("ApiGatewayApiKeyFree1", "ApiGatewayUsagePlanKeyFree1")
        example["resources"]["extensions"] = dict.fromkeys(names, RETAINED)
    return with_api(compiled(example))


@pytest.mark.parametrize(
    ("made", "key", "pro"),
    [
        pytest.param(sam_made, "ApiApiKey", "ProPlan", id="SAM"),
        pytest.param(serverless_made, "ApiGatewayApiKeyFree1", "ApiGatewayUsagePlanPro", id="Serverless"),
    ],
)
def test_move_a_key_that_the_tool_attached(
    plans: Plans, made: Callable[[str], Template], key: str, pro: str
) -> None:
    """As the document says: retain, take, move. The key stays attached until the move."""

    def deploy(step: str, **resources: Any) -> None:
        template = made(step)
        template["Resources"] |= resources
        deployment = plans.deploy(template)
        assert deployment.status in ("CREATE_COMPLETE", "UPDATE_COMPLETE"), deployment.failures

    deploy("before")
    (attached,) = plans.declared()
    key_id, plan_id = plans.ids()[key], attached.partition(":")[2]
    deploy("retain")
    deploy("take", Acme=association(key_id, plan_id, OnExisting="Take"))
    assert plans.ids()["Acme"] == attached
    assert attached in plans.attached()
    deploy("move", Acme=association(key_id, pro, OnExisting="Take"))
    assert plans.ids()["Acme"] == f"{key_id}:{plans.ids()[pro]}"
    assert {each for each in plans.attached() if each.startswith(key_id)} == {plans.ids()["Acme"]}


@pytest.mark.skipif(not shutil.which("terraform"), reason="terraform is not installed")
def test_terraform_its_template_attaches_the_keys(plans: Plans, tmp_path: Path) -> None:
    """Terraform itself evaluates it, without a provider, and so without a network."""
    keys = {name: plans.key() for name in ("Acme", "Globex")}
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
    deployment = plans.deploy(json.loads(template))
    assert deployment.status == "CREATE_COMPLETE", deployment.failures
    assert plans.declared() & plans.attached() == {f"{key}:{plans.free}" for key in keys.values()}


@pytest.mark.skipif(not shutil.which("terraform"), reason="terraform is not installed")
def test_terraform_the_files_are_formatted() -> None:
    subprocess.run(["terraform", "fmt", "-check", "-diff", EXAMPLES / "terraform"], check=True)


def sections() -> list[str]:
    return DOCUMENT.read_text().split("\n## ")[1:]


def linked(text: str) -> set[Path]:
    return {(DOCUMENT.parent / link).resolve() for link in re.findall(r"\]\((\.\./examples/[^)#]+)\)", text)}


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.partition("\n")[0])
def test_a_snippet_is_in_a_file_that_its_section_links(section: str) -> None:
    """The test compares lines without their indentation, and leaves out commands."""
    texts = [path.read_text().splitlines() for path in linked(section)]
    for language, snippet in re.findall(r"^```(\w+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
        if language != "sh":
            length = snippet.count("\n")
            passages = {"\n".join(text[at : at + length]) for text in texts for at in range(len(text))}
            assert snippet.removesuffix("\n") in map(dedent, passages)


def test_every_example_is_in_the_document() -> None:
    kinds = (".yaml", ".yml", ".tf", ".ts", ".py", ".json", ".txt")
    files = {path for path in EXAMPLES.rglob("*") if path.suffix in kinds}
    demo = set(EXAMPLES.glob("*.py"))
    assert files - demo == linked(DOCUMENT.read_text())
