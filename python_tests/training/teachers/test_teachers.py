"""`TRBTrainer` learns from the base under its own adapter, from several teachers and from any model with logits."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from python_tests.models.tiny_models import EOS, tiny_llama
from python_tests.training.trainer_cases import make_trainer, steps, weights, without_timings
from trbext import mixture, self_teacher
from trbext.models.next_token import FunctionModel
from trbext.training.config import TRBConfig
from trbext.training.fused_loss import choose_fused_loss
from trbext.training.teachers.loading import prepare_teacher
from trbext.training.teachers.offload import OffloadedWeights
from trbext.training.trainer import TRBTrainer
from trbext.vocab import align


def lora_student() -> Any:
    """Returns a LoRA student whose adapter was trained before."""
    torch.manual_seed(0)
    student = get_peft_model(tiny_llama(0), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], lora_dropout=0.1))
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    return student


def logs(trainer: TRBTrainer) -> list[dict[str, float]]:
    return without_timings(trainer.state.log_history)


@pytest.mark.parametrize("named", [False, True])
def test_the_base_under_a_lora_student_teaches_as_a_copy_of_it_does(tmp_path: Path, named: bool) -> None:
    fields = {"max_steps": 4, "trb_warmup_steps": 2, "learning_rate": 2e-2}
    student = lora_student()
    trained = make_trainer(tmp_path / "a", student, "self" if named else self_teacher(student), **fields)
    trained.train()
    copied = make_trainer(tmp_path / "b", lora_student(), tiny_llama(0), **fields)
    copied.train()
    assert logs(trained) == logs(copied)  # costs included
    for name, weight in weights(trained).items():
        assert torch.equal(weight, weights(copied)[name]), name
    base = tiny_llama(0).state_dict()
    for name, weight in trained.model.get_base_model().state_dict().items():
        if "lora_" not in name:
            assert torch.equal(weight, base[name.replace("base_layer.", "")]), name
    kl = [log["trb/reverse_kl"] for log in steps(trained)]
    assert kl[0] > 0.05
    assert kl[-1] < kl[0]


def test_a_mixture_of_one_teacher_trains_as_that_teacher(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"loss_estimator": "top_k", "loss_top_k": 64, "gradient_accumulation_steps": 2}
    single = make_trainer(tmp_path / "a", teacher=tiny_llama(1, hidden=32), **fields)
    single.train()
    for number, mean in enumerate(("geometric", "arithmetic")):
        teachers = mixture([tiny_llama(2), tiny_llama(1, hidden=32)], [0, 1], mean=mean)  # type: ignore[arg-type]
        mixed = make_trainer(tmp_path / str(number), teacher=teachers, **fields)
        mixed.train()
        for one, two in zip(steps(single), steps(mixed), strict=True):
            for name in ("loss", "trb/reverse_kl", "trb/beta_mean", "trb/teacher_entropy"):
                assert one[name] == pytest.approx(two[name], rel=1e-4), name


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
def test_two_teachers_train_toward_their_mean(tmp_path: Path, mean: Any) -> None:
    teachers = [tiny_llama(1, eos=2), tiny_llama(2, vocab_size=72)]
    trainer = make_trainer(
        tmp_path, teacher=mixture(teachers, [0.25, 0.75], mean=mean), max_steps=25, trb_warmup_steps=10, temperature=0.8
    )
    assert trainer.alignment.width == 64
    assert trainer.alignment.teacher_eos == (2, 1)
    trainer.train()
    kl = [log["trb/reverse_kl"] for log in steps(trainer)]
    assert sum(kl[-5:]) < 0.8 * sum(kl[:5])
    # The loss of a batch is that of the mean that is computed by hand.
    ids = torch.tensor([[5, 6, 7], [9, 8, 7]])
    completion = torch.tensor([[10, 11], [12, EOS]])
    inputs = {"prompt_ids": ids, "prompt_mask": torch.ones_like(ids), "completion_ids": completion}
    inputs["completion_mask"] = torch.ones_like(completion)
    with torch.no_grad():
        loss = float(trainer._compute_loss(trainer.model, inputs, None)[0])
        whole = torch.cat([ids, completion], 1)
        student, *each = (
            trainer.alignment.canonical(model(whole).logits[:, 2:4].double(), 0.8).div(0.8).log_softmax(-1)
            for model in (trainer.model, *teachers)
        )
    if mean == "arithmetic":
        target = (0.25 * each[0].exp() + 0.75 * each[1].exp()).log()
    else:
        target = (0.25 * each[0] + 0.75 * each[1]).log_softmax(-1)
    gap = (student - target).masked_fill(student == -torch.inf, 0)
    expected = float((student.exp() * gap).sum(-1).mean())
    assert loss == pytest.approx(expected, rel=1e-4)


def test_a_column_routes_each_row_to_its_teacher(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}+1=", "domain": "ab"[n % 3 == 0]} for n in range(16)]
    teachers = {"a": tiny_llama(1), "b": tiny_llama(2)}
    read: dict[str, list[torch.Tensor]] = {label: [] for label in teachers}
    for label, teacher in teachers.items():
        teacher.model.register_forward_pre_hook(
            lambda _, args, kwargs, label=label: read[label].append(kwargs["input_ids"]), with_kwargs=True
        )
    trainer = make_trainer(
        tmp_path,
        teacher=mixture(teachers),
        rows=Dataset.from_list(rows),
        teacher_column="domain",
        gradient_accumulation_steps=2,
        rollout_batch_size=3,
        check_models=False,
    )
    trainer.train()
    tokenizer = trainer._tokenizer
    for label, batches in read.items():
        texts = {tokenizer.decode(row, skip_special_tokens=True) for ids in batches for row in ids if ids.shape[1] > 3}
        mine = [row["prompt"] for row in rows if row["domain"] == label]
        others = [row["prompt"] for row in rows if row["domain"] != label]
        assert any(text.startswith(prompt) for text in texts for prompt in mine)
        assert not any(text.startswith(prompt) for text in texts for prompt in others), label


def test_routed_rows_train_alike_whatever_the_mean(tmp_path: Path) -> None:
    """Each row has one teacher, and the mean of one teacher is that teacher."""
    rows = Dataset.from_list([{"prompt": f"{n}+1=", "domain": "ab"[n % 2]} for n in range(16)])
    found = []
    for mean in ("geometric", "arithmetic"):
        teachers = mixture({"a": tiny_llama(1), "b": tiny_llama(2)}, mean=mean)  # type: ignore[arg-type]
        trainer = make_trainer(tmp_path / mean, teacher=teachers, rows=rows, teacher_column="domain", temperature=0.7)
        trainer.train()
        found.append(logs(trainer))
    assert found[0][:-1] == found[1][:-1]  # but for the summary, each log is the same


class Declared(FunctionModel):
    vocab_size = 64
    eos_token_ids = (EOS,)


def test_a_model_that_yields_only_logits_teaches_as_itself(tmp_path: Path) -> None:
    teacher = tiny_llama(1)
    fields = {"loss_top_k": 64}  # of our own loss
    expected = make_trainer(tmp_path / "a", teacher=teacher, **fields)
    expected.train()
    other = Declared(lambda ids: teacher(ids, use_cache=False).logits)
    trainer = make_trainer(tmp_path / "b", teacher=other, **fields)
    trainer.train()
    for one, two in zip(steps(expected), steps(trainer), strict=True):
        for name in ("loss", "trb/reverse_kl", "trb/beta_mean", "trb/teacher_entropy", "trb/teacher_log_prob"):
            assert one[name] == pytest.approx(two[name], rel=1e-4), name
    with pytest.raises(ValueError, match=r"without an lm_head of its own, Declared, trains by the reverse KL"):
        make_trainer(tmp_path / "c", teacher=other, beta=0.5)


def test_a_model_that_tells_fewer_logits_than_it_was_asked_is_refused(tmp_path: Path) -> None:
    class Last(Declared):
        def prefill(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            logits, prefixes = super().prefill(input_ids, attention_mask)
            advance = prefixes.advance
            prefixes.advance = lambda *asked: advance(*asked)[:, -1:]  # type: ignore[method-assign]
            return logits, prefixes

    teacher: Any = Last(lambda ids: tiny_llama(1)(ids).logits)
    trainer = make_trainer(tmp_path, teacher=teacher, rollout_policy="student", check_models=False)
    with pytest.raises(ValueError, match=r"the teacher Last must return .* \[4, 7, V\] .* got .* \[4, 1, 64\]"):
        trainer.train()


def test_a_function_is_asked_about_no_padding_behind_the_completions(tmp_path: Path) -> None:
    teacher, widths = tiny_llama(1), []

    def logits(ids: torch.Tensor) -> torch.Tensor:
        widths.append(ids.shape[1])
        return teacher(ids, use_cache=False).logits

    fields: dict[str, Any] = {"max_steps": 1, "rollout_policy": "student", "check_models": False}
    found = []
    for number, multiple in enumerate((None, 32)):
        other = make_trainer(tmp_path / str(number), teacher=Declared(logits), pad_to_multiple_of=multiple, **fields)
        other.train()
        found.append((max(widths), steps(other)[0]["loss"]))
        widths.clear()
    (longest, loss), (padded, padded_loss) = found
    assert longest == padded
    assert padded_loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    "teacher",
    [tiny_llama(1), mixture([tiny_llama(1)]), Declared(tiny_llama(1))],
    ids=["a model", "a mixture", "a function"],
)
def test_a_loss_of_sampled_tokens_refuses_tools_whatever_the_teacher(tmp_path: Path, teacher: Any) -> None:
    student, args = tiny_llama(0), TRBConfig(output_dir=str(tmp_path), loss_estimator="sampled")
    with pytest.raises(ValueError, match=r"^tools write tokens nobody sampled: loss_estimator='sampled'"):
        choose_fused_loss(student, teacher, align(student, teacher), args, zero3=False, tools=True)


def test_a_function_computes_in_its_own_precision_for_rollouts_and_loss(tmp_path: Path) -> None:
    teacher, lowered = tiny_llama(1), []

    def logits(ids: torch.Tensor) -> torch.Tensor:
        lowered.append(torch.is_autocast_enabled("cpu"))
        return teacher(ids, use_cache=False).logits

    trainer = make_trainer(tmp_path, teacher=Declared(logits), bf16=True, reuse_teacher_states=False)
    trainer.train()
    assert lowered
    assert not any(lowered)


def test_an_int8_teacher_teaches_within_the_budget(tmp_path: Path) -> None:
    whole = tiny_llama(1, hidden=32)
    int8 = copy.deepcopy(whole).eval()
    # The lm_head stays as it is: the loss multiplies by its weight.
    int8.model = torch.ao.quantization.quantize_dynamic(int8.model, {torch.nn.Linear}, dtype=torch.qint8)
    trainer = make_trainer(tmp_path, teacher=int8, max_steps=4)
    trainer.train()
    expected = make_trainer(tmp_path / "whole", teacher=whole, max_steps=1)
    expected.train()
    first = steps(trainer)[0]
    assert first["trb/kl_max"] <= 0.1 * (1 + 1e-4) + 1e-7
    assert first["trb/reverse_kl"] == pytest.approx(steps(expected)[0]["trb/reverse_kl"], rel=0.2)
    assert first["trb/reverse_kl"] != steps(expected)[0]["trb/reverse_kl"]


# ---- Offloading ----


def test_an_offloaded_teacher_is_on_its_device_for_rollouts_and_loss_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"max_steps": 3, "trb_warmup_steps": 2, "gradient_accumulation_steps": 2}
    expected = make_trainer(tmp_path / "a", **fields)
    expected.train()
    trainer = make_trainer(tmp_path / "b", **fields, teacher_offload="cpu")
    offloaded = trainer._offloaded
    assert offloaded is not None
    hosted = {tensor.data_ptr() for tensor in offloaded._hosted}
    wrong: list[str] = []

    def look(where: str, on_device: bool) -> Any:
        def hook(*_: Any) -> None:
            if (trainer.teacher_model.lm_head.weight.data_ptr() not in hosted) != on_device:
                wrong.append(where)

        return hook

    trainer.teacher_model.model.register_forward_pre_hook(look("a forward of the teacher", True))
    trainer.model.lm_head.weight.register_hook(look("the backward pass", False))
    loss = trainer._compute_loss
    monkeypatch.setattr(trainer, "_compute_loss", lambda *a: (look("before the loss", False)(), loss(*a))[1])
    trainer.train()
    assert wrong == []
    assert (
        offloaded.loads == 2 + 2
    )  # rollouts of two steps with a budget, whose states are kept; two losses of the third
    assert all(log["trb/teacher_load_seconds"] > 0 for log in steps(trainer))
    assert logs(trainer) == logs(expected)
    for name, weight in weights(trainer).items():
        assert torch.equal(weight, weights(expected)[name]), name


def test_weights_that_left_their_device_take_no_memory_there() -> None:
    model = tiny_llama(0)
    model.lm_head.weight = model.model.embed_tokens.weight  # tied
    ids = torch.tensor([[5, 6, 7]])
    expected = model(ids).logits
    offloaded = OffloadedWeights([model], torch.device("cpu"))
    host = model.lm_head.weight.data_ptr()
    with offloaded.on_device(), offloaded.on_device():
        assert model.lm_head.weight is model.model.embed_tokens.weight
        on_device = torch.UntypedStorage._weak_ref(model.lm_head.weight.untyped_storage())  # type: ignore[attr-defined]
        assert model.lm_head.weight.data_ptr() != host
        assert torch.equal(model(ids).logits, expected)
    assert torch.UntypedStorage._expired(on_device)  # type: ignore[attr-defined]
    assert model.lm_head.weight.data_ptr() == host
    assert torch.equal(model(ids).logits, expected)
    assert offloaded.loads == 1


# ---- What is refused ----


def test_teachers_that_cannot_teach_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a PeftModel, got LlamaForCausalLM"):
        make_trainer(tmp_path, teacher="self")
    student = lora_student()
    with pytest.raises(ValueError, match="must share no parameter that is trained"):
        make_trainer(tmp_path, student, student.get_base_model())
    with pytest.raises(ValueError, match="none of its own"):
        make_trainer(tmp_path, student, self_teacher(student), teacher_offload="cpu")
    routed = {"teacher": mixture({"a": tiny_llama(1)}), "teacher_column": "domain"}
    with pytest.raises(ValueError, match="set remove_unused_columns=False"):
        make_trainer(tmp_path, **routed, remove_unused_columns=True)
    with pytest.raises(ValueError, match="'domain' is not among the columns prompt, answer"):
        make_trainer(tmp_path, **routed)
    rows = Dataset.from_list([{"prompt": "1+1=", "domain": "b"}] * 8)
    with pytest.raises(ValueError, match="must hold the label of a teacher, a, got 'b'"):
        make_trainer(tmp_path, rows=rows, **routed)
    held_out = {"right": Dataset.from_list([{"prompt": "1+1=", "domain": "a"}]), "wrong": rows}
    with pytest.raises(ValueError, match="must hold the label of a teacher, a, got 'b'"):
        make_trainer(tmp_path, rows=held_out["right"], held_out=held_out, **routed)
    with pytest.raises(ValueError, match="needs several teachers with labels"):
        make_trainer(tmp_path, teacher_column="domain")


def test_teachers_of_which_processes_would_wait_for_each_other_are_refused() -> None:
    student = lora_student()
    several, itself = mixture({"a": tiny_llama(1), "b": tiny_llama(2)}), self_teacher(student)
    plugins = ("fsdp_plugin", "deepspeed_plugin")
    sharded: Any = {name: SimpleNamespace(state=SimpleNamespace(**{name: object()})) for name in plugins}
    with pytest.raises(ValueError, match="teacher_column gives processes rows of different teachers"):
        prepare_teacher(several, sharded["fsdp_plugin"], routed=True)
    assert prepare_teacher(itself, sharded["fsdp_plugin"]) is itself
    for teacher, name in ((several, "Mixture"), (itself, "SelfTeacher")):
        with pytest.raises(ValueError, match=f"DeepSpeed the teacher must be one causal LM of its own, got a {name}"):
            prepare_teacher(teacher, sharded["deepspeed_plugin"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher_offload": "disk"}, "teacher_offload must be one of none, cpu"),
        ({"teachers": {"a": 3}}, "labels to models, both text"),
        ({"teachers": "a"}, "teachers must be a mapping"),
        ({"teachers": {"a": "x"}, "teacher_weights": {"b": 1}}, "must have the labels of teachers, a"),
        ({"teachers": {"a": "x"}, "teacher_weights": {"a": -1}}, "numbers >= 0"),
        ({"teachers": {"a": "x"}, "teacher_mean": "median"}, "teacher_mean must be one of geometric, arithmetic"),
        ({"teachers": {"a": "x"}, "teacher_model_name_or_path": "y"}, "takes the place of teacher_model_name_or_path"),
        ({"use_vllm": True, "teacher_model_name_or_path": "self"}, "use_vllm loads a teacher of its own, got 'self'"),
        ({"teacher_weights": {"a": 1}}, "teacher_weights belongs to several teachers"),
        ({"teachers": {"a": "x"}, "teacher_column": "c", "teacher_weights": {"a": 1}}, "leave teacher_weights out"),
    ],
)
def test_wrong_fields_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **fields)
