"""The mixins for TRL's trainers leave the teacher's own sequences alone, and refuse what would be wrong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig
from trl.experimental.gkd import GKDTrainer

from python_tests.models.tiny_models import PAD, tiny_llama, tiny_tokenizer
from trbext.integrations import BehaviorRatio, BlendedRollouts, rollout_func


class Host:
    """Stands for a trainer of TRL: its attributes, and the method that generates."""

    use_vllm = False
    generate_on_policy_outputs = staticmethod(GKDTrainer.generate_on_policy_outputs)

    def __init__(self, teacher: Any) -> None:
        self.teacher_model = teacher
        self.accelerator = SimpleNamespace(unwrap_model=lambda model: model, device=torch.device("cpu"))
        self.state = SimpleNamespace(global_step=0)


class BlendedHost(BlendedRollouts, Host):
    pass


BATCH = {
    "prompts": torch.tensor([[PAD, 5, 6], [7, 8, 9]]),
    "prompt_attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
}


class GRPOHost(BehaviorRatio, Host):
    processing_class, chat_template_kwargs = tiny_tokenizer(), None
    max_completion_length, temperature = 4, 1.0
    top_p, top_k, min_p, repetition_penalty = 1.0, 0, None, 1.0
    args = SimpleNamespace(generation_kwargs=None)

    def __init__(self, teacher: Any) -> None:
        super().__init__(teacher)
        self.model = tiny_llama(0)


CONFIG = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=6, pad_token_id=PAD, eos_token_id=1)


def test_labels_are_those_of_the_blended_completions_and_seq_kd_stays_the_teacher_s() -> None:
    student, teacher = tiny_llama(0), tiny_llama(1)
    host = BlendedHost(teacher, policy=float("inf"))  # the teacher itself
    torch.manual_seed(0)
    ids, mask, labels = host.generate_on_policy_outputs(student, BATCH, CONFIG)
    assert torch.equal(ids[:, :3], BATCH["prompts"])
    assert (labels[:, :3] == -100).all()
    assert torch.equal(labels[:, 3:] != -100, mask[:, 3:].bool())
    calls: list[int] = []
    student.register_forward_pre_hook(lambda *_: calls.append(1))
    host.generate_on_policy_outputs(teacher, BATCH, CONFIG)
    assert not calls


def test_hosts_that_would_be_wrong_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = tiny_llama(0), tiny_llama(1)
    altered = GenerationConfig(**CONFIG.to_diff_dict() | {"top_p": 0.95})
    with pytest.raises(ValueError, match=r"top_p=0\.95 changes the distribution"):
        BlendedHost(teacher, policy=0.1).generate_on_policy_outputs(student, BATCH, altered)
    for name, message in (("use_vllm", "set use_vllm=False"), ("use_uld_loss", "one vocabulary for both models")):
        with monkeypatch.context() as patch:
            patch.setattr(BlendedHost, name, True, raising=False)
            with pytest.raises(ValueError, match=message):
                BlendedHost(teacher, policy=0.1)


def test_the_teacher_writes_rollouts_of_grpo_in_training_only() -> None:
    teacher = tiny_llama(1)
    calls: list[int] = []
    teacher.register_forward_pre_hook(lambda *_: calls.append(1))
    rollouts, host = rollout_func(teacher, float("inf")), GRPOHost(teacher)
    for training in (True, False):
        calls.clear()
        host.model.train(training)
        found = rollouts(["1+1=", "2="], host)
        assert bool(calls) == training
        for prompt, ids, log_mu in zip(found["prompt_ids"], found["completion_ids"], found["logprobs"], strict=True):
            logits = host.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
            log_student = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
            difference = (torch.tensor(log_mu) - log_student).abs()
            assert (difference > 1e-2).any() if training else (difference < 1e-4).all()


def test_a_grpo_trainer_that_would_be_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = tiny_llama(1)
    rollouts = rollout_func(teacher, 0.1)
    for name, value, message in [
        ("use_vllm", True, "set use_vllm=False"),
        ("tools", [len], "one turn: leave tools and environments out"),
        ("top_k", 50, "top_k=50 changes the distribution"),
        ("args", SimpleNamespace(generation_kwargs={"min_p": 0.1}), "takes no generation_kwargs"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(GRPOHost, name, value, raising=False)
            with pytest.raises(ValueError, match=message):
                rollouts(["1+1="], GRPOHost(teacher))
    with pytest.raises(ValueError, match=r"draft_length must be .*, got -1"):
        rollout_func(teacher, 0.1, draft_length=-1)
    with pytest.raises(ValueError, match=r"the same EOS id, got \[1, 2\]"):
        rollout_func(tiny_llama(1, eos=2), 0.1)(["1+1="], GRPOHost(teacher))
