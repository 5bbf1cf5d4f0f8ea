"""Defines behavior policies mu, which write the prefixes: Trust-Region Behavior Blending and those it is compared with.

At each token of a rollout a `Policy` gets the logits of both models at n prefixes and uniform random numbers. It gives
one token per prefix, with its log-probability under mu and both models. Let a and b be the logits of student and
teacher over the aligned vocabulary (EOS ids merged, `trbext.vocab`), pi_S = softmax(a / T), pi_T = softmax(b / T), and
k the optimizer step:

    TrustRegion      mu ~ pi_S^(1-beta) pi_T^beta, the largest beta in [0, 1] with KL(mu || pi_S) <= epsilon_k
                     (arXiv 2605.31159). An annealed budget is TRB, a constant one the paper's fixed-epsilon blending,
                     0 vanilla on-policy distillation.
    Teacher          mu = pi_T for k < K or always: data of sequence-level KD (arXiv 1606.07947), new at each step;
                     with K steps, the rollouts of a supervised warmup.
    FixedBeta        mu ~ pi_S^(1-beta) pi_T^beta with the same beta at every prefix, whatever the KL.
    InterleavedTeacher   SKD (arXiv 2410.11325) with one token proposed at a time (its gamma = 1): x ~ pi_S is accepted
                     if it is among the teacher's K most probable tokens, else a fresh x ~ softmax(b / tau) replaces it.
    ArithmeticMixture    mu = alpha pi_T + (1 - alpha) pi_S (MiniLLM, arXiv 2306.08543).
    StudentTemperature   mu = softmax(a / (T tau_k)), tau_k linear from tau_0 to 1 at step K.
    LambdaCoin       GKD (arXiv 2306.13649): with probability lambda the student's rollout, else the teacher's.

For every policy, `log_prob` is the exact log mu of the token and `student_log_prob` is that of the student at T. A loss
over sampled tokens needs the weight exp(student_log_prob - log_prob).
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor

from ..limits import LARGEST_TEMPERATURE, LEAST_TEMPERATURE, is_epsilon, not_an_epsilon
from ..ops import sample
from ..results import Sample
from .policy import Policy, whole_number


def draw_from(
    behavior_logits: Tensor,
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    uniform: Tensor,
    temperature: float,
    *,
    token: Tensor | None = None,
    beta: float = math.nan,
) -> Sample:
    """Draws a token per row from a policy that is given by its logits, by the exact inverse of its distribution.

    Args:
        behavior_logits: [n, V] of mu itself, already at its temperature, such as log mu; any float dtype.
        student_logits: [n, V], as in `Policy.draw`.
        teacher_logits: [n, V] or None, as in `Policy.draw`.
        uniform: [n] float64 in [0, 1).
        temperature: At which the log-probabilities of both models are reported.
        token: [n] int64 or int32, drawn from mu in another way; None draws it here.
        beta: Is reported as it is.

    Returns:
        As `Policy.draw`.
    """
    behavior_logits = behavior_logits.float()  # the operators take no float64
    if token is None:
        token = sample(behavior_logits, behavior_logits, 0.0, uniform=uniform).token
    log_mu, log_student = behavior_logits.log_softmax(-1), log_probs(student_logits, temperature)
    mu = log_mu.exp()
    # Each term of sum mu log(mu / pi_S) - mu + pi_S is >= 0, up to rounding, which the clamp removes.
    excess = torch.where(mu > 0, mu * (log_mu - log_student - 1), 0.0) + log_student.exp()
    kl = excess.sum(-1).clamp(min=0.0)
    log_teacher = log_student if teacher_logits is None else log_probs(teacher_logits, temperature)
    token = token.long()
    at = token.clamp(min=0)[:, None]
    mu_at, student_at, teacher_at = (x.gather(-1, at)[:, 0] for x in (log_mu, log_student, log_teacher))
    return Sample(token, mu_at, student_at, teacher_at, torch.full_like(kl, beta), kl)


def log_probs(logits: Tensor, temperature: float) -> Tensor:
    """Returns log softmax(logits / temperature), [n, V] float32."""
    return (logits.float() / temperature).log_softmax(-1)


class TrustRegion(Policy):
    """The paper's blend within a KL budget, by the fused operator.

    Args:
        budget: epsilon in nats per token: a number, one per row of the batch [B] of any float dtype, or a function of
            the optimizer step such as a `trbext.training.schedule.Schedule`.
    """

    _part_of: tuple[TrustRegion, Tensor] | None = None  # the policy of the whole batch, and which rows this one has

    def __init__(self, budget: float | Tensor | Callable[[int], float | Tensor]) -> None:
        self._budget = budget

    def epsilon(self, step: int) -> float | Tensor:
        """Returns the KL budget in nats per token at optimizer step `step`, one for all rows or [B]."""
        return self._budget(step) if callable(self._budget) else self._budget

    def draw(
        self, step: int, student_logits: Tensor, teacher_logits: Tensor | None, uniforms: Tensor, temperature: float
    ) -> Sample:
        # Without a teacher the student takes both places: at epsilon = 0 the operator draws from it.
        teacher_logits = student_logits if teacher_logits is None else teacher_logits
        epsilon = self.epsilon(step)
        if isinstance(epsilon, Tensor):
            epsilon = epsilon.to(student_logits.device, torch.float32)
        return sample(student_logits, teacher_logits, epsilon, uniform=uniforms[0], temperature=temperature)

    def needs_teacher(self, step: int) -> bool:
        return not self.is_student(step)

    def is_student(self, step: int) -> bool:
        epsilon = self.epsilon(step)
        return not isinstance(epsilon, Tensor) and epsilon == 0

    def keep_rows(self, rows: Tensor) -> Policy:
        whole, index = (self, rows) if self._part_of is None else (self._part_of[0], self._part_of[1][rows])

        def epsilon(step: int) -> float | Tensor:
            budget = whole.epsilon(step)
            return budget.to(index.device)[index] if isinstance(budget, Tensor) else budget

        kept = copy.copy(self)
        kept._part_of = whole, index
        kept.epsilon = epsilon  # type: ignore[method-assign]  # a subclass may have an `epsilon` of its own
        return kept


STUDENT = TrustRegion(0.0)


def as_policy(policy: Policy | float) -> Policy:
    """Returns `policy`, or the TrustRegion of a constant KL budget in nats per token.

    Raises:
        ValueError: The budget is negative or NaN, or it is neither.
    """
    if isinstance(policy, Policy):
        return policy
    if not isinstance(policy, Real):
        raise ValueError(f"policy must be a trbext.rollout.Policy or a number, its KL budget, got {policy!r:.80}")
    if not is_epsilon(policy):
        raise ValueError(not_an_epsilon(policy))
    return TrustRegion(policy)


class Teacher(TrustRegion):
    """The teacher, on the student's support, for the first `steps` optimizer steps; then the student.

    It is an infinite budget: the operator gives the log-probabilities under all three in the same pass.

    Args:
        steps: None is always.

    Raises:
        ValueError: steps is no whole number from 0.
    """

    def __init__(self, steps: int | None = None) -> None:
        if steps is not None:
            whole_number("steps", steps, 0)
        super().__init__(lambda step: math.inf if steps is None or step < steps else 0.0)


class FixedBeta(Policy):
    """The geometric blend with the same beta at every prefix. Disjoint supports, which have no such mu, are a fault.

    Args:
        beta: 0 (the student) to 1 (the teacher).

    Raises:
        ValueError: beta is out of range.
    """

    def __init__(self, beta: float) -> None:
        self.beta = _in_range("beta", beta, 0, 1)

    def draw(
        self, step: int, student_logits: Tensor, teacher_logits: Tensor | None, uniforms: Tensor, temperature: float
    ) -> Sample:
        if teacher_logits is None:
            return STUDENT.draw(step, student_logits, None, uniforms, temperature)
        if self.beta == 1:  # the student's part would be 0 times a logit of -inf, which is NaN
            return Teacher().draw(step, student_logits, teacher_logits, uniforms, temperature)
        mixed = (1 - self.beta) * student_logits.float() + self.beta * teacher_logits.float()
        return draw_from(mixed / temperature, student_logits, teacher_logits, uniforms[0], temperature, beta=self.beta)

    def needs_teacher(self, step: int) -> bool:
        return self.beta > 0

    def is_student(self, step: int) -> bool:
        return self.beta == 0


class InterleavedTeacher(Policy):
    """SKD: mu(x) = pi_S(x) [x in top K of the teacher] + P_S(outside the top K) softmax(b / tau)(x).

    A token takes two uniform numbers: for the student's proposal, which is the one that vanilla OPD draws from the
    first, and for the replacement.

    Args:
        top_k: K >= 1. Of equally probable tokens the top K holds those that torch.topk picks, and no token that the
            teacher excludes.
        teacher_temperature: tau, from 1e-6 to 1e6, of the replacements only; the merged EOS counts as one token there.

    Raises:
        ValueError: An argument is out of range.
    """

    uniforms_per_token = 2

    def __init__(self, top_k: int, teacher_temperature: float = 1.0) -> None:
        self.top_k = whole_number("top_k", top_k, 1, " token")
        self.teacher_temperature = _temperature("teacher_temperature", teacher_temperature)

    def draw(
        self, step: int, student_logits: Tensor, teacher_logits: Tensor | None, uniforms: Tensor, temperature: float
    ) -> Sample:
        assert teacher_logits is not None
        tau = self.teacher_temperature
        proposed = sample(student_logits, student_logits, 0.0, uniform=uniforms[0], temperature=temperature).token
        replacement = sample(teacher_logits, teacher_logits, 0.0, uniform=uniforms[1], temperature=tau).token
        top = teacher_logits.topk(min(self.top_k, teacher_logits.shape[-1]))
        accepted = torch.zeros_like(teacher_logits, dtype=torch.bool).scatter(-1, top.indices, top.values > -torch.inf)
        keeps = accepted.gather(-1, proposed.clamp(min=0)[:, None])[:, 0]
        faulty = (proposed < 0) | (replacement < 0)
        token = torch.where(keeps, proposed, replacement).masked_fill(faulty, -1)

        log_student = log_probs(student_logits, temperature)
        log_outside = log_student.masked_fill(accepted, -torch.inf).logsumexp(-1, keepdim=True)
        log_mu = torch.logaddexp(
            log_student.masked_fill(~accepted, -torch.inf), log_outside + log_probs(teacher_logits, tau)
        )
        return draw_from(log_mu, student_logits, teacher_logits, uniforms[0], temperature, token=token)


class ArithmeticMixture(Policy):
    """The arithmetic mixture alpha pi_T + (1 - alpha) pi_S.

    Args:
        alpha: The teacher's share, 0 to 1.

    Raises:
        ValueError: alpha is out of range.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = _in_range("alpha", alpha, 0, 1)

    def draw(
        self, step: int, student_logits: Tensor, teacher_logits: Tensor | None, uniforms: Tensor, temperature: float
    ) -> Sample:
        if teacher_logits is None:
            return STUDENT.draw(step, student_logits, None, uniforms, temperature)
        of_teacher, of_student = (math.log(w) if w > 0 else -math.inf for w in (self.alpha, 1 - self.alpha))
        log_mu = torch.logaddexp(
            of_student + log_probs(student_logits, temperature), of_teacher + log_probs(teacher_logits, temperature)
        )
        return draw_from(log_mu, student_logits, teacher_logits, uniforms[0], temperature)

    def needs_teacher(self, step: int) -> bool:
        return self.alpha > 0

    def is_student(self, step: int) -> bool:
        return self.alpha == 0


