"""Small versions of `make benchmark`: the function's code does everything at once, in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from botocore.exceptions import ClientError

from benchmarks import policies, storms, waits
from benchmarks.model import MOST_RECEIVES, MOST_ROUNDS, TIMEOUT, Account, Fifo
from benchmarks.waves import Result, furnish, wave
from benchmarks.world import World
from usage_plan_key.provider import Provider
from usage_plan_key.queue import VISIBILITY, Queue

either_order = pytest.mark.parametrize("at_random", [False, True], ids=["oldest first", "at random"])
both_batches = pytest.mark.parametrize("worst", [False, True], ids=["kind", "worst"])


def through_the_queue(kind: str, keys: int, stacks: int = 1, seed: int = 1, *, worst: bool = False) -> Result:
    return wave(kind, keys, stacks, Account(seed, worst=worst))


def throttled(keys: int, stacks: int, retry_after: int | None, account: Account) -> Result:
    account.gateway.shut = 2400.0, retry_after
    return wave("Create", keys, stacks, account)


# --- The model's queue ---


def queued(*groups: str, worst: bool = False, at_random: bool = False) -> tuple[World, Fifo]:
    """A queue with a message in each of these groups, whose body is the group's name and its place."""
    world = World(1)
    fifo = Fifo(world, worst=worst, at_random=at_random)
    world.frozen = True
    for number, group in enumerate(groups):
        body = f"{group}{groups[:number].count(group)}"
        fifo.send_message(
            QueueUrl=Fifo.URL, MessageBody=body, MessageGroupId=group, MessageDeduplicationId=body
        )
    return world, fifo


def received(fifo: Fifo, most: int = 10) -> list[str]:
    return [message.body for message in fifo.receive(most)]


def after(world: World, seconds: float, call: Callable[[], Any]) -> Any:
    """Run a call for at most so many seconds; return its result."""
    got: list[Any] = []
    world.at(seconds, lambda: got.append(call()))
    world.run()
    return got[0]


@pytest.mark.parametrize(
    ("worst", "batch"), [(False, "a0 a1 a2 b0"), (True, "a0 b0 c0 a1")], ids=["kind", "worst"]
)
def test_a_batch_is_one_groups_first_or_in_the_worst_case_of_each_in_turn(*, worst: bool, batch: str) -> None:
    _, fifo = queued(*"aaabbc", worst=worst)
    assert received(fifo, 4) == batch.split()


def test_the_group_with_the_oldest_message_comes_first_also_when_it_comes_again() -> None:
    world, fifo = queued(*"abc")
    (first,) = fifo.receive(1)
    hide(fifo, {first.receipt: 1})
    assert after(world, 2, lambda: received(fifo, 2)) == ["a0", "b0"]


def test_or_any_group_comes_first() -> None:
    _, fifo = queued(*"abcdef", at_random=True)
    batch = received(fifo)
    assert batch != sorted(batch) == ["a0", "b0", "c0", "d0", "e0", "f0"]


def test_a_group_waits_while_one_of_its_messages_is_in_flight() -> None:
    world, fifo = queued(*"aaab")
    first, second = fifo.receive(2)
    fifo.delete(first.receipt)
    assert received(fifo) == ["b0"]
    fifo.delete(second.receipt)
    assert received(fifo) == ["a2"]
    assert after(world, VISIBILITY + 1, lambda: received(fifo)) == ["a2", "b0"]


def hide(fifo: Fifo, seconds: dict[str, int]) -> Any:
    """Hide messages by their receipts, for so many seconds each."""
    entries = [
        {"Id": receipt.replace(" ", "-"), "ReceiptHandle": receipt, "VisibilityTimeout": hidden}
        for receipt, hidden in seconds.items()
    ]
    return fifo.change_message_visibility_batch(QueueUrl=Fifo.URL, Entries=entries)


def one_by_one(fifo: Fifo, seconds: dict[str, int]) -> None:
    for receipt, hidden in seconds.items():
        fifo.change_message_visibility(QueueUrl=Fifo.URL, ReceiptHandle=receipt, VisibilityTimeout=hidden)


