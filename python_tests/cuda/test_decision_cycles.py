"""Checks the decisions of the shipped kernels by their traces: the model's cycles, and what warp 0 may execute."""

from __future__ import annotations

import pytest

from benchmarks.models import decision_trace
from benchmarks.models.cuda_counts import MEASURED
from benchmarks.models.decision_trace import Decision, mean_cycles, traced_decisions
from benchmarks.models.latency_tables import TABLES
from python_tests.cuda import ptx_rows

pytestmark = [
    pytest.mark.ptx,
    pytest.mark.skipif(ptx_rows.missing() is not None, reason=str(ptx_rows.missing())),
]


@pytest.fixture(scope="module")
def decisions() -> list[Decision]:
    return traced_decisions()


def test_the_model_of_the_speed_is_fed_with_the_traced_cycles(decisions: list[Decision]) -> None:
    assert len(decisions) == 2
    assert mean_cycles(decisions) == pytest.approx(MEASURED.decision_cycles, rel=0.03)


def test_the_decisions_are_short(decisions: list[Decision]) -> None:
    """At epsilon = 0.02."""
    assert sum(decision.cycles(TABLES["central"]) for decision in decisions) <= 3500
    assert sum(decision.cycles(TABLES["double at 1:64"]) for decision in decisions) <= 6000
    assert [decision.double_divisions for decision in decisions] == [0, 0]


def test_the_command_prints_every_table(
    decisions: list[Decision], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decision_trace, "traced_decisions", lambda _: decisions)
    assert decision_trace.main([]) == 0
    printed = capsys.readouterr().out
    assert "ESTIMATE, epsilon 0.005" in printed
    assert all(name in printed for name in TABLES)
    assert decision_trace.main(["--chip", "absent.json"]) == 2
    assert "absent.json must be a file of the chip probe" in capsys.readouterr().err
