"""Counts what the CUDA kernels cost, without a GPU: `python -m python_tests.cuda.sass_tables` prints the tables.

Static: registers, spills and stack of each kernel, and the instructions per pair of logits of each of its loops, from
the machine code nvcc emits. Traffic: bytes and 32-byte sectors requested from device memory, from running the PTX.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from python_tests import sass
from python_tests.cuda.ptx_rows import NAMES, SOURCES, PtxOperators
from python_tests.operators.row_families import families
from python_tests.sass import Kind
from trbext._library import LIBRARY_PATH

PROBES = Path(__file__).resolve().parents[1] / "sass" / "kernels" / "sweeps.cu"
MANGLED = {"bfloat16": "13__nv_bfloat16", "float16": "6__half", "float32": "f"}
PAIRS = {"bfloat16": 8, "float16": 8, "float32": 4}  # of one lane in one pass of a loop
LOOPS = ("load", "ends", "direct", "stable", "residual")
UNROLLED = 4  # chunks in one pass of the loop `load`


@dataclass(frozen=True)
class RowLoop:
    """One loop over a row. `per` is per pair of logits."""

    arch: str
    dtype: str
    name: str
    per: sass.PerPair
    loop: sass.Loop


@cache
def probes(arch: str) -> sass.Cubin:
    return sass.compile_cubin(PROBES, arch)


@cache
def of_any_dtype(arch: str, kernel: str) -> sass.Cubin:
    """Returns the code of `assemble_requests` or `top_k_rows`, each of which is one kernel for every dtype."""
    return _installed(arch, kernel) or sass.compile_cubin(SOURCES / f"{kernel}.cu", arch)


@cache
def kernels(arch: str, dtype: str) -> sass.Cubin:
    """Returns the code of the kernels of rows of one dtype."""
    return _installed(arch, f"resident_rowsI{MANGLED[dtype]}E") or sass.compile_cubin(
        SOURCES / f"rows_{dtype}.cu", arch
    )


def _installed(arch: str, kernel: str) -> sass.Cubin | None:
    """Returns what the installed library holds of a kernel. It is of these sources, or trbext would not be imported;
    None if it has no such code, or the tests are of other sources."""
    if "TRB_CUDA_SOURCES" in os.environ:
        return None
    return next(
        (c for c in sass.shipped_cubins(LIBRARY_PATH, arch) if any(kernel in name for name in c.functions)), None
    )


def row_loop(arch: str, dtype: str, name: str) -> RowLoop:
    """Returns the loop for whole chunks of an unmasked row: its probe holds no other loop of that size."""
    innermost = [loop for loop in sass.loops(probes(arch).function(f"{name}_{dtype}")) if loop.innermost]
    loop = max(innermost, key=lambda loop: len(loop.instructions))
    return RowLoop(arch, dtype, name, loop.per(PAIRS[dtype] * (UNROLLED if name == "load" else 1)), loop)


def waits_for_the_gpu(arch: str, dtype: str, kernel: str) -> list[sass.Instruction]:
    """Returns the instructions of a kernel that wait for all memory of the GPU or empty the first-level cache."""
    cubin = kernels(arch, dtype)
    instructions = cubin.function(cubin.name(kernel)).instructions
    return [i for i in instructions if i.base in ("MEMBAR", "ERRBAR", "CGAERRBAR") or i.opcode.startswith("CCTL.IVALL")]


def traffic(trb: PtxOperators, vocab: int, dtype: torch.dtype, epsilon: float = 0.02) -> Iterator[tuple[str, str]]:
    """Returns (what, how much) for sampling from two rows [2, vocab]; 1.00 is every byte of both models once."""
    generator = torch.Generator().manual_seed(0)
    student = (2 * torch.randn(2, vocab, generator=generator)).to(dtype)
    teacher = (student.float() + torch.randn(2, vocab, generator=generator)).to(dtype)
    trb.sample(student, teacher, epsilon, uniform=torch.tensor([0.2, 0.8], dtype=torch.float64))
    found = [trb.results[-1].traffic[name] for name in ("student", "teacher")]
    yield "bytes / bytes of the inputs", f"{sum(t.bytes_loaded for t in found) / (student.nbytes + teacher.nbytes):.2f}"
    sectors = sum(t.unique_sectors for t in found)
    yield "sectors requested / sectors touched", f"{sum(t.load_sectors for t in found) / sectors:.2f}"
    widths = sum((t.widths for t in found), start=type(found[0].widths)())
    wide = sum(width * count for width, count in widths.items() if width == 16)
    total = sum(width * count for width, count in widths.items())
    yield "bytes in 16-byte loads", f"{wide / total:.0%}"


def verify_traffic(trb: PtxOperators, vocab: int, dtype: torch.dtype, kind: int) -> str:
    """Returns the same as `traffic` for one request [2, vocab] whose first draft is accepted and whose second is
    rejected."""
    generator = torch.Generator().manual_seed(0)
    student = 2 * torch.randn(2, vocab, generator=generator)
    teacher = student + torch.randn(2, vocab, generator=generator)
    drafts = torch.stack([student[0].argmax(), (teacher - student)[1].argmin()])
    policy = student.softmax(-1) if kind == 1 else student
    uniform = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    kept = trb.verify(
        policy.to(dtype), teacher.to(dtype), drafts, torch.tensor([0, 2]), 0.02, accept_uniform=uniform,
        draw_uniform=uniform, width=2, student_kind=kind,
    )  # fmt: skip
    assert (kept.emitted, kept.accepted) == (2, 1)
    found = [trb.results[-2].traffic[name] for name in ("student", "teacher")]
    beyond = sum(t.bytes_loaded - t.unique_bytes_loaded for t in found)
    sectors = sum(t.load_sectors for t in found) / sum(t.unique_sectors for t in found)
    return f"each logit once and {beyond} bytes, {sectors:.3f} sectors for one touched"


def decision_cost(epsilon: float) -> str:
    """Counts what a block executes for a row of one chunk [1, 256], whose loops are a few hundred instructions."""
    generator = torch.Generator().manual_seed(0)
    student = (2 * torch.randn(1, 256, generator=generator)).bfloat16()
    teacher = (student.float() + torch.randn(1, 256, generator=generator)).bfloat16()
    trb = PtxOperators(90)
    trb.solve(student, teacher, epsilon)
    counts = trb.results[-1].instructions
    double = sum(count for opcode, count in counts.items() if ".f64" in opcode)
    return f"{sum(counts.values())} instructions of PTX, {double} of them in double precision"


def family_sweeps(epsilon: float, vocab: int = 4099) -> str:
    pairs = [pair for name, pair in families(vocab).items() if "bfloat16" not in name]
    student, teacher = (torch.stack([pair[i].float() for pair in pairs]).bfloat16() for i in (0, 1))
    solved = PtxOperators(90, ranks=4).solve(student, teacher, epsilon)
    sweeps = solved.sweeps[(solved.beta > 0) & (solved.beta < 1)]
    return f"{len(sweeps)} rows: {sweeps.min()} to {sweeps.max()}, mean {sweeps.float().mean():.2f}"


def main() -> None:
    print(
        "| architecture | dtype | kernel | registers | spill, stack, bytes | shared memory, static, bytes "
        "| instructions | fences and cache flushes |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for arch in sass.supported():
        for dtype in NAMES.values():
            for kernel in ("resident_rows", "streamed_rows"):
                cubin = kernels(arch, dtype)
                found = cubin.resources[cubin.name(kernel)]
                waits = " ".join(instruction.opcode for instruction in waits_for_the_gpu(arch, dtype, kernel))
                print(
                    f"| {arch} | {dtype} | {kernel} | {found.registers} | {found.spill_bytes}, {found.stack_bytes} "
                    f"| {found.shared_bytes} | {len(cubin.function(cubin.name(kernel)).instructions)} | {waits} |"
                )
        for kernel in ("assemble_requests", "top_k_rows"):
            cubin = of_any_dtype(arch, kernel)
            found = cubin.resources[cubin.name(kernel)]
            print(
                f"| {arch} | any | {kernel} | {found.registers} | {found.spill_bytes}, {found.stack_bytes} "
                f"| {found.shared_bytes} | | |"
            )
    print("\n| architecture | dtype | " + " | ".join(LOOPS) + " | load + ends + direct | MUFU |")
    print("|---|---|" + "---|" * (len(LOOPS) + 2))
    for arch in sass.supported():
        for dtype in NAMES.values():
            loops = {name: row_loop(arch, dtype, name) for name in LOOPS}
            usual = [loops[name].per for name in ("load", "ends", "direct")]
            cells = " | ".join(f"{loop.per.total:.2f}" for loop in loops.values())
            print(
                f"| {arch} | {dtype} | {cells} | {sum(per.total for per in usual):.2f} "
                f"| {sum(per[Kind.MUFU] for per in usual):.0f} |"
            )
    print("\n| sm_90, bfloat16 | instructions per pair by class |\n|---|---|")
    for name in LOOPS if "sm_90" in sass.supported() else ():
        print(f"| {name} | {row_loop('sm_90', 'bfloat16', name).per} |")
    print("\n| kernel | V | dtype | bytes / inputs | sectors requested / touched | in 16-byte loads |")
    print("|---|---|---|---|---|---|")
    for label, trb, vocab, dtype in (
        ("sm_90, 6 blocks", PtxOperators(90, ranks=6), 151936, torch.bfloat16),
        ("sm_90, 6 blocks", PtxOperators(90, ranks=6), 151936, torch.float32),
        ("sm_90, 2 blocks", PtxOperators(90, ranks=2), 50257, torch.bfloat16),
        ("sm_80, 1 block", PtxOperators(80), 32768, torch.bfloat16),
        ("sm_80, streamed", PtxOperators(80, streamed=True), 151936, torch.bfloat16),
    ):
        cells = " | ".join(value for _, value in traffic(trb, vocab, dtype))
        print(f"| {label} | {vocab:,} | {NAMES[dtype]} | {cells} |")

    for label, trb, dtype, kind in (
        ("bfloat16", PtxOperators(90, ranks=6), torch.bfloat16, 0),
        ("float32 probabilities", PtxOperators(90, ranks=6), torch.float32, 1),
    ):
        print(f"\nverify, sm_90, 6 blocks, V = 151,936, {label}: {verify_traffic(trb, 151936, dtype, kind)}")
    for epsilon in (0.1, 0.005):
        print(f"\nA row outside its loops, epsilon = {epsilon}: {decision_cost(epsilon)}")
    print(f"\nSweeps of the row families whose budget binds, V = 4099, epsilon = 0.02: {family_sweeps(0.02)}")


if __name__ == "__main__":
    main()
