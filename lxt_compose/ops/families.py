"""The tables: which family an operation belongs to, its aliases, and what its arguments are to each other.

Names only, no attribute of torch is looked up: a name that this version of torch lacks is never looked up.
An operation has one canonical name; prefixes of namespaces, in-place underscores and dunders come off in `lookup`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .trait_rows import TRAITS
from .traits import NO_TRAITS, Argument, Traits


class Family(str, Enum):
    """What kind of operation it is; each family has one default rule.

    MOVEMENT needs none, COMPOSED is taken apart into others, UNCOVERED has none: the plain gradient passes.
    """

    LINEAR = "linear"
    MOVEMENT = "movement"
    ACTIVATION = "activation"
    PRODUCT = "product"
    CONTRACTION = "contraction"
    DIVISION = "division"
    HOMOGENEOUS = "homogeneous"
    STATISTIC = "statistic"
    SOFTMAX = "softmax"
    NORMALIZATION = "normalization"
    NORMALISATION = "normalization"  # noqa: PIE796 - its name in version 0.1
    ATTENTION = "attention"
    COMPOSED = "composed"
    UNCOVERED = "uncovered"


@dataclass(frozen=True, slots=True)
class Op:
    """One operation, under whatever name.

    addends: arguments, by position and by keyword, that are added in an operation that multiplies the others.
    held: arguments that are held constant under the default rule (the divisor of a division).
    multiplies: the tensor arguments that are neither addends nor held are multiplied with each other.
    traits: what else is known of it.
    reason: why it has no rule, if it has none.
    steps: the same operation in torch's own: relevance goes through those, and values stay the operation's.
    """

    name: str
    family: Family
    addends: frozenset[int | str] = frozenset()
    held: frozenset[int | str] = frozenset()
    multiplies: bool = False
    traits: Traits = field(default=NO_TRAITS, repr=False)
    reason: str = field(default="", repr=False, compare=False)
    steps: Callable[..., Any] | None = field(default=None, repr=False)

    def family_of_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Family:
        """Return the family of the operation in one call, which may depend on an argument."""
        known = self.traits
        if known.order is not None and known.order.of(args, kwargs) == 0:
            return Family.STATISTIC  # the number of elements that are not 0, which is piecewise constant
        if isinstance(known.degree, Argument):
            return Family.HOMOGENEOUS if known.degree.of(args, kwargs) > 0 else self.family
        if known.reduction is None:
            return self.family
        return _REDUCTIONS.get(known.reduction.of(args, kwargs), Family.UNCOVERED)


_REDUCTIONS = {
    "sum": Family.LINEAR,
    "mean": Family.LINEAR,
    "amax": Family.MOVEMENT,
    "amin": Family.MOVEMENT,
    "max": Family.MOVEMENT,
    "min": Family.MOVEMENT,
    "prod": Family.PRODUCT,
}


LINEAR = """
    add sub rsub sym_sum neg positive deg2rad rad2deg conj conj_physical
    sum sum_to_size nansum mean nanmean trace cumsum diff gradient trapezoid cumulative_trapezoid quantile nanquantile
    linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d conv_tbc convolution slow_conv
    bilinear addmm addbmm baddbmm addmv addr batch_norm embedding_bag
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    interpolate grid_sample affine_grid fold lerp ldexp addcdiv index_add scatter_add index_put put
    scatter_reduce index_reduce segment_reduce
    solve solve_triangular triangular_solve cholesky_solve
    fft ifft rfft irfft hfft ihfft fft2 ifft2 rfft2 irfft2 hfft2 ihfft2 fftn ifftn rfftn irfftn hfftn ihfftn stft istft
"""  # index_put and put are here because `accumulate=True` adds; solutions are linear in the right-hand side; whether
# the reductions sum, select or multiply only the call says

MOVEMENT = """
    view view_as reshape reshape_as resize resize_as flatten unflatten ravel squeeze unsqueeze expand expand_as
    broadcast_to broadcast_tensors atleast_1d atleast_2d atleast_3d as_strided as_subclass alias
    T mT H mH t transpose permute movedim rot90 roll flip fliplr flipud pixel_shuffle pixel_unshuffle channel_shuffle
    cat stack hstack vstack dstack column_stack block_diag cartesian_prod combinations meshgrid pad pad_sequence
    split split_with_sizes chunk tensor_split hsplit vsplit dsplit unbind unfold im2col
    pack_padded_sequence pad_packed_sequence tile repeat repeat_interleave
    getitem setitem select slice narrow index_select gather take take_along_dim masked_select embedding
    diag diag_embed diagflat diagonal tril triu fftshift ifftshift
    where masked_fill masked_scatter scatter index_copy index_fill copy fill fill_diagonal zero nan_to_num
    select_scatter slice_scatter diagonal_scatter
    sort msort topk max min amax amin aminmax maximum minimum fmax fmin median nanmedian mode kthvalue cummax cummin
    max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    fractional_max_pool2d fractional_max_pool3d max_unpool1d max_unpool2d max_unpool3d
    clone contiguous pin_memory lift_fresh to type type_as float double half bfloat16 chalf cfloat cdouble
    cpu cuda xpu ipu mtia as_tensor asarray autocast_to_full_precision autocast_to_reduced_precision
    rename align_to align_as refine_names
    to_dense to_sparse to_sparse_coo to_sparse_csr to_sparse_csc to_sparse_bsr to_sparse_bsc to_mkldnn
    to_padded_tensor coalesce values sparse_mask sparse_mask_projection
    real imag complex view_as_real view_as_complex resolve_conj resolve_neg
    dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout
