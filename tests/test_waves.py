"""Small versions of `make benchmark`: the function's code does everything at once, in virtual time."""

from functools import partial

import pytest

from benchmarks import policies, storms, waits
from benchmarks.model import MOST_RECEIVES, TIMEOUT, Account, Fifo
from benchmarks.waves import wave
from benchmarks.world import World
from usage_plan_key.queue import VISIBILITY


def test_the_models_group_waits_behind_its_message_in_flight_and_an_expired_receipt_changes_nothing() -> None:
    world = World(1)
    fifo, world.frozen = Fifo(world), True
    for body in ("a0", "a1", "b0"):
        fifo.send_message(
            QueueUrl=Fifo.URL, MessageBody=body, MessageGroupId=body[0], MessageDeduplicationId=body
        )
    seen: list[list[str]] = []
    (first,) = fifo.receive(1)
    old = first.receipt
    for seconds in (1, VISIBILITY, 2 * VISIBILITY + 1):
        world.at(seconds, lambda: seen.append([message.body for message in fifo.receive(10)]))
    world.at(VISIBILITY + 1, lambda: fifo.delete(old))
    world.run()
    assert seen == [["b0"], ["a0", "a1"], ["a0", "a1", "b0"]]
    assert fifo.receives == 3


@pytest.mark.parametrize(
    ("kind", "keys", "stacks", "worst", "most"),
    [
        ("Create", 200, 1, False, 1.14),
        ("Create", 200, 10, True, 1.25),
        ("Delete", 400, 20, False, 1.25),
        ("Create", 100, 100, True, 1.4),
        ("Update", 60, 1, False, 1.35),
        ("Update", 60, 4, True, 1.35),
    ],
)
def test_a_wave_takes_little_more_than_its_calls(
    kind: str, keys: int, stacks: int, worst: bool, most: float
) -> None:
    """A move between plans that share a stage takes two calls."""
    result = wave(kind, keys, stacks, Account(1, worst=worst))
    assert (result.succeeded, result.throttled, result.rounds) == (keys, 0, 1)
    assert result.ratio <= most
    assert result.calls_per_key <= (3 if kind == "Update" else 1.4)
    assert result.luck >= 0.98
    assert result.receives <= 50


@pytest.mark.parametrize(("stacks", "retry_after"), [(1, None), (1, 100), (6, 100)])
def test_forty_minutes_of_throttling_lose_nobody(stacks: int, retry_after: int | None) -> None:
    account = Account(1, worst=True)
    account.gateway.shut = 2400.0, retry_after
    result = wave("Create", 6, stacks, account)
    assert (result.succeeded, result.rounds) == (6, 1)
    assert result.seconds <= 2400 + 100
    assert result.billed <= 300
    assert result.receives <= MOST_RECEIVES / 2
    assert retry_after is None or result.calls <= 250, "one call a Retry-After, and then the six"


@pytest.mark.parametrize("at_random", [False, True], ids=["oldest first", "at random"])
@pytest.mark.parametrize(("refusal", "stuck"), [("503", 8), ("409", 5)])
def test_an_hour_of_refusals_starves_nobody(refusal: str, stuck: int, at_random: bool) -> None:
    alone, result = (
        waits.beside(40, 5, number, waits.REFUSALS[refusal], Account(1, at_random=at_random, worst=at_random))
        for number in (0, stuck)
    )
    assert (alone.good, result.good, result.answered) == (40, 40, stuck)
    assert result.seconds <= 4 * alone.seconds


@pytest.mark.parametrize("refusal", waits.REFUSALS)
def test_the_delete_of_a_create_that_waits_is_answered_soon(refusal: str) -> None:
    """Alone, and among others that wait."""
    for cancelled, others, account in ((1, 0, Account(2)), (3, 4, Account(1, at_random=True))):
        result = waits.cancelled(cancelled, others, waits.REFUSALS[refusal], account)
        assert result.right == cancelled
        assert result.slowest <= 35


def test_native_and_crhelper_lose_most_keys_and_terraform_needs_many_calls() -> None:
    native, crhelper, terraform = (policies.wave(policy, 100, seed=1) for policy in policies.POLICIES)
    assert max(native.succeeded, crhelper.succeeded) < 50
    assert terraform.succeeded == 100
    assert terraform.calls_per_key > 3
    assert terraform.ratio > 1.5


@pytest.mark.usefixtures("either_conflict")
def test_after_a_storm_every_key_is_where_the_stack_believes_it_and_no_others_are() -> None:
    """In two seeds of four Lambda hands in requests late and in any order; in two it has no room for all."""
    deaths = 0
    for seed in range(8):
        account = partial(Account, seed, worst=bool(seed % 2), without_room=0.7 * (seed // 2 % 2))
        for storm in storms.rollback(3 + seed, account()), storms.update_rollback(3 + seed, account()):
            assert storm.clean, storm
            assert not storm.unanswered
        storm = storms.deaths(10, account(), share=0.3)
        assert storm.clean, storm
        deaths += storm.deaths
    assert deaths > 8


def test_a_rollback_passes_over_cancelled_requests() -> None:
    """The function attaches a few keys before it hears of the failure; to attach all takes sixty seconds."""
    storm = storms.rollback(100, Account(1), before=0.0, late=0.02, twice=0.02, wrong=0)
    assert storm.clean, storm
    assert storm.calls <= 30
    assert storm.seconds < 20


@pytest.mark.parametrize("how", [{"apart": True}, {}, {"hang": True}], ids=["apart", "one stack", "hang"])
def test_deadly_requests_cost_others_two_time_outs_at_most(how: dict[str, bool]) -> None:
    alone, beside = (
        storms.crashing(40, 4, bad, Account(1, worst=True), **how if bad else {}) for bad in (0, 5)
    )
    assert (beside.good, beside.deaths > 3) == (40, True)
    assert beside.seconds <= alone.seconds + 2 * VISIBILITY
    assert beside.over <= 4 * VISIBILITY + alone.seconds + 4 * VISIBILITY * ("apart" not in how)
    if "hang" in how:
        assert beside.deaths * TIMEOUT <= beside.billed, "Lambda bills a function that hangs to its end"
