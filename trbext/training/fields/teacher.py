"""Defines the fields of a run that name its teacher, beside TRL's `teacher_model_name_or_path`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...teachers.remote.teacher import TOP_K
from .loss import PAPER_TOP_K

SELF = "self"  # the base model under a student that is an adapter
MEANS = ("geometric", "arithmetic")
OFFLOADS = ("none", "cpu")
TOKENS_OF = ("teacher", "student")
# Policies that are a KL budget at each step: 0 is the student, infinity the teacher.
BUDGETED = ("trb", "student", "fixed", "sft", "teacher", "gkd")
OF_TOP_K = tuple(policy for policy in BUDGETED if policy != "gkd")  # whose budget is another one for each row


def wrong_for_top_k(config: Any) -> Iterator[str]:
    """Yields what of a configuration a top-k teacher cannot do."""
    if config.loss_estimator != "top_k":
        yield f"a top-k teacher trains by loss_estimator 'top_k', got loss_estimator={config.loss_estimator!r}"
    if config.beta != 1.0:
        yield f"a top-k teacher trains by the reverse KL, beta = 1.0, got beta = {config.beta}"
    if config.veto_start != 0:
        yield f"Veto's target needs the whole distribution of the teacher, got veto_start={config.veto_start}"
    if config.of_whole_teacher is not None:
        yield f"a top-k teacher has no whole distribution, got {config.of_whole_teacher}"
    if config.temperature != 1:
        yield f"a top-k teacher gives log-probs at temperature 1 only, got temperature={config.temperature}"
    if ":" not in config.rollout_policy and config.rollout_policy not in OF_TOP_K:
        yield (
            f"a top-k teacher serves {', '.join(OF_TOP_K)}, each of which is a KL budget, got "
            f"rollout_policy={config.rollout_policy!r}"
        )


@dataclass
class TeacherFields:
    """Several teachers as one, and where the teacher is between its uses.

    `teacher_model_name_or_path: self` is the base model under a student that is a LoRA adapter.
    """

    teachers: dict[Any, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Several teachers, as a mapping from labels of your choice to models, such as "
            '{"math": "owner/math-7b", "code": "owner/code-7b"}; instead of teacher_model_name_or_path. "self" is the '
            "base model under a student that is an adapter."
        },
    )
    teacher_weights: dict[Any, Any] | str | None = field(
        default=None,
        metadata={"help": "For teachers: the share of each by its label, divided by their sum. Unset = equal."},
    )
    teacher_mean: str = field(
        default="geometric",
        metadata={"help": "For teachers: 'geometric' = their logits averaged; 'arithmetic' = their probabilities."},
    )
    teacher_column: str | None = field(
        default=None,
        metadata={
            "help": "For teachers: the column of the prompts that holds the label of the teacher of each row, so that "
            "each row has one teacher instead of a mean of all."
        },
    )
    teacher_offload: str = field(
        default="none",
        metadata={
            "help": "Where the teacher's weights are while nothing reads them: 'none' = on their device; 'cpu' = in "
            "the host's memory, copied from there before rollouts and before the loss (trb/teacher_load_seconds)."
        },
    )

    teacher_url: str | None = field(
        default=None,
        metadata={
            "help": "A server of completions (vLLM, SGLang) that has the teacher, such as http://host:8000; "
            "teacher_model_name_or_path is then its name there, or unset if it is the only one. A key is taken from "
            "TRB_TEACHER_API_KEY."
        },
    )
    teacher_top_k: int = field(
        default=TOP_K,
        metadata={
            "help": "For teacher_url: tokens whose log-probs the server is asked for at each prefix. The rest of the "
            "teacher's mass is taken to be spread as the student's. vLLM tells 20 unless --max-logprobs is larger."
        },
    )

    loss_tokens_of: str = field(
        default="teacher",
        metadata={
            "help": "For teacher_url: whose most probable tokens the loss counts one by one. 'teacher' = the "
            "teacher_top_k that came with the rollout; 'student' = the student's loss_top_k, about which the server is "
            "asked once more for each token of the completions."
        },
    )

    @property
    def revision_of_teacher(self) -> str | None:
        """The revision from which a teacher of its own is loaded: its name on the Hub may have several."""
        given: Any = self  # TRL's fields
        options = given.teacher_model_init_kwargs
        named = options.get("revision") if isinstance(options, dict) else None
        revision: str | None = named or given.teacher_model_revision
        return revision

    @property
    def teacher_names(self) -> list[str]:
        """The models that this configuration names as teachers to load, as they are written there."""
        given: Any = self
        if self.teacher_url is not None:
            return []
        if isinstance(self.teachers, dict):
            return [str(name) for name in self.teachers.values()]
        return [] if given.teacher_model_name_or_path is None else [str(given.teacher_model_name_or_path)]

    @property
    def teaches_itself(self) -> bool:
        """Whether the base model under the student's adapter is a teacher."""
        return SELF in self.teacher_names

    def choose_loss_of_server(self) -> None:
        """Sets the loss that a server's teacher has: over its top k tokens and the rest as one."""
        given: Any = self
        chosen = given.loss_estimator in (None, "top_k") and given.loss_top_k is None
        if self.teacher_url is not None and chosen and self.teacher_top_k >= 1:
            top_k = self.teacher_top_k if self.loss_tokens_of == "teacher" else PAPER_TOP_K
            given.loss_estimator, given.loss_top_k = "top_k", top_k

    def check_teachers(self) -> None:
        """Checks these fields.

        Raises:
            ValueError: A field is out of range, or does not fit another.
        """
        for reason in (*self._wrong_teachers(), *self._wrong_server()):
            raise ValueError(reason)

    def _wrong_server(self) -> Iterator[str]:
        given: Any = self
        if self.loss_tokens_of not in TOKENS_OF:
            yield f"loss_tokens_of must be one of {', '.join(TOKENS_OF)}, got {self.loss_tokens_of!r}"
        if self.teacher_url is None:
            if self.loss_tokens_of == "student" and self.teacher_names:
                yield "loss_tokens_of belongs to a teacher on a server: set teacher_url, or leave it out"
            if self.teacher_top_k != TOP_K:
                yield "teacher_top_k belongs to a teacher on a server: set teacher_url, or leave it out"
            return
        if self.teachers is not None:
            yield "teacher_url names one teacher, got teachers"
        if given.teacher_model_name_or_path == SELF:
            yield "the teacher 'self' is the base model under the student, and is on no server: leave teacher_url out"
        if given.use_vllm:
            yield "use_vllm draws rollouts with the teacher in the engine: leave teacher_url out"
        if self.teacher_offload != "none":
            yield "teacher_offload moves the teacher of the trainer, and with teacher_url it has none"
        if given.teacher_model_init_kwargs is not None:
            yield "teacher_model_init_kwargs are of a teacher that is loaded, and with teacher_url none is"
        yield from wrong_for_top_k(self)
        of_teacher = given.loss_estimator == "top_k" and self.loss_tokens_of == "teacher"
        if of_teacher and given.loss_top_k != self.teacher_top_k:
            yield (
                f"with teacher_url the loss is over the teacher's teacher_top_k = {self.teacher_top_k} tokens, got "
                f"loss_top_k = {given.loss_top_k}: leave it out"
            )

    def _wrong_teachers(self) -> Iterator[str]:
        given: Any = self  # TRL's fields are beside these
        teachers, weights = self.teachers, self.teacher_weights
        if given.use_vllm and self.teaches_itself:
            yield "use_vllm loads a teacher of its own, got 'self', the base model under the student"
        if self.teacher_mean not in MEANS:
            yield f"teacher_mean must be one of {', '.join(MEANS)}, got {self.teacher_mean!r}"
        if self.teacher_offload not in OFFLOADS:
            yield f"teacher_offload must be one of {', '.join(OFFLOADS)}, got {self.teacher_offload!r}"
        if self.teacher_offload != "none" and given.use_vllm and given.teacher_from_engine:
            yield "teacher_offload moves the teacher of the trainer, and with teacher_from_engine it has none"
        if teachers is None:
            for name, default in (("teacher_weights", None), ("teacher_mean", "geometric")):
                if getattr(self, name) != default:
                    yield f"{name} belongs to several teachers: set teachers, or leave it out"
            return
        if not isinstance(teachers, dict) or not teachers:
            yield f'teachers must be a mapping such as {{"math": "owner/model"}}, got {teachers!r}'
            return
        for label, model in teachers.items():
            if not isinstance(label, str) or not isinstance(model, str):
                yield f"teachers must map labels to models, both text, got {label!r}: {model!r}"
        if given.teacher_model_name_or_path is not None:
            other = given.teacher_model_name_or_path
            yield f"teachers takes the place of teacher_model_name_or_path, got {other!r} too"
        if given.use_vllm:
            yield "use_vllm loads one teacher, got teachers"
        if self.teacher_column is not None and weights is not None:
            yield "teacher_column gives each row one teacher: leave teacher_weights out"
        if self.teacher_column is not None and self.teacher_mean != "geometric":
            yield "teacher_column gives each row one teacher: leave teacher_mean out"
        if weights is not None and (not isinstance(weights, dict) or weights.keys() != teachers.keys()):
            yield f"teacher_weights must have the labels of teachers, {', '.join(teachers)}, got {weights!r}"
        elif isinstance(weights, dict):
            values = list(weights.values())
            numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
            if not numbers or not all(0 <= value < float("inf") for value in values) or not any(values):
                yield f"teacher_weights must be numbers >= 0, of which one is above 0, got {weights!r}"
