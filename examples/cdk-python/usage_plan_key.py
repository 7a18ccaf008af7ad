"""Custom::UsagePlanKey as a construct of the AWS CDK. Copy this file; it needs aws-cdk-lib only."""

import re
from enum import Enum
from weakref import WeakKeyDictionary

import jsii
from aws_cdk import (
    Annotations,
    CustomResource,
    Duration,
    Fn,
    Reference,
    RemovalPolicy,
    SecretValue,
    Stack,
    Stage,
    Token,
    Tokenization,
)
from aws_cdk.aws_apigateway import CfnUsagePlanKey, IApiKey, IUsagePlan
from constructs import Construct, IConstruct, IValidation


class OnExisting(Enum):
    """What to do when the key is in the plan already, and not through this stack."""

    FAIL = "Fail"
    """Refuse: the deployment fails."""
    ADOPT = "Adopt"
    """Use the key, and leave it in the plan when the resource goes."""
    TAKE = "Take"
    """Use the key, and own it from the next deployment on."""


class UsagePlanKey(CustomResource):
    """One API key in one usage plan.

    Make it under the key, one for each API stage:

        UsagePlanKey(key, "InPlan", plan=plan)

    The CDK derives the logical id from the scopes and the id. A change of `plan` moves the key only if the
    logical id stays. So do not make it under the plan or under a construct for one tier, and do not name the
    tier in the id: there a customer who changes plans is a new resource, and API Gateway refuses the key's
    second plan.

    Use it instead of `plan.add_api_key(key)` and `CfnUsagePlanKey`, which declare a native
    AWS::ApiGateway::UsagePlanKey. Two resources cannot both attach the same key, so the CDK refuses to
    synthesise an app that declares both, unless this one has OnExisting.ADOPT or OnExisting.TAKE.
    """

    def __init__(
        self,
        scope: Construct | IApiKey,
        id: str,  # noqa: A002  # the name that every construct gives it
        *,
        plan: IUsagePlan,
        api_key: IApiKey | None = None,
        on_existing: OnExisting | str = OnExisting.FAIL,
        include_value: bool = False,
        verify_trigger: str | None = None,
        service_timeout: Duration | None = None,
        service_token: str | None = None,
        removal_policy: RemovalPolicy = RemovalPolicy.DESTROY,
    ) -> None:
        """Declare it.

        Args:
            scope: The key, or a construct that stays when the customer changes plans.
            id: The construct's id, without the plan's name.
            plan: The usage plan. Change it to move the key.
            api_key: The API key, by default the scope.
            on_existing: What to do when the key is in the plan already: an OnExisting, or its value.
            include_value: Whether `value` is there.
            verify_trigger: Change it to have the association verified, and repaired, on a deployment.
            service_timeout: How long CloudFormation waits, a minute to an hour; 10 minutes if you do not say.
            service_token: The ARN of the function that serves Custom::UsagePlanKey, by default the export of
                the stack usage-plan-key. Never change it.
            removal_policy: What happens to the association when the resource goes.
        """
        key_id = getattr(api_key or scope, "key_id", None)
        under_plan = f"{scope.node.path}/".startswith(f"{plan.node.path}/")
        if not isinstance(scope, Construct):  # jsii takes no imported key as a scope: go beside it
            scope, id = scope.node.scope, f"{scope.node.id}{id}"  # noqa: A001
        path = f"{scope.node.path}/{id}"
        if key_id is None:
            raise ValueError(f"{path} needs api_key, or an API key as its scope")
        properties = {
            "UsagePlanId": _checked(f"{path}: plan.usage_plan_id", plan.usage_plan_id),
            "KeyId": _checked(f"{path}: api_key.key_id", key_id),
            "OnExisting": OnExisting(on_existing).value,
            "IncludeValue": include_value,
        }
        if verify_trigger is not None:
            properties["VerifyTrigger"] = verify_trigger
        super().__init__(
            scope,
            id,
            resource_type="Custom::UsagePlanKey",
            service_token=service_token or Fn.import_value("usage-plan-key-FunctionArn"),
            service_timeout=service_timeout or Duration.minutes(10),
            removal_policy=removal_policy,
            properties=properties,
        )
        self._includes_value = include_value
        self._association = key_id, plan.usage_plan_id
        if under_plan:
            Annotations.of(self).add_warning_v2(
                "usage-plan-key:scope",
                "The logical id names the plan, so a change of plan moves no key. Make it under the key",
            )
        if OnExisting(on_existing) is OnExisting.FAIL:
            stage = _stage(self)
            if stage not in _OF_STAGE:
                _OF_STAGE[stage] = []
                stage.node.add_validation(_NoNative(_OF_STAGE[stage]))
            _OF_STAGE[stage].append(self)

    @property
    def outcome(self) -> str:
        """What the last request came to: ATTACHED, MOVED, VERIFIED and so on."""
        return self.get_att_string("Outcome")

    @property
    def value(self) -> SecretValue:
        """The key's value, with `include_value`. Put it into a secret, and nowhere else."""
        if not self._includes_value:
            raise ValueError(f"{self.node.path} returns no value without include_value")
        return SecretValue.resource_attribute(self.get_att_string("Value"))

    @property
    def identity(self) -> list[str]:
        """What tells this association from the others of the app."""
        return _identity(self, *self._association)


