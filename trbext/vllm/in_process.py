"""Reaches into a vLLM engine of this process: its worker, its weights, its caches and its end."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# Read by vLLM when an engine is made: in this process, and with the model runner that the hook knows.
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "0"}


def make_llm(**arguments: Any) -> Any:
    """Makes a `vllm.LLM` whose models are in this process.

    Args:
        arguments: Of `LLM`.
    """
    os.environ.update(ENVIRONMENT)
    from vllm import LLM

    return LLM(**arguments)


def worker_of(llm: Any) -> Any:
    """Returns the worker of an engine in this process, which has its model runner.

    Raises:
        RuntimeError: Its workers are processes of their own.
    """
    worker = getattr(getattr(llm.llm_engine, "model_executor", None), "driver_worker", None)
    if worker is None:
        raise RuntimeError(
            "the engine must be in this process, so that it takes tensors: set VLLM_ENABLE_V1_MULTIPROCESSING=0, "
            "or load the student from a folder"
        )
    return getattr(worker, "worker", worker)


def reload_weights(model: Any, weights: Iterable[tuple[str, Tensor]], vllm_config: Any, model_config: Any) -> int:
    """Replaces the weights of a model that serves, in place.

    Args:
        model: vLLM's module.
        weights: By their names on the Hugging Face hub.
        vllm_config: Of the engine.
        model_config: Of the model.

    Returns:
        How many parameters were loaded.

    Raises:
        ValueError: As `reloading`.
    """
    with reloading(model, vllm_config, model_config) as load:
        return load(weights)


@contextmanager
def reloading(
    model: Any, vllm_config: Any, model_config: Any
) -> Iterator[Callable[[Iterable[tuple[str, Tensor]]], int]]:
    """Replaces the weights of a model that serves, in place, by those that come in one or several parts.

    vLLM's layerwise reload also serves backends that repack the weights, on which `model.load_weights` by itself fails.

    Args:
        model: vLLM's module.
        vllm_config: Of the engine.
        model_config: Of the model.

    Yields:
        A function that takes a part of the weights, by their names on the Hugging Face hub, and returns how many
        parameters were loaded so far. The tensors may be kept until the end.

    Raises:
        ValueError: Weights are missing at the end, as vLLM requires when it loads a model. The model is then undefined
            until the next load.
    """
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    names = {name for name, _ in model.named_parameters()}
    loaded: set[str] = set()

    def load(weights: Iterable[tuple[str, Tensor]]) -> int:
        loaded.update(model.load_weights(weights))
        return len(loaded)

    with set_current_vllm_config(vllm_config), torch.no_grad():
        initialize_layerwise_reload(model)
        yield load
        finalize_layerwise_reload(model, model_config)
        _process_shared_weights(model)
    missing = sorted(names - loaded) if model_config.quantization is None else []
    if missing:
        raise ValueError(
            f"the weights must be all of the model's, but {len(missing)} are missing, such as {missing[0]}"
        )


def _process_shared_weights(model: Any) -> None:
    """Lets every layer that shares a weight process it, as lm_head does with the embeddings of a tied model.

    vLLM's layerwise reload lets only one of them do so. On the CPU lm_head would keep a packed copy of its old weight.
    """
    owners: dict[int, list[Any]] = {}
    for layer in model.modules():
        for parameter in layer.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(layer)
    for layers in owners.values():
        for layer in layers if len(layers) > 1 else ():
            process = getattr(getattr(layer, "quant_method", None), "process_weights_after_loading", None)
            if process is not None:
                process(layer)


def reset_prefix_cache(llm: Any) -> None:
    """Drops the keys and values of earlier prefixes, which are of the old weights.

    Raises:
        RuntimeError: Requests are still running.
    """
    if not llm.reset_prefix_cache():
        raise RuntimeError("the prefix cache could not be reset: requests are still running")


@contextmanager
def keeping_random_state() -> Iterator[None]:
    """Restores torch's global generators on leaving, which an engine in this process seeds and draws from."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield


def shut_down(llm: Any) -> None:
    """Ends an engine in this process. Its memory is free once the caller has dropped its last reference to `llm`."""
    llm.llm_engine.engine_core.shutdown()


def free_memory() -> None:
    """Collects what was dropped, and gives freed device memory back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
