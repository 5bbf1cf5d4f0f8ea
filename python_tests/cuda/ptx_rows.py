"""Runs the shipped CUDA kernels as PTX on the interpreter, behind the functions of `trbext`.

`PtxOperators(arch=90, ranks=4).solve(student, teacher, epsilon)` compiles solve_rows.cuh with nvcc for sm_90, runs
the resident kernel with a cluster of four blocks per row, and fails if the interpreter finds anything wrong. The work
of the host in csrc/cuda/launch/ is repeated here: filling the arguments and choosing the grid.
"""

from __future__ import annotations

import functools
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptxsim import Device, Kernel, Module, Result, compile_ptx, launch
from python_tests.cuda.ptx_arguments import (
    SECTIONS_PER_BLOCK,
    VERDICT_WORDS,
    KernelArgs,
    VerifyArrays,
    column_of,
    indices_of,
    logits_of,
    strips_of,
    temperature_of,
)
from python_tests.cuda.ptx_top_k import launch_options
from trbext import TopK
from trbext._operators.arguments import as_rows
from trbext.limits import STUDENT_KINDS
from trbext.results import Blend, Sample, Solution, Verification

# TRB_CUDA_SOURCES: another csrc/cuda, with a bug that the tests must notice (python_tests/cuda/without_barriers.py).
SOURCES = Path(os.environ.get("TRB_CUDA_SOURCES", Path(__file__).resolve().parents[2] / "csrc" / "cuda"))
NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
CUDA = {torch.float32: "float", torch.float16: "__half", torch.bfloat16: "__nv_bfloat16"}
NUMPY = {torch.float32: np.float32, torch.int32: np.int32, torch.int64: np.int64}
RESIDENT_THREADS, STREAMED_THREADS, LANES, VECTOR_BYTES = 256, 512, 32, 16
ASSEMBLY_THREADS = 128


def row_text_of(sources: Path, folder: Path, arch: int, dtype: torch.dtype, name: str) -> str:
    """Returns the PTX that nvcc makes of the kernel `resident` or `streamed` from the template in csrc/ `sources`. The
    source that names the template is written to `folder`.

    Only one kernel is compiled, because nearly every test runs only one: rows_*.cu has both and compiles in twice the
    time.
    """
    source = folder / f"{name}_{NAMES[dtype]}.cu"
    source.write_text(
        '#include "cuda/kernel/solve_rows.cuh"\n'
        f"template __global__ void trb::cuda::{name}_rows<{CUDA[dtype]}>"
        "(const __grid_constant__ trb::cuda::KernelArgs);\n"
    )
    return compile_ptx(source, arch, [sources])


def row_kernel_of(sources: Path, folder: Path, arch: int, dtype: torch.dtype, name: str) -> Kernel:
    """Returns the kernel of `row_text_of` for the interpreter."""
    (kernel,) = Module.parse(row_text_of(sources, folder, arch, dtype, name)).kernels.values()
    return kernel


@functools.cache
def row_text(arch: int, dtype: torch.dtype, name: str) -> str:
    """Returns the PTX text of `row_kernel`."""
    with tempfile.TemporaryDirectory(prefix="trbext-ptx-") as folder:
        return row_text_of(SOURCES.parent, Path(folder), arch, dtype, name)


@functools.cache
def row_kernel(arch: int, dtype: torch.dtype, name: str) -> Kernel:
    (kernel,) = Module.parse(row_text(arch, dtype, name)).kernels.values()
    return kernel


@functools.cache
def assembly_kernel(arch: int) -> Kernel:
    text = compile_ptx(SOURCES / "assemble_requests.cu", arch)
    (kernel,) = Module.parse(text).kernels.values()
    return kernel


