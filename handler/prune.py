"""Cuts botocore's descriptions of AWS down to the function's calls: python prune.py ARTIFACT (see Makefile).

For each client botocore reads the endpoints of every service in every region, and every operation of the
client's service with its documentation: 1.3 MB of JSON for `apigateway`. The function needs 28 KB of them.
The remaining text is botocore's own, unchanged.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

#: The function's calls. A test compares them with the code, and a client has no other methods.
OPERATIONS: Final = {
    "apigateway": (
        "CreateUsagePlanKey",
        "DeleteUsagePlanKey",
        "GetUsagePlan",
        "GetUsagePlanKey",
        "GetUsagePlanKeys",
        "GetUsagePlans",
    ),
    "cloudformation": ("DescribeStacks",),
    "dynamodb": ("Scan", "TransactGetItems", "TransactWriteItems"),
    "sqs": ("ChangeMessageVisibilityBatch", "SendMessage"),
}


def prune(data: Path) -> None:
    """Prune `botocore/data`."""
    for service in filter(Path.is_dir, data.iterdir()):
        if service.name not in OPERATIONS:
            shutil.rmtree(service)
            continue
        *former, version = sorted(service.iterdir())
        for folder in former:
            shutil.rmtree(folder)
        for unused in [
            *version.glob("examples-*"),
            *version.glob("paginators-*"),
            *version.glob("waiters-*"),
        ]:
            unused.unlink()
        described = version / "service-2.json.gz"
        model = json.loads(gzip.decompress(described.read_bytes()))
        described.unlink()
        _write(version / "service-2.json", pruned_model(model, OPERATIONS[service.name]))
    # Each partition keeps its regions and its names: botocore finds a region's partition by them.
    endpoints = json.loads((data / "endpoints.json").read_text())
    for partition in endpoints["partitions"]:
        partition["services"] = {
            name: places for name, places in partition["services"].items() if name in OPERATIONS
        }
    _write(data / "endpoints.json", endpoints)


def pruned_model(model: dict[str, Any], operations: tuple[str, ...]) -> dict[str, Any]:
    """Keep these operations and the shapes that they lead to, without documentation."""
    kept = {name: model["operations"][name] for name in operations}
    shapes: dict[str, Any] = {}
    named = [*_shapes_named_in(kept)]
    while named:
        name = named.pop()
        if name not in shapes:
            shapes[name] = model["shapes"][name]
            named += _shapes_named_in(shapes[name])
    return {**model, "operations": _undocumented(kept), "shapes": _undocumented(shapes), "documentation": ""}


def _shapes_named_in(part: Any) -> Iterator[str]:
    if isinstance(part, dict) and isinstance(part.get("shape"), str):
        yield part["shape"]
    for inner in _inside(part):
        yield from _shapes_named_in(inner)


def _undocumented(part: Any) -> Any:
    """Drop documentation if it is a text; a shape's member of that name is an object, and stays."""
    if isinstance(part, dict):
        return {
            name: _undocumented(inner)
            for name, inner in part.items()
            if name != "documentation" or not isinstance(inner, str)
        }
    return [_undocumented(inner) for inner in part] if isinstance(part, list) else part


def _inside(part: Any) -> Iterable[Any]:
    if isinstance(part, dict):
        return part.values()
    return part if isinstance(part, list) else ()


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")))


if __name__ == "__main__":
    prune(Path(sys.argv[1], "botocore", "data"))
