"""From an event to a `Create`, an `Update` or a `Delete`, or to one error that names every fault of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any, Final
from urllib.parse import parse_qs

from .errors import EventError
from .model import LONGEST_ID, Association, Holder, well_formed

PROPERTIES: Final = ("UsagePlanId", "KeyId", "KeyType", "OnExisting", "IncludeValue", "VerifyTrigger")
# CloudFormation passes these two of its own among the properties.
_LET_THROUGH: Final = ("ServiceToken", "ServiceTimeout")
# https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-cloudformation-customresource.html
LONGEST_SERVICE_TIMEOUT: Final = 3600
#: Seconds by which AWS's clock may differ from this machine's.
MOST_SKEW: Final = 60
#: Seconds for which CloudFormation signs a ResponseURL. Captured events say `X-Amz-Expires=7200`; AWS
#: documents no number.
SIGNED_FOR: Final = 7200
#: Seconds for which a repair may wait for its turn. The next watch finds a key that is still missing.
REPAIR_TIME: Final = 600
#: Fields of a foreign event that an error names.
MOST_FIELDS: Final = 5
#: CloudFormation issues no request after this epoch second, so a later one is no time.
LAST_SECOND: Final = 2**33


_ALWAYS: Final = ("RequestId", "StackId", "LogicalResourceId")
#: The fields that an answer needs, by the type of the request.
_NEEDED: Final = {
    "Create": (*_ALWAYS, "ResponseURL"),
    "Update": (*_ALWAYS, "ResponseURL", "PhysicalResourceId"),
    "Delete": (*_ALWAYS, "ResponseURL", "PhysicalResourceId"),
    "Repair": (*_ALWAYS, "PhysicalResourceId"),
}


class OnExisting(StrEnum):
    """The policy for a key that is in the plan already and not through this stack."""

    FAIL = "Fail"
    ADOPT = "Adopt"
    TAKE = "Take"


_CHOICES: Final = {
    "KeyType": ("API_KEY",),
    "OnExisting": tuple(str(choice) for choice in OnExisting),
    "IncludeValue": ("true", "false"),
}


@dataclass(kw_only=True, eq=False, repr=False)
class _Request:
    """The fields of every request.

    A dataclass builds its methods in every init, a millisecond for each class, so these build only the used
    ones. Without a repr, no printed request shows its URL.

    Attributes:
        id: CloudFormation's RequestId; a redelivery has the same one.
        holder: The resource.
        physical_id: The event's id; None on a Create only.
        issued: When CloudFormation issued the request, in epoch seconds; None if its ResponseURL does not
            tell.
        response_url: The answer's destination. It is pre-signed, so it is a secret.
        service_timeout: Seconds for which CloudFormation waits for the answer.
        wanted: The association that the properties name, if they do.
    """

    id: str
    holder: Holder
    physical_id: str | None
    issued: int | None
    response_url: str
    service_timeout: int
    wanted: Association | None = None

    def answer_id(self, *, success: bool) -> str:
        """The physical id of an answer: CloudFormation treats any id but the event's as a replacement.

        The event of a Create has none, so its FAILED answer has the id of a successful one, else the logical
        id.
        """
        if success and isinstance(self, Create | Update):
            return self.wanted.id
        return self.physical_id or (self.wanted.id if self.wanted else self.holder.logical_id)

    @cached_property
    def identified(self) -> Association | None:
        """The association that the physical id names; None on a Create and for a foreign id."""
        return Association.parse(self.physical_id) if self.physical_id else None

    @property
    def shown_id(self) -> str | None:
        """The physical id for logs and Reasons. It hides a former provider's: that may hold a key's value."""
        id_, name = self.physical_id, self.holder.logical_id
        # CloudFormation invents STACK-LOGICALID-RANDOM. A logical id of one letter is in many a key's value.
        if id_ is None or self.identified or id_ == name or f"-{name}-" in id_:
            return id_
        return f"a foreign id of {len(id_)} characters"

    def ends(self, arrived: float) -> float:
        """Tell when CloudFormation stops waiting for a request that arrived then; both in epoch seconds.

        CloudFormation counts from the issue time. The first minute of a request's age does not count, because
        the two clocks may differ by that much. So an answer can come a minute late, but the function gives up
        none a minute early.
        """
        age = arrived - self.issued if self.issued is not None else 0.0
        return arrived + self.service_timeout - max(0.0, age - MOST_SKEW)


@dataclass(kw_only=True, eq=False, repr=False)
class _Wish(_Request):
    """A resource wants an association.

    Attributes:
        on_existing: The policy if it is there already.
        include_value: Whether the answer carries the key's value.
        digest: The digest of all received properties.
    """

    wanted: Association
    on_existing: OnExisting = OnExisting.FAIL
    include_value: bool = False
    digest: str = ""


@dataclass(kw_only=True, eq=False, repr=False)
class Create(_Wish):
    """A new resource wants an association."""

    physical_id: None = None


@dataclass(kw_only=True, eq=False, repr=False)
class Update(_Wish):
    """A resource wants an association, its present one or another. A rollback comes as an Update too."""

    physical_id: str
    took: bool = False
    """Whether the old properties say `Take`."""

    @property
    def in_place(self) -> bool:
        """Whether the id names the wanted association. If not, the answer's new id starts a replacement."""
        return self.identified == self.wanted


