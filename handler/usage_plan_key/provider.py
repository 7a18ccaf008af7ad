"""What one invocation of the function does.

Invoked by CloudFormation, it fences the request and puts it into the queue; without a queue it serves the
request itself. Invoked by the queue, it serves the batch, by the same code.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, Protocol, cast

from . import metrics
from .api_gateway import ApiGateway
from .cloudformation import stack_is_gone
from .custom_resource import CustomResource
from .errors import EventError, FailedError, NotBegunError, TurnOverError, UnclearError
from .ledger import StatelessLedger, Table, at_once
from .model import Holder, Response
from .queue import VISIBILITY, Message, Queue, messages
from .request import MOST_SKEW, Create, Delete, Repair, Request, Update, parse, parse_repair
from .response import Sender, destination, redacted, where
from .retry import BEFORE_LOOK, Clock, Deadline
from .rules import abandon
from .service import Service

logger = logging.getLogger(__name__)

#: What the log's lines say about the request under way.
about: ContextVar[Mapping[str, str | None]] = ContextVar("about")

#: Seconds for a request under sam local. Somebody waits at a terminal, and one attempt at an unreachable
#: endpoint takes seconds.
LOCAL_TIME: Final = 35.0
#: Seconds at the end of a batch's invocation to deliver the last answers and to give messages back.
CLOSING_TIME: Final = 10.0
#: Seconds at the end of the function's time in which it starts nothing: Lambda needs the batch's result.
LAST_SECONDS: Final = 2.0
#: Seconds for which a request waits for API Gateway before the other stacks' requests have had their turn.
#: PATIENCE is for one request, longer than the other worker's batch takes; FIRST_ROUND is for all of them.
PATIENCE: Final = 12.0
FIRST_ROUND: Final = 40.0
#: Seconds to give messages back or to put one aside: they cost the rest of the batch its time.
GIVING_TIME: Final = 5.0
#: Seconds to deliver an answer of a batch; without delivery its request comes again.
DELIVERY_TIME: Final = 20.0


def _threads() -> Executor:
    """Make a thread for each message of a batch, so that no answer holds up another."""
    return ThreadPoolExecutor(10)


class Context(Protocol):
    """The part of Lambda's context that the function uses."""

    aws_request_id: str
    function_name: str
    invoked_function_arn: str
    log_group_name: str
    log_stream_name: str

    def get_remaining_time_in_millis(self) -> int:
        """Tell how many milliseconds the function may still run."""


