"""template.yaml, samconfig.toml and the artifact against the code that they deploy."""

import ast
import gzip
import inspect
import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import boto3
import botocore
import pytest
from botocore.model import ServiceModel
from samtranslator.translator.managed_policy_translator import ManagedPolicyLoader
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

from prune import OPERATIONS
from usage_plan_key import metrics, queue, retry
from usage_plan_key.metrics import NAMESPACE
from usage_plan_key.model import Outcome
from usage_plan_key.provider import CLOSING_TIME
from usage_plan_key.request import LONGEST_SERVICE_TIMEOUT

ROOT = Path(__file__).parents[1]
EVENT = json.loads((ROOT / "events" / "create.json").read_text())
BOTOCORE = Path(botocore.__file__).parent
SOURCES = sorted((ROOT / "handler" / "usage_plan_key").glob("*.py"))
TEMPLATE: dict[str, Any] = yaml_parse((ROOT / "template.yaml").read_text())
RESOURCES = TEMPLATE["Resources"]
PARAMETERS = TEMPLATE["Parameters"]
FUNCTION = RESOURCES["UsagePlanKeyFunction"]["Properties"]
TIMEOUT = TEMPLATE["Globals"]["Function"]["Timeout"]
REQUESTS = RESOURCES["Requests"]["Properties"]
ALARMS = {name: it["Properties"] for name, it in RESOURCES.items() if it["Type"] == "AWS::CloudWatch::Alarm"}
WATCH = RESOURCES["WatchFunction"]["Properties"]
#: Names that differ by stack: its function, log, ledger and dashboard; the watch and its log.
NAMES = [
    FUNCTION["FunctionName"],
    RESOURCES["LogGroup"]["Properties"]["LogGroupName"],
    RESOURCES["Ledger"]["Properties"]["TableName"],
    RESOURCES["OperationsDashboard"]["Properties"]["DashboardName"],
    RESOURCES["WatchFunction"]["Properties"]["FunctionName"],
    RESOURCES["WatchLogGroup"]["Properties"]["LogGroupName"],
]

#: The services that the function calls, and the module that calls each.
SERVICES = {
    "apigateway": "api_gateway.py",
    "cloudformation": "cloudformation.py",
    "dynamodb": "ledger.py",
    "sqs": "queue.py",
}
#: Prefixes of the variables that other software reads.
OTHERS = ("AWS_", "POWERTOOLS_", "REQUESTS_CA_BUNDLE")
#: Actions that Lambda itself does with the function's role.
LAMBDA_ITSELF = {
    ("logs:CreateLogStream", "LogGroup.Arn"),
    ("logs:PutLogEvents", "LogGroup.Arn"),
    ("sqs:SendMessage", "Unanswered.Arn"),
    ("sqs:ReceiveMessage", "Requests.Arn"),
    ("sqs:DeleteMessage", "Requests.Arn"),
    ("sqs:GetQueueAttributes", "Requests.Arn"),
}
#: What Lambda, SQS and DynamoDB do with either role, if the parameters name a key or a network.
KEY = {("kms:Decrypt", "KmsKeyArn"), ("kms:GenerateDataKey", "KmsKeyArn")}
SEE_NETWORK = {("ec2:DescribeNetworkInterfaces", "*"), ("ec2:DescribeSubnets", "*")}
# https://docs.aws.amazon.com/lambda/latest/dg/configuration-vpc.html
NETWORK = SEE_NETWORK | {
    (f"ec2:{name}", "*/*")
    for name in (
        "AssignPrivateIpAddresses",
        "CreateNetworkInterface",
        "DeleteNetworkInterface",
        "UnassignPrivateIpAddresses",
    )
}
#: Calls that only the watch makes, in the same modules.
WATCHES_OWN = {("apigateway:GET", "/usageplans/${UsagePlanId}/keys"), ("dynamodb:Scan", "Ledger.Arn")}
STACKS = ("cloudformation:DescribeStacks", "stack/*/*")
#: The parts of a transaction, by the action that each needs.
# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/transaction-apis-iam.html
PARTS = {
    "ConditionCheck": "dynamodb:ConditionCheckItem",
    "Delete": "dynamodb:DeleteItem",
    "Get": "dynamodb:GetItem",
    "Put": "dynamodb:PutItem",
    "Update": "dynamodb:UpdateItem",
}


def test_the_policy_allows_the_codes_calls_and_no_more() -> None:
    """API Gateway's actions are its HTTP verbs and paths, which botocore's model knows."""
    calls = {*api_gateway_calls(), *ledger_calls(), *queue_calls(), STACKS}
    assert calls >= WATCHES_OWN
    assert allowed() == calls - WATCHES_OWN | LAMBDA_ITSELF | KEY | NETWORK


