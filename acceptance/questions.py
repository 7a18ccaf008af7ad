"""What no document of AWS's says: one small experiment for each question.

The code is right either way. The report says what was assumed, what was seen, and whether they agree.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any, Final, NamedTuple

from botocore.exceptions import ClientError

from .world import HERE, NotAskedError, World, template_of

KEYS = 5
"""Keys for the experiments: the first ones of those that single stories have used."""
QUOTA = 10
"""Usage plans for each key: https://docs.aws.amazon.com/apigateway/latest/developerguide/limits.html"""
SENDING = 2
"""Seconds for which a queue gets messages."""
HIDDEN = 5
"""Seconds for which the probe hides a message; its queue's visibility time-out is 30."""


class Seen(NamedTuple):
    """What was seen, and whether it is what the code assumes; None if it does not tell."""

    text: str
    held: bool | None


class Question(NamedTuple):
    """A question, what the code assumes, and how to ask."""

    text: str
    assumed: str
    seconds: int
    ask: Callable[[World], Seen]


def told(call: Callable[[], object]) -> str:
    """Make a call without retries, and say what came: `ok`, or status, code and text word for word."""
    try:
        call()
    except ClientError as error:
        reply, said = error.response["ResponseMetadata"], error.response["Error"]
        after = reply.get("HTTPHeaders", {}).get("retry-after")
        return f"{reply['HTTPStatusCode']} {said['Code']}: {said['Message']}" + (
            f" [Retry-After: {after}]"
            if after
            else " [no Retry-After]"
            if reply["HTTPStatusCode"] == 429
            else ""
        )
    return "ok"


def answered(call: Callable[[], object]) -> str:
    """The same, but again while API Gateway throttles the account."""
    said = told(call)
    for _ in range(60):
        if not said.startswith("429 TooManyRequestsException"):
            break
        time.sleep(1)
        said = told(call)
    return said


class Caller:
    """Calls about usage plan keys, without botocore's retries."""

    def __init__(self, world: World) -> None:
        """Take a key that is in no plan."""
        self.api = world.place.client("apigateway", retries=False)
        self.plan = world.plans
        self.keys = world.keys[world.others :][:KEYS]
        self.key = self.keys[0]

    def create(self, plan: str, key: str = "") -> str:
        """CreateUsagePlanKey."""
        plan = self.plan.get(plan, plan)
        return answered(
            lambda: self.api.create_usage_plan_key(usagePlanId=plan, keyId=key or self.key, keyType="API_KEY")
        )

    def get(self, plan: str, key: str = "") -> str:
        """GetUsagePlanKey."""
        plan = self.plan.get(plan, plan)
        return answered(lambda: self.api.get_usage_plan_key(usagePlanId=plan, keyId=key or self.key))

    def delete(self, plan: str, key: str = "") -> str:
        """DeleteUsagePlanKey."""
        plan = self.plan.get(plan, plan)
        return answered(lambda: self.api.delete_usage_plan_key(usagePlanId=plan, keyId=key or self.key))


@contextmanager
def attached(world: World, plan: str = "free") -> Iterator[Caller]:
    """Attach the key, and detach in the end what is attached then."""
    caller = Caller(world)
    world.attach(world.id(world.others, plan))
    try:
        yield caller
    finally:
        for association in world.attached(world.plans["free"], world.plans["pro"]):
            if association.partition(":")[0] in caller.keys:
                world.detach(association)


# --- What API Gateway answers ---


def duplicate(world: World) -> Seen:
    """Attach a key that is attached."""
    with attached(world) as caller:
        said = caller.create("free")
    return Seen(said, said.startswith("409 ConflictException") and "try again later" not in said)


def shared_stage(world: World) -> Seen:
    """Attach a key to a second plan of a stage."""
    with attached(world) as caller:
        said = caller.create("pro")
    return Seen(said, said[:3] in ("409", "400") and "try again later" not in said)


def not_there(world: World) -> Seen:
    """Name a plan or a key that does not exist, and a key that is not in the plan."""
    caller = Caller(world)
    said = {
        "create, no such plan": caller.create("nowhere"),
        "create, no such key": caller.create("free", "nobody"),
        "get, not in the plan": caller.get("free"),
        "delete, not in the plan": caller.delete("free"),
        "delete, no such plan": caller.delete("nowhere"),
    }
    return Seen(
        "; ".join(f"{what}: {text}" for what, text in said.items()),
        all(text.startswith("404 NotFoundException") for text in said.values()),
    )


def busy(world: World) -> Seen:
    """Attach four keys at the same time, and then a refused one again until API Gateway takes it."""
    began = time.monotonic()
    with attached(world) as caller:
        alone = time.monotonic() - began
        keys = caller.keys[1:]
        with ThreadPoolExecutor(len(keys)) as pool:
            said = dict(zip(keys, pool.map(partial(caller.create, "free"), keys), strict=True))
        refused = [key for key in keys if said[key] != "ok"]
        began = time.monotonic()
        if refused:
            world.until("it is taken", lambda: caller.create("free", refused[0]) == "ok", world.place.late)
        again = time.monotonic() - began
    held = all("try again later" in said[key] and said[key][:3] == "409" for key in refused)
    took = f"one alone took {alone:.2f} s, and a refused one {again:.2f} s more"
    return Seen(f"{counted(Counter(said.values()))}; {took}", held if refused else None)


