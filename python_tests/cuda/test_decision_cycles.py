"""Checks what the model of the speed is fed with: cycles of the decisions by their traces, and counted instructions."""

from __future__ import annotations

import pytest

from benchmarks.models import decision_trace, row_instructions
from benchmarks.models.cuda_counts import MEASURED, MEASURED_SM_100
from benchmarks.models.decision_trace import Decision, mean_cycles, traced_decisions, traced_surroundings
from benchmarks.models.latency_tables import TABLES
from benchmarks.models.row_instructions import Phase, per_row, phases
from python_tests import sass
from python_tests.cuda import ptx_rows

pytestmark = [
    pytest.mark.ptx,
    pytest.mark.skipif(ptx_rows.missing() is not None, reason=str(ptx_rows.missing())),
]


needs_disassembler = pytest.mark.skipif(sass.missing_tool() is not None, reason=str(sass.missing_tool()))


@pytest.fixture(scope="module")
def decisions() -> list[Decision]:
    return traced_decisions()


def test_the_model_of_the_speed_is_fed_with_the_traced_cycles(decisions: list[Decision]) -> None:
    assert len(decisions) == 2
    assert mean_cycles(decisions) == pytest.approx(MEASURED.decision_cycles, rel=0.03)


def test_the_rest_of_a_row_is_that_of_the_model() -> None:
    around = traced_surroundings()
    assert sum(part.cycles(TABLES["central"]) for part in around) == pytest.approx(MEASURED.row_cycles, rel=0.03)


@pytest.fixture(scope="module")
def counted() -> dict[str, list[Phase]]:
    return {form: phases(form=form) for form in ("direct", "stable")}


@needs_disassembler
def test_the_model_of_the_speed_is_fed_with_counted_instructions(counted: dict[str, list[Phase]]) -> None:
    """ptxas of another version may allocate otherwise: the tolerance is 3 %."""
    of_pair = {(form, phase.name): phase.per_pair for form, found in counted.items() for phase in found}
    assert of_pair["direct", "load"] == pytest.approx(MEASURED.load.issue, rel=0.03)
    assert of_pair["direct", "first sweep"] == pytest.approx(MEASURED.first.issue, rel=0.03)
    assert of_pair["direct", "exact sweep"] == pytest.approx(MEASURED.direct.issue, rel=0.03)
    assert of_pair["stable", "exact sweep"] == pytest.approx(MEASURED.stable.issue, rel=0.03)
    assert per_row(counted["direct"]) == pytest.approx(MEASURED.row_instructions, rel=0.03)


@needs_disassembler
def test_the_model_of_sm_100_is_fed_with_its_packed_sweeps() -> None:
    of_pair = {phase.name: phase.per_pair for phase in phases(arch=100)}
    assert of_pair["first sweep"] == pytest.approx(MEASURED_SM_100.first.issue, rel=0.03)
    assert of_pair["exact sweep"] == pytest.approx(MEASURED_SM_100.direct.issue, rel=0.03)


@needs_disassembler
def test_only_sweeps_and_the_load_run_over_the_pairs(counted: dict[str, list[Phase]]) -> None:
    loops = {phase.name for phase in counted["direct"] if phase.per_pair > 0.01}
    assert loops == {"load", "first sweep", "exact sweep"}
    assert all(phase.per_row > 0 for phase in counted["direct"])


@needs_disassembler
def test_the_command_prints_every_phase(
    counted: dict[str, list[Phase]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(row_instructions, "phases", lambda *_: counted["stable"])
    assert row_instructions.main(["--form", "stable"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in row_instructions.PHASES)


def test_the_decisions_are_short(decisions: list[Decision]) -> None:
    """At epsilon = 0.02."""
    assert sum(decision.cycles(TABLES["central"]) for decision in decisions) <= 3500
    assert sum(decision.cycles(TABLES["double at 1:64"]) for decision in decisions) <= 6000
    assert [decision.double_divisions for decision in decisions] == [0, 0]


def test_the_command_prints_every_table(
    decisions: list[Decision], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decision_trace, "traced_decisions", lambda _: decisions)
    monkeypatch.setattr(decision_trace, "traced_surroundings", lambda: decisions)
    assert decision_trace.main([]) == 0
    printed = capsys.readouterr().out
    assert "ESTIMATE, epsilon 0.005" in printed
    assert all(name in printed for name in TABLES)
    assert decision_trace.main(["--chip", "absent.json"]) == 2
    assert "absent.json must be a file of the chip probe" in capsys.readouterr().err
