"""The fake client and the proxy before MiniStack keep API Gateway's rules, both alike."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from emulators import rules
from emulators.fake import ApiGateway, Key, Plan
from emulators.ministack import Aws
from emulators.proxy import Proxy
from emulators.rules import Bucket, OneAtATime, Refusal

STAGES = {"Free": ["api:prod"], "Pro": ["api:dev", "api:prod"], "Other": ["other:prod"]}
#: Calls in order, and what becomes of each.
STORY = [
    ("create Free alice", 201),
    ("get Free alice", 200),
    ("create Free alice", rules.DUPLICATE),
    ("create Pro alice", "shared stage"),
    ("create Other alice", 201),  # no stage in common
    ("create Pro bob", 201),
    ("create nowhere bob", rules.NOT_FOUND),
    ("create Other nobody", rules.NOT_FOUND),
    ("create Other bob COOKIE", rules.BAD_TYPE),
    ("get Other bob", rules.NOT_FOUND),
    ("get nowhere alice", rules.NOT_FOUND),
    ("get Free nobody", rules.NOT_FOUND),
    ("delete Free bob", rules.NOT_FOUND),
    ("delete nowhere alice", rules.NOT_FOUND),
    ("plans alice", ["Free", "Other"]),
    ("delete Free alice", 202),
    ("get Free alice", rules.NOT_FOUND),
    ("create Pro alice", 201),  # The stage is free again.
    ("plans alice", ["Other", "Pro"]),
]


class Clock:
    """Stands still unless a test moves it."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Api:
    """One of the two: its client, the ids of plans and keys by their names, and its gate."""

    def __init__(self, client: Any, ids: dict[str, str], gate: OneAtATime | None = None) -> None:
        self.client, self.ids, self.gate = client, ids, gate

    def call(self, line: str) -> Any:
        """Make a call of the story: a status, the names of plans, or a refusal."""
        verb, *names = line.split()
        if verb == "plans":
            plans = self.client.get_usage_plans(keyId=self.ids[names[0]], limit=500)["items"]
            return sorted(plan["name"] for plan in plans)
        of = dict(zip(("usagePlanId", "keyId"), (self.ids.get(name, name) for name in names), strict=False))
        if verb == "create":
            of["keyType"] = names[2] if len(names) > 2 else "API_KEY"
        try:
            made = getattr(self.client, f"{verb}_usage_plan_key")(**of)
        except ClientError as error:
            meta, message = error.response["ResponseMetadata"], error.response["Error"]["Message"]
            again = meta["HTTPHeaders"].get("retry-after")
            code = error.response["Error"]["Code"]
            return Refusal(meta["HTTPStatusCode"], code, message, again and int(again))
        if verb != "delete":
            assert (made["id"], made["name"], made["type"]) == (of["keyId"], names[1].title(), "API_KEY")
            assert made["value"]
        return made["ResponseMetadata"]["HTTPStatusCode"]


@pytest.fixture
def fake() -> ApiGateway:
    api = ApiGateway()
    api.plans = {name: Plan(name, tuple(it.split(":") for it in of)) for name, of in STAGES.items()}  # type: ignore[misc]  # two parts
    api.keys = {name: Key(name.title(), "secret") for name in ("alice", "bob")}
    return api


@pytest.fixture
def proxied(aws: Aws) -> Iterator[Api]:
    """A proxy of its own, with a full bucket."""
    behind, ids = aws.client("apigateway"), {}
    for name, of in STAGES.items():
        stages = [dict(zip(("apiId", "stage"), it.split(":"), strict=True)) for it in of]
        ids[name] = behind.create_usage_plan(name=name, apiStages=stages)["id"]
    for name in ("alice", "bob"):
        ids[name] = behind.create_api_key(name=name.title())["id"]
    with Proxy(behind, aws.port, aws.certificate) as proxy:
        yield Api(aws.client("apigateway", proxy.url), ids, proxy.one_at_a_time)


