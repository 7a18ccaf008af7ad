"""Pinned packages go into the artifact, two builds have the same bytes, and SECURITY.md is true."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from time import localtime

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
HANDLER = ROOT / "handler"
WHEELS = Path(sys.prefix) / "wheels"
#: Markers apply to Lambda.
LAMBDA = {"python_version": "3.13", "python_full_version": "3.13.0", "extra": ""}


def build(
    path: Path, wheels: Path = WHEELS, umask: int = 0o022, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Build as `make build` does: with Lambda's Python if this machine has it, else without byte code."""
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels.as_uri()}  # pip splits it at spaces
    offline["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    make = ["make", "-C", str(HANDLER), "build-UsagePlanKeyFunction", f"ARTIFACTS_DIR={path}"]
    given = {**os.environ, **offline, **environment}
    return subprocess.run(make, env=given, umask=umask, check=False, capture_output=True, text=True)


def pinned(file: str) -> dict[str, Requirement]:
    """The requirements of a file, by name, without their hashes."""
    lines = (HANDLER / file).read_text().splitlines()
    found = [Requirement(line.partition(" --hash")[0]) for line in lines if not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def test_the_hashed_packages_are_the_pinned_ones() -> None:
    """`make -C handler hashes` writes the one from the other."""
    assert {name: str(it.specifier) for name, it in pinned("requirements-hashed.txt").items()} == {
        name: str(it.specifier) for name, it in pinned("requirements.txt").items()
    }


def test_every_package_is_pinned_that_a_package_needs(artifact: Path) -> None:
    versions = {canonicalize_name(it.name): it.version for it in distributions(path=[str(artifact)])}
    needed = [Requirement(line) for it in distributions(path=[str(artifact)]) for line in it.requires or ()]
    needed = [it for it in needed if it.marker is None or it.marker.evaluate(LAMBDA)]
    assert needed
    assert [
        str(it) for it in needed if not it.specifier.contains(versions.get(canonicalize_name(it.name), "0"))
    ] == []


def test_a_package_of_other_bytes_is_not_built_in(tmp_path: Path) -> None:
    """Any index may serve it, under the same name and version."""
    wheels = tmp_path / "wheels"
    shutil.copytree(WHEELS, wheels)
    (forged,) = wheels.glob("six-*.whl")
    with forged.open("ab") as file:
        file.write(b"\0")
    done = build(tmp_path / "artifact", wheels)
    assert done.returncode
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert "six" in done.stderr.partition("DO NOT MATCH THE HASHES")[2]


def test_two_builds_have_the_same_bytes(tmp_path: Path) -> None:
    """In folders of different depth, under different umasks and hash seeds, one after the other."""
    first, second = tmp_path / "a", tmp_path / "deep" / "er" / "b"
    for path, umask, seed in ((first, 0o022, "0"), (second, 0o077, "7")):
        done = build(path, umask=umask, PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
    one, other = contents(first), contents(second)
    assert one
    assert {path for path in one.keys() | other.keys() if one.get(path) != other.get(path)} == set()


def contents(folder: Path) -> dict[str, tuple[int, tuple[int, ...], str]]:
    """All that a zip holds of a folder: each path's mode, its local time, and its bytes, if it is a file."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mode,
            tuple(localtime(path.stat().st_mtime)),
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in sorted(folder.rglob("*"))
    }


def test_each_file_and_test_that_security_md_names_exists() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    files = re.findall(r"`((?:handler/|tests/|template)[\w/.]+)`", text)
    tests = re.findall(r"`(test_\w+)`", text)
    assert files
    assert [file for file in files if not (ROOT / file).exists()] == []
    sources = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    assert tests
    assert [
        test
        for test in tests
        if f"def {test}(" not in sources and not (ROOT / "tests" / f"{test}.py").exists()
    ] == []
