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

    def trb_load(self, path: str) -> str | None:
        """Loads the weights of a checkpoint into the model.

        Args:
            path: A folder with safetensors files.

        Returns:
            Why the folder cannot be loaded: it has no weights, a file is damaged, or weights are missing or do not fit.
            None if they were loaded. vLLM would bring back the words of an error, and not its class, by which the
            server tells a wrong folder from an engine that failed.
        """
        from safetensors import SafetensorError

        config = self.vllm_config
        try:
            with stored_weights(path) as weights:
                reload_weights(self.model_runner.get_model(), weights, config, config.model_config)
        except (FileNotFoundError, SafetensorError, ValueError) as error:
            return str(error)
        except (AssertionError, KeyError) as error:  # vLLM's, of a shape or a name
            return f"{type(error).__name__}: {error}"
        return None

    def trb_digest(self) -> str:
        """Returns `weights_digest` of the part of the model that this worker has."""
        return weights_digest(self.model_runner.get_model())
