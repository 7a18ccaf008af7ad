"""`retry` waits with full jitter below a growing cap, while another call can still end in time."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.function import refusal
from tests.memory import Clock, within
from usage_plan_key.errors import NotBegunError, OutOfTimeError, TurnOverError, UnreadableError
from usage_plan_key.retry import (
    BEFORE_CALL,
    BEFORE_DELIVERY,
    BEFORE_LOOK,
    BEFORE_SHORT_CALL,
    BUSY_PAUSE,
    CAPS,
    ONE_CALL,
    QUOTA_PATIENCE,
    SHORT_CONNECT_TIMEOUT,
    SHORT_READ_TIMEOUT,
    Again,
    Attempts,
    code,
    message,
    readable,
    retry,
    retry_after,
    transient,
)

#: Seconds that the tests' call needs when it begins.
NEEDS = 7.0


class Dice(Random):
    """Rolls the greatest number, and remembers between which it was to choose."""

    def __init__(self) -> None:
        super().__init__()
        self.rolled: list[tuple[float, float]] = []

    def uniform(self, a: float, b: float) -> float:
        self.rolled.append((a, b))
        return b


class Sleepless(Clock):
    """The clock remembers its sleeps."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.slept: list[float] = []

    def sleep(self, seconds: float, /) -> None:
        super().sleep(seconds)
        self.slept.append(seconds)


class RefusedError(Exception):
    """The error that a call raises."""


def tried(times: int, of: Any, *verdicts: Again | None, attempts: Attempts | None = None) -> str:
    """Make a call that fails so often; the last verdict stays."""
    refusals, judged = iter(range(times)), iter(verdicts)

    def call() -> str:
        if (number := next(refusals, None)) is not None:
            raise RefusedError(f"refusal {number + 1}.")
        return "served"

    def judge(_: Exception) -> Again | None:
        return next(judged, verdicts[-1] if verdicts else Again())

    return retry(call, "Could not do it", of, judge, NEEDS, attempts)


class TestBackOff:
    """`retry` chooses its pauses, and calls until success, a final refusal, or the end of the time."""

    @pytest.mark.parametrize(
        ("verdicts", "rolled", "slept"),
        [
            (
                [Again()] * 8,
                [(0, cap) for cap in (0.5, 1, 2, 4, 8, 16, 20, 20)],
                [0.5, 1, 2, 4, 8, 16, 20, 20],
            ),
            (
                [Again(busy=True), Again(busy=True), Again(after=15), Again()],
                [BUSY_PAUSE, BUSY_PAUSE, (0, 2), (0, 4)],
                [2, 2, 15, 4],
            ),
            ([Again(after=0.2)], [(0, 0.5)], [0.5]),
        ],
        ids=["full jitter", "busy: no backing off; Retry-After is a minimum", "less than rolled"],
    )
    def test_its_pauses(
        self, verdicts: list[Again], rolled: list[tuple[float, float]], slept: list[float]
    ) -> None:
        clock, dice, attempts = Sleepless(), Dice(), Attempts()
        assert tried(len(verdicts), within(999, clock, dice=dice), *verdicts, attempts=attempts) == "served"
        assert (dice.rolled, clock.slept, attempts) == (rolled, slept, Attempts(count=len(slept) + 1))
        assert CAPS == (0.5, 20)

    def test_however_long_it_goes_on(self) -> None:
        clock = Sleepless()
        tried(2000, within(99_999, clock, dice=Random(1)))
        assert len(clock.slept) == 2000
        assert all(0 <= seconds <= CAPS[1] for seconds in clock.slept)

    def test_refused_for_good(self) -> None:
        """A final error passes unchanged, without a pause."""
        clock = Sleepless()
        with pytest.raises(RefusedError, match="refusal 1"):
            tried(9, within(99, clock), None)
        assert not clock.slept

    @pytest.mark.parametrize("earlier", [0, 3])
    def test_patience(self, earlier: int) -> None:
        """It makes its last attempt at its limit, fails with its own error, and counts no other errors."""
        clock = Clock(0.0)
        verdicts = [*[Again(after=20)] * earlier, Again(patience=30)]
        with pytest.raises(RefusedError):
            tried(999, within(999, clock, dice=Dice()), *verdicts)
        assert clock.now == 20 * earlier + 30

    @pytest.mark.parametrize("unclear", [True, False], ids=["unclear", "clear"])
    @pytest.mark.parametrize(
        ("later", "patience", "ends"),
        [
            (Again(), math.inf, ""),
            (None, math.inf, RefusedError),
            (Again(), math.inf, OutOfTimeError),
            (Again(), 0.0, TurnOverError),
        ],
        ids=["success", "a refusal", "the end of the time", "a return"],
    )
    def test_it_remembers_whether_an_attempt_may_have_been_served(
        self, unclear: bool, later: Again | None, patience: float, ends: Any
    ) -> None:
        attempts, times = Attempts(), 999 if ends in (OutOfTimeError, TurnOverError) else 2
        deadline = within(99, Clock(), patience=1_764_000_000 + patience)
        found: Any = None
        try:
            tried(times, deadline, Again(unclear=unclear), later, attempts=attempts)
        except (RefusedError, OutOfTimeError, TurnOverError) as error:
            found = error
        assert type(found) is (ends or type(None))
        assert attempts.unclear is unclear
        assert getattr(found, "nothing_changed", not unclear) is not unclear