def late(world: World) -> Seen:
    """Detach, and look until the key is gone."""
    with attached(world) as caller:
        said, began = caller.delete("free"), time.monotonic()
        world.until("the key is gone", lambda: caller.get("free").startswith("404"), world.place.late)
    seconds = time.monotonic() - began
    return Seen(f"{said}; gone after {seconds:.1f} s", seconds <= 60)


def moved_at_once(world: World) -> Seen:
    """Detach, and attach to the other plan of the stage without waiting."""
    said: list[str] = []
    with attached(world) as caller:
        caller.delete("free")
        began = time.monotonic()

        def attach() -> bool:
            said.append(caller.create("pro"))
            return said[-1] == "ok"

        world.until("the other plan takes the key", attach, world.place.late)
    return Seen(f"taken after {time.monotonic() - began:.1f} s: {counted(Counter(said))}", True)


def throttled(world: World) -> Seen:
    """Look at a plan until API Gateway throttles: 10 calls a second and a burst of 40 are allowed."""
    api, said = Caller(world).api, Counter[str]()
    look = partial(api.get_usage_plan, usagePlanId=world.plans["free"])
    with ThreadPoolExecutor(10) as pool:
        for _ in range(12):
            said += Counter(pool.map(told, [look] * 10))
            if set(said) > {"ok"}:
                break
    refused = [text for text in said if text != "ok"]
    held = all(text.startswith("429 TooManyRequestsException") for text in refused) if refused else None
    return Seen(counted(said), held)


def quota(world: World) -> Seen:
    """Attach a key to one plan more than a key may have. The plans have no stages."""
    names = [f"Plan{number:02}" for number in range(QUOTA + 1)]
    plan = {"Type": "AWS::ApiGateway::UsagePlan", "Properties": {"Description": "of an acceptance run"}}
    world.deploy("quota", {"Resources": dict.fromkeys(names, plan)})
    try:
        caller, plans = Caller(world), world.resources("quota")
        said = [caller.create(plans[name]) for name in names]
        for name in names:
            world.detach(f"{caller.key}:{plans[name]}")
    finally:
        world.delete("quota")
    last = said[-1]
    if last == "ok":
        return Seen(f"all {len(said)} are taken", held=False)
    return Seen(
        f"{said.count('ok')} are taken, then {last}",
        last.startswith("429 LimitExceededException") and "no Retry-After" in last,
    )


# --- What CloudFormation and CloudWatch do ---


def rollback_id(world: World) -> Seen:
    """Read in the function's log which id the rollback of `move_back` had."""
    if "rollback" not in world.found:
        raise NotAskedError("the story that rolls a move back was not played to its end")
    return Seen(world.found["rollback"], held=True)


def drift(world: World) -> Seen:
    """Detach a native AWS::ApiGateway::UsagePlanKey by hand, and let CloudFormation detect the drift."""
    native = {
        "Type": "AWS::ApiGateway::UsagePlanKey",
        "Properties": {
            "KeyId": world.keys[world.others],
            "KeyType": "API_KEY",
            "UsagePlanId": world.plans["free"],
        },
    }
    world.deploy("drift", {"Resources": {"Native": native}})
    try:
        world.detach(world.id(world.others, "free"))
        client, stack = world.place.client("cloudformation"), world.stacks["drift"]
        detection = client.detect_stack_drift(StackName=stack)["StackDriftDetectionId"]

        def result() -> dict[str, Any] | None:
            said: dict[str, Any] = client.describe_stack_drift_detection_status(
                StackDriftDetectionId=detection
            )
            return None if said["DetectionStatus"].endswith("IN_PROGRESS") else said

        said = world.until("the drift is known", result)
        found = client.describe_stack_resource_drifts(StackName=stack)["StackResourceDrifts"]
    finally:
        world.delete("drift")
    resource = found[0]["StackResourceDriftStatus"] if found else "not in the list"
    return Seen(
        f"{said['DetectionStatus']}, stack {said.get('StackDriftStatus')}, resource {resource}",
        resource == "DELETED",
    )


def idle(world: World) -> Seen:
    """Count how often Lambda has polled the function's queue in vain."""
    points = world.metrics().get("NumberOfEmptyReceives")
    if not points:
        return Seen("CloudWatch has no figures yet", None)
    usual = median(points)
    return Seen(f"{usual:.0f} times in a minute (the median of {len(points)})", usual <= 15)


# --- What Lambda's poller does ---


