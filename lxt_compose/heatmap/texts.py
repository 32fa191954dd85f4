"""Text with the relevance of its tokens: as HTML, for a terminal, as a figure."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

from .colors import AGAINST, FOR, STRONGEST, over, scale_of, strength
from .layout import draw_texts
from .picture import DARK, LIGHT, STYLE, Picture, headings, number, numbers_of, tip_of, visible
from .tokens import Piece, Sentence, pieces_of, words_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_STYLE = """
.lxt-text p{white-space:pre-wrap;line-height:2;margin:.3em 0;max-width:62rem;overflow-wrap:anywhere}
.lxt-text .t{padding:.16em .03em;border-radius:.22em;box-decoration-break:clone;-webkit-box-decoration-break:clone}
.lxt-text .s{font-size:.78em;border:1px solid var(--line);padding:.05em .3em}
.lxt-text .m{box-shadow:0 0 0 1.5px currentColor}
.lxt-text .one+.one{border-top:1px solid var(--line);margin-top:.8em;padding-top:.5em}
.lxt-text .name{font-weight:600;margin:.4em 0 0}
"""
_QUIET = 0.04
# Of the 256 colors of a terminal, by (dark, positive), from weak to strong.
_RAMPS = {
    (True, True): (52, 88, 124, 160),
    (True, False): (17, 18, 19, 26),
    (False, True): (224, 217, 210, 203),
    (False, False): (189, 153, 111, 75),
}


def text(
    tokens: Any,
    scores: Any,
    *,
    titles: str | Sequence[str] | None = None,
    words: bool = False,
    scheme: str | None = None,
    special: Sequence[str] = (),
    limit: float | None = None,
    shared: bool = False,
    marked: Sequence[Sequence[int]] | None = None,
) -> TextHeatmap:
    """Return text colored by relevance: red speaks for the target, blue against it.

    Word pieces of one word stand together, each with its own color. The scale is symmetric around 0.

    Args:
        tokens: the tokens of a text, as the tokenizer names them, or plain words; a list of such lists for several.
        scores: a number for each token; any unit.
        titles: a heading for each text.
        words: whether to add up the pieces of each word.
        scheme: how word pieces are marked (see :func:`guess_scheme`); None guesses.
        special: tokens that stand for no text, besides the usual ones.
        limit: the score of full color; by default the largest absolute score of each text.
        shared: whether all texts share one scale.
        marked: for each text the numbers of tokens that are framed.

    Raises:
        TypeError: tokens or titles are no texts, or scores no numbers.
        ValueError: there is not one finite score for each token, or marks are not for each text.
    """
    if isinstance(tokens, str) or not isinstance(tokens, Iterable):
        raise TypeError(f"tokens must be a list of texts, or several such lists, got {tokens!r}")
    tokens = list(tokens)
    several = len(tokens) > 0 and isinstance(tokens[0], (list, tuple))
    all_tokens = [list(row) for row in tokens] if several else [tokens]
    rows = [_numbers(row) for row in scores] if several else [_numbers(scores)]
    if len(all_tokens) != len(rows):
        raise ValueError(f"there are {len(all_tokens)} texts, but {len(rows)} rows of scores")
    heads = headings(titles, len(rows))
    if shared and limit is None:
        limit = scale_of(value for row in rows for value in row)
    options = {"words": words, "scheme": scheme, "special": special, "limit": limit}
    sentences = [_sentence(*one, **options) for one in zip(all_tokens, rows, heads, strict=True)]  # type: ignore[arg-type]
    if marked is not None:
        if len(marked) != len(sentences):
            raise ValueError(f"there are {len(sentences)} texts, but marks for {len(marked)}")
        pairs = zip(sentences, marked, strict=True)
        sentences = [replace(sentence, marked=frozenset(mine)) for sentence, mine in pairs]
    return TextHeatmap(tuple(sentences))


def _numbers(scores: Any) -> list[float]:
    values = numbers_of(scores, "scores")
    if values.dim() != 1:
        raise ValueError(f"a text has one score for each token, got scores of shape {list(values.shape)}")
    return [float(value) for value in values]


def _sentence(
    tokens: list[str],
    scores: list[float],
    title: str,
    *,
    words: bool,
    scheme: str | None,
    special: Sequence[str],
    limit: float | None,
) -> Sentence:
    if not all(isinstance(token, str) for token in tokens):
        raise TypeError(f"tokens must be texts, got {next(t for t in tokens if not isinstance(t, str))!r}")
    if len(tokens) != len(scores):
        raise ValueError(f"there are {len(tokens)} tokens, but {len(scores)} scores")
    pieces = pieces_of(tokens, scheme=scheme, special=special)
    if words:
        pieces = words_of(pieces)
    added = [sum(scores[number] for number in piece.tokens) for piece in pieces]
    return Sentence(tuple(pieces), tuple(added), scale_of(added, limit), title, tuple(tokens))


@dataclass(frozen=True, repr=False)
class TextHeatmap(Picture):
    """Texts with the relevance of their tokens; made by :func:`text`."""

    sentences: tuple[Sentence, ...]

    def html(self) -> str:
        """Return the texts as HTML; the pointer on a token shows its score."""
        shared = self.scale is not None
        parts = []
        for sentence in self.sentences:
            title = f'<div class="name">{escape(visible(sentence.title))}</div>' if sentence.title else ""
            spans = (_span(sentence, *pair) for pair in zip(sentence.pieces, sentence.scores, strict=True))
            own = "" if shared else legend(sentence.scale)
            parts.append(f'<div class="one">{title}<p dir="auto">{"".join(spans)}</p>{own}</div>')
        parts += [legend(self.scale)] if self.scale is not None else []
        return f'<div class="lxt lxt-text"><style>{STYLE}{_STYLE}</style>{"".join(parts)}</div>'

    @property
    def scale(self) -> float | None:
        """The score of full color, None if that differs from text to text."""
        scales = {sentence.scale for sentence in self.sentences}
        return scales.pop() if len(scales) == 1 else None

    def ansi(self, *, dark: bool | None = None, colors: int | None = None) -> str:
        """Return the texts for a terminal, colored by escape sequences; control characters in tokens are harmless.

        Args:
            dark: whether the terminal is dark; None looks at ``COLORFGBG``, and takes it for dark if that is not set.
            colors: 256 or 2**24; None looks at ``COLORTERM``.
        """
        dark = _is_dark(os.environ) if dark is None else dark
        if colors is None:
            colors = 2**24 if os.environ.get("COLORTERM", "") in ("truecolor", "24bit") else 256
        lines = []
        for sentence in self.sentences:
            lines += [visible(sentence.title)] if sentence.title else []
            shown = ""
            for piece, score in zip(sentence.pieces, sentence.scores, strict=True):
                value, body = strength(score, sentence.scale), visible(piece.text)
                if abs(value) >= _QUIET:
                    body = f"{_ansi(value, dark, colors)}{body}\x1b[0m"
                if sentence.stands_out(piece):
                    body = f"\x1b[4m{body}\x1b[0m"
                shown += "\n" * piece.lines + (" " if piece.space and not piece.lines else "") + body
            lines.append(shown)
        return "\n".join(lines)

    def __str__(self) -> str:
        """Return a plain table: score, bar and token on each line."""
        lines: list[str] = []
        for sentence in self.sentences:
            lines += [visible(sentence.title)] if sentence.title else []
            for piece, score in zip(sentence.pieces, sentence.scores, strict=True):
                size = round(abs(strength(score, sentence.scale)) * 10)
                bar = ("-" * size).rjust(10) + "|" if score < 0 else " " * 10 + "|" + "+" * size
                lines.append(f"{number(score):>11} {bar:<21} {visible(piece.label)}".rstrip())
        return "\n".join(lines)

    def __repr__(self) -> str:
        texts, pieces = len(self.sentences), sum(len(sentence.pieces) for sentence in self.sentences)
        return f"<TextHeatmap: {texts} text{'s' * (texts != 1)}, {pieces} piece{'s' * (pieces != 1)}>"

    def figure(self, *, dark: bool = False) -> Figure:
        """Return the texts as a figure of 7 inches width."""
        return draw_texts(self.sentences, self.scale, dark=dark)


def _span(sentence: Sentence, piece: Piece, score: float) -> str:
    before = "<br>" * piece.lines + (" " if piece.space and not piece.lines else "")
    tip = tip_of(sentence.raw(piece), score)
    kind = " ".join(["t", *["s"] * piece.special, *["m"] * sentence.stands_out(piece)])
    color = rgba(strength(score, sentence.scale))
    body = escape(visible(piece.text))
    return f'{before}<span class="{kind}" style="background:{color}" data-tip="{tip}">{body}</span>'


def rgba(value: float) -> str:
    """Return the color of a value from -1 to 1 for CSS; little relevance lets the background through."""
    red, green, blue = FOR if value > 0 else AGAINST
    return f"rgba({red},{green},{blue},{abs(value) * STRONGEST:.3f})"


def legend(scale: float) -> str:
    """Return the meaning of the colors, as HTML."""
    bar = f"linear-gradient(90deg,{rgba(-1)},{rgba(-1e-9)} 50%,{rgba(1)})"
    low, high = number(-scale), number(scale)
    return f'<div class="key">against {low}<i style="background:{bar}"></i>{high} for</div>'


def _is_dark(environment: Mapping[str, str]) -> bool:
    background = environment.get("COLORFGBG", "").rpartition(";")[2]
    return not background.isdigit() or int(background) not in (7, *range(9, 16))


def _ansi(value: float, dark: bool, colors: int) -> str:
    """Return the escape sequence that switches a terminal to the colors of a value from -1 to 1."""
    background, ink = DARK if dark else LIGHT
    if colors > 256:
        return f"\x1b[38;2;{';'.join(map(str, ink))};48;2;{';'.join(map(str, over(background, value)))}m"
    ramp = _RAMPS[dark, value > 0]
    return f"\x1b[38;5;{231 if dark else 16};48;5;{ramp[min(int(abs(value) * len(ramp)), len(ramp) - 1)]}m"
