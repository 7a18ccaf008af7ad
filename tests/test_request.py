"""The function makes a request of an event, or refuses the event and names every fault."""

import json
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from usage_plan_key.errors import EventError
from usage_plan_key.model import LONGEST_ID, Association, Holder, well_formed
from usage_plan_key.request import (
    PROPERTIES,
    REPAIR_TIME,
    Create,
    Delete,
    Invalid,
    OnExisting,
    Repair,
    Request,
    Update,
    parse,
    repair_event,
)

HANDLER = Path(__file__).parents[1] / "handler"
STACK = "arn:aws:cloudformation:eu-west-1:123456789012:stack/customers/5a1e6f40"
GOOD = {"UsagePlanId": "f7r3e3", "KeyId": "a1b2c3d4e5"}
# API Gateway takes no key value shorter than 20 characters.
VALUE = "s3cr3tAlicesKeyValue"


def event(
    kind: str = "Create", properties: Any = None, *, without: str = "", **fields: Any
) -> dict[str, Any]:
    """Make a good event, with changes."""
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


def digest(properties: Mapping[str, Any]) -> str:
    return getattr(parse(event("Update", properties)), "digest", "none")


def faults(properties: Mapping[str, Any]) -> str:
    request = parse(event(properties=properties))
    assert isinstance(request, Invalid)
    return "; ".join(request.faults)


def deep() -> list[Any]:
    """A value that is nested too deeply for JSON."""
    nested: list[Any] = []
    for _ in range(99_999):
        nested = [nested]
    return nested


class TestKinds:
    """An event becomes a Create, an Update or a Delete."""

    def test_create(self) -> None:
        """A Create has a wanted association, and no id yet."""
        request = parse(event(without="PhysicalResourceId"))
        assert isinstance(request, Create)
        assert vars(request) == {
            "id": "r1",
            "holder": Holder(STACK, "Alice"),
            "issued": 1772442000,
            "response_url": "https://x.s3.amazonaws.com/answer?X-Amz-Date=20260302T090000Z",
            "service_timeout": 3600,
            "wanted": Association("a1b2c3d4e5", "f7r3e3"),
            "physical_id": None,
            "on_existing": OnExisting.FAIL,
            "include_value": False,
            "digest": digest(GOOD),
        }

    @pytest.mark.parametrize(
        ("id_", "in_place"),
        [("a1b2c3d4e5:f7r3e3", True), ("a1b2c3d4e5:p4r0p4", False), ("former", False)],
        ids=["what it wants", "another", "foreign"],
    )
    def test_update(self, id_: str, in_place: bool) -> None:
        """An Update also has the event's id, which may name the wanted association or another one."""
        request = parse(event("Update", PhysicalResourceId=id_))
        assert isinstance(request, Update)
        assert (request.physical_id, request.wanted, request.in_place) == (
            id_,
            Association("a1b2c3d4e5", "f7r3e3"),
            in_place,
        )
        assert request.identified == Association.parse(id_)

    @pytest.mark.parametrize(
        ("old", "took"),
        [
            ({**GOOD, "OnExisting": "Take"}, True),
            ({**GOOD, "OnExisting": "Adopt"}, False),
            (GOOD, False),
            (None, False),
            ("Take", False),
        ],
        ids=repr,
    )
    def test_an_update_knows_whether_it_took(self, old: Any, took: bool) -> None:
        """Only the old properties decide, in any shape."""
        request = parse(event("Update", OldResourceProperties=old))
        assert isinstance(request, Update)
        assert request.took is took

    @pytest.mark.parametrize(
        "properties", [GOOD, {}, {"KeyID": "", "OnExisting": 1}, "nonsense", None], ids=repr
    )
    def test_a_delete_is_never_refused(self, properties: Any) -> None:
        """A Delete with any properties keeps the event's id."""
        request = parse(event("Delete", ResourceProperties=properties))
        assert isinstance(request, Delete)
        assert (request.physical_id, request.take) == ("a1b2c3d4e5:f7r3e3", False)

    def test_a_delete_may_still_say_take(self) -> None:
        """The function reads only this and ServiceTimeout from a Delete's properties."""
        request = parse(event("Delete", {"OnExisting": "Take", "Nonsense": "1"}))
        assert isinstance(request, Delete)
        assert request.take

    @pytest.mark.parametrize(
        ("event_", "id_"),
        [
            pytest.param(event(), "a1b2c3d4e5:f7r3e3", id="Create: what it wants"),
            pytest.param(
                event(properties={**GOOD, "Bad": ""}), "a1b2c3d4e5:f7r3e3", id="bad Create: the same"
            ),
            pytest.param(
                event(properties={"KeyId": "a1b2c3d4e5"}),
                "Alice",
                id="Create without both ids: the logical id",
            ),
            pytest.param(event("Update", PhysicalResourceId="own"), "own", id="Update: its own"),
            pytest.param(event("Update", {}, PhysicalResourceId="own"), "own", id="bad Update: its own"),
            pytest.param(event("Delete", PhysicalResourceId="own"), "own", id="Delete: its own"),
        ],
    )
    def test_the_id_of_a_failure(self, event_: dict[str, Any], id_: str) -> None:
        """An id other than the event's means replacement to CloudFormation; Create's id returns in Delete."""
        assert parse(event_).answer_id == id_

    def test_the_response_url_is_not_shown(self) -> None:
        """It is pre-signed; a logged request shows no secret."""
        assert "amazonaws" not in repr(parse(event()))


