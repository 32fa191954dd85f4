"""Views of an attribution: as a picture, in a notebook, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..extras import needed
from .axes import BATCH, Dims, kept_dims, place_of, total
from .data import AttributionData, shown_target

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped]


_COLUMNS = {"height": "row", "width": "column", "token": "position", "feature": "position"}
_SHOWN, _SLICES, _FEW = 8, 8, 4
_GRIDS = ("height", "width"), ("frequency", "time"), ("time", "frequency")
_STACKS = ("frame", "depth", "image")


def picture(
    found: AttributionData, samples: Sequence[int], tokens: Any, *, alone: bool, name: str | None = None, **options: Any
) -> Any:
    """Return the heatmap of some samples; see :meth:`Attribution.heatmap`.

    Args:
        found: the attribution.
        samples: their numbers.
        tokens: a tokenizer, the tokens of the one sample, or a list of them for each; or names of features or nodes.
        alone: whether one sample was asked for by its number.
        name: the input; None is the first of each kind, or those with tokens if there are ``tokens``.
        options: of the heatmap.

    Raises:
        KeyError: there is no such input.
        ValueError: there is no picture for the dimensions, they are not known, or the tokens do not fit.
    """
    from .. import heatmap

    found._check_input(name)
    names = list(found._main) if name is None else [name]
    of_text = [name for name in names if "token" in found.dims_of(name)]
    if tokens is not None and len(names) > 1 and of_text:
        names = of_text if hasattr(tokens, "convert_ids_to_tokens") else of_text[:1]
    names = list({found.dims_of(name): name for name in reversed(names)}.values())[::-1]  # the first of each kind
    pictures = [_picture(found, name, samples, tokens, alone=alone, **options) for name in names]
    return pictures[0] if len(pictures) == 1 else heatmap.several(pictures, titles=names)


def _picture(
    found: AttributionData, name: str, samples: Sequence[int], tokens: Any, *, alone: bool, **options: Any
) -> Any:
    """Return the picture of one input."""
    from .. import heatmap

    scores, dims = found._per_sample(name), tuple(dim for dim in kept_dims(found.dims_of(name)) if dim != BATCH)
    samples = samples if len(scores) == len(found) else [0]
    titles = [] if alone or len(scores) == 1 else [found.title_of(index) for index in samples]
    named: dict[str, Any] = {"titles": titles, **options} if titles else options
    whole = found.dims_of(name)
    if dims == ("time",) and "mel" in whole:
        return heatmap.image(
            _spectrogram(found.relevances[name], whole)[samples][:, None], **_over(found, name, samples, named)
        )
    if dims in _GRIDS:
        return heatmap.image(scores[samples][:, None], **_over(found, name, samples, named))
    if len(dims) == 3 and dims[1:] in _GRIDS:
        return _slices(found, name, scores, dims, samples, titles, options)
    if dims == ("time",):
        signal = found.inputs.get(name)
        below = None if signal is None else _signals(signal, whole)[samples]
        return heatmap.series(scores[samples], below, **named)
    if "token" in dims and len(dims) <= 2 and found.relevances[name].dim() > 2:
        return _texts(found, name, scores, dims, samples, tokens, alone=alone, **options)
    if len(dims) == 1 and (tokens is not None or dims[0] not in ("feature", "token", "column")):
        labels = [f"{dims[0]} {place}" for place in range(scores.shape[1])] if tokens is None else list(tokens)
        return heatmap.bars(labels, scores[samples], **named)
    if len(dims) <= 1:
        return heatmap.image(scores[samples].reshape(1, len(samples), -1), **options)
    if len(dims) == 2:
        return heatmap.image(scores[samples][:, None], **options)
    raise ValueError(f"there is no picture for the dimensions {' '.join(whole)} of {name}; its scores are in .scores")


def _over(found: AttributionData, name: str, samples: Sequence[int], options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with the input under the relevance, unless another is given or a place has several values."""
    below = found.inputs.get(name)
    dims = found.dims_of(name)
    if "image" in options or below is None or below.dim() != len(dims):
        return options
    shown = _spectrogram(below, dims) if "mel" in dims else _upright(below, dims)
    return {"image": shown[samples][:, None], **options}  # one channel: three images might else be colors


def _upright(values: Tensor, dims: Dims) -> Tensor:
    """Return the mean over channels, samples first."""
    kept = kept_dims(dims)
    gone = [place for place, dim in enumerate(dims) if dim not in kept]
    found = values.double().mean(gone) if gone else values
    batch = place_of(tuple(dim for dim in dims if dim in kept), BATCH)
    return found[None] if batch is None else found.movedim(batch, 0)


