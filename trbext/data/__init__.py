"""Reads prompts from the built-in task, files and datasets, checks and orders them, and encodes them."""
