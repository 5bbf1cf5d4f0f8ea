"""Tests the trainer with engines in the place of its decoder: weights, budgets, metrics, hand-over, resuming, faults.

The engines are stand-ins that draw with our own decoder, so that nothing here needs vLLM.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.models.tiny_models import END_OF_TURN, EOS, prompts, saved, tiny_llama, tiny_tokenizer
from python_tests.training.engine.fake_engines import FakeEngine, FakeEngines, FakeStudent, same_weights
from python_tests.training.trainer_cases import METRICS, make_trainer, steps, weights, without_timings
from trbext.errors import EngineFailed, UsageError
from trbext.models.stored_digest import model_digest
from trbext.rollout.policies import LambdaCoin, TrustRegion
from trbext.training.config import TRBConfig
from trbext.training.engine.build import EngineModels, trb_engine
from trbext.training.engine.rollouts import budgets, last_blended_step
from trbext.training.engine.student_decoder import StudentDecoder
from trbext.training.engine.turn import EngineTurn
from trbext.training.metrics import metric_table
from trbext.training.trainer import TRBTrainer
from trbext.vocab import Alignment

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
ENGINE_METRICS = {"trb/acceptance", "trb/tokens_per_teacher_pass", "trb/repaired_rows", "trb/preemptions"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Returns the folders of a student and a teacher."""
    folder = tmp_path_factory.mktemp("pair")
    student, teacher = tiny_llama(0), tiny_llama(1, hidden=32)
    return saved(folder / "student", student, tiny_tokenizer()), saved(folder / "teacher", teacher, tiny_tokenizer())


def engine_trainer(folder: Path, pair: tuple[str, str], **fields: Any) -> TRBTrainer:
    return make_trainer(folder, *pair, use_vllm=True, **fields)


# ---- Which engine draws what ----


def test_each_step_is_drawn_with_its_own_weights_and_the_teacher_leaves_with_the_budget(
    tmp_path: Path, pair: tuple[str, str], fakes: FakeEngines
) -> None:
    trainer = engine_trainer(tmp_path, pair, max_steps=5)
    assert fakes.built == []  # no engine before there is something to draw
    draw, seen = trainer._draw_from_engine, []

    def checked(*args: Any) -> Any:
        turn = draw(*args)
        assert same_weights(fakes.engines[-1], trainer.model)
        seen.append(fakes.built[-1])
        return turn

    trainer._draw_from_engine = checked
    trainer.train()
    assert seen == ["trb"] * 3 + ["student"] * 2
    assert (fakes.built, fakes.ended) == (["trb", "student"], ["trb"])
    assert len(fakes.loads) == 5
    assert [request.epsilon for call in fakes.asked for request in call[:1]] == pytest.approx([0.1, 0.2 / 3, 0.1 / 3])
    assert all(math.isfinite(log["loss"]) for log in steps(trainer))
    assert steps(trainer)[4]["trb/epsilon"] == steps(trainer)[4]["trb/kl_max"] == 0


def test_a_kept_engine_draws_from_the_student_at_epsilon_zero(
    tmp_path: Path, pair: tuple[str, str], fakes: FakeEngines
) -> None:
    trainer = engine_trainer(tmp_path, pair, max_steps=5, vllm_after_warmup="keep")
    trainer.train()
    assert fakes.built == ["trb"]
    assert [call[0].epsilon for call in fakes.asked][3:] == [0.0, 0.0]
    assert [log["trb/acceptance"] for log in steps(trainer)][3:] == [1.0, 1.0]


def test_a_run_of_the_student_alone_never_loads_the_teacher_in_its_engine(
    tmp_path: Path, pair: tuple[str, str], fakes: FakeEngines
) -> None:
    trainer = engine_trainer(tmp_path, pair, rollout_policy="student")
    trainer.train()
    assert fakes.built == ["student"]
    assert "trb/acceptance" not in steps(trainer)[0]
    assert steps(trainer)[0]["trb/sync_seconds"] > 0