def test_the_watch_has_a_role_of_its_own_which_changes_nothing_and_queues_only_where_it_repairs() -> None:
    logs = {(action, "WatchLogGroup.Arn") for action in ("logs:CreateLogStream", "logs:PutLogEvents")}
    repairs = {("sqs:SendMessage", "Requests.Arn"), ("kms:GenerateDataKey", "KmsKeyArn")}
    assert allowed("WatchRole") == WATCHES_OWN | {STACKS} | logs | KEY | NETWORK | repairs
    with_a_key = {"KmsKeyArn": "key", "SubnetIds": "subnet-1", "SecurityGroupIds": "sg-1"}
    assert repairs & granted("WatchRole", **with_a_key) == set()
    assert repairs <= granted("WatchRole", **with_a_key, WatchRepairs="true")
    assert WATCH["Environment"]["Variables"]["QUEUE_URL"] == {
        "Fn::If": ["HasWatchRepairs", {"Ref": "Requests"}, ""]
    }
    assert WATCH["Role"] == {"Fn::GetAtt": ["WatchRole", "Arn"]}


def test_the_watch_runs_by_itself_only_on_a_schedule_and_no_run_is_repeated() -> None:
    """A failed run is no reason for another 900 calls."""
    scheduled = {
        name for name, resource in RESOURCES.items() if resource.get("Condition") == "HasWatchSchedule"
    }
    assert scheduled == {"WatchRule", "WatchPermission", "DriftAlarm", "WatchErrorsAlarm"}
    assert TEMPLATE["Parameters"]["WatchSchedule"]["Default"] == ""
    assert TEMPLATE["Parameters"]["WatchRepairs"]["Default"] == "false"
    assert (WATCH["Timeout"], WATCH["EventInvokeConfig"]) == (900, {"MaximumRetryAttempts": 0})
    assert "Events" not in WATCH
    assert "ReservedConcurrentExecutions" not in WATCH


def test_the_watch_reads_no_variable_that_it_has_not_and_has_the_serving_functions_name_in_its_own() -> None:
    """It names the serving function in a command that it shows."""
    variables = FUNCTION["Environment"]["Variables"]
    assert WATCH["Environment"]["Variables"].keys() <= variables.keys()
    assert resolved(WATCH["FunctionName"]) == f"{resolved(FUNCTION['FunctionName'])}-watch"


def test_drift_raises_its_alarm_until_a_run_finds_none() -> None:
    """By the metric that watch.py writes, under the name that the function has: see tests/test_watch.py."""
    alarm = ALARMS["DriftAlarm"]
    assert (alarm["Namespace"], alarm["MetricName"], alarm["Statistic"]) == (NAMESPACE, "Drift", "Maximum")
    service = WATCH["Environment"]["Variables"]["POWERTOOLS_SERVICE_NAME"]
    assert alarm["Dimensions"] == [{"Name": "service", "Value": service}]
    assert (alarm["Threshold"], alarm["EvaluationPeriods"], alarm["TreatMissingData"]) == (0, 1, "ignore")
    errors = ALARMS["WatchErrorsAlarm"]
    assert errors["Dimensions"] == [{"Name": "FunctionName", "Value": {"Ref": "WatchFunction"}}]
    assert (errors["EvaluationPeriods"] - 1) * errors["Period"] >= WATCH["Timeout"]
    assert (errors["DatapointsToAlarm"], errors["Threshold"]) == (1, 0)


def test_no_action_is_a_wildcard_and_none_touches_api_keys_themselves() -> None:
    for role in ("Role", "WatchRole"):
        assert not [action for action, _ in allowed(role) if "*" in action]
        assert not [resource for _, resource in allowed(role) if "/apikeys" in resource]
        assert {pair for pair in allowed(role) if pair[1] == "*"} == SEE_NETWORK


def test_without_a_key_and_a_network_nothing_of_either_is_there() -> None:
    """Who sets neither parameter pays for neither, and gets what a template without them makes."""
    template = rendered()
    said = json.dumps(template)
    assert not re.search(r"kms|ec2|vpc|subnet|securitygroup", said, re.IGNORECASE)
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
    queues = [it["Properties"] for it in template.values() if it["Type"] == "AWS::SQS::Queue"]
    assert [queue["SqsManagedSseEnabled"] for queue in queues] == [True] * 3, "SQS's own key costs nothing"
    assert "SSESpecification" not in template["Ledger"]["Properties"], "nor does DynamoDB's own"


def test_the_key_encrypts_all_that_is_stored() -> None:
    template = rendered(KmsKeyArn="key")
    keys = {
        name: found
        for name, it in template.items()
        if (found := re.findall(r'"K\w*Key\w*": "(\w+)"', json.dumps(it), re.IGNORECASE))
    }
    stored = ("Ledger", "Requests", "Undelivered", "Unanswered", "LogGroup", "WatchLogGroup")
    assert keys == {name: ["key"] for name in (*stored, "UsagePlanKeyFunction", "WatchFunction")}
    for name in ("Requests", "Undelivered", "Unanswered"):
        assert template[name]["Properties"]["SqsManagedSseEnabled"] is False, "SQS takes one of the two"
    sse = template["Ledger"]["Properties"]["SSESpecification"]
    assert (sse["SSEEnabled"], sse["SSEType"]) == (True, "KMS")
    assert granted("Role", KmsKeyArn="key") >= KEY
    assert granted("WatchRole", KmsKeyArn="key") & KEY == {("kms:Decrypt", "KmsKeyArn")}


