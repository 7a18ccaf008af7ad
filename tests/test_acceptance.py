"""make acceptance plays on the embedded AWS, as a user who has the manual's policy only.

One whole run is played once; the tests look at its report, its calls and what it has left. Then it is broken
by hand: a key that stays attached, a wrong account, a story that fails, and a kill in each phase.
"""

import builtins
import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

import pytest
from botocore.exceptions import ClientError
from cfnlint.schema import PROVIDER_SCHEMA_MANAGER

from acceptance import clean, cli, cost, embedded
from acceptance.questions import QUESTIONS
from acceptance.report import Report, Step, collect, redacted
from acceptance.stories import STORIES, Story, meanwhile, move_back, play
from acceptance.world import HERE, PREFIX, ROOT, TAG, Ended, Member, Place, World, WrongError, template_of
from emulators.ministack import REGION, Aws, running

MANY = 12
PAGE = ROOT / "docs" / "acceptance.md"


@dataclass
class Run:
    """A run that is over."""

    status: int
    said: str
    report: dict[str, Any]
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Each call's `service:Operation` and parameters."""
    values: set[str] = field(default_factory=set)
    """The keys' values that API Gateway has answered."""


@pytest.fixture(scope="module")
def aws() -> Iterator[Aws]:
    with running() as aws:
        yield aws


@pytest.fixture(scope="module")
def place(aws: Aws) -> Place:
    return embedded.place_of(aws)


def played(place: Place, path: Path, keys: int = MANY) -> Run:
    """Play a run, and record it."""
    place = replace(place)  # its clients are made anew, and are recorded
    said, calls, values = io.StringIO(), [], set[str]()

    def before(model: Any, params: dict[str, Any], **_: object) -> None:
        calls.append((f"{model.service_model.service_name}:{model.name}", params))

    def after(parsed: dict[str, Any], **_: object) -> None:
        values.update(key["value"] for key in parsed.get("items", []))

    place.session.events.register("before-call", before)
    place.session.events.register("after-call.apigateway.GetUsagePlanKeys", after)
    with redirect_stdout(said):
        status = cli.run(place, embedded.ACCOUNT, keys, path, yes=True, is_embedded=True)
    return Run(status, said.getvalue(), json.loads(path.read_text()), calls, values)


