"""Words requests for next-token log-probs as a vLLM or an SGLang server takes them, and reads their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..errors import EngineFailed

Prefixes = Sequence[Sequence[int]]


class Dialect(Protocol):
    """How one kind of server is asked for the log-probs of the token after each prefix."""

    path: str

    def request(self, model: str, prefixes: Prefixes, top_k: int) -> dict[str, Any]:
        """Returns the body of a request."""

    def read(self, answer: Any) -> list[dict[int, float]]:
        """Returns, for each prefix in order, the log-probs of the most probable tokens by their ids.

        Raises:
            KeyError, IndexError, TypeError, ValueError: The answer has another form.
        """


class Completions:
    """OpenAI's /v1/completions, with ids in the place of texts as vLLM writes them."""

    path = "/v1/completions"

    def request(self, model: str, prefixes: Prefixes, top_k: int) -> dict[str, Any]:
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

    def read(self, answer: Any) -> list[dict[int, float]]:
        """See `Dialect`."""
        choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
        return [_by_id(choice["logprobs"]["top_logprobs"][0]) for choice in choices]


class SGLang:
    """SGLang's own /generate, as its completions give texts only, of which two tokens may have the same."""

    path = "/generate"

    def request(self, model: str, prefixes: Prefixes, top_k: int) -> dict[str, Any]:
        """See `Dialect`."""
        return {
            "input_ids": [list(prefix) for prefix in prefixes],
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
            "return_logprob": True,
            "top_logprobs_num": top_k,
        }

    def read(self, answer: Any) -> list[dict[int, float]]:
        """See `Dialect`."""
        return [
            {int(token): float(log_prob) for log_prob, token, *_ in one["meta_info"]["output_top_logprobs"][0]}
            for one in answer
        ]


def dialect_of(owner: str) -> Dialect:
    """Returns the dialect of a server, by the `owned_by` of its models."""
    return SGLang() if owner == "sglang" else Completions()


def read(dialect: Dialect, answer: Any, count: int, url: str) -> list[dict[int, float]]:
    """Reads an answer about `count` prefixes.

    Raises:
        EngineFailed: It is not of the dialect's form.
    """
    try:
        rows = dialect.read(answer)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise EngineFailed(
            f"the teacher at {url} answered {dialect.path} in another form than {type(dialect).__name__} has "
            f"({type(error).__name__}: {error})"
        ) from error
    if len(rows) != count:
        raise EngineFailed(f"the teacher at {url} answered {len(rows)} of {count} prefixes")
    return rows


def _by_id(top: Mapping[str, float]) -> dict[int, float]:
    """Reads {"token_id:7": -0.1, ...}."""
    found = {}
    for name, log_prob in top.items():
        kind, _, token = name.partition(":")
        if kind != "token_id":
            raise ValueError(f"a token is given as {name!r} and not by its id")
        found[int(token)] = float(log_prob)
    return found
