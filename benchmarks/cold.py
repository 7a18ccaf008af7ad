"""Measures a cold start and a warm request under Lambda's runtime, beside a bare function's: `make cold`.

Every figure is the median of fresh processes (RIE and awslambdaric: emulators/runtime.py). The functions take
turns, and each round gives one ratio. The others have boto3 and crhelper as pip installs them, with byte
code. A function has a processor of its own; the servers use another one. The servers are local and answer at
once, over TLS with as many authorities to load as AWS's, so the figures show the function's own time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copy, which
from statistics import median
from typing import Any, Final

from emulators.fake import ApiGateway, Key, Plan
from emulators.runtime import HANDLER, ROOT, RUNTIME, START, Api, Function, function
from emulators.sink import Sink

HANDLERS: Final = Path(__file__).with_name("handlers")
WHEELS: Final = ROOT / ".venv" / "wheels"
#: Sizes in MB, and the one that buys a whole processor.
#: https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html
SIZES: Final = (128, 256, 512, 1024)
WHOLE: Final = 1769
#: Seconds that API Gateway takes for a call in the comparison of sizes: a small function waits for it too.
CALL: Final = 0.3
#: The order of a warm function's requests.
CYCLE: Final = ("Update", "Delete", "Create")
PLAN: Final = "f7r3e3"
KEY: Final = "a1b2c3d4e5"


@dataclass(frozen=True)
class Contestant:
    """A deployed function. `queued`: the queue invokes it."""

    name: str
    artifact: Path
    handler: str = HANDLER
    environment: dict[str, str] = field(default_factory=dict)
    queued: bool = False


@dataclass(frozen=True)
class Run:
    """One fresh process: milliseconds from its start to ready and to the first answer, and kilobytes at most.

    `warm` has the time of a warm request of each type, and `cpu` only its time on the processor.
    """

    init: float
    first: float
    memory: float
    warm: dict[str, float]
    cpu: dict[str, float]


class World:
    """The servers that the functions talk to."""

    def __init__(self, stack: ExitStack, authorities: Path) -> None:
        """Start it all; AWS's clients trust `authorities`."""
        self.gateway = ApiGateway()
        self.gateway.plans, self.gateway.keys = (
            {PLAN: Plan("Free", (("api", "prod"),))},
            {KEY: Key("alice", "s3cr3t" * 4)},
        )
        self.sink = stack.enter_context(Sink())
        self.api = stack.enter_context(Api(self.gateway, certificate=self.sink.certificate))
        certificate = self.sink.certificate.read_text()
        bundle = Path(stack.enter_context(tempfile.TemporaryDirectory()), "bundle.pem")
        bundle.write_text(
            authorities.read_text() + certificate[certificate.index("-----BEGIN CERTIFICATE") :]
        )
        endpoints = {
            f"AWS_ENDPOINT_URL_{service}": self.api.url for service in ("API_GATEWAY", "DYNAMODB", "SQS")
        }
        self.environment = {"AWS_CA_BUNDLE": str(bundle), "SSL_CERT_FILE": str(bundle), **endpoints}
        self._requests = self._resources = 0

    def event(self, kind: str) -> dict[str, Any]:
        """Make a request of this moment; a Create is for a new resource."""
        self._requests += 1
        self._resources += kind == "Create"
        event = {
            "RequestType": kind,
            "ResponseURL": self.sink.url,
            "StackId": "arn:aws:cloudformation:eu-central-1:111111111111:stack/cold/1",
            "RequestId": f"request-{self._requests}",
            "LogicalResourceId": f"Resource{self._resources}",
            "ResourceType": "Custom::UsagePlanKey",
            "ResourceProperties": {"UsagePlanId": PLAN, "KeyId": KEY},
        }
        return event if kind == "Create" else {**event, "PhysicalResourceId": f"{KEY}:{PLAN}"}

    def clear(self) -> None:
        """Begin anew: detach everything and empty the ledger."""
        self.gateway.attached = set()
        self.api.table.items.clear()


