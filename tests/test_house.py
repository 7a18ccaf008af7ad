"""The house: each module stands on a floor, and imports only from the floors below."""

from __future__ import annotations

import ast
import subprocess
import sys
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


def imports(source: Path) -> set[str]:
    named: set[str] = set()
    for node in ast.parse(source.read_text()).body:
        match node:
            case ast.ImportFrom(module=str(module), level=level):
                named.add("." * level + module)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                dots = "." * getattr(node, "level", 0)
                named |= {f"{dots}{name.name}" for name in names}
    return named


def test_a_module_imports_only_from_the_floors_below() -> None:
    below: set[str] = set()
    for floor in FLOORS:
        for module in floor:
            own = {name for name in imports(HANDLER / "usage_plan_key" / f"{module}.py") if name[0] == "."}
            assert own <= below, module
        below |= {f".{module}" for module in floor}
    assert below == {f".{path.stem}" for path in HANDLER.glob("usage_plan_key/[!_]*.py")}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_from_its_own_and_the_named_ones(folder: str) -> None:
    others = FOLDERS.keys() - FOLDERS[folder] - {folder}
    packages = {"usage_plan_key" if other == "handler" else other for other in others}
    for source in (ROOT / folder).rglob("*.py"):
        assert not packages & {name.partition(".")[0] for name in imports(source)}, source


def test_the_core_loads_no_aws_library() -> None:
    core = "from usage_plan_key import redaction, errors, model, request, rules, decide"
    code = f"import sys; {core}; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=HANDLER, text=True).split()
    aws = {"boto3", "botocore", "crhelper", "aws_lambda_powertools", "s3transfer", "urllib3"}
    assert not aws & {name.partition(".")[0] for name in loaded}
