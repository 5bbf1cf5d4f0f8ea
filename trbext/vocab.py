"""Aligns the vocabularies of a student and a teacher before their logits are blended or compared.

Two models of one family often differ although their tokenizers do not: Qwen2.5 0.5B has 151,936 logits and 7B has
152,064 (the surplus is padding), and base models and chat models stop with different ids. The paper (arXiv 2605.31159)
maps every way of stopping to one event e* before blending and before any KL: with phi_M the map of model M's ids,

    p~_M(v) = sum over u with phi_M(u) = v of p_M(u).
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from .models.cached_model import has_config, unwrap

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class VocabularyMismatch(ValueError):
    """The same ids are not the same tokens for student and teacher."""


class Configured(Protocol):
    """What an alignment has to know of a model."""

    @property
    def config(self) -> Any:
        """transformers' PreTrainedConfig."""

    @property
    def generation_config(self) -> Any:
        """transformers' GenerationConfig; None if the model has none."""


@dataclass(frozen=True)
class Alignment:
    """One vocabulary for two models: the first `width` logits of each, with one stop event at id `stop`.

    The stop event e* is the student's first EOS id, and every EOS id of either model is merged into it, in both models.
    A base student gives some mass to its chat teacher's EOS id. If that id stayed an ordinary token for the student
    only, the teacher would exclude it: the reverse KL would be infinite, and TRB would have no budget at each prefix at
    which that mass exceeds epsilon. A student that draws such an id has stopped.

    Raises:
        VocabularyMismatch: The student has no EOS id, or an EOS id of either model is outside [0, width).
        ValueError: EOS ids are no whole numbers.
    """

    width: int  # how many logits the two models share
    student_eos: tuple[int, ...]  # every id that ends a sequence for the student; the first one is e*
    teacher_eos: tuple[int, ...]  # every id that ends a sequence for the teacher; may be empty

    def __post_init__(self) -> None:
        for name in ("student_eos", "teacher_eos"):
            given = getattr(self, name)
            try:
                object.__setattr__(self, name, tuple(map(operator.index, given)))
            except TypeError:
                raise ValueError(f"{name} must be a tuple of token ids, got {given!r:.80}") from None
        if not self.student_eos:
            raise VocabularyMismatch(
                "the student has no EOS id, so no rollout could end: set generation_config.eos_token_id"
            )
        for name, ids in (("student", self.student_eos), ("teacher", self.teacher_eos)):
            for token in ids:
                if not 0 <= token < self.width:
                    raise VocabularyMismatch(
                        f"the {name}'s EOS id {token} must lie in the vocabulary both models share, [0, {self.width})"
                    )

    @property
    def stop(self) -> int:
        """The id of e*, into which every EOS id is merged, and with which rollouts end."""
        return self.student_eos[0]

    @property
    def duplicates(self) -> tuple[int, ...]:
        """The EOS ids that are merged into `stop`, each once."""
        return tuple(token for token in dict.fromkeys(self.student_eos + self.teacher_eos) if token != self.stop)

    @property
    def is_slice(self) -> bool:
        """Whether `canonical` returns a view of the logits; False if it has to merge EOS ids."""
        return not self.duplicates

    def canonical(self, logits: Tensor, temperature: float = 1.0, *, in_place: bool = False) -> Tensor:
        """Returns the logits of either model over the common vocabulary. Differentiable.

        Args:
            logits: [..., V], V >= width, any float dtype.
            temperature: At which the softmax will be taken, above 0.
            in_place: Writes the merged ids into `logits`, which nothing else may use.

        Returns:
            [..., width], same dtype. It is a view if there is nothing to merge; else a new tensor with -inf at the
            merged EOS ids and, at `stop`, the logit whose softmax at `temperature` is the sum of theirs:
            T log sum exp(logit / T). It may exceed the largest logit by T log n for n ids, which float16 cannot hold if
            T is above about 6e4 / log n.

        Raises:
            ValueError: There are fewer than `width` logits.
        """
        if logits.shape[-1] < self.width:
            raise ValueError(f"logits must have at least {self.width} entries, got shape {tuple(logits.shape)}")
        sliced = logits[..., : self.width]
        if self.is_slice:
            return sliced
        # Integer indices, one EOS id at a time: an index tensor would be copied to the GPU, and waited for, each time.
        columns = torch.stack([sliced[..., token] for token in (self.stop, *self.duplicates)], -1)
        precise = columns.to(torch.promote_types(logits.dtype, torch.float32))
        merged = sliced if in_place else sliced.clone()
        merged[..., self.stop] = (temperature * _logsumexp(precise / temperature)).to(logits.dtype)
        for token in self.duplicates:
            merged[..., token] = -torch.inf
        return merged


def _logsumexp(values: Tensor) -> Tensor:
    """The logsumexp over the last dimension, whose gradient at nothing but -inf is 0 and not NaN."""
    if not values.requires_grad:  # as in a rollout, for each token
        return values.logsumexp(-1)
    none = (values == -torch.inf).all(-1)
    return values.masked_fill(none[..., None], 0.0).logsumexp(-1).masked_fill(none, -torch.inf)


