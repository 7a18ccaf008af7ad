"""The house: each module stands on a floor, and imports only from the floors below."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HANDLER = ROOT / "handler"
FLOORS = [
    {"redaction", "metrics"},
    {"errors"},
    {"model"},
    {"request", "retry"},
    {"rules", "ledger", "api_gateway", "queue", "cloudformation", "response"},
    {"decide", "custom_resource"},
    {"service"},
    {"provider"},
    {"app", "watch"},
]
#: A folder, and those that it may import from.
FOLDERS = {
    "handler": set[str](),
    "emulators": set[str](),
    "tools": set[str](),
    "examples": {"emulators", "handler"},  # cdk-python has a usage_plan_key.py of its own
    "benchmarks": {"emulators", "handler"},
    "acceptance": {"emulators"},
    "tests": {"acceptance", "benchmarks", "emulators", "examples", "handler", "tools"},
}


def imports(source: Path) -> Iterator[str]:
    """Name the modules that a file imports when Python loads it."""
    for node in ast.parse(source.read_text()).body:
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=None, names=names):
                yield from ("." + name.name for name in names)
            case ast.ImportFrom(module=str(module), level=level):
                yield "." * level + module


def test_each_module_has_a_floor() -> None:
    modules = {path.stem for path in (HANDLER / "usage_plan_key").glob("*.py")} - {"__init__"}
    assert (set.union(*FLOORS), sum(map(len, FLOORS))) == (modules, len(modules))


@pytest.mark.parametrize("floor", range(len(FLOORS)))
def test_a_module_imports_only_from_the_floors_below(floor: int) -> None:
    below = {f".{module}" for module in set().union(*FLOORS[:floor])}
    for module in FLOORS[floor]:
        own = {name for name in imports(HANDLER / "usage_plan_key" / f"{module}.py") if name.startswith(".")}
        assert own <= below, module


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_from_its_own_and_the_named_ones(folder: str) -> None:
    others = FOLDERS.keys() - FOLDERS[folder] - {folder}
    packages = {"usage_plan_key" if other == "handler" else other for other in others}
    for source in (ROOT / folder).rglob("*.py"):
        assert not packages & {name.partition(".")[0] for name in imports(source)}, source


def test_the_core_loads_no_aws_library() -> None:
    core = {
        f"usage_plan_key.{module}"
        for module in ("redaction", "errors", "model", "request", "rules", "decide")
    }
    code = f"import sys, {', '.join(core)}; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=HANDLER, text=True).split()
    assert core <= {*loaded}
    aws = {"boto3", "botocore", "crhelper", "aws_lambda_powertools", "s3transfer", "urllib3"}
    assert not aws & {name.partition(".")[0] for name in loaded}
