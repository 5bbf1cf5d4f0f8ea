"""Tests which stored weights are opened, and that a digest of loaded ones sees each of them, also packed ones."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from trbext.vllm.completions.worker import CheckpointWorker
from trbext.vllm.weights import ROWS, stored_weights, weights_digest


def names(folder: Path) -> list[str]:
    with stored_weights(str(folder)) as weights:
        return sorted(name for name, _ in weights)


def test_the_files_of_the_index_are_opened_or_the_whole_one_or_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must have \*.safetensors files, got"):
        names(tmp_path)
    for name in "abc":
        save_file({name: torch.ones(1)}, tmp_path / f"{name}.safetensors")
    assert names(tmp_path) == ["a", "b", "c"]
    save_file({"whole": torch.ones(1)}, tmp_path / "model.safetensors")  # beside others, such as another format's
    assert names(tmp_path) == ["whole"]
    index = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert names(tmp_path) == ["a", "b"]


class Packed(torch.nn.Module):
    """A linear layer whose weight only its product has, as vLLM's are on the CPU."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(0, dtype=weight.dtype), requires_grad=False)
        self.input_size = weight.shape[1]
        self.cpu_linear: Any = lambda x, _, bias: torch.nn.functional.linear(x, weight, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_digest_sees_every_weight(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(3, 5, generator=generator).to(dtype)
    packed = torch.randn(4, ROWS + 44, generator=generator).to(dtype)

    def digest(plain: torch.Tensor, packed: torch.Tensor) -> str:
        first = torch.nn.Linear(5, 3, bias=False)
        first.weight = torch.nn.Parameter(plain)
        return weights_digest(torch.nn.ModuleDict({"first": first, "packed": Packed(packed)}))

    whole = digest(plain, packed)
    assert whole == digest(plain.clone(), packed.clone())
    seen = {whole}
    for place in ((0, 0), (3, ROWS - 1), (2, ROWS), (1, ROWS + 43)):
        changed = packed.clone()
        changed[place] = torch.nextafter(changed[place], torch.full((), 9.0, dtype=dtype))
        seen.add(digest(plain, changed))
    changed = plain.clone()
    changed[2, 4] += 1
    seen.add(digest(changed, packed))
    seen.add(digest(plain, packed[:, torch.randperm(ROWS + 44, generator=generator)]))
    assert len(seen) == 7


def test_a_worker_says_why_a_folder_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = CheckpointWorker()
    worker.model_runner = SimpleNamespace(get_model=lambda: None)
    worker.vllm_config = SimpleNamespace(model_config=None)
    errors: list[Exception | None] = [ValueError("3 are missing"), KeyError("a.weight"), None]

    def reload_weights(*_: Any) -> None:
        error = errors.pop(0)
        if error is not None:
            raise error

    monkeypatch.setattr("trbext.vllm.completions.worker.reload_weights", reload_weights)
    assert "must have *.safetensors files" in str(worker.trb_load(str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    assert "header" in str(worker.trb_load(str(tmp_path)))
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert [worker.trb_load(str(tmp_path)) for _ in range(3)] == ["3 are missing", "KeyError: 'a.weight'", None]
