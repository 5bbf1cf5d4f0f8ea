"""Writes requests for completions as a vLLM or an SGLang server takes them, and reads their answers.

Every option that changes the distribution is sent, because a server would otherwise take it from the model's
generation_config.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..rollout.plain_sampling import PLAIN_COMPLETIONS
from .tasks import Task


@dataclass(frozen=True)
class ServerCompletion:
    """What a server answers for a task."""

    ids: list[int] | None  # the stop token included; None if the server does not tell ids
    text: str
    tokens: int
    reason: str  # "stop", "length", or why else it ended


class CompletionDialect(Protocol):
    """How one kind of server is asked. What cannot be read raises one of `WRONG_FORM` (teachers/remote/dialects.py)."""

    path: str

    def ask(self, model: str, task: Task, stop: Sequence[int], temperature: float) -> dict[str, Any]:
        """Returns the body of the request for a task; any id of `stop` ends the completion."""

    def read(self, answer: Any) -> ServerCompletion:
        """Reads an answer."""


class OpenAICompletions:
    """OpenAI's /v1/completions with the options that vLLM adds to it."""

    path = "/v1/completions"

    def ask(self, model: str, task: Task, stop: Sequence[int], temperature: float) -> dict[str, Any]:
        """See `CompletionDialect`."""
        return {
            "model": model,
            "prompt": list(task.ids),
            "max_tokens": task.max_new_tokens,
            "seed": task.seed,
            "temperature": temperature,
            **PLAIN_COMPLETIONS,
            "stop_token_ids": list(stop),
            "add_special_tokens": False,
            "return_token_ids": True,
        }

    def read(self, answer: Any) -> ServerCompletion:
        """See `CompletionDialect`."""
        (choice,) = answer["choices"]
        ids = choice.get("token_ids")
        tokens = len(ids) if ids is not None else int(answer["usage"]["completion_tokens"])
        return ServerCompletion(ids, str(choice["text"]), tokens, str(choice["finish_reason"]))


class SGLangGenerate:
    """SGLang's own /generate, which tells ids. Its seeds have an effect if it runs deterministic inference."""

    path = "/generate"

    def ask(self, model: str, task: Task, stop: Sequence[int], temperature: float) -> dict[str, Any]:
        """See `CompletionDialect`."""
        return {
            "input_ids": list(task.ids),
            "sampling_params": {
                "max_new_tokens": task.max_new_tokens,
                "sampling_seed": task.seed,
                "temperature": temperature,
                **PLAIN_COMPLETIONS,
                "top_k": -1,
                "stop_token_ids": list(stop),
            },
        }

    def read(self, answer: Any) -> ServerCompletion:
        """See `CompletionDialect`."""
        about, ids = answer["meta_info"], list(answer["output_ids"])
        return ServerCompletion(ids, str(answer["text"]), len(ids), str(about["finish_reason"]["type"]))


def completion_dialect(owner: str) -> CompletionDialect:
    """Returns the dialect of a server, by the `owned_by` of its models."""
    return SGLangGenerate() if owner == "sglang" else OpenAICompletions()