"""  # dropouts are movement in eval mode; while training they scale and drop at random

ACTIVATION = """
    relu relu6 elu selu celu gelu silu mish tanh sigmoid logsigmoid softplus softsign hardswish hardsigmoid hardtanh
    hardshrink softshrink tanhshrink threshold leaky_relu prelu rrelu abs clamp clamp_min clamp_max copysign frac
    remainder rremainder fmod nextafter sin cos tan asin acos atan sinh cosh asinh acosh atanh exp exp2 expm1 log log2
    log10 log1p logit sinc erf erfc erfcx erfinv ndtr ndtri log_ndtr entr i0 i0e i1 i1e lgamma digamma polygamma
    multigammaln airy_ai bessel_j0 bessel_j1 bessel_y0 bessel_y1 spherical_bessel_j0 modified_bessel_i0
    modified_bessel_i1 modified_bessel_k0 modified_bessel_k1 scaled_modified_bessel_k0 scaled_modified_bessel_k1
    chebyshev_polynomial_t chebyshev_polynomial_u chebyshev_polynomial_v chebyshev_polynomial_w
    shifted_chebyshev_polynomial_t shifted_chebyshev_polynomial_u shifted_chebyshev_polynomial_v
    shifted_chebyshev_polynomial_w hermite_polynomial_h hermite_polynomial_he laguerre_polynomial_l
    legendre_polynomial_p round trunc fake_quantize_per_tensor_affine fake_quantize_per_channel_affine
    fused_moving_avg_obs_fake_quant
"""  # round and trunc are 0 at 0 and within twice x, unlike floor and ceil; what they lose is noise of the output

PRODUCT = "mul addcmul prod cumprod"  # the last two multiply the elements of one tensor

CONTRACTION = """
    matmul mm bmm mv dot vdot inner outer einsum tensordot kron chain_matmul multi_dot vecdot cross grouped_mm
"""

DIVISION = "div rdiv reciprocal"  # div with a rounding_mode, a matter of the call, is piecewise constant

HOMOGENEOUS = """
    hypot var std cov norm vector_norm matrix_norm nuclear_norm frobenius_norm norm_except_dim
    dist pairwise_distance cdist pdist
"""

# Powers are statistics where the exponent is negative, by their traits or by the call.
STATISTIC = """
    rsqrt pow rpow float_power sqrt square
    floor ceil sign sgn heaviside floor_divide rfloor_divide
    bernoulli poisson binomial normal uniform random exponential cauchy geometric log_normal
"""  # floor ... are piecewise constant, bernoulli ... draw at random: the gradient of both is 0

SOFTMAX = "softmax softmin log_softmax logsumexp logcumsumexp logaddexp logaddexp2"
# all but the first two: x * J^T (R / z), not softmax's closed form

NORMALIZATION = "layer_norm rms_norm group_norm instance_norm normalize local_response_norm renorm"

ATTENTION = "scaled_dot_product_attention multi_head_attention_forward"

COMPOSED = """
    glu cosine_similarity xlogy xlog1py corrcoef polar var_mean std_mean lp_pool1d lp_pool2d lp_pool3d
    lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
