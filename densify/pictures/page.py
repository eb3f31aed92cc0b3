"""One self-contained HTML page: no address outside it, no script; readable on a phone, in light and dark, on paper."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from densify.pictures.colours import Colours

# The policy makes browsers refuse whatever is not in the file itself.
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
"""

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e24; --soft: #5d6170; --paper: #fff; --line: #d9dbe2; --tint: #f4f5f8;
  --good: #14703c; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e9ee; --soft: #a2a6b4; --paper: #15171c; --line: #353945;
  --tint: #1e2129; --good: #6fd39a; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 80rem; margin: 0 auto; padding: 1.5rem clamp(1rem, 4vw, 3rem) 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 2rem 0 .5rem; overflow-wrap: anywhere; }
p, ul { max-width: 46rem; margin: .5rem 0; }
ul { padding-left: 1.2rem; }
li, dd, .long { overflow-wrap: anywhere; }
.soft, figcaption span { color: var(--soft); }
.verdict { display: inline-block; padding: .3rem .9rem; border-radius: 2rem; border: 2px solid; font-weight: 600; }
.good { color: var(--good); }
.bad { color: var(--bad); }
.wide { overflow-x: auto; margin: 1rem 0; border: 1px solid var(--line); border-radius: .5rem; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .4rem .75rem; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; }
td.long { white-space: normal; min-width: 18rem; }
th { background: var(--tint); font-weight: 600; white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .35rem 1.25rem; margin: 1rem 0; }
dt { color: var(--soft); }
dd { margin: 0; }
.pictures { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); }
figure { margin: 0; max-width: 30rem; }
figcaption { margin-bottom: .4rem; line-height: 1.35; font-weight: 600; }
figcaption span { display: block; font-weight: 400; font-size: .875rem; }
figure img { display: block; width: 100%; border: 1px solid var(--line); image-rendering: pixelated; }
.scales { display: grid; gap: 1rem 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr));
  margin: 1rem 0; font-size: .875rem; }
.scale img { display: block; width: 100%; height: 14px; border: 1px solid var(--line); }
.marks { display: flex; justify-content: space-between; }
.label { display: inline-flex; align-items: center; gap: .35rem; margin-right: .9rem; }
.label i { width: 14px; height: 14px; display: inline-block; print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
details { margin: 1rem 0; }
pre { overflow-x: auto; background: var(--tint); padding: 1rem; border-radius: .5rem; font-size: .8rem; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; } }
@media print { main { max-width: none; padding: 0; } body { font-size: 9pt; }
  .wide { overflow: visible; } table { font-size: 7pt; } th, td { padding: .2rem .4rem; }
  td, td.long { white-space: normal; min-width: 0; overflow-wrap: anywhere; }
  h2, h3 { break-after: avoid; } figure, tr, .scale { break-inside: avoid; } details { display: none; }
  .pictures { grid-template-columns: repeat(3, 1fr); } }
"""


_LONG = 40  # letters of a cell that may be broken into lines


def page(title: str, sections: Mapping[str, str], lead: str = "") -> str:
    """A whole page.

    Args:
        title: a text.
        sections: what stands below each heading, as HTML.
        lead: what stands above them, as HTML.
    """
    parts = [f"<section>\n<h2>{text(name)}</h2>\n{body}\n</section>" for name, body in sections.items()]
    return (
        f"{_HEAD}<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{text(title)}</h1>\n{lead}\n" + "\n".join(parts) + "\n</main>\n</body>\n</html>\n"
    )


def text(words: object) -> str:
    """A text as HTML: what is a sign there is escaped."""
    return escape(str(words))


def paragraph(words: str, kind: str = "") -> str:
    return f"<p{_class(kind)}>{text(words)}</p>"


def listing(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>" if lines else ""


def heading(words: str) -> str:
    return f"<h3>{text(words)}</h3>"


def verdict(passed: bool, words: str) -> str:
    return f'<p><span class="verdict {"good" if passed else "bad"}">{text(words)}</span></p>'


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of texts under their names; columns that are empty throughout are left out. "pass" and "FAIL" stand out."""
    names = [name for name in (rows[0] if rows else ()) if any(row[name] for row in rows)]
    head = "".join(f"<th>{text(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(_cell(row[name]) for name in names) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>'


def _cell(words: str) -> str:
    kind = {"pass": "good", "FAIL": "bad"}.get(words, "long" if len(words) > _LONG else "")
    return f"<td{_class(kind)}>{text(words)}</td>"


def facts(entries: Mapping[str, str]) -> str:
    """Names and what they are; those without are left out."""
    shown = {name: value for name, value in entries.items() if value}
    return "<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in shown.items()) + "</dl>"


def folded(summary: str, content: str) -> str:
    """A long text that opens when it is asked for."""
    return f"<details><summary>{text(summary)}</summary><pre>{text(content)}</pre></details>"


def picture(png: bytes, title: str, words: str) -> str:
    """A picture with its heading above."""
    caption = f"<figcaption>{text(title)}<span>{text(words)}</span></figcaption>"
    return f'<figure>{caption}<img src="{_data(png)}" alt="{text(f"{title}: {words}")}"></figure>'


def pictures(figures: Sequence[str]) -> str:
    return '<div class="pictures">' + "\n".join(figures) + "</div>"


def scales(made: Sequence[str]) -> str:
    return '<div class="scales">' + "\n".join(made) + "</div>"


def scale(png: bytes, marks: Sequence[str], words: str) -> str:
    """A colour bar, its numbers, and what they are."""
    numbers = "".join(f"<span>{text(mark)}</span>" for mark in marks)
    bar = f'<img src="{_data(png)}" alt="{text("colours from " + " to ".join(marks))}">'
    return f'<div class="scale">{bar}<div class="marks">{numbers}</div><div class="soft">{text(words)}</div></div>'


def legend(colours: Mapping[str, Colours], words: str) -> str:
    """Labels and their colours, and what they are."""
    entries = "".join(
        f'<span class="label"><i style="background:rgb({",".join(str(int(part)) for part in colour)})"></i>'
        f"{text(name)}</span>"
        for name, colour in colours.items()
    )
    return f'<div class="scale">{entries}<div class="soft">{text(words)}</div></div>'


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
