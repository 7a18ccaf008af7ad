"""The one question: what is the next step for a request? It is asked again after each step.

    pages   what the ledger says: the resource's page, and those of associations; they outlive the function
    facts   what this turn has observed; they die with it
    next_step(pages, request, facts) -> Step(act, pages, facts)

It is a pure function and calls nobody. The service writes the pages of a step, does its act, notes the result
in the facts, and asks again. After a death, or for a second delivery, it asks the same question. The first
row that fits decides:

    asked for       while …                                             step
    --------------  --------------------------------------------------  --------------------------------------
    any             it has an answer                                    Repeat it
                    API Gateway is not to be asked for it yet           Back
    not a repair    another finishes a mark of this resource            Wait
                    a mark of this resource stands: a function died     renew it, Detach
    Create, Update  a newer request has arrived, and it is not there    fail
                    another's mark stands, and its function may run     Wait
                    the same, and that function can no longer run       Finish it in the marker's name
                    only others hold it, and `OnExisting` is `Fail`     fail
                    nobody has looked, and somebody held it before      hold, Look
                    nobody has looked, and `OnExisting` is not `Fail`   hold, Look
                    there: the function has just detached it (202)      Wait, Look again
                    not there: a rival that this may not move           fail, before it detaches anything
                    not there: a rival that is not moved yet            hold, mark, Detach that one
                    not there: the rivals are all moved (202)           Wait, Attach again
                    not there, else                                     hold, mark, Attach
                    there: before us, and `OnExisting` is `Fail`        note it, fail
                    there: a leftover is ours, and no other holds it    mark, Detach that one
                    there: its value is asked for, and unknown          Look
                    there, else                                         note whose it is, Answer
    (failed)        it takes back a change, and cannot have the key     Answer LOST
                    it may have attached the key, or touches nothing    Answer, or Back
                    a key that it moved is away                         mark, Attach that one
                    it took hold of what letting go has to detach       mark, Detach that one
                    else                                                let go, Answer, or Back
    Delete          one that it releases is ours, and no other's        mark, Detach that one
                    else                                                let go, Answer
    Repair          it may not be repaired                              Answer, to the log
                    nobody has looked                                   Look
                    not there                                           mark, Attach
                    else                                                Answer, to the log
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from . import rules
from .errors import BlockedError, FailedError, MissingError, OutOfTimeError, SupersededError, TurnOverError
from .model import Association, Hold, Holder, Key, Mark, Origin, Outcome, Response, Rival, Snapshot, Standing
from .request import CreateOrUpdate, Delete, Invalid, OnExisting, Repair, Request

#: The Reason of every failed Delete has this label before the associations.
STAYS: Final = "Still attached"
#: Why a key is waited for that is there and will not be.
LEAVES: Final = "it is there still, and the function has just detached it"
#: Characters of a Reason that the ledger keeps: no answer takes more.
MOST_REASON: Final = 4096


class Answer(NamedTuple):
    """Send this answer; the step has written it down."""

    response: Response


class Repeat(NamedTuple):
    """Send the earlier answer again, unless functions keep dying at it."""

    response: Response
    is_deadly: bool


class Back(NamedTuple):
    """Give the request back to the queue."""

    why: TurnOverError


class Look(NamedTuple):
    """Look for the key in the plan."""

    association: Association


class Attach(NamedTuple):
    """Put the key into the plan.

    Attributes:
        association: The association.
        may_be_there: An earlier attempt of this request may have attached it.
        moving: A key is out of its old plan, so keep the time to put it back.
    """

    association: Association
    may_be_there: bool = False
    moving: bool = False


class Detach(NamedTuple):
    """Take the key out of the plan, for a move or for good."""

    association: Association
    moving: bool = False


class Finish(NamedTuple):
    """Finish another resource's detaching, in its name."""

    marker: Holder
    association: Association


class Wait(NamedTuple):
    """Wait a moment for an association, then ask again."""

    association: Association
    why: str


class GoOn(NamedTuple):
    """Ask again at once: the step has more pages than one transaction takes."""


Act = Answer | Repeat | Back | Look | Attach | Detach | Finish | Wait | GoOn


class Kind(Enum):
    """What an act has done to an association."""

    ATTACHED = "this request has attached it"
    FOUND = "it is there, and this request has not attached it"
    REFUSED = "this request has surely not attached it"
    ABSENT = "it is not there"
    DETACHED = "it is detached"
    STAYED = "this request has surely not detached it"


class Result(NamedTuple):
    """An act's result, until the next step's write has noted it."""

    kind: Kind
    association: Association


