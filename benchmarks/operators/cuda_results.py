"""Defines the records of the benchmark of the operators on a GPU, the bytes of each method, and the bars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..harness.bars import Bar, quotient

OPERATORS = ("solve", "sample", "blend")
K = 64  # tokens of the top-k teacher
TOP_K = f"solve, k = {K}"
PEERS = ("2 log_softmax", "Newton 10", "Newton compiled", "bisection 16")
METHODS = (*OPERATORS, TOP_K, *PEERS)
BAR_VOCAB, BAR_DTYPE, BAR_ROWS = 151_936, "bfloat16", 256  # the bars also hold for more rows
ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class CudaRecord:
    """One method on logits [rows, vocab] of one dtype, in one state of the L2 cache."""

    vocab: int
    rows: int
    dtype: str
    cache: str  # "cold": another 5 L2 caches' worth was read before each call; "warm": the same call ran just before
    launch: str  # "call", or "graph": a replayed CUDA graph
    method: str
    epsilon: float  # nats
    median_s: float | None  # seconds per call; None if the method was left out
    fastest_s: float | None
    repetitions: int
    model_bytes: int
    gb_per_s: float | None  # of `model_bytes`
    copy_percent: float | None  # percent of the measured rate of a device copy
    sweeps_mean: float | None  # over the rows, if the method is an operator
    sweeps_max: int | None
    note: str = ""


@dataclass(frozen=True)
class CudaMachine:
    """The GPU that the numbers are from."""

    gpu: str
    capability: str
    multiprocessors: int
    l2_mb: float
    memory_gb: float
    copy_gb_per_s: float  # bytes read and bytes written of a copy on the device, per second
    torch: str
    cuda: str
    trbext: str
    architectures: str  # for which the kernels were built

    def __str__(self) -> str:
        return (
            f"{self.gpu} (sm_{self.capability}, {self.multiprocessors} SMs, {self.l2_mb:.0f} MB L2, "
            f"{self.memory_gb:.0f} GB), copy {self.copy_gb_per_s:.0f} GB/s, torch {self.torch}, CUDA {self.cuda}, "
            f"trbext {self.trbext} ({self.architectures})"
        )


def model_bytes(method: str, rows: int, vocab: int, dtype: str) -> int:
    """Returns the bytes that a call must move at least: each input read once, the outputs written once.

    A peer gives the answer of `solve`, so it is rated by the bytes of `solve`.

    Args:
        method: The method's name.
        rows: Rows of the call.
        vocab: Tokens per row.
        dtype: Of both logits.
    """
    element = ELEMENT_BYTES[dtype]
    logits = 2 * rows * vocab * element
    if method == "blend":
        return logits + rows * (4 * vocab + 2 * 4)  # log mu, beta, KL
    if method == "sample":
        return logits + rows * (8 + 8 + 5 * 4)  # the uniform; token, three log-probabilities, beta, KL
    if method == TOP_K:
        return rows * (vocab * element + K * (8 + 4) + 3 * 4)  # the student's logits; ids and log-probabilities
    if method == "2 log_softmax":
        return 2 * logits
    if method in METHODS:
        return logits + rows * 3 * 4  # beta, KL, sweeps
    raise KeyError(method)


def seconds(
    records: Iterable[CudaRecord], vocab: int, rows: int, dtype: str, method: str, cache: str, launch: str = "call"
) -> float | None:
    """Returns the median seconds of a call, None if it was not measured.

    Args:
        records: The measurements.
        vocab: Tokens per row.
        rows: Rows of the call.
        dtype: Of both logits.
        method: The method's name.
        cache: "cold" or "warm".
        launch: "call" or "graph".
    """
    if method not in METHODS:
        raise KeyError(method)
    wanted = (vocab, rows, dtype, method, cache, launch)
    found = [r for r in records if (r.vocab, r.rows, r.dtype, r.method, r.cache, r.launch) == wanted]
    return found[0].median_s if found else None


def bars(records: Sequence[CudaRecord], copy_gb_per_s: float) -> list[Bar]:
    """Returns the bars at V = 151,936 in bfloat16 from cold caches, for each N >= 256 that was measured, or for 256."""
    at_bar = {r.rows for r in records if (r.vocab, r.dtype) == (BAR_VOCAB, BAR_DTYPE) and r.rows >= BAR_ROWS}
    found = []
    for rows in sorted(at_bar) or [BAR_ROWS]:
        case = f"N = {rows} {BAR_DTYPE}"
        solve = seconds(records, BAR_VOCAB, rows, BAR_DTYPE, "solve", "cold")
        percent = 1e-7 * model_bytes("solve", rows, BAR_VOCAB, BAR_DTYPE) / copy_gb_per_s / solve if solve else None
        found.append(Bar(f"solve, percent of the copy, {case}", percent, True, 50))
        found.append(Bar(f"stretch: solve, percent of the copy, {case}", percent, True, 75))
        for peer, limit in (("Newton 10", 100), ("Newton compiled", 15)):
            slower = seconds(records, BAR_VOCAB, rows, BAR_DTYPE, peer, "cold")
            found.append(Bar(f"{peer} / solve, {case}", quotient(slower, solve), True, limit))
        top_k = seconds(records, BAR_VOCAB, rows, BAR_DTYPE, TOP_K, "cold")
        found.append(Bar(f"{TOP_K} / solve, {case}", quotient(top_k, solve), False, 0.6))
    return found
