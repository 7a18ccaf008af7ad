"""Things that people do with the resource, and the keys that are attached afterwards.

Each story ends at rest. Its player then heals all faults, and compares the attached keys with those that
CloudFormation believes in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from .world import CloudFormation, Resource, StuckError

Pair = tuple[str, str]
INVENTED: Final = "one-A-1ABCDEF"
"""The id that CloudFormation makes up for a resource whose Create it has given up."""
FREE, PRO, GOLD = (("alice", plan) for plan in ("free", "pro", "gold"))


@dataclass(frozen=True)
class Story:
    """One story.

    Attributes:
        tell: Plays it.
        outside: (key, plan) pairs that somebody else had attached before.
        taken: Those of them that a stack took over, if all went well: they may be gone in the end.
    """

    tell: Callable[[CloudFormation], object]
    outside: frozenset[Pair] = frozenset()
    taken: frozenset[Pair] = field(default=frozenset())


def props(of: Pair, **more: str) -> dict[str, str]:
    """A resource's properties."""
    return {"KeyId": of[0], "UsagePlanId": of[1], **more}


def create(cfn: CloudFormation) -> None:
    cfn.create("one", "A", props(FREE))


def create_with_value(cfn: CloudFormation) -> None:
    cfn.create("one", "A", props(FREE, IncludeValue="true"))


def create_and_delete(cfn: CloudFormation) -> None:
    if cfn.create("one", "A", props(FREE)):
        cfn.delete("one", "A")


def verify(cfn: CloudFormation) -> None:
    if cfn.create("one", "A", props(FREE)):
        cfn.update("one", "A", props(FREE, VerifyTrigger="2"))


def repair(cfn: CloudFormation) -> None:
    if cfn.create("one", "A", props(FREE)):
        cfn.world.api.attached.discard(FREE)
        cfn.update("one", "A", props(FREE, VerifyTrigger="2"))


def move(cfn: CloudFormation) -> None:
    if cfn.create("one", "A", props(FREE)):
        cfn.update("one", "A", props(PRO))


def move_and_back(cfn: CloudFormation) -> None:
    """The update of another resource fails, before CloudFormation cleans this one up."""
    if cfn.create("one", "A", props(FREE)) and cfn.update("one", "A", props(PRO), cleans_up=False):
        cfn.undo(("one", "A"), props(FREE))


def replace(cfn: CloudFormation) -> None:
    """Plans that share no stage."""
    if cfn.create("one", "A", props(FREE)):
        cfn.update("one", "A", props(GOLD))


def replace_and_back(cfn: CloudFormation) -> None:
    if cfn.create("one", "A", props(FREE)) and cfn.update("one", "A", props(GOLD), cleans_up=False):
        cfn.undo(("one", "A"), props(FREE))


def rename(cfn: CloudFormation) -> None:
    if cfn.create("one", "A", props(FREE)) and cfn.create("one", "B", props(FREE)):
        cfn.delete("one", "A")


def rename_and_back(cfn: CloudFormation) -> None:
    if cfn.create("one", "A", props(FREE)) and cfn.create("one", "B", props(FREE)):
        cfn.delete("one", "B")


def rename_and_move(cfn: CloudFormation) -> None:
    """Both in one deploy: the function refuses it, and CloudFormation rolls it back."""
    if cfn.create("one", "A", props(FREE)):
        cfn.create("one", "B", props(PRO))


def swap(cfn: CloudFormation) -> None:
    other = ("bob", "gold")
    if not (cfn.create("one", "A", props(GOLD)) and cfn.create("one", "B", props(other))):
        return
    if not cfn.update("one", "A", props(other), cleans_up=False):
        return
    if cfn.update("one", "B", props(GOLD), cleans_up=False):
        cfn.clean_up(("one", "A"), ":".join(GOLD), props(GOLD))
        cfn.clean_up(("one", "B"), ":".join(other), props(other))
    else:
        cfn.undo(("one", "A"), props(GOLD))


def shift(cfn: CloudFormation) -> None:
    """The first customer of a list goes: its resource takes the next one's key. The last resource goes."""
    other = ("bob", "free")
    if (
        cfn.create("one", "A", props(FREE))
        and cfn.create("one", "B", props(other))
        and cfn.update("one", "A", props(other))
    ):
        cfn.delete("one", "B")


def two_stacks(cfn: CloudFormation) -> None:
    if cfn.create("one", "A", props(FREE)) and cfn.create("two", "A", props(FREE, OnExisting="Adopt")):
        cfn.delete("one", "A")


def cancelled_create(cfn: CloudFormation) -> None:
    """CloudFormation gives it up while it waits in the queue; the Delete has an invented id."""
    request = cfn.ask("Create", ("one", "A"), props(FREE))
    cfn.world.run(
        lambda: bool(cfn.world.sqs.messages) or bool(request.bodies) or bool(cfn.world.unanswered), 600
    )
    cfn.resources["one", "A"] = Resource(INVENTED, props(FREE))
    cfn.delete("one", "A")


def cancelled_update(cfn: CloudFormation) -> None:
    """CloudFormation gives it up while it waits in the queue; its rollback follows."""
    if not cfn.create("one", "A", props(FREE)):
        return
    request = cfn.ask("Update", ("one", "A"), props(PRO), props(FREE), cfn.resources["one", "A"].id)
    cfn.world.run(
        lambda: bool(cfn.world.sqs.messages) or bool(request.bodies) or bool(cfn.world.unanswered), 600
    )
    request.cancelled = True
    cfn.roll_back(("one", "A"), props(PRO))


