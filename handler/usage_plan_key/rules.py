"""Every rule about the ledger's pages: fence, belief, answers, marks, who may take, move and let go.

Pure functions over pages; they call nobody. `decide` asks them, in the order of its table.

The outcome of a Create or an Update, by who held the association before:

    holders                in the plan   outcome
    ---------------------  ------------  ---------------------------------------------------------------------
    nobody                 no            ATTACHED
    nobody                 yes           `Fail` refuses; `Adopt`, `Take`: ADOPTED, with the origin BEFORE
    this resource          yes           VERIFIED; Create: ATTACHED; Update, `Take`, origin BEFORE: TAKEN
    this resource          no            REPAIRED; Create: ATTACHED
    another of this stack  yes           JOINED
    another of this stack  no            REPAIRED
    other stacks only      yes           `Fail` refuses; `Adopt`, `Take`: JOINED
    other stacks only      no            `Fail` refuses; `Adopt`, `Take`: REPAIRED

A key that had to leave another plan first is MOVED, and one that a rollback cannot have back is LOST.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from enum import Enum
from itertools import islice
from typing import Final

from .errors import Again, FailedError
from .model import (
    REMEMBERED,
    Association,
    AssociationRecord,
    Belief,
    Holder,
    Mark,
    Note,
    Origin,
    Outcome,
    ResourceRecord,
    Response,
    Snapshot,
    Standing,
    digest,
)
from .request import Create, CreateOrUpdate, Delete, Invalid, OnExisting, Repair, Request, Update

#: Requests on a resource's page at most: DynamoDB takes 400 KB an item, and an answer has 4 KB.
MOST_NOTES: Final = 50
#: After this many deaths at a request, the function answers it FAILED.
MOST_DEATHS: Final = 3
#: The back-off of a request that goes back, in seconds: half to all of the first, doubled up to the second.
BACK_OFF: Final = (2.0, 120.0)
#: The same while API Gateway is busy with others: longer by the first figure for each refusal, up to the
#: second. The other function may keep it busy, and a stack must not sleep when that ends.
BUSY_BACK_OFF: Final = (0.5, 20.0)
#: Associations that one step lets go of. A transaction takes 100 pages.
MOST_AT_ONCE: Final = 40


# --- The fence: the newest request wins ---


def fence(record: ResourceRecord, request: Request, now: float, *, is_over: bool = False) -> ResourceRecord:
    """Note that a request has arrived, before it waits for its turn.

    A request without an issue time counts as issued now, and never as older than the newest one. One that
    arrives after its time is not newer than another one of the same second.
    """
    if record.note(request.id):
        return record
    known = record.newest.issued if record.newest else 0
    issued = max(int(now), known) if request.issued is None else request.issued
    note = Note(request.id, issued, ends_life=_is_invented(record, request))
    rank = _rank(record, request, issued, is_over=is_over)
    is_late = rank < len(record.notes)
    record = _named_by(record, request, is_late=is_late)
    record = record._replace(notes=_kept((*record.notes[:rank], note, *record.notes[rank:]), now))
    if is_late:
        return record
    if request.physical_id is None:
        # A new life begins. CloudFormation retained the earlier holds: it sent no Delete for them.
        record = _believe(record, record.holds, Event.REBORN)
    if not isinstance(request, Delete):
        record = record._replace(retained=None)
    return record._replace(wants=_wants(record, request, note))


def _rank(record: ResourceRecord, request: Request, issued: int, *, is_over: bool) -> int:
    """Find a request's place among the others: by issue time, and within a second by arrival.

    A Create that arrives behind its own Delete of the same second was cancelled: CloudFormation invents a
    Delete's id if it cancelled the Create or got no answer. After any other Delete, a Create is a new one.
    """
    for rank, note in enumerate(record.notes):
        yields = is_over or (note.ends_life and request.physical_id is None)
        if note.issued > issued or (note.issued == issued and yields):
            return rank
    return len(record.notes)


def _wants(record: ResourceRecord, request: Request, note: Note) -> Association | None:
    if isinstance(request, CreateOrUpdate):
        return request.wanted
    if isinstance(request, Delete) and (note.ends_life or request.identified == record.wants):
        return None
    return record.wants


def _named_by(record: ResourceRecord, request: Request, *, is_late: bool) -> ResourceRecord:
    """Note the hold, or the former provider's resource, that a request's id names."""
    if request.identified in record.holds:
        is_deleted = isinstance(request, Delete) and not is_late
        return _believe(record, [request.identified], Event.DELETED if is_deleted else Event.NAMED)
    if isinstance(request, Update) and request.identified is None:
        return record._replace(foreign=record.foreign | {digest(request.physical_id)})
    return record


def _is_invented(record: ResourceRecord, request: Request) -> bool:
    """Tell whether CloudFormation invented a Delete's id. A former provider's came with an Update before."""
    return (
        isinstance(request, Delete)
        and request.identified is None
        and digest(request.physical_id) not in record.foreign
    )


def _kept(notes: tuple[Note, ...], now: float) -> tuple[Note, ...]:
    """Drop the answers of more than a day ago, but for the newest request's: that one is not pending."""
    since = now - REMEMBERED
    kept = [note for note in notes[:-1] if note.answer is None or note.answer.at > since]
    return (*kept[1 - MOST_NOTES :], *notes[-1:])


