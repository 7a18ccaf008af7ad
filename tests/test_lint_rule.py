"""cfn-lint, run from anywhere, finds with the rule the faults that the function would refuse."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cfnlint.template import Template
from hypothesis import given
from hypothesis import strategies as st

from usage_plan_key import request
from usage_plan_key.model import LONGEST_ID

from .test_schema import IDS, SCHEMA, of_function

ROOT = Path(__file__).parents[1]
BAD = ROOT / "tests/templates/bad.yaml"
GOOD = sorted([*ROOT.glob("examples/**/*.yaml"), ROOT / "template.yaml"])
OURS = ("E9301", "W9302", "W9303", "W9304", "E9305")

_spec = importlib.util.spec_from_file_location("rule", ROOT / "tools/cfn_lint/usage_plan_key.py")
assert _spec
assert _spec.loader
rule = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rule)


def cfn_lint(*arguments: object, folder: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    """Run cfn-lint in that folder."""
    command = [str(Path(sys.prefix) / "bin/cfn-lint"), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def lint(*templates: Path) -> list[dict[str, Any]]:
    """Run cfn-lint with the rules on templates; return its findings."""
    rules = ["--append-rules", ROOT / "tools/cfn_lint"]
    done = cfn_lint(*rules, "--format", "json", "--regions", "eu-central-1", "--", *templates)
    assert not done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    """The rules' findings on the bad template."""
    return [match for match in lint(BAD) if match["Rule"]["Id"] in OURS]


def expected() -> list[tuple[str, int, str]]:
    """Read the expected findings from its comments: rule, line, a part of the message."""
    faults, waiting = [], []
    for number, line in enumerate(BAD.read_text().splitlines(), 1):
        if comment := re.fullmatch(r" +# ([EW]\d+): (.+)", line):
            waiting.append(comment.groups())
        elif not line.lstrip().startswith("#"):
            faults += [(id_, number, message) for id_, message in waiting]
            waiting = []
    return faults


def test_every_fault_is_found_where_it_is_and_nothing_else(found: list[dict[str, Any]]) -> None:
    lines = Counter((match["Rule"]["Id"], match["Location"]["Start"]["LineNumber"]) for match in found)
    assert lines == Counter((id_, line) for id_, line, _ in expected())
    assert {id_ for id_, _ in lines} == set(OURS)


@pytest.mark.parametrize(("id_", "line", "part"), expected())
def test_each_finding_names_its_fault(found: list[dict[str, Any]], id_: str, line: int, part: str) -> None:
    messages = [
        it["Message"]
        for it in found
        if (it["Rule"]["Id"], it["Location"]["Start"]["LineNumber"]) == (id_, line)
    ]
    assert any(part in message for message in messages), messages


def test_no_message_shows_a_value_that_was_pasted(found: list[dict[str, Any]]) -> None:
    value = "Zq3V5k2bXw9LpT7yRc1MfH8sNd4GjU6eQa0BvE1k"
    assert value in BAD.read_text()
    assert not [match["Message"] for match in found if value in match["Message"]]


def test_the_good_templates_give_none() -> None:
    assert lint(*GOOD) == []


