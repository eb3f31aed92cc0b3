"""How every command runs: errors become one message and an exit status, results one document or tables."""

from __future__ import annotations

import functools
import json
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import typer

from densify.cli.options import Voice
from densify.cli.progress import shown
from densify.errors import DensifyError

Command = TypeVar("Command", bound=Callable[..., None])

INTERRUPTED = 130
_NOT_ENOUGH = ("out of memory", "can't allocate memory", "not enough memory")


def command(function: Command) -> Command:
    """Run a command; what it raises becomes a message on stderr and an exit status, never a traceback.

    DensifyError carries its status. Ctrl-C gives 130. Anything else is a bug of densify: status 3, and the traceback
    where -v asks for it.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with shown(wanted=not (kwargs.get("json") or kwargs.get("quiet"))):
                function(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            typer.echo("interrupted: nothing was left behind", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise  # typer knows what to do when the reader of stdout has gone
        except DensifyError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(error.exit_status) from None
        except Exception as error:
            typer.echo(f"error: {_unexpected(error)}", err=True)
            if kwargs.get("verbose"):
                traceback.print_exc()
            raise typer.Exit(DensifyError.exit_status) from None

    return run  # type: ignore[return-value]


def _unexpected(error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NOT_ENOUGH):
        return f"not enough memory ({reason or 'MemoryError'}); give a smaller --input-size or smaller samples"
    return f"{type(error).__name__}: {reason}. This is a bug in densify: please report it with the output of -v"


def emit(voice: Voice, document: Mapping[str, Any], show: Callable[[], None]) -> None:
    """The results on stdout: the document as JSON where that is asked for, else what `show` prints."""
    if voice.json:
        from densify.facts import plain

        typer.echo(json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        show()
