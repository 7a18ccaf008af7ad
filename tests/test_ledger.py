"""The ledger on DynamoDB: its pages and its races. The stories tell its calls and its refusals."""

from __future__ import annotations

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
from tests.function import refusal
from tests.memory import Clock, within
from usage_plan_key.errors import FailedError, OutOfTimeError
from usage_plan_key.ledger import DETACHED_KEPT, FORMAT, Table
from usage_plan_key.model import (
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
from usage_plan_key.retry import BEFORE_SHORT_CALL, Deadline

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


def deadline(seconds: float = 60.0, clock: Clock | None = None) -> Deadline:
    return within(seconds, clock or Clock(NOW))


def hold(holder: Holder, association: Association = FREE) -> Rule:
    return lambda state: state.held(holder, association, Hold("r"))


def noted(id_: str) -> Rule:
    return lambda state: state.with_record(state.record._replace(notes=(Note(id_, 1),)))


def read(table: Table, *associations: Association) -> Snapshot:
    return table.change(A, associations, lambda state: state, deadline())[1]


def written(page: dict[str, Any]) -> dict[str, Any]:
    return {name: TypeSerializer().serialize(value) for name, value in page.items()}


def damaged(pk: str = PAGE_A, **fields: Any) -> dict[str, Any]:
    return written({"pk": pk, "version": "v", "format": FORMAT, "origin": "ours", **fields})


def holding(**hold: Any) -> dict[str, Any]:
    return damaged(holds={FREE.id: hold})


class TestPages:
    """The ledger reads each page as it wrote it."""

    def test_of_format_1(self, table: Table, db: DynamoDb) -> None:
        """From 1.0 on every later version of the function reads these, as they stand here."""
        answered = Response(success=True, outcome="ATTACHED", key_name="Alice", at=NOW)
        record = ResourceRecord(
            holds={FREE: Hold("r1", Belief.LEFT, 6, "r2", "Alice")},
            notes=(Note("r1", 7, answer=answered), Note("r2", 8, True, None, False, 1, 2, 3, 4, 5)),
            wants=PRO,
            foreign=frozenset({"d1"}),
            retained=FREE,
            digest="d2",
            former="d3",
        )
        entry = AssociationRecord(frozenset({A}), Origin.TAKEN, frozenset({"r1"}), Mark("r2", 9), True, 10)
        pages = {PAGE_A: RESOURCE, PAGE_FREE: ASSOCIATION}
        db.items = {pk: written({"pk": pk, "version": f"v of {pk}", **page}) for pk, page in pages.items()}
        assert read(table, FREE) == Snapshot(record, {FREE: entry}, {pk: f"v of {pk}" for pk in pages})
        table.change(A, [FREE], lambda _: Snapshot(ResourceRecord(), {FREE: AssociationRecord()}), deadline())
        table.change(A, [FREE], lambda _: Snapshot(record, {FREE: entry}), deadline())
        versions = {pk: page["version"] for pk, page in db.items.items()}
        assert db.items == {
            pk: {**written({"pk": pk, **page}), "version": versions[pk]} for pk, page in pages.items()
        }

    @pytest.mark.parametrize(
        "page",
        [
            pytest.param(damaged(format=FORMAT + 1), id="newer"),
            pytest.param(damaged(format=None), id="no number of a format"),
            pytest.param(damaged(version=None), id="no version"),
            pytest.param(damaged(version=7), id="a version that is no text"),
            pytest.param(holding(request="r", belief="x"), id="no belief"),
            pytest.param(holding(request="r", belief="open", new=1), id="a field more"),
            pytest.param(holding(belief="open"), id="a field less"),
            pytest.param(damaged(holds={"alice": {"request": "r", "belief": "open"}}), id="no association"),
            pytest.param(damaged(holds="all"), id="another type"),
            pytest.param(damaged(notes=[{"id": "r", "answer": 7}]), id="no answer"),
            pytest.param(damaged(notes="r"), id="notes that are a text"),
            pytest.param(damaged(foreign="former"), id="foreign ids that are a text"),
            pytest.param(damaged(PAGE_FREE, holders="text"), id="holders that are a text"),
            pytest.param(damaged(PAGE_FREE, attaching="text"), id="requests that are a text"),
        ],
    )
    def test_that_cannot_be_read_is_refused_and_left_as_it_is(
        self, table: Table, db: DynamoDb, page: dict[str, Any]
    ) -> None:
        pk = page["pk"]["S"]
        db.items = before = {pk: page}
        newer = page["format"] == {"N": str(FORMAT + 1)}
        says = "a newer version of the function has written it" if newer else "it is damaged"
        where = f"Could not read page {pk} of the ledger {NAME} in eu-west-1: {says}"
        with pytest.raises(FailedError, match=re.escape(where)):
            table.change(A, [FREE], hold(A), deadline())
        assert db.items == before
        assert table.pages(deadline()).unread[0].startswith(f"{pk}: {where}")

    def test_go_when_they_say_nothing_and_expire_when_they_say_little(
        self, table: Table, db: DynamoDb
    ) -> None:
        """A holder without holds stays for a day, and a detached association for an hour."""
        ttl = DECLARED["TimeToLiveSpecification"]["AttributeName"]
        assert DECLARED["TimeToLiveSpecification"]["Enabled"]
        seen = []
        for rule in (hold(A), lambda state: state.with_entry(FREE, detached=NOW).let_go(A, FREE), hold(A)):
            table.change(A, [FREE], rule, deadline())
            seen.append([db.items[pk].get(ttl, {}).get("N") for pk in (PAGE_A, PAGE_FREE)])
        assert seen == [[None, None], [str(NOW + REMEMBERED), str(NOW + DETACHED_KEPT)], [None, None]]
        table.change(A, [FREE], lambda state: state.with_entry(FREE, detached=0).let_go(A, FREE), deadline())
        assert set(db.items) == {PAGE_A}

    def test_all_of_them_come_1_mb_a_call(
        self, table: Table, db: DynamoDb, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first reply is damaged."""
        table.change(A, [FREE], hold(A), deadline())
        table.change(B, [FREE], hold(B), deadline())
        monkeypatch.setattr("emulators.dynamodb.MOST_SCANNED", 1)
        scan = db.scan
        replies: list[dict[str, Any]] = [{}]
        monkeypatch.setattr(db, "scan", lambda **named: replies.pop() if replies else scan(**named))
        found = table.pages(deadline())
        assert (set(found.records), found.unread) == ({A, B}, [])
        assert found.entries == {FREE: AssociationRecord(frozenset({A, B}))}
        assert table.associations(deadline()) == {FREE}


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

    def test_nothing_is_taken_for_seen_that_was_not(self, table: Table) -> None:
        _, seen = table.change(A, [FREE], hold(A), deadline())
        table.change(A, [PRO], hold(A, PRO), deadline(), seen)
        table.change(B, [FREE], hold(B), deadline())
        table.change(A, [FREE], noted("r"), deadline(), seen)
        assert read(table, FREE, PRO).entries == {
            FREE: AssociationRecord(frozenset({A, B})),
            PRO: AssociationRecord(frozenset({A})),
        }

    def test_the_last_attempt_comes_at_the_last_moment(
        self, table: Table, db: DynamoDb, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def throttled(**_: Any) -> None:
            raise refusal(400, "ThrottlingException")

        clock = Clock(NOW)
        monkeypatch.setattr(db, "transact_get_items", throttled)
        with pytest.raises(OutOfTimeError):
            table.change(A, [FREE], hold(A), deadline(BEFORE_SHORT_CALL + 20, clock))
        assert clock.now == NOW + 20
