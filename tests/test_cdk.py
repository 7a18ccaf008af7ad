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

from emulators.ministack import Aws, Template
from examples.demo import ROOT
from usage_plan_key import request
from usage_plan_key.model import Association

from .test_request import ACCEPTED, FAULTS, event

CDK = ROOT / ".venv" / "cdk"
EXAMPLES = ROOT / "examples"
KEY, PLAN = "a1b2c3d4e5", "f7r3e3"

#: An app that tries all CASES, a line for each: the construct's path, its warnings, and what it has refused,
#: at least its value, which nobody asked for. In the end it attaches two keys by the native type too, and two
#: more that have the same `Ref` in two stacks.
TRYING = {
    "python": """
import json
from aws_cdk import App, Stack
from aws_cdk.aws_apigateway import ApiKey, CfnUsagePlanKey, UsagePlan
from usage_plan_key import UsagePlanKey

app = App()
plans, stack = Stack(app, "Plans"), Stack(app, "Customers")
free, acme, initech = UsagePlan(plans, "Free"), ApiKey(plans, "Acme"), ApiKey(plans, "Initech")
things = {"stack": stack, "free": free, "acme": acme, "initech": initech, "nobody": None}
things |= {"same": ApiKey(stack, "Key"), "imported": ApiKey.from_api_key_id(stack, "Imported", "a1b2c3d4e5")}
things["pair"] = ApiKey.from_api_key_id(stack, "Pair", f"{acme.key_id}:{free.usage_plan_id}")

for number, (scope, key, plan, on_existing) in enumerate(CASES):
    said = ""
    try:
        key = things[key] if key in things else ApiKey.from_api_key_id(stack, f"Key{number}", key)
        plan = things[plan] if plan in things else UsagePlan.from_usage_plan_id(stack, f"Plan{number}", plan)
        made = UsagePlanKey(things[scope], f"Tried{number}", plan=plan, api_key=key, on_existing=on_existing)
        said = json.dumps([made.node.path, *(it.data for it in made.node.metadata)])
        made.value
    except ValueError as error:
        said += str(error)
    print(said)

free.add_api_key(ApiKey(plans, "Key"))
free.add_api_key(acme)
ids = {"key_id": initech.node.default_child.attr_api_key_id, "usage_plan_id": free.usage_plan_id}
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
const free = new UsagePlan(plans, 'Free');
const [acme, initech] = ['Acme', 'Initech'].map((name) => new ApiKey(plans, name));
const things: Record<string, any> = { stack, free, acme, initech, nobody: undefined };
things.same = new ApiKey(stack, 'Key');
things.imported = ApiKey.fromApiKeyId(stack, 'Imported', 'a1b2c3d4e5');
things.pair = ApiKey.fromApiKeyId(stack, 'Pair', `${acme.keyId}:${free.usagePlanId}`);

(CASES as any[]).forEach(([scope, key, id, onExisting], number) => {
  let said = '';
  try {
    const apiKey = key in things ? things[key] : ApiKey.fromApiKeyId(stack, `Key${number}`, key);
    const plan = id in things ? things[id] : UsagePlan.fromUsagePlanId(stack, `Plan${number}`, id);
    const made = new UsagePlanKey(things[scope], `Tried${number}`, { plan, apiKey, onExisting });
    said = JSON.stringify([made.node.path, ...made.node.metadata.map((it) => it.data)]);
    made.value;
  } catch (error) {
    said += (error as Error).message;
  }
  console.log(said);
});

free.addApiKey(new ApiKey(plans, 'Key'));
free.addApiKey(acme);
const keyId = (initech.node.defaultChild as CfnApiKey).attrApiKeyId;
new CfnUsagePlanKey(stack, 'L1', { keyId, keyType: 'API_KEY', usagePlanId: free.usagePlanId });
app.synth();
""",
}

#: What somebody may give as an id: the texts of the function's own table.
LITERALS = [id_ for it, _ in (*FAULTS, *ACCEPTED) if isinstance(id_ := it.get("KeyId"), str)]
LITERALS = [id_ for id_ in LITERALS if id_.isprintable() or id_.endswith("\n")]
#: It does not show the id, which may be a key's value.
NO_ID = (
    r"Customers/Tried\d+: (plan|api_?[kK]ey)\.\w+ is no id: an id has 1 to 19 letters, digits, - and _ "
    r"\(a name, an ARN, a key's value, the Ref of a UsagePlanKey and the text of a missing value are none\)$"
)


def by_function(key: str, plan: str) -> str:
    """What a construct says of literals: it refuses what the function refuses."""
    parsed = request.parse(event("Create", {"KeyId": key, "UsagePlanId": plan}))
    return r'\["Customers/Tried' if isinstance(parsed, request.Create) else NO_ID


