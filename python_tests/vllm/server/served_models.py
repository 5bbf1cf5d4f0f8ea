"""Makes the tiny models of the server's tests, which differ in logit width and EOS ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from trbext.data.demo_models import model_path
from trbext.vocab import Alignment

STOP, TEACHER_STOP = 2, 3
STUDENT_WIDTH, TEACHER_WIDTH = 15, 24
ALIGNMENT = Alignment(STUDENT_WIDTH, (STOP,), (TEACHER_STOP, STOP))  # the tokenizer's EOS id is STOP


@dataclass(frozen=True)
class Models:
    """Folders of a teacher, a student, and a student after some training."""

    teacher: Path
    student: Path
    trained: Path


def make_models(folder: Path) -> Models:
    """Writes three models with the tokenizer of the demonstration, in float32."""
    return Models(
        _model(folder / "teacher", seed=1, width=TEACHER_WIDTH, layers=2, eos=TEACHER_STOP),
        _model(folder / "student", seed=2, width=STUDENT_WIDTH, layers=1, eos=STOP),
        _model(folder / "trained", seed=3, width=STUDENT_WIDTH, layers=1, eos=STOP),
    )


def _model(folder: Path, *, seed: int, width: int, layers: int, eos: int) -> Path:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=width,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,  # vLLM's CPU attention has no kernel for smaller heads
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=eos,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).float()
    with torch.no_grad():  # rollouts of about fifty tokens
        model.lm_head.weight[[STOP, TEACHER_STOP]] = 0.0
    assert model.generation_config is not None
    model.generation_config.eos_token_id = eos
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_path("demo:student")).save_pretrained(folder)
    return folder
