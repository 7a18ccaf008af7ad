"""The function makes a request of an event, or refuses the event and names every fault."""

import json
import re
import string
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from usage_plan_key.errors import EventError
from usage_plan_key.model import Association, Holder, well_formed
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

STACK = "arn:aws:cloudformation:eu-west-1:123456789012:stack/customers/5a1e6f40"
URL = "https://x.s3.amazonaws.com/answer?X-Amz-Date=20260302T090000Z"
IN_FREE = Association("a1b2c3d4e5", "f7r3e3")
GOOD = {"UsagePlanId": "f7r3e3", "KeyId": "a1b2c3d4e5"}
# API Gateway takes no key value shorter than 20 characters.
VALUE = "s3cr3tAlicesKeyValue"
NEEDED = ("RequestId", "StackId", "LogicalResourceId", "ResponseURL")


def event(kind: Any = "Create", properties: Any = GOOD, **fields: Any) -> dict[str, Any]:
    """Make a good event, with changes."""
    return {
        "RequestType": kind,
        "ResponseURL": URL,
        "StackId": STACK,
        "RequestId": "r1",
        "LogicalResourceId": "Alice",
        "PhysicalResourceId": "a1b2c3d4e5:f7r3e3",
        "ResourceProperties": properties,
        **fields,
    }


def with_(**properties: Any) -> Request:
    return parse(event("Update", GOOD | properties))


def deep() -> list[Any]:
    """A value that is nested too deeply for JSON."""
    nested: list[Any] = []
    for _ in range(99_999):
        nested = [nested]
    return nested


#: The fields of all requests, and of those for an association.
COMMON = {
    "id": "r1",
    "holder": Holder(STACK, "Alice"),
    "issued": 1772442000,
    "response_url": URL,
    "service_timeout": 3600,
}
WISH = COMMON | {
    "wanted": IN_FREE,
    "on_existing": OnExisting.FAIL,
    "include_value": False,
    "digest": "a25848cb2b2285598a936589f734d5b6",
}
ITS_OWN = {"physical_id": "own", "answer_id": "own"}
OF_WATCH = repair_event("r1", Holder(STACK, "Alice"), IN_FREE)
NO_URL = {"issued": None, "response_url": "", "service_timeout": REPAIR_TIME, "digest": ""}


