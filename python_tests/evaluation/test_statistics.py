"""Tests the figures of an evaluation against enumeration and known laws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from trbext.evaluation.outcome import Outcome, majority
from trbext.evaluation.report import Report, sentences, tokens_per_second
from trbext.evaluation.statistics import differences, estimate, honest_choice, paper_choice


def outcome(probabilities: np.ndarray, samples: int, seed: int) -> Outcome:
    rng = np.random.default_rng(seed)
    correct = rng.random((len(probabilities), samples)) < probabilities[:, None]
    tokens = rng.integers(1, 50, size=correct.shape)
    answers = [[None if right else str(number % 3) for number, right in enumerate(row)] for row in correct]
    return Outcome(correct, answers, tokens, tokens < 49, 0, None, {"a": (10.0, 1000 + seed)})


def test_a_majority_vote_is_the_most_frequent_answer_and_a_tie_is_drawn_by_lot() -> None:
    right = {"7": True}
    for answers in itertools.product(["7", "8", "9", None], repeat=4):
        counts = {answer: answers.count(answer) for answer in answers if answer is not None}
        leaders = [answer for answer, count in counts.items() if count == max(counts.values())]
        expected = leaders.count("7") / len(leaders) if leaders else 0.0
        assert majority(answers, [right.get(str(a), False) for a in answers]) == pytest.approx(expected)


def test_intervals_cover_the_mean_over_prompts_in_95_of_100_evaluations() -> None:
    rng, covered, runs = np.random.default_rng(5), 0, 200
    for _ in range(runs):
        values = [rng.beta(2, 3, size=60), rng.beta(3, 2, size=90)]
        found = estimate(values)
        assert found.low < found.value < found.high
        covered += found.low <= 0.5 <= found.high
    assert 0.89 <= covered / runs <= 0.99


def test_equal_checkpoints_seldom_differ_and_unlike_ones_do() -> None:
    rng, found = np.random.default_rng(1), 0
    for run in range(40):
        values = {name: [rng.normal(0.5, 0.1, size=30)] for name in "abc"}
        found += any(each.resolved for each in differences(values))
        if run == 0:
            values["d"] = [values["a"][0] + 0.2]
            assert {(d.first, d.second) for d in differences(values) if d.resolved} >= {("a", "d"), ("b", "d")}
    assert found <= 6  # 2 of 40 on average


def test_the_choice_on_one_half_is_not_flattered_by_the_other() -> None:
    """Twenty checkpoints of pass@1 = 0.5: the best of all seems better, the chosen one on the other half does not."""
    paper, honest, rng = [], [], np.random.default_rng(2)
    for _ in range(20):
        correct = {f"c-{n}": rng.random((40, 4)) < 0.5 for n in range(20)}
        shares = [
            {name: [each[:, start::step].mean(1)] for name, each in correct.items()}
            for start, step in ((0, 1), (0, 2), (1, 2))
        ]
        paper.append(paper_choice(shares[0]).pass_at_1.value)
        honest.append(honest_choice(*shares[1:]).pass_at_1.value)
    assert np.mean(paper) > 0.56
    assert abs(np.mean(honest) - 0.5) < 0.05


def test_a_report_has_the_values_of_each_prompt_and_says_who_is_better() -> None:
    weak, strong = (outcome(np.full(50, p), 8, seed) for p, seed in ((0.2, 1), (0.8, 2)))
    report = Report.of({"runs/checkpoint-5": {"B": weak}, "runs/checkpoint-10": {"B": strong}}, {})
    values = report.checkpoints["runs/checkpoint-5"].benchmarks["B"]
    assert list(values) == ["pass@1", "pass@4", "pass@8", "maj@8", "length", "cut"]
    assert values["pass@8"].value == pytest.approx(weak.correct.any(1).mean())
    assert values["length"].value == pytest.approx(weak.tokens.mean())
    assert values["cut"].value == pytest.approx((~weak.finished).mean())
    assert report.checkpoints["runs/checkpoint-5"].length_p90["B"] == np.percentile(weak.tokens, 90)
    assert tokens_per_second({"A": weak, "B": strong}) == pytest.approx(1002 / 10)
    words = sentences(report)
    assert words[0].startswith("best by the suite mean: runs/checkpoint-10, ")
    assert words[1].startswith("chosen by the even samples: runs/checkpoint-10, ")
    assert words[2].startswith("runs/checkpoint-10 is better than runs/checkpoint-5 by ")
