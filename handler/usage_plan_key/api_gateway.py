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

from .errors import Again, FailedError, MissingError, OutOfTimeError, TurnOverError, UnreadableError
from .model import Association, Key, Rival, digest, well_formed
from .retry import (
    BEFORE_CALL,
    BUSY_PAUSE,
    ONE_CALL,
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


class _Step:
    """The attempts at one call, and how a Reason about them begins."""

    def __init__(
        self, what: str, deadline: Deadline, needs: float = BEFORE_CALL, *, unclear: bool = False
    ) -> None:
        """Begin; an attempt takes `needs` seconds, and an unclear one may have been made before."""
        self.what, self.deadline, self.needs = what, deadline, needs
        self.attempts, self.conflicts = Attempts(unclear=unclear), 0

    def pause(self, error: _ConflictError) -> None:
        """Sleep after a conflict that nothing explains; raise it if it is final."""
        self.conflicts += 1
        if error.is_bad or self.conflicts == MOST_UNEXPLAINED:
            raise error
        self.deadline.pause(self.conflicts, self.what, error, self.needs)


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
        what = self._what("Could not attach API key", association, "to")
        step = _Step(what, deadline, needs, unclear=may_be_there)
        try:
            return self._attach(step, association)
        except FailedError as failed:
            # An unclear attempt may have attached the key, whatever a later call says; but not where there
            # is no such key or plan.
            failed.nothing_changed = isinstance(failed, MissingError) or not step.attempts.unclear
            raise

    def _attach(self, step: _Step, association: Association) -> InPlan | list[Rival]:
        asked = {**_ids(association), "keyType": "API_KEY"}
        while True:
            try:
                return InPlan(
                    _key(self._ask(step, "CreateUsagePlanKey", association.key_id, **asked)), by_us=True
                )
            except _NotFoundError as error:
                raise MissingError(self._which_is_missing(step, association)) from error
            except _ConflictError as error:
                if (found := self._look_into(step, association, error)) is not None:
                    return found
                step.pause(error)

    def _look_into(
        self, step: _Step, association: Association, error: _ConflictError
    ) -> InPlan | list[Rival] | None:
        """Look why API Gateway refused: its text does not say."""
        try:
            if (key := self.look(association, step.deadline)) is not None:
                return InPlan(key, by_us=step.attempts.unclear, is_sure=False)
            return self._rivals(association, step.deadline) or None
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
        step = _Step(self._what("Could not look for API key", association, "in"), deadline, needs)
        try:
            return _key(self._ask(step, "GetUsagePlanKey", association.key_id, **_ids(association)))
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

        def ask(**position: str) -> Any:
            call = partial(_page_of_keys, self._client, pace, plan_id, position)
            return self._ask(_Step(what, deadline), "GetUsagePlanKeys", call=call, usagePlanId=plan_id)

        try:
            return {id_ for page in _pages(ask) for id_ in page["ids"]}
        except _NotFoundError as error:
            raise MissingError(f"{what}: there is no such usage plan") from error

    def detach(self, association: Association, deadline: Deadline, needs: float = BEFORE_CALL) -> None:
        """Take the key out of the plan (DeleteUsagePlanKey); succeed if the key or the plan is not there."""
        step = _Step(self._what("Could not detach API key", association, "from"), deadline, needs)
        while True:
            try:
                self._ask(step, "DeleteUsagePlanKey", **_ids(association))
            except _NotFoundError:
                return
            except _ConflictError as error:
                step.pause(error)
            else:
                return

    def _rivals(self, association: Association, deadline: Deadline) -> list[Rival]:
        """Find the plans of the key that share a stage with the wanted one (GetUsagePlan, GetUsagePlans)."""
        what = self._what("Could not find out which usage plan keeps API key", association, "from")
        wanted = self._plan(_Step(what, deadline), association)
        asked = partial(self._ask, operation="GetUsagePlans", keyId=association.key_id, limit=500)
        pages = _pages(lambda **position: asked(_Step(what, deadline), **position))
        rivals: list[Rival] = []
        for plan in (plan for page in pages for plan in page.get("items", [])):
            self._plans[plan["id"]] = deadline.clock.time(), plan
            rival = _rival(Association(association.key_id, plan["id"]), plan, wanted)
            rivals += [rival] if rival and plan["id"] != association.plan_id else []
        return rivals

    def _plan(self, step: _Step, association: Association) -> Any:
        plan_id = association.plan_id
        try:
            plan = self._ask(step, "GetUsagePlan", plan_id, usagePlanId=plan_id)
        except _NotFoundError as error:
            raise MissingError(self._missing(step, f"usage plan {plan_id}", association)) from error
        self._plans[plan_id] = step.deadline.clock.time(), plan
        return plan

    def _which_is_missing(self, step: _Step, association: Association) -> str:
        """Ask for the plan: the text of a 404 can be wrong, and asking for the key would show its value."""
        try:
            self._plan(_Step(step.what, step.deadline), association)
        except MissingError as missing:
            return str(missing)
        except FailedError:
            either = f"usage plan {association.plan_id} or API key {association.key_id}"
            return self._missing(step, either, association) + ". The function could not see which"
        return self._missing(step, f"API key {association.key_id}", association)

    def _what(self, begins: str, association: Association, preposition: str) -> str:
        """Say what the function was doing, as a Reason begins with it."""
        key, plan = association
        return f"{begins} {key} {preposition} usage plan {plan} in {self._region}"

    def _missing(self, step: _Step, thing: str, association: Association) -> str:
        # No document says how long ids are, so their length gives a hint and never refuses one.
        lengths = len(association.key_id), len(association.plan_id)
        swapped = ". KeyId and UsagePlanId may be swapped" if lengths == (6, 10) else ""
        return (
            f"{step.what}: there is no {thing} in {self._region}. "
            f"Check the id (not a name or a value) and the region{swapped}"
        )

    def _ask(
        self,
        step: _Step,
        operation: str,
        id_: str | None = None,
        *,
        call: Callable[[], Any] | None = None,
        **arguments: Any,
    ) -> Any:
        """Call until a readable reply comes, and translate its errors: nothing else reads AWS's.

        Args:
            step: The attempts.
            operation: Its name in API Gateway's reference.
            id_: A reply has to be about this id; None if it has none.
            call: Makes one attempt; by default the client's method with the arguments.
            **arguments: The call's own; a missing permission names its resource by them.

        Raises:
            _NotFoundError: 404.
            _ConflictError: 409, or 400.
            FailedError: Another refusal, or no time is left.
        """
        call = call or partial(getattr(self._client, xform_name(operation)), **arguments)

        def counted() -> Any:
            self.calls += 1
            return call()

        asked = readable(counted, "API Gateway", lambda reply: id_ in (None, reply.get("id")))
        judge = partial(self._judge, step)
        try:
            return retry(asked, step.what, step.deadline, judge, step.needs, step.attempts)
        except (ClientError, BotoCoreError) as error:
            refused = self._refused(step.what, operation, arguments, error)
            refused.nothing_changed = not step.attempts.unclear
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

    def _judge(self, step: _Step, error: Exception) -> Again | None:
        """Tell whether to ask again, and log it. Errors hold no secret: values come in replies only."""
        verdict = transient(error)
        if verdict is not None:
            logger.info("%s: %s, trying again", step.what, code(error))
            # So it is for the account's other requests too; what has gone back before closes it for a moment.
            is_first, pause = step.deadline.patience > 0, step.deadline.roll(*BUSY_PAUSE)
            if is_first or verdict.after:
                closed = min(verdict.after, CLOSED_FOR if is_first else pause) or pause
                self.opens = step.deadline.clock.time() + closed
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


def _ids(association: Association) -> dict[str, Any]:
    return {"usagePlanId": association.plan_id, "keyId": association.key_id}


def _pages(ask: Callable[..., Any]) -> Iterator[Any]:
    """Ask for one page after the other."""
    position: dict[str, Any] = {}
    while True:
        page = ask(**position)
        yield page
        # A position that comes again would have this loop call until the turn is over, without a pause.
        if page.get("position") in (None, "", *position.values()):
            return
        position = {"position": page["position"]}


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
