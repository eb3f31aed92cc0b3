"""Outputs that are whole or not there: everything is written in a folder beside its target, flushed, then renamed."""

from __future__ import annotations

import mmap
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

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
        check_target(path, overwrite)


def companion(path: Path) -> Path:
    """The file beside an ONNX file that holds its weights where they pass 2 GiB."""
    return path.with_name(f"{path.name}.data")


def write_atomically(path: Path, write: Writer, *, overwrite: bool = False) -> None:
    """Write one file, and its companion where it has one, whole or not at all.

    Args:
        path: the target. A link is followed, so that the file it points to is replaced.
        write: called with the path of an empty file of the target's name, in a folder of its own beside the target;
            fills it, and may put a :func:`companion` beside it, which will lie beside the target.
        overwrite: whether an existing target, or companion, may be replaced. The companion of a target that is replaced
            by one without goes with it.

    Raises:
        UsageError: before `write` is called, where the target exists or its folder cannot be written;
            and after it, where the companion exists, or the file system refuses (a full disk).
        BaseException: whatever `write` raises passes through, the target untouched and nothing left behind.
    """
    write_all({path: write}, overwrite=overwrite)


def write_bytes(path: Path, content: bytes, *, overwrite: bool = False) -> None:
    """Write one file of known content; errors as :func:`write_atomically`."""

    def write(place: Path) -> None:
        place.write_bytes(content)

    write_atomically(path, write, overwrite=overwrite)


def write_all(writers: Mapping[Path, Writer], *, overwrite: bool = False) -> None:
    """Write several files, all or none: no target appears before every file is complete and flushed.

    Args:
        writers: target -> what fills it, see `write_atomically`.
        overwrite: whether existing targets may be replaced.

    Raises:
        UsageError: as `write_atomically`. Where a rename fails after others succeeded, the new files are removed
            again, and those that they replaced are put back.
    """
    for path in writers:
        check_target(path, overwrite)
    with _places(writers) as places:
        moves: list[_Move] = []
        for path, write in writers.items():
            place = places[path]
            with _explained(path):
                mode = place.stat().st_mode
                write(place)
                for target, file in ((companion(path.resolve()), companion(place)), (path, place)):
                    if file.exists():
                        file.chmod(mode)  # some libraries replace the file by one that nobody else may read
                        _flush(file)
                        moves.append(_Move(target, file))
                    elif file != place and _names_companion(path):
                        moves.append(_Move(target, file, stale=True))
        for move in moves:
            check_target(move.path, overwrite)
        _rename(moves)


class _Move(NamedTuple):
    """A complete file, and the path, as the user gave it, where it is to lie; or nothing, which is to lie there.

    Attributes:
        stale: what lies there goes: the companion of a file that is replaced by one that has none.
    """

    path: Path
    file: Path
    stale: bool = False

    @property
    def target(self) -> Path:
        return self.path.resolve()

    @property
    def before(self) -> Path:
        """Where the file that is replaced lies until all are in their places."""
        return self.file.with_name(f"{self.file.name}.before")


def check_target(path: Path, overwrite: bool) -> None:
    """Refuse one output that cannot be written, whatever its format.

    Raises:
        UsageError: an existing file, or a folder that is missing or cannot be written.
    """
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UsageError(f"{path}: there is no folder {folder}; create it, or name another output")
    if path.is_dir():
        raise UsageError(f"{path}: this is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise UsageError(
            f"{path}: exists already; name another output, or allow it to be replaced with --overwrite, in Python "
            "overwrite=True"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{path}: the folder {folder} cannot be written; name another output or allow writing")


@contextmanager
def _places(paths: Iterable[Path]) -> Iterator[dict[Path, Path]]:
    """An empty file of each target's name, in a folder of its own beside it, removed at the end whatever happens."""
    made: dict[Path, Path] = {}
    try:
        for path in paths:
            target = path.resolve()
            made[path] = target.with_name(f".{target.stem}.{secrets.token_hex(6)}") / target.name
            with _explained(path):
                made[path].parent.mkdir(mode=0o700)
                made[path].touch(exist_ok=False)
        yield made
    finally:
        for place in made.values():
            shutil.rmtree(place.parent, ignore_errors=True)


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


def _rename(moves: Sequence[_Move]) -> None:
    """Put every file in its target's place; on a failure or an interruption all is as it was before."""
    try:
        for move in moves:
            with _explained(move.path):
                if move.target.exists():
                    _keep(move.target, move.before)
                if move.stale:
                    move.target.unlink(missing_ok=True)
                    continue
                if move.before.exists():
                    shutil.copymode(move.before, move.file)
                move.file.replace(move.target)
    except BaseException:
        for move in moves:  # by what lies where, since an interruption may come between any two steps
            if move.before.exists():
                move.before.replace(move.target)
            elif not move.stale and not move.file.exists():
                move.target.unlink(missing_ok=True)
        raise


def _names_companion(path: Path) -> bool:
    """Whether an ONNX file that is to be replaced has its weights in its companion."""
    target, data = path.resolve(), companion(path.resolve())
    if path.suffix.lower() != ".onnx" or not (data.is_file() and target.is_file() and target.stat().st_size):
        return False
    with target.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(data.name.encode()) >= 0


def _keep(target: Path, before: Path) -> None:
    """Give a file a second name; the first one stays, so that it never points to nothing, where there are links."""
    try:
        before.hardlink_to(target)
    except OSError:
        target.replace(before)
