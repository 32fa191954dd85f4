"""Composites by name: the rules of published methods, ready to register on any model.

For example ``presets.attnlrp().register(model)``, or by name: ``presets.get("attnlrp")``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from inspect import Parameter, signature
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
from .recurrent import gamma_rnn
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

RECURRENT = ("gamma_rnn",)
"""The presets for recurrent nets."""

_PRESETS: dict[str, Callable[..., Composite]] = {name: globals()[name] for name in (*IMAGES, *TRANSFORMERS, *RECURRENT)}
"""All presets; a function that returns a composite becomes one by its entry here."""


def available() -> tuple[str, ...]:
    """Return the names of all presets, in alphabetical order."""
    return tuple(sorted(_PRESETS))


def find(name: str) -> Callable[..., Composite]:
    """Return the function behind the name of a preset.

    Raises:
        ValueError: there is no such preset; the error names the closest.
    """
    if name not in _PRESETS:
        closest = difflib.get_close_matches(str(name), available(), n=3, cutoff=0.0)
        raise ValueError(f"no preset is called {name!r}; closest: {', '.join(closest)}; all: {', '.join(available())}")
    return _PRESETS[name]


def get(name: str, **options: Any) -> Composite:
    """Return a new composite by the name of its preset.

    Args:
        name: one of :func:`available`.
        options: the arguments of that preset, such as ``formulation="relevance"`` or ``canonizers=[MergeBatchNorm()]``.

    Raises:
        ValueError: there is no such preset, or an argument is out of its range.
        TypeError: the preset lacks an argument, or knows none of this name.
    """
    preset = find(name)
    known = _arguments(preset)
    missing = [key for key, default in known.items() if default is Parameter.empty and key not in options]
    if missing:
        call = ", ".join([repr(name), *(f"{key}=..." for key in missing)])
        raise TypeError(f"the preset {name!r} needs {' and '.join(missing)}: presets.get({call})")
    unknown = [option for option in options if option not in known]
    if unknown:
        raise TypeError(f"the preset {name!r} has no argument {unknown[0]!r}; it has {', '.join(known)}")
    return preset(**options)


def _arguments(preset: Callable[..., Composite]) -> dict[str, Any]:
    """Return a preset's arguments and their defaults, with those of a composite if it passes options on."""
    parameters = signature(preset).parameters.values()
    found = {p.name: p.default for p in parameters if p.kind is not Parameter.VAR_KEYWORD}
    if len(found) < len(parameters):
        found |= {p.name: p.default for p in signature(Composite).parameters.values() if p.name not in found}
    return found


__all__ = [
    "IMAGES",
    "RECURRENT",
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
    "find",
    "gamma_rnn",
    "gamma_vit",
    "get",
    "guided_backprop",
    "relp",
    "res_lrp",
]
