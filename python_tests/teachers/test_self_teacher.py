"""The base under a LoRA student is a teacher that equals a deep copy bit for bit, and is refused if it would not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model

from python_tests.rollout.rollout_cases import PROMPTS, assert_same, tiny
from trbext import lockstep, self_teacher, speculative
from trbext.models.model_kind import UnsupportedModel
from trbext.teachers.separate import check_separate
from trbext.vocab import Alignment

SETTINGS: dict[str, Any] = {
    "epsilon": 0.2,
    "max_new_tokens": 10,
    "alignment": Alignment(11, (2,), (2,)),
    "pad_token_id": 0,
    "teacher_states_limit": 2.0**30,
}


def lora_student(seed: int = 0, **settings: Any) -> tuple[Any, Any]:
    """Returns a LoRA student whose adapter has learned something, and a frozen copy of its base from before."""
    base = tiny(seed=seed, dtype=torch.float32)
    copied = copy.deepcopy(base).requires_grad_(
        False
    )  # torch.matmul takes another path if a weight requires a gradient
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], lora_dropout=0.5, **settings)
    student = get_peft_model(base, config)
    torch.manual_seed(seed)
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)
    return student, copied


def rollout(decode: Any, student: Any, teacher: Any, **settings: Any) -> Any:
    return decode(student, teacher, *PROMPTS, generator=torch.Generator().manual_seed(3), **SETTINGS | settings)


@pytest.mark.parametrize("draft_length", [None, 3])
def test_a_self_teacher_equals_a_deep_copy_bit_for_bit(draft_length: int | None) -> None:
    student, copied = lora_student()
    student.train()
    decode, settings = (lockstep, {}) if draft_length is None else (speculative, {"draft_length": draft_length})
    expected = rollout(decode, student, copied, **settings)
    found = rollout(decode, student, self_teacher(student), **settings)
    assert_same(found, expected)
    assert torch.equal(found.teacher_states, expected.teacher_states)
    assert (found.beta > 0).any()
    assert (found.student_log_prob - found.teacher_log_prob).abs().max() > 0.1  # the adapter is another model
    assert student.training


def test_the_student_s_adapter_and_gradients_are_as_they_were_after_a_forward_of_the_teacher() -> None:
    student, copied = lora_student(modules_to_save=["lm_head"])
    teacher = self_teacher(student)
    student.get_base_model().lm_head.modules_to_save["default"].weight.data.mul_(2)  # trained, so not the teacher's
    before = [(name, parameter.requires_grad) for name, parameter in student.named_parameters()]
    own = student(PROMPTS[0][-1:]).logits
    with torch.no_grad():
        logits = teacher(input_ids=PROMPTS[0][-1:]).logits
    assert torch.equal(logits, copied(PROMPTS[0][-1:]).logits)
    own.sum().backward()
    assert all(p.grad is not None for p in student.parameters() if p.requires_grad)
    assert [(name, parameter.requires_grad) for name, parameter in student.named_parameters()] == before
    with pytest.raises(RuntimeError, match="at work"), teacher.without_adapters():
        raise RuntimeError("at work")
    assert not any(getattr(module, "_disable_adapters", False) for module in student.modules())


def test_adapters_that_were_added_after_the_teacher_are_off_as_well() -> None:
    student, copied = lora_student()
    teacher = self_teacher(student)
    expected = copied(PROMPTS[0]).logits
    assert torch.equal(teacher(input_ids=PROMPTS[0]).logits, expected)
    student.add_adapter("other", LoraConfig(target_modules=["v_proj"], init_lora_weights=False))
    student.set_adapter("other")
    assert not torch.equal(student(PROMPTS[0]).logits, expected)
    assert torch.equal(teacher(input_ids=PROMPTS[0]).logits, expected)


def test_only_the_base_under_this_very_student_may_share_its_weights() -> None:
    student, copied = lora_student()
    check_separate(student, self_teacher(student))
    check_separate(student, copied)
    with pytest.raises(ValueError, match="must share no parameter that is trained"):
        check_separate(student, student.get_base_model())
    other, _ = lora_student(1)
    with pytest.raises(ValueError, match="self_teacher of another student"):
        check_separate(student, self_teacher(other))


class Wrapped(torch.Tensor):
    """A tensor without a storage, as torchao's integer weights are."""

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is torch.ops.aten.detach.default else NotImplemented


def test_a_weight_without_a_storage_is_compared_by_itself() -> None:
    student, teacher = tiny(), tiny()
    teacher.lm_head.weight = torch.nn.Parameter(Wrapped(teacher.lm_head.weight), requires_grad=False)
    check_separate(student, teacher)


def test_a_base_that_would_not_stay_as_it_was_is_refused() -> None:
    student, _ = lora_student()
    with pytest.raises(UnsupportedModel, match="needs a PeftModel, got LlamaForCausalLM"):
        self_teacher(tiny())
    student.merge_adapter()
    with pytest.raises(UnsupportedModel, match=r"not merged: unmerge that of base_model\.model"):
        self_teacher(student)
    student.unmerge_adapter()
    self_teacher(student)
    name, weight = next((n, p) for n, p in student.named_parameters() if "norm" in n)
    weight.requires_grad_(True)
    with pytest.raises(UnsupportedModel, match=f"not trained, but {name} is"):
        self_teacher(student)
    weight.requires_grad_(False)
    teacher = self_teacher(student)
    weight.requires_grad_(True)  # after it was made
    with pytest.raises(UnsupportedModel, match=f"not trained, but {name} is"):
        check_separate(student, teacher)
    prompts = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2)
    with pytest.raises(UnsupportedModel, match="prompt-tuned"):
        self_teacher(get_peft_model(tiny(), prompts))


def test_the_base_model_with_its_adapter_is_no_teacher() -> None:
    student, copied = lora_student()
    with pytest.raises(
        UnsupportedModel, match=r"the teacher \w+ is the student itself, adapter included: give trbext.self"
    ):
        rollout(lockstep, student, student.get_base_model())
    assert_same(rollout(lockstep, student, self_teacher(student)), rollout(lockstep, student, copied))
    rollout(lockstep, copied, copied)  # without an adapter a student may teach itself