class TestDeadline:
    """No call begins with less time left than its own time-out and the answer's together."""

    def test_a_call_needs_its_own_time_and_the_ledgers_and_the_answers(self) -> None:
        """Its own time-outs, and the ledger's and the answer's after it; the short ones come to less."""
        assert BEFORE_CALL >= ONE_CALL + BEFORE_SHORT_CALL
        assert BEFORE_SHORT_CALL >= SHORT_CONNECT_TIMEOUT + SHORT_READ_TIMEOUT + BEFORE_DELIVERY
        assert BEFORE_DELIVERY >= SHORT_CONNECT_TIMEOUT + SHORT_READ_TIMEOUT
        assert BEFORE_LOOK >= ONE_CALL + BEFORE_DELIVERY

    @pytest.mark.parametrize(
        ("ends", "turn", "error", "said"),
        [
            (NEEDS, math.inf, None, ""),
            (3600, NEEDS, None, ""),
            (NEEDS - 0.1, 0, NotBegunError, r"no time was left to begin\. Raise ServiceTimeout, or the func"),
            (3600, NEEDS - 0.1, TurnOverError, "the function's time is nearly up$"),
        ],
    )
    def test_no_call_begins_without_its_time(self, ends: float, turn: float, error: Any, said: str) -> None:
        attempts, deadline = Attempts(), within(ends, Clock(0.0), turn=turn)
        if error is None:
            assert tried(0, deadline) == "served"
            return
        with pytest.raises(error, match=f"^Could not do it: {said}") as raised:
            tried(0, deadline, attempts=attempts)
        assert (attempts.count, raised.value.nothing_changed) == (0, True)
        assert getattr(raised.value, "refused", False) is False

    @pytest.mark.parametrize(
        ("ends", "more", "verdict", "error", "slept"),
        [
            (60, {}, Again(after=60 - NEEDS + 0.1), OutOfTimeError, []),
            (NEEDS + 1, {}, Again(), OutOfTimeError, [0.5, 0.5]),
            (100, {"turn": 50.0}, Again(after=99), OutOfTimeError, []),
            (3600, {"turn": 90.0}, Again(after=90), TurnOverError, []),
            (3600, {"turn": NEEDS + 1}, Again(), TurnOverError, [0.5, 0.5]),
            (3600, {"patience": 0.1}, Again(), TurnOverError, []),
            (3600, {"patience": 0.1}, Again(after=30, patience=30), TurnOverError, []),
            (NEEDS, {"patience": -1.0}, Again(), TurnOverError, []),
        ],
        ids=[
            "Retry-After beyond the end",
            "an attempt at the last moment, and no pause after it",
            "CloudFormation's time goes before the function's",
            "beyond the function's time: back at once",
            "jitter ends at the turn's last moment",
            "beyond the patience: back at once",
            "with what API Gateway has asked",
            "the last try is not this rule's",
        ],
    )
    def test_a_pause_that_ends_too_late(
        self, ends: float, more: dict[str, float], verdict: Again, error: type[Any], slept: list[float]
    ) -> None:
        clock, attempts = Sleepless(), Attempts()
        with pytest.raises(error) as raised:
            tried(99, within(ends, clock, dice=Dice(), **more), verdict, attempts=attempts)
        assert (type(raised.value), clock.slept, attempts.count) == (error, slept, len(slept) + 1)
        if "patience" in more:
            assert (raised.value.refused, raised.value.after) == (True, verdict.after)
            assert (raised.value.patience, str(raised.value)) == (
                verdict.patience,
                "Could not do it: refusal 1.",
            )

    @pytest.mark.parametrize("more", [{}, {"turn": 90.0}, {"patience": 50.0}])
    def test_a_pause_that_ends_in_time_is_waited_in_full(self, more: dict[str, float]) -> None:
        clock = Sleepless()
        assert tried(1, within(3600, clock, **more), Again(after=50)) == "served"
        assert clock.slept == [50]

    @pytest.mark.parametrize("seed", range(4))
    def test_with_little_time_left_a_throttled_call_has_another_attempt(self, seed: int) -> None:
        """Its pause ends while the call still has time for another attempt."""
        deadline = within(NEEDS + 2.1, Clock(), dice=Random(seed))
        assert tried(1, deadline, Again(after=2, busy=True)) == "served"

    def test_the_reason_has_the_attempts_the_time_the_last_error_and_the_remedy(self) -> None:
        """An error's full stop is not doubled."""
        clock = Clock()

        def call() -> str:
            clock.now += 10
            raise RefusedError("Try later. . X.")

        with pytest.raises(OutOfTimeError) as raised:
            retry(call, "Could not do it", within(100, clock), lambda _: Again(after=10), 19)
        assert str(raised.value) == (
            "Could not do it: gave up after 5 attempts in 90 s, because the time of CloudFormation"
            " (ServiceTimeout) or of the function is nearly up."
            " The last error: Try later. . X. Deploy again when that is over"
        )


