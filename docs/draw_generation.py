"""Draw docs/pictures/generation.png: the steps of an answer, each explained directly, and handed on to the prompt.

    PYTHONPATH=.:benchmarks:docs:tests/helpers python docs/draw_generation.py [--out folder]

A small Llama learns to follow three facts, as in benchmarks/generation.py. Its page is drawn too, as
docs/pictures/generation_page.png; that needs Chromium.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from browser import Page
from draw_pages import take_pictures
from generation import ASK, FACTS, SYMBOLS, TASKS, chain, train

from lxt_compose import attribute_generation
from lxt_compose.heatmap.picture import new_figure, save_figure

PICTURE = Path(__file__).resolve().parent / "pictures" / "generation.png"
NAMES = "Ann Bob Cem Dee Eli Fay Gus Hal Ida Jan Kim Lou".split()


class Names:
    """Names for the tokens of the task: "Ann>Bob" is the fact that Ann knows Bob."""

    all_special_ids = (ASK,)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """Return the names of tokens."""
        return [self.decode([token]) for token in ids]

    def decode(self, ids: list[int]) -> str:
        """Return the name of one token."""
        (token,) = ids
        if token == ASK:
            return "[ASK]"
        first, second = divmod(token - SYMBOLS, SYMBOLS)
        return NAMES[token] if token < SYMBOLS else f"{NAMES[first]}>{NAMES[second]}"


def main() -> None:
    """Train, explain, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    torch.set_num_threads(1)
    _, answers, steps = TASKS["chain of three"]
    model = train(chain, answers, steps, 0)
    ids, _ = chain(1, torch.Generator().manual_seed(11))
    result = attribute_generation(model, ids[:, :-answers], ids[:, -answers:], tokenizer=Names(), contrast=[[0, 1, 2]])
    figure = new_figure(9, 4.4, dark=False)
    for place, (title, found) in enumerate([("direct", result), ("handed on", result.handed_on())]):
        axes = figure.add_subplot(1, 2, place + 1)
        found.plot(axes)
        axes.set_title(title)
    figure.tight_layout()
    save_figure(figure, PICTURE, dpi=110)
    print(f"{PICTURE.name}: {FACTS} facts")
    page = result.page(options.out / "generation_page.html")
    with tempfile.TemporaryDirectory() as folder, Page(page, folder, (1120, 900)) as opened:
        opened.run("document.querySelectorAll('input[name=way]')[1].click()")
        take_pictures(opened, "generation_page", answers - 1, options.out)
    print(page)


if __name__ == "__main__":
    main()
