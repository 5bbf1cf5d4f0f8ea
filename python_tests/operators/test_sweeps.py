"""The number of sweeps of a row is as stated, and no instruction set or numeric path changes the answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import trbext
from python_tests.fuzz.solved_rows import infeasible, not_maximal
from python_tests.operators.row_families import EPSILONS, families
from trbext import reference

TESTS = Path(__file__).parent
ISAS = ("generic", "avx2", "avx512")


def binding(vocab: int, seeds: tuple[int, ...]) -> dict[str, Tensor]:
    """Returns the sweeps of every row of the families whose budget binds and for which float32 sweeps suffice."""
    sweeps: dict[str, Tensor] = {}
    for seed in seeds:
        for name, (student, teacher) in families(vocab, seed).items():
            finite = (teacher - student)[(student > -torch.inf) & (teacher > -torch.inf)]
            if finite.max() - finite.min() > 500:
                continue
            rows = student.expand(len(EPSILONS), -1), teacher.expand(len(EPSILONS), -1)
            solved = trbext.solve(*rows, torch.tensor(EPSILONS))
            sweeps[f"{name}, seed {seed}"] = solved.sweeps[(solved.beta > 0) & (solved.beta < 1)]
    return sweeps


@pytest.mark.parametrize(("vocab", "within_three"), [(32768, 0.99), (151936, 0.97)])
def test_few_sweeps_suffice_and_never_more_than_six(vocab: int, within_three: float) -> None:
    if trbext._C.cpu_isa == "generic":
        pytest.skip("the counts are those of every instruction set, and the generic one takes minutes")
    by_row = binding(vocab, (0, 1, 2, 3))
    sweeps = torch.cat(list(by_row.values())).float()
    slow = {name: counts.tolist() for name, counts in by_row.items() if (counts > 3).any()}
    assert len(sweeps) > 400
    assert sweeps.mean() <= 2.4, slow
    assert (sweeps <= 3).float().mean() >= within_three, slow
    assert sweeps.max() <= 6, slow


def test_rows_beyond_float32_exponents_are_solved_in_double_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(4, 3000, generator=generator)
    teacher = torch.randn(4, 3000, generator=generator)
    teacher[0, 7], teacher[1, 7], student[2, 7], student[3, 7] = 2e3, 1e30, -1e30, -3e38
    for epsilon in (1e-4, 0.05, 2.0):
        beta, kl, _ = trbext.solve(student, teacher, epsilon)
        assert torch.allclose(kl.double(), reference.behavior_kl(student, teacher, beta), rtol=1e-4, atol=1e-9)
        for row in range(4):
            assert kl[row] <= epsilon * (1 + 1e-4) + 1e-7
            # At these ranges neighboring float32 numbers may straddle the whole trust region.
            above = torch.nextafter(beta[row], torch.tensor(2.0))
            tight = kl[row] >= epsilon * (1 - 3e-4)
            assert beta[row] == 1 or tight or reference.behavior_kl(student[row], teacher[row], above) > epsilon
        drawn = trbext.sample(
            student, teacher, epsilon, uniform=torch.rand(4, dtype=torch.float64, generator=generator)
        )
        assert torch.equal(drawn.beta, beta)
        log_mu = trbext.blend(student, teacher, epsilon).log_probs.gather(1, drawn.token[:, None])[:, 0]
        assert torch.allclose(log_mu, drawn.log_prob, atol=1e-5)


@pytest.mark.parametrize("seed", [9, 22, 74, 78])
def test_a_mask_of_minus_65504_leaves_the_largest_beta(seed: int) -> None:
    """KL rises by a few percent from one float32 beta to the next, a little below 1."""
    generator = torch.Generator().manual_seed(seed)  # with each, 64 sweeps did not end a search that halved every third
    student = torch.randn(2000, 100, generator=generator)
    teacher = student + torch.randn(2000, 100, generator=generator)
    for logits in (student, teacher):
        logits[torch.rand(2000, 100, generator=generator) < torch.rand(2000, 1, generator=generator) ** 2] = -65504.0
    epsilon, temperature = 10 ** (torch.rand(2000, generator=generator) * 2 - 2), 0.12
    solved = trbext.solve(student, teacher, epsilon, temperature=temperature)
    kl = reference.behavior_kl(student, teacher, solved.beta, temperature)
    assert not infeasible(kl, epsilon).any()
    assert not not_maximal(student, teacher, temperature, epsilon, solved.beta, kl).any()
    assert solved.sweeps.max() <= 60


SOLVE_ALL = """
import sys, torch, trbext
sys.path.insert(0, sys.argv[2])
from row_families import EPSILONS, families
assert trbext._C.cpu_isa == sys.argv[3]
out = {}
for vocab in (17, 1000, 20000):
    for name, (s, t) in families(vocab).items():
        rows = s.expand(len(EPSILONS), -1), t.expand(len(EPSILONS), -1)
        u = torch.linspace(0.03, 0.97, len(EPSILONS), dtype=torch.float64)
        out[f"{name} {vocab}"] = [*trbext.sample(*rows, torch.tensor(EPSILONS), uniform=u)]
