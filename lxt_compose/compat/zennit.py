"""Composites by Zennit's names, for code that moves here: change the import, keep the rest.

    from lxt_compose.compat.zennit import (
        Activation, AlphaBeta, Convolution, Epsilon, Gradient, LayerMapComposite, Linear, Pass
    )

    composite = LayerMapComposite([(Activation, Pass()), (Convolution, AlphaBeta(2, 1)), (Linear, Epsilon())])
    with Gradient(model, composite) as attributor:
        output, relevance = attributor(x, torch.eye(1000)[[207]])

Names and arguments are Zennit's (Anders et al. 2021); the result is a :class:`Composite` of this library, with its
report. Modules and functions that no entry matches take the table of defaults, where Zennit takes the plain gradient:
give ``defaults=False`` for that. Names in a map may be globs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .. import kinds, presets, rules
from ..canonizers import merge_batch_norm
from ..composite import Composite
from ..coverage.report import CoverageReport
from ..keys import first_layer
from ..rules import Pass, ReLUDeconvNet, ReLUGuidedBackprop, Rule
from ..runtime.registration import Registration

__all__ = [
    "COMPOSITES",
    "Activation",
    "AlphaBeta",
    "AvgPool",
    "BatchNorm",
    "BetaSmooth",
    "Convolution",
    "DeconvNet",
    "Epsilon",
    "EpsilonAlpha2Beta1",
    "EpsilonAlpha2Beta1Flat",
    "EpsilonGammaBox",
    "EpsilonPlus",
    "EpsilonPlusFlat",
    "ExcitationBackprop",
    "Flat",
    "Gamma",
    "Gradient",
    "GuidedBackprop",
    "LayerMapComposite",
    "Linear",
    "MixedComposite",
    "NameLayerMapComposite",
    "NameMapComposite",
    "NamedMergeBatchNorm",
    "Norm",
    "Pass",
    "ReLUBetaSmooth",
    "ReLUDeconvNet",
    "ReLUGuidedBackprop",
    "SequentialMergeBatchNorm",
    "SpecialFirstLayerMapComposite",
    "WSquare",
    "ZBox",
    "ZPlus",
]

Convolution, Linear = kinds.CONVOLUTIONS, kinds.LAYERS
BatchNorm, AvgPool, Activation = kinds.BATCH_NORMS, kinds.AVERAGE_POOLS, kinds.ACTIVATIONS
Map = Iterable[tuple[Any, Rule]]


def _zero_bias(zero_params: Any) -> bool:
    """Return whether Zennit's `zero_params` names the bias.

    Raises:
        ValueError: it names others.
    """
    names = [zero_params] if isinstance(zero_params, str) else list(zero_params or ())
    if set(names) - {"bias"}:
        raise ValueError(f"only the bias can be left out of a rule, zero_params='bias'; got {zero_params!r}")
    return bool(names)


def Epsilon(epsilon: Any = 1e-6, zero_params: Any = None) -> Rule:
    """Return :class:`lxt_compose.Epsilon`."""
    return rules.Epsilon(epsilon, zero_bias=_zero_bias(zero_params))


def Gamma(gamma: float = 0.25, stabilizer: Any = 1e-6, zero_params: Any = None) -> Rule:
    """Return :class:`lxt_compose.Gamma`."""
    return rules.Gamma(gamma, stabilizer, _zero_bias(zero_params))


def AlphaBeta(alpha: float = 2.0, beta: float = 1.0, stabilizer: Any = 1e-6, zero_params: Any = None) -> Rule:
    """Return :class:`lxt_compose.AlphaBeta`."""
    return rules.AlphaBeta(alpha, beta, stabilizer, _zero_bias(zero_params))


def ZPlus(stabilizer: Any = 1e-6, zero_params: Any = None) -> Rule:
    """Return :class:`lxt_compose.ZPlus`."""
    return rules.ZPlus(stabilizer, _zero_bias(zero_params))


def ZBox(low: Any, high: Any, stabilizer: Any = 1e-6, zero_params: Any = None) -> Rule:
    """Return :class:`lxt_compose.ZBox`, in which biases take no part anyway."""
    _zero_bias(zero_params)
    return rules.ZBox(low, high, stabilizer)


def WSquare(stabilizer: Any = 1e-6, zero_params: Any = None) -> Rule:
    """Return :class:`lxt_compose.WSquare`."""
    return rules.WSquare(stabilizer, _zero_bias(zero_params))


def Flat(stabilizer: Any = 1e-6, zero_params: Any = None) -> Rule:
    """Return :class:`lxt_compose.Flat`, in which biases take no part anyway."""
    _zero_bias(zero_params)
    return rules.Flat(stabilizer)


def Norm(stabilizer: Any = 1e-6) -> Rule:
    """Return :class:`lxt_compose.Epsilon`: Zennit's Norm shares relevance in a sum or a mean."""
    return rules.Epsilon(stabilizer)


def ReLUBetaSmooth(beta_smooth: float = 10.0) -> Rule:
    """Return :class:`lxt_compose.ReLUBetaSmooth`."""
    return rules.ReLUBetaSmooth(beta_smooth)


