"""A newcomer's terminal shows the set-up of .venv, each disturbance of it, and the demo's colours.

Each test has a copy of the Makefile in a folder whose name holds a space and quotes. A shell script plays a
slow pip; the tests without a network run pip itself.
"""

import ctypes
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from emulators import ministack
from examples import demo

from . import environment

ROOT = Path(__file__).parents[1]
COPIED = ("Makefile", "handler", "tests/environment.py")
TARGETS = set(re.findall(r"^([a-z-]+):(?! export)", (ROOT / "Makefile").read_text(), re.MULTILINE))
#: Seconds until a wait fails.
PATIENCE = 30
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
PIP = """#!/bin/sh
case "$*" in "-m pip "*) ;; *) echo "ran $*"; exit;; esac
echo begin >> calls
while test -e hold; do sleep 0.02; done
echo end >> calls
"""
#: One set-up runs pip three times in turn.
ONE_SET_UP = ["begin", "end"] * 3


@dataclass
class Make:
    """A make that runs; its output goes to files, so reading it never blocks."""

    process: subprocess.Popen[bytes]
    output: Path

    def ended(self) -> int:
        """Wait for its exit code."""
        return self.process.wait(PATIENCE)

    @property
    def told(self) -> str:
        """Standard output."""
        return self.output.with_suffix(".out").read_text()

    @property
    def chatter(self) -> str:
        """Standard error."""
        return self.output.with_suffix(".err").read_text()


@dataclass
class Folder:
    """A fresh clone, as far as the set-up needs one."""

    path: Path
    started: list[Make] = field(default_factory=list)

    def make(self, *arguments: str, python: str = "stub/python3", **environment: str) -> Make:
        """Start make."""
        given = {**os.environ, "REAL": sys.executable, "PYTHON": str(self.path / python), **environment}
        output = self.path.parent / str(len(self.started))
        with output.with_suffix(".out").open("wb") as out, output.with_suffix(".err").open("wb") as err:
            process = subprocess.Popen(
                ["make", *arguments],
                cwd=self.path,
                env={name: value for name, value in given.items() if not name.startswith("MAKE")},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                # A shell's background job ignores Ctrl-C, and so would all that it starts.
                preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
            )
        self.started.append(Make(process, output))
        return self.started[-1]

    def hold(self, *, on: bool = True) -> None:
        """Have pip take its time, or let it go."""
        (self.path / "hold").touch() if on else (self.path / "hold").unlink()

    def calls(self) -> list[str]:
        """Read the beginnings and ends of pip's runs, in order."""
        return (self.path / "calls").read_text().split() if (self.path / "calls").exists() else []

    @property
    def is_ready(self) -> bool:
        """Whether make takes it for ready."""
        return (self.path / ".venv" / "ready").exists()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """A folder of such a name; every process of it ends with the test."""
    made = Folder(tmp_path / "a b" / 'ünï\'x "y"')
    for name in COPIED:
        copy: Callable[[Path, Path], object] = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (made.path / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, made.path / name)
    for name, text in (
        ("tests/requirements.txt", "six==1.17.0"),
        ("tests/runtime.txt", ""),
        ("setter.py", SETTER),
        ("pip.sh", PIP),
    ):
        (made.path / name).write_text(text)
    for name in ("stub", "emulators", "examples", "benchmarks", "tools"):
        (made.path / name).mkdir()
    stub = made.path / "stub" / "python3"
    stub.write_text('#!/bin/sh\ntest "$1" = -c || set -- setter.py\nexec "$REAL" "$@"\n')
    real = made.path / "stub" / "real"
    real.write_text('#!/bin/sh\nexec "$REAL" "$@"\n')
    for script in (stub, real):
        script.chmod(0o755)
    yield made
    (made.path / "hold").unlink(missing_ok=True)
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
    folder.hold()
    first = folder.make("test")
    eventually(folder.calls)
    second = folder.make("demo")
    eventually(lambda: "Waiting: another make is setting up .venv" in second.chatter)
    folder.hold(on=False)
    assert (first.ended(), second.ended()) == (0, 0)
    assert folder.calls() == ONE_SET_UP
    assert "ran -m pytest" in first.told
    assert "ran -m examples" in second.told
    assert not re.search(r"[\r\033]", first.told + first.chatter), "what is no terminal gets no control codes"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_an_interrupted_set_up_is_never_taken_for_ready(how: signal.Signals, folder: Folder) -> None:
    """The next make sets up everything anew."""
    folder.hold()
    make = folder.make("test")
    eventually(folder.calls)
    os.killpg(make.process.pid, how)
    assert make.ended()
    interrupted = "Interrupted: .venv is not ready; the next make sets it up anew."
    assert how is signal.SIGKILL or eventually(lambda: interrupted in make.chatter)
    assert "Traceback" not in make.chatter
    assert (folder.path / ".venv").exists()
    assert not folder.is_ready
    folder.hold(on=False)
    assert folder.make("test").ended() == 0
    assert folder.calls()[-6:] == ONE_SET_UP
    assert folder.is_ready


