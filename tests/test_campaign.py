"""Every fault at every call of whole deployments ends well. `make test` plays a part, `make campaign` all.

CloudFormation waits, rolls back, cleans up, and invents an id where it has heard of none. Then the fault
ends, an operator continues what has failed, every request comes once more an hour later, and all is deleted.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, Final
from unittest import mock

import pytest

from emulators import rules
from usage_plan_key import queue
from usage_plan_key.api_gateway import ApiGateway
from usage_plan_key.custom_resource import GUARD_TIME, CustomResource
from usage_plan_key.service import Service

from .function import Death, Pair
from .story import REFUSALS, Story, _id, staged, stories

#: `make test` plays one fault in so many.
SHARE: Final = int(os.environ.get("CAMPAIGN_SHARE", "41"))
#: Seconds of a fault: at one call, for some turns of the function, for longer than CloudFormation waits.
LASTING: Final = (0, 200, 1200)
#: CloudFormation's time for a request, with a minute for clocks that differ.
PATIENCE: Final = 900 + 60
#: The faults of each kind of call, in the stories' words or in those of `Struck._befalls`.
ANYWHERE: Final = (
    *("hangs", "hangs served", "hangs guarded", "hangs guarded served", "twice"),
    *("left 0", "left 1", "left 3", "left 20"),
)
PUT: Final = ("cut", "lost", "dies", "dead", *ANYWHERE)
AWS: Final = ("denied", "throttled", "broken", "html", "empty served", *PUT)
API: Final = (
    *("busy", "odd", "quota", "unauthorized", "bad", "crash", "crashed", "throttled=2", "throttled=100"),
    *AWS,
)
DAMAGED: Final = {
    "page damaged": {"holds": {"S": "?"}, "holders": {"S": "?"}},
    "page newer": {"format": {"N": "99"}},
}
FAULTS: Final = {
    **dict.fromkeys(("get", "plan", "plans", "delete"), API),
    **dict.fromkeys(("send", "hide"), AWS),
    **dict.fromkeys(("write", "fence"), (*AWS, "conflict", "changed")),
    "create": (*API, "bare"),
    "read": (*AWS, *DAMAGED),
    "put": PUT,
}
#: Only after these, once, does the ledger tell whether the function or somebody else has attached a key.
CLEAR: Final = {*REFUSALS, *DAMAGED, "throttled=2", "bare"} - {"broken", "cut", "dies", "crash"}


class Struck(Story):
    """A story with a fault at one of its calls, and at all of that kind for so many seconds."""

    def __init__(self, at: int = -1, fault: str = "", lasts: int = 0) -> None:
        super().__init__()
        self.at, self.fault, self.lasts = at, fault, lasts
        self.made: list[str] = []  # The calls so far
        self.struck, self.until = "", 0.0
        self.guard: CustomResource | None = None

    def call(self, operation: str, make: Callable[[], Any], about: Pair | None = None) -> Any:
        verb, usual = self._verb(operation), partial(super().call, operation, make, about)
        self.made.append(verb)
        if self.now > self.ends:
            raise Death
        if len(self.made) - 1 == self.at:
            self.struck, self.until = verb, self.now + self.lasts
        elif verb != self.struck or self.now >= self.until:
            return usual()
        return self._befalls(verb, usual)

    def _befalls(self, verb: str, make: Callable[[], Any]) -> Any:
        match self.fault.split():
            case ["hangs", *how]:  # until the guard has answered, or until Lambda ends the function
                reply = make() if "served" in how else None
                guard, self.guard = self.guard, None
                if guard and not self.is_arriving:
                    self.now = max(self.now, self.ends - GUARD_TIME)
                    guard._timeout()
                if "guarded" not in how:
                    self.now = max(self.now, self.ends)
                    raise Death
                return reply if "served" in how else make()
            case ["left", seconds]:
                self.now = max(self.now, self.ends - int(seconds))
            case ["twice"]:  # SQS delivers the message to a second function meanwhile
                self.struck = ""
                if not self.is_arriving:
                    self._nested(f"again {[*self.events][-1]} = any")
            case ["empty", "served"]:
                return make() and {}
            case ["page", _]:
                reply = make()
                for found in reply["Responses"]:
                    found.get("Item", {}).update(DAMAGED[self.fault])
                return reply
            case _:
                self.fates[verb] = [self.fault]
        return make()

    def _arrive(self, asked: dict[str, Any]) -> None:
        """Lambda invokes again, twice."""
        for pause in (60, 120, 0):
            try:
                super()._arrive(asked)
            except (Death, Exception):  # noqa: BLE001  # as Lambda does
                self._function()
                self.sleep(pause)
            else:
                break
        if asked["RequestId"] not in self.messages and not self.put:
            raise Death

    def _answered(self, id_: str, answer: dict[str, Any]) -> None:
        """Without the ledger nobody knows the first answer; and nobody waits for one that is late."""
        unwritten = any("Could not write the answer" in line for line in self.lines)
        if id_ not in self.bodies and self.now > self.events[id_]["issued"] + PATIENCE:
            self.bodies[id_] = [answer]
        elif id_ not in self.bodies or not unwritten:
            super()._answered(id_, answer)


class CloudFormation:
    """Deploys resources one after the other, cleans up, and rolls back; and remembers its beliefs."""

    def __init__(self, story: Struck) -> None:
        self.story = story
        self.ids: dict[str, str] = {}
        self.stuck: list[tuple[str, str, str]] = []
        self.left: set[str] = set()  # What a clean-up Delete that has failed has left

    def ask(self, line: str) -> bool:
        """Send a request, and wait for its answer or for the end of its time; tell whether it succeeds."""
        story, id_ = self.story, f"r{len(self.story.events)}"
        ends = story.now + PATIENCE
        story.play(f"{id_}: {line} for=900 = any")
        self.wait(id_, ends)
        if id_ in story.bodies:
            return bool(story.bodies[id_][0]["Status"] == "SUCCESS")
        assert story.lasts, "an answer in time"
        story.now = max(story.now, ends)
        return False

    def wait(self, id_: str, ends: float) -> None:
        """SQS delivers the request again and again, until its answer is there."""
        story = self.story
        while id_ not in story.bodies and id_ in story.messages and story.now < ends:
            hidden = max(0, story.messages[id_].visible - story.now)
            story.play(f"time {hidden}; again {id_} = any")

    def deploy(self, line: str) -> None:
        """Play a deployment, to its first failure."""
        for step in line.split("; "):
            verb, *words = step.split()
            if "hand" in verb:
                self.story.play(step)
            elif not getattr(self, verb)(*words):
                return

    def create(self, name: str, plan: str, *options: str) -> bool:
        self.ids[name] = plan
        if self.ask(f"create {name} {plan} {' '.join(options)}"):
            return True
        if [*self.story.events][-1] not in self.story.bodies:
            self.ids[name] = "#invented"
        self.delete(name)
        return False

    def update(self, name: str, plan: str, *options: str) -> bool:
        old = self.ids[name]
        return self.change(name, plan, *options) and self.clean_up(name, old)

    def change(self, name: str, plan: str, *options: str) -> bool:
        """Update a resource without the clean-up; roll it back if that fails."""
        old = self.ids[name]
        if self.ask(f"update {name} {old} {plan} {' '.join(options)}"):
            self.ids[name] = plan
            return True
        self.undo(name, old, *options)
        return False

    def undo(self, name: str, plan: str, *options: str) -> bool:
        """Roll an Update back."""
        new, self.ids[name] = self.ids[name], plan
        return self.insist(f"update {name} {new} {plan} {' '.join(options)}", name, new)

    def clean_up(self, name: str, id_: str) -> bool:
        if id_ != self.ids[name] and not self.ask(f"delete {name} {id_}"):
            self.left.add(_id(id_))
        return True

    def delete(self, name: str) -> bool:
        return self.insist(f"delete {name} {self.ids.pop(name)}")

    def insist(self, line: str, name: str = "", old: str = "") -> bool:
        """An operator repeats what fails here: a Delete, or a rollback's Update and its clean-up."""
        if not self.ask(line):
            self.stuck.append((line, name, old))
            return False
        return not name or self.clean_up(name, old)

    def check(self) -> None:
        pairs = (self.story.api.attached, self.story.strangers)
        attached, strangers = ({f"{key}:{plan}" for key, plan in some} for some in pairs)
        believed = {*map(_id, self.ids.values())}
        answers = [answer for answers in self.story.bodies.values() for answer in answers]
        lost = {one["PhysicalResourceId"] for one in answers if one.get("Data", {}).get("Outcome") == "LOST"}
        assert believed - lost <= attached, "what CloudFormation believes to be attached is attached"
        assert attached <= believed | strangers | self.left, "nothing is left behind"

    def end(self) -> None:
        """All is well again: the function serves what waits, and an operator continues what has failed."""
        story = self.story
        story.at, story.until = -1, 0.0
        for id_ in [*story.messages]:
            self.wait(id_, story.now + 3600)  # Nobody sends a deadly answer again.
        for one in [*self.stuck]:
            assert self.insist(*one), "no stack is wedged"
        self.check()
        attached = {*story.api.attached}
        story.play("; ".join(["time 3600", *(f"again {id_} = any" for id_ in story.events)]))
        assert story.api.attached == attached, "an old request changes nothing"
        for name in [*self.ids]:
            assert self.delete(name), "every resource can be deleted"
        self.check()


