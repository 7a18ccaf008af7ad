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

#: An app that attaches two keys twice, from two stacks, and asks for a value that it cannot have.
WRONG = {
    "python": """
from aws_cdk import App, Stack
from aws_cdk.aws_apigateway import ApiKey, CfnUsagePlanKey, UsagePlan
from usage_plan_key import UsagePlanKey

app = App()
plans, stack = Stack(app, "Plans"), Stack(app, "Customers")
plan, key, other = UsagePlan(plans, "Free"), ApiKey(plans, "AcmeKey"), ApiKey(plans, "InitechKey")
acme = UsagePlanKey(stack, "Acme", plan=plan, api_key=key)
UsagePlanKey(other, "InPlan", plan=plan)
plan.add_api_key(ApiKey(plans, "GlobexKey"))
try:
    print(acme.value)
except ValueError as error:
    print(error)
plan.add_api_key(key)
ids = {"key_id": other.node.default_child.attr_api_key_id, "usage_plan_id": plan.usage_plan_id}
CfnUsagePlanKey(stack, "L1", key_type="API_KEY", **ids)
app.synth()
""",
    "typescript": """
import { App, Stack } from 'aws-cdk-lib';
import { ApiKey, CfnApiKey, CfnUsagePlanKey, UsagePlan } from 'aws-cdk-lib/aws-apigateway';
import { UsagePlanKey } from './usage-plan-key';

declare const console: { log(message: unknown): void };
const app = new App();
const plans = new Stack(app, 'Plans');
const stack = new Stack(app, 'Customers');
const plan = new UsagePlan(plans, 'Free');
const apiKey = new ApiKey(plans, 'AcmeKey');
const other = new ApiKey(plans, 'InitechKey');
const acme = new UsagePlanKey(stack, 'Acme', { plan, apiKey });
new UsagePlanKey(other, 'InPlan', { plan });
plan.addApiKey(new ApiKey(plans, 'GlobexKey'));
try {
  console.log(acme.value);
} catch (error) {
  console.log(error);
}
plan.addApiKey(apiKey);
const keyId = (other.node.defaultChild as CfnApiKey).attrApiKeyId;
new CfnUsagePlanKey(stack, 'L1', { keyId, keyType: 'API_KEY', usagePlanId: plan.usagePlanId });
app.synth();
""",
}