class Facts(NamedTuple):
    """What one turn knows beside the pages.

    Attributes:
        now: The time, in epoch seconds.
        dies: Until when the function can run, in epoch seconds.
        last: The first and the last moment for the last try at API Gateway; None if the request waits where
            it is.
        began: When the request arrived, in epoch seconds.
        roll: From 0 to 1, for this step.
        begins: The queue has delivered the request before, and the mark of a death is still to be set.
        touched: This turn has changed something for the request.
        is_over: CloudFormation has given the request up.
        known: The rival that the present id names, if API Gateway refused the two plans together lately.
        results: What acts have done that the pages do not say yet.
        there: Whether the wanted key is in its plan; None if nobody has looked.
        by_us: This request has attached it.
        key: The key, if it is there.
        value_sought: The function has looked for the key's value.
        rivals: The plans for which API Gateway has refused to attach the key.
        leaving: Those of them that the key is still about to leave (202).
        lost: Why a rollback cannot have its key; the request goes on as if the key were there.
        tried: Associations that the function has tried to put back or to take back.
        found_back: A moved association whose key is in its plan again, and not by this request.
        failure: Why the request fails, or has to wait.
    """

    now: int
    dies: int
    last: tuple[float, float] | None = None
    began: float = 0.0
    roll: float = 0.0
    begins: bool = False
    touched: bool = False
    is_over: bool = False
    known: Rival | None = None
    results: tuple[Result, ...] = ()
    there: bool | None = None
    by_us: bool = False
    key: Key = Key()
    value_sought: bool = False
    rivals: tuple[Rival, ...] = ()
    leaving: frozenset[Association] = frozenset()
    lost: FailedError | None = None
    tried: frozenset[Association] = frozenset()
    found_back: Association | None = None
    failure: FailedError | None = None


class Step(NamedTuple):
    """An act, the pages to write before it, and the facts from then on."""

    act: Act
    pages: Snapshot
    facts: Facts


def next_step(state: Snapshot, request: Request, facts: Facts) -> Step:
    """Decide the next step; the module's table says how."""
    state, facts = _noted(state, request, facts)
    note = state.record.note(request.id)
    if note is not None and note.answer is not None:
        state, deaths = _begun(state, request, facts)
        # What S3 did not take has been unmarked: nobody has died at that delivery.
        is_deadly = facts.begins and note.begun is True and deaths >= rules.MOST_DEATHS
        return Step(Repeat(note.answer, is_deadly=is_deadly), state, facts)
    failure = facts.failure or _refusal(state, request, facts)
    # A repair gives way to any request, which waits behind it.
    gives_way = isinstance(request, Repair) and rules.is_pending(state.record)
    if note is not None and note.until > facts.now and failure is None and not gives_way:
        why = TurnOverError("API Gateway", "it has asked to wait, or it is busy", until=note.until)
        return Step(Back(why), state, facts)
    if failure is not None and not (facts.touched or isinstance(request, Repair)):
        return _answer(state, request, facts, failure)
    state, deaths = _begun(state, request, facts)
    facts = facts._replace(begins=False, failure=failure)
    if deaths >= rules.MOST_DEATHS and failure is None:
        died = FailedError(f"{deaths} invocations died at this request. Look into the function's log")
        return _answer(state, request, facts, died)
    # A repair detaches nothing.
    if failure is None and not isinstance(request, Repair) and (step := _own_mark(state, request, facts)):
        return step
    return _served(state, request, facts)


def _served(state: Snapshot, request: Request, facts: Facts) -> Step:
    match request:
        case Repair():
            return _repair(state, request, facts)
        case Delete():
            return _delete(state, request, facts)
        case Invalid():  # The first write of its answer has failed.
            return _answer(state, request, facts, _unusable(request))
        case _:
            if facts.failure is not None:
                return _failed(state, request, facts, facts.failure)
            return _present(state, request, facts) if facts.there else _absent(state, request, facts)


def _noted(state: Snapshot, request: Request, facts: Facts) -> tuple[Snapshot, Facts]:
    """Note the acts' results in the pages; they count as noted once these are written."""
    for kind, one in facts.results:
        match kind:
            case Kind.ATTACHED:
                state = rules.attached(state, request, one)
            case Kind.FOUND | Kind.REFUSED:
                state = rules.not_attached(state, request, one)
            case Kind.ABSENT:
                state = rules.not_there(state, one)
            case Kind.DETACHED:
                state = rules.detached(state, request.holder, one, facts.now)
            case _:  # STAYED
                state = rules.still_attached(state, one)
    return state, facts._replace(results=())


