"""prune.py removes unused botocore data, here of one service; test_template.py checks the artifact."""

from __future__ import annotations

import gzip
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from prune import OPERATIONS, pruned_model

SCRIPT = Path(__file__).parents[1] / "handler" / "prune.py"
SEND = {
    "input": {"shape": "SendRequest"},
    "errors": [{"shape": "Refused", "documentation": "<p>It is refused.</p>"}],
    "documentation": "<p>Sends.</p>",
}
SHAPES: dict[str, Any] = {
    "SendRequest": {
        "type": "structure",
        "members": {"Tree": {"shape": "Tree", "documentation": "<p>A tree.</p>"}},
    },
    "Tree": {"type": "list", "member": {"shape": "Tree"}},
    "Refused": {"type": "structure", "members": {"documentation": {"shape": "Text"}}},
    "Text": {"type": "string", "enum": ["a", "b"]},
    "Unused": {"type": "structure", "members": {"Text": {"shape": "Text"}}},
}
MODEL = {
    "metadata": {"serviceId": "SQS"},
    "operations": dict.fromkeys((*OPERATIONS["sqs"], "AddPermission"), SEND),
    "shapes": SHAPES,
    "documentation": "<p>All about it.</p>",
}
PLACES: dict[str, Any] = {"endpoints": {"eu-west-1": {}}}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact's `botocore/data`, after prune.py has run as the build runs it."""
    data = tmp_path / "botocore" / "data"
    for version in ("sqs/2009-02-01", "sqs/2012-11-05", "ec2/2016-11-15"):
        folder = data / version
        folder.mkdir(parents=True)
        (folder / "service-2.json.gz").write_bytes(gzip.compress(json.dumps(MODEL).encode()))
        for name in ("endpoint-rule-set-1.json.gz", "examples-1.json", "paginators-1.json", "waiters-2.json"):
            (folder / name).write_text(name)
    services = dict.fromkeys(("sqs", "ec2"), PLACES)
    (data / "endpoints.json").write_text(
        json.dumps({"partitions": [{"partition": "aws", "services": services}]})
    )
    (data / "partitions.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return data


def test_the_newest_version_of_each_service_that_is_called_stays_and_its_rules(data: Path) -> None:
    files = {str(path.relative_to(data)) for path in data.rglob("*") if path.is_file()}
    described = {"sqs/2012-11-05/service-2.json", "sqs/2012-11-05/endpoint-rule-set-1.json.gz"}
    assert files == {*described, "endpoints.json", "partitions.json"}
    assert [path.name for path in data.iterdir() if path.is_dir()] == ["sqs"]


def test_the_operations_that_are_called_stay_in_a_file_that_botocore_reads_faster(data: Path) -> None:
    text = (data / "sqs" / "2012-11-05" / "service-2.json").read_text()
    assert tuple(json.loads(text)["operations"]) == OPERATIONS["sqs"]
    assert " " not in text


def test_endpoints_of_other_services_go_and_the_partition_stays(data: Path) -> None:
    (partition,) = json.loads((data / "endpoints.json").read_text())["partitions"]
    assert partition == {"partition": "aws", "services": {"sqs": PLACES}}


def test_the_shapes_that_an_operation_leads_to_stay_one_that_holds_itself_too() -> None:
    kept = pruned_model(MODEL, OPERATIONS["sqs"])["shapes"]
    assert set(kept) == {"SendRequest", "Tree", "Refused", "Text"}
    assert kept["Text"] == SHAPES["Text"]


def test_documentation_goes_and_a_member_of_that_name_stays() -> None:
    pruned = pruned_model(MODEL, OPERATIONS["sqs"])
    assert (pruned["metadata"], pruned["documentation"]) == (MODEL["metadata"], "")
    assert pruned["operations"]["SendMessage"] == {
        "input": {"shape": "SendRequest"},
        "errors": [{"shape": "Refused"}],
    }
    assert pruned["shapes"]["SendRequest"]["members"] == {"Tree": {"shape": "Tree"}}
    assert pruned["shapes"]["Refused"] == SHAPES["Refused"]
