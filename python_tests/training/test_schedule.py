"""Tests `trbext.training.schedule`: KL budgets as functions of the optimizer step."""

from __future__ import annotations

import math

import pytest

from trbext.training.schedule import KINDS, Schedule


@pytest.mark.parametrize(
    ("kind", "budgets"),
    [
        ("linear", {0: 0.02, 1: 0.018, 9: 0.002, 10: 0.0, 11: 0.0, 10**6: 0.0}),
        ("cosine", {0: 0.02, 5: 0.01, 9: 0.01 * (1 + math.cos(0.9 * math.pi)), 10: 0.0, 11: 0.0, 10**6: 0.0}),
        ("constant", {0: 0.02, 9: 0.02, 10: 0.02, 11: 0.02, 10**6: 0.02}),
    ],
)
def test_budget_at_the_first_step_and_around_the_end_of_the_warmup(kind: str, budgets: dict[int, float]) -> None:
    schedule = Schedule.make(kind, 0.02, 10)
    for step, epsilon in budgets.items():
        assert schedule(step) == pytest.approx(epsilon, rel=1e-12, abs=0)


def test_piecewise_is_linear_between_its_points_and_constant_outside() -> None:
    schedule = Schedule.make("piecewise", 9.9, 7, points=[[2, 0.1], [4, 0.3], [8, 0.0]])
    expected = [0.1, 0.1, 0.1, 0.2, 0.3, 0.225, 0.15, 0.075, 0.0, 0.0]
    assert [schedule(step) for step in range(10)] == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert Schedule("piecewise", points=((3, 0.5),))(0) == Schedule("piecewise", points=((3, 0.5),))(9) == 0.5


def test_piecewise_through_the_ends_of_the_linear_schedule_is_the_linear_schedule() -> None:
    linear, piecewise = Schedule("linear", 0.04, 25), Schedule("piecewise", points=((0, 0.04), (25, 0.0)))
    for step in range(30):
        assert piecewise(step) == pytest.approx(linear(step), rel=1e-12, abs=1e-17)


def test_default_is_the_papers_linear_schedule() -> None:
    assert Schedule() == Schedule.make("linear", 0.02, 50)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_no_warmup_means_no_budget_and_an_infinite_one_stays_infinite(kind: str) -> None:
    assert Schedule(kind, 0.02, 0)(0) == 0.0
    assert [Schedule(kind, math.inf, 2)(step) for step in range(3)] == [math.inf, math.inf, 0.0]


@pytest.mark.parametrize("kind", KINDS)
def test_budget_depends_on_only_the_step(kind: str) -> None:
    schedule = Schedule(kind, 0.02, 10, ((0, 0.1), (9, 0.2)) if kind == "piecewise" else None)
    forward = [schedule(step) for step in range(20)]
    assert [schedule(step) for step in reversed(range(20))] == forward[::-1]
    assert hash(schedule) == hash(Schedule(kind, 0.02, 10, schedule.points))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("linear", -0.01, 10), "epsilon must be .* got -0.01"),
        (("linear", math.nan, 10), "epsilon must be .* got nan"),
        (("linear", 0.02, -1), "warmup_steps must be >= 0, got -1"),
        (("exponential", 0.02, 10), "linear, cosine, constant, piecewise, got 'exponential'"),
        (("piecewise", 0.02, 10), "at least one point"),
        (("piecewise", 0.02, 10, []), "at least one point"),
        (("piecewise", 0.02, 10, [(5, 0.1), (3, 0.0)]), "must increase, got 5 before 3"),
        (("piecewise", 0.02, 10, [(5, 0.1), (5, 0.0)]), "must increase, got 5 before 5"),
        (("piecewise", 0.02, 10, [(0, 0.1), (5, -0.1)]), "got -0.1 at step 5"),
        (("piecewise", 0.02, 10, [(0, math.inf), (5, 0.1)]), "finite, got inf at step 0"),
        (("piecewise", 0.02, 10, [(-1, 0.1)]), "must be >= 0, got -1"),
        (("piecewise", 0.02, 10, [(0.5, 0.1)]), r"points must be pairs \(whole step, epsilon\), got \(0.5, 0.1\)"),
        (("piecewise", 0.02, 10, [(0, 0.1, 3)]), "pair"),
        (("piecewise", 0.02, 10, 5), "points must be pairs .* got 5"),
        (("piecewise", 0.02, 10, [3]), "points must be pairs .* got 3"),
        (("piecewise", 0.02, 10, [["a", 0.1]]), "points must be pairs .* got .'a', 0.1.$"),
        (("piecewise", 0.02, 10, [[0, None]]), "points must be pairs .* got .0, None.$"),
        (("linear", "abc", 10), "epsilon must be .* got abc"),
        (("cosine", 0.02, 10, [(0, 0.1)]), 'belong only to the schedule "piecewise"'),
    ],
)
def test_bad_arguments_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule.make(*arguments)


def test_steps_are_whole_and_not_negative() -> None:
    with pytest.raises(ValueError, match="step must be >= 0, got -1"):
        Schedule()(-1)
    for step in (0.5, True, None):
        with pytest.raises(TypeError, match="step must be an int"):
            Schedule()(step)
    with pytest.raises(TypeError, match="warmup_steps must be an int"):
        Schedule.make("linear", 0.02, 0.5)
