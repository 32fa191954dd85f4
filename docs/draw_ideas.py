"""Draw the small figures of docs/ideas.md and docs/coverage.md, on a light card that is readable in dark mode too.

python docs/draw_ideas.py
"""

from __future__ import annotations

from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "pictures"
RED, BLUE, GRAY, INK, PALE = "#d6453d", "#3b6fc4", "#9a9ea6", "#1c1c1e", "#eceef1"
FONT = "font-family='system-ui,sans-serif' font-size='15'"


def text(x: float, y: float, said: str, *, color: str = INK, anchor: str = "middle", bold: bool = False) -> str:
    """A line of text."""
    weight = " font-weight='600'" if bold else ""
    return f"<text x='{x}' y='{y}' fill='{color}' text-anchor='{anchor}' {FONT}{weight}>{escape(said)}</text>"


def box(x: float, y: float, width: float, height: float, fill: str, said: str = "", color: str = INK) -> str:
    """A box with a text in its middle."""
    words = text(x + width / 2, y + height / 2 + 5, said, color=color) if said else ""
    return f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='6' fill='{fill}'/>{words}"


def arrow(x1: float, y1: float, x2: float, y2: float, color: str = GRAY, width: float = 2) -> str:
    """A line with a head."""
    ends = f"x1='{x1}' y1='{y1}' x2='{x2}' y2='{y2}'"
    return f"<line {ends} stroke='{color}' stroke-width='{width}' marker-end='url(#{color[1:]})'/>"


def save(name: str, width: int, height: int, parts: list[str]) -> None:
    """Write the figure."""
    heads = "".join(
        f"<marker id='{color[1:]}' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='8' markerHeight='8' "
        f"markerUnits='userSpaceOnUse' orient='auto'><path d='M0 0 8 4 0 8z' fill='{color}'/></marker>"
        for color in (RED, BLUE, GRAY)
    )
    card = f"<rect width='{width}' height='{height}' rx='10' fill='#fafafa' stroke='#d9dbe0'/>"
    body = "\n".join([f"<defs>{heads}</defs>", card, *parts])
    size = f"viewBox='0 0 {width} {height}' width='{width}' height='{height}'"
    (FOLDER / name).write_text(f"<svg xmlns='http://www.w3.org/2000/svg' {size}>\n{body}\n</svg>\n", "utf-8")


def layer() -> None:
    """The layer of docs/ideas.md: forward pass on the left, relevance on the right."""
    parts = [text(170, 30, "forward", bold=True), text(510, 30, "relevance", bold=True)]
    rows = (
        ("x₁ = 3", "2 · 3 = 6", "6", RED, 2.0),
        ("x₂ = 2", "−1 · 2 = −2", "−2", BLUE, 2.0),
        ("b = 1", "1", "1", GRAY, 2.0),
    )
    for row, (given, term, share, color, width) in enumerate(rows):
        y = 50 + 48 * row
        parts += [box(30, y, 80, 34, PALE, given), box(390, y, 80, 34, color, share, "#ffffff")]
        parts += [arrow(112, y + 17, 258, 115 if row == 1 else 108 + 7 * row), text(180, y + 8, term)]
        parts += [arrow(558, 115 if row == 1 else 108 + 7 * row, 474, y + 17, color, width)]
    parts += [box(262, 98, 70, 34, PALE, "z = 5"), box(560, 98, 70, 34, RED, "5", "#ffffff")]
    parts += [text(430, 222, "6 − 2 + 1 = 5: the inputs have 4, the bias keeps 1")]
    save("ideas_layer.svg", 660, 245, parts)


