"""Reads the pages of the documentation: README.md, CONTRIBUTING.md, CHANGELOG.md and docs/."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    # claims.md repeats the commands of the others.
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.name != "claims.md"),
]


def python_blocks(text: str) -> list[str]:
    """Returns the Python code blocks of a page, in order."""
    return re.findall(r"^```(?:python|py)\n(.*?)^```", text, re.S | re.M)


def without_blocks(text: str) -> str:
    """Returns the page without its code blocks and `code`."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))


def links(text: str) -> list[str]:
    """Returns the targets of the page's links and images, without those to other hosts."""
    return re.findall(r"\]\((?!https?:)([^)\s]+)\)", without_blocks(text))


def anchors(text: str) -> set[str]:
    """Returns the anchors that GitHub and the documentation site give to the page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(text), re.M)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}
