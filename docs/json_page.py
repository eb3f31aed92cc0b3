"""Put the schema of `--json` (densify/results.schema.json) into the tables of docs/json.md.

python docs/json_page.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "json.md"
SCHEMA = ROOT / "densify" / "results.schema.json"
MARK = "<!-- from here on made by docs/json_page.py -->\n"

Part = Mapping[str, Any]


def tables(schema: Part) -> str:
    """A table for each definition: first the documents, then what is in them."""
    documents = [_name(one["$ref"]) for one in schema["oneOf"]]
    parts = [name for name in schema["$defs"] if name not in documents]
    lines = ["## The documents", ""]
    for name in documents:
        lines += _section(name, schema)
    lines += ["## Their parts", ""]
    for name in sorted(parts):
        lines += _section(name, schema)
    return "\n".join(lines)


def _section(name: str, schema: Part) -> list[str]:
    one = schema["$defs"][name]
    rows = [line for key, value in one.get("properties", {}).items() for line in _rows(key, value)]
    more = [f"with the keys of [{_name(base['$ref'])}](#{_name(base['$ref'])})" for base in one.get("allOf", ())]
    if not rows:
        return [f"### {name}", "", f"{_kind(one)}: {_words(one)}.", ""]
    head = ["| key | value | |", "|---|---|---|"]
    return [f"### {name}", "", ", ".join([_words(one), *more]) + ".", "", *head, *rows, ""]


def _rows(key: str, value: Part) -> list[str]:
    """One row, and those of an object that has no name of its own."""
    inner = [row for name, one in value.get("properties", {}).items() for row in _rows(f"{key}.{name}", one)]
    return [f"| `{key}` | {_kind(value)} | {_words(value)} |", *inner]


def _words(value: Part) -> str:
    text: str = value.get("description", "")
    return text.replace("|", "\\|").replace("*", "\\*")


def _kind(value: Part) -> str:
    """What JSON has there."""
    if "$ref" in value:
        name = _name(value["$ref"])
        return f"[{name}](#{name})"
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if "enum" in value:
        return " or ".join(f"`{json.dumps(one)}`" for one in value["enum"])
    if "anyOf" in value:
        return " or ".join(map(_kind, value["anyOf"]))
    if "items" in value:
        inner = value["prefixItems"][0] if "prefixItems" in value else value["items"]
        return f"list of {_kind(inner)}"
    if isinstance(value.get("additionalProperties"), dict):
        return f"object of {_kind(value['additionalProperties'])}"
    kinds = value["type"]
    return kinds if isinstance(kinds, str) else " or ".join(kinds)


def _name(reference: str) -> str:
    return reference.rpartition("/")[2]


def page(old: str) -> str:
    """The page with its tables made anew."""
    written = old.partition(MARK)[0]
    return written + MARK + "\n" + tables(json.loads(SCHEMA.read_text("utf-8")))


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