class TestEvents:
    """An event that lacks a field for the answer is an error of the invocation."""

    @pytest.mark.parametrize("kind", ["Create", "Update", "Delete"])
    @pytest.mark.parametrize("name", ["RequestId", "StackId", "LogicalResourceId", "ResponseURL"])
    @pytest.mark.parametrize("absent", [True, False], ids=["absent", "empty"])
    def test_lacking(self, kind: str, name: str, absent: bool) -> None:
        """The error names the missing fields."""
        lacking = event(kind, without=name) if absent else event(kind, **{name: ""})
        with pytest.raises(EventError, match=f"the {kind} event lacks {name}$"):
            parse(lacking)

    @pytest.mark.parametrize("kind", ["Update", "Delete"])
    def test_an_update_and_a_delete_have_an_id(self, kind: str) -> None:
        """CloudFormation guarantees these fields; the error names all missing ones at once."""
        with pytest.raises(EventError, match=r"lacks StackId, PhysicalResourceId$"):
            parse(event(kind, without="PhysicalResourceId", StackId=7))

    @pytest.mark.parametrize(
        ("kind", "why"),
        [
            (None, "is missing"),
            ("", "is missing"),
            ("create", "is none of"),
            ("Read", "is none of"),
            (["Create"], "is none of"),
        ],
        ids=repr,
    )
    def test_another_type(self, kind: Any, why: str) -> None:
        """The error neither guesses nor shows an unknown request type."""
        with pytest.raises(EventError, match=f"RequestType {why}") as raised:
            parse(event(kind))
        assert "Read" not in str(raised.value)

    @pytest.mark.parametrize(
        ("foreign", "what"),
        [
            (None, "this is null"),
            ([], "this is a list"),
            ([event()], "this is a list"),
            ("Create", "this is a string"),
            (7, "this is a number"),
            (True, "this is a boolean"),
            ({}, "RequestType is missing; it has no fields"),
            ({"source": "serverless-plugin-warmup"}, "RequestType is missing; it has source"),
            (
                {"requestContext": {}, "requestPayload": {"RequestType": "Create"}},
                "it has requestContext, requestPayload",
            ),
            ({"warmer": True, "concurrency": 3}, "it has warmer, concurrency"),
            ({"Records": [{"EventSource": "aws:sns", "Sns": {"Message": VALUE}}]}, "it has Records"),
            ({"Records": []}, "it has Records"),
            (dict.fromkeys("abcdefg", 1), "it has a, b, c, d, e"),
            ({7: 1, "a b": VALUE, "": 1}, "it has 7"),
            ({"ResponseURL": f"https://x/?{VALUE}", VALUE: VALUE}, "it has ResponseURL"),
        ],
        ids=lambda each: each if isinstance(each, str) else "",
    )
    def test_foreign_events(self, foreign: Any, what: str) -> None:
        """One sentence names the event and the kinds that the function takes, and shows none of the event."""
        with pytest.raises(EventError) as raised:
            parse(foreign)
        why, _, takes = str(raised.value).partition(", and ")
        assert why.startswith("not a CloudFormation custom resource event: ")
        assert why.endswith(what)
        assert takes == "the function takes CloudFormation's Create, Update and Delete"
        assert VALUE not in str(raised.value)

    @pytest.mark.parametrize("url", ["http://pre-signed-s3-url-for-response", "https://[", "https://", "x"])
    def test_any_url_is_read(self, url: str) -> None:
        """The sender checks where it leads: sam local's events have http, and nothing sends their answers."""
        request = parse(event(ResponseURL=url))
        assert isinstance(request, Create)
        assert (request.response_url, request.issued) == (url, None)


