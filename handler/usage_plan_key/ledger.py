"""The holders of every association, in one DynamoDB table; nothing else talks to it.

Each change is one transaction over all pages that it read, on condition that none has changed since. So the
rules stay pure functions from pages to pages, and two requests at once end as if one came after the other.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar

from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from botocore.exceptions import BotoCoreError, ClientError

from .errors import Again, FailedError, UnreadError
from .model import (
    REMEMBERED,
    Association,
    AssociationRecord,
    Belief,
    Hold,
    Holder,
    Mark,
    Note,
    Origin,
    ResourceRecord,
    Response,
    Snapshot,
)
from .redaction import shown
from .request import Request
from .retry import BEFORE_SHORT_CALL, Deadline, readable, retry, transient

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


class HasPages(Protocol):
    """What a rule makes: the new pages, and whatever else it has to say."""

    @property
    def pages(self) -> Snapshot:
        """The pages."""


T = TypeVar("T", bound=HasPages)
U = TypeVar("U")
Rule = Callable[[Snapshot], T]

#: The format of a page; each page holds its own. The first released function has 1, reads none but its own
#: and older ones, and leaves newer ones alone.
FORMAT: Final = 1
#: Pages that a transaction takes at most.
#: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/transaction-apis.html
MOST_PAGES: Final = 100
#: Seconds after which DynamoDB may drop the page of an association without holders.
DETACHED_KEPT: Final = 60 * 60
#: Seconds that a call to the ledger needs when it begins.
NEEDS: Final = BEFORE_SHORT_CALL


def at_once(these: Iterable[U]) -> Iterator[list[U]]:
    """Divide the owners of pages into parts that one transaction takes, with one page more."""
    every, most = list(these), MOST_PAGES - 1
    return (every[begin : begin + most] for begin in range(0, len(every), most))


class Pages(NamedTuple):
    """All pages, read one after the other, and a sentence about each unreadable one."""

    records: dict[Holder, ResourceRecord]
    entries: dict[Association, AssociationRecord]
    unread: list[str]


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
        rule: Rule[T],
        deadline: Deadline,
        seen: Snapshot | None = None,
    ) -> tuple[T, Snapshot]:
        """Read the pages of a holder and of associations, apply a rule to them, and write what it changed.

        The rule may run again on newer pages, and with further ones that it asks for. If it raises, the error
        passes through, and the ledger writes nothing. If it changes no page, the ledger writes nothing.

        Args:
            holder: The owner of the first page.
            associations: The owners of the other pages.
            rule: Makes the new pages.
            deadline: The end of all attempts.
            seen: Pages that were read or written before. They save the reading: the write is on condition
                that each of them still stands.

        Returns:
            What the rule has made, and the pages as written.

        Raises:
            FailedError: DynamoDB refuses, or a page is unreadable. A write may have been carried out.
        """
        wanted = list(dict.fromkeys(associations))
        state = seen if seen is not None and len(seen.versions) <= MOST_PAGES // 2 else None
        # Pages that were read with a whole batch's may be old, without any contention.
        attempt = 0 if state is None else -1
        while True:
            if state is None:
                state = self.read([(holder, wanted)], deadline)[0]
            try:
                made = rule(state)
            except UnreadError as unread:
                wanted = [*wanted, unread.args[0]]
                state = self._with_page(state, unread.args[0], deadline)
                continue
            pages = self._changed(holder, state, made.pages, int(deadline.clock.time()))
            if not pages:
                return made, made.pages
            if (versions := self._write(pages, state.versions, deadline)) is not None:
                return made, made.pages._replace(versions=versions)
            state = None
            attempt += 1
            if attempt:
                deadline.pause(attempt, self._what("write"), "others keep changing the same pages", NEEDS)

    def read(self, wanted: Sequence[tuple[Holder, list[Association]]], deadline: Deadline) -> list[Snapshot]:
        """Read the pages of several resources in one call; see `change`.

        Raises:
            FailedError: DynamoDB refuses, or a page is unreadable.
        """
        pks = dict.fromkeys(pk for holder, held in wanted for pk in (_pk(holder), *map(_pk, held)))
        pages: dict[str, Mapping[str, Any]] = {}
        for part in at_once(pks):
            pages |= self._get(part, deadline)
        return [
            Snapshot(
                self._understood(pages[_pk(holder)], _pk(holder), _record),
                {one: self._understood(pages[_pk(one)], _pk(one), _entry) for one in held},
                {pk: pages[pk].get("version") for pk in (_pk(holder), *map(_pk, held))},
            )
            for holder, held in wanted
        ]

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
                    pages.records[Holder(*key.rsplit("#", 1))] = self._understood(page, page["pk"], _record)
                else:
                    pages.entries[_association(key)] = self._understood(page, page["pk"], _entry)
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
        return pages + [_entry_page(key, entry, now) for key, entry in entries if entry != before.entry(key)]

    def _with_page(self, state: Snapshot, association: Association, deadline: Deadline) -> Snapshot:
        """Read one more page. The next write checks all of them, so they need not be of one moment."""
        pk = _pk(association)
        page = self._get([pk], deadline)[pk]
        entries = {**state.entries, association: self._understood(page, pk, _entry)}
        return state._replace(entries=entries, versions={**state.versions, pk: page.get("version")})

    def _get(self, pks: Sequence[str], deadline: Deadline) -> dict[str, Mapping[str, Any]]:
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
        return dict(zip(pks, pages, strict=True))

    def _understood(self, page: Mapping[str, Any], pk: str, read: Callable[[Mapping[str, Any]], U]) -> U:
        """Read a page.

        Raises:
            FailedError: A newer version of the function has written it, or it is damaged. A guess could
                detach a live customer.
        """
        reading = f"read page {pk} of"
        try:
            if not page or page["format"] <= FORMAT:
                if page and not isinstance(page["version"], str):
                    raise TypeError  # Nobody could ever write this page again.
                return read(page)
        except Exception as error:
            raise FailedError(
                f"{self._what(reading)}: it is damaged ({type(error).__name__}). Mend it by hand, or restore "
                "the table to an earlier time"
            ) from error
        raise FailedError(
            f"{self._what(reading)}: a newer version of the function has written it, so this one changes "
            "nothing. Deploy that version again"
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
        judge = partial(_transient, reading=verb == "read")
        try:
            return retry(asked, what, deadline, judge, NEEDS)
        except (ClientError, BotoCoreError) as error:
            raise FailedError(
                f"{what}: {shown(error)}. Check that the table is there and that the role may use it"
            ) from error


class StatelessLedger(Table):
    """Without a table (sam local, a sample event), the resource holds the association that its id names."""

    def __init__(self, request: Request) -> None:
        super().__init__(None, "")  # type: ignore[arg-type]  # It calls nobody.
        self._pages: dict[str, dict[str, Any]] = {}
        if (named := request.identified) is not None:
            ours = AssociationRecord(frozenset({request.holder}), Origin.OURS)
            # An earlier request attached it, so it is known to CloudFormation.
            record = ResourceRecord({named: Hold("", Belief.KNOWN)})
            self._keep([_record_page(request.holder, record, 0), _entry_page(named, ours, 0)])

    def _keep(self, pages: list[dict[str, Any]]) -> None:
        # A page without content goes, as from the table.
        self._pages |= {page["pk"]: page | {"version": ""} if len(page) > 1 else {} for page in pages}

    def _get(self, pks: Sequence[str], deadline: Deadline) -> dict[str, Mapping[str, Any]]:
        return {pk: self._pages.get(pk, {}) for pk in pks}

    def _write(
        self, pages: list[dict[str, Any]], versions: Mapping[str, str | None], deadline: Deadline
    ) -> Mapping[str, str | None]:
        self._keep(pages)
        return versions


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
    return {"pk": _pk(holder), "format": FORMAT} | _some(
        {
            "holds": {
                held.id: {"request": hold.request} | _some(hold._asdict())
                for held, hold in record.holds.items()
            },
            "notes": [_note_page(note) for note in record.notes],
            "wants": record.wants and record.wants.id,
            "foreign": sorted(record.foreign),
            "retained": record.retained and record.retained.id,
            "digest": record.digest,
            "former": record.former,
            # A holder without holds stays for a day, because of its fence.
            "expires": None if record.holds else now + REMEMBERED,
        }
    )


def _note_page(note: Note) -> dict[str, Any]:
    answer = note.answer and _some(note.answer._replace(value=None)._asdict())
    # That a function has given it back is not the same as that none has begun it.
    begun = {} if note.begun is None else {"begun": note.begun}
    return _some({**note._asdict(), "answer": answer}) | begun


def _association(id_: str) -> Association:
    found = Association.parse(id_)
    if found is None:
        raise ValueError(id_)
    return found


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _record(page: Mapping[str, Any]) -> ResourceRecord:
    return ResourceRecord(
        holds={_association(id_): _hold(hold) for id_, hold in page.get("holds", {}).items()},
        notes=tuple(_note(note) for note in _list(page.get("notes", []))),
        wants=Association.parse(page.get("wants", "")),
        foreign=frozenset(_list(page.get("foreign", []))),
        retained=Association.parse(page.get("retained", "")),
        digest=page.get("digest", ""),
        former=page.get("former", ""),
    )


def _hold(page: Mapping[str, Any]) -> Hold:
    return Hold(**{**page, "belief": Belief(page["belief"]), "left": int(page.get("left", 0))})


def _note(page: Mapping[str, Any]) -> Note:
    counts = ("issued", "deaths", "refusals", "paced", "quota", "until")
    numbers = {name: int(page.get(name, 0)) for name in counts}
    answer = page.get("answer")
    given = answer and Response(**{"success": False, **answer, "at": int(answer.get("at", 0))})
    return Note(**{**page, **numbers, "answer": given})


def _mark(page: Mapping[str, Any]) -> Mark:
    return Mark(page["by"], int(page["until"]))


def _entry_page(association: Association, entry: AssociationRecord, now: int) -> dict[str, Any]:
    if not entry.holders and not entry.detached:
        return {"pk": _pk(association)}
    holders = [{"stack": holder.stack_id, "resource": holder.logical_id} for holder in sorted(entry.holders)]
    return {"pk": _pk(association), "format": FORMAT, "origin": str(entry.origin)} | _some(
        {
            "holders": holders,
            "attaching": sorted(entry.attaching),
            "detaching": entry.detaching and entry.detaching._asdict(),
            "away": entry.away,
            "detached": entry.detached,
            "expires": None if entry.holders else now + DETACHED_KEPT,
        }
    )


def _entry(page: Mapping[str, Any]) -> AssociationRecord:
    if not page:
        return AssociationRecord()
    return AssociationRecord(
        holders=frozenset(Holder(one["stack"], one["resource"]) for one in _list(page.get("holders", []))),
        origin=Origin(page["origin"]),
        attaching=frozenset(_list(page.get("attaching", []))),
        detaching=_mark(page["detaching"]) if "detaching" in page else None,
        away=page.get("away", False),
        detached=int(page.get("detached", 0)),
    )
