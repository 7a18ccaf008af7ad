"""Runs sam as a person does: validates, builds, invokes every file in events/ and checks its answer.

Needed: Linux, Docker, Python 3.13 on PATH, and aws-sam-cli in an environment of its own, because its
    pins differ from this project's:

    python3 -m venv /tmp/sam && /tmp/sam/bin/pip install aws-sam-cli
    make sam-local ARGS="--sam /tmp/sam/bin/sam"
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path

from emulators.fake import ApiGateway
from emulators.runtime import ROOT, Api

from .answers import EVENTS
from .test_events import IN_FREE, SITUATIONS, whole
from .test_runtime import gateway

FUNCTION = "UsagePlanKeyFunction"
#: Events in order on one API: they attach, verify and detach a key.
LIFE = ("create", "update-verify", "delete")
#: Events that need no API.
ALONE = ("create-bad-property", "delete-after-failed-create")


class Sam:
    """The command, in this repository."""

    def __init__(self, command: str, options: list[str]) -> None:
        self._command, self._options = command, options

    def __call__(self, *arguments: str) -> str:
        """Run a subcommand; return its standard output."""
        began = time.monotonic()
        aws = {"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "SAM_CLI_TELEMETRY": "0"}
        aws |= dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "testing")
        done = _run(self._command, *arguments, environment=os.environ | aws)
        if done.returncode:
            sys.exit(f"sam {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
        print(f"{time.monotonic() - began:5.1f} s  sam {' '.join(arguments)}", flush=True)
        return done.stdout

    def check(self, name: str, variables: Path | None = None, attached: ApiGateway | None = None) -> None:
        """Invoke the function with a file, under samconfig.toml's variables or others; check its answer."""
        more = ["--env-vars", str(variables)] if variables else []
        printed = self("local", "invoke", FUNCTION, "--event", f"events/{name}.json", *more, *self._options)
        answer, expected = json.loads(printed.strip().splitlines()[-1]), whole(name)
        for reasoned in (expected, answer):  # A container's log stream has a name of its own.
            if "Reason" in reasoned:
                reasoned["Reason"] = reasoned["Reason"].rpartition(" (log stream: ")[0]
        if answer != expected:
            sys.exit(f"{name}: {json.dumps(answer, indent=2)}\ninstead of {json.dumps(expected, indent=2)}")
        if attached and attached.attached != SITUATIONS[name][3]:
            sys.exit(f"After {name}, attached is {attached.attached}")
        print(f"         {answer['Status']} {answer.get('Data', {}).get('Outcome', '')}", flush=True)


def _run(*command: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)


def main() -> None:
    """Do it all; ends with an error at the first answer that is not the expected one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sam", default=shutil.which("sam"), help="the command")
    parser.add_argument("--skip-pull-image", action="store_true", help="the base image is here already")
    parser.add_argument(
        "--api",
        metavar="FILE",
        type=Path,
        help="serve the strict API Gateway alone, for sam local invoke --env-vars FILE",
    )
    options = parser.parse_args()
    if options.api:
        _serve(options.api)
        return
    if not options.sam:
        sys.exit("There is no sam on PATH, and none was named (--sam)")
    sam = Sam(options.sam, ["--skip-pull-image"] if options.skip_pull_image else [])
    sam("validate", "--lint")
    sam("build")
    for name in ALONE:
        sam.check(name)
    api_gateway = gateway()
    # A container reaches this machine's servers only at the bridge's address. No other machine reaches that.
    with tempfile.TemporaryDirectory() as folder, Api(api_gateway, _bridge()) as api:
        variables = Path(folder, "env.json")
        _write_variables(variables, api.url)
        for name in LIFE:
            sam.check(name, variables, api_gateway)
        for name in EVENTS.keys() - {*LIFE, *ALONE}:
            before, attached, _, _ = SITUATIONS[name]
            api_gateway.attached = attached | ({IN_FREE} if before else set())
            sam.check(name, variables, api_gateway)
    print(f"All {len(EVENTS)} files were answered as they should be")


def _write_variables(file: Path, url: str) -> None:
    given = json.loads((ROOT / "env.json").read_text())
    given[FUNCTION]["AWS_ENDPOINT_URL_API_GATEWAY"] = url
    file.write_text(json.dumps(given, indent=2))


def _serve(variables: Path) -> None:
    """Serve until Ctrl-C, and print the attached keys at each change."""
    said = None
    with Api(gateway(), _bridge()) as api, suppress(KeyboardInterrupt):
        _write_variables(variables, api.url)
        print(
            f"A strict API Gateway listens on {api.url}; {variables} leads sam there. Ctrl-C ends it",
            flush=True,
        )
        while True:
            if api.gateway.attached != said:
                said = set(api.gateway.attached)
                print(f"Attached: {', '.join(map(':'.join, sorted(said))) or 'nothing'}", flush=True)
            time.sleep(0.2)


def _bridge() -> str:
    """Ask Docker for the address that containers have for this machine."""
    form = "{{json (index .IPAM.Config 0)}}"
    done = _run("docker", "network", "inspect", "bridge", "--format", form)
    if done.returncode:
        sys.exit(f"Docker is needed, and it does not answer: {done.stderr.strip()}")
    network = json.loads(done.stdout)
    # A daemon that has made the bridge itself may leave the gateway out: it is the first address.
    return network.get("Gateway") or str(ip_network(network["Subnet"])[1])


if __name__ == "__main__":
    main()
