"""Malformed events: the function answers each, or refuses it in one sentence if no answer is possible."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable
from random import Random
from typing import Any, Final

from usage_plan_key.errors import EventError
from usage_plan_key.response import LONGEST_RESPONSE

from .world import URL_MARK, VALUE_MARK, CloudFormation, Death, Reply, World, watched

ODD: Final[list[Any]] = [
    *(
        None,
        "",
        " ",
        0,
        7,
        -1.5,
        True,
        [],
        {},
        ["a"],
        {"a": "b"},
        "x" * 5000,
        "ä" * 3000,
        "\ud800",
        "a\ud800b",
    ),
    *("\x00", "a\nb", "..", "%2f", "a/b", "a:b", "alice:free"),
    *("arn:aws:apigateway:eu-central-1::/apikeys/alice", "{{resolve:ssm:x}}", "${Key}"),
    *("https://", "http://a/", "https://a\\@b/", "https://u:p@a/", "https://a:1:2/", "https://[::1", "//a"),
    *("https://a b/", "https://bucket/?X-Amz-Date=" + "9" * 40, "https://bucket/?Expires=" + "9" * 40),
    *("https://bucket/?Expires=-1", "NaN", "1e400", "Create", "create", "Read", "true", "TRUE", "Adopt"),
    *("3600", "59", "3601", "0x10", "٣", 10**30, 1e308, [[]], {"": ""}),
]
#: The fields that an answer needs.
IDS: Final = ("RequestId", "StackId", "LogicalResourceId")
NEEDED: Final = ("RequestType", *IDS, "ResponseURL", "PhysicalResourceId")


def good(dice: Random) -> dict[str, Any]:
    """An event of CloudFormation's."""
    world = World()
    cfn = CloudFormation(world)
    properties = {"KeyId": "alice", "UsagePlanId": "free"}
    kind = dice.choice(("Create", "Update", "Delete"))
    old = properties if kind == "Update" else None
    return cfn.ask(kind, ("one", "A"), properties, old, None if kind == "Create" else "alice:free").event


def broken(event: dict[str, Any], dice: Random) -> Any:
    """The event with one to three things wrong, or something else."""
    if dice.random() < 0.01:
        return dice.choice(ODD)
    event = copy.deepcopy(event)
    for _ in range(dice.randint(1, 3)):
        inner = event.get("ResourceProperties")
        part: dict[Any, Any] = inner if isinstance(inner, dict) and dice.random() < 0.5 else event
        name = dice.choice(
            [*part, "CrHelperPoll", "Records", "KeyID", "source", "\ud800", "OnExisting", "IncludeValue"]
        )
        if dice.random() < 0.2:
            part.pop(name, None)
        else:
            part[name] = copy.deepcopy(dice.choice(ODD))
    return event


def asked(seed: int) -> tuple[str, list[str]]:
    """Invoke a new function with a malformed event; return the result, and the faults of the result."""
    dice = Random(seed)
    event = broken(good(dice), dice)
    world = World()
    world.clock.now += 1
    world.api.attached.add(("alice", "free"))
    fields = event if isinstance(event, dict) else {}
    bodies: list[bytes] = []
    world._put = lambda method, url, *, body, **_: _taken(bodies, body)  # type: ignore[method-assign]  # RequestId may be any
    world._warm = world._cold()  # with that
    wrong: list[str] = []
    came = "answered"
    with watched(world), contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            world.invoke(lambda function, context: function.on_event(event, context))
            if world.sqs.messages:
                world.run(lambda: not world.sqs.messages, 4000)
        except EventError as error:
            came = "refused in one sentence"
            if possible(fields):
                wrong.append(f"an answer was possible: {error}")
            if "\n" in str(error) or len(str(error)) > 600:
                wrong.append(f"not one sentence: {error}")
        except (Exception, Death) as error:  # noqa: BLE001  # the campaign looks for it
            wrong.append(f"{type(error).__name__}: {error}")
    if came == "answered" and len(bodies) != 1:
        wrong.append(f"{len(bodies)} answers")
    for body in bodies:
        answer = json.loads(body)
        came = f"answered {answer['Status']}"
        if (
            len(body) > LONGEST_RESPONSE
            and sum(len(json.dumps(fields[name])) for name in NEEDED if name in fields) < 3000
        ):
            wrong.append(f"{len(body)} bytes")
        if any(answer[name] != fields[name] for name in IDS):
            wrong.append("another request's ids")
    written = [*world.written, out.getvalue(), repr(world.table.items)]
    wrong += [
        f"a secret is written: {text[:200]}" for text in written if URL_MARK in text or VALUE_MARK in text
    ]
    return came, [f"event {seed}: {text}" for text in wrong]


def _taken(bodies: list[bytes], body: bytes) -> Any:
    bodies.append(body)
    return Reply(200)


def possible(event: dict[str, Any]) -> bool:
    """Tell whether an answer is possible: that takes the asker, the request and the answer's address.

    The function reads the address more leniently, so this may say no.
    """
    needed: list[Callable[[], bool]] = [
        lambda: event.get("RequestType") in ("Create", "Update", "Delete"),
        *(lambda name=name: isinstance(event.get(name), str) and event[name] != "" for name in IDS),
        lambda: str(event.get("ResponseURL", "")).startswith("https://bucket"),
        lambda: (
            event["RequestType"] == "Create"
            or (isinstance(event.get("PhysicalResourceId"), str) and event["PhysicalResourceId"] != "")
        ),
    ]
    return all(check() for check in needed)


def told(seeds: Iterable[int]) -> tuple[Counter[str], list[str]]:
    """Invoke it with many events; return the counts, and the faults."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for seed in seeds:
        came, found = asked(seed)
        counts[came] += 1
        wrong += found
    return counts, wrong
