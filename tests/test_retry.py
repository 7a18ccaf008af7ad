"""`retry` waits with full jitter below a growing cap, while another call can still end in time."""

from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from botocore.exceptions import ClientError

from tests.memory import Clock, within
from usage_plan_key import retry
from usage_plan_key.errors import Again, OutOfTimeError, TurnOverError, UnreadableError
from usage_plan_key.retry import Attempts

#: Seconds that the tests' call needs when it begins.
NEEDS = 7.0
AGAIN, BUSY, HASTY, UNCLEAR = Again(), Again(busy=True), Again(patience=30), Again(unclear=True)
#: They roll the greatest number, or the least.
GREATEST, LEAST = SimpleNamespace(uniform=max), SimpleNamespace(uniform=min)


def tried(of: Any, verdicts: list[Again | None], attempts: Attempts | None = None) -> Any:
    """Make a call that fails once for each verdict, and then succeeds."""
    refusals = [LookupError(f"refusal {number + 1}.") for number in range(len(verdicts))]
    call, judge = Mock(side_effect=[*refusals, "served"]), Mock(side_effect=verdicts)
    return retry.retry(call, "Could not do it", of, judge, NEEDS, attempts)


@pytest.mark.parametrize(
    ("judged", "ends", "more", "pauses", "result"),
    [
        # Pauses: full jitter below a cap, a fixed range while API Gateway is busy, Retry-After at least.
        ([AGAIN] * 8, 999, {}, [0.5, 1, 2, 4, 8, 16, 20, 20], "served"),
        ([BUSY, BUSY, Again(after=15), AGAIN], 999, {}, [2, 2, 15, 4], "served"),
        ([Again(after=0.2)], 999, {}, [0.5], "served"),
        ([Again(after=50)], 57, {}, [50], "served"),
        ([Again(after=50)], 999, {"turn": 57}, [50], "served"),
        ([Again(after=50)], 999, {"patience": 50}, [50], "served"),
        ([Again(after=2, busy=True)], NEEDS + 2.1, {}, [2], "served"),
        # A final refusal, and one that is final after 30 seconds of it in a row.
        ([None], 999, {}, [], "LookupError: refusal 1."),
        ([HASTY] * 9, 999, {}, [0.5, 1, 2, 4, 8, 14.5], "LookupError: refusal 7."),
        ([HASTY, Again(after=40), HASTY], 999, {}, [0.5, 40, 2], "served"),
        ([Again(after=20)] * 2 + [HASTY] * 9, 999, {}, [20, 20, 2, 4, 8, 16], "LookupError: refusal 7."),
        # Time to begin. CloudFormation's goes before the function's.
        ([], NEEDS, {}, [], "served"),
        ([], 999, {"turn": NEEDS}, [], "served"),
        ([], NEEDS - 0.1, {"turn": 0}, [], "NotBegunError: no time was left to begin. Raise ServiceTimeout"),
        ([], 999, {"turn": NEEDS - 0.1}, [], "TurnOverError: the function's time is nearly up"),
        # Time for another attempt: no pause ends too late, and jitter ends in time.
        ([Again(after=53.1)], 60, {}, [], "OutOfTimeError: gave up after 1 attempts in 0 s"),
        ([AGAIN] * 3, NEEDS + 1, {}, [0.5, 0.5], "OutOfTimeError: gave up after 3 attempts in 1 s"),
        ([Again(after=99)], 100, {"turn": 50}, [], "OutOfTimeError: gave up"),
        ([Again(after=90)], 999, {"turn": 90}, [], "TurnOverError: refusal 1."),
        ([AGAIN] * 3, 999, {"turn": NEEDS + 1}, [0.5, 0.5], "TurnOverError: refusal 3."),
        ([AGAIN], 999, {"patience": 0.1}, [], "TurnOverError: refusal 1."),
        ([Again(after=30, patience=30)], 999, {"patience": 0.1}, [], "TurnOverError: refusal 1."),
        ([BUSY], NEEDS, {"patience": -1}, [], "TurnOverError: refusal 1."),
        # It remembers that an attempt may have been served, however the call ends.
        ([UNCLEAR, AGAIN], 999, {}, [0.5, 1], "served"),
        ([UNCLEAR, None], 999, {}, [0.5], "LookupError: refusal 2."),
        ([UNCLEAR, AGAIN, AGAIN], NEEDS + 1, {}, [0.5, 0.5], "OutOfTimeError: gave up after 3 attempts"),
        ([UNCLEAR, AGAIN], 999, {"patience": 1}, [0.5], "TurnOverError: refusal 2."),
    ],
)
def test_a_call(
    judged: list[Again | None], ends: float, more: dict[str, float], pauses: list[float], result: str
) -> None:
    """How its errors are judged, and its time; then its pauses, and what comes of it."""
    clock, attempts, found = Clock(), Attempts(), None
    later = {name: clock.now + seconds for name, seconds in more.items()}
    try:
        told = tried(within(ends, clock, dice=GREATEST, **later), judged, attempts)
    except (LookupError, OutOfTimeError, TurnOverError) as error:
        told, found = f"{type(error).__name__}: {error}".replace("Could not do it: ", ""), error
    assert told.startswith(result)
    assert (clock.slept, attempts.count) == (pauses, len(pauses) + (bool(judged) or not found))
    assert getattr(found, "refusal", None) is (judged[-1] if found and "patience" in more else None)
    assert attempts.unclear is (UNCLEAR in judged)
    assert getattr(found, "nothing_changed", UNCLEAR not in judged) is (UNCLEAR not in judged)


