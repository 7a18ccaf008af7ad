"""tools/migrate.py leads from the native type in three deploys. It changes what it has to, or refuses.

test_examples.py plays the three deploys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

from tools import migrate

ROOT = Path(__file__).parents[1]
BEFORE = (ROOT / "tests/templates/native.yaml").read_text()
AFTER = (ROOT / "tests/templates/migrated.yaml").read_text()
STEPS = ("retain", "replace", "take")
NATIVE, CUSTOM = "AWS::ApiGateway::UsagePlanKey", "Custom::UsagePlanKey"
ALICE = """\
Resources:
  Alice:
    Type: AWS::ApiGateway::UsagePlanKey
    Properties:
      KeyId: a1b2
      UsagePlanId: f7r3
"""
TAKEN = """\
Resources:
  AliceInPlan:
    Type: Custom::UsagePlanKey
    Properties:
      ServiceToken: !ImportValue usage-plan-key-FunctionArn
      ServiceTimeout: 120
      OnExisting: Take
      VerifyTrigger: taken
      KeyId: a1b2
      UsagePlanId: f7r3
"""


class Migration:
    """A template on its way, each step deployed as CloudFormation would show it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str] | None = None) -> None:
        self.template, self.deployed, self._capsys = folder / "template", folder / "deployed.json", capsys

    def begin(self, text: str, deployed: str = "") -> Migration:
        """Begin with a template, and with what the command finds in the file of the deployed one."""
        self.template.write_bytes(text.encode())
        self.deployed.write_text(deployed) if deployed else self.deployed.unlink(missing_ok=True)
        return self

    @property
    def text(self) -> str:
        return self.template.read_bytes().decode()

    def run(self, command: str) -> int:
        step, *options = command.split()
        proof = ["--deployed", str(self.deployed)] if self.deployed.exists() else []
        return migrate.main([step, str(self.template), "--in-place", *proof, *options])

    def told(self) -> str:
        return self._capsys.readouterr().err if self._capsys else ""

    def step(self, command: str) -> str:
        """Do a step, and deploy its template; return what it has told."""
        assert self.run(command) == 0, self.told()
        self.deployed.write_text(shown(json.loads(self.text) if self.text.startswith("{") else self.text))
        return self.told()

    def steps(self, options: str = "") -> str:
        """Do all three, `replace` with these options; return the template."""
        for command in ("retain", f"replace {options}", "take"):
            self.step(command)
        return self.text

    def refusal(self, command: str) -> str:
        """Do a step that ends with 1, one sentence and the file as it was; return the sentence."""
        before, _ = self.text, self.told()
        assert self.run(command) == 1
        assert self.text == before
        assert list(self.template.parent.glob(".*")) == []
        told = self.told()
        assert re.fullmatch("migrate.py: .+\n", told)
        return told


def shown(body: Any) -> str:
    """Write what `get-template` puts out."""
    return json.dumps({"TemplateBody": body})


