"""From an event to a request: what is read, what is refused and how it is told."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage_plan_key.association import Association, Holder, well_formed
from usage_plan_key.request import Create, Delete, EventError, Invalid, OnExisting, Request, Update, parse

HANDLER = Path(__file__).parents[1] / "handler"
STACK = "arn:aws:cloudformation:eu-west-1:123456789012:stack/customers/5a1e6f40"
GOOD = {"UsagePlanId": "f7r3e3", "KeyId": "a1b2c3d4e5"}
# API Gateway takes no key value shorter than 20 characters.
VALUE = "s3cr3tAlicesKeyValue"


def event(kind: str = "Create", properties: Any = None, *, without: str = "", **fields: Any) -> dict[str, Any]:
    """A good event with something changed."""
    event = {
        "RequestType": kind,
        "ResponseURL": "https://x.s3.amazonaws.com/answer?X-Amz-Date=20260302T090000Z",
        "StackId": STACK,
        "RequestId": "r1",
        "LogicalResourceId": "Alice",
        "PhysicalResourceId": "a1b2c3d4e5:f7r3e3",
        "ResourceProperties": GOOD if properties is None else properties,
        **fields,
    }
    return {name: value for name, value in event.items() if name != without}


def parsed(properties: Mapping[str, Any]) -> Request:
    return parse(event(properties={**GOOD, **properties}))


def faults(properties: Mapping[str, Any]) -> str:
    request = parse(event(properties=properties))
    assert isinstance(request, Invalid)
    return "; ".join(request.faults)


class TestKinds:
    """An event becomes a Create, an Update or a Delete."""

    def test_create(self) -> None:
        """A Create has what it wants, and no id yet."""
        request = parse(event(without="PhysicalResourceId"))
        assert isinstance(request, Create)
        assert vars(request) == {
            "id": "r1",
            "holder": Holder(STACK, "Alice"),
            "order": parse(event()).order,
            "response_url": "https://x.s3.amazonaws.com/answer?X-Amz-Date=20260302T090000Z",
            "service_timeout": 3600,
            "wanted": Association("a1b2c3d4e5", "f7r3e3"),
            "physical_id": None,
            "on_existing": OnExisting.FAIL,
            "include_value": False,
        }

    @pytest.mark.parametrize(
        ("id_", "in_place"),
        [("a1b2c3d4e5:f7r3e3", True), ("a1b2c3d4e5:p4r0p4", False), ("former", False)],
        ids=["what it wants", "another", "foreign"],
    )
    def test_update(self, id_: str, in_place: bool) -> None:
        """An Update has the event's id besides, which may name what it wants or something else."""
        request = parse(event("Update", PhysicalResourceId=id_))
        assert isinstance(request, Update)
        assert (request.physical_id, request.wanted, request.in_place) == (id_, Association("a1b2c3d4e5", "f7r3e3"), in_place)

    @pytest.mark.parametrize("properties", [GOOD, {}, {"KeyID": "", "OnExisting": 1}, "nonsense", None], ids=repr)
    def test_a_delete_is_never_refused(self, properties: Any) -> None:
        """Whatever its properties are, a Delete goes through with the event's id."""
        request = parse(event("Delete", ResourceProperties=properties))
        assert isinstance(request, Delete)
        assert (request.physical_id, request.take) == ("a1b2c3d4e5:f7r3e3", False)

    def test_a_delete_may_still_say_take(self) -> None:
        """That alone is read from its properties, beside ServiceTimeout."""
        request = parse(event("Delete", {"OnExisting": "Take", "Nonsense": "1"}))
        assert isinstance(request, Delete)
        assert request.take

    @pytest.mark.parametrize(
        ("event_", "id_"),
        [
            pytest.param(event(), "a1b2c3d4e5:f7r3e3", id="Create: what it wants"),
            pytest.param(event(properties={**GOOD, "Bad": ""}), "a1b2c3d4e5:f7r3e3", id="bad Create: the same"),
            pytest.param(event(properties={"KeyId": "a1b2c3d4e5"}), "Alice", id="Create without both ids: the logical id"),
            pytest.param(event("Update", PhysicalResourceId="own"), "own", id="Update: its own"),
            pytest.param(event("Update", {}, PhysicalResourceId="own"), "own", id="bad Update: its own"),
            pytest.param(event("Delete", PhysicalResourceId="own"), "own", id="Delete: its own"),
        ],
    )
    def test_the_id_of_a_failure(self, event_: dict[str, Any], id_: str) -> None:
        """CloudFormation takes another id than the event's for a replacement; a Create's comes back with its Delete."""
        assert parse(event_).answer_id == id_

    def test_the_response_url_is_not_shown(self) -> None:
        """It is pre-signed: whoever logs a request logs no secret."""
        assert "amazonaws" not in repr(parse(event()))


