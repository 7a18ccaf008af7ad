"""crhelper, subclassed: each override names the defect of crhelper 2.0.12 that it mends."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from typing import Any, Final

from crhelper import CfnResource

from .errors import NotSentError, TurnOverError
from .model import Response
from .redaction import shown
from .request import Request
from .response import body

logger = logging.getLogger(__name__)
# Defect: crhelper logs the event, the pre-signed URL and the answer at DEBUG, and whole errors. urllib3 logs
# each URL.
_HUSHED: Final = (
    (logging.getLogger("crhelper"), logging.CRITICAL + 1),
    (logging.getLogger("urllib3"), logging.ERROR),
)
#: Seconds before the function's end at which the guard answers for a request that hangs. They are enough to
#: write the answer down and deliver it, and fewer than the slowest last call leaves.
GUARD_TIME: Final = 10.0


@contextlib.contextmanager
def _as_if_local() -> Iterator[None]:
    """Make crhelper's constructor believe that it runs under sam local."""
    before = os.environ.get("AWS_SAM_LOCAL")
    os.environ["AWS_SAM_LOCAL"] = "true"
    try:
        yield
    finally:
        del os.environ["AWS_SAM_LOCAL"]
        if before is not None:
            os.environ["AWS_SAM_LOCAL"] = before


def _fresh() -> Mapping[str, Any]:
    """Have crhelper's constructor make an instance's attributes once; every new instance copies them.

    Defect: it sets the levels of five loggers, which empties the caches of all of them.
    Defect: it makes three boto3 clients for polling, which we do not use; AWS_SAM_LOCAL skips them.
    Defect: it sets the root logger's level; passing the present level keeps it.
    Defect: every Delete sleeps for two minutes.
    """
    with _as_if_local():
        level: Any = logging.getLogger().level
        return vars(CfnResource(log_level=level, sleep_on_delete=0))


_FRESH: Final = _fresh()


class CustomResource(CfnResource):
    """One request's crhelper: `create`, `update` and `delete` register the functions that serve it.

    Each request has a new instance, so no state of an earlier request can be in it.
    """

    _context: Any
    _timer: Any

    def __init__(
        self,
        request: Request,
        give_up: Callable[[], Response],
        deliver: Callable[[bytes], None],
        where: str,
    ) -> None:
        """Prepare.

        Args:
            request: The request to answer.
            give_up: Makes the guard's answer, in another thread, when a call hangs and the function's time is
                nearly up.
            deliver: Delivers the answer's body; `answer` calls it once.
            where: Where the log is, from `where`; every FAILED Reason ends with it.
        """
        vars(self).update(_FRESH)
        for talker, level in _HUSHED:
            if talker.level != level:
                talker.setLevel(level)
        self._request = request
        self._give_up = give_up
        self._deliver = deliver
        self._where = where
        self._lock = threading.Lock()
        self._body = b""
        self._handed_over = False
        self._guard: Future[None] = Future()
        self._postponed: TurnOverError | NotSentError | None = None

    def answer(self, event: Mapping[str, Any], context: Any) -> None:
        """Serve the request and deliver the answer.

        Raises:
            TurnOverError: There is no answer yet: a later turn serves the request.
            NotSentError: Nobody sends the answer any more.
            UndeliveredError: `deliver` failed.
        """
        # Defect: crhelper takes the event's top-level `CrHelperPoll` or `CrHelperData` for its own.
        self({name: value for name, value in event.items() if not str(name).startswith("CrHelper")}, context)
        if self._postponed is not None:
            raise self._postponed
        if not self._hand_over():
            # The guard is delivering, and Lambda freezes it when this returns.
            self._guard.result()

    def served_by(self, serve: Callable[[], Response]) -> Callable[[Any, Any], str]:
        """Make the function that crhelper's `create`, `update` or `delete` registers.

        Defect: crhelper gives a failed Create a random id, and CloudFormation sends its Delete with that id.
        """

        def handle(_event: Any, _context: Any) -> str:
            try:
                self._put_together(serve)
            except (TurnOverError, NotSentError) as error:
                self._postponed = error
            return self._request.answer_id(success=False)  # crhelper's own answer is never sent

        return handle

    def _put_together(self, make: Callable[[], Response]) -> None:
        """Make the answer's body, unless there is one; an error there becomes a FAILED answer.

        Raises:
            TurnOverError: `make` has no answer yet.
            NotSentError: `make` gives none any more.
        """
        try:
            made = body(self._request, make(), self._where)
        except (TurnOverError, NotSentError):
            raise
        except Exception as error:
            logger.exception("An internal error")
            made = self._internal_error(f"{type(error).__name__}: {shown(error)}")
        with self._lock:
            self._body = self._body or made

    def _internal_error(self, reason: str) -> bytes:
        reason = f"An internal error, please report it: {reason}"
        return body(self._request, Response(success=False, reason=reason), self._where)

    def _send(self, status: str | None = None, reason: str = "", send_response: object = None) -> None:
        """Send nothing; make an answer only if crhelper failed before `_put_together` could.

        Defects: crhelper takes any status of the PUT for success. It retries network errors for ever, without
        a time-out on the socket. Its answer may exceed 4,096 bytes. It keeps Reason's last 240 characters. It
        makes a TLS context for every answer.
        """
        with self._lock:
            if not self._body and self._postponed is None:
                self._body = self._internal_error(reason)

    def _hand_over(self) -> bool:
        """Deliver the answer once; False for the second caller."""
        with self._lock:
            late, self._handed_over = self._handed_over, True
        if not late:
            self._deliver(self._body)
        return not late

    def _log_setup(self, event: Mapping[str, Any], context: Any) -> None:
        """Defect: crhelper replaces the root logger's level and its handlers' formatters at every call."""

    def _set_timeout(self) -> None:
        """Defect: the guard strikes 0.5 seconds before the end, too late for a second attempt at the PUT."""
        seconds = self._context.get_remaining_time_in_millis() / 1000 - GUARD_TIME
        self._timer = threading.Timer(seconds, partial(copy_context().run, self._timeout))
        self._timer.daemon = True
        self._timer.start()

    def _timeout(self) -> None:
        """Defect: the guard answers with an empty id, and the call under way then answers a second time.

        Here the ledger records the guard's answer like any other. The first answer stands, in the ledger and
        in `_body`.
        """
        try:
            logger.error("The function's time is nearly up, and a call hangs")
            self._put_together(self._give_up)
            self._hand_over()
            self._guard.set_result(None)
        except Exception as error:  # noqa: BLE001  # the waiting thread raises it
            self._guard.set_exception(error)
