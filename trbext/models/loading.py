"""Loads a causal language model, and refuses a checkpoint whose weights are not those of its configuration.

transformers reports in a warning, which is easy to miss among others, that it leaves weights of the model random or
drops weights of the checkpoint.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging
from trl.trainer.utils import create_model_from_path

from .adapters import base_of, check_no_adapter, merged

# Common prefixes of the names in a checkpoint that was saved from a wrapped model.
_WRAPPERS = ("_orig_mod.", "module.", "_fsdp_wrapped_module.", "base_model.model.")


# Names that a checkpoint may hold without harm: buffers that models compute by themselves today.
_COMPUTED = (".inv_freq", ".position_ids")
# A mismatch is a fault here, too, but one that names the weight: transformers' own error says "see above".
_REPORTED: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}


class IncompleteWeights(ValueError):
    """A checkpoint lacks weights of its model, or holds others."""


def check_model_folder(path: str, what: str) -> None:
    """Checks that a path that can only be a folder's is one.

    A name that cannot be a Hub id "owner/name" is a folder; transformers would call it a malformed id.

    Args:
        path: Of a model.
        what: What the error calls it.

    Raises:
        ValueError: There is no such folder.
    """
    if not Path(path).exists() and (path.count("/") > 1 or path.startswith((".", "~", "/"))):
        raise ValueError(f"{what}: there is no folder {path}")


def load_for_training(path: str, role: str, **kwargs: Any) -> PreTrainedModel:
    """Returns the model at `path` as TRL loads it: on the training device, in float32 unless `dtype` says otherwise.

    Args:
        role: "student" or "teacher", for messages.
        kwargs: Of `from_pretrained`.

    Raises:
        IncompleteWeights: The checkpoint lacks weights of the model, holds them in another shape, or holds others.
        OSError, ValueError: As transformers; a PEFT adapter, which is no whole model.
    """
    check_no_adapter(path, role)
    check_generation_config(path, role)
    with reported_once(), named_errors(path, role):
        model, report = create_model_from_path(path, **kwargs | _REPORTED)
    check_report(path, role, model, report)
    return _model(model)


def load_for_inference(path: str, role: str, device: torch.device | str, **kwargs: Any) -> PreTrainedModel:
    """Loads as `load_for_training`, but in the precision in which the checkpoint is stored, on `device`, in eval mode.

    A PEFT adapter is merged into its model.

    Args:
        path: A folder or a name on the Hub.
        role: "student" or "teacher", for messages.
        device: Of the model.
        kwargs: Of `from_pretrained`.

    Raises:
        IncompleteWeights: As `load_for_training`.
        OSError: As transformers.
        ValueError: As transformers; an adapter does not fit, or cannot be merged.
    """
    options: dict[str, Any] = {"dtype": "auto"} | kwargs
    with reported_once(), named_errors(path, role):
        base = base_of(path)
        check_generation_config(base or path, role)
        loaded: Any = AutoModelForCausalLM.from_pretrained(base or path, **options | _REPORTED)
    model, report = loaded
    check_report(base or path, role, model, report)
    if base is not None:
        with reported_once(), named_errors(path, role):
            model = merged(model, path)
    return _model(model.to(device).eval())


def check_weights(path: str, role: str, config: PreTrainedConfig, **kwargs: Any) -> None:
    """Checks a checkpoint as `load_for_training` does, by the names and sizes in it: no weight is read.

    Args:
        path: A folder or a name on the Hub.
        role: "student" or "teacher", for messages.
        config: Of the model. If it is quantized or sharded while it is loaded, it may not be possible to check it.
        kwargs: Of `from_pretrained`.

    Raises:
        IncompleteWeights: As `load_for_training`.
        ValueError: As `load_for_training`.
    """
    check_generation_config(path, role)
    later = hasattr(config, "quantization_config") or not {"quantization_config", "tp_plan"}.isdisjoint(kwargs)
    try:
        with reported_once(), named_errors(path, role):
            model, report = create_model_from_path(path, **kwargs | _REPORTED | {"device_map": "meta"})
    except (OSError, ValueError):
        if later:
            return
        raise
    check_report(path, role, model, report)


def check_generation_config(path: str, role: str) -> None:
    """Checks the generation_config.json in a model's folder, if there is one.

    transformers takes a damaged one for none, and the EOS ids, which end rollouts, from config.json.

    Args:
        path: A folder, or a name on the Hub, of which nothing is checked.
        role: "student" or "teacher", for messages.

    Raises:
        ValueError: It is not JSON, or holds no object.
    """
    file = Path(path) / "generation_config.json"
    if not file.is_file():
        return
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the {role} {path} cannot be loaded: {file.name} is not valid JSON") from error
    if not isinstance(held, dict):
        raise ValueError(
            f"the {role} {path} cannot be loaded: {file.name} must hold a JSON object, got {type(held).__name__}"
        )


def load_tokenizer(path: str, role: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """Returns the tokenizer at `path`, which pads on the left.

    Args:
        path: A folder or a name on the Hub.
        role: Of its model, for messages.
        kwargs: Of `from_pretrained`.

    Raises:
        OSError: It cannot be loaded.
        ValueError: It cannot be loaded.
    """
    with named_errors(path, f"tokenizer of the {role}"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, padding_side="left", **kwargs)
    return tokenizer


@contextmanager
def named_errors(path: str, role: str) -> Iterator[None]:
    """Turns every error of loading into a ValueError that names `path`.

    Such errors are a missing or damaged file, an argument that the class does not take, a package that is missing.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (OSError, ValueError)) and path in str(error):
            raise
        reason = " ".join(str(error).split())
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        raise ValueError(f"the {role} {path} cannot be loaded: {kind}{reason:.400}") from error


