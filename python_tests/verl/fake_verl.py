"""Stands in for the modules of verl that the server and the worker of a replica inherit from, over a fake engine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

from safetensors.numpy import save

from python_tests.vllm.fake_engine import ALIGNMENT, FakeEngine
from trbext.vllm.transport import RolloutRequest


@dataclass
class TokenOutput:
    """As verl's."""

    token_ids: list[int]
    log_probs: list[float] | None = None
    stop_reason: str | None = None
    num_preempted: int | None = None
    extra_fields: dict[str, Any] = field(default_factory=dict)


class Server:
    """Does of verl's vLLMHttpServer what TRBServer calls."""

    def __init__(self, config: Any, model_config: Any, replica_rank: int = 0, node_rank: int = 0) -> None:
        self.config, self.model_config = config, model_config
        self.replica_rank, self.node_rank, self.global_steps = replica_rank, node_rank, None
        self.asked: list[dict[str, Any]] = []
        self._validate_configs()

    def _validate_configs(self) -> None:
        return None

    def _preprocess_engine_kwargs(self, engine_kwargs: dict[str, Any]) -> None:
        engine_kwargs["seen_by_verl"] = True

    async def run_server(self, args: Any) -> None:
        self.engine = args.engine

    async def run_headless(self, args: Any) -> None:
        return None

    async def set_global_steps(self, global_steps: int) -> None:
        self.global_steps = global_steps

    async def generate(
        self, prompt_ids: list[int], sampling_params: dict[str, Any], request_id: str, priority: int = 0
    ) -> TokenOutput:
        self.asked.append({**sampling_params, "request_id": request_id, "prompt": prompt_ids})
        extra = sampling_params["extra_args"]
        request = RolloutRequest(
            prompt=[*prompt_ids, extra["trb_held_out"]],
            key=extra["trb_key"],
            max_new_tokens=sampling_params["max_tokens"] - 1,
            temperature=sampling_params["temperature"],
            stop=(sampling_params["stop_token_ids"] or [ALIGNMENT.width])[0],  # no id is the width
            epsilon=extra["trb_epsilon"],
        )
        answer = self.engine.fake.generate([request])[0]
        return TokenOutput(
            answer.tokens, stop_reason="completed", num_preempted=2, extra_fields={"num_cached_tokens": 7}
        )


@dataclass
class RPCEngine:
    """vLLM's AsyncLLM of two workers, both of which say the same; the first one has the records."""

    fake: FakeEngine
    digest: str = "d"
    seeds: list[int] = field(default_factory=list)
    enabled: dict[str, Any] = field(default_factory=dict)

    async def collective_rpc(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        if method == "trb_enable":
            self.enabled = kwargs
            return [self.fake.enable(**kwargs)] * 2
        if method == "trb_take_records":
            return [*map(save, self.fake.take_records()), None]
        if method == "trb_digest":
            return [{"teacher": self.digest, "student": "s"}] * 2
        if method == "trb_counters":
            return [{"tokens": 3}] * 2
        assert method == "trb_seed"
        self.seeds.append(*args)
        return [None, None]


def rollout_config(**changes: Any) -> SimpleNamespace:
    """verl's RolloutConfig, as far as TRB reads it."""
    defaults: dict[str, Any] = {
        "prompt_length": 4,
        "response_length": 3,
        "max_model_len": 40,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 8192,
        "tensor_model_parallel_size": 2,
        "data_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "full_determinism": False,
        "calculate_log_probs": True,
        "load_format": "auto",
        "quantization": None,
        "seed": 5,
        "mtp": SimpleNamespace(enable=False, enable_rollout=True),
        "disaggregation": SimpleNamespace(enabled=False),
        "checkpoint_engine": SimpleNamespace(backend="naive"),
        "custom": {"trb": {"teacher": "T", "epsilon": 0.1, "warmup_steps": 4, "draft_length": 3, "top_k": 2}},
    }
    return SimpleNamespace(**defaults | changes)


def model_config(**changes: Any) -> SimpleNamespace:
    """verl's HFModelConfig, as far as TRB reads it."""
    defaults = {"local_path": "S", "trust_remote_code": False, "lora_rank": 0, "lora": {}}
    return SimpleNamespace(**defaults | changes)


@contextmanager
def installed(monkeypatch: Any) -> Iterator[Any]:
    """Makes `trbext.verl.server` importable over these, and yields it."""
    names = {
        "verl": {},
        "verl.workers": {},
        "verl.workers.rollout": {},
        "verl.workers.rollout.replica": {"TokenOutput": TokenOutput},
        "verl.workers.rollout.vllm_rollout": {},
        "verl.workers.rollout.vllm_rollout.vllm_async_server": {"vLLMHttpServer": Server, "vLLMReplica": object},
    }
    with monkeypatch.context() as patch:
        for name, contents in names.items():
            module = ModuleType(name)
            vars(module).update(contents)
            patch.setitem(sys.modules, name, module)
        patch.delitem(sys.modules, "trbext.verl.server", raising=False)
        from trbext.verl import server

        patch.setattr(server, "align_stored", lambda *paths, **_: ALIGNMENT)
        yield server
        patch.delitem(sys.modules, "trbext.verl.server", raising=False)
