"""Steps that random models are made of: each is one function, in several spellings that must get equal relevance.

Every value of a program has the shape [samples, LENGTH, WIDTH]. A step takes one or more of them and returns one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LENGTH, WIDTH = 4, 6

PIECEWISE = "piecewise"
"""Piecewise affine, with relevance that is input x gradient wherever epsilon is 0."""
HOMOGENEOUS = "homogeneous"
"""Homogeneous of degree 1, with relevance that is input x gradient where no bias comes into its own operands."""
ADDS = "adds"
"""A bias or another constant is added, which keeps a share of the relevance."""
OFFSET = "offset"
"""An activation that is not 0 at an input of 0."""
ELEMENTWISE = "elementwise"
"""Of tensors that are functions of one other, element by element, it is one too, in most of its spellings."""
UNSEEN = "unseen"
"""A part of it is out of sight of the library, or cut off: the report must say so."""
SOFTMAX = "softmax"
"""Holds a softmax, whose Taylor expansion absorbs relevance under AttnLRP."""


class Draw:
    """Random weights in float64, the same for all spellings of one step."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float | None = None) -> Tensor:
        """A normal sample; by default scaled by the root of the last dimension's size."""
        scale = shape[-1] ** -0.5 if scale is None else scale
        return scale * torch.randn(*shape, dtype=torch.float64, generator=self.generator)

    def positive(self, *shape: int) -> Tensor:
        """Numbers from 0.5 to 2."""
        return 0.5 + 1.5 * torch.rand(*shape, dtype=torch.float64, generator=self.generator)


class Function(nn.Module):
    """A function and its weights. The program runs it in its own forward pass; it is not called as a module."""

    def __init__(self, function: Callable[..., Tensor], **weights: Tensor) -> None:
        super().__init__()
        self.function = function
        self.names = tuple(weights)
        for name, weight in weights.items():
            if name in ("mean", "var"):  # running statistics are buffers in every model
                self.register_buffer(name, weight.clone())
            else:
                self.register_parameter(name, nn.Parameter(weight.clone()))

    def run(self, *operands: Tensor) -> Tensor:
        """The function of operands and weights."""
        return self.function(*operands, **{name: getattr(self, name) for name in self.names})


class Wrapped(nn.Module):
    """A function of the input and of modules, called as a module: ``function(self, *operands)``."""

    def __init__(self, function: Callable[..., Tensor], **children: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, *operands: Tensor) -> Tensor:
        """The function of the operands."""
        return self.function(self, *operands)


def loaded(module: nn.Module, **weights: Tensor) -> nn.Module:
    """A module in float64 with these parameters and buffers."""
    module = module.double()
    state = module.state_dict()
    for name, weight in weights.items():
        state[name] = weight
    module.load_state_dict(state)
    return module.eval()


Maker = Callable[[], nn.Module]


HELD = "held"
"""Among the makers of a step: the function with what rules stop detached, a divisor or a softmax."""
MERGED = "merged"
"""Among the makers of a step: the function with batch norms merged into the layers before them."""


SEEN = "seen"
"""Among the makers of a step that is out of sight: the function as the library sees it."""


@dataclass(frozen=True)
class Step:
    """One function of a program; ``makers`` makes, from a :class:`Draw`, makers of modules."""

    name: str
    makers: Callable[[Draw], dict[str, Maker]]
    operands: int
    traits: frozenset[str]

    def spellings(self, draw: Draw) -> dict[str, Maker]:
        """Return one maker of a module for each way to write the function."""
        return {name: maker for name, maker in self.makers(draw).items() if name not in (HELD, MERGED, SEEN)}

    def maker(self, draw: Draw, spelling: str, instead: str = "") -> Maker:
        """Return the maker of one spelling, or what the step has instead, under that name."""
        makers = self.makers(draw)
        return makers.get(instead, makers[spelling])


STEPS: dict[str, Step] = {}


def step(*traits: str, operands: int = 1, name: str = "") -> Callable[[Any], Any]:
    """Enter a function that makes the spellings of a step."""

    def enter(spellings: Callable[[Draw], dict[str, Maker]]) -> Callable[[Draw], dict[str, Maker]]:
        own = name or spellings.__name__.rstrip("_")
        STEPS[own] = Step(own, spellings, operands, frozenset(traits))
        return spellings

    return enter


def functions(made: dict[str, Callable[..., Tensor]], **weights: Tensor) -> dict[str, Maker]:
    """Makers of functions that share weights."""
    return {name: lambda function=function: Function(function, **weights) for name, function in made.items()}


def plain(name: str, made: dict[str, Callable[..., Tensor]], *traits: str, operands: int = 1) -> None:
    """Enter a step without weights, written with functions alone."""
    step(*traits, operands=operands, name=name)(lambda draw: functions(made))
