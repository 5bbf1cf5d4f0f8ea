"""pass@k of a model by verifiers, and the commands that measure it."""
