"""Walks over the student's whole weights by their names on the Hugging Face hub, for an engine that takes them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import Tensor
from trl.generation.vllm_generation import VLLMGeneration

if TYPE_CHECKING:
    from ...vllm.transport import Engine


class StudentWeights(VLLMGeneration):  # type: ignore[misc]  # TRL is untyped
    """TRL's walk over the weights, which gathers sharded ones, without TRL's engine. Every process walks.

    Args:
        model: the student, out of DDP.
        accelerator: of the run.
        processing_class: the student's tokenizer.
    """

    def _init_vllm(self) -> None:
        pass

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, weight in self._iter_named_params():
            yield name, weight.detach()

    def load_from_folder(self, engine: Engine | None, folder: Path) -> None:
        """Writes the weights to a folder, from which an engine in other processes loads them.

        Args:
            engine: must see the folder under the same path; None on all processes but the one that writes.
            folder: is made, and removed afterwards.
        """
        weights = {}
        for name, weight in self:
            if engine is not None:
                weights[name] = weight.cpu().contiguous()
        if engine is not None:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
                engine.load_student(str(folder))
            finally:
                shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
