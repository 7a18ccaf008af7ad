"""The nouns: an association, a holder of it, the ledger's pages about the two, and the response."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from enum import Enum, StrEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple

# API Gateway's own ids are 10 and 6 letters and digits. A key's *value* has at least 20 characters
# (https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-setup-api-keys.html), so a secret
# that was pasted where an id belongs is never taken for one, and never becomes a physical id.
LONGEST_ID: Final = 19
_ID = re.compile(rf"[A-Za-z0-9_-]{{1,{LONGEST_ID}}}")


def well_formed(value: object) -> bool:
    """Tell whether `value` can be the id of a key or a plan."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


class Association(NamedTuple):
    """One API key in one usage plan. API Gateway knows at most one such pair, so the two ids are its identity."""

    key_id: str
    plan_id: str

    @property
    def id(self) -> str:
        """The physical id, `<KeyId>:<UsagePlanId>`, as `Ref` gives it and as AWS::ApiGateway::UsagePlanKey has it."""
        return f"{self.key_id}:{self.plan_id}"

    @classmethod
    def parse(cls, physical_id: str) -> Association | None:
        """Read a physical id; None for a foreign one: CloudFormation's invention, or a former provider's."""
        key_id, colon, plan_id = physical_id.partition(":")
        return cls(key_id, plan_id) if colon and well_formed(key_id) and well_formed(plan_id) else None


class Holder(NamedTuple):
    """A resource of a stack, which can hold associations. A stack's ARN ends in a UUID: a namesake is another stack."""

    stack_id: str
    logical_id: str

    @property
    def stack_name(self) -> str:
        """The name inside `arn:PARTITION:cloudformation:REGION:ACCOUNT:stack/NAME/UUID`; the ARN itself if it has none."""
        parts = self.stack_id.split("/")
        return parts[1] if len(parts) > 1 else self.stack_id

    def __str__(self) -> str:
        return f"{self.logical_id} of stack {self.stack_name}"


#: Seconds for which given answers, and a holder that holds nothing, are remembered.
REMEMBERED: Final = 24 * 60 * 60
#: `AssociationRecord.begun_by` where no request has set about attaching.
NOBODY: Final = ""
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
    LOST = "LOST"


class Standing(Enum):
    """Who holds an association, seen from one resource."""

    NOBODY = "nobody"
    THIS = "this resource"
    SIBLING = "another resource of this stack"
    STRANGERS = "other stacks alone"


class Response(NamedTuple):
    """What CloudFormation is told.

    Attributes:
        at: When it was given, in epoch seconds.
        value: The key's value, where it was asked for. It is secret, and written down nowhere.
    """

    success: bool
    id: str
    reason: str = ""
    outcome: str = ""
    key_name: str = ""
    at: int = 0
    value: str | None = None

    def __repr__(self) -> str:
        """Show no value."""
        shown = (f"{name}={field!r}" for name, field in self._asdict().items() if name != "value")
        return f"Response({', '.join(shown)})"


class Hold(NamedTuple):
    """That a resource holds an association.

    Attributes:
        request: The RequestId that took hold of it.
        named: An event's id has named it since, or an earlier life of the resource left it: then it is
            CloudFormation's to delete or to retain, and nobody else's.
        left: When an Update that has gone on to another one was answered SUCCESS, in epoch seconds; 0 for
            none, and when a Delete for this one has come.
        failed: The request that took hold of it was answered FAILED, so CloudFormation has never believed
            that it is attached.
        key_name: As it was last answered.
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
        issued: When the newest request that has arrived was issued, in epoch seconds (0: none that says).
        arrived: The RequestIds of that second, as they arrived.
        closed: The newest one is a Delete with an id that CloudFormation has invented.
        wants: The association that it wants.
        foreign: Digests of the foreign ids that Updates have brought, a former provider's: one may hold a
            key's value.
        retained: What a Create wanted that was refused, while an earlier life of the resource held it.
        answers: The answers given, by RequestId.
        digest: Of the properties that were last answered SUCCESS.
        begun: The RequestId that is being served after it was received before; one that is found standing is
            a death.
        died: The RequestId whose deaths are counted.
        deaths: How many functions have died at it.
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
        """The RequestId of the newest request that has arrived; empty for none."""
        return self.arrived[-1] if self.arrived else ""


class AssociationRecord(NamedTuple):
    """An association's page in the ledger.

    Attributes:
        holders: The resources that hold it.
        preexisting: It was attached before any of them.
        taken_over: An Update with `Take` has made it theirs all the same.
        detaching: Its last holder has set about detaching it. Until when the function that does so can run,
            in epoch seconds: a mark that outlives it was left by a death.
        moved_by: The RequestId that detached it for a move; it stays held.
        begun_by: The request that has last set about attaching it; NOBODY; None where it is attached, and
            nobody asks since when.
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
        """Whether its last holder may detach it: it was attached by us, or it was taken and that still stands."""
        return (self.taken_over and take) if self.preexisting else self.begun_by != NOBODY


class Snapshot(NamedTuple):
    """What the ledger says of one resource and of the associations that are looked at. `versions` is for the ledger."""

    record: ResourceRecord
    entries: Mapping[Association, AssociationRecord]
    versions: Mapping[str, str | None] = _NONE

    def entry(self, association: Association) -> AssociationRecord:
        """The page of an association; a KeyError where it was not read, for then nothing is known of its holders."""
        return self.entries[association]

    def with_entry(self, association: Association, entry: AssociationRecord) -> Snapshot:
        """With another page for an association."""
        return self._replace(entries={**self.entries, association: entry})

    def held(self, holder: Holder, association: Association, hold: Hold) -> Snapshot:
        """With the association held: both pages always change together."""
        entry = self.entry(association)
        record = self.record._replace(holds={**self.record.holds, association: hold})
        return self._replace(record=record).with_entry(
            association, entry._replace(holders=entry.holders | {holder})
        )

    def let_go(self, holder: Holder, association: Association) -> Snapshot:
        """With the association let go. With its last holder all that is known of it goes."""
        left = self.entry(association).holders - {holder}
        entry = (
            self.entry(association)._replace(holders=left, detaching=None) if left else AssociationRecord()
        )
        holds = {held: hold for held, hold in self.record.holds.items() if held != association}
        return self._replace(record=self.record._replace(holds=holds)).with_entry(association, entry)


def digest(physical_id: str) -> str:
    """Shorten a foreign id to what tells it from others, and nothing else."""
    return hashlib.sha256(physical_id.encode(errors="backslashreplace")).hexdigest()[:32]