def test_jitter_begins_at_nothing_and_at_a_second_while_api_gateway_is_busy() -> None:
    clock = Clock()
    tried(within(999, clock, dice=LEAST), [AGAIN, BUSY])
    tried(within(99_999, clock, dice=Random(1)), [AGAIN] * 2000)
    assert clock.slept[:2] == [0, 1]
    assert all(0 <= seconds <= retry.CAPS[1] for seconds in clock.slept[2:])


def test_the_reason_has_the_attempts_the_time_the_last_error_and_the_remedy() -> None:
    """An error's full stop is not doubled."""
    assert str(OutOfTimeError.told("Could not do it", 5, 90.4, ValueError("Try later. . X."))) == (
        "Could not do it: gave up after 5 attempts in 90 s, because the time of CloudFormation"
        " (ServiceTimeout) or of the function is nearly up."
        " The last error: Try later. . X. Deploy again when that is over"
    )


def test_a_call_needs_its_own_time_and_the_ledgers_and_the_answers() -> None:
    """Its own time-outs, and the ledger's and the answer's after it; the short ones come to less."""
    short = retry.SHORT_CONNECT_TIMEOUT + retry.SHORT_READ_TIMEOUT
    assert retry.BEFORE_CALL >= retry.ONE_CALL + retry.BEFORE_SHORT_CALL
    assert short + retry.BEFORE_DELIVERY <= retry.BEFORE_SHORT_CALL
    assert short <= retry.BEFORE_DELIVERY
    assert retry.BEFORE_LOOK >= retry.ONE_CALL + retry.BEFORE_DELIVERY


def test_a_reply_that_cannot_be_read_says_nothing_of_its_text() -> None:
    with pytest.raises(UnreadableError, match=r"^the reply cannot be read \(ValueError\)$"):
        retry.readable(lambda: int("a value that nobody may see"), "SQS")()
    assert retry.readable(dict, "SQS")() == {}, "if the caller reads nothing of it"


HEADER = {"ResponseMetadata": {"HTTPHeaders": {"retry-after": "3"}}, "retryAfterSeconds": "7"}


@pytest.mark.parametrize(
    ("response", "found"),
    [
        ({"Error": {"Code": "X", "Message": "no"}}, ("X", "no", 0)),
        ({"Error": {"Code": "X", "Message": "no,\n  and no"}}, ("X", "no, and no", 0)),
        ({"Error": {"Message": None}, "retryAfterSeconds": "soon"}, ("", "", 0)),
        ({}, ("", "", 0)),
        (HEADER, ("", "", 3)),
        ({"retryAfterSeconds": "7"}, ("", "", 7)),
        ({"retryAfterSeconds": "-7"}, ("", "", 0)),
    ],
)
def test_an_error_is_read_though_it_may_lack_a_part(response: Any, found: tuple[str, str, float]) -> None:
    error = ClientError(response, "Call")
    assert (retry.code(error), retry.message(error), retry.retry_after(error)) == found
    assert (retry.code(ValueError("x")), retry.message(ValueError("x"))) == ("ValueError", "x")