class TestFaults:
    """One answer names every fault of a request."""

    def test_all_at_once(self) -> None:
        """It names each fault, not only the first."""
        text = faults(
            {
                "KeyID": "a",
                "Descriptoin": "b",
                "UsagePlanId": "",
                "KeyType": "OTHER",
                "OnExisting": "x",
                "IncludeValue": "y",
            }
        )
        for fault in (
            "unknown property KeyID (did you mean KeyId?)",
            (
                "unknown property Descriptoin (known are UsagePlanId, KeyId, KeyType, OnExisting,"
                " IncludeValue, VerifyTrigger)"
            ),
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
            ("KeyName", "KeyId"),
            ("ApiKeyId", "KeyId"),
            ("ApiKey", "KeyId"),
            ("Plan", "UsagePlanId"),
            ("Value", "IncludeValue"),
        ],
    )
    def test_the_nearest_name_is_suggested(self, name: str, meant: str) -> None:
        """A suggestion ignores upper and lower case."""
        assert f"unknown property {name} (did you mean {meant}?)" in faults({**GOOD, name: "x"})

    @pytest.mark.parametrize("name", ["KeyId", "UsagePlanId"])
    def test_a_text_that_may_be_a_value_is_not_shown(self, name: str) -> None:
        """Somebody may have pasted a key's value as an id: neither the faults nor the id show it."""
        request = parse(event(properties={**GOOD, name: VALUE}))
        assert isinstance(request, Invalid)
        refused = (
            "; a key made with GenerateDistinctId: false has its value as its id, and the function refuses it"
            if name == "KeyId"
            else ""
        )
        text = f"{name} is malformed: it has 20 characters, like a key's value (an id has 6 to 10{refused})"
        assert request.faults == (text,)
        assert VALUE not in repr(request)
        assert request.answer_id == "Alice"

    @pytest.mark.parametrize(
        "value",
        ["a b", "a:b", "a/b", "é", "a\n", "..", "%2f", "a\x00", "\ud800", 7, ["a"], {}, True],
        ids=ascii,
    )
    def test_malformed_ids(self, value: Any) -> None:
        """Only a possible id becomes a part of a URL or of a physical id."""
        assert "KeyId is malformed" in faults({**GOOD, "KeyId": value})

    @pytest.mark.parametrize(
        ("value", "wrong"),
        [
            ("\ta1b2c3d4e5\n", "it has white space around it"),
            ("Alice's key", "it has white space in it (an id has 6 to 10 letters and digits, unlike a name)"),
            (
                "arn:aws:apigateway:eu-west-1::/apikeys/a1b2c3d4e5",
                "it is an ARN (the id is the ARN's last part)",
            ),
            (
                "a1b2c3d4e5:f7r3e3",
                "it is a pair of a key's and a plan's id (as Ref and Id give it; take the attribute KeyId)",
            ),
            ("a1b2/c3d4", "it has characters that no id has (an id has 6 to 10 letters and digits)"),
            (["a1b2c3d4e5"], "it is a list, not a string"),
            (7.5, "it is a number, not a string"),
            (b"a1b2c3d4e5", "it is bytes, not a string"),
            (
                " a1b2c3d4e5:f7r3e3",
                "it has white space around it and it is a pair of a key's and a plan's id",
            ),
            (f" {VALUE} ", "it has white space around it and it has 20 characters, like a key's value"),
        ],
        ids=str,
    )
    def test_the_fault_of_an_id_is_named_and_none_of_the_id_is_shown(self, value: Any, wrong: str) -> None:
        """Its reader can mend it; a text that is no id may be a key's value, so no Reason shows it."""
        text = faults({**GOOD, "KeyId": value})
        assert text.startswith(f"KeyId is malformed: {wrong}")
        assert str(value).strip() not in text

    @pytest.mark.parametrize("value", ["{{resolve:ssm-secure:/keys/alice}}", "${AliceKey}"])
    def test_an_unresolved_reference_says_so(self, value: str) -> None:
        """CloudFormation resolves no secure references for custom resources."""
        text = faults({**GOOD, "UsagePlanId": value})
        assert text.startswith(
            "UsagePlanId is malformed: it has a reference that CloudFormation has not resolved ("
        )
        assert "alice" not in text.lower()

    @pytest.mark.parametrize("name", ["KeyId", "UsagePlanId"])
    @pytest.mark.parametrize(
        "value",
        [
            "null",
            "None",
            "undefined",
            "[object Object]",
            "NaN",
            "nil",
            "false",
            "true",
            "<no value>",
            " NULL ",
        ],
    )
    def test_what_a_template_tool_makes_of_nothing_is_named_as_such(self, name: str, value: str) -> None:
        """A key or a plan with such an id is not found; and no physical id is made of it."""
        request = parse(event(properties={**GOOD, name: value}))
        assert isinstance(request, Invalid)
        looks = f"{name} is {value!r}, which looks like a missing value of your template tool"
        assert (request.faults, request.wanted, request.answer_id) == ((looks,), None, "Alice")

    @pytest.mark.parametrize("value", [["a1b2c3d4e5", "b1b2c3d4e5"], "a1b2c3d4e5,b1b2c3d4e5"], ids=str)
    def test_several_keys_in_one_resource_are_led_to_fn_foreach(self, value: Any) -> None:
        text = faults({**GOOD, "KeyId": value})
        assert "a resource attaches one key to one plan; Fn::ForEach declares a resource for each" in text

    def test_an_id_of_white_space_is_empty(self) -> None:
        assert faults({**GOOD, "KeyId": " \n"}) == "KeyId is empty"

    def test_equal_ids_are_no_fault(self) -> None:
        """No document of API Gateway's says that a key and a plan cannot have the same id."""
        assert isinstance(parsed({"KeyId": "f7r3e3"}), Create)

    @pytest.mark.parametrize("properties", [None, [], "x"], ids=repr)
    def test_no_properties(self, properties: Any) -> None:
        """Anything but an object counts as no properties."""
        request = parse(event(ResourceProperties=properties))
        assert isinstance(request, Invalid)
        assert request.faults == ("UsagePlanId is missing", "KeyId is missing")

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            ("x" * 19, f"'{'x' * 19}'"),
            ("x" * 20, "a string of 20 characters"),
            ("\ud800\n", r"'\ud800\n'"),
            ([VALUE], "a list"),
            (None, "null"),
            (1, "a number"),
        ],
        ids=ascii,
    )
    @pytest.mark.parametrize("name", ["KeyType", "OnExisting", "IncludeValue"])
    def test_a_refused_choice_is_shown_only_if_it_is_too_short_to_be_a_value(
        self, name: str, value: Any, shown: str
    ) -> None:
        """Somebody may have pasted a key's value into the wrong property."""
        assert faults({**GOOD, name: value}).startswith(f"{name} is {shown}, not ")

    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            ("x" * 40, "x" * 40),
            ("x" * 41, f"'{'x' * 40}'…"),
            ("", "''"),
            ("a b\n", r"'a b\n'"),
            ("\ud800é", r"'\ud800\xe9'"),
            (7, "a number"),
            (None, "null"),
        ],
        ids=ascii,
    )
    def test_odd_names_are_quoted_and_long_ones_shortened(self, name: Any, shown: str) -> None:
        """A Reason is one line that UTF-8 can encode."""
        assert faults({**GOOD, name: "x"}).startswith(f"unknown property {shown} (known are ")

    def test_names_of_all_types_at_once(self) -> None:
        """A direct invocation can bring names that have no order."""
        assert faults({**GOOD, "Bad": 1, 7: 1, None: 1, (): 1}).count("unknown property") == 4  # type: ignore[dict-item]


