"""Composites by name: the rules of published methods, ready to register on any model.

For example ``presets.attnlrp().register(model)``, or by name: ``presets.get("attnlrp")``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from ..composite import Composite
from .images import (
    beta_smooth,
    deconvnet,
    epsilon,
    epsilon_alpha2_beta1,
    epsilon_alpha2_beta1_flat,
    epsilon_gamma_box,
    epsilon_plus,
    epsilon_plus_flat,
    excitation_backprop,
    gamma_vit,
    guided_backprop,
)
from .transformers import attnlrp, cp_lrp, relp, res_lrp

TRANSFORMERS = ("attnlrp", "cp_lrp", "relp", "res_lrp")
"""The presets for transformers and state-space models."""

IMAGES = (
    "beta_smooth",
    "deconvnet",
    "epsilon",
    "epsilon_alpha2_beta1",
    "epsilon_alpha2_beta1_flat",
    "epsilon_gamma_box",
    "epsilon_plus",
    "epsilon_plus_flat",
    "excitation_backprop",
    "gamma_vit",
    "guided_backprop",
)
"""The presets for image models."""

_PRESETS: dict[str, Callable[..., Composite]] = {name: globals()[name] for name in (*IMAGES, *TRANSFORMERS)}
"""All presets; a function that returns a composite becomes one by its entry here."""


def available() -> tuple[str, ...]:
    """The names of all presets, in alphabetical order."""
    return tuple(sorted(_PRESETS))


def get(name: str, **options: Any) -> Composite:
    """A new composite by the name of its preset.

    Args:
        name: one of :func:`available`.
        options: the arguments of that preset, such as ``formulation="relevance"``.

    Raises:
        ValueError: there is no such preset; the closest names are told.
        TypeError: the preset has no such option, or needs others.
    """
    if name not in _PRESETS:
        closest = difflib.get_close_matches(str(name), available(), n=3, cutoff=0.0)
        raise ValueError(f"no preset is called {name!r}; closest: {', '.join(closest)}; all: {', '.join(available())}")
    try:
        return _PRESETS[name](**options)
    except TypeError as error:
        raise TypeError(f"presets.get({name!r}): {error}") from None


__all__ = [
    "IMAGES",
    "TRANSFORMERS",
    "attnlrp",
    "available",
    "beta_smooth",
    "cp_lrp",
    "deconvnet",
    "epsilon",
    "epsilon_alpha2_beta1",
    "epsilon_alpha2_beta1_flat",
    "epsilon_gamma_box",
    "epsilon_plus",
    "epsilon_plus_flat",
    "excitation_backprop",
    "gamma_vit",
    "get",
    "guided_backprop",
    "relp",
    "res_lrp",
]