@pytest.mark.parametrize("change", [hide, one_by_one])
def test_a_message_whose_visibility_is_changed_comes_again_in_its_place(
    change: Callable[[Fifo, dict[str, int]], Any],
) -> None:
    world, fifo = queued(*"aaa")
    first, second = fifo.receive(2)
    change(fifo, {first.receipt: 30, second.receipt: 0})
    assert after(world, 29, lambda: received(fifo)) == []
    assert after(world, 2, lambda: received(fifo)) == ["a0", "a1", "a2"]
    assert fifo.receives == 2


def test_the_messages_before_a_hidden_one_come_and_those_behind_it_wait() -> None:
    world, fifo = queued(*"aaab")
    first, second, third = fifo.receive(3)
    hide(fifo, {first.receipt: 0, second.receipt: 30, third.receipt: 0})
    assert after(world, 1, lambda: received(fifo)) == ["a0", "b0"]


def test_a_batch_of_visibilities_says_which_receipts_have_expired() -> None:
    world, fifo = queued(*"ab")
    first, second = fifo.receive(2)
    fifo.delete(first.receipt)
    reply = hide(fifo, {first.receipt: 0, second.receipt: 0})
    assert reply["Successful"] == [{"Id": "1-1"}]
    assert [(failed["Id"], failed["Code"]) for failed in reply["Failed"]] == [
        ("0-1", "InvalidParameterValue")
    ]
    assert after(world, 1, lambda: received(fifo)) == ["b0"]


def test_an_expired_receipt_changes_and_deletes_nothing() -> None:
    world, fifo = queued("a")
    (message,) = fifo.receive(1)
    old = message.receipt
    assert after(world, VISIBILITY + 1, lambda: received(fifo)) == ["a0"]
    fifo.delete(old)
    with pytest.raises(ClientError, match="expired"):
        fifo.change_message_visibility(QueueUrl=Fifo.URL, ReceiptHandle=old, VisibilityTimeout=0)
    assert after(world, VISIBILITY + 1, lambda: received(fifo)) == ["a0"]


def test_a_message_that_is_received_too_often_and_one_that_is_put_aside_are_in_the_dead_letter_queue() -> (
    None
):
    world, fifo = queued(*"ab")
    for _ in range(MOST_RECEIVES):
        assert received(fifo, 1) == ["a0"]
        after(world, VISIBILITY, lambda: None)
    assert received(fifo, 2) == ["b0"]
    fifo.send_message(
        QueueUrl="another", MessageBody="stray", MessageGroupId="a", MessageDeduplicationId="stray"
    )
    assert fifo.dead == ["a0", "stray"]


# --- Waves ---


@pytest.mark.parametrize("kind", ["Create", "Delete"])
@pytest.mark.parametrize(
    ("keys", "stacks", "worst", "most"),
    [(18, 1, False, 1.25), (500, 1, False, 1.14)]
    + [shape for worst in (False, True) for shape in [(400, 20, worst, 1.25), (100, 100, worst, 1.4)]],
)
def test_a_wave_through_the_queue_is_served_in_little_more_than_its_calls_take(
    kind: str, keys: int, stacks: int, most: float, *, worst: bool
) -> None:
    result = through_the_queue(kind, keys, stacks, worst=worst)
    assert result.succeeded == keys
    assert result.ratio <= most
    assert result.calls_per_key <= 1.25
    assert result.throttled == 0
    assert result.luck >= 0.98
    assert result.receives <= 50
    assert result.rounds == 1


def test_the_model_sees_an_answer_that_comes_before_an_earlier_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_batch = Provider.on_batch
    monkeypatch.setattr(Provider, "on_batch", lambda self, records, of: on_batch(self, records[::-1], of))
    with pytest.raises(AssertionError, match="overtaken"):
        through_the_queue("Create", 20)


def test_lambda_bills_a_function_that_hangs_until_it_ends_it() -> None:
    beside = storms.crashing(1, 1, 1, Account(1), hang=True)
    assert beside.deaths * TIMEOUT <= beside.billed <= beside.deaths * TIMEOUT + 10


