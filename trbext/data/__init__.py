"""Prompts: the built-in task, files and datasets, their checks, their order, and their token ids."""
