"""The ledger on DynamoDB: its pages and its races. The stories tell its calls and its refusals."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from boto3.dynamodb.types import TypeSerializer
from moto import mock_aws
from samtranslator.yaml_helper import yaml_parse

from emulators.dynamodb import DynamoDb
from tests.memory import Clock, within
from usage_plan_key import model
from usage_plan_key.errors import FailedError, OutOfTimeError
from usage_plan_key.ledger import DETACHED_KEPT, FORMAT, Table
from usage_plan_key.model import Association, AssociationRecord, Hold, Holder, Note, ResourceRecord, Snapshot
from usage_plan_key.retry import Deadline

DECLARED: dict[str, Any] = yaml_parse((Path(__file__).parents[1] / "template.yaml").read_text())["Resources"][
    "Ledger"
]["Properties"]
NAME, NOW = "usage-plan-key-ledger", 1_764_000_000
FREE, PRO = Association("alice", "free"), Association("alice", "pro")
A, B = (Holder("arn:aws:cloudformation:eu-west-1:123456789012:stack/one/0", name) for name in "AB")
PAGE_A, PAGE_FREE = f"holder#{A.stack_id}#A", "association#alice:free"
Rule = Callable[[Snapshot], Snapshot]

#: Pages of format 1.
ANSWER = {"success": True, "outcome": "ATTACHED", "key_name": "Alice", "at": NOW}
WAITS = {"deaths": 1, "refusals": 2, "paced": 3, "quota": 4, "until": 5, "ends_life": True}
HELD = {"request": "r1", "belief": "left", "left": 6, "marked_by": "r2", "key_name": "Alice"}
RESOURCE: dict[str, Any] = {
    "format": 1,
    "holds": {"alice:free": HELD},
    "notes": [
        {"id": "r1", "issued": 7, "answer": ANSWER},
        {"id": "r2", "issued": 8, "begun": False, **WAITS},
    ],
    "wants": "alice:pro",
    "foreign": ["d1"],
    "retained": "alice:free",
    "digest": "d2",
    "former": "d3",
}
ASSOCIATION: dict[str, Any] = {
    "format": 1,
    "origin": "taken",
    "holders": [{"stack": A.stack_id, "resource": "A"}],
    "attaching": ["r1"],
    "detaching": {"by": "r2", "until": 9},
    "away": True,
    "detached": 10,
}


@pytest.fixture
def db() -> DynamoDb:
    return DynamoDb()


@pytest.fixture
def table(db: DynamoDb) -> Table:
    return Table(db, NAME)  # type: ignore[arg-type]  # a fake


def deadline() -> Deadline:
    return within(60, Clock(NOW))


def hold(holder: Holder, association: Association = FREE) -> Rule:
    return lambda state: state.held(holder, association, Hold("r"))


def noted(id_: str) -> Rule:
    return lambda state: state.with_record(state.record._replace(notes=(Note(id_, 1),)))


def read(table: Table, *associations: Association) -> Snapshot:
    return table.change(A, associations, lambda state: state, deadline())[1]


def written(page: dict[str, Any]) -> dict[str, Any]:
    return {name: TypeSerializer().serialize(value) for name, value in page.items()}


def page(pk: str = PAGE_A, **fields: Any) -> dict[str, Any]:
    return written({"pk": pk, "version": "v", "format": FORMAT, "origin": "ours", **fields})


#: Pages that nobody can read, and that stay as they are.
DAMAGED = {
    "newer": page(format=FORMAT + 1),
    "no number of a format": page(format=None),
    "no version": page(version=None),
    "a version that is no text": page(version=7),
    "no belief": page(holds={FREE.id: {"request": "r", "belief": "x"}}),
    "a field more": page(holds={FREE.id: {"request": "r", "belief": "open", "new": 1}}),
    "a field less": page(holds={FREE.id: {"belief": "open"}}),
    "no association": page(holds={"alice": {"request": "r", "belief": "open"}}),
    "another type": page(holds="all"),
    "no answer": page(notes=[{"id": "r", "answer": 7}]),
    "notes that are a text": page(notes="r"),
    "foreign ids that are a text": page(foreign="former"),
    "holders that are a text": page(PAGE_FREE, holders="text"),
    "requests that are a text": page(PAGE_FREE, attaching="text"),
}


class TestPages:
    """The ledger reads each page as it wrote it."""

    def test_that_leave_something_out_have_nothing_there(self, table: Table, db: DynamoDb) -> None:
        db.items = {PAGE_A: page(), PAGE_FREE: page(PAGE_FREE)}
        assert read(table, FREE).record == ResourceRecord()
        assert read(table, FREE).entry(FREE) == AssociationRecord(origin=model.Origin.OURS)

    def test_of_format_1(self, table: Table, db: DynamoDb) -> None:
        """From 1.0 on every later version of the function reads these, as they stand here."""
        answered = model.Response(success=True, outcome="ATTACHED", key_name="Alice", at=NOW)
        record = ResourceRecord(
            holds={FREE: Hold("r1", model.Belief.LEFT, 6, "r2", "Alice")},
            notes=(Note("r1", 7, answer=answered), Note("r2", 8, True, None, False, 1, 2, 3, 4, 5)),
            wants=PRO,
            foreign=frozenset({"d1"}),
            retained=FREE,
            digest="d2",
            former="d3",
        )
        entry = AssociationRecord(
            frozenset({A}), model.Origin.TAKEN, frozenset({"r1"}), model.Mark("r2", 9), True, 10
        )
        pages = {PAGE_A: RESOURCE, PAGE_FREE: ASSOCIATION}
        db.items = {pk: written({"pk": pk, "version": f"v of {pk}", **page}) for pk, page in pages.items()}
        assert read(table, FREE) == Snapshot(record, {FREE: entry}, {pk: f"v of {pk}" for pk in pages})
        table.change(A, [FREE], lambda _: Snapshot(ResourceRecord(), {FREE: AssociationRecord()}), deadline())
        table.change(A, [FREE], lambda _: Snapshot(record, {FREE: entry}), deadline())
        versions = {pk: page["version"] for pk, page in db.items.items()}
        assert db.items == {
            pk: {**written({"pk": pk, **page}), "version": versions[pk]} for pk, page in pages.items()
        }

    @pytest.mark.parametrize("page", DAMAGED.values(), ids=DAMAGED)
    def test_that_cannot_be_read_is_refused(self, table: Table, db: DynamoDb, page: dict[str, Any]) -> None:
        pk = page["pk"]["S"]
        db.items = before = {pk: page}
        newer = page["format"] == {"N": str(FORMAT + 1)}
        says = "a newer version of the function has written it" if newer else "it is damaged"
        where = f"Could not read page {pk} of the ledger {NAME} in eu-west-1: {says}"
        for asked in ([FREE], []):  # At once, or when the rule asks for it.
            with pytest.raises(FailedError, match=re.escape(where)):
                table.change(A, asked, hold(A), deadline())
        assert db.items == before
        assert table.pages(deadline()).unread[0].startswith(f"{pk}: {where}")

    def test_go_or_expire_when_they_say_little(self, table: Table, db: DynamoDb) -> None:
        """A holder without holds stays for a day, and a detached association for an hour."""
        ttl = DECLARED["TimeToLiveSpecification"]["AttributeName"]
        assert DECLARED["TimeToLiveSpecification"]["Enabled"]
        seen = []
        for rule in (hold(A), lambda state: state.with_entry(FREE, detached=NOW).let_go(A, FREE), hold(A)):
            table.change(A, [FREE], rule, deadline())
            seen.append([db.items[pk].get(ttl, {}).get("N") for pk in (PAGE_A, PAGE_FREE)])
        assert seen == [[None, None], [str(NOW + model.REMEMBERED), str(NOW + DETACHED_KEPT)], [None, None]]
        table.change(A, [FREE], lambda state: state.with_entry(FREE, detached=0).let_go(A, FREE), deadline())
        assert set(db.items) == {PAGE_A}


class TestChanges:
    """A change is one transaction over all pages that it has read."""

    def test_pass_through_dynamodbs_own_rules(self) -> None:
        """In the table that the template declares, under botocore's model of the calls."""
        with mock_aws():
            dynamodb = boto3.client("dynamodb", region_name="eu-central-1")
            names = "BillingMode", "AttributeDefinitions", "KeySchema"
            dynamodb.create_table(TableName=NAME, **{name: DECLARED[name] for name in names})
            table = Table(dynamodb, NAME)
            seen = read(table, FREE)
            table.change(B, [FREE], noted("r"), deadline())
            table.change(B, [FREE], hold(B), deadline())
            _, held = table.change(A, [FREE], hold(A), deadline(), seen)
            assert read(table, FREE) == held
            assert held.entry(FREE).holders == {A, B}
            table.change(A, [FREE], lambda state: state.let_go(A, FREE), deadline(), held)
            table.change(B, [FREE], lambda state: state.let_go(B, FREE), deadline())
            assert table.pages(deadline()).records.keys() == {A, B}
            assert not table.associations(deadline())

    def test_others_keep_changing_it(self, table: Table) -> None:
        """It goes on until the time is up, and then says so."""
        turns = iter(range(10_000))

        def never(state: Snapshot) -> Snapshot:
            table.change(A, [], noted(f"r{next(turns)}"), deadline())
            return noted("x")(state)

        what = f"write the ledger {NAME} in eu-west-1: gave up after .* others keep changing"
        with pytest.raises(OutOfTimeError, match=what):
            table.change(A, [], never, deadline())
