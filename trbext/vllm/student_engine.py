"""Draws rollouts of only the student from a plain vLLM engine of this process, which holds no teacher."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import EngineRefused
from ..vocab import Alignment
from .in_process import keeping_random_state, reload_weights, reset_prefix_cache, shut_down, worker_of


class StudentEngine:
    """The student in vLLM, whose sampler draws from its softmax over the vocabulary that both models share.

    Args:
        llm: vLLM's `LLM` of the student, in this process.
        alignment: The vocabulary; a rollout ends with any EOS id of either model.
    """

    def __init__(self, llm: Any, alignment: Alignment) -> None:
        self.llm, self.alignment = llm, alignment
        wider = int(llm.llm_engine.model_config.get_vocab_size()) > alignment.width
        self._allowed = list(range(alignment.width)) if wider else None

    def draw(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, temperature: float, seed: int
    ) -> list[list[int]]:
        """Draws one completion of each prompt.

        Args:
            prompts: Lists of token ids.
            max_new_tokens: Of a completion.
            temperature: Above 0.
            seed: The same one gives the same rollouts.

        Returns:
            The token ids of each completion, `alignment.stop` for every EOS id.

        Raises:
            EngineRefused: A rollout is too long for the engine, which would cut it off without a word.
        """
        longest, limit = max(map(len, prompts), default=0), int(self.llm.llm_engine.model_config.max_model_len)
        if longest + max_new_tokens > limit:
            raise EngineRefused(
                f"max_model_len of the student must be at least {longest + max_new_tokens} for prompts of {longest} "
                f"and completions of {max_new_tokens} tokens, got {limit}"
            )
        from vllm import SamplingParams

        stops = [self.alignment.stop, *self.alignment.duplicates]
        parameters = SamplingParams(
            temperature=temperature,
            max_tokens=max_new_tokens,
            ignore_eos=True,  # vLLM knows the student's own EOS ids only
            stop_token_ids=stops,
            allowed_token_ids=self._allowed,
            detokenize=False,
        )
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        with keeping_random_state():
            torch.manual_seed(seed)
            answers = self.llm.generate(given, parameters, use_tqdm=False)
        merged = dict.fromkeys(stops, self.alignment.stop)
        return [[merged.get(token, token) for token in answer.outputs[0].token_ids] for answer in answers]

    def load_student_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Loads the student's weights, by their names on the Hugging Face hub, and drops what was cached of the old."""
        worker = worker_of(self.llm)
        reload_weights(worker.model_runner.get_model(), weights, worker.vllm_config, worker.vllm_config.model_config)
        reset_prefix_cache(self.llm)

    def shut_down(self) -> None:
        """Ends the engine. Its memory is free once nothing refers to this object any more."""
        shut_down(self.llm)
