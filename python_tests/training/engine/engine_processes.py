"""Runs one of two processes of test_engine_processes.py: trains on rollouts of stand-ins for vLLM's engines.

    engine_processes.py BACKEND FOLDER     BACKEND is ddp or fsdp

Each process writes what it saw to FOLDER/BACKEND<rank>.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from python_tests.models.tiny_models import prompts
from python_tests.training.engine.fake_engines import FakeEngines
from python_tests.training.sharded_run import as_if_on_gpus, backend_fields
from python_tests.training.trainer_cases import make_trainer, steps, without_timings
from trbext.training.trainer import TRBTrainer

ROWS = 2  # prompts of each process


def trained(backend: str, mode: str, folder: Path, book: FakeEngines) -> dict[str, Any]:
    """Trains three steps, of which the last has no budget, and returns what happened in this process."""
    trainer: TRBTrainer = make_trainer(
        folder / f"{backend}-{mode}",
        str(folder / "student"),
        str(folder / "teacher"),
        use_vllm=True,
        vllm_mode=mode,
        trb_warmup_steps=2,
        max_steps=3,
        per_device_train_batch_size=ROWS,
        per_device_eval_batch_size=ROWS,
        held_out=prompts(4),
        eval_strategy="steps",
        eval_steps=2,
        **backend_fields(backend, None),
    )
    assert trainer.engines is not None
    draw, seen = trainer.engines.draw, {"same": [], "rows": [], "lengths": []}

    def watching(given: Any, *args: Any, **kwargs: Any) -> Any:
        turn = draw(given, *args, **kwargs)
        whole = {
            name: weight.full_tensor() if isinstance(weight, DTensor) else weight
            for name, weight in trainer.model.named_parameters()
        }
        if book.engines:
            theirs = book.engines[-1].student.state_dict()
            seen["same"].append(all(torch.equal(theirs[name], weight) for name, weight in whole.items()))
        seen["rows"].append(len(turn.completion_ids))
        if turn.draw is not None:
            seen["lengths"].append(turn.draw.rollout.tokens.shape[1] == max(map(len, turn.completion_ids)))
        return turn

    trainer.engines.draw = watching  # type: ignore[method-assign]
    trainer.train()
    return {"steps": without_timings(steps(trainer)), "built": list(book.built), **seen}


def main() -> None:
    backend, folder = sys.argv[1], Path(sys.argv[2])
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        if backend == "fsdp":
            as_if_on_gpus()
        for mode in ("colocate", "server"):
            book = FakeEngines()
            book.install(patch)
            found[mode] = trained(backend, mode, folder, book)
            found[mode]["asked"] = [len(call) for call in book.asked]
            acceptances = [rollout.speculation.acceptance for rollout in book.rollouts if rollout.speculation]
            found[mode]["acceptances"] = acceptances
    (folder / f"{backend}{dist.get_rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
