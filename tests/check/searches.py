"""The small worlds: what may happen in each, and how often."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from .cloudformation import Props, Template


class Search(NamedTuple):
    """A small world.

    Attributes:
        start: Deployed before it begins, by stack.
        templates: What each stack may deploy.
        may: How often something may happen; `surprises` for all but deployments together, two by default.
        outside: The plans that somebody else attaches the key to, or detaches it from.
    """

    start: Mapping[str, Template]
    templates: Mapping[str, tuple[Template, ...]]
    may: Mapping[str, int]
    outside: str = ""


def _a(plan: str, on_existing: str = "Fail", trigger: str = "") -> Template:
    return {"A": Props(plan, on_existing, trigger)}


_BESIDE: Final = {"B": Props("o")}
_X1: Final = {"deploys of X": 1}
_X2: Final = {"deploys of X": 2}
_OUTSIDER: Final = {"attaches": 1, "detaches": 1}
_TWO: Final = {**_X1, "deploys of Z": 2, "overlaps": 1}
#: In `p` and `q` the key shares a stage, so it cannot be in both; `o` has another one.
SEARCHES: Final[Mapping[str, Search]] = {
    "create": Search(
        {}, {"X": (_a("p"),)}, {**_X1, "faults": 2, "cancels": 1, "attaches": 1, "vanishes": 1}, "p"
    ),
    "create, Adopt": Search(
        {}, {"X": (_a("p", "Adopt"),)}, {**_X1, **_OUTSIDER, "faults": 1, "cancels": 1}, "p"
    ),
    "create, twice": Search(
        {}, {"X": (_a("p"),)}, {**_X1, "faults": 1, "cancels": 1, "twice": 1, "surprises": 1}
    ),
    "create, out of time": Search(
        {}, {"X": ({"A": Props("p", timeout=90)},)}, {**_X1, "faults": 2, "cancels": 1, "attaches": 1}, "p"
    ),
    "verify": Search(
        {"X": _a("p")},
        {"X": (_a("p", trigger="again"),)},
        {**_X1, **_OUTSIDER, "faults": 1, "cancels": 1},
        "p",
    ),
    "delete": Search(
        {"X": _a("p")}, {"X": ({},)}, {**_X1, **_OUTSIDER, "faults": 2, "later": 1, "misdated": 1}, "p"
    ),
    "delete, twice": Search(
        {"X": _a("p")}, {"X": ({},)}, {**_X1, "faults": 1, "later": 1, "twice": 1, "surprises": 1}
    ),
    "move": Search(
        {"X": _a("q")}, {"X": (_a("p"),)}, {**_X1, "faults": 2, "cancels": 1, "later": 1, "vanishes": 1}
    ),
    "move, outsider": Search(
        {"X": _a("q")}, {"X": (_a("p"),)}, {**_X1, **_OUTSIDER, "faults": 1, "cancels": 1}, "pq"
    ),
    "move, twice": Search(
        {"X": _a("q")}, {"X": (_a("p"),)}, {**_X1, "faults": 1, "cancels": 1, "twice": 1, "surprises": 1}
    ),
    "move, out of time": Search(
        {"X": _a("q")}, {"X": ({"A": Props("p", timeout=90)},)}, {**_X1, "faults": 2, "later": 1}
    ),
    "move and back": Search({"X": _a("q")}, {"X": (_a("p"), _a("q"))}, {**_X2, "faults": 1, "cancels": 1}),
    "take and move": Search(
        {},
        {"X": (_a("q", "Take"), _a("p", "Take"))},
        {**_X2, "attaches": 1, "faults": 1, "cancels": 1, "later": 1},
        "q",
    ),
    "replace": Search(
        {"X": _a("o")}, {"X": (_a("p"),)}, {**_X1, "faults": 1, "cancels": 1, "later": 1, "vanishes": 1}
    ),
    "replace and back": Search(
        {"X": _a("o")}, {"X": (_a("p"), _a("o", "Adopt"))}, {**_X2, "faults": 1, "cancels": 1, "later": 1}
    ),
    "retain": Search(
        {"X": {"A": Props("p", retain=True), **_BESIDE}},
        {"X": (_BESIDE, {"A": Props("p"), **_BESIDE})},
        {**_X2, "faults": 1, "cancels": 1},
    ),
    "rename": Search(
        {"X": _a("p")},
        {"X": ({"B": Props("p")},)},
        {**_X1, "faults": 1, "cancels": 1, "later": 1, "attaches": 1},
        "p",
    ),
    "rename, elsewhere": Search({"X": _a("p")}, {"X": (_BESIDE,)}, {**_X1, "faults": 2, "cancels": 1}),
    "shift": Search(
        {"X": {"A": Props("p"), **_BESIDE}}, {"X": (_a("o"),)}, {**_X1, "faults": 1, "cancels": 1, "later": 1}
    ),
    "swap": Search(
        {"X": {"A": Props("p"), **_BESIDE}},
        {"X": ({"A": Props("o"), "B": Props("p")},)},
        {**_X1, "faults": 1, "cancels": 1},
    ),
    "two stacks": Search({}, {"X": (_a("p"),), "Z": (_a("p", "Take"), {})}, {**_TWO, "faults": 1}),
    "two stacks, refused": Search(
        {},
        {"X": (_a("p"),), "Z": (_a("p", "Take"), {})},
        {**_TWO, "faults of API Gateway": 1, "overlaps": 2, "surprises": 3},
    ),
    "two stacks, later": Search(
        {"X": _a("p")}, {"X": ({},), "Z": (_a("p", "Adopt"), {})}, {**_TWO, "later": 1, "faults": 1}
    ),
    "move, joined": Search(
        {"X": _a("q")},
        {"X": (_a("p"),), "Z": (_a("p", "Adopt"), {})},
        {**_TWO, "deploys of Z": 1, "cancels": 1},
    ),
    "move, met": Search({"X": _a("q")}, {"X": (_a("p"),), "Z": (_a("p", "Take"), {})}, {**_TWO, "faults": 1}),
    "given up": Search(
        {"X": _a("p")},
        {"X": ({},)},
        {**_X1, "denied delete_usage_plan_key": 1, "detaches": 1, "repairs": 1, "surprises": 3},
        "p",
    ),
    "deadly": Search({}, {"X": (_a("p"),)}, {**_X1, "deadly deliver": 1}),
}