@pytest.mark.parametrize(
    ("fields", "expected", "built"),
    [
        ({"rollout_policy": "fixed"}, [[0.1]] * 3, ["trb"]),
        ({"rollout_policy": "teacher"}, [[math.inf]] * 3, ["trb"]),
        ({"rollout_policy": "sft", "sft_steps": 1}, [[math.inf]], ["trb", "student"]),
        ({"rollout_policy": "gkd", "gkd_coin": "sequence"}, [[0.0, math.inf]] * 3, ["trb"]),
    ],
)
def test_each_policy_is_its_budget(
    tmp_path: Path,
    pair: tuple[str, str],
    fakes: FakeEngines,
    fields: dict[str, Any],
    expected: list[list[float]],
    built: list[str],
) -> None:
    engine_trainer(tmp_path, pair, max_steps=3, per_device_train_batch_size=16, **fields).train()
    assert [sorted({request.epsilon for request in call}) for call in fakes.asked] == expected
    assert fakes.built == built


def test_budgets_follow_the_law_of_the_policy() -> None:
    generator = torch.Generator().manual_seed(0)
    of_rollouts = budgets(LambdaCoin(0.3, "sequence"), 0, 4000, generator)
    assert set(of_rollouts) == {0.0, math.inf}
    assert abs(of_rollouts.count(0.0) / 4000 - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 4000)
    coin = LambdaCoin(0.5, "batch", seed=3)
    for step in range(20):
        assert budgets(coin, step, 2, generator) == [0.0 if coin.is_student(step) else math.inf] * 2
    assert budgets(TrustRegion(torch.tensor([0.1, 0.2])), 0, 2, generator) == pytest.approx([0.1, 0.2])
    assert last_blended_step(TrustRegion(lambda step: max(0.0, 0.1 - 0.02 * step)), 100) == 4
    assert last_blended_step(TrustRegion(0.0), 100) == -1
    assert last_blended_step(LambdaCoin(0.5, "sequence"), 100) == 99


def test_widths_and_eos_ids_may_differ(tmp_path: Path, fakes: FakeEngines) -> None:
    student = saved(tmp_path / "s", tiny_llama(0, vocab_size=72), tiny_tokenizer())
    teacher = saved(tmp_path / "t", tiny_llama(1, eos=[END_OF_TURN, EOS]), tiny_tokenizer())
    trainer = engine_trainer(tmp_path / "run", (student, teacher), max_steps=4)
    trainer.train()
    assert (fakes.engines[0].alignment.width, fakes.engines[0].alignment.duplicates) == (64, (END_OF_TURN,))
    assert all(math.isfinite(log["loss"]) for log in steps(trainer))


# ---- What is logged, and what the loss takes ----


def test_metrics_are_those_of_the_rollouts(tmp_path: Path, pair: tuple[str, str], fakes: FakeEngines) -> None:
    trainer = engine_trainer(tmp_path, pair, gradient_accumulation_steps=2)
    trainer.train()
    for log, rollout in zip(steps(trainer), fakes.rollouts, strict=True):
        assert log.keys() >= METRICS | ENGINE_METRICS
        assert log["trb/kl_max"] == rollout.kl[rollout.mask].max().item() > 0
        assert log["trb/beta_mean"] == pytest.approx(rollout.beta[rollout.mask].mean().item(), rel=1e-6)
        assert rollout.teacher_log_prob is not None
        expected = rollout.teacher_log_prob[rollout.mask].mean().item()
        assert log["trb/teacher_log_prob"] == pytest.approx(expected, abs=1e-5)  # of the loss's own teacher pass
        assert rollout.speculation is not None
        assert log["trb/acceptance"] == pytest.approx(rollout.speculation.acceptance)
        tokens = rollout.mask.sum().item() / rollout.speculation.row_passes
        assert log["trb/tokens_per_teacher_pass"] == pytest.approx(tokens)
        assert (log["trb/repaired_rows"], log["trb/preemptions"]) == (0, 0)
    assert steps(trainer)[-1]["compute/teacher_tokens"] > sum(rollout.mask.sum().item() for rollout in fakes.rollouts)
    table = {name for name in metric_table.METRICS if name in metric_table.OF_ENGINES}
    assert table <= steps(trainer)[0].keys()


