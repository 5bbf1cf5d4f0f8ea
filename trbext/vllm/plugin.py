"""Prepares each process of a TRB engine before its models are configured (entry point `vllm.general_plugins`).

vLLM calls `register` in all its processes, also in those of engines that have nothing to do with trbext. It therefore
only replaces two checks, by ones that do the same unless the engine has our worker extension. The samplers are
installed elsewhere (`WorkerExtension.trb_enable`): vLLM only logs a plugin that fails, and would then sample the
teacher.
"""

from __future__ import annotations

import functools
from typing import Any

from .engine import VERL_WORKER_EXTENSION, WORKER_EXTENSION
from .requests import check_request


def register() -> None:
    """Lets models of unlike width speculate, and refuses at admission the requests that could not follow mu."""
    from vllm.config.speculative import SpeculativeConfig
    from vllm.v1.engine.input_processor import InputProcessor

    check_requests_at_admission(InputProcessor)
    allow_unlike_widths(SpeculativeConfig)


def check_requests_at_admission(processor: Any) -> None:
    """Makes `processor`, vLLM's InputProcessor, refuse a request by HTTP 400. In the worker it would end the engine."""
    from vllm.exceptions import VLLMValidationError

    stock = processor._validate_params
    if hasattr(stock, "__wrapped__"):
        return

    @functools.wraps(stock)
    def validate(self: Any, parameters: Any, *others: Any, **named: Any) -> Any:
        config = self.vllm_config
        if config.parallel_config.worker_extension_cls in (WORKER_EXTENSION, VERL_WORKER_EXTENSION):
            models = [config.model_config, getattr(config.speculative_config, "draft_model_config", None)]
            try:
                check_request(parameters, min(model.get_vocab_size() for model in models if model is not None))
            except ValueError as error:
                raise VLLMValidationError(str(error)) from None
        return stock(self, parameters, *others, **named)

    processor._validate_params = validate


def allow_unlike_widths(config: Any) -> None:
    """Makes `config`, vLLM's SpeculativeConfig, leave models of unlike logit width to `torch.ops.trb.verify`.

    Only our own `engine_args` make a draft model draft with probabilities, so other engines keep vLLM's check.
    """
    name = "verify_equal_vocab_size_if_draft_model"
    stock = getattr(config, name)
    if hasattr(stock, "__wrapped__"):
        return

    @functools.wraps(stock)
    def verify(self: Any) -> Any:
        return None if self.draft_sample_method == "probabilistic" else stock(self)

    setattr(config, name, verify)
