"""Runs one process of test_two_processes_of_the_field.py: trains by methods of the field, and writes what it saw."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import torch

import trbext.training.trainer
from python_tests.training.distributed_run import trainer
from trbext.rollout import Rollout, speculative

METHODS: dict[str, dict[str, Any]] = {
    "routed": {"loss_estimator": "routed", "trb_epsilon": 0.5, "draft_length": 2},
    "adaptive": {
        "rollout_length_start": 3,
        "rollout_length_window": 1,
        "rollout_length_plateau": 0.9,
        "rollout_length_use": 0.1,
        "draft_length": 2,
        "max_steps": 6,
    },
    "prefix": {"loss_prefix_tokens": 2, "rollout_policy": "student", "position_gamma": 0.5},
    "relay": {"rollout_policy": "relay", "relay_words": "", "relay_boundary": "", "relay_leg_length": 1},
}


def run(folder: Path) -> None:
    found = {}
    for name, fields in METHODS.items():
        rollouts: list[Rollout] = []

        def recording(*args: Any, rollouts: list[Rollout] = rollouts, **kwargs: Any) -> Rollout:
            rollouts.append(speculative(*args, **kwargs))
            return rollouts[-1]

        trbext.training.trainer.speculative = recording
        one = trainer(folder / name, **{"eval_strategy": "no", "save_strategy": "no", **fields})
        one.train()
        rank = one.accelerator.process_index
        found[name] = {"weights": dict(one.model.state_dict()), "logs": one.state.log_history, "rollouts": rollouts}
    torch.save(found, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    gc.freeze()
    run(Path(sys.argv[1]))
    torch.distributed.destroy_process_group()
