"""Writes the prompts of a run of trbext as the parquet file that verl reads, in the same order.

python -m trbext.verl.prompts recipes/paper-1.7b-8b.yaml openthoughts3.parquet
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.encoding import encode_prompts
from ..data.prompts import load_prompts
from ..data.yaml_file import read_yaml
from ..errors import USAGE_ERROR, UsageError

# Fields that are read here, as YAML has them: `trb train` reads a number in quotes as well.
_KINDS: dict[str, type] = {
    **dict.fromkeys(("model_name_or_path", "prompts", "prompts_split", "prompt_column", "prompts_where"), str),
    **dict.fromkeys(("max_prompt_length", "prompts_shuffle_seed", "prompts_limit", "seed"), int),
    **dict.fromkeys(("prompts_unique", "trust_remote_code"), bool),
    "system_prompt": str,
    **dict.fromkeys(("chat_template_kwargs", "model_init_kwargs"), dict),
}
_WORDS = {str: "text", int: "a whole number", bool: "true or false", dict: "a mapping"}


def write_prompts(recipe: dict[str, Any], output: Path) -> int:
    """Writes the prompts of a recipe.

    Args:
        recipe: The fields of a YAML file of `trb train`, of which those about prompts and the student are read.
        output: The parquet file.

    Returns:
        How many prompts there are.

    Raises:
        KeyError: A field that is needed is missing.
        ValueError: As `load_prompts`; a field is wrong, or the student has no chat template.
    """
    for name, kind in _KINDS.items():
        value = recipe.get(name)
        if value is not None and type(value) is not kind:
            raise ValueError(f"{name} must be {_WORDS[kind]}, got {value!r}")
    longest = recipe.get("max_prompt_length")
    if longest is not None and longest < 1:
        raise ValueError(f"max_prompt_length must be a whole number of at least 1, got {longest!r}")
    if recipe["prompts"] is None:
        raise KeyError("prompts")
    rows = load_prompts(
        recipe["prompts"],
        split=recipe.get("prompts_split", "train"),
        column=recipe.get("prompt_column", "prompt"),
        system_prompt=recipe.get("system_prompt"),
        where=recipe.get("prompts_where"),
        unique=bool(recipe.get("prompts_unique", False)),
        shuffle_seed=recipe.get("prompts_shuffle_seed"),
        fits=None if longest is None else _Fits(recipe, longest),
        limit=recipe.get("prompts_limit"),
        demo_seed=recipe.get("seed", 42),  # the default of a run
    )
    written = rows.select_columns("prompt").map(_row_of_verl, with_indices=True)
    written.to_parquet(str(output))
    return len(written)


class _Fits:
    """Says which prompts have at most so many tokens, as the student's chat template writes them."""

    def __init__(self, recipe: dict[str, Any], longest: int) -> None:
        from transformers import AutoTokenizer

        # As a run loads it: another revision may have another chat template, by which other prompts fit.
        revision = (recipe.get("model_init_kwargs") or {}).get("revision", "main")
        trust = bool(recipe.get("trust_remote_code", False))
        self._tokenizer = AutoTokenizer.from_pretrained(
            recipe["model_name_or_path"], revision=revision, trust_remote_code=trust
        )
        self._longest = longest
        self._template = recipe.get("chat_template_kwargs") or {}

    def __call__(self, prompts: list[Any]) -> list[bool]:
        encoded = encode_prompts(self._tokenizer, [_messages(prompt) for prompt in prompts], **self._template)
        return [len(ids) <= self._longest for ids in encoded]


def _messages(prompt: Any) -> Any:
    """A plain text as a user's message: verl knows messages only, and puts them through the chat template."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _row_of_verl(row: dict[str, Any], index: int) -> dict[str, Any]:
    return {
        "prompt": _messages(row["prompt"]),
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
        count = write_prompts(read_yaml(given.recipe), given.output)
    except (OSError, KeyError, ValueError, UsageError) as error:
        said = f"{given.recipe} must have {error}" if isinstance(error, KeyError) else error
        print(f"trbext.verl.prompts: {said}", file=sys.stderr)
        return USAGE_ERROR
    print(f"{count} prompts written to {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
