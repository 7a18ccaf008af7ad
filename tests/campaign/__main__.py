"""make campaign: every story with every fault at every call, pairs of deaths, random faults, bad events.

It prints counts.

make campaign ARGS="--seed 7 --random 20000 --events 200000"
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from random import Random
from typing import Final, NamedTuple

from . import events
from .faults import ANYWHERE, FAULTS, FINAL, RESTORED, UNTRUE, deaths
from .play import FUNCTIONS, Play, play
from .stories import STORIES
from .world import Fault

#: For how long a fault lasts: one call, some turns of the function, and longer than CloudFormation waits.
LASTING: Final = (0.0, 200.0, 1200.0)


#: Stories that need neither a move nor a ledger: without a fault, the others bring them to a good end too.
ALIKE: Final = ("create and delete", "create", "verify", "replace")


class Cell(NamedTuple):
    """A play to make: a story, with faults by name, at calls, for seconds."""

    kind: str
    story: str
    faults: tuple[tuple[str, int, float], ...]
    seed: int


@cache
def calls(story: str) -> list[tuple[str, str]]:
    """List the function's calls in a story when all is well."""
    return play(story).calls


def possible(story: str, at: int, lasting: float) -> list[str]:
    """Name the faults that can strike at a call."""
    service, operation = calls(story)[at]
    if lasting:  # A refusal that is final, a lie and a loop of redirects are no outages.
        return [
            name for name in FAULTS[service] if name not in FINAL | RESTORED.keys() | {"not found", "307"}
        ]
    return [name for name in (*FAULTS[service], *ANYWHERE) if (operation, name) not in UNTRUE]


def single() -> Iterator[Cell]:
    """Every fault at every call."""
    for story in STORIES:
        for at, (service, _) in enumerate(calls(story)):
            for lasting in LASTING:
                kind = f"{service}, {'once' if not lasting else f'for {lasting:.0f} s'}"
                for name in possible(story, at, lasting):
                    yield Cell(_kind(name) or kind, story, ((name, at, lasting),), at)


def _kind(name: str) -> str:
    if name in deaths:
        return "the function hangs" if "hangs" in name or " s left" in name else "the function"
    return name if name in ANYWHERE else "the ledger is restored" if name in RESTORED else ""


def guards() -> Iterator[Cell]:
    """A call hangs, and the function dies while the guard answers."""
    for story in STORIES:
        for at in range(len(calls(story))):
            for hangs in ("hangs for ever", "is served, and hangs until the guard has answered"):
                for later in (1, 2, 3):
                    for dies in ("dies before", "dies after"):
                        yield Cell("the guard dies", story, ((hangs, at, 0.0), (dies, at + later, 0.0)), at)


def pairs() -> Iterator[Cell]:
    """Two deaths in one story: in one request, or in two that follow each other."""
    for story in STORIES:
        count = len(calls(story))
        for first in range(count):
            for second in range(first + 1, count + 8):
                for name in ("dies before", "dies after"):
                    yield Cell("two deaths", story, (("dies after", first, 0.0), (name, second, 0.0)), first)


def at_random(seed: int, count: int) -> Iterator[Cell]:
    """Up to four faults anywhere."""
    for number in range(seed, seed + count):
        dice = Random(number)
        story = dice.choice([*STORIES])
        ats = sorted(dice.sample(range(len(calls(story))), dice.randint(2, min(4, len(calls(story))))))
        faults = []
        for at in ats:
            lasting = dice.choice((0.0, 0.0, 0.0, 30.0, *LASTING))
            # On top of other faults no lies, and no second function, which the visibility time-out rules out.
            names = [
                name
                for name in possible(story, at, lasting)
                if name not in {"not found", "a second function at the same messages"} | RESTORED.keys()
            ]
            faults.append((dice.choice(names), at, lasting))
        yield Cell("at random", story, tuple(faults), number)


def made(cell: Cell) -> Play:
    """Make a play."""
    faults = []
    for name, at, lasting in cell.faults:
        service = "" if name in ANYWHERE else calls(cell.story)[at][0]
        faults.append(
            Fault(name, ANYWHERE[name] if name in ANYWHERE else FAULTS[service][name], service, at, lasting)
        )
    return play(cell.story, faults, seed=cell.seed)


#: Parts of a play's text, and their meaning to a person who deploys.
CLASSES: Final = {
    "StuckError": "a stack is wedged",
    "left behind": "attached, and nobody declares it",
    "is believed": "believed to be attached, and is not",
    "stranger": "a stranger's key is detached",
    "has no answer": "no answer in time",
    "answered late": "no answer in time",
    "two answers": "another answer the second time",
    "anew": "another answer the second time",
    "changed by an old": "another answer the second time",
    "a secret": "a secret in a log",
}
#: Those that stay when all is well again, or that somebody waits for.
ENDS: Final = {*CLASSES.values()} - {"another answer the second time", "a secret in a log"}


