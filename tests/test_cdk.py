"""The constructs in examples/cdk-*: synthesised by the CDK, parsed by the function, deployed on MiniStack.

`make cdk` fetches the CDK into .venv/cdk, and these tests run only then: it takes 670 MB.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emulators.ministack import Aws, Template, packaged, running
from examples.demo import PROVIDER, ROOT, Customers
from usage_plan_key import request
from usage_plan_key.model import LONGEST_ID, Association

CDK = ROOT / ".venv" / "cdk"
EXAMPLES = ROOT / "examples"
PARAMETER = "/usage-plan-key/function-arn"
EVENT = json.loads((ROOT / "events" / "create.json").read_text())
DEPLOYS = ("Before", "During", "After")

#: An app that tries ids, and prints what the construct says of each. In the end it attaches two keys twice,
#: and two more that have the same `Ref` in two stacks.
TRYING = {
    "python": """
import json
from aws_cdk import App, Stack
from aws_cdk.aws_apigateway import ApiKey, CfnUsagePlanKey, UsagePlan
from usage_plan_key import UsagePlanKey

app = App()
plans, stack = Stack(app, "Plans"), Stack(app, "Customers")
plan, key, other = UsagePlan(plans, "Free"), ApiKey(plans, "AcmeKey"), ApiKey(plans, "InitechKey")

def said(act):
    try:
        print(json.dumps(act()))
    except ValueError as error:
        print(json.dumps(str(error)))

def tried(number, key_id="a1b2c3d4e5", plan_id="f7r3e3", on_existing="Adopt"):
    api_key = ApiKey.from_api_key_id(stack, f"Key{number}", key_id)
    imported = UsagePlan.from_usage_plan_id(stack, f"Plan{number}", plan_id)
    UsagePlanKey(stack, f"Tried{number}", plan=imported, api_key=api_key, on_existing=on_existing)

for at, value in enumerate(LITERALS):
    said(lambda: tried(f"Key{at}", key_id=value))
    said(lambda: tried(f"Plan{at}", plan_id=value))
said(lambda: tried("Pair", key_id=f"{key.key_id}:{plan.usage_plan_id}"))
said(lambda: tried("adopt", on_existing="adopt"))
said(lambda: UsagePlanKey(stack, "Keyless", plan=plan))
imported = ApiKey.from_api_key_id(stack, "Imported", "a1b2c3d4e5")
said(lambda: UsagePlanKey(imported, "InPlan", plan=plan).node.path)
said(lambda: [it.data for it in UsagePlanKey(plan, "Under", plan=plan, api_key=imported).node.metadata])
acme = UsagePlanKey(stack, "Acme", plan=plan, api_key=key)
said(lambda: acme.value)

UsagePlanKey(other, "InPlan", plan=plan)
plan.add_api_key(ApiKey(plans, "Key"))
UsagePlanKey(ApiKey(stack, "Key"), "InPlan", plan=plan)
plan.add_api_key(key)
ids = {"key_id": other.node.default_child.attr_api_key_id, "usage_plan_id": plan.usage_plan_id}
CfnUsagePlanKey(stack, "L1", key_type="API_KEY", **ids)
app.synth()
""",
    "typescript": """
import { App, Stack } from 'aws-cdk-lib';
import { ApiKey, CfnApiKey, CfnUsagePlanKey, UsagePlan } from 'aws-cdk-lib/aws-apigateway';
import { OnExisting, UsagePlanKey } from './usage-plan-key';

declare const console: { log(message: unknown): void };
const app = new App();
const plans = new Stack(app, 'Plans');
const stack = new Stack(app, 'Customers');
const plan = new UsagePlan(plans, 'Free');
const apiKey = new ApiKey(plans, 'AcmeKey');
const other = new ApiKey(plans, 'InitechKey');

function said(act: () => unknown) {
  try {
    console.log(JSON.stringify(act() ?? null));
  } catch (error) {
    console.log(JSON.stringify((error as Error).message));
  }
}

