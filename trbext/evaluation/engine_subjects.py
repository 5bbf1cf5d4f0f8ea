"""Makes models ready that a server decodes: one that the user has started, or vLLM's, which is started here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig

from ..data.demo_models import model_path
from ..models.loading import load_tokenizer
from ..models.positions import position_limit
from ..vllm.server.stored_alignment import align_stored
from .measure import Questions
from .server_decoder import IN_FLIGHT, ServerDecoder
from .subjects import Subject


class ServedModel:
    """The model of a server that the user has started.

    Args:
        url: http://HOST:PORT of the server.
        in_flight: Requests under way at a time; None is 512.
    """

    def __init__(self, url: str, in_flight: int | None) -> None:
        self._url, self._in_flight = url, in_flight or IN_FLIGHT

    def load(self, name: str, benchmarks: Sequence[Questions]) -> Subject:
        """See `Subjects`."""
        path, tokenizer, longest, stop = stored_model(name, benchmarks)
        decoder = ServerDecoder(self._url, model=path, tokenizer=tokenizer, stop=stop, in_flight=self._in_flight)
        decoder.check_length(longest)
        return Subject(tokenizer, decoder)

    def close(self) -> None:
        """Leaves the server as it is."""


def stored_model(name: str, benchmarks: Sequence[Questions]) -> tuple[str, Any, int, tuple[int, ...]]:
    """Reads what a client has to know of a model, and checks its prompts; no weight is read.

    Args:
        name: A folder, a name on the Hub, or a built-in model.
        benchmarks: What it will be asked.

    Returns:
        Its folder or name, its tokenizer, the tokens of the longest prompt and its completion, and the ids that end a
        completion: those that the trainer stops at.

    Raises:
        ValueError: It cannot be read, or a prompt cannot be used with it.
    """
    path = model_path(name)
    tokenizer = load_tokenizer(path, "model")
    alignment = align_stored(path, path)
    positions = position_limit(AutoConfig.from_pretrained(path))
    longest = 0
    for benchmark in benchmarks:
        benchmark.check(tokenizer, positions)
        longest = max(longest, max(map(len, benchmark.encoded(tokenizer))) + benchmark.max_completion_length)
    return path, tokenizer, longest, (alignment.stop, *alignment.duplicates)
