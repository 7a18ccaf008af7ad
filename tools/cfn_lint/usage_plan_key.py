"""cfn-lint finds the faults of a template that the function would refuse at its deployment.

Copy this folder, and usage-plan-key.schema.json into it or beside it, into your repository. You need
nothing else.

    cfn-lint --append-rules cfn_lint -- template.yaml

or in .cfnlintrc:

    append_rules: [cfn_lint]

E9301: the function refuses a property. W9302: two resource types declare one association. W9303: a key's
    value is not masked. W9304: a logical id names its plan. E9305: an attribute does not exist. No message
    shows the value of a property: somebody may have pasted a key's value.

The rules take any custom resource type for Custom::UsagePlanKey if its ServiceToken leads to the function.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any, Final

from cfnlint.context.conditions.exceptions import Unsatisfiable
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
#: What template tools write where a value is missing.
MISSING: Final = re.compile(
    r"null|none|undefined|nan|nil|false|true|\[object object\]|<no value>|\{\}|\[\]", re.IGNORECASE
)
NO_VALUE: Final = {"Ref": "AWS::NoValue"}
#: How a ServiceToken leads to the function: by its export, its SSM parameter or the name in its ARN.
FUNCTION: Final = re.compile(
    r"usage-plan-key-FunctionArn|/usage-plan-key/function-arn|:function:usage-plan-key-"
)
ATTRIBUTES: Final = ("Id", "KeyId", "KeyName", "KeyType", "UsagePlanId", "Outcome", "Value")
#: The resource type whose id a property takes.
TYPES: Final = {"KeyId": "AWS::ApiGateway::ApiKey", "UsagePlanId": "AWS::ApiGateway::UsagePlan"}
#: Properties that take a key's value and keep it as a secret. EventBridge stores a connection as one:
#: https://docs.aws.amazon.com/secretsmanager/latest/userguide/integrating_how-services-use-secrets_events.html
SECRETS: Final = {
    ("AWS::SecretsManager::Secret", "SecretString"),
    ("AWS::SecretsManager::Secret", "GenerateSecretString"),
    ("AWS::Events::Connection", "AuthParameters"),
}
#: `${Name}` and `${Name.Attribute}` in Fn::Sub; `${!Name}` is text.
PLACEHOLDER: Final = re.compile(r"\$\{\s*([^!}][^}]*?)\s*\}")


def _schema() -> dict[str, Any]:
    name = "usage-plan-key.schema.json"
    for folder in Path(__file__).resolve().parents[:2]:
        if (path := folder / name).exists():
            schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return schema
    raise FileNotFoundError(f"Copy {name} beside {__file__}: it says which properties {CUSTOM} has")


def _ours(cfn: Template) -> dict[str, dict[str, Any]]:
    """Find the resources that the function serves, whatever their type is called."""
    resources = cfn.template.get("Resources")
    found = {
        name: resource
        for name, resource in (resources.items() if isinstance(resources, dict) else ())
        if isinstance(resource, dict)
        and str(resource.get("Type")).startswith(("Custom::", "AWS::CloudFormation::CustomResource"))
    }
    tokens = {_token(cfn, resource) for resource in found.values() if resource["Type"] == CUSTOM} - {""}
    return {
        name: resource
        for name, resource in found.items()
        if resource["Type"] == CUSTOM or (token := _token(cfn, resource)) in tokens or FUNCTION.search(token)
    }


def _token(cfn: Template, resource: dict[str, Any]) -> str:
    """Write down a ServiceToken, with the default of the parameter that it refers to."""
    token = _property(resource, "ServiceToken")
    match token, cfn.template.get("Parameters"):
        case {"Ref": str(name)}, dict(given) if isinstance(given.get(name), dict):
            token = [token, given[name].get("Default")]
    return json.dumps(token, default=str) if token else ""


def _referent(value: Any) -> tuple[str, str] | None:
    """Name the resource and the attribute that an intrinsic function refers to; Ref has no attribute."""
    match value:
        case {"Ref": str(name)}:
            return name, ""
        case {"Fn::GetAtt": [str(name), str(attribute)]}:
            return name, attribute
        case {"Fn::GetAtt": str(path)} if "." in path:
            return path.split(".", 1)[0], path.split(".", 1)[1]
        case {"Fn::Sub": str(text)} if found := PLACEHOLDER.fullmatch(text):
            name, _, attribute = found[1].partition(".")
            return name, attribute
    return None


def _text(value: Any) -> str | None:
    """Write down the known characters of Fn::Sub and Fn::Join, with an x for each reference; else None."""
    match value:
        case {"Fn::Sub": str(text) | [str(text), *_]}:
            return PLACEHOLDER.sub("x", text)
        case {"Fn::Join": [str(delimiter), list(parts)]}:
            return delimiter.join(part if isinstance(part, str) else "x" for part in parts)
    return None


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
        ours = _ours(validator.cfn)
        if not any(instance is each for each in ours.values()):
            return
        properties = instance.get("Properties", {})
        if not isinstance(properties, dict):
            return  # cfn-lint's own E3002 says so
        place = ["Properties"] if "Properties" in instance else []
        resolving = validator.evolve(context=validator.context.evolve(functions=list(FUNCTIONS)))
        if isinstance(condition := instance.get("Condition"), str):
            with suppress(Unsatisfiable):
                resolving = _where(resolving, condition, holds=True)
        faults = dict.fromkeys(self._faults(resolving, properties, ours))
        for path, wrong in faults:
            yield ValidationError(wrong, path=deque([*place, *path]), rule=self)

    def _faults(
        self, validator: Validator, properties: dict[str, Any], ours: dict[str, Any]
    ) -> Iterator[tuple[tuple[str, ...], str]]:
        known, required = self._schema["properties"], self._schema["required"]
        if not any(name.startswith("Fn::") for name in properties):  # Fn::Transform can add a property.
            for name in required:
                for value, _ in _choices(validator, properties.get(name)):
                    if value in (None, NO_VALUE):
                        yield (), f"{name} is missing"
        for name, value in properties.items():
            if name in known:
                for choice, where in _choices(validator, value):
                    for wrong in _of_choice(name, choice, where, known[name], ours):
                        yield (name,), wrong
            elif not name.startswith("Fn::"):
                yield (name,), f"unknown property {name[:40]} ({_hint(name, known)})"


def _where(validator: Validator, condition: str, *, holds: bool) -> Validator:
    """Take a condition for true or false from here on; cfn-lint then leaves out what contradicts it.

    Raises:
        Unsatisfiable: It cannot be so.
    """
    conditions = validator.context.conditions.evolve({condition: holds})
    return validator.evolve(context=validator.context.evolve(conditions=conditions))


def _choices(validator: Validator, value: Any) -> Iterator[tuple[Any, Validator]]:
    """Follow Fn::If to each value that a property can have."""
    match value:
        case {"Fn::If": [str(condition), then, otherwise]}:
            for choice, holds in ((then, True), (otherwise, False)):
                with suppress(Unsatisfiable):
                    yield from _choices(_where(validator, condition, holds=holds), choice)
        case _:
            yield value, validator


def _of_choice(
    name: str, value: Any, validator: Validator, schema: dict[str, Any], ours: dict[str, Any]
) -> Iterator[str]:
    if name in TYPES and (referent := _referent(value)):
        resource = validator.cfn.template["Resources"].get(referent[0])
        type_ = resource.get("Type") if isinstance(resource, dict) else None
        if referent[0] in ours:
            type_ = CUSTOM
        if wrong := _wrong_referent(name, *referent, type_):
            yield f"{name} is {wrong}"
    if value != NO_VALUE:
        texts = [found for found, _, _ in validator.resolve_value(value) if found is not None]
        if not texts and name in TYPES and (text := _text(value)) is not None:
            texts = [text]
        if isinstance(value, dict) and validator.context.conditions.status:
            texts = [
                text for text in texts if text != ""
            ]  # Whoever makes the condition true sets the parameter.
        yield from (wrong for found in texts if (wrong := fault(name, found, schema)))


def _wrong_referent(name: str, referred: str, attribute: str, type_: str | None) -> str | None:
    if type_ in (CUSTOM, NATIVE) and attribute in ("", "Id"):
        return f"the pair of a key's and a plan's id of {referred} (take its {name})"
    if type_ == CUSTOM and attribute != name and attribute in ATTRIBUTES:
        return f"the {attribute} of {referred} (take its {name})"
    if str(type_).startswith(("AWS::ApiGateway::", "AWS::Serverless::")) and type_ != TYPES[name]:
        return f"the id of {referred}, which is no {TYPES[name]}"
    return None


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
        (MISSING.fullmatch(id_), f"{id_}, which looks like a missing value of your template tool"),
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
        customs, natives = _ours(cfn), cfn.get_resources([NATIVE])
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
    return _identity(properties["KeyId"]), _identity(properties["UsagePlanId"])


def _identity(value: Any) -> Any:
    """See through the different ways to refer to a key or a plan."""
    name, attribute = _referent(value) or (None, "")
    return {"Ref": name} if name and attribute in ("", "Id", "APIKeyId") else value


def _attributes(cfn: Template) -> Iterator[tuple[list[Any], str, str]]:
    """Find every attribute that the template asks for: where, and the resource and the attribute."""
    for *path, value in cfn.search_deep_keys("Fn::GetAtt"):
        if referent := _referent({"Fn::GetAtt": value}):
            yield path, *referent
    for *path, value in cfn.search_deep_keys("Fn::Sub"):
        text, own = value if isinstance(value, list) and len(value) == 2 else (value, {})
        for placeholder in set(PLACEHOLDER.findall(str(text))).difference(
            own if isinstance(own, dict) else ()
        ):
            name, dot, attribute = placeholder.partition(".")
            if dot:
                yield path, name, attribute


class UsagePlanKeyValueShown(CloudFormationLintRule):  # type: ignore[misc]  # cfn-lint has no types
    """A key's value goes where nothing masks it."""

    id = "W9303"
    shortdesc = "Check that a key's value stays masked"
    description = (
        "NoEcho masks Fn::GetAtt only: CloudFormation shows an output and metadata, and a service shows its"
        f" properties, also with the Value of {CUSTOM}"
    )
    source_url = "https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/crpg-ref-responses.html"
    tags = ["outputs", "metadata", "apigateway"]  # noqa: RUF012

    def match(self, cfn: Template) -> list[RuleMatch]:
        """Name each place of a Value that is no secret."""
        ours = _ours(cfn)
        return [
            RuleMatch(path, "NoEcho does not mask a key's value here; keep it in a secret instead")
            for path, name, attribute in _attributes(cfn)
            if name in ours and attribute == "Value" and not _secret(cfn, path)
        ]