class TestKinds:
    """An event becomes a Create, an Update, a Delete or, from the watch, a Repair."""

    @pytest.mark.parametrize(
        ("event_", "kind", "fields"),
        [
            (event(), Create, WISH | {"physical_id": None, "answer_id": IN_FREE.id}),
            (event("Update", PhysicalResourceId="own"), Update, WISH | ITS_OWN | {"took": False}),
            (event("Delete", PhysicalResourceId="own"), Delete, COMMON | ITS_OWN | {"take": False}),
            (event(properties={"KeyId": "a1"}), Invalid, COMMON | {"wanted": None, "answer_id": "Alice"}),
            (event("Update", {}, PhysicalResourceId="own"), Invalid, COMMON | ITS_OWN | {"wanted": None}),
            (OF_WATCH, Repair, WISH | {"physical_id": IN_FREE.id, "took": False} | NO_URL),
        ],
        ids=["Create", "Update", "Delete", "bad Create", "bad Update", "Repair"],
    )
    def test_has_its_fields(self, event_: dict[str, Any], kind: type, fields: dict[str, Any]) -> None:
        """A failure's id other than the event's means replacement to CloudFormation."""
        request = parse(event_, repairs=True)
        assert type(request) is kind
        assert {name: getattr(request, name) for name in fields} == fields
        assert "amazonaws" not in repr(request), "the URL is pre-signed"

    @pytest.mark.parametrize(
        ("id_", "shown", "in_place"),
        [
            (IN_FREE.id, IN_FREE.id, True),
            ("a1b2c3d4e5:p4r0p4", "a1b2c3d4e5:p4r0p4", False),
            ("Alice", "Alice", False),
            ("customers-Alice-1ABC", "customers-Alice-1ABC", False),
            (VALUE, "a foreign id of 20 characters", False),
            ("xAlicex", "a foreign id of 7 characters", False),
        ],
    )
    def test_an_id_names_an_association_or_is_foreign(self, id_: str, shown: str, in_place: bool) -> None:
        """A former provider's id may hold a key's value, so neither a log nor a Reason shows it."""
        request = parse(event("Update", PhysicalResourceId=id_))
        assert isinstance(request, Update)
        assert (request.identified, request.shown_id) == (Association.parse(id_), shown)
        assert request.in_place is in_place
        create = parse(event())
        assert (create.identified, create.shown_id) == (None, None)

    @pytest.mark.parametrize("said", ["Take", "Adopt", None, 7, {"OnExisting": "Take"}], ids=str)
    def test_the_word_take_counts_before_and_at_the_end(self, said: Any) -> None:
        """In an Update's old properties and in a Delete's, of which the function refuses none."""
        properties = {"OnExisting": said, "Nonsense": "1"}
        update = parse(event("Update", OldResourceProperties=properties))
        delete = parse(event("Delete", properties))
        assert [getattr(update, "took", None), getattr(delete, "take", None)] == [said == "Take"] * 2
        for odd in (None, "Take", ["Take"]):
            assert getattr(parse(event("Update", OldResourceProperties=odd)), "took", None) is False
            assert getattr(parse(event("Delete", odd)), "take", None) is False

    def test_only_the_watch_sends_a_whole_repair(self) -> None:
        for broken in (
            *({"RequestType": "Mend"}, {"RequestId": ""}, {"StackId": 7}, {"LogicalResourceId": None}),
            {"PhysicalResourceId": 7},
        ):
            with pytest.raises(EventError):
                parse(OF_WATCH | broken, repairs=True)
        with pytest.raises(EventError, match=r"^the Repair event names no association$"):
            parse(OF_WATCH | {"PhysicalResourceId": "x"}, repairs=True)
        with pytest.raises(EventError, match="RequestType is none of Create, Update and Delete"):
            parse(OF_WATCH)


class TestEvents:
    """An event that lacks a field for the answer is an error of the invocation."""

    @pytest.mark.parametrize("kind", ["Create", "Update", "Delete"])
    @pytest.mark.parametrize("value", [None, "", 7])
    def test_lacking(self, kind: str, value: Any) -> None:
        """The error names all the fields that are missing, empty or no string."""
        for name in NEEDED:
            with pytest.raises(EventError, match=f"^the {kind} event lacks {name}$"):
                parse(event(kind, **{name: value}))
        lacking = event(kind, StackId=value, PhysicalResourceId=value)
        with pytest.raises(EventError, match="lacks StackId" + ", PhysicalResourceId" * (kind != "Create")):
            parse(lacking)
        assert isinstance(parse(event(PhysicalResourceId=value)), Create)

    @pytest.mark.parametrize(
        ("foreign", "what"),
        [
            (None, "this is null"),
            ([event()], "this is a list"),
            ("Create", "this is a string"),
            (7, "this is a number"),
            (True, "this is a boolean"),
            (1.5, "this is a number"),
            ({}, "RequestType is missing; it has no fields"),
            (
                event(""),
                ", ".join(
                    ["RequestType is missing; it has RequestType", "ResponseURL", *NEEDED[1::-1], NEEDED[2]]
                ),
            ),
            (event("create"), "RequestType is none of Create, Update and Delete"),
            (event(VALUE), "RequestType is none of Create, Update and Delete"),
            (event(["Create"]), "RequestType is none of Create, Update and Delete"),
            ({"Records": [{"Sns": {"Message": VALUE}}]}, "RequestType is missing; it has Records"),
            (dict.fromkeys("abcdefg", 1), "RequestType is missing; it has a, b, c, d, e"),
            ({7: 1, "a b": VALUE, "": 1, "x" * 19: 1}, f"RequestType is missing; it has 7, {'x' * 19}"),
            ({"ResponseURL": VALUE, VALUE: VALUE}, "RequestType is missing; it has ResponseURL"),
        ],
    )
    def test_foreign_events(self, foreign: Any, what: str) -> None:
        """One sentence names the event and the kinds that the function takes, and shows none of the event."""
        with pytest.raises(EventError) as raised:
            parse(foreign)
        takes = "the function takes CloudFormation's Create, Update and Delete"
        assert str(raised.value) == f"not a CloudFormation custom resource event: {what}, and {takes}"

    @pytest.mark.parametrize("url", ["http://pre-signed-s3-url-for-response", "https://[", "https://", "x"])
    def test_any_url_is_read(self, url: str) -> None:
        """The sender checks where it leads: sam local's events have http, and nothing sends their answers."""
        request = parse(event(ResponseURL=url))
        assert isinstance(request, Create)
        assert (request.response_url, request.issued) == (url, None)


