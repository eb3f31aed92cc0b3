"""How the command line reads what is typed and shows its help."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from densify.cli.running import failure, write_json

_Misused: type[Exception] = typer.BadParameter.__bases__[0]
"""What typer raises for words that it does not understand; it has no public name."""


class Command(TyperCommand):
    """A command whose help has its options in groups, by their `rich_help_panel`."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words of the usage line, without braces around what has to be there."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """One list for each group, in the order in which they first occur, all of one width."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                name, text = record
                groups.setdefault(_group(parameter), []).append((name.removesuffix(" <str>"), text))
        groups[_OTHERS] = groups.pop(_OTHERS)
        width = max(len(name) for records in groups.values() for name, _ in records)
        formatter.write_paragraph()
        for name, records in groups.items():
            formatter.write_heading(name)
            with formatter.indentation():
                formatter.write_dl([(one.ljust(width), text) for one, text in records])


def _group(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return "Arguments"
    return getattr(parameter, "rich_help_panel", None) or _OTHERS


class Group(TyperGroup):
    """All commands; where a command line is not understood, `--json` gives that as a document too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read what stands before the command."""
        with _told(args):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Find the command, let it read its own words, and run it."""
        with _told(ctx.args):
            return super().invoke(ctx)


_OTHERS = "Options"


@contextmanager
def _told(words: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except _Misused as error:
        if "--json" in words:
            where: Any = getattr(error, "ctx", None)
            name = None if where is None or where.parent is None else where.command.name
            write_json(failure(name, "usage", error.format_message(), error.exit_code))  # type: ignore[attr-defined]
        raise
