"""The manual fits the code, the template and AWS's API, in every link, snippet, file and command."""

import ast
import hashlib
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore import xform_name
from cfnlint import api as cfn_lint
from markdown_it import MarkdownIt
from markdown_it.token import Token
from samtranslator.yaml_helper import yaml_parse

from usage_plan_key import errors, request, response, rules
from usage_plan_key.errors import FailedError
from usage_plan_key.model import AssociationRecord, Holder, ResourceRecord, Response, Snapshot, Standing
from usage_plan_key.queue import Queue
from usage_plan_key.retry import Deadline

ROOT = Path(__file__).parents[1]
HANDLER = sorted((ROOT / "handler" / "usage_plan_key").glob("*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("tools/*.md")])
README, REFERENCE, DEPLOY, OPERATE, CHANGELOG = (
    ROOT / path
    for path in ("README.md", "docs/reference.md", "docs/deploy.md", "docs/operate.md", "CHANGELOG.md")
)
EVENT = json.loads((ROOT / "events" / "create.json").read_text())
MARKDOWN = MarkdownIt("commonmark").enable("table")


@cache
def tokens(page: Path) -> list[Token]:
    """A page's tokens, those inside its paragraphs too."""
    return [each for token in MARKDOWN.parse(page.read_text()) for each in (token, *(token.children or []))]


def title(page: Path) -> str:
    return str(page.relative_to(ROOT))


def fences(*languages: str) -> list[Any]:
    """The pages' code blocks in these languages."""
    return [
        pytest.param(token.content, id=f"{title(page)}:{(token.map or [0])[0] + 1}")
        for page in PAGES
        for token in tokens(page)
        if token.type == "fence" and token.info in languages
    ]


def headings(page: Path, level: str = "h") -> list[str]:
    """The headings' texts, as GitHub shows them."""
    return [
        "".join(child.content for child in inline.children or [])
        for heading, inline in zip(tokens(page), tokens(page)[1:], strict=False)
        if heading.type == "heading_open" and heading.tag.startswith(level)
    ]


def anchors(page: Path) -> set[str]:
    """Make anchors of the headings, as GitHub does."""
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings(page)}


def table(page: Path, first: str) -> list[list[str]]:
    """The rows of the table whose first heading this is."""
    lines = page.read_text().splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.startswith(f"| {first} |")]
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def plain(page: Path) -> str:
    """The text without its marks and line breaks."""
    return " ".join(re.sub(r"[*`]|^> ?", "", page.read_text(), flags=re.MULTILINE).split())


@cache
def template() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml_parse((ROOT / "template.yaml").read_text())
    return parsed


# --- Links, names and commands ---


def links() -> Iterator[Any]:
    for page in PAGES:
        for token in tokens(page):
            target = token.attrGet("href" if token.type == "link_open" else "src")
            if token.type in ("link_open", "image") and not str(target).startswith("https://"):
                yield pytest.param(page, str(target), id=f"{title(page)}: {target}")


@pytest.mark.parametrize(("page", "target"), list(links()))
def test_each_link_leads_somewhere(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    found = (page.parent / path).resolve() if path else page
    assert found.exists()
    assert not anchor or anchor in anchors(found)


def test_each_page_can_be_reached_from_the_readme() -> None:
    seen, todo = set(), [README]
    while todo:
        page = todo.pop()
        seen.add(page)
        targets = {
            (page.parent / str(token.attrGet("href")).partition("#")[0]).resolve() for token in tokens(page)
        }
        todo += [target for target in targets if target in PAGES and target not in seen]
    assert seen == set(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_each_file_that_a_page_names_exists(page: Path) -> None:
    tops = "|".join(re.escape(path.name) for path in ROOT.iterdir() if path.is_dir())
    said = " ".join(token.content for token in tokens(page) if token.type in ("code_inline", "fence"))
    named = set(re.findall(rf"(?<![\w/.:-])(?:{tops})/[\w./-]*\w/?", said))
    named |= {
        token.content
        for token in tokens(page)
        if token.type == "code_inline"
        and re.fullmatch(r"[\w-]+\.(py|yaml|toml|md)|[\w-]+env\.json", token.content)
    }
    made = {".venv", "build"}
    here = [
        ROOT,
        *(path.parent for path in ROOT.glob("*/*/*.py")),
        *(path.parent for path in ROOT.glob("*/*.py")),
    ]
    assert {name for name in named - made if not any((folder / name).exists() for folder in here)} == set()


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_each_make_target_that_a_page_names_exists(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    said = "\n".join(
        token.content for token in tokens(page) if token.type in ("code_inline", "fence", "code_block")
    )
    assert set(re.findall(r"^make ([a-z][\w-]*)", said, re.MULTILINE)) - targets == set()


#: Commands of the AWS CLI that are no operations of AWS.
OWN_COMMANDS = {("cloudformation", "package"), ("cloudformation", "deploy")}
GLOBAL_OPTIONS = {"query", "output", "region", "cli-binary-format", "cli-read-timeout"}


def commands() -> Iterator[Any]:
    for page in PAGES:
        for token in tokens(page):
            if token.type == "fence" and token.info == "sh":
                text = token.content.replace("\\\n", " ")
                for service, operation, rest in re.findall(
                    r"\baws ([a-z]+) ([a-z-]+)((?:(?!\baws )[^\n])*)", text
                ):
                    if (service, operation) not in OWN_COMMANDS:
                        yield pytest.param(
                            service, operation, rest, id=f"{title(page)}: {service} {operation}"
                        )


@pytest.mark.parametrize(("service", "operation", "rest"), list(commands()))
def test_each_aws_command_has_an_operation_and_options_that_aws_has(
    service: str, operation: str, rest: str
) -> None:
    """The AWS CLI derives its commands from the same descriptions that botocore has."""
    session = botocore.session.get_session()
    model = session.get_service_model(service)
    names = {xform_name(name, "-"): name for name in model.operation_names}
    if operation == "wait":
        waiters = session.get_waiter_model(service)
        waits = {xform_name(name, "-"): waiters.get_waiter(name).operation for name in waiters.waiter_names}
        name = waits[rest.split(maxsplit=1)[0]]
    else:
        name = names[operation]
    shape = model.operation_model(name).input_shape
    known = {xform_name(member, "-"): member for member in shape.members} if shape else {}
    given = set(re.findall(r"(?<= )--([a-z][a-z-]*)", rest))
    assert given - known.keys() - GLOBAL_OPTIONS == set()
    needed = {xform_name(member, "-") for member in shape.required_members} if shape else set()
    assert needed - given == set()


def test_the_readme_is_short_and_narrow() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 110] == []


# --- Snippets ---


@pytest.mark.parametrize("snippet", fences("json"))
def test_each_json_snippet_can_be_read(snippet: str) -> None:
    json.loads(snippet)


@pytest.mark.parametrize("snippet", fences("yaml"))
def test_each_yaml_snippet_can_be_read(snippet: str) -> None:
    assert yaml_parse(snippet)


def custom_resources(snippet: str) -> list[dict[str, Any]]:
    found = yaml_parse(snippet)
    resources = found.get("Resources", found)
    return [
        each["Properties"]
        for each in resources.values()
        if isinstance(each, dict) and each.get("Type") == "Custom::UsagePlanKey"
    ]


@pytest.mark.parametrize("snippet", [each for each in fences("yaml") if custom_resources(each.values[0])])
def test_the_function_takes_each_custom_resource_of_a_snippet(snippet: str) -> None:
    for properties in custom_resources(snippet):
        resolved = {
            name: "a1b2c3" if isinstance(value, dict) else value for name, value in properties.items()
        }
        assert isinstance(request.parse({**EVENT, "ResourceProperties": resolved}), request.Create)
        assert "ServiceToken" in properties


@pytest.mark.parametrize(
    "snippet", [each for each in fences("yaml") if "\nResources:" in f"\n{each.values[0]}"]
)
def test_cfn_lint_finds_nothing_in_a_whole_template(snippet: str) -> None:
    assert cfn_lint.lint(snippet, regions=["us-east-1"]) == []


@pytest.mark.parametrize("policy", [each for each in fences("json") if '"Statement"' in each.values[0]])
def test_each_policy_is_one_that_iam_can_read(policy: str) -> None:
    # https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_grammar.html
    read = json.loads(policy)
    assert read["Version"] == "2012-10-17"
    for statement in read["Statement"]:
        assert statement.keys() == {"Sid", "Effect", "Action", "Resource"}
        assert re.fullmatch(r"\w+", statement["Sid"])
        actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        assert all(re.fullmatch(r"[a-z0-9]+:[A-Za-z*]+", action) for action in actions)


# --- The reference ---


def test_the_reference_has_each_property_and_says_the_same_of_each() -> None:
    expected = {*request.PROPERTIES, "ServiceToken", "ServiceTimeout"}
    _, text, *_ = re.split(r"^## (?:Properties|Return values)$", REFERENCE.read_text(), flags=re.MULTILINE)
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", text, re.MULTILINE | re.DOTALL))
    assert sections.keys() == expected
    for section in sections.values():
        for name in ("Required", "Type", "Default", "Update requires"):
            assert section.count(f"*{name}*: ") == 1


@pytest.mark.parametrize(
    "snippet", [each for each in fences("yaml", "json") if "VerifyTrigger" in each.values[0]][:2]
)
def test_the_syntax_has_each_property(snippet: str) -> None:
    assert yaml_parse(snippet)["Properties"].keys() == {*request.PROPERTIES, "ServiceToken", "ServiceTimeout"}


def test_the_reference_has_each_attribute() -> None:
    asks = request.parse(
        {**EVENT, "ResourceProperties": {**EVENT["ResourceProperties"], "IncludeValue": "true"}}
    )
    answer = json.loads(
        response.body(asks, Response(success=True, id="a:b", key_name="Alice", value="secret"), "")
    )
    _, text, *_ = re.split(r"^#+ (?:Fn::GetAtt|Outcomes)$", REFERENCE.read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"^#### (\w+)$", text, re.MULTILINE)) == answer["Data"].keys()


