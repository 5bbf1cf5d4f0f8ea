"""Counts, averages and names the numbers that a run logs: its cost, its rollouts and its loss."""