function tried(number: string, keyId = 'a1b2c3d4e5', planId = 'f7r3e3', onExisting: OnExisting = 'Adopt') {
  const imported = ApiKey.fromApiKeyId(stack, `Key${number}`, keyId);
  const plan = UsagePlan.fromUsagePlanId(stack, `Plan${number}`, planId);
  new UsagePlanKey(stack, `Tried${number}`, { plan, apiKey: imported, onExisting });
}

LITERALS.forEach((value, at) => {
  said(() => tried(`Key${at}`, value));
  said(() => tried(`Plan${at}`, undefined, value));
});
said(() => tried('Pair', `${apiKey.keyId}:${plan.usagePlanId}`));
said(() => tried('adopt', undefined, undefined, 'adopt' as OnExisting));
said(() => new UsagePlanKey(stack, 'Keyless', { plan }));
const imported = ApiKey.fromApiKeyId(stack, 'Imported', 'a1b2c3d4e5');
said(() => new UsagePlanKey(imported, 'InPlan', { plan }).node.path);
said(() => new UsagePlanKey(plan, 'Under', { plan, apiKey: imported }).node.metadata.map((it) => it.data));
const acme = new UsagePlanKey(stack, 'Acme', { plan, apiKey });
said(() => acme.value);

new UsagePlanKey(other, 'InPlan', { plan });
plan.addApiKey(new ApiKey(plans, 'Key'));
new UsagePlanKey(new ApiKey(stack, 'Key'), 'InPlan', { plan });
plan.addApiKey(apiKey);
const keyId = (other.node.defaultChild as CfnApiKey).attrApiKeyId;
new CfnUsagePlanKey(stack, 'L1', { keyId, keyType: 'API_KEY', usagePlanId: plan.usagePlanId });
app.synth();
""",
}

#: An app in which a customer changes plans, in every form. The stacks are the deploys, one after the other.
#: Acme, whose id names the plan, goes to Pro and keeps the id for one deploy; Globex goes the other way.
MOVING = """
from aws_cdk import App, Stack
from aws_cdk.aws_apigateway import ApiKey, MockIntegration, RestApi, UsagePlanPerApiStage
from constructs import Construct
from usage_plan_key import UsagePlanKey

app = App()
for deploy in ("Before", "During", "After"):
    stack = Stack(app, deploy)
    api = RestApi(stack, "Api")
    api.root.add_method("GET", MockIntegration())
    stages = [UsagePlanPerApiStage(api=api, stage=api.deployment_stage)]
    free, pro = (api.add_usage_plan(name, api_stages=stages) for name in ("Free", "Pro"))
    tier, plan = ("Free", free) if deploy == "Before" else ("Pro", pro)
    keys = {name: ApiKey(stack, name) for name in ("Under", "Beside", "Tiered", "Named", "Acme", "Globex")}

    UsagePlanKey(keys["Under"], "InPlan", plan=plan)
    UsagePlanKey(stack, "BesideInPlan", plan=plan, api_key=keys["Beside"])
    if deploy != "During":
        UsagePlanKey(Construct(stack, tier), "TieredInPlan", plan=plan, api_key=keys["Tiered"])
        UsagePlanKey(stack, f"NamedIn{tier}", plan=plan, api_key=keys["Named"])
    if deploy == "Before":
        acme = UsagePlanKey(free, "AcmeInPlan", plan=free, api_key=keys["Acme"])
        globex = UsagePlanKey(pro, "GlobexInPlan", plan=pro, api_key=keys["Globex"])
        ids = [stack.get_logical_id(construct.node.default_child) for construct in (acme, globex)]
    else:
        swapped = [UsagePlanKey(keys[it], "InPlan", plan=to) for it, to in (("Acme", pro), ("Globex", free))]
    if deploy == "During":
        for construct, id_ in zip(swapped, ids):
            construct.node.default_child.override_logical_id(id_)
