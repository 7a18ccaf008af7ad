"""`retry` waits with full jitter below a growing cap, while another call can still end in time."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from tests.memory import Clock, within
from usage_plan_key.errors import NotBegunError, OutOfTimeError, TurnOverError, UnreadableError
from usage_plan_key.retry import (
    BEFORE_CALL,
    BEFORE_DELIVERY,
    BEFORE_LOOK,
    BEFORE_SHORT_CALL,
    BUSY_PAUSE,
    CAPS,
    CONNECT_TIMEOUT,
    ONE_CALL,
    READ_TIMEOUT,
    SHORT_CONNECT_TIMEOUT,
    SHORT_READ_TIMEOUT,
    Again,
    Attempts,
    Deadline,
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


def again(**verdict: Any) -> Callable[[Exception], Again]:
    return lambda _: Again(**verdict)


def failing(times: int, clock: Clock | None = None, seconds: float = 0.0) -> Callable[[], str]:
    """Make a call that fails so often, each time after so many seconds, and then succeeds."""
    refusals = iter(range(times))

    def call() -> str:
        if clock:
            clock.now += seconds
        if (number := next(refusals, None)) is not None:
            raise RefusedError(f"refusal {number + 1}.")
        return "served"

    return call


def tried(
    times: int,
    deadline: Deadline,
    judge: Callable[[Exception], Again | None] = again(),  # noqa: B008  # it keeps nothing
    attempts: Attempts | None = None,
) -> str:
    """Make a call that fails so often."""
    return retry(failing(times), "Could not do it", deadline, judge, NEEDS, attempts)


class TestBackOff:
    """`retry` chooses its pauses."""

    def test_full_jitter(self) -> None:
        """Anything from nothing up to a cap, which doubles and ends at the last one."""
        clock, dice = Sleepless(), Dice()
        tried(8, within(999, clock, dice=dice))
        caps = [0.5, 1, 2, 4, 8, 16, 20, 20]
        assert dice.rolled == [(0, cap) for cap in caps]
        assert clock.slept == caps
        assert CAPS == (0.5, 20)

    @given(times=st.integers(1, 2000), seed=st.integers())
    def test_its_bounds(self, times: int, seed: int) -> None:
        """However long it goes on."""
        clock = Sleepless()
        tried(times, within(99_999, clock, dice=Random(seed)))
        assert len(clock.slept) == times
        assert all(0 <= seconds <= CAPS[1] for seconds in clock.slept)

    def test_a_busy_api_gateway_is_waited_for_without_backing_off(self) -> None:
        """The other worker keeps it busy for a batch at most; for all else the function backs off."""
        clock, dice = Sleepless(), Dice()
        verdicts = iter([Again(busy=True), Again(busy=True), Again(after=15), Again()])
        tried(4, within(99, clock, dice=dice), lambda _: next(verdicts))
        assert dice.rolled == [BUSY_PAUSE, BUSY_PAUSE, (0, 2), (0, 4)]
        assert clock.slept == [2, 2, 15, 4]

    @pytest.mark.parametrize(("at_least", "slept"), [(0.2, 0.5), (15, 15)], ids=["less than rolled", "more"])
    def test_retry_after_is_a_minimum(self, at_least: float, slept: float) -> None:
        """It waits at least as long as the server asks, also beyond the cap."""
        clock = Sleepless()
        tried(1, within(9999, clock, dice=Dice()), again(after=at_least))
        assert clock.slept == [slept]

    def test_retry_after_beyond_the_deadline(self) -> None:
        """`retry` does not sleep in vain."""
        clock = Sleepless()
        with pytest.raises(OutOfTimeError, match="after 1 attempts in 0 s"):
            tried(1, within(60, clock), again(after=60 - NEEDS + 0.1))
        assert not clock.slept

    def test_jitter_ends_at_the_last_moment_at_which_an_attempt_can_be_made(self) -> None:
        """One more attempt follows, and no pause after it."""
        clock = Clock()
        with pytest.raises(OutOfTimeError, match="after 3 attempts in 1 s"):
            tried(9, within(NEEDS + 1, clock, dice=Dice()))

    @pytest.mark.parametrize("seed", range(12))
    def test_with_little_time_left_a_throttled_call_has_another_attempt(self, seed: int) -> None:
        """Its pause ends while the call still has time for another attempt."""
        deadline = within(NEEDS + 2.1, Clock(), dice=Random(seed))
        assert tried(1, deadline, again(after=2, busy=True)) == "served"


class TestDeadline:
    """No call begins with less time left than its own time-out and the answer's together."""

    def test_a_call_needs_its_own_time_and_the_ledgers_and_the_answers(self) -> None:
        """Its own time-outs, and the ledger's and the answer's after it; the short ones come to less."""
        assert BEFORE_CALL >= CONNECT_TIMEOUT + READ_TIMEOUT + BEFORE_SHORT_CALL
        assert BEFORE_SHORT_CALL >= SHORT_CONNECT_TIMEOUT + SHORT_READ_TIMEOUT + BEFORE_DELIVERY
        assert BEFORE_DELIVERY >= SHORT_CONNECT_TIMEOUT + SHORT_READ_TIMEOUT
        assert BEFORE_LOOK >= ONE_CALL + BEFORE_DELIVERY

    def test_to_the_second(self) -> None:
        """With just enough time a call begins, with less it does not, and the Reason names the remedy."""
        assert tried(0, within(NEEDS, Clock())) == "served"
        attempts = Attempts()
        with pytest.raises(
            NotBegunError, match=r"^Could not do it: no time was left to begin\. Raise ServiceTimeout"
        ):
            tried(0, within(NEEDS - 0.1, Clock()), attempts=attempts)
        assert attempts.count == 0

    def test_it_tells_what_is_left_and_how_long_the_work_has_taken(self) -> None:
        clock = Clock()
        deadline = within(100, clock)
        clock.now += 30
        assert (deadline.left(), clock.now - deadline.began) == (70, 30)
        assert deadline.but(ends=clock.now).left() == 0
        assert Deadline.by(0, clock, began=5).began == 5


