"""The pure rules, the fake client and the proxy before MiniStack all keep API Gateway's rules."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError

from emulators import rules
from emulators.fake import ApiGateway, Key, Plan
from emulators.ministack import Aws, running
from emulators.proxy import strict
from emulators.rules import Bucket, OneAtATime


class Clock:
    """Stands still unless a test moves it."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class TestOneAtATime:
    """Creates and deletes pass one at a time."""

    def test_a_call_is_busy_while_another_is_under_way(self, clock: Clock) -> None:
        one_at_a_time = OneAtATime(0.3, clock)
        assert one_at_a_time.enter() is None
        clock.now += 60
        assert one_at_a_time.enter() is rules.BUSY

    def test_a_call_is_busy_until_another_has_taken_its_time(self, clock: Clock) -> None:
        one_at_a_time = OneAtATime(0.5, clock)
        one_at_a_time.enter()
        assert one_at_a_time.leave() == 0.5
        assert one_at_a_time.enter() is rules.BUSY
        clock.now += 0.5
        assert one_at_a_time.enter() is None

    def test_a_call_goes_in_at_once_after_another_that_was_slow_by_itself(self, clock: Clock) -> None:
        one_at_a_time = OneAtATime(0.5, clock)
        one_at_a_time.enter()
        clock.now += 2
        assert one_at_a_time.leave() == 0
        assert one_at_a_time.enter() is None

    def test_a_busy_call_says_to_try_again_later(self) -> None:
        assert "Please try again later" in rules.BUSY.message

    @pytest.mark.parametrize(
        "final",
        [rules.DUPLICATE, *rules.SHARED_STAGES],
        ids=["duplicate", "shared stage", "shared stage, 400"],
    )
    def test_nothing_else_says_so(self, final: rules.Refusal) -> None:
        assert "try again later" not in final.message.lower()


class TestBucket:
    """Ten calls a second, forty at once."""

    def test_lets_a_burst_of_forty_pass(self, clock: Clock) -> None:
        bucket = Bucket(clock)
        assert [bucket.take() for _ in range(40)] == [None] * 40
        refusal = bucket.take()
        assert refusal is not None
        assert (refusal.status, refusal.code) == (429, "TooManyRequestsException")

    def test_gives_out_ten_tokens_a_second(self, clock: Clock) -> None:
        bucket = Bucket(clock)
        while not bucket.take():
            pass
        clock.now += 1
        assert [bucket.take() is None for _ in range(11)] == [True] * 10 + [False]

    def test_holds_no_more_than_forty(self, clock: Clock) -> None:
        bucket = Bucket(clock)
        clock.now += 3600
        assert sum(bucket.take() is None for _ in range(60)) == 40

    def test_says_when_to_come_again_in_whole_seconds(self, clock: Clock) -> None:
        bucket = Bucket(clock, rate=0.4, burst=1)
        bucket.take()
        refusal = bucket.take()
        assert refusal is not None
        assert refusal.retry_after == 3
        clock.now += 3
        assert bucket.take() is None


@pytest.fixture
def fake() -> ApiGateway:
    """Two plans for one stage, one for another API's; a key that is nowhere."""
    api = ApiGateway()
    api.plans = {
        "free": Plan("Free", (("api", "prod"),)),
        "pro": Plan("Pro", (("api", "dev"), ("api", "prod"))),
        "other": Plan("Other", (("other", "prod"),)),
    }
    api.keys = {"alice": Key("Alice", "secret"), "bob": Key("Bob", "hidden")}
    return api


@pytest.fixture(scope="module")
def aws() -> Iterator[Aws]:
    with running() as aws:
        yield aws


@pytest.fixture
def proxied(aws: Aws) -> Iterator[SimpleNamespace]:
    """The same, through a proxy with a full bucket; the ids are MiniStack's."""
    behind = aws.client("apigateway")
    with strict(behind, aws.port, aws.certificate) as proxy:
        made = SimpleNamespace(client=aws.client("apigateway", proxy.url), ids={}, proxy=proxy)
        _furnish(behind, made.ids)
        yield made


def _furnish(behind: Any, ids: dict[str, str]) -> None:
    stages = {
        "free": [("api", "prod")],
        "pro": [("api", "dev"), ("api", "prod")],
        "other": [("other", "prod")],
    }
    for plan, covered in stages.items():
        ids[plan] = behind.create_usage_plan(
            name=plan.title(), apiStages=[{"apiId": api, "stage": stage} for api, stage in covered]
        )["id"]
    for key in ("alice", "bob"):
        ids[key] = behind.create_api_key(name=key.title())["id"]


