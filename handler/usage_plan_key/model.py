"""The nouns: an association, a holder of it, the ledger's pages about the two, and the response."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from enum import Enum, StrEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from .errors import UnreadError

# API Gateway's own ids have 10 (keys) and 6 (plans) letters and digits. A key's *value* has at least 20
# characters (https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-setup-api-keys.html).
# So a value in an id's place never passes for an id, and never becomes a physical id.
LONGEST_ID: Final = 19
_ID = re.compile(rf"[A-Za-z0-9_-]{{1,{LONGEST_ID}}}")


def well_formed(value: object) -> bool:
    """Tell whether `value` can be the id of a key or a plan."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


class Association(NamedTuple):
    """One API key in one usage plan. API Gateway has a pair at most once, so the ids identify it."""

    key_id: str
    plan_id: str

    @property
    def id(self) -> str:
        """The physical id, `<KeyId>:<UsagePlanId>`: the `Ref`, as with AWS::ApiGateway::UsagePlanKey."""
        return f"{self.key_id}:{self.plan_id}"

    @property
    def attaching(self) -> str:
        """Begin a Reason about attaching it."""
        return f"Could not attach API key {self.key_id} to usage plan {self.plan_id}"

    @classmethod
    def parse(cls, physical_id: str) -> Association | None:
        """Read a physical id; None for a foreign one, CloudFormation's invention or a former provider's."""
        key_id, colon, plan_id = physical_id.partition(":")
        return cls(key_id, plan_id) if colon and well_formed(key_id) and well_formed(plan_id) else None


class Holder(NamedTuple):
    """A resource of a stack; it can hold associations. The UUID in a stack's ARN tells namesakes apart."""

    stack_id: str
    logical_id: str

    @property
    def stack_name(self) -> str:
        """NAME in `arn:PARTITION:cloudformation:REGION:ACCOUNT:stack/NAME/UUID`, else the whole ARN."""
        parts = self.stack_id.split("/")
        return parts[1] if len(parts) > 1 else self.stack_id

    def __str__(self) -> str:
        return f"{self.logical_id} of stack {self.stack_name}"


#: Seconds for which the ledger remembers a request, and a holder that holds nothing.
REMEMBERED: Final = 24 * 60 * 60
#: Seconds after a detaching in which the key may still be in the plan: DeleteUsagePlanKey answers 202.
#: https://docs.aws.amazon.com/apigateway/latest/api/API_DeleteUsagePlanKey.html
LEAVES_WITHIN: Final = 60
#: An empty default that nobody can change.
_NONE: Final[Mapping[Any, Any]] = MappingProxyType({})


class Key(NamedTuple):
    """A key as a plan has it. Its value is secret, and may be absent."""

    name: str = ""
    value: str | None = None

    def __repr__(self) -> str:
        """Show no value."""
        return f"Key({self.name!r})"


class Rival(NamedTuple):
    """A plan that has the key and shares stages (`api:stage`) with the wanted plan.

    API Gateway takes a key once for each stage.
    """

    association: Association
    plan_name: str
    stages: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"usage plan {self.association.plan_id} ({self.plan_name}) "
            f"for the API stage {', '.join(self.stages)}"
        )


class Outcome(StrEnum):
    """The result of a Create or an Update."""

    ATTACHED = "ATTACHED"
    VERIFIED = "VERIFIED"
    REPAIRED = "REPAIRED"
    JOINED = "JOINED"
    ADOPTED = "ADOPTED"
    TAKEN = "TAKEN"
    MOVED = "MOVED"
    LOST = "LOST"


class Standing(Enum):
    """The holders of an association, seen from one resource."""

    NOBODY = "nobody"
    THIS = "this resource"
    SIBLING = "another resource of this stack"
    STRANGERS = "other stacks only"


class Response(NamedTuple):
    """An answer to CloudFormation.

    Attributes:
        at: When the function gave it, in epoch seconds.
        value: The key's value, if IncludeValue asks for it. It is secret, so the function stores it nowhere.
    """

    success: bool
    reason: str = ""
    outcome: str = ""
    key_name: str = ""
    at: int = 0
    value: str | None = None

    def __repr__(self) -> str:
        """Hide the value."""
        shown = (f"{name}={field!r}" for name, field in self._asdict().items() if name != "value")
        return f"Response({', '.join(shown)})"


