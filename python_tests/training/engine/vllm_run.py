"""Trains a tiny pair on rollouts of a real vLLM engine, in a process of its own, for test_vllm_training.py.

    python vllm_run.py TASK FOLDER

TASK is whole (saves the models and trains without an interruption), killed (ends itself by SIGKILL at the checkpoint of
step 5) or resumed (continues the run that was killed).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from python_tests.models.tiny_models import prompts, saved, tiny_llama, tiny_tokenizer
from python_tests.training.trainer_cases import make_trainer, steps, weights, without_timings
from trbext.models.eval_mode import evaluating
from trbext.rollout import Rollout
from trbext.training.trainer import TRBTrainer

STEPS, WARMUP, KILLED_AT = 12, 8, 5


class KillAtCheckpoint(TrainerCallback):
    """Ends this process as `kill -9` does, once the checkpoint of a step is written."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)


def trainer_in(folder: Path, models: Path, **fields: Any) -> TRBTrainer:
    """Returns a trainer of twelve steps, of which eight are blended; one evaluation comes before the end of them."""
    settings: dict[str, Any] = {
        "max_steps": STEPS,
        "trb_warmup_steps": WARMUP,
        "save_strategy": "steps",
        "save_steps": KILLED_AT,
        "held_out": prompts(6),
        "eval_strategy": "steps",
        "eval_steps": 4,
        "vllm_max_model_length": 40,
        "vllm_engine_args": {"enforce_eager": True, "kv_cache_memory_bytes": 2**26},
    }
    return make_trainer(
        folder, str(models / "student"), str(models / "teacher"), use_vllm=True, **{**settings, **fields}
    )


def save_models(models: Path) -> None:
    """Saves a student and a teacher; vLLM's attention on the CPU needs heads of 32."""
    saved(models / "student", tiny_llama(0, hidden=64), tiny_tokenizer())
    saved(models / "teacher", tiny_llama(1, hidden=64, layers=2), tiny_tokenizer())


def gap_of_student(trainer: TRBTrainer, prompts: list[list[int]], rollout: Rollout) -> float:
    """Returns the largest distance of what an engine says of the student's tokens from what the trainer's student
    does, in nats."""
    gaps = [0.0]
    for prompt, tokens, kept, expected in zip(
        prompts, rollout.tokens, rollout.mask, rollout.student_log_prob, strict=True
    ):
        ids = torch.tensor([[*prompt, *tokens[kept].tolist()]])
        with torch.no_grad(), evaluating([trainer.model]), trainer.compute.paused():
            logits = trainer.alignment.canonical(trainer.model(ids).logits[0, len(prompt) - 1 : -1])
        found = logits.log_softmax(-1).gather(-1, tokens[kept][:, None])[:, 0]
        gaps.append(float((found - expected[kept]).abs().max()))
    return max(gaps)


def watched(trainer: TRBTrainer) -> dict[str, Any]:
    """Watches the engines of a trainer; returns what it will have seen."""
    assert trainer.engines is not None
    seen: dict[str, Any] = {"digests": [], "student_gap": [], "teacher_log_prob": [], "teacher": None}
    draw = trainer.engines.draw

    def watching(*args: Any, **kwargs: Any) -> Any:
        turn = draw(*args, **kwargs)
        assert trainer.engines is not None
        if turn.draw is not None:
            rollout = turn.draw.rollout
            seen["student_gap"].append(gap_of_student(trainer, args[0], rollout))
            if trainer.model.training:
                seen["teacher_log_prob"].append(float(rollout.teacher_log_prob[rollout.mask].mean()))
            engine: Any = trainer.engines._blended.engine
            seen["digests"].append(engine.digest()[0])
            if hasattr(engine, "worker"):
                seen["teacher"] = weakref.ref(engine.worker.model_runner.model)
        return turn

    trainer.engines.draw = watching  # type: ignore[method-assign]
    return seen


def report(trainer: TRBTrainer, seen: dict[str, Any]) -> dict[str, Any]:
    """Returns what a test compares, and whether the engine's teacher is gone."""
    torch.save(weights(trainer), Path(trainer.args.output_dir) / "weights.pt")
    teacher = seen.pop("teacher")
    return {
        "steps": without_timings(steps(trainer)),
        "evaluations": without_timings([log for log in trainer.state.log_history if "eval_loss" in log]),
        "teacher is gone": teacher is None or teacher() is None,
        **seen,
    }


def main() -> None:
    task, folder = sys.argv[1], Path(sys.argv[2])
    models = folder / "models"
    if task == "whole":
        save_models(models)
    run = folder / ("whole" if task == "whole" else "killed")
    trainer = trainer_in(run, models)
    if task == "killed":
        trainer.add_callback(KillAtCheckpoint())
    seen = watched(trainer)
    trainer.train(resume_from_checkpoint=str(run / f"checkpoint-{KILLED_AT}") if task == "resumed" else None)
    found = report(trainer, seen)
    assert trainer.engines is not None
    trainer.engines.end()
    (folder / f"{task}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
