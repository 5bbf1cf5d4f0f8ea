"""Plots the curves of run folders: the command `trb plot`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..training.metrics.metric_table import Metrics
from .folder import RunFolder
from .plots import plot_runs


def plot_folders(folders: Sequence[Path], output: Path) -> None:
    """Plots the curves of runs into one image, and prints its path.

    Args:
        folders: Run folders of `trb train`.
        output: The image to write, .png or .svg, in a folder that exists.

    Raises:
        UsageError: `output` or a run folder cannot be used.
        ValueError: No run has a metric to plot.
        OSError: The image cannot be written.
    """
    check_picture(output)
    runs: list[list[Metrics]] = []
    for path in folders:
        folder = RunFolder(path)
        lines = folder.read_metrics()
        if not lines:
            raise UsageError(f"{path} is not a run folder with metrics: {folder.metrics} is missing or empty")
        runs.append(lines)
    plot_runs(list(zip(labels_of(folders), runs, strict=True)), output)
    print(output)


def labels_of(folders: Sequence[Path]) -> list[str]:
    """Returns a label for each folder: the last parts of its path, as many as tell all of them apart if any can."""
    parts = [path.absolute().parts for path in folders]
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(each[-length:]) for each in parts]
        if len(set(labels)) == len(set(parts)):
            break
    return labels


def check_picture(output: Path) -> None:
    """Checks that a picture can be written to `output`.

    Raises:
        UsageError: It has another ending than .png or .svg, or its folder does not exist.
    """
    if output.suffix not in (".png", ".svg"):
        raise UsageError(f"--output must end in .png or .svg, got {output}")
    if not output.parent.is_dir():
        raise UsageError(f"--output: there is no folder {output.parent}")
