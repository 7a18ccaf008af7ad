"""cfn-lint finds with the rules the faults that the function would refuse.

test_schema.py holds that schema and function refuse the same properties.
"""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from cfnlint.config import ConfigMixIn
from cfnlint.runner import Runner
from cfnlint.template import Template

from usage_plan_key import request
from usage_plan_key.model import LONGEST_ID

ROOT = Path(__file__).parents[1]
RULES = ROOT / "tools/cfn_lint"
BAD = ROOT / "tests/templates/bad.yaml"
EVENT = json.loads((ROOT / "events" / "create.json").read_text())
SCHEMA = json.loads((ROOT / "tools/usage-plan-key.schema.json").read_text())
OURS = ("E9301", "W9302", "W9303", "W9304", "E9305")


def loaded(folder: Path) -> Any:
    """The rules' module, out of this folder."""
    spec = importlib.util.spec_from_file_location("rule", folder / "usage_plan_key.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rule = loaded(RULES)


def lint(templates: Iterable[Path]) -> list[tuple[str, int, str]]:
    """Run cfn-lint with the rules on templates; return its findings: rule, line and message."""
    config = ConfigMixIn(
        templates=[*map(str, templates)], append_rules=[str(RULES)], regions=["eu-central-1"]
    )
    return sorted((it.rule.id, it.linenumber, it.message) for it in Runner(config).run())


# --- Templates ---


def expected() -> list[tuple[str, int, str]]:
    """Read the expected findings from the bad template's comments: rule, line, a part of the message."""
    faults, waiting = [], []
    for number, line in enumerate(BAD.read_text().splitlines(), 1):
        if comment := re.fullmatch(r" +# ([EW]\d+): (.+)", line):
            waiting.append(comment.groups())
        elif not line.lstrip().startswith("#"):
            faults += [(id_, number, message) for id_, message in waiting]
            waiting = []
    return sorted(faults)


def test_every_fault_is_found_where_it_is_and_nothing_else_and_no_message_shows_a_pasted_value() -> None:
    found = [match for match in lint([BAD]) if match[0] in OURS]
    assert [match[:2] for match in found] == [match[:2] for match in expected()]
    assert {id_ for id_, *_ in found} == set(OURS)
    told = {(id_, line): [text for *place, text in found if place == [id_, line]] for id_, line, _ in found}
    assert [fault for fault in expected() if not any(fault[2] in text for text in told[fault[:2]])] == []
    value = "Zq3V5k2bXw9LpT7yRc1MfH8sNd4GjU6eQa0BvE1k"
    assert value in BAD.read_text()
    assert value not in str(found)


def test_the_good_templates_give_none() -> None:
    assert lint(ROOT.glob("examples/**/*.yaml")) == []


def test_the_folder_and_the_schema_are_enough_in_another_repository(tmp_path: Path) -> None:
    """By `.cfnlintrc`, and far from the function's source. Without the schema it names the file to copy."""
    shutil.copytree(RULES, tmp_path / "lint", ignore=shutil.ignore_patterns("__pycache__"))
    with pytest.raises(FileNotFoundError, match=r"Copy usage-plan-key.schema.json beside"):
        loaded(tmp_path / "lint").UsagePlanKeyProperties()
    shutil.copy(ROOT / "tools/usage-plan-key.schema.json", tmp_path / "lint")
    (tmp_path / ".cfnlintrc").write_text("append_rules: [lint]\nregions: [eu-central-1]\n")
    shutil.copy(BAD, tmp_path / "template.yaml")
    command = [f"{sys.prefix}/bin/cfn-lint", "--format", "parseable", "--", "template.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert len(re.findall(f":(?:{'|'.join(OURS)}):", done.stdout)) == len(expected())


#: Logical ids and the plans that they refer to. An exclamation mark is before each id that names its plan.
IDS = [
    *("!AcmeInFree=FreePlan", "!FREEAcme=FreeUsagePlan", "!FreePlanKey=FreePlan"),
    *("!AcmeFree=ApiGatewayUsagePlanFree", "!AcmePro=CustomersProPlan !AcmeFree=CustomersFreePlan"),
    *("!AcmeFreeTrial=FreeTrialPlan AcmeTrial=FreeTrialPlan", "!AcmeFree=FreePlanId AcmeToo=FreePlanId"),
    "!APro=ShopProPlan !AFree=ShopFreePlan ShopA=ShopProPlan",
    "!FreeTierAcmeKeyInPlan5D2F1A00=ApiFree0A1B2C3D AcmeKey0A1B2C3D=ApiFree0A1B2C3D",
    *("AcmeInPlan=Plan GlobexUsagePlanKey=UsagePlan", "Freeman=FreePlan Proton=ProPlan"),
    *("ApiAcme=ApiUsagePlan OrdersAcme=OrdersUsagePlan", "Acme=AcmePlan AcmeInPlan=AcmePlanId"),
]
#: Other ways to refer to a plan.
WAYS: list[Any] = [
    *({"Fn::GetAtt": ["FreePlan", "Id"]}, {"Fn::GetAtt": ["Plans", "Outputs.FreePlanId"]}),
    *({"Fn::ImportValue": "a-FreePlanId"}, {"Fn::ImportValue": {"Fn::Sub": "${AWS::StackName}-FreePlanId"}}),
    *({"Fn::Sub": "${FreePlan}"}, "{{resolve:ssm:/plans/free}}", {"Fn::FindInMap": ["Plans", "Free", "Id"]}),
]
CASES: list[dict[str, Any]] = [
    *({id_: {"Ref": plan} for id_, plan in re.findall(r"(\S+)=(\S+)", line)} for line in IDS),
    *({"!AcmeFree": way} for way in WAYS),
    {"!AcmeF7R3E3": "f7r3e3"},
    # these name none
    {"AcmeFree": {"Fn::If": ["IsPro", {"Ref": "ProPlan"}, {"Ref": "FreePlan"}]}},
    {"CustomerAcme": {"Ref": "CustomerTierPlanId"}, "AcmeToo": {"Fn::GetAtt": ["Acme", "UsagePlanId"]}},
    {"Acme": {"Fn::FindInMap": ["Plans", {"Ref": "Tier"}, "Id"]}, "Globex": None},
]


@pytest.mark.parametrize("plans", CASES, ids=str)
def test_a_logical_id_that_names_its_plan_is_named(plans: dict[str, Any]) -> None:
    """The key of each is `AcmeKey`, and there is an API `OrdersApi`."""
    resources: dict[str, Any] = {"OrdersApi": {"Type": "AWS::ApiGateway::RestApi"}}
    for id_, plan in plans.items():
        properties = {"UsagePlanId": plan, "KeyId": {"Ref": "AcmeKey"}}
        resources[id_.strip("!")] = {"Type": "Custom::UsagePlanKey", "Properties": properties}
    matches = rule.UsagePlanKeyNamedAfterPlan().match(Template("", {"Resources": resources}))
    assert {f"!{match.path[1]}" for match in matches} == {id_ for id_ in plans if id_.startswith("!")}


ODD: list[Any] = [None, [], {}, "x", 1, [{}], {"Ref": []}, {"Fn::GetAtt": "x"}, {"Fn::Sub": []}]
ODD += [{"Fn::Sub": ["${Acme.Value}", 1]}, {"Fn::If": "x"}]


def test_a_template_that_makes_no_sense_stops_no_rule(tmp_path: Path) -> None:
    """Some stop rules of cfn-lint's own."""
    types = ("Custom::UsagePlanKey", "AWS::CloudFormation::CustomResource", "AWS::ApiGateway::UsagePlanKey")
    for number, odd in enumerate(ODD):
        given = {"KeyId": odd, "UsagePlanId": odd, "IncludeValue": odd, "ServiceToken": odd}
        resources = {"Odd": odd, "Acme": {"Type": types[0], "Properties": {"KeyId": {"Ref": "Odd"}}}}
        resources["Secret"] = {"Type": "AWS::SecretsManager::Secret", "Properties": {"SecretString": odd}}
        for at, type_ in enumerate((*types, odd)):
            resources[f"Given{at}"] = {"Type": type_, "Properties": given}
            resources[f"Odd{at}"] = {"Type": type_, "Properties": odd, "Condition": odd}
        outputs = {"Odd": {"Value": odd}, "Value": {"Fn::GetAtt": odd}, "Text": {"Fn::Sub": odd}}
        wholes = [{"Outputs": outputs}, dict.fromkeys(("Parameters", "Conditions", "Outputs"), odd)]
        for kind, whole in enumerate([*wholes, {"Resources": odd}]):
            (tmp_path / f"{number}-{kind}.json").write_text(json.dumps({"Resources": resources} | whole))
    stopped = [text for _, _, text in lint(tmp_path.glob("*.json")) if "exception" in text.lower()]
    assert not [text for text in stopped if any(id_ in text for id_ in OURS)]


# --- Properties ---

VALUES: list[Any] = [12345678, 1.5, True, False, ["a"], {"a": "b"}, *request._MISSING, " None ", "", "a1b2\n"]
VALUES += ["a" * LONGEST_ID, "a" * (LONGEST_ID + 1), "a1.b2", "a1:b2", "API_KEY", "Take", "take", "True"]


@pytest.mark.parametrize("name", request.PROPERTIES)
def test_the_rule_refuses_what_the_function_refuses_and_nothing_else(name: str) -> None:
    """CloudFormation makes a string of every scalar, and resolves a dynamic reference."""
    schema = SCHEMA["properties"][name]
    for value in VALUES:
        wrong = rule.fault(name, value, schema)
        given = json.dumps(value) if isinstance(value, bool | int | float) else value
        properties = {"UsagePlanId": "f7r3e3", "KeyId": "a1b2c3d4e5", name: given}
        taken = isinstance(request.parse({**EVENT, "ResourceProperties": properties}), request.Create)
        assert (wrong is None) == taken, value
        if name.endswith("Id") and str(given).strip().lower() in request._MISSING:
            assert "looks like a missing value of your template tool" in wrong
    assert rule.fault(name, "{{resolve:ssm:/alice}}", schema) is None