@dataclass
class PtxOperators:
    """The functions of `trbext` by the PTX of one architecture and one way of holding a row."""

    arch: int
    ranks: int = 1  # blocks of a cluster
    sections: int = SECTIONS_PER_BLOCK  # of the row, in each block; 1 with twice the ranks gives the same bits
    streamed: bool = False
    prefetch: bool = True  # of a cluster's next row
    clusters: int | None = None  # of the grid; None: one for each row
    seed: int | None = None  # of the schedule of warps; None: all in step
    approx_error: float = 0.0  # relative, of .approx instructions
    traced: bool = False  # whether the results list the statements that the first warp executes
    interpreted: bool = True  # see devices.Operators
    device: str = "cpu"  # of the tensors; faults of use are the host's, which checks them alike for every device
    results: list[Result] = field(default_factory=list)  # of the launches, the last one last

    def solve(
        self, student: Tensor, teacher: Tensor | TopK, epsilon: float | Tensor, *, temperature: float = 1.0
    ) -> Solution:
        out = {"beta": torch.float32, "kl": torch.float32, "sweeps": torch.int32}
        return Solution(**self._run(student, teacher, epsilon, temperature, out))

    def blend(
        self, student: Tensor, teacher: Tensor | TopK, epsilon: float | Tensor, *, temperature: float = 1.0
    ) -> Blend:
        out = {"log_probs": torch.float32, "beta": torch.float32, "kl": torch.float32}
        return Blend(**self._run(student, teacher, epsilon, temperature, out))

    def sample(
        self,
        student: Tensor,
        teacher: Tensor | TopK,
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

    def verify(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | TopK,
        draft_tokens: Tensor,
        offsets: Tensor,
        epsilon: float | Tensor,
        *,
        temperature: float | Tensor = 1.0,
        accept_uniform: Tensor,
        draw_uniform: Tensor,
        student_rows: Tensor | None = None,
        teacher_rows: Tensor | None = None,
        width: int,
        vocab: int = 0,
        student_kind: int | str = 0,
        log_probs: bool = False,
        dtype: torch.dtype = torch.int64,  # of the tokens
    ) -> Verification:
        rows, requests, device = len(draft_tokens), len(offsets) - 1, Device()

        def per_request(value: float | Tensor) -> Tensor:
            return value if isinstance(value, Tensor) else torch.full((requests,), value)

        kind = STUDENT_KINDS[student_kind] if isinstance(student_kind, str) else student_kind
        top_k = isinstance(teacher_logits, TopK)
        teacher = tuple(teacher_logits) if top_k else (teacher_logits,)
        columns = vocab or min(
            logits.shape[1] for logits in ((student_logits,) if top_k else (student_logits, *teacher))
        )
        arrays = VerifyArrays(
            rows=rows,
            requests=requests,
            width=width,
            vocab=columns,
            student_rows=len(student_logits),
            teacher_rows=len(teacher[0]),
            student_kind=kind,
            draft_tokens=indices_of(device, draft_tokens, "draft_tokens"),
            offsets=indices_of(device, offsets, "offsets"),
            student_row=indices_of(device, student_rows, "student_rows"),
            teacher_row=indices_of(device, teacher_rows, "teacher_rows"),
            epsilon=column_of(device, per_request(epsilon), "epsilon"),
            temperature=column_of(device, per_request(temperature), "temperature"),
            accept_uniform=column_of(device, accept_uniform, "accept_uniform"),
            draw_uniform=column_of(device, draw_uniform, "draw_uniform"),
            int64_tokens=dtype == torch.int64,
        )
        outputs = {
            "tokens": ((requests, width), dtype),
            "emitted": ((requests,), torch.int32),
            "accepted": ((requests,), torch.int32),
            "beta": ((rows,), torch.float32),
            "kl": ((rows,), torch.float32),
        } | ({"log_probs": ((requests, width, 3), torch.float32)} if log_probs else {})
        for name, (shape, of) in outputs.items():
            setattr(arrays, name, device.empty(shape, NUMPY[of], name=name))
        args = KernelArgs(
            student=logits_of(device, student_logits, "student"),
            rows=rows,
            vocab=columns,
            beta=arrays.beta,
            kl=arrays.kl,
            verify=arrays,
            verdicts=device.empty((rows, VERDICT_WORDS), np.int64, name="verdicts"),
        )
        if rows > 0:
            self._launch_rows(device, args, student_logits.dtype if kind == 0 else torch.float32, teacher)
        if requests > 0:
            warps = ASSEMBLY_THREADS // LANES
            self._launch(
                device,
                assembly_kernel(self.arch),
                grid=math.ceil(requests / warps),
                block=ASSEMBLY_THREADS,
                args=[bytes(arrays), args.verdicts],
            )
        found = {name: torch.from_numpy(device.download(getattr(arrays, name)).copy()) for name in outputs}
        return Verification(**{"log_probs": torch.empty(0, 0, 3), **found})

    def _run(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | TopK,
        epsilon: float | Tensor,
        temperature: float,
        outputs: Mapping[str, torch.dtype],
        uniform: Tensor | None = None,
    ) -> dict[str, Tensor]:
        student, teacher, budget = as_rows(student_logits, teacher_logits, epsilon, temperature)
        rows, vocab = student.shape
        shapes = {name: (rows, vocab) if name == "log_probs" else (rows,) for name in outputs}
        final = {name: student_logits.shape[: None if name == "log_probs" else -1] for name in outputs}
        if rows == 0:  # the host launches nothing
            return {name: torch.empty(final[name], dtype=dtype) for name, dtype in outputs.items()}
        device = Device()
        args = KernelArgs(
            student=logits_of(device, student, "student"),
            rows=rows,
            vocab=vocab,
            temperature=temperature_of(temperature),
        )
        if isinstance(budget, Tensor):
            args.epsilon_per_row = device.upload(budget.contiguous().numpy(), name="epsilon")
            args.epsilon_stride = 1
        else:
            args.epsilon = budget
        if uniform is not None:
            args.uniform = device.upload(uniform.reshape(-1).contiguous().numpy(), name="uniform")
            args.uniform_stride = 1
        for name, dtype in outputs.items():
            setattr(args, name, device.empty(shapes[name], NUMPY[dtype], name=name))
        self._launch_rows(device, args, student.dtype, teacher)
        downloaded = {name: torch.from_numpy(device.download(getattr(args, name)).copy()) for name in outputs}
        return {name: tensor.reshape(final[name]) for name, tensor in downloaded.items()}

    def _launch_rows(self, device: Device, args: KernelArgs, dtype: torch.dtype, teacher: tuple[Tensor, ...]) -> None:
        if len(teacher) == 2:
            options = launch_options(SOURCES, self.arch, device, args, TopK(*teacher))
            self._launch(device, **options, grid=min(args.rows, self.clusters or args.rows))
            return
        args.teacher = logits_of(device, teacher[0], "teacher")
        dtype = dtype if dtype == teacher[0].dtype else torch.float32
        tokens = LANES * VECTOR_BYTES // dtype.itemsize
        chunks = math.ceil(args.vocab / tokens)
        args.sections, args.strips = self.sections, strips_of(chunks, self.ranks * self.sections)
        if not self.streamed:
            args.slice_vectors = math.ceil(chunks / self.ranks) * LANES
            args.prefetch = self.prefetch
        self._launch(
            device,
            row_kernel(self.arch, dtype, "streamed" if self.streamed else "resident"),
            grid=min(args.rows, self.clusters or args.rows) * self.ranks,
            block=STREAMED_THREADS if self.streamed else RESIDENT_THREADS,
            args=[bytes(args)],
            shared=2 * args.slice_vectors * VECTOR_BYTES,
            cluster=self.ranks,
            non_portable=True,
        )

    def _launch(self, device: Device, kernel: Kernel, **options: Any) -> None:
        options |= {"arch": self.arch, "seed": self.seed, "approx_error": self.approx_error, "traced": self.traced}
        result = launch(device, kernel, **options)
        assert not result.findings, result.findings
        self.results.append(result)


def on_every_architecture() -> dict[str, PtxOperators]:
    """Returns the operators that the tests of the operators' semantics run on."""
    return {
        "ptx-sm80-streamed": PtxOperators(80, streamed=True),
        "ptx-sm90-cluster": PtxOperators(90, ranks=4),
    }


def missing() -> str | None:
    """Returns the reason that the kernels' PTX cannot be had here, for a test to skip with; None if it can."""
    from ptxsim import find_nvcc

    return None if find_nvcc() is not None else "no nvcc on PATH, in CUDA_HOME, or from the package nvidia-cuda-nvcc"
