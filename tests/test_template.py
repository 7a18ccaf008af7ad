"""template.yaml and samconfig.toml against the code that they deploy; test_supply.py has the artifact."""

import inspect
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import pytest
from botocore import xform_name
from botocore.session import get_session
from ministack.services.cloudformation import engine
from samtranslator.yaml_helper import yaml_parse

from emulators.ministack import packaged
from usage_plan_key import metrics, queue, retry
from usage_plan_key.metrics import NAMESPACE
from usage_plan_key.model import Outcome
from usage_plan_key.provider import CLOSING_TIME
from usage_plan_key.request import LONGEST_SERVICE_TIMEOUT

from .conftest import ROOT

HANDLER = ROOT / "handler" / "usage_plan_key"
TEMPLATE: dict[str, Any] = yaml_parse((ROOT / "template.yaml").read_text())
RESOURCES, PARAMETERS = TEMPLATE["Resources"], TEMPLATE["Parameters"]
FUNCTION = RESOURCES["UsagePlanKeyFunction"]["Properties"]
WATCH = RESOURCES["WatchFunction"]["Properties"]
TIMEOUT = TEMPLATE["Globals"]["Function"]["Timeout"]
REQUESTS = RESOURCES["Requests"]["Properties"]
ALARMS = {name: it["Properties"] for name, it in RESOURCES.items() if it["Type"] == "AWS::CloudWatch::Alarm"}
QUEUES = ("Requests", "Undelivered", "Unanswered")
ACCOUNT = f"{1:012}"
KEY, TOPIC = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/1", f"arn:aws:sns:us-east-1:{ACCOUNT}:alarms"
#: A stack with all that can be asked for.
GATED = {"UsagePlanId": "plan", "KmsKeyArn": KEY, "SubnetIds": "subnet-1", "SecurityGroupIds": "sg-1"}
#: The services that the function calls, and the module that calls each.
SERVICES = {
    "apigateway": "api_gateway.py",
    "cloudformation": "cloudformation.py",
    "dynamodb": "ledger.py",
    "sqs": "queue.py",
}

# --- What CloudFormation makes of the template ---


def rendered(**given: str) -> Any:
    """Make the resources and Outputs as MiniStack's CloudFormation does with these parameters.

    It refuses a parameter that does not fit. A resource stays its name, and its attribute `Name.Attribute`.
    """
    provided = [{"Key": name, "Value": value} for name, value in given.items()]
    parameters = engine._resolve_parameters(TEMPLATE, provided)
    resources = transformed()["Resources"]
    there = {it: {"Attributes": {"Arn": f"{it}.Arn", "QueueName": f"{it}.QueueName"}} for it in resources}
    place = {"resources": there, "mappings": {}, "stack_name": "stack", "stack_id": ""}
    solved = partial(engine._resolve_refs, params=parameters, **place)
    conditions = {name: solved(it, conditions={}) for name, it in TEMPLATE["Conditions"].items()}
    made = {
        name: solved({part: inner for part, inner in it.items() if part != "Metadata"}, conditions=conditions)
        for name, it in resources.items()
        if conditions.get(it.get("Condition"), True)
    }
    return made | {"Outputs": solved(TEMPLATE["Outputs"], conditions=conditions)}


@cache
def transformed() -> Any:
    return engine._apply_transforms(packaged(ROOT / "template.yaml", {"Bucket": "bucket", "Key": "key"}))


# --- Permissions, a key and a network ---


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
DECRYPT, ENCRYPT = pairs("key/1", "kms:Decrypt"), pairs("key/1", "kms:GenerateDataKey")
NETWORK = pairs("*", "ec2:DescribeNetworkInterfaces", "ec2:DescribeSubnets")
NETWORK |= pairs("*/*", "ec2:CreateNetworkInterface", "ec2:DeleteNetworkInterface")
NETWORK |= pairs("*/*", "ec2:AssignPrivateIpAddresses", "ec2:UnassignPrivateIpAddresses")
#: Calls that only the watch makes, in the same modules; and one that both make.
WATCHS_OWN = pairs("/usageplans/plan/keys", "apigateway:GET") | pairs("Ledger.Arn", "dynamodb:Scan")
STACKS = pairs("stack/*/*", "cloudformation:DescribeStacks")


