"""The manual fits the code, the template and AWS's API: links, files, commands, snippets, figures."""

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache, partial
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
README, CHANGELOG = ROOT / "README.md", ROOT / "CHANGELOG.md"
REFERENCE, DEPLOY, OPERATE, PERFORMANCE = (
    ROOT / "docs" / f"{name}.md" for name in ("reference", "deploy", "operate", "performance")
)
EVENT = json.loads((ROOT / "events" / "create.json").read_text())
MARKDOWN = MarkdownIt("commonmark").enable("table")
TEMPLATE: dict[str, Any] = yaml_parse((ROOT / "template.yaml").read_text())
RESOURCES: dict[str, dict[str, Any]] = TEMPLATE["Resources"]
ALARMS = {name: it for name, it in RESOURCES.items() if it["Type"] == "AWS::CloudWatch::Alarm"}
ASKED = {*request.PROPERTIES, "ServiceToken", "ServiceTimeout"}


@cache
def tokens(page: Path) -> list[Token]:
    """A page's tokens, those inside its paragraphs too."""
    return [each for token in MARKDOWN.parse(page.read_text()) for each in (token, *(token.children or []))]


def title(page: Path) -> str:
    return str(page.relative_to(ROOT))


each_page = pytest.mark.parametrize("page", PAGES, ids=title)


def fences(*languages: str, holding: str = "") -> list[Any]:
    """The pages' code blocks in these languages that hold this pattern."""
    return [
        pytest.param(token.content, id=f"{title(page)}:{(token.map or [0])[0] + 1}")
        for page in PAGES
        for token in tokens(page)
        if token.type == "fence" and token.info in languages and re.search(holding, token.content)
    ]


def each_block(*languages: str, holding: str = "") -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", fences(*languages, holding=holding))


def code(page: Path) -> str:
    kinds = ("code_inline", "fence", "code_block")
    return "\n".join(token.content for token in tokens(page) if token.type in kinds)


@cache
def anchors(page: Path) -> set[str]:
    """Make anchors of the headings, as GitHub does."""
    pairs = zip(tokens(page), tokens(page)[1:], strict=False)
    texts = [
        "".join(child.content for child in inline.children or [])
        for heading, inline in pairs
        if heading.type == "heading_open"
    ]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


def table(page: Path, first: str) -> list[list[str]]:
    """The rows of the table whose first heading this is."""
    (rows,) = re.findall(rf"^\| {re.escape(first)} \|.*\n.*\n((?:\|.*\n)+)", page.read_text(), re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()]


def section(page: Path, heading: str) -> str:
    """The text below a heading, up to the next one of any level."""
    (found,) = re.findall(rf"^#+ {heading}\n(.*?)(?=^#|\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    return str(found)


def plain(page: Path) -> str:
    """The text without its marks and line breaks."""
    return " ".join(re.sub(r"[*`]|^> ?", "", page.read_text(), flags=re.MULTILINE).split())


# --- What a reader sees, and where it leads ---

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
    for first, last in [token.map or [0, 0] for token in tokens(page) if token.type == "table_open"]:
        rows = [re.split(r"(?<!\\)\|", row.removeprefix("|").removesuffix("|")) for row in lines[first:last]]
        assert [row for row in rows if len(row) != len(rows[0])] == []
        assert [cell for row in rows for cell in row if re.match(r"\s*([-*+]|\d+\.)\s", cell)] == []


def links(page: Path) -> Iterator[tuple[Path, str]]:
    for token in tokens(page):
        target = str(token.attrGet("href") or token.attrGet("src") or "")
        if token.type in ("link_open", "image") and not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            yield ((page.parent / path).resolve() if path else page), anchor


@each_page
def test_each_link_leads_somewhere(page: Path) -> None:
    assert [it for it in links(page) if not it[0].exists() or (it[1] and it[1] not in anchors(it[0]))] == []


def test_each_page_can_be_reached_from_the_readme() -> None:
    seen, todo = set[Path](), [README]
    while todo:
        seen.add(page := todo.pop())
        todo += [target for target, _ in links(page) if target in PAGES and target not in seen]
    assert seen == set(PAGES)


@each_page
def test_each_file_that_a_page_names_exists(page: Path) -> None:
    tops = "|".join(re.escape(path.name) for path in ROOT.iterdir() if path.is_dir())
    named = set(re.findall(rf"(?<![\w/.:-])(?:{tops})/[\w./-]*\w/?", code(page)))
    named |= set(re.findall(r"^(?:[\w-]+\.(?:py|yaml|toml|md)|[\w-]+env\.json)$", code(page), re.MULTILINE))
    here = {ROOT, *(path.parent for depth in ("*", "*/*") for path in ROOT.glob(f"{depth}/*.py"))}
    made = (".venv", "build")  # and all in them
    named = {name for name in named if not name.startswith(made)}
    assert not {name for name in named if not any((folder / name).exists() for folder in here)}


@each_page
def test_each_make_target_that_a_page_names_exists(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z][\w-]*)", code(page), re.MULTILINE)) - targets == set()


