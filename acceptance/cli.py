"""make acceptance ARGS="--region eu-west-1 --account 111122223333": docs/acceptance.md is the manual."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from . import clean, cost
from .embedded import ACCOUNT, embedded
from .questions import QUESTIONS, Question
from .report import FAILED, NOT_ASKED, OK, PATH, Report, Step, collect, redacted
from .stories import STORIES, play
from .world import OTHERS, ROOT, TAG, NotAskedError, Place, World, WrongError, zipped

SETTING_UP, CLEANING_UP = 300, 420
"""Seconds on AWS, about."""


ANNOUNCED = """\
In the account {account}, in {region}, this makes stacks whose names begin with {name},
with the tag {tag}: a REST API, 16 usage plans, {keys} API keys, a bucket,
the function's stack, and stacks with Custom::UsagePlanKey. It touches nothing else.
For some seconds API Gateway may throttle others in the region.
It takes about {minutes:.0f} minutes and costs ${dollars:.2f} at most. In the end it deletes everything."""


def asked(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        "make acceptance", description="Try the project in a real AWS account, and leave nothing behind."
    )
    parser.add_argument("--account", help="the 12 digits of the account; any other is refused")
    parser.add_argument("--region", action="append", help="the region; --clean takes several")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--clean", action="store_true", help="delete what earlier runs have left, by its tag")
    parser.add_argument("--embedded", action="store_true", help="run on an AWS on this machine")
    parser.add_argument("--keys", type=int, default=40, help="how many keys are attached at once (40)")
    parser.add_argument("--only", action="append", help="play what has this in its title; repeat it for more")
    found = parser.parse_args(arguments)
    if not found.embedded and not (found.account and found.region):
        parser.error("name the account and the region: --account 111122223333 --region eu-west-1")
    if not found.clean and len(found.region or ()) > 1:
        parser.error("a run has one region; --clean takes several")
    if found.keys < 6:
        parser.error("--keys takes 6 at least")
    titles = [story.of(found.keys) for story in STORIES] + [question.text for question in QUESTIONS]
    for word in found.only or ():
        if not any(word in title for title in titles):
            parser.error(f"--only: no story and no question has {word!r} in its title")
    return found


def main(arguments: Sequence[str]) -> int:
    """Return the number of failures; 130 after Ctrl-C."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    options = asked(arguments)
    try:
        with ExitStack() as exits:
            if options.embedded:
                places, account = [exits.enter_context(embedded())], ACCOUNT
            else:
                places, account = [real(region) for region in options.region], options.account
            for place in places:
                guard(place, account)
            if options.clean:
                return sum(clean_up(place, yes=options.yes) for place in places)
            run = Run(places[0], options.keys, options.only or [""], embedded=options.embedded)
            yes = options.yes or options.embedded
            return run.play() if agreed(run.announced(account), yes=yes) else 0
    except (RefusedError, ClientError, BotoCoreError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Delete what is left with --clean.", file=sys.stderr)
        return 130


# --- The guard ---


class RefusedError(Exception):
    """Raised before anything is made."""


def real(region: str) -> Place:
    """Reach AWS, as boto3 finds it."""
    return Place(boto3.Session(), region, artifact)


def artifact() -> bytes:
    """Build the function as `make build` does, and zip it."""
    with TemporaryDirectory() as folder:
        command = ["make", "-C", str(ROOT / "handler"), "build-UsagePlanKeyFunction"]
        wheels = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": (Path(sys.prefix) / "wheels").as_uri()}
        path = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, **wheels, "PATH": path}
        build = subprocess.run(
            [*command, f"ARTIFACTS_DIR={folder}"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if build.returncode:
            raise WrongError(f"the build failed: {build.stderr[-500:]}")
        return zipped(Path(folder))


def guard(place: Place, account: str) -> None:
    """Refuse any account but the named one."""
    try:
        found = place.client("sts").get_caller_identity()["Account"]
    except (BotoCoreError, ClientError) as error:
        raise RefusedError(f"Nothing done: {error}") from error
    if found != account:
        raise RefusedError(f"Nothing done: these credentials are of the account {found}, not {account}")


def agreed(text: str, *, yes: bool) -> bool:
    """Say what is going to happen, and ask once."""
    print(text)
    if yes:
        return True
    try:
        return input("Go on? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False  # nobody is there to answer


# --- A run ---


def tell(text: str, end: str = "\n") -> None:
    """Print, and go on if nobody reads it any more: what was made has to be deleted."""
    with suppress(OSError):
        print(text, end=end, flush=True)


class Progress:
    """A line for each step, with the time left: the estimates, corrected by how the steps so far took."""

    def __init__(self, steps: int, seconds: float) -> None:
        """Begin."""
        self._steps, self._left, self._number = steps, seconds, 0
        self._took, self._thought = 0.0, 0.0

    def step(self, title: str, estimate: float, act: Callable[[], str]) -> float:
        """Act, and say the result that it returns; return the seconds."""
        self._number += 1
        tell(f"[{self._number:2}/{self._steps}] {title} … ", end="")
        began = time.monotonic()
        result = act()
        seconds = time.monotonic() - began
        self._left -= estimate
        if result != NOT_ASKED:
            self._took, self._thought = self._took + seconds, self._thought + estimate
        left = self._left * (self._took / self._thought if self._thought else 1)
        said = f"{left / 60:.0f} min" if left > 90 else f"{max(left, 0):.0f} s"
        tell(f"{result}, {seconds:.0f} s; {said} left")
        return seconds


class Run:
    """A run: what it plays, and what comes of it."""

    def __init__(self, place: Place, keys: int, only: Sequence[str] = ("",), *, embedded: bool) -> None:
        """Choose the stories and questions with one of these words in the title, and the first story."""

        def is_chosen(title: str) -> bool:
            return any(word in title for word in only)

        # Others build on the first story.
        self.stories = [it for it in STORIES if it is STORIES[0] or is_chosen(it.of(keys))]
        self.questions = [it for it in QUESTIONS if is_chosen(it.text)]
        self.world = World(place, secrets.token_hex(3), keys)
        self.report = Report(place.region, embedded, keys)
        seconds = [it.seconds for it in self.stories] + [it.seconds for it in self.questions]
        self.seconds = SETTING_UP + CLEANING_UP + sum(seconds)
        self._progress = Progress(len(self.stories) + len(self.questions) + 3, self.seconds)
        self._redact = partial(redacted, names=self.world.names)

    def announced(self, account: str) -> str:
        """Say what is going to happen."""
        return ANNOUNCED.format(
            account=account,
            region=self.report.region,
            name=self.world.name,
            tag=TAG,
            keys=self.report.keys + OTHERS,
            minutes=self.seconds / 60,
            dollars=cost.at_most(),
        )

    def play(self, path: Path = PATH) -> int:
        """Play it, clean up whatever happens, and report; return the number of failures."""
        report, began = self.report, time.monotonic()
        try:
            self._play()
        except KeyboardInterrupt:
            report.interrupted = True
            tell("\nInterrupted. Cleaning up; if you stop that too, --clean finishes it.")
        finally:
            report.left += [self._redact(each) for each in clean.clean(self.world, tell)]
            report.seconds = time.monotonic() - began
            report.write(path)
        tell(f"\n{report.text()}\nThe same as JSON: {path}")
        return 130 if report.interrupted else min(report.failures, 100)

    def _play(self) -> None:
        """Set up, play each story, ask each question; go on after a failure."""
        world, report = self.world, self.report
        for title, act in (("Make the world", world.make), ("Deploy the function", world.make_function)):
            if not self._attempt(Step(title), report.stories, SETTING_UP / 2, act):
                return
        for story in self.stories:
            step = Step(story.of(world.many))
            self._attempt(step, report.stories, story.seconds, partial(play, world, story))
        for question in self.questions:
            step = Step(question.text, assumed=question.assumed)
            self._attempt(step, report.questions, question.seconds, partial(self._ask, question, step))

        def read() -> None:
            collect(report.stories, world.log(world.began), self._redact)
            report.metrics = world.metrics()

        self._attempt(Step("Read the function's log, and CloudWatch"), report.stories, 10, read)

    def _ask(self, question: Question, step: Step) -> None:
        """Ask a question, and write the answer down."""
        seen = question.ask(self.world)
        step.seen, step.held = self._redact(seen.text), seen.held

    def _attempt(self, step: Step, steps: list[Step], estimate: float, act: Callable[[], object]) -> bool:
        """Act, and write down what came of it; False if it failed."""

        def result() -> str:
            try:
                act()
            except NotAskedError as error:
                step.result, step.why = NOT_ASKED, str(error)
            except Exception as error:  # noqa: BLE001  # the next one is played all the same
                notes = getattr(error, "__notes__", ())
                step.why = self._redact("; ".join([str(error) or repr(error), *notes]))
            else:
                step.result = OK
            return step.result

        steps.append(step)
        step.began = time.time()
        step.seconds = self._progress.step(step.title, estimate, result)
        if step.result == FAILED:
            tell(f"        {step.why}")
        return step.result != FAILED


# --- Only clean up ---


def clean_up(place: Place, *, yes: bool) -> int:
    """Delete what earlier runs have left in a region; return how much is left."""
    found = clean.runs(place)
    if not found:
        print(f"{place.region}: nothing carries the tag {TAG}")
        return 0
    listed = "\n".join(
        f"  {world.name}: {', '.join(world.stacks) or 'its ledger'}" for world in found.values()
    )
    if not agreed(
        f"{place.region}: this deletes all of these runs, also one that is under way:\n{listed}", yes=yes
    ):
        return 0
    left = [each for world in found.values() for each in clean.clean(world, tell)]
    for each in left:
        tell(f"LEFT BEHIND: {each}")
    return len(left)
