"""Parses PTX text to the data of syntax.py.

Declarations in nested scopes get unique names, because inline assembly reuses names.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import partial

from .syntax import Body, Function, Instruction, Kernel, Module, Variable

_LINE_DIRECTIVES = (
    "version",
    "target",
    "address_size",
    "file",
    "loc",
    "maxntid",
    "reqntid",
    "minnctapersm",
    "maxnreg",
    "explicitcluster",
    "reqnctapercluster",
    "maxclusterrank",
    "noreturn",
    "pragma",
)
_DIRECTIVE = re.compile(r"\.(?:" + "|".join(_LINE_DIRECTIVES) + r")\b[^\n;]*")
_HEAD = re.compile(r"(?:\.(?:visible|weak|extern)\s+)*\.(?P<kind>entry|func)\b(?P<rest>[^{;]*)")
_LABEL = re.compile(r"([A-Za-z_$][\w$]*):(?!:)")
_VARIABLE = re.compile(
    r"(?:\.(?:visible|weak|extern|common)\s+)*\.(?P<space>global|const|shared|local|param)\b(?P<middle>.*?)"
    r"\.(?P<type>[bus]\d+|f\d+|bf16|pred)\s+(?P<ptr>.*?)(?P<name>[%A-Za-z_$][\w$.]*)\s*(?P<dims>(?:\[\d*\])*)"
    r"\s*(?:=\s*(?P<initial>.*))?$",
    re.S,
)
_REGISTER = re.compile(r"(%?[\w$]+)(?:<(\d+)>)?")
_NAME = re.compile(r"%?[A-Za-z_$][\w$]*(?:\.[A-Za-z]\w*)?")
_INSTRUCTION = re.compile(r"(?:@(!?)(%?[\w$@]+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.S)
_OPERAND = re.compile(r"\s*(\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|[^,\s][^,]*)\s*(?:,|$)")


class _Source:
    """The text without comments, and the line of each position."""

    def __init__(self, text: str) -> None:
        self.text = re.sub(r"//[^\n]*", "", re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.S))
        self._newlines = [m.start() for m in re.finditer("\n", self.text)]

    def line(self, position: int) -> int:
        return bisect_right(self._newlines, position - 1) + 1

    def closing_brace(self, start: int) -> int:
        """Returns the position of the brace that closes the one at `start`."""
        depth = 0
        for match in re.compile(r"[{}]").finditer(self.text, start):
            depth += 1 if match[0] == "{" else -1
            if depth == 0:
                return match.start()
        raise ValueError(f"line {self.line(start)}: brace is never closed")

    def statements(self, start: int, end: int) -> Iterator[tuple[int, str]]:
        """Yields braces, `label:` and statements (without their semicolon) between two positions."""
        text, position = self.text, start
        skip = re.compile(r"[\s;]*")
        statement = re.compile(r"[^;]*")
        while True:
            position = skip.match(text, position).end()  # type: ignore[union-attr]
            if position >= end:
                return
            match = _DIRECTIVE.match(text, position) or _LABEL.match(text, position)
            if text[position] in "{}":
                yield position, text[position]
                position += 1
            elif match is not None:
                yield position, match[0]
                position = match.end()
            elif text.startswith(".section", position):
                position = self.closing_brace(text.index("{", position)) + 1
            else:
                match = _HEAD.match(text, position) or statement.match(text, position)
                assert match is not None
                yield position, match[0].strip()
                position = match.end()


def _variable(declaration: str) -> Variable | None:
    match = _VARIABLE.match(declaration.strip())
    if match is None:
        return None
    dims = re.findall(r"\[(\d*)\]", match["dims"])
    align = re.search(r"\.align\s+(\d+)", match["middle"])
    shape = tuple(int(d) for d in dims if d)
    size = int(re.sub(r"\D", "", match["type"]) or 8) // 8
    initial = tuple(x for x in re.split(r"[\s,{}]+", match["initial"] or "") if x)
    unsized = "" in dims and not initial
    if "" in dims and initial:
        shape = (len(initial),)
    return Variable(
        match["name"], match["space"], match["type"], shape, int(align[1]) if align else size, unsized, initial
    )


def _parameters(text: str) -> tuple[Variable, ...]:
    found = tuple(_variable(part) for part in text.split(",") if part.strip())
    if any(v is None for v in found):
        raise NotImplementedError(f"parameter list ({text})")
    return tuple(v for v in found if v is not None)


def _directive(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, values = text[1:].partition(" ")
    return name.strip(), tuple(int(v) for v in re.findall(r"\d+", values))


class _Scopes:
    """Maps a name as written to the unique name of the innermost declaration."""

    def __init__(self) -> None:
        self._stack: list[dict[str, str]] = [{}]
        self._serial = 0

    def enter(self) -> None:
        self._stack.append({})

    def leave(self) -> None:
        self._stack.pop()

    def declare(self, name: str) -> str:
        unique = name
        if len(self._stack) > 1:
            self._serial += 1
            unique = f"{name}@{self._serial}"
        self._stack[-1][name] = unique
        return unique

    def resolve(self, name: str) -> str:
        for scope in reversed(self._stack):
            if name in scope:
                return scope[name]
        return name


def _parse_body(source: _Source, start: int, end: int) -> Body:
    # 1. Replace each name by the unique name of its innermost declaration.
    body, scopes, names = Body(), _Scopes(), set()

    def rename(match: re.Match[str]) -> str:
        name = scopes.resolve(match[0])
        names.add(name)
        return name

    # 2. Take in each statement: a scope, a declaration, a label or an instruction.
    for position, text in source.statements(start, end):
        if text == "{":
            scopes.enter()
        elif text == "}":
            scopes.leave()
        elif text.startswith(".reg"):
            type_name, registers = re.match(r"\.reg\s*(?:\.v\d\s+)?\.(\w+)\s+(.*)", text, re.S).groups()  # type: ignore[union-attr]
            for name, count in _REGISTER.findall(registers):
                for plain in [f"{name}{i}" for i in range(int(count))] if count else [name]:
                    body.registers[scopes.declare(plain)] = type_name
        elif text.startswith(".branchtargets"):
            label = next(reversed(body.labels))
            body.branch_targets[label] = tuple(t.strip() for t in text.split(None, 1)[1].split(","))
        elif _DIRECTIVE.match(text):
            continue
        elif text.startswith("."):
            variable = _variable(text)
            if variable is None:
                raise NotImplementedError(f"line {source.line(position)}: {text}")
            unique = scopes.declare(variable.name)
            body.variables[unique] = Variable(unique, *list(vars(variable).values())[1:])
        elif (label_match := _LABEL.fullmatch(text)) is not None:
            if label_match[1] in body.labels:
                raise NotImplementedError(f"line {source.line(position)}: label {label_match[1]} is declared twice")
            body.labels[label_match[1]] = len(body.instructions)
        else:
            body.instructions.append(_instruction(text, source.line(position), scopes, rename))
    body.names = frozenset(names)
    return body


def _instruction(text: str, line: int, scopes: _Scopes, rename) -> Instruction:  # type: ignore[no-untyped-def]
    match = _INSTRUCTION.match(text)
    if match is None:
        raise NotImplementedError(f"line {line}: {text}")
    opcode, *modifiers = match[3].split(".")
    operands = _OPERAND.findall(_NAME.sub(rename, match[4]))
    guard = scopes.resolve(match[2]) if match[2] else None
    readable = re.sub(r"\s+", " ", text)
    return Instruction(
        line, readable, opcode, tuple(modifiers), tuple(o.strip() for o in operands), guard, match[1] == "!"
    )


def _function(module: Module, head: re.Match[str]) -> Function:
    kind, rest = head["kind"], head["rest"]
    match = re.match(
        r"\s*(?:\((?P<returns>[^)]*)\))?\s*(?P<name>[\w$]+)\s*(?:\((?P<params>[^)]*)\))?(?P<tail>.*)", rest, re.S
    )
    if match is None:
        raise NotImplementedError(f"function head {head[0]}")
    directives = dict(_directive(line.strip()) for line in match["tail"].split("\n") if line.strip().startswith("."))
    cls = Kernel if kind == "entry" else Function
    returns = _parameters(match["returns"] or "")
    return cls(match["name"], _parameters(match["params"] or ""), returns, directives, module, None)


def parse_module(text: str) -> Module:
    """Reads a whole PTX text; function bodies are parsed when first used."""
    source = _Source(text)
    target = re.search(r"^\s*\.target\s+sm_(\d+)", source.text, re.M)
    module = Module(int(target[1]) if target else 0)
    position = 0
    skip_until = 0
    for position, statement in source.statements(0, len(source.text)):
        if position < skip_until or statement in "{}" or _DIRECTIVE.match(statement):
            continue
        head = _HEAD.match(statement)
        if head is not None:
            function = _function(module, head)
            opening = re.compile(r"\s*[{;]").match(source.text, position + len(_HEAD.match(source.text, position)[0]))  # type: ignore[index]
            if opening is not None and opening[0].endswith("{"):
                start = opening.end()
                skip_until = source.closing_brace(start - 1) + 1
                function.read_body = partial(_parse_body, source, start, skip_until - 1)
            if isinstance(function, Kernel):
                module.kernels[function.name] = function
            elif function.is_defined or function.name not in module.functions:
                module.functions[function.name] = function
            continue
        variable = _variable(statement)
        if variable is None:
            raise NotImplementedError(f"line {source.line(position)}: {statement}")
        module.variables[variable.name] = variable
    return module
