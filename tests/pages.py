"""Run the code blocks and commands of a Markdown page, in order, in one folder and one namespace.

    ```python   runs; a comment behind a `print(...)` of one line is what it prints, numbers with a point to 3%
    ```console, ```sh   every line is a command; or, where some begin with `$ `, these are, the others their output
    ```text, ```json   formats and outlines: nothing runs

`densify ...` runs in this process and must exit 0; `make TARGET` must be in the Makefile. A comment in front of a block
changes that: `<!-- needs a download -->`, it does not run, and `<!-- exits 3 -->`, its commands exit with 3.
In what a command printed, errors (1.2e-07) may be others, and a line `...` stands for any lines.
"""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli import densify
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
DOWNLOAD = "needs a download"
_STATUS = re.compile(r"exits (\d+)")
_COMMENT = re.compile(r"<!--\s*(.*?)\s*-->")
_SHOWN = ("text", "json")
_SHELL = ("console", "sh")
_ERROR = re.compile(r"\d(\.\d+)?e[-+]\d+|0")
_PLACE = re.compile(r"\d+(,\d+)+")
_NUMBER = re.compile(r"-?\d+\.\d+")


class PageError(AssertionError):
    """A block that does not do what its page says; names page and line."""


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, the line of the page where that begins, and the comment in front."""

    page: str
    language: str
    text: str
    line: int
    marker: str

    def error(self, line: int, said: str) -> PageError:
        """What is wrong with a line of the block, counted from 0."""
        return PageError(f"{self.page}:{self.line + line}: {said}")


@dataclass(frozen=True)
class Command:
    """A command, the line of its block where it begins, and what the page says that it prints, where it does."""

    text: str
    line: int
    printed: tuple[str, ...] | None


def blocks(page: str, text: str) -> list[Block]:
    """The blocks that a page has.

    Raises:
        PageError: a block without one of the languages above, or with a marker that is none.
    """
    found, marker = [], ""
    for token in MarkdownIt("commonmark").parse(text):
        if token.type == "html_block":
            comment = _COMMENT.search(token.content)
            marker = comment[1] if comment else ""
        elif token.type in ("fence", "code_block"):
            assert token.map is not None
            block = Block(page, token.info.strip(), token.content, token.map[0] + 2, marker)
            if token.type == "code_block" or block.language not in ("python", *_SHELL, *_SHOWN):
                raise block.error(-1, f"no language that is run or shown: {block.language!r}")
            if marker and marker != DOWNLOAD and not _STATUS.fullmatch(marker):
                raise block.error(-1, f"unknown marker {marker!r}")
            found.append(block)
            marker = ""
        else:
            marker = ""
    return found


def commands(block: Block) -> list[Command]:
    """The commands of a block, lines that end in a backslash joined with the next."""
    lines = block.text.splitlines()
    prompted = any(line.startswith("$ ") for line in lines)
    found: list[Command] = []
    rest = enumerate(lines)
    for i, line in rest:
        if prompted and not line.startswith("$ "):
            if not found:
                raise block.error(i, "output in front of the first command")
            last = found[-1]
            found[-1] = Command(last.text, last.line, (*(last.printed or ()), line))
            continue
        text = line.removeprefix("$ ")
        while text.endswith("\\"):
            text = text[:-1] + next(rest)[1]
        if text.strip() and not text.startswith("#"):
            found.append(Command(text, i, None))
    return found


def run(page: str, text: str) -> None:
    """Run all blocks of a page in the working directory.

    Raises:
        PageError: naming page and line.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page, text):
        if block.marker == DOWNLOAD or block.language in _SHOWN:
            continue
        if block.language == "python":
            run_python(block, names)
        else:
            for command in commands(block):
                run_command(block, command)


