"""Runs one process of test_trainer_distributed.py: evaluates held-out rows of a dataset and of a stream, and writes
their losses and prompts to FOLDER/streamed<N>.pt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from python_tests.models.tiny_models import prompts
from python_tests.training.trainer_cases import make_trainer


def evaluated(folder: Path, rows: int, shards: int) -> dict[str, Any]:
    """Returns what is logged of `rows` held-out prompts, the prompts of this process and its tokens by batch."""
    held_out: Any = prompts(rows)
    if shards > 0:
        held_out = held_out.to_iterable_dataset(num_shards=shards)
    trainer = make_trainer(folder, held_out=held_out, per_device_eval_batch_size=2)
    seen: list[str] = []
    own: list[int] = []
    generate, own_rows = trainer._generate, trainer._own_rows
    trainer._generate = lambda batch: (seen.extend(batch), generate(batch))[1]
    trainer._own_rows = lambda count: own.append(own_rows(count)) or own[-1]  # type: ignore[func-returns-value]
    trainer.evaluate()
    return {"prompts": seen, "own": own}


if __name__ == "__main__":
    found = {
        (rows, shards): evaluated(Path(sys.argv[1]), rows, shards) for rows in (3, 4, 5, 7) for shards in (0, 1, 2)
    }
    torch.save(found, Path(sys.argv[1]) / f"streamed{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
