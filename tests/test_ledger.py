"""The ledger on DynamoDB, in the table that template.yaml declares: its pages, its races and its errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import boto3
import pytest
from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from botocore.config import Config
from botocore.exceptions import ClientError, ReadTimeoutError
from botocore.stub import Stubber
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws
from samtranslator.yaml_helper import yaml_parse

from emulators.dynamodb import DynamoDb
from tests.memory import Clock
from usage_plan_key import ledger
from usage_plan_key.errors import FailedError, OutOfTimeError
from usage_plan_key.ledger import DETACHED_KEPT, FORMAT, MOST_PAGES, Table
from usage_plan_key.model import (
    REMEMBERED,
    Association,
    AssociationRecord,
    Belief,
    Hold,
    Holder,
    Note,
    Origin,
    ResourceRecord,
    Response,
    Snapshot,
)
from usage_plan_key.retry import BEFORE_SHORT_CALL, Deadline

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

DECLARED: dict[str, Any] = yaml_parse((Path(__file__).parents[1] / "template.yaml").read_text())["Resources"][
    "Ledger"
]["Properties"]
NAME, NOW = "usage-plan-key-ledger", 1_764_000_000
FREE, PRO = Association("alice", "free"), Association("alice", "pro")
A, B = (Holder("arn:aws:cloudformation:eu-west-1:123456789012:stack/one/0", name) for name in "AB")
PAGE_A, PAGE_FREE = f"holder#{A.stack_id}#A", "association#alice:free"
EMPTY: dict[str, Any] = {"Responses": [{}, {}]}
Rule = Callable[[Snapshot], Snapshot]
DAMAGED: dict[str, dict[str, Any]] = {
    "newer": {"format": FORMAT + 1},
    "no number of a format": {"format": None},
    "no belief": {"holds": {"alice:free": {"request": "r", "belief": "x"}}},
    "a field more": {"holds": {"alice:free": {"request": "r", "belief": "open", "new": 1}}},
    "a field less": {"holds": {"alice:free": {"belief": "open"}}},
    "no association": {"holds": {"alicefree": {"request": "r", "belief": "open"}}},
    "another type": {"holds": "all"},
    "no answer": {"notes": [{"id": "r", "answer": 7}]},
    "a text in the place of a list": {"notes": "r"},
    "a text in the place of another list": {"foreign": "former"},
    "no version": {"version": None},
    "a version that is no text": {"version": 7},
}


def client() -> DynamoDBClient:
    """Make a client as app.py does, without the surroundings' credentials and region."""
    return boto3.client(
        "dynamodb",
        region_name="eu-central-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        config=Config(retries={"total_max_attempts": 1}),
    )


def deadline(seconds: float = 60.0, clock: Clock | None = None) -> Deadline:
    clock = clock or Clock(NOW)
    return Deadline(ends=clock.now + seconds, clock=clock, dice=Random(0))


@pytest.fixture
def dynamodb() -> Iterator[DynamoDBClient]:
    with mock_aws():
        dynamodb = client()
        names = "BillingMode", "AttributeDefinitions", "KeySchema"
        dynamodb.create_table(TableName=NAME, **{name: DECLARED[name] for name in names})
        yield dynamodb


@pytest.fixture
def table(dynamodb: DynamoDBClient) -> Table:
    return Table(dynamodb, NAME)


def pages(dynamodb: DynamoDBClient) -> dict[str, dict[str, Any]]:
    return {item["pk"]["S"]: dict(item) for item in dynamodb.scan(TableName=NAME)["Items"]}


def hold(holder: Holder, association: Association = FREE) -> Rule:
    return lambda state: state.held(holder, association, Hold("r"))


def let_go(holder: Holder) -> Rule:
    return lambda state: state.let_go(holder, FREE)


def noted(id_: str) -> Rule:
    return lambda state: state.with_record(state.record._replace(notes=(Note(id_, 1),)))


def as_is(state: Snapshot) -> Snapshot:
    return state


