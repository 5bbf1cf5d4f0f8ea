"""Makes tiny trainers, and reads what their tests need from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import LlamaForCausalLM

from python_tests.models.tiny_models import prompts, tiny_llama, tiny_tokenizer
from trbext.training.config import TRBConfig
from trbext.training.trainer import TRBTrainer

MINE = "python_tests.rollout.test_policies:TopTokenOfTheTeacher"  # a policy of a user's own module
METRICS = {
    "trb/epsilon",
    "trb/beta_mean",
    "trb/beta_p10",
    "trb/beta_p90",
    "trb/beta_one_fraction",
    "trb/kl",
    "trb/kl_max",
    "trb/kl_budget_used",
    "trb/teacher_log_prob",
    "trb/teacher_entropy",
    "trb/reverse_kl",
    "trb/tokens_per_second",
}
TIMINGS = ("per_second", "runtime", "step_time", "compute/seconds", "sync_seconds", "load_seconds")


def make_trainer(
    folder: Path,
    student: LlamaForCausalLM | str | None = None,
    teacher: LlamaForCausalLM | str | None = None,
    *,
    rows: int | Dataset | IterableDataset = 32,
    held_out: Any = None,
    verifier: Any = None,
    peft_config: Any = None,
    policy: Any = None,
    processing_class: Any = None,
    **fields: Any,
) -> TRBTrainer:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_completion_length": 8,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "trb_epsilon": 0.1,
        "trb_warmup_steps": 3,
        "draft_length": 3,  # "auto" depends on the clock: two runs from the start may round differently
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return TRBTrainer(
        student if student is not None else tiny_llama(0),
        teacher if teacher is not None else tiny_llama(1, hidden=32),
        TRBConfig(**settings | fields),
        train_dataset=prompts(rows) if isinstance(rows, int) else rows,
        eval_dataset=held_out,
        processing_class=processing_class or tiny_tokenizer(),
        peft_config=peft_config,
        verifier=verifier,
        policy=policy,
    )


def steps(trainer: TRBTrainer) -> list[dict[str, float]]:
    """Returns what was logged at each optimizer step."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def without_timings(logs: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in log.items() if not name.endswith(TIMINGS)} for log in logs]


def repeatable(logs: list[dict[str, float]]) -> list[dict[str, float]]:
    """Returns the logs of steps and evaluations; the summary of the run counts only the steps since the last start."""
    return without_timings([log for log in logs if "train_runtime" not in log])


def weights(trainer: TRBTrainer) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def decoding_calls(model: LlamaForCausalLM) -> list[int]:
    """Returns a list that grows by one for each forward pass that decodes; the loss reads the lm_head's weight without
    calling it."""
    calls: list[int] = []
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    return calls
