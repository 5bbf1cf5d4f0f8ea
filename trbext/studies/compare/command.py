"""Runs a study and reports it: the command `trb compare`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ...errors import UsageError, errors_of
from .console import print_findings
from .declaration import read_study
from .figures import plot_all
from .findings import Findings
from .folder import check_folder, check_paths
from .measurements import read_results
from .page import write_page
from .results_csv import write_csv
from .runner import run_study
from .wording import planned_power


def compare(config: Path, *, report_only: bool = False) -> list[str]:
    """Trains the runs of a study that are not finished, then reports all finished ones.

    Args:
        config: The study file.
        report_only: Train nothing; report what is finished.

    Returns:
        A line for each run that failed.

    Raises:
        UsageError: The study, its folder or one of its runs is not right, or no run is finished.
        Interrupted: A signal stopped the study.
        OSError: A file of the study cannot be written.
    """
    console = Console()
    study, declared = read_study(config)
    check_paths(study)
    failures: list[str] = []
    if report_only:
        check_folder(study, declared)
    else:
        warning = planned_power(study)
        if warning:
            console.print(warning, style="yellow", soft_wrap=True, highlight=False, markup=False)
        failures = run_study(study, declared, console)
    results = read_results(study)
    if not results:
        raise UsageError(f"no run of {study.folder} is finished" + "".join(f"; {line}" for line in failures[:1]))
    page = report(Findings.find(study, declared, results), console)
    console.print(f"Page: {page}", highlight=False, soft_wrap=True, markup=False)
    return failures


def report(findings: Findings, console: Console) -> Path:
    """Writes results.csv, figures/ and index.html into the study's folder, and prints the findings.

    Args:
        findings: What the study found.
        console: Where to print.

    Returns:
        The path of the page.

    Raises:
        OSError: A file cannot be written; it names the file, or the folder of the figures.
    """
    folder = findings.study.folder
    with errors_of(folder / "results.csv"):
        write_csv(findings, folder / "results.csv")
    with errors_of(folder / "figures"):
        pictures = plot_all(findings, folder / "figures")
    with errors_of(folder / "index.html"):
        write_page(findings, pictures, folder / "index.html")
    print_findings(findings, console)
    return folder / "index.html"
