"""Tests policies that remember a rollout: the law of completions against an automaton of plain Python, and refusals."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.rollout.policy_cases import p_value
from python_tests.rollout.rollout_cases import assert_same, left_padded
from python_tests.rollout.test_policies_in_rollouts import ALIGNMENT, PROMPTS, pair, roll
from trbext.results import Sample
from trbext.rollout import Memory, Policy, TrustRegion, draw_from
from trbext.rollout.policies_with_memory import Relay, Switching
from trbext.rollout.policy_methods import check_policy_methods

LENGTH = 4
# (state, log pi_S [V], log pi_T [V]) -> whether the teacher writes, and (token) -> (next state, whether the row ends)
Turn = tuple[bool, Callable[[int], tuple[Any, bool]]]
Automaton = Callable[[Any, Tensor, Tensor], Turn]


def relay(words: list[int] | None, k: int, m: int, length: int, boundary: list[int] | None) -> tuple[Any, Automaton]:
    """The rule of Relay in plain Python. The state is (legs begun, units left of the present leg)."""

    def turn(state: tuple[int, int], student: Tensor, teacher: Tensor) -> Turn:
        begun, left = state
        best, likely = int(teacher.argmax()), student.sort(descending=True).indices[:k].tolist()
        alien = best not in likely if words is None else best in words and not set(words) & set(likely)
        starts = left == 0 and begun < m and alien
        of_teacher = starts or left > 0

        def after(token: int) -> tuple[tuple[int, int], bool]:
            if starts:
                now = (begun + 1, length)
            else:
                now = (begun, left - (left > 0 and (boundary is None or token in boundary)))
            return now, of_teacher and now == (m, 0)

        return of_teacher, after

    return (0, 0), turn


def switching(turn_tokens: int, over: float, allowed: float, back: float, near: float) -> tuple[Any, Automaton]:
    """The rule of Switching in plain Python. The state is (teacher writes, log-ratios of the turn, evidence)."""

    def turn(state: tuple[bool, tuple[float, ...], float], student: Tensor, teacher: Tensor) -> Turn:
        of_teacher, ratios, evidence = state

        def after(token: int) -> tuple[tuple[bool, tuple[float, ...], float], bool]:
            drift = float(student[token] - teacher[token])
            now = (*ratios, -drift if of_teacher else drift)
            if len(now) < turn_tokens:
                return (of_teacher, now, evidence), False
            mean = sum(now) / turn_tokens
            weighed = max(0.0, evidence + (near - mean if of_teacher else mean - allowed))
            changes = weighed > (back if of_teacher else over)
            return (of_teacher != changes, (), 0.0 if changes else weighed), False

        return of_teacher, after

    return (False, (), 0.0), turn


CASES: dict[str, tuple[Policy, tuple[Any, Automaton]]] = {
    "any token, one leg of one token": (Relay(None, 3, 1, 0), relay(None, 3, 1, 0, None)),
    "any token, legs of two tokens": (Relay(None, 3, 2, 1), relay(None, 3, 2, 1, None)),
    "any token, a leg to a boundary": (Relay(None, 3, 2, 1, [0, 5]), relay(None, 3, 2, 1, [0, 5])),
    "words": (Relay([0, 5], 2, 2, 0), relay([0, 5], 2, 2, 0, None)),
    "words, a leg to a boundary": (Relay([0, 1], 1, 2, 1, [3, 0]), relay([0, 1], 1, 2, 1, [3, 0])),
    "turns of a token": (Switching(1, 0.5, 0.1, 0.1, 0.4), switching(1, 0.5, 0.1, 0.1, 0.4)),
    "turns of two tokens": (Switching(2, 0.2, 0.1, 0.0, 2.0), switching(2, 0.2, 0.1, 0.0, 2.0)),
}
every_case = pytest.mark.parametrize("name", CASES)


def law_of(models: Any, prompt: list[int], rule: tuple[Any, Automaton]) -> tuple[dict[Any, float], dict[Any, int]]:
    """Computes P(completion), of completions that also end by the policy, and how many tokens of each the teacher
    wrote."""
    begin, turn = rule
    alive: dict[tuple[int, ...], tuple[float, Any, int]] = {(): (1.0, begin, 0)}
    law, written = {}, {}
    for step in range(LENGTH):
        if not alive:
            break
        prefixes = torch.tensor([[*prompt, *completion] for completion in alive])
        with torch.no_grad():
            a, b = (ALIGNMENT.canonical(model(prefixes).logits[:, -1].double()).log_softmax(-1) for model in models)
        children = {}
        for row, (completion, (probability, state, of_teacher)) in enumerate(alive.items()):
            teacher, after = turn(state, a[row], b[row])
            mu = (b if teacher else a)[row].exp()
            for token in range(ALIGNMENT.width):
                if mu[token] == 0:
                    continue
                now, ends = after(token)
                child = (probability * float(mu[token]), now, of_teacher + teacher)
                if ends or token == ALIGNMENT.stop or step == LENGTH - 1:
                    law[(*completion, token)], written[(*completion, token)] = child[0], child[2]
                else:
                    children[(*completion, token)] = child
        alive = children
    return law, written


@every_case
def test_completions_follow_the_law_of_the_automaton(name: str) -> None:
    policy, rule = CASES[name]
    models, count = pair(), 8_000
    prompts = tuple(part.repeat_interleave(count, 0) for part in PROMPTS)
    rollout = roll(policy, prompts, models=models, max_new_tokens=LENGTH)
    found = [law_of(models, prompt, rule) for prompt in ([3, 5], [1, 3, 3, 5])]
    assert all(math.isclose(sum(law.values()), 1, rel_tol=1e-6) for law, _ in found)
    shares = [sum(law[c] * written[c] for c in law) / sum(law[c] * len(c) for c in law) for law, written in found]
    assert 0 < max(shares) < 1  # both models write
    halves = (slice(count), slice(count, None))
    assert min(p_value(law, rollout, rows) for (law, _), rows in zip(found, halves, strict=True)) > 1e-4
    for row in (*range(40), *range(count, count + 40)):
        law, written = found[row // count]
        completion = tuple(rollout.tokens[row, : rollout.lengths[row]].tolist())
        assert float(rollout.log_prob[row].sum()) == pytest.approx(math.log(law[completion]), abs=1e-3)
        assert int((rollout.beta[row] == 1).sum()) == written[completion]
        assert bool(rollout.finished[row]) == (completion[-1] == ALIGNMENT.stop)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("any token, legs of two tokens", relay(None, 2, 2, 1, None)),
        ("any token, legs of two tokens", relay(None, 3, 1, 1, None)),
        ("any token, legs of two tokens", relay(None, 3, 2, 0, None)),
        ("words, a leg to a boundary", relay([0, 1], 1, 2, 1, None)),
        ("turns of two tokens", switching(1, 0.2, 0.1, 0.0, 2.0)),
        ("turns of a token", switching(1, 0.5, 0.1, 0.1, 2.0)),
    ],
)
def test_the_law_test_sees_another_rule(name: str, wrong: tuple[Any, Automaton]) -> None:
    models, count = pair(), 8_000
    prompts = tuple(part.repeat_interleave(count, 0) for part in PROMPTS)
    rollout = roll(CASES[name][0], prompts, models=models, max_new_tokens=LENGTH)
    halves = zip(([3, 5], [1, 3, 3, 5]), (slice(count), slice(count, None)), strict=True)
    assert min(p_value(law_of(models, prompt, wrong)[0], rollout, rows) for prompt, rows in halves) < 1e-6


@every_case
def test_a_row_does_not_depend_on_when_others_leave(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = importlib.import_module("trbext.rollout.lockstep")
    prompts, found = left_padded([3, 4, 5], [1], [3, 5], [5, 5, 3]), []
    for gap in (1, 1000):
        monkeypatch.setattr(loop, "next_host_read", lambda generated, gap=gap: generated + gap)
        found.append(roll(CASES[name][0], prompts, max_new_tokens=30))
    assert found[0].lengths.min() < found[0].lengths.max()
    assert_same(*found, tolerance=1e-5)


def test_a_relay_ends_with_its_last_leg_and_is_not_finished() -> None:
    prompts = tuple(part[:1].repeat_interleave(400, 0) for part in PROMPTS)
    rollout = roll(Relay(None, 3, 2, 1), prompts, max_new_tokens=20)
    cut = ~rollout.finished & (rollout.lengths < 20)
    assert int(cut.sum()) > 20
    legs = (rollout.beta == 1) & rollout.mask
    begun = (legs & ~torch.nn.functional.pad(legs[:, :-1], (1, 0))).sum(1)
    assert (legs.sum(1)[cut] == 4).all()  # two legs of two tokens each
    assert (begun[cut] <= 2).all()
    last = rollout.lengths[cut] - 1
    assert legs[cut].gather(1, last[:, None]).all()


class NeverTwice(Policy):
    """The student without the token before: a user's policy with a memory."""

    def begin(self, rows: int, device: torch.device) -> Memory:
        return Memory({"last": torch.full((rows,), -1, device=device)})

    def draw_after(self, memory: Memory, step: int, *given: Any) -> tuple[Sample, Memory]:
        student_logits, teacher_logits, uniforms, temperature = given
        vocabulary = torch.arange(student_logits.shape[1], device=student_logits.device)
        same = vocabulary == memory.of_rows["last"][:, None]
        behavior = (student_logits / temperature).masked_fill(same, -torch.inf)
        drawn = draw_from(behavior, student_logits, teacher_logits, uniforms[0], temperature)
        return drawn, Memory({"last": drawn.token})

    def needs_teacher(self, step: int) -> bool:
        return False


