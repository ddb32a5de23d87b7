"""A report as one HTML file that needs nothing else: a jinja2 template, the project's style and script, and data.

What comes from a run (questions, answers, captions, prompts, names, paths) is treated as hostile: markup escapes it,
the data block is ASCII JSON without `<`, `>` and `&`, and the script writes it as text. The page's own
Content-Security-Policy allows its one style and its one script by their hashes, and images from within the page; it can
load nothing and send nothing.
"""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHARED = Path(__file__).with_name("page.html")


def render_page(template: Path, **values: Any) -> str:
    """The text of a template that extends `page.html`, with the style and script of its own name beside it.

    Args:
        template: a `.html` file; the `.css` and `.js` next to it follow those that all pages share.
        values: what the template names; `data` is what its script reads.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader([template.parent, _SHARED.parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_drop_lone_surrogates,
    )
    style, script = (
        "".join(path.with_suffix(ending).read_text(encoding="utf-8") for path in (_SHARED, template))
        for ending in (".css", ".js")
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = environment.get_template(template.name)
    return page.render(style=Markup(style), script=Markup(script), policy=policy, **values)


def draw_svg(figure: Figure) -> str:
    """A figure of matplotlib as the address of an image inside the page, the same bytes each time."""
    import matplotlib

    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "monkey", "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _drop_lone_surrogates(value: Any) -> Any:
    """Text with question marks for what UTF-8 cannot hold."""
    return value.encode("utf-8", "replace").decode("utf-8") if type(value) is str else value


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")
