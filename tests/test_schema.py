"""tools/usage-plan-key.schema.json and `request.parse` accept the same properties, and refuse the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from referencing import Registry, Resource
from samtranslator.yaml_helper import yaml_parse

from usage_plan_key import request
from usage_plan_key.model import LONGEST_ID

ROOT = Path(__file__).parents[1]
SCHEMA, TEMPLATE = (
    json.loads((ROOT / "tools" / name).read_text())
    for name in ("usage-plan-key.schema.json", "usage-plan-key.template.schema.json")
)
VALIDATOR = Draft7Validator(SCHEMA)
OF_TEMPLATE = Draft7Validator(
    TEMPLATE, registry=Registry().with_resource("usage-plan-key.schema.json", Resource.from_contents(SCHEMA))
)
CLOUDFORMATIONS = {"ServiceToken": "arn:aws:lambda:eu-central-1:123456789012:function:usage-plan-key"}
IDS = {"UsagePlanId": "f7r3e3", "KeyId": "a1b2c3d4e5"}

IN_AN_ID = "abyzABYZ0189_-"
IDS_AND_NEARLY = (
    st.text(IN_AN_ID, max_size=LONGEST_ID + 2)
    | st.text(IN_AN_ID + ":.+ \n\té", max_size=LONGEST_ID + 2)
    | st.sampled_from(["a1b2c3d4e5\n", "a1b2c3d4e5:f7r3e3", "undefined", "None", "nullify"])
)
CHOICES = st.sampled_from(
    ["API_KEY", "api_key", "Fail", "Adopt", "Take", "take", "true", "false", "True", "", True, False, 0, 1]
)
ANYTHING: st.SearchStrategy[Any] = (
    st.none() | st.integers() | st.floats() | st.text() | st.lists(st.text(), max_size=2) | st.just([7])
)
NAMES = st.sampled_from(request.PROPERTIES) | st.sampled_from(["KeyID", "PlanId", "keyId", "Tags", ""])


def of_function(properties: dict[str, Any]) -> bool:
    """Tell whether the function accepts a Create with these properties."""
    event = dict.fromkeys(("RequestId", "StackId", "LogicalResourceId", "ResponseURL"), "x")
    return isinstance(
        request.parse(event | {"RequestType": "Create", "ResourceProperties": properties}), request.Create
    )


def of_schema(properties: dict[str, Any]) -> bool:
    """Tell whether the schema accepts them, with the ServiceToken that only CloudFormation looks at."""
    return bool(VALIDATOR.is_valid(CLOUDFORMATIONS | properties))


@given(
    changed=st.dictionaries(NAMES, IDS_AND_NEARLY | CHOICES | ANYTHING, max_size=3),
    missing=st.sets(st.sampled_from([*IDS]), max_size=1),
)
@example(changed={"KeyId": "a" * LONGEST_ID}, missing=set())
@example(changed={"KeyId": "a" * (LONGEST_ID + 1)}, missing=set())
@example(changed={"UsagePlanId": "None"}, missing=set())
@example(changed={"IncludeValue": 1}, missing=set())
@example(changed={}, missing={"KeyId"})
def test_the_schema_and_the_function_refuse_the_same_properties(
    changed: dict[str, Any], missing: set[str]
) -> None:
    properties = {name: value for name, value in (IDS | changed).items() if name not in missing}
    assert of_schema(properties) == of_function(properties)


def test_the_schema_has_the_functions_properties_and_defaults() -> None:
    """CloudFormation takes 1 to 3,600 seconds (its page of AWS::CloudFormation::CustomResource)."""
    assert set(SCHEMA["properties"]) == {*request.PROPERTIES, *request._LET_THROUGH}
    defaults = {name: it.get("default") for name, it in SCHEMA["properties"].items()}
    assert defaults["ServiceTimeout"] == request.LONGEST_SERVICE_TIMEOUT
    for name, choices in request._CHOICES.items():
        assert defaults[name] == (choices[0] if name != "IncludeValue" else False)
    assert of_function(IDS | {name: defaults[name] for name in (*request._CHOICES, "VerifyTrigger")})
    assert all(it["description"] for it in SCHEMA["properties"].values())
    assert not VALIDATOR.is_valid(IDS), "ServiceToken is required"
    for seconds in (1, 60, 3600, "1", "600", "3600"):
        assert of_schema(IDS | {"ServiceTimeout": seconds})
    refused: list[object] = [0, 3601, 1.5, "0", "060", "3601", "1m", "600\n", None, [600]]
    for odd in refused:
        assert not of_schema(IDS | {"ServiceTimeout": odd})


def test_each_is_a_schema_and_says_at_its_top_what_it_is_for() -> None:
    for schema, said in ((SCHEMA, "Resolved properties"), (TEMPLATE, "A whole template")):
        Draft7Validator.check_schema(schema)
        assert list(schema)[1] == "$comment"
        assert schema["$comment"].startswith(said)
    assert "usage-plan-key.template.schema.json" in SCHEMA["$comment"]


class Editor(yaml.SafeLoader):
    """Reads a template as yaml-language-server does: it shows a schema only what is behind a short tag."""


def untagged(loader: yaml.SafeLoader, _tag: str, node: yaml.Node) -> Any:
    match node:
        case yaml.ScalarNode():
            return loader.construct_scalar(node)
        case yaml.SequenceNode():
            return loader.construct_sequence(node, deep=True)
        case yaml.MappingNode():
            return loader.construct_mapping(node, deep=True)


Editor.add_multi_constructor("!", untagged)


def faults(properties: object) -> list[str]:
    """The faults that the template's schema finds in a resource."""
    resource = {"Type": "Custom::UsagePlanKey", "Properties": properties}
    return [error.message for error in OF_TEMPLATE.iter_errors({"Resources": {"Acme": resource}})]