app.synth()
"""

#: What somebody may give as an id.
LITERALS = [
    *("a1b2c3d4e5", "a" * LONGEST_ID, "a" * (LONGEST_ID + 1), "a-b_c", "", " a1b2c3d4e5", "a1b2c3d4e5\n"),
    *("Acme's key", "a1b2c3d4e5:f7r3e3", "arn:aws:apigateway:eu-central-1::/apikeys/a1b2c3d4e5", "${Key}"),
    *("{{resolve:ssm-secure:/key}}", "é", "null", "None", "undefined", "NaN", "nil", "False", "true"),
    *("[object Object]", "nullify"),
]
#: CloudFormation or the CDK's next run resolves these.
RESOLVED_LATER = ["{{resolve:ssm:/key}}", "dummy-value-for-/usage-plans/free"]


@pytest.fixture(scope="module", autouse=True)
def _cdk() -> None:
    if not (CDK / "ready").exists():
        pytest.skip("the CDK is not in .venv/cdk; `make cdk` fetches it")
    if not shutil.which("node"):
        pytest.skip("node is not installed")


def run(language: str, place: Path, app: str = "") -> "subprocess.CompletedProcess[str]":
    """Run the example's app, or another one with its construct, in a copy. It writes into cdk.out."""
    shutil.copytree(EXAMPLES / f"cdk-{language}", place, ignore=shutil.ignore_patterns("__pycache__"))
    file = place / {"python": "app.py", "typescript": "app.ts"}[language]
    file.write_text(app or file.read_text())
    environment = {**os.environ, "CDK_OUTDIR": str(place / "cdk.out")}
    command = [str(CDK / "bin" / "python"), file.name]
    if language == "typescript":
        (place / "node_modules").symlink_to(CDK / "node_modules")
        subprocess.run(["node", "node_modules/typescript/bin/tsc"], cwd=place, check=True)
        command = ["node", "app.js"]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


def synthesised(place: Path, *stacks: str) -> list[Template]:
    return [json.loads((place / "cdk.out" / f"{stack}.template.json").read_text()) for stack in stacks]


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Template]:
    """The templates that the examples' two apps synthesise."""
    found = {}
    for language in TRYING:
        place = tmp_path_factory.mktemp("cdk") / language
        ran = run(language, place)
        assert ran.returncode == 0, ran.stderr
        (found[language],) = synthesised(place, "Customers")
    return found


@pytest.fixture(scope="module")
def template(templates: dict[str, Template]) -> Template:
    """The template of both: each resource is the same, without the paths that the CDK may note beside it."""
    python, typescript = (template["Resources"] for template in templates.values())
    for resource in (*python.values(), *typescript.values()):
        resource.pop("Metadata", None)
    assert python == typescript
    return templates["python"]


def unhashed(logical_id: str) -> str:
    """A logical id without the CDK's hash."""
    return re.sub("[0-9A-F]{8}$", "", logical_id)


def resolved(value: Any) -> str:
    """A property as CloudFormation sends it: a string. A referenced resource has its logical id as its id."""
    return str(value["Ref"]) if isinstance(value, dict) and "Ref" in value else json.dumps(value).strip('"')


def of_customers(template: Template) -> dict[str, tuple[str, dict[str, Any]]]:
    """The logical id and the properties of each association, by its key's name."""
    ours = {id_: it for id_, it in template["Resources"].items() if it["Type"] == "Custom::UsagePlanKey"}
    found = {id_: it["Properties"] for id_, it in ours.items()}
    return {re.sub("Key$", "", unhashed(resolved(it["KeyId"]))): (id_, it) for id_, it in found.items()}


# --- The examples ---


@pytest.mark.parametrize(
    ("name", "plan", "on_existing", "include_value", "seconds"),
    [
        ("Acme", "ApiFree", request.OnExisting.FAIL, False, 600),
        ("Umbrella", "ApiPro", request.OnExisting.FAIL, False, 600),
        ("Globex", "ApiPro", request.OnExisting.TAKE, False, 1200),
        ("Initech", "ApiFree", request.OnExisting.FAIL, True, 600),
    ],
)
def test_the_function_finds_no_fault_in_a_construct_s_properties(
    template: Template, name: str, plan: str, on_existing: str, include_value: bool, seconds: int
) -> None:
    _, properties = of_customers(template)[name]
    given = {name: resolved(value) for name, value in properties.items()}
    parsed = request.parse(EVENT | {"LogicalResourceId": name, "ResourceProperties": given})
    assert isinstance(parsed, request.Create)
    assert parsed.wanted == Association(given["KeyId"], given["UsagePlanId"])
    assert given["UsagePlanId"].startswith(plan)
    assert (parsed.on_existing, parsed.include_value) == (on_existing, include_value)
    assert parsed.service_timeout == seconds
    assert given.get("VerifyTrigger") == ("1" if name == "Globex" else None)