class StudentTemperature(Policy):
    """The student at temperature T tau_k, with tau_k = tau_0 + (1 - tau_0) k / K for k < K, then 1.

    Args:
        start: tau_0, from 1e-6 to 1e6, a factor on the run's temperature.
        steps: K >= 0 optimizer steps.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, start: float, steps: int) -> None:
        self.start = _temperature("start", start)
        self.steps = whole_number("steps", steps, 0)

    def tau(self, step: int) -> float:
        """Returns the factor on the run's temperature at optimizer step `step`."""
        return self.start + (1 - self.start) * step / self.steps if step < self.steps else 1.0

    def draw(
        self, step: int, student_logits: Tensor, teacher_logits: Tensor | None, uniforms: Tensor, temperature: float
    ) -> Sample:
        if self.is_student(step):
            return STUDENT.draw(step, student_logits, None, uniforms, temperature)
        sharpened = student_logits.float() / (temperature * self.tau(step))
        return draw_from(sharpened, student_logits, None, uniforms[0], temperature)

    def needs_teacher(self, step: int) -> bool:
        return False

    def is_student(self, step: int) -> bool:
        return self.tau(step) == 1


class LambdaCoin(Policy):
    """GKD: the student's own rollout with probability lambda, else the teacher's.

    Args:
        student_share: lambda, 0 to 1.
        per: "batch" decides once per optimizer step, as a function of `seed` and the step on which all processes agree
            (the paper's algorithm). "sequence" decides for each rollout, and then needs the teacher at every step
            unless lambda is 1.
        seed: Of the decisions per batch.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, student_share: float, per: str = "batch", seed: int = 0) -> None:
        if per not in COINS:
            raise ValueError(f"per must be one of {', '.join(COINS)}, got {per!r}")
        self.student_share = _in_range("student_share", student_share, 0, 1)
        self.per = per
        self.seed = seed
        self.uniforms_per_row = int(per == "sequence")

    def draw(
        self, step: int, student_logits: Tensor, teacher_logits: Tensor | None, uniforms: Tensor, temperature: float
    ) -> Sample:
        budget = 0.0 if teacher_logits is None else self.budget(step, uniforms[-1])
        return TrustRegion(budget).draw(step, student_logits, teacher_logits, uniforms, temperature)

    def budget(self, step: int, coins: Tensor) -> float | Tensor:
        """Returns the KL budget that draws from the one or the other: 0 is the student, infinity the teacher.

        Args:
            step: Optimizer step, 0-based.
            coins: [n] uniform random numbers, one for each rollout, which only decisions per sequence read.

        Returns:
            One for all rollouts, or [n] float32.
        """
        if self.per == "sequence":
            return torch.where(coins < self.student_share, 0.0, math.inf).float()
        return 0.0 if self.is_student(step) else math.inf

    def needs_teacher(self, step: int) -> bool:
        return not self.is_student(step)

    def is_student(self, step: int) -> bool:
        if self.per == "sequence":
            return self.student_share == 1
        return random.Random(f"lambda {self.seed} {step}").random() < self.student_share


COINS = ("batch", "sequence")


def _in_range(name: str, value: float, low: float, high: float) -> float:
    if not (isinstance(value, Real) and low <= value <= high):
        raise ValueError(f"{name} must be a number with {low:g} <= {name} <= {high:g}, got {value!r:.80}")
    return value


def _temperature(name: str, value: float) -> float:
    """Returns `value` if it is a temperature that the operators accept, and raises ValueError if not."""
    return _in_range(name, value, LEAST_TEMPERATURE, LARGEST_TEMPERATURE)
