"""make acceptance plays on the embedded AWS, as a user who has the manual's policy only.

One run plays every story, the quick questions, and then stories that go wrong; its report, its calls and what
it has left tell how it went. A process is killed, and --clean finds everything.
"""

import io
import json
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from fnmatch import fnmatchcase
from types import SimpleNamespace as Namespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from cfnlint.schema import PROVIDER_SCHEMA_MANAGER

from acceptance import clean, cli, cost, embedded
from acceptance.questions import QUESTIONS, Question, rollback_id
from acceptance.report import Step, collect, redacted
from acceptance.stories import STORIES, Story
from acceptance.world import HERE, PREFIX, ROOT, TAG, Ended, Member, Place, World, WrongError, template_of
from emulators.ministack import REGION, Aws, running

MANY = 6
PAGE = (ROOT / "docs" / "acceptance.md").read_text()
SLOW = ("How often does", "How many sends", "Does Lambda's poller", "Does a message that", "Does a hidden")
QUICK = [question for question in QUESTIONS if not question.text.startswith(SLOW)]


@pytest.fixture(scope="module")
def aws() -> Iterator[Aws]:
    with running() as aws:
        yield aws


@pytest.fixture(scope="module")
def place(aws: Aws) -> Place:
    return embedded.place_of(aws)


LISTS = """
cloudformation:describe_stacks lambda:list_functions lambda:list_event_source_mappings dynamodb:list_tables
sqs:list_queues logs:describe_log_groups cloudwatch:describe_alarms events:list_rules iam:list_roles
s3:list_buckets apigateway:get_api_keys apigateway:get_usage_plans apigateway:get_rest_apis
"""


def left(aws: Aws) -> set[str]:
    """Tell what kinds of things are in the account, whoever made them."""
    found = set()
    for each in LISTS.split():
        service, operation = each.split(":")
        pages = aws.client(service).get_paginator(operation).paginate().build_full_result()
        found |= {operation for part in pages.values() if isinstance(part, list) and part}
    return found


@contextmanager
def recorded(place: Place) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Record each call's `service:Operation` and parameters."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def before(model: Any, params: dict[str, Any], **_: object) -> None:
        calls.append((f"{model.service_model.service_name}:{model.name}", params))

    place.session.events.register("before-call", before)
    yield calls
    place.session.events.unregister("before-call", before)


Start = Callable[..., tuple[int, str, set[str]]]


