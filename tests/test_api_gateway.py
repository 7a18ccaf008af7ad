"""Every call to API Gateway, put through every kind of reply: boto3's own client, below it a script."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import boto3
import pytest
from botocore import exceptions
from botocore.awsrequest import AWSResponse
from botocore.config import Config

from usage_plan_key.api_gateway import ApiGateway, InPlan
from usage_plan_key.errors import FailedError, MissingError, OutOfTimeError, TurnOverError
from usage_plan_key.model import Association, Key, Rival
from usage_plan_key.retry import BEFORE_CALL

from .memory import Clock, within

WANTED, IN_FREE = Association("a1b2c3d4e5", "p9r0p1"), Association("a1b2c3d4e5", "f7r3e3")
VALUE = "s3cr3t-s3cr3t-s3cr3t-s3cr3t"
ALICE = Key("alice", VALUE)

Reply = Exception | tuple[int, bytes, dict[str, str]]
"""No reply at all, or a status, a body and headers."""
Script = list[tuple[str, Reply]]
"""Each request that has to come, and its reply."""

CREATE = 'POST /usageplans/p9r0p1/keys {"keyId": "a1b2c3d4e5", "keyType": "API_KEY"}'
GET = "GET /usageplans/p9r0p1/keys/a1b2c3d4e5"
DELETE = "DELETE /usageplans/p9r0p1/keys/a1b2c3d4e5"
LIST = "GET /usageplans/p9r0p1/keys?limit=500"
PLAN = "GET /usageplans/p9r0p1"
PLANS = "GET /usageplans?keyId=a1b2c3d4e5&limit=500"


def says(fields: object, status: int = 200) -> Reply:
    return status, json.dumps(fields).encode(), {"content-type": "application/json"}


def refuses(status: int, code: str, message: object = "", retry_after: str = "") -> Reply:
    headers = {"x-amzn-errortype": code} | ({"retry-after": retry_after} if retry_after else {})
    return status, json.dumps({"message": message}).encode(), headers


def plan(id_: str, *stages: str, name: str = "") -> dict[str, Any]:
    pairs = [stage.partition(":") for stage in stages]
    return {"id": id_, "name": name, "apiStages": [{"apiId": api, "stage": stage} for api, _, stage in pairs]}


KEY = says({"id": "a1b2c3d4e5", "type": "API_KEY", "name": "alice", "value": VALUE}, 201)
GONE: Reply = (202, b"", {})
CONFLICT = refuses(409, "ConflictException", "whatever")
NOT_THERE = refuses(404, "NotFoundException", "Invalid API Key identifier specified")
DENIED = refuses(403, "AccessDeniedException")
BAD = refuses(400, "BadRequestException", "No such type")
THROTTLED = refuses(429, "TooManyRequestsException", retry_after="9999")
OURS = says(plan("p9r0p1", "api1:prod"))
RIVAL = says({"item": [plan("p9r0p1", "api1:prod"), plan("f7r3e3", "api1:prod", name="Free")]})
NO_RIVAL = says({"item": [plan("p9r0p1", "api1:prod"), plan("o7h3r0", "api1:test")]})
FREE = Rival(IN_FREE, "Free", ("api1:prod",))
LOST = exceptions.ReadTimeoutError(endpoint_url="https://apigateway")
REFUSED: Script = [(CREATE, CONFLICT)]
LOOKED: Script = [*REFUSED, (GET, NOT_THERE)]
LOOP = says({"item": [plan("f7r3e3", "api1:prod", name="Free")], "position": "next"})


class Aws:
    """API Gateway as botocore sees it: each request must be the script's next one."""

    def __init__(self) -> None:
        session = boto3.Session("testing", "testing", region_name="eu-central-1")
        self.client = session.client("apigateway", config=Config(retries={"total_max_attempts": 1}))
        self.client.meta.events.register("before-send", self._send)  # type: ignore[arg-type]  # it may give a reply
        self.start()

    def start(self) -> None:
        self.api, self.clock = ApiGateway(self.client), Clock()
        self.began, self.script, self.sent = self.clock.now, Script(), 0

    def _send(self, request: Any, **_: object) -> AWSResponse:
        said = f" {request.body.decode()}" if request.body else ""
        asked, reply = self.script.pop(0)
        assert f"{request.method} {request.url.partition('amazonaws.com')[2]}{said}" == asked
        self.sent += 1
        if isinstance(reply, Exception):
            raise reply
        status, body, headers = reply
        raw = SimpleNamespace(stream=lambda: [body])
        return AWSResponse(request.url, status, headers, raw)  # type: ignore[arg-type]  # a plain dict will do

    @property
    def waited(self) -> float:
        """The length of all sleeps, in seconds."""
        return self.clock.now - self.began

    def does(self, what: str, *script: tuple[str, Reply], seconds: float = 600.0, **more: Any) -> Any:
        """Have the function attach, look, detach or list, and hear this."""
        self.script += script
        deadline = within(seconds, self.clock, dice=random.Random(0), **more)
        if what == "list":
            return self.api.keys_in("p9r0p1", deadline, lambda: None)
        return getattr(self.api, what)(WANTED, deadline)