@pytest.fixture(params=["fake", "proxy"])
def api(request: pytest.FixtureRequest) -> SimpleNamespace:
    """Either of them: a client, and its ids by our names."""
    if request.param == "proxy":
        found: SimpleNamespace = request.getfixturevalue("proxied")
        return found
    fake = request.getfixturevalue("fake")
    names = [*fake.plans, *fake.keys]
    return SimpleNamespace(client=fake, ids={name: name for name in names})


def create(api: SimpleNamespace, plan: str, key: str, key_type: str = "API_KEY") -> dict[str, Any]:
    answer: dict[str, Any] = api.client.create_usage_plan_key(
        usagePlanId=api.ids.get(plan, plan), keyId=api.ids.get(key, key), keyType=key_type
    )
    return answer


def get(api: SimpleNamespace, plan: str, key: str) -> dict[str, Any]:
    answer: dict[str, Any] = api.client.get_usage_plan_key(
        usagePlanId=api.ids.get(plan, plan), keyId=api.ids.get(key, key)
    )
    return answer


def delete(api: SimpleNamespace, plan: str, key: str) -> None:
    api.client.delete_usage_plan_key(usagePlanId=api.ids.get(plan, plan), keyId=api.ids.get(key, key))


def refusal(call: Callable[[], object]) -> tuple[int, str, str]:
    """Find the refusal of this call."""
    with pytest.raises(ClientError) as caught:
        call()
    answer = caught.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"], answer["Error"]["Message"]


def expected(refused: rules.Refusal) -> tuple[int, str, str]:
    return refused.status, refused.code, refused.message


class TestApi:
    """The fake and the proxy answer alike."""

    def test_a_key_goes_in_is_there_and_comes_out(self, api: SimpleNamespace) -> None:
        created = create(api, "free", "alice")
        assert (created["id"], created["type"], created["name"]) == (api.ids["alice"], "API_KEY", "Alice")
        assert created["ResponseMetadata"]["HTTPStatusCode"] == 201
        found = get(api, "free", "alice")
        assert (found["name"], found["value"]) == ("Alice", created["value"])
        delete(api, "free", "alice")
        assert refusal(lambda: get(api, "free", "alice")) == expected(rules.NOT_FOUND)

    def test_only_api_keys_are_keys(self, api: SimpleNamespace) -> None:
        assert refusal(lambda: create(api, "free", "alice", "COOKIE")) == expected(rules.BAD_TYPE)

    @pytest.mark.parametrize(("plan", "key"), [("nowhere", "alice"), ("free", "nobody")], ids=["plan", "key"])
    def test_an_unknown_plan_or_key_is_not_found(self, api: SimpleNamespace, plan: str, key: str) -> None:
        for call in (create, get, delete):
            assert refusal(lambda call=call: call(api, plan, key)) == expected(rules.NOT_FOUND)  # type: ignore[misc]

    def test_a_duplicate_is_a_conflict(self, api: SimpleNamespace) -> None:
        create(api, "free", "alice")
        assert refusal(lambda: create(api, "free", "alice")) == expected(rules.DUPLICATE)

    @pytest.mark.usefixtures("either_conflict")
    def test_a_second_plan_for_a_stage_is_refused(self, api: SimpleNamespace) -> None:
        create(api, "free", "alice")
        assert refusal(lambda: create(api, "pro", "alice")) == expected(ApiGateway.shared_stage)

    def test_plans_for_different_stages_are_none(self, api: SimpleNamespace) -> None:
        create(api, "free", "alice")
        create(api, "other", "alice")
        create(api, "pro", "bob")

    def test_the_stage_is_free_again_after_a_delete(self, api: SimpleNamespace) -> None:
        create(api, "free", "alice")
        delete(api, "free", "alice")
        create(api, "pro", "alice")

    def test_deleting_a_key_that_is_not_in_the_plan_is_not_found(self, api: SimpleNamespace) -> None:
        create(api, "free", "alice")
        assert refusal(lambda: delete(api, "free", "bob")) == expected(rules.NOT_FOUND)
        assert refusal(lambda: delete(api, "pro", "alice")) == expected(rules.NOT_FOUND)

    def test_the_plans_of_a_key_are_listed(self, api: SimpleNamespace) -> None:
        create(api, "free", "alice")
        create(api, "other", "alice")
        create(api, "pro", "bob")
        plans = api.client.get_usage_plans(keyId=api.ids["alice"], limit=500)["items"]
        assert {plan["name"] for plan in plans} == {"Free", "Other"}
        assert {"apiId": "api", "stage": "prod"}.items() <= plans[0]["apiStages"][0].items()

    def test_a_plan_is_shown(self, api: SimpleNamespace) -> None:
        assert api.client.get_usage_plan(usagePlanId=api.ids["pro"])["name"] == "Pro"
        assert refusal(lambda: api.client.get_usage_plan(usagePlanId="nowhere"))[0] == 404


