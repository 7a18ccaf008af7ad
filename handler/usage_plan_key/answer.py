"""How an answer leaves: crhelper subclassed, each override beside the defect of crhelper 2.0.12 that it mends."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import urllib3
from aws_lambda_powertools.metrics import MetricUnit, single_metric
from crhelper import FAILED, SUCCESS, CfnResource

from .guard import Guard
from .lifecycle import Answer
from .request import Create, Request, Update
from .retry import SHORT_CONNECT_TIMEOUT, SHORT_READ_TIMEOUT, Again, Deadline, OutOfTimeError, persist
from .service import Served

logger = logging.getLogger(__name__)
# Defect: crhelper logs the event, the pre-signed URL and the answer at DEBUG, and errors with all that they carry.
# And urllib3 each URL that it asks.
_HUSHED: Final = ((logging.getLogger("crhelper"), logging.CRITICAL + 1), (logging.getLogger("urllib3"), logging.ERROR))

#: https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/crpg-ref-responses.html
MOST_BYTES: Final = 4096
#: Seconds before the function's end at which the guard answers for a request that hangs. Enough to write the answer down and to
#: deliver it, and less than what is left after the last call that is begun and takes all its time.
GUARD_TIME: Final = 10.0
_GUARD: Final = Guard()
_PUT_TIMEOUT: Final = urllib3.Timeout(connect=SHORT_CONNECT_TIMEOUT, read=SHORT_READ_TIMEOUT)


class UndeliveredError(Exception):
    """Raised when an answer could not be delivered: the invocation fails, so that the request is served again."""


@contextlib.contextmanager
def _as_if_local() -> Iterator[None]:
    """Make crhelper's constructor believe that it runs under sam local."""
    name = "AWS_SAM_LOCAL"
    before = os.environ.get(name)
    os.environ[name] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _fresh() -> Mapping[str, Any]:
    """Have crhelper's constructor make an instance's attributes, once: every new instance begins with these.

    Defect: it sets the levels of five loggers, which empties the caches of all of them.
    Defect: three boto3 clients are made for polling, which is not used here; AWS_SAM_LOCAL skips them.
    Defect: the root logger's level is set; handing in the one that it has keeps it.
    Defect: every Delete sleeps for two minutes.
    """
    with _as_if_local():
        level: Any = logging.getLogger().level
        return vars(CfnResource(log_level=level, boto_level="ERROR", sleep_on_delete=0))


_FRESH: Final = _fresh()


class Resource(CfnResource):
    """One request's crhelper. Each request has a new one, so no state of an earlier one can be in it."""

    _context: Any
    _timer: Any

    def __init__(
        self,
        request: Request,
        serve: Callable[[], Served],
        give_up: Callable[[], Served],
        deliver: Callable[[bytes], None],
        log_stream: str,
    ) -> None:
        """Prepare.

        Args:
            request: The request that is answered.
            serve: Serves it.
            give_up: Called in another thread when the function's time is nearly up and `serve` hangs.
            deliver: Delivers the answer's body; called once.
            log_stream: Named in every FAILED reason.
        """
        vars(self).update(_FRESH)
        for talker, level in _HUSHED:
            if talker.level != level:
                talker.setLevel(level)
        self._request = request
        self._serve = serve
        self._give_up = give_up
        self._deliver = deliver
        self._log_stream = log_stream
        self._lock = threading.Lock()
        self._body = b""
        self._handed_over = False
        self._guards_error: Exception | None = None
        self._guard_is_done = threading.Event()
        self._postponed: OutOfTimeError | None = None
        for register in (self.create, self.update, self.delete):
            register(self._serve_it)

    def answer(self, event: Mapping[str, Any], context: Any) -> None:
        """Serve the request and deliver the answer.

        Raises:
            OutOfTimeError: It has none yet: the request is to be served again.
            UndeliveredError: It could not be delivered.
        """
        self(event, context)
        if self._postponed:
            raise self._postponed
        if not self._hand_over():
            # The guard is delivering. Lambda freezes whatever still runs when this returns.
            self._guard_is_done.wait()
            if self._guards_error:
                raise self._guards_error

    def _serve_it(self, event: Mapping[str, Any], context: Any) -> str:
        try:
            return self._put_together(self._serve())
        except OutOfTimeError as error:
            self._postponed = error
            return self._request.answer_id

    def _put_together(self, served: Served) -> str:
        """Make the answer's body, unless there is one; gives back the id, as crhelper wants it."""
        with self._lock:
            if not self._body:
                self._body = body(self._request, served, self._log_stream)
        self.Status = SUCCESS if served.answer.success else FAILED
        return served.answer.id

    def _send(self, status: str | None = None, reason: str = "", send_response: object = None) -> None:
        """Defects: see below.

        Any status of the PUT is success; network errors are retried for ever, without a time-out on the socket; the answer may
        exceed 4,096 bytes; Reason keeps its last 240 characters; a TLS context is made for every answer.
        So what crhelper would send is not sent: `_put_together` has made the answer, unless something went wrong before.
        """
        if not self._body and not self._postponed:
            answer = Answer(success=False, id=self._request.answer_id, reason=f"An internal error: {reason or self.Reason}")
            self._put_together(Served(answer))

    def _hand_over(self) -> bool:
        """Deliver the answer, once; False for whoever comes second."""
        with self._lock:
            late, self._handed_over = self._handed_over, True
        if not late:
            self._deliver(self._body)
        return not late

    def generate_physical_id(self, event: Mapping[str, Any]) -> str:
        """Defect: a failed Create gets a random id, and Delete is called with it."""
        return self._request.answer_id

    def _log_setup(self, event: Mapping[str, Any], context: Any) -> None:
        """Defect: the root logger's level and its handlers' formatters are replaced at every invocation."""

    def _set_timeout(self) -> None:
        """Defect: the guard strikes half a second before the end, too late for a PUT that is tried again."""
        seconds = self._context.get_remaining_time_in_millis() / 1000 - GUARD_TIME
        self._timer = _GUARD.watch(seconds, partial(copy_context().run, self._timeout))

    def _timeout(self) -> None:
        """Defect: the guard answers with an empty id, and the call under way then answers a second time.

        Here its answer is written down like any other, and the first that was stands, in the ledger and in `_body`.
        """
        try:
            logger.error("The function's time is nearly up, and a call hangs")
            self._put_together(self._give_up())
            self._hand_over()
        except Exception as error:  # noqa: BLE001  # it goes to the thread that waits
            self._guards_error = error
        finally:
            self._guard_is_done.set()


