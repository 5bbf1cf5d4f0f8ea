"""Defines errors that are no fault of the program, and the exit codes of commands. Recognizes a full or failed disk by
its error."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USAGE_ERROR = 2  # the user can correct it: one line on standard error says how
INSTALL_EXTRA = "pip install 'trbext[train]'"  # the packages that all but the operators and the rollouts need
INTERRUPTED = 130  # by a signal; the same command continues


class UsageError(Exception):
    """The user can correct what is wrong: shown as one line, exit code 2."""


class Interrupted(Exception):
    """A signal has stopped the run, which can be resumed."""


class NonFiniteTraining(FloatingPointError):
    """A loss or a gradient is NaN or infinite. The weights are those of the last finished optimizer step."""


class NonFiniteLogits(RuntimeError):
    """A rollout cannot continue: the logits of a model hold NaN or +inf, or exclude every token."""


class VerifierFailed(ValueError):
    """A verifier raised on every completion of an evaluation, so that its pass@1 would say nothing of the model."""


class EngineFailed(RuntimeError):
    """A rollout engine has ended, or could not do what it was asked. The message says which one and why."""


class EngineRefused(UsageError, ValueError):
    """A rollout engine refuses what it is asked, such as more tokens than it has positions."""


class DiskFailed(RuntimeError):
    """A run can write no more. The message says which run, and from where it continues."""


_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE}
_DISK_WORDS = (
    *(os.strerror(number) for number in sorted(_DISK_ERRORS)),
    *("iostream error", "unexpected pos ", "PytorchStreamWriter failed"),  # torch.save drops the system's reason
)


@contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Gives an OSError that was raised inside, and names no file, the name `path`.

    The system names a file that cannot be opened, but not one that cannot be written, as on a full disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def is_of_disk(error: BaseException | None) -> bool:
    """Returns whether `error`, or what it was raised from, says that a disk is full or fails.

    Args:
        error: Of a write: an OSError, torch's RuntimeError, safetensors' SafetensorError.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return True
        if any(words in str(error) for words in _DISK_WORDS):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False