class TestFake:
    """The fake's other features."""

    def test_a_call_under_way_keeps_others_out(self, fake: ApiGateway, clock: Clock) -> None:
        fake.one_at_a_time = OneAtATime(0.5, clock)
        api = SimpleNamespace(client=fake, ids={})
        create(api, "free", "alice")
        for call in (lambda: create(api, "free", "bob"), lambda: delete(api, "free", "alice")):
            assert refusal(call) == expected(rules.BUSY)
        get(api, "free", "alice")  # a get never waits
        clock.now += 0.5
        create(api, "free", "bob")

    def test_every_call_draws_from_the_bucket(self, fake: ApiGateway, clock: Clock) -> None:
        fake.bucket = Bucket(clock, burst=2)
        fake.get_usage_plans()
        create(SimpleNamespace(client=fake, ids={}), "free", "alice")
        with pytest.raises(fake.exceptions.TooManyRequestsException) as caught:
            fake.get_usage_plan_key(usagePlanId="free", keyId="alice")
        answer = caught.value.response
        assert answer["retryAfterSeconds"] == answer["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "1"

    def test_pages_through_plans(self, fake: ApiGateway) -> None:
        first = fake.get_usage_plans(limit=2)
        second = fake.get_usage_plans(limit=2, position=first["position"])
        assert [plan["id"] for plan in first["items"] + second["items"]] == ["free", "pro", "other"]
        assert "position" not in second

    def test_counts_its_calls(self, fake: ApiGateway) -> None:
        api = SimpleNamespace(client=fake, ids={})
        create(api, "free", "alice")
        refusal(lambda: create(api, "free", "alice"))
        assert fake.calls == {"CreateUsagePlanKey": 2}


class TestProxy:
    """The proxy's other features."""

    def test_one_of_many_at_a_time_is_let_in(self, proxied: SimpleNamespace) -> None:
        def attempt(pair: tuple[str, str]) -> str:
            try:
                create(proxied, *pair)
            except ClientError as error:
                return str(error.response["Error"]["Message"])
            return "created"

        proxied.proxy.one_at_a_time.seconds = 1
        with ThreadPoolExecutor(2) as pool:
            answers = sorted(pool.map(attempt, [("free", "alice"), ("pro", "bob")]))
        assert answers == [rules.BUSY.message, "created"]

    def test_keeps_a_record(self, proxied: SimpleNamespace) -> None:
        create(proxied, "free", "alice")
        refusal(lambda: create(proxied, "pro", "alice"))
        assert [(call.operation, call.status) for call in proxied.proxy.calls] == [
            ("CreateUsagePlanKey", 201),
            ("CreateUsagePlanKey", 409),
        ]
        assert proxied.proxy.calls[0].key == proxied.ids["alice"]
        assert proxied.proxy.calls[0].plan == proxied.ids["free"]

    def test_fails_when_told_to(self, proxied: SimpleNamespace) -> None:
        proxied.proxy.fail_next("CreateUsagePlanKey", rules.too_many(7))
        with pytest.raises(proxied.client.exceptions.TooManyRequestsException) as caught:
            create(proxied, "free", "alice")
        assert caught.value.response["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "7"
        create(proxied, "free", "alice")

    def test_loses_an_answer_when_told_to(self, proxied: SimpleNamespace) -> None:
        proxied.proxy.lose_next("CreateUsagePlanKey")
        with pytest.raises(ConnectionClosedError):
            create(proxied, "free", "alice")
        get(proxied, "free", "alice")

    def test_hands_everything_else_on(self, proxied: SimpleNamespace) -> None:
        made = proxied.client.create_api_key(name="Carol")
        assert proxied.client.get_api_key(apiKey=made["id"])["name"] == "Carol"

    def test_refuses_beyond_the_burst(self, proxied: SimpleNamespace) -> None:
        def burst() -> None:
            for _ in range(200):
                proxied.client.get_usage_plans()

        with pytest.raises(proxied.client.exceptions.TooManyRequestsException) as caught:
            burst()
        assert caught.value.response["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "1"
