"""The nouns: an association, a holder of it, the ledger's pages about the two, and the response."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from enum import Enum, StrEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple

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


#: Seconds for which the ledger remembers an answer, and a holder that holds nothing.
REMEMBERED: Final = 24 * 60 * 60
#: `AssociationRecord.begun_by` before any request has begun to attach it.
NOBODY: Final = ""
#: An empty default that nobody can change.
_NONE: Final[Mapping[Any, Any]] = MappingProxyType({})


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
    id: str
    reason: str = ""
    outcome: str = ""
    key_name: str = ""
    at: int = 0
    value: str | None = None

    def __repr__(self) -> str:
        """Hide the value."""
        shown = (f"{name}={field!r}" for name, field in self._asdict().items() if name != "value")
        return f"Response({', '.join(shown)})"


class Hold(NamedTuple):
    """A resource's hold on an association.

    Attributes:
        request: The RequestId that took hold of it.
        named: An event's id has named it since, or an earlier life of the resource left it. Only
            CloudFormation may delete or retain it then.
        left: When an Update to another association succeeded, in epoch seconds; 0 if none did, and once a
            Delete for this one has come.
        failed: The request that took hold of it failed, so CloudFormation has never believed that it is
            attached.
        key_name: The KeyName of the last answer.
    """

    request: str
    named: bool = False
    left: int = 0
    failed: bool = False
    key_name: str = ""


class ResourceRecord(NamedTuple):
    """A resource's page in the ledger.

    Attributes:
        holds: The associations that it holds.
        issued: When CloudFormation issued the newest request that has arrived, in epoch seconds; 0 if none
            says.
        arrived: The RequestIds of that second, in the order of arrival.
        closed: The newest request is a Delete with an id that CloudFormation has invented.
        wants: The association that it wants.
        foreign: Digests of the foreign ids in Updates. A former provider's id may hold a key's value.
        retained: The association of a failed Create, if an earlier life of the resource held it.
        answers: The answers given, by RequestId.
        digest: The digest of the properties that last succeeded.
        begun: The RequestId of a redelivered request, while a function serves it. A delivery that finds its
            own mark shows a death.
        died: The RequestId that `deaths` counts for.
        deaths: The number of functions that have died at it.
    """

    holds: Mapping[Association, Hold] = _NONE
    issued: int = 0
    arrived: tuple[str, ...] = ()
    closed: bool = False
    wants: Association | None = None
    foreign: frozenset[str] = frozenset()
    retained: Association | None = None
    answers: Mapping[str, Response] = _NONE
    digest: str = ""
    begun: str = ""
    died: str = ""
    deaths: int = 0

    @property
    def newest(self) -> str:
        """The RequestId of the newest request that has arrived; empty if none has."""
        return self.arrived[-1] if self.arrived else ""


class AssociationRecord(NamedTuple):
    """An association's page in the ledger.

    Attributes:
        holders: The resources that hold it.
        preexisting: Somebody else attached it before any of them.
        taken_over: An Update with `Take` has made it theirs all the same.
        detaching: Its last holder has begun to detach it. The function can run until this time, in epoch
            seconds. An older mark comes from a death.
        moved_by: The RequestId that detached it for a move; its holder still holds it.
        begun_by: The request that last began to attach it; NOBODY if none has; None if it is attached and
            its beginning matters no more.
    """

    holders: frozenset[Holder] = frozenset()
    preexisting: bool = False
    taken_over: bool = False
    detaching: int | None = None
    moved_by: str | None = None
    begun_by: str | None = None

    def others(self, holder: Holder) -> list[Holder]:
        """All holders but this one."""
        return sorted(self.holders - {holder})

    def owned(self, *, take: bool) -> bool:
        """Whether its last holder may detach it: we attached it, or `Take` took it over and still stands."""
        return (self.taken_over and take) if self.preexisting else self.begun_by != NOBODY


class Snapshot(NamedTuple):
    """The ledger's pages of one resource and of some associations. `versions` belongs to the ledger."""

    record: ResourceRecord
    entries: Mapping[Association, AssociationRecord]
    versions: Mapping[str, str | None] = _NONE

    def entry(self, association: Association) -> AssociationRecord:
        """The page of an association; KeyError if nobody has read it, because its holders are unknown."""
        return self.entries[association]

    def with_entry(self, association: Association, entry: AssociationRecord) -> Snapshot:
        """A snapshot with another page for an association."""
        return self._replace(entries={**self.entries, association: entry})

    def held(self, holder: Holder, association: Association, hold: Hold) -> Snapshot:
        """A snapshot in which the holder holds it: both pages always change together."""
        entry = self.entry(association)
        record = self.record._replace(holds={**self.record.holds, association: hold})
        return self._replace(record=record).with_entry(
            association, entry._replace(holders=entry.holders | {holder})
        )

    def let_go(self, holder: Holder, association: Association) -> Snapshot:
        """A snapshot in which the holder has let go. The association's page goes with its last holder."""
        left = self.entry(association).holders - {holder}
        entry = (
            self.entry(association)._replace(holders=left, detaching=None) if left else AssociationRecord()
        )
        holds = {held: hold for held, hold in self.record.holds.items() if held != association}
        return self._replace(record=self.record._replace(holds=holds)).with_entry(association, entry)


def digest(physical_id: str) -> str:
    """Shorten a foreign id to a digest that tells it from others and reveals nothing."""
    return hashlib.sha256(physical_id.encode(errors="backslashreplace")).hexdigest()[:32]
