"""Explained similarities as arrays with named dimensions, plain data, and a page."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any, TypeAlias

from ..extras import needed
from ..heatmap import page, trace
from ..heatmap.picture import number, visible

TITLE = "What makes two inputs alike"
_STRONGEST = 10
_STYLE = """
section+section{border-top:1px solid #8884;margin-top:2rem}.lxt-wide{overflow-x:auto}.lxt-dim{color:#65656b}
.lxt-sums td{padding:.1em 1em .1em 0}.lxt-sums td:last-child{text-align:right;font-variant-numeric:tabular-nums}
@media (prefers-color-scheme:dark){.lxt-dim{color:#a3a5aa}}
"""


Explained: TypeAlias = Any
"""A :class:`~.result.SimilarityAttribution`, whose methods these are."""


def dataset(found: Explained) -> Any:
    """Return a Dataset of xarray; needs xarray.

    Raises:
        ImportError: xarray is not installed.
    """
    xarray = needed("xarray", "to_xarray() needs xarray: pip install 'lxt-compose[tables]'")
    sides = ("first", "second")
    values: dict[str, Any] = {
        f"{side}_score": (side, one.numpy()) for side, one in zip(sides, found.scores, strict=True)
    }
    if found.pairs is not None:
        values["pair"] = (sides, found.pairs.both.numpy())
    names = {f"{side}_token": (side, list(one)) for side, one in zip(sides, found.labels, strict=True)}
    return xarray.Dataset(values, names, {"similarity": found.similarity, "rest": found.rest})


def plain(found: Explained) -> dict[str, Any]:
    """Return a similarity as dictionaries, lists, texts and numbers, ready for JSON.

    ``first`` and ``second`` have tokens and scores, which add up to the ``similarity`` with the ``rest``. ``pairs`` are
    those of places, if they were asked for, with the ``strongest`` of them.
    """
    sides = zip(("first", "second"), found.labels, found.scores, strict=True)
    data: dict[str, Any] = {
        "similarity": found.similarity,
        **{side: {"tokens": list(names), "scores": scores.tolist()} for side, names, scores in sides},
        "rest": found.rest,
        "complete": found.report.complete,
    }
    if found.pairs is not None:
        data["pairs"] = found.pairs.both.tolist()
        data["strongest"] = [
            {"first": a, "second": b, "relevance": value} for a, b, value in found.strongest(_STRONGEST)
        ]
    return data


def page_of(each: Iterable[Explained], *, title: str = TITLE) -> str:
    """Return a whole HTML document of some similarities, one below the other; it has no scripts."""
    sections = [f"<style>{_STYLE}</style>", f"<h1>{escape(visible(title))}</h1>"]
    for found in each:
        sections += ["<section>", *_sections(found), "</section>"]
    return page(visible(title), sections)


def _sections(found: Explained) -> list[str]:
    sides = zip(("the first", "the second"), found.scores, strict=True)
    sums = [*((name, float(scores.sum())) for name, scores in sides), ("neither: biases and the like", found.rest)]
    parts = [found.heatmap().html(), "<h2>Where the similarity is</h2>", _table(sums)]
    if found.pairs is not None:
        both = found.pairs.both.flip(0)  # of a picture whose first row is at the bottom
        strongest = ((f"{a} \u2013 {b}", value) for a, b, value in found.strongest(_STRONGEST))
        parts += [
            "<h2>Which goes with which</h2>",
            '<p class="lxt-dim">Rows are of the first, columns of the second.</p>',
            f'<div class="lxt-wide">{trace(found.labels[0][::-1], found.labels[1], both).html()}</div>',
            _table(strongest),
        ]
    if found.ledger is not None:
        parts += ["<h2>Where the relevance went</h2>", f'<div class="lxt-wide">{found.ledger._repr_html_()}</div>']
    report = f'<div class="lxt-wide">{found.report._repr_html_()}</div>'
    return [*parts, "<h2>Which rules were at work</h2>", report]


def _table(rows: Iterable[tuple[str, float]]) -> str:
    cells = "".join(f"<tr><td>{escape(visible(name))}</td><td>{number(value)}</td></tr>" for name, value in rows)
    return f'<table class="lxt-sums">{cells}</table>'
