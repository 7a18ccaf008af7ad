"""Rules broken by hand, one at a time; the check has to find each."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final, NamedTuple
from unittest import mock

from .__main__ import Found, explore


class Broken(NamedTuple):
    """A rule broken by hand.

    Attributes:
        name: What the function does then.
        where: The module and the function that have the rule.
        was: The text in it.
        becomes: The text in its place.
        search: The search that finds it.
        surprises: How many it takes.
        promise: The beginning of the promise that is broken.
    """

    name: str
    where: str
    was: str
    becomes: str
    search: str
    surprises: str
    promise: str


#: What the function does then; where it stands, and what becomes of it; the search that finds it, with how
#: many surprises, and the promise that is broken.
TABLE: Final = """
it serves an older request after a newer one
    rules.is_superseded: record.newest.id != request.id -> False
    create (2): X.A.1 comes again and changes something
it counts a key that was there as its own
    rules.whose: origin=Origin.BEFORE -> origin=Origin.OURS
    create, Adopt (1): it detached what it had not attached
it detaches for one of several holders
    rules.has_to_detach: not entry.others(holder) and ->
    rename (1): believed and not attached
it releases nothing for an invented id
    rules.releases: if hold.belief in UNNAMED -> if False
    create (1): attached and nobody's
it does not mark what it begins to attach
    rules.attaching: | {request.id} ->
    create (1): attached and nobody's
it lets a mark stand that it has set in vain
    service.Service._in_vain: [Result(Kind.REFUSED, association)] -> []
    create (2): it detached what it had not attached
it counts as its own what somebody has attached since a move
    decide._put_back: rules.left_to_others(state, moved) -> rules.attached(state, request, moved)
    move, outsider (1): it detached what it had not attached
it takes its own mark for another's
    decide._own_mark: state.entry(held).detaching is not None -> False
    move (1): it decides anew
it moves a key again that it has moved
    rules.may_move: entry.away and hold.marked_by == request.id -> False
    take and move (1): it decides anew
it believes that a detached key has left at once
    model.AssociationRecord.leaves: now < self.detached + LEAVES_WITHIN -> False
    replace and back (1): believed and not attached
it fails a rollback whose key is gone
    decide._is_lost: return out_of_reach and -> return False and
    move (1): the rollback of X is stuck
it serves an answered request again
    decide.next_step: note is not None and note.answer is not None -> False
    create (1): two answers
it releases what an earlier life has retained
    rules.releases: and named != record.retained ->
    retain (1): it detached what it had not attached
it keeps the mark of an attaching that a detach has undone
    rules.detached: attaching=frozenset(), ->
    move (1): it goes round in a circle
"""
ROW: Final = re.compile(r"^(\S.*)\n +(\S+): (.+?) ->(?: (.*))?\n +(.+) \((\d)\): (.*)$", re.MULTILINE)
RULES: Final = tuple(Broken(*found) for found in ROW.findall(TABLE))


@contextmanager
def broken(rule: Broken) -> Iterator[None]:
    """Put the function with the broken rule in the place of the intact one."""
    file, *owners, name = rule.where.split(".")
    module = owner = import_module(f"usage_plan_key.{file}")
    for one in owners:
        owner = getattr(owner, one)
    source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    if source.count(rule.was) != 1:
        raise ValueError(f"{rule.where} has this {source.count(rule.was)} times: {rule.was}")
    made: dict[str, Any] = {}
    text = f"from __future__ import annotations\n{source.replace(rule.was, rule.becomes)}"
    exec(compile(text, module.__file__ or "", "exec"), vars(module), made)  # noqa: S102  # our own source
    with mock.patch.object(owner, name, made[name]):
        yield


def explore_broken(rule: Broken) -> Found:
    """Search for a broken rule until it is found."""
    with broken(rule):
        return explore(rule.search, surprises=int(rule.surprises), first=True)
