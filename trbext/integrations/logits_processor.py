"""Blends a teacher into any `generate` of transformers, as a logits processor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..models.eval_mode import evaluating
from ..models.model_check import probe_models
from ..ops import blend
from ..rollout.caches import named_models, one_lockstep_cache
from ..rollout.checks import check_epsilon, check_ids, check_models, check_not_itself, check_prompts
from ..teachers.mixture import Mixture
from ..vocab import Alignment
from .plain_sampling_checks import check_plain_sampling


class BlendLogitsProcessor:
    """Turns a student's logits into log mu, the blend with a teacher within a KL budget.

    transformers applies its own temperature, top_k and top_p after a processor of the user, so the generation config
    must sample the whole softmax. Its temperature is taken into account: mu is the blend at that temperature. Where
    `generate(custom_generate=...)` is possible, `blended_generate` costs less.

    Args:
        teacher: As of `trbext.lockstep`. Weights of a mixture may be of B rows, with any `num_return_sequences`.
        epsilon: The KL budget in nats per token, one for all rows or [B] of any float dtype, with any
            `num_return_sequences`.
        student: The model whose `generate` is called. Its own generation config fills what the other leaves open.
        alignment: The vocabulary that both models share (`trbext.align`). Both models need the same EOS ids, since the
            sequence that is generated holds ids and no merged stop event.
        generation_config: The one with which `generate` is called.
        attention_mask: [B, P] of the prompts, for which `generate` is then called, with any `num_return_sequences`;
            None if none has padding.

    Raises:
        ValueError: The generation config changes the distribution that is sampled (`top_k` is 50 unless it is set to
            0), the EOS ids differ, or a budget is negative.
    """

    def __init__(
        self,
        teacher: Any,
        epsilon: float | Tensor,
        *,
        student: Any,
        alignment: Alignment,
        generation_config: Any,
        attention_mask: Tensor | None = None,
    ) -> None:
        self.temperature = check_plain_sampling(generation_config, student=student)
        if not alignment.is_slice:
            raise ValueError(
                "BlendLogitsProcessor needs models with the same EOS id, got "
                f"{[alignment.stop, *alignment.duplicates]}: use trbext.integrations.blended_generate"
            )
        budgets = [epsilon] if not isinstance(epsilon, Tensor) else epsilon.flatten().tolist()
        for budget in budgets:  # a row of a negative or NaN budget would be NaN, which multinomial meets on the device
            check_epsilon(budget, torch.empty(0))
        self.epsilon = epsilon.float() if isinstance(epsilon, Tensor) else epsilon
        self._of_rows = self.epsilon  # as many as `generate` has rows
        self.teacher, self.alignment = teacher, alignment
        self._prompt_mask = attention_mask
        self._prompts: Tensor | None = None  # [B, P] those of the mask, once `generate` has shown them
        self._modules = [model for _, model in named_models("teacher", teacher) if hasattr(model, "modules")]
        # The tokens that generate may add, or if it counts all, prompt and completion.
        configs = (generation_config, getattr(student, "generation_config", None))  # the first that has a value counts
        self._longest, self._whole = (
            next((value for one in configs if (value := getattr(one, name, None)) is not None), None)
            for name in ("max_new_tokens", "max_length")
        )
        self._student = student
        self._cache: Any = None
        self._width = 0  # columns of the prompts
        self._seen = torch.empty(0, 0)  # [B, S] the tokens that the cache holds
        self._lengths = torch.empty(0)  # [B, 1] tokens of each prompt

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the temperature times log mu, [B, V] float32; -inf for tokens that the models do not share.

        Args:
            input_ids: [B, S] int64, the prompts and what was generated.
            scores: [B, V] the student's logits.
        """
        with evaluating(self._modules):
            teacher_logits = self._advance(input_ids)
        student = self.alignment.canonical(scores.float())
        teacher = self.alignment.canonical(teacher_logits.float())
        log_mu = blend(student, teacher, self._of_rows, temperature=self.temperature).log_probs
        padding = scores.shape[1] - log_mu.shape[1]
        return torch.nn.functional.pad(log_mu * self.temperature, (0, padding), value=-torch.inf)

    def _advance(self, input_ids: Tensor) -> Tensor:
        before = self._seen.shape[1]
        continues = (
            self._cache is not None
            and input_ids.shape == (len(self._seen), before + 1)
            and torch.equal(input_ids[:, :-1], self._seen)
        )
        mask = self._mask(input_ids, continues)
        self._seen = input_ids
        if continues:
            position = self._lengths + (before - self._width)
            # Only rows that have ended go on with other ids than those shared: padding, which the teacher may not have.
            token = input_ids[:, -1]
            token = token.where(token < self.alignment.width, self.alignment.stop)
            logits: Tensor = self._cache.advance(token, position, mask)
            return logits
        # A new batch of prompts.
        prompts, teacher = input_ids if self._prompts is None else self._prompts, self.teacher
        if isinstance(self.epsilon, Tensor):
            each = _returned(prompts, self.epsilon.numel())
            self._of_rows = self.epsilon.to(input_ids.device).repeat_interleave(each)
        if isinstance(teacher, Mixture) and teacher.weights.dim() == 2:
            each = _returned(prompts, len(teacher.weights))
            teacher = teacher.with_weights(teacher.weights.repeat_interleave(each, 0))
        self._width = input_ids.shape[1]
        whole = torch.ones_like(input_ids) if mask is None else mask
        self._lengths = whole.sum(1, keepdim=True)
        named, lengths = named_models("teacher", self.teacher), self._lengths[:, 0].cpu()
        new = self._longest if self._longest is not None else max(1, (self._whole or 0) - self._width)
        check_not_itself([("student", self._student), *named])
        check_models(named, lengths, new)
        check_ids(named, input_ids)
        probe_models(named, int(lengths.max()) + new)
        self._cache = one_lockstep_cache(
            "teacher", teacher, len(input_ids), self.alignment, self.temperature, input_ids.device
        )
        first: Tensor = self._cache.prefill(input_ids, whole)
        return first

    def _mask(self, input_ids: Tensor, continues: bool) -> Tensor | None:
        if self._prompt_mask is None:
            return None
        if self._prompts is None:
            self._prompt_mask = self._prompt_mask.repeat_interleave(_returned(input_ids, len(self._prompt_mask)), 0)
            check_prompts(input_ids, self._prompt_mask)
            self._prompts = input_ids
        elif not continues and not torch.equal(input_ids[:, : self._prompts.shape[1]], self._prompts):
            raise ValueError("attention_mask must be that of the prompts, got others: make one processor per batch")
        mask = self._prompt_mask.to(input_ids.device, torch.int64)
        return torch.nn.functional.pad(mask, (0, input_ids.shape[1] - mask.shape[1]), value=1)


def _returned(input_ids: Tensor, prompts: int) -> int:
    """Returns `num_return_sequences`, by which `generate` has repeated so many prompts; 1 if they are no repetition."""
    each = max(1, len(input_ids) // max(1, prompts))
    return each if torch.equal(input_ids, input_ids[::each].repeat_interleave(each, 0)) else 1