def test_both_functions_run_in_the_subnets_and_cannot_themselves_touch_the_network() -> None:
    template = rendered(SubnetIds="subnet-1,subnet-2", SecurityGroupIds="sg-1")
    for name, role in (("UsagePlanKeyFunction", "Role"), ("WatchFunction", "WatchRole")):
        function = template[name]["Properties"]
        assert function["VpcConfig"] == {"SubnetIds": ["subnet-1", "subnet-2"], "SecurityGroupIds": ["sg-1"]}
        assert granted(role, SubnetIds="subnet-1", SecurityGroupIds="sg-1") >= NETWORK
        (denied,) = (
            statement
            for policy in template[role]["Properties"]["Policies"]
            for statement in policy["PolicyDocument"]["Statement"]
            if statement["Effect"] == "Deny"
        )
        arn = denied["Condition"]["ArnEquals"]["lambda:SourceFunctionArn"]
        assert denied["Action"] == "ec2:*"
        assert arn.endswith(f":function:{function['FunctionName']}")


@pytest.mark.parametrize("half", [{"SubnetIds": "subnet-1"}, {"SecurityGroupIds": "sg-1"}], ids=str)
def test_half_a_network_is_refused_by_lambda_and_not_left_out(half: dict[str, str]) -> None:
    """Subnets without a security group, or the other way round, must not deploy outside every VPC."""
    config = rendered(**half)["UsagePlanKeyFunction"]["Properties"]["VpcConfig"]
    assert [""] in config.values(), "Lambda takes no empty id"


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
    for name, reason in skipped.items():
        assert len(reason.split()) >= 10, name
    kept = transformed()["Resources"]
    assert kept["UsagePlanKeyFunction"]["Metadata"]["checkov"], (
        "SAM keeps it, so a gate after SAM sees it too"
    )


@pytest.mark.parametrize(
    "file", ["template.yaml", *(f"examples/{path.name}" for path in (ROOT / "examples").glob("*.yaml"))]
)
def test_every_arn_fits_every_partition_and_names_no_account(file: str) -> None:
    text = (ROOT / file).read_text()
    assert not re.search(r"\barn:(?!\$\{AWS::Partition\}:)", text)
    assert not re.search(r"\b\d{12}\b", text)
    assert "amazonaws.com" not in re.sub(r"\b(lambda|events)\.amazonaws\.com", "", text), (
        "a service principal is the same everywhere"
    )


def test_the_functions_arn_is_exported_and_stays() -> None:
    output = TEMPLATE["Outputs"]["FunctionArn"]
    assert output["Export"]["Name"] == {"Fn::Sub": "${AWS::StackName}-FunctionArn"}
    assert output["Value"] == {"Fn::GetAtt": ["UsagePlanKeyFunction", "Arn"]}


def test_the_names_of_a_stack_that_is_deployed_already_stay() -> None:
    """CloudFormation supports no change of a ServiceToken, and a new ledger would be an empty one."""
    assert [resolved(name) for name in NAMES] == [
        *("stack", "/aws/lambda/stack", "stack-ledger", "stack-region"),
        *("stack-watch", "/aws/lambda/stack-watch"),
    ]


def test_a_stack_whose_name_is_too_long_gets_the_same_names_from_its_parameter() -> None:
    """A StackSet names its stack anew when it makes it again, and must not begin with an empty ledger."""
    given = [resolved(name, FunctionName="own") for name in NAMES]
    assert given == [
        "own",
        "/aws/lambda/own",
        "own-ledger",
        "own-region",
        "own-watch",
        "/aws/lambda/own-watch",
    ]


def test_the_functions_arn_is_published_by_a_name_that_no_stack_or_region_is_in() -> None:
    parameter = RESOURCES["FunctionArnParameter"]
    assert resolved(parameter["Properties"]["Name"]) == "/usage-plan-key/function-arn"
    assert (parameter["Properties"]["Type"], parameter["Properties"]["Value"]) == (
        "String",
        TEMPLATE["Outputs"]["FunctionArn"]["Value"],
    )
    assert holds(parameter["Condition"])
    assert not holds(parameter["Condition"], FunctionArnParameterName="")


def test_every_role_has_the_boundary_that_is_asked_for() -> None:
    """Those that SAM makes, too."""
    roles = [it["Properties"] for it in transformed()["Resources"].values() if it["Type"] == "AWS::IAM::Role"]
    assert roles
    for role in roles:
        assert resolved(role["PermissionsBoundary"]) == {"Ref": "AWS::NoValue"}
        assert resolved(role["PermissionsBoundary"], PermissionsBoundaryArn="arn") == "arn"


def test_sam_makes_the_functions_and_their_triggers() -> None:
    made = Counter(it["Type"] for it in transformed()["Resources"].values())
    assert made["AWS::Lambda::Function"] == sum(
        it["Type"] == "AWS::Serverless::Function" for it in RESOURCES.values()
    )
    assert (made["AWS::Lambda::EventSourceMapping"], made["AWS::Lambda::EventInvokeConfig"]) == (1, 2)
    assert not [name for name in made if name.startswith("AWS::Serverless")]


