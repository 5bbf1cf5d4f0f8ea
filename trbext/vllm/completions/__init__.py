"""Serves completions of one plain model by vLLM, for `trb eval --engine vllm`: a server that ends with its client."""
