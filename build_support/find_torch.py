"""Prints the directory of the PyTorch whose headers trbext is built against, and its version on a second line.

PyTorch is searched for in the running environment first (an isolated build environment, if torch was put there), then
in the environment into which trbext is installed: pip's isolation is the same interpreter with PYTHONPATH set, so a
child process without that variable sees the target's site-packages. TRB_TORCH_DIR overrides both. torch is never
imported.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MINIMUM = (2, 10)
PROBE = "import importlib.util as u; s = u.find_spec('torch'); print(s.origin if s and s.origin else '')"
ISOLATION_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "PYTHONNOUSERSITE")


def version_of(torch_dir: Path) -> str | None:
    """Returns the version of the PyTorch in a folder, None if there is none."""
    try:
        text = (torch_dir / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", text, re.M)
    return found.group(1) if found else None


def is_usable(torch_dir: Path) -> bool:
    """Returns whether the folder holds a PyTorch that is new enough, with the headers of its stable ABI."""
    version = re.match(r"(\d+)\.(\d+)", version_of(torch_dir) or "")
    stable_headers = torch_dir / "include" / "torch" / "csrc" / "stable" / "library.h"
    return bool(version) and (int(version[1]), int(version[2])) >= MINIMUM and stable_headers.is_file()


def candidates() -> Iterator[Path]:
    """Yields the folders of PyTorch in the order in which they are tried."""
    override = os.environ.get("TRB_TORCH_DIR")
    if override:
        yield Path(override)
        return
    for hidden in ((), ISOLATION_VARIABLES):
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        # The probe runs in this folder, so that no folder named torch in the caller's directory passes for the package.
        probe = subprocess.run(
            [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, cwd=Path(__file__).parent
        )
        if probe.returncode == 0 and probe.stdout.strip():
            yield Path(probe.stdout.strip()).parent


def find() -> Path | None:
    """Returns the folder of the PyTorch to build against, None if there is none."""
    return next((torch_dir for torch_dir in candidates() if is_usable(torch_dir)), None)


if __name__ == "__main__":
    torch_dir = find()
    if torch_dir is None:
        sys.exit("no PyTorch >= {}.{} found".format(*MINIMUM))
    print(torch_dir)
    print(version_of(torch_dir))
