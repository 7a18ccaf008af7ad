"""template.yaml and samconfig.toml against the code that they deploy; test_supply.py has the artifact."""

import ast
import copy
import inspect
import json
import re
import subprocess
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import cache, partial
from io import StringIO
from pathlib import Path
from typing import Any

import boto3
import pytest
from samtranslator.translator.managed_policy_translator import ManagedPolicyLoader
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

from usage_plan_key import metrics, queue, retry
from usage_plan_key.metrics import NAMESPACE
from usage_plan_key.model import Outcome
from usage_plan_key.provider import CLOSING_TIME
from usage_plan_key.request import LONGEST_SERVICE_TIMEOUT

ROOT = Path(__file__).parents[1]
HANDLER = ROOT / "handler" / "usage_plan_key"
TEMPLATE: dict[str, Any] = yaml_parse((ROOT / "template.yaml").read_text())
RESOURCES, PARAMETERS = TEMPLATE["Resources"], TEMPLATE["Parameters"]
FUNCTION = RESOURCES["UsagePlanKeyFunction"]["Properties"]
WATCH = RESOURCES["WatchFunction"]["Properties"]
TIMEOUT = TEMPLATE["Globals"]["Function"]["Timeout"]
REQUESTS = RESOURCES["Requests"]["Properties"]
ALARMS = {name: it["Properties"] for name, it in RESOURCES.items() if it["Type"] == "AWS::CloudWatch::Alarm"}
QUEUES = ("Requests", "Undelivered", "Unanswered")
SERVICE = FUNCTION["Environment"]["Variables"]["POWERTOOLS_SERVICE_NAME"]
#: A stack with all that can be asked for.
GATED = {"UsagePlanId": "plan", "KmsKeyArn": "key", "SubnetIds": "subnet-1", "SecurityGroupIds": "sg-1"}
#: The services that the function calls, and the module that calls each.
SERVICES = {
    "apigateway": "api_gateway.py",
    "cloudformation": "cloudformation.py",
    "dynamodb": "ledger.py",
    "sqs": "queue.py",
}
#: Prefixes of the variables that other software reads.
OTHERS = ("AWS_", "POWERTOOLS_", "REQUESTS_CA_BUNDLE")

# --- Permissions ---


def pairs(place: str, *actions: str) -> set[tuple[str, str]]:
    return {(action, place) for action in actions}


#: What Lambda itself does with the function's role.
LAMBDA_ITSELF = (
    pairs("LogGroup.Arn", "logs:CreateLogStream", "logs:PutLogEvents")
    | pairs("Unanswered.Arn", "sqs:SendMessage")
    | pairs("Requests.Arn", "sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes")
)
#: What Lambda, SQS and DynamoDB do with either role, if the parameters name a key or a network.
# https://docs.aws.amazon.com/lambda/latest/dg/configuration-vpc.html
DECRYPT, ENCRYPT = pairs("key", "kms:Decrypt"), pairs("key", "kms:GenerateDataKey")
SEE_NETWORK = pairs("*", "ec2:DescribeNetworkInterfaces", "ec2:DescribeSubnets")
MAKE_NETWORK = pairs("*/*", "ec2:CreateNetworkInterface", "ec2:DeleteNetworkInterface")
MAKE_NETWORK |= pairs("*/*", "ec2:AssignPrivateIpAddresses", "ec2:UnassignPrivateIpAddresses")
NETWORK = SEE_NETWORK | MAKE_NETWORK
#: Calls that only the watch makes, in the same modules; and one that both make.
WATCHS_OWN = pairs("/usageplans/plan/keys", "apigateway:GET") | pairs("Ledger.Arn", "dynamodb:Scan")
STACKS = pairs("stack/*/*", "cloudformation:DescribeStacks")


def test_the_policy_allows_the_codes_calls_and_no_more() -> None:
    """API Gateway's actions are its HTTP verbs and paths, which botocore's model knows."""
    calls = {*calls_of_the_code()} | STACKS
    assert calls >= WATCHS_OWN
    own = calls - WATCHS_OWN | LAMBDA_ITSELF
    assert granted("Role", UsagePlanId="plan") == own
    assert granted("Role", **GATED) == own | DECRYPT | ENCRYPT | NETWORK
    former = granted("Role", UsagePlanId="plan", ExistingLedger="former")
    assert former == {(action, place.replace("Ledger.Arn", "table/former")) for action, place in own}


