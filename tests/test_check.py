"""The check finds each rule that is broken by hand. `make check` plays all of it, on the intact function."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final
from unittest import mock

from .check.__main__ import Found, explore
from .check.searches import SEARCHES

#: What the function does then; where the rule stands, and what becomes of it; the search that finds it, with
#: how many surprises, and the promise that is broken.
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
RULES: Final = re.findall(
    r"^(\S.*)\n +(\S+): (.+?) ->(?: (.*))?\n +(.+) \((\d)\): (.*)$", TABLE, re.MULTILINE
)


@contextmanager
def broken(where: str, was: str, becomes: str) -> Iterator[None]:
    """Put the function with the broken rule in the place of the intact one."""
    file, *owners, name = where.split(".")
    module = owner = import_module(f"usage_plan_key.{file}")
    for one in owners:
        owner = getattr(owner, one)
    source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    assert source.count(was) == 1, f"{where} has this once: {was}"
    made: dict[str, Any] = {}
    text = f"from __future__ import annotations\n{source.replace(was, becomes)}"
    exec(compile(text, module.__file__ or "", "exec"), vars(module), made)  # noqa: S102  # our own source
    with mock.patch.object(owner, name, made[name]):
        yield


def explore_broken(rule: tuple[str, ...]) -> Found:
    """Search for a broken rule until it is found."""
    _, *how, search, surprises, _ = rule
    with broken(*how):
        return explore(search, surprises=int(surprises), first=True)


def test_the_check_finds_each_broken_rule_and_as_far_nothing_in_the_intact_function() -> None:
    """In each search at least the short orders of events with one surprise."""
    most = dict.fromkeys([(name, 1) for name in SEARCHES], 150)
    with ProcessPoolExecutor() as pool:
        for (name, *_, search, surprises, promise), found in zip(
            RULES, pool.map(explore_broken, RULES), strict=True
        ):
            assert [what for what in found.wrong if what.startswith(promise)], name
            most[search, int(surprises)] = max(most.get((search, int(surprises)), 0), found.runs)
        names, allowed = zip(*most, strict=True)
        intact = dict(zip(most, pool.map(explore, names, most.values(), allowed), strict=True))
    assert {search: found.wrong for search, found in intact.items() if found.wrong} == {}
    assert min(found.runs for found in intact.values()) > 10
    assert len(RULES) == 14