@pytest.mark.parametrize("queue", ["Requests", "Undelivered", "Unanswered"])
def test_an_operator_finds_each_queue_and_the_log_in_the_outputs(queue: str) -> None:
    outputs = {name: it["Value"] for name, it in TEMPLATE["Outputs"].items()}
    assert outputs[f"{queue}QueueName"] == {"Fn::GetAtt": [queue, "QueueName"]}
    assert outputs[f"{queue}QueueUrl"] == {"Ref": queue}
    assert outputs["LogGroup"] == {"Ref": "LogGroup"}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_has_a_description_and_refuses_other_values(name: str) -> None:
    parameter = PARAMETERS[name]
    assert parameter["Description"].endswith(".")
    if "AllowedValues" in parameter:
        assert parameter["Default"] in parameter["AllowedValues"]
    else:
        assert re.fullmatch(parameter["AllowedPattern"], parameter["Default"])
        assert not re.fullmatch(parameter["AllowedPattern"], "no good")


def test_the_console_shows_each_parameter_once_with_a_label() -> None:
    shown = TEMPLATE["Metadata"]["AWS::CloudFormation::Interface"]
    assert sorted(name for group in shown["ParameterGroups"] for name in group["Parameters"]) == sorted(
        PARAMETERS
    )
    assert set(shown["ParameterLabels"]) == set(PARAMETERS)


@pytest.mark.parametrize(
    ("name", "value", "fits"),
    [
        ("FunctionName", "a" * 58, True),
        ("FunctionName", "a" * 59, False),
        ("WatchSchedule", "rate(1 day)", True),
        ("WatchSchedule", "cron(0 4 * * ? *)", True),
        ("WatchSchedule", "daily", False),
        ("FunctionArnParameterName", "/team/usage-plan-key", True),
        ("FunctionArnParameterName", "usage-plan-key", False),
        (
            "KmsKeyArn",
            "{}:aws-us-gov:kms:us-gov-west-1:{:012}:key/1234abcd-12ab-34cd-56ef-1234567890ab",
            True,
        ),
        ("KmsKeyArn", "{}:aws:kms:eu-central-1:{:012}:alias/mine", False),
        ("SubnetIds", "subnet-0a1b2c3d", True),
        ("SubnetIds", "sg-0a1b2c3d", False),
        ("SecurityGroupIds", "sg-0a1b2c3d", True),
        ("SecurityGroupIds", "default", False),
        ("PermissionsBoundaryArn", "{}:aws-cn:iam::{:012}:policy/path/bound", True),
        ("PermissionsBoundaryArn", "{}:aws:iam::aws:policy/PowerUserAccess", True),
        ("PermissionsBoundaryArn", "{}:aws:iam::{:012}:role/bound", False),
        ("AlarmTopicArn", "{}:aws-us-gov:sns:us-gov-west-1:{:012}:alarms", True),
        ("AlarmTopicArn", "{}:aws:sqs:eu-central-1:{:012}:alarms", False),
        ("ExistingLedger", "usage-plan-key-ledger", True),
        ("ExistingLedger", "a b", False),
        ("ApiGatewayEndpoint", "http://localhost:4566", True),
        ("ApiGatewayEndpoint", "localhost:4566", False),
        ("ResponseHost", "localhost:4566", True),
        ("ResponseHost", "https://localhost", False),
    ],
)
def test_a_parameter_takes_only_values_that_fit(name: str, value: str, fits: bool) -> None:
    assert bool(re.fullmatch(PARAMETERS[name]["AllowedPattern"], value.format("arn", 1))) is fits


def test_the_ledger_outlives_its_stack_and_has_the_keys_that_the_code_writes() -> None:
    ledger = RESOURCES["Ledger"]
    assert ledger["DeletionPolicy"] == "RetainExceptOnCreate"
    assert ledger["UpdateReplacePolicy"] == "Retain"
    assert ledger["Properties"]["KeySchema"] == [{"AttributeName": "pk", "KeyType": "HASH"}]
    assert ledger["Properties"]["TimeToLiveSpecification"] == {"AttributeName": "expires", "Enabled": True}


def test_the_time_out_leaves_room_for_a_batch_of_which_one_call_hangs() -> None:
    """The time holds a call that times out, the longest pause, and a second for each other request."""
    batch = FUNCTION["Events"]["Requests"]["Properties"]["BatchSize"]
    hanging = retry.CONNECT_TIMEOUT + retry.READ_TIMEOUT + retry.BUSY_PAUSE[1]
    assert hanging + (batch - 1) <= TIMEOUT - retry.BEFORE_CALL - CLOSING_TIME


def test_a_request_is_served_once_at_a_time_and_a_crash_costs_its_batch_two_time_outs_at_most() -> None:
    assert TIMEOUT < REQUESTS["VisibilityTimeout"] <= 2 * TIMEOUT
    assert REQUESTS["VisibilityTimeout"] == queue.VISIBILITY


def test_an_hour_of_turns_is_far_below_the_queues_max_receive_count() -> None:
    turn = TIMEOUT - CLOSING_TIME - retry.BEFORE_CALL
    assert REQUESTS["RedrivePolicy"]["maxReceiveCount"] > 10 * LONGEST_SERVICE_TIMEOUT / turn


