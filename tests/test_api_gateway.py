"""Every call to API Gateway, put through every kind of reply: boto3's own client, below it a script."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import (
    ConnectTimeoutError,
    EndpointConnectionError,
    ProxyConnectionError,
    ReadTimeoutError,
)

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
CONFLICT = refuses(409, "ConflictException", "whatever")
NOT_THERE = refuses(404, "NotFoundException", "Invalid API Key identifier specified")
DENIED = refuses(403, "AccessDeniedException")
THROTTLED = refuses(429, "TooManyRequestsException", retry_after="9999")
OURS = says(plan("p9r0p1", "api1:prod"))
RIVAL = says({"item": [plan("p9r0p1", "api1:prod"), plan("f7r3e3", "api1:prod", name="Free")]})
NO_RIVAL = says({"item": [plan("p9r0p1", "api1:prod"), plan("o7h3r0", "api1:test")]})
FREE = Rival(IN_FREE, "Free", ("api1:prod",))
LOST = ReadTimeoutError(endpoint_url="https://apigateway")
REFUSED: Script = [(CREATE, CONFLICT)]
LOOKED: Script = [*REFUSED, (GET, NOT_THERE)]
NEXT = f"{PLANS}&position=next"
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

    def attach(self, seconds: float = 600.0) -> Any:
        return self.api.attach(WANTED, within(seconds, self.clock, dice=random.Random(0)))

    def look(self, seconds: float = 600.0) -> Any:
        return self.api.look(WANTED, within(seconds, self.clock, dice=random.Random(0)))

    def detach(self, seconds: float = 600.0) -> Any:
        return self.api.detach(WANTED, within(seconds, self.clock, dice=random.Random(0)))

    def list(self, seconds: float = 600.0) -> Any:
        return self.api.keys_in("p9r0p1", within(seconds, self.clock, dice=random.Random(0)), lambda: None)


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
    """A request, how to bring it about, and what a good reply to it means."""

    asked: str
    good: Reply
    do: Callable[..., Any]
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
    "create": Call(CREATE, KEY, Aws.attach, InPlan(ALICE, by_us=True), ATTACHING),
    "get": Call(GET, KEY, Aws.look, ALICE, LOOKING),
    "delete": Call(DELETE, (202, b"", {}), Aws.detach, None, DETACHING),
    "list": Call(LIST, KEYS, Aws.list, {"a1b2c3d4e5"}, LISTING),
    "why: the key": Call(GET, KEY, Aws.attach, DUPLICATE, LOOKING, REFUSED),
    "why: the plan": Call(PLAN, OURS, Aws.attach, [FREE], ASKING, LOOKED, [(PLANS, RIVAL)]),
    "why: all plans": Call(PLANS, RIVAL, Aws.attach, [FREE], ASKING, [*LOOKED, (PLAN, OURS)]),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


class Again(NamedTuple):
    """A reply after which the function asks again.

    Attributes:
        waits: Seconds that it waits; up to 2 are at random.
        busy: Other requests should wait too.
        unclear: API Gateway may have done it.
    """

    reply: Reply
    waits: float = 0.5
    busy: bool = False
    unclear: bool = False


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
    "no connection": Again(EndpointConnectionError(endpoint_url="https://apigateway")),
    "no connection in time": Again(ConnectTimeoutError(endpoint_url="https://apigateway")),
    "no proxy": Again(ProxyConnectionError(proxy_url="http://proxy")),
    "a proxy's page": Again((200, b"<html>", {"content-type": "text/html"}), unclear=True),
    "such a page with a reply": Again((200, KEY_, {"content-type": "text/html; x"}), unclear=True),
}
#: Bodies that no call can read; botocore takes all but the first three for an empty list.
UNREADABLE = {
    "no object": b"[]",
    "an item without an id": b'{"item": [{}]}',
    "no UTF-8": b'{"id": "a1b2c3d4e5", "name": "\xff"}',
    "cut short": b'{"id": "a1b2c3d4e5", "na',
    "no JSON": b"hello",
    "empty": b"",
    "null": b"null",
    "of another key": b'{"id": "x1y2c3d4e5"}',
}
PERMISSION = (
    "permission is missing. Allow the function's role apigateway:{} on "
    "arn:PARTITION:apigateway:eu-central-1::{}, then deploy again. AWS says: an SCP"
)
#: Refusals that nothing mends, and how the Reason goes on.
FINAL = {
    "no credentials": (refuses(403, "UnrecognizedClient", "Bad"), "UnrecognizedClient: Bad"),
    "no text": (refuses(403, "Odd", None), "Odd: "),
    "a number for a text": (refuses(403, "Odd", 5), "Odd: 5"),
    "a list for a text": (refuses(403, "Odd", [""]), "Odd: ['']"),
    "a conflict": (CONFLICT, "ConflictException: whatever"),
    "a bad request": (
        refuses(400, "BadRequestException", "No such type"),
        "API Gateway calls it a bad request: No such type. Check KeyId and UsagePlanId",
    ),
    "unauthorized": (refuses(401, "UnauthorizedException", "an SCP"), PERMISSION),
    "denied": (refuses(403, "AccessDeniedException", "an SCP"), PERMISSION),
    "denied by IAM": (refuses(403, "AccessDenied", "an SCP"), PERMISSION),
}
each_again = pytest.mark.parametrize("again", AGAIN.values(), ids=AGAIN)


class TestEveryCall:
    """Each call is made, made again and given up alike."""

    @each_call
    def test_is_made_once_when_all_is_well(self, aws: Aws, call: Call) -> None:
        aws.script += [*call.before, (call.asked, call.good), *call.after]
        assert call.do(aws) == call.result
        assert (aws.waited, aws.api.opens) == (0, 0)

    @each_call
    @each_again
    def test_is_made_again(self, aws: Aws, call: Call, again: Again) -> None:
        aws.script += [*call.before, (call.asked, again.reply), (call.asked, call.good), *call.after]
        assert call.do(aws) == call.result
        assert 0 < aws.waited <= 2 >= again.waits or aws.waited == again.waits
        held_back = max(0, aws.api.opens - aws.began)
        assert held_back == min(again.waits, 30) or 1 <= held_back <= 2

    @pytest.mark.parametrize(
        ("call", "body"),
        [
            pytest.param(call, body, id=f"{name}, {what}")
            for name, call in CALLS.items()
            for what, body in [*UNREADABLE.items()][: 3 if call.asked == LIST else None]
            if call.asked not in (DELETE, PLANS)  # They may be empty.
        ],
    )
    def test_an_unreadable_reply_is_no_reply(self, aws: Aws, call: Call, body: bytes) -> None:
        unreadable = (call.asked, (200, body, {"content-type": "application/json"}))
        aws.script += [*call.before, unreadable, (call.asked, call.good), *call.after]
        assert call.do(aws) == call.result
        aws.script += [*call.before, *[unreadable] * 20]
        with pytest.raises(OutOfTimeError, match=r"none of API Gateway's|cannot be read") as raised:
            call.do(aws, BEFORE_CALL + 5)
        assert raised.value.nothing_changed is bool(call.before)
        aws.script.clear()

    @each_call
    @pytest.mark.parametrize("final", FINAL)
    def test_a_final_refusal_is_named(self, aws: Aws, call: Call, final: str) -> None:
        reply, text = FINAL[final]
        if (call.asked, final) in {(CREATE, "a conflict"), (CREATE, "a bad request"), (DELETE, "a conflict")}:
            return  # TestAttach and TestDetach have these.
        aws.script += [*call.before, (call.asked, reply)]
        with pytest.raises(FailedError) as raised:
            call.do(aws)
        verb, path = call.asked.partition("?")[0].split()[:2]
        assert str(raised.value) == f"{call.what}: {text.format(verb, path)}"
        assert (raised.value.nothing_changed, aws.waited) == (True, 0)

    @each_call
    def test_is_given_up_in_the_end(self, aws: Aws, call: Call) -> None:
        """A quota after 30 seconds, whatever its text: no document tells a quota from a rate."""
        quota = (call.asked, refuses(429, "LimitExceededException", "No more"))
        aws.script += [*call.before, *[quota] * 99]
        with pytest.raises(FailedError, match=f"^{call.what}: LimitExceededException: No more$") as raised:
            call.do(aws)
        assert (raised.value.nothing_changed, aws.waited) == (True, 30)
        slow = (call.asked, refuses(429, "TooManyRequestsException", "Not now. ", "10"))
        aws.script[:] = [*call.before, slow, slow]
        told = (
            rf"^{call.what}: gave up after 2 attempts in 10 s, because the time of CloudFormation "
            r"\(ServiceTimeout\) or of the function is nearly up\. The last error: .*"
            r"\(TooManyRequestsException\).*: Not now\. Deploy again when that is over$"
        )
        with pytest.raises(OutOfTimeError, match=told) as raised:
            call.do(aws, BEFORE_CALL + 15)
        assert raised.value.nothing_changed
        if not call.before:
            with pytest.raises(OutOfTimeError, match=f"^{call.what}: no time was left to begin"):
                call.do(aws, BEFORE_CALL - 1)


class Failed(NamedTuple):
    """The result of an attempt that fails: its Reason, and whether it cannot have attached anything."""

    reason: str
    clear: bool = True
    kind: type[FailedError] = FailedError


BAD = FINAL["a bad request"][0]
NO_GET, OUR_PLAN, BEGUN = (GET, NOT_THERE), (PLAN, OURS), (CREATE, LOST)
UNEXPLAINED: Script = [(CREATE, CONFLICT), NO_GET, OUR_PLAN, (PLANS, NO_RIVAL)]
CHECK = "eu-central-1. Check the id (not a name or a value) and the region"
NO_PLAN, NO_KEY = f"there is no usage plan p9r0p1 in {CHECK}", f"there is no API key a1b2c3d4e5 in {CHECK}"
NEITHER = f"there is no usage plan p9r0p1 or API key a1b2c3d4e5 in {CHECK}. The function could not see which"
SHARED = says(plan("p9r0p1", "api2:prod", "api1:test", "api2:test"))
TWO = says({"item": [plan("f7r3e3", "api1:test", "api2:test", name="\ud800")], "position": "next"})
BY_TWO = Rival(IN_FREE, "?", ("api1:test", "api2:test"))
LAST = says({"item": [plan("o7h3r0", "api1:prod"), plan("b9a8d7", "api2:prod", name="Bad")]})
BY_LAST = Rival(Association("a1b2c3d4e5", "b9a8d7"), "Bad", ("api2:prod",))
#: What API Gateway answers to an attempt and to the looks after it, and what that comes to.
ATTEMPTS: dict[str, tuple[Script, Any]] = {
    "no such plan": ([(CREATE, NOT_THERE), (PLAN, NOT_THERE)], Failed(f"{ATTACHING}: {NO_PLAN}")),
    "no such key": ([(CREATE, NOT_THERE), OUR_PLAN], Failed(f"{ATTACHING}: {NO_KEY}")),
    "lost, no such key": ([BEGUN, (CREATE, NOT_THERE), OUR_PLAN], Failed(f"{ATTACHING}: {NO_KEY}")),
    "none, may not look": ([(CREATE, NOT_THERE), (PLAN, DENIED)], Failed(f"{ATTACHING}: {NEITHER}")),
    "none, cannot look": ([(CREATE, NOT_THERE), (PLAN, THROTTLED)], Failed(f"{ATTACHING}: {NEITHER}")),
    "a passing conflict": ([*UNEXPLAINED, (CREATE, KEY)], InPlan(ALICE, by_us=True)),
    "an unexplained conflict": (UNEXPLAINED * 3, Failed(f"{ATTACHING}: ConflictException: whatever")),
    **{
        f"{what}, {status}": ([(CREATE, refusal), *script], result)
        for status, refusal in ((409, CONFLICT), (400, BAD))  # No document tells which it is.
        for what, script, result in (
            ("there already", [(GET, KEY)], DUPLICATE),
            ("rivals", [NO_GET, (PLAN, SHARED), (PLANS, TWO), (NEXT, LAST)], [BY_TWO, BY_LAST]),
            ("pages without end", [NO_GET, OUR_PLAN, (PLANS, LOOP), (NEXT, LOOP)], [FREE, FREE]),
            ("a plan that goes", [NO_GET, (PLAN, NOT_THERE)], Failed(f"{ASKING}: {NO_PLAN}")),
            ("no time to look", [(GET, THROTTLED)], Failed("", kind=OutOfTimeError)),
        )
    },
    **{
        f"a bad request, {n}": ([(CREATE, BAD), *looks], Failed(f"{ATTACHING}: {FINAL['a bad request'][1]}"))
        for n, looks in enumerate(
            (
                UNEXPLAINED[1:],
                [(GET, DENIED)],
                [NO_GET, (PLAN, DENIED)],
                [NO_GET, OUR_PLAN, (PLANS, DENIED)],
            )
        )
    },
    **{
        f"lost, conflict, {name}, {how}": (
            [BEGUN, *call.before, (call.asked, reply)],
            Failed("", clear=False),
        )
        for name, call in CALLS.items()
        for how, reply in (("denied", DENIED), ("no time", THROTTLED))
        if call.before
    },
}


class TestAttach:
    """CreateUsagePlanKey: what its refusals mean, and whether an attempt may have attached the key."""

    @pytest.mark.parametrize(("script", "result"), ATTEMPTS.values(), ids=ATTEMPTS)
    def test_an_attempt(self, aws: Aws, script: Script, result: Any) -> None:
        aws.script += script
        if not isinstance(result, Failed):
            assert aws.attach() == result
            return
        with pytest.raises(result.kind) as raised:
            aws.attach()
        assert str(raised.value) == (result.reason or str(raised.value))
        assert isinstance(raised.value, MissingError) is ("there is no" in result.reason)
        assert raised.value.nothing_changed is result.clear
        assert aws.waited <= (1.5 if script[0] == UNEXPLAINED[0] else 0.5)

    @each_again
    def test_only_an_unclear_reply_may_have_done_it(self, aws: Aws, again: Again) -> None:
        aws.script += [(CREATE, again.reply), (CREATE, CONFLICT), (GET, KEY)]
        assert aws.attach() == InPlan(ALICE, by_us=again.unclear, is_sure=False)
        for request, do in ((CREATE, aws.attach), (DELETE, aws.detach)):
            aws.script += [(request, again.reply), (request, FINAL["no text"][0])]
            with pytest.raises(FailedError) as raised:
                do()
            assert raised.value.nothing_changed is not again.unclear

    def test_an_earlier_attempt_may_have_attached_it(self, aws: Aws) -> None:
        aws.script += [(CREATE, CONFLICT), (GET, KEY)]
        sure = aws.api.attach(WANTED, within(600, aws.clock), may_be_there=True)
        assert sure == InPlan(ALICE, by_us=True, is_sure=False)

    def test_a_look_may_be_the_queues_to_repeat(self, aws: Aws) -> None:
        aws.script += [(CREATE, BAD), (GET, THROTTLED)]
        with pytest.raises(TurnOverError, match=LOOKING):
            aws.api.attach(WANTED, within(99999, aws.clock, patience=aws.clock.now))

    def test_ids_that_have_each_others_length_may_be_swapped(self, aws: Aws) -> None:
        create = 'POST /usageplans/a1b2c3d4e5/keys {"keyId": "p9r0p1", "keyType": "API_KEY"}'
        aws.script += [(create, NOT_THERE), ("GET /usageplans/a1b2c3d4e5", NOT_THERE)]
        with pytest.raises(MissingError, match=r"the region\. KeyId and UsagePlanId may be swapped$"):
            aws.api.attach(Association("p9r0p1", "a1b2c3d4e5"), within(600, aws.clock))

    def test_a_name_and_a_value_may_be_absent_or_odd(self, aws: Aws) -> None:
        """No text shows a value."""
        aws.script += [(CREATE, says({"id": "a1b2c3d4e5", "name": "\ud800", "value": VALUE}))]
        assert aws.attach().key == Key("?", VALUE)
        aws.script += [(CREATE, says({"id": "a1b2c3d4e5"}))]
        assert aws.attach().key == Key("", None)
        assert "s3cr3t" not in f"{DUPLICATE}{ALICE!r}{ALICE}"

    @pytest.mark.parametrize(
        ("wanted", "seconds", "known"),
        [
            (WANTED, 60, FREE),
            (WANTED, 60.1, None),
            (Association("a1b2c3d4e5", "u7n5e3"), 0, None),
            (Association("z9y8x7w6v5", "p9r0p1"), 0, None),
            (IN_FREE, 0, None),
        ],
        ids=["a minute", "later", "a plan that was never seen", "another key", "itself"],
    )
    def test_a_rival_is_known_for_a_minute(
        self, aws: Aws, wanted: Association, seconds: float, known: Rival | None
    ) -> None:
        items = [plan("f7r3e3", "api1:prod", name="Free"), plan("o7h3r0", "api1:test")]
        aws.script += [*UNEXPLAINED[:3], (PLANS, says({"item": items}))]
        aws.attach()
        aws.clock.sleep(seconds)
        assert aws.api.known_rival(IN_FREE, wanted, within(9, aws.clock)) == known
        for other in ("o7h3r0", "u7n5e3"):  # Of another stage, and never seen.
            assert aws.api.known_rival(Association("a1b2c3d4e5", other), wanted, within(9, aws.clock)) is None
        two = FREE._replace(stages=("api1:prod", "api2:prod"))
        assert str(two) == "usage plan f7r3e3 (Free) for the API stage api1:prod, api2:prod"


class TestOthers:
    """GetUsagePlanKey, DeleteUsagePlanKey and GetUsagePlanKeys."""

    @pytest.mark.parametrize("text", ["Invalid Usage Plan ID specified", "", None])
    @pytest.mark.parametrize("lost", [True, False])
    def test_a_404_is_an_answer_but_for_a_list(self, aws: Aws, text: str | None, *, lost: bool) -> None:
        reply = refuses(404, "NotFoundException", text)
        for request, do in ((GET, aws.look), (DELETE, aws.detach)):
            aws.script += [(request, LOST)] * lost + [(request, reply)]
            assert do() is None
        aws.script += [(LIST, reply)]
        with pytest.raises(MissingError, match=f"^{LISTING}: there is no such usage plan$"):
            aws.list()

    def test_a_conflict_of_a_delete_may_be_passing(self, aws: Aws) -> None:
        aws.script += [(DELETE, CONFLICT), (DELETE, CONFLICT), (DELETE, (202, b"", {}))]
        aws.detach()
        assert 0 < aws.waited <= 1.5
        aws.script += [(DELETE, LOST), *[(DELETE, CONFLICT)] * 3]
        with pytest.raises(FailedError, match=f"^{DETACHING}: ConflictException: whatever$") as raised:
            aws.detach()
        assert not raised.value.nothing_changed

    def test_a_list_is_read_page_by_page_at_the_watchs_pace_without_values(self, aws: Aws) -> None:
        paced: list[int] = []
        pages: list[Any] = [{"item": [{"id": "a"}, {"id": "b"}], "position": "2"}, {"position": "3"}]
        pages += [{"item": [{"id": VALUE}]}]
        for page, position in zip(pages, ("", "&position=2", "&position=3"), strict=True):
            aws.script += [(f"{LIST}{position}", AGAIN["down"].reply), (f"{LIST}{position}", says(page))]
        found = aws.api.keys_in("p9r0p1", within(600, aws.clock), lambda: paced.append(aws.sent))
        assert (found, paced) == ({"a", "b", "an id of 27 characters (b9eae2b8)"}, [*range(6)])
