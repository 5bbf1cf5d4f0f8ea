"""Sharded models (FSDP2, DeepSpeed ZeRO) train, resume, stop and are saved as whole ones are, by every loss.

Two gloo processes train each case under each backend, all cases of a backend in one launch. `pytest -m sharded` runs
the matrix if deepspeed is installed; without it, DDP and FSDP2 train by every loss.
"""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from python_tests.processes.forks import forks
from python_tests.processes.two_processes import run_two_processes
from python_tests.training import sharded_run
from python_tests.training.sharded_run import CASES, LOSSES, REFUSED, cases_of, largest_difference

SCRIPT = Path(sharded_run.__file__)
FEATURES = [name for name in CASES if name not in LOSSES]
TIMEOUT = 1800  # seconds of a launch, of which it needs some forty on two idle cores
CHECKPOINTS = {"fsdp": ["FULL_STATE_DICT", "SHARDED_STATE_DICT"]}
IN_THE_MATRIX = importlib.util.find_spec("deepspeed") is not None
has_deepspeed = pytest.mark.skipif(not IN_THE_MATRIX, reason="deepspeed is not installed (DS_BUILD_OPS=0 builds it)")


def in_the_matrix(test: Any) -> Any:
    """Marks a test of the matrix, which runs for minutes and which a `pytest` without deepspeed skips."""
    return pytest.mark.sharded(has_deepspeed(test))


# ZeRO-3 shards what ZeRO-1 and ZeRO-2 do, and the weights.
ZERO = [
    *(pytest.param(f"zero{stage}", marks=[has_deepspeed, pytest.mark.nightly]) for stage in (1, 2)),
    pytest.param("zero3", marks=has_deepspeed),
]
SHARDED = ["fsdp", *ZERO]


def stopped(backend: str) -> list[str]:
    """Returns the cases of a NaN gradient. ZeRO-2 has bfloat16 too, because it looks for overflow by another rule
    there."""
    return ["stopped:float32", *(["stopped:bf16"] if backend == "zero2" else [])]


class Launches:
    """Keeps what each launch of sharded_run.py found, by backend and cases; each launch is made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.of = cache(self._of)

    def losses(self, backend: str) -> dict[str, Any]:
        return self.every_case(backend) if IN_THE_MATRIX else self.of(backend, *LOSSES)

    def every_case(self, backend: str) -> dict[str, Any]:
        resumed = [f"resumed:{kind}" for kind in CHECKPOINTS.get(backend, [""])]
        return self.of(backend, *cases_of(backend), *resumed, *stopped(backend))

    def _of(self, backend: str, *cases: str) -> dict[str, Any]:
        if backend == "one":
            child = {"script": str(SCRIPT), "arguments": [backend, str(self.folder), *cases]}
            assert forks().statuses([child], TIMEOUT) == [0], forks().printed()
        else:
            run_two_processes(SCRIPT, backend, str(self.folder), *cases, timeout=TIMEOUT, DS_ACCELERATOR="cpu")
        found: dict[str, Any] = json.loads((self.folder / f"{backend}.json").read_text(encoding="utf-8"))
        assert found.keys() == set(cases)
        return found


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> Launches:
    return Launches(tmp_path_factory.mktemp("sharded"))


def check_same_steps(found: dict[str, Any], expected: dict[str, Any], case: str) -> None:
    assert len(found[case]["logs"]) == len(expected[case]["logs"]) == CASES[case].fields.get("max_steps", 3)
    for step, whole in zip(found[case]["logs"], expected[case]["logs"], strict=True):
        assert step == pytest.approx(whole, rel=1e-4, abs=1e-5), case


@pytest.mark.sharded
@pytest.mark.parametrize("backend", SHARDED)
def test_sharded_models_train_as_whole_ones_by_every_loss(backend: str, launches: Launches) -> None:
    for case in LOSSES:
        check_same_steps(launches.losses(backend), launches.losses("ddp"), case)


@in_the_matrix
def test_two_processes_train_as_one_does_on_the_same_rollouts(launches: Launches) -> None:
    whole = launches.every_case("ddp")  # whose rollouts it writes
    alone = launches.of("one", *CASES)
    for case in CASES:
        check_same_steps(alone, whole, case)


@in_the_matrix
@pytest.mark.parametrize("backend", SHARDED)
@pytest.mark.parametrize("feature", FEATURES)
def test_sharded_models_train_as_whole_ones_with_each_feature(feature: str, backend: str, launches: Launches) -> None:
    if backend in REFUSED.get(feature, ()):
        pytest.skip(f"{backend} refuses it")
    check_same_steps(launches.every_case(backend), launches.every_case("ddp"), feature)


@in_the_matrix
@pytest.mark.parametrize("backend", ["ddp", *SHARDED])
def test_processes_decode_to_unlike_lengths(backend: str, launches: Launches) -> None:
    long, short = launches.every_case(backend)["uneven"]["longest"]
    assert min(long) > max(short)


@in_the_matrix
@pytest.mark.parametrize("backend", ["ddp", *SHARDED])
def test_a_saved_adapter_is_the_trained_one(backend: str, launches: Launches) -> None:
    assert launches.every_case(backend)["lora"]["saved"] == 0


def resumed(found: dict[str, Any]) -> dict[str, Any]:
    return {name.partition(":")[2]: run for name, run in found.items() if name.startswith("resumed")}


@in_the_matrix
@pytest.mark.parametrize("backend", ["ddp", *SHARDED])
def test_a_resumed_run_is_the_uninterrupted_one(backend: str, launches: Launches) -> None:
    runs = resumed(launches.every_case(backend))
    (whole,) = resumed(launches.every_case("ddp")).values()
    for run in runs.values():
        assert run["same_logs"]
        assert run["weights_apart"] == 0
        assert run["pass@1"] == whole["pass@1"]
        assert len(run["pass@1"]) == 1  # the verifier judged
        for step, expected in zip(run["logs"], whole["logs"], strict=True):
            assert step == pytest.approx(expected, rel=1e-4, abs=1e-5)
    if backend == "fsdp":
        assert "pytorch_model_fsdp_0" in runs["SHARDED_STATE_DICT"]["checkpoint"]
        assert "model.safetensors" in runs["FULL_STATE_DICT"]["checkpoint"]


@in_the_matrix
@pytest.mark.parametrize("backend", ["ddp", *SHARDED])
def test_a_saved_model_loads_and_is_the_trained_one(backend: str, launches: Launches) -> None:
    launches.every_case(backend)
    for kind in CHECKPOINTS.get(backend, [None]):
        loaded = AutoModelForCausalLM.from_pretrained(launches.folder / f"{backend}-{kind}-model")
        weights = torch.load(launches.folder / f"{backend}-{kind}.weights")
        assert largest_difference(dict(loaded.named_parameters()), weights) == 0


@in_the_matrix
@pytest.mark.parametrize("backend", ["ddp", *SHARDED])
def test_a_gradient_that_is_not_finite_stops_the_run_before_its_step(backend: str, launches: Launches) -> None:
    for dtype in stopped(backend):
        found = launches.every_case(backend)[dtype]
        assert "the gradient norm of optimizer step 2 is" in found["message"], dtype
        assert "The student's weights are finite" in found["message"]
        assert (found["step"], found["weights_apart"]) == (1, 0)