KNOWN = "known are UsagePlanId, KeyId, KeyType, OnExisting, IncludeValue, VerifyTrigger"
CHARACTERS = "it has characters that no id has (an id has 6 to 10 letters and digits)"
EACH = "a resource attaches one key to one plan; Fn::ForEach declares a resource for each"
AROUND = "it has white space around it"
PAIR = "it is a pair of a key's and a plan's id (as Ref and Id give it; take the attribute {})"
LONG = "it has 20 characters, like a key's value (an id has 6 to 10{})"
VALUE_AS_ID = (
    "; a key made with GenerateDistinctId: false has its value as its id, and the function refuses it"
)
REFERENCE = (
    "it has a reference that CloudFormation has not resolved ({{resolve:ssm-secure:...}} does not work in "
    "custom resources, and ${...} needs Fn::Sub)"
)
#: What is wrong with an id, after "NAME is malformed: "; {} stands for the property's name.
MALFORMED: list[tuple[Any, str]] = [
    ("Alice's key", "it has white space in it (an id has 6 to 10 letters and digits, unlike a name)"),
    ("\ta1b2c3d4e5\n", AROUND),
    ("a1b2c3d4e5\n", AROUND),
    ("arn:aws:apigateway:eu-west-1::/apikeys/a1b2c3d4e5", "it is an ARN (the id is the ARN's last part)"),
    ("a1b2c3d4e5:f7r3e3", PAIR),
    (" a1b2c3d4e5:f7r3e3", f"{AROUND} and {PAIR}"),
    *((odd, CHARACTERS) for odd in ("a/b", "é" * 19, "..", "%2f", "a\x00", "\ud800", "a:b:c")),
    ("a1b2c3d4e5,b1b2c3d4e5", f"it has a comma ({EACH})"),
    (["a1b2c3d4e5"], f"it is a list, not a string ({EACH})"),
    *((odd, "it is a number, not a string") for odd in (7, 7.5)),
    ({}, "it is an object, not a string"),
    (True, "it is a boolean, not a string"),
    (b"a1b2c3d4e5", "it is bytes, not a string"),
    ("{{resolve:ssm-secure:/keys/alice}}", REFERENCE),
    ("${AliceKey}", REFERENCE),
    (VALUE, LONG),
    (f" {VALUE} ", f"{AROUND} and {LONG}"),
]
MISSING = ["null", "None", "undefined", "[object Object]", "NaN", "nil", "false", "TRUE", "<no value>", "{}"]
#: Other changes to good properties, and the sentence that each gives.
FAULTS: list[tuple[dict[Any, Any], str]] = [
    *(({name: ""}, f"{name} is empty") for name in ("KeyId", "UsagePlanId")),
    *(({name: " \n"}, f"{name} is empty") for name in ("KeyId", "UsagePlanId")),
    *(({name: None}, f"{name} is missing") for name in ("KeyId", "UsagePlanId")),
    *(
        ({name: odd}, f"{name} is {odd!r}, which looks like a missing value of your template tool")
        for name in ("KeyId", "UsagePlanId")
        for odd in (*MISSING, "[]", " NULL ")
    ),
    *(
        ({name: odd}, f"{name} is {shown}, not {choices}")
        for name, choices in (
            ("KeyType", "API_KEY"),
            ("OnExisting", "Fail or Adopt or Take"),
            ("IncludeValue", "true or false"),
        )
        for odd, shown in (
            ("x" * 19, f"'{'x' * 19}'"),
            ("x" * 20, "a string of 20 characters"),
            ("\ud800\n", r"'\ud800\n'"),
            ([VALUE], "a list"),
            (None, "null"),
            (1, "a number"),
        )
    ),
    ({"IncludeValue": "True"}, "IncludeValue is 'True', not true or false"),
    ({"KeyType": True}, "KeyType is a boolean, not API_KEY"),
    *(
        ({name: "x"}, f"unknown property {name} (did you mean {meant}?)")
        for meant, names in (
            ("KeyId", ("KeyID", "keyid", "KeyName", "ApiKeyId", "ApiKey")),
            ("UsagePlanId", ("PlanId", "Plan", "UsagePlan")),
            ("OnExisting", ("OnExists",)),
            ("VerifyTrigger", ("Verify",)),
            ("IncludeValue", ("Value",)),
        )
        for name in names
    ),
    *(
        ({name: "x"}, f"unknown property {shown} ({KNOWN})")
        for name, shown in (
            ("x" * 40, "x" * 40),
            ("x" * 41, f"'{'x' * 40}'…"),
            ("", "''"),
            ("a b\n", r"'a b\n'"),
            ("\ud800é", r"'\ud800\xe9'"),
            (7, "a number"),
            (None, "null"),
            ((), "tuple"),
        )
    ),
]