class Bench:
    """Runs functions in a world."""

    def __init__(self, world: World, python: Path, processor: int) -> None:
        """Take the world, the interpreter, and the processor that functions have."""
        self._world = world
        self._python = python
        self._runtime = _runtime_for(python)
        self._processor = processor

    def run(self, contestant: Contestant, warm: int) -> Run:
        """Measure a fresh process: cold, then so many warm requests of each type."""
        with self._started(contestant) as running:
            first = self._ask(running, contestant, "Create")
            init = running.milliseconds("INIT REPORT")
            took, used = defaultdict(list), defaultdict(list)
            for number in range(warm * len(CYCLE)):
                kind = CYCLE[number % len(CYCLE)]
                before = _on_processor(running.pid)
                self._ask(running, contestant, kind)
                took[kind].append(running.milliseconds("INVOKE RTDONE", number + 2))
                used[kind].append(_on_processor(running.pid) - before)
            times = [{kind: median(values) for kind, values in of.items()} for of in (took, used)]
            return Run(init, first, running.peak_memory, *times)

    def limited(self, contestant: Contestant, size: int, warm: int) -> tuple[float, float]:
        """Measure the first Create after init and warm requests, in ms, with a size's CPU share."""
        with self._started(contestant) as running:
            running.invoke({})  # It raises, and has started now. Init has a whole processor.
            with _share(running.pid, size / WHOLE):
                first = self._ask(running, contestant, "Create")
                later = [
                    self._ask(running, contestant, CYCLE[number % len(CYCLE)])
                    for number in range(warm * len(CYCLE))
                ]
                return first, median(later)

    @contextmanager
    def _started(self, contestant: Contestant) -> Iterator[Function]:
        self._world.clear()
        with function(
            contestant.artifact,
            self._world.environment | contestant.environment,
            handler=contestant.handler,
            timeout=90,
            python=str(self._python),
            runtime=self._runtime,
            start=f"import os; os.sched_setaffinity(0, {{{self._processor}}}); {START}",
        ) as running:
            yield running

    def _ask(self, running: Function, contestant: Contestant, kind: str) -> float:
        """Have a request served; return how many milliseconds that took, seen from outside."""
        event = self._world.event(kind)
        if contestant.queued:
            # Without `arrived` the function fences it too: no other invocation has.
            body = json.dumps({"event": event})
            sent = str(int(time.time() * 1000))
            attributes = {"MessageGroupId": "1", "ApproximateReceiveCount": "1", "SentTimestamp": sent}
            event = {
                "Records": [{"messageId": "1", "receiptHandle": "1", "body": body, "attributes": attributes}]
            }
        began = time.perf_counter()
        answered = running.invoke(event)
        took = (time.perf_counter() - began) * 1000
        refused = [put.answer for put in self._world.sink.puts if put.answer["Status"] != "SUCCESS"]
        self._world.sink.puts.clear()
        if refused or answered not in (None, {"batchItemFailures": []}):
            raise RuntimeError(f"{contestant.name} answered {answered or refused}\n{running.log}")
        return took


def _on_processor(pid: int) -> float:
    """Tell how long a process has been on a processor, in milliseconds: Linux's clock_getcpuclockid(3)."""
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e6


