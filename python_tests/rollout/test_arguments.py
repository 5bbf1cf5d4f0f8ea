"""Tests what a rollout takes as its arguments, and that what it does not take is named."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from python_tests.rollout.rollout_cases import PROMPTS, assert_same, tiny
from python_tests.rollout.test_lockstep import roll
from trbext.models.cached_model import cache_argument
from trbext.rollout import TrustRegion
from trbext.training.schedule import Schedule
from trbext.vocab import Alignment


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epsilon": -0.1}, "epsilon must be .* got -0.1"),
        ({"epsilon": math.nan}, "epsilon must be .* got nan"),
        ({"epsilon": torch.tensor([0.1, 0.1, -1.0, 0.1, 0.1, 0.1])}, "epsilon must be .* got -1.0 in row 2"),
        ({"epsilon": torch.full((5,), 0.1)}, r"one budget per prompt, \[6\], got shape \[5\]"),
        *(({"epsilon": each}, r"must be a float or a tensor \[B\] .* got") for each in ("0.1", [0.1, 0.2], (0.1,), 1j)),
        ({"epsilon": np.array([0.1])}, r"must be a float or a tensor \[B\] .* got array\(\[0\.1\]\)"),
        ({"epsilon": None, "policy": 0.1}, r"policy must be a trbext.rollout.Policy, got 0\.1: give epsilon"),
        ({"pad_token_id": None}, "pad_token_id must be a whole number, got None: alignment.stop will do"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, got 0"),
        ({"max_new_tokens": 8.0}, r"max_new_tokens must be a whole number of at least 1, got 8\.0"),
        ({"max_new_tokens": 59}, r"student has 64 positions, .*\(6 tokens\).*\(59\) need 65"),
        ({"prompts": (torch.full((2, 3), 99), torch.ones(2, 3).long())}, r"of the \d+ ids that the student embeds.*99"),
        ({"prompts": (torch.full((2, 3), -100), torch.ones(2, 3).long())}, "input_ids must be of the .*got -100"),
        (
            {"prompts": (PROMPTS[0].float(), PROMPTS[1])},
            r"input_ids must be token ids, \[B, P\] int64, got torch.float32",
        ),
        ({"prompts": (PROMPTS[0].tolist(), PROMPTS[1])}, r"input_ids must be a tensor \[B, P\], got list"),
        ({"prompts": (PROMPTS[0], None)}, r"attention_mask must be a tensor \[B, P\], got NoneType"),
        ({"prompts": (PROMPTS[0], PROMPTS[1] * 0.5)}, "left padded.* row 0 is not"),
        ({"alignment": None}, "alignment must be a trbext.vocab.Alignment, got None: see trbext.align"),
        ({"optimizer_step": None}, "optimizer_step must be a whole number, got None"),
        ({"optimizer_step": -1}, "optimizer_step must be at least 0, got -1"),
        ({"generator": 3}, "generator must be a torch.Generator, a list of them or None, got 3"),
        *(
            ({"generator": [torch.Generator(), one]}, f"a list of them or None, got a list with {one}")
            for one in (1, None)
        ),
        ({"teacher_states_limit": None}, "teacher_states_limit must be a number of bytes, got None"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"prompts": (PROMPTS[0], PROMPTS[1][:, 1:])}, r"one shape \[B, P\].* got \[6, 6\] and \[6, 5\]"),
        ({"prompts": (torch.zeros(2, 0).long(), torch.zeros(2, 0).long())}, r"got \[2, 0\]"),
        ({"prompts": (torch.ones(2, 3).long(), torch.tensor([[1, 1, 1], [1, 1, 0]]))}, "left padded.* row 1 is not"),
        ({"prompts": (torch.ones(2, 3).long(), torch.tensor([[0, 0, 0], [1, 1, 1]]))}, "left padded.* row 0 is not"),
        ({"alignment": Alignment(12, (2,), (2,))}, "logits must have at least 12 entries"),
    ],
)
def test_bad_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        roll(tiny(seed=1), tiny(seed=2), **changed)


def test_ids_of_any_whole_dtype_are_the_same_prompts() -> None:
    ids, mask = PROMPTS
    student, teacher = tiny(seed=1), tiny(seed=2)

    def logits(ids: torch.Tensor) -> torch.Tensor:
        return teacher(ids).logits

    for each in (teacher, logits):
        usual = roll(student, each, (ids, mask))
        for dtype, mask_dtype in ((torch.int32, torch.bool), (torch.uint8, torch.float32)):
            assert_same(usual, roll(student, each, (ids.to(dtype), mask.to(mask_dtype))))


def test_a_step_of_numpy_is_a_step() -> None:
    options = {"epsilon": None, "policy": TrustRegion(Schedule("linear", 0.5, 10))}
    student, teacher = tiny(seed=1), tiny(seed=2)
    assert_same(*(roll(student, teacher, optimizer_step=step, **options) for step in (3, np.int64(3))))


def test_a_budget_needs_a_teacher_on_the_same_device() -> None:
    with pytest.raises(ValueError, match=r"teacher must be a model unless epsilon is 0, got None with epsilon 0.1"):
        roll(tiny(), None)
    with pytest.raises(ValueError, match="the teacher LlamaForCausalLM is on the meta device: load its weights first"):
        roll(tiny(), tiny().to("meta"))


def test_a_model_without_a_cache_is_named() -> None:
    teacher = tiny(seed=2)
    name = cache_argument(teacher)
    teacher.register_forward_hook(lambda _, __, output: setattr(output, name, None))
    with pytest.raises(RuntimeError, match=f"{name}, got NoneType from LlamaForCausalLM"):
        roll(tiny(seed=1), teacher)