class TestProperties:
    """The properties' values."""

    @pytest.mark.parametrize("choice", OnExisting)
    def test_on_existing(self, choice: OnExisting) -> None:
        """OnExisting has each choice; the default is Fail."""
        assert getattr(parsed({"OnExisting": str(choice)}), "on_existing", None) is choice
        assert getattr(parsed({}), "on_existing", None) is OnExisting.FAIL

    @pytest.mark.parametrize(
        ("value", "included"), [("true", True), ("false", False), (True, True), (False, False)], ids=repr
    )
    def test_include_value(self, value: str | bool, included: bool) -> None:
        """CloudFormation turns booleans into strings, a direct invocation need not; the default is false."""
        assert getattr(parsed({"IncludeValue": value}), "include_value", None) is included
        assert getattr(parsed({}), "include_value", None) is False

    def test_the_other_properties_are_let_through(self) -> None:
        """KeyType has one value, VerifyTrigger any, and two names are CloudFormation's own."""
        good = {"KeyType": "API_KEY", "VerifyTrigger": "7", "ServiceToken": "arn:x", "ServiceTimeout": "60"}
        assert isinstance(parsed(good), Create)

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            *[
                ("60", 60),
                (60, 60),
                ("3600", 3600),
                ("9999", 3600),
                ("0", 1),
                ("-5", 1),
                ("soon", 3600),
                (None, 3600),
                ("1.5", 3600),
            ],
            *[
                ("9" * 40, 3600),
                ("9" * 9999, 3600),
                (10**9999, 3600),
                (float("nan"), 3600),
                (float("inf"), 3600),
                (deep(), 3600),
            ],
        ],
        ids=lambda each: str(type(each)),
    )
    @pytest.mark.parametrize("kind", ["Create", "Delete"])
    def test_service_timeout(self, kind: str, value: Any, seconds: int) -> None:
        """From 1 to 3,600 seconds; an odd value counts as an hour, because CloudFormation checks it."""
        assert parse(event(kind, {**GOOD, "ServiceTimeout": value})).service_timeout == seconds


