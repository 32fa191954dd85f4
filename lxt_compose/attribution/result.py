"""What an attribution found: immutable, on the CPU, free of any graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..coverage import CoverageReport
from ..ledger import Ledger
from .inputs import Inputs
from .joining import join_inputs, join_layer
from .latent import Neuron

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped]

_AXES = {1: ("position",), 2: ("row", "column"), 3: ("frame", "row", "column")}


@dataclass(frozen=True, eq=False)
class Attribution:
    """The relevance of n samples. Made by :func:`attribute`; all tensors are on the CPU.

    ``relevance`` has the shape of the input, or of its embeddings [n, tokens, features] if the input is token ids; if
    several inputs carry relevance it is a dictionary of such tensors by name. Its unit is that of ``output`` [n], the
    number that is explained: summed, it gives the output less what biases, softmax and uncovered operations took (not
    for a composite with ``picture="slot"``). An input that all samples share has the sum of what they give it.
    ``target`` is the class index [n], pairs of them [n, 2] for a contrast (-1 stands for the mean of the others), or
    None if a function chose. ``latent`` is the relevance of the layers asked for, by name. ``report`` says which rule
    covered what, ``ledger`` where the relevance went (None if not asked for). ``inputs`` and ``mask`` are what
    was explained.
    """

    relevance: Tensor | dict[str, Tensor]
    output: Tensor
    target: Tensor | None
    report: CoverageReport
    latent: dict[str, Tensor] = field(default_factory=dict)
    ledger: Ledger | None = None
    inputs: dict[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None

    @classmethod
    def joined(
        cls, parts: list[dict[str, Any]], given: Inputs, report: CoverageReport, *, ledger: Ledger | None = None
    ) -> Attribution:
        """The attribution that batches add up to.

        Raises:
            AttributionError: it cannot be told which part of a layer's output belongs to which sample.
        """
        inputs, relevance = {**given.carriers, **given.ids}, join_inputs(parts, given)
        return cls(
            relevance=next(iter(relevance.values())) if len(relevance) == 1 else relevance,
            output=torch.cat([part["output"] for part in parts]),
            target=None if parts[0]["target"] is None else torch.cat([part["target"] for part in parts]),
            report=report,
            latent={layer: join_layer(layer, parts) for layer in parts[0]["latent"]},
            ledger=ledger,
            inputs={name: x.detach().cpu() for name, x in inputs.items() if name in relevance},
            mask=None if given.mask is None else given.mask.detach().cpu(),
        )

    def __len__(self) -> int:
        return len(self.output)

    @property
    def relevances(self) -> dict[str, Tensor]:
        """The relevance by the names of the inputs, also if there is only one."""
        if isinstance(self.relevance, dict):
            return self.relevance
        return {next(iter(self.inputs), "input"): self.relevance}

    @property
    def scores(self) -> Tensor | dict[str, Tensor]:
        """Relevance summed over features: one number per token [n, tokens], per pixel [n, height, width], ...

        The features are the last dimension of embeddings and of sequences [n, length, features], and dimension 1 of
        images and videos [n, channels, ...]; a table [n, features] has one score for each of its features.
        """
        scores = {name: summed(relevance) for name, relevance in self.relevances.items()}
        return scores if isinstance(self.relevance, dict) else next(iter(scores.values()))

    def patches(self, size: int | tuple[int, int]) -> Tensor:
        """The relevance of each patch of images: [n, rows, columns]; a rest at the right or below is dropped.

        Args:
            size: height and width of a patch in pixels, as one number if they are equal.

        Raises:
            ValueError: the input is no image, or smaller than a patch.
        """
        height, width = (size, size) if isinstance(size, int) else size
        scores = self.scores
        if isinstance(scores, dict) or scores.dim() != 3:
            raise ValueError("patches() is for the relevance of images, [n, channels, height, width]")
        if not (0 < height <= scores.shape[1] and 0 < width <= scores.shape[2]):
            raise ValueError(f"a patch of {height} x {width} does not fit into images of {list(scores.shape[1:])}")
        return scores.unfold(1, height, height).unfold(2, width, width).sum((-1, -2))

    def heads(self, layer: str, count: int) -> Tensor:
        """The relevance of each head, [n, tokens, heads], from that of all heads' outputs side by side.

        Args:
            layer: a name in ``latent``, usually the input of the projection after the heads (``...o_proj:input``).
            count: how many heads there are.

        Raises:
            KeyError: the layer was not asked for.
            ValueError: its features cannot be divided by the number of heads.
        """
        relevance = self._latent(layer)
        if count < 1 or relevance.shape[-1] % count:
            raise ValueError(f"{layer} has {relevance.shape[-1]} features, which {count} heads cannot share")
        return _sum(relevance.unflatten(-1, (count, -1)), -1)

    def neurons(self, k: int = 10, *, layer: str | None = None, sample: int | None = None) -> list[Neuron]:
        """The k latent units of most absolute relevance, most first; positions are summed, samples averaged.

        Args:
            k: how many.
            layer: a name in ``latent``; by default all of them are searched.
            sample: one sample alone.

        Raises:
            KeyError: the layer was not asked for.
            ValueError: no layers were asked for.
        """
        if not self.latent:
            raise ValueError("no layers were recorded: attribute(..., layers=('blocks.*.mlp',))")
        found: list[Neuron] = []
        for name in [layer] if layer is not None else self.latent:
            relevance = self._latent(name)
            relevance = relevance if sample is None else relevance[sample : sample + 1 or None]
            features = 1 if relevance.dim() == 4 else -1
            units = relevance.double().movedim(features, -1).flatten(0, -2).sum(0) / len(relevance)
            whole = float(units.abs().sum()) or 1.0
            top = units.abs().topk(min(k, len(units))).indices.tolist()
            found += [Neuron(name, unit, float(units[unit]), float(units[unit]) / whole) for unit in top]
        return sorted(found, key=lambda neuron: -abs(neuron.relevance))[:k]

    def trace(self, sample: int = 0) -> tuple[list[str], Tensor]:
        """Where the relevance of one sample is in each layer: names and scores [layers, tokens], the input first.

        Only layers that have as many positions as the input take part.

        Raises:
            ValueError: no layer has.
        """
        name, scores = next((name, summed(r)) for name, r in self.relevances.items())
        if scores.dim() != 2:
            raise ValueError("trace() is for sequences: the input has no tokens")
        rows = {name: scores[sample]}
        for layer, relevance in self.latent.items():
            if relevance.dim() == 3 and relevance.shape[:2] == scores.shape:
                rows[layer] = summed(relevance)[sample]
        if len(rows) == 1:
            raise ValueError("no layer with one position per token was recorded: attribute(..., layers=blocks(model))")
        return list(rows), torch.stack([row.to(scores.dtype) for row in rows.values()])

    def tokens(self, source: Any = None, sample: int = 0) -> list[str]:
        """The tokens of one sample without its padding, as texts.

        Args:
            source: a tokenizer (``convert_ids_to_tokens``), the tokens themselves, or None for ids and positions.
            sample: which sample.

        Raises:
            ValueError: the number of tokens given does not fit.
        """
        name, relevance = next(iter(self.relevances.items()))
        real, ids = self.real(sample), self.inputs.get(name)
        count = relevance.shape[1]
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
            raise ValueError(f"there are {len(tokens)} tokens, but scores for {count}")
        return [str(token) for token, keep in zip(tokens, real.tolist(), strict=True) if keep]

    def real(self, sample: int = 0) -> Tensor:
        """Which positions of a sample are no padding: [tokens], true or false."""
        count = next(iter(self.relevances.values())).shape[1]
        if self.mask is None or self.mask.dim() != 2 or self.mask.shape[1] != count:
            return torch.ones(count, dtype=torch.bool)
        return self.mask[sample] != 0

    def heatmap(self, tokens: Any = None, *, sample: int | None = None, **options: Any) -> Any:
        """A picture: of text for token ids, embeddings and sequences, of images for images and tables.

        If several inputs carry relevance, it is that of the first.

        Args:
            tokens: for text: a tokenizer, or the tokens of the sample (a list for each sample if all are shown).
            sample: one sample; by default all are shown.
            options: go to :func:`lxt_compose.heatmap.text` or :func:`lxt_compose.heatmap.image`.

        Raises:
            ValueError: the relevance is that of no text and no image.
        """
        from .. import heatmap

        samples = list(range(len(self))) if sample is None else [range(len(self))[sample]]
        name, relevance = next(iter(self.relevances.items()))
        if relevance.dim() == 4:
            return heatmap.image(relevance[samples], image=self.inputs[name][samples], **options)
        scores = summed(relevance)
        if relevance.dim() > 4:
            raise ValueError(f"there is no picture for relevance of shape {list(relevance.shape)}")
        if relevance.dim() <= 2:
            return heatmap.image(scores[samples].reshape(1, len(samples), -1), **options)
        own = tokens is None or hasattr(tokens, "convert_ids_to_tokens") or sample is not None
        texts = [self.tokens(tokens if own else tokens[place], index) for place, index in enumerate(samples)]
        rows = [scores[index][self.real(index)] for index in samples]
        if hasattr(tokens, "convert_ids_to_tokens"):
            options = {"scheme": heatmap.scheme_of(tokens), **options}
        if sample is not None:
            return heatmap.text(texts[0], rows[0], **options)
        return heatmap.text(texts, rows, **options)

    def to_dataframe(self, tokens: Any = None) -> DataFrame:
        """One row per score: sample, input (if several), token or place, score. Needs pandas.

        Args:
            tokens: a tokenizer, for the texts of tokens.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise ImportError("to_dataframe() needs pandas: pip install pandas") from None
        frames = []
        for name, relevance in self.relevances.items():
            scores = summed(relevance)
            axes = _AXES.get(scores.dim() - 1, tuple(f"axis{i}" for i in range(1, scores.dim())))
            places = torch.cartesian_prod(*(torch.arange(size) for size in scores.shape)).reshape(-1, scores.dim())
            columns: dict[str, Any] = {"sample": places[:, 0].numpy()}
            if isinstance(self.relevance, dict):
                columns["input"] = name
            columns.update({axis: places[:, 1 + i].numpy() for i, axis in enumerate(axes)})
            ids = self.inputs.get(name)
            if ids is not None and not ids.is_floating_point() and ids.shape == scores.shape:
                row = ids.flatten().tolist()
                columns["token"] = row if tokens is None else tokens.convert_ids_to_tokens(row)
            columns["score"] = scores.double().flatten().numpy()
            frames.append(pandas.DataFrame(columns))
        return pandas.concat(frames, ignore_index=True)

    def save(self, path: str | Path) -> None:
        """Write everything to one file that :meth:`load` reads; it holds tensors, numbers and texts alone."""
        from .storage import save

        save(self, Path(path))

    @staticmethod
    def load(path: str | Path) -> Attribution:
        """Read what :meth:`save` wrote; no code of the file is run, whoever wrote it.

        Raises:
            ValueError: it is no such file.
        """
        from .storage import load

        return load(Path(path))

    def _latent(self, layer: str) -> Tensor:
        try:
            return self.latent[layer]
        except KeyError:
            known = ", ".join(self.latent) or "none"
            raise KeyError(f"no relevance of {layer!r} was recorded; layers: {known}") from None

    def __repr__(self) -> str:
        shapes = {name: list(r.shape) for name, r in self.relevances.items()}
        whole = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        layers = f", {len(self.latent)} layers" if self.latent else ""
        covered = "complete" if self.report.complete else "NOT complete"
        return f"<Attribution: {whole}{layers}, {covered}>"

    def _repr_html_(self) -> str:
        try:
            shown = self.heatmap(sample=0 if next(iter(self.relevances.values())).dim() == 3 else None)._repr_html_()
        except (ValueError, ImportError):
            from html import escape

            shown = f"<p>{escape(repr(self))}</p>"
        return f"<div>{shown}{self.report._repr_html_()}</div>"


def summed(relevance: Tensor) -> Tensor:
    """Relevance summed over features; see :attr:`Attribution.scores`."""
    if relevance.dim() <= 2:
        return relevance
    return _sum(relevance, -1 if relevance.dim() == 3 else 1)


def _sum(relevance: Tensor, dim: int) -> Tensor:
    """A sum that does not lose in 16 bits what it adds up."""
    short = relevance.dtype in (torch.float16, torch.bfloat16)
    return relevance.sum(dim, dtype=torch.float32 if short else None)
