"""tools/migrate.py leads from the native type in three deploys. It changes what it has to, or refuses."""

import difflib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

from emulators import ministack, proxy, rules
from emulators.ministack import Aws, Deployment, Template, packaged, running
from examples.demo import FUNCTION, PROVIDER
from tools import migrate

ROOT = Path(__file__).parents[1]
BEFORE = (ROOT / "tests/templates/native.yaml").read_text()
AFTER = (ROOT / "tests/templates/migrated.yaml").read_text()
STEPS = ("retain", "replace", "take")
NATIVE = "AWS::ApiGateway::UsagePlanKey"
CUSTOM = "Custom::UsagePlanKey"
RETAINED = "    DeletionPolicy: Retain"
MARKED = "    Metadata: {UsagePlanKeyMigration: retain}"
SAM_PLAN = "{Auth: {UsagePlan: {CreateUsagePlan: PER_API}}}"


class Migration:
    """A template on its way, each step deployed as CloudFormation would show it."""

    def __init__(self, folder: Path, text: str, name: str = "template.yaml") -> None:
        """The first template, as a file."""
        self.template, self.deployed = folder / name, folder / "deployed.json"
        self.write(text)

    @property
    def text(self) -> str:
        """The template as it is now, byte by byte."""
        return self.template.read_bytes().decode()

    def write(self, text: str) -> None:
        self.template.write_bytes(text.encode())

    def deploy(self, text: str | None = None) -> None:
        """Show this, or the present template, as deployed."""
        self.deployed.write_text(
            json.dumps({"TemplateBody": text or self.text, "StagesAvailable": ["Original"]})
        )

    def run(self, step: str, *more: str) -> int:
        """Do a step in place."""
        proof = ["--deployed", str(self.deployed)] if self.deployed.exists() else []
        return migrate.main([step, str(self.template), "--in-place", *proof, *more])

    def refused(self, capsys: pytest.CaptureFixture[str], step: str, *more: str) -> str:
        """Do a step that ends with 1, one sentence and the file as it was; return the sentence."""
        before, _ = self.text, capsys.readouterr()
        assert self.run(step, *more) == 1
        told = capsys.readouterr()
        assert (self.text, told.out) == (before, "")
        assert told.err.startswith("migrate.py: ")
        assert told.err.count("\n") == 1
        assert list(self.template.parent.glob(".*")) == []
        return told.err

    def changed(self, step: str, *more: str) -> list[str]:
        """Do a step, deploy its template, and list the lines that it has changed."""
        before = self.text
        assert self.run(step, *more) == 0
        self.deploy()
        lines = difflib.unified_diff(before.splitlines(), self.text.splitlines(), n=0, lineterm="")
        return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


@pytest.fixture
def migration(tmp_path: Path) -> Callable[..., Migration]:
    """Begin with a template."""
    return lambda text=BEFORE, name="template.yaml": Migration(tmp_path, text, name)


def alice(*changes: str) -> str:
    """A small template with Alice. A change is `old → new`, or text for the end."""
    return changed(
        """\
Resources:
  Alice:
    Type: AWS::ApiGateway::UsagePlanKey
    Properties:
      KeyId: a1b2
      UsagePlanId: f7r3
""",
        *changes,
    )


def taken(*changes: str) -> str:
    """The same after all three steps."""
    return changed(
        """\
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
""",
        *changes,
    )


def changed(text: str, *changes: str) -> str:
    for change in changes:
        old, arrow, new = change.partition(" → ")
        assert not arrow or old in text
        text = text.replace(old, new) if arrow else text + change + "\n"
    return text


def as_json(*changes: str) -> str:
    """The same in JSON."""
    return changed(json.dumps(yaml_parse(alice())), *changes)


def loop(type_: str) -> str:
    """A loop that makes resources of this type."""
    ids = "KeyId: a1b2, UsagePlanId: f7r3, OnExisting: Take"
    return f"  Fn::ForEach::Keys: [Name, [A], {{A: {{Type: {type_}, Properties: {{{ids}}}}}}}]"


def without_tags(value: Any) -> Any:
    """A template's data, alike for GetAtt with a dot and GetAtt as a list."""
    if isinstance(value, list):
        return [without_tags(item) for item in value]
    if isinstance(value, dict):
        return {
            key: item.split(".") if key == "Fn::GetAtt" and isinstance(item, str) else without_tags(item)
            for key, item in value.items()
        }
    return value


