"""Models on paper how fast the resident kernels solve on a GPU: `python -m benchmarks.models.cuda_model`.

Nothing here is measured.

The model tells which resource bounds a row (device memory, issue slots, exponentials, latency) without a GPU, and what
a change of the counts would gain. A row pair lies in the shared memory of a cluster of C CTAs; k CTAs share an
SM, S clusters are on the GPU at once. If all S places are busy and a row stays for a time R, S / R rows leave per
unit of time:

    R     = load + math + serial               if nothing is prefetched, as of the first rows of a call
    R     = read + max(math + serial, load)    if the next row is prefetched into L2 while this one is solved
    load  = load0 / (1 - rho)                  load0: latency, and without prefetch the share of a CTA at the rate of
                                               one SM; rho: how busy memory is, S bytes / (R rate)
    read  = read0 / (1 - sigma)                read0: the same from L2; sigma: how busy L2 is
    math  = alone / (1 - (k - 1) busy / R)     alone: the loops on SMs of their own, the busiest pipe of each; the k - 1
                                               other rows of an SM compete while they execute anything (busy)
    serial = (sweeps of the row) x decision cycles + other cycles of warp 0 outside the loops

load, read and math grow without bound as a resource approaches its limit, so S / R obeys every limit: the equation is
Little's law. It has one root, found by bisection. N rows take floor(N / S) full turns and one of the rest. The first
turn reads from device memory.
Expect errors of 25 %: efficiencies and latencies are assumptions (benchmarks/models/cuda_counts.py) unless --chip
names a file of measurements on a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from ..harness.machine import wide_console
from ..harness.records import write_csv
from .cuda_architectures import ARCHITECTURES, WARP, Architecture
from .cuda_counts import ASSUMED, MEASURED, Chip, Counts, Loop, counts_of, read_chip
from .cuda_prediction import TITLE, Prediction
from .cuda_shapes import shape_of
from .cuda_tables import print_chip, print_tables

BOUND_ABOVE = 0.85  # a resource this busy is the bound; if none is, latency is


@dataclass(frozen=True)
class Kernel:
    """The settings and costs with which a row is solved."""

    counts: Counts = MEASURED
    sweeps: float = 2.05  # of a row, the first one included
    stable: bool = False  # the exact sweeps' form of KL
    cluster: int = 8  # CTAs that hold a row
    ctas_per_sm: int = 2
    element_bytes: int = 2  # of a logit
    prefetched: bool = False  # whether the next row is in L2 when its turn comes
    chip: Chip = ASSUMED

    def loops(self) -> dict[str, tuple[Loop, float]]:
        """Returns, per phase, its loop and how often a row runs it."""
        exact = self.counts.stable if self.stable else self.counts.direct
        return {
            "load": (self.counts.load, 1.0),
            "first": (self.counts.first, 1.0),
            "exact": (exact, self.sweeps - 1),
        }


def alone_cycles(gpu: Architecture, chip: Chip, loop: Loop, pairs: float) -> float:
    """Returns the cycles that the busiest pipe needs for `pairs` pairs of one CTA, if no other CTA is on its SM.

    Args:
        gpu: The GPU.
        chip: Its costs.
        loop: The loop that runs over the pairs.
        pairs: Pairs of logits.
    """
    return pairs * max(
        loop.issue / (gpu.issue_slots * WARP * chip.issue_efficiency_of(1)),
        loop.mufu / (gpu.mufu_lanes * chip.mufu_efficiency),
        loop.fp32 / gpu.fp32_lanes,
    )


@dataclass(frozen=True)
class Stay:
    """What the stay of a row on chip is made of, cycles of one CTA that has the GPU to itself."""

    load: float  # until all of the row has come from device memory
    prefetch: float  # until the first of it has, which a prefetch waits for
    read: float  # until all of it has come from L2
    alone: float  # the loops
    busy: float  # the issue slots that the row takes from others, in and outside the loops
    serial: float  # decisions, and what else warp 0 does outside the loops

    def cycles(self, memory: float, cache: float, others: float, prefetched: bool) -> float:
        """Returns the root R of the equations above.

        Args:
            memory: Cycles that the device memory needs for all rows in flight.
            cache: Cycles that L2 needs for them.
            others: Rows that share the SM with this one.
            prefetched: Whether the row is in L2 when its turn comes.
        """

        def excess(residence: float) -> float:
            working = self.alone / (1 - others * self.busy / residence) + self.serial
            waiting = 1 / (1 - memory / residence)
            if not prefetched:
                return self.load * waiting + working - residence
            return self.read / (1 - cache / residence) + max(working, self.prefetch * waiting) - residence

        low = max(memory, others * self.busy, cache if prefetched else 0.0)  # a pole
        high = 2 * (low + self.load + self.read + self.alone + self.serial + 1)
        while excess(high) > 0:
            high *= 2
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if middle <= low or excess(middle) > 0 else (low, middle)
        return high


def predict(gpu: Architecture, kernel: Kernel, vocab: int, rows: int) -> Prediction:
    """Predicts the time of `rows` rows of `vocab` tokens on `gpu`.

    Args:
        gpu: The GPU.
        kernel: The settings and costs of the kernel.
        vocab: Tokens per row.
        rows: Rows of the call.

    Returns:
        The prediction.

    Raises:
        ValueError: The row does not fit in the cluster's shared memory, or the cluster does not fit on the GPU.
    """
    # 1. Find how many rows are on the GPU at once, if a row fits.
    slots = gpu.clusters(kernel.cluster, kernel.ctas_per_sm)
    row_bytes = 2 * vocab * kernel.element_bytes
    room = kernel.cluster * gpu.row_bytes_per_cta(kernel.ctas_per_sm)
    if row_bytes > room or kernel.cluster > gpu.largest_cluster or slots == 0:
        raise ValueError(
            f"{gpu.name}: a row pair must fit in a cluster of at most {gpu.largest_cluster}, got {row_bytes} bytes in "
            f"{kernel.cluster} CTAs with {max(room, 0)} bytes of shared memory, {kernel.ctas_per_sm} CTAs per SM"
        )
    if rows < 1 or kernel.sweeps < 1:
        raise ValueError(f"rows and sweeps must be at least 1, got {rows} and {kernel.sweeps}")
    # 2. Count the cycles of a row that is on the GPU by itself.
    pairs = vocab / kernel.cluster  # of one CTA
    chip, counts = kernel.chip, kernel.counts
    outside = counts.row_instructions / (gpu.issue_slots * chip.issue_efficiency_of(1))
    phases = {name: times * alone_cycles(gpu, chip, loop, pairs) for name, (loop, times) in kernel.loops().items()}
    alone = sum(phases.values())
    share = row_bytes / kernel.cluster
    serial = kernel.sweeps * counts.decision_cycles + counts.row_cycles
    parts = Stay(
        load=chip.load_cycles + share / chip.load_rate,
        prefetch=chip.load_cycles,
        read=chip.prefetched_cycles + share / chip.prefetched_rate,
        alone=alone,
        busy=alone + outside,
        serial=serial,
    )
    bytes_per_cycle, cached_per_cycle = gpu.memory_gb_per_s / gpu.clock_ghz, gpu.cache_gb_per_s / gpu.clock_ghz

    def residence(active: int, prefetched: bool) -> float:
        sharing = min(kernel.ctas_per_sm, max(1.0, active * kernel.cluster / gpu.sms))
        in_flight = active * row_bytes
        return parts.cycles(in_flight / bytes_per_cycle, in_flight / cached_per_cycle, sharing - 1, prefetched)

    # 3. Slow the row down by the others, and let all rows take turns.
    turns, rest = divmod(rows, slots)
    active = min(rows, slots)
    first = residence(active, False)
    full = residence(slots, kernel.prefetched)
    cycles = first + max(turns - 1, 0) * full
    if turns and rest:
        cycles += residence(rest, kernel.prefetched)
    stay = full if turns > 1 else first
    sharing = min(kernel.ctas_per_sm, max(1.0, active * kernel.cluster / gpu.sms))
    slowed = 1 / (1 - (sharing - 1) * parts.busy / stay)

    # 4. Find how busy each resource is meanwhile.
    def busy(per_pair: float, lanes: float, extra: float = 0.0) -> float:
        return active * (vocab * per_pair + kernel.cluster * extra) / (lanes * gpu.sms * stay)

    def per_pair(of: str) -> float:
        return sum(times * float(getattr(loop, of)) for loop, times in kernel.loops().values())

    resources = {
        "memory": active * row_bytes / bytes_per_cycle / stay,
        "issue": busy(
            per_pair("issue"),
            gpu.issue_slots * WARP * chip.issue_efficiency_of(kernel.ctas_per_sm),
            WARP * counts.row_instructions,
        ),
        "mufu": busy(per_pair("mufu"), gpu.mufu_lanes * chip.mufu_efficiency),
        "fp32": busy(per_pair("fp32"), gpu.fp32_lanes),
    }
    # 5. Name the bound, and compare the time with that of the roofline.
    busiest = max(resources, key=lambda name: resources[name])
    roofline = rows * row_bytes / bytes_per_cycle
    to_us = 1e-3 / gpu.clock_ghz
    time = cycles * to_us + chip.launch_us
    return Prediction(
        gpu=gpu.name,
        vocab=vocab,
        rows=rows,
        element_bytes=kernel.element_bytes,
        cluster=kernel.cluster,
        ctas_per_sm=kernel.ctas_per_sm,
        sweeps=kernel.sweeps,
        stable=kernel.stable,
        instructions_per_pair=per_pair("issue"),
        mufu_per_pair=per_pair("mufu"),
        rows_in_flight=active,
        load_cycles=stay - (alone * slowed + serial) + phases["load"] * slowed,
        first_cycles=phases["first"] * slowed,
        exact_cycles=phases["exact"] * slowed,
        decision_cycles=serial,
        residence_us=stay * to_us,
        overlap=sharing * min(1.0, (alone * slowed + outside) / stay),
        memory_busy=resources["memory"],
        issue_busy=resources["issue"],
        mufu_busy=resources["mufu"],
        fp32_busy=resources["fp32"],
        bound=busiest if resources[busiest] > BOUND_ABOVE else "latency",
        time_us=time,
        roofline_us=roofline * to_us,
        roofline_percent=100 * roofline * to_us / time,
    )


def cases(options: argparse.Namespace) -> list[Prediction]:
    """Predicts each GPU, V and form of the exact sweeps, for the given cluster or the smallest that holds a row."""
    found = []
    known = [ARCHITECTURES[name] for name in options.gpu]
    assumed = [(gpu, ASSUMED, counts_of(gpu.capability)) for gpu in known]
    gpus = [read_chip(options.chip)] if options.chip else assumed
    for gpu, chip, counts in gpus:
        for vocab in options.vocab:
            kernel = Kernel(
                counts=counts,
                chip=chip,
                sweeps=options.sweeps,
                cluster=options.cluster or 1,
                ctas_per_sm=options.ctas_per_sm,
                element_bytes=options.element_bytes,
                prefetched=options.prefetch,
            )
            for stable, rows in itertools.product((False, True), options.rows):
                of_call = replace(kernel, stable=stable)
                if not options.cluster:
                    shape = shape_of(gpu, vocab, options.element_bytes, rows)
                    if shape is None:
                        continue  # another kernel reads such rows again through L2; it is not modeled
                    of_call = replace(of_call, cluster=shape.cluster, ctas_per_sm=shape.ctas_per_sm)
                found.append(predict(gpu, of_call, vocab, rows))
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parses the words after `python -m benchmarks.models.cuda_model`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models.cuda_model",
        description=(__doc__ or "").split("\n\n")[1],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--gpu",
        nargs="+",
        choices=ARCHITECTURES,
        default=["H100", "B200"],
        help="GPUs; the default ones have clusters",
    )
    add("--chip", type=Path, metavar="FILE", help="file of the chip probe; models the GPU that it describes")
    add("--vocab", type=int, nargs="+", default=[151_936], metavar="V", help="tokens per row")
    add("--rows", type=int, nargs="+", default=[1, 16, 64, 256, 1024, 4096], metavar="N", help="rows per call")
    add("--element-bytes", type=int, choices=(2, 4), default=2, help="of a logit")
    add("--sweeps", type=float, default=2.05, help="sweeps per row, the first one included")
    add("--cluster", type=int, metavar="CTAS", help="CTAs that hold a row; None: as the launch table says")
    add("--ctas-per-sm", type=int, choices=(1, 2, 3), default=2, help="CTAs that share an SM, with --cluster")
    add("--prefetch", action="store_true", help="assume that a cluster's next row is in L2 when its turn comes")
    add("--output", type=Path, default=Path("runs/benchmarks"), metavar="DIR", help="folder of the CSV file")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Prints the predictions and writes their CSV file; returns the exit code."""
    options = parse(arguments)
    try:
        predictions = cases(options)
        if not predictions:
            raise ValueError("no row of these fits in the shared memory of a cluster")
    except ValueError as error:
        print(f"benchmarks.models.cuda_model: {error}", file=sys.stderr)
        return 2
    console = wide_console(230)
    if options.chip:
        print_chip(options.chip, console)
    print_tables(predictions, console)
    options.output.mkdir(parents=True, exist_ok=True)
    write_csv(predictions, options.output / "cuda_model.csv", first={"kind": TITLE})
    console.print(f"wrote {options.output / 'cuda_model.csv'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
