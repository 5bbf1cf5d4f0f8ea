"""Serves a tiny model as vLLM and SGLang serve one: a list of models, tokens of a text, log-probs of the next token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from python_tests.vllm.server.fake_server import FakeServer, fake_server

MOST = 20  # log-probs that the server tells, as vLLM does by default


def top_of(model: PreTrainedModel, prefix: list[int], k: int) -> list[tuple[float, int]]:
    """Returns the log-probs and ids of the k most probable next tokens, by a forward of the prefix by itself."""
    with torch.no_grad():
        logits = model(torch.tensor([prefix]), use_cache=False).logits[0, -1]
    top = logits.log_softmax(-1).topk(min(k, len(logits)))
    return list(zip(top.values.tolist(), top.indices.tolist(), strict=True))


@contextmanager
def fake_teacher(
    model: PreTrainedModel,
    owner: str = "vllm",
    name: str = "tiny",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    most: int = MOST,
) -> Iterator[FakeServer]:
    """Serves `model` in the dialect of `owner`. Without a tokenizer, a text is its bytes, modulo the vocabulary."""

    def scored(sequence: list[int], k: int) -> list[list[tuple[float, int]] | None]:
        return [None, *(top_of(model, sequence[:place], k) for place in range(1, len(sequence)))]

    def completions(body: dict[str, Any]) -> tuple[int, Any]:
        k = body.get("logprobs", body.get("prompt_logprobs"))
        if k > most:
            return 400, {"error": {"message": f"Requested sample logprobs of {k}, which is greater than max: {most}"}}
        if body["model"] != name:
            return 404, {"error": {"message": f"The model {body['model']} does not exist."}}
        if "prompt_logprobs" in body:
            told = [
                [top and {str(i): {"logprob": p, "rank": 1} for p, i in top} for top in scored(sequence, k)]
                for sequence in body["prompt"]
            ]
            return 200, {"choices": [{"index": i, "prompt_logprobs": one} for i, one in enumerate(told)]}
        choices = [
            {
                "index": index,
                "logprobs": {"top_logprobs": [{f"token_id:{i}": max(p, -9999.0) for p, i in top_of(model, prefix, k)}]},
            }
            for index, prefix in enumerate(body["prompt"])
        ]
        return 200, {"choices": choices[::-1]}  # in an order of the server's own

    def generate(body: dict[str, Any]) -> tuple[int, Any]:
        k = body["top_logprobs_num"]
        answers = []
        for sequence in body["input_ids"]:
            about: dict[str, Any] = {"output_top_logprobs": [[[p, i, None] for p, i in top_of(model, sequence, k)]]}
            if "logprob_start_len" in body:
                told = scored(sequence, k)
                about["input_top_logprobs"] = [top and [[p, i, None] for p, i in top] for top in told]
            answers.append({"text": "", "meta_info": about})
        return 200, answers

    def tokenize(body: dict[str, Any]) -> tuple[int, Any]:
        if tokenizer is not None:
            return 200, {"tokens": tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]}
        return 200, {"tokens": [byte % model.config.vocab_size for byte in body["prompt"].encode()]}

    with fake_server() as server:
        listed = {"id": name, "owned_by": owner, "max_model_len": 64}
        server.answers = {"/v1/models": (200, {"data": [listed]}), "/tokenize": tokenize}
        if owner == "sglang":
            server.answers["/generate"] = generate
        else:
            server.answers["/v1/completions"] = completions
        yield server