def _begun(state: Snapshot, request: Request, facts: Facts) -> tuple[Snapshot, int]:
    """Mark a redelivered request as begun; give back how many functions have died at it."""
    if facts.begins:
        state = state.with_record(rules.begin(state.record, request))
    note = state.record.note(request.id)
    return state, note.deaths if note else 0


def _refusal(state: Snapshot, request: Request, facts: Facts) -> FailedError | None:
    """Say why a request fails whatever API Gateway would say."""
    if facts.is_over:
        # Nobody waits for it. CloudFormation may have counted it as failed.
        return FailedError(
            "CloudFormation's time for this request (ServiceTimeout) was over before its turn came"
        )
    if isinstance(request, Invalid):
        return _unusable(request)
    is_there = facts.there and request.wanted in state.record.holds
    if isinstance(request, Delete | Repair) or is_there or not rules.is_superseded(state.record, request):
        return None
    return SupersededError("Superseded: CloudFormation has sent a newer request for this resource")


def _unusable(request: Invalid) -> FailedError:
    return FailedError(f"The properties are not usable: {'; '.join(request.faults)}")


def _own_mark(state: Snapshot, request: Request, facts: Facts) -> Step | None:
    """Go on with a detaching of this resource at which a function died."""
    for held in rules.unfinished(state.record):
        if state.entry(held).detaching is not None:
            return _marked(state, request, facts, held)
    return None


def _marked(
    state: Snapshot, request: Request, facts: Facts, association: Association, *, moving: bool = False
) -> Step:
    """Mark an association, and detach it; wait while another resource's request finishes an earlier mark."""
    mark = state.entry(association).detaching
    if mark and mark.until >= facts.now and mark.by != request.id and state.record.note(mark.by) is None:
        return Step(Wait(association, "another request is detaching it"), state, facts)
    state = rules.mark(state, request, association, facts.dies)
    if moving:
        state = state.with_entry(association, away=True)
    return Step(Detach(association, moving=moving), state, facts._replace(touched=True))


# --- Create, Update ---


def _absent(state: Snapshot, request: CreateOrUpdate, facts: Facts) -> Step:
    """Attach the wanted key, or find out whether it is there."""
    wanted, holder = request.wanted, request.holder
    entry = state.entry(wanted)
    stands = rules.standing(entry, holder)
    if entry.detaching is not None:
        (marker,) = entry.holders  # The last holder sets the mark, which keeps others from joining.
        if entry.detaching.until >= facts.now and entry.detaching.by != request.id:
            return Step(Wait(wanted, f"{marker} is detaching it"), state, facts)
        # Of all who wait for it, one takes it up: its mark is on condition that the old one stands.
        state = state.with_entry(wanted, detaching=Mark(request.id, facts.dies))
        return Step(Finish(marker, wanted), state, facts)
    if stands is Standing.STRANGERS and request.on_existing is OnExisting.FAIL:
        return _failed(state, request, facts, rules.held_by_others(request, entry))
    if stands is not Standing.THIS or wanted not in state.record.holds:  # Somebody may have deleted a page.
        state = state.held(holder, wanted, Hold(request.id))
        facts = facts._replace(touched=True)
    has_begun = request.id in entry.attaching
    # With `Fail`, its own hold alone says that nothing is there yet, and API Gateway says so too if something
    # is. `Adopt` and `Take` expect it there: after a lost reply it would pass for the function's own.
    own_only = state.record.holds[wanted].request == request.id and not entry.others(holder)
    is_new = own_only and entry.origin is Origin.WANTED and request.on_existing is OnExisting.FAIL
    if facts.there is None and not has_begun and not is_new:
        return Step(Look(wanted), state, facts)
    if step := _make_room(state, request, facts):
        return step
    state = rules.attaching(state, request, wanted)
    moving = any(hold.marked_by == request.id for hold in state.record.holds.values())
    act = Attach(wanted, may_be_there=has_begun, moving=moving)
    return Step(act, state, facts._replace(touched=True, leaving=frozenset()))


def _make_room(state: Snapshot, request: CreateOrUpdate, facts: Facts) -> Step | None:
    """Move the key out of the plans that keep it from the wanted one, if this resource may."""
    known = facts.known
    if not facts.rivals:
        if known is None or not rules.may_move(state, request, known.association):
            return None
        return _marked(state, request, facts, known.association, moving=True)
    rest = [rival for rival in facts.rivals if not _leaves(state, facts, rival.association)]
    for rival in rest:
        if not rules.may_move(state, request, rival.association):
            return _failed(state, request, facts, _blocked(state, request, rival))
    if rest:
        facts = facts._replace(rivals=tuple(rest[1:]))
        return _marked(state, request, facts, rest[0].association, moving=True)
    leaving = frozenset(rival.association for rival in facts.rivals)
    why = f"{facts.rivals[0]} still blocks it"
    facts = facts._replace(rivals=(), leaving=leaving)
    return Step(Wait(request.wanted, why), state, facts)


