"""Trains with verl on trust-region rollouts: an add-on to an unmodified verl, with its own rollout type and loss.

verl loads `trbext.verl.plugin` in all its processes (entry point `verl.plugins`). A run asks for TRB by three names of
its configuration, which the hydra group `trb` of `trbext.verl.config` sets: the rollout `trb_vllm`, the trainer mode
`trb` and the distillation loss `trb_reverse_kl`. Nothing here imports verl before it is needed.
"""