class TestEvents:
    """What lacks what an answer needs is an error of the invocation."""

    @pytest.mark.parametrize("kind", ["Create", "Update", "Delete"])
    @pytest.mark.parametrize("name", ["RequestId", "StackId", "LogicalResourceId", "ResponseURL"])
    @pytest.mark.parametrize("absent", [True, False], ids=["absent", "empty"])
    def test_lacking(self, kind: str, name: str, absent: bool) -> None:
        """What is lacking is named."""
        lacking = event(kind, without=name) if absent else event(kind, **{name: ""})
        with pytest.raises(EventError, match=f"the {kind} event lacks {name}$"):
            parse(lacking)

    @pytest.mark.parametrize("kind", ["Update", "Delete"])
    def test_an_update_and_a_delete_have_an_id(self, kind: str) -> None:
        """CloudFormation guarantees it; all that is lacking is named at once."""
        with pytest.raises(EventError, match=r"lacks StackId, PhysicalResourceId$"):
            parse(event(kind, without="PhysicalResourceId", StackId=7))

    @pytest.mark.parametrize("kind", [None, "", "create", "Read"])
    def test_another_type(self, kind: Any) -> None:
        """A request type that nobody knows is not guessed at."""
        with pytest.raises(EventError, match="RequestType is"):
            parse(event(kind))

    @pytest.mark.parametrize("url", ["http://x.s3.amazonaws.com/a", "file:///etc/passwd", "https://", "https:///a", "x"])
    def test_only_https(self, url: str) -> None:
        """An answer goes out over TLS or not at all, and the URL is not in the error."""
        with pytest.raises(EventError, match=r"^the ResponseURL is not https$"):
            parse(event(ResponseURL=url))


class TestFaults:
    """Every fault of a request is named in one answer."""

    def test_all_at_once(self) -> None:
        """Not the first alone."""
        text = faults(
            {"KeyID": "a", "Descriptoin": "b", "UsagePlanId": "", "KeyType": "OTHER", "OnExisting": "x", "IncludeValue": "y"}
        )
        for fault in (
            "unknown property KeyID (did you mean KeyId?)",
            "unknown property Descriptoin (known are UsagePlanId, KeyId, KeyType, OnExisting, IncludeValue, VerifyTrigger)",
            "UsagePlanId is empty",
            "KeyId is missing",
            "KeyType is 'OTHER', not API_KEY",
            "OnExisting is 'x', not Fail or Adopt or Take",
            "IncludeValue is 'y', not true or false",
        ):
            assert fault in text

    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("KeyID", "KeyId"),
            ("keyid", "KeyId"),
            ("PlanId", "UsagePlanId"),
            ("OnExists", "OnExisting"),
            ("Verify", "VerifyTrigger"),
        ],
    )
    def test_the_nearest_name_is_suggested(self, name: str, meant: str) -> None:
        """Whatever the case."""
        assert f"unknown property {name} (did you mean {meant}?)" in faults({**GOOD, name: "x"})

    @pytest.mark.parametrize("name", ["KeyId", "UsagePlanId"])
    def test_what_may_be_a_value_is_not_shown(self, name: str) -> None:
        """Where an id belongs, a key's value may have been pasted: neither the faults nor the id show it."""
        request = parse(event(properties={**GOOD, name: VALUE}))
        assert isinstance(request, Invalid)
        assert request.faults == (
            f"{name} is malformed (20 characters): it takes an id, 6 to 10 letters and digits, not a name or value",
        )
        assert VALUE not in repr(request)
        assert request.answer_id == "Alice"

    @pytest.mark.parametrize("value", ["a b", "a:b", "a/b", "é", "a\n", 7, ["a"], True], ids=repr)
    def test_malformed_ids(self, value: Any) -> None:
        """What cannot be an id is no part of a URL or of a physical id."""
        assert "KeyId is malformed" in faults({**GOOD, "KeyId": value})

    @pytest.mark.parametrize("properties", [None, [], "x"], ids=repr)
    def test_no_properties(self, properties: Any) -> None:
        """They are missing, whatever stands in their place."""
        request = parse(event(ResourceProperties=properties))
        assert isinstance(request, Invalid)
        assert request.faults == ("UsagePlanId is missing", "KeyId is missing")

    def test_a_long_one_is_shortened(self) -> None:
        """Somebody may have pasted something long."""
        assert faults({**GOOD, "OnExisting": "x" * 999}) == f"OnExisting is '{'x' * 55}…, not Fail or Adopt or Take"


