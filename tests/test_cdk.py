"""The constructs in examples/cdk-*: synthesised by the CDK, parsed by the function, deployed on MiniStack.

`make cdk` fetches the CDK into .venv/cdk, and these tests run only then: it takes 670 MB.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from emulators.ministack import Template, packaged, running
from examples.demo import PROVIDER, ROOT
from usage_plan_key import request
from usage_plan_key.model import Association

CDK = ROOT / ".venv" / "cdk"
EXAMPLES = ROOT / "examples"
PARAMETER = "/usage-plan-key/function-arn"
EVENT = json.loads((ROOT / "events" / "create.json").read_text())

#: An app that attaches a key twice, from two stacks, and asks for a value that it cannot have.
WRONG = {
    "python": """
from aws_cdk import App, Stack
from aws_cdk.aws_apigateway import ApiKey, UsagePlan
from usage_plan_key import UsagePlanKey

app = App()
plans, stack = Stack(app, "Plans"), Stack(app, "Customers")
plan, key = UsagePlan(plans, "Free"), ApiKey(plans, "AcmeKey")
acme = UsagePlanKey(stack, "Acme", plan=plan, api_key=key)
plan.add_api_key(ApiKey(plans, "GlobexKey"))
try:
    print(acme.value)
except ValueError as error:
    print(error)
plan.add_api_key(key)
app.synth()
""",
    "typescript": """
import { App, Stack } from 'aws-cdk-lib';
import { ApiKey, UsagePlan } from 'aws-cdk-lib/aws-apigateway';
import { UsagePlanKey } from './usage-plan-key';

declare const console: { log(message: unknown): void };
const app = new App();
const plans = new Stack(app, 'Plans');
const stack = new Stack(app, 'Customers');
const plan = new UsagePlan(plans, 'Free');
const apiKey = new ApiKey(plans, 'AcmeKey');
const acme = new UsagePlanKey(stack, 'Acme', { plan, apiKey });
plan.addApiKey(new ApiKey(plans, 'GlobexKey'));
try {
  console.log(acme.value);
} catch (error) {
  console.log(error);
}
plan.addApiKey(apiKey);
app.synth();
""",
}


@pytest.fixture(scope="module", autouse=True)
def _cdk() -> None:
    if not (CDK / "ready").exists():
        pytest.skip("the CDK is not in .venv/cdk; `make cdk` fetches it")
    if not shutil.which("node"):
        pytest.skip("node is not installed")


def run(language: str, place: Path, app: str = "") -> "subprocess.CompletedProcess[str]":
    """Run the example's app, or another one with its construct, in a copy. It writes into cdk.out."""
    place.mkdir()
    for path in (EXAMPLES / f"cdk-{language}").iterdir():
        shutil.copy(path, place)
    file = place / {"python": "app.py", "typescript": "app.ts"}[language]
    file.write_text(app or file.read_text())
    environment = {**os.environ, "CDK_OUTDIR": str(place / "cdk.out")}
    command = [str(CDK / "bin" / "python"), file.name]
    if language == "typescript":
        (place / "node_modules").symlink_to(CDK / "node_modules")
        subprocess.run(["node", "node_modules/typescript/bin/tsc"], cwd=place, check=True)
        command = ["node", "app.js"]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Template]:
    """The templates that the two apps synthesise."""
    found = {}
    for language in WRONG:
        place = tmp_path_factory.mktemp("cdk") / language
        ran = run(language, place)
        assert ran.returncode == 0, ran.stderr
        found[language] = json.loads((place / "cdk.out" / "Customers.template.json").read_text())
    return found


@pytest.fixture(scope="module", params=list(WRONG))
def template(request: pytest.FixtureRequest, templates: dict[str, Template]) -> Template:
    """The template that one of them synthesises."""
    return templates[request.param]


def properties_of(template: Template, logical_id: str) -> dict[str, Any]:
    resource = template["Resources"][logical_id]
    assert resource["Type"] == "Custom::UsagePlanKey"
    properties: dict[str, Any] = resource["Properties"]
    return properties


def resolved(value: Any) -> str:
    """A property as CloudFormation sends it: a string. A referenced resource has its logical id as its id."""
    return str(value["Ref"]) if isinstance(value, dict) and "Ref" in value else json.dumps(value).strip('"')


