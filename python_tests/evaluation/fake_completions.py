"""Serves completions that follow from the seed of a request, as vLLM and SGLang answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from python_tests.vllm.server.fake_server import FakeServer, fake_server
from trbext.data.demo_models import model_path
from trbext.models.loading import load_tokenizer

DEMO = model_path("demo:student")


def ids_of(seed: int) -> list[int]:
    """Returns the completion of a seed: one to four tokens, the last one the demo's stop."""
    return [5 + seed // 7**place % 7 for place in range(seed % 4)] + [2]


@contextmanager
def fake_completions(owner: str = "vllm", name: str = DEMO) -> Iterator[FakeServer]:
    """Runs a server of the demo's student in the dialect of `owner`."""
    tokenizer = load_tokenizer(DEMO, "model")

    def completions(body: dict[str, Any]) -> tuple[int, Any]:
        ids = ids_of(body["seed"])
        choice = {"index": 0, "text": tokenizer.decode(ids), "token_ids": ids, "finish_reason": "stop"}
        return 200, {"choices": [choice], "usage": {"completion_tokens": len(ids)}}

    def generate(body: dict[str, Any]) -> tuple[int, Any]:
        ids = ids_of(body["sampling_params"]["sampling_seed"])
        return 200, {"text": "", "output_ids": ids, "meta_info": {"finish_reason": {"type": "stop", "matched": 2}}}

    def tokenize(body: dict[str, Any]) -> tuple[int, Any]:
        return 200, {"tokens": tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]}

    with fake_server() as server:
        listed = {"id": name, "root": name, "owned_by": owner, "max_model_len": 64}
        server.answers = {"/v1/models": (200, {"data": [listed]}), "/tokenize": tokenize}
        server.answers["/generate" if owner == "sglang" else "/v1/completions"] = (
            generate if owner == "sglang" else completions
        )
        yield server
