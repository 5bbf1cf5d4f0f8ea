"""Sets up vLLM for engines in this process, and shares one engine among the tests that ask for the same.

A conftest that needs a missing package would end the collection of every folder, so the fixtures import theirs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from python_tests.vllm.engine.engines import Engines
    from python_tests.vllm.model_pairs import ModelPair
    from python_tests.vllm.token_law import TokenLaw

# vLLM reads these when it is imported, or when an engine starts.
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> ModelPair:
    """Models of one vocabulary."""
    from python_tests.vllm.model_pairs import save_pair

    return save_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def law(pair: ModelPair) -> TokenLaw:
    """The law of `pair`'s tokens with its first student."""
    from python_tests.vllm.token_law import TokenLaw

    return TokenLaw(pair.teacher, pair.student, pair.alignment)


@pytest.fixture(scope="session")
def unlike_pair(tmp_path_factory: pytest.TempPathFactory) -> ModelPair:
    """Models of unlike width and EOS id."""
    from python_tests.vllm.model_pairs import save_unlike_pair

    return save_unlike_pair(tmp_path_factory.mktemp("unlike_pair"))


@pytest.fixture(scope="session")
def engines() -> Iterator[Engines]:
    """Starts engines, and shuts the last one down at the end."""
    from python_tests.vllm.engine.engines import Engines

    started = Engines()
    yield started
    started.close()
