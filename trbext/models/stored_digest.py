"""Computes a digest of the files of a stored model, by which one sees that it is the same model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from .adapters import base_of

_SUFFIXES = (".safetensors", ".bin", ".json", ".model", ".jinja", ".tiktoken", ".py")
_NAMES = ("merges.txt", "vocab.txt")  # of tokenizers; other texts say nothing to a program
_BLOCK = 2**16
_BLOCKS = 64  # of a file of weights that are read: its digest must not take a minute


def model_digest(path: str) -> str | None:
    """Returns a digest of the files in a model's folder, None for a name on the Hub.

    Of an adapter, the folder of its base model is read as well. Of a large file, its size and 64 blocks are read. The
    trainer's state is left out: it holds the times of the training, and decides nothing that the model does.
    """
    folder = Path(path)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        of_model = file.suffix in _SUFFIXES or file.name in _NAMES
        if of_model and file.name != "trainer_state.json" and file.is_file():
            digest.update(f"{file.name} {file.stat().st_size}".encode())
            for block in _blocks(file):
                digest.update(block)
    base = base_of(path)
    of_base = None if base is None else model_digest(base)  # a base on the Hub is named in adapter_config.json
    if of_base is not None:
        digest.update(of_base.encode())
    return digest.hexdigest()


def _blocks(file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    step = max(_BLOCK, size // _BLOCKS)
    with file.open("rb") as opened:
        for start in range(0, size, step):
            opened.seek(start)
            yield opened.read(_BLOCK)