class TestTurn:
    """If the function's time ends before CloudFormation's, a request goes back to the queue."""

    def test_no_call_begins_after_it(self) -> None:
        clock = Clock()
        assert tried(0, within(3600, clock, turn=clock.now + NEEDS)) == "served"
        with pytest.raises(
            TurnOverError, match=r"^Could not do it: the function's time is nearly up$"
        ) as raised:
            tried(0, within(3600, clock, turn=clock.now + NEEDS - 0.1))
        assert (raised.value.refused, raised.value.until) == (False, 0)

    def test_cloudformations_time_goes_first(self) -> None:
        """A wait that would outlast CloudFormation's time fails at once, instead of going back."""
        clock = Clock()
        with pytest.raises(OutOfTimeError, match="ServiceTimeout") as raised:
            tried(1, within(100, clock, turn=clock.now + 50), again(after=99))
        assert type(raised.value) is OutOfTimeError

    def test_a_wait_that_outlasts_only_the_turn_goes_back_at_once(self) -> None:
        clock = Sleepless()
        with pytest.raises(TurnOverError) as raised:
            tried(1, within(3600, clock, turn=90), again(after=90))
        assert (clock.slept, raised.value.refused) == ([], False)

    def test_a_pause_within_it_is_waited_in_full(self) -> None:
        clock = Clock(0.0)
        assert tried(1, within(3600, clock, turn=90), again(after=50)) == "served"
        assert clock.now == 50


