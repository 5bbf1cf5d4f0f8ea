"""Asks a teacher behind an HTTP server, which tells the log-probs of its most probable tokens only."""
