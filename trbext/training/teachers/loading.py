"""Loads the teacher of a run and its tokenizer, and places it beside the student on every process.

Of a teacher that only an engine loads, the configuration is read.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl.models import prepare_deepspeed, prepare_fsdp

from ...models.cached_model import unwrap
from ...models.loading import check_generation_config, load_for_training, named_errors
from ...models.next_token import is_transformers
from ...rollout.caches import named_models
from ...teachers import Mixture, SelfTeacher, mixture, self_teacher
from ...teachers.remote.teacher import RemoteTeacher
from ...vocab import check_tokenizers
from ..fields.teacher import SELF
from .offload import OffloadedWeights

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..config import TRBConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DescribedTeacher:
    """What a vocabulary is aligned by, of a teacher that this process does not load."""

    config: PreTrainedConfig
    generation_config: GenerationConfig | None


def describe_teacher(path: str, args: TRBConfig) -> DescribedTeacher:
    """Reads the configurations of a teacher.

    Args:
        path: A folder or a name on the Hub.
        args: Of the run.

    Raises:
        ValueError: There is no configuration, or one is damaged.
    """
    named: dict[str, Any] = {} if args.revision_of_teacher is None else {"revision": args.revision_of_teacher}
    with named_errors(path, "teacher"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=args.trust_remote_code, **named)
    check_generation_config(path, "teacher")
    try:
        generation = GenerationConfig.from_pretrained(path, **named)
    except OSError:  # a checkpoint need not have one
        generation = None
    return DescribedTeacher(config, generation)


def teacher_and_tokenizer(
    teacher: Any, args: TRBConfig, accelerator: Accelerator, student_tokenizer: Any, student: Any
) -> tuple[Any, PreTrainedTokenizerBase | None]:
    """Returns the teacher and its tokenizer, loaded if `teacher` is a path; described if only an engine loads it.

    Args:
        teacher: A path, "self", paths of several by their labels, or a model, whose tokenizer is not known.
        args: Of the run.
        accelerator: Of the run.
        student_tokenizer: Must give every token the same id.
        student: The base model under its adapter is the teacher "self".

    Raises:
        VocabularyMismatch: (a ValueError) the tokenizers give a token different ids.
        ValueError: `args` holds arguments of loading, and the teacher is a model; or the student has no adapter.
    """
    if isinstance(teacher, dict):
        loaded = {
            label: teacher_and_tokenizer(path, args, accelerator, student_tokenizer, student)[0]
            for label, path in teacher.items()
        }
        shares = args.teacher_weights if isinstance(args.teacher_weights, dict) else None
        weights = None if shares is None else [float(shares[label]) for label in loaded]
        mean: Any = args.teacher_mean
        return mixture(loaded, weights, mean=mean), None
    if isinstance(teacher, str) and args.teacher_url is not None:
        remote = RemoteTeacher(
            args.teacher_url, model=teacher or None, top_k=args.teacher_top_k, tokenizer=student_tokenizer
        )
        return remote, None
    if teacher == SELF:
        return self_teacher(student), None
    if not isinstance(teacher, str):
        if args.teacher_model_init_kwargs is not None:
            raise ValueError("teacher_model_init_kwargs is set, but teacher_model is already instantiated")
        return teacher, None
    tokenizer = load_teacher_tokenizer(teacher, args)
    if tokenizer is not None:
        check_tokenizers(student_tokenizer, tokenizer)  # in seconds, before minutes of loading weights
    if args.teacher_from_engine:
        return describe_teacher(teacher, args), tokenizer
    return load_teacher(teacher, args, accelerator), tokenizer


def load_teacher_tokenizer(path: str, args: TRBConfig) -> PreTrainedTokenizerBase | None:
    """Returns the tokenizer at `path`; None, with a warning, if there is none."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, revision=args.revision_of_teacher, trust_remote_code=args.trust_remote_code
        )
    except (OSError, ValueError) as error:
        logger.warning("the teacher's tokenizer could not be loaded, so token ids are not compared: %s", error)
        return None
    return tokenizer


def load_teacher(path: str, args: TRBConfig, accelerator: Accelerator) -> PreTrainedModel:
    """Loads the teacher, by default in the precision in which it is stored.

    Args:
        path: A folder or a name on the Hub.
        args: Its `teacher_model_init_kwargs` are those of `from_pretrained`.
        accelerator: Of the run.

    Raises:
        IncompleteWeights: As `load_for_training`.
    """
    kwargs = {"dtype": "auto", "trust_remote_code": args.trust_remote_code, **(args.teacher_model_init_kwargs or {})}
    if args.revision_of_teacher is not None:
        kwargs["revision"] = args.revision_of_teacher
    if accelerator.num_processes > 1:
        kwargs["device_map"] = None  # "auto" would spread every process's copy over all devices
    return load_for_training(path, "teacher", **kwargs)


def prepare_teacher(teacher: Any, accelerator: Accelerator, *, routed: bool = False) -> Any:
    """Freezes `teacher`, and puts it on its device in eval mode; DeepSpeed and FSDP shard it as they do the student.

    A `self_teacher` is where its student is, and a model that is not from transformers is left as it is.

    Args:
        teacher: Of any kind.
        accelerator: Of the run.
        routed: Each row has one teacher of a mixture, so that processes call them differently often.

    Raises:
        ValueError: The weights are sharded, and the teacher would not be called equally often by all processes, or is
            none that DeepSpeed prepares.
    """
    deepspeed = getattr(accelerator.state, "deepspeed_plugin", None) is not None
    fsdp = getattr(accelerator.state, "fsdp_plugin", None) is not None
    single = is_transformers(teacher) and not isinstance(teacher, (Mixture, SelfTeacher))
    if deepspeed and not single:
        raise ValueError(f"with DeepSpeed the teacher must be one causal LM of its own, got a {type(teacher).__name__}")
    if fsdp and routed:
        raise ValueError("teacher_column gives processes rows of different teachers, which FSDP does not allow")
    if isinstance(teacher, Mixture):
        return replace(teacher, teachers=tuple(prepare_teacher(each, accelerator) for each in teacher.teachers))
    if not single:
        return teacher
    teacher.requires_grad_(False)  # or a gathered lm_head would be a node of the loss's graph
    if deepspeed:
        prepared = prepare_deepspeed(teacher, accelerator)
    elif fsdp:
        prepared = prepare_fsdp(teacher, accelerator)  # prepare_model would leave it whole, and on the CPU (trl#2580)
    else:
        prepared = accelerator.prepare_model(teacher, evaluation_mode=True)
    prepared.eval()  # DeepSpeed's engine returns None
    return prepared


def offloaded(teacher: Any, args: TRBConfig, accelerator: Accelerator) -> OffloadedWeights | None:
    """Moves the weights of a prepared teacher to the host if `args.teacher_offload` says so.

    Raises:
        ValueError: It has no weights that can be moved.
    """
    if args.teacher_offload == "none":
        return None
    if any(getattr(accelerator.state, plugin, None) is not None for plugin in ("deepspeed_plugin", "fsdp_plugin")):
        raise ValueError("teacher_offload moves whole weights, which FSDP and DeepSpeed shard: leave one of them out")
    models = [
        unwrap(model)
        for _, model in named_models("teacher", teacher)
        if is_transformers(model) and not isinstance(model, SelfTeacher)
    ]
    if not models:
        raise ValueError("teacher_offload moves the weights of a teacher, and this one has none of its own")
    return OffloadedWeights(models, accelerator.device)
