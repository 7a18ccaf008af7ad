"""The stories: stacks with Custom::UsagePlanKey, and what has to be true after each.

After every story what the stacks believe is compared with GetUsagePlanKeys. A story has its own stacks and
takes them away; only `many` stands from the first story to the last.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from math import ceil
from typing import Final, NamedTuple

from .report import complaints
from .world import BROKEN, Member, World, WrongError, check

SHARE: Final = 4
"""Keys of each of the stacks that are deployed at once: ten stacks have forty."""
ROLLED_BACK = "UPDATE_ROLLBACK_COMPLETE"


def many(world: World, plan: str = "free") -> list[Member]:
    """Declare all keys of the crowd."""
    return [Member(f"Key{number:02}", number, plan) for number in range(world.many)]


def at_once(world: World) -> None:
    """Attach all of them in one stack."""
    world.declare("many", *many(world))
    world.expect("many", **{member.name: "ATTACHED" for member in many(world)})


def verify(world: World) -> None:
    """Change VerifyTrigger, nothing else."""
    world.declare("many", *many(world), trigger=2)
    world.expect("many", **{member.name: "VERIFIED" for member in many(world)})


def repair(world: World) -> None:
    """Two keys are removed by hand."""
    for number in (0, 1):
        world.detach(world.id(number, "free"))
    world.declare("many", *many(world), trigger=3)
    outcomes = {member.name: "VERIFIED" for member in many(world)}
    world.expect("many", **outcomes | {"Key00": "REPAIRED", "Key01": "REPAIRED"})


def watch(world: World) -> None:
    """The watch sees everything, and misses nothing."""
    seen = world.watch()
    check("what the watch misses", seen["missing"], 0)


def rename(world: World) -> None:
    """A logical id is renamed; a list gets a new head, so that the others shift."""
    a, b, c, d = (world.others + number for number in range(4))
    listed = [Member("Listed0", b, "free"), Member("Listed1", c, "free")]
    world.declare("rename", Member("Alice", a, "free"), *listed)
    shifted = [Member("Listed0", d, "free"), Member("Listed1", b, "free"), Member("Listed2", c, "free")]
    world.declare("rename", Member("AliceInc", a, "free"), *shifted)
    world.expect("rename", AliceInc="JOINED", Listed0="ATTACHED", Listed1="JOINED", Listed2="JOINED")


def move(world: World) -> None:
    """A key goes to another plan of its stage, and back."""
    alice = Member("Alice", world.others, "free")
    world.declare("move", alice)
    for plan in ("pro", "free"):
        world.declare("move", alice._replace(plan=plan))
        world.expect("move", Alice="MOVED")


def move_back(world: World) -> None:
    """The key has moved, then another resource fails, and the rollback moves it back."""
    alice = Member("Alice", world.others, "free")
    world.declare("back", alice)
    broken = BROKEN._replace(after="Alice")
    world.declare("back", alice._replace(plan="pro"), broken, expect=ROLLED_BACK)
    world.until("the log has both Updates", lambda: len(updates(world, "back")) >= 2, world.place.late)
    old, new = (world.id(world.others, plan) for plan in ("free", "pro"))
    world.found["rollback"] = {old: "the old one", new: "the new one"}.get(
        updates(world, "back")[-1], "another"
    )


def updates(world: World, stack: str) -> list[str]:
    """Read in the function's log with which ids a stack's Updates came, in order."""
    lines = [json.loads(line) for _, line in world.log(world.began) if line.startswith("{")]
    return [
        line["PhysicalResourceId"]
        for line in lines
        if line.get("RequestType") == "Update" and "status" in line and line["StackId"] == world.stacks[stack]
    ]


def cancel(world: World) -> None:
    """An update is cancelled while it verifies some keys and attaches others."""
    old = [Member(f"Old{number}", world.others + number, "free") for number in range(3)]
    world.declare("cancel", *old)
    new = [
        Member(f"New{number}", number, "beta", after=f"New{number - 1}" if number else "")
        for number in range(6)
    ]
    with world.place.held(world.plans["beta"]):
        world.start("cancel", world.template([*old, *new], trigger=2))
        world.cancel("cancel")
    world.wait("cancel", ROLLED_BACK)


def take(world: World) -> None:
    """Keys that were attached by hand: one is adopted and stays; one is taken over, and moved."""
    # No story has detached these: for a minute the function would wait for its own detaching (202).
    first, second = world.others + 4, world.others + 5
    adopted, taken = world.id(first, "free"), world.id(second, "free")
    for association in (adopted, taken):
        world.attach(association)
    stays = Member("Stays", first, "free", "Adopt")
    moves = Member("Moves", second, "free", "Adopt")
    world.declare("take", stays, moves)
    world.expect("take", Stays="ADOPTED", Moves="ADOPTED")
    world.declare("take", stays, moves._replace(existing="Take"))
    check("Moves", world.outputs("take")["Moves"], "TAKEN")
    world.declare("take", stays, moves._replace(existing="Take", plan="pro"))
    check("Moves", world.outputs("take")["Moves"], "MOVED")
    world.delete("take")
    world.compare(besides=[adopted])
    world.detach(adopted)


def two_stacks(world: World) -> None:
    """A second stack is refused, then joins; the key stays until the last of them is gone."""
    alice = Member("Alice", world.others, "free")
    world.declare("first", alice)
    refused = world.declare("refused", alice, expect="ROLLBACK_COMPLETE").reason("Alice")
    if f"{world.name}-first" not in refused:
        raise WrongError(f"the Reason does not name the first stack: {refused}")
    world.delete("refused")
    world.declare("second", alice._replace(existing="Adopt"))
    world.expect("second", Alice="JOINED")
    world.delete("first")


def lost(world: World) -> None:
    """A key is deleted, an update fails of it, and the rollback succeeds all the same."""
    gone, stays = Member("Gone", len(world.keys) - 1, "free"), Member("Stays", world.others, "free")
    world.declare("lost", gone, stays)
    world.delete_key(gone.key)
    association = world.id(gone.key, "free")
    free, late = world.plans["free"], world.place.late
    world.until("the key has left its plan", lambda: association not in world.attached(free), late)
    ended = world.declare("lost", gone, stays, trigger=2, expect=ROLLED_BACK)
    if not ended.reason("Gone"):
        raise WrongError("the update did not fail of the key that is gone")
    world.gone.add(association)


def retain(world: World) -> None:
    """A retained resource leaves its stack, and is declared again."""
    alice = Member("Alice", world.others, "free", retain=True)
    world.declare("retain", alice)
    world.declare("retain")
    world.compare(besides=[world.id(world.others, "free")])
    world.declare("retain", alice._replace(retain=False))
    world.expect("retain", Alice="ATTACHED")


def stacks(world: World) -> None:
    """Stacks of four keys are created at once, and deleted at once."""
    crowd = many(world, "beta")
    shares = {f"share{start}": crowd[start:][:SHARE] for start in range(0, world.many, SHARE)}
    for stack, members in shares.items():
        world.start(stack, world.template(members))
    for stack, members in shares.items():
        world.wait(stack, "CREATE_COMPLETE")
        world.expect(stack, **{member.name: "ATTACHED" for member in members})
    world.compare()
    world.delete(*shares)


def cut(world: World) -> None:
    """The function's time is cut to a second while it attaches keys. It gives its messages back."""
    meanwhile(world, "cut", Timeout=1)


