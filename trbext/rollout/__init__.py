"""Draws completions, the prefixes of training, from a behavior policy of two models."""

import torch

from ..models.model_check import check_model
from ..models.model_kind import UnsupportedModel
from ..models.unsharded import unsharded
from .draft_length import DraftLength
from .lockstep import lockstep
from .output import Rollout, Speculation
from .policies import TrustRegion, draw_from
from .policy import Memory, Policy
from .speculative import speculative

# torch.load(weights_only=True), its default, then reads saved rollouts.
torch.serialization.add_safe_globals([Rollout, Speculation])

__all__ = [
    "DraftLength",
    "Memory",
    "Policy",
    "Rollout",
    "Speculation",
    "TrustRegion",
    "UnsupportedModel",
    "check_model",
    "draw_from",
    "lockstep",
    "speculative",
    "unsharded",
]
