"""Trains with verl on TRB rollouts: verl's synchronous trainer, without a teacher pool, with TRB's metrics and checks.

verl makes it by the trainer mode `trb`.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import ray
import transfer_queue as tq
from omegaconf import open_dict
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.config import omega_conf_to_dataclass

from .answers import facts_of
from .checkpoint_record import CheckpointRecord
from .metrics import check_rollouts, rollout_metrics, take_actor_metrics
from .run_checks import check_run, has_teacher_pool
from .versions import check_interface, check_version

MODE = "trb"


@register_trainer(MODE)
class TRBSyncTrainer(PPOTrainerSync):  # type: ignore[misc]  # verl is untyped
    """verl's trainer of a run with TRB.

    Args:
        config: verl's, whole.

    Raises:
        ValueError: A setting does not fit TRB (`check_run`).
        RuntimeError: This is a verl with which trbext was not run.
    """

    config: Any

    def __init__(self, config: Any) -> None:
        check_version()
        check_interface()
        self.trb = check_run(config)
        with open_dict(config.trainer.v1):
            config.trainer.v1.trainer_mode = "sync"  # which it is in all else
        super().__init__(config)
        self.teacher_pool = has_teacher_pool(config)
        self.use_teacher_policy = self.teacher_pool
        self._counters: list[dict[str, Any]] = []
        self._sync_seconds = 0.0

    def _init_resource_pool_mgr(self) -> None:
        """Makes the pools of GPUs. verl refuses distillation without one of the teacher, which the rollouts have."""
        whole = self.config
        if not self.teacher_pool:
            self.config = copy.deepcopy(whole)
            with open_dict(self.config):
                self.config.distillation.enabled = False
        try:
            super()._init_resource_pool_mgr()
        finally:
            self.config = whole

    def _setup(self) -> None:
        super()._setup()
        self.distillation_config = omega_conf_to_dataclass(self.config.distillation)

    # ---- Replicas ----

    def _ask_replicas(self, method: str) -> list[Any]:
        """Calls a method of every `TRBServer` that has an engine."""
        handles = [replica.server_handle for replica in self.llm_server_manager.get_replicas()]
        answers: list[Any] = ray.get([getattr(handle, method).remote() for handle in handles])
        return answers

    def _facts(self) -> dict[str, Any]:
        """What all replicas are.

        Raises:
            RuntimeError: They are not alike, or are not those of this run.
        """
        facts = self._ask_replicas("trb_facts")
        if any(one != facts[0] for one in facts):
            raise RuntimeError(f"all replicas must be alike, got {facts}")
        if facts[0]["settings"] != self.trb:
            raise RuntimeError(f"the replicas must draw with {self.trb}, got {facts[0]['settings']}")
        found: dict[str, Any] = facts[0]
        return found

    def prepare_step(self) -> dict[str, Any]:
        """Asks for the rollouts of a step, of which the replicas count from zero."""
        check_rollouts(self._ask_replicas("trb_counters"))  # those of a validation
        found: dict[str, Any] = super().prepare_step()
        return found

    def on_sample_end(self) -> None:
        """Takes what the replicas have counted, before they sleep."""
        self._counters = self._ask_replicas("trb_counters")
        check_rollouts(self._counters)
        super().on_sample_end()

    def on_step_end(self) -> None:
        """Sends the weights, and counts the seconds."""
        start = time.perf_counter()
        super().on_step_end()
        self._sync_seconds = time.perf_counter() - start

    # ---- Metrics ----

    def _compute_metrics(self, batch: Any, metrics: Any, timing_raw: Any, global_steps: int, epoch: int) -> None:
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        kept = [not tag.get("is_padding", False) for tag in batch.tags]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["extra_fields"])
        facts = [facts_of(fields) for fields, real in zip(data["extra_fields"], kept, strict=True) if real]
        tokens = sum(len(one.tokens) for one in facts)
        metrics.update(
            take_actor_metrics(metrics)
            | rollout_metrics(facts, self._counters)
            | {"trb/tokens_per_second": tokens / timing_raw["gen"], "trb/sync_seconds": self._sync_seconds}
        )

    # ---- Checkpoints ----

    def _save_checkpoint(self) -> None:
        folder = f"{self.config.trainer.default_local_dir}/global_step_{self.global_steps}"
        CheckpointRecord.of(self.trb, self._facts()["teacher"]).write(folder)  # before verl calls it complete
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        facts = self._facts()  # the replicas run by now, and are checked in a run that begins as well
        super()._load_checkpoint()
        if self.global_steps:
            folder = f"{self.config.trainer.default_local_dir}/global_step_{self.global_steps}"
            if self.config.trainer.resume_mode == "resume_path":
                folder = self.config.trainer.resume_from_path
            CheckpointRecord.read(folder).check(CheckpointRecord.of(self.trb, facts["teacher"]))
