"""A replica answers verl's agent loops from mu, at the budget of its step, with the teacher that it began with."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from python_tests.verl.fake_verl import RPCEngine, TokenOutput, installed, model_config, rollout_config
from python_tests.vllm.fake_engine import STOP, FakeEngine, law_after
from trbext.verl.answers import facts_of
from trbext.verl.metrics import check_rollouts
from trbext.verl.teacher_rows import REST

PROMPT = [4, 3, 1]
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    with installed(monkeypatch) as server:
        yield server


def started(module: Any, fake: FakeEngine | None = None, **changes: Any) -> Any:
    server = module.TRBServer(rollout_config(**changes), model_config())
    engine = RPCEngine(fake or FakeEngine())
    asyncio.run(server.run_server(SimpleNamespace(engine=engine, model="S", model_tag="S")))
    return server


def test_the_engine_s_model_is_the_teacher_and_its_draft_the_student(module: Any) -> None:
    server = started(module)
    given: dict[str, Any] = {}
    server._preprocess_engine_kwargs(given)
    assert given["seen_by_verl"]
    assert given["speculative_config"] == {
        "method": "draft_model",
        "model": "S",
        "num_speculative_tokens": 3,
        "draft_sample_method": "probabilistic",
        "draft_tensor_parallel_size": 2,
    }
    assert server.engine.enabled == {"width": 6, "stop": 2, "merged": [], "top_k": 2}
    assert server._get_worker_extension_cls() == "trbext.verl.worker.ColocateWorkerExtension"
    assert server._resolve_sleep_level() == 1
    assert os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    for start in (server.run_server, server.run_headless):
        arguments = SimpleNamespace(engine=server.engine, model="S", model_tag="S")
        asyncio.run(start(arguments))
        assert (arguments.model, arguments.model_tag) == ("T", "T")


def test_the_budget_is_that_of_the_weights(module: Any) -> None:
    server = started(module, FakeEngine())
    for step, epsilon in ((0, 0.1), (1, 0.075), (3, 0.025), (4, 0.0), (9, 0.0)):
        asyncio.run(server.set_global_steps(step))
        assert server.global_steps == step
        output = asyncio.run(server.generate(PROMPT, SAMPLING, "r"))
        assert server.asked[-1]["extra_args"]["trb_epsilon"] == pytest.approx(epsilon)
        assert facts_of(output.extra_fields).epsilon == pytest.approx(epsilon)
        assert output.extra_fields["global_steps"] == step
    assert len(set(server.engine.seeds)) == 5


def test_validation_names_a_budget_of_its_own(module: Any) -> None:
    server = started(module)
    asyncio.run(server.generate(PROMPT, {**SAMPLING, "extra_args": {"trb_epsilon": 0.0}}, "r"))
    assert server.asked[-1]["extra_args"]["trb_epsilon"] == 0.0


def test_an_answer_has_what_was_computed_of_its_tokens(module: Any) -> None:
    server = started(module, FakeEngine(lost=0.3))
    law = law_after(0.1)
    for _ in range(20):
        output = asyncio.run(server.generate(PROMPT, SAMPLING, "r"))
        tokens, facts = output.token_ids, facts_of(output.extra_fields)
        last = [PROMPT[-1], *tokens[:-1]]
        assert output.log_probs == law.mu[last, tokens].float().tolist()
        beta, kl, student, teacher = torch.from_numpy(facts.values)
        for found, said in (
            (beta, law.beta[last]),
            (kl, law.kl[last]),
            (student, law.student[last, tokens]),
            (teacher, law.teacher[last, tokens]),
        ):
            assert torch.equal(found, said.float())
        ids = output.extra_fields["teacher_ids"]
        assert ids.shape == output.extra_fields["teacher_logprobs"].shape == (len(PROMPT) + len(tokens), 3)
        known = (ids[:, :-1] != REST).all(1)
        assert known.tolist() == [False] * 2 + [True] * len(tokens) + [False]
        assert (output.stop_reason, output.extra_fields["num_cached_tokens"]) == ("completed", 7)
        assert output.num_preempted == 2 * (1 + facts.repaired)


def test_a_prompt_that_ends_with_the_stop_token_is_continued(module: Any) -> None:
    server = started(module)
    outputs = [asyncio.run(server.generate([4, STOP], SAMPLING, "r")) for _ in range(20)]
    assert all(asked["stop_token_ids"] == [] for asked in server.asked)
    for output in outputs:
        assert STOP not in output.token_ids[:-1]
        assert output.token_ids[-1] == STOP or len(output.token_ids) == 3


def test_a_completion_that_was_aborted_past_its_end_is_whole(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def generate(self: Any, **asked: Any) -> Any:
        return TokenOutput((await real(self, **asked)).token_ids, stop_reason="aborted")

    server = started(module)
    real = module.vLLMHttpServer.generate
    monkeypatch.setattr(module.vLLMHttpServer, "generate", generate)
    outputs = [asyncio.run(server.generate([4, STOP], SAMPLING, "r")) for _ in range(20)]
    reasons = [output.stop_reason == "completed" for output in outputs]
    assert reasons == [output.token_ids[-1] == STOP for output in outputs]
    assert len(set(reasons)) == 2


def test_log_probs_come_only_if_they_are_asked_for(module: Any) -> None:
    assert asyncio.run(started(module).generate(PROMPT, {**SAMPLING, "logprobs": False}, "r")).log_probs is None


def test_another_teacher_ends_the_run(module: Any) -> None:
    server = started(module)
    asyncio.run(server.set_global_steps(1))
    server.engine.digest = "other"
    with pytest.raises(RuntimeError, match="teacher's weights must stay as they were, got others in replica 0"):
        asyncio.run(server.set_global_steps(2))
    assert server.epsilon == pytest.approx(0.075)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_p": 0.9}, "top_p must be 1.0, got 0.9"),
        ({"top_k": 20}, "top_k must be 0, got 20"),
        ({"stop": ["x"]}, r"takes no stop, got \['x'\]"),
        ({"temperature": 0}, "temperature of at least 0.01, got 0"),
        ({"extra_args": {"kv_transfer_params": 1}}, "may have trb_epsilon only, got kv_transfer_params"),
        ({"max_tokens": 99}, "raise rollout.max_model_len"),
    ],
)
def test_what_would_not_follow_mu_is_refused_before_the_engine_is_asked(
    changes: dict[str, Any], message: str, module: Any
) -> None:
    server = started(module)
    with pytest.raises(ValueError, match=message):
        asyncio.run(server.generate(PROMPT, {**SAMPLING, **changes}, "r"))
    assert server.asked == []


def test_the_first_rollout_that_fails_is_told_with_the_counters(module: Any) -> None:
    server = started(module)
    for length in (99, 98):
        with pytest.raises(ValueError, match=f"got 3 \\+ {length}"):
            asyncio.run(server.generate(PROMPT, {**SAMPLING, "max_tokens": length}, "r"))
    counts = asyncio.run(server.trb_counters())
    assert counts["tokens"] == 3
    with pytest.raises(RuntimeError, match=r"a rollout of replica 1 failed, .* lack it: EngineRefused: .* got 3 \+ 99"):
        check_rollouts([{"tokens": 3}, counts])
    check_rollouts([asyncio.run(server.trb_counters())])


def test_pictures_are_refused(module: Any) -> None:
    with pytest.raises(ValueError, match="takes no image_data"):
        asyncio.run(started(module).generate(PROMPT, SAMPLING, "r", image_data=[1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_model_len": 16}, r"max_model_len must be at least .* = 17 tokens, .* got 16"),
        ({"data_parallel_size": 2}, "data_parallel_size must be 1, got 2: "),
        ({"load_format": "dummy"}, "load_format must be auto, got dummy"),
        ({"calculate_log_probs": False}, "calculate_log_probs must be True, got False"),
        ({"full_determinism": True}, "full_determinism must be False, got True"),
        ({"custom": None}, "custom.trb must say what TRB draws with"),
        ({"custom": {"trb": {"teacher": "T", "epsilon": 0.1, "draft": 3}}}, "has the names .*, got draft"),
        ({"custom": {"trb": {"epsilon": 0.1}}}, "custom.trb.teacher must be given"),
        ({"custom": {"trb": {"teacher": "T", "epsilon": 0.1}}}, "custom.trb.warmup_steps must be given"),
        (
            {"custom": {"trb": {"teacher": "T", "epsilon": 1, "schedule": "piecewise"}}},
            "custom.trb.points must be given",
        ),
        ({"custom": {"trb": {"teacher": "T", "epsilon": -1, "warmup_steps": 4}}}, "0 <= epsilon <= inf, got -1"),
        (
            {"custom": {"trb": {"teacher": "T", "epsilon": 1, "schedule": "constant", "draft_length": 0}}},
            "draft_length .* at least 1, got 0",
        ),
    ],
)
def test_a_replica_whose_tokens_would_not_follow_mu_does_not_start(
    changes: dict[str, Any], message: str, module: Any
) -> None:
    with pytest.raises(ValueError, match=message):
        module.TRBServer(rollout_config(**changes), model_config())


def test_an_engine_whose_draft_model_holds_less_than_the_config_says_does_not_start(module: Any) -> None:
    started(module, FakeEngine(max_model_len=17))
    with pytest.raises(ValueError, match=r"must hold prompt_length \+ response_length = 7 tokens, got 6: .* is 16"):
        started(module, FakeEngine(max_model_len=16))


@pytest.mark.parametrize(
    ("name", "value"),
    [("speculative_config", {}), ("worker_extension_cls", "x.Y"), ("enable-lora", True), ("logits_processors", ["x"])],
)
def test_arguments_of_vllm_that_change_the_law_are_refused(name: str, value: Any, module: Any) -> None:
    with pytest.raises(ValueError, match=f"engine_kwargs.vllm.{name} cannot be"):
        started(module)._preprocess_engine_kwargs({name: value})


def test_an_adapter_is_refused_unless_it_is_merged(module: Any) -> None:
    with pytest.raises(ValueError, match=r"lora\.merge must be true"):
        module.TRBServer(rollout_config(), model_config(lora_rank=8))
    module.TRBServer(rollout_config(), model_config(lora_rank=8, lora={"merge": True}))
