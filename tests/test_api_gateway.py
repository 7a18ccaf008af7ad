"""Every call to API Gateway, put through every kind of reply: boto3's own client, below it a script."""

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

from emulators import rules
from usage_plan_key.api_gateway import ApiGateway, InPlan
from usage_plan_key.errors import Again, FailedError, MissingError, OutOfTimeError, TurnOverError
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


def sends(body: bytes, kind: str = "application/json", status: int = 200) -> Reply:
    return status, body, {"content-type": kind}


def says(fields: object, status: int = 200) -> Reply:
    return sends(json.dumps(fields).encode(), status=status)


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
        return sum(self.clock.slept)

    def hears(self, script: Script, seconds: float = 600.0, **more: Any) -> Any:
        """Have the function attach, look, detach or list, as the first request says."""
        self.script += script
        deadline = within(seconds, self.clock, dice=random.Random(0), **more)
        if self.script[0][0] == LIST:
            return self.api.keys_in("p9r0p1", deadline, lambda: None)
        what = {CREATE: "attach", GET: "look", DELETE: "detach"}[self.script[0][0]]
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
    """A request, and what a good reply to it means."""

    asked: str
    good: Reply
    result: Any
    what: str
    """How its Reasons begin."""
    before: Sequence[tuple[str, Reply]] = ()
    after: Sequence[tuple[str, Reply]] = ()

    def meets(self, *replies: Reply) -> Script:
        """The script in which it gets these replies, one after the other."""
        ends = self.after if replies[-1] is self.good else ()
        return [*self.before, *((self.asked, reply) for reply in replies), *ends]


ATTACHING = "Could not attach API key a1b2c3d4e5 to usage plan p9r0p1 in eu-central-1"
LOOKING = "Could not look for API key a1b2c3d4e5 in usage plan p9r0p1 in eu-central-1"
DETACHING = "Could not detach API key a1b2c3d4e5 from usage plan p9r0p1 in eu-central-1"
LISTING = "Could not list the API keys in usage plan p9r0p1 in eu-central-1"
ASKING = "Could not find out which usage plan keeps API key a1b2c3d4e5 from usage plan p9r0p1 in eu-central-1"
DUPLICATE = InPlan(ALICE, by_us=False, is_sure=False)
KEYS = says({"item": [{"id": "a1b2c3d4e5", "value": VALUE}]})
CALLS = {
    "create": Call(CREATE, KEY, InPlan(ALICE, by_us=True), ATTACHING),
    "get": Call(GET, KEY, ALICE, LOOKING),
    "delete": Call(DELETE, GONE, None, DETACHING),
    "list": Call(LIST, KEYS, {"a1b2c3d4e5"}, LISTING),
    "why: the key": Call(GET, KEY, DUPLICATE, LOOKING, REFUSED),
    "why: the plan": Call(PLAN, OURS, [FREE], ASKING, LOOKED, [(PLANS, RIVAL)]),
    "why: all plans": Call(PLANS, RIVAL, [FREE], ASKING, [*LOOKED, (PLAN, OURS)]),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)

BUSY, ONCE_MORE, UNCLEAR = Again(busy=True), Again(), Again(unclear=True)
#: Replies after which the function asks again, and how it judges them.
AGAIN: dict[str, tuple[Reply, Again]] = {
    "throttled": (refuses(429, "TooManyRequestsException"), BUSY),
    "throttled for a while": (refuses(429, "TooManyRequestsException", "", "33"), Again(33, busy=True)),
    "a rate that it calls a limit": (refuses(429, "LimitExceededException", "", "20"), Again(20, busy=True)),
    "an odd Retry-After": (refuses(429, "TooManyRequestsException", "", "soon"), BUSY),
    "throttled, with 400": (refuses(400, "ThrottlingException", "Rate exceeded"), BUSY),
    "busy": (refuses(409, "ConflictException", rules.MODIFIED), BUSY),
    "busy, with 400": (refuses(400, "BadRequestException", "TRY AGAIN LATER"), BUSY),
    "perhaps a quota": (refuses(429, "LimitExceededException", "Maximum number reached"), ONCE_MORE),
    "down": (refuses(503, "ServiceUnavailable"), UNCLEAR),
    "timed out, with 400": (refuses(400, "RequestTimeout"), UNCLEAR),
    "lost": (LOST, UNCLEAR),
    **{
        kind: (getattr(exceptions, kind)(endpoint_url="https://apigateway", proxy_url="http://p"), ONCE_MORE)
        for kind in ("EndpointConnectionError", "ConnectTimeoutError", "ProxyConnectionError")
    },
    "a proxy's page": (sends(b"<html>", "text/html"), UNCLEAR),
    "such a page with a reply": (sends(b'{"id": "a1b2c3d4e5"}', "text/html; x"), UNCLEAR),
}
#: Bodies that cannot be read. Nobody reads a delete's, and botocore takes HALVES for an empty list.
NONSENSE = [b"[]", b'{"item": [{}]}', b'{"id": "a1b2c3d4e5", "name": "\xff"}']
HALVES = [b'{"id": "a1b2c3d4e5", "na', b"hello", b"", b"null", b'{"id": "x1y2c3d4e5"}']


