"""Blends the rollouts of TRL's `GRPOTrainer`, and weighs their tokens by pi_S / mu.

A policy gradient assumes that the student drew each token. TRL takes rollouts from a `rollout_func` with the log-probs
of their tokens, but uses these only with vLLM: without it the ratio is set to 1, and the gradient is biased toward what
the teacher wrote. `BehaviorRatio` passes log mu on, and `rollout_func` refuses a trainer without it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn

from ..data.encoding import encode_prompts, left_padded
from ..models.unsharded import unsharded
from ..rollout import Policy, speculative
from ..rollout.policies import STUDENT, as_policy
from ..rollout.speculative import check_draft_length
from ..vocab import align


class BehaviorRatio:
    """A mixin for `GRPOTrainer` that makes the importance ratio that of the distribution which drew the tokens.

    GRPO's clip then bounds pi_S / mu by 1 - epsilon and 1 + epsilon_high of its own config. A clipped ratio is biased
    again: widen the clip if the budget is wide.

    Examples:
        >>> class BlendedGRPOTrainer(BehaviorRatio, GRPOTrainer): ...
        >>> trainer = BlendedGRPOTrainer(model, reward, args, rollout_func=rollout_func(teacher, 0.02), ...)
    """

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        parent: Any = super()
        output = parent._generate_and_score_completions(inputs)
        if "sampling_per_token_logps" not in output:
            raise ValueError("BehaviorRatio needs the log-probs of a rollout_func: pass trbext's rollout_func")
        output["old_per_token_logps"] = output["sampling_per_token_logps"]  # log mu: the ratio is pi_S / mu
        return output


def rollout_func(
    teacher: Any, policy: Policy | float, *, draft_length: int = 0
) -> Callable[[list[Any], Any], dict[str, Any]]:
    """Makes a `rollout_func` for a `GRPOTrainer` with `BehaviorRatio`: the student blended with a teacher.

    Args:
        teacher: As of `trbext.lockstep`.
        policy: Draws the tokens at each optimizer step; a number is a constant KL budget in nats per token. Only the
            student writes the completions of an evaluation.
        draft_length: 0 decodes in lockstep, a number of drafts by speculation.

    Returns:
        The function. It raises ValueError for a trainer without `BehaviorRatio`, one that samples another distribution
        than the softmax, has tools or vLLM, and for models with different EOS ids (a merged stop event has one log-prob
        and several ids).
    """
    drawn = as_policy(policy)
    check_draft_length(draft_length)

    def rollouts(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        _check(trainer)
        tokenizer, student = trainer.processing_class, trainer.accelerator.unwrap_model(trainer.model)
        alignment = align(student, teacher, tokenizer)
        if not alignment.is_slice:
            raise ValueError(
                f"rollout_func needs models with the same EOS id, got {[alignment.stop, *alignment.duplicates]}"
            )
        prompt_ids = encode_prompts(tokenizer, prompts, **(trainer.chat_template_kwargs or {}))
        with ExitStack() as whole:
            for each in (student, teacher):
                if isinstance(each, nn.Module):
                    whole.enter_context(unsharded(each))
            rollout = speculative(
                student,
                teacher,
                *left_padded(prompt_ids, tokenizer.pad_token_id, trainer.accelerator.device),
                policy=drawn if trainer.model.training else STUDENT,
                optimizer_step=trainer.state.global_step,
                max_new_tokens=trainer.max_completion_length,
                alignment=alignment,
                pad_token_id=tokenizer.pad_token_id,
                temperature=trainer.temperature,
                draft_length=draft_length,
            )
        kept = [mask.nonzero()[:, 0] for mask in rollout.mask]
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": [ids[at].tolist() for ids, at in zip(rollout.tokens, kept, strict=True)],
            "logprobs": [log_mu[at].tolist() for log_mu, at in zip(rollout.log_prob, kept, strict=True)],
        }

    return rollouts


def _check(trainer: Any) -> None:
    if not issubclass(type(trainer), BehaviorRatio):
        raise ValueError(
            f"{type(trainer).__name__} would give tokens of mu the ratio 1: make it a subclass of "
            "trbext.integrations.BehaviorRatio and GRPOTrainer"
        )
    if trainer.use_vllm:
        raise ValueError("trbext's rollout_func decodes with both models itself: set use_vllm=False")
    if getattr(trainer, "tools", None):
        raise ValueError("trbext's rollout_func writes completions of one turn: leave tools and environments out")
    plain = {"top_p": (1.0,), "top_k": (0, None), "min_p": (None, 0.0), "repetition_penalty": (1.0,)}
    for name, values in plain.items():
        if getattr(trainer, name) not in values:
            raise ValueError(f"{name}={getattr(trainer, name)} changes the distribution that is sampled: leave it out")
    if trainer.args.generation_kwargs:
        raise ValueError(f"trbext's rollout_func takes no generation_kwargs, got {trainer.args.generation_kwargs}")