def test_the_token_is_the_export_or_the_given_parameter(template: Template) -> None:
    tokens = {name: properties["ServiceToken"] for name, (_, properties) in of_customers(template).items()}
    assert tokens["Acme"] == {"Fn::ImportValue": f"{PROVIDER}-FunctionArn"}
    parameter = template["Parameters"][resolved(tokens["Globex"])]
    assert parameter == {"Type": "AWS::SSM::Parameter::Value<String>", "Default": PARAMETER}


def test_a_value_goes_into_a_secret_only(template: Template) -> None:
    secrets = [it for it in template["Resources"].values() if it["Type"] == "AWS::SecretsManager::Secret"]
    value = {"Fn::GetAtt": [of_customers(template)["Initech"][0], "Value"]}
    assert [it["Properties"]["SecretString"] for it in secrets] == [value]
    assert json.dumps(template).count(json.dumps(value)) == 1


# --- What a construct refuses ---


@pytest.fixture(scope="module", params=TRYING)
def tried(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the construct says of each literal, and of the rest; and why the app is not synthesised."""
    app = TRYING[request.param].replace("LITERALS", json.dumps(LITERALS + RESOLVED_LATER))
    ran = run(request.param, tmp_path_factory.mktemp("trying") / request.param, app)
    assert ran.returncode
    return [json.loads(line) for line in ran.stdout.splitlines()], ran.stderr


def test_a_construct_refuses_the_literals_that_the_function_refuses(tried: Any) -> None:
    said = iter(tried[0])
    for literal in LITERALS:
        for name in ("KeyId", "UsagePlanId"):
            given = {"KeyId": "a1b2c3d4e5", "UsagePlanId": "f7r3e3", name: literal}
            parsed, verdict = request.parse(EVENT | {"ResourceProperties": given}), next(said)
            assert (verdict is None) == isinstance(parsed, request.Create), literal
            assert verdict is None or not literal.strip() or literal not in verdict
    assert [next(said) for _ in RESOLVED_LATER * 2] == [None] * 4
    pair, policy, keyless, path, under, value = said
    assert re.search("TriedPair: .*is no id", pair)
    assert "adopt" in policy
    assert "Customers/Keyless needs" in keyless
    assert path.replace("/", "") == "CustomersImportedInPlan"
    assert "The logical id names the plan" in str(under)
    assert "Customers/Acme returns no value without" in value, "it gives away none that nobody asked for"


def test_an_app_that_attaches_a_key_twice_is_not_synthesised(tried: Any) -> None:
    """Two keys of two stacks that have the same `Ref` are two keys."""
    found = set(re.findall(r"(\S+) attaches the same key as (\S+): leave the native one out", tried[1]))
    assert {re.sub(r"UsagePlanKeyResource:Plans\w*", "…", native): ours for native, ours in found} == {
        "Plans/Free/…": "Customers/Acme",
        "Customers/L1": "Plans/InitechKey/InPlan",
    }


def test_typescript_compiles_as_a_module_whose_types_can_be_stripped(tmp_path: Path) -> None:
    """Node runs such a file as it is, and so do bundlers that compile each file alone."""
    shutil.copy(EXAMPLES / "cdk-typescript" / "usage-plan-key.ts", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "node_modules").symlink_to(CDK / "node_modules")
    flags = (
        "strict verbatimModuleSyntax erasableSyntaxOnly isolatedModules isolatedDeclarations declaration"
        " exactOptionalPropertyTypes noUncheckedIndexedAccess noUnusedLocals noUnusedParameters"
        " noImplicitOverride noPropertyAccessFromIndexSignature noEmit skipLibCheck"
    )
    command = ["node", "node_modules/typescript/bin/tsc", "usage-plan-key.ts", "--module", "nodenext"]
    command += ["--target", "es2022", *(f"--{flag}" for flag in flags.split())]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


# --- On the embedded AWS ---


@pytest.fixture(scope="module")
def aws() -> Iterator[Aws]:
    """MiniStack, with the function deployed."""
    with running() as aws:
        function = packaged(ROOT / "template.yaml", aws.upload(ROOT / "handler"))
        assert aws.deploy(PROVIDER, function, **aws.emulated).status == "CREATE_COMPLETE"
        yield aws


def deployed(aws: Aws, stack: str, template: Template) -> Template:
    """Deploy it without the check that somebody ran `cdk bootstrap`: nobody did here."""
    del template["Rules"], template["Parameters"]["BootstrapVersion"]
    deployment = aws.deploy(stack, template)
    assert deployment.status in ("CREATE_COMPLETE", "UPDATE_COMPLETE"), deployment.failures
    return template


def in_plans(aws: Aws, stack: str) -> dict[str, str]:
    """The plan of each key of the stack."""
    names, api = aws.physical_ids(stack), aws.client("apigateway")
    called = {id_: re.sub("^Api|Key$", "", unhashed(name)) for name, id_ in names.items()}
    plans = [plan["id"] for plan in api.get_usage_plans(limit=500)["items"] if plan["id"] in called]
    keys = {plan: api.get_usage_plan_keys(usagePlanId=plan, limit=500)["items"] for plan in plans}
    return {called[key["id"]]: called[plan] for plan in plans for key in keys[plan]}


def test_the_stack_deploys(aws: Aws, template: Template) -> None:
    deployed(aws, "cdk", template)
    plans = {"Acme": "Free", "Umbrella": "Pro", "Globex": "Pro", "Initech": "Free"}
    assert in_plans(aws, "cdk") == plans
    ids = {unhashed(name): id_ for name, id_ in aws.physical_ids("cdk").items()}
    value = aws.client("apigateway").get_api_key(apiKey=ids["Initech"], includeValue=True)["value"]
    secret = aws.client("secretsmanager").get_secret_value(SecretId=ids["InitechSecret"])
    assert secret["SecretString"] == value


def test_a_change_of_plan_keeps_the_id_under_the_key_or_the_stack_and_any_id_can_be_overridden(
    aws: Aws, tmp_path: Path
) -> None:
    """As docs/use-from.md says: override the logical ids for one deploy, then leave the overrides out.

    Where the scope or the id names the plan, the customer is a new resource.
    """
    ran = run("python", tmp_path / "moving", MOVING)
    assert ran.returncode == 0, ran.stderr
    stack, ids, told = Customers(aws, "moving"), [], []
    for template, count in zip(synthesised(tmp_path / "moving", *DEPLOYS), (6, 10, 6), strict=True):
        ids.append({name: id_ for name, (id_, _) in of_customers(template).items()})
        deployed(aws, "moving", template)
        customers = {unhashed(id_): name for name, id_ in ids[-1].items()}
        outcomes = {
            customers[unhashed(it.logical_id)]: it.outcome for it in stack.requests(count) if it.outcome
        }
        told.append((in_plans(aws, "moving"), outcomes))
    before, _, after = ids
    assert {name for name in before if before[name] == after[name]} == {"Under", "Beside"}
    kept, swapped, others = ("Under", "Beside"), ("Acme", "Globex"), ("Tiered", "Named")
    free, pro = (dict.fromkeys((*kept, *others), plan) for plan in ("Free", "Pro"))
    crossed = {"Acme": "Pro", "Globex": "Free"}
    assert told == [
        (free | {"Acme": "Free", "Globex": "Pro"}, dict.fromkeys((*kept, *swapped, *others), "ATTACHED")),
        (dict.fromkeys(kept, "Pro") | crossed, dict.fromkeys((*kept, *swapped), "MOVED")),
        (pro | crossed, dict.fromkeys(swapped, "JOINED") | dict.fromkeys(others, "ATTACHED")),
    ]
