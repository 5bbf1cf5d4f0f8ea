"""Extends vLLM's worker by what a TRB engine can be asked to do, by `collective_rpc`.

vLLM mixes `WorkerExtension` into its worker class (`worker_extension_cls`). An engine without it refuses the calls, and
one on which `trb_enable` was not called refuses all others, so that no rollout is drawn from the teacher unnoticed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .engine import check_settings
from .in_process import reload_weights
from .sampler.hook import Hook, Settings
from .sampler.model_runner_v2 import HookV2, is_wanted
from .sampler.vocabulary import Vocabulary
from .versions import check_version, draft_model
from .weights import stored_weights, weights_digest


class WorkerExtension:
    """Calls of a TRB engine. Each is made on every worker, and its answers come back as a list."""

    model_runner: Any
    vllm_config: Any
    rank: int

    def trb_enable(
        self,
        width: int = 0,
        stop: int = 0,
        merged: Sequence[int] = (),
        epsilon: float = 0.0,
        seed: int = 0,
        top_k: int = 0,
    ) -> dict[str, Any]:
        """From now on every token follows mu. Calling it again replaces the settings.

        Args:
            width: Tokens that both models have; 0 if their logits have the same width.
            stop: The id that ends a rollout.
            merged: The other EOS ids of either model.
            epsilon: KL budget of requests that name none, nats per token.
            seed: Of the engine's own random numbers.
            top_k: Tokens of the teacher's distribution that are recorded; 0 records none.

        Returns:
            What the client has to know of this engine.

        Raises:
            RuntimeError: This vLLM, or the way the engine is set up, is not one with which tokens would follow mu.
            ValueError: A model lacks a token that is named. The settings are those from before.
        """
        import vllm

        import trbext

        known = check_version()
        runner = self.model_runner
        check_settings(runner)
        vocabulary = Vocabulary(width, stop, tuple(merged))
        models = (self.vllm_config.model_config, self.vllm_config.speculative_config.draft_model_config)
        vocabulary.check([model.get_vocab_size() for model in models], top_k)
        old = getattr(runner, "_trb_hook", None)
        if old is not None:
            old.remove()
        settings = Settings(vocabulary, epsilon, seed, top_k)
        runner._trb_hook = (HookV2 if is_wanted(runner) else Hook)(runner, settings)
        drafter_limit = runner.speculative_config.draft_model_config.max_model_len  # of Model Runner V2
        return {
            "trbext": trbext.__version__,
            "vllm": vllm.__version__,
            "vllm_known_by": known,
            "runner": type(runner).__name__,
            "asynchronous": bool(runner.scheduler_config.async_scheduling),
            "draft_length": runner._trb_hook.draft_length,
            "max_model_len": min(
                runner.max_model_len, getattr(runner, "effective_drafter_max_model_len", drafter_limit)
            ),
            "width": width,
            "stop": stop,
            "merged": list(merged),
            "top_k": top_k,
        }

    @property
    def _hook(self) -> Hook | HookV2:
        hook: Hook | HookV2 | None = getattr(self.model_runner, "_trb_hook", None)
        if hook is None:
            raise RuntimeError("trb_enable comes first: until then this engine samples the teacher")
        return hook

    def trb_set_epsilon(self, epsilon: float) -> None:
        """Sets the KL budget of requests that name none, nats per token, at least 0."""
        if not epsilon >= 0:
            raise ValueError(f"epsilon must be a KL budget in nats per token, at least 0, got {epsilon}")
        self._hook.set_epsilon(epsilon)

    def trb_seed(self, seed: int) -> None:
        """Sets the seed of the drafts, which come from torch's global generator in Model Runner V1, and of the hook."""
        torch.manual_seed(seed)
        self._hook.reseed(seed + 1)

    def trb_counters(self, clear: bool = False) -> dict[str, Any]:
        """What `Counters.read` counts."""
        counts = self._hook.counters.read()
        if clear:
            self._hook.counters.clear()
        return counts

    def trb_take_records(self) -> bytes | None:
        """What `StepRecords.take` gives, as safetensors; None from all workers of an engine but the first.

        An engine that a launcher of several processes started has one worker, whose rank is that of its process.
        """
        from safetensors.numpy import save

        records = self._hook.records.take()
        return save(records) if self.rank % self.vllm_config.parallel_config.world_size == 0 else None

    def trb_load_student(self, path: str) -> int:
        """Loads the student's weights from the safetensors files of a folder.

        Returns:
            How many tensors the draft model took.

        Raises:
            FileNotFoundError: The folder has none.
            SafetensorError: One of them is damaged; the weights are those from before.
        """
        with stored_weights(path) as weights:
            return self.trb_load_student_weights(weights)

    def trb_load_student_weights(self, weights: Iterable[tuple[str, Tensor]]) -> int:
        """Loads the student's weights, by their names on the Hugging Face hub, into the draft model only.

        Returns:
            How many parameters of the draft model were loaded.

        Raises:
            RuntimeError: The engine has no draft model of its own.
        """
        config = self.vllm_config
        student = self.trb_student()
        return reload_weights(student, weights, config, config.speculative_config.draft_model_config)

    def trb_student(self) -> Any:
        """The draft model, which has the student's weights.

        Raises:
            RuntimeError: The engine was not enabled, or has no draft model of its own.
        """
        _ = self._hook  # refuses an engine that was not enabled
        student = draft_model(self.model_runner)
        if student is None or student is self.model_runner.model:
            raise RuntimeError("the student's weights belong into a draft model, and this engine has none")
        return student

    def trb_digest(self) -> dict[str, str]:
        """A digest of the parameters of each model, by which a test or a run sees which of them changed."""
        runner = self.model_runner
        return {"teacher": weights_digest(runner.model), "student": weights_digest(draft_model(runner))}
