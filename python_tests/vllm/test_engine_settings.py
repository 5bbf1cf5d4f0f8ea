"""An engine that could not keep the law is refused when its arguments are made, or when the hook is installed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from trbext.errors import EngineFailed
from trbext.vllm.engine import WORKER_EXTENSION, check_settings, engine_args, slack, token_budget
from trbext.vllm.local import LocalEngine
from trbext.vllm.student_engine import StudentEngine
from trbext.vocab import Alignment


def runner(**changed: Any) -> Any:
    """Returns a model runner with the settings of `engine_args`, apart from `changed`."""
    values: dict[str, Any] = {
        "method": "draft_model",
        "draft_sample_method": "probabilistic",
        "rejection_sample_method": "standard",
        "parallel_drafting": False,
        "num_speculative_tokens": 3,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 40,
        "pipeline_parallel_size": 1,
        **changed,
    }
    part = SimpleNamespace(**values)
    return SimpleNamespace(speculative_config=part, scheduler_config=part, parallel_config=part)


def test_arguments_name_both_models_and_the_worker_extension() -> None:
    arguments = engine_args("T", "S", draft_length=2, max_num_seqs=16, tensor_parallel_size=2, dtype="bfloat16")
    assert arguments["model"] == "T"
    assert arguments["worker_extension_cls"] == WORKER_EXTENSION
    assert arguments["speculative_config"] == {
        "method": "draft_model",
        "model": "S",
        "num_speculative_tokens": 2,
        "draft_sample_method": "probabilistic",
        "draft_tensor_parallel_size": 2,
    }
    assert arguments["max_num_batched_tokens"] >= token_budget(16, 2) == 64
    assert arguments["dtype"] == "bfloat16"


def test_an_engine_has_room_for_the_drafts_of_two_steps_ahead() -> None:
    assert slack(4) == 13


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"draft_length": 0}, "draft_length must be at least 1 token in an engine, got 0"),
        ({"max_num_batched_tokens": 1535}, r"at least max_num_seqs \(draft_length \+ 2\) = 1536.*got 1535"),
    ],
)
def test_arguments_that_lose_drafts_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine_args("T", "S", **{"draft_length": 4, **changed})


def test_the_settings_of_engine_args_are_accepted() -> None:
    check_settings(runner())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "eagle"}, "method 'draft_model', the student, got 'eagle'"),
        ({"draft_sample_method": "greedy"}, "draft_sample_method 'probabilistic'.*got 'greedy'"),
        ({"rejection_sample_method": "block"}, "rejection_sample_method must be 'standard', got 'block'"),
        ({"parallel_drafting": True}, "parallel_drafting False.*got True"),
        ({"num_speculative_tokens_per_batch_size": [(1, 8, 3)]}, r"per_batch_size None, got \[\(1, 8, 3\)\]"),
        ({"max_num_batched_tokens": 39}, "= 40, or requests lose their drafts, got 39"),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size 1.*got 2"),
    ],
)
def test_other_settings_are_refused_by_name(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        check_settings(runner(**changed))


def test_an_engine_without_a_draft_model_is_refused() -> None:
    bare = runner()
    bare.speculative_config = None
    with pytest.raises(RuntimeError, match="method 'draft_model', the student, got None"):
        check_settings(bare)


def test_a_student_s_rollouts_that_its_engine_would_cut_off_are_refused() -> None:
    model = SimpleNamespace(get_vocab_size=lambda: 6, max_model_len=8)
    engine = StudentEngine(SimpleNamespace(llm_engine=SimpleNamespace(model_config=model)), Alignment(6, (2,), (2,)))
    with pytest.raises(ValueError, match="must be at least 9 for prompts of 3 and completions of 6 tokens, got 8"):
        engine.draw([[4, 5], [3, 4, 5]], max_new_tokens=6, temperature=1.0, seed=0)


def test_workers_that_differ_are_a_failure_of_the_engine() -> None:
    llm = SimpleNamespace(collective_rpc=lambda *_, **__: [{"vllm": "0.31.0"}, {"vllm": "0.32.0"}])
    with pytest.raises(EngineFailed, match="all workers of an engine must give the same handshake, got"):
        LocalEngine(llm).enable(top_k=0)
