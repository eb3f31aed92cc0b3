"""The commands, put together. Importing this does not import torch."""

from __future__ import annotations

from typing import Annotated

import typer

from densify.cli.compare import compare
from densify.cli.convert import convert
from densify.cli.inspect import inspect
from densify.cli.inverse import inverse
from densify.cli.plan import plan
from densify.cli.report import report
from densify.cli.screen import Command, Group
from densify.cli.verify import verify
from densify.display import installed_version

app = typer.Typer(
    cls=Group,
    epilog="Exit status: 0 fine; 1 verification failed; 2 usage; 3 the model or checkpoint cannot be converted; "
    "4 unsafe input refused; 130 interrupted.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"densify {installed_version()}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)] = (
        False
    ),
) -> None:
    """Turn a trained strided CNN into an equivalent dense-prediction CNN, and back.

    To begin with: densify plan torchvision:resnet18
    """


for _command in (convert, inverse, verify, inspect, plan, compare, report):
    app.command(cls=Command)(_command)