def is_superseded(record: ResourceRecord, request: Request) -> bool:
    """Tell whether CloudFormation has given a request up: a newer one for its resource has arrived."""
    return record.newest is not None and record.newest.id != request.id


def is_pending(record: ResourceRecord) -> bool:
    """Tell whether the newest request that has arrived still waits for its answer."""
    return record.newest is not None and record.newest.answer is None


# --- What CloudFormation believes of a hold ---


class Event(Enum):
    """What can happen to a hold."""

    NAMED = "an event's id names it"
    DELETED = "a Delete for it arrives"
    REBORN = "a Create of the resource arrives"
    SUCCEEDED = "a request that wants it succeeds"
    LEFT = "an Update to another association succeeds"
    FAILED = "the request that took hold fails"


#: Every way from one belief to another; all other events leave it as it is.
BELIEFS: Final = {
    Belief.OPEN: {
        Event.NAMED: Belief.KNOWN,
        Event.DELETED: Belief.GOING,
        Event.REBORN: Belief.KNOWN,
        Event.SUCCEEDED: Belief.GIVEN,
        Event.FAILED: Belief.FAILED,
    },
    Belief.GIVEN: {
        Event.NAMED: Belief.KNOWN,
        Event.DELETED: Belief.GOING,
        Event.REBORN: Belief.KNOWN,
        Event.LEFT: Belief.LEFT,
    },
    Belief.KNOWN: {Event.DELETED: Belief.GOING, Event.LEFT: Belief.LEFT},
    Belief.LEFT: {
        Event.DELETED: Belief.GOING,
        Event.REBORN: Belief.KNOWN,
        Event.SUCCEEDED: Belief.KNOWN,
    },
    Belief.GOING: {Event.SUCCEEDED: Belief.KNOWN},
    Belief.FAILED: {Event.SUCCEEDED: Belief.GIVEN},
}
#: No event's id has named these holds: CloudFormation does not know of them.
UNNAMED: Final = frozenset({Belief.OPEN, Belief.GIVEN, Belief.FAILED})


def _believe(
    record: ResourceRecord, associations: Iterable[Association | None], event: Event, **changes: object
) -> ResourceRecord:
    for association in associations:
        if association is not None and association in record.holds:
            belief = record.holds[association].belief
            belief = BELIEFS[belief].get(event, belief)
            record = record.holding(association, belief=belief, **changes)
    return record


def counts_on(record: ResourceRecord, association: Association) -> bool:
    """Tell whether a resource counts on an association: an answer said so, and it has not left it."""
    hold = record.holds.get(association)
    # A resource that wants another one has left this one, whatever became of the Delete for it.
    return (
        hold is not None
        and hold.belief in (Belief.GIVEN, Belief.KNOWN)
        and record.wants in (None, association)
    )


# --- Deaths and waits ---


def begin(record: ResourceRecord, request: Request) -> ResourceRecord:
    """Mark a redelivered request as begun. If the mark stands already, a function has died at it."""
    record, note = _noted(record, request)
    return record.noted(note._replace(begun=True, deaths=note.deaths + (note.begun is True)))


def _noted(record: ResourceRecord, request: Request) -> tuple[ResourceRecord, Note]:
    """Give back the note of a request; the oldest one, if no fence has noted it: a repair, a failed fence."""
    note = record.note(request.id)
    if note is None:
        note = Note(request.id, request.issued or 0)
        record = record._replace(notes=(note, *record.notes))
    return record, note


def gone_back(record: ResourceRecord, request: Request) -> ResourceRecord:
    """Note that a request goes back into the queue: no function has died at it this time."""
    note = record.note(request.id)
    return record.noted(note._replace(begun=note.begun and False)) if note else record