class TestPatience:
    """A request from the queue waits for a moment in place; a longer wait is the queue's."""

    def test_a_pause_that_ends_within_it_is_waited(self) -> None:
        clock = Sleepless()
        assert tried(1, within(3600, clock, patience=4), again(after=4)) == "served"
        assert clock.slept == [4]

    @pytest.mark.parametrize("after", [0.0, 30.0])
    def test_a_longer_one_goes_back_at_once_with_what_api_gateway_has_asked(self, after: float) -> None:
        clock = Sleepless()
        with pytest.raises(TurnOverError, match=r"^Could not do it: refusal 1\.$") as raised:
            tried(99, within(3600, clock, dice=Dice(), patience=0.1), again(after=after))
        assert (clock.slept, raised.value.after) == ([], after)
        assert (raised.value.refused, raised.value.patience) == (True, math.inf)

    def test_one_that_would_outlast_cloudformations_time_goes_back_too(self) -> None:
        """The rule that knows the last try decides about it, and not the pause."""
        with pytest.raises(TurnOverError):
            tried(99, within(NEEDS, Clock(), patience=0.0))

    def test_without_any_each_refusal_sends_it_back(self) -> None:
        attempts = Attempts()
        with pytest.raises(TurnOverError):
            tried(99, within(3600, Clock(), patience=0.0), attempts=attempts)
        assert attempts.count == 1

    def test_a_quota_says_that_it_is_one(self) -> None:
        with pytest.raises(TurnOverError) as raised:
            tried(99, within(3600, Clock(), patience=0.0), again(patience=30))
        assert raised.value.patience == 30


class TestPersist:
    """`retry` calls until success, a final refusal, or the end of the time."""

    def test_until_it_is_served(self) -> None:
        """`retry` counts the attempts for its caller."""
        attempts = Attempts()
        assert tried(3, within(99, Clock()), attempts=attempts) == "served"
        assert attempts == Attempts(count=4)

    def test_refused_for_good(self) -> None:
        """A final error passes unchanged, without a pause."""
        clock = Sleepless()
        with pytest.raises(RefusedError, match="refusal 1"):
            tried(9, within(99, clock), lambda _: None)
        assert not clock.slept

    def test_until_no_time_is_left(self) -> None:
        """The Reason has the action, the number of attempts, the time, the last error and the remedy."""
        clock = Clock()
        deadline = within(100, clock, dice=Random(1))
        with pytest.raises(OutOfTimeError) as raised:
            retry(failing(999, clock, 10), "Could not do it", deadline, again(after=10), 19)
        assert str(raised.value) == (
            "Could not do it: gave up after 5 attempts in 90 s, because the time of CloudFormation"
            " (ServiceTimeout) or of the function is nearly up."
            " The last error: refusal 5. Deploy again when that is over"
        )

    def test_patience(self) -> None:
        """A limited retry makes its last attempt at its limit, and fails with its own error."""
        clock = Clock(0.0)
        with pytest.raises(RefusedError):
            tried(999, within(999, clock, dice=Dice()), again(patience=30))
        assert clock.now == 30

    def test_patience_counts_from_the_first_such_error(self) -> None:
        """Earlier waits for another error do not count."""
        clock = Clock(0.0)
        verdicts = iter([*[Again(after=20)] * 3, *[Again(patience=30)] * 999])
        with pytest.raises(RefusedError):
            tried(999, within(999, clock, dice=Dice()), lambda _: next(verdicts))
        assert clock.now == 60 + 30

    @pytest.mark.parametrize("unclear", [True, False], ids=["unclear", "clear"])
    def test_whether_one_may_have_been_served(self, unclear: bool) -> None:
        """It remembers an unclear attempt after success, a refusal, a return, and the end of the time."""
        first = iter([Again(unclear=unclear), Again()])
        attempts = Attempts()
        tried(2, within(99, Clock()), lambda _: next(first), attempts)
        assert attempts.unclear is unclear

        first, attempts = iter([Again(unclear=unclear)]), Attempts()
        with pytest.raises(RefusedError):
            tried(2, within(99, Clock()), lambda _: next(first, None), attempts)
        assert attempts.unclear is unclear

        forever = iter([Again(unclear=unclear)])
        with pytest.raises(OutOfTimeError) as raised:
            tried(999, within(99, Clock()), lambda _: next(forever, Again()))
        assert raised.value.nothing_changed is not unclear

        with pytest.raises(TurnOverError) as back:
            tried(999, within(99, Clock(), patience=0.0), again(unclear=unclear))
        assert back.value.nothing_changed is not unclear

    def test_the_last_errors_full_stop_is_not_doubled(self) -> None:
        def call() -> str:
            raise RefusedError("Try later. . X")

        with pytest.raises(
            OutOfTimeError, match=r"The last error: Try later\. \. X\. Deploy again when that is over$"
        ):
            retry(call, "x", within(NEEDS, Clock()), again(), NEEDS)


