"""From an event to a `Create`, an `Update` or a `Delete`, or to one error that names every fault of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from .association import Association, Holder, well_formed

PROPERTIES: Final = ("UsagePlanId", "KeyId", "KeyType", "OnExisting", "IncludeValue", "VerifyTrigger")
# CloudFormation hands these two over among the properties, though they are its own.
_LET_THROUGH: Final = ("ServiceToken", "ServiceTimeout")
# https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-cloudformation-customresource.html
LONGEST_SERVICE_TIMEOUT: Final = 3600


class EventError(ValueError):
    """Raised when an event lacks what an answer needs: there is nobody to answer, or nothing to answer with."""


class OnExisting(StrEnum):
    """What to do when the key is in the plan already and not through this stack."""

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
    """What every request carries.

    A dataclass makes its methods anew in every init, a millisecond for each class, so these have no more than is used. Without
    a repr, nothing that prints a request prints its URL.

    Attributes:
        id: CloudFormation's RequestId; the same when a request is delivered again.
        holder: The resource that it is about.
        physical_id: The event's id; None on a Create alone.
        order: Grows with the time at which the request was issued; None when its ResponseURL does not tell.
        response_url: Where the answer goes. It is pre-signed, hence a secret.
        service_timeout: How long CloudFormation waits for the answer, in seconds.
    """

    id: str
    holder: Holder
    physical_id: str | None
    order: int | None
    response_url: str
    service_timeout: int

    @property
    def answer_id(self) -> str:
        """The physical id of a FAILED answer: anything but the event's own is a replacement to CloudFormation."""
        raise NotImplementedError


@dataclass(kw_only=True, eq=False, repr=False)
class Wish(_Request):
    """What a Create and an Update have in common: a resource wants an association."""

    wanted: Association
    on_existing: OnExisting = OnExisting.FAIL
    include_value: bool = False

    @property
    def answer_id(self) -> str:
        """The event's id; a failed Create's is the one that it would have had."""
        return self.physical_id or self.wanted.id


@dataclass(kw_only=True, eq=False, repr=False)
class Create(Wish):
    """A new resource wants an association."""

    physical_id: None = None


@dataclass(kw_only=True, eq=False, repr=False)
class Update(Wish):
    """A resource wants an association, the one that it has or another; a rollback comes as an Update too."""

    physical_id: str

    @property
    def in_place(self) -> bool:
        """Whether the id names what is wanted. If not, the answer's new id makes this a replacement."""
        return Association.parse(self.physical_id) == self.wanted


@dataclass(kw_only=True, eq=False, repr=False)
class Delete(_Request):
    """A resource, or its old association after a replacement, goes. Its properties are never refused."""

    physical_id: str
    take: bool = False

    @property
    def answer_id(self) -> str:
        """The event's id."""
        return self.physical_id


@dataclass(kw_only=True, eq=False, repr=False)
class Invalid(_Request):
    """A Create (no `physical_id`) or an Update that is refused for what its properties say."""

    wanted: Association | None
    faults: tuple[str, ...]

    @property
    def answer_id(self) -> str:
        """The event's id; a failed Create's is the one that it would have had, else the logical id."""
        return self.physical_id or (self.wanted.id if self.wanted else self.holder.logical_id)


Request = Create | Update | Delete | Invalid


