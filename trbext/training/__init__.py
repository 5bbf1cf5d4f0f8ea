"""Trains by on-policy distillation on blended rollouts: `TRBTrainer`, its configuration, and the losses."""
