"""What is known of an operation beyond its family: one row of traits for each operation that has any.

Other packages ask for a trait and never for an operation's name. An operation without a row has the defaults.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, NamedTuple

from torch import Tensor

from .reductions import (
    sum_for_cumprod,
    sum_for_index_reduce,
    sum_for_prod,
    sum_for_scatter_reduce,
    sum_for_segment_reduce,
)


class Argument(NamedTuple):
    """Where an operation takes an argument: by position (the tensor of a method counts as 0) and by keyword."""

    position: int
    keyword: str
    default: Any = None
    other_keyword: str = ""
    """What another form of the same operation calls it."""

    def of(self, args: Any, kwargs: Any) -> Any:
        """Return the argument of a call; the default where it is left out."""
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
    """Where the elements of the input are in the output."""

    SAME_PLACE = "same place"
    """Each where it was, if the shape is the same."""
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
    """How an output depends on the input's element at the same place, and on no other."""

    AFFINE = "affine"
    NONLINEAR = "nonlinear"


class SoftmaxPart(Enum):
    """What an operation is in a softmax that is written in several steps."""

    LOGARITHM = "logarithm"
    LOG_SUM = "logarithm of a sum of powers"
    LOG_SOFTMAX = "logarithm of a softmax"


class StateSpaceRole(Enum):
    """What an operation does in a module that runs a selective state space."""

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
        softmax_part: what it is in a softmax that is written in several steps.
        base: it raises this number to the power of its input.
        clips: it cuts its input off at a least or a largest value.
        like: the argument of which it takes the shape or the dtype alone.
        mixes: it is a movement that picks elements by their value, or puts other values in.
        elements: where the input's elements are in the output.
        elementwise: how it is elementwise; activations, products (of several tensors) and divisions are without
            saying so.
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

    @property
    def decides_family(self) -> bool:
        """Whether an argument of a call says which family it has in this call."""
        return self.reduction is not None or self.order is not None or isinstance(self.degree, Argument)

    @property
    def has_weight(self) -> bool:
        """Whether it is a layer of an input and a weight."""
        return self.layer is not None and self.layer.has_weight


_OTHER = Argument(1, "other")
_AFFINE, _NONLINEAR = Elementwise.AFFINE, Elementwise.NONLINEAR


def _bias(position: int) -> Argument:
    return Argument(position, "bias")


def _weight(position: int) -> Argument:
    return Argument(position, "weight")