#: An app in which a customer changes plans, in every form. The stacks are the deploys, one after the other.
#: Acme, whose id names the plan, goes to Pro and keeps the id for one deploy; Globex goes the other way.
MOVING = {
    "python": """
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
    plans = {name: api.add_usage_plan(name, api_stages=stages) for name in ("Free", "Pro")}
    tier = "Free" if deploy == "Before" else "Pro"
    plan, keys = plans[tier], {name: ApiKey(stack, name) for name in ("Under", "Beside", "Tiered", "Named")}

    UsagePlanKey(keys["Under"], "InPlan", plan=plan)
    UsagePlanKey(stack, "BesideInPlan", plan=plan, api_key=keys["Beside"])
    if deploy != "During":
        UsagePlanKey(Construct(stack, tier), "TieredInPlan", plan=plan, api_key=keys["Tiered"])
        UsagePlanKey(stack, f"NamedIn{tier}", plan=plan, api_key=keys["Named"])

    acme, globex = ApiKey(stack, "Acme"), ApiKey(stack, "Globex")
    free, pro = plans["Free"], plans["Pro"]
    if deploy == "Before":
        acme = UsagePlanKey(free, "AcmeInPlan", plan=free, api_key=acme)
        globex = UsagePlanKey(pro, "GlobexInPlan", plan=pro, api_key=globex)
        ids = [stack.get_logical_id(construct.node.default_child) for construct in (acme, globex)]
    else:
        moved = [UsagePlanKey(acme, "InPlan", plan=pro), UsagePlanKey(globex, "InPlan", plan=free)]
    if deploy == "During":
        for construct, id_ in zip(moved, ids):
            construct.node.default_child.override_logical_id(id_)
app.synth()
""",
    "typescript": """
import { App, CfnResource, Stack } from 'aws-cdk-lib';
import { ApiKey, MockIntegration, RestApi } from 'aws-cdk-lib/aws-apigateway';
import { Construct } from 'constructs';
import { UsagePlanKey } from './usage-plan-key';

const app = new App();
const resource = (construct: Construct) => construct.node.defaultChild as CfnResource;
let ids: string[] = [];
for (const deploy of ['Before', 'During', 'After']) {
  const stack = new Stack(app, deploy);
  const api = new RestApi(stack, 'Api');
  api.root.addMethod('GET', new MockIntegration());
  const apiStages = [{ api, stage: api.deploymentStage }];
  const [Free, Pro] = ['Free', 'Pro'].map((name) => api.addUsagePlan(name, { apiStages }));
  const plans = { Free, Pro };
  const tier = deploy === 'Before' ? 'Free' : 'Pro';
  const plan = plans[tier];
  const key = (name: string) => new ApiKey(stack, name);

  new UsagePlanKey(key('Under'), 'InPlan', { plan });
  new UsagePlanKey(stack, 'BesideInPlan', { plan, apiKey: key('Beside') });
  const tiered = key('Tiered');
  const named = key('Named');
  if (deploy !== 'During') {
    new UsagePlanKey(new Construct(stack, tier), 'TieredInPlan', { plan, apiKey: tiered });
    new UsagePlanKey(stack, `NamedIn${tier}`, { plan, apiKey: named });
  }

  const acme = key('Acme');
  const globex = key('Globex');
  if (deploy === 'Before') {
    const before = [
      new UsagePlanKey(plans.Free, 'AcmeInPlan', { plan: plans.Free, apiKey: acme }),
      new UsagePlanKey(plans.Pro, 'GlobexInPlan', { plan: plans.Pro, apiKey: globex }),
    ];
    ids = before.map((each) => stack.getLogicalId(resource(each)));
  } else {
    const moved = [
      new UsagePlanKey(acme, 'InPlan', { plan: plans.Pro }),
      new UsagePlanKey(globex, 'InPlan', { plan: plans.Free }),
    ];
    if (deploy === 'During') {
      moved.forEach((each, at) => resource(each).overrideLogicalId(ids[at]));
    }
  }
}
app.synth();
""",
}