def statements(role: str, **parameters: str) -> list[dict[str, Any]]:
    policies = rendered(**parameters)[role]["Properties"]["Policies"]
    assert {it["PolicyDocument"]["Version"] for it in policies} == {"2012-10-17"}, "IAM's default is older"
    return [statement for it in policies for statement in it["PolicyDocument"]["Statement"]]


def granted(role: str, **parameters: str) -> set[tuple[str, str]]:
    """Pairs of an action and a resource: a path, an attribute, or what follows an ARN's account."""
    return {
        (action, resource.split(":", 5)[-1])
        for statement in statements(role, **parameters)
        if statement["Effect"] == "Allow"
        for action in listed(statement["Action"])
        for resource in listed(statement["Resource"])
    }


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def called(service: str) -> list[Any]:
    """Model each operation that a module calls, as its client's method or by its name, as botocore has it."""
    model = get_session().get_service_model(service)
    source = (HANDLER / SERVICES[service]).read_text()
    named = [it for it in model.operation_names if re.search(rf'client\.{xform_name(it)}\b|"{it}"', source)]
    return [model.operation_model(name) for name in named]


def calls_of_the_code() -> Iterator[tuple[str, str]]:
    """The calls of the modules, as IAM names them: API Gateway's actions are its HTTP verbs and paths."""
    for call in called("apigateway"):
        path = call.http["requestUri"].format(usageplanId="plan", keyId="*")
        yield f"apigateway:{call.http['method']}", path
    # A transaction counts as its parts.
    # https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/transaction-apis-iam.html
    parts = re.findall(r'"(ConditionCheck|Delete|Get|Put|Update)":', (HANDLER / "ledger.py").read_text())
    yield from pairs("Ledger.Arn", *(f"dynamodb:{part}Item" for part in parts))
    for call in called("dynamodb"):
        if not call.name.startswith("Transact"):
            yield f"dynamodb:{call.name}", "Ledger.Arn"
    # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-api-permissions-reference.html
    for call in called("sqs"):
        yield f"sqs:{call.name.removesuffix('Batch')}", "Requests.Arn"
    yield "sqs:SendMessage", "Undelivered.Arn"


def test_the_policy_allows_the_codes_calls_and_no_more() -> None:
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


def test_without_a_key_and_a_network_nothing_of_either_is_there() -> None:
    assert not re.search(r"kms|ec2|vpc|subnet|securitygroup", json.dumps(rendered()), re.IGNORECASE)


