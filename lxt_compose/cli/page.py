"""The page that `explain --out page.html` writes: one file, no scripts, for light and dark."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..heatmap import Picture, page, trace
from ..heatmap.picture import visible
from .explanation import Explained
from .result_text import NO_RELEVANCE

_STYLE = """
.lxt-wide{overflow-x:auto}.lxt-index li{margin:.15em 0}
section+section{border-top:1px solid #8884;margin-top:2.5rem;padding-top:1rem}
.lxt-dim{color:#65656b}.lxt-top td{padding:.1em .8em .1em 0}.lxt-top td:nth-child(2){text-align:right}
.lxt-pair{display:flex;flex-wrap:wrap;gap:1rem;align-items:flex-start}.lxt-pair>.lxt{flex:0 1 auto;min-width:0}
.lxt-scan{margin:1.2rem 0 0}.lxt-scan img{height:12rem;image-rendering:pixelated;border:1px solid #8884}
@media (prefers-color-scheme:dark){.lxt-dim{color:#a3a5aa}}
"""


def write_page(explained: Sequence[tuple[Explained, Picture]], path: Path) -> None:
    """Write heatmap, the model's other answers, the trace through the layers, coverage and ledger.

    Several texts are below each other, with an index on top.
    """
    sections = [f"<style>{_STYLE}</style>"]
    if len(explained) > 1:
        entries = [
            f'<li><a href="#text-{number}">{_text(one.title)}</a> {_text(one.task.source)}</li>'
            for number, (one, _) in enumerate(explained, 1)
        ]
        sections += [f"<h1>{len(explained)} texts</h1>", f'<ol class="lxt-index">{"".join(entries)}</ol>']
    for number, (one, picture) in enumerate(explained, 1):
        sections += [f'<section id="text-{number}">', *_sections(one, picture), "</section>"]
    title = visible(explained[0][0].title) if len(explained) == 1 else f"{len(explained)} texts"
    path.write_text(page(f"{title} - {explained[0][0].task.loaded.name}", sections), encoding="utf-8")


def _sections(explained: Explained, picture: Picture) -> list[str]:
    """Return the sections of one text or image."""
    task, found = explained.task, explained.found
    name = _text(task.loaded.name)
    by = f"by the rules of {_text(explained.preset)}"
    what = "What speaks for it and what against it" if explained.is_relevance else f"This is {NO_RELEVANCE},"
    sections = [
        f"<h1>{_text(explained.title)}</h1>",
        f'<p class="lxt-dim">{what} in {name}, {by}.</p>',
        f'<div class="lxt-pair">{_scan(task.picture)}{picture.html()}</div>',
    ]
    if explained.top:
        sections += ["<h2>What the model answers</h2>", _top(explained)]
    if task.tokens is not None and found.latent:
        names, scores = found.trace(0)
        real = found.real(0)
        kept = [token for token, keep in zip(task.tokens, real.tolist(), strict=True) if keep]
        sections += ["<h2>Layer by layer</h2>", trace(names, kept, scores[:, real]).html()]
    if found.ledger is not None:
        sections += ["<h2>Where the relevance went</h2>", _scrolling(found.ledger._repr_html_())]
    return [*sections, "<h2>Which rules were at work</h2>", _scrolling(found.report._repr_html_())]


def _text(text: str) -> str:
    return escape(visible(text))


def _scrolling(table: str) -> str:
    """Return a wide table that scrolls on a narrow screen."""
    return f'<div class="lxt-wide">{table}</div>'


def _top(explained: Explained) -> str:
    rows = "".join(
        f"<tr><td>{_text(name)}</td><td>{logit:+.4g}</td><td>{share:.1%}</td></tr>"
        for name, logit, share in explained.top
    )
    return f'<table class="lxt-top">{rows}</table>'


def _scan(path: Path | None) -> str:
    """Return the image itself, as HTML."""
    if path is None:
        return ""
    import io

    from PIL import Image

    memory = io.BytesIO()
    image = Image.open(path).convert("RGB")
    image.thumbnail((768, 768))
    image.save(memory, format="PNG")
    data = base64.b64encode(memory.getvalue()).decode("ascii")
    return f'<p class="lxt-scan"><img alt="the image that is explained" src="data:image/png;base64,{data}"></p>'
