"""Explores each search's world; prints the numbers, and each broken promise with its shortest plays."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from tests.function import BrokenError

from .cloudformation import check, check_at_rest, deploy, interrupted, is_quiet, settle, steps
from .searches import SEARCHES, Search
from .world import Choices, World, every, quiet

#: Plays to print for each broken promise.
PLAYS: Final = 4


@dataclass
class Found:
    """What a search has seen."""

    runs: int = 0  # How often something happened: an invocation of the function, or an event beside it
    states: int = 0
    complete: bool = True
    wrong: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """The plays for each broken promise, short first."""
    seconds: float = 0.0


def explore(name: str, most: float = math.inf, surprises: float = math.inf, *, first: bool = False) -> Found:
    """Play all orders of a search's events, the short ones first.

    Args:
        name: The search's.
        most: It ends after so many runs.
        surprises: In each play, if the search allows more.
        first: It ends at the first broken promise.
    """
    search, began, found = SEARCHES[name], time.monotonic(), Found()
    pairs = [("k", plan) for plan in search.outside]
    with quiet():
        start = begun(search)
        start.may["surprises"] = min(start.may["surprises"], surprises)
        seen, rested, todo = {start.key()}, set[bytes](), deque([start])
        while todo and found.runs < most and not (first and found.wrong):
            world = todo.popleft()
            for step in steps(world, search.templates, pairs):
                run = partial(_after, world, step, interrupted(search.templates, pairs))
                for after, broken in every(run):
                    found.runs += 1
                    if broken:
                        found.wrong[broken].append("; ".join(after.story))
                    elif (key := after.key()) not in seen:
                        seen.add(key)
                        todo.append(after)
            at_rest = World(world)
            at_rest.may = {}
            if is_quiet(world) and (key := at_rest.key()) not in rested:
                rested.add(key)
                try:
                    check_at_rest(at_rest)
                except BrokenError as error:
                    found.wrong[str(error)].append("; ".join(at_rest.story))
    found.states, found.complete, found.seconds = len(seen), not todo, time.monotonic() - began
    return found


def begun(search: Search) -> World:
    """The state in which a search begins."""
    world = World()
    for name, template in search.start.items():
        deploy(world, name, template)
        settle(world)
        world.sleep(200)
    world.may, world.story = dict(search.may), ()
    return world


def _after(
    before: World, step: Callable[[World], None], meanwhile: Callable[[World], None], choices: Choices
) -> tuple[World, str]:
    """Give back the state after a step, and the promise that it has broken."""
    after = World(before, choices)
    after.meanwhile = meanwhile
    try:
        step(after)
        check(after)
    except BrokenError as error:
        return after, str(error)
    return after, ""


def main() -> int:
    """Run the searches; 0 if no promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("searches", nargs="*", help=", ".join(SEARCHES))
    parser.add_argument("--runs", type=float, default=200_000, help="of each search, at most")
    parser.add_argument(
        "--surprises", type=float, default=math.inf, help="in each play, fewer than the search allows"
    )
    asked = parser.parse_args()
    names = asked.searches or [*SEARCHES]
    print(f"{'search':<22} {'runs':>9} {'states':>8} {'seconds':>8}  complete  broken promises")
    wrong = 0
    with ProcessPoolExecutor() as pool:
        results = pool.map(partial(explore, most=asked.runs, surprises=asked.surprises), names)
        for name, found in zip(names, results, strict=True):
            complete = "yes" if found.complete else "no"
            numbers = f"{found.runs:>9} {found.states:>8} {found.seconds:>8.0f}"
            print(f"{name:<22} {numbers}  {complete:<8}  {len(found.wrong)}", flush=True)
            for what, plays in found.wrong.items():
                print("\n        ".join([f"    {what} ({len(plays)} plays)", *plays[:PLAYS]]), flush=True)
            wrong += len(found.wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