class TestFaults:
    """One answer names every fault of a request, and shows nothing that may be a key's value."""

    @pytest.mark.parametrize(("changes", "sentence"), FAULTS, ids=ascii)
    def test_a_fault_has_its_sentence(self, changes: dict[Any, Any], sentence: str) -> None:
        request = parse(event(properties=GOOD | changes))
        assert isinstance(request, Invalid)
        assert request.faults == (sentence,)
        is_whole = {"KeyId", "UsagePlanId"}.isdisjoint(changes)
        assert (request.wanted, request.answer_id) == ((IN_FREE, IN_FREE.id) if is_whole else (None, "Alice"))

    @pytest.mark.parametrize("name", ["KeyId", "UsagePlanId"])
    @pytest.mark.parametrize(("value", "wrong"), MALFORMED, ids=ascii)
    def test_a_malformed_id_is_not_shown(self, name: str, value: Any, wrong: str) -> None:
        """Its reader can mend it; only a possible id becomes a part of a URL or of a physical id."""
        request = parse(event(properties=GOOD | {name: value}))
        assert isinstance(request, Invalid)
        more = (VALUE_AS_ID if name == "KeyId" else "") if "20 char" in wrong else name
        assert request.faults == (f"{name} is malformed: {wrong.replace('{}', more)}",)
        assert (request.wanted, request.answer_id) == (None, "Alice")

    def test_all_are_named_in_order(self) -> None:
        wrong = {"KeyID": "a", "Descriptoin": "b", "UsagePlanId": "", "KeyType": "X", "OnExisting": "x"}
        request = parse(event(properties=wrong | {"IncludeValue": "y"}))
        assert isinstance(request, Invalid)
        assert request.faults == (
            f"unknown property Descriptoin ({KNOWN})",
            "unknown property KeyID (did you mean KeyId?)",
            "UsagePlanId is empty",
            "KeyId is missing",
            "KeyType is 'X', not API_KEY",
            "OnExisting is 'x', not Fail or Adopt or Take",
            "IncludeValue is 'y', not true or false",
        )
        odd = parse(event(properties=GOOD | {"Bad": 1, 7: 1, None: 1, (): 1}))
        assert len(getattr(odd, "faults", ())) == 4, "names of all types, which have no order"

    @pytest.mark.parametrize("properties", [None, [], "x", {}], ids=repr)
    def test_anything_but_an_object_has_no_properties(self, properties: Any) -> None:
        request = parse(event(properties=properties))
        assert getattr(request, "faults", None) == ("UsagePlanId is missing", "KeyId is missing")