def test_a_pip_that_outlives_its_make_is_waited_for(folder: Folder) -> None:
    """The next make waits no longer than pip lives: nobody has to remove a lock."""
    folder.hold()
    first = folder.make("test")
    eventually(folder.calls)
    os.kill(int((folder.path / "setter").read_text()), signal.SIGKILL)
    first.ended()
    second = folder.make("test")
    eventually(lambda: "Waiting: another make is setting up .venv" in second.chatter)
    folder.hold(on=False)
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


def test_without_a_network_pip_says_so_at_once_and_in_one_sentence(folder: Folder) -> None:
    """It is pip itself, behind a proxy that is not there; the sentence shows no password of the proxy's."""
    proxy = f"127.0.0.1:{ministack.free_port()}"
    nowhere = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_FIND_LINKS": "",
        "PIP_NO_INDEX": "0",
        "PIP_INDEX_URL": "https://pypi.test/simple",
    }
    proxies = dict.fromkeys(("http_proxy", "https_proxy"), f"http://somebody:secret@{proxy}")
    make = folder.make("test", python="stub/real", **nowhere, **proxies)
    assert make.ended() == 2
    said = [line for line in make.chatter.splitlines() if not line.startswith(("make", "Setting up", "   "))]
    assert said == [
        (
            f"No network: pip cannot reach pypi.test through the proxy {proxy} (Connection refused)."
            " Run make again when it can."
        )
    ]
    assert not folder.is_ready


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (
            (
                "'NewConnectionError('<a connection>: Failed to establish a new connection: [Errno 111]"
                " Connection refused')'"
            ),
            "Connection refused",
        ),
        (
            (
                "'NameResolutionError(\"<a connection>: Failed to resolve 'pypi.org' ([Errno -2] Name"
                " or service not known)\")'"
            ),
            "Name or service not known",
        ),
        (
            "'ConnectTimeoutError(<a connection>, 'Connection to pypi.org timed out. (connect timeout=15)')'",
            "timed out",
        ),
        (
            (
                "'SSLError(SSLError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed:"
                " self-signed (_ssl.c:1)'))'"
            ),
            "certificate verify failed: self-signed",
        ),
        (
            "'ProtocolError('Connection aborted.', RemoteDisconnected('Remote end closed it'))'",
            "Remote end closed it",
        ),
    ],
)
def test_the_sentence_names_the_cause(broken: str, reason: str) -> None:
    """As urllib3, which pip has inside, writes it."""
    said = (
        f"WARNING: Retrying (Retry(total=4)) after connection broken by {broken}:"
        " /simple/six/\nERROR: No matching distribution\n"
    )
    assert (
        environment.why(said)
        == f"No network: pip cannot reach pypi.org ({reason}). Run make again when it can."
    )


def test_an_error_that_is_not_the_networks_is_told_in_pips_words() -> None:
    said = environment.why("Collecting six==0\nERROR: No matching distribution found for six==0\n")
    assert said == "ERROR: No matching distribution found for six==0\nAll that pip said is in .venv/pip.log."


