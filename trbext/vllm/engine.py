"""Says how an engine for TRB rollouts is built: its models, its draft length, and how large it must be."""

from __future__ import annotations

from typing import Any

WORKER_EXTENSION = "trbext.vllm.worker.WorkerExtension"
VERL_WORKER_EXTENSION = "trbext.verl.worker.ColocateWorkerExtension"  # the same, beside verl's own
DRAFT_LENGTH = 4


def slack(draft_length: int) -> int:
    """Positions that `max_model_len` needs past the last token of any rollout.

    One request near the limit would make vLLM drop the drafts of the whole batch, whose next tokens the teacher would
    then draw. Asynchronous scheduling counts the drafts of two steps ahead as if all were accepted.
    """
    return 3 * draft_length + 1


def token_budget(max_num_seqs: int, draft_length: int) -> int:
    """The least `max_num_batched_tokens` with which no running request has to wait, and lose its drafts.

    A request of a step takes its last token, its drafts, and one place that vLLM sets aside.
    """
    return max_num_seqs * (draft_length + 2)


def engine_args(
    teacher: str,
    student: str,
    *,
    draft_length: int = DRAFT_LENGTH,
    max_num_seqs: int = 256,
    max_num_batched_tokens: int | None = None,
    speculative_config: dict[str, Any] | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM`, or of vLLM's EngineArgs, for an engine that draws TRB rollouts.

    Args:
        teacher: A path or name; the engine's model.
        student: A path or name; its draft model.
        draft_length: Tokens that the student drafts for one pass of the teacher, at least 1.
        max_num_seqs: Rollouts decoded at a time.
        max_num_batched_tokens: Of one step; None is the least that serves, or 8192 if that is more.
        speculative_config: Further keys of vLLM's own, such as a draft model's quantization.
        others: Any other arguments of vLLM. `max_model_len` must hold prompt, completion and `slack(draft_length)`.

    Raises:
        ValueError: The draft length or the token budget is too small.
    """
    if draft_length < 1:
        raise ValueError(f"draft_length must be at least 1 token in an engine, got {draft_length}")
    least = token_budget(max_num_seqs, draft_length)
    if max_num_batched_tokens is None:
        max_num_batched_tokens = max(least, 8192)
    if max_num_batched_tokens < least:
        raise ValueError(
            f"max_num_batched_tokens must be at least max_num_seqs (draft_length + 2) = {least}, or requests lose "
            f"their drafts, got {max_num_batched_tokens}"
        )
    return {
        "model": teacher,
        "speculative_config": {
            "method": "draft_model",
            "model": student,
            "num_speculative_tokens": draft_length,
            "draft_sample_method": "probabilistic",  # vLLM's default takes the student's most probable token
            "draft_tensor_parallel_size": others.get("tensor_parallel_size", 1),
            **(speculative_config or {}),
        },
        "worker_extension_cls": WORKER_EXTENSION,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        **others,
    }


def check_settings(runner: Any) -> None:
    """Checks that the engine of a model runner is set up so that its tokens can follow mu.

    Args:
        runner: vLLM's V1 model runner, after the models were loaded.

    Raises:
        RuntimeError: A setting does not fit. Names it.
    """
    speculative, scheduler = runner.speculative_config, runner.scheduler_config
    if speculative is None or speculative.method != "draft_model":
        method = None if speculative is None else speculative.method
        raise RuntimeError(f"a TRB engine needs speculative_config method 'draft_model', the student, got {method!r}")
    if speculative.draft_sample_method != "probabilistic":
        raise RuntimeError(
            "a TRB engine needs draft_sample_method 'probabilistic', so that drafts are draws from the student, got "
            f"{speculative.draft_sample_method!r}"
        )
    if speculative.rejection_sample_method != "standard":
        raise RuntimeError(
            "a TRB engine verifies drafts itself, so rejection_sample_method must be 'standard', got "
            f"{speculative.rejection_sample_method!r}"
        )
    if speculative.parallel_drafting:
        raise RuntimeError(
            "a TRB engine needs parallel_drafting False: drafts must each be drawn after the one before, got True"
        )
    # From vLLM 0.24 on. It may draft nothing for a large batch, whose requests would lose their drafts.
    by_size = getattr(speculative, "num_speculative_tokens_per_batch_size", None)
    if by_size is not None:
        raise RuntimeError(f"a TRB engine needs num_speculative_tokens_per_batch_size None, got {by_size!r}")
    least = token_budget(scheduler.max_num_seqs, speculative.num_speculative_tokens)
    if scheduler.max_num_batched_tokens < least:
        raise RuntimeError(
            f"a TRB engine needs max_num_batched_tokens of at least max_num_seqs (draft_length + 2) = {least}, or "
            f"requests lose their drafts, got {scheduler.max_num_batched_tokens}"
        )
    parallel = runner.parallel_config
    if parallel.pipeline_parallel_size > 1:
        raise RuntimeError(
            "a TRB engine needs pipeline_parallel_size 1: only the last stage has the logits, got "
            f"{parallel.pipeline_parallel_size}"
        )


def check_settings_v2(runner: Any) -> None:
    """Checks what Model Runner V2 could be set up with beyond `check_settings`, so that its tokens would not follow mu.

    Args:
        runner: vLLM's Model Runner V2, after the models were loaded.

    Raises:
        RuntimeError: A setting does not fit. Names it.
    """
    # Each of these changes which rows or which logits the samplers get.
    unlike = {
        "adaptive draft verification": runner.adaptive_verification,
        "batch-sharded sampling": runner.batch_sharder,
        "prefill context parallelism": runner.pcp_manager,
        "watermarking": getattr(runner.vllm_config, "watermark_config", None),
        "return_sampling_mask": runner.sampler.return_sampling_mask or None,
    }
    for name, value in unlike.items():
        if value is not None:
            raise RuntimeError(f"a TRB engine with Model Runner V2 must run without {name}, got {value!r}")
    if runner.speculator.draft_logits is None:
        raise RuntimeError("a TRB engine needs the student's logits of its drafts, got a speculator that keeps none")