def test_the_schema_of_a_template_has_the_same_properties() -> None:
    schema = TEMPLATE["properties"]["Resources"]["additionalProperties"]["then"]["properties"]["Properties"]
    assert schema["required"] == SCHEMA["required"]
    assert {name: each["anyOf"][0]["$ref"] for name, each in schema["properties"].items()} == {
        name: f"usage-plan-key.schema.json#/properties/{name}" for name in SCHEMA["properties"]
    }


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*.yaml")), ids=lambda path: path.stem)
def test_the_schema_of_a_template_accepts_the_examples(path: Path) -> None:
    text = path.read_text()
    for template in (yaml_parse(text), yaml.load(text, Editor)):  # noqa: S506  # it is a SafeLoader
        assert list(OF_TEMPLATE.iter_errors(template)) == []


@pytest.mark.parametrize(
    "given",
    [
        {"KeyId": {"Ref": "AcmeKey"}},
        {"KeyId": "AVeryLongLogicalIdOfAKey"},  # !Ref, in an editor
        {"KeyId": "Acme.KeyId"},  # !GetAtt
        {"KeyId": "${Acme.KeyId}"},  # !Sub
        {"KeyId": "{{resolve:ssm:/acme/key}}"},
        {"KeyId": 1234567890},
        {"UsagePlanId": {"Fn::If": ["IsPro", {"Ref": "Pro"}, {"Ref": "Free"}]}},
        {"UsagePlanId": ["IsPro", "Pro", "Free"]},  # !If
        {"UsagePlanId": {"Fn::ImportValue": {"Fn::Sub": "${Plans}-FreePlanId"}}},
        {"OnExisting": {"Fn::FindInMap": ["Policies", "Acme", "OnExisting"]}},
        {"IncludeValue": {"Fn::Transform": {"Name": "Own"}}},
        {"Fn::Transform": {"Name": "AWS::Include"}},
        {"ServiceTimeout": 600, "IncludeValue": True, "OnExisting": "Take", "VerifyTrigger": "1"},
    ],
    ids=str,
)
def test_the_schema_of_a_template_takes_intrinsic_functions(given: dict[str, Any]) -> None:
    assert faults(CLOUDFORMATIONS | IDS | given) == []


@pytest.mark.parametrize(
    "given",
    [
        {"KeyID": "a1b2c3d4e5"},
        *({"UsagePlanId": odd} for odd in ("", "undefined", "NaN", "[object Object]", False, None)),
        {"UsagePlanId": []},
        *({"KeyId": odd} for odd in (" a1b2c3d4e5", "Acme's key", "a1b2c3d4e5\n", ["a1b2c3d4e5"])),
        {"KeyId": "arn:aws:apigateway:eu-central-1::/apikeys/a1b2c3d4e5"},
        {"KeyId": "{{resolve:ssm-secure:/acme/key}}"},
        {"KeyId": {"Ref": "AcmeKey", "Fn::Sub": "${AcmeKey}"}},
        {"KeyId": {}},
        {"KeyId": {"Id": "a1b2c3d4e5"}},
        {"OnExisting": "Fail or take"},
        {"IncludeValue": "yes, please"},
        {"ServiceTimeout": "ten minutes"},
    ],
    ids=str,
)
def test_it_refuses_what_cannot_be(given: dict[str, Any]) -> None:
    assert len(faults(CLOUDFORMATIONS | IDS | given)) == 1


def test_it_requires_the_same_properties_and_leaves_other_resources_alone() -> None:
    for name in SCHEMA["required"]:
        given = CLOUDFORMATIONS | IDS
        del given[name]
        assert faults(given) == [f"'{name}' is a required property"]
    other = {"Acme": {"Type": "AWS::ApiGateway::ApiKey"}, "Fn::ForEach::Free": ["Name", [], {}]}
    assert list(OF_TEMPLATE.iter_errors({"Resources": other})) == []