def test_the_watch_has_a_role_of_its_own_which_changes_nothing_and_queues_only_where_it_repairs() -> None:
    reading = WATCHS_OWN | STACKS | pairs("WatchLogGroup.Arn", "logs:CreateLogStream", "logs:PutLogEvents")
    repair = pairs("Requests.Arn", "sqs:SendMessage")
    assert granted("WatchRole", UsagePlanId="plan") == reading
    assert granted("WatchRole", UsagePlanId="plan", WatchRepairs="true") == reading | repair
    assert granted("WatchRole", **GATED) == reading | NETWORK | DECRYPT
    everything = reading | NETWORK | DECRYPT | ENCRYPT | repair
    assert granted("WatchRole", **GATED, WatchRepairs="true") == everything
    assert granted("WatchRole", ExistingLedger="former") >= pairs("table/former", "dynamodb:Scan")


def test_no_action_is_a_wildcard_and_none_touches_api_keys_themselves() -> None:
    for role in ("Role", "WatchRole"):
        pairs = granted(role, **GATED, WatchRepairs="true")
        assert not [pair for pair in pairs if "*" in pair[0] or "/apikeys" in pair[1]]
        assert {pair for pair in pairs if pair[1] == "*"} == SEE_NETWORK


# --- A key and a network ---


def test_without_a_key_and_a_network_nothing_of_either_is_there() -> None:
    """Who sets neither parameter pays for neither, and gets what a template without them makes."""
    template = rendered()
    assert not re.search(r"kms|ec2|vpc|subnet|securitygroup", json.dumps(template), re.IGNORECASE)
    assert Counter(it["Type"] for it in template.values()) == {
        "AWS::CloudWatch::Alarm": 8,  # $0.10 each
        "AWS::DynamoDB::Table": 1,
        "AWS::IAM::Role": 2,
        "AWS::Lambda::EventInvokeConfig": 2,
        "AWS::Lambda::EventSourceMapping": 1,
        "AWS::Lambda::Function": 2,
        "AWS::Logs::LogGroup": 2,
        "AWS::SQS::Queue": 3,
        "AWS::SSM::Parameter": 1,
    }


def test_the_key_encrypts_all_that_is_stored() -> None:
    template = rendered(KmsKeyArn="key")
    keys = {
        name: found
        for name, it in template.items()
        if (found := re.findall(r'"K\w*Key\w*": "(\w+)"', json.dumps(it), re.IGNORECASE))
    }
    stored = ("Ledger", *QUEUES, "LogGroup", "WatchLogGroup", "UsagePlanKeyFunction", "WatchFunction")
    assert keys == {name: ["key"] for name in stored}


def test_both_functions_run_in_the_subnets_and_cannot_themselves_touch_the_network() -> None:
    template = rendered(SubnetIds="subnet-1,subnet-2", SecurityGroupIds="sg-1")
    for name, role in (("UsagePlanKeyFunction", "Role"), ("WatchFunction", "WatchRole")):
        function = template[name]["Properties"]
        assert function["VpcConfig"] == {"SubnetIds": ["subnet-1", "subnet-2"], "SecurityGroupIds": ["sg-1"]}
        (denied,) = (it for it in statements(template[role]) if it["Effect"] == "Deny")
        assert (denied["Action"], denied["Resource"]) == ("ec2:*", "*")
        arn = denied["Condition"]["ArnEquals"]["lambda:SourceFunctionArn"]
        assert arn.split(":", 5)[5] == f"function:{function['FunctionName']}"


# --- Settings ---