def test_the_folder_and_the_schema_are_enough_in_another_repository(tmp_path: Path) -> None:
    """By `.cfnlintrc`, with the schema in the rules' folder, and far from the function's source."""
    shutil.copytree(ROOT / "tools/cfn_lint", tmp_path / "lint", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tools/usage-plan-key.schema.json", tmp_path / "lint")
    (tmp_path / ".cfnlintrc").write_text("append_rules: [lint]\nregions: [eu-central-1]\n")
    shutil.copy(BAD, tmp_path / "template.yaml")
    done = cfn_lint("--format", "parseable", "--", "template.yaml", folder=tmp_path)
    assert len(re.findall(f":(?:{'|'.join(OURS)}):", done.stdout)) == len(expected())


def test_without_the_schema_the_rule_names_the_file_to_copy(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tools/cfn_lint", tmp_path / "away/lint")
    done = cfn_lint("--append-rules", tmp_path / "away/lint", "--", BAD)
    assert done.returncode != 0
    assert "Copy usage-plan-key.schema.json beside" in done.stderr + done.stdout


def plan(name: str) -> dict[str, str]:
    return {"Ref": name}


@pytest.mark.parametrize(
    ("named", "others"),
    [
        ({"AcmeInFree": plan("FreePlan")}, {}),
        ({"FREEAcme": plan("FreeUsagePlan")}, {}),
        ({"AcmeFreeTrial": plan("FreeTrialPlan")}, {"AcmeTrial": plan("FreeTrialPlan")}),
        ({"FreePlanKey": plan("FreePlan")}, {}),
        ({"AcmeFree": plan("FreePlanId")}, {"AcmeToo": plan("FreePlanId")}),
        ({"AcmePro": plan("CustomersProPlan"), "AcmeFree": plan("CustomersFreePlan")}, {}),
        (
            {"AcmePro": plan("ShopProPlan"), "AcmeFree": plan("ShopFreePlan")},
            {"ShopAcme": plan("ShopProPlan")},
        ),
        ({"AcmeFree": plan("ApiGatewayUsagePlanFree")}, {}),
        ({"AcmeFree": {"Fn::GetAtt": ["FreePlan", "Id"]}}, {}),
        ({"AcmeFree": {"Fn::GetAtt": ["Plans", "Outputs.FreePlanId"]}}, {}),
        ({"AcmeFree": {"Fn::Sub": "${FreePlan}"}}, {}),
        ({"AcmeFree": {"Fn::ImportValue": {"Fn::Sub": "${AWS::StackName}-FreePlanId"}}}, {}),
        ({"AcmeFree": {"Fn::ImportValue": "shop-FreePlanId"}}, {"ShopAcme": plan("OtherPlan")}),
        ({"AcmeFree": "{{resolve:ssm:/plans/free}}"}, {}),
        ({"AcmeFree": {"Fn::FindInMap": ["Plans", "Free", "Id"]}}, {}),
        ({"AcmeF7R3E3": "f7r3e3"}, {}),
        (
            {"FreeTierAcmeKeyInPlan5D2F1A00": plan("ApiFree0A1B2C3D")},
            {"AcmeKeyInPlan0A1B2C3D": plan("ApiFree0A1B2C3D")},
        ),
        ({}, {"AcmeInPlan": plan("Plan"), "GlobexUsagePlanKey": plan("UsagePlan")}),
        ({}, {"Freeman": plan("FreePlan"), "Proton": plan("ProPlan")}),
        ({}, {"ApiAcme": plan("ApiUsagePlan"), "OrdersAcme": plan("OrdersUsagePlan")}),
        ({}, {"Acme": plan("AcmePlan"), "AcmeInPlan": plan("AcmePlanId")}),
        ({}, {"AcmeFree": {"Fn::If": ["IsPro", plan("ProPlan"), plan("FreePlan")]}}),
        (
            {},
            {"CustomerAcme": plan("CustomerTierPlanId"), "AcmeToo": {"Fn::GetAtt": ["Acme", "UsagePlanId"]}},
        ),
        ({}, {"Acme": {"Fn::FindInMap": ["Plans", plan("Tier"), "Id"]}, "Globex": None}),
    ],
)
def test_a_logical_id_that_names_its_plan_is_named(named: dict[str, Any], others: dict[str, Any]) -> None:
    """The key of each is `AcmeKey`, and there is an API `OrdersApi`."""
    resources: dict[str, Any] = {
        id_: {
            "Type": "Custom::UsagePlanKey",
            "Properties": {"UsagePlanId": plan_id, "KeyId": plan("AcmeKey")},
        }
        for id_, plan_id in (named | others).items()
    }
    resources["OrdersApi"] = {"Type": "AWS::ApiGateway::RestApi"}
    matches = rule.UsagePlanKeyNamedAfterPlan().match(Template("", {"Resources": resources}))
    assert {match.path[1] for match in matches} == named.keys()


ODD: list[Any] = [
    None,
    [],
    {},
    "x",
    1,
    [{}],
    {"Ref": []},
    {"Fn::GetAtt": "x"},
    {"Fn::Sub": []},
    {"Fn::Sub": ["${Acme.Value}", 1]},
    {"Fn::If": "x"},
]


def test_a_template_that_makes_no_sense_stops_no_rule(tmp_path: Path) -> None:
    """Some stop rules of cfn-lint's own."""
    for number, odd in enumerate(ODD):
        properties = {"KeyId": odd, "UsagePlanId": odd, "IncludeValue": odd, "ServiceToken": odd}
        resources = {
            "Odd": odd,
            "Typeless": {"Properties": odd},
            "OddType": {"Type": odd, "Properties": properties},
            "Propertyless": {"Type": "Custom::UsagePlanKey", "Properties": odd, "Condition": odd},
            "Generic": {"Type": "AWS::CloudFormation::CustomResource", "Properties": properties},
            "Native": {"Type": "AWS::ApiGateway::UsagePlanKey", "Properties": odd},
            "Acme": {"Type": "Custom::UsagePlanKey", "Properties": properties},
            "Referring": {"Type": "Custom::UsagePlanKey", "Properties": {"KeyId": {"Ref": "Odd"}}},
            "Secret": {"Type": "AWS::SecretsManager::Secret", "Properties": {"SecretString": odd}},
        }
        outputs = {"Odd": {"Value": odd}, "Value": {"Fn::GetAtt": odd}, "Text": {"Fn::Sub": odd}}
        (tmp_path / f"{number}a.json").write_text(json.dumps({"Resources": resources, "Outputs": outputs}))
        odds = dict.fromkeys(("Parameters", "Conditions", "Outputs"), odd)
        (tmp_path / f"{number}b.json").write_text(json.dumps({"Resources": resources, **odds}))
        (tmp_path / f"{number}c.json").write_text(json.dumps({"Resources": odd}))

    def stopped(*rules: object) -> set[str]:
        done = cfn_lint(*rules, "--format", "parseable", "--", *sorted(tmp_path.glob("*.json")))
        assert not done.stderr
        return {line for line in done.stdout.splitlines() if "exception" in line.lower()}

    assert stopped("--append-rules", ROOT / "tools/cfn_lint") == stopped()


IN_AND_AROUND_AN_ID = "abyzABYZ0189_-:.+ \n\té"


@given(st.sampled_from(request.PROPERTIES), st.text(IN_AND_AROUND_AN_ID, max_size=LONGEST_ID + 2))
def test_the_rule_refuses_the_strings_that_the_function_refuses_and_no_others(name: str, value: str) -> None:
    assert (rule.fault(name, value, SCHEMA["properties"][name]) is None) == of_function(IDS | {name: value})


@pytest.mark.parametrize("name", ["KeyId", "UsagePlanId"])
@pytest.mark.parametrize("value", [*sorted(request._MISSING), "None", "NaN", " Undefined ", False])
def test_the_text_of_a_missing_value_is_called_so(name: str, value: object) -> None:
    told = rule.fault(name, value, SCHEMA["properties"][name])
    assert told is not None
    assert "looks like a missing value of your template tool" in told
    assert not of_function(IDS | {name: value})


@pytest.mark.parametrize("name", request.PROPERTIES)
@pytest.mark.parametrize("value", [12345678, 1.5, True, False, ["a"], {"a": "b"}, "{{resolve:ssm:/alice}}"])
def test_other_values_are_taken_as_cloudformation_hands_them_over(name: str, value: object) -> None:
    """It makes a string of every scalar, and resolves a dynamic reference."""
    handed_over = json.dumps(value) if isinstance(value, bool | int | float) else value
    if isinstance(value, str):
        handed_over = {"KeyType": "API_KEY", "OnExisting": "Fail", "IncludeValue": "true"}.get(
            name, "a1b2c3d4e5"
        )
    assert (rule.fault(name, value, SCHEMA["properties"][name]) is None) == of_function(
        IDS | {name: handed_over}
    )