def refused(record: ResourceRecord, request: Request, refusal: Again, now: int, until: int) -> ResourceRecord:
    """Note that a request goes back because API Gateway has refused it; ask again after `until`."""
    record, note = _noted(gone_back(record, request), request)
    refusals, may_be_quota = note.refusals + 1, refusal.patience < math.inf
    return record.noted(
        note._replace(
            refusals=refusals,
            paced=refusals if refusal.after else note.paced,
            quota=(note.quota or now) if may_be_quota else 0,
            until=until,
        )
    )


def ended(record: ResourceRecord, request: Repair) -> ResourceRecord:
    """Drop the note of a repair that is over: nobody asks for its answer."""
    return record._replace(notes=tuple(note for note in record.notes if note.id != request.id))


def next_try(note: Note | None, refusal: Again, now: float, last: tuple[float, float], roll: float) -> int:
    """Tell when to ask API Gateway again after a refusal, in epoch seconds; 0 if it was the last try.

    Args:
        note: The request's, with its refusals so far.
        refusal: The refusal.
        now: The time.
        last: The first and the last moment for the last try. All last tries together would be too many for
            the last moment itself.
        roll: From 0 to 1.
    """
    (first, latest), after = last, refusal.after
    if now >= first or now + after > latest:
        return 0
    shortest, longest = BACK_OFF
    counted = note.refusals - note.paced if note else 0
    pause = min(longest, shortest * 2 ** min(counted, 10))
    if refusal.busy:
        more, longest = BUSY_BACK_OFF
        pause = min(longest, shortest + more * counted)
    until = now + (after or pause * (1 + roll) / 2)
    if until >= first:
        earliest = max(first, now + after)
        until = earliest + roll * (latest - earliest)
    return math.ceil(until)


# --- Wanting an association ---


def standing(entry: AssociationRecord, holder: Holder) -> Standing:
    """Tell who holds an association, seen from `holder`."""
    if holder in entry.holders:
        return Standing.THIS
    if not entry.holders:
        return Standing.NOBODY
    same_stack = any(other.stack_id == holder.stack_id for other in entry.holders)
    return Standing.SIBLING if same_stack else Standing.STRANGERS


#: The table of this module, but for its exceptions: `outcome` has these.
OUTCOMES: Final = {
    (Standing.NOBODY, False): Outcome.ATTACHED,
    (Standing.NOBODY, True): Outcome.ADOPTED,
    (Standing.THIS, False): Outcome.REPAIRED,
    (Standing.THIS, True): Outcome.VERIFIED,
    (Standing.SIBLING, False): Outcome.REPAIRED,
    (Standing.SIBLING, True): Outcome.JOINED,
    (Standing.STRANGERS, False): Outcome.REPAIRED,
    (Standing.STRANGERS, True): Outcome.JOINED,
}


def outcome(state: Snapshot, request: CreateOrUpdate, *, attached: bool) -> Outcome:
    """Read the table, from the pages before `whose` has noted a key that was there.

    Args:
        state: The pages; this resource holds the association.
        request: The request.
        attached: It has attached the key; otherwise the key was there.
    """
    entry, hold = state.entry(request.wanted), state.record.holds[request.wanted]
    if attached and any(held.marked_by == request.id for held in state.record.holds.values()):
        return Outcome.MOVED
    held_before = hold.request != request.id
    if held_before and isinstance(request, Create):
        return Outcome.ATTACHED  # A repeated request.
    if not attached and _takes(state, request):
        return Outcome.TAKEN
    if not attached and not held_before and entry.nobodys:
        return Outcome.ADOPTED  # Others may hold it too, but they have attached nothing.
    rest = entry if held_before else entry._replace(holders=entry.holders - {request.holder})
    stands = standing(rest, request.holder)
    # If nobody else holds what is ours, an earlier turn of this request has attached it.
    earlier = stands is Standing.NOBODY and entry.origin is Origin.OURS
    return OUTCOMES[stands, not (attached or earlier)]


def _takes(state: Snapshot, request: CreateOrUpdate) -> bool:
    """Tell whether this takes over a preexisting association: an Update with `Take` whose id names it.

    So no rollback can detach it, neither of the request that found it nor of the change to `Take`.
    """
    entry, hold = state.entry(request.wanted), state.record.holds[request.wanted]
    wishes = isinstance(request, Update) and request.in_place and request.on_existing is OnExisting.TAKE
    return wishes and hold.request != request.id and (entry.origin is Origin.BEFORE or entry.nobodys)


