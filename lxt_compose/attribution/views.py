"""An attribution to look at: as a picture, in a notebook, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped]

    from .result import Attribution


_AXES = {1: ("position",), 2: ("row", "column"), 3: ("frame", "row", "column")}
_SHOWN = 8


def picture(found: Attribution, samples: Sequence[int], tokens: Any, *, alone: bool, **options: Any) -> Any:
    """The heatmap of some samples of the first input; see :meth:`Attribution.heatmap`.

    Args:
        found: the attribution.
        samples: their numbers.
        tokens: a tokenizer, the tokens of the one sample, or a list of them for each.
        alone: whether it is one sample that was asked for by its number.
        options: of the heatmap.

    Raises:
        ValueError: the relevance is that of no text and no image, or the tokens do not fit.
    """
    from .. import heatmap

    name, relevance = next(iter(found.relevances.items()))
    if relevance.dim() == 4:
        return heatmap.image(relevance[samples], image=found.inputs[name][samples], **options)
    if relevance.dim() > 4:
        raise ValueError(f"there is no picture for relevance of shape {list(relevance.shape)}")
    scores = found._scores(name)
    if relevance.dim() <= 2:
        return heatmap.image(scores[samples].reshape(1, len(samples), -1), **options)
    is_tokenizer = hasattr(tokens, "convert_ids_to_tokens")
    if not (tokens is None or is_tokenizer or alone) and len(tokens) != len(samples):
        raise ValueError(f"there are {len(samples)} samples, but lists of tokens for {len(tokens)}")
    own = tokens is None or is_tokenizer or alone
    texts = [found.tokens(tokens if own else tokens[place], index) for place, index in enumerate(samples)]
    rows = [scores[index][found.real(index)] for index in samples]
    if is_tokenizer:
        options = {"scheme": heatmap.scheme_of(tokens), **options}
    if len(found) > 1 and not alone:
        options = {"titles": [f"sample {index}" for index in samples], **options}
    return heatmap.text(texts[0], rows[0], **options) if alone else heatmap.text(texts, rows, **options)


def html_of(found: Attribution) -> str:
    """What a notebook shows: the first samples and the coverage."""
    more = f"<p>and {len(found) - _SHOWN} more samples</p>" if len(found) > _SHOWN else ""
    try:
        shown = picture(found, range(len(found))[:_SHOWN], None, alone=False)._repr_html_() + more
    except (ValueError, ImportError):
        shown = f"<p>{escape(repr(found))}</p>"
    return f'<div>{shown}<div style="overflow-x:auto">{found.report._repr_html_()}</div></div>'


def dataframe(found: Attribution, tokens: Any) -> DataFrame:
    """One row per score; see :meth:`Attribution.to_dataframe`.

    Raises:
        ImportError: pandas is not installed.
        TypeError: what is given is no tokenizer.
    """
    try:
        import pandas
    except ImportError:
        raise ImportError("to_dataframe() needs pandas: pip install pandas") from None
    if not (tokens is None or hasattr(tokens, "convert_ids_to_tokens")):
        raise TypeError(f"to_dataframe() takes a tokenizer, got {type(tokens).__name__}")
    frames = []
    for name in found.relevances:
        scores = found._scores(name)
        axes = _AXES.get(scores.dim() - 1, tuple(f"axis{i}" for i in range(1, scores.dim())))
        places = torch.cartesian_prod(*(torch.arange(size) for size in scores.shape)).reshape(-1, scores.dim())
        columns: dict[str, Any] = {"sample": places[:, 0].numpy()}
        if isinstance(found.relevance, dict):
            columns["input"] = name
        columns.update({axis: places[:, 1 + i].numpy() for i, axis in enumerate(axes)})
        ids = found.inputs.get(name)
        if ids is not None and not ids.is_floating_point() and ids.shape == scores.shape:
            row = ids.flatten().tolist()
            columns["token"] = row if tokens is None else tokens.convert_ids_to_tokens(row)
        columns["score"] = scores.double().flatten().numpy()
        frames.append(pandas.DataFrame(columns))
    return pandas.concat(frames, ignore_index=True)
