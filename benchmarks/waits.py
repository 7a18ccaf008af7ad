"""Runs keys whose creates API Gateway refuses for as long as anybody asks, and others beside them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Final

from emulators.fake import Key
from emulators.rules import BUSY, Refusal

from .model import Account, Sent
from .storms import INVENTED
from .waves import SPREAD, furnish, name

UNAVAILABLE: Final = Refusal(503, "ServiceUnavailableException", "Service Unavailable")
THROTTLED: Final = Refusal(429, "TooManyRequestsException", "Too Many Requests")
REFUSALS: Final = {
    "503": UNAVAILABLE,
    "409": BUSY,
    "429": THROTTLED,
    "429, Retry-After 900": Refusal(THROTTLED.status, THROTTLED.code, THROTTLED.message, 900),
}


@dataclass(frozen=True)
class Beside:
    """The result of stacks beside others whose only key API Gateway refuses.

    Attributes:
        good: How many of the good keys came out right.
        seconds: From the first of them to the last of their answers.
        billed: How many seconds the function ran.
        answered: How many of the refused requests CloudFormation has an answer for in its time.
        receives: How often the queue delivered one message, at most.
    """

    good: int
    seconds: float
    billed: float
    answered: int
    receives: int


def beside(good: int, stacks: int, stuck: int, refusal: Refusal, account: Account) -> Beside:
    """Create stacks just after others whose only key API Gateway refuses.

    Args:
        good: How many keys come out right.
        stacks: In so many stacks.
        stuck: How many stacks have a key that API Gateway refuses.
        refusal: How.
        account: Where.
    """
    world = account.world
    furnish(account.gateway, good)
    sent: list[Sent] = []
    refused: list[Sent] = []

    def start(number: int) -> None:
        sent.append(account.send("Create", f"good{number % stacks}", name(number), name(number), "free"))

    def refuse(number: int) -> None:
        refused.append(_refused(number, refusal, account))

    for number in range(stuck):
        world.at(world.dice.uniform(0, SPREAD), partial(refuse, number))
    for number in range(good):
        world.at(SPREAD + world.dice.uniform(0, SPREAD), partial(start, number))
    account.run()
    return Beside(
        good=sum(request.success for request in sent),
        seconds=max(_answered(request) for request in sent) - SPREAD,
        billed=account.billed,
        answered=sum(request.answer is not None for request in refused),
        receives=account.fifo.receives,
    )


@dataclass(frozen=True)
class Cancelled:
    """The result of Creates that API Gateway refuses until CloudFormation cancels them.

    Attributes:
        deletes: How many.
        right: How many of their Deletes succeeded, and left nothing attached.
        slowest: Seconds from a Delete to its answer, at most.
    """

    deletes: int
    right: int
    slowest: float


def cancelled(creates: int, stuck: int, refusal: Refusal, account: Account) -> Cancelled:
    """Create stacks whose only key API Gateway refuses; delete each at any time within CloudFormation's hour.

    Args:
        creates: How many.
        stuck: How many more are there that CloudFormation waits for.
        refusal: How.
        account: Where.
    """
    world, gateway = account.world, account.gateway
    furnish(gateway, 0)
    for number in range(stuck):
        _refused(creates + number, refusal, account)
    deletes: list[Sent] = []

    def delete(create: Sent) -> None:
        id_ = create.answer["PhysicalResourceId"] if create.answer else INVENTED
        stack, key = create.resource
        deletes.append(account.send("Delete", stack, key, key, "free", id_))

    for number in range(creates):
        world.at(world.dice.uniform(0, 3600), partial(delete, _refused(number, refusal, account)))
    account.run()
    return Cancelled(
        deletes=len(deletes),
        right=sum(request.success for request in deletes) if not gateway.attached else 0,
        slowest=max(_answered(request) - request.at for request in deletes),
    )


def _refused(number: int, refusal: Refusal, account: Account) -> Sent:
    """Send a Create, in a stack of its own, that API Gateway refuses."""
    key = f"stuck{number}"
    account.gateway.keys[key] = Key(key, "secret")
    account.gateway.stuck[key] = refusal
    return account.send("Create", key, key, key, "free")


def _answered(request: Sent) -> float:
    """Say when a request had its answer."""
    return request.answers[0][0] if request.answers else inf
