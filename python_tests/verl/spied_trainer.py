"""Writes down what each step of a run was trained on. verl imports it in each of its processes, as a user's module."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import transfer_queue as tq
from verl.trainer.ppo.v1.trainer_base import register_trainer

from trbext.verl.answers import facts_of
from trbext.verl.trainer import TRBSyncTrainer

MODE = "trb_spied"


@register_trainer(MODE)
class SpiedTrainer(TRBSyncTrainer):
    """Also saves the rollouts of each step to TRB_SPIED/step-K.pt."""

    def _compute_metrics(self, batch: Any, metrics: Any, timing_raw: Any, global_steps: int, epoch: int) -> None:
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        fields = ["prompts", "responses", "rollout_log_probs", "extra_fields", "teacher_ids", "teacher_logprobs"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        facts = [facts_of(fields) for fields in data["extra_fields"]]
        rows = [
            {
                "prompt": data["prompts"][row].tolist(),
                "tokens": data["responses"][row].tolist(),
                "log_probs": data["rollout_log_probs"][row],
                "teacher_ids": data["teacher_ids"][row],
                "teacher_log_probs": data["teacher_logprobs"][row],
                "values": torch.from_numpy(fact.values),
                "epsilon": fact.epsilon,
            }
            for row, fact in enumerate(facts)
        ]
        folder = Path(os.environ["TRB_SPIED"])
        folder.mkdir(parents=True, exist_ok=True)
        numbers = {name: float(value) for name, value in metrics.items()}
        torch.save({"rows": rows, "metrics": numbers}, folder / f"step-{global_steps}.pt")
