"""Who writes the prefixes: completions drawn from the behavior policy of two Hugging Face causal LMs."""

from .draft_length import DraftLength
from .lockstep import lockstep
from .output import Rollout, Speculation
from .policies import Policy, TrustRegion, draw_from
from .speculative import speculative

__all__ = ["DraftLength", "Policy", "Rollout", "Speculation", "TrustRegion", "draw_from", "lockstep", "speculative"]
