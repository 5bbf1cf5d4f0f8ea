"""Draws rollouts with vLLM's Model Runner V2 on the CPU, in a process of its own.

    python -m python_tests.vllm.engine.runner_v2_rollouts CASE.json RESULT.json

The CPU build of vLLM has that runner too, but its kernels are Triton's, of which no compiler for the CPU is published.
Triton's interpreter runs them here. Only `gumbel_sample`, which draws a draft from the student's logits and keeps
them, is replaced by torch: interpreted, it takes two thirds of the time.

A case has `engine`, the arguments of `engine_args`; `alignment`, those of `Alignment`; `top_k`; `own_drafts`, whether
vLLM's own `gumbel_sample` draws; and `draw`, the arguments of `EngineRollouts.draw`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

ENVIRONMENT = {
    "TRITON_INTERPRET": "1",
    "TRB_VLLM_RUNNER_V2": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "VLLM_CPU_CI_ENV": "1",  # kernels are not warmed up
}
VALUES = ("tokens", "kl", "log_prob", "student_log_prob", "teacher_log_prob")


def interpret_kernels() -> None:
    """Makes vLLM take Triton's interpreter for a compiler. To be called before vLLM is imported."""
    import numpy as np
    from triton.backends import backends
    from triton.runtime.interpreter import InterpreterBuilder

    backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)
    # The interpreter refuses a mask that combines a block with a scalar: it takes the type for an integer.
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def flags(mask: Any) -> Any:
        mask.data = mask.data.astype(np.bool_)
        return mask

    InterpreterBuilder.create_masked_load = lambda self, places, mask, *others: load(self, places, flags(mask), *others)
    InterpreterBuilder.create_masked_store = lambda self, places, value, mask, *others: store(
        self, places, value, flags(mask), *others
    )


def gumbel_sample(logits: Tensor, expanded_idx_mapping: Tensor, temperature: Tensor, *_: Any, **named: Any) -> Tensor:
    """vLLM's, for drafts: a draw at the temperature of each slot, whose logits are kept at the slot and the place."""
    named["logits_cache"][expanded_idx_mapping, named["logits_cache_col"]] = logits
    scale = temperature[expanded_idx_mapping][:, None]
    return torch.multinomial((logits.float() / scale).softmax(-1), 1)[:, 0]


def main(case_file: Path, result_file: Path) -> None:
    """Draws what the case asks for."""
    case = json.loads(case_file.read_text(encoding="utf-8"))
    os.environ.update(ENVIRONMENT)
    interpret_kernels()
    from vllm.v1.worker.gpu.spec_decode import speculator

    from python_tests.vllm.engine.engines import running_llm
    from trbext.vllm.client import EngineRollouts
    from trbext.vllm.engine import engine_args
    from trbext.vllm.in_process import worker_of
    from trbext.vllm.local import LocalEngine
    from trbext.vocab import Alignment

    if not case["own_drafts"]:
        speculator.gumbel_sample = gumbel_sample
    with running_llm(**engine_args(**case["engine"])) as llm:
        alignment = Alignment(*case["alignment"])
        client = EngineRollouts(LocalEngine(llm), alignment, pad_token_id=0, top_k=case["top_k"])
        drawn = client.draw(**case["draw"])
        rollout, top = drawn.rollout, drawn.teacher_top
        found = {name: getattr(rollout, name) for name in VALUES}
        if top is not None:
            found |= {"top_ids": top.ids, "top_log_prob": top.log_prob, "rest_log_prob": top.rest_log_prob}
        lengths = rollout.lengths.tolist()
        result: dict[str, Any] = {
            name: [row[:length].tolist() for row, length in zip(part, lengths, strict=True)]
            for name, part in found.items()
        }
        result |= {
            "rounds": drawn.rounds,
            "repaired": drawn.repaired,
            "preemptions": drawn.preemptions,
            "runner": type(worker_of(llm).model_runner).__mro__[1].__module__,
        }
        result_file.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
