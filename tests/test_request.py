"""The function makes a request of an event, or refuses the event and names every fault."""

import json
import re
from functools import reduce
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usage_plan_key.errors import EventError
from usage_plan_key.model import Association, Holder, well_formed
from usage_plan_key.request import Create, Delete, Invalid, OnExisting, Repair, Update, parse, repair_event

from .answers import EVENTS

ASKED = EVENTS["update-verify"]
STACK, NAME = ASKED["StackId"], ASKED["LogicalResourceId"]
IN_FREE = Association("a1b2c3d4e5", "f7r3e3")
GOOD = {"UsagePlanId": "f7r3e3", "KeyId": "a1b2c3d4e5"}
# API Gateway takes no key value shorter than 20 characters.
VALUE = "s3cr3tAlicesKeyValue"
NEEDED = ("RequestId", "StackId", "LogicalResourceId", "ResponseURL")
REPAIR = repair_event(ASKED["RequestId"], Holder(STACK, NAME), IN_FREE)
NONE_OF = "RequestType is none of Create, Update and Delete"
each_kind = pytest.mark.parametrize("kind", ["Create", "Update", "Delete"])


def event(kind: Any = "Create", properties: Any = GOOD, **fields: Any) -> dict[str, Any]:
    """Make a good event, with changes."""
    changes = {"RequestType": kind, "PhysicalResourceId": "own", "ResourceProperties": properties}
    return {**ASKED, **changes, **fields}


def asked(kind: str = "Update", properties: Any = GOOD, **fields: Any) -> Any:
    return parse(event(kind, properties, **fields))


def with_(**properties: Any) -> Any:
    return asked(properties=GOOD | properties)


#: A value that is nested too deeply for JSON.
DEEP: list[Any] = reduce(lambda inner, _: [inner], range(99_999), [])


class TestKinds:
    """An event becomes a Create, an Update, a Delete or, from the watch, a Repair."""

    @pytest.mark.parametrize(
        ("event_", "kind", "physical_id", "wanted", "answer_id"),
        [
            (event(), Create, None, IN_FREE, IN_FREE.id),
            (event("Update"), Update, "own", IN_FREE, "own"),
            (event("Delete"), Delete, "own", None, "own"),
            (event("Create", {"KeyId": "a1b2c3d4e5"}), Invalid, None, None, NAME),
            (event("Create", GOOD | {"Odd": 1}), Invalid, None, IN_FREE, IN_FREE.id),
            (event("Update", GOOD | {"Odd": 1}), Invalid, "own", IN_FREE, "own"),
            (REPAIR, Repair, IN_FREE.id, IN_FREE, IN_FREE.id),
        ],
    )
    def test_has_its_ids(
        self, event_: Any, kind: type, physical_id: Any, wanted: Any, answer_id: str
    ) -> None:
        """A failure's id other than the event's means replacement to CloudFormation."""
        request = parse(event_, repairs=True)
        assert type(request) is kind
        failed = request.answer_id(success=False)
        assert (request.physical_id, request.wanted, failed) == (physical_id, wanted, answer_id)
        assert (request.id, request.holder) == (ASKED["RequestId"], Holder(STACK, NAME))
        assert "amazonaws" not in repr(request), "the URL is pre-signed"

    @pytest.mark.parametrize(
        "odd", [None, "Take", ["Take"], *({"OnExisting": odd} for odd in ("Take", "Adopt", {"Take": 1}))]
    )
    def test_the_word_take_counts_before_and_at_the_end(self, odd: Any) -> None:
        """In an Update's old properties and in a Delete's, of which the function refuses none."""
        takes = odd == {"OnExisting": "Take"}
        assert asked(OldResourceProperties=odd).took is takes
        assert asked("Delete", odd).take is takes

    @pytest.mark.parametrize("name", REPAIR)
    def test_only_the_watch_sends_a_whole_repair(self, name: str) -> None:
        for changes, repairs in (({name: ""}, True), ({"PhysicalResourceId": "x"}, True), ({}, False)):
            with pytest.raises(EventError):
                parse(REPAIR | changes, repairs=repairs)


