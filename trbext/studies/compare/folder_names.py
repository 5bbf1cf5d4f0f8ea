"""Makes names of folders from the labels of runs, in whatever script they are written."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence

MOST_BYTES = 200  # of a name; file systems take 255, and a suffix may follow


def folder_names(labels: Sequence[str]) -> list[str]:
    """Makes a name for each label.

    Letters, marks, numbers and symbols of any script stay, in lower case, and so do "." "=" and "+"; anything else
    between them becomes "-". Labels that differ in nothing else get a digest: a number would depend on their order.

    Args:
        labels: Of runs.

    Returns:
        The names, in the order of the labels: different, not empty, and readable if the label is.
    """
    bases = [_readable(label) or "run" for label in labels]
    times = Counter(bases)
    return [
        base if times[base] == 1 else f"{base}-{hashlib.sha256(label.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
        for base, label in zip(bases, labels, strict=True)
    ]


def _readable(label: str) -> str:
    composed = unicodedata.normalize("NFC", unicodedata.normalize("NFC", label).lower())
    words = "".join(character if _stays(character) else " " for character in composed).split()
    name = "-".join(words).strip("-.")
    while len(name.encode()) > MOST_BYTES:
        name = name[:-1]
    return name.strip("-.")


def _stays(character: str) -> bool:
    # The joiners U+200C and U+200D shape letters of Indic scripts and Persian, and emoji.
    return (
        unicodedata.category(character)[0] in "LMN"
        or unicodedata.category(character) == "So"
        or character in ".=+\u200c\u200d"
    )
