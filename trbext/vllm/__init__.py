"""Draws trust-region rollouts in vLLM: the teacher is the engine's model, and the student its draft model.

The student drafts, one pass of the teacher scores, and `torch.ops.trb.verify` decides which drafts become tokens, where
vLLM would call its rejection sampler. The tokens then follow mu, and not the teacher. Nothing here imports vLLM before
it is needed.
"""
