"""cfn-lint finds with the rule the faults that the function would refuse."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from cfnlint.config import ConfigMixIn
from cfnlint.runner import Runner
from cfnlint.template import Template
from hypothesis import given
from hypothesis import strategies as st

from usage_plan_key import request
from usage_plan_key.model import LONGEST_ID

from .test_schema import IDS, SCHEMA, of_function

ROOT = Path(__file__).parents[1]
RULES = ROOT / "tools/cfn_lint"
BAD = ROOT / "tests/templates/bad.yaml"
GOOD = sorted(ROOT.glob("examples/**/*.yaml"))
OURS = ("E9301", "W9302", "W9303", "W9304", "E9305")


def loaded(folder: Path) -> Any:
    """The rule's module, out of this folder."""
    spec = importlib.util.spec_from_file_location("rule", folder / "usage_plan_key.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rule = loaded(RULES)


def lint(templates: Iterable[Path], rules: Iterable[Path] = (RULES,)) -> list[tuple[str, int, str]]:
    """Run cfn-lint with the rules on templates; return its findings: rule, line and message."""
    config = ConfigMixIn(
        templates=[*map(str, templates)], append_rules=[*map(str, rules)], regions=["eu-central-1"]
    )
    return [(it.rule.id, it.linenumber, it.message) for it in Runner(config).run()]


# --- Templates ---


@pytest.fixture(scope="module")
def found() -> list[tuple[str, int, str]]:
    """The rules' findings on the bad template."""
    return [match for match in lint([BAD]) if match[0] in OURS]


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


def test_every_fault_is_found_where_it_is_and_nothing_else(found: list[tuple[str, int, str]]) -> None:
    places = Counter((id_, line) for id_, line, _ in found)
    assert places == Counter((id_, line) for id_, line, _ in expected())
    assert {id_ for id_, _ in places} == set(OURS)
    told = {(id_, line): [text for *place, text in found if place == [id_, line]] for id_, line in places}
    assert [fault for fault in expected() if not any(fault[2] in text for text in told[fault[:2]])] == []


def test_no_message_shows_a_value_that_was_pasted(found: list[tuple[str, int, str]]) -> None:
    value = "Zq3V5k2bXw9LpT7yRc1MfH8sNd4GjU6eQa0BvE1k"
    assert value in BAD.read_text()
    assert not [message for *_, message in found if value in message]


def test_the_good_templates_give_none() -> None:
    assert lint(GOOD) == []


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


def plan(name: str) -> dict[str, str]:
    return {"Ref": name}


#: Plans by logical ids: those that name their plan, and those that do not.
NAMED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"AcmeInFree": plan("FreePlan")}, {}),
    ({"FREEAcme": plan("FreeUsagePlan")}, {}),
    ({"AcmeFreeTrial": plan("FreeTrialPlan")}, {"AcmeTrial": plan("FreeTrialPlan")}),
    ({"FreePlanKey": plan("FreePlan")}, {}),
    ({"AcmeFree": plan("FreePlanId")}, {"AcmeToo": plan("FreePlanId")}),
    ({"AcmePro": plan("CustomersProPlan"), "AcmeFree": plan("CustomersFreePlan")}, {}),
    ({"APro": plan("ShopProPlan"), "AFree": plan("ShopFreePlan")}, {"ShopA": plan("ShopProPlan")}),
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
        {"AcmeKey0A1B2C3D": plan("ApiFree0A1B2C3D")},
    ),
    ({}, {"AcmeInPlan": plan("Plan"), "GlobexUsagePlanKey": plan("UsagePlan")}),
    ({}, {"Freeman": plan("FreePlan"), "Proton": plan("ProPlan")}),
    ({}, {"ApiAcme": plan("ApiUsagePlan"), "OrdersAcme": plan("OrdersUsagePlan")}),
    ({}, {"Acme": plan("AcmePlan"), "AcmeInPlan": plan("AcmePlanId")}),
    ({}, {"AcmeFree": {"Fn::If": ["IsPro", plan("ProPlan"), plan("FreePlan")]}}),
    ({}, {"CustomerAcme": plan("CustomerTierPlanId"), "AcmeToo": {"Fn::GetAtt": ["Acme", "UsagePlanId"]}}),
    ({}, {"Acme": {"Fn::FindInMap": ["Plans", plan("Tier"), "Id"]}, "Globex": None}),
]


