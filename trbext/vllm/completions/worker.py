"""Extends vLLM's worker by a load of another checkpoint's weights, and by a digest of those that it has."""

from __future__ import annotations

from typing import Any

from ..in_process import reload_weights
from ..weights import stored_weights, weights_digest

CHECKPOINT_WORKER = "trbext.vllm.completions.worker.CheckpointWorker"


class CheckpointWorker:
    """Calls of an engine of one model (`worker_extension_cls`), made on every worker by `collective_rpc`."""

    model_runner: Any
    vllm_config: Any

    def trb_load(self, path: str) -> int:
        """Loads the weights of a checkpoint into the model.

        Args:
            path: A folder with safetensors files.

        Returns:
            How many parameters were loaded.

        Raises:
            FileNotFoundError: The folder has no weights.
            SafetensorError: A file is damaged; the weights are those from before.
            ValueError: Weights are missing.
        """
        with stored_weights(path) as weights:
            config = self.vllm_config
            return reload_weights(self.model_runner.get_model(), weights, config, config.model_config)

    def trb_digest(self) -> str:
        """Returns `weights_digest` of the part of the model that this worker has."""
        return weights_digest(self.model_runner.get_model())
