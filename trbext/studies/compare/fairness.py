"""Checks that the runs of a study differ only in what is compared, and are judged alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ...errors import UsageError
from ...training.config import TRBConfig

if TYPE_CHECKING:
    from .declaration import Metric, Run

# Settings that all runs share, or their differences would not be the policy's: the student at the start, prompts and
# their order, the number of updates and of prompts in each, and how the student is evaluated.
SHARED = {
    *("model_name_or_path", "model_init_kwargs", "prompts", "prompts_split", "prompts_limit", "prompt_column"),
    *("system_prompt", "chat_template_kwargs", "seed", "data_seed", "shuffle_dataset", "max_steps"),
    *("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "max_completion_length"),
    *("output_dir", "eval_prompts", "eval_prompts_split", "eval_prompts_limit", "eval_verifier", "eval_samples"),
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size", "prompts_where"),
    *("prompts_unique", "prompts_shuffle_seed", "max_prompt_length", "rollouts_per_prompt"),
}
# Fields that change what a held-out loss or log-probability means: its tokens, and the teacher by whom it is. It is a
# reverse KL whatever `beta` says.
OF_THE_LOSS = (
    *("loss_top_k", "temperature", "teacher_model_name_or_path", "teacher_model_revision", "teachers"),
    *("teacher_model_init_kwargs", "teacher_weights", "teacher_mean", "teacher_column", "teacher_url", "teacher_top_k"),
    "loss_tokens_of",
)


def check_overrides(run: Run) -> None:
    """Checks that a run sets nothing that all runs share.

    Raises:
        UsageError: It does.
    """
    for name in run.overrides:
        if name in SHARED:
            raise UsageError(f"run {run.label!r} sets {name}, which must be the same for all runs: move it to base")


def check_judged_alike(configs: Mapping[str, TRBConfig], metrics: Iterable[Metric]) -> None:
    """Checks that a held-out loss or log-probability, if runs are judged by one, means the same for all of them.

    Args:
        configs: The runs by label. A field may follow from another, as `loss_top_k` does from `loss_estimator`.
        metrics: By which they are judged.

    Raises:
        UsageError: It does not.
    """
    judged = next((metric.name for metric in metrics if metric.name != "eval_pass@1"), None)
    if judged is None:
        return
    first, *others = configs
    expected = _meaning(configs[first])
    for label in others:
        for name, value in _meaning(configs[label]).items():
            if value != expected[name]:
                raise UsageError(
                    f"{name} changes what {judged} means, and is {value!r} in run {label!r} and {expected[name]!r} in "
                    f"run {first!r}: make them alike"
                )


def _meaning(config: TRBConfig) -> dict[str, Any]:
    """Returns what a held-out loss depends on, beside the student. The sampling options decide its completions."""
    altered = ", ".join(f"{name}={value!r}" for name, value in config.altered_law()) or "none"
    return {**{name: getattr(config, name) for name in OF_THE_LOSS}, "altered sampling": altered}
