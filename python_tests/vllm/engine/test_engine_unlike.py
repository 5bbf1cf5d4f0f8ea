"""Student and teacher of a vLLM engine may differ in the width of their logits and in their EOS ids."""

from __future__ import annotations

import pytest

from python_tests.vllm.chi_square import assert_follows, first_three_tokens
from python_tests.vllm.engine.engines import Engines, client, drawn_tokens, skip_without_vllm
from python_tests.vllm.model_pairs import EOS, PROMPT, VOCABULARY, ModelPair
from python_tests.vllm.token_law import TokenLaw

pytestmark = [pytest.mark.vllm, pytest.mark.nightly]
skip_without_vllm()


@pytest.fixture(scope="module")
def unlike_law(unlike_pair: ModelPair) -> TokenLaw:
    """The law of `unlike_pair`'s tokens."""
    return TokenLaw(unlike_pair.teacher, unlike_pair.student, unlike_pair.alignment)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tokens_follow_mu_over_the_common_vocabulary(
    temperature: float, engines: Engines, unlike_pair: ModelPair, unlike_law: TokenLaw
) -> None:
    tokens = drawn_tokens(client(engines.of(unlike_pair, 3), unlike_pair), 5000, 0.1, temperature=temperature)
    assert_follows(first_three_tokens(tokens, unlike_law, PROMPT, 0.1, temperature))
    seen = {token for row in tokens for token in row}
    assert EOS in seen
    assert EOS + 1 not in seen
    assert max(seen) < VOCABULARY
