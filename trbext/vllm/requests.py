"""Defines what a request to a TRB engine may ask for; the client, the API server and the worker apply the same rule."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

from ..errors import EngineRefused
from ..limits import is_epsilon, not_an_epsilon
from ..vocab import Alignment

# Keys of SamplingParams.extra_args ("vllm_xargs" of an HTTP request).
HELD_OUT = "trb_held_out"  # int: the last token of the prompt, which the engine gives back as its first token
KEY = "trb_key"  # int: the name of the rollout in the engine's records; without one nothing is recorded
EPSILON = "trb_epsilon"  # float: a KL budget of this request's own, nats per token

NO_KEY = -1  # of a request that is not recorded

# vLLM raises lower temperatures to this one, with a warning only.
LEAST_ENGINE_TEMPERATURE = 0.01

# Each parameter that would change the law of a token, with the values under which it does not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),  # several completions would have one name in the records
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


def check_draw(
    prompts: Sequence[Sequence[int]],
    budgets: Sequence[float],
    max_new_tokens: int,
    temperature: float,
    alignment: Alignment,
) -> None:
    """Checks what an engine would answer wrongly, but for the length of its rows, which each engine knows by itself.

    Args:
        prompts: Token ids of each.
        budgets: KL budget of each, nats per token.
        max_new_tokens: Of a completion.
        temperature: Of the rollouts.
        alignment: The vocabulary that both models share.

    Raises:
        EngineRefused: Names what does not fit.
    """
    check_temperature(temperature)
    if len(budgets) != len(prompts):
        raise EngineRefused(f"epsilon must be one number, or one per prompt ({len(prompts)}), got {len(budgets)}")
    for budget in budgets:
        if not is_epsilon(budget):
            raise EngineRefused(not_an_epsilon(budget))
    if not isinstance(max_new_tokens, Integral) or max_new_tokens < 1:
        raise EngineRefused(f"max_new_tokens must be a whole number of at least 1, got {max_new_tokens!r}")
    if not prompts:
        raise EngineRefused("a draw needs at least one prompt, got none")
    shortest = min(map(len, prompts))
    if shortest < 2:
        raise EngineRefused(f"a prompt must have two tokens, of which the engine holds the last out, got {shortest}")
    for prompt in prompts:
        for token in (min(prompt), max(prompt)):
            if not 0 <= token < alignment.width:  # vLLM asks for the teacher only
                raise EngineRefused(
                    f"a prompt must have ids from 0 and below {alignment.width}, which both models have, got {token}"
                )


def check_temperature(temperature: float) -> None:
    """Checks that vLLM samples at a temperature.

    Raises:
        EngineRefused: It does not.
    """
    if not LEAST_ENGINE_TEMPERATURE <= temperature < float("inf"):
        raise EngineRefused(
            f"a TRB rollout needs a temperature of at least {LEAST_ENGINE_TEMPERATURE}, got {temperature}"
        )


class RequestTerms(NamedTuple):
    """What a request asks for."""

    held_out: int
    key: int  # NO_KEY if it names none
    epsilon: float | None  # None: the engine's own budget


def check_request(parameters: Any, tokens: int | None = None) -> RequestTerms:
    """Checks that the tokens of a request can follow mu.

    Args:
        parameters: vLLM's SamplingParams.
        tokens: Ids that both models have; None if that is not known here.

    Returns:
        What it asks for.

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
    if type(held_out) is not int or held_out < 0:
        raise ValueError(
            f"a TRB rollout holds out the last token of its prompt: send prompt[:-1] with {HELD_OUT}=prompt[-1] "
            f"in extra_args (vllm_xargs over HTTP), got {HELD_OUT}={held_out!r}"
        )
    if tokens is not None and held_out >= tokens:
        raise ValueError(f"{HELD_OUT} must be one of the {tokens} ids that both models have, got {held_out}")
    key = extra.get(KEY)
    if key is None:
        key = NO_KEY
    if type(key) is not int or not NO_KEY <= key < 2**63:
        raise ValueError(f"{KEY} must be an integer from 0 to 2^63 - 1, got {key!r}")
    epsilon = extra.get(EPSILON)
    if epsilon is not None:
        if not (isinstance(epsilon, int | float) and is_epsilon(epsilon)):
            raise ValueError(not_an_epsilon(epsilon, EPSILON))
        try:
            epsilon = float(epsilon)  # of JSON, which has integers of any size
        except OverflowError:
            raise ValueError(f"{EPSILON} must be a number that a float can hold, got one of over 300 digits") from None
    return RequestTerms(held_out, key, epsilon)
