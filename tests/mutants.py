"""Mutation testing: mutmut changes one place of the code at a time, and the tests that reach it have to fail.

Each run tries a fresh sample, by a seed that it prints, on a copy in a temporary folder. `python -m
tests.mutants --sample 100 --seed 7 rules retry` tries a hundred changes of these two modules.
mutmut leaves out decorated functions and constants outside of functions.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

import pytest
from mutmut.configuration import config
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.utils.format_utils import orig_function_and_class_names_from_key

ROOT: Final = Path(__file__).parents[1]
PACKAGE: Final = Path("usage_plan_key")
#: Percent of a sample's behaviour mutants that the tests have to kill: survivors.md explains the others.
GOAL: Final = 97.0
#: Some tests wait, so two cores have work for four.
WORKERS: Final = 4
#: Seconds of CPU time that one test may take: a change that makes the code loop for ever ends there.
LONGEST_TEST: Final = 20.0
#: The exit status of a killed mutant's process: a test failed, or its time was up. mutmut also counts 255,
#: which means that no test ran.
KILLED: Final = (1, -signal.SIGXCPU, -signal.SIGKILL)
#: A line of survivors.md: the function, the changed line or its beginning and an ellipsis, and why no test
#: notices.
EXPLAINED: Final = re.compile(r"^- `(\w+\.\w+)` `(.+?)(…?)`: (.+)$", re.MULTILINE)


class Survivor(NamedTuple):
    """A change that no test notices."""

    line: int
    function: str
    change: str


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test's ids anew, because pytest escapes them again when mutmut collects twice in a process."""
    for mark in metafunc.definition.iter_markers("parametrize"):
        if mark._param_ids_from:
            object.__setattr__(mark._param_ids_from, "_param_ids_generated", None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """End a test that loops: mutmut waits for a multiple of the time that all tests together take."""
    signal.signal(signal.SIGPROF, lambda *_: os._exit(KILLED[0]))
    signal.setitimer(signal.ITIMER_PROF, LONGEST_TEST)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def copied(folder: Path) -> None:
    """Copy the files that the tests need, with the package at the top: mutmut names a module by its path."""
    shutil.copytree(
        ROOT, folder, ignore=shutil.ignore_patterns(".*", "__pycache__", "build"), dirs_exist_ok=True
    )
    shutil.copytree(folder / "handler" / PACKAGE, folder / PACKAGE)


def as_survivor(module: str, name: str) -> Survivor:
    """Find mutmut's change, and its place."""
    path = PACKAGE / f"{module}.py"
    function, class_name = orig_function_and_class_names_from_key(name)
    changed = get_diff_for_mutant(name, path=path).splitlines()[3:]
    before, after = ([line[1:].strip() for line in changed if line[0] == sign] for sign in "-+")
    at, lines = 0, [line.strip() for line in path.read_text().splitlines()]
    for begins in (f"class {class_name}" if class_name else "", f"def {function}(", before[0]):
        at = next((number for number in range(at, len(lines)) if lines[number].startswith(begins)), at)
    return Survivor(at + 1, f"{module}.{function}", " ".join(after) or f"without {' '.join(before)}")


def drawn(modules: list[str], sample: int, seed: int) -> list[str]:
    """Draw a sample of the modules' mutants, by mutmut's names."""
    names: list[str] = []
    for module in modules:
        path = PACKAGE / f"{module}.py"
        made = mutate_file_contents(str(path), path.read_text()).mutant_names
        names += [f"{PACKAGE}.{module}.{name}" for name in made]
    return sorted(random.Random(seed).sample(names, min(sample or len(names), len(names))))


def tried(module: str, names: list[str]) -> tuple[int, list[Survivor]]:
    """Count a module's mutants in the sample, and name the survivors."""
    data = SourceFileMutationData(path=PACKAGE / f"{module}.py")
    data.load()
    codes = {name: code for name, code in data.exit_code_by_key.items() if name in names}
    return len(codes), sorted(as_survivor(module, name) for name, code in codes.items() if code not in KILLED)


def why(found: Survivor) -> str:
    """Give survivors.md's reason; empty for none."""
    for function, change, more, reason in EXPLAINED.findall((ROOT / "tests" / "survivors.md").read_text()):
        if function == found.function and (
            found.change.startswith(change) if more else found.change == change
        ):
            return str(reason)
    return ""


def told(modules: list[str], names: list[str]) -> Iterator[str]:
    """Print each survivor with its reason, and the counts; yield each shortfall."""
    found = {module: tried(module, names) for module in modules}
    unexplained = 0
    for module, (_, survivors) in found.items():
        for survivor in survivors:
            reason = why(survivor)
            print(f"handler/{PACKAGE}/{module}.py:{survivor.line} {survivor.function}: {survivor.change}")
            print(f"    {reason or 'NOT EXPLAINED'}")
            unexplained += not reason
    print(f"\n{'module':16}{'mutants':>9}{'killed':>9}{'survived':>10}")
    for module, (count, survivors) in found.items():
        print(f"{module:16}{count:9}{count - len(survivors):9}{len(survivors):10}")
    explained = sum(len(survivors) for _, survivors in found.values()) - unexplained
    percent = 100 * (1 - unexplained / max(1, len(names) - explained))
    print(f"{percent:.1f} % of {len(names) - explained} killed; {explained} survivors are explained")
    if percent < GOAL:
        yield f"The tests kill less than {GOAL:.0f} % of the mutants that tests/survivors.md does not explain"


def main() -> int:
    """Draw and make the mutants, run the tests, and report the results."""
    every = [Path(path).stem for path in config().only_mutate]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", choices=[*every, []], metavar="module", help=", ".join(every))
    parser.add_argument("--sample", type=int, default=300, help="so many mutants; 0 for all")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    asked = parser.parse_args()
    modules = asked.modules or every
    with TemporaryDirectory() as folder, chdir(folder):
        copied(Path(folder))
        names = drawn(modules, asked.sample, asked.seed)
        print(f"{len(names)} mutants, --seed {asked.seed}", flush=True)
        os.nice(10)
        if code := subprocess.run(
            [sys.executable, "-m", "mutmut", "run", "--max-children", str(WORKERS), *names],
            stdin=subprocess.DEVNULL,
            check=False,
        ).returncode:
            return code
        faults = list(told(modules, names))
    print("\n".join(["", *faults]))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