#: The constructs that a native resource must not double. The CDK validates each stage of an app once.
_OF_STAGE: "WeakKeyDictionary[IConstruct, list[UsagePlanKey]]" = WeakKeyDictionary()


def _stage(construct: Construct) -> IConstruct:
    return Stage.of(construct) or construct.node.root


@jsii.implements(IValidation)
class _NoNative:
    """No native resource of a stage of the app attaches the same key to the same plan."""

    def __init__(self, constructs: list[UsagePlanKey]) -> None:
        self._constructs = constructs

    def validate(self) -> list[str]:
        """Name each native resource that is one too many."""
        tree = _stage(self._constructs[0]).node.find_all()
        natives = [each for each in tree if isinstance(each, CfnUsagePlanKey)]
        ours = [(each.node.path, each.identity) for each in self._constructs] if natives else []
        return [
            f"{native.node.path} attaches the same key as {path}: leave the native one out"
            for native in natives
            for path, association in ours
            if _identity(native, native.key_id, native.usage_plan_id) == association
        ]


def _checked(what: str, id_: str) -> str:
    """Refuse a literal that is no id, as the function would, without showing it: it may be a key's value."""
    # Something stands here that nobody knows yet: a token, a dynamic reference, the CDK's dummy for a lookup.
    unknown = r"\$\{Token\[[^\]]*\]\}|\{\{resolve:(?!ssm-secure:)[^}]*\}\}|^dummy-value-for-.*"
    missing = r"(?i:null|none|undefined|nan|nil|false|true)"
    if not re.fullmatch(rf"(?!{missing}$)[A-Za-z0-9_-]{{1,19}}", re.sub(unknown, "x", id_)):
        raise ValueError(
            f"{what} is no id: an id has 1 to 19 letters, digits, - and _ (a name, an ARN, a key's value, "
            "the Ref of a UsagePlanKey and the text of a missing value are none)"
        )
    return id_


def _identity(scope: IConstruct, *ids: str) -> list[str]:
    """Identify ids by the constructs behind them: the resources of two stacks can have the same `Ref`."""
    return [_identity_of(Stack.of(scope), id_) for id_ in ids]


def _identity_of(stack: Stack, id_: str) -> str:
    found = Tokenization.reverse_string(id_)
    if found.length == 1 and Reference.is_reference(token := found.first_token):
        return f"{token.target.node.path} {re.sub('^(Ref|Id|APIKeyId)$', '', token.display_name)}"
    return f"{stack.node.path if Token.is_unresolved(id_) else stack.environment} {stack.resolve(id_)}"