#: CloudFormation or the CDK's next run resolves these.
LATER = ("{{resolve:ssm:/key}}", "dummy-value-for-/usage-plans/free")
#: Scope, key, plan and OnExisting; then how what a construct says begins.
CASES = {
    **{("stack", *ids, "Adopt"): by_function(*ids) for it in LITERALS for ids in ((it, PLAN), (KEY, it))},
    **{("stack", *ids, "Adopt"): r'\["Customers/Tried' for ids in (LATER, LATER[::-1])},
    ("stack", "pair", PLAN, "Adopt"): NO_ID,
    ("stack", KEY, PLAN, "adopt"): r"(?i)[^[].*onExisting",
    ("stack", "nobody", "free", "Fail"): r"Customers/Tried\d+ needs api",
    ("imported", "nobody", "free", "Adopt"): r'\["Customers/Imported/?Tried\d+"\]',
    ("free", "imported", "free", "Adopt"): r'\["Plans/Free/Tried.*The logical id names the plan',
    ("same", "nobody", "free", "Fail"): r'\["Customers/Key/Tried',
    ("initech", "nobody", "free", "Fail"): r'\["Plans/Initech/Tried',
    ("stack", "acme", "free", "Fail"): r'\["Customers/Tried\d+"\]Customers/Tried\d+ returns no value without',
}

#: An app in which a customer is in one plan, and in another one, in every form of docs/use-from.md.
MOVING = """
from aws_cdk import App, Stack
from aws_cdk.aws_apigateway import ApiKey, UsagePlan
from constructs import Construct
from usage_plan_key import UsagePlanKey

app = App()
for tier in ("Free", "Pro"):
    stack = Stack(app, tier)
    plan, key, under = UsagePlan(stack, tier), ApiKey(stack, "Acme"), Construct(stack, f"Tier{tier}")
    forms = [(key, "InPlan"), (stack, "Umbrella"), (plan, "Acme"), (under, "Acme"), (stack, f"AcmeIn{tier}")]
    made = [UsagePlanKey(*form, plan=plan, api_key=key) for form in (*forms, (stack, f"Kept{tier}"))]
    made[-1].node.default_child.override_logical_id("ApiFreeAcme2A7B1C0D")
app.synth()
"""


pytestmark = pytest.mark.skipif(
    not (CDK / "ready").exists() or not shutil.which("node"),
    reason="the CDK is not in .venv/cdk, or there is no node; `make cdk` fetches the CDK",
)


def tsc(place: Path, *arguments: str) -> None:
    (place / "node_modules").symlink_to(CDK / "node_modules")
    subprocess.run(["node", "node_modules/typescript/bin/tsc", *arguments], cwd=place, check=True)


def run(language: str, place: Path, app: str = "") -> "subprocess.CompletedProcess[str]":
    """Run the example's app, or another one with its construct, in a copy. It writes into cdk.out."""
    shutil.copytree(EXAMPLES / f"cdk-{language}", place, ignore=shutil.ignore_patterns("__pycache__"))
    file = place / {"python": "app.py", "typescript": "app.ts"}[language]
    file.write_text(app or file.read_text())
    environment = {**os.environ, "CDK_OUTDIR": str(place / "cdk.out")}
    command = [str(CDK / "bin" / "python"), file.name]
    if language == "typescript":
        tsc(place)
        command = ["node", "app.js"]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


def synthesised(place: Path, language: str, *stacks: str, app: str = "") -> list[Template]:
    """The templates of an app's stacks, without the paths that the CDK may note beside a resource."""
    ran = run(language, place / language, app)
    assert ran.returncode == 0, ran.stderr
    out = place / language / "cdk.out"
    templates = [json.loads((out / f"{stack}.template.json").read_text()) for stack in stacks]
    for template in templates:
        for resource in template["Resources"].values():
            resource.pop("Metadata", None)
    return templates


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    """The template of the examples' two apps: each resource is the same."""
    place = tmp_path_factory.mktemp("cdk")
    (python,), (typescript,) = (synthesised(place, language, "Customers") for language in TRYING)
    assert python["Resources"] == typescript["Resources"]
    return python


def unhashed(logical_id: str) -> str:
    return re.sub("(Key)?[0-9A-F]{8}$", "", logical_id)


def resolved(value: Any) -> str:
    """A property as CloudFormation sends it: a string. A referenced resource has its logical id as its id."""
    return str(value["Ref"]) if isinstance(value, dict) and "Ref" in value else json.dumps(value).strip('"')


def associations(template: Template) -> dict[str, dict[str, Any]]:
    resources = template["Resources"].items()
    return {id_: it["Properties"] for id_, it in resources if it["Type"] == "Custom::UsagePlanKey"}


