"""The schemas in tools/ and `request.parse` accept the same properties, and refuse the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from referencing import Registry, Resource
from samtranslator.yaml_helper import yaml_parse

from usage_plan_key import request

from .test_request import ACCEPTED, FAULTS, GOOD, event

ROOT = Path(__file__).parents[1]
SCHEMA, TEMPLATE = (
    json.loads((ROOT / "tools" / name).read_text())
    for name in ("usage-plan-key.schema.json", "usage-plan-key.template.schema.json")
)
VALIDATOR = Draft7Validator(SCHEMA)
OF_TEMPLATE = Draft7Validator(
    TEMPLATE, registry=Registry().with_resource("usage-plan-key.schema.json", Resource.from_contents(SCHEMA))
)
IDS = GOOD
WHOLE = GOOD | {"ServiceToken": "arn:aws:lambda:eu-central-1:123456789012:function:usage-plan-key"}
#: Those of the function's own table, as far as JSON can have them.
CHANGES = [it for it, _ in (*FAULTS, *ACCEPTED) if all(isinstance(name, str) for name in it)]


def of_function(properties: dict[str, Any]) -> bool:
    """Tell whether the function accepts a Create with these properties."""
    return isinstance(request.parse(event("Create", properties)), request.Create)


@pytest.mark.parametrize("changes", CHANGES, ids=ascii)
def test_the_schema_and_the_function_refuse_the_same_properties(changes: dict[str, Any]) -> None:
    assert VALIDATOR.is_valid(WHOLE | changes) is of_function(GOOD | changes)


@given(st.sampled_from(["KeyId", "UsagePlanId"]), st.text("abYZ09_-:.+ \n\té", max_size=21))
def test_they_take_the_same_texts_for_ids(name: str, text: str) -> None:
    test_the_schema_and_the_function_refuse_the_same_properties({name: text})


def test_the_schema_has_the_functions_properties_and_defaults() -> None:
    """CloudFormation takes 1 to 3,600 seconds (its page of AWS::CloudFormation::CustomResource)."""
    assert set(SCHEMA["properties"]) == {*request.PROPERTIES, *request._LET_THROUGH}
    defaults = {name: it.get("default") for name, it in SCHEMA["properties"].items()}
    assert defaults["ServiceTimeout"] == request.LONGEST_SERVICE_TIMEOUT
    assert (defaults["KeyType"], defaults["OnExisting"], defaults["IncludeValue"]) == (
        "API_KEY",
        "Fail",
        False,
    )
    assert all(it["description"] for it in SCHEMA["properties"].values()), "an editor shows it"
    for name in SCHEMA["required"]:
        assert not VALIDATOR.is_valid({key: value for key, value in WHOLE.items() if key != name})
    refused: list[object] = [0, 3601, 1.5, "0", "060", "3601", "1m", "600\n", None, [600]]
    for seconds in (1, 60, 3600, "1", "600", "3600", *refused):
        assert VALIDATOR.is_valid(WHOLE | {"ServiceTimeout": seconds}) is (seconds not in refused)


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


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*.yaml")), ids=lambda path: path.stem)
def test_the_schema_of_a_template_accepts_the_examples(path: Path) -> None:
    text = path.read_text()
    for template in (yaml_parse(text), yaml.load(text, Editor)):  # noqa: S506  # it is a SafeLoader
        assert list(OF_TEMPLATE.iter_errors(template)) == []


def faults(properties: object) -> list[str]:
    """The faults that the template's schema finds in a resource; it leaves others alone."""
    resources = {
        "Acme": {"Type": "Custom::UsagePlanKey", "Properties": properties},
        "Key": {"Type": "AWS::ApiGateway::ApiKey"},
        "Fn::ForEach::Free": ["Name", [], {}],
    }
    return [error.message for error in OF_TEMPLATE.iter_errors({"Resources": resources})]


#: Properties of templates: with intrinsic functions, and as an editor sees their short forms.
IN_TEMPLATES: list[dict[str, Any]] = [
    *(
        {"KeyId": it}
        for it in ({"Ref": "AcmeKey"}, "AVeryLongLogicalIdOfAKey", "Acme.KeyId", "${Acme.KeyId}")
    ),
    *({"KeyId": it} for it in ("{{resolve:ssm:/acme/key}}", 1234567890)),
    *({"UsagePlanId": it} for it in ({"Fn::If": ["IsPro", "Pro", "Free"]}, ["IsPro", "Pro", "Free"])),
    {"UsagePlanId": {"Fn::ImportValue": {"Fn::Sub": "${Plans}-FreePlanId"}}},
    {"OnExisting": {"Fn::FindInMap": ["Policies", "Acme", "OnExisting"]}},
    *({"IncludeValue": {"Fn::Transform": {"Name": "Own"}}}, {"Fn::Transform": {"Name": "AWS::Include"}}),
    {"ServiceTimeout": 600, "IncludeValue": True, "OnExisting": "Take", "VerifyTrigger": "1"},
]
ODD_IDS: list[Any] = [" a1b2c3d4e5", "Acme's key", "a1b2c3d4e5\n", ["a1b2c3d4e5"], "arn:aws:x/y", {}]
ODD_IDS += ["{{resolve:ssm-secure:/acme/key}}", {"Ref": "Acme", "Fn::Sub": "${Acme}"}, {"Id": "a1b2c3d4e5"}]
IN_NONE: list[dict[str, Any]] = [
    *({"UsagePlanId": odd} for odd in ("", "undefined", "NaN", "[object Object]", False, None)),
    *({"KeyId": odd} for odd in ODD_IDS),
    *({"KeyID": "a1b2c3d4e5"}, {"OnExisting": "Fail or take"}, {"IncludeValue": "yes, please"}),
    *({"ServiceTimeout": "ten minutes"}, {"UsagePlanId": []}),
]


@pytest.mark.parametrize("given", [*IN_TEMPLATES, *IN_NONE], ids=str)
def test_the_schema_of_a_template_takes_functions_and_refuses_what_cannot_be(given: dict[str, Any]) -> None:
    assert len(faults(WHOLE | given)) == (given in IN_NONE)
