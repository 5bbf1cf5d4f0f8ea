"""Tests the choice of the draft length: best if the costs are known, close to it while they are measured."""

from __future__ import annotations

import json
import math

import pytest
import torch

from trbext.rollout import DraftLength


class Machine:
    """A model of time: seconds of a student step and of a teacher pass, and the share of drafts that are accepted."""

    def __init__(self, student: float, first: float, each: float, acceptance: float) -> None:
        self.student, self.first, self.each, self.acceptance = student, first, each, acceptance

    def seconds(self, k: int) -> float:
        return (k + 1) * self.student + self.first + k * self.each

    def emitted(self, k: int) -> float:
        return float(sum(self.acceptance**j for j in range(k + 1)))

    def rate(self, k: int) -> float:
        return self.emitted(k) / self.seconds(k)

    def decode(self, lengths: DraftLength, tokens: int, rows: int = 4, epsilon: float = 0.05) -> tuple[float, int]:
        """Returns (seconds, last k) of a rollout of so many tokens."""
        lengths.begin(epsilon)
        done, spent, k = 0.0, 0.0, 0
        while done < tokens:
            k = lengths.choose(rows, math.ceil(tokens - done))
            lengths.saw_costs(rows, k, (k + 1) * self.student, self.first + k * self.each)
            emitted = self.emitted(k)
            lengths.saw_drafts(round(100 * (emitted - 1 + self.acceptance ** (k + 1))), round(100 * emitted))
            done, spent = done + emitted, spent + self.seconds(k)
        return spent, k


BOUND_BY_MEMORY = Machine(student=0.1, first=1.0, each=0.02, acceptance=0.9)
BOUND_BY_ARITHMETIC = Machine(student=0.1, first=1.0, each=1.0, acceptance=0.9)
IN_BETWEEN = Machine(student=0.1, first=1.0, each=0.4, acceptance=0.8)
HARDLY_ANY_STAND = Machine(student=0.3, first=1.0, each=0.1, acceptance=0.2)


@pytest.mark.parametrize("machine", [BOUND_BY_MEMORY, BOUND_BY_ARITHMETIC, IN_BETWEEN, HARDLY_ANY_STAND])
def test_it_ends_within_three_percent_of_the_best_fixed_length(machine: Machine) -> None:
    lengths = DraftLength()
    machine.decode(lengths, 300)
    spent, _ = machine.decode(lengths, 300)
    best = max(machine.rate(k) for k in range(16))
    assert 300 / spent > 0.97 * best
    assert 300 / spent > 0.97 * machine.rate(0)


def test_measuring_costs_little_even_in_a_first_short_rollout() -> None:
    for machine in (BOUND_BY_ARITHMETIC, HARDLY_ANY_STAND):
        spent, k = machine.decode(DraftLength(), 64)
        assert k == 0
        assert 64 / spent > 0.95 * machine.rate(0)


def test_nothing_is_tried_if_drafting_cannot_pay_whatever_a_pass_costs() -> None:
    """Models a student of 0.8 of the teacher's cost, half of whose drafts are accepted.

    If a pass over two tokens were as cheap as over one, drafting would gain 1.5 * 1.8 / 2.6 - 1 = 4 %.
    """
    lengths = DraftLength()
    lengths.begin(1.0)

    def next_choice(stood: int, tested: int) -> int:
        k = lengths.choose(1, 1000)
        lengths.saw_costs(1, k, 0.8 * (k + 1), 1.0)
        lengths.saw_drafts(stood, tested)
        return k

    assert [next_choice(1, 2) for _ in range(50)] == [0] * 50
    assert not lengths.measuring(1)
    assert max(next_choice(95, 100) for _ in range(10)) >= 3  # until more of them are accepted


def test_long_drafts_are_reached_step_by_step() -> None:
    lengths = DraftLength()
    lengths.begin(0.001)
    chosen = []
    for _ in range(12):
        k = lengths.choose(1, 1000)
        chosen.append(k)
        lengths.saw_costs(1, k, 0.01 * (k + 1), 1.0 + 0.001 * k)
        lengths.saw_drafts(99 * (k + 1), 100 * (k + 1))
    assert chosen[:8] == [0, 0, 3, 3, 7, 7, 15, 15]
    assert all(chosen[i] <= 2 * max(chosen[:i]) + 1 for i in range(3, 12))
    assert chosen[-1] == 15


