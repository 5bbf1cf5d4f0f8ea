"""Times a step whose loss reuses the teacher's states, and one without: `python -m benchmarks.rollout.teacher_states`.

One optimizer step of a blended rollout is the rollout, the student's forward and backward pass over the completions,
and, unless the teacher's states were kept, a teacher forward over them. All parts are timed in one process,
interleaved; numbers are medians. The start-up check of both models, which a run pays once, is timed beside them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console

from trbext.models import model_check
from trbext.models.lm_head import lm_head
from trbext.rollout import Rollout, speculative
from trbext.training.losses import chunked_reverse_kl

from ..harness.machine import this_machine
from .pairs import Prompts, random_pair, smollm2_pair

PARTS = ("rollout", "rollout, states kept", "teacher forward", "student forward and backward", "start-up check")


def time_parts(
    pair: Prompts, batch: int, *, epsilon: float, new_tokens: int, rounds: int
) -> tuple[dict[str, float], float]:
    """Returns the median seconds of each part, and the bytes of the states.

    Args:
        pair: The models and the prompts.
        batch: Rollouts.
        epsilon: KL budget, nats.
        new_tokens: Tokens of each rollout.
        rounds: Calls of each part.
    """
    input_ids, mask = pair.first(batch)

    # 1. Make the rollout, and the sequences over which the loss is computed.
    def roll(limit: float, seed: int) -> Rollout:
        return speculative(
            pair.student,
            pair.teacher,
            input_ids,
            mask,
            epsilon=epsilon,
            max_new_tokens=new_tokens,
            alignment=pair.alignment,
            pad_token_id=pair.pad_token_id,
            draft_length=0,
            generator=torch.Generator().manual_seed(seed),
            teacher_states_limit=limit,
        )

    rollout = roll(float("inf"), 0)
    assert rollout.teacher_states is not None
    states, tokens = rollout.teacher_states, rollout.tokens.shape[1]
    sequences = torch.cat([input_ids, rollout.tokens], 1)
    attended = torch.cat([mask, rollout.mask.long()], 1)
    heads = [lm_head(model).narrowed(pair.alignment.width) for model in (pair.student, pair.teacher)]

    # 2. Define the parts of a step.
    def hidden(model: torch.nn.Module) -> torch.Tensor:
        found: torch.Tensor = model(input_ids=sequences, attention_mask=attended, use_cache=False).last_hidden_state
        return found[:, :-1][:, -tokens:]

    def teacher_forward() -> None:
        with torch.no_grad():
            hidden(pair.teacher.base_model)

    def student_step() -> None:
        student = hidden(pair.student.base_model)[rollout.mask]
        drawn = rollout.tokens[rollout.mask]
        terms = chunked_reverse_kl(student, states[rollout.mask], heads[0], heads[1], drawn, pair.alignment)
        terms.reverse_kl.mean().backward()
        pair.student.zero_grad()

    def start_up_check() -> None:
        model_check._verdicts.clear()  # else the answers of the last turn would be read
        model_check.check_model(pair.student, "student", loss=True)
        model_check.check_model(pair.teacher, "teacher", loss=True)

    calls: dict[str, Callable[[int], object]] = {
        "rollout": lambda seed: roll(0.0, seed),
        "rollout, states kept": lambda seed: roll(float("inf"), seed),
        "teacher forward": lambda _: teacher_forward(),
        "student forward and backward": lambda _: student_step(),
        "start-up check": lambda _: start_up_check(),
    }
    # 3. Time the parts in turns.
    seconds: dict[str, list[float]] = {name: [] for name in PARTS}
    for turn in range(rounds + 1):  # the first one is warmup
        for name, call in calls.items():
            start = time.perf_counter()
            call(0)
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}, states.untyped_storage().nbytes()


def main(arguments: Sequence[str] | None = None) -> int:
    """Times the parts, and prints them with the gain of a step; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rollout.teacher_states", description=__doc__)
    parser.add_argument("--real-models", type=Path, help="folder of recipes/smollm2_pruned.py; else random models")
    parser.add_argument("--batch", type=int, default=8, help="rollouts (default: %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens of each rollout (default: %(default)s)")
    parser.add_argument("--epsilon", type=float, default=0.05, help="nats (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="calls of each part (default: %(default)s)")
    options = parser.parse_args(arguments)
    pair = smollm2_pair(options.real_models, options.batch) if options.real_models else random_pair(options.batch)
    found, size = time_parts(
        pair, options.batch, epsilon=options.epsilon, new_tokens=options.new_tokens, rounds=options.rounds
    )
    console = Console(width=120)
    console.print(f"{this_machine()}\n{pair.name}, {options.batch} rollouts of {options.new_tokens} tokens")
    for name, seconds in found.items():
        console.print(f"{name:30} {seconds:8.3f} s")
    kept = found["rollout, states kept"] + found["student forward and backward"]
    asked = found["rollout"] + found["student forward and backward"] + found["teacher forward"]
    console.print(f"with the states kept a step takes {kept / asked:.3f} of its time without them")
    console.print(f"the start-up check takes {found['start-up check'] / asked:.1%} of a step without the states kept")
    console.print(f"states: {size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
