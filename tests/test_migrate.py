"""tools/migrate.py leads from the native type in three deploys. It changes what it has to, or refuses.

test_examples.py plays the three deploys.
"""

import json
import re
from collections.abc import Callable
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
RETAINED = "    DeletionPolicy: Retain"
MARK = "    Metadata: {UsagePlanKeyMigration: "
MARKED = f"{MARK}retain}}"
BOB = f"  Bob: {{Type: {CUSTOM}, Properties: {{OnExisting: !Ref O}}}}"
BY_FUNCTION = (f"Resources: → Resources:\n{BOB}", BOB.replace("Bob", "Carol"))
BLOCK = "    Metadata:\n      UsagePlanKeyMigration: retain\n    Condition: C"
SAM_PLAN = "{Auth: {UsagePlan: {CreateUsagePlan: PER_API}}}"
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

    def begin(self, text: str, deployed: str = "") -> "Migration":
        """Begin with a template, and with what the command finds in the file of the deployed one."""
        self.template.write_bytes(text.encode())
        self.deployed.write_text(deployed) if deployed else self.deployed.unlink(missing_ok=True)
        return self

    @property
    def text(self) -> str:
        """The template as it is now, byte by byte."""
        return self.template.read_bytes().decode()

    def run(self, step: str, *more: str) -> int:
        """Do a step in place."""
        proof = ["--deployed", str(self.deployed)] if self.deployed.exists() else []
        return migrate.main([step, str(self.template), "--in-place", *proof, *more])

    def told(self) -> str:
        """Read what the command has told the user since the last time."""
        return self._capsys.readouterr().err if self._capsys else ""

    def step(self, step: str, *more: str) -> str:
        """Do a step, and deploy its template; return what it has told."""
        assert self.run(step, *more) == 0, self.told()
        self.deployed.write_text(shown(self.text))
        return self.told()

    def steps(self, *token: str) -> str:
        """Do all three; return the template."""
        for step in STEPS:
            self.step(step, *(token if step == "replace" else ()))
        return self.text

    def refusal(self, step: str, *more: str) -> str:
        """Do a step that ends with 1, one sentence and the file as it was; return the sentence."""
        before, _ = self.text, self.told()
        assert self.run(step, *more) == 1
        assert self.text == before
        assert list(self.template.parent.glob(".*")) == []
        told = self.told()
        assert re.fullmatch("migrate.py: .+\n", told)
        return told


def shown(body: Any) -> str:
    """Write what `get-template` puts out."""
    return json.dumps({"TemplateBody": body})


@pytest.fixture
def it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Migration:
    return Migration(tmp_path, capsys)


def changed(text: str, *changes: str) -> str:
    """Make changes of a template: `old → new`, or text for the end."""
    for change in changes:
        old, arrow, new = change.partition(" → ")
        assert not arrow or old in text
        text = text.replace(old, new) if arrow else text + change + "\n"
    return text


def alice(*changes: str) -> str:
    """The small template with Alice."""
    return changed(ALICE, *changes)


def taken(*changes: str) -> str:
    """The same after all three steps."""
    return changed(TAKEN, *changes)


def as_json(*changes: str) -> str:
    """The same in JSON."""
    return changed(json.dumps(yaml_parse(ALICE)), *changes)


def customers(count: int) -> str:
    """The same with so many customers."""
    return alice(*(alice(f"Alice → C{number}")[11:-1] for number in range(101, 100 + count)))


def loop(type_: str) -> str:
    """A loop that makes resources of this type."""
    ids = "KeyId: a1b2, UsagePlanId: f7r3, OnExisting: Take"
    return f"  Fn::ForEach::Keys: [Name, [A], {{A: {{Type: {type_}, Properties: {{{ids}}}}}}}]"


# --- What a step changes ---


