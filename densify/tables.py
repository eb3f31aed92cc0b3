"""Tables and lines on the terminal, or as plain text where there is none; what is too long is folded, not cut off."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_RIGHT = ("parameters", "params", "GFLOPs", "predictions", "eST", "FLOPs", "memory")
_UNBROKEN = (
    "",
    "k",
    "s",
    "p",
    "step",
    "field",
    "params",
    "lattice",
    "first at",
    "GFLOPs",
    "predictions",
    "eST",
    "FLOPs",
    "memory",
)


def screen() -> Console:
    """stdout as it is now: coloured on a terminal, plain text of 80 columns (or COLUMNS) elsewhere."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def line(screen: Console, text: str, style: str = "") -> None:
    """A sentence; the terminal breaks it, so that it can be copied whole."""
    screen.print(text, style=style or None, soft_wrap=True)


def free(screen: Console) -> bool:
    """Whether nobody says how wide a line may be."""
    return not screen.is_terminal and "COLUMNS" not in os.environ


def put(screen: Console, table: Table, *, whole: bool = False) -> None:
    """A table without the blanks that fill its last column.

    Args:
        whole: break no cell where no width is given: the names in it are to be copied.
    """
    if whole and free(screen):
        screen.width = max(screen.width, _width(screen, table))
    with screen.capture() as drawn:
        screen.print(table)
    screen.file.write("".join(f"{line.rstrip()}\n" for line in drawn.get().splitlines()))


def fitting(screen: Console, rows: Sequence[Mapping[str, str]], pairs: Sequence[tuple[str, str]]) -> Table:
    """One line per row where that fits, else two: in each cell one value above the other."""
    wide = table([{name: row[name] for pair in pairs for name in pair} for row in rows])
    if fits(screen, wide):
        return wide
    stacked = [{f"{a}\n{b}": f"{row[a]}\n{row[b]}" for a, b in pairs} for row in rows]
    return table(stacked, leading=1)


def _width(screen: Console, table: Table) -> int:
    """How wide a table is with no cell broken."""
    return table.__rich_measure__(screen, screen.options.update(max_width=10_000)).maximum


def fits(screen: Console, table: Table) -> bool:
    return _width(screen, table) <= screen.width


def table(rows: Sequence[Mapping[str, str]], *, leading: int = 0, emphasised: str = "", gap: int = 2) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, gap, leading, 0), header_style="bold")
    for name in rows[0] if rows else ():
        right = name.partition("\n")[0] in _RIGHT
        # Names give way where the table is too wide: numbers in two lines are misread.
        keep = name in _UNBROKEN
        table.add_column(Text(name), justify="right" if right else "left", overflow="fold", no_wrap=keep)
    for row in rows:
        marked = bool(emphasised) and row.get("") == emphasised
        table.add_row(*(_cell(value) for value in row.values()), style="bold" if marked else "")
    return table


def _cell(value: str) -> Any:
    from rich.text import Text

    text = Text(value, overflow="fold")
    text.highlight_regex(r"^pass$|^pass(?=\n)", "green")
    text.highlight_regex(r"^FAIL$|^FAIL(?=\n)", "bold red")
    return text