#: By a stack's parameters, what is made of the template: `X` is a reference to X, `X.Y` an attribute of it.
SETTINGS = """
Dashboard=true:
  Outputs.FunctionArn: {Value: UsagePlanKeyFunction.Arn, Export: {Name: stack-FunctionArn}}
  Outputs.WatchFunctionName.Value: WatchFunction
  Outputs.LedgerTable.Value: Ledger
  Outputs.LogGroup.Value: LogGroup
  Outputs.RequestsQueueName.Value: Requests.QueueName
  Outputs.RequestsQueueUrl.Value: Requests
  Outputs.UndeliveredQueueName.Value: Undelivered.QueueName
  Outputs.UndeliveredQueueUrl.Value: Undelivered
  Outputs.UnansweredQueueName.Value: Unanswered.QueueName
  Outputs.UnansweredQueueUrl.Value: Unanswered
  Ledger.TableName: stack-ledger # A new name would be an empty ledger.
  Ledger.DeletionPolicy: RetainExceptOnCreate # It outlives its stack.
  Ledger.UpdateReplacePolicy: Retain
  Ledger.KeySchema: [{AttributeName: pk, KeyType: HASH}]
  Ledger.AttributeDefinitions: [{AttributeName: pk, AttributeType: S}]
  Ledger.TimeToLiveSpecification: {AttributeName: expires, Enabled: true}
  Ledger.PointInTimeRecoverySpecification: {PointInTimeRecoveryEnabled: true}
  Ledger.BillingMode: PAY_PER_REQUEST
  Requests.FifoQueue: true
  Requests.DeduplicationScope: messageGroup
  Requests.FifoThroughputLimit: perMessageGroupId
  Requests.RedrivePolicy.deadLetterTargetArn: Undelivered.Arn
  Requests.MessageRetentionPeriod: 1209600
  Requests.SqsManagedSseEnabled: true # SQS's own key costs nothing, nor does DynamoDB's own.
  Undelivered.FifoQueue: true # because Requests is one
  Undelivered.MessageRetentionPeriod: 1209600
  Undelivered.SqsManagedSseEnabled: true
  Unanswered.FifoQueue: null # A destination cannot be one.
  Unanswered.MessageRetentionPeriod: 1209600
  Unanswered.SqsManagedSseEnabled: true
  FunctionArnParameter.Name: /usage-plan-key/function-arn # No stack or region is in it.
  FunctionArnParameter.Value: UsagePlanKeyFunction.Arn
  UsagePlanKeyFunction.FunctionName: stack # CloudFormation supports no change of a ServiceToken.
  UsagePlanKeyFunction.Role: Role.Arn
  UsagePlanKeyFunction.LoggingConfig: {LogGroup: LogGroup}
  UsagePlanKeyFunction.ReservedConcurrentExecutions: null
  UsagePlanKeyFunctionRequests.EventSourceArn: Requests.Arn
  UsagePlanKeyFunctionRequests.FunctionName: UsagePlanKeyFunction
  UsagePlanKeyFunctionRequests.ScalingConfig: {MaximumConcurrency: 2}
  UsagePlanKeyFunctionRequests.FunctionResponseTypes: [ReportBatchItemFailures]
  UsagePlanKeyFunctionEventInvokeConfig.MaximumRetryAttempts: 2
  UsagePlanKeyFunctionEventInvokeConfig.DestinationConfig.OnFailure.Destination: Unanswered.Arn
  UsagePlanKeyFunction.Environment.Variables: {LEDGER_TABLE: Ledger, RESPONSE_URL_HOST: ""}
  WatchFunction.Environment.Variables: {LEDGER_TABLE: Ledger, QUEUE_URL: ""}
  WatchFunction.FunctionName: stack-watch
  WatchFunction.Role: WatchRole.Arn
  WatchFunction.LoggingConfig: {LogGroup: WatchLogGroup}
  WatchFunction.ReservedConcurrentExecutions: null
  WatchFunction.Timeout: 900
  WatchFunctionEventInvokeConfig.MaximumRetryAttempts: 0
  Role.PermissionsBoundary: null
  Role.AssumeRolePolicyDocument.Statement: &lambda
    - {Effect: Allow, Principal: {Service: lambda.amazonaws.com}, Action: "sts:AssumeRole"}
  WatchRole.AssumeRolePolicyDocument.Statement: *lambda
  LogGroup: {LogGroupName: /aws/lambda/stack, RetentionInDays: 90}
  WatchLogGroup: {LogGroupName: /aws/lambda/stack-watch, RetentionInDays: 90}
  OperationsDashboard.DashboardName: stack-region # An account has one of a name in all regions.
FunctionName=own Dashboard=true: # A StackSet names its stack anew when it makes it again.
  UsagePlanKeyFunction.FunctionName: own
  LogGroup.LogGroupName: /aws/lambda/own
  Ledger.TableName: own-ledger
  OperationsDashboard.DashboardName: own-region
  WatchFunction.FunctionName: own-watch
  WatchLogGroup.LogGroupName: /aws/lambda/own-watch
WatchSchedule=rate(2days):
  WatchRule: {ScheduleExpression: rate(2days), Targets: [{Id: Watch, Arn: WatchFunction.Arn}]}
  WatchPermission:
    FunctionName: WatchFunction
    Action: lambda:InvokeFunction
    Principal: events.amazonaws.com
    SourceArn: WatchRule.Arn
ResponseHost=host ApiGatewayEndpoint=url LogLevel=DEBUG ExistingLedger=former WatchRepairs=true:
  UsagePlanKeyFunction.Environment.Variables:
    LEDGER_TABLE: former
    QUEUE_URL: Requests
    UNDELIVERED_URL: Undelivered
    RESPONSE_URL_SUFFIX: AWS::URLSuffix
    RESPONSE_URL_HOST: host
    POWERTOOLS_SERVICE_NAME: usage-plan-key
    POWERTOOLS_LOG_LEVEL: DEBUG
    AWS_ENDPOINT_URL_API_GATEWAY: url
  WatchFunction.Environment.Variables:
    LEDGER_TABLE: former
    QUEUE_URL: Requests
    POWERTOOLS_SERVICE_NAME: usage-plan-key
    POWERTOOLS_LOG_LEVEL: DEBUG
    AWS_ENDPOINT_URL_API_GATEWAY: url
  Outputs.LedgerTable.Value: former
KmsKeyArn=key:
  Requests.SqsManagedSseEnabled: false # SQS takes one of the two.
  Undelivered.SqsManagedSseEnabled: false
  Unanswered.SqsManagedSseEnabled: false
  Ledger.SSESpecification: {SSEEnabled: true, SSEType: KMS, KMSMasterKeyId: key}
PermissionsBoundaryArn=bound:
  Role.PermissionsBoundary: bound
  WatchRole.PermissionsBoundary: bound
SubnetIds=subnet-1: # Half a network must not deploy outside every VPC: Lambda takes no empty id.
  UsagePlanKeyFunction.VpcConfig: {SubnetIds: [subnet-1], SecurityGroupIds: [""]}
SecurityGroupIds=sg-1:
  WatchFunction.VpcConfig: {SubnetIds: [""], SecurityGroupIds: [sg-1]}
"""