@pytest.mark.usefixtures("either_conflict")
@pytest.mark.parametrize("which", ["fake", "proxy"])
def test_both_answer_alike(which: str, request: pytest.FixtureRequest) -> None:
    api = request.getfixturevalue("proxied") if which == "proxy" else Api(request.getfixturevalue("fake"), {})
    api.ids = api.ids or {name: name for name in (*STAGES, "alice", "bob")}
    said = [(line, api.call(line)) for line, _ in STORY]
    assert said == [
        (line, ApiGateway.shared_stage if expected == "shared stage" else expected)
        for line, expected in STORY
    ]
    assert api.client.get_usage_plan(usagePlanId=api.ids["Pro"])["name"] == "Pro"
    with pytest.raises(api.client.exceptions.NotFoundException):
        api.client.get_usage_plan(usagePlanId="nowhere")


def test_only_a_busy_refusal_says_to_try_again_later() -> None:
    """The handler tells a conflict that passes by this text, and every other one by its code."""
    bad, missing, conflict = (400, "BadRequest"), (404, "NotFound"), (409, "Conflict")
    every = [rules.BAD_TYPE, rules.NOT_FOUND, rules.DUPLICATE, *rules.SHARED_STAGES, rules.BUSY]
    codes = [(it.status, it.code.removesuffix("Exception")) for it in every]
    assert codes == [bad, missing, conflict, conflict, bad, conflict]
    assert [each for each in every if "try again later" in each.message.lower()] == [rules.BUSY]


def test_the_proxy_lets_one_of_two_in(proxied: Api) -> None:
    assert proxied.gate
    proxied.gate.seconds = 2
    with ThreadPoolExecutor(2) as pool:
        answers = {*pool.map(proxied.call, ["create Free alice", "create Other bob"])}
    assert answers == {201, rules.BUSY}


def test_a_create_or_a_delete_under_way_keeps_others_out(fake: ApiGateway) -> None:
    """Until it has taken its time; a get never waits."""
    clock, api = Clock(), Api(fake, {})
    fake.one_at_a_time = OneAtATime(0.5, clock)
    calls = ["create Free alice", "create Free bob", "delete Free alice", "get Free alice"]
    assert [api.call(line) for line in calls] == [201, rules.BUSY, rules.BUSY, 200]
    clock.now += 0.5
    assert [api.call(line) for line in ("create Free bob", "create Other alice")] == [201, rules.BUSY]
    clock.now += 60
    assert fake.one_at_a_time.enter() is None
    clock.now += 60
    assert fake.one_at_a_time.enter() is rules.BUSY, "the one inside is slow by itself"
    assert fake.one_at_a_time.leave() == 0
    assert fake.one_at_a_time.enter() is None


def test_ten_calls_a_second_pass_and_forty_at_once(fake: ApiGateway) -> None:
    """https://docs.aws.amazon.com/apigateway/latest/developerguide/limits.html."""
    clock, api = Clock(), Api(fake, {})
    throttled = Refusal(429, "TooManyRequestsException", "Too Many Requests", 1)
    fake.bucket, fake.attached = Bucket(clock), {("alice", "Free")}
    for seconds, passing in ((0, 40), (1, 10), (3600, 40)):
        clock.now += seconds
        said = [api.call("get Free alice") for _ in range(60)]
        assert said == [200] * passing + [throttled] * (60 - passing)
    fake.bucket = Bucket(clock, rate=0.4, burst=1)
    said = [api.call(line) for line in ("create Other alice", "delete Other alice")]
    assert said == [201, replace(throttled, retry_after=3)]
    clock.now += 3
    assert api.call("delete Other alice") == 202
    assert fake.calls == {"GetUsagePlanKey": 180, "CreateUsagePlanKey": 1, "DeleteUsagePlanKey": 2}


def test_the_fakes_lists_have_pages(fake: ApiGateway) -> None:
    fake.attached = {("alice", "Free"), ("bob", "Free")}
    first = fake.get_usage_plans(limit=2)
    second = fake.get_usage_plans(limit=2, position=first["position"])
    assert [[plan["id"] for plan in page["items"]] for page in (first, second)] == [
        ["Free", "Pro"],
        ["Other"],
    ]
    assert first["items"][0]["apiStages"] == [{"apiId": "api", "stage": "prod"}]
    assert "position" not in second
    first = fake.get_usage_plan_keys(usagePlanId="Free", limit=1)
    second = fake.get_usage_plan_keys(usagePlanId="Free", limit=1, position=first["position"])
    assert [it["id"] for page in (first, second) for it in page["items"]] == ["alice", "bob"]
    assert "position" not in second
    with pytest.raises(fake.exceptions.NotFoundException):
        fake.get_usage_plan_keys(usagePlanId="nowhere")
