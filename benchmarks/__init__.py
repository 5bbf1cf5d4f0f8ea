"""Benchmarks of trbext, run from the root of a checkout with trbext installed: `python -m benchmarks.blend`.

`python -m` puts the root first on `sys.path`, where `trbext/` is the source folder without its compiled module. Moved
to the end, it leaves `import trbext` to the installed package, be it a copy or editable.
"""

import sys
from pathlib import Path

_root = Path(__file__).resolve().parents[1]
_at_root = [entry for entry in sys.path if Path(entry).resolve() == _root]
sys.path[:] = [entry for entry in sys.path if entry not in _at_root] + _at_root
