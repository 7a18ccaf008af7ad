"""The function reads API Gateway's errors right: exact parameters, errors as botocore raises them."""

from __future__ import annotations

import contextlib
import json
import random
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import (
    ChecksumError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ProxyConnectionError,
    ReadTimeoutError,
)
from botocore.stub import Stubber

from usage_plan_key.api_gateway import MOST_UNEXPLAINED, ApiGateway, InPlan
from usage_plan_key.errors import FailedError, MissingError, OutOfTimeError
from usage_plan_key.model import Association, Key, Rival
from usage_plan_key.retry import BEFORE_CALL, Again, Deadline, transient

from .memory import Clock, within

WANTED = Association("a1b2c3d4e5", "p9r0p1")
IDS = {"usagePlanId": "p9r0p1", "keyId": "a1b2c3d4e5"}
CREATE, GET, DELETE, PLAN, PLANS = (
    "create_usage_plan_key",
    "get_usage_plan_key",
    "delete_usage_plan_key",
    "get_usage_plan",
    "get_usage_plans",
)
PARAMETERS: dict[str, dict[str, Any]] = {
    CREATE: {**IDS, "keyType": "API_KEY"},
    GET: IDS,
    DELETE: IDS,
    PLAN: {"usagePlanId": "p9r0p1"},
    PLANS: {"keyId": "a1b2c3d4e5", "limit": 500},
}
KEY = {"id": "a1b2c3d4e5", "type": "API_KEY", "name": "alice", "value": "s3cr3t-s3cr3t-s3cr3t-s3cr3t"}
ALICE = Key("alice", "s3cr3t-s3cr3t-s3cr3t-s3cr3t")
BUSY = "Unable to complete operation due to concurrent modification. Please try again later."
LOST = ReadTimeoutError(endpoint_url="https://apigateway.eu-central-1.amazonaws.com/usageplans/p9r0p1/keys")
UNREACHABLE = EndpointConnectionError(endpoint_url="https://apigateway.eu-central-1.amazonaws.com/")


class Aws:
    """API Gateway, scripted call by call; each call must have the parameters in its script."""

    def __init__(self) -> None:
        self.client = boto3.client(
            "apigateway",
            region_name="eu-central-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            config=Config(retries={"total_max_attempts": 1}),
        )
        self.stub = Stubber(self.client)
        self.stub.activate()
        self.clock = Clock()
        self.api = ApiGateway(self.client)
        self.began = self.clock.now
        self._lost: list[Exception | None] = []
        self.client.meta.events.register_first("before-call.*.*", self._lose)

    def _lose(self, **_: object) -> None:
        if (error := self._lost.pop(0)) is not None:
            self.stub._queue.popleft()  # type: ignore[attr-defined]  # The lost reply.
            raise error

    def answers(self, operation: str, reply: dict[str, Any] | None = None, **more: str) -> Aws:
        """Serve a call."""
        self._lost.append(None)
        self.stub.add_response(operation, reply or {}, {**PARAMETERS[operation], **more})
        return self

    def refuses(
        self, operation: str, status: int, code: str, message: str = "", retry_after: str = ""
    ) -> Aws:
        """Refuse a call."""
        self._lost.append(None)
        headers = {"retry-after": retry_after} if retry_after else {}
        self.stub.add_client_error(
            operation,
            code,
            message,
            status,
            expected_params=PARAMETERS[operation],
            response_meta={"HTTPHeaders": headers},
        )
        return self

    def loses(self, operation: str, error: Exception = LOST) -> Aws:
        """Serve a call, perhaps, and lose its reply."""
        self.stub.add_response(operation, {}, PARAMETERS[operation])
        self._lost.append(error)
        return self

    def deadline(self, seconds: float = 600.0) -> Deadline:
        """Make a deadline with jitter that is the same in each run."""
        return within(seconds, self.clock, dice=random.Random(0))

    @property
    def waited(self) -> float:
        """The length of all sleeps, in seconds."""
        return self.clock.now - self.began

    def attach(self, seconds: float = 600.0) -> Any:
        return self.api.attach(WANTED, self.deadline(seconds))

    def look(self, seconds: float = 600.0) -> Any:
        return self.api.look(WANTED, self.deadline(seconds))

    def detach(self, seconds: float = 600.0) -> Any:
        return self.api.detach(WANTED, self.deadline(seconds))


@pytest.fixture
def aws() -> Iterator[Aws]:
    """The test must make every scripted call."""
    aws = Aws()
    yield aws
    aws.stub.assert_no_pending_responses()


