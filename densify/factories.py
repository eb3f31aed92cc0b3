"""Import a person's own code: its errors told by line, what it prints kept out of our results."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from densify.errors import UsageError


def import_file(reference: str, path: Path) -> tuple[ModuleType, Path, str]:
    """The module, its folder, and the SHA-256 of the file. The same content under the same path is imported once."""
    if not path.is_file():
        raise UsageError(f"{reference}: there is no file {path}; give the path from the current folder")
    path = path.resolve()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    name = f"densify_factory_{hashlib.sha256(f'{path} {digest}'.encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name], path.parent, digest
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None, "a .py file always has one"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up here
    try:
        with code_of(path.parent):
            spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception | SystemExit):
            raise
        raise UsageError(f"{reference}: importing the file failed{place(error, module)}: {told(error)}") from error
    return module, path.parent, digest


def import_package(reference: str, name: str) -> ModuleType:
    """The module of that dotted name, looked for in the current folder too, as `python -m` does."""
    try:
        with code_of(Path.cwd()):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(f"{reference}: there is no package or module {error.name!r}; install it") from error
        raise UsageError(f"{reference}: importing {name} failed: {told(error)}") from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"{reference}: importing {name} failed: {told(error)}") from error


@contextlib.contextmanager
def code_of(folder: Path | None) -> Iterator[None]:
    """Run a person's code: modules beside it can be imported, and what it prints stays out of our results."""
    before = list(sys.path)
    if folder is not None:
        sys.path.insert(0, str(folder))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.path[:] = before


def place(error: BaseException, code: object) -> str:
    """The last line, as " (file.py, line 3)", of the person's own file that the error went through."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({Path(error.filename).name}, line {error.lineno})"
    module = code if isinstance(code, ModuleType) else sys.modules.get(getattr(code, "__module__", ""))
    source = getattr(module, "__file__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == source]
    return f" ({Path(source).name}, line {lines[-1]})" if source and lines else ""


def told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"
