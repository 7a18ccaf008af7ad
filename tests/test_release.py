"""make release packs the same bytes from the same bytes, and a template that deploys them without a build."""

import hashlib
import runpy
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from samtranslator.yaml_helper import yaml_parse

from .conftest import ROOT

release = runpy.run_path(str(ROOT / ".ci" / "release.py"))["release"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of the handler, which is enough of an artifact."""
    folder: Path = release(ROOT / "handler", tmp_path_factory.mktemp("release"))
    return folder


def test_the_sums_are_those_of_every_file(made: Path) -> None:
    lines = [line.split("  ") for line in (made / "SHA256SUMS").read_text().splitlines()]
    files = {path.name: path for path in made.iterdir() if path.name != "SHA256SUMS"}
    assert lines == sorted(
        ([hashlib.sha256(path.read_bytes()).hexdigest(), name] for name, path in files.items()),
        key=lambda line: line[1],
    )
    about = yaml_parse((ROOT / "template.yaml").read_text())["Metadata"]["AWS::ServerlessRepo::Application"]
    assert made.name == f"usage-plan-key-{about['SemanticVersion']}"
    assert files.keys() == {f"{made.name}.zip", "template.yaml", about["LicenseUrl"], about["ReadmeUrl"]}
    for name in (about["LicenseUrl"], about["ReadmeUrl"]):
        assert files[name].read_bytes() == (ROOT / name).read_bytes()


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
        names = zipped.namelist()
    ours, packed = (yaml_parse((folder / "template.yaml").read_text()) for folder in (ROOT, made))
    for name in ("UsagePlanKeyFunction", "WatchFunction"):
        function: dict[str, Any] = ours["Resources"][name]
        function["Properties"]["CodeUri"] = f"{made.name}.zip"
        del function["Metadata"]["BuildMethod"]
        assert function["Properties"]["Handler"].rpartition(".")[0].replace(".", "/") + ".py" in names
    assert packed == ours
