"""The API Gateway calls and what their errors mean; nothing else talks to it.

https://docs.aws.amazon.com/apigateway/latest/api/API_CreateUsagePlanKey.html and its neighbours.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from botocore.exceptions import BotoCoreError, ClientError

from .errors import FailedError, MissingError, OutOfTimeError, UnreadableError
from .model import Association, digest, well_formed
from .retry import Again, Attempts, Deadline, code, message, readable, retry, transient

if TYPE_CHECKING:
    from mypy_boto3_apigateway import APIGatewayClient

logger = logging.getLogger(__name__)
#: Attempts at a conflict that nothing explains. A passing conflict ends before the last one.
MOST_UNEXPLAINED: Final = 3
#: Seconds for which `ApiGateway` remembers a plan's stages. With them a move takes two calls instead of six.
STAGES_KNOWN_FOR: Final = 60


class Key(NamedTuple):
    """A key as a plan has it. Its value is secret, and may be absent."""

    name: str = ""
    value: str | None = None

    def __repr__(self) -> str:
        """Show no value."""
        return f"Key({self.name!r})"


class InPlan(NamedTuple):
    """The key is in the plan.

    Attributes:
        key: The key.
        by_us: This attempt put it there, or an earlier one of ours did and its reply got lost. Otherwise we
            found it there.
    """

    key: Key
    by_us: bool


class Rival(NamedTuple):
    """A plan that has the key and shares stages (`api:stage`) with the wanted plan.

    API Gateway takes a key once for each stage.
    """

    association: Association
    plan_name: str
    stages: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"usage plan {self.association.plan_id} ({self.plan_name}) "
            f"for the API stage {', '.join(self.stages)}"
        )


class ApiGateway:
    """API Gateway's usage plan keys, each call retried until its deadline.

    Every method raises OutOfTimeError when no time is left, and FailedError with the reason when API Gateway
    refuses for good.
    """

    def __init__(self, client: APIGatewayClient) -> None:
        """Take a client whose own retries are off: `retry` is the one policy."""
        self._client = client
        self._plans: dict[str, tuple[float, Any]] = {}
        self.calls = 0
        """How many calls it has made, for the metrics."""

    @property
    def _region(self) -> str:
        return self._client.meta.region_name

    def attach(self, association: Association, deadline: Deadline) -> InPlan | list[Rival]:
        """Put the key into the plan (CreateUsagePlanKey); give back the rivals if they are why it failed."""
        what = f"{association.attaching} in {self._region}"
        attempts = Attempts()
        try:
            return self._attach(what, association, deadline, attempts)
        except FailedError as failed:
            # An unclear attempt may have attached the key, whatever a later call says.
            failed.nothing_changed = not attempts.unclear
            raise

    def _attach(
        self, what: str, association: Association, deadline: Deadline, attempts: Attempts
    ) -> InPlan | list[Rival]:
        arguments = {"usagePlanId": association.plan_id, "keyId": association.key_id, "keyType": "API_KEY"}
        call = partial(self._client.create_usage_plan_key, **arguments)
        unexplained = 0
        while True:
            try:
                return InPlan(_key(self._ask(call, what, deadline, association.key_id, attempts)), by_us=True)
            except (ClientError, BotoCoreError) as error:
                refused = self._refused(what, association, error, "POST", "keys", deadline)
                if code(error) not in ("ConflictException", "BadRequestException"):
                    raise refused from error
                found = self._look_into(association, error, deadline, attempts)
                if found is not None:
                    return found
                if code(error) == "BadRequestException":
                    raise refused from error
                unexplained += 1
                if unexplained == MOST_UNEXPLAINED:
                    raise FailedError(f"{what}: {message(error)}") from error
                deadline.pause(unexplained, what, error)

    def _look_into(
        self, association: Association, error: Exception, deadline: Deadline, attempts: Attempts
    ) -> InPlan | list[Rival] | None:
        """Look why API Gateway refused: its text does not say, and no document says whether by 409 or 400."""
        try:
            if (key := self.look(association, deadline)) is not None:
                return InPlan(key, by_us=attempts.unclear)
            return self._rivals(association, deadline) or None
        except (OutOfTimeError, MissingError):
            raise
        except FailedError:
            if code(error) == "ConflictException":
                raise
            return None  # The error itself says why the request was bad.

    def known_rival(self, held: Association, wanted: Association, deadline: Deadline) -> Rival | None:
        """Give back `held` as a rival of `wanted`, without a call, if it was one in the last 60 seconds."""
        since = deadline.clock.time() - STAGES_KNOWN_FOR
        plans = [self._plans.get(plan_id, (0.0, {})) for plan_id in (held.plan_id, wanted.plan_id)]
        if held.key_id != wanted.key_id or held == wanted or any(at < since for at, _ in plans):
            return None
        return _rival(held, *(plan for _, plan in plans))

    def look(self, association: Association, deadline: Deadline) -> Key | None:
        """Look for the key in the plan (GetUsagePlanKey); None if the key or the plan is not there."""
        what = (
            f"Could not look for API key {association.key_id} "
            f"in usage plan {association.plan_id} in {self._region}"
        )
        call = partial(
            self._client.get_usage_plan_key, usagePlanId=association.plan_id, keyId=association.key_id
        )
        try:
            return _key(self._ask(call, what, deadline, association.key_id))
        except (ClientError, BotoCoreError) as error:
            if code(error) == "NotFoundException":
                return None
            raise self._refused(
                what, association, error, "GET", f"keys/{association.key_id}", deadline
            ) from error

    def keys_in(self, plan_id: str, deadline: Deadline, pace: Callable[[], None]) -> set[str]:
        """Name the keys in a plan by their ids (GetUsagePlanKeys), and drop their values at once.

        Args:
            plan_id: The plan.
            deadline: Until when.
            pace: Waits before every call.

        Raises:
            MissingError: There is no such plan.
        """
        what = f"Could not list the API keys in usage plan {plan_id} in {self._region}"
        ids: set[str] = set()
        position: dict[str, str] = {}
        while True:
            call = partial(_page_of_keys, self._client, pace, plan_id, position)
            try:
                page = self._ask(call, what, deadline)
            except (ClientError, BotoCoreError) as error:
                if code(error) == "NotFoundException":
                    raise MissingError(f"{what}: there is no such usage plan") from error
                raise self._refused(what, Association("", plan_id), error, "GET", "keys", deadline) from error
            ids |= page["ids"]
            if not page["position"]:
                return ids
            position = {"position": page["position"]}

    def detach(self, association: Association, deadline: Deadline) -> None:
        """Take the key out of the plan (DeleteUsagePlanKey); succeed if the key or the plan is not there."""
        attempts = Attempts()
        try:
            self._detach(association, deadline, attempts)
        except FailedError as failed:
            failed.nothing_changed = not attempts.unclear
            raise

    def _detach(self, association: Association, deadline: Deadline, attempts: Attempts) -> None:
        what = (
            f"Could not detach API key {association.key_id} "
            f"from usage plan {association.plan_id} in {self._region}"
        )
        call = partial(
            self._client.delete_usage_plan_key, usagePlanId=association.plan_id, keyId=association.key_id
        )
        unexplained = 0
        while True:
            try:
                self._ask(call, what, deadline, None, attempts)
            except (ClientError, BotoCoreError) as error:
                if code(error) == "NotFoundException":
                    return
                unexplained += 1
                if code(error) == "ConflictException" and unexplained < MOST_UNEXPLAINED:
                    deadline.pause(unexplained, what, error)
                    continue
                raise self._refused(
                    what, association, error, "DELETE", f"keys/{association.key_id}", deadline
                ) from error
            return

    def _rivals(self, association: Association, deadline: Deadline) -> list[Rival]:
        """Find the plans of the key that share a stage with the wanted one (GetUsagePlan, GetUsagePlans)."""
        what = (
            f"Could not find out which usage plan keeps API key {association.key_id} "
            f"from usage plan {association.plan_id} in {self._region}"
        )
        wanted = self._plan(what, association, deadline)
        rivals: list[Rival] = []
        position: dict[str, str] = {}
        while True:
            call = partial(self._client.get_usage_plans, keyId=association.key_id, limit=500, **position)
            try:
                page = self._ask(call, what, deadline)
            except (ClientError, BotoCoreError) as error:
                raise self._refused(what, association, error, "GET", None, deadline) from error
            for plan in page.get("items", []):
                self._plans[plan["id"]] = deadline.clock.time(), plan
                rival = _rival(Association(association.key_id, plan["id"]), plan, wanted)
                rivals += [rival] if rival and plan["id"] != association.plan_id else []
            # A position that comes again would have this loop call until the turn is over, without a pause.
            if page.get("position") in (None, "", *position.values()):
                return rivals
            position = {"position": page["position"]}

    def _plan(self, what: str, association: Association, deadline: Deadline) -> Any:
        call = partial(self._client.get_usage_plan, usagePlanId=association.plan_id)
        try:
            plan = self._ask(call, what, deadline, association.plan_id)
        except (ClientError, BotoCoreError) as error:
            if code(error) == "NotFoundException":
                raise MissingError(
                    self._missing(what, f"usage plan {association.plan_id}", association)
                ) from error
            raise self._refused(what, association, error, "GET", "", deadline) from error
        self._plans[association.plan_id] = deadline.clock.time(), plan
        return plan

    def _refused(
        self,
        what: str,
        association: Association,
        error: Exception,
        verb: str,
        path: str | None,
        deadline: Deadline,
    ) -> FailedError:
        """Say why API Gateway refused a call for good. `path` is below the plan; None means all plans."""
        resource = "/usageplans" + ("" if path is None else f"/{association.plan_id}/{path}".rstrip("/"))
        match code(error):
            case "NotFoundException":
                return MissingError(self._which_is_missing(what, association, deadline))
            case "BadRequestException":
                return FailedError(
                    f"{what}: API Gateway calls it a bad request: {message(error)}. "
                    "Check KeyId and UsagePlanId"
                )
            case "UnauthorizedException" | "AccessDeniedException" | "AccessDenied":
                return FailedError(
                    f"{what}: permission is missing. Allow the function's role apigateway:{verb} on "
                    # Only AWS's text names a service control policy, a boundary or an endpoint's policy.
                    f"arn:PARTITION:apigateway:{self._region}::{resource}, then deploy again. "
                    f"AWS says: {message(error)}"
                )
        return FailedError(f"{what}: {code(error)}: {message(error)}")

    def _which_is_missing(self, what: str, association: Association, deadline: Deadline) -> str:
        """Ask for the plan: the text of a 404 can be wrong, and asking for the key would show its value."""
        try:
            self._plan(what, association, deadline)
        except MissingError as missing:
            return str(missing)
        except FailedError:
            either = f"usage plan {association.plan_id} or API key {association.key_id}"
            return self._missing(what, either, association) + ". The function could not see which"
        return self._missing(what, f"API key {association.key_id}", association)

    def _missing(self, what: str, thing: str, association: Association) -> str:
        # No document says how long ids are, so their length gives a hint and never refuses one.
        lengths = len(association.key_id), len(association.plan_id)
        swapped = ". KeyId and UsagePlanId may be swapped" if lengths == (6, 10) else ""
        return (
            f"{what}: there is no {thing} in {self._region}. "
            f"Check the id (not a name or a value) and the region{swapped}"
        )

    def _ask(
        self,
        call: Callable[[], Any],
        what: str,
        deadline: Deadline,
        id_: str | None = None,
        attempts: Attempts | None = None,
    ) -> Any:
        """Call until a readable reply comes; with `id_`, one about that id."""

        def counted() -> Any:
            self.calls += 1
            return call()

        asked = readable(counted, "API Gateway", lambda reply: id_ in (None, reply.get("id")))
        return retry(asked, what, deadline, _logged(transient, what), attempts)


def _logged(judge: Callable[[Exception], Again | None], what: str) -> Callable[[Exception], Again | None]:
    """Log each error that `retry` tries again. Errors hold no secret: values come in replies only."""

    def logged(error: Exception) -> Again | None:
        verdict = judge(error)
        if verdict is not None:
            logger.info("%s: %s, trying again", what, code(error))
        return verdict

    return logged


def _page_of_keys(
    client: APIGatewayClient, pace: Callable[[], None], plan_id: str, position: dict[str, str]
) -> dict[str, Any]:
    """Call, and keep the reply out of the frames of a raised error: a reply has the keys' values."""
    pace()
    if (page := _ids_of_keys(client, plan_id, position)) is None:
        raise UnreadableError("the reply is none of API Gateway's, or is cut short")
    return page


