"""python_tests/sass finds the loops, classes, widths, registers and spills of kernels in which they are known."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from ptxsim import Device, Module, compile_ptx, launch
from python_tests import sass
from python_tests.sass import Kind

PROBES = Path(__file__).parent / "kernels" / "probes.cu"

compiles = pytest.mark.skipif(sass.missing_tool() is not None, reason=str(sass.missing_tool()))


@pytest.fixture(scope="module", params=sass.ARCHITECTURES)
def cubin(request: pytest.FixtureRequest) -> sass.Cubin:
    if request.param not in sass.supported():
        pytest.skip(f"this nvcc does not know {request.param}, only {', '.join(sass.supported())}")
    return sass.compile_cubin(PROBES, request.param)


@compiles
def test_a_loop_of_known_instructions(cubin: sass.Cubin) -> None:
    (loop,) = sass.loops(cubin.function("known_loop"))
    assert loop.innermost
    assert loop.depth == 0
    assert loop.counts[Kind.FP32] == 8
    assert loop.counts[Kind.MUFU] == 4
    assert loop.counts[Kind.BRANCH] == 1
    assert loop.widths(Kind.LDG) == {128: 1}
    assert loop.counts[Kind.FP64] == loop.counts[Kind.LOCAL] == loop.counts[Kind.STG] == 0
    per = loop.per(pairs=4)
    assert (per[Kind.FP32], per[Kind.MUFU], per[Kind.LDG], per[Kind.HALF]) == (2, 1, 0.25, 0)
    assert 13 / 4 < per.total < 24 / 4  # and the address and the counter
    assert per.total == pytest.approx(sum(per.by_kind.values()))
    assert str(per).startswith(f"{per.total:.2f} = 2.00 fp32 + ")


@compiles
def test_nested_loops(cubin: sass.Cubin) -> None:
    outer, first, second = sass.loops(cubin.function("nested_loops"))
    assert [loop.depth for loop in (outer, first, second)] == [0, 1, 1]
    assert outer.inner == [first, second]
    assert not outer.innermost
    assert (first.counts[Kind.FP32], first.counts[Kind.MUFU], first.counts[Kind.LDG]) == (1, 0, 1)
    assert (second.counts[Kind.FP32], second.counts[Kind.MUFU], second.counts[Kind.LDG]) == (0, 1, 0)
    assert outer.counts[Kind.SHUFFLE] == 1
    own = [instruction.kind for instruction in outer.own]
    assert own.count(Kind.MUFU) == own.count(Kind.LDG) == 0
    assert (own.count(Kind.STG), own.count(Kind.SHUFFLE)) == (1, 1)


@compiles
def test_resources_name_spills_and_shared_memory(cubin: sass.Cubin) -> None:
    spilling, clean, doubles = (cubin.resources[name] for name in ("forced_spills", "known_loop", "doubles"))
    assert spilling.registers == 64
    assert spilling.spill_store_bytes > 0
    assert spilling.spill_load_bytes > 0
    assert spilling.stack_bytes > 0
    assert any(i.kind is Kind.LOCAL for i in cubin.function("forced_spills").instructions)
    assert clean.spill_bytes == clean.stack_bytes == clean.shared_bytes == 0
    assert clean.registers is not None
    assert 8 < clean.registers < 64
    assert doubles.shared_bytes >= 2048  # sm_90 and later reserve a part for the system


@compiles
def test_double_precision_is_found(cubin: sass.Cubin) -> None:
    (loop,) = sass.loops(cubin.function("doubles"))
    assert loop.counts[Kind.FP64] == 2  # the conversion too
    assert loop.counts[Kind.FP32] == loop.counts[Kind.CONVERT] == 0


@compiles
def test_templates_are_named_by_a_part_and_loads_have_widths(cubin: sass.Cubin) -> None:
    for part, bits in (("copyI5uint2", 64), ("copyIt", 16)):
        loop = sass.loops(cubin.function(part))[-1]
        assert loop.widths(Kind.LDG) == loop.widths(Kind.STG) == {bits: 1}
        assert cubin.resources[cubin.name(part)].spill_bytes == 0
    with pytest.raises(KeyError, match="'copy' must name one kernel, got 2 of"):
        cubin.function("copy")
    with pytest.raises(KeyError, match=f"'absent' must name one kernel, got 0 of .*{cubin.architecture}"):
        cubin.function("absent")


@compiles
def test_every_opcode_has_a_kind(cubin: sass.Cubin) -> None:
    unknown = {i.opcode for f in cubin.functions.values() for i in f.instructions if i.kind is Kind.OTHER}
    assert not unknown


@compiles
def test_what_nvcc_refuses_is_an_error_that_quotes_it(tmp_path: Path) -> None:
    source = tmp_path / "wrong.cu"
    source.write_text("__global__ void kernel() { undeclared = 1; }")
    with pytest.raises(RuntimeError, match='identifier "undeclared" is undefined'):
        sass.compile_cubin(source, "sm_80")


def test_a_tool_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("python_tests.sass.toolchain.find_tool", lambda name: tmp_path if name == "nvcc" else None)
    assert sass.missing_tool() is not None
    assert "nvdisasm is neither on PATH" in str(sass.missing_tool())
    assert "pip install nvidia-cuda-nvdisasm" in str(sass.missing_tool())


def test_tools_are_found_in_a_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("python_tests.sass.toolchain._folders", lambda: iter([tmp_path / "none", tmp_path]))
    assert sass.find_nvcc() is None
    (tmp_path / "nvcc").write_text("#!/bin/sh\n")
    (tmp_path / "nvcc").chmod(0o755)
    assert sass.find_nvcc() == tmp_path / "nvcc"


@compiles
def test_every_architecture_is_checked_with_a_compiler_that_knows_all() -> None:
    if b"release 13" not in subprocess.run([str(sass.find_nvcc()), "--version"], capture_output=True).stdout:
        pytest.skip("an nvcc other than 13.x may know fewer")
    assert sass.supported() == sass.ARCHITECTURES == ("sm_80", "sm_90", "sm_100", "sm_120")


def listing(*lines: str) -> sass.Function:
    """Returns a function of one instruction per line; "name:" labels the next one."""
    text, address = [".text.f:"], 0
    for line in lines:
        if line.endswith(":"):
            text.append(line)
        else:
            text.append(f"        /*{address:04x}*/                   {line} ;")
            address += 16
    return sass.parse_functions("\n".join(text))["f"]


def test_the_twin_of_a_shuffle_behind_the_end_is_no_loop_and_belongs_to_none() -> None:
    twin = (".twin:", "WARPSYNC.COLLECTIVE R9, `(.x)", ".x:", "ENDCOLLECTIVE", "BRA `(.after)")
    shuffle = (".head:", "BRA.DIV UR4, `(.twin)", "SHFL.BFLY PT, R0, R1, 0x1, 0x1f", ".after:", "FADD R1, R1, R0")
    assert sass.loops(listing(*shuffle, "EXIT", *twin)) == []
    (loop,) = sass.loops(listing(*shuffle, "@P0 BRA `(.head)", "EXIT", *twin))
    assert [instruction.base for instruction in loop.instructions] == ["BRA", "SHFL", "FADD", "BRA"]


def test_a_rare_path_behind_the_end_that_returns_into_a_loop_is_part_of_it() -> None:
    function = listing(
        *(".head:", "FADD R0, R0, R1", "@P0 BRA `(.rare)", ".back:", "@P1 BRA `(.head)", "EXIT"),
        *(".rare:", "MUFU.EX2 R0, R0", "BRA `(.back)", ".end:", "BRA `(.end)", "NOP"),
    )
    (loop,) = sass.loops(function)  # the trap at .end is never reached
    assert [instruction.base for instruction in loop.instructions] == ["FADD", "BRA", "BRA", "MUFU", "BRA"]


@pytest.mark.parametrize(
    ("jump", "falls_through"),
    [
        ("BRA `(.head)", False),
        ("@PT BRA `(.head)", False),
        ("@P0 BRA `(.head)", True),
        ("BRA P1, `(.head)", True),
        ("BRA.U !UP0, `(.head)", True),
        ("@P0 BRA P1, `(.head)", True),
        ("BRA.U UPT, `(.head)", False),
        ("BRA.CONV ~URZ, `(.head)", False),
    ],
)
def test_jumps_that_may_fall_through(jump: str, falls_through: bool) -> None:
    second = (".next:", "FMUL R1, R1, R1", "@P2 BRA `(.next)", "EXIT")
    found = sass.loops(listing(".head:", "FADD R0, R0, R1", jump, *second))
    assert [loop.start for loop in found] == ([0, 32] if falls_through else [0])


def test_loops_of_functions_that_are_called_and_of_jump_tables() -> None:
    called = listing(
        *("CALL.REL.NOINC `($f$helper)", "EXIT", "$f$helper:", "FADD R0, R0, R1", "@P0 BRA `($f$helper)"),
        "RET.REL.NODEC R2 `(f)",
    )
    assert [loop.start for loop in sass.loops(called)] == [32]
    table = listing(".a:", 'BRX R2 -0x20 (*"BRANCH_TARGETS .a,.b"*)', ".b:", "EXIT")
    assert [len(loop.instructions) for loop in sass.loops(table)] == [1]


@pytest.mark.parametrize(
    ("instruction", "kind"),
    [
        ("FFMA R0, R1, R2, R3", Kind.FP32),
        ("FFMA2 R0, R2.F32x2.HI_LO, R4.F32x2.HI_LO, R6.F32x2.HI_LO", Kind.FP32),
        ("FMNMX.NAN R0, R1, R2, !PT", Kind.COMPARE),
        ("VIMNMX.U32 R0, R1, R2, PT", Kind.COMPARE),
        ("MUFU.EX2 R0, R1", Kind.MUFU),
        ("MUFU.EX2.BF16_V2 R0, R1", Kind.MUFU),
        ("MUFU.RCP64H R1, R3", Kind.FP64),
        ("F2F.F64.F32 R0, R2", Kind.FP64),
        ("F2F.F32.F64 R0, R2", Kind.FP64),
        ("I2F.F64 R0, R2", Kind.FP64),
        ("F2I.U32.F64.TRUNC R0, R2", Kind.FP64),
        ("I2F.U32 R0, R2", Kind.CONVERT),
        ("I2F.S64 R0, R2", Kind.CONVERT),
        ("F2I.S64.TRUNC R0, R2", Kind.CONVERT),
        ("F2FP.BF16.F32.PACK_AB R0, R1, R2", Kind.CONVERT),
        ("HADD2.F32 R0, -RZ, R1.H0_H0", Kind.CONVERT),
        ("HADD2.BF16_V2 R0, R1, R2", Kind.HALF),
        ("HFMA2.MMA.BF16_V2 R0, R1, R2, R3", Kind.HALF),
        ("HFMA2.MMA R0, -RZ, RZ, 0, 0", Kind.MOVE),
        ("VHMNMX.BF16_V2 R0, R1, R2, R3, PT", Kind.HALF),
        ("HMMA.16816.F32.BF16 R0, R4, R8, R0", Kind.MMA),
        ("IMAD.MOV.U32 R0, RZ, RZ, R1", Kind.MOVE),
        ("IMAD.U32 R0, R1, 0x10000, RZ", Kind.INTEGER),
        ("PRMT R0, RZ, 0x7610, R1", Kind.LOGIC),
        ("UIADD3 UR4, UR4, 0x1, URZ", Kind.UNIFORM),
        ("UMOV UR4, 0x1", Kind.UNIFORM),
        ("R2UR UR4, R1", Kind.MOVE),
        ("ULDC.64 UR4, c[0x0][0x208]", Kind.CONSTANT),
        ("LDCU.64 UR4, c[0x0][0x358]", Kind.CONSTANT),
        ("LDS.128 R4, [R2]", Kind.LDS),
        ("LDG.E.128.CONSTANT R4, desc[UR4][R2.64]", Kind.LDG),
        ("LD.E.64 R4, desc[UR4][R2.64]", Kind.GENERIC),
        ("LDL.LU R4, [R1+0x8]", Kind.LOCAL),
        ("LDGSTS.E.BYPASS.128 [R4], desc[UR4][R2.64]", Kind.BULK),
        ("UBLKCP.S.G [UR4], [UR6], UR8", Kind.BULK),
        ("CCTL.E.PF2 [R2]", Kind.BULK),
        ("CCTL.IVALL", Kind.BARRIER),
        ("B2R.RESULT RZ, P0", Kind.BARRIER),
        ("ELECT P0, URZ, PT", Kind.SHUFFLE),
        ("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R2", Kind.BARRIER),
        ("UCGABAR_ARV", Kind.BARRIER),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", Kind.BARRIER),
        ("WARPSYNC.ALL", Kind.BARRIER),
        ("SHFL.BFLY PT, R0, R1, 0x10, 0x1f", Kind.SHUFFLE),
        ("REDUX.SUM UR4, R1", Kind.SHUFFLE),
        ("RED.E.ADD.STRONG.GPU desc[UR4][R2.64], R1", Kind.ATOMIC),
        ("NOP", Kind.PADDING),
        ("BSSY B0, `(.L_x_0)", Kind.BRANCH),
        ("NEWOP.X R1, R2", Kind.OTHER),
    ],
)
def test_kinds(instruction: str, kind: Kind) -> None:
    assert listing(instruction).instructions[0].kind is kind


@pytest.mark.parametrize(
    ("opcode", "bits"),
    [
        ("LDG.E", 32),
        ("LDG.E.64", 64),
        ("LDG.E.128.CONSTANT", 128),
        ("LDG.E.ENL2.256", 256),
        ("LDG.E.U16.CONSTANT", 16),
        ("LDS.S8", 8),
        ("STS.U16", 16),
    ],
)
def test_widths(opcode: str, bits: int) -> None:
    assert listing(f"{opcode} R4, [R2]").instructions[0].width == bits


def test_resources_of_ptxas() -> None:
    found = sass.parse_resources(
        "ptxas info    : Compiling entry function 'kernel' for 'sm_90'\n"
        "ptxas info    : Function properties for kernel\n"
        "    40 bytes stack frame, 36 bytes spill stores, 44 bytes spill loads\n"
        "ptxas info    : Used 122 registers, used 1 barriers, 40 bytes cumulative stack size, 1360 bytes smem\n"
        "ptxas info    : Function properties for helper\n"
        "    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Compiling entry function 'plain' for 'sm_90'\n"
        "ptxas info    : Function properties for plain\n"
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Used 10 registers, used 0 barriers, 368 bytes cmem[0]\n"
    )
    assert found["kernel"] == sass.Resources(122, 40, 36, 44, 1360)
    assert found["kernel"].spill_bytes == 80
    assert found["helper"] == sass.Resources(None, 8)
    assert found["plain"] == sass.Resources(10)


def test_per_needs_a_positive_number_of_pairs() -> None:
    (loop,) = sass.loops(listing(".head:", "FADD R0, R0, R1", "BRA `(.head)"))
    with pytest.raises(ValueError, match="pairs must be the positive number of logit pairs a lane consumes a pass"):
        loop.per(0)


@compiles
def test_machine_instructions_are_placed_in_the_lines_of_the_ptx(tmp_path: Path) -> None:
    """A loop of the PTX that runs three times executes its instructions three times as often."""
    ptx = compile_ptx(PROBES, 90)
    head, kernel = ptx.split(".visible .entry", 1)[0], ptx[ptx.index(".visible .entry known_loop") :]
    text = head + kernel[: kernel.index("\n}") + 2]
    code = sass.placed_instructions(text, "sm_90")
    device, (loaded,) = Device(), Module.parse(text).kernels.values()
    counts = []
    for passes in (1, 3):
        values = device.upload(np.zeros(128 * passes, np.float32), name="x")
        out = device.empty(32, np.float32, name="out")
        result = launch(device, loaded, 1, 32, [values, out, np.int32(passes)])
        assert result.findings == []
        counts.append(sass.executed(code, result.lines))
    loop = [placed.instruction for placed in code if counts[1][placed.instruction.address] == 3]
    assert [i.kind for i in loop].count(Kind.MUFU) == 4
    assert [i.kind for i in loop].count(Kind.LDG) == 1
    assert {counts[0][i.address] for i in loop} == {1}
    twice = [placed for placed in code if placed.instruction.base == "EXIT"]
    assert all(counts[0][placed.instruction.address] == 1 for placed in twice)
    with pytest.raises(RuntimeError, match="one kernel"):
        sass.placed_instructions(ptx, "sm_90")
