"""Runs the FSDP2 example of docs/hosts/integrate.md as one of two processes, and trains a whole model alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

import trbext
from python_tests.integrations.integrate_page import run
from trbext import reverse_kl
from trbext.models.model_kind import UnsupportedModel
from trbext.rollout import lockstep

drawn: list[dict[str, Any]] = []


def recorded(student: Any, teacher: Any, input_ids: Any, attention_mask: Any, **settings: Any) -> Any:
    rollout = lockstep(student, teacher, input_ids, attention_mask, **settings)
    drawn.append({"prompts": (input_ids, attention_mask), "tokens": rollout.tokens, "mask": rollout.mask})
    return rollout


def trained_whole(names: dict[str, Any], batches: list[list[dict[str, Any]]]) -> dict[str, torch.Tensor]:
    """Returns the weights of a whole student that takes the steps of all processes together."""
    student, teacher = (AutoModelForCausalLM.from_pretrained(names[f"{name}_path"]) for name in ("student", "teacher"))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    for of_processes in zip(*batches, strict=True):
        for batch in of_processes:
            ids = torch.cat([batch["prompts"][0], batch["tokens"]], 1)
            mask = torch.cat([batch["prompts"][1], batch["mask"].long()], 1)
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
            prefixes = slice(batch["prompts"][0].shape[1] - 1, -1)
            with torch.no_grad():
                target = teacher(**inputs).logits[:, prefixes]
            kl = reverse_kl(student(**inputs).logits[:, prefixes], target)
            ((kl * batch["mask"]).sum() / batch["mask"].sum() / len(of_processes)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return dict(student.state_dict())


if __name__ == "__main__":
    trbext.lockstep = recorded
    torch.manual_seed(0)
    names = run("fsdp2")
    batches: list[Any] = [None, None]
    dist.all_gather_object(batches, drawn)
    expected = trained_whole(names, batches)
    start = AutoModelForCausalLM.from_pretrained(names["student_path"]).state_dict()
    for name, weight in names["student"].state_dict().items():
        found = weight.full_tensor()
        assert not torch.equal(found, start[name]), name
        # Adam's first steps have the size of the learning rate, whatever the gradient; 1e-5 is a tenth of one.
        torch.testing.assert_close(found, expected[name], rtol=0, atol=1e-5)
    # Rollouts of unequal length would hang on shards: they are refused on every process.
    settings = {"epsilon": 0.0, "max_new_tokens": 2, "alignment": names["alignment"], "pad_token_id": 0}
    with pytest.raises(UnsupportedModel, match=r"trbext\.rollout\.unsharded"):
        lockstep(names["student"], None, **names["prompts"], **settings)
    dist.barrier()
    dist.destroy_process_group()
