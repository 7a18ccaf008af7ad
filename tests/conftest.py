"""Frees every test from the surroundings' settings, and makes once what many tests use."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import localtime

import pytest
from hypothesis import settings

from emulators import fake, proxy, rules
from emulators.ministack import Aws, packaged, running, unconfigured

ROOT = Path(__file__).parents[1]
Contents = dict[str, tuple[int, tuple[int, ...], str]]

settings.register_profile("unhurried", deadline=None)  # A slow machine must not fail a test.
settings.load_profile("unhurried")


@pytest.fixture(scope="session", autouse=True)
def undisturbed() -> Iterator[None]:
    """Scrub the environment once, before all else, so that a test's subprocesses inherit nothing either."""
    with unconfigured():
        yield


@pytest.fixture(params=rules.SHARED_STAGES, ids=lambda refusal: f"stage conflict {refusal.status}")
def either_conflict(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let API Gateway refuse a second plan for a stage with either code."""
    for world in (fake.ApiGateway, proxy.Proxy):
        monkeypatch.setattr(world, "shared_stage", request.param)


@pytest.fixture(scope="session")
def aws() -> Iterator[Aws]:
    """MiniStack with the function deployed, one for all tests: each makes stacks of its own."""
    with running() as aws:
        template = packaged(ROOT / "template.yaml", aws.upload(ROOT / "handler"))
        deployment = aws.deploy("usage-plan-key", template, **aws.emulated)
        assert deployment.status == "CREATE_COMPLETE", deployment.failures
        yield aws


def build(path: Path, *, wheels: Path | None = None, umask: int = 0o022, **environment: str) -> str:
    """Build the artifact as sam does, from the packages that the set-up has fetched; return a complaint."""
    fetched = (wheels or Path(sys.prefix) / "wheels").as_uri()  # a URI, because pip splits it at spaces
    path_ = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    given = {**os.environ, "PATH": path_, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": fetched, **environment}
    make = ["make", "-C", str(ROOT / "handler"), "build-UsagePlanKeyFunction", f"ARTIFACTS_DIR={path}"]
    done = subprocess.run(make, env=given, umask=umask, check=False, capture_output=True, text=True)
    return done.stderr if done.returncode else ""


def contents(folder: Path) -> Contents:
    """All that a zip holds of a folder: each path's mode, its local time, and its bytes, if it is a file."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mode,
            tuple(localtime(path.stat().st_mtime)),
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Contents]:
    """Build it once for all, in a folder of another depth than theirs; they may write byte code there."""
    path = tmp_path_factory.mktemp("artifact") / "deep" / "er"
    assert not build(path)
    return path, contents(path)


@pytest.fixture(scope="session")
def artifact(built: tuple[Path, Contents]) -> Path:
    return built[0]