class Repair(Update):
    """The watch found a held association missing and asks to attach it again, as an Update in place would.

    No stack has sent it, so it fences nothing, and nobody gets an answer. A dataclass would cost init a
    millisecond.
    """


@dataclass(kw_only=True, eq=False, repr=False)
class Delete(_Request):
    """A resource goes, or its old association after a replacement. The function refuses no property of it."""

    physical_id: str
    take: bool = False


@dataclass(kw_only=True, eq=False, repr=False)
class Invalid(_Request):
    """A Create (no `physical_id`) or an Update with unusable properties."""

    faults: tuple[str, ...]


CreateOrUpdate = Create | Update
Request = Create | Update | Delete | Invalid


def parse(event: object, *, repairs: bool = False) -> Request:
    """Read a custom resource event, whatever it holds beside the fields that an answer needs.

    `response.destination` has the only parser for ResponseURL's host.

    Args:
        event: The event.
        repairs: Whether it may be a repair of the watch's too.

    Raises:
        EventError: The event lacks a field that an answer needs.
    """
    kind = str(event.get("RequestType")) if isinstance(event, Mapping) else ""
    if not isinstance(event, Mapping) or kind not in _NEEDED or (kind == "Repair" and not repairs):
        raise EventError(_foreign(event))
    if lacking := [name for name in _NEEDED[kind] if not (isinstance(event.get(name), str) and event[name])]:
        raise EventError(f"the {kind} event lacks {', '.join(lacking)}")

    properties = _mapping(event.get("ResourceProperties"))
    url = "" if kind == "Repair" else event["ResponseURL"]
    common: dict[str, Any] = {
        "id": event["RequestId"],
        "holder": Holder(event["StackId"], event["LogicalResourceId"]),
        "physical_id": None if kind == "Create" else event["PhysicalResourceId"],
        "issued": _issued(url),
        "response_url": url,
        "service_timeout": _service_timeout(properties.get("ServiceTimeout")),
    }
    match kind:
        case "Repair":
            if (wanted := Association.parse(event["PhysicalResourceId"])) is None:
                raise EventError("the Repair event names no association")
            return Repair(**common | {"wanted": wanted, "service_timeout": REPAIR_TIME})
        case "Delete":
            return Delete(take=properties.get("OnExisting") == OnExisting.TAKE, **common)
    return _create_or_update(properties, _mapping(event.get("OldResourceProperties")), common)


