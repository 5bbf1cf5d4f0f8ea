"""`trb vllm-check` sees a server whose rollouts do not follow mu, and says in one line what else is wrong."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from python_tests.vllm.server.fake_server import HANDSHAKE, fake_server
from trbext import blend
from trbext.cli import main
from trbext.rollout.output import Rollout
from trbext.vllm.client import EngineDraw
from trbext.vllm.server.check import fault_of


def draw_of(epsilon: float) -> EngineDraw:
    """Rollouts [4, 5] of random models, of which each last token is masked."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn((2, 20, 30), generator=generator)
    mu = blend(student, teacher, epsilon)
    tokens = torch.multinomial(mu.log_probs.exp(), 1, generator=generator)
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[:, -1] = False

    def of(logits: torch.Tensor) -> torch.Tensor:
        return logits.log_softmax(-1).gather(-1, tokens).view(4, 5) * mask

    return EngineDraw(
        Rollout(
            tokens=tokens.view(4, 5),
            mask=mask,
            log_prob=of(mu.log_probs),
            student_log_prob=of(student),
            teacher_log_prob=of(teacher),
            beta=mu.beta.view(4, 5) * mask,
            kl=mu.kl.view(4, 5) * mask,
            finished=torch.ones(4, dtype=torch.bool),
        ),
        None,
        1,
        0,
        None,
    )


@pytest.mark.parametrize("epsilon", [0.0, 0.05, 1.0])
def test_rollouts_of_mu_have_no_fault(epsilon: float) -> None:
    assert fault_of(draw_of(epsilon), epsilon) is None


@pytest.mark.parametrize(
    ("epsilon", "name", "change", "fault"),
    [
        (0.0, "log_prob", lambda value: value + 0.01, "mu must be the student"),
        (0.0, "beta", lambda value: value + 0.2, "beta and KL must be 0"),
        (0.0, "kl", lambda value: value + 0.01, "beta and KL must be 0"),
        (0.05, "log_prob", lambda value: value - 3, "log mu must not be below the blend"),
        (0.05, "beta", lambda value: value + 1, "log mu must not be below the blend|beta must be in"),
        (0.05, "student_log_prob", lambda value: value * torch.nan, "student_log_prob is not finite"),
        (0.05, "teacher_log_prob", lambda value: None, "teacher_log_prob is missing"),
        (0.05, "mask", torch.zeros_like, "no token was drawn"),
    ],
)
def test_rollouts_of_another_law_have_one(epsilon: float, name: str, change: object, fault: str) -> None:
    assert callable(change)
    draw = draw_of(epsilon)
    rollout = dataclasses.replace(draw.rollout, **{name: change(getattr(draw.rollout, name))})
    found = fault_of(dataclasses.replace(draw, rollout=rollout), epsilon)
    assert found is not None
    assert any(part in found for part in fault.split("|"))


def test_a_server_at_work_is_not_disturbed(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server() as server:
        server.answers["/trb/handshake"] = (200, {**HANDSHAKE, "merged": [3], "top_k": 0})
        server.answers["/metrics"] = (200, b'vllm:num_requests_running{engine="0"} 3.0\n')
        assert main(["vllm-check", server.url]) == 2
        assert [path for path, _ in server.asked] == ["/trb/handshake", "/trb/handshake", "/metrics"]
    printed = capsys.readouterr()
    assert "replicas                2\n" in printed.out
    assert "merged                  3\n" in printed.out
    assert "is at work on 3 requests, whose records this check would take" in printed.err


def test_a_server_that_is_missing_or_dies_has_its_line_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server() as server:
        server.answers["/trb/handshake"] = (200, {**HANDSHAKE, "merged": [], "top_k": 0, "width": 9, "stop": 2})
        server.answers["/metrics"] = (200, b"")
        server.answers["/trb/enable"] = (500, {"error": "an engine core has died"})
        assert main(["vllm-check", server.url]) == 1
    assert capsys.readouterr().err == (
        f"trb: the server at {server.url} answered /trb/enable with status 500: an engine core has died\n"
    )
    assert main(["vllm-check", server.url]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"trb: no server answers at {server.url} (")
    assert error.endswith("): start one with trb vllm-serve\n")


@pytest.mark.parametrize("seconds", ["-1", "soon", "inf"])
def test_a_wait_is_a_number_of_seconds(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["vllm-check", "http://localhost:1", "--wait", seconds])
    assert error.value.code == 2
    assert "must be a number of seconds, at least 0" in capsys.readouterr().err
