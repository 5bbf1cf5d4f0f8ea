"""Leaves out a barrier of the CUDA sources and checks that the kernels' tests on the PTX interpreter notice.

    python -m python_tests.cuda.without_barriers             # each in turn, by the test that barriers.tsv names
    python -m python_tests.cuda.without_barriers --random    # one of them, as in CI; --seed N draws it again
    python -m python_tests.cuda.without_barriers --search    # finds tests for those that barriers.tsv lacks
    python -m python_tests.cuda.without_barriers token_draw  # those whose FILE:LINE FUNCTION NUMBER holds a word

The exit status is 1 if a barrier goes unnoticed: then it guards nothing that the tests reach, and either a test is
missing or the barrier is not needed. A test must fail with the message that barriers.tsv names, so that a failure for
another reason does not count. The exit status is 2 without nvcc.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from python_tests.cuda.cuda_barriers import Barrier, barriers, without
from python_tests.sass import find_nvcc

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parents[1]
SOURCES = ROOT / "csrc"
MAP = TESTS / "barriers.tsv"
COLUMNS = ("file", "function", "number", "test", "says")
# The files that --search tries, the quickest first.
SEARCHED = (
    "test_cuda_barriers.py",
    "test_cuda_verify.py::test_a_rejected_draft_without_a_residual_is_replaced_from_mu",
    "test_cuda_verify.py",
    "test_cuda_rows.py",
)

Key = tuple[str, str, int]


class Witness(NamedTuple):
    """The test that fails without a barrier."""

    test: str  # of pytest, without the folder
    says: str  # part of its message


def read_map(path: Path = MAP) -> dict[Key, Witness]:
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    assert header.split("\t") == list(COLUMNS)
    rows = [line.split("\t") for line in lines]
    return {(file, function, int(number)): Witness(test, says) for file, function, number, test, says in rows}


def write_map(witnesses: Mapping[Key, Witness], path: Path = MAP) -> None:
    lines = [COLUMNS, *((file, function, str(n), *witness) for (file, function, n), witness in witnesses.items())]
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")


def disagreements(found: Sequence[Barrier], witnesses: Mapping[Key, Witness]) -> list[str]:
    """Lists the disagreements between the sources and barriers.tsv."""
    keys = {barrier.key for barrier in found}
    new = [f"{barrier}: no test is known to need it" for barrier in found if barrier.key not in witnesses]
    gone = [f"{' '.join(map(str, key))}: the sources have no such barrier" for key in witnesses if key not in keys]
    return new + gone


def what_failed(status: int, output: str) -> tuple[str, str] | None:
    """Returns the first test that failed, as pytest names it, and what it says; None if all passed.

    Raises RuntimeError if a test was skipped, or ended with an error that is not an assertion.
    """
    ran = re.search(r"^\d+ passed\b[^\n]*", output, re.M)
    if status == 0 and ran is not None and "skipped" not in ran.group():
        return None
    test = re.search(r"^FAILED (\S+?\.py::.*?)(?: - .*)?$", output, re.M)
    said = re.search(r"^E +((?:AssertionError: |assert ).*)$", output, re.M)
    first_error = re.search(r"^E +(.*)$", output, re.M)
    if status != 1 or test is None or said is None or first_error is None or said.start() != first_error.start():
        raise RuntimeError(f"pytest ended with {status}, and not with an assertion:\n{output[-3000:]}")
    return test.group(1), said.group(1)


def fails(barrier: Barrier, tests: Sequence[str], sources: Path = SOURCES) -> tuple[str, str] | None:
    """Returns `what_failed` of these tests (files or more, in any folder of the tests) without the barrier."""
    chosen = []
    for test in tests:
        file, _, rest = test.partition("::")
        (path,) = TESTS.rglob(file)
        chosen.append(str(path.relative_to(ROOT)) + (f"::{rest}" if rest else ""))
    with tempfile.TemporaryDirectory(prefix="trbext-barrier-") as folder:
        changed = Path(shutil.copytree(sources, Path(folder) / "csrc"))
        source = changed / barrier.file
        source.write_text(without(barrier, source.read_text(encoding="utf-8")), encoding="utf-8")
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-rfs", "-p", "no:cacheprovider", *chosen],
            env={**os.environ, "TRB_CUDA_SOURCES": str(changed / "cuda")},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    return what_failed(run.returncode, run.stdout + run.stderr)


def by_map(barrier: Barrier, witness: Witness, sources: Path = SOURCES) -> str | None:
    """Returns the fault to report if the test of barriers.tsv does not notice that the barrier is missing."""
    try:
        failed = fails(barrier, [witness.test], sources)
    except RuntimeError as error:
        return f"NOTICED OTHERWISE: {error}"
    if failed is None:
        return f"NOTICED BY NO TEST: {witness.test} passes without it"
    if witness.says not in failed[1]:
        return f"NOTICED OTHERWISE: {witness.test} must say {witness.says!r}, got {failed[1][:200]!r}"
    return None


def search(barrier: Barrier, sources: Path = SOURCES) -> Witness | None:
    """Returns the first test that notices, with the kind of a finding, a race if there is one, or else the whole
    assertion."""
    failed = fails(barrier, SEARCHED, sources)
    if failed is None:
        return None
    kinds = re.findall(r"kind='\w+'", failed[1])
    says = "kind='race'" if "kind='race'" in kinds else kinds[0] if kinds else failed[1]
    return Witness(failed[0].rpartition("/")[2], says)


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_by_map(chosen: Sequence[Barrier], witnesses: Mapping[Key, Witness], sources: Path = SOURCES) -> int:
    wrong = 0
    for i, barrier in enumerate(chosen, 1):
        before = cpu_seconds()
        fault = by_map(barrier, witnesses[barrier.key], sources)
        wrong += fault is not None
        test, says = witnesses[barrier.key]
        verdict = fault or f"{test}: {says}"
        print(f"[{i}/{len(chosen)}] {barrier}  {cpu_seconds() - before:.1f} s of CPU time  {verdict}", flush=True)
    print(f"{len(chosen)} left out one at a time, {wrong} unnoticed, {cpu_seconds():.0f} s of CPU time")
    return int(wrong > 0)


def run_search(chosen: Sequence[Barrier], found: Sequence[Barrier], path: Path = MAP) -> int:
    """Adds the tests it finds, barrier by barrier, and drops the lines whose barrier is gone."""
    known = read_map(path)
    known = {barrier.key: known[barrier.key] for barrier in found if barrier.key in known}
    write_map(known, path)
    unnoticed = 0
    for i, barrier in enumerate(chosen, 1):
        print(f"[{i}/{len(chosen)}] {barrier}  {barrier.text}  ", end="", flush=True)
        witness = search(barrier)
        print(witness.test if witness else "NOTICED BY NO TEST", flush=True)
        unnoticed += witness is None
        if witness is not None:
            known[barrier.key] = witness
            write_map({b.key: known[b.key] for b in found if b.key in known}, path)
    print(f"{len(chosen)} left out one at a time, {unnoticed} unnoticed")
    return int(unnoticed > 0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD", help="only barriers whose name holds one of these")
    parser.add_argument("--random", action="store_true", help="only one of them, drawn")
    parser.add_argument("--seed", type=int, help="of the draw; default: one that it prints")
    parser.add_argument("--search", action="store_true", help="find what barriers.tsv lacks; with WORDs, anew")
    given = parser.parse_args(arguments)
    if find_nvcc() is None:
        print(
            "nothing left out: nvcc must be on PATH, in CUDA_HOME, or from the package nvidia-cuda-nvcc, got none",
            file=sys.stderr,
        )
        return 2
    found, witnesses = barriers(SOURCES), read_map()
    chosen = [b for b in found if not given.words or any(word in str(b) for word in given.words)]
    if given.search:
        return run_search(chosen if given.words else [b for b in chosen if b.key not in witnesses], found)
    if wrong := disagreements(found, witnesses):
        print(*wrong, "run `python -m python_tests.cuda.without_barriers --search`", sep="\n", file=sys.stderr)
        return 1
    if given.random and chosen:
        seed = random.randrange(2**32) if given.seed is None else given.seed
        print(f"seed {seed}")
        chosen = [random.Random(seed).choice(chosen)]
    return run_by_map(chosen, witnesses)


if __name__ == "__main__":
    sys.exit(main())
