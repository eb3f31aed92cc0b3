"""Outputs that are whole or not there: everything is written beside its target, flushed, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from densify.errors import UsageError

OUTPUT_SUFFIXES = (".safetensors", ".pth", ".onnx")

_FULL = 2**16  # bytes: a disk with less is full

Writer = Callable[[Path], None]


def check_writable(paths: Sequence[Path], overwrite: bool = False) -> None:
    """Refuse outputs that cannot be written, before any long work is done for them.

    Args:
        paths: the outputs; the suffix of each decides its format.
        overwrite: whether an existing file may be replaced.

    Raises:
        UsageError: an unknown suffix, the same output twice, an existing file, a folder that is missing
            or cannot be written.
    """
    seen: dict[Path, Path] = {}
    for path in paths:
        if path.suffix.lower() not in OUTPUT_SUFFIXES:
            raise UsageError(f"{path}: the suffix decides the format; it has to be one of {', '.join(OUTPUT_SUFFIXES)}")
        target = path.resolve()
        if target in seen:
            raise UsageError(f"{path}: given as an output twice (also as {seen[target]}); leave one of them out")
        seen[target] = path
        _check_target(path, overwrite)


def write_atomically(path: Path, write: Writer, *, overwrite: bool = False) -> None:
    """Write one file, whole or not at all.

    Args:
        path: the target. A link is followed, so that the file it points to is replaced.
        write: called with the path of an empty file in the target's folder, of the same suffix; fills it.
        overwrite: whether an existing target may be replaced.

    Raises:
        UsageError: before `write` is called, where the target exists or its folder cannot be written;
            and after it, where the file system refuses (a full disk).
        BaseException: whatever `write` raises passes through, the target untouched and nothing left behind.
    """
    write_all({path: write}, overwrite=overwrite)


def write_all(writers: Mapping[Path, Writer], *, overwrite: bool = False) -> None:
    """Write several files, all or none: no target appears before every file is complete and flushed.

    Args:
        writers: target -> what fills it, see `write_atomically`.
        overwrite: whether existing targets may be replaced.

    Raises:
        UsageError: as `write_atomically`. Where a rename fails after others succeeded, the new files
            are removed again; files that were replaced by then stay replaced.
    """
    for path in writers:
        _check_target(path, overwrite)
    with _temporaries(writers) as temporaries:
        for path, write in writers.items():
            with _explained(path):
                mode = temporaries[path].stat().st_mode
                write(temporaries[path])
                temporaries[path].chmod(mode)  # some libraries replace the file by one that nobody else may read
                _flush(temporaries[path])
        for path in writers:
            _check_target(path, overwrite)
        _rename(temporaries)


def _check_target(path: Path, overwrite: bool) -> None:
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UsageError(f"{path}: there is no folder {folder}; create it, or name another output")
    if path.is_dir():
        raise UsageError(f"{path}: this is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: exists already; name another output, or allow it to be replaced with --overwrite")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{path}: the folder {folder} cannot be written; name another output or allow writing")


@contextmanager
def _temporaries(paths: Mapping[Path, object]) -> Iterator[dict[Path, Path]]:
    """An empty file beside each target, removed at the end where it still exists, whatever happens."""
    made: dict[Path, Path] = {}
    try:
        for path in paths:
            target = path.resolve()
            made[path] = target.with_name(f".{target.stem}.{secrets.token_hex(6)}{target.suffix}")
            with _explained(path):
                made[path].open("xb").close()  # not mkstemp, whose files nobody else may read
        yield made
    finally:
        for temporary in made.values():
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error
    except Exception as error:  # writers of other libraries report a full disk in their own ways
        if shutil.disk_usage(path.resolve().parent).free < _FULL:
            raise UsageError(f"{path}: cannot be written: no space left on the disk") from error
        raise


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _rename(temporaries: Mapping[Path, Path]) -> None:
    """Put every temporary in its target's place; on a failure take the new ones away again."""
    new: list[Path] = []
    try:
        for path, temporary in temporaries.items():
            target = path.resolve()
            existed = target.exists()
            with _explained(path):
                if existed:
                    shutil.copymode(target, temporary)
                temporary.replace(target)
            if not existed:
                new.append(target)
    except BaseException:
        for target in new:
            target.unlink(missing_ok=True)
        raise
