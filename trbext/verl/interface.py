"""Lists what trbext uses of verl beyond its documented extension points, with the parameters that it relies on."""

from __future__ import annotations

from ..vllm.interface import OTHERS, Use, attributes_of, functions_of

SERVER = "workers.rollout.vllm_rollout.vllm_async_server"
WORKER = "workers.rollout.vllm_rollout.utils"
TRAINER = "trainer.ppo.v1.trainer_base"
LOSSES = "trainer.distillation.losses"

USES: tuple[Use, ...] = (
    # The server of a replica: overridden.
    *functions_of(SERVER, "vLLMHttpServer", run_server="args", run_headless="args", set_global_steps="global_steps"),
    *functions_of(SERVER, "vLLMHttpServer", generate=f"prompt_ids sampling_params request_id {OTHERS}"),
    *functions_of(SERVER, "vLLMHttpServer", _preprocess_engine_kwargs="engine_kwargs", _validate_configs=""),
    *functions_of(SERVER, "vLLMHttpServer", _get_worker_extension_cls="", _resolve_sleep_level=""),
    *attributes_of(SERVER, "vLLMHttpServer", "config model_config engine replica_rank node_rank global_steps"),
    *functions_of(SERVER, "vLLMReplica", _get_server_name_prefix=""),
    # The worker of an engine: overridden, and what its overrides call.
    *functions_of(WORKER, "vLLMColocateWorkerExtension", _iter_all_models="", _iter_all_models_with_config=""),
    *functions_of(WORKER, "vLLMColocateWorkerExtension", update_weights_from_ipc="peft_config base_sync_done use_shm"),
    *functions_of(WORKER, "vLLMColocateWorkerExtension", update_verl_delta_weights="update_info", _get_zmq_handle=""),
    *functions_of(WORKER, "vLLMColocateWorkerExtension", monkey_patch_model="vocab_size banned_token_ids"),
    *functions_of(
        "workers.rollout.vllm_rollout.bucketed_weight_transfer",
        "BucketedWeightReceiver",
        __init__="zmq_handle device use_shm",
        receive_weights="on_bucket_received",
    ),
    # The registries.
    *attributes_of("workers.rollout.replica", "", "RolloutReplicaRegistry TokenOutput"),
    *functions_of("workers.rollout.replica", "RolloutReplicaRegistry", register="cls name loader"),
    *functions_of("workers.rollout.base", "", get_rollout_class="rollout_name mode"),
    *functions_of(TRAINER, "", register_trainer="name"),
    # The trainer and its agent loops: overridden.
    *functions_of(TRAINER, "PPOTrainer", _setup="", _init_resource_pool_mgr="", _load_checkpoint=""),
    *functions_of(
        TRAINER, "PPOTrainer", _save_checkpoint="", _compute_metrics="batch metrics timing_raw global_steps epoch"
    ),
    *attributes_of(TRAINER, "PPOTrainer", "use_teacher_policy distillation_config llm_server_manager global_steps"),
    *functions_of(
        "experimental.agent_loop.agent_loop", "AgentLoopWorker", _run_agent_loop=f"sampling_params trajectory {OTHERS}"
    ),
    *functions_of(
        "experimental.agent_loop.agent_loop",
        "AgentLoopWorker",
        _compute_teacher_logprobs="output prompt_ids response_ids validate sample_kwargs",
    ),
    *attributes_of("trainer.ppo.v1.agent_loop_tq", "", "AgentLoopWorkerTQ AgentLoopManagerTQ"),
    # The loss.
    *functions_of(LOSSES, "", register_distillation_loss="loss_settings"),
    *functions_of(LOSSES, "", compute_topk_loss="config distillation_config data student_logits data_format"),
    *functions_of("workers.utils.padding", "", no_padding_2_padding="tensor data"),
    *functions_of(
        "utils.ulysses", "", get_ulysses_sequence_parallel_world_size="group", slice_input_tensor=f"x dim {OTHERS}"
    ),
)