def test_a_message_that_always_fails_reaches_the_dead_letter_queue_before_it_expires() -> None:
    """This holds even if Lambda comes back to each request four times as seldom as it may."""
    policy = REQUESTS["RedrivePolicy"]
    assert policy["deadLetterTargetArn"] == {"Fn::GetAtt": ["Undelivered", "Arn"]}
    assert 4 * policy["maxReceiveCount"] * REQUESTS["VisibilityTimeout"] < REQUESTS["MessageRetentionPeriod"]


def test_a_message_that_fits_into_one_queue_fits_into_the_next() -> None:
    sizes = {
        name: it["Properties"]["MaximumMessageSize"]
        for name, it in RESOURCES.items()
        if it["Type"] == "AWS::SQS::Queue"
    }
    assert sizes == dict.fromkeys(("Requests", "Undelivered", "Unanswered"), queue.LONGEST_MESSAGE)


def test_the_queue_is_fifo_by_stack_and_so_is_its_dead_letter_queue() -> None:
    assert (REQUESTS["DeduplicationScope"], REQUESTS["FifoThroughputLimit"]) == (
        "messageGroup",
        "perMessageGroupId",
    )
    assert REQUESTS["FifoQueue"] is RESOURCES["Undelivered"]["Properties"]["FifoQueue"] is True
    assert "FifoQueue" not in RESOURCES["Unanswered"]["Properties"], "a destination cannot be one"


def test_a_broken_deployment_raises_an_alarm_within_a_quarter_of_an_hour() -> None:
    """CloudWatch has a minute for each datapoint that it takes in."""
    unserved, errors = ALARMS["RequestsAlarm"], ALARMS["ErrorsAlarm"]
    assert unserved["Dimensions"] == [
        {"Name": "QueueName", "Value": {"Fn::GetAtt": ["Requests", "QueueName"]}}
    ]
    assert unserved["Threshold"] + (unserved["EvaluationPeriods"] + 1) * unserved["Period"] + 60 <= 15 * 60
    assert errors["Dimensions"] == [{"Name": "FunctionName", "Value": {"Ref": "UsagePlanKeyFunction"}}]
    assert TIMEOUT + errors["EvaluationPeriods"] * errors["Period"] + 60 <= 15 * 60


def test_a_request_that_waits_raises_an_alarm_however_often_it_was_received() -> None:
    """SQS's own age leaves it out from its third receive on. This alarm hears of it within 15 minutes.

    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-available-cloudwatch-metrics.html
    """
    waiting = ALARMS["WaitingAlarm"]
    assert (waiting["MetricName"], waiting["Statistic"]) == ("WaitedSeconds", "Maximum"), "the longest counts"
    assert waiting["Threshold"] == ALARMS["RequestsAlarm"]["Threshold"]
    # It goes back at least every 20 s, and each time the function emits its age.
    assert waiting["Threshold"] + 20 + waiting["Period"] + 60 <= 15 * 60


def test_the_age_raises_its_alarm_while_it_counts_for_sure() -> None:
    """The metric leaves out a message at its third receive, after two visibility time-outs."""
    assert (
        ALARMS["RequestsAlarm"]["Threshold"] + ALARMS["RequestsAlarm"]["Period"]
        <= 2 * REQUESTS["VisibilityTimeout"]
    )


def test_an_error_that_counts_for_the_period_before_raises_its_alarm() -> None:
    """CloudWatch counts it at the invocation's beginning, and learns of it at the function's end."""
    errors = ALARMS["ErrorsAlarm"]
    assert (errors["DatapointsToAlarm"], errors["Threshold"]) == (1, 0)
    assert (errors["EvaluationPeriods"] - 1) * errors["Period"] >= TIMEOUT


def test_every_alarm_goes_to_the_topic_and_silence_is_no_alarm() -> None:
    """The silence between two runs of the watch leaves its alarm as it is."""
    assert {
        "RequestsAlarm",
        "ErrorsAlarm",
        "UndeliveredAlarm",
        "UnansweredAlarm",
        "AnswerRefusedAlarm",
        "AnswerUndeliveredAlarm",
        "WaitingAlarm",
        "LostAlarm",
    } <= {*ALARMS}
    for name, alarm in ALARMS.items():
        assert alarm["AlarmActions"] == {
            "Fn::If": ["HasAlarmTopic", [{"Ref": "AlarmTopicArn"}], {"Ref": "AWS::NoValue"}]
        }
        silence = "ignore" if name == "DriftAlarm" else "notBreaching"
        assert (alarm["ComparisonOperator"], alarm["TreatMissingData"]) == ("GreaterThanThreshold", silence)


def test_the_code_emits_each_alarms_metric_and_both_name_the_same_service() -> None:
    own = {alarm["MetricName"]: alarm for alarm in ALARMS.values() if alarm["Namespace"] == NAMESPACE}
    assert {"AnswerRefused", "AnswerUndelivered", "Lost", "WaitedSeconds"} <= set(own) <= emitted()
    service = FUNCTION["Environment"]["Variables"]["POWERTOOLS_SERVICE_NAME"]
    for alarm in own.values():
        assert alarm["Dimensions"] == [{"Name": "service", "Value": service}]
        if alarm["MetricName"] != "Drift":
            # A late log line counts for the period before.
            assert (alarm["EvaluationPeriods"], alarm["DatapointsToAlarm"]) == (2, 1)
            assert alarm["Statistic"] == ("Maximum" if alarm["MetricName"] == "WaitedSeconds" else "Sum")


