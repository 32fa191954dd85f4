"""Pruning: scores of weights by relevance and by other criteria, and masks that can be removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.failures import telling
from ..attribution.inputs import read_inputs
from ..attribution.latent import Layer
from ..composite import Composite
from ..errors import MatchError, RegistrationError
from ..torch_internals import run_with_weight
from .units import Place
from .visits import Visit, Visits
from .weights import layers_with_weights, weight_relevance


def pruning_scores(
    model: nn.Module,
    batches: Iterable[Any],
    weights: Any = "*",
    *,
    by: str = "relevance",
    target: Any = None,
    composite: str | Composite = "attnlrp",
    aggregate: str = "norm",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return a score for each weight, by the names of the parameters; the least is pruned first.

    Args:
        model: any module.
        batches: reference samples, as for :func:`weight_relevance`; not used by "magnitude" and "random".
        weights: which modules.
        by: "relevance" (how much a weight passes on), "magnitude" ``|w|``, "wanda" ``|w_ij| * ||x_i||`` with the norm
            of the input over all samples and places, or "random".
        target: what is explained, for "relevance".
        composite: the rules, for "relevance".
        aggregate: how relevance is aggregated over samples, see :func:`weight_relevance`.
        seed: of "random".

    Raises:
        ValueError: ``by`` is unknown.
        MatchError: no module matches.

    Source: relevance: Yeom et al. 2021, Hatefi et al. 2024, who prune units by it, and compare them across layers;
    Wanda: Sun et al. 2024, equation 1.
    """
    layers = layers_with_weights(model, weights)
    named = {f"{layer.name}.weight" if layer.name else "weight": layer.module for layer in layers}
    if by == "relevance":
        found = weight_relevance(model, batches, weights, target=target, composite=composite, aggregate=aggregate)
        return {name: value.abs() for name, value in found.total.items()}
    if by == "magnitude":
        return {name: _weight(module).abs() for name, module in named.items()}
    if by == "random":
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.rand(_weight(module).shape, generator=generator) for name, module in named.items()}
    if by == "wanda":
        return _wanda(model, batches, layers)
    raise ValueError(f"weights are scored by 'relevance', 'magnitude', 'wanda' or 'random', got by={by!r}")


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _wanda(model: nn.Module, batches: Iterable[Any], layers: list[Layer]) -> dict[str, Tensor]:
    """Return |w| times the norm, over all samples and places, of the inputs of each weight."""
    squares: dict[str, Tensor] = {}
    places = {Place(f"{layer.name}:input", layer.module, "input"): layer for layer in layers}

    def look(visit: Visit) -> None:
        module, name = visit.place.module, places[visit.place].name
        weight = _weight(module)
        leaf = torch.ones_like(weight).requires_grad_()
        with torch.enable_grad():  # d(sum of outputs) / dw_ij of the squared input is the sum of x_i^2 that w_ij meets
            output = run_with_weight(module, leaf, visit.tensor.detach().square())
            (met,) = torch.autograd.grad(output.sum(), leaf)
        key = f"{name}.weight" if name else "weight"
        squares[key] = squares[key] + met if key in squares else met

    with torch.no_grad(), Visits(model, places, look):
        for batch in batches:
            given = read_inputs(model, batch).copied()
            with telling(model, given):
                model(*given.args, **given.kwargs)
    named = dict(model.named_parameters(remove_duplicate=False))
    return {name: named[name].detach().abs() * value.sqrt() for name, value in squares.items()}


class Pruned:
    """Weights set to 0 until :meth:`remove` restores their values; a context manager. See :func:`prune`."""

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        named = dict(model.named_parameters(remove_duplicate=False))
        unknown = [name for name in masks if name not in named or named[name].shape != masks[name].shape]
        if unknown:
            raise MatchError(f"{unknown[0]} is no parameter of {type(model).__name__} of the shape of its mask")
        self.masks, self._model = dict(masks), model
        self._kept = {name: named[name].detach().clone() for name in masks}
        with torch.no_grad():
            for name, mask in masks.items():
                named[name].masked_fill_(mask.to(named[name].device), 0)

    @property
    def active(self) -> bool:
        """Whether it has not been removed."""
        return bool(self._kept)

    @property
    def sparsity(self) -> float:
        """The share of the scored weights that is 0."""
        pruned = sum(int(mask.sum()) for mask in self.masks.values())
        return pruned / sum(mask.numel() for mask in self.masks.values())

    def remove(self) -> None:
        """Restore the weights; calling it again does nothing."""
        named = dict(self._model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, value in self._kept.items():
                named[name].copy_(value)
        self._kept = {}

    def __enter__(self) -> Pruned:
        if not self.active:
            raise RegistrationError("this pruning was removed; make a new one")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def prune(model: nn.Module, scores: Mapping[str, Tensor], sparsity: float, *, within: str = "model") -> Pruned:
    """Set the weights with the least scores to 0, from now until :meth:`Pruned.remove`.

    Args:
        model: any module.
        scores: see :func:`pruning_scores`.
        sparsity: the share of the scored weights that is set to 0, from 0 to 1.
        within: the weights that are compared: all of the "model", those of each "layer", or those of each "row"
            (output), as in Wanda.

    Raises:
        ValueError: the sparsity is out of range, or ``within`` is unknown.
        MatchError: scores are of no parameter of the model.
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity is a share from 0 to 1, got {sparsity!r}")
    if within == "model":
        whole = torch.cat([score.flatten().double() for score in scores.values()])
        flat = least(whole[None], sparsity)[0]
        parts = flat.split([score.numel() for score in scores.values()])
        masks = {name: part.reshape(score.shape) for part, (name, score) in zip(parts, scores.items(), strict=True)}
    elif within in ("layer", "row"):
        rows = {name: score.reshape(1 if within == "layer" else len(score), -1) for name, score in scores.items()}
        masks = {name: least(rows[name], sparsity).reshape(score.shape) for name, score in scores.items()}
    else:
        raise ValueError(f"weights compete within the 'model', a 'layer' or a 'row', got within={within!r}")
    return Pruned(model, masks)


def least(scores: Tensor, share: float) -> Tensor:
    """Return a mask of the smallest scores of each row; of equal ones the first."""
    count = round(share * scores.shape[1])
    mask = torch.zeros_like(scores, dtype=torch.bool)
    return mask.scatter(1, scores.argsort(dim=1, stable=True)[:, :count], value=True)
