"""Probes each model before its first rollout: whether it does what the decoders and the loss assume of a causal LM.

The check runs the model; it is not a list of names. One short row by itself, without padding and without a cache, tells
what the logits are. The same row must get these logits again

- beside another row in a batch padded at the right, as the loss scores completions (`completion_states`); a model that
  reads later tokens, such as a masked LM, fails here;
- padded at the left and decoded token by token from a KV cache, beside a longer row that then leaves, as rollouts are
  decoded, also past the length at which a sliding window or an attention chunk that the config announces is full;
- from its last hidden states and `lm_head`, for the loss only.

A model that needs its own `prepare_inputs_for_generation` (recurrent ones take no mask after the prompt) is called with
it. A model that cannot be served is refused with its class and the reason. The result of a check is kept as long as
the model.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .cached_model import CachedModel, Calling, accepted_arguments, backbone, remember_calling, unwrap
from .completion_states import completion_states
from .eval_mode import evaluating
from .model_kind import UnsupportedModel, check_kind
from .next_token import is_transformers
from .precision import precision_observed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPT, NEW, PADDING = 3, 3, 2  # tokens of the row under test, and the padding before it
Scored = dict[int, tuple[Tensor, bool]]  # by length of a row: its logits, and whether they are of float32 or wider
FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


# By model, and by what was tried ("decode", "loss", "length 4096"): the reason to refuse it, "" for none.
_verdicts: weakref.WeakKeyDictionary[torch.nn.Module, dict[str, str]] = weakref.WeakKeyDictionary()


def check_model(
    model: PreTrainedModel, name: str, *, loss: bool = False, decode: bool = True, longest: int = 0
) -> None:
    """Checks that rollouts and the loss of `model` will be right. Each question is asked once per model.

    Args:
        model: On its device, with whole weights; may be inside DDP or PEFT.
        name: What an error calls it, "student" or "teacher".
        loss: Also compares `lm_head` and states padded at the right, which the loss needs (and TRL installed).
        decode: Compares decoding from a KV cache.
        longest: Tokens of the longest row to come; sliding windows and chunks below it are crossed once.

    Raises:
        UnsupportedModel: They would be wrong; names the class and the reason.
    """
    check_kind(model, name)
    inner = unwrap(model)
    reasons = _verdicts.setdefault(inner, {})
    wanted = [("decode", 0)] * decode + [("loss", 0)] * loss
    if decode:
        wanted += [(f"length {switch}", switch) for switch in _switches(inner) if PROMPT + NEW <= switch < longest]
    scored: Scored = {}
    for what, switch in wanted:
        if what not in reasons:
            with torch.no_grad(), evaluating([model]):
                reasons[what] = _loss_fault(model, scored) if what == "loss" else _decoding_fault(model, scored, switch)
        if reasons[what]:
            raise UnsupportedModel(
                f"the {name} {type(inner).__name__} {reasons[what]}. Use another model, or check_models=False "
                "to continue at your own risk"
            )


def probe_models(models: list[tuple[str, Any]], longest: int) -> None:
    """Calls `check_model` for decoding, for each model that is from transformers.

    Args:
        models: Names and models: the student, and the teachers if they decode.
        longest: Tokens of the longest row to come.
    """
    for name, model in models:
        if is_transformers(model):
            check_model(model, name, longest=longest)


def _switches(inner: Any) -> list[int]:
    """Returns the lengths at which attention changes by the config: windows and chunks of any layer."""
    text = inner.config.get_text_config()
    names = ("sliding_window", "attention_chunk_size", "window_size", "sliding_window_size", "local_attention")
    found = {getattr(text, name, None) for name in names}
    return sorted(length for length in found if isinstance(length, int) and not isinstance(length, bool) and length > 0)


def _tokens(inner: Any, length: int, step: int) -> Tensor:
    """Returns [length] ids spread over the vocabulary without its first three, which often are special tokens."""
    vocabulary = int(inner.config.get_text_config().vocab_size)
    ids = (torch.arange(length, device=inner.device) * step) % max(1, vocabulary - 3) + min(3, vocabulary - 1)
    return ids


def _scored(model: PreTrainedModel, row: Tensor, scored: Scored, precision: list[bool]) -> Tensor:
    """Returns the logits [len(row), V] of a row by itself. `scored` keeps them by length: both questions ask for one
    row."""
    if len(row) not in scored:
        logits = model(input_ids=row[None], use_cache=False).logits[0]
        scored[len(row)] = logits, precision[0]
    logits, precise = scored[len(row)]
    precision[0] &= precise  # they may come from a forward under autocast, which the present one is not
    return logits


def _loss_fault(model: PreTrainedModel, scored: Scored) -> str:
    from .lm_head import lm_head

    inner = unwrap(model)
    length = _fitting(inner, PROMPT + NEW + PADDING)
    row, other = _tokens(inner, length - PADDING, 7), _tokens(inner, length, 11)
    batch = torch.stack([torch.cat([row.new_zeros(PADDING), row]), other])
    mask = torch.ones_like(batch)
    mask[0, :PADDING] = 0
    with precision_observed(inner) as precision:
        try:
            expected = _scored(model, row, scored, precision)
            if expected.isnan().any() or expected.isposinf().any():
                return ""  # nothing to compare; the run itself names numbers that are not finite
            head = lm_head(inner)
            beside = completion_states(inner, batch, mask, len(row) - 1)[0]
            fault = _difference(head(beside), expected[:-1], precise=precision[0])
            if not fault:
                return ""
            by_itself = _difference(
                head(backbone(inner)(input_ids=row[None], use_cache=False)[0][0]), expected, precise=precision[0]
            )
        except FAILURES as error:
            return f"cannot be trained: the loss got {_fault_of(error)}"
    if by_itself:
        return f"makes logits of its hidden states by more than its lm_head, and those of the loss differ {by_itself}"
    return f"gives a row other logits when tokens follow it, {fault}: it is not causal"


def _decoding_fault(model: PreTrainedModel, scored: Scored, switch: int) -> str:
    # 1. Choose a row that crosses the switch, and a longer one beside it.
    inner = unwrap(model)
    new = NEW
    prompt = max(PROMPT, switch - 1)
    if _fitting(inner, prompt + new + PADDING) < prompt + new + PADDING:
        return ""  # there are too few positions, which `check_models` of the rollout reports if it matters
    row, other = _tokens(inner, prompt + new, 7), _tokens(inner, prompt + PADDING + new, 11)
    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in accepted_arguments(inner):
        options["logits_to_keep"] = new + 2
    with precision_observed(inner) as precision:
        # 2. Score the row by itself; a long one, whose logits would take much memory, at its end only.
        try:
            if switch:
                expected = model(input_ids=row[None], **options).logits[0, -new - 1 :]
            else:
                expected = _scored(model, row, scored, precision)[-new - 1 :]
        except FAILURES as error:
            return f"cannot score a plain row: {_fault_of(error)}"
        if expected.isnan().any() or expected.isposinf().any():
            return ""
        # 3. Decode the row from a cache, in each way of calling until one gives the same logits.
        faults = []
        for calling in (Calling(), Calling(own_inputs=True), Calling(drops_rows=False), Calling(True, False)):
            try:
                found = _decoded(model, row, other, prompt, calling)
                fault = _difference(found, expected, precise=precision[0])
            except FAILURES as error:
                fault = _fault_of(error)
            if not fault:
                remember_calling(inner, calling)
                return ""
            faults.append(fault)
        # 4. A model that reads the tokens after a row cannot be decoded in any way.
        shorter = model(input_ids=row[None, : prompt + 1], **options).logits[0, -2:]
        fault = _difference(shorter, expected[:2], precise=precision[0])
        if fault:
            return f"gives a row other logits when tokens follow it, {fault}: it is not causal"
    past = f" past {switch} tokens" if switch else ""
    return f"cannot be decoded: from a cache, a left-padded row gets other logits{past}, {faults[0]}"


def _decoded(model: PreTrainedModel, row: Tensor, other: Tensor, prompt: int, calling: Calling) -> Tensor:
    """Returns the logits [1 + NEW, V] of the row's last tokens, fed one by one beside `other`, which leaves before the
    last."""
    cached = CachedModel(model, calling=calling)
    ids = torch.stack([torch.cat([row.new_zeros(PADDING), row[:prompt]]), other[: prompt + PADDING]])
    mask = torch.ones((2, prompt + PADDING + NEW), dtype=torch.int64, device=row.device)
    mask[0, :PADDING] = 0
    position = torch.tensor([[prompt], [prompt + PADDING]], device=row.device)
    found = [cached.prefill(ids, mask[:, : prompt + PADDING])]
    fed = torch.stack([row[prompt:], other[prompt + PADDING :]])
    for step in range(NEW):
        if step == NEW - 1 and cached.can_drop_rows:
            cached.keep_rows(torch.zeros(1, dtype=torch.int64, device=row.device))
            fed, position, mask = fed[:1], position[:1], mask[:1]
        found.append(cached.advance(fed[:, step], position + step, mask[:, : prompt + PADDING + step + 1]))
    return torch.stack([logits[0] for logits in found])


def _fitting(inner: Any, length: int) -> int:
    limit = getattr(inner.config.get_text_config(), "max_position_embeddings", None)
    return min(length, limit) if isinstance(limit, int) and limit > PADDING + 1 else length


def _difference(found: Tensor, expected: Tensor, *, precise: bool) -> str:
    """Returns the distance of logits [n, V] from the expected ones, in words; "" if rounding explains it.

    In half precision a router may flip on a tie and change one position altogether, so the median position decides.
    """
    found, expected = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (found, expected))
    kept = expected > -torch.inf
    spread = expected.where(kept, expected.new_zeros(())).std().clamp(min=1e-6)
    gap = torch.where(found == expected, 0.0, found - expected).nan_to_num(nan=torch.inf).abs() / spread
    size = float(gap.max() if precise else gap.square().mean(1).sqrt().median())
    return "" if size <= (1e-3 if precise else 0.1) else f"by {size:.2g} of their spread"


def _fault_of(error: Exception) -> str:
    """Returns an error of a model in one line.

    Running out of memory is raised again: it says nothing of the model, and the result of a check is kept.
    """
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
