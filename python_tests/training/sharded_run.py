"""One process of test_trainer_sharded.py: the same few steps under DDP, FSDP2 or DeepSpeed, by several losses.

    sharded_run.py BACKEND FOLDER      BACKEND is ddp, fsdp, zero2 or zero3

accelerate shards by FSDP on GPUs alone: told that its gloo processes are some, it builds the same set-up on the CPU.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from python_tests.models.tiny_models import END_OF_TURN, EOS, prompts, tiny_llama, tiny_tokenizer
from trbext.training.config import TRBConfig
from trbext.training.trainer import TRBTrainer

# Models and losses: TRL's fused loss, ours over merged EOS ids, the paper's, and of differing widths.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fused": ({}, {}),
    "merged": ({"eos": [END_OF_TURN, EOS]}, {}),
    "top_k": ({}, {"loss_top_k": 8}),
    "widths": ({"vocab_size": 72}, {}),
    "sampled": ({}, {"loss_estimator": "sampled"}),
}
STEPS = 3


def backend_fields(backend: str) -> dict[str, Any]:
    if backend == "fsdp":
        version = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
        return {"fsdp": "full_shard auto_wrap", "fsdp_config": version}
    if backend.startswith("zero"):
        return {
            "deepspeed": {
                "train_micro_batch_size_per_gpu": "auto",
                "gradient_accumulation_steps": "auto",
                "zero_optimization": {"stage": int(backend[-1])},
                "zero_allow_untested_optimizer": True,
            }
        }
    return {}


def logged(backend: str, case: str, folder: Path) -> list[dict[str, float]]:
    model, fields = CASES[case]
    settings: dict[str, Any] = {
        "output_dir": str(folder / backend / case),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 2,
        "max_completion_length": 6,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "trb_epsilon": 0.2,
        "trb_warmup_steps": 2,
        "draft_length": 2,
        "save_strategy": "no",
        "disable_tqdm": True,
        **backend_fields(backend),
        **fields,
    }
    trainer = TRBTrainer(
        tiny_llama(0, layers=2),
        tiny_llama(1, hidden=32, layers=2, **model),
        TRBConfig(**settings),
        train_dataset=prompts(24),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    names = ("loss", "grad_norm", "trb/kl", "trb/reverse_kl", "trb/teacher_log_prob")
    return [{name: log[name] for name in names} for log in trainer.state.log_history if "loss" in log]


def as_if_on_gpus() -> None:
    initialise = PartialState.__init__

    def told(self: PartialState, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        if PartialState._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = told


if __name__ == "__main__":
    backend, folder = sys.argv[1], Path(sys.argv[2])
    if backend == "fsdp":
        as_if_on_gpus()
    found = {case: logged(backend, case, folder) for case in os.environ.get("CASES", " ".join(CASES)).split()}
    if int(os.environ["RANK"]) == 0:
        (folder / f"{backend}.json").write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.destroy_process_group()
    # Five trainers lived in this process: threads of theirs may still run when the interpreter tears itself down, which
    # ends the process by a signal now and then, after all work is done.
    sys.stdout.flush()
    os._exit(0)