def again(call: Call) -> dict[str, tuple[Reply, Again]]:
    """What a call may meet."""
    read = {DELETE: [], PLANS: [], LIST: NONSENSE}.get(call.asked, NONSENSE + HALVES)
    return AGAIN | {ascii(body): (sends(body), UNCLEAR) for body in read}


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
    "a quota, with 400": (refuses(400, "LimitExceededException", "No"), "LimitExceededException: No"),
    "a conflict": (CONFLICT, "ConflictException: whatever"),
    "a bad request": (BAD, BAD_REQUEST),
    "unauthorized": (refuses(401, "UnauthorizedException", "an SCP"), PERMISSION),
    "denied": (refuses(403, "AccessDeniedException", "an SCP"), PERMISSION),
    "denied by IAM": (refuses(403, "AccessDenied", "an SCP"), PERMISSION),
}
#: TestWhatItMeets has these.
LOOKED_INTO = ((CREATE, "a conflict"), (CREATE, "a bad request"), (DELETE, "a conflict"))


class TestEveryCall:
    """Each call is made, made again and given up alike."""

    @pytest.mark.parametrize(
        ("call", "reply", "judged"),
        [
            pytest.param(call, *met, id=f"{name}-{what}")
            for name, call in CALLS.items()
            for what, met in again(call).items()
        ],
    )
    def test_is_made_again(self, aws: Aws, call: Call, reply: Reply, judged: Again) -> None:
        """Only an unclear reply may have changed something."""
        assert aws.hears(call.meets(reply, call.good)) == call.result
        low, high = (1, 2) if judged.busy else (0, 0.5)
        assert low < aws.waited <= high or aws.waited == judged.after > 0
        held_back = aws.api.opens - aws.began
        assert held_back == min(judged.after, 30) or (not judged.after and 1 <= held_back <= 2)
        with pytest.raises(FailedError) as raised:
            aws.hears(call.meets(reply, DENIED))
        assert raised.value.nothing_changed is (not judged.unclear or call.before != ())

    @pytest.mark.parametrize(
        ("call", "reply", "text"),
        [
            pytest.param(call, *final, id=f"{name}-{what}")
            for name, call in CALLS.items()
            for what, final in FINAL.items()
            if (call.asked, what) not in LOOKED_INTO
        ],
    )
    def test_a_final_refusal_is_named(self, aws: Aws, call: Call, reply: Reply, text: str) -> None:
        with pytest.raises(FailedError) as raised:
            aws.hears(call.meets(reply))
        verb, path = call.asked.partition("?")[0].split()[:2]
        assert str(raised.value) == f"{call.what}: {text.format(verb, path)}"
        assert (raised.value.nothing_changed, aws.waited) == (True, 0)

    @each_call
    def test_is_made_once_when_all_is_well_and_given_up_in_the_end(self, aws: Aws, call: Call) -> None:
        assert aws.hears(call.meets(call.good)) == call.result
        assert (aws.waited, aws.api.opens) == (0, 0)
        with pytest.raises(OutOfTimeError, match=f"^{call.what}: gave up after 1 attempts in 0 s") as raised:
            aws.hears(call.meets(THROTTLED))
        assert raised.value.nothing_changed
        if not call.before:
            with pytest.raises(OutOfTimeError, match=f"^{call.what}: no time was left to begin"):
                aws.hears(call.meets(call.good), seconds=BEFORE_CALL - 1)
            aws.script.clear()


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
#: What API Gateway answers to a call and to the looks after it, and what that comes to.
MET: dict[str, tuple[Script, Any]] = {
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
    "a look, not there": ([NO_GET], None),
    "a look, lost, not there": ([(GET, LOST), NO_GET], None),
    "a look, an odd name": ([(GET, says({"id": "a1b2c3d4e5", "name": "\ud800"}))], Key("?", None)),
    "a look, no name": ([(GET, says({"id": "a1b2c3d4e5"}))], Key("", None)),
    "a delete, not there": ([(DELETE, NOT_THERE)], None),
    "a delete, lost, not there": ([(DELETE, LOST), (DELETE, NOT_THERE)], None),
    "a delete, a passing conflict": ([(DELETE, CONFLICT), (DELETE, CONFLICT), (DELETE, GONE)], None),
    "a delete, a conflict": (
        [(DELETE, LOST), *[(DELETE, CONFLICT)] * 3],
        f"{DETACHING}: ConflictException: whatever",
    ),
    "a list, no such plan": ([(LIST, NOT_THERE)], f"{LISTING}: there is no such usage plan"),
}


