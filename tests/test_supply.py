"""The artifact: pinned packages and no others, botocore cut down, the same bytes each time. Its release."""

import gzip
import hashlib
import json
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import boto3
import botocore
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from samtranslator.yaml_helper import yaml_parse

from prune import OPERATIONS

from .answers import EVENTS
from .conftest import ROOT, Contents, build, contents
from .test_template import FUNCTION, SERVICES, TEMPLATE, WATCH, called

HANDLER = ROOT / "handler"
#: Markers apply to Lambda.
LAMBDA = {"python_version": "3.13", "python_full_version": "3.13.0", "extra": ""}


def pinned(file: str) -> dict[str, str]:
    """The versions in a file of requirements, by name, without their hashes."""
    found = re.findall(r"^([\w.-]+)==(\S+)", (HANDLER / file).read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def test_the_artifact_has_the_pinned_packages_and_every_package_that_one_needs(artifact: Path) -> None:
    """`make -C handler hashes` writes the hashed ones from the others."""
    there = [*distributions(path=[str(artifact)])]
    versions = {canonicalize_name(it.name): it.version for it in there}
    assert versions == pinned("requirements.txt") == pinned("requirements-hashed.txt")
    needed = [Requirement(line) for it in there for line in it.requires or ()]
    needed = [it for it in needed if it.marker is None or it.marker.evaluate(LAMBDA)]
    assert needed
    there_not = [it for it in needed if versions.get(canonicalize_name(it.name), "0") not in it.specifier]
    assert there_not == []
    assert not list(artifact.rglob("*.so")), "it would not fit both architectures"


def test_a_package_of_other_bytes_is_not_built_in(tmp_path: Path) -> None:
    """Any index may serve it, under the same name and version."""
    shutil.copytree(Path(sys.prefix) / "wheels", tmp_path / "wheels")
    (forged,) = (tmp_path / "wheels").glob("six-*.whl")
    with forged.open("ab") as file:
        file.write(b"\0")
    complaint = build(tmp_path / "artifact", wheels=tmp_path / "wheels")
    assert "six" in complaint.partition("DO NOT MATCH THE HASHES")[2]


def test_two_builds_have_the_same_bytes(built: tuple[Path, Contents], tmp_path: Path) -> None:
    """In folders of different depth, under different umasks and hash seeds, one after the other."""
    assert not build(tmp_path / "a", umask=0o077, PYTHONHASHSEED="7")
    one, other = built[1], contents(tmp_path / "a")
    assert one
    assert {path for path in one.keys() | other.keys() if one.get(path) != other.get(path)} == set()


def undocumented(part: dict[str, Any]) -> dict[str, Any]:
    return {name: it for name, it in part.items() if name != "documentation" or not isinstance(it, str)}


def test_botocore_has_the_called_operations_as_it_describes_them_and_no_more(artifact: Path) -> None:
    """A client would lack a call that is not in prune.py. It needs a service's rules for its endpoints."""
    data = artifact / "botocore" / "data"
    files = {str(path.relative_to(data)) for path in data.rglob("*") if path.is_file()}
    for service, operations in OPERATIONS.items():
        assert {*operations} == {operation.name for operation in called(service)}
        (described,) = data.glob(f"{service}/*/service-2.json")
        place = described.parent.relative_to(data)
        files -= {f"{place}/service-2.json", f"{place}/endpoint-rule-set-1.json.gz"}
        packed = Path(botocore.__file__).parent / "data" / place / "service-2.json.gz"
        theirs = json.loads(gzip.decompress(packed.read_bytes()), object_hook=undocumented)
        text = described.read_text()
        theirs["operations"] = {name: theirs["operations"][name] for name in operations}
        theirs["shapes"] = {name: theirs["shapes"][name] for name in re.findall(r'"shape":"(\w+)"', text)}
        assert json.loads(text) == theirs | {"documentation": ""}
        assert text == json.dumps(json.loads(text), separators=(",", ":")), "botocore reads it faster"
    assert {name for name in files if "/" in name} == set()
    partitions = json.loads((data / "endpoints.json").read_text())["partitions"]
    assert {name for partition in partitions for name in partition["services"]} == {*SERVICES}


def test_pruning_keeps_the_same_of_a_whole_botocore(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, theirs = tmp_path / "botocore" / "data", Path(botocore.__file__).parent / "data"
    for service in (*OPERATIONS, "sns"):
        shutil.copytree(theirs / service, data / service)
    shutil.copy(theirs / "endpoints.json", data)
    monkeypatch.setattr(sys, "argv", ["prune.py", str(tmp_path)])
    runpy.run_path(str(HANDLER / "prune.py"), run_name="__main__")
    for path in data.rglob("*.json*"):
        assert path.read_bytes() == (artifact / "botocore" / "data" / path.relative_to(data)).read_bytes()


def run(artifact: Path, code: str, **environment: str) -> list[str]:
    """Run Python with nothing but the artifact; return the lines that it prints."""
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(artifact)!r})\n{code}"]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert not done.stderr
    return done.stdout.splitlines()


