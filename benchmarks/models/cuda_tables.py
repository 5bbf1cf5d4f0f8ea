"""Prints the constants of the model of the resident kernels, and its predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from ..harness.table import print_table
from .cuda_architectures import ARCHITECTURES
from .cuda_counts import ASSUMED, MEASURED, read_chip
from .cuda_prediction import TITLE, Prediction


def print_chip(path: Path, console: Console) -> None:
    """Prints the measured costs of a GPU beside those assumed without one.

    Args:
        path: A file that the chip probe wrote.
        console: Where to print.
    """
    gpu, chip, counts = read_chip(path)
    rows = []
    for name, value in {**vars(chip), "decision_cycles": counts.decision_cycles}.items():
        assumed = getattr(ASSUMED, name, MEASURED.decision_cycles)
        shown = [", ".join(f"{v:.4g}" for v in (x if isinstance(x, tuple) else (x,))) for x in (value, assumed)]
        rows.append([name, *shown])
    title = f"{gpu.name}: read from {path}, and assumed otherwise"
    print_table(console, title, ("constant", "read", "assumed"), rows, left=("constant",))


def print_tables(predictions: Sequence[Prediction], console: Console) -> None:
    """Prints the constants of the GPUs, and a row per prediction."""
    constants = ("GPU", "sm", "SMs", "GHz", "copy GB/s", "issue /clk", "FP32 /clk", "MUFU /clk", "KB/SM", "cluster")
    title = "Constants of the GPUs, published or assumed (benchmarks/models/cuda_architectures.py)"
    print_table(console, title, constants, _gpus(), left=("GPU",))
    headings = (
        *("GPU", "V", "KL", "cluster", "instr", "mufu", "N", "rows in flight", "load", "first", "exact", "decisions"),
        *("stays us", "overlap", "memory %", "issue %", "mufu %", "bound", "us", "roofline us", "% roofline"),
    )
    title = f"{TITLE}: cycles of a row by phase, how busy each resource is, time of N rows"
    print_table(console, title, headings, map(_cells, predictions), left=("GPU", "KL", "bound"))


def _gpus() -> Iterator[list[str]]:
    for gpu in ARCHITECTURES.values():
        numbers = (gpu.sms, gpu.clock_ghz, gpu.memory_gb_per_s, gpu.issue_slots, gpu.fp32_lanes, gpu.mufu_lanes)
        yield [gpu.name, gpu.capability, *map(str, (*numbers, gpu.shared_sm // 1024, gpu.largest_cluster))]


def _cells(p: Prediction) -> list[str]:
    cycles = (p.load_cycles, p.first_cycles, p.exact_cycles, p.decision_cycles)
    return [
        *(p.gpu, str(p.vocab), "stable" if p.stable else "direct", f"{p.cluster} x {p.ctas_per_sm}/SM"),
        *(f"{p.instructions_per_pair:.1f}", f"{p.mufu_per_pair:.1f}", str(p.rows), str(p.rows_in_flight)),
        *(f"{value:.0f}" for value in cycles),
        *(f"{p.residence_us:.1f}", f"{p.overlap:.2f}"),
        *(f"{100 * value:.0f}" for value in (p.memory_busy, p.issue_busy, p.mufu_busy)),
        *(p.bound, f"{p.time_us:.0f}", f"{p.roofline_us:.1f}", f"{p.roofline_percent:.0f}"),
    ]