class TestChanges:
    """A step changes what it has to, and nothing else."""

    @pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["unix", "windows"])
    def test_all_three_steps(self, migration: Callable[..., Migration], ends: str) -> None:
        """Comments, order, quotes, spaces, line ends and Bob's own policy stay."""
        it = migration(BEFORE.replace("\n", ends))
        assert it.changed("retain") == [
            "+        DeletionPolicy: Retain",
            "+        UpdateReplacePolicy: Retain",
            "+        Metadata: {UsagePlanKeyMigration: retain}",
            "-        DeletionPolicy: Delete",
            "+        UpdateReplacePolicy: Retain",
            "+        DeletionPolicy: Retain",
            "+            UsagePlanKeyMigration: retain DeletionPolicy=Delete",
            (
                "-    Carol: {Type: AWS::ApiGateway::UsagePlanKey, DependsOn: [Alice, 'Bob'],"
                " Properties: {KeyId: a1b2, KeyType: API_KEY, UsagePlanId: f7r3}}"
            ),
            (
                "+    Carol: {Type: AWS::ApiGateway::UsagePlanKey,"
                " DeletionPolicy: Retain, UpdateReplacePolicy: Retain,"
                " Metadata: {UsagePlanKeyMigration: retain}, DependsOn: [Alice, 'Bob'],"
                " Properties: {KeyId: a1b2, KeyType: API_KEY, UsagePlanId: f7r3}}"
            ),
        ]
        it.changed("replace")
        it.changed("take")
        assert it.text.split(ends, 1)[1] == AFTER.replace("\n", ends).split(ends, 1)[1]

    @pytest.mark.parametrize(
        "form", [{"indent": 2}, {"indent": "\t"}, {"separators": (",", ":")}, {}], ids=str
    )
    @pytest.mark.parametrize("turn", [list, reversed], ids=["type first", "type last"])
    def test_json_comes_to_the_same(
        self, migration: Callable[..., Migration], form: dict[str, Any], turn: Callable[..., Any]
    ) -> None:
        data = yaml_parse(BEFORE)
        data["Resources"] = {
            name: dict(turn([*entries.items()])) for name, entries in data["Resources"].items()
        }
        it = migration(json.dumps(data, **form), "template.json")
        for step in STEPS:
            it.changed(step, *(["--arn", "arn"] if step != "take" else []))
        assert without_tags(json.loads(it.text)) == without_tags(
            yaml_parse(AFTER.replace("!ImportValue usage-plan-key-FunctionArn", "arn"))
        )
        if form != {"separators": (",", ":")}:
            assert it.text == json.dumps(json.loads(it.text), **form)

    @pytest.mark.parametrize(
        "changes",
        [
            *[
                [f"    Properties: →     {policy}\n    Properties:"]
                for policy in (
                    "UpdateReplacePolicy: Retain",
                    "DeletionPolicy: Retain",
                    "DeletionPolicy: RetainExceptOnCreate # mine",
                    "DeletionPolicy: Delete  # mine\n    UpdateReplacePolicy: Retain # mine too",
                    "# mine",
                    "Metadata:  # a\n      # b\n      a: b # c",
                    "Condition: 'Yes'",
                )
            ],
            ["A: &a {b: c}\nB: *a\nC: {<<: *a, d: e}"],
            ["a1b2 → &k a1b2", "A: *k"],
            ["a1b2 → !!str 123"],
            ["Resources → \ufeff--- # start\nResources", "# end", "..."],
        ],
        ids=" ".join,
    )
    def test_what_the_owner_wrote_stays(
        self, migration: Callable[..., Migration], changes: list[str]
    ) -> None:
        it = migration(alice(*changes))
        for step in STEPS:
            it.changed(step)
            assert step != "retain" or it.changed(step) == []  # a second time nothing is written twice
        assert it.text == taken(*changes)

    def test_quotes_and_anchors_stay(self, migration: Callable[..., Migration]) -> None:
        it = migration(alice("Alice: → &x 'Alice': &y", 'A: !Ref "Alice"'))
        for step in STEPS:
            it.changed(step)
        assert it.text == taken("AliceInPlan: → &x 'AliceInPlan': &y", 'A: !Ref "AliceInPlan"')

    def test_comments_in_flow_style(self, migration: Callable[..., Migration]) -> None:
        it = migration(
            "Resources: {\n  Alice: { # a\n    Type: AWS::ApiGateway::UsagePlanKey, # b\n"
            "    Properties: {KeyId: a1b2, # c\n      UsagePlanId: f7r3} } }\n"
        )
        it.changed("retain")
        it.changed("replace", "--arn", "arn")
        assert it.text == (
            "Resources: {\n  AliceInPlan: { # a\n    Type: Custom::UsagePlanKey, # b\n"
            "    Properties: {ServiceToken: arn, ServiceTimeout: 120, OnExisting: Take, KeyId: a1b2, # c\n"
            "      UsagePlanId: f7r3} } }\n"
        )

    def test_escapes_that_say_no_name_stay(self, migration: Callable[..., Migration]) -> None:
        text = r'{"Description": "\ud83d\udd11 \/ \u00e9", "A": {"Fn::Sub": "\n${Alice}"}, '
        it = migration(text + as_json()[1:])
        for step in STEPS:
            assert it.run(step) == 0
            it.deployed.write_text(json.dumps({"TemplateBody": json.loads(it.text)}))
        assert it.text.startswith(text.replace("${Alice}", "${AliceInPlan}"))

    def test_in_place_or_to_the_standard_output(
        self, migration: Callable[..., Migration], capsysbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        it = migration(BEFORE.replace("\n", "\r\n"))
        assert migrate.main(["retain", str(it.template)]) == 0
        told = capsysbinary.readouterr()
        assert it.text == BEFORE.replace("\n", "\r\n")
        it.run("retain")
        assert told.out.decode() == it.text


class TestReferences:
    """References follow to the new logical id."""

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("!Ref Alice", "!Ref AliceInPlan"),
            ("{Ref: Alice}", "{Ref: AliceInPlan}"),
            ("!GetAtt Alice.Id", "!GetAtt AliceInPlan.Id"),
            ("!GetAtt [Alice, Id]", "!GetAtt [AliceInPlan, Id]"),
            ("{Fn::GetAtt: [Alice, Id]}", "{Fn::GetAtt: [AliceInPlan, Id]}"),
            ("{Fn::GetAtt: Alice.Id}", "{Fn::GetAtt: AliceInPlan.Id}"),
            ("!Sub ${Alice}", "!Sub ${AliceInPlan}"),
            ("!Sub '${Alice.Id}'", "!Sub '${AliceInPlan.Id}'"),
            ("!Sub ['${Alice}', {}]", "!Sub ['${AliceInPlan}', {}]"),
            ("{Fn::Sub: 'a ${Alice}${Alice.Id} b'}", "{Fn::Sub: 'a ${AliceInPlan}${AliceInPlan.Id} b'}"),
            ("!Sub ['${Alice.Id}', {B: !Ref Alice}]", "!Sub ['${AliceInPlan.Id}', {B: !Ref AliceInPlan}]"),
            ("!If [A, !Ref Alice, b]", "!If [A, !Ref AliceInPlan, b]"),
            ("!Base64 {Fn::Sub: '${Alice}'}", "!Base64 {Fn::Sub: '${AliceInPlan}'}"),
            ("{A: &a {Fn::Sub: '${Alice}'}, B: *a}", "{A: &a {Fn::Sub: '${AliceInPlan}'}, B: *a}"),
            ("{Type: A::B, DependsOn: [Alice]}", "{Type: A::B, DependsOn: [AliceInPlan]}"),
        ]
        + [
            (text, text)
            for text in (
                "!Sub '${!Alice}'",
                "!Sub ['${Alice}', {Alice: local}]",
                "!Sub ['${Alice.Id}', {Alice.Id: local}]",
                "!Sub '${Alices} ${TheAlice} $Alice {Alice}'",
                "!Ref Alices",
                "!GetAtt Alices.Alice",
                "Alice",
                "'${Alice}'",
                "{Ref: Alice, Other: this is no function}",
                "!FindInMap [Alice, Alice, Alice]",
                "{DependsOn: [{ContainerName: Alice}]}",
                "{DependsOn: [Alice]}",
                "!GetAtt ['Ali${B}', Id]",  # Alic: B is c
                "!Ref {Fn::Sub: 'Ali${B}'}",
            )
        ],
    )
    def test_followed_or_unchanged(
        self, migration: Callable[..., Migration], before: str, after: str
    ) -> None:
        it = migration(alice("Outputs:\n  Fn::ForEach::A:\n  - B\n  - [c]\n  - It: " + before))
        it.changed("retain")
        it.changed("replace")
        assert it.text.splitlines()[-1] == f"  - It: {after}"

    @pytest.mark.parametrize("name", ["Ref", "Sub", "GetAtt", "Type", "Custom"])
    def test_a_resource_may_have_the_name_of_a_function(
        self, migration: Callable[..., Migration], name: str
    ) -> None:
        it = migration(alice(f"Alice → {name}", f"A: !Ref {name}", f"B: !GetAtt {name}.Id"))
        it.changed("retain")
        it.changed("replace")
        assert it.text.endswith(f"A: !Ref {name}InPlan\nB: !GetAtt {name}InPlan.Id\n")