def test_the_artifact_finds_every_partitions_endpoints(artifact: Path) -> None:
    """One that is newer than this botocore, too."""
    regions = ["eu-central-1", "us-gov-west-1", "cn-north-1", "us-iso-east-1", "eu-central-77"]
    code = f"""
import boto3
keys = dict(aws_access_key_id="x", aws_secret_access_key="y")
for region in {regions!r}:
    print(*(boto3.client(name, region, **keys).meta.endpoint_url for name in {[*SERVICES]!r}))
"""
    client: Any = boto3.client
    whole = [[client(name, region).meta.endpoint_url for name in SERVICES] for region in regions]
    assert [line.split() for line in run(artifact, code)] == whole


def test_init_is_light(artifact: Path) -> None:
    """`make cold` has the figures; this test holds their causes, in counts that no machine changes."""
    code = f"""
import gc, ssl
loaded = []
ssl.SSLContext.load_verify_locations = ssl.SSLContext.load_default_certs = lambda *_, **__: loaded.append(1)
gc.callbacks.append(lambda phase, _: loaded.append(1))
import boto3
made, client = [], boto3.client
boto3.client = lambda service, **more: made.append(service) or client(service, **more)
gc.collect()
loaded.clear()
import usage_plan_key.app
print(len(loaded), gc.isenabled(), *made, *(name for name in sys.modules if name == "usage_plan_key.watch"))
from usage_plan_key.request import parse
assert not getattr(parse({EVENTS["create"]!r}), "faults", None)
roots = {{name.partition(".")[0] for name in sys.modules}}
print(*roots & {{"pydantic", "aws_xray_sdk", "difflib", "unittest", "asyncio"}})
import usage_plan_key.watch
print(usage_plan_key.app.__file__, callable({FUNCTION["Handler"]}), callable({WATCH["Handler"]}))
"""
    place = {"LEDGER_TABLE": "ledger", "QUEUE_URL": "https://sqs/1/requests"}
    said = run(artifact, code, AWS_DEFAULT_REGION="eu-central-1", **place)
    app = str(artifact / "usage_plan_key" / "app.py")
    assert said == ["0 True apigateway dynamodb sqs", "", f"{app} True True"]


#: Whose a licence is; its metadata write it in many ways.
FAMILY = "Apache|BSD|MIT|PSF"


def test_security_md_has_each_package_of_the_artifact_with_its_licence(artifact: Path) -> None:
    """The metadata have it in one of three fields."""
    rows = re.findall(r"^\| (\w.*?) \| (\w.*?) \|$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)[1:]
    told = {name: licence for licence, names in rows for name in re.sub(r" \(.*?\)", "", names).split(", ")}
    there = {canonicalize_name(it.name): it.metadata for it in distributions(path=[str(artifact)])}
    assert told.keys() == there.keys()
    for name, it in there.items():
        said = f"{it['License-Expression']} {it['License']} {it.get_all('Classifier')}"
        assert set(re.findall(FAMILY, told[name])) == set(re.findall(FAMILY, said)), name


def test_each_file_and_test_that_security_md_names_exists() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    sources = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    files = re.findall(r"`((?:handler/|tests/|template)[\w/.]+)`", text)
    tests = re.findall(r"`(test_\w+)`", text)
    assert len(files) > 3 < len(tests)
    assert [file for file in files if not (ROOT / file).exists()] == []
    assert [test for test in tests if not re.search(rf"{test}(?:\(| = )", sources)] == []


# --- The release ---

release = runpy.run_path(str(ROOT / ".ci" / "release.py"))["release"]
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