class Belief(StrEnum):
    """What CloudFormation believes of a hold; `rules.BELIEFS` has the ways from one to another."""

    OPEN = "open"
    """The request that took hold has no answer yet."""
    GIVEN = "given"
    """An answer says that it is attached, and no event has named it since."""
    KNOWN = "known"
    """An event's id has named it, or an earlier life left it: only CloudFormation may delete or retain it."""
    LEFT = "left"
    """An Update to another association has succeeded. A rollback or a Delete is to come."""
    GOING = "going"
    """A Delete for it has arrived, so the resource no longer counts on it."""
    FAILED = "failed"
    """The request that took hold has failed, so CloudFormation never believed in it."""


class Hold(NamedTuple):
    """A resource's hold on an association.

    Attributes:
        request: The RequestId that took hold of it, or that last succeeded with it.
        belief: What CloudFormation believes of it.
        left: When a request last succeeded with it, or with another one in its place, in epoch seconds: since
            then CloudFormation can have left it, or its properties.
        marked_by: The RequestId that has marked the association, to detach it.
        key_name: The KeyName of the last answer.
    """

    request: str
    belief: Belief = Belief.OPEN
    left: int = 0
    marked_by: str = ""
    key_name: str = ""


class Note(NamedTuple):
    """What the ledger knows of one request.

    Attributes:
        id: The RequestId.
        issued: When CloudFormation issued it, in epoch seconds; 0 for a repair, which it has not.
        ends_life: It is a Delete with an id that CloudFormation has invented.
        answer: The answer, once there is one.
        begun: A function serves its redelivery (True), or has given it back (False); None before both. A
            delivery that finds True finds a death.
        deaths: The number of functions that have died at it.
        refusals: How often it went back into the queue because API Gateway refused it.
        paced: How many refusals there were at the last `Retry-After`: it ends the doubling of the pauses.
        quota: Since when each refusal may have reported a quota, in epoch seconds; 0 if the last did not.
        until: API Gateway is not to be asked for it before this time, in epoch seconds.
    """

    id: str
    issued: int = 0
    ends_life: bool = False
    answer: Response | None = None
    begun: bool | None = None
    deaths: int = 0
    refusals: int = 0
    paced: int = 0
    quota: int = 0
    until: int = 0


class ResourceRecord(NamedTuple):
    """A resource's page in the ledger.

    Attributes:
        holds: The associations that it holds.
        notes: Its requests of the last day, the newest last.
        wants: The association that the newest request wants.
        foreign: Digests of the foreign ids in Updates. A former provider's id may hold a key's value.
        retained: The association of a failed Create, if an earlier life of the resource held it.
        digest: The digest of the properties that last succeeded.
        former: The digest of those that succeeded before them; empty once a rollback has gone back to them.
    """

    holds: Mapping[Association, Hold] = _NONE
    notes: tuple[Note, ...] = ()
    wants: Association | None = None
    foreign: frozenset[str] = frozenset()
    retained: Association | None = None
    digest: str = ""
    former: str = ""

    @property
    def newest(self) -> Note | None:
        """The newest request that has arrived; None if none has."""
        return self.notes[-1] if self.notes and self.notes[-1].issued else None

    def note(self, id_: str) -> Note | None:
        """The note of a request; None if there is none."""
        return next((note for note in self.notes if note.id == id_), None)

    def noted(self, note: Note) -> ResourceRecord:
        """The record with a note in the place of the one with its id."""
        return self._replace(notes=tuple(note if one.id == note.id else one for one in self.notes))

    def holding(self, association: Association, **changes: Any) -> ResourceRecord:
        """The record with a changed hold."""
        hold = self.holds[association]._replace(**changes)
        return self._replace(holds={**self.holds, association: hold})


