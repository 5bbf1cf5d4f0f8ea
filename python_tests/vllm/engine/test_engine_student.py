"""After a load of weights a vLLM engine draws from mu of the new student, and its teacher is untouched."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from python_tests.vllm.chi_square import assert_deviates, assert_follows, first_three_tokens, first_token
from python_tests.vllm.engine.engines import Engines, client, drawn_tokens, skip_without_vllm
from python_tests.vllm.model_pairs import EOS, PROMPT, VOCABULARY, ModelPair, save_model
from python_tests.vllm.token_law import TokenLaw
from trbext.vllm.local import LocalEngine
from trbext.vocab import Alignment

pytestmark = pytest.mark.vllm
skip_without_vllm()

EPSILON, ROLLOUTS = 0.2, 4000
LONG_PROMPT = [(7 * place) % 60 + 3 for place in range(80)]  # some of whose blocks the prefix cache keeps


@pytest.fixture
def engine(engines: Engines, pair: ModelPair) -> Iterator[LocalEngine]:
    """An engine that has its first student before and after a test."""
    engine = engines.of(pair, 3)
    yield engine
    engine.load_student(str(pair.student))


@pytest.fixture(scope="module")
def newer_law(pair: ModelPair) -> TokenLaw:
    """The law of tokens with the newer student."""
    return TokenLaw(pair.teacher, pair.newer_student, pair.alignment)


@pytest.mark.parametrize("way", ["from a folder", "from this process"])
def test_tokens_follow_mu_of_the_student_that_was_loaded(
    way: str, engine: LocalEngine, pair: ModelPair, law: TokenLaw, newer_law: TokenLaw
) -> None:
    rollouts = client(engine, pair)
    before = engine.digest()[0]
    if way == "from a folder":
        engine.load_student(str(pair.newer_student))
    else:
        engine.load_student_weights(load_file(pair.newer_student / "model.safetensors").items())
    after = engine.digest()[0]
    assert after["teacher"] == before["teacher"]
    assert after["student"] != before["student"]
    tokens = drawn_tokens(rollouts, ROLLOUTS, EPSILON)
    assert_follows(first_three_tokens(tokens, newer_law, PROMPT, EPSILON))
    assert_deviates(first_three_tokens(tokens, law, PROMPT, EPSILON))
    engine.load_student(str(pair.student))
    assert engine.digest()[0] == before


def test_a_student_that_was_not_loaded_is_seen(
    engine: LocalEngine, pair: ModelPair, law: TokenLaw, newer_law: TokenLaw
) -> None:
    tokens = drawn_tokens(client(engine, pair), ROLLOUTS, EPSILON)
    assert_follows(first_three_tokens(tokens, law, PROMPT, EPSILON))
    assert_deviates(first_three_tokens(tokens, newer_law, PROMPT, EPSILON))


def test_a_prefix_cache_of_the_old_student_is_seen(engine: LocalEngine, pair: ModelPair, newer_law: TokenLaw) -> None:
    rollouts = client(engine, pair)

    def drawn() -> list[list[int]]:
        return drawn_tokens(rollouts, ROLLOUTS, EPSILON, prompt=LONG_PROMPT, max_new_tokens=1)

    rollouts.draw([LONG_PROMPT], epsilon=EPSILON, max_new_tokens=1)
    engine.llm.collective_rpc("trb_load_student", args=(str(pair.newer_student),))  # without a reset of the cache
    stale = drawn()
    engine.load_student(str(pair.newer_student))
    fresh = drawn()
    assert_deviates(first_token(stale, newer_law, LONG_PROMPT, EPSILON))
    assert_follows(first_token(fresh, newer_law, LONG_PROMPT, EPSILON))


@pytest.mark.nightly
def test_a_student_of_tied_embeddings_is_loaded_into_both_ends(
    engines: Engines, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """vLLM's reload processes a shared weight for one of its layers only."""
    folder = tmp_path_factory.mktemp("tied")
    teacher, student, newer = (save_model(folder / str(seed), seed, layers=1, tied=True) for seed in (1, 2, 3))
    tied = ModelPair(teacher, student, newer, Alignment(VOCABULARY, (EOS,), (EOS,)))
    engine = engines.of(tied, 3)
    rollouts = client(engine, tied)
    engine.load_student(str(newer))
    rollout = rollouts.draw([PROMPT] * 20, epsilon=EPSILON, max_new_tokens=5, seed=1).rollout
    model = LlamaForCausalLM.from_pretrained(newer).eval()
    sequences = torch.cat([torch.tensor([PROMPT] * 20), rollout.tokens], 1)
    with torch.no_grad():
        log_probs = model(sequences).logits[:, len(PROMPT) - 1 : -1].log_softmax(-1)
    expected = log_probs.gather(-1, rollout.tokens[..., None])[..., 0]
    torch.testing.assert_close(rollout.student_log_prob[rollout.mask], expected[rollout.mask], rtol=0, atol=1e-4)


def test_weights_that_are_not_all_are_refused_by_name(engine: LocalEngine, pair: ModelPair) -> None:
    client(engine, pair)
    weights = load_file(pair.student / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 are missing, such as model\.norm\.weight"):
        engine.load_student_weights((name, weights[name]) for name in weights if name != "model.norm.weight")


def test_a_folder_without_weights_is_refused_and_the_student_stays(
    engine: LocalEngine, pair: ModelPair, tmp_path_factory: pytest.TempPathFactory
) -> None:
    client(engine, pair)
    before = engine.digest()
    with pytest.raises(FileNotFoundError, match=r"must have \*.safetensors files, got"):
        engine.load_student(str(tmp_path_factory.mktemp("empty")))
    assert engine.digest() == before