def interrupted(by: Callable[[], object], rule: Rule) -> Rule:
    """Somebody writes between this one's first reading and its writing."""
    pending = [by]

    def interrupted(state: Snapshot) -> Snapshot:
        if pending:
            pending.pop()()
        return rule(state)

    return interrupted


@contextmanager
def reads(dynamodb: Any) -> Iterator[list[int]]:
    """Count the pages of each read."""
    counts: list[int] = []
    read = dynamodb.transact_get_items

    def counted(*, TransactItems: list[Any]) -> Any:
        counts.append(len(TransactItems))
        return read(TransactItems=TransactItems)

    with mock.patch.object(dynamodb, "transact_get_items", counted):
        yield counts


def read(table: Table, *associations: Association, of: Holder = A) -> Snapshot:
    return table.change(of, associations, as_is, deadline())[1]


class TestPages:
    """The ledger reads each page as it wrote it."""

    associations = st.builds(Association, *[st.text("abcXYZ019_-", min_size=1, max_size=19)] * 2)
    texts, numbers = st.text(max_size=20), st.integers(0, 2**40)
    answers = st.builds(Response, st.booleans(), st.text(min_size=1), texts, texts, texts, numbers, st.none())
    notes = st.builds(
        Note,
        st.text(min_size=1),
        numbers,
        st.booleans(),
        st.none() | answers,
        st.none() | st.booleans(),
        numbers,
        numbers,
        numbers,
    )
    holds = st.builds(Hold, texts, st.sampled_from(Belief), numbers, texts, texts)
    records = st.builds(
        ResourceRecord,
        holds=st.dictionaries(associations, holds, max_size=3),
        notes=st.lists(notes, max_size=3).map(tuple),
        wants=st.none() | associations,
        foreign=st.frozensets(texts, max_size=3),
        retained=st.none() | associations,
        digest=texts,
    )
    entries = st.builds(
        AssociationRecord,
        holders=st.frozensets(st.builds(Holder, texts, texts), min_size=1, max_size=3),
        origin=st.sampled_from(Origin),
        attaching=st.frozensets(texts, max_size=3),
        detaching=st.none() | st.integers(1, 2**40),
        away=st.booleans(),
        detached=numbers,
    )

    @staticmethod
    def through_dynamodb(page: dict[str, Any]) -> dict[str, Any]:
        written = {name: TypeSerializer().serialize(value) for name, value in page.items()}
        return {name: TypeDeserializer().deserialize(value) for name, value in written.items()}

    @given(records)
    def test_of_a_resource(self, record: ResourceRecord) -> None:
        """A holder's page survives the way to DynamoDB and back."""
        assert ledger._record(self.through_dynamodb(ledger._record_page(A, record, NOW))) == record

    @given(entries)
    def test_of_an_association(self, entry: AssociationRecord) -> None:
        """An association's page survives the way to DynamoDB and back."""
        assert ledger._entry(self.through_dynamodb(ledger._entry_page(FREE, entry, NOW))) == entry

    def test_a_value_is_not_written(self) -> None:
        note = Note("r", 1, answer=Response(success=True, id="x", value="s3cr3t"))
        assert "s3cr3t" not in str(ledger._record_page(A, ResourceRecord(notes=(note,)), NOW))

    def test_of_format_1(self, table: Table, dynamodb: DynamoDBClient) -> None:
        """From 1.0 on every later version of the function reads these, as they stand here."""
        answer = {"success": {"BOOL": True}, "id": {"S": "alice:free"}, "outcome": {"S": "ATTACHED"}}
        answer |= {"key_name": {"S": "Alice"}, "at": {"N": "1764000001"}}
        note = {"id": {"S": "r1"}, "issued": {"N": "1764000000"}, "answer": {"M": answer}}
        waits = {
            "id": {"S": "r2"},
            "issued": {"N": "1764000002"},
            "begun": {"BOOL": False},
            "deaths": {"N": "1"},
        }
        waits |= {"refusals": {"N": "2"}, "paced": {"N": "1"}, "quota": {"N": "1764000007"}}
        waits |= {"until": {"N": "1764000009"}, "ends_life": {"BOOL": True}}
        held = {"request": {"S": "r1"}, "belief": {"S": "left"}, "left": {"N": "1764000002"}}
        held |= {"marked_by": {"S": "r2"}, "key_name": {"S": "Alice"}}
        resource: dict[str, Any] = {
            "pk": {"S": PAGE_A},
            "format": {"N": "1"},
            "version": {"S": "v1"},
            "holds": {"M": {"alice:free": {"M": held}}},
            "notes": {"L": [{"M": note}, {"M": waits}]},
            "wants": {"S": "alice:pro"},
            "foreign": {"L": [{"S": "d1"}]},
            "retained": {"S": "alice:free"},
            "digest": {"S": "d2"},
        }
        holder = {"stack": {"S": A.stack_id}, "resource": {"S": "A"}}
        association: dict[str, Any] = {
            "pk": {"S": PAGE_FREE},
            "format": {"N": "1"},
            "version": {"S": "v2"},
            "origin": {"S": "taken"},
            "holders": {"L": [{"M": holder}]},
            "attaching": {"L": [{"S": "r1"}]},
            "detaching": {"N": "1764000099"},
            "away": {"BOOL": True},
            "detached": {"N": "1764000003"},
        }
        for item in (resource, association):
            dynamodb.put_item(TableName=NAME, Item=item)
        answered = Response(success=True, id=FREE.id, outcome="ATTACHED", key_name="Alice", at=NOW + 1)
        record = ResourceRecord(
            holds={FREE: Hold("r1", Belief.LEFT, NOW + 2, "r2", "Alice")},
            notes=(
                Note("r1", NOW, answer=answered),
                Note("r2", NOW + 2, True, None, False, 1, 2, 1, NOW + 7, NOW + 9),
            ),
            wants=PRO,
            foreign=frozenset({"d1"}),
            retained=FREE,
            digest="d2",
        )
        entry = AssociationRecord(frozenset({A}), Origin.TAKEN, frozenset({"r1"}), NOW + 99, True, NOW + 3)
        assert read(table, FREE) == Snapshot(record, {FREE: entry}, {PAGE_A: "v1", PAGE_FREE: "v2"})
        table.change(A, [FREE], lambda state: state.with_record(record._replace(digest="d3")), deadline())
        written = pages(dynamodb)
        assert written[PAGE_A] == {**resource, "version": written[PAGE_A]["version"], "digest": {"S": "d3"}}

    @pytest.mark.parametrize("fault", DAMAGED)
    def test_that_cannot_be_read_is_refused_and_left_as_it_is(
        self, table: Table, dynamodb: DynamoDBClient, fault: str
    ) -> None:
        whole = {"pk": PAGE_A, "version": "v", "format": FORMAT, **DAMAGED[fault]}
        says = "a newer version of the function has written it" if fault == "newer" else "it is damaged"
        dynamodb.put_item(
            TableName=NAME, Item={name: TypeSerializer().serialize(value) for name, value in whole.items()}
        )
        before = pages(dynamodb)
        with pytest.raises(
            FailedError, match=rf"page holder#.*A of the ledger {NAME} in eu-central-1: .*{says}"
        ):
            table.change(A, [FREE], hold(A), deadline())
        assert pages(dynamodb) == before
        (unread,) = table.pages(deadline()).unread
        assert unread.startswith(f"{PAGE_A}: ")

    @pytest.mark.parametrize("field", ["holders", "attaching"])
    def test_of_an_association_that_is_damaged(
        self, table: Table, dynamodb: DynamoDBClient, field: str
    ) -> None:
        page = {"pk": {"S": PAGE_FREE}, "format": {"N": "1"}, "version": {"S": "v"}, "origin": {"S": "ours"}}
        dynamodb.put_item(TableName=NAME, Item={**page, field: {"S": "text"}})
        with pytest.raises(FailedError, match="is damaged"):
            read(table, FREE)

    def test_go_when_they_say_nothing_and_expire_when_they_say_little(
        self, table: Table, dynamodb: DynamoDBClient
    ) -> None:
        """A holder without holds stays for a day, and a detached association for an hour."""
        ttl = DECLARED["TimeToLiveSpecification"]["AttributeName"]
        assert (ttl, DECLARED["TimeToLiveSpecification"]["Enabled"]) == ("expires", True)
        seen = []
        for rule in (hold(A), lambda state: state.with_entry(FREE, detached=NOW).let_go(A, FREE), hold(A)):
            table.change(A, [FREE], rule, deadline())
            seen.append([pages(dynamodb)[pk].get(ttl, {}).get("N") for pk in (PAGE_A, PAGE_FREE)])
        assert seen == [[None, None], [str(NOW + REMEMBERED), str(NOW + DETACHED_KEPT)], [None, None]]
        table.change(A, [FREE], lambda state: state.with_entry(FREE, detached=0).let_go(A, FREE), deadline())
        assert set(pages(dynamodb)) == {PAGE_A}

    def test_all_of_them(self, table: Table) -> None:
        table.change(A, [FREE], hold(A), deadline())
        table.change(B, [FREE], hold(B), deadline())
        found = table.pages(deadline())
        assert (set(found.records), found.unread) == ({A, B}, [])
        assert found.entries == {FREE: AssociationRecord(frozenset({A, B}))}
        assert table.associations(deadline()) == {FREE}

    def test_all_of_them_come_1_mb_a_call(self) -> None:
        replies = [{"Items": [{"pk": {"S": PAGE_FREE}}], "LastEvaluatedKey": {"pk": {"S": PAGE_FREE}}}]
        replies += [{"Items": [{"pk": {"S": "association#alice:pro"}}]}]
        starts: list[Any] = []

        def scan(**asked: Any) -> Any:
            starts.append(asked.get("ExclusiveStartKey"))
            return replies.pop(0)

        dynamodb: Any = SimpleNamespace(meta=client().meta, scan=scan)
        assert Table(dynamodb, NAME).associations(deadline()) == {FREE, PRO}
        assert starts == [None, {"pk": {"S": PAGE_FREE}}]


