"""The fake client and the proxy before MiniStack keep API Gateway's rules, both alike."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from botocore.exceptions import ClientError

from emulators import rules
from emulators.fake import ApiGateway, Key, Plan
from emulators.ministack import Aws
from emulators.proxy import Proxy
from emulators.rules import Bucket, OneAtATime, Refusal

from .memory import Clock

STAGES = {"Free": ["api:prod"], "Pro": ["api:dev", "api:prod"], "Other": ["other:prod"]}
#: Calls in order, and what becomes of each.
STORY: list[tuple[str, Any]] = [
    ("create Free alice", 201),
    ("get Free alice", 200),
    ("create Free alice", rules.DUPLICATE),
    ("create Pro alice", "shared stage"),
    ("create Other alice", 201),  # no stage in common
    ("create Pro bob", 201),
    ("create Other bob COOKIE", rules.BAD_TYPE),
    *((f"create {names}", rules.NOT_FOUND) for names in ("nowhere bob", "Other nobody")),
    *((f"get {names}", rules.NOT_FOUND) for names in ("Other bob", "nowhere alice", "Free nobody")),
    *((f"delete {names}", rules.NOT_FOUND) for names in ("Free bob", "nowhere alice")),
    ("plans alice", ["Free", "Other"]),
    ("delete Free alice", 202),
    ("get Free alice", rules.NOT_FOUND),
    ("create Pro alice", 201),  # The stage is free again.
    ("plans alice", ["Other", "Pro"]),
]


class Api(NamedTuple):
    """One of the two: its client, the ids of plans and keys by their names, and what keeps the rules."""

    client: Any
    ids: dict[str, str]
    strict: Any

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
            meta, said = error.response["ResponseMetadata"], error.response["Error"]
            again = meta["HTTPHeaders"].get("retry-after")
            return Refusal(meta["HTTPStatusCode"], said["Code"], said["Message"], again and int(again))
        if verb != "delete":
            assert (made["id"], made["name"], made["type"]) == (of["keyId"], names[1].title(), "API_KEY")
            assert made["value"]
        return made["ResponseMetadata"]["HTTPStatusCode"]


@pytest.fixture(params=["faked", "proxied"])
def api(request: pytest.FixtureRequest) -> Iterator[Api]:
    """The proxy is its own, with a full bucket."""
    stages = {name: [tuple(it.split(":")) for it in of] for name, of in STAGES.items()}
    if request.param == "faked":
        fake, keys = ApiGateway(), ("alice", "bob")
        fake.plans = {name: Plan(name, (*of,)) for name, of in stages.items()}  # type: ignore[arg-type]  # two parts
        fake.keys = {name: Key(name.title(), "secret") for name in keys}
        yield Api(fake, {name: name for name in (*stages, *keys)}, fake)
        return
    aws: Aws = request.getfixturevalue("aws")
    behind, ids = aws.client("apigateway"), {}
    for name, of in stages.items():
        covered = [{"apiId": api, "stage": stage} for api, stage in of]
        ids[name] = behind.create_usage_plan(name=name, apiStages=covered)["id"]
    for name in ("alice", "bob"):
        ids[name] = behind.create_api_key(name=name.title())["id"]
    with Proxy(behind, aws.port, aws.certificate) as proxy:
        yield Api(aws.client("apigateway", proxy.url), ids, proxy)


@pytest.mark.usefixtures("either_conflict")
def test_both_answer_alike(api: Api) -> None:
    expected = [(line, api.strict.shared_stage if what == "shared stage" else what) for line, what in STORY]
    assert [(line, api.call(line)) for line, _ in STORY] == expected
    assert api.client.get_usage_plan(usagePlanId=api.ids["Pro"])["name"] == "Pro"
    with pytest.raises(api.client.exceptions.NotFoundException):
        api.client.get_usage_plan(usagePlanId="nowhere")


def test_a_create_or_a_delete_under_way_keeps_others_out_until_it_has_taken_its_time(api: Api) -> None:
    gate = api.strict.one_at_a_time = OneAtATime(0.2, time.monotonic)
    assert gate.enter() is None
    calls = ["create Free alice", "delete Free alice", "get Free alice"]
    assert [api.call(line) for line in calls] == [rules.BUSY, rules.BUSY, rules.NOT_FOUND]
    time.sleep(0.3)
    assert api.call("create Free alice") == rules.BUSY, "the one inside is slow by itself"
    assert gate.leave() == 0
    began = time.monotonic()
    assert api.call("create Free alice") == 201
    assert time.monotonic() - began > 0.2 or api.call("create Free bob") == rules.BUSY


def test_a_call_beyond_the_bucket_hears_when_to_come_again(api: Api) -> None:
    clock = Clock()
    api.strict.bucket = Bucket(clock.time, rate=0.4, burst=2)
    throttled = Refusal(429, "TooManyRequestsException", "Too Many Requests", 3)
    for passing in (2, 1):
        said = [api.call("get Free nobody") for _ in range(3)]
        assert said == [rules.NOT_FOUND] * passing + [throttled] * (3 - passing)
        clock.sleep(2.5)


def test_ten_calls_a_second_pass_and_forty_at_once() -> None:
    """https://docs.aws.amazon.com/apigateway/latest/developerguide/limits.html."""
    clock = Clock()
    bucket = Bucket(clock.time)
    for seconds, passing in ((0, 40), (1, 10), (3600, 40)):
        clock.sleep(seconds)
        assert [bucket.take() is None for _ in range(60)] == [True] * passing + [False] * (60 - passing)


def test_only_a_busy_refusal_says_to_try_again_later() -> None:
    """The handler tells a conflict that passes by this text, and every other one by its code."""
    every = [rules.BAD_TYPE, rules.NOT_FOUND, rules.DUPLICATE, *rules.SHARED_STAGES, rules.BUSY]
    assert [each.status for each in every] == [400, 404, 409, 409, 400, 409]
    assert [each for each in every if "try again later" in each.message.lower()] == [rules.BUSY]
