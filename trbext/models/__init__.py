"""What the library needs of a causal language model: a KV cache that can step back, its hidden states and its head."""
