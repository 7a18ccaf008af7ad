"""Every rule: which associations a resource holds, what the function does next, and what it answers.

Pure functions, from the request and the observations to the next pages or the next step. They call nobody.

A resource wants an association (Create, Update):

    holders                in the plan   step and outcome
    ---------------------  ------------  ---------------------------------------------------------------------
    nobody                 no            attach: ATTACHED
    nobody                 yes           `Fail`: refuse; `Adopt`, `Take`: hold it, as `preexisting`: ADOPTED
    this resource          yes           VERIFIED; Create: ATTACHED; Update, `Take`, `preexisting`: TAKEN
    this resource          no            attach: REPAIRED; Create: ATTACHED
    another of this stack  yes           hold it too: JOINED
    another of this stack  no            hold it too, attach: REPAIRED
    other stacks only      yes           `Fail`: refuse; `Adopt`, `Take`: hold it too: JOINED
    other stacks only      no            `Fail`: refuse; `Adopt`, `Take`: hold it too, attach: REPAIRED

A key in the plan is ours once a request of a holder has begun to attach it. Before that, and after a clear
refusal, it counts as held by nobody.

    API Gateway refuses to attach, because …      step and outcome
    --------------------------------------------  ------------------------------------------------------------
    the key is in a plan for the same API stage:
      only this resource holds and owns that      detach that one, attach the wanted one: MOVED
      otherwise                                   refuse, naming the plan, the stage and the holders
    there is no such key or plan:
      an Update takes back the last change        LOST: one deleted key must not block a whole rollback
      otherwise                                   refuse, naming the missing one

A resource lets go of an association (Delete, or an Update after a superseded one):

    others hold it too                            take this resource out of the holders
    it is `preexisting`, and nobody has taken it  the same: it stays attached
    a move has detached it                        the same
    otherwise                                     mark it `detaching`, detach it, take the resource out
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final, NamedTuple

from .errors import FailedError, SupersededError
from .model import (
    NOBODY,
    REMEMBERED,
    Association,
    AssociationRecord,
    Hold,
    Holder,
    Outcome,
    ResourceRecord,
    Response,
    Snapshot,
    Standing,
    digest,
)
from .request import Create, CreateOrUpdate, Delete, Invalid, OnExisting, Repair, Request, Update

#: Answers on a holder's page at most, and requests of one second: DynamoDB takes 400 KB an item.
MOST_ANSWERS: Final = 50
#: After this many deaths at a request, the function answers it FAILED.
MOST_DEATHS: Final = 3


class Row(NamedTuple):
    """The outcome of a Create or an Update, and whether `OnExisting: Fail` refuses it."""

    outcome: Outcome
    refused: bool = False


#: The first table above, by the holders and by whether the key is in the plan.
OUTCOMES: Final = {
    (Standing.NOBODY, False): Row(Outcome.ATTACHED),
    (Standing.NOBODY, True): Row(Outcome.ADOPTED, refused=True),
    (Standing.THIS, False): Row(Outcome.REPAIRED),
    (Standing.THIS, True): Row(Outcome.VERIFIED),
    (Standing.SIBLING, False): Row(Outcome.REPAIRED),
    (Standing.SIBLING, True): Row(Outcome.JOINED),
    (Standing.STRANGERS, False): Row(Outcome.REPAIRED, refused=True),
    (Standing.STRANGERS, True): Row(Outcome.JOINED, refused=True),
}


# --- The fence: the newest request wins ---


def fence(record: ResourceRecord, request: Request, *, is_over: bool = False) -> ResourceRecord:
    """Note that a request has arrived, before it waits for its turn.

    A request that arrives after its time is late: it is not newer than another one of the same second.
    """
    if request.id in record.answers or request.id in record.arrived:
        return record
    record = _named_by(record, request)
    if _is_late(record, request, is_over=is_over):
        return record
    invented = _is_invented(record, request)
    wants = record.wants
    if isinstance(request, CreateOrUpdate):
        wants = request.wanted
    elif isinstance(request, Delete) and (invented or request.identified == wants):
        wants = None
    if request.physical_id is None:
        record = _in_a_new_life(record, request)
    record = record._replace(retained=record.retained if isinstance(request, Delete) else None)
    if request.issued is None:
        return record  # Without issue times there is no fence.
    same_second = record.arrived if request.issued == record.issued else ()
    arrived = (*same_second, request.id)[-MOST_ANSWERS:]
    return record._replace(issued=request.issued, arrived=arrived, wants=wants, closed=invented)


def _named_by(record: ResourceRecord, request: Request) -> ResourceRecord:
    """Note the hold, or the former provider's resource, that a request's id names."""
    hold = record.holds.get(request.identified) if request.identified else None
    if request.identified and hold:
        hold = hold._replace(named=True, left=0 if isinstance(request, Delete) else hold.left)
        return record._replace(holds={**record.holds, request.identified: hold})
    if isinstance(request, Update) and request.identified is None:
        return record._replace(foreign=record.foreign | {digest(request.physical_id)})
    return record


def _in_a_new_life(record: ResourceRecord, request: Request) -> ResourceRecord:
    """Begin a new life with a Create. CloudFormation retained the earlier holds: it sent no Delete for them.

    It did not retain the holds of a failed request, because it never believed in them.
    """
    holds = {
        association: hold if hold.failed or hold.request == request.id else hold._replace(named=True, left=0)
        for association, hold in record.holds.items()
    }
    return record._replace(holds=holds)


def _is_late(record: ResourceRecord, request: Request, *, is_over: bool) -> bool:
    """Tell whether a newer request of the resource has arrived before; without an issue time nobody can."""
    if request.issued is None:
        return False
    return request.issued < record.issued + is_over or _was_cancelled(record, request)


def _is_invented(record: ResourceRecord, request: Request) -> bool:
    """Tell whether CloudFormation invented a Delete's id. A former provider's came with an Update before."""
    return (
        isinstance(request, Delete)
        and request.identified is None
        and digest(request.physical_id) not in record.foreign
    )


def _was_cancelled(record: ResourceRecord, request: Request) -> bool:
    """Tell whether a Create arrives behind its own Delete of the same second.

    CloudFormation invents a Delete's id if it cancelled the Create or got no answer. After any other Delete,
    a Create is a new one.
    """
    return request.physical_id is None and request.issued == record.issued and record.closed


def looked_at(request: Request) -> list[Association]:
    """Name the associations that the function reads first for a request."""
    return [found for found in (getattr(request, "wanted", None), request.identified) if found is not None]


def check_superseded(record: ResourceRecord, request: Request | CreateOrUpdate) -> None:
    """Stop a request that CloudFormation has given up.

    Raises:
        SupersededError: A newer request for the same resource has arrived.
    """
    if isinstance(request, Repair) and is_pending(record):
        raise SupersededError(
            "Superseded: a request of the resource is pending, and the function serves that one"
        )
    if request.issued is not None and record.newest != request.id and record.issued >= request.issued:
        raise SupersededError(
            "Superseded: CloudFormation has sent a newer request for this resource; this one touched nothing"
        )


def is_pending(record: ResourceRecord) -> bool:
    """Tell whether the newest request that has arrived still waits for its answer."""
    return bool(record.newest) and record.newest not in record.answers


# --- Deaths ---


def begin(record: ResourceRecord, request: Request) -> ResourceRecord:
    """Mark a redelivered request as begun. If the mark stands already, a function has died at it."""
    deaths = record.deaths if record.died == request.id else 0
    return record._replace(begun=request.id, died=request.id, deaths=deaths + (record.begun == request.id))


def rest(record: ResourceRecord, request: Request) -> ResourceRecord:
    """Take off the mark when the request goes back into the queue: no function has died this time."""
    return record._replace(begun="") if record.begun == request.id else record


# --- Wanting an association ---


def standing(entry: AssociationRecord, holder: Holder) -> Standing:
    """Tell who holds an association, seen from `holder`."""
    if holder in entry.holders:
        return Standing.THIS
    if not entry.holders:
        return Standing.NOBODY
    return (
        Standing.SIBLING
        if any(other.stack_id == holder.stack_id for other in entry.holders)
        else Standing.STRANGERS
    )


def take_hold(state: Snapshot, request: CreateOrUpdate) -> Snapshot:
    """Hold the wanted association, before the function attaches it.

    Raises:
        SupersededError: A newer request has arrived.
        FailedError: Only other stacks hold it, and `OnExisting` is `Fail`.
    """
    check_superseded(state.record, request)
    entry = state.entry(request.wanted)
    stands = standing(entry, request.holder)
    if stands is Standing.THIS:
        return state
    # `Fail` refuses the same holders' associations in the plan and outside it.
    if request.on_existing is OnExisting.FAIL and OUTCOMES[stands, False].refused:
        raise FailedError(
            f"{request.wanted.attaching}: it is held by {listed(entry.holders, request.holder)}, and "
            "OnExisting is Fail. Adopt or Take would hold it too; the function detaches it when its last "
            f"holder goes. {way_out(entry.holders)}"
        )
    if stands is Standing.NOBODY:
        # The function attaches it next, so this write can carry the mark.
        state = state.with_entry(request.wanted, entry._replace(begun_by=request.id))
    return state.held(request.holder, request.wanted, Hold(request.id))


def outcome(request: CreateOrUpdate, stands: Standing, entry: AssociationRecord, *, present: bool) -> Outcome:
    """Read the first table, without refusals. `stands` and `entry` are from before the hold."""
    if stands is Standing.THIS and isinstance(request, Create):
        return Outcome.ATTACHED  # A repeated request: its first delivery took hold.
    if present and takes(request, entry):
        return Outcome.TAKEN
    return OUTCOMES[stands, present].outcome


def takes(request: CreateOrUpdate, entry: AssociationRecord) -> bool:
    """Tell whether this takes over a preexisting association: an Update with `Take` whose id names it.

    So no rollback can detach it, neither of the request that found it nor of the change to `Take`.
    """
    wishes = isinstance(request, Update) and request.in_place and request.on_existing is OnExisting.TAKE
    return wishes and entry.preexisting and request.holder in entry.holders


def found_attached(state: Snapshot, request: CreateOrUpdate) -> Snapshot:
    """Note that attaching failed because the key is in the plan, and that nobody held it before.

    So it was there before, unless another request has begun to attach it meanwhile.
    """
    entry = state.entry(request.wanted)
    return _preexisting(state, request) if entry.begun_by in (request.id, NOBODY) else state


def _preexisting(state: Snapshot, request: CreateOrUpdate) -> Snapshot:
    return state.with_entry(
        request.wanted, state.entry(request.wanted)._replace(preexisting=True, begun_by=None)
    )


def check_existing(request: CreateOrUpdate) -> None:
    """Refuse a preexisting association, unless the resource accepts it.

    Raises:
        FailedError: `OnExisting` is `Fail`.
    """
    if request.on_existing is OnExisting.FAIL:
        raise FailedError(
            f"{request.wanted.attaching}: it is there already, not through this stack, and OnExisting is "
            "Fail. Adopt would use it and leave it there on Delete; Take would use it and, from the next "
            "Update on, own it"
        )


def present(state: Snapshot, request: CreateOrUpdate) -> Snapshot:
    """Note that a held key is in the plan. If nobody has begun to attach it, it was there before."""
    if state.entry(request.wanted).begun_by == NOBODY:
        state = _preexisting(state, request)
    entry = state.entry(request.wanted)
    return (
        state.with_entry(request.wanted, entry._replace(taken_over=True)) if takes(request, entry) else state
    )


def reattaching(state: Snapshot, request: CreateOrUpdate, association: Association) -> Snapshot:
    """Note that the function attaches a held key again: it is ours then, or as it was before a move."""
    if isinstance(request, Repair):
        check_repairable(state, request)
    entry = state.entry(association)
    if entry.moved_by is None:
        entry = entry._replace(preexisting=False, taken_over=False)
    return state.with_entry(association, entry._replace(moved_by=None, begun_by=_reattaching_by(request)))


def _reattaching_by(request: CreateOrUpdate | Request) -> str:
    """Tell this from the first attaching by another delivery of the same request, which found no holder."""
    return f"{request.id} again"


def not_reattached(
    state: Snapshot, request: CreateOrUpdate, association: Association, earlier: AssociationRecord
) -> Snapshot:
    """Put back the marks of a key that this request did not attach, unless another one has begun since."""
    entry = state.entry(association)
    if entry.begun_by != _reattaching_by(request):
        return state
    marks = entry._replace(
        preexisting=earlier.preexisting,
        taken_over=earlier.taken_over,
        moved_by=earlier.moved_by,
        begun_by=earlier.begun_by,
    )
    return state.with_entry(association, marks)


def attached(state: Snapshot, request: Request, association: Association) -> Snapshot:
    """Note that the association is attached: this request has nothing open any more."""
    entry = state.entry(association)
    if entry.begun_by not in (request.id, _reattaching_by(request)):
        return state
    return state.with_entry(association, entry._replace(begun_by=None))


def is_believed(record: ResourceRecord, entry: AssociationRecord, association: Association) -> bool:
    """Tell whether a resource counts on an association: an answer said so, and it has not left it."""
    hold = record.holds.get(association)
    if hold is None or hold.failed or hold.left:
        return False
    if record.wants not in (None, association):
        return False  # A Delete for it has failed, and CloudFormation does not send that one again.
    given = record.answers.get(hold.request)
    # The ledger remembers an answer for a day. An attaching that is open later never came to SUCCESS.
    return given.success if given else entry.begun_by not in (hold.request, NOBODY)


def check_repairable(state: Snapshot, request: Repair) -> None:
    """Refuse a repair unless the resource, at rest, still counts on its association and may attach it.

    Raises:
        FailedError: It does not, or it may not.
    """
    entry = state.entry(request.wanted)
    check_superseded(state.record, request)
    if request.holder not in entry.holders or not is_believed(state.record, entry, request.wanted):
        raise FailedError("the resource does not hold it any more, or no answer has said that it is attached")
    if entry.detaching is not None:
        raise FailedError("a request is detaching it")
    if entry.moved_by:
        raise FailedError("it was moved away from")
    if entry.preexisting and not entry.taken_over:
        raise FailedError("it was there before this stack, so somebody else may have removed it for good")


def take_back(state: Snapshot, request: CreateOrUpdate) -> Snapshot:
    """Let go of an association that this request has not attached. NOBODY tells its other holders."""
    hold = state.record.holds.get(request.wanted)
    if hold is None or hold.request != request.id:
        return state
    entry = state.entry(request.wanted)
    if entry.begun_by == request.id:
        state = state.with_entry(request.wanted, entry._replace(begun_by=NOBODY))
    return state.let_go(request.holder, request.wanted)


def may_be_lost(record: ResourceRecord, request: CreateOrUpdate, now: int) -> bool:
    """Tell whether this takes back a change, so that it succeeds although its key or its plan is gone.

    A rollback's Update brings the properties of the last SUCCESS. Or it wants an association that a
    successful Update left within the last day, and no Delete has come for it. Under UpdateReplacePolicy
    Retain no Delete ever comes, so after a day an Update goes back on purpose.
    """
    hold = record.holds.get(request.wanted)
    left = hold is not None and hold.left > now - REMEMBERED
    return isinstance(request, Update) and (
        left or (bool(request.digest) and request.digest == record.digest)
    )


# --- Moving between plans that share a stage ---


def may_move(state: Snapshot, request: CreateOrUpdate, association: Association) -> bool:
    """Tell whether this resource may detach `association` to make room for the wanted one.

    It must own it, in its present life: its id names it, or its superseded Update left it. A Create has
    nothing yet. CloudFormation retained the associations of an earlier life, so they stay.
    """
    hold, entry = state.record.holds.get(association), state.entry(association)
    if hold is None or not isinstance(request, Update):
        return False
    present = request.identified == association or not hold.named
    own = entry.owned(take=request.on_existing is OnExisting.TAKE) or _takes_over(state, request, association)
    return present and entry.holders == {request.holder} and own


def _takes_over(state: Snapshot, request: Update, association: Association) -> bool:
    """Tell whether moving away takes over a preexisting one: the old and the new properties say `Take`.

    A rollback wants an association that this resource has held before, so it takes nothing over.
    """
    wanted = state.record.holds.get(request.wanted)
    goes_on = wanted is None or wanted.request == request.id
    takes_twice = request.took and request.on_existing is OnExisting.TAKE
    return (
        state.entry(association).preexisting and request.identified == association and takes_twice and goes_on
    )


def move_away(state: Snapshot, request: CreateOrUpdate, association: Association, until: int) -> Snapshot:
    """Mark an association before a move detaches it. It stays held until CloudFormation's Delete for it."""
    entry = state.entry(association)._replace(detaching=until, moved_by=request.id)
    return state.with_entry(association, entry) if may_move(state, request, association) else state


