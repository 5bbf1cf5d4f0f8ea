"""Who writes the prefixes: completions drawn from the behavior policy of two Hugging Face causal LMs."""

from .lockstep import lockstep
from .output import Rollout

__all__ = ["Rollout", "lockstep"]
