"""Guards the calls that trbext adds to vLLM's API server by the server's keys. vLLM itself guards only /v1."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Sequence
from typing import Any


def key_digests(args: Any) -> list[bytes]:
    """Returns the digests of a server's API keys, of which the keys cannot be read.

    Args:
        args: The parsed command line of the server.
    """
    given = args.api_key or [os.environ.get("VLLM_API_KEY")]
    return [hashlib.sha256(key.encode()).digest() for key in given if key]


def is_allowed(request: Any, keys: Sequence[bytes]) -> bool:
    """Returns whether a request has one of the server's API keys, if it has any."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    sent = hashlib.sha256(key.encode()).digest()
    matches = [secrets.compare_digest(sent, known) for known in keys]
    return not keys or (scheme.lower() == "bearer" and any(matches))
