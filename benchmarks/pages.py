"""A page of thousands of tokens: how large it is, how long it takes to open, and to light up what the pointer is at.

    PYTHONPATH=tests/helpers python benchmarks/pages.py [--tokens 4000] [--hovers 200] [--pictures folder]

Half of the tokens are the answer. Three texts: from left to right in pieces of bytes, from right to left, and Chinese.
Relevance is random, so that every token has many sources. It takes Chromium; times are those of the clock, from the
pointer's move until the page has answered and drawn.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from browser import Page
from measure import show

from lxt_compose.coverage.report import CoverageReport
from lxt_compose.generation import Answer, GenerationAttribution, Predictions, Sources, Span

TEXTS = {
    "pieces of bytes": "ĠThe ĠcafÃ© , ĠnaÃ¯ve ĠðŁĻ Ĥ Ġand Ġhow Ġlong Ġa Ġsentence Ġmay Ġbe , ĊĊ ĠThen Ġmore .".split(),
    "right to left": "▁مرحبا ▁بكم ▁في ▁هذه ▁الص فحة ، ▁وهي ▁ طويلة ▁جدا . ▁שלום ▁עולם ▁ABC ▁123".split(),
    "Chinese": "▁ 这 是 一 个 很 长 的 句 子 ， 有 许 多 词 语 。".split(),
}
SCHEMES = {"pieces of bytes": "bytes", "right to left": "sentencepiece", "Chinese": "sentencepiece"}


def answer_of(name: str, tokens: int) -> Answer:
    """An answer of half as many tokens to a prompt of the others, with random relevance."""
    count, before = tokens // 2, tokens - tokens // 2
    generator = torch.Generator().manual_seed(0)
    relevance = torch.randn(count, tokens, generator=generator).tril(before - 1)
    pieces = [TEXTS[name][place % len(TEXTS[name])] for place in range(tokens)]
    sides = ("prompt",) * before + ("output",) * count
    sources = Sources((0,) * tokens, tuple(pieces), sides, (), (False,) * tokens, SCHEMES[name])
    shares, own = torch.rand(count, 5, generator=generator).sort(1, descending=True).values / 5, tuple(pieces[before:])
    best = (tuple(piece.strip("Ġ▁") for piece in TEXTS[name][:5]),) * count
    known = Predictions(
        shares[:, 0], shares[:, 0], torch.zeros(count).long(), torch.zeros(count, 5).long(), shares, best, own
    )
    spans = tuple(Span(place, place + 1, pieces[before + place]) for place in range(count))
    return Answer(
        sources, spans, relevance, relevance.sum(1), "logit", known, CoverageReport((), executed=True), "random"
    )


def measured(path: Path, hovers: int, pictures: Path | None) -> list[object]:
    """Seconds to open, milliseconds for a hover (median, slowest), for a click, for another number of sources."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, Page(path, folder, (1120, 900)) as page:
        page.run("document.body.offsetHeight")
        opened, each = time.perf_counter() - start, []
        count = page.run("document.querySelectorAll('#output .t').length")
        for turn in range(hovers):
            page.run(f"document.querySelectorAll('#output .t')[{turn * count // hovers}].scrollIntoView()")
            begin = time.perf_counter()
            page.hover("#output .t", turn * count // hovers)
            page.run("document.body.offsetHeight")
            each.append(1000 * (time.perf_counter() - begin))
        begin = time.perf_counter()
        page.run(
            "(() => { const s = document.querySelector('#many'); s.value = 40; s.dispatchEvent(new Event('input')) })()"
        )
        page.run("document.body.offsetHeight")
        slid = 1000 * (time.perf_counter() - begin)
        if pictures is not None:
            for scheme in ("light", "dark"):
                page.prefer(scheme)
                page.run("scrollTo(0, 0)")
                page.screenshot(pictures / f"{path.stem.replace(' ', '_')}_{scheme}.png")
        assert not page.messages(), page.messages()
    return [opened, statistics.median(each), max(each), slid]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--hovers", type=int, default=200)
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in TEXTS:
            start = time.perf_counter()
            path = GenerationAttribution((answer_of(name, options.tokens),)).page(Path(folder) / f"{name}.html")
            made = time.perf_counter() - start
            found = measured(path, options.hovers, options.pictures)
            rows.append([name, path.stat().st_size / 1e6, made, *found])
    title = f"pages of {options.tokens} tokens, {options.hovers} moves of the pointer"
    heads = ["", "MB", "written, s", "opened, s", "hover, ms", "slowest", "slider, ms"]
    show(title, heads, rows)


if __name__ == "__main__":
    main()
