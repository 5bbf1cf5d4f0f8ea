"""Runs one process of test_trainer_distributed.py: trains with TRBTrainer and writes what it saw to
FOLDER/rank<N>.pt."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import trbext.training.trainer
from python_tests.models.tiny_models import PAD, prompts, tiny_llama, tiny_tokenizer
from trbext.models.unsharded import unsharded
from trbext.rollout import Rollout, lockstep, speculative
from trbext.training.config import TRBConfig
from trbext.training.trainer import TRBTrainer
from trbext.vocab import align

STEPS, CHECKPOINT, PROMPTS_PER_PROCESS, ACCUMULATION, HELD_OUT = 4, 2, 2, 2, 5


def config(folder: Path, **fields: Any) -> TRBConfig:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": PROMPTS_PER_PROCESS,
        "per_device_eval_batch_size": 4,
        "gradient_accumulation_steps": ACCUMULATION,
        "max_completion_length": 12,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "trb_epsilon": 0.2,
        "trb_warmup_steps": 3,
        "eval_samples": 3,
        "eval_strategy": "steps",
        "eval_steps": STEPS,
        "save_strategy": "steps",
        "save_steps": CHECKPOINT,
        "disable_tqdm": True,
    }
    return TRBConfig(**settings | fields)


def starts_with_a_digit(prompt: Any, completion: str, row: Any) -> bool:
    return completion[:1].isdigit()


def trainer(folder: Path, **fields: Any) -> TRBTrainer:
    return TRBTrainer(
        tiny_llama(0),
        tiny_llama(1, vocab_size=72, hidden=32),
        config(folder, **fields),
        train_dataset=prompts(24),  # with 8 prompts per step, the fourth step begins the second epoch
        eval_dataset=prompts(HELD_OUT),
        processing_class=tiny_tokenizer(),
        verifier=starts_with_a_digit,
    )


def run(folder: Path) -> None:
    seen: dict[str, list[Any]] = {"prompts": [], "rollouts": [], "judged": [], "held_out": []}

    def recording(*args: Any, **kwargs: Any) -> Rollout:
        rollout = speculative(*args, **kwargs)
        if straight.model.training:
            seen["rollouts"].append(
                (
                    kwargs["policy"].epsilon(kwargs["optimizer_step"]),
                    rollout.beta[rollout.mask],
                    rollout.kl[rollout.mask],
                )
            )
        else:
            seen["held_out"].append(rollout.mask.sum(1))
        return rollout

    trbext.training.trainer.speculative = recording
    straight = trainer(folder / "straight")
    generate, judge = straight._generate, straight.verifier

    def generating(batch: list[str]) -> Any:
        if straight.model.training:
            seen["prompts"].append(batch)
        return generate(batch)

    def judging(prompt: Any, completion: str, row: Any) -> bool:
        seen["judged"].append((prompt, right := judge(prompt, completion, row)))
        return right

    means = straight._prefix_means["eval"].means

    def telling() -> dict[str, float]:
        if straight._prefix_means["eval"]._totals is not None:
            seen["scored"] = int(straight._prefix_means["eval"]._totals[1])
        return means()

    straight._prefix_means["eval"].means = telling
    straight._generate, straight.verifier = generating, judging
    straight.train()
    trbext.training.trainer.speculative = speculative
    resumed = trainer(folder / "resumed")
    resumed.train(resume_from_checkpoint=str(folder / "straight" / f"checkpoint-{CHECKPOINT}"))
    runs = {
        name: {"weights": dict(run.model.state_dict()), "logs": run.state.log_history, "step": run.state.global_step}
        for name, run in (("straight", straight), ("resumed", resumed))
    }
    torch.save(seen | runs | {"sharded": sharded()}, folder / f"rank{straight.accelerator.process_index}.pt")


def sharded() -> dict[str, Any]:
    """Makes a rollout of models under FSDP2, longer on one process than on the other, and a training step after it."""
    mesh, rank = init_device_mesh("cpu", (2,)), torch.distributed.get_rank()
    student, teacher = tiny_llama(0, layers=2), tiny_llama(1, layers=2)
    for model in (student, teacher):
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
    arguments = {"epsilon": 0.1, "max_new_tokens": 20 if rank == 0 else 4, "pad_token_id": PAD}
    arguments |= {"alignment": align(student, teacher), "generator": torch.Generator().manual_seed(rank)}
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    with unsharded(student, reshard_after_forward=True), unsharded(teacher, reshard_after_forward=True):
        rollout = lockstep(student, teacher, ids, torch.ones_like(ids), **arguments)
    arguments["generator"].manual_seed(rank)
    whole = lockstep(tiny_llama(0, layers=2), tiny_llama(1, layers=2), ids, torch.ones_like(ids), **arguments)
    sharded_again = all(isinstance(weight, DTensor) for weight in student.parameters())
    student(ids).logits.logsumexp(-1).mean().backward()
    gradient = student.lm_head.weight.grad.full_tensor()
    return {"rollout": rollout, "whole": whole, "sharded_again": sharded_again, "gradient": gradient}


if __name__ == "__main__":
    gc.freeze()  # each trainer collects garbage, and need not search what was imported
    run(Path(sys.argv[1]))
    torch.distributed.destroy_process_group()