def test_the_dashboard_shows_every_metric_that_is_emitted_and_no_other() -> None:
    shown = {(namespace, name, *dimension) for namespace, name, *dimension in charted()}
    service = FUNCTION["Environment"]["Variables"]["POWERTOOLS_SERVICE_NAME"]
    assert {metric for metric in shown if metric[0] == NAMESPACE} == {
        (NAMESPACE, name, "service", service) for name in emitted()
    }
    queues = {
        ("AWS/SQS", "ApproximateNumberOfMessagesVisible", "QueueName", f"{name}.QueueName")
        for name in ("Undelivered", "Unanswered")
    }
    names = ("AgeOfOldestMessage", "NumberOfMessagesVisible", "NumberOfMessagesNotVisible")
    queues |= {("AWS/SQS", f"Approximate{name}", "QueueName", "Requests.QueueName") for name in names}
    lambdas = {
        ("AWS/Lambda", name, "FunctionName", "UsagePlanKeyFunction")
        for name in ("Invocations", "Errors", "Throttles", "Duration")
    }
    assert {metric for metric in shown if metric[0] != NAMESPACE} == queues | lambdas


def test_the_dashboard_is_there_where_it_is_asked_for_and_draws_its_own_region() -> None:
    board = RESOURCES["OperationsDashboard"]
    assert not holds(board["Condition"])
    assert holds(board["Condition"], Dashboard="true")
    places = set()
    for widget in dashboard()["widgets"]:
        assert widget["properties"]["region"] == "region"
        places |= {
            (x, y)
            for x in range(widget["x"], widget["x"] + widget["width"])
            for y in range(widget["y"], widget["y"] + widget["height"])
        }
    assert len(places) == sum(widget["width"] * widget["height"] for widget in dashboard()["widgets"]), (
        "none covers another"
    )
    assert max(x for x, _ in places) < 24, "a dashboard's columns"


def test_two_workers_serve_the_queue_and_report_the_messages_that_failed() -> None:
    source = FUNCTION["Events"]["Requests"]["Properties"]
    assert source["ScalingConfig"] == {"MaximumConcurrency": 2}
    assert source["FunctionResponseTypes"] == ["ReportBatchItemFailures"]


def test_lambda_gives_up_a_request_when_cloudformation_does() -> None:
    configuration = FUNCTION["EventInvokeConfig"]
    assert TIMEOUT <= configuration["MaximumEventAgeInSeconds"] <= 3600
    assert configuration["MaximumRetryAttempts"] == 2
    assert configuration["DestinationConfig"]["OnFailure"]["Destination"] == {
        "Fn::GetAtt": ["Unanswered", "Arn"]
    }


def test_every_variable_that_the_code_reads_is_set() -> None:
    """The project's own ones; the others are Lambda's, sam's, boto3's and Powertools'."""
    source = "".join(path.read_text() for path in SOURCES)
    read = {
        name for name in re.findall(r'environ(?:\.get\(|\[)"(\w+)"', source) if not name.startswith(OTHERS)
    }
    assert read == {name for name in FUNCTION["Environment"]["Variables"] if not name.startswith(OTHERS)}


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


@pytest.mark.parametrize("function", [FUNCTION, WATCH], ids=["serving", "watch"])
def test_the_artifact_is_enough_to_import_the_handler(artifact: Path, function: dict[str, Any]) -> None:
    module, _, name = function["Handler"].rpartition(".")
    code = (
        f"import sys; sys.path.append({str(artifact)!r}); import {module} as m;"
        f" print(m.__file__, callable(m.{name}))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        env={"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.stdout.split(), done.stderr) == (
        [str(artifact / Path(*module.split("."))) + ".py", "True"],
        "",
    )


def test_sam_finds_a_build_step_for_each_function() -> None:
    functions = {name: it for name, it in RESOURCES.items() if it["Type"] == "AWS::Serverless::Function"}
    assert {it["Metadata"]["BuildMethod"] for it in functions.values()} == {"makefile"}
    steps = [f"build-{name}" for name in functions]
    subprocess.run(
        ["make", "-C", str(ROOT / "handler"), "-n", *steps, "ARTIFACTS_DIR=x"],
        check=True,
        capture_output=True,
    )


def test_the_artifact_has_the_pinned_packages_and_the_services_that_are_called(artifact: Path) -> None:
    pinned = re.findall(
        r"^([\w-]+)==([\w.]+)$", (ROOT / "handler" / "requirements.txt").read_text(), re.MULTILINE
    )
    packages = {path.name.removesuffix(".dist-info") for path in artifact.glob("*.dist-info")}
    assert packages == {f"{name.replace('-', '_')}-{version}" for name, version in pinned}
    assert {path.name for path in (artifact / "botocore" / "data").iterdir() if path.is_dir()} == set(
        SERVICES
    )
    assert not list(artifact.rglob("*.so")), "it would not fit both architectures"


