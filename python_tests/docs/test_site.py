"""The documentation site builds without warnings and without a network, and loads nothing from another host."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import trbext
from python_tests.docs.pages import ROOT
from python_tests.studies import headless_chromium

needs_mkdocs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")),
    reason="needs the packages of the extra docs",
)
NOWHERE = "http://127.0.0.1:9"  # a port that nobody listens on


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), NOWHERE)
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, **proxies, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@needs_mkdocs
def test_no_page_loads_from_another_host(site: Path) -> None:
    pages = [page for page in site.rglob("*.html") if "study" not in page.relative_to(site).parts]
    assert len(pages) > 15
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "<h1" in text, page
        loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*\s(?:src|href)=[\"']?(?:https?:)?//[^\"' >]+", text)
        assert not loaded, f"{page.name}: {loaded}"
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\([\"']?https?://[^)]*\)|@import [\"']https?:", sheet.read_text(encoding="utf-8"))


@needs_mkdocs
def test_the_api_page_documents_the_public_names(site: Path) -> None:
    text = (site / "api.html").read_text(encoding="utf-8")
    assert len(trbext.__all__) > 20
    for name in trbext.__all__:
        assert f'id="trbext.{name}"' in text, name


@needs_mkdocs
@pytest.mark.skipif(headless_chromium.missing() is not None, reason=str(headless_chromium.missing()))
@pytest.mark.parametrize(("width", "height", "phone"), [(1280, 900, False), (390, 844, True)])
def test_pages_fit_a_desk_and_a_phone(width: int, height: int, phone: bool, site: Path, tmp_path: Path) -> None:
    for name in ("index", "concepts", "api", "performance"):
        with headless_chromium.Page(site / f"{name}.html", tmp_path / name) as page:
            page.load(width, height, phone=phone)
            assert page.ask("document.documentElement.scrollWidth") <= width, name
            assert page.ask("[...document.images].every(image => image.complete && image.naturalWidth > 0)"), name
            assert not [url for url in page.requests() if not url.startswith(("file:", "data:", "blob:"))], name


def test_every_page_is_in_the_navigation_once() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    entries = re.findall(
        r"^ +- (?:Home: )?(\S+\.md)$", text[text.index("nav:") : text.index("markdown_extensions:")], re.M
    )
    pages = sorted(page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md"))
    assert sorted(entries) == pages
    assert yaml.safe_load(text)["theme"]["font"] is False
