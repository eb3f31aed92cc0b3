"""The site of README's `make docs`: it builds without a warning, is whole, and loads nothing from a network."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer

import densify
from densify import errors
from densify.cli.app import app

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", folder / "trees",
         ROOT / "docs", folder / "site"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""
    return folder / "site"


class Loads(HTMLParser):
    """What a browser loads for a page: everything with an address but links that are clicked."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        names = ("src", "srcset", "data", "poster", *(("href",) if tag in ("link", "use", "image") else ()))
        self.found += [value for name in names if (value := given.get(name))]
        self.found += re.findall(r"url\(\s*['\"]?([^'\")]+)", given.get("style") or "")


def loaded(file: Path) -> list[str]:
    """The addresses outside the site that a file loads."""
    text = file.read_text(errors="replace")
    if file.suffix == ".html":
        found = Loads(text).found
    elif file.suffix in (".css", ".svg"):
        found = re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)|href=\"([^\"]+)", text)
        found = [address for addresses in found for address in addresses]
    else:
        found = re.findall(r"(?:fetch|import|importScripts|\.src\s*=)\s*\(?\s*['\"`]([^'\"`]+)", text)
    return [address for address in found if re.match(r"\s*(https?:)?//", address)]


def test_no_file_loads_anything_from_a_network(site: Path) -> None:
    files = [file for file in site.rglob("*") if file.suffix in (".html", ".css", ".svg", ".js")]
    assert len(files) > 25
    assert {str(file): found for file in files if (found := loaded(file))} == {}


@pytest.mark.parametrize(
    ("name", "text"),
    {
        "a.html": '<a href="https://example.org"></a><script src="https://example.org/x.js"></script>',
        "b.html": '<link rel="stylesheet" href="//example.org/x.css">',
        "c.html": "<p style=\"background: url('http://example.org/x.png')\">",
        "d.css": "@import 'https://example.org/font.css';",
        "e.css": "src: url(https://example.org/font.woff)",
        "f.js": 'const s = document.createElement("script"); s.src = "https://example.org/x.js"',
        "g.svg": '<image href="https://example.org/x.png"/>',
    }.items(),
)
def test_what_is_loaded_from_a_network_is_found(name: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(text)
    assert len(loaded(file)) == 1


def anchors(page: Path) -> set[str]:
    return set(re.findall(r'\bid="([^"]+)"', page.read_text()))


def test_the_reference_has_every_public_name(site: Path) -> None:
    pages = ("python", "results", "errors", "symmetry")
    reference = {name for page in pages for name in anchors(site / "reference" / f"{page}.html")}
    bare = {name.rpartition(".")[2] for name in reference}
    assert set(densify.__all__) <= bare
    raised = {name for name, thing in vars(errors).items() if isinstance(thing, type)}
    assert raised <= {name.rpartition(".")[2] for name in anchors(site / "reference" / "errors.html")}


def test_the_reference_has_every_command_and_option(site: Path) -> None:
    page = (site / "reference" / "command-line.html").read_text()
    shown = re.sub(r"<[^>]+>", "", page)
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert len(commands) > 6
    for name, command in commands.items():
        assert f"densify {name}" in shown
        assert all(option in shown for parameter in command.params for option in parameter.opts)
    assert "&lt;!-- commands" not in page
    assert not re.search("\N{EN DASH}[a-z]", shown)  # the dashes of options are two


# Roles and headings that Sphinx did not understand; names and texts that it took for types.
MISREAD = r":(func|class|meth|data|mod):`|\b(Args|Attributes|Type|Return type):\s|\((\w+, )*\w+,\)"


def test_docstrings_are_read_as_they_are_meant(site: Path) -> None:
    for page in (site / "reference").glob("*.html"):
        text = re.sub(r"<[^>]+>", "", page.read_text())
        assert not re.search(MISREAD, text), page.name


def test_pages_link_to_files_that_are_there(site: Path) -> None:
    for page in site.rglob("*.html"):
        for link in re.findall(r'href="([^"#:?]+)["#?]', page.read_text()):
            assert (page.parent / link).exists(), f"{page.relative_to(site)} links {link}"


def test_the_drawings_are_what_their_script_draws() -> None:
    folder = ROOT / "docs" / "drawings"
    drawings = runpy.run_path(str(folder / "draw.py"))["DRAWINGS"]
    assert {path.name: path.read_text() for path in folder.glob("*.svg")} == {n: draw() for n, draw in drawings.items()}
