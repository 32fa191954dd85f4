"""The page of an answer: one file that needs no network, for light and dark, pointer and keyboard, and paper."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any

from ..extras import needed
from ..heatmap.picture import visible
from .page_data import data_of

if TYPE_CHECKING:
    from .answer import Answer

TITLE = "Where the answer comes from"
_SCRIPTS = ("page_grids.js", "page_inside.js", "page.js")


def page_of(result: Iterable[Answer], *, title: str = TITLE, sources: int = 64) -> str:
    """Return a whole HTML document.

    The content policy allows its one script by hash, so nothing else can run, whatever a token contains.

    Args:
        result: the answers; several are listed at the top.
        title: of the page.
        sources: how many of the strongest sources are kept for each piece of an answer, where there are many.

    Raises:
        ImportError: Jinja2 is not installed.
    """
    jinja2 = needed("jinja2", "pages need Jinja2: pip install 'lxt-compose[viz]'")
    answers = list(result)
    folder = resources.files(__package__)
    parts = {name: (folder / name).read_text("utf-8") for name in (*_SCRIPTS, "page.html.j2", "page.css")}
    script = "\n".join(parts[name] for name in _SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(parts["page.html.j2"]).render(
        title=visible(title),
        policy=f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:",
        style=environment.filters["safe"](parts["page.css"]),
        script=environment.filters["safe"](script),
        data=environment.filters["safe"](_json([data_of(answer, sources=sources) for answer in answers])),
        tables=[_tables(answer, environment.filters["safe"]) for answer in answers],
        texts=[visible(answer.text) for answer in answers],
    )


def frame_of(result: Iterable[Answer]) -> str:
    """Return the page inside of a frame of its own, for notebooks."""
    return (
        f'<iframe sandbox="allow-scripts" style="width:100%;height:38rem;border:0" '
        f'srcdoc="{escape(page_of(result), quote=True)}"></iframe>'
    )


def _tables(answer: Answer, safe: Any) -> dict[str, Any]:
    """Return the content of the coverage tab of one answer."""
    return {
        "ran": visible(answer.ran),
        "report": safe(answer.report._repr_html_()),
        "ledger": "" if answer.ledger is None else safe(answer.ledger._repr_html_()),
    }


def _json(data: Any) -> str:
    """Return data that can stand inside of a script element."""
    return (
        json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    )
