"""Loads student and teacher of a run for sampling: for `trb probe` and for the picture of a rollout."""

from __future__ import annotations

from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from ..data.demo_models import model_path
from ..errors import UsageError
from ..models.loading import load_for_inference, load_tokenizer
from ..training.config import TRBConfig
from ..training.fields.teacher import SELF
from ..vocab import Alignment, align
from .settings import RunArguments


class Pair(NamedTuple):
    """Two models that share a vocabulary, on one device."""

    student: PreTrainedModel
    teacher: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase  # the student's
    alignment: Alignment


def load_pair(arguments: RunArguments, config: TRBConfig, student: str | None = None) -> Pair:
    """Loads the models of a run, in the precision in which they are stored.

    Args:
        arguments: Of the run.
        config: Of the run.
        student: A folder that replaces the run's student, such as its `model/`.

    Raises:
        UsageError: The run has several teachers, or the base model under its student.
        ValueError: A model cannot be used.
        OSError: A model cannot be read.
    """
    teacher_path = config.teacher_model_name_or_path
    if config.teacher_url is not None:
        raise UsageError(f"this reads a teacher's logits, and the run's teacher is on the server {config.teacher_url}")
    if teacher_path is None or teacher_path == SELF:
        raise UsageError(f"this reads one teacher of its own, and the run has {', '.join(config.teacher_names)}")
    paths = {"student": student or model_path(arguments.model_name_or_path), "teacher": model_path(teacher_path)}
    trust = config.trust_remote_code
    options = {"student": dict(config.model_init_kwargs or {}), "teacher": config.teacher_model_init_kwargs or {}}
    if student is not None:
        options["student"].pop("revision", None)  # a folder has none
    if config.teacher_model_revision is not None:
        options["teacher"] = {"revision": config.teacher_model_revision} | options["teacher"]
    tokenizer, teacher_tokenizer = (
        load_tokenizer(path, name, trust_remote_code=trust, revision=options[name].get("revision", "main"))
        for name, path in paths.items()
    )
    device = "cuda" if torch.cuda.is_available() and not config.use_cpu else "cpu"
    disable_progress_bar()
    models = {
        name: load_for_inference(path, name, device, **{"trust_remote_code": trust} | options[name])
        for name, path in paths.items()
    }
    alignment = align(models["student"], models["teacher"], tokenizer, teacher_tokenizer)
    return Pair(models["student"], models["teacher"], tokenizer, alignment)
