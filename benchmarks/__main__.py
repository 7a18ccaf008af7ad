"""Runs everything and prints the table; `make benchmark` calls it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final
from unittest import mock

from usage_plan_key import retry

from . import policies, storms
from .model import DOOR, Account
from .plot import svg
from .storms import Poisoned, Storm
from .waves import Result, wave

PLOT: Final = Path(__file__).with_name("waves.svg")
#: Stacks in which one key id is wrong, each in another order.
ROLLBACKS: Final = 1000
#: Stacks whose functions die.
DEATHS: Final = 50
#: The back-off's two figures where there is no queue: what stands in retry.py is among them.
CAPS: Final = ((0.5, 10.0), (0.5, 20.0), (0.5, 40.0), (0.5, 60.0), (5.0, 20.0), (5.0, 40.0), (5.0, 60.0), (5.0, 120.0))

WAVES: Final = (
    ("Create", 18, 1),
    ("Create", 100, 1),
    ("Create", 500, 1),
    ("Create", 2000, 4),
    ("Create", 10000, 20),
    ("Delete", 500, 1),
    ("Delete", 2000, 4),
    ("Update", 500, 1),
    ("Update", 2000, 4),
)
VERBS: Final = {"Create": "create", "Delete": "delete", "Update": "move"}


def queued(kind: str, keys: int, stacks: int, seed: int) -> Result:
    """A wave through the queue."""
    title = f"{VERBS[kind]} {keys}" + (f" in {stacks} stacks" if stacks > 1 else "")
    return wave(kind, keys, stacks, Account(seed), title)


def where_it_arrives(first: float, last: float, keys: int, seed: int) -> Result:
    """A wave without a queue, with this back-off."""
    with mock.patch.multiple(retry, CROWD_CAPS=(first, last)):
        return wave("Create", keys, 1, Account(seed, queue=False), f"back-off {first:g} to {last:g} s")


def rollbacks(seeds: range) -> list[Storm]:
    """Small stacks, each rolled back in an order of its own; in every other one the queue mixes stacks in a batch."""
    return [storms.rollback(3 + seed % 10, Account(seed, mixing=bool(seed % 2))) for seed in seeds]


def update_rollbacks(seeds: range) -> list[Storm]:
    """The same with updates: keys that are moved to another plan for the same stage, and back."""
    return [storms.update_rollback(3 + seed % 8, Account(seed, mixing=bool(seed % 2))) for seed in seeds]


def rollback_of_500(wrong: int, seed: int) -> Storm:
    """A whole stack."""
    return storms.rollback(500, Account(seed), before=0.0, late=0.02, twice=0.02, wrong=wrong)


def deaths(seeds: range) -> list[Storm]:
    """Stacks whose functions die, each third of them."""
    return [storms.deaths(60, Account(seed), share=0.3) for seed in seeds]


def poisoned(bad: int, seed: int, *, hang: bool = False) -> Poisoned:
    """Stacks beside one that kills the function."""
    return storms.poison(200, 4, bad, Account(seed, mixing=True), hang=hang)


def row(result: Result, width: int = 26) -> str:
    """A line of the table."""
    return (
        f"{result.name:<{width}} {result.succeeded:>6}/{result.keys:<6} {result.ratio:>6.2f} {result.calls_per_key:>7.2f}"
        f" {result.throttled:>7} {result.busy:>6} {result.served:>6}/{result.asked}"
    )


HEAD: Final = f"{'':26} {'succeeded':>13} {'time':>6} {'calls':>7} {'429s':>7} {'409s':>6} {'neighbour':>9}"


def main() -> None:
    """Run, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="leave out what takes longest: 10,000 keys, and most storms")
    options = parser.parse_args()
    seed, quick = options.seed, options.quick
    every = range(0, ROLLBACKS // 10 if quick else ROLLBACKS, 50)

    with ProcessPoolExecutor() as pool:

        def ask(call: Callable[..., Result], *arguments: object) -> Future[Result]:
            return pool.submit(call, *arguments)

        waves = [ask(queued, *shape, seed) for shape in reversed(WAVES) if not (quick and shape[1] > 500)][::-1]
        frontier = [ask(where_it_arrives, *caps, 500, seed) for caps in CAPS]
        ours = ask(where_it_arrives, *retry.CROWD_CAPS, 500, seed)
        others = [(keys, [ask(policies.wave, policy, keys, seed) for policy in policies.POLICIES]) for keys in (18, 100, 500)]
        small = [pool.submit(rollbacks, range(first, first + 50)) for first in every]
        moving = [pool.submit(update_rollbacks, range(first, first + 50)) for first in every[: len(every) // 2]]
        large = {wrong: pool.submit(rollback_of_500, wrong, seed) for wrong in (0, 20, 250)}
        dying = [pool.submit(deaths, range(first, first + 10)) for first in range(0, 10 if quick else DEATHS, 10)]
        alone = pool.submit(poisoned, 0, seed)
        killers = {name: pool.submit(partial(poisoned, hang=name == "hang"), 50, seed) for name in ("crash", "hang")}

        print(f"time: against the serial limit, calls * {DOOR} s. calls: to API Gateway, for each key. neighbour: wishes served.")
        print(f"\nThrough the queue\n{HEAD}")
        for future in waves:
            print(row(future.result()), flush=True)
        for keys, futures in others:
            print(f"\nThe others: create {keys}\n{HEAD}")
            for future in futures:
                print(row(future.result()), flush=True)
        print(f"\nWhere it arrives, without the queue: create 500\n{HEAD}")
        for future in frontier:
            print(row(future.result()), flush=True)
        print(f"\nA stack in which one key id is wrong, in {len(every) * 50} orders")
        print(_told([storm for future in small for storm in future.result()]))
        told = [storm for future in moving for storm in future.result()]
        print(f"An update that moves keys and is taken back, in {len(told)} orders\n{_told(told)}")
        for wrong, one in large.items():
            storm = one.result()
            print(f"500 keys, wrong is number {wrong + 1}: {_told([storm])}, over in {storm.seconds:.0f} s, {storm.calls} calls")
        told = [storm for future in dying for storm in future.result()]
        print(f"\nFunctions that die: {len(told)} stacks of 60 keys, {sum(storm.deaths for storm in told)} deaths\n{_told(told)}")
        base = alone.result()
        print(f"\n200 keys in four stacks, alone: {base.good} attached, in {base.seconds:.0f} s; beside 50 requests that …")
        for name, killer in killers.items():
            result = killer.result()
            print(
                f"  {name} the function: {result.good} attached, in {result.seconds:.0f} s;"
                f" {result.deaths} deaths, over in {result.over:.0f} s"
            )
        lines = {"through the queue": queued_500(waves).history, "where it arrives": ours.result().history}
        lines |= {future.result().name: future.result().history for future in others[-1][1]}
    PLOT.write_text(svg("500 keys in one stack: attached over time", lines, 300.0, 500))
    sys.stdout.flush()


def queued_500(waves: list[Future[Result]]) -> Result:
    """The wave that is drawn."""
    return next(result for result in (future.result() for future in waves) if result.name == "create 500")


def _told(storm: list[Storm]) -> str:
    left, gone, held = (sum(len(one) for one in which) for which in zip(*((s.left, s.gone, s.held) for s in storm), strict=True))
    return f"left behind: {left}, gone: {gone}, still in the ledger: {held}, two answers: {sum(s.contradicted for s in storm)}"


if __name__ == "__main__":
    main()
