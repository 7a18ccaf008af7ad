"""One play: a story with faults in it, and the promises that must hold at its end."""

from __future__ import annotations

import contextlib
import io
import json
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from usage_plan_key.response import LONGEST_RESPONSE

from .faults import FINAL, RESTORED, UNCLEAR
from .framework import Framework
from .readme import Readme
from .stories import STORIES, Story
from .world import (
    GRACE,
    SERVICE_TIMEOUT,
    URL_MARK,
    VALUE_MARK,
    CloudFormation,
    Fault,
    Request,
    World,
    pair,
    watched,
)


@dataclass
class Play:
    """The result of a play.

    Attributes:
        wrong: The broken promises; empty when all is well.
        excepted: The failures that docs/reliability.md still allows.
        struck: The faults that came to strike.
        calls: The function's calls, in order: service and operation.
        succeeded: How many answers were SUCCESS.
    """

    wrong: list[str]
    excepted: list[str]
    struck: list[str]
    calls: list[tuple[str, str]] = field(repr=False)
    succeeded: int


def play(name: str, faults: Sequence[Fault] = (), *, seed: int = 0, by: str = "this") -> Play:
    """Play a story, `by` one of `FUNCTIONS`. Its faults strike at the calls that they name.

    Its seed sets the clocks and the code of a stage conflict.
    """
    story = STORIES[name]
    world = World(seed, shared_stage=seed % 2, skew=(0.0, 60.0, -60.0)[seed % 3], **FUNCTIONS[by])
    world.faults = list(faults)
    restored = any(fault.name in RESTORED for fault in faults)
    cfn = CloudFormation(world)
    cfn.attached_by_hand(story.outside)
    wrong: list[str] = []
    with watched(world), contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            story.tell(cfn)
            calls = list(world.calls)
            cfn.settle(skips=restored)
            wrong += _at_rest(cfn, story, "when all is well again")
            if restored:
                _mend(cfn)
                wrong += _at_rest(cfn, story, "when it is mended")
            wrong += _old_requests_again(cfn)
            for stack, logical_id in list(cfn.resources):
                if not cfn.delete(stack, logical_id):
                    wrong.append(f"{logical_id} cannot be deleted")
            wrong += _at_rest(cfn, story, "when everything is deleted")
        except Exception as error:  # noqa: BLE001  # the campaign looks for it
            calls = list(world.calls)
            wrong.append(f"{type(error).__name__}: {error} {traceback.format_exc(limit=-3)}")
    excepted = [text for text in wrong if "stranger" in text] if _cannot_tell(cfn, faults) else []
    # Lambda invokes three times, and a minute and two minutes later.
    lasting = any(fault.lasting for fault in faults) or sum(fault.service == "" for fault in faults) > 2
    answers = _answers(cfn, lasting=lasting)
    if name == "express" and any(fault.lasting for fault in faults if fault.service == "s3"):
        # CloudFormation hears of neither of two Creates, and sends no Delete: the first looks retained.
        excepted += [text for text in wrong if "left behind" in text]
    unwritten = any("Could not write the answer down" in line for line in world.written)
    if unwritten or any(fault.lasting for fault in faults if fault.service == "dynamodb"):
        # Without the ledger nobody knows the first answer, and CloudFormation goes by that one.
        excepted += [text for text in [*wrong, *answers] if "two answers" in text or "anew" in text]
    if restored:
        excepted += [text for text in [*wrong, *answers] if _is_forgotten(text, world)]
    wrong = [text for text in wrong + answers if text not in excepted]
    wrong += _secrets(world, out.getvalue())
    succeeded = sum(request.success for request in world.requests.values())
    return Play(wrong, excepted, world.struck, calls, succeeded)


#: This function; and others in its place, with the longest time-out that Lambda has.
FUNCTIONS: Final[dict[str, dict[str, Any]]] = {
    "this": {},
    "README": {"function": Readme, "timeout": 900.0},
    "CDK": {"function": Framework, "timeout": 900.0},
}


def _at_rest(cfn: CloudFormation, story: Story, when: str) -> list[str]:
    attached, believed = cfn.world.api.attached, cfn.believed()
    return [
        *(f"{pair} is believed to be attached and is not, {when}" for pair in believed - attached),
        *(f"{pair} was a stranger's and is gone, {when}" for pair in cfn.strangers - story.taken - attached),
        *(f"{pair} is left behind, {when}" for pair in attached - believed - cfn.strangers - cfn.left),
    ]