@pytest.fixture(scope="module")
def shared() -> Aws:
    return Aws()


@pytest.fixture
def aws(shared: Aws) -> Iterator[Aws]:
    """The function must make every scripted call, and counts each."""
    shared.start()
    yield shared
    assert (shared.script, shared.api.calls) == ([], shared.sent)


class Call(NamedTuple):
    """A request, what brings it about, and what a good reply to it means."""

    asked: str
    good: Reply
    by: str
    result: Any
    what: str
    """How its Reasons begin."""
    before: Sequence[tuple[str, Reply]] = ()
    after: Sequence[tuple[str, Reply]] = ()


ATTACHING = "Could not attach API key a1b2c3d4e5 to usage plan p9r0p1 in eu-central-1"
LOOKING = "Could not look for API key a1b2c3d4e5 in usage plan p9r0p1 in eu-central-1"
DETACHING = "Could not detach API key a1b2c3d4e5 from usage plan p9r0p1 in eu-central-1"
LISTING = "Could not list the API keys in usage plan p9r0p1 in eu-central-1"
ASKING = "Could not find out which usage plan keeps API key a1b2c3d4e5 from usage plan p9r0p1 in eu-central-1"
DUPLICATE = InPlan(ALICE, by_us=False, is_sure=False)
KEYS = says({"item": [{"id": "a1b2c3d4e5", "value": VALUE}]})
CALLS = {
    "create": Call(CREATE, KEY, "attach", InPlan(ALICE, by_us=True), ATTACHING),
    "get": Call(GET, KEY, "look", ALICE, LOOKING),
    "delete": Call(DELETE, GONE, "detach", None, DETACHING),
    "list": Call(LIST, KEYS, "list", {"a1b2c3d4e5"}, LISTING),
    "why: the key": Call(GET, KEY, "attach", DUPLICATE, LOOKING, REFUSED),
    "why: the plan": Call(PLAN, OURS, "attach", [FREE], ASKING, LOOKED, [(PLANS, RIVAL)]),
    "why: all plans": Call(PLANS, RIVAL, "attach", [FREE], ASKING, [*LOOKED, (PLAN, OURS)]),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


EVERY = CREATE, GET, DELETE, LIST, PLAN, PLANS


class Again(NamedTuple):
    """A reply after which the function asks again."""

    reply: Reply
    waits: float = 0.5
    """Seconds that it waits; up to 2 are at random."""
    busy: bool = False
    """Other requests should wait too."""
    unclear: bool = False
    """API Gateway may have done it."""
    to: tuple[str, ...] = EVERY
    """The calls that may get it."""


def body(content: bytes, *to: str) -> Again:
    """A body that these calls cannot read."""
    return Again((200, content, {"content-type": "application/json"}), unclear=True, to=to)


def unreached(kind: str) -> Again:
    return Again(getattr(exceptions, kind)(endpoint_url="https://apigateway", proxy_url="http://p"))


KEY_ = b'{"id": "a1b2c3d4e5"}'
MODIFIED = "Unable to complete operation due to concurrent modification. Please try again later."
AGAIN = {
    "throttled": Again(refuses(429, "TooManyRequestsException"), 2, busy=True),
    "throttled for a while": Again(refuses(429, "TooManyRequestsException", "", "33"), 33, busy=True),
    "a rate that it calls a limit": Again(refuses(429, "LimitExceededException", "", "20"), 20, busy=True),
    "an odd Retry-After": Again(refuses(429, "TooManyRequestsException", "", "soon"), 2, busy=True),
    "throttled, with 400": Again(refuses(400, "ThrottlingException", "Rate exceeded"), 2, busy=True),
    "busy": Again(refuses(409, "ConflictException", MODIFIED), 2, busy=True),
    "busy, with 400": Again(refuses(400, "BadRequestException", "TRY AGAIN LATER"), 2, busy=True),
    "perhaps a quota": Again(refuses(429, "LimitExceededException", "Maximum number reached")),
    "down": Again(refuses(503, "ServiceUnavailable"), unclear=True),
    "timed out, with 400": Again(refuses(400, "RequestTimeout"), unclear=True),
    "lost": Again(LOST, unclear=True),
    "no connection": unreached("EndpointConnectionError"),
    "no connection in time": unreached("ConnectTimeoutError"),
    "no proxy": unreached("ProxyConnectionError"),
    "a proxy's page": Again((200, b"<html>", {"content-type": "text/html"}), unclear=True),
    "such a page with a reply": Again((200, KEY_, {"content-type": "text/html; x"}), unclear=True),
    "no object": body(b"[]", CREATE, GET, LIST, PLAN),
    "an item without an id": body(b'{"item": [{}]}', CREATE, GET, LIST, PLAN),
    "no UTF-8": body(b'{"id": "a1b2c3d4e5", "name": "\xff"}', CREATE, GET, LIST, PLAN),
    # botocore takes these for an empty list.
    "cut short": body(b'{"id": "a1b2c3d4e5", "na', CREATE, GET, PLAN),
    "no JSON": body(b"hello", CREATE, GET, PLAN),
    "empty": body(b"", CREATE, GET, PLAN),
    "null": body(b"null", CREATE, GET, PLAN),
    "of another key": body(b'{"id": "x1y2c3d4e5"}', CREATE, GET, PLAN),
}
each_again = pytest.mark.parametrize("again", AGAIN.values(), ids=AGAIN)
PERMISSION = (
    "permission is missing. Allow the function's role apigateway:{} on "
    "arn:PARTITION:apigateway:eu-central-1::{}, then deploy again. AWS says: an SCP"
)
BAD_REQUEST = "API Gateway calls it a bad request: No such type. Check KeyId and UsagePlanId"
#: Refusals that nothing mends, and how the Reason goes on.
FINAL = {
    "no credentials": (refuses(403, "UnrecognizedClient", "Bad"), "UnrecognizedClient: Bad"),
    "no text": (refuses(403, "Odd", None), "Odd: "),
    "a number for a text": (refuses(403, "Odd", 5), "Odd: 5"),
    "a list for a text": (refuses(403, "Odd", [""]), "Odd: ['']"),
    "a conflict": (CONFLICT, "ConflictException: whatever"),
    "a bad request": (BAD, BAD_REQUEST),
    "unauthorized": (refuses(401, "UnauthorizedException", "an SCP"), PERMISSION),
    "denied": (refuses(403, "AccessDeniedException", "an SCP"), PERMISSION),
    "denied by IAM": (refuses(403, "AccessDenied", "an SCP"), PERMISSION),
}
#: TestAttach and TestOthers have these.
LOOKED_INTO = ((CREATE, "a conflict"), (CREATE, "a bad request"), (DELETE, "a conflict"))


class TestEveryCall:
    """Each call is made, made again and given up alike."""

    @each_call
    @each_again
    def test_is_made_again(self, aws: Aws, call: Call, again: Again) -> None:
        if call.asked not in again.to:
            return
        found = aws.does(
            call.by, *call.before, (call.asked, again.reply), (call.asked, call.good), *call.after
        )
        assert found == call.result
        assert 0 < aws.waited <= 2 >= again.waits or aws.waited == again.waits
        held_back = max(0, aws.api.opens - aws.began)
        assert held_back == min(again.waits, 30) or 1 <= held_back <= 2

    @each_call
    @pytest.mark.parametrize("final", FINAL)
    def test_a_final_refusal_is_named(self, aws: Aws, call: Call, final: str) -> None:
        reply, text = FINAL[final]
        if (call.asked, final) in LOOKED_INTO:
            return
        with pytest.raises(FailedError) as raised:
            aws.does(call.by, *call.before, (call.asked, reply))
        verb, path = call.asked.partition("?")[0].split()[:2]
        assert str(raised.value) == f"{call.what}: {text.format(verb, path)}"
        assert (raised.value.nothing_changed, aws.waited) == (True, 0)

    @each_call
    def test_is_made_once_when_all_is_well_and_given_up_in_the_end(self, aws: Aws, call: Call) -> None:
        assert aws.does(call.by, *call.before, (call.asked, call.good), *call.after) == call.result
        assert (aws.waited, aws.api.opens) == (0, 0)
        with pytest.raises(OutOfTimeError, match=f"^{call.what}: gave up after 1 attempts in 0 s") as raised:
            aws.does(call.by, *call.before, (call.asked, THROTTLED))
        assert raised.value.nothing_changed
        if not call.before:
            with pytest.raises(OutOfTimeError, match=f"^{call.what}: no time was left to begin"):
                aws.does(call.by, seconds=BEFORE_CALL - 1)


NO_GET, OUR_PLAN, BEGUN = (GET, NOT_THERE), (PLAN, OURS), (CREATE, LOST)
NEXT = f"{PLANS}&position=next"
UNEXPLAINED: Script = [(CREATE, CONFLICT), NO_GET, OUR_PLAN, (PLANS, NO_RIVAL)]
CHECK = "eu-central-1. Check the id (not a name or a value) and the region"
NO_PLAN = f"there is no usage plan p9r0p1 in {CHECK}"
NO_KEY = f"{ATTACHING}: there is no API key a1b2c3d4e5 in {CHECK}"
NEITHER = f"there is no usage plan p9r0p1 or API key a1b2c3d4e5 in {CHECK}. The function could not see which"
SHARED = says(plan("p9r0p1", "api2:prod", "api1:test", "api2:test"))
TWO = says({"item": [plan("f7r3e3", "api1:test", "api2:test", name="\ud800")], "position": "next"})
BY_TWO = Rival(IN_FREE, "?", ("api1:test", "api2:test"))
LAST = says({"item": [plan("o7h3r0", "api1:prod"), plan("b9a8d7", "api2:prod", name="Bad")]})
BY_LAST = Rival(Association("a1b2c3d4e5", "b9a8d7"), "Bad", ("api2:prod",))
#: What API Gateway answers to an attempt and to the looks after it, and what that comes to.
ATTEMPTS: dict[str, tuple[Script, Any]] = {
    "no such plan": ([(CREATE, NOT_THERE), (PLAN, NOT_THERE)], f"{ATTACHING}: {NO_PLAN}"),
    "no such key": ([(CREATE, NOT_THERE), OUR_PLAN], NO_KEY),
    "lost, no such key": ([BEGUN, (CREATE, NOT_THERE), OUR_PLAN], NO_KEY),
    "none, may not look": ([(CREATE, NOT_THERE), (PLAN, DENIED)], f"{ATTACHING}: {NEITHER}"),
    "a passing conflict": ([*UNEXPLAINED, (CREATE, KEY)], InPlan(ALICE, by_us=True)),
    "an unexplained conflict": (UNEXPLAINED * 3, f"{ATTACHING}: ConflictException: whatever"),
    **{
        f"{what}, {status}": ([(CREATE, refusal), *script], result)
        for status, refusal in ((409, CONFLICT), (400, BAD))  # No document tells which it is.
        for what, script, result in (
            ("there already", [(GET, KEY)], DUPLICATE),
            ("rivals", [NO_GET, (PLAN, SHARED), (PLANS, TWO), (NEXT, LAST)], [BY_TWO, BY_LAST]),
            ("pages without end", [NO_GET, OUR_PLAN, (PLANS, LOOP), (NEXT, LOOP)], [FREE, FREE]),
            ("a plan that goes", [NO_GET, (PLAN, NOT_THERE)], f"{ASKING}: {NO_PLAN}"),
            ("no time to look", [(GET, THROTTLED)], f"{LOOKING}: gave up after 1 attempt…"),
        )
    },
    "a bad request, may not look": ([(CREATE, BAD), (GET, DENIED)], f"{ATTACHING}: {BAD_REQUEST}"),
    "a bad request, no rival": ([(CREATE, BAD), *UNEXPLAINED[1:]], f"{ATTACHING}: {BAD_REQUEST}"),
    "lost, may not look": ([BEGUN, (CREATE, CONFLICT), (GET, DENIED)], f"{LOOKING}…"),
    "lost, cannot ask": ([BEGUN, *LOOKED, OUR_PLAN, (PLANS, THROTTLED)], f"{ASKING}…"),
}


class TestAttach:
    """CreateUsagePlanKey: what its refusals mean, and whether an attempt may have attached the key."""

    @pytest.mark.parametrize(("script", "result"), ATTEMPTS.values(), ids=ATTEMPTS)
    def test_an_attempt(self, aws: Aws, script: Script, result: Any) -> None:
        """One whose reply is lost may have attached the key, unless there is no such key or plan."""
        if not isinstance(result, str):
            assert aws.does("attach", *script) == result
            return
        with pytest.raises(FailedError) as raised:
            aws.does("attach", *script)
        told, is_missing = str(raised.value), "there is no" in result
        assert told == result or (result.endswith("…") and told.startswith(result[:-1]))
        assert isinstance(raised.value, MissingError) is is_missing
        assert raised.value.nothing_changed is (is_missing or script[0] != BEGUN)
        assert aws.waited <= (1.5 if script[0] == UNEXPLAINED[0] else 0.5)

    @each_again
    def test_only_an_unclear_reply_may_have_done_it(self, aws: Aws, again: Again) -> None:
        found = aws.does("attach", (CREATE, again.reply), (CREATE, CONFLICT), (GET, KEY))
        assert found == InPlan(ALICE, by_us=again.unclear, is_sure=False)
        for request, what in ((CREATE, "attach"), (DELETE, "detach")):
            if request in again.to:
                with pytest.raises(FailedError) as raised:
                    aws.does(what, (request, again.reply), (request, DENIED))
                assert raised.value.nothing_changed is not again.unclear

    def test_an_earlier_attempt_may_have_attached_it(self, aws: Aws) -> None:
        aws.script += [(CREATE, CONFLICT), (GET, KEY)]
        sure = aws.api.attach(WANTED, within(600, aws.clock), may_be_there=True)
        assert sure == InPlan(ALICE, by_us=True, is_sure=False)

    def test_a_look_may_be_the_queues_to_repeat(self, aws: Aws) -> None:
        with pytest.raises(TurnOverError, match=LOOKING):
            aws.does("attach", (CREATE, BAD), (GET, THROTTLED), seconds=99999, patience=aws.clock.now)

    def test_ids_that_have_each_others_length_may_be_swapped(self, aws: Aws) -> None:
        create = 'POST /usageplans/a1b2c3d4e5/keys {"keyId": "p9r0p1", "keyType": "API_KEY"}'
        aws.script += [(create, NOT_THERE), ("GET /usageplans/a1b2c3d4e5", NOT_THERE)]
        with pytest.raises(MissingError, match=r"the region\. KeyId and UsagePlanId may be swapped$"):
            aws.api.attach(Association("p9r0p1", "a1b2c3d4e5"), within(600, aws.clock))

    def test_a_name_and_a_value_may_be_absent_or_odd(self, aws: Aws) -> None:
        """No text shows a value."""
        odd = says({"id": "a1b2c3d4e5", "name": "\ud800", "value": VALUE})
        assert aws.does("look", (GET, odd)) == Key("?", VALUE)
        assert aws.does("look", (GET, says({"id": "a1b2c3d4e5"}))) == Key("", None)
        assert "s3cr3t" not in f"{DUPLICATE}{ALICE!r}{ALICE}"

    @pytest.mark.parametrize("held", ["f7r3e3", "o7h3r0", "u7n5e3"])
    @pytest.mark.parametrize("wanted", [WANTED, IN_FREE, WANTED._replace(key_id="z9y8x7w6v5")])
    @pytest.mark.parametrize("seconds", [60, 60.1])
    def test_a_rival_is_known_for_a_minute(
        self, aws: Aws, held: str, wanted: Association, seconds: float
    ) -> None:
        """Not one of another stage, and none that was never seen."""
        items = [plan("f7r3e3", "api1:prod", name="Free"), plan("o7h3r0", "api1:test")]
        aws.does("attach", *UNEXPLAINED[:3], (PLANS, says({"item": items})))
        aws.clock.sleep(seconds)
        known = aws.api.known_rival(IN_FREE._replace(plan_id=held), wanted, within(9, aws.clock))
        assert known == (FREE if (held, wanted, seconds) == ("f7r3e3", WANTED, 60) else None)

    def test_a_rival_is_named_with_its_stages(self) -> None:
        two = FREE._replace(stages=("api1:prod", "api2:prod"))
        assert str(two) == "usage plan f7r3e3 (Free) for the API stage api1:prod, api2:prod"


class TestOthers:
    """GetUsagePlanKey, DeleteUsagePlanKey and GetUsagePlanKeys."""

    @pytest.mark.parametrize("before", [[], [LOST]], ids=["", "lost before"])
    def test_a_404_is_an_answer_but_for_a_list(self, aws: Aws, before: list[Reply]) -> None:
        for request, what in ((GET, "look"), (DELETE, "detach")):
            assert aws.does(what, *((request, reply) for reply in (*before, NOT_THERE))) is None
        with pytest.raises(MissingError, match=f"^{LISTING}: there is no such usage plan$"):
            aws.does("list", (LIST, NOT_THERE))

    def test_a_conflict_of_a_delete_may_be_passing(self, aws: Aws) -> None:
        aws.does("detach", (DELETE, CONFLICT), (DELETE, CONFLICT), (DELETE, GONE))
        assert 0 < aws.waited <= 1.5
        with pytest.raises(FailedError, match=f"^{DETACHING}: ConflictException: whatever$") as raised:
            aws.does("detach", (DELETE, LOST), *[(DELETE, CONFLICT)] * 3)
        assert not raised.value.nothing_changed

    def test_a_list_is_read_page_by_page_at_the_watchs_pace_without_values(self, aws: Aws) -> None:
        paced: list[int] = []
        pages: list[Any] = [{"item": [{"id": "a"}, {"id": "b"}], "position": "2"}, {"position": "3"}]
        pages += [{"item": [{"id": VALUE}]}]
        for page, position in zip(pages, ("", "&position=2", "&position=3"), strict=True):
            aws.script += [(f"{LIST}{position}", AGAIN["down"].reply), (f"{LIST}{position}", says(page))]
        found = aws.api.keys_in("p9r0p1", within(600, aws.clock), lambda: paced.append(aws.sent))
        assert (found, paced) == ({"a", "b", "an id of 27 characters (b9eae2b8)"}, [*range(6)])
