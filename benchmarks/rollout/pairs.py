"""Makes the pairs of models that the benchmarks of rollouts decode."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from trbext.vocab import Alignment

from ..operators.decoding import load_pair

VOCAB = 8192


@dataclass(frozen=True)
class Prompts:
    """Two models and as many left-padded prompts as a batch needs."""

    name: str
    student: Any
    teacher: Any
    alignment: Alignment
    pad_token_id: int
    input_ids: Tensor  # [B, P]
    mask: Tensor

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """Returns the first `count` prompts, without the columns that none of them fills."""
        mask = self.mask[:count]
        used = int(mask.any(0).int().argmax())
        return self.input_ids[:count, used:], mask[:, used:]


def random_pair(batch: int, seed: int = 0) -> Prompts:
    """Makes random models of which a step of the teacher takes about ten times as long as one of the student.

    The lm_heads are scaled until the two disagree so much that every budget binds.
    """

    def model(hidden: int, layers: int, heads: int, seed: int) -> LlamaForCausalLM:
        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=hidden,
            intermediate_size=hidden * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=1024,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=VOCAB - 1,
            pad_token_id=0,
        )
        torch.manual_seed(seed)
        made = LlamaForCausalLM(config).eval()
        made.lm_head.weight.data.mul_(2.0 / (0.02 * hidden**0.5))  # logits of standard deviation 2
        return made

    with torch.random.fork_rng():
        student, teacher = model(256, 4, 4, seed + 1), model(896, 12, 14, seed + 2)
        lengths = torch.randint(8, 33, (batch,))
        input_ids = torch.randint(1, VOCAB - 1, (batch, 32))
    mask = (torch.arange(32) >= 32 - lengths[:, None]).long()
    stop = (VOCAB - 1,)
    return Prompts("random, 10x", student, teacher, Alignment(VOCAB, stop, stop), 0, input_ids * mask, mask)


def smollm2_pair(directory: Path, batch: int) -> Prompts:
    """Loads the pair that recipes/smollm2_pruned.py writes, with the prompts beside it."""
    pair = load_pair(directory)
    prompts = pair.prompts(batch)
    return Prompts("SmolLM2", pair.student, pair.teacher, pair.alignment, pair.pad_token_id, *prompts)
