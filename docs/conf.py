"""How Sphinx makes the site of these pages: `make docs`. It loads nothing from the network, and opens from disk."""

from __future__ import annotations

import re
import subprocess
import sys

from sphinx.application import Sphinx

from densify.display import installed_version

project = "densify"
release = installed_version()
html_title = "densify"
html_theme = "furo"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_show_search_summary = False  # fetched page by page, which browsers refuse on files
smartquotes_action = "D"  # dashes alone: quotes stay what can be copied

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
default_role = "code"  # docstrings quote names as Markdown does
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80

_COMMANDS = "<!-- commands -->"
_EXAMPLE = re.compile(r"^Example: (densify .+(?:\n.+)*)$", re.MULTILINE)
_OPTION = re.compile(r"(?<![`\w-])(--[a-z][a-z-]*)")
_MARKUP = re.compile(r"[*|]")
_CODE = re.compile(r"(``.*?``|`.*?`)")
_SEVERAL = re.compile(r"(\s+)(\w+(?:, \w+)+): (.*)")


def _with_commands(_: Sphinx, page: str, source: list[str]) -> None:
    """Put every command with its options where a page asks for them, as the command line itself tells them."""
    source[0] = source[0].replace("](../CONTRIBUTING.md)", "](contributing.rst)")  # the site has a page of it
    if _COMMANDS not in source[0]:
        return
    asked = [sys.executable, "-m", "typer", "densify.cli.app", "utils", "docs", "--name", "densify"]
    told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.partition("\n## ")[2]
    told = "".join(line if line[0] in "*$`#" else _OPTION.sub(r"`\1`", line) for line in told.splitlines(keepends=True))
    shown = _EXAMPLE.sub(lambda found: f"Example:\n\n```console\n$ {' '.join(found[1].split())}\n```", f"## {told}")
    source[0] = source[0].replace(_COMMANDS, shown)


def _escaped(_: Sphinx, kind: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text with code in backticks: shapes such as [B, C, *spatial] are no markup."""
    for i, line in enumerate(lines):
        parts = _CODE.split(line)
        lines[i] = "".join(part if part.startswith("`") else _MARKUP.sub(r"\\\g<0>", part) for part in parts)
    lines[:] = _one_by_one(lines)


def _one_by_one(lines: list[str]) -> list[str]:
    """Entries of several names (``kernel, stride: ...``) as one entry for each, which is all that Sphinx knows."""
    made: list[str] = []
    rest = list(lines)
    while rest:
        line = rest.pop(0)
        if found := _SEVERAL.fullmatch(line):
            indent, names, text = found.groups()
            more = []
            while rest and rest[0].startswith(f"{indent} "):
                more.append(rest.pop(0))
            for name in names.split(", "):
                made += [f"{indent}{name}: {text}", *more]
        else:
            made.append(line)
    return made


def setup(app: Sphinx) -> None:
    """What Sphinx calls."""
    app.connect("source-read", _with_commands)
    app.connect("autodoc-process-docstring", _escaped, priority=100)  # before napoleon
