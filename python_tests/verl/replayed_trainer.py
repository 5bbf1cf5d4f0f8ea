"""Trains by TRBTrainer on rollouts that were drawn elsewhere, so that its losses can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer

from python_tests.training.trainer_cases import steps
from python_tests.verl.tiny_run import TinyRun
from trbext.rollout import Policy, Rollout
from trbext.training.config import TRBConfig
from trbext.training.trainer import TRBTrainer

Rows = Sequence[dict[str, Any]]


class ReplayedTrainer(TRBTrainer):
    """TRBTrainer whose rollouts were written down: those of each optimizer step, in the order of its prompts."""

    recorded: Sequence[Rows]

    def _decode(self, prompt_ids: list[list[int]], policy: Policy, part: int) -> list[list[int]]:
        rows = self.recorded[self.state.global_step]
        assert prompt_ids == [row["prompt"] for row in rows]
        completions = [row["tokens"] for row in rows]
        longest = max(map(len, completions))
        mask = torch.tensor([[place < len(tokens) for place in range(longest)] for tokens in completions])
        nothing = torch.zeros(mask.shape)
        self._generation.rollouts.append(
            Rollout(
                tokens=torch.tensor([[*tokens, *[0] * (longest - len(tokens))] for tokens in completions]),
                mask=mask,
                log_prob=nothing,
                student_log_prob=nothing,
                teacher_log_prob=nothing,
                beta=nothing,
                kl=nothing,
                finished=torch.zeros(len(completions), dtype=torch.bool),
            )
        )
        return completions


def losses_of_trb_trainer(
    folder: Path, run: TinyRun, recorded: Sequence[Rows], *, learning_rate: float, top_k: int
) -> list[float]:
    """Returns the reverse KL that TRBTrainer logs at each step of a training on the recorded rollouts.

    Args:
        folder: Of its output.
        run: Has the models.
        recorded: The rollouts of each step, equally many.
        learning_rate: Of AdamW, constant.
        top_k: Of the loss.
    """
    tokenizer = AutoTokenizer.from_pretrained(run.student)
    tokenizer.chat_template = None  # which adds nothing to the text of a prompt
    prompts = [tokenizer.decode(row["prompt"]) for rows in recorded for row in rows]
    trainer = ReplayedTrainer(
        str(run.student),
        str(run.teacher),
        TRBConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=len(recorded[0]),
            shuffle_dataset=False,
            max_steps=len(recorded),
            max_completion_length=max(len(row["tokens"]) for rows in recorded for row in rows),
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            loss_top_k=top_k,
            draft_length=3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=tokenizer,
    )
    trainer.recorded = recorded
    trainer.train()
    return [entry["trb/reverse_kl"] for entry in steps(trainer)]