def _create_or_update(
    properties: Mapping[str, Any], old: Mapping[str, Any], common: dict[str, Any]
) -> Create | Update | Invalid:
    key_id, plan_id = properties.get("KeyId"), properties.get("UsagePlanId")
    wanted = Association(str(key_id), str(plan_id)) if _is_id(key_id) and _is_id(plan_id) else None
    faults = tuple(_faults(properties))
    if faults or wanted is None:
        return Invalid(wanted=wanted, faults=faults, **common)
    wishes: dict[str, Any] = {
        "wanted": wanted,
        "on_existing": OnExisting(properties.get("OnExisting", OnExisting.FAIL)),
        "include_value": str(properties.get("IncludeValue")).lower() == "true",
        "digest": _digest(properties),
    }
    if common["physical_id"] is None:
        return Create(**wishes, **common)
    return Update(took=old.get("OnExisting") == OnExisting.TAKE, **wishes, **common)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def repair_event(id_: str, holder: Holder, association: Association) -> dict[str, str]:
    """Make the queue's event for a repair; `parse` reads it."""
    return {
        "RequestType": "Repair",
        "RequestId": id_,
        "StackId": holder.stack_id,
        "LogicalResourceId": holder.logical_id,
        "PhysicalResourceId": association.id,
    }


def _foreign(event: object) -> str:
    """Say that an event is none of CloudFormation's, without its values: they may be secrets."""
    if not isinstance(event, Mapping):
        why = f"this is {_kind(event)}"
    elif event.get("RequestType"):
        why = "RequestType is none of Create, Update and Delete"
    else:
        # A longer name may be a key's value.
        names = [name for name in map(str, event) if re.fullmatch(rf"[!-~]{{1,{LONGEST_ID}}}", name)]
        why = f"RequestType is missing; it has {', '.join(names[:MOST_FIELDS]) or 'no fields'}"
    return (
        f"not a CloudFormation custom resource event: {why}, and the function takes CloudFormation's Create, "
        "Update and Delete"
    )


def _issued(response_url: str) -> int | None:
    """Read when CloudFormation issued a request: it signed ResponseURL then.

    Captured events carry `X-Amz-Date` (`20261123T101112Z`). AWS's older sample carries `Expires` (epoch
    seconds).
    """
    try:
        query = parse_qs(response_url.partition("?")[2])
        if "X-Amz-Date" in query:
            signed = datetime.fromisoformat(query["X-Amz-Date"][0])
            if signed.tzinfo is None:
                return None  # Without a zone, it could be the time of any place.
            seconds = int(signed.timestamp())
        else:
            seconds = int(query["Expires"][0]) - SIGNED_FOR
    except (KeyError, ValueError):
        return None
    return seconds if 0 < seconds < LAST_SECOND else None


def _service_timeout(value: object) -> int:
    """Read ServiceTimeout, 1 to 3,600 seconds. CloudFormation checks it, so an odd value counts as absent."""
    try:
        seconds = int(str(value)) if isinstance(value, str | int) else LONGEST_SERVICE_TIMEOUT
    except ValueError:
        seconds = LONGEST_SERVICE_TIMEOUT
    return min(max(seconds, 1), LONGEST_SERVICE_TIMEOUT)


def _digest(properties: Mapping[str, Any]) -> str:
    try:
        return hashlib.sha256(json.dumps(properties, sort_keys=True).encode()).hexdigest()[:32]
    except (TypeError, ValueError, RecursionError):
        # Only a direct invocation can bring a value that JSON cannot hold. An empty digest equals no other.
        return ""


def _faults(properties: Mapping[Any, Any]) -> list[str]:
    faults = []
    for name in sorted(set(properties) - set(PROPERTIES) - set(_LET_THROUGH), key=_shown_name):
        nearest = _nearest(name)
        hint = f"did you mean {nearest}?" if nearest else f"known are {', '.join(PROPERTIES)}"
        faults.append(f"unknown property {_shown_name(name)} ({hint})")
    # Equal ids are no fault: AWS documents nowhere that a key's and a plan's id differ. If one is wrong, API
    # Gateway answers 404.
    for name in ("UsagePlanId", "KeyId"):
        value = properties.get(name)
        if value is None:
            faults.append(f"{name} is missing")
        elif not isinstance(value, str):
            each = f" ({_EACH})" if isinstance(value, list) else ""
            faults.append(f"{name} is malformed: it is {_kind(value)}, not a string{each}")
        elif not value.strip():
            faults.append(f"{name} is empty")
        elif value.strip().lower() in _MISSING:
            faults.append(
                f"{name} is {_shown(value)}, which looks like a missing value of your template tool"
            )
        elif not well_formed(value):
            faults.append(f"{name} is malformed: {' and '.join(_wrong(name, value))}")
    for name, allowed in _CHOICES.items():
        value = properties.get(name, allowed[0])
        # A direct invocation may bring real booleans; CloudFormation turns them into these strings.
        if (str(value).lower() if isinstance(value, bool) else value) not in allowed:
            faults.append(f"{name} is {_shown(value)}, not {' or '.join(allowed)}")
    return faults


