"""Runs `trb` under accelerate's FSDP on the CPU, as one process of torchrun, and prints which classes hold the weights.

accelerate shards only on GPUs: told that its gloo processes are some, it builds the FSDP2 set-up of the launch
configuration on the CPU.
"""

from __future__ import annotations

import sys
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType

from trbext.cli import main
from trbext.training.trainer import TRBTrainer

initialize, compute_loss = PartialState.__init__, TRBTrainer.compute_loss


def as_if_on_gpus(self: PartialState, *args: Any, **kwargs: Any) -> None:
    initialize(self, *args, **kwargs)
    if PartialState._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def telling(self: TRBTrainer, *args: Any, **kwargs: Any) -> Any:
    kinds = [type(next(model.parameters())).__name__ for model in (self.model, self.teacher_model)]
    print("weights:", self.accelerator.distributed_type.value, *kinds, flush=True)
    return compute_loss(self, *args, **kwargs)


if __name__ == "__main__":
    PartialState.__init__ = as_if_on_gpus
    TRBTrainer.compute_loss = telling
    sys.exit(main())
