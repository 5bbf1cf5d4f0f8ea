"""Builds models and a tokenizer from nothing in milliseconds, for tests that need a real trainer."""

from __future__ import annotations

from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, EOS, END_OF_TURN = 0, 1, 2  # END_OF_TURN is the EOS token of another model
CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz=+-*#.,:;?!()<> ABCDEFGH"
VOCABULARY = ["<pad>", "<eos>", "<end>", "<unk>", *CHARACTERS]  # 64 tokens


def tiny_tokenizer(vocabulary: list[str] | None = None) -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one token per character, 64 tokens and no chat template."""
    vocabulary = vocabulary or VOCABULARY
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<end>"],
        padding_side="left",
    )


def tiny_llama(
    seed: int = 0,
    *,
    vocab_size: int = len(VOCABULARY),
    eos: int | list[int] = EOS,
    hidden: int = 16,
    layers: int = 1,
    sharpness: float = 0.3,
) -> LlamaForCausalLM:
    """Returns a random Llama; `sharpness` is the standard deviation of its weights, and so of how far its logits
    spread."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=sharpness,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=eos,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def prompts(count: int) -> Dataset:
    """Returns `count` different prompts of unequal length, each with the number it asks for in "answer"."""
    return Dataset.from_list([{"prompt": f"{n}+{n % 7}=", "answer": str(n + n % 7)} for n in range(3, 3 + count)])


def saved(path: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> str:
    """Saves the model and the tokenizer, and returns the folder from which they can be loaded again."""
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)
