"""Decodes in lockstep: at every token both models see the same prefix, and a behavior policy draws the next token.

    token_t ~ mu( . | prompt, token_<t),   mu = pi_S^(1-beta) pi_T^beta / Z,   KL(mu || pi_S) <= epsilon

for the policy of arXiv 2605.31159; `rollout/policies.py` holds this policy and others. Each model has its own KV cache.
All rows of a left-padded batch are decoded together. Rows that have ended leave the batch at the next host read, so
that a long row does not pay for short ones.

Randomness: the policy says how many uniform numbers it needs per token and row of the original batch. All of them are
drawn before the first token. The draws of a row therefore do not depend on when other rows end, and the generator
advances by a fixed count of numbers (max_new_tokens * B for TRB), whatever the lengths of the completions. The first
uniform number of each token is the same for all policies.

Host reads: to read a GPU tensor from Python drains the queue of the GPU. The loop therefore reads one status per row,
and only at the tokens that `next_host_read` gives: 4 times in 16 tokens, 15 in 64, 51 in 1024, 275 in 8192. With SDPA
attention, transformers reads nothing while decoding either (its mask code would; see `CachedModel.advance`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.next_token import LogitsFunction, NextTokenModel, TopKTeacher
from ..teachers import Mixture, SelfTeacher
from ..vocab import Alignment
from .caches import lockstep_caches
from .decoding import Decoding
from .events import accepted_drafts, event_uniforms
from .host_reads import ENDED, FAULT, RUNNING, host_read, next_host_read, raise_fault
from .output import Rollout
from .policy import Policy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def lockstep(
    student: PreTrainedModel | NextTokenModel | LogitsFunction,
    teacher: PreTrainedModel | SelfTeacher | Mixture | NextTokenModel | LogitsFunction | None,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    epsilon: float | Tensor | None = None,
    policy: Policy | None = None,
    optimizer_step: int = 0,
    max_new_tokens: int,
    alignment: Alignment,
    pad_token_id: int,
    temperature: float = 1.0,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    teacher_states_limit: float = 0.0,
    check: bool = True,
) -> Rollout:
    """Completes a batch of prompts with tokens that the behavior policy draws.

    Args:
        student: A causal LM with a KV cache. It and the teacher run in eval mode without gradients, and get their
            training flags back afterwards: neither dropout nor gradient checkpointing reaches the rollout. Parameters
            that are sharded over processes (FSDP, ZeRO-3) must be gathered first, because each process decodes for as
            long as its own rows need. A model that is not from transformers is a `NextTokenModel`, or a function from
            ids to logits; nothing is checked of it but the shapes of its logits.
        teacher: Another causal LM on the same device, or likewise anything that yields logits; a `self_teacher` or a
            `mixture`. It may be None if the policy does not need it at `optimizer_step`, as with the float epsilon 0.
        input_ids: [B, P] int64, token ids of the prompts, left padded.
        attention_mask: [B, P], 1 for tokens and 0 for padding.
        epsilon: KL budget per token in nats, 0 to inf, or one per row, [B]. It is short for
            `policy=TrustRegion(epsilon)`: give one of the two. The float 0 samples the student without calling the
            teacher, with the same uniform numbers, so it is the limit of small budgets.
        policy: Draws the tokens.
        optimizer_step: 0-based, for policies that change over a run.
        max_new_tokens: Length limit of a completion, in tokens. A row ends earlier if it draws `alignment.stop`.
        alignment: The vocabulary that both models share (`trbext.align`).
        pad_token_id: The id that follows the end of a row.
        temperature: 1e-6 to 1e6, divides the logits of both models.
        generator: Of random numbers, on any device; None is the default generator of the device of the prompts. The
            same seed gives a bitwise equal rollout. A row depends only on its prompt, its index in the batch and the
            seed, up to the rounding of the models' own kernels, which may change with the batch size. A sequence has
            a generator of the CPU for each row, and a row then does not depend on its index either.
        teacher_states_limit: Bytes up to which `Rollout.teacher_states` are kept; 0 keeps none. If they would need
            more, `teacher_states` is None.
        check: Probe both models once, before they first decode (`model_check.py`: six small forwards each); False
            trusts them.

    Returns:
        The completions [B, T], with the log-probability of each token under the behavior policy and both models.

    Raises:
        UnsupportedModel: (a ValueError) the rollouts of a model would be wrong; names its class and the reason.
        ValueError: Shapes do not match; a mask is not left padded; a budget is negative or NaN; a policy needs a
            teacher and there is none; the temperature is out of range; models are on different devices; completions
            would outgrow `max_position_embeddings`.
        NonFiniteLogits: (a RuntimeError) logits hold NaN, +inf or nothing finite; names row, token and model.
        RuntimeError: A model has no KV cache.
    """
    return decode_in_lockstep(
        Decoding(
            student=student,
            teacher=teacher,
            prompts=input_ids,
            prompt_mask=attention_mask,
            epsilon=epsilon,
            given_policy=policy,
            optimizer_step=optimizer_step,
            max_new_tokens=max_new_tokens,
            alignment=alignment,
            pad_token_id=pad_token_id,
            temperature=temperature,
            generator=generator,
            teacher_states_limit=teacher_states_limit,
            check=check,
        )
    )


def decode_in_lockstep(decoding: Decoding) -> Rollout:
    """Returns the rollout of checked arguments; see `lockstep`."""
    if isinstance(decoding.teacher, TopKTeacher):
        raise ValueError("a top-k teacher has no lockstep: call trbext.speculative")
    # 1. Draw all random numbers, and make room for what the rollout records.
    prompts, prompt_mask, lengths = decoding.prompts, decoding.prompt_mask, decoding.lengths
    (batch, width), device, limit = prompts.shape, decoding.device, decoding.max_new_tokens
    policy, alignment, temperature = decoding.policy, decoding.alignment, decoding.temperature
    tokens = torch.zeros((batch, limit), dtype=torch.int64, device=device)
    values = torch.zeros((5, batch, limit), dtype=torch.float32, device=device)  # in the order of trbext.Sample
    of_events = event_uniforms(decoding.generator, limit, batch, device)
    uniforms = _uniforms(decoding)
    # 2. Of the rows still in the batch: index in the original batch, status, prompt length, mask of all columns.
    rows = torch.arange(batch, device=device)
    status = torch.full_like(rows, RUNNING)
    position = lengths.to(device)[:, None]
    mask = F.pad(prompt_mask, (0, limit), value=1)
    padded = bool((lengths < width).any())
    memory = policy.begin(batch, device)
    ends = torch.full_like(rows, limit)  # of all rows: tokens up to where the policy ends them
    read_at = next_host_read(0)
    with decoding.running() as states:
        # 3. Prefill both KV caches.
        caches = lockstep_caches(decoding)
        logits = [cached.prefill(prompts, prompt_mask) for cached in caches]
        for step in range(limit):
            # 4. Draw one token per row, and record it.
            if states is not None:
                states.keep(rows, torch.full_like(rows, step)[:, None], step + 1)
            aligned = [alignment.canonical(raw, temperature, in_place=True) for raw in logits]
            student_logits, teacher_logits = aligned[0], aligned[1] if decoding.teacher is not None else None
            given = (decoding.optimizer_step, student_logits, teacher_logits, uniforms[:, step, rows], temperature)
            if memory is None:
                drawn = policy.draw(*given)
            else:
                drawn, memory = policy.draw_after(memory, *given)
            token = drawn.token.long()
            tokens[rows, step] = token
            values[:, rows, step] = torch.stack(drawn[1:]).float()
            event = torch.where(token < 0, FAULT, (token == alignment.stop) * ENDED)
            if memory is not None and memory.ended is not None:
                event = torch.where(memory.ended & (event == RUNNING), ENDED, event)
                ends[rows] = torch.where(memory.ended, ends[rows].clamp(max=step + 1), ends[rows])
            status = torch.where(status == RUNNING, event, status)
            token = token.clamp(min=0)  # a row at fault continues with a harmless id until the next host read
            # 5. At a host read, stop if all rows have ended, and drop the rows that have.
            generated = step + 1
            if generated in (read_at, limit):
                state = host_read(status)
                raise_fault(state, rows, (prompts, prompt_mask), tokens, decoding.named_models)
                running = (state == RUNNING).nonzero()[:, 0]
                if len(running) == 0 or generated == limit:
                    break
                if len(running) < len(state) and all(cached.can_drop_rows for cached in caches):
                    lengths, keep = lengths[running], running.to(device)
                    padded = bool((lengths < width).any())
                    rows, status, position, mask, token = (x[keep] for x in (rows, status, position, mask, token))
                    policy = policy.keep_rows(keep)
                    memory = None if memory is None else memory.keep_rows(keep)
                    for cached in caches:
                        cached.keep_rows(keep)
                read_at = next_host_read(generated)
            # 6. Feed the tokens to both models.
            seen = mask[:, : width + generated] if padded else None
            logits = [cached.advance(token, position + step, seen) for cached in caches]
    # 7. Cut each row after its first stop token, or where the policy has ended it.
    stopped = tokens[:, :generated] == alignment.stop
    stopped &= torch.arange(generated, device=device) < ends[:, None]
    finished = stopped.any(1)
    completed = torch.where(finished, stopped.int().argmax(1) + 1, ends.clamp(max=generated))
    return Rollout.trim(
        tokens,
        values,
        completed,
        finished,
        pad_token_id=decoding.pad_token_id,
        teacher=decoding.teacher is not None,
        teacher_states=states,
        accepted=accepted_drafts(of_events.T[:, :generated], *values[:2, :, :generated]),
    )


def _uniforms(decoding: Decoding) -> Tensor:
    """Draws the policy's uniforms, those of the token first: [per token + per row, max_new_tokens, B] float64."""
    policy, batch, limit = decoding.policy, len(decoding.prompts), decoding.max_new_tokens
    planes = policy.uniforms_per_token
    uniforms = decoding.uniforms(planes * limit, batch).view(planes, limit, batch)
    if policy.uniforms_per_row:
        of_row = decoding.uniforms(policy.uniforms_per_row, batch)
        uniforms = torch.cat([uniforms, of_row[:, None].expand(-1, limit, -1)])
    return uniforms
