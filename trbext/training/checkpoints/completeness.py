"""Checks that a checkpoint of transformers' trainer holds everything that an exact continuation needs.

Without the state of the optimizer, the schedule or the random numbers, transformers would continue with fresh ones.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .contents import STATE, index_fault, state_fault, torch_fault


class IncompleteCheckpoint(ValueError):
    """A checkpoint lacks a file, or holds one that was cut short or damaged."""


def check_checkpoint(checkpoint: Path, processes: int = 1, process: int = 0, *, sharded: bool = False) -> None:
    """Checks that a run can be resumed exactly from `checkpoint`.

    Args:
        checkpoint: A folder "checkpoint-N".
        processes: Of the run that continues. Each has its own random state, unless their number has changed.
        process: The index of this process.
        sharded: Written by FSDP or DeepSpeed, whose weights and optimizer states are folders of their own.

    Raises:
        IncompleteCheckpoint: It cannot; names the file, what it holds, and the older checkpoint from which to continue,
            if there is one.
    """
    fault = _fault(checkpoint, processes, process, sharded)
    if fault is None:
        return
    older = _older(checkpoint, processes, process, sharded)
    remedy = f"delete {checkpoint.name} to continue from {older.name}" if older else "no older checkpoint is complete"
    raise IncompleteCheckpoint(f"{checkpoint} cannot be resumed exactly: {fault}; {remedy}")


def step_of(checkpoint: Path) -> int:
    """Returns the number of optimizer steps that were finished when `checkpoint`, whose state has no fault, was
    written."""
    return int(json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["global_step"])


def _fault(checkpoint: Path, processes: int, process: int, sharded: bool) -> str | None:
    if not checkpoint.is_dir():
        return "there is no such folder"
    needed = {} if sharded else {"optimizer.pt": "optimizer state", "scheduler.pt": "learning rate schedule"}
    if not _is_of_other_processes(checkpoint, processes):
        needed[f"rng_state_{process}.pth" if processes > 1 else "rng_state.pth"] = "random state"
    missing = [name for name in needed if not (checkpoint / name).is_file()]
    if missing:
        why = " (save_only_model leaves it out)" if len(missing) == len(needed) else ""
        return f"{missing[0]}, the {needed[missing[0]]}, is missing{why}"
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != STATE and _is_cut_short(path):
            return f"{path.relative_to(checkpoint)} was cut short"
    if not (checkpoint / STATE).is_file():
        return f"{STATE} is missing"
    faults = [state_fault(checkpoint / STATE, to_load=True), *map(index_fault, sorted(checkpoint.glob("*.index.json")))]
    faults += [torch_fault(checkpoint / name) for name in needed]
    for fault in faults:
        if fault is not None:
            return fault
    if not sharded and not weight_files(checkpoint):
        return "its weights, model.safetensors, are missing"
    return None


def _is_of_other_processes(checkpoint: Path, processes: int) -> bool:
    """Returns whether another number of processes wrote `checkpoint`: random states do not fit then."""
    wrote = _processes_of(checkpoint)
    if wrote is not None:
        return wrote != processes
    if processes == 1:
        return any(checkpoint.glob("rng_state_*.pth"))
    return (checkpoint / "rng_state.pth").is_file()


def _processes_of(checkpoint: Path) -> int | None:
    """Returns how many processes wrote a checkpoint, as `ComputeCount` keeps it; None if it does not say."""
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        found = state["stateful_callbacks"]["ComputeCount"]["attributes"]["processes"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return found if type(found) is int else None


def weight_files(checkpoint: Path) -> list[Path]:
    """Returns the files of weights in a folder; an empty list if one that its index names is missing, or the index is
    damaged."""
    names = ("model*.safetensors", "adapter_model*.safetensors", "pytorch_model*.bin", "adapter_model*.bin")
    found = [path for name in names for path in checkpoint.glob(name)]
    for index in checkpoint.glob("*.index.json"):
        if index_fault(index) is not None:
            return []
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if any(not (checkpoint / shard).is_file() for shard in shards):
            return []
    return found


def _is_cut_short(path: Path) -> bool:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):  # compares the header's lengths with the file's
                return False
        if path.suffix in (".pt", ".pth", ".bin"):
            # torch.save has written zip files since 1.6, with their directory at the end. training_args.bin too.
            return not zipfile.is_zipfile(path)
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
    except (SafetensorError, OSError, ValueError):
        return True
    return False


def _older(checkpoint: Path, processes: int, process: int, sharded: bool) -> Path | None:
    def number(path: Path) -> int:
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        return int(match[1]) if match else -1

    earlier = [path for path in checkpoint.parent.glob("checkpoint-*") if 0 <= number(path) < number(checkpoint)]
    for path in sorted(earlier, key=number, reverse=True):
        if _fault(path, processes, process, sharded) is None:
            return path
    return None