@pytest.mark.parametrize(("name", "role"), [("UsagePlanKeyFunction", "Role"), ("WatchFunction", "WatchRole")])
def test_a_function_in_the_subnets_cannot_itself_touch_the_network(name: str, role: str) -> None:
    """Lambda makes the network's interfaces with its role."""
    function = rendered(**GATED)[name]["Properties"]
    assert function["VpcConfig"] == {"SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}
    (denied,) = (it for it in statements(role, **GATED) if it["Effect"] == "Deny")
    assert (denied["Action"], denied["Resource"]) == ("ec2:*", "*")
    arn = denied["Condition"]["ArnEquals"]["lambda:SourceFunctionArn"]
    assert arn.split(":", 5)[5] == f"function:{function['FunctionName']}"


# --- Settings ---

#: By a stack's parameters, what CloudFormation makes of the template; null where it makes nothing.
SETTINGS = """
UsagePlanId=*:
  Outputs:
    {FunctionArn: {Export: {Name: stack-FunctionArn}}, WatchFunctionName: {Value: WatchFunction},
    UndeliveredQueueName: {Value: Undelivered.QueueName}, UndeliveredQueueUrl: {Value: Undelivered},
    UnansweredQueueName: {Value: Unanswered.QueueName}, UnansweredQueueUrl: {Value: Unanswered},
    RequestsQueueName: {Value: Requests.QueueName}, RequestsQueueUrl: {Value: Requests}}
  Ledger: # It outlives its stack. A new name would be an empty ledger.
    {TableName: stack-ledger, DeletionPolicy: RetainExceptOnCreate, UpdateReplacePolicy: Retain,
    BillingMode: PAY_PER_REQUEST, PointInTimeRecoverySpecification: {PointInTimeRecoveryEnabled: true},
    TimeToLiveSpecification: {AttributeName: expires, Enabled: true}}
  Requests: # SQS's own key costs nothing.
    {FifoQueue: true, DeduplicationScope: messageGroup, FifoThroughputLimit: perMessageGroupId,
    RedrivePolicy: {deadLetterTargetArn: Undelivered.Arn}, MessageRetentionPeriod: 1209600,
    SqsManagedSseEnabled: true}
  Undelivered: {FifoQueue: true, MessageRetentionPeriod: 1209600, SqsManagedSseEnabled: true}
  Unanswered: {FifoQueue: null, MessageRetentionPeriod: 1209600, SqsManagedSseEnabled: true}
  UsagePlanKeyFunction: # CloudFormation supports no change of a ServiceToken.
    {FunctionName: stack, Role: Role.Arn, LoggingConfig: {LogGroup: LogGroup},
    ReservedConcurrentExecutions: null}
  UsagePlanKeyFunctionRequests:
    {EventSourceArn: Requests.Arn, ScalingConfig: {MaximumConcurrency: 2},
    FunctionResponseTypes: [ReportBatchItemFailures]}
  UsagePlanKeyFunctionEventInvokeConfig:
    {MaximumRetryAttempts: 2, DestinationConfig: {OnFailure: {Destination: Unanswered.Arn}}}
  WatchFunction:
    {FunctionName: stack-watch, Role: WatchRole.Arn, LoggingConfig: {LogGroup: WatchLogGroup},
    ReservedConcurrentExecutions: null, Timeout: 900, Environment: {Variables: {QUEUE_URL: ""}}}
  WatchFunctionEventInvokeConfig: {MaximumRetryAttempts: 0} # A failed run is no reason for another 900 calls.
  Role: &role
    AssumeRolePolicyDocument:
      Statement: [{Effect: Allow, Principal: {Service: lambda.amazonaws.com}, Action: "sts:AssumeRole"}]
  WatchRole: *role
  FunctionArnParameter: {Name: /usage-plan-key/function-arn, Value: UsagePlanKeyFunction.Arn}
  <<: {OperationsDashboard: null, WatchRule: null, WatchPermission: null}
  <<: {DriftAlarm: null, WatchErrorsAlarm: null}
FunctionArnParameterName= ExistingLedger=former: {FunctionArnParameter: null, Ledger: null}
FunctionName=own Dashboard=true: # A StackSet names its stack anew when it makes it again.
  UsagePlanKeyFunction: {FunctionName: own}
  LogGroup: {LogGroupName: /aws/lambda/own, RetentionInDays: "90"}
  Ledger: {TableName: own-ledger}
  OperationsDashboard: {DashboardName: own-us-east-1} # An account has one of a name in all regions.
  WatchFunction: {FunctionName: own-watch}
  WatchLogGroup: {LogGroupName: /aws/lambda/own-watch, RetentionInDays: "90"}
WatchSchedule=rate(2days):
  WatchRule: {ScheduleExpression: rate(2days), Targets: [{Id: Watch, Arn: WatchFunction.Arn}]}
  WatchPermission: {FunctionName: WatchFunction, Principal: events.amazonaws.com, SourceArn: WatchRule.Arn}
ResponseHost=host ApiGatewayEndpoint=http://x LogLevel=DEBUG ExistingLedger=former WatchRepairs=true:
  WatchFunction:
    Environment:
      Variables: &both
        {QUEUE_URL: Requests, LEDGER_TABLE: former, POWERTOOLS_SERVICE_NAME: usage-plan-key,
        POWERTOOLS_LOG_LEVEL: DEBUG, AWS_ENDPOINT_URL_API_GATEWAY: http://x}
  UsagePlanKeyFunction:
    Environment:
      Variables:
        {<<: *both, UNDELIVERED_URL: Undelivered, RESPONSE_URL_SUFFIX: amazonaws.com, RESPONSE_URL_HOST: host}
  Outputs: {LedgerTable: {Value: former}}
KmsKeyArn=arn:aws:kms:x:000000000000:key/1: # SQS takes its own key or yours.
  Requests: &queue {SqsManagedSseEnabled: false, KmsMasterKeyId: &key "arn:aws:kms:x:000000000000:key/1"}
  Undelivered: *queue
  Unanswered: *queue
  Ledger: {SSESpecification: {SSEEnabled: true, SSEType: KMS, KMSMasterKeyId: *key}}
  LogGroup: &log {KmsKeyId: *key}
  WatchLogGroup: *log
  UsagePlanKeyFunction: &function {KmsKeyArn: *key}
  WatchFunction: *function
PermissionsBoundaryArn=arn:aws:iam::aws:policy/bound:
  Role: &bound {PermissionsBoundary: "arn:aws:iam::aws:policy/bound"}
  WatchRole: *bound
SubnetIds=subnet-1: # Half a network must not deploy outside every VPC: Lambda takes no empty id.
  UsagePlanKeyFunction: {VpcConfig: {SubnetIds: [subnet-1], SecurityGroupIds: [""]}}
SecurityGroupIds=sg-1:
  WatchFunction: {VpcConfig: {SubnetIds: [""], SecurityGroupIds: [sg-1]}}
"""


def within(value: Any, names: Any) -> Any:
    """What a value has of these names, as deep as they go."""
    if isinstance(value, dict) and isinstance(names, dict):
        return {name: within(value.get(name), inner) for name, inner in names.items()}
    return value


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [(given, *each) for given, rows in yaml_parse(SETTINGS).items() for each in rows.items()],
)
def test_a_stack_has_it_or_lacks_it(given: str, name: str, expected: object) -> None:
    made = rendered(**dict(each.split("=") for each in given.split())).get(name)
    assert within(made and made | made.get("Properties", {}), expected) == expected