def test_no_more_is_drafted_than_is_left_to_write() -> None:
    lengths = DraftLength()
    BOUND_BY_MEMORY.decode(lengths, 300)
    assert [lengths.choose(4, left) for left in (1, 2, 3)] == [0, 1, 2]


def test_batches_of_other_sizes_have_costs_of_their_own() -> None:
    lengths = DraftLength()
    BOUND_BY_ARITHMETIC.decode(lengths, 300, rows=32)
    BOUND_BY_MEMORY.decode(lengths, 300, rows=1)
    assert lengths.choose(1, 100) > 3
    BOUND_BY_ARITHMETIC.decode(lengths, 300, rows=17)
    assert lengths.choose(17, 100) == 0
    lengths.freeze()
    lengths.begin(0.05)
    assert lengths.choose(2, 100) > 3  # not measured: those of the nearest size, 1


def test_a_batch_of_a_quarter_measures_nothing_anew_and_one_much_smaller_does() -> None:
    lengths = DraftLength()
    BOUND_BY_MEMORY.decode(lengths, 300, rows=16)
    lengths.begin(0.05)
    assert lengths.choose(4, 100) > 3
    assert not lengths.measuring(4)
    assert lengths.choose(2, 100) == 0
    assert lengths.measuring(2)
    # In proportion: a smaller batch whose one-token pass is twice as fast is assumed to gain as much.
    lengths.saw_costs(8, 0, 0.05, 0.5)
    assert lengths.choose(8, 100) > 3


def test_two_tokens_that_cost_as_much_as_four_do_not_mislead() -> None:
    lengths = DraftLength()
    for _ in range(3):
        lengths.begin(0.05)
        for _ in range(12):
            k = lengths.choose(1, 1000)
            lengths.saw_costs(1, k, 0.1 * (k + 1), 1.0 if k == 0 else 1.9 + 0.02 * k)
            lengths.saw_drafts(9 * (k + 1), 10 * (k + 1))
    assert lengths.choose(1, 1000) >= 7


def test_the_first_expectation_is_the_gaussian_one() -> None:
    lengths = DraftLength()
    for epsilon, expected in ((0.0, 1.0), (0.05, 1 - math.sqrt(0.05 / math.pi)), (math.inf, 0.3)):
        lengths.begin(epsilon)
        assert lengths.acceptance == pytest.approx(expected)
    lengths.begin(torch.tensor([0.0, math.inf]))
    assert lengths.acceptance == pytest.approx(0.65)


def test_a_frozen_length_repeats_its_choices_after_a_save_and_measures_no_more() -> None:
    lengths = DraftLength()
    BOUND_BY_MEMORY.decode(lengths, 200)
    lengths.freeze()
    again = DraftLength()
    again.load_state(json.loads(json.dumps(lengths.state(), sort_keys=True)))
    assert again.frozen
    assert IN_BETWEEN.decode(lengths, 200) == IN_BETWEEN.decode(again, 200)
    assert lengths.state() == again.state()


def test_of_two_sizes_equally_near_the_same_one_counts_after_a_save() -> None:
    lengths = DraftLength()
    BOUND_BY_MEMORY.decode(lengths, 200, rows=16)
    BOUND_BY_ARITHMETIC.decode(lengths, 200, rows=4)
    lengths.freeze()
    again = DraftLength()
    again.load_state(json.loads(json.dumps(lengths.state(), sort_keys=True)))
    for each in (lengths, again):
        each.begin(0.05)
    assert lengths.choose(8, 100) == again.choose(8, 100)


def test_a_length_without_any_measurement_is_lockstep() -> None:
    lengths = DraftLength()
    lengths.freeze()
    lengths.begin(0.01)
    assert lengths.choose(8, 100) == 0
    assert not lengths.measuring(8)


def test_bad_bounds_are_named() -> None:
    with pytest.raises(ValueError, match="longest must be at least 1 draft, got 0"):
        DraftLength(longest=0)
    with pytest.raises(ValueError, match=r"longest must be a whole number, got 2\.5"):
        DraftLength(longest=2.5)  # type: ignore[arg-type]
