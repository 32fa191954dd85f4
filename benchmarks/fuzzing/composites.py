"""Random composites: presets, keys and rules of one's own, canonizers; and what may be asked of each."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lxt_compose import (
    AlphaBeta,
    Composite,
    Epsilon,
    Flat,
    Gamma,
    Identity,
    MergeBatchNorm,
    Norm,
    ResidualGamma,
    WSquare,
    ZBox,
    ZPlus,
    default_rules,
    first_layer,
    presets,
    where,
)

FORMULATIONS = ("gradient", "relevance")
TINY = 1e-12
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Choice:
    """A composite that can be made in one or both formulations.

    ``by_function`` says whether equal functions get equal relevance however they are written: a key for modules or for
    one operation breaks that. ``is_gradient`` says whether piecewise affine models get input x gradient.
    """

    text: str
    make: Callable[[str], Composite]
    formulations: tuple[str, ...] = FORMULATIONS
    by_function: bool = False
    is_gradient: bool = False
    tolerance: float = 1e-3
    """By how much the formulations may differ, relative to the largest: rules for layers have stabilizers of 1e-6."""
    unmerged: Callable[[str], Composite] | None = None
    """Makes the same without canonizers, where it has one that merges batch norms."""
    serves_zeros: bool = False
    """Whether a rule for the first layer gives relevance to inputs that are 0."""

    @property
    def merges(self) -> bool:
        """Whether batch norms are merged."""
        return self.unmerged is not None


def _preset(name: str, *, is_gradient: bool = True) -> Choice:
    return Choice(
        name, lambda f: getattr(presets, name)(formulation=f), by_function=True, is_gradient=is_gradient, tolerance=1e-6
    )


TRANSFORMERS = [
    *map(_preset, ("attnlrp", "cp_lrp", "relp")),
    Choice(
        "Composite()",
        lambda f: Composite(formulation=f, defaults=default_rules(f, TINY)),
        FORMULATIONS,
        True,
        True,
        1e-6,
    ),
]
IMAGES = [
    Choice(name, lambda f, name=name: getattr(presets, name)(), ("relevance",), serves_zeros=name.endswith("flat"))
    for name in ("epsilon", "epsilon_plus", "epsilon_alpha2_beta1", "epsilon_plus_flat", "epsilon_alpha2_beta1_flat")
]
OTHERS = [
    Choice("res_lrp", lambda f: presets.res_lrp(formulation=f)),
    Choice("gamma_vit", lambda f: presets.gamma_vit(formulation=f, defaults=default_rules(f, TINY))),
    Choice("excitation_backprop", lambda f: presets.excitation_backprop(), ("relevance",)),
    Choice(
        "epsilon_gamma_box",
        lambda f: presets.epsilon_gamma_box(low=-9.0, high=9.0),
        ("relevance",),
        serves_zeros=True,
    ),
]
KEYS: dict[str, Any] = {
    "nn.Linear": nn.Linear,
    "convolutions": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "layers": LAYERS,
    "F.linear": F.linear,
    "where(has bias)": where(lambda name, module: isinstance(module, LAYERS) and module.bias is not None),
}
RULES: dict[str, Any] = {
    "Epsilon(1e-12)": lambda: Epsilon(TINY),
    "Gamma(0.5)": lambda: Gamma(0.5),
    "Gamma(zero_bias)": lambda: Gamma(0.25, zero_bias=True),
    "AlphaBeta(2, 1)": lambda: AlphaBeta(2.0, 1.0),
    "AlphaBeta(1, 0)": lambda: AlphaBeta(1.0, 0.0),
    "ZPlus": ZPlus,
    "Epsilon(zero_bias)": lambda: Epsilon(TINY, zero_bias=True),
}
FIRST: dict[str, Any] = {"Flat": Flat, "WSquare": WSquare, "ZBox": lambda: ZBox(-9.0, 9.0)}


def random_choice(seed: int) -> Choice:
    """A composite: a preset, or one with keys of its own."""
    generator = random.Random(seed)
    kind = generator.choice(["preset", "preset", "image", "other", "own"])
    if kind == "preset":
        return generator.choice(TRANSFORMERS)
    if kind == "image":
        return generator.choice(IMAGES)
    return generator.choice(OTHERS) if kind == "other" else _own(generator.randrange(10**6))


def choice_of(text: str) -> Choice:
    """The composite that is called by this text; own ones are `own SEED`."""
    if text.startswith("own "):
        return _own(int(text.split()[1]))
    return next(choice for choice in (*TRANSFORMERS, *IMAGES, *OTHERS) if choice.text == text)


def _own(number: int) -> Choice:
    """Keys of one's own; the text can be read and made again."""
    own = random.Random(number)
    keys = own.sample(sorted(KEYS), own.choice([1, 2]))
    chosen = [(key, own.choice(sorted(RULES))) for key in keys]
    first = own.choice(sorted(FIRST)) if own.random() < 0.2 else None
    merge, pairs = own.random() < 0.3, own.random() < 0.2

    def make(formulation: str, *, merging: bool = merge) -> Composite:
        rules: list[tuple[Any, Any]] = [(first_layer, FIRST[first]())] if first else []
        rules += [(KEYS[key], RULES[rule]()) for key, rule in chosen]
        if pairs:
            rules += [(torch.add, ResidualGamma(1.0)), (F.layer_norm, Norm()), (nn.GELU, Identity())]
        return Composite(
            rules,
            formulation=formulation,
            defaults=default_rules(formulation, TINY),
            canonizers=[MergeBatchNorm()] if merging else [],
        )

    shown = ", ".join(f"{key}: {rule}" for key, rule in chosen)
    text = f"own {number} ({f'first: {first}, ' if first else ''}{shown}{', merged' * merge}{', pairs' * pairs})"
    unmerged = partial(make, merging=False) if merge else None
    formulations = ("relevance",) if first else FORMULATIONS
    return Choice(text, make, formulations, unmerged=unmerged, serves_zeros=first is not None)
