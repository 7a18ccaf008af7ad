"""API Gateway in memory: has the methods of boto3's `apigateway` client, and refuses calls by rules.py."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

from botocore.errorfactory import ClientExceptionsFactory
from botocore.loaders import Loader
from botocore.model import ServiceModel

from . import rules
from .rules import Bucket, OneAtATime, Refusal


class Plan(NamedTuple):
    """A usage plan: its name, and the (API id, stage) pairs that it covers."""

    name: str
    stages: tuple[tuple[str, str], ...] = ()


class Key(NamedTuple):
    """An API key: its name and its secret value."""

    name: str
    value: str


class ApiGateway:
    """The calls about usage plan keys. Tests read and set `plans`, `keys` and `attached`.

    Without `OneAtATime` and a bucket it refuses no call as busy or throttled.
    """

    shared_stage = rules.SHARED_STAGES[0]

    def __init__(self, one_at_a_time: OneAtATime | None = None, bucket: Bucket | None = None) -> None:
        """Make an empty account."""
        self.plans: dict[str, Plan] = {}
        self.keys: dict[str, Key] = {}
        self.attached: set[tuple[str, str]] = set()
        """(key, plan) pairs."""
        self.calls: Counter[str] = Counter()
        """How often somebody called each operation, including refused calls."""
        self.one_at_a_time, self.bucket = one_at_a_time, bucket
        self.exceptions = _exceptions()
        self.meta = SimpleNamespace(region_name="eu-central-1")

    def present(self, plan: str, key: str) -> rules.Present:
        """Describe the state for the rules."""
        plans = {other: self._stages(other) for other in self.plans_of(key)} if key in self.keys else None
        return rules.Present(self._stages(plan) if plan in self.plans else None, plans)

    def plans_of(self, key: str) -> list[str]:
        """List the plans that the key is in; the oldest one comes first."""
        return [plan for plan in self.plans if (key, plan) in self.attached and key in self.keys]

    def _stages(self, plan: str) -> list[str]:
        return [f"{api}:{stage}" for api, stage in self.plans[plan].stages]

    # The methods of boto3's client.

    def create_usage_plan_key(self, *, usagePlanId: str, keyId: str, keyType: str) -> dict[str, Any]:
        """CreateUsagePlanKey."""
        with self._changing("CreateUsagePlanKey") as operation:
            present = self.present(usagePlanId, keyId)
            _raise(rules.create(present, usagePlanId, keyType, self.shared_stage), operation)
            self.attached.add((keyId, usagePlanId))
        return _answer(201, **self._usage_plan_key(keyId))

    def get_usage_plan_key(self, *, usagePlanId: str, keyId: str) -> dict[str, Any]:
        """GetUsagePlanKey."""
        operation = self._call("GetUsagePlanKey")
        _raise(rules.get(self.present(usagePlanId, keyId), usagePlanId), operation)
        return _answer(200, **self._usage_plan_key(keyId))

    def get_usage_plan_keys(
        self, *, usagePlanId: str, position: str | None = None, limit: int = 25
    ) -> dict[str, Any]:
        """GetUsagePlanKeys, page by page, in any order."""
        operation = self._call("GetUsagePlanKeys")
        if usagePlanId not in self.plans:
            _raise(rules.NOT_FOUND, operation)
        keys = sorted(key for key, plan in self.attached if plan == usagePlanId)
        return _page([self._usage_plan_key(key) for key in keys], position, limit)

    def delete_usage_plan_key(self, *, usagePlanId: str, keyId: str) -> dict[str, Any]:
        """DeleteUsagePlanKey."""
        with self._changing("DeleteUsagePlanKey") as operation:
            _raise(rules.get(self.present(usagePlanId, keyId), usagePlanId), operation)
            self.attached.remove((keyId, usagePlanId))
        return _answer(202)

    def get_usage_plan(self, *, usagePlanId: str) -> dict[str, Any]:
        """GetUsagePlan."""
        operation = self._call("GetUsagePlan")
        if usagePlanId not in self.plans:
            _raise(rules.NOT_FOUND, operation)
        return _answer(200, **self._usage_plan(usagePlanId))

    def get_usage_plans(
        self, *, keyId: str | None = None, position: str | None = None, limit: int = 25
    ) -> dict[str, Any]:
        """GetUsagePlans, page by page: all plans, or those of a key."""
        self._call("GetUsagePlans")
        plans = self.plans if keyId is None else self.plans_of(keyId)
        return _page([self._usage_plan(plan) for plan in plans], position, limit)

    def _call(self, operation: str) -> str:
        self.calls[operation] += 1
        if self.bucket:
            _raise(self.bucket.take(), operation)
        return operation

    @contextmanager
    def _changing(self, operation: str) -> Iterator[str]:
        """Create or delete: one at a time, if that is the rule."""
        self._call(operation)
        self._enter(operation)
        try:
            yield operation
        finally:
            self._leave()

    def _enter(self, operation: str) -> None:
        if self.one_at_a_time:
            _raise(self.one_at_a_time.enter(), operation)

    def _leave(self) -> None:
        if self.one_at_a_time:
            self.one_at_a_time.leave()

    def _usage_plan_key(self, key: str) -> dict[str, Any]:
        return {"id": key, "type": "API_KEY", **self.keys[key]._asdict()}

    def _usage_plan(self, plan: str) -> dict[str, Any]:
        stages = [{"apiId": api, "stage": stage} for api, stage in self.plans[plan].stages]
        return {"id": plan, "name": self.plans[plan].name, "apiStages": stages}


def _page(items: list[dict[str, Any]], position: str | None, limit: int) -> dict[str, Any]:
    """Answer with one page of a list."""
    assert 1 <= limit <= 500, "the most that a page takes"
    start = int(position or 0)
    end = start + limit
    return _answer(200, items=items[start:end], **({"position": str(end)} if end < len(items) else {}))


def _answer(status: int, **fields: Any) -> dict[str, Any]:
    return {**fields, "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": {}, "RetryAttempts": 0}}


def _raise(refusal: Refusal | None, operation: str) -> None:
    """Raise a refusal as botocore does, with the `retryAfterSeconds` that its model gives both 429s."""
    if refusal is None:
        return
    answer = _answer(refusal.status, message=refusal.message)
    answer["Error"] = {"Code": refusal.code, "Message": refusal.message}
    if refusal.retry_after is not None:
        answer["retryAfterSeconds"] = str(refusal.retry_after)
        answer["ResponseMetadata"]["HTTPHeaders"]["retry-after"] = str(refusal.retry_after)
    raise _exceptions().from_code(refusal.code)(answer, operation)


@cache
def _exceptions() -> Any:
    """Make a client's exception types from botocore's model, without a session that reads settings."""
    model = ServiceModel(Loader().load_service_model("apigateway", "service-2"), "apigateway")
    return ClientExceptionsFactory().create_client_exceptions(model)