def probed(world: World) -> list[dict[str, Any]]:
    """Send messages of ten groups to the probe, of which one is hidden; read what it has written down."""
    if not world.probed:
        if "probe" in world.stacks:
            raise NotAskedError("the probe has not seen its messages")
        world.deploy("probe", template_of(HERE / "probe.yaml"))
        outputs, since = world.outputs("probe"), time.time()
        sent = [("hidden", f"hide {HIDDEN}"), ("hidden", "after")]
        sent += [(f"group{number}", str(turn)) for turn in range(3) for number in range(9)]
        for group, body in sent:
            world.place.client("sqs").send_message(
                QueueUrl=outputs["QueueUrl"], MessageBody=body, MessageGroupId=group
            )

        def lines() -> list[dict[str, Any]]:
            log = [line for _, line in world.log(since, outputs["LogGroup"])]
            found = [json.loads(line) for line in log if line.startswith('{"at"')]
            came = {(group, body) for line in found for group, body, _ in line["batch"]}
            return found if came == set(sent) and len(times(found, f"hide {HIDDEN}")) > 1 else []

        world.probed = world.until("the probe has seen every message", lines)
    return world.probed


def times(lines: Sequence[dict[str, Any]], body: str) -> list[float]:
    """List when a message came."""
    return [line["at"] for line in lines for _, found, _ in line["batch"] if found == body]


def mixture(world: World) -> Seen:
    """Count the groups of each batch."""
    batches = Counter(
        f"{len(line['batch'])} of {len({group for group, *_ in line['batch']})}" for line in probed(world)
    )
    mixed = any(not each.endswith(" of 1") for each in batches)
    return Seen(f"messages and groups of a batch: {counted(batches)}", mixed)


def reported(world: World) -> Seen:
    """Measure when a message comes again that was hidden and reported as failed."""
    first, second, *_ = times(probed(world), f"hide {HIDDEN}")
    return Seen(f"hidden for {HIDDEN} s, it came again after {second - first:.1f} s", second - first < 25)


def blocks(world: World) -> Seen:
    """See whether a message comes while an earlier one of its group is hidden."""
    lines = probed(world)
    _, second, *_ = times(lines, f"hide {HIDDEN}")
    alone = [
        line["at"]
        for line in lines
        if any(body == "after" for _, body, _ in line["batch"])
        and not any(body.startswith("hide") for _, body, _ in line["batch"])
    ]
    early = [at for at in alone if at < second]
    return Seen("the next one came meanwhile" if early else "nothing of its group came meanwhile", not early)


def sends(world: World) -> Seen:
    """Send to a FIFO queue without high throughput, as fast as ten threads can."""
    properties = {"FifoQueue": True, "ContentBasedDeduplication": True}
    world.deploy("sends", {"Resources": {"Queue": {"Type": "AWS::SQS::Queue", "Properties": properties}}})
    try:
        client, url = world.place.client("sqs", retries=False), world.resources("sends")["Queue"]
        ends = time.monotonic() + SENDING

        def send(group: str) -> Counter[str]:
            said = Counter[str]()
            while time.monotonic() < ends:
                body = f"{group} {said.total()}"
                call = partial(client.send_message, QueueUrl=url, MessageBody=body, MessageGroupId=group)
                said[told(call)] += 1
            return said

        with ThreadPoolExecutor(10) as pool:
            said = sum(pool.map(send, map(str, range(10))), Counter[str]())
    finally:
        world.delete("sends")
    taken = said.pop("ok", 0) / SENDING
    refused = f"refused: {counted(said)}" if said else "none refused"
    held = 200 < taken < 400 if said else False if taken > 400 else None
    return Seen(f"{taken:.0f} a second taken, {refused}", held)


def counted(said: Counter[str]) -> str:
    """Say each text and how often it came."""
    return "; ".join(text + f" ({number} times)" * (number > 1) for text, number in said.most_common())


QUESTIONS: Final = [
    Question("What does API Gateway answer to a duplicate?", "409, without `try again later`", 10, duplicate),
    Question(
        "What does it answer to a second plan for a stage?",
        "409 or 400, without `try again later`",
        10,
        shared_stage,
    ),
    Question("What does it answer where a plan or a key is missing?", "404", 10, not_there),
    Question(
        "What does it answer to several creates at once?", "409 `try again later` to all but one", 15, busy
    ),
    Question(
        f"What does it answer to plan {QUOTA + 1} of a key?",
        "429 LimitExceededException without Retry-After",
        120,
        quota,
    ),
    Question("How late does a detach (202) come into force?", "within 60 s", 15, late),
    Question(
        "Can the key go to another plan of its stage at once?",
        "after refusals, or at once",
        15,
        moved_at_once,
    ),
    Question(
        "What does API Gateway answer to too many calls, and with Retry-After?",
        "429, either way",
        15,
        throttled,
    ),
    Question("Which id has the Update of a rollback?", "the new or the old one", 1, rollback_id),
    Question("Does drift detection see a detached key of the native type?", "yes: DELETED", 120, drift),
    Question("Does Lambda's poller mix groups in a batch?", "yes", 180, mixture),
    Question("Does a message that is reported as failed stay hidden as told?", "yes", 1, reported),
    Question("Does a hidden message hold back its group?", "yes", 1, blocks),
    Question("How often does Lambda poll an idle queue?", "15 times a minute", 5, idle),
    Question(
        "How many sends a second does a FIFO queue take without high throughput?",
        "300, then it refuses",
        120,
        sends,
    ),
]
