"""Presets for image models: rules of the literature for convolutions, dense layers and the first layer.

Other operations (activations, pooling, residual sums, batch norms, attention) follow the table of defaults. Batch norms
after a layer are best merged into it, ``epsilon_plus(canonizers=[MergeBatchNorm()])``, or passed,
``epsilon_plus({nn.BatchNorm2d: Pass()})``. Where they come before the layers (DenseNet) and the rule is AlphaBeta,
``canonizers=[MergeBatchNorm(), MergeBatchNormForward()]`` keeps the relevance of inputs within bounds. The first layer
is the one that the input reaches first in a forward pass. All take the relevance formulation, in which ``x.grad`` is
the relevance of the input, where they do not say otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..autograd.numerics import EPSILON
from ..composite import Composite
from ..keys import first_layer
from ..ops import Family
from ..ops.module_types import CONVOLUTIONS
from ..rules import (
    GRADIENT,
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    ReLUBetaSmooth,
    ReLUDeconvNet,
    ReLUGuidedBackprop,
    Rule,
    ZBox,
    ZPlus,
)

Rules = Mapping[Any, Any] | Iterable[tuple[Any, Any]]


def epsilon(rules: Rules = (), *, epsilon: float = EPSILON, **options: Any) -> Composite:
    """LRP-epsilon: :class:`Epsilon` for all layers with weights.

    Args:
        rules: keys and rules of your own (see :class:`Composite`), which go before the preset's.
        epsilon: stabilizer, >= 0.
        options: further arguments of :class:`Composite`, such as `canonizers`.

    Raises:
        ValueError: epsilon is negative.

    Source: Bach et al. 2015, eq. 58.
    """
    rule = Epsilon(epsilon)
    return _layers(rules, convolution=rule, dense=rule, **options)


def epsilon_plus(rules: Rules = (), *, epsilon: float = EPSILON, **options: Any) -> Composite:
    """Return :class:`ZPlus` for convolutions, :class:`Epsilon` for dense layers.

    Args:
        rules: keys and rules of your own, which go before the preset's.
        epsilon: stabilizer of the dense layers, >= 0.
        options: further arguments of :class:`Composite`, such as `canonizers`.

    Source: Kohlbrenner et al. 2020 (LRP-CMP).
    """
    return _layers(rules, convolution=ZPlus(), dense=Epsilon(epsilon), **options)


def epsilon_alpha2_beta1(rules: Rules = (), *, epsilon: float = EPSILON, **options: Any) -> Composite:
    """Return ``AlphaBeta(2, 1)`` for convolutions, :class:`Epsilon` for dense layers.

    Args:
        rules: keys and rules of your own, which go before the preset's.
        epsilon: stabilizer of the dense layers, >= 0.
        options: further arguments of :class:`Composite`, such as `canonizers`.

    Source: Lapuschkin et al. 2017; Kohlbrenner et al. 2020.
    """
    return _layers(rules, convolution=AlphaBeta(2.0, 1.0), dense=Epsilon(epsilon), **options)


def epsilon_plus_flat(rules: Rules = (), *, epsilon: float = EPSILON, **options: Any) -> Composite:
    """As :func:`epsilon_plus`, with :class:`Flat` for the first layer.

    Args:
        rules: keys and rules of your own, which go before the preset's.
        epsilon: stabilizer of the dense layers, >= 0.
        options: further arguments of :class:`Composite`, such as `canonizers`.

    Source: Kohlbrenner et al. 2020; the first layer: Lapuschkin et al. 2019.
    """
    return _layers(rules, first=Flat(), convolution=ZPlus(), dense=Epsilon(epsilon), **options)


def epsilon_alpha2_beta1_flat(rules: Rules = (), *, epsilon: float = EPSILON, **options: Any) -> Composite:
    """As :func:`epsilon_alpha2_beta1`, with :class:`Flat` for the first layer.

    Args:
        rules: keys and rules of your own, which go before the preset's.
        epsilon: stabilizer of the dense layers, >= 0.
        options: further arguments of :class:`Composite`, such as `canonizers`.

    Source: Kohlbrenner et al. 2020; the first layer: Lapuschkin et al. 2019.
    """
    rule = AlphaBeta(2.0, 1.0)
    return _layers(rules, first=Flat(), convolution=rule, dense=Epsilon(epsilon), **options)


def epsilon_gamma_box(
    low: float | Tensor,
    high: float | Tensor,
    rules: Rules = (),
    *,
    gamma: float = 0.25,
    epsilon: float = EPSILON,
    **options: Any,
) -> Composite:
    """Return :class:`ZBox` for the first layer, :class:`Gamma` for convolutions, :class:`Epsilon` for dense layers.

    Args:
        low: the smallest value that an input can have, after normalization; a number, or a tensor that broadcasts to
            the input (one value for each channel: [channels, 1, 1]).
        high: the largest one.
        rules: keys and rules of your own, which go before the preset's.
        gamma: how much more contributions of the output's sign weigh in convolutions, >= 0.
        epsilon: stabilizer of the dense layers, >= 0.
        options: further arguments of :class:`Composite`, such as `canonizers`.

    Raises:
        ValueError: low is above high, or another argument is out of its range.

    Source: Montavon et al. 2019, section 10.3.
    """
    first = ZBox(low, high)
    return _layers(rules, first=first, convolution=Gamma(gamma), dense=Epsilon(epsilon), **options)


def gamma_vit(
    conv_gamma: float = 0.25,
    linear_gamma: float = 0.05,
    rules: Rules = (),
    **options: Any,
) -> Composite:
    """AttnLRP for vision transformers: :class:`Gamma` for the patch embedding and for dense layers.

    Attention, softmax, norms and GELU follow the table of defaults, which is AttnLRP. By default in the gradient
    formulation, as all presets for transformers: the relevance is ``x * x.grad``.

    Args:
        conv_gamma: gamma of convolutions, >= 0.
        linear_gamma: gamma of dense layers, >= 0.
        rules: keys and rules of your own, which go before the preset's.
        options: further arguments of :class:`Composite`, such as `formulation`.

    Raises:
        ValueError: a gamma is negative.

    Source: Achtibat et al. 2024, appendix on vision transformers.
    """
    # The function, not the module: the projections of nn.MultiheadAttention are never called as modules.
    own = [(CONVOLUTIONS, Gamma(conv_gamma)), (F.linear, Gamma(linear_gamma))]
    return Composite([*_pairs(rules), *own], **{"formulation": GRADIENT, **options})


def excitation_backprop(rules: Rules = (), *, zero_bias: bool = True, **options: Any) -> Composite:
    """Excitation backprop: :class:`ZPlus` for all layers with weights; the probability of winning is the relevance.

    Start with the probabilities of the outputs, which sum to 1 (:func:`attribute` gives the target 1). Meant for
    networks whose activations are not negative.

    Args:
        rules: keys and rules of your own, which go before the preset's.
        zero_bias: whether biases are left out, as in the paper, so that nothing is lost in them.
        options: further arguments of :class:`Composite`, such as `canonizers`.

    Source: Zhang et al. 2016, eq. 5; as a case of LRP: Montavon et al. 2017.
    """
    rule = ZPlus(zero_bias=zero_bias)
    return _layers(rules, convolution=rule, dense=rule, **{"picture": "slot", **options})


def guided_backprop(rules: Rules = (), **options: Any) -> Composite:
    """Guided backpropagation: the plain gradient, but ReLU lets only what is positive pass, and only where x > 0.

    Not LRP: nothing is conserved, and the picture is ``x.grad`` as it is. For networks whose only nonlinearities are
    ReLU and max pooling; others pass their plain gradient and are reported as uncovered.

    Args:
        rules: keys and rules of your own, which go before the preset's.
        options: further arguments of :class:`Composite`, such as `canonizers`.

    Source: Springenberg et al. 2015, section 3.4.
    """
    return _gradient(rules, ReLUGuidedBackprop(), options)


def deconvnet(rules: Rules = (), **options: Any) -> Composite:
    """Deconvolution: the plain gradient, but ReLU lets all that is positive pass, whatever x was.

    Not LRP: nothing is conserved, and the picture is ``x.grad`` as it is. For networks whose only nonlinearities are
    ReLU and max pooling; others pass their plain gradient and are reported as uncovered.

    Args:
        rules: keys and rules of your own, which go before the preset's.
        options: further arguments of :class:`Composite`, such as `canonizers`.

    Source: Zeiler and Fergus 2014, section 2.1.
    """
    return _gradient(rules, ReLUDeconvNet(), options)


def beta_smooth(rules: Rules = (), *, beta: float = 10.0, **options: Any) -> Composite:
    """Return the gradient of the network with its ReLUs smoothed to softplus; values stay those of ReLU.

    Not LRP: nothing is conserved, and the picture is ``x.grad`` as it is, or ``x * x.grad``.

    Args:
        rules: keys and rules of your own, which go before the preset's.
        beta: sharpness of the softplus, > 0; toward infinity it is the plain gradient.
        options: further arguments of :class:`Composite`, such as `canonizers`.

    Raises:
        ValueError: beta is not positive.

    Source: Dombrowski et al. 2019, section 4.
    """
    return _gradient(rules, ReLUBetaSmooth(beta), options)


def _pairs(rules: Rules) -> list[tuple[Any, Any]]:
    return list(rules.items() if isinstance(rules, Mapping) else rules)


def _layers(
    rules: Rules,
    *,
    convolution: Rule,
    dense: Rule,
    first: Rule | None = None,
    **options: Any,
) -> Composite:
    own: list[tuple[Any, Any]] = [] if first is None else [(first_layer, first)]
    own += [(CONVOLUTIONS, convolution), (nn.Linear, dense)]
    return Composite([*_pairs(rules), *own], **options)


def _gradient(rules: Rules, relu: Rule, options: Mapping[str, Any]) -> Composite:
    # In the gradient formulation Epsilon with 0 is the gradient itself.
    table = {Family.LINEAR: Epsilon(0.0)}
    own = [*_pairs(rules), (torch.relu, relu)]
    return Composite(own, **{"formulation": GRADIENT, "defaults": table, "picture": "slot", **options})
