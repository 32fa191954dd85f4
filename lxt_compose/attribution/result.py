"""The result of an attribution: immutable, on the CPU, free of any graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .axes import BATCH, UNKNOWN, kept_dims, total
from .data import AttributionData
from .inputs import pair
from .latent import Neuron, top_units
from .storage import load, save
from .views import dataframe, html_of, picture, repr_of, tokens_of

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped]


@dataclass(frozen=True, eq=False)
class Attribution(AttributionData):
    """The relevance of n samples. Made by :func:`attribute`; all tensors are on the CPU.

    ``relevance`` has the shape of the input, or of its embeddings [n, tokens, features] if the input is token ids; if
    several inputs carry relevance it is a dictionary of such tensors by name. ``beside`` is the relevance of integers
    that were given beside them and were looked up too (positions, token types). With several targets there is one row
    for each sample and target, with ``target_names``. Its unit is that of ``output`` [n], the number that is explained:
    summed, it gives the output less what biases, softmax and uncovered operations took (not for a composite with
    ``picture="slot"``). An input that all samples share has the sum of their relevance. ``target`` is the class index
    [n], pairs of them [n, 2] for a contrast (-1 stands for the mean of the others), or None if a function chose.
    ``latent`` is the relevance of the layers asked for, by name. ``report`` says which rule covered what, ``ledger``
    where the relevance went (None if not asked for). ``inputs`` are the explained inputs, ``mask`` tells real tokens of
    the first of them from padding. ``dims`` names the dimensions of the relevance of each input, such as ``("batch",
    "channel", "time")``, and of each layer. ``ran`` says how the model
    ran: "eager", registered, or "one graph" (``attribute(..., traced=)``).
    """

    def patches(self, size: int | tuple[int, int]) -> Tensor:
        """Return the relevance of each patch of images, [n, rows, columns]; incomplete patches at the edge are dropped.

        Args:
            size: height and width of a patch in pixels, as one number if they are equal.

        Raises:
            TypeError: the size is neither a whole number nor two of them.
            ValueError: the input is no image, or smaller than a patch.
        """
        height, width = pair(size)
        names = [name for name in self.relevances if kept_dims(self.dims_of(name)) == (BATCH, "height", "width")]
        if not names:
            raise ValueError("patches() is for the relevance of images, [n, channels, height, width]")
        scores = self._scores(names[0])
        if not (0 < height <= scores.shape[1] and 0 < width <= scores.shape[2]):
            raise ValueError(f"a patch of {height} x {width} does not fit into images of {list(scores.shape[1:])}")
        return scores.unfold(1, height, height).unfold(2, width, width).sum((-1, -2))

    def heads(self, layer: str, count: int) -> Tensor:
        """Return the relevance of each head, [n, tokens, heads], from that of all heads' outputs side by side.

        Args:
            layer: a name in ``latent``, usually the input of the projection after the heads (``...o_proj:input``).
            count: how many heads there are.

        Raises:
            KeyError: the layer was not asked for.
            ValueError: its features cannot be divided by the number of heads.
        """
        relevance = self._latent(layer)
        if isinstance(count, bool) or not isinstance(count, int) or count < 1 or relevance.shape[-1] % count:
            raise ValueError(f"{layer} has {relevance.shape[-1]} features, which {count!r} heads cannot share")
        return total(relevance.unflatten(-1, (count, -1)), -1)

    def neurons(self, k: int = 10, *, layer: str | None = None, sample: int | None = None) -> list[Neuron]:
        """Return the k latent units of most absolute relevance, most first; positions are summed, samples averaged.

        Args:
            k: how many, from 1 on.
            layer: a name in ``latent``; by default all of them are searched.
            sample: one sample alone.

        Raises:
            KeyError: the layer was not asked for.
            IndexError: there is no such sample.
            ValueError: no layers were asked for, or k is no whole number from 1 on.
        """
        if not self.latent:
            raise ValueError("no layers were recorded: attribute(..., layers=('blocks.*.mlp',))")
        layers = self.latent if layer is None else {layer: self._latent(layer)}
        dims = {name: self.dims_of(name) for name in layers}
        return top_units(layers, dims, k, len(self), None if sample is None else self._place(sample))

    def trace(self, sample: int = 0) -> tuple[list[str], Tensor]:
        """Return the relevance of one sample in each layer: names and scores [layers, tokens], the input first.

        Only layers that have as many positions as the input take part.

        Raises:
            IndexError: there is no such sample.
            ValueError: no layer has.
        """
        sample, names = self._place(sample), self._sequences("trace()")
        for name in names:
            scores = self._per_sample(name)
            rows = {name: scores[sample]}
            for layer in self.latent:
                dims = self.dims_of(layer)
                if UNKNOWN not in dims and len(dims) > 2 and self._per_sample(layer).shape == scores.shape:
                    rows[layer] = self._per_sample(layer)[sample]
            if len(rows) > 1:
                return list(rows), torch.stack([row.to(scores.dtype) for row in rows.values()])
        raise ValueError("no layer with one position per token was recorded: attribute(..., layers=blocks(model))")

    def tokens(self, source: Any = None, sample: int = 0, *, input: str | None = None) -> list[str]:
        """Return the tokens of one sample without its padding, as texts.

        Args:
            source: a tokenizer (``convert_ids_to_tokens``), the tokens themselves, or None for ids and positions.
            sample: which sample.
            input: the name of an input, if several are sequences; by default the first that has tokens.

        Raises:
            IndexError: there is no such sample.
            ValueError: the number of tokens given does not fit, or the input is no sequence.
        """
        return tokens_of(self, self._sequences("tokens()", input)[0], self._place(sample), source)

    def heatmap(
        self, tokens: Any = None, *, sample: int | None = None, input: str | None = None, **options: Any
    ) -> Any:
        """Return a picture, whose kind depends on the dimensions.

        Text for tokens, lines for a series, images for images, spectrograms and tables, slices of volumes, frames of
        videos, bars for nodes and named features.

        Args:
            tokens: for text: a tokenizer, or the tokens of the sample (a list for each sample if all are shown). For
                tables and nodes: their names.
            sample: one sample; by default all are shown.
            input: the name of an input, if several carry relevance. By default the first of each kind is shown (an
                image and a text, say), or only those that have tokens if there are ``tokens``.
            options: go to :func:`lxt_compose.heatmap.text`, :func:`~lxt_compose.heatmap.image` (whose ``image`` may
                replace the input under the relevance), :func:`~lxt_compose.heatmap.series` or
                :func:`~lxt_compose.heatmap.bars`. Several texts are called by the numbers of their samples, unless
                ``titles`` are given.

        Raises:
            IndexError: there is no such sample.
            KeyError: there is no such input.
            ValueError: it is not known what the dimensions are, or there is no picture for them.
        """
        samples = range(len(self)) if sample is None else [self._place(sample)]
        return picture(self, samples, tokens, alone=sample is not None, name=input, **options)

    def to_dataframe(self, tokens: Any = None) -> DataFrame:
        """Return one row per score: sample, input (if several), token or place, score. Needs pandas.

        The columns of places are called by the dimensions: ``position`` of tokens and features, ``row`` and ``column``
        of pixels, ``time``, ``frame``, ``depth``, ``node``, ... A column of numbers that one of several inputs lacks is
        of type ``Int64``, with ``<NA>`` there.

        Args:
            tokens: a tokenizer, for the texts of tokens; or the names of a table's features or of nodes.

        Raises:
            ImportError: pandas is not installed.
            ValueError: it is not known what the dimensions are, or names do not fit.
        """
        table = dataframe(self, tokens)
        # Where one input leaves gaps, pandas has made decimals of the ids and places of the others.
        places = [name for name in table if name != "score" and table[name].dtype.kind == "f"]
        return table.astype(dict.fromkeys(places, "Int64"))

    def save(self, path: str | Path) -> None:
        """Write everything to one file that :meth:`load` reads; it holds tensors, numbers and texts alone.

        Raises:
            FileNotFoundError: the folder does not exist.
        """
        from ..heatmap.picture import writable

        save(self, writable(path))

    @staticmethod
    def load(path: str | Path) -> Attribution:
        """Read what :meth:`save` wrote; no code in the file is run.

        Raises:
            ValueError: it is no such file.
        """
        return Attribution(**load(Path(path)))

    def _latent(self, layer: str) -> Tensor:
        try:
            return self.latent[layer]
        except KeyError:
            known = ", ".join(self.latent) or "none"
            raise KeyError(f"no relevance of {layer!r} was recorded; layers: {known}") from None

    def __repr__(self) -> str:
        return repr_of(self)

    def _repr_html_(self) -> str:
        return html_of(self)
