"""What one invocation of the function does.

Invoked by CloudFormation, it fences the request and puts it into the queue; without a queue it serves the
request itself. Invoked by the queue, it serves the batch, by the same code.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol, cast

from . import metrics
from .api_gateway import ApiGateway
from .cloudformation import stack_is_gone
from .custom_resource import CustomResource
from .errors import EventError, FailedError, NotBegunError, NotSentError, TurnOverError, UnclearError
from .ledger import StatelessLedger, Table, at_once
from .model import Holder, Note, Response, Snapshot
from .queue import VISIBILITY, Message, Queue, messages
from .redaction import response_url, shown
from .request import MOST_SKEW, Create, Delete, Repair, Request, Update, parse
from .response import Sender, destination, redacted, where
from .retry import BEFORE_CALL, BEFORE_LOOK, Clock, Deadline
from .rules import abandon
from .service import IN_PLACE, Service, looked_at

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
#: Seconds for which a request that waits is hidden at most.
LOOK_EVERY: Final = 20
#: Receives of a message while others are served apart: their batch may have died at any of ten.
MOST_APART: Final = 10
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


@dataclass(slots=True, kw_only=True, eq=False)
class Turn:
    """A request on its way through one invocation.

    Attributes:
        request: The request.
        event: The event that it came in.
        context: Lambda's.
        arrived: When it arrived, in epoch seconds.
        ends: When the last delivery has to be over, in epoch seconds.
        message: The queue's message; None if CloudFormation invoked the function.
        seen: Its pages of the ledger, read with those of the whole batch.
        refusal: Why it fails, whatever the ledger says.
        sent: The deliveries of its answer.
    """

    request: Request
    event: Mapping[str, Any]
    context: Context
    arrived: float
    ends: float
    message: Message | None = None
    seen: Snapshot | None = None
    refusal: str = ""
    sent: list[Future[None]] = field(default_factory=list)

    @property
    def stack(self) -> str:
        """The stack's id."""
        return self.request.holder.stack_id

    @property
    def redelivered(self) -> bool:
        """Whether the queue has delivered it before."""
        return self.message is not None and self.message.receives > 1

    @property
    def note(self) -> Note | None:
        """What the ledger knew of it when the batch was read."""
        return self.seen.record.note(self.request.id) if self.seen else None

    def is_suspect(self, now: float) -> bool:
        """Tell whether its first batch may have died at it: nobody marks a request at its first delivery.

        What waits in the queue is received more often than what has run into its time-out.
        """
        if not self.redelivered or self.message is None or self.seen is None:
            return False
        note = self.note or Note(self.request.id)
        untouched = note.begun is None and note.answer is None and not note.refusals
        age, waits = now - self.message.first, (self.message.receives - MOST_APART) * LOOK_EVERY
        return untouched and age >= VISIBILITY and waits <= age


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
        now = self.clock.time()
        turn = self._turn(event, now, now + context.get_remaining_time_in_millis() / 1000, context)
        _tell(turn)
        service = self._service(turn, self._on_arrival(turn))
        try:
            if self._is_queued(turn, service):
                return None
        except (UnclearError, TurnOverError):
            raise
        except FailedError as failed:
            if self.queue and isinstance(failed, NotBegunError):
                raise  # Something has used up this invocation's time. The next one has its own.
            turn.refusal = str(failed)
        except Exception as error:
            logger.exception("An internal error")
            turn.refusal = f"An internal error, please report it: {type(error).__name__}: {shown(error)}"
        local: list[bytes] = []
        deliver = local.append if self.local else partial(self.sender.deliver, turn.request, self._end(turn))
        self._respond(turn, service, deliver)
        for answer in local:
            print(redacted(answer))  # noqa: T201  # for the person at the terminal
        return json.loads(redacted(local[0])) if local else None

    def _on_arrival(self, turn: Turn) -> Deadline:
        """Make an arriving request's deadline."""
        now, request = turn.arrived, turn.request
        # A sample event is as old as its file, and a person waits at the terminal.
        there = min(LOCAL_TIME, request.service_timeout) if self.local else request.ends(now) - now
        made = Deadline.by(min(turn.ends, now + there), self.clock, dies=turn.ends)
        if there > BEFORE_LOOK:
            return made
        # Nobody waits for a request whose time is over. If this invocation has too little time to look it
        # up, the next one does.
        return made.but(ends=math.inf, turn=turn.ends, is_over=True)

    def _is_queued(self, turn: Turn, service: Service) -> bool:
        """Fence a request and queue it; False if this invocation has to serve it."""
        deadline, request = service.deadline, turn.request
        if self.queue:
            logger.info("Asked: %s", _described(request))
        # A Create fences even after its time: it marks the retained associations, and its Delete may come
        # next.
        if not deadline.is_over or request.physical_id is None:
            service.fence()
        self._check(request)
        if not self.queue or deadline.is_over:
            return False
        self.queue.put(turn.event, turn.arrived, deadline)
        return True

    def on_batch(self, records: Sequence[Mapping[str, Any]], context: Context) -> dict[str, Any]:
        """Serve a batch, each stack's requests in order; return Lambda's list of messages to deliver again.

        Powertools' batch processor knows neither deadlines nor background threads, and imports all its event
        classes.
        """
        self.sender.prepare()
        about.set({})
        ends = self.clock.time() + context.get_remaining_time_in_millis() / 1000 - LAST_SECONDS
        turns, strays = self._turns(records, ends, context)
        self._look_up(turns, ends)
        now = _apart(turns, self.clock.time())
        back = [turn for turn in turns if turn not in now]
        self._give_back(back, min(ends, self.clock.time() + GIVING_TIME))
        with self.background() as background:
            unserved = self._handle_all(now, background)
            strays = [message for message in strays if not self._put_aside(message, ends)]
        undelivered = [turn for turn in now if not self._is_delivered(turn)]
        failed = [turn.message for turn in (*back, *unserved, *undelivered) if turn.message] + strays
        return {
            "batchItemFailures": [{"itemIdentifier": id_} for id_ in dict.fromkeys(one.id for one in failed)]
        }

    def _turns(
        self, records: Sequence[Mapping[str, Any]], ends: float, context: Context
    ) -> tuple[list[Turn], list[Message]]:
        """Read a batch: its requests, and messages that are none."""
        turns: list[Turn] = []
        strays: list[Message] = []
        for message in messages(records):
            try:
                turns.append(self._turn(message.event, message.arrived, ends, context, message))
            except Exception as error:  # noqa: BLE001  # the rest of the batch goes on
                logger.error("Message %s is no request: %s", message.id, shown(error))  # noqa: TRY400  # the sentence says it all
                strays.append(message)
        return turns, strays

    def _look_up(self, turns: Sequence[Turn], ends: float) -> None:
        """Read the pages of all requests at once. If that fails, each request reads its own."""
        if not self.table or not turns:
            return
        deadline = Deadline.by(ends - CLOSING_TIME, self.clock)
        try:
            pages = self.table.read(
                [(turn.request.holder, looked_at(turn.request)) for turn in turns], deadline
            )
        except Exception as error:  # noqa: BLE001  # without the ledger each turn fails, and says so
            logger.warning("Could not look up a batch's requests together: %s", shown(error))
            return
        for turn, seen in zip(turns, pages, strict=True):
            turn.seen = seen

    def _handle_all(self, turns: Sequence[Turn], background: Executor) -> list[Turn]:
        """Serve requests, each stack's in order; return those that have to come again.

        A request that has to wait goes back at once, and its stack's later ones with it.
        """
        again: list[Turn] = []
        for turn in turns:
            if turn in again:
                continue
            left = [one for one in turns[turns.index(turn) :] if one not in again]
            rest = [one for one in left if one.stack == turn.stack]
            try:
                self._handle(turn, background)
            except TurnOverError as error:
                logger.info("%s waits: %s", _described(turn.request), error)
                # If the function's time is nearly up, it is for all the others too.
                back = rest if error.until else left
                again += back
                self._give_back(back, turn.ends, error.until)
            except Exception:
                logger.exception("Not answered, so it comes again when its visibility time-out is over")
                again += rest
        return again

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
        ends = self.clock.time() + context.get_remaining_time_in_millis() / 1000
        deadline = Deadline.by(ends, self.clock)
        if not stack_is_gone(self.cloudformation(), stack_id, context.invoked_function_arn, deadline):
            raise FailedError(
                f"Stack {stack_id} is still there, so the function let go of nothing. "
                "Delete the resource from its template"
            )
        (page,) = self.table.read([(holder, [])], deadline)
        held = [*page.record.holds]
        for part in at_once(held):
            self.table.change(holder, part, partial(abandon, holder=holder), deadline)
        ids = [association.id for association in held]
        logger.warning("%s is gone: let go of %s, and detached nothing", holder, ", ".join(ids) or "nothing")
        return {"LetGo": ids}

    def _turn(
        self, event: object, arrived: float, ends: float, context: Context, message: Message | None = None
    ) -> Turn:
        """Read a request; an event that is none raises."""
        # The watch's repairs come through the queue only, and a repair needs a ledger to check it against.
        request = parse(event, repairs=message is not None and self.table is not None)
        if request.issued is not None and request.issued > arrived + MOST_SKEW:
            request.issued = None  # A time in the future would make all later requests look older.
        if not isinstance(request, Repair):
            destination(request.response_url, local=self.local)
        fields = cast("Mapping[str, Any]", event)  # `parse` has checked that it is one.
        return Turn(
            request=request, event=fields, context=context, arrived=arrived, ends=ends, message=message
        )

    def _check(self, request: Request) -> None:
        if not self.local:
            self.sender.check(request)

    def _put_aside(self, message: Message, ends: float) -> bool:
        """Send a message that is no request to the dead-letter queue; False if it stays and comes again."""
        if not self.local:
            metrics.no_request()
        deadline = Deadline.by(min(self.clock.time() + GIVING_TIME, ends), self.clock)
        try:
            return bool(self.queue and self.queue.put_aside(message, deadline))
        except Exception as error:  # noqa: BLE001  # the rest of the batch goes on
            logger.warning("Message %s stays in the queue: %s", message.id, shown(error))
            return False

    def _is_delivered(self, turn: Turn) -> bool:
        """Tell whether CloudFormation has the answer or no longer waits; else the request comes again."""
        undelivered = [error for future in turn.sent if (error := future.exception())]
        for error in undelivered:
            logger.error("Not delivered: %s", shown(error))
        if not undelivered or self.clock.time() >= turn.request.ends(turn.arrived):
            return True
        if turn.redelivered:
            self._service(turn, self._end(turn)).rest()
        return False

    def _handle(self, turn: Turn, background: Executor) -> None:
        """Serve a request.

        Raises:
            TurnOverError: It waits in the queue.
        """
        request, message = turn.request, turn.message
        _tell(turn)
        # After a death the next function's log names the request that it may die at.
        level = logging.INFO if turn.redelivered else logging.DEBUG
        logger.log(level, "Its turn has come: %s", _described(request))
        deadline = self._in_turn(turn)
        fenced = message is None or message.fenced or isinstance(request, Repair)
        service = self._service(turn, deadline, fenced=fenced)
        try:
            self._check(request)  # A message that somebody else has sent has not passed `on_event`.
        except FailedError as failed:
            turn.refusal = str(failed)
        before = self.api.calls
        try:
            if not deadline.is_over:
                # With less time than the guard's, it would strike at once and answer FAILED.
                deadline.but(ends=math.inf).allow(f"Could not serve {type(request).__name__}", BEFORE_CALL)
            if isinstance(request, Repair):  # Nobody waits for an answer.
                service.repair(request)
            else:
                self._respond(turn, service, partial(self._deliver, turn, background))
        except TurnOverError:
            if not self.local:
                metrics.gone_back(self.api.calls - before, self.clock.time() - turn.arrived)
            raise

    def _deliver(self, turn: Turn, background: Executor, body: bytes) -> None:
        """Begin to deliver an answer in the background; under sam local print it."""
        if self.local:
            print(redacted(body))  # noqa: T201  # for the person at the terminal
            return
        deadline = Deadline.by(min(self.clock.time() + DELIVERY_TIME, turn.ends), self.clock)
        turn.sent.append(
            background.submit(copy_context().run, self.sender.deliver, turn.request, deadline, body)
        )

    def _in_turn(self, turn: Turn) -> Deadline:
        """Make the deadline of a request from the queue."""
        ends, now = turn.request.ends(turn.arrived), self.clock.time()
        is_over = ends - now <= BEFORE_LOOK
        return Deadline(
            ends=math.inf if is_over else ends,
            turn=turn.ends - CLOSING_TIME,
            patience=now + IN_PLACE,
            dies=turn.ends + LAST_SECONDS,
            began=turn.arrived,
            is_over=is_over,
            clock=self.clock,
        )

    def _end(self, turn: Turn) -> Deadline:
        """The end of the invocation, for its last steps."""
        return Deadline.by(turn.ends, self.clock, dies=turn.ends, began=turn.arrived)

    def _give_back(self, turns: Sequence[Turn], ends: float, until: int = 0) -> None:
        """Give messages back in their places: the first one hidden until a time, the others visible.

        The others wait behind it: SQS delivers none of a group while one of it is hidden.
        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-visibility-timeout.html
        """
        now = self.clock.time()
        # A look every so many seconds lets a request that CloudFormation has given up make way.
        seconds = max(0, min(LOOK_EVERY, math.ceil(until - now)))
        given = [
            (turn.message, 0 if number else seconds) for number, turn in enumerate(turns) if turn.message
        ]
        try:
            if self.queue and given:
                self.queue.give_back(given, Deadline.by(ends, self.clock))
        except Exception as error:  # noqa: BLE001  # they come again later anyway
            logger.warning(
                "%d messages come again when their visibility time-out is over: %s",
                len(given),
                shown(error),
            )

    def _service(self, turn: Turn, deadline: Deadline, *, fenced: bool = True) -> Service:
        return Service(
            turn.request,
            self.table or StatelessLedger(turn.request),
            self.api,
            deadline,
            fenced=fenced,
            redelivered=turn.redelivered,
            seen=turn.seen,
        )

    def _respond(self, turn: Turn, service: Service, deliver: Callable[[bytes], None]) -> None:
        """Serve a request through crhelper, and deliver its answer."""

        def give_up() -> Response:
            # The guard has all the time left, and shares no state with the service that hangs. It strikes at
            # once if a refusal has come so late that less time than the guard's is left.
            hangs = "No answer in time: a call of the function hangs. Look into its log, and deploy again"
            return self._service(turn, self._end(turn)).fail(turn.refusal or hangs)

        def serve() -> Response:
            return _logged(turn.request, service.fail(turn.refusal) if turn.refusal else service.serve())

        before = self.api.calls

        def counted(body: bytes) -> None:
            deliver(body)
            if not self.local:
                waited = None if turn.message is None else self.clock.time() - turn.arrived
                metrics.response(body, self.api.calls - before, waited)

        resource = CustomResource(turn.request, give_up, counted, where(turn.context))
        for register in (resource.create, resource.update, resource.delete):
            register(resource.served_by(serve))
        try:
            resource.answer(turn.event, turn.context)
        except NotSentError as error:
            metrics.answer_undelivered()
            logger.error("%s: %s", _described(turn.request), error)  # noqa: TRY400  # the sentence says it all


