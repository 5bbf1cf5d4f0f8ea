"""Registers TRB with verl when it is imported, which verl does in all its processes (entry point `verl.plugins`).

verl itself only notes at its debug level that a plugin has failed. What is wrong is therefore logged here, and nothing
is registered then: a run that asks for TRB by its names ends at the first of them, which verl does not know.
"""

from __future__ import annotations

import logging

from .loss_plugin import register_loss
from .versions import check_version

logger = logging.getLogger(__name__)


def register() -> None:
    """Registers the loss `trb_reverse_kl`.

    Raises:
        RuntimeError: This is a verl with which trbext was not run.
    """
    try:
        check_version()
    except RuntimeError as error:
        logger.warning("TRB is not there for this verl: %s", error)
        raise
    register_loss()


register()
