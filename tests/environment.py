"""Sets up .venv, which every target of the Makefile runs on; make starts it, from the root.

It has only the standard library. Its last step makes .venv/ready, so make never takes an interrupted set-up
for a finished one, and begins anew. Several at once make one .venv: the others wait for it.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

VENV = Path(".venv")
READY, LOG, RUNTIME = VENV / "ready", VENV / "pip.log", VENV / "runtime"

#: urllib3, inside pip, begins with this to say why it tries again.
BROKEN = "connection broken by "


def say(text: str) -> None:
    """Say it beside standard output, which is the target's."""
    sys.stderr.write(f"{text}\n")


def is_ready() -> bool:
    """Judge as make does, which names the files that .venv may not be older than."""
    return READY.exists() and all(READY.stat().st_mtime >= Path(it).stat().st_mtime for it in sys.argv[1:])


def set_up(lock: int) -> None:
    """Make .venv, whatever is there, but a link: behind it is a folder that somebody else may use."""
    if VENV.is_symlink():
        sys.exit(
            f".venv is a link to {VENV.readlink()}, and a set-up would empty that folder."
            " Remove the link, and make has a .venv of its own here."
        )
    say("Setting up .venv: once, about a minute")
    began = time.monotonic()
    READY.unlink(missing_ok=True)
    venv.create(VENV, clear=True, symlinks=True, with_pip=True)
    pip(lock, "the tests", "install --requirement tests/requirements.txt")
    # The tests build the artifact, and without a network.
    pip(lock, "the function", "download --no-deps --dest .venv/wheels --requirement handler/requirements.txt")
    # Lambda's own runtime interface, and the emulator of it from SAM's wheel. Nothing needs the rest of SAM.
    pip(lock, "Lambda's runtime", f"install --no-deps --target {RUNTIME} --requirement tests/runtime.txt")
    machine = platform.machine().replace("aarch64", "arm64")
    for emulator in RUNTIME.glob(f"samcli/local/rapid/aws-lambda-rie-{machine}"):
        emulator.rename(RUNTIME / "aws-lambda-rie")
    shutil.rmtree(RUNTIME / "samcli", ignore_errors=True)
    READY.touch()
    say(f"Set up in {time.monotonic() - began:.0f} s")


def pip(lock: int, what: str, command: str) -> None:
    """Fetch packages. If pip outlives this process, the next set-up waits until it ends: it has the lock."""
    say(f"   packages for {what}")
    python = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    with LOG.open("w") as log:
        done = subprocess.run(
            [*python, "--retries", "3", *command.split()],
            env={**os.environ, "PIP_QUIET": "0"},  # why() reads all that it says.
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[lock],
            check=False,
        )
    if done.returncode:
        sys.exit(why(LOG.read_text(errors="replace")))


def why(said: str) -> str:
    """Say in a sentence why pip failed: which host did not answer and how, or else pip's own words."""
    if BROKEN not in said:
        errors = re.findall(r"^ERROR: .*", said, re.MULTILINE) or said.splitlines()
        return "\n".join([*errors[-3:], f"All that pip said is in {LOG}."])
    broken = said.rpartition(BROKEN)[2].partition("\n")[0]
    index = re.search(r"^Looking in indexes: (.*)", said, re.MULTILINE)  # without their passwords
    place = (index[1] if index else "pypi.org") + " through your proxy" * ("ProxyError" in broken)
    # Errors lie within errors, and the innermost text is the cause.
    *_, cause = ["no reason", *re.findall(r"(?:[A-Z][a-z]+|certificate verify failed:)(?: [\w.-]+)+", broken)]
    return f"No network: pip cannot reach {place} ({cause.rstrip('.')}). Run make again when it can."


def main() -> None:
    """Wait for any other set-up of this .venv, then set it up, unless that one has.

    The system keeps the lock, on this file. It ends with the last process that has it, and leaves no trace.
    """
    try:
        with Path(__file__).open("rb+") as lock:  # A network file system wants it writable.
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("Waiting: another make is setting up .venv")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_ready():
                set_up(lock.fileno())
    except KeyboardInterrupt:
        sys.exit("Interrupted: .venv is not ready; the next make sets it up anew.")
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(
            f".venv cannot be made: {error}. make keeps its packages in {VENV.absolute()}:"
            " it needs a folder that is yours, with 600 MB to spare."
        )


if __name__ == "__main__":
    main()
