"""tools/usage-plan-key.schema.json and `request.parse` accept the same properties, and refuse the same."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from usage_plan_key import request
from usage_plan_key.model import LONGEST_ID

SCHEMA = json.loads((Path(__file__).parents[1] / "tools/usage-plan-key.schema.json").read_text())
VALIDATOR = Draft7Validator(SCHEMA)
CLOUDFORMATIONS = {"ServiceToken": "arn:aws:lambda:eu-central-1:123456789012:function:usage-plan-key"}
IDS = {"UsagePlanId": "f7r3e3", "KeyId": "a1b2c3d4e5"}

IN_AN_ID = "abyzABYZ0189_-"
IDS_AND_NEARLY = st.one_of(
    st.text(IN_AN_ID, max_size=LONGEST_ID + 2),
    st.text(IN_AN_ID + ":.+ \n\té", max_size=LONGEST_ID + 2),
    st.sampled_from(
        [" a1b2c3d4e5", "a1b2c3d4e5\n", "a1b2c3d4e5:f7r3e3", "arn:aws:apigateway:eu-central-1::/apikeys/a"]
    ),
)
CHOICES = st.sampled_from(
    ["API_KEY", "api_key", "Fail", "Adopt", "Take", "take", "true", "false", "True", "", True, False, 0, 1]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from([*request.PROPERTIES, "ServiceToken", "ServiceTimeout"])
STRANGE_NAMES = st.sampled_from(["KeyID", "PlanId", "keyId", "Tags", ""]) | st.text(max_size=5)


def of_function(properties: dict[str, Any]) -> bool:
    """Tell whether the function accepts a Create with these properties."""
    event = {
        "RequestType": "Create",
        "RequestId": "r",
        "StackId": "s",
        "LogicalResourceId": "Alice",
        "ResponseURL": "https://example.com",
        "ResourceProperties": properties,
    }
    return isinstance(request.parse(event), request.Create)


def of_schema(properties: dict[str, Any]) -> bool:
    """Tell whether the schema accepts them, with the ServiceToken that only CloudFormation looks at."""
    return bool(VALIDATOR.is_valid(CLOUDFORMATIONS | properties))


@given(
    named=st.dictionaries(
        NAMES.filter(lambda name: not name.startswith("Service")),
        IDS_AND_NEARLY | CHOICES | ANYTHING,
        max_size=4,
    ),
    strange=st.dictionaries(STRANGE_NAMES, ANYTHING, max_size=1),
)
@example(named={}, strange={})
@example(named={"KeyId": "a" * LONGEST_ID}, strange={})
@example(named={"KeyId": "a" * (LONGEST_ID + 1)}, strange={})
@example(named={"KeyId": None}, strange={})
@example(named={"IncludeValue": 1}, strange={})
def test_the_schema_and_the_function_refuse_the_same_properties(
    named: dict[str, Any], strange: dict[str, Any]
) -> None:
    properties = (
        IDS | named | {name: value for name, value in strange.items() if not name.startswith("Service")}
    )
    assert of_schema(properties) == of_function(properties)


@given(missing=st.sets(st.sampled_from([*IDS])), rest=st.dictionaries(NAMES, CHOICES, max_size=3))
def test_the_schema_and_the_function_require_the_same_properties(
    missing: set[str], rest: dict[str, Any]
) -> None:
    properties = {
        name: value
        for name, value in (IDS | rest).items()
        if name not in missing and not name.startswith("Service")
    }
    assert of_schema(properties) == of_function(properties)


def test_the_schema_has_every_property_of_the_functions_with_the_default_that_it_takes() -> None:
    assert set(SCHEMA["properties"]) == {*request.PROPERTIES, *request._LET_THROUGH}
    defaults = {name: it.get("default") for name, it in SCHEMA["properties"].items()}
    assert defaults["ServiceTimeout"] == request.LONGEST_SERVICE_TIMEOUT
    for name, choices in request._CHOICES.items():
        assert defaults[name] == (choices[0] if name != "IncludeValue" else False)
    assert of_function(IDS | {name: defaults[name] for name in (*request._CHOICES, "VerifyTrigger")})
    assert all(it["description"] for it in SCHEMA["properties"].values())


def test_it_is_a_schema() -> None:
    Draft7Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("seconds", [1, 60, 3600, "1", "600", "3600"])
def test_a_service_timeout_of_cloudformations_passes(seconds: object) -> None:
    assert of_schema(IDS | {"ServiceTimeout": seconds})


@pytest.mark.parametrize("seconds", [0, 3601, 1.5, "0", "060", "3601", "1m", "600\n", None, [600]])
def test_another_does_not(seconds: object) -> None:
    """CloudFormation takes 1 to 3,600 seconds (its reference page of AWS::CloudFormation::CustomResource)."""
    assert not of_schema(IDS | {"ServiceTimeout": seconds})


def test_a_service_token_is_required() -> None:
    assert not VALIDATOR.is_valid(IDS)
