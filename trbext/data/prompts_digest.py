"""Computes a digest of prompts, by which one sees that they are the same."""

from __future__ import annotations

import hashlib
import json

from datasets import Dataset


def prompts_digest(prompts: Dataset) -> str:
    """Returns a digest of all rows, in their order."""
    digest = hashlib.sha256()
    for row in prompts:
        digest.update(json.dumps(row, sort_keys=True, default=str, ensure_ascii=False).encode())
    return digest.hexdigest()