def whose(state: Snapshot, request: CreateOrUpdate) -> Snapshot:
    """Note whose a key is that was there: somebody else's if no holder can have attached it."""
    entry = state.entry(request.wanted)
    if _takes(state, request):
        return state.with_entry(request.wanted, origin=Origin.TAKEN, away=False)
    return state.with_entry(request.wanted, origin=Origin.BEFORE, away=False) if entry.nobodys else state


def attaching(state: Snapshot, request: Request, association: Association) -> Snapshot:
    """Mark an association before the function attaches its key."""
    return state.with_entry(association, attaching=state.entry(association).attaching | {request.id})


def attached(state: Snapshot, request: Request, association: Association) -> Snapshot:
    """Note that this request has attached a key: it is ours, or as it was before this resource's move."""
    entry = not_attached(state, request, association).entry(association)
    hold = state.record.holds.get(association)
    is_undone = entry.away and hold is not None and hold.marked_by
    origin = entry.origin if is_undone else Origin.OURS
    state = state.with_entry(association, attaching=entry.attaching, origin=origin, away=False, detached=0)
    return _unmarked(state, association)


def not_attached(state: Snapshot, request: Request, association: Association) -> Snapshot:
    """Note that this request has attached nothing there."""
    return state.with_entry(association, attaching=state.entry(association).attaching - {request.id})


def not_there(state: Snapshot, association: Association) -> Snapshot:
    """Note that the key is not there: no earlier request of this resource, all served, has attached it."""
    ids = {note.id for note in state.record.notes}
    return state.with_entry(association, attaching=state.entry(association).attaching - ids)


def left_to_others(state: Snapshot, association: Association) -> Snapshot:
    """Note that somebody else has attached a key again that a move had detached: it is theirs."""
    return _unmarked(state.with_entry(association, origin=Origin.BEFORE, away=False), association)


def _unmarked(state: Snapshot, association: Association) -> Snapshot:
    if association not in state.record.holds:
        return state
    return state.with_record(state.record.holding(association, marked_by=""))


def existing(request: CreateOrUpdate) -> FailedError:
    """Refuse a key that is there already, because `OnExisting` is `Fail`."""
    return FailedError(
        f"{request.wanted.attaching}: it is there already, not through this stack, and OnExisting is "
        "Fail. Adopt would use it and leave it there on Delete; Take would use it and, from the next "
        "Update on, own it"
    )


def held_by_others(request: CreateOrUpdate, entry: AssociationRecord) -> FailedError:
    """Refuse an association that only other stacks hold, because `OnExisting` is `Fail`."""
    return FailedError(
        f"{request.wanted.attaching}: it is held by {listed(entry.holders, request.holder)}, and "
        "OnExisting is Fail. Adopt or Take would hold it too; the function detaches it when its last "
        f"holder goes. {way_out(entry.holders)}"
    )


def not_repairable(state: Snapshot, request: Repair) -> str:
    """Say why a repair may not attach its association; empty if the resource, at rest, counts on it."""
    entry = state.entry(request.wanted)
    if is_pending(state.record):
        return "a request of the resource is pending, and the function serves that one"
    if request.holder not in entry.holders or not counts_on(state.record, request.wanted):
        return "the resource does not hold it any more, or no answer has said that it is attached"
    return "a request is detaching it" if entry.detaching is not None else barred(entry)


def barred(entry: AssociationRecord) -> str:
    """Say why nobody may repair an association; empty for nothing."""
    if entry.origin is Origin.BEFORE:
        return "it was there before the stack, so somebody else may have removed it for good"
    return "it was moved away from" if entry.away else ""


def may_be_lost(record: ResourceRecord, request: CreateOrUpdate, now: int) -> bool:
    """Tell whether this takes back a change, so that it succeeds although it cannot have the key.

    A rollback's Update brings the properties of the last SUCCESS. Or, within a day, it goes back: to those of
    the SUCCESS before, or to an association that a successful Update left, and no Delete has come for it.
    Under UpdateReplacePolicy Retain no Delete ever comes, so after a day an Update goes back on purpose.
    """
    if not isinstance(request, Update):
        return False
    hold = record.holds.get(request.wanted)
    if hold is not None and hold.left > now - REMEMBERED:
        stays = hold.belief is not Belief.GOING and "" != request.digest == record.former
        if hold.belief is Belief.LEFT or stays:
            return True
    return "" != request.digest == record.digest


