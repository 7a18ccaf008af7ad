"""A newcomer's terminal shows the set-up of .venv, each disturbance of it, and the demo's colours.

Each test has a copy of the Makefile in a folder whose name holds a space and quotes. A shell script plays a
slow pip; where pip finds no network it is pip itself.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from emulators import ministack
from examples import demo

from . import environment
from .conftest import ROOT

TARGETS = set(re.findall(r"^([a-z-]+):(?! export)", (ROOT / "Makefile").read_text(), re.MULTILINE))
#: Seconds until a wait fails.
PATIENCE = 120
#: The tests' set-up has no need of a whole virtual environment.
CREATE = (
    "venv.create(VENV, clear=True, symlinks=True, with_pip=True)",
    'shutil.copytree("made", VENV, dirs_exist_ok=True)',
)
#: What it makes in place of a Python: as pip it runs for as long as a file `hold` exists, and fails where it
#: may not install.
PYTHON = """case "$*" in "-m pip "*) ;; *) echo "ran $*"; exit;; esac
echo $PPID > setter
echo begin >> calls
while test -e hold; do sleep 0.02; done
echo end >> calls
exit $PIP_USER"""
#: One set-up runs pip three times in turn.
ONE_SET_UP = ["begin", "end"] * 3


class Folder:
    """A fresh clone, as far as the set-up needs one."""

    def __init__(self, path: Path) -> None:
        self.path, self.hold, self.started = path, path / "hold", list[subprocess.Popen[bytes]]()
        shutil.copytree(ROOT / "handler", path / "handler", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("tests", "emulators", "examples", "benchmarks", "tools"):
            (path / name).mkdir()
        shutil.copy(ROOT / "Makefile", path)
        self.text("tests/environment.py", Path(environment.__file__).read_text().replace(*CREATE))
        self.text("tests/requirements.txt", "six==1.17.0")
        self.text("tests/runtime.txt")
        self.text("calls")
        self.script("made/bin/python", PYTHON)

    def text(self, name: str, text: str = "", mode: int = 0o644) -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(text)
        (self.path / name).chmod(mode)

    def script(self, name: str, text: str) -> None:
        self.text(name, f"#!/bin/sh\n{text}\n", 0o755)

    def make(self, *arguments: str, **environment: str) -> Callable[[], str]:
        """Start make; return what reads all that it has said so far."""
        given = {**os.environ, "PYTHON": sys.executable, "REAL": sys.executable, **environment}
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
        self.started.append(process)
        return output.read_text

    def made(self, *arguments: str, code: int = 0, **environment: str) -> list[str]:
        said = self.make(*arguments, **environment)
        assert self.started[-1].wait(PATIENCE) == code, said()
        return said().splitlines()

    def calls(self) -> list[str]:
        return (self.path / "calls").read_text().split()

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
    for process in made.started:
        process.wait(PATIENCE)


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "that took too long"
        time.sleep(0.02)


@pytest.mark.parametrize("killed", [False, True], ids=["both live", "the first dies, and its pip does not"])
def test_two_makes_at_once_make_one_environment(killed: bool, folder: Folder) -> None:
    """The second waits, for no longer than pip lives, and says so. A user's PIP_USER does no harm."""
    folder.hold.touch()
    first = folder.make("test", PIP_USER="1")
    eventually(folder.calls)
    if killed:
        os.kill(int((folder.path / "setter").read_text()), signal.SIGKILL)
    second = folder.make("demo")
    eventually(lambda: "Waiting: another make is setting up .venv" in second())
    folder.hold.unlink()
    assert [process.wait(PATIENCE) for process in folder.started] == [2 * killed, 0]
    assert folder.calls() == ["begin", "end"] * killed + ONE_SET_UP
    assert "ran -m examples" in second()
    assert killed or "ran -m pytest" in first()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=lambda how: how.name)
