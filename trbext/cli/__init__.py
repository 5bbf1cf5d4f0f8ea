"""Runs the `trb` command.

words.py      defines the words of its command line: commands, options, help texts
commands.py   has `main`, and calls what each command needs

Which error ends with which exit code is in trbext/runs/exit_codes.py, since a study's workers share it.
"""

from .commands import OF_THE_EXTRA, main

__all__ = ["OF_THE_EXTRA", "main"]
