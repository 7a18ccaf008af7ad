"""What one invocation of the function does.

Invoked by CloudFormation, it fences the request and puts it into the queue; without a queue it serves the request itself. Invoked
by the queue, it serves the batch, by the same code.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, Protocol, cast

from aws_lambda_powertools.metrics import MetricUnit, single_metric

from .answer import NAMESPACE, Resource, Sender, destination, redacted, where
from .api_gateway import ApiGateway
from .association import Holder
from .cloudformation import stack_is_gone
from .ledger import EventsWord, Table
from .lifecycle import FailedError, Outcome, abandon
from .queue import VISIBILITY, Message, Queue, UnclearError, messages
from .request import Create, Delete, EventError, Invalid, Request, Update, parse
from .retry import Clock, Deadline, TurnOverError
from .service import Served, Service

logger = logging.getLogger(__name__)

#: The request that is served, for the log.
about: ContextVar[Mapping[str, str | None]] = ContextVar("about")

#: Under sam local somebody waits at a terminal, and an endpoint that cannot be reached is tried for seconds alone.
LOCAL_TIME: Final = 35.0
#: Seconds at the end of a batch's invocation for what the background has yet to deliver, and for what goes back into the queue.
CLOSING_TIME: Final = 10.0
#: Seconds for which a batch's answer is tried to be delivered; what was not comes again.
DELIVERY_TIME: Final = 20.0


def _threads() -> Executor:
    """As many as a batch has messages: one that cannot be delivered is not to hold up the others."""
    return ThreadPoolExecutor(10)


class Context(Protocol):
    """What is used of Lambda's context."""

    aws_request_id: str
    function_name: str
    invoked_function_arn: str
    log_group_name: str
    log_stream_name: str

    def get_remaining_time_in_millis(self) -> int:
        """Tell how long the function may run yet."""