torch.save(out, sys.argv[1])
"""


def runs_here(isa: str) -> bool:
    probe = [sys.executable, "-c", "import trbext, sys; sys.exit(trbext._C.cpu_isa != sys.argv[1])", isa]
    return subprocess.run(probe, env={**os.environ, "TRB_CPU_ISA": isa}, cwd="/").returncode == 0


def test_instruction_sets_agree(tmp_path: Path) -> None:
    results = {}
    for isa in filter(runs_here, ISAS):
        command = [sys.executable, "-c", SOLVE_ALL, str(tmp_path / isa), str(TESTS), isa]
        subprocess.run(command, env={**os.environ, "TRB_CPU_ISA": isa}, cwd=tmp_path, check=True)
        results[isa] = torch.load(tmp_path / isa)
    expected = results.pop("generic")
    assert results or os.uname().machine != "x86_64"
    for isa, result in results.items():
        for name, (token, *_, beta, kl) in result.items():
            assert torch.allclose(beta, expected[name][4], rtol=0, atol=1e-6), (isa, name)
            assert torch.allclose(kl, expected[name][5], rtol=2e-5, atol=4e-6), (isa, name)
            assert (token == expected[name][0]).float().mean() >= 0.9, (
                isa,
                name,
            )  # a cell's edge may fall between them


# The grid of uniforms shows the law, to two counts; one overload of the budget is enough.
CASES = "not 2_to_the_31 and not 151936 and not chi_square and not per_row"
GRIDS = "grid_of_uniforms and (cpu-2- or cpu-300-)"  # they take as long as all the others


@pytest.mark.parametrize("cases", [f"{CASES} and not ({GRIDS})", pytest.param(GRIDS, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_keeps_the_edges_the_law_and_the_bits(isa: str, cases: str, tmp_path: Path) -> None:
    if isa == trbext._C.cpu_isa or not runs_here(isa):
        pytest.skip(f"{isa} is what the whole suite runs on, or cannot run here")
    files = [str(TESTS / name) for name in ("test_edges.py", "test_precision.py", "test_bitwise.py", "test_sample.py")]
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-q",
        "-m",
        "not ptx",
        "-k",
        cases,
        *files,
    ]
    if sys.version_info < (3, 11):  # has no -P; a plain install then needs another way to hide the source folder
        command.remove("-P")
    run = subprocess.run(
        command, env={**os.environ, "TRB_CPU_ISA": isa}, cwd=TESTS.parent, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]


def test_an_instruction_set_that_cannot_run_is_an_error_that_names_it() -> None:
    code = "import torch, trbext; trbext.solve(torch.zeros(1, 4), torch.zeros(1, 4), 0.1)"
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "TRB_CPU_ISA": "sse9"}, cwd="/", capture_output=True, text=True
    )
    assert run.returncode != 0
    assert "TRB_CPU_ISA must be generic, avx2 or avx512, and run on this machine, got 'sse9'" in run.stderr
