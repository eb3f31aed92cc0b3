"""How every command runs: errors become one message and an exit status, results one document or tables."""

from __future__ import annotations

import functools
import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NoReturn, TypeVar

import typer

from densify.cli.interrupts import INTERRUPTED, INTERRUPTION, heard, tell
from densify.cli.options import Voice
from densify.cli.progress import shown
from densify.errors import DensifyError, Refusal, RefusedError

Command = TypeVar("Command", bound=Callable[..., None])

_NOT_ENOUGH = ("out of memory", "can't allocate memory", "not enough memory")


def command(function: Command) -> Command:
    """Run a command; what it raises becomes a message on stderr and an exit status, never a traceback.

    DensifyError carries its status. Ctrl-C gives 130, also where a library makes another error of it. Anything else is
    a bug of densify: status 3, and the traceback where -v asks for it.
    """

    name = function.__name__

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        asked = bool(kwargs.get("json"))
        try:
            with shown(wanted=not (asked or kwargs.get("quiet"))):
                function(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            _interrupted(asked, name)
        except BrokenPipeError:
            raise  # typer knows what to do when the reader of stdout has gone
        except Exception as error:
            if heard():
                _interrupted(asked, name)
            if isinstance(error, DensifyError):
                kind, message, status = error.kind, str(error), error.exit_status
            else:
                kind, message = _unexpected(error)
                status = DensifyError.exit_status
            typer.echo(f"error: {message}", err=True)
            if kwargs.get("verbose") and not isinstance(error, DensifyError):
                traceback.print_exc()
            _fail(asked, name, kind, message, status, error.refusals if isinstance(error, RefusedError) else ())

    return run  # type: ignore[return-value]


def _interrupted(asked: bool, command: str) -> NoReturn:
    tell()
    _fail(asked, command, "interrupted", INTERRUPTION, INTERRUPTED)


def _fail(
    asked: bool, command: str, kind: str, message: str, status: int, refusals: Sequence[Refusal] = ()
) -> NoReturn:
    if asked:
        write_json(failure(command, kind, message, status, refusals))
    raise typer.Exit(status) from None


def failure(
    command: str | None, kind: str, message: str, status: int, refusals: Sequence[Refusal] = ()
) -> dict[str, Any]:
    """The document of a command that has no results."""
    error = {"kind": kind, "message": message, "exit_status": status, "refusals": [asdict(one) for one in refusals]}
    return {"command": command, "error": error}


def _unexpected(error: Exception) -> tuple[str, str]:
    """The kind of an error that nobody raised on purpose, and what to say of it."""
    reason = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NOT_ENOUGH):
        what = f"not enough memory ({reason or 'MemoryError'})"
        return "memory", f"{what}; give a smaller --input-size or smaller samples"
    return "bug", f"{type(error).__name__}: {reason}. This is a bug in densify: please report it with the output of -v"


def emit(voice: Voice, document: Mapping[str, Any], show: Callable[[], None]) -> None:
    """The results on stdout: the document as JSON where that is asked for, else what `show` prints."""
    if voice.json:
        from densify.facts import plain

        write_json(plain(document))
    else:
        show()


def write_json(document: Mapping[str, Any]) -> None:
    """A document on stdout, in strict JSON: no NaN and no infinity."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))
