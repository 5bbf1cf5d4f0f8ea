"""Opens the stored weights of a model, and computes a digest of the weights that an engine holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

INPUTS = ("input_size_per_partition", "input_size", "embedding_dim")  # how vLLM's layers name their width
ROWS = 256  # of the identity that a layer multiplies at a time
CHUNK = 2**24  # elements of a parameter whose checksum is taken at a time
ODD = 0x9E3779B97F4A7C16 - 2**64  # even, so that place * ODD + 1 is odd


@contextmanager
def stored_weights(folder: str) -> Iterator[Iterator[tuple[str, Tensor]]]:
    """Opens the safetensors files of a folder, and gives their tensors one at a time.

    Args:
        folder: Of a model.

    Raises:
        FileNotFoundError: It has no such file.
        SafetensorError: A file is damaged. All are opened first, because an error in the middle of a load would leave
            a model with weights of two.
    """
    from safetensors import safe_open

    files = weight_files(folder)
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
        yield ((name, file.get_tensor(name)) for file in opened for name in file.keys())  # noqa: SIM118


def weight_files(folder: str) -> list[Path]:
    """Returns the safetensors files of a model's folder: those of its index, model.safetensors, or else all.

    Raises:
        FileNotFoundError: It has none.
    """
    index, whole = Path(folder) / "model.safetensors.index.json", Path(folder) / "model.safetensors"
    if index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [Path(folder) / name for name in sorted(set(names))]
    files = [whole] if whole.is_file() else sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"the folder of a model must have *.safetensors files, got {folder}")
    return files


def weights_digest(model: Any) -> str:
    """Returns the SHA-256 of a checksum of the bits of each weight, which is computed on the weight's device.

    On the CPU vLLM packs the weights of linear layers, and leaves empty parameters. Such a weight is what the layer
    makes of the identity, which no order of summation can round.

    Args:
        model: vLLM's module.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {_checksum(parameter.detach())}".encode())
    for name, layer in sorted(model.named_modules()):
        if hasattr(layer, "cpu_linear"):
            digest.update(f"{name} packed {_packed_checksum(layer)}".encode())
    return digest.hexdigest()


def _packed_checksum(layer: Any) -> list[int]:
    inputs = next(int(getattr(layer, name)) for name in INPUTS if hasattr(layer, name))
    found = []
    with torch.no_grad():
        for start in range(0, inputs, ROWS):
            rows = torch.zeros(min(ROWS, inputs - start), inputs, dtype=layer.weight.dtype)
            rows[:, start:].fill_diagonal_(1)
            found.append(_checksum(layer.cpu_linear(rows, layer.weight, None).contiguous()))
    return found


def _checksum(tensor: Tensor) -> int:
    """The sum, modulo 2^64, of the bits of each element times an odd number that depends on its place."""
    bits = tensor.flatten().view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, len(bits), CHUNK):
        part = bits[start : start + CHUNK].long()
        places = torch.arange(start, start + len(part), device=tensor.device)
        total += ((part + 1) * (places * ODD + 1)).sum()
    return int(total)