@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["unix", "windows"])
def test_comments_order_quotes_spaces_line_ends_and_bobs_own_policy_stay(it: Migration, ends: str) -> None:
    it.begin(BEFORE.replace("\n", ends)).step("retain")
    names = ("DeletionPolicy", "UpdateReplacePolicy", "Metadata")
    resources = yaml_parse(it.text)["Resources"]
    retained = {name: [resources[name][each] for each in names] for name in ("Alice", "Bob", "Carol")}
    bobs = {"aws:cdk:path": "Stack/Bob", "UsagePlanKeyMigration": "retain DeletionPolicy=Delete"}
    assert retained["Bob"] == ["Retain", "Retain", bobs]
    assert retained["Alice"] == ["Retain", "Retain", {"UsagePlanKeyMigration": "retain"}] == retained["Carol"]
    added = [
        "DeletionPolicy: Retain",
        "UpdateReplacePolicy: Retain",
        "Metadata: {UsagePlanKeyMigration: retain}",
    ]
    assert f"{ends}        ".join(["UsagePlanKey  # the first customer", *added]) in it.text
    it.step("replace")
    it.step("take")
    assert it.text.split(ends, 1)[1] == AFTER.replace("\n", ends).split(ends, 1)[1]


@pytest.mark.parametrize("form", [{"indent": 2}, {"indent": "\t"}, {"separators": (",", ":")}, {}], ids=str)
@pytest.mark.parametrize("turn", [list, reversed], ids=["type first", "type last"])
def test_json_comes_to_the_same(it: Migration, form: dict[str, Any], turn: Callable[..., Any]) -> None:
    data = yaml_parse(BEFORE)
    data["Resources"] = {name: dict(turn([*each.items()])) for name, each in data["Resources"].items()}
    text = it.begin(json.dumps(data, **form)).steps("--arn", "arn")
    expected = yaml_parse(AFTER.replace("!ImportValue usage-plan-key-FunctionArn", "arn"))
    assert json.loads(text) == expected
    assert form.get("separators") or text == json.dumps(json.loads(text), **form)


#: What stays as the owner wrote it, and references, which follow: `@` is the logical id, the old or the new.
OWN = [
    ["    Properties: →     UpdateReplacePolicy: Retain\n    Properties:"],
    ["    Properties: →     DeletionPolicy: Retain\n    Properties:"],
    ["    Properties: →     DeletionPolicy: RetainExceptOnCreate # mine\n    Properties:"],
    ["Properties: → DeletionPolicy: Delete  # a\n    UpdateReplacePolicy: Retain # b\n    Properties:"],
    ["    Properties: →     # mine\n    Properties:"],
    ["    Properties: →     Metadata:  # a\n      # b\n      a: b # c\n    Properties:"],
    ["    Properties: →     Condition: 'Yes'\n    Properties:"],
    ["A: &a {b: c}\nB: *a\nC: {<<: *a, d: e}"],
    ["a1b2 → &k a1b2", "A: *k"],
    ["a1b2 → !!str 123"],
    ["Resources → \ufeff--- # start\nResources", "# end", "..."],
    ["@: → &x '@': &y", 'A: !Ref "@"'],
]
REFERENCES = [
    *("!Ref @", "{Ref: @}", "!GetAtt @.Id", "!GetAtt [@, Id]", "{Fn::GetAtt: [@, Id]}", "{Fn::GetAtt: @.Id}"),
    *("!Sub ${@}", "!Sub '${@.Id}'", "!Sub ['${@}', {}]", "!Sub ['${@.Id}', {B: !Ref @}]"),
    *("{Fn::Sub: 'a ${@}${@.Id} b'}", "!Base64 {Fn::Sub: '${@}'}", "{A: &a {Fn::Sub: '${@}'}, B: *a}"),
    *("!If [A, !Ref @, b]", "{Type: A::B, DependsOn: [@]}"),
    # no references to Alice
    *("!Sub '${!Alice}'", "!Sub ['${Alice}', {Alice: local}]", "!Sub ['${Alice.Id}', {Alice.Id: local}]"),
    *("!Sub '${Alices} ${TheAlice} $Alice {Alice}'", "!Ref Alices", "!GetAtt Alices.Alice", "Alice"),
    *("'${Alice}'", "{Ref: Alice, Other: this is no function}", "!FindInMap [Alice, Alice, Alice]"),
    *("{DependsOn: [{ContainerName: Alice}]}", "{DependsOn: [Alice]}", "!Ref {Fn::Sub: 'Ali${B}'}"),
    "!GetAtt ['Ali${B}', Id]",  # Alic: B is c
]
OWN += [[f"Outputs:\n  Fn::ForEach::A:\n  - B\n  - [c]\n  - It: {each}"] for each in REFERENCES]