def _secret(cfn: Template, path: list[Any]) -> bool:
    match path:
        case ["Resources", name, "Properties", property_, *_]:
            return (str(cfn.template["Resources"][name].get("Type")), property_) in SECRETS
    return False


class UsagePlanKeyAttributes(CloudFormationLintRule):  # type: ignore[misc]  # cfn-lint has no types
    """The function returns no such attribute, so CloudFormation fails the deploy."""

    id = "E9305"
    shortdesc = f"Check the attributes of {CUSTOM}"
    description = f"{CUSTOM} has the attributes {', '.join(ATTRIBUTES)}; Value needs IncludeValue"
    source_url = MANUAL
    tags = ["resources", "apigateway"]  # noqa: RUF012

    def match(self, cfn: Template) -> list[RuleMatch]:
        """Name each attribute that is asked for and never returned."""
        ours = _ours(cfn)
        matches = []
        for path, name, attribute in _attributes(cfn):
            if name in ours and attribute not in ATTRIBUTES:
                close = difflib.get_close_matches(attribute, ATTRIBUTES, n=1)
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(ATTRIBUTES)}"
                matches.append(RuleMatch(path, f"{name} has no attribute {attribute[:40]} ({hint})"))
            elif name in ours and attribute == "Value" and not _includes_value(ours[name]):
                matches.append(RuleMatch(path, f"{name} has no Value without IncludeValue: true"))
        return matches