@pytest.mark.parametrize(
    ("logical_id", "plan", "on_existing", "include_value", "seconds"),
    [
        ("Acme", "ApiFree", request.OnExisting.FAIL, False, 600),
        ("Globex", "ApiPro", request.OnExisting.TAKE, False, 1200),
        ("Initech", "ApiFree", request.OnExisting.FAIL, True, 600),
    ],
)
def test_the_function_finds_no_fault_in_a_construct_s_properties(
    template: Template, logical_id: str, plan: str, on_existing: str, include_value: bool, seconds: int
) -> None:
    given = {name: resolved(value) for name, value in properties_of(template, logical_id).items()}
    parsed = request.parse(EVENT | {"LogicalResourceId": logical_id, "ResourceProperties": given})
    assert isinstance(parsed, request.Create)
    assert parsed.wanted == Association(given["KeyId"], given["UsagePlanId"])
    assert given["KeyId"].startswith(f"{logical_id}Key")
    assert given["UsagePlanId"].startswith(plan)
    assert (parsed.on_existing, parsed.include_value) == (on_existing, include_value)
    assert parsed.service_timeout == seconds


def test_the_trigger_is_there_only_where_it_is_set(template: Template) -> None:
    triggers = [properties_of(template, name).get("VerifyTrigger") for name in ("Acme", "Globex", "Initech")]
    assert triggers == [None, "1", None]


def test_the_token_is_the_export_or_the_given_parameter(template: Template) -> None:
    assert properties_of(template, "Acme")["ServiceToken"] == {"Fn::ImportValue": f"{PROVIDER}-FunctionArn"}
    parameter = template["Parameters"][resolved(properties_of(template, "Globex")["ServiceToken"])]
    assert parameter == {"Type": "AWS::SSM::Parameter::Value<String>", "Default": PARAMETER}


def test_a_value_goes_into_a_secret_only(template: Template) -> None:
    secrets = [it for it in template["Resources"].values() if it["Type"] == "AWS::SecretsManager::Secret"]
    value = {"Fn::GetAtt": ["Initech", "Value"]}
    assert [it["Properties"]["SecretString"] for it in secrets] == [value]
    assert json.dumps(template).count(json.dumps(value)) == 1


def test_both_languages_say_the_same(templates: dict[str, Template]) -> None:
    """Each resource, without the paths that the CDK may note beside it."""
    python, typescript = (template["Resources"] for template in templates.values())
    for resource in (*python.values(), *typescript.values()):
        resource.pop("Metadata", None)
    assert python == typescript


@pytest.mark.parametrize("language", list(WRONG))
def test_an_app_that_attaches_a_key_twice_is_not_synthesised(language: str, tmp_path: Path) -> None:
    """A construct gives away no value that nobody asked for."""
    ran = run(language, tmp_path / language, WRONG[language])
    assert ran.returncode != 0
    assert "Customers/Acme returns no value without" in ran.stdout
    (native,) = set(re.findall(r"(\S+) attaches the same key: leave out", ran.stderr))
    assert re.search(r"Plans/Free/\S+AcmeKey", native)


def test_the_stack_deploys(templates: dict[str, Template]) -> None:
    template = templates["python"]
    del template["Rules"], template["Parameters"]["BootstrapVersion"]  # nobody ran `cdk bootstrap` here
    with running() as aws:
        function = packaged(ROOT / "template.yaml", aws.upload(ROOT / "handler"))
        assert aws.deploy(PROVIDER, function, **aws.emulated).status == "CREATE_COMPLETE"
        deployment = aws.deploy("cdk", template)
        assert deployment.status == "CREATE_COMPLETE", deployment.failures
        ids, api = aws.physical_ids("cdk"), aws.client("apigateway")
        for name in ("Acme", "Globex", "Initech"):
            key, plan = ids[name].split(":")
            assert api.get_usage_plan_key(usagePlanId=plan, keyId=key)["id"] == key
        secret = next(id_ for name, id_ in ids.items() if name.startswith("InitechSecret"))
        value = api.get_api_key(apiKey=ids["Initech"].partition(":")[0], includeValue=True)["value"]
        assert aws.client("secretsmanager").get_secret_value(SecretId=secret)["SecretString"] == value
