"""Every example of docs/hosts/integrate.md runs, draws blended rollouts within its budget, and changes the student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import trbext
from python_tests.integrations.integrate_page import block, examples, run
from python_tests.models.tiny_models import saved, tiny_llama
from trbext import Rollout
from trbext.data import demo_models
from trbext.integrations import custom_generate, grpo

HERE = ("loop", "accelerate", "generate", "processor", "gkd", "gold", "grpo")


@pytest.fixture
def rollouts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Rollout]:
    """Collects the rollouts of an example, which runs in a folder of its own."""
    collected: list[Rollout] = []
    decode = trbext.speculative

    def recorded(*args: Any, **kwargs: Any) -> Rollout:
        collected.append(decode(*args, **kwargs))
        return collected[-1]

    for module in (trbext, custom_generate, grpo):
        monkeypatch.setattr(module, "speculative", recorded)
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return collected


def test_each_example_is_run_by_a_test() -> None:
    # fsdp2: test_fsdp2_loop.py; lightning: test_lightning.py
    assert sorted(examples()) == sorted([*HERE, "fsdp2", "lightning"])


def byte_level_models(folder: Path) -> None:
    """Saves a student and a teacher with a byte-level tokenizer, the only kind that GOLD reads."""
    alphabet = ["<pad>", "<bos>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: number for number, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )
    for seed, name in enumerate(("student", "teacher")):
        saved(folder / name, tiny_llama(seed, vocab_size=len(alphabet), eos=2), fast)


@pytest.mark.filterwarnings("ignore:.*rollout_func")
@pytest.mark.parametrize("name", HERE)
def test_an_example_runs(name: str, rollouts: list[Rollout], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "gold":
        byte_level_models(tmp_path)
        monkeypatch.setattr(demo_models, "MODELS", tmp_path)
    names = run(name)
    budget = 0.02 if name == "grpo" else 0.5
    if name == "processor":  # it draws token by token: test_generate.py
        assert names["ids"].shape[1] > names["prompts"]["input_ids"].shape[1]
        return
    assert rollouts
    for rollout in rollouts:
        assert float(rollout.kl.max()) <= budget * (1 + 1e-4) + 1e-7
        assert float(rollout.beta.max()) > 0
    if name == "generate":
        assert torch.equal(names["ids"][:, -rollouts[0].tokens.shape[1] :], rollouts[0].tokens)
        assert names["log_mu"] is rollouts[0].log_prob
        return
    before = AutoModelForCausalLM.from_pretrained(names["student_path"]).state_dict()
    student = names["student"].state_dict()
    assert any(not torch.equal(weight, before[name]) for name, weight in student.items())
    assert all(bool(weight.isfinite().all()) for weight in student.values())


def test_the_behavior_weight_is_that_of_the_tokens_drawn(rollouts: list[Rollout]) -> None:
    names: dict[str, Any] = {}
    exec(block("behavior weight"), names)
    rollout = run("generate")["rollouts"][0]
    weight = names["behavior_weight"](rollout)
    assert torch.equal(weight[~rollout.mask], torch.zeros_like(weight[~rollout.mask]))
    ratio = (rollout.student_log_prob - rollout.log_prob).exp()[rollout.mask]
    assert torch.equal(weight[rollout.mask], ratio)
    assert (ratio - 1).abs().max() > 0.1
    assert float(names["behavior_weight"](rollout, cap=1.0).max()) <= 1