class _Turn(NamedTuple):
    """A request out of the queue, and the deliveries of its answer."""

    message: Message
    request: Request
    event: Mapping[str, Any]
    sent: list[Future[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """The function, with all that it talks to; None means not configured.

    Attributes:
        api: API Gateway.
        table: The ledger.
        queue: The queue.
        sender: Delivers the answers.
        local: Under sam local the function prints answers instead of sending them.
        cloudformation: Makes a client when an operator's event asks for one.
        clock: Tells the time.
        background: Makes threads that deliver a batch's answers, so that this one only calls API Gateway.
    """

    api: ApiGateway
    sender: Sender
    table: Table | None = None
    queue: Queue | None = None
    local: bool = False
    cloudformation: Callable[[], Any] | None = None
    clock: Clock = time
    background: Callable[[], Executor] = _threads

    def on_event(self, event: object, context: Context) -> dict[str, Any] | None:
        """Take a request, and serve it if there is no queue; give the answer back under sam local only.

        Raises:
            EventError: The event lacks what an answer needs.
            UnclearError: Nobody knows whether the queue has taken it; Lambda invokes again.
            TurnOverError: The request's time is over, and the function's too short; Lambda invokes again.
            NotBegunError: The function's time was too short to queue it; Lambda invokes again.
            UndeliveredError: The answer could not be delivered; Lambda invokes again, and the same answer
                goes out.
        """
        if not self.queue and not self.local:
            self.sender.prepare()
        about.set({})
        request, event = self._read(event, self.clock.time())
        _tell(request, event, context)
        left = context.get_remaining_time_in_millis() / 1000
        end = Deadline(left, self.clock)
        service = self._service(request, self._on_arrival(request, left))
        refusal = ""
        try:
            if self._is_queued(request, event, service):
                return None
        except (UnclearError, TurnOverError):
            raise
        except FailedError as failed:
            if self.queue and isinstance(failed, NotBegunError):
                raise  # Something has used up this invocation's time. The next one has its own.
            refusal = str(failed)
        except Exception as error:
            logger.exception("An internal error")
            refusal = f"An internal error, please report it: {type(error).__name__}: {error}"
        local: list[bytes] = []
        deliver = local.append if self.local else partial(self.sender.deliver, request, end)
        self._respond(request, event, context, service, refusal, deliver, end)
        for answer in local:
            print(redacted(answer))  # noqa: T201  # for the person at the terminal
        return json.loads(redacted(local[0])) if local else None

    def _on_arrival(self, request: Request, left: float) -> Deadline:
        """Make an arriving request's deadline; the function has `left` seconds."""
        now = self.clock.time()
        # A sample event is as old as its file, and a person waits at the terminal.
        there = min(LOCAL_TIME, request.service_timeout) if self.local else request.ends(now) - now
        if there > BEFORE_LOOK:
            return Deadline(min(left, there), self.clock, dies=left)
        # Nobody waits for a request whose time is over. If this invocation has too little time to look it
        # up, the next one does.
        return Deadline(math.inf, self.clock, turn=left, dies=left, is_over=True)

    def _is_queued(self, request: Request, event: Mapping[str, Any], service: Service) -> bool:
        """Fence a request and queue it; False if this invocation has to serve it."""
        deadline, now = service.deadline, self.clock.time()
        if self.queue:
            logger.info("Asked: %s", _described(request))
        # A Create fences even after its time: it marks the retained associations, and its Delete may come
        # next.
        if not deadline.is_over or request.physical_id is None:
            service.fence()
        self._check(request)
        if not self.queue or deadline.is_over:
            return False
        self.queue.put(event, now, deadline)
        return True

    def on_batch(self, records: Sequence[Mapping[str, Any]], context: Context) -> dict[str, Any]:
        """Serve a batch, each stack's requests in order; return Lambda's list of messages to deliver again.

        Powertools' batch processor knows neither deadlines nor background threads, and imports all its event
        classes.
        """
        self.sender.prepare()
        about.set({})
        ends = self.clock.time() + context.get_remaining_time_in_millis() / 1000 - LAST_SECONDS
        turns: list[_Turn] = []
        strays: list[Message] = []
        for message in messages(records):
            try:
                turns.append(_Turn(message, *self._read(message.event, message.arrived, queued=True), []))
            except Exception as error:  # noqa: BLE001  # the rest of the batch goes on
                logger.error("Message %s is no request: %s", message.id, error)  # noqa: TRY400  # the sentence says it all
                strays.append(message)
        now = self._apart(turns, ends)
        later = [turn.message for turn in turns if turn not in now]
        self._give_back(later, min(ends, self.clock.time() + GIVING_TIME))
        with self.background() as background:
            back, failed = self._handle_all(now, ends, context, background)
            failed += [message for message in strays if not self._put_aside(message, ends)]
        self._give_back(back, ends)
        failed += [turn.message for turn in now if not self._is_delivered(turn)]
        unserved = dict.fromkeys(message.id for message in [*later, *back, *failed])
        return {"batchItemFailures": [{"itemIdentifier": id_} for id_ in unserved]}

    def _handle_all(
        self, turns: Sequence[_Turn], ends: float, context: Context, background: Executor
    ) -> tuple[list[Message], list[Message]]:
        """Serve requests, each stack's in order; return those without time, and those that have failed.

        A request that has to wait does so in the second round, after all other stacks' requests.
        """
        broken: set[str] = set()
        failed: list[Message] = []
        opens = -math.inf  # API Gateway throttles the account, not one request.
        several = len({turn.request.holder.stack_id for turn in turns}) > 1
        first = self.clock.time() + FIRST_ROUND
        for impatient in (True, False) if several else (False,):
            blocked, waiting = set(broken), []
            for turn in turns:
                stack = turn.request.holder.stack_id
                try:
                    if stack in blocked:
                        raise TurnOverError("an earlier request of its stack has no answer yet")
                    patience = min(PATIENCE, first - self.clock.time()) if impatient else math.inf
                    self._handle(turn, ends, patience, opens, context, background)
                except TurnOverError as error:
                    opens = max(opens, error.opens)
                    logger.info("%s waits: %s", _described(turn.request), error)
                    waiting.append(turn)
                    blocked.add(stack)
                except Exception:
                    logger.exception("Not answered, so it comes again when its visibility time-out is over")
                    failed.append(turn.message)
                    broken.add(stack)
                    blocked.add(stack)
            turns = waiting
        return [turn.message for turn in turns], failed

    def let_go(self, asked: object, context: Context) -> dict[str, Any]:
        """Let go of a resource's associations if its stack is gone without a Delete; detach nothing.

        Args:
            asked: `StackId` and `LogicalResourceId`, from an operator's event.
            context: Lambda's.

        Raises:
            EventError: The event lacks one of them.
            FailedError: The stack is not gone, or nobody can tell.
        """
        about.set({})
        named = asked if isinstance(asked, Mapping) else {}
        stack_id, logical_id = named.get("StackId"), named.get("LogicalResourceId")
        if not (
            isinstance(stack_id, str) and isinstance(logical_id, str) and self.table and self.cloudformation
        ):
            raise EventError('LetGo takes {"StackId": "...", "LogicalResourceId": "..."}, and needs a ledger')
        holder = Holder(stack_id, logical_id)
        deadline = Deadline(context.get_remaining_time_in_millis() / 1000, self.clock).short()
        if not stack_is_gone(self.cloudformation(), stack_id, context.invoked_function_arn, deadline):
            raise FailedError(
                f"Stack {stack_id} is still there, so the function let go of nothing. "
                "Delete the resource from its template"
            )
        held = [*self.table.change(holder, [], lambda state: state, deadline).record.holds]
        for part in at_once(held):
            self.table.change(holder, part, partial(abandon, holder=holder), deadline)
        ids = [association.id for association in held]
        logger.warning("%s is gone: let go of %s, and detached nothing", holder, ", ".join(ids) or "nothing")
        return {"LetGo": ids}

    def _read(
        self, event: object, arrived: float, *, queued: bool = False
    ) -> tuple[Request, Mapping[str, Any]]:
        # The watch's repairs come through the queue only, and a repair needs a ledger to check it against.
        if queued and self.table and (repair := parse_repair(event)):
            return repair, cast("Mapping[str, Any]", event)
        request = parse(event)
        if request.issued is not None and request.issued > arrived + MOST_SKEW:
            request.issued = None  # A time in the future would make all later requests look older.
        destination(request.response_url, local=self.local)
        return request, cast("Mapping[str, Any]", event)  # `parse` has checked that it is one.

    def _check(self, request: Request) -> None:
        if not self.local:
            self.sender.check(request)

    def _put_aside(self, message: Message, ends: float) -> bool:
        """Send a message that is no request to the dead-letter queue; False if it stays and comes again."""
        if not self.local:
            metrics.no_request()
        deadline = Deadline(min(GIVING_TIME, ends - self.clock.time()), self.clock).last()
        try:
            return bool(self.queue and self.queue.put_aside(message, deadline))
        except Exception as error:  # noqa: BLE001  # the rest of the batch goes on
            logger.warning("Message %s stays in the queue: %s", message.id, error)
            return False

    def _is_delivered(self, turn: _Turn) -> bool:
        """Tell whether CloudFormation has the answer or no longer waits; else the request comes again."""
        undelivered = [error for future in turn.sent if (error := future.exception())]
        for error in undelivered:
            logger.error("Not delivered: %s", error)
        return not undelivered or self.clock.time() >= turn.request.ends(turn.message.arrived)

    def _apart(self, turns: list[_Turn], ends: float) -> list[_Turn]:
        """Choose the requests to serve now: all, unless a function has died.

        A function has died at a request: serve only that one, because the next function may die at it too.
        A message comes again after its visibility time-out, and nobody has begun it since: its batch may
        have died at any of its requests. Serve it apart from other stacks' requests. Only the first message
        of a stack counts, because the others have their turn after it.
        """
        now = self.clock.time()
        suspects: list[str] = []
        seen: set[str] = set()
        for turn in turns:
            stack, message = turn.request.holder.stack_id, turn.message
            died = self._has_died(turn, ends) if message.receives > 1 else False
            if died:
                return [turn]
            if died is None and stack not in seen and now >= message.first + VISIBILITY:
                suspects.append(stack)
            seen.add(stack)
        return [turn for turn in turns if turn.request.holder.stack_id == suspects[0]] if suspects else turns

    def _has_died(self, turn: _Turn, ends: float) -> bool | None:
        try:
            return self._service(
                turn.request, Deadline(ends - CLOSING_TIME - self.clock.time(), self.clock)
            ).died()
        except Exception as error:  # noqa: BLE001  # without the ledger the turn fails and says so
            logger.warning(
                "Could not see whether a function has died at %s: %s", _described(turn.request), error
            )
            return False

    def _handle(
        self, turn: _Turn, ends: float, patience: float, opens: float, context: Context, background: Executor
    ) -> None:
        """Serve a request.

        Raises:
            TurnOverError: This invocation has no time left for it, but CloudFormation has.
        """
        request, message = turn.request, turn.message
        _tell(request, turn.event, context)
        # After a death the next function's log names the request that it may die at.
        redelivered = message.receives > 1
        logger.log(
            logging.INFO if redelivered else logging.DEBUG, "Its turn has come: %s", _described(request)
        )
        deadline = self._in_turn(turn, ends, patience, opens)
        if not deadline.is_over:
            # With less time than the guard's, it would strike at once and answer FAILED.
            deadline.allow_turn(f"Could not serve {type(request).__name__}")
        if isinstance(request, Repair):  # It fences nothing, and nobody waits for an answer.
            self._service(request, deadline, redelivered=redelivered).repair(request)
            return
        service = self._service(request, deadline, fenced=message.fenced, redelivered=redelivered)
        deliver = partial(self._deliver, turn, ends, background)
        refusal = ""
        try:
            self._check(request)  # A message that somebody else has sent has not passed `on_event`.
        except FailedError as failed:
            refusal = str(failed)
        now = self.clock.time()
        end = Deadline(ends - now, self.clock)
        self._respond(request, turn.event, context, service, refusal, deliver, end, now - message.arrived)

    def _deliver(self, turn: _Turn, ends: float, background: Executor, body: bytes) -> None:
        """Begin to deliver an answer in the background; under sam local print it."""
        if self.local:
            print(redacted(body))  # noqa: T201  # for the person at the terminal
            return
        deadline = Deadline(min(DELIVERY_TIME, ends - self.clock.time()), self.clock)
        turn.sent.append(
            background.submit(copy_context().run, self.sender.deliver, turn.request, deadline, body)
        )

    def _in_turn(self, turn: _Turn, ends: float, patience: float, opens: float) -> Deadline:
        """Make the deadline of a request from the queue."""
        now = self.clock.time()
        there = turn.request.ends(turn.message.arrived) - now
        is_over = there <= BEFORE_LOOK
        return Deadline(
            math.inf if is_over else there,
            self.clock,
            turn=ends - CLOSING_TIME - now,
            patience=patience,
            opens=opens,
            dies=ends + LAST_SECONDS - now,
            is_over=is_over,
        )

    def _give_back(self, back: Sequence[Message], ends: float) -> None:
        """Make messages visible in their places, a stack's first one last.

        Once the first one is visible, SQS may deliver the others.
        """
        for message in reversed(back):
            try:
                if self.queue:
                    self.queue.give_back(message, Deadline(ends - self.clock.time(), self.clock).last())
            except Exception as error:  # noqa: BLE001  # it comes again later anyway
                logger.warning(
                    "Message %s comes again when its visibility time-out is over: %s", message.id, error
                )

    def _service(
        self, request: Request, deadline: Deadline, *, fenced: bool = True, redelivered: bool = False
    ) -> Service:
        ledger = self.table or StatelessLedger(request)
        return Service(request, ledger, self.api, deadline, fenced=fenced, redelivered=redelivered)

    def _respond(
        self,
        request: Request,
        event: Mapping[str, Any],
        context: Context,
        service: Service,
        refusal: str,
        deliver: Callable[[bytes], None],
        end: Deadline,
        waited: float | None = None,
    ) -> None:
        def give_up() -> Response:
            # The guard has all the time left, and shares no state with the service that hangs. It strikes at
            # once if a refusal has come so late that less time than the guard's is left.
            hangs = "No answer in time: a call of the function hangs. Look into its log, and deploy again"
            return self._service(request, end).fail(refusal or hangs)

        def step(serve: Callable[[], Response]) -> Callable[[Any, Any], str]:
            return resource.served_by(lambda: _logged(request, service.fail(refusal) if refusal else serve()))

        with self._counted(deliver, waited) as counted:
            resource = CustomResource(request, give_up, counted, where(context))
            resource.create(step(service.create))
            resource.update(step(service.update))
            resource.delete(step(service.delete))
            resource.answer(event, context)

    @contextmanager
    def _counted(
        self, deliver: Callable[[bytes], None], waited: float | None
    ) -> Iterator[Callable[[bytes], None]]:
        """Count each response once, the guard's too; under sam local count nothing."""
        before = self.api.calls

        def counted(body: bytes) -> None:
            deliver(body)
            if not self.local:
                metrics.response(body, self.api.calls - before, waited)

        try:
            yield counted
        except TurnOverError:
            if not self.local and self.api.calls > before:
                metrics.turn_over(self.api.calls - before)
            raise


def _logged(request: Request, response: Response) -> Response:
    status = "SUCCESS" if response.success else "FAILED"
    keys = {
        "asked": _described(request),
        "outcome": response.outcome or status,
        "status": status,
        "AnswerId": request.shown_id if response.id == request.physical_id else response.id,
    }
    log = logger.info if response.success else logger.error
    log("%s %s", status, response.outcome or response.reason, extra=keys)
    return response


def _tell(request: Request, event: Mapping[str, Any], context: Context) -> None:
    """Put the request's ids into every log line from now on."""
    about.set(
        {
            "StackId": request.holder.stack_id,
            "LogicalResourceId": request.holder.logical_id,
            "RequestId": request.id,
            "RequestType": event["RequestType"],
            "PhysicalResourceId": request.shown_id,
            "function_request_id": context.aws_request_id,
        }
    )


def _described(request: Request) -> str:
    match request:
        case Create() | Update():
            return f"{type(request).__name__} {request.wanted.id}, OnExisting {request.on_existing}"
        case Delete():
            return f"Delete {request.shown_id}"
        case _:
            return f"{'Update' if request.physical_id else 'Create'} with unusable properties"
