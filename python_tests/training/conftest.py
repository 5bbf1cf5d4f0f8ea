"""Records the rollouts of a trainer. Only the fixtures import the trainer: a collection needs no TRL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from trbext.rollout import Rollout, speculative

if TYPE_CHECKING:
    from python_tests.training.engine.fake_engines import FakeEngines


@pytest.fixture
def rollouts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, Rollout]]:
    """Returns a list of the budget and the rollout of every call of the decoder."""
    seen: list[tuple[float, Rollout]] = []

    def recording(*args: Any, **kwargs: Any) -> Rollout:
        rollout = speculative(*args, **kwargs)
        seen.append((kwargs["policy"].epsilon(kwargs["optimizer_step"]), rollout))
        return rollout

    monkeypatch.setattr("trbext.training.trainer.speculative", recording)
    return seen


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Rollout]:
    """Returns a list of the rollout of every call of the decoder."""
    seen: list[Rollout] = []

    def recording(*args: Any, **kwargs: Any) -> Rollout:
        seen.append(speculative(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr("trbext.training.trainer.speculative", recording)
    return seen


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> FakeEngines:
    """Returns the book of the engines that trainers build in the place of vLLM's."""
    from python_tests.training.engine.fake_engines import FakeEngines

    book = FakeEngines()
    book.install(monkeypatch)
    return book