def _spectrogram(values: Tensor, dims: Dims) -> Tensor:
    """Return [n, mel, time], low bins at the bottom."""
    others = [place for place, dim in enumerate(dims) if dim not in (BATCH, "mel", "time")]
    values = total(values, others) if others else values
    rest = tuple(dim for place, dim in enumerate(dims) if place not in others)
    values, rest = (values, rest) if BATCH in rest else (values[None], (BATCH, *rest))
    return values.permute(rest.index(BATCH), rest.index("mel"), rest.index("time")).flip(1)


def _signals(values: Tensor, dims: Dims) -> Tensor:
    """Return [n, channels, time] of a series."""
    values, dims = (values, dims) if BATCH in dims else (values[None], (BATCH, *dims))
    values = values.movedim((dims.index(BATCH), dims.index("time")), (0, -1))
    return values.flatten(1, -2) if values.dim() > 2 else values[:, None]


def _slices(
    found: AttributionData, name: str, scores: Tensor, dims: Dims, samples: Sequence[int], titles: list[str],
    options: dict[str, Any],
) -> Any:  # fmt: skip
    """Return a row of frames or slices for each sample, on one scale; evenly spaced ones if there are many."""
    from .. import heatmap

    count = scores.shape[1]
    places = torch.linspace(0, count - 1, min(count, _SLICES)).round().long().tolist()
    heads = titles or [""] * len(samples)
    named = [f"{head}\n{dims[0]} {place}".strip() for head in heads for place in places]
    own, below = "image" not in options, _over(found, name, samples, options).get("image")
    if below is not None:
        below = torch.as_tensor(below)
        options = {**options, "image": below[:, 0, places].reshape(-1, 1, *below.shape[-2:]) if own else below}
    maps = scores[samples][:, places].flatten(0, 1)[:, None]
    return heatmap.image(maps, **{"titles": named, "columns": len(places), "shared": True, **options})


def _texts(
    found: AttributionData, name: str, scores: Tensor, dims: Dims, samples: Sequence[int], tokens: Any, *, alone: bool,
    **options: Any,
) -> Any:  # fmt: skip
    """Return texts of token ids, embeddings and sequences; one for each choice if there are several."""
    from .. import heatmap

    is_tokenizer = hasattr(tokens, "convert_ids_to_tokens")
    if is_tokenizer:
        options = {"scheme": heatmap.scheme_of(tokens), **options}
    if len(dims) == 2:
        return _nested(found, name, scores, dims, samples, tokens if is_tokenizer else None, options)
    of_all = len(found.target_names) == len(found) and all(isinstance(token, str) for token in tokens or ())
    if not (tokens is None or is_tokenizer or alone or of_all) and len(tokens) != len(samples):
        raise ValueError(f"there are {len(samples)} samples, but lists of tokens for {len(tokens)}")
    own = tokens is None or is_tokenizer or alone or of_all
    texts = [tokens_of(found, name, index, tokens if own else tokens[place]) for place, index in enumerate(samples)]
    rows = [scores[index][found.real(index, input=name)] for index in samples]
    if len(found) > 1 and not alone:
        options = {"titles": [found.title_of(index) for index in samples], **options}
    return heatmap.text(texts[0], rows[0], **options) if alone else heatmap.text(texts, rows, **options)


def _nested(
    found: AttributionData, name: str, scores: Tensor, dims: Dims, samples: Sequence[int], tokenizer: Any,
    options: dict[str, Any],
) -> Any:  # fmt: skip
    """Return a text for each choice or sequence of each sample."""
    from .. import heatmap

    ids, outer = found.inputs.get(name), dims[0]
    texts, rows, titles = [], [], []
    for index in samples:
        for number, row in enumerate(scores[index]):
            known = ids is not None and not ids.is_floating_point() and ids.shape == scores.shape
            given = ids[index, number].tolist() if known and ids is not None else list(range(len(row)))
            texts.append([str(i) for i in given] if tokenizer is None else list(tokenizer.convert_ids_to_tokens(given)))
            rows.append(row)
            titles.append(f"{found.title_of(index)}, {outer} {number}")
    return heatmap.text(texts, rows, **{"titles": titles, **options})


def tokens_of(found: AttributionData, name: str, sample: int, source: Any) -> list[str]:
    """Return the tokens of one sample of an input without its padding; see :meth:`Attribution.tokens`.

    Raises:
        ValueError: the number of tokens given does not fit.
    """
    real, ids, count = found.real(sample, input=name), found.inputs.get(name), found._per_sample(name).shape[1]
    if source is not None and not hasattr(source, "convert_ids_to_tokens"):
        tokens = list(source)
        if len(tokens) == int(real.sum()) != count:
            return tokens
    elif ids is None or ids.is_floating_point():
        tokens = [str(position) for position in range(count)]
    else:
        row = ids[sample].tolist()
        tokens = [str(i) for i in row] if source is None else list(source.convert_ids_to_tokens(row))
    if len(tokens) != count:
        without = f", {int(real.sum())} of them no padding" if not real.all() else ""
        raise ValueError(f"the number of tokens is {len(tokens)}, but there are scores for {count}{without}")
    return [str(token) for token, keep in zip(tokens, real.tolist(), strict=True) if keep]


