"""Draws the tokens of an engine's step from mu, and keeps what was computed of each of them."""
