"""Trains one run in a folder: reads its settings and inputs, writes and shows its metrics, resumes it."""
