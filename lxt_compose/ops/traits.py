"""Traits: properties of an operation beyond its family. The rows of operations are in `trait_rows`.

Other packages look at traits, never at an operation's name. An operation without a row has the defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from torch import Tensor


class Argument(NamedTuple):
    """Where an operation takes an argument: by position (the tensor of a method counts as 0) and by keyword."""

    position: int
    keyword: str
    default: Any = None
    other_keyword: str = ""
    """Its keyword in another form of the same operation."""

    def of(self, args: Any, kwargs: Any) -> Any:
        """Return the argument of a call; its default where it is left out."""
        for keyword in (self.keyword, self.other_keyword):
            if keyword in kwargs:
                return kwargs[keyword]
        return args[self.position] if len(args) > self.position else self.default


class LayerKind(Enum):
    """How a layer ``z = W x + b`` takes its input, its weight and its bias."""

    LINEAR = "linear"
    CONVOLUTION = "convolution"
    TRANSPOSED_CONVOLUTION = "transposed convolution"
    ADDMM = "addmm"
    MATRIX_PRODUCT = "matrix product"
    EINSUM = "einsum"
    AVERAGE = "average"
    """A sum or mean: all weights are equal."""
    BATCH_NORM = "batch norm"
    """With fixed statistics: one weight for each channel."""

    @property
    def has_weight(self) -> bool:
        """Whether the weight is an argument of the operation."""
        return self not in (LayerKind.AVERAGE, LayerKind.BATCH_NORM)


class NormKind(Enum):
    """Which statistic a normalization divides by."""

    LAYER = "layer"
    RMS = "rms"
    GROUP = "group"
    INSTANCE = "instance"
    BATCH = "batch"
    LENGTH = "length"
    """The p-norm along a dimension."""
    RESPONSE = "response"
    """The activity of neighboring channels."""
    LIMITED = "limited"
    """The p-norm of each slice, where it is above a limit."""


class Elements(Enum):
    """Where an output holds the elements of the input."""

    SAME_PLACE = "same place"
    """Each at its place, if the shape is the same."""
    SAME_ORDER = "same order"
    """In the same order, in another shape."""
    AVERAGED = "averaged"
    """In weighted means, whose weights are not negative."""
    JOINED = "joined"
    """Those of several tensors beside each other, along one dimension."""
    BROADCAST = "broadcast"
    """Operands of other shapes are aligned at the last dimension."""
    MIXED = "mixed"
    """Those of the last two dimensions are combined with each other."""


class Elementwise(Enum):
    """How each element of the output depends on the input's element at the same place alone."""

    AFFINE = "affine"
    NONLINEAR = "nonlinear"


class SoftmaxPart(Enum):
    """The part of an operation in a softmax that is written in several steps."""

    LOGARITHM = "logarithm"
    LOG_SUM = "logarithm of a sum of powers"
    LOG_SOFTMAX = "logarithm of a softmax"


class StateSpaceRole(Enum):
    """The role of an operation in a module that runs a selective state space."""

    STEP_SIZE = "makes the step size"
    PROJECTION = "splits a projection into parameters"


@dataclass(frozen=True, slots=True)
class Traits:
    """What is known of one operation.

    Attributes:
        layer: it is a layer ``W x + b`` of this kind.
        norm: it is a normalization of this kind.
        weight: the argument that scales a layer or a normalization.
        bias: the argument that is added, and keeps its share of relevance.
        per_channel: weight and bias have one value for each channel, which is dimension 1 of input and output.
        running_statistics: it may update some of its arguments in place while it runs.
        signs: it adds two operands, each with this sign.
        exponent: it is a power, with this exponent or with the exponent that this argument gives.
        modulus: of complex numbers it is their length, and homogeneous.
        degree: p where ``f(t x) = t ** p * f(x)``, for homogeneous functions, or the argument that gives it.
        order: the argument that gives the p of a p-norm.
        reduction: the argument that says in which way it reduces elements: "sum", "mean", "amax", "prod" ...
        fill: the method of its first tensor that puts a number where it reduces to, by the same dimension and index.
        element_sum: it reduces elements; this sums the same ones, and takes the same arguments.
        rectifier: it is ReLU.
        softmax_sign: it is a softmax over one dimension, of the input times this sign.
        softmax_part: its part in a softmax that is written in several steps.
        base: it raises this number to the power of its input.
        clips: it limits its input to a least or a largest value.
        like: an argument of which it uses only the shape or the dtype.
        mixes: it is a movement that picks elements by their value, or puts other values in.
        elements: where the input's elements are in the output.
        elementwise: how it is elementwise; not given for activations, products (of several tensors) and divisions,
            which are.
        reads_strides: it depends on how its argument lies in memory.
        lookup: it reads rows of a table by index.
        folds_batch: its kernel depends on whether the matrix requires grad: one product of the whole batch, or many.
        mask: the argument that is a mask; its kernel depends on whether that requires grad.
        recurrent: it is a whole recurrent net: layers, directions, positions.
        dropout: it is dropout: it scales and drops elements at random while training.
        dropout_rate: the argument that says how much it drops.
        training: the argument that says whether it does.
        state_space: what it does in a selective state space.
        has_projections: it is attention together with the projections before and after it.
        spoils_inputs: it changes its inputs in place without a sign of that, as some autograd functions do.
    """

    layer: LayerKind | None = None
    norm: NormKind | None = None
    weight: Argument | None = None
    bias: Argument | None = None
    per_channel: bool = False
    running_statistics: bool = False
    signs: tuple[float, float] | None = None
    exponent: float | Argument | None = None
    modulus: bool = False
    degree: float | Argument = 1.0
    order: Argument | None = None
    reduction: Argument | None = None
    fill: str = ""
    element_sum: Callable[..., Tensor] | None = None
    rectifier: bool = False
    softmax_sign: float | None = None
    softmax_part: SoftmaxPart | None = None
    base: float | None = None
    clips: bool = False
    like: Argument | None = None
    mixes: bool = False
    elements: Elements | None = None
    elementwise: Elementwise | None = None
    reads_strides: bool = False
    lookup: bool = False
    folds_batch: bool = False
    mask: Argument | None = None
    recurrent: bool = False
    dropout: bool = False
    dropout_rate: Argument | None = None
    training: Argument | None = None
    state_space: StateSpaceRole | None = None
    has_projections: bool = False
    spoils_inputs: bool = False

    @property
    def decides_family(self) -> bool:
        """Whether an argument of a call decides which family the operation has in it."""
        return self.reduction is not None or self.order is not None or isinstance(self.degree, Argument)

    @property
    def has_weight(self) -> bool:
        """Whether it is a layer of an input and a weight."""
        return self.layer is not None and self.layer.has_weight


NO_TRAITS = Traits()