class TestNewResources:
    """The custom resources get their properties and their logical ids."""

    @pytest.mark.parametrize(
        ("count", "seconds"), [(1, 120), (120, 120), (240, 180), (500, 310), (9000, 3600)]
    )
    def test_the_service_timeout_grows_with_the_keys(self, count: int, seconds: int) -> None:
        assert migrate.service_timeout(count) == seconds

    @pytest.mark.parametrize(
        ("option", "line"),
        [
            ([], "!ImportValue usage-plan-key-FunctionArn"),
            (["--import", "other-FunctionArn"], "!ImportValue other-FunctionArn"),
            (["--import", "stack:Arn"], '!ImportValue "stack:Arn"'),
            (["--parameter", "FunctionArn"], "!Ref FunctionArn"),
            (["--ssm", "/usage-plan-key/arn"], '"{{resolve:ssm:/usage-plan-key/arn}}"'),
            (
                ["--arn", "arn:aws:lambda:eu-central-1:1:function:f"],
                '"arn:aws:lambda:eu-central-1:1:function:f"',
            ),
        ],
    )
    def test_the_service_token(
        self, migration: Callable[..., Migration], option: list[str], line: str
    ) -> None:
        it = migration(alice("Parameters: {FunctionArn: {Type: String}}"))
        it.changed("retain")
        assert f"+      ServiceToken: {line}" in it.changed("replace", *option)

    @pytest.mark.parametrize(
        ("here", "there", "new"), [("1", "1", "taken"), ("2", "1", "2"), ("taken", "taken", "taken again")]
    )
    def test_a_trigger_that_is_there_changes_once(
        self, migration: Callable[..., Migration], here: str, there: str, new: str
    ) -> None:
        it = migration(taken(f"taken → '{here}'"))
        it.deploy(taken(f"taken → '{there}'"))
        assert it.run("take") == 0
        assert yaml_parse(it.text)["Resources"]["AliceInPlan"]["Properties"]["VerifyTrigger"] == new

    @pytest.mark.parametrize(
        ("old", "key", "plan", "new", "note"),
        [
            ("Alice", "!Ref AliceKey", "!Ref FreePlan", "AliceKeyInPlan", None),
            ("Alice", "!GetAtt AliceKey.APIKeyId", "!Ref FreePlan", "AliceKeyInPlan", None),
            ("Alice", "!ImportValue customers-alice", "!Ref FreePlan", "CustomersAliceInPlan", None),
            ("Alice", "a1b2", "!Ref FreePlan", "AliceInPlan", None),
            ("Alice", "!If [A, b, c]", "!Ref FreePlan", "AliceInPlan", None),
            (
                "FreeAlice",
                "!Ref AliceKey",
                "!Ref FreePlan",
                "AliceKeyInPlan",
                "FreeAlice becomes AliceKeyInPlan",
            ),
            ("AliceFREE", "a1b2", "!Ref FreeUsagePlan", "Keya1b2InPlan", "AliceFREE becomes Keya1b2InPlan"),
            ("FreeAlice", "a1b2", "!ImportValue free-plan-id", "Keya1b2InPlan", "the old id names its plan"),
            ("AliceFree", "!Ref AliceKey", "!Ref FreePlan1A2B3C4D", "AliceKeyInPlan", "names its plan"),
            ("Freeman", "!Ref AliceKey", "!Ref FreePlan", "AliceKeyInPlan", None),
            ("InAnyPlan", "!Ref AliceKey", "!Ref Plan", "AliceKeyInPlan", None),
            (
                "Alice",
                "!Ref FreeKey",
                "!Ref FreePlan",
                "FreeKeyInPlan",
                "FreeKeyInPlan (FreePlan) names its plan",
            ),
            ("Alice", "!Ref Bob", "!Ref FreePlan", "BobInPlan2", None),
            ("A" * 255, "a1b2", "f7r3", "A" * 249 + "InPlan", None),
        ],
    )
    def test_the_logical_id_is_the_keys_and_not_the_plans(
        self,
        migration: Callable[..., Migration],
        capsys: pytest.CaptureFixture[str],
        old: str,
        key: str,
        plan: str,
        new: str,
        note: str | None,
    ) -> None:
        """So it stays when the customer changes plans; with the plan's name a move would be a Create."""
        ids = (f"a1b2 → {key}", f"f7r3 → {plan}", "Parameters: {BobInPlan: {Type: String}}")
        it = migration(alice(f"Alice → {old}", *ids))
        it.changed("retain")
        capsys.readouterr()
        assert f"+  {new}:" in it.changed("replace")
        told = capsys.readouterr().err
        assert note in told if note else "names its plan" not in told

    def test_ids_are_shown_and_chosen(
        self, migration: Callable[..., Migration], capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        it, ids = migration(alice("a1b2 → !Ref Key")), tmp_path / "ids.yaml"
        for step in ("retain", "replace"):
            before = it.text
            assert it.run(step, "--ids") == 0
            assert (capsys.readouterr().out, it.text) == ("Alice: KeyInPlan\n", before)
            ids.write_text("Alice: AliceHere\n")
            assert ("+  AliceHere:" in it.changed(step, f"--ids={ids}")) == (step == "replace")

    def test_the_suffix(self, migration: Callable[..., Migration]) -> None:
        it = migration(alice())
        it.changed("retain")
        assert "+  AliceHere:" in it.changed("replace", "--suffix", "Here")


class TestRefusals:
    """One sentence names the fault, its line and what to do, and the file stays as it is."""

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            # no template
            ("a: [", "is no YAML or JSON that can be read"),
            ("[]", "is no template: it has no Resources"),
            ("", "is no template: it has no Resources"),
            (alice("---\n" + alice()), "CloudFormation takes one document, so split the file"),
            (alice("    Type → \tType"), "line 3.*use spaces"),
            (alice("A: " + "[" * 3000 + "]" * 3000), "nested too deeply"),
            (alice("A: &a [*a]"), r"Line 7: \*a stands within itself"),
            (alice("? [a]\n: b"), "Line 7: a key that is no text"),
            # one thing twice
            (alice(alice()[11:]), "Line 7: Alice stands in line 2 too"),
            (alice(alice()), "Line 7: Resources stands in line 1 too"),
            (alice("      KeyId: c3d4"), "Line 7: KeyId stands in line 5 too"),
            (as_json('"KeyId" → "KeyId": 1, "KeyId"'), "Line 1: KeyId stands in line 1 too"),
            # aliases and merge keys
            (
                alice(f"Type: {NATIVE} → Type: *t", f"Resources → T: &t {NATIVE}\nResources"),
                "Line 4: .* an alias",
            ),
            (alice("Alice: → Alice: &a", "  Bob: *a"), "Line 7: Bob has an alias here"),
            (
                alice("Properties: → Properties: &p", f"  Bob: {{Type: {NATIVE}, Properties: *p}}"),
                "Line 7: Bob has an",
            ),
            (alice("Alice: → Alice: &a", "  Bob: {<<: *a}"), "Line 7: << of Bob is not understood"),
            (alice("Alice: → Alice: &a", "  Bob: {<<: [*a]}"), "Line 7: << of Bob is not understood"),
            (
                alice(f"Resources → X: &x {{Bob: {{Type: {NATIVE}}}}}\nResources", "  <<: *x"),
                "Line 1: X in line 1 makes",
            ),
            (alice("      <<: {KeyType: API_KEY}"), "Line 7: << of Alice is no property"),
            (alice("Properties: → Properties: &p", "A: *p"), "Line 7: this .A.* would change in another way"),
            (
                alice("    DependsOn: &d Alice", "  T: {Type: A::B, DependsOn: *d}"),
                "Line 8: 'Alice' has to change",
            ),
            (alice("A: {Ref: &n Alice}", "B: *n"), "Line 8: this .B. would change in another way"),
            # escapes
            (as_json(r"Alice → Al\u0069ce"), "Line 1: 'Alice' has to change"),
            (as_json(r"S::A → S\u003a:A"), "Line 1: 'AWS::ApiGateway::UsagePlanKey' has to change"),
            (
                as_json(r'{"Resources → {"A": {"Ref": "Al\u0069ce"}, "Resources'),
                "Line 1: 'Alice' has to change",
            ),
            (
                as_json(r'{"Resources → {"A": {"Fn::Sub": "${Alice}\u0024{Alice}"}, "Resources'),
                "Line 1: this .A.Fn::Sub",
            ),
            (alice(r'A: !Sub "$\x7bAlice}"'), r"Line 7: '\$.Alice.' has to change"),
            # made by a loop, a macro, SAM
            ("Resources: {A: {Type: AWS::SNS::Topic}}", "declares no AWS::ApiGateway::UsagePlanKey"),
            ("Transform: M\nResources: {A: {Type: A::B}}", "declares no .*; The transform M may make"),
            (
                "Resources:\n" + loop(NATIVE),
                "Line 2: Fn::ForEach::Keys in line 2 makes .* write it out first",
            ),
            (alice(loop(NATIVE)), "Line 7: Fn::ForEach::Keys in line 7 makes"),
            (
                alice(f"  Fn::ForEach::O: [A, [B], {{\n{loop(NATIVE)}}}]"),
                "Line 8: Fn::ForEach::Keys in line 8 makes",
            ),
            (
                alice(f"  Fn::Transform: {{Name: M, P: {{A: {{Type: {NATIVE}}}}}}}"),
                "Line 7: Fn::Transform in line 7",
            ),
            (
                "Resources:\n  Api: {Type: AWS::Serverless::Api, Properties: " + SAM_PLAN + "}",
                "SAM makes one of Api",
            ),
            (
                "Globals: {Api: " + SAM_PLAN + "}\nResources: {}",
                r"Globals \(Auth: UsagePlan in line 1\): write it out",
            ),
            (
                alice("A: {Fn::ForEach::O: [N, [ice], {A: !Ref {Fn::Sub: 'Al${N}'}}]}"),
                "Line 7: this builds .* Alice",
            ),
            (
                alice("A: {Fn::ForEach::O: [N, !Ref P, {A: !GetAtt ['${N}', Id]}]}"),
                "Line 7: this builds .* Alice",
            ),
            (alice("  T: {Type: A::B, DependsOn: !Select [0, !Ref P]}"), "Line 7: this builds .* Alice"),
            (
                alice("  Fn::ForEach::O: [Alice, [b], {'${Alice}': {Type: A::B}}]"),
                "Line 7: Alice is a loop's",
            ),
            # a resource that is not understood
            (
                alice("    Fn::Transform: {Name: AWS::Include}"),
                "Line 7: Fn::Transform of Alice is not understood",
            ),
            (alice("      ServiceToken: x"), "Line 7: ServiceToken of Alice is no property"),
            (alice("KeyId → Kez"), "Line 5: Kez of Alice is no property"),
            (alice("      KeyId: a1b2\n → "), "Line 2: Alice has no KeyId"),
            (alice(f"{NATIVE} → !Ref T"), "Line 3: Type of Alice is no literal"),
            (alice("Alice → My-Alice"), "Line 2: 'My-Alice' is no logical id"),
            (alice("    DeletionPolicy: !Ref Policy"), "Line 7: DeletionPolicy of Alice is no literal"),
            (
                alice("    UpdateReplacePolicy: !Ref Policy"),
                "Line 7: UpdateReplacePolicy of Alice is no literal",
            ),
            (alice("    Metadata: {}"), "Line 7: Metadata of Alice is empty"),
            (
                alice("Properties → DeletionPolicy:\n    Properties"),
                "Line 4: DeletionPolicy of Alice is no literal",
            ),
            # what the command or CloudFormation cannot do
            (alice("\n → \r"), "Nothing is written.* from line 1 on in plain YAML"),
            (alice("Alice:\n    → Alice\n  :", "  A →   ? A"), "Nothing is written.* in plain YAML"),
            (alice(f"# {'long ' * 199_960}"), "would have 1,000,.* bytes, .*takes 1 MB: split the stack"),
        ],
    )
    def test_by_retain(
        self, migration: Callable[..., Migration], capsys: pytest.CaptureFixture[str], text: str, reason: str
    ) -> None:
        """Nothing waits for the deploy: what a later step would refuse, `retain` refuses."""
        assert re.search(reason, migration(text).refused(capsys, "retain"))

    @pytest.mark.parametrize("step", ["retain", "replace"])
    @pytest.mark.parametrize(
        ("option", "reason"),
        [
            (["--parameter", "Nowhere"], "declares no parameter Nowhere"),
            (["--suffix", "_In"], "is no part of a logical id"),
            (["--ids=nowhere.yaml"], "nowhere.yaml cannot be read as a text"),
            (["--ids={}", ""], "has no logical ids"),
            (["--ids={}", "Bob: BobInPlan"], "declares no AWS::ApiGateway::UsagePlanKey Bob"),
            (["--ids={}", "Alice: Alice"], "Alice for Alice is no new logical id"),
            (["--ids={}", "Alice: A-B"], "A-B for Alice is no new logical id"),
            (["--ids={}", "Alice: [A]"], "Line 1: .* has no logical id here"),
            (["--ids={}", "Alice: A\nAlice: B"], "Line 2: .* one for the second time"),
        ],
    )
    def test_the_options(
        self,
        migration: Callable[..., Migration],
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
        step: str,
        option: list[str],
        reason: str,
    ) -> None:
        it = migration(alice())
        if step == "replace":
            it.changed("retain")
        (tmp_path / "ids.yaml").write_text(option[-1])
        given = [option[0].format(tmp_path / "ids.yaml"), *([] if "{}" in option[0] else option[1:])]
        assert re.search(reason, it.refused(capsys, step, *given))

    def test_more_dynamic_references_than_cloudformation_takes(
        self, migration: Callable[..., Migration], capsys: pytest.CaptureFixture[str]
    ) -> None:
        for count, status in ((60, 0), (61, 1)):
            it = migration(alice(*(alice(f"Alice → C{i}")[11:-1] for i in range(count - 1))))
            assert it.run("retain", "--ssm", "/arn") == status
        assert "AWS::SSM::Parameter::Value<String>, and use --parameter" in capsys.readouterr().err

    @pytest.mark.parametrize("step", ["replace", "take"])
    def test_no_proof(
        self, migration: Callable[..., Migration], capsys: pytest.CaptureFixture[str], step: str
    ) -> None:
        told = migration(alice()).refused(capsys, step)
        assert "get-template --stack-name STACK --template-stage Original > deployed.json" in told

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (alice(), "is not what get-template puts out"),
            ("[]", "is not what get-template puts out"),
            ("{", "is not what get-template puts out"),
            ('{"Stacks": []}', "is not what get-template puts out"),
            ('{"TemplateBody": "a: ["}', "The deployed template in .* cannot be read"),
        ],
    )
    def test_no_output_of_get_template(
        self,
        migration: Callable[..., Migration],
        capsys: pytest.CaptureFixture[str],
        content: str,
        reason: str,
    ) -> None:
        it = migration(alice())
        it.deployed.write_text(content)
        assert re.search(reason, it.refused(capsys, "replace"))

    @pytest.mark.parametrize(
        ("step", "old", "new", "reason"),
        [
            (
                "replace",
                "DeletionPolicy: Retain",
                "DeletionPolicy: Delete",
                "Alice is deployed without Deletion",
            ),
            (
                "replace",
                "DeletionPolicy: Retain",
                "DeletionPolicy: !Ref P",
                "Alice is deployed without Deletion",
            ),
            ("replace", "Alice:", "Bob:", "Alice is not deployed as AWS::ApiGateway::UsagePlanKey"),
            ("replace", "a1b2", "z9y8", "Alice is deployed with another KeyId or UsagePlanId"),
            (
                "take",
                "OnExisting: Take",
                "OnExisting: Fail",
                "AliceInPlan is not deployed with OnExisting: Take",
            ),
            ("take", "a1b2", "z9y8", "AliceInPlan is not deployed with OnExisting: Take"),
            ("take", "AliceInPlan:", "Bob:", "AliceInPlan is not deployed with OnExisting: Take"),
        ],
    )
    def test_the_step_before_is_not_in_force(
        self,
        migration: Callable[..., Migration],
        capsys: pytest.CaptureFixture[str],
        step: str,
        old: str,
        new: str,
        reason: str,
    ) -> None:
        it = migration(alice())
        for before in STEPS[: STEPS.index(step)]:
            it.changed(before)
        it.deploy(it.text.replace(old, new))
        assert reason in it.refused(capsys, step)

    @pytest.mark.parametrize(
        ("step", "text", "reason"),
        [
            ("take", alice(), "No Custom::UsagePlanKey in the template says OnExisting: Take"),
            ("take", taken("    <<: {}"), "Line 11: << of AliceInPlan is not understood"),
            (
                "take",
                taken("Properties: → Properties: &p", f"  B: {{Type: {CUSTOM}, Properties: *p}}"),
                "Line 11: B has an",
            ),
            (
                "take",
                taken("      OnExisting →       <<:\n        OnExisting"),
                "Line 2: .* are merged from elsewhere",
            ),
            (
                "replace",
                alice(RETAINED, "    Metadata: {UsagePlanKeyMigration: mine}"),
                "Line 8: .* is not what retain",
            ),
            (
                "replace",
                alice(RETAINED, "    Metadata: {UsagePlanKeyMigration: retain} # mine"),
                "Line 8: the comment",
            ),
            ("take --ids", taken(), "--ids is for retain and replace"),
        ],
    )
    def test_by_a_later_step(
        self,
        migration: Callable[..., Migration],
        capsys: pytest.CaptureFixture[str],
        step: str,
        text: str,
        reason: str,
    ) -> None:
        it = migration(text)
        it.deploy()
        assert re.search(reason, it.refused(capsys, *step.split()))

    @pytest.mark.parametrize("step", STEPS)
    @pytest.mark.parametrize(
        ("name", "fault"),
        [
            ("_scalar", lambda value: "wrong"),
            ("_scalar", lambda value: f"{value}\n   - broken"),
            ("Template._edited", lambda it: it.text),
            ("Template._edited", lambda it: it.text.replace("API_KEY", "api_key")),
        ],
    )
    def test_a_fault_of_the_command_itself(
        self,
        migration: Callable[..., Migration],
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        step: str,
        name: str,
        fault: Callable[..., Any],
    ) -> None:
        """It compares what it would write with what it has read, so a wrong or a missing change shows."""
        it = migration(alice("      KeyType: API_KEY"))
        for before in STEPS[: STEPS.index(step)]:
            it.changed(before)
        monkeypatch.setattr(
            migrate.Template if "." in name else migrate, name.removeprefix("Template."), fault
        )
        assert re.search("nothing is written|Nothing is written", it.refused(capsys, step))

    def test_json_that_would_become_yaml(
        self,
        migration: Callable[..., Migration],
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def unquoted(it: Any, mapping: Any, name: str, value: Any) -> str:
            return f"{name}: {json.dumps(value)}"

        monkeypatch.setattr(migrate.Template, "_written", unquoted)
        assert "would be no JSON any more" in migration(as_json()).refused(capsys, "retain")

    def test_a_file_that_cannot_be_read(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "utf-16.yaml").write_text(alice(), "utf-16")
        for name in ("nowhere.yaml", "utf-16.yaml"):
            assert migrate.main(["retain", str(tmp_path / name)]) == 1
            assert f"{name} cannot be read as a text in UTF-8" in capsys.readouterr().err

    def test_a_file_that_cannot_be_written(
        self,
        migration: Callable[..., Migration],
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def full(path: Path, target: Path) -> None:
            raise OSError(28, "No space left on device", str(target))

        monkeypatch.setattr(Path, "replace", full)
        assert "No space left on device" in migration().refused(capsys, "retain")


class TestNotes:
    """The command says how many it changed and left, how large the template is, and what it cannot follow."""

    @pytest.mark.parametrize(
        ("step", "text", "note"),
        [
            ("retain", alice(), "1 changed, 0 left."),
            ("retain", alice(RETAINED), "0 changed, 1 left (1 retained before)."),
            (
                "retain",
                alice(f"Globals: {{Api: {SAM_PLAN}}}"),
                "1 left (1 made by SAM of Globals in line 7).",
            ),
            (
                "retain",
                alice("Globals: {Api: {Auth: {UsagePlan: {CreateUsagePlan: NONE}}}}"),
                "1 changed, 0 left.",
            ),
            ("retain", alice("  Fn::ForEach::T: [A, [B], {}]"), "Fn::ForEach::T in line 10 is not followed"),
            (
                "retain",
                alice("A: {Fn::Transform: {Name: AWS::Include}}"),
                "Fn::Transform in line 10 is not followed",
            ),
            (
                "retain",
                alice("A: !Transform {Name: AWS::Include}"),
                "Fn::Transform in line 10 is not followed",
            ),
            ("retain", alice("Transform: M"), "The transform M may make resources"),
            ("retain", alice("Transform: [A, {Name: AWS::Include}]"), "The transform AWS::Include may make"),
            ("retain", alice("  N: {Type: AWS::CloudFormation::Stack}"), "N is a nested stack"),
            ("retain", alice(f"A: 'a {NATIVE}'"), "A text in line 10 has AWS::ApiGateway::UsagePlanKey"),
            ("retain", alice(*(f"  T{i}: {{Type: A::B}}" for i in range(500))), "has 501 resources"),
            ("retain", alice(f"# {'long ' * 10_200}"), "above 51,200 bytes a template has to come from S3"),
            ("replace", alice(RETAINED), "1 changed, 0 left."),
            ("replace", alice(RETAINED), "your DeletionPolicy stays on AliceInPlan: its key stays attached"),
            ("replace", alice(RETAINED, "    UpdateReplacePolicy: Retain"), "its key stays in the old plan"),
            (
                "replace",
                alice(MARKED, f"{RETAINED}ExceptOnCreate"),
                "your DeletionPolicy stays on AliceInPlan",
            ),
            (
                "replace",
                alice(MARKED, RETAINED, "    UpdateReplacePolicy: Retain"),
                "after replace.\n1 changed, 0 left.",
            ),
            ("replace", alice(RETAINED, "A: {Id: Alice}"), "Alice in line 11 is left: it is no reference"),
            ("take", taken(), "1 changed, 0 left."),
            ("take", taken(loop(CUSTOM)), "1 changed, 1 left (1 in a loop)."),
            ("take", taken(loop(CUSTOM)), "Fn::ForEach::Keys in line 11 makes Custom::UsagePlanKey"),
            ("take", taken(f"  Bob: {{Type: {CUSTOM}}}"), "1 changed, 1 left (1 without Take)."),
            ("take", taken(": taken → : !Ref T"), "0 changed, 1 left (1 with a function)."),
            ("take", taken(": taken → : !Ref T"), "VerifyTrigger of AliceInPlan in line 8 is a function"),
        ],
    )
    def test_said(
        self,
        migration: Callable[..., Migration],
        capsys: pytest.CaptureFixture[str],
        step: str,
        text: str,
        note: str,
    ) -> None:
        it = migration(text)
        it.deploy()
        assert it.run(step) == 0
        assert note in capsys.readouterr().err

    def test_a_deployed_resource_that_is_not_here(
        self, migration: Callable[..., Migration], capsys: pytest.CaptureFixture[str]
    ) -> None:
        it = migration(alice())
        it.changed("retain")
        it.deploy(it.text + "  Bob: {Type: AWS::ApiGateway::UsagePlanKey}\n")
        assert it.run("replace") == 0
        assert "Bob is deployed and not here" in capsys.readouterr().err

    def test_the_sizes_are_those_of_the_manual(
        self, migration: Callable[..., Migration], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """`retain` tells what the template comes to, before anything is deployed."""
        it = migration(alice(*(alice(f"Alice → C{i}")[11:-1] for i in range(101, 400))))
        sizes = [len(it.text)]
        assert it.run("retain") == 0
        told = capsys.readouterr().err
        for step in STEPS:
            if step != "retain":
                it.run(step)
            it.deploy()
            sizes.append(len(it.text))
        shown = "Bytes: {:,} before, {:,} after retain, {:,} after replace, {:,} after take.".format(*sizes)
        assert shown in told
        per_key = [(size - sizes[0]) // 300 for size in sizes[1:]]
        manual = " ".join((ROOT / "docs/migrate.md").read_text().split())
        assert "{} bytes after `retain`, {} after `replace`, {} after `take`".format(*per_key) in manual
        assert f"300 keys: {sizes[0]:,} → {max(sizes):,} bytes" in manual


def test_what_sam_makes_can_be_written_out_and_then_migrated(
    migration: Callable[..., Migration], monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/migrate.md, Made by a loop or by SAM: the deploy of what was written out changes nothing."""

    def translated(template: dict[str, Any]) -> Any:
        policies = type("Policies", (), {"load": lambda self: {}})()
        return transform(template, {"AWS::Region": "eu-central-1"}, policies)["Resources"]

    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    sam = yaml_parse(SAM)
    before = translated(yaml_parse(SAM))
    made = {
        name: it
        for name, it in before.items()
        if it["Type"].removeprefix("AWS::ApiGateway::") in ("ApiKey", "UsagePlan", "UsagePlanKey")
    }
    assert len(made) == 3
    del sam["Resources"]["Api"]["Properties"]["Auth"]["UsagePlan"]
    sam["Resources"] |= made
    it = migration(json.dumps(sam, indent=2))
    assert translated(json.loads(it.text)) == before
    for step in STEPS:
        it.changed(step)
    assert json.loads(it.text)["Resources"]["ApiApiKeyInPlan"]["Type"] == "Custom::UsagePlanKey"


SAM = """\
Transform: AWS::Serverless-2016-10-31
Resources:
  Api:
    Type: AWS::Serverless::Api
    Properties:
      StageName: prod
      DefinitionBody: {swagger: "2.0", paths: {}}
      Auth: {ApiKeyRequired: true, UsagePlan: {CreateUsagePlan: PER_API}}
"""


# --- On the embedded AWS ---

KEYS = 240
"""With as many API keys and a plan it is a template of 481 resources: CloudFormation takes 500."""


def many() -> str:
    """A template with that many native associations; its outputs refer to some of them."""
    lines = [
        "Resources:",
        "  Plan:",
        "    Type: AWS::ApiGateway::UsagePlan",
        "    Properties: {UsagePlanName: many}",
    ]
    for number in range(KEYS):
        lines += [
            f"  Key{number}: {{Type: AWS::ApiGateway::ApiKey, Properties: {{Enabled: true}}}}",
            f"  Customer{number}:",
            "    Type: AWS::ApiGateway::UsagePlanKey",
            "    Properties:",
            f"      KeyId: !Ref Key{number}",
            "      KeyType: API_KEY",
            "      UsagePlanId: !Ref Plan",
        ]
    lines += [
        "Outputs:",
        "  First: {Value: !Ref Customer0}",
        f"  Last: {{Value: !Sub '${{Customer{KEYS - 1}}}'}}",
    ]
    return "\n".join([*lines, ""])


@pytest.fixture(scope="module")
def aws() -> Iterator[Aws]:
    """MiniStack with the function, for hundreds of keys.

    The limits on calls, and the queue, have tests of their own: here they would cost two minutes and a half.
    Without a queue the function serves a request where it arrives, by the same code.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proxy, "Bucket", lambda clock: rules.Bucket(clock, rate=10_000, burst=10_000))
        patch.setattr(ministack, "PATIENCE", 300)
        with running() as aws:
            aws.proxy.one_at_a_time.seconds = 0
            function: Template = packaged(ROOT / "template.yaml", aws.upload(ROOT / "handler"))
            del function["Resources"][FUNCTION]["Properties"]["Environment"]["Variables"]["QUEUE_URL"]
            assert aws.deploy(PROVIDER, function, **aws.emulated).status == "CREATE_COMPLETE"
            yield aws


@contextmanager
def watched(aws: Aws, plan: str) -> Iterator[list[int]]:
    """Count the plan's keys again and again during an action."""
    counts: list[int] = []
    done = Event()
    api = aws.client("apigateway")

    def watch() -> None:
        while not done.is_set():
            counts.append(len(api.get_usage_plan_keys(usagePlanId=plan, limit=500)["items"]))
            done.wait(0.2)

    thread = Thread(target=watch)
    thread.start()
    try:
        yield counts
    finally:
        done.set()
        thread.join()


def test_240_native_keys_stay_attached_until_they_are_taken_over_and_go_with_their_stack(
    aws: Aws, tmp_path: Path
) -> None:
    """MiniStack creates native associations behind the proxy, so the 409 of AWS is not in their way."""
    it = Migration(tmp_path, many())
    function = aws.physical_ids(PROVIDER)[FUNCTION]
    assert deploy(aws, it.text).status == "CREATE_COMPLETE"
    plan = aws.physical_ids("many")["Plan"]
    outcomes = []
    for step in ("retain", "replace", "take"):
        assert it.run(step) == 0
        with watched(aws, plan) as counts:
            deployment = deploy(aws, it.text)
            assert deployment.status == "UPDATE_COMPLETE", deployment.failures
        assert set(counts) == {KEYS}
        shown = aws.client("cloudformation").get_template(StackName="many")
        it.deployed.write_text(json.dumps({"TemplateBody": shown["TemplateBody"]}))
        outcomes.append(answered(aws, function, step))
    assert outcomes == [{}, {"ADOPTED": KEYS}, {"TAKEN": KEYS}]
    assert not [call for call in aws.proxy.calls if call.operation == "DeleteUsagePlanKey"]
    ids = aws.physical_ids("many")
    assert aws.outputs("many") == {"First": ids["Key0InPlan"], "Last": ids[f"Key{KEYS - 1}InPlan"]}

    assert aws.delete("many").status == "DELETE_COMPLETE"
    detached = {
        call.key for call in aws.proxy.calls if (call.operation, call.status) == ("DeleteUsagePlanKey", 202)
    }
    assert detached == {ids[f"Key{number}"] for number in range(KEYS)}


def deploy(aws: Aws, text: str) -> Deployment:
    """Deploy the stack `many` from S3: the template is too large for a request."""
    s3, cloudformation = aws._bucket("templates"), aws.client("cloudformation")
    s3.put_object(Bucket="templates", Key="many.yaml", Body=text.encode())
    before = aws._events("many")
    operation = cloudformation.update_stack if before else cloudformation.create_stack
    operation(StackName="many", TemplateURL=f"https://localhost:{aws.port}/templates/many.yaml")
    return aws._finished("many", before)


def answered(aws: Aws, function: str, step: str) -> dict[str, int]:
    """Wait for the outcomes of a step; MiniStack writes a function's log after its answer."""
    kind = {"retain": None, "replace": "Create", "take": "Update"}[step]
    deadline = time.monotonic() + 10
    while True:
        found = Counter(
            request.outcome or request.reason for request in aws.requests(function) if request.kind == kind
        )
        if kind is None or found.total() >= KEYS or time.monotonic() > deadline:
            return dict(found)
        time.sleep(0.2)
