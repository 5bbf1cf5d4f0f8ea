"""Tests compute_sanitizer.py without a GPU: its messages if it cannot run, and that its calls are correct."""

from __future__ import annotations

from pathlib import Path

import pytest

from python_tests.cuda import compute_sanitizer


def test_nothing_is_called_clean_if_nothing_ran(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compute_sanitizer, "cuda_missing", lambda: "no CUDA device")
    assert compute_sanitizer.main([]) == 2
    assert capsys.readouterr().err == "nothing checked: no CUDA device\n"
    monkeypatch.setattr(compute_sanitizer, "cuda_missing", lambda: None)
    monkeypatch.setattr(compute_sanitizer, "find_sanitizer", lambda: None)
    assert compute_sanitizer.main([]) == 2
    assert "nothing checked: compute-sanitizer is neither on PATH" in capsys.readouterr().err
    assert compute_sanitizer.main(["memchek"]) == 2
    assert "tools must be among memcheck, racecheck, initcheck, synccheck, got memchek" in capsys.readouterr().err


def test_what_a_tool_finds_is_printed_and_fails(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A stand-in for the sanitizer finds something with racecheck only."""
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text(
        '#!/bin/sh\n[ "$1 $3" = "--tool --error-exitcode" ] && [ "$9" = calls ] || exit 1\n'
        '[ -n "$PYTORCH_NO_CUDA_MEMORY_CACHING" ] || exit 1\n'
        'if [ "$2" = racecheck ]; then echo "a hazard"; exit "$4"; fi\n'
    )
    sanitizer.chmod(0o755)
    monkeypatch.setattr(compute_sanitizer, "find_sanitizer", lambda: sanitizer)
    monkeypatch.setattr(compute_sanitizer, "cuda_missing", lambda: None)
    assert compute_sanitizer.main(["memcheck", "synccheck"]) == 0
    assert compute_sanitizer.main([]) == 1
    assert "a hazard\nracecheck: exit code 99" in capfd.readouterr().out


def test_the_calls_are_right_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute_sanitizer, "VOCABULARIES", (1, 17, 4099))
    compute_sanitizer.calls("cpu")
    monkeypatch.setattr(compute_sanitizer, "QUICK_VOCABULARIES", (17, 1025))
    compute_sanitizer.calls("cpu", quick=True)


def test_quick_asks_for_the_quick_calls(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text('#!/bin/sh\necho "${10}" >> "$0.asked"\n')
    sanitizer.chmod(0o755)
    monkeypatch.setattr(compute_sanitizer, "find_sanitizer", lambda: sanitizer)
    monkeypatch.setattr(compute_sanitizer, "cuda_missing", lambda: None)
    assert compute_sanitizer.main(["--quick", "memcheck"]) == 0
    assert compute_sanitizer.main(["memcheck"]) == 0
    assert capsys.readouterr().out == "memcheck: clean\n" * 2
    assert (tmp_path / "compute-sanitizer.asked").read_text().splitlines() == ["--quick", ""]


def test_without_a_sanitizer_sanitize_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute_sanitizer, "find_sanitizer", lambda: None)
    with pytest.raises(RuntimeError, match="compute-sanitizer is neither on PATH"):
        compute_sanitizer.sanitize("memcheck")
