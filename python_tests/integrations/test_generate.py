"""`generate` with trbext draws from mu exactly, and refuses options that would change what is sampled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from python_tests.models.tiny_models import EOS, PAD, tiny_llama
from python_tests.rollout.rollout_cases import left_padded
from trbext import FixedBeta, Rollout, TrustRegion, mixture, reference, speculative
from trbext.integrations import BlendLogitsProcessor, blended_generate
from trbext.integrations.plain_sampling_checks import PLAIN
from trbext.vocab import align

PROMPTS = left_padded([5, 6, 7], [8], [9, 10, 11, 12])
TEMPERATURE = 0.8
SETTINGS: dict[str, Any] = {
    "do_sample": True,
    "top_k": 0,
    "temperature": TEMPERATURE,
    "max_new_tokens": 9,
    "pad_token_id": PAD,
}

# Fields of a generation config that say how tokens are searched, kept or returned, and not from which law one is drawn.
HARMLESS = {
    *("assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight", "assistant_lookbehind"),
    *(
        "bos_token_id",
        "cache_config",
        "cache_implementation",
        "compile_config",
        "constraints",
        "decoder_start_token_id",
    ),
    *("continuous_batching_config", "disable_compile", "diversity_penalty", "early_stopping", "eos_token_id"),
    *("force_words_ids", "is_assistant", "length_penalty", "low_memory", "max_cache_len", "max_length"),
    *("max_matching_ngram_size", "max_new_tokens", "num_assistant_tokens", "num_assistant_tokens_schedule"),
    *("num_beam_groups", "num_return_sequences", "output_attentions", "output_hidden_states", "output_logits"),
    *("output_scores", "pad_token_id", "penalty_alpha", "prefill_chunk_size", "prompt_lookup_num_tokens"),
    *("remove_invalid_values", "renormalize_logits", "return_dict_in_generate", "speculation_type"),
    *("target_lookbehind", "token_healing", "transformers_version", "use_cache", "use_mtp"),
}


def generated(student: Any, **settings: Any) -> Any:
    return student.generate(PROMPTS[0], attention_mask=PROMPTS[1], **settings)


@pytest.mark.parametrize("draft_length", [0, 3])
def test_a_custom_generate_is_the_rollout_of_its_generator(draft_length: int) -> None:
    student, teacher = tiny_llama(0), tiny_llama(1, eos=[EOS, 2])
    expected = speculative(
        student,
        teacher,
        *PROMPTS,
        epsilon=0.3,
        max_new_tokens=9,
        alignment=align(student, teacher),
        pad_token_id=PAD,
        temperature=TEMPERATURE,
        generator=torch.Generator().manual_seed(1),
        draft_length=draft_length,
    )
    blended = blended_generate(teacher, 0.3, draft_length=draft_length, generator=torch.Generator().manual_seed(1))
    ids = generated(student, custom_generate=blended, **SETTINGS)
    assert torch.equal(ids, torch.cat([PROMPTS[0], expected.tokens], 1))
    whole = generated(
        student, custom_generate=blended, return_dict_in_generate=True, num_return_sequences=2, **SETTINGS
    )
    assert len(whole.sequences) == 6


def test_the_optimizer_step_of_a_policy_is_asked_at_each_call() -> None:
    student, asked = tiny_llama(0), []

    class Asked(FixedBeta):
        def draw(self, step: int, *args: Any) -> Any:
            asked.append(step)
            return super().draw(step, *args)

    steps = iter([3, 7])
    blended = blended_generate(tiny_llama(1), Asked(0.5), optimizer_step=lambda: next(steps))
    for _ in range(2):
        generated(student, custom_generate=blended, **SETTINGS)
    assert set(asked) == {3, 7}


@pytest.mark.parametrize("several", [False, True])
def test_a_logits_processor_gives_generate_the_blend_at_its_temperature(several: bool) -> None:
    student, one = tiny_llama(0), tiny_llama(1)
    teacher: Any = mixture([one, tiny_llama(2)], [0.5, 0.5]) if several else one
    epsilon = torch.tensor([0.3, 0.0, 0.05])
    config = GenerationConfig(**SETTINGS)
    processor = BlendLogitsProcessor(
        teacher,
        epsilon.double(),
        student=student,
        alignment=align(student, teacher),
        generation_config=config,
        attention_mask=PROMPTS[1],
    )
    for _ in range(2):  # a second batch begins anew
        torch.manual_seed(2)
        output = generated(
            student,
            generation_config=config,
            logits_processor=[processor],
            output_scores=True,
            return_dict_in_generate=True,
        )
    width = PROMPTS[0].shape[1]
    checked = 0
    for row in range(3):
        ids = output.sequences[row][
            PROMPTS[1].new_ones(width).bool().logical_and(PROMPTS[1][row].bool()).nonzero()[0, 0] :
        ]
        prompt = int(PROMPTS[1][row].sum())
        for step, scores in enumerate(output.scores):
            prefix = ids[None, : prompt + step]
            if EOS in prefix[0, prompt:]:
                break
            logits = [model(prefix).logits[0, -1:] for model in (student, one)]
            if several:
                logits[1] = 0.5 * logits[1] + 0.5 * teacher.teachers[1](prefix).logits[0, -1:]
            law = reference.blend(*logits, float(epsilon[row]), temperature=TEMPERATURE).log_probs
            torch.testing.assert_close(scores[row].log_softmax(-1).double(), law[0], rtol=1e-3, atol=1e-3)
            checked += 1
    assert checked > 12


def test_a_padding_id_that_the_teacher_does_not_have_may_follow_the_end_of_a_row() -> None:
    student, teacher = tiny_llama(0, vocab_size=65), tiny_llama(1)
    prompts, mask = (part.repeat(8, 1) for part in PROMPTS)

    def drawn(pad: int) -> torch.Tensor:
        config = GenerationConfig(**SETTINGS | {"pad_token_id": pad, "max_new_tokens": 30})
        processor = BlendLogitsProcessor(
            teacher,
            0.3,
            student=student,
            alignment=align(student, teacher),
            generation_config=config,
            attention_mask=mask,
        )
        torch.manual_seed(2)
        ids: torch.Tensor = student.generate(
            prompts, attention_mask=mask, generation_config=config, logits_processor=[processor]
        )
        return ids[:, prompts.shape[1] :]

    usual, beyond = drawn(PAD), drawn(64)
    assert (beyond == 64).any()
    assert torch.equal(beyond.masked_fill(beyond == 64, PAD), usual)


def test_options_that_change_what_is_sampled_are_refused() -> None:
    student, teacher = tiny_llama(0), tiny_llama(1)
    for changed, message in [
        ({"top_k": 25}, "top_k=25"),
        ({"top_p": 0.9}, "top_p=0.9"),
        ({"repetition_penalty": 1.1}, r"repetition_penalty=1\.1"),
        ({"do_sample": False}, "set do_sample=True"),
        ({"eos_token_id": 9}, r"eos_token_id \[9\] of the generation config is no EOS id of either model"),
        ({"logits_processor": LogitsProcessorList([_Other()])}, "the logits processor _Other would change it"),
        ({"max_time": 1.0}, "max_time=1.0"),
        ({"top_h": 0.4}, "top_h=0.4 changes the distribution .*: leave it out, here and in the model's"),
        ({"exponential_decay_length_penalty": (2, 1.1)}, "exponential_decay_length_penalty"),
        *(
            ({f"output_{name}": True, "return_dict_in_generate": True}, f"gives no {name}, .*: see on_rollout")
            for name in ("scores", "logits", "attentions", "hidden_states")
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            generated(student, custom_generate=blended_generate(teacher, 0.1), **SETTINGS | changed)
    with pytest.raises(ValueError, match=r"got -0\.1"):
        blended_generate(teacher, -0.1)
    for policy in ("0.1", [0.1], torch.tensor([0.1])):
        with pytest.raises(ValueError, match=r"policy must be a trbext.rollout.Policy or a number, its KL budget, got"):
            blended_generate(teacher, policy)  # type: ignore[arg-type]
    for length in (-1, 2.5):
        with pytest.raises(ValueError, match=f"draft_length must be .*, got {length}"):
            blended_generate(teacher, 0.1, draft_length=length)  # type: ignore[arg-type]
    generated(student, custom_generate=blended_generate(teacher, np.float32(0.1)), **SETTINGS)  # type: ignore[arg-type]


def test_eos_ids_that_would_not_end_a_row_alone_are_refused() -> None:
    student, teacher = tiny_llama(0), tiny_llama(1, eos=[EOS, 2])
    with pytest.raises(
        ValueError, match=rf"ends at each EOS id of the student, \[{EOS}\], and eos_token_id .* is \[2\]"
    ):
        generated(student, custom_generate=blended_generate(teacher, 0.1), **SETTINGS, eos_token_id=2)


def test_a_logits_processor_refuses_what_generate_would_take_from_the_model() -> None:
    student = tiny_llama(0)

    def processor(
        config: GenerationConfig, epsilon: float | torch.Tensor = 0.1, teacher: Any = None
    ) -> BlendLogitsProcessor:
        teacher = teacher or tiny_llama(1)
        return BlendLogitsProcessor(
            teacher, epsilon, student=student, alignment=align(student, teacher), generation_config=config
        )

    whole = GenerationConfig(**SETTINGS)
    for unset, message in [("top_k", "generate takes 50 .* set top_k=0"), ("do_sample", "set do_sample=True")]:
        config = GenerationConfig(**{name: value for name, value in SETTINGS.items() if name != unset})
        with pytest.raises(ValueError, match=message):
            processor(config)
    with pytest.raises(ValueError, match=r"same EOS id, got \[1, 2\]"):
        processor(whole, teacher=tiny_llama(1, eos=2))
    for epsilon in (-0.1, torch.tensor([0.3, -0.1, 0.05]), torch.tensor([0.3, torch.nan])):
        with pytest.raises(ValueError, match=r"epsilon must be .*got (-0\.1|nan)"):
            processor(whole, epsilon)
    # What the model's own generation config has, `generate` takes for what this one leaves open.
    left = GenerationConfig(do_sample=True, top_k=0)
    assert processor(left).temperature == 1
    student.generation_config.temperature = 0.6
    assert processor(left).temperature == 0.6
    assert processor(whole).temperature == TEMPERATURE
    student.generation_config.top_p = 0.8
    with pytest.raises(ValueError, match=r"top_p=0\.8 changes the distribution"):
        processor(left)
    assert processor(GenerationConfig(do_sample=True, top_k=0, top_p=1.0)).temperature == 0.6


def test_a_logits_processor_checks_its_teacher_before_it_decodes() -> None:
    student, teacher = tiny_llama(0), tiny_llama(1)
    config = GenerationConfig(**SETTINGS | {"max_new_tokens": 60})
    processor = BlendLogitsProcessor(
        teacher, 0.1, student=student, alignment=align(student, teacher), generation_config=config
    )
    with pytest.raises(ValueError, match="the teacher has 64 positions, but the longest prompt"):
        processor(torch.ones((1, 5), dtype=torch.int64), torch.zeros((1, 64)))
    with pytest.raises(ValueError, match="input_ids must be of the 64 ids that the teacher embeds"):
        processor(torch.full((1, 2), 64), torch.zeros((1, 64)))


def masked(student: Any, teacher: Any, mask: torch.Tensor) -> BlendLogitsProcessor:
    return BlendLogitsProcessor(
        teacher,
        0.3,
        student=student,
        alignment=align(student, teacher),
        generation_config=GenerationConfig(**SETTINGS),
        attention_mask=mask,
    )


def test_a_mask_of_other_prompts_is_refused() -> None:
    student, teacher = tiny_llama(0), tiny_llama(1)
    (ids, mask), scores = PROMPTS, torch.zeros((3, 64))
    processor = masked(student, teacher, mask)
    first = processor(ids, scores)
    assert torch.equal(processor(ids, scores), first)  # the same batch once more
    longer = torch.cat([ids, ids[:, :2]], 1)
    processor(longer, scores)  # after tokens that were taken back, as by a draft model
    for others in (ids + 1, longer + 1):
        with pytest.raises(ValueError, match="attention_mask must be that of the prompts, got others: make one"):
            processor(others, scores)
    with pytest.raises(ValueError, match=r"one shape \[B, P\] .*, got \[3, 6\] and \[3, 4\]"):
        masked(student, teacher, mask)(longer, scores)
    for wrong in (mask.flip(1), mask * 0):
        with pytest.raises(ValueError, match="attention_mask must be left padded"):
            masked(student, teacher, wrong)(ids, scores)


def first_scores(
    student: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, processor: BlendLogitsProcessor, returned: int
) -> torch.Tensor:
    """Returns the scores [B * returned, V] from which `generate` draws the first tokens."""
    output = student.generate(
        ids,
        attention_mask=mask,
        generation_config=GenerationConfig(**SETTINGS, num_return_sequences=returned),
        logits_processor=[processor],
        output_scores=True,
        return_dict_in_generate=True,
    )
    scores: torch.Tensor = output.scores[0]
    return scores


def test_a_mask_is_repeated_for_each_returned_sequence() -> None:
    student, teacher = tiny_llama(0), tiny_llama(1)
    rows = [part.repeat_interleave(2, 0) for part in PROMPTS]
    found = [
        first_scores(student, ids, mask, masked(student, teacher, mask), each)
        for ids, mask, each in ((*PROMPTS, 2), (*rows, 1))
    ]
    torch.testing.assert_close(*found)
    with pytest.raises(ValueError, match=r"got \[6, 4\] and \[3, 4\]"):  # prompts of six
        masked(student, teacher, PROMPTS[1])(PROMPTS[0].repeat(2, 1), torch.zeros((6, 64)))


@pytest.mark.parametrize("with_mask", [True, False])
def test_budgets_are_repeated_for_each_returned_sequence(with_mask: bool) -> None:
    student, teacher = tiny_llama(0), tiny_llama(1)
    ids, mask = PROMPTS[0][:, -1:], torch.ones_like(PROMPTS[1][:, -1:])
    budgets = torch.tensor([0.0, 0.2, 2.0])
    firsts = []
    for each in (1, 2):
        config = GenerationConfig(**SETTINGS, num_return_sequences=each)
        processor = BlendLogitsProcessor(
            teacher,
            budgets,
            student=student,
            alignment=align(student, teacher),
            generation_config=config,
            attention_mask=mask if with_mask else None,
        )
        for _ in range(2):  # a second batch begins anew
            scores = first_scores(student, ids, mask, processor, each)
        firsts.append(scores)
    torch.testing.assert_close(firsts[0].repeat_interleave(2, 0), firsts[1])


@pytest.mark.parametrize("every", [1, 2])  # weights for each returned sequence, or for each prompt
def test_weights_of_a_mixture_are_repeated_for_each_returned_sequence(every: int) -> None:
    student, teachers = tiny_llama(0), [tiny_llama(1), tiny_llama(2)]
    weights = torch.tensor([[1.0, 0.0], [0.3, 0.7], [0.0, 1.0]]).repeat_interleave(2, 0)
    rows = [part.repeat_interleave(2, 0) for part in PROMPTS]
    found = [
        first_scores(student, ids, mask, masked(student, mixture(teachers, of_rows), mask), returned)
        for (ids, mask), returned, of_rows in ((PROMPTS, 2, weights[::every]), (rows, 1, weights))
    ]
    torch.testing.assert_close(*found)


def test_rows_of_a_blended_generate_have_their_own_budgets_and_weights() -> None:
    student, teachers = tiny_llama(0), [tiny_llama(1), tiny_llama(2)]
    rollouts: list[Rollout] = []
    budgets = torch.tensor([0.0, 0.01, 0.1, 0.0, 0.3, 0.02])
    blended = blended_generate(mixture(teachers, torch.rand(6, 2)), TrustRegion(budgets), on_rollout=rollouts.append)
    generated(student, custom_generate=blended, num_return_sequences=2, **SETTINGS)
    spent = rollouts[0].kl.amax(1)
    assert (spent <= budgets * (1 + 1e-4) + 1e-7).all()
    assert (spent[budgets > 0] > 0).all()


def test_every_field_of_a_generation_config_is_plain_or_changes_no_distribution() -> None:
    """A field that transformers adds must be sorted: one that warps the logits and is not known is not refused."""
    known = {*PLAIN, "temperature", "do_sample", *HARMLESS}
    fields = {name for name in GenerationConfig().to_dict() if not name.startswith("_")}
    assert not fields - known


def test_inputs_that_a_rollout_would_not_read_are_refused() -> None:
    student = tiny_llama(0)
    blended = blended_generate(tiny_llama(1), 0.1)
    config = GenerationConfig(**SETTINGS, max_length=20)
    with pytest.raises(ValueError, match="reads token ids and their attention mask only, got pixel_values"):
        blended(student, PROMPTS[0], generation_config=config, pixel_values=torch.zeros(1))
    assert blended(student, PROMPTS[0], generation_config=config, token_type_ids=None, pixel_values=None).shape[0] == 3
    # transformers 5.5 calls the cache of models named Mamba so.
    assert blended(student, PROMPTS[0], generation_config=config, cache_params=object()).shape[0] == 3
    with pytest.raises(ValueError, match="got mm_token_type_ids"):
        blended(student, PROMPTS[0], generation_config=config, mm_token_type_ids=torch.ones_like(PROMPTS[0]))


class _Other:
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores


def test_top_k_left_by_a_generation_config_is_refused() -> None:
    student = tiny_llama(0)
    settings = {name: value for name, value in SETTINGS.items() if name != "top_k"}
    for top_k in (None, 20):  # transformers takes 50 if nobody sets it
        student.generation_config.top_k = top_k
        with pytest.raises(ValueError, match=f"top_k={top_k or 50} changes the distribution .* set top_k=0"):
            generated(student, custom_generate=blended_generate(tiny_llama(1), 0.1), **settings)
