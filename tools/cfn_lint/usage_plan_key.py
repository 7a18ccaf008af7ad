"""cfn-lint finds the faults of a template that the function would refuse at its deployment.

Copy this folder, and usage-plan-key.schema.json into it or beside it, into your repository. You need
nothing else.

    cfn-lint --append-rules cfn_lint -- template.yaml

or in .cfnlintrc:

    append_rules: [cfn_lint]

E9301: the function refuses a property. W9302: two resource types declare one association. W9303: a key's
    value is not masked. No message shows the value of a property: somebody may have pasted a key's value.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import deque
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, Final

from cfnlint.helpers import FUNCTIONS
from cfnlint.jsonschema import ValidationError, ValidationResult, Validator
from cfnlint.rules import CloudFormationLintRule, RuleMatch
from cfnlint.rules.jsonschema import CfnLintKeyword
from cfnlint.template import Template

CUSTOM: Final = "Custom::UsagePlanKey"
NATIVE: Final = "AWS::ApiGateway::UsagePlanKey"
MANUAL: Final = "https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-apigateway-usageplankey.html"
# https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/dynamic-references-ssm-secure-strings.html
RESOLVED_LATER: Final = re.compile(r"\{\{resolve:(?!ssm-secure:)")
NO_VALUE: Final = {"Ref": "AWS::NoValue"}


def _schema() -> dict[str, Any]:
    name = "usage-plan-key.schema.json"
    for folder in Path(__file__).resolve().parents[:2]:
        if (path := folder / name).exists():
            schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return schema
    raise FileNotFoundError(f"Copy {name} beside {__file__}: it says which properties {CUSTOM} has")


class UsagePlanKeyProperties(CfnLintKeyword):  # type: ignore[misc]  # cfn-lint has no types
    """The properties fit the schema; an intrinsic function passes unless cfn-lint knows its value."""

    id = "E9301"
    shortdesc = f"Check the properties of {CUSTOM}"
    description = f"The function refuses unknown, missing and malformed properties of {CUSTOM}"
    source_url = MANUAL
    tags = ["resources", "apigateway"]  # noqa: RUF012  # cfn-lint's way, here and below

    def __init__(self) -> None:
        super().__init__(keywords=["Resources/*"])
        self._schema = _schema()

    def validate(self, validator: Validator, _keywords: Any, instance: Any, _schema: Any) -> ValidationResult:
        """Yield the faults of one resource, each with its path."""
        if not isinstance(instance, dict) or instance.get("Type") != CUSTOM:
            return
        properties = instance.get("Properties", {})
        if not isinstance(properties, dict):
            return  # cfn-lint's own E3002 says so
        place = ["Properties"] if "Properties" in instance else []
        resolving = validator.evolve(context=validator.context.evolve(functions=list(FUNCTIONS)))
        for path, wrong in self._faults(resolving, properties):
            yield ValidationError(wrong, path=deque([*place, *path]), rule=self)

    def _faults(self, validator: Validator, properties: dict[str, Any]) -> Iterator[tuple[list[str], str]]:
        known, required = self._schema["properties"], self._schema["required"]
        if not any(name.startswith("Fn::") for name in properties):  # Fn::Transform can add a property.
            for name in required:
                if properties.get(name) in (None, NO_VALUE):
                    yield [], f"{name} is missing"
        for name, value in properties.items():
            if name in known:
                for found, _, _ in validator.resolve_value(value):
                    if found is not None and (wrong := fault(name, found, known[name])):
                        yield [name], wrong
            elif not name.startswith("Fn::"):
                yield [name], f"unknown property {name[:40]} ({_hint(name, known)})"


def fault(name: str, value: Any, schema: dict[str, Any]) -> str | None:
    """Name the fault of a property's value; None if it has no fault."""
    if isinstance(value, bool | int | float):
        value = json.dumps(value)  # CloudFormation makes a string of every scalar.
    if not {"type", "enum"} & schema.keys() or (isinstance(value, str) and RESOLVED_LATER.search(value)):
        return None
    if not isinstance(value, str):
        return f"{name} is {'a list' if isinstance(value, list) else 'an object'}"
    if "enum" in schema:
        choices = dict.fromkeys(
            each if isinstance(each, str) else json.dumps(each) for each in schema["enum"]
        )
        return None if value in choices else f"{name} is not {' or '.join(choices)}"
    return None if re.search(schema["pattern"], value) else f"{name} is {_wrong(name, value, schema)}"


