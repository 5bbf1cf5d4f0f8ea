"""Iterates over the student's whole weights by their names on the Hugging Face hub, for an engine that takes them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

    from ...vllm.transport import Engine


class StudentWeights:
    """The weights of a student, one at a time. Every process iterates, because FSDP2's are gathered from all.

    Args:
        model: The student, out of DDP and DeepSpeed, without an adapter.
        accelerator: Of the run.
    """

    def __init__(self, model: PreTrainedModel, accelerator: Accelerator) -> None:
        self._model, self._accelerator = model, accelerator

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        # FSDP2 leaves the outermost module whole after a forward without a backward pass, so not all are DTensors.
        for name, parameter in self._model.named_parameters():
            weight = parameter.detach()
            if isinstance(weight, DTensor):
                placed: Any = weight.to(self._accelerator.device)
                weight = placed.full_tensor()
            yield name.replace("_checkpoint_wrapped_module.", ""), weight

    def load_from_folder(self, engine: Engine | None, folder: Path) -> None:
        """Writes the weights to a folder, from which an engine in other processes loads them.

        Args:
            engine: Must see the folder under the same path; None on all processes but the one that writes.
            folder: Is made, and removed afterwards.
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
        self._accelerator.wait_for_everyone()