class TestProperties:
    """What the properties say."""

    @pytest.mark.parametrize("choice", OnExisting)
    def test_on_existing(self, choice: OnExisting) -> None:
        """Each choice is taken; without one it is Fail."""
        assert getattr(parsed({"OnExisting": str(choice)}), "on_existing", None) is choice
        assert getattr(parsed({}), "on_existing", None) is OnExisting.FAIL

    @pytest.mark.parametrize(("value", "included"), [("true", True), ("false", False), (True, True), (False, False)], ids=repr)
    def test_include_value(self, value: str | bool, included: bool) -> None:
        """CloudFormation turns booleans into strings, a direct invocation may not; without one it is false."""
        assert getattr(parsed({"IncludeValue": value}), "include_value", None) is included
        assert getattr(parsed({}), "include_value", None) is False

    def test_what_is_let_through(self) -> None:
        """KeyType has one value, VerifyTrigger any, and two names are CloudFormation's own."""
        good = {"KeyType": "API_KEY", "VerifyTrigger": "7", "ServiceToken": "arn:x", "ServiceTimeout": "60"}
        assert isinstance(parsed(good), Create)

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [("60", 60), (60, 60), ("3600", 3600), ("9999", 3600), ("0", 1), ("-5", 1), ("soon", 3600), (None, 3600), ("1.5", 3600)],
        ids=repr,
    )
    @pytest.mark.parametrize("kind", ["Create", "Delete"])
    def test_service_timeout(self, kind: str, value: Any, seconds: int) -> None:
        """From 1 to 3,600 seconds; what is odd counts as absent, an hour, for it is checked elsewhere."""
        assert parse(event(kind, {**GOOD, "ServiceTimeout": value})).service_timeout == seconds


class TestOrder:
    """Requests are ordered by the second in which their ResponseURL was signed."""

    @staticmethod
    def order(query: str, kind: str = "Update") -> int | None:
        return parse(event(kind, ResponseURL=f"https://x/?{query}")).order

    @pytest.mark.parametrize(
        "queries",
        [
            ("X-Amz-Date=20260302T090000Z", "X-Amz-Date=20260302T090001Z"),
            ("X-Amz-Date=20251231T235959Z&X-Amz-Expires=7200", "X-Amz-Date=20260101T000000Z&X-Amz-Expires=60"),
            ("Expires=1772442000", "Expires=1772442001"),
            ("AWSAccessKeyId=x&Expires=999&Signature=y", "AWSAccessKeyId=x&Expires=1000&Signature=y"),
        ],
        ids=["date", "over a year's end", "expires", "expires as numbers"],
    )
    def test_a_second_later(self, queries: tuple[str, str]) -> None:
        """A later request is greater by a second, whatever their kinds are."""
        first, second = self.order(queries[0], "Delete"), self.order(queries[1], "Create")
        assert first is not None
        assert second is not None
        assert first < second

    def test_the_date_counts_first(self) -> None:
        """`X-Amz-Date` tells when it was signed, `Expires` only when that ends."""
        assert self.order("X-Amz-Date=20260302T090000Z&Expires=1") == self.order("X-Amz-Date=20260302T090000Z")

    def test_within_a_second(self) -> None:
        """A resource's Delete comes after the rest."""
        orders = [self.order("Expires=7", kind) or 0 for kind in ("Create", "Update", "Delete")]
        assert orders == sorted(set(orders))

    @pytest.mark.parametrize(
        "query",
        [
            "",
            "X-Amz-Date=yesterday",
            "X-Amz-Date=20260302",
            "X-Amz-Date=20260302T090000",
            "Expires=soon",
            "X-Amz-Date=",
            "X-Amz-Expires=7200",
        ],
    )
    def test_none(self, query: str) -> None:
        """Without an issue time there is no fence."""
        assert self.order(query) is None


ids = st.text("abcXYZ019_-", min_size=1, max_size=19)


class TestAssociation:
    """The nouns."""

    @given(ids, ids)
    def test_its_id_names_it(self, key: str, plan: str) -> None:
        """An id is written and read back."""
        association = Association(key, plan)
        assert association.id == f"{key}:{plan}"
        assert Association.parse(association.id) == association

    @pytest.mark.parametrize(
        "foreign",
        ["", "Alice", "a:", ":p", "a:p:q", "a b:p", f"{VALUE}:p", f"a:{VALUE}", "customers-Alice-1ABC", "arn:aws:x:y", "a:p\n"],
        ids=repr,
    )
    def test_foreign_ids(self, foreign: str) -> None:
        """What was never ours names nothing; a value never becomes part of an id."""
        assert Association.parse(foreign) is None

    @given(st.text())
    def test_nothing_else_is_read(self, text: str) -> None:
        """What is read is written the same."""
        association = Association.parse(text)
        assert association is None or association.id == text

    @pytest.mark.parametrize("length", [0, 1, 19, 20])
    def test_lengths(self, length: int) -> None:
        """An id has fewer characters than any key's value."""
        assert well_formed("a" * length) is (0 < length < 20)

    def test_a_holder_is_named_for_people(self) -> None:
        """By its logical id and the stack's name, or by what stands in its place."""
        assert str(Holder(STACK, "Alice")) == "Alice of stack customers"
        assert str(Holder("customers", "Alice")) == "Alice of stack customers"


@pytest.mark.parametrize("module", ["association", "request", "lifecycle"])
def test_the_core_knows_nothing_of_aws(module: str) -> None:
    """The rules and the nouns load no AWS library."""
    code = f"import sys, usage_plan_key.{module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=HANDLER, capture_output=True, text=True, check=True).stdout.split()
    assert f"usage_plan_key.{module}" in loaded
    aws = {"boto3", "botocore", "crhelper", "aws_lambda_powertools", "s3transfer", "urllib3"}
    assert not aws & {name.partition(".")[0] for name in loaded}
