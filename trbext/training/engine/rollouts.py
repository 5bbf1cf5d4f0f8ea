"""Draws the rollouts of a run from vLLM, with the student's present weights, and changes the engine after the warmup.

There are two engines, and never both at a time. The engine of teacher and student draws from mu at any KL budget. Once
the budget stays 0 to the end of the run, an engine of only the student takes its place in the processes of the trainer,
and the memory of the teacher is freed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...errors import EngineFailed
from ...rollout import Policy
from ...rollout.policies import LambdaCoin, TrustRegion
from ...vllm.client import EngineDraw, EngineRollouts
from ...vllm.in_process import free_memory
from ..checkpoints.random_state import forked_random_state
from .build import EngineModels, student_engine, trb_engine
from .student_weights import StudentWeights
from .turn import EngineTurn, rows_of

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

    from ...vllm.student_engine import StudentEngine
    from ...vocab import Alignment
    from ..config import TRBConfig

SEEDS = 2**62  # seeds of an engine lie below: they travel as signed integers, and one is added to them


def budgets(policy: Policy, step: int, rows: int, generator: torch.Generator) -> list[float]:
    """Returns the KL budget of each of `rows` rollouts at an optimizer step.

    Args:
        policy: One of `POLICIES`.
        step: Optimizer step, 0-based.
        rows: Rollouts.
        generator: Of the coins of a policy that decides about each rollout.
    """
    if isinstance(policy, LambdaCoin):
        epsilon = policy.budget(step, torch.rand(rows, dtype=torch.float64, generator=generator))
    else:
        assert isinstance(policy, TrustRegion)
        epsilon = policy.epsilon(step)
    if isinstance(epsilon, Tensor):
        return [float(each) for each in epsilon.tolist()]
    return [float(epsilon)] * rows


def last_blended_step(policy: Policy, total_steps: int) -> int:
    """Returns the last optimizer step of a run whose rollouts are not the student's; -1 if all are."""
    return next((step for step in reversed(range(total_steps)) if not policy.is_student(step)), -1)


