"""Puts blended rollouts into other trainers and into transformers' `generate`, and refuses what would be wrong."""

from .custom_generate import blended_generate
from .grpo import BehaviorRatio, rollout_func
from .logits_processor import BlendLogitsProcessor
from .on_policy import BlendedRollouts

__all__ = ["BehaviorRatio", "BlendLogitsProcessor", "BlendedRollouts", "blended_generate", "rollout_func"]
