"""Computes a digest of prompts, by which one sees that they are the same."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import hashlib
import json

from datasets import Audio, Dataset, Image, Video

_WRITTEN = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, bytes)  # whose text is their value


def prompts_digest(prompts: Dataset) -> str:
    """Returns a digest of all rows, in their order.

    Raises:
        ValueError: A value has no text of its own, such as a picture within a list.
    """
    for name, feature in prompts.features.items():
        if isinstance(feature, (Audio, Image, Video)):  # its bytes are the same each time, and need no decoder
            prompts = prompts.cast_column(name, dataclasses.replace(feature, decode=False))
    digest = hashlib.sha256()
    for row in prompts:
        digest.update(json.dumps(row, sort_keys=True, default=_text, ensure_ascii=False).encode())
    return digest.hexdigest()


def _text(value: object) -> str:
    if not isinstance(value, _WRITTEN):
        raise ValueError(f"prompts must hold values of JSON, dates or bytes, got a {type(value).__name__}")
    return str(value)
