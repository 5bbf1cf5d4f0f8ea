"""Serves a tiny model as vLLM and SGLang serve one: a list of models, tokens of a text, log-probs of the next token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from python_tests.vllm.server.fake_server import FakeServer, fake_server

MOST = 20  # log-probs that the server tells, as vLLM does by default


def top_of(model: PreTrainedModel, prefix: list[int], k: int) -> list[tuple[float, int]]:
    """Returns the log-probs and ids of the k most probable next tokens, by a forward of the prefix by itself."""
    law = law_of(model, prefix)
    top = law.topk(min(k, len(law)))
    return list(zip(top.values.tolist(), top.indices.tolist(), strict=True))


def law_of(model: PreTrainedModel, prefix: list[int]) -> Tensor:
    """Returns the log-probs [V] of the next token."""
    with torch.no_grad():
        return model(torch.tensor([prefix]), use_cache=False).logits[0, -1].log_softmax(-1)


def given_tokens(model: PreTrainedModel, prefix: list[int], ids: list[int]) -> list[tuple[float, int]]:
    """Returns the log-probs of given next tokens, with the most probable one on top as vLLM has it."""
    law = law_of(model, prefix)
    asked = [(float(law[token]), token) for token in ids]
    return [*asked, *(one for one in top_of(model, prefix, 1) if one[1] not in ids)]


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
            scores = [
                [top and {str(i): {"logprob": p, "rank": 1} for p, i in top} for top in scored(sequence, k)]
                for sequence in body["prompt"]
            ]
            return 200, {"choices": [{"index": i, "prompt_logprobs": one} for i, one in enumerate(scores)]}
        given = body.get("logprob_token_ids")
        told = [
            top_of(model, prefix, k) if given is None else given_tokens(model, prefix, given)
            for prefix in body["prompt"]
        ]
        choices = [
            {"index": index, "logprobs": {"top_logprobs": [{f"token_id:{i}": max(p, -9999.0) for p, i in one}]}}
            for index, one in enumerate(told)
        ]
        return 200, {"choices": choices[::-1]}  # in an order of the server's own

    def generate(body: dict[str, Any]) -> tuple[int, Any]:
        k = body["top_logprobs_num"]
        answers = []
        for index, sequence in enumerate(body["input_ids"]):
            about: dict[str, Any] = {"output_top_logprobs": [[[p, i, None] for p, i in top_of(model, sequence, k)]]}
            if "logprob_start_len" in body:
                told = scored(sequence, k)
                about["input_top_logprobs"] = [top and [[p, i, None] for p, i in top] for top in told]
            if "token_ids_logprob" in body:
                asked = given_tokens(model, sequence, body["token_ids_logprob"][index])
                about["output_token_ids_logprobs"] = [[[p, i, None] for p, i in asked]]
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
