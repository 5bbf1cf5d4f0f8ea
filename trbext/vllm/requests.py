"""Defines what a request to a TRB engine may ask for; the client, the API server and the worker apply the same rule."""

from __future__ import annotations

from typing import Any

from ..limits import is_epsilon, not_an_epsilon

# Keys of SamplingParams.extra_args ("vllm_xargs" of an HTTP request).
HELD_OUT = "trb_held_out"  # int: the last token of the prompt, which the engine gives back as its first token
KEY = "trb_key"  # int: the name of the rollout in the engine's records; without one nothing is recorded
EPSILON = "trb_epsilon"  # float: a KL budget of this request's own, nats per token

# vLLM raises lower temperatures to this one, with a warning only.
LEAST_TEMPERATURE = 0.01

# Each parameter that would change the law of a token, with the values under which it does not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (1.0,),
    "top_k": (0, -1),
    "min_p": (0.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "repetition_penalty": (1.0,),
    "min_tokens": (0,),
    "logit_bias": (None, {}),
    "allowed_token_ids": (None,),
    "bad_words": (None, []),
    "structured_outputs": (None,),
    "thinking_token_budget": (None,),
    "repetition_detection": (None,),  # it would end a rollout early
    "trace_decode_token_ids": (None,),
    "logprobs": (None,),  # these would be the teacher's; the engine's records hold those of mu and both models
    "logprob_token_ids": (None,),
    "prompt_logprobs": (None,),
    "prompt_logprob_token_ids": (None,),
    "seed": (None,),  # the draft model ignores it
}


def check_temperature(temperature: float) -> None:
    """Checks that vLLM samples at a temperature.

    Raises:
        ValueError: It does not.
    """
    if not LEAST_TEMPERATURE <= temperature < float("inf"):
        raise ValueError(f"a TRB rollout needs a temperature of at least {LEAST_TEMPERATURE}, got {temperature}")


def check_request(parameters: Any) -> None:
    """Checks that the tokens of a request can follow mu.

    Args:
        parameters: vLLM's SamplingParams.

    Raises:
        ValueError: A parameter changes the law of a token, or the request holds out no token. Names it.
    """
    for name, neutral in NEUTRAL.items():
        value = getattr(parameters, name, neutral[0])
        if value not in neutral:
            raise ValueError(f"a TRB rollout follows mu only: {name} must be {neutral[0]!r}, got {value!r}")
    check_temperature(parameters.temperature)
    extra = parameters.extra_args or {}
    held_out = extra.get(HELD_OUT)
    if not isinstance(held_out, int) or held_out < 0:
        raise ValueError(
            f"a TRB rollout holds out the last token of its prompt: send prompt[:-1] with {HELD_OUT}=prompt[-1] "
            f"in extra_args (vllm_xargs over HTTP), got {HELD_OUT}={held_out!r}"
        )
    key = extra.get(KEY)
    if key is not None and not isinstance(key, int):
        raise ValueError(f"{KEY} must be an integer, got {key!r}")
    epsilon = extra.get(EPSILON)
    if epsilon is not None and not (isinstance(epsilon, int | float) and is_epsilon(epsilon)):
        raise ValueError(not_an_epsilon(epsilon, EPSILON))
