"""Refuses settings of verl's rollout under which tokens would not follow mu, before an engine is started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..vllm.engine import slack
from ..vllm.server.flags import REFUSED
from .settings import RolloutSettings

ROLLOUT_CONFIG = "actor_rollout_ref.rollout"


def check_engine_kwargs(engine_kwargs: Mapping[str, Any]) -> None:
    """Checks `engine_kwargs.vllm`, which verl hands to vLLM last.

    Raises:
        ValueError: One is refused. Names it and says why.
    """
    for name, value in engine_kwargs.items():
        refused = REFUSED.get(name.replace("_", "-"))
        if refused is not None and str(value) not in refused.harmless:
            raise ValueError(f"{ROLLOUT_CONFIG}.engine_kwargs.vllm.{name} cannot be {value}: {refused.reason}")


def check_rollout_config(config: Any, model_config: Any, trb: RolloutSettings) -> None:
    """Checks verl's settings of the rollout.

    Args:
        config: verl's RolloutConfig.
        model_config: verl's HFModelConfig of the student.
        trb: Of the run.

    Raises:
        ValueError: One does not fit. Names it.
    """
    needed = config.prompt_length + config.response_length + slack(trb.draft_length)
    if config.max_model_len is None or config.max_model_len < needed:
        raise ValueError(
            f"{ROLLOUT_CONFIG}.max_model_len must be at least prompt_length + response_length + 3 draft_length + 1 = "
            f"{needed} tokens, and both models must have as many positions, got {config.max_model_len}"
        )
    # Each with what it must be, and why any other value is refused.
    fixed = {
        "data_parallel_size": (1, "vLLM answers for its first replica only: let verl make more replicas"),
        "pipeline_model_parallel_size": (1, "only the last stage has the logits"),
        "full_determinism": (False, "the draft model takes no seeds by request"),
        "calculate_log_probs": (True, "the trainer takes the log-probabilities under mu for those of the old policy"),
    }
    for name, (value, reason) in fixed.items():
        if getattr(config, name) != value:
            raise ValueError(f"{ROLLOUT_CONFIG}.{name} must be {value}, got {getattr(config, name)}: {reason}")
    if "dummy" in str(config.load_format):
        raise ValueError(
            f"{ROLLOUT_CONFIG}.load_format must be auto, got {config.load_format}: no sync loads a teacher"
        )
    if config.quantization is not None:
        raise ValueError(f"{ROLLOUT_CONFIG}.quantization must be null, got {config.quantization}")
    if config.mtp is not None and config.mtp.enable and config.mtp.enable_rollout:
        raise ValueError("actor_rollout_ref.model.mtp.enable_rollout must be false: the student drafts by itself")
    if config.disaggregation.enabled:
        raise ValueError(
            f"{ROLLOUT_CONFIG}.disaggregation.enabled must be false: drafts need both models in one engine"
        )
    if config.checkpoint_engine.backend == "delta_sharded":
        raise ValueError(f"{ROLLOUT_CONFIG}.checkpoint_engine.backend cannot be delta_sharded, which loads the teacher")
    adapter = model_config.lora_rank > 0 or model_config.lora.get("rank", 0) > 0
    if adapter and not model_config.lora.get("merge", False):
        raise ValueError("actor_rollout_ref.model.lora.merge must be true: a TRB engine takes whole weights")