class TestReadable:
    """`readable` takes a reply only from the service that the function has asked."""

    @pytest.mark.parametrize(
        "reply",
        [
            {"a": 1},
            {"a": 1, "ResponseMetadata": {}},
            {"a": 1, "ResponseMetadata": {"HTTPHeaders": {"content-type": "application/json"}}},
        ],
    )
    def test_it_gives_a_whole_reply_back(self, reply: dict[str, Any]) -> None:
        assert readable(lambda: reply, "SQS", lambda reply: "a" in reply)() is reply

    def test_an_empty_reply_will_do_if_the_caller_reads_nothing_of_it(self) -> None:
        assert readable(dict, "SQS")() == {}

    @pytest.mark.parametrize(
        "reply", [{}, {"a": 1, "ResponseMetadata": {"HTTPHeaders": {"content-type": "text/html; charset=x"}}}]
    )
    def test_a_page_and_half_a_reply_are_none_of_the_services(self, reply: dict[str, Any]) -> None:
        with pytest.raises(UnreadableError, match=r"^the reply is none of SQS's, or is cut short$"):
            readable(lambda: reply, "SQS", lambda reply: "a" in reply)()

    @pytest.mark.parametrize("error", [AttributeError, TypeError, ValueError])
    def test_it_names_the_error_of_a_reply_that_boto3_cannot_read(self, error: type[Exception]) -> None:
        def call() -> Any:
            raise error("a value that nobody may see")

        with pytest.raises(UnreadableError, match=rf"^the reply cannot be read \({error.__name__}\)$"):
            readable(call, "SQS")()


class TestErrors:
    """AWS's errors are read also where a part of them is missing."""

    @staticmethod
    def error(response: Any) -> ClientError:
        return ClientError(response, "Call")

    def test_the_code_is_awss_or_the_class(self) -> None:
        assert code(self.error({"Error": {"Code": "X"}})) == "X"
        assert code(self.error({"Error": {}})) == code(self.error({})) == ""
        assert code(ValueError("x")) == "ValueError"

    def test_the_text_is_awss_or_its_own(self) -> None:
        assert message(self.error({"Error": {"Message": "no"}})) == "no"
        assert message(self.error({"Error": {"Message": None}})) == message(self.error({})) == ""
        assert message(ValueError("x")) == "x"

    def test_the_pause_is_the_headers_or_botocores(self) -> None:
        headers = {"HTTPHeaders": {"retry-after": "3"}}
        assert retry_after(self.error({"ResponseMetadata": headers, "retryAfterSeconds": "7"})) == 3
        assert retry_after(self.error({"retryAfterSeconds": "7"})) == 7
        assert retry_after(self.error({})) == retry_after(self.error({"retryAfterSeconds": "soon"})) == 0

    def test_throttled_api_gateway_is_busy(self) -> None:
        throttled = {
            "Error": {"Code": "TooManyRequestsException"},
            "ResponseMetadata": {"HTTPStatusCode": 429},
        }
        assert transient(self.error(throttled)) == Again(busy=True)
