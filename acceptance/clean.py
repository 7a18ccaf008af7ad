"""Deletes all that carries the tag: at a run's end, or later, in any region.

The world's stack goes last, so whatever else is left, its run can be found by this stack's tag. A run leaves
no more than AWS keeps by itself: a deleted stack's events for 90 days, and the figures of CloudWatch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

from botocore.exceptions import ClientError

from . import cost
from .world import PREFIX, TAG, Place, World


def runs(place: Place) -> dict[str, World]:
    """Find the stacks of all runs by their tag, and the ledgers of runs that have no stack any more."""
    found: dict[str, World] = {}
    for page in place.client("cloudformation").get_paginator("describe_stacks").paginate():
        for stack in page["Stacks"]:
            run = {tag["Key"]: tag["Value"] for tag in stack.get("Tags", [])}.get(TAG)
            if run and stack["StackName"].startswith(f"{PREFIX}{run}-"):
                world = found.setdefault(run, World(place, run))
                world.stacks[stack["StackName"].removeprefix(f"{world.name}-")] = stack["StackId"]
    for arn, run in tagged(place):
        if arn.endswith(f":table/{PREFIX}{run}-ledger") and (world := World(place, run)).has_ledger():
            found.setdefault(run, world)
    return found


def tagged(place: Place) -> Iterator[tuple[str, str]]:
    """List what AWS's index of tags has, each ARN with its run.

    It lists what was deleted a short time ago, too.
    https://docs.aws.amazon.com/resourcegroupstagging/latest/APIReference/API_GetResources.html
    """
    pages = place.client("resourcegroupstaggingapi").get_paginator("get_resources")
    for page in pages.paginate(TagFilters=[{"Key": TAG}]):
        for each in page["ResourceTagMappingList"]:
            yield each["ResourceARN"], {tag["Key"]: tag["Value"] for tag in each["Tags"]}[TAG]


def clean(world: World, say: Callable[[str], None] = lambda _: None) -> list[str]:
    """Delete a run's things; return what could not be deleted, why, and what it costs."""
    left: list[str] = []

    def attempt(what: str, a_day: str, act: Callable[[], object]) -> None:
        say(f"Deleting {what}")
        try:
            act()
        except Exception as error:  # noqa: BLE001  # the rest has to go all the same
            left.append(f"{what}, {a_day} a day: {error}")

    with suppress(ClientError):
        if known := runs(world.place).get(world.run):
            world.stacks |= known.stacks  # one may have begun just when the run was interrupted
    if "function" in world.stacks:
        with suppress(ClientError, TimeoutError):
            world.heal()  # the stories' stacks need it
    for stack in list(world.stacks):
        with suppress(TimeoutError):
            world.status(stack)  # CloudFormation deletes no stack while it updates it
    stories = [stack for stack in world.stacks if stack not in ("world", "function")]
    for stack in stories:
        with suppress(ClientError):
            world.start_delete(stack)
    for stack in stories:
        a_day = cost.PROBE_A_DAY if stack == "probe" else "$0"
        attempt(f"the stack {stack}", a_day, partial(finish, world, stack))
    if "world" in world.stacks:
        attempt("what is left in the plans", "$0", lambda: detach(world))
    if "function" in world.stacks:
        attempt("the function's stack", cost.FUNCTION_A_DAY, lambda: delete(world, "function"))
    attempt("the ledger", "under $0.01", lambda: delete_ledger(world))
    if "world" in world.stacks:
        attempt("the artifact", "under $0.01", lambda: empty(world))
        attempt("the world's stack", "under $0.01", lambda: delete(world, "world"))
    return left


def delete(world: World, stack: str) -> None:
    """Delete a stack, and wait."""
    world.start_delete(stack)
    finish(world, stack)


def finish(world: World, stack: str) -> None:
    """Wait until a stack is deleted; what CloudFormation cannot delete it retains at a second attempt."""
    ended = world.wait(stack, "DELETE_COMPLETE", "DELETE_FAILED")
    if ended.status == "DELETE_FAILED":
        failed = [
            event["LogicalResourceId"]
            for event in ended.events
            if event["ResourceStatus"] == "DELETE_FAILED" and event["LogicalResourceId"] != event["StackName"]
        ]
        world.start_delete(stack, retain=sorted(set(failed)))
        world.wait(stack, "DELETE_COMPLETE")


def detach(world: World) -> None:
    """Detach what is left in the world's plans."""
    world.know()
    for association in world.attached():
        world.detach(association)


def empty(world: World) -> None:
    """Delete the bucket's objects; a new bucket has no versions.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/Versioning.html
    """
    client = world.place.client("s3")
    if bucket := world.resources("world").get("Bucket"):
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for each in page.get("Contents", []):
                client.delete_object(Bucket=bucket, Key=each["Key"])


def delete_ledger(world: World) -> None:
    """Delete the table, which outlives its stack; first its backups, or a last one would stay for 35 days.

    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/PointInTimeRecovery_Howitworks.html
    """
    if world.has_ledger():
        client = world.place.client("dynamodb")
        client.update_continuous_backups(
            TableName=world.ledger, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": False}
        )
        client.delete_table(TableName=world.ledger)
        world.until("the ledger is gone", lambda: not world.has_ledger())