def _ids_of_keys(client: APIGatewayClient, plan_id: str, position: dict[str, str]) -> dict[str, Any] | None:
    """Keep the ids only. A malformed one may be a value (`association`), so a digest stands for it."""
    with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
        # https://docs.aws.amazon.com/apigateway/latest/api/API_GetUsagePlanKeys.html
        reply = client.get_usage_plan_keys(usagePlanId=plan_id, limit=500, **position)
        # API Gateway may leave an empty list out: https://github.com/aws/aws-sdk-js/issues/1416
        ids = [item["id"] for item in reply.get("items", [])]
        hidden = "an id of {} characters ({})"
        return {
            "ids": {id_ if well_formed(id_) else hidden.format(len(id_), digest(id_)[:8]) for id_ in ids},
            "position": reply.get("position"),
            "ResponseMetadata": reply.get("ResponseMetadata", {}),
        }
    return None


def _key(reply: Any) -> Key:
    return Key(_text(reply.get("name")), reply.get("value"))


def _text(value: object) -> str:
    """Read a name; a lone surrogate becomes a question mark, because UTF-8 has none."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else ""


def _rival(association: Association, plan: Any, wanted: Any) -> Rival | None:
    shared = tuple(sorted(_stages(plan) & _stages(wanted)))
    return Rival(association, _text(plan.get("name")), shared) if shared else None


def _stages(plan: Any) -> set[str]:
    return {f"{stage.get('apiId')}:{stage.get('stage')}" for stage in plan.get("apiStages", [])}
