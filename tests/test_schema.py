"""The schemas and the cfn-lint rules in tools/ accept what `request.parse` accepts, and refuse the same."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from cfnlint.config import ConfigMixIn
from cfnlint.runner import Runner
from cfnlint.template import Template
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from referencing import Registry, Resource
from samtranslator.yaml_helper import yaml_parse

from usage_plan_key import request

from .conftest import ROOT
from .test_request import ACCEPTED, FAULTS, GOOD, event

TOOLS = ROOT / "tools"
SCHEMA, TEMPLATE = (
    json.loads((TOOLS / f"usage-plan-key.{kind}.json").read_text()) for kind in ("schema", "template.schema")
)
VALIDATOR = Draft7Validator(SCHEMA)
OF_TEMPLATE = Draft7Validator(
    TEMPLATE, registry=Registry().with_resource("usage-plan-key.schema.json", Resource.from_contents(SCHEMA))
)
WHOLE = GOOD | {"ServiceToken": "arn:aws:lambda:eu-central-1:123456789012:function:usage-plan-key"}
#: Those of the function's own table, as far as JSON can have them.
CHANGES = [it for it, _ in (*FAULTS, *ACCEPTED) if all(isinstance(name, str) for name in it)]
RULES = TOOLS / "cfn_lint"
BAD = ROOT / "tests/templates/bad.yaml"
OURS = ("E9301", "W9302", "W9303", "W9304", "E9305")


def loaded(folder: Path) -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(folder / "usage_plan_key.py")))


rule = loaded(RULES)


# --- Properties ---


def is_taken(changes: dict[str, Any]) -> bool:
    """Tell whether the function accepts a Create with these changes of good properties."""
    return isinstance(request.parse(event("Create", GOOD | changes)), request.Create)


@pytest.mark.parametrize("changes", CHANGES, ids=ascii)
def test_the_schema_and_the_function_refuse_the_same_properties(changes: dict[str, Any]) -> None:
    assert VALIDATOR.is_valid(WHOLE | changes) is is_taken(changes)


@given(st.sampled_from(["KeyId", "UsagePlanId"]), st.text("abYZ09_-:.+ \n\té", max_size=21))
def test_they_take_the_same_texts_for_ids(name: str, text: str) -> None:
    test_the_schema_and_the_function_refuse_the_same_properties({name: text})


#: A template can have these values.
VALUES = [(name, it) for each in CHANGES for name, it in each.items() if name in request.PROPERTIES]
VALUES = [(name, it) for name, it in VALUES if it is not None and not isinstance(it, bytes)]
VALUES += [(name, it) for name in request.PROPERTIES for it in (True, 1.5, ["a"], {"a": "b"})]


@pytest.mark.parametrize(("name", "value"), VALUES, ids=ascii)
def test_the_rule_refuses_what_the_function_refuses_and_nothing_else(name: str, value: Any) -> None:
    """CloudFormation makes a string of every scalar, and resolves a dynamic reference."""
    wrong = rule.fault(name, value, SCHEMA["properties"][name])
    sent = json.dumps(value) if isinstance(value, bool | int | float) else value
    assert (wrong is None) == is_taken({name: sent})
    if name.endswith("Id") and isinstance(sent, str) and sent.strip().lower() in request._MISSING:
        assert "looks like a missing value of your template tool" in wrong
    assert rule.fault(name, "{{resolve:ssm:/alice}}", SCHEMA["properties"][name]) is None


def test_the_schema_has_the_functions_properties_and_defaults() -> None:
    """CloudFormation takes 1 to 3,600 seconds (its page of AWS::CloudFormation::CustomResource)."""
    assert set(SCHEMA["properties"]) == {*request.PROPERTIES, *request._LET_THROUGH}
    defaults = {name: it.get("default") for name, it in SCHEMA["properties"].items()}
    assert defaults["ServiceTimeout"] == request.LONGEST_SERVICE_TIMEOUT
    assert [defaults[it] for it in ("KeyType", "OnExisting", "IncludeValue")] == ["API_KEY", "Fail", False]
    assert all(it["description"] for it in SCHEMA["properties"].values()), "an editor shows it"
    for name in SCHEMA["required"]:
        assert not VALIDATOR.is_valid({key: value for key, value in WHOLE.items() if key != name})
    refused: list[object] = [0, 3601, 1.5, "0", "060", "3601", "1m", "600\n", None, [600]]
    for seconds in (1, 60, 3600, "1", "600", "3600", *refused):
        assert VALIDATOR.is_valid(WHOLE | {"ServiceTimeout": seconds}) is (seconds not in refused)


# --- Templates ---


def test_the_schema_of_a_template_has_the_same_properties() -> None:
    Draft7Validator.check_schema(SCHEMA)
    Draft7Validator.check_schema(TEMPLATE)
    schema = TEMPLATE["properties"]["Resources"]["additionalProperties"]["then"]["properties"]["Properties"]
    assert schema["required"] == SCHEMA["required"]
    assert {name: each["anyOf"][0]["$ref"] for name, each in schema["properties"].items()} == {
        name: f"usage-plan-key.schema.json#/properties/{name}" for name in SCHEMA["properties"]
    }


class Editor(yaml.SafeLoader):
    """Reads a template as yaml-language-server does: it shows a schema only what is behind a short tag."""


def untagged(loader: yaml.SafeLoader, _tag: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else node.value


Editor.add_multi_constructor("!", untagged)


def as_cloudformation_and_an_editor_read(text: str) -> tuple[Any, Any]:
    return yaml_parse(text), yaml.load(text, Editor)  # noqa: S506  # it is a SafeLoader


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*.yaml")), ids=lambda path: path.stem)
def test_the_schema_of_a_template_accepts_the_examples(path: Path) -> None:
    for template in as_cloudformation_and_an_editor_read(path.read_text()):
        assert list(OF_TEMPLATE.iter_errors(template)) == []


#: Values that a property of a template may have, and those that cannot be.
TAKEN = """
KeyId: [!Ref AVeryLongLogicalIdOfAKey, !GetAtt Acme.KeyId, !Sub "${Acme.KeyId}", 1234567890,
  "{{resolve:ssm:/acme/key}}"]
