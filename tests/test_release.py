"""make release packs the same bytes from the same bytes, and a template that deploys them without a build."""

import hashlib
import runpy
import shutil
import zipfile
from pathlib import Path

import pytest
from samtranslator.yaml_helper import yaml_parse

from .conftest import ROOT

release = runpy.run_path(str(ROOT / ".ci" / "release.py"))["release"]
TEMPLATE = yaml_parse((ROOT / "template.yaml").read_text())
ABOUT = TEMPLATE["Metadata"]["AWS::ServerlessRepo::Application"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of the handler, which is enough of an artifact."""
    folder: Path = release(ROOT / "handler", tmp_path_factory.mktemp("release"))
    return folder


def test_the_sums_are_those_of_every_file(made: Path) -> None:
    assert made.name == f"usage-plan-key-{ABOUT['SemanticVersion']}"
    names = sorted([f"{made.name}.zip", "template.yaml", ABOUT["LicenseUrl"], ABOUT["ReadmeUrl"]])
    assert sorted(path.name for path in made.iterdir()) == sorted([*names, "SHA256SUMS"])
    sums = [f"{hashlib.sha256((made / name).read_bytes()).hexdigest()}  {name}" for name in names]
    assert (made / "SHA256SUMS").read_text().splitlines() == sums


def test_a_copy_with_other_times_and_modes_has_the_same_bytes(made: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "handler", tmp_path / "copy", copy_function=shutil.copyfile)
    for path in (tmp_path / "copy").rglob("*.py"):
        path.chmod(0o600)
    again = release(tmp_path / "copy", tmp_path)
    assert (again / "SHA256SUMS").read_bytes() == (made / "SHA256SUMS").read_bytes()


def test_the_template_is_the_projects_but_for_code_and_build(made: Path) -> None:
    """Both functions have the zip, which Lambda can read, and each handler is in it."""
    with zipfile.ZipFile(made / f"{made.name}.zip") as zipped:
        for entry in zipped.infolist():
            assert zipped.read(entry) == (ROOT / "handler" / entry.filename).read_bytes()
            assert (entry.external_attr >> 16, entry.compress_type) == (0o100644, zipfile.ZIP_DEFLATED)
    packed = yaml_parse((made / "template.yaml").read_text())
    for name in ("UsagePlanKeyFunction", "WatchFunction"):
        function = packed["Resources"][name]
        assert function["Properties"]["CodeUri"] == f"{made.name}.zip"
        module = function["Properties"]["Handler"].removesuffix(".handler").replace(".", "/")
        assert f"{module}.py" in zipped.namelist()
        function["Properties"]["CodeUri"] = "handler/"
        function["Metadata"]["BuildMethod"] = "makefile"
    assert packed == TEMPLATE
