"""The ledger on DynamoDB, in the table that template.yaml declares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

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

from tests.memory import Clock
from usage_plan_key import ledger
from usage_plan_key.errors import FailedError, OutOfTimeError
from usage_plan_key.ledger import SHAPE, Table
from usage_plan_key.model import (
    NOBODY,
    REMEMBERED,
    Association,
    AssociationRecord,
    Hold,
    Holder,
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
NAME = "usage-plan-key-ledger"
NOW = 1_764_000_000
FREE, PRO = Association("alice", "free"), Association("alice", "pro")
A, B = (Holder("arn:aws:cloudformation:eu-west-1:123456789012:stack/one/0", name) for name in "AB")
EMPTY: dict[str, Any] = {"Responses": [{}, {}]}


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
    return Deadline(seconds, clock or Clock(NOW), Random(0)).short()


@pytest.fixture
def dynamodb() -> Iterator[DynamoDBClient]:
    with mock_aws():
        dynamodb = client()
        dynamodb.create_table(
            TableName=NAME,
            BillingMode=DECLARED["BillingMode"],
            AttributeDefinitions=DECLARED["AttributeDefinitions"],
            KeySchema=DECLARED["KeySchema"],
        )
        yield dynamodb


@pytest.fixture
def table(dynamodb: DynamoDBClient) -> Table:
    return Table(dynamodb, NAME)


def pages(dynamodb: DynamoDBClient) -> dict[str, dict[str, Any]]:
    """Read the whole table, by key."""
    return {item["pk"]["S"]: dict(item) for item in dynamodb.scan(TableName=NAME)["Items"]}


def hold(holder: Holder, association: Association = FREE) -> Callable[[Snapshot], Snapshot]:
    return lambda state: state.held(holder, association, Hold(f"request of {holder.logical_id}"))


def let_go(holder: Holder, association: Association = FREE) -> Callable[[Snapshot], Snapshot]:
    return lambda state: state.let_go(holder, association)


def as_is(state: Snapshot) -> Snapshot:
    return state


def said(state: Snapshot) -> Snapshot:
    """Read the pages without their versions."""
    return state._replace(versions={})


class TestPages:
    """The ledger reads each page as it wrote it."""

    ids = st.text("abcXYZ019_-", min_size=1, max_size=19)
    associations = st.builds(Association, ids, ids)
    texts = st.text(max_size=20)
    holders = st.builds(Holder, texts, texts)
    numbers = st.integers(0, 2**40)
    answers = st.builds(Response, st.booleans(), st.text(min_size=1), texts, texts, texts, numbers, st.none())
    records = st.builds(
        ResourceRecord,
        holds=st.dictionaries(
            associations, st.builds(Hold, texts, st.booleans(), numbers, st.booleans(), texts), max_size=3
        ),
        issued=numbers,
        arrived=st.lists(texts, max_size=3).map(tuple),
        closed=st.booleans(),
        wants=st.none() | associations,
        foreign=st.frozensets(texts, max_size=3),
        retained=st.none() | associations,
        answers=st.dictionaries(texts, answers, max_size=3),
        digest=texts,
        begun=texts,
        died=texts,
        deaths=numbers,
    )
    entries = st.builds(
        AssociationRecord,
        holders=st.frozensets(holders, min_size=1, max_size=3),
        preexisting=st.booleans(),
        taken_over=st.booleans(),
        detaching=st.none() | st.integers(ledger.TRUSTED + 1, 2**40),
        moved_by=st.none() | st.text(min_size=1, max_size=20),
        begun_by=st.none() | st.text(),
    )

    @staticmethod
    def through_dynamodb(page: dict[str, Any]) -> dict[str, Any]:
        written = {name: TypeSerializer().serialize(value) for name, value in page.items()}
        return {name: TypeDeserializer().deserialize(value) for name, value in written.items()}

    @given(records)
    def test_of_a_resource(self, record: ResourceRecord) -> None:
        """A holder's page survives the way to DynamoDB and back."""
        assert ledger._record(self.through_dynamodb(ledger._record_page(A, record, NOW))) == record

    def test_a_value_is_not_written(self) -> None:
        record = ResourceRecord(answers={"r": Response(success=True, id="x", value="s3cr3t")})
        assert "s3cr3t" not in str(ledger._record_page(A, record, NOW))

    @given(entries)
    def test_of_an_association(self, entry: AssociationRecord) -> None:
        """An association's page survives the way to DynamoDB and back."""
        assert ledger._entry(self.through_dynamodb(ledger._entry_page(FREE, entry))) == entry

    def test_a_mark_without_its_end_is_trusted_for_15_minutes(self) -> None:
        """An earlier version wrote when it set about detaching; it understands this one's pages."""
        page = ledger._entry_page(FREE, AssociationRecord(frozenset({A}), detaching=NOW))
        assert page["detaching"] == NOW - 15 * 60
        del page["until"]
        assert ledger._entry(page).detaching == NOW

    def test_in_the_table(self, table: Table, dynamodb: DynamoDBClient) -> None:
        """Both pages change together, under the declared key; without any, all is empty."""
        assert said(table.change(A, [FREE], as_is, deadline())) == Snapshot(
            ResourceRecord(), {FREE: AssociationRecord()}
        )
        record = ResourceRecord(
            issued=7,
            arrived=("r",),
            answers={"r": Response(success=True, id="x", outcome="ATTACHED", at=NOW)},
        )
        written = table.change(A, [FREE], lambda state: hold(A)(state._replace(record=record)), deadline())
        assert said(table.change(A, [FREE], as_is, deadline())) == said(written)
        assert written.entry(FREE) == AssociationRecord(frozenset({A}))
        assert set(pages(dynamodb)) == {f"holder#{A.stack_id}#A", "association#alice:free"}
        assert [key["AttributeName"] for key in DECLARED["KeySchema"]] == ["pk"]

    def test_several_associations(self, table: Table) -> None:
        """The ledger reads each association once."""
        table.change(A, [FREE, PRO, FREE], lambda state: hold(A, PRO)(hold(A, FREE)(state)), deadline())
        assert set(table.change(B, [PRO, FREE], as_is, deadline()).entries) == {FREE, PRO}
        assert table.change(B, [PRO], as_is, deadline()).entries == {PRO: AssociationRecord(frozenset({A}))}

    def test_holders_do_not_see_each_other(self, table: Table) -> None:
        """A page belongs to one resource of one stack; a stack's ARN has no place for another's."""
        table.change(A, [FREE], hold(A), deadline())
        assert table.change(B, [], as_is, deadline()).record == ResourceRecord()

    def test_a_page_without_holders_goes(self, table: Table, dynamodb: DynamoDBClient) -> None:
        """The ledger keeps nothing about an association without holders."""
        table.change(A, [FREE], hold(A), deadline())
        table.change(A, [FREE], let_go(A), deadline())
        assert set(pages(dynamodb)) == {f"holder#{A.stack_id}#A"}

    def test_a_rule_that_changes_nothing_writes_nothing(self, table: Table, dynamodb: DynamoDBClient) -> None:
        """The pages stand as they stood."""
        table.change(A, [FREE], hold(A), deadline())
        before = pages(dynamodb)
        table.change(A, [FREE], as_is, deadline())
        table.change(A, [FREE], hold(A), deadline())
        assert pages(dynamodb) == before

    def test_a_rules_error_goes_through(self, table: Table, dynamodb: DynamoDBClient) -> None:
        """The ledger writes nothing."""

        def refuse(_: Snapshot) -> Snapshot:
            raise FailedError("refused")

        with pytest.raises(FailedError, match=r"^refused$"):
            table.change(A, [FREE], refuse, deadline())
        assert not pages(dynamodb)

    def test_a_holder_stays_while_it_holds_something_and_a_day_more(
        self, table: Table, dynamodb: DynamoDBClient
    ) -> None:
        """The ledger sets `expires`, the TTL, when a holder's last hold goes, and clears it at a hold."""
        ttl = DECLARED["TimeToLiveSpecification"]["AttributeName"]
        assert (ttl, DECLARED["TimeToLiveSpecification"]["Enabled"]) == ("expires", True)
        expires = []
        for rule in (lambda state: state._replace(record=ResourceRecord(issued=1)), hold(A), let_go(A)):
            table.change(A, [FREE], rule, deadline())
            expires.append(pages(dynamodb)[f"holder#{A.stack_id}#A"].get(ttl))
        assert expires == [{"N": str(NOW + REMEMBERED)}, None, {"N": str(NOW + REMEMBERED)}]