# --- Moving between plans that share a stage ---


def may_move(state: Snapshot, request: CreateOrUpdate, association: Association) -> bool:
    """Tell whether this resource may detach `association` to make room for the wanted one.

    It must own it, in its present life: its id names it, or its superseded Update left it. A Create has
    nothing yet. CloudFormation retained the associations of an earlier life, so they stay.
    """
    hold = state.record.holds.get(association)
    if hold is None or not isinstance(request, Update) or isinstance(request, Repair):
        return False
    entry = state.entry(association)
    if entry.away and hold.marked_by == request.id:
        return False  # It has moved it already, so somebody else has attached what is there.
    present = request.identified == association or hold.belief in UNNAMED
    own = entry.owned(take=request.on_existing is OnExisting.TAKE) or _takes_over(state, request, association)
    return present and entry.holders == {request.holder} and own


def _takes_over(state: Snapshot, request: Update, association: Association) -> bool:
    """Tell whether moving away takes over a preexisting one: the old and the new properties say `Take`.

    A rollback wants an association that this resource has held before, so it takes nothing over.
    """
    entry, wanted = state.entry(association), state.record.holds.get(request.wanted)
    goes_on = wanted is None or wanted.request == request.id
    takes_twice = request.took and request.on_existing is OnExisting.TAKE
    return (
        entry.origin is Origin.BEFORE
        and not entry.away
        and request.identified == association
        and takes_twice
        and goes_on
    )


def left_alone(entry: AssociationRecord, request: CreateOrUpdate) -> str:
    """Say why this resource may not detach a blocking association, and what to do."""
    by = listed(entry.holders, request.holder) if entry.holders else "no stack"
    before = ", and was there before it" if entry.origin in (Origin.BEFORE, Origin.TAKEN) else ""
    said = f"That association is held by {by}{before}, so the function left it alone."
    others = entry.holders - {request.holder}
    if not others and entry.holders:  # This resource holds it, but this request may not move it.
        first = (
            "set OnExisting to Take" if before else "declare this resource with the plan that it has there"
        )
        how = "This resource adopted it" if before else "CloudFormation retained it"
        return f"{said} {how}: to move it, first {first}, deploy, then change the plan"
    if others and all(other.stack_id == request.holder.stack_id for other in others):
        return (
            f"{said} Keep the logical id to move a key: declare this resource with the plan that the key "
            "has, deploy, then change the plan. If the id names the plan (CDK, SAM, Serverless), "
            'docs/use-from.md, "Move a customer to another plan", has the steps'
        )
    return f"{said} Remove it there first{f'. {way_out(others)}' if others else ''}"


# --- Detaching, and letting go ---


def mark(state: Snapshot, request: Request, association: Association, until: int) -> Snapshot:
    """Mark an association that the function is about to detach, or renew a mark."""
    if state.entry(association).detaching is None:  # `away` says whose mark it is: a move's stays.
        state = state.with_record(state.record.holding(association, marked_by=request.id))
    return state.with_entry(association, detaching=Mark(request.id, until))


def unfinished(record: ResourceRecord) -> list[Association]:
    """Name the associations whose detaching may be unfinished: what succeeded has finished its own."""
    notes = {note.id: note for note in record.notes if not (note.answer and note.answer.success)}
    return [held for held, hold in record.holds.items() if hold.marked_by in notes]


def detached(state: Snapshot, holder: Holder, association: Association, now: int) -> Snapshot:
    """Note that the key is out of the plan: let go, or after a move hold on to it.

    A key that a request has perhaps attached counts as ours, and it is certainly gone now.
    """
    entry = state.entry(association)
    if entry.detaching is None or holder not in entry.holders:
        return state
    origin = Origin.OURS if entry.attaching else entry.origin
    state = state.with_entry(association, origin=origin, attaching=frozenset(), detaching=None, detached=now)
    return state if entry.away else state.let_go(holder, association)


def still_attached(state: Snapshot, association: Association) -> Snapshot:
    """Take off the marks after API Gateway has clearly refused to detach."""
    return _unmarked(state.with_entry(association, detaching=None, away=False), association)


def given_up(state: Snapshot, association: Association) -> Snapshot:
    """End a mark: nobody knows whether the key is out of the plan, and whoever comes next may finish it."""
    mark = state.entry(association).detaching
    return state.with_entry(association, detaching=mark._replace(until=0)) if mark else state


