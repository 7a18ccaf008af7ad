"""tools/migrate.py leads from the native type in three deploys, and changes only the lines it has to."""

import difflib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from samtranslator.yaml_helper import yaml_parse

from emulators import ministack, proxy, rules
from emulators.ministack import Aws, Deployment, Template, packaged, running
from examples.demo import FUNCTION, PROVIDER
from tools import migrate

ROOT = Path(__file__).parents[1]
NATIVE = (ROOT / "tests/templates/native.yaml").read_text()


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
    return lambda text=NATIVE, name="template.yaml": Migration(tmp_path, text, name)


def template(outputs: str = "") -> str:
    """A small template with Alice, and these lines in it."""
    return f"""\
Resources:
  Alice:
    Type: AWS::ApiGateway::UsagePlanKey
    Properties:
      KeyId: a1b2
      KeyType: API_KEY
      UsagePlanId: f7r3
{outputs}"""


class TestLines:
    """A step changes the lines that it has to, and no other."""

    def test_all_three_steps(self, migration: Callable[..., Migration]) -> None:
        it = migration()
        assert it.changed("retain") == [
            "+        DeletionPolicy: Retain",
            "+        UpdateReplacePolicy: Retain",
            "+        Metadata: {UsagePlanKeyMigration: retain}",
            "-        DeletionPolicy: Delete",
            "+        UpdateReplacePolicy: Retain",
            "+        DeletionPolicy: Retain",
            "+            UsagePlanKeyMigration: retain",
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
        assert it.changed("replace") == [
            "-    Alice:",
            "-        Type: AWS::ApiGateway::UsagePlanKey  # the first customer",
            "-        DeletionPolicy: Retain",
            "-        UpdateReplacePolicy: Retain",
            "-        Metadata: {UsagePlanKeyMigration: retain}",
            "+    AliceInPlan2:",
            "+        Type: Custom::UsagePlanKey  # the first customer",
            "+            ServiceToken: !ImportValue usage-plan-key-FunctionArn",
            "+            ServiceTimeout: 120",
            "+            OnExisting: Take",
            "-    Bob:",
            "-        DependsOn: Alice",
            "+    BobInPlan:",
            "+        DependsOn: AliceInPlan2",
            '-        Type: "AWS::ApiGateway::UsagePlanKey"',
            "-        UpdateReplacePolicy: Retain",
            "-        DeletionPolicy: Retain",
            '+        Type: "Custom::UsagePlanKey"',
            "-            UsagePlanKeyMigration: retain",
            '-        Properties: {KeyId: !GetAtt Key.APIKeyId, KeyType: API_KEY, UsagePlanId: !Ref "Plan"}',
            (
                "-    Carol: {Type: AWS::ApiGateway::UsagePlanKey,"
                " DeletionPolicy: Retain, UpdateReplacePolicy: Retain,"
                " Metadata: {UsagePlanKeyMigration: retain}, DependsOn: [Alice, 'Bob'],"
                " Properties: {KeyId: a1b2, KeyType: API_KEY, UsagePlanId: f7r3}}"
            ),
            (
                "+        Properties: {ServiceToken: !ImportValue usage-plan-key-FunctionArn,"
                " ServiceTimeout: 120, OnExisting: Take,"
                ' KeyId: !GetAtt Key.APIKeyId, KeyType: API_KEY, UsagePlanId: !Ref "Plan"}'
            ),
            (
                "+    CarolInPlan: {Type: Custom::UsagePlanKey, DependsOn: [AliceInPlan2, 'BobInPlan'],"
                " Properties: {ServiceToken: !ImportValue usage-plan-key-FunctionArn, ServiceTimeout: 120,"
                " OnExisting: Take, KeyId: a1b2, KeyType: API_KEY, UsagePlanId: f7r3}}"
            ),
            "-        -   Alice",
            "+        -   AliceInPlan2",
            '-            -   "${Alice} ${!Alice} ${ Bob.Id } ${Carol} ${AliceInPlan} ${AWS::Region}"',
            "-            -   Carol: !GetAtt Alice.Id",
            (
                '+            -   "${AliceInPlan2} ${!Alice} ${ BobInPlan.Id } ${Carol} ${AliceInPlan}'
                ' ${AWS::Region}"'
            ),
            "+            -   Carol: !GetAtt AliceInPlan2.Id",
            "-        Value: !Ref 'Alice'",
            "-    Bob: {Value: !GetAtt [Bob, Id], Condition: HasBob}",
            "+        Value: !Ref 'AliceInPlan2'",
            "+    Bob: {Value: !GetAtt [BobInPlan, Id], Condition: HasBob}",
            (
                '-            Fn::Join: ["", [{Ref: Alice}, {"Fn::GetAtt": ["Carol", Id]},'
                " {Fn::GetAtt: Bob.Id}, Alice]]"
            ),
            (
                '+            Fn::Join: ["", [{Ref: AliceInPlan2}, {"Fn::GetAtt": ["CarolInPlan", Id]},'
                " {Fn::GetAtt: BobInPlan.Id}, Alice]]"
            ),
            "-                ${Alice}",
            "-                  ${Alice.Id}, ${!Alice}, $Alice",
            "+                ${AliceInPlan2}",
            "+                  ${AliceInPlan2.Id}, ${!Alice}, $Alice",
        ]
        taken = [line for line in it.changed("take") if line.startswith("+")]
        assert taken[0] == "+            VerifyTrigger: taken"
        assert all("OnExisting: Take, VerifyTrigger: taken, KeyId" in line for line in taken[1:])
        assert len(taken) == 3

    def test_comments_stay_above_their_lines(self, migration: Callable[..., Migration]) -> None:
        it = migration()
        for step in ("retain", "replace", "take"):
            it.changed(step)
            assert "            # Her key\n            KeyId: !Ref Key\n" in it.text

    def test_windows_line_ends_stay(self, migration: Callable[..., Migration]) -> None:
        it = migration(NATIVE.replace("\n", "\r\n"))
        for step in ("retain", "replace", "take"):
            it.changed(step)
            assert it.text.count("\n") == it.text.count("\r\n")

    @pytest.mark.parametrize(
        "form", [{"indent": 2}, {"indent": "\t"}, {"separators": (",", ":")}, {}], ids=str
    )
    def test_json_comes_to_the_same(
        self, migration: Callable[..., Migration], form: dict[str, Any], tmp_path: Path
    ) -> None:
        """Each layout stays, and the result equals the same change of the data."""
        (tmp_path / "json").mkdir()
        ours, theirs = (
            migration(),
            Migration(tmp_path / "json", json.dumps(yaml_parse(NATIVE), **form), "template.json"),
        )
        for step in ("retain", "replace", "take"):
            ours.changed(step)
            theirs.changed(step)
            assert without_tags(json.loads(theirs.text)) == without_tags(yaml_parse(ours.text))
            assert ("\n" in theirs.text) == ("indent" in form)

    def test_json_stays_laid_out_as_it_was(self, migration: Callable[..., Migration]) -> None:
        it = migration(json.dumps(yaml_parse(NATIVE), indent=2), "template.json")
        for step in ("retain", "replace", "take"):
            it.changed(step, *(["--arn", "arn"] if step == "replace" else []))
        assert it.text == json.dumps(json.loads(it.text), indent=2)

    def test_the_type_may_come_last(self, migration: Callable[..., Migration]) -> None:
        data = yaml_parse(NATIVE)
        data["Resources"] = {name: dict(reversed(it.items())) for name, it in data["Resources"].items()}
        it = migration(json.dumps(data, indent=2), "template.json")
        it.changed("retain")
        it.changed("replace", "--arn", "arn")
        assert it.text == json.dumps(json.loads(it.text), indent=2)
        assert list(json.loads(it.text)["Resources"]["AliceInPlan2"]) == ["Properties", "Type"]

    def test_the_deployed_template_may_be_written_otherwise(
        self, migration: Callable[..., Migration]
    ) -> None:
        """The CLI shows a template in JSON as JSON, and a macro's result with long names of functions."""
        it = migration()
        for step in ("retain", "replace", "take"):
            assert it.run(step) == 0
            it.deployed.write_text(json.dumps({"TemplateBody": yaml_parse(it.text)}))

    def test_an_alias_is_changed_once(self, migration: Callable[..., Migration]) -> None:
        it = migration(template("  Bob: *alice\n").replace("Alice:", "Alice: &alice"))
        for step in ("retain", "replace", "take"):
            it.changed(step)
        assert " ".join(it.text.split()) == (
            "Resources: AliceInPlan: &alice Type: Custom::UsagePlanKey Properties: ServiceToken: !ImportValue"
            " usage-plan-key-FunctionArn ServiceTimeout: 120 OnExisting: Take VerifyTrigger: taken"
            " KeyId: a1b2 KeyType: API_KEY UsagePlanId: f7r3 BobInPlan: *alice"
        )

    def test_an_emoji_that_json_escapes_is_no_fault(self, migration: Callable[..., Migration]) -> None:
        it = migration(json.dumps({"Description": "\U0001f511", "Resources": {"Alice": retained()}}))
        it.deployed.write_text(json.dumps({"TemplateBody": json.loads(it.text)}))
        assert it.run("replace") == 0
        assert json.loads(it.text)["Description"] == "\U0001f511"

    def test_in_place_or_to_the_standard_output(
        self, migration: Callable[..., Migration], capsys: pytest.CaptureFixture[str]
    ) -> None:
        it = migration()
        assert migrate.main(["retain", str(it.template)]) == 0
        told = capsys.readouterr()
        assert it.text == NATIVE
        it.run("retain")
        assert told.out == it.text
        assert "get-template" in told.err
        assert "If the deploy fails" in told.err

    def test_a_resource_that_its_owner_retains_stays_retained(
        self, migration: Callable[..., Migration], capsys: pytest.CaptureFixture[str]
    ) -> None:
        it = migration(template().replace("    Properties", "    DeletionPolicy: Retain\n    Properties"))
        assert it.changed("retain") == []
        assert "go on with replace" in capsys.readouterr().err
        it.changed("replace")
        assert "DeletionPolicy: Retain" in it.text
        assert "AliceInPlan keeps its own DeletionPolicy" in capsys.readouterr().err


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
            (
                "!Sub ['${Alice.Id}', {Bob: !Ref Alice}]",
                "!Sub ['${AliceInPlan.Id}', {Bob: !Ref AliceInPlan}]",
            ),
            ("!If [A, !Ref Alice, b]", "!If [A, !Ref AliceInPlan, b]"),
            ("!Base64 {Fn::Sub: '${Alice}'}", "!Base64 {Fn::Sub: '${AliceInPlan}'}"),
        ],
    )
    def test_followed(self, migration: Callable[..., Migration], before: str, after: str) -> None:
        it = migration(template(f"Outputs:\n  It:\n    Value: {before}\n"))
        it.changed("retain")
        it.changed("replace")
        assert it.text.splitlines()[-1] == f"    Value: {after}"

    @pytest.mark.parametrize(
        "text",
        [
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
        ],
    )
    def test_unchanged(self, migration: Callable[..., Migration], text: str) -> None:
        it = migration(template(f"Outputs:\n  It:\n    Value: {text}\n"))
        it.changed("retain")
        it.changed("replace")
        assert it.text.splitlines()[-1] == f"    Value: {text}"

    @pytest.mark.parametrize("name", ["Ref", "Sub", "GetAtt", "Type", "Custom"])
    def test_a_resource_may_have_the_name_of_a_function(
        self, migration: Callable[..., Migration], name: str
    ) -> None:
        it = migration(
            template("Outputs:\n  A:\n    Value: !Ref Alice\n  B:\n    Value: !GetAtt Alice.Id\n").replace(
                "Alice", name
            )
        )
        it.changed("retain")
        it.changed("replace")
        assert yaml_parse(it.text)["Outputs"] == {
            "A": {"Value": {"Ref": f"{name}InPlan"}},
            "B": {"Value": {"Fn::GetAtt": [f"{name}InPlan", "Id"]}},
        }

    def test_an_escaped_one_is_refused(
        self, migration: Callable[..., Migration], capsys: pytest.CaptureFixture[str]
    ) -> None:
        it = migration(template('Outputs:\n  It: {Value: !Sub "$\\x7bAlice}"}\n'))
        it.changed("retain")
        assert it.run("replace") == 1
        assert "The reference to Alice in line" in capsys.readouterr().err