def plan(id_: str, *stages: tuple[str, str], name: str = "") -> dict[str, Any]:
    return {"id": id_, "name": name, "apiStages": [{"apiId": api, "stage": stage} for api, stage in stages]}


Do = Callable[..., Any]
each_call = pytest.mark.parametrize(
    ("operation", "do", "reply", "result"),
    [
        pytest.param(CREATE, Aws.attach, KEY, InPlan(ALICE, by_us=True), id="create"),
        pytest.param(GET, Aws.look, KEY, ALICE, id="get"),
        pytest.param(DELETE, Aws.detach, {}, None, id="delete"),
    ],
)


class TestEveryCall:
    """The function asks, retries and reads refusals alike for create, get and delete."""

    @each_call
    def test_is_made_once_when_all_is_well(
        self, aws: Aws, operation: str, do: Do, reply: Any, result: Any
    ) -> None:
        aws.answers(operation, reply)
        assert do(aws) == result
        assert aws.waited == 0

    @each_call
    @pytest.mark.parametrize(
        ("status", "code", "message"),
        [
            pytest.param(429, "TooManyRequestsException", "Too Many Requests", id="too many requests"),
            pytest.param(400, "ThrottlingException", "Rate exceeded", id="throttled, with 400"),
            pytest.param(400, "RequestLimitExceeded", "", id="request limit, with 400"),
            pytest.param(400, "RequestTimeout", "", id="timed out, with 400"),
            pytest.param(409, "ConflictException", BUSY, id="busy"),
            pytest.param(400, "BadRequestException", BUSY, id="busy, in old reports"),
            pytest.param(409, "ConflictException", "TRY AGAIN LATER", id="busy, loudly"),
            pytest.param(500, "InternalFailure", "", id="500"),
            pytest.param(503, "ServiceUnavailable", "", id="503"),
            pytest.param(504, "504", "Gateway Timeout", id="504 of something in between"),
        ],
    )
    def test_is_made_again(
        self, aws: Aws, operation: str, do: Do, reply: Any, result: Any, status: int, code: str, message: str
    ) -> None:
        for _ in range(4):
            aws.refuses(operation, status, code, message)
        aws.answers(operation, reply)
        assert do(aws) == result
        assert 0 < aws.waited < (5 + 10 + 20 + 40 if status in (409, 500, 503, 504) else 4 * 60)

    @each_call
    @pytest.mark.parametrize(
        "message", ["Limit exceeded", "Too Many Requests", "Maximum number of keys has been reached"]
    )
    def test_a_quota_is_tried_for_30_seconds_and_fails_with_its_text(
        self, aws: Aws, operation: str, do: Do, reply: Any, result: Any, message: str
    ) -> None:
        """The text does not matter; the call did nothing, and CloudFormation would have waited longer."""
        for _ in range(99):  # no end of them
            aws.refuses(operation, 429, "LimitExceededException", message)
        with pytest.raises(FailedError, match=f"LimitExceededException: {message}") as raised:
            do(aws)
        assert not isinstance(raised.value, OutOfTimeError)
        assert raised.value.nothing_changed
        assert aws.waited == 30
        aws.stub._queue.clear()  # type: ignore[attr-defined]

    @each_call
    @pytest.mark.parametrize(
        "error",
        [
            LOST,
            UNREACHABLE,
            ConnectTimeoutError(endpoint_url="https://apigateway.eu-central-1.amazonaws.com/"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_is_made_again_after_a_connection_error(
        self, aws: Aws, operation: str, do: Do, reply: Any, result: Any, error: Exception
    ) -> None:
        aws.loses(operation, error).answers(operation, reply)
        assert do(aws) == result
        assert aws.waited > 0

    @each_call
    @pytest.mark.parametrize("code", ["TooManyRequestsException", "LimitExceededException"])
    def test_honours_retry_after(
        self, aws: Aws, operation: str, do: Do, reply: Any, result: Any, code: str
    ) -> None:
        aws.refuses(operation, 429, code, retry_after="33").answers(operation, reply)
        assert do(aws) == result
        assert 33 <= aws.waited <= 33 + 60

    @each_call
    @pytest.mark.parametrize("retry_after", ["soon", "-5", "Wed, 21 Oct 2026 07:28:00 GMT", "nan"])
    def test_does_not_stumble_over_an_odd_retry_after(
        self, aws: Aws, operation: str, do: Do, reply: Any, result: Any, retry_after: str
    ) -> None:
        aws.refuses(operation, 429, "TooManyRequestsException", retry_after=retry_after).answers(
            operation, reply
        )
        assert do(aws) == result
        assert 0 < aws.waited <= 60

    @each_call
    @pytest.mark.parametrize("code", ["TooManyRequestsException", "LimitExceededException"])
    def test_throttled_out_of_time_it_says_how_often_and_how_long(
        self, aws: Aws, operation: str, do: Do, reply: Any, result: Any, code: str
    ) -> None:
        aws.refuses(operation, 429, code, retry_after="10").refuses(operation, 429, code, retry_after="500")
        with pytest.raises(OutOfTimeError, match=rf"gave up after 2 attempts in \d\d s, .*\({code}\)"):
            do(aws, BEFORE_CALL + 90)

    @each_call
    @pytest.mark.parametrize(
        ("status", "code", "message"),
        [
            pytest.param(409, "ConflictException", BUSY, id="busy"),
            pytest.param(503, "ServiceUnavailable", "Come back tomorrow", id="unavailable"),
        ],
    )
    def test_out_of_time_it_names_ids_region_and_the_last_error(
        self, aws: Aws, operation: str, do: Do, reply: Any, result: Any, status: int, code: str, message: str
    ) -> None:
        aws.refuses(operation, status, code, message)
        with pytest.raises(OutOfTimeError) as raised:
            do(aws, BEFORE_CALL)
        for named in ("a1b2c3d4e5", "p9r0p1", "eu-central-1", code, message.rstrip(".")):
            assert named in str(raised.value)

    @each_call
    def test_is_not_begun_with_less_time_left_than_it_may_take(
        self, aws: Aws, operation: str, do: Do, reply: Any, result: Any
    ) -> None:
        with pytest.raises(OutOfTimeError, match="no time was left to begin"):
            do(aws, BEFORE_CALL - 1)

    @each_call
    @pytest.mark.parametrize(
        ("status", "code"),
        [(401, "UnauthorizedException"), (403, "AccessDeniedException"), (403, "AccessDenied")],
    )
    def test_without_permission_it_names_the_action_the_resource_and_the_region(
        self, aws: Aws, operation: str, do: Do, reply: Any, result: Any, status: int, code: str
    ) -> None:
        aws.refuses(
            operation, status, code, "User: arn:aws:sts::123456789012:assumed-role/r is not authorized"
        )
        with pytest.raises(FailedError) as raised:
            do(aws)
        verb = {CREATE: "POST", GET: "GET", DELETE: "DELETE"}[operation]
        path = "keys" if operation == CREATE else "keys/a1b2c3d4e5"
        assert (
            f"apigateway:{verb} on arn:PARTITION:apigateway:eu-central-1::/usageplans/p9r0p1/{path},"
            in str(raised.value)
        )
        assert raised.value.nothing_changed

    @each_call
    def test_a_bad_request_says_so_with_ids_and_region(
        self, aws: Aws, operation: str, do: Do, reply: Any, result: Any
    ) -> None:
        aws.refuses(operation, 400, "BadRequestException", "Invalid key type")
        with pytest.raises(FailedError) as raised:
            do(aws)
        assert re.search(
            r"key a1b2c3d4e5 .* plan p9r0p1 in eu-central-1: .* bad request: Invalid key type",
            str(raised.value),
        )

    @each_call
    def test_an_unforeseen_error_is_named_and_not_retried(
        self, aws: Aws, operation: str, do: Do, reply: Any, result: Any
    ) -> None:
        aws.refuses(operation, 403, "UnrecognizedClientException", "The security token is invalid")
        with pytest.raises(
            FailedError, match=r"in eu-central-1: UnrecognizedClientException: The security token is invalid"
        ):
            do(aws)
        assert aws.waited == 0


class TestAttach:
    """The function tells apart the refusals of CreateUsagePlanKey."""

    @pytest.mark.parametrize(
        "text",
        ["Invalid Usage Plan ID specified", "Invalid API Key identifier specified"],
        ids=["plan", "key"],
    )
    @pytest.mark.parametrize("missing", ["plan", "key", "unseen", "untold"])
    def test_not_found_looks_at_the_plan_and_does_not_trust_the_text(
        self, aws: Aws, text: str, missing: str
    ) -> None:
        aws.refuses(CREATE, 404, "NotFoundException", text)
        match missing:
            case "plan":
                aws.refuses(PLAN, 404, "NotFoundException", text)
            case "key":
                aws.answers(PLAN, plan("p9r0p1"))
            case "unseen":
                aws.refuses(PLAN, 403, "AccessDeniedException", "")
            case "untold":
                aws.refuses(PLAN, 429, "TooManyRequestsException", "", retry_after="9999")
        with pytest.raises(FailedError) as raised:
            aws.attach()
        either = "usage plan p9r0p1 or API key a1b2c3d4e5"
        thing = {"plan": "usage plan p9r0p1", "key": "API key a1b2c3d4e5"}.get(missing, either)
        assert f": there is no {thing} in eu-central-1. Check the id" in str(raised.value)
        assert raised.value.nothing_changed

    def test_a_conflict_with_the_key_in_the_plan_is_a_duplicate(self, aws: Aws) -> None:
        aws.refuses(CREATE, 409, "ConflictException", "whatever").answers(GET, KEY)
        assert aws.attach() == InPlan(ALICE, by_us=False, is_sure=False)

    def test_a_conflict_after_a_lost_reply_is_our_own_attempt(self, aws: Aws) -> None:
        aws.loses(CREATE, LOST).refuses(CREATE, 409, "ConflictException", "whatever").answers(GET, KEY)
        assert aws.attach() == InPlan(ALICE, by_us=True, is_sure=False)

    @pytest.mark.parametrize(
        "lost",
        [
            UNREACHABLE,
            ConnectTimeoutError(endpoint_url="https://apigateway"),
            ProxyConnectionError(proxy_url="http://proxy"),
        ],
        ids=["no connection", "time-out", "no proxy"],
    )
    def test_a_conflict_after_a_call_that_never_got_there_is_not_our_own_attempt(
        self, aws: Aws, lost: Exception
    ) -> None:
        aws.loses(CREATE, lost).refuses(CREATE, 409, "ConflictException", "whatever").answers(GET, KEY)
        assert aws.attach() == InPlan(ALICE, by_us=False, is_sure=False)

    def test_a_conflict_after_a_5xx_is_our_own_attempt(self, aws: Aws) -> None:
        aws.refuses(CREATE, 500, "InternalFailure").refuses(CREATE, 409, "ConflictException").answers(
            GET, KEY
        )
        assert aws.attach() == InPlan(ALICE, by_us=True, is_sure=False)

    def test_a_conflict_after_a_refusal_is_not_our_own_attempt(self, aws: Aws) -> None:
        aws.refuses(CREATE, 409, "ConflictException", BUSY).refuses(CREATE, 429, "TooManyRequestsException")
        aws.refuses(CREATE, 409, "ConflictException", "whatever").answers(GET, KEY)
        assert aws.attach() == InPlan(ALICE, by_us=False, is_sure=False)

    def test_a_conflict_with_a_plan_for_the_same_stage_names_each_such_plan(self, aws: Aws) -> None:
        aws.refuses(CREATE, 409, "ConflictException", "whatever").refuses(GET, 404, "NotFoundException")
        aws.answers(PLAN, plan("p9r0p1", ("api2", "prod"), *[(f"api{n}", "test") for n in range(9)]))
        first = [plan("f7r3e3", *[(f"api{n}", "test") for n in range(2, 9)], ("api1", "prod"), name="Free")]
        second = [
            plan("o7h3r0", ("api1", "prod"), name="Other"),
            plan("b9a8d7", ("api2", "prod"), name="Bad"),
        ]
        aws.answers(PLANS, {"items": first, "position": "next"})
        aws.answers(PLANS, {"items": second}, position="next")
        assert aws.attach() == [
            Rival(Association("a1b2c3d4e5", "f7r3e3"), "Free", tuple(f"api{n}:test" for n in range(2, 9))),
            Rival(Association("a1b2c3d4e5", "b9a8d7"), "Bad", ("api2:prod",)),
        ]

    def test_a_list_that_repeats_its_position_ends_there(self, aws: Aws) -> None:
        aws.refuses(CREATE, 409, "ConflictException", "whatever").refuses(GET, 404, "NotFoundException")
        aws.answers(PLAN, plan("p9r0p1", ("api1", "prod")))
        aws.answers(PLANS, {"items": [plan("f7r3e3", ("api1", "prod"), name="Free")], "position": "next"})
        aws.answers(PLANS, {"items": [], "position": "next"}, position="next")
        assert aws.attach() == [Rival(Association("a1b2c3d4e5", "f7r3e3"), "Free", ("api1:prod",))]

    def test_a_rival_reads_well_in_a_reason(self) -> None:
        rival = Rival(Association("a1b2c3d4e5", "f7r3e3"), "Free", ("api1:prod", "api2:prod"))
        assert str(rival) == "usage plan f7r3e3 (Free) for the API stage api1:prod, api2:prod"

    def script_unexplained(self, aws: Aws, message: str = "Not now") -> None:
        aws.refuses(CREATE, 409, "ConflictException", message).refuses(GET, 404, "NotFoundException")
        aws.answers(PLAN, plan("p9r0p1", ("api1", "prod")))
        # The wanted plan itself is no rival of itself.
        aws.answers(PLANS, {"items": [plan("p9r0p1", ("api1", "prod")), plan("o7h3r0", ("api1", "test"))]})

    def test_a_conflict_that_nothing_explains_may_be_passing(self, aws: Aws) -> None:
        self.script_unexplained(aws)
        aws.answers(CREATE, KEY)
        assert aws.attach() == InPlan(ALICE, by_us=True)
        assert aws.waited > 0

    def test_a_conflict_that_nothing_explains_is_final_in_the_end(self, aws: Aws) -> None:
        for _ in range(MOST_UNEXPLAINED):
            self.script_unexplained(aws)
        with pytest.raises(
            FailedError,
            match=r"key a1b2c3d4e5 to usage plan p9r0p1 in eu-central-1: ConflictException: Not now",
        ) as raised:
            aws.attach()
        assert raised.value.nothing_changed

    @pytest.mark.parametrize(
        ("status", "code", "clear"),
        [
            pytest.param(400, "BadRequestException", True, id="bad request"),
            pytest.param(403, "AccessDeniedException", True, id="no permission"),
        ],
    )
    @pytest.mark.parametrize("lost", [False, True], ids=["", "after a lost reply"])
    def test_a_refusal_is_clear_unless_a_reply_was_lost(
        self, aws: Aws, status: int, code: str, *, clear: bool, lost: bool
    ) -> None:
        if lost:
            aws.loses(CREATE)
        aws.refuses(CREATE, status, code)
        with pytest.raises(FailedError) as raised:
            aws.attach()
        assert raised.value.nothing_changed is (clear and not lost)

    @pytest.mark.parametrize("how", ["no permission", "out of time"])
    @pytest.mark.parametrize("what", ["key", "plan", "plans"])
    def test_a_refusal_is_not_clear_when_a_reply_was_lost_and_looking_fails(
        self, aws: Aws, how: str, what: str
    ) -> None:
        """The first attempt may have attached it: the hold must stay, or nobody would ever detach it."""
        aws.loses(CREATE).refuses(CREATE, 409, "ConflictException", "whatever")
        if what != "key":
            aws.refuses(GET, 404, "NotFoundException")
        if what == "plans":
            aws.answers(PLAN, plan("p9r0p1"))
        last = {"key": GET, "plan": PLAN, "plans": PLANS}[what]
        if how == "no permission":
            aws.refuses(last, 403, "AccessDeniedException")
        else:
            aws.refuses(last, 429, "TooManyRequestsException", retry_after="9999")
        with pytest.raises(FailedError) as raised:
            aws.attach()
        assert not raised.value.nothing_changed

    def test_being_throttled_out_of_time_leaves_nothing_to_hold(self, aws: Aws) -> None:
        """API Gateway refused each attempt, so a Delete could only detach somebody else's key."""
        aws.refuses(CREATE, 429, "TooManyRequestsException", retry_after="9999")
        with pytest.raises(OutOfTimeError) as raised:
            aws.attach()
        assert raised.value.nothing_changed

    @pytest.mark.parametrize(
        ("operation", "resource"),
        [
            pytest.param(GET, "/usageplans/p9r0p1/keys/a1b2c3d4e5", id="the key"),
            pytest.param(PLAN, "/usageplans/p9r0p1", id="the plan"),
            pytest.param(PLANS, "/usageplans", id="all plans"),
        ],
    )
    def test_without_permission_to_explain_a_conflict_it_names_that_permission(
        self, aws: Aws, operation: str, resource: str
    ) -> None:
        aws.refuses(CREATE, 409, "ConflictException", "whatever")
        if operation != GET:
            aws.refuses(GET, 404, "NotFoundException")
        if operation == PLANS:
            aws.answers(PLAN, plan("p9r0p1"))
        aws.refuses(operation, 403, "AccessDeniedException")
        with pytest.raises(FailedError) as raised:
            aws.attach()
        assert f"apigateway:GET on arn:PARTITION:apigateway:eu-central-1::{resource}, then" in str(
            raised.value
        )

    @pytest.mark.parametrize("operation", [GET, PLAN, PLANS])
    def test_looking_is_retried_too(self, aws: Aws, operation: str) -> None:
        aws.refuses(CREATE, 409, "ConflictException", "whatever")
        replies: list[tuple[str, Any]] = [(GET, None), (PLAN, plan("p9r0p1", ("a", "s")))]
        replies += [(PLANS, {"items": [plan("f7r3e3", ("a", "s"))]})]
        for asked, reply in replies:
            if asked == operation:
                aws.refuses(asked, 429, "TooManyRequestsException", retry_after="7").loses(asked)
            if reply is None:
                aws.refuses(asked, 404, "NotFoundException")
            else:
                aws.answers(asked, reply)
        assert aws.attach() == [Rival(Association("a1b2c3d4e5", "f7r3e3"), "", ("a:s",))]

    def test_a_plan_that_goes_meanwhile_is_named(self, aws: Aws) -> None:
        aws.refuses(CREATE, 409, "ConflictException", "whatever").refuses(GET, 404, "NotFoundException")
        aws.refuses(PLAN, 404, "NotFoundException")
        with pytest.raises(FailedError, match="there is no usage plan p9r0p1 in eu-central-1"):
            aws.attach()

    def test_a_value_may_be_absent(self, aws: Aws) -> None:
        aws.answers(CREATE, {"id": "a1b2c3d4e5", "type": "API_KEY"})
        assert aws.attach() == InPlan(Key("", None), by_us=True)


class TestKnownRival:
    """The function remembers for a minute the plans that a conflict showed."""

    @pytest.fixture
    def taught(self, aws: Aws) -> Aws:
        aws.refuses(CREATE, 409, "ConflictException", "whatever").refuses(GET, 404, "NotFoundException")
        aws.answers(PLAN, plan("p9r0p1", ("api1", "prod")))
        items = [plan("f7r3e3", ("api1", "prod"), name="Free"), plan("o7h3r0", ("api1", "test"))]
        aws.answers(PLANS, {"items": items})
        aws.attach()
        return aws

    def known(
        self, aws: Aws, held: str, wanted: str = "p9r0p1", other_key: str = "a1b2c3d4e5"
    ) -> Rival | None:
        association = Association("a1b2c3d4e5", held)
        return aws.api.known_rival(association, Association(other_key, wanted), aws.deadline())

    @pytest.mark.parametrize("seconds", [0, 60])
    def test_names_the_plan_that_shares_a_stage(self, taught: Aws, seconds: float) -> None:
        taught.clock.sleep(seconds)
        expected = Rival(Association("a1b2c3d4e5", "f7r3e3"), "Free", ("api1:prod",))
        assert self.known(taught, "f7r3e3") == expected

    def test_is_forgotten(self, taught: Aws) -> None:
        taught.clock.sleep(61)
        assert self.known(taught, "f7r3e3") is None

    @pytest.mark.parametrize(
        ("held", "wanted", "other_key"),
        [
            pytest.param("o7h3r0", "p9r0p1", "a1b2c3d4e5", id="another stage"),
            pytest.param("u7n5e3", "p9r0p1", "a1b2c3d4e5", id="a held plan that was never seen"),
            pytest.param("f7r3e3", "u7n5e3", "a1b2c3d4e5", id="a wanted plan that was never seen"),
            pytest.param("f7r3e3", "p9r0p1", "z9y8x7w6v5", id="another key"),
            pytest.param("f7r3e3", "f7r3e3", "a1b2c3d4e5", id="itself"),
        ],
    )
    def test_nothing_else_is_a_rival(self, taught: Aws, held: str, wanted: str, other_key: str) -> None:
        assert self.known(taught, held, wanted, other_key) is None


class TestLook:
    """GetUsagePlanKey."""

    @pytest.mark.parametrize(
        "text", ["Invalid Usage Plan ID specified", "Invalid API Key identifier specified", ""]
    )
    def test_not_found_is_an_answer(self, aws: Aws, text: str) -> None:
        aws.refuses(GET, 404, "NotFoundException", text)
        assert aws.look() is None


class TestDetach:
    """DeleteUsagePlanKey."""

    @pytest.mark.parametrize(
        "text", ["Invalid Usage Plan ID specified", "Invalid API Key identifier specified", ""]
    )
    def test_any_kind_of_not_found_is_forgiven(self, aws: Aws, text: str) -> None:
        aws.refuses(DELETE, 404, "NotFoundException", text)
        aws.detach()
        assert aws.waited == 0

    def test_not_found_after_a_lost_reply_is_forgiven(self, aws: Aws) -> None:
        aws.loses(DELETE).refuses(DELETE, 404, "NotFoundException")
        aws.detach()

    @pytest.mark.parametrize("lost", [False, True], ids=["", "after a lost reply"])
    def test_a_refusal_is_clear_unless_a_reply_was_lost(self, aws: Aws, *, lost: bool) -> None:
        if lost:
            aws.loses(DELETE)
        for _ in range(MOST_UNEXPLAINED):
            aws.refuses(DELETE, 409, "ConflictException", "not this one")
        with pytest.raises(FailedError, match="ConflictException: not this one") as raised:
            aws.detach()
        assert raised.value.nothing_changed is not lost

    def test_an_unexplained_conflict_may_be_passing(self, aws: Aws) -> None:
        aws.refuses(DELETE, 409, "ConflictException", "not this one").answers(DELETE)
        aws.detach()
        assert aws.waited > 0


class TestBadRequest:
    """The function looks once after a 400, as after a 409: no document gives a stage conflict's code."""

    def refused(self, aws: Aws) -> Aws:
        return aws.refuses(CREATE, 400, "BadRequestException", "cannot reference multiple Usage Plans")

    def test_the_key_is_there_already(self, aws: Aws) -> None:
        self.refused(aws).answers(GET, KEY)
        assert aws.attach() == InPlan(ALICE, by_us=False, is_sure=False)

    def test_the_key_is_in_a_plan_for_the_same_stage(self, aws: Aws) -> None:
        self.refused(aws).refuses(GET, 404, "NotFoundException").answers(
            PLAN, plan("p9r0p1", ("api1", "prod"))
        )
        aws.answers(PLANS, {"items": [plan("f7r3e3", ("api1", "prod"), name="Free")]})
        assert aws.attach() == [Rival(Association("a1b2c3d4e5", "f7r3e3"), "Free", ("api1:prod",))]

    @pytest.mark.parametrize("seen", ["nothing explains it", "the look is denied", "the list is denied"])
    def test_else_it_fails_with_its_own_text(self, aws: Aws, seen: str) -> None:
        self.refused(aws)
        match seen:
            case "the look is denied":
                aws.refuses(GET, 403, "AccessDeniedException")
            case _:
                aws.refuses(GET, 404, "NotFoundException").answers(PLAN, plan("p9r0p1", ("api1", "prod")))
        match seen:
            case "nothing explains it":
                aws.answers(PLANS, {"items": []})
            case "the list is denied":
                aws.refuses(PLANS, 403, "AccessDeniedException")
        with pytest.raises(FailedError, match="bad request: cannot reference multiple Usage Plans") as raised:
            aws.attach()
        assert raised.value.nothing_changed
        assert aws.waited == 0

    def test_a_plan_that_is_gone_is_missing(self, aws: Aws) -> None:
        self.refused(aws).refuses(GET, 404, "NotFoundException").refuses(PLAN, 404, "NotFoundException")
        with pytest.raises(MissingError, match="there is no usage plan p9r0p1"):
            aws.attach()


class TestMissing:
    """The function tells a missing key or plan apart from every other refusal."""

    def test_swapped_ids_are_hinted_at(self) -> None:
        """Each id has the usual length of the other."""
        aws = Aws()
        association = Association("p9r0p1", "a1b2c3d4e5")
        said = aws.api._missing("x", "API key", association)
        assert said.endswith("KeyId and UsagePlanId may be swapped")
        assert "swapped" not in aws.api._missing("x", "API key", WANTED)

    @each_call
    def test_a_denials_own_text_is_told(
        self, aws: Aws, operation: str, do: Do, reply: Any, result: Any
    ) -> None:
        """Only this text names a service control policy."""
        aws.refuses(
            operation, 403, "AccessDeniedException", "with an explicit deny in a service control policy"
        )
        with pytest.raises(FailedError, match="AWS says: with an explicit deny in a service control policy"):
            do(aws)


class TestReplies:
    """A real client cannot read some replies: the function asks again, and never takes them for success."""

    GOOD = json.dumps({"id": "a1b2c3d4e5", "type": "API_KEY", "name": "Alice"}).encode()

    @pytest.fixture
    def replies(self) -> Iterator[tuple[ApiGateway, list[tuple[int, str, bytes, int]]]]:
        """Make a client with scripted answers: status, content type, body, and the body's stated length."""
        script: list[tuple[int, str, bytes, int]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                status, kind, body, length = script.pop(0)
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(length))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_DELETE = do_GET

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        client = boto3.client(
            "apigateway",
            region_name="eu-central-1",
            endpoint_url=f"http://127.0.0.1:{server.server_port}",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            config=Config(retries={"total_max_attempts": 1}, proxies={}),
        )
        try:
            yield ApiGateway(client), script
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    UNREADABLE = pytest.mark.parametrize(
        ("status", "kind", "body", "more"),
        [
            pytest.param(200, "text/html", b"<html>Please sign in</html>", 0, id="a page"),
            pytest.param(200, "text/html; charset=utf-8", GOOD, 0, id="a page that looks like a reply"),
            pytest.param(201, "application/json", b"", 0, id="empty"),
            pytest.param(201, "application/json", GOOD[:30], 0, id="cut short"),
            pytest.param(201, "application/json", GOOD[:30], 40, id="cut short, and says so"),
            pytest.param(200, "application/json", b"hello", 0, id="not JSON"),
            pytest.param(200, "application/json", b"[]", 0, id="a list"),
            pytest.param(200, "application/json", b"null", 0, id="null"),
            pytest.param(200, "application/json", b'{"id": "a1b2c3d4e5", "name": "\xff"}', 0, id="not UTF-8"),
            pytest.param(200, "application/json", GOOD.replace(b"a1b2", b"x1y2"), 0, id="another key"),
        ],
    )

    @UNREADABLE
    @pytest.mark.parametrize("operation", ["attach", "look"])
    def test_it_is_asked_for_again(
        self, replies: Any, operation: str, status: int, kind: str, body: bytes, more: int
    ) -> None:
        api, script = replies
        script += [
            (status, kind, body, len(body) + more),
            (200, "application/json", self.GOOD, len(self.GOOD)),
        ]
        found = getattr(api, operation)(WANTED, within(600, Clock(), dice=random.Random(0)))
        assert found in (Key("Alice"), InPlan(Key("Alice"), by_us=True))
        assert not script

    @UNREADABLE
    def test_in_the_end_it_is_not_attached_and_nobody_knows(
        self, replies: Any, status: int, kind: str, body: bytes, more: int
    ) -> None:
        api, script = replies
        script += [(status, kind, body, len(body) + more)] * 30
        with pytest.raises(OutOfTimeError) as raised:
            api.attach(WANTED, within(60, Clock(), dice=random.Random(0)))
        assert not raised.value.nothing_changed

    def test_a_page_is_no_sign_that_it_is_detached(self, replies: Any) -> None:
        api, script = replies
        script += [(200, "text/html", b"<html>", 6), (202, "application/json", b"", 0)]
        api.detach(WANTED, within(600, Clock(), dice=random.Random(0)))
        assert not script

    @pytest.mark.parametrize("message", [b"null", b"5", b"{}", b'[""]'])
    @pytest.mark.parametrize(
        ("status", "code"),
        [(404, b"NotFoundException"), (409, b"ConflictException"), (403, b"AccessDeniedException")],
    )
    def test_an_error_whose_message_is_no_text_is_one_all_the_same(
        self, replies: Any, status: int, code: bytes, message: bytes
    ) -> None:
        api, script = replies
        body = b'{"__type": "' + code + b'", "message": ' + message + b"}"
        script += [(status, "application/json", body, len(body))] * 99
        with contextlib.nullcontext() if status == 404 else pytest.raises(FailedError):
            api.detach(WANTED, within(600, Clock(), dice=random.Random(0)))

    def test_a_lone_surrogate_in_a_name_is_replaced(self, replies: Any) -> None:
        """Later encodings would fail at it."""
        api, script = replies
        body = b'{"id": "a1b2c3d4e5", "name": "\\ud800 Alice"}'
        script.append((201, "application/json", body, len(body)))
        assert api.attach(WANTED, within(600, Clock(), dice=random.Random(0))) == InPlan(
            Key("? Alice"), by_us=True
        )


@pytest.mark.parametrize(
    "error", [ChecksumError(checksum_type="crc32", expected_checksum="1", actual_checksum="2")]
)
def test_a_checksum_that_does_not_match_is_transient(error: Exception) -> None:
    """DynamoDB's replies carry a CRC32."""
    assert transient(error) == Again(unclear=True)


class TestSecrets:
    """Only replies hold a key's value."""

    @pytest.mark.parametrize("shown", [repr, str])
    def test_a_key_does_not_show_its_value(self, shown: Callable[[object], str]) -> None:
        assert "s3cr3t" not in shown(InPlan(ALICE, by_us=True)) + shown(InPlan(ALICE, by_us=False)) + shown(
            ALICE
        )
