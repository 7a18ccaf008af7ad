"""Sets up .venv, which every target of the Makefile runs on: python3 -I tests/environment.py, from the root.

It has only the standard library. Its last step makes .venv/ready, so make never takes an interrupted set-up
for a finished one, and begins anew. Several at once make one .venv: the others wait for it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

VENV = Path(".venv")
READY, LOG, RUNTIME = VENV / "ready", VENV / "pip.log", VENV / "runtime"
#: If one of these is newer than .venv, make makes .venv anew; the Makefile has the same list.
NEEDS = [Path("tests/requirements.txt"), Path("tests/runtime.txt"), Path("handler/requirements.txt")]
#: What the system says of a folder of somebody else's, or of a file system that is read-only.
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
#: Seconds between two lines of progress in a log.
SELDOM = 15
WIPE = "\r\033[K"
#: urllib3, inside pip, begins with this to say why it tries again.
BROKEN = "connection broken by "


class SetUpError(Exception):
    """Raised when there can be no set-up; its text says why."""


class Progress:
    """One line that changes on a terminal; elsewhere a line now and then. Standard output is the target's."""

    def __init__(self) -> None:
        """Begin the count of seconds."""
        self._live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._began = self._told = time.monotonic()

    def tell(self, text: str) -> None:
        """Name the work."""
        now = time.monotonic()
        seconds = int(now - self._began)
        text = f"   {text}, {seconds} s" if seconds else f"   {text}"
        if self._live:
            sys.stderr.write(WIPE + text[: shutil.get_terminal_size().columns - 1])
            sys.stderr.flush()
        elif now - self._told >= SELDOM:
            say(text)
            self._told = now

    def end(self, text: str) -> None:
        """Say the result, in place of the line that changes."""
        say(WIPE * self._live + text)


def say(text: str) -> None:
    """Say it beside standard output."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@contextmanager
def alone() -> Iterator[int]:
    """Wait for any other set-up of this .venv; yield the lock's descriptor.

    The system keeps the lock, on this file. It ends with the last process that has it, and leaves no trace.
    A network file system wants the file writable for it; elsewhere a reader may have it too.
    """
    with Path(__file__).open("rb+" if os.access(__file__, os.W_OK) else "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Waiting: another make is setting up .venv")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def is_ready() -> bool:
    """Judge as make does, once the lock is there: another set-up may have ended meanwhile."""
    return READY.exists() and all(READY.stat().st_mtime_ns >= path.stat().st_mtime_ns for path in NEEDS)


def set_up(lock: int, progress: Progress) -> None:
    """Make .venv, whatever is there, but a link: behind it is a folder that somebody else may use."""
    if VENV.is_symlink():
        raise SetUpError(
            f".venv is a link to {VENV.readlink()}, and a set-up would empty that folder."
            " Remove the link, and make has a .venv of its own here."
        )
    progress.tell("making .venv")
    READY.unlink(missing_ok=True)
    venv.create(VENV, clear=True, symlinks=True, with_pip=True)
    install = partial(pip, lock, progress)
    install("the tests", "install", "--requirement", "tests/requirements.txt")
    # The tests build the artifact, and without a network.
    target = ("--dest", ".venv/wheels")
    install("the function", "download", "--no-deps", *target, "--requirement", "handler/requirements.txt")
    # Lambda's own runtime interface, and the emulator of it from SAM's wheel. Nothing needs the rest of SAM.
    target = ("--target", str(RUNTIME))
    install("Lambda's runtime", "install", "--no-deps", *target, "--requirement", "tests/runtime.txt")
    if (sam := RUNTIME / "samcli").is_dir():
        machine = platform.machine().replace("aarch64", "arm64")
        (sam / f"local/rapid/aws-lambda-rie-{machine}").rename(RUNTIME / "aws-lambda-rie")
    for rest in (sam, RUNTIME / "bin", *RUNTIME.glob("aws_sam_cli-*")):
        shutil.rmtree(rest, ignore_errors=True)
    READY.touch()


def pip(lock: int, progress: Progress, what: str, *arguments: str) -> None:
    """Run pip, and say what it does."""
    command = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    with LOG.open("wb") as sink:
        process = subprocess.Popen(
            [*command, *arguments],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            pass_fds=[lock],  # If pip outlives this process, the next set-up waits until it ends.
        )
    try:
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
            said = LOG.read_text(errors="replace")
            progress.tell(f"packages for {what}: {doing(said)}")
            if is_hopeless(said):
                break
    finally:
        process.terminate()
        process.wait()
    if process.returncode:
        raise SetUpError(why(LOG.read_text(errors="replace")))


def environment() -> dict[str, str]:
    """Have pip say at once what it does: this module reads it."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", "PIP_PROGRESS_BAR": "off", "PIP_QUIET": "0"}


def doing(said: str) -> str:
    """Tell from pip's output how far it is."""
    found = re.findall(r"^Collecting (\S+)", said, re.MULTILINE)
    if installing := re.search(r"^Installing collected packages: (.*)", said, re.MULTILINE):
        return f"installing {len(installing[1].split(','))}"
    return f"{len(found)} found, now {found[-1]}" if found else "looking"


def is_hopeless(said: str) -> bool:
    """Whether pip has reached nothing yet, and failed twice: its four other attempts would fail too."""
    return said.count(BROKEN) >= 2 and not re.search(r"^ +(Downloading|Using cached) ", said, re.MULTILINE)


def why(said: str) -> str:
    """Say in a sentence why pip failed: which host did not answer and how, or else pip's own words."""
    broken = said.rpartition(BROKEN)[2].partition("\n")[0] if BROKEN in said else ""
    if not broken:
        errors = re.findall(r"^ERROR: .*", said, re.MULTILINE) or said.splitlines()
        return "\n".join([*errors[-3:], f"All that pip said is in {LOG}."])
    index = re.search(r"^Looking in indexes: ([^\s,]+)", said, re.MULTILINE)
    host = urlsplit(index[1]).hostname if index else "pypi.org"
    if "ProxyError" in broken:
        proxy = getproxies().get("https", "").rpartition("//")[2].rpartition("@")[2]  # without a password
        host = f"{host} through the proxy {proxy}".rstrip()
    for reason in (
        r"\[Errno -?\d+\] ([^'\")]+)",
        r"(timed out)",
        r"\] (certificate verify failed[^('\"]*)",
        r".*'(\w[^'<>()]+)'",
    ):
        if found := re.search(reason, broken):
            return f"No network: pip cannot reach {host} ({found[1].strip()}). Run make again when it can."
    return f"No network: pip cannot reach {host}. All that pip said is in {LOG}."


def main() -> int:
    """Return 0 when .venv is ready."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    progress = Progress()
    try:
        with alone() as lock:
            if is_ready():
                return 0
            say("Setting up .venv: once, about a minute")
            began = time.monotonic()
            set_up(lock, progress)
            progress.end(f"Set up in {time.monotonic() - began:.0f} s")
            return 0
    except KeyboardInterrupt:
        progress.end("Interrupted: .venv is not ready; the next make sets it up anew.")
        return 130
    except SetUpError as error:
        progress.end(str(error))
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        progress.end(
            f"make needs to write into {Path.cwd()}, because it keeps its packages there, in .venv:"
            f" {error.strerror}. Make that folder yours, or copy it to a place that is."
            if isinstance(error, OSError) and error.errno in NOT_WRITABLE
            else f".venv cannot be made: {error}"
        )
    return 1


if __name__ == "__main__":
    sys.exit(main())
