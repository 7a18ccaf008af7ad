"""Every rule of what is held, attached, detached and answered.

Pure functions, from what was asked and what was observed to what is written down or done next. Nothing here talks to anybody.

A resource wants an association (Create, Update):

    who holds it           in the plan   what is done, and the outcome
    ---------------------  ------------  ---------------------------------------------------------------
    nobody                 no            attach: ATTACHED
    nobody                 yes           `Fail`: refuse; `Adopt`, `Take`: hold it, marked `before`: ADOPTED
    this resource          yes           VERIFIED; Update with `Take` on what is `before`: TAKEN; Create: ATTACHED
    this resource          no            attach: REPAIRED; Create: ATTACHED
    another of this stack  yes           hold it too: JOINED
    another of this stack  no            hold it too, attach: REPAIRED
    other stacks alone     yes           `Fail`: refuse; `Adopt`, `Take`: hold it too: JOINED
    other stacks alone     no            `Fail`: refuse; `Adopt`, `Take`: hold it too, attach: REPAIRED

    attaching is refused because the key is in a plan for the same API stage
    ------------------------------------------------------------------------
    held by this resource alone, and its own   detach that one, attach the wanted one: MOVED
    otherwise                                  refuse, naming the plan, the stage and who holds it

A resource lets go of an association (Delete, or an Update that finds what a superseded one left):

    others hold it too                         take this resource out of the holders
    it was there before us, and is not taken   the same: it stays attached
    it was moved away from                     the same: it is detached already
    otherwise                                  mark it `detaching`, detach it, take the resource out
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum, StrEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from .association import Association, Holder
from .request import Create, Delete, Invalid, OnExisting, Request, Update, Wish

#: Seconds after which a mark `detaching` was left by a death: no function runs longer.
STALE_MARK: Final = 15 * 60
#: Seconds for which given answers, and a holder that holds nothing, are remembered.
REMEMBERED: Final = 24 * 60 * 60
#: Answers remembered at most, so that a holder's item cannot outgrow DynamoDB's 400 KB.
MOST_ANSWERS: Final = 50


#: What nothing stands in yet; it cannot be changed.
_NONE: Final[Mapping[Any, Any]] = MappingProxyType({})


class Outcome(StrEnum):
    """What a Create or an Update came to."""

    ATTACHED = "ATTACHED"
    VERIFIED = "VERIFIED"
    REPAIRED = "REPAIRED"
    JOINED = "JOINED"
    ADOPTED = "ADOPTED"
    TAKEN = "TAKEN"
    MOVED = "MOVED"


class Standing(Enum):
    """Who holds an association, seen from one resource."""

    NOBODY = "nobody"
    THIS = "this resource"
    SIBLING = "another resource of this stack"
    STRANGERS = "other stacks alone"


class FailedError(Exception):
    """Raised when a request is to be answered FAILED; its text is the Reason.

    Attributes:
        clear: Nothing can have been attached by this attempt, so what it wrote down can be taken back.
    """

    def __init__(self, reason: str, *, clear: bool = True) -> None:
        super().__init__(reason)
        self.clear = clear


class SupersededError(FailedError):
    """Raised when CloudFormation has sent a newer request for the same resource: it has given this one up."""


class Answer(NamedTuple):
    """What CloudFormation is told, but for the key's value. `at` is when it was given, in epoch seconds."""

    success: bool
    id: str
    reason: str = ""
    outcome: str = ""
    key_name: str = ""
    at: int = 0


class Hold(NamedTuple):
    """That a resource holds an association.

    Attributes:
        request: The RequestId that took hold of it.
        named: An event's id has named it since, or an earlier life of the resource left it: then it is
            CloudFormation's to delete or to retain, and nobody else's.
    """

    request: str
    named: bool = False


class Record(NamedTuple):
    """A resource's page in the ledger.

    Attributes:
        holds: The associations that it holds.
        order: The order of the newest request that has arrived (0: none that could be ordered).
        newest: Its RequestId.
        wants: The association that it wants.
        foreign: Foreign ids that Updates have brought, a former provider's.
        spared: What a Create wanted that was refused, while an earlier life of the resource held it.
        answers: The answers given, by RequestId.
    """

    holds: Mapping[Association, Hold] = _NONE
    order: int = 0
    newest: str = ""
    wants: Association | None = None
    foreign: frozenset[str] = frozenset()
    spared: Association | None = None
    answers: Mapping[str, Answer] = _NONE