def deployed(line: str, at: int = -1, fault: str = "", lasts: int = 0) -> list[str]:
    """Play a deployment with a fault; return its calls."""
    story = Struck(at, fault, lasts)
    story.api.shared_stage = rules.SHARED_STAGES[at % 2]

    def set_timeout(resource: CustomResource) -> None:
        story.guard = resource

    with staged(story), mock.patch.object(CustomResource, "_set_timeout", set_timeout):
        cloudformation = CloudFormation(story)
        try:
            story.play("queue")
            cloudformation.deploy(line)
            calls = [*story.made]
            cloudformation.end()
        except BaseException as error:
            error.add_note("\n".join([f"{fault} for {lasts} s at call {at}", *story.told]))
            raise
    return calls


def cells(line: str) -> list[tuple[int, str, int]]:
    """Each call, each of its faults, and how long that lasts."""
    return [
        (at, fault, lasts)
        for at, verb in enumerate(deployed(line))
        for fault in FAULTS[verb]
        for lasts in LASTING
        if "hand+" not in line or (fault in CLEAR and not lasts)
    ]


def play(line: str, struck: list[tuple[int, str, int]]) -> None:
    for cell in struck:
        deployed(line, *cell)


@stories("""
a resource comes and goes
    create A free; delete A
its value, and a repair
    create A free Value; hand- free; update A free Value P2
a move
    create A free; update A pro
a move that is taken back
    create A free; change A pro; undo A free
a replacement
    create A free; update A gold
a replacement that is taken back
    create A free; change A gold; undo A free
a new name
    create A free; create B free; delete A
two stacks
    create A free; create Z free Adopt; delete A
what was there before
    hand+ free; create A free Adopt; update A gold Adopt
what is refused
    create A free; create B pro
""")
def test_every_fault_at_every_call_ends_well(line: str) -> None:
    played = cells(line)[::SHARE]
    play(line, played)
    assert len(played) * SHARE > 80


@pytest.mark.parametrize(
    ("rule", "fault", "found"),
    [
        ((ApiGateway, "detach", lambda *_: None), "busy", "what we attached and nobody holds is detached"),
        ((Service, "fail", Service._failed), "hangs", "the same request, the same answer"),
        ((queue, "readable", lambda call, *_: call), "html", "an answer in time"),
    ],
    ids=["it detaches", "it writes the guard's answer down", "it reads the reply"],
)
def test_a_broken_rule_is_found(monkeypatch: pytest.MonkeyPatch, rule: Any, fault: str, found: str) -> None:
    line = "create A free; delete A"
    struck = [cell for cell in cells(line) if cell[1:] == (fault, 0)]
    monkeypatch.setattr(*rule)
    with pytest.raises(AssertionError, match=found):
        play(line, struck)
