"""Plots beta-against-epsilon.svg: the coefficient that each KL budget allows, at four prefixes of the built-in models.

    python docs/figures/beta_against_epsilon.py

Uses `trbext.solve` on the logits of the demonstration's student and teacher along one correct completion.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import trbext
from trbext.data.counting_sort import correct_completion, prompts
from trbext.data.demo_models import model_path

EPSILONS = torch.logspace(-4, 1, 201)  # nats
QUANTILES = (0.25, 0.5, 0.75, 0.95)  # of KL(pi_T || pi_S) over the prefixes: which four are shown


def logits_along_a_completion() -> tuple[Tensor, Tensor]:
    """Returns both models' logits at every prefix of one correct completion, each [prefixes, vocabulary]
    float32."""
    (prompt,) = prompts(1, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(model_path("demo:student"))
    ids = tokenizer(prompt + correct_completion(prompt), return_tensors="pt")["input_ids"]
    start = tokenizer(prompt, return_tensors="pt")["input_ids"].shape[1] - 1
    with torch.no_grad():
        student, teacher = (
            AutoModelForCausalLM.from_pretrained(model_path(f"demo:{name}"))(input_ids=ids).logits[0, start:-1]
            for name in ("student", "teacher")
        )
    return student, teacher


def curves() -> tuple[Tensor, Tensor, Tensor]:
    """Returns KL(pi_T || pi_S) [4] in nats, Var_S[r] [4], and beta at every epsilon [4, 201], of the prefixes shown."""
    student, teacher = logits_along_a_completion()
    log_student, log_teacher = (logits.double().log_softmax(-1) for logits in (student, teacher))
    ratio = log_teacher - log_student
    divergence = (log_teacher.exp() * ratio).sum(-1)
    order = divergence.argsort()
    drawn = order[[round(share * (len(order) - 1)) for share in QUANTILES]]
    weights = log_student.exp()
    mean = (weights * ratio).sum(-1, keepdim=True)
    variance = (weights * (ratio - mean) ** 2).sum(-1)
    rows, budgets = len(drawn), len(EPSILONS)
    solved = trbext.solve(
        student[drawn, None].expand(rows, budgets, -1), teacher[drawn, None].expand(rows, budgets, -1), EPSILONS
    )
    return divergence[drawn], variance[drawn], solved.beta


def plot(path: Path) -> None:
    """Plots the figure, and writes it to `path`."""
    divergence, variance, beta = curves()
    with mpl.rc_context({"svg.hashsalt": "trbext", "font.size": 11}):
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        for row in range(len(divergence)):
            (line,) = axes.semilogx(EPSILONS, beta[row], label=f"{divergence[row]:.2g}")
            small = (2 * EPSILONS / variance[row]).sqrt()
            axes.semilogx(EPSILONS[small < 1], small[small < 1], color=line.get_color(), linestyle=":", linewidth=1)
        axes.axvline(0.02, color="0.6", linewidth=0.8)
        axes.text(0.0185, 0.95, "the paper's 0.02", color="0.4", fontsize=9, ha="right")
        axes.set(xlabel="epsilon, KL budget in nats", ylabel="beta", ylim=(0, 1.04), xlim=(1e-4, 10))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(title="KL(pi_T || pi_S), nats", frameon=False)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Plots the figure into the file that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    default = Path(__file__).with_name("beta-against-epsilon.svg")
    parser.add_argument("--output", type=Path, default=default, help="the picture (default: beside this file)")
    plot(parser.parse_args(arguments).output)


if __name__ == "__main__":
    main()
