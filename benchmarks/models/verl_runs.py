"""Models the memory of one GPU and the time of a step of the paper's runs in verl. Nothing here was measured on a GPU.

python -m benchmarks.models.verl_runs prints the tables of docs/hosts/verl.md, which has the formulas.
"""

from __future__ import annotations

from benchmarks.models.paper_runs import (
    BANDWIDTH,
    CHUNK,
    COMPLETION,
    FLOPS,
    GPUS,
    MEAN_LENGTH,
    PAIRS,
    PROMPT,
    ROLLOUTS,
    STEPS,
    WARMUP,
    Qwen3,
    engine_seconds,
)

MICRO_BATCH = 16_384  # ppo_max_token_len_per_gpu of the recipes
TOP_K = 16
DIGEST_BYTES = 64  # read and written for each parameter by the digest of the teacher: a few passes of 64-bit integers
POOL_GPUS = 2  # of eight, as verl's teacher pool in its examples


def memory(student: Qwen3, teacher: Qwen3) -> dict[str, float]:
    """Returns the bytes on each of eight GPUs by part, and those of a node's host."""
    logits = 2.0 * MICRO_BATCH * student.vocabulary
    parts = {
        "training: student, gradients, AdamW (sharded)": 16 * student.parameters / GPUS,
        "training: checkpointed layers": 2.0 * MICRO_BATCH * student.layers * student.hidden,
        "training: the layer recomputed": float(MICRO_BATCH * student.layer_activation_bytes),
        "training: logits and their gradient": 2 * logits,
        "training: logits of a chunk of the loss": float(CHUNK),
        "rollout: both models whole": 2.0 * (student.parameters + teacher.parameters),
        "rollout: KV caches of a GPU's rollouts at full length": float(
            ROLLOUTS / GPUS * (PROMPT + COMPLETION) * (student.kv_bytes + teacher.kv_bytes)
        ),
    }
    parts["training: peak"] = sum(value for name, value in parts.items() if name.startswith("training"))
    parts["host of a node, asleep: both models of each GPU"] = GPUS * parts["rollout: both models whole"]
    parts["host of a node: the teacher's rows of a step"] = float(ROLLOUTS * MEAN_LENGTH * (8 * (TOP_K + 1) + 16))
    return parts


def seconds(student: Qwen3, teacher: Qwen3) -> dict[str, float]:
    """Returns the seconds of a step on eight GPUs by part, and the hours of a run."""
    tokens = ROLLOUTS * (MEAN_LENGTH + PROMPT / 4)
    training = tokens * 8 * student.parameters / (GPUS * FLOPS)
    digest = DIGEST_BYTES * teacher.parameters / BANDWIDTH
    blended = engine_seconds(student, teacher)
    alone = engine_seconds(student, teacher, epsilon=0.0)
    pooled = engine_seconds(student, None) * GPUS / (GPUS - POOL_GPUS)
    scored = tokens * 2 * teacher.parameters / (POOL_GPUS * FLOPS)
    return {
        "rollouts at epsilon 0.02, seconds": blended,
        "rollouts at epsilon 0, with the teacher's rows, seconds": alone,
        "training, seconds": training,
        "digest of the teacher, seconds": digest,
        "verl's own OPD: rollouts on six GPUs, seconds": pooled,
        "verl's own OPD: two GPUs score them, seconds": scored,
        "TRB run, hours": (WARMUP * blended + (STEPS - WARMUP) * alone + STEPS * (training + digest)) / 3600,
        "vanilla OPD run, hours": STEPS * (alone + training + digest) / 3600,
        "fixed-epsilon run, hours": STEPS * (blended + training + digest) / 3600,
    }


def main() -> None:
    """Prints the tables of memory and time."""
    names = [f"{student.name} <- {teacher.name}" for student, teacher in PAIRS]
    print(f"| GB | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    columns = [memory(*pair) for pair in PAIRS]
    for name in columns[0]:
        print(f"| {name} | {' | '.join(f'{column[name] / 1e9:.1f}' for column in columns)} |")
    print(f"\n| on {GPUS} GPUs | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    columns = [seconds(*pair) for pair in PAIRS]
    for name in columns[0]:
        print(f"| {name} | {' | '.join(f'{column[name]:.1f}' for column in columns)} |")


if __name__ == "__main__":
    main()
