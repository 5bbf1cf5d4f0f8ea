"""Finds the barriers of the CUDA sources, names them so that a shifted line changes nothing, and removes one.

A barrier is a statement that synchronizes threads or orders their memory: __syncthreads and its relatives, __syncwarp,
a fence, a sync of a group, or an asm statement with an instruction that does either. Shuffles, votes and reductions of
a warp are not barriers: what they compute is needed for itself.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

CALLS = re.compile(
    r"\b(?:__sync(?:threads|warp)\w*|__threadfence\w*|__pipeline_\w+|__cluster_barrier_\w+|atomic_thread_fence"
    r"|cooperative_groups::sync|cg::sync)\b"
    r"|(?:\.|->)(?:sync|arrive|wait|arrive_and_wait|arrive_and_drop|barrier_arrive|barrier_wait|wait_parity)(?=\s*\()"
)
INSTRUCTIONS = re.compile(
    r"\b(?:bar(?:rier)?(?:\.cta|\.warp|\.cluster)?\.(?:sync|arrive|wait|red)|fence|membar|mbarrier|griddepcontrol"
    r"|cp\.(?:async|reduce)(?:\.\w+)*?\.(?:wait|commit|mbarrier)\w*|(?:wgmma|tcgen05)\.(?:fence|commit|wait))\b"
)
# Matches only `f(...);` or `object.f(...);` or an asm statement: what can be replaced by an empty statement.
STATEMENT = re.compile(r"(?:[\w:]+(?:\([^()]*\))?(?:\.|->))*[\w:]+\s*\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)\s*;")
NO_FUNCTION = re.compile(r"\b(?:__\w+__|alignas|static_assert|requires|decltype)$")


class Barrier(NamedTuple):
    file: str  # in csrc/
    function: str  # or method, with its class
    number: int  # among the barriers of the function, from 1
    line: int
    begin: int
    end: int
    text: str

    @property
    def key(self) -> tuple[str, str, int]:
        """The barrier's name, which depends neither on its line nor on the barriers of other functions."""
        return self.file, self.function, self.number

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function} {self.number}"


def barriers(sources: Path) -> list[Barrier]:
    """Returns the barriers of csrc/ `sources` in their order; raises ValueError for one that is not a statement of its
    own."""
    found = []
    for file in sorted(f for f in sources.rglob("*") if f.suffix in (".cu", ".cuh", ".h")):
        found += barriers_of(file.relative_to(sources).as_posix(), file.read_text(encoding="utf-8"))
    return found


def barriers_of(file: str, text: str) -> list[Barrier]:
    """Returns the barriers of one file's text, as `barriers` does."""
    code, literals = _code(text)
    places = {m.start() for m in CALLS.finditer(code)} | {m.start() for m in INSTRUCTIONS.finditer(literals)}
    found: list[Barrier] = []
    counts: Counter[str] = Counter()
    for place in sorted(places):
        if found and place < found[-1].end:
            continue  # another instruction of the same asm statement
        line = text.count("\n", 0, place) + 1
        begin = max(code.rfind(c, 0, place) for c in ";{}") + 1
        begin += len(code[begin:]) - len(code[begin:].lstrip())
        begin = _after_conditions(code, begin)
        statement = STATEMENT.match(code, begin)
        volatile = re.compile(r"asm\s+volatile\s*").match(code, begin)
        if volatile is not None:
            statement = STATEMENT.match(code, code.rfind("volatile", begin, volatile.end()))
        if statement is None or not begin <= place < statement.end():
            raise ValueError(
                f"csrc/{file}:{line}: a barrier must be a statement of its own, for this tool to leave it out, got "
                f"{text.splitlines()[line - 1].strip()!r}"
            )
        function = _function_at(code, begin)
        counts[function] += 1
        found.append(
            Barrier(file, function, counts[function], line, begin, statement.end(), text[begin : statement.end()])
        )
    return found


def without(barrier: Barrier, text: str) -> str:
    """Returns the file's text with an empty statement in place of the barrier."""
    assert text[barrier.begin : barrier.end] == barrier.text
    return text[: barrier.begin] + ";" + text[barrier.end :]


def _code(text: str) -> tuple[str, str]:
    """Returns two texts of the same length: the code without comments, directives and what is in quotes; and only what
    is in quotes."""
    code, literals = list(text), [" "] * len(text)
    token = re.compile(
        r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'|^[ \t]*#(?:\\\n|[^\n])*', re.M | re.S
    )
    for match in token.finditer(text):
        if match.group().startswith("'") and text[match.start() - 1].isalnum():
            continue  # 1'000
        for i in range(*match.span()):
            if text[i] != "\n":
                code[i] = " "
            if text[match.start()] == '"':
                literals[i] = text[i]
    return "".join(code), "".join(literals)


def _after_conditions(code: str, begin: int) -> int:
    """Returns the place of the statement that `if (...)`, `else`, `for (...)` or `while (...)` before it governs."""
    governs = re.compile(r"(?:else\b|(?:if(?:\s+constexpr)?|for|while)\s*(?=\())\s*")
    while match := governs.match(code, begin):
        begin = match.end()
        if code[begin] == "(" and not match.group().startswith("else"):
            begin = _closing(code, begin) + 1
        begin += len(code[begin:]) - len(code[begin:].lstrip())
    return begin


def _closing(code: str, opening: int) -> int:
    depth = 0
    for i in range(opening, len(code)):
        depth += {"(": 1, ")": -1}.get(code[i], 0)
        if depth == 0:
            return i
    raise ValueError("a parenthesis is never closed")


def _function_at(code: str, place: int) -> str:
    """Returns the function whose body holds `place`, with the classes around it."""
    headers: list[str] = []
    begins = 0
    for i in range(place):
        if code[i] in ";{}":
            if code[i] == "{":
                headers.append(code[begins:i])
            elif code[i] == "}":
                headers.pop()
            begins = i + 1
    names = []
    for header in headers:
        type_name = re.search(r"\b(?:struct|class|union)\s+(\w+)[^()]*$", header)
        if type_name is not None:
            names.append(type_name.group(1))
            continue
        name = _name_before_parameters(header)
        if name is not None:
            return "::".join([*names, name])
    raise ValueError(f"no function holds {code[place : place + 40]!r}")


def _name_before_parameters(header: str) -> str | None:
    """Returns the name in a header `template <...> T name(...)`, which may hold attributes in parentheses before the
    name."""
    at = 0
    while (opening := header.find("(", at)) >= 0:
        if re.search(r"\boperator\s*$", header[:opening]) and re.match(r"\(\s*\)\s*\(", header[opening:]):
            return "operator()"
        name = re.search(r"(operator\s*\W+|~?\w+)\s*$", header[:opening])
        if name is not None and NO_FUNCTION.search(name.group(1)) is None:
            return name.group(1)
        at = _closing(header, opening) + 1
    return None
