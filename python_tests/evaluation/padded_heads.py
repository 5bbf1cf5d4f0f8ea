"""Writes a built-in model with heads of 32, the smallest that vLLM's attention on the CPU has, and the same logits.

Queries, keys and values get zeros behind their own entries, and queries are scaled so that scores stay as they were.
vLLM rotates only a part of each head then, which transformers' Llama does not: our own decoder decodes the original.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trbext.data.demo_models import model_path

WIDTH = 32


def write_demo(name: str, folder: Path, *, padded: bool, noise: float = 0.0) -> Path:
    """Writes a built-in model, and returns its folder.

    Args:
        name: "demo:student" or "demo:teacher".
        folder: Is made.
        padded: Whether its heads become heads of 32.
        noise: Standard deviation of what is added to the weights of MLPs, always the same numbers: of another
            checkpoint of the same architecture.
    """
    source = Path(model_path(name))
    folder.mkdir(parents=True)
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    width, heads = config["head_dim"], config["num_attention_heads"]
    generator = torch.Generator().manual_seed(0)
    weights = load_file(source / "model.safetensors")
    for key, weight in sorted(weights.items()):
        kind = key.split(".")[-2]
        if kind.endswith("_proj") and ".mlp." in key:
            weights[key] = weight + noise * torch.randn(weight.shape, generator=generator)
        elif padded and kind in ("q_proj", "k_proj", "v_proj"):
            scale = math.sqrt(WIDTH / width) if kind == "q_proj" else 1.0
            weights[key] = _padded(weight * scale, heads)
        elif padded and kind == "o_proj":
            weights[key] = _padded(weight.T, heads).T.contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if padded:
        config["rope_parameters"] |= {"partial_rotary_factor": width / WIDTH}
        (folder / "config.json").write_text(json.dumps(config | {"head_dim": WIDTH}), encoding="utf-8")
    return folder


def _padded(weight: Tensor, heads: int) -> Tensor:
    """[heads * width, n] -> [heads * WIDTH, n] with zeros."""
    parts = weight.view(heads, -1, weight.shape[1])
    padded = weight.new_zeros(heads, WIDTH, weight.shape[1])
    padded[:, : parts.shape[1]] = parts
    return padded.view(heads * WIDTH, weight.shape[1])