def test_pip_is_ended_only_when_it_has_reached_nothing() -> None:
    """On a network that stutters, pip itself tries again."""
    twice = f"WARNING: {environment.BROKEN}it\n" * 2
    assert environment.is_hopeless(twice)
    assert not environment.is_hopeless(twice[: len(twice) // 2])
    assert not environment.is_hopeless(f"Collecting six\n  Downloading six.whl (11 kB)\n{twice}")


def as_somebody() -> None:
    """Take from root, for the program that is started next, the right to write everywhere.

    https://man7.org/linux/man-pages/man7/capabilities.7.html
    """
    drop, everywhere = 24, 1  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE
    if not os.geteuid():
        ctypes.CDLL(None).prctl(drop, everywhere, 0, 0, 0)


def test_a_checkout_that_may_not_be_written_says_what_is_needed(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "environment.py", tmp_path / "tests")
    (tmp_path / "tests" / "environment.py").chmod(0o444)
    tmp_path.chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-I", "tests/environment.py"],
        cwd=tmp_path,
        preexec_fn=as_somebody,
        check=False,
        capture_output=True,
        text=True,
    )
    tmp_path.chmod(0o755)
    assert done.returncode == 1
    needed = f"make needs to write into {tmp_path}, because it keeps its packages there, in .venv: Permission"
    assert done.stderr.splitlines()[1:] == [
        f"{needed} denied. Make that folder yours, or copy it to a place that is."
    ]


def test_a_read_only_file_system_says_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another error of the system's is told in the system's words."""
    monkeypatch.setattr("tests.environment.is_ready", lambda: False)
    for number, said in ((errno.EROFS, "make needs to write into"), (errno.ENOSPC, "No space left")):

        def create(*_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number), "/a/path")

        monkeypatch.setattr("tests.environment.set_up", create)
        assert environment.main() == 1
        assert said in capsys.readouterr().err


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
    assert {line.split()[1] for line in asked.told.splitlines()} == TARGETS
    assert [line for line in asked.told.splitlines() if len(line) > 80 or len(line.split()) < 3] == []
    assert plain.told == asked.told
    assert not (folder.path / ".venv").exists()


def test_make_clean_leaves_the_clone_as_it_was(folder: Folder) -> None:
    """Also after half a set-up, and where there is nothing to remove."""
    shutil.rmtree(folder.path / "handler" / "__pycache__", ignore_errors=True)
    shutil.rmtree(folder.path / "handler" / "usage_plan_key" / "__pycache__", ignore_errors=True)
    fresh = set(folder.path.rglob("*"))
    for made in (".venv/bin", "build/boto3", "tests/__pycache__", ".mypy_cache"):
        (folder.path / made).mkdir(parents=True)
    for _ in range(2):
        assert folder.make("clean").ended() == 0
        assert set(folder.path.rglob("*")) == fresh


def test_the_artifact_is_built_where_the_path_has_a_space_and_quotes(folder: Folder) -> None:
    """The paths of the folder, the artifact and Python; the packages are those that the set-up fetched."""
    (folder.path / ".venv").mkdir()
    (folder.path / ".venv" / "wheels").symlink_to(Path(sys.prefix) / "wheels")
    (folder.path / ".venv" / "ready").touch()
    make = folder.make("build", python="stub/real")
    assert make.ended() == 0, make.chatter
    assert {"boto3", "usage_plan_key"} <= {path.name for path in (folder.path / "build").iterdir()}


@pytest.mark.parametrize(
    ("checkov", "code", "said"),
    [
        ("exit 0", 0, "checkov finds nothing in template.yaml without a reason beside it."),
        ("echo CKV_AWS_27; exit 1", 2, "CKV_AWS_27"),
        (None, 0, "NOT ASKED: PyPI gave no checkov, so nobody has looked at template.yaml."),
    ],
    ids=["nothing", "a finding", "no network"],
)
def test_the_audit_fails_on_a_finding_of_an_organisations_gate(
    checkov: str | None, code: int, said: str, folder: Folder
) -> None:
    """A script plays checkov, and Python itself builds the artifact; what is not installed cannot be."""
    audit, bin_ = folder.path / ".venv" / "audit" / "bin", folder.path / ".venv" / "bin"
    scripts = {bin_ / "python": 'test "$2" = venv && exit 1\nexec "$REAL" "$@"'}
    if checkov:
        plays = f'case "$2 $4" in "checkov.main template.yaml") {checkov};; *) exit 0;; esac'
        scripts |= {audit / "python": plays, audit / "checkov": "", audit / "pip-audit": ""}
    audit.mkdir(parents=True)
    bin_.mkdir()
    for path, script in scripts.items():
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    (folder.path / ".venv" / "wheels").symlink_to(Path(sys.prefix) / "wheels")
    (folder.path / ".venv" / "ready").touch()
    make = folder.make("audit", python="stub/real")
    assert make.ended() == code, make.chatter
    assert said in make.told.splitlines()
    assert (folder.path / "build").exists() is (code == 0), "a finding ends it"


def test_the_demo_reads_no_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not even find that botocore cannot parse a file there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name)
    (tmp_path / ".aws").mkdir()
    for name in ("config", "credentials"):
        (tmp_path / ".aws" / name).write_text("[")
    with ministack._unconfigured():
        ministack._client("sts", "https://127.0.0.1:1", tmp_path).close()


@pytest.mark.parametrize(
    ("terminal", "variables", "coloured"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
        (False, {"FORCE_COLOR": "1"}, True),
        (False, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_the_demo_has_colours_where_they_are_wanted(
    terminal: bool, variables: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal has them, unless somebody says otherwise: https://no-color.org."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    assert demo._shown(("Create", "Alice", "", "FAILED", "alice in Free", "")).count("\033") == 2 * coloured


def test_the_demo_keeps_to_80_columns() -> None:
    widest = demo._shown(("Update", "CarolInc", "frank in Free", "SUCCESS", "frank in Free", "ATTACHED"))
    reason = demo._filled("usage-plan-key " * 20, "   Reason: ")
    assert max(map(len, [widest, *reason.splitlines()])) <= 80
    assert reason.split()[1:] == ["usage-plan-key"] * 20, "a name can be copied"
