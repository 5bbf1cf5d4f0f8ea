"""Tests the start-up check of the models: what it accepts, what it refuses by name, and what it costs.

Each fault planted here gave wrong numbers without an error message, or a hang, before there was a check.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import trbext.models.model_check as model_check
from python_tests.models.tiny_models import prompts, tiny_llama, tiny_tokenizer
from python_tests.rollout.rollout_cases import PAD, PROMPTS, tiny
from trbext.models.completion_states import completion_states
from trbext.models.model_kind import check_whole
from trbext.models.precision import precision_observed
from trbext.rollout import UnsupportedModel, check_model, lockstep, speculative
from trbext.training.config import TRBConfig
from trbext.training.trainer import TRBTrainer
from trbext.vocab import Alignment, align

ALIGNMENT = Alignment(11, (2,), (2,))
SIZES: dict[str, Any] = {"vocab_size": 11, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2}


def roll(student: Any, teacher: Any, decode: Any = lockstep, **kwargs: Any) -> Any:
    defaults = {"epsilon": 0.1, "max_new_tokens": 14, "alignment": ALIGNMENT, "pad_token_id": PAD}
    return decode(student, teacher, *PROMPTS, generator=torch.Generator().manual_seed(0), **{**defaults, **kwargs})


def sharpened(model: Any) -> Any:
    """Sharpens the weights, because fresh weights hardly tell one prefix from another."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 8
    return model.double().eval()


def mamba() -> Any:
    return sharpened(MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=8, **SIZES)))


def phi3(original: int = 16, **changed: Any) -> Any:
    factors = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Phi3Config(
        **{**sizes, **SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64, **changed},
        original_max_position_embeddings=original,
        rope_parameters={**factors, "rope_theta": 1e4, "original_max_position_embeddings": original},
    )
    return sharpened(Phi3ForCausalLM(config))


# What is served.


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_loss_scores_a_left_padded_row_as_the_row_by_itself(family: str) -> None:
    model = tiny(family)
    padded, mask = torch.tensor([[0, 0, 0, 5, 6, 7], [3, 4, 5, 6, 7, 8]]), torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6])
    with torch.no_grad():
        states = completion_states(model, padded, mask, 2)
        alone = model.base_model(input_ids=padded[:1, 3:])[0][:, :2]
    assert (states[0] - alone[0]).abs().max() < 1e-12
    trainer = TRBTrainer.__new__(TRBTrainer)
    assert torch.equal(trainer._get_last_hidden_state(model, padded, mask, 2), states)


def test_rows_that_end_early_keep_their_places_in_the_loss() -> None:
    model = tiny("gpt2")
    ids = torch.tensor([[0, 3, 4, 5, 6, 0], [7, 8, 9, 10, 3, 4]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 0], [1] * 6])
    with torch.no_grad():
        states = completion_states(model, ids, mask, 3)
        alone = model.base_model(input_ids=ids[:1, 1:5])[0][0]
    assert (states[0, :2] - alone[1:3]).abs().max() < 1e-12  # the tokens at columns 3 and 4; column 5 is padding