def test_a_request_that_lambda_hands_in_again_after_its_hour_gets_the_same_answer() -> None:
    account = Account(1)
    furnish(account.gateway, 1)
    sent = account.send("Create", "stack", "Resource", "key0", "free", delays=(0.0, 4000.0))
    account.run()
    assert [answer["Status"] for _, answer in sent.answers] == ["SUCCESS", "SUCCESS"]


@both_batches
@pytest.mark.usefixtures("either_conflict")
@pytest.mark.parametrize(("keys", "stacks"), [(100, 1), (100, 4)])
def test_moves_between_plans_that_share_a_stage_take_two_calls_each(
    keys: int, stacks: int, *, worst: bool
) -> None:
    result = through_the_queue("Update", keys, stacks, worst=worst)
    assert result.succeeded == keys
    assert result.ratio <= 1.35
    assert result.calls_per_key <= 2 * 1.5
    assert result.throttled == 0
    assert result.luck >= 0.98


@pytest.mark.parametrize("stacks", [1, 20])
@pytest.mark.parametrize("retry_after", [None, 100])
def test_forty_minutes_of_throttling_lose_nobody(stacks: int, retry_after: int | None) -> None:
    result = throttled(20, stacks, retry_after, Account(1, worst=True))
    assert result.succeeded == 20
    assert result.seconds <= 2400 + 100
    assert result.billed <= 300
    assert result.receives <= MOST_RECEIVES / 2
    assert result.rounds == 1
    assert retry_after is None or result.calls <= 250  # One call a Retry-After, and then the twenty.


# --- Requests that API Gateway refuses for long, and others beside them ---


def beside(stuck: int, refusal: str, *, at_random: bool, worst: bool) -> waits.Beside:
    return waits.beside(100, 10, stuck, waits.REFUSALS[refusal], Account(1, at_random=at_random, worst=worst))


@either_order
@both_batches
@pytest.mark.parametrize(("stuck", "refusal"), [(10, "503"), (20, "409")])
def test_requests_that_api_gateway_refuses_for_an_hour_starve_nobody(
    stuck: int, refusal: str, *, at_random: bool, worst: bool
) -> None:
    alone = beside(0, refusal, at_random=at_random, worst=worst)
    result = beside(stuck, refusal, at_random=at_random, worst=worst)
    assert (alone.good, result.good) == (100, 100)
    assert result.seconds <= 4 * alone.seconds
    assert result.answered == stuck


@either_order
def test_ten_minutes_of_throttling_cost_little_and_nobody_waits_much_longer(*, at_random: bool) -> None:
    account = Account(1, at_random=at_random)
    account.gateway.shut = 600.0, 30
    result = wave("Create", 100, 10, account)
    alone = wave("Create", 100, 10, Account(1, at_random=at_random))
    assert result.succeeded == 100
    assert result.seconds <= 600 + alone.seconds + 30
    assert result.billed <= 200


@pytest.mark.parametrize("refusal", waits.REFUSALS)
def test_the_delete_of_a_create_that_waits_is_answered_soon(refusal: str) -> None:
    for seed in range(4):
        result = waits.cancelled(1, 0, waits.REFUSALS[refusal], Account(seed))
        assert result.right == 1
        assert result.slowest <= 35


@either_order
@pytest.mark.parametrize("refusal", waits.REFUSALS)
def test_the_delete_of_a_create_that_waits_among_others_is_answered_as_soon(
    refusal: str, *, at_random: bool
) -> None:
    result = waits.cancelled(10, 20, waits.REFUSALS[refusal], Account(1, at_random=at_random))
    assert result.right == 10
    assert result.slowest <= 35


