"""The artifact: pinned packages and no others, botocore cut down, the same bytes each time, and light."""

import gzip
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import boto3
import botocore
from botocore.model import ServiceModel
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from prune import OPERATIONS, pruned_model

from .conftest import ROOT, Contents, build, contents
from .test_template import FUNCTION, SERVICES, WATCH, called

HANDLER = ROOT / "handler"
#: Markers apply to Lambda.
LAMBDA = {"python_version": "3.13", "python_full_version": "3.13.0", "extra": ""}


def pinned(file: str) -> dict[str, str]:
    """The versions in a file of requirements, by name, without their hashes."""
    lines = [line for line in (HANDLER / file).read_text().splitlines() if not line.startswith("#")]
    found = [Requirement(line.partition(" --hash")[0]) for line in lines]
    return {canonicalize_name(requirement.name): str(requirement.specifier)[2:] for requirement in found}


def test_the_artifact_has_the_pinned_packages_and_every_package_that_one_needs(artifact: Path) -> None:
    """`make -C handler hashes` writes the hashed ones from the others."""
    there = [*distributions(path=[str(artifact)])]
    versions = {canonicalize_name(it.name): it.version for it in there}
    assert versions == pinned("requirements.txt") == pinned("requirements-hashed.txt")
    needed = [Requirement(line) for it in there for line in it.requires or ()]
    needed = [it for it in needed if it.marker is None or it.marker.evaluate(LAMBDA)]
    assert needed
    assert [
        it for it in needed if not it.specifier.contains(versions.get(canonicalize_name(it.name), "0"))
    ] == []
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


def test_botocore_has_the_called_operations_as_it_describes_them_and_no_more(artifact: Path) -> None:
    """A client would lack a call that is not in prune.py. It needs a service's rules for its endpoints."""
    data = artifact / "botocore" / "data"
    files = {str(path.relative_to(data)) for path in data.rglob("*") if path.is_file()}
    for service, operations in OPERATIONS.items():
        assert {*operations} == {operation.name for _, operation in called(service)}
        (described,) = data.glob(f"{service}/*/service-2.json")
        kept = ("service-2.json", "endpoint-rule-set-1.json.gz")
        files -= {f"{service}/{described.parent.name}/{name}" for name in kept}
        whole = Path(botocore.__file__).parent / "data" / service / described.parent.name
        theirs = ServiceModel(json.loads(gzip.decompress((whole / "service-2.json.gz").read_bytes())))
        text = described.read_text()
        ours = ServiceModel(json.loads(text))
        assert {*ours.operation_names} == {*operations}
        for model in map(ours.operation_model, operations):
            other = theirs.operation_model(model.name)
            assert (model.http, shapes(model)) == (other.http, shapes(other))
        assert not re.search(r'"documentation":"[^"]', text)
        assert text == json.dumps(json.loads(text), separators=(",", ":")), "botocore reads it faster"
    assert {name for name in files if "/" in name} == set()
    partitions = json.loads((data / "endpoints.json").read_text())["partitions"]
    assert {name for partition in partitions for name in partition["services"]} == {*SERVICES}


def shapes(operation: Any) -> Any:
    return [shape(it) for it in (operation.input_shape, operation.output_shape, *operation.error_shapes)]


def shape(of: Any) -> Any:
    """Resolve a shape, as deep as it goes."""
    if of is None or of.type_name not in ("structure", "list", "map"):
        return of and (of.name, of.type_name, of.serialization)
    if of.name == "AttributeValue":
        return of.name, sorted(of.members)  # The shape contains itself.
    match of.type_name:
        case "structure":
            return of.name, of.required_members, {name: shape(member) for name, member in of.members.items()}
        case "list":
            return of.name, of.serialization, shape(of.member)
    return of.name, shape(of.key), shape(of.value)


def test_documentation_goes_and_a_member_of_that_name_stays() -> None:
    refused = {
        "type": "structure",
        "members": {"documentation": {"shape": "Text"}},
        "documentation": "It is.",
    }
    model = {
        "metadata": {"serviceId": "SQS"},
        "operations": {"Send": {"errors": [{"shape": "Refused", "documentation": "Never."}]}, "Other": {}},
        "shapes": {"Refused": refused, "Text": {"type": "string"}, "Unused": {"type": "string"}},
        "documentation": "All about it.",
    }
    assert pruned_model(model, ("Send",)) == {
        "metadata": {"serviceId": "SQS"},
        "operations": {"Send": {"errors": [{"shape": "Refused"}]}},
        "shapes": {
            "Refused": {"type": "structure", "members": {"documentation": {"shape": "Text"}}},
            "Text": {"type": "string"},
        },
        "documentation": "",
    }


def run(artifact: Path, code: str, **environment: str) -> list[str]:
    """Run Python with nothing but the artifact; return the lines that it prints."""
    code = f"import sys; sys.path.append({str(artifact)!r})\n{code}"
    command = [sys.executable, "-I", "-S", "-c", code]
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
    event = json.loads((ROOT / "events" / "create.json").read_text())
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
assert not getattr(parse({event!r}), "faults", None)
roots = {{name.partition(".")[0] for name in sys.modules}}
print(*roots & {{"pydantic", "aws_xray_sdk", "difflib", "unittest", "asyncio"}})
import usage_plan_key.watch
print(usage_plan_key.app.__file__, callable({FUNCTION["Handler"]}), callable({WATCH["Handler"]}))
"""
    place = {"LEDGER_TABLE": "ledger", "QUEUE_URL": "https://sqs/1/requests"}
    said = run(artifact, code, AWS_DEFAULT_REGION="eu-central-1", **place)
    app = str(artifact / "usage_plan_key" / "app.py")
    assert said == ["0 True apigateway dynamodb sqs", "", f"{app} True True"]


def test_each_file_and_test_that_security_md_names_exists() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    sources = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    there = {path.stem for path in (ROOT / "tests").iterdir()}
    there |= {*re.findall(r"(test_\w+)(?:\(| = )", sources)}
    files, tests = (
        re.findall(f"`({it})`", text) for it in (r"(?:handler/|tests/|template)[\w/.]+", r"test_\w+")
    )
    assert files
    assert [file for file in files if not (ROOT / file).exists()] == []
    assert tests
    assert {*tests} - there == set()