@pytest.mark.parametrize(
    ("given", "path", "expected"),
    [(given, *each) for given, rows in yaml_parse(SETTINGS).items() for each in rows.items()],
)
def test_a_stack_has_it(given: str, path: str, expected: object) -> None:
    parameters = dict(each.split("=") for each in given.split())
    name, *parts = path.split(".")
    resources = rendered(**parameters) | {"Outputs": cleared(TEMPLATE["Outputs"], **parameters)}
    value = resources[name] | resources[name].get("Properties", {})
    for part in parts:
        value = value.get(part)
    value = plain(value)
    if isinstance(value, dict) and isinstance(expected, dict):
        value = {each: it for each, it in value.items() if each in expected}
    assert value == expected


def test_the_queues_fit_the_code() -> None:
    """A message that fits into one queue fits into the next."""
    assert REQUESTS["VisibilityTimeout"] == queue.VISIBILITY
    sizes = [RESOURCES[name]["Properties"]["MaximumMessageSize"] for name in QUEUES]
    assert sizes == [queue.LONGEST_MESSAGE] * 3


@pytest.mark.parametrize(
    ("parameter", "change"),
    [
        ("FunctionArnParameterName=", {"FunctionArnParameter"}),
        ("ExistingLedger=former", {"Ledger"}),
        ("Dashboard=true", {"OperationsDashboard"}),
    ],
)
def test_a_parameter_makes_a_resource_or_takes_it_away(parameter: str, change: set[str]) -> None:
    name, _, value = parameter.partition("=")
    assert rendered().keys() ^ rendered(**{name: value}).keys() == change


def test_the_watch_runs_by_itself_only_on_a_schedule_and_no_run_is_repeated() -> None:
    """A failed run is no reason for another 900 calls."""
    made = {"WatchRule", "WatchPermission", "DriftAlarm", "WatchErrorsAlarm"}
    assert rendered(WatchSchedule="rate(1 day)").keys() - rendered().keys() == made
    assert WATCH["EventInvokeConfig"] == {"MaximumRetryAttempts": 0}


AGE, ERRORS, WAITING = ALARMS["RequestsAlarm"], ALARMS["ErrorsAlarm"], ALARMS["WaitingAlarm"]
WATCH_ERRORS = ALARMS["WatchErrorsAlarm"]
HIDDEN, RECEIVES = REQUESTS["VisibilityTimeout"], REQUESTS["RedrivePolicy"]["maxReceiveCount"]
OTHERS_OF_BATCH = FUNCTION["Events"]["Requests"]["Properties"]["BatchSize"] - 1
TURN = TIMEOUT - CLOSING_TIME - retry.BEFORE_CALL
TRIED = FUNCTION["EventInvokeConfig"]["MaximumEventAgeInSeconds"]
HANGING = retry.CONNECT_TIMEOUT + retry.READ_TIMEOUT + retry.BUSY_PAUSE[1]
#: Seconds: a quarter of an hour, less the minute that CloudWatch has to take a datapoint in.
QUARTER = 15 * 60 - 60
#: Pairs of times of which the first fits into the second.
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-available-cloudwatch-metrics.html
TIMES = {
    "a call that hangs, a pause, and a second for each other request": (HANGING + OTHERS_OF_BATCH, TURN),
    "no two workers have a message at a time": (TIMEOUT + 1, HIDDEN),
    "a crash costs its batch two time-outs at most": (HIDDEN, 2 * TIMEOUT),
    "an hour of turns is far below the receives": (10 * LONGEST_SERVICE_TIMEOUT / TURN, RECEIVES),
    "what always fails is put aside before it expires": (
        4 * RECEIVES * HIDDEN,  # even if Lambda comes back four times as seldom as it may
        REQUESTS["MessageRetentionPeriod"],
    ),
    "an unserved queue is heard of within a quarter of an hour": (
        AGE["Threshold"] + (AGE["EvaluationPeriods"] + 1) * AGE["Period"],
        QUARTER,
    ),
    "an error too": (TIMEOUT + ERRORS["EvaluationPeriods"] * ERRORS["Period"], QUARTER),
    # It goes back at least every 20 s, and each time the function emits its age.
    "and a request that waits": (WAITING["Threshold"] + 20 + WAITING["Period"], QUARTER),
    "the age, before the third receive, which it leaves out": (AGE["Threshold"] + AGE["Period"], 2 * HIDDEN),
    # CloudWatch counts an error at the invocation's beginning, and learns of it at the function's end.
    "an error counts for the period before": (TIMEOUT, (ERRORS["EvaluationPeriods"] - 1) * ERRORS["Period"]),
    "and the watch's": (WATCH["Timeout"], (WATCH_ERRORS["EvaluationPeriods"] - 1) * WATCH_ERRORS["Period"]),
    "Lambda tries for longer than an invocation": (TIMEOUT, TRIED),
    "and as long as CloudFormation waits": (TRIED, 3600),
}


