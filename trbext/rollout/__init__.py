"""Who writes the prefixes: completions drawn from the behavior policy of two Hugging Face causal LMs."""

from .draft_length import DraftLength
from .lockstep import lockstep
from .output import Rollout, Speculation
from .speculative import speculative

__all__ = ["DraftLength", "Rollout", "Speculation", "lockstep", "speculative"]