@pytest.mark.parametrize(("named", "others"), NAMED)
def test_a_logical_id_that_names_its_plan_is_named(named: dict[str, Any], others: dict[str, Any]) -> None:
    """The key of each is `AcmeKey`, and there is an API `OrdersApi`."""
    resources: dict[str, Any] = {"OrdersApi": {"Type": "AWS::ApiGateway::RestApi"}}
    for id_, plan_id in (named | others).items():
        properties = {"UsagePlanId": plan_id, "KeyId": plan("AcmeKey")}
        resources[id_] = {"Type": "Custom::UsagePlanKey", "Properties": properties}
    matches = rule.UsagePlanKeyNamedAfterPlan().match(Template("", {"Resources": resources}))
    assert {match.path[1] for match in matches} == named.keys()


ODD: list[Any] = [None, [], {}, "x", 1, [{}], {"Ref": []}, {"Fn::GetAtt": "x"}, {"Fn::Sub": []}]
ODD += [{"Fn::Sub": ["${Acme.Value}", 1]}, {"Fn::If": "x"}]


def test_a_template_that_makes_no_sense_stops_no_rule(tmp_path: Path) -> None:
    """Some stop rules of cfn-lint's own."""
    for number, odd in enumerate(ODD):
        given = {"KeyId": odd, "UsagePlanId": odd, "IncludeValue": odd, "ServiceToken": odd}
        resources = {
            "Odd": odd,
            "Typeless": {"Properties": odd},
            "OddType": {"Type": odd, "Properties": given},
            "Propertyless": {"Type": "Custom::UsagePlanKey", "Properties": odd, "Condition": odd},
            "Generic": {"Type": "AWS::CloudFormation::CustomResource", "Properties": given},
            "Native": {"Type": "AWS::ApiGateway::UsagePlanKey", "Properties": odd},
            "Acme": {"Type": "Custom::UsagePlanKey", "Properties": given},
            "Referring": {"Type": "Custom::UsagePlanKey", "Properties": {"KeyId": {"Ref": "Odd"}}},
            "Secret": {"Type": "AWS::SecretsManager::Secret", "Properties": {"SecretString": odd}},
        }
        outputs = {"Odd": {"Value": odd}, "Value": {"Fn::GetAtt": odd}, "Text": {"Fn::Sub": odd}}
        odds = dict.fromkeys(("Parameters", "Conditions", "Outputs"), odd)
        wholes = [{"Outputs": outputs}, odds, {"Resources": odd}]
        for kind, whole in enumerate(wholes):
            (tmp_path / f"{number}-{kind}.json").write_text(json.dumps({"Resources": resources} | whole))
    stopped = [(id_, text) for id_, _, text in lint(tmp_path.glob("*.json")) if "exception" in text.lower()]
    assert not [text for _, text in stopped if any(id_ in text for id_ in OURS)]


# --- Properties ---


def takes(name: str, value: object) -> bool:
    return rule.fault(name, value, SCHEMA["properties"][name]) is None


@given(st.sampled_from(request.PROPERTIES), st.text("abyzABYZ0189_-:.+ \n\té", max_size=LONGEST_ID + 2))
def test_the_rule_refuses_the_strings_that_the_function_refuses_and_no_others(name: str, value: str) -> None:
    assert takes(name, value) == of_function(IDS | {name: value})


@pytest.mark.parametrize("name", ["KeyId", "UsagePlanId"])
@pytest.mark.parametrize("value", [*sorted(request._MISSING), "None", "NaN", " Undefined ", False])
def test_the_text_of_a_missing_value_is_called_so(name: str, value: object) -> None:
    told = str(rule.fault(name, value, SCHEMA["properties"][name]))
    assert "looks like a missing value of your template tool" in told
    assert not of_function(IDS | {name: value})


@pytest.mark.parametrize("name", request.PROPERTIES)
@pytest.mark.parametrize("value", [12345678, 1.5, True, False, ["a"], {"a": "b"}, "{{resolve:ssm:/alice}}"])
def test_other_values_are_taken_as_cloudformation_hands_them_over(name: str, value: object) -> None:
    """It makes a string of every scalar, and resolves a dynamic reference."""
    handed_over = json.dumps(value) if isinstance(value, bool | int | float) else value
    if isinstance(value, str):
        resolved = {"KeyType": "API_KEY", "OnExisting": "Fail", "IncludeValue": "true"}
        handed_over = resolved.get(name, "a1b2c3d4e5")
    assert takes(name, value) == of_function(IDS | {name: handed_over})