def test_a_request_that_is_sent_into_the_queue_anew_is_lost_after_sixteen_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def send_back(queue: Queue, hidden: list[tuple[Any, int]], deadline: object) -> None:
        for message, _ in hidden:
            cast("Any", queue)._client.send_message(
                QueueUrl=Fifo.URL,
                MessageBody=message.body,
                MessageGroupId=message.group,
                MessageDeduplicationId=message.receipt,
            )

    on_batch = Provider.on_batch
    monkeypatch.setattr(Queue, "give_back", send_back)
    monkeypatch.setattr(Provider, "on_batch", lambda *a: on_batch(*a) and {"batchItemFailures": []})
    account = Account(1)
    result = throttled(3, 1, 100, account)
    assert (result.succeeded, result.rounds) == (0, MOST_ROUNDS)
    assert account.fifo.dead


def test_requests_that_lambda_hands_in_minutes_late_are_served_too() -> None:
    result = wave("Create", 100, 5, Account(1, worst=True, without_room=0.5))
    assert result.succeeded == 100
    assert result.seconds > 60
    assert result.rounds == 1


def test_native_and_crhelper_lose_most_keys_and_terraform_needs_many_calls() -> None:
    native, crhelper, terraform = (policies.wave(policy, 100, seed=1) for policy in policies.POLICIES)
    assert native.succeeded < 50
    assert crhelper.succeeded < 50
    assert terraform.succeeded == 100
    assert terraform.calls_per_key > 3
    assert terraform.ratio > 1.5


def test_the_same_seed_gives_the_same_figures() -> None:
    assert through_the_queue("Create", 40, 2, seed=7) == through_the_queue("Create", 40, 2, seed=7)


def an_account(seed: int) -> Account:
    """Vary the batches by seed; in two seeds of four Lambda also hands in requests late and in any order."""
    return Account(seed, worst=bool(seed % 2), without_room=0.7 * (seed // 2 % 2))


@pytest.mark.parametrize("seed", range(40))
def test_a_rollback_leaves_the_keys_that_were_there_before_and_no_others(seed: int) -> None:
    storm = storms.rollback(3 + seed % 10, an_account(seed))
    assert storm.clean, storm
    assert not storm.unanswered


@pytest.mark.usefixtures("either_conflict")
@pytest.mark.parametrize("seed", range(20))
def test_a_rollback_of_moves_leaves_every_key_where_it_was(seed: int) -> None:
    storm = storms.update_rollback(3 + seed % 8, an_account(seed))
    assert storm.clean, storm
    assert not storm.unanswered


def test_a_rollback_passes_over_cancelled_requests() -> None:
    storm = storms.rollback(100, Account(1), before=0.0, late=0.02, twice=0.02, wrong=0)
    assert storm.clean, storm
    # The function attaches a few keys before CloudFormation learns of the failure, and detaches them again.
    assert storm.calls <= 30
    # To attach and to detach all hundred keys would take sixty seconds.
    assert storm.seconds < 20


@pytest.mark.parametrize("seed", range(8))
def test_the_keys_that_the_stack_believes_in_exist_and_no_others_though_functions_die(seed: int) -> None:
    storm = storms.deaths(20, an_account(seed), share=0.3)
    assert storm.deaths
    assert storm.clean, storm


@pytest.mark.parametrize("hang", [False, True], ids=["crash", "hang"])
def test_a_stack_that_kills_the_function_does_not_slow_down_another_one(*, hang: bool) -> None:
    alone = storms.crashing(60, 1, 0, Account(1))
    beside = storms.crashing(60, 1, 20, Account(1), hang=hang)
    assert beside.good == 60
    assert beside.deaths >= 3
    assert beside.seconds <= 1.1 * alone.seconds


@both_batches
@pytest.mark.parametrize("apart", [False, True], ids=["in one stack", "each in a stack of its own"])
def test_requests_that_kill_the_function_cost_others_two_visibility_time_outs_at_most(
    *, worst: bool, apart: bool
) -> None:
    alone = storms.crashing(200, 20, 0, Account(1, worst=worst))
    beside = storms.crashing(200, 20, 20, Account(1, worst=worst), apart=apart)
    assert beside.good == 200
    assert beside.seconds <= alone.seconds + 2 * VISIBILITY
    assert beside.over <= 4 * VISIBILITY + alone.seconds + 4 * VISIBILITY * (not apart)
