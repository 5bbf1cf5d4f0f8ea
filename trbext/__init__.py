"""Provides Trust-Region Behavior Blending (arXiv 2605.31159): operators `torch.ops.trb`, and distillation with them.

`trbext.ops` documents `blend`, `solve`, `sample` and `verify`; `trbext.reference` is the same in plain PyTorch.
All other public names are imported at their first use, so that `import trbext` needs nothing but PyTorch.
"""

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING

import torch as _torch  # noqa: F401  (the operators resolve their symbols in the libraries that torch has loaded)

from ._installed_build import check_sources as _check_sources
from ._installed_build import load_compiled_module as _load_compiled_module

try:
    from . import _C
except ImportError as _error:
    try:
        _C = _load_compiled_module(_Path(__file__).resolve().parent, _error)
    except ImportError as _remedy:
        raise _remedy from None  # one message, not a chain of two
else:
    _check_sources(_Path(__file__).resolve().parent, _C)

from . import _library  # noqa: F401  (registers the operators)
from .errors import INSTALL_EXTRA as _INSTALL_EXTRA
from .ops import blend, sample, solve, verify
from .results import Blend, Sample, Solution, Verification
from .top_k import TopK

__version__ = _C.version
__all__ = [
    "ArithmeticMixture",
    "Blend",
    "FixedBeta",
    "InterleavedTeacher",
    "LambdaCoin",
    "Memory",
    "NextTokenModel",
    "Policy",
    "Prefixes",
    "Relay",
    "RemoteTeacher",
    "Rollout",
    "Sample",
    "Solution",
    "StudentTemperature",
    "Switching",
    "TRBConfig",
    "TRBTrainer",
    "Teacher",
    "TokenScorer",
    "TopK",
    "TopKTeacher",
    "TrustRegion",
    "Verification",
    "align",
    "blend",
    "draw_from",
    "lockstep",
    "mixture",
    "reverse_kl",
    "sample",
    "self_teacher",
    "solve",
    "speculative",
    "unsharded",
    "verify",
]

if TYPE_CHECKING:
    from .models.next_token import NextTokenModel, Prefixes, TokenScorer, TopKTeacher
    from .models.unsharded import unsharded
    from .rollout.lockstep import lockstep
    from .rollout.output import Rollout
    from .rollout.policies import (
        ArithmeticMixture,
        FixedBeta,
        InterleavedTeacher,
        LambdaCoin,
        StudentTemperature,
        Teacher,
        TrustRegion,
        draw_from,
    )
    from .rollout.policies_with_memory import Relay, Switching
    from .rollout.policy import Memory, Policy
    from .rollout.speculative import speculative
    from .teachers.mixture import mixture
    from .teachers.remote.teacher import RemoteTeacher
    from .teachers.self_teacher import self_teacher
    from .training.config import TRBConfig
    from .training.losses import reverse_kl
    from .training.trainer import TRBTrainer
    from .vocab import align
else:  # type checkers see the imports above, and so report a name that does not exist
    _POLICIES = (
        *("ArithmeticMixture", "FixedBeta", "InterleavedTeacher", "LambdaCoin", "StudentTemperature"),
        *("Teacher", "TrustRegion", "draw_from"),
    )
    _MODULE_OF = {
        "NextTokenModel": ".models.next_token",
        "Prefixes": ".models.next_token",
        "RemoteTeacher": ".teachers.remote.teacher",
        "Rollout": ".rollout.output",
        "TRBConfig": ".training.config",
        "TRBTrainer": ".training.trainer",
        "TokenScorer": ".models.next_token",
        "TopKTeacher": ".models.next_token",
        "align": ".vocab",
        "lockstep": ".rollout.lockstep",
        "mixture": ".teachers.mixture",
        "reverse_kl": ".training.losses",
        "self_teacher": ".teachers.self_teacher",
        "speculative": ".rollout.speculative",
        "unsharded": ".models.unsharded",
        **dict.fromkeys(_POLICIES, ".rollout.policies"),
        **dict.fromkeys(("Memory", "Policy"), ".rollout.policy"),
        **dict.fromkeys(("Relay", "Switching"), ".rollout.policies_with_memory"),
    }

    def __getattr__(name):
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            found = getattr(_import_module(_MODULE_OF[name], __name__), name)
        except ModuleNotFoundError as error:
            raise ImportError(
                f"trbext.{name} needs {error.name}, which is not installed: {_INSTALL_EXTRA}",
                name=error.name,
            ) from None
        globals()[name] = found  # the next use does not come here
        return found

    def __dir__():
        return sorted({*globals(), *__all__})