HOLDERS = {
    "nobody": Standing.NOBODY,
    "this resource": Standing.THIS,
    "this resource, adopted": Standing.THIS,
    "another resource of the stack": Standing.SIBLING,
    "other stacks only": Standing.STRANGERS,
}


def outcome(held_by: str, in_plan: str, on_existing: str) -> str:
    """Ask the rules for the outcome of an Update."""
    properties = {**EVENT["ResourceProperties"], "OnExisting": on_existing}
    physical_id = f"{properties['KeyId']}:{properties['UsagePlanId']}"
    update = request.parse(
        {
            **EVENT,
            "RequestType": "Update",
            "PhysicalResourceId": physical_id,
            "ResourceProperties": properties,
        }
    )
    assert isinstance(update, request.Update)
    stack = update.holder.stack_id
    holder = {
        Standing.NOBODY: set[Holder](),
        Standing.THIS: {update.holder},
        Standing.SIBLING: {Holder(stack, "Another")},
        Standing.STRANGERS: {Holder(f"{stack}2", "Another")},
    }[HOLDERS[held_by]]
    record = AssociationRecord(holders=frozenset(holder))
    if held_by.endswith("adopted"):
        record = record._replace(preexisting=True)
    stands = rules.standing(record, update.holder)
    assert stands is HOLDERS[held_by]
    try:
        rules.take_hold(Snapshot(ResourceRecord(), {update.wanted: record}), update)
        if stands is Standing.NOBODY and in_plan == "yes":
            rules.check_existing(update)
    except FailedError:
        return "FAILED"
    return str(rules.outcome(update, stands, record, present=in_plan == "yes"))