def rules() -> None:
    """How three rules share a relevance of 4 among the contributions 6, 3 and -5."""
    given = (6.0, 3.0, -5.0)
    total = sum(given)
    gamma = [z + 0.25 * max(z, 0) for z in given]
    shares = {
        "Epsilon": [z / total * total for z in given],
        "Gamma(0.25)": [z / sum(gamma) * total for z in gamma],
        "ZPlus": [max(z, 0) / sum(max(z, 0) for z in given) * total for z in given],
    }
    parts = [text(350, 30, "contributions 6, 3, −5 to an output of 4: what each gets", bold=True)]
    for column, (name, found) in enumerate(shares.items()):
        left = 40 + 220 * column
        parts.append(text(left + 90, 250, name, bold=True))
        parts.append(f"<line x1='{left}' y1='140' x2='{left + 180}' y2='140' stroke='{GRAY}'/>")
        for place, share in enumerate(found):
            height, x = 13 * abs(share), left + 20 + 55 * place
            top = 140 - height if share >= 0 else 140
            parts.append(f"<rect x='{x}' y='{top}' width='40' height='{height}' fill='{RED if share >= 0 else BLUE}'/>")
            parts.append(text(x + 20, top - 6 if share >= 0 else top + height + 17, f"{share:.1f}".replace("-", "−")))
    save("ideas_rules.svg", 700, 270, parts)


def coverage() -> None:
    """Relevance on its way back meets rules, and one operation without any."""
    names = ("linear", "add", "softmax", "my_kernel", "linear")
    parts = [text(350, 30, "each operation that relevance passes through is a row of the report", bold=True)]
    for place, name in enumerate(names):
        x, known = 25 + 132 * place, name != "my_kernel"
        parts.append(box(x, 55, 108, 40, PALE if known else RED, name, INK if known else "#ffffff"))
        parts.append(text(x + 54, 120, ("Epsilon", "Epsilon", "SoftmaxTaylor", "uncovered", "Epsilon")[place],
                          color=GRAY if known else RED))  # fmt: skip
        if place:
            parts.append(arrow(x - 2, 75, x - 22, 75, RED))
    save("ideas_coverage.svg", 700, 140, parts)


def formulations() -> None:
    """What autograd passes back at a tensor, in both formulations."""
    parts = []
    for row, (name, slots, after) in enumerate(
        (
            ("relevance", ("R(x)", "R(h)", "R(y)"), "x.grad is the relevance"),
            ("gradient", ("R(x) / x", "R(h) / h", "R(y) / y = 1"), "x * x.grad is the relevance"),
        )
    ):
        y = 30 + 80 * row
        parts += [text(20, y + 22, name, anchor="start", bold=True)]
        for place, slot in enumerate(slots):
            parts.append(box(120 + 150 * place, y, 110, 34, PALE, slot))
            if place:
                parts.append(arrow(118 + 150 * place, y + 17, 232 + 150 * (place - 1), y + 17, RED))
        parts.append(text(550, y + 22, after, anchor="start"))
    save("ideas_formulations.svg", 770, 170, parts)


def ledger() -> None:
    """The ledger of docs/coverage.md, before and after the function was registered."""
    rows = {
        "before": (("uncovered 104.1 %", 104.1, GRAY), ("inputs −4.5 %", -4.5, BLUE)),
        "after": (("inputs 62.1 %", 62.1, RED), ("softmax 37.5 %", 37.5, "#c9a227"), ("bias 0.5 %", 0.5, GRAY)),
    }
    parts = []
    for row, (name, shares) in enumerate(rows.items()):
        y, x = 30 + 70 * row, 130.0
        parts.append(text(20, y + 25, name, anchor="start", bold=True))
        for said, share, color in shares:
            width = 5 * abs(share)
            if share > 10:
                parts.append(box(x, y, width - 2, 38, color, said, "#ffffff"))
                x += width
        small = [said for said, share, _ in shares if share <= 10]
        parts.append(text(x + 8, y + 25, ", ".join(small), anchor="start"))
    save("ledger.svg", 790, 160, parts)


def main() -> None:
    """Draw them all."""
    for draw in (layer, rules, coverage, formulations, ledger):
        draw()


if __name__ == "__main__":
    main()
