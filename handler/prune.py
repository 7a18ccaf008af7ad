"""Cuts botocore's descriptions of AWS down to what the function calls: python prune.py ARTIFACT (see Makefile).

botocore reads, each time a client is made, where every service of every region is, and each operation of the
service with its
documentation: 1.3 MB of JSON for `apigateway`, of which 25 KB are of use here. What remains is botocore's own
    text, unchanged.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

#: What is called. A test holds it against the code, and a client has no method for anything else.
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
    "sqs": ("ChangeMessageVisibility", "SendMessage"),
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
    # The regions and the names of each partition stay: they tell in which one a region is.
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
    """Without documentation, which is a text; a member of that name, which would be an object, stays."""
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