@pytest.mark.parametrize("changes", OWN, ids=" ".join)
def test_what_the_owner_wrote_stays_and_references_follow(it: Migration, changes: list[str]) -> None:
    before, after = ([each.replace("@", name) for each in changes] for name in ("Alice", "AliceInPlan"))
    it.begin(alice(*before)).step("retain")
    retained = it.text
    it.step("retain")
    assert it.text == retained, "a second time nothing is written twice"
    assert it.steps() == taken(*after)


@pytest.mark.parametrize("name", ["Ref", "Sub", "GetAtt", "Type", "Custom"])
def test_a_resource_may_have_the_name_of_a_function(it: Migration, name: str) -> None:
    before, after = "A: !Ref Alice\nB: !GetAtt Alice.Id", "A: !Ref AliceInPlan\nB: !GetAtt AliceInPlan.Id"
    text = it.begin(alice(before).replace("Alice", name)).steps()
    assert text == taken(after).replace("Alice", name)


def test_comments_in_flow_style_stay(it: Migration) -> None:
    text = (
        "Resources: {\n  Alice: { # a\n    Type: AWS::ApiGateway::UsagePlanKey, # b\n"
        "    Properties: {KeyId: a1b2, # c\n      UsagePlanId: f7r3} } }\n"
    )
    it.begin(text).step("retain")
    it.step("replace", "--arn", "arn")
    properties = "{ServiceToken: arn, ServiceTimeout: 120, OnExisting: Take, KeyId"
    text = text.replace("Alice", "AliceInPlan").replace(NATIVE, CUSTOM)
    assert it.text == text.replace("{KeyId", properties)


def test_escapes_that_say_no_name_stay(it: Migration) -> None:
    text = r'{"Description": "\ud83d\udd11 \/ \u00e9", "A": {"Fn::Sub": "\n${Alice}"}, '
    it.begin(text + as_json()[1:])
    for step in STEPS:
        assert it.run(step) == 0
        it.deployed.write_text(shown(json.loads(it.text)))
    assert it.text.startswith(text.replace("${Alice}", "${AliceInPlan}"))


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


TOKENS = {
    "": "!ImportValue usage-plan-key-FunctionArn",
    "--import other-FunctionArn": "!ImportValue other-FunctionArn",
    "--import stack:Arn": '!ImportValue "stack:Arn"',
    "--parameter FunctionArn": "!Ref FunctionArn",
    "--ssm /usage-plan-key/arn": '"{{resolve:ssm:/usage-plan-key/arn}}"',
    "--arn arn:aws:lambda:eu-central-1:1:function:f": '"arn:aws:lambda:eu-central-1:1:function:f"',
}


@pytest.mark.parametrize(("option", "token"), TOKENS.items())
def test_the_service_token(it: Migration, option: str, token: str) -> None:
    text = it.begin(alice("Parameters: {FunctionArn: {Type: String}}")).steps(*option.split())
    assert f"\n      ServiceToken: {token}\n" in text


TRIGGERS = [("1", "1", "taken"), ("2", "1", "2"), ("taken", "taken", "taken again")]


@pytest.mark.parametrize(("here", "there", "new"), TRIGGERS)
def test_a_trigger_that_is_there_changes_once(it: Migration, here: str, there: str, new: str) -> None:
    it.begin(taken(f"taken → '{here}'"), shown(taken(f"taken → '{there}'"))).step("take")
    assert yaml_parse(it.text)["Resources"]["AliceInPlan"]["Properties"]["VerifyTrigger"] == new


NAMES = [
    ("Alice", "!Ref AliceKey", "!Ref FreePlan", "AliceKeyInPlan", ""),
    ("Alice", "!GetAtt AliceKey.APIKeyId", "!Ref FreePlan", "AliceKeyInPlan", ""),
    ("Alice", "!ImportValue customers-alice", "!Ref FreePlan", "CustomersAliceInPlan", ""),
    ("Alice", "a1b2", "!Ref FreePlan", "AliceInPlan", ""),
    ("Alice", "!If [A, b, c]", "!Ref FreePlan", "AliceInPlan", ""),
    ("FreeAlice", "!Ref AKey", "!Ref FreePlan", "AKeyInPlan", "FreeAlice becomes AKeyInPlan: the old id"),
    ("AliceFREE", "a1b2", "!Ref FreeUsagePlan", "Keya1b2InPlan", "AliceFREE becomes Keya1b2InPlan"),
    ("FreeAlice", "a1b2", "!ImportValue free-plan-id", "Keya1b2InPlan", "the old id names its plan"),
    ("AliceFree", "!Ref AliceKey", "!Ref FreePlan1A2B3C4D", "AliceKeyInPlan", "names its plan"),
    ("Freeman", "!Ref AliceKey", "!Ref FreePlan", "AliceKeyInPlan", ""),
    ("InAnyPlan", "!Ref AliceKey", "!Ref Plan", "AliceKeyInPlan", ""),
    ("Alice", "!Ref FreeKey", "!Ref FreePlan", "FreeKeyInPlan", "FreeKeyInPlan (FreePlan) names its plan"),
    ("Alice", "!Ref Bob", "!Ref FreePlan", "BobInPlan2", ""),
    ("A" * 255, "a1b2", "f7r3", "A" * 249 + "InPlan", ""),
]


