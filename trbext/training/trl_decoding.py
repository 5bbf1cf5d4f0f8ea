"""Makes TRL's own decoding of the student, with altered sampling, keep what our decoder promises.

Its sequences end at every EOS id of either model, its ids are in the vocabulary that both models share, and only the
fields of the run say how it samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig, PreTrainedModel

from ..vocab import Alignment

if TYPE_CHECKING:
    from trl import DistillationTrainer

    from .config import TRBConfig


def keep_to_alignment(trainer: DistillationTrainer, alignment: Alignment, student_width: int) -> None:
    """Sets the EOS ids of a trainer, and suppresses the ids that only its student has.

    Args:
        trainer: Is changed.
        alignment: The vocabulary that both models share.
        student_width: Logits of the student.
    """
    stops = [alignment.stop, *alignment.duplicates]
    trainer.eos_token_ids = stops  # what it cuts completions by
    asked = trainer.generation_kwargs.get("suppress_tokens") or ()
    fields: dict[str, Any] = {"eos_token_id": stops}
    if suppressed := sorted({*asked, *range(alignment.width, student_width)}):
        fields["suppress_tokens"] = suppressed
    trainer.generation_kwargs = {**trainer.generation_kwargs, **fields}
    trainer.generation_config = GenerationConfig(**trainer.generation_kwargs, disable_compile=True)


@contextmanager
def without_leftovers(model: PreTrainedModel) -> Iterator[None]:
    """Hides what a checkpoint left in `model.generation_config`.

    `generate` would take from there the fields that it was not given: min_p, num_beams, suppress_tokens,
    no_repeat_ngram_size, and others.
    """
    inner: Any = model
    if hasattr(model, "get_base_model"):  # a PeftModel
        inner = inner.get_base_model()
    before = inner.generation_config
    inner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = before


def check_completions(completions: Sequence[Sequence[int]], alignment: Alignment) -> None:
    """Checks the completions that TRL decoded.

    Args:
        completions: Token ids.
        alignment: The vocabulary that both models share.

    Raises:
        ValueError: An id is not one that both models have.
    """
    highest = max((token for completion in completions for token in completion), default=0)
    if highest >= alignment.width:
        raise ValueError(
            f"the student wrote id {highest}, which is outside the vocabulary both models share, [0, "
            f"{alignment.width}): resize its embeddings to {alignment.width}"
        )


@contextmanager
def without_engine(args: TRBConfig) -> Iterator[None]:
    """Hides `use_vllm` from TRL, which would build an engine of the student before it is known what is needed."""
    asked, args.use_vllm = args.use_vllm, False
    try:
        yield
    finally:
        args.use_vllm = asked