def compared(story: str) -> list[Counter[str]]:
    """Play a story with every fault once at every call of each function. Only this one has a ledger."""
    counts = []
    for by in FUNCTIONS:
        counted: Counter[str] = Counter()
        for at, (service, operation) in enumerate(play(story, by=by).calls):
            for name, strike in {**FAULTS[service], **deaths}.items():
                if (operation, name) not in UNTRUE and name not in RESTORED:
                    done = play(story, [Fault(name, strike, service, at)], seed=at, by=by)
                    texts = [*done.wrong, *done.excepted]
                    counted["plays"] += 1
                    found = {what for part, what in CLASSES.items() if any(part in text for text in texts)}
                    counted["with a wrong end"] += bool(found & ENDS)
                    counted.update(found)
        counts.append(counted)
    return counts


class Tally(NamedTuple):
    """The results of several plays."""

    plays: Counter[str]
    struck: Counter[str]
    excepted: Counter[str]
    wrong: list[tuple[Cell, list[str]]]


def told(cells: Iterable[Cell]) -> Tally:
    """Make plays, and count."""
    tally = Tally(Counter(), Counter(), Counter(), [])
    for cell in cells:
        done = made(cell)
        tally.plays[cell.kind] += 1
        tally.struck[cell.kind] += len(done.struck)
        tally.excepted[cell.kind] += bool(done.excepted)
        if done.wrong:
            tally.wrong.append((cell, done.wrong))
    return tally


def main() -> int:
    """Run all, print counts; 0 when nothing is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--random", type=int, default=20_000, help="plays with up to four faults")
    parser.add_argument("--events", type=int, default=200_000, help="malformed events")
    asked = parser.parse_args()
    began, whole = time.monotonic(), Tally(Counter(), Counter(), Counter(), [])
    with ProcessPoolExecutor() as pool:
        cells = [*single(), *pairs(), *guards(), *at_random(asked.seed, asked.random)]
        # A share of everything in each, so that all take about as long.
        chunks = [cells[number::200] for number in range(200)]
        seeds = [
            range(first, min(first + 2000, asked.seed + asked.events))
            for first in range(asked.seed, asked.seed + asked.events, 2000)
        ]
        tallies = pool.map(told, chunks)
        fuzzed = [pool.submit(events.told, seeds_of) for seeds_of in seeds]
        for number, tally in enumerate(tallies, 1):
            for total, part in zip(whole[:3], tally[:3], strict=True):
                total.update(part)
            whole.wrong.extend(tally.wrong)
            for cell, texts in tally.wrong:
                print(f"{cell}\n    {texts[0][:600]}", file=sys.stderr, flush=True)
            if sys.stderr.isatty() or number % 20 == 0:
                print(
                    f"{number / 2:.0f} % of {len(cells)} plays, {len(whole.wrong)} wrong",
                    file=sys.stderr,
                    flush=True,
                )
        compare = [sum(counts, Counter[str]()) for counts in zip(*pool.map(compared, ALIKE), strict=True)]
        answered = sum((future.result()[0] for future in fuzzed), Counter[str]())
        bad = [wrong for future in fuzzed for wrong in future.result()[1]]
    print(f"\n{'faults':<28} {'plays':>8} {'struck':>8} {'excepted':>9} {'wrong':>6}")
    wrong = Counter(cell.kind for cell, _ in whole.wrong)
    for kind, count in sorted(whole.plays.items()):
        print(f"{kind:<28} {count:>8} {whole.struck[kind]:>8} {whole.excepted[kind]:>9} {wrong[kind]:>6}")
    plays, struck, excepted = (counts.total() for counts in whole[:3])
    print(f"{'all':<28} {plays:>8} {struck:>8} {excepted:>9} {wrong.total():>6}")
    came = ", ".join(f"{count} {what}" for what, count in answered.most_common())
    print(f"\nevents: {came}; {len(bad)} wrong")
    print(f"\n{'one fault, in stories that all can tell':<42} {' '.join(f'{by:>8}' for by in FUNCTIONS)}")
    for what in ("plays", "with a wrong end", *dict.fromkeys(CLASSES.values())):
        print(f"{what:<42} {' '.join(f'{counted[what]:>8}' for counted in compare)}")
    for text in bad[:20]:
        print(text[:600])
    print(f"{time.monotonic() - began:.0f} s")
    return 1 if whole.wrong or bad else 0


if __name__ == "__main__":
    sys.exit(main())