class TestAtOnce:
    """Two write to the same page."""

    @staticmethod
    def interrupted(
        by: Callable[[], object], rule: Callable[[Snapshot], Snapshot]
    ) -> Callable[[Snapshot], Snapshot]:
        """Somebody writes between this one's first reading and its writing."""
        pending = [by]

        def interrupted(state: Snapshot) -> Snapshot:
            if pending:
                pending.pop()()
            return rule(state)

        return interrupted

    @pytest.mark.parametrize("earlier", [False, True], ids=["a new page", "a page that is there"])
    def test_both_changes_are_there(self, table: Table, earlier: bool) -> None:
        """The second one reads the first one's pages again, and changes those, so no change is lost."""
        third = Holder("another stack", "C")
        if earlier:
            table.change(third, [FREE], hold(third), deadline())
        rule = self.interrupted(lambda: table.change(B, [FREE], hold(B), deadline()), hold(A))
        state = table.change(A, [FREE], rule, deadline())
        assert state.entry(FREE).holders == {A, B} | ({third} if earlier else set())
        assert table.change(A, [FREE], as_is, deadline()) == state
        assert FREE in state.record.holds

    def test_a_page_that_has_gone(self, table: Table) -> None:
        """The ledger does not write back an outdated page."""
        table.change(B, [FREE], hold(B), deadline())
        rule = self.interrupted(lambda: table.change(B, [FREE], let_go(B), deadline()), hold(A))
        assert table.change(A, [FREE], rule, deadline()).entry(FREE).holders == {A}

    def test_the_last_one_to_go_finds_another(self, table: Table) -> None:
        """The ledger keeps a page that another holder joined meanwhile."""
        table.change(A, [FREE], hold(A), deadline())
        rule = self.interrupted(lambda: table.change(B, [FREE], hold(B), deadline()), let_go(A))
        assert table.change(A, [FREE], rule, deadline()).entry(FREE).holders == {B}
        assert table.change(B, [FREE], as_is, deadline()).entry(FREE).holders == {B}

    def test_a_rule_judges_the_pages_that_stand_by_then(self, table: Table) -> None:
        """It may refuse after all."""

        def alone(state: Snapshot) -> Snapshot:
            if state.entry(FREE).holders:
                raise FailedError("held by now")
            return hold(A)(state)

        rule = self.interrupted(lambda: table.change(B, [FREE], hold(B), deadline()), alone)
        with pytest.raises(FailedError, match="held by now"):
            table.change(A, [FREE], rule, deadline())
        assert said(table.change(A, [FREE], as_is, deadline())) == Snapshot(
            ResourceRecord(), {FREE: AssociationRecord(frozenset({B}))}
        )

    def test_others_keep_changing_it(self, table: Table) -> None:
        """It goes on until the time is up, and then says so."""
        turns = iter(range(10_000))

        def never(state: Snapshot) -> Snapshot:
            order = next(turns)
            table.change(
                A,
                [],
                lambda state: state._replace(record=state.record._replace(issued=order + 1)),
                deadline(),
            )
            return state._replace(record=state.record._replace(digest="x"))

        with pytest.raises(
            OutOfTimeError,
            match=f"write the ledger {NAME} in [a-z0-9-]+: gave up after .* others keep changing",
        ):
            table.change(A, [], never, deadline())

    def test_each_page_has_a_version(self, table: Table, dynamodb: DynamoDBClient) -> None:
        """It changes with every write of the page, and of no other."""
        table.change(A, [FREE], hold(A), deadline())
        first = {pk: page["version"] for pk, page in pages(dynamodb).items()}
        table.change(A, [], lambda state: state._replace(record=state.record._replace(issued=1)), deadline())
        second = {pk: page["version"] for pk, page in pages(dynamodb).items()}
        assert len({*map(str, first.values())}) == 2
        assert {pk: first[pk] == second[pk] for pk in first} == {
            f"holder#{A.stack_id}#A": False,
            "association#alice:free": True,
        }


