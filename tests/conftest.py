"""What every test begins with: no setting of AWS's, of a proxy's or of a certificate's that the surroundings happen to have."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from .aws import fake, proxy, rules

settings.register_profile("unhurried", deadline=None)  # A busy machine is no failure.
settings.load_profile("unhurried")

FOREIGN = re.compile(r"AWS_.*|.*_PROXY|.*CA_BUNDLE|.*SSL_CERT_(FILE|DIR)", re.IGNORECASE)


@pytest.fixture(scope="session", autouse=True)
def undisturbed() -> Iterator[None]:
    """Scrub the environment, once and before all else, so that what a test starts inherits nothing either."""
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if FOREIGN.fullmatch(name)]:
            environment.delenv(name)
        # Nor what stands in somebody's home directory.
        environment.setenv("AWS_CONFIG_FILE", os.devnull)
        environment.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture(params=rules.SHARED_STAGES, ids=lambda refusal: f"stage conflict {refusal.status}")
def either_conflict(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """API Gateway refuses a second plan for a stage in the one way or the other."""
    for world in (fake.ApiGateway, proxy.Present):
        monkeypatch.setattr(world, "shared_stage", request.param)


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What AWS gets, built by the project's own step from the packages that the set-up has fetched."""
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
    wheels = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": (Path(sys.prefix) / "wheels").as_uri(),
    }  # pip splits it at spaces
    subprocess.run(build, env={**os.environ, **wheels}, check=True, capture_output=True)
    return path
