"""Tests losses that take the teacher from the engine: equal to those of a teacher in the process, which loads none."""

from __future__ import annotations

import gc
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from python_tests.models.tiny_models import END_OF_TURN, EOS, prompts, saved, tiny_llama, tiny_tokenizer
from python_tests.training.engine.fake_engines import FakeEngines
from python_tests.training.trainer_cases import make_trainer, steps, weights, without_timings
from trbext.training.losses import reverse_kl
from trbext.training.teachers.top_divergence import reverse_kl_of_top
from trbext.training.trainer import TRBTrainer
from trbext.vllm.sampler.teacher_top import TeacherTop

HIDDEN = 48  # of the teacher: no other model here has this width


@pytest.fixture(scope="module", params=["same", "unlike"])
def pair(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[str, str]:
    """Returns the folders of a student and a teacher, of the same vocabulary or of unlike widths and EOS ids."""
    folder = tmp_path_factory.mktemp("pair")
    same = request.param == "same"
    student = tiny_llama(0, vocab_size=64 if same else 72)
    teacher = tiny_llama(1, hidden=HIDDEN, eos=EOS if same else [END_OF_TURN, EOS])
    return saved(folder / "student", student, tiny_tokenizer()), saved(folder / "teacher", teacher, tiny_tokenizer())


def trained(folder: Path, pair: tuple[str, str], **fields: Any) -> TRBTrainer:
    # Adam would turn the rounding of a gradient near 0 into a step of the whole learning rate.
    settings: dict[str, Any] = {"loss_top_k": 5, "max_steps": 4, "vllm_after_warmup": "keep", "optim": "sgd"}
    held_out = {"held_out": prompts(6), "eval_strategy": "steps", "eval_steps": 2}
    trainer = make_trainer(folder, *pair, use_vllm=True, **settings | held_out | fields)
    trainer.train()
    return trainer


def compare(of_engine: TRBTrainer, of_process: TRBTrainer) -> None:
    """Checks that two runs logged and trained the same, up to what an engine does not tell."""
    one, two = (without_timings(trainer.state.log_history) for trainer in (of_engine, of_process))
    assert len(one) == len(two)
    for line, expected in zip(one, two, strict=True):
        untold = {name for name in expected if name.endswith("teacher_entropy")}
        assert line.keys() == expected.keys() - untold
        for name in line.keys() - {"compute/teacher_tokens"}:
            assert line[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
    for name, weight in weights(of_process).items():
        torch.testing.assert_close(weights(of_engine)[name], weight, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"gradient_accumulation_steps": 2, "temperature": 1.3},
        {"rollout_policy": "sft", "sft_steps": 2},
    ],
)
def test_runs_are_those_of_a_teacher_in_the_process(
    tmp_path: Path, pair: tuple[str, str], fakes: FakeEngines, fields: dict[str, Any]
) -> None:
    of_engine, of_process = (trained(tmp_path, pair, teacher_from_engine=engine, **fields) for engine in (True, False))
    assert of_engine.teacher_model is None
    assert of_process.teacher_model is not None
    assert len(fakes.rollouts) >= 8
    compare(of_engine, of_process)


def test_no_process_of_the_trainer_loads_the_teacher(
    tmp_path: Path, pair: tuple[str, str], fakes: FakeEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the teacher is loaded")

    monkeypatch.setattr("trbext.training.teachers.loading.load_teacher", refuse)
    gc.collect()
    before = {id(model) for model in gc.get_objects() if type(model) is LlamaForCausalLM}
    trainer = make_trainer(tmp_path, *pair, use_vllm=True, loss_top_k=5, teacher_from_engine=True, max_steps=5)
    made = [each for each in gc.get_objects() if type(each) is LlamaForCausalLM and id(each) not in before]
    assert [model.config.hidden_size for model in made] == [16]  # the student
    trainer.train()
    assert fakes.built == ["trb"]  # it holds the teacher to the end
    assert all(math.isfinite(log["loss"]) and "trb/teacher_entropy" not in log for log in steps(trainer))


def test_a_resumed_run_repeats_the_uninterrupted_run_bitwise(
    tmp_path: Path, pair: tuple[str, str], fakes: FakeEngines
) -> None:
    fields: dict[str, Any] = {"teacher_from_engine": True, "save_strategy": "steps", "save_steps": 2}
    whole = trained(tmp_path, pair, **fields)
    resumed = make_trainer(
        tmp_path,
        *pair,
        use_vllm=True,
        loss_top_k=5,
        max_steps=4,
        held_out=prompts(6),
        eval_strategy="steps",
        eval_steps=2,
        optim="sgd",
        **fields,
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert without_timings(steps(resumed)) == without_timings(steps(whole))
    assert all(torch.equal(weights(resumed)[name], weight) for name, weight in weights(whole).items())


# ---- The loss itself ----


def top_of(student: Tensor, teacher: Tensor, k: int, temperature: float) -> TeacherTop:
    """Returns what an engine says of a teacher with these logits."""
    ids = student.topk(k).indices
    log_probs = (teacher / temperature).log_softmax(-1)
    rest = log_probs.scatter(-1, ids, -torch.inf).logsumexp(-1)
    return TeacherTop(ids.int(), log_probs.gather(-1, ids), rest)


@pytest.mark.parametrize("k", [1, 5, 32])
@pytest.mark.parametrize("excluded", ["none", "of the teacher", "of both"])
def test_it_is_the_top_k_loss_with_its_gradient(k: int, excluded: str) -> None:
    generator = torch.Generator().manual_seed(k)
    student, teacher = (3 * torch.randn(7, 32, dtype=torch.float64, generator=generator) for _ in range(2))
    if excluded != "none":
        teacher[:, 3:9] = -torch.inf
    if excluded == "of both":
        student[:, 3:7] = -torch.inf
    values, gradients = [], []
    for of_engine in (True, False):
        logits = student.clone().requires_grad_()
        if of_engine:
            kl = reverse_kl_of_top(logits, top_of(student, teacher, k, 0.7), temperature=0.7)
        else:
            kl = reverse_kl(logits, teacher, top_k=k, temperature=0.7)
        kl.sum().backward()
        assert logits.grad is not None
        values.append(kl.detach())
        gradients.append(logits.grad)
    assert values[1].isfinite().all()
    torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-11, atol=1e-12)