def left_alone(entry: AssociationRecord, request: CreateOrUpdate) -> str:
    """Say why this resource may not detach a blocking association, and what to do."""
    by = listed(entry.holders, request.holder) if entry.holders else "no stack"
    before = ", and was there before it" if entry.preexisting else ""
    said = f"That association is held by {by}{before}, so the function left it alone."
    others = entry.holders - {request.holder}
    if not others and entry.holders:  # This resource holds it, but this request may not move it.
        first = (
            "set OnExisting to Take"
            if entry.preexisting
            else "declare this resource with the plan that it has there"
        )
        how = "This resource adopted it" if entry.preexisting else "CloudFormation retained it"
        return f"{said} {how}: to move it, first {first}, deploy, then change the plan"
    if others and all(other.stack_id == request.holder.stack_id for other in others):
        return (
            f"{said} To rename a resource and move its key, deploy twice: first give it the new logical id "
            "with the plan that it has, then change the plan. If CloudFormation retained it, declare it "
            "again first. Else remove it there first"
        )
    return f"{said} Remove it there first{f'. {way_out(others)}' if others else ''}"


# --- Letting go ---


def releases(record: ResourceRecord, request: Delete) -> list[Association]:
    """Name the associations that a Delete releases."""
    named = request.identified
    # A failed Update may have attached these, and no rollback has come for them.
    failed = [held for held, hold in record.holds.items() if hold.failed and not hold.named]
    if named is not None:
        released = [named] if named in record.holds and named != record.retained else []
    elif digest(request.physical_id) in record.foreign:
        released = []  # A former provider attached it.
    else:
        # CloudFormation invents an id if it cancelled a Create or got no answer. The holds of that Create go.
        released = [held for held, hold in record.holds.items() if not hold.named]
    return [held for held in dict.fromkeys(released + failed) if held != record.wants]


