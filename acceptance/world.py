"""The run's own small world, and how to act in it and to look at it.

All that a run makes is in stacks with one prefix and one tag. CloudFormation puts a stack's tags on the
stack's resources:
https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-properties-resource-tags.html
"""

from __future__ import annotations

import io
import json
import time
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from samtranslator.yaml_helper import yaml_parse

from emulators.ministack import Template, packaged

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent
TAG = "usage-plan-key-acceptance"
PREFIX = "upk-acceptance-"
"""Short: CloudFormation shortens a stack's name in names that would be too long, and the policy has this."""
TYPE = "Custom::UsagePlanKey"
OTHERS = 9
"""Keys beside the crowd's: stories with few resources use them."""
SERVICE_TIMEOUT = 900
"""Seconds until CloudFormation gives a request up: a broken function costs as much."""
FIGURES = [
    ("AWS/Lambda", "FunctionName", "Invocations", "Sum"),
    ("AWS/Lambda", "FunctionName", "Errors", "Sum"),
    ("AWS/Lambda", "FunctionName", "Throttles", "Sum"),
    ("AWS/Lambda", "FunctionName", "Duration", "Maximum"),
    ("AWS/SQS", "QueueName", "NumberOfMessagesSent", "Sum"),
    ("AWS/SQS", "QueueName", "NumberOfEmptyReceives", "Sum"),
    ("AWS/SQS", "QueueName", "ApproximateAgeOfOldestMessage", "Maximum"),
]
"""What CloudWatch is asked for: of the function, and of its queue."""


class WrongError(Exception):
    """Raised when something is not as promised."""


class NotAskedError(Exception):
    """Raised when a question cannot be asked, because something before it has failed."""


@dataclass(frozen=True, eq=False)
class Place:
    """An AWS: how to reach it, and what differs there."""

    session: boto3.Session
    region: str
    artifact: Callable[[], bytes]
    """Makes the function's zip."""
    endpoint: Callable[[str], dict[str, Any]] = lambda _: {}
    """A client's further arguments, by service."""
    pause: float = 5
    """Seconds between two looks: CloudFormation throttles callers that look all the time."""
    patience: float = 1800
    """Seconds for a stack's operation."""
    late: float = 60
    """Seconds until AWS shows what has happened: a detach is a 202, and a log's lines come late."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Further parameters of template.yaml."""
    held: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()
    """Keeps the function at its first create in a plan; AWS cannot."""

    def client(self, service: str, *, retries: bool = True) -> Any:
        """Make a client, or the same as before; without retries for experiments."""
        return _client(self, service, retries)


@cache
def _client(place: Place, service: str, retries: bool) -> Any:
    tries: Any = {"mode": "standard", "total_max_attempts": 10 if retries else 1}
    further = place.endpoint(service)
    config = Config(retries=tries).merge(further.pop("config", Config()))
    make: Any = place.session.client  # its stubs want a literal
    return make(service, region_name=place.region, config=config, **further)


class Member(NamedTuple):
    """A Custom::UsagePlanKey of a stack."""

    name: str
    key: int
    plan: str
    existing: str = "Fail"
    retain: bool = False
    after: str = ""


BROKEN = Member("Broken", 0, "nowhere")
"""A resource that fails: its plan does not exist."""


@dataclass(frozen=True)
class Ended:
    """How a stack's operation ended."""

    status: str
    events: list[dict[str, Any]]

    def reason(self, logical_id: str = "") -> str:
        """Say why a resource failed, or every one."""
        return "; ".join(
            f"{event['LogicalResourceId']}: {event.get('ResourceStatusReason', '')}"
            for event in self.events
            if event["ResourceStatus"].endswith("_FAILED") and logical_id in ("", event["LogicalResourceId"])
        )