# --- The examples ---

EXPORT = '{"Fn::ImportValue": "usage-plan-key-FunctionArn"}'
#: In which plan each customer is, what the function reads besides, and whose function's token it has.
CUSTOMERS = {
    "Acme": ("ApiFree", "Fail", False, 600, None, EXPORT),
    "Umbrella": ("ApiPro", "Fail", False, 600, None, EXPORT),
    "Globex": ("ApiPro", "Take", False, 1200, "1", "/usage-plan-key/function-arn"),
    "Initech": ("ApiFree", "Fail", True, 600, None, EXPORT),
}


def test_the_function_finds_no_fault_in_the_constructs_properties(template: Template) -> None:
    found, defaults = {}, {name: it.get("Default") for name, it in template["Parameters"].items()}
    for properties in associations(template).values():
        given = {name: resolved(value) for name, value in properties.items()}
        it = request.parse(event("Create", given))
        assert isinstance(it, request.Create)
        assert it.wanted == Association(given["KeyId"], given["UsagePlanId"])
        read, token = (it.on_existing, it.include_value, it.service_timeout), given["ServiceToken"]
        told = (given.get("VerifyTrigger"), defaults.get(token, token))
        found[unhashed(given["KeyId"])] = (unhashed(given["UsagePlanId"]), *read, *told)
    assert found == CUSTOMERS


def test_the_stack_deploys_and_a_value_goes_into_a_secret_only(aws: Aws, template: Template) -> None:
    """Nobody ran `cdk bootstrap` here, so nothing checks that."""
    del template["Rules"], template["Parameters"]["BootstrapVersion"]
    deployment = aws.deploy("cdk", template)
    assert deployment.status == "CREATE_COMPLETE", deployment.failures
    ids, get, values = aws.physical_ids("cdk"), aws.client("apigateway").get_usage_plan_key, {}
    for it in associations(template).values():
        key, plan = (resolved(it[each]) for each in ("KeyId", "UsagePlanId"))
        values[unhashed(key)] = get(usagePlanId=ids[plan], keyId=ids[key])["value"]
    (secret,) = (id_ for name, id_ in ids.items() if name.startswith("InitechSecret"))
    kept = aws.client("secretsmanager").get_secret_value(SecretId=secret)["SecretString"]
    assert kept == values["Initech"]
    assert json.dumps(template).count('"Value"]') == 1


# --- What a construct refuses ---


@pytest.fixture(scope="module", params=TRYING)
def tried(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    app = TRYING[request.param].replace("CASES", json.dumps([*CASES]))
    return run(request.param, tmp_path_factory.mktemp("trying") / request.param, app)


def test_a_construct_refuses_what_the_function_refuses_and_says_why(tried: Any) -> None:
    for (case, expected), said in zip(CASES.items(), tried.stdout.splitlines(), strict=True):
        assert re.match(expected, said), (case, said)


def test_an_app_that_attaches_a_key_twice_is_not_synthesised(tried: Any) -> None:
    """Two keys of two stacks that have the same `Ref` are two keys."""
    assert tried.returncode
    pairs = re.findall(r"(\S+) attaches the same key as (\S+): leave the native one out", tried.stderr)
    assert {(re.sub(r"UsagePlanKeyResource:Plans\w*", "…", native), ours[:-2]) for native, ours in pairs} == {
        ("Plans/Free/…", "Customers/Tried"),
        ("Customers/L1", "Plans/Initech/Tried"),
    }


def test_typescript_compiles_as_a_module_whose_types_can_be_stripped(tmp_path: Path) -> None:
    """Node runs such a file as it is, and so do bundlers that compile each file alone."""
    shutil.copy(EXAMPLES / "cdk-typescript" / "usage-plan-key.ts", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    flags = (
        "--strict --verbatimModuleSyntax --erasableSyntaxOnly --isolatedModules --isolatedDeclarations"
        " --declaration --exactOptionalPropertyTypes --noUncheckedIndexedAccess --noUnusedLocals"
        " --noUnusedParameters --noImplicitOverride --noPropertyAccessFromIndexSignature --noEmit"
        " --skipLibCheck --module nodenext --target es2022"
    )
    tsc(tmp_path, "usage-plan-key.ts", *flags.split())


def test_a_change_of_plan_keeps_the_id_under_the_key_or_the_stack_and_any_id_can_be_overridden(
    tmp_path: Path,
) -> None:
    before, after = map(set, map(associations, synthesised(tmp_path, "python", "Free", "Pro", app=MOVING)))
    assert {unhashed(id_) for id_ in before & after} == {"AcmeInPlan", "Umbrella", "ApiFreeAcme"}
    assert len(before) == 6
