"""Draws the rollouts of a run in vLLM, and takes the loss from what the engine computed of them."""