class _Composite(Composite):
    """A composite with the methods that Zennit's have; ``entries`` are its keys and rules."""

    def __init__(self, entries: Iterable[tuple[Any, Rule]], canonizers: Any = None, **options: Any) -> None:
        self.entries = list(entries)
        known = [set(rule.formulations) for _, rule in self.entries]
        formulation = "relevance" if all("relevance" in some for some in known) else "gradient"
        options = {"formulation": formulation, **options}
        super().__init__(self.entries, canonizers=canonizers or (), **options)

    @contextmanager
    def context(self, model: nn.Module) -> Iterator[nn.Module]:
        """Register on a model in a ``with`` block, and yield the model."""
        with self.register(model):
            yield model


def LayerMapComposite(layer_map: Map, canonizers: Any = None, **options: Any) -> _Composite:
    """Return a composite of (types, rule) pairs; the first pair that matches a module's type wins."""
    return _Composite(_by_type(layer_map), canonizers, **options)


def SpecialFirstLayerMapComposite(layer_map: Map, first_map: Map, canonizers: Any = None, **options: Any) -> _Composite:
    """Return the same, with a rule for the first layer with weights that relevance reaches in a forward pass.

    Raises:
        ValueError: `first_map` has several rules.
    """
    first = [rule for _, rule in first_map]
    if any(rule != first[0] for rule in first):
        raise ValueError(f"the first layer is told by running order and takes one rule, got {len(first)} of them")
    return _Composite([*((first_layer, rule) for rule in first[:1]), *_by_type(layer_map)], canonizers, **options)


def NameMapComposite(name_map: Map, canonizers: Any = None, **options: Any) -> _Composite:
    """Return a composite of (names, rule) pairs."""
    return _Composite(_by_name(name_map), canonizers, **options)


def NameLayerMapComposite(
    name_map: Map | None = None, layer_map: Map | None = None, canonizers: Any = None, **options: Any
) -> _Composite:
    """Return a composite of names, and of types for modules that no name matches."""
    return _Composite([*_by_name(name_map or ()), *_by_type(layer_map or ())], canonizers, **options)


def MixedComposite(composites: Sequence[_Composite], canonizers: Any = None, **options: Any) -> _Composite:
    """Return the entries of several composites of this file as one; the first that matches wins."""
    own = [canonizer for composite in composites for canonizer in composite.canonizers]
    entries = [entry for composite in composites for entry in composite.entries]
    return _Composite(entries, [*own, *(canonizers or ())], **options)


def _by_type(layer_map: Map) -> list[tuple[Any, Rule]]:
    return [(types, rule) for types, rule in layer_map if types]


def _by_name(name_map: Map) -> list[tuple[str, Rule]]:
    return [(name, rule) for names, rule in name_map for name in ([names] if isinstance(names, str) else names)]


def SequentialMergeBatchNorm() -> merge_batch_norm.MergeBatchNorm:
    """Return :class:`lxt_compose.MergeBatchNorm`, which finds pairs by running order."""
    return merge_batch_norm.MergeBatchNorm()


def NamedMergeBatchNorm(name_map: Iterable[tuple[Any, str]]) -> merge_batch_norm.MergeBatchNorm:
    """Return :class:`lxt_compose.MergeBatchNorm` for pairs of names, ``[(["conv1"], "bn1")]``."""
    pairs = ((layer, norm) for layers, norm in name_map for layer in ([layers] if isinstance(layers, str) else layers))
    return merge_batch_norm.MergeBatchNorm(tuple(pairs))


COMPOSITES: dict[str, Callable[..., Composite]] = {
    name: presets.find(name) for name in presets.IMAGES if name not in ("epsilon", "gamma_vit")
}
"""Zennit's composites by name, as presets of this library, with the arguments of those."""

BetaSmooth, DeconvNet, GuidedBackprop = presets.beta_smooth, presets.deconvnet, presets.guided_backprop
EpsilonAlpha2Beta1, EpsilonAlpha2Beta1Flat = presets.epsilon_alpha2_beta1, presets.epsilon_alpha2_beta1_flat
EpsilonGammaBox, ExcitationBackprop = presets.epsilon_gamma_box, presets.excitation_backprop
EpsilonPlus, EpsilonPlusFlat = presets.epsilon_plus, presets.epsilon_plus_flat


class Gradient:
    """Register a composite for the length of a ``with`` block or of one call, and attribute.

    Args:
        model: any module.
        composite: a :class:`Composite`; None is the plain gradient.
        attr_output: the start of the backward pass, of the shape of the output, or a function of the output that
            returns it; None is the output itself.
    """

    def __init__(self, model: nn.Module, composite: Composite | None = None, attr_output: Any = None) -> None:
        self.model, self.attr_output = model, attr_output
        self.composite = Composite(defaults=False, formulation="gradient") if composite is None else composite
        self._registration: Registration | None = None
        self.report: CoverageReport | None = None
        """What the last call covered."""

    def __enter__(self) -> Gradient:
        self._registration = self.composite.register(self.model)
        return self

    def __exit__(self, *error: object) -> None:
        registration, self._registration = self._registration, None
        if registration is not None:
            registration.remove()

    def __call__(self, x: Tensor, attr_output: Any = None) -> tuple[Tensor, Tensor]:
        """Return the output, and what flows back to the input from ``attr_output``: its relevance.

        In the gradient formulation (rules for ReLU alone) that is a gradient, as in Zennit.
        """
        if self._registration is None:
            with self:
                return self(x, attr_output)
        start = self.attr_output if attr_output is None else attr_output
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            output = self.model(leaf)
            seed = output.detach() if start is None else start(output) if callable(start) else start
            (relevance,) = torch.autograd.grad(output, leaf, seed.to(output))
        self.report = self._registration.report()
        return output.detach(), relevance