def test_rollouts_whose_drafts_are_lost_are_repaired_and_counted(
    tmp_path: Path, pair: tuple[str, str], fakes: FakeEngines
) -> None:
    fakes.lose = {2}
    trainer = engine_trainer(tmp_path, pair, max_steps=3)
    trainer.train()
    assert [log["trb/repaired_rows"] for log in steps(trainer)] == [0, 1, 0]
    assert [log["trb/preemptions"] for log in steps(trainer)] == [0, 1, 0]
    assert len(fakes.asked[2]) == 1  # the rollout is asked for again from its second token
    assert fakes.asked[2][0].prompt[:-1] == fakes.asked[1][0].prompt


def test_without_repair_a_lost_draft_ends_the_run(tmp_path: Path, pair: tuple[str, str], fakes: FakeEngines) -> None:
    fakes.lose = {1}
    with pytest.raises(RuntimeError, match="drew tokens of 1 rollouts from the teacher"):
        engine_trainer(tmp_path, pair, vllm_repair=False).train()


def test_the_sampled_loss_weighs_tokens_by_the_engines_own_log_probs(
    tmp_path: Path, pair: tuple[str, str], fakes: FakeEngines
) -> None:
    trainer = engine_trainer(tmp_path, pair, loss_estimator="sampled", max_steps=1)
    seen: list[Tensor] = []
    compute_loss = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs, items: (
        seen.append(inputs["log_weight"]),
        compute_loss(model, inputs, items),
    )[1]
    trainer.train()
    (rollout,) = fakes.rollouts
    expected = (rollout.student_log_prob - rollout.log_prob).sum(1).sort().values  # the batch was shuffled
    torch.testing.assert_close(seen[0].sum(1).sort().values, expected)
    assert expected.abs().max() > 0


# ---- Resuming and evaluation ----


def test_a_resumed_run_repeats_the_uninterrupted_run_bitwise(
    tmp_path: Path, pair: tuple[str, str], fakes: FakeEngines
) -> None:
    whole = engine_trainer(tmp_path, pair, max_steps=6, trb_warmup_steps=4, **SAVING)
    whole.train()
    for checkpoint in (2, 4):
        resumed = engine_trainer(tmp_path, pair, max_steps=6, trb_warmup_steps=4, **SAVING)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{checkpoint}"))
        assert without_timings(steps(resumed)) == without_timings(steps(whole))
        for name, weight in weights(whole).items():
            assert torch.equal(weights(resumed)[name], weight), name
    assert fakes.built == ["trb", "student", "trb", "student", "student"]  # past the warmup no teacher is loaded


def test_an_evaluation_draws_from_the_student_and_changes_no_step(
    tmp_path: Path, pair: tuple[str, str], fakes: FakeEngines
) -> None:
    plain = engine_trainer(tmp_path, pair, max_steps=3)
    plain.train()
    asked = len(fakes.asked)
    fields: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}
    evaluated = engine_trainer(tmp_path, pair, max_steps=3, held_out=prompts(6), **fields)
    evaluated.train()
    assert without_timings(steps(evaluated)) == without_timings(steps(plain))
    calls = fakes.asked[asked:]
    assert [call[0].epsilon > 0 for call in calls] == [False, False, True] * 3  # two batches, then a step
    logged = [log for log in evaluated.state.log_history if "eval_loss" in log]
    assert len(logged) == 4
    assert len({log["eval_loss"] for log in logged}) == 4
    assert "eval_trb/acceptance" in logged[0]


