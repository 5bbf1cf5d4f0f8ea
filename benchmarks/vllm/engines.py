"""Starts vLLM in this process, as its benchmarks need it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from trbext.vllm.in_process import ENVIRONMENT, make_llm, worker_of

SETTINGS = {
    **ENVIRONMENT,  # the engine in this process, where its sampler can be called
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def configure(threads: int) -> None:
    """Set what vLLM and torch read when they start. Call it before the first engine.

    Args:
        threads: Of the engine; a benchmark of the operators takes one.
    """
    os.environ.update(SETTINGS)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


def start(arguments: dict[str, Any]) -> Any:
    """Return a `vllm.LLM` of `arguments`, with what every benchmark here shares."""
    shared = {"enforce_eager": True, "async_scheduling": False, "enable_prefix_caching": False, "seed": 0}
    return make_llm(**{**shared, **arguments})


def runner_of(llm: Any) -> Any:
    """Return the model runner of an engine in this process."""
    return worker_of(llm).model_runner


def write_small_llama(folder: Path, vocab: int) -> str:
    """Write a Llama of one small layer with `vocab` logits to `folder`, and return its path."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


def mend_stock_sampler() -> None:
    """Let vLLM's own rejection sampler give right answers on the CPU, so that it can be compared with.

    Its CPU build leaves part of an expanded temperature unwritten (vllm-project/vllm#55005).
    """
    import vllm.v1.sample.rejection_sampler as stock

    def expand(values: Any, ends: Any, rows: int, replace_from: Any = 0, replace_to: Any = 0) -> Any:
        values = torch.where(values == replace_from, torch.full_like(values, replace_to), values)
        counts = torch.diff(ends.long(), prepend=ends.new_zeros(1).long())
        return values.repeat_interleave(counts, output_size=rows)

    stock.expand_batch_to_tokens = expand
