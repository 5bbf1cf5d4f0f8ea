"""A vLLM engine refuses what could not follow mu, by name, and draws rollouts afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from python_tests.vllm.engine.engines import (
    ENGINE_ARGS,
    Engines,
    client,
    drawn_tokens,
    each_step,
    running_llm,
    skip_without_vllm,
)
from python_tests.vllm.model_pairs import EOS, PROMPT, ModelPair
from trbext.vllm.client import EngineRollouts
from trbext.vllm.engine import WORKER_EXTENSION, engine_args
from trbext.vllm.local import LocalEngine
from trbext.vllm.requests import EPSILON, HELD_OUT, KEY, NEUTRAL
from trbext.vllm.transport import RolloutRequest
from trbext.vllm.versions import check_runner

pytestmark = pytest.mark.vllm
skip_without_vllm()

HELD_OUT_ONE = {HELD_OUT: PROMPT[-1]}
REFUSED: dict[str, dict[str, Any]] = {
    "top_p": {"top_p": 0.9},
    "top_k": {"top_k": 5},
    "min_p": {"min_p": 0.1},
    "presence_penalty": {"presence_penalty": 0.5},
    "frequency_penalty": {"frequency_penalty": 0.5},
    "repetition_penalty": {"repetition_penalty": 1.1},
    "min_tokens": {"min_tokens": 2},
    "logit_bias": {"logit_bias": {5: 1.0}},
    "allowed_token_ids": {"allowed_token_ids": [5, 6]},
    "bad_words": {"bad_words": ["a"]},
    "logprobs": {"logprobs": 1},
    "prompt_logprobs": {"prompt_logprobs": 1},
    "seed": {"seed": 1},
    "a temperature of at least 0.01": {"temperature": 0.0},
    "holds out the last token": {"extra_args": {}},
    KEY: {"extra_args": {**HELD_OUT_ONE, KEY: "first"}},
    EPSILON: {"extra_args": {**HELD_OUT_ONE, EPSILON: -0.1}},
}
# Fields of SamplingParams that change no token's law: what ends a rollout, what is returned, what V1 ignores.
HARMLESS = {
    "n", "stop", "stop_token_ids", "ignore_eos", "max_tokens", "detokenize", "skip_special_tokens",
    "spaces_between_special_tokens", "include_stop_str_in_output", "output_kind", "stream_interval", "skip_clone",
    "output_text_buffer_length", "extra_args", "skip_reading_prefix_cache", "routed_experts_prompt_start",
    "flat_logprobs", "prompt_logprob_start", "watermarking",
}  # fmt: skip


@pytest.fixture
def engine(engines: Engines, pair: ModelPair) -> LocalEngine:
    """An engine whose tokens follow mu."""
    engine = engines.of(pair, 3)
    client(engine, pair)
    return engine


@pytest.mark.parametrize("name", REFUSED)
def test_a_request_that_could_not_follow_mu_is_refused_by_name_at_admission(
    name: str, engine: LocalEngine, pair: ModelPair
) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    asked = {"max_tokens": 3, "detokenize": False, "extra_args": HELD_OUT_ONE, **REFUSED[name]}
    with pytest.raises(VLLMValidationError, match=name):
        engine.llm.generate([{"prompt_token_ids": PROMPT[:-1]}], SamplingParams(**asked), use_tqdm=False)
    assert len(drawn_tokens(client(engine, pair), 4, 0.1)) == 4


def test_structured_outputs_are_refused(engine: LocalEngine) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import StructuredOutputsParams

    asked = SamplingParams(structured_outputs=StructuredOutputsParams(choice=["a"]), extra_args=HELD_OUT_ONE)
    with pytest.raises(VLLMValidationError, match="structured_outputs"):
        engine.llm.generate([{"prompt_token_ids": PROMPT[:-1]}], asked, use_tqdm=False)


def test_every_parameter_of_a_request_is_known() -> None:
    from vllm import SamplingParams

    fields = {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")}
    assert fields <= {*NEUTRAL, *HARMLESS, "temperature"}, fields - {*NEUTRAL, *HARMLESS, "temperature"}


def test_logits_that_are_not_finite_end_the_draw_and_not_the_engine(engine: LocalEngine, pair: ModelPair) -> None:
    steps = 0

    def spoil(runner: Any, logits: torch.Tensor, metadata: Any, sample: Callable[[], Any]) -> Any:
        nonlocal steps
        if metadata is not None:
            steps += 1
            if steps == 2:
                logits[0] = torch.nan
        return sample()

    rollouts = client(engine, pair)
    with each_step(engine, spoil), pytest.raises(RuntimeError, match="at fault in 1 rollouts, the first of prompt"):
        drawn_tokens(rollouts, 8, 0.2, max_new_tokens=10)
    assert len(drawn_tokens(rollouts, 8, 0.2, max_new_tokens=10)) == 8


def test_a_stop_token_inside_a_block_of_drafts_ends_the_rollout(engine: LocalEngine) -> None:
    requests = [RolloutRequest(PROMPT, key, 30, 1.0, EOS, 0.2) for key in range(400)]
    completions = engine.generate(requests)
    (records,) = engine.take_records()
    past_the_end = 0
    for key, completion in enumerate(completions):
        assert EOS not in completion.tokens[1:-1]
        assert completion.finished == (completion.tokens[-1] == EOS)
        past_the_end += int((records["index"][records["key"] == key] >= len(completion.tokens)).sum())
    assert sum(completion.finished for completion in completions) > 100
    assert past_the_end > 50


def test_a_prompt_that_ends_with_the_stop_token_is_continued(engine: LocalEngine, pair: ModelPair) -> None:
    tokens = drawn_tokens(client(engine, pair), 400, 0.2, prompt=[*PROMPT, EOS], max_new_tokens=10)
    assert all(EOS not in row[:-1] and (row[-1] == EOS or len(row) == 10) for row in tokens)
    assert sum(len(row) > 1 for row in tokens) > 100


@pytest.mark.nightly
def test_an_engine_that_drafts_greedily_is_refused(engines: Engines, pair: ModelPair) -> None:
    engines.close()
    greedy = {"speculative_config": {"draft_sample_method": "greedy"}}
    made = engine_args(str(pair.teacher), str(pair.student), draft_length=3, **ENGINE_ARGS, **greedy)
    with (
        running_llm(**made) as llm,
        pytest.raises(RuntimeError, match=r"draft_sample_method 'probabilistic'.*got 'greedy'"),
    ):
        client(LocalEngine(llm), pair)


@pytest.mark.nightly
def test_an_engine_without_a_draft_model_is_refused(engines: Engines, pair: ModelPair) -> None:
    engines.close()
    alone = {"model": str(pair.teacher), "worker_extension_cls": WORKER_EXTENSION, **ENGINE_ARGS}
    with (
        running_llm(**alone) as llm,
        pytest.raises(RuntimeError, match="speculative_config method 'draft_model', the student, got None"),
    ):
        client(LocalEngine(llm), pair)


def test_an_engine_before_the_handshake_answers_nothing(engines: Engines, pair: ModelPair) -> None:
    engines.close()  # a new engine, which no client has greeted
    engine = engines.of(pair, 3)
    for call in (engine.counters, engine.take_records, lambda: engine.load_student(str(pair.newer_student))):
        with pytest.raises(RuntimeError, match="trb_enable comes first"):
            call()
    digest = engine.digest()
    client(engine, pair)
    assert engine.digest() == digest


def test_model_runner_v2_is_refused() -> None:
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    with pytest.raises(RuntimeError, match="VLLM_USE_V2_MODEL_RUNNER=0"):
        check_runner(GPUModelRunner.__new__(GPUModelRunner))


def test_two_clients_may_greet_one_engine(engine: LocalEngine, pair: ModelPair) -> None:
    first = EngineRollouts(engine, pair.alignment, pad_token_id=0)
    again = EngineRollouts(engine, pair.alignment, pad_token_id=0)
    assert first.handshake == again.handshake
    assert drawn_tokens(first, 50, 0.2) == drawn_tokens(again, 50, 0.2)