def has_to_detach(state: Snapshot, holder: Holder, association: Association, *, take: bool) -> bool:
    """Tell whether letting go of a held association means detaching it first."""
    entry = state.entry(association)
    return not entry.others(holder) and entry.owned(take=take)


def releases(state: Snapshot, request: Delete) -> list[Association]:
    """Name the associations that a Delete releases."""
    record, named = state.record, request.identified
    # CloudFormation never believed in these: a failed Update may have attached them.
    released = [held for held, hold in record.holds.items() if hold.belief is Belief.FAILED]
    if named is None:
        # A former provider attached what an earlier Update's foreign id names. CloudFormation invents an id
        # if it cancelled a Create or got no answer: then the holds of that Create go.
        if digest(request.physical_id) not in record.foreign:
            released += [held for held, hold in record.holds.items() if hold.belief in UNNAMED]
    elif named in record.holds and named != record.retained:
        if not state.entry(named).away:
            # Under UpdateReplacePolicy Retain no Delete comes for what moves have left.
            marked = [held for held, hold in record.holds.items() if hold.marked_by and held != named]
            # One more than a step lets go of: the rest stays unread until then.
            released += islice((held for held in marked if state.entry(held).away), MOST_AT_ONCE + 1)
        released.append(named)
    return [held for held in dict.fromkeys(released) if held != record.wants]


def leftovers(record: ResourceRecord, request: CreateOrUpdate) -> list[Association]:
    """Name the associations that an Update also releases: an earlier one left them, no id named them."""
    if not isinstance(request, Update) or request.identified is None:
        return []
    stay = (request.wanted, request.identified)
    return [held for held, hold in record.holds.items() if held not in stay and hold.belief in UNNAMED]


def abandon(state: Snapshot, holder: Holder) -> Snapshot:
    """Let go of all holds of a resource whose stack is gone. Detach nothing: somebody may live on it."""
    for association in state.record.holds.keys() & state.entries.keys():
        state = state.let_go(holder, association)
    return state


# --- The same request, the same answer ---


def answered(record: ResourceRecord, request: Request, answer: Response) -> ResourceRecord:
    """Write an answer down; the first one stands."""
    record, note = _noted(record, request)
    if note.answer is not None:
        return record
    # Functions may die at the delivery too, so the mark stands until then.
    record = record.noted(note._replace(answer=answer._replace(value=None)))
    if isinstance(request, Delete):
        return record
    if answer.success and isinstance(request, Create | Update):
        return _succeeded(record, request, answer)
    return _failed(record, request)


def _failed(record: ResourceRecord, request: Request) -> ResourceRecord:
    own = [held for held, hold in record.holds.items() if hold.request == request.id]
    record = _believe(record, own, Event.FAILED)
    if is_superseded(record, request):
        return record
    if request.physical_id is None and isinstance(request, CreateOrUpdate | Invalid):
        # CloudFormation follows a failed Create with a Delete of its id. That must not end a retained hold.
        hold = record.holds.get(request.wanted) if request.wanted else None
        is_retained = hold is not None and hold.request != request.id and hold.belief is not Belief.FAILED
        record = record._replace(retained=request.wanted if is_retained else None)
    return record._replace(wants=request.identified)  # It keeps what it had.


def _succeeded(record: ResourceRecord, request: Create | Update, answer: Response) -> ResourceRecord:
    if request.identified != request.wanted:
        record = _believe(record, [request.identified], Event.LEFT, left=answer.at)
    changes = {"request": request.id, "key_name": answer.key_name, "left": answer.at}
    record = _believe(record, [request.wanted], Event.SUCCEEDED, **changes)
    goes_back = request.digest in (record.digest, record.former)
    return record._replace(digest=request.digest, former="" if goes_back else record.digest)


def listed(holders: Iterable[Holder], asks: Holder) -> str:
    """Name three holders at most for a Reason. The UUID marks another stack with the asking one's name."""
    names = [
        f"{holder} ({holder.stack_id.rpartition('/')[2]})"
        if holder.stack_name == asks.stack_name and holder.stack_id != asks.stack_id
        else str(holder)
        for holder in sorted(holders)
    ]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def way_out(holders: Iterable[Holder]) -> str:
    """Say how an operator releases the holds of a stack that is gone: no Delete will ever do so."""
    holder = min(holders)
    event = json.dumps({"LetGo": {"StackId": holder.stack_id, "LogicalResourceId": holder.logical_id}})
    return f"If that stack is gone, invoke the function by hand with {event}"