def crash(world: World) -> None:
    """The function's handler is gone for a while. Its messages come again after the visibility time-out."""
    meanwhile(world, "crash", Handler="usage_plan_key.app.nobody")


def meanwhile(world: World, stack: str, **configuration: object) -> None:
    """Attach all keys to the plan of this name; after the first key break the function, until it says so.

    Lambda lets it finish its work under way. The embedded AWS kills it, in the middle of a call.
    """
    crowd, plan = many(world, stack), world.plans[stack]
    try:
        with world.place.held(plan):
            world.start(stack, world.template(crowd))
            world.until("a key is attached", lambda: world.attached(plan))
            world.configure(**configuration)
        broken = time.time()
        with suppress(TimeoutError):  # AWS may have been quicker
            world.until("the function fails", lambda: complaints(world.log(broken)), world.place.late)
    finally:
        world.heal()
    world.wait(stack, "CREATE_COMPLETE")
    world.expect(stack, **{member.name: "ATTACHED" for member in crowd})


def delete(world: World) -> None:
    """All keys of the crowd go with their stack."""
    world.delete("many")


class Story(NamedTuple):
    """What is played, and about how many seconds it takes on AWS."""

    title: str
    seconds: int
    play: Callable[[World], object]

    def of(self, keys: int) -> str:
        """Write the title, with the numbers of this run."""
        return self.title.format(many=keys, stacks=ceil(keys / SHARE))


STORIES: Final = [
    Story("{many} keys at once", 90, at_once),
    Story("Verify them", 60, verify),
    Story("Repair two that were removed by hand", 60, repair),
    Story("The watch", 20, watch),
    Story("Rename, and shift a list", 120, rename),
    Story("Move within a stage, and back", 150, move),
    Story("Move, and roll back", 120, move_back),
    Story("Cancel an update", 150, cancel),
    Story("Adopt; take, and move", 180, take),
    Story("Two stacks, one association", 210, two_stacks),
    Story("A deleted key, and a rollback", 120, lost),
    Story("Retain, and declare again", 150, retain),
    Story("{stacks} stacks at once", 150, stacks),
    Story("The function's time is cut while it works", 180, cut),
    Story("The function crashes while it works", 330, crash),
    Story("Delete the {many} keys", 90, delete),
]


def tidy(world: World) -> list[str]:
    """Delete a story's stacks; return them."""
    leftovers = [stack for stack in world.stacks if stack not in ("world", "function", "many")]
    world.delete(*leftovers)
    return leftovers


def play(world: World, story: Story) -> None:
    """Play a story and tidy up; after each, compare. Whatever happens, the next story finds what it knows."""
    try:
        story.play(world)
        world.compare()
        if tidy(world):
            world.compare()
    except Exception as error:
        try:
            tidy(world)
            for association in world.attached() - world.believed():
                world.detach(association)
        except Exception as another:  # noqa: BLE001  # the first error says more
            error.add_note(str(another))
        raise
