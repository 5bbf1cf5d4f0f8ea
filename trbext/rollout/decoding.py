"""Holds the arguments of one rollout, checked once, for every way of decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import InitVar, dataclass, field
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from .._operators.arguments import check_temperature
from ..models.eval_mode import evaluating
from ..models.model_check import probe_models
from ..models.next_token import TopKTeacher, is_transformers
from ..teachers.mixture import Mixture
from ..vocab import Alignment
from .caches import named_models
from .checks import check_epsilon, check_ids, check_models, check_not_itself, check_prompts, check_token_ids
from .hidden_states import HiddenStates
from .policies import TrustRegion
from .policy import Policy, whole_number


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """The inputs and settings of one rollout. Arguments and errors are those of `lockstep`."""

    student: Any  # what `Model` of lockstep.py says
    teacher: Any  # None from here on if the policy does not need it at this optimizer step
    prompts: Tensor  # [B, P] int64, left padded, without the columns that are padding in every row
    prompt_mask: Tensor  # [B, P] int64
    epsilon: InitVar[float | Tensor | None]
    given_policy: InitVar[Policy | None]
    optimizer_step: int
    max_new_tokens: int
    alignment: Alignment
    pad_token_id: int
    temperature: float
    generator: torch.Generator | Sequence[torch.Generator] | None
    teacher_states_limit: float
    check: InitVar[bool]
    lengths: Tensor = field(init=False)  # [B] int64 on the CPU, tokens of each prompt
    policy: Policy = field(init=False)

    def __post_init__(self, epsilon: float | Tensor | None, given_policy: Policy | None, check: bool) -> None:
        self._check_types()
        # 1. Make the policy; an epsilon stands for TrustRegion(epsilon).
        if (epsilon is None) == (given_policy is None):
            raise ValueError(
                f"give epsilon or policy, one of the two, got epsilon = {epsilon} and policy = {given_policy}"
            )
        if isinstance(epsilon, Tensor):
            given_policy = TrustRegion(epsilon.detach().to(self.prompts.device, torch.float32))
        elif epsilon is not None:
            given_policy = TrustRegion(epsilon)
        if not isinstance(given_policy, Policy):
            raise ValueError(f"policy must be a trbext.rollout.Policy, got {given_policy!r:.80}: give epsilon")
        self._set("policy", given_policy)
        budget = self.budget
        if budget is not None:
            check_epsilon(budget, self.prompts)
        check_temperature(self.temperature)
        # 2. The teacher, which stays out of everything below if it is not needed.
        if not given_policy.needs_teacher(self.optimizer_step):
            self._set("teacher", None)
        elif self.teacher is None:
            needs = f"for {type(given_policy).__name__}" if epsilon is None else "unless epsilon is 0"
            raise ValueError(f"teacher must be a model {needs}, got None with epsilon {epsilon}")
        if isinstance(self.teacher, TopKTeacher):
            self._check_top_k_teacher()
        # 3. The prompts, and whether the models can continue them.
        prompts, prompt_mask, lengths = check_prompts(self.prompts, self.prompt_mask)
        self._set("prompts", prompts)
        self._set("prompt_mask", prompt_mask)
        self._set("lengths", lengths)
        if isinstance(self.generator, Sequence) and len(self.generator) != len(prompts):
            raise ValueError(f"generator must be one, or one per row ({len(prompts)}), got {len(self.generator)}")
        check_not_itself(self.named_models)
        check_models(self.named_models, lengths, self.max_new_tokens)
        check_ids(self.named_models, prompts)
        if check:
            probe_models(self.named_models, int(lengths.max()) + self.max_new_tokens)

    def _check_types(self) -> None:
        check_token_ids(self.prompts, self.prompt_mask)
        if not isinstance(self.alignment, Alignment):
            raise ValueError(
                f"alignment must be a trbext.vocab.Alignment, got {self.alignment!r:.80}: see trbext.align"
            )
        self._set("optimizer_step", int(whole_number("optimizer_step", self.optimizer_step, 0)))
        if not isinstance(self.pad_token_id, Integral):
            raise ValueError(f"pad_token_id must be a whole number, got {self.pad_token_id!r}: alignment.stop will do")
        each = self.generator if isinstance(self.generator, Sequence) else (self.generator,)
        for one in each:
            if self.generator is not None and not isinstance(one, torch.Generator):
                got = f"{'a list with ' if each is self.generator else ''}{one!r:.80}"
                raise ValueError(f"generator must be a torch.Generator, a list of them or None, got {got}")
        if not isinstance(self.teacher_states_limit, Real):
            raise ValueError(f"teacher_states_limit must be a number of bytes, got {self.teacher_states_limit!r:.80}")

    def _check_top_k_teacher(self) -> None:
        if self.budget is None:
            raise ValueError(f"a top-k teacher serves policies with a KL budget, got {type(self.policy).__name__}")
        if self.temperature != 1:
            raise ValueError(
                f"a top-k teacher gives log-probs at temperature 1 only, got temperature {self.temperature}"
            )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # as the dataclasses of the standard library do when they are frozen

    @property
    def models(self) -> list[Any]:
        """The student, and the teacher if it is needed."""
        return [self.student] if self.teacher is None else [self.student, self.teacher]

    @property
    def named_models(self) -> list[tuple[str, Any]]:
        """The student and the teachers that are needed, each with its name; a mixture has several."""
        return [each for pair in zip(("student", "teacher"), self.models, strict=False) for each in named_models(*pair)]

    @property
    def device(self) -> torch.device:
        """The device of the prompts, on which the rollout is collected."""
        return self.prompts.device

    @property
    def budget(self) -> float | Tensor | None:
        """The KL budget in nats, one for all or [B]; None for a policy without one."""
        policy = self.policy
        if not isinstance(policy, TrustRegion):
            return None
        # A user's class may only use its budget: what it draws is its own, and not what a round of drafts verifies.
        draws = type(policy).draw is TrustRegion.draw and type(policy).begin is TrustRegion.begin
        epsilon = policy.epsilon(self.optimizer_step) if draws else None
        return epsilon.detach() if isinstance(epsilon, Tensor) else epsilon

    def uniforms(self, *shape: int, rows: int = -1) -> Tensor:
        """Draws uniform random numbers in [0, 1) from the generator, float64 of `shape` on the prompts' device.

        Dimension `rows` of `shape` is that of the rows, each of which may have a generator of its own.
        """
        if isinstance(self.generator, Sequence):
            others = list(shape)
            del others[rows]
            each = [torch.rand(others, dtype=torch.float64, generator=one) for one in self.generator]
            return torch.stack(each, rows).to(self.device)
        source = self.device if self.generator is None else self.generator.device
        return torch.rand(shape, dtype=torch.float64, generator=self.generator, device=source).to(self.device)

    def evaluating(self) -> AbstractContextManager[None]:
        """Puts all models that have modules into eval mode inside."""
        return evaluating([model for _, model in self.named_models if hasattr(model, "modules")])

    @contextmanager
    def running(self) -> Iterator[HiddenStates | None]:
        """Decodes in eval mode without gradients inside; yields what keeps the teacher's states, None if unwanted."""
        with torch.no_grad(), self.evaluating():
            # Only one model of transformers hands the states of all rows to one head.
            teacher = self.teacher
            single = teacher is not None and not isinstance(teacher, Mixture) and is_transformers(teacher)
            if not single or not self.teacher_states_limit > 0:
                yield None
                return
            with HiddenStates(self.teacher, len(self.prompts), limit_bytes=self.teacher_states_limit) as states:
                yield states
