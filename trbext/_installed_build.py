"""Finds a build if `trbext._C` cannot be imported: in the package itself, or for a checkout in an installed trbext.

A wheel holds `_C` for the Python that built it. Any other Python reads the same facts from `_build.json` beside it.

`python -m pytest` and `torchrun -m trbext` put the working folder first on `sys.path`. In a checkout that is the source
package, which has no compiled module after a plain `pip install .`; the installed one has. Binaries of other sources
are refused, those of an editable install among them.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

from ._build_file import FILE_NAME, read_build_file
from ._source_digest import source_digest

NAME = "trbext._C"


def load_compiled_module(package: Path, failure: ImportError) -> ModuleType:
    """Returns `trbext._C` for the package folder `package`, which has none that can be imported (`failure`).

    Raises:
        ImportError: One line that says what to install. `package` is not part of a checkout; no build is installed; the
            installed ones were built from other sources.
    """
    if (package / FILE_NAME).is_file():
        return _registered(read_build_file(package / FILE_NAME, NAME))
    root = package.parent
    if not (root / "csrc" / "schema.cpp").exists():
        raise ImportError(
            f"trbext's compiled module was not found in {package}. Reinstall it: "
            f"`pip install --force-reinstall --no-deps trbext`. ({failure})"
        )
    builds = list(_installed_builds(package))
    digest = source_digest(root)
    for build in builds:
        module = _load(build)
        if module is not None and getattr(module, "sources", None) == digest:
            return module
        sys.modules.pop(NAME, None)
    if builds:
        raise ImportError(
            f"the installed trbext ({builds[0].parent}) was built from other C++ sources than those in "
            f"{root / 'csrc'}: run `pip install {root}` again"
        )
    raise ImportError(
        f"trbext's compiled module was not found in {package}. This is the source folder, not an installed package: "
        "run `pip install .` in the repository, or `pip install -e . --no-build-isolation` to work from the source "
        f"folder. ({failure})"
    )


def check_sources(package: Path, module: ModuleType) -> None:
    """Checks that `module` was built from the C++ sources of the checkout around `package`, if there is one.

    An editable install takes its Python from the checkout as it is now, and its binaries from when it was installed.

    Raises:
        ImportError: It was built from other sources.
    """
    root = package.parent
    if (root / "csrc" / "schema.cpp").exists() and getattr(module, "sources", None) != source_digest(root):
        sys.modules.pop(NAME, None)
        raise ImportError(
            f"the editable install of trbext ({module.__file__}) was built from other C++ sources than those in "
            f"{root / 'csrc'}: run `pip install -e {root} --no-build-isolation` again"
        )


def _installed_builds(package: Path) -> Iterator[Path]:
    for entry in sys.path:
        folder = Path(entry or ".").resolve() / "trbext"
        if folder != package:
            names = (*(f"_C{suffix}" for suffix in EXTENSION_SUFFIXES), FILE_NAME)
            yield from (path for name in names if (path := folder / name).is_file())


def _load(build: Path) -> ModuleType | None:
    """Returns the module in the file `build`; None if it cannot be loaded here (another Python's, a damaged file)."""
    if build.name == FILE_NAME:
        return _registered(read_build_file(build, NAME))
    spec = importlib.util.spec_from_file_location(NAME, build)
    if spec is None or spec.loader is None:
        return None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError:
        return None
    return _registered(module)


def _registered(module: ModuleType) -> ModuleType:
    sys.modules[NAME] = module
    return module