UsagePlanId: [!If [IsPro, !Ref Pro, !Ref Free], !ImportValue {Fn::Sub: "${Plans}-FreePlanId"}]
OnExisting: [!FindInMap [Policies, Acme, OnExisting], Take]
IncludeValue: [{Fn::Transform: {Name: Own}}, true]
Fn::Transform: [{Name: AWS::Include}]
ServiceTimeout: [600]
VerifyTrigger: ["1"]
"""
REFUSED = """
KeyId: [" a1b2c3d4e5", Acme's key, "a1b2c3d4e5\\n", [a1b2c3d4e5], arn:aws:x/y, {}, {Id: a1b2c3d4e5},
  "{{resolve:ssm-secure:/acme/key}}", {Ref: Acme, Fn::Sub: "${Acme}"}]
KeyID: [a1b2c3d4e5]
UsagePlanId: ["", undefined, NaN, "[object Object]", false, null, []]
OnExisting: [Fail or take]
IncludeValue: ["yes, please"]
ServiceTimeout: [ten minutes]
"""
IN_TEMPLATES = [
    (name, value, text == REFUSED)
    for text in (TAKEN, REFUSED)
    for read in as_cloudformation_and_an_editor_read(text)
    for name, values in read.items()
    for value in values
]


@pytest.mark.parametrize(("name", "value", "wrong"), IN_TEMPLATES, ids=str)
def test_the_schema_of_a_template_takes_functions_and_refuses_what_cannot_be(
    name: str, value: Any, *, wrong: bool
) -> None:
    """It leaves other resources alone."""
    acme = {"Type": "Custom::UsagePlanKey", "Properties": WHOLE | {name: value}}
    others = {"Key": {"Type": "AWS::ApiGateway::ApiKey"}, "Fn::ForEach::Free": ["Name", [], {}]}
    assert len([*OF_TEMPLATE.iter_errors({"Resources": {"Acme": acme, **others}})]) == wrong


# --- cfn-lint ---


def lint(templates: Iterable[Path]) -> list[tuple[str, int, str]]:
    """Run cfn-lint with the rules on templates; return its findings: rule, line and message."""
    config = ConfigMixIn(
        templates=[*map(str, templates)], append_rules=[str(RULES)], regions=["eu-central-1"]
    )
    return sorted((it.rule.id, it.linenumber, it.message) for it in Runner(config).run())


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
    shutil.copy(TOOLS / "usage-plan-key.schema.json", tmp_path / "lint")
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