class TestChanges:
    """A change is one transaction over all pages that it has read."""

    def test_both_pages_change_together_under_the_declared_key(
        self, table: Table, dynamodb: DynamoDBClient
    ) -> None:
        assert read(table, FREE)._replace(versions={}) == Snapshot(
            ResourceRecord(), {FREE: AssociationRecord()}
        )
        made, written = table.change(A, [FREE, FREE], hold(A), deadline())
        assert (made.record, made.entries) == (written.record, written.entries)
        assert read(table, FREE) == written
        assert set(pages(dynamodb)) == {PAGE_A, PAGE_FREE}
        assert [key["AttributeName"] for key in DECLARED["KeySchema"]] == ["pk"]
        assert read(table, of=B).record == ResourceRecord(), "holders do not see each other"

    def test_a_rule_that_changes_nothing_writes_nothing(self, table: Table, dynamodb: DynamoDBClient) -> None:
        table.change(A, [FREE], hold(A), deadline())
        before = pages(dynamodb)
        table.change(A, [FREE], hold(A), deadline())
        assert pages(dynamodb) == before

    def test_a_rules_error_goes_through(self, table: Table, dynamodb: DynamoDBClient) -> None:
        def refuse(_: Snapshot) -> Snapshot:
            raise FailedError("refused")

        with pytest.raises(FailedError, match=r"^refused$"):
            table.change(A, [FREE], refuse, deadline())
        assert not pages(dynamodb)

    def test_a_rule_has_the_pages_that_it_asks_for(self, table: Table) -> None:
        def rule(state: Snapshot) -> Snapshot:
            state.entry(PRO)
            return hold(A, PRO)(hold(A)(state))

        table.change(A, [], rule, deadline())
        assert read(table, FREE, PRO).entries == {
            one: AssociationRecord(frozenset({A})) for one in (FREE, PRO)
        }

    @pytest.mark.parametrize("earlier", [False, True], ids=["a new page", "a page that is there"])
    def test_none_is_lost(self, table: Table, earlier: bool) -> None:
        """The second one reads the first one's pages again, and changes those."""
        third = Holder("another stack", "C")
        if earlier:
            table.change(third, [FREE], hold(third), deadline())
        rule = interrupted(lambda: table.change(B, [FREE], hold(B), deadline()), hold(A))
        assert table.change(A, [FREE], rule, deadline())[1] == read(table, FREE)
        assert read(table, FREE).entry(FREE).holders == {A, B} | ({third} if earlier else set())

    def test_a_page_that_has_gone_is_not_written_back(self, table: Table) -> None:
        table.change(B, [FREE], hold(B), deadline())
        rule = interrupted(lambda: table.change(B, [FREE], let_go(B), deadline()), hold(A))
        assert table.change(A, [FREE], rule, deadline())[1].entry(FREE).holders == {A}

    def test_a_page_that_was_only_read_counts_too(self, table: Table) -> None:
        """A rule may have decided by it."""
        rule = interrupted(
            lambda: table.change(B, [FREE], hold(B), deadline()),
            lambda state: noted("alone" if not state.entry(FREE).holders else "not alone")(state),
        )
        table.change(A, [FREE], rule, deadline())
        assert read(table).record.notes[0].id == "not alone"

    def test_others_keep_changing_it(self, table: Table) -> None:
        """It goes on until the time is up, and then says so."""
        turns = iter(range(10_000))

        def never(state: Snapshot) -> Snapshot:
            table.change(A, [], noted(f"r{next(turns)}"), deadline())
            return noted("x")(state)

        what = f"write the ledger {NAME} in eu-central-1: gave up after .* others keep changing"
        with pytest.raises(OutOfTimeError, match=what):
            table.change(A, [], never, deadline())

    def test_each_page_has_a_version(self, table: Table, dynamodb: DynamoDBClient) -> None:
        """It changes with every write of the page, and of no other."""
        table.change(A, [FREE], hold(A), deadline())
        first = {pk: page["version"] for pk, page in pages(dynamodb).items()}
        table.change(A, [], noted("r"), deadline())
        second = {pk: page["version"] for pk, page in pages(dynamodb).items()}
        assert {pk: first[pk] == second[pk] for pk in first} == {PAGE_A: False, PAGE_FREE: True}
        assert first[PAGE_A] != first[PAGE_FREE]

    def test_what_was_seen_spares_the_reading(self, table: Table, dynamodb: DynamoDBClient) -> None:
        """Also if the change before made or removed a page; but nothing is taken for seen that was not."""
        with reads(dynamodb) as counts:
            seen = None
            for rule in (hold(A), let_go(A), hold(A)):
                _, seen = table.change(A, [FREE], rule, deadline(), seen)
            assert counts == [2]
            table.change(A, [PRO], hold(A, PRO), deadline(), seen)
            assert counts == [2, 1]
        assert read(table, FREE, PRO).entries == {
            one: AssociationRecord(frozenset({A})) for one in (FREE, PRO)
        }

    def test_what_was_seen_may_have_changed(self, table: Table) -> None:
        seen = read(table, FREE)
        table.change(B, [FREE], hold(B), deadline())
        assert table.change(A, [FREE], hold(A), deadline(), seen)[1].entry(FREE).holders == {A, B}

    def test_a_read_takes_a_hundred_pages_at_once_and_a_write_starts_afresh_with_half(self) -> None:
        dynamodb: Any = DynamoDb()
        table = Table(dynamodb, NAME)
        many = [Association("alice", f"plan{number}") for number in range(MOST_PAGES + 20)]
        (state,) = table.read([(A, many)], deadline())
        assert set(state.entries) == {*many}
        with reads(dynamodb) as counts:
            table.change(A, [FREE], hold(A), deadline(), state)
        assert counts == [2]


