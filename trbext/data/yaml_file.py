"""Reads and writes YAML files of fields and values, strictly and by the rules of YAML 1.2.

PyYAML reads YAML 1.1, in which `1e-6` is text, `010` is eight, `2026_11` and `1:30` are numbers, and `2026-11-28` is no
text either. It also keeps the last of two equal keys in silence. yes, no, on and off stay booleans, as in YAML 1.1: a
field of text refuses them by name, whereas YAML 1.2 would let "no" through as text for a field that means false.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ..errors import UsageError

_MERGE = "tag:yaml.org,2002:merge"
_INT = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"
_NUMBERS = {
    _INT: re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    _FLOAT: re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
}
_ONLY_IN_1_1 = {_INT, _FLOAT, "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"}


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """Returns the tags of plain scalars by first character; the first match wins."""
    kept = {
        character: [(tag, pattern) for tag, pattern in pairs if tag not in _ONLY_IN_1_1]
        for character, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for tag, pattern in _NUMBERS.items():
        whole = re.compile(f"(?:{pattern.pattern})$")
        for character in "-+.0123456789":
            kept.setdefault(character, []).append((tag, whole))
    return kept


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers; of no mapping two equal keys."""

    yaml_implicit_resolvers = _resolvers()

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        own: dict[object, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            name = _identity(key)
            if name in own:
                remedy = ": merge several mappings as <<: [*a, *b]" if key.tag == _MERGE else ""
                raise UsageError(f"{self.name} names {key.value!r} twice{remedy}")
            own[name] = (key, value)
        _, merged = own.pop((_MERGE, "<<"), (None, None))
        if merged is not None:
            # Merged here: PyYAML's constructor merges late, and with keys of one character takes the wrong value.
            for pair in self._merged_pairs(node, merged):
                own.setdefault(_identity(pair[0]), pair)
            node.value = list(own.values())
        return node

    def _merged_pairs(self, node: yaml.MappingNode, merged: yaml.Node) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        for mapping in merged.value if isinstance(merged, yaml.SequenceNode) else [merged]:
            if not isinstance(mapping, yaml.MappingNode) or mapping is node:
                raise UsageError(f"{self.name}: << must name another mapping, or a list of them{merged.start_mark}")
            yield from mapping.value


def _identity(key: yaml.Node) -> object:
    """Returns equal values for equal keys; lists and mappings as keys are refused later."""
    return (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


_Loader.add_constructor(_INT, _integer)


class _Dumper(yaml.SafeDumper):
    """Quotes the text that `_Loader` would take for something else."""

    yaml_implicit_resolvers = _resolvers()


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping from names to values that a YAML file, UTF-8 or UTF-16, holds.

    Raises:
        UsageError: The file cannot be read, is not YAML, holds no mapping, names a key twice, or has a key that is no
            text (numbers may be keys of inner mappings).
    """
    try:
        with path.open("rb") as file:  # PyYAML decodes it, whatever the locale
            settings = yaml.load(file, _Loader)  # the loader's `name` in messages is the file's
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except yaml.reader.ReaderError as error:
        raise UsageError(f"{path} must be a text file in UTF-8: {' '.join(str(error.reason).split())}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise UsageError(f"{path} nests deeper than can be read") from None
    if not isinstance(settings, dict):
        raise UsageError(f"{path} must hold fields and values, got {type(settings).__name__}")
    for key in settings:
        if not isinstance(key, str):
            raise UsageError(f"{path}: names must be text, got {key!r}: quote it")
    _check_plain(path, settings, ())
    return settings


def _check_plain(path: Path, value: object, around: tuple[int, ...]) -> None:
    """Raises UsageError unless JSON has all types of `value` as well; `around`: ids of the containers that hold it."""
    if id(value) in around:
        raise UsageError(f"{path}: an alias (*name) is inside what it names")
    if isinstance(value, dict):
        for key in value:
            if isinstance(key, bool) or not isinstance(key, (str, int, float)):
                raise UsageError(f"{path}: names must be text, got {key!r}: quote it")
    elif not isinstance(value, (list, str, int, float, type(None))):
        raise UsageError(f"{path}: values are text, numbers, lists and mappings, got {type(value).__name__} {value!r}")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_plain(path, part, (*around, id(value)))


def dump_yaml(settings: dict[str, Any], *, sort_keys: bool) -> str:
    """Returns `settings` as text that `read_yaml` reads back as they are."""
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=sort_keys, allow_unicode=True)
