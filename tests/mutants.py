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
from collections import Counter
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

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
WORKERS: Final = "4"
#: Seconds of CPU time that one test may take: a change that makes the code loop for ever ends there.
LONGEST_TEST: Final = 20.0
#: The exit status of a killed mutant's process: a test failed, or its time was up. mutmut also counts 255,
#: which means that no test ran.
KILLED: Final = (1, -signal.SIGXCPU, -signal.SIGKILL)
#: A line of survivors.md: the function, the changed line or its beginning and an ellipsis, and why no test
#: notices.
EXPLAINED: Final = re.compile(r"^- `(\w+\.\w+)` `(.+?)(…?)`: (.+)$", re.MULTILINE)


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


def run(modules: list[str], sample: int, seed: int) -> Iterator[tuple[str, str, int | None]]:
    """Draw a sample of the modules' mutants, and run mutmut; yield each module, name and exit status.

    The package goes to the top of the copy, because mutmut names a module by its path.
    """
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build")
    shutil.copytree(ROOT, Path.cwd(), ignore=ignored, dirs_exist_ok=True)
    shutil.copytree(Path("handler") / PACKAGE, PACKAGE)
    sources = {module: PACKAGE / f"{module}.py" for module in modules}
    every = [
        f"{PACKAGE}.{module}.{name}"
        for module, path in sources.items()
        for name in mutate_file_contents(str(path), path.read_text()).mutant_names
    ]
    names = random.Random(seed).sample(every, min(sample or len(every), len(every)))
    print(f"{len(names)} mutants, --seed {seed}", flush=True)
    os.nice(10)
    mutmut = [sys.executable, "-m", "mutmut", "run", "--max-children", WORKERS, *sorted(names)]
    if subprocess.run(mutmut, stdin=subprocess.DEVNULL, check=False).returncode:
        sys.exit("mutmut failed")
    for module, path in sources.items():
        data = SourceFileMutationData(path=path)
        data.load()
        yield from ((module, name, code) for name, code in data.exit_code_by_key.items() if name in names)


def explained(module: str, name: str) -> bool:
    """Print a survivor's place and change, and survivors.md's reason; tell whether it has one."""
    function, _ = orig_function_and_class_names_from_key(name)
    changed = get_diff_for_mutant(name, path=PACKAGE / f"{module}.py").splitlines()[3:]
    before, after = (" ".join(line[1:].strip() for line in changed if line[0] == sign) for sign in "-+")
    change = after or f"without {before}"
    reasons = [
        reason
        for where, begins, more, reason in EXPLAINED.findall((ROOT / "tests" / "survivors.md").read_text())
        if where == f"{module}.{function}" and (change.startswith(begins) if more else change == begins)
    ]
    print(f"{module}.{function}: {change}\n    {'; '.join(reasons) or f'NOT EXPLAINED; it was: {before}'}")
    return bool(reasons)


def main() -> int:
    """Make the mutants, run the tests, and report the results."""
    every = [Path(path).stem for path in config().only_mutate]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", choices=[*every, []], metavar="module", help=", ".join(every))
    parser.add_argument("--sample", type=int, default=300, help="so many mutants; 0 for all")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    asked = parser.parse_args()
    with TemporaryDirectory() as folder, chdir(folder):
        tried = [*run(asked.modules or every, asked.sample, asked.seed)]
        survivors = [(module, name) for module, name, code in tried if code not in KILLED]
        unexplained = sum(not explained(module, name) for module, name in sorted(survivors))
    for module, count in Counter(module for module, *_ in tried).items():
        print(f"{module:16}{count:9} mutants{sum(module == its for its, _ in survivors):9} survivors")
    counted = len(tried) - len(survivors) + unexplained
    percent = 100 * (1 - unexplained / max(1, counted))
    print(f"{percent:.1f} % of {counted} killed; {len(survivors) - unexplained} survivors are explained")
    if percent < GOAL:
        print(f"The tests kill less than {GOAL:.0f} % of the mutants that survivors.md does not explain")
    return percent < GOAL


if __name__ == "__main__":
    sys.exit(main())
