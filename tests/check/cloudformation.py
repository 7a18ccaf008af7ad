"""What stacks ask for and believe: deployments, their rollbacks and clean-ups; and the promises at rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from emulators import rules
from tests.function import BrokenError, Pair
from usage_plan_key.queue import VISIBILITY

from .world import DATES, Asked, Who, World, pair

#: CloudFormation asks so often for a clean-up Delete.
TRIES: Final = 3
#: Seconds for which a request that the function always dies at holds up its stack: four visibility time-outs.
LONGEST: Final = 4 * VISIBILITY + 30
#: An answer may be a minute late.
LATE: Final = 60


class Props(NamedTuple):
    """A resource's properties, and whether its DeletionPolicy is Retain."""

    plan: str
    on_existing: str = "Fail"
    trigger: str = ""
    timeout: int = 3600
    retain: bool = False

    @property
    def pair(self) -> Pair:
        return "k", self.plan

    def properties(self) -> dict[str, str]:
        named = {"KeyId": "k", "UsagePlanId": self.plan, "OnExisting": self.on_existing}
        timeout = {"ServiceTimeout": str(self.timeout)} if self.timeout < 3600 else {}
        return named | timeout | ({"VerifyTrigger": self.trigger} if self.trigger else {})

    def __str__(self) -> str:
        return " ".join(filter(None, [self.plan, self.on_existing.replace("Fail", ""), self.trigger]))


Template = Mapping[str, Props]
"""The properties of each resource, by its logical id; an empty one deletes the stack."""
Templates = Mapping[str, tuple[Template, ...]]
"""What each stack may deploy."""


class Resource(NamedTuple):
    """CloudFormation's belief about a resource."""

    id: str
    wants: Props
    lost: bool = False


class Cleanup(NamedTuple):
    """A Delete to come, and how often it has failed."""

    name: str
    id: str
    wants: Props
    failed: int = 0


class Stack(NamedTuple):
    """A stack: what it has, what it had before its deployment, and what it has asked for."""

    name: str
    phase: str = "idle"
    resources: tuple[tuple[str, Resource], ...] = ()
    before: tuple[tuple[str, Resource], ...] = ()
    target: tuple[tuple[str, Props], ...] = ()
    asked: tuple[tuple[str, str], ...] = ()  # The RequestId of each resource's request
    cleanup: tuple[Cleanup, ...] = ()

    def requests(self, world: World) -> dict[str, Asked]:
        return {one: world.requests[id_] for one, id_ in self.asked}


def deploy(world: World, name: str, template: Template) -> None:
    """Begin to deploy a template, all of its requests at once."""
    stack = world.stacks.get(name) or Stack(name)
    if (what := f"deploys of {name}") in world.may:
        world.spend(what)
    world.say(f"{name} deploys {', '.join(f'{one} {wants}' for one, wants in template.items()) or 'nothing'}")
    had, asked = dict(stack.resources), {}
    world.sleep(1)
    for one, wants in template.items():
        if one not in had:
            asked[one] = _send(world, "Create", (name, one), wants)
        elif had[one].wants != wants:
            asked[one] = _send(world, "Update", (name, one), wants, had[one].wants, had[one].id)
    target = tuple(template.items())
    _put(world, stack, phase="deploying", before=stack.resources, target=target, asked=tuple(asked.items()))
    react(world)


def react(world: World) -> None:
    """CloudFormation takes note of answers, and goes on."""
    for name in sorted(world.stacks):
        stack = world.stacks[name]
        asked = stack.requests(world)
        fails = stack.phase == "deploying" and any(one.answer.startswith("FAILED") for one in asked.values())
        if fails:
            _roll_back(world, stack)
        elif stack.phase in PHASES and all(one.answer for one in asked.values()):
            PHASES[stack.phase](world, stack)


def _deployed(world: World, stack: Stack) -> None:
    if stack.asked and world.allows("cancels"):
        _put(world, stack, phase="waiting")  # Others of its resources are not done yet.
    else:
        _complete(world, stack.name)


def _complete(world: World, name: str) -> None:
    """All resources of the deployment have succeeded; what they have replaced goes."""
    stack = world.stacks[name]
    asked, had = stack.requests(world), dict(stack.before)
    now = {one: _believed(asked[one]) if one in asked else had[one] for one, _ in stack.target}
    gone = [
        Cleanup(one, was.id, was.wants) for one, was in had.items() if one not in now or now[one].id != was.id
    ]
    world.kept |= {one.wants.pair for one in gone if one.wants.retain}
    gone = [one for one in gone if not one.wants.retain]
    _clean_up(world, stack._replace(resources=tuple(now.items())), gone)