class TestSeen:
    """An earlier change's result spares a read, and nothing else."""

    @pytest.fixture
    def reads(self, dynamodb: DynamoDBClient, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        reads: list[Any] = []
        read = dynamodb.transact_get_items

        def counted(**what: Any) -> Any:
            reads.append(what)
            return read(**what)

        monkeypatch.setattr(dynamodb, "transact_get_items", counted)
        return reads

    def test_it_spares_the_reading(self, table: Table, reads: list[Any]) -> None:
        """A change after another one writes at once, also if that one made or removed a page."""
        seen = None
        for rule in (hold(A), let_go(A), hold(A)):
            seen = table.change(A, [FREE], rule, deadline(), seen)
        assert len(reads) == 1
        assert table.change(A, [FREE], as_is, deadline()) == seen

    def test_it_is_read_where_something_was_not_seen(self, table: Table, reads: list[Any]) -> None:
        """The earlier change did not see this association."""
        table.change(B, [PRO], hold(B, PRO), deadline())
        seen = table.change(A, [FREE], hold(A), deadline())
        reads.clear()
        assert table.change(A, [PRO], hold(A, PRO), deadline(), seen).entry(PRO).holders == {A, B}
        assert len(reads) == 1

    def test_it_may_have_changed(self, table: Table) -> None:
        """The ledger then reads all pages again before it writes."""
        seen = table.change(A, [FREE], as_is, deadline())
        table.change(B, [FREE], hold(B), deadline())
        assert table.change(A, [FREE], hold(A), deadline(), seen).entry(FREE).holders == {A, B}

    def test_no_rule_ends_with_it(self, table: Table) -> None:
        """The ledger asks a rule that raises or changes nothing again, with the present pages."""
        seen = table.change(A, [FREE], as_is, deadline())
        table.change(B, [FREE], hold(B), deadline())
        assert table.change(A, [FREE], as_is, deadline(), seen).entry(FREE).holders == {B}

        def only_with_another(state: Snapshot) -> Snapshot:
            if not state.entry(FREE).holders:
                raise FailedError("nobody")
            return hold(A)(state)

        assert table.change(A, [FREE], only_with_another, deadline(), seen).entry(FREE).holders == {A, B}


class TestErrors:
    """DynamoDB refuses."""

    @pytest.fixture
    def stub(self) -> Iterator[Stubber]:
        with Stubber(client()) as stub:
            yield stub
            stub.assert_no_pending_responses()

    @staticmethod
    def change(stub: Stubber, clock: Clock | None = None, seconds: float = 60) -> Snapshot:
        dynamodb: Any = stub.client
        return Table(dynamodb, NAME).change(A, [FREE], hold(A), deadline(seconds, clock))

    @staticmethod
    def cancelled(stub: Stubber, operation: str, *codes: str) -> None:
        reasons = {"CancellationReasons": [{"Code": code} for code in codes]}
        stub.add_client_error(
            operation, "TransactionCanceledException", http_status_code=400, modeled_fields=reasons
        )

    def test_a_missing_table(self) -> None:
        """It fails at once, and names the table, the region and the things to check."""
        with (
            mock_aws(),
            pytest.raises(
                FailedError, match=f"read the ledger {NAME} in eu-central-1: .*Check that the table is"
            ),
        ):
            Table(client(), NAME).change(A, [FREE], hold(A), deadline())

    @pytest.mark.parametrize(
        "code", ["AccessDeniedException", "ResourceNotFoundException", "ValidationException"]
    )
    @pytest.mark.parametrize("verb", ["read", "write"])
    def test_refused_for_good(self, stub: Stubber, verb: str, code: str) -> None:
        """Reading and writing alike fail without another attempt, and name the table and the error."""
        if verb == "write":
            stub.add_response("transact_get_items", EMPTY)
        stub.add_client_error(
            f"transact_{'get' if verb == 'read' else 'write'}_items", code, "no", http_status_code=400
        )
        with pytest.raises(
            FailedError,
            match=f"^Could not {verb} the ledger {NAME} in eu-central-1: .*{code}.*the role may use it",
        ):
            self.change(stub)

    @pytest.mark.parametrize(
        ("code", "status"),
        [
            ("ThrottlingException", 400),
            ("ProvisionedThroughputExceededException", 400),
            ("RequestLimitExceeded", 400),
            ("TransactionInProgressException", 400),
            ("InternalServerError", 500),
            ("ServiceUnavailable", 503),
        ],
    )
    @pytest.mark.parametrize("verb", ["get", "write"])
    def test_passing_trouble(self, stub: Stubber, verb: str, code: str, status: int) -> None:
        """The ledger tries it again after a pause."""
        clock = Clock(NOW)
        for operation in ("get", "write"):
            if operation == verb:
                stub.add_client_error(f"transact_{verb}_items", code, http_status_code=status)
            stub.add_response(f"transact_{operation}_items", EMPTY if operation == "get" else {})
        assert self.change(stub, clock).entry(FREE).holders == {A}
        assert clock.now > NOW

    @pytest.mark.parametrize("verb", ["get", "write"])
    def test_a_conflict_of_transactions(self, stub: Stubber, verb: str) -> None:
        """Another transaction was under way: the ledger retries the same, as no page need have changed."""
        for operation in ("get", "write"):
            if operation == verb:
                self.cancelled(stub, f"transact_{verb}_items", "None", "TransactionConflict")
            stub.add_response(f"transact_{operation}_items", EMPTY if operation == "get" else {})
        assert self.change(stub).entry(FREE).holders == {A}

    def test_a_page_has_changed(self, stub: Stubber) -> None:
        """If a condition fails, whatever else does, the ledger reads all pages again."""
        stub.add_response("transact_get_items", EMPTY)
        self.cancelled(stub, "transact_write_items", "TransactionConflict", "ConditionalCheckFailed")
        stub.add_response(
            "transact_get_items",
            {"Responses": [{}, {"Item": {"version": {"S": "v"}, "before": {"BOOL": True}}}]},
        )
        stub.add_response("transact_write_items", {})
        assert self.change(stub).entry(FREE) == AssociationRecord(frozenset({A}), preexisting=True)

    def test_attempts_of_one_write_are_one_transaction(self) -> None:
        """DynamoDB writes once though its reply is lost: attempts share a token, other writes do not."""
        tokens: list[str] = []

        class Writes:
            """A DynamoDB client that loses the first reply to a write."""

            meta = client().meta

            def transact_get_items(self, **_: Any) -> dict[str, Any]:
                return EMPTY

            def transact_write_items(self, **arguments: Any) -> dict[str, Any]:
                tokens.append(arguments["ClientRequestToken"])
                if len(tokens) == 1:
                    raise ReadTimeoutError(endpoint_url="https://dynamodb")
                return {}

        table = Table(Writes(), NAME)  # type: ignore[arg-type]  # a fake
        for _ in range(2):
            table.change(A, [FREE], hold(A), deadline())
        assert len(tokens) == 3
        assert tokens[0] == tokens[1] != tokens[2]

    @pytest.mark.parametrize("verb", ["get", "write"])
    @pytest.mark.parametrize(
        "reply",
        [
            pytest.param({"ResponseMetadata": {"HTTPHeaders": {"content-type": "text/html"}}}, id="a page"),
            pytest.param(AttributeError("'list' object has no attribute 'get'"), id="no object"),
        ],
    )
    def test_a_reply_that_is_none_of_dynamodbs_is_asked_for_again(self, verb: str, reply: Any) -> None:
        """A proxy's page with 200 is no word about the pages, and no write."""
        table, called = self.answering(verb, reply)
        assert table.change(A, [FREE], hold(A), deadline()).entry(FREE).holders == {A}
        assert called == (["get", "get", "write"] if verb == "get" else ["get", "write", "write"])

    @pytest.mark.parametrize("responses", [{}, {"Responses": []}, {"Responses": [{}]}])
    def test_a_reply_that_lacks_pages_is_asked_for_again(self, responses: Any) -> None:
        table, called = self.answering("get", responses)
        assert table.change(A, [FREE], as_is, deadline()).entry(FREE) == AssociationRecord()
        assert called == ["get", "get"]

    def test_null_in_the_place_of_a_page_means_that_there_is_none(self) -> None:
        """DynamoDB's reference has null for it; an empty object is what comes."""
        table, called = self.answering("get", {"Responses": [None, None]})
        assert table.change(A, [FREE], hold(A), deadline()).entry(FREE).holders == {A}
        assert called == ["get", "write"]

    def test_a_scan_that_lacks_its_items_is_asked_for_again(self) -> None:
        table, called = self.answering("scan", {})
        assert table.associations(deadline()) == set()
        assert called == ["scan", "scan"]

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
        """The error counts the attempts, as for API Gateway; the last one comes at the last moment."""

        class Slow:
            meta = SimpleNamespace(region_name="eu-central-1")

            def transact_get_items(self, **arguments: Any) -> None:
                raise ClientError(
                    {"Error": {"Code": "ThrottlingException", "Message": "slow"}}, "TransactGetItems"
                )

        clock, ends = Clock(), Clock().now + BEFORE_SHORT_CALL + 20
        table = Table(Slow(), NAME)  # type: ignore[arg-type]  # a fake
        with pytest.raises(
            OutOfTimeError, match=rf"read the ledger {NAME} .*: gave up after \d+ attempts .*slow"
        ):
            table.change(A, [FREE], hold(A), deadline(BEFORE_SHORT_CALL + 20, clock))
        assert clock.now == ends - BEFORE_SHORT_CALL

    @pytest.mark.parametrize(
        ("page", "says"),
        [
            pytest.param({"shape": SHAPE + 1}, "a newer version of the function has written it", id="newer"),
            pytest.param(
                {"holds": {"alice:free": {"request": "r", "new": True}}}, "it is damaged", id="a field more"
            ),
            pytest.param({"holds": {"alice:free": {}}}, "it is damaged", id="a field less"),
            pytest.param({"holds": "all"}, "it is damaged", id="another type"),
            pytest.param({"answers": {"r": 7}}, "it is damaged", id="no answer"),
            pytest.param({"shape": "new"}, "it is damaged", id="a shape that is no number"),
            pytest.param(
                {"holds": {"alicefree": {"request": "r"}}}, "it is damaged", id="an id that names nothing"
            ),
            pytest.param({"arrived": "request"}, "it is damaged", id="a text in the place of a list"),
            pytest.param({"foreign": "former"}, "it is damaged", id="a text in the place of another list"),
            pytest.param({"version": None}, "it is damaged", id="no version"),
            pytest.param({"version": 7}, "it is damaged", id="a version that is no text"),
        ],
    )
    def test_a_page_that_cannot_be_read_is_refused_and_left_as_it_is(
        self, table: Table, dynamodb: DynamoDBClient, page: dict[str, Any], says: str
    ) -> None:
        item = {
            name: TypeSerializer().serialize(value)
            for name, value in {"pk": f"holder#{A.stack_id}#A", "version": "v", **page}.items()
        }
        dynamodb.put_item(TableName=NAME, Item=item)
        before = pages(dynamodb)
        with pytest.raises(FailedError, match=rf"page holder#.*A of the ledger {NAME}.*: {says}"):
            table.change(A, [FREE], hold(A), deadline())
        assert pages(dynamodb) == before

    def test_pages_from_before_shapes_had_numbers_are_read(
        self, table: Table, dynamodb: DynamoDBClient
    ) -> None:
        """Old pages have a rank in each order, one RequestId, and no state: each hold is attached."""
        who = {"stack": A.stack_id, "resource": A.logical_id}
        held = {
            "holds": {"alice:free": {"request": "r", "named": True}},
            "order": 4 * NOW + 2,
            "newest": "r",
            "wants": "alice:free",
        }
        for page in (
            {"pk": f"holder#{A.stack_id}#A", "version": "v", **held},
            {"pk": "association#alice:free", "version": "v", "holders": [who], "anew": "r"},
        ):
            dynamodb.put_item(
                TableName=NAME, Item={name: TypeSerializer().serialize(value) for name, value in page.items()}
            )
        state = table.change(A, [FREE], as_is, deadline())
        assert state.record == ResourceRecord(
            {FREE: Hold("r", named=True)}, issued=NOW, arrived=("r",), wants=FREE
        )
        assert state.entry(FREE) == AssociationRecord(frozenset({A}))

    def test_a_page_says_how_far_the_attaching_is(self) -> None:
        entries = {
            "wanted": AssociationRecord(frozenset({A}), begun_by=NOBODY),
            "attaching": AssociationRecord(frozenset({A}), begun_by="r"),
        }
        entries["attached"] = AssociationRecord(frozenset({A}))
        assert {ledger._entry_page(FREE, entry)["state"] for entry in entries.values()} == set(entries)
        assert all(ledger._entry_page(FREE, entry)["state"] == state for state, entry in entries.items())
