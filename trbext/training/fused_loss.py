"""Decides whether TRL's fused loss serves a student and a teacher, and refuses losses that neither takes.

TRL's fused loss reads the weights of the lm_heads, which can be cut to the width that both models share. Merged EOS ids
exist as logits only, and a token that a head excludes would give the fused loss 0 * inf.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from ..models.cached_model import unwrap
from ..models.lm_head import excludes_tokens
from ..models.next_token import is_transformers
from ..teachers import Mixture
from ..vocab import Alignment
from .config import TRBConfig


def choose_fused_loss(
    student: PreTrainedModel,
    teacher: Any,
    alignment: Alignment,
    args: TRBConfig,
    *,
    zero3: bool,
    tools: bool,
) -> bool:
    """Returns whether TRL's fused loss serves this pair of models; if not, our own loss does, for the reverse KL.

    Args:
        student: With whole weights.
        teacher: With whole weights; a mixture, or a model that is not from transformers, has no lm_head of its own.
        alignment: The vocabulary that both models share.
        args: Of the run.
        zero3: DeepSpeed ZeRO-3 shards the models; its weights cannot be cut.
        tools: Conversations hold tokens that tools wrote.

    Raises:
        ValueError: The divergence that `args.beta` names needs the fused loss, or the loss estimator or top k is wrong.
    """
    args.check_top_k(alignment.width)
    if tools and args.loss_estimator in ("sampled", "routed"):
        raise ValueError(
            f"tools write tokens nobody sampled: loss_estimator={args.loss_estimator!r} needs rollouts without tools"
        )
    if isinstance(teacher, Mixture) or not is_transformers(teacher):
        if args.beta != 1.0:
            raise ValueError(
                f"a teacher without an lm_head of its own, {type(teacher).__name__}, trains by the reverse KL (beta = "
                f"1.0) only, got beta = {args.beta}"
            )
        return False
    teacher = unwrap(teacher)
    excluding = any(excludes_tokens(model) for model in (student, teacher))
    widths = {int(model.config.get_text_config().vocab_size) for model in (student, teacher)}
    cannot_cut = zero3 and len(widths) > 1
    if excluding and args.beta != 1.0:
        raise ValueError(
            "the lm_head of a model excludes tokens (-inf in its bias), and only the reverse KL (beta = 1.0) is "
            f"finite then, got beta = {args.beta}"
        )
    if alignment.is_slice and cannot_cut and args.beta != 1.0:
        raise ValueError(
            "DeepSpeed ZeRO-3 trains models of different logit widths by the reverse KL (beta = 1.0) only, got "
            f"beta = {args.beta}: use ZeRO-2 or FSDP2"
        )
    if not alignment.is_slice and args.beta != 1.0:
        raise ValueError(
            "student and teacher stop with different EOS ids, and only the reverse KL (beta = 1.0) merges them, "
            f"got beta = {args.beta}"
        )
    return alignment.is_slice and not excluding and not cannot_cut
