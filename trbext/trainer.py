"""On-policy distillation whose early rollouts are drawn from the blend of student and teacher (arXiv 2605.31159).

TRL's `DistillationTrainer` generates once per optimizer step, from the student, and minimises a per-prefix divergence
on what was generated. `TRBTrainer` changes who writes those prefixes while the KL budget is positive, lets the two
models differ in logit width and EOS ids, logs how the budget was spent, and evaluates pass@1. The loss never changes.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
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
from trl import DistillationTrainer
from trl.trainer.distillation_trainer import _chunked_divergence_loss
from trl.trainer.utils import RepeatSampler, get_config_model_id, maybe_gather_lm_head_ctx

from .compute import ComputeCount
from .config import TRBConfig
from .evaluation import Verifier, evaluate_pass_at_1, left_padded, verifier_by_name
from .losses import chunked_reverse_kl, lm_head, teacher_terms
from .metrics import PrefixMeans, rollout_metrics, tokens_per_second
from .rollout import Rollout, lockstep
from .teacher import load_teacher, load_teacher_tokenizer, prepare_teacher
from .unsharding import check_can_unshard, whole_for_decoding
from .vocab import align, check_tokenizers

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch.utils.data import DataLoader

# Streams of random numbers of one optimizer step; a run's numbers change if these do.
TRAIN_STREAM, EVAL_STREAM, PASS_STREAM = 0, 1, 2


class TRBTrainer(DistillationTrainer):  # type: ignore[misc]  # TRL is untyped
    """Distils `teacher_model` into `model` on prefixes written by student and teacher within a KL budget.

    Args:
        model, args, train_dataset, eval_dataset, processing_class, callbacks, optimizers, quantization_config,
            peft_config, tools: as TRL's `DistillationTrainer`; `args` is a `TRBConfig`.
        teacher_model: a path, an instance, or None to load `args.teacher_model_name_or_path`. Its tokenizer must give
            the same ids as the student's (checked where it is given by path); logit widths and EOS ids may differ.
        verifier: judge of completions, (prompt, completion_text, row) -> bool, for `eval_pass@1` on the eval dataset;
            by default the one `args.eval_verifier` names, if any.

    Rollouts depend on the seed, the optimizer step and the process alone, so a resumed run repeats the run that was not
    interrupted exactly.

    Raises:
        ValueError: no teacher, a vision-language processor, a combination of options that cannot keep its promise.
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
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = TRBConfig(f"{name.split('/')[-1]}-TRB")
        if not isinstance(args, TRBConfig):
            raise TypeError(f"args must be a TRBConfig, got {type(args).__name__}")
        teacher_model = teacher_model if teacher_model is not None else args.teacher_model_name_or_path
        if teacher_model is None:
            raise ValueError("a teacher is required: pass teacher_model, or set teacher_model_name_or_path")
        if verifier is None and args.eval_verifier is not None:
            verifier = verifier_by_name(args.eval_verifier)
        if verifier is not None and args.remove_unused_columns:
            raise ValueError("a verifier reads columns of the dataset: set remove_unused_columns=False")
        # TRL refuses a teacher of another logit width, so it is not handed the teacher.
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
        self.alignment = align(self.model, teacher_model, self._tokenizer, teacher_tokenizer)
        # TRL's fused loss reads lm_head weights, which can be sliced; merged EOS columns exist only as logits.
        self._fused_loss = args.loss_top_k is None and self.alignment.is_slice
        self._check_loss(teacher_model)
        check_can_unshard(self._dist, args, tools=bool(tools))
        self.teacher_model = prepare_teacher(teacher_model, self.accelerator)
        self.compute = ComputeCount(self.model, teacher_model)
        self.add_callback(self.compute)

        # The student alone is decoded by TRL where our decoder cannot: by vLLM, or with altered sampling.
        self._trl_decodes_student = args.use_vllm or any(True for _ in args.altered_sampling())
        self._rollouts: list[Rollout] = []  # of the current generation, one per turn of the conversation
        self._turns = 0
        self._generated_tokens, self._decoding_seconds = 0, 0.0
        self._eval_batches = 0
        self._prefix_sums: Tensor | None = None
        self._prefix_means = {"train": PrefixMeans(), "eval": PrefixMeans()}

    def _check_loss(self, teacher_model: PreTrainedModel) -> None:
        widths = {int(model.config.get_text_config().vocab_size) for model in (self.model, teacher_model)}
        if not self._fused_loss and self.beta != 1.0:
            raise ValueError(
                "student and teacher stop with different EOS ids, and only the reverse KL (beta = 1.0) merges them, "
                f"got beta = {self.beta}"
            )
        if self._dist.is_zero3 and (len(widths) > 1 or not self._fused_loss):
            raise ValueError(
                "DeepSpeed ZeRO-3 shards the lm_head, which loss_top_k, differing logit widths and differing EOS ids "
                "need whole: use ZeRO-2 or FSDP"
            )

    # ---- The budget and who writes the prefixes ----

    @property
    def epsilon(self) -> float:
        """KL budget of the current optimizer step in nats per token; a pure function of `state.global_step`."""
        if not self.args.budget_active:
            return 0.0
        return self.args.schedule(self.state.max_steps)(self.state.global_step)

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: dict[str, Any],
        has_tool_images: bool = False,
    ) -> list[list[int]]:
        epsilon = self.epsilon if self.model.training else 0.0
        start = time.perf_counter()
        if epsilon == 0.0 and self._trl_decodes_student:
            completion_ids: list[list[int]] = super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, has_tool_images
            )
            if self.args.use_vllm:
                self.compute.add_student_tokens(sum(map(len, [*prompt_ids, *completion_ids])))
        else:
            completion_ids = self._decode(prompt_ids, epsilon)
        self._turns += 1
        self._generated_tokens += sum(map(len, completion_ids))
        self._decoding_seconds += time.perf_counter() - start
        return completion_ids

    def _decode(self, prompt_ids: list[list[int]], epsilon: float) -> list[list[int]]:
        input_ids, attention_mask = left_padded(prompt_ids, self._tokenizer.pad_token_id, self.accelerator.device)
        if self.model.training:
            generator = self._generator(TRAIN_STREAM, self._turns)
        else:
            generator = self._generator(EVAL_STREAM, self._eval_batches, self._turns)
        with ExitStack() as stack:
            student = stack.enter_context(whole_for_decoding(self.model_wrapped, self.accelerator, self.args))
            teacher = None
            if epsilon > 0:
                teacher = stack.enter_context(whole_for_decoding(self.teacher_model, self.accelerator, self.args))
            rollout = lockstep(
                student,
                teacher,
                input_ids,
                attention_mask,
                epsilon=epsilon,
                max_new_tokens=self.max_completion_length,
                alignment=self.alignment,
                pad_token_id=self._tokenizer.pad_token_id,
                temperature=self.temperature,
                generator=generator,
            )
        self._rollouts.append(rollout)
        return [ids[kept].tolist() for ids, kept in zip(rollout.tokens.cpu(), rollout.mask.cpu(), strict=True)]

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
            metrics |= rollout_metrics(self._rollouts, self.epsilon, self.accelerator)
        else:
            self._eval_batches += 1
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
        return output

    def _get_train_sampler(self, dataset: Dataset | None = None) -> RepeatSampler:
        dataset = self.train_dataset if dataset is None else dataset
        accumulation = self.args.gradient_accumulation_steps
        per_step = self._train_batch_size * self.accelerator.num_processes * accumulation
        if len(dataset) < per_step:
            raise ValueError(f"an optimizer step takes {per_step} prompts, the train_dataset has {len(dataset)}")
        steps_per_epoch = len(dataset) // per_step
        return _ResumableSampler(
            data_source=dataset,
            batch_size=per_step,
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
        self._prefix_means["train" if self.model.training else "eval"].add(self._prefix_sums, self.accelerator)
        return loss

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
        student_head = lm_head(unwrapped_student).narrowed(self.alignment.width)
        teacher_head = lm_head(unwrapped_teacher).narrowed(self.alignment.width)
        device = student_head.weight.device  # a device_map may end the backbone elsewhere than the head
        if teacher_head.weight.device != device:
            raise ValueError(f"both lm_heads must be on one device, got {device} and {teacher_head.weight.device}")
        student_hidden, teacher_hidden = student_hidden.to(device), teacher_hidden.to(device)
        valid = (scored != 0).to(device)
        tokens = inputs["completion_ids"].to(device)[valid]
        prefixes = valid.sum()
        items = prefixes.clamp(min=1) if num_items_in_batch is None else num_items_in_batch

        if self._fused_loss:
            loss, entropy_sum, _ = _chunked_divergence_loss(
                student_hidden,
                teacher_hidden,
                student_head.weight,
                teacher_head.weight,
                valid,
                self.beta,
                num_items_in_batch=items,
                student_lm_head_bias=student_head.bias,
                teacher_lm_head_bias=teacher_head.bias,
                student_logit_scale=student_head.scale,
                teacher_logit_scale=teacher_head.scale,
                student_final_logit_softcapping=student_head.softcap,
                teacher_final_logit_softcapping=teacher_head.softcap,
                temperature=self.temperature,
            )
            with maybe_gather_lm_head_ctx(teacher_head.weight, teacher_head.bias):
                teacher = teacher_terms(
                    teacher_hidden[valid], teacher_head, tokens, self.alignment, temperature=self.temperature
                )
            reverse_kl_sum = loss * items
        else:
            terms = chunked_reverse_kl(
                student_hidden[valid],
                teacher_hidden[valid],
                student_head,
                teacher_head,
                tokens,
                self.alignment,
                top_k=self.args.loss_top_k,
                temperature=self.temperature,
            )
            reverse_kl_sum, entropy_sum, teacher = terms.reverse_kl.sum(), terms.student_entropy.sum(), terms.teacher
            loss = reverse_kl_sum / items
        self._prefix_sums = PrefixMeans.sums(reverse_kl_sum, prefixes, teacher)
        return loss, entropy_sum.detach(), prefixes

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        for name, value in self._prefix_means[mode].pop().items():
            if name != "trb/reverse_kl" or self.beta == 1.0:  # with another beta the loss is another divergence
                self._metrics[mode][name].append(value)
        if self.compute.started:
            logs = {**logs, **self.compute.totals()}
        super().log(logs, start_time)

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
        return {
            f"{prefix}_pass@1": right / (len(dataset) * self.args.eval_samples),
            f"{prefix}_verifier_errors": errors,
        }


class _ResumableSampler(RepeatSampler):  # type: ignore[misc]
    """TRL's sampler with each epoch's order a function of the epoch.

    TRL's own draws one order after another from a generator that a checkpoint does not hold: a run resumed in its
    second epoch would see the first epoch's order again.
    """

    def __init__(self, *, epoch: Callable[[], int], **kwargs: Any) -> None:
        super().__init__(mini_repeat_count=1, **kwargs)
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed + self.epoch())
        yield from super().__iter__()
