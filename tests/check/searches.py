"""The small worlds: what may happen in each, and how often."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from .cloudformation import Props, Template, Templates


class Search(NamedTuple):
    """A small world."""

    start: Mapping[str, Template]  # Deployed before it begins, by stack
    templates: Templates
    may: Mapping[str, float]
    """How often something may happen; `surprises` for all but deployments together, two by default."""
    outside: str  # The plans that somebody else attaches the key to, or detaches it from


#: name | the plans of somebody else | what is deployed before | what each stack may deploy, and how often |
#: what else may happen, once if it says no more. In `p` and `q` the key shares a stage, so it cannot be in
#: both; `o` has another one. `A=p` is resource A with the key in plan p; words behind it are in `WORDS`.
TABLE: Final = """
create              | p  |             | X1 A=p                 | faults*2 cancels attaches vanishes
create, Adopt       | p  |             | X1 A=p Adopt           | faults cancels attaches detaches
create, twice       |    |             | X1 A=p                 | faults cancels twice surprises
create, out of time | p  |             | X1 A=p 90s             | faults*2 cancels attaches
verify              | p  | X A=p       | X1 A=p again           | faults cancels attaches detaches vanishes
delete              | p  | X A=p       | X1                     | faults*2 later misdated attaches detaches
delete, twice       |    | X A=p       | X1                     | faults later twice surprises
move                |    | X A=q       | X1 A=p                 | faults*2 cancels later vanishes
move, outsider      | pq | X A=q       | X1 A=p                 | faults cancels attaches detaches
move, twice         |    | X A=q       | X1 A=p                 | faults cancels twice surprises
move, out of time   |    | X A=q       | X1 A=p 90s             | faults*2 later
move and back       |    | X A=q       | X2 A=p / A=q           | faults cancels
take and move       | q  |             | X2 A=q Take / A=p Take | attaches faults cancels later
replace             |    | X A=o       | X1 A=p                 | faults cancels later vanishes
replace and back    |    | X A=o       | X2 A=p / A=o Adopt     | faults cancels later
retain              |    | X A=p Retain, B=o | X2 B=o / A=p, B=o      | faults cancels
rename              | p  | X A=p       | X1 B=p                 | faults cancels later attaches
rename, elsewhere   |    | X A=p       | X1 B=o                 | faults*2 cancels
shift               |    | X A=p, B=o  | X1 A=o                 | faults cancels later
swap                |    | X A=p, B=o  | X1 A=o, B=p            | faults cancels
two stacks          |    |             | X1 A=p; Z2 A=p Take /  | overlaps faults
two stacks, refused |    |             | X1 A=p; Z2 A=p Take /  | faults-of-API-Gateway overlaps*2 surprises*3
two stacks, later   |    | X A=p       | X1; Z2 A=p Adopt /     | overlaps later faults
move, joined        |    | X A=q       | X1 A=p; Z1 A=p Adopt / | overlaps cancels
move, met           |    | X A=q       | X1 A=p; Z2 A=p Take /  | overlaps faults
given up | p | X A=p | X1 | denied-delete_usage_plan_key detaches repairs surprises*3
deadly              |    |             | X1 A=p                 | deadly-deliver
"""
WORDS: Final[Mapping[str, dict[str, Any]]] = {
    "Adopt": {"on_existing": "Adopt"},
    "Take": {"on_existing": "Take"},
    "again": {"trigger": "again"},
    "90s": {"timeout": 90},
    "Retain": {"retain": True},
}


def _template(text: str) -> Template:
    found = {}
    for named, *words in filter(None, map(str.split, text.split(","))):
        name, _, plan = named.partition("=")
        found[name] = Props(plan)._replace(**ChainMap({}, *(WORDS[word] for word in words)))
    return found


def _search(outside: str, start: str, deploys: str, may: str) -> Search:
    may_happen: dict[str, float] = {"surprises": 2}
    for what, _, count in (word.replace("-", " ").partition("*") for word in may.split()):
        may_happen[what] = int(count or 1)
    templates = {}
    for name, count, texts in ((one[0], one[1], one[2:]) for one in map(str.strip, deploys.split(";"))):
        may_happen[f"deploys of {name}"] = int(count)
        templates[name] = tuple(_template(text) for text in texts.split("/"))
    before = {start[0]: _template(start[1:])} if start else {}
    return Search(before, templates, may_happen, outside)


SEARCHES: Final[Mapping[str, Search]] = {
    name: _search(*about)
    for name, *about in ([cell.strip() for cell in line.split("|")] for line in TABLE.strip().splitlines())
}