@contextmanager
def _share(pid: int, share: float) -> Iterator[None]:
    """Limit a process to a share of a processor, in periods of 20 ms.

    Raises:
        PermissionError: This process cannot make a control group: that takes root, and a writable cgroup file
            system.
    """
    period = 20_000
    quota = int(period * share)
    v1, v2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    root = v1 if v1.is_dir() else v2
    group = root / f"usage-plan-key-{pid}"
    try:
        try:
            group.mkdir()
            if root == v1:
                (group / "cpu.cfs_period_us").write_text(str(period))
                (group / "cpu.cfs_quota_us").write_text(str(quota))
            else:
                (group / "cpu.max").write_text(f"{quota} {period}")
            (group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            raise PermissionError(
                "Sizes are compared by control groups, and none can be made here: it takes root"
            ) from error
        yield
    finally:
        with suppress(OSError):  # It has ended, or there never was a group.
            (root / "cgroup.procs").write_text(str(pid))
        with suppress(FileNotFoundError):
            group.rmdir()


def _build(folder: Path, python: Path) -> tuple[Path, Path]:
    """Build the artifact, and whole boto3 and crhelper for the others, with byte code for this Python."""
    ours, others = folder / "ours", folder / "others"
    environment = {
        **os.environ,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": WHEELS.as_uri(),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    make = [
        "make",
        "-C",
        str(ROOT / "handler"),
        "build-UsagePlanKeyFunction",
        f"ARTIFACTS_DIR={ours}",
        f"PYTHON={python}",
    ]
    subprocess.run(make, env=environment, check=True, capture_output=True)
    subprocess.run(
        [*_pip(python, others), "--no-compile", "--requirement", str(ROOT / "handler" / "requirements.txt")],
        env=environment,
        check=True,
        capture_output=True,
    )
    for handler in HANDLERS.glob("[!_]*.py"):
        copy(handler, others)
    for artifact in (ours, others):
        if not list(artifact.rglob("*.pyc")):
            compiling = [
                str(python),
                "-m",
                "compileall",
                "-q",
                "--invalidation-mode",
                "unchecked-hash",
                str(artifact),
            ]
            subprocess.run(compiling, check=True)
    return ours, others


def _pip(python: Path, folder: Path) -> list[str]:
    """Begin a command that installs into a folder."""
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return [*pip, "--no-deps", "--target", str(folder)]


def _lambdas_python() -> Path:
    """Find the Python that the function runs on; else this one."""
    wanted = re.search(r"Runtime: (python[\d.]+)", (ROOT / "template.yaml").read_text())
    found = which(wanted[1]) if wanted else None
    if found:
        asked: list[str] = [found, "-c", "import pip, sys; print(sys.executable)"]
        done = subprocess.run(asked, check=False, capture_output=True, text=True)
        if not done.returncode:
            return Path(done.stdout.strip())
    return Path(sys.executable)


def _runtime_for(python: Path) -> Path:
    """Find awslambdaric for a Python; install a copy of its own if the Python is not this environment's."""
    asked = [str(python), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    version = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return RUNTIME
    folder = RUNTIME.with_name(f"runtime-{version}")
    if not folder.is_dir():
        pinned = (ROOT / "tests" / "runtime.txt").read_text().splitlines()
        wanted = [line.partition(";")[0] for line in pinned if not line.startswith(("#", "aws-sam-cli"))]
        subprocess.run([*_pip(python, folder), *wanted], check=True)
    return folder


def _contestants(ours: Path, others: Path, queue: str) -> list[Contestant]:
    ledger = {"LEDGER_TABLE": "ledger"}
    queued = {**ledger, "QUEUE_URL": queue}
    return [
        Contestant("the floor: one client, one call", others, "floor.calling"),
        Contestant("the floor and the answer's PUT", others, "floor.answering"),
        Contestant("crhelper's README", others, "readme.handler"),
        Contestant("this, without ledger and queue", ours),
        Contestant("this, with the ledger", ours, environment=ledger),
        Contestant("this, into the queue", ours, environment=queued),
        Contestant("this, out of the queue", ours, environment=queued, queued=True),
    ]


def _figures(contestants: Sequence[Contestant], runs: Sequence[Sequence[Run]]) -> Iterator[str]:
    """Write the table: medians, and in brackets the medians of the ratios."""
    kinds = sorted(CYCLE)
    call, put, readme, this = runs[:4]
    yield "| | ready | first answer | peak memory | " + " | ".join(f"warm {kind}" for kind in kinds) + " |"
    yield "|---" * (4 + len(kinds)) + "|"
    for contestant, of in zip(contestants, runs, strict=True):
        cells = [
            contestant.name,
            _figure([run.init for run in of], [least.init for least in call]),
            _figure([run.first for run in of], [least.first for least in call]),
            f"{median(run.memory for run in of) / 1024:.0f} MB",
            *(_figure([run.warm[kind] for run in of], [least.warm[kind] for least in put]) for kind in kinds),
        ]
        yield f"| {' | '.join(cells)} |"
    cpu = [_ratio([run.cpu[kind] for run in this], [least.cpu[kind] for least in put]) for kind in kinds]
    ratios = ", ".join(f"{ratio:.2f}" for ratio in cpu)
    yield f"\nThe processor's time alone, warm, of this against floor and PUT: {ratios}"
    less = 1 - _ratio([run.init for run in this], [other.init for other in readme])
    yield f"This is ready {less:.0%} sooner than crhelper's README"


def _figure(values: Sequence[float], floor: Sequence[float]) -> str:
    return f"{median(values):.1f} ({_ratio(values, floor):.2f})"


def _ratio(values: Sequence[float], others: Sequence[float]) -> float:
    return median(value / other for value, other in zip(values, others, strict=True))


def main() -> None:
    """Measure, and print a table."""
    # If somebody ends it, it ends every process that it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, help="fresh processes of each function: 15, and 5 with --sizes")
    parser.add_argument(
        "--warm", type=int, help="warm requests of each type in each process: 10, and 2 with --sizes"
    )
    parser.add_argument(
        "--sizes", action="store_true", help="compare memory sizes instead: eight minutes, and it takes root"
    )
    parser.add_argument(
        "--python", type=Path, default=_lambdas_python(), help="Lambda's, if it is here; else this one"
    )
    options = parser.parse_args()
    rounds, warm = (
        options.rounds or (5 if options.sizes else 15),
        options.warm or (2 if options.sizes else 10),
    )
    # Threads inherit affinity, so this comes before the servers' threads.
    processor, *others_have = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, others_have or [processor])
    with ExitStack() as stack:
        ours, others = _build(Path(stack.enter_context(tempfile.TemporaryDirectory())), options.python)
        world = World(stack, others / "botocore" / "cacert.pem")
        contestants = _contestants(ours, others, f"{world.api.url}/1/requests")
        bench = Bench(world, options.python, processor)
        if not options.sizes:
            runs = [[bench.run(contestant, warm) for contestant in contestants] for _ in range(rounds)]
            print("\n".join(_figures(contestants, list(zip(*runs, strict=True)))))
            return
        world.api.takes = CALL
        print(
            "| first Create after init, then a warm request, in ms |"
            f" {' | '.join(f'{size} MB' for size in SIZES)} |"
        )
        print("|---" * (1 + len(SIZES)) + "|")
        for contestant in contestants:
            if contestant.handler == "readme.handler":
                continue  # It never comes back from an event that it cannot read.
            cells = []
            for size in SIZES:
                times = [bench.limited(contestant, size, warm) for _ in range(rounds)]
                cells.append(", ".join(f"{median(of):.0f}" for of in zip(*times, strict=True)))
            print(f"| {contestant.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
