"""A vLLM server of TRB rollouts: the calls that it adds to vLLM's, the commands that start and check one."""
