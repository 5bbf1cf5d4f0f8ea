"""Checks that the processes that a launcher started are in one group."""

from __future__ import annotations

import os

# Variables from which accelerate reads the number of processes, in its order.
_NAMES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def check_one_group(world_size: int) -> None:
    """Checks that the launcher started as many processes as there are in the group of this one.

    Otherwise each would train on its own, into one folder.

    Args:
        world_size: Processes in the group.

    Raises:
        ValueError: The launcher started another number.
    """
    for name in _NAMES:
        text = os.environ.get(name, "")
        if text.isdecimal() and int(text) > 0:
            if int(text) != world_size:
                raise ValueError(
                    f"the launcher started {text} processes ({name}), but this one is in a group of {world_size}: each "
                    "would train on its own. Give every process a GPU, or set use_cpu"
                )
            return
