"""Who writes the prefixes: completions drawn from the behavior policy of two Hugging Face causal LMs."""

from .lockstep import lockstep
from .output import Rollout
from .policies import Policy, TrustRegion, draw_from

__all__ = ["Policy", "Rollout", "TrustRegion", "draw_from", "lockstep"]
