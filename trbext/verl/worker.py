"""Extends vLLM's worker by verl's calls and ours, with the student as the model that verl's weights go into.

verl's own extension loads the actor's weights into the engine's model, which is the teacher here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from verl.workers.rollout.vllm_rollout.utils import (
    monkey_patch_compute_logits,
    patch_vllm_moe_model_weight_loader,
    vLLMColocateWorkerExtension,
)

from ..vllm.in_process import reloading
from ..vllm.versions import draft_model
from ..vllm.worker import WorkerExtension


class ColocateWorkerExtension(WorkerExtension, vLLMColocateWorkerExtension):  # type: ignore[misc]  # verl is untyped
    """Calls of a TRB engine whose student is trained by verl. See `WorkerExtension`."""

    device: torch.device | None

    def _iter_all_models(self) -> Iterator[Any]:
        yield self.trb_student()

    def _iter_all_models_with_config(self) -> Iterator[tuple[Any, Any]]:
        yield self.trb_student(), self.vllm_config.speculative_config.draft_model_config

    def monkey_patch_model(self, vocab_size: int, banned_token_ids: list[int] | None = None) -> None:
        """Masks, in both models, logits that are no token of the tokenizer. verl calls it before `trb_enable`.

        Args:
            vocab_size: Of the tokenizer.
            banned_token_ids: Tokens inside of it that must not be drawn.
        """
        for model in (self.model_runner.model, draft_model(self.model_runner)):
            monkey_patch_compute_logits(model, vocab_size, banned_token_ids)
            patch_vllm_moe_model_weight_loader(model)

    def update_weights_from_ipc(
        self, peft_config: dict[str, Any] | None = None, base_sync_done: bool = False, use_shm: bool = False
    ) -> int:
        """Loads the actor's weights into the draft model, as they come through verl's buckets.

        Args:
            peft_config: Must be None: an adapter is merged into the weights by `model.lora.merge`.
            base_sync_done: verl's; of no meaning without an adapter.
            use_shm: The buckets are in shared memory, and not on the device.

        Returns:
            How many parameters of the draft model were loaded.

        Raises:
            RuntimeError: An adapter comes, or the engine has no draft model of its own.
            ValueError: Weights are missing.
        """
        from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver

        if peft_config:
            raise RuntimeError(
                "a TRB engine takes whole weights: set actor_rollout_ref.model.lora.merge, got an adapter"
            )
        receiver = BucketedWeightReceiver(
            zmq_handle=self._get_zmq_handle(), device=self.device or torch.device("cpu"), use_shm=use_shm
        )
        config, loaded = self.vllm_config, 0
        with reloading(self.trb_student(), config, config.speculative_config.draft_model_config) as load:

            def keep(weights: list[tuple[str, Tensor]], is_last: bool) -> None:
                # The next bucket overwrites these, and a layer is loaded once all of its weights have come.
                nonlocal loaded
                loaded = load([(name, weight.clone()) for name, weight in weights])

            receiver.receive_weights(on_bucket_received=keep)
        return loaded

    def update_verl_delta_weights(self, update_info: dict[str, Any]) -> None:
        """Refuses verl's transfer of changed weights only, which goes into the engine's model.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("a TRB engine takes whole weights: checkpoint_engine.backend must not be delta_sharded")
