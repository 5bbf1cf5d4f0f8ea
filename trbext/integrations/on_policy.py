"""Blends the rollouts of TRL's `GKDTrainer` and `GOLDTrainer`, which otherwise draw them from the student only."""

from __future__ import annotations

from typing import Any

from ..models.cached_model import unwrap
from ..rollout import Policy
from ..rollout.policies import as_policy
from .custom_generate import blended_generate


class BlendedRollouts:
    """A mixin for `GKDTrainer` and `GOLDTrainer`: student and teacher write the on-policy rollouts together.

    Their loss is a divergence at each prefix over the whole vocabulary, so it needs no weight and stays as it is.
    `lmbda` stays the share of on-policy batches, and `seq_kd` the teacher's own.

    Args:
        policy: Draws the tokens at each optimizer step; a number is a constant KL budget in nats per token. TRB anneals
            it: `TrustRegion(Schedule(...))`.
        draft_length: As of `blended_generate`.

    Raises:
        ValueError: vLLM draws the rollouts, or the tokenizers of student and teacher differ.

    Examples:
        >>> class BlendedGKDTrainer(BlendedRollouts, GKDTrainer): ...
        >>> trainer = BlendedGKDTrainer(model, teacher, args, policy=0.02, train_dataset=dataset)
    """

    def __init__(self, *args: Any, policy: Policy | float, draft_length: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        trainer: Any = self
        if getattr(trainer, "use_vllm", False):
            raise ValueError("BlendedRollouts decodes with both models itself: set use_vllm=False")
        if getattr(trainer, "use_uld_loss", False):
            raise ValueError("BlendedRollouts needs one vocabulary for both models, and use_uld_loss is for two")
        self._blended = blended_generate(
            trainer.accelerator.unwrap_model(trainer.teacher_model),
            as_policy(policy),
            optimizer_step=lambda: int(trainer.state.global_step),
            draft_length=draft_length,
        )

    def generate_on_policy_outputs(self, model: Any, inputs: Any, generation_config: Any) -> Any:
        """Draws the rollouts of a batch, as TRL's method of this name."""
        trainer: Any = self
        parent: Any = super()
        if unwrap(model) is unwrap(trainer.teacher_model):  # of seq_kd
            return parent.generate_on_policy_outputs(model, inputs, generation_config)
        return parent.generate_on_policy_outputs(_Generating(model, self._blended), inputs, generation_config)


class _Generating:
    """A model whose `generate` draws blended rollouts."""

    def __init__(self, model: Any, blended: Any) -> None:
        self._model, self._blended = model, blended

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return self._model.generate(*args, custom_generate=self._blended, **kwargs)