"""

_UNCOVERED = {
    "a factorization, an inverse, or a solution of linear equations by way of one": """
        cholesky cholesky_ex cholesky_inverse cond det logdet slogdet eig eigh eigvals eigvalsh geqrf
        householder_product orgqr ormqr inverse inv inv_ex pinverse pinv ldl_factor ldl_factor_ex ldl_solve lobpcg
        lstsq lu lu_factor lu_factor_ex lu_solve lu_unpack matrix_exp matrix_power matrix_rank pca_lowrank qr
        solve_ex svd svdvals svd_lowrank spsolve symeig tensorinv tensorsolve""",
    "several powers of a vector in one matrix: write them out": "vander",
    "a loss: start the relevance at the output instead, or write the loss out": """
        binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss cross_entropy cross_entropy_loss
        ctc_loss gaussian_nll_loss hinge_embedding_loss huber_loss kl_div l1_loss linear_cross_entropy
        margin_ranking_loss mse_loss multi_margin_loss multilabel_margin_loss multilabel_soft_margin_loss nll_loss
        nll_loss2d nll_loss_nd poisson_nll_loss smooth_l1_loss soft_margin_loss triplet_margin_loss
        triplet_margin_with_distance_loss""",
    "a kernel of one maker for recurrent nets: call torch.nn.LSTM and the like": "miopen_rnn",
    "draws at random": "gumbel_softmax",
    "a phase: its degree is 0, so what its inputs contribute adds up to nothing": "angle atan2",
    "splits a number into mantissa and exponent": "frexp",
    "a function of two arguments that neither adds nor multiplies them": "gammainc gammaincc zeta",
    "a step of synchronized batch norm": """
        batch_norm_stats batch_norm_elemt batch_norm_gather_stats batch_norm_gather_stats_with_counts
        batch_norm_backward_elemt batch_norm_backward_reduce batch_norm_update_stats""",
    "a kernel that orders its arguments, or its outputs, in another way: call the one of torch.nn.functional": """
        native_layer_norm native_group_norm native_batch_norm native_instance_norm fused_rms_norm""",
    "its result is sparse": "smm hspmm sspaddmm sampled_addmm",
    "internal to torch": "slice_inverse",
    "torch's gradient of it is wrong (2.13: it goes to the elements that were overwritten)": "as_strided_scatter",
    "two operations in one kernel": """
        add_relu addmm_activation cudnn_convolution_relu cudnn_convolution_add_relu miopen_convolution_relu
        miopen_convolution_add_relu""",
}

_REASONS = {name: reason for reason, names in _UNCOVERED.items() for name in names.split()}


# Which tensor arguments are only added, where the others are multiplied ...
ADDENDS = """
    linear: 2 bias  bilinear: 3 bias                conv1d: 2 bias  conv2d: 2 bias  conv3d: 2 bias  conv_tbc: 2 bias
    conv_transpose1d: 2 bias        conv_transpose2d: 2 bias        conv_transpose3d: 2 bias
    convolution: 2 bias             slow_conv: 3 bias               addmm: 0 input  addbmm: 0 input
    baddbmm: 0 input                addmv: 0 input  addr: 0 input   addcmul: 0 input
    batch_norm: 4 bias              grouped_mm: bias
"""

# ... and which are held constant under the default rule. The tensor of a method has position 0.
HELD = """
    div: 1 other    rdiv: 0 self    reciprocal: 0 input             addcdiv: 2 tensor2              lerp: 2 weight
    prelu: 1 weight                 grid_sample: 1 grid             ldexp: 1 other  copysign: 1 other
    clamp: 1 2 min max              clamp_min: 1 min                clamp_max: 1 max
    remainder: 1 other              rremainder: 0 self              fmod: 1 other   nextafter: 1 other
    trapezoid: 1 x  cumulative_trapezoid: 1 x       gradient: spacing               quantile: 1 q   nanquantile: 1 q
    stft: 4 window  istft: 4 window
    solve: 0 A input self           solve_triangular: 0 A input self                triangular_solve: 1 A
    cholesky_solve: 1 L input2      cov: fweights aweights
    batch_norm: 1 2 running_mean running_var
    fake_quantize_per_tensor_affine: 1 2 scale zero_point
    fake_quantize_per_channel_affine: 1 2 scale zero_point
"""


def parse(table: str) -> dict[str, list[str]]:
    """Read a table of `name: word word ...` entries."""
    entries: dict[str, list[str]] = {}
    for word in table.split():
        if word.endswith(":"):
            words = entries.setdefault(word[:-1], [])
        else:
            words.append(word)
    return entries


def _arguments(words: list[str]) -> frozenset[int | str]:
    return frozenset(int(word) if word.isdigit() else word for word in words)


MULTIPLIES = frozenset(f"mul {CONTRACTION} embedding_bag {' '.join(parse(ADDENDS))}".split())
"""Operations with an addend multiply their other arguments."""

FAMILIES = {
    Family.LINEAR: LINEAR,
    Family.MOVEMENT: MOVEMENT,
    Family.ACTIVATION: ACTIVATION,
    Family.PRODUCT: PRODUCT,
    Family.CONTRACTION: CONTRACTION,
    Family.DIVISION: DIVISION,
    Family.HOMOGENEOUS: HOMOGENEOUS,
    Family.STATISTIC: STATISTIC,
    Family.SOFTMAX: SOFTMAX,
    Family.NORMALIZATION: NORMALIZATION,
    Family.ATTENTION: ATTENTION,
    Family.COMPOSED: COMPOSED,
    Family.UNCOVERED: " ".join(_REASONS),
}


def build_ops() -> dict[str, Op]:
    """Return every operation, by its canonical name."""
    nothing: frozenset[int | str] = frozenset()
    addends = {name: _arguments(words) for name, words in parse(ADDENDS).items()}
    held = {name: _arguments(words) for name, words in parse(HELD).items()}
    return {
        name: Op(
            name,
            family,
            addends.get(name, nothing),
            held.get(name, nothing),
            name in MULTIPLIES,
            TRAITS.get(name, NO_TRAITS),
            _REASONS.get(name, ""),
        )
        for family, names in FAMILIES.items()
        for name in names.split()
    }
