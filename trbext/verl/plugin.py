"""Registers TRB with verl when it is imported, which verl does in all its processes (entry point `verl.plugins`).

verl itself only notes at its debug level that a plugin has failed. What is wrong is therefore logged here, and nothing
is registered then: a run that asks for TRB by its names ends at the first of them, which verl does not know.
"""

from __future__ import annotations

import logging
from typing import Any

from .loss_plugin import register_loss
from .run_checks import ROLLOUT
from .versions import check_version

logger = logging.getLogger(__name__)


def register() -> None:
    """Registers the loss `trb_reverse_kl`, the rollout `trb_vllm` and the trainer mode `trb`.

    Raises:
        RuntimeError: This is a verl with which trbext was not run.
    """
    try:
        check_version()
    except RuntimeError as error:
        logger.warning("TRB is not there for this verl: %s", error)
        raise
    register_loss()
    register_rollout()
    register_trainer()


def register_rollout() -> None:
    """Registers the replicas. Their weights are sent by verl's own adapter, which finds them by their names."""
    from verl.workers.rollout.base import _ROLLOUT_REGISTRY
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    RolloutReplicaRegistry.register(ROLLOUT, _load_replica)
    _ROLLOUT_REGISTRY[(ROLLOUT, "async")] = _ROLLOUT_REGISTRY[("vllm", "async")]


def _load_replica() -> Any:
    from .server import TRBReplica  # which imports vLLM

    return TRBReplica


def register_trainer() -> None:
    """Registers the trainer."""
    from . import trainer  # noqa: F401  # by its decorator


register()
