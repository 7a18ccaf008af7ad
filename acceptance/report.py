"""What came of a run: lines while it runs, a table at its end, and build/acceptance.json.

Neither holds an id, an account or a key's value: somebody sends them in an issue.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import fill
from typing import Any, Final

from .world import ROOT

PATH: Final = Path("build", "acceptance.json")
OK, FAILED, NOT_ASKED = "ok", "FAILED", "not asked"
SECRET: Final = [
    (re.compile(r"https?://\S+\?\S+"), "URL"),
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "UUID"),
    (re.compile(r"(?<![\w-])\d{12}(?![\w-])"), "ACCOUNT"),
    (re.compile(r"\b(?=[A-Za-z]*\d)[A-Za-z0-9]{20,}\b|\b(?!\w*Exception\b)[A-Za-z]{32,}\b"), "VALUE"),
]
LINES: Final = 20
"""Log lines of a story at most."""
DEATH: Final = re.compile(r"Task timed out|\[ERROR\]|Runtime exited|Worker process died")
"""What Lambda writes into the log of a function that died; the last one is MiniStack's."""


def redacted(text: str, names: Mapping[str, str]) -> str:
    """Put the logical ids for the physical ones, and a word for whatever looks like a secret."""
    for physical in sorted(names, key=len, reverse=True):
        if len(physical) > 5:
            text = text.replace(physical, names[physical])
    for pattern, word in SECRET:
        text = pattern.sub(word, text)
    return text


@dataclass
class Step:
    """A story or a question, and what came of it."""

    title: str
    result: str = FAILED
    seconds: float = 0
    why: str = ""
    assumed: str = ""
    seen: str = ""
    held: bool | None = None
    answers: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    began: float = 0


def _commit() -> str:
    """Name the commit, if this is a clone."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


@dataclass
class Report:
    """A run's report."""

    region: str
    embedded: bool
    keys: int
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))
    commit: str = field(default_factory=_commit)
    seconds: float = 0
    interrupted: bool = False
    stories: list[Step] = field(default_factory=list)
    questions: list[Step] = field(default_factory=list)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    @property
    def failures(self) -> int:
        """Count what failed, and what is left behind."""
        steps = [*self.stories, *self.questions]
        return sum(step.result == FAILED for step in steps) + len(self.left)

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        path.parent.mkdir(exist_ok=True)
        said = {"format": 1, "failures": self.failures, **asdict(self)}
        path.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n")

    def text(self) -> str:
        """Write the report as text."""
        where = "the embedded AWS: this says nothing about AWS" if self.embedded else self.region
        lines = [f"{self.date}, commit {self.commit}, on {where}, {self.seconds:.0f} s", ""]
        for step in self.stories:
            answers = ", ".join(f"{count} {outcome}" for outcome, count in step.answers.items())
            lines.append(
                f"{step.result:10}{step.seconds:4.0f} s  {step.title}" + f" ({answers})" * bool(answers)
            )
            lines += [filled(more) for more in [step.why, *step.warnings] if more]
        for step in self.questions:
            held = {True: "seen, as assumed", False: "seen, NOT AS ASSUMED", None: "seen"}[step.held]
            lines += [
                "",
                step.title,
                filled(f"assumed: {step.assumed}"),
                filled(f"{held}: {step.seen}" if step.seen else f"{step.result}: {step.why}"),
            ]
        lines.append("")
        for name, values in self.metrics.items():
            lines.append(f"{name}: {sum(values):.0f} in all, {max(values):.0f} a minute at most")
        lines += [] if self.metrics else ["CloudWatch has no figures yet."]
        lines += ["", *(f"LEFT BEHIND: {each}" for each in self.left), f"{self.failures} failed."]
        return "\n".join(lines)


def filled(text: str) -> str:
    """Indent a text, and break its lines."""
    return fill(
        text,
        105,
        initial_indent=" " * 6,
        subsequent_indent=" " * 8,
        break_on_hyphens=False,
        break_long_words=False,
    )


def collect(steps: list[Step], log: list[tuple[float, str]], redact: Callable[[str], str]) -> None:
    """Give each step the function's answers and its lines of WARNING and above."""
    for step in steps:
        lines = [each for each in log if step.began <= each[0] < step.began + step.seconds]
        said = [_parsed(line) for _, line in lines]
        answers = Counter(str(each["outcome"]) for each in said if "status" in each)
        warnings = Counter(map(redact, complaints(lines)))
        step.answers = dict(answers.most_common())
        step.warnings = [
            line + f" ({count} times)" * (count > 1) for line, count in warnings.most_common(LINES)
        ]


def complaints(log: Iterable[tuple[float, str]]) -> list[str]:
    """List a log's lines of WARNING and above, and what Lambda says of a death."""
    said = [(line.strip(), _parsed(line)) for _, line in log]
    return [
        f"{each['level']} {each.get('message')}" if each else line
        for line, each in said
        if each.get("level") in ("WARNING", "ERROR", "CRITICAL") or (not each and DEATH.search(line))
    ]


def _parsed(line: str) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
