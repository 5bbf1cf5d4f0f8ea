"""Writes the sources of a vLLM that declares exactly what trbext uses of it, and objects of a running one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from trbext.vllm.interface import OTHERS, Use


def _function(use: Use, indent: str) -> str:
    parameters = [word for word in use.parameters or () if word != OTHERS]
    parameters = [*parameters, "supported_tasks"] if OTHERS in (use.parameters or ()) else parameters
    words = ", ".join((["self"] if use.owner else []) + ["**kwargs" if one == "kwargs" else one for one in parameters])
    return f"{indent}def {use.name}({words}):\n{indent}    return None\n"


def write_sources(uses: Sequence[Use], package: Path) -> None:
    """Writes one file per module, in which a class declares its attributes in turn as fields and on self."""
    for module in {use.module for use in uses}:
        own = [use for use in uses if use.module == module]
        text = "from dataclasses import dataclass\n"
        for use in own:
            if use.owner:
                continue
            if use.name[0].isupper():
                text += f"@dataclass\nclass {use.name}(Exception):\n    pass\n"
                text += "".join(f"    {field}: int\n" for field in use.parameters or ())
            else:
                text += _function(use, "")
        for owner in dict.fromkeys(use.owner for use in own if use.owner):
            text += f"class {owner}:\n    pass\n"
            attributes = [use.name for use in own if use.owner == owner and use.parameters is None]
            text += "".join(f"    {name}: int\n" for name in attributes[::2])
            text += "".join(_function(use, "    ") for use in own if use.owner == owner and use.parameters is not None)
            text += "    def set_up(self):\n        return None\n"
            text += "".join(f"        self.{name} = 0\n" for name in attributes[1::2])
        file = package.joinpath(*module.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def replace_in(package: Path, module: str, old: str, new: str) -> None:
    """Changes one declaration of the sources."""
    file = package.joinpath(*module.split(".")).with_suffix(".py")
    text = file.read_text(encoding="utf-8")
    assert old in text, old
    file.write_text(text.replace(old, new), encoding="utf-8")


def install(monkeypatch: pytest.MonkeyPatch, package: Path, version: str = "0.32.0") -> None:
    """Makes `import vllm` give a module whose sources are in `package`."""
    module: Any = ModuleType("vllm")
    module.__version__, module.__file__ = version, str(package / "__init__.py")
    monkeypatch.setitem(sys.modules, "vllm", module)


class Runner:
    """A model runner V1 with all that the hook reads."""

    def __init__(self) -> None:
        self._draft_probs = self._draft_prob_req_ids = self.model = None
        self.discard_request_mask = self.seq_lens = self.device = 0
        self.requests: dict[str, Any] = {}
        self.effective_drafter_max_model_len = self.max_model_len = 64
        self.use_async_scheduling = False
        self.speculative_config = self.scheduler_config = self.parallel_config = SimpleNamespace()
        self.drafter = Drafter()
        self.input_batch = Batch()

    def _sample(self, logits: Any, spec_decode_metadata: Any) -> Any:
        raise NotImplementedError


class Drafter:
    """Its drafter."""

    def __init__(self) -> None:
        self.model = "student"

    def _sample_from_logits(self, logits: Any, sampling_metadata: Any) -> Any:
        raise NotImplementedError

    def take_last_draft_probs(self) -> Any:
        raise NotImplementedError


class Batch:
    """Its batch."""

    def __init__(self) -> None:
        self.num_tokens_no_spec = self.num_prompt_tokens = self.sampling_metadata = 0
        self.num_reqs = 0

    @property
    def req_ids(self) -> list[str]:
        return []

    def update_async_output_token_ids(self) -> None:
        raise NotImplementedError