def leftovers(record: ResourceRecord, request: CreateOrUpdate) -> list[Association]:
    """Name the associations that an Update also releases: a superseded one left them, no id named them."""
    if not (isinstance(request, Update) and request.in_place):
        return []
    return [held for held, hold in record.holds.items() if held != request.wanted and not hold.named]


def release(state: Snapshot, holder: Holder, association: Association, *, take: bool, until: int) -> Snapshot:
    """Let go of an association, or mark it `detaching` if the function has to detach it first."""
    entry = state.entry(association)
    if association not in state.record.holds or state.record.wants == association:
        return state
    if entry.detaching is not None:
        return renewed(state, association, until)
    if entry.others(holder) or entry.moved_by or not entry.owned(take=take):
        return state.let_go(holder, association)
    return state.with_entry(association, entry._replace(detaching=until))


def let_go_of_moved(state: Snapshot, request: Delete) -> Snapshot:
    """Let go of the associations that the resource has moved away from, when its present one goes."""
    if request.identified is None or state.entry(request.identified).moved_by:
        return state
    for association in state.record.holds.keys() & state.entries.keys():
        if (
            association != request.identified
            and state.entry(association).moved_by
            and state.record.wants != association
        ):
            state = state.let_go(request.holder, association)
    return state


def renewed(state: Snapshot, association: Association, until: int) -> Snapshot:
    """Take up a detaching that a death has left; others start their wait anew."""
    entry = state.entry(association)
    return (
        state if entry.detaching is None else state.with_entry(association, entry._replace(detaching=until))
    )