#: What template tools write, in any case, where a value is missing: JavaScript, Python, Go, Ruby, JSON.
_MISSING: Final = frozenset(
    {"null", "none", "undefined", "nan", "nil", "false", "true", "[object object]", "<no value>", "{}", "[]"}
)
_EACH: Final = "a resource attaches one key to one plan; Fn::ForEach declares a resource for each"


def _is_id(value: object) -> bool:
    return well_formed(value) and str(value).lower() not in _MISSING


def _wrong(name: str, value: str) -> list[str]:
    """Name an id's faults and show none of it: it may be a key's value."""
    id_ = value.strip()
    # https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/dynamic-references-ssm-secure-strings.html
    unresolved = "{{resolve:ssm-secure:...}} does not work in custom resources, and ${...} needs Fn::Sub"
    is_value = (
        "a key made with GenerateDistinctId: false has its value as its id, and the function refuses it"
    )
    refused = f"; {is_value}" if name == "KeyId" else ""
    faults = (
        (
            re.search(r"\{\{resolve:|\$\{", id_),
            f"it has a reference that CloudFormation has not resolved ({unresolved})",
        ),
        (id_.startswith("arn:"), "it is an ARN (the id is the ARN's last part)"),
        (
            Association.parse(id_),
            f"it is a pair of a key's and a plan's id (as Ref and Id give it; take the attribute {name})",
        ),
        ("," in id_, f"it has a comma ({_EACH})"),
        (
            len(id_) > LONGEST_ID,
            f"it has {len(id_)} characters, like a key's value (an id has 6 to 10{refused})",
        ),
        (
            re.search(r"\s", id_),
            "it has white space in it (an id has 6 to 10 letters and digits, unlike a name)",
        ),
        (not well_formed(id_), "it has characters that no id has (an id has 6 to 10 letters and digits)"),
    )
    around = ["it has white space around it"] if id_ != value else []
    return around + [fault for is_so, fault in faults if is_so][:1]


#: Properties that are spelt quite unlike the ones that their users mean; in lower case.
_MEANT: Final = {
    "apikey": "KeyId",
    "apikeyid": "KeyId",
    "keyname": "KeyId",
    "plan": "UsagePlanId",
    "planid": "UsagePlanId",
    "value": "IncludeValue",
}


def _nearest(name: object) -> str | None:
    if not isinstance(name, str):
        return None
    import difflib  # noqa: PLC0415  # only a misspelt name needs it

    known = {each.lower(): each for each in PROPERTIES} | _MEANT
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return known[close[0]] if close else None


_KINDS: Final = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def _kind(value: object) -> str:
    """Name the kind of a value, not the value."""
    return _KINDS.get(type(value), type(value).__name__)


def _shown(value: object) -> str:
    """Show a refused value only if it is too short for a key's: somebody may have pasted one here."""
    if not isinstance(value, str):
        return _kind(value)
    return ascii(value) if len(value) <= LONGEST_ID else f"a string of {len(value)} characters"


def _shown_name(name: object) -> str:
    """Show a property's name; quote and shorten an odd or long one."""
    if not isinstance(name, str):
        return _kind(name)
    if re.fullmatch(r"[!-~]{1,40}", name):
        return name
    return f"{name[:40]!a}{'…' if name[40:] else ''}"
