"""README.md and docs/: every block and command runs, and every link, option and target that they name is there."""

from __future__ import annotations

import re
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pages
import pytest
import torch
import typer
from cli import WEIGHTS, densify
from markdown_it import MarkdownIt
from pages import ROOT, PageError
from PIL import Image
from safetensors.torch import load_file

import densify as package
from densify.cli.app import app

PAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")))
WITH_BLOCKS = [page for page in PAGES if "```" in (ROOT / page).read_text()]


def digit_net() -> torch.nn.Module:
    net: torch.nn.Module = runpy.run_path(str(ROOT / "models" / "digits.py"))["digit_net"]()
    net.load_state_dict(load_file(WEIGHTS))
    return net.eval()


def photo(path: Path) -> None:
    with Image.open(ROOT / "models" / "samples" / "scene1.png") as scene:
        scene.convert("RGB").crop((0, 0, 150, 111)).save(path, quality=95)


def checkpoint(path: Path) -> None:
    torch.save(load_file(WEIGHTS), path)


def network(path: Path) -> None:
    package.export(digit_net(), path, (1, 3, 32, 32))


def dense_network(path: Path) -> None:
    package.export(package.convert(digit_net(), (1, 3, 32, 32), start="pool3"), path)


# Files that pages take for given, unless they make them: a user has such ones.
GIVEN: dict[str, Callable[[Path], None]] = {
    "photo.jpg": photo,
    "mine.pth": checkpoint,
    "net.onnx": network,
    "dense.onnx": dense_network,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that a page's blocks run in, as the repository's root is for a reader: with models/ in it."""
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "build" / "demo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("page", WITH_BLOCKS)
def test_every_block_of_a_page_does_what_it_says(page: str, folder: Path) -> None:
    text = (ROOT / page).read_text()
    code = "".join(block.text for block in pages.blocks(page, text))
    for name, make in GIVEN.items():
        if re.search(rf"(?<![\w-]){re.escape(name)}\b", code) and not re.search(rf'(-o |, "){re.escape(name)}', code):
            make(folder / name)
    pages.run(page, text)


def test_pages_that_are_followed_in_one_folder_do_not_meet_in_a_file() -> None:
    written: dict[str, str] = {}
    for page in PAGES:
        code = "".join(block.text for block in pages.blocks(page, (ROOT / page).read_text()))
        for name in set(re.findall(r"(?:-o |(?:save|export)\([^\"\n]*\")([\w-]+(?:\.\w+)+)", code)):
            assert written.setdefault(name, page) == page, name
    assert len(written) > 20


WRONG = {
    "a print": ("```python\nx = 3\nprint(x)  # 4\n```", ":3: prints 3, not 4"),
    "a number": ("```python\nprint(1.25)  # 1.35\n```", ":2: prints 1.25"),
    "a print that never runs": ("```python\nif False:\n    print(1)  # 1\n```", ":3: this print never ran"),
    "an exception": ("text\n\n```python\nx = 1\nx.y\n```", ":5: AttributeError"),
    "another namespace": ("```python\nx = 1\n```\n\n```python\nprint(x)  # 2\n```", ":6: prints 1"),
    "python that is none": ("```python\n1 +\n```", ":2: SyntaxError"),
    "a status": ("```sh\n\ndensify plan torchvision:resnet --start a\n```", ":3: exits with 2, not 0"),
    "a marked status": ("<!-- exits 3 -->\n```sh\ndensify --version\n```", ":3: exits with 0, not 3"),
    "an option": ("```sh\n# no comment\ndensify \\\n  --versions\n```", ":3: exits with 2"),
    "an output": ("```console\n$ densify --version\ndensify 0.0\n```", ":3: the command prints otherwise"),
    "more output": ("```console\n$ densify -h\nUsage: densify [OPTIONS] COMMAND [ARGS]...\n```", ":4: the command"),
    "output without a command": ("```console\nPASSED\n$ densify -h\n```", ":2: output in front of"),
    "a program": ("```sh\nrm -r /\n```", ":2: rm is no program"),
    "a target": ("```sh\nmake tests\n```", ":2: the Makefile has no target tests"),
    "a language": ("```\nx\n```", ":1: no language"),
    "an indented block": ("text\n\n    x = 1\n", "no language"),
    "a marker": ("<!-- not here -->\n```sh\nmake test\n```", ":2: unknown marker 'not here'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_block_that_is_wrong_is_found_with_its_line(what: str, folder: Path) -> None:
    text, said = WRONG[what]
    with pytest.raises(PageError, match=re.escape(said)):
        pages.run("page.md", text)


def test_blocks_that_are_right_run_in_order(folder: Path) -> None:
    pages.run(
        "page.md",
        "```python\nx = [2]\nprint(x, 0.1)  # [2] 0.1001\n```\n\n"
        "<!-- needs a download -->\n```sh\ncurl nothing\n```\n\n"
        "```python\nprint(x[0])  # 2\nopen('made', 'w').close()\n```\n\n```json\n{]\n```\n\n"
        "```console\n$ densify --version  # which one\n...\n$ densify -h\nUsage: densify [OPTIONS] COMMAND [ARGS]...\n"
        "...\nCommands:\n...\n```\n\n<!-- exits 2 -->\n```sh\ndensify plan none\n```\n",
    )
    assert (folder / "made").exists()


def test_errors_in_tables_may_be_others_and_nothing_else() -> None:
    told = ["pass  output  1x2   3.6e-07  1.0e-05", "grid  4x4     1x8   0        0,1,0"]
    assert pages.first_difference(told, ["pass output 1x2 0 1.0e-05", "grid 4x4 1x8 2.1e-07", ""]) is None
    assert pages.first_difference(told, ["pass output 1x2 0 1.0e-05", "grid 4x4 1x9 2.1e-07"]) == 1
    assert pages.first_difference(["a", "...", "c"], ["a", "b", "d"]) == 1
    assert not pages.same_numbers("12.5 of 3", "12.5 of 4")


# ---- what pages name ---------------------------------------------------------------------------------

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def options(command: str) -> set[str]:
    shown = densify(command, "--help").stdout
    return set(re.findall(r"(?<![\w-])(--?[a-z][\w-]*)", shown))


EVERY_OPTION = {"--version", *(option for name in COMMANDS for option in options(name))}


def unknown(code: str) -> str | None:
    """What a code span names that is not there: a command, an option or a target of make."""
    words = code.split()
    if code.startswith("make ") and set(words[1:2]) - pages.make_targets():
        return words[1]
    named = [word for word in words if re.fullmatch(r"--[a-z][a-z-]*", word)]
    if words[:1] == ["densify"] and len(words) > 1 and re.fullmatch("[a-z]+", words[1]):
        if words[1] not in COMMANDS:
            return words[1]
        return next((word for word in named if word not in options(words[1])), None)
    return next((word for word in named if word not in EVERY_OPTION), None) if code.startswith("--") else None


@pytest.mark.parametrize("page", PAGES)
def test_commands_options_and_targets_in_the_text_are_there(page: str) -> None:
    for line, code in pages.inline_code((ROOT / page).read_text()):
        assert unknown(code) is None, f"{page}:{line}: `{code}`: there is no {unknown(code)}"


def test_names_that_are_not_there_are_found() -> None:
    wrong = ("make tests", "densify conver x", "densify plan x --weights y", "--targets")
    assert [unknown(code) for code in wrong] == ["tests", "conver", "--weights", "--targets"]
    assert [unknown(code) for code in ("make test", "densify plan x --start y", "--target", "-x")] == [None] * 4


def missing(page: Path) -> list[str]:
    """The relative links and images of a page that lead nowhere."""
    tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text())
    inside = [child for token in tokens for child in token.children or ()]
    links = [str(one.attrs.get("href") or one.attrs.get("src") or "") for one in inside]
    paths = [link.partition("#")[0] for link in links if link and not re.match("[a-z]+:", link)]
    return [path for path in paths if path and not (page.parent / path).exists()]


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_relative_links_lead_somewhere(page: str) -> None:
    assert missing(ROOT / page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[a](page.md#b) ![c](c.png) [d](https://example.org/d)\n\n| e |\n|---|\n| [e](../e.md) |\n")
    assert missing(page) == ["c.png", "../e.md"]