@pytest.mark.parametrize("which", TIMES)
def test_a_time_fits_into_another(which: str) -> None:
    time, room = TIMES[which]
    assert time <= room


# --- Alarms and the dashboard ---

#: Metric, of what, statistic, threshold, seconds and number of periods. A late log line counts for the
#: period before, so an alarm on the function's own metrics looks at two.
SET_OFF = """
RequestsAlarm: [AWS/SQS, ApproximateAgeOfOldestMessage, Requests.QueueName, Maximum, 300, 60, 1]
WaitingAlarm: [UsagePlanKey, WaitedSeconds, usage-plan-key, Maximum, 300, 300, 2]
ErrorsAlarm: [AWS/Lambda, Errors, UsagePlanKeyFunction, Sum, 0, 300, 2]
UndeliveredAlarm: [AWS/SQS, ApproximateNumberOfMessagesVisible, Undelivered.QueueName, Maximum, 0, 300, 1]
UnansweredAlarm: [AWS/SQS, ApproximateNumberOfMessagesVisible, Unanswered.QueueName, Maximum, 0, 300, 1]
AnswerRefusedAlarm: [UsagePlanKey, AnswerRefused, usage-plan-key, Sum, 0, 300, 2]
AnswerUndeliveredAlarm: [UsagePlanKey, AnswerUndelivered, usage-plan-key, Sum, 0, 300, 2]
LostAlarm: [UsagePlanKey, Lost, usage-plan-key, Sum, 0, 300, 2]
DriftAlarm: [UsagePlanKey, Drift, usage-plan-key, Maximum, 0, 300, 1]
WatchErrorsAlarm: [AWS/Lambda, Errors, WatchFunction, Sum, 0, 300, 4]
"""
KINDS = {"AWS/SQS": "QueueName", "AWS/Lambda": "FunctionName", NAMESPACE: "service"}


@pytest.mark.parametrize("name", ALARMS)
def test_an_alarm_goes_to_the_topic_and_silence_is_none(name: str) -> None:
    """The silence between two runs of the watch leaves Drift as it is."""
    alarm = plain(cleared(ALARMS[name], AlarmTopicArn="topic"))
    namespace, metric, of, statistic, threshold, seconds, periods = yaml_parse(SET_OFF)[name]
    assert alarm.pop("AlarmDescription")
    assert alarm.pop("DatapointsToAlarm", 1) == 1
    assert alarm == {
        "Namespace": namespace,
        "MetricName": metric,
        "Dimensions": [{"Name": KINDS[namespace], "Value": of}],
        "Statistic": statistic,
        "Period": seconds,
        "EvaluationPeriods": periods,
        "Threshold": threshold,
        "ComparisonOperator": "GreaterThanThreshold",
        "TreatMissingData": "ignore" if name == "DriftAlarm" else "notBreaching",
        "AlarmActions": ["topic"],
    }
    assert "AlarmActions" not in cleared(ALARMS[name])
    assert namespace != NAMESPACE or metric in emitted()


def test_the_dashboard_shows_every_metric_that_is_emitted_and_no_other() -> None:
    """And the queues' and the function's, in its own region. `.` repeats the value above it.

    https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/CloudWatch-Dashboard-Body-Structure.html
    """
    shown: dict[str, set[str]] = {}
    for widget in dashboard()["widgets"]:
        assert widget["properties"]["region"] == "region"
        rows = widget["properties"]["metrics"]
        for row in rows:
            if isinstance(row[1], str):  # else another statistic of the metric above
                shown.setdefault(" ".join([rows[0][0], *rows[0][2:4]]), set()).add(row[1])
    queued = ("AgeOfOldestMessage", "NumberOfMessagesVisible", "NumberOfMessagesNotVisible")
    assert shown == {
        f"{NAMESPACE} service {SERVICE}": emitted(),
        "AWS/SQS QueueName Requests.QueueName": {f"Approximate{name}" for name in queued},
        "AWS/SQS QueueName Undelivered.QueueName": {f"Approximate{queued[1]}", "Unanswered.QueueName"},
        "AWS/Lambda FunctionName UsagePlanKeyFunction": {"Invocations", "Errors", "Throttles", "Duration"},
    }


