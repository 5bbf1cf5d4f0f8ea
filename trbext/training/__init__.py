"""`TRBTrainer`, its configuration, and the losses: on-policy distillation on blended rollouts."""