def _mend(cfn: CloudFormation) -> None:
    """Do as docs/reliability.md says: detach each undeclared key by hand, and take over the others."""
    attached = cfn.world.api.attached

    def detach_by_hand() -> None:
        attached.difference_update(attached - cfn.believed() - cfn.strangers - cfn.left)

    detach_by_hand()
    for (stack, name), resource in list(cfn.resources.items()):
        if pair(resource.id) not in cfn.strangers & attached:
            for trigger in ("restored", "taken"):
                cfn.update(
                    stack, name, {**resource.properties, "OnExisting": "Take", "VerifyTrigger": trigger}
                )
    detach_by_hand()


def _is_forgotten(text: str, world: World) -> bool:
    """Tell whether this comes of a restored ledger's gaps."""
    if "stranger" in text:  # It says that the function has attached the key, or is about to.
        return any(str(pair(id_)) in text for id_ in world.table.claimed)
    if "when it is mended" in text:
        return False
    return any(part in text for part in ("left behind", "is believed", "two answers", "anew"))


def _old_requests_again(cfn: CloudFormation) -> list[str]:
    """Every request comes once more, an hour later, to the function and out of the queue: nothing changes."""
    world = cfn.world
    attached = set(world.api.attached)
    before = {id_: {_told(body) for body in request.bodies} for id_, request in world.requests.items()}
    world.clock.now += 3600
    for request in list(world.requests.values()):
        world.hand_in(request.event, attempts=1)
        world.run(limit=200)
    for body in list(world.sqs.dead):
        world.sqs.send_message(
            QueueUrl="requests", MessageBody=body, MessageGroupId="again", MessageDeduplicationId=body[-128:]
        )
        world.run(limit=200)
    wrong = [f"{pair} has changed by an old request" for pair in attached ^ world.api.attached]
    for id_, told in before.items():
        if told and {_told(body) for body in world.requests[id_].bodies} != told:
            wrong.append(f"{id_} was answered anew: {world.requests[id_].bodies}")
    return wrong


def _cannot_tell(cfn: CloudFormation, faults: Sequence[Fault]) -> bool:
    """Tell whether a fault struck before the first answer after a stranger's attaching."""
    calls = enumerate(cfn.world.calls)
    answers = (number for number, (service, _) in calls if service == "s3" and number >= cfn.since)
    first = next(answers, len(cfn.world.calls))
    return any(fault.at < first and (fault.name in UNCLEAR or fault.lasting) for fault in faults)


def _told(body: bytes) -> str:
    """The part of an answer that CloudFormation goes by.

    If the function could not write the ledger, a request whose time is over has another Reason. No page holds
    a key's value.
    """
    told = {name: part for name, part in json.loads(body).items() if name != "Reason"}
    told.get("Data", {}).pop("Value", None)
    return json.dumps(told)


def _answers(cfn: CloudFormation, *, lasting: bool) -> list[str]:
    wrong = []
    for id_, request in cfn.world.requests.items():
        what = f"{request.event['RequestType']} {id_}"
        if len({_told(body) for body in request.bodies}) > 1:
            wrong.append(f"{what} has two answers: {request.bodies}")
        for body in request.bodies[:1]:
            wrong += [f"{what}: {fault}" for fault in _faults_of(request, body)]
        if lasting or set(cfn.world.struck) & FINAL:
            continue
        if not request.bodies:
            wrong.append(f"{what} has no answer")
        if request.first > request.issued + SERVICE_TIMEOUT + GRACE:
            wrong.append(f"{what} was answered late")
    return wrong


def _faults_of(request: Request, body: bytes) -> list[str]:
    answer: dict[str, Any] = json.loads(body)
    event = request.event
    asked = {name: event[name] for name in ("StackId", "RequestId", "LogicalResourceId")}
    found = []
    if len(body) > LONGEST_RESPONSE:
        found.append(f"{len(body)} bytes")
    if {name: answer.get(name) for name in asked} != asked or not answer.get("PhysicalResourceId"):
        found.append("ids are missing")
    if answer["Status"] == "FAILED" and not answer.get("Reason"):
        found.append("no Reason")
    own = answer["Status"] == "FAILED" or event["RequestType"] == "Delete"
    if own and answer["PhysicalResourceId"] != event.get("PhysicalResourceId", answer["PhysicalResourceId"]):
        found.append("another id, which is a replacement")
    echoes = event["RequestType"] == "Delete" or event["ResourceProperties"].get("IncludeValue") != "true"
    if answer["Status"] == "SUCCESS" and answer.get("NoEcho") is echoes:
        found.append("NoEcho of another request")
    if VALUE_MARK in body.decode() and event["ResourceProperties"].get("IncludeValue") != "true":
        found.append("a key's value")
    return found


def _secrets(world: World, printed: str) -> list[str]:
    written = [*world.written, printed, repr(world.table.items)]
    written += [request.answer.get("Reason", "") for request in world.requests.values() if request.bodies]
    secret = (text for text in written if VALUE_MARK in text or URL_MARK in text)
    return [f"a secret is written: {text[:300]}" for text in secret]