#: An app that tries ids and policies, and says of each whether the construct refuses it. It also declares two
#: keys of two stacks that have the same `Ref`.
TRYING = {
    "python": """
import json
from aws_cdk import App, Stack
from aws_cdk.aws_apigateway import ApiKey, UsagePlan
from usage_plan_key import UsagePlanKey

app = App()
stack, other = Stack(app, "Customers"), Stack(app, "Others")
plan = UsagePlan(stack, "Free")
plan.add_api_key(ApiKey(stack, "Key"))
UsagePlanKey(ApiKey(other, "Key"), "InPlan", plan=plan)

def refused(number, key_id="a1b2c3d4e5", plan_id="f7r3e3", on_existing="Adopt"):
    key = ApiKey.from_api_key_id(stack, f"Key{number}", key_id)
    imported = UsagePlan.from_usage_plan_id(stack, f"Plan{number}", plan_id)
    try:
        UsagePlanKey(stack, f"Tried{number}", plan=imported, api_key=key, on_existing=on_existing)
    except ValueError as error:
        return str(error)
    return None

for at, value in enumerate(LITERALS):
    print(json.dumps([refused(f"Key{at}", key_id=value), refused(f"Plan{at}", plan_id=value)]))
pair = f"{ApiKey(stack, 'Half').key_id}:{plan.usage_plan_id}"
print(json.dumps([refused("Pair", key_id=pair), refused("adopt", on_existing="adopt")]))
try:
    UsagePlanKey(stack, "Keyless", plan=plan)
except ValueError as error:
    print(json.dumps([str(error)]))
imported = ApiKey.from_api_key_id(other, "Imported", "a1b2c3d4e5")
print(json.dumps([UsagePlanKey(imported, "InPlan", plan=plan).node.path]))
app.synth()
""",
    "typescript": """
import { App, Stack } from 'aws-cdk-lib';
import { ApiKey, UsagePlan } from 'aws-cdk-lib/aws-apigateway';
import { OnExisting, UsagePlanKey } from './usage-plan-key';

declare const console: { log(message: unknown): void };
const app = new App();
const stack = new Stack(app, 'Customers');
const other = new Stack(app, 'Others');
const plan = new UsagePlan(stack, 'Free');
plan.addApiKey(new ApiKey(stack, 'Key'));
new UsagePlanKey(new ApiKey(other, 'Key'), 'InPlan', { plan });

function caught(act: () => unknown): string | null {
  try {
    act();
  } catch (error) {
    return (error as Error).message;
  }
  return null;
}

function refused(number: string, keyId = 'a1b2c3d4e5', planId = 'f7r3e3', onExisting: OnExisting = 'Adopt') {
  const apiKey = ApiKey.fromApiKeyId(stack, `Key${number}`, keyId);
  const imported = UsagePlan.fromUsagePlanId(stack, `Plan${number}`, planId);
  return caught(() => new UsagePlanKey(stack, `Tried${number}`, { plan: imported, apiKey, onExisting }));
}

LITERALS.forEach((value, at) => {
  console.log(JSON.stringify([refused(`Key${at}`, value), refused(`Plan${at}`, undefined, value)]));
});
const pair = `${new ApiKey(stack, 'Half').keyId}:${plan.usagePlanId}`;
const adopt = 'adopt' as OnExisting;
console.log(JSON.stringify([refused('Pair', pair), refused('adopt', undefined, undefined, adopt)]));
console.log(JSON.stringify([caught(() => new UsagePlanKey(stack, 'Keyless', { plan }))]));
const imported = ApiKey.fromApiKeyId(other, 'Imported', 'a1b2c3d4e5');
console.log(JSON.stringify([new UsagePlanKey(imported, 'InPlan', { plan }).node.path]));
app.synth();
""",
}