@pytest.mark.parametrize("row", table(REFERENCE, "Held by"), ids=" ".join)
def test_the_table_of_outcomes_is_that_of_the_rules(row: list[str]) -> None:
    held_by, in_plan, on_existing, told, _ = row
    choices = list(request.OnExisting) if on_existing == "any" else re.findall(r"\w+", on_existing)
    assert {outcome(held_by, in_plan, choice) for choice in choices} == {told.strip("`")}


def test_the_table_of_outcomes_has_each_case() -> None:
    every = {
        (held_by, in_plan, str(choice))
        for held_by in HOLDERS
        for in_plan in ("yes", "no")
        for choice in request.OnExisting
    }
    told = {
        (held_by, in_plan, choice)
        for held_by, in_plan, on_existing, *_ in table(REFERENCE, "Held by")
        for choice in (
            [str(each) for each in request.OnExisting]
            if on_existing == "any"
            else re.findall(r"\w+", on_existing)
        )
    }
    assert {case for case in every - told if "adopted" not in case[0]} == set()


def texts(node: ast.AST) -> Iterator[str]:
    """The literal parts of the strings below a node, where each is of three words or more."""
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            text = " ".join(each.value.replace("%s", "").split()).strip(" .,:;()")
            if " " in text and len(re.findall(r"[A-Za-z']{2,}", text)) >= 3:
                yield text


def reasons() -> Iterator[Any]:
    """The literal parts of every Reason.

    They are in errors' calls, in functions that make a text, and in texts that begin with "Could not".
    """
    told = {
        name
        for name, found in vars(errors).items()
        if isinstance(found, type) and issubclass(found, Exception)
    }
    not_told = {"TurnOverError", "UnclearError", "UndeliveredError"}  # No answer carries these.
    for source in HANDLER:
        tree = ast.parse(source.read_text())
        if source.stem == "watch":
            continue  # It answers nobody.
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name(id=name)) if name in told - not_told or name == "_fail":
                    found = [text for argument in node.args for text in texts(argument)]
                case ast.FunctionDef(returns=ast.Name(id="str") | ast.Subscript(slice=ast.Name(id="str"))):
                    found = [
                        text
                        for statement in node.body[1 if ast.get_docstring(node) else 0 :]
                        for text in texts(statement)
                    ]
                case ast.Assign(targets=[ast.Name(id="reason" | "STAYS")]):
                    found = [*texts(node.value)]
                case ast.Constant(value=str(value)) if value.startswith("Could not "):
                    found = [*texts(node)]
                case _:
                    continue
            yield from (pytest.param(text, id=f"{source.stem}:{node.lineno} {text[:40]}") for text in found)


