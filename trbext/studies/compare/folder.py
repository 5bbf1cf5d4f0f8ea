"""Opens the folder of a study: a new one, or one that holds the same declaration."""

from __future__ import annotations

from typing import Any

from filelock import FileLock

from ...data.yaml_file import dump_yaml, read_yaml
from ...errors import UsageError
from ...runs.folder import RunFolder
from .declaration import FREE_ON_RESUME, Study, runs_of


def open_folder(study: Study, declared: dict[str, Any]) -> None:
    """Writes the declaration into a folder in which no run has begun, or checks that the folder holds the same one.

    Args:
        study: The checked declaration.
        declared: The contents of its file.

    Raises:
        UsageError: The folder holds another study, or something else.
        Timeout: Another process works on a study of another declaration, of which no run has begun.
    """
    check_folder(study, declared)
    file = study.folder / "study.yaml"
    if file.exists() and not _changes(read_yaml(file), declared):
        return
    study.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(study.folder / "study.lock", timeout=0):
        check_folder(study, declared)  # a run may have begun since
        partial = file.with_suffix(".partial")
        partial.write_text(dump_yaml(declared, sort_keys=False), encoding="utf-8")
        partial.replace(file)


def check_folder(study: Study, declared: dict[str, Any]) -> None:
    """Checks that a folder, if there is one, holds the same declaration, or no run of another one.

    Args:
        study: The checked declaration.
        declared: The contents of its file.

    Raises:
        UsageError: The folder holds another study, or something else.
    """
    file = study.folder / "study.yaml"
    if study.folder.exists() and not study.folder.is_dir():
        raise UsageError(f"output_dir {study.folder} must be a folder, got a file")
    if not file.exists():
        if study.folder.exists() and any(path.name != "study.lock" for path in study.folder.iterdir()):
            raise UsageError(f"output_dir {study.folder} is not empty and holds no study: name another")
        return
    changed = _changes(read_yaml(file), declared)
    if changed and any(path.is_dir() for path in study.folder.glob("runs/*/*")):
        raise UsageError(
            f"{study.folder} holds a study of another configuration ({'; '.join(changed)}): name another output_dir. "
            "A study declares its runs, seeds and metric before there are results to see"
        )


def check_paths(study: Study) -> None:
    """Checks that the file system can look for what a study writes, and that nothing else has its name.

    Raises:
        UsageError: A part of the folder's path is too long, or in a folder that cannot be read; a folder has the name
            of a file, or a file that of a folder. Writing would fail there, after runs were trained.
    """
    try:
        RunFolder(study.folder).check_name()
    except ValueError as error:
        raise UsageError(str(error)) from error
    for name in ("study.yaml", "study.partial", "study.lock", "results.csv", "index.html"):
        if (study.folder / name).is_dir():
            raise UsageError(f"{study.folder / name} must be a file, got a folder: move it away")
    for name in ("runs", "figures"):
        if (study.folder / name).is_file():
            raise UsageError(f"{study.folder / name} must be a folder, got a file: move it away")


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Returns what differs, and of equal runs their names, as a sweep of 1.0 names them unlike one of 1."""
    found = _differences(before, now)
    if not found:
        labels = [[run.label for run in runs_of(each)] for each in (before, now)]
        if set(labels[0]) != set(labels[1]):
            found = [f"runs are named {', '.join(labels[0])} -> {', '.join(labels[1])}"]
    return found


def _differences(before: Any, now: Any, where: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        names = [name for name in {**before, **now} if where or name not in FREE_ON_RESUME]
        found = [
            _differences(before.get(name, "unset"), now.get(name, "unset"), f"{where}.{name}".strip("."))
            for name in names
        ]
        return [line for lines in found for line in lines]
    return [] if before == now else [f"{where}: {before} -> {now}"]
