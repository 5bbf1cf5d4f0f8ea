"""Trains a student on prefixes that student and teacher write together within a KL budget (arXiv 2605.31159).

TRL's `DistillationTrainer` generates once per optimizer step, from the student, and minimizes a divergence at each
prefix of what was generated. `TRBTrainer` changes who writes these prefixes: TRB while the KL budget is positive, or
another policy. It lets the two models differ in logit width and EOS ids, logs how the budget was spent, and evaluates
pass@1. TRB never changes the loss; the alternatives that do are in `objective.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from datasets import Dataset, IterableDataset
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
)

from ..data.encoding import left_padded
from ..data.prompt_checks import check_datasets, check_judged
from ..evaluation.verifiers import Verifier
from ..models.cached_model import unwrap
from ..models.model_check import check_model
from ..models.model_kind import check_rotary
from ..models.next_token import NextTokenModel, TopKTeacher, is_transformers
from ..rollout import Policy, speculative
from ..rollout.caches import named_models
from ..rollout.policies import STUDENT
from ..teachers import Mixture, SelfTeacher
from ..teachers.separate import check_separate
from ..vocab import align, stop_with_all_eos_ids
from .config import TRBConfig
from .drafting import Drafting
from .engine.build import EngineModels, check_can_draw
from .engine.rollouts import SEEDS, RolloutEngines, budgets
from .evaluating_trainer import EVAL_STREAM, TRAIN_STREAM, EvaluatingTrainer
from .fields.engine import engine_draft_length
from .fused_loss import choose_fused_loss
from .generation import Generation
from .metrics.cost import ComputeCount
from .metrics.rollout_metrics import drafting_metrics, engine_metrics, rollout_metrics, warn_of_idle_budget
from .model_card import PAPER, Provenance, name_of
from .rollout_length import RolloutLength
from .sharding import check_can_unshard, whole_for_decoding
from .student import (
    check_can_be_saved,
    check_not_compiled,
    check_pad_token,
    check_trains,
    load_processing_class,
    load_student,
    without_init_kwargs,
)
from .supervision.facts import facts_of_tokens
from .supervision.prefix import cut_to_prefix
from .teachers.loading import DescribedTeacher, offloaded, prepare_teacher, teacher_and_tokenizer
from .teachers.routes import check_labels, weights_of_rows
from .trainer_arguments import TrainerArguments, budget_of
from .trl_decoding import check_completions, keep_to_alignment, without_engine, without_leftovers

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

    from .engine.turn import EngineTurn


class TRBTrainer(EvaluatingTrainer):
    """Distills `teacher_model` into `model` on prefixes that student and teacher write within a KL budget.

    Rollouts depend on the seed, the optimizer step and the process only, so a resumed run repeats exactly the run that
    was not interrupted.

    Args:
        model: The student: a path, or a causal LM, which may be a PEFT model.
        teacher_model: A path, a causal LM, or None to load `args.teacher_model_name_or_path`. Its tokenizer must give
            the same ids as the student's (checked if it is given by path); logit widths and EOS ids may differ. "self"
            or a `self_teacher` is the base model under a student with an adapter, a `mixture` is several teachers, a
            `RemoteTeacher` is a top-k teacher, and a `NextTokenModel` with `vocab_size` and `eos_token_ids` is any
            other.
        args: The configuration; None is the default one.
        train_dataset: Rows with a column "prompt", text or messages.
        eval_dataset: Held-out rows of the same kind.
        processing_class: The tokenizer; None loads the one of a student given by path.
        callbacks: As TRL's `DistillationTrainer`, like the arguments up to `tools`.
        optimizers: An optimizer and a learning rate schedule, or None for those of `args`.
        quantization_config: Of a student given by path.
        peft_config: Wraps the student in an adapter.
        tools: Functions that the student may call in its completions.
        verifier: Judges completions as verifier(prompt, completion, row) -> bool, for `eval_pass@1` on the eval
            dataset; None is the one that `args.eval_verifier` names, if any.
        policy: Writes the training prefixes; None is the one that `args.rollout_policy` names.

    Raises:
        TypeError: `args`, `policy`, `verifier`, `train_dataset` or, with a verifier, `eval_dataset` is of another type.
        ValueError: There is no teacher, the processing class is that of a vision-language model, a combination of
            options cannot keep its promise, a model lacks the padding token, the trained student could not be saved, a
            policy or verifier cannot be called as one, or a prompt cannot be used (of a stream, when it comes).
        IncompleteWeights: (a ValueError) the checkpoint of a model given by a path lacks some of its weights, or holds
            others.
        VocabularyMismatch: (a ValueError) tokenizers or EOS ids do not fit together.
    """

    _tag_names: ClassVar = ["trl", "distillation", "trb"]
    _name = "Trust-Region Behavior Blending"
    _paper: ClassVar = PAPER

    args: TRBConfig

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        teacher_model: str | PreTrainedModel | SelfTeacher | Mixture | NextTokenModel | TopKTeacher | None = None,
        args: TRBConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        tools: list[Callable[..., Any]] | None = None,
        verifier: Verifier | None = None,
        policy: Policy | None = None,
    ) -> None:
        # 1. Complete and check the arguments, before anything is loaded.
        check_not_compiled(model)
        args, teacher_model, policy, verifier = TrainerArguments.checked(
            model, teacher_model, args, policy, verifier, tools=bool(tools)
        )
        adapter, quantized = peft_config is not None, quantization_config is not None
        check_can_draw(args, model, teacher_model, policy, adapter=adapter, quantized=quantized, tools=bool(tools))
        check_datasets(train_dataset, eval_dataset)
        for rows in eval_dataset.values() if isinstance(eval_dataset, dict) else (eval_dataset,):
            if isinstance(rows, Dataset) and len(rows) == 0:
                raise ValueError("eval_dataset must have at least one row, got 0")
        if verifier is not None:
            check_judged(eval_dataset)
        self.made_from = Provenance(name_of(model), name_of(teacher_model))  # for the model card
        # 2. Load the student, and set up TRL's trainer without the teacher: it would refuse one of another logit width.
        loaded_here = isinstance(model, str)
        if isinstance(model, str):
            processing_class = processing_class or load_processing_class(model, args)
            model, quantization_config = load_student(model, args, quantization_config), None
        with without_init_kwargs(args) if loaded_here else nullcontext(), without_engine(args):
            super().__init__(
                model=model,
                teacher_model=None,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
                tools=tools,
            )
        check_trains(self.model)
        if self._is_vlm:
            raise ValueError("TRBTrainer decodes text: processing_class must be a tokenizer, got a processor")
        self.verifier = verifier
        # 3. Load the teacher, and align the two vocabularies.
        teacher, teacher_tokenizer = teacher_and_tokenizer(
            teacher_model, args, self.accelerator, self._tokenizer, self.model
        )
        self.alignment = align(self.model, teacher, self._tokenizer, teacher_tokenizer)
        stop_with_all_eos_ids(self.model, self.alignment)
        # Check only a model that this trainer will save. PEFT saves the configuration of an adapter.
        if (loaded_here or args.save_strategy != "no") and not hasattr(self.model, "peft_config"):
            check_can_be_saved(self.model, self._tokenizer)
        args.read_tokenizer(self._tokenizer, self.alignment.width)
        embedding = [("student", self.model), *named_models("teacher", teacher)]
        check_pad_token(self._tokenizer, [each for each in embedding if is_transformers(each[1])])
        # 4. Choose the loss, and see whether these models can be decoded and trained.
        check_can_unshard(self._dist, args, tools=bool(tools))
        args.check_top_k(self.alignment.width)
        self.teacher_model = None
        if isinstance(teacher, TopKTeacher):
            self._use_top_k_teacher(teacher)
        elif args.loss_tokens_of == "student":
            raise ValueError("loss_tokens_of is of a top-k teacher: leave it out")
        if not isinstance(teacher, (TopKTeacher, DescribedTeacher)):
            check_separate(self.model, teacher)
            self._fused_loss = choose_fused_loss(
                self.model, teacher, self.alignment, args, zero3=self._dist.is_zero3, tools=bool(tools)
            )
            self.teacher_model = prepare_teacher(teacher, self.accelerator, routed=args.teacher_column is not None)
            for dataset in (train_dataset, eval_dataset):
                check_labels(dataset, args.teacher_column, teacher)
        # Models of FSDP and DeepSpeed are checked when they are gathered for a rollout.
        if not (self._dist.is_fsdp or self.is_deepspeed_enabled):
            self._check_models(self.model, self.teacher_model)
        if self.teacher_model is not None:
            self._offloaded = offloaded(self.teacher_model, args, self.accelerator)
        # 5. What is kept over the run: its cost, its draft length and the length of its rollouts.
        here = [] if self.teacher_model is None else [part for _, part in named_models("", teacher)]
        self.compute = ComputeCount(self.model, here)
        self.add_callback(self.compute)
        self.drafting = Drafting(engine_draft_length(args) if args.use_vllm else args.draft_length)
        self.add_callback(self.drafting)
        self.length = RolloutLength(args)
        self.add_callback(self.length)
        # 6. Choose who decodes: vLLM, or we, or TRL with altered sampling of the student.
        self.engines: RolloutEngines | None = None
        if args.use_vllm:
            models = EngineModels.of(args, self.model, str(teacher_model))
            self.engines = RolloutEngines(args, models, self.accelerator, self.model, self._tokenizer, self.alignment)
            self.add_callback(self.engines)
        self._trl_decodes_student = any(True for _ in args.altered_sampling())
        keep_to_alignment(self, self.alignment, int(self.model.config.get_text_config().vocab_size))
        self._policy = policy
        self._generation = Generation()
        self._warned_of_idle_budget = False

    @staticmethod
    def _models_of_loss(student: Any, teacher: Any) -> list[tuple[str, Any]]:
        """Returns those that are of transformers; a `self_teacher` is the student."""
        models = [("student", student), *named_models("teacher", teacher)]
        return [each for each in models if is_transformers(each[1]) and not isinstance(each[1], SelfTeacher)]

    def _check_models(self, student: Any, teacher: Any) -> None:
        for name, model in self._models_of_loss(student, teacher) if self.args.check_models else []:
            check_model(model, name, loss=True, decode=not self.args.use_vllm)

    def _check_rotary(self, prompt_ids: list[list[int]]) -> None:
        """Checks that no row of a batch would be scored with the rotary factors of another one."""
        lengths, args = [len(ids) for ids in prompt_ids], self.args
        size = args.per_device_train_batch_size if self.model.training else args.per_device_eval_batch_size
        for name, model in self._models_of_loss(self.model_wrapped, self.teacher_model):
            inner = unwrap(model)
            for rows in [lengths] if size > 1 else [[length] for length in lengths]:
                longest = max(rows) + self._longest_rollout()
                check_rotary(inner.config, f"{name} {type(inner).__name__}", min(rows), longest)

    # ---- The budget and who writes the prefixes ----

    @property
    def policy(self) -> Policy:
        """The policy that writes the training prefixes."""
        return self._policy or self.args.policy(self.state.max_steps)

    @property
    def epsilon(self) -> float | None:
        """The KL budget of the current optimizer step in nats per token; None for a policy without a budget.

        It is a pure function of `state.global_step`.
        """
        return budget_of(self.policy, self.state.global_step)

    @property
    def served_teacher(self) -> str | None:
        """The name that a server gives the teacher, as a `RemoteTeacher` has it; None if the teacher is on none."""
        return getattr(self._top_k_teacher, "model", None)

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: dict[str, Any],
        has_tool_images: bool = False,
    ) -> list[list[int]]:
        self._check_rotary(prompt_ids)
        policy = self.policy if self.model.training else STUDENT
        completion_ids: list[list[int]]
        start = time.perf_counter()
        if self.engines is not None:
            turn = self._draw_from_engine(self.engines, prompt_ids, policy)
            completion_ids, start = turn.completion_ids, time.perf_counter() - turn.seconds
        elif policy.is_student(self.state.global_step) and self._trl_decodes_student:
            with without_leftovers(self.accelerator.unwrap_model(self.model_wrapped)):
                completion_ids = super()._generate_single_turn(prompt_ids, images, multimodal_fields, has_tool_images)
            check_completions(completion_ids, self.alignment)
        else:
            size = self.args.rollout_batch_size or len(prompt_ids)
            parts = [prompt_ids[start : start + size] for start in range(0, len(prompt_ids), size)]
            completion_ids = [ids for index, part in enumerate(parts) for ids in self._decode(part, policy, index)]
        self._generation.end_turn(completion_ids, time.perf_counter() - start)
        return completion_ids

    def _decode(self, prompt_ids: list[list[int]], policy: Policy, part: int) -> list[list[int]]:
        # 1. Lay out the prompts, and take the random numbers of this place in the run.
        input_ids, attention_mask = left_padded(prompt_ids, self._tokenizer.pad_token_id, self.accelerator.device)
        generator = self._generator_of_part(part)
        # 2. Decode on whole weights; the teacher's are gathered only if the policy needs the teacher.
        step = self.state.global_step
        with ExitStack() as stack:
            student = stack.enter_context(whole_for_decoding(self.model_wrapped, self.accelerator, self.args))
            teacher = None
            if policy.needs_teacher(step):
                teacher = stack.enter_context(self._teacher_for_decoding(part, len(prompt_ids)))
            with self.compute.paused():  # a process that resumes tries the models anew
                self._check_models(student, teacher)
                if teacher is not None:
                    self.drafting.try_models(student, teacher)
            rollout = speculative(
                student,
                teacher,
                input_ids,
                attention_mask,
                policy=policy,
                optimizer_step=step,
                max_new_tokens=self._longest_rollout(),
                alignment=self.alignment,
                pad_token_id=self._tokenizer.pad_token_id,
                temperature=self.temperature,
                generator=generator,
                draft_length=self.drafting.draft_length,
                teacher_states_limit=self.args.teacher_states_limit - self._generation.teacher_state_bytes,
                check=self.args.check_models,
            )
        self._generation.rollouts.append(rollout)
        return [ids[kept].tolist() for ids, kept in zip(rollout.tokens.cpu(), rollout.mask.cpu(), strict=True)]

    def _draw_from_engine(self, engines: RolloutEngines, prompt_ids: list[list[int]], policy: Policy) -> EngineTurn:
        step, generator = self.state.global_step, self._generator_of_part(0)
        turn = engines.draw(
            prompt_ids,
            budgets(policy, step, len(prompt_ids), generator),
            blended=engines.needs_teacher(self.policy, step, self.state.max_steps),
            step=step,
            seed=generator.initial_seed() % SEEDS,
            max_new_tokens=self._longest_rollout(),
        )
        self._generation.add_turn(turn, self.accelerator.device)
        self.compute.add_tokens(student=turn.student_tokens, teacher=turn.teacher_tokens)
        return turn

    def _longest_rollout(self) -> int:
        return self.length.at(self.state.global_step) if self.model.training else int(self.max_completion_length)

    def _generator_of_part(self, part: int) -> torch.Generator:
        place = self._generation.place(part)
        if self.model.training:
            return self._generator(TRAIN_STREAM, *place)
        return self._generator(EVAL_STREAM, self._eval_batches, *place)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        # 1. Decode; TRL calls `_generate_single_turn` once per turn of the conversations.
        self._generation = generation = Generation()
        column = self.args.teacher_column
        if column is not None:
            self._teacher_weights = weights_of_rows(inputs, column, self.teacher_model)
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        # 2. Metrics, here rather than per turn: tool calls give processes different numbers of turns, and all processes
        # must take part in a collective.
        if self._teacher_weights is not None:
            output["teacher_weights"] = self._teacher_weights.to(self.accelerator.device)
        mode = "train" if self.model.training else "eval"
        metrics = {"trb/tokens_per_second": generation.tokens_per_second(self.accelerator)}
        if self.model.training:
            of_student = self.policy.is_student(self.state.global_step)
            metrics |= rollout_metrics(generation, self.epsilon, self.accelerator, of_student=of_student)
            if not self._warned_of_idle_budget and self.accelerator.is_main_process:
                self._warned_of_idle_budget = warn_of_idle_budget(metrics, self.state.global_step + 1)
            # 3. Keep what the loss needs of the rollouts.
            if not of_student:
                estimator, weighted = self.args.loss_estimator, self.args.loss_weighted
                output |= facts_of_tokens(generation, output["completion_ids"], estimator, weighted=weighted)
            if self.engines is None and self.policy.needs_teacher(self.state.global_step):
                self.drafting.end_step()
                metrics |= drafting_metrics(generation, self.accelerator)
                kept = generation.take_teacher_states(output["completion_ids"], self.accelerator)
                if kept is not None:
                    output["teacher_states"] = kept
        else:
            self._eval_batches += 1
        if self.model.training and self.length.is_limited:
            metrics["trb/rollout_length"] = float(self._longest_rollout())
        if self.engines is not None:
            metrics |= engine_metrics(generation, self.accelerator)
            if self.args.teacher_from_engine:
                output |= generation.teacher_top(output["completion_ids"])
        if self.model.training and self.args.loss_prefix_tokens is not None:
            cut_to_prefix(output, self.args.loss_prefix_tokens, self.accelerator)
        if self._top_k_teacher is not None:  # is asked about the tokens of the loss only
            output |= self._told_of_teacher(generation.rollouts, output)
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
        return output

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        if self.engines is not None:
            self.engines.check_teacher()
        super()._save_checkpoint(model, trial)