def _roll_back(world: World, stack: Stack) -> None:
    had, later, undone = dict(stack.before), [], {}
    requests = stack.requests(world)
    if any(one.kind == "Update" for one in requests.values()):
        world.sleep(1)
    for one, asked in requests.items():
        made = ":".join(asked.wants.pair)
        if not asked.answer:
            id_ = dict(stack.asked)[one]
            world.requests[id_] = asked._replace(cancelled=True)
            if any(id_ == late for *_, late in world.arriving):  # The function may never hear of it.
                world.either |= asked.pairs & world.kept
                world.kept -= asked.pairs
        if asked.kind == "Create":
            later.append(Cleanup(one, made if asked.answer else f"{stack.name}-{one}-1ABCDEF", asked.wants))
            continue
        carried = [made] if asked.answer.startswith("SUCCESS") else [asked.id]
        if not asked.answer and made != asked.id:
            carried.append(made)  # Nobody knows which.
        named = world.choices.choose(carried)
        undone[one] = _send(world, "Update", asked.who, had[one].wants, asked.wants, named)
    _put(world, stack, phase="rolling back", asked=tuple(undone.items()), cleanup=tuple(later))
    react(world)


def _rolled_back(world: World, stack: Stack) -> None:
    asked = stack.requests(world)
    if any(one.answer.startswith("FAILED") for one in asked.values()):
        world.say(f"the rollback of {stack.name} fails")
        _put(world, stack, phase="stuck")
        return
    now = dict(stack.before) | {one: _believed(request) for one, request in asked.items()}
    gone = [
        Cleanup(one, request.id or "", request.old)
        for one, request in asked.items()
        if request.id != now[one].id
    ]
    _clean_up(world, stack._replace(resources=tuple(now.items())), [*gone, *stack.cleanup])


def _clean_up(world: World, stack: Stack, gone: list[Cleanup]) -> None:
    """Send the Deletes; one for a cancelled Create may come in the second of that."""
    if any(":" in one.id for one in gone):
        world.sleep(1)
    asked = [
        (one.name, _send(world, "Delete", (stack.name, one.name), one.wants, None, one.id)) for one in gone
    ]
    phase = "cleaning up" if asked else "idle" if stack.resources else "gone"
    _put(world, stack, phase=phase, asked=tuple(asked), cleanup=tuple(gone))


def _cleaned_up(world: World, stack: Stack) -> None:
    answers = [world.requests[id_].answer for _, id_ in stack.asked]
    failed = [one for one, answer in zip(stack.cleanup, answers, strict=True) if answer.startswith("FAILED")]
    again = [one._replace(failed=one.failed + 1) for one in failed if one.failed + 1 < TRIES]
    for one in failed:
        if one.failed + 1 == TRIES:
            world.say(f"{stack.name} gives up {one.id}")
            world.left.add(pair(one.id))
    _clean_up(world, stack, again)


PHASES: Final[dict[str, Callable[[World, Stack], None]]] = {
    "deploying": _deployed,
    "rolling back": _rolled_back,
    "cleaning up": _cleaned_up,
}


def _believed(asked: Asked) -> Resource:
    _, id_, outcome = asked.answer.split(" ")
    return Resource(id_, asked.wants, outcome == "LOST")


def _put(world: World, stack: Stack, **changes: Any) -> None:
    world.stacks[stack.name] = stack._replace(**changes)


def _send(
    world: World, kind: str, who: Who, wants: Props, old: Props | None = None, id_: str | None = None
) -> str:
    name = f"{'.'.join(who)}.{sum(asked.who == who for asked in world.requests.values()) + 1}"
    date = world.choices.choose([*DATES] if world.allows("misdated") else ["dated"])
    if date != "dated":
        world.spend("misdated")
    asked = Asked(kind, who, wants, old, id_, int(world.now), date=date)
    world.requests[name] = asked
    world.arriving.append((world.now, 0, name))
    about = [f" {wants}" if kind != "Delete" else "", f" ({id_})" if id_ else "", f" {date}"]
    world.say(f"{name}: {kind}{''.join(about)}".removesuffix(" dated"))
    if asked.takes:
        world.either |= asked.pairs & world.strangers  # It may be taken over.
        world.strangers -= asked.pairs
    return name


# --- What happens next ---