class TestReplies:
    """`readable` takes a reply only from the service that was asked; an error may lack a part."""

    @pytest.mark.parametrize(
        ("made", "said"),
        [
            (lambda: {"a": 1}, ""),
            (lambda: {"a": 1, "ResponseMetadata": {}}, ""),
            (lambda: {"a": 1, "ResponseMetadata": {"HTTPHeaders": {"content-type": "x/json"}}}, ""),
            (dict, "the reply is none of SQS's, or is cut short"),
            (
                lambda: {"a": 1, "ResponseMetadata": {"HTTPHeaders": {"content-type": "text/html; x"}}},
                "the reply is none of SQS's, or is cut short",
            ),
            (lambda: None.a, r"the reply cannot be read \(AttributeError\)"),  # type: ignore[attr-defined]
            (lambda: len(None), r"the reply cannot be read \(TypeError\)"),  # type: ignore[arg-type]
            (lambda: int("a value that nobody may see"), r"the reply cannot be read \(ValueError\)"),
        ],
    )
    def test_a_whole_reply_is_given_back(self, made: Callable[[], Any], said: str) -> None:
        call = readable(made, "SQS", lambda reply: "a" in reply)
        if said:
            with pytest.raises(UnreadableError, match=f"^{said}$"):
                call()
        else:
            assert call() == made()
        assert readable(dict, "SQS")() == {}, "if the caller reads nothing of it"

    @pytest.mark.parametrize(
        ("response", "found"),
        [
            ({"Error": {"Code": "X", "Message": "no"}}, ("X", "no", 0)),
            ({"Error": {"Message": None}, "retryAfterSeconds": "soon"}, ("", "", 0)),
            ({}, ("", "", 0)),
            (
                {"ResponseMetadata": {"HTTPHeaders": {"retry-after": "3"}}, "retryAfterSeconds": "7"},
                ("", "", 3),
            ),
            ({"retryAfterSeconds": "7"}, ("", "", 7)),
            ({"retryAfterSeconds": "-7"}, ("", "", 0)),
        ],
    )
    def test_an_error_is_read(self, response: Any, found: tuple[str, str, float]) -> None:
        error = ClientError(response, "Call")
        assert (code(error), message(error), retry_after(error)) == found
        assert (code(ValueError("x")), message(ValueError("x"))) == ("ValueError", "x")

    @pytest.mark.parametrize(
        ("status", "code", "text", "verdict"),
        [
            (429, "X", "", Again(busy=True)),
            (400, "ThrottlingException", "", Again(busy=True)),
            (409, "ConflictException", "Please Try again later.", Again(busy=True)),
            (429, "LimitExceededException", "", Again(patience=QUOTA_PATIENCE)),
            (400, "RequestTimeout", "", Again(unclear=True)),
            (503, "X", "", Again(unclear=True)),
            (400, "LimitExceededException", "", None),
            (409, "ConflictException", "", None),
        ],
    )
    def test_what_may_be_asked_again(self, status: int, code: str, text: str, verdict: Again | None) -> None:
        assert transient(refusal(status, code, text)) == verdict