def delete_before_create(cfn: CloudFormation) -> None:
    """Lambda hands in the Create after its Delete."""
    cfn.world.clock.now += 1
    request = cfn.ask("Create", ("one", "A"), props(FREE))
    event = cfn.world._due.pop()  # its invocation comes later
    cfn.world.clock.now += 2
    cfn.resources["one", "A"] = Resource(INVENTED, props(FREE))
    cfn.delete("one", "A")
    event[2]()
    cfn.world.run(lambda: bool(request.bodies), 600)


def warm(cfn: CloudFormation) -> None:
    """One process serves other stacks, outcomes, log levels and NoEcho in turn."""
    cfn.create("one", "A", props(GOLD, IncludeValue="true"))
    logging.getLogger("usage_plan_key").setLevel(logging.WARNING)
    cfn.create("two", "A", {"KeyID": "bob", "UsagePlanId": "free"})
    cfn.create("three", "A", props(("bob", "free")))
    logging.getLogger("usage_plan_key").setLevel(logging.DEBUG)
    if ("one", "A") in cfn.resources and cfn.update("one", "A", props(GOLD, VerifyTrigger="2")):
        cfn.delete("one", "A")


def twice(cfn: CloudFormation) -> None:
    """Lambda hands in each event once more, at once and later."""
    for seconds in (0.0, 5.0, 400.0):
        if not cfn.world.requests:
            cfn.create("one", "A", props(FREE))
        event = next(iter(cfn.world.requests.values())).event
        cfn.world.hand_in(event, seconds, attempts=1)
        cfn.world.run(limit=600)


def in_the_way(cfn: CloudFormation) -> None:
    cfn.create("one", "A", props(FREE))


def adopt(cfn: CloudFormation) -> None:
    if cfn.create("one", "A", props(FREE, OnExisting="Adopt")):
        cfn.delete("one", "A")


def adopt_and_move(cfn: CloudFormation) -> None:
    """It stays where it was: no move, because it is not ours."""
    if cfn.create("one", "A", props(FREE, OnExisting="Adopt")):
        cfn.update("one", "A", props(PRO, OnExisting="Adopt"))


def take(cfn: CloudFormation) -> None:
    if cfn.create("one", "A", props(FREE, OnExisting="Take")):
        cfn.update("one", "A", props(FREE, OnExisting="Take", VerifyTrigger="2"))


def take_and_move(cfn: CloudFormation) -> None:
    if cfn.create("one", "A", props(FREE, OnExisting="Take")):
        cfn.update("one", "A", props(PRO, OnExisting="Take"))


def take_move_and_back(cfn: CloudFormation) -> None:
    if cfn.create("one", "A", props(FREE, OnExisting="Take")) and cfn.update(
        "one", "A", props(PRO, OnExisting="Take"), cleans_up=False
    ):
        cfn.undo(("one", "A"), props(FREE, OnExisting="Take"))


def bad_properties(cfn: CloudFormation) -> None:
    cfn.create("one", "A", {"KeyID": "alice", "UsagePlanId": "free"})


def unknown_key(cfn: CloudFormation) -> None:
    cfn.create("one", "A", props(("nobody", "free")))


def foreign_id(cfn: CloudFormation) -> None:
    """A former provider's resource, whose id is none of ours."""
    if cfn.create("one", "A", props(FREE)):
        cfn.resources["one", "A"].id = "former-provider-1"
        cfn.update("one", "A", props(FREE, VerifyTrigger="2"))


def beside_a_stray(cfn: CloudFormation) -> None:
    """A message that is no request waits in front."""
    stray = {
        "QueueUrl": "requests",
        "MessageBody": "hello",
        "MessageGroupId": "stray",
        "MessageDeduplicationId": "stray",
    }
    cfn.world.sqs.send_message(**stray)
    cfn.create("one", "A", props(FREE))
    cfn.world.run(limit=3600)
    if set(cfn.world.sqs.dead) != {"hello"}:
        raise StuckError(f"the dead-letter queue holds {cfn.world.sqs.dead}")


def express(cfn: CloudFormation) -> None:
    """A Create fails, and no Delete follows it (express mode); the next deploy creates the resource again."""
    request = cfn.ask("Create", ("one", "A"), props(FREE))
    if cfn.wait(request):
        cfn.resources["one", "A"] = Resource(request.answer["PhysicalResourceId"], props(FREE))
    else:
        cfn.create("one", "A", props(FREE))


def given_away(cfn: CloudFormation) -> None:
    """A stack deletes it, somebody else attaches it, and the function refuses the stack's next Create."""
    if cfn.create("one", "A", props(FREE)) and cfn.delete("one", "A"):
        cfn.attached_by_hand([FREE])
        cfn.create("one", "A", props(FREE))


def retained(cfn: CloudFormation) -> None:
    """A template drops it with Retain, declares it again, and then a Delete comes."""
    if cfn.create("one", "A", props(FREE)):
        cfn.retain("one", "A")
        if cfn.create("one", "A", props(FREE)):
            cfn.delete("one", "A")


STRANGERS: Final = frozenset({FREE})
STORIES: Final[dict[str, Story]] = {
    story.__name__.replace("_", " "): Story(story)
    for story in (
        *(create, create_with_value, create_and_delete, verify, repair, move, move_and_back, replace),
        *(replace_and_back, rename, rename_and_back, rename_and_move, swap, two_stacks, cancelled_create),
        *(cancelled_update, delete_before_create, twice, shift, warm, bad_properties, beside_a_stray),
        *(unknown_key, foreign_id, express, retained, given_away),
    )
} | {
    "in the way": Story(in_the_way, STRANGERS),
    "adopt": Story(adopt, STRANGERS),
    "adopt and move": Story(adopt_and_move, STRANGERS),
    "take": Story(take, STRANGERS, STRANGERS),
    "take and move": Story(take_and_move, STRANGERS, STRANGERS),
    "take, move and back": Story(take_move_and_back, STRANGERS, STRANGERS),
}
