"""The manual fits the code, the template and AWS's API: links, files, commands, snippets, tables, figures."""

import ast
import json
import re
import subprocess
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
from mdit_py_plugins.anchors import anchors_plugin
from samtranslator.yaml_helper import yaml_parse

from benchmarks import __main__ as goals
from benchmarks import dashboard
from tools import migrate
from usage_plan_key import request, response
from usage_plan_key.model import Response

from . import test_template
from .answers import asked
from .check.searches import SEARCHES
from .conftest import ROOT
from .story import play
from .test_check import RULES
from .test_template import ALARMS, GATED, RESOURCES, SERVICES, TEMPLATE, granted

emitted = test_template.emitted
HANDLER = sorted((ROOT / "handler" / "usage_plan_key").glob("*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("tools/*.md")])
#: For those who work on the tests; the manual does not lead to them.
TESTS_PAGES = sorted(ROOT.glob("tests/*.md"))
TESTS = {
    *re.findall(r"\b(test_\w+)(?:\(| = )", "".join(it.read_text() for it in ROOT.glob("tests/test_*.py")))
}
README, CHANGELOG, CONTRIBUTING = (ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING"))
REFERENCE, DEPLOY, OPERATE, PERFORMANCE, RELIABILITY = (
    ROOT / "docs" / f"{name}.md" for name in ("reference", "deploy", "operate", "performance", "reliability")
)
MARKDOWN = MarkdownIt("commonmark").enable("table").use(anchors_plugin, max_level=6)  # GitHub's anchors
ASKED = {*request.PROPERTIES, "ServiceToken", "ServiceTimeout"}


@cache
def tokens(page: Path) -> list[Token]:
    """A page's tokens, those inside its paragraphs too."""
    return [each for token in MARKDOWN.parse(page.read_text()) for each in (token, *(token.children or []))]


def title(page: Path) -> str:
    return str(page.relative_to(ROOT))


#: Each block of code: its page and line, its language, its text.
BLOCKS = [
    (f"{title(page)}:{(it.map or [0])[0] + 1}", it.info, it.content)
    for page in PAGES
    for it in tokens(page)
    if it.type == "fence"
]


def each_block(*languages: str, holding: str = "") -> pytest.MarkDecorator:
    """The pages' code blocks in these languages that hold this pattern."""
    texts = {at: text for at, language, text in BLOCKS if language in languages and re.search(holding, text)}
    return pytest.mark.parametrize("block", texts.values(), ids=texts)


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
MAKE_TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
#: A page may name a file from here.
FOLDERS = {ROOT, *(path.parent for depth in ("*", "*/*") for path in ROOT.glob(f"{depth}/*.py"))}


def links(page: Path) -> Iterator[tuple[Path, str]]:
    for token in tokens(page):
        target = str(token.attrGet("href") or token.attrGet("src") or "")
        if token.type in ("link_open", "image") and not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            yield ((page.parent / path).resolve() if path else page), anchor


def leads(page: Path, anchor: str) -> bool:
    return page.exists() and (not anchor or anchor in [it.attrGet("id") for it in tokens(page)])


@pytest.mark.parametrize("page", [*PAGES, *TESTS_PAGES], ids=title)
def test_a_page_shows_no_mark_and_all_that_it_names_is_there(page: Path) -> None:
    """GitHub drops what is behind an unescaped bar of a table, and shows a list in a cell as text."""
    shown = [token for token in tokens(page) if token.type in ("text", "html_inline", "html_block")]
    assert [token.content for token in shown if token.type != "text" or MARKS.search(token.content)] == []
    lines = page.read_text().splitlines()
    for first, last in [token.map or [0, 0] for token in tokens(page) if token.type == "table_open"]:
        rows = [re.split(r"(?<!\\)\|", row.removeprefix("|").removesuffix("|")) for row in lines[first:last]]
        assert [row for row in rows if len(row) != len(rows[0])] == []
        assert [cell for row in rows for cell in row if re.match(r"\s*([-*+]|\d+\.)\s", cell)] == []
    assert [it for it in links(page) if not leads(*it)] == []
    code = "\n".join(it.content for it in tokens(page) if it.type in ("code_inline", "fence", "code_block"))
    tops = "|".join(re.escape(path.name) for path in ROOT.iterdir() if path.is_dir())
    named = set(re.findall(rf"(?<![\w/.:-])(?:{tops})/[\w./-]*\w/?", code))
    named |= set(re.findall(r"^(?:[\w-]+\.(?:py|yaml|toml|md)|[\w-]+env\.json)$", code, re.MULTILINE))
    named = {name for name in named if not name.startswith((".venv", "build"))}  # these are made
    assert {name for name in named if not any((folder / name).exists() for folder in FOLDERS)} == set()
    assert set(re.findall(r"^make ([a-z][\w-]*)", code, re.MULTILINE)) - MAKE_TARGETS == set()
    assert set(re.findall(r"^test_\w+$", code, re.MULTILINE)) - TESTS == set()


def test_the_readme_is_short_and_narrow_and_leads_to_each_page() -> None:
    assert len(README.read_text().split()) <= 700
    assert max(map(len, README.read_text().splitlines())) <= 110
    seen, todo = set[Path](), [README]
    while todo:
        seen.add(page := todo.pop())
        todo += [target for target, _ in links(page) if target in PAGES and target not in seen]
    assert seen == set(PAGES)


# --- Commands ---

#: Commands of the AWS CLI that are no operations of AWS.
OWN_COMMANDS = {("cloudformation", "package"), ("cloudformation", "deploy"), ("s3", "cp")}
GLOBAL_OPTIONS = {"query", "output", "region", "cli-binary-format", "cli-read-timeout"}


def cli(name: str) -> str:
    return str(xform_name(name, sep="-"))


@each_block("sh")
def test_a_block_of_commands_can_be_pasted(block: str) -> None:
    """A browser hides what is beyond 98 characters. A block that is pasted alone must set its variables.

    The SAM CLI does not read AWS_REGION, so the profile's region would win in silence. The AWS CLI derives
    its commands from the same descriptions that botocore has.
    """
    assert max(map(len, block.splitlines())) <= 98
    used = set(re.findall(r"\$\{?([A-Z_]+)", block)) - {"PATH", "PWD"}
    assert used - set(re.findall(r"^(?:export )?([A-Z_]+)=", block, re.MULTILINE)) == set()
    text = block.replace("\\\n", " ")
    reaching_aws = re.findall(r"^sam (?:deploy|delete|package|sync)\b(.*)", text, re.MULTILINE)
    assert all("--region " in rest and "AWS_REGION" not in block for rest in reaching_aws)
    session = botocore.session.get_session()
    for service, operation, rest in re.findall(r"\baws ([a-z0-9]+) ([a-z-]+)((?:(?!\baws )[^\n])*)", text):
        if (service, operation) in OWN_COMMANDS:
            continue
        model = session.get_service_model(service)
        names = {cli(name): name for name in model.operation_names}
        if operation == "wait":
            waiters = session.get_waiter_model(service)
            names = {cli(name): waiters.get_waiter(name).operation for name in waiters.waiter_names}
        name = names[rest.split()[0] if operation == "wait" else operation]
        shape = model.operation_model(name).input_shape
        given = set(re.findall(r"(?<= )--(?:no-(?=enabled))?([a-z][a-z-]*)", rest)) - GLOBAL_OPTIONS
        assert given <= {cli(member) for member in (shape.members if shape else ())}
        assert given >= {cli(member) for member in (shape.required_members if shape else ())}


def run(block: str, place: Path, *, waits: int = 0, fails: str = "") -> list[str]:
    """Run commands with an `aws` and a `sam` that write down how they are called; return that.

    The first `waits` waits give up, and a call with the words `fails` in it fails.
    """
    (calls := place / "calls").write_text("")
    script = f"""#!/bin/sh
echo "$(basename "$0") $*" >> '{calls}'
case "$*" in
    *'{fails or "no such word"}'*) exit 1 ;;
    *list-backups*) echo arn:of-the-backup ;;
    *get-caller*) echo 111122223333 ;;
    *wait*) test "$(grep -c ' wait ' '{calls}')" -gt {waits} ;;
esac
"""
    for name, text in (("aws", script), ("sam", script), ("sleep", "#!/bin/sh\n")):
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    surroundings = {"PATH": f"{place}:/usr/bin:/bin", "AWS_REGION": "us-east-1"}
    command = ["sh", "-c", block.replace("echo ", f"echo >> '{calls}' ")]
    subprocess.run(command, env=surroundings, check=False, timeout=60)
    return calls.read_text().splitlines()


@pytest.mark.parametrize("page", [README, DEPLOY], ids=title)
def test_a_deploy_names_its_account_and_region_first(page: Path, tmp_path: Path) -> None:
    """Whatever region the surroundings name; without a region it deploys nowhere."""
    block = next(text for at, _, text in BLOCKS if at.startswith(title(page)) and "sam deploy" in text)
    _, *told = run(block, tmp_path)
    region = "eu-central-1"
    assert told == [f"Account 111122223333, region {region}", "sam build", f"sam deploy --region {region}"]
    assert not [call for call in run(re.sub("(?m)^REGION=.*$", "", block), tmp_path) if "deploy" in call]


@each_block("text", holding="filter")
def test_a_log_query_asks_for_fields_that_the_log_has(block: str) -> None:
    source = ast.parse((ROOT / "handler" / "usage_plan_key" / "provider.py").read_text())
    fields = {node.value for node in ast.walk(source) if isinstance(node, ast.Constant)} | {"message"}
    words = set(re.findall(r"(?<![@\w])[A-Za-z]\w*", re.sub(r'"[^"]*"|/[^/]*/', "", block)))
    language = "fields filter sort stats desc asc like and or by as count latest times last"
    assert words - fields - {*language.split()} == set()


# --- Snippets ---


@each_block("json", "yaml")
def test_a_snippet_can_be_used(block: str) -> None:
    """The function takes its resources, cfn-lint finds nothing in a whole template, IAM can read a policy.

    https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_grammar.html
    """
    found = json.loads(block) if block.lstrip().startswith(("{", "[")) else yaml_parse(block)
    assert found
    for it in found.get("Resources", found).values():
        if isinstance(it, dict) and it.get("Type") == "Custom::UsagePlanKey" and "Properties" in it:
            given = it["Properties"]
            literal = {name: "a1b2" if isinstance(each, dict) else each for name, each in given.items()}
            assert isinstance(request.parse(asked(ResourceProperties=literal)), request.Create)
            assert "ServiceToken" in given
    if "Resources" in found:
        assert cfn_lint.lint(block, regions=["us-east-1"]) == []
    if "Statement" in found:
        assert found["Version"] == "2012-10-17"
        for statement in found["Statement"]:
            assert statement.keys() - {"Principal", "Condition"} == {"Sid", "Effect", "Action", "Resource"}
            assert re.fullmatch(r"\w+", statement["Sid"])
        assert actions(found)


# --- The reference ---


def test_the_reference_has_each_property_and_attribute_and_says_the_same_of_each() -> None:
    _, properties, _, attributes, *_ = re.split(
        r"^#+ (?:Properties|Return values|Fn::GetAtt|Outcomes)$", REFERENCE.read_text(), flags=re.MULTILINE
    )
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", properties, re.MULTILINE | re.DOTALL))
    assert sections.keys() == ASKED
    for name in ("Required", "Type", "Default", "Update requires"):
        assert {text.count(f"*{name}*: ") for text in sections.values()} == {1}
    asks = request.parse(asked(IncludeValue="true"))
    answer = response.body(asks, Response(success=True, key_name="Alice", value="secret"), "")
    assert set(re.findall(r"^#### (\w+)$", attributes, re.MULTILINE)) == json.loads(answer)["Data"].keys()
    syntaxes = [yaml_parse(text) for at, _, text in BLOCKS if "reference" in at and "VerifyTrigger" in text]
    assert [it["Properties"].keys() for it in syntaxes[:2]] == [ASKED, ASKED]


#: How an association comes to be held so, each as the steps of a story.
HELD_BY = {
    "nobody": "",
    "this resource": "create A free",
    "this resource, adopted": "hand+ free; create A free Adopt",
    "another resource of the stack": "create B free",
    "other stacks only": "create Z free",
}
OUTCOMES = {
    (held_by, in_plan, choice): told.strip("`")
    for held_by, in_plan, on_existing, told, _ in table(REFERENCE, "Held by")
    for choice in (request.OnExisting if on_existing == "any" else re.findall(r"\w+", on_existing))
}


@pytest.mark.parametrize("choice", request.OnExisting)
@pytest.mark.parametrize("in_plan", ["yes", "no"])
@pytest.mark.parametrize("held_by", HELD_BY)
def test_the_function_comes_to_each_outcome(held_by: str, in_plan: str, choice: str) -> None:
    """If nothing else is said of a resource that adopted, it is as any other."""
    told = OUTCOMES.get((held_by, in_plan, choice))
    told = told or OUTCOMES[held_by.removesuffix(", adopted"), in_plan, choice]
    hand = "hand+ free" if in_plan == "yes" else "hand- free"
    hand = hand if (held_by == "nobody") == (in_plan == "yes") else ""
    id_ = "free" if held_by.startswith("this") else "#former"
    expected = "FAILED OnExisting is Fail" if told == "FAILED" else told
    option = "" if choice == "Fail" else choice
    play(f"{HELD_BY[held_by]}; {hand}; update A {id_} free {option} = {expected}; excuse free")


#: Texts that no answer carries.
UNSAID = {
    *("version = :version", "a string of", "try again later", "an id of", "a foreign id of"),
    "its RequestId is one that the function has answered",
    "it is there still, and the function has just detached it",
}


def answering(source: Path) -> ast.AST:
    """A module without what no Reason says: docstrings, lines of the log, the names of facts and beliefs."""
    tree = ast.parse(source.read_text())
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant()):
                node.value = ast.Constant(None)
            case ast.ClassDef():
                node.body = [each for each in node.body if not isinstance(each, ast.Assign)]
            case ast.Call() if re.match(r"logger\.\w+\((?!['\"]Could not)|TurnOver|cast", ast.unparse(node)):
                node.args = []
    return tree


def literals(tree: ast.AST) -> Iterator[str]:
    """The texts between values, where they have three words or more."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = (" ".join(part.split()).strip(" .,:;()") for part in re.split("%s|{}", node.value))
            yield from (part for part in parts if part.count(" ") > 1)


def threes(text: str) -> set[tuple[str, ...]]:
    """All three words of a text that follow each other; a value is none."""
    parts = [re.findall(r"[A-Za-z']+", part) for part in re.split(r"…|[,;:.]", text.replace("`", ""))]
    return {(*words[at : at + 3],) for words in parts for at in range(len(words) - 2)}


def test_the_reference_has_each_reason_and_the_code_gives_each_text_of_the_reference() -> None:
    """At least half of a text, because the reference shows a value where the code has none."""
    trees = [answering(source) for source in HANDLER if source.stem not in ("watch", "redaction")]
    reasons = {text for tree in trees for text in literals(tree)} - UNSAID
    assert len(reasons) > 60
    assert [text for text in sorted(reasons) if text not in plain(REFERENCE)] == []
    every = [text for source in HANDLER for text in literals(ast.parse(source.read_text()))]
    said = set().union(*map(threes, every))
    told = REFERENCE.read_text().partition("\n## Reasons")[2].partition("\n## Examples")[0]
    given = [threes(" ".join(text.split())) for text in re.findall(r"\*\*(.+?)\*\*", told, re.DOTALL)]
    assert len(given) > 30
    assert [words for words in given if len(words) > 1 and len(words & said) * 2 < len(words)] == []


# --- The template, and figures ---


def test_the_manual_has_each_parameter_alarm_metric_and_skipped_check(emitted: set[str]) -> None:
    told = {name.strip("`"): default.strip("`") for name, default, _ in table(DEPLOY, "Parameter")}
    assert told == {name: str(parameter["Default"]) for name, parameter in TEMPLATE["Parameters"].items()}
    assert {name.strip("`") for name, *_ in table(OPERATE, "Alarm")} == ALARMS.keys()
    assert emitted <= {name for names, _ in table(OPERATE, "Metric") for name in re.findall(r"\w+", names)}
    gates = [it.get("Metadata", {}).get("checkov", {}) for it in RESOURCES.values()]
    skipped = {skip["id"] for gate in gates for skip in gate.get("skip", []) if skip["comment"]}
    assert {check.strip("`") for check, *_ in table(DEPLOY, "Check")} == skipped


def cost(column: int) -> dict[str, float]:
    """A column of the table of costs, without its total."""
    told = {name: row[column] for name, *row in table(DEPLOY, "Service")[:-1]}
    return {name: float(re.sub(r"^\$|^(under.*)?$", "0", cell)) for name, cell in told.items()}


def milliseconds(way: str) -> tuple[int, int]:
    """One invocation into the queue or out of it at 512 MB: warm, and cold with its init."""
    name = f"this, {way} the queue"
    sizes = {it: row[2] for it, *row in table(PERFORMANCE, "First, warm")}
    ready = {it: ms for it, ms, *_ in table(PERFORMANCE, "ms (ratio)")}
    first, warm = map(int, sizes[name].split(", "))
    return warm, round(float(ready[name].split()[0]) + first)


def seconds_of_a_create() -> float:
    """Lambda's: in the worst case each of 1,000 invocations into the queue starts an environment."""
    (_, cold), (warm, _) = milliseconds("into"), milliseconds("out of")
    return (cold + warm) / 1000


def played(column: int) -> str:
    """The sum of a column of the check's table, which stands beside itself."""
    cells = [row[at] for row in table(RELIABILITY, "World") for at in (column, column + 3)]
    return f"{sum(int(cell.replace(',', '')) for cell in cells if cell):,}"


VERSION = TEMPLATE["Metadata"]["AWS::ServerlessRepo::Application"]["SemanticVersion"]
RECEIVES = RESOURCES["Requests"]["Properties"]["RedrivePolicy"]["maxReceiveCount"]
ALWAYS = [name for name in ALARMS if "Condition" not in RESOURCES[name]]  # those of the schedule are extra
#: Where figures stand, the text around them, and each as it is computed.
FIGURES: list[tuple[Path, str, object]] = [
    (README, r"costs \$([\d.]+) a month", f"{sum(cost(0).values()):.2f}"),
    (README, r"\$([\d.]+) for 1,000 requests", f"{sum(cost(1).values()):.3f}"),
    (DEPLOY, r"\| all \| \$([\d.]+)", f"{sum(cost(0).values()):.2f}"),
    (DEPLOY, r"\| all \| .*? \| \$([\d.]+)", f"{sum(cost(1).values()):.3f}"),
    (DEPLOY, r"alarms, \$0.10 each \| \$([\d.]+)", f"{0.1 * len(ALWAYS):.2f}"),
    (DEPLOY, r"512 MB \| \| \$([\d.]+)", f"{1000 * seconds_of_a_create() * 0.5 / 60_000 + 0.00022:.3f}"),
    (PERFORMANCE, r"warm: [^|]* \| (\d+) ms", milliseconds("into")[0]),
    (PERFORMANCE, r"warm: [^|]* \| .*? \| (\d+) ms", milliseconds("out of")[0]),
    (PERFORMANCE, r"cold: [^|]* \| (\d+) ms", milliseconds("into")[1]),
    (PERFORMANCE, r"cold: [^|]* \| .*? \| ([\d,]+) ms", f"{milliseconds('out of')[1]:,}"),
    (PERFORMANCE, r"30 stuck stacks,.*? in (\d+) times", f"{goals.STUCK[30]:.0f}"),
    (PERFORMANCE, r"300 stuck stacks, 503.*? in (\d+) times", f"{goals.STUCK[300]:.0f}"),
    (PERFORMANCE, r"Retry-After: 30 \| (\d+) s billed", f"{goals.MOST_BILLED:.0f}"),
    (PERFORMANCE, r"answered within (\d+) s", f"{goals.MOST_SECONDS:.0f}"),
    (RELIABILITY, r"had ([\d,]+) runs", played(1)),
    (RELIABILITY, r"runs, ([\d,]+) states", played(2)),
    (REFERENCE, r"resources in a template \| (\d+)", migrate.MOST_RESOURCES),
    (REFERENCE, r"template in a request \| ([\d,]+) bytes", f"{migrate.LARGEST_BODY:,}"),
    (REFERENCE, r"template in S3 \| (\d+) MB", migrate.LARGEST_IN_S3 // 1_000_000),
    (REFERENCE, r"dynamic references in a template \| (\d+)", migrate.MOST_DYNAMIC_REFERENCES),
    (CONTRIBUTING, r"every order of events in (\d+) small worlds", len(SEARCHES)),
    (CONTRIBUTING, r"breaks (\d+) rules of", len(RULES)),
    (OPERATE, r"an answer after ([\d,]+) receives", f"{RECEIVES:,}"),
    (CHANGELOG, r"\[(\d+\.\d+\.\d+(?:-rc\.\d+)?)\]", VERSION),
]


@pytest.mark.parametrize(("page", "around", "computed"), FIGURES)
def test_a_figure_is_the_computed_one(page: Path, around: str, computed: object) -> None:
    told = re.search(around, plain(page))
    assert told
    assert told[1] == str(computed)


def test_the_picture_of_the_dashboard_has_each_widget_and_metric_of_the_template() -> None:
    said, shown = (
        set(re.findall(r">([^<>]+)</text>", it)) for it in (dashboard.svg({}), dashboard.PICTURE.read_text())
    )
    told = {text for text in said if not re.fullmatch(r"[\d.]+", text)}  # without the scale
    assert len(told) > 30
    assert told - shown == set()


# --- Operations ---


def test_every_page_that_says_how_late_an_answer_can_be_says_the_same() -> None:
    late = re.findall("minute late(.{44})", " ".join(map(plain, PAGES)))
    assert len(late) > 1
    assert {*late} == {", and later by as much as its clock is slow."}


def test_a_stack_that_hangs_has_a_way_out_in_each_status() -> None:
    """CloudFormation cancels an update, and no creation."""
    told = {
        name: way for names, way in table(OPERATE, "The stack is in") for name in re.findall(r"\w+", names)
    }
    waiting = ("CREATE", "UPDATE", "DELETE", "ROLLBACK", "UPDATE_ROLLBACK")
    assert told.keys() == {f"{status}_IN_PROGRESS" for status in waiting}
    assert "Delete the stack" in told["CREATE_IN_PROGRESS"]
    assert "Cancel the update" in told["UPDATE_IN_PROGRESS"]


def test_an_operator_sees_what_to_answer_which_alarms_are_late_and_what_is_in_the_way() -> None:
    """Nobody polls a dead-letter queue, so SQS reports its first message up to 15 minutes later."""
    (body,) = re.findall(r"--data '(.*?)'", section(OPERATE, "Answer by hand"), re.DOTALL)
    answer = response.body(request.parse(asked()), Response(success=False, reason="x"), "")
    assert json.loads(body).keys() == json.loads(answer).keys() - {"NoEcho", "Data"}
    metric = "ApproximateNumberOfMessagesVisible"
    idle = {name for name, it in ALARMS.items() if it["MetricName"] == metric}
    (sentence,) = re.findall(r"[^.]*15 minutes later", section(OPERATE, "An alarm"))
    assert set(re.findall(r"`(\w+Alarm)`", sentence)) == idle
    assert "[AWS::EarlyValidation::ResourceExistenceCheck]" in section(DEPLOY, "Remove")
    assert "--parameter-overrides ExistingLedger=usage-plan-key-ledger" in section(DEPLOY, "Remove")
    assert "does not make a table" in section(OPERATE, "Begin with an empty ledger")


# --- Permissions, key and network ---


def policies(heading: str) -> list[Any]:
    return [json.loads(it) for it in re.findall(r"```json\n(.*?)```", section(DEPLOY, heading), re.DOTALL)]


def actions(policy: Any) -> set[str]:
    listed = [statement["Action"] for statement in policy["Statement"]]
    found = {action for each in listed for action in ([each] if isinstance(each, str) else each)}
    assert all(re.fullmatch(r"[a-z0-9]+:[A-Za-z*]+", action) for action in found)
    return found


#: What the roles allow, with all parameters set.
GRANTED = granted("Role", **GATED) | granted("WatchRole", **GATED, WatchRepairs="true")
ROLE_ACTIONS = {action for action, _ in GRANTED}


def test_a_deployer_may_deploy_and_with_the_boundary_makes_no_role_without_it() -> None:
    """https://docs.aws.amazon.com/IAM/latest/UserGuide/access_policies_boundaries.html."""
    (whole,), (boundary, bounded) = policies("To deploy the function"), policies("With a boundary")
    (lists,) = (set(it["Action"]) for it in whole["Statement"] if it["Sid"] == "Lists")  # without a resource
    assert lists >= {"logs:DescribeIndexPolicies", "logs:DescribeResourcePolicies"}
    assert actions(whole) >= {"iam:ListAttachedRolePolicies", "iam:PutRolePolicy", "iam:PassRole"}
    assert actions(boundary) == ROLE_ACTIONS, "it allows what the roles have and no more"
    unbounded = {it["Sid"] for it in boundary["Statement"] if it["Resource"] == "*"}
    assert unbounded == {"YourNetwork"}, "EC2 takes no resource for some of its actions"
    within, rest = bounded["Statement"]
    arn = "arn:aws:iam::111122223333:policy/usage-plan-key-boundary"
    assert within["Condition"]["StringEquals"] == {"iam:PermissionsBoundary": arn}
    assert {"iam:CreateRole", "iam:PutRolePolicy", "iam:PutRolePermissionsBoundary"} <= set(within["Action"])
    dangerous = r"iam:(Put|Attach|Create|UpdateAssume|DeleteRolePermissionsBoundary)"
    assert not [it for it in rest["Action"] if re.match(dangerous, it)]
    assert actions(bounded) <= actions(whole)
    assert not [it for it in actions(bounded) if "Policy" in it and "Role" not in it], "nor the boundary"


def test_the_keys_policy_and_the_list_of_who_uses_it_are_the_templates() -> None:
    """CloudWatch may use it for the functions' logs only."""
    ((account, logs),) = [it["Statement"] for it in policies("Your own KMS key")]
    assert account["Principal"] == {"AWS": "arn:aws:iam::111122223333:root"}
    assert logs["Principal"] == {"Service": "logs.eu-central-1.amazonaws.com"}
    (pattern,) = logs["Condition"]["ArnLike"].values()
    assert pattern == "arn:aws:logs:eu-central-1:111122223333:log-group:/aws/lambda/usage-plan-key*"
    told = {who: set(re.findall(r"kms:\w+", what)) for who, what, _ in table(DEPLOY, "Who")}
    assert told["the functions' roles"] == {it for it in ROLE_ACTIONS if it.startswith("kms:")}
    principals = {name for who in told for name in re.findall(r"`(\w+)\.amazonaws\.com`", who)}
    assert principals == {"lambda", "sqs", "dynamodb", "events", "cloudwatch"}


def test_in_a_vpc_each_service_that_the_functions_call_has_its_endpoint() -> None:
    """S3 takes the answers."""
    told = {name.rpartition(".")[2].strip("`") for name, *_ in table(DEPLOY, "Endpoint")}
    assert told == {*SERVICES, "s3"}
    ((answers,),) = [it["Statement"] for it in policies("In a VPC")]
    assert answers["Resource"] == "arn:aws:s3:::cloudformation-custom-resource-response-eucentral1/*"