def test_an_interrupted_set_up_is_never_taken_for_ready(how: signal.Signals, folder: Folder) -> None:
    """The next make sets up everything anew."""
    folder.hold.touch()
    said = folder.make("test")
    eventually(folder.calls)
    os.killpg(folder.started[0].pid, how)
    assert folder.started[0].wait(PATIENCE)
    if how == signal.SIGINT:
        eventually(lambda: "Interrupted: .venv is not ready; the next make sets it up anew." in said())
    assert "Traceback" not in said()
    folder.hold.unlink()
    folder.made("test")
    assert folder.calls()[-6:] == ONE_SET_UP


def test_a_requirement_that_is_newer_is_a_new_set_up(folder: Folder) -> None:
    """Without one, make does nothing a second time."""
    for count in (1, 1, 2):
        if count == 2:
            later = time.time() + 1
            os.utime(folder.path / "tests" / "runtime.txt", (later, later))
        folder.made("test")
        assert folder.calls() == ONE_SET_UP * count


NEEDED = r"Python 3\.11 or newer is needed, here as python3 or as make PYTHON=/path/to/it\. Found: "
REAL = 'exec "$REAL" "$@"'
OLD = 'exec "$REAL" -c "import sys; sys.version_info = 3, 10; exec(sys.argv[1])"'
PROXY = r"https://me:\*\*\*\*@pypi\.test/simple through your proxy"
#: What python3 does on a machine, and what make says there.
BROKEN = {
    "no python": ("exit 127", NEEDED),
    "an old python": (f'test "$1" = -c || exec echo Python 3.10; {OLD} "$2"', rf"{NEEDED}Python 3\.10"),
    "no venv": ('case "$2" in *ensurepip*) exit 1; esac', ".* on Debian .*: apt-get install python3-venv"),
    "a link": (f"ln -sfn tests .venv; {REAL}", r"\.venv is a link to tests, and .* Remove the link, .*"),
    "a foreign .venv": (f"touch .venv; {REAL}", r"\.venv cannot be made: .* a folder that is yours, with .*"),
    "no network": (REAL, rf"No network: pip cannot reach {PROXY} \(Connection refused\)\. Run make again .*"),
}


@pytest.mark.parametrize("machine", BROKEN)
def test_on_a_broken_machine_make_says_in_one_sentence_what_is_needed(machine: str, folder: Folder) -> None:
    """It shows no password of a proxy's or an index's. The folder behind a link stays."""
    python, sentence = BROKEN[machine]
    folder.script("python", python)
    shutil.copy(environment.__file__, folder.path / "tests")
    index = {"PIP_INDEX_URL": "https://me:secret@pypi.test/simple", "PIP_NO_INDEX": "0", "PIP_FIND_LINKS": ""}
    proxy = {"https_proxy": "http://me:secret@127.0.0.1:1", "PIP_CONFIG_FILE": os.devnull, "PIP_QUIET": "3"}
    said = folder.made("test", code=2, PYTHON=str(folder.path / "python"), **index, **proxy)
    (told,) = (line for line in said if not line.startswith(("make: ", "Setting up", "   ")))
    assert re.fullmatch(sentence, told)
    assert (folder.path / "tests" / "requirements.txt").exists()
    assert not (folder.path / ".venv" / "ready").exists()


#: How urllib3, which pip has inside, writes each cause. Another error is told in pip's own words.
CAUSES = {
    "Name or service not known": "'NameResolutionError(\"<it>: ([Errno -2] Name or service not known)\")'",
    "Connection to a.b timed out": "'ConnectTimeoutError(<it>, 'Connection to a.b timed out. (timeout=15)')'",
    "certificate verify failed: own": "'SSLError(1, '[SSL: NO] certificate verify failed: own (_ssl.c:1)')'",
    "Remote end closed it": "'ProtocolError('Aborted.', RemoteDisconnected('Remote end closed it'))'",
    "": "",
}