class TestDigest:
    """A digest tells properties apart."""

    @pytest.mark.parametrize(
        "changed",
        [
            {"ServiceToken": "arn:x"},
            {"ServiceTimeout": "60"},
            {"VerifyTrigger": "2"},
            {"KeyType": "API_KEY"},
            {"KeyId": "k"},
        ],
        ids=str,
    )
    def test_every_property_counts(self, changed: dict[str, str]) -> None:
        """CloudFormation's own two included: a new function or time-out is a change, not a rollback."""
        assert digest({**GOOD, **changed}) != digest(GOOD)

    def test_their_order_does_not(self) -> None:
        """CloudFormation promises none; a Create's and an Update's are the same."""
        assert digest(dict(reversed(GOOD.items()))) == digest(GOOD) == getattr(parse(event()), "digest", "")
        assert re.fullmatch("[0-9a-f]{32}", digest(GOOD))

    @pytest.mark.parametrize(
        "value", [{1, 2}, {"a": 1, 7: 1}, 10**9999, b"", deep()], ids=lambda each: type(each).__name__
    )
    def test_properties_that_json_cannot_hold_have_none(self, value: object) -> None:
        """A request without a digest is like no other, and served all the same."""
        assert digest({**GOOD, "VerifyTrigger": value}) == ""