def test_botocore_describes_the_called_operations_and_no_more(artifact: Path) -> None:
    """The client would lack a call that is not in prune.py."""
    calls = {
        service: {operation.name for _, operation in called(file, service)}
        for service, file in SERVICES.items()
    }
    assert {service: set(operations) for service, operations in OPERATIONS.items()} == calls
    for service, operations in calls.items():
        (described,) = (artifact / "botocore" / "data" / service).glob("*/service-2.json")
        model = json.loads(described.read_text())
        assert set(model["operations"]) == operations
        assert "documentation" not in described.read_text().replace('"documentation":""', "")


def test_the_rest_of_a_description_is_botocores_own(artifact: Path) -> None:
    for service, operations in OPERATIONS.items():
        (described,) = (artifact / "botocore" / "data" / service).glob("*/service-2.json")
        theirs_described = BOTOCORE / "data" / service / described.parent.name / "service-2.json.gz"
        whole = json.loads(gzip.decompress(theirs_described.read_bytes()))
        model = ServiceModel(json.loads(described.read_text()))
        for name in operations:
            ours, theirs = model.operation_model(name), ServiceModel(whole).operation_model(name)
            assert ours.http == theirs.http
            assert shape(ours.input_shape) == shape(theirs.input_shape)
            assert shape(ours.output_shape) == shape(theirs.output_shape)
            assert [shape(error) for error in ours.error_shapes] == [
                shape(error) for error in theirs.error_shapes
            ]


@pytest.mark.parametrize(
    "region", ["eu-central-1", "us-gov-west-1", "cn-north-1", "us-iso-east-1", "eu-central-77"]
)
def test_the_artifact_finds_every_partitions_endpoints(region: str, artifact: Path) -> None:
    """One that is newer than this botocore, too."""
    code = f"""
import sys
sys.path.append({str(artifact)!r})
import boto3
keys = dict(aws_access_key_id="x", aws_secret_access_key="y")
print(*(boto3.client(name, {region!r}, **keys).meta.endpoint_url for name in {[*SERVICES]!r}))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], env={}, check=True, capture_output=True, text=True
    )
    whole = [boto3.client(name, region).meta.endpoint_url for name in SERVICES]  # type: ignore[call-overload]  # any of them
    assert done.stdout.split() == whole


def test_init_is_light(artifact: Path) -> None:
    """`make cold` has the figures; this test holds their causes, in counts that no machine changes."""
    code = f"""