class TestProperties:
    """The properties' values."""

    def test_each_choice(self) -> None:
        """CloudFormation turns booleans into strings, a direct invocation need not."""
        for choice in OnExisting:
            assert getattr(with_(OnExisting=str(choice)), "on_existing", None) is choice
        for value, included in (("true", True), ("false", False), (True, True), (False, False)):
            assert getattr(with_(IncludeValue=value), "include_value", None) is included

    def test_the_rest_is_let_through(self) -> None:
        """No document of API Gateway's says that a key and a plan cannot have the same id."""
        own = {"ServiceToken": "arn:x", "ServiceTimeout": "60"}
        assert isinstance(with_(KeyType="API_KEY", VerifyTrigger={"any": 7}, **own), Update)
        assert isinstance(with_(KeyId="f7r3e3"), Update)

    @pytest.mark.parametrize("kind", ["Create", "Update", "Delete"])
    def test_service_timeout(self, kind: str) -> None:
        """From 1 to 3,600 seconds; an odd value counts as an hour, because CloudFormation checks it."""
        odd = ("soon", None, "1.5", float("nan"), float("inf"), deep(), 10**9999, "9" * 9999)
        table = {3600: (*odd, "3600", "9999", "9" * 40), 60: ("60", 60), 2: ("2",), 1: ("0", "-5", "1")}
        for seconds, values in table.items():
            for value in values:
                assert parse(event(kind, GOOD | {"ServiceTimeout": value})).service_timeout == seconds

    def test_a_digest_tells_properties_apart(self) -> None:
        """A new function or time-out is a change too, and no rollback; only the order does not count."""
        changes = ["ServiceToken", "ServiceTimeout", "VerifyTrigger", "KeyType", "KeyId"]
        given = [with_(), *(with_(**{name: "API_KEY"}) for name in changes)]
        assert len({getattr(request, "digest", "") for request in given}) == 6
        turned = parse(event(properties=dict(reversed(GOOD.items()))))
        assert getattr(turned, "digest", 1) == getattr(with_(), "digest", 2)

    @pytest.mark.parametrize("value", [{1, 2}, {"a": 1, 7: 1}, 10**9999, b"", deep()], ids=type)
    def test_properties_that_json_cannot_hold_have_none(self, value: object) -> None:
        """A request without a digest is like no other, and served all the same."""
        assert getattr(with_(VerifyTrigger=value), "digest", None) == ""


class TestTime:
    """CloudFormation issued a request when it signed the ResponseURL, and waits for so long."""

    @pytest.mark.parametrize(
        ("query", "seconds"),
        [
            ("X-Amz-Date=20260302T090000Z", 1772442000),
            ("X-Amz-Date=20260302T090001Z&X-Amz-Expires=60", 1772442001),
            ("X-Amz-Date=20260302T090000Z&Expires=1&x=a?b", 1772442000),
            ("Expires=1772449200", 1772442000),
            ("AWSAccessKeyId=x&Expires=1772449201&Signature=y", 1772442001),
            ("Expires=7201", 1),
            ("Expires=8589941791", 2**33 - 1),
            *((f"X-Amz-Date={date}", None) for date in ("yesterday", "20260302", "20260302T090000", "")),
            *((f"X-Amz-Date={date}T000000Z", None) for date in ("20261332", "00010101", "99991231")),
            *((f"Expires={odd}", None) for odd in ("soon", "7200", "-1", "1e9", "8589941792", "9" * 9999)),
            ("X-Amz-Date=%ed%a0%80", None),
            ("X-Amz-Expires=7200", None),
            ("", None),
        ],
    )
    def test_the_url_tells_when_it_was_issued(self, query: str, seconds: int | None) -> None:
        """`X-Amz-Date` says it; `Expires` is two hours later. A time that no calendar has is none."""
        for kind in ("Create", "Update", "Delete"):
            assert parse(event(kind, ResponseURL=f"https://x/?{query}")).issued == seconds

    @pytest.mark.parametrize(
        ("age", "left"),
        [(-3600, 60), (-60, 60), (0, 60), (59, 60), (60, 60), (61, 59), (100, 20), (120, 0), (400, -280)],
    )
    def test_age_counts_beyond_the_first_minute(self, age: int, left: int) -> None:
        """A clock that is off by a minute takes nothing from a ServiceTimeout of 60, nor adds to it."""
        request = with_(ServiceTimeout="60")
        assert request.ends(1772442000.0 + age) - 1772442000.0 - age == left
        assert parse(event(ResponseURL="https://x")).ends(1000.5) == 4600.5