def run_python(block: Block, names: dict[str, Any]) -> None:
    """Run a python block; what its commented prints print must be what the comments say."""
    lines = block.text.splitlines()
    told = {i: line.rpartition("  # ")[2] for i, line in enumerate(lines) if re.match(r"\s*print\(.*\)  # ", line)}
    seen = set()

    def checked(*values: object, **how: object) -> None:
        frame = inspect.currentframe()
        assert frame is not None
        assert frame.f_back is not None
        line = frame.f_back.f_lineno - block.line
        if frame.f_back.f_code.co_filename == block.page and line in told:
            said = " ".join(map(str, values))
            seen.add(line)
            if not same_numbers(told[line], said):
                raise block.error(line, f"prints {said}, not {told[line]}")

    names["print"] = checked
    try:
        tree = ast.parse("\n" * (block.line - 1) + block.text, block.page)
        exec(compile(tree, block.page, "exec"), names)
    except PageError:
        raise
    except Exception as error:
        line = _line_of(error, block)
        raise block.error(line, f"{type(error).__name__}: {error}") from error
    if missed := sorted(set(told) - seen):
        raise block.error(missed[0], "this print never ran")


def _line_of(error: BaseException, block: Block) -> int:
    """The block's line that an exception went through."""
    if isinstance(error, SyntaxError):
        return (error.lineno or block.line) - block.line
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == block.page:
            line = trace.tb_lineno - block.line
        trace = trace.tb_next
    return line


def run_command(block: Block, command: Command) -> None:
    """Run `densify ...`, or look for the target of `make ...`."""
    program, *arguments = shlex.split(command.text, comments=True)
    if program == "make":
        if missing := set(arguments) - make_targets():
            raise block.error(command.line, f"the Makefile has no target {', '.join(sorted(missing))}")
        return
    if program != "densify":
        raise block.error(command.line, f"{program} is no program that a page may run unmarked")
    marked = _STATUS.fullmatch(block.marker)
    expected = int(marked[1]) if marked else 0
    done = densify(*arguments)
    if done.status != expected:
        raise block.error(command.line, f"exits with {done.status}, not {expected}:\n{done.stderr}")
    if command.printed is not None:
        said = done.stdout if expected == 0 else done.stderr
        wrong = first_difference(list(command.printed), said.splitlines())
        if wrong is not None:
            raise block.error(command.line + 1 + wrong, f"the command prints otherwise:\n{said}")


def first_difference(told: list[str], said: list[str]) -> int | None:
    """Which told line is not said, counted from 0; None where all are, in order, and `...` stands for any lines."""
    told, said = [_words(line) for line in told], [_words(line) for line in said]
    told, said = _stripped(told), _stripped(said)
    at = 0
    for i, line in enumerate(told):
        if line == "...":
            rest = told[i + 1 :]
            starts = range(at, len(said) + 1)
            return None if any(first_difference(rest, said[start:]) is None for start in starts) else i
        if at >= len(said) or line != said[at]:
            return i
        at += 1
    return None if at == len(said) else len(told)


def _stripped(lines: list[str]) -> list[str]:
    while lines and not lines[-1]:
        lines = lines[:-1]
    return lines


def _words(line: str) -> str:
    """A line without what differs from machine to machine: sizes of errors, their places, and widths of columns."""
    words = (word for word in line.split() if not _PLACE.fullmatch(word))
    return " ".join("~" if _ERROR.fullmatch(word) else word for word in words)


def same_numbers(told: str, said: str) -> bool:
    """Whether two texts are the same, numbers with a point to 3%."""
    numbers = [[float(n) for n in _NUMBER.findall(one)] for one in (told, said)]
    if _NUMBER.sub("~", told.strip()) != _NUMBER.sub("~", said.strip()):
        return False
    return all(abs(a - b) <= 0.03 * abs(b) for a, b in zip(*numbers, strict=True))


def make_targets() -> set[str]:
    """The targets of the Makefile."""
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def inline_code(text: str) -> Iterator[tuple[int, str]]:
    """Every code span of a page with the line of its paragraph."""
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        for child in token.children or ():
            if child.type == "code_inline":
                yield (token.map or [0])[0] + 1, child.content