import sys
sys.path.append({str(artifact)!r})
import gc, ssl
loaded = []
ssl.SSLContext.load_verify_locations = ssl.SSLContext.load_default_certs = lambda *_, **__: loaded.append(1)
gc.callbacks.append(lambda phase, _: loaded.append(1))
import boto3
made, client = [], boto3.client
boto3.client = lambda service, **more: made.append(service) or client(service, **more)
gc.collect()
loaded.clear()
import usage_plan_key.app
print(len(loaded), gc.isenabled(), *made, *(name for name in sys.modules if name == "usage_plan_key.watch"))
from usage_plan_key.request import parse
assert not getattr(parse({EVENT!r}), "faults", None)
roots = {{name.partition(".")[0] for name in sys.modules}}
print(*roots & {{"pydantic", "aws_xray_sdk", "difflib", "unittest", "asyncio"}})
"""
    environment = {
        "AWS_DEFAULT_REGION": "eu-central-1",
        "LEDGER_TABLE": "ledger",
        "QUEUE_URL": "https://sqs/1/requests",
    }
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["0 True apigateway dynamodb sqs", ""]


def resolved(value: Any, **parameters: str) -> Any:
    """Resolve a value as CloudFormation does with these parameters; a resource stays its name."""
    match value:
        case {"Ref": name}:
            default = PARAMETERS.get(name, {}).get(
                "Default", {"AWS::StackName": "stack", "AWS::Region": "region"}.get(name, value)
            )
            given = parameters.get(name, default)
            listed = PARAMETERS.get(name, {}).get("Type") == "CommaDelimitedList"
            return given.split(",") if listed else given
        case {"Fn::Join": [separator, parts]}:
            return separator.join(resolved(part, **parameters) for part in resolved(parts, **parameters))
        case {"Fn::If": [condition, yes, no]}:
            return resolved(yes if holds(condition, **parameters) else no, **parameters)
        case {"Fn::Sub": [text, names]}:
            inner = {name: resolved(it, **parameters) for name, it in names.items()}
            return re.sub(
                r"\$\{(.+?)\}",
                lambda hit: inner.get(hit[1]) or str(resolved({"Ref": hit[1]}, **parameters)),
                text,
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


def transformed() -> Any:
    """Transform the template with SAM."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        template = yaml_parse((ROOT / "template.yaml").read_text())
        for function in (
            it for it in template["Resources"].values() if it["Type"] == "AWS::Serverless::Function"
        ):
            function["Properties"]["CodeUri"] = {"Bucket": "bucket", "Key": "key"}
        return transform(template, {}, ManagedPolicyLoader(None))


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
    body = RESOURCES["OperationsDashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
    return json.loads(re.sub(r"\$\{(.+?)\}", lambda hit: {"AWS::Region": "region"}.get(hit[1], hit[1]), body))


def charted() -> Iterator[list[str]]:
    """Write out each metric of the dashboard: `.` repeats the value above it, `...` all values left open.

    https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/CloudWatch-Dashboard-Body-Structure.html
    """
    for widget in dashboard()["widgets"]:
        above: list[str] = []
        for row in widget["properties"]["metrics"]:
            names = [name for name in row if isinstance(name, str)]
            if names[0] == "...":
                names = above[: len(above) - len(names) + 1] + names[1:]
            above = [
                before if name == "." else name for name, before in zip(names, above or names, strict=True)
            ]
            yield above


def shape(of: Any) -> Any:
    """Resolve a shape, as deep as it goes."""
    if of is None or of.type_name not in ("structure", "list", "map"):
        return of and (of.name, of.type_name, of.serialization)
    if of.name == "AttributeValue":
        return of.name, sorted(of.members)  # The shape contains itself.
    match of.type_name:
        case "structure":
            return of.name, of.required_members, {name: shape(member) for name, member in of.members.items()}
        case "list":
            return of.name, of.serialization, shape(of.member)
    return of.name, shape(of.key), shape(of.value)


def statements(role: str) -> list[dict[str, Any]]:
    policies = [it["Fn::If"][1] if "Fn::If" in it else it for it in RESOURCES[role]["Properties"]["Policies"]]
    return [statement for policy in policies for statement in policy["PolicyDocument"]["Statement"]]


def allowed(role: str = "Role") -> set[tuple[str, str]]:
    """A role's policy as pairs of an action and a resource: a path of API Gateway's, or an attribute."""
    return {
        (action["Fn::If"][1] if isinstance(action, dict) else action, named(resource))
        for given in statements(role)
        for statement in [given["Fn::If"][1] if "Fn::If" in given else given]
        if statement["Effect"] == "Allow"
        for action in listed(statement["Action"])
        for resource in listed(statement["Resource"])
    }


def granted(role: str, **parameters: str) -> set[tuple[str, str]]:
    """Of these pairs, those that a stack with these parameters has: by the actions of its statements."""
    policies = cleared(RESOURCES[role]["Properties"]["Policies"], **parameters)
    actions = {
        action
        for policy in policies
        for statement in policy["PolicyDocument"]["Statement"]
        for action in listed(statement["Action"])
    }
    return {pair for pair in allowed(role) if pair[0] in actions}


def api_gateway_calls() -> Iterator[tuple[str, str]]:
    """Find the calls of api_gateway.py, as IAM names them."""
    for _, operation in called("api_gateway.py", "apigateway"):
        path = operation.http["requestUri"].format(usageplanId="${UsagePlanId}", keyId="*")
        yield f"apigateway:{operation.http['method']}", path


def ledger_calls() -> Iterator[tuple[str, str]]:
    """Find the calls of ledger.py: a transaction counts as its parts."""
    tree = ast.parse((ROOT / "handler" / "usage_plan_key" / "ledger.py").read_text())
    keys = [
        key.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant)
    ]
    for name, operation in called("ledger.py", "dynamodb"):
        if name.startswith("transact_"):
            yield from ((PARTS[key], "Ledger.Arn") for key in keys if key in PARTS)
        else:
            yield f"dynamodb:{operation.name}", "Ledger.Arn"


def queue_calls() -> Iterator[tuple[str, str]]:
    """Find the calls of queue.py, which also sends to the dead-letter queue."""
    for _, operation in called("queue.py", "sqs"):
        # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-api-permissions-reference.html
        yield f"sqs:{operation.name.removesuffix('Batch')}", "Requests.Arn"
    yield "sqs:SendMessage", "Undelivered.Arn"


def called(file: str, service: str) -> Iterator[tuple[str, Any]]:
    """The methods of a module's client, called or handed on, with botocore's model of each."""
    client = boto3.client(service, region_name="us-east-1")  # type: ignore[call-overload]  # any of them
    tree = ast.parse((ROOT / "handler" / "usage_plan_key" / file).read_text())
    model = client.meta.service_model
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self._client", "client"):
            if operation := client.meta.method_to_api_mapping.get(node.attr):
                yield node.attr, model.operation_model(operation)
        elif isinstance(node, ast.Constant) and node.value in model.operation_names:  # called by this name
            yield str(node.value), model.operation_model(node.value)


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def named(resource: Any) -> str:
    if isinstance(resource, str):
        return resource
    if "Ref" in resource:
        return str(resource["Ref"])
    if "Fn::If" in resource:
        resource = resource["Fn::If"][1]
    if "Fn::GetAtt" in resource:
        return ".".join(resource["Fn::GetAtt"])
    arn = re.fullmatch(
        r"arn:\$\{AWS::Partition}:\w+:\$\{AWS::Region}:(?:\$\{AWS::AccountId}|\*)?:(.+)", resource["Fn::Sub"]
    )
    assert arn
    return arn[1]