def _leaves(state: Snapshot, facts: Facts, association: Association) -> bool:
    """Tell whether a key that is there may be one that leaves: DeleteUsagePlanKey answers 202."""
    entry = state.entry(association)  # That another request is attaching it proves nothing.
    return (entry.away or entry.origin is Origin.WANTED) and entry.leaves(facts.now)


def _blocked(state: Snapshot, request: CreateOrUpdate, rival: Rival) -> BlockedError:
    entry = state.entry(rival.association)
    return BlockedError(
        f"{request.wanted.attaching}: the key is in {rival} already, and API Gateway takes a key once for "
        f"each stage. {rules.left_alone(entry, request)}"
    )


def _present(state: Snapshot, request: CreateOrUpdate, facts: Facts) -> Step:
    """Succeed with a key that is there, or refuse it."""
    wanted, outcome = request.wanted, Outcome.LOST
    if facts.lost is None:
        if not facts.by_us and _leaves(state, facts, wanted):
            return Step(Wait(wanted, LEAVES), state, facts._replace(there=None))
        outcome = rules.outcome(state, request, attached=facts.by_us)
        if not facts.by_us:
            state = rules.whose(state, request)
        if outcome is Outcome.ADOPTED and request.on_existing is OnExisting.FAIL:
            return _failed(state, request, facts, rules.existing(request))
    leftovers = rules.leftovers(state.record, request)[: rules.MOST_AT_ONCE]
    for leftover in leftovers:
        if rules.has_to_detach(state, request.holder, leftover, take=False):
            return _marked(state, request, facts, leftover)
    if request.include_value and facts.key.value is None and not facts.value_sought:
        return Step(Look(wanted), state, facts._replace(value_sought=True))
    for leftover in leftovers:
        state = state.let_go(request.holder, leftover)
    return _succeed(state, request, facts, outcome)


def _succeed(state: Snapshot, request: CreateOrUpdate, facts: Facts, outcome: Outcome) -> Step:
    value = facts.key.value if request.include_value else None
    response = Response(success=True, outcome=outcome, key_name=facts.key.name, at=facts.now)
    state = state.with_record(rules.answered(state.record, request, response))
    return Step(Answer(response._replace(value=value)), state, facts)


def _failed(state: Snapshot, request: CreateOrUpdate, facts: Facts, failure: FailedError) -> Step:
    """Put back what the request has changed, then answer FAILED, or go back into the queue."""
    facts = facts._replace(failure=failure)
    if _is_lost(state, request, facts, failure):
        hold = state.record.holds.get(request.wanted)
        facts = facts._replace(
            failure=None, lost=failure, there=True, key=Key(hold.key_name if hold else "", "")
        )
        return _present(state, request, facts)
    hold = state.record.holds.get(request.wanted)
    may_be_there = hold is not None and request.id in state.entry(request.wanted).attaching
    if may_be_there or facts.by_us:
        return _answer(state, request, facts, failure)
    for held, one in state.record.holds.items():
        if one.marked_by == request.id and held not in facts.tried:
            entry, waits = state.entry(held), held in facts.leaving and isinstance(failure, TurnOverError)
            if entry.away and entry.detaching is None and not waits:
                return _put_back(state, request, facts, held)
    if hold is not None and hold.request == request.id and not _is_wanted_anew(state, request):
        if not rules.has_to_detach(state, request.holder, request.wanted, take=False):
            state = state.let_go(request.holder, request.wanted)
        elif not isinstance(failure, TurnOverError) and request.wanted not in facts.tried:
            return _marked(
                state, request, facts._replace(tried=facts.tried | {request.wanted}), request.wanted
            )
    return _answer(state, request, facts, failure)


def _is_lost(state: Snapshot, request: CreateOrUpdate, facts: Facts, failure: FailedError) -> bool:
    """Tell whether a rollback cannot have its key: it or its plan is gone, or others keep it."""
    out_of_reach = isinstance(failure, MissingError | BlockedError)
    return out_of_reach and rules.may_be_lost(state.record, request, facts.now)