def detached(state: Snapshot, holder: Holder, association: Association) -> Snapshot:
    """Let go after the detaching; for a move, only take off the mark."""
    entry = state.entry(association)
    if entry.detaching is None or holder not in entry.holders:
        return state
    if entry.moved_by:
        return state.with_entry(association, entry._replace(detaching=None))
    return state.let_go(holder, association)


def still_attached(state: Snapshot, association: Association) -> Snapshot:
    """Take off the marks after API Gateway has clearly refused to detach."""
    entry = state.entry(association)
    return state.with_entry(association, entry._replace(detaching=None, moved_by=None))


# --- The same request, the same answer ---


def answered(record: ResourceRecord, request: Request, answer: Response) -> ResourceRecord:
    """Write an answer down; the first one stands."""
    if record.died == request.id:
        record = record._replace(begun="", died="", deaths=0)
    if request.id in record.answers:
        return record
    record = _with_answer(record, request, answer)
    if isinstance(request, Delete):
        return record
    if answer.success and isinstance(request, Create | Update):
        return _succeeded(record, request, answer)
    return _failed(record, request)


def _with_answer(record: ResourceRecord, request: Request, answer: Response) -> ResourceRecord:
    """Add an answer to those of the last day, and to the newest request's: else it counts as pending."""
    since = answer.at - REMEMBERED
    kept = sorted(
        ((id_, given) for id_, given in record.answers.items() if given.at > since or id_ == record.newest),
        key=lambda pair: pair[1].at,
    )[1 - MOST_ANSWERS :]
    # The page stores no foreign id: the event brings it, and a former provider's may be a key's value.
    is_foreign = request.identified is None and answer.id == request.physical_id
    noted = answer._replace(id="") if is_foreign else answer
    return record._replace(answers={**dict(kept), request.id: noted})