def test_the_reasons_are_found() -> None:
    assert len(list(reasons())) > 60


@pytest.mark.parametrize("reason", list(reasons()))
def test_the_reference_has_each_reason(reason: str) -> None:
    assert reason in plain(REFERENCE)


# --- The template ---


def test_each_parameter_is_in_the_manual_with_its_default() -> None:
    told = {name.strip("`"): default.strip("`") for name, default, _ in table(DEPLOY, "Parameter")}
    assert told == {name: str(parameter["Default"]) for name, parameter in template()["Parameters"].items()}


def test_each_alarm_is_in_the_manual() -> None:
    alarms = {
        name for name, each in template()["Resources"].items() if each["Type"] == "AWS::CloudWatch::Alarm"
    }
    assert {name.strip("`") for name, *_ in table(OPERATE, "Alarm")} == alarms


def test_each_metric_of_an_alarm_or_the_dashboard_is_in_the_manual() -> None:
    said = json.dumps(template()["Resources"], default=str)
    of_alarms = re.findall(r'"Namespace": "UsagePlanKey", "MetricName": "(\w+)"', said)
    of_widgets = re.findall(r'\[\\"(?:UsagePlanKey|\.)\\", \\"([A-Z]\w+)\\", \\"(?:service|\.)\\"', said)
    told = {name for names, _ in table(OPERATE, "Metric") for name in re.findall(r"\w+", names)}
    awss = {"Errors", "Throttles", "ApproximateNumberOfMessagesNotVisible", "ApproximateAgeOfOldestMessage"}
    assert {*of_alarms, *of_widgets} - told - awss == set()


def test_the_cost_counts_the_alarms() -> None:
    """The alarms that a schedule of the watch adds are extra."""
    resources = template()["Resources"].values()
    alarms = [
        each for each in resources if each["Type"] == "AWS::CloudWatch::Alarm" and "Condition" not in each
    ]
    (told,) = re.findall(r"\| CloudWatch alarms, \$0\.10 each \| \$([\d.]+) \|", DEPLOY.read_text())
    assert float(told) == pytest.approx(0.1 * len(alarms))


def test_the_cost_adds_up() -> None:
    *rows, (_, at_rest, for_creates) = table(DEPLOY, "Service")
    for column, told in ((1, at_rest), (2, for_creates)):
        costs = [float(found[1]) for row in rows if (found := re.fullmatch(r"\$([\d.]+)", row[column]))]
        assert sum(costs) == pytest.approx(float(told.strip("*$")))


def test_the_readme_and_the_manual_name_the_same_cost() -> None:
    (told,) = re.findall(r"\| \*\*all\*\* \| \*\*(\$[\d.]+)\*\* \| \*\*(\$[\d.]+)\*\* \|", DEPLOY.read_text())
    assert tuple(re.findall(r"\*\*(\$[\d.]+) (?:a month|for 1,000)", README.read_text())) == told


def test_the_changelogs_newest_version_is_the_templates() -> None:
    newest, *_ = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", CHANGELOG.read_text(), re.MULTILINE)
    assert newest == template()["Metadata"]["AWS::ServerlessRepo::Application"]["SemanticVersion"]


# --- Operations ---


@pytest.mark.parametrize("query", [each for each in fences("text") if "filter" in each.values[0]])
def test_each_log_query_asks_for_fields_that_the_log_has(query: str) -> None:
    source = (ROOT / "handler" / "usage_plan_key" / "provider.py").read_text()
    keys = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)} | {
        "message"
    }
    words = set(re.findall(r"(?<![@\w])[A-Za-z]\w*", re.sub(r'"[^"]*"|/[^/]*/', "", query)))
    language = {
        "fields",
        "filter",
        "sort",
        "stats",
        "desc",
        "asc",
        "like",
        "and",
        "by",
        "as",
        "count",
        "latest",
        "times",
        "last",
    }
    assert words - language - keys == set()


def test_the_message_group_of_a_dead_letter_is_the_queues_own() -> None:
    sent = {}

    class Client:
        def send_message(self, **message: str) -> dict[str, str]:
            sent.update(message)
            return {"MessageId": "sent"}

    Queue(Client(), "url").put(EVENT, 0.0, Deadline(60))  # type: ignore[arg-type]  # a fake
    assert "jq -rj .requestPayload.StackId body.json | sha256sum" in OPERATE.read_text()
    assert sent["MessageGroupId"] == hashlib.sha256(EVENT["StackId"].encode()).hexdigest()