def test_a_policy_of_a_user_remembers_the_token_before() -> None:
    check_policy_methods("NeverTwice", NeverTwice())
    models, count = pair(), 8_000
    prompts = tuple(part[:1].repeat_interleave(count, 0) for part in PROMPTS)
    rollout = roll(NeverTwice(), prompts, models=models, max_new_tokens=LENGTH)
    alive, law = {(): 1.0}, {}
    for step in range(LENGTH):
        prefixes = torch.tensor([[3, 5, *completion] for completion in alive])
        with torch.no_grad():
            p = ALIGNMENT.canonical(models[0](prefixes).logits[:, -1].double()).softmax(-1)
        children = {}
        for row, (completion, probability) in enumerate(alive.items()):
            others = p[row].clone()
            others[list(completion[-1:])] = 0
            for token in range(ALIGNMENT.width):
                ends = token == ALIGNMENT.stop or step == LENGTH - 1
                (law if ends else children)[(*completion, token)] = probability * float(others[token] / others.sum())
        alive = {completion: q for completion, q in children.items() if q > 0}
    assert p_value({c: q for c, q in law.items() if q > 0}, rollout, slice(None)) > 1e-4


def test_policies_without_a_memory_begin_with_none() -> None:
    assert TrustRegion(0.1).begin(3, torch.device("cpu")) is None


