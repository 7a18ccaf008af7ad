"""make release packs the same bytes from the same bytes, and a template that deploys them without a build."""

import hashlib
import importlib.util
import shutil
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cfnlint import api as cfn_lint
from samtranslator.yaml_helper import yaml_parse

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(program: ModuleType, artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = program.release(artifact, tmp_path_factory.mktemp("release"))
    return folder


def functions(template: Path) -> list[dict[str, Any]]:
    parsed = yaml_parse(template.read_text())
    return [it for it in parsed["Resources"].values() if it["Type"] == "AWS::Serverless::Function"]


def test_the_sums_are_those_of_every_file(made: Path) -> None:
    lines = [line.split("  ") for line in (made / "SHA256SUMS").read_text().splitlines()]
    sums = {name: of for of, name in lines}
    files = {path.name: path for path in made.iterdir() if path.name != "SHA256SUMS"}
    assert sums == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    version = yaml_parse((ROOT / "template.yaml").read_text())["Metadata"]["AWS::ServerlessRepo::Application"]
    name = f"usage-plan-key-{version['SemanticVersion']}"
    assert made.name == name
    assert files.keys() == {f"{name}.zip", "template.yaml", "LICENSE", "README.md"}


def test_a_copy_with_other_times_and_modes_has_the_same_bytes(
    program: ModuleType, artifact: Path, made: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy, copy_function=shutil.copyfile)
    for path in copy.rglob("*.py"):
        path.chmod(0o600)
    again = program.release(copy, tmp_path)
    assert (again / "SHA256SUMS").read_bytes() == (made / "SHA256SUMS").read_bytes()


def test_both_functions_have_the_zip_and_each_handler_is_in_it(made: Path) -> None:
    with zipfile.ZipFile(made / f"{made.name}.zip") as zipped:
        names = set(zipped.namelist())
        assert {entry.external_attr >> 16 for entry in zipped.infolist()} == {0o100644}, "Lambda reads it"
    found = functions(made / "template.yaml")
    assert [it["Properties"]["CodeUri"] for it in found] == [f"{made.name}.zip"] * 2
    assert {it["Properties"]["Handler"].rpartition(".")[0].replace(".", "/") + ".py" for it in found} <= names


def test_the_template_is_the_projects_but_for_code_and_build(made: Path) -> None:
    ours, packed = (functions(folder / "template.yaml") for folder in (ROOT, made))
    for mine, theirs in zip(ours, packed, strict=True):
        mine["Properties"]["CodeUri"] = theirs["Properties"]["CodeUri"]
        del mine["Metadata"]["BuildMethod"]
        assert {**mine, "Metadata": mine["Metadata"] or None} == {
            **theirs,
            "Metadata": theirs.get("Metadata"),
        }
    assert cfn_lint.lint((made / "template.yaml").read_text(), regions=["us-east-1"]) == []