class Entry(NamedTuple):
    """An association's page in the ledger.

    Attributes:
        holders: The resources that hold it.
        before: It was attached before any of them.
        taken: An Update with `Take` has made it theirs all the same.
        detaching: When its last holder set about detaching it, in epoch seconds.
        moved: The RequestId that detached it for a move; it stays held.
        anew: The RequestId that has last set about attaching it when it was held already.
    """

    holders: frozenset[Holder] = frozenset()
    before: bool = False
    taken: bool = False
    detaching: int | None = None
    moved: str | None = None
    anew: str | None = None

    def others(self, holder: Holder) -> list[Holder]:
        """All holders but this one."""
        return sorted(self.holders - {holder})

    def owned(self, *, take: bool) -> bool:
        """Whether its last holder may detach it: it was attached by us, or it was taken and that still stands."""
        return not self.before or (self.taken and take)


class State(NamedTuple):
    """What the ledger says of one resource and of the associations that are looked at. `versions` is for the ledger."""

    record: Record
    entries: Mapping[Association, Entry]
    versions: Mapping[str, str | None] = _NONE

    def entry(self, association: Association) -> Entry:
        """The page of an association; a KeyError where it was not read, for then nothing is known of its holders."""
        return self.entries[association]

    def with_entry(self, association: Association, entry: Entry) -> State:
        """With another page for an association."""
        return self._replace(entries={**self.entries, association: entry})

    def held(self, holder: Holder, association: Association, hold: Hold) -> State:
        """With the association held: both pages always change together."""
        entry = self.entry(association)
        record = self.record._replace(holds={**self.record.holds, association: hold})
        return self._replace(record=record).with_entry(association, entry._replace(holders=entry.holders | {holder}))

    def let_go(self, holder: Holder, association: Association) -> State:
        """With the association let go. With its last holder all that is known of it goes."""
        left = self.entry(association).holders - {holder}
        entry = self.entry(association)._replace(holders=left, detaching=None) if left else Entry()
        holds = {held: hold for held, hold in self.record.holds.items() if held != association}
        return self._replace(record=self.record._replace(holds=holds)).with_entry(association, entry)


# --- The fence: the newest request wins ---


def arrive(record: Record, request: Request) -> Record:
    """Write down that a request has arrived, before it waits for its turn."""
    if request.id in record.answers:
        return record
    holds = dict(record.holds)
    foreign = record.foreign
    named = Association.parse(request.physical_id) if request.physical_id else None
    if named in holds:
        holds[named] = holds[named]._replace(named=True)
    elif isinstance(request, Update) and named is None:
        foreign |= {request.physical_id}
    record = record._replace(holds=holds, foreign=foreign)
    if request.order is not None and request.order < record.order:
        return record

    wants = record.wants
    match request:
        case Wish():
            wants = request.wanted
        case Delete() if named == wants or (named is None and request.physical_id not in foreign):
            wants = None
    if request.physical_id is None:
        # A Create begins a new life. What is held from an earlier one was retained, by no Delete that came.
        holds = {held: hold if hold.request == request.id else hold._replace(named=True) for held, hold in holds.items()}
    record = record._replace(holds=holds, spared=record.spared if isinstance(request, Delete) else None)
    if request.order is None:
        return record  # Without issue times there is no fence.
    return record._replace(order=request.order, newest=request.id, wants=wants)


def looked_at(request: Request) -> list[Association]:
    """Name the associations that serving a request begins with."""
    named = Association.parse(request.physical_id) if request.physical_id else None
    return [found for found in (getattr(request, "wanted", None), named) if found is not None]


def check_superseded(record: Record, request: Request | Wish) -> None:
    """Stop a request that CloudFormation has given up.

    Raises:
        SupersededError: A newer request for the same resource has arrived.
    """
    if request.order is not None and record.newest != request.id and record.order >= request.order:
        raise SupersededError("Superseded: CloudFormation has sent a newer request for this resource; nothing was touched")


# --- Wanting an association ---


def standing(entry: Entry, holder: Holder) -> Standing:
    """Tell who holds an association, seen from `holder`."""
    if holder in entry.holders:
        return Standing.THIS
    if not entry.holders:
        return Standing.NOBODY
    return Standing.SIBLING if any(other.stack_id == holder.stack_id for other in entry.holders) else Standing.STRANGERS


