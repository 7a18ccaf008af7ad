"""The API Gateway calls and what their errors mean; nothing else talks to it.

https://docs.aws.amazon.com/apigateway/latest/api/API_CreateUsagePlanKey.html and its neighbours.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from botocore import xform_name
from botocore.exceptions import BotoCoreError, ClientError

from .errors import FailedError, MissingError, OutOfTimeError, TurnOverError, UnreadableError
from .model import Association, Key, Rival, digest, well_formed
from .retry import (
    BEFORE_CALL,
    BUSY_PAUSE,
    ONE_CALL,
    Again,
    Attempts,
    Deadline,
    code,
    message,
    readable,
    retry,
    transient,
)

if TYPE_CHECKING:
    from mypy_boto3_apigateway import APIGatewayClient

logger = logging.getLogger(__name__)
#: Attempts at a conflict that nothing explains. A passing conflict ends before the last one.
MOST_UNEXPLAINED: Final = 3
#: Seconds for which `ApiGateway` remembers a plan's stages. With them a move takes two calls instead of six.
STAGES_KNOWN_FOR: Final = 60
#: Seconds for which a throttled call holds other requests back, whatever its `Retry-After` says.
CLOSED_FOR: Final = 30.0
#: Seconds that the calls of a move need when they begin: they keep the time to put the key back.
BEFORE_MOVE: Final = ONE_CALL + BEFORE_CALL


class InPlan(NamedTuple):
    """The key is in the plan.

    Attributes:
        key: The key.
        by_us: This attempt put it there, or an earlier one of ours did and its reply got lost. Otherwise we
            found it there.
        is_sure: API Gateway has said so, and this does not follow from a lost reply.
    """

    key: Key
    by_us: bool
    is_sure: bool = True


class _NotFoundError(FailedError):
    """Raised when API Gateway answers 404."""


class _ConflictError(FailedError):
    """Raised when API Gateway refuses a call because of something else.

    No document says by which code: some conflicts come with 400.

    Attributes:
        is_bad: It says that the request is bad.
    """

    is_bad = False


class ApiGateway:
    """API Gateway's usage plan keys, each call retried until its deadline.

    Every method raises FailedError with the reason when API Gateway refuses for good or no time is left, and
    TurnOverError when the request has to wait in the queue.
    """

    def __init__(self, client: APIGatewayClient) -> None:
        """Take a client whose own retries are off: `retry` is the one policy."""
        self._client = client
        self._plans: dict[str, tuple[float, Any]] = {}
        self.calls = 0
        """How many calls it has made, for the metrics."""
        self.opens = 0.0
        """API Gateway is busy until then, in epoch seconds: other requests should not call it before."""

    @property
    def _region(self) -> str:
        return self._client.meta.region_name

    def attach(
        self,
        association: Association,
        deadline: Deadline,
        *,
        may_be_there: bool = False,
        needs: float = BEFORE_CALL,
    ) -> InPlan | list[Rival]:
        """Put the key into the plan (CreateUsagePlanKey); give back the rivals if they are why it failed.

        Args:
            association: The key and the plan.
            deadline: Until when.
            may_be_there: An earlier attempt may have put it there.
            needs: Seconds that an attempt needs when it begins.

        Raises:
            FailedError: `nothing_changed` is false if an attempt may have put it there.
        """
        what = f"{association.attaching} in {self._region}"
        attempts = Attempts(unclear=may_be_there)
        try:
            return self._attach(what, association, deadline, attempts, needs)
        except FailedError as failed:
            # An unclear attempt may have attached the key, whatever a later call says; but not where there
            # is no such key or plan.
            failed.nothing_changed = isinstance(failed, MissingError) or not attempts.unclear
            raise

    def _attach(
        self, what: str, association: Association, deadline: Deadline, attempts: Attempts, needs: float
    ) -> InPlan | list[Rival]:
        call = partial(
            self._ask,
            "CreateUsagePlanKey",
            what,
            deadline,
            association.key_id,
            needs=needs,
            attempts=attempts,
            usagePlanId=association.plan_id,
            keyId=association.key_id,
            keyType="API_KEY",
        )
        unexplained = 0
        while True:
            try:
                return InPlan(_key(call()), by_us=True)
            except _NotFoundError as error:
                raise MissingError(self._which_is_missing(what, association, deadline)) from error
            except _ConflictError as error:
                found = self._look_into(association, error, deadline, attempts)
                if found is not None:
                    return found
                unexplained += 1
                if error.is_bad or unexplained == MOST_UNEXPLAINED:
                    raise
                deadline.pause(unexplained, what, error, needs)

    def _look_into(
        self, association: Association, error: _ConflictError, deadline: Deadline, attempts: Attempts
    ) -> InPlan | list[Rival] | None:
        """Look why API Gateway refused: its text does not say."""
        try:
            if (key := self.look(association, deadline)) is not None:
                return InPlan(key, by_us=attempts.unclear, is_sure=False)
            return self._rivals(association, deadline) or None
        except (OutOfTimeError, TurnOverError, MissingError):
            raise
        except FailedError:
            if not error.is_bad:
                raise
            return None  # The error itself says why the request was bad.

    def known_rival(self, held: Association, wanted: Association, deadline: Deadline) -> Rival | None:
        """Give back `held` as a rival of `wanted`, without a call, if it was one in the last 60 seconds."""
        since = deadline.clock.time() - STAGES_KNOWN_FOR
        plans = [self._plans.get(plan_id, (0.0, {})) for plan_id in (held.plan_id, wanted.plan_id)]
        if held.key_id != wanted.key_id or held == wanted or any(at < since for at, _ in plans):
            return None
        return _rival(held, *(plan for _, plan in plans))

    def look(self, association: Association, deadline: Deadline, needs: float = BEFORE_CALL) -> Key | None:
        """Look for the key in the plan (GetUsagePlanKey); None if the key or the plan is not there."""
        what = (
            f"Could not look for API key {association.key_id} "
            f"in usage plan {association.plan_id} in {self._region}"
        )
        named: dict[str, Any] = {"usagePlanId": association.plan_id, "keyId": association.key_id}
        try:
            return _key(
                self._ask("GetUsagePlanKey", what, deadline, association.key_id, needs=needs, **named)
            )
        except _NotFoundError:
            return None

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
                page = self._retried(call, "GetUsagePlanKeys", what, deadline, usagePlanId=plan_id)
            except _NotFoundError as error:
                raise MissingError(f"{what}: there is no such usage plan") from error
            ids |= page["ids"]
            if not page["position"]:
                return ids
            position = {"position": page["position"]}

    def detach(self, association: Association, deadline: Deadline, needs: float = BEFORE_CALL) -> None:
        """Take the key out of the plan (DeleteUsagePlanKey); succeed if the key or the plan is not there."""
        what = (
            f"Could not detach API key {association.key_id} "
            f"from usage plan {association.plan_id} in {self._region}"
        )
        named: dict[str, Any] = {"usagePlanId": association.plan_id, "keyId": association.key_id}
        attempts = Attempts()
        for unexplained in range(1, MOST_UNEXPLAINED + 1):
            try:
                self._ask("DeleteUsagePlanKey", what, deadline, needs=needs, attempts=attempts, **named)
            except _NotFoundError:
                return
            except _ConflictError as error:
                if error.is_bad or unexplained == MOST_UNEXPLAINED:
                    raise
                deadline.pause(unexplained, what, error, needs)
            else:
                return

    def _rivals(self, association: Association, deadline: Deadline) -> list[Rival]:
        """Find the plans of the key that share a stage with the wanted one (GetUsagePlan, GetUsagePlans)."""
        what = (
            f"Could not find out which usage plan keeps API key {association.key_id} "
            f"from usage plan {association.plan_id} in {self._region}"
        )
        wanted = self._plan(what, association, deadline)
        rivals: list[Rival] = []
        for plan in self._plans_of(what, association.key_id, deadline):
            self._plans[plan["id"]] = deadline.clock.time(), plan
            rival = _rival(Association(association.key_id, plan["id"]), plan, wanted)
            rivals += [rival] if rival and plan["id"] != association.plan_id else []
        return rivals

    def _plans_of(self, what: str, key_id: str, deadline: Deadline) -> Iterator[Any]:
        position: dict[str, Any] = {}
        while True:
            page = self._ask("GetUsagePlans", what, deadline, keyId=key_id, limit=500, **position)
            yield from page.get("items", [])
            # A position that comes again would have this loop call until the turn is over, without a pause.
            if page.get("position") in (None, "", *position.values()):
                return
            position = {"position": page["position"]}

    def _plan(self, what: str, association: Association, deadline: Deadline) -> Any:
        try:
            plan = self._ask(
                "GetUsagePlan", what, deadline, association.plan_id, usagePlanId=association.plan_id
            )
        except _NotFoundError as error:
            missing = self._missing(what, f"usage plan {association.plan_id}", association)
            raise MissingError(missing) from error
        self._plans[association.plan_id] = deadline.clock.time(), plan
        return plan

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
        operation: str,
        what: str,
        deadline: Deadline,
        id_: str | None = None,
        *,
        needs: float = BEFORE_CALL,
        attempts: Attempts | None = None,
        **arguments: Any,
    ) -> Any:
        """Call until a readable reply comes; with `id_`, one about that id."""
        call = partial(getattr(self._client, xform_name(operation)), **arguments)
        return self._retried(call, operation, what, deadline, id_, needs, attempts, **arguments)

    def _retried(
        self,
        call: Callable[[], Any],
        operation: str,
        what: str,
        deadline: Deadline,
        id_: str | None = None,
        needs: float = BEFORE_CALL,
        attempts: Attempts | None = None,
        **arguments: Any,
    ) -> Any:
        """Call until a reply comes, and translate its errors: nothing else reads AWS's.

        Raises:
            _NotFoundError: 404.
            _ConflictError: 409, or 400.
            FailedError: Another refusal, or no time is left.
        """
        attempts = attempts or Attempts()

        def counted() -> Any:
            self.calls += 1
            return call()

        asked = readable(counted, "API Gateway", lambda reply: id_ in (None, reply.get("id")))
        try:
            return retry(asked, what, deadline, partial(self._judge, what, deadline), needs, attempts)
        except (ClientError, BotoCoreError) as error:
            refused = self._refused(what, operation, arguments, error)
            refused.nothing_changed = not attempts.unclear
            raise refused from error

    def _refused(self, what: str, operation: str, arguments: dict[str, Any], error: Exception) -> FailedError:
        """Translate an error that no other attempt mends."""
        named = f"{what}: {code(error)}: {message(error)}"
        match code(error):
            case "NotFoundException":
                return _NotFoundError(named)
            case "ConflictException":
                return _ConflictError(named)
            case "BadRequestException":
                bad = f"{what}: API Gateway calls it a bad request: {message(error)}. "
                conflict = _ConflictError(f"{bad}Check KeyId and UsagePlanId")
                conflict.is_bad = True
                return conflict
            case "UnauthorizedException" | "AccessDeniedException" | "AccessDenied":
                return FailedError(
                    f"{what}: permission is missing. Allow the function's role "
                    f"{_permission(operation, self._region, arguments)}, then deploy again. "
                    # Only AWS's text names a service control policy, a boundary or an endpoint's policy.
                    f"AWS says: {message(error)}"
                )
        return FailedError(named)

    def _judge(self, what: str, deadline: Deadline, error: Exception) -> Again | None:
        """Tell whether to ask again, and log it. Errors hold no secret: values come in replies only."""
        verdict = transient(error)
        if verdict is not None:
            logger.info("%s: %s, trying again", what, code(error))
            if verdict.busy:  # So it is for the account's other requests too.
                closed = min(verdict.after, CLOSED_FOR) or deadline.roll(*BUSY_PAUSE)
                self.opens = deadline.clock.time() + closed
        return verdict


def _permission(operation: str, region: str, arguments: dict[str, Any]) -> str:
    """Name the IAM action and the resource of a call.

    https://docs.aws.amazon.com/apigateway/latest/developerguide/permissions.html
    """
    import botocore.session  # noqa: PLC0415  # only a denied call needs the model again

    http = botocore.session.get_session().get_service_model("apigateway").operation_model(operation).http
    # The model writes {usageplanId}, and the argument is usagePlanId.
    ids = {name.lower(): value for name, value in arguments.items()}
    path = "/".join(ids.get(part.strip("{}").lower(), part) for part in http["requestUri"].split("/"))
    return f"apigateway:{http['method']} on arn:PARTITION:apigateway:{region}::{path}"


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