class TestEvents:
    """An event that lacks a field for the answer is an error of the invocation."""

    @each_kind
    @pytest.mark.parametrize("value", [None, "", 7])
    def test_lacking(self, kind: str, value: Any) -> None:
        """The error names all the fields that are missing, empty or no string."""
        for name in NEEDED:
            with pytest.raises(EventError, match=f"^the {kind} event lacks {name}$"):
                asked(kind, **{name: value})
        both = "StackId" + ", PhysicalResourceId" * (kind != "Create")
        with pytest.raises(EventError, match=f"^the {kind} event lacks {both}$"):
            asked(kind, StackId=value, PhysicalResourceId=value)

    @pytest.mark.parametrize(
        ("foreign", "what"),
        [
            *((None, "this is null"), ([event()], "this is a list"), ("Create", "this is a string")),
            *((7, "this is a number"), (True, "this is a boolean"), (1.5, "this is a number")),
            *((event(kind), NONE_OF) for kind in ("create", VALUE, ["Create"])),
            ({}, "RequestType is missing; it has no fields"),
            ({"RequestType": "", "a": 1}, "RequestType is missing; it has RequestType, a"),
            ({"Records": [{"Sns": {"Message": VALUE}}]}, "RequestType is missing; it has Records"),
            (dict.fromkeys("abcdefg", 1), "RequestType is missing; it has a, b, c, d, e"),
            ({7: 1, "a b": VALUE, "": 1, "x" * 19: 1}, f"RequestType is missing; it has 7, {'x' * 19}"),
            ({"ResponseURL": VALUE, VALUE: VALUE}, "RequestType is missing; it has ResponseURL"),
        ],
        ids=ascii,
    )
    def test_foreign_events(self, foreign: Any, what: str) -> None:
        """One sentence names the event and the kinds that the function takes, and shows none of the event."""
        with pytest.raises(EventError) as raised:
            parse(foreign)
        takes = "the function takes CloudFormation's Create, Update and Delete"
        assert str(raised.value) == f"not a CloudFormation custom resource event: {what}, and {takes}"


KNOWN = "known are UsagePlanId, KeyId, KeyType, OnExisting, IncludeValue, VerifyTrigger"
EACH = "a resource attaches one key to one plan; Fn::ForEach declares a resource for each"
REFERENCE = (
    "a reference that CloudFormation has not resolved ({{resolve:ssm-secure:...}} does not work in custom "
    "resources, and ${...} needs Fn::Sub)"
)
PAIR = "is a pair of a key's and a plan's id (as Ref and Id give it; take the attribute NAME)"
LONG = "has 20 characters, like a key's value (an id has 6 to 10MORE)"
MORE = "; a key made with GenerateDistinctId: false has its value as its id, and the function refuses it"
MISSING = ["null", "None", "undefined", "[object Object]", "NaN", "nil", "false", "TRUE", "<no value>", "{}"]
IT = "NAME is malformed: it"
AROUND = f"{IT} has white space around it"
#: What is wrong with an id.
OF_AN_ID: dict[str, list[Any]] = {
    "NAME is empty": ["", " \n"],
    "NAME is missing": [None],
    "NAME is VALUE, which looks like a missing value of your template tool": [*MISSING, "[]", " NULL "],
    f"{IT} has white space in it (an id has 6 to 10 letters and digits, unlike a name)": ["Alice's key"],
    AROUND: ["\ta1b2c3d4e5\n", "a1b2c3d4e5\n"],
    f"{IT} is an ARN (the id is the ARN's last part)": ["arn:aws:apigateway:eu-west-1::/apikeys/a1b2c3d4e5"],
    f"{IT} {PAIR}": ["a1b2c3d4e5:f7r3e3"],
    f"{AROUND} and it {PAIR}": [" a1b2c3d4e5:f7r3e3"],
    f"{IT} has characters that no id has (an id has 6 to 10 letters and digits)": [
        *("a/b", "é" * 19, "..", "%2f", "a\x00", "\ud800", "a:b:c")
    ],
    f"{IT} has a comma ({EACH})": ["a1b2c3d4e5,b1b2c3d4e5"],
    f"{IT} is a list, not a string ({EACH})": [["a1b2c3d4e5"]],
    f"{IT} is a number, not a string": [7, 7.5],
    f"{IT} is an object, not a string": [{}],
    f"{IT} is a boolean, not a string": [True],
    f"{IT} is bytes, not a string": [b"a1b2c3d4e5"],
    f"{IT} has {REFERENCE}": ["{{resolve:ssm-secure:/keys/alice}}", "${AliceKey}"],
    f"{IT} {LONG}": [VALUE],
    f"{AROUND} and it {LONG}": [f" {VALUE} "],
}
#: What else is refused, and how the function shows it.
ODD = [("x" * 19, f"'{'x' * 19}'"), ("x" * 20, "a string of 20 characters"), ("\ud800\n", r"'\ud800\n'")]
ODD += [([VALUE], "a list"), (None, "null"), (7, "a number"), ("True", "'True'")]  # type: ignore[list-item]  # odd
CHOICES = {"KeyType": "API_KEY", "OnExisting": "Fail or Adopt or Take", "IncludeValue": "true or false"}
MEANT = (
    "KeyID=KeyId keyid=KeyId KeyName=KeyId ApiKeyId=KeyId ApiKey=KeyId PlanId=UsagePlanId Plan=UsagePlanId"
)
MEANT += " UsagePlan=UsagePlanId OnExists=OnExisting Verify=VerifyTrigger Value=IncludeValue"
NAMES = [("x" * 40, "x" * 40), ("x" * 41, f"'{'x' * 40}'…"), ("", "''"), ("\ud800 é\n", r"'\ud800 \xe9\n'")]
NAMES += [(7, "a number"), (None, "null"), ((), "tuple")]  # type: ignore[list-item]  # they are odd
#: Changes to good properties, and the fault that each gives.
FAULTS: list[tuple[dict[Any, Any], str]] = [
    *(
        ({name: odd}, said.replace("NAME", name).replace("VALUE", repr(odd)).replace("MORE", more))
        for name, more in (("KeyId", MORE), ("UsagePlanId", ""))
        for said, values in OF_AN_ID.items()
        for odd in values
    ),
    *(
        ({name: odd}, f"{name} is {shown}, not {choices}")
        for name, choices in CHOICES.items()
        for odd, shown in ODD
    ),
    ({"KeyType": True}, "KeyType is a boolean, not API_KEY"),
    *(
        ({name: "x"}, f"unknown property {name} (did you mean {meant}?)")
        for name, _, meant in (pair.partition("=") for pair in MEANT.split())
    ),
    *(({name: "x"}, f"unknown property {shown} ({KNOWN})") for name, shown in NAMES),
]
SAME = ("f7r3e3", "a" * 19, "_-", "nulls")
#: Changes that leave them good, and what the request has of each. CloudFormation turns booleans into strings,
#: a direct invocation need not. No document says that a key and a plan cannot have the same id.
ACCEPTED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    *(({"OnExisting": str(choice)}, {"on_existing": choice}) for choice in OnExisting),
    *(({"IncludeValue": it}, {"include_value": True}) for it in ("true", True)),
    *(({"IncludeValue": it}, {"include_value": False}) for it in ("false", False)),
    ({"KeyType": "API_KEY", "VerifyTrigger": {"any": 7}, "ServiceTimeout": "60"}, {"service_timeout": 60}),
    *(({"KeyId": id_}, {"wanted": Association(id_, "f7r3e3")}) for id_ in SAME),
]


