"""Classifies an instruction of the machine code by its opcode: the classes that sweeps are counted in."""

from __future__ import annotations

import re
from enum import Enum


class Kind(Enum):
    """The kinds follow the execution pipes. Each instruction needs one issue slot, whatever its kind."""

    FP32 = "fp32"  # add, multiply, fused multiply-add; the packed pairs of sm_100 count as one
    MUFU = "mufu"  # exponentials, logarithms, reciprocals: 16 lanes per cycle and SM
    FP64 = "fp64"  # anything that touches a double
    HALF = "half"  # packed float16 and bfloat16
    MMA = "mma"  # tensor cores
    COMPARE = "compare"  # minimum, maximum, select, set predicate
    LOGIC = "logic"  # bit logic, shifts, byte permutes: the unpacking of bfloat16
    INTEGER = "integer"  # adds, multiplies, addresses
    MOVE = "move"  # between registers, and from special registers
    CONVERT = "convert"
    UNIFORM = "uniform"  # the warp-wide scalar unit
    CONSTANT = "constant"  # loads from the constant bank
    LDS = "lds"
    STS = "sts"
    LDG = "ldg"
    STG = "stg"
    GENERIC = "generic"  # loads and stores by generic address: the shared memory of the cluster among them
    LOCAL = "local"  # spills and arrays indexed at run time
    ATOMIC = "atomic"
    BULK = "bulk"  # asynchronous copies, prefetches
    SHUFFLE = "shuffle"  # between the lanes of a warp: shuffles, votes, reductions
    BARRIER = "barrier"  # barriers and fences of any scope
    BRANCH = "branch"  # and the bookkeeping of divergence
    PADDING = "padding"  # NOPs that are executed: sm_120 has four after most double precision instructions
    OTHER = "other"


# The first pattern that matches the start of "OPCODE operands" decides.
_PATTERNS: tuple[tuple[Kind, str], ...] = (
    (Kind.FP64, r"D(FMA|ADD|MUL|SETP|MNMX|MMA)\b|MUFU\.\w+64H|(F2F|F2I|I2F|FRND)\S*\.F64"),
    (Kind.MUFU, r"MUFU\b"),
    (Kind.MMA, r"[A-Z]{1,2}MMA\b|UTC\w*MMA"),
    (Kind.MOVE, r"HFMA2(\.\w+)* R\d+, -RZ, RZ,|IMAD\.MOV|(MOV|MOV32I|CS2R|S2U?R|R2P|P2R|R2UR)\b"),
    (Kind.CONVERT, r"HADD2\.F32|(F2F|F2I|I2F|FRND|F2FP|I2FP|F2IP|I2I|I2IP)\b"),
    (Kind.HALF, r"H(FMA2|ADD2|MUL2|MNMX2|SET2|SETP2)\b|VHMNMX"),
    (Kind.FP32, r"F(FMA|ADD|MUL)(2|32I)?\b|FSWZADD"),
    (Kind.COMPARE, r"F(MNMX3?|SEL|SETP|SET|CHK)\b|(SEL|ISETP|PLOP3|IMNMX|VIMNMX\w*)\b"),
    (Kind.LOGIC, r"(LOP3?|PRMT|SHF|SHL|SHR|BFE|BFI|BREV|BMSK|SGXT|FLO|POPC|LEPC)\b"),
    (Kind.INTEGER, r"(IMAD|IADD3?|IADD32I|IMUL|LEA|VIADD|VIADDMNMX|IABS|IDP|ISCADD|XMAD)\b"),
    (Kind.BULK, r"(LDGSTS|LDGDEPBAR|DEPBAR)\b|UBLK|UTMA|CCTL\S*\.PF"),
    (
        Kind.BARRIER,
        r"BAR\b|BARRIER|MEMBAR|FENCE|ERRBAR|CGAERRBAR|UCGABAR|CCTL|SYNCS|WARPSYNC|NANOSLEEP|ACQBULK|PREEXIT|B2U?R|R2B",
    ),
    (Kind.SHUFFLE, r"(SHFL|VOTE|VOTEU|REDUX|CREDUX|MATCH|ELECT)\b"),
    (Kind.CONSTANT, r"U?LDCU?\b"),
    (Kind.LOCAL, r"(LDL|STL)\b"),
    (Kind.ATOMIC, r"(ATOM|ATOMG|ATOMS|RED|REDG|REDS|REDAS|ATOMAS)\b"),
    (Kind.LDS, r"LDSM?\b"),
    (Kind.STS, r"(STS|STAS)\b"),
    (Kind.LDG, r"LDG\b"),
    (Kind.STG, r"STG\b"),
    (Kind.GENERIC, r"(LD|ST|QSPC)\b"),
    (
        Kind.BRANCH,
        r"(BRA|BRX|BRXU|JMP|JMX|JMXU|CALL|RET|EXIT|BSSY|BSYNC|BREAK|BMOV|YIELD|KILL|RTT|BPT|ENDCOLLECTIVE)\b",
    ),
    (Kind.PADDING, r"NOP\b"),
    (Kind.UNIFORM, r"U[A-Z]"),
)
_COMPILED = tuple((kind, re.compile(pattern)) for kind, pattern in _PATTERNS)


def kind_of(opcode: str, operands: str = "") -> Kind:
    """Returns the kind of an opcode with its modifiers, as `LDG.E.128.CONSTANT`, and operands as disassembled."""
    text = f"{opcode} {operands}"
    return next((kind for kind, pattern in _COMPILED if pattern.match(text)), Kind.OTHER)
