"""Aligns the vocabularies of two stored models by their configurations and tokenizers, without loading a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...vocab import Alignment, align_configurations


@dataclass(frozen=True)
class StoredModel:
    """What is configured of a model that is not loaded (`trbext.vocab.Configured`)."""

    config: Any
    generation_config: Any


def align_stored(student: str, teacher: str, *, trust_remote_code: bool = False) -> Alignment:
    """Aligns two models as `trbext.vocab.align` aligns them and their tokenizers once they are loaded.

    Args:
        student: A folder or a name on the Hub.
        teacher: Likewise.
        trust_remote_code: Runs code that comes with a model's configuration or tokenizer.

    Raises:
        ValueError: A configuration cannot be read, or the vocabularies do not fit (`trbext.vocab.VocabularyMismatch`).
    """
    models = {"student": student, "teacher": teacher}
    stored = [_configurations(role, path, trust_remote_code) for role, path in models.items()]
    tokenizers = [_tokenizer(path, trust_remote_code) for path in models.values()]
    return align_configurations(stored[0], stored[1], tokenizers[0], tokenizers[1])


def _configurations(role: str, path: str, trust_remote_code: bool) -> StoredModel:
    from transformers import AutoConfig, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(f"the configuration of the {role} {path} cannot be read: {error}") from error
    try:
        generation = GenerationConfig.from_pretrained(path)
    except OSError:
        generation = None  # the model stops with the ids of its config
    return StoredModel(config, generation)


def _tokenizer(path: str, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):
        return None  # a model may be stored without one: rollouts are token ids
