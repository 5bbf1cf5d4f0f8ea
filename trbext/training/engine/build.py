"""Builds the engines from which a run draws its rollouts, and checks before anything is loaded that they can."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...errors import UsageError
from ...models.stored_digest import model_digest
from ...rollout import Policy
from ...rollout.policies import LambdaCoin, Teacher, TrustRegion
from ...vllm.engine import engine_args, slack
from ...vllm.in_process import make_llm
from ...vllm.local import LocalEngine
from ...vllm.student_engine import StudentEngine
from ...vllm.versions import check_stored_version
from ..fields.engine import engine_draft_length
from ..fields.teacher import BUDGETED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ...vllm.http import HTTPEngine
    from ...vllm.transport import Engine
    from ...vocab import Alignment
    from ..config import TRBConfig


@dataclass(frozen=True)
class EngineModels:
    """The models of the engines of one process."""

    student: str  # a folder or a name on the Hub: vLLM reads the architecture there, and the trainer sends the weights
    teacher: str
    dtype: torch.dtype  # in which both compute
    rollouts: int  # that are decoded at a time

    @classmethod
    def of(cls, args: TRBConfig, student: PreTrainedModel, teacher: str) -> EngineModels:
        """Returns those of a run, which computes rollouts in the precision of autocast, else in that of the student."""
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else student.dtype
        rollouts = args.rollout_batch_size or args.per_device_train_batch_size * args.gradient_accumulation_steps
        return cls(student_path(student), teacher, dtype, int(rollouts))


def check_can_draw(
    args: TRBConfig, student: Any, teacher: Any, policy: Policy | None, *, adapter: bool, quantized: bool, tools: bool
) -> None:
    """Checks that vLLM can draw the rollouts of a run with `use_vllm`.

    Args:
        args: Of the run.
        student: A path or a model.
        teacher: A path or a model.
        policy: That was given instead of one by name.
        adapter: The student is wrapped in an adapter.
        quantized: The student's weights are quantized.
        tools: Conversations call tools.

    Raises:
        ValueError: It cannot. Names what stands against it.
        UsageError: The installed vLLM is of a version that trbext does not know.
    """
    if not args.use_vllm:
        return
    if policy is not None and type(policy) not in (TrustRegion, Teacher, LambdaCoin):
        raise ValueError(
            f"use_vllm draws the rollouts of {', '.join(BUDGETED)}, each of which is a KL budget, got the policy "
            f"{type(policy).__name__}"
        )
    if not isinstance(teacher, str):
        raise ValueError(f"use_vllm needs the teacher by its path, which vLLM loads, got a {type(teacher).__name__}")
    if not student_path(student):
        raise ValueError(
            "use_vllm needs the student by its path, or a model that was loaded from one, as vLLM reads its "
            f"architecture there, got a {type(student).__name__} without"
        )
    if tools:
        raise ValueError("use_vllm draws completions of one turn: no tools")
    if adapter or hasattr(student, "peft_config"):
        raise ValueError(
            "use_vllm sends the student's own weights to the engine, and an adapter would have to be merged into them "
            "and taken out again at each step, which rounds them: no PEFT"
        )
    if quantized or getattr(student, "is_quantized", False):
        raise ValueError("use_vllm sends the student's weights to the engine, which takes none that are quantized")
    plugin = getattr(args, "deepspeed_plugin", None)
    if plugin is not None and plugin.zero_stage == 3:
        raise ValueError("use_vllm was not tried with DeepSpeed ZeRO-3, whose weights come one by one: use FSDP2")
    if args.vllm_mode == "colocate" and not vllm_is_installed():
        raise ValueError("use_vllm with vllm_mode colocate needs vLLM in this environment, and it is not installed")
    if args.vllm_mode == "colocate":
        check_stored_version()


def vllm_is_installed() -> bool:
    """Returns whether vLLM can be imported."""
    return importlib.util.find_spec("vllm") is not None


def student_path(student: str | PreTrainedModel) -> str:
    """Returns the path from which the student was loaded; "" if it is not known."""
    return student if isinstance(student, str) else str(getattr(student, "name_or_path", ""))


def trb_engine(args: TRBConfig, models: EngineModels) -> Engine:
    """Makes an engine of teacher and student: one of this process, or the server that `args` names."""
    if args.vllm_mode == "server":
        return _connected(args, models.teacher)
    k = engine_draft_length(args)
    common = _arguments(args, models, room=slack(k))
    revision = (args.model_init_kwargs or {}).get("revision")
    further = {**common.pop("speculative_config", {}), **({"revision": revision} if revision else {})}
    of_teacher: dict[str, Any] = {"revision": args.revision_of_teacher} if args.revision_of_teacher else {}
    return LocalEngine(
        make_llm(
            **engine_args(
                models.teacher,
                models.student,
                draft_length=k,
                speculative_config=further,
                **of_teacher,
                **common,
            )
        )
    )


def student_engine(args: TRBConfig, models: EngineModels, alignment: Alignment) -> StudentEngine:
    """Makes an engine of only the student in this process."""
    common = _arguments(args, models, room=0)
    common.pop("speculative_config", None)
    revision = (args.model_init_kwargs or {}).get("revision")
    return StudentEngine(
        make_llm(model=models.student, **({"revision": revision} if revision else {}), **common), alignment
    )


def check_server(args: TRBConfig, teacher: str, longest: int) -> None:
    """Checks that the server that `args` names takes the rollouts of a run.

    Args:
        args: Of the run.
        teacher: Its path or name.
        longest: Tokens of the longest prompt and its completion.

    Raises:
        UsageError: As `_connected`, or the server has too few positions.
    """
    facts = _connected(args, teacher).handshake()
    needed, positions = longest + slack(int(facts["draft_length"])), int(facts["max_model_len"])
    if needed > positions:
        raise UsageError(
            f"the server must be started with --max-model-len of at least {needed}, for prompts and completions of up "
            f"to {longest} tokens together (and 3 draft_length + 1 more), got {positions}"
        )


def _connected(args: TRBConfig, teacher: str) -> HTTPEngine:
    """Connects to the server that `args` names.

    Raises:
        UsageError: Nothing answers there, what answers is no TRB server, or the server has another teacher.
    """
    from ...vllm.http import HTTPEngine

    url = args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}"  # as TRL reads them
    engine = HTTPEngine(url, wait=args.vllm_server_timeout)
    facts = engine.handshake()
    served, expected = str(facts["teacher"]), f"the server at {url} must have the teacher of this run, {teacher}"
    if Path(served).name != Path(teacher).name:  # its folder may be mounted elsewhere
        raise UsageError(f"{expected}, got {served}")
    files, theirs = model_digest(teacher), facts.get("teacher_files")  # None of a name on the Hub
    if files and theirs and files != theirs:
        raise UsageError(f"{expected}, got {served} with other files")
    return engine


def _arguments(args: TRBConfig, models: EngineModels, *, room: int) -> dict[str, Any]:
    """Returns the arguments of vLLM's engine that do not depend on whether it has a draft model.

    Args:
        args: Of the run.
        models: Of the engine.
        room: Positions that `max_model_len` needs past the last token.
    """
    limit = args.vllm_max_model_length
    arguments: dict[str, Any] = {
        "dtype": str(models.dtype).removeprefix("torch."),
        "gpu_memory_utilization": args.vllm_gpu_memory_utilization,
        "max_model_len": None if limit is None else limit + room,
        "max_num_seqs": models.rollouts,
        "model_impl": args.vllm_model_impl,
        "trust_remote_code": args.trust_remote_code,
        "seed": args.seed + args.process_index,
        "disable_log_stats": False,  # preemptions are counted there
    }
    if args.world_size > 1:  # each process has an engine of its own; vLLM would start another group of processes
        arguments["distributed_executor_backend"] = "external_launcher"
    given = args.vllm_engine_args
    return {**arguments, **(given if isinstance(given, dict) else {})}