def _is_wanted_anew(state: Snapshot, request: CreateOrUpdate) -> bool:
    """Tell whether a newer request wants the same association."""
    return rules.is_superseded(state.record, request) and state.record.wants == request.wanted


def _put_back(state: Snapshot, request: CreateOrUpdate, facts: Facts, moved: Association) -> Step:
    """Attach a key again that the request has moved away."""
    if facts.found_back == moved:
        if _leaves(state, facts, moved):
            return Step(Wait(moved, LEAVES), state, facts._replace(found_back=None))
        facts = facts._replace(found_back=None, tried=facts.tried | {moved})
        state = rules.left_to_others(state, moved)
        return Step(GoOn(), state, facts)
    has_begun = request.id in state.entry(moved).attaching
    return Step(Attach(moved, may_be_there=has_begun), rules.attaching(state, request, moved), facts)


# --- Delete ---


def _delete(state: Snapshot, request: Delete, facts: Facts) -> Step:
    """Detach what is ours alone, one after the other, and let go of the rest."""
    released = rules.releases(state, request)
    if facts.failure is not None:
        return _answer(state, request, facts, facts.failure)
    part = released[: rules.MOST_AT_ONCE]
    ours = [one for one in part if rules.has_to_detach(state, request.holder, one, take=request.take)]
    # What the named association has left behind goes before it: later no id names that.
    for association in part:
        if association not in ours:
            state, facts = state.let_go(request.holder, association), facts._replace(touched=True)
    if len(released) > len(part) > len(ours):
        return Step(GoOn(), state, facts)
    if ours:
        return _marked(state, request, facts, ours[0])
    response = Response(success=True, at=facts.now)
    state = state.with_record(rules.answered(state.record, request, response))
    return Step(Answer(response), state, facts)


# --- Repair ---


def _repair(state: Snapshot, request: Repair, facts: Facts) -> Step:
    """Attach again a key that the watch found missing, if the resource still counts on it."""
    wanted = request.wanted
    if isinstance(facts.failure, TurnOverError):
        return _answer(state, request, facts, facts.failure)
    why_not = str(facts.failure or "")
    if not why_not and facts.rivals:
        why_not = f"{wanted.attaching}: {facts.rivals[0]} blocks it"
    if not (why_not or facts.there):
        why_not = rules.not_repairable(state, request)
    if not (why_not or facts.there):
        has_begun = request.id in state.entry(wanted).attaching
        if facts.there is None and not has_begun:
            return Step(Look(wanted), state, facts)
        state = rules.attaching(state, request, wanted)
        return Step(Attach(wanted, may_be_there=has_begun), state, facts._replace(touched=True))
    if not (why_not or facts.by_us):
        why_not = "its key is there again"
    # Nobody waits for it but the log.
    response = Response(success=not why_not, reason=why_not, at=facts.now)
    return Step(Answer(response), state.with_record(rules.ended(state.record, request)), facts)


# --- The end ---


def _answer(state: Snapshot, request: Request, facts: Facts, failure: FailedError) -> Step:
    """Answer FAILED, or give the request back to the queue."""
    if isinstance(failure, TurnOverError):
        return _back(state, request, facts, failure)
    reason = str(failure)
    if isinstance(request, Delete):
        left = ", ".join(
            f"API key {rest.key_id} in usage plan {rest.plan_id}" for rest in rules.releases(state, request)
        )
        reason = f"{reason}. {STAYS}: {left or f'{request.shown_id}, if it was'}"
    response = Response(success=False, reason=reason[:MOST_REASON], at=facts.now)
    state = state.with_record(rules.answered(state.record, request, response))
    return Step(Answer(response), state, facts)


def _back(state: Snapshot, request: Request, facts: Facts, why: TurnOverError) -> Step:
    """Give the request back to the queue. After the last try it fails for good: that is another question."""
    record, until = rules.gone_back(state.record, request), why.until
    if why.refusal and facts.last:
        note = state.record.note(request.id)
        until = rules.next_try(note, why.refusal, facts.now, facts.last, facts.roll)
        if note and 0 < note.quota <= facts.now - why.refusal.patience:
            return next_step(state, request, facts._replace(failure=FailedError(str(why))))
        if not until:
            attempts = 1 + (note.refusals if note else 0)
            told = OutOfTimeError.told(why.what, attempts, facts.now - facts.began, why.last)
            return next_step(state, request, facts._replace(failure=told))
        record = rules.refused(state.record, request, why.refusal, facts.now, until)
    back = TurnOverError(why.what, why.last, until=until)
    return Step(Back(back), state.with_record(record), facts)