class TestFaults:
    """One answer names every fault of a request, and shows nothing that may be a key's value."""

    @pytest.mark.parametrize(("changes", "sentence"), FAULTS, ids=ascii)
    def test_a_fault_has_its_sentence(self, changes: dict[Any, Any], sentence: str) -> None:
        """Its reader can mend it; only a possible id becomes a part of a URL or of a physical id."""
        request = asked("Create", GOOD | changes)
        assert request.faults == (sentence,)
        assert request.wanted == (IN_FREE if {"KeyId", "UsagePlanId"}.isdisjoint(changes) else None)

    def test_all_are_named_in_order(self) -> None:
        wrong = {"KeyID": "a", "Descriptoin": "b", "UsagePlanId": "", "KeyType": "X", "OnExisting": "x"}
        faults = asked("Create", wrong | {"IncludeValue": "y"}).faults
        assert [re.findall("(?:unknown property )?([A-Z][A-Za-z]+)", fault)[0] for fault in faults] == [
            *("Descriptoin", "KeyID", "UsagePlanId", "KeyId", "KeyType", "OnExisting", "IncludeValue")
        ]
        odd = asked(properties=GOOD | {"Bad": 1, 7: 1, None: 1, (): 1})
        assert len(odd.faults) == 4, "names of all types, which have no order"
        nothing: tuple[Any, ...] = (None, [], "x", {})
        for properties in nothing:
            assert asked("Create", properties).faults == ("UsagePlanId is missing", "KeyId is missing")