class TestIssued:
    """CloudFormation issued a request when it signed the ResponseURL."""

    @staticmethod
    def issued(query: str, kind: str = "Update") -> int | None:
        return parse(event(kind, ResponseURL=f"https://x/?{query}")).issued

    @pytest.mark.parametrize("kind", ["Create", "Update", "Delete"])
    @pytest.mark.parametrize(
        ("query", "seconds"),
        [
            ("X-Amz-Date=20260302T090000Z", 1772442000),
            ("X-Amz-Date=20260302T090001Z&X-Amz-Expires=60", 1772442001),
            ("X-Amz-Date=20251231T235959Z&X-Amz-Expires=7200", 1767225599),
            ("Expires=1772449200", 1772442000),
            ("AWSAccessKeyId=x&Expires=1772449201&Signature=y", 1772442001),
            ("X-Amz-Date=20260302T090000Z&Expires=1", 1772442000),
            ("Expires=7201", 1),
            ("Expires=8589941791", 2**33 - 1),
        ],
    )
    def test_read(self, query: str, seconds: int, kind: str) -> None:
        """`X-Amz-Date` says it; `Expires` is two hours later. The kind of request does not matter."""
        assert self.issued(query, kind) == seconds

    @pytest.mark.parametrize(
        "query",
        [
            "",
            "X-Amz-Date=yesterday",
            "X-Amz-Date=20260302",
            "X-Amz-Date=20260302T090000",
            "X-Amz-Date=20261332T090000Z",
            "X-Amz-Date=00010101T000000Z",
            "X-Amz-Date=99991231T235959Z",
            "X-Amz-Date=%ed%a0%80",
            "X-Amz-Date=",
            "X-Amz-Expires=7200",
            "Expires=soon",
            "Expires=7200",
            "Expires=-1",
            "Expires=8589941792",
            f"Expires={'9' * 40}",
            f"Expires={'9' * 9999}",
            "Expires=1e9",
        ],
    )
    def test_none(self, query: str) -> None:
        """Without an issue time there is no fence; a time that no calendar has is none."""
        assert self.issued(query) is None


class TestEnds:
    """CloudFormation's time counts from the issue, beyond the first minute."""

    @pytest.mark.parametrize(
        ("age", "left"),
        [(-3600, 60), (-60, 60), (0, 60), (59, 60), (60, 60), (61, 59), (100, 20), (120, 0), (400, -280)],
    )
    def test_age_counts_beyond_the_first_minute(self, age: int, left: int) -> None:
        """A clock that is off by a minute takes nothing from a ServiceTimeout of 60, nor adds to it."""
        request = parsed({"ServiceTimeout": "60"})
        assert request.issued is not None
        arrived = request.issued + age
        assert request.ends(arrived) - arrived == left

    def test_without_an_issue_time_it_counts_from_the_arrival(self) -> None:
        assert parse(event(ResponseURL="https://x")).ends(1000.5) == 4600.5