def test_arguments_out_of_range_are_refused() -> None:
    for make, words in (
        (lambda: Relay(None, top_k=0), "top_k must be at least 1, got 0"),
        (lambda: Relay(None, legs=0), "legs must be at least 1, got 0"),
        (lambda: Relay(None, leg_length=-1), "leg_length must be at least 0, got -1"),
        (lambda: Relay(None, legs=1.5), r"legs must be a whole number, got 1\.5"),  # type: ignore[arg-type]
        (lambda: Switching(2.5, 1, 1, 1, 1), r"turn must be a whole number, got 2\.5"),  # type: ignore[arg-type]
        (lambda: Switching(0, 1, 1, 1, 1), "turn must be at least 1 token, got 0"),
        (lambda: Switching(1, -1, 1, 1, 1), "drift_threshold must be a finite number of nats >= 0, got -1"),
        (lambda: Relay(["Wait"]), "each id of words must be a whole number, got 'Wait'"),  # type: ignore[list-item]
        (lambda: Relay([1], boundary=[-1]), "each id of boundary must be at least 0, got -1"),
        (lambda: Switching(4, "1", 0, 0, 0), "drift_threshold must be a finite number .* got '1'"),  # type: ignore[arg-type]
        (lambda: Switching(1, 1, 1, 1, math.inf), "recovery_allowance must be a finite number of nats >= 0, got inf"),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def test_a_policy_with_half_a_memory_is_refused() -> None:
    class OnlyBegins(Policy):
        def begin(self, rows: int, device: torch.device) -> Memory:
            return Memory({})

        def draw(self, *given: Any) -> Any:
            raise AssertionError

    class OnlyRemembers(NeverTwice):
        begin = Policy.begin  # type: ignore[assignment]

    for kind in (OnlyBegins, OnlyRemembers):
        with pytest.raises(ValueError, match=r"must define begin.* and draw_after.*, both or none"):
            check_policy_methods("X", kind())

    class Deaf(NeverTwice):
        def begin(self) -> Memory:  # type: ignore[override]
            return Memory({})

    with pytest.raises(ValueError, match="begin of the rollout policy X"):
        check_policy_methods("X", Deaf())
