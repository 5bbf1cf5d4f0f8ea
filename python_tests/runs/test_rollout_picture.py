"""The picture of a rollout shows each token with its beta, before and after training."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib import colormaps
from matplotlib.patches import Rectangle
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from python_tests.runs.run_files import tiny_run, trb, written
from trbext.runs import rollout_command
from trbext.runs.rollout_picture import COLUMNS, ColoredText, draw_colored_texts, text_of_tokens


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one token per byte, as those of large models have for rare characters."""
    tokenizer = Tokenizer(models.BPE({f"<0x{byte:02X}>": byte for byte in range(256)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.ByteFallback()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_a_character_of_several_tokens_is_of_the_last_one() -> None:
    pieces = text_of_tokens(byte_tokenizer(), list("aé🙂\n数b".encode()))
    assert pieces == ["a", "", "é", "", "", "", "🙂", "\n", "", "", "数", "b"]


def test_every_token_has_the_color_of_its_beta() -> None:
    beta = [0.0, 0.25, 1.0]
    text = ColoredText("one", ["ab\n", "c$d$", "e" * (COLUMNS + 2)], beta, [False, True, False])
    figure = draw_colored_texts([text], "What?\nSay it.")
    axis = figure.axes[0]
    drawn = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
    assert [patch.get_width() for patch in drawn] == [3, 4, COLUMNS - 4, 6]  # a line ends, and another is full
    expected = [colormaps["YlGnBu"](value) for value in (*beta, 1.0)]
    assert [patch.get_facecolor() for patch in drawn] == expected
    (line,) = axis.lines  # under the token that replaced a draft, and no other
    row = drawn[1].get_y()
    assert line.get_xdata() == pytest.approx([0.1, 3.9])
    assert all(row < y < row + 1 for y in line.get_ydata())
    words = [text.get_text() for text in axis.texts]
    assert words[:4] == ["What?", "Say it.", "one", "ab⏎"]
    assert r"c\$d\$" in words


def test_a_run_is_drawn_before_and_after_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    titles: list[list[str]] = []
    replaced: list[list[bool]] = []
    drawn = draw_colored_texts

    def draw(texts: list[ColoredText], prompt: str) -> object:
        titles.append([text.title.partition(":")[0] for text in texts])
        assert all(text.pieces for text in texts)
        assert all(0 <= beta <= 1 for text in texts for beta in text.beta)
        replaced.append([any(text.replaced) for text in texts])
        assert all(len(text.replaced) == len(text.beta) for text in texts)
        return drawn(texts, prompt)

    monkeypatch.setattr(rollout_command, "draw_colored_texts", draw)
    config = written(tmp_path / "config.yaml", tiny_run(tmp_path))
    assert trb("plot", "--rollout", config, "--output", str(tmp_path / "before.svg")) == 0
    assert trb("plot", "--rollout", config, "--epsilon", "1e39", "--output", str(tmp_path / "teacher.svg")) == 0
    assert trb("train", config) == 0
    words = ("plot", "--rollout", str(tmp_path / "run"), "--epsilon", "0", "--prompt", "3")
    assert trb(*words, "--output", str(tmp_path / "both.png")) == 0
    assert replaced[2] == [False, False]  # at a budget of 0 every token is the student's
    assert titles == [["before training"], ["before training"], ["before training", "after training"]]
    assert (tmp_path / "before.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path / "both.png") in capsys.readouterr().out