def _wrong(name: str, value: str, schema: dict[str, Any]) -> str:
    id_ = value.strip()
    causes = (
        (not id_, "empty"),
        ("maximum" in schema, f"no number from {schema.get('minimum')} to {schema.get('maximum')}"),
        ("{{resolve:" in id_, "a secure string, and CloudFormation resolves none in a custom resource"),
        ("${" in id_, "text with ${...}, which needs Fn::Sub"),
        (id_.startswith("arn:"), "an ARN (the id is the ARN's last part)"),
        (":" in id_, f"a pair of a key's and a plan's id (as Ref and Id give it; take the attribute {name})"),
        (len(id_) > 19, f"{len(id_)} characters long, like a key's value (an id has 6 to 10)"),
        (
            id_ != value or re.search(r"\s", id_),
            "an id with white space (an id has 6 to 10 letters and digits, unlike a name)",
        ),
        (True, "an id with characters that no id has (an id has 6 to 10 letters and digits)"),
    )
    return next(cause for applies, cause in causes if applies)


def _hint(name: str, known: dict[str, Any]) -> str:
    lowered = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=1)
    return f"did you mean {lowered[close[0]]}?" if close else f"known are {', '.join(known)}"


class UsagePlanKeyTwice(CloudFormationLintRule):  # type: ignore[misc]  # cfn-lint has no types
    """Both types declare one association: API Gateway refuses the second, or one detaches the other's key."""

    id = "W9302"
    shortdesc = "Check that one resource type declares an association"
    description = f"{CUSTOM} and {NATIVE} for the same key and plan get in each other's way"
    source_url = MANUAL
    tags = ["resources", "apigateway"]  # noqa: RUF012

    def match(self, cfn: Template) -> list[RuleMatch]:
        """Name each native resource whose association a custom one has, unless conditions keep them apart."""
        customs, natives = cfn.get_resources([CUSTOM]), cfn.get_resources([NATIVE])
        matches = []
        for (name, native), (other, custom) in product(natives.items(), customs.items()):
            same = _association(native) is not None and _association(native) == _association(custom)
            if same and _together(cfn, native, custom):
                matches.append(
                    RuleMatch(
                        ["Resources", name], f"{other} declares this association too: remove one of the two"
                    )
                )
        return matches


def _together(cfn: Template, *resources: dict[str, Any]) -> bool:
    conditions = {it["Condition"]: {True} for it in resources if isinstance(it.get("Condition"), str)}
    return not conditions or any(True for _ in cfn.conditions.build_scenarios(conditions))


def _association(resource: dict[str, Any]) -> tuple[Any, Any] | None:
    properties = resource.get("Properties")
    if not isinstance(properties, dict) or not {"KeyId", "UsagePlanId"} <= properties.keys():
        return None
    return properties["KeyId"], properties["UsagePlanId"]


class UsagePlanKeyValueShown(CloudFormationLintRule):  # type: ignore[misc]  # cfn-lint has no types
    """A key's value goes where NoEcho does not mask it."""

    id = "W9303"
    shortdesc = "Check that a key's value stays masked"
    description = (
        "CloudFormation shows an output and metadata to everybody who may read the"
        f" stack, also the Value of {CUSTOM}"
    )
    source_url = "https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-cloudformation-customresource.html"
    tags = ["outputs", "metadata", "apigateway"]  # noqa: RUF012

    def match(self, cfn: Template) -> list[RuleMatch]:
        """Name each Fn::GetAtt and Fn::Sub of a Value in outputs and metadata."""
        names = "|".join(cfn.get_resources([CUSTOM])) or "(?!)"
        matches = []
        for function, wanted in (
            ("Fn::GetAtt", rf"({names})\.Value"),
            ("Fn::Sub", rf".*\$\{{({names})\.Value\}}.*"),
        ):
            for *path, value in cfn.search_deep_keys(function):
                first = value[0] if function == "Fn::Sub" and isinstance(value, list) else value
                text = ".".join(map(str, first)) if isinstance(first, list) else str(first)
                if _shown(path) and re.fullmatch(wanted, text, re.DOTALL):
                    matches.append(
                        RuleMatch(
                            path, "NoEcho does not mask a key's value here; keep it in a secret instead"
                        )
                    )
        return matches


def _shown(path: list[Any]) -> bool:
    return path[0] in ("Outputs", "Metadata") or (path[0] == "Resources" and path[2:3] == ["Metadata"])