def test_the_readme_is_short_and_narrow() -> None:
    assert len(README.read_text().split()) <= 700
    assert max(map(len, README.read_text().splitlines())) <= 110


# --- Commands ---

#: Commands of the AWS CLI that are no operations of AWS.
OWN_COMMANDS = {("cloudformation", "package"), ("cloudformation", "deploy"), ("s3", "cp")}
GLOBAL_OPTIONS = {"query", "output", "region", "cli-binary-format", "cli-read-timeout"}


@each_block("sh", holding=r"\baws [a-z]+ ")
def test_each_aws_command_has_an_operation_and_options_that_aws_has(block: str) -> None:
    """The AWS CLI derives its commands from the same descriptions that botocore has."""
    session, text = botocore.session.get_session(), block.replace("\\\n", " ")
    cli = partial(xform_name, sep="-")
    for service, operation, rest in re.findall(r"\baws ([a-z]+) ([a-z-]+)((?:(?!\baws )[^\n])*)", text):
        if (service, operation) in OWN_COMMANDS:
            continue
        model = session.get_service_model(service)
        names = {cli(name): name for name in model.operation_names}
        if operation == "wait":
            waiters = session.get_waiter_model(service)
            names = {cli(name): waiters.get_waiter(name).operation for name in waiters.waiter_names}
        name = names[rest.split(maxsplit=1)[0] if operation == "wait" else operation]
        shape = model.operation_model(name).input_shape
        given = set(re.findall(r"(?<= )--([a-z][a-z-]*)", rest)) - GLOBAL_OPTIONS
        assert given <= {cli(member) for member in (shape.members if shape else ())}
        assert given >= {cli(member) for member in (shape.required_members if shape else ())}


@each_block("sh")
def test_each_block_of_commands_can_be_pasted(block: str) -> None:
    """A browser hides what is beyond 98 characters. A block that is pasted alone must set its variables."""
    assert max(map(len, block.splitlines())) <= 98
    used = set(re.findall(r"\$\{?([A-Z_]+)", block)) - {"PATH", "PWD"}
    assert used - set(re.findall(r"^(?:export )?([A-Z_]+)=", block, re.MULTILINE)) == set()


@each_block("sh", "text", holding=r"\bsam (?!local)")
def test_each_command_that_reaches_aws_through_sam_names_its_region(block: str) -> None:
    """The SAM CLI does not read AWS_REGION, so the profile's region would win in silence."""
    reach = r"^sam (?:deploy|delete|package|sync)\b(.*)"
    assert all("--region " in rest for rest in re.findall(reach, block.replace("\\\n", " "), re.MULTILINE))
    assert "AWS_REGION" not in block


