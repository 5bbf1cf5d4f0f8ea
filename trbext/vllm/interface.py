"""Lists what trbext uses of vLLM beyond its public interface.

vLLM promises nothing of it. `python_tests/vllm/versions/check_wheels.py` looks it up in the sources of each release,
and `trbext/vllm/versions.py` in the running engine before the first rollout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

OTHERS = "..."  # last in `parameters`: whatever follows is passed through


@dataclass(frozen=True)
class Use:
    """A function, class or attribute of vLLM that trbext calls, replaces or reads."""

    module: str  # below vllm
    owner: str  # the class that has it; empty: the module
    name: str
    parameters: tuple[str, ...] | None = None  # of a function, after self; of a class: its fields; None: an attribute

    @property
    def title(self) -> str:
        """The name with its class, or with its module."""
        return f"{self.owner or self.module}.{self.name}"

    def difference(self, parameters: tuple[str, ...] | None, *, found: bool) -> str | None:
        """Says what is not as trbext uses it.

        Args:
            parameters: What the function or class that was found takes; None for anything else.
            found: Whether there is anything of that name.
        """
        if not found:
            return f"{self.owner or self.module} must have {self.name}, got none"
        if self.parameters is None or parameters == self.parameters:
            return None
        if self.parameters[-1:] == (OTHERS,) and parameters is not None:
            known = self.parameters[:-1]
            if parameters[: len(known)] == known:
                return None
        took = "no function" if parameters is None else f"({', '.join(parameters)})"
        return f"{self.title} must take ({', '.join(self.parameters)}), got {took}"


def _functions(module: str, owner: str, **parameters: str) -> Iterator[Use]:
    for name, words in parameters.items():
        yield Use(module, owner, name, tuple(words.split()))


def _attributes(module: str, owner: str, names: str) -> Iterator[Use]:
    for name in names.split():
        yield Use(module, owner, name)


RUNNER = "v1.worker.gpu_model_runner"
PROPOSER = "v1.spec_decode.llm_base_proposer"
RELOAD = "model_executor.model_loader.reload.layerwise"

# The load of weights into a model that serves.
RELOAD_USES: tuple[Use, ...] = (
    *_functions(RELOAD, "", initialize_layerwise_reload="model", finalize_layerwise_processing="model model_config"),
    *_functions(RELOAD, "", finalize_layerwise_reload="*args **kwargs"),
)

# The hook, the worker extension and the plugin (Model Runner V1). Replaced functions are called by vLLM, so their
# parameters have to be the same; the others are called by us.
V1_USES: tuple[Use, ...] = (
    *_functions(RUNNER, "GPUModelRunner", _sample="logits spec_decode_metadata"),
    *_attributes(RUNNER, "GPUModelRunner", "_draft_probs _draft_prob_req_ids discard_request_mask seq_lens requests"),
    *_attributes(RUNNER, "GPUModelRunner", "effective_drafter_max_model_len max_model_len use_async_scheduling"),
    *_attributes(RUNNER, "GPUModelRunner", "device drafter input_batch model"),
    *_attributes(RUNNER, "GPUModelRunner", "speculative_config scheduler_config parallel_config"),
    *_functions(PROPOSER, "SpecDecodeBaseProposer", _sample_from_logits="logits sampling_metadata"),
    *_functions(PROPOSER, "SpecDecodeBaseProposer", take_last_draft_probs=""),
    *_attributes(PROPOSER, "SpecDecodeBaseProposer", "model"),
    *_functions("v1.worker.gpu_input_batch", "InputBatch", update_async_output_token_ids=""),
    *_attributes("v1.worker.gpu_input_batch", "InputBatch", "num_tokens_no_spec num_prompt_tokens req_ids num_reqs"),
    *_attributes("v1.worker.gpu_input_batch", "InputBatch", "sampling_metadata"),
    *_attributes("v1.worker.gpu_input_batch", "CachedRequestState", "sampling_params"),
    *_attributes("v1.sample.metadata", "SamplingMetadata", "temperature"),
    *_attributes("v1.spec_decode.metadata", "SpecDecodeMetadata", "draft_token_ids num_draft_tokens max_spec_len"),
    *_attributes("v1.spec_decode.metadata", "SpecDecodeMetadata", "cu_num_draft_tokens target_logits_indices"),
    *_functions("v1.outputs", "", SamplerOutput="sampled_token_ids logprobs_tensors"),
    *RELOAD_USES,
    *_functions("v1.engine.input_processor", "InputProcessor", _validate_params=f"params {OTHERS}"),
    *_functions("config.speculative", "SpeculativeConfig", verify_equal_vocab_size_if_draft_model=""),
    *_attributes("config.speculative", "SpeculativeConfig", "method num_speculative_tokens draft_model_config"),
    *_attributes("config.speculative", "SpeculativeConfig", "draft_sample_method rejection_sample_method"),
    *_attributes("config.speculative", "SpeculativeConfig", "parallel_drafting"),
    *_attributes("config.parallel", "ParallelConfig", "worker_extension_cls pipeline_parallel_size"),
    *_attributes("exceptions", "", "VLLMValidationError"),
)

V2_RUNNER = "v1.worker.gpu.model_runner"
V2_SPECULATOR = "v1.worker.gpu.spec_decode.speculator"

# The adapter of Model Runner V2 (`model_runner_v2.py`), which drafts with a model of its own from 0.32 on.
V2_USES: tuple[Use, ...] = (
    *_attributes(V2_RUNNER, "GPUModelRunner", "sampler rejection_sampler speculator req_states max_num_reqs device"),
    *_attributes(V2_RUNNER, "GPUModelRunner", "batch_sharder adaptive_verification pcp_manager vllm_config model"),
    *_attributes(V2_RUNNER, "GPUModelRunner", "speculative_config scheduler_config parallel_config max_model_len"),
    *_functions(V2_RUNNER, "GPUModelRunner", get_draft_model=""),
    *_functions("v1.worker.gpu.sample.sampler", "Sampler", add_request="req_idx sampling_params"),
    *_functions("v1.worker.gpu.sample.sampler", "Sampler", apply_staged_writes="", __call__="logits input_batch"),
    *_attributes("v1.worker.gpu.sample.sampler", "Sampler", "sampling_states return_sampling_mask"),
    *_attributes("v1.worker.gpu.sample.states", "SamplingStates", "temperature seeds"),
    *_functions(
        "v1.worker.gpu.spec_decode.rejection_sampler",
        "RejectionSampler",
        __call__="logits input_batch draft_logits invalid_drafts",
    ),
    *_attributes("v1.worker.gpu.input_batch", "InputBatch", "num_reqs idx_mapping idx_mapping_np seq_lens input_ids"),
    *_attributes("v1.worker.gpu.input_batch", "InputBatch", "expanded_idx_mapping expanded_local_pos positions"),
    *_attributes("v1.worker.gpu.input_batch", "InputBatch", "logits_indices cu_num_logits num_draft_tokens_per_req"),
    *_attributes("v1.worker.gpu.input_batch", "InputBatch", "is_prefilling_np prefill_len_np num_scheduled_tokens"),
    *_attributes("v1.worker.gpu.input_batch", "InputBatch", "num_computed_prefill_tokens_np"),
    *_functions(
        "v1.worker.gpu.sample.output",
        "",
        SamplerOutput="sampled_token_ids logprobs_tensors num_nans num_sampled num_rejected sampling_mask_tensors",
    ),
    *_attributes("v1.worker.gpu.states", "RequestState", "prompt_len prefill_len total_len"),
    *_functions(V2_SPECULATOR, "DraftModelSpeculator", compute_draft_logits="hidden_states spec_step_idx"),
    *_attributes(V2_SPECULATOR, "DraftModelSpeculator", "draft_logits temperature idx_mapping num_speculative_steps"),
    *_attributes("v1.worker.gpu.buffer_utils", "UvaBackedTensor", "np gpu"),
    *_attributes("v1.worker.gpu.buffer_utils", "StagedWriteTensor", "gpu"),
)