def _failed(record: ResourceRecord, request: Create | Update | Invalid) -> ResourceRecord:
    holds = {
        a: hold._replace(failed=True) if hold.request == request.id else hold
        for a, hold in record.holds.items()
    }
    record = record._replace(holds=holds)
    is_newest = record.newest == request.id
    if request.physical_id is None and (is_newest or request.issued is None):
        # CloudFormation follows a failed Create with a Delete of its id. That must not end a retained hold.
        hold = record.holds.get(request.wanted) if request.wanted else None
        is_retained = hold is not None and hold.request != request.id and not hold.failed
        record = record._replace(retained=request.wanted if is_retained else None)
    return record._replace(wants=request.identified) if is_newest else record  # It keeps what it had.


def _succeeded(record: ResourceRecord, request: Create | Update, answer: Response) -> ResourceRecord:
    holds = dict(record.holds)
    if request.identified in holds:
        holds[request.identified] = holds[request.identified]._replace(left=answer.at)
    if request.wanted in holds:
        hold = holds[request.wanted]
        holds[request.wanted] = hold._replace(
            request=request.id, left=0, failed=False, key_name=answer.key_name
        )
    return record._replace(holds=holds, digest=request.digest)


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


def abandon(state: Snapshot, holder: Holder) -> Snapshot:
    """Let go of all holds of a resource whose stack is gone. Detach nothing: somebody may live on it."""
    for association in state.record.holds.keys() & state.entries.keys():
        state = state.let_go(holder, association)
    return state
