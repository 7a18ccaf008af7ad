"""Runs sam as a person does: validates, builds, invokes every file in events/ and checks its answer.

Needed: Linux, Docker, and on PATH Python 3.13 and sam, in an environment of its own (docs/local.md).
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

from emulators.runtime import ROOT, Api

from .answers import EVENTS
from .test_events import IN_FREE, SITUATIONS, whole
from .test_runtime import gateway

FUNCTION = "UsagePlanKeyFunction"


def ran(*command: str) -> str:
    """Run a command in this repository; return its standard output."""
    aws = {"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "SAM_CLI_TELEMETRY": "0"}
    aws |= dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "testing")
    print(" ".join(command), flush=True)
    environment = os.environ | aws
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"It failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def bridge() -> str:
    """Ask Docker for the address that containers have for this machine. No other machine reaches that."""
    form = "{{json (index .IPAM.Config 0)}}"
    network = json.loads(ran("docker", "network", "inspect", "bridge", "--format", form))
    # A daemon that has made the bridge itself may leave the gateway out: it is the first address.
    return network.get("Gateway") or str(ip_network(network["Subnet"])[1])


def check(api: Api, variables: Path) -> None:
    """Validate, build, and invoke each file in its situation; end at the first unexpected answer."""
    ran("sam", "validate", "--lint")
    ran("sam", "build")
    for name, (before, attached, _, then) in SITUATIONS.items():
        api.gateway.attached = attached | ({IN_FREE} if "create" in before else set())
        invoke = ("sam", "local", "invoke", FUNCTION, "-e", f"events/{name}.json", "-n", str(variables))
        answer, expected = json.loads(ran(*invoke).strip().splitlines()[-1]), whole(name)
        for reasoned in (expected, answer):  # A container's log stream has a name of its own.
            if "Reason" in reasoned:
                reasoned["Reason"] = reasoned["Reason"].rpartition(" (log stream: ")[0]
        if (answer, api.gateway.attached) != (expected, then):
            sys.exit(f"{name}: {answer}\ninstead of {expected}\nAttached: {api.gateway.attached}")
    print(f"All {len(EVENTS)} files were answered as they should be")


def serve(api: Api, variables: Path) -> None:
    """Serve until Ctrl-C, and print the attached keys at each change."""
    print(f"A strict API Gateway listens on {api.url}; {variables} leads sam there. Ctrl-C ends it")
    said = None
    with suppress(KeyboardInterrupt):
        while True:
            if api.gateway.attached != said:
                said = set(api.gateway.attached)
                print(f"Attached: {', '.join(map(':'.join, sorted(said))) or 'nothing'}", flush=True)
            time.sleep(0.2)


def main() -> None:
    """Start the strict API Gateway, and lead sam there."""
    parser = argparse.ArgumentParser(description=__doc__)
    serves = "only serve the strict API Gateway, for sam local invoke --env-vars FILE"
    parser.add_argument("--api", metavar="FILE", type=Path, help=serves)
    options = parser.parse_args()
    if not options.api and not shutil.which("sam"):
        sys.exit("There is no sam on PATH")
    given = json.loads((ROOT / "env.json").read_text())
    with tempfile.TemporaryDirectory() as folder, Api(gateway(), bridge()) as api:
        given[FUNCTION]["AWS_ENDPOINT_URL_API_GATEWAY"] = api.url
        variables = options.api or Path(folder, "env.json")
        variables.write_text(json.dumps(given, indent=2))
        if options.api:
            serve(api, variables)
        else:
            check(api, variables)


if __name__ == "__main__":
    main()