def test_a_recurrent_student_is_called_as_its_own_generate_calls_it() -> None:
    student, teacher = mamba(), tiny(seed=2)
    rollout = roll(student, teacher)
    for row in range(len(PROMPTS[0])):
        prompt = PROMPTS[0][row][PROMPTS[1][row].bool()]
        length = int(rollout.lengths[row])
        sequence = torch.cat([prompt, rollout.tokens[row, :length]])
        with torch.no_grad():
            logits = student(input_ids=sequence[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, rollout.tokens[row, :length, None])[:, 0]
        assert (rollout.student_log_prob[row, :length] - expected).abs().max() < 1e-4  # its scan is float32


def test_a_switch_of_rotary_factors_is_refused_if_a_row_crosses_it_and_served_if_none_does() -> None:
    for decode, options in ((lockstep, {}), (speculative, {"draft_length": 3})):
        with pytest.raises(UnsupportedModel, match=r"student Phi3ForCausalLM rotates .* past 16 tokens.*got 20"):
            roll(phi3(), tiny(seed=2), decode, **options)
        assert roll(phi3(20), tiny(seed=2), decode, **options).tokens.shape[0] == 6


def test_a_window_wider_than_the_probe_is_crossed_when_rows_grow_past_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MistralConfig(**sizes, **SIZES, num_key_value_heads=2, max_position_embeddings=64, sliding_window=12)
    student = sharpened(MistralForCausalLM(config))
    asked: list[int] = []
    fault = model_check._decoding_fault
    monkeypatch.setattr(
        model_check, "_decoding_fault", lambda model, scored, at: asked.append(at) or fault(model, scored, at)
    )
    for new in (4, 4, 10, 10):
        roll(student, None, epsilon=0.0, max_new_tokens=new)
    assert asked == [0, 12]  # each question once


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rounding_is_no_fault(family: str, dtype: torch.dtype) -> None:
    for seed in range(3):
        check_model(tiny(family, seed=seed, dtype=dtype), "student", loss=True)


def test_the_probe_knows_half_precision_inside_a_forward() -> None:
    model = tiny(dtype=torch.float32)
    plain = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return plain(*args, **kwargs)

    model.forward = forward  # as accelerate wraps a model that trains in bf16
    check_model(model, "student")


def test_a_precision_that_torch_has_no_old_word_for_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise RuntimeError("mix of the legacy and new APIs")  # after torch.backends.fp32_precision = "tf32"

    monkeypatch.setattr(torch, "get_float32_matmul_precision", unknown)
    model = tiny(dtype=torch.float32)
    check_model(model, "student")
    with precision_observed(model) as precise:
        assert precise == [False]


# What is refused.


class CountsColumns(GPT2LMHeadModel):
    def forward(self, *args: Any, position_ids: Tensor | None = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class LooksAhead(LlamaForCausalLM):
    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        output = super().forward(input_ids, **kwargs)
        output.logits = output.logits + input_ids.sum(1)[:, None, None] * torch.linspace(-1, 1, 11)
        return output


class ScalesItsHead(LlamaForCausalLM):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 1.5
        return output


@pytest.mark.parametrize(
    ("model_class", "reason"),
    [
        (CountsColumns, "cannot be decoded: from a cache, a left-padded row gets other logits, by"),
        (LooksAhead, "gives a row other logits when tokens follow it, by .* it is not causal"),
        (ScalesItsHead, "makes logits of its hidden states by more than its lm_head"),
    ],
)
def test_a_model_that_would_give_wrong_numbers_is_refused_by_class_and_reason(model_class: Any, reason: str) -> None:
    model = tiny("gpt2" if model_class is CountsColumns else "llama", seed=1)
    model.__class__ = model_class
    for _ in range(2):  # a result is kept, and so is a refusal
        with pytest.raises(UnsupportedModel, match=f"the teacher {model_class.__name__} {reason}") as error:
            check_model(model, "teacher", loss=True)
    assert "\n" not in str(error.value)
    if model_class is CountsColumns:
        with pytest.raises(UnsupportedModel, match="the teacher CountsColumns"):
            roll(tiny(seed=2), model)
        roll(tiny(seed=2), model, check=False)


@pytest.mark.parametrize("kind", ["masked", "encoder-decoder", "meta", "prompt-tuned"])
def test_kinds_that_write_no_rollouts_are_refused_by_name(kind: str) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    if kind == "masked":
        model = sharpened(BertForMaskedLM(BertConfig(**sizes, **SIZES | {"vocab_size": 64})))
        message = "the teacher BertForMaskedLM .* it is not causal"
    elif kind == "encoder-decoder":
        config = T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8, **SIZES, decoder_start_token_id=0)
        model = T5ForConditionalGeneration(config)
        message = "the teacher T5ForConditionalGeneration is an encoder-decoder"
    elif kind == "meta":
        model, message = tiny().to("meta"), "the teacher LlamaForCausalLM is on the meta device: load its weights"
    else:
        peft = pytest.importorskip("peft")
        task = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        model, message = peft.get_peft_model(tiny(), task), "the teacher LlamaForCausalLM is prompt-tuned"
    for decode, options in ((lockstep, {}), (speculative, {"draft_length": 2})):
        with pytest.raises(UnsupportedModel, match=message):
            roll(tiny(), model, decode, **options)
    with pytest.raises(UnsupportedModel, match=message):
        trainer_of(tiny_llama(), model)


def trainer_of(student: Any, teacher: Any, **fields: Any) -> TRBTrainer:
    args = TRBConfig("unused", use_cpu=True, bf16=False, max_completion_length=4, save_strategy="no", **fields)
    return TRBTrainer(student, teacher, args, prompts(8), processing_class=tiny_tokenizer())


def test_teacher_and_student_share_no_weights() -> None:
    student = tiny_llama()
    with pytest.raises(ValueError, match=r"must share no parameter that is trained.*load the teacher a second time"):
        trainer_of(student, student)
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(student, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="holds its adapters as well"):
        trainer_of(adapted, student)
    tied = tiny_llama(1)
    tied.model.embed_tokens.weight = tiny_llama(2).model.embed_tokens.weight.requires_grad_(False)
    trainer_of(tiny_llama(3), tied)


def test_the_trainer_checks_both_models_at_construction_unless_told_not_to() -> None:
    for position in range(2):
        models = [tiny_llama(1, layers=2), tiny_llama(2)]
        models[position].__class__ = ScalesItsHead
        with pytest.raises(UnsupportedModel, match=f"the {('student', 'teacher')[position]} ScalesItsHead makes"):
            trainer_of(*models)
        trainer_of(*models, check_models=False)


def test_adapters_count_and_a_head_under_an_adapter_is_refused() -> None:
    peft = pytest.importorskip("peft")

    def adapted(*targets: str) -> Any:
        config = peft.LoraConfig(r=2, target_modules=[*targets], init_lora_weights=False)
        return peft.get_peft_model(tiny(), config)

    check_model(adapted("q_proj", "v_proj"), "student", loss=True)
    with pytest.raises(UnsupportedModel, match="LlamaForCausalLM makes logits of its hidden states by more than"):
        check_model(adapted("lm_head"), "student", loss=True)


def test_a_soft_cap_is_part_of_the_head_whatever_its_name() -> None:
    config = RecurrentGemmaConfig(
        **SIZES, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, lru_width=16,
        num_key_value_heads=1, head_dim=8, attention_window_size=4, logits_soft_cap=2.0,
    )  # fmt: skip
    check_model(sharpened(RecurrentGemmaForCausalLM(config)), "student", loss=True, decode=False)


def test_models_that_give_no_finite_logits_are_left_to_the_rollout() -> None:
    model = tiny(seed=1)
    model.lm_head.weight.data.fill_(torch.nan)
    check_model(model, "student", loss=True)
    with pytest.raises(RuntimeError, match="row 0, token 0: no token can be drawn"):
        roll(model, tiny(seed=2))


@pytest.mark.parametrize(
    ("question", "failing"), [("decode", 0), ("decode", 1), ("decode", 2), ("loss", 0), ("loss", 1)]
)
def test_a_check_that_runs_out_of_memory_says_nothing_of_the_model(question: str, failing: int) -> None:
    """In any of its forwards."""
    model, calls = tiny(seed=1), itertools.count()

    def fail(*_: Any) -> None:
        if next(calls) == failing:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = model.model.register_forward_pre_hook(fail)
    asked = {"loss": question == "loss", "decode": question == "decode"}
    with pytest.raises(torch.OutOfMemoryError):
        check_model(model, "student", **asked)
    hook.remove()
    check_model(model, "student", **asked)


def test_wrapped_models_align_and_decode_as_the_model_inside() -> None:
    student, teacher = tiny(seed=1), tiny(seed=2)
    wrapped = nn.Module()
    wrapped.module, wrapped.forward = student, student.forward  # as DistributedDataParallel holds it
    assert align(wrapped, teacher) == align(student, teacher)
    assert torch.equal(roll(wrapped, teacher).tokens, roll(student, teacher).tokens)


def test_positions_too_few_for_the_probe_are_no_fault() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=4, **SIZES)).eval()
    check_model(model, "student", loss=True)