texts = st.text(max_size=30) | st.sampled_from(
    ["", "a/b", "a:b", "\x00\r\n", "\ud800", "é" * 5000, "https://[", "arn:aws:x", "${X}", "Take", "true"]
)
odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.just(10**99) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.none() | texts, inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from([*PROPERTIES, "ServiceToken", "ServiceTimeout"]) | st.none() | st.integers() | texts
urls = texts | st.builds("https://x/?{}={}".format, st.sampled_from(["X-Amz-Date", "Expires"]), texts)


class TestAnyEvent:
    """Any event gives a request if an answer is possible, or else one clear sentence."""

    @given(
        kind=st.sampled_from(["Create", "Update", "Delete"]),
        needed=st.fixed_dictionaries(dict.fromkeys((*NEEDED, "PhysicalResourceId"), urls)),
        rest=st.dictionaries(
            st.sampled_from([*NEEDED, "OldResourceProperties", "CrHelperPoll", "Records"]), odd
        ),
        properties=odd | st.dictionaries(names, odd, max_size=4).map(lambda changes: GOOD | changes),
    )
    @settings(max_examples=150)
    def test_is_a_request_or_one_sentence(
        self, kind: str, needed: dict[str, str], rest: dict[str, Any], properties: Any
    ) -> None:
        """It carries what the answer needs; faults and an error are one line of UTF-8."""
        given = {"RequestType": kind, "ResourceProperties": properties, **needed, **rest}
        try:
            request = parse(given)
        except EventError as error:
            assert not all(isinstance(given[name], str) and given[name] for name in needed)
            assert re.fullmatch(f"the {kind} event lacks [ -~]{{1,240}}", str(error))  # noqa: PT017  # or a request
            return
        assert (request.id, request.response_url) == (given["RequestId"], given["ResponseURL"])
        assert request.holder == (given["StackId"], given["LogicalResourceId"])
        assert request.physical_id == (None if kind == "Create" else given["PhysicalResourceId"])
        assert request.answer_id
        assert request.issued is None or 0 < request.issued < 2**33
        assert request.ends(1e9) <= 1e9 + request.service_timeout <= 1e9 + 3600
        if isinstance(request, Invalid):
            assert kind != "Delete"
            assert re.fullmatch("[ -~…]+", "; ".join(request.faults))
        else:
            assert type(request).__name__ == kind
            json.dumps(vars(request), default=str).encode()


class TestAssociation:
    """The nouns."""

    @given(
        st.text(string.printable, max_size=25)
        | st.builds("{}:{}".format, *[st.text("aZ09_-", min_size=1)] * 2)
    )
    @example("a:p\n")
    @example(f"{VALUE}:p")
    @example(f"a:{VALUE}")
    @example("arn:aws:x:y")
    @settings(max_examples=60)
    def test_only_two_ids_and_a_colon_are_one(self, text: str) -> None:
        """A foreign id names no association; a value never becomes part of an id."""
        key_id, _, plan_id = text.partition(":")
        good = re.fullmatch(r"[\w-]{1,19}:[\w-]{1,19}", text, re.ASCII)
        assert Association.parse(text) == (Association(key_id, plan_id) if good else None)
        assert not good or Association(key_id, plan_id).id == text

    def test_an_id_is_shorter_than_any_keys_value(self) -> None:
        assert [length for length in range(22) if well_formed("a" * length)] == [*range(1, 20)]

    def test_a_holder_is_named_for_people(self) -> None:
        """By its logical id and the stack's name, or by the text in its place."""
        assert str(Holder(STACK, "Alice")) == "Alice of stack customers"
        assert str(Holder("customers", "Alice")) == "Alice of stack customers"
