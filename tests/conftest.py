"""Frees every test from the surroundings' AWS, proxy and certificate settings."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from emulators import fake, proxy, rules

settings.register_profile("unhurried", deadline=None)  # A slow machine must not fail a test.
settings.load_profile("unhurried")

FOREIGN = re.compile(r"AWS_.*|.*_PROXY|.*CA_BUNDLE|.*SSL_CERT_(FILE|DIR)", re.IGNORECASE)


@pytest.fixture(scope="session", autouse=True)
def undisturbed() -> Iterator[None]:
    """Scrub the environment once, before all else, so that a test's subprocesses inherit nothing either."""
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if FOREIGN.fullmatch(name)]:
            environment.delenv(name)
        # Settings in somebody's home directory do not count either.
        environment.setenv("AWS_CONFIG_FILE", os.devnull)
        environment.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture(params=rules.SHARED_STAGES, ids=lambda refusal: f"stage conflict {refusal.status}")
def either_conflict(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let API Gateway refuse a second plan for a stage with either code."""
    for world in (fake.ApiGateway, proxy.Present):
        monkeypatch.setattr(world, "shared_stage", request.param)


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the artifact with the project's own step, from the packages that the set-up has fetched."""
    path = tmp_path_factory.mktemp("artifact")
    handler = Path(__file__).parents[1] / "handler"
    build = [
        "make",
        "-C",
        str(handler),
        "build-UsagePlanKeyFunction",
        f"ARTIFACTS_DIR={path}",
        f"PYTHON={sys.executable}",
    ]
    # A URI, because pip splits the value at spaces.
    wheels = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": (Path(sys.prefix) / "wheels").as_uri()}
    subprocess.run(build, env={**os.environ, **wheels}, check=True, capture_output=True)
    return path
