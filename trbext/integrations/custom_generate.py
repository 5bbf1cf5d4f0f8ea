"""Decodes blended rollouts inside transformers' `model.generate`, as its argument `custom_generate`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..models.unsharded import unsharded
from ..rollout import DraftLength, Policy, Rollout, speculative
from ..rollout.policies import as_policy
from ..rollout.speculative import check_draft_length
from ..vocab import Alignment, align
from .plain_sampling_checks import check_no_processors, check_plain_sampling

# What `generate` itself adds to the inputs of a model. All of it follows from the ids and their mask.
OF_GENERATE = {
    *("attention_mask", "position_ids", "cache", "past_key_values", "cache_position", "use_cache", "logits_to_keep"),
    "cache_params",  # transformers 5.5, for models named Mamba
    *("output_attentions", "output_hidden_states", "return_dict", "tokenizer", "synced_gpus"),
}
OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")  # that `generate` may return
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")  # of some tokenizers, all 0 for text
KEPT_CRITERIA = ("MaxLengthCriteria", "EosTokenCriteria")  # a rollout ends by them anyway


def blended_generate(
    teacher: Any,
    policy: Policy | float,
    *,
    alignment: Alignment | None = None,
    optimizer_step: int | Callable[[], int] = 0,
    draft_length: int | DraftLength = 0,
    generator: torch.Generator | None = None,
    on_rollout: Callable[[Rollout], None] | None = None,
) -> Callable[..., Any]:
    """Makes the argument `custom_generate` of `model.generate`, with which it draws from the blend with a teacher.

    The generation config must sample the whole softmax: `do_sample=True, top_k=0`, and have the EOS ids of the models,
    of which rows show the student's first one. Its temperature, `max_new_tokens`, pad id and `num_return_sequences` are
    used. Budgets of a policy and weights of a mixture that differ by row are given for each returned sequence, those of
    one prompt beside each other.

    Args:
        teacher: As of `trbext.lockstep`.
        policy: Draws the tokens; a number is the KL budget in nats per token of a `TrustRegion`.
        alignment: None aligns by the configurations of both models.
        optimizer_step: 0-based, for policies that change over a run; a function is asked at each call.
        draft_length: 0 decodes in lockstep; a number of drafts, or a `DraftLength`, by speculation.
        generator: Of random numbers.
        on_rollout: Gets each rollout, with the log-probabilities of its tokens under mu and both models, which a loss
            over sampled tokens needs.

    Returns:
        A function for `model.generate(..., custom_generate=function)`. It raises ValueError if the generation config, a
        logits processor or a stopping criterion would change what is sampled or where a row ends.

    Raises:
        ValueError: The budget is negative or NaN, or the draft length is none.
    """
    drawn = as_policy(policy)
    if not isinstance(draft_length, DraftLength):
        check_draft_length(draft_length)

    def generate(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any = (),
        stopping_criteria: Any = (),
        generation_config: Any = None,
        **inputs: Any,
    ) -> Any:
        # 1. Refuse what would draw from another distribution, read more than tokens, or stop for another reason.
        temperature = check_plain_sampling(generation_config)
        check_no_processors(logits_processor)
        for name in OUTPUTS if generation_config.return_dict_in_generate else ():
            if getattr(generation_config, name, None):
                kind = name.removeprefix("output_")
                raise ValueError(f"a blended rollout gives no {kind}, got {name}=True: see on_rollout")
        for name, given in inputs.items():
            if given is None or name in OF_GENERATE:
                continue
            if name not in TOKEN_TYPES or given.any():
                raise ValueError(f"a blended rollout reads token ids and their attention mask only, got {name}")
        for criterion in stopping_criteria:
            if type(criterion).__name__ not in KEPT_CRITERIA:
                raise ValueError(
                    f"a blended rollout ends at EOS ids and at max_new_tokens, got {type(criterion).__name__}"
                )
        aligned = alignment or align(model, teacher)
        stops = generation_config.eos_token_id
        stops = [] if stops is None else torch.as_tensor(stops).flatten().tolist()
        unknown = set(stops) - {*aligned.student_eos, *aligned.teacher_eos}
        if unknown:
            raise ValueError(
                f"eos_token_id {sorted(unknown)} of the generation config is no EOS id of either model, which are "
                f"{[aligned.stop, *aligned.duplicates]}"
            )
        missing = [stop for stop in aligned.student_eos if stop not in stops]
        if stops and missing:
            raise ValueError(
                f"a blended rollout ends at each EOS id of the student, {list(aligned.student_eos)}, and "
                f"eos_token_id of the generation config is {stops}: change it in the model's generation config"
            )
        # 2. Decode.
        # transformers would give a named argument twice if its own `_sample` does not name it.
        mask = inputs.get("attention_mask")
        mask = torch.ones_like(input_ids) if mask is None else mask
        pad = generation_config.pad_token_id
        pad = aligned.stop if pad is None else int(pad)
        with ExitStack() as whole:
            for each in (model, teacher):
                if isinstance(each, nn.Module):
                    whole.enter_context(unsharded(each))
            rollout = speculative(
                model,
                teacher,
                input_ids,
                mask,
                policy=drawn,
                optimizer_step=optimizer_step() if callable(optimizer_step) else optimizer_step,
                max_new_tokens=int(generation_config.max_length) - input_ids.shape[1],
                alignment=aligned,
                pad_token_id=pad,
                temperature=temperature,
                draft_length=draft_length,
                generator=generator,
            )
        if on_rollout is not None:
            on_rollout(rollout)
        # 3. Answer as `generate` does.
        sequences = torch.cat([input_ids, rollout.tokens], 1)
        if not generation_config.return_dict_in_generate:
            return sequences
        from transformers.generation.utils import GenerateDecoderOnlyOutput

        whole_sequences: Any = sequences
        return GenerateDecoderOnlyOutput(sequences=whole_sequences)

    return generate
