"""Results in notebooks and in rich's console, as the commands show them."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

_COLUMNS = 120  # of a notebook's cell
_HTML = '<pre style="line-height:normal">{code}</pre>'


class Shown:
    """What has a document, and a way of showing it on a screen."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, texts, lists and dicts: what JSON can say."""
        raise NotImplementedError

    def _show(self, screen: Console) -> None:
        raise NotImplementedError

    def _text(self) -> str:
        """What print shows: plain text, as wide as the terminal or 80 columns."""
        from rich.console import Console

        drawn = StringIO()
        self._show(
            Console(file=drawn, color_system=None, force_jupyter=False, highlight=False, markup=False, emoji=False)
        )
        return drawn.getvalue().rstrip()

    def _drawn(self, width: int) -> Text:
        from rich.console import Console
        from rich.text import Text

        drawn = StringIO()
        self._show(Console(file=drawn, width=width, force_terminal=True, highlight=False, markup=False, emoji=False))
        return Text.from_ansi(drawn.getvalue().rstrip())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        yield self._drawn(options.max_width)

    def _repr_html_(self) -> str:
        from rich.console import Console

        text = self._drawn(_COLUMNS)
        page = Console(file=StringIO(), record=True, width=max(_COLUMNS, text.cell_len), force_jupyter=False)
        page.print(text, soft_wrap=True)
        return page.export_html(inline_styles=True, code_format=_HTML)
