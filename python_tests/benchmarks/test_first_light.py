"""Tests benchmarks/first_light.sh without a GPU: its stages, what it reports, and that its checks can fail."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import trbext
from benchmarks.first_light import __main__ as first_light
from benchmarks.first_light import report, smoke, timings
from benchmarks.operators import blend_cuda
from python_tests import sass

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "first_light.sh"


def run_script(*options: str, python: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": str(python or sys.executable)}
    return subprocess.run(["bash", str(SCRIPT), *options], env=environment, capture_output=True, text=True)


def outcomes(output: Path) -> dict[str, str]:
    lines = (output / "stages.tsv").read_text(encoding="utf-8").splitlines()
    return {line.split("\t")[0]: line.split("\t")[1] for line in lines}


def test_a_stage_that_fails_stops_no_other_and_all_is_reported(tmp_path: Path) -> None:
    """Uses a Python that fails at everything except the report."""
    broken = tmp_path / "python"
    broken.write_text(f'#!/bin/sh\ncase "$*" in *first_light.report*) exec {sys.executable} "$@";; esac\nexit 3\n')
    broken.chmod(0o755)
    done = run_script("--device", "cpu", "--output", str(tmp_path / "out"), python=broken)
    assert done.returncode == 1
    found = outcomes(tmp_path / "out")
    assert found["build"] == "failed (3)"
    assert "smoke" not in found  # without a build there is nothing to try
    written = (tmp_path / "out" / "a-cpu-dry-run.md").read_text(encoding="utf-8")
    assert "| build | failed (3) |" in written
    assert done.stdout.rstrip().endswith("a-cpu-dry-run.md")


def test_a_stage_that_is_too_slow_is_ended(tmp_path: Path) -> None:
    slow = tmp_path / "python"
    slow.write_text(f'#!/bin/sh\ncase "$*" in *first_light.report*) exec {sys.executable} "$@";; esac\nexec sleep 60\n')
    slow.chmod(0o755)
    done = run_script("--device", "cpu", "--limit", "12", "--output", str(tmp_path / "out"), python=slow)
    assert done.returncode == 1
    assert outcomes(tmp_path / "out")["machine"] == "too slow"
    assert outcomes(tmp_path / "out")["build"] == "left out: no time left"


def test_what_is_installed_is_tried_without_a_build(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    recording = tmp_path / "python"
    recording.write_text(
        f'#!/bin/sh\ncase "$*" in *first_light.report*) exec {sys.executable} "$@";; esac\necho "$*" >>{log}\n'
    )
    recording.chmod(0o755)
    done = run_script("--device", "cpu", "--build", "no", "--output", str(tmp_path / "out"), python=recording)
    assert done.returncode == 0
    found = outcomes(tmp_path / "out")
    assert "build" not in found
    assert found["installed"] == found["smoke"] == found["operator_tests"] == "ok"
    assert "pip" not in log.read_text()


def test_a_chip_probe_that_fails_leaves_no_chip_file(tmp_path: Path) -> None:
    """A stand-in for nvcc makes a probe that stops halfway, as a probe does on a machine without a driver."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nvcc").write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\nwhile [ "$1" != -o ]; do shift; done\n'
        'printf \'#!/bin/sh\\necho "{"\\nexit 1\\n\' > "$2"; chmod +x "$2"\n'
    )
    (tools / "python").write_text(
        f'#!/bin/sh\ncase "$*" in *first_light.report*) exec {sys.executable} "$@";; esac\nexit 3\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(tools / "python"), "PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", str(SCRIPT), "--output", str(tmp_path / "out")], env=environment, capture_output=True
    )
    assert done.returncode == 1
    assert outcomes(tmp_path / "out")["chip"] == "failed (1)"
    assert not (tmp_path / "out" / "chip.json").exists()
    assert (tmp_path / "out" / "chip.partial").read_text() == "{\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "tpu"), "--device must be cuda or cpu, got tpu"),
        (("--limit", "long"), "--limit must be whole seconds, got long"),
        (("--wheel", "absent.whl"), "--wheel must be a file, got absent.whl"),
        (("--build", "never"), "--build must be yes or no, got never"),
        (("--build", "no", "--wheel", __file__), f"--build no takes no --wheel, got {__file__}"),
        (("--output",), "--output needs a value"),
        (("--output", f"{__file__}/out"), f"--output must be a folder that can be made, got {__file__}/out"),
        (("--fast", "1"), "unknown option --fast"),
    ],
)
def test_an_option_that_is_wrong_is_one_line(options: tuple[str, ...], message: str) -> None:
    done = run_script(*options)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_report_keeps_the_end_of_a_long_log_and_shows_markdown_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "gpu.txt").write_text("NVIDIA H100 80GB HBM3\n")
    (tmp_path / "stages.tsv").write_text("machine\tok\t1\t20\nsmoke\tfailed (1)\t9\t60\nncu\tleft out: no ncu\t0\t0\n")
    (tmp_path / "logs" / "machine.log").write_text("".join(f"line {i}\n" for i in range(100)))
    (tmp_path / "logs" / "smoke.log").write_text("| dtype |\n|---|\n")
    (tmp_path / "chip.json").write_text('{"gpu": "x"}\n')
    path = report.write(tmp_path)
    assert path.name == "nvidia-h100-80gb-hbm3.md"
    text = path.read_text(encoding="utf-8")
    assert "| smoke | failed (1) | 9 | 60 |" in text
    assert "```text\n[20 lines before]\nline 20\n" in text
    assert "## smoke\n\n| dtype |" in text
    assert '```json\n{"gpu": "x"}\n```' in text


