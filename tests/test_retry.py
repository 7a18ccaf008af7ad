"""`retry` waits with full jitter below a growing cap, while another call can still end in time."""

import math
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from tests.memory import Clock
from usage_plan_key.errors import FailedError, OutOfTimeError, SupersededError, TurnOverError, UnreadableError
from usage_plan_key.retry import (
    BEFORE_CALL,
    BEFORE_DELIVERY,
    BEFORE_SHORT_CALL,
    BUSY_PAUSE,
    CAPS,
    CONNECT_TIMEOUT,
    READ_TIMEOUT,
    SHORT_CONNECT_TIMEOUT,
    SHORT_READ_TIMEOUT,
    SLICE,
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


class TestBackOff:
    """`retry` chooses its pauses."""

    def test_full_jitter(self) -> None:
        """Anything from nothing up to a cap, which doubles and ends at the last one."""
        clock, dice = Sleepless(), Dice()
        retry(failing(8), "x", Deadline(999, clock, dice), again())
        caps = [0.5, 1, 2, 4, 8, 16, 20, 20]
        assert dice.rolled == [(0, cap) for cap in caps]
        assert clock.slept == caps
        assert CAPS == (0.5, 20)

    @given(times=st.integers(1, 2000), seed=st.integers())
    def test_its_bounds(self, times: int, seed: int) -> None:
        """However long it goes on."""
        clock = Sleepless()
        retry(failing(times), "x", Deadline(99_999, clock, Random(seed)), again())
        assert len(clock.slept) == times
        assert all(0 <= seconds <= CAPS[1] for seconds in clock.slept)

    @pytest.mark.parametrize(("at_least", "slept"), [(0.2, 0.5), (15, 15)], ids=["less than rolled", "more"])
    def test_retry_after_is_a_minimum(self, at_least: float, slept: float) -> None:
        """It waits at least as long as the server asks, also beyond the cap."""
        clock = Sleepless()
        retry(failing(1), "x", Deadline(9999, clock, Dice()), again(after=at_least))
        assert clock.slept == [slept]

    def test_a_busy_api_gateway_is_waited_for_without_backing_off(self) -> None:
        """The other worker keeps it busy for a batch at most; for all else the function backs off."""
        clock, dice = Sleepless(), Dice()
        verdicts = iter([Again(busy=True), Again(busy=True), Again(after=15), Again()])
        retry(failing(4), "x", Deadline(99, clock, dice), lambda _: next(verdicts))
        assert dice.rolled == [BUSY_PAUSE, BUSY_PAUSE, (0, 2), (0, 4)]
        assert clock.slept == [2, 2, 15, 4]

    def test_retry_after_beyond_the_deadline(self) -> None:
        """`retry` does not sleep in vain."""
        clock = Sleepless()
        with pytest.raises(OutOfTimeError, match="after 1 attempts in 0 s"):
            retry(failing(1), "x", Deadline(60, clock), again(after=60 - BEFORE_CALL + 0.1))
        assert not clock.slept


class TestDeadline:
    """No call begins with less time left than its own time-out and the answer's together."""

    def test_a_call_needs_its_own_time_and_the_ledgers_and_the_answers(self) -> None:
        """Its own time-outs, and the ledger's and the answer's after it; the short ones come to less."""
        assert BEFORE_CALL >= CONNECT_TIMEOUT + READ_TIMEOUT + BEFORE_SHORT_CALL
        assert BEFORE_SHORT_CALL >= SHORT_CONNECT_TIMEOUT + SHORT_READ_TIMEOUT + BEFORE_DELIVERY
        assert BEFORE_DELIVERY >= SHORT_CONNECT_TIMEOUT + SHORT_READ_TIMEOUT

    @pytest.mark.parametrize(
        ("kind", "needed"),
        [
            (Deadline.watched, BEFORE_CALL),
            (Deadline.short, BEFORE_SHORT_CALL),
            (Deadline.last, BEFORE_DELIVERY),
        ],
        ids=["API Gateway", "the ledger", "the delivery"],
    )
    def test_to_the_second(self, kind: Callable[..., Deadline], needed: float) -> None:
        """With just enough time a call begins, with less it does not, and the Reason names the remedy."""
        nobody = () if kind is not Deadline.watched else (lambda: None,)
        enough, less = (kind(Deadline(left, Clock(0.0)), *nobody) for left in (needed, needed - 0.1))
        assert retry(failing(0), "x", enough, again()) == "served"
        attempts = Attempts()
        with pytest.raises(
            OutOfTimeError, match=r"^Could not do it: no time was left to begin\. Raise ServiceTimeout"
        ):
            retry(failing(0), "Could not do it", less, again(), attempts)
        assert attempts.count == 0

    def test_jitter_ends_at_the_last_moment_at_which_an_attempt_can_be_made(self) -> None:
        """One more attempt follows, and no pause after it."""
        clock = Clock(0.0)
        with pytest.raises(OutOfTimeError, match="after 3 attempts in 1 s"):
            retry(failing(9), "x", Deadline(BEFORE_CALL + 1, clock, Dice()), again())
        assert clock.now == 1

    @pytest.mark.parametrize("seed", range(12))
    def test_with_25_seconds_left_a_throttled_call_has_another_attempt(self, seed: int) -> None:
        """Its pause ends while the call still has time for another attempt."""
        deadline = Deadline(25, Clock(0.0), Random(seed))
        assert retry(failing(1), "x", deadline, again(after=2, busy=True)) == "served"

    @pytest.mark.parametrize("opens", [-1.0, 0.0, 0.5, 20.0])
    def test_a_call_begins_when_api_gateway_has_asked_for_it(self, opens: float) -> None:
        clock = Clock(0.0)
        assert retry(failing(0), "x", Deadline(60, clock, Dice(), opens=opens), again()) == "served"
        assert clock.now == max(0.5 if opens > 0 else 0.0, opens)

    def test_a_wait_that_is_longer_than_the_time_is_told(self) -> None:
        with pytest.raises(
            OutOfTimeError,
            match=r"^x: gave up after 1 attempts in 0 s.* The last error: API Gateway has asked to wait\.",
        ):
            retry(failing(0), "x", Deadline(60, Clock(0.0), opens=100), again())

    @pytest.mark.parametrize("kind", [Deadline.short, Deadline.last])
    def test_api_gateways_wish_to_wait_holds_no_other_service_up(
        self, kind: Callable[[Deadline], Deadline]
    ) -> None:
        clock = Clock(0.0)
        assert retry(failing(0), "x", kind(Deadline(60, clock, opens=30)), again()) == "served"
        assert clock.now == 0

    def test_the_short_one_is_the_same_deadline(self) -> None:
        """The ledger and the delivery still have time when API Gateway's time is over."""
        clock = Clock(0.0)
        deadline = Deadline(BEFORE_CALL, clock)
        clock.now += 1
        deadline.short().allow("x")
        with pytest.raises(OutOfTimeError):
            deadline.allow("x")

    def test_given_up_while_it_waits(self) -> None:
        """A watched deadline asks after each slice of its pause whether CloudFormation still waits."""
        clock = Clock(0.0)

        def superseded() -> None:
            if clock.now >= 30:
                raise SupersededError("newer")

        deadline = Deadline(999, clock)
        with pytest.raises(SupersededError):
            retry(failing(1), "x", deadline.watched(superseded), again(after=100))
        assert clock.now == 2 * SLICE
        assert retry(failing(1), "x", deadline, again(after=100)) == "served"


class TestTurn:
    """If the function's time ends before CloudFormation's, a request goes back to the queue."""

    def test_the_pause_ends_with_the_turn(self) -> None:
        """It waits for the remaining time, in slices, so that no Retry-After repeats at once."""
        clock, looked = Sleepless(), []
        deadline = Deadline(3600, clock, turn=90).watched(lambda: looked.append(clock.now))
        with pytest.raises(TurnOverError):
            retry(failing(1), "Could not do it", deadline, again(after=100))
        assert clock.slept == [20, 20, 20, 90 - BEFORE_CALL - 60]
        assert looked == [20, 40, 60, 90 - BEFORE_CALL]

    def test_no_call_begins_after_it(self) -> None:
        deadline = Deadline(3600, Clock(0.0), turn=BEFORE_CALL - 0.1)
        with pytest.raises(TurnOverError, match="the function's time is nearly up"):
            retry(failing(0), "x", deadline, again())
        with pytest.raises(TurnOverError):
            deadline.allow_turn("x")
        deadline.short().allow("x")

    def test_cloudformations_time_goes_first(self) -> None:
        """A wait that would outlast CloudFormation's time fails at once, instead of going back."""
        clock = Clock(0.0)
        with pytest.raises(OutOfTimeError, match="ServiceTimeout") as raised:
            retry(failing(1), "x", Deadline(100, clock, turn=50), again(after=99))
        assert type(raised.value) is OutOfTimeError
        assert clock.now == 0

    def test_a_request_that_makes_way_does_not_wait_beyond_its_patience(self) -> None:
        """The error says until when API Gateway wants no call."""
        clock = Clock(0.0)
        with pytest.raises(TurnOverError) as raised:
            retry(failing(99), "x", Deadline(3600, clock, turn=90, patience=5), again(after=30))
        assert (clock.now, raised.value.opens) == (0, 30)
        assert retry(failing(1), "x", Deadline(3600, clock, turn=90, patience=5), again(after=4)) == "served"

    def test_until_then_no_call_to_api_gateway_begins_and_others_do(self) -> None:
        clock = Clock(0.0)
        deadline = Deadline(3600, clock, turn=90, opens=30)
        assert retry(failing(0), "x", deadline.short(), again()) == "served"
        assert clock.now == 0
        assert retry(failing(0), "x", deadline, again()) == "served"
        assert clock.now == 30

    def test_a_pause_within_it_is_waited_in_full(self) -> None:
        clock = Clock(0.0)
        assert retry(failing(1), "x", Deadline(3600, clock, turn=90), again(after=50)) == "served"
        assert clock.now == 50


class TestPersist:
    """`retry` calls until success, a final refusal, or the end of the time."""

    def test_until_it_is_served(self) -> None:
        """`retry` counts the attempts for its caller."""
        attempts = Attempts()
        assert retry(failing(3), "x", Deadline(99, Clock(0.0)), again(), attempts) == "served"
        assert attempts == Attempts(count=4)

    def test_refused_for_good(self) -> None:
        """A final error passes unchanged, without a pause."""
        clock = Sleepless()
        with pytest.raises(RefusedError, match="refusal 1"):
            retry(failing(9), "x", Deadline(99, clock), lambda _: None)
        assert not clock.slept

    def test_until_no_time_is_left(self) -> None:
        """The Reason has the action, the number of attempts, the time, the last error and the remedy."""
        clock = Clock(1000.0)
        with pytest.raises(OutOfTimeError) as raised:
            retry(
                failing(999, clock, 10), "Could not do it", Deadline(100, clock, Random(1)), again(after=10)
            )
        assert str(raised.value) == (
            "Could not do it: gave up after 5 attempts in 90 s, because the time of CloudFormation"
            " (ServiceTimeout) or of the function is nearly up."
            " The last error: refusal 5. Deploy again when that is over"
        )

    def test_patience(self) -> None:
        """A limited retry makes its last attempt at its limit, and fails with its own error."""
        clock = Clock(0.0)
        with pytest.raises(RefusedError):
            retry(failing(999), "x", Deadline(999, clock, Dice()), again(patience=30))
        assert clock.now == 30

    def test_patience_counts_from_the_first_such_error(self) -> None:
        """Earlier waits for another error do not count."""
        clock = Clock(0.0)
        verdicts = iter([*[Again(after=20)] * 3, *[Again(patience=30)] * 999])
        with pytest.raises(RefusedError):
            retry(failing(999), "x", Deadline(999, clock, Dice()), lambda _: next(verdicts))
        assert clock.now == 60 + 30

    def test_no_call_begins_too_late_where_the_look_has_taken_long(self) -> None:
        """The function asks the ledger after each slice, and DynamoDB may throttle that."""
        clock = Clock(0.0)

        def slow() -> None:
            clock.now += 30

        attempts = Attempts()
        with pytest.raises(OutOfTimeError):
            retry(
                failing(99), "x", Deadline(BEFORE_CALL + 40, clock).watched(slow), again(after=15), attempts
            )
        assert attempts.count == 1

    @pytest.mark.parametrize("unclear", [True, False], ids=["unclear", "clear"])
    def test_whether_one_may_have_been_served(self, unclear: bool) -> None:
        """It remembers an unclear attempt after success, after a final refusal and at the end of the time."""
        verdicts = iter([Again(unclear=unclear), Again()])
        attempts = Attempts()
        retry(failing(2), "x", Deadline(99, Clock(0.0)), lambda _: next(verdicts), attempts)
        assert attempts.unclear is unclear

        first = iter([Again(unclear=unclear)])
        attempts = Attempts()
        with pytest.raises(RefusedError):
            retry(failing(2), "x", Deadline(99, Clock(0.0)), lambda _: next(first, None), attempts)
        assert attempts.unclear is unclear

        forever = iter([Again(unclear=unclear)])
        with pytest.raises(OutOfTimeError) as raised:
            retry(failing(999), "x", Deadline(99, Clock(0.0)), lambda _: next(forever, Again()))
        assert raised.value.nothing_changed is not unclear

    @pytest.mark.parametrize("unclear", [True, False], ids=["unclear", "clear"])
    def test_given_up_and_whether_one_may_have_been_served(self, unclear: bool) -> None:
        """An unclear attempt also counts when CloudFormation gives the request up."""

        def superseded() -> None:
            raise SupersededError("newer")

        with pytest.raises(FailedError) as raised:
            retry(failing(1), "x", Deadline(99, Clock(0.0)).watched(superseded), again(unclear=unclear))
        assert raised.value.nothing_changed is not unclear

    def test_no_time_for_the_next_of_several(self) -> None:
        """An unclear attempt stays unclear when the next one cannot begin."""
        with pytest.raises(OutOfTimeError) as raised:
            retry(failing(1), "x", Deadline(1, Clock(0.0)), again(), Attempts(count=1, unclear=True))
        assert not raised.value.nothing_changed


class TestWords:
    """An error names the action, and its cause."""

    def test_a_request_that_makes_way_names_the_refusal(self) -> None:
        with pytest.raises(TurnOverError, match=r"^Could not do it: refusal 1\.$") as raised:
            retry(failing(1), "Could not do it", Deadline(3600, Clock(0.0), turn=90), again(after=100))
        assert raised.value.opens == -math.inf, "its own turn was over, and the wait with it"
        with pytest.raises(TurnOverError, match=r"^Could not do it: refusal 1\.$"):
            retry(
                failing(1),
                "Could not do it",
                Deadline(3600, Clock(0.0), turn=90, patience=5),
                again(after=30),
            )

    def test_a_call_that_may_not_begin_in_this_turn_is_named(self) -> None:
        deadline = Deadline(3600, Clock(0.0), turn=BEFORE_CALL - 0.1)
        with pytest.raises(TurnOverError, match=r"^Could not do it: the function's time is nearly up$"):
            deadline.allow("Could not do it")

    def test_an_unclear_attempt_makes_the_failure_unclear_and_a_clear_one_clear(self) -> None:
        for unclear in (True, False):
            with pytest.raises(OutOfTimeError) as raised:
                retry(failing(9), "x", Deadline(BEFORE_CALL, Clock(0.0)), again(unclear=unclear))
            assert raised.value.nothing_changed is (not unclear)

    def test_the_last_errors_full_stop_is_not_doubled(self) -> None:
        def call() -> str:
            raise RefusedError("Try later. . X")

        with pytest.raises(
            OutOfTimeError, match=r"The last error: Try later\. \. X\. Deploy again when that is over$"
        ):
            retry(call, "x", Deadline(BEFORE_CALL, Clock(0.0)), again())


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


class TestAhead:
    """A call that begins later needs its time then."""

    @pytest.mark.parametrize("kind", [Deadline.allow, Deadline.allow_turn])
    @pytest.mark.parametrize(
        "turn", [3600, BEFORE_CALL + 5], ids=["CloudFormation's time", "the function's time"]
    )
    def test_it_is_allowed_to_the_second(self, kind: Callable[..., None], turn: float) -> None:
        deadline = Deadline(3600 if turn < 3600 else BEFORE_CALL + 5, Clock(0.0), turn=turn)
        kind(deadline, "x")
        kind(deadline, "x", 5)
        if kind is Deadline.allow or turn < 3600:
            with pytest.raises(OutOfTimeError):
                kind(deadline, "x", 5.1)

    def test_a_turn_that_just_holds_a_call_is_enough(self) -> None:
        Deadline(3600, Clock(0.0), turn=BEFORE_CALL).allow_turn("x")

    @pytest.mark.parametrize(("late", "count"), [(1.0, 2), (1.5, 1)], ids=["a second", "more"])
    def test_a_look_that_takes_more_than_a_second_is_followed_by_a_look_at_the_clock(
        self, late: float, count: int
    ) -> None:
        clock = Clock(0.0)

        def slow() -> None:
            clock.now += late

        attempts, deadline = Attempts(), Deadline(BEFORE_CALL + 15, clock).watched(slow)
        with pytest.raises(
            OutOfTimeError, match="^Could not do it: " + ("gave up" if count == 2 else "no time was left")
        ):
            retry(failing(99), "Could not do it", deadline, again(after=15), attempts)
        assert attempts.count == count

    def test_a_request_that_makes_way_waits_for_all_of_its_patience(self) -> None:
        clock = Clock(0.0)
        assert retry(failing(1), "x", Deadline(3600, clock, turn=90, patience=4), again(after=4)) == "served"

    def test_a_request_that_makes_way_without_a_retry_after_keeps_api_gateway_open(self) -> None:
        with pytest.raises(TurnOverError) as raised:
            retry(failing(99), "x", Deadline(3600, Clock(0.0), Dice(), turn=90, patience=0.1), again())
        assert raised.value.opens == -math.inf


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
