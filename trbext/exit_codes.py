"""Exit codes of `trb` and of the processes it starts."""

USAGE_ERROR = 2  # the user can mend it: one line on standard error says how
INTERRUPTED = 130  # by a signal; the same command goes on
