"""Custom::UsagePlanKey as a construct of the AWS CDK. Copy this file; it needs aws-cdk-lib only."""

from enum import Enum

import jsii
from aws_cdk import CustomResource, Duration, Fn, RemovalPolicy, SecretValue, Stack
from aws_cdk.aws_apigateway import CfnUsagePlanKey, IApiKey, IUsagePlan
from constructs import Construct, IValidation


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

    Use it instead of `plan.add_api_key(key)`, which declares a native AWS::ApiGateway::UsagePlanKey. Two
    resources cannot both attach the same key, so the CDK refuses to synthesise an app that declares both.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,  # noqa: A002  # the name that every construct gives it
        *,
        plan: IUsagePlan,
        api_key: IApiKey,
        on_existing: OnExisting = OnExisting.FAIL,
        include_value: bool = False,
        verify_trigger: str | None = None,
        service_timeout: Duration | None = None,
        service_token: str | None = None,
        removal_policy: RemovalPolicy = RemovalPolicy.DESTROY,
    ) -> None:
        """Declare it.

        Args:
            scope: The stack.
            id: The construct's id.
            plan: The usage plan. Change it to move the key.
            api_key: The API key.
            on_existing: What to do when the key is in the plan already.
            include_value: Whether `value` is there.
            verify_trigger: Change it to have the association verified, and repaired, on a deployment.
            service_timeout: How long CloudFormation waits, a minute to an hour; 10 minutes if you do not say.
            service_token: The ARN of the function that serves Custom::UsagePlanKey, by default the export of
                the stack usage-plan-key. Never change it.
            removal_policy: What happens to the association when the resource goes.
        """
        properties = {
            "UsagePlanId": plan.usage_plan_id,
            "KeyId": api_key.key_id,
            "OnExisting": on_existing.value,
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
        if on_existing is OnExisting.FAIL:
            self.node.add_validation(_NoNative(plan, api_key))

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


@jsii.implements(IValidation)
class _NoNative:
    """No native resource of the app attaches the same key to the same plan."""

    def __init__(self, plan: IUsagePlan, api_key: IApiKey) -> None:
        self._plan, self._api_key = plan, api_key

    def validate(self) -> list[str]:
        resolve = Stack.of(self._plan).resolve
        return [
            f"{child.node.path} attaches the same key: leave out plan.add_api_key()"
            for child in self._plan.node.children
            if isinstance(child, CfnUsagePlanKey) and resolve(child.key_id) == resolve(self._api_key.key_id)
        ]