def test_a_message_that_fits_into_one_queue_fits_into_the_next() -> None:
    assert {RESOURCES[it]["Properties"]["MaximumMessageSize"] for it in QUEUES} == {queue.LONGEST_MESSAGE}


AGE, ERRORS = ALARMS["RequestsAlarm"], ALARMS["ErrorsAlarm"]
HIDDEN, RECEIVES = REQUESTS["VisibilityTimeout"], REQUESTS["RedrivePolicy"]["maxReceiveCount"]
OTHERS_OF_BATCH = FUNCTION["Events"]["Requests"]["Properties"]["BatchSize"] - 1
TURN = TIMEOUT - CLOSING_TIME - retry.BEFORE_CALL
TRIED = FUNCTION["EventInvokeConfig"]["MaximumEventAgeInSeconds"]
HANGING = retry.CONNECT_TIMEOUT + retry.READ_TIMEOUT + retry.BUSY_PAUSE[1]

#: Pairs of times of which the first fits into the second.
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-available-cloudwatch-metrics.html
TIMES = {
    "a call that hangs, a pause, and a second for each other request": (HANGING + OTHERS_OF_BATCH, TURN),
    "no two workers have a message at a time": (TIMEOUT + 1, HIDDEN),
    "a crash costs its batch two time-outs at most": (HIDDEN, 2 * TIMEOUT),
    "the code knows how long a message is hidden": (HIDDEN, queue.VISIBILITY),
    "an hour of turns is far below the receives": (10 * LONGEST_SERVICE_TIMEOUT / TURN, RECEIVES),
    "what always fails is put aside before it expires": (
        4 * RECEIVES * HIDDEN,  # even if Lambda comes back four times as seldom as it may
        REQUESTS["MessageRetentionPeriod"],
    ),
    "an error is heard of within a quarter of an hour": (
        TIMEOUT + ERRORS["EvaluationPeriods"] * ERRORS["Period"],
        15 * 60 - 60,  # CloudWatch has a minute to take a datapoint in
    ),
    "the age, before the third receive, which it leaves out": (AGE["Threshold"] + AGE["Period"], 2 * HIDDEN),
    # CloudWatch counts an error at the invocation's beginning, and learns of it at the function's end.
    "an error counts for the period before": (TIMEOUT, (ERRORS["EvaluationPeriods"] - 1) * ERRORS["Period"]),
    "Lambda tries for longer than an invocation": (TIMEOUT, TRIED),
    "and as long as CloudFormation waits": (TRIED, 3600),
}


@pytest.mark.parametrize("which", TIMES)
def test_a_time_fits_into_another(which: str) -> None:
    time, room = TIMES[which]
    assert time <= room


