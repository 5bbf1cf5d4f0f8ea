"""Loads a causal language model, and refuses a checkpoint that leaves some of its weights random.

transformers reports missing weights in a warning, which is easy to miss among others, and goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from trl.trainer.utils import create_model_from_path

# What commonly stands before the names of a checkpoint that was saved from a wrapped model.
_WRAPPERS = ("_orig_mod.", "module.", "_fsdp_wrapped_module.", "base_model.model.")


class IncompleteWeights(ValueError):
    """A checkpoint does not hold every weight of its model."""


def load_for_training(path: str, role: str, **kwargs: Any) -> PreTrainedModel:
    """The model at `path` as TRL loads it: on the training device, in float32 unless `dtype` says otherwise.

    Args:
        role: "student" or "teacher", for messages.
        kwargs: of `from_pretrained`.

    Raises:
        IncompleteWeights: the checkpoint lacks weights of the model, or holds them in another shape.
        OSError, ValueError: as transformers.
    """
    with _reported_once(), named_errors(path, role):
        model, report = create_model_from_path(path, output_loading_info=True, **kwargs)
    check_report(path, role, model, report)
    return _model(model)


def load_for_inference(path: str, role: str, device: torch.device | str, **kwargs: Any) -> PreTrainedModel:
    """As `load_for_training`, in the precision the checkpoint is stored in, on `device`, in eval mode."""
    options: dict[str, Any] = {"dtype": "auto"} | kwargs
    with _reported_once(), named_errors(path, role):
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **options)
    model, report = loaded
    check_report(path, role, model, report)
    return _model(model.to(device).eval())


def check_weights(path: str, role: str, **kwargs: Any) -> None:
    """IncompleteWeights, as `load_for_training`, from the names in the checkpoint alone: no weight is read.

    Where this cannot be told without loading, as of quantized models, nothing is said, and loading says it.
    """
    try:
        with _reported_once():
            model, report = create_model_from_path(path, output_loading_info=True, **kwargs | {"device_map": "meta"})
    except Exception:
        return
    check_report(path, role, model, report)


def load_tokenizer(path: str, role: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """The tokenizer at `path`, which pads on the left. OSError, ValueError: it cannot be loaded."""
    with named_errors(path, f"tokenizer of the {role}"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, padding_side="left", **kwargs)
    return tokenizer


@contextmanager
def named_errors(path: str, role: str) -> Iterator[None]:
    """Turns what goes wrong in loading into a ValueError that names `path`: a missing or damaged file, an argument that
    the class does not take, a package that is not installed."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (OSError, ValueError)) and path in str(error):
            raise
        reason = " ".join(str(error).split())
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        raise ValueError(f"the {role} {path} cannot be loaded: {kind}{reason:.400}") from error


def check_report(path: str, role: str, model: PreTrainedModel, report: Mapping[str, Any]) -> None:
    """IncompleteWeights, naming the first, if transformers' loading report of `model` lists weights it did not find.

    A weight that is tied to one that was found, and a buffer, are no loss.
    """
    mismatched = sorted(str(key[0] if isinstance(key, (tuple, list)) else key) for key in report["mismatched_keys"])
    if mismatched:
        raise IncompleteWeights(f"the {role} {path} holds {mismatched[0]} in another shape than its configuration says")
    missing = set(report["missing_keys"])
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = {id(parameter) for name, parameter in parameters.items() if name not in missing}
    random = sorted(name for name in missing if name in parameters and id(parameters[name]) not in found)
    if not random:
        return
    unknown = sorted(report["unexpected_keys"])
    held = f"; it holds {unknown[0]!r}, which the model has no place for" if unknown else ""
    wrapper = next((prefix for prefix in _WRAPPERS if unknown and unknown[0].startswith(prefix)), None)
    remedy = f": take {wrapper!r} off the names, or save the model that was wrapped" if wrapper else ""
    raise IncompleteWeights(
        f"the {role} {path} lacks the weights {random[0]!r} ({len(random)} of {len(parameters)} are missing), which "
        f"would be random{held}{remedy}"
    )


@contextmanager
def _reported_once() -> Iterator[None]:
    """Without transformers' table of missing weights, which `check_report` names, and a progress bar nobody sees."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _model(model: Any) -> PreTrainedModel:
    loaded: PreTrainedModel = model
    return loaded
