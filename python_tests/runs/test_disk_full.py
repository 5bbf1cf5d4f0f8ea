"""A run that can write no more ends with one line, and continues exactly once it can.

Files that may not grow stand for a full disk: the system refuses the same writes, of the metrics by Python, of the
model by safetensors and of the optimizer by torch.
"""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from python_tests.runs.run_files import repeatable, same_weights, tiny_run, trb, written
from trbext.errors import is_of_disk
from trbext.runs.folder import RunFolder


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow above `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("file", ["metrics.jsonl", "checkpoint-2/model.safetensors", "checkpoint-2/optimizer.pt"])
def test_a_full_disk_is_one_line_and_the_run_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    settings = tiny_run(tmp_path)
    config = written(tmp_path / "run.yaml", settings)
    straight = {**settings, "output_dir": str(tmp_path / "straight")}
    assert trb("train", written(tmp_path / "straight.yaml", straight)) == 0
    assert trb("train", config, "--max_steps", "2") == 0
    run = RunFolder(tmp_path / "run")
    size = (run.path / file).stat().st_size
    capsys.readouterr()
    with largest_file(size + 99 if file == "metrics.jsonl" else size - 99):
        assert trb("train", config, "--resume") == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"trb: the run in {run.path} cannot write: ")
    assert lines[0].endswith("it continues from checkpoint-2 with --resume")
    assert trb("train", config, "--resume") == 0
    assert same_weights(run, RunFolder(tmp_path / "straight"))
    assert repeatable(run) == repeatable(RunFolder(tmp_path / "straight"))


def test_other_errors_are_not_of_the_disk() -> None:
    assert is_of_disk(OSError(errno.ENOSPC, "No space left on device"))
    assert is_of_disk(OSError(errno.ESTALE, "Stale file handle"))  # of a network's file system
    assert not is_of_disk(OSError(errno.EACCES, "Permission denied"))
    assert not is_of_disk(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    # torch names one of its files in the errors of writing an archive, and in those of reading a damaged one.
    where = "[enforce fail at inline_container.cc:858] . "
    assert is_of_disk(RuntimeError(f"{where}unexpected pos 576 vs 470"))
    assert not is_of_disk(RuntimeError(f"{where}PytorchStreamReader failed reading zip archive"))
