"""Checks the arithmetic behind docs/paper-runs.md."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.models import paper_runs
from benchmarks.models.paper_runs import PAIRS, Qwen3
from trbext.models.cached_model import cache_argument

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / "docs" / "paper-runs.md").read_text()


def test_the_tables_of_the_docs_are_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    paper_runs.main()
    for line in capsys.readouterr().out.splitlines():
        assert line in DOCS


@pytest.mark.parametrize("shape", [model for pair in PAIRS for model in pair], ids=lambda shape: shape.name)
def test_parameters_and_cache_bytes_follow_from_the_shape(shape: Qwen3) -> None:
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config).to(torch.bfloat16)
        cache = model(torch.zeros((1, 3), dtype=torch.int64))[cache_argument(model)]
    assert sum(parameter.numel() for parameter in model.parameters()) == shape.parameters
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) == 3 * shape.kv_bytes


def test_the_published_sizes() -> None:
    sizes = {model.name: model.parameters / 1e9 for pair in PAIRS for model in pair}
    assert sizes == pytest.approx({"Qwen3-1.7B": 1.7, "Qwen3-8B": 8.2, "Qwen3-0.6B": 0.6, "Qwen3-4B": 4.0}, rel=0.02)


def test_the_recipes_fit_80_gb() -> None:
    for pair in PAIRS:
        assert max(paper_runs.memory(*pair).values()) < 72e9
