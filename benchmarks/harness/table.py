"""Prints the table of a benchmark."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from rich.console import Console
from rich.table import Table


def print_table(
    console: Console,
    title: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[str] | None],
    *,
    left: Collection[str] = (),
    caption: str | None = None,
) -> None:
    """Prints a table whose columns hold numbers, unless they are named in `left`.

    Args:
        console: Where to print.
        title: The line above the table.
        headings: One per column.
        rows: The cells of each row; None draws a line.
        left: Headings of columns of text, which are aligned to the left.
        caption: What the columns mean, below the table.
    """
    table = Table(title=title, caption=caption, caption_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="left" if heading in left else "right")
    for cells in rows:
        if cells is None:
            table.add_section()
        else:
            table.add_row(*cells)
    console.print(table)
