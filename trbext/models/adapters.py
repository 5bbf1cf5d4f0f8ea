"""Finds, refuses or merges a PEFT adapter in a folder that is given as a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def base_of(path: str) -> str | None:
    """Returns the name of the model to which the adapter in the folder `path` belongs; None if it holds no adapter.

    Raises:
        ValueError: Its adapter_config.json cannot be read, or names no base model, itself, or another adapter.
    """
    file = Path(path) / CONFIG
    if not file.is_file():
        return None
    # PEFT, which may not be installed, is needed only once the adapter is loaded.
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} must be JSON, got {type(error).__name__}: {error}") from error
    base = held.get("base_model_name_or_path") if isinstance(held, dict) else None
    if not (isinstance(base, str) and base):
        raise ValueError(f"{file} must hold an object with the text base_model_name_or_path, got {held!r:.80}")
    # transformers would put the adapter on its base model by itself, and it would be merged a second time.
    if Path(base).is_dir() and Path(base).samefile(path):
        raise ValueError(
            f"base_model_name_or_path of {file} must be another folder than the adapter's, got {base}: save the "
            "adapter into a folder of its own"
        )
    if (Path(base) / CONFIG).is_file():
        raise ValueError(
            f"base_model_name_or_path of {file} must be a whole model, got {base}, which is an adapter itself: merge "
            "that one first"
        )
    return base


def check_no_adapter(path: str, role: str) -> None:
    """Refuses a folder that holds an adapter.

    Raises:
        ValueError: It holds one; says what to do.
    """
    base = base_of(path)
    if base is not None:
        raise ValueError(
            f"the {role} {path} is a PEFT adapter of {base}, and training needs a whole model: merge it (peft's "
            "AutoPeftModelForCausalLM.from_pretrained, merge_and_unload, save_pretrained), give TRBTrainer the "
            "PeftModel itself, or train the adapter toward its own base with teacher_model_name_or_path 'self'"
        )


def tokenizer_path(path: str) -> str:
    """Returns where the tokenizer of a model is: in its folder, or in that of its base if it is an adapter without
    one."""
    base = base_of(path)
    return path if base is None or (Path(path) / "tokenizer_config.json").is_file() else base


def trainable(base: PreTrainedModel, path: str) -> PeftModel:
    """Puts the adapter in the folder `path` on `base`, to be trained.

    Raises:
        ValueError: The adapter does not fit.
    """
    from peft import PeftModel

    model: PeftModel = PeftModel.from_pretrained(base, path, is_trainable=True)
    fault = adapter_fault(model, Path(path))
    if fault is not None:
        raise ValueError(f"the student {path}: {fault}")
    return model


def merged(base: PreTrainedModel, path: str) -> PreTrainedModel:
    """Merges the adapter in the folder `path` into `base`.

    Raises:
        ValueError: The adapter does not fit, or cannot be merged.
    """
    from peft import PeftModel

    model = PeftModel.from_pretrained(base, path)
    if model.active_peft_config.is_prompt_learning:
        raise ValueError("prompt tuning cannot be merged into a model")
    fault = adapter_fault(model, Path(path))
    if fault is not None:
        raise ValueError(fault)
    whole: PreTrainedModel = model.merge_and_unload()
    return whole


def adapter_fault(model: PeftModel, folder: Path) -> str | None:
    """Returns the first weight that the active adapter of `model` and the file in `folder` do not share, by name and
    shape.

    None if there is none. Several adapters, and files that are not safetensors, are left to PEFT.
    """
    from peft import get_peft_model_state_dict

    if not (folder / WEIGHTS).is_file() or len(model.active_adapters) != 1:
        return None
    with safe_open(folder / WEIGHTS, framework="pt") as weights:
        held = {name: list(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    adapter = get_peft_model_state_dict(model, adapter_name=model.active_adapters[0], save_embedding_layers=False)
    expected = {name: list(weight.shape) for name, weight in adapter.items()}
    # PEFT may add whole embeddings, whose names are those of the model.
    of_base = {f"base_model.model.{name}" for name, _ in model.get_base_model().named_parameters()}
    for name in sorted(expected.keys() | held.keys() - of_base):
        if held.get(name) != expected.get(name):
            wanted, found = expected.get(name, "none"), held.get(name, "none")
            return f"its adapter must hold {name!r} of shape {wanted}, got {found}"
    return None
