"""The traits of each operation that has any: one row for operations of the same traits, by canonical names."""

from __future__ import annotations

import math
from dataclasses import replace

from .reductions import (
    sum_for_cumprod,
    sum_for_index_reduce,
    sum_for_prod,
    sum_for_scatter_reduce,
    sum_for_segment_reduce,
)
from .traits import (
    NO_TRAITS,
    Argument,
    Elements,
    Elementwise,
    LayerKind,
    NormKind,
    SoftmaxPart,
    StateSpaceRole,
    Traits,
)

_OTHER = Argument(1, "other")


def _bias(position: int) -> Argument:
    return Argument(position, "bias")


def _weight(position: int) -> Argument:
    return Argument(position, "weight")


_AFFINE, _NONLINEAR = Elementwise.AFFINE, Elementwise.NONLINEAR

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

TRAITS: dict[str, Traits] = {name: traits for names, traits in _ROWS for name in names.split()}
TRAITS |= {name: replace(TRAITS.get(name, NO_TRAITS), mixes=True) for name in _MIXES}