def take_hold(state: State, request: Wish) -> State:
    """Hold what is wanted, before anything is attached.

    Raises:
        SupersededError: A newer request has arrived: this one touches nothing.
        FailedError: Other stacks alone hold it, and `OnExisting` is `Fail`.
    """
    check_superseded(state.record, request)
    entry = state.entry(request.wanted)
    match standing(entry, request.holder):
        case Standing.THIS:
            return state
        case Standing.STRANGERS if request.on_existing is OnExisting.FAIL:
            raise FailedError(
                f"{attaching(request.wanted)}: it is held by {listed(entry.holders)}, and OnExisting is Fail. Adopt or Take "
                "would hold it too; it is detached when its last holder goes"
            )
    return state.held(request.holder, request.wanted, Hold(request.id))


def outcome(request: Wish, stands: Standing, entry: Entry, *, present: bool) -> Outcome:
    """Read the table above, for what is not refused. `stands` and `entry` are what was found, before it was held."""
    if stands is Standing.THIS and isinstance(request, Create):
        return Outcome.ATTACHED  # A repeated request: its first delivery took hold.
    if present and takes(request, entry):
        return Outcome.TAKEN
    table = {
        (Standing.NOBODY, False): Outcome.ATTACHED,
        (Standing.NOBODY, True): Outcome.ADOPTED,
        (Standing.THIS, False): Outcome.REPAIRED,
        (Standing.THIS, True): Outcome.VERIFIED,
        (Standing.SIBLING, False): Outcome.REPAIRED,
        (Standing.SIBLING, True): Outcome.JOINED,
        (Standing.STRANGERS, False): Outcome.REPAIRED,
        (Standing.STRANGERS, True): Outcome.JOINED,
    }
    return table[stands, present]


def takes(request: Wish, entry: Entry) -> bool:
    """Tell whether this makes ours what was there before: an Update with `Take` that had it as its id already.

    So neither the rollback of what found it nor that of the change to `Take` can detach it.
    """
    wishes = isinstance(request, Update) and request.in_place and request.on_existing is OnExisting.TAKE
    return wishes and entry.before and request.holder in entry.holders


def found(state: State, request: Wish) -> State:
    """Attaching was refused, for the key is in the plan already, and the first who held it was this resource.

    So it was there before, unless another request has set about attaching it meanwhile.
    """
    entry = state.entry(request.wanted)
    return state if entry.anew else state.with_entry(request.wanted, entry._replace(before=True))


def check_existing(request: Wish) -> None:
    """Refuse what was there before, unless the resource would have it all the same.

    Raises:
        FailedError: `OnExisting` is `Fail`.
    """
    if request.on_existing is OnExisting.FAIL:
        raise FailedError(
            f"{attaching(request.wanted)}: it is there already, not through this stack, and OnExisting is Fail. Adopt would use "
            "it and leave it there on Delete; Take would use it and, from the next Update on, own it"
        )


def present(state: State, request: Wish) -> State:
    """What is held was seen in the plan: mark it as taken where `takes` says so."""
    entry = state.entry(request.wanted)
    return state.with_entry(request.wanted, entry._replace(taken=True)) if takes(request, entry) else state


def attaching_anew(state: State, request: Wish, association: Association) -> State:
    """Before a held association is attached again: from then on it is ours."""
    entry = state.entry(association)._replace(before=False, taken=False, moved=None, anew=request.id)
    return state.with_entry(association, entry)


def not_attached_anew(state: State, request: Wish, association: Association, earlier: Entry) -> State:
    """It was not this request that has attached it again: put back the marks, unless another one is at it since."""
    entry = state.entry(association)
    if entry.anew != request.id:
        return state
    marks = entry._replace(before=earlier.before, taken=earlier.taken, moved=earlier.moved, anew=earlier.anew)
    return state.with_entry(association, marks)


def take_back(state: State, request: Wish) -> State:
    """Let go of what this request has taken hold of: attaching was refused, so nothing was attached for it."""
    hold = state.record.holds.get(request.wanted)
    return state.let_go(request.holder, request.wanted) if hold is not None and hold.request == request.id else state


# --- Moving between plans that share a stage ---


