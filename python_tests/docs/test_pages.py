"""The links, file names and Python code of the documentation all lead to something that exists and runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from python_tests.docs.pages import PAGES, ROOT, anchors, links, python_blocks

FOLDERS = sorted(path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in ("build", "dist", "runs"))
# `trbext/ops.py`: names of files in the repository, without those that a run or a build makes.
FILE_NAME = re.compile(rf"(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]*\w/?")


def title(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_links_lead_to_a_file_and_a_heading(page: Path) -> None:
    for link in links(page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor and not anchor.startswith("trbext."):  # the site's builder checks the anchors of the API page
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)):
        if FILE_NAME.fullmatch(span.strip()):
            assert (ROOT / span).exists(), span


def test_the_checks_see_what_they_should() -> None:
    named = [span for page in PAGES for span in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))]
    assert sum(bool(FILE_NAME.fullmatch(span)) for span in named) > 60
    assert sum(len(links(page.read_text(encoding="utf-8"))) for page in PAGES) > 60
    assert "how-beta-is-found" in anchors((ROOT / "docs" / "operators.md").read_text(encoding="utf-8"))


BLOCKS = [
    pytest.param(block, id=f"{title(page)}-{index}")
    for page in PAGES
    for index, block in enumerate(python_blocks(page.read_text(encoding="utf-8")))
    if "from vllm import" not in block  # python_tests/vllm/engine/test_engine_page.py runs it
    and page.name != "integrate.md"  # python_tests/integrations/test_integrate_page.py runs it
]


@pytest.mark.parametrize("block", BLOCKS)
def test_python_of_a_page_runs(block: str) -> None:
    """Runs definitions and short examples; test_readme.py runs the README's training, made short."""
    code = compile(block.replace("trainer.train()", "pass"), "page", "exec")
    scope: dict[str, Any] = {}
    exec(code, scope)


def test_there_are_blocks_to_run() -> None:
    assert len(BLOCKS) >= 6