class TestProperties:
    """The properties' values."""

    @pytest.mark.parametrize(("changes", "fields"), ACCEPTED, ids=str)
    def test_a_good_one_is_read(self, changes: dict[str, Any], fields: dict[str, Any]) -> None:
        request = with_(**changes)
        assert {name: getattr(request, name) for name in fields} == fields

    @each_kind
    def test_service_timeout(self, kind: str) -> None:
        """From 1 to 3,600 seconds; an odd value counts as an hour, because CloudFormation checks it."""
        odd = ("soon", None, "1.5", float("nan"), float("inf"), DEEP, 10**9999, "9" * 9999)
        table = {3600: (*odd, "3600", "9999", "9" * 40), 60: ("60", 60), 2: ("2",), 1: ("0", "-5", "1")}
        for seconds, values in table.items():
            for value in values:
                assert asked(kind, GOOD | {"ServiceTimeout": value}).service_timeout == seconds

    def test_a_digest_tells_properties_apart(self) -> None:
        """A new function or time-out is a change too, and no rollback; only the order does not count."""
        assert with_().digest == "a25848cb2b2285598a936589f734d5b6", "the ledger keeps it"
        assert asked(properties=dict(reversed(GOOD.items()))).digest == with_().digest
        changes = ["ServiceToken", "ServiceTimeout", "VerifyTrigger", "KeyType", "KeyId"]
        assert len({with_().digest, *(with_(**{name: "API_KEY"}).digest for name in changes)}) == 6

    @pytest.mark.parametrize("value", [{1, 2}, {"a": 1, 7: 1}, 10**9999, b"", DEEP], ids=type)
    def test_properties_that_json_cannot_hold_have_none(self, value: object) -> None:
        """A request without a digest is like no other, and served all the same."""
        assert with_(VerifyTrigger=value).digest == ""


class TestTime:
    """CloudFormation issued a request when it signed the ResponseURL, and waits for so long."""

    @each_kind
    @pytest.mark.parametrize(
        ("query", "seconds"),
        [
            ("X-Amz-Date=20260302T090000Z", 1772442000),
            ("X-Amz-Date=20260302T090001Z&X-Amz-Expires=60", 1772442001),
            ("X-Amz-Date=20260302T090000Z&Expires=1&x=a?b", 1772442000),
            ("AWSAccessKeyId=x&Expires=1772449201&Signature=y", 1772442001),
            *(("Expires=7201", 1), ("Expires=8589941791", 2**33 - 1)),
            *((f"X-Amz-Date={date}", None) for date in ("yesterday", "20260302", "20260302T090000", "")),
            *((f"X-Amz-Date={date}T000000Z", None) for date in ("20261332", "00010101", "99991231")),
            *((f"Expires={odd}", None) for odd in ("soon", "7200", "-1", "1e9", "8589941792", "9" * 9999)),
            *((odd, None) for odd in ("X-Amz-Date=%ed%a0%80", "X-Amz-Expires=7200", "")),
        ],
    )
    def test_the_url_tells_when_it_was_issued(self, kind: str, query: str, seconds: int | None) -> None:
        """`X-Amz-Date` says it; `Expires` is two hours later. A time that no calendar has is none."""
        assert asked(kind, ResponseURL=f"https://x/?{query}").issued == seconds


texts = st.text(max_size=30) | st.sampled_from(["a:b", "\ud800", "é" * 5000, "https://[", "${X}", "Take"])
odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.just(10**99) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.none() | texts, inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from([*GOOD, *CHOICES, "VerifyTrigger", "ServiceTimeout"]) | st.none() | texts


@each_kind
@given(odd | st.dictionaries(names, odd, max_size=4).map(lambda changes: GOOD | changes), odd, texts)
@settings(max_examples=50)
def test_any_properties_and_any_url_make_a_request(kind: str, properties: Any, old: Any, query: str) -> None:
    """It carries what the answer needs; its faults are one line of UTF-8."""
    request = asked(kind, properties, OldResourceProperties=old, ResponseURL=f"https://x?Expires={query}")
    answer_id = request.answer_id(success=False)
    assert answer_id == "own" or kind == "Create"
    assert request.issued is None or 0 < request.issued < 2**33
    assert request.ends(1e9) <= 1e9 + request.service_timeout <= 1e9 + 3600
    assert type(request).__name__ == kind or (isinstance(request, Invalid) and kind != "Delete")
    assert re.fullmatch("[ -~…]*", "; ".join(getattr(request, "faults", ())))
    json.dumps([answer_id, getattr(request, "digest", "")]).encode()


def test_only_two_ids_and_a_colon_are_an_association() -> None:
    """A foreign id names none; a value never becomes part of an id, because every one is longer."""
    assert [length for length in range(22) if well_formed("a" * length)] == [*range(1, 20)]
    for text in ("a:p", f"{'a' * 19}:aZ09_-", IN_FREE.id):
        assert Association.parse(text) == tuple(text.split(":"))
        assert Association(*text.split(":")).id == text
    for text in ("", "a", ":", "a:", ":p", "a:p\n", " a:p", "a:p:x", "é:p", f"{VALUE}:p", f"a:{VALUE}"):
        assert Association.parse(text) is None


def test_a_holder_is_named_for_people() -> None:
    """By its logical id and the stack's name, or by the text in its place."""
    assert [str(Holder(stack, "A")) for stack in (STACK, "customers")] == ["A of stack customers"] * 2