@pytest.mark.parametrize(("old", "key", "plan", "new", "note"), NAMES)
def test_the_logical_id_is_the_keys_and_not_the_plans(
    it: Migration, old: str, key: str, plan: str, new: str, note: str
) -> None:
    """So it stays when the customer changes plans; with the plan's name a move would be a Create."""
    ids = (f"a1b2 → {key}", f"f7r3 → {plan}", "Parameters: {BobInPlan: {Type: String}}")
    it.begin(alice(f"Alice → {old}", *ids)).step("retain")
    told = it.step("replace")
    assert new in yaml_parse(it.text)["Resources"]
    assert note in told if note else "names its plan" not in told


def test_ids_are_shown_and_chosen(it: Migration, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ids = tmp_path / "ids.yaml"
    ids.write_text("Alice: AliceHere\n")
    it.begin(alice("a1b2 → !Ref Key"))
    for step in ("retain", "replace"):
        before = it.text
        assert it.run(step, "--ids") == 0
        assert (capsys.readouterr().out, it.text) == ("Alice: KeyInPlan\n", before)
        it.step(step, f"--ids={ids}")
        assert ("\n  AliceHere:" in it.text) == (step == "replace")


def test_the_suffix(it: Migration) -> None:
    assert "\n  AliceHere:" in it.begin(ALICE).steps("--suffix", "Here")


# --- Refusals ---

#: What `retain` refuses, and its words. What a later step would refuse, it refuses too.
REFUSED = {
    # no template
    "is no YAML or JSON that can be read": "a: [",
    "is no template: it has no Resources.": "[]",
    "no template: it has no Resources": "",
    "CloudFormation takes one document, so split the file": alice("---\n" + alice()),
    "line 3.*use spaces": alice("    Type → \tType"),
    "nested too deeply": alice("A: " + "[" * 500 + "]" * 500),
    r"Line 7: \*a stands within itself": alice("A: &a [*a]"),
    "Line 7: a key that is no text": alice("? [a]\n: b"),
    # one thing twice
    "Line 7: Alice stands in line 2 too": alice(alice()[11:]),
    "Line 7: Resources stands in line 1 too": alice(alice()),
    "Line 7: KeyId stands in line 5 too": alice("      KeyId: c3d4"),
    "Line 1: KeyId stands in line 1 too": as_json('"KeyId" → "KeyId": 1, "KeyId"'),
    # aliases and merge keys
    "Line 4: Alice has an alias": alice(f"{NATIVE} → *t", f"Resources → T: &t {NATIVE}\nResources"),
    "Line 7: Bob has an alias here": alice("Alice: → Alice: &a", "  Bob: *a"),
    "Line 7: Bob has an": alice("Properties: → Properties: &p", f"  Bob: {{Type: {NATIVE}, Properties: *p}}"),
    "Line 7: << of Bob is not understood": alice("Alice: → Alice: &a", "  Bob: {<<: *a}"),
    "Line 7: << of Bob is not": alice("Alice: → Alice: &a", "  Bob: {<<: [*a]}"),
    "Line 1: X in line 1 makes": alice(f"Reso → X: &x {{B: {{Type: {NATIVE}}}}}\nReso", "  <<: *x"),
    "Line 7: << of Alice is no property": alice("      <<: {KeyType: API_KEY}"),
    "Line 7: this .A.* would change in another way": alice("Properties: → Properties: &p", "A: *p"),
    "Line 8: 'Alice' has to": alice("    DependsOn: &d Alice", "  T: {Type: A::B, DependsOn: *d}"),
    "Line 8: this .B. would change in another way": alice("A: {Ref: &n Alice}", "B: *n"),
    # escapes
    "Line 1: 'Alice' has to change": as_json(r"Alice → Al\u0069ce"),
    f"Line 1: '{NATIVE}' has to change": as_json(r"S::A → S\u003a:A"),
    "Line 1: 'Alice' has to": as_json(r'{"Res → {"A": {"Ref": "Al\u0069ce"}, "Res'),
    "Line 1: this .A.Fn::Sub": as_json(r'{"Res → {"A": {"Fn::Sub": "${Alice}\u0024{Alice}"}, "Res'),
    r"Line 7: '\$.Alice.' has to change": alice(r'A: !Sub "$\x7bAlice}"'),
    # made by a loop, a macro, SAM
    "declares no AWS::ApiGateway::UsagePlanKey": "Resources: {A: {Type: AWS::SNS::Topic}}",
    "declares no .*; The transform M may make": "Transform: M\nResources: {A: {Type: A::B}}",
    "Line 2: Fn::ForEach::Keys in line 2 makes .* write it out first": "Resources:\n" + loop(NATIVE),
    "Line 7: Fn::ForEach::Keys in line 7 makes": alice(loop(NATIVE)),
    "Line 8: Fn::ForEach::Keys": alice(f"  Fn::ForEach::O: [A, [B], {{\n{loop(NATIVE)}}}]"),
    "Line 7: Fn::Transform": alice(f"  Fn::Transform: {{Name: M, P: {{A: {{Type: {NATIVE}}}}}}}"),
    "SAM makes one of Api": f"Resources:\n  Api: {{Type: AWS::Serverless::Api, Properties: {SAM_PLAN}}}",
    r"Globals \(.* in line 1\): write it": f"Globals: {{Api: {SAM_PLAN}}}\nResources: {{}}",
    "Line 7: this .* Alice": alice("A: {Fn::ForEach::O: [N, [ice], {A: !Ref {Fn::Sub: 'Al${N}'}}]}"),
    "Line 7: this builds .* Alice:": alice("A: {Fn::ForEach::O: [N, !Ref P, {A: !GetAtt ['${N}', Id]}]}"),
    "Line 7: this builds .* Alice: w": alice("A: {Fn::ForEach::O: [N, [ice], {A: !GetAtt 'Al${N}.Id'}]}"),
    "Line 7: this builds .* Alice": alice("  T: {Type: A::B, DependsOn: !Select [0, !Ref P]}"),
    "Line 7: Alice is a loop's": alice("  Fn::ForEach::O: [Alice, [b], {'${Alice}': {Type: A::B}}]"),
    # a resource that is not understood
    "Line 7: Fn::Transform of Alice is not": alice("    Fn::Transform: {Name: AWS::Include}"),
    "Line 7: ServiceToken of Alice is no property": alice("      ServiceToken: x"),
    "Line 5: Kez of Alice is no property": alice("KeyId → Kez"),
    "Line 2: Alice has no KeyId": alice("      KeyId: a1b2\n → "),
    "Line 3: Type of Alice is no literal": alice(f"{NATIVE} → !Ref T"),
    "Line 2: 'My-Alice' is no logical id": alice("Alice → My-Alice"),
    "Line 7: DeletionPolicy of Alice is no literal": alice("    DeletionPolicy: !Ref Policy"),
    "Line 7: UpdateReplacePolicy of Alice is no literal": alice("    UpdateReplacePolicy: !Ref Policy"),
    "Line 7: Metadata of Alice is empty": alice("    Metadata: {}"),
    "Line 4: DeletionPolicy of Alice is no": alice("Properties → DeletionPolicy:\n    Properties"),
    # what the command cannot do
    "Nothing is written.* from line 1 on in plain YAML": alice("\n → \r"),
    "Nothing is written.* in plain": alice("Alice:\n    → Alice\n  :", "  A →   ? A"),
}


@pytest.mark.parametrize(("reason", "text"), REFUSED.items(), ids=REFUSED)
def test_retain_refuses(it: Migration, reason: str, text: str) -> None:
    assert re.search(reason, it.begin(text).refusal("retain"))


NO_OUTPUT, SHOW = "is not what get-template puts out", "add --deployed"
#: What a later step refuses of a template and of the one that is deployed.
REFUSED_LATER: dict[str, tuple[str, str, str]] = {
    # the step before is not in force
    "Alice is deployed without DeletionPolicy": ("replace", ALICE, shown(ALICE)),
    "Alice is deployed without Deletion": ("replace", ALICE, shown(alice(f"{RETAINED[:-6]}!Ref P"))),
    f"Alice is not deployed as {NATIVE}": ("replace", ALICE, shown(alice(RETAINED, "Alice → Bob"))),
    "Alice is deployed with another": ("replace", ALICE, shown(alice(RETAINED, "a1b2 → z9y8"))),
    "AliceInPlan is not deployed with OnExisting: Take": ("take", TAKEN, shown(taken(": Take → : Fail"))),
    "AliceInPlan is not deployed with OnExisting": ("take", TAKEN, shown(taken("a1b2 → z9y8"))),
    "AliceInPlan is not deployed": ("take", TAKEN, shown(taken("AliceInPlan → Bob"))),
    # nobody shows that it is
    f"replace needs .* run {re.escape(migrate.GET_TEMPLATE)}, and {SHOW}": ("replace", ALICE, ""),
    f"take needs .* run .* --template-stage Original > deployed.json, and {SHOW}": ("take", ALICE, ""),
    f"{NO_OUTPUT}: run aws cloudformation": ("replace", ALICE, ALICE),
    f"{NO_OUTPUT}: run aws": ("replace", ALICE, "[]"),
    f"{NO_OUTPUT}: run": ("replace", ALICE, "{"),
    f"{NO_OUTPUT}:": ("replace", ALICE, '{"Stacks": []}'),
    "The deployed template in .* cannot be read": ("replace", ALICE, shown("a: [")),
    # a template that the step does not understand
    f"No {CUSTOM} in the template says OnExisting: Take": ("take", ALICE, shown(ALICE)),
    "Line 11: << of AliceInPlan is not understood": ("take", taken("    <<: {}"), shown(TAKEN)),
    "Line 11: B has": (
        "take",
        taken("ties: → ties: &p", f"  B: {{Type: {CUSTOM}, Properties: *p}}"),
        shown(TAKEN),
    ),
    "Line 2: .* merged": ("take", taken("      OnExisting →       <<:\n        OnExisting"), shown(TAKEN)),
    "Line 8: .* is not what retain": ("replace", alice(RETAINED, f"{MARK}mine}}"), shown(alice(RETAINED))),
    "Line 8: the comment": ("replace", alice(RETAINED, f"{MARKED} # mine"), shown(alice(RETAINED))),
    "--ids is for retain and replace": ("take --ids", TAKEN, shown(TAKEN)),
}


@pytest.mark.parametrize(("reason", "case"), REFUSED_LATER.items(), ids=REFUSED_LATER)
def test_a_later_step_refuses(it: Migration, reason: str, case: tuple[str, str, str]) -> None:
    command, text, deployed = case
    assert re.search(reason, it.begin(text, deployed).refusal(*command.split()))


OPTIONS = {
    "declares no parameter Nowhere": ("--parameter=Nowhere", ""),
    "is no part of a logical id": ("--suffix=_In", ""),
    "nowhere.yaml cannot be read as a text": ("--ids=nowhere.yaml", ""),
    "has no logical ids": ("--ids={}", ""),
    "declares no AWS::ApiGateway::UsagePlanKey Bob": ("--ids={}", "Bob: BobInPlan"),
    "Alice for Alice is no new logical id": ("--ids={}", "Alice: Alice"),
    "A-B for Alice is no new logical id": ("--ids={}", "Alice: A-B"),
    "Line 1: .* has no logical id here": ("--ids={}", "Alice: [A]"),
    "Line 2: .* one for the second time": ("--ids={}", "Alice: A\nAlice: B"),
}


@pytest.mark.parametrize(("reason", "case"), OPTIONS.items(), ids=OPTIONS)
def test_an_option_is_refused(it: Migration, tmp_path: Path, reason: str, case: tuple[str, str]) -> None:
    option, content = case
    (tmp_path / "ids.yaml").write_text(content)
    it.begin(ALICE)
    for step in ("retain", "replace"):
        assert re.search(reason, it.refusal(step, option.format(tmp_path / "ids.yaml")))
        it.step("retain")


FAULTS: list[tuple[str, Callable[..., str]]] = [
    ("_scalar", lambda value: "wrong"),
    ("_scalar", lambda value: f"{value}\n   - broken"),
    ("_edited", lambda it: it.text),
    ("_edited", lambda it: it.text.replace("API_KEY", "api_key")),
]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_a_fault_of_the_command_itself_writes_nothing(
    it: Migration, monkeypatch: pytest.MonkeyPatch, step: str, name: str, fault: Callable[..., str]
) -> None:
    """It compares what it would write with what it has read, so a wrong or a missing change shows."""
    it.begin(alice("      KeyType: API_KEY"))
    for before in STEPS[: STEPS.index(step)]:
        it.step(before)
    monkeypatch.setattr(migrate if name == "_scalar" else migrate.Template, name, fault)
    assert re.search("[nN]othing is written", it.refusal(step))


def test_json_never_becomes_yaml(it: Migration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        migrate.Template, "_written", lambda it, mapping, name, value: f"{name}: {json.dumps(value)}"
    )
    assert "would be no JSON any more" in it.begin(as_json()).refusal("retain")


def test_a_file_that_cannot_be_read(it: Migration) -> None:
    it.template.write_text(alice(), "utf-16")
    for path in (it.template, it.template / "nowhere"):
        assert migrate.main(["retain", str(path)]) == 1
        assert f"{path} cannot be read as a text in UTF-8" in it.told()


def test_a_file_that_cannot_be_written(it: Migration, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(Path, "replace", full)
    assert "No space left on device" in it.begin(ALICE).refusal("retain")


# --- Notes, and limits ---

NOTES = {
    "1 changed, 0 left.": ("retain", alice()),
    "0 changed, 1 left (1 retained before).": ("retain", alice(RETAINED)),
    "1 left (1 made by SAM of Globals in line 7).": ("retain", alice(f"Globals: {{Api: {SAM_PLAN}}}")),
    "1 changed, 0 left.\n": ("retain", alice("Globals: {Api: {Auth: {UsagePlan: {CreateUsagePlan: NONE}}}}")),
    "Fn::ForEach::T in line 10 is not followed": ("retain", alice("  Fn::ForEach::T: [A, [B], {}]")),
    "Fn::Transform in line 10 is not": ("retain", alice("A: {Fn::Transform: {Name: AWS::Include}}")),
    "Fn::Transform in line 10 is": ("retain", alice("A: !Transform {Name: AWS::Include}")),
    "The transform M may make resources": ("retain", alice("Transform: M")),
    "The transform A may": ("retain", alice("Transform: [A, {Name: AWS::Include}]")),
    "The transform AWS::Include may": ("retain", alice("Transform: [A, {Name: AWS::Include}]")),
    "N is a nested stack": ("retain", alice("  N: {Type: AWS::CloudFormation::Stack}")),
    "A text in line 10 has AWS::ApiGateway::UsagePlanKey": ("retain", alice(f"A: 'a {NATIVE}'")),
    "replace.\n1 changed, 0 left.": ("replace", alice(MARKED, RETAINED, "    UpdateReplacePolicy: Retain")),
    "\n1 changed, 0 left.\n": ("replace", alice(RETAINED, BLOCK)),
    "your DeletionPolicy stays on AliceInPlan: its key stays attached": ("replace", alice(RETAINED)),
    "DeletionPolicy stays on AliceInPlan": ("replace", alice(MARKED, f"{RETAINED}ExceptOnCreate")),
    "its key stays in the old plan": ("replace", alice(RETAINED, "    UpdateReplacePolicy: Retain")),
    "Alice in line 11 is left: it is no reference": ("replace", alice(RETAINED, "A: {Id: Alice}")),
    "1 changed, 0 left.\nDeploy": ("take", taken()),
    "1 changed, 1 left (1 in a loop).": ("take", taken(loop(CUSTOM))),
    "Fn::ForEach::Keys in line 11 makes Custom::UsagePlanKey": ("take", taken(loop(CUSTOM))),
    "1 changed, 2 left (2 without Take).": ("take", taken(*(f"  {it}: {{Type: {CUSTOM}}}" for it in "BC"))),
    "0 changed, 3 left (3 with a function).": ("take", taken(": taken → : !Ref T", *BY_FUNCTION)),
    "0 changed, 1 left (1 with a function).": ("take", taken(": taken → : !Ref T")),
    "VerifyTrigger of AliceInPlan in line 8 is a function": ("take", taken(": taken → : !Ref T")),
}


@pytest.mark.parametrize(("note", "case"), NOTES.items(), ids=NOTES)
def test_a_note_tells_what_was_changed_and_left(it: Migration, note: str, case: tuple[str, str]) -> None:
    step, text = case
    assert note in it.begin(text, shown(text)).step(step)


def test_a_deployed_resource_that_is_not_here(it: Migration) -> None:
    deployed = alice(RETAINED, f"  Bob: {{Type: {NATIVE}}}")
    assert "Bob is deployed and not here" in it.begin(ALICE, shown(deployed)).step("replace")


#: Each limit of CloudFormation's, at a value that the template exceeds, with what the user is told.
LIMITS = {
    "MOST_RESOURCES": (1, 0, "The template has 2 resources, and CloudFormation takes 1"),
    "LARGEST_BODY": (250, 0, "Warning: above 250 bytes a template has to come from S3"),
    "LARGEST_IN_S3": (250, 1, "bytes, and CloudFormation takes 1 MB: split the stack"),
    "MOST_DYNAMIC_REFERENCES": (
        1,
        1,
        "2 dynamic references, and CloudFormation takes 1: declare a parameter",
    ),
}


@pytest.mark.parametrize(("name", "case"), LIMITS.items(), ids=LIMITS)
def test_retain_tells_of_each_limit_and_so_does_the_manual(
    it: Migration, monkeypatch: pytest.MonkeyPatch, name: str, case: tuple[int, int, str]
) -> None:
    limit, status, told = case
    shown = f"{getattr(migrate, name):,}".replace("1,000,000", "1 MB")
    row = re.compile(rf"^\| .*template.*\| {shown}( bytes)? \|", re.MULTILINE)
    assert any(row.search(page.read_text()) for page in ROOT.glob("docs/*.md"))
    it.begin(customers(2))
    for value, expected in ((10_000, 0), (limit, status)):
        monkeypatch.setattr(migrate, name, value)
        assert it.run("retain", *(["--ssm", "/arn"] if "DYNAMIC" in name else [])) == expected
    assert told in it.told().rpartition("10,000")[2]


def test_retain_tells_the_size_of_each_later_template_and_the_manual_those_of_300_keys(it: Migration) -> None:
    it.begin(customers(300))
    sizes, told = [len(it.text)], ""
    for step in STEPS:
        told += it.step(step)
        sizes.append(len(it.text))
    assert (
        "Bytes: {:,} before, {:,} after retain, {:,} after replace, {:,} after take.".format(*sizes) in told
    )
    per_key = [(size - sizes[0]) // 300 for size in sizes[1:]]
    manual = " ".join((ROOT / "docs/migrate.md").read_text().split())
    assert [*map(int, re.findall(r"(\d+)(?: bytes)? after `(?:retain|replace|take)`", manual))] == per_key
    assert f"{sizes[0]:,} → {max(sizes):,} bytes" in manual


def test_what_sam_makes_can_be_written_out_and_then_migrated(
    it: Migration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/migrate.md, Made by a loop or by SAM: the deploy of what was written out changes nothing."""

    def translated(template: dict[str, Any]) -> Any:
        policies = type("Policies", (), {"load": lambda self: {}})()
        return transform(template, {"AWS::Region": "eu-central-1"}, policies)["Resources"]

    def sam(**auth: Any) -> dict[str, Any]:
        definition = {"swagger": "2.0", "paths": {}}
        api = {"StageName": "prod", "DefinitionBody": definition, "Auth": {"ApiKeyRequired": True, **auth}}
        resources = {"Api": {"Type": "AWS::Serverless::Api", "Properties": api}}
        return {"Transform": "AWS::Serverless-2016-10-31", "Resources": resources}

    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    before = translated(sam(UsagePlan={"CreateUsagePlan": "PER_API"}))
    kinds = tuple(f"AWS::ApiGateway::{kind}" for kind in ("ApiKey", "UsagePlan", "UsagePlanKey"))
    made = {name: each for name, each in before.items() if each["Type"] in kinds}
    assert len(made) == 3
    written = sam()
    written["Resources"] |= made
    it.begin(json.dumps(written, indent=2))
    assert translated(json.loads(it.text)) == before
    assert json.loads(it.steps())["Resources"]["ApiApiKeyInPlan"]["Type"] == CUSTOM