def test_no_widget_of_the_dashboard_covers_another() -> None:
    places = [
        (x, y)
        for widget in dashboard()["widgets"]
        for x in range(widget["x"], widget["x"] + widget["width"])
        for y in range(widget["y"], widget["y"] + widget["height"])
    ]
    assert len({*places}) == len(places)
    assert max(x for x, _ in places) < 24, "a dashboard's columns"


# --- Parameters, variables, and what tools read ---

#: Values that fit, and one that does not; # stands for an account, and a58 for so many letters.
VALUES = """
UsagePlanId: ["*", a1_b-2, a b]
FunctionName: [a58, a59]
WatchSchedule: [rate(1 day), "cron(0 4 * * ? *)", daily]
FunctionArnParameterName: [/team/usage-plan-key, usage-plan-key]
KmsKeyArn: ["arn:aws-us-gov:kms:us-gov-west-1:#:key/1234abcd", "arn:aws:kms:eu-central-1:#:alias/mine"]
SubnetIds: [subnet-0a1b2c3d, sg-0a1b2c3d]
SecurityGroupIds: [sg-0a1b2c3d, default]
PermissionsBoundaryArn: ["arn:aws-cn:iam::#:policy/a/b", "arn:aws:iam::aws:policy/a", "arn:aws:iam::#:role/b"]
AlarmTopicArn: ["arn:aws-us-gov:sns:us-gov-west-1:#:alarms", "arn:aws:sqs:eu-central-1:#:alarms"]
ExistingLedger: [usage-plan-key-ledger, a b]
ApiGatewayEndpoint: ["http://localhost:4566", "localhost:4566"]
ResponseHost: ["localhost:4566", "https://localhost"]
"""
SHORT = {"a58": "a" * 58, "a59": "a" * 59}
#: Where few values fit: the default, and others.
CHOICES = """
WatchRepairs: ["false", "true"]
Dashboard: ["false", "true"]
LogLevel: [INFO, DEBUG, WARNING, ERROR]
LogRetentionInDays: [90, 1, 365, 3653]
Architecture: [x86_64, arm64]
"""


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_takes_only_values_that_fit(name: str) -> None:
    if name in (choices := yaml_parse(CHOICES)):
        assert PARAMETERS[name]["Default"] == choices[name][0]
        assert {*choices[name]} <= {*PARAMETERS[name]["AllowedValues"]}
        return
    *fitting, unfit = yaml_parse(VALUES)[name]
    pattern, default = PARAMETERS[name]["AllowedPattern"], PARAMETERS[name]["Default"]
    found = [
        value
        for value in (default, *fitting, unfit, "no good")
        if re.fullmatch(pattern, SHORT.get(value, value.replace("#", f"{1:012}")))
    ]
    assert found == [default, *fitting]


def test_the_console_shows_each_parameter_once_with_a_label_and_a_description() -> None:
    shown = TEMPLATE["Metadata"]["AWS::CloudFormation::Interface"]
    listed_ = [name for group in shown["ParameterGroups"] for name in group["Parameters"]]
    assert sorted(listed_) == sorted(PARAMETERS) == sorted(shown["ParameterLabels"])
    assert {parameter["Description"][-1] for parameter in PARAMETERS.values()} == {"."}


def test_every_variable_that_the_code_reads_is_set_and_the_watch_has_no_other() -> None:
    """The project's own ones; the others are Lambda's, sam's, boto3's and Powertools'."""
    source = "".join(path.read_text() for path in HANDLER.glob("*.py"))
    read, given = {*re.findall(r'environ(?:\.get\(|\[)"(\w+)"', source)}, FUNCTION["Environment"]["Variables"]
    own, others = ({name for name in names if not name.startswith(OTHERS)} for names in (read, given))
    assert own == others
    assert WATCH["Environment"]["Variables"].keys() <= given.keys()


def test_sam_needs_no_flags() -> None:
    """Under sam local no variable names a table, or the function would look for one."""
    config = tomllib.loads((ROOT / "samconfig.toml").read_text())["default"]
    deploy, invoke = config["deploy"]["parameters"], config["local_invoke"]["parameters"]
    assert config["global"]["parameters"]["stack_name"] == "usage-plan-key"
    assert (deploy["resolve_s3"], deploy["capabilities"]) == (True, "CAPABILITY_IAM")
    assert "region" not in json.dumps(config)
    overrides = json.loads((ROOT / invoke["env_vars"]).read_text())["UsagePlanKeyFunction"]
    assert overrides == {"LEDGER_TABLE": "", "QUEUE_URL": ""}
    assert set(overrides) <= set(FUNCTION["Environment"]["Variables"]), "sam overrides none but these"