class TestNewResources:
    """The custom resources get their properties."""

    @pytest.mark.parametrize(
        ("count", "seconds"), [(1, 120), (120, 120), (240, 180), (500, 310), (9000, 3600)]
    )
    def test_the_service_timeout_grows_with_the_keys(self, count: int, seconds: int) -> None:
        assert migrate.service_timeout(count) == seconds

    def test_they_are_given_it(self) -> None:
        read = migrate.Template.read(
            json.dumps({"Resources": {f"C{i}": retained() for i in range(240)}}), "it"
        )
        migrate.replace(read, read, "arn", "InPlan")
        assert read.edited().count('"ServiceTimeout": 180,') == 240

    def test_the_new_logical_ids_are_new_and_short_enough(self) -> None:
        long = "A" * 255
        names = [long, long[:-1] + "B", "Bob", "BobInPlan", "Carol"]
        resources = {name: retained() for name in names}
        text = json.dumps({"Resources": resources, "Parameters": {"CarolInPlan": {"Type": "String"}}})
        read = migrate.Template.read(text, "it")
        migrate.replace(read, read, "arn", "InPlan")
        new = json.loads(read.edited())["Resources"]
        assert list(new) == [
            "A" * 249 + "InPlan",
            "A" * 248 + "InPlan2",
            "BobInPlan2",
            "BobInPlanInPlan",
            "CarolInPlan2",
        ]

    @pytest.mark.parametrize(
        ("option", "line"),
        [
            ([], "!ImportValue usage-plan-key-FunctionArn"),
            (["--import", "other-FunctionArn"], "!ImportValue other-FunctionArn"),
            (["--parameter", "FunctionArn"], "!Ref FunctionArn"),
            (["--ssm", "/usage-plan-key/arn"], '"{{resolve:ssm:/usage-plan-key/arn}}"'),
            (
                ["--arn", "arn:aws:lambda:eu-central-1:123456789012:function:f"],
                '"arn:aws:lambda:eu-central-1:123456789012:function:f"',
            ),
        ],
    )
    def test_the_service_token(
        self, migration: Callable[..., Migration], option: list[str], line: str
    ) -> None:
        it = migration("Parameters: {FunctionArn: {Type: String}}\n" + template())
        it.changed("retain")
        assert f"+      ServiceToken: {line}" in it.changed("replace", *option)

    @pytest.mark.parametrize(
        ("here", "there", "new"), [("1", "1", "taken"), ("2", "1", "2"), ("taken", "taken", "taken again")]
    )
    def test_a_trigger_that_is_there_changes_once(
        self, migration: Callable[..., Migration], here: str, there: str, new: str
    ) -> None:
        it = migration(template())
        it.changed("retain")
        it.changed("replace")
        before = it.text + "      VerifyTrigger: '{}'\n"
        it.write(before.format(here))
        it.deploy(before.format(there))
        assert it.run("take") == 0
        assert yaml_parse(it.text)["Resources"]["AliceInPlan"]["Properties"]["VerifyTrigger"] == new

    def test_the_suffix(self, migration: Callable[..., Migration]) -> None:
        it = migration(template())
        it.changed("retain")
        assert "+  AliceHere:" in it.changed("replace", "--suffix", "Here")