def _logged(request: Request, response: Response) -> Response:
    status, id_ = "SUCCESS" if response.success else "FAILED", request.answer_id(success=response.success)
    keys = {
        "asked": _described(request),
        "outcome": response.outcome or status,
        "status": status,
        "AnswerId": request.shown_id if id_ == request.physical_id else id_,
    }
    log = logger.info if response.success else logger.error
    log("%s %s", status, response.outcome or response.reason, extra=keys)
    return response


def _apart(turns: list[Turn], now: float) -> list[Turn]:
    """Choose the requests to serve now: all, unless a function has died.

    A function has died at a request: serve only that one, because the next function may die at it too.
    A message comes again after its visibility time-out, and nobody has begun it since: its batch may
    have died at any of its requests. Serve it apart from other stacks' requests. Only the first message
    of a stack counts, because the others have their turn after it.
    """
    suspects: list[str] = []
    stacks: set[str] = set()
    for turn in turns:
        if turn.redelivered and turn.note and turn.note.begun:
            return [turn]
        if turn.stack not in stacks and turn.is_suspect(now):
            suspects.append(turn.stack)
        stacks.add(turn.stack)
    return [turn for turn in turns if turn.stack == suspects[0]] if suspects else turns


def _tell(turn: Turn) -> None:
    """Put the request's ids into every log line from now on."""
    request = turn.request
    response_url.set(request.response_url)
    about.set(
        {
            "StackId": request.holder.stack_id,
            "LogicalResourceId": request.holder.logical_id,
            "RequestId": request.id,
            "RequestType": turn.event["RequestType"],
            "PhysicalResourceId": request.shown_id,
            "function_request_id": turn.context.aws_request_id,
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
