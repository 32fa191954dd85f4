"""Other names of the same operations."""

# canonical name: other names of the same operation
ALIASES = """
    abs: absolute   acos: arccos    asin: arcsin    atan: arctan    acosh: arccosh  asinh: arcsinh  atanh: arctanh
    atan2: arctan2  neg: negative   sub: subtract   mul: multiply   div: divide true_divide         trunc: fix
    clamp: clip     cat: concat concatenate         vstack: row_stack               transpose: swapaxes swapdims
    movedim: moveaxis               mH: adjoint     outer: ger      trapezoid: trapz                sigmoid: expit
    logsigmoid: log_sigmoid         lgamma: gammaln                 digamma: psi    multigammaln: mvlgamma
    gammainc: igamma                gammaincc: igammac              rrelu: rrelu_with_noise
    sampled_addmm: sparse_sampled_addmm
    mm: dsmm hsmm spmm              addmm: saddmm   getitem: index  index_put: index_put_impl
    softmax: safe_softmax           fold: col2im
    interpolate: upsample upsample_nearest upsample_bilinear upsample_nearest1d upsample_nearest2d
        upsample_nearest3d upsample_nearest_exact1d upsample_nearest_exact2d upsample_nearest_exact3d
        upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d upsample_bilinear2d_aa
        upsample_bicubic2d_aa upsample_lanczos2d_aa
    grid_sample: grid_sampler grid_sampler_2d grid_sampler_3d cudnn_grid_sampler
    affine_grid: affine_grid_generator cudnn_affine_grid_generator
    pad: constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
        replication_pad3d pad_circular pad_enum
    max_pool1d: max_pool1d_with_indices
    max_pool2d: max_pool2d_with_indices mkldnn_max_pool2d
    max_pool3d: max_pool3d_with_indices mkldnn_max_pool3d
    adaptive_max_pool1d: adaptive_max_pool1d_with_indices
    adaptive_max_pool2d: adaptive_max_pool2d_with_indices
    adaptive_max_pool3d: adaptive_max_pool3d_with_indices
    fractional_max_pool2d: fractional_max_pool2d_with_indices
    adaptive_avg_pool2d: mkldnn_adaptive_avg_pool2d
    fractional_max_pool3d: fractional_max_pool3d_with_indices
    convolution: cudnn_convolution mkldnn_convolution miopen_convolution miopen_depthwise_convolution
        convolution_mode cudnn_convolution_transpose miopen_convolution_transpose nnpack_spatial_convolution
    slow_conv: slow_conv3d slow_conv_dilated2d slow_conv_dilated3d slow_conv_transpose2d slow_conv_transpose3d
        thnn_conv2d conv_depthwise2d conv_depthwise3d
    native_batch_norm: native_batch_norm_legit native_batch_norm_legit_no_training batch_norm_impl_index
        cudnn_batch_norm miopen_batch_norm
"""


# The names of Python's operators: dunders of a tensor, and functions of `operator`.
PYTHON_OPERATORS = """
    add: add radd iadd              sub: sub isub   rsub: rsub      mul: mul rmul imul
    matmul: matmul rmatmul imatmul  div: div truediv idiv itruediv  rdiv: rdiv rtruediv             pow: pow ipow
    rpow: rpow      remainder: mod imod             rremainder: rmod                floor_divide: floordiv ifloordiv
    rfloor_divide: rfloordiv        neg: neg        positive: pos   abs: abs        getitem: getitem
    setitem: setitem                unbind: iter    flip: reversed
"""
