"""On-policy distillation whose early rollouts are drawn from the blend of student and teacher (arXiv 2605.31159).

TRL's `DistillationTrainer` generates once per optimizer step, from the student, and minimises a per-prefix divergence
on what was generated. `TRBTrainer` changes who writes those prefixes (TRB while the KL budget is positive, or another
policy), lets the two models differ in logit width and EOS ids, logs how the budget was spent, and evaluates pass@1. TRB
never changes the loss; the alternatives that do are in `prefix_loss.py`.
"""

from __future__ import annotations

import shutil
import textwrap
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
)
from transformers.trainer_utils import EvalLoopOutput
from trl.trainer.utils import get_config_model_id

from ..data.encoding import left_padded
from ..data.prompt_checks import check_datasets
from ..data.prompt_order import ResumableSampler, prompts_of_a_step
from ..data.prompt_stream import EndlessPrompts
from ..evaluation.pass_at_k import evaluate_pass_at_1
from ..evaluation.verifiers import Verifier, check_verified, check_verifier_signature, verifier_by_name
from ..models.cached_model import unwrap
from ..models.completion_states import completion_states
from ..models.lm_head import excludes_tokens, lm_head
from ..models.model_check import check_model
from ..models.model_kind import check_kind, check_separate
from ..rollout import Policy, Rollout, TrustRegion, speculative
from ..rollout.policies import STUDENT
from ..rollout.policy_signatures import check_policy_signatures
from ..vocab import align, check_tokenizers, stop_with_all_eos_ids
from .config import TRBConfig
from .cost import ComputeCount
from .drafting import Drafting, drafting_metrics, teacher_states, without_teacher_states
from .finite import stop_non_finite
from .model_card import Provenance, model_card
from .objective import Objective, log_weights, prefix_loss
from .resuming import ResumableTrainer
from .sharding import check_can_unshard, save_whole_model, whole_for_decoding
from .step_metrics import PrefixMeans, rollout_metrics, tokens_per_second, warn_of_idle_budget
from .student import load_processing_class, load_student, without_init_kwargs
from .teacher import load_teacher, load_teacher_tokenizer, prepare_teacher
from .trl_decoding import check_completions, keep_to_alignment, without_leftovers

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch.utils.data import DataLoader

# Streams of random numbers of one optimizer step; a run's numbers change if these do.
TRAIN_STREAM, EVAL_STREAM, PASS_STREAM = 0, 1, 2