def _includes_value(resource: dict[str, Any]) -> bool:
    """Tell whether it may return the value: an intrinsic function may come to true."""
    given = _property(resource, "IncludeValue")
    return isinstance(given, dict) or str(given).lower() == "true"


class UsagePlanKeyNamedAfterPlan(CloudFormationLintRule):  # type: ignore[misc]  # cfn-lint has no types
    """A logical id names its plan, so whoever moves the customer is tempted to rename it."""

    id = "W9304"
    shortdesc = "Check that a logical id outlives its plan"
    description = (
        f"If the plan changes and the logical id stays, {CUSTOM} moves the key; with another id it is a new"
        " resource, and API Gateway refuses the key's second plan for a stage"
    )
    source_url = (
        "https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-api-usage-plans.html"
    )
    tags = ["resources", "apigateway"]  # noqa: RUF012

    def match(self, cfn: Template) -> list[RuleMatch]:
        """Name each logical id that has all words of its plan's name."""
        ours = _ours(cfn)
        plans = {name: _tier(cfn, resource, ours) for name, resource in ours.items()}
        shared = set.intersection(*plans.values()) if len(set(map(frozenset, plans.values()))) > 1 else set()
        matches = []
        for name, words in plans.items():
            tier = words - shared or words
            if tier and tier <= _words(name) and not _of_customer(ours[name], tier):
                message = (
                    f"the logical id names the usage plan ({' '.join(sorted(tier))}). If the customer changes"
                    " plans and the id changes too, the deploy fails: name it after the key instead"
                )
                matches.append(RuleMatch(["Resources", name], message))
        return matches


