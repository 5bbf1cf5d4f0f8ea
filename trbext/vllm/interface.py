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


def functions_of(module: str, owner: str, **parameters: str) -> Iterator[Use]:
    """Lists functions of a module, or of its class `owner`, each with its parameters in one string."""
    for name, words in parameters.items():
        yield Use(module, owner, name, tuple(words.split()))


def attributes_of(module: str, owner: str, names: str) -> Iterator[Use]:
    """Lists the names, in one string, that a module or its class `owner` has."""
    for name in names.split():
        yield Use(module, owner, name)


RUNNER = "v1.worker.gpu_model_runner"
PROPOSER = "v1.spec_decode.llm_base_proposer"
RELOAD = "model_executor.model_loader.reload.layerwise"

# The load of weights into a model that serves.
RELOAD_USES: tuple[Use, ...] = (
    *functions_of(RELOAD, "", initialize_layerwise_reload="model", finalize_layerwise_processing="model model_config"),
    *functions_of(RELOAD, "", finalize_layerwise_reload="*args **kwargs"),
)

# The hook, the worker extension and the plugin (Model Runner V1). Replaced functions are called by vLLM, so their
# parameters have to be the same; the others are called by us.
V1_USES: tuple[Use, ...] = (
    *functions_of(RUNNER, "GPUModelRunner", _sample="logits spec_decode_metadata"),
    *attributes_of(RUNNER, "GPUModelRunner", "_draft_probs _draft_prob_req_ids discard_request_mask seq_lens requests"),
    *attributes_of(RUNNER, "GPUModelRunner", "effective_drafter_max_model_len max_model_len use_async_scheduling"),
    *attributes_of(RUNNER, "GPUModelRunner", "device drafter input_batch model"),
    *attributes_of(RUNNER, "GPUModelRunner", "speculative_config scheduler_config parallel_config"),
    *functions_of(PROPOSER, "SpecDecodeBaseProposer", _sample_from_logits="logits sampling_metadata"),
    *functions_of(PROPOSER, "SpecDecodeBaseProposer", take_last_draft_probs=""),
    *attributes_of(PROPOSER, "SpecDecodeBaseProposer", "model"),
    *functions_of("v1.worker.gpu_input_batch", "InputBatch", update_async_output_token_ids=""),
    *attributes_of("v1.worker.gpu_input_batch", "InputBatch", "num_tokens_no_spec num_prompt_tokens req_ids num_reqs"),
    *attributes_of("v1.worker.gpu_input_batch", "InputBatch", "sampling_metadata"),
    *attributes_of("v1.worker.gpu_input_batch", "CachedRequestState", "sampling_params"),
    *attributes_of("v1.sample.metadata", "SamplingMetadata", "temperature"),
    *attributes_of("v1.spec_decode.metadata", "SpecDecodeMetadata", "draft_token_ids num_draft_tokens max_spec_len"),
    *attributes_of("v1.spec_decode.metadata", "SpecDecodeMetadata", "cu_num_draft_tokens target_logits_indices"),
    *functions_of("v1.outputs", "", SamplerOutput="sampled_token_ids logprobs_tensors"),
    *RELOAD_USES,
    *functions_of("v1.engine.input_processor", "InputProcessor", _validate_params=f"params {OTHERS}"),
    *functions_of("config.speculative", "SpeculativeConfig", verify_equal_vocab_size_if_draft_model=""),
    *attributes_of("config.speculative", "SpeculativeConfig", "method num_speculative_tokens draft_model_config"),
    *attributes_of("config.speculative", "SpeculativeConfig", "draft_sample_method rejection_sample_method"),
    *attributes_of("config.speculative", "SpeculativeConfig", "parallel_drafting"),
    *attributes_of("config.parallel", "ParallelConfig", "worker_extension_cls pipeline_parallel_size"),
    *attributes_of("exceptions", "", "VLLMValidationError"),
)

V2_RUNNER = "v1.worker.gpu.model_runner"
V2_SPECULATOR = "v1.worker.gpu.spec_decode.speculator"

# The adapter of Model Runner V2 (`model_runner_v2.py`), which drafts with a model of its own from 0.32 on.
V2_USES: tuple[Use, ...] = (
    *attributes_of(V2_RUNNER, "GPUModelRunner", "sampler rejection_sampler speculator req_states max_num_reqs device"),
    *attributes_of(V2_RUNNER, "GPUModelRunner", "batch_sharder adaptive_verification pcp_manager vllm_config model"),
    *attributes_of(V2_RUNNER, "GPUModelRunner", "speculative_config scheduler_config parallel_config max_model_len"),
    *functions_of(V2_RUNNER, "GPUModelRunner", get_draft_model=""),
    *functions_of("v1.worker.gpu.sample.sampler", "Sampler", add_request="req_idx sampling_params"),
    *functions_of("v1.worker.gpu.sample.sampler", "Sampler", apply_staged_writes="", __call__="logits input_batch"),
    *attributes_of("v1.worker.gpu.sample.sampler", "Sampler", "sampling_states return_sampling_mask"),
    *attributes_of("v1.worker.gpu.sample.states", "SamplingStates", "temperature seeds"),
    *functions_of(
        "v1.worker.gpu.spec_decode.rejection_sampler",
        "RejectionSampler",
        __call__="logits input_batch draft_logits invalid_drafts",
    ),
    *attributes_of("v1.worker.gpu.input_batch", "InputBatch", "num_reqs idx_mapping idx_mapping_np seq_lens input_ids"),
    *attributes_of("v1.worker.gpu.input_batch", "InputBatch", "expanded_idx_mapping expanded_local_pos positions"),
    *attributes_of("v1.worker.gpu.input_batch", "InputBatch", "logits_indices cu_num_logits num_draft_tokens_per_req"),
    *attributes_of("v1.worker.gpu.input_batch", "InputBatch", "is_prefilling_np prefill_len_np num_scheduled_tokens"),
    *attributes_of("v1.worker.gpu.input_batch", "InputBatch", "num_computed_prefill_tokens_np"),
    *functions_of(
        "v1.worker.gpu.sample.output",
        "",
        SamplerOutput="sampled_token_ids logprobs_tensors num_nans num_sampled num_rejected sampling_mask_tensors",
    ),
    *attributes_of("v1.worker.gpu.states", "RequestState", "prompt_len prefill_len total_len"),
    *functions_of(V2_SPECULATOR, "DraftModelSpeculator", compute_draft_logits="hidden_states spec_step_idx"),
    *attributes_of(V2_SPECULATOR, "DraftModelSpeculator", "draft_logits temperature idx_mapping num_speculative_steps"),
    *attributes_of("v1.worker.gpu.buffer_utils", "UvaBackedTensor", "np gpu"),
    *attributes_of("v1.worker.gpu.buffer_utils", "StagedWriteTensor", "gpu"),
)