@pytest.fixture
def it(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Migration:
    monkeypatch.chdir(tmp_path)
    return Migration(tmp_path, capsys)


def changed(text: str, *changes: str) -> str:
    """Make changes of a template: `old → new`, or text for the end."""
    for change in changes:
        old, arrow, new = change.partition(" → ")
        assert not arrow or old in text
        text = text.replace(old, new) if arrow else text + change + "\n"
    return text


#: The small template with Alice, the same after all three steps, and in JSON, each with changes.
alice, taken = partial(changed, ALICE), partial(changed, TAKEN)
as_json = partial(changed, json.dumps(yaml_parse(ALICE)))


def loop(type_: str) -> str:
    ids = "KeyId: a1b2, UsagePlanId: f7r3, OnExisting: Take"
    return f"  Fn::ForEach::Keys: [Name, [A], {{A: {{Type: {type_}, Properties: {{{ids}}}}}}}]"


# --- What the steps change ---


@pytest.mark.parametrize(("begin", "end"), [("", "\n"), ("", "\r\n"), ("\ufeff", "\n")], ids=ascii)
def test_what_the_owner_wrote_stays_and_references_follow(it: Migration, begin: str, end: str) -> None:
    """native.yaml becomes migrated.yaml: comments, order, quotes, spaces, line ends and own policies stay."""
    it.begin(begin + BEFORE.replace("\n", end)).step("retain")
    natives = [each for each in yaml_parse(it.text)["Resources"].values() if each["Type"] == NATIVE]
    policies = {(each["DeletionPolicy"], each.get("UpdateReplacePolicy")) for each in natives}
    assert policies == {("Retain", "Retain"), ("Retain", None), ("RetainExceptOnCreate", None)}
    added = [
        "DeletionPolicy: Retain",
        "UpdateReplacePolicy: Retain",
        "Metadata: {UsagePlanKeyMigration: retain}",
    ]
    retained = it.text
    assert f"{end}        ".join(["UsagePlanKey  # the first customer", *added]) in retained
    it.step("retain")
    assert it.text == retained, "a second time nothing is written twice"
    assert it.steps().split(end, 1)[1] == AFTER.replace("\n", end).split(end, 1)[1]


@pytest.mark.parametrize("form", [{"indent": 2}, {"indent": "\t"}, {"separators": (",", ":")}, {}], ids=str)
@pytest.mark.parametrize("turn", [list, reversed], ids=["type first", "type last"])
def test_json_comes_to_the_same(it: Migration, form: dict[str, Any], turn: Callable[..., Any]) -> None:
    data = yaml_parse(BEFORE)
    data["Resources"] = {name: dict(turn([*each.items()])) for name, each in data["Resources"].items()}
    text = it.begin(json.dumps(data, **form)).steps("--arn arn")
    assert json.loads(text) == yaml_parse(AFTER.replace("!ImportValue usage-plan-key-FunctionArn", "arn"))
    assert form.get("separators") or text == json.dumps(json.loads(text), **form)


def test_escapes_that_say_no_name_stay(it: Migration) -> None:
    text = r'{"Description": "\ud83d\udd11 \/ \u00e9", "A": {"Fn::Sub": "\n${Alice}"}, '
    assert it.begin(text + as_json()[1:]).steps().startswith(text.replace("${Alice}", "${AliceInPlan}"))


def test_without_in_place_the_same_goes_to_the_standard_output(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    it = Migration(tmp_path).begin(windows := BEFORE.replace("\n", "\r\n"))
    assert migrate.main(["retain", str(it.template)]) == 0
    assert it.text == windows
    it.run("retain")
    assert capsysbinary.readouterr().out.decode() == it.text


# --- The custom resources ---


@pytest.mark.parametrize(("keys", "seconds"), [(1, 120), (120, 120), (240, 180), (500, 310), (9000, 3600)])
def test_the_service_timeout_grows_with_the_keys(keys: int, seconds: int) -> None:
    assert migrate.service_timeout(keys) == seconds


#: The options of `replace`, and a line that it writes.
OPTIONS = {
    "": "ServiceToken: !ImportValue usage-plan-key-FunctionArn",
    "--import stack:Arn": 'ServiceToken: !ImportValue "stack:Arn"',
    "--parameter FunctionArn": "ServiceToken: !Ref FunctionArn",
    "--ssm /usage-plan-key/arn": 'ServiceToken: "{{resolve:ssm:/usage-plan-key/arn}}"',
    "--arn arn:aws:lambda:f": 'ServiceToken: "arn:aws:lambda:f"',
    "--suffix Here": "AliceHere:",
}


@pytest.mark.parametrize(("options", "line"), OPTIONS.items())
def test_an_option_sets_the_service_token_or_the_suffix(it: Migration, options: str, line: str) -> None:
    text = it.begin(alice("Parameters: {FunctionArn: {Type: String}}")).steps(options)
    assert line in map(str.strip, text.splitlines())


@pytest.mark.parametrize(
    ("here", "there", "new"), [("1", "1", "taken"), ("2", "1", "2"), ("taken", "taken", "taken again")]
)
def test_a_trigger_that_is_there_changes_once(it: Migration, here: str, there: str, new: str) -> None:
    it.begin(taken(f"taken → '{here}'"), shown(taken(f"taken → '{there}'"))).step("take")
    assert yaml_parse(it.text)["Resources"]["AliceInPlan"]["Properties"]["VerifyTrigger"] == new


#: The old logical id, the key, the plan; the new one, and what the command says of it.
IDS = [
    ("Alice", "!Ref AliceKey", "!Ref FreePlan", "AliceKeyInPlan", ""),
    ("Alice", "!GetAtt AliceKey.APIKeyId", "!Ref FreePlan", "AliceKeyInPlan", ""),
    ("Alice", "!ImportValue customers-alice", "!Ref FreePlan", "CustomersAliceInPlan", ""),
    ("Alice", "!If [A, b, c]", "!Ref FreePlan", "AliceInPlan", ""),
    ("FreeAlice", "!Ref AKey", "!Ref FreePlan", "AKeyInPlan", "FreeAlice becomes AKeyInPlan: the old id"),
    ("AliceFREE", "a1b2", "!Ref FreeUsagePlan", "Keya1b2InPlan", "AliceFREE becomes Keya1b2InPlan"),
    ("AliceFree", "!Ref AliceKey", "!Ref FreePlan1A2B3C4D", "AliceKeyInPlan", "names its plan"),
    ("Freeman", "!Ref AliceKey", "!Ref FreePlan", "AliceKeyInPlan", ""),
    ("InAnyPlan", "!Ref AliceKey", "!Ref Plan", "AliceKeyInPlan", ""),
    ("Alice", "!Ref FreeKey", "!Ref FreePlan", "FreeKeyInPlan", "FreeKeyInPlan (FreePlan) names its plan"),
    ("Alice", "!Ref Bob", "!Ref FreePlan", "BobInPlan2", ""),
    ("A" * 255, "a1b2", "f7r3", "A" * 249 + "InPlan", ""),
]


@pytest.mark.parametrize(("old", "key", "plan", "new", "note"), IDS)
def test_the_logical_id_is_the_keys_and_not_the_plans(
    it: Migration, old: str, key: str, plan: str, new: str, note: str
) -> None:
    """So it stays when the customer changes plans; with the plan's name a move would be a Create."""
    ids = (f"a1b2 → {key}", f"f7r3 → {plan}", "Parameters: {BobInPlan: {Type: String}}")
    it.begin(alice(f"Alice → {old}", *ids)).step("retain")
    told = it.step("replace")
    assert new in yaml_parse(it.text)["Resources"]
    assert note in told if note else "names its plan" not in told


def test_ids_are_shown_and_chosen(it: Migration, capsys: pytest.CaptureFixture[str]) -> None:
    Path("ids.yaml").write_text("Alice: AliceHere\n")
    it.begin(alice("a1b2 → !Ref Key"))
    for step in ("retain", "replace"):
        before = it.text
        assert it.run(f"{step} --ids") == 0
        assert (capsys.readouterr().out, it.text) == ("Alice: KeyInPlan\n", before)
        it.step(f"{step} --ids=ids.yaml")
        assert ("\n  AliceHere:" in it.text) == (step == "replace")


# --- Refusals, and notes ---

RETAINED, UPDATING = "    DeletionPolicy: Retain", "    UpdateReplacePolicy"
MARK = "    Metadata: {UsagePlanKeyMigration: "
BLOCK = "    Metadata:\n      UsagePlanKeyMigration: retain\n    Condition: C"
SAM_PLAN = "{Auth: {UsagePlan: {CreateUsagePlan: PER_API}}}"
#: What `retain` refuses, and its words. What a later step would refuse, it refuses too.
RETAIN_REFUSES = {
    # no template
    "no template: it has no Resources": "",
    "CloudFormation takes one document, so split the file": alice("---\n" + alice()),
    "line 3.*use spaces": alice("    Type → \tType"),
    "nested too deeply": alice("A: " + "[" * 5000 + "]" * 5000),
    r"Line 7: \*a stands within itself": alice("A: &a [*a]"),
    "Line 7: a key that is no text": alice("? [a]\n: b"),
    # one thing twice
    "Line 7: Alice stands in line 2 too": alice(alice()[11:]),
    # aliases and merge keys
    "Line 7: Bob has an alias here": alice("Alice: → Alice: &a", "  Bob: *a"),
    "Line 7: Bob has an": alice("Properties: → Properties: &p", f"  Bob: {{Type: {NATIVE}, Properties: *p}}"),
    "Line 7: << of Bob is not understood": alice("Alice: → Alice: &a", "  Bob: {<<: *a}"),
    "Line 1: X in line 1 makes": alice(f"Reso → X: &x {{B: {{Type: {NATIVE}}}}}\nReso", "  <<: *x"),
    "Line 7: this .A.* would change in another way": alice("Properties: → Properties: &p", "A: *p"),
    # escapes
    "Line 1: 'Alice' has to change": as_json(r"Alice → Al\u0069ce"),
    f"Line 1: '{NATIVE}' has to change": as_json(r"S::A → S\u003a:A"),
    r"Line 7: '\$.Alice.' has to change": alice(r'A: !Sub "$\x7bAlice}"'),
    # made by a loop, a macro, SAM
    "declares no .*; The transform M may make": "Transform: M\nResources: {A: {Type: A::B}}",
    "Line 8: Fn::ForEach::Keys in line 8 makes .* write it out first": alice(
        f"  Fn::ForEach::O: [A, [B], {{\n{loop(NATIVE)}}}]"
    ),
    "SAM makes one of Api": f"Resources:\n  Api: {{Type: AWS::Serverless::Api, Properties: {SAM_PLAN}}}",
    "Line 7: this .* Alice": alice("A: {Fn::ForEach::O: [N, [ice], {A: !Ref {Fn::Sub: 'Al${N}'}}]}"),
    "Line 7: this builds .* Alice:": alice("A: {Fn::ForEach::O: [N, !Ref P, {A: !GetAtt ['${N}', Id]}]}"),
    "Line 7: this builds .* Alice": alice("  T: {Type: A::B, DependsOn: !Select [0, !Ref P]}"),
    "Line 7: Alice is a loop's": alice("  Fn::ForEach::O: [Alice, [b], {'${Alice}': {Type: A::B}}]"),
    # a resource that is not understood
    "Line 5: Kez of Alice is no property": alice("KeyId → Kez"),
    "Line 2: Alice has no KeyId": alice("      KeyId: a1b2\n → "),
    "Line 3: Type of Alice is no literal": alice(f"{NATIVE} → !Ref T"),
    "Line 2: 'My-Alice' is no logical id": alice("Alice → My-Alice"),
    "Line 7: UpdateReplacePolicy of Alice is no literal": alice("    UpdateReplacePolicy: !Ref Policy"),
    "Line 7: Metadata of Alice is empty": alice("    Metadata: {}"),
    # what the command cannot do
    "Nothing is written.* from line 1 on in plain YAML": alice("\n → \r"),
}
GET, SHOW = "is not what get-template puts out: run aws cloudformation", "and add --deployed"
CHOOSE = "retain --ids=deployed.json"
ALIASED = f"  B: {{Type: {CUSTOM}, Properties: *p}}"
#: What each step refuses with its options, of a template and of the one that is deployed.
REFUSES: list[tuple[str, str, str, str]] = [
    # the step before is not in force
    ("Alice is deployed without DeletionPolicy", "replace", ALICE, shown(ALICE)),
    (f"Alice is not deployed as {NATIVE}", "replace", ALICE, shown(alice(RETAINED, "Alice → Bob"))),
    ("Alice is deployed with another", "replace", ALICE, shown(alice(RETAINED, "a1b2 → z9y8"))),
    ("AliceInPlan is not deployed with OnExisting", "take", TAKEN, shown(taken(": Take → : Fail"))),
    ("AliceInPlan is not deployed with OnExisting", "take", TAKEN, shown(taken("a1b2 → z9y8"))),
    ("AliceInPlan is not deployed", "take", TAKEN, shown(taken("AliceInPlan → Bob"))),
    # nobody shows that it is
    (f"replace needs .* run {re.escape(migrate.GET_TEMPLATE)}, {SHOW}", "replace", ALICE, ""),
    (f"take needs .* run .* --template-stage Original > deployed.json, {SHOW}", "take", ALICE, ""),
    *((GET, "replace", ALICE, odd) for odd in (ALICE, "[]", "{", '{"Stacks": []}')),
    ("The deployed template in .* cannot be read", "replace", ALICE, shown("a: [")),
    # a template that the step does not understand
    (f"No {CUSTOM} in the template says OnExisting: Take", "take", ALICE, shown(ALICE)),
    ("Line 11: << of AliceInPlan is not understood", "take", taken("    <<: {}"), shown(TAKEN)),
    ("Line 11: B has an alias", "take", taken("ties: → ties: &p", ALIASED), shown(TAKEN)),
    ("Line 2: .* merged", "take", taken("      OnExisting →       <<:\n        OnExisting"), shown(TAKEN)),
    ("Line 8: .* is not what", "replace", alice(RETAINED, f"{MARK}mine}}"), shown(alice(RETAINED))),
    ("Line 8: the comment", "replace", alice(RETAINED, f"{MARK}retain}} # a"), shown(alice(RETAINED))),
    # an option that cannot be
    ("declares no parameter Nowhere", "retain --parameter=Nowhere", ALICE, ""),
    ("is no part of a logical id", "replace --suffix=_In", ALICE, shown(alice(RETAINED))),
    ("nowhere.yaml cannot be read as a text", "retain --ids=nowhere.yaml", ALICE, ""),
    # the ids that the user has chosen, in the file of the deployed template
    ("has no logical ids", CHOOSE, ALICE, "["),
    (f"declares no {NATIVE} Bob", CHOOSE, ALICE, "Bob: BobInPlan"),
    ("Alice for Alice is no new logical id", CHOOSE, ALICE, "Alice: Alice"),
    ("A-B for Alice is no new logical id", CHOOSE, ALICE, "Alice: A-B"),
    ("Line 1: .* has no logical id here", CHOOSE, ALICE, "Alice: [A]"),
    ("Line 2: .* one for the second time", CHOOSE, ALICE, "Alice: A\nAlice: B"),
    ("--ids is for retain and replace", "take --ids", TAKEN, shown(TAKEN)),
]
REFUSES += [(said, "retain", text, "") for said, text in RETAIN_REFUSES.items()]


@pytest.mark.parametrize(("said", "command", "text", "deployed"), REFUSES)
def test_a_step_refuses(it: Migration, said: str, command: str, text: str, deployed: str) -> None:
    assert re.search(said, it.begin(text, deployed).refusal(command))


def test_a_file_that_cannot_be_read_or_written(it: Migration, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    it.template.write_text(alice(), "utf-16")
    for path in (it.template, it.template / "nowhere"):
        assert migrate.main(["retain", str(path)]) == 1
        assert f"{path} cannot be read as a text in UTF-8" in it.told()
    monkeypatch.setattr(Path, "replace", full)
    assert "No space left on device" in it.begin(ALICE).refusal("retain")


KEY_TYPE = alice("      KeyType: API_KEY")
FAULTS: list[tuple[str, str, Callable[..., str]]] = [
    (KEY_TYPE, "_scalar", lambda value: "wrong"),
    (KEY_TYPE, "_scalar", lambda value: f"{value}\n   - broken"),
    (KEY_TYPE, "Template._edited", lambda it: it.text),
    (KEY_TYPE, "Template._edited", lambda it: it.text.replace("API_KEY", "api_key")),
    (as_json(), "Template._written", lambda it, _, name, value: f"{name}: {json.dumps(value)}"),  # no JSON
]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("text", "name", "fault"), FAULTS)
def test_a_fault_of_the_command_itself_writes_nothing(
    it: Migration, monkeypatch: pytest.MonkeyPatch, text: str, name: str, fault: Callable[..., str], step: str
) -> None:
    """It compares what it would write with what it has read, so a wrong or a missing change shows."""
    it.begin(text)
    for before in STEPS[: STEPS.index(step)]:
        it.step(before)
    monkeypatch.setattr(f"tools.migrate.{name}", fault)
    assert re.search("[nN]othing is written", it.refusal(step))


BY_FUNCTION = f"  Bob: {{Type: {CUSTOM}, Properties: {{OnExisting: !Ref O}}}}"
#: What a step tells of a template that is deployed as it is.
NOTES = [
    ("1 changed, 0 left", "retain", alice("Globals: {Api: {Auth: {UsagePlan: {CreateUsagePlan: NONE}}}}")),
    (r"0 changed, 1 left \(1 retained before\)", "retain", alice(RETAINED)),
    (r"1 left \(1 made by SAM of Globals in line 7\)", "retain", alice(f"Globals: {{Api: {SAM_PLAN}}}")),
    ("Fn::ForEach::T in line 10 is not followed", "retain", alice("  Fn::ForEach::T: [A, [B], {}]")),
    ("Fn::Transform in line 10 is not", "retain", alice("A: !Transform {Name: AWS::Include}")),
    ("The transform AWS::Include may", "retain", alice("Transform: [A, {Name: AWS::Include}]")),
    ("N is a nested stack", "retain", alice("  N: {Type: AWS::CloudFormation::Stack}")),
    (f"A text in line 10 has {NATIVE}", "retain", alice(f"A: 'a {NATIVE}'")),
    (r"replace\.\n1 changed, 0 left", "replace", alice(f"{MARK}retain}}", RETAINED, f"{UPDATING}: Retain")),
    ("^1 changed, 0 left", "replace", alice(RETAINED, BLOCK)),
    ("your DeletionPolicy stays on AliceInPlan: its key stays", "replace", alice(RETAINED)),
    ("its key stays in the old plan", "replace", alice(RETAINED, f"{UPDATING}: Retain")),
    ("Alice in line 11 is left: it is no reference", "replace", alice(RETAINED, "A: {Id: Alice}")),
    (r"Keys in line 11 makes .*\n1 changed, 1 left \(1 in a loop\)", "take", taken(loop(CUSTOM))),
    (r"2 left \(2 without Take\)", "take", taken(*(f"  {it}: {{Type: {CUSTOM}}}" for it in "BC"))),
    (r"line 8 is a .*\n0 .* \(2 with a function\)", "take", taken(": taken → : !Ref T", BY_FUNCTION)),
]


#: The same of another deployed one.
DIFFERENT = [
    ("Bob is deployed and not here", "replace", ALICE, alice(RETAINED, f"  Bob: {{Type: {NATIVE}}}")),
    (f"Alice is still deployed as {NATIVE}", "take", TAKEN, taken(f"  Alice: {{Type: {NATIVE}}}")),
]


@pytest.mark.parametrize(
    ("note", "step", "text", "deployed"), [*DIFFERENT, *((*row, row[-1]) for row in NOTES)]
)
def test_a_note_tells_what_was_changed_and_left(
    it: Migration, note: str, step: str, text: str, deployed: str
) -> None:
    assert re.search(note, it.begin(text, shown(deployed)).step(step), re.MULTILINE)


# --- CloudFormation's limits ---

#: Each limit, at a value that the template exceeds, with what the user is told.
LIMITS = [
    ("MOST_RESOURCES", 1, 0, "The template has 2 resources, and CloudFormation takes 1"),
    ("LARGEST_BODY", 250, 0, "Warning: above 250 bytes a template has to come from S3"),
    ("LARGEST_IN_S3", 250, 1, "bytes, and CloudFormation takes 1 MB: split the stack"),
    ("MOST_DYNAMIC_REFERENCES", 1, 1, "3 dynamic references, and CloudFormation takes 1: declare a param"),
]


@pytest.mark.parametrize(("limit", "value", "status", "told"), LIMITS)
def test_retain_tells_of_each_limit(
    it: Migration, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, status: int, told: str
) -> None:
    command = "retain --ssm /arn" if "DYNAMIC" in limit else "retain"
    it.begin(alice(alice("Alice → Bob").removeprefix("Resources:\n"), "A: '{{resolve:ssm:/a}}'"))
    assert told not in it.step(command)
    monkeypatch.setattr(migrate, limit, value)
    assert it.run(command) == status
    assert told in it.told()


def test_retain_tells_the_size_of_each_later_template_and_the_manual_those_of_300_keys(it: Migration) -> None:
    """Each key adds the same, so ten show it."""
    keys = [alice(f"Alice → C{number}").removeprefix("Resources:\n") for number in range(101, 401)]
    it.begin("".join(["Resources:\n", *keys[:10]]))
    sizes, told = [len(it.text)], ""
    for step in STEPS:
        told += it.step(step)
        sizes.append(len(it.text))
    said = "Bytes: {:,} before, {:,} after retain, {:,} after replace, {:,} after take."
    assert said.format(*sizes) in told
    per_key = [(size - sizes[0]) // 10 for size in sizes[1:]]
    manual = " ".join((ROOT / "docs/migrate.md").read_text().split())
    assert [*map(int, re.findall(r"(\d+)(?: bytes)? after `(?:retain|replace|take)`", manual))] == per_key
    before = len("".join(["Resources:\n", *keys, "\n"]))
    assert f"{before:,} → {before + 300 * max(per_key):,} bytes" in manual


# --- Written out ---


def test_what_sam_makes_can_be_written_out_and_then_migrated(
    it: Migration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/migrate.md, Made by a loop or by SAM: the deploy of what was written out changes nothing."""

    def translated(auth: dict[str, Any], **more: Any) -> tuple[str, Any]:
        properties = {"StageName": "prod", "DefinitionBody": {"swagger": "2.0", "paths": {}}, "Auth": auth}
        resources = {"Api": {"Type": "AWS::Serverless::Api", "Properties": properties}, **more}
        text = json.dumps({"Transform": "AWS::Serverless-2016-10-31", "Resources": resources}, indent=2)
        policies = type("Policies", (), {"load": lambda self: {}})()
        return text, transform(json.loads(text), {"AWS::Region": "eu-central-1"}, policies)["Resources"]

    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    auth = {"ApiKeyRequired": True}
    _, before = translated({**auth, "UsagePlan": {"CreateUsagePlan": "PER_API"}})
    made = {name: each for name, each in before.items() if re.search("ApiKey|UsagePlan", each["Type"])}
    assert len(made) == 3
    text, after = translated(auth, **made)
    assert after == before
    assert json.loads(it.begin(text).steps())["Resources"]["ApiApiKeyInPlan"]["Type"] == CUSTOM
