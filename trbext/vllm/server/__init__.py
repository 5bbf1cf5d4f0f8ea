"""Serves TRB rollouts by vLLM: the calls that the server adds to vLLM's, and the commands that start and check it."""
