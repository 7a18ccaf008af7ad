"""A newcomer's terminal shows the set-up of .venv, each disturbance of it, and the demo's colours.

Each test has a copy of the Makefile in a folder whose name holds a space and quotes. A shell script plays a
slow pip; the test without a network runs pip itself.
"""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from emulators import ministack
from examples import demo

from . import environment

ROOT = Path(__file__).parents[1]
TARGETS = set(re.findall(r"^([a-z-]+):(?! export)", (ROOT / "Makefile").read_text(), re.MULTILINE))
#: Seconds until a wait fails.
PATIENCE = 120
#: Replaces python3: it sets up as usual, but makes a Python that plays pip.
SETTER = """
import pathlib, runpy, sys, venv

def create(path, **_):
    (path / "bin").mkdir(parents=True, exist_ok=True)
    made = path / "bin" / "python"
    made.write_text(pathlib.Path("pip.sh").read_text())
    made.chmod(0o755)

pathlib.Path("setter").write_text(str(__import__("os").getpid()))
venv.create = create
runpy.run_path("tests/environment.py", run_name="__main__")
"""
#: That Python: as pip it runs for as long as a file `hold` exists.
PIP = """case "$*" in "-m pip "*) ;; *) echo "ran $*"; exit;; esac
echo begin >> calls
while test -e hold; do sleep 0.02; done
echo end >> calls"""
#: One set-up runs pip three times in turn.
ONE_SET_UP = ["begin", "end"] * 3


@dataclass
class Make:
    """A make that runs; its output goes to a file, so reading it never blocks."""

    process: subprocess.Popen[bytes]
    output: Path

    def ended(self) -> int:
        """Wait for its exit code."""
        return self.process.wait(PATIENCE)

    @property
    def said(self) -> str:
        """Standard output and standard error."""
        return self.output.read_text()


