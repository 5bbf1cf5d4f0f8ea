"""The shipped CUDA kernels, run as PTX on the interpreter, behind the functions of `trbext`.

`PtxOperators(arch=90, ranks=4).solve(student, teacher, epsilon)` compiles csrc/cuda/rows_*.cu with nvcc for sm_90, runs
the resident kernel with a cluster of four blocks per row, and fails if the interpreter finds anything wrong. What the
host does in csrc/cuda/ops_cuda.cpp is done here again: filling the arguments and choosing the grid.
"""

from __future__ import annotations

import ctypes
import functools
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from ptx import Device, Kernel, Module, Result, compile_ptx, launch
from torch import Tensor

from trbext.ops import _as_rows
from trbext.reference import Blend, Sample, Solution

SOURCES = Path(__file__).resolve().parents[1] / "csrc" / "cuda"
NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # kernel_args.h
LOG2_E = 1.4426950408889634
RESIDENT_THREADS, STREAMED_THREADS, LANES, VECTOR_BYTES = 256, 512, 32, 16


class Logits(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_uint64),
        ("row_stride", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
    )


class KernelArgs(ctypes.Structure):
    """csrc/cuda/kernel_args.h"""

    _fields_ = (
        ("student", Logits),
        ("teacher", Logits),
        ("rows", ctypes.c_int64),
        ("vocab", ctypes.c_int32),
        ("slice_vectors", ctypes.c_int32),
        ("inverse_temperature", ctypes.c_double),
        ("scale", ctypes.c_float),
        ("temperature_of_scale", ctypes.c_double),
        ("epsilon", ctypes.c_double),
        ("epsilon_per_row", ctypes.c_uint64),
        ("epsilon_stride", ctypes.c_int64),
        ("uniform", ctypes.c_uint64),
        ("uniform_stride", ctypes.c_int64),
        *(
            (name, ctypes.c_uint64)
            for name in (
                "beta",
                "kl",
                "sweeps",
                "log_probs",
                "token",
                "log_prob",
                "student_log_prob",
                "teacher_log_prob",
            )
        ),
    )


@functools.cache
def ptx_directory() -> Path:
    return Path(tempfile.mkdtemp(prefix="trbext-ptx-"))


@functools.cache
def kernels(arch: int, dtype: torch.dtype) -> Mapping[str, Kernel]:
    """resident and streamed, of the PTX that nvcc makes of the shipped source."""
    text = compile_ptx(SOURCES / f"rows_{NAMES[dtype]}.cu", arch, cache=ptx_directory())
    found = Module.parse(text).kernels
    return {kind: next(k for name, k in found.items() if f"{kind}_rows" in name) for kind in ("resident", "streamed")}


def logits_of(device: Device, tensor: Tensor, name: str) -> Logits:
    """The tensor's whole storage in the device's memory, so that strides and offsets are what they are."""
    size = tensor.element_size()
    storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    kind = {4: np.float32, 2: np.uint16}[size]
    address = device.upload(storage.numpy().view(kind), name=name)
    return Logits(address + tensor.storage_offset() * size, tensor.stride(0), tensor.stride(1), CODES[tensor.dtype])


