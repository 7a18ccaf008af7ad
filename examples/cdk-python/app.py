"""An API with two usage plans and four customers."""

from aws_cdk import App, Duration, Stack
from aws_cdk.aws_apigateway import ApiKey, MockIntegration, RestApi, ThrottleSettings, UsagePlanPerApiStage
from aws_cdk.aws_secretsmanager import Secret
from aws_cdk.aws_ssm import StringParameter

from usage_plan_key import OnExisting, UsagePlanKey

app = App()
stack = Stack(app, "Customers")
api = RestApi(stack, "Api")
api.root.add_method("GET", MockIntegration(), api_key_required=True)

stages = [UsagePlanPerApiStage(api=api, stage=api.deployment_stage)]
free = api.add_usage_plan("Free", api_stages=stages, throttle=ThrottleSettings(rate_limit=1, burst_limit=2))
pro = api.add_usage_plan("Pro", api_stages=stages, throttle=ThrottleSettings(rate_limit=50, burst_limit=100))

UsagePlanKey(ApiKey(stack, "Acme"), "InPlan", plan=free)

# Or under the stack, with the customer's name.
UsagePlanKey(stack, "Umbrella", plan=pro, api_key=ApiKey(stack, "UmbrellaKey"))

# The function's ARN from SSM, and everything else that can be said.
arn = StringParameter.value_for_string_parameter(stack, "/usage-plan-key/function-arn")
UsagePlanKey(
    ApiKey(stack, "Globex"),
    "InPlan",
    plan=pro,
    service_token=arn,
    service_timeout=Duration.minutes(20),
    on_existing=OnExisting.TAKE,
    verify_trigger="1",
)

# A secret holds the key's value.
initech = UsagePlanKey(
    ApiKey(stack, "Initech"),
    "InPlan",
    plan=free,
    include_value=True,
)
Secret(stack, "InitechSecret", secret_string_value=initech.value)

app.synth()