class Origin(StrEnum):
    """Whose a key in the plan is, if nothing else is marked on the association's page."""

    WANTED = "wanted"
    """Resources hold it, and nothing there can be theirs."""
    OURS = "ours"
    """A holder has attached it."""
    BEFORE = "before"
    """Somebody else had attached it before any holder."""
    TAKEN = "taken"
    """The same, and an Update with `Take` has taken it over."""


class Mark(NamedTuple):
    """A request has begun to detach an association. Its function can run until a time, in epoch seconds."""

    by: str
    until: int


class AssociationRecord(NamedTuple):
    """An association's page in the ledger. The marks lie over the origin, and come off again.

    Attributes:
        holders: The resources that hold it.
        origin: Whose the key is.
        attaching: The requests that have begun to attach it and have not learned the end.
        detaching: Its last holder has begun to detach it, or another request finishes that. A mark of the
            past comes from a death.
        away: That holder has moved, or moves, to another association, and still holds this one.
        detached: When the function last detached it, in epoch seconds; 0 if it has not.
    """

    holders: frozenset[Holder] = frozenset()
    origin: Origin = Origin.WANTED
    attaching: frozenset[str] = frozenset()
    detaching: Mark | None = None
    away: bool = False
    detached: int = 0

    def others(self, holder: Holder) -> list[Holder]:
        """All holders but this one."""
        return sorted(self.holders - {holder})

    @property
    def nobodys(self) -> bool:
        """Whether a key that is in the plan now cannot be any holder's."""
        return not self.attaching and (self.away or self.origin is Origin.WANTED)

    def owned(self, *, take: bool) -> bool:
        """Whether its last holder may detach it: we attached it, or `Take` took it over and still stands."""
        return bool(self.attaching) or (
            not self.away and (self.origin is Origin.OURS or (self.origin is Origin.TAKEN and take))
        )

    def leaves(self, now: int) -> bool:
        """Whether a key that is in the plan now may be one that the function has just detached."""
        return now < self.detached + LEAVES_WITHIN


class Snapshot(NamedTuple):
    """The ledger's pages of one resource and of some associations. `versions` belongs to the ledger."""

    record: ResourceRecord
    entries: Mapping[Association, AssociationRecord] = _NONE
    versions: Mapping[str, str | None] = _NONE

    @property
    def pages(self) -> Snapshot:
        """Itself: a rule of the ledger gives back something that has pages."""
        return self

    def entry(self, association: Association) -> AssociationRecord:
        """The page of an association.

        Raises:
            UnreadError: Nobody has read it. The ledger reads it, and asks the rule again.
        """
        try:
            return self.entries[association]
        except KeyError:
            raise UnreadError(association) from None

    def with_entry(self, association: Association, **changes: Any) -> Snapshot:
        """A snapshot with a changed page of an association."""
        entry = self.entry(association)._replace(**changes)
        return self._replace(entries={**self.entries, association: entry})

    def with_record(self, record: ResourceRecord) -> Snapshot:
        """A snapshot with another page of the resource."""
        return self._replace(record=record)

    def held(self, holder: Holder, association: Association, hold: Hold) -> Snapshot:
        """A snapshot in which the holder holds it: both pages always change together."""
        record = self.record._replace(holds={**self.record.holds, association: hold})
        holders = self.entry(association).holders | {holder}
        return self.with_record(record).with_entry(association, holders=holders)

    def let_go(self, holder: Holder, association: Association) -> Snapshot:
        """A snapshot in which the holder has let go. With the last holder only `detached` stays."""
        entry = self.entry(association)
        left = entry.holders - {holder}
        gone = AssociationRecord(detached=entry.detached)
        kept = entry._replace(holders=left, detaching=None) if left else gone
        holds = {held: hold for held, hold in self.record.holds.items() if held != association}
        entries = {**self.entries, association: kept}
        return self._replace(record=self.record._replace(holds=holds), entries=entries)


def digest(physical_id: str) -> str:
    """Shorten a foreign id to a digest that tells it from others and reveals nothing."""
    return hashlib.sha256(physical_id.encode(errors="backslashreplace")).hexdigest()[:32]
