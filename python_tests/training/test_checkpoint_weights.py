"""A run continues with every weight of its checkpoint, or says which one is missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from python_tests.models.tiny_models import EOS, PAD, prompts, tiny_llama
from python_tests.training.trainer_cases import make_trainer, weights
from trbext.models.loading import fault_in
from trbext.training.checkpoints.completeness import IncompleteCheckpoint
from trbext.training.checkpoints.weights import load_weights

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "draft_length": 3}
Tensors = dict[str, Any]


def tiny_mixtral(seed: int) -> MixtralForCausalLM:
    """Returns a model whose experts are one tensor in the model, and one each in the checkpoint."""
    torch.manual_seed(seed)
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=64,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    return MixtralForCausalLM(config)


def test_a_mixture_of_experts_continues_as_the_run_that_was_not_stopped(tmp_path: Path) -> None:
    straight = make_trainer(tmp_path, tiny_mixtral(0), tiny_mixtral(1), **SAVING)
    straight.train()
    held = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    assert not held.keys() & {name for name in weights(straight) if "experts" in name}
    resumed = make_trainer(tmp_path / "resumed", tiny_mixtral(0), tiny_mixtral(1), **SAVING)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert all(torch.equal(weight, weights(resumed)[name]) for name, weight in weights(straight).items())


@pytest.mark.parametrize(("saved", "continued"), [("sgd", "adamw_torch"), ("adamw_torch", "sgd")])
def test_the_state_of_another_optimizer_is_refused(tmp_path: Path, saved: str, continued: str) -> None:
    make_trainer(tmp_path, **SAVING, optim=saved).train()
    resumed = make_trainer(tmp_path / "resumed", **SAVING, optim=continued)
    message = f"checkpoint-1 has the state of another optimizer than .*, without .*got {continued}"
    with pytest.raises(IncompleteCheckpoint, match=message):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_the_best_mixture_of_experts_is_the_one_of_its_checkpoint(tmp_path: Path) -> None:
    judged = {"held_out": prompts(4), "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    lower = {"metric_for_best_model": "eval_loss", "greater_is_better": True}  # the first one, as the loss falls
    trainer = make_trainer(tmp_path, tiny_mixtral(0), tiny_mixtral(1), **SAVING, **judged, **lower)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    first = MixtralForCausalLM.from_pretrained(tmp_path / "checkpoint-1").state_dict()
    assert all(torch.equal(weight, first[name]) for name, weight in weights(trainer).items())


def test_weights_keep_their_precision_each(tmp_path: Path) -> None:
    model = tiny_llama(0).bfloat16()
    model.model.norm.float()
    model.model.norm.weight.data += 1e-4
    model.save_pretrained(tmp_path)
    other = tiny_llama(1).bfloat16()
    other.model.norm.float()
    attention = other.config._attn_implementation
    load_weights(other, tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight)
        assert other.state_dict()[name].dtype == weight.dtype
    assert other.config._attn_implementation == attention


def renamed(tensors: Tensors) -> Tensors:
    return {f"module.{name}": weight for name, weight in tensors.items()}


def without_one(tensors: Tensors) -> Tensors:
    return {name: weight for name, weight in tensors.items() if "up_proj" not in name and "lora_B" not in name}


def with_another(tensors: Tensors) -> Tensors:
    return tensors | {"base_model.model.layers.1.lora_A.weight": torch.zeros(2, 2)}


def narrower(tensors: Tensors) -> Tensors:
    return {name: weight[:-1].clone() if weight.dim() > 1 else weight for name, weight in tensors.items()}


UP = "'model.layers.0.mlp.up_proj.weight'"
ADAPTER = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
DAMAGES = [
    (renamed, "lacks the weights 'lm_head.weight'", f"must hold '{ADAPTER.format('A')}' of shape [2, 16], got none"),
    (without_one, f"lacks the weights {UP}", f"must hold '{ADAPTER.format('B')}' of shape [16, 2], got none"),
    (with_another, "holds 'base_model.model.layers.1.lora_A.weight', for which", "of shape none, got [2, 2]"),
    (
        narrower,
        "holds 'lm_head.weight' of shape [63, 16], which its",
        f"must hold '{ADAPTER.format('A')}' of shape [2, 16], got [1, 16]",
    ),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Makes a checkpoint of a whole model and one of an adapter."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, peft_config in (("whole", None), ("adapter", LoraConfig(r=2, target_modules=["q_proj"]))):
        make_trainer(folder / name, max_steps=1, peft_config=peft_config, **SAVING).train()
    return {name: folder / name / "checkpoint-1" for name in ("whole", "adapter")}


@pytest.mark.parametrize(("damage", "of_model", "of_adapter"), DAMAGES)
@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_a_checkpoint_of_other_weights_is_refused(
    kind: str,
    damage: Callable[[Tensors], Tensors],
    of_model: str,
    of_adapter: str,
    checkpoints: dict[str, Path],
    tmp_path: Path,
) -> None:
    shutil.copytree(checkpoints[kind], tmp_path / "checkpoint-1")
    (file,) = (tmp_path / "checkpoint-1").glob("*model.safetensors")
    save_file(damage(load_file(file)), file, metadata={"format": "pt"})
    peft_config = LoraConfig(r=2, target_modules=["q_proj"]) if kind == "adapter" else None
    trainer = make_trainer(tmp_path, peft_config=peft_config, **SAVING)
    with pytest.raises(IncompleteCheckpoint, match="checkpoint-1 cannot be resumed exactly: ") as refusal:
        trainer.train(resume_from_checkpoint=True)
    assert (of_model if kind == "whole" else of_adapter) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_a_checkpoint_may_hold_besides() -> None:
    """A checkpoint may hold buffers that are computed today, and the scales of quantized weights, at either place."""
    model = tiny_llama(0)

    def fault(*unexpected: str) -> str | None:
        report: dict[str, Any] = {"missing_keys": set(), "unexpected_keys": set(unexpected), "mismatched_keys": set()}
        return fault_in(report, model)

    assert fault("model.layers.0.self_attn.rotary_emb.inv_freq", "model.embeddings.position_ids") is None
    scales = ("model.layers.0.self_attn.k_scale", "model.layers.0.mlp.up_proj.weight.quant_state.nf4")
    assert fault(scales[0]) is not None
    model.hf_quantizer = object()
    assert fault(*scales) is None
    assert "model.layers.1.mlp.up_proj.weight_scale" in str(fault("model.layers.1.mlp.up_proj.weight_scale"))
