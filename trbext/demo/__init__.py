"""The built-in demonstration: a counting-sort reasoning task, a teacher that solves it and a weak student to distil."""