def steps(world: World, templates: Templates, pairs: list[Pair]) -> list[Callable[[World], None]]:
    """Everything that may happen next."""
    if due := [one for one in world.arriving if one[0] <= world.now]:
        return [partial(_arrive, due=due[0])]
    found: list[Callable[[World], None]] = [partial(_serve, group=group) for group in world.groups()]
    if not found and (at := _next(world)):
        found.append(lambda world: world.sleep(at - world.now))
    found += [partial(deploy, name=name, template=one) for name, one in _deployable(world, templates)]
    found += [
        partial(_complete, name=name) for name, stack in world.stacks.items() if stack.phase == "waiting"
    ]
    found += meanwhiles(world, pairs)
    forbids = [what for what in world.may if what.startswith(("denied", "deadly")) and world.allows(what)]
    found += [partial(_forbid, what=what) for what in forbids]
    if world.denied:
        found.append(lambda world: world.denied.clear())
    if world.allows("repairs"):
        held = {(asked.who, one) for asked in world.requests.values() for one in asked.pairs}
        found += [partial(World.repair, who=who, one=one) for who, one in sorted(held)]
    return found


def _next(world: World) -> float:
    """When something happens by itself."""
    shown: dict[str, float] = {}
    for message in world.messages.values():
        shown[message.group] = max(shown.get(message.group, 0.0), message.visible)
    times = [*shown.values(), *(due for due, *_ in world.arriving), *world.leaving.values()]
    return min((time for time in times if time > world.now), default=0.0)


def _serve(world: World, group: str) -> None:
    world.serve(group)
    react(world)


def _deployable(world: World, templates: Templates) -> list[tuple[str, Template]]:
    found = []
    for name, choices in templates.items():
        stack = world.stacks.get(name) or Stack(name)
        has = {one: resource.wants for one, resource in stack.resources}
        if stack.phase == "idle" and world.allows(f"deploys of {name}"):
            found += [(name, one) for one in choices if dict(one) != has]
    return found


def _forbid(world: World, what: str) -> None:
    world.spend(what)
    world.say(f"from now on: {what}")
    how, operation = what.split()
    getattr(world, how).add(operation)


def meanwhiles(world: World, pairs: list[Pair]) -> list[Callable[[World], None]]:
    """Whatever may happen now, and also while the function serves a request."""
    found: list[Callable[[World], None]] = []
    for one in pairs:
        if one in world.attached and world.allows("detaches") and one not in world.strangers:
            found.append(partial(_detach_by_hand, one=one))
        if (
            world.allows("attaches")
            and rules.create(world.api.present(one[1], one[0]), one[1], "API_KEY") is None
        ):
            found.append(partial(_attach_by_hand, one=one))
    if world.allows("vanishes") and not world.vanished:
        found.append(_vanish)
    if world.allows("cancels"):
        stacks = world.stacks.items()
        found += [
            partial(_cancel, name=name) for name, one in stacks if one.phase in ("deploying", "waiting")
        ]
    return found


def _cancel(world: World, name: str) -> None:
    """Another resource of the stack fails, and CloudFormation gives up all requests under way."""
    world.spend("cancels")
    world.say(f"another resource of {name} fails")
    _roll_back(world, world.stacks[name])


def _vanish(world: World) -> None:
    world.spend("vanishes")
    world.say("somebody deletes the key")
    world.vanished = True
    world.torn |= dict.fromkeys([("k", plan) for plan in world.api.plans], len(world.story))
    world.api.keys.clear()
    for some in (world.attached, world.leaving, world.left, world.kept, world.strangers):
        some.clear()


def _detach_by_hand(world: World, one: Pair) -> None:
    world.spend("detaches")
    world.say(f"somebody detaches {':'.join(one)}")
    world.leaving.pop(one, None)
    for some in (world.attached, world.left, world.kept):
        some.discard(one)
    world.torn[one] = len(world.story)


def _attach_by_hand(world: World, one: Pair) -> None:
    world.spend("attaches")
    world.say(f"somebody attaches {':'.join(one)}")
    world.attached.add(one)
    open_ = [asked for asked in world.requests.values() if not asked.answer and asked.takes]
    taken = {some for asked in open_ for some in asked.pairs}
    is_clear = one not in {*world.torn, *world.unclear, *world.unrecorded, *taken}
    world.torn.pop(one, None)
    (world.strangers if is_clear else world.either).add(one)


def overlaps(world: World, templates: Templates) -> list[Callable[[World], None]]:
    """What another function may serve at the same time: messages that wait, or a new deployment's.

    If the queue delivers a message twice, these are the ones that this function serves.
    """
    found: list[Callable[[World], None]] = []
    if world.allows("overlaps"):
        found = [partial(_overlap, group=group) for group in world.groups()]
        found += [partial(_overlap, deployed=one) for one in _deployable(world, templates)]
    if world.allows("twice"):
        found += [partial(_overlap, group=group, what="twice") for group in world.groups(flying=True)]
    return found


