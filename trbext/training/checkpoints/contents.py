"""Checks what the files of a checkpoint hold: a whole file may still be another's, or damaged."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState
from transformers.trainer_pt_utils import safe_globals

STATE = "trainer_state.json"  # written last by transformers


def state_fault(path: Path, *, to_load: bool = False) -> str | None:
    """Returns what is wrong with a trainer_state.json, None if it says how many steps were taken.

    Args:
        path: The file.
        to_load: Whether it must also be a state that the installed transformers can load.
    """
    state, fault = _json(path)
    if fault is not None:
        return fault
    if not isinstance(state, dict):
        return f"{path.name} must hold a JSON object, got {_short(state)}"
    for name in ("global_step", "max_steps"):
        if type(state.get(name)) is not int:
            return f"{path.name} must hold a whole number as {name!r}, got {_short(state.get(name, 'none'))}"
    if not to_load:
        return None
    unknown = sorted(state.keys() - {field.name for field in fields(TrainerState)})
    if unknown:
        return f"{path.name} must hold fields of a TrainerState, got {unknown[0]!r}"
    for name, kind in {"log_history": list, "stateful_callbacks": dict}.items():
        if not isinstance(state.get(name, kind()), kind):
            return f"{path.name} must hold a {kind.__name__} as {name!r}, got {_short(state[name])}"
    if "TrainerControl" not in state.get("stateful_callbacks", {}):  # transformers' next save would look for it
        found = ", ".join(state.get("stateful_callbacks", {})) or "none"
        return f"{path.name} must hold 'TrainerControl' among its 'stateful_callbacks', got {_short(found)}"
    return None


def index_fault(path: Path) -> str | None:
    """Returns what is wrong with an index of weights, None if it names a file for each weight."""
    index, fault = _json(path)
    if fault is not None:
        return fault
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        return f"{path.name} must hold the file of each weight as 'weight_map', got {_short(index)}"
    return None


def torch_fault(path: Path) -> str | None:
    """Returns what is wrong with the state of an optimizer, a schedule or random numbers, None if nothing is.

    Only names are looked at, and no tensor is read. Any other file has no fault.
    """
    needed = _NEEDED.get("rng_state" if path.stem.startswith("rng_state") else path.name)
    if needed is None:
        return None
    names, is_whole = needed
    try:
        with safe_globals():
            held = torch.load(path, map_location="meta", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error):  # a kind of tensor of a package that is not imported yet
            return None
        return f"{path.name} cannot be read ({_short(str(error))})"
    except Exception as error:  # torch raises what the damaged part happens to cause
        return f"{path.name} cannot be read ({type(error).__name__}: {_short(str(error))})"
    wanted = ", ".join(map(repr, names)) or "a state by names"
    if not isinstance(held, dict):
        return f"{path.name} must hold {wanted}, got {type(held).__name__}"
    lacking = [name for name in names if name not in held]
    if lacking or not is_whole(held):
        found = ", ".join(map(str, held)) or "nothing"
        return f"{path.name} must hold {wanted}, got {_short(found)}"
    return None


_Check = Callable[[dict[str, Any]], bool]
_NEEDED: dict[str, tuple[tuple[str, ...], _Check]] = {
    "optimizer.pt": (
        ("state", "param_groups"),
        lambda held: isinstance(held["state"], dict) and isinstance(held["param_groups"], list),
    ),
    "scheduler.pt": ((), bool),  # one of a user's own holds what it likes
    "rng_state": (("python", "numpy", "cpu"), lambda held: isinstance(held["cpu"], torch.Tensor)),
}


def _json(path: Path) -> tuple[Any, str | None]:
    """Returns what a file holds, and what is wrong with it."""
    try:
        return json.loads(path.read_text(encoding="utf-8")), None
    except UnicodeDecodeError:
        return None, f"{path.name} is not UTF-8 text"
    except (ValueError, RecursionError):
        return None, f"{path.name} was cut short"
    except OSError as error:
        return None, f"{path.name} cannot be read ({error.strerror})"


def _short(value: object) -> str:
    text = " ".join(value.split()) if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
