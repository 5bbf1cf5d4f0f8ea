"""Runs compute-sanitizer over small calls of each kernel: `... compute_sanitizer.py [--quick] [TOOL ...]`.

Tools: memcheck, racecheck, initcheck, synccheck; all of them by default. Exit code 0: no tool found anything; 1: one
did (its report is printed); 2: there is no compute-sanitizer, no CUDA device, or no kernel in this build.

With the argument `calls` the script makes those calls itself, which is what the sanitizer runs: every operator,
overload and dtype, one vocabulary for each way a row is kept on chip, misaligned, strided and transposed rows, masks
and faults.
--quick: bfloat16 only and no streamed row, for a tool in under a minute.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from python_tests.operators.devices import cuda_missing
from python_tests.sass import find_tool

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND_SOMETHING = 99  # the exit code of compute-sanitizer; the calls themselves exit with 0 or 1
VOCABULARIES = (1, 17, 1025, 4099, 70_001, 160_003, 400_003)
QUICK_VOCABULARIES = (17, 1025, 4099, 70_001)  # one block, and a cluster


def find_sanitizer() -> Path | None:
    return find_tool("compute-sanitizer")


def sanitize(tool: str, *, quick: bool = False, capture: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs the calls under one tool, without PyTorch's caching allocator, which would hide reads past the end of a
    tensor.

    If `capture` is true, the output of the tool is in the result; otherwise it appears as it comes, also from a tool
    that is ended early.
    """
    sanitizer = find_sanitizer()
    if sanitizer is None:
        raise RuntimeError("compute-sanitizer is neither on PATH nor in $CUDA_HOME/bin or /usr/local/cuda/bin")
    command = [
        str(sanitizer),
        "--tool",
        tool,
        "--error-exitcode",
        str(FOUND_SOMETHING),
        "--report-api-errors=no",  # PyTorch asks the driver for functions that it need not have
        sys.executable,
        "-m",
        "python_tests.cuda.compute_sanitizer",
        "calls",
        *(["--quick"] if quick else []),
    ]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return subprocess.run(command, env=environment, capture_output=capture, text=True, cwd=ROOT)


def calls(device: str = "cuda", *, quick: bool = False) -> None:
    """Makes the calls. Inputs are made on the CPU and copied, so that few kernels other than trbext's run."""
    import torch

    from python_tests.operators.devices import Operators

    trb = Operators(device)
    generator = torch.Generator().manual_seed(0)
    pairs: tuple[tuple[torch.dtype, torch.dtype], ...] = (
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float16, torch.float32),
    )
    if quick:
        pairs = ((torch.bfloat16, torch.bfloat16),)
    for vocab in QUICK_VOCABULARIES if quick else VOCABULARIES:
        for dtypes in pairs:
            wide = [torch.randn(3, vocab + 7, generator=generator).to(dtype) for dtype in dtypes]
            plain = [logits[:, :vocab].contiguous() for logits in wide]
            layouts = [plain, [logits[:, 3 : 3 + vocab] for logits in wide]]
            if vocab < 5000:
                layouts += [[wide[0][:, 1 : 1 + vocab], plain[1]], [logits.t().contiguous().t() for logits in plain]]
                masked = [logits.clone() for logits in plain]
                masked[0][0, ::2], masked[1][1, vocab // 2 :], masked[0][2, 0] = -torch.inf, -torch.inf, torch.nan
                layouts.append(masked)
            for student, teacher in layouts:
                for epsilon in (0.02, torch.tensor([0.0, 1e-4, torch.inf])):
                    uniform = torch.tensor([0.0, 0.5, 1 - 2.0**-53], dtype=torch.float64)
                    solved = trb.solve(student, teacher, epsilon)
                    drawn = trb.sample(student, teacher, epsilon, uniform=uniform)
                    blended = trb.blend(student, teacher, epsilon)
                    for values in (drawn, blended):
                        if not torch.equal(values.beta.nan_to_num(-1), solved.beta.nan_to_num(-1)):
                            raise SystemExit(f"V {vocab}, {dtypes}: beta {values.beta}, but of solve {solved.beta}")
                for kind in (0, 1, 2):  # an accepted draft, one that is hardly accepted, a direct row; one more request
                    policy = student.float().softmax(-1).to(student.dtype) if kind == 1 else student
                    drafts, uniform = torch.tensor([0, vocab - 1, -1]), torch.tensor([0.0, 0.99, 0.5]).double()
                    trb.verify(
                        policy, teacher, drafts, torch.tensor([0, 2, 3]), 0.02, accept_uniform=uniform,
                        draw_uniform=uniform, width=3, student_kind=kind, log_probs=True,
                    )  # fmt: skip


def main(arguments: list[str]) -> int:
    quick = "--quick" in arguments
    arguments = [argument for argument in arguments if argument != "--quick"]
    unknown = [tool for tool in arguments if tool not in TOOLS]
    if unknown:
        print(f"tools must be among {', '.join(TOOLS)}, got {', '.join(unknown)}", file=sys.stderr)
        return 2
    missing = cuda_missing() or (None if find_sanitizer() else "compute-sanitizer is neither on PATH nor in a toolkit")
    if missing:
        print(f"nothing checked: {missing}", file=sys.stderr)
        return 2
    found = False
    for tool in arguments or TOOLS:
        done = sanitize(tool, quick=quick, capture=False)
        print(f"{tool}: {'clean' if done.returncode == 0 else f'exit code {done.returncode}'}", flush=True)
        found |= done.returncode != 0
    return int(found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["calls"]:
        calls(quick="--quick" in sys.argv)
    else:
        sys.exit(main(sys.argv[1:]))