class TRBTrainer(ResumableTrainer):
    """Distils `teacher_model` into `model` on prefixes written by student and teacher within a KL budget.

    Args:
        model, args, train_dataset, eval_dataset, processing_class, callbacks, optimizers, quantization_config,
            peft_config, tools: as TRL's `DistillationTrainer`; `args` is a `TRBConfig`.
        teacher_model: a path, an instance, or None to load `args.teacher_model_name_or_path`. Its tokenizer must give
            the same ids as the student's (checked where it is given by path); logit widths and EOS ids may differ.
        verifier: judge of completions, verifier(prompt, completion, row) -> bool, for `eval_pass@1` on the eval
            dataset; by default the one `args.eval_verifier` names, if any.
        policy: who writes the training prefixes; by default the one `args.rollout_policy` names.

    Rollouts depend on the seed, the optimizer step and the process alone, so a resumed run repeats the run that was not
    interrupted exactly.

    Raises:
        ValueError: no teacher, a vision-language processor, a combination of options that cannot keep its promise, a
            policy or verifier that cannot be called as one, a prompt that cannot be used (of a stream, when it comes).
        IncompleteWeights (a ValueError): a model given by a path whose checkpoint lacks some of its weights, or holds
            others.
        VocabularyMismatch (a ValueError): tokenizers or EOS ids that do not fit together.
    """

    _tag_names: ClassVar = ["trl", "distillation", "trb"]
    _name = "Trust-Region Behavior Blending"
    _paper: ClassVar = {
        "title": "Trust-Region Behavior Blending for On-Policy Distillation",
        "id": "2605.31159",
        "citation": textwrap.dedent("""\
            @misc{trb2026,
                title         = {{Trust-Region Behavior Blending for On-Policy Distillation}},
                year          = 2026,
                eprint        = {2605.31159},
                archivePrefix = {arXiv},
                url           = {https://arxiv.org/abs/2605.31159},
            }"""),
    }

    args: TRBConfig

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        teacher_model: str | PreTrainedModel | None = None,
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
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = TRBConfig(f"{name.split('/')[-1]}-TRB")
        if not isinstance(args, TRBConfig):
            raise TypeError(f"args must be a TRBConfig, got {type(args).__name__}")
        teacher_model = teacher_model if teacher_model is not None else args.teacher_model_name_or_path
        if teacher_model is None:
            raise ValueError("a teacher is required: pass teacher_model, or set teacher_model_name_or_path")
        if policy is not None:
            args.refuse_altered_sampling("a policy")
            check_policy_signatures(type(policy).__name__, policy)
        elif ":" in args.rollout_policy:  # a user's class is made once; it may fail, so before anything is loaded
            policy = args.policy(total_steps=0)
        if verifier is not None:
            check_verifier_signature(getattr(verifier, "__name__", "verifier"), verifier)
        elif args.eval_verifier is not None:
            verifier = verifier_by_name(args.eval_verifier)
        if verifier is not None and args.remove_unused_columns:
            raise ValueError("a verifier reads columns of the dataset: set remove_unused_columns=False")
        for name, given in (("student", model), ("teacher", teacher_model)):
            if not isinstance(given, str):
                check_kind(given, name)
        check_datasets(train_dataset, eval_dataset)
        self.made_from = Provenance(_name_of(model), _name_of(teacher_model))  # for the model card
        loaded_here = isinstance(model, str)
        if isinstance(model, str):
            processing_class = processing_class or load_processing_class(model, args)
            model, quantization_config = load_student(model, args, quantization_config), None
        # TRL refuses a teacher of another logit width, so it is not handed the teacher.
        with without_init_kwargs(args) if loaded_here else nullcontext():
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
        if self._is_vlm:
            raise ValueError("TRBTrainer decodes text: processing_class must be a tokenizer, got a processor")
        self.verifier = verifier
        if isinstance(teacher_model, str):
            teacher_tokenizer = load_teacher_tokenizer(teacher_model, args)
            if teacher_tokenizer is not None:
                check_tokenizers(self._tokenizer, teacher_tokenizer)  # in seconds, before minutes of loading weights
            teacher_model = load_teacher(teacher_model, args, self.accelerator)
        else:
            teacher_tokenizer = None
            if args.teacher_model_init_kwargs is not None:
                raise ValueError("teacher_model_init_kwargs is set, but teacher_model is already instantiated")
        check_separate(self.model, teacher_model)
        self.alignment = align(self.model, teacher_model, self._tokenizer, teacher_tokenizer)
        stop_with_all_eos_ids(self.model, self.alignment)
        # TRL's fused loss reads lm_head weights, which can be sliced; merged EOS columns exist only as logits, and an
        # excluded token gives it 0 * inf.
        self._excluding = [excludes_tokens(model) for model in (self.model, teacher_model)]
        widths = {int(model.config.get_text_config().vocab_size) for model in (self.model, teacher_model)}
        self._fused_loss = (
            self.alignment.is_slice and not any(self._excluding) and not (self._dist.is_zero3 and len(widths) > 1)
        )
        self._check_loss(tools=bool(tools))
        check_can_unshard(self._dist, args, tools=bool(tools))
        self.teacher_model = prepare_teacher(teacher_model, self.accelerator)
        if not (self._dist.is_fsdp or self.is_deepspeed_enabled):  # those two: with the first rollout, on whole weights
            self._check_models(self.model, self.teacher_model)
        self.compute = ComputeCount(self.model, teacher_model)
        self.add_callback(self.compute)

        self.drafting = Drafting(args.draft_length)
        self.add_callback(self.drafting)

        # The student alone is decoded by TRL where our decoder cannot: by vLLM, or with altered sampling.
        self._trl_decodes_student = args.use_vllm or any(True for _ in args.altered_sampling())
        keep_to_alignment(self, self.alignment, int(self.model.config.get_text_config().vocab_size))
        self._policy = policy  # None: the built-in one, which may depend on the length of the run
        self._rollouts: list[Rollout] = []  # of the current generation, one per turn and part of the batch
        self._turns = 0
        self._generated_tokens, self._decoding_seconds = 0, 0.0
        self._eval_batches = 0
        self._warned_of_idle_budget = False
        self._prefix_sums: Tensor | None = None
        self._prefix_means = {"train": PrefixMeans(), "eval": PrefixMeans()}

    def _check_loss(self, *, tools: bool) -> None:
        self.args.check_top_k(self.alignment.width)
        if any(self._excluding) and self.beta != 1.0:
            raise ValueError(
                "the lm_head of a model excludes tokens (-inf in its bias), and only the reverse KL (beta = 1.0) is "
                f"finite then, got beta = {self.beta}"
            )
        if self.alignment.is_slice and not self._fused_loss and self.beta != 1.0:
            raise ValueError(
                "DeepSpeed ZeRO-3 trains models of different logit widths by the reverse KL (beta = 1.0) only, got "
                f"beta = {self.beta}: use ZeRO-2 or FSDP2"
            )
        if not self._fused_loss and self.beta != 1.0:
            raise ValueError(
                "student and teacher stop with different EOS ids, and only the reverse KL (beta = 1.0) merges them, "
                f"got beta = {self.beta}"
            )
        if tools and self.args.loss_estimator == "sampled":
            raise ValueError("tools write tokens nobody sampled: loss_estimator='sampled' needs rollouts without tools")

    def _check_models(self, *models: PreTrainedModel) -> None:
        if self.args.check_models:
            for name, model in zip(("student", "teacher"), models, strict=False):
                check_model(model, name, loss=True, decode=not self.args.use_vllm or self.args.budget_active)

    # ---- The budget and who writes the prefixes ----

    @property
    def policy(self) -> Policy:
        """Who writes the training prefixes."""
        return self._policy or self.args.policy(self.state.max_steps)

    @property
    def epsilon(self) -> float | None:
        """KL budget of the current optimizer step in nats per token, a pure function of `state.global_step`; None for a
        policy without a budget."""
        budget = self.policy.epsilon(self.state.global_step) if isinstance(self.policy, TrustRegion) else None
        return budget if budget is None else float(budget)

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: dict[str, Any],
        has_tool_images: bool = False,
    ) -> list[list[int]]:
        policy = self.policy if self.model.training else STUDENT
        start = time.perf_counter()
        if policy.is_student(self.state.global_step) and self._trl_decodes_student:
            with without_leftovers(self.accelerator.unwrap_model(self.model_wrapped)):
                completion_ids: list[list[int]] = super()._generate_single_turn(
                    prompt_ids, images, multimodal_fields, has_tool_images
                )
            check_completions(completion_ids, len(prompt_ids), self.alignment)
            if self.args.use_vllm:
                self.compute.add_student_tokens(sum(map(len, [*prompt_ids, *completion_ids])))
        else:
            size = self.args.rollout_batch_size or len(prompt_ids)
            parts = [prompt_ids[start : start + size] for start in range(0, len(prompt_ids), size)]
            completion_ids = [ids for index, part in enumerate(parts) for ids in self._decode(part, policy, index)]
        self._turns += 1
        self._generated_tokens += sum(map(len, completion_ids))
        self._decoding_seconds += time.perf_counter() - start
        return completion_ids

    def _decode(self, prompt_ids: list[list[int]], policy: Policy, part: int) -> list[list[int]]:
        input_ids, attention_mask = left_padded(prompt_ids, self._tokenizer.pad_token_id, self.accelerator.device)
        turn = (self._turns, part) if part else (self._turns,)  # undivided batches keep the numbers they always had
        if self.model.training:
            generator = self._generator(TRAIN_STREAM, *turn)
        else:
            generator = self._generator(EVAL_STREAM, self._eval_batches, *turn)
        step = self.state.global_step
        with ExitStack() as stack:
            student = stack.enter_context(whole_for_decoding(self.model_wrapped, self.accelerator, self.args))
            teacher = None
            if policy.needs_teacher(step):
                teacher = stack.enter_context(whole_for_decoding(self.teacher_model, self.accelerator, self.args))
                with self.compute.paused():  # a process that resumes tries the models anew
                    self._check_models(student, teacher)
                    self.drafting.try_models(student, teacher)
            rollout = speculative(
                student,
                teacher,
                input_ids,
                attention_mask,
                policy=policy,
                optimizer_step=step,
                max_new_tokens=self.max_completion_length,
                alignment=self.alignment,
                pad_token_id=self._tokenizer.pad_token_id,
                temperature=self.temperature,
                generator=generator,
                draft_length=self.drafting.draft_length,
                teacher_states_limit=self.args.teacher_states_limit - self._teacher_state_bytes(),
                check=self.args.check_models,
            )
        self._rollouts.append(rollout)
        return [ids[kept].tolist() for ids, kept in zip(rollout.tokens.cpu(), rollout.mask.cpu(), strict=True)]

    def _teacher_state_bytes(self) -> int:
        states = [rollout.teacher_states for rollout in self._rollouts if rollout.teacher_states is not None]
        return sum(kept.untyped_storage().nbytes() for kept in states)

    def _generator(self, stream: int, *position: int) -> torch.Generator:
        """Random numbers that depend on where in the run they are used and on nothing that happened before."""
        where = (self.args.seed, stream, self.state.global_step, self.accelerator.process_index, *position)
        seed = np.random.SeedSequence(where).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(seed))

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rollouts, self._turns, self._generated_tokens, self._decoding_seconds = [], 0, 0, 0.0
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        # Here rather than per turn: tool calls give processes different numbers of turns, and a collective must not.
        mode = "train" if self.model.training else "eval"
        speed = tokens_per_second(self._generated_tokens, self._decoding_seconds, self.accelerator)
        metrics = {"trb/tokens_per_second": speed}
        if self.model.training:
            of_student = self.policy.is_student(self.state.global_step)
            metrics |= rollout_metrics(self._rollouts, self.epsilon, self.accelerator, of_student=of_student)
            if not self._warned_of_idle_budget and self.accelerator.is_main_process:
                self._warned_of_idle_budget = warn_of_idle_budget(metrics, self.state.global_step + 1)
            if self.args.loss_estimator == "sampled" and not of_student:
                output["log_weight"] = log_weights(self._rollouts, output["completion_ids"])
            if self.policy.needs_teacher(self.state.global_step):
                self.drafting.end_step()
                metrics |= drafting_metrics(self._rollouts, self.accelerator)
                kept = teacher_states(self._rollouts, output["completion_ids"], self.accelerator)
                if kept is not None:
                    output["teacher_states"] = kept
                self._rollouts = without_teacher_states(self._rollouts)
        else:
            self._eval_batches += 1
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
        return output

    def get_train_dataloader(self) -> DataLoader[Any]:
        if not isinstance(self.train_dataset, IterableDataset):
            loader: DataLoader[Any] = super().get_train_dataloader()
            return loader
        accumulation, rollouts = self.args.gradient_accumulation_steps, self.args.rollouts_per_prompt
        per_step = self._train_batch_size * self.accelerator.num_processes * accumulation
        endless: DataLoader[Any] = self._get_dataloader(
            dataset=EndlessPrompts(
                self.train_dataset,
                prompts=prompts_of_a_step(per_step, rollouts, per_step),  # how many there are, it finds out itself
                rollouts_per_prompt=rollouts,
                repeats=accumulation,
                shuffle_seed=self.args.seed if self.shuffle_dataset else None,
            ),
            description="Training",
            batch_size=self._train_batch_size * accumulation,
            is_training=True,
        )
        return endless

    def _get_train_sampler(self, dataset: Dataset | None = None) -> ResumableSampler:
        dataset = self.train_dataset if dataset is None else dataset
        accumulation, rollouts = self.args.gradient_accumulation_steps, self.args.rollouts_per_prompt
        per_step = self._train_batch_size * self.accelerator.num_processes * accumulation
        prompts = prompts_of_a_step(per_step, rollouts, len(dataset))
        steps_per_epoch = len(dataset) // prompts
        return ResumableSampler(
            data_source=dataset,
            batch_size=prompts,
            mini_repeat_count=rollouts,
            repeat_count=accumulation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
            epoch=lambda: self.state.global_step // steps_per_epoch,
        )

    # ---- The loss and what is logged of it ----

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, None]:
        # TRL calls the backbones past the forward that carries accelerate's autocast: without this, a bf16 run would
        # compute its loss in float32 while its rollouts are bfloat16.
        with self.accelerator.autocast():
            loss: Tensor | tuple[Tensor, None] = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        assert self._prefix_sums is not None
        # Not inside the wrapped forward: a collective there would race DDP's and FSDP's own.
        mode = "train" if self.model.training else "eval"
        self._prefix_means[mode].add(self._prefix_sums, self.accelerator)
        if self.model.training:
            value = loss[0] if isinstance(loss, tuple) else loss
            # A process alone would leave the others waiting for its gradients: all hear of any's loss.
            total = self.accelerator.reduce(value.detach().float(), reduction="sum")
            stop_non_finite("loss", total, self.state.global_step + 1, self.model)
        return loss

    def _get_last_hidden_state(
        self,
        unwrapped_model: PreTrainedModel,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        **images: Any,
    ) -> Tensor:
        # TRL's hands the left-padded batch on without positions, and so scores rows of GPT-2 at shifted ones.
        return completion_states(unwrap(unwrapped_model), input_ids, attention_mask, logits_to_keep)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # fp16's loss scaler (DeepSpeed has its own) expects infinite gradients: it skips the step and lowers it.
        if norm is not None and self.accelerator.mixed_precision != "fp16":
            stop_non_finite("gradient norm", norm, self.state.global_step + 1, self.model)
        return norm

    def _compute_loss(
        self, unwrapped_student: PreTrainedModel, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of one micro-batch, the sum of student entropies, and the number of prefixes (TRL's contract)."""
        input_ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        attention_mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        scored = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        kept = inputs["completion_ids"].shape[1]
        student_hidden = self._get_last_hidden_state(unwrapped_student, input_ids, attention_mask, kept)
        unwrapped_teacher = self.accelerator.unwrap_model(self.teacher_model)
        teacher_hidden = inputs.get("teacher_states")  # of the rollout, where it was asked for
        if teacher_hidden is None:
            with torch.no_grad():
                teacher_hidden = self._forward_redirection(
                    self.teacher_model,
                    unwrapped_teacher,
                    self._get_last_hidden_state,
                    unwrapped_teacher,
                    input_ids,
                    attention_mask,
                    kept,
                )
        # Held-out prompts are judged by the divergence from the teacher itself, whatever is minimised.
        objective = Objective("full" if self.args.loss_top_k is None else "top_k", self.args.loss_top_k)
        if self.model.training:
            objective = self.args.objective(self.state.global_step, self.state.max_steps)
        fused = self._fused_loss and objective.is_plain
        student_head, teacher_head = (
            lm_head(model, gather_zero3=not fused).narrowed(self.alignment.width)
            for model in (unwrapped_student, unwrapped_teacher)
        )
        valid = (scored != 0).to(student_head.weight.device)
        prefixes = valid.sum()
        terms = prefix_loss(
            student_hidden,
            teacher_hidden,
            student_head,
            teacher_head,
            valid,
            inputs["completion_ids"],
            inputs.get("log_weight"),
            objective=objective,
            fused_beta=self.beta if fused else None,
            items=prefixes.clamp(min=1) if num_items_in_batch is None else num_items_in_batch,
            alignment=self.alignment,
            temperature=self.temperature,
        )
        self._prefix_sums = terms.prefix_sums
        return terms.loss, terms.entropy_sum, prefixes

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        for name, value in self._prefix_means[mode].pop().items():
            if name != "trb/reverse_kl" or self.beta == 1.0:  # with another beta the loss is another divergence
                self._metrics[mode][name].append(value)
        if self.compute.started:
            logs = {**logs, **self.compute.totals()}
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # A checkpoint (_internal_call) keeps its shards, from which it resumes.
        folder = output_dir or self.args.output_dir
        if _internal_call or not save_whole_model(self, folder):
            super().save_model(output_dir, _internal_call)

    # ---- The card of the model ----

    def write_model_card(self, folder: Path, picture: Path | None = None) -> None:
        """Write README.md into `folder`, and `picture`, the curves, beside it. On one process; the others return."""
        if not self.is_world_process_zero():
            return
        if picture is not None:
            shutil.copyfile(picture, folder / f"curves{picture.suffix}")
        text = model_card(
            Path(self.args.output_dir).name,
            self.made_from,
            self.args,
            self.state.global_step,
            self.state.max_steps,
            [line for line in self.state.log_history if "step" in line],
            self._paper["citation"],
            None if picture is None else f"curves{picture.suffix}",
        )
        (folder / "README.md").write_text(text, encoding="utf-8")

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """TRL's hook, at each checkpoint: the card so far, in the output folder."""
        self.write_model_card(Path(self.args.output_dir))

    # ---- Evaluation ----

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        self._eval_batches = 0
        with self.compute.paused():
            output: EvalLoopOutput = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            if self.verifier is not None:
                assert output.metrics is not None
                output.metrics.update(self._pass_at_1(dataloader.dataset, metric_key_prefix))
        return output

    def _pass_at_1(self, dataset: Any, prefix: str) -> dict[str, float]:
        """Share of right completions of the student alone at temperature 1, `eval_samples` of each prompt, and the
        number of those that count as wrong because the verifier raised."""
        if not isinstance(dataset, Dataset):
            raise ValueError(f"pass@1 needs an eval_dataset of known length, got {type(dataset).__name__}")
        assert self.verifier is not None
        mine = range(self.accelerator.process_index, len(dataset), self.accelerator.num_processes)
        with whole_for_decoding(self.model_wrapped, self.accelerator, self.args) as student:
            evaluation = evaluate_pass_at_1(
                student,
                self._tokenizer,
                [dataset[index] for index in mine],
                self.verifier,
                samples=self.args.eval_samples,
                max_new_tokens=self.max_completion_length,
                batch_size=self.args.per_device_eval_batch_size,
                generator=self._generator(PASS_STREAM),
                alignment=self.alignment,
                encode=lambda prompts: self._tokenize_prompts(prompts)[0],
            )
        counts = torch.tensor([sum(evaluation.correct), evaluation.verifier_errors], device=self.accelerator.device)
        right, errors = self.accelerator.reduce(counts, reduction="sum").tolist()
        completions = len(dataset) * self.args.eval_samples
        check_verified(errors, completions, evaluation.first_error)
        return {
            f"{prefix}_pass@1": right / completions,
            f"{prefix}_verifier_errors": errors,
        }


def _name_of(model: Any) -> str:
    """A model's name or folder, for its card."""
    return str(model if isinstance(model, str) else get_config_model_id(getattr(model, "config", None)) or "a model")
