"""Checks the configuration of a run with TRB before verl starts anything for it."""

from __future__ import annotations

from typing import Any

from ..vllm.requests import check_temperature
from .loss_plugin import LOSS, STRATEGIES
from .settings import WHERE, RolloutSettings

ROLLOUT = "trb_vllm"
AGENT_LOOPS = "trbext.verl.agent_loop.TRBAgentLoopManager"
ACTOR = "actor_rollout_ref"


def has_teacher_pool(config: Any) -> bool:
    """Returns whether verl serves the teacher beside the rollouts, on GPUs of its own.

    Args:
        config: verl's, of the run.
    """
    return bool(config.distillation.nnodes) and bool(config.distillation.n_gpus_per_node)


def teacher_path(config: Any) -> str:
    """Returns the teacher that verl knows.

    Args:
        config: verl's, of the run.

    Raises:
        ValueError: There is not one.
    """
    models = [str(model.model_path) for model in config.distillation.teacher_models.values()]
    if len(models) != 1:
        raise ValueError(f"distillation.teacher_models must have one teacher, got {len(models)}")
    return models[0]


def check_run(config: Any) -> RolloutSettings:
    """Checks the configuration of a run.

    Args:
        config: verl's, whole.

    Returns:
        What the rollouts are drawn with.

    Raises:
        ValueError: A setting does not fit. Names it, what it must be and why.
    """
    rollout, distillation = config.actor_rollout_ref.rollout, config.distillation
    loss = distillation.distillation_loss
    settings = RolloutSettings.of(rollout.custom)
    # Each with what it is, what it must be, and why any other value is refused.
    for name, value, required, reason in (
        (f"{ACTOR}.rollout.name", rollout.name, ROLLOUT, "it draws from mu"),
        (f"{ACTOR}.rollout.agent.agent_loop_manager_class", rollout.agent.agent_loop_manager_class, AGENT_LOOPS,
         "it passes on the budget and the teacher's rows"),
        ("distillation.enabled", distillation.enabled, True, "the loss is verl's distillation"),
        ("distillation.distillation_loss.loss_mode", loss.loss_mode, LOSS, "its expectation is over actions, not mu"),
        ("distillation.distillation_loss.use_policy_gradient", loss.use_policy_gradient, False,
         "a sampled estimate would need weights pi_S / mu"),
        ("distillation.distillation_loss.use_task_rewards", loss.use_task_rewards, False,
         "a policy gradient would need weights pi_S / mu"),
        ("distillation.distillation_loss.log_prob_min_clamp", loss.log_prob_min_clamp, None, "nothing is clamped"),
        ("distillation.distillation_loss.loss_max_clamp", loss.loss_max_clamp, None, "nothing is clamped"),
        (f"{ACTOR}.model.use_fused_kernels", config.actor_rollout_ref.model.use_fused_kernels, False,
         "the loss needs the logits"),
        (f"{ACTOR}.rollout.multi_turn.enable", rollout.multi_turn.enable, False, "completions have one turn"),
        (f"{ACTOR}.rollout.top_p", rollout.top_p, 1.0, "tokens follow mu"),
        (f"{ACTOR}.hybrid_engine", config.actor_rollout_ref.hybrid_engine, True, "each step draws with its weights"),
    ):  # fmt: skip
        if value != required:
            raise ValueError(f"{name} must be {required} for TRB, got {value}: {reason}")
    if config.actor_rollout_ref.actor.strategy not in STRATEGIES:
        raise ValueError(
            f"{ACTOR}.actor.strategy must be {', '.join(STRATEGIES)} for TRB, got "
            f"{config.actor_rollout_ref.actor.strategy}: the loss needs whole rows of logits"
        )
    _check_top_k("top_k", rollout.top_k)
    _check_teacher(config, settings)
    check_temperature(rollout.temperature)
    if config.trainer.val_before_train or config.trainer.test_freq > 0:
        try:
            check_temperature(rollout.val_kwargs.temperature)
        except ValueError as error:
            raise ValueError(f"{ACTOR}.rollout.val_kwargs.temperature: {error}") from None
        _check_top_k("val_kwargs.top_k", rollout.val_kwargs.top_k)
        top_p = rollout.val_kwargs.top_p
        if top_p != 1.0:
            raise ValueError(f"{ACTOR}.rollout.val_kwargs.top_p must be 1.0 for TRB, got {top_p}: tokens follow mu")
    return settings


def _check_top_k(name: str, value: Any) -> None:
    if value not in (-1, 0):
        raise ValueError(f"{ACTOR}.rollout.{name} must be -1 for TRB, got {value}: tokens follow mu")


def _check_teacher(config: Any, settings: RolloutSettings) -> None:
    """Checks that the loss has the teacher of the rollouts, from where the configuration says."""
    if teacher_path(config) != settings.teacher:
        raise ValueError(
            f"{WHERE}.teacher must be the teacher of distillation.teacher_models, {teacher_path(config)}, got "
            f"{settings.teacher}"
        )
    top_k = config.distillation.distillation_loss.topk
    if has_teacher_pool(config):
        if settings.top_k:
            raise ValueError(
                f"{WHERE}.top_k must be 0 with a teacher pool, which has the loss's rows, got {settings.top_k}"
            )
        if config.actor_rollout_ref.rollout.temperature != 1.0:
            raise ValueError(
                f"{ACTOR}.rollout.temperature must be 1 with a teacher pool, whose log-probabilities are at 1, got "
                f"{config.actor_rollout_ref.rollout.temperature}"
            )
    elif settings.top_k != top_k or not top_k:
        raise ValueError(
            f"{WHERE}.top_k must be distillation.distillation_loss.topk, at least 1, got {settings.top_k} and {top_k}"
        )
