"""Saves pairs of tiny float32 models that vLLM's CPU backend can run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trbext.vocab import Alignment

VOCABULARY, EOS = 64, 2
PROMPT = [5, 9, 3, 7, 11]


@dataclass(frozen=True)
class ModelPair:
    """Folders of a teacher, a student and the student of a later step, and the vocabulary that they share."""

    teacher: Path
    student: Path
    newer_student: Path
    alignment: Alignment


def save_model(
    folder: Path,
    seed: int,
    *,
    layers: int,
    vocabulary: int = VOCABULARY,
    eos: int = EOS,
    positions: int = 512,
    tied: bool = False,
) -> Path:
    """Saves a random Llama whose distributions are far from flat. vLLM's attention on the CPU needs heads of 32."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=positions,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=eos,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).float()
    model.generation_config.eos_token_id = eos
    model.save_pretrained(folder)
    return folder


def save_pair(folder: Path) -> ModelPair:
    """A pair of one vocabulary and one EOS id."""
    return ModelPair(
        teacher=save_model(folder / "teacher", 1, layers=2),
        student=save_model(folder / "student", 2, layers=1),
        newer_student=save_model(folder / "newer_student", 3, layers=1),
        alignment=Alignment(VOCABULARY, (EOS,), (EOS,)),
    )


def save_unlike_pair(folder: Path) -> ModelPair:
    """A pair of 64 and 72 logits, whose teacher stops with id 3 and whose student with id 2."""
    student = {"layers": 1, "vocabulary": VOCABULARY + 8}
    return ModelPair(
        teacher=save_model(folder / "teacher", 1, layers=2, eos=EOS + 1),
        student=save_model(folder / "student", 4, **student),
        newer_student=save_model(folder / "newer_student", 5, **student),
        alignment=Alignment(VOCABULARY, (EOS,), (EOS + 1,)),
    )
