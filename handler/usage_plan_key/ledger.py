"""The holders of every association, in one DynamoDB table; nothing else talks to it.

Each change is one transaction over all pages that it read, on condition that none has changed since. So the
rules stay pure functions from pages to pages, and two requests at once end as if one came after the other.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from botocore.exceptions import BotoCoreError, ClientError

from .errors import FailedError
from .model import (
    NOBODY,
    REMEMBERED,
    Association,
    AssociationRecord,
    Hold,
    Holder,
    ResourceRecord,
    Response,
    Snapshot,
    digest,
)
from .request import Request
from .retry import Again, Deadline, readable, retry, transient

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

Rule = Callable[[Snapshot], Snapshot]

#: The shape of a page; each page holds its own, and one without has shape 1. The function reads older shapes
#: and refuses newer ones.
SHAPE: Final = 2
#: Seconds for which a mark `detaching` without `until` holds: no function runs longer.
TRUSTED: Final = 15 * 60

#: Associations that one change takes at most, beside their holder and one more: DynamoDB takes 100 items.
#: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/transaction-apis.html
MOST_AT_ONCE: Final = 98


def at_once(associations: Iterable[Association]) -> Iterator[list[Association]]:
    """Divide associations into parts that one change takes."""
    every = list(associations)
    return (every[begin : begin + MOST_AT_ONCE] for begin in range(0, len(every), MOST_AT_ONCE))


class Ledger(Protocol):
    """The keeper of the pages."""

    def change(
        self,
        holder: Holder,
        associations: Iterable[Association],
        rule: Rule,
        deadline: Deadline,
        seen: Snapshot | None = None,
    ) -> Snapshot:
        """Read the pages of a holder and of associations, apply a rule to them, and write what it changed.

        The rule may run again on newer pages. If it raises, the error passes through, and the ledger writes
        nothing.

        Args:
            holder: The owner of the first page.
            associations: The owners of the other pages.
            rule: Makes the new pages.
            deadline: The end of all attempts.
            seen: The result of an earlier change of the same holder. It saves the reading if the rule changes
                it, because the write's conditions show whether it still holds. If the rule changes nothing or
                raises, the ledger reads all pages afresh.

        Raises:
            FailedError: DynamoDB refuses, or a page is unreadable.
        """


class Pages(NamedTuple):
    """All pages, read one after the other, and a sentence about each unreadable one."""

    records: dict[Holder, ResourceRecord]
    entries: dict[Association, AssociationRecord]
    unread: list[str]


class StatelessLedger:
    """Without a table (sam local, a sample event), the resource holds the association that its id names."""

    def __init__(self, request: Request) -> None:
        self._state = Snapshot(ResourceRecord(), {})
        if (named := request.identified) is not None:
            self._state = Snapshot(ResourceRecord(), {named: AssociationRecord()}).held(
                request.holder, named, Hold(request.id)
            )

    def change(
        self,
        holder: Holder,
        associations: Iterable[Association],
        rule: Rule,
        deadline: Deadline,
        seen: Snapshot | None = None,
    ) -> Snapshot:
        """See `Ledger`."""
        entries = dict.fromkeys(associations, AssociationRecord()) | dict(self._state.entries)
        self._state = rule(self._state._replace(entries=entries))
        return self._state


class Table:
    """The table that template.yaml declares: partition key `pk`, TTL attribute `expires`.

    Pages are `holder#STACK#RESOURCE` and `association#KEY:PLAN`; `version` changes with every write.
    """

    def __init__(self, client: DynamoDBClient, name: str) -> None:
        """Take a client whose own retries are off: there is one policy."""
        self._client = client
        self._name = name

    def change(
        self,
        holder: Holder,
        associations: Iterable[Association],
        rule: Rule,
        deadline: Deadline,
        seen: Snapshot | None = None,
    ) -> Snapshot:
        """See `Ledger`."""
        wanted = list(dict.fromkeys(associations))
        before = seen if seen is not None and seen.entries.keys() >= set(wanted) else None
        attempt = 0
        while True:
            fresh = before is None
            state = self._read(holder, wanted, deadline) if before is None else before
            before = None
            try:
                after = rule(state)
            except Exception:
                if fresh:
                    raise
                continue
            pages = self._changed(holder, state, after, int(deadline.clock.time()))
            if not pages:
                if fresh:
                    return after
                continue
            if (versions := self._write(pages, state.versions, deadline)) is not None:
                return after._replace(versions=versions)
            attempt += 1
            deadline.pause(attempt, self._what("write"), "others keep changing the same pages")

    def associations(self, deadline: Deadline) -> set[Association]:
        """Name all held associations, for the watch.

        Raises:
            FailedError: DynamoDB refuses.
        """
        named = self._scan(deadline, ProjectionExpression="pk")
        found = (Association.parse(page["pk"].removeprefix("association#")) for page in named)
        return {association for association in found if association}

    def pages(self, deadline: Deadline) -> Pages:
        """Read all pages, for the watch.

        Raises:
            FailedError: DynamoDB refuses.
        """
        pages = Pages({}, {}, [])
        for page in self._scan(deadline):
            kind, _, key = page["pk"].partition("#")
            try:
                if kind == "holder":
                    pages.records[Holder(*key.rsplit("#", 1))] = self._understood(page["pk"], page, _record)
                else:
                    pages.entries[_association(key)] = self._understood(page["pk"], page, _entry)
            except (FailedError, TypeError, ValueError) as error:
                pages.unread.append(f"{page['pk']}: {error}")
        return pages

    def _scan(self, deadline: Deadline, **more: Any) -> Iterator[dict[str, Any]]:
        """Read the table, 1 MB a call."""
        # https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_Scan.html
        read = TypeDeserializer().deserialize
        while True:
            call = partial(self._client.scan, TableName=self._name, ConsistentRead=True, **more)
            reply = self._persist(call, "read", deadline, lambda reply: "Items" in reply)
            yield from ({name: read(value) for name, value in item.items()} for item in reply["Items"])
            if not (last := reply.get("LastEvaluatedKey")):
                return
            more["ExclusiveStartKey"] = last

    def _changed(self, holder: Holder, before: Snapshot, after: Snapshot, now: int) -> list[dict[str, Any]]:
        pages = [_record_page(holder, after.record, now)] if after.record != before.record else []
        entries = after.entries.items()
        return pages + [_entry_page(key, entry) for key, entry in entries if entry != before.entry(key)]

    def _read(self, holder: Holder, associations: list[Association], deadline: Deadline) -> Snapshot:
        pks = [_pk(holder), *map(_pk, associations)]
        gets = [{"Get": {"TableName": self._name, "Key": {"pk": {"S": pk}}}} for pk in pks]
        call = partial(self._client.transact_get_items, TransactItems=gets)  # type: ignore[arg-type]  # a plain dict
        reply = self._persist(
            call, "read", deadline, lambda reply: len(reply.get("Responses", [])) == len(pks)
        )
        read = TypeDeserializer().deserialize
        # Where there is no page, the reference has null, and an empty object is what comes. A page that null
        # hides fails the write's condition.
        # https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TransactGetItems.html
        found = [(response or {}).get("Item", {}) for response in reply["Responses"]]
        pages = [{name: read(value) for name, value in item.items()} for item in found]
        versions = {pk: page.get("version") for pk, page in zip(pks, pages, strict=True)}
        record, *entries = (
            self._understood(pk, page, _entry if number else _record)
            for number, (pk, page) in enumerate(zip(pks, pages, strict=True))
        )
        return Snapshot(record, dict(zip(associations, entries, strict=True)), versions)

    def _understood(self, pk: str, page: Mapping[str, Any], read: Callable[[Mapping[str, Any]], Any]) -> Any:
        """Read a page.

        Raises:
            FailedError: A newer version of the function has written it, or it is damaged. A guess could
                detach a live customer.
        """
        where = f"Could not read page {pk} of the ledger {self._name} in {self._client.meta.region_name}"
        try:
            if page.get("shape", 1) <= SHAPE:
                if page and not isinstance(page["version"], str):
                    raise TypeError("version")  # Nobody could ever write this page again.
                return read(page)
        except Exception as error:
            raise FailedError(
                f"{where}: it is damaged ({type(error).__name__}). Mend it by hand, or restore the table to "
                "an earlier time"
            ) from error
        raise FailedError(
            f"{where}: a newer version of the function has written it. Deploy that version again"
        )

    def _write(
        self, pages: list[dict[str, Any]], versions: Mapping[str, str | None], deadline: Deadline
    ) -> Mapping[str, str | None] | None:
        """Write pages in one transaction; None if a page has changed since. A page without content goes."""
        written = {page["pk"]: uuid.uuid4().hex if len(page) > 1 else None for page in pages}
        puts = [self._put(page, versions[page["pk"]], written[page["pk"]]) for page in pages]
        puts += [self._check(pk, version) for pk, version in versions.items() if pk not in written]
        # This token lets DynamoDB recognise a repeated attempt after a lost reply.
        call = partial(
            self._client.transact_write_items,
            TransactItems=puts,  # type: ignore[arg-type]  # a plain dict
            ClientRequestToken=str(uuid.uuid4()),
        )
        try:
            self._persist(call, "write", deadline)
        except _ChangedError:
            return None
        return {**versions, **written}

    def _condition(self, version: str | None) -> dict[str, Any]:
        if version is None:
            return {"TableName": self._name, "ConditionExpression": "attribute_not_exists(pk)"}
        values = {":version": {"S": version}}
        return {
            "TableName": self._name,
            "ConditionExpression": "version = :version",
            "ExpressionAttributeValues": values,
        }

    def _check(self, pk: str, version: str | None) -> dict[str, Any]:
        return {"ConditionCheck": {**self._condition(version), "Key": {"pk": {"S": pk}}}}

    def _put(self, page: dict[str, Any], version: str | None, written: str | None) -> dict[str, Any]:
        condition = self._condition(version)
        if written is None:
            return {"Delete": {**condition, "Key": {"pk": {"S": page["pk"]}}}}
        write = TypeSerializer().serialize
        return {
            "Put": {
                **condition,
                "Item": {name: write(value) for name, value in {**page, "version": written}.items()},
            }
        }

    def _what(self, verb: str) -> str:
        return f"Could not {verb} the ledger {self._name} in {self._client.meta.region_name}"

    def _persist(
        self,
        call: Callable[[], Any],
        verb: str,
        deadline: Deadline,
        is_whole: Callable[[Any], bool] = lambda _: True,
    ) -> Any:
        what, asked = self._what(verb), readable(call, "DynamoDB", is_whole)
        try:
            return retry(asked, what, deadline, partial(_transient, reading=verb == "read"))
        except (ClientError, BotoCoreError) as error:
            raise FailedError(
                f"{what}: {error}. Check that the table is there and that the role may use it"
            ) from error


class _ChangedError(Exception):
    """Raised when a page has changed since it was read."""


_PASSING: Final = {"None", "TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"}


def _transient(error: Exception, *, reading: bool) -> Again | None:
    """Read DynamoDB's errors: most come with 400, and only the code tells those apart.

    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Programming.Errors.html
    """
    if not isinstance(error, ClientError):
        return transient(error)
    code = error.response["Error"]["Code"]
    if code == "TransactionCanceledException":
        reasons = {reason.get("Code") for reason in error.response.get("CancellationReasons", [])}
        if not reading and "ConditionalCheckFailed" in reasons:
            raise _ChangedError from error
        return Again() if reasons <= _PASSING else None
    passing = ("Throttling", "RequestLimitExceeded", "ProvisionedThroughputExceeded", "TransactionInProgress")
    return Again() if code.startswith(passing) else transient(error)


def _pk(key: Holder | Association) -> str:
    return (
        f"association#{key.id}" if isinstance(key, Association) else f"holder#{key.stack_id}#{key.logical_id}"
    )


def _some(page: dict[str, Any]) -> dict[str, Any]:
    """Leave out empty fields: absent and empty mean the same, and a shorter page is easier to read."""
    return {name: value for name, value in page.items() if value not in (None, "", 0, False, {}, [])}


def _record_page(holder: Holder, record: ResourceRecord, now: int) -> dict[str, Any]:
    return {"pk": _pk(holder), "shape": SHAPE} | _some(
        {
            "holds": {
                a.id: {"request": hold.request} | _some(hold._asdict()) for a, hold in record.holds.items()
            },
            "issued": record.issued,
            "arrived": [*record.arrived],
            "closed": record.closed,
            "wants": record.wants and record.wants.id,
            "foreign": sorted(record.foreign),
            "spared": record.retained and record.retained.id,
            "answers": {
                id_: _some(answer._replace(value=None)._asdict()) for id_, answer in record.answers.items()
            },
            "digest": record.digest,
            "begun": record.begun,
            "died": record.died,
            "deaths": record.deaths,
            # A holder without holds stays for a day, because of its fence.
            "expires": None if record.holds else now + REMEMBERED,
        }
    )


def _association(id_: str) -> Association:
    found = Association.parse(id_)
    if found is None:
        raise ValueError(id_)
    return found


def _list(value: object) -> list[str]:
    if not isinstance(value, list):
        raise TypeError(type(value).__name__)
    return value


def _record(page: Mapping[str, Any]) -> ResourceRecord:
    holds = {
        _association(id_): Hold(**{**hold, "left": int(hold.get("left", 0))})
        for id_, hold in page.get("holds", {}).items()
    }
    answers = {id_: {"success": False, "id": "", **answer} for id_, answer in page.get("answers", {}).items()}
    return ResourceRecord(
        holds=holds,
        # Pages without a shape hold the second and a rank within it in one number, and one RequestId.
        issued=int(page.get("issued", int(page.get("order", 0)) // 4)),
        arrived=tuple(_list(page.get("arrived", [page["newest"]] if page.get("newest") else []))),
        closed=page.get("closed", False),
        wants=Association.parse(page.get("wants", "")),
        foreign=frozenset(id_ if "shape" in page else digest(id_) for id_ in _list(page.get("foreign", []))),
        retained=Association.parse(page.get("spared", "")),
        answers={
            id_: Response(**{**answer, "at": int(answer.get("at", 0))}) for id_, answer in answers.items()
        },
        digest=page.get("digest", ""),
        begun=page.get("begun", ""),
        died=page.get("died", ""),
        deaths=int(page.get("deaths", 0)),
    )


def _entry_page(association: Association, entry: AssociationRecord) -> dict[str, Any]:
    if not entry.holders:
        return {"pk": _pk(association)}
    state = "wanted" if entry.begun_by == NOBODY else "attaching" if entry.begun_by else "attached"
    return {"pk": _pk(association), "shape": SHAPE, "state": state} | _some(
        {
            "holders": [
                {"stack": holder.stack_id, "resource": holder.logical_id} for holder in sorted(entry.holders)
            ],
            "before": entry.preexisting,
            "taken": entry.taken_over,
            # A version without `until` trusts a mark for TRUSTED seconds.
            "detaching": entry.detaching and entry.detaching - TRUSTED,
            "until": entry.detaching,
            "moved": entry.moved_by,
            "begun_by": entry.begun_by,
        }
    )


def _entry(page: Mapping[str, Any]) -> AssociationRecord:
    return AssociationRecord(
        holders=frozenset(Holder(holder["stack"], holder["resource"]) for holder in page.get("holders", [])),
        preexisting=page.get("before", False),
        taken_over=page.get("taken", False),
        detaching=int(page.get("until", page["detaching"] + TRUSTED)) if "detaching" in page else None,
        moved_by=page.get("moved"),
        begun_by=NOBODY if page.get("state") == "wanted" else page.get("begun_by"),
    )