@pytest.mark.parametrize("cause", CAUSES)
def test_the_sentence_names_the_cause(cause: str) -> None:
    warned = f"WARNING: {environment.BROKEN}{CAUSES[cause]}: /simple/six/\n" if cause else "Collecting six\n"
    told = f"No network: pip cannot reach pypi.org ({cause}). Run make again when it can."
    error = "ERROR: No matching distribution found for six==0"
    shown = told if cause else f"{error}\nAll that pip said is in .venv/pip.log."
    assert environment.why(f"{warned}{error}\n") == shown


def test_make_help_lists_every_target_and_so_does_plain_make(folder: Folder) -> None:
    """In 80 columns, and without a set-up."""
    asked, plain = folder.made("help"), folder.made()
    assert {line.split()[1] for line in asked} == TARGETS
    assert [line for line in asked if len(line) > 80 or len(line.split()) < 3] == []
    assert plain == asked
    assert not (folder.path / ".venv").exists()


def test_make_clean_leaves_the_clone_as_it_was(folder: Folder) -> None:
    """Also after half a set-up, and where there is nothing to remove."""
    fresh = set(folder.path.rglob("*"))
    for made in (".venv/bin", "build/boto3", "tests/__pycache__", ".mypy_cache"):
        (folder.path / made).mkdir(parents=True)
    for _ in range(2):
        folder.made("clean")
        assert set(folder.path.rglob("*")) == fresh


def test_the_artifact_is_built_where_the_path_has_a_space_and_quotes(folder: Folder) -> None:
    """The paths of the folder, the artifact and Python; the packages are those that the set-up fetched."""
    folder.set_up()
    folder.made("build")
    assert {"boto3", "usage_plan_key"} <= {path.name for path in (folder.path / "build").iterdir()}


#: What checkov does, and what make ends with and says.
AUDITS = {
    "exit 0": (0, "checkov finds nothing in template.yaml without a reason beside it."),
    "echo CKV_AWS_27; exit 1": (2, "CKV_AWS_27"),
    "": (0, "NOT ASKED: PyPI gave no checkov, so nobody has looked at template.yaml."),
}


@pytest.mark.parametrize("checkov", AUDITS)
def test_the_audit_fails_on_a_finding(checkov: str, folder: Folder) -> None:
    """Scripts play checkov and the build; what is not installed cannot be."""
    code, said = AUDITS[checkov]
    folder.set_up()
    folder.text("handler/Makefile", 'build-UsagePlanKeyFunction:\n\tmkdir "$$ARTIFACTS_DIR"\n')
    folder.script(".venv/bin/python", 'test "$2" = venv && exit 1\nexec "$REAL" "$@"')
    (folder.path / ".venv" / "audit").mkdir()
    if checkov:
        plays = f'case "$2 $4" in "checkov.main template.yaml") {checkov};; *) exit 0;; esac'
        for name, text in (("python", plays), ("checkov", ""), ("pip-audit", "")):
            folder.script(f".venv/audit/bin/{name}", text)
    assert said in folder.made("audit", code=code)
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


#: Variables, and whether the demo has colours at a terminal and elsewhere.
COLOURS = {
    "": [True, False],
    "NO_COLOR=1": [False, False],
    "TERM=dumb": [False, False],
    "FORCE_COLOR=1": [True, True],
    "FORCE_COLOR=1 NO_COLOR=1": [False, False],
}


@pytest.mark.parametrize("variables", COLOURS)
def test_the_demo_has_colours_where_they_are_wanted(variables: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal has them, unless somebody says otherwise: https://no-color.org."""
    for each in f"TERM=xterm NO_COLOR= FORCE_COLOR= {variables}".split():
        monkeypatch.setenv(*each.split("="))
    shown = []
    for terminal in (True, False):
        monkeypatch.setattr("sys.stdout.isatty", lambda terminal=terminal: terminal)
        shown.append("\033" in demo._shown(("Create", "Alice", "", "FAILED", "alice in Free", "")))
    assert shown == COLOURS[variables]
