"""Relevance of weights, streamed over a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.entry import read
from ..attribution.inputs import Inputs
from ..attribution.latent import Layer, find_layers
from ..attribution.run import composite_of, statistics_kept
from ..composite import Composite
from ..errors import AttributionError, MatchError
from ..rules import GRADIENT
from ..torch_internals import run_with_weight
from .notebooks import html_of
from .passes import Caught, PlacesRun
from .units import Place, Units

AGGREGATES: dict[str, Callable[[Tensor], Tensor]] = {"sum": lambda x: x, "absolute": torch.abs, "norm": torch.square}
"""Functions that are applied to weights, inputs and slots before these are multiplied and summed."""


@dataclass(frozen=True, eq=False)
class WeightRelevance:
    """Relevance of weights over ``count`` samples, by the names of the parameters.

    ``total`` is the sum over samples (or the ``aggregate``), in the parameters' shapes. ``passed`` is the relevance
    that arrived at each layer's output, summed: less the share of the bias, sums add up to it.
    """

    total: dict[str, Tensor]
    passed: dict[str, float]
    count: int
    aggregate: str = "sum"

    def __repr__(self) -> str:
        weights = sum(value.numel() for value in self.total.values())
        return (
            f"<WeightRelevance ({self.aggregate}): {weights} weights, {len(self.total)} layers, {self.count} samples>"
        )

    def heatmap(self) -> Any:
        """Return a picture: bars of the relevance that passes each layer."""
        from ..heatmap import bars

        return bars(list(self.passed), list(self.passed.values()), titles="relevance that passes each layer")

    def _repr_html_(self) -> str:
        return html_of(self, self.heatmap)


def weight_relevance(
    model: nn.Module,
    batches: Iterable[Any],
    weights: Any = "*",
    *,
    target: Any = None,
    composite: str | Composite = "attnlrp",
    aggregate: str = "sum",
) -> WeightRelevance:
    """Return the relevance of the weights of linear layers and convolutions, summed over a data set.

    A layer ``z_j = sum_i w_ij x_i + b_j`` has ``R_j = sum_i x_i w_ij g_j + b_j g_j`` with ``g_j = R_j / z_j``, so the
    relevance of a weight is ``R_w_ij = w_ij * sum x_i g_j`` over samples and places, and of all weights of a layer it
    adds up to the relevance that the layer passes on. Only one tensor for each weight is kept, whatever the number of
    batches.

    Args:
        model: any module.
        batches: what :func:`~lxt_compose.attribute` takes, one after the other.
        weights: which modules: a name, a glob, a class, or several; "*" is every layer that is linear in a ``weight``.
        target: what is explained of each sample.
        composite: a preset's name or a composite, in the gradient formulation. Under ``"relp"`` and ``"cp_lrp"``
            queries and keys have no relevance, and neither have the weights that make them.
        aggregate: how contributions ``c = w_ij x_i g_j`` of all samples and places are combined: ``"sum"``, which
            conserves, but in which contributions for and against classes cancel; ``"absolute"``, ``sum |c|``; or
            ``"norm"``, ``sqrt(sum c^2)``.

    Raises:
        ValueError: the composite has another formulation, ``aggregate`` is unknown, or there are no batches.
        MatchError: no module matches, or none has a weight.
        AttributionError: a layer has another rule than Epsilon, for which weights have no contributions of their own.

    Source: Bach et al. 2015, equation 56, read for weights; Hatefi et al. 2024 for pruning by relevance; the mean of
    squares: Molchanov et al. 2019, equation 8, with relevance in place of ``w dL/dw``.
    """
    if aggregate not in AGGREGATES:
        raise ValueError(f"contributions are put together by {', '.join(AGGREGATES)}, got aggregate={aggregate!r}")
    rules = composite_of(composite)
    if rules.formulation != GRADIENT:
        raise ValueError("weights have relevance in the gradient formulation: Composite(..., formulation='gradient')")
    layers = layers_with_weights(model, weights)
    found = WeightRelevance({}, {}, 0, aggregate)
    count = 0
    with torch.inference_mode(False), torch.enable_grad(), statistics_kept(model):
        for batch in batches:
            given, goals, _ = read(model, batch, target, None, ())
            if len(goals) > 1 or goals.names:
                raise ValueError("weights have relevance for one target of each sample")
            run = _WeightsRun(model, rules, given, layers, found)
            run.batches(goals, None, progress=False, ledger=False)
            count += given.count
    if not count:
        raise ValueError("there were no batches")
    total = {name: value.sqrt() for name, value in found.total.items()} if aggregate == "norm" else found.total
    return WeightRelevance(total, found.passed, count, aggregate)


def layers_with_weights(model: nn.Module, weights: Any) -> list[Layer]:
    """Return the modules that are linear in a weight of their own, among those that match the keys.

    Raises:
        MatchError: there are none.
    """
    found = [layer for layer in find_layers(model, weights) if _is_layer(layer.module)]
    if not found:
        raise MatchError(f"no module that {weights!r} matches is linear in a weight (nn.Linear, nn.Conv2d, ...)")
    return found


def _is_layer(module: nn.Module) -> bool:
    """Return whether a module has a matrix of weights and no children, and is no embedding."""
    weight = getattr(module, "weight", None)
    is_matrix = isinstance(weight, nn.Parameter) and weight.dim() > 1 and weight.is_floating_point()
    return (
        is_matrix and next(module.children(), None) is None and not isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    )


class _WeightsRun(PlacesRun):
    """One batch in which the relevance of weights is added up."""

    def __init__(
        self, model: nn.Module, composite: Composite, given: Inputs, layers: list[Layer], found: WeightRelevance
    ) -> None:
        sides = [(layer, side) for layer in layers for side in ("input", "")]
        places = [Place(layer.name + (":input" if side else ""), layer.module, side) for layer, side in sides]
        super().__init__(model, composite, given, [], [Units(place.name, place) for place in places], values=True)
        self._found = found
        self._layers = {layer.module: layer.name for layer in layers}

    def slots(
        self, outputs: Sequence[Tensor], seeds: Sequence[Tensor], leaves: Sequence[Tensor], *, keep: bool
    ) -> list[Tensor | None]:
        """Return the slots of the leaves, and add up the relevance of weights from the slots of layers."""
        after = [place for place in self.places if not place.side]
        found = self.arrivals(outputs, seeds, leaves, after, keep=keep)
        self._check_rules()
        aggregate = self._found.aggregate
        for module, name in self._layers.items():
            pairs = zip(self._met(module, "input"), self._met(module, ""), strict=True)
            parts = [_of_weight(module, before, each, self.arrived[each], aggregate) for before, each in pairs]
            if parts:
                self._add(f"{name}.weight" if name else "weight", parts)
        return found

    def _met(self, module: nn.Module, side: str) -> list[Caught]:
        return [each for each in self.caught if each.visit.place.module is module and each.visit.place.side == side]

    def _add(self, name: str, parts: list[tuple[Tensor, float]]) -> None:
        relevance = torch.stack([part for part, _ in parts]).sum(0)
        total = self._found.total
        total[name] = total[name] + relevance if name in total else relevance
        self._found.passed[name] = self._found.passed.get(name, 0.0) + sum(passed for _, passed in parts)

    def _check_rules(self) -> None:
        for row in self.registration.report().rows:
            layer = next((name for module, name in self._layers.items() if name == row.path), None)
            if layer is not None and row.calls and row.rule and not row.rule.startswith("Epsilon"):
                raise AttributionError(
                    f"{layer} has the rule {row.rule}, whose contributions are not those of its weights; weights have "
                    f"relevance under Epsilon, as in the presets for transformers"
                )


def _of_weight(module: nn.Module, before: Caught, after: Caught, slot: Tensor, aggregate: str) -> tuple[Tensor, float]:
    """Return the relevance of a layer's weight in one call (squared, for norms), and that of the call's output."""
    assert before.value is not None
    assert after.value is not None
    weight = module.weight
    assert isinstance(weight, Tensor)
    # Layers are bilinear in weight and input: of |x| and |g|, the derivative by a weight is the sum of |x g|.
    each = AGGREGATES[aggregate]
    leaf = weight.detach().clone().requires_grad_()
    with torch.enable_grad():
        output = run_with_weight(module, leaf, each(before.value))
        (gradient,) = torch.autograd.grad(output, leaf, each(slot))
    return each(weight.detach()) * gradient, float((after.value * slot).sum())