class TestErrors:
    """DynamoDB refuses."""

    @pytest.fixture
    def stub(self) -> Iterator[Stubber]:
        with Stubber(client()) as stub:
            yield stub
            stub.assert_no_pending_responses()

    @staticmethod
    def change(stub: Stubber, clock: Clock | None = None) -> AssociationRecord:
        dynamodb: Any = stub.client
        return Table(dynamodb, NAME).change(A, [FREE], hold(A), deadline(60, clock))[1].entry(FREE)

    @staticmethod
    def cancelled(stub: Stubber, operation: str, *codes: str) -> None:
        reasons = {"CancellationReasons": [{"Code": code} for code in codes]}
        stub.add_client_error(
            operation, "TransactionCanceledException", http_status_code=400, modeled_fields=reasons
        )

    @pytest.mark.parametrize(
        "code", ["AccessDeniedException", "ResourceNotFoundException", "ValidationException"]
    )
    @pytest.mark.parametrize("verb", ["read", "write"])
    def test_for_good(self, stub: Stubber, verb: str, code: str) -> None:
        """Without another attempt, and with the table, the region, the error and what to check."""
        if verb == "write":
            stub.add_response("transact_get_items", EMPTY)
        stub.add_client_error(
            f"transact_{'get' if verb == 'read' else 'write'}_items", code, "no", http_status_code=400
        )
        what = (
            rf"^Could not {verb} the ledger {NAME} in eu-central-1: .*{code}.*Check that the table is there"
        )
        with pytest.raises(FailedError, match=what) as raised:
            self.change(stub)
        assert raised.value.nothing_changed

    def test_for_good_after_a_write_that_may_have_been_carried_out(self, stub: Stubber) -> None:
        stub.add_response("transact_get_items", EMPTY)
        stub.add_client_error("transact_write_items", "InternalServerError", http_status_code=500)
        stub.add_client_error("transact_write_items", "AccessDeniedException", http_status_code=400)
        with pytest.raises(FailedError) as raised:
            self.change(stub)
        assert not raised.value.nothing_changed

    @pytest.mark.parametrize(
        ("code", "status"),
        [
            ("ThrottlingException", 400),
            ("ProvisionedThroughputExceededException", 400),
            ("RequestLimitExceeded", 400),
            ("TransactionInProgressException", 400),
            ("InternalServerError", 500),
            ("ServiceUnavailable", 503),
            ("", 0),
        ],
    )
    @pytest.mark.parametrize("verb", ["get", "write"])
    def test_that_pass_are_tried_again_after_a_pause(
        self, stub: Stubber, verb: str, code: str, status: int
    ) -> None:
        """Without a code: another transaction was under way, and no page need have changed."""
        clock = Clock(NOW)
        for operation in ("get", "write"):
            if operation == verb and code:
                stub.add_client_error(f"transact_{verb}_items", code, http_status_code=status)
            elif operation == verb:
                self.cancelled(stub, f"transact_{verb}_items", "None", "TransactionConflict")
            stub.add_response(f"transact_{operation}_items", EMPTY if operation == "get" else {})
        assert self.change(stub, clock).holders == {A}
        assert clock.now > NOW

    def test_a_condition_that_fails_has_all_pages_read_again(self, stub: Stubber) -> None:
        stub.add_response("transact_get_items", EMPTY)
        self.cancelled(stub, "transact_write_items", "TransactionConflict", "ConditionalCheckFailed")
        page = {"format": {"N": "1"}, "version": {"S": "v"}, "origin": {"S": "before"}}
        stub.add_response("transact_get_items", {"Responses": [{}, {"Item": page}]})
        stub.add_response("transact_write_items", {})
        assert self.change(stub) == AssociationRecord(frozenset({A}), Origin.BEFORE)

    def test_a_transaction_that_is_cancelled_for_another_reason_fails(self, stub: Stubber) -> None:
        stub.add_response("transact_get_items", EMPTY)
        self.cancelled(stub, "transact_write_items", "ValidationError")
        with pytest.raises(FailedError, match="Could not write"):
            self.change(stub)

    def test_the_attempts_of_one_write_share_a_token(self) -> None:
        """So DynamoDB writes once though its reply is lost; other writes have tokens of their own."""
        tokens: list[str] = []

        def write(**arguments: Any) -> dict[str, Any]:
            tokens.append(arguments["ClientRequestToken"])
            if len(tokens) == 1:
                raise ReadTimeoutError(endpoint_url="https://dynamodb")
            return {}

        dynamodb: Any = SimpleNamespace(
            meta=client().meta, transact_get_items=lambda **_: EMPTY, transact_write_items=write
        )
        for _ in range(2):
            Table(dynamodb, NAME).change(A, [FREE], hold(A), deadline())
        assert len(tokens) == 3
        assert tokens[0] == tokens[1] != tokens[2]

    @pytest.mark.parametrize(
        ("verb", "reply"),
        [
            ("get", {"ResponseMetadata": {"HTTPHeaders": {"content-type": "text/html"}}}),
            ("write", {"ResponseMetadata": {"HTTPHeaders": {"content-type": "text/html"}}}),
            ("get", AttributeError("'list' object has no attribute 'get'")),
            ("write", AttributeError("'list' object has no attribute 'get'")),
            ("get", {}),
            ("get", {"Responses": []}),
            ("get", {"Responses": [{}]}),
            ("scan", {}),
        ],
    )
    def test_a_reply_that_is_no_word_about_the_pages_is_asked_for_again(self, verb: str, reply: Any) -> None:
        table, called = self.answering(verb, reply)
        assert table.change(A, [FREE], hold(A), deadline())[1].entry(FREE).holders == {A}
        assert table.associations(deadline()) == set()
        assert sorted(called) == sorted(["get", "write", "scan", verb])

    def test_null_in_the_place_of_a_page_means_that_there_is_none(self) -> None:
        """DynamoDB's reference has null for it; an empty object is what comes."""
        table, called = self.answering("get", {"Responses": [None, None]})
        assert table.change(A, [FREE], hold(A), deadline())[1].entry(FREE).holders == {A}
        assert called == ["get", "write"]

    @staticmethod
    def answering(verb: str, odd: Any) -> tuple[Table, list[str]]:
        """Make a table whose first reply to `verb` is odd, and the list of its calls."""
        called: list[str] = []
        usual = {"get": EMPTY, "write": {}, "scan": {"Items": []}}

        def answer(name: str) -> Any:
            called.append(name)
            reply = odd if name == verb and called.count(name) == 1 else usual[name]
            if isinstance(reply, Exception):
                raise reply
            return reply

        dynamodb: Any = SimpleNamespace(
            meta=client().meta,
            transact_get_items=lambda **_: answer("get"),
            transact_write_items=lambda **_: answer("write"),
            scan=lambda **_: answer("scan"),
        )
        return Table(dynamodb, NAME), called

    def test_until_no_time_is_left(self) -> None:
        """The error counts the attempts; the last one comes at the last moment."""

        def slow(**_: Any) -> None:
            raise ClientError(
                {"Error": {"Code": "ThrottlingException", "Message": "slow"}}, "TransactGetItems"
            )

        clock, ends = Clock(NOW), NOW + BEFORE_SHORT_CALL + 20
        dynamodb: Any = SimpleNamespace(meta=client().meta, transact_get_items=slow)
        what = rf"read the ledger {NAME} .*: gave up after \d+ attempts .*slow"
        with pytest.raises(OutOfTimeError, match=what):
            Table(dynamodb, NAME).change(A, [FREE], hold(A), deadline(BEFORE_SHORT_CALL + 20, clock))
        assert clock.now == ends - BEFORE_SHORT_CALL
