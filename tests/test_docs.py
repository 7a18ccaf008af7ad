"""The manual fits the code, the template and AWS's API, in every link, snippet, file and command."""

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import botocore.session
import pytest
from botocore import xform_name
from cfnlint import api as cfn_lint
from markdown_it import MarkdownIt
from markdown_it.token import Token
from samtranslator.yaml_helper import yaml_parse

from benchmarks import __main__ as goals
from benchmarks import dashboard
from examples import demo
from usage_plan_key import errors, request, response
from usage_plan_key.model import Response

from .story import play

ROOT = Path(__file__).parents[1]
HANDLER = sorted((ROOT / "handler" / "usage_plan_key").glob("*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("tools/*.md")])
#: For those who work on the tests; the manual does not lead to them.
TESTS_PAGES = sorted(ROOT.glob("tests/*.md"))
README, REFERENCE, DEPLOY, OPERATE, PERFORMANCE, CHANGELOG = (
    ROOT / path
    for path in (
        "README.md",
        "docs/reference.md",
        "docs/deploy.md",
        "docs/operate.md",
        "docs/performance.md",
        "CHANGELOG.md",
    )
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


def section(page: Path, heading: str) -> str:
    """The text below a heading, up to the next one of any level."""
    (found,) = re.findall(rf"^#+ {heading}\n(.*?)(?=^#|\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    return str(found)


# --- What a reader sees ---

#: Marks that a reader would see: of a break, of emphasis, of code, of a link, of a quote, of a table.
MARKS = re.compile(r"\\(?=\s|$)|\*|(?<!\w)_\w|`|\]\(|\]\[| > |\||~~|<\w")


@pytest.mark.parametrize("page", [*PAGES, *TESTS_PAGES], ids=title)
def test_no_mark_is_left_in_what_a_reader_sees(page: Path) -> None:
    """A break without a line's end, a bar of a table that is none, a quote that goes on without its mark."""
    shown = [token for token in tokens(page) if token.type in ("text", "html_inline", "html_block")]
    assert [token.content for token in shown if token.type != "text" or MARKS.search(token.content)] == []


@pytest.mark.parametrize("page", [*PAGES, *TESTS_PAGES], ids=title)
def test_each_row_of_a_table_has_its_headings_cells_and_no_list(page: Path) -> None:
    """GitHub drops what is behind an unescaped bar, and shows a list in a cell as text."""
    lines = page.read_text().splitlines()
    for token in tokens(page):
        if token.type == "table_open":
            first, last = token.map or (0, 0)
            rows = [
                re.split(r"(?<!\\)\|", row.removeprefix("|").removesuffix("|")) for row in lines[first:last]
            ]
            assert [row for row in rows if len(row) != len(rows[0])] == []
            assert [cell for row in rows for cell in row if re.match(r"\s*([-*+]|\d+\.)\s", cell)] == []


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
    made = {".venv", "build"}  # and all in them
    here = [
        ROOT,
        *(path.parent for path in ROOT.glob("*/*/*.py")),
        *(path.parent for path in ROOT.glob("*/*.py")),
    ]
    named = {name for name in named if name.partition("/")[0] not in made}
    assert {name for name in named if not any((folder / name).exists() for folder in here)} == set()


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_each_make_target_that_a_page_names_exists(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    said = "\n".join(
        token.content for token in tokens(page) if token.type in ("code_inline", "fence", "code_block")
    )
    assert set(re.findall(r"^make ([a-z][\w-]*)", said, re.MULTILINE)) - targets == set()


#: Commands of the AWS CLI that are no operations of AWS.
OWN_COMMANDS = {("cloudformation", "package"), ("cloudformation", "deploy"), ("s3", "cp")}
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


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_no_line_of_code_is_wider_than_the_page(page: Path) -> None:
    """A browser shows about 98 characters and hides the rest, such as a command's last option."""
    code = [token for token in tokens(page) if token.type == "fence" and token.info == "sh"]
    assert [line for token in code for line in token.content.splitlines() if len(line) > 98] == []


@pytest.mark.parametrize("commands", fences("sh"))
def test_each_variable_of_a_command_is_set_beside_it(commands: str) -> None:
    """A reader who pastes one block alone must not send to, or delete from, a queue without a name."""
    used = set(re.findall(r"\$\{?([A-Z_]+)", commands)) - {"PATH", "PWD"}
    assert used - set(re.findall(r"^(?:export )?([A-Z_]+)=", commands, re.MULTILINE)) == set()


@pytest.mark.parametrize(
    "commands", [each for each in fences("sh", "text") if re.search(r"\bsam (?!local)", each.values[0])]
)
def test_each_command_that_reaches_aws_through_sam_names_its_region(commands: str) -> None:
    """The SAM CLI does not read AWS_REGION, so the profile's region would win in silence."""
    for command, rest in re.findall(
        r"^sam (deploy|delete|package|sync)\b(.*)", commands.replace("\\\n", " "), re.MULTILINE
    ):
        assert "--region " in rest, command
    assert "AWS_REGION" not in commands


def test_only_a_sentence_that_says_that_sam_does_not_read_it_names_aws_region() -> None:
    said = plain(DEPLOY) + plain(OPERATE) + (ROOT / "samconfig.toml").read_text().replace("\n# ", " ")
    assert len(re.findall(r"does not read AWS_REGION", said)) == 3
    assert "AWS_REGION" not in README.read_text() + (ROOT / "docs" / "local.md").read_text()


@pytest.mark.parametrize("page", [README, DEPLOY], ids=title)
def test_the_first_line_of_a_deploy_names_the_account_and_the_region_that_sam_deploys_to(
    page: Path, tmp_path: Path
) -> None:
    """Whatever region the surroundings name."""
    block = next(
        token.content for token in tokens(page) if token.type == "fence" and "sam deploy" in token.content
    )
    for name, script in (("aws", "echo 111122223333"), ("sam", 'echo "sam $*"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    surroundings = {"PATH": f"{tmp_path}:/usr/bin:/bin", "AWS_REGION": "us-east-1"}

    def run(commands: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", commands], env=surroundings, check=False, capture_output=True, text=True
        )

    assert run(block).stdout.splitlines() == [
        "Account 111122223333, region eu-central-1",
        "sam build",
        "sam deploy --region eu-central-1",
    ]
    without = run("\n".join(line for line in block.splitlines() if not line.startswith("REGION=")))
    assert without.returncode
    assert "sam deploy" not in without.stdout, "without a region it deploys nowhere"


def test_the_readme_is_short_and_narrow() -> None:
    text = README.read_text()
    assert len(text.split()) <= 700
    assert [line for line in text.splitlines() if len(line) > 110] == []


class Told(demo.Story):
    """The demo without its deploys: each step as the demo prints it, if its own checks hold."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def step(
        self, stack: object, title: str, act: object, status: str, asked: Any, plans: dict[str, str], **_: Any
    ) -> None:
        self._steps += 1
        self.lines += [f"{self._steps}. {title}", *map(demo._shown, asked), f"   Stack: {status}"]
        self.lines += [f"   {plan}: {', '.join(keys.split()) or 'nobody'}" for plan, keys in plans.items()]


@pytest.mark.parametrize("block", [each for each in fences("text") if "   Stack: " in each.values[0]])
def test_each_step_of_the_demo_in_the_manual_is_the_demos_own(
    block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    told, stack = Told(), mock.MagicMock()
    stack.secret.return_value = stack.value.return_value
    stack.left_in_ledger.return_value = []
    demo.tell(told, stack)
    shown = "".join(f"{line}\n" for line in block.splitlines() if not line.startswith("   Deploying"))
    assert shown in "".join(f"{line}\n" for line in told.lines)


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
        assert statement.keys() - {"Principal", "Condition"} == {"Sid", "Effect", "Action", "Resource"}
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


#: How an association comes to be held so, each as the steps of a story.
HELD_BY = {
    "nobody": "",
    "this resource": "create A free",
    "this resource, adopted": "hand+ free; create A free Adopt",
    "another resource of the stack": "create B free",
    "other stacks only": "create Z free",
}


@pytest.mark.parametrize("row", table(REFERENCE, "Held by"), ids=" ".join)
def test_the_function_comes_to_each_outcome_of_the_table(row: list[str]) -> None:
    held_by, in_plan, on_existing, told, _ = row
    choices = list(request.OnExisting) if on_existing == "any" else re.findall(r"\w+", on_existing)
    hand = {("nobody", "yes"): "hand+ free", ("nobody", "no"): ""}.get((held_by, in_plan))
    hand = hand if hand is not None else "hand- free" * (in_plan == "no")
    id_ = "free" if held_by.startswith("this") else "#former"
    expected = "FAILED OnExisting is Fail" if told == "FAILED" else told.strip("`")
    for choice in choices:
        option = "" if choice == "Fail" else choice
        play(f"{HELD_BY[held_by]}; {hand}; update A {id_} free {option} = {expected}; excuse free")


def test_the_table_of_outcomes_has_each_case() -> None:
    every = {
        (held_by, in_plan, str(choice))
        for held_by in HELD_BY
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
        if source.stem in ("watch", "redaction"):
            continue  # They answer nobody.
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


@cache
def said_by_the_code() -> set[tuple[str, ...]]:
    """All three words that follow each other in a text of the code, in which a value stands as `…`."""
    return {words for source in HANDLER for text in literals(source) for words in threes(text)}


def literals(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def told_by_the_reference() -> Iterator[str]:
    """Each text that the reference says the code gives: in bold, or first in its row of a table."""
    inside = body = first = bold = False
    for token in tokens(REFERENCE):
        if token.type == "inline" and token.content in ("Reasons", "Examples"):
            inside = token.content == "Reasons"
        elif inside and token.type == "tbody_open":
            body = True
        elif token.type == "table_close":
            body = False
        elif body and token.type == "tr_open":
            first = True
        elif inside and first and token.type == "inline":
            yield token.content
            first = False
        elif token.type == "strong_open":
            bold = inside
        elif bold and token.type == "text":
            yield token.content
        elif token.type == "strong_close":
            bold = False


def threes(text: str) -> set[tuple[str, ...]]:
    """All three words of a text that follow each other; a value is none."""
    parts = [re.findall(r"[A-Za-z']+", part) for part in re.split(r"…|%s|[,;:.]", text.replace("`", ""))]
    return {(*words[at : at + 3],) for words in parts for at in range(len(words) - 2)}


@pytest.mark.parametrize("text", sorted({text for text in told_by_the_reference() if len(threes(text)) > 1}))
def test_the_code_gives_each_text_of_the_reference(text: str) -> None:
    """At least half of it, because the reference shows a value where the code has none."""
    assert len(threes(text) & said_by_the_code()) * 2 >= len(threes(text))


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


def test_the_cost_of_lambda_is_that_of_the_measured_times() -> None:
    """In the worst case each of 1,000 invocations into the queue starts an environment. Init is billed."""
    sizes = {row[0]: row[3] for row in table(PERFORMANCE, "First, warm")}
    first, into = map(int, sizes["this, into the queue"].split(", "))
    _, out = map(int, sizes["this, out of the queue"].split(", "))
    (ready,) = (row[1] for row in table(PERFORMANCE, "ms (ratio)") if row[0] == "this, into the queue")
    seconds = (into + out + float(ready.split()[0]) + first - into) / 1000
    dollars = 1000 * seconds * 0.5 * 0.0000166667 + 1100 * 0.2 / 1_000_000
    (told,) = re.findall(r"\| Lambda, 512 MB \| \| \$([\d.]+) \|", DEPLOY.read_text())
    assert float(told) == pytest.approx(dollars, abs=0.0005)
    (slower,) = re.findall(r"a first call that is (\d+) ms slower", plain(DEPLOY))
    assert int(slower) == first - into


def test_the_cost_adds_up() -> None:
    *rows, (_, at_rest, for_creates) = table(DEPLOY, "Service")
    for column, told in ((1, at_rest), (2, for_creates)):
        costs = [float(found[1]) for row in rows if (found := re.fullmatch(r"\$([\d.]+)", row[column]))]
        assert sum(costs) == pytest.approx(float(told.strip("*$")))


def test_the_readme_and_the_manual_name_the_same_cost() -> None:
    (told,) = re.findall(r"\| \*\*all\*\* \| \*\*(\$[\d.]+)\*\* \| \*\*(\$[\d.]+)\*\* \|", DEPLOY.read_text())
    assert tuple(re.findall(r"\*\*(\$[\d.]+) (?:a month|for 1,000)", README.read_text())) == told


def test_the_changelogs_newest_version_is_the_templates() -> None:
    newest, *_ = re.findall(r"^## \[(\d+\.\d+\.\d+(?:-rc\.\d+)?)\]", CHANGELOG.read_text(), re.MULTILINE)
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


LATE = "in time, or up to a minute late, and later by as much as its clock is slow."


def test_one_sentence_says_everywhere_how_late_an_answer_can_be() -> None:
    pages = [page for page in PAGES if "minute late" in plain(page)]
    assert {title(page) for page in pages} == {
        "README.md",
        *(f"docs/{name}.md" for name in ("how-it-works", "operate", "reference", "reliability")),
    }
    assert [plain(page).count(LATE) for page in pages] == [1] * 5


def test_a_stack_that_hangs_has_a_way_out_in_each_status() -> None:
    """CloudFormation cancels an update, and no creation."""
    told = {
        name.strip("`"): way for names, way in table(OPERATE, "The stack is in") for name in names.split(", ")
    }
    waiting = {"CREATE", "UPDATE", "DELETE", "ROLLBACK", "UPDATE_ROLLBACK"}
    assert told.keys() == {f"{status}_IN_PROGRESS" for status in waiting}
    assert "Delete the stack" in told["CREATE_IN_PROGRESS"]
    assert "Cancel the update" in told["UPDATE_IN_PROGRESS"]


def test_an_answer_by_hand_has_every_field_that_cloudformation_needs() -> None:
    """https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/crpg-ref-responses.html."""
    (body,) = re.findall(r"--data '(.*?)'", section(OPERATE, "Answer by hand"), re.DOTALL)
    answer = json.loads(
        response.body(request.parse(EVENT), Response(success=False, id="a:b", reason="x"), "")
    )
    assert json.loads(body).keys() == answer.keys() - {"NoEcho", "Data"}


def test_the_operator_learns_which_alarms_are_late() -> None:
    """Nobody polls a dead-letter queue, so SQS reports its first message up to 15 minutes later."""
    said = section(OPERATE, "An alarm")
    idle = {
        name
        for name, each in template()["Resources"].items()
        if each["Type"] == "AWS::CloudWatch::Alarm"
        and each["Properties"]["MetricName"] == "ApproximateNumberOfMessagesVisible"
    }
    (sentence,) = re.findall(r"[^.]*can be 15 minutes later", said)
    assert set(re.findall(r"`(\w+Alarm)`", sentence)) == idle


def test_the_way_out_of_a_retained_ledger_stands_beside_cloudformations_own_words() -> None:
    said = section(DEPLOY, "Remove")
    assert "[AWS::EarlyValidation::ResourceExistenceCheck]" in said
    assert "--parameter-overrides ExistingLedger=usage-plan-key-ledger" in said


# --- Permissions, key and network ---


def policies(heading: str) -> list[Any]:
    """The policies below a heading."""
    return [json.loads(it) for it in re.findall(r"```json\n(.*?)```", section(DEPLOY, heading), re.DOTALL)]


def actions(policy: Any) -> set[str]:
    return {
        action
        for statement in policy["Statement"]
        for action in ([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
    }


def role_actions() -> set[str]:
    """Every action that template.yaml allows a function, with all parameters set."""
    said = json.dumps(
        [
            it["Properties"]["Policies"]
            for it in template()["Resources"].values()
            if it["Type"] == "AWS::IAM::Role"
        ]
    )
    return set(re.findall(r'"([a-z0-9]+:[A-Z][A-Za-z]+)"', said)) - {"lambda:SourceFunctionArn"}


def test_the_deployers_policy_has_what_cloudformations_handlers_call() -> None:
    (policy,) = policies("To deploy the function")
    assert actions(policy) >= {
        "iam:ListAttachedRolePolicies",
        "logs:DescribeIndexPolicies",
        "logs:DescribeResourcePolicies",
    }
    (lists,) = (it for it in policy["Statement"] if it["Sid"] == "Lists")
    assert {it for it in lists["Action"] if it.startswith("logs:Describe")} >= {
        "logs:DescribeIndexPolicies",
        "logs:DescribeResourcePolicies",
    }, "these take no resource"
    assert {"iam:PutRolePolicy", "iam:PassRole"} <= actions(policy)
    assert "administrator of the account" in section(DEPLOY, "To deploy the function")


def test_the_boundary_allows_what_the_roles_have_and_no_more() -> None:
    boundary, _ = policies("With a boundary")
    assert actions(boundary) == role_actions()
    unbounded = {it["Sid"] for it in boundary["Statement"] if it["Resource"] == "*"}
    assert unbounded == {"YourNetwork"}, "EC2 takes no resource for some of its actions"


def test_with_the_boundary_nobody_makes_or_changes_a_role_without_it() -> None:
    """https://docs.aws.amazon.com/IAM/latest/UserGuide/access_policies_boundaries.html."""
    whole, (_, bounded) = policies("To deploy the function")[0], policies("With a boundary")
    within, rest = bounded["Statement"]
    (condition,) = within["Condition"]["StringEquals"].items()
    assert condition == (
        "iam:PermissionsBoundary",
        "arn:aws:iam::111122223333:policy/usage-plan-key-boundary",
    )
    assert {"iam:CreateRole", "iam:PutRolePolicy", "iam:PutRolePermissionsBoundary"} <= set(within["Action"])
    dangerous = ("Put", "Attach", "Create", "UpdateAssume", "DeleteRolePermissionsBoundary")
    assert not [it for it in rest["Action"] if it.partition(":")[2].startswith(dangerous)]
    assert actions(bounded) <= actions(whole)
    assert not [it for it in actions(bounded) if "Policy" in it and "Role" not in it], (
        "nor the boundary itself"
    )


def test_the_keys_policy_lets_cloudwatch_use_it_for_the_functions_logs_only() -> None:
    (policy,) = policies("Your own KMS key")
    account, logs = policy["Statement"]
    assert account["Principal"] == {"AWS": "arn:aws:iam::111122223333:root"}
    assert logs["Principal"] == {"Service": "logs.eu-central-1.amazonaws.com"}
    (pattern,) = logs["Condition"]["ArnLike"].values()
    for log in ("usage-plan-key", "usage-plan-key-watch"):
        arn = f"arn:aws:logs:eu-central-1:111122223333:log-group:/aws/lambda/{log}"
        assert fnmatchcase(arn, pattern)


def test_the_roles_line_of_who_uses_the_key_is_the_templates() -> None:
    told = {who: set(re.findall(r"kms:\w+", what)) for who, what, _ in table(DEPLOY, "Who")}
    assert told["the functions' roles"] == {it for it in role_actions() if it.startswith("kms:")}
    principals = {name for who in told for name in re.findall(r"`(\w+)\.amazonaws\.com`", who)}
    assert principals == {"lambda", "sqs", "dynamodb", "events", "cloudwatch"}


def test_in_a_vpc_each_service_that_the_functions_call_has_its_endpoint() -> None:
    """S3 takes the answers; the others are the clients that the code makes."""
    called = {name for source in HANDLER for name in re.findall(r'_client\("([a-z]+)"', source.read_text())}
    told = {name.rpartition(".")[2].strip("`") for name, *_ in table(DEPLOY, "Endpoint")}
    assert told == called | {"s3"}
    (answers,) = policies("In a VPC")
    (statement,) = answers["Statement"]
    bucket = statement["Resource"].removeprefix("arn:aws:s3:::").removesuffix("/*")
    assert bucket == f"cloudformation-custom-resource-response-{'eu-central-1'.replace('-', '')}"


def test_the_manual_names_each_check_that_is_skipped() -> None:
    skipped = {
        skip["id"]
        for each in template()["Resources"].values()
        for skip in each.get("Metadata", {}).get("checkov", {}).get("skip", [])
    }
    assert {check.strip("`") for check, *_ in table(DEPLOY, "Check")} == skipped


# --- Figures and pictures ---


def test_the_goals_are_the_benchmarks() -> None:
    *stuck, _, billed, deletes = (goal for _, goal in table(PERFORMANCE, "Played"))
    told = [int(number) for goal in stuck for number in re.findall(r"in (\d+) times", goal)]
    assert told == [goals.STUCK[30], goals.STUCK[300]]
    assert {goals.STUCK[stacks] for stacks in (1, 10, 30)} == {told[0]}
    assert billed.startswith(f"{goals.MOST_BILLED:.0f} s billed")
    assert f"within {goals.MOST_SECONDS:.0f} s" in deletes


def test_the_picture_of_the_dashboard_has_each_widget_and_metric_of_the_template() -> None:
    shown = set(re.findall(r">([^<>]+)</text>", dashboard.PICTURE.read_text()))
    told = {
        text
        for text in re.findall(r">([^<>]+)</text>", dashboard.svg({}))
        if not re.fullmatch(r"[\d.]+", text)  # a scale
    }
    assert len(told) > 30
    assert told - shown == set()
