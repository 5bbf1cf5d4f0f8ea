"""Writes requests for log-probs as a vLLM or an SGLang server takes them, and reads their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Prefixes = Sequence[Sequence[int]]


Row = dict[int, float]  # log-probs by the ids of the most probable tokens
WRONG_FORM = (KeyError, IndexError, TypeError, ValueError, AttributeError)


class Dialect(Protocol):
    """How one kind of server is asked. What cannot be read raises one of `WRONG_FORM`."""

    path: str
    token_prefixes: int  # the most prefixes of one `ask_tokens`

    def ask_next(self, model: str, prefixes: Prefixes, top_k: int) -> dict[str, Any]:
        """Returns the body of a request for the token after each prefix."""

    def read_next(self, answer: Any) -> list[Row]:
        """Returns a row for each prefix, in order."""

    def ask_tokens(self, model: str, prefixes: Prefixes, ids: Prefixes) -> dict[str, Any]:
        """Returns the body of a request for given tokens after each prefix, at most `token_prefixes` of them."""

    def read_tokens(self, answer: Any) -> list[Row]:
        """Returns a row for each prefix, in order."""

    def ask_scores(self, model: str, sequences: Prefixes, top_k: int) -> dict[str, Any]:
        """Returns the body of a request for every token of each sequence, given those before it."""

    def read_scores(self, answer: Any, sequences: Prefixes, starts: Sequence[int]) -> list[Row]:
        """Returns a row for each token from the start of its sequence on."""


class OpenAICompletions:
    """OpenAI's /v1/completions, with ids in the place of texts as vLLM writes them."""

    path = "/v1/completions"
    token_prefixes = 1  # `logprob_token_ids` is one list for all prompts of a request

    def ask_next(self, model: str, prefixes: Prefixes, top_k: int) -> dict[str, Any]:
        """See `Dialect`."""
        return {
            "model": model,
            "prompt": [list(prefix) for prefix in prefixes],
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": top_k,
            "return_tokens_as_token_ids": True,
            "add_special_tokens": False,
        }

    def read_next(self, answer: Any) -> list[Row]:
        """See `Dialect`."""
        return [_by_id(choice["logprobs"]["top_logprobs"][0]) for choice in _in_order(answer)]

    def ask_tokens(self, model: str, prefixes: Prefixes, ids: Prefixes) -> dict[str, Any]:
        """See `Dialect`."""
        (wanted,) = ids
        return {**self.ask_next(model, prefixes, len(wanted)), "logprob_token_ids": list(wanted)}

    def read_tokens(self, answer: Any) -> list[Row]:
        """See `Dialect`."""
        return self.read_next(answer)

    def ask_scores(self, model: str, sequences: Prefixes, top_k: int) -> dict[str, Any]:
        """See `Dialect`."""
        return {
            "model": model,
            "prompt": [list(sequence) for sequence in sequences],
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": top_k,
            "add_special_tokens": False,
        }

    def read_scores(self, answer: Any, sequences: Prefixes, starts: Sequence[int]) -> list[Row]:
        """See `Dialect`."""
        rows = []
        for choice, sequence, start in zip(_in_order(answer), sequences, starts, strict=True):
            told = choice["prompt_logprobs"]
            if len(told) != len(sequence):
                raise ValueError(f"{len(told)} log-probs of {len(sequence)} tokens")
            rows += [{int(token): float(one["logprob"]) for token, one in top.items()} for top in told[start:]]
        return rows


class SGLang:
    """SGLang's own /generate, as its completions give texts only, of which two tokens may have the same."""

    path = "/generate"
    token_prefixes = 256

    def ask_next(self, model: str, prefixes: Prefixes, top_k: int) -> dict[str, Any]:
        """See `Dialect`."""
        return {
            "input_ids": [list(prefix) for prefix in prefixes],
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
            "return_logprob": True,
            "top_logprobs_num": top_k,
        }

    def read_next(self, answer: Any) -> list[Row]:
        """See `Dialect`."""
        return [_of_triples(one["meta_info"]["output_top_logprobs"][0]) for one in answer]

    def ask_tokens(self, model: str, prefixes: Prefixes, ids: Prefixes) -> dict[str, Any]:
        """See `Dialect`."""
        return {**self.ask_next(model, prefixes, 0), "token_ids_logprob": [list(wanted) for wanted in ids]}

    def read_tokens(self, answer: Any) -> list[Row]:
        """See `Dialect`."""
        return [_of_triples(one["meta_info"]["output_token_ids_logprobs"][0]) for one in answer]

    def ask_scores(self, model: str, sequences: Prefixes, top_k: int) -> dict[str, Any]:
        """See `Dialect`."""
        return {**self.ask_next(model, sequences, top_k), "logprob_start_len": 0}

    def read_scores(self, answer: Any, sequences: Prefixes, starts: Sequence[int]) -> list[Row]:
        """See `Dialect`."""
        rows = []
        for one, sequence, start in zip(answer, sequences, starts, strict=True):
            told = one["meta_info"]["input_top_logprobs"]
            if len(told) != len(sequence):
                raise ValueError(f"{len(told)} log-probs of {len(sequence)} tokens")
            rows += [_of_triples(top) for top in told[start:]]
        return rows


def dialect_of(owner: str) -> Dialect:
    """Returns the dialect of a server, by the `owned_by` of its models."""
    return SGLang() if owner == "sglang" else OpenAICompletions()


def _in_order(answer: Any) -> list[Any]:
    return sorted(answer["choices"], key=lambda choice: int(choice["index"]))


def _of_triples(top: Sequence[Sequence[Any]]) -> Row:
    """Reads [[log-prob, id, text], ...]."""
    return {int(token): float(log_prob) for log_prob, token, *_ in top}


def _by_id(top: Mapping[str, float]) -> Row:
    """Reads {"token_id:7": -0.1, ...}."""
    found = {}
    for name, log_prob in top.items():
        kind, _, token = name.partition(":")
        if kind != "token_id":
            raise ValueError(f"a token is given as {name!r} and not by its id")
        found[int(token)] = float(log_prob)
    return found
