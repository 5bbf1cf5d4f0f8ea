"""A request whose tokens could not follow mu is refused, and named, without vLLM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from trbext.errors import EngineRefused
from trbext.vllm.requests import EPSILON, HELD_OUT, KEY, NEUTRAL, NO_KEY, check_draw, check_request
from trbext.vocab import Alignment

# Values that change the law of a token, or that ask for what the engine does not have.
CHANGING: dict[str, Any] = {
    "n": 2,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.1,
    "min_tokens": 2,
    "logit_bias": {5: 1.0},
    "allowed_token_ids": [5, 6],
    "bad_words": ["a"],
    "structured_outputs": object(),
    "thinking_token_budget": 8,
    "repetition_detection": object(),
    "trace_decode_token_ids": [5, 6],
    "logprobs": 1,
    "logprob_token_ids": [5],
    "prompt_logprobs": 1,
    "prompt_logprob_token_ids": [[5]],
    "seed": 0,
}


def parameters(**changed: Any) -> SimpleNamespace:
    """Returns sampling parameters that follow mu, apart from `changed`."""
    return SimpleNamespace(**{"temperature": 1.0, "extra_args": {HELD_OUT: 7}, **changed})


def test_a_value_is_tried_of_every_parameter_that_is_refused() -> None:
    assert CHANGING.keys() == NEUTRAL.keys()


@pytest.mark.parametrize("name", CHANGING)
def test_a_parameter_that_changes_the_law_is_refused_by_name(name: str) -> None:
    for neutral in NEUTRAL[name]:
        check_request(parameters(**{name: neutral}))
    with pytest.raises(ValueError, match=f"follows mu only: {name} must be .*, got"):
        check_request(parameters(**{name: CHANGING[name]}))


@pytest.mark.parametrize("temperature", [0.0, 0.009, -1.0, float("inf"), float("nan")])
def test_a_temperature_that_vllm_changes_is_refused(temperature: float) -> None:
    check_request(parameters(temperature=0.01))
    with pytest.raises(ValueError, match=f"a temperature of at least 0.01, got {temperature}"):
        check_request(parameters(temperature=temperature))


@pytest.mark.parametrize(
    "extra", [None, {}, {HELD_OUT: None}, {HELD_OUT: "7"}, {HELD_OUT: -1}, {HELD_OUT: 7.0}, {HELD_OUT: True}]
)
def test_a_request_that_holds_out_no_token_is_refused(extra: dict[str, Any] | None) -> None:
    with pytest.raises(ValueError, match=f"holds out the last token of its prompt: send .* got {HELD_OUT}="):
        check_request(parameters(extra_args=extra))


def test_keys_and_budgets_are_checked() -> None:
    for budget in (0, 0.5, float("inf"), None):
        check_request(parameters(extra_args={HELD_OUT: 0, KEY: 3, EPSILON: budget}))
    for budget in (-0.1, float("nan"), "0.1"):
        with pytest.raises(ValueError, match=f"{EPSILON} must be a KL budget in nats, .*, got {budget}"):
            check_request(parameters(extra_args={HELD_OUT: 0, EPSILON: budget}))
    with pytest.raises(ValueError, match=f"{EPSILON} must be a number that a float can hold"):
        check_request(parameters(extra_args={HELD_OUT: 0, EPSILON: 10**400}))
    for key in ("first", -2, 2**63, True, 1.0):
        with pytest.raises(ValueError, match=f"{KEY} must be an integer from 0 to 2\\^63 - 1, got {key!r}"):
            check_request(parameters(extra_args={HELD_OUT: 0, KEY: key}))


def test_what_is_not_given_or_none_is_the_engines_own() -> None:
    assert check_request(parameters(extra_args={HELD_OUT: 7})) == (7, NO_KEY, None)
    assert check_request(parameters(extra_args={HELD_OUT: 7, KEY: None, EPSILON: None})) == (7, NO_KEY, None)
    assert check_request(parameters(extra_args={HELD_OUT: 7, KEY: 2**63 - 1, EPSILON: 0.5})) == (7, 2**63 - 1, 0.5)


def test_ids_that_one_model_lacks_are_refused() -> None:
    check_request(parameters(extra_args={HELD_OUT: 9}), tokens=10)
    with pytest.raises(ValueError, match=f"{HELD_OUT} must be one of the 10 ids that both models have, got 10"):
        check_request(parameters(extra_args={HELD_OUT: 10}), tokens=10)
    alignment = Alignment(10, (2,), ())
    check_draw([[1, 9], [3, 4]], [0.1, 0.1], 1, 1.0, alignment)
    for token in (11, -1):
        with pytest.raises(EngineRefused, match=f"ids from 0 and below 10, which both models have, got {token}"):
            check_draw([[1, 9], [token, 3]], [0.1, 0.1], 1, 1.0, alignment)