@pytest.mark.parametrize("page", [README, DEPLOY], ids=title)
def test_the_first_line_of_a_deploy_names_the_account_and_the_region_that_sam_deploys_to(
    page: Path, tmp_path: Path
) -> None:
    """Whatever region the surroundings name; without a region it deploys nowhere."""
    block = next(it.content for it in tokens(page) if it.type == "fence" and "sam deploy" in it.content)
    for name, script in (("aws", "echo 111122223333"), ("sam", 'echo "sam $*"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)

    def run(commands: str) -> list[str]:
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "AWS_REGION": "us-east-1"}
        command = ["sh", "-c", commands]
        ran = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        return ran.stdout.splitlines()

    region = "eu-central-1"
    told = [f"Account 111122223333, region {region}", "sam build", f"sam deploy --region {region}"]
    assert run(block) == told
    assert not [line for line in run(re.sub("(?m)^REGION=.*$", "", block)) if "sam deploy" in line]


class Told(demo.Story):
    """The demo without its deploys: each step as the demo prints it, if its own checks hold."""

    lines = ""

    def step(
        self, stack: object, title: str, act: object, status: str, asked: Any, plans: dict[str, str], **_: Any
    ) -> None:
        self._steps += 1
        keys = [f"   {plan}: {', '.join(names.split()) or 'nobody'}" for plan, names in plans.items()]
        lines = [f"{self._steps}. {title}", *map(demo._shown, asked), f"   Stack: {status}", *keys]
        self.lines += "".join(f"{line}\n" for line in lines)


@each_block("text", holding="   Stack: ")
def test_each_step_of_the_demo_is_the_demos_own(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    told, stack = Told(), mock.MagicMock()
    stack.secret.return_value = stack.value.return_value
    stack.left_in_ledger.return_value = []
    demo.tell(told, stack)
    assert re.sub("(?m)^   Deploying.*\n", "", block) in told.lines


@each_block("text", holding="filter")
def test_each_log_query_asks_for_fields_that_the_log_has(block: str) -> None:
    source = ast.parse((ROOT / "handler" / "usage_plan_key" / "provider.py").read_text())
    fields = {node.value for node in ast.walk(source) if isinstance(node, ast.Constant)} | {"message"}
    words = set(re.findall(r"(?<![@\w])[A-Za-z]\w*", re.sub(r'"[^"]*"|/[^/]*/', "", block)))
    language = "fields filter sort stats desc asc like and by as count latest times last"
    assert words - fields - {*language.split()} == set()


# --- Snippets ---


@each_block("json", "yaml")
def test_each_snippet_can_be_read(block: str) -> None:
    assert yaml_parse(block)
    assert not block.lstrip().startswith(("{", "[")) or json.loads(block)


@each_block("yaml", holding=r"Type: Custom::UsagePlanKey\n")
def test_the_function_takes_each_custom_resource_of_a_snippet(block: str) -> None:
    found = yaml_parse(block)
    for it in found.get("Resources", found).values():
        if isinstance(it, dict) and it.get("Type") == "Custom::UsagePlanKey":
            given = {
                key: "a1b2" if isinstance(value, dict) else value for key, value in it["Properties"].items()
            }
            assert isinstance(request.parse({**EVENT, "ResourceProperties": given}), request.Create)
            assert "ServiceToken" in given


@each_block("yaml", holding=r"(^|\n)Resources:")
def test_cfn_lint_finds_nothing_in_a_whole_template(block: str) -> None:
    assert cfn_lint.lint(block, regions=["us-east-1"]) == []


@each_block("json", holding='"Statement"')
def test_each_policy_is_one_that_iam_can_read(block: str) -> None:
    # https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_grammar.html
    policy = json.loads(block)
    assert policy["Version"] == "2012-10-17"
    for statement in policy["Statement"]:
        assert statement.keys() - {"Principal", "Condition"} == {"Sid", "Effect", "Action", "Resource"}
        assert re.fullmatch(r"\w+", statement["Sid"])
    assert all(re.fullmatch(r"[a-z0-9]+:[A-Za-z*]+", action) for action in actions(policy))


# --- The reference ---


def test_the_reference_has_each_property_and_attribute_and_says_the_same_of_each() -> None:
    _, properties, _, attributes, *_ = re.split(
        r"^#+ (?:Properties|Return values|Fn::GetAtt|Outcomes)$", REFERENCE.read_text(), flags=re.MULTILINE
    )
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", properties, re.MULTILINE | re.DOTALL))
    assert sections.keys() == ASKED
    for name in ("Required", "Type", "Default", "Update requires"):
        assert {text.count(f"*{name}*: ") for text in sections.values()} == {1}
    asks = request.parse(
        EVENT | {"ResourceProperties": EVENT["ResourceProperties"] | {"IncludeValue": "true"}}
    )
    answer = response.body(asks, Response(success=True, id="a:b", key_name="Alice", value="secret"), "")
    assert set(re.findall(r"^#### (\w+)$", attributes, re.MULTILINE)) == json.loads(answer)["Data"].keys()


@pytest.mark.parametrize("snippet", fences("yaml", "json", holding="VerifyTrigger")[:2])
def test_the_syntax_has_each_property(snippet: str) -> None:
    assert yaml_parse(snippet)["Properties"].keys() == ASKED


#: How an association comes to be held so, each as the steps of a story.
HELD_BY = {
    "nobody": "",
    "this resource": "create A free",
    "this resource, adopted": "hand+ free; create A free Adopt",
    "another resource of the stack": "create B free",
    "other stacks only": "create Z free",
}
OUTCOMES = [
    (held_by, in_plan, choice, told)
    for held_by, in_plan, on_existing, told, _ in table(REFERENCE, "Held by")
    for choice in (request.OnExisting if on_existing == "any" else re.findall(r"\w+", on_existing))
]


@pytest.mark.parametrize(("held_by", "in_plan", "choice", "told"), OUTCOMES)
def test_the_function_comes_to_each_outcome(held_by: str, in_plan: str, choice: str, told: str) -> None:
    hand = "hand+ free" if in_plan == "yes" else "hand- free"
    hand = hand if (held_by == "nobody") == (in_plan == "yes") else ""
    id_ = "free" if held_by.startswith("this") else "#former"
    expected = "FAILED OnExisting is Fail" if told == "FAILED" else told.strip("`")
    option = "" if choice == "Fail" else choice
    play(f"{HELD_BY[held_by]}; {hand}; update A {id_} free {option} = {expected}; excuse free")


def test_the_table_of_outcomes_has_each_case() -> None:
    kinds = [held_by for held_by in HELD_BY if "adopted" not in held_by]
    every = {(kind, there, each) for kind in kinds for there in ("yes", "no") for each in request.OnExisting}
    assert every - {(held_by, in_plan, choice) for held_by, in_plan, choice, _ in OUTCOMES} == set()


def texts(node: ast.AST) -> Iterator[str]:
    """The literal parts of the strings below a node, where each is of three words or more."""
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            text = " ".join(re.sub("%s|{}", "", each.value).split()).strip(" .,:;()")
            if " " in text and len(re.findall(r"[A-Za-z']{2,}", text)) >= 3:
                yield text


def reasons() -> Iterator[str]:
    """The literal parts of every Reason.

    They are in errors' calls, in functions that make a text, and in texts that begin with "Could not".
    """
    told = {name for name, it in vars(errors).items() if isinstance(it, type) and issubclass(it, Exception)}
    told -= {"TurnOverError", "UnclearError", "UndeliveredError"}  # no answer carries these
    answering = [source for source in HANDLER if source.stem not in ("watch", "redaction")]
    for node in (node for source in answering for node in ast.walk(ast.parse(source.read_text()))):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in {*told, "_fail"}:
                parts: list[ast.AST] = [*node.args]
            case ast.FunctionDef(returns=ast.Name(id="str") | ast.Subscript(slice=ast.Name(id="str"))):
                parts = [*node.body[1 if ast.get_docstring(node) else 0 :]]
            case ast.Assign(targets=[ast.Name(id="reason" | "STAYS")]):
                parts = [node.value]
            case ast.Constant(value=str(value)) if value.startswith("Could not "):
                parts = [node]
            case _:
                continue
        yield from (text for part in parts for text in texts(part))


def test_the_reference_has_each_reason() -> None:
    found, said = set(reasons()), plain(REFERENCE)
    assert len(found) > 60
    assert [reason for reason in sorted(found) if reason not in said] == []


def threes(text: str) -> set[tuple[str, ...]]:
    """All three words of a text that follow each other; a value is none."""
    parts = [re.findall(r"[A-Za-z']+", part) for part in re.split(r"…|%s|{}|[,;:.]", text.replace("`", ""))]
    return {(*words[at : at + 3],) for words in parts for at in range(len(words) - 2)}


def begins(said: str, text: str) -> bool:
    """Tell if a text of the code, with a value for each `…`, begins so."""
    parts = [part.strip() for part in said.split("…")]
    known = [parts[:count] for count in range(2, len(parts)) if all(parts[:count])]
    return any(re.fullmatch(".+?".join(map(re.escape, each)), text) for each in known)


def test_the_code_gives_each_text_of_the_reference() -> None:
    """Its beginning, or at least half of it, because the reference shows a value where the code has none."""
    said: set[str] = set()
    for node in (node for source in HANDLER for node in ast.walk(ast.parse(source.read_text()))):
        match node:
            case ast.JoinedStr(values=parts):
                said.add("".join(str(it.value) if isinstance(it, ast.Constant) else "…" for it in parts))
            case ast.Constant(value=str(text)):
                said.add(text)
    words = {each for text in said for each in threes(text)}
    told = REFERENCE.read_text().partition("\n## Reasons")[2].partition("\n## Examples")[0]
    rows = re.findall(r"^\| (?!\*\*|-)(.+?) \|", told, re.MULTILINE)
    given = [*(" ".join(each.split()) for each in re.findall(r"\*\*(.+?)\*\*", told, re.DOTALL)), *rows]
    assert len(given) > 30
    unsaid = [text for text in given if not any(begins(each, text) for each in said)]
    assert [
        text for text in unsaid if len(threes(text)) > 1 and len(threes(text) & words) * 2 < len(threes(text))
    ] == []


# --- The template ---


def test_the_manual_has_each_parameter_with_its_default_each_alarm_and_each_metric() -> None:
    told = {name.strip("`"): default.strip("`") for name, default, _ in table(DEPLOY, "Parameter")}
    assert told == {name: str(parameter["Default"]) for name, parameter in TEMPLATE["Parameters"].items()}
    assert {name.strip("`") for name, *_ in table(OPERATE, "Alarm")} == ALARMS.keys()
    said = json.dumps(RESOURCES, default=str)
    metrics = re.findall(r'"Namespace": "UsagePlanKey", "MetricName": "(\w+)"', said)
    metrics += re.findall(r'\[\\"(?:UsagePlanKey|\.)\\", \\"([A-Z]\w+)\\", \\"(?:service|\.)\\"', said)
    awss = {"Errors", "Throttles", "ApproximateNumberOfMessagesNotVisible", "ApproximateAgeOfOldestMessage"}
    told_metrics = {name for names, _ in table(OPERATE, "Metric") for name in re.findall(r"\w+", names)}
    assert {*metrics} - told_metrics - awss == set()


def test_the_cost_adds_up_and_is_that_of_the_alarms_and_of_the_measured_times() -> None:
    """In the worst case each of 1,000 invocations into the queue starts an environment. Init is billed."""
    *rows, (_, at_rest, for_creates) = table(DEPLOY, "Service")
    costs = {name: [float(re.sub(r"^\$|^(under.*)?$", "0", cost)) for cost in row] for name, *row in rows}
    for column, told in enumerate((at_rest, for_creates)):
        assert sum(cost[column] for cost in costs.values()) == pytest.approx(float(told.strip("*$")))
        assert told.strip("*") in README.read_text()
    always = [it for it in ALARMS.values() if "Condition" not in it]  # those of the schedule are extra
    assert costs["CloudWatch alarms, $0.10 each"][0] == pytest.approx(0.1 * len(always))
    sizes = {name: [*map(int, row[2].split(", "))] for name, *row in table(PERFORMANCE, "First, warm")}
    (first, into), (_, out) = (sizes[f"this, {way} the queue"] for way in ("into", "out of"))
    (ready,) = (ms for name, ms, *_ in table(PERFORMANCE, "ms (ratio)") if name == "this, into the queue")
    seconds = (into + out + float(ready.split()[0]) + first - into) / 1000
    dollars = 1000 * seconds * 0.5 * 0.0000166667 + 1100 * 0.2 / 1_000_000
    assert costs["Lambda, 512 MB"][1] == pytest.approx(dollars, abs=0.0005)


def test_the_changelogs_newest_version_is_the_templates() -> None:
    newest, *_ = re.findall(r"^## \[(\d+\.\d+\.\d+(?:-rc\.\d+)?)\]", CHANGELOG.read_text(), re.MULTILINE)
    assert newest == TEMPLATE["Metadata"]["AWS::ServerlessRepo::Application"]["SemanticVersion"]


# --- Operations ---


def test_every_page_that_says_how_late_an_answer_can_be_says_the_same() -> None:
    """Up to a minute, and by as much as the function's clock is slow."""
    late = [plain(page) for page in PAGES if "minute late" in plain(page)]
    assert len(late) > 1
    assert [
        text for text in late if "up to a minute late, and later by as much as its clock is slow." not in text
    ] == []


def test_a_stack_that_hangs_has_a_way_out_in_each_status() -> None:
    """CloudFormation cancels an update, and no creation."""
    rows = table(OPERATE, "The stack is in")
    told = {name.strip("`"): way for names, way in rows for name in names.split(", ")}
    waiting = ("CREATE", "UPDATE", "DELETE", "ROLLBACK", "UPDATE_ROLLBACK")
    assert told.keys() == {f"{status}_IN_PROGRESS" for status in waiting}
    assert "Delete the stack" in told["CREATE_IN_PROGRESS"]
    assert "Cancel the update" in told["UPDATE_IN_PROGRESS"]


def test_an_answer_by_hand_has_every_field_that_cloudformation_needs() -> None:
    """https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/crpg-ref-responses.html."""
    (body,) = re.findall(r"--data '(.*?)'", section(OPERATE, "Answer by hand"), re.DOTALL)
    answer = response.body(request.parse(EVENT), Response(success=False, id="a:b", reason="x"), "")
    assert json.loads(body).keys() == json.loads(answer).keys() - {"NoEcho", "Data"}


def test_the_operator_learns_which_alarms_are_late() -> None:
    """Nobody polls a dead-letter queue, so SQS reports its first message up to 15 minutes later."""
    metric = "ApproximateNumberOfMessagesVisible"
    idle = {name for name, it in ALARMS.items() if it["Properties"]["MetricName"] == metric}
    (sentence,) = re.findall(r"[^.]*15 minutes later", section(OPERATE, "An alarm"))
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
    listed = [statement["Action"] for statement in policy["Statement"]]
    return {action for each in listed for action in ([each] if isinstance(each, str) else each)}


def role_actions() -> set[str]:
    """Every action that template.yaml allows a function, with all parameters set."""
    roles = [it["Properties"]["Policies"] for it in RESOURCES.values() if it["Type"] == "AWS::IAM::Role"]
    return set(re.findall(r'"([a-z0-9]+:[A-Z][A-Za-z]+)"', json.dumps(roles))) - {"lambda:SourceFunctionArn"}


def test_the_deployers_policy_has_what_cloudformations_handlers_call() -> None:
    (policy,) = policies("To deploy the function")
    (lists,) = (
        set(it["Action"]) for it in policy["Statement"] if it["Sid"] == "Lists"
    )  # these take no resource
    assert lists >= {"logs:DescribeIndexPolicies", "logs:DescribeResourcePolicies"}
    assert actions(policy) >= {"iam:ListAttachedRolePolicies", "iam:PutRolePolicy", "iam:PassRole"}
    assert "administrator of the account" in section(DEPLOY, "To deploy the function")


def test_with_the_boundary_nobody_makes_or_changes_a_role_without_it() -> None:
    """https://docs.aws.amazon.com/IAM/latest/UserGuide/access_policies_boundaries.html."""
    (whole,), (boundary, bounded) = policies("To deploy the function"), policies("With a boundary")
    assert actions(boundary) == role_actions(), "it allows what the roles have and no more"
    unbounded = {it["Sid"] for it in boundary["Statement"] if it["Resource"] == "*"}
    assert unbounded == {"YourNetwork"}, "EC2 takes no resource for some of its actions"
    within, rest = bounded["Statement"]
    arn = "arn:aws:iam::111122223333:policy/usage-plan-key-boundary"
    assert within["Condition"]["StringEquals"] == {"iam:PermissionsBoundary": arn}
    assert {"iam:CreateRole", "iam:PutRolePolicy", "iam:PutRolePermissionsBoundary"} <= set(within["Action"])
    dangerous = r"iam:(Put|Attach|Create|UpdateAssume|DeleteRolePermissionsBoundary)"
    assert not [it for it in rest["Action"] if re.match(dangerous, it)]
    assert actions(bounded) <= actions(whole)
    assert not [it for it in actions(bounded) if "Policy" in it and "Role" not in it], (
        "nor the boundary itself"
    )


def test_the_keys_policy_and_the_list_of_who_uses_it_are_the_templates() -> None:
    """CloudWatch may use it for the functions' logs only."""
    (policy,) = policies("Your own KMS key")
    account, logs = policy["Statement"]
    assert account["Principal"] == {"AWS": "arn:aws:iam::111122223333:root"}
    assert logs["Principal"] == {"Service": "logs.eu-central-1.amazonaws.com"}
    (pattern,) = logs["Condition"]["ArnLike"].values()
    for log in ("usage-plan-key", "usage-plan-key-watch"):
        arn = f"arn:aws:logs:eu-central-1:111122223333:log-group:/aws/lambda/{log}"
        assert fnmatchcase(arn, pattern)
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
    assert statement["Resource"] == "arn:aws:s3:::cloudformation-custom-resource-response-eucentral1/*"


def test_the_manual_names_each_check_that_is_skipped() -> None:
    gates = [it.get("Metadata", {}).get("checkov", {}) for it in RESOURCES.values()]
    skipped = {skip["id"] for gate in gates for skip in gate.get("skip", [])}
    assert {check.strip("`") for check, *_ in table(DEPLOY, "Check")} == skipped


# --- Figures and pictures ---


def test_the_goals_are_the_benchmarks() -> None:
    *stuck, _, billed, deletes = (goal for _, goal, _ in table(PERFORMANCE, "Played"))
    told = [int(number) for goal in stuck for number in re.findall(r"in (\d+) times", goal)]
    assert told == [goals.STUCK[30], goals.STUCK[300]]
    assert {goals.STUCK[stacks] for stacks in (1, 10, 30)} == {told[0]}
    assert billed.startswith(f"{goals.MOST_BILLED:.0f} s billed")
    assert f"within {goals.MOST_SECONDS:.0f} s" in deletes


def test_the_picture_of_the_dashboard_has_each_widget_and_metric_of_the_template() -> None:
    said, shown = (
        set(re.findall(r">([^<>]+)</text>", it)) for it in (dashboard.svg({}), dashboard.PICTURE.read_text())
    )
    told = {text for text in said if not re.fullmatch(r"[\d.]+", text)}  # without the scale
    assert len(told) > 30
    assert told - shown == set()
