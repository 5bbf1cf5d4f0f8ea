"""Looks at a TRB server and draws a few tokens, to see that they follow mu: `trb vllm-check`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...errors import EngineFailed, UsageError
from ...vocab import Alignment
from ..client import EngineDraw, EngineRollouts
from ..http import HTTPEngine

ROLLOUTS, TOKENS = 8, 8  # a few, of each budget
BUDGET = 0.05  # nats per token
# Log-probabilities of mu and of the student are computed from the same float32 logits.
TOLERANCE = 1e-4


def check(url: str, *, wait: float = 0.0) -> None:
    """Prints what a server says of itself, and draws rollouts of it.

    Args:
        url: Of the server.
        wait: Seconds to wait for a server that is starting.

    Raises:
        UsageError: Nothing answers, it is no TRB server, or it is at work for another client.
        EngineFailed: What it drew does not follow mu.
    """
    engine = HTTPEngine(url, wait=wait)
    facts = engine.handshake()
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):24}{_shown(value)}")
    running = engine.running()
    if running:
        raise UsageError(f"the server at {url} is at work on {running} requests, whose records this check would take")
    merged = tuple(facts["merged"])
    alignment = Alignment(facts["width"], (facts["stop"], *merged), ())
    rollouts = EngineRollouts(engine, alignment, pad_token_id=facts["stop"], top_k=facts["top_k"])
    allowed = [token for token in range(facts["width"]) if token not in (facts["stop"], *merged)]
    prompts = [[allowed[at % len(allowed)], allowed[(7 * at + 1) % len(allowed)]] for at in range(ROLLOUTS)]
    for epsilon in (0.0, BUDGET):
        draw = rollouts.draw(prompts, epsilon=epsilon, max_new_tokens=TOKENS)
        fault = fault_of(draw, epsilon)
        if fault:
            raise EngineFailed(f"the server at {url} does not draw from mu: at epsilon {epsilon:g}, {fault}")
        print(f"{f'epsilon {epsilon:g}':24}{_of(draw)}")
    print(f"{'law':24}kept")


def fault_of(draw: EngineDraw, epsilon: float) -> str | None:
    """What shows that rollouts do not follow mu, or None.

    Args:
        draw: Of any number of rollouts.
        epsilon: Their KL budget, nats per token.
    """
    rollout = draw.rollout
    values = {
        "log_prob": rollout.log_prob,
        "student_log_prob": rollout.student_log_prob,
        "teacher_log_prob": rollout.teacher_log_prob,
        "beta": rollout.beta,
        "kl": rollout.kl,
    }
    mask = rollout.mask
    for name, value in values.items():
        if value is None:
            return f"{name} is missing"
        if value[mask].isnan().any() or (name != "teacher_log_prob" and value[mask].isinf().any()):
            return f"{name} is not finite"
    mu, student, teacher, beta, kl = (value[mask] for value in values.values() if value is not None)
    if mu.numel() == 0:
        return "no token was drawn"
    if epsilon == 0 and bool((beta != 0).any() | (kl.abs() > TOLERANCE).any()):
        return f"beta and KL must be 0, got up to {float(beta.max()):g} and {float(kl.max()):g}"
    if epsilon == 0 and float((mu - student).abs().max()) > TOLERANCE:
        return (
            f"mu must be the student, and their log-probabilities differ by up to {float((mu - student).abs().max()):g}"
        )
    # log mu = (1 - beta) log pi_S + beta log pi_T - A(beta), and A(beta) <= 0 by Hölder's inequality.
    inside = torch.isfinite(teacher)
    blend = (1 - beta) * student + beta * teacher
    if bool((mu - blend)[inside].min() < -TOLERANCE):
        return f"log mu must not be below the blend of the models', got {float((mu - blend)[inside].min()):g} below"
    if bool(((beta < 0) | (beta > 1)).any()):
        return f"beta must be in [0, 1], got {float(beta.min()):g} to {float(beta.max()):g}"
    return None


def _of(draw: EngineDraw) -> str:
    rollout = draw.rollout
    tokens = int(rollout.mask.sum())
    speculation = rollout.speculation
    share = float("nan") if speculation is None else speculation.acceptance
    kl = 0.0 if rollout.kl is None else float(rollout.kl[rollout.mask].max())
    return f"{tokens} tokens, acceptance {share:.2f}, largest KL {kl:.4g} nats, {draw.repaired} repaired"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
