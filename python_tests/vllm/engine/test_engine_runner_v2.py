"""Tokens of vLLM's Model Runner V2 follow mu, in vLLM on the CPU with the runner's kernels interpreted."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from python_tests.vllm.chi_square import along_rollouts, assert_deviates, assert_follows
from python_tests.vllm.engine.engines import ENGINE_ARGS, skip_without_vllm
from python_tests.vllm.model_pairs import PROMPT, ModelPair
from python_tests.vllm.token_law import TokenLaw

pytestmark = [pytest.mark.vllm, pytest.mark.nightly]
skip_without_vllm()
if importlib.util.find_spec("triton") is None:
    pytest.skip("needs the package triton, whose interpreter runs the kernels", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[3]
LOW, HIGH = 0.02, 1.5  # budgets
ROLLOUTS = 120  # most of a second each


def drawn_by_v2(pair: ModelPair, folder: Path, *, engine: dict[str, Any] | None = None, **case: Any) -> dict[str, Any]:
    """What a process with Model Runner V2 draws."""
    models = {"teacher": str(pair.teacher), "student": str(pair.student), "draft_length": 3}
    alignment = (pair.alignment.width, pair.alignment.student_eos, pair.alignment.teacher_eos)
    whole = {"engine": ENGINE_ARGS | models | (engine or {}), "alignment": alignment, "top_k": 0, "own_drafts": False}
    (folder / "case.json").write_text(json.dumps(whole | case), encoding="utf-8")
    command = [sys.executable, "-m", "python_tests.vllm.engine.runner_v2_rollouts", "case.json", "result.json"]
    command[3:] = [str(folder / name) for name in command[3:]]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["runner"] == "vllm.v1.worker.gpu.model_runner"
    return result


def test_tokens_of_two_budgets_in_one_batch_follow_mu(pair: ModelPair, law: TokenLaw, tmp_path: Path) -> None:
    budgets = [LOW, HIGH] * (ROLLOUTS // 2)
    prompts = [PROMPT] * ROLLOUTS
    draw = {"prompts": prompts, "epsilon": budgets, "max_new_tokens": 8, "seed": 1}
    found = drawn_by_v2(pair, tmp_path, engine={"max_num_seqs": 64}, draw=draw)
    assert (found["rounds"], found["repaired"]) == (1, 0)
    for rows, budget in ((slice(0, None, 2), LOW), (slice(1, None, 2), HIGH)):
        assert_follows(along_rollouts(found["tokens"][rows], law, prompts[rows], budgets[rows]))
        assert max(max(row) for row in found["kl"][rows]) <= budget * (1 + 1e-4)
    assert_deviates(along_rollouts(found["tokens"], law, prompts, budgets[::-1]))


def test_the_values_of_each_token_are_those_of_the_law(pair: ModelPair, law: TokenLaw, tmp_path: Path) -> None:
    """The drafts are those of vLLM's own kernel here, at another temperature."""
    draw = {"prompts": [PROMPT, PROMPT[:3]], "epsilon": 0.2, "max_new_tokens": 6, "temperature": 0.7, "seed": 2}
    found = drawn_by_v2(pair, tmp_path, own_drafts=True, top_k=4, engine={"max_num_seqs": 4}, draw=draw)
    for row, prompt in enumerate(draw["prompts"]):
        sequence = torch.tensor([[*prompt, *found["tokens"][row]]])
        expected = law.along(sequence[:, :-1], len(prompt), epsilon=0.2, temperature=0.7)
        at = sequence[:, len(prompt) :, None]
        for name, values in (
            ("student_log_prob", expected.student),
            ("teacher_log_prob", expected.teacher),
            ("log_prob", expected.mu),
        ):
            assert found[name][row] == pytest.approx(values.gather(-1, at)[0, :, 0].tolist(), abs=1e-4)
        assert found["kl"][row] == pytest.approx(expected.kl[0].tolist(), abs=1e-4)
        ids = torch.tensor(found["top_ids"][row])
        assert torch.equal(ids, expected.student[0].topk(4).indices)
        assert found["top_log_prob"][row] == pytest.approx(expected.teacher[0].gather(-1, ids), abs=1e-4)


def test_preempted_rollouts_are_repaired_to_the_law(pair: ModelPair, law: TokenLaw, tmp_path: Path) -> None:
    """Few blocks of KV cache make vLLM read requests again, whose next token the teacher draws."""
    prompts, budgets = [PROMPT] * 16, [0.2] * 16
    found = drawn_by_v2(
        pair,
        tmp_path,
        engine={"num_gpu_blocks_override": 16},
        draw={"prompts": prompts, "epsilon": budgets, "max_new_tokens": 50, "seed": 1},
    )
    assert found["preemptions"] > 0
    assert found["repaired"] > 0
    assert {len(row) for row in found["tokens"] if row[-1] != pair.alignment.stop} <= {50}
    assert_follows(along_rollouts(found["tokens"], law, prompts, budgets))
