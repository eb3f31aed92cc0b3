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
    """stdout as it is now: coloured on a terminal, plain text of 80 columns (or COLUMNS) elsewhere.

    NO_COLOR or a dumb terminal means no escape codes at all; FORCE_COLOR colours what is no terminal.
    """
    from rich.console import Console

    return Console(
        file=sys.stdout, highlight=False, markup=False, emoji=False, color_system=None if plain() else "auto"
    )


def plain() -> bool:
    """Whether the user wants no escape codes, or the terminal knows none."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") in ("dumb", "unknown")


def line(screen: Console, text: str, style: str = "") -> None:
    """A sentence; the terminal breaks it, so that it can be copied whole."""
    screen.print(text, style=style or None, soft_wrap=True)


def free(screen: Console) -> bool:
    """Whether nobody says how wide a line may be."""
    return not screen.is_terminal and "COLUMNS" not in os.environ


_INDENT = "    "
Rows = Sequence[Mapping[str, str]]


def put(
    screen: Console,
    rows: Rows,
    *,
    pairs: Sequence[tuple[str, str]] = (),
    whole: bool = False,
    emphasised: str = "",
    gap: int = 2,
) -> None:
    """A table, without the blanks that fill its last column.

    Where the lines are too narrow for it, one above the other of two values in each cell, or the first value of a row
    above the others, else every row as text. So no word and no number is broken.

    Args:
        pairs: columns that may share one.
        whole: break no cell where no width is given: the names in it are to be copied.
        emphasised: what marks a row in a column without a name.
        gap: between columns.
    """
    shown = [{name: row[name] for pair in pairs for name in pair} for row in rows] if pairs else rows
    made = table(shown, emphasised=emphasised, gap=gap)
    if whole and free(screen):
        screen.width = max(screen.width, _width(screen, made))
    if pairs and _width(screen, made) > screen.width:
        shown = [{f"{a}\n{b}": f"{row[a]}\n{row[b]}" for a, b in pairs} for row in rows]
        made = table(shown, leading=1)
    if _least(shown, gap) <= screen.width:
        screen.file.write("".join(f"{line}\n" for line in _drawn(screen, made)))
    elif pairs or not _put_below(screen, rows, emphasised, gap):
        _put_text(screen, rows, emphasised)


def _drawn(screen: Console, made: Table) -> list[str]:
    with screen.capture() as drawn:
        screen.print(made)
    return [line.rstrip() for line in drawn.get().splitlines()]


def _put_below(screen: Console, rows: Rows, emphasised: str, gap: int) -> bool:
    """Every row in two lines, its first value above the others, where these fit. Returns whether they do."""
    first = next((name for name in rows[0] if name), "") if rows else ""
    others = [{name: value for name, value in row.items() if name and name != first} for row in rows]
    made = table(others, gap=gap)
    if not first or _width(screen, made) + len(_INDENT) > screen.width:
        return False
    head, *lines = _drawn(screen, made)
    if len(lines) != len(rows):
        return False
    line(screen, first, "bold")
    screen.file.write(f"{_INDENT}{head}\n")
    for row, text in zip(rows, lines, strict=True):
        marked = bool(emphasised) and row.get("") == emphasised
        line(screen, f"{emphasised} {row[first]}" if marked else row[first], "bold" if marked else "")
        screen.file.write(f"{_INDENT}{text}\n")
    return True


def _put_text(screen: Console, rows: Rows, emphasised: str) -> None:
    """Every row as names and values, as many on a line as there is room for."""
    for row in rows:
        marked = bool(emphasised) and row.get("") == emphasised
        values = [f"{name}: {value}".replace("\n", " and ") for name, value in row.items() if name and value]
        lines = [f"{emphasised} " if marked else ""]
        for value in values:
            if len(lines[-1]) + len(value) > screen.width and lines[-1].strip():
                lines.append(_INDENT)
            lines[-1] += f"{value}  "
        text = "\n".join(one.rstrip() for one in lines)
        screen.print(text, style="bold" if marked else None, soft_wrap=True)


def _least(rows: Rows, gap: int) -> int:
    """How wide a table is whose words stand on lines of their own."""
    names = rows[0] if rows else ()
    columns = [[name, *(row[name] for row in rows)] for name in names]
    whole = [name.partition("\n")[0] in _UNBROKEN for name in names]
    widths = [
        max((len(part) for cell in cells for part in (cell.splitlines() if keep else cell.split())), default=0)
        for cells, keep in zip(columns, whole, strict=True)
    ]
    return sum(widths) + gap * (len(widths) - 1)


def fits(screen: Console, rows: Rows) -> bool:
    """Whether no cell is broken."""
    return free(screen) or _width(screen, table(rows)) <= screen.width


def _width(screen: Console, table: Table) -> int:
    """How wide a table is with no cell broken."""
    return table.__rich_measure__(screen, screen.options.update(max_width=10_000)).maximum


def table(rows: Rows, *, leading: int = 0, emphasised: str = "", gap: int = 2) -> Table:
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
