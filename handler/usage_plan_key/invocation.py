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
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from .answer import Resource, Sender, redacted
from .api_gateway import ApiGateway
from .ledger import EventsWord, Table
from .lifecycle import FailedError
from .queue import MOST_RECEIVES, Message, Queue, messages
from .request import Create, Delete, Invalid, Request, Update, parse
from .retry import Clock, Deadline, OutOfTimeError
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
    log_stream_name: str

    def get_remaining_time_in_millis(self) -> int:
        """Tell how long the function may run yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """The function, with all that it talks to; what is None is not configured.

    Attributes:
        api: API Gateway.
        table: The ledger.
        queue: The queue.
        sender: Delivers the answers.
        url_suffix: The partition's DNS suffix: a key's value is not sent outside it.
        local: Under sam local answers are printed instead of sent.
        clock: Tells the time.
        background: Makes what delivers a batch's answers, so that this thread calls API Gateway back to back.
    """

    api: ApiGateway
    sender: Sender
    table: Table | None = None
    queue: Queue | None = None
    url_suffix: str | None = None
    local: bool = False
    clock: Clock = time
    background: Callable[[], Executor] = _threads

    def by_cloudformation(self, event: Mapping[str, Any], context: Context) -> dict[str, Any] | None:
        """Take a request, and serve it where there is no queue. Gives back the answer under sam local alone.

        Raises:
            EventError: The event lacks what an answer needs.
            UnclearError: Nobody knows whether the queue has taken it; Lambda invokes again.
            UndeliveredError: The answer could not be delivered; Lambda invokes again, and the same answer goes out.
        """
        if not self.queue and not self.local:
            self.sender.prepare()
        request = _about(event, context)
        left = context.get_remaining_time_in_millis() / 1000
        end = Deadline(left, self.clock)
        deadline = Deadline(min(left, request.service_timeout, LOCAL_TIME if self.local else left), self.clock)
        service = self._service(request, deadline)
        if self.queue:
            logger.info("Asked: %s", _shown(request))
        serve = service.serve
        try:
            self._check_host(request)
            service.arrive()
            if self.queue:
                self.queue.put(event, self.clock.time(), deadline)
                return None
        except FailedError as failed:
            serve = partial(_fail, service, str(failed))
        local: list[bytes] = []
        deliver = local.append if self.local else partial(self.sender.deliver, request, end)
        self._answer(request, event, context, serve, deliver, end)
        for answer in local:
            print(redacted(answer))  # noqa: T201  # for the person at the terminal
        return json.loads(redacted(local[0])) if local else None

    def by_queue(self, records: Sequence[Mapping[str, Any]], context: Context) -> dict[str, Any]:
        """Serve a batch, one request after the other; gives back what is to come again, as Lambda wants it.

        Not Powertools' batch processor: it knows neither deadlines nor a background, and imports all its event classes.
        """
        self.sender.prepare()
        batch = messages(records)
        ends = self.clock.time() + context.get_remaining_time_in_millis() / 1000
        # A batch dies as one, so it is one stack's; and what a function died with is served alone.
        first = max(batch, key=lambda message: message.receives)
        chosen = [first] if first.receives > 1 else [message for message in batch if message.group == first.group]
        others = [message for message in batch if message not in chosen]
        last_time = first.receives >= MOST_RECEIVES
        if not last_time:
            self._put_back(others, ends)
        answers: dict[str, list[Future[None]]] = {}
        with self.background() as background:
            for number, message in enumerate(chosen):
                sent = answers.setdefault(message.id, [])
                if not self._turn(message, ends, context, background, sent):
                    self._put_back([message], ends, begun=True)
                    self._put_back(chosen[number + 1 :], ends)
                    break
        if last_time:
            self._put_back(others, ends)
        undelivered = []
        for id_, sent in answers.items():
            for error in filter(None, (future.exception() for future in sent)):
                logger.error("Not delivered, so it comes again: %s", error)
                undelivered.append(id_)
        return {"batchItemFailures": [{"itemIdentifier": id_} for id_ in undelivered]}

    def _turn(self, message: Message, ends: float, context: Context, background: Executor, sent: list[Future[None]]) -> bool:
        """Serve a message; False when this invocation has no time left for it, but CloudFormation has."""
        request = _about(message.event, context)
        # Where a function has died, the next one's log says at what it may die.
        logger.log(logging.INFO if message.receives > 1 else logging.DEBUG, "Its turn has come: %s", _shown(request))
        here = ends - CLOSING_TIME - self.clock.time()
        there = message.arrived + request.service_timeout - self.clock.time()
        end = Deadline(ends - self.clock.time(), self.clock)
        service = self._service(request, Deadline(min(here, there), self.clock, lane=True), resumable=here < there)
        serve = service.serve
        if message.receives >= MOST_RECEIVES:
            tries = message.receives - 1
            serve = partial(
                _fail, service, f"{tries} invocations died at this request, or were throttled. See the function's log"
            )

        def deliver(body: bytes) -> None:
            deadline = Deadline(min(DELIVERY_TIME, ends - self.clock.time()), self.clock)
            sent.append(background.submit(copy_context().run, self.sender.deliver, request, deadline, body))

        try:
            self._answer(request, message.event, context, serve, deliver, end)
        except OutOfTimeError as error:
            logger.info("Back into the queue: %s", error)
            return False
        return True

    def _put_back(self, batch: Sequence[Message], ends: float, *, begun: bool = False) -> None:
        if self.queue:
            self.queue.put_back(batch, Deadline(ends - self.clock.time(), self.clock), begun=begun)

    def _service(self, request: Request, deadline: Deadline, *, resumable: bool = False) -> Service:
        ledger = self.table or EventsWord(request.holder, request.physical_id, request.id)
        return Service(request, ledger, self.api, deadline, resumable=resumable)

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
            log("%s %s", status, served.answer.outcome or served.answer.reason, extra=keys)
            return served

        def give_up() -> Served:
            # The guard has all the time that is left, and nothing of the service that hangs.
            reason = "No answer in time: a call of the function hangs. Look into its log, and deploy again"
            return _fail(self._service(request, end), reason)

        Resource(request, logged, give_up, deliver, context.log_stream_name).answer(event, context)

    def _check_host(self, request: Request) -> None:
        """A key's value goes to CloudFormation alone: whoever may invoke the function could name another host.

        Raises:
            FailedError: The value is asked for, and ResponseURL leads outside the partition's DNS suffix.
        """
        if self.url_suffix and isinstance(request, Create | Update) and request.include_value:
            host = urlsplit(request.response_url).hostname or ""
            if not host.endswith(f".{self.url_suffix}"):
                raise FailedError(
                    f"IncludeValue is true, and ResponseURL's host {host} is not under {self.url_suffix}: no value goes there"
                )


def _about(event: Mapping[str, Any], context: Context) -> Request:
    """Read a request, and have every line that is logged from now on say which it is."""
    about.set({})
    request = parse(event)
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
    return request


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
