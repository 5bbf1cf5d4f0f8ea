"""Writes the prompts of a run of trbext as the parquet file that verl reads, in the same order.

python -m trbext.verl.prompts recipes/paper-1.7b-8b.yaml openthoughts3.parquet
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..data.encoding import encode_prompts
from ..data.prompt_files import PromptsNotFound
from ..data.prompts import load_prompts
from ..errors import USAGE_ERROR


def write_prompts(recipe: dict[str, Any], output: Path) -> int:
    """Writes the prompts of a recipe.

    Args:
        recipe: The fields of a YAML file of `trb train`, of which those about prompts and the student are read.
        output: The parquet file.

    Returns:
        How many prompts there are.

    Raises:
        PromptsNotFound: As `load_prompts`.
    """
    longest = recipe.get("max_prompt_length")
    rows = load_prompts(
        recipe["prompts"],
        split=recipe.get("prompts_split", "train"),
        column=recipe.get("prompt_column", "prompt"),
        system_prompt=recipe.get("system_prompt"),
        where=recipe.get("prompts_where"),
        unique=bool(recipe.get("prompts_unique", False)),
        shuffle_seed=recipe.get("prompts_shuffle_seed"),
        fits=None if longest is None else _Fits(recipe["model_name_or_path"], int(longest)),
        limit=recipe.get("prompts_limit"),
    )
    written = rows.select_columns("prompt").map(_row_of_verl, with_indices=True)
    written.to_parquet(str(output))
    return len(written)


class _Fits:
    """Says which prompts have at most so many tokens, as the student's tokenizer writes them."""

    def __init__(self, student: str, longest: int) -> None:
        from transformers import AutoTokenizer

        self._tokenizer, self._longest = AutoTokenizer.from_pretrained(student), longest

    def __call__(self, prompts: list[Any]) -> list[bool]:
        return [len(ids) <= self._longest for ids in encode_prompts(self._tokenizer, prompts)]


def _row_of_verl(row: dict[str, Any], index: int) -> dict[str, Any]:
    prompt = row["prompt"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return {
        "prompt": messages,
        "data_source": "trbext",
        "reward_model": {"style": "rule", "ground_truth": ""},
        "extra_info": {"index": index},
    }


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        words: Of the command line, after the name; None takes this process's.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m trbext.verl.prompts", description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path, help="a YAML file of `trb train`")
    parser.add_argument("output", type=Path, help="the parquet file to write")
    given = parser.parse_args(words)
    try:
        recipe = yaml.safe_load(given.recipe.read_text(encoding="utf-8"))
        count = write_prompts(recipe, given.output)
    except (OSError, KeyError, PromptsNotFound) as error:
        said = f"{given.recipe} must have {error}" if isinstance(error, KeyError) else error
        print(f"trbext.verl.prompts: {said}", file=sys.stderr)
        return USAGE_ERROR
    print(f"{count} prompts written to {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