#: What somebody may give as an id.
LITERALS = [
    "a1b2c3d4e5",
    "a" * LONGEST_ID,
    "a" * (LONGEST_ID + 1),
    "a-b_c",
    "",
    " a1b2c3d4e5",
    "a1b2c3d4e5\n",
    "Acme's key",
    "a1b2c3d4e5:f7r3e3",
    "arn:aws:apigateway:eu-central-1::/apikeys/a1b2c3d4e5",
    "${Key}",
    "{{resolve:ssm-secure:/key}}",
    "é",
    *("null", "None", "undefined", "NaN", "nil", "False", "true", "[object Object]", "nullify"),
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


def of_customer(template: Template, name: str) -> str:
    """The logical id of a customer's association."""
    (found,) = [
        logical_id
        for logical_id, resource in template["Resources"].items()
        if resource["Type"] == "Custom::UsagePlanKey" and logical_id.startswith(name)
    ]
    return str(found)


def properties_of(template: Template, name: str) -> dict[str, Any]:
    properties: dict[str, Any] = template["Resources"][of_customer(template, name)]["Properties"]
    return properties


def resolved(value: Any) -> str:
    """A property as CloudFormation sends it: a string. A referenced resource has its logical id as its id."""
    return str(value["Ref"]) if isinstance(value, dict) and "Ref" in value else json.dumps(value).strip('"')


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
    given = {name: resolved(value) for name, value in properties_of(template, name).items()}
    parsed = request.parse(EVENT | {"LogicalResourceId": name, "ResourceProperties": given})
    assert isinstance(parsed, request.Create)
    assert parsed.wanted == Association(given["KeyId"], given["UsagePlanId"])
    assert given["KeyId"].startswith(name)
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
    value = {"Fn::GetAtt": [of_customer(template, "Initech"), "Value"]}
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
    found = set(re.findall(r"(\S+) attaches the same key as (\S+): leave the native one out", ran.stderr))
    assert {re.sub(r"UsagePlanKeyResource:Plans\w*", "…", native): ours for native, ours in found} == {
        "Plans/Free/…": "Customers/Acme",
        "Customers/L1": "Plans/InitechKey/InPlan",
    }


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where the apps with a customer that changes plans have synthesised their deploys."""
    found = {}
    for language, app in MOVING.items():
        place = tmp_path_factory.mktemp("moving") / language
        ran = run(language, place, app)
        assert ran.returncode == 0, ran.stderr
        found[language] = place / "cdk.out"
    return found


def deploys(place: Path) -> list[Template]:
    return [
        json.loads((place / f"{deploy}.template.json").read_text())
        for deploy in ("Before", "During", "After")
    ]


@pytest.mark.parametrize("language", list(MOVING))
def test_a_change_of_plan_keeps_the_logical_id_under_the_key_or_the_stack_only(
    moving: dict[str, Path], language: str
) -> None:
    """As the docstrings say. Where the scope or the id names the plan, the customer is a new resource."""

    def by_customer(template: Template) -> dict[str, str]:
        return {
            unhashed(resolved(resource["Properties"]["KeyId"])): logical_id
            for logical_id, resource in template["Resources"].items()
            if resource["Type"] == "Custom::UsagePlanKey"
        }

    before, _, after = map(by_customer, deploys(moving[language]))
    assert before.keys() == after.keys()
    assert {name for name, id_ in before.items() if after[name] == id_} == {"Under", "Beside"}


@pytest.mark.parametrize("language", list(MOVING))
def test_a_construct_under_its_plan_warns(moving: dict[str, Path], language: str) -> None:
    metadata = [path.read_text() for path in moving[language].glob("*.json") if "template" not in path.name]
    paths = {
        place
        for text in metadata
        for place, entries in re.findall(r'"(/[^"]+)": \[([^\]]*)\]', text)
        if "The logical id names the plan" in entries
    }
    assert paths == {"/Before/Api/Free/AcmeInPlan", "/Before/Api/Pro/GlobexInPlan"}


def test_both_languages_move_by_the_same_templates(moving: dict[str, Path]) -> None:
    ids = [[template["Resources"].keys() for template in deploys(place)] for place in moving.values()]
    assert ids[0] == ids[1]


@pytest.fixture(scope="module", params=list(TRYING))
def tried(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> "subprocess.CompletedProcess[str]":
    """The run of an app that tries literals."""
    app = TRYING[request.param].replace("LITERALS", json.dumps(LITERALS + RESOLVED_LATER))
    return run(request.param, tmp_path_factory.mktemp("trying") / request.param, app)


def test_two_keys_of_two_stacks_that_have_the_same_ref_are_two_keys(
    tried: "subprocess.CompletedProcess[str]",
) -> None:
    assert tried.returncode == 0, tried.stderr


def test_a_construct_refuses_the_literals_that_the_function_refuses(
    tried: "subprocess.CompletedProcess[str]",
) -> None:
    *all_verdicts, (pair, policy), (keyless,), (path,) = map(json.loads, tried.stdout.splitlines())
    for literal, verdicts in zip(LITERALS, all_verdicts, strict=False):
        for name, verdict in zip(("KeyId", "UsagePlanId"), verdicts, strict=True):
            given = {"KeyId": "a1b2c3d4e5", "UsagePlanId": "f7r3e3", name: literal}
            parsed = request.parse(EVENT | {"ResourceProperties": given})
            assert (verdict is None) == isinstance(parsed, request.Create), literal
            assert verdict is None or not literal.strip() or literal not in verdict
    assert all_verdicts[len(LITERALS) :] == [[None, None]] * len(RESOLVED_LATER)
    assert "TriedPair: " in pair
    assert "is no id" in pair
    assert "adopt" in policy
    assert "Customers/Keyless needs" in keyless
    assert path.replace("/", "") == "OthersImportedInPlan"


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


def bootstrapped(template: Template) -> Template:
    """The template without the check that somebody ran `cdk bootstrap`: nobody did here."""
    del template["Rules"], template["Parameters"]["BootstrapVersion"]
    return template


@pytest.fixture(scope="module")
def aws() -> Iterator[Aws]:
    """MiniStack, with the function deployed."""
    with running() as aws:
        function = packaged(ROOT / "template.yaml", aws.upload(ROOT / "handler"))
        assert aws.deploy(PROVIDER, function, **aws.emulated).status == "CREATE_COMPLETE"
        yield aws


def test_the_stack_deploys(aws: Aws, templates: dict[str, Template]) -> None:
    template = bootstrapped(templates["python"])
    deployment = aws.deploy("cdk", template)
    assert deployment.status == "CREATE_COMPLETE", deployment.failures
    ids, api = aws.physical_ids("cdk"), aws.client("apigateway")
    attached = {name: ids[of_customer(template, name)] for name in ("Acme", "Umbrella", "Globex", "Initech")}
    for association in attached.values():
        key, plan = association.split(":")
        assert api.get_usage_plan_key(usagePlanId=plan, keyId=key)["id"] == key
    secret = next(id_ for name, id_ in ids.items() if name.startswith("InitechSecret"))
    value = api.get_api_key(apiKey=attached["Initech"].partition(":")[0], includeValue=True)["value"]
    assert aws.client("secretsmanager").get_secret_value(SecretId=secret)["SecretString"] == value


def unhashed(logical_id: str) -> str:
    """A logical id without the CDK's hash."""
    return re.sub("[0-9A-F]{8}$", "", logical_id)


def in_plans(aws: Aws, stack: str) -> set[str]:
    """Each key of the stack with its plan."""
    names, api = (
        {id_: unhashed(name) for name, id_ in aws.physical_ids(stack).items()},
        aws.client("apigateway"),
    )
    plans = [plan["id"] for plan in api.get_usage_plans(limit=500)["items"] if plan["id"] in names]
    return {
        f"{names[key['id']]} in {names[plan].removeprefix('Api')}"
        for plan in plans
        for key in api.get_usage_plan_keys(usagePlanId=plan, limit=500)["items"]
    }


def test_two_customers_whose_ids_name_their_plans_swap_plans(aws: Aws, moving: dict[str, Path]) -> None:
    """As docs/use-from.md says: override the logical ids for one deploy, then leave the overrides out."""
    stack, told = Customers(aws, "moving"), []
    for template, count in zip(deploys(moving["python"]), (6, 10, 6), strict=True):
        deployment = aws.deploy("moving", bootstrapped(template))
        assert deployment.status.endswith("E_COMPLETE"), deployment.failures
        outcomes = {unhashed(it.logical_id): it.outcome for it in stack.requests(count) if it.outcome}
        told.append((in_plans(aws, "moving"), outcomes))
    assert told == [
        (
            {
                *("Acme in Free", "Globex in Pro"),
                *("Under in Free", "Beside in Free", "Tiered in Free", "Named in Free"),
            },
            {
                "ApiFreeAcmeInPlan": "ATTACHED",
                "ApiProGlobexInPlan": "ATTACHED",
                **dict.fromkeys(("UnderInPlan", "BesideInPlan"), "ATTACHED"),
                **dict.fromkeys(("FreeTieredInPlan", "NamedInFree"), "ATTACHED"),
            },
        ),
        (
            {"Acme in Pro", "Globex in Free", "Under in Pro", "Beside in Pro"},
            {
                "ApiFreeAcmeInPlan": "MOVED",
                "ApiProGlobexInPlan": "MOVED",
                **dict.fromkeys(("UnderInPlan", "BesideInPlan"), "MOVED"),
            },
        ),
        (
            {
                *("Acme in Pro", "Globex in Free"),
                *("Under in Pro", "Beside in Pro", "Tiered in Pro", "Named in Pro"),
            },
            {
                "AcmeInPlan": "JOINED",
                "GlobexInPlan": "JOINED",
                **dict.fromkeys(("ProTieredInPlan", "NamedInPro"), "ATTACHED"),
            },
        ),
    ]