odd_text = st.one_of(
    st.text(max_size=30),
    st.text(st.characters(), max_size=30),  # lone surrogates too
    st.sampled_from(
        [
            "",
            "..",
            "a/b",
            "%2f",
            "a:b",
            "\x00\r\n",
            "\ud800",
            "é" * 5000,
            "https://[",
            "arn:aws:x",
            "${X}",
            "Take",
            "true",
        ]
    ),
    st.builds("https://x/?X-Amz-Date={}".format, st.text(string.digits + "TZ-:+ ", max_size=20)),
    st.builds("https://x/?Expires={}".format, st.integers()),
)
odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | odd_text
    | st.just(10**99)
    | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.none() | st.integers() | odd_text, inner, max_size=3)
    ),
    max_leaves=5,
)
odd_properties = st.builds(
    lambda known, unknown: {**GOOD, **known, **unknown},
    st.dictionaries(st.sampled_from([*PROPERTIES, "ServiceToken", "ServiceTimeout"]), odd, max_size=4),
    st.just({}) | st.dictionaries(st.none() | st.integers() | odd_text, odd, max_size=2),
)
NEEDED = ("RequestId", "StackId", "LogicalResourceId", "ResponseURL")

broken = st.builds(
    lambda name, value: event("Update", **{name: value}),
    st.sampled_from([*NEEDED, "PhysicalResourceId", "RequestType"]),
    odd.filter(lambda value: not isinstance(value, str)) | st.just(""),
)


class TestRepair:
    """The watch's repair is read like any other event, where it may come from the watch."""

    EVENT: ClassVar = repair_event("r", Holder("stack", "Alice"), Association("a1b2c3d4e5", "f7r3e3"))

    def test_it_wants_what_its_resource_holds(self) -> None:
        request = parse(self.EVENT, repairs=True)
        assert isinstance(request, Repair)
        assert (request.id, request.holder, request.physical_id) == (
            "r",
            ("stack", "Alice"),
            "a1b2c3d4e5:f7r3e3",
        )
        assert request.wanted == request.identified == ("a1b2c3d4e5", "f7r3e3")
        assert (request.issued, request.response_url, request.service_timeout) == (None, "", REPAIR_TIME)

    @pytest.mark.parametrize(
        "broken",
        [
            {"RequestType": "Mend"},
            {"RequestId": ""},
            {"StackId": 7},
            {"LogicalResourceId": None},
            {"PhysicalResourceId": "x"},
            {"PhysicalResourceId": 7},
        ],
        ids=str,
    )
    def test_half_a_repair_is_none(self, broken: dict[str, Any]) -> None:
        with pytest.raises(EventError):
            parse({**self.EVENT, **broken}, repairs=True)

    def test_nobody_but_the_watch_asks_for_one(self) -> None:
        with pytest.raises(EventError, match="RequestType is none of Create, Update and Delete"):
            parse(self.EVENT)


class TestAnyEvent:
    """Any event gives a request if an answer is possible, or else one clear sentence."""

    @given(
        kind=st.sampled_from(["Create", "Update", "Delete"]),
        needed=st.fixed_dictionaries(
            {name: odd_text.filter(bool) for name in (*NEEDED, "PhysicalResourceId")}
        ),
        rest=st.dictionaries(
            st.sampled_from(["OldResourceProperties", "ResourceType", "CrHelperPoll", "Records"]),
            odd | odd_properties,
        ),
        properties=odd_properties | odd,
    )
    @example(
        kind="Create",
        needed=dict.fromkeys((*NEEDED, "PhysicalResourceId"), "https://["),
        rest={},
        properties=None,
    )
    @settings(max_examples=500, deadline=None)
    def test_is_a_request_where_an_answer_is_possible(
        self, kind: str, needed: dict[str, str], rest: dict[str, Any], properties: Any
    ) -> None:
        """It carries what the answer needs, and its faults are one line that UTF-8 can encode."""
        request = parse({"RequestType": kind, "ResourceProperties": properties, **rest, **needed})
        assert request.id == needed["RequestId"]
        assert request.holder == (needed["StackId"], needed["LogicalResourceId"])
        assert request.response_url == needed["ResponseURL"]
        assert request.physical_id == (None if kind == "Create" else needed["PhysicalResourceId"])
        assert request.answer_id
        assert 1 <= request.service_timeout <= 3600
        assert request.issued is None or 0 < request.issued < 2**33
        assert request.ends(1e9) <= 1e9 + request.service_timeout
        match request:
            case Delete():
                assert kind == "Delete"
            case Invalid():
                assert kind != "Delete"
                assert request.faults
                assert re.fullmatch("[ -~…]+", "; ".join(request.faults))
            case Create() | Update():
                assert type(request).__name__ == kind
                assert Association.parse(request.wanted.id) == request.wanted
                json.dumps(vars(request), default=str).encode()

    @given(odd | st.dictionaries(odd_text, odd) | broken)
    @settings(max_examples=300, deadline=None)
    def test_else_it_is_an_event_error_of_one_line(self, foreign: Any) -> None:
        """It is short, has no line breaks, and shows nothing of the event but the names of fields."""
        with pytest.raises(EventError) as raised:
            parse(foreign)
        assert re.fullmatch(
            "(not a CloudFormation custom resource event: |the Update event lacks )[ -~]{1,240}",
            str(raised.value),
        )