def align(
    student_model: PreTrainedModel,
    teacher_model: Any,
    student_tokenizer: PreTrainedTokenizerBase | None = None,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
) -> Alignment:
    """Aligns the vocabularies of two causal LMs, by their configurations and tokenizers.

    The width is the smaller `vocab_size`. The EOS ids are those with which `generate` stops
    (`generation_config.eos_token_id`, an int or a list, else that of the config) and that of the tokenizer.

    Args:
        student_model: May be inside DDP or PEFT.
        teacher_model: Likewise, or anything with its `config` and `generation_config`, or with `vocab_size` and
            `eos_token_ids`. None of the two runs.
        student_tokenizer: Adds its EOS id.
        teacher_tokenizer: Adds its EOS id; two tokenizers are also compared by `check_tokenizers`.

    Raises:
        VocabularyMismatch: As `check_tokenizers` and `Alignment`; also if a tokenizer has a token whose logit only the
            wider model has.
    """
    return align_configurations(unwrap(student_model), unwrap(teacher_model), student_tokenizer, teacher_tokenizer)


def align_configurations(
    student_model: Configured,
    teacher_model: Configured,
    student_tokenizer: PreTrainedTokenizerBase | None = None,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
) -> Alignment:
    """Aligns as `align`, by what is configured of two models, which need not be loaded.

    Args:
        student_model: A model, or its configurations.
        teacher_model: Likewise.
        student_tokenizer: As in `align`.
        teacher_tokenizer: As in `align`.

    Raises:
        VocabularyMismatch: As `align`.
    """
    widths = [vocabulary_size(model) for model in (student_model, teacher_model)]
    width = min(widths)
    if student_tokenizer is not None and teacher_tokenizer is not None:
        check_tokenizers(student_tokenizer, teacher_tokenizer)
    for tokenizer in (student_tokenizer, teacher_tokenizer):
        for token, index in tokenizer.get_vocab().items() if tokenizer is not None else ():
            if width <= index < max(widths):
                raise VocabularyMismatch(
                    f"every token of the tokenizer must have a logit in both models: {token!r} has id {index}, but the "
                    f"student has {widths[0]} logits and the teacher {widths[1]}"
                )
    return Alignment(width, eos_ids(student_model, student_tokenizer), eos_ids(teacher_model, teacher_tokenizer))


def stop_with_all_eos_ids(student_model: PreTrainedModel, alignment: Alignment) -> None:
    """Makes `generate` and other engines end the student's sequences at every EOS id of the two models.

    The loss sees one stop event, so a trained student may stop with any of the merged ids. An engine that knows only
    the student's own ids would continue after another. The generation config is saved with the student.
    """
    config = getattr(student_model, "generation_config", None)
    if config is not None and not alignment.is_slice:
        config.eos_token_id = [alignment.stop, *alignment.duplicates]


def check_tokenizers(student_tokenizer: PreTrainedTokenizerBase, teacher_tokenizer: PreTrainedTokenizerBase) -> None:
    """Checks that both tokenizers give every token, added tokens included, the same id.

    Raises:
        VocabularyMismatch: They do not; names the differing token of lowest id and both its ids.
    """
    student, teacher = student_tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    if student == teacher:
        return
    differing = student.items() ^ teacher.items()
    _, token = min((index, token) for token, index in differing)
    count = len({token for token, _ in differing})
    raise VocabularyMismatch(
        f"student and teacher tokenizers must give every token the same id: {token!r} has "
        f"{_id_text(student, token)} in the student's and {_id_text(teacher, token)} in the teacher's "
        f"({count} tokens differ, of {len(student)} and {len(teacher)})"
    )


def _id_text(vocabulary: dict[str, int], token: str) -> str:
    return f"id {vocabulary[token]}" if token in vocabulary else "no id"


def vocabulary_size(model: Any) -> int:
    """Returns how many logits a model has: that of its configuration of transformers, or its own `vocab_size` without
    one.

    Raises:
        VocabularyMismatch: It says neither.
    """
    if has_config(model):
        return int(model.config.get_text_config().vocab_size)
    if not isinstance(getattr(model, "vocab_size", None), int):
        raise VocabularyMismatch(
            "a model without a config of transformers must say its number of logits as vocab_size, got "
            f"{type(model).__name__} without one: set it, or make a trbext.vocab.Alignment yourself"
        )
    return int(model.vocab_size)


def eos_ids(model: Any, tokenizer: PreTrainedTokenizerBase | None = None) -> tuple[int, ...]:
    """Returns the ids with which a model ends a sequence, and that of its tokenizer, each once.

    Args:
        model: With a config of transformers, or with `eos_token_ids` of its own if it has none.
        tokenizer: May be None.
    """
    # Only generation_config if it names ids, as in `generate`: a config has the default EOS id of its class if nobody
    # set one (Llama's is 2), which would turn an ordinary token into a stop.
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ids is None and has_config(model):
        ids = getattr(model.config.get_text_config(), "eos_token_id", None)
    elif ids is None:
        ids = getattr(model, "eos_token_ids", None)
    found = list(ids) if isinstance(ids, (list, tuple)) else [ids]
    if tokenizer is not None:
        found.append(tokenizer.eos_token_id)
    return tuple(dict.fromkeys(int(token) for token in found if token is not None))
