"""Rules broken by hand, one at a time; the check has to find each."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple
from unittest import mock

from usage_plan_key import decide, model, rules

from .__main__ import Found, explore

DETACHED: Final = "it detached what it had not attached"
MISSING: Final = "believed and not attached"
ORPHANED: Final = "attached and nobody's"


class Broken(NamedTuple):
    """A rule broken by hand.

    Attributes:
        name: What the function does then.
        function: It has the rule.
        was: The text in it.
        becomes: The text in its place.
        search: The search that finds it.
        promise: The beginning of the promise that is broken.
        surprises: How many it takes.
    """

    name: str
    function: Callable[..., Any]
    was: str
    becomes: str
    search: str
    promise: str
    surprises: int = 1


RULES: Final = (
    Broken(
        "it serves an older request after a newer one",
        rules.is_superseded,
        "record.newest.id != request.id",
        "False",
        "create",
        "X.A.1 comes again and changes something",
        2,
    ),
    Broken(
        "it counts a key that was there as its own",
        rules.whose,
        "origin=Origin.BEFORE",
        "origin=Origin.OURS",
        "create, Adopt",
        DETACHED,
    ),
    Broken(
        "it detaches for one of several holders",
        rules.has_to_detach,
        "not entry.others(holder) and ",
        "",
        "rename",
        MISSING,
    ),
    Broken(
        "it releases nothing for an invented id",
        rules.releases,
        "if hold.belief in UNNAMED",
        "if False",
        "create",
        ORPHANED,
    ),
    Broken(
        "it does not mark what it begins to attach", rules.attaching, "| {request.id}", "", "create", ORPHANED
    ),
    Broken(
        "it lets a mark stand that it has set in vain",
        decide._noted,
        "facts.in_vain is not None",
        "False",
        "create",
        DETACHED,
        2,
    ),
    Broken(
        "it counts as its own what somebody has attached since a move",
        decide._put_back,
        "rules.left_to_others(state, moved)",
        "rules.attached(state, request, moved)",
        "move, outsider",
        DETACHED,
    ),
    Broken(
        "it takes its own mark for another's",
        decide._own_mark,
        "state.entry(held).detaching is not None",
        "False",
        "move",
        "it decides anew",
    ),
    Broken(
        "it moves a key again that it has moved",
        rules.may_move,
        "entry.away and hold.marked_by == request.id",
        "False",
        "take and move",
        "it decides anew",
    ),
    Broken(
        "it believes that a detached key has left at once",
        model.AssociationRecord.leaves,
        "now < self.detached + LEAVES_WITHIN",
        "False",
        "replace and back",
        MISSING,
    ),
    Broken(
        "it fails a rollback whose key is gone",
        decide._is_lost,
        "return out_of_reach and",
        "return False and",
        "move",
        "the rollback of X is stuck",
    ),
    Broken(
        "it serves an answered request again",
        decide.next_step,
        "note is not None and note.answer is not None",
        "False",
        "create",
        "two answers",
    ),
    Broken(
        "it releases what an earlier life has retained",
        rules.releases,
        " and named != record.retained",
        "",
        "retain",
        DETACHED,
    ),
    Broken(
        "it keeps the mark of an attaching that a detach has undone",
        rules.detached,
        "attaching=frozenset(), ",
        "",
        "move",
        "it goes round in a circle",
    ),
)


@contextmanager
def broken(rule: Broken) -> Iterator[None]:
    """Put the function with the broken rule in the place of the intact one."""
    function = rule.function
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(rule.was) != 1:
        raise ValueError(f"{function.__qualname__} has this {source.count(rule.was)} times: {rule.was}")
    module, made = sys.modules[function.__module__], dict[str, Any]()
    text = f"from __future__ import annotations\n{source.replace(rule.was, rule.becomes)}"
    exec(compile(text, module.__file__ or "", "exec"), vars(module), made)  # noqa: S102  # our own source
    *owner, name = function.__qualname__.split(".")
    with mock.patch.object(getattr(module, owner[0]) if owner else module, name, made[name]):
        yield


def explore_broken(number: int) -> tuple[Found, Found]:
    """Search for a broken rule until it is found, and then as far in the intact function."""
    rule = RULES[number]
    with broken(rule):
        found = explore(rule.search, surprises=rule.surprises, first=True)
    return found, explore(rule.search, most=found.runs, surprises=rule.surprises)
