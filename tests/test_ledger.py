"""The ledger on DynamoDB: its pages, its races and its errors."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from boto3.dynamodb.types import TypeSerializer
from botocore.exceptions import ReadTimeoutError
from moto import mock_aws
from samtranslator.yaml_helper import yaml_parse

from emulators.dynamodb import DynamoDb
from tests.function import cancelled, refusal
from tests.memory import Clock, within
from usage_plan_key.errors import FailedError, OutOfTimeError
from usage_plan_key.ledger import DETACHED_KEPT, FORMAT, MOST_PAGES, Table
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
DENIED = refusal(400, "AccessDeniedException", "no")
Rule = Callable[[Snapshot], Snapshot]


class Odd:
    """A DynamoDB that gives the next of an operation's `replies`, or raises it, in place of its own."""

    def __init__(self) -> None:
        self.db = DynamoDb()
        self.meta = self.db.meta
        self.replies: dict[str, list[Any]] = {}
        self.calls: list[str] = []
        self.asked: list[dict[str, Any]] = []

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def call(**named: Any) -> Any:
            self.calls.append(operation.removeprefix("transact_").removesuffix("_items"))
            self.asked.append(named)
            if not self.replies.get(self.calls[-1]):
                return getattr(self.db, operation)(**named)
            reply = self.replies[self.calls[-1]].pop(0)
            if isinstance(reply, Exception):
                raise reply
            return reply

        return call

    @property
    def sizes(self) -> list[int]:
        """The pages of each read."""
        return [len(one["TransactItems"]) for one in self.asked if "ClientRequestToken" not in one]


@pytest.fixture
def db() -> Odd:
    return Odd()


@pytest.fixture
def table(db: Odd) -> Table:
    return Table(db, NAME)  # type: ignore[arg-type]  # a fake


def deadline(seconds: float = 60.0, clock: Clock | None = None) -> Deadline:
    return within(seconds, clock or Clock(NOW))


def hold(holder: Holder, association: Association = FREE) -> Rule:
    return lambda state: state.held(holder, association, Hold("r"))


def noted(id_: str) -> Rule:
    return lambda state: state.with_record(state.record._replace(notes=(Note(id_, 1),)))


def read(table: Table, *associations: Association, of: Holder = A) -> Snapshot:
    return table.change(of, associations, lambda state: state, deadline())[1]


def written(page: dict[str, Any]) -> dict[str, Any]:
    return {name: TypeSerializer().serialize(value) for name, value in page.items()}


def damaged(pk: str = PAGE_A, **fields: Any) -> dict[str, Any]:
    return written({"pk": pk, "version": "v", "format": FORMAT, "origin": "ours", **fields})