class TestWhatItMeets:
    """What refusals mean, and whether an attempt may have changed something."""

    @pytest.mark.parametrize(("script", "result"), MET.values(), ids=MET)
    def test_a_call(self, aws: Aws, script: Script, result: Any) -> None:
        """One whose reply is lost may have taken effect, unless there is no such key or plan."""
        asked, first = script[0]
        pauses = [request for request, _ in script].count(asked) - 1
        if not isinstance(result, str):
            assert aws.hears(script) == result
        else:
            with pytest.raises(FailedError) as raised:
                aws.hears(script)
            told, is_missing = str(raised.value), "there is no" in result
            assert told == result or (result.endswith("…") and told.startswith(result[:-1]))
            assert isinstance(raised.value, MissingError) is is_missing
            assert raised.value.nothing_changed is (is_missing or first is not LOST)
        assert 0 < aws.waited <= 0.5 * (2**pauses - 1) or aws.waited == pauses == 0

    @pytest.mark.parametrize(("reply", "judged"), again(CALLS["create"]).values(), ids=again(CALLS["create"]))
    def test_what_is_unclear_may_be_attached(self, aws: Aws, reply: Reply, judged: Again) -> None:
        found = aws.hears([(CREATE, reply), (CREATE, CONFLICT), (GET, KEY)])
        assert found == InPlan(ALICE, by_us=judged.unclear, is_sure=False)

    def test_an_earlier_attempt_may_have_attached_it(self, aws: Aws) -> None:
        aws.script += [(CREATE, CONFLICT), (GET, KEY)]
        sure = aws.api.attach(WANTED, within(600, aws.clock), may_be_there=True)
        assert sure == InPlan(ALICE, by_us=True, is_sure=False)

    def test_a_look_may_be_the_queues_to_repeat(self, aws: Aws) -> None:
        with pytest.raises(TurnOverError, match=LOOKING):
            aws.hears([(CREATE, BAD), (GET, THROTTLED)], 99999, patience=aws.clock.now)

    def test_ids_that_have_each_others_length_may_be_swapped(self, aws: Aws) -> None:
        create = 'POST /usageplans/a1b2c3d4e5/keys {"keyId": "p9r0p1", "keyType": "API_KEY"}'
        aws.script += [(create, NOT_THERE), ("GET /usageplans/a1b2c3d4e5", NOT_THERE)]
        with pytest.raises(MissingError, match=r"the region\. KeyId and UsagePlanId may be swapped$"):
            aws.api.attach(Association("p9r0p1", "a1b2c3d4e5"), within(600, aws.clock))

    def test_no_text_shows_a_value(self) -> None:
        assert VALUE not in f"{DUPLICATE}{ALICE!r}{ALICE}"

    @pytest.mark.parametrize("held", ["f7r3e3", "o7h3r0", "u7n5e3"])
    @pytest.mark.parametrize("wanted", [WANTED, IN_FREE, WANTED._replace(key_id="z9y8x7w6v5")])
    @pytest.mark.parametrize("seconds", [60, 60.1])
    def test_a_rival_is_remembered(self, aws: Aws, held: str, wanted: Association, seconds: float) -> None:
        """Not one of another stage, and none that was never seen."""
        items = [plan("f7r3e3", "api1:prod", name="Free"), plan("o7h3r0", "api1:test")]
        aws.hears([*UNEXPLAINED[:3], (PLANS, says({"item": items}))])
        aws.clock.sleep(seconds)
        known = aws.api.known_rival(IN_FREE._replace(plan_id=held), wanted, within(9, aws.clock))
        assert known == (FREE if (held, wanted, seconds) == ("f7r3e3", WANTED, 60) else None)

    def test_a_list_is_read_page_by_page_at_the_watchs_pace_without_values(self, aws: Aws) -> None:
        paced: list[int] = []
        pages: list[Any] = [{"item": [{"id": "a"}, {"id": "b"}], "position": "2"}, {"position": "3"}]
        pages += [{"item": [{"id": VALUE}]}]
        for page, position in zip(pages, ("", "&position=2", "&position=3"), strict=True):
            aws.script += [(f"{LIST}{position}", AGAIN["down"][0]), (f"{LIST}{position}", says(page))]
        found = aws.api.keys_in("p9r0p1", within(600, aws.clock), lambda: paced.append(aws.sent))
        assert (found, paced) == ({"a", "b", "an id of 27 characters (b9eae2b8)"}, [*range(6)])