def test_sam_finds_a_build_step_for_each_function() -> None:
    functions = {name: it for name, it in RESOURCES.items() if it["Type"] == "AWS::Serverless::Function"}
    assert {it["Metadata"]["BuildMethod"] for it in functions.values()} == {"makefile"}
    assert {it["Properties"]["CodeUri"] for it in functions.values()} == {"handler/"}
    steps = [f"build-{name}" for name in functions]
    make = ["make", "-C", str(ROOT / "handler"), "-n", *steps, "ARTIFACTS_DIR=x"]
    subprocess.run(make, check=True, capture_output=True)


def test_every_check_that_an_organisations_gate_skips_has_its_reason() -> None:
    """`make audit` runs the gate, and fails on a finding that is not skipped here."""
    skipped = {
        (name, skip["id"]): skip["comment"]
        for name, it in RESOURCES.items()
        for skip in it.get("Metadata", {}).get("checkov", {}).get("skip", [])
    }
    assert skipped.keys() == {
        ("UsagePlanKeyFunction", "CKV_AWS_115"),  # reserved concurrency
        ("UsagePlanKeyFunction", "CKV_AWS_116"),  # a dead-letter queue
        ("WatchFunction", "CKV_AWS_115"),
        ("WatchFunction", "CKV_AWS_116"),
        ("Ledger", "CKV_AWS_119"),  # the table's key
    }
    assert [name for name, reason in skipped.items() if len(reason.split()) < 10] == []
    assert transformed()["Resources"]["UsagePlanKeyFunction"]["Metadata"]["checkov"], "SAM keeps it"


@pytest.mark.parametrize(
    "file", ["template.yaml", *sorted(f"examples/{it.name}" for it in ROOT.glob("examples/*.yaml"))]
)
def test_every_arn_fits_every_partition_and_names_no_account(file: str) -> None:
    text = (ROOT / file).read_text()
    assert not re.search(r"\barn:(?!\$\{AWS::Partition\}:)|\b\d{12}\b", text)
    principals = re.sub(r"\b(lambda|events)\.amazonaws\.com", "", text)
    assert "amazonaws.com" not in principals, "a service principal is the same everywhere"


# --- Reading the template ---


def resolved(value: Any, **parameters: str) -> Any:
    """Resolve a value as CloudFormation does with these parameters; a resource stays its name."""

    def of(name: str) -> Any:
        pseudo = {"AWS::StackName": "stack", "AWS::Region": "region"}
        return parameters.get(name, PARAMETERS.get(name, {}).get("Default", pseudo.get(name)))

    match value:
        case {"Ref": name} if of(name) is not None:
            listed_ = PARAMETERS.get(name, {}).get("Type") == "CommaDelimitedList"
            return of(name).split(",") if listed_ else of(name)
        case {"Fn::Join": [separator, parts]}:
            return separator.join(resolved(part, **parameters) for part in resolved(parts, **parameters))
        case {"Fn::If": [condition, yes, no]}:
            return resolved(yes if holds(condition, **parameters) else no, **parameters)
        case {"Fn::Sub": str(text)}:
            return resolved({"Fn::Sub": [text, {}]}, **parameters)
        case {"Fn::Sub": [text, names]}:
            inner = {name: resolved(it, **parameters) for name, it in names.items()}
            return re.sub(
                r"\$\{(.+?)\}", lambda hit: inner.get(hit[1]) or of(hit[1]) or hit[1].replace("::", "-"), text
            )
    return value


def holds(condition: Any, **parameters: str) -> bool:
    """Tell whether a condition holds in a stack with these parameters."""
    match TEMPLATE["Conditions"][condition] if isinstance(condition, str) else condition:
        case {"Fn::Equals": [one, other]}:
            return bool(resolved(one, **parameters) == resolved(other, **parameters))
        case {"Fn::Not": [inner]}:
            return not holds(inner, **parameters)
    raise NotImplementedError(condition)


def rendered(**parameters: str) -> Any:
    """Give the resources as CloudFormation makes them with these parameters, SAM's included."""
    return cleared(transformed()["Resources"], **parameters)


def cleared(value: Any, **parameters: str) -> Any:
    """Resolve a value in all its depth; leave out what has no value, and resources of a false condition."""
    value = resolved(value, **parameters)
    if value == {"Ref": "AWS::NoValue"}:
        return None
    if isinstance(value, dict):
        inner = {name: cleared(it, **parameters) for name, it in value.items() if name != "Metadata"}
        there = holds(value["Condition"], **parameters) if isinstance(value.get("Condition"), str) else True
        return {name: it for name, it in inner.items() if it is not None} if there else None
    if isinstance(value, list):
        return [it for it in (cleared(each, **parameters) for each in value) if it is not None]
    return value


