"""Tests TRBTrainer on one process, with models of a few thousand weights: training, resuming, loading and refusing."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaForCausalLM
from trl import DistillationConfig

from python_tests.models.tiny_models import END_OF_TURN, EOS, VOCABULARY, prompts, saved, tiny_llama, tiny_tokenizer
from python_tests.training.trainer_cases import make_trainer, steps, weights, without_timings
from trbext.rollout import Rollout
from trbext.training.config import TRBConfig
from trbext.training.trainer import TRBTrainer
from trbext.vocab import VocabularyMismatch

# ---- What is trained ----


def test_the_reverse_kl_falls(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=20, trb_warmup_steps=10)
    trainer.train()
    losses = [log["trb/reverse_kl"] for log in steps(trainer)]
    assert len(losses) == 20
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize(("student_width", "teacher_width"), [(64, 72), (72, 64)])
def test_models_of_different_logit_width_train(
    tmp_path: Path, student_width: int, teacher_width: int, rollouts: list[tuple[float, Rollout]]
) -> None:
    trainer = make_trainer(tmp_path, tiny_llama(0, vocab_size=student_width), tiny_llama(1, vocab_size=teacher_width))
    before = weights(trainer)
    trainer.train()
    assert trainer.alignment.width == 64
    assert all(math.isfinite(log["loss"]) and log["loss"] > 0 for log in steps(trainer))
    assert all((rollout.tokens < 64).all() for _, rollout in rollouts)
    after = weights(trainer)
    assert not torch.equal(after["lm_head.weight"][:64], before["lm_head.weight"][:64])
    assert torch.equal(after["lm_head.weight"][64:], before["lm_head.weight"][64:])  # padding has no gradient


@pytest.mark.parametrize("teacher_eos", [END_OF_TURN, [END_OF_TURN, EOS]])
def test_models_with_different_eos_ids_train(
    tmp_path: Path, teacher_eos: int | list[int], rollouts: list[tuple[float, Rollout]]
) -> None:
    teacher = tiny_llama(1, eos=teacher_eos)
    with torch.no_grad():  # a teacher that stops soon, so that some of its stop mass is drawn
        teacher.lm_head.weight[END_OF_TURN] = 3 * teacher.lm_head.weight.mean(0)
    trainer = make_trainer(tmp_path, None, teacher, trb_epsilon=1.0, max_steps=4, trb_warmup_steps=9, temperature=1.5)
    trainer.train()
    drawn = torch.cat([rollout.tokens[rollout.mask] for _, rollout in rollouts])
    assert (drawn == EOS).any()
    assert not (drawn == END_OF_TURN).any()  # the teacher's stop is emitted as the student's
    assert all(math.isfinite(log["loss"]) and math.isfinite(log["grad_norm"]) for log in steps(trainer))
    assert all(weight.isfinite().all() for weight in weights(trainer).values())


def test_a_student_equal_to_its_teacher_has_no_loss_and_beta_one(tmp_path: Path) -> None:
    teacher = tiny_llama(3)
    trainer = make_trainer(tmp_path, copy.deepcopy(teacher), teacher, max_steps=1)
    trainer.train()
    (log,) = steps(trainer)
    assert abs(log["loss"]) < 1e-6
    assert log["trb/beta_mean"] == log["trb/beta_p10"] == log["trb/beta_one_fraction"] == 1.0
    assert log["trb/kl_max"] < 1e-6
    assert log["trb/teacher_entropy"] == pytest.approx(log["entropy"], abs=1e-5)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_our_loss_trains_as_the_fused_loss_of_trl_does(tmp_path: Path, accumulation: int) -> None:
    trained = []
    for fused in (True, False):
        # Adam would turn the rounding of a gradient near 0 into a step of the whole learning rate.
        fields: dict[str, Any] = {"gradient_accumulation_steps": accumulation, "draft_length": 2, "optim": "sgd"}
        trainer = make_trainer(tmp_path, teacher=tiny_llama(1, vocab_size=72), **fields)
        assert trainer._fused_loss
        trainer._fused_loss = fused
        trainer.train()
        trained.append((weights(trainer), without_timings(steps(trainer))))
    for name, weight in trained[0][0].items():
        torch.testing.assert_close(weight, trained[1][0][name], rtol=1e-5, atol=1e-6, msg=name)
    for fused_log, our_log in zip(trained[0][1], trained[1][1], strict=True):
        assert our_log == pytest.approx(fused_log, rel=1e-4, abs=1e-6)


def test_loss_top_k_bounds_the_full_loss_from_below(tmp_path: Path) -> None:
    logs = {}
    for top_k in (4, 63, None):
        trainer = make_trainer(tmp_path, loss_top_k=top_k, max_steps=1)
        trainer.train()
        logs[top_k] = steps(trainer)[0]
    assert 0 < logs[4]["loss"] < 0.9 * logs[None]["loss"]
    assert logs[63]["loss"] == pytest.approx(logs[None]["loss"], rel=1e-5)
    assert logs[4]["trb/teacher_log_prob"] == pytest.approx(logs[None]["trb/teacher_log_prob"], rel=1e-6)


def test_a_lora_student_trains_only_its_adapter(tmp_path: Path) -> None:
    adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    trainer = make_trainer(tmp_path, peft_config=adapter, gradient_checkpointing=True)
    before = weights(trainer)
    trainer.train()
    changed = {name for name, weight in weights(trainer).items() if not torch.equal(weight, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert steps(trainer)[0]["trb/kl_max"] <= 0.1 * (1 + 1e-4) + 1e-7


def test_a_bf16_run_computes_its_loss_in_bf16(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, bf16=True, max_steps=1)
    dtypes: set[tuple[torch.dtype, int]] = set()
    for model in (trainer.model, trainer.teacher_model):
        mlp = model.model.layers[0].mlp
        mlp.register_forward_hook(lambda _, __, output: dtypes.add((output.dtype, output.shape[1])))
    trainer.train()
    assert max(length for _, length in dtypes) > 8  # a pass over prompt and completion: the loss's
    assert {dtype for dtype, _ in dtypes} == {torch.bfloat16}
    assert math.isfinite(steps(trainer)[0]["loss"])


# ---- Several rollouts of a prompt, and a few rows at a time ----


def test_rollouts_of_one_prompt_share_an_optimizer_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, rows=8, rollouts_per_prompt=4, gradient_accumulation_steps=2, max_steps=4)
    batches: list[list[str]] = []
    generate = trainer._generate
    trainer._generate = lambda texts: (batches.append(texts), generate(texts))[1]
    trainer.train()
    assert [len(batch) for batch in batches] == [8] * 4
    assert all(batch.count(text) == 4 for batch in batches for text in batch)
    # 2 per step: one epoch
    assert sorted({text for batch in batches for text in batch}) == sorted(prompts(8)["prompt"])
    with pytest.raises(ValueError, match="rollouts_per_prompt must divide the 4 rollouts of an optimizer step, got 3"):
        make_trainer(tmp_path, rollouts_per_prompt=3).train()


def test_rollouts_in_parts_are_independent_of_one_another_and_keep_their_weights(
    tmp_path: Path, drawn: list[Rollout]
) -> None:
    fields: dict[str, Any] = {"rollouts_per_prompt": 4, "loss_estimator": "sampled", "max_steps": 1, "trb_epsilon": 0.5}
    trainer = make_trainer(tmp_path, rollout_batch_size=2, rows=1, **fields)
    trainer.train()
    first, second = drawn
    assert len(first.tokens) == len(second.tokens) == 2
    # One prompt four times: equal numbers in both parts would give equal rollouts.
    assert first.tokens.shape != second.tokens.shape or not torch.equal(first.tokens, second.tokens)
    mask = [rollout.mask for rollout in drawn]
    weight = torch.cat([(r.student_log_prob - r.log_prob)[m] for r, m in zip(drawn, mask, strict=True)]).exp()
    gap = torch.cat([(r.student_log_prob - r.teacher_log_prob)[m] for r, m in zip(drawn, mask, strict=True)])
    assert steps(trainer)[0]["loss"] == pytest.approx((weight * gap).mean().item(), rel=1e-4, abs=1e-5)
    drawn.clear()
    make_trainer(tmp_path, rollout_batch_size=4, rows=1, **fields).train()
    make_trainer(tmp_path, rows=1, **fields).train()
    assert torch.equal(drawn[0].tokens, drawn[1].tokens)


def test_a_saved_student_stops_by_the_ids_of_both_models(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, None, tiny_llama(1, eos=[END_OF_TURN, EOS]), max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    saved_ids = LlamaForCausalLM.from_pretrained(tmp_path / "model").generation_config.eos_token_id
    assert saved_ids == [EOS, END_OF_TURN]
    assert make_trainer(tmp_path).model.generation_config.eos_token_id == EOS


# ---- Resuming ----


@pytest.mark.parametrize(
    ("rows", "accumulation", "lora"),
    [(32, 1, False), (8, 1, False), (12, 1, False), (32, 2, True)],
    ids=["in the first epoch", "between epochs", "in a later epoch", "accumulating, with dropout"],
)
def test_a_resumed_run_repeats_the_uninterrupted_run_bitwise(
    tmp_path: Path, rows: int, accumulation: int, lora: bool
) -> None:
    last = 4 if rows == 12 else 2
    fields: dict[str, Any] = {
        "rows": rows,
        "gradient_accumulation_steps": accumulation,
        "lr_scheduler_type": "linear",
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": last,
        "held_out": prompts(5),
        "eval_strategy": "steps",
        "eval_steps": 1,
        "peft_config": LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.2) if lora else None,
    }
    straight = make_trainer(tmp_path / "straight", **fields)
    straight.train()
    resumed = make_trainer(tmp_path / "resumed", **fields)
    torch.manual_seed(12345)  # whatever another process's global state is
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / f"checkpoint-{last}"))
    assert without_timings(resumed.state.log_history)[:-1] == without_timings(straight.state.log_history)[:-1]
    assert len(steps(resumed)) == 6
    found = weights(resumed)
    for name, weight in weights(straight).items():
        assert torch.equal(found[name], weight), name


def test_each_evaluation_has_the_same_order_also_with_workers_that_stay(tmp_path: Path) -> None:
    """Or that of a resumed run, whose workers are new, would be another than that of the uninterrupted run."""
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    trainer = make_trainer(tmp_path, held_out=prompts(9), **workers)
    first, second = (trainer.evaluate()["eval_loss"] for _ in range(2))
    assert first == second


@pytest.mark.parametrize("stream", [False, True])
def test_workers_that_stay_are_of_one_dataset(tmp_path: Path, stream: bool) -> None:
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 2}
    first, other = prompts(4), prompts(9).select(range(5, 9))
    first = first.to_iterable_dataset() if stream else first
    trainer = make_trainer(tmp_path, held_out=first, **workers)
    expected = [make_trainer(tmp_path, held_out=each).evaluate()["eval_loss"] for each in (first, other)]
    assert expected[0] != expected[1]
    assert [trainer.evaluate(each)["eval_loss"] for each in (None, other, None)] == [*expected, expected[0]]
    both = trainer.evaluate({"x": first, "y": other})
    assert [both["eval_x_loss"], both["eval_y_loss"]] == expected
    assert trainer.args.dataloader_persistent_workers


def test_another_held_out_dataset_is_read_by_other_workers(tmp_path: Path) -> None:
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    first, other = prompts(4), prompts(9).select(range(5, 9))
    trainer = make_trainer(tmp_path, held_out={"x": first}, **workers)
    kept = trainer.get_eval_dataloader("x")
    assert trainer.get_eval_dataloader("x") is kept
    expected = [trainer.evaluate(each)["eval_loss"] for each in (first, other)]
    assert trainer.evaluate()["eval_x_loss"] == expected[0]
    trainer.eval_dataset = {"x": other}
    assert trainer.evaluate()["eval_x_loss"] == expected[1] != expected[0]
    trainer.eval_dataset["x"] = first
    assert trainer.evaluate()["eval_x_loss"] == expected[0]
    assert kept not in trainer.accelerator._dataloaders  # which would keep its workers
    trainer.train()  # accelerate forgets its loaders, and TRL does not
    trainer.eval_dataset = {"x": other}
    assert trainer.evaluate()["eval_x_loss"] > 0
    for each in (first, other):
        trainer.eval_dataset = each
        assert list(trainer.get_eval_dataloader().dataset["prompt"]) == list(each["prompt"])


def test_a_stream_is_read_without_workers_whatever_is_said_of_them(tmp_path: Path) -> None:
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 2}
    workers["dataloader_multiprocessing_context"] = "fork"
    rows = prompts(8).to_iterable_dataset()
    trainer = make_trainer(tmp_path, rows=rows, held_out=rows, max_steps=1, **workers)
    trainer.train()
    assert len(steps(trainer)) == 1
    assert trainer.evaluate()["eval_loss"] > 0
    assert trainer.args.dataloader_multiprocessing_context == "fork"


def test_epochs_visit_every_prompt_in_a_new_order(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, rows=8, max_steps=4)
    batches: list[list[str]] = []
    generate = trainer._generate
    trainer._generate = lambda texts: (batches.append(texts), generate(texts))[1]
    trainer.train()
    first, second = batches[0] + batches[1], batches[2] + batches[3]
    assert sorted(first) == sorted(second) == sorted(prompts(8)["prompt"])
    assert first != second


# ---- Loading and refusing ----


def test_models_are_loaded_from_paths(tmp_path: Path) -> None:
    student, teacher = tiny_llama(0), tiny_llama(1, vocab_size=72).to(torch.bfloat16)
    paths = [saved(tmp_path / name, model, tiny_tokenizer()) for name, model in (("s", student), ("t", teacher))]
    trainer = make_trainer(tmp_path / "run", *paths, max_steps=1)
    trainer.train()
    assert trainer.teacher_model.dtype == torch.bfloat16
    assert trainer.model.dtype == torch.float32
    by_field = make_trainer(tmp_path / "run", paths[0], paths[1], teacher_model_init_kwargs={"dtype": "float32"})
    assert by_field.teacher_model.dtype == torch.float32


def test_the_teacher_may_be_named_in_the_config(tmp_path: Path) -> None:
    path = saved(tmp_path / "teacher", tiny_llama(1), tiny_tokenizer())
    args = TRBConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, teacher_model_name_or_path=path)
    trainer = TRBTrainer(tiny_llama(0), args=args, train_dataset=prompts(8), processing_class=tiny_tokenizer())
    assert torch.equal(trainer.teacher_model.lm_head.weight, tiny_llama(1).lm_head.weight)


def test_a_teacher_with_other_token_ids_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    swapped = [*VOCABULARY]
    swapped[10], swapped[11] = swapped[11], swapped[10]
    tiny_tokenizer(swapped).save_pretrained(tmp_path / "teacher")  # no weights in the folder
    with pytest.raises(VocabularyMismatch, match="'6' has id 10"):
        make_trainer(tmp_path, None, str(tmp_path / "teacher"))


def test_a_teacher_without_a_tokenizer_is_not_compared_with_the_student(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_llama(1).save_pretrained(tmp_path / "teacher")
    make_trainer(tmp_path, None, str(tmp_path / "teacher"))
    assert "tokenizer could not be loaded, so token ids are not compared" in caplog.text


def test_refusals(tmp_path: Path) -> None:
    def new(teacher: Any = None, args: Any = None, **fields: Any) -> TRBTrainer:
        args = args or TRBConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **fields)
        return TRBTrainer(tiny_llama(0), teacher, args, train_dataset=prompts(8), processing_class=tiny_tokenizer())

    with pytest.raises(ValueError, match="a teacher is required"):
        new()
    with pytest.raises(TypeError, match="args must be a TRBConfig, got DistillationConfig"):
        new(tiny_llama(1), DistillationConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False))
    with pytest.raises(ValueError, match="teacher_model_init_kwargs is set, but teacher_model is already"):
        new(tiny_llama(1), teacher_model_init_kwargs={"dtype": "float32"})
    with pytest.raises(ValueError, match=r"only the reverse KL \(beta = 1.0\) merges them, got beta = 0.5"):
        new(tiny_llama(1, eos=END_OF_TURN), beta=0.5)
    with pytest.raises(ValueError, match="set remove_unused_columns=False"):
        new(tiny_llama(1), eval_verifier="numeric", remove_unused_columns=True)
    with pytest.raises(ValueError, match="a verifier is one of numeric, demo"):
        new(tiny_llama(1), eval_verifier="mathematics")
    with pytest.raises(ValueError, match="the train_dataset must have the 16 prompts of an optimizer step, got 8"):
        new(tiny_llama(1), per_device_train_batch_size=16).train()


def test_the_model_card_names_the_method(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.create_model_card(model_name="tiny")
    card = (tmp_path / "README.md").read_text()
    assert "Trust-Region Behavior Blending for On-Policy Distillation" in card
    assert "2605.31159" in card
    assert "trb" in trainer.model.model_tags
