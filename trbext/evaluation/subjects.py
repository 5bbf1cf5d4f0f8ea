"""Makes each evaluated model ready to answer: its encoded prompts and its decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ..data.demo_models import model_path
from ..models.loading import check_model_folder, load_for_inference, load_tokenizer
from ..models.positions import position_limit
from .measure import Questions
from .own_decoder import OwnDecoder
from .tasks import Decoder


@dataclass(frozen=True)
class Subject:
    """A model that answers."""

    prompt_ids: dict[str, list[list[int]]]  # of each benchmark's prompts, by the model's tokenizer
    decoder: Decoder
    weights: Callable[[], str | None] = lambda: None  # a digest of the weights that answer now; None: it is not told


class Subjects(Protocol):
    """Makes one model after the other ready."""

    def load(self, name: str, benchmarks: Sequence[Questions]) -> Subject:
        """Returns a model that is ready; the one before is not any more.

        Args:
            name: A folder, a name on the Hub, or a built-in model.
            benchmarks: What it will be asked.

        Raises:
            ValueError: It cannot be loaded, or a prompt cannot be used with it.
            OSError: It cannot be read.
        """

    def close(self) -> None:
        """Frees what it holds."""


class OwnModels:
    """Models that our own decoder decodes in this process, on the GPU if there is one.

    Args:
        batch_size: Completions decoded at a time.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size

    def load(self, name: str, benchmarks: Sequence[Questions]) -> Subject:
        """See `Subjects`."""
        path = model_path(name)
        check_model_folder(path, "model")
        tokenizer = load_tokenizer(path, "model")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = load_for_inference(path, "model", device)
        positions = position_limit(model.config)
        prompt_ids = {benchmark.name: benchmark.encoded(tokenizer, positions) for benchmark in benchmarks}
        return Subject(prompt_ids, OwnDecoder(model, tokenizer, batch_size=self._batch_size))

    def close(self) -> None:
        """See `Subjects`."""
