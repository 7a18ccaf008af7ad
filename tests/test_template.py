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
    assert allowed() == calls - WATCHES_OWN | LAMBDA_ITSELF


def test_the_watch_has_a_role_of_its_own_which_changes_nothing_and_queues_only_where_it_repairs() -> None:
    logs = {(action, "WatchLogGroup.Arn") for action in ("logs:CreateLogStream", "logs:PutLogEvents")}
    assert allowed("WatchRole") == WATCHES_OWN | {STACKS} | logs | {("sqs:SendMessage", "Requests.Arn")}
    always = {statement["Sid"] for statement in statements("WatchRole") if "Fn::If" not in statement}
    assert always == {"ListKeys", "ReadLedger", "SeeWhetherStacksAreGone", "WriteLogs"}
    (repairs,) = (statement["Fn::If"] for statement in statements("WatchRole") if "Fn::If" in statement)
    assert (repairs[0], repairs[1]["Sid"], repairs[2]) == (
        "HasWatchRepairs",
        "QueueRepairs",
        {"Ref": "AWS::NoValue"},
    )
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
        assert not [resource for _, resource in allowed(role) if "/apikeys" in resource or resource == "*"]


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
    waiting, errors = ALARMS["RequestsAlarm"], ALARMS["ErrorsAlarm"]
    assert waiting["Dimensions"] == [
        {"Name": "QueueName", "Value": {"Fn::GetAtt": ["Requests", "QueueName"]}}
    ]
    assert waiting["Threshold"] + (waiting["EvaluationPeriods"] + 1) * waiting["Period"] + 60 <= 15 * 60
    assert errors["Dimensions"] == [{"Name": "FunctionName", "Value": {"Ref": "UsagePlanKeyFunction"}}]
    assert TIMEOUT + errors["EvaluationPeriods"] * errors["Period"] + 60 <= 15 * 60


def test_the_age_raises_its_alarm_while_it_counts_for_sure() -> None:
    """The metric may leave out a message at its third receive, after two visibility time-outs."""
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
    assert {"AnswerRefused", "Lost"} <= set(own) <= emitted()
    service = FUNCTION["Environment"]["Variables"]["POWERTOOLS_SERVICE_NAME"]
    for alarm in own.values():
        assert alarm["Dimensions"] == [{"Name": "service", "Value": service}]
        if alarm["MetricName"] != "Drift":
            # A late log line counts for the period before.
            assert (alarm["Statistic"], alarm["EvaluationPeriods"], alarm["DatapointsToAlarm"]) == (
                "Sum",
                2,
                1,
            )


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
            return parameters.get(name, default)
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
    calls: list[Callable[[], None]] = [metrics.no_request, metrics.answer_refused, metrics.answer_undelivered]
    calls += [partial(metrics.turn_over, 1), partial(metrics.drift, 1)]
    bodies = [{"Status": "SUCCESS", "Data": {"Outcome": outcome}} for outcome in Outcome]
    bodies += [{"Status": "SUCCESS"}, {"Status": "FAILED"}]
    calls += [partial(metrics.response, json.dumps(body).encode(), 1, 1.0) for body in bodies]
    public = {
        name
        for name, it in vars(metrics).items()
        if inspect.isfunction(it) and it.__module__ == metrics.__name__
    }
    assert {getattr(call, "func", call).__name__ for call in calls} == {
        name for name in public if not name.startswith("_")
    }
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
    policies = RESOURCES[role]["Properties"]["Policies"]
    return [statement for policy in policies for statement in policy["PolicyDocument"]["Statement"]]


def allowed(role: str = "Role") -> set[tuple[str, str]]:
    """A role's policy as pairs of an action and a resource: a path of API Gateway's, or an attribute."""
    return {
        (action, named(resource))
        for given in statements(role)
        for statement in [given["Fn::If"][1] if "Fn::If" in given else given]
        for action in listed(statement["Action"])
        for resource in listed(statement["Resource"])
    }


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
        yield f"sqs:{operation.name}", "Requests.Arn"
    yield "sqs:SendMessage", "Undelivered.Arn"


def called(file: str, service: str) -> Iterator[tuple[str, Any]]:
    """The methods of a module's client, called or handed on, with botocore's model of each."""
    client = boto3.client(service, region_name="us-east-1")  # type: ignore[call-overload]  # any of them
    tree = ast.parse((ROOT / "handler" / "usage_plan_key" / file).read_text())
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and ast.unparse(node.value) in ("self._client", "client")
            and node.attr != "meta"
        ):
            operation = client.meta.method_to_api_mapping[node.attr]
            yield node.attr, client.meta.service_model.operation_model(operation)


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def named(resource: dict[str, Any]) -> str:
    if "Fn::If" in resource:
        resource = resource["Fn::If"][1]
    if "Fn::GetAtt" in resource:
        return ".".join(resource["Fn::GetAtt"])
    arn = re.fullmatch(
        r"arn:\$\{AWS::Partition}:\w+:\$\{AWS::Region}:(?:\$\{AWS::AccountId})?:(.+)", resource["Fn::Sub"]
    )
    assert arn
    return arn[1]