def repr_of(found: AttributionData) -> str:
    """Return one line: shapes, what was explained and its value, layers, coverage."""
    whole = ", ".join(f"{name} {list(r.shape)}" for name, r in found._main.items())
    layers = f", {len(found.latent)} layers" if found.latent else ""
    covered = "complete" if found.report.complete else "NOT complete"
    target = "chosen by a function" if found.target is None else _few(list(map(shown_target, found.target.tolist())))
    numbers = _few([float(f"{value:.4g}") for value in found.output.tolist()])
    return f"<Attribution: {whole}, target {target}, output {numbers}{layers}, {covered}>"


def _few(values: list[Any]) -> str:
    """Return some values to print: all of them if they are few."""
    more = f", ... {len(values)} in all" if len(values) > _FEW else ""
    return ", ".join(str(value) for value in values[:_FEW]) + more


def html_of(found: AttributionData) -> str:
    """Return the HTML for a notebook: the first samples and the coverage."""
    more = f"<p>and {len(found) - _SHOWN} more samples</p>" if len(found) > _SHOWN else ""
    try:
        shown = picture(found, range(len(found))[:_SHOWN], None, alone=False)._repr_html_() + more
    except (ValueError, ImportError) as error:
        shown = f"<p>{escape(repr(found))}</p><p>{escape(str(error))}</p>"
    return f'<div>{shown}<div style="overflow-x:auto">{found.report._repr_html_()}</div></div>'


def dataframe(found: AttributionData, tokens: Any) -> DataFrame:
    """Return one row per score; see :meth:`Attribution.to_dataframe`.

    Raises:
        ImportError: pandas is not installed.
        TypeError: tokens are neither a tokenizer nor names.
        ValueError: there are more or fewer names than places.
    """
    pandas = needed("pandas", "to_dataframe() needs pandas: pip install pandas")
    is_tokenizer = hasattr(tokens, "convert_ids_to_tokens")
    if isinstance(tokens, str) or not (tokens is None or is_tokenizer or isinstance(tokens, Sequence)):
        raise TypeError(f"to_dataframe() takes a tokenizer, got {type(tokens).__name__}")
    frames = []
    for name in found._main:
        scores = found._per_sample(name)
        dims = tuple(dim for dim in kept_dims(found.dims_of(name)) if dim != BATCH)
        places = torch.cartesian_prod(*(torch.arange(size) for size in scores.shape)).reshape(-1, scores.dim())
        turns = len(found.target_names) or 1
        columns: dict[str, Any] = {"sample": (places[:, 0] // turns).numpy()}
        if found.target_names:
            columns["target"] = [found.target_names[row % turns] for row in places[:, 0].tolist()]
        if isinstance(found.relevance, dict):
            columns["input"] = name
        columns.update({_column(dims, i): places[:, 1 + i].numpy() for i in range(len(dims))})
        ids = found.inputs.get(name)
        if ids is not None and not ids.is_floating_point() and ids.shape == scores.shape:
            columns["token"] = _labels(ids, tokens) if is_tokenizer else ids.flatten().tolist()
        if tokens is not None and not is_tokenizer:
            columns["name"] = _named(tokens, name, scores, places)
        columns["score"] = scores.double().flatten().numpy()
        frames.append(pandas.DataFrame(columns))
    return pandas.concat(frames, ignore_index=True)


def _labels(ids: Tensor, tokenizer: Any) -> list[str]:
    """Return the text of each id; ids that only together are a character all have it."""
    from ..heatmap.tokens import labels_of, scheme_of

    texts = map(tokenizer.convert_ids_to_tokens, ids.reshape(-1, ids.shape[-1]).tolist())
    return [label for text in texts for label in labels_of(text, scheme=scheme_of(tokenizer))]


def _column(dims: Dims, place: int) -> str:
    """Return the name of a dimension's column; a second one of the same name gets a number."""
    name = _COLUMNS.get(dims[place], dims[place])
    before = dims[:place].count(dims[place])
    return f"{name}{before + 1}" if before else name


def _named(names: Any, name: str, scores: Tensor, places: Tensor) -> list[str]:
    """Return the name of the last dimension's place in each row."""
    if len(names) != scores.shape[-1]:
        raise ValueError(f"there are {len(names)} names, but {name} has scores for {scores.shape[-1]}")
    return [str(names[place]) for place in places[:, -1].tolist()]