@dataclass
class PtxOperators:
    """`trbext.solve`, `blend` and `sample` by the PTX of one architecture, one way of holding a row."""

    arch: int
    ranks: int = 1  # blocks of a cluster
    streamed: bool = False
    clusters: int | None = None  # of the grid; None: one for each row
    seed: int | None = None  # of the schedule of warps; None: all in step
    approx_error: float = 0.0  # relative, of .approx instructions
    interpreted: bool = True  # see devices.Operators
    device: str = "cpu"  # of the tensors; faults of use are the host's, which checks them alike for every device
    results: list[Result] = field(default_factory=list)  # of the launches, the last one last

    def solve(self, student: Tensor, teacher: Tensor, epsilon: float | Tensor, *, temperature: float = 1.0) -> Solution:
        out = {"beta": torch.float32, "kl": torch.float32, "sweeps": torch.int32}
        return Solution(**self._run(student, teacher, epsilon, temperature, out))

    def blend(self, student: Tensor, teacher: Tensor, epsilon: float | Tensor, *, temperature: float = 1.0) -> Blend:
        out = {"log_probs": torch.float32, "beta": torch.float32, "kl": torch.float32}
        return Blend(**self._run(student, teacher, epsilon, temperature, out))

    def sample(
        self,
        student: Tensor,
        teacher: Tensor,
        epsilon: float | Tensor,
        *,
        uniform: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Sample:
        if uniform is None:
            uniform = torch.rand(student.shape[:-1], dtype=torch.float64)
        floats = ("log_prob", "student_log_prob", "teacher_log_prob", "beta", "kl")
        out = {"token": torch.int64, **dict.fromkeys(floats, torch.float32)}
        return Sample(**self._run(student, teacher, epsilon, temperature, out, uniform))

    def _run(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        epsilon: float | Tensor,
        temperature: float,
        outputs: Mapping[str, torch.dtype],
        uniform: Tensor | None = None,
    ) -> dict[str, Tensor]:
        student, teacher, budget = _as_rows(student_logits, teacher_logits, epsilon, temperature)
        rows, vocab = student.shape
        shapes = {name: (rows, vocab) if name == "log_probs" else (rows,) for name in outputs}
        final = {name: student_logits.shape[: None if name == "log_probs" else -1] for name in outputs}
        if rows == 0:  # the host launches nothing
            return {name: torch.empty(final[name], dtype=dtype) for name, dtype in outputs.items()}
        device = Device()
        args = KernelArgs(
            student=logits_of(device, student, "student"),
            teacher=logits_of(device, teacher, "teacher"),
            rows=rows,
            vocab=vocab,
            inverse_temperature=1.0 / temperature,
            scale=LOG2_E / temperature,
        )
        args.temperature_of_scale = LOG2_E / args.scale  # which the field has rounded
        if isinstance(budget, Tensor):
            args.epsilon_per_row = device.upload(budget.contiguous().numpy(), name="epsilon")
            args.epsilon_stride = 1
        else:
            args.epsilon = budget
        if uniform is not None:
            args.uniform = device.upload(uniform.reshape(-1).contiguous().numpy(), name="uniform")
            args.uniform_stride = 1
        numpy_of = {torch.float32: np.float32, torch.int32: np.int32, torch.int64: np.int64}
        for name, dtype in outputs.items():
            setattr(args, name, device.empty(shapes[name], numpy_of[dtype], name=name))

        dtype = student.dtype if student.dtype == teacher.dtype else torch.float32
        tokens = LANES * VECTOR_BYTES // dtype.itemsize
        if not self.streamed:
            chunks = math.ceil(vocab / tokens)
            args.slice_vectors = math.ceil(chunks / self.ranks) * LANES
        result = launch(
            device,
            kernels(self.arch, dtype)["streamed" if self.streamed else "resident"],
            grid=min(rows, self.clusters or rows) * self.ranks,
            block=STREAMED_THREADS if self.streamed else RESIDENT_THREADS,
            args=[bytes(args)],
            shared=2 * args.slice_vectors * VECTOR_BYTES,
            cluster=self.ranks,
            arch=self.arch,
            seed=self.seed,
            approx_error=self.approx_error,
        )
        assert not result.findings, result.findings
        self.results.append(result)
        downloaded = {name: torch.from_numpy(device.download(getattr(args, name)).copy()) for name in outputs}
        return {name: tensor.reshape(final[name]) for name, tensor in downloaded.items()}


def on_every_architecture() -> dict[str, PtxOperators]:
    """What the tests of the operators' semantics run on."""
    return {
        "ptx-sm80-streamed": PtxOperators(80, streamed=True),
        "ptx-sm90-cluster": PtxOperators(90, ranks=4),
    }


def missing() -> str | None:
    """Why the kernels' PTX cannot be had here, for a test to skip with."""
    from ptx import find_nvcc

    return None if find_nvcc() is not None else "no nvcc on PATH, in CUDA_HOME, or from the package nvidia-cuda-nvcc"
