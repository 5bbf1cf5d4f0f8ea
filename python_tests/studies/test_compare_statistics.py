"""Compares the statistics of `trb compare` with answers known from theory, tables or brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from trbext.evaluation.statistics import holm
from trbext.studies.compare.contrasts import contrasts, interval, paired, seeds_needed, sign_flip_p, smallest_p
from trbext.studies.compare.views import area, at_cost, best, final

NAN = float("nan")


def test_views_of_a_curve() -> None:
    step, value = np.array([0.0, 10, 20, 40]), np.array([0.0, 0.5, 0.9, 0.7])
    assert final(value, 2) == pytest.approx(0.8)
    assert best(value, "higher") == 2
    assert best(value, "lower") == 0
    assert best(np.array([NAN, 0.3, 0.3]), "higher") == 1
    assert area(step, value) == pytest.approx((2.5 + 7.0 + 16.0) / 40)
    assert area(step, np.full(4, 0.3)) == pytest.approx(0.3)
    cost = np.array([0.0, 100, 200, 400])
    assert at_cost(cost, value, 150) == pytest.approx(0.7)
    assert at_cost(cost, value, 400) == pytest.approx(0.7)
    assert np.isnan(at_cost(cost, value, 401))
    assert np.isnan(at_cost(np.zeros(4), value, 0))  # the tokens of a teacher on a server are not counted


def test_differences_are_taken_within_seeds_and_leave_out_what_is_not_a_number() -> None:
    values = {("a", 1): 1.0, ("a", 2): 2.0, ("a", 3): NAN, ("a", 4): 5.0, ("b", 2): 0.5, ("b", 1): 3.0, ("b", 3): 0.0}
    assert paired(values, "a", "b").tolist() == [-2.0, 1.5]


@pytest.mark.parametrize("differences", [[1.0, 2.0, -0.5, 0.25], [0.0, 0.0, 1.0], [0.5] * 6, [1.0, -1.0], [3.0], [0.0]])
def test_sign_flip_p_is_the_share_of_sign_patterns_at_least_as_far_from_0(differences: list[float]) -> None:
    observed = abs(np.mean(differences))
    flips = [abs(np.mean(np.array(s) * differences)) for s in itertools.product((1, -1), repeat=len(differences))]
    assert sign_flip_p(np.array(differences)) == pytest.approx(np.mean(np.array(flips) >= observed - 1e-12))


def test_beyond_16_seeds_sign_flip_p_is_estimated_close_to_the_exact_one() -> None:
    differences = np.array([1.0] * 13 + [-1.0] * 7)  # exact: P(|Binomial(20, 1/2) - 10| >= 3)
    assert sign_flip_p(differences) == pytest.approx(0.26318, abs=0.01)


def test_holm_against_a_worked_example() -> None:
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_interval_is_that_of_the_mean() -> None:
    rng = np.random.default_rng(0)
    many = rng.normal(3.0, 2.0, 400)
    low, high = interval(many)
    assert low == pytest.approx(many.mean() - 1.96 * many.std() / 20, abs=0.02)
    assert high == pytest.approx(many.mean() + 1.96 * many.std() / 20, abs=0.02)
    assert interval(many) == (low, high)  # the same resamples each time
    assert interval(many + 1) == pytest.approx((low + 1, high + 1))
    assert interval(np.array([0.25, 0.25, 0.25])) == (0.25, 0.25)
    assert np.isnan(interval(np.array([0.25]))).all()
    assert np.isfinite(interval(np.array([0.0, 0.0, 0.0, 1.0]))).all()


@pytest.mark.parametrize(("seeds", "stated"), [(5, 0.85), (8, 0.89), (10, 0.91)])
def test_the_interval_covers_what_the_page_says_it_does(seeds: int, stated: float) -> None:
    rng = np.random.default_rng(seeds)
    intervals = [interval(rng.normal(size=seeds)) for _ in range(700)]
    covered = np.mean([low <= 0 <= high for low, high in intervals])
    assert abs(covered - stated) < 3 * np.sqrt(stated * (1 - stated) / 700)


def test_a_difference_is_resolved_only_if_corrected_p_and_interval_agree() -> None:
    rng = np.random.default_rng(2)
    values = {}
    for seed in range(10):
        common = rng.normal(0, 5)  # seeds differ far more than runs: only pairing can detect the effect
        values["reference", seed] = common
        values["better", seed] = common + 1 + 0.1 * rng.normal()
        values["same", seed] = common + rng.normal()
        values["once", seed] = common + (1.0 if seed == 0 else 0.0)
    found = {c.run: c for c in contrasts(values, [(run, "reference") for run in ("better", "same", "once")])}
    assert found["better"].resolved
    assert found["better"].p == pytest.approx(2 / 1024)
    assert found["better"].p_holm == pytest.approx(6 / 1024)
    assert found["better"].low < 1 < found["better"].high
    assert not found["same"].resolved
    assert not found["once"].resolved
    assert all(c.n == 10 for c in found.values())
    reverse = contrasts(values, [("reference", "better")])[0]
    assert (reverse.mean, reverse.low) == pytest.approx((-found["better"].mean, -found["better"].high), abs=0.01)


def test_under_no_difference_false_findings_are_as_rare_as_stated() -> None:
    rng = np.random.default_rng(3)
    pairs = [(run, "reference") for run in "abc"]
    false = 0
    for _ in range(150):
        values = {(run, seed): rng.normal() for run in ("reference", *"abc") for seed in range(8)}
        false += any(c.resolved for c in contrasts(values, pairs))
    assert false / 150 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)


def test_how_many_seeds_it_takes_to_resolve_anything() -> None:
    assert smallest_p(8, 8) == pytest.approx(0.0625)
    assert seeds_needed(8) == 9
    assert seeds_needed(1) == 6
    assert smallest_p(2, 50) == 1.0