def test_a_check_takes_few_small_forwards_and_only_once() -> None:
    model = tiny()
    seen: list[int] = []
    model.model.register_forward_hook(lambda _, __, output: seen.append(output[0].shape[:2].numel()))
    check_model(model, "student", loss=True)
    assert len(seen) <= 9
    assert sum(seen) <= 60  # tokens
    check_model(model, "student", loss=True)
    assert len(seen) <= 9


def test_weights_under_fsdp_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    import trbext.models.model_kind as model_kind

    monkeypatch.setattr(model_kind, "FSDPModule", LlamaForCausalLM)
    monkeypatch.setattr(model_kind, "DTensor", Tensor)
    with pytest.raises(UnsupportedModel, match=r"is sharded by FSDP2, .* decode inside trbext.rollout.unsharded"):
        roll(tiny(), None, epsilon=0.0)


def test_shards_of_other_kinds_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    check_whole(model, "student")
    weight = model.lm_head.weight
    weight.ds_id = 0  # DeepSpeed marks every weight of ZeRO-3, and empties those that are on other processes
    check_whole(model, "student")
    weight.data = torch.empty(0)
    with pytest.raises(UnsupportedModel, match="the student LlamaForCausalLM is sharded by DeepSpeed ZeRO-3"):
        check_whole(model, "student")
    monkeypatch.setattr("trbext.models.model_kind.FullyShardedDataParallel", torch.nn.Embedding)
    with pytest.raises(UnsupportedModel, match="the teacher LlamaForCausalLM is sharded by FSDP1"):
        check_whole(tiny_llama(), "teacher")