class TestPages:
    """The ledger reads each page as it wrote it."""

    def test_of_format_1(self, table: Table, db: Odd) -> None:
        """From 1.0 on every later version of the function reads these, as they stand here."""
        answer = {"success": True, "id": "alice:free", "outcome": "ATTACHED", "key_name": "Alice", "at": NOW}
        waits = {"deaths": 1, "refusals": 2, "paced": 3, "quota": 4, "until": 5, "ends_life": True}
        held = {"request": "r1", "belief": "left", "left": 6, "marked_by": "r2", "key_name": "Alice"}
        resource: dict[str, Any] = {
            "pk": PAGE_A,
            "format": 1,
            "version": "v1",
            "holds": {"alice:free": held},
            "notes": [
                {"id": "r1", "issued": 7, "answer": answer},
                {"id": "r2", "issued": 8, "begun": False, **waits},
            ],
            "wants": "alice:pro",
            "foreign": ["d1"],
            "retained": "alice:free",
            "digest": "d2",
            "former": "d3",
        }
        association: dict[str, Any] = {
            "pk": PAGE_FREE,
            "format": 1,
            "version": "v2",
            "origin": "taken",
            "holders": [{"stack": A.stack_id, "resource": "A"}],
            "attaching": ["r1"],
            "detaching": {"by": "r2", "until": 9},
            "away": True,
            "detached": 10,
        }
        db.db.items = {page["pk"]: written(page) for page in (resource, association)}
        answered = Response(success=True, id=FREE.id, outcome="ATTACHED", key_name="Alice", at=NOW)
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
        assert read(table, FREE) == Snapshot(record, {FREE: entry}, {PAGE_A: "v1", PAGE_FREE: "v2"})

        def change(_: Snapshot) -> Snapshot:
            return Snapshot(record._replace(digest="d3"), {FREE: entry._replace(away=False)})

        table.change(A, [FREE], change, deadline())
        versions = {pk: page.pop("version") for pk, page in copy.deepcopy(db.db.items).items()}
        del association["away"]
        expected = {PAGE_A: {**resource, "digest": "d3"}, PAGE_FREE: association}
        assert db.db.items == {
            pk: {**written(page), "version": versions[pk]} for pk, page in expected.items()
        }
        seen = read(table, FREE)
        assert (seen.record.digest, seen.entry(FREE).away) == ("d3", False)

    @pytest.mark.parametrize(
        "page",
        [
            pytest.param(damaged(format=FORMAT + 1), id="newer"),
            pytest.param(damaged(format=None), id="no number of a format"),
            pytest.param(damaged(version=None), id="no version"),
            pytest.param(damaged(version=7), id="a version that is no text"),
            pytest.param(damaged(holds={FREE.id: {"request": "r", "belief": "x"}}), id="no belief"),
            pytest.param(
                damaged(holds={FREE.id: {"request": "r", "belief": "open", "new": 1}}), id="a field more"
            ),
            pytest.param(damaged(holds={FREE.id: {"belief": "open"}}), id="a field less"),
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
        self, table: Table, db: Odd, page: dict[str, Any]
    ) -> None:
        pk = page["pk"]["S"]
        db.db.items = before = {pk: page}
        newer = page["format"] == {"N": str(FORMAT + 1)}
        says = "a newer version of the function has written it" if newer else "it is damaged"
        where = f"Could not read page {pk} of the ledger {NAME} in eu-west-1: {says}"
        with pytest.raises(FailedError, match=re.escape(where)):
            table.change(A, [FREE], hold(A), deadline())
        assert db.db.items == before
        assert table.pages(deadline()).unread[0].startswith(f"{pk}: {where}")

    def test_go_when_they_say_nothing_and_expire_when_they_say_little(self, table: Table, db: Odd) -> None:
        """A holder without holds stays for a day, and a detached association for an hour."""
        ttl = DECLARED["TimeToLiveSpecification"]["AttributeName"]
        assert DECLARED["TimeToLiveSpecification"]["Enabled"]
        seen = []
        for rule in (hold(A), lambda state: state.with_entry(FREE, detached=NOW).let_go(A, FREE), hold(A)):
            table.change(A, [FREE], rule, deadline())
            seen.append([db.db.items[pk].get(ttl, {}).get("N") for pk in (PAGE_A, PAGE_FREE)])
        assert seen == [[None, None], [str(NOW + REMEMBERED), str(NOW + DETACHED_KEPT)], [None, None]]
        table.change(A, [FREE], lambda state: state.with_entry(FREE, detached=0).let_go(A, FREE), deadline())
        assert set(db.db.items) == {PAGE_A}

    def test_all_of_them_come_1_mb_a_call(self, table: Table, db: Odd) -> None:
        table.change(A, [FREE], hold(A), deadline())
        table.change(B, [FREE], hold(B), deadline())
        found = table.pages(deadline())
        assert (set(found.records), found.unread) == ({A, B}, [])
        assert found.entries == {FREE: AssociationRecord(frozenset({A, B}))}
        db.replies["scan"] = [
            {},
            {"Items": [{"pk": {"S": PAGE_A}}], "LastEvaluatedKey": {"pk": {"S": PAGE_A}}},
        ]
        assert table.associations(deadline()) == {FREE}
        assert db.calls[-3:] == ["scan", "scan", "scan"]
        assert db.asked[-1]["ExclusiveStartKey"] == {"pk": {"S": PAGE_A}}


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

    def test_what_was_seen_spares_the_reading(self, table: Table, db: Odd) -> None:
        """Also if the change before made or removed a page; but nothing is taken for seen that was not."""
        seen = None
        for rule in (hold(A), lambda state: state.let_go(A, FREE), hold(A)):
            _, seen = table.change(A, [FREE], rule, deadline(), seen)
        assert db.sizes == [2]
        table.change(A, [PRO], hold(A, PRO), deadline(), seen)
        assert db.sizes == [2, 1]
        table.change(B, [FREE], hold(B), deadline())
        table.change(A, [FREE], noted("r"), deadline(), seen)
        assert read(table, FREE, PRO).entries == {
            FREE: AssociationRecord(frozenset({A, B})),
            PRO: AssociationRecord(frozenset({A})),
        }

    def test_a_read_takes_a_hundred_pages_at_once_and_a_write_starts_afresh_with_half(
        self, table: Table, db: Odd
    ) -> None:
        many = [Association("alice", f"plan{number}") for number in range(MOST_PAGES + 20)]
        (state,) = table.read([(A, many)], deadline())
        assert (set(state.entries), db.sizes) == ({*many}, [99, 22])
        table.change(A, [FREE], hold(A), deadline(), state)
        assert db.sizes == [99, 22, 2]


@pytest.mark.parametrize(
    ("replies", "nothing_changed"),
    [
        ({"get": [DENIED]}, True),
        ({"get": [cancelled("None", "ConditionalCheckFailed")]}, True),
        ({"write": [DENIED]}, True),
        ({"write": [refusal(500, "InternalServerError"), DENIED]}, False),
        ({"write": [ReadTimeoutError(endpoint_url="https://dynamodb"), DENIED]}, False),
    ],
)
def test_an_error_says_whether_a_write_may_have_been_carried_out(
    table: Table, db: Odd, replies: dict[str, list[Exception]], nothing_changed: bool
) -> None:
    db.replies = {verb: [*some] for verb, some in replies.items()}
    with pytest.raises(FailedError) as raised:
        table.change(A, [FREE], hold(A), deadline())
    assert raised.value.nothing_changed is nothing_changed


def test_the_last_attempt_comes_at_the_last_moment(table: Table, db: Odd) -> None:
    clock, db.replies = Clock(NOW), {"get": [refusal(400, "ThrottlingException")] * 99}
    with pytest.raises(OutOfTimeError):
        table.change(A, [FREE], hold(A), deadline(BEFORE_SHORT_CALL + 20, clock))
    assert clock.now == NOW + 20