# --- Alarms and the dashboard ---

#: Metric, of what, statistic, threshold, seconds and number of periods. A late log line counts for the
#: period before, so an alarm on the function's own metrics looks at two; a run of the watch has three.
#: RequestsAlarm and WaitingAlarm tell within a quarter of an hour.
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


@pytest.fixture
def emitted(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Name all metrics that metrics.py can write: call each of its functions, in each way."""
    seen: dict[str, float] = {}
    monkeypatch.setattr(metrics, "_emit", seen.update)
    bodies = [{"Status": "SUCCESS", "Data": {"Outcome": outcome}} for outcome in Outcome]
    for body in (*bodies, {"Status": "SUCCESS"}, {"Status": "FAILED"}):
        metrics.response(json.dumps(body).encode(), 1, 1.0)
    for it in vars(metrics).values():
        if inspect.isfunction(it) and it.__module__ == metrics.__name__ and it is not metrics.response:
            it(*[1] * len(inspect.signature(it).parameters))
    return set(seen)


@pytest.mark.parametrize("name", ALARMS)
def test_an_alarm_goes_to_the_topic_and_silence_is_none(name: str, emitted: set[str]) -> None:
    """The silence between two runs of the watch leaves Drift as it is."""
    scheduled = partial(rendered, WatchSchedule="rate(1 day)")
    silent, alarm = (scheduled(AlarmTopicArn=topic)[name]["Properties"] for topic in ("", TOPIC))
    namespace, metric, of, *numbers = yaml_parse(SET_OFF)[name]
    assert (alarm["Namespace"], alarm["MetricName"]) == (namespace, metric)
    assert namespace != NAMESPACE or metric in emitted
    assert alarm["Dimensions"] == [{"Name": KINDS[namespace], "Value": of}]
    assert [alarm[it] for it in ("Statistic", "Threshold", "Period", "EvaluationPeriods")] == numbers
    assert alarm.get("DatapointsToAlarm", 1) == 1
    assert alarm["ComparisonOperator"] == "GreaterThanThreshold"
    assert alarm["TreatMissingData"] == ("ignore" if name == "DriftAlarm" else "notBreaching")
    assert alarm["AlarmDescription"]
    assert (alarm["AlarmActions"], silent.get("AlarmActions")) == ([TOPIC], None)


def test_the_dashboard_shows_every_metric_that_is_emitted_and_no_other(emitted: set[str]) -> None:
    """And the queues' and the function's, in its own region. `.` repeats the value above it.

    https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/CloudWatch-Dashboard-Body-Structure.html
    """
    dashboard = rendered(Dashboard="true")["OperationsDashboard"]["Properties"]["DashboardBody"]
    shown: dict[str, set[str]] = {}
    for widget in json.loads(dashboard)["widgets"]:
        assert widget["properties"]["region"] == "us-east-1"
        rows = widget["properties"]["metrics"]
        for row in rows:
            if isinstance(row[1], str):  # else another statistic of the metric above
                shown.setdefault(" ".join([rows[0][0], *rows[0][2:4]]), set()).add(row[1])
    queued = ("AgeOfOldestMessage", "NumberOfMessagesVisible", "NumberOfMessagesNotVisible")
    assert shown == {
        f"{NAMESPACE} service usage-plan-key": emitted,
        "AWS/SQS QueueName Requests.QueueName": {f"Approximate{name}" for name in queued},
        "AWS/SQS QueueName Undelivered.QueueName": {f"Approximate{queued[1]}", "Unanswered.QueueName"},
        "AWS/Lambda FunctionName UsagePlanKeyFunction": {"Invocations", "Errors", "Throttles", "Duration"},
    }


# --- Parameters, variables, and what tools read ---

#: Values that fit besides the default, and one that does not.
VALUES = {
    "UsagePlanId": ("a1_b-2", "a b"),
    "FunctionName": ("a" * 58, "a" * 59),
    "WatchSchedule": ("cron(0 4 * * ? *)", "daily"),
    "FunctionArnParameterName": ("/team/usage-plan-key", "usage-plan-key"),
    "KmsKeyArn": (f"arn:aws-us-gov:kms:x-1:{ACCOUNT}:key/1a", f"arn:aws:kms:x-1:{ACCOUNT}:alias/mine"),
    "SubnetIds": ("subnet-0a1b2c3d,subnet-2", "subnet-1,sg-0a1b2c3d"),
    "SecurityGroupIds": ("sg-0a1b2c3d,sg-2", "default"),
    "PermissionsBoundaryArn": (f"arn:aws-cn:iam::{ACCOUNT}:policy/a/b", f"arn:aws:iam::{ACCOUNT}:role/b"),
    "AlarmTopicArn": (f"arn:aws-us-gov:sns:x-1:{ACCOUNT}:alarms", f"arn:aws:sqs:x-1:{ACCOUNT}:alarms"),
    "ExistingLedger": ("usage-plan-key-ledger", "a b"),
    "ApiGatewayEndpoint": ("http://localhost:4566", "localhost:4566"),
    "ResponseHost": ("localhost:4566", "https://localhost"),
}


@pytest.mark.parametrize("name", [name for name in PARAMETERS if "AllowedValues" not in PARAMETERS[name]])
def test_a_parameter_takes_only_values_that_fit(name: str) -> None:
    fit, unfit = VALUES[name]
    assert rendered(**{name: fit}) != rendered()
    with pytest.raises(ValueError, match=name):
        rendered(**{name: unfit})


def test_the_console_shows_each_parameter_once_with_a_label_and_a_description() -> None:
    shown = TEMPLATE["Metadata"]["AWS::CloudFormation::Interface"]
    listed_ = [name for group in shown["ParameterGroups"] for name in group["Parameters"]]
    assert sorted(listed_) == sorted(PARAMETERS) == sorted(shown["ParameterLabels"])
    assert {parameter["Description"][-1] for parameter in PARAMETERS.values()} == {"."}


def test_every_variable_that_the_code_reads_is_set_and_the_watch_has_no_other() -> None:
    """The project's own ones; the others are Lambda's, sam's, boto3's and Powertools'."""
    source = "".join(path.read_text() for path in HANDLER.glob("*.py"))
    read, given = {*re.findall(r'environ(?:\.get\(|\[)"(\w+)"', source)}, FUNCTION["Environment"]["Variables"]
    others = re.compile(r"AWS_|POWERTOOLS_|REQUESTS_CA_BUNDLE")
    assert {it for it in read if not others.match(it)} == {it for it in given if not others.match(it)}
    assert WATCH["Environment"]["Variables"].keys() <= given.keys()


def test_sam_needs_no_flags() -> None:
    """Under sam local no variable names a table, or the function would look for one."""
    config = tomllib.loads((ROOT / "samconfig.toml").read_text())["default"]
    given = {name: value for part in config.values() for name, value in part["parameters"].items()}
    assert given.items() >= {"stack_name": "usage-plan-key", "resolve_s3": True}.items()
    assert given["capabilities"] == "CAPABILITY_IAM"
    assert "region" not in given
    overrides = json.loads((ROOT / given["env_vars"]).read_text())["UsagePlanKeyFunction"]
    assert overrides == {"LEDGER_TABLE": "", "QUEUE_URL": ""}
    assert set(overrides) <= set(FUNCTION["Environment"]["Variables"]), "sam overrides none but these"


@pytest.mark.parametrize("name", ["UsagePlanKeyFunction", "WatchFunction"])
def test_sam_finds_a_build_step(name: str) -> None:
    """The release's test sees that its template names it."""
    make = ["make", "-C", str(ROOT / "handler"), "-n", f"build-{name}", "ARTIFACTS_DIR=x"]
    subprocess.run(make, check=True, capture_output=True)


@pytest.mark.parametrize(
    "file", ["template.yaml", *sorted(f"examples/{it.name}" for it in ROOT.glob("examples/*.yaml"))]
)
def test_every_arn_fits_every_partition_and_names_no_account(file: str) -> None:
    text = (ROOT / file).read_text()
    assert not re.search(r"\barn:(?!\$\{AWS::Partition\}:)|\b\d{12}\b", text)
    principals = re.sub(r"\b(lambda|events)\.amazonaws\.com", "", text)
    assert "amazonaws.com" not in principals, "a service principal is the same everywhere"
