"""Prepares a run of verl with a tiny pair on the CPU, and the command of a verl user that starts it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROMPTS, BATCH, ROLLOUTS_PER_PROMPT, COMPLETION = 64, 4, 2, 12
ROLLOUTS_OF_STEP = BATCH * ROLLOUTS_PER_PROMPT
EPSILON, WARMUP, STEPS, SAVED_EVERY = 0.3, 8, 12, 4
LEARNING_RATE, TOP_K = 3e-3, 8
PARTS = ("param", "reduce", "buffer")  # of verl's mixed precision
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
ENVIRONMENT = {
    "VERL_PLATFORM": "trb_cpu",
    "VERL_USE_EXTERNAL_MODULES": "python_tests.verl.cpu_platform,python_tests.verl.spied_trainer",
    "VERL_ENGINE_DEVICE": "cuda",  # the FSDP engine is registered for GPUs only
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_worker_niceness": "0",  # Ray starts its workers with 15, which a busy machine lets wait
}


@dataclass(frozen=True)
class TinyRun:
    """The folders of a run."""

    folder: Path

    @property
    def student(self) -> Path:
        """Before its first step."""
        return self.folder / "student"

    @property
    def teacher(self) -> Path:
        """Of two layers, with another EOS id."""
        return self.folder / "teacher"

    def prepare(self) -> TinyRun:
        """Writes the models and the prompts."""
        from datasets import Dataset
        from transformers import AutoConfig

        from python_tests.models.tiny_models import END_OF_TURN, EOS, PAD, tiny_tokenizer
        from python_tests.vllm.model_pairs import save_model

        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = TEMPLATE
        for path, seed, layers, eos in ((self.student, 2, 1, EOS), (self.teacher, 1, 2, END_OF_TURN)):
            save_model(path, seed, layers=layers, eos=eos, positions=128)
            # verl gives the embedding of the tokenizer's padding token no gradient, as a model with this setting does.
            config = AutoConfig.from_pretrained(path)
            config.pad_token_id = PAD
            config.save_pretrained(path)
            tokenizer.save_pretrained(path)
        rows = [
            {
                "prompt": [{"role": "user", "content": f"{n}+{n % 7}="}],
                "data_source": "tiny",
                "reward_model": {"style": "rule", "ground_truth": str(n + n % 7)},
                "extra_info": {"index": n},
            }
            for n in range(3, 3 + PROMPTS)
        ]
        Dataset.from_list(rows).to_parquet(self.folder / "prompts.parquet")
        return self

    def command(self, python: str, output: Path, *further: str, method: str = "trb", replicas: int = 2) -> list[str]:
        """The command of the run.

        Args:
            python: That has verl.
            output: The folder of its checkpoints, and of verl's log.
            further: Overrides.
            method: Of the hydra group.
            replicas: Of the rollout, and processes of the actor.
        """
        overrides = {
            "data.train_files": self.folder / "prompts.parquet",
            "data.val_files": self.folder / "prompts.parquet",
            "data.train_batch_size": BATCH,
            "data.max_prompt_length": 16,
            "data.max_response_length": COMPLETION,
            "data.dataloader_num_workers": 0,
            "data.seed": 7,
            "actor_rollout_ref.model.path": self.student,
            "actor_rollout_ref.model.use_remove_padding": False,
            "actor_rollout_ref.model.enable_gradient_checkpointing": False,
            "+actor_rollout_ref.model.override_config.attn_implementation": "eager",
            "actor_rollout_ref.actor.strategy": "fsdp2",
            "actor_rollout_ref.actor.ppo_mini_batch_size": BATCH,
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 2,
            "actor_rollout_ref.actor.use_torch_compile": False,
            "actor_rollout_ref.actor.optim.lr": LEARNING_RATE,
            "actor_rollout_ref.actor.optim.weight_decay": 0.0,  # TRL leaves norms out, and verl does not
            "actor_rollout_ref.actor.checkpoint.save_contents": "[model,optimizer,extra,hf_model]",
            "actor_rollout_ref.actor.fsdp_config.model_dtype": "fp32",
            "actor_rollout_ref.actor.fsdp_config.dtype": "float32",
            # verl computes in bfloat16 otherwise, whose losses are off by 1e-3.
            **{f"+actor_rollout_ref.actor.fsdp_config.mixed_precision.{part}_dtype": "fp32" for part in PARTS},
            "actor_rollout_ref.rollout.n": ROLLOUTS_PER_PROMPT,
            "actor_rollout_ref.rollout.dtype": "float32",
            "actor_rollout_ref.rollout.tensor_model_parallel_size": 1,
            "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 2,
            "actor_rollout_ref.rollout.enforce_eager": True,
            "+actor_rollout_ref.rollout.enable_sleep_mode": False,
            "actor_rollout_ref.rollout.free_cache_engine": False,
            "actor_rollout_ref.rollout.max_num_seqs": 16,
            "actor_rollout_ref.rollout.max_model_len": 64,
            "actor_rollout_ref.rollout.gpu_memory_utilization": 0.1,
            "actor_rollout_ref.rollout.agent.num_workers": 1,
            "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes": 1,
            "actor_rollout_ref.rollout.custom.trb.draft_length": 3,
            "distillation.teacher_models.teacher_model.model_path": self.teacher,
            "distillation.distillation_loss.topk": TOP_K,
            "trainer.device": "cpu",
            "trainer.v1.trainer_mode": "trb_spied",
            "trainer.nnodes": 1,
            "trainer.n_gpus_per_node": replicas,
            "trainer.logger": '["console"]',
            "trainer.project_name": "tiny",
            "trainer.experiment_name": output.name,
            "trainer.total_training_steps": STEPS,
            "trainer.total_epochs": 10,
            "trainer.save_freq": SAVED_EVERY,
            "trainer.test_freq": -1,
            "trainer.default_local_dir": output / "checkpoints",
            "ray_kwargs.ray_init.num_cpus": 16,  # in name: each actor asks for one
            "+ray_kwargs.ray_init.num_gpus": replicas,
            "+ray_kwargs.ray_init.include_dashboard": False,
            "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        }
        if method == "trb":
            overrides |= {
                "actor_rollout_ref.rollout.custom.trb.epsilon": EPSILON,
                "actor_rollout_ref.rollout.custom.trb.warmup_steps": WARMUP,
            }
        words = [f"{name}={value}" for name, value in overrides.items()]
        searched = "hydra.searchpath=[pkg://trbext.verl.config]"
        start = [python, "-m", "verl.trainer.main_ppo", searched, f"+trb={method}"]
        return [*start, f"hydra.run.dir={output}/hydra", *words, *further]

    @staticmethod
    def environment() -> dict[str, str]:
        """The environment of the command, to which the folder TRB_SPIED has to be added."""
        return {**os.environ, **ENVIRONMENT}