def check_report(path: str, role: str, model: PreTrainedModel, report: Mapping[str, Any]) -> None:
    """Checks transformers' loading report of a model.

    Args:
        path: A folder or a name on the Hub, for messages.
        role: "student" or "teacher", for messages.
        model: Was loaded from there.
        report: What transformers returns with `output_loading_info`.

    Raises:
        IncompleteWeights: `fault_in` finds a fault.
        ValueError: An EOS id is text.
    """
    for file, config in (("generation_config.json", model.generation_config), ("config.json", model.config)):
        eos = getattr(config, "eos_token_id", None)
        if any(isinstance(each, str) for each in (eos if isinstance(eos, list) else [eos])):
            raise ValueError(
                f"eos_token_id in the {file} of the {role} {path} must be a number or several, got {eos!r}"
            )
    fault = fault_in(report, model)
    if fault is not None:
        raise IncompleteWeights(f"the {role} {path} {fault}")


def fault_in(report: Mapping[str, Any], model: PreTrainedModel) -> str | None:
    """Returns the fault of a checkpoint by transformers' loading report of `model`, with the name of the first weight,
    or None.

    A missing weight that is tied to one that was found is no fault, nor is a missing buffer. Unexpected weights are no
    fault if the model's class declares them to be of no use (transformers leaves them out), if they are buffers, or if
    they belong to a quantized weight.
    """
    if report["mismatched_keys"]:
        name, held, expected = min(report["mismatched_keys"], key=lambda key: _in_order(key[0]))
        return f"holds {name!r} of shape {list(held)}, which its configuration says is {list(expected)}"
    missing = set(report["missing_keys"])
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = {id(parameter) for name, parameter in parameters.items() if name not in missing}
    random = [name for name in missing if name in parameters and id(parameters[name]) not in found]
    unknown = sorted(_unknown(report["unexpected_keys"], model), key=_in_order)
    if not random and not unknown:
        return None
    if not random:
        return (
            f"holds {unknown[0]!r}, for which its configuration has no place ({len(unknown)} weights would be dropped)"
            ": correct its config.json, or load the model that is meant and save it again"
        )
    held = f"; it holds {unknown[0]!r}, which the model has no place for" if unknown else ""
    wrapper = next((prefix for prefix in _WRAPPERS if unknown and unknown[0].startswith(prefix)), None)
    remedy = f": take {wrapper!r} off the names, or save the model that was wrapped" if wrapper else ""
    return (
        f"lacks the weights {min(random, key=_in_order)!r} ({len(random)} of {len(parameters)} are missing), which "
        f"would be random{held}{remedy}"
    )


def _unknown(names: Iterable[str], model: PreTrainedModel) -> Iterator[str]:
    """Returns the names of weights that `model` lacks."""
    buffers = {name for name, _ in model.named_buffers()}
    quantized = getattr(model, "hf_quantizer", None) is not None
    modules = {name for name, _ in model.named_modules()} if quantized else set()
    weights = {name for name, _ in model.named_parameters()} if quantized else set()
    for name in names:
        parents = list(itertools.accumulate(name.split(".")[:-1], "{}.{}".format))
        # Scales, zero points and the like stand beside a weight, or below it.
        of_quantization = (parents and parents[-1] in modules) or not weights.isdisjoint(parents)
        if name not in buffers and not name.endswith(_COMPUTED) and not of_quantization:
            yield name


def _in_order(name: str) -> list[str]:
    """Returns a key that sorts layer 2 before layer 10."""
    return [part.zfill(6) if part.isdecimal() else part for part in name.split(".")]


@contextmanager
def reported_once() -> Iterator[None]:
    """Hides transformers' table of missing weights, which `check_report` names, and a progress bar nobody sees."""
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
