"""Every family of causal LMs that transformers can build tiny agrees with uncached forwards, or is refused by name.

`model_families.py` judges; docs/models.md holds the judgments.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from python_tests.models.model_families import PAGE, families, judged, row_of

ROWS = {line.split(" | ")[0].removeprefix("| "): line for line in PAGE.read_text(encoding="utf-8").splitlines()}
OF_THIS_VERSION = f"transformers {transformers.__version__}, " in PAGE.read_text(encoding="utf-8")


# One of each kind of cache, positions or experts; the others nightly.
ON_EACH_CHANGE = (
    *("bert", "bloom", "cohere2", "deepseek_v3", "falcon_h1", "falcon_mamba", "gemma2", "gemma3_text"),
    *("gpt2", "gpt_oss", "jamba", "llama", "mistral", "opt", "qwen2", "qwen3"),
    *("qwen3_5_text", "qwen3_moe", "qwen3_next", "rwkv"),
)


def chosen_families() -> list[Any]:
    return [pytest.param(name, marks=() if name in ON_EACH_CHANGE else pytest.mark.nightly) for name in families()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", chosen_families())
def test_a_family_is_right_or_refused_by_name_and_the_page_says_which(family: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = judged(family)
    finally:
        torch.set_num_threads(threads)
    if found is None:
        assert not OF_THIS_VERSION or family not in ROWS
        pytest.skip("cannot be built tiny from its config alone")
    assert "WRONG" not in " ".join(found)
    assert all(result == "right" or result.split(":")[0] in ("refused", "lockstep", "") for result in found[1:])
    if OF_THIS_VERSION:
        assert ROWS.get(family) == row_of(family, found), "python -m python_tests.models.model_families --write"


def test_the_table_holds_more_than_a_hundred_families_and_most_are_right() -> None:
    rows = [row.split(" | ") for family, row in ROWS.items() if family in families()]
    assert len(rows) > 150
    assert sum(row[2] == "right" and row[4].startswith("right") for row in rows) > 120
