"""Sends a trainer's student into the draft models of a TRB server by NCCL, over vLLM's weight-transfer interface.

It has not been run: it needs GPUs on both sides. `HTTPEngine.load_student`, which has, goes by a shared disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor

from ...errors import EngineFailed
from ..http import HTTPEngine

Weights = Callable[[], Iterable[tuple[str, Tensor]]]


class StudentTransfer:
    """The trainer's side of vLLM's weight transfer (`VLLMWeightSyncClient`), with the draft model as its target.

    The server must have been started with vLLM's flag --weight-transfer-config '{"backend": "nccl"}'. Every process of
    the trainer makes one and calls `send`; the process of rank 0 sends.

    Args:
        engine: The server.
        weights: Called for each transfer; gives whole tensors by their names on the Hugging Face hub, in the same order
            each time. With sharded weights every process has to iterate.
        master_address: Of rank 0, as the server's machines reach it.
        master_port: Free, on rank 0.
        rank: Of this process among the trainer's.

    Raises:
        ImportError: This vLLM has no trainer engine, which 0.28 and later have.
    """

    def __init__(
        self, engine: HTTPEngine, weights: Weights, *, master_address: str, master_port: int, rank: int = 0
    ) -> None:
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

        facts = engine.handshake()
        self._engine = engine
        self._trainer = NCCLTrainerWeightTransferEngine.trainer_init(
            NCCLTrainerInitInfo(
                master_address=master_address,
                master_port=master_port,
                world_size=1 + int(facts["replicas"]) * int(facts["tensor_parallel_size"]),
                rank=rank,
            ),
            client=self,
            source=_source(weights),
        )

    def send(self) -> None:
        """Loads the weights into the draft model of every worker, and empties the prefix caches.

        Raises:
            EngineFailed: The server could not take them.
        """
        self._trainer.send_weights()

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Lets every worker of every replica join the trainer's group; vLLM counts the ranks of all replicas."""
        self._engine.transfer("init", init_info)

    def start_weight_update(self) -> None:
        """Begins an update of the draft model. vLLM's own client would begin one of the teacher."""
        self._engine.transfer("start")

    def update_weights(self, update_info: Any) -> None:
        """Receives the weights that rank 0 broadcasts."""
        if isinstance(update_info, list):
            raise EngineFailed("each worker of a TRB server takes the same weights, got a list of updates")
        self._engine.transfer("update", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Ends the update. The server then empties its prefix caches."""
        self._engine.transfer("finish")


def _source(weights: Weights) -> Any:
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class StudentSource(WeightSource):  # type: ignore[misc]
        """The student's weights as vLLM's WeightSource."""

        def __init__(self) -> None:
            self._metadata: list[Any] = []

        def metadata(self) -> list[Any]:
            """Names, dtypes and shapes, which the first pass over the weights finds."""
            if not self._metadata:
                self._metadata = [ParamMeta(name, value.dtype, tuple(value.shape)) for name, value in weights()]
            return self._metadata

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return iter(weights())

    return StudentSource()
