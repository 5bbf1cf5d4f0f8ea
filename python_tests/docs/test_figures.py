"""The figure of beta against epsilon shows what its page says of it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from python_tests.docs.pages import ROOT
from python_tests.docs.scripts import load_script

SCRIPT = ROOT / "docs" / "figures" / "beta_against_epsilon.py"


@pytest.fixture(scope="module")
def figure() -> ModuleType:
    return load_script(SCRIPT)


def test_each_curve_rises_to_one_at_the_divergence_of_its_prefix(figure: ModuleType) -> None:
    divergence, variance, beta = figure.curves()
    epsilons = figure.EPSILONS
    assert beta.shape == (4, len(epsilons))
    assert (beta.diff(dim=1) >= 0).all()
    for row, reached in enumerate(divergence):
        assert (beta[row, epsilons >= 1.01 * reached] == 1).all()
        assert (beta[row, epsilons <= 0.99 * reached] < 1).all()
    # The dotted lines: the limit of small budgets.
    torch.testing.assert_close(beta[:, 0].double(), (2 * epsilons[0] / variance).sqrt(), rtol=0.05, atol=0)


def test_the_script_plots_the_figure_of_the_page(figure: ModuleType, tmp_path: Path) -> None:
    figure.main(["--output", str(tmp_path / "figure.svg")])
    text = (tmp_path / "figure.svg").read_text(encoding="utf-8")
    assert text.startswith("<?xml")
    assert SCRIPT.with_name("beta-against-epsilon.svg").exists()