def retained() -> dict[str, Any]:
    """A native resource, retained by its owner."""
    properties = {"KeyId": "a1b2", "UsagePlanId": "f7r3", "KeyType": "API_KEY"}
    return {"Type": "AWS::ApiGateway::UsagePlanKey", "DeletionPolicy": "Retain", "Properties": properties}


class TestRefusals:
    """One sentence names the fault and the command to run, and the file stays as it is."""

    def refused(self, it: Migration, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
        """Run it; return its message."""
        before, _ = it.text, capsys.readouterr()
        assert it.run(*arguments) == 1
        told = capsys.readouterr()
        assert (it.text, told.out) == (before, "")
        assert told.err.startswith("migrate.py: ")
        assert told.err.count("\n") == 1
        return told.err

    @pytest.mark.parametrize("step", ["replace", "take"])
    def test_no_proof(
        self, migration: Callable[..., Migration], capsys: pytest.CaptureFixture[str], step: str
    ) -> None:
        told = self.refused(migration(template()), capsys, step)
        assert "aws cloudformation get-template --stack-name STACK > deployed.json" in told

    @pytest.mark.parametrize("content", [template(), "[]", "{", '{"Stacks": []}'])
    def test_no_output_of_get_template(
        self, migration: Callable[..., Migration], capsys: pytest.CaptureFixture[str], content: str
    ) -> None:
        it = migration(template())
        it.deployed.write_text(content)
        assert "is not what get-template puts out" in self.refused(it, capsys, "replace")

    @pytest.mark.parametrize(
        ("old", "new", "reason"),
        [
            (
                "DeletionPolicy: Retain",
                "DeletionPolicy: Delete",
                "Alice is deployed without DeletionPolicy: Retain",
            ),
            (
                "DeletionPolicy: Retain",
                "DeletionPolicy: !Ref Policy",
                "Alice is deployed without DeletionPolicy: Retain",
            ),
            ("Alice:", "Bob:", "Alice is not deployed as AWS::ApiGateway::UsagePlanKey"),
            ("a1b2", "z9y8", "Alice is deployed with another KeyId or UsagePlanId"),
        ],
    )
    def test_retain_is_not_in_force(
        self,
        migration: Callable[..., Migration],
        capsys: pytest.CaptureFixture[str],
        old: str,
        new: str,
        reason: str,
    ) -> None:
        it = migration(template())
        it.changed("retain")
        it.deploy(it.text.replace(old, new))
        told = self.refused(it, capsys, "replace")
        assert reason in told
        assert "deploy what retain makes" in told

    def test_replace_is_not_in_force(
        self, migration: Callable[..., Migration], capsys: pytest.CaptureFixture[str]
    ) -> None:
        it = migration(template())
        it.changed("retain")
        before = it.text
        it.changed("replace")
        for deployed in (
            before,
            it.text.replace("OnExisting: Take", "OnExisting: Fail"),
            it.text.replace("a1b2", "z9y8"),
        ):
            it.deploy(deployed)
            assert "AliceInPlan is not deployed with OnExisting: Take" in self.refused(it, capsys, "take")

    @pytest.mark.parametrize(
        ("text", "step", "reason"),
        [
            ("a: [", "retain", "is neither YAML nor JSON"),
            ("[]", "retain", "is no template: it has no Resources"),
            ("", "retain", "is no template: it has no Resources"),
            (
                "Resources: {A: {Type: AWS::SNS::Topic}}",
                "retain",
                "declares no AWS::ApiGateway::UsagePlanKey",
            ),
            (
                template("    DeletionPolicy: !Ref Policy\n"),
                "retain",
                "DeletionPolicy of Alice is no literal",
            ),
            (template("    Metadata: {}\n"), "retain", "Metadata of Alice is empty"),
            (template().replace("KeyId", "Kez"), "replace", "Alice has no KeyId"),
            (template(), "take", "No Custom::UsagePlanKey in the template says OnExisting: Take"),
        ],
    )
    def test_the_template(
        self,
        migration: Callable[..., Migration],
        capsys: pytest.CaptureFixture[str],
        text: str,
        step: str,
        reason: str,
    ) -> None:
        it = migration(text)
        if step != "retain":
            if step == "replace":
                it.run("retain")
            it.deploy()
        assert reason in self.refused(it, capsys, step)

    @pytest.mark.parametrize(
        ("option", "reason"),
        [
            (["--parameter", "Nowhere"], "declares no parameter Nowhere"),
            (["--suffix", "_In"], "is no part of a logical id"),
        ],
    )
    def test_the_options(
        self,
        migration: Callable[..., Migration],
        capsys: pytest.CaptureFixture[str],
        option: list[str],
        reason: str,
    ) -> None:
        it = migration(template())
        it.changed("retain")
        assert reason in self.refused(it, capsys, "replace", *option)

    def test_more_dynamic_references_than_cloudformation_takes(
        self, migration: Callable[..., Migration], capsys: pytest.CaptureFixture[str]
    ) -> None:
        for count, status in ((60, 0), (61, 1)):
            it = migration(json.dumps({"Resources": {f"C{i}": retained() for i in range(count)}}))
            it.deploy()
            assert it.run("replace", "--ssm", "/arn") == status
        assert "AWS::SSM::Parameter::Value<String>, and use --parameter" in capsys.readouterr().err

    def test_a_file_that_cannot_be_read(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert migrate.main(["retain", str(tmp_path / "nowhere.yaml")]) == 1
        assert "cannot be read" in capsys.readouterr().err

    def test_a_file_that_cannot_be_written(
        self,
        migration: Callable[..., Migration],
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        it, whole = migration(), Path.open

        def read_only(path: Path, mode: str = "r", **more: Any) -> Any:
            if "w" in mode:
                raise PermissionError(13, "Permission denied", str(path))
            return whole(path, mode, **more)

        monkeypatch.setattr(Path, "open", read_only)
        assert "Permission denied" in self.refused(it, capsys, "retain")


class TestWarnings:
    """The command warns of text that it cannot follow, and of CloudFormation's limits."""

    @pytest.mark.parametrize(
        ("more", "warning"),
        [
            ("  Fn::ForEach::Keys: [Name, [A], {}]\n", "Fn::ForEach::Keys in line 11 is not followed"),
            (
                "Outputs: {A: {Value: {Fn::Transform: {Name: AWS::Include}}}}\n",
                "Fn::Transform in line 11 is not followed",
            ),
            (
                "Outputs: {A: {Value: !Transform {Name: AWS::Include}}}\n",
                "Fn::Transform in line 11 is not followed",
            ),
            (
                "Transform: AWS::Serverless-2016-10-31\n",
                "The transform AWS::Serverless-2016-10-31 may make resources",
            ),
            ("Transform: [A, {Name: AWS::Include}]\n", "The transform AWS::Include may make resources"),
            ("  Nested: {Type: AWS::CloudFormation::Stack}\n", "Nested is a nested stack"),
            (
                "".join(f"  T{i}: {{Type: AWS::SNS::Topic}}\n" for i in range(500)),
                "has 501 resources, and CloudFormation takes 500",
            ),
            (f"# {'long ' * 10_400}\n", "above 51,200 it has to come from S3"),
            (f"# {'long ' * 204_000}\n", "CloudFormation takes 1 MB"),
        ],
    )
    def test_warned(
        self, migration: Callable[..., Migration], capsys: pytest.CaptureFixture[str], more: str, warning: str
    ) -> None:
        it = migration(template(more))
        it.changed("retain")
        assert warning in capsys.readouterr().err

    def test_a_deployed_resource_that_is_not_here(
        self, migration: Callable[..., Migration], capsys: pytest.CaptureFixture[str]
    ) -> None:
        it = migration(template())
        it.changed("retain")
        it.deploy(it.text + "  Bob: {Type: AWS::ApiGateway::UsagePlanKey}\n")
        assert it.run("replace") == 0
        assert "Bob is deployed and not here" in capsys.readouterr().err

    def test_a_trigger_that_is_a_parameter(
        self, migration: Callable[..., Migration], capsys: pytest.CaptureFixture[str]
    ) -> None:
        it = migration(template())
        it.changed("retain")
        it.changed("replace")
        it.write(it.text.replace("OnExisting: Take", "OnExisting: Take\n      VerifyTrigger: !Ref Trigger"))
        it.deploy()
        assert it.changed("take") == []
        assert "VerifyTrigger of AliceInPlan is a function" in capsys.readouterr().err


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
    assert aws.outputs("many") == {"First": ids["Customer0InPlan"], "Last": ids[f"Customer{KEYS - 1}InPlan"]}

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
