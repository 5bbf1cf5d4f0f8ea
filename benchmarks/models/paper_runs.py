"""Models the memory of one GPU and the hours of eight that the paper's runs need. Nothing here was measured on a GPU.

python -m benchmarks.models.paper_runs prints the tables of docs/paper-runs.md, which has the formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

GPUS, ROLLOUTS, PROMPT, COMPLETION = 8, 256, 1024, 7168
ROWS = 16  # rollout_batch_size of the recipes
SEQUENCES = 2  # per_device_train_batch_size
STEPS, WARMUP = 400, 50
CHUNK = 8 * 2**27  # bytes of the loss's chunk: about eight float32 tensors of 128 MiB
CHECKPOINTS = 20  # that a run keeps
FEW_SAMPLES = 8  # of each prompt, to choose a checkpoint by
ENGINE_START, WEIGHTS_LOAD = 60.0, 10.0  # seconds
SUITE = {"GSM8K": (1319, 32), "MATH500": (500, 64), "Olympiad": (674, 64), "AIME24": (30, 512)} | {
    "AIME25": (30, 512),
    "AMC": (40, 512),
}

# Assumptions about a GPU, to be replaced by measurements.
LAYER_SECONDS = 0.7e-3  # one layer of one decoding step in eager transformers: bound by launches, not by bytes
MEAN_LENGTH = 4000  # tokens of a completion
FLOPS = 989e12 * 0.35  # bfloat16, and the share of it that training reaches
BANDWIDTH = 3.35e12 * 0.6  # bytes per second of an H100, and the share of it that vLLM's decoding reaches
ENGINE_PASS = 1e-3  # seconds of a pass that read no memory: scheduling, sampling, launching
EPSILON, DRAFT_LENGTH = 0.02, 4
MEAN_PREFIX = PROMPT / 4 + MEAN_LENGTH / 2  # tokens that a token attends to: its prompt, and half of its completion


@dataclass(frozen=True)
class Qwen3:
    """The shape of a model of the family; parameters and bytes follow from it."""

    name: str
    hidden: int
    layers: int
    heads: int
    intermediate: int
    tied: bool
    kv_heads: int = 8
    head_dim: int = 128
    vocabulary: int = 151_936

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads) + 2 * self.head_dim
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.layers * layer + self.hidden

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values per token, in bfloat16."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2

    @property
    def layer_activation_bytes(self) -> int:
        """Bytes per token of the one layer that is recomputed at a time, in bfloat16."""
        return 2 * (8 * self.hidden + 4 * self.head_dim * (self.heads + self.kv_heads) + 4 * self.intermediate)


PAIRS = (
    (Qwen3("Qwen3-1.7B", 2048, 28, 16, 6144, True), Qwen3("Qwen3-8B", 4096, 36, 32, 12288, False)),
    (Qwen3("Qwen3-0.6B", 1024, 28, 16, 3072, True), Qwen3("Qwen3-4B", 2560, 36, 32, 9728, True)),
)


def memory(student: Qwen3, teacher: Qwen3) -> dict[str, float]:
    """Returns the bytes on each of eight GPUs by part, with the peaks of rollouts and of training."""
    length = PROMPT + COMPLETION
    parts = {
        "student, gradients, AdamW (sharded)": 16 * student.parameters / GPUS,
        "teacher (sharded)": 2 * teacher.parameters / GPUS,
        "rollout: both models whole": 2.0 * (student.parameters + teacher.parameters),
        "rollout: student's KV cache": float(ROWS * length * student.kv_bytes),
        "rollout: teacher's KV cache": float(ROWS * length * teacher.kv_bytes),
        "rollout: logits": 4.0 * 2 * 2 * ROWS * student.vocabulary,
        "training: checkpointed layers": 2.0 * SEQUENCES * length * student.layers * student.hidden,
        "training: the layer recomputed": float(SEQUENCES * length * student.layer_activation_bytes),
        "training: both lm_heads whole, student's gradient": student.vocabulary
        * (8.0 * student.hidden + 2.0 * teacher.hidden),
        "training: logits of a chunk": float(CHUNK),
    }
    standing = sum(value for name, value in parts.items() if "sharded" in name)
    for phase in ("rollout", "training"):
        parts[f"{phase}: peak"] = standing + sum(value for name, value in parts.items() if name.startswith(phase))
    return parts


def hours(student: Qwen3, teacher: Qwen3) -> dict[str, float]:
    """Returns the hours of a run on eight GPUs, if one rollout of each part reaches the length limit in each step."""
    decoding_steps = COMPLETION * -(-ROLLOUTS // GPUS // ROWS)
    of_student = decoding_steps * student.layers * LAYER_SECONDS
    with_teacher = decoding_steps * (student.layers + teacher.layers) * LAYER_SECONDS
    tokens = ROLLOUTS * (MEAN_LENGTH + PROMPT / 4)
    training = tokens * (8 * student.parameters + 2 * teacher.parameters) / (GPUS * FLOPS)
    engine, engine_with_teacher = engine_seconds(student, None), engine_seconds(student, teacher)
    after = STEPS - WARMUP
    completions = sum(prompts * samples for prompts, samples in SUITE.values())
    few = sum(prompts * min(FEW_SAMPLES, samples) for prompts, samples in SUITE.values())
    # One engine for all: it starts once, and loads the weights of the others.
    of_all = ENGINE_START + (CHECKPOINTS - 1) * WEIGHTS_LOAD
    rows = 64  # 8192 tokens of the student's KV cache each
    suite = completions / rows * 8192 * student.layers * LAYER_SECONDS / GPUS
    return {
        "rollouts of a TRB step, seconds": with_teacher,
        "rollouts of a student step, seconds": of_student,
        "rollouts of a TRB step by vLLM, seconds": engine_with_teacher,
        "rollouts of a student step by vLLM, seconds": engine,
        "training of a step, seconds": training,
        "TRB run, hours": (WARMUP * with_teacher + after * of_student + STEPS * training) / 3600,
        "TRB run by vLLM, hours": (WARMUP * engine_with_teacher + after * engine + STEPS * training) / 3600,
        "vanilla OPD run, hours": STEPS * (of_student + training) / 3600,
        "vanilla OPD run by vLLM, hours": STEPS * (engine + training) / 3600,
        "fixed-epsilon, SKD or offline KD run, hours": STEPS * (with_teacher + training) / 3600,
        "suite of one checkpoint, hours": suite / 3600,
        "suite of one checkpoint by vLLM, hours": suite_by_engine(student, completions) / 3600,
        f"suite of {CHECKPOINTS} checkpoints, hours": CHECKPOINTS * suite / 3600,
        f"suite of {CHECKPOINTS} checkpoints by vLLM, hours": (
            of_all + CHECKPOINTS * suite_by_engine(student, completions)
        )
        / 3600,
        f"suite of {CHECKPOINTS} checkpoints by vLLM with --samples {FEW_SAMPLES}, hours": (
            of_all + CHECKPOINTS * suite_by_engine(student, few)
        )
        / 3600,
    }


def engine_seconds(student: Qwen3, teacher: Qwen3 | None, *, epsilon: float = EPSILON) -> float:
    """Returns the seconds in which vLLM decodes the rollouts of a step on eight GPUs, each with its share at once.

    A pass reads the weights, and the keys and values of the rollouts that are not finished. A round of TRB is
    DRAFT_LENGTH passes of the student and one of the teacher. A draft is accepted with probability
    a = 1 - sqrt(epsilon / pi), so a round writes 1 + a + ... + a^(DRAFT_LENGTH - 1) tokens. One rollout reaches the
    length limit; the others have MEAN_LENGTH tokens.

    Args:
        student: Drafts, or decodes by itself if there is no teacher.
        teacher: Verifies the drafts; None decodes the student only.
        epsilon: The budget, nats per token.
    """
    rows = ROLLOUTS / GPUS
    prefixes = rows * MEAN_LENGTH * MEAN_PREFIX

    def passes(model: Qwen3, tokens_per_pass: float) -> float:
        weights = COMPLETION / tokens_per_pass * (2 * model.parameters / BANDWIDTH + ENGINE_PASS)
        return weights + prefixes / tokens_per_pass * model.kv_bytes / BANDWIDTH

    if teacher is None:
        return passes(student, 1.0)
    accepted = 1 - math.sqrt(epsilon / math.pi)
    per_round = sum(accepted**place for place in range(DRAFT_LENGTH))
    return passes(teacher, per_round) + passes(student, per_round / DRAFT_LENGTH)


def suite_by_engine(student: Qwen3, completions: int, rows: int = 256) -> float:
    """Returns the seconds in which vLLM decodes a suite on eight GPUs, each with `rows` rollouts at any time."""
    tokens = completions * MEAN_LENGTH / GPUS
    weights = tokens / rows * (2 * student.parameters / BANDWIDTH + ENGINE_PASS)
    return weights + tokens * MEAN_PREFIX * student.kv_bytes / BANDWIDTH


def main() -> None:
    """Prints the tables of memory and hours."""
    names = [f"{student.name} <- {teacher.name}" for student, teacher in PAIRS]
    print(f"| GB on each of {GPUS} GPUs | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    columns = [memory(*pair) for pair in PAIRS]
    for name in columns[0]:
        print(f"| {name} | {' | '.join(f'{column[name] / 1e9:.1f}' for column in columns)} |")
    print(f"\n| on {GPUS} GPUs | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    columns = [hours(*pair) for pair in PAIRS]
    for name in columns[0]:
        print(f"| {name} | {' | '.join(f'{column[name]:.1f}' for column in columns)} |")


if __name__ == "__main__":
    main()