@pytest.mark.parametrize("after_warmup", ["keep", "student"])
def test_pass_at_1_is_drawn_by_the_engine_from_the_student_at_temperature_1(
    tmp_path: Path, pair: tuple[str, str], fakes: FakeEngines, monkeypatch: pytest.MonkeyPatch, after_warmup: str
) -> None:
    monkeypatch.delattr("trbext.training.evaluating_trainer.OwnDecoder")
    drawn: list[tuple[float, int, list[list[int]]]] = []  # temperature, tokens at most, and completions
    draw_of_student, generate = FakeStudent.draw, FakeEngine.generate

    def draw(self: FakeStudent, prompts: Any, *, max_new_tokens: int, temperature: float, seed: int) -> Any:
        found = draw_of_student(self, prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        drawn.append((temperature, max_new_tokens, found))
        return found

    def generated(self: FakeEngine, requests: Any) -> Any:
        found = generate(self, requests)
        if requests[0].epsilon == 0:
            ids = [completion.tokens[1:] for completion in found]
            drawn.append((requests[0].temperature, requests[0].max_new_tokens, ids))
        return found

    monkeypatch.setattr(FakeStudent, "draw", draw)
    monkeypatch.setattr(FakeEngine, "generate", generated)
    seen: list[str] = []

    def first_is_a_letter(prompt: Any, completion: str, row: Any) -> bool:
        seen.append(completion)
        return completion[:1].isalpha()

    fields: dict[str, Any] = {"vllm_after_warmup": after_warmup, "temperature": 0.5, "max_steps": 5}
    plain = engine_trainer(tmp_path, pair, **fields)
    plain.train()
    drawn.clear()
    fields |= {"eval_strategy": "steps", "eval_steps": 1, "eval_samples": 3}
    trainer = engine_trainer(tmp_path, pair, held_out=prompts(4), verifier=first_is_a_letter, **fields)
    trainer.train()
    assert without_timings(steps(trainer)) == without_timings(steps(plain))
    logged = [log for log in trainer.state.log_history if "eval_pass@1" in log]
    of_passes = [call for call in drawn if call[0] == 1.0]
    assert [len(completions) for _, _, completions in of_passes] == [12] * 5
    texts = [trainer._tokenizer.decode(ids, skip_special_tokens=True) for _, _, rows in of_passes for ids in rows]
    assert seen == texts
    rights = [sum(text[:1].isalpha() for text in texts[12 * step : 12 * step + 12]) / 12 for step in range(5)]
    assert [log["eval_pass@1"] for log in logged] == pytest.approx(rights)
    assert len(set(rights)) > 1
    assert {longest for _, longest, _ in of_passes} <= {
        trainer.max_completion_length,
        trainer.max_completion_length + 1,
    }
    assert fakes.built[-1] == ("trb" if after_warmup == "keep" else "student")
    for log in logged:
        tokens = log["eval_pass@1_tokens_per_second"] * log["eval_pass@1_runtime"]
        assert tokens == pytest.approx(round(tokens))
    assert same_weights(fakes.engines[-1], trainer.model)


def test_a_process_without_prompts_takes_part_in_the_draw_of_pass_at_1() -> None:
    asked: list[Any] = []

    class Engines:
        models = EngineModels("", "", torch.float32, 4)
        alignment = Alignment(64, (EOS,), ())

        def draw(self, prompts: Any, epsilon: Any, **settings: Any) -> EngineTurn:
            asked.append((prompts, epsilon, settings["max_new_tokens"]))
            return EngineTurn([[7]] * len(prompts), None, 0, 0)

    engines: Any = Engines()
    decoder = StudentDecoder(engines, tiny_tokenizer(), blended=True, step=0, seed=0)
    assert list(decoder.draw([], lambda _: True, lambda *_: None)) == []
    assert asked == [([[EOS, EOS]], [0.0], 1)]


def test_an_evaluation_before_training_needs_no_teacher_in_the_engine(
    tmp_path: Path, pair: tuple[str, str], fakes: FakeEngines
) -> None:
    trainer = engine_trainer(tmp_path, pair, held_out=prompts(4))
    before = trainer.evaluate()
    trainer.train()
    assert fakes.built == ["student", "trb"]
    assert trainer.evaluate()["eval_loss"] != before["eval_loss"]
    assert same_weights(fakes.engines[-1], trainer.model)


def test_weights_that_no_step_made_are_evaluated(tmp_path: Path, pair: tuple[str, str], fakes: FakeEngines) -> None:
    trainer = engine_trainer(tmp_path, pair, held_out=prompts(4))
    trainer.train()
    trainer.evaluate()
    with torch.no_grad():  # as loading the best checkpoint does, at the same step
        trainer.model.lm_head.weight += 0.5
    trainer.evaluate()
    assert same_weights(fakes.engines[-1], trainer.model)


def test_a_teacher_that_has_changed_is_found_before_a_checkpoint(
    tmp_path: Path, pair: tuple[str, str], fakes: FakeEngines
) -> None:
    fakes.touched = True
    with pytest.raises(EngineFailed, match="weights of the teacher in vLLM have changed"):
        engine_trainer(tmp_path, pair, **SAVING).train()
    assert not list(tmp_path.glob("checkpoint-*"))


# ---- A server ----


def test_a_server_gets_the_weights_by_a_folder_and_keeps_its_teacher(
    tmp_path: Path, pair: tuple[str, str], fakes: FakeEngines
) -> None:
    trained = []
    for mode in ("colocate", "server"):
        trainer = engine_trainer(tmp_path / mode, pair, max_steps=4, vllm_mode=mode, vllm_after_warmup="keep")
        trainer.train()
        trained.append((without_timings(steps(trainer)), weights(trainer)))
    assert fakes.built == ["trb", "trb"]
    assert trained[0][0] == trained[1][0]
    assert all(torch.equal(weight, trained[1][1][name]) for name, weight in trained[0][1].items())
    assert not (tmp_path / "server" / "student-for-vllm").exists()


def test_a_server_of_another_teacher_is_refused(
    tmp_path: Path, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Server:
        def __init__(self, url: str, *, wait: float) -> None:
            assert (url, wait) == ("http://gpu:9000", 240.0)

        def handshake(self) -> dict[str, Any]:
            return {"teacher": "/mnt/models/" + served, **digest}

    monkeypatch.setattr("trbext.vllm.http.HTTPEngine", Server)
    config = TRBConfig("unused", use_cpu=True, bf16=False, use_vllm=True, vllm_mode="server")
    config.vllm_server_base_url = "http://gpu:9000"
    models = EngineModels(*pair, torch.float32, 4)
    served, digest = "teacher", {}
    assert isinstance(trb_engine(config, models), Server)
    digest = {"teacher_files": model_digest(pair[1])}
    assert isinstance(trb_engine(config, models), Server)
    digest = {"teacher_files": model_digest(pair[0])}  # of another run's folder with the same name
    with pytest.raises(UsageError, match=r"of this run, .*teacher, got /mnt/models/teacher with other files"):
        trb_engine(config, models)
    served = "Qwen3-8B"
    with pytest.raises(UsageError, match=r"must have the teacher of this run, .*teacher, got /mnt/models/Qwen3-8B"):
        trb_engine(config, models)


def test_the_draft_length_of_an_engine_is_four_unless_it_is_set(
    tmp_path: Path, pair: tuple[str, str], fakes: FakeEngines
) -> None:
    for given, expected in (("auto", 4), (2, 2)):
        engine_trainer(tmp_path, pair, max_steps=1, draft_length=given).train()
        assert fakes.engines[-1].draft_length == expected
