"""Plots completions token by token, each colored by its coefficient beta, and underlined if it replaced a draft."""

from __future__ import annotations

import textwrap
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from transformers import PreTrainedTokenizerBase

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS, PROMPT_LINES = 88, 8  # characters of a line, and lines of a prompt
FONT_POINTS = 10
CHARACTER_INCHES = 0.602 * FONT_POINTS / 72  # of DejaVu Sans Mono, which comes with matplotlib
LINE_INCHES, MARGIN = 0.24, 0.02  # the margin is a share of the width
# Pale at 0 and dark at 1, and the same order in print and for the color-blind.
COLORS = "YlGnBu"
REPLACED = "#c2410c"  # of the line under tokens that replaced a draft of the student
NEW_LINE, TAB = "⏎", "→   "
_UNDECODED = "\ufffd"


@dataclass(frozen=True)
class ColoredText:
    """A completion to plot."""

    title: str
    pieces: Sequence[str]  # the text of each token
    beta: Sequence[float]  # of each token, 0 (the student) to 1 (the teacher)
    replaced: Sequence[bool] | None = None  # whether each token replaced a draft of the student; None is not known


def text_of_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Returns what each token adds to the text.

    A character of several tokens, such as an emoji, is of the last of them; the others are "".
    """
    pieces, done, begun = [], "", 0
    for count in range(1, len(ids) + 1):
        text = str(tokenizer.decode(list(ids[begun:count]), skip_special_tokens=False))
        if text.endswith(_UNDECODED) and count < len(ids):
            pieces.append("")
            continue
        pieces.append(text[len(done) :])
        done = text
        if text.endswith("\n"):  # start again, so that a long text is not decoded once per token
            begun, done = count, ""
    return pieces


def draw_colored_texts(texts: Sequence[ColoredText], prompt: str) -> Figure:
    """Plots completions of one prompt below each other.

    Args:
        texts: The completions.
        prompt: Stands above them.

    Returns:
        The figure, which a notebook shows.
    """
    # 1. Break the texts into lines of (column, characters, color value, whether it is underlined).
    blocks = [(text.title, _lines(text.pieces, text.beta, text.replaced or [False] * len(text.beta))) for text in texts]
    head = [[(0, line, float("nan"), False)] for line in _wrapped(prompt)]
    rows = len(head) + sum(len(lines) + 2 for _, lines in blocks) + 1
    # 2. Plot each run of characters on a rectangle of its color.
    height = rows * LINE_INCHES + 0.7
    figure = Figure(figsize=(COLUMNS * CHARACTER_INCHES / (1 - 2 * MARGIN), height))
    axis = figure.add_axes((MARGIN, 0.62 / height, 1 - 2 * MARGIN, 1 - 0.72 / height))
    axis.set_xlim(0, COLUMNS)
    axis.set_ylim(rows, 0)
    axis.axis("off")
    colors = colormaps[COLORS]
    row = 0
    for line in head:
        _plot_line(axis, line, row, colors)
        row += 1
    for title, lines in blocks:
        row += 1
        axis.text(0, row + 0.5, title, va="center", fontsize=FONT_POINTS, fontweight="bold")
        row += 1
        for line in lines:
            _plot_line(axis, line, row, colors)
            row += 1
    # 3. Say what the colors mean.
    bar = figure.add_axes((0.3, 0.42 / height, 0.4, 0.12 / height))
    figure.colorbar(ScalarMappable(Normalize(0, 1), colors), cax=bar, orientation="horizontal")
    bar.tick_params(labelsize=8)
    bar.set_title(
        "beta: 0 = the student's token law, 1 = the teacher's; underlined: replaced a draft", fontsize=8, pad=3
    )
    return figure


def save_figure(figure: Figure, path: str) -> None:
    """Writes a figure. Characters that no font has become boxes, without a warning each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(path, dpi=110)


_Run = tuple[int, str, float, bool]


def _lines(pieces: Sequence[str], beta: Sequence[float], replaced: Sequence[bool]) -> list[list[_Run]]:
    lines: list[list[_Run]] = [[]]
    column = 0
    for piece, value, underlined in zip(pieces, beta, replaced, strict=True):
        for character in _shown(piece):
            wide = 2 if unicodedata.east_asian_width(character) in "WF" else 1
            if column + wide > COLUMNS:
                lines.append([])
                column = 0
            last = lines[-1][-1] if lines[-1] else None
            if last is not None and last[0] + _width(last[1]) == column and last[2] is value:
                lines[-1][-1] = (last[0], last[1] + character, value, underlined)
            else:
                lines[-1].append((column, character, value, underlined))
            column += wide
            if character == NEW_LINE:
                lines.append([])
                column = 0
    return lines if lines[-1] else lines[:-1]


def _wrapped(prompt: str) -> list[str]:
    lines = [line for part in prompt.splitlines() for line in textwrap.wrap(_shown(part), COLUMNS) or [""]]
    return lines if len(lines) <= PROMPT_LINES else [*lines[: PROMPT_LINES - 1], "..."]


def _shown(piece: str) -> str:
    text = piece.replace("\r", "").replace("\t", TAB).replace("\n", NEW_LINE)
    return "".join(character if character.isprintable() else "·" for character in text)


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _plot_line(axis: Axes, line: Sequence[_Run], row: int, colors: Colormap) -> None:
    for column, text, value, underlined in line:
        colored = value == value  # NaN is the prompt's
        if colored:
            color = colors(value)
            axis.add_patch(Rectangle((column, row + 0.06), _width(text), 0.88, fc=color, ec="white", linewidth=0.4))
        if underlined:
            axis.plot([column + 0.1, column + _width(text) - 0.1], [row + 0.93] * 2, color=REPLACED, linewidth=1.6)
        axis.text(
            column,
            row + 0.54,
            text.replace("$", r"\$"),  # a pair of dollars would be a formula
            va="center",
            family="DejaVu Sans Mono",
            fontsize=FONT_POINTS,
            color="0.35" if not colored else "white" if value > 0.55 else "black",
        )
