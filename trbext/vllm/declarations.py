"""Finds functions, classes and attributes in Python sources without importing them, and in live objects."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .interface import Use

Parameters = tuple[str, ...]


def differences(
    uses: Sequence[Use], package: Path, instances: Mapping[str, Any] | None = None
) -> Iterator[tuple[Use, str]]:
    """Says what in a package is not as it is used.

    Args:
        uses: What is looked up.
        package: The folder of the package, with its sources.
        instances: Live objects by the name of their class, in which the functions and attributes of that class are
            looked up instead.

    Returns:
        Each use that does not fit, with one line that says what was found.
    """
    trees: dict[str, ast.Module | None] = {}
    for use in uses:
        if instances and use.owner in instances:
            found, parameters = in_object(instances[use.owner], use.name)
        else:
            if use.module not in trees:
                file = package.joinpath(*use.module.split(".")).with_suffix(".py")
                trees[use.module] = ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else None
            tree = trees[use.module]
            if tree is None:
                yield use, f"{use.module} must be there, for {use.title}, got no such module"
                continue
            found, parameters = in_source(tree, use.owner, use.name)
        difference = use.difference(parameters, found=found)
        if difference is not None:
            yield use, difference


def in_object(holder: Any, name: str) -> tuple[bool, Parameters | None]:
    """Whether an object has an attribute, and what it takes if it is a method of the object's class."""
    method = getattr(type(holder), name, None)
    if not inspect.isfunction(method):
        return hasattr(holder, name), None
    parameters = inspect.signature(method).parameters.values()
    return True, tuple(str(one.replace(annotation=one.empty, default=one.empty)) for one in parameters)[1:]


def in_source(tree: ast.Module, owner: str, name: str) -> tuple[bool, Parameters | None]:
    """Whether a module, or its class `owner`, declares a name.

    Returns:
        Whether it does, and the parameters of a function without self, or the fields of a class.
    """
    bodies: list[ast.Module | ast.ClassDef] = [tree]
    if owner:
        bodies = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner]
    for body in bodies:
        for node in body.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
                return True, _parameters(node)
            if isinstance(node, ast.ClassDef) and node.name == name:
                return True, tuple(_fields(node))
        if owner and (name in _fields(body) or name in _set_on_self(body)):
            return True, None
    return False, None


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Parameters | None:
    if any(ast.unparse(decorator).endswith("property") for decorator in node.decorator_list):
        return None
    arguments = node.args
    names = [one.arg for one in (*arguments.posonlyargs, *arguments.args)]
    names += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    names += [one.arg for one in arguments.kwonlyargs]
    names += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    return tuple(name for name in names if name != "self")


def _fields(node: ast.Module | ast.ClassDef) -> list[str]:
    """The names that the body of a class annotates, as a dataclass does."""
    return [one.target.id for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)]


def _set_on_self(node: ast.Module | ast.ClassDef) -> set[str]:
    return {
        one.attr
        for one in ast.walk(node)
        if isinstance(one, ast.Attribute)
        and isinstance(one.ctx, ast.Store)
        and isinstance(one.value, ast.Name)
        and one.value.id == "self"
    }
