"""`BehaviorRatio` and `rollout_func`, as on docs/hosts/grpo.md, make TRL's gradient that of tokens drawn from mu."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from python_tests.models.tiny_models import prompts, tiny_llama, tiny_tokenizer
from trbext.integrations import BehaviorRatio

PAGE = Path(__file__).resolve().parents[2] / "docs" / "hosts" / "grpo.md"


def example() -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(PAGE.read_text(encoding="utf-8").split("<!-- grpo example -->\n```py\n")[1].split("```")[0], names)
    return names


def step(trainer_class: Any, rollout_func: Any, folder: Path) -> tuple[dict[str, Any], torch.Tensor]:
    """Returns what the loss of the first step was given, and its gradient in the lm_head."""
    config = GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=6,
        max_steps=1,
        beta=0.0,
        epsilon=100.0,
        loss_type="grpo",
        scale_rewards="none",
        max_grad_norm=0.0,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )

    def digits(completions: list[str], **_: Any) -> list[float]:
        return [float(sum(character.isdigit() for character in completion)) for completion in completions]

    torch.manual_seed(0)
    trainer = trainer_class(
        tiny_llama(0),
        digits,
        config,
        train_dataset=prompts(16),
        processing_class=tiny_tokenizer(),
        rollout_func=rollout_func,
    )
    seen: list[dict[str, Any]] = []
    gradients: list[torch.Tensor] = []
    compute_loss = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: (seen.append(inputs), compute_loss(model, inputs))[1]
    trainer.model.lm_head.weight.register_hook(lambda gradient: gradients.append(gradient.clone()))
    trainer.train()
    return seen[0], gradients[0]


@pytest.mark.filterwarnings("ignore:.*rollout_func")
def test_the_documented_lines_weigh_each_token_by_pi_s_over_mu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    names = example()
    student, teacher = tiny_llama(0), tiny_llama(1)
    rollout_func = names["rollout_func"](teacher, 0.5)
    inputs, gradient = step(names["BehaviorGRPOTrainer"], rollout_func, tmp_path)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    mask, length = inputs["completion_mask"], inputs["completion_ids"].shape[1]
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    logits = student(ids, attention_mask=attention, position_ids=positions).logits[:, -length - 1 : -1]
    log_prob = logits.log_softmax(-1).gather(-1, inputs["completion_ids"][..., None])[..., 0]
    log_mu = inputs["old_per_token_logps"]
    ratio = (log_prob - log_mu).exp()
    assert ((ratio - 1).abs() * mask).max() > 0.1  # the blend is another policy
    objective = (ratio * inputs["advantages"][:, None] * mask).sum(1) / mask.sum(1)
    (expected,) = torch.autograd.grad(-objective.mean(), student.lm_head.weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)
    # TRL by itself takes mu's tokens for the student's.
    with pytest.raises(ValueError, match="GRPOTrainer would give tokens of mu the ratio 1: make it a subclass of"):
        step(GRPOTrainer, rollout_func, tmp_path)
    alone, biased = step(GRPOTrainer, lambda prompts, trainer: rollout_func(prompts, _Posing(trainer)), tmp_path)
    assert "old_per_token_logps" not in alone
    assert (biased - expected).abs().max() > 10 * (gradient - expected).abs().max()


class _Posing(BehaviorRatio):
    """A trainer without `BehaviorRatio` that says it has it."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)