class RolloutEngines(TrainerCallback):
    """The engines of a run over its optimizer steps.

    Args:
        args: Of the run.
        models: Of the engines.
        accelerator: Of the run.
        student: Is trained; out of DDP.
        tokenizer: The student's.
        alignment: The vocabulary that both models share.
    """

    def __init__(
        self,
        args: TRBConfig,
        models: EngineModels,
        accelerator: Accelerator,
        student: PreTrainedModel,
        tokenizer: Any,
        alignment: Alignment,
    ) -> None:
        self.args, self.models, self.accelerator, self.alignment = args, models, accelerator, alignment
        self.pad_token_id = int(tokenizer.pad_token_id)
        self.in_server = args.vllm_mode == "server"
        self._weights = StudentWeights(student, accelerator)
        self._is_blended: bool | None = None  # which engine there is, on every process; None before the first
        self._blended: EngineRollouts | None = None  # in a server: on the main process
        self._student: StudentEngine | None = None
        self._teacher_digest: list[str] | None = None
        self._loaded_at: int | None = None  # the optimizer step whose weights the engine has
        self._last_blended: tuple[int, int] | None = None  # of a run of so many steps, see `needs_teacher`

    def needs_teacher(self, policy: Policy, step: int, total_steps: int) -> bool:
        """Returns whether the engine must hold the teacher at a step: for its rollouts, later ones, or the loss.

        Args:
            policy: Of the run.
            step: Optimizer step, 0-based.
            total_steps: Of the run; 0 before training.
        """
        if self.args.teacher_from_engine or self.args.vllm_after_warmup == "keep" or self.in_server:
            return True
        if self._last_blended is None or self._last_blended[0] != total_steps:
            self._last_blended = total_steps, last_blended_step(policy, total_steps)
        return step <= self._last_blended[1]

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        epsilon: Sequence[float],
        *,
        blended: bool,
        step: int,
        seed: int,
        max_new_tokens: int,
        temperature: float | None = None,
    ) -> EngineTurn:
        """Draws one completion of each prompt of this process. Every process calls it.

        Args:
            prompts: Lists of token ids.
            epsilon: The KL budget of each, nats per token.
            blended: Whether the engine that holds the teacher draws; if not, `epsilon` must be 0.
            step: Optimizer step, of which the engine needs the weights.
            seed: Of this process.
            max_new_tokens: Of a completion.
            temperature: None is the run's.

        Raises:
            ValueError: As `EngineRollouts.draw`.
            NonFiniteLogits: As `EngineRollouts.draw`.
            EngineFailed: As `EngineRollouts.draw`.
        """
        # vLLM seeds all global generators when an engine is made, and a resumed run makes it at another step.
        with forked_random_state(self.accelerator.device):
            self._use(blended=blended)
            start = time.perf_counter()
            self._load_weights(step)
            loaded = time.perf_counter()
            settings: dict[str, Any] = {
                "max_new_tokens": max_new_tokens,
                "temperature": self.args.temperature if temperature is None else temperature,
            }
            if self._student is not None:
                completion_ids = self._student.draw(prompts, seed=seed, **settings)
                turn = EngineTurn.of_student(prompts, completion_ids)
            else:
                draw = self._draw_blended(prompts, epsilon, seed, settings)
                # A server has a draft length of its own, and its passes are counted on the process that asks it.
                known = {} if self._blended is None else self._blended.handshake
                turn = EngineTurn.of_draw(prompts, draw, int(known.get("draft_length", 0)))
        return dataclasses.replace(turn, seconds=time.perf_counter() - loaded, sync_seconds=loaded - start)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Makes the first draws inside and after it load the student's weights, and drop what the engine has cached.

        An evaluation may be of weights that no optimizer step made, such as those of the best checkpoint. And what an
        engine has cached changes the rounding of later tokens, while an evaluation must change no step.
        """
        self._loaded_at = None
        try:
            yield
        finally:
            self._loaded_at = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._loaded_at = None  # training begins, perhaps again or from a checkpoint

    def check_teacher(self) -> None:
        """Checks that the engine's teacher is the one that it had at first.

        Raises:
            EngineFailed: Its weights have changed.
        """
        if self._teacher_digest is not None and self._digest() != self._teacher_digest:
            raise EngineFailed("the weights of the teacher in vLLM have changed, so its rollouts follow another law")

    def end(self) -> None:
        """Ends the engine of this process, if there is one, and frees its memory. A server continues to run."""
        self.check_teacher()
        engine: Any = self._student if self._blended is None else self._blended.engine
        self._student = self._blended = self._teacher_digest = self._is_blended = None
        if engine is not None and not self.in_server:
            engine.shut_down()
            del engine
            free_memory()

    # ---- Which engine ----

    def _use(self, *, blended: bool) -> None:
        """Makes the engine that is needed, after the end of the other one."""
        if self._is_blended == blended:
            return
        self.end()
        self._is_blended, self._loaded_at = blended, None
        if not blended:
            self._student = student_engine(self.args, self.models, self.alignment)
        elif not self.in_server or self.accelerator.is_main_process:
            top_k = int(self.args.loss_top_k or 0) if self.args.teacher_from_engine else 0
            engine = trb_engine(self.args, self.models)
            self._blended = EngineRollouts(engine, self.alignment, pad_token_id=self.pad_token_id, top_k=top_k)
            self._teacher_digest = self._digest()

    def _digest(self) -> list[str]:
        assert self._blended is not None
        return [digests["teacher"] for digests in self._blended.engine.digest()]

    # ---- The student's weights ----

    def _load_weights(self, step: int) -> None:
        """Sends the student's weights to the engine, unless it has those of this step."""
        if self._loaded_at == step:
            return
        if self.in_server:
            folder = Path(self.args.output_dir).absolute() / "student-for-vllm"
            self._weights.load_from_folder(None if self._blended is None else self._blended.engine, folder)
        else:
            engine: Any = self._student if self._blended is None else self._blended.engine
            engine.load_student_weights(iter(self._weights))
        self._loaded_at = step

    # ---- Rollouts from mu ----

    def _draw_blended(
        self, prompts: Sequence[Sequence[int]], epsilon: Sequence[float], seed: int, settings: dict[str, Any]
    ) -> EngineDraw:
        settings = {**settings, "repair": self.args.vllm_repair}
        if not self.in_server or self.accelerator.num_processes == 1:
            assert self._blended is not None
            return self._blended.draw(prompts, epsilon=epsilon, seed=seed, **settings)
        # The records of a server are taken at once, so one process asks for the rollouts of all.
        asked = gather_object([(list(prompts), list(epsilon))])
        answer: list[Any] = [None]
        if self._blended is not None:
            of_all = [list(chain.from_iterable(parts)) for parts in zip(*asked, strict=True)]
            answer = [self._blended.draw(of_all[0], epsilon=of_all[1], seed=seed, **settings)]
        broadcast_object_list(answer)
        before = sum(len(part[0]) for part in asked[: self.accelerator.process_index])
        return rows_of(answer[0], before, len(prompts), counted=self.accelerator.is_main_process)
