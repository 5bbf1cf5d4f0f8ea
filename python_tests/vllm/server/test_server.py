"""A server of two data-parallel replicas draws from mu, before and after its student's weights have changed."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from python_tests.rollout.rollout_cases import p_value_of_counts, sequence_law
from python_tests.vllm.server.process_tree import descendants
from python_tests.vllm.server.served_models import ALIGNMENT, Models, make_models
from python_tests.vllm.server.server_process import ServerProcess, connected, server_process
from trbext import reference
from trbext.cli import main
from trbext.errors import EngineFailed
from trbext.vllm.client import EngineDraw, EngineRollouts
from trbext.vllm.http import HTTPEngine
from trbext.vllm.server.connection import ServerConnection
from trbext.vllm.transport import RolloutRequest

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM"),
    pytest.mark.xdist_group("vllm_server"),  # one server for all of them
]

PROMPT = [1, 5, 7, 4, 9]
DRAWS = 2000
LEAST_P = 1e-4  # what is drawn is not the same each time: the server batches requests as they come


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    # So few blocks that long rollouts preempt each other.
    tight = ["--block-size", "32", "--num-gpu-blocks-override", "12"]
    with server_process(models, tmp_path_factory.mktemp("server"), "-dp", "2", *tight) as process:
        connected(process)
        yield process


@pytest.fixture
def engine(server: ServerProcess, models: Models) -> HTTPEngine:
    """The server with the student with which it began."""
    engine = connected(server)
    engine.load_student(str(models.student))
    return engine


def rollouts(engine: HTTPEngine, top_k: int = 0) -> EngineRollouts:
    return EngineRollouts(engine, ALIGNMENT, pad_token_id=0, top_k=top_k)


def p_value(
    draw: EngineDraw, models: Models, student: Path, epsilon: float, *, prompt: list[int] = PROMPT, length: int = 2
) -> float:
    """The p-value of the chi-square test of the first `length` tokens."""
    loaded = [AutoModelForCausalLM.from_pretrained(path).double().eval() for path in (student, models.teacher)]
    rows = zip(draw.rollout.tokens.tolist(), draw.rollout.lengths.tolist(), strict=True)
    counts = Counter(tuple(tokens[: min(length, end)]) for tokens, end in rows)
    return p_value_of_counts(sequence_law(*loaded, prompt, epsilon, ALIGNMENT, length), counts)


def test_it_answers_for_two_replicas_with_the_alignment_of_its_models(engine: HTTPEngine, models: Models) -> None:
    facts = engine.handshake()
    assert (facts["teacher"], facts["student"]) == (str(models.teacher), str(models.student))
    assert {name: facts[name] for name in ("replicas", "draft_length", "max_num_seqs", "max_model_len")} == {
        "replicas": 2,
        "draft_length": 3,
        "max_num_seqs": 32,
        "max_model_len": 256,
    }
    assert (facts["width"], facts["stop"], tuple(facts["merged"])) == (
        ALIGNMENT.width,
        ALIGNMENT.stop,
        ALIGNMENT.duplicates,
    )


def test_the_first_two_tokens_follow_mu_before_and_after_new_weights(engine: HTTPEngine, models: Models) -> None:
    before = engine.digest()
    first = rollouts(engine).draw([PROMPT] * DRAWS, epsilon=0.1, max_new_tokens=2, seed=1)
    assert p_value(first, models, models.student, 0.1) > LEAST_P
    assert p_value(first, models, models.trained, 0.1) < 1e-12

    engine.load_student(str(models.trained))
    after = engine.digest()
    assert before[0] == before[1]
    assert after[0] == after[1]
    assert after[0]["teacher"] == before[0]["teacher"]
    assert after[0]["student"] != before[0]["student"]

    second = rollouts(engine).draw([PROMPT] * DRAWS, epsilon=0.1, max_new_tokens=2, seed=1)
    assert p_value(second, models, models.trained, 0.1) > LEAST_P
    assert p_value(second, models, models.student, 0.1) < 1e-12


def test_a_client_is_told_that_another_one_has_loaded_weights(
    engine: HTTPEngine, server: ServerProcess, models: Models
) -> None:
    other = connected(server)
    other.set_epsilon(0.3)
    other.seed(4)
    engine.counters()
    other.load_student(str(models.trained))
    other.counters()
    with pytest.raises(EngineFailed, match="another client has changed its weights or settings"):
        engine.counters()


@pytest.mark.parametrize("epsilon", [0.0, 0.02, math.inf])
def test_a_budget_of_the_server_reaches_both_replicas(engine: HTTPEngine, epsilon: float) -> None:
    rollouts(engine)
    engine.set_epsilon(epsilon)
    assert engine.handshake()["epsilon"] == epsilon
    engine.counters(clear=True)
    engine.generate([RolloutRequest(PROMPT, key, 8, 1.0, ALIGNMENT.stop) for key in range(64)])
    counted = engine.counters()
    assert len(counted) == 2
    for counts in counted:
        assert counts["tokens"] > 0
        if epsilon == math.inf:
            assert counts["beta_mean"] == 1.0
            assert counts["kl_max"] > 0.1
        else:
            assert 0.99 * epsilon <= counts["kl_max"] <= epsilon * 1.0001
    records = engine.take_records()
    assert sorted({key for record in records for key in record["key"].tolist()}) == list(range(64))
    assert all(len(record["key"]) for record in records)


# Its second block of 32 places, and 3 for drafts, is needed after a few tokens: then too many of them are running.
LONG_PROMPT = [1, *(3 + place % 12 for place in range(26))]


def test_rollouts_that_were_preempted_follow_mu(engine: HTTPEngine, models: Models) -> None:
    draw = rollouts(engine).draw([LONG_PROMPT] * 1000, epsilon=0.1, max_new_tokens=6, seed=2)
    assert draw.preemptions is not None
    assert min(draw.preemptions, draw.repaired) > 100
    assert p_value(draw, models, models.student, 0.1, prompt=LONG_PROMPT, length=3) > LEAST_P
    assert p_value(draw, models, models.student, 0.3, prompt=LONG_PROMPT, length=2) < 1e-6
    with pytest.raises(RuntimeError, match="from the teacher, for want of the student's drafts"):
        rollouts(engine).draw([LONG_PROMPT] * 64, epsilon=0.1, max_new_tokens=6, repair=False)


def test_each_token_of_a_repaired_rollout_has_the_numbers_of_its_prefix(engine: HTTPEngine, models: Models) -> None:
    prompts = [[1, *(3 + (row + place) % 12 for place in range(26))] for row in range(32)]
    budgets = [0.02 if row % 2 else 0.3 for row in range(32)]
    draw = rollouts(engine, top_k=3).draw(prompts, epsilon=budgets, max_new_tokens=40, seed=3)
    assert draw.repaired
    assert draw.rounds > 1

    rollout, top = draw.rollout, draw.teacher_top
    assert rollout.teacher_log_prob is not None
    assert top is not None
    student, teacher = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (models.student, models.teacher))
    for row, prompt in enumerate(prompts):
        length = int(rollout.lengths[row])
        assert bool(rollout.finished[row]) or length == 40
        tokens = rollout.tokens[row, :length]
        with torch.no_grad():
            of = [model(torch.tensor([[*prompt, *tokens.tolist()]])).logits[0] for model in (student, teacher)]
        a, b = (ALIGNMENT.canonical(logits[len(prompt) - 1 : -1].double()) for logits in of)
        mu = reference.blend(a, b, budgets[row])
        for found, law in (
            (rollout.log_prob, mu.log_probs),
            (rollout.student_log_prob, a.log_softmax(-1)),
            (rollout.teacher_log_prob, b.log_softmax(-1)),
        ):
            expected = law.gather(-1, tokens[:, None])[:, 0]
            torch.testing.assert_close(found[row, :length].double(), expected, rtol=0, atol=2e-3)
        torch.testing.assert_close(rollout.kl[row, :length].double(), mu.kl, rtol=0, atol=1e-4)
        of_ids = b.log_softmax(-1).gather(-1, top.ids[row, :length].long())
        torch.testing.assert_close(top.log_prob[row, :length].double(), of_ids, rtol=0, atol=2e-3)


def test_requests_that_could_not_follow_mu_get_status_400_and_the_server_lives_on(
    engine: HTTPEngine, models: Models, server: ServerProcess
) -> None:
    connection = ServerConnection(server.url)
    good: dict[str, Any] = {
        "prompt": PROMPT[:-1],
        "max_tokens": 4,
        "temperature": 1.0,
        "vllm_xargs": {"trb_held_out": PROMPT[-1]},
    }
    for change, part in (
        ({"vllm_xargs": {}}, "trb_held_out"),
        ({"vllm_xargs": {"trb_held_out": 9, "trb_epsilon": -1.0}}, "trb_epsilon"),
        ({"vllm_xargs": {"trb_held_out": 400}}, "trb_held_out"),
        ({"vllm_xargs": {"trb_held_out": 9, "trb_key": "a"}}, "trb_key"),
        ({"vllm_xargs": {"trb_held_out": 9, "trb_key": 2**63}}, "trb_key"),
        ({"top_p": 0.9}, "top_p"),
        ({"top_k": 5}, "top_k"),
        ({"temperature": 0.0}, "temperature"),
        ({"logprobs": 1}, "logprobs"),
        ({"seed": 1}, "seed"),
        ({"logit_bias": {"3": 1.0}}, "logit_bias"),
        ({"max_tokens": 400}, "max_model_len|maximum context length"),
        ({"prompt": [400]}, "vocab"),
    ):
        reply = connection.send("POST", "/v1/completions", {**good, **change})
        assert reply.status == 400, change
        assert any(name in reply.error() for name in part.split("|")), reply.error()
    for name, body in (("epsilon", {"epsilon": -1}), ("student", {"path": "/nowhere"}), ("enable", {"width": -1})):
        assert connection.send("POST", f"/trb/{name}", body).status == 400
    assert connection.send("POST", "/trb/epsilon", [1]).status == 400
    for setting in ({"top_k": 10**6}, {"stop": 10**6}, {"merged": [10**6]}):
        reply = connection.send("POST", "/trb/enable", setting)
        assert reply.status == 400
        assert "that both models have, got 1000000" in reply.error()
    assert connection.send("POST", "/v1/completions", good).status == 200
    draw = rollouts(engine).draw([PROMPT] * 8, epsilon=0.1, max_new_tokens=4)
    assert draw.rollout.mask.any(1).all()


def test_weights_that_do_not_fit_are_an_error_of_each_replica_and_the_server_lives_on(
    engine: HTTPEngine, tmp_path: Path
) -> None:
    before = engine.digest()
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(EngineFailed, match=r"trb_load_student failed in 2 of 2 replicas: replica 0: .*; replica 1: "):
        engine.load_student(str(tmp_path))
    assert engine.digest() == before


def test_the_check_prints_what_it_found(engine: HTTPEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vllm-check", engine.url]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["replicas"] == "2"
    assert lines["law"] == "kept"


@pytest.mark.nightly
def test_a_server_that_dies_while_it_draws_ends_the_draw_in_one_line(models: Models, tmp_path: Path) -> None:
    with server_process(models, tmp_path, "--api-key", "secret") as process:
        connected(process, "secret")
        assert ServerConnection(process.url).send("GET", "/trb/handshake").status == 401
        assert ServerConnection(process.url, "wrong").send("POST", "/trb/epsilon", {"epsilon": 9}).status == 401
        engine = HTTPEngine(process.url, api_key="secret")
        drawing = rollouts(engine)

        def kill() -> None:
            while not engine.running():
                pass
            for child in descendants(process.process.pid):
                os.kill(child, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(EngineFailed, match=rf"the server at {process.url} ") as error:
            drawing.draw([PROMPT] * 2000, epsilon=0.1, max_new_tokens=100)
        assert "\n" not in str(error.value)
        killer.join()
        process.ends()
        with pytest.raises(EngineFailed, match="it has ended since the last call"):
            engine.counters()


@pytest.mark.nightly
def test_a_server_whose_engine_cannot_be_enabled_does_not_come_up(models: Models, tmp_path: Path) -> None:
    speculation = {
        "method": "draft_model",
        "model": str(models.student),
        "num_speculative_tokens": 3,
        "draft_sample_method": "probabilistic",
        "rejection_sample_method": "block",
    }
    with server_process(models, tmp_path, unchecked=["--speculative-config", json.dumps(speculation)]) as process:
        assert process.ends() != 0
    assert "rejection_sample_method must be 'standard', got 'block'" in process.output()