def test_the_smoke_test_passes_what_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert smoke.check("cpu")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(smoke.DTYPES) * len(smoke.VOCABS)
    assert all(line.endswith("| right |") for line in lines[2:])


@pytest.mark.parametrize("operator", ["solve", "sample", "blend", "verify"])
def test_the_smoke_test_sees_a_wrong_answer_of_each_operator(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "VOCABS", (1000,))
    monkeypatch.setattr(smoke, "DTYPES", (torch.float32,))
    true = getattr(trbext, operator)

    def wrong(*arguments: object, **options: object) -> object:
        answer = true(*arguments, **options)
        changes = {
            "solve": lambda: answer._replace(beta=answer.beta * 1.001),
            "sample": lambda: answer._replace(token=(answer.token + 1) % 1000),
            "blend": lambda: answer._replace(log_probs=answer.log_probs + 0.01),
            "verify": lambda: answer._replace(tokens=(answer.tokens + 1) % 1000),
        }
        return changes[operator]()

    monkeypatch.setattr(trbext, operator, wrong)
    assert not smoke.check("cpu")


def test_the_smoke_test_names_an_error_and_stops_if_the_context_is_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(*_: object) -> None:
        raise RuntimeError("trb::solve: CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(trbext, "solve", lost)
    assert not smoke.check("cpu")
    printed = capsys.readouterr().out
    assert printed.count("illegal memory access") == 1
    assert "nothing more was tried" in printed


def test_the_timings_go_to_the_chip_file_beside_what_the_probe_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "chip.json").write_text('{"gpu": "probed"}')
    assert first_light.main(["time", "--device", "cpu", "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "chip.json").read_text(encoding="utf-8"))
    assert found["gpu"] == "probed"
    assert found["decision"]["sweeps"] >= 1
    assert {"solve_us", "empty_launch_us"} <= found["decision"].keys()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| ") and line.count("|") == len(timings.COLUMNS) + 1 for line in lines) == 3


def test_without_a_gpu_a_stage_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available() and trbext._C.cuda_compiled:
        pytest.skip("there is a GPU")
    assert first_light.main(["smoke"]) == 2
    assert "benchmarks.first_light: no" in capsys.readouterr().err
    assert first_light.main(["launches", "--device", "cpu"]) == 0


def test_quick_is_what_the_bars_need_and_an_option_overrides_it() -> None:
    quick = blend_cuda.parse(["--quick"])
    assert (quick.vocab, quick.dtype, quick.cache, quick.compile) == ([151_936], ["bfloat16"], ["cold"], "none")
    assert quick.rows == [1, 64, 256, 4096]
    assert quick.seconds_per_cell * len(quick.rows) * 2 < 30  # calls and graphs, besides making the rows
    assert blend_cuda.parse(["--quick", "--rows", "8"]).rows == [8]
    assert blend_cuda.parse([]).vocab == blend_cuda.VOCABS


@pytest.mark.ptx
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_chip_probe_compiles_and_times_what_it_names(architecture: str) -> None:
    """No chain has been optimized away: the timed instruction lies between two reads of the clock."""
    if reason := sass.missing_tool():
        pytest.skip(reason)
    cubin = sass.compile_cubin(ROOT / "benchmarks" / "chip_probe" / "main.cu", architecture, "-O3")
    opcodes = [instruction.opcode for instruction in cubin.function("latencies").instructions]
    clocks = [place for place, opcode in enumerate(opcodes) if opcode.startswith(("CS2R", "S2UR", "S2R"))]
    between = [opcodes[a + 1 : b] for a, b in itertools.pairwise(clocks)]
    for name in ("DFMA", "MUFU.RCP64H", "MUFU.EX2", "SHFL.BFLY", "LDS", "REDUX", "FFMA", "F2F.F32.F64", "BAR.SYNC"):
        longest = max(sum(opcode.startswith(name) for opcode in chain) for chain in between)
        assert longest >= 8, f"{name} is in no timed chain"  # as often as the loop is unrolled
    if architecture == "sm_90":
        of_meetings = {instruction.opcode for instruction in cubin.function("meetings").instructions}
        for name in ("STAS", "SYNCS", "UCGABAR_ARV", "UCGABAR_WAIT"):
            assert any(opcode.startswith(name) for opcode in of_meetings), (name, sorted(of_meetings))