def may_move(state: State, request: Wish, association: Association) -> bool:
    """Tell whether this resource may detach `association` for the sake of what it wants.

    It has to be its own, and of its present life: what its id names, or what a superseded Update of it left. A Create has
    nothing yet, and what an earlier life retained stays retained.
    """
    hold, entry = state.record.holds.get(association), state.entry(association)
    if hold is None or not isinstance(request, Update):
        return False
    present = Association.parse(request.physical_id) == association or not hold.named
    return present and entry.holders == {request.holder} and entry.owned(take=request.on_existing is OnExisting.TAKE)


def move_away(state: State, request: Wish, association: Association, now: int) -> State:
    """Mark an association before it is detached for a move; it stays held until CloudFormation's Delete for it."""
    entry = state.entry(association)._replace(detaching=now, moved=request.id)
    return state.with_entry(association, entry) if may_move(state, request, association) else state


# --- Letting go ---


def releases(record: Record, request: Delete) -> list[Association]:
    """Name what a Delete releases."""
    named = Association.parse(request.physical_id)
    # What a failed Update may have attached, and no rollback has come for.
    failed = [held for held, hold in record.holds.items() if not hold.named and _has_failed(record, hold)]
    if named is not None:
        released = [named] if named in record.holds and named != record.spared else []
    elif request.physical_id in record.foreign:
        released = []  # A former provider's: it was not attached by us.
    else:
        # CloudFormation invents an id when a Create was cancelled or never answered: what that Create took goes.
        released = [held for held, hold in record.holds.items() if not hold.named]
    return [held for held in dict.fromkeys(released + failed) if held != record.wants]


def _has_failed(record: Record, hold: Hold) -> bool:
    return hold.request in record.answers and not record.answers[hold.request].success


def leftovers(record: Record, request: Wish) -> list[Association]:
    """Name what an Update releases besides serving what it wants: what a superseded one left, which no id has named."""
    if not (isinstance(request, Update) and request.in_place):
        return []
    return [held for held, hold in record.holds.items() if held != request.wanted and not hold.named]


def release(state: State, holder: Holder, association: Association, *, take: bool, now: int) -> State:
    """Let go of an association, or mark it `detaching` where it is to be detached first."""
    entry = state.entry(association)
    if association not in state.record.holds or state.record.wants == association:
        return state
    if entry.detaching is not None:
        return renewed(state, association, now)
    if entry.others(holder) or entry.moved or not entry.owned(take=take):
        return state.let_go(holder, association)
    return state.with_entry(association, entry._replace(detaching=now))


def renewed(state: State, association: Association, now: int) -> State:
    """Take up a detaching that a death has left: whoever waits for it waits anew."""
    entry = state.entry(association)
    return state if entry.detaching is None else state.with_entry(association, entry._replace(detaching=now))


def detached(state: State, holder: Holder, association: Association) -> State:
    """After the detaching: let go, or for a move take off the mark alone."""
    entry = state.entry(association)
    if entry.detaching is None or holder not in entry.holders:
        return state
    if entry.moved:
        return state.with_entry(association, entry._replace(detaching=None))
    return state.let_go(holder, association)


def still_attached(state: State, association: Association) -> State:
    """After a detaching that was clearly refused: take off the marks."""
    entry = state.entry(association)
    return state.with_entry(association, entry._replace(detaching=None, moved=None))


# --- The same request, the same answer ---


def answered(record: Record, request: Request, answer: Answer) -> Record:
    """Write an answer down; the first one stands."""
    if request.id in record.answers:
        return record
    kept = sorted(
        ((id_, given) for id_, given in record.answers.items() if given.at > answer.at - REMEMBERED),
        key=lambda pair: pair[1].at,
    )[1 - MOST_ANSWERS :]
    spared, wants = record.spared, record.wants
    if not answer.success and record.newest == request.id and not isinstance(request, Delete):
        wants = Association.parse(request.physical_id) if request.physical_id else None  # What it had stays.
    if isinstance(request, Create | Invalid) and request.physical_id is None and not answer.success:
        # CloudFormation follows a failed Create with a Delete of its id. That must not undo what was retained.
        hold = record.holds.get(request.wanted) if request.wanted else None
        spared = request.wanted if hold is not None and hold.request != request.id else None
    return record._replace(answers={**dict(kept), request.id: answer}, spared=spared, wants=wants)


def attaching(association: Association) -> str:
    """Begin a Reason."""
    return f"Could not attach API key {association.key_id} to usage plan {association.plan_id}"


def listed(holders: Iterable[Holder]) -> str:
    """Name holders for a Reason, three at most."""
    names = [str(holder) for holder in sorted(holders)]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
