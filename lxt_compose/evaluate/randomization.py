"""Randomizing a model layer by layer from the output on, with which an explanation must change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from ..attribution.entry import check_traced, explained
from ..attribution.graphs import Graphs
from ..attribution.inputs import Inputs, read_inputs
from ..attribution.run import Run, composite_of, statistics_kept, values_kept
from ..composite import Composite
from .probe import Probe
from .rank import correlation

_APART = 20181009
Explain = Callable[[nn.Module, Any, Any], Any]
"""From a model, its inputs and a target to scores [n, ...], or to an Attribution."""


@dataclass(frozen=True, eq=False)
class Randomization:
    """How an explanation changes while a model is randomized from its output to its input.

    ``layers`` [k] are the modules in the order in which they were randomized, each with all before it; ``signed``
    [k, n] is the Spearman correlation of the scores with those of the intact model, ``absolute`` [k, n] the same of
    their absolute values. Near 1 means that the explanation does not depend on the randomized layers.
    """

    layers: tuple[str, ...]
    signed: Tensor
    absolute: Tensor

    def __str__(self) -> str:
        pairs = zip(self.layers, self.signed.nanmean(1).tolist(), self.absolute.nanmean(1).tolist(), strict=True)
        head = ["randomized down to", "rank correlation", "of sizes"]
        return tabulate([list(row) for row in pairs], headers=head, floatfmt=".3f", disable_numparse=[0])

    def _repr_html_(self) -> str:
        return f'<pre style="overflow-x:auto">{escape(str(self))}</pre>'


def randomization(
    model: nn.Module,
    inputs: Any,
    *,
    explain: str | Composite | Explain = "attnlrp",
    target: Any = None,
    layers: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    traced: bool | str = False,
) -> Randomization:
    """Randomize a model in a cascade: layers get random weights, one after the other from output to input.

    A parameter is drawn from a normal distribution with its own mean and standard deviation, so that activations keep
    their scale; one whose values are all the same stays. Afterwards the model is as before, bit for bit, also after an
    error.

    Args:
        model: any module, in ``eval()`` mode.
        inputs: what :func:`attribute` takes.
        explain: the name of a preset, a :class:`Composite`, or a function of (model, inputs, target) that returns
            scores [n, ...] or an :class:`Attribution`.
        target: what :func:`attribute` takes; None is the arg-max of the intact model, for all steps.
        layers: how many steps; the layers are then randomized in so many groups of about equal size. None: one by one.
        seed: of the random weights, a whole number.
        batch_size: how many samples are explained at a time (presets and composites).
        traced: what :func:`attribute` takes: all steps may run as one graph (presets and composites).

    Raises:
        TypeError: `explain` is of a wrong kind, or returns no scores.
        ValueError: the model has no parameters, `layers` is out of range, or scores are of a wrong shape.

    Source: Adebayo et al. 2018 (sanity checks for saliency maps), section 3.
    """
    check_traced(traced)
    with torch.inference_mode(False):
        probe = Probe(model, inputs, target, batch_size)
        goal = probe.goals.target  # an arg-max is that of the intact model
        method = _explainer(explain, probe, read_inputs(model, inputs), batch_size, traced)
        groups = _groups(_in_order(probe), layers)
        intact = _scores(method(model, inputs, goal), (probe.given.count,))
        signed, absolute, names = [], [], []
        # Not the seed itself: a model that was initialized with the same seed would get the same numbers again.
        generator = torch.Generator().manual_seed(_APART + seed)
        with values_kept(model.parameters()):
            for group in groups:
                for module in (module for modules in group.values() for module in modules):
                    _randomize(module, generator)
                found = _scores(method(model, inputs, goal), intact.shape)
                signed.append(correlation(found, intact, mask=_mask(probe, intact)))
                absolute.append(correlation(found.abs(), intact.abs(), mask=_mask(probe, intact)))
                names.append(list(group)[-1])
    return Randomization(tuple(names), torch.stack(signed), torch.stack(absolute))


def _explainer(
    explain: str | Composite | Explain, probe: Probe, given: Inputs, size: int | None, traced: bool | str
) -> Explain:
    if not isinstance(explain, (str, Composite)):
        if not callable(explain):
            raise TypeError(
                f"explain must be a preset's name, a Composite or a function of (model, inputs, target), got "
                f"{explain!r}"
            )
        return explain
    composite = composite_of(explain)

    def method(model: nn.Module, *_: Any) -> Any:
        with torch.enable_grad(), statistics_kept(model):
            run = Run(model, composite, given, [])
            graphs = Graphs(run, composite, always=traced is True) if traced else None
            return explained(run, graphs, probe.goals, size)

    return method


def _scores(found: Any, shape: tuple[int, ...]) -> Tensor:
    """Return the scores that `explain` gave, [n, units]; `shape` is how theirs must begin."""
    scores = getattr(found, "scores", found)
    if not isinstance(scores, Tensor):
        raise TypeError(f"explain must return a tensor or an Attribution of one input, got {type(scores).__name__}")
    flat = scores.detach().cpu().flatten(1) if scores.dim() > 1 else scores
    if flat.dim() < 2 or flat.shape[: len(shape)] != shape:
        raise ValueError(
            f"explain must return scores [n, ...] of n = {shape[0]} samples, of the same shape each time, got "
            f"{list(scores.shape)}"
        )
    return flat


def _mask(probe: Probe, scores: Tensor) -> Tensor | None:
    mask = probe.mask
    return mask.cpu() if mask is not None and mask.shape == scores.shape else None


def _in_order(probe: Probe) -> dict[str, list[nn.Module]]:
    """Return the modules that have parameters of their own, from the last that began to run to the first.

    One that is never called (its parent takes its weight) goes with the innermost module around it that is.
    """
    named = dict(probe.model.named_modules())
    ran: dict[nn.Module, None] = {}
    hooks = [m.register_forward_pre_hook(lambda module, _: ran.update({module: None})) for m in named.values()]
    try:
        probe.of(torch.arange(min(1, probe.given.count)))
    finally:
        for hook in hooks:
            hook.remove()
    layers: dict[str, list[nn.Module]] = {name: [] for module in reversed(ran) for name in [_name(named, module)]}
    for name, module in named.items():
        if next(module.parameters(recurse=False), None) is not None:
            while named[name] not in ran and name:
                name = name.rpartition(".")[0]
            layers.setdefault(_name(named, named[name]), []).append(module)
    found = {name: modules for name, modules in layers.items() if modules}
    if not found:
        raise ValueError(f"{type(probe.model).__name__} has no parameters that could be randomized")
    return found


def _name(named: dict[str, nn.Module], module: nn.Module) -> str:
    return next(name for name, other in named.items() if other is module) or "(model)"


def _groups(layers: dict[str, list[nn.Module]], count: int | None) -> list[dict[str, list[nn.Module]]]:
    names = list(layers)
    count = len(names) if count is None else count
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= len(names):
        raise ValueError(f"layers must be a whole number from 1 to {len(names)}, the number of layers, got {count!r}")
    bounds = [round(step * len(names) / count) for step in range(count + 1)]
    return [{name: layers[name] for name in names[a:b]} for a, b in pairwise(bounds)]


def _randomize(module: nn.Module, generator: torch.Generator) -> None:
    for parameter in module.parameters(recurse=False):
        if not parameter.is_floating_point() or parameter.numel() < 2:
            continue
        with torch.no_grad():
            mean, spread = parameter.float().mean(), parameter.float().std()
            drawn = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            parameter.copy_(drawn * spread + mean)