ids = st.text("abcXYZ019_-", min_size=1, max_size=19)


class TestAssociation:
    """The nouns."""

    @given(ids, ids)
    def test_its_id_names_it(self, key: str, plan: str) -> None:
        """`parse` reads an id back as `id` wrote it."""
        association = Association(key, plan)
        assert association.id == f"{key}:{plan}"
        assert Association.parse(association.id) == association

    @pytest.mark.parametrize(
        "foreign",
        [
            "",
            "Alice",
            "a:",
            ":p",
            "a:p:q",
            "a b:p",
            f"{VALUE}:p",
            f"a:{VALUE}",
            "customers-Alice-1ABC",
            "arn:aws:x:y",
            "a:p\n",
        ],
        ids=repr,
    )
    def test_foreign_ids(self, foreign: str) -> None:
        """A foreign id names no association; a value never becomes part of an id."""
        assert Association.parse(foreign) is None

    @given(st.text())
    def test_nothing_else_is_read(self, text: str) -> None:
        """A text that `parse` reads is the text that `id` writes."""
        association = Association.parse(text)
        assert association is None or association.id == text

    @pytest.mark.parametrize("length", [0, 1, 19, 20])
    def test_lengths(self, length: int) -> None:
        """An id has fewer characters than any key's value."""
        assert well_formed("a" * length) is (0 < length < 20)

    def test_a_holder_is_named_for_people(self) -> None:
        """By its logical id and the stack's name, or by the text in its place."""
        assert str(Holder(STACK, "Alice")) == "Alice of stack customers"
        assert str(Holder("customers", "Alice")) == "Alice of stack customers"


class TestInFull:
    """The texts of faults, to the letter."""

    @pytest.mark.parametrize(
        ("key_id", "wrong"),
        [
            pytest.param(
                "${AliceKey}",
                "it has a reference that CloudFormation has not resolved"
                " ({{resolve:ssm-secure:...}} does not work in custom resources,"
                " and ${...} needs Fn::Sub)",
                id="a reference",
            ),
            pytest.param(
                "é" * LONGEST_ID,
                "it has characters that no id has (an id has 6 to 10 letters and digits)",
                id="as long as an id may be",
            ),
            pytest.param(" a1b2c3d4e5 ", "it has white space around it", id="white space around it"),
        ],
    )
    def test_the_faults_of_an_id(self, key_id: str, wrong: str) -> None:
        assert faults({**GOOD, "KeyId": key_id}) == f"KeyId is malformed: {wrong}"

    def test_an_unknown_request_type_is_named_without_its_value(self) -> None:
        said = (
            "not a CloudFormation custom resource event: RequestType is none of Create, Update and"
            " Delete, and the function takes CloudFormation's Create, Update and Delete"
        )
        with pytest.raises(EventError) as raised:
            parse(event("Replace"))
        assert str(raised.value) == said

    def test_a_question_mark_in_the_query_hides_no_issue_time(self) -> None:
        request = parse(event(ResponseURL="https://x/answer?X-Amz-Date=20260302T090000Z&x=a?b"))
        assert request.issued == 1772442000
