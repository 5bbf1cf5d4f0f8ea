"""Tests the README.md beside a trained model."""

from __future__ import annotations

import yaml

from trbext.training.config import TRBConfig
from trbext.training.model_card import CURVE_ROWS, Provenance, model_card


def card(made_from: Provenance, lines: list[dict[str, float]], **fields: object) -> str:
    config = TRBConfig(output_dir="unused", use_cpu=True, **fields)  # type: ignore[arg-type]
    return model_card("run", made_from, config, 40, 100, lines, "@misc{}")


def test_a_card_holds_models_budget_results_and_curve() -> None:
    lines = [{"step": step, "trb/epsilon": 0.02 * (1 - step / 50), "trb/reverse_kl": 1 / step} for step in range(1, 41)]
    lines.insert(20, {"step": 20, "eval_loss": 0.25, "eval_pass@1": 0.5})
    text = card(Provenance("Qwen/Qwen3-0.6B-Base", "Qwen/Qwen3-4B", "a|b.jsonl"), lines, trb_warmup_steps=0.25)
    matter = yaml.safe_load(text.split("---")[1])
    assert matter["base_model"] == "Qwen/Qwen3-0.6B-Base"
    assert "trb" in matter["tags"]
    for line in (
        "| teacher | Qwen/Qwen3-4B |",
        "| prompts | a\\|b.jsonl |",
        "| warmup K, optimizer steps until the budget is 0 | 25 |",
        "| optimizer steps | 40 of 100 |",
        "| reverse KL on rollouts, nats/token | 1.0000 (step 1) | 0.0250 (step 40) |",
        "| pass@1 | 50.0% (step 20) | 50.0% (step 20) |",
    ):
        assert line in text
    curve = text.partition("## Curve")[2].partition("Made with")[0].strip().splitlines()
    assert curve[0] == "| step | epsilon | reverse KL on rollouts | held-out reverse KL | pass@1 |"
    assert len(curve) == 2 + CURVE_ROWS
    assert curve[-1] == "| 40 | 0.004 | 0.0250 | 0.2500 | 50.0% |"


def test_a_card_names_the_fields_that_change_the_loss_and_the_length_of_rollouts() -> None:
    made_from = Provenance("a/student", "a/teacher")
    changed = card(made_from, [], loss_estimator="routed", loss_weighted=False, rollout_length_points={0: 8})
    assert "| loss | routed (beta 1.0) |\n| rollout_length_points | {0: 8} |\n| loss_weighted | False |" in changed
    plain = card(made_from, [])
    assert not any(name in plain for name in ("rollout_length", "loss_weighted", "proximal_alpha", "position_gamma"))


def test_a_card_of_a_run_without_logs_or_budget_leaves_them_out(tmp_path: object) -> None:
    text = card(Provenance(str(tmp_path), "demo:teacher"), [], rollout_policy="student")
    assert "base_model" not in text.split("---")[1]
    assert "epsilon" not in text
    assert "## Curve" not in text
    assert "None" not in text