def parse(event: Mapping[str, Any]) -> Request:
    """Read a custom resource event.

    Raises:
        EventError: It lacks what an answer needs, or its ResponseURL is not https.
    """
    kind = event.get("RequestType")
    if kind not in ("Create", "Update", "Delete"):
        raise EventError(f"not a custom resource event: RequestType is {kind!r}")
    needed = ["RequestId", "StackId", "LogicalResourceId", "ResponseURL"]
    needed += ["PhysicalResourceId"] if kind != "Create" else []
    if lacking := [name for name in needed if not (isinstance(event.get(name), str) and event[name])]:
        raise EventError(f"the {kind} event lacks {', '.join(lacking)}")
    if urlsplit(event["ResponseURL"]).scheme != "https" or not urlsplit(event["ResponseURL"]).hostname:
        raise EventError("the ResponseURL is not https")

    given = event.get("ResourceProperties")
    properties: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    physical_id = None if kind == "Create" else event["PhysicalResourceId"]
    common: dict[str, Any] = {
        "id": event["RequestId"],
        "holder": Holder(event["StackId"], event["LogicalResourceId"]),
        "physical_id": physical_id,
        "order": _order(event["ResponseURL"], kind),
        "response_url": event["ResponseURL"],
        "service_timeout": _service_timeout(properties.get("ServiceTimeout")),
    }
    if kind == "Delete":
        return Delete(take=properties.get("OnExisting") == OnExisting.TAKE, **common)

    key_id, plan_id = properties.get("KeyId"), properties.get("UsagePlanId")
    wanted = Association(str(key_id), str(plan_id)) if well_formed(key_id) and well_formed(plan_id) else None
    faults = tuple(_faults(properties))
    if faults or wanted is None:
        return Invalid(wanted=wanted, faults=faults, **common)
    wish = Create if kind == "Create" else Update
    return wish(
        wanted=wanted,
        on_existing=OnExisting(properties.get("OnExisting", OnExisting.FAIL)),
        include_value=str(properties.get("IncludeValue")).lower() == "true",
        **common,
    )


def _order(response_url: str, kind: str) -> int | None:
    """Order requests by the second in which they were signed; within one, a resource's Delete comes after the rest.

    Captured events carry `X-Amz-Date` (`20261123T101112Z`), AWS's older sample `Expires` (epoch seconds).
    """
    query = parse_qs(urlsplit(response_url).query)
    try:
        if "X-Amz-Date" in query:
            signed = datetime.fromisoformat(query["X-Amz-Date"][0])
            if signed.tzinfo is None:
                return None  # A time of nobody knows where.
            seconds = int(signed.timestamp())
        else:
            seconds = int(query["Expires"][0])
    except (KeyError, ValueError):
        return None
    return seconds * 4 + {"Create": 1, "Update": 2, "Delete": 3}[kind]


def _service_timeout(value: object) -> int:
    """Read ServiceTimeout, 1 to 3,600 seconds; CloudFormation has checked it, so what is odd counts as absent."""
    if value is None:
        return LONGEST_SERVICE_TIMEOUT
    try:
        return min(max(int(str(value)), 1), LONGEST_SERVICE_TIMEOUT)
    except ValueError:
        return LONGEST_SERVICE_TIMEOUT


def _faults(properties: Mapping[str, Any]) -> list[str]:
    faults = []
    for name in sorted(set(properties) - set(PROPERTIES) - set(_LET_THROUGH)):
        nearest = _nearest(name)
        hint = f"did you mean {nearest}?" if nearest else f"known are {', '.join(PROPERTIES)}"
        faults.append(f"unknown property {name} ({hint})")
    for name in ("UsagePlanId", "KeyId"):
        value = properties.get(name)
        if value is None:
            faults.append(f"{name} is missing")
        elif value == "":
            faults.append(f"{name} is empty")
        elif not well_formed(value):
            # Not shown: where an id belongs, what is longer may be the key's value.
            size = f"{len(value)} characters" if isinstance(value, str) else "not a string"
            faults.append(f"{name} is malformed ({size}): it takes an id, 6 to 10 letters and digits, not a name or value")
    for name, allowed in _CHOICES.items():
        value = properties.get(name, allowed[0])
        # A direct invocation may hand in real booleans, CloudFormation turns them into these strings.
        if (str(value).lower() if isinstance(value, bool) else value) not in allowed:
            faults.append(f"{name} is {_shown(value)}, not {' or '.join(allowed)}")
    return faults


def _nearest(name: str) -> str | None:
    import difflib  # noqa: PLC0415  # where nothing is wrong it is not needed

    known = {each.lower(): each for each in PROPERTIES}
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return known[close[0]] if close else None


def _shown(value: object) -> str:
    """Show a refused value, shortened: somebody may have pasted something long."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:56]}…"