#: Words of names that tell no tier.
_PLAIN: Final = {
    *(
        "api",
        "gateway",
        "usage",
        "plan",
        "plans",
        "tier",
        "key",
        "keys",
        "association",
        "customer",
        "customers",
    ),
    *("arn", "default", "id", "in", "of", "ref", "resolve", "resource", "ssm"),
}


def _words(name: str) -> set[str]:
    """Split an id or another name into its words, without the hash that the CDK appends."""
    unhashed = re.sub(r"(?<=[a-z])[0-9A-F]{8}$", "", name)
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+", unhashed)
    return {word.lower() for word in words} - _PLAIN


def _tier(cfn: Template, resource: dict[str, Any], ours: dict[str, Any]) -> set[str]:
    """Find the words that name a resource's plan, apart from those that name its API."""
    apis = cfn.get_resources(["AWS::ApiGateway::RestApi", "AWS::Serverless::Api", "AWS::ApiGateway::Stage"])
    named = {name for name in _names(_property(resource, "UsagePlanId")) if name not in ours}
    return set().union(*map(_words, named)) - set().union(*map(_words, apis))


def _names(value: Any) -> Iterator[str]:
    """Find the names in an id. Where Fn::If chooses among plans, the logical id outlives each of them."""
    match value:
        case str():
            parts = re.findall(r"[A-Za-z0-9]+", value)  # such as an export's: STACK-FreePlanId
            yield from [part for part in parts if "plan" in part.lower() and _words(part)] or parts
        case {"Fn::If": _}:
            return
        case {"Fn::GetAtt": _} if referent := _referent(value):
            name, attribute = referent
            yield attribute.removeprefix("Outputs.") if attribute.startswith("Outputs.") else name
        case {"Fn::Sub": str(text)}:
            written = PLACEHOLDER.sub(" ", text)
            yield from _names(written if _words(written) else text)
        case dict():
            yield from (name for inner in value.values() for name in _names(inner))
        case list():
            yield from (name for inner in value for name in _names(inner))


def _of_customer(resource: dict[str, Any], tier: set[str]) -> bool:
    """Tell whether the plan has the customer's name, as its key has, because it is the customer's own."""
    key = set().union(*map(_words, _names(_property(resource, "KeyId"))))
    return bool(key) and key <= tier


def _property(resource: dict[str, Any], name: str) -> Any:
    properties = resource.get("Properties")
    return properties.get(name) if isinstance(properties, dict) else None