def plain(value: Any) -> Any:
    """Write a reference as the resource's name, and an attribute as `Name.Attribute`."""
    match value:
        case {"Ref": name}:
            return name
        case {"Fn::GetAtt": [name, attribute]}:
            return f"{name}.{attribute}"
        case dict():
            return {name: plain(it) for name, it in value.items()}
        case list():
            return [plain(it) for it in value]
    return value


@cache
def transformed() -> Any:
    """Transform the template with SAM."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        template = copy.deepcopy(TEMPLATE)
        for resource in template["Resources"].values():
            if resource["Type"] == "AWS::Serverless::Function":
                resource["Properties"]["CodeUri"] = {"Bucket": "bucket", "Key": "key"}
        return transform(template, {}, ManagedPolicyLoader(None))


@cache
def emitted() -> set[str]:
    """Name all metrics that metrics.py can write: call each of its functions, in each way."""
    bodies = [{"Status": "SUCCESS", "Data": {"Outcome": outcome}} for outcome in Outcome]
    bodies += [{"Status": "SUCCESS"}, {"Status": "FAILED"}]
    calls: list[Callable[[], None]] = [
        partial(metrics.response, json.dumps(body).encode(), 1, 1.0) for body in bodies
    ]
    calls += [
        partial(it, *[1] * len(inspect.signature(it).parameters))
        for name, it in vars(metrics).items()
        if inspect.isfunction(it) and it.__module__ == metrics.__name__
        if it is not metrics.response and not name.startswith("_")
    ]
    with redirect_stdout(StringIO()) as out:
        for call in calls:
            call()
    lines = [json.loads(line)["_aws"]["CloudWatchMetrics"][0] for line in out.getvalue().splitlines()]
    return {metric["Name"] for line in lines for metric in line["Metrics"]}


def dashboard() -> Any:
    """The dashboard's body, in which a resource or its attribute stays a name."""
    return json.loads(resolved(RESOURCES["OperationsDashboard"]["Properties"]["DashboardBody"]))


def statements(role: Any) -> list[dict[str, Any]]:
    documents = [policy["PolicyDocument"] for policy in role["Properties"]["Policies"]]
    assert {document["Version"] for document in documents} == {"2012-10-17"}, "IAM's default is an older one"
    return [statement for document in documents for statement in document["Statement"]]


def granted(role: str, **parameters: str) -> set[tuple[str, str]]:
    """Pairs of an action and a resource: a path, an attribute, or what follows an ARN's account."""
    return {
        (action, plain(resource).split(":", 5)[-1])
        for statement in statements(cleared(RESOURCES[role], **parameters))
        if statement["Effect"] == "Allow"
        for action in listed(statement["Action"])
        for resource in listed(statement["Resource"])
    }


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def calls_of_the_code() -> Iterator[tuple[str, str]]:
    """The calls of the modules, as IAM names them: a transaction counts as its parts."""
    for _, operation in called("apigateway"):
        path = operation.http["requestUri"].format(usageplanId="plan", keyId="*")
        yield f"apigateway:{operation.http['method']}", path
    for name, operation in called("dynamodb"):
        if name.startswith("transact_"):
            # https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/transaction-apis-iam.html
            parts = {"ConditionCheck", "Delete", "Get", "Put", "Update"}.intersection(keys_in("ledger.py"))
            yield from pairs("Ledger.Arn", *(f"dynamodb:{part}Item" for part in parts))
        else:
            yield f"dynamodb:{operation.name}", "Ledger.Arn"
    for _, operation in called("sqs"):
        # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-api-permissions-reference.html
        yield f"sqs:{operation.name.removesuffix('Batch')}", "Requests.Arn"
    yield "sqs:SendMessage", "Undelivered.Arn"


def keys_in(file: str) -> list[str]:
    """The keys of the dicts that a module writes out."""
    dicts = [node for node in ast.walk(ast.parse((HANDLER / file).read_text())) if isinstance(node, ast.Dict)]
    return [str(key.value) for node in dicts for key in node.keys if isinstance(key, ast.Constant)]


def called(service: str) -> Iterator[tuple[str, Any]]:
    """The methods of a module's client, called or handed on, with botocore's model of each."""
    client = boto3.client(service, region_name="us-east-1")  # type: ignore[call-overload]  # any of them
    model = client.meta.service_model
    for node in ast.walk(ast.parse((HANDLER / SERVICES[service]).read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self._client", "client"):
            if operation := client.meta.method_to_api_mapping.get(node.attr):
                yield node.attr, model.operation_model(operation)
        elif isinstance(node, ast.Constant) and node.value in model.operation_names:  # called by this name
            yield str(node.value), model.operation_model(node.value)
