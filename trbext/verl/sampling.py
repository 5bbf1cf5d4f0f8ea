"""Reads what an agent loop asks of a completion, and turns it into a request that an engine can answer from mu."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..vllm.requests import EPSILON, NEUTRAL
from ..vllm.transport import RolloutRequest

LENGTHS = ("max_tokens", "max_new_tokens")
# verl's defaults that mean nothing here: rollouts end with the stop token of both models.
IGNORED = ("ignore_eos", "detokenize")


@dataclass(frozen=True)
class Asked:
    """What was asked of one completion."""

    temperature: float
    max_new_tokens: int
    epsilon: float  # nats per token
    log_probs: bool  # of the tokens under mu
    priority: int  # in the engine's schedule

    @classmethod
    def of(
        cls, sampling: Mapping[str, Any], others: Mapping[str, Any], config: Any, prompt_tokens: int, epsilon: float
    ) -> Asked:
        """Returns what verl's arguments of `generate` ask.

        Args:
            sampling: The sampling parameters.
            others: The further arguments.
            config: verl's RolloutConfig.
            prompt_tokens: Of the prompt.
            epsilon: The budget unless the request names one.

        Raises:
            ValueError: A parameter would change the law of a token, or is not known.
        """
        given = dict(sampling)
        extra = dict(given.pop("extra_args", None) or {})
        named = extra.pop(EPSILON, None)
        lengths = [given.pop(name) for name in LENGTHS if name in given]
        temperature = float(given.pop("temperature", 1.0))
        log_probs = bool(given.pop("logprobs", False))
        for name in IGNORED:
            given.pop(name, None)
        for name, value in given.items():
            if name not in NEUTRAL:
                raise ValueError(f"a TRB rollout follows mu only, and takes no {name}, got {value!r}")
            if value not in NEUTRAL[name]:
                raise ValueError(f"a TRB rollout follows mu only: {name} must be {NEUTRAL[name][0]!r}, got {value!r}")
        if extra:
            raise ValueError(f"extra_args of a TRB rollout may have {EPSILON} only, got {sorted(extra)[0]}")
        for name, value in others.items():
            if name not in ("priority", "mm_processor_kwargs") and value is not None:
                raise ValueError(f"a TRB rollout is of tokens only, and takes no {name}")
        most = min(config.response_length, config.prompt_length + config.response_length - prompt_tokens)
        return cls(
            temperature=temperature,
            max_new_tokens=int(lengths[0]) if lengths else most,
            epsilon=epsilon if named is None else float(named),
            log_probs=log_probs,
            priority=int(others.get("priority") or 0),
        )

    def of_engine(self, request: RolloutRequest, number: int) -> dict[str, Any]:
        """Returns the sampling parameters of a request, whose records will have a number.

        Args:
            request: With the key 0.
            number: Of `Mailbox.expect`.
        """
        return {
            "temperature": request.temperature,
            "top_p": 1.0,
            "top_k": -1,
            "max_tokens": request.max_new_tokens + 1,  # and the held-out token
            "ignore_eos": True,  # vLLM's is the teacher's
            "stop_token_ids": request.stop_token_ids,
            "detokenize": False,
            "extra_args": request.extra_args(number),
        }
