"""Lists the options of `generate` and of servers that change the distribution which is sampled, beside temperature."""

from __future__ import annotations

from typing import Any

# With the values at which each has no effect, the one to set first. Blended rollouts sample the whole softmax.
PLAIN_SAMPLING: dict[str, tuple[Any, ...]] = {
    "top_k": (0, None),
    "top_p": (1.0, None),
    "min_p": (0.0, None),
    "typical_p": (1.0, None),
    "epsilon_cutoff": (0.0, None),
    "eta_cutoff": (0.0, None),
    "repetition_penalty": (1.0, None),
    "encoder_repetition_penalty": (1.0, None),
    "no_repeat_ngram_size": (0, None),
    "num_beams": (1, None),
}

# The same for a server of completions, which would take what a request leaves out from the model's generation_config.
PLAIN_COMPLETIONS: dict[str, float] = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
