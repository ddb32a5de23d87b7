"""A report as one HTML text: tables and charts as markup, entries as data that the page's script shows.

What comes from a run (questions, answers, captions, prompts, names, paths) is treated as hostile: in markup it is
escaped, in the data block it is ASCII JSON without `<`, `>` and `&`, and the script writes it as text. The page's own
Content-Security-Policy allows its one style and its one script by their hashes, and pictures from within the page; it
can load nothing and send nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

_SHARED = Path(__file__).with_name("page")

_JSON_IN_HTML = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "<>&"})


def page(title: str, header: str, sections: Iterable[str], data: Any, footer: str, own: Path) -> str:
    """The whole page. `header`, `sections` and `footer` are markup, `title` is text, `data` what JSON can hold.

    `own` is the path of the page's own style and script, without their .css and .js: they follow what all pages share.
    """
    style, script = (
        "".join(path.with_suffix(ending).read_text(encoding="utf-8") for path in (_SHARED, own))
        for ending in (".css", ".js")
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_digest(style)}'; "
        f"script-src 'sha256-{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{text(title)}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header>{header}</header>
<main>
{"".join(sections)}
</main>
<footer>{footer}</footer>
<script type="application/json" id="data">{json_in_html(data)}</script>
<script>{script}</script>
</body>
</html>
"""


def json_in_html(data: Any) -> str:
    """JSON that no HTML parser takes for markup: ASCII (U+2028 and lone surrogates escaped) without `<`, `>`, `&`."""
    return json.dumps(data, ensure_ascii=True, separators=(",", ":")).translate(_JSON_IN_HTML)


def text(value: Any) -> str:
    """A value as text in markup or in an attribute; what UTF-8 cannot hold becomes a question mark."""
    return escape(valid(str(value)), quote=True)


def valid(value: str) -> str:
    """Text with question marks for what UTF-8 cannot hold, such as a lone surrogate."""
    return value.encode("utf-8", "replace").decode("utf-8")


def section(title: str, body: str, identifier: str = "") -> str:
    name = f' id="{identifier}"' if identifier else ""
    return f"<section{name}><h2>{text(title)}</h2>\n{body}</section>\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str]) -> str:
    """A table of markup cells; `classes` are those of the columns, as in html_page.css."""
    head = "".join(
        f'<th class="{"text" if name in ("text", "prose") else ""}">{text(cell)}</th>'
        for cell, name in zip(heads, classes, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(f'<td class="{name}">{cell}</td>' for cell, name in zip(row, classes, strict=True)) + "</tr>\n"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>\n'


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and markup values under each other."""
    return "<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{value}</dd>" for name, value in pairs) + "</dl>"


def bullets(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    return '<ul class="notes">' + "".join(f"<li>{text(sentence)}</li>" for sentence in sentences) + "</ul>"


def options(pairs: Iterable[tuple[str, str]]) -> str:
    return "".join(f'<option value="{text(value)}">{text(label)}</option>' for value, label in pairs)


def _digest(content: str) -> str:
    return base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")