_ROWS: tuple[tuple[str, Traits], ...] = (
    ("linear", Traits(LayerKind.LINEAR, weight=_weight(1), bias=_bias(2), folds_batch=True)),
    ("conv1d conv2d conv3d",
     Traits(LayerKind.CONVOLUTION, weight=_weight(1), bias=_bias(2), per_channel=True)),
    ("conv_transpose1d conv_transpose2d conv_transpose3d",
     Traits(LayerKind.TRANSPOSED_CONVOLUTION, weight=_weight(1), bias=_bias(2), per_channel=True)),
    ("bilinear", Traits(weight=_weight(2), bias=_bias(3))),
    ("addmm", Traits(LayerKind.ADDMM, bias=Argument(0, "input"))),
    ("matmul", Traits(LayerKind.MATRIX_PRODUCT, folds_batch=True)),
    ("mm bmm mv", Traits(LayerKind.MATRIX_PRODUCT)),
    ("einsum", Traits(LayerKind.EINSUM)),
    ("avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d sum mean",
     Traits(LayerKind.AVERAGE, elements=Elements.AVERAGED)),
    ("nansum nanmean cumsum sum_to_size interpolate index_add scatter_add fold index_put put",
     Traits(elements=Elements.AVERAGED)),
    ("layer_norm", Traits(norm=NormKind.LAYER, weight=_weight(2), bias=_bias(3))),
    ("rms_norm", Traits(norm=NormKind.RMS, weight=_weight(2))),
    ("group_norm", Traits(norm=NormKind.GROUP, weight=_weight(2), bias=_bias(3), per_channel=True)),
    ("instance_norm",
     Traits(norm=NormKind.INSTANCE, weight=_weight(3), bias=_bias(4), per_channel=True, running_statistics=True)),
    ("batch_norm",
     Traits(LayerKind.BATCH_NORM, NormKind.BATCH, _weight(3), _bias(4), per_channel=True, running_statistics=True,
            training=Argument(5, "training", default=False))),
    ("native_batch_norm",
     Traits(norm=NormKind.BATCH, weight=_weight(1), bias=_bias(2), per_channel=True, running_statistics=True)),
    ("native_instance_norm", Traits(norm=NormKind.INSTANCE, weight=_weight(1), bias=_bias(2), per_channel=True,
                                    running_statistics=True)),
    ("normalize", Traits(norm=NormKind.LENGTH)),
    ("local_response_norm", Traits(norm=NormKind.RESPONSE)),
    ("add", Traits(signs=(1.0, 1.0), elements=Elements.BROADCAST, elementwise=_AFFINE)),
    ("sub", Traits(signs=(1.0, -1.0), elements=Elements.BROADCAST, elementwise=_AFFINE)),
    ("rsub", Traits(signs=(-1.0, 1.0), elements=Elements.BROADCAST, elementwise=_AFFINE)),
    ("neg positive where", Traits(elementwise=_AFFINE)),
    ("pow float_power", Traits(exponent=Argument(1, "exponent"), elementwise=_NONLINEAR)),
    ("square", Traits(exponent=2.0, elementwise=_NONLINEAR)),
    ("sqrt", Traits(exponent=0.5, elementwise=_NONLINEAR)),
    ("rpow", Traits(exponent=Argument(0, "self"), elementwise=_NONLINEAR)),
    ("rsqrt min max minimum maximum fmin fmax", Traits(elementwise=_NONLINEAR)),
    ("abs", Traits(modulus=True)),
    ("var", Traits(degree=2.0)),
    ("cov", Traits(degree=2.0, elements=Elements.MIXED)),
    ("matrix_power", Traits(degree=Argument(1, "n"), elements=Elements.MIXED)),
    ("norm vector_norm", Traits(order=Argument(1, "p", 2.0, other_keyword="ord"))),
    ("dist pairwise_distance", Traits(order=Argument(2, "p", 2.0))),
    ("cdist", Traits(order=Argument(2, "p", 2.0), elements=Elements.MIXED)),
    ("pdist", Traits(order=Argument(1, "p", 2.0), elements=Elements.MIXED)),
    ("hypot logaddexp logaddexp2", Traits(elements=Elements.BROADCAST)),
    ("renorm", Traits(norm=NormKind.LIMITED)),
    ("prod", Traits(element_sum=sum_for_prod, elements=Elements.AVERAGED)),
    ("cumprod", Traits(element_sum=sum_for_cumprod, elements=Elements.AVERAGED)),
    ("scatter_reduce", Traits(reduction=Argument(4, "reduce"), fill="scatter", element_sum=sum_for_scatter_reduce,
                              elements=Elements.AVERAGED)),
    ("index_reduce", Traits(reduction=Argument(4, "reduce"), fill="index_fill", element_sum=sum_for_index_reduce,
                            elements=Elements.AVERAGED)),
    ("segment_reduce", Traits(reduction=Argument(1, "reduce"), element_sum=sum_for_segment_reduce,
                              elements=Elements.AVERAGED)),
    ("relu", Traits(rectifier=True)),
    ("softplus", Traits(state_space=StateSpaceRole.STEP_SIZE)),
    ("softmax", Traits(softmax_sign=1.0)),
    ("softmin", Traits(softmax_sign=-1.0)),
    ("log", Traits(softmax_part=SoftmaxPart.LOGARITHM)),
    ("logsumexp", Traits(softmax_part=SoftmaxPart.LOG_SUM)),
    ("log_softmax", Traits(softmax_part=SoftmaxPart.LOG_SOFTMAX)),
    ("exp", Traits(base=math.e)),
    ("exp2", Traits(base=2.0)),
    ("clamp clamp_min", Traits(clips=True)),
    ("clone contiguous to float double half bfloat16 type masked_fill",
     Traits(elements=Elements.SAME_PLACE, elementwise=_AFFINE)),
    ("type_as", Traits(elements=Elements.SAME_PLACE, elementwise=_AFFINE, like=_OTHER)),
    ("alias", Traits(elements=Elements.SAME_PLACE)),
    ("view", Traits(elements=Elements.SAME_ORDER, reads_strides=True)),
    ("view_as", Traits(elements=Elements.SAME_ORDER, reads_strides=True, like=_OTHER)),
    ("reshape flatten unflatten squeeze unsqueeze", Traits(elements=Elements.SAME_ORDER)),
    ("reshape_as", Traits(elements=Elements.SAME_ORDER, like=_OTHER)),
    ("expand_as", Traits(like=_OTHER)),
    ("as_strided", Traits(reads_strides=True)),
    ("cat", Traits(elements=Elements.JOINED)),
    ("split split_with_sizes", Traits(state_space=StateSpaceRole.PROJECTION)),
    ("embedding", Traits(lookup=True)),
    ("dropout dropout1d dropout2d dropout3d feature_dropout",
     Traits(elements=Elements.SAME_PLACE, dropout=True, dropout_rate=Argument(1, "p", 0.5),
            training=Argument(2, "training", default=True, other_keyword="train"))),
    ("alpha_dropout feature_alpha_dropout",
     Traits(elements=Elements.SAME_PLACE, dropout=True, dropout_rate=Argument(1, "p", 0.5),
            training=Argument(2, "training", default=False, other_keyword="train"))),
    ("lstm gru rnn_tanh rnn_relu", Traits(recurrent=True)),
    ("scaled_dot_product_attention", Traits(mask=Argument(3, "attn_mask"), dropout_rate=Argument(4, "dropout_p", 0.0))),
    ("multi_head_attention_forward",
     Traits(dropout_rate=Argument(10, "dropout_p", 0.0), training=Argument(13, "training", default=True),
            has_projections=True)),
)  # fmt: skip

_MIXES = """
    pad pad_sequence where masked_fill masked_scatter scatter index_copy index_fill fill fill_diagonal zero nan_to_num
    setitem select_scatter slice_scatter diagonal_scatter block_diag diag_embed diagflat tril triu to_padded_tensor
    sort msort topk max min amax amin aminmax maximum minimum fmax fmin median nanmedian mode kthvalue cummax cummin
    max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    fractional_max_pool2d fractional_max_pool3d max_unpool1d max_unpool2d max_unpool3d
    alpha_dropout feature_alpha_dropout
""".split()

NO_TRAITS = Traits()
TRAITS: dict[str, Traits] = {name: traits for names, traits in _ROWS for name in names.split()}
TRAITS |= {name: replace(TRAITS.get(name, NO_TRAITS), mixes=True) for name in _MIXES}
"""The row of each operation that has one, by its canonical name."""
