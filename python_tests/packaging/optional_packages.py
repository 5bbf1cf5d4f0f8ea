"""Skips test files that need a package which trbext itself does not need, if the package is missing.

So `pytest` collects anywhere: a GPU machine with only torch, numpy, pytest and trbext runs the tests of the operators.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

# What the extras of pyproject.toml bring (numpy is present wherever the operators are tested), and what comes with it.
PACKAGES = frozenset({
    "accelerate", "datasets", "filelock", "huggingface_hub", "jinja2", "math_verify", "matplotlib", "peft",
    "requests", "rich", "safetensors", "scipy", "tokenizers", "transformers", "trl", "yaml",
})  # fmt: skip


class LeavesOutWhatIsMissing(pytest.Module):
    """A test file that is skipped, with the package's name, if its import fails for lack of an optional package."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        try:
            return super().collect()
        except self.CollectError as error:
            missing = error.__cause__
            package = (getattr(missing, "name", None) or "").split(".")[0]
            if isinstance(missing, ModuleNotFoundError) and package in PACKAGES:
                pytest.skip(f"needs the package {package}", allow_module_level=True)
            raise
