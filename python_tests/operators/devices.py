"""Runs the operators on every device there is, for tests that hold on each: CPU tensors in, CPU tensors out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import trbext
from trbext import TopK
from trbext.results import Blend, Sample, Solution, Verification


def cuda_missing() -> str | None:
    """Returns the reason that nothing can run on a GPU here, for a test to skip with; None if it can."""
    if not torch.cuda.is_available():
        return "no CUDA device (torch.cuda.is_available() is false)"
    if not trbext._C.cuda_compiled:
        return "this build of trbext has no CUDA kernels (trbext._C.cuda_compiled is false)"
    return None


def other_overload_on_ptx(trb: Any = None, overload: str | None = None, **_: object) -> bool:
    """Tells whether a case is nightly: on each change the slow interpreter runs one overload on each architecture."""
    return overload is not None and trb.interpreted and (trb.arch == 80) != (overload == "float")


def on(device: str, tensor: Tensor) -> Tensor:
    """Returns `tensor` on the device with the same strides and the same offset into its storage; `tensor` itself if it
    is there.

    `Tensor.to` would make rows contiguous that are a slice of wider ones.
    """
    if tensor.device == torch.device(device):
        return tensor
    storage = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    return storage.to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


@dataclass(frozen=True)
class Operators:
    """The functions of `trbext` on one device, to which the arguments move and from which the outputs return."""

    device: str
    interpreted: bool = False  # so slow that a test of only size is left out

    def solve(self, student: Tensor, teacher: Tensor | TopK, epsilon: float | Tensor, **options: Any) -> Solution:
        return Solution(*self._call(trbext.solve, student, teacher, epsilon, **options))

    def blend(self, student: Tensor, teacher: Tensor | TopK, epsilon: float | Tensor, **options: Any) -> Blend:
        return Blend(*self._call(trbext.blend, student, teacher, epsilon, **options))

    def sample(self, student: Tensor, teacher: Tensor | TopK, epsilon: float | Tensor, **options: Any) -> Sample:
        return Sample(*self._call(trbext.sample, student, teacher, epsilon, **options))

    def verify(self, student: Tensor, teacher: Tensor | TopK, *arguments: Any, **options: Any) -> Verification:
        return Verification(*self._call(trbext.verify, student, teacher, *arguments, **options))

    def _call(self, function: Any, *arguments: Any, **options: Any) -> list[Tensor]:
        def moved(value: Any) -> Any:
            if isinstance(value, TopK):
                return TopK(*map(moved, value))
            return on(self.device, value) if isinstance(value, Tensor) else value

        outputs = function(*map(moved, arguments), **{name: moved(value) for name, value in options.items()})
        return [output.cpu() for output in outputs]