def body(request: Request, served: Served, log_stream: str) -> bytes:
    """Put an answer together, in at most 4,096 bytes: Reason and then KeyName are cut at their ends."""
    answer = served.answer
    fields: dict[str, Any] = {
        "Status": SUCCESS if answer.success else FAILED,
        "PhysicalResourceId": answer.id,
        "StackId": request.holder.stack_id,
        "RequestId": request.id,
        "LogicalResourceId": request.holder.logical_id,
        "NoEcho": False,
    }
    if answer.success and isinstance(request, Create | Update):
        fields["Data"] = {
            "Id": request.wanted.id,
            "KeyId": request.wanted.key_id,
            "KeyType": "API_KEY",
            "UsagePlanId": request.wanted.plan_id,
            "Outcome": answer.outcome,
        }
        # Defect: NoEcho survives from one invocation into the next. Here it is part of each answer.
        fields["NoEcho"] = request.include_value
        if request.include_value and served.value is not None:
            fields["Data"]["Value"] = served.value
        fields["Data"]["KeyName"] = _cut(answer.key_name, MOST_BYTES - len(_json(fields)) - len(',"KeyName":""'))
    if not answer.success:
        where = f" (log stream: {log_stream})"
        fields["Reason"] = where
        fields["Reason"] = _cut(answer.reason, MOST_BYTES - len(_json(fields))) + where
    return _json(fields)


def redacted(body: bytes) -> str:
    """Give back an answer's body as a text that may be printed."""
    fields = json.loads(body)
    if "Value" in fields.get("Data", {}):
        fields["Data"]["Value"] = "(not shown)"
    return json.dumps(fields, ensure_ascii=False, indent=2)


class Sender:
    """Delivers answers. One TLS context and one pool serve all invocations; a context costs 40 ms of a processor."""

    def __init__(self) -> None:
        self._pool: Future[urllib3.PoolManager] | None = None

    def prepare(self) -> Future[urllib3.PoolManager]:
        """Begin to make the TLS context, in a thread, while API Gateway is waited for; who only queues has no use for it."""
        # One that could not be made is made anew, or no later request of this process would be answered.
        if self._pool is None or (self._pool.done() and self._pool.exception()):
            thread = ThreadPoolExecutor(1)
            self._pool = thread.submit(_pool)
            thread.shutdown(wait=False)
        return self._pool

    def deliver(self, request: Request, deadline: Deadline, body: bytes) -> None:
        """PUT an answer to its ResponseURL.

        The content type is empty, as CloudFormation's pre-signed URLs want it. 5xx and network errors are tried again, 4xx is
        final: the URL has expired, or somebody has answered, so nobody listens any more.

        Raises:
            UndeliveredError: It could not be delivered in time.
        """
        pool = self.prepare().result()

        def put() -> int:
            reply = pool.urlopen("PUT", request.response_url, body=body, headers={"content-type": ""}, timeout=_PUT_TIMEOUT)
            if reply.status >= 500:
                raise _BusyError(f"status {reply.status}")
            return reply.status

        what = "Could not deliver the answer"
        try:
            status = persist(put, what, deadline.last(), _try_again)
        except OutOfTimeError:
            # No cause: urllib3's errors name the URL, which is pre-signed.
            raise UndeliveredError(f"{what} to {urlsplit(request.response_url).hostname}: no time is left") from None
        if status >= 300:
            logger.error("CloudFormation refused the answer with status %d: it waits for it no longer", status)
            with single_metric("AnswerRefused", MetricUnit.Count, 1, namespace="UsagePlanKey"):
                pass
        else:
            logger.debug("CloudFormation has the answer: status %d", status)


def _pool() -> urllib3.PoolManager:
    return urllib3.PoolManager(maxsize=10, ssl_context=ssl.create_default_context(), retries=False)


class _BusyError(Exception):
    """Raised when a PUT is answered with a 5xx."""


def _try_again(error: Exception) -> Again | None:
    if isinstance(error, urllib3.exceptions.HTTPError | _BusyError):
        logger.warning("The answer's PUT failed, trying again: %s", type(error).__name__)
        return Again(unclear=True)
    return None


def _json(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def _cut(text: str, most: int) -> str:
    """Cut a text at its end, between two characters, so that its JSON takes at most so many bytes."""

    def size(text: str) -> int:
        return len(json.dumps(text, ensure_ascii=False).encode()) - 2

    if size(text) <= most:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(text[:middle] + "…") <= most else (low, middle - 1)
    return text[:low] + "…"
