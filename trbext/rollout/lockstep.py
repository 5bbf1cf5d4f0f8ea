"""Lockstep decoding: at every step both models see the same prefix, and a behavior policy draws the next token.

    token_t ~ mu( . | prompt, token_<t),   mu = pi_S^(1-beta) pi_T^beta / Z,   KL(mu || pi_S) <= epsilon

for the policy of arXiv 2605.31159; `rollout/policies.py` has it and others. Each model keeps its own KV cache; the rows
of a left-padded batch share one clock. Rows that have ended leave the batch at the next host read, so a long row does
not pay for short ones.

Randomness: as many uniforms per step and row of the original batch as the policy takes, all drawn before the first
step. A row's draws do not depend on when other rows end, and the generator moves on by a fixed count of numbers
(max_new_tokens * B for TRB) however long completions get. The first uniform of each token is the same for all policies.

Host reads: reading a GPU tensor from Python drains the GPU's queue, so the loop reads one status per row, and only
where `next_host_read` says: 4 times in 16 tokens, 15 in 64, 51 in 1024, 275 in 8192. With SDPA attention transformers
itself reads nothing either while decoding (its mask code would; see `CachedModel.advance`).
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.cached_model import CachedModel
from ..models.eval_mode import evaluating
from ..models.model_check import probe_models
from ..vocab import Alignment
from .checks import check_epsilon, check_models, check_prompts
from .hidden_states import HiddenStates
from .host_reads import ENDED, FAULT, RUNNING, host_read, next_host_read, raise_fault
from .output import Rollout
from .policies import Policy, TrustRegion

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def lockstep(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
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
    generator: torch.Generator | None = None,
    teacher_states_limit: float = 0.0,
    check: bool = True,
) -> Rollout:
    """Completions of a batch of prompts, drawn from the behavior policy.

    student, teacher: causal LMs with a KV cache, on one device. Both run in eval mode without gradients and get their
        training flags back afterwards, so neither dropout nor gradient checkpointing reaches the rollout. Parameters
        sharded over processes (FSDP, ZeRO-3) must be gathered first: each process decodes as long as its own rows need.
    input_ids, attention_mask: [B, P], left padded.
    epsilon: KL budget per token in nats, 0 to inf, or one per row, [B]. The float 0 is pure student sampling: the
        teacher is never called and may be None. It uses the same uniforms, so it is the limit of small budgets. Short
        for `policy=TrustRegion(epsilon)`; give one of the two.
    policy: who draws the tokens. The teacher may be None where the policy does not need it at `optimizer_step`.
    optimizer_step: 0-based, for policies that change over a run.
    max_new_tokens: length limit of a completion. A row ends earlier when it draws `alignment.stop`.
    alignment: the vocabulary both models share (`trbext.vocab.align`).
    temperature: > 0, divides both models' logits.
    generator: on any device; None is the default generator of the prompts' device. The same seed gives a bitwise equal
        rollout. A row's rollout depends on its prompt, its index in the batch and the seed alone, up to the rounding of
        the models' own kernels, which may change with the batch size.
    teacher_states_limit: bytes up to which `Rollout.teacher_states` are kept; 0 keeps none, and beyond it there are
    none.

    check: probe both models once, the first time they decode (`model_check.py`: six small forwards each); False
        trusts them.

    UnsupportedModel (a ValueError): a model whose rollouts would be wrong, by its class and the reason.
    ValueError: shapes; a mask that is not left padding; a negative or NaN budget; no teacher for a policy that needs
        one; models on different devices; completions that would outgrow `max_position_embeddings`.
    RuntimeError: a model without a KV cache; logits with NaN, +inf or nothing finite, naming row, step and model.
    """
    if (epsilon is None) == (policy is None):
        raise ValueError(f"give epsilon or policy, one of the two, got epsilon = {epsilon} and policy = {policy}")
    if epsilon is not None:
        check_epsilon(epsilon, input_ids)
        policy = TrustRegion(epsilon.to(input_ids.device, torch.float32) if isinstance(epsilon, Tensor) else epsilon)
    assert policy is not None
    asks_teacher = policy.needs_teacher(optimizer_step)
    if teacher is None and asks_teacher:
        needs = f"for {type(policy).__name__}" if epsilon is None else "unless epsilon is 0"
        raise ValueError(f"teacher must be a model {needs}, got None with epsilon {epsilon}")
    models = [student, teacher] if asks_teacher and teacher is not None else [student]
    input_ids, prompt_mask, lengths = check_prompts(input_ids, attention_mask)
    check_models(models, lengths, max_new_tokens)
    if check:
        probe_models(models, int(lengths.max()) + max_new_tokens)

    (batch, width), device = input_ids.shape, input_ids.device
    tokens = torch.zeros((batch, max_new_tokens), dtype=torch.int64, device=device)
    values = torch.zeros((5, batch, max_new_tokens), dtype=torch.float32, device=device)  # in trbext.Sample's order
    source = device if generator is None else generator.device
    planes = policy.uniforms_per_token
    uniforms = torch.rand((planes * max_new_tokens, batch), dtype=torch.float64, generator=generator, device=source)
    uniforms = uniforms.to(device).view(planes, max_new_tokens, batch)
    if policy.uniforms_per_row:
        planes = policy.uniforms_per_row
        of_row = torch.rand((planes, batch), dtype=torch.float64, generator=generator, device=source).to(device)
        uniforms = torch.cat([uniforms, of_row[:, None].expand(-1, max_new_tokens, -1)])

    # Of the rows still in the batch: index in the original batch, status, prompt length, mask of all columns.
    rows = torch.arange(batch, device=device)
    status = torch.full_like(rows, RUNNING)
    position = lengths.to(device)[:, None]
    mask = F.pad(prompt_mask, (0, max_new_tokens), value=1)
    padded = bool((lengths < width).any())
    read_at = next_host_read(0)
    with torch.no_grad(), evaluating(models), ExitStack() as stack:
        states = None
        if teacher_states_limit > 0 and asks_teacher and teacher is not None:
            states = stack.enter_context(HiddenStates(teacher, batch, limit_bytes=teacher_states_limit))
        caches = [CachedModel(model) for model in models]
        logits = [cached.prefill(input_ids, prompt_mask) for cached in caches]
        for step in range(max_new_tokens):
            if states is not None:
                states.keep(rows, torch.full_like(rows, step)[:, None], step + 1)
            aligned = [alignment.canonical(raw, temperature, in_place=True) for raw in logits]
            student_logits, teacher_logits = aligned[0], aligned[1] if asks_teacher else None
            drawn = policy.draw(optimizer_step, student_logits, teacher_logits, uniforms[:, step, rows], temperature)
            tokens[rows, step] = drawn.token
            values[:, rows, step] = torch.stack(drawn[1:]).float()
            event = torch.where(drawn.token < 0, FAULT, (drawn.token == alignment.stop) * ENDED)
            status = torch.where(status == RUNNING, event, status)
            token = drawn.token.clamp(min=0)  # a row at fault goes on with a harmless id until the next host read

            generated = step + 1
            if generated in (read_at, max_new_tokens):
                state = host_read(status)
                raise_fault(state, rows, (input_ids, prompt_mask), tokens, models)
                running = (state == RUNNING).nonzero()[:, 0]
                if len(running) == 0 or generated == max_new_tokens:
                    break
                if len(running) < len(state) and all(cached.can_drop_rows for cached in caches):
                    lengths, keep = lengths[running], running.to(device)
                    padded = bool((lengths < width).any())
                    rows, status, position, mask, token = (x[keep] for x in (rows, status, position, mask, token))
                    policy = policy.keep_rows(keep)
                    for cached in caches:
                        cached.keep_rows(keep)
                read_at = next_host_read(generated)
            seen = mask[:, : width + generated] if padded else None
            logits = [cached.advance(token, position + step, seen) for cached in caches]

    stopped = tokens[:, :generated] == alignment.stop
    finished = stopped.any(1)
    completed = torch.where(finished, stopped.int().argmax(1) + 1, generated)
    return Rollout.trim(
        tokens,
        values,
        completed,
        finished,
        pad_token_id=pad_token_id,
        teacher=asks_teacher,
        teacher_states=states,
    )