@pytest.fixture
def start(place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Start:
    """Start it with these arguments and this answer; return its exit, its lines, and the calls."""
    place = replace(place)  # its clients are made anew, and are recorded
    monkeypatch.setattr(cli, "real", lambda region: place)

    def start(given: str, answer: str = "") -> tuple[int, str, set[str]]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        with recorded(place) as calls:
            status = cli.main(["--region", REGION, "--account", *given.split()])
        return status, "".join(capsys.readouterr()), {name for name, _ in calls}

    return start


# --- Stories that go wrong ---


def leaves(world: World) -> None:
    world.place = replace(world.place, late=0.1)  # what is wrong here stays wrong
    world.attach(world.id(0, "free"))


def expects(world: World) -> None:
    world.declare("expect", Member("Alice", 0, "free"))
    world.expect("expect", Alice="VERIFIED")


def passes(world: World) -> None:
    """No story before has left this one anything, and the function is as before."""
    assert world.stacks.keys() == {"world", "function"}
    function = world.place.client("lambda").get_function_configuration(FunctionName=world.name)
    assert (function["Timeout"], function["Handler"]) == (90, "usage_plan_key.app.handler")
    world.place = replace(world.place, late=60)


#: This world has played no story.
TOO_EARLY = Question("Why?", "nothing", 1, lambda world: rollback_id(World(world.place, world.run)))
#: Each story, and what the report says of it.
WRONG: dict[str, tuple[Callable[[World], object], str]] = {
    "leaves one": (leaves, "attached: none; not believed: Key00:FreePlan"),
    "misses one": (lambda world: world.compare(besides=["A"]), "not attached: A; not believed: none"),
    "fails": (
        lambda world: world.declare("fail", Member("Alice", 0, "nowhere")),
        r"fail is ROLLBACK_COMPLETE, not CREATE_COMPLETE.*no usage plan nowhere",
    ),
    "has another outcome": (expects, r"'ATTACHED'.*not.*'VERIFIED'"),
    "passes": (passes, ""),
}


# --- A run ---


@pytest.fixture(scope="module")
def run(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run on an AWS on which nothing else was; it cannot delete the function's stack at first.

    It tells its exit, lines and report, its calls, and the keys' values that it has seen.
    """
    path, said, values = tmp_path_factory.mktemp("run") / "acceptance.json", io.StringIO(), set[str]()
    real = clean.delete

    def after(parsed: dict[str, Any], **_: object) -> None:
        values.update(key["value"] for key in parsed.get("items", []))

    def delete(world: World, stack: str) -> None:
        if stack == "function":
            raise WrongError("the stack function is DELETE_FAILED")
        real(world, stack)

    place.session.events.register("after-call.apigateway.GetUsagePlanKeys", after)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), recorded(place) as calls:
        all_of_them = [*STORIES, *(Story(title, 1, play) for title, (play, _) in WRONG.items())]
        patch.setattr(cli, "STORIES", all_of_them)
        patch.setattr(cli, "QUESTIONS", [*QUESTIONS, TOO_EARLY])
        patch.setattr(clean, "delete", delete)
        only = [story.of(MANY) for story in all_of_them] + [it.text for it in (*QUICK, TOO_EARLY)]
        status = cli.Run(replace(place), MANY, only, embedded=True).play(path)
    report = json.loads(path.read_text())
    steps = {kind: {step["title"]: step for step in report[kind]} for kind in ("stories", "questions")}
    return Namespace(status=status, said=said.getvalue(), report=report, calls=calls, values=values, **steps)


def test_each_story_is_green_and_each_failure_counts(run: Any) -> None:
    wrong = [title for title, (_, why) in WRONG.items() if why]
    assert [title for title, step in run.stories.items() if step["result"] != "ok"] == wrong, run.said
    assert len(run.stories) == len(STORIES) + len(WRONG) + 3
    why = {title: run.stories[title]["why"] for title in wrong}
    assert [title for title in wrong if not re.search(WRONG[title][1], why[title])] == [], why
    assert run.status == run.report["failures"] == len(wrong) + 1
    assert "LEFT BEHIND: the function's stack, $0.04 a day: the stack function is DELETE_FAILED" in run.said


def test_each_question_has_the_emulators_answer(run: Any) -> None:
    asked = dict(run.questions)
    assert asked.pop("Why?")["why"].startswith("the story that rolls a move back was not played")
    assert asked.keys() == {question.text for question in QUICK}
    assert all(step["assumed"] and step["seen"] for step in asked.values())
    assert [title for title, step in asked.items() if step["held"] is False] == [
        "What does it answer to plan 11 of a key?",
        "Does drift detection see a detached key of the native type?",
    ]
    duplicate = asked["What does API Gateway answer to a duplicate?"]["seen"]
    assert duplicate == "409 ConflictException: The API Key is already part of this Usage Plan"
    assert asked["Which id has the Update of a rollback?"]["seen"] == "the new one"


def test_the_report_has_the_functions_answers_and_what_it_complained_of(run: Any) -> None:
    steps = run.stories
    assert steps[f"{MANY} keys at once"]["answers"] == {"ATTACHED": MANY}
    assert steps["Repair two that were removed by hand"]["answers"]["REPAIRED"] == 2
    (lost,) = [it for it in steps["A deleted key, and a rollback"]["warnings"] if "ERROR LOST" in it]
    assert "usage plan FreePlan" in lost
    cut, crash = (steps[f"The function{it} while it works"] for it in ("'s time is cut", " crashes"))
    assert re.search("Worker process died|no time was left to begin", str(cut["warnings"]))
    assert re.search(r"Worker process died|\[ERROR\] RuntimeError", str(crash["warnings"]))


def test_it_says_no_secret_and_no_id(run: Any) -> None:
    said = run.said + json.dumps(run.report)
    bodies = [params["body"] for name, params in run.calls if name.endswith("CreateUsagePlanKey")]
    ids = {json.loads(body)["keyId"] for body in bodies} - {"nobody"}
    assert len(run.values) > MANY
    assert len(ids) >= 6
    assert not [secret for secret in {*run.values, *ids, embedded.ACCOUNT} if secret in said]


def test_all_that_it_makes_has_one_prefix_and_one_tag_and_it_lists_nothing_of_others(
    place: Place, run: Any
) -> None:
    made = [params["body"] for name, params in run.calls if name == "cloudformation:CreateStack"]
    (name,) = {each["StackName"].rpartition("-")[0] for each in made}
    tags = {(each["Tags.member.1.Key"], each["Tags.member.1.Value"]) for each in made}
    assert tags == {(TAG, name.removeprefix(PREFIX))}
    assert max(len(each["TemplateBody"]) for each in made) < 51_200
    beside = r":((Create|Put)(?!Object$|Stack$|UsagePlanKey$)|Get(ApiKeys?|UsagePlans|RestApis)$)"
    assert not {call for call, _ in run.calls if re.search(beside, call)}
    with pytest.raises(ClientError, match="not authorized"):
        place.client("apigateway").get_api_keys()


# --- The policy ---

#: Permissions that AWS's schemas of resource types name for what no template here uses.
UNUSED = """
kms:* ec2:* elasticfilesystem:* s3files:* s3tables:* kinesis:* firehose:* iam:*tachRolePolicy
iam:CreateServiceLinkedRole apigateway:UpdateRestApiPolicy dynamodb:*Item dynamodb:Query dynamodb:Scan
dynamodb:*Replica dynamodb:Import* dynamodb:*StreamingDestination dynamodb:*ContributorInsights
dynamodb:PutResourcePolicy dynamodb:UpdateTable lambda:PutFunctionConcurrency
lambda:PutFunctionRecursionConfig lambda:PutFunctionScalingConfig lambda:PutRuntimeManagementConfig
lambda:PassCapacityProvider lambda:AssociateRuntimeAlias lambda:Get*CodeSigningConfig lambda:GetLayerVersion
logs:*LogStream* logs:PutLogEvents logs:CreateLogDelivery logs:*DataProtectionPolicy
logs:PutBearerTokenAuthentication logs:PutIndexPolicy logs:PutResourcePolicy s3:Put*Configuration
s3:PutBucket[!T]* s3:PutObjectAcl s3:REST.PUT.OBJECT s3:CreateBucketMetadataTableConfiguration
"""
#: What AWS checks in addition.
#: https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/using-iam-template.html
#: https://docs.aws.amazon.com/service-authorization/latest/reference/list_awscloudformation.html
#: And what only a slow question needs.
ALSO = {"cloudformation:CreateChangeSet", "cloudformation:DetectStackResourceDrift", "sqs:SendMessage"}
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
    found = set[str]()
    for type_ in types:
        handlers = PROVIDER_SCHEMA_MANAGER.get_resource_schema("us-east-1", type_).schema["handlers"]
        for kind in {"create", "read", "delete"} & handlers.keys():
            found.update(handlers[kind]["permissions"])
    return found


def allowed() -> list[str]:
    policy = json.loads(embedded.policy("111122223333", REGION))
    assert len(json.dumps(policy, separators=(",", ":"))) < 6144, "IAM takes no longer one"
    actions = [statement["Action"] for statement in policy["Statement"]]
    return [action for each in actions for action in ([each] if isinstance(each, str) else each)]


def test_the_policy_allows_what_the_run_and_cloudformation_need_and_nothing_else(run: Any) -> None:
    """The run is held to it, so it has what the run needs."""
    made = {
        f"apigateway:{params['method']}" if name.startswith("apigateway") else ACTIONS.get(name, name)
        for name, params in run.calls
    }
    actions, needed = allowed(), of_types() | ALSO
    known = [*actions, *UNUSED.split()]
    assert {action for action in needed if not any(fnmatchcase(action, each) for each in known)} == set()
    assert [it for it in actions if not any(fnmatchcase(action, it) for action in made | needed)] == []


# --- What is left ---


def test_clean_finds_what_a_run_could_not_delete_and_then_nothing(aws: Aws, run: Any, start: Start) -> None:
    assert "describe_stacks" in left(aws), run.said
    assert start(f"{embedded.ACCOUNT} --clean --yes")[0] == 0
    assert left(aws) == set()
    # MiniStack deletes a bucket that has objects, and keeps no backup of a table; AWS does otherwise.
    assert {name for name, _ in run.calls} >= {"s3:DeleteObject", "dynamodb:UpdateContinuousBackups"}
    status, said, _ = start(f"{embedded.ACCOUNT} --clean")
    assert (status, said) == (0, f"{REGION}: nothing carries the tag {TAG}\n")


CHILD = """
import os, signal, sys
from pathlib import Path
from acceptance import cli, embedded

signal.signal(signal.SIGINT, signal.default_int_handler)
port, certificate, api, *keys = sys.argv[1:]
place = embedded.place(int(port), Path(certificate), api, tuple(keys))
sys.exit(cli.Run(place, 6, ["keys at once"], embedded=True).play(Path(os.devnull)))
"""


@pytest.mark.parametrize(
    ("phase", "number", "held"),
    [
        ("Make the world", signal.SIGKILL, "CreateUsagePlanKey"),
        ("Deploy the function", signal.SIGKILL, "CreateUsagePlanKey"),
        ("6 keys at once", signal.SIGINT, "CreateUsagePlanKey"),
        ("Deleting the stack many", signal.SIGKILL, "DeleteUsagePlanKey"),
    ],
)
def test_after_a_kill_clean_finds_everything_and_after_ctrl_c_nothing_is_left(
    aws: Aws, place: Place, phase: str, number: int, held: str
) -> None:
    """No code of a killed process runs, so --clean has only the tag. The held call keeps it from its end."""
    keys: Any = place.session.get_credentials()
    arguments = [str(aws.port), str(aws.certificate), aws.proxy.url, keys.access_key, keys.secret_key]
    command = [sys.executable, "-c", CHILD, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        with aws.proxy.holding(held):
            said = ""
            while phase not in said:
                said += (more := child.stdout.read(1))
                assert more, said
            while not left(aws):
                assert child.poll() is None, said
            child.send_signal(number)
        assert child.wait() == (130 if number == signal.SIGINT else -number)
    assert bool(left(aws)) == (number == signal.SIGKILL)
    assert cli.clean_up(place, yes=True) == 0
    assert left(aws) == set()


def test_what_cloudformation_cannot_delete_it_retains(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """An association that is retained goes with its key and its plan, in the world's stack."""
    world, asked = World(place, "fake"), []
    statuses = {"A": "DELETE_FAILED", "B": "DELETE_COMPLETE", "many": "DELETE_FAILED"}
    event = {"StackName": "many"}
    events = [event | {"LogicalResourceId": it, "ResourceStatus": statuses[it]} for it in statuses]
    ended = iter([Ended("DELETE_FAILED", events), Ended("DELETE_COMPLETE", [])])
    monkeypatch.setattr(world, "wait", lambda *_: next(ended))
    monkeypatch.setattr(world, "start_delete", lambda stack, retain=(): asked.append((stack, retain)))
    clean.delete(world, "many")
    assert asked == [("many", ()), ("many", ["A"])]


# --- The guard ---


@pytest.mark.parametrize("more", ["", "--yes", "--clean --yes"])
def test_nothing_is_made_in_another_account_than_the_named_one(start: Start, more: str) -> None:
    status, said, calls = start(f"111122223333 {more}", "y\n")
    assert (status, calls) == (1, {"sts:GetCallerIdentity"})
    assert "of the account 000000000000, not 111122223333" in said


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_nothing_is_made_without_a_yes(start: Start, answer: str) -> None:
    """Nobody may be there to answer."""
    status, said, calls = start(embedded.ACCOUNT, answer)
    assert (status, calls) == (0, {"sts:GetCallerIdentity"})
    assert [it for it in ("49 API keys", "$0.0", "minutes", PREFIX, REGION, TAG) if it not in said] == []


REGIONS = "--region a --region b --account 1"


@pytest.mark.parametrize(
    "given", ["--account 1", "--region a", REGIONS, "--embedded --keys 5", "--embedded --only Nothing"]
)
def test_what_cannot_be_played_is_refused(given: str) -> None:
    with pytest.raises(SystemExit):
        cli.main(given.split())


def test_a_part_is_what_its_titles_have_and_the_first_story(place: Place) -> None:
    part = cli.Run(place, MANY, ["Verify", "duplicate"], embedded=True)
    assert [story.title for story in part.stories] == ["{many} keys at once", "Verify them"]
    assert [question.text for question in part.questions] == [QUESTIONS[0].text]


def test_the_artifact_is_the_builds() -> None:
    with zipfile.ZipFile(io.BytesIO(cli.artifact())) as artifact:
        assert {"usage_plan_key/app.py", "crhelper/__init__.py"} <= {*artifact.namelist()}


def test_a_run_goes_on_if_nobody_reads_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it made has to be deleted."""
    full = type("Full", (io.StringIO,), {"write": lambda *_: (_ for _ in ()).throw(BrokenPipeError())})
    monkeypatch.setattr(sys, "stdout", full())
    cli.tell("Deleting the world's stack")


# --- The report, and the manual ---

SHOWN = {
    "key abcdef1234 of plan uvwxyz": "key Key01 of plan FreePlan",
    "arn:aws:lambda:eu-west-1:111122223333:function:f": "arn:aws:lambda:eu-west-1:ACCOUNT:function:f",
    "x-api-key hjKLs81fDDn2jfiekKfd92jdkd8sjfSkd83jdkfQ": "x-api-key VALUE",
    "AKIAIOSFODNN7EXAMPLE": "VALUE",
    "stack/a/0b1c2d3e-aaaa-bbbb-cccc-0123456789ab": "stack/a/UUID",
    "PUT https://bucket.s3.amazonaws.com/a?X-Amz-Signature=1 failed": "PUT URL failed",
    "UPDATE_ROLLBACK_COMPLETE of upk-acceptance-1a2b3c-first": "",
    "ProvisionedThroughputExceededException": "",
}


@pytest.mark.parametrize(("text", "shown"), SHOWN.items())
def test_whoever_sends_the_report_sends_no_id_and_no_secret(text: str, shown: str) -> None:
    assert redacted(text, {"abcdef1234": "Key01", "uvwxyz": "FreePlan"}) == (shown or text)


def test_a_story_has_the_lines_of_its_time() -> None:
    step = Step("A story", began=100, seconds=10)
    said = '{"level":"INFO","message":"SUCCESS","status":"SUCCESS","outcome":"ATTACHED"}'
    waits, died = '{"level":"WARNING","message":"waits"}', "2026-11-29 UUID Task timed out after 1.00 seconds"
    log = [*enumerate([waits, said, waits, waits, f"{died}\n", "START RequestId: UUID"], 99), (110.0, waits)]
    collect([step], log, str)
    assert step.answers == {"ATTACHED": 1}
    assert step.warnings == ["WARNING waits (2 times)", died]


def test_the_manual_has_the_embedded_runs_report_the_real_ones_results_and_the_cost() -> None:
    (example,) = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    assert "on the embedded AWS: this says nothing about AWS" in example
    titles = [story.of(40) for story in STORIES] + [question.text for question in QUESTIONS]
    assert [title for title in titles if title not in example] == []
    assert "not asked" not in example
    _, _, results = PAGE.partition("## Results of real runs")
    assert bool(re.findall(r"^\| [a-z]{2}-", results, re.MULTILINE)) != ("There is none yet" in results)
    assert 0.02 < cost.at_most() < 0.1
    assert "It costs less than $0.10" in PAGE
    assert f"about {cost.FUNCTION_A_DAY} a day" in " ".join(PAGE.split())
