"""Defines the fields of a run that say how blended rollouts are decoded; none of them changes the law of a token."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...rollout.speculative import check_draft_length


@dataclass
class DecodingFields:
    """Speculation (`trbext.rollout.speculative`), batches, and the teacher's states that are kept for the loss."""

    draft_length: str = field(
        default="auto",
        metadata={
            "help": "Tokens the student drafts per pass of the teacher, after which up to one more is drawn from mu; "
            "the law of a rollout is the same for all: 'auto' = chosen round by round, by costs measured in the first "
            "step (with use_vllm: 4); 0 = lockstep; or a number."
        },
    )
    reuse_teacher_states: bool = field(
        default=True,
        metadata={
            "help": "Keep the teacher's last hidden states of the rollouts it takes part in, so that the loss needs no "
            "teacher forward of its own."
        },
    )
    teacher_states_gib: float = field(
        default=4.0,
        metadata={
            "help": "Memory for reuse_teacher_states on each process, GiB; if the rollouts of a step need more, the "
            "loss calls the teacher again."
        },
    )
    rollout_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Rollouts decoded at a time on each process: fewer take less memory for KV caches and more time. "
            "Other tokens of the same law are drawn, as each batch has random numbers of its own. Unset = all of an "
            "optimizer step."
        },
    )

    check_models: bool = field(
        default=True,
        metadata={
            "help": "Probe student and teacher once, before the first rollout, for what rollouts and loss assume of a "
            "causal LM (docs/models.md), and refuse by name a model that they would treat wrongly."
        },
    )

    def check_decoding(self) -> None:
        """Checks these fields.

        Raises:
            ValueError: One is out of range.
        """
        given = str(self.draft_length)
        if given.removeprefix("-").isdecimal():  # a command line gives a word, and a YAML file a number
            self.draft_length = int(given)  # type: ignore[assignment]
        check_draft_length(self.draft_length)
        if not self.teacher_states_gib >= 0:
            raise ValueError(f"teacher_states_gib is a size in GiB and must be >= 0, got {self.teacher_states_gib}")

    @property
    def teacher_states_limit(self) -> float:
        """Bytes of teacher states that may be kept on a process; 0 keeps none."""
        return self.teacher_states_gib * 2**30 if self.reuse_teacher_states else 0.0
