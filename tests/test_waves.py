"""Everything at once, in virtual time: small versions of what `make benchmark` shows. The code is the function's own."""

from __future__ import annotations

import pytest

from benchmarks import policies, storms
from benchmarks.model import Account
from benchmarks.waves import Result, wave


def through_the_queue(kind: str, keys: int, stacks: int = 1, seed: int = 1) -> Result:
    return wave(kind, keys, stacks, Account(seed))


@pytest.mark.parametrize("kind", ["Create", "Delete"])
@pytest.mark.parametrize(("keys", "stacks"), [(18, 1), (100, 1), (400, 4)])
def test_a_wave_through_the_queue_is_served_in_little_more_than_its_calls_take(kind: str, keys: int, stacks: int) -> None:
    result = through_the_queue(kind, keys, stacks)
    assert result.succeeded == keys
    assert result.ratio <= (1.15 if keys >= 100 else 1.25)
    assert result.calls_per_key <= 1.3
    assert result.throttled == 0
    assert result.luck >= 0.98


@pytest.mark.parametrize(("keys", "stacks"), [(100, 1), (100, 4)])
def test_moves_between_plans_that_share_a_stage_take_two_calls_each(keys: int, stacks: int) -> None:
    result = through_the_queue("Update", keys, stacks)
    assert result.succeeded == keys
    assert result.ratio <= 1.3
    assert result.calls_per_key <= 2 * 1.5
    assert result.throttled == 0
    assert result.luck >= 0.98


def test_where_it_arrives_a_crowd_is_served_too_but_not_as_well() -> None:
    result = wave("Create", 100, 1, Account(1, queue=False))
    assert result.succeeded == 100
    assert result.seconds < 15 * 60
    assert result.calls_per_key > 2


def test_what_others_do() -> None:
    native, crhelper, terraform = (policies.wave(policy, 100, seed=1) for policy in policies.POLICIES)
    assert native.succeeded < 50
    assert crhelper.succeeded < 50
    assert terraform.succeeded == 100
    assert terraform.calls_per_key > 3
    assert terraform.ratio > 1.5


def test_the_same_seed_gives_the_same_figures() -> None:
    assert through_the_queue("Create", 40, 2, seed=7) == through_the_queue("Create", 40, 2, seed=7)


@pytest.mark.parametrize("seed", range(40))
def test_a_rollback_leaves_what_was_there_before_and_nothing_else(seed: int) -> None:
    storm = storms.rollback(3 + seed % 10, Account(seed, mixing=bool(seed % 2)))
    assert storm.clean, storm
    assert not storm.unanswered


@pytest.mark.parametrize("seed", range(20))
def test_a_rollback_of_moves_leaves_every_key_where_it_was(seed: int) -> None:
    storm = storms.update_rollback(3 + seed % 8, Account(seed, mixing=bool(seed % 2)))
    assert storm.clean, storm
    assert not storm.unanswered


def test_a_rollback_passes_over_what_was_cancelled() -> None:
    storm = storms.rollback(100, Account(1), before=0.0, late=0.02, twice=0.02, wrong=0)
    assert storm.clean, storm
    assert storm.calls <= 30  # What was attached before CloudFormation had heard of the failure, and is detached again.
    assert storm.seconds < 20  # A hundred useless attachments, and to detach them, would take sixty.


@pytest.mark.parametrize("seed", range(6))
def test_what_the_stack_believes_in_exists_and_nothing_else_though_functions_die(seed: int) -> None:
    storm = storms.deaths(20, Account(seed), share=0.3)
    assert storm.deaths
    assert storm.clean, storm


@pytest.mark.parametrize("hang", [False, True], ids=["crash", "hang"])
def test_a_stack_that_kills_the_function_does_not_slow_down_another_one(*, hang: bool) -> None:
    alone = storms.poison(60, 1, 0, Account(1), hang=hang)
    beside = storms.poison(60, 1, 20, Account(1), hang=hang)
    assert beside.good == 60
    assert beside.deaths >= 3
    assert beside.seconds <= 1.1 * alone.seconds


def test_a_stack_that_kills_the_function_does_not_slow_down_those_that_share_a_batch_with_it() -> None:
    alone = storms.poison(60, 3, 0, Account(1, mixing=True), hang=False)
    beside = storms.poison(60, 3, 20, Account(1, mixing=True), hang=False)
    assert beside.good == 60
    assert beside.seconds <= 1.2 * alone.seconds
