"""Runs one process of test_trainer_sharded.py: the same few steps under DDP, FSDP2 or DeepSpeed, by several losses.

    sharded_run.py BACKEND FOLDER [CASE ...]     BACKEND is one, ddp, fsdp, zero1, zero2 or zero3

`ddp` writes its rollouts into FOLDER, and `one`, a single process, trains on those. Rank 0 writes BACKEND.json.
accelerate shards by FSDP only on GPUs: told that its gloo processes are some, it builds the same set-up on the CPU.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType, gather_object

import trbext.training.trainer
from python_tests.models.tiny_models import END_OF_TURN, EOS, prompts, tiny_llama, tiny_tokenizer
from python_tests.training.trainer_cases import repeatable
from trbext import mixture, self_teacher
from trbext.rollout import Rollout, speculative
from trbext.training.config import TRBConfig
from trbext.training.trainer import TRBTrainer

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0}


class Case(NamedTuple):
    teacher: Mapping[str, Any] = MappingProxyType({})
    fields: Mapping[str, Any] = MappingProxyType({})
    lora: bool = False
    tokens: tuple[int, int] = (6, 6)  # at most, on either process
    teaches: str = "model"  # or "mixture", or "self": the base under an adapter that was trained before


# The losses and models that a plain `pytest` runs too.
LOSSES = {
    "fused": Case(),  # TRL's
    "merged": Case({"eos": [END_OF_TURN, EOS]}),  # ours, over merged EOS ids
    "top_k": Case(fields={"loss_top_k": 8}),
    "widths": Case({"vocab_size": 72}),
    "sampled": Case(fields={"loss_estimator": "sampled"}),  # weighted by pi_S / mu
}
CASES = LOSSES | {
    "routed": Case(teaches="mixture", fields={"teacher_column": "answer"}),
    "mixture": Case(teaches="mixture"),
    "self": Case(lora=True, teaches="self"),
    "lockstep": Case(fields={"draft_length": 0}),
    "lora": Case(lora=True),
    "accumulation": Case(fields={"gradient_accumulation_steps": 2, "max_steps": 2}),
    "uneven": Case(tokens=(12, 3)),
}
ZERO = ("zero1", "zero2", "zero3")
REFUSED = {"routed": ("fsdp", *ZERO), "mixture": ZERO, "self": ZERO}  # by these backends
STEPS, CHECKPOINT, HELD_OUT = 3, 2, 5
LOGGED = ("loss", "grad_norm", "trb/kl", "trb/reverse_kl", "trb/teacher_log_prob")


def cases_of(backend: str) -> list[str]:
    """Returns the cases that a backend trains."""
    return [name for name in CASES if backend not in REFUSED.get(name, ())]


def backend_fields(backend: str, state_dict_type: str | None) -> dict[str, Any]:
    if backend == "fsdp":
        sharding = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
        if state_dict_type is not None:
            sharding["state_dict_type"] = state_dict_type
        return {"fsdp": "full_shard auto_wrap", "fsdp_config": sharding}
    if backend.startswith("zero"):
        return {
            "deepspeed": {
                "train_micro_batch_size_per_gpu": "auto",
                "gradient_accumulation_steps": "auto",
                "gradient_clipping": "auto",
                "bf16": {"enabled": "auto"},
                "zero_optimization": {"stage": int(backend[-1])},
                "zero_allow_untested_optimizer": True,
            }
        }
    return {}


def trainer_of(backend: str, case: Case, folder: Path, state_dict_type: str | None = None, **given: Any) -> TRBTrainer:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 4 if backend == "one" else 2,
        "max_completion_length": max(case.tokens),
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "trb_epsilon": 0.2,
        "trb_warmup_steps": 2,
        "draft_length": 2,
        "save_strategy": "no",
        "disable_tqdm": True,
        **backend_fields(backend, state_dict_type),
        **case.fields,
        **given,
    }
    verifier = settings.pop("verifier", None)
    lora = None
    if case.lora:
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(**LORA)
    torch.manual_seed(0)  # LoRA draws its first weights
    student: Any = tiny_llama(0, layers=2)
    teacher: Any = tiny_llama(1, hidden=32, layers=2, **case.teacher)
    if case.teaches == "mixture":  # with labels by which rows may be routed
        other = tiny_llama(2, hidden=16, layers=2)
        teacher = mixture({row["answer"]: (teacher, other)[number % 2] for number, row in enumerate(prompts(24))})
    elif case.teaches == "self":
        student, lora = get_peft_model(student, lora), None
        for name, weight in student.named_parameters():
            if "lora_B" in name:
                weight.data.normal_(std=0.5)
        teacher = self_teacher(student)
    return TRBTrainer(
        student,
        teacher,
        TRBConfig(**settings),
        train_dataset=prompts(24),
        eval_dataset=None if verifier is None else prompts(HELD_OUT),
        processing_class=tiny_tokenizer(),
        peft_config=lora,
        verifier=verifier,
    )


# ---- Rollouts: of unlike lengths on the two processes, and the same ones again on a single process ----


def rollout_key(step: int, ids: torch.Tensor, mask: torch.Tensor) -> tuple[int, ...]:
    return (step, *ids[mask.bool()].tolist())


class Recorder:
    """The decoder of two processes, which remembers each row by its optimizer step and prompt."""

    def __init__(self, tokens: tuple[int, int]) -> None:
        self.rows: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        self.longest: list[int] = []
        self._tokens = tokens

    def __call__(self, student: Any, teacher: Any, ids: torch.Tensor, mask: torch.Tensor, **named: Any) -> Rollout:
        named["max_new_tokens"] = self._tokens[dist.get_rank()]
        rollout = speculative(student, teacher, ids, mask, **named)
        self.longest.append(rollout.tokens.shape[1])
        zero = torch.zeros_like(rollout.log_prob)
        values = [rollout.log_prob, rollout.student_log_prob]
        values += [zero if rollout.teacher_log_prob is None else rollout.teacher_log_prob, rollout.beta, rollout.kl]
        for row in range(len(ids)):
            kept = rollout.mask[row]
            key = rollout_key(named["optimizer_step"], ids[row], mask[row])
            of_row = torch.stack([value[row, kept] for value in values])
            self.rows[key] = (rollout.tokens[row, kept], of_row, rollout.finished[row])
        return rollout


class Player:
    """Replaces the decoder, and returns what two processes have decoded."""

    def __init__(self, rows: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> None:
        self.rows = rows

    def __call__(self, student: Any, teacher: Any, ids: torch.Tensor, mask: torch.Tensor, **named: Any) -> Rollout:
        step = named["optimizer_step"]
        found = [self.rows[rollout_key(step, ids[row], mask[row])] for row in range(len(ids))]
        lengths = torch.tensor([len(tokens) for tokens, _, _ in found])
        tokens = torch.zeros(len(ids), int(lengths.max()), dtype=torch.long)
        values = torch.zeros(5, *tokens.shape)
        for row, (row_tokens, row_values, _) in enumerate(found):
            tokens[row, : lengths[row]], values[:, row, : lengths[row]] = row_tokens, row_values
        finished = torch.stack([end for _, _, end in found])
        pad = named["pad_token_id"]
        return Rollout.trim(tokens, values, lengths, finished, pad_token_id=pad, teacher=teacher is not None)


@contextmanager
def decoder(replacement: Callable[..., Rollout]) -> Iterator[None]:
    trbext.training.trainer.speculative = replacement
    try:
        yield
    finally:
        trbext.training.trainer.speculative = speculative


def step_logs(trainer: TRBTrainer) -> list[dict[str, float]]:
    return [{name: log[name] for name in LOGGED} for log in trainer.state.log_history if "loss" in log]


def trained(backend: str, name: str, folder: Path) -> dict[str, Any]:
    """Returns what was logged of one case, and how long each process's rollouts were."""
    case, file = CASES[name], folder / f"{name}.rollouts"
    trainer = trainer_of(backend, case, folder / backend / name)
    if backend == "one":
        with decoder(Player(torch.load(file))):
            trainer.train()
        return {"logs": step_logs(trainer)}
    recorder = Recorder(case.tokens)
    with decoder(recorder):
        trainer.train()
    rows = gather_object([recorder.rows])
    if backend == "ddp" and dist.get_rank() == 0:
        torch.save({key: row for one in rows for key, row in one.items()}, file)
    found = {"logs": step_logs(trainer), "longest": gather_object([recorder.longest])}
    if case.lora:
        found["saved"] = saved_adapter_difference(trainer, folder / backend / f"{name}-model")
    return found