class World:
    """A run's stacks, plans and keys."""

    def __init__(self, place: Place, run: str, many: int = 40) -> None:
        """Name everything after the run; `many` keys are attached at once."""
        self.place, self.run, self.many = place, run, many
        self.name = PREFIX + run
        self.ledger = f"{self.name}-ledger"
        self.others = many
        """The first of the keys that single stories use."""
        self.keys: list[str] = []
        self.plans: dict[str, str] = {}
        self.function: dict[str, str] = {}
        """The outputs of the function's stack."""
        self.names: dict[str, str] = {}
        """The logical ids of the world's resources, by their physical ids."""
        self.stacks: dict[str, str] = {}
        """The ids of the stacks that stand, by their short names."""
        self.gone: set[str] = set()
        """The associations whose key somebody has deleted: stacks believe in them, and may."""
        self.found: dict[str, str] = {}
        """What a story has seen that answers a question."""
        self.probed: list[dict[str, Any]] = []
        """What the probe has written down (questions.py)."""
        self.began = time.time()
        self._token: dict[str, str] = {}
        self._cloudformation = place.client("cloudformation")
        self._api = place.client("apigateway")

    # --- To make it ---

    def make(self) -> None:
        """Deploy the API, the plans, the keys and the bucket."""
        template = template_of(HERE / "world.yaml")
        numbers = range(self.many + OTHERS)
        template["Resources"] |= {
            f"Key{number:02}": {"Type": "AWS::ApiGateway::ApiKey", "Properties": {"Enabled": True}}
            for number in numbers
        }
        self.deploy("world", template)
        self.know()

    def know(self) -> None:
        """Read the ids of the keys and the plans."""
        found = self.resources("world")
        self.keys = [found[name] for name in sorted(found) if name.startswith("Key")]
        self.plans = {
            name.removesuffix("Plan").lower(): id_ for name, id_ in found.items() if name.endswith("Plan")
        }

    def make_function(self) -> None:
        """Upload the artifact and deploy template.yaml, with the watch on."""
        bucket = self.resources("world")["Bucket"]
        self.place.client("s3").put_object(Bucket=bucket, Key="function.zip", Body=self.place.artifact())
        template = packaged(ROOT / "template.yaml", {"Bucket": bucket, "Key": "function.zip"})
        parameters = {
            "FunctionName": self.name,
            "FunctionArnParameterName": "",
            "LogRetentionInDays": "1",
            "WatchSchedule": "rate(1 day)",
            **self.place.parameters,
        }
        self.deploy("function", template, **parameters)
        self.function = self.outputs("function")

    # --- Stacks ---

    def start(self, stack: str, template: Template, **parameters: str) -> None:
        """Begin to create the stack, or to update it. CloudFormation takes 51,200 bytes of template.

        https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cloudformation-limits.html
        """
        client = self._cloudformation
        operation = client.update_stack if stack in self.stacks else client.create_stack
        self._token[stack] = str(uuid.uuid4())
        self.stacks[stack] = operation(
            StackName=f"{self.name}-{stack}",
            TemplateBody=json.dumps(template, default=str, separators=(",", ":")),
            Parameters=[
                {"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()
            ],
            Tags=[{"Key": TAG, "Value": self.run}],
            Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
            ClientRequestToken=self._token[stack],
        )["StackId"]

    def wait(self, stack: str, *expected: str) -> Ended:
        """Wait until the operation has ended, and check how."""
        ended = Ended(self.status(stack), self.events(stack))
        if ended.status == "DELETE_COMPLETE":
            del self.stacks[stack]
        if ended.status not in expected:
            wanted = " or ".join(expected)
            raise WrongError(f"the stack {stack} is {ended.status}, not {wanted}. {ended.reason()}")
        return ended

    def status(self, stack: str) -> str:
        """Wait for a status that is final."""
        stack_id = self.stacks[stack]

        def status() -> str:
            found = str(self._described(stack_id)["StackStatus"])
            return "" if found.endswith("_IN_PROGRESS") else found

        return str(self.until(f"{stack} is done", status, self.place.patience))

    def deploy(self, stack: str, template: Template, *expected: str, **parameters: str) -> Ended:
        """Create the stack, or update it, and wait."""
        done = "UPDATE_COMPLETE" if stack in self.stacks else "CREATE_COMPLETE"
        self.start(stack, template, **parameters)
        return self.wait(stack, *(expected or (done,)))

    def declare(self, stack: str, *members: Member, trigger: int = 1, expect: str = "") -> Ended:
        """Deploy a stack of these resources."""
        return self.deploy(stack, self.template(members, trigger), *([expect] if expect else []))

    def start_delete(self, stack: str, retain: Sequence[str] = ()) -> None:
        """Begin to delete the stack."""
        self._token[stack] = str(uuid.uuid4())
        self._cloudformation.delete_stack(
            StackName=self.stacks[stack],
            ClientRequestToken=self._token[stack],
            **({"RetainResources": retain} if retain else {}),
        )

    def delete(self, *stacks: str) -> None:
        """Delete these stacks, all at once, and wait."""
        for stack in stacks:
            self.start_delete(stack)
        for stack in stacks:
            self.wait(stack, "DELETE_COMPLETE")

    def cancel(self, stack: str) -> None:
        """Cancel an update as soon as it has begun to change a resource; later it cannot be cancelled.

        https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/using-cfn--stack-update-cancel.html
        """
        begun = "UPDATE_IN_PROGRESS", "CREATE_IN_PROGRESS"
        self.until(
            f"{stack} works",
            lambda: any(
                event["ResourceType"] == TYPE and event["ResourceStatus"] in begun
                for event in self.events(stack)
            ),
        )
        self._cloudformation.cancel_update_stack(StackName=self.stacks[stack])

    def events(self, stack: str) -> list[dict[str, Any]]:
        """List the events of the stack's last operation, oldest first: they have its token.

        https://docs.aws.amazon.com/AWSCloudFormation/latest/APIReference/API_DeleteStack.html
        """
        pages = self._cloudformation.get_paginator("describe_stack_events").paginate(
            StackName=self.stacks[stack]
        )
        found = [event for page in pages for event in page["StackEvents"]]
        return [event for event in found if event.get("ClientRequestToken") == self._token[stack]][::-1]

    def resources(self, stack: str) -> dict[str, str]:
        """Read the physical ids of the stack's resources; the report has the logical ones for them."""
        found = {each["LogicalResourceId"]: each["PhysicalResourceId"] for each in self._resources(stack)}
        self.names |= {physical: logical for logical, physical in found.items()}
        return found

    def outputs(self, stack: str) -> dict[str, str]:
        """Read the stack's outputs; those of a story's stack are the outcomes."""
        found = self._described(self.stacks[stack])
        return {each["OutputKey"]: each["OutputValue"] for each in found.get("Outputs", [])}

    def template(self, members: Iterable[Member], trigger: int = 1) -> Template:
        """Write the template of a story's stack."""
        resources, outputs = {}, {}
        for member in members:
            properties = {
                "ServiceToken": self.function["FunctionArn"],
                "ServiceTimeout": SERVICE_TIMEOUT,
                "KeyId": self.keys[member.key],
                "UsagePlanId": self.plans.get(member.plan, member.plan),
                "OnExisting": member.existing,
                "VerifyTrigger": str(trigger),
            }
            resources[member.name] = {"Type": TYPE, "Properties": properties}
            if member.retain:
                resources[member.name]["DeletionPolicy"] = "Retain"
            if member.after:
                resources[member.name]["DependsOn"] = member.after
            if member.plan in self.plans:
                outputs[member.name] = {"Value": {"Fn::GetAtt": [member.name, "Outcome"]}}
        nothing = {"Nothing": {"Type": "AWS::CloudFormation::WaitConditionHandle"}}  # a stack needs one
        return {"Resources": resources or nothing, "Outputs": outputs}

    def _described(self, stack_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self._cloudformation.describe_stacks(StackName=stack_id)["Stacks"][0]
        return found

    def _resources(self, stack: str) -> Iterator[dict[str, Any]]:
        pages = self._cloudformation.get_paginator("list_stack_resources").paginate(
            StackName=self.stacks[stack]
        )
        for page in pages:
            yield from (each for each in page["StackResourceSummaries"] if each.get("PhysicalResourceId"))

    # --- What is attached ---

    def id(self, key: int, plan: str) -> str:
        """Make the id of an association."""
        return f"{self.keys[key]}:{self.plans[plan]}"

    def attached(self, *plans: str) -> set[str]:
        """List what is in this run's plans. The list comes with the keys' values; they are dropped here."""
        pages = self._api.get_paginator("get_usage_plan_keys")
        return {
            f"{key['id']}:{plan}"
            for plan in plans or self.plans.values()
            for page in pages.paginate(usagePlanId=plan, PaginationConfig={"PageSize": 500})
            for key in page.get("items", [])
        }

    def believed(self) -> set[str]:
        """List what CloudFormation believes to be attached."""
        return {
            each["PhysicalResourceId"]
            for stack in self.stacks
            if stack not in ("world", "function")
            for each in self._resources(stack)
            if each["ResourceType"] == TYPE and each["ResourceStatus"] != "DELETE_COMPLETE"
        }

    def compare(self, *, besides: Iterable[str] = ()) -> None:
        """Check that what the stacks believe is attached, and nothing else but `besides`.

        API Gateway answers a detach with 202, and the key may leave a little later.
        """
        expected = (self.believed() | set(besides)) - self.gone
        with suppress(TimeoutError):
            self.until("the plans are as the stacks", lambda: self.attached() == expected, self.place.late)
            return
        found = self.attached()
        missing, extra = ", ".join(sorted(expected - found)), ", ".join(sorted(found - expected))
        raise WrongError(f"believed and not attached: {missing or 'none'}; not believed: {extra or 'none'}")

    def expect(self, stack: str, **outcomes: str) -> None:
        """Check the outcomes of the stack's resources."""
        check(f"the outcomes of {stack}", self.outputs(stack), outcomes)

    def attach(self, association: str) -> None:
        """Attach a key by hand."""
        key, plan = association.split(":")
        patiently(lambda: self._api.create_usage_plan_key(usagePlanId=plan, keyId=key, keyType="API_KEY"))

    def detach(self, association: str) -> None:
        """Detach a key by hand."""
        key, plan = association.split(":")
        with suppress(self._api.exceptions.NotFoundException):
            patiently(lambda: self._api.delete_usage_plan_key(usagePlanId=plan, keyId=key))

    def delete_key(self, key: int) -> None:
        """Delete one of this run's keys by hand."""
        self._api.delete_api_key(apiKey=self.keys[key])

    # --- The function ---

    def heal(self) -> None:
        """Give the function what the template says, if it has anything else."""
        template = template_of(ROOT / "template.yaml")
        own = template["Resources"]["UsagePlanKeyFunction"]["Properties"]
        said = {**template["Globals"]["Function"], **own}
        wanted = {name: said[name] for name in ("Timeout", "Handler")}
        found = self.place.client("lambda").get_function_configuration(FunctionName=self.name)
        if any(found[name] != value for name, value in wanted.items()):
            self.configure(**wanted)

    def configure(self, **configuration: Any) -> None:
        """Change the function's configuration, and wait until it is in force.

        Lambda changes it in the background, and refuses another change meanwhile.
        https://docs.aws.amazon.com/lambda/latest/dg/functions-states.html
        """
        client = self.place.client("lambda")
        client.update_function_configuration(FunctionName=self.name, **configuration)

        def is_done() -> bool:
            found = client.get_function_configuration(FunctionName=self.name)
            return bool(found["LastUpdateStatus"] != "InProgress")

        self.until("the function is changed", is_done)

    def has_ledger(self) -> bool:
        """Tell whether the table exists; it outlives the function's stack."""
        client = self.place.client("dynamodb")
        try:
            client.describe_table(TableName=self.ledger)
        except client.exceptions.ResourceNotFoundException:
            return False
        return True

    def watch(self) -> dict[str, Any]:
        """Run the watch; return what it has counted."""
        reply = self.place.client("lambda").invoke(FunctionName=self.function["WatchFunctionName"])
        returned: dict[str, Any] = json.load(reply["Payload"])
        if "FunctionError" in reply:
            raise WrongError(f"the watch failed: {returned.get('errorMessage')}")
        return returned

    def log(self, since: float, group: str = "") -> list[tuple[float, str]]:
        """Read a function's log since then: each line and its time. Lines come some seconds late."""
        pages = (
            self.place.client("logs")
            .get_paginator("filter_log_events")
            .paginate(logGroupName=group or self.function["LogGroup"], startTime=int(since * 1000))
        )
        return [(event["timestamp"] / 1000, event["message"]) for page in pages for event in page["events"]]

    def metrics(self) -> dict[str, list[float]]:
        """Read CloudWatch's figures of this run, by the minute. They come minutes late."""
        of = {"FunctionName": self.name, "QueueName": self.function["RequestsQueueName"]}
        queries = [
            {
                "Id": f"figure{number}",
                "Label": metric,
                "MetricStat": {
                    "Metric": {
                        "Namespace": namespace,
                        "MetricName": metric,
                        "Dimensions": [{"Name": dimension, "Value": of[dimension]}],
                    },
                    "Period": 60,
                    "Stat": statistic,
                },
            }
            for number, (namespace, dimension, metric, statistic) in enumerate(FIGURES)
        ]
        found = self.place.client("cloudwatch").get_metric_data(
            MetricDataQueries=queries, StartTime=self.began, EndTime=time.time()
        )
        return {each["Label"]: each["Values"] for each in found["MetricDataResults"] if each["Values"]}

    # --- Time ---

    def until(self, what: str, look: Callable[[], Any], seconds: float = 0) -> Any:
        """Look again until there is something."""
        deadline = time.monotonic() + (seconds or self.place.patience)
        while not (found := look()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited in vain until {what}")
            time.sleep(self.place.pause)
        return found


def template_of(path: Path) -> Template:
    """Read a template."""
    template: Template = yaml_parse(path.read_text())
    return template


def patiently(call: Callable[[], object]) -> None:
    """Call again while API Gateway says `try again later`: somebody else may change a plan."""
    for _ in range(30):
        try:
            call()
        except ClientError as error:
            if "try again later" not in str(error):
                raise
            time.sleep(1)
        else:
            return
    call()


def check(what: str, found: object, expected: object) -> None:
    """Raise an error unless they are the same."""
    if found != expected:
        raise WrongError(f"{what}: {found}, not {expected}")


def zipped(folder: Path) -> bytes:
    """Zip the artifact."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
    return buffer.getvalue()