class Folder:
    """A fresh clone, as far as the set-up needs one."""

    def __init__(self, path: Path) -> None:
        self.path, self.hold, self.started = path, path / "hold", list[Make]()
        shutil.copytree(ROOT / "handler", path / "handler", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("tests", "emulators", "examples", "benchmarks", "tools"):
            (path / name).mkdir()
        for name in ("Makefile", "tests/environment.py"):
            shutil.copy(ROOT / name, path / name)
        self.script("pip.sh", PIP)
        self.script("stub", 'test "$1" = -c || set -- setter.py\nexec "$REAL" "$@"')
        self.script("real", 'exec "$REAL" "$@"')
        for name, text in (("requirements", "six==1.17.0"), ("runtime", "")):
            (path / "tests" / f"{name}.txt").write_text(text)
        (path / "setter.py").write_text(SETTER)

    def script(self, name: str, text: str) -> None:
        """Write a program."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.path / name).chmod(0o755)

    def make(self, *arguments: str, python: str = "stub", **environment: str) -> Make:
        """Start make."""
        given = {**os.environ, "REAL": sys.executable, "PYTHON": str(self.path / python), **environment}
        output = self.path.parent / str(len(self.started))
        with output.open("wb") as file:
            process = subprocess.Popen(
                ["make", *arguments],
                cwd=self.path,
                env={name: value for name, value in given.items() if not name.startswith("MAKE")},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # A shell's background job ignores Ctrl-C, and so would all that it starts.
                preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
            )
        self.started.append(Make(process, output))
        return self.started[-1]

    def calls(self) -> list[str]:
        """Read the beginnings and ends of pip's runs, in order."""
        return (self.path / "calls").read_text().split() if (self.path / "calls").exists() else []

    @property
    def is_ready(self) -> bool:
        """Whether make takes it for ready."""
        return (self.path / ".venv" / "ready").exists()

    def set_up(self) -> None:
        """Let make take it for ready, with the packages that the real set-up has fetched."""
        (self.path / ".venv").mkdir()
        (self.path / ".venv" / "wheels").symlink_to(Path(sys.prefix) / "wheels")
        (self.path / ".venv" / "ready").touch()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """A folder of such a name; every process of it ends with the test."""
    made = Folder(tmp_path / "a b" / 'ünï\'x "y"')
    yield made
    made.hold.unlink(missing_ok=True)
    for make in made.started:
        make.ended()


def eventually(condition: Callable[[], object]) -> bool:
    """Wait until it is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "that took too long"
        time.sleep(0.02)
    return True


def test_two_makes_at_once_make_one_environment(folder: Folder) -> None:
    """The second waits, says so, and then has nothing left to do."""
    folder.hold.touch()
    first = folder.make("test")
    eventually(folder.calls)
    second = folder.make("demo")
    eventually(lambda: "Waiting: another make is setting up .venv" in second.said)
    folder.hold.unlink()
    assert (first.ended(), second.ended()) == (0, 0)
    assert folder.calls() == ONE_SET_UP
    assert "ran -m pytest" in first.said
    assert "ran -m examples" in second.said
    assert not re.search(r"[\r\033]", first.said), "what is no terminal gets no control codes"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_an_interrupted_set_up_is_never_taken_for_ready(how: signal.Signals, folder: Folder) -> None:
    """The next make sets up everything anew."""
    folder.hold.touch()
    make = folder.make("test")
    eventually(folder.calls)
    os.killpg(make.process.pid, how)
    assert make.ended()
    interrupted = "Interrupted: .venv is not ready; the next make sets it up anew."
    assert how is signal.SIGKILL or eventually(lambda: interrupted in make.said)
    assert "Traceback" not in make.said
    assert (folder.path / ".venv").exists()
    assert not folder.is_ready
    folder.hold.unlink()
    assert folder.make("test").ended() == 0
    assert folder.calls()[-6:] == ONE_SET_UP
    assert folder.is_ready


def test_a_pip_that_outlives_its_make_is_waited_for(folder: Folder) -> None:
    """The next make waits no longer than pip lives: nobody has to remove a lock."""
    folder.hold.touch()
    first = folder.make("test")
    eventually(folder.calls)
    os.kill(int((folder.path / "setter").read_text()), signal.SIGKILL)
    first.ended()
    second = folder.make("test")
    eventually(lambda: "Waiting: another make is setting up .venv" in second.said)
    folder.hold.unlink()
    assert second.ended() == 0
    assert folder.calls() == ["begin", "end", *ONE_SET_UP]


def test_a_requirement_that_is_newer_is_a_new_set_up(folder: Folder) -> None:
    """Without one, make does nothing a second time."""
    for count in (1, 1, 2):
        if count == 2:
            later = time.time() + 1
            os.utime(folder.path / "tests" / "runtime.txt", (later, later))
        assert folder.make("test").ended() == 0
        assert folder.calls() == ONE_SET_UP * count


def test_a_link_to_another_folder_is_refused_and_that_folder_stays(folder: Folder, tmp_path: Path) -> None:
    """A set-up empties .venv first."""
    other = tmp_path / "shared"
    (other / "precious").mkdir(parents=True)
    (folder.path / ".venv").symlink_to(other)
    make = folder.make("test")
    assert make.ended() == 2
    assert f".venv is a link to {other}, and a set-up would empty that folder. Remove" in make.said
    assert [path.name for path in other.iterdir()] == ["precious"]
    assert folder.calls() == []


def test_without_a_network_pip_says_so_at_once_and_in_one_sentence(folder: Folder) -> None:
    """It is pip itself, behind a proxy that is not there; the sentence shows no password of the proxy's."""
    proxy = f"127.0.0.1:{ministack.free_port()}"
    index = {"PIP_FIND_LINKS": "", "PIP_NO_INDEX": "0", "PIP_INDEX_URL": "https://pypi.test/simple"}
    proxies = dict.fromkeys(("http_proxy", "https_proxy"), f"http://somebody:secret@{proxy}")
    make = folder.make("test", python="real", PIP_CONFIG_FILE=os.devnull, **index, **proxies)
    assert make.ended() == 2
    said = [line for line in make.said.splitlines() if not line.startswith(("make", "Setting up", "   "))]
    why = f"pip cannot reach pypi.test through the proxy {proxy} (Connection refused)"
    assert said == [f"No network: {why}. Run make again when it can."]
    assert not folder.is_ready


#: How urllib3, which pip has inside, writes each cause.
CAUSES = {
    "Connection refused": "'NewConnectionError('<it>: Failed: [Errno 111] Connection refused')'",
    "Name or service not known": "'NameResolutionError(\"<it>: ([Errno -2] Name or service not known)\")'",
    "timed out": "'ConnectTimeoutError(<it>, 'Connection timed out. (connect timeout=15)')'",
    "certificate verify failed: own": "'SSLError(1, '[SSL: NO] certificate verify failed: own (_ssl.c:1)')'",
    "Remote end closed it": "'ProtocolError('Aborted.', RemoteDisconnected('Remote end closed it'))'",
}


@pytest.mark.parametrize("cause", CAUSES)
def test_the_sentence_names_the_cause(cause: str) -> None:
    said = f"WARNING: {environment.BROKEN}{CAUSES[cause]}: /simple/six/\nERROR: No matching distribution\n"
    told = f"No network: pip cannot reach pypi.org ({cause}). Run make again when it can."
    assert environment.why(said) == told


def test_an_error_that_is_not_the_networks_is_told_in_pips_words() -> None:
    said = environment.why("Collecting six\nERROR: No matching distribution found for six==0\n")
    assert said == "ERROR: No matching distribution found for six==0\nAll that pip said is in .venv/pip.log."
    said = environment.why(f"WARNING: {environment.BROKEN}it\n")
    assert said == "No network: pip cannot reach pypi.org. All that pip said is in .venv/pip.log."


def test_pip_is_ended_only_when_it_has_reached_nothing() -> None:
    """On a network that stutters, pip itself tries again."""
    twice = f"WARNING: {environment.BROKEN}it\n" * 2
    assert environment.is_hopeless(twice)
    assert not environment.is_hopeless(twice[: len(twice) // 2])
    assert not environment.is_hopeless(f"Collecting six\n  Downloading six.whl (11 kB)\n{twice}")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC], ids=os.strerror)
def test_a_folder_that_may_not_be_written_says_what_is_needed(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Another error of the system's is told in the system's words."""

    def create(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "/a/path")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tests.environment.venv.create", create)
    monkeypatch.setattr("tests.environment.os.access", lambda *_: False)  # Its file is not writable either.
    assert environment.main() == 1
    assert capsys.readouterr().err.splitlines()[1:] == [
        ".venv cannot be made: [Errno 28] No space left on device: '/a/path'"
        if number == errno.ENOSPC
        else f"make needs to write into {tmp_path}, because it keeps its packages there, in .venv:"
        f" {os.strerror(number)}. Make that folder yours, or copy it to a place that is."
    ]


def test_progress_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log has no line for each package."""
    now = [0.0]
    monkeypatch.setattr("tests.environment.time.monotonic", lambda: now[0])
    progress = environment.Progress()
    said = "Collecting six==1.17.0 (from -r tests/requirements.txt)\nCollecting idna\n"
    for now[0] in range(20):
        progress.tell(environment.doing(said))
    assert capsys.readouterr().err == "   2 found, now idna, 15 s\n"
    assert environment.doing(f"{said}Installing collected packages: six, idna\n") == "installing 2"


def test_make_help_lists_every_target_and_so_does_plain_make(folder: Folder) -> None:
    """In 80 columns, and without a set-up."""
    asked, plain = folder.make("help"), folder.make()
    assert (asked.ended(), plain.ended()) == (0, 0)
    assert {line.split()[1] for line in asked.said.splitlines()} == TARGETS
    assert [line for line in asked.said.splitlines() if len(line) > 80 or len(line.split()) < 3] == []
    assert plain.said == asked.said
    assert not (folder.path / ".venv").exists()


def test_make_clean_leaves_the_clone_as_it_was(folder: Folder) -> None:
    """Also after half a set-up, and where there is nothing to remove."""
    fresh = set(folder.path.rglob("*"))
    for made in (".venv/bin", "build/boto3", "tests/__pycache__", ".mypy_cache"):
        (folder.path / made).mkdir(parents=True)
    for _ in range(2):
        assert folder.make("clean").ended() == 0
        assert set(folder.path.rglob("*")) == fresh


def test_the_artifact_is_built_where_the_path_has_a_space_and_quotes(folder: Folder) -> None:
    """The paths of the folder, the artifact and Python; the packages are those that the set-up fetched."""
    folder.set_up()
    make = folder.make("build", python="real")
    assert make.ended() == 0, make.said
    assert {"boto3", "usage_plan_key"} <= {path.name for path in (folder.path / "build").iterdir()}


@pytest.mark.parametrize(
    ("checkov", "code", "said"),
    [
        ("exit 0", 0, "checkov finds nothing in template.yaml without a reason beside it."),
        ("echo CKV_AWS_27; exit 1", 2, "CKV_AWS_27"),
        ("", 0, "NOT ASKED: PyPI gave no checkov, so nobody has looked at template.yaml."),
    ],
    ids=["nothing", "a finding", "no network"],
)
def test_the_audit_fails_on_a_finding(checkov: str, code: int, said: str, folder: Folder) -> None:
    """Scripts play checkov and the build; what is not installed cannot be."""
    folder.set_up()
    step = 'build-UsagePlanKeyFunction:\n\tmkdir "$$ARTIFACTS_DIR"\n'
    (folder.path / "handler" / "Makefile").write_text(step)
    folder.script(".venv/bin/python", 'test "$2" = venv && exit 1\nexec "$REAL" "$@"')
    (folder.path / ".venv" / "audit").mkdir()
    if checkov:
        plays = f'case "$2 $4" in "checkov.main template.yaml") {checkov};; *) exit 0;; esac'
        for name, text in (("python", plays), ("checkov", ""), ("pip-audit", "")):
            folder.script(f".venv/audit/bin/{name}", text)
    make = folder.make("audit", python="real")
    assert make.ended() == code, make.said
    assert said in make.said.splitlines()
    assert (folder.path / "build").exists() is (code == 0), "a finding ends it"


def test_the_demo_reads_no_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not even find that botocore cannot parse a file there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    for name, variable in (("config", "AWS_CONFIG_FILE"), ("credentials", "AWS_SHARED_CREDENTIALS_FILE")):
        monkeypatch.delenv(variable)
        (tmp_path / ".aws" / name).write_text("[")
    with ministack.unconfigured():
        ministack._client("sts", "https://127.0.0.1:1", tmp_path).close()


@pytest.mark.parametrize(
    ("variables", "at_a_terminal", "elsewhere"),
    [
        ({}, True, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, True, False),
        ({"TERM": "dumb"}, False, False),
        ({"FORCE_COLOR": "1"}, True, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
    ],
    ids=str,
)
def test_the_demo_has_colours_where_they_are_wanted(
    variables: dict[str, str], at_a_terminal: bool, elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal has them, unless somebody says otherwise: https://no-color.org."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", **variables}.items():
        monkeypatch.setenv(name, value)
    for terminal, coloured in ((True, at_a_terminal), (False, elsewhere)):
        monkeypatch.setattr("sys.stdout.isatty", lambda terminal=terminal: terminal)
        shown = demo._shown(("Create", "Alice", "", "FAILED", "alice in Free", ""))
        assert shown.count("\033") == 2 * coloured


def test_the_demo_keeps_to_80_columns() -> None:
    widest = demo._shown(("Update", "CarolInc", "frank in Free", "SUCCESS", "frank in Free", "ATTACHED"))
    reason = demo._filled("usage-plan-key " * 20, "   Reason: ")
    assert max(map(len, [widest, *reason.splitlines()])) <= 80
    assert reason.split()[1:] == ["usage-plan-key"] * 20, "a name can be copied"
