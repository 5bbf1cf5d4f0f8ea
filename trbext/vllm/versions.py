"""Checks that the installed vLLM is one whose model runner the hook knows."""

from __future__ import annotations

import inspect
from typing import Any


def draft_model(runner: Any) -> Any:
    """The draft model of a V1 model runner."""
    return runner.get_draft_model() if hasattr(runner, "get_draft_model") else runner.drafter.model


def check_runner(runner: Any) -> None:
    """Checks that a model runner is vLLM's V1 runner, with what the hook uses of it.

    Raises:
        RuntimeError: it is another one. Says what was found.
    """
    if not hasattr(type(runner), "_sample"):
        raise RuntimeError("a TRB engine needs vLLM's V1 model runner: set VLLM_USE_V2_MODEL_RUNNER=0")
    found = list(inspect.signature(type(runner)._sample).parameters)
    if found != ["self", "logits", "spec_decode_metadata"]:
        raise RuntimeError(f"GPUModelRunner._sample takes {found} in this vLLM, which trbext does not know")
