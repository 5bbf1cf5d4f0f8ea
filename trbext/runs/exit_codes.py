"""Maps what a command raised to one line on standard error and an exit code, for `trb` and the workers of a study."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ..errors import (
    INTERRUPTED,
    USAGE_ERROR,
    DiskFailed,
    EngineFailed,
    Interrupted,
    NonFiniteLogits,
    NonFiniteTraining,
    UsageError,
    is_of_disk,
)
from .standard_output import is_of_output

FAILED = 1  # a fault of the program, the machine or the numbers


def exit_code(
    command: Callable[[], object],
    *,
    also_usage: tuple[type[Exception], ...] = (),
    to_continue: str = "",
) -> int:
    """Calls a command and returns the exit code that it ends with.

    Args:
        command: What to call; its result is ignored.
        also_usage: Errors that are the user's to mend, besides UsageError.
        to_continue: How an interrupted command continues; ends its line.

    Returns:
        0 if the command returned, USAGE_ERROR, INTERRUPTED or FAILED, which a full disk is as well.

    Raises:
        Exception: Any other error of the command, and an error of writing to standard output.
    """
    of_the_user: tuple[type[Exception], ...] = (UsageError, *also_usage)
    try:
        command()
    except of_the_user as error:
        if is_of_output(error):
            raise
        code = print_usage_error(error)
        return FAILED if isinstance(error, OSError) and is_of_disk(error) else code
    except (Interrupted, DiskFailed) as error:
        print(f"trb: {error} {to_continue}".rstrip(), file=sys.stderr)
        return INTERRUPTED if isinstance(error, Interrupted) else FAILED
    except (NonFiniteTraining, NonFiniteLogits, EngineFailed) as error:
        print(f"trb: {error}", file=sys.stderr)
        return FAILED
    return 0


def print_usage_error(error: object) -> int:
    """Prints an error as one line on standard error, and returns the exit code of a usage error."""
    print(f"trb: {' '.join(str(error).split())}", file=sys.stderr)
    return USAGE_ERROR