def _overlap(
    world: World, group: str = "", deployed: tuple[str, Template] | None = None, what: str = "overlaps"
) -> None:
    world.spend(what)
    world.say("meanwhile")
    before = world.groups()
    if deployed is not None:
        deploy(world, *deployed)
        _all_arrive(world)
    for one in [group] if group else sorted({*world.groups()} - {*before}):
        _serve(world, one)
    world.say("(meanwhile ends)")


def interrupted(templates: Templates, pairs: list[Pair]) -> Callable[[World], None]:
    """Make `World.meanwhile`: at each call something else may happen first; within that nothing more."""

    def meanwhile(world: World) -> None:
        happens = world.choices.choose([None, *meanwhiles(world, pairs), *overlaps(world, templates)])
        if happens is not None:
            world.meanwhile, before = lambda world: None, world.meanwhile
            try:
                happens(world)
                _all_arrive(world)
            finally:
                world.meanwhile = before

    return meanwhile


def _arrive(world: World, due: tuple[float, int, str]) -> None:
    world.arrive(*due)
    react(world)


def _all_arrive(world: World) -> None:
    while due := [one for one in world.arriving if one[0] <= world.now]:
        _arrive(world, due[0])


# --- The promises ---


def check(world: World) -> None:
    """The promises that hold at every moment."""
    if gone := (world.strangers | world.kept) - world.attached:
        raise BrokenError(f"it detached what it had not attached, or what is retained: {gone}")
    lost = VISIBILITY * sum("dies" in what or "deliver" in what for what in world.met)
    for id_, asked in world.requests.items():
        ends = asked.issued + asked.wants.timeout + LATE + lost
        if not asked.answer and not asked.cancelled and world.now > ends:
            raise BrokenError(f"{id_} has no answer in time")
    if any(world.now > message.sent + LONGEST for message in world.messages.values()):
        raise BrokenError("a request holds up its stack")


def is_quiet(world: World) -> bool:
    """Tell whether nothing is under way."""
    busy = any(stack.phase in {*PHASES, "waiting"} for stack in world.stacks.values())
    return not (world.messages or world.arriving or world.leaving or busy)


def check_at_rest(world: World) -> None:
    """All goes well from now on: what is stuck goes on, old requests come again, and all stacks are deleted.

    It goes on with this very world.
    """
    world.may, world.denied, world.deadly = {}, set(), set()
    world.say("| all is well from now on")
    for name, stack in sorted(world.stacks.items()):
        if stack.phase == "stuck":
            _continue(world, stack)
            if world.stacks[name].phase == "stuck":
                raise BrokenError(f"the rollback of {name} is stuck for ever")
    _compare(world, "at rest")
    _repeat(world)
    for name, stack in sorted(world.stacks.items()):
        if stack.phase == "idle":
            deploy(world, name, {})
            settle(world)
    _compare(world, "when all is deleted")


def _continue(world: World, stack: Stack) -> None:
    """ContinueUpdateRollback asks for the failed ones again."""
    asked = dict(stack.asked)
    world.sleep(1)
    for one, was in stack.requests(world).items():
        if was.answer.startswith("FAILED"):
            asked[one] = _send(world, "Update", was.who, was.wants, was.old, was.id)
    _put(world, stack, phase="rolling back", asked=tuple(asked.items()))
    settle(world)


def settle(world: World) -> None:
    """Go on until all is quiet."""
    for _ in range(300):
        found = steps(world, {}, [])
        if not found:
            return
        found[0](world)
        check(world)
    raise BrokenError("it never comes to rest")


def _repeat(world: World) -> None:
    """Each old request comes again, and changes nothing."""
    attached = set(world.attached)
    world.sleep(400)  # The queue would recognise it for five minutes.
    for id_ in list(world.requests):
        world.say(f"{id_} comes again")
        world.arriving.append((world.now, 0, id_))
        settle(world)
        if world.attached != attached:
            raise BrokenError(f"{id_} comes again and changes something")


def _compare(world: World, when: str) -> None:
    live = [stack for stack in world.stacks.values() if stack.phase == "idle"]
    resources = [one for stack in live for _, one in stack.resources]
    believed = {pair(one.id) for one in resources if not one.lost} | world.kept
    lost = {pair(one.id) for one in resources if one.lost}
    if missing := believed - world.attached - {*world.torn}:
        raise BrokenError(f"believed and not attached, {when}: {missing}")
    if orphans := world.attached - believed - lost - world.strangers - world.either - world.left:
        raise BrokenError(f"attached and nobody's, {when}: {orphans}")