class _Turn(NamedTuple):
    """A request out of the queue, and the deliveries of its answer."""

    message: Message
    request: Request
    event: Mapping[str, Any]
    sent: list[Future[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """The function, with all that it talks to; what is None is not configured.

    Attributes:
        api: API Gateway.
        table: The ledger.
        queue: The queue.
        sender: Delivers the answers.
        local: Under sam local answers are printed instead of sent.
        cloudformation: Makes a client, when an operator's event asks for it.
        clock: Tells the time.
        background: Makes what delivers a batch's answers, so that this thread calls API Gateway back to back.
    """

    api: ApiGateway
    sender: Sender
    table: Table | None = None
    queue: Queue | None = None
    local: bool = False
    cloudformation: Callable[[], Any] | None = None
    clock: Clock = time
    background: Callable[[], Executor] = _threads

    def by_cloudformation(self, event: object, context: Context) -> dict[str, Any] | None:
        """Take a request, and serve it where there is no queue. Gives back the answer under sam local alone.

        Raises:
            EventError: The event lacks what an answer needs.
            UnclearError: Nobody knows whether the queue has taken it; Lambda invokes again.
            UndeliveredError: The answer could not be delivered; Lambda invokes again, and the same answer goes out.
        """
        if not self.queue and not self.local:
            self.sender.prepare()
        about.set({})
        request, event = self._read(event)
        _tell(request, event, context)
        now, left = self.clock.time(), context.get_remaining_time_in_millis() / 1000
        end = Deadline(left, self.clock)
        # A sample event is as old as its file, and a person waits at the terminal.
        there = min(LOCAL_TIME, request.service_timeout) if self.local else request.ends(now) - now
        is_over = there <= 0
        service = self._service(request, Deadline(left if is_over else min(left, there), self.clock, is_over=is_over))
        if self.queue:
            logger.info("Asked: %s", _shown(request))
        serve = service.serve
        try:
            if not self.local:
                self.sender.check(request)
            if not is_over:
                service.arrive()
                if self.queue:
                    self.queue.put(event, now, Deadline(min(left, there), self.clock))
                    return None
        except UnclearError:
            raise
        except FailedError as failed:
            serve = partial(_fail, service, str(failed))
        except Exception as error:
            logger.exception("An internal error")
            serve = partial(_fail, service, f"An internal error, please report it: {type(error).__name__}: {error}")
        local: list[bytes] = []
        deliver = local.append if self.local else partial(self.sender.deliver, request, end)
        self._answer(request, event, context, serve, deliver, end)
        for answer in local:
            print(redacted(answer))  # noqa: T201  # for the person at the terminal
        return json.loads(redacted(local[0])) if local else None

    def by_queue(self, records: Sequence[Mapping[str, Any]], context: Context) -> dict[str, Any]:
        """Serve a batch, each stack's requests in order; gives back what is to come again, as Lambda wants it.

        Not Powertools' batch processor: it knows neither deadlines nor a background, and imports all its event classes.
        """
        self.sender.prepare()
        about.set({})
        ends = self.clock.time() + context.get_remaining_time_in_millis() / 1000
        failed: list[str] = []
        turns = [turn for message in messages(records) if (turn := self._turn(message, ends, failed))]
        kept = self._apart(turns, ends)
        rest = [turn for turn in turns if turn not in kept]
        self._give_back(rest, ends)
        failed += [turn.message.id for turn in rest]
        unserved: list[_Turn] = []
        blocked: set[str] = set()
        with self.background() as background:
            for turn in kept:
                try:
                    if turn.message.group in blocked:
                        raise TurnOverError("an earlier request of its stack is not answered yet")
                    self._serve(turn, ends, context, background)
                except TurnOverError as error:
                    logger.info("%s goes back into the queue: %s", _shown(turn.request), error)
                    unserved.append(turn)
                    blocked.add(turn.message.group)
                except Exception:
                    logger.exception("Not answered, so it comes again when its visibility time-out is over")
                    failed.append(turn.message.id)
                    blocked.add(turn.message.group)
        self._give_back(unserved, ends)
        failed += [turn.message.id for turn in unserved]
        for turn in kept:
            for undelivered in filter(None, (future.exception() for future in turn.sent)):
                logger.error("Not delivered, so it comes again: %s", undelivered)
                failed.append(turn.message.id)
        return {"batchItemFailures": [{"itemIdentifier": id_} for id_ in dict.fromkeys(failed)]}

    def let_go(self, asked: object, context: Context) -> dict[str, Any]:
        """Let go of what a resource holds whose stack is gone without a Delete for it. Nothing is detached.

        Args:
            asked: `StackId` and `LogicalResourceId`, from an event that an operator hands in.
            context: Lambda's.

        Raises:
            EventError: They are not there.
            FailedError: The stack is not gone, or nobody can tell.
        """
        about.set({})
        named = asked if isinstance(asked, Mapping) else {}
        stack_id, logical_id = named.get("StackId"), named.get("LogicalResourceId")
        if not (isinstance(stack_id, str) and isinstance(logical_id, str) and self.table and self.cloudformation):
            raise EventError('LetGo takes {"StackId": "...", "LogicalResourceId": "..."}, and needs a ledger')
        holder = Holder(stack_id, logical_id)
        deadline = Deadline(context.get_remaining_time_in_millis() / 1000, self.clock).short()
        if not stack_is_gone(self.cloudformation(), stack_id, context.invoked_function_arn, deadline):
            raise FailedError(f"Stack {stack_id} is still there, so nothing was let go of. Delete the resource from its template")
        held = [*self.table.change(holder, [], lambda state: state, deadline).record.holds]
        self.table.change(holder, held, partial(abandon, holder=holder), deadline)
        ids = [association.id for association in held]
        logger.warning("%s is gone: let go of %s, and detached nothing", holder, ", ".join(ids) or "nothing")
        return {"LetGo": ids}

    def _read(self, event: object) -> tuple[Request, Mapping[str, Any]]:
        request = parse(event)
        destination(request.response_url, local=self.local)
        return request, cast("Mapping[str, Any]", event)  # `parse` has seen that it is one.

    def _turn(self, message: Message, ends: float, failed: list[str]) -> _Turn | None:
        """Read a message; what is no request is put aside, and costs nobody else anything."""
        try:
            return _Turn(message, *self._read(message.event), [])
        except EventError as error:
            logger.error("Message %s is no request, so it goes to the dead-letter queue: %s", message.id, error)  # noqa: TRY400
            with single_metric("NoRequest", MetricUnit.Count, 1, namespace=NAMESPACE):
                pass
        try:
            if self.queue and self.queue.put_aside(message, Deadline(ends - self.clock.time(), self.clock).short()):
                return None
        except Exception as error:  # noqa: BLE001  # it costs nobody else anything
            logger.warning("Message %s stays in the queue: %s", message.id, error)
        failed.append(message.id)
        return None

    def _apart(self, turns: list[_Turn], ends: float) -> list[_Turn]:
        """Choose what is served now: all, unless a function has died.

        A request that a function died at is served alone, for the next one may die at it too. What comes again only after its
        visibility time-out was in a batch that died, at nobody knows which: it is served apart from other stacks' requests.
        """
        for turn in turns:
            if turn.message.again and self._has_died(turn, ends):
                return [turn]
        now = self.clock.time()
        groups = [turn.message.group for turn in turns if turn.message.again and now >= turn.message.first + VISIBILITY]
        return [turn for turn in turns if turn.message.group == groups[0]] if groups else turns

    def _has_died(self, turn: _Turn, ends: float) -> bool:
        try:
            return self._service(turn.request, Deadline(ends - CLOSING_TIME - self.clock.time(), self.clock)).died()
        except Exception as error:  # noqa: BLE001  # where the ledger cannot be read, it is served and says so
            logger.warning("Could not see whether a function has died at %s: %s", _shown(turn.request), error)
            return False

    def _serve(self, turn: _Turn, ends: float, context: Context, background: Executor) -> None:
        """Serve a request.

        Raises:
            TurnOverError: This invocation has no time left for it, but CloudFormation has.
        """
        request, message = turn.request, turn.message
        _tell(request, turn.event, context)
        # Where a function has died, the next one's log says at what it may die.
        logger.log(logging.INFO if message.again else logging.DEBUG, "Its turn has come: %s", _shown(request))
        now = self.clock.time()
        there, here = request.ends(message.arrived) - now, ends - CLOSING_TIME - now
        is_over = there <= 0
        deadline = Deadline(here if is_over else there, self.clock, turn=here, lane=True, is_over=is_over)
        service = self._service(request, deadline, fenced=message.fenced, again=message.again)

        def deliver(body: bytes) -> None:
            deadline = Deadline(min(DELIVERY_TIME, ends - self.clock.time()), self.clock)
            turn.sent.append(background.submit(copy_context().run, self.sender.deliver, request, deadline, body))

        self._answer(request, turn.event, context, service.serve, deliver, Deadline(ends - now, self.clock))

    def _give_back(self, turns: Sequence[_Turn], ends: float) -> None:
        """Make messages visible in their places, a stack's later ones first: its first one visible, the others could be taken."""
        for turn in reversed(turns):
            try:
                if self.queue:
                    self.queue.give_back(turn.message, Deadline(ends - self.clock.time(), self.clock).last())
            except Exception as error:  # noqa: BLE001  # it comes again all the same, later
                logger.warning("%s comes again when its visibility time-out is over: %s", _shown(turn.request), error)

    def _service(self, request: Request, deadline: Deadline, *, fenced: bool = True, again: bool = False) -> Service:
        ledger = self.table or EventsWord(request.holder, request.physical_id, request.id)
        return Service(request, ledger, self.api, deadline, fenced=fenced, again=again)

    def _answer(
        self,
        request: Request,
        event: Mapping[str, Any],
        context: Context,
        serve: Callable[[], Served],
        deliver: Callable[[bytes], None],
        end: Deadline,
    ) -> None:
        def logged() -> Served:
            served = serve()
            status = "SUCCESS" if served.answer.success else "FAILED"
            keys = {
                "asked": _shown(request),
                "outcome": served.answer.outcome or status,
                "status": status,
                "AnswerId": served.answer.id,
            }
            log = logger.info if served.answer.success else logger.error
            if served.answer.outcome == Outcome.LOST:
                with single_metric("Lost", MetricUnit.Count, 1, namespace=NAMESPACE):
                    pass
            log("%s %s", status, served.answer.outcome or served.answer.reason, extra=keys)
            return served

        def give_up() -> Served:
            # The guard has all the time that is left, and nothing of the service that hangs.
            reason = "No answer in time: a call of the function hangs. Look into its log, and deploy again"
            return _fail(self._service(request, end), reason)

        Resource(request, logged, give_up, deliver, where(context)).answer(event, context)


def _tell(request: Request, event: Mapping[str, Any], context: Context) -> None:
    """Have every line that is logged from now on say which request it is about."""
    about.set(
        {
            "StackId": request.holder.stack_id,
            "LogicalResourceId": request.holder.logical_id,
            "RequestId": request.id,
            "RequestType": event["RequestType"],
            "PhysicalResourceId": request.physical_id,
            "function_request_id": context.aws_request_id,
        }
    )


def _fail(service: Service, reason: str) -> Served:
    return Served(service.fail(reason))


def _shown(request: Request) -> str:
    match request:
        case Create() | Update():
            return f"{type(request).__name__} {request.wanted.id}, OnExisting {request.on_existing}"
        case Delete():
            return f"Delete {request.physical_id}"
        case Invalid():
            return f"{'Update' if request.physical_id else 'Create'} with unusable properties"