@pytest.fixture(scope="module")
def run(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The whole run, on an AWS on which nothing else was."""
    return played(place, tmp_path_factory.mktemp("run") / "acceptance.json")


LISTS = [
    ("cloudformation", "describe_stacks", "Stacks[].StackName"),
    ("lambda", "list_functions", "Functions[].FunctionName"),
    ("lambda", "list_event_source_mappings", "EventSourceMappings[].UUID"),
    ("dynamodb", "list_tables", "TableNames[]"),
    ("sqs", "list_queues", "QueueUrls[]"),
    ("logs", "describe_log_groups", "logGroups[].logGroupName"),
    ("cloudwatch", "describe_alarms", "MetricAlarms[].AlarmName"),
    ("events", "list_rules", "Rules[].Name"),
    ("iam", "list_roles", "Roles[].RoleName"),
    ("s3", "list_buckets", "Buckets[].Name"),
    ("apigateway", "get_api_keys", "items[].id"),
    ("apigateway", "get_usage_plans", "items[].id"),
    ("apigateway", "get_rest_apis", "items[].id"),
]


def left(aws: Aws) -> dict[str, list[str]]:
    """List what is in the account, whoever made it."""
    found = {
        operation: [*filter(None, aws.client(service).get_paginator(operation).paginate().search(items))]
        for service, operation, items in LISTS
    }
    return {operation: names for operation, names in found.items() if names}


class TestRun:
    """A whole run on the embedded AWS."""

    def test_each_story_is_green_or_says_what_the_emulator_lacks(self, run: Run) -> None:
        lacking = {story.of(MANY) for story in STORIES if story.play.__name__ in embedded.LACKS}
        results = {step["title"]: step["result"] for step in run.report["stories"]}
        assert {title for title, result in results.items() if result == "not here"} == lacking
        assert set(results.values()) == {"ok", "not here"}, run.said
        assert len(results) == len(STORIES) + 3

    def test_it_returns_the_number_of_failures(self, run: Run) -> None:
        assert (run.status, run.report["failures"], run.report["left"]) == (0, 0, []), run.said

    def test_each_question_has_the_emulators_answer_or_says_why_not(self, run: Run) -> None:
        asked = {step["title"]: step for step in run.report["questions"]}
        assert asked.keys() == {question.text for question in QUESTIONS}
        assert all(step["assumed"] and (step["seen"] or step["why"]) for step in asked.values())
        assert [step["title"] for step in asked.values() if step["held"] is False] == [
            "Does drift detection see a detached key of the native type?"
        ]
        duplicate = asked["What does API Gateway answer to a duplicate?"]["seen"]
        assert duplicate == "409 ConflictException: The API Key is already part of this Usage Plan"

    def test_the_report_has_the_functions_answers_and_what_it_complained_of(self, run: Run) -> None:
        steps = {step["title"]: step for step in run.report["stories"]}
        assert steps[f"{MANY} keys at once"]["answers"] == {"ATTACHED": MANY}
        assert steps["Repair two that were removed by hand"]["answers"]["REPAIRED"] == 2
        (complaint,) = [
            line for line in steps["A deleted key, and a rollback"]["warnings"] if "ERROR LOST" in line
        ]
        assert "usage plan FreePlan" in complaint

    def test_nothing_is_left(self, aws: Aws, run: Run) -> None:
        assert left(aws) == {}, run.said
        # MiniStack deletes a bucket that has objects, and keeps no backup of a table; AWS does otherwise.
        made = {name for name, _ in run.calls}
        assert made >= {"s3:DeleteObject", "dynamodb:UpdateContinuousBackups"}

    def test_each_step_has_its_line_with_the_time_left(self, run: Run) -> None:
        lines = re.findall(
            r"^\[ ?(\d+)/(\d+)\] .+ … (?:ok|not here), \d+ s; \d+ (?:s|min) left$", run.said, re.MULTILINE
        )
        steps = len(STORIES) + len(QUESTIONS) + 3
        assert lines == [(str(number), str(steps)) for number in range(1, steps + 1)]

    def test_it_says_no_secret_and_no_id(self, run: Run) -> None:
        said = run.said + json.dumps(run.report)
        assert len(run.values) > MANY
        assert not [value for value in run.values if value in said]
        ids = {
            json.loads(params["body"])["keyId"]
            for name, params in run.calls
            if name.endswith("CreateUsagePlanKey")
        }
        assert len(ids) >= 6
        assert not [id_ for id_ in ids - {"nobody"} if id_ in said]
        assert embedded.ACCOUNT not in said.partition("In the end it deletes everything.")[2]

    def test_all_that_it_makes_has_one_prefix_and_one_tag(self, run: Run) -> None:
        made = [params["body"] for name, params in run.calls if name == "cloudformation:CreateStack"]
        (name,) = {each["StackName"].rpartition("-")[0] for each in made}
        assert name.startswith(PREFIX)
        tags = {(each["Tags.member.1.Key"], each["Tags.member.1.Value"]) for each in made}
        assert tags == {(TAG, name.removeprefix(PREFIX))}
        assert max(len(each["TemplateBody"]) for each in made) < 51_200
        others = {
            call for call, _ in run.calls if re.search(r":(Create|Put)(?!Object$|Stack$|UsagePlanKey$)", call)
        }
        assert others == set()

    def test_it_never_lists_keys_or_plans_of_others(self, place: Place, run: Run) -> None:
        lists = {"GetApiKeys", "GetApiKey", "GetUsagePlans", "GetRestApis"}
        assert not {call for call, _ in run.calls if call.partition(":")[2] in lists}
        with pytest.raises(ClientError, match="not authorized"):
            place.client("apigateway").get_api_keys()


#: Permissions that AWS's schemas of resource types name for what no template here uses.
UNUSED = [
    *("kms:*", "ec2:*", "elasticfilesystem:*", "s3files:*", "s3tables:*", "kinesis:*", "firehose:*"),
    *("iam:*tachRolePolicy", "iam:CreateServiceLinkedRole"),  # no managed policy
    "apigateway:UpdateRestApiPolicy",
    # An import of data, replicas, streams, and an update
    *("dynamodb:*Item", "dynamodb:Query", "dynamodb:Scan", "dynamodb:*Replica", "dynamodb:Import*"),
    *("dynamodb:*StreamingDestination", "dynamodb:*ContributorInsights", "dynamodb:PutResourcePolicy"),
    "dynamodb:UpdateTable",
    *(
        "lambda:PutFunctionConcurrency",
        "lambda:PutFunctionRecursionConfig",
        "lambda:PutFunctionScalingConfig",
    ),
    *("lambda:PutRuntimeManagementConfig", "lambda:PassCapacityProvider"),
    *("lambda:AssociateRuntimeAlias", "lambda:Get*CodeSigningConfig", "lambda:GetLayerVersion"),
    *("logs:*LogStream*", "logs:PutLogEvents", "logs:CreateLogDelivery", "logs:*DataProtectionPolicy"),
    *("logs:PutBearerTokenAuthentication", "logs:PutIndexPolicy", "logs:PutResourcePolicy"),
    *(
        "s3:Put*Configuration",
        "s3:PutBucket[!T]*",
        "s3:PutObjectAcl",
        "s3:REST.PUT.OBJECT",
        "s3:CreateBucketMetadataTableConfiguration",
    ),
]
#: What AWS checks in addition, and what the stories do that MiniStack lacks.
#: https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/using-iam-template.html
#: https://docs.aws.amazon.com/service-authorization/latest/reference/list_awscloudformation.html
ALSO = {
    "cloudformation:CreateChangeSet",
    "cloudformation:DetectStackResourceDrift",
    "lambda:UpdateFunctionConfiguration",
}
#: Operations whose action has another name.
ACTIONS = {
    "lambda:Invoke": "lambda:InvokeFunction",
    "s3:ListObjectsV2": "s3:ListBucket",
    "resourcegroupstaggingapi:GetResources": "tag:GetResources",
}


def of_types() -> set[str]:
    """The permissions with which CloudFormation makes, reads and deletes the resources of the stacks."""
    types = {"AWS::ApiGateway::ApiKey", "AWS::ApiGateway::UsagePlanKey", "AWS::Lambda::EventInvokeConfig"}
    for path in (ROOT / "template.yaml", HERE / "world.yaml", HERE / "probe.yaml"):
        types |= {resource["Type"] for resource in template_of(path)["Resources"].values()}
    types -= {"AWS::Serverless::Function", "AWS::SSM::Parameter", "AWS::CloudWatch::Dashboard"}  # not made
    return {
        action
        for type_ in types
        for kind in ("create", "read", "delete")
        for action in PROVIDER_SCHEMA_MANAGER.get_resource_schema("us-east-1", type_)
        .schema["handlers"]
        .get(kind, {})
        .get("permissions", [])
    }


class TestPolicy:
    """The manual's policy is enough, and has nothing superfluous. The run is held to it."""

    allowed: ClassVar = [
        action
        for statement in json.loads(embedded.policy("111122223333", REGION))["Statement"]
        for action in ([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
    ]

    def test_it_allows_what_cloudformation_needs_for_the_resources(self) -> None:
        missing = {
            action
            for action in of_types()
            if not any(fnmatchcase(action, each) for each in (*self.allowed, *UNUSED))
        }
        assert missing == set()

    def test_it_allows_nothing_superfluous(self, run: Run) -> None:
        made = {
            f"apigateway:{params['method']}" if name.startswith("apigateway") else ACTIONS.get(name, name)
            for name, params in run.calls
        }
        needed = made | of_types() | ALSO
        assert [
            each for each in self.allowed if not any(fnmatchcase(action, each) for action in needed)
        ] == []

    def test_it_is_short_enough_for_iam(self) -> None:
        """A managed policy takes 6,144 characters without white space."""
        policy = json.loads(embedded.policy("111122223333", REGION))
        assert len(json.dumps(policy, separators=(",", ":"))) < 6144


# --- Broken by hand ---

CHILD = """
import sys
import zipfile
from pathlib import Path
from acceptance import cli, embedded

port, certificate, api, *keys, path = sys.argv[1:]
cli.STORIES = cli.STORIES[:1]
cli.QUESTIONS = [question for question in cli.QUESTIONS if question.ask.__name__ == "quota"]
place = embedded.place(int(port), Path(certificate), api, tuple(keys))
cli.run(place, embedded.ACCOUNT, 12, Path(path), yes=True, is_embedded=True)
"""


@pytest.mark.parametrize(
    "phase",
    [
        "Make the world",
        "Deploy the function",
        "12 keys at once",
        "plan 11 of a key",
        "Deleting the stack many",
    ],
)
def test_after_a_kill_clean_finds_everything(
    aws: Aws, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """No code of the killed process runs: --clean has only the tag."""
    keys: Any = place.session.get_credentials()
    arguments = [str(aws.port), str(aws.certificate), aws.proxy.url, keys.access_key, keys.secret_key]
    command = [sys.executable, "-c", CHILD, *arguments, str(tmp_path / "report.json")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        said = ""
        while phase not in said:
            one = child.stdout.read(1)
            assert one, said
            said += one
        while not left(aws):
            assert child.poll() is None, said
        child.kill()
    monkeypatch.setattr(cli, "real", lambda region: place)
    assert cli.main(["--clean", "--yes", "--region", REGION, "--account", embedded.ACCOUNT]) == 0
    assert left(aws) == {}


def test_clean_says_that_there_is_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.clean_up(place, yes=False) == 0
    assert capsys.readouterr().out == f"{REGION}: nothing carries the tag {TAG}\n"


@pytest.fixture(scope="module")
def world(place: Place) -> Iterator[World]:
    """A world with the function, for single stories."""
    world = World(replace(place, late=0.5), "single", MANY)
    world.make()
    world.make_function()
    yield world
    assert clean.clean(world) == []


def single(act: Callable[[World], None]) -> Story:
    return Story("A story", 1, act)


class TestStories:
    """A story that goes wrong says so, and leaves nothing to the next one."""

    def test_an_association_that_is_left_is_named_and_detached(self, world: World) -> None:
        association = world.id(0, "free")
        with pytest.raises(WrongError, match=f"not believed: {association}"):
            play(world, single(lambda world: world.attach(association)))
        assert world.attached() == set()

    def test_an_association_that_is_missing_is_named(self, world: World) -> None:
        def lose(world: World) -> None:
            world.declare("lose", Member("Alice", 0, "free"))
            world.detach(world.id(0, "free"))

        with pytest.raises(WrongError, match=f"believed and not attached: {world.id(0, 'free')}"):
            play(world, single(lose))
        assert world.stacks.keys() == {"world", "function"}

    def test_another_end_of_a_stack_than_expected_is_told_with_its_reason(self, world: World) -> None:
        def fail(world: World) -> None:
            world.declare("fail", Member("Alice", 0, "nowhere"))

        with pytest.raises(
            WrongError, match=r"fail is ROLLBACK_COMPLETE, not CREATE_COMPLETE.*no usage plan nowhere"
        ):
            play(world, single(fail))
        assert world.stacks.keys() == {"world", "function"}

    def test_another_outcome_than_expected_is_told(self, world: World) -> None:
        def expect(world: World) -> None:
            world.declare("expect", Member("Alice", 0, "free"))
            world.expect("expect", Alice="VERIFIED")

        with pytest.raises(WrongError, match=r"'ATTACHED'.*not.*'VERIFIED'"):
            play(world, single(expect))

    def test_the_function_is_changed_while_it_works(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What `cut` and `crash` do; MiniStack would kill the function, and not invoke it again."""
        changes: list[dict[str, Any]] = []
        monkeypatch.setattr(world, "configure", lambda **change: changes.append(change))
        monkeypatch.setattr(world, "heal", lambda: changes.append({}))
        play(world, single(lambda world: meanwhile(world, "meanwhile", Timeout=1)))
        assert changes == [{"Timeout": 1}, {}]

    def test_a_change_of_the_function_is_taken_back(self, world: World) -> None:
        def timeout() -> int:
            function = world.place.client("lambda").get_function_configuration(FunctionName=world.name)
            return int(function["Timeout"])

        before = timeout()
        with world.changed(Timeout=1):
            assert timeout() == 1
        assert timeout() == before

    def test_what_the_emulator_lacks_it_lacks(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """If MiniStack sends the Update back one day, this fails, and the story can be played."""
        monkeypatch.setattr(world, "place", replace(world.place, lacks={}))
        with pytest.raises(WrongError, match="believed and not attached"):
            play(world, single(move_back))


class TestGuard:
    """Nothing is made in an account that nobody named, or without a yes."""

    def run(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, *arguments: str, answer: str | None = None
    ) -> tuple[int, set[str]]:
        calls: set[str] = set()
        place = replace(place)  # its clients are made anew, and are recorded

        def reply(_: str) -> str:
            if answer is None:
                raise EOFError
            return answer

        def before(model: Any, **_: object) -> None:
            calls.add(str(model.name))

        monkeypatch.setattr(cli, "real", lambda region: place)
        monkeypatch.setattr(builtins, "input", reply)
        place.session.events.register("before-call", before)
        try:
            return cli.main(["--region", REGION, *arguments]), calls
        finally:
            place.session.events.unregister("before-call", before)

    @pytest.mark.parametrize("more", [[], ["--yes"], ["--clean", "--yes"]])
    def test_another_account_than_the_named_one_is_refused(
        self,
        place: Place,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        more: list[str],
    ) -> None:
        done = self.run(place, monkeypatch, "--account", "111122223333", *more, answer="y")
        assert done == (1, {"GetCallerIdentity"})
        assert "of the account 000000000000, not 111122223333" in capsys.readouterr().err

    @pytest.mark.parametrize("answer", ["n", "", None])
    def test_without_a_yes_nothing_is_made(
        self,
        place: Place,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        answer: str | None,
    ) -> None:
        done = self.run(place, monkeypatch, "--account", embedded.ACCOUNT, answer=answer)
        assert done == (0, {"GetCallerIdentity"})
        said = capsys.readouterr().out
        assert all(each in said for each in ("49 API keys", "$0.0", "minutes", PREFIX, REGION, TAG))

    @pytest.mark.parametrize(
        "arguments",
        [["--account", "1"], ["--region", "eu-west-1"], ["--region", "a", "--region", "b", "--account", "1"]],
    )
    def test_the_account_and_one_region_have_to_be_named(self, arguments: list[str]) -> None:
        with pytest.raises(SystemExit):
            cli.main(arguments)

    def test_the_artifact_is_the_builds(self) -> None:
        with zipfile.ZipFile(io.BytesIO(cli.artifact())) as artifact:
            assert {"usage_plan_key/app.py", "crhelper/__init__.py"} <= {*artifact.namelist()}

    def test_it_costs_well_under_a_dollar(self) -> None:
        assert 0.02 < cost.at_most() < 0.2
        assert f"about {cost.FUNCTION_A_DAY} a day" in " ".join(PAGE.read_text().split())


def run_of(place: Place, path: Path, *acts: Callable[[World], None]) -> Run:
    """Play a run of these stories, without questions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "STORIES", [Story(f"Story {number}", 1, act) for number, act in enumerate(acts)])
        patch.setattr(cli, "QUESTIONS", [])
        return played(place, path)


class TestFailures:
    """A run goes on, cleans up, and says what failed."""

    def test_a_failed_story_stops_no_other_and_what_is_left_has_its_cost(
        self, aws: Aws, place: Place, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before, real = left(aws), clean.delete

        def fail(world: World) -> None:
            world.declare("fails", Member("Alice", 0, "free"))
            raise WrongError(f"the key {world.keys[0]} is wrong")

        def delete(world: World, stack: str) -> None:
            if stack == "function":
                raise WrongError("the stack function is DELETE_FAILED")
            real(world, stack)

        monkeypatch.setattr(clean, "delete", delete)
        run = run_of(place, tmp_path / "report.json", fail, lambda world: None)
        monkeypatch.undo()
        results = [(step["title"], step["result"], step["why"]) for step in run.report["stories"]]
        assert results[2:4] == [("Story 0", "FAILED", "the key Key00 is wrong"), ("Story 1", "ok", "")]
        assert (
            "LEFT BEHIND: the function's stack, $0.04 a day: the stack function is DELETE_FAILED" in run.said
        )
        assert run.status == 2
        (found,) = [found for run_id, found in clean.runs(place).items() if run_id != world.run]
        assert found.stacks.keys() == {"function"}
        assert clean.clean(found) == []
        assert left(aws) == before

    def test_an_interrupted_run_cleans_up(self, aws: Aws, place: Place, tmp_path: Path, world: World) -> None:
        before = left(aws)

        def interrupt(world: World) -> None:
            world.declare("interrupted", Member("Alice", 0, "free"))
            world.attach(world.id(1, "free"))
            world.configure(Timeout=60)
            raise KeyboardInterrupt

        run = run_of(place, tmp_path / "report.json", interrupt)
        assert (run.status, run.report["interrupted"]) == (130, True)
        made = [name.partition(":")[2] for name, _ in run.calls]
        order = [name for name in made if name in ("UpdateFunctionConfiguration", "DeleteStack")]
        assert order[:3] == ["UpdateFunctionConfiguration"] * 2 + ["DeleteStack"], "healed first"
        assert made.count("DeleteUsagePlanKey") == 1
        assert left(aws) == before


def test_what_cloudformation_cannot_delete_it_retains(monkeypatch: pytest.MonkeyPatch, place: Place) -> None:
    """An association that is retained goes with its key and its plan, in the world's stack."""
    world, asked = World(place, "fake"), []
    events = [
        {"LogicalResourceId": name, "ResourceStatus": status, "StackName": "stack"}
        for name, status in [("A", "DELETE_FAILED"), ("B", "DELETE_COMPLETE"), ("stack", "DELETE_FAILED")]
    ]
    ends = iter([Ended("DELETE_FAILED", events), Ended("DELETE_COMPLETE", [])])
    monkeypatch.setattr(world, "wait", lambda *_: next(ends))
    monkeypatch.setattr(world, "start_delete", lambda stack, retain=(): asked.append((stack, retain)))
    clean.delete(world, "many")
    assert asked == [("many", ()), ("many", ["A"])]


class Full(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, _: str) -> int:
        raise BrokenPipeError


def test_a_run_goes_on_if_nobody_reads_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it made has to be deleted."""
    monkeypatch.setattr(sys, "stdout", Full())
    cli.tell("Deleting the world's stack")


class TestReport:
    """Whoever sends the report in an issue sends no secret."""

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("key abcdef1234 of plan uvwxyz", "key Key01 of plan FreePlan"),
            (
                "arn:aws:lambda:eu-west-1:111122223333:function:f",
                "arn:aws:lambda:eu-west-1:ACCOUNT:function:f",
            ),
            ("x-api-key hjKLs81fDDn2jfiekKfd92jdkd8sjfSkd83jdkfQ", "x-api-key VALUE"),
            ("AKIAIOSFODNN7EXAMPLE", "VALUE"),
            ("stack/a/0b1c2d3e-aaaa-bbbb-cccc-0123456789ab", "stack/a/UUID"),
            ("PUT https://bucket.s3.amazonaws.com/a?X-Amz-Signature=1 failed", "PUT URL failed"),
            (
                "409 ConflictException: Please try again later.",
                "409 ConflictException: Please try again later.",
            ),
            ("UPDATE_ROLLBACK_COMPLETE of upk-acceptance-1a2b3c-first", None),
            ("ProvisionedThroughputExceededException", None),
        ],
    )
    def test_ids_and_secrets_are_replaced(self, text: str, shown: str | None) -> None:
        assert redacted(text, {"abcdef1234": "Key01", "uvwxyz": "FreePlan"}) == (shown or text)

    def test_a_story_has_the_lines_of_its_time(self) -> None:
        step = Step("A story", began=100, seconds=10)
        log: list[tuple[float, str]] = [
            (99, '{"level":"ERROR","message":"before"}'),
            (101, '{"level":"INFO","message":"SUCCESS","status":"SUCCESS","outcome":"ATTACHED"}'),
            (102, '{"level":"WARNING","message":"waits"}'),
            (102, '{"level":"WARNING","message":"waits"}'),
            (103, "2026-11-29 UUID Task timed out after 1.00 seconds\n"),
            (110, '{"level":"ERROR","message":"after"}'),
        ]
        collect([step], log, str)
        assert step.answers == {"ATTACHED": 1}
        assert step.warnings == [
            "WARNING waits (2 times)",
            "2026-11-29 UUID Task timed out after 1.00 seconds",
        ]

    def test_what_is_left_counts_as_a_failure(self) -> None:
        report = Report(
            "eu-west-1", embedded=False, keys=40, stories=[Step("a"), Step("b", "ok")], left=["c"]
        )
        assert report.failures == 2
        assert "eu-west-1" in report.text()


class TestManual:
    """docs/acceptance.md has the embedded run's report, and says so."""

    page = (ROOT / "docs" / "acceptance.md").read_text()

    def test_the_example_has_each_story_and_question_of_a_run_of_forty_keys(self) -> None:
        (example,) = re.findall(r"```console\n(.*?)```", self.page, re.DOTALL)
        assert "on the embedded AWS: this says nothing about AWS" in example
        titles = [story.of(40) for story in STORIES] + [question.text for question in QUESTIONS]
        assert [title for title in titles if title not in example] == []

    def test_until_there_is_a_real_run_it_says_so(self) -> None:
        _, _, results = self.page.partition("## Results of real runs")
        rows = re.findall(r"^\| [a-z]{2}-", results, re.MULTILINE)
        assert bool(rows) != ("There is none yet" in results)
