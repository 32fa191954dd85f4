"""The base of all pictures: an HTML fragment, a whole page, a figure, a file."""

from __future__ import annotations

import base64
import io
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .colors import color_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LIGHT, DARK = ((255, 255, 255), (28, 28, 30)), ((24, 26, 29), (236, 236, 236))
"""Background and text, on light and on dark."""
_TIP = 120
_FIGURES = {".png", ".pdf", ".svg"}
_FONTS = ("DejaVu Sans", "Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Arial Unicode MS", "Noto Color Emoji")
# No scripts and no other sources, even if something should get past the escaping.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_PAGE_STYLE = """
:root{color-scheme:light dark}
body{margin:0 auto;padding:1.5rem 2rem;max-width:72rem;font:16px/1.5 system-ui,sans-serif;color:#1c1c1e;background:#fff;
overflow-x:clip}
h1{font-size:1.35rem;margin:.2rem 0 .6rem}h2{font-size:1.05rem;margin:1.6rem 0 .4rem}
table{border-collapse:collapse;font-size:.875rem}
@media (prefers-color-scheme:dark){body{color:#ececec;background:#181a1d}}
"""
# A token under the pointer shows its score beside it, wherever there is room in the window, or in its corner if
# the browser cannot place it so. It is fixed to the window, so that no box with a scroll bar cuts it off.
STYLE = """
.lxt{--line:#d5d5da;--dim:#65656b;--tip:#1c1c1e;--tip-text:#fff;--paper:#fff}
@media (prefers-color-scheme:dark){.lxt{--line:#44464b;--dim:#a3a5aa;--tip:#f2f2f4;--tip-text:#1c1c1e;--paper:#181a1d}}
.lxt [data-tip]:hover{outline:1.5px solid currentColor;outline-offset:-1px;anchor-name:--lxt}
.lxt [data-tip]:hover::after{content:attr(data-tip);position:fixed;left:1rem;bottom:1rem;z-index:2;
padding:.1em .5em;border-radius:.3em;background:var(--tip);color:var(--tip-text);font:13px/1.5 ui-monospace,monospace;
white-space:pre-wrap;overflow-wrap:anywhere;width:max-content;max-width:min(26rem,90vw);pointer-events:none;
writing-mode:horizontal-tb}
@supports (position-area:top){.lxt [data-tip]:hover::after{left:auto;bottom:auto;margin:3px 0;position-anchor:--lxt;
position-area:top span-right;position-try-fallbacks:flip-inline,flip-block,flip-inline flip-block}}
.lxt .key{display:flex;gap:.5em;align-items:center;font-size:.8rem;color:var(--dim);margin:.5em 0;white-space:nowrap}
.lxt .key i{display:inline-block;flex:0 1 9em;height:.7em;border:1px solid var(--line);border-radius:.2em}
"""


class Picture:
    """A picture that a notebook shows by itself, and that can be saved."""

    title = "relevance"

    def html(self) -> str:
        """Return a self-contained piece of HTML, without scripts, for light and dark backgrounds."""
        raise NotImplementedError

    def figure(self, *, dark: bool = False) -> Figure:
        """Return the picture as a figure of matplotlib.

        Raises:
            ImportError: matplotlib is not installed.
        """
        raise NotImplementedError

    def page(self) -> str:
        """Return a whole HTML document."""
        return page(self.title, [self.html()])

    def save(self, path: str | Path, *, dark: bool = False, dpi: int = 150) -> Path:
        """Write a file: ``.html``, ``.png``, ``.pdf`` or ``.svg`` by its name.

        Args:
            path: the file.
            dark: whether a figure is drawn on dark (a page follows the reader's own setting).
            dpi: dots per inch of a PNG.

        Raises:
            ValueError: the name has another ending.
            FileNotFoundError: the folder does not exist.
            ImportError: matplotlib is needed, but not installed.
        """
        path = writable(path)
        suffix = path.suffix.lower()
        if suffix in (".html", ".htm"):
            path.write_text(self.page(), encoding="utf-8")
        elif suffix in _FIGURES:
            save_figure(self.figure(dark=dark), path, dpi=dpi)
        else:
            raise ValueError(f"a picture is saved as .html, .png, .pdf or .svg, got {path.name!r}")
        return path

    def _repr_html_(self) -> str:
        return self.html()


def writable(path: str | Path) -> Path:
    """Return the path, if its folder exists.

    Raises:
        FileNotFoundError: it does not.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {str(path.parent)!r} does not exist, so {path.name!r} cannot be written")
    return path


def page(title: str, sections: Iterable[str]) -> str:
    """Return a self-contained HTML document of pieces of HTML."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{_PAGE_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def visible(text: str) -> str:
    """Return the text with control characters, lone surrogates and marks of direction as escapes."""
    return "".join(char if _harmless(char) else char.encode("unicode_escape").decode("ascii") for char in text)


def _harmless(char: str) -> bool:
    joiner = char in "\u200c\u200d"  # emoji and Persian are made with these
    return joiner or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def numbers_of(values: Any, what: str) -> Tensor:
    """Return numbers as a float64 tensor on the CPU, free of any graph.

    Raises:
        TypeError: they are no real numbers.
    """
    try:
        found = values if isinstance(values, Tensor) else torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{what} must be numbers, got {str(values)[:60]} of type {type(values).__name__}") from None
    if found.is_complex():
        raise TypeError(f"{what} must be real numbers, got a tensor of {found.dtype}")
    return found.detach().cpu().double()


def headings(titles: str | Sequence[str] | None, count: int) -> list[str]:
    """Return one title for each of several pictures, empty if there are none.

    Raises:
        TypeError: a title is no text.
        ValueError: there are more or fewer.
    """
    given = [titles] if isinstance(titles, str) else [""] * count if titles is None else titles
    if not isinstance(given, Iterable) or not all(isinstance(title, str) for title in given):
        raise TypeError(f"titles must be texts, got {titles!r}")
    found = list(given)
    if len(found) != count:
        raise ValueError(f"there are {len(found)} titles for {count} picture{'s' * (count != 1)}")
    return found


def tip_of(text: str, score: float) -> str:
    """Return the text that is shown while the pointer is on a token, escaped for an attribute."""
    text = visible(text)
    return escape(f"{text if len(text) <= _TIP else text[: _TIP - 1] + '…'}  {number(score)}", quote=True)


def number(value: float) -> str:
    """Return a score with its sign and four digits."""
    return f"{value:+.4g}"


def new_figure(width: float, height: float, *, dark: bool) -> Figure:
    """Return a figure of this many inches.

    Not made by pyplot, which would keep it alive and choose a backend for the whole process.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("pictures need matplotlib: pip install 'lxt-compose[viz]'") from None
    red, green, blue = (DARK if dark else LIGHT)[0]
    figure = Figure(figsize=(width, height), facecolor=(red / 255, green / 255, blue / 255))
    FigureCanvasAgg(figure)
    return figure


def color_bar(
    figure: Figure, box: tuple[float, float, float, float], scale: float | None, *, dark: bool, deep: bool = True
) -> None:
    """Draw a bar that shows the meaning of the colors, at (left, bottom, width, height) in shares of the figure.

    Args:
        figure: the figure.
        box: the place.
        scale: the value of full color; None where that differs from part to part.
        dark: whether the figure is dark.
        deep: see :func:`color_map`.
    """
    from matplotlib.cm import ScalarMappable

    background, ink = DARK if dark else LIGHT
    shade = [c / 255 for c in ink]
    axes = figure.add_axes(box)
    colors = ScalarMappable(cmap=color_map(background, dark=dark, deep=deep))
    bar = figure.colorbar(colors, cax=axes, orientation="horizontal", ticks=[0, 0.5, 1])
    numbers = ("", "0", "") if scale is None else (number(-scale) + "\n", "0", number(scale) + "\n")
    bar.set_ticklabels([numbers[0] + "against", "0", numbers[2] + "for"], fontsize=8.5, color=shade)
    bar.ax.tick_params(color=shade, length=2)
    bar.outline.set(linewidth=0.5, edgecolor="0.55")


@lru_cache
def fonts() -> tuple[str, ...]:
    """Return the installed fonts among these that cover the most scripts."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return tuple(name for name in _FONTS if name in installed) or ("sans-serif",)


def text_width(text: str) -> float:
    """Return the width of a text in inches for each point of its size."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        return _ruler()(text)


@lru_cache
def _ruler() -> Callable[[str], float]:
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    # Much finer than a screen: the widths of glyphs are rounded to whole pixels.
    renderer, font = RendererAgg(1, 1, 720), FontProperties(family=fonts(), size=12)
    return lambda text: float(renderer.get_text_width_height_descent(text, font, ismath=False)[0]) / 720 / 12


def save_figure(figure: Figure, path: Path | io.BytesIO, *, dpi: int, form: str | None = None) -> None:
    """Write a figure; a character that no font has becomes a box, without a warning for each."""
    import warnings

    import matplotlib

    # Hinted glyphs have other widths than those that the text was laid out with.
    with warnings.catch_warnings(), matplotlib.rc_context({"text.hinting": "no_hinting"}):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(path, dpi=dpi, format=form)


def png_of(figure: Figure, dpi: int = 110) -> str:
    """Return a figure as a data address that can stand in a page."""
    memory = io.BytesIO()
    save_figure(figure, memory, dpi=dpi, form="png")
    return "data:image/png;base64," + base64.b64encode(memory.getvalue()).decode("ascii")


_DRAWN = """
.lxt-image img{max-width:100%}.lxt-image .dark{display:none}
@media (prefers-color-scheme:dark){.lxt-image .light{display:none}.lxt-image .dark{display:inline}}
"""


def drawn(picture: Picture, what: str, titles: Sequence[str]) -> str:
    """Return the figure inside of HTML: one for light, one for dark backgrounds.

    `what` and the titles are its description.
    """
    alt = escape(f"{what}: " + "; ".join(filter(None, titles)), quote=True)
    figures = "".join(
        f'<img class="{kind}" alt="{alt}" src="{png_of(picture.figure(dark=kind == "dark"))}">'
        for kind in ("light", "dark")
    )
    return f'<div class="lxt lxt-image"><style>{STYLE}{_DRAWN}</style>{figures}</div>'