# ---- Weights, whole, and as a saved model has them ----


def whole_weights(trainer: TRBTrainer) -> dict[str, torch.Tensor]:
    """Copies the weights by means of this file's own, because they judge those of the product."""
    whole = {}
    for name, weight in trainer.accelerator.unwrap_model(trainer.model_wrapped).named_parameters():
        if hasattr(weight, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([weight]):
                whole[name] = weight.detach().clone()
        else:
            whole[name] = getattr(weight, "full_tensor", lambda weight=weight: weight)().detach().clone()
    return whole


def largest_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    assert left.keys() == right.keys(), left.keys() ^ right.keys()
    return max(float((value - right[name]).abs().max()) for name, value in left.items())


def saved_adapter_difference(trainer: TRBTrainer, folder: Path) -> float:
    from peft import PeftModel

    trainer.save_model(str(folder))
    dist.barrier()
    loaded = PeftModel.from_pretrained(tiny_llama(0, layers=2), folder)
    ours = {name: weight for name, weight in whole_weights(trainer).items() if "lora_" in name}
    assert ours
    return largest_difference(ours, {name: weight for name, weight in loaded.named_parameters() if "lora_" in name})


# ---- A run that is evaluated and saved, and the same resumed ----


def starts_with_a_digit(prompt: Any, completion: str, row: Any) -> bool:
    return completion[:1].isdigit()


def resumed(backend: str, folder: Path, state_dict_type: str | None) -> dict[str, Any]:
    fields: dict[str, Any] = {"max_steps": 2 * CHECKPOINT, "trb_warmup_steps": 3, "eval_samples": 3}
    fields |= {"eval_strategy": "steps", "eval_steps": 2 * CHECKPOINT, "per_device_eval_batch_size": 4}
    fields |= {"save_strategy": "steps", "save_steps": CHECKPOINT, "remove_unused_columns": False}
    case = CASES["widths"]

    def made(name: str) -> TRBTrainer:
        place = folder / backend / f"{name}-{state_dict_type}"
        return trainer_of(backend, case, place, state_dict_type, verifier=starts_with_a_digit, **fields)

    straight = made("straight")
    straight.train()
    checkpoint = Path(straight.args.output_dir) / f"checkpoint-{CHECKPOINT}"
    again = made("resumed")
    again.train(resume_from_checkpoint=str(checkpoint))
    straight.save_model(str(folder / f"{backend}-{state_dict_type}-model"))
    weights = whole_weights(straight)
    if dist.get_rank() == 0:  # transformers would shard what this process loads: test_trainer_sharded.py compares
        torch.save(weights, folder / f"{backend}-{state_dict_type}.weights")
    logs = [repeatable(trainer.state.log_history) for trainer in (straight, again)]
    return {
        "logs": step_logs(straight),
        "pass@1": [log["eval_pass@1"] for log in logs[0] if "eval_pass@1" in log],
        "same_logs": logs[0] == logs[1],
        "weights_apart": largest_difference(weights, whole_weights(again)),
        "checkpoint": sorted(path.name for path in checkpoint.iterdir()),
    }


# ---- A gradient that is NaN, of a loss that is finite ----


class PoisonedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * float("nan")


def stopped(backend: str, folder: Path, dtype: str) -> dict[str, Any]:
    trainer = trainer_of(backend, CASES["merged"], folder / backend / f"stopped{dtype}", bf16=dtype == "bf16")
    compute_loss, seen = trainer.compute_loss, {}

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        loss = compute_loss(*args, **kwargs)
        if trainer.state.global_step == 1:
            seen.update(whole_weights(trainer))
            return PoisonedGradient.apply(loss) if dist.get_rank() == 1 else loss
        return loss

    trainer.compute_loss = poisoned
    try:
        trainer.train()
    except FloatingPointError as error:
        apart = largest_difference(seen, whole_weights(trainer))
        return {"message": str(error), "weights_apart": apart, "step": trainer.state.global_step}
    return {"message": "trained on"}


def as_if_on_gpus() -> None:
    initialize = PartialState.__init__

    def told(self: PartialState, *args: Any, **kwargs: Any) -> None:
        initialize(self, *args, **kwargs)
        if PartialState._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = told


def run(backend: str, folder: Path, case: str) -> dict[str, Any]:
    if case.startswith("resumed"):
        return resumed(backend, folder, case.partition(":")[2] or None)
    if case.startswith("stopped"):
        return stopped(backend, folder, case.partition(":")[2])
    return trained(backend, case, folder)


def without_shared_memory() -> None:
    """Lets DeepSpeed reduce by gloo only. It would compile an operator of its own for that, for a minute or two."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


if __name__ == "__main__":
    gc.freeze()  # each trainer collects garbage, and need not search what was imported
    backend, folder = sys.argv[1], Path(sys.argv[2])
    if backend == "fsdp":
        as_if_on_gpus()
    if backend.startswith("zero"):
        without_shared_memory()
    found = {case: run(backend, folder, case) for case in sys.argv[3:] or CASES}
    if int(os.environ.get("RANK", 0)) == 0:
        (folder / f"{backend}.json").write_text(json.dumps(found), encoding="utf-8")
    if dist.is_initialized():
        dist.destroy_process_group()
    # Many trainers lived in this process. Threads of theirs may still run when the interpreter ends, which sometimes
    # ends the process by a signal after all work is done.
    sys.stdout.flush()
    os._exit(0)
