"""Decodes and scores with causal language models: a KV cache that can step back, hidden states, the lm_head."""
