"""The tables of operations: complete, one op for each alias, and each family is what it says it is."""

import inspect
import operator
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import (
    TorchFunctionMode,
    get_ignored_functions,
    get_overridable_functions,
    get_testing_overrides,
)

from lxt_compose.ops import Family, Op, display_name, mutates, op_named, op_of, same_op
from lxt_compose.ops.families import FAMILIES, parse
from lxt_compose.ops.trait_rows import TRAITS

pytestmark = pytest.mark.filterwarnings("ignore")  # half of what is tried here is deprecated or experimental

NOT_DIFFERENTIABLE = {
    "reads metadata": """
        _base _cdata _grad_fn _post_accumulate_grad_hooks _backward_hooks _version __cuda_array_interface__ ?
        data_ptr device const_data_ptr dim dim_order dtype element_size get_device grad_dtype grad_fn is_coalesced
        is_complex is_conj is_contiguous is_cpu is_cuda is_distributed is_floating_point is_inference is_ipu is_leaf
        is_maia is_meta is_mkldnn is_mps is_mtia is_neg is_nested is_pinned is_quantized is_same_size is_set_to
        is_shared is_signed is_sparse is_sparse_csr is_vulkan is_xla is_xpu _is_view itemsize layout name nbytes
        ndim ndimension nelement numel output_nr qscheme requires_grad retains_grad shape size storage_offset
        storage_type volatile __len__ __format__ __repr__ dense_dim sparse_dim _dimI _dimV _nnz _nested_tensor_size
        _nested_tensor_storage_offsets _nested_tensor_strides __dlpack_device__""",
    "changes flags, hooks or storage, or leaves torch": """
        _clear_non_serializable_cached_data _coalesced_ _grad apply_ autocast backward data detach detach_
        detach_copy grad item map_ map2_ module_load numpy record_stream register_hook
        register_post_accumulate_grad_hook requires_grad_ retain_grad set_ share_memory_ storage untyped_storage
        tolist __array__ __array_wrap__ __bool__ __complex__ __deepcopy__ __dlpack__ __float__ __index__ __int__
        __long__ __nonzero__ __reduce_ex__ __setstate__ resize_as_sparse_ sparse_resize_ sparse_resize_and_clear_""",
    "makes a new tensor": "empty_like full_like ones_like zeros_like",
    "compares": """
        all allclose any eq equal ge greater greater_equal gt isclose isfinite isin isinf isnan is_nonzero isneginf
        isposinf isreal le less less_equal logical_and logical_not logical_or logical_xor lt ne not_equal signbit
        __contains__ __eq__ __ge__ __gt__ __le__ __lt__ __ne__""",
    "integers in": """
        bincount bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor gcd lcm one_hot
        unravel_index __and__ __iand__ __ilshift__ __invert__ __ior__ __irshift__ __ixor__ __lshift__ __or__ __rand__
        __rlshift__ __ror__ __rrshift__ __rshift__ __rxor__ __xor__""",
    "integers out": """
        argmax argmin argsort argwhere bool bucketize byte char count_nonzero hash_tensor histc int long multinomial
        nonzero nonzero_static searchsorted short indices _indices col_indices crow_indices ccol_indices row_indices
        indices_copy col_indices_copy crow_indices_copy ccol_indices_copy row_indices_copy""",
    "counts or lists values: torch has no derivative for it": "histogram histogramdd unique unique_consecutive",
    "symbolic numbers": "_sym_sqrt sym_float sym_int sym_ite sym_max sym_min sym_not",
    "quantized inference": """
        choose_qparams_optimized dequantize fbgemm_linear_fp16_weight fbgemm_linear_fp16_weight_fp32_activation
        fbgemm_linear_int8_weight fbgemm_linear_int8_weight_fp32_activation fbgemm_linear_quantize_weight
        fbgemm_pack_gemm_matrix_fp16 fbgemm_pack_quantized_matrix int_repr q_per_channel_axis q_per_channel_scales
        q_per_channel_zero_points q_scale q_zero_point quantize_per_channel quantize_per_tensor
        quantize_per_tensor_dynamic quantized_batch_norm quantized_gru_cell quantized_lstm_cell quantized_max_pool1d
        quantized_max_pool2d quantized_max_pool3d quantized_rnn_relu_cell quantized_rnn_tanh_cell""",
}
LISTED = frozenset(name for names in NOT_DIFFERENTIABLE.values() for name in names.split())

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    FUNCTIONS = [func for functions in get_overridable_functions().values() for func in functions]


GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    GENERATOR.manual_seed(0)
    torch.default_generator.manual_seed(0)  # torch.manual_seed looks for every kind of device, each time


of_this_torch = pytest.mark.skipif(
    torch.__version__ < (2, 13), reason=f"families are those of torch 2.13: {torch.__version__} has other functions"
)


def r(*shape: int) -> Tensor:
    """Random numbers between 0.5 and 1.5."""
    return torch.rand(*shape, dtype=torch.float64, generator=GENERATOR) + 0.5


def name_of(func: Callable[..., Any]) -> str:
    if func.__name__ == "__get__":
        return getattr(func.__self__, "__name__", "?")  # "?": a property, before Python 3.13
    return func.__name__


def tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for item in tree for leaf in tensors(item)] if isinstance(tree, tuple | list) else []


def undecided(functions: list[Callable[..., Any]]) -> list[str]:
    """What is neither an op nor listed as not differentiable."""
    listed = LISTED | {name + "_" for name in LISTED}
    return sorted({display_name(func) for func in functions if op_of(func) is None and name_of(func) not in listed})


INDEX = torch.tensor([[0, 1, 0], [1, 0, 1]])
PATTERNS: list[Callable[[Tensor, Tensor], tuple[Any, ...]]] = [
    lambda x, y: (x,),
    lambda x, y: (x, y),
    lambda x, y: (x, 0),
    lambda x, y: (x, 1),
    lambda x, y: (x, 2),
    lambda x, y: (x, 1.0),
    lambda x, y: (x, 0, 1),
    lambda x, y: (x, (1, 0)),
    lambda x, y: (x, x.shape),
    lambda x, y: (x, (2, 2, 3)),
    lambda x, y: (x, 0, INDEX),
    lambda x, y: (x, 0, INDEX, y),
    lambda x, y: (x, 0, INDEX[0, :2], y),
    lambda x, y: (x, 0, INDEX[0, :2], 1.0),
    lambda x, y: (x, INDEX),
    lambda x, y: (x, INDEX > 0),
    lambda x, y: (x, INDEX > 0, 0),
    lambda x, y: (x, INDEX > 0, y),
    lambda x, y: (INDEX > 0, x, y),
    lambda x, y: ([x, y],),
    lambda x, y: (x, y.t()),
    lambda x, y: (x, y, y.detach() + 100),
    lambda x, y: (x, torch.float32),
]


def calls(
    func: Callable[..., Any], x: Tensor, y: Tensor
) -> Iterator[tuple[tuple[Any, ...], list[Tensor], Tensor, Tensor]]:
    """Every pattern of arguments that `func` accepts, with its outputs and the leaves they come from."""
    for pattern in PATTERNS:
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        args = pattern(a * 1, b * 1)  # not leaves: func may write in place
        try:
            torch.default_generator.manual_seed(0)
            result = func(*args)
        except Exception:  # most patterns do not fit most functions
            continue
        outputs = tensors(args[0]) if result is None and mutates(func, args) else tensors(result)
        yield args, [out for out in outputs if out.requires_grad and out.numel()], a, b


def gradients(output: Tensor, weight: Tensor, *leaves: Tensor) -> list[Tensor]:
    """Gradients of sum(weight * output), zeros where none flows; none at all where torch has no derivative."""
    try:
        found = torch.autograd.grad(output, leaves, weight, allow_unused=True, retain_graph=True)
    except (RuntimeError, NotImplementedError):
        return []
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]


def wrongly_listed(functions: list[Callable[..., Any]]) -> list[str]:
    """Functions that are listed as not differentiable although a gradient passes."""
    found = []
    for func in functions:
        for args, outputs, a, b in calls(func, r(2, 3), r(2, 3)):
            new = [out for out in outputs if not any(out is argument for argument in tensors(args))]
            if any(g.any() for out in new for g in gradients(out, torch.ones_like(out), a, b)):
                found.append(display_name(func))
                break
    return found


@of_this_torch
def test_every_overridable_function_is_decided():
    assert undecided(FUNCTIONS) == []


NAMESPACES = (torch, torch.linalg, torch.fft, torch.special, torch.sparse, torch.nn.functional)
NO_OPERATION_OF_TENSORS = """
    as_sparse_gradcheck classproperty compiled_with_cxx11_abi from_dlpack get_file_path overload
    prepare_multiprocessing_environment profiler_allow_cudagraph_cupti_lazy_reinit_cuda12 set_default_dtype spdiags
    to_dlpack to_sparse_semi_structured quantized_gru quantized_lstm resize_as_sparse_ embedding_renorm_
    while_loop eig lstsq matrix_rank solve symeig
"""  # the last five are no longer there: they raise


def public() -> list[Callable[..., Any]]:
    """All functions of tensors under a public name, also those that torch does not list as overridable."""
    no_operations = NO_OPERATION_OF_TENSORS.split()
    found = [
        function
        for namespace in NAMESPACES
        for name, function in vars(namespace).items()
        if not name.startswith("_") and name not in no_operations
        if isinstance(function, BuiltinFunctionType | FunctionType)
    ]
    ignored = {
        getattr(function, "__name__", "") for function in get_ignored_functions()
    }  # by name: torch._dynamo exchanges some
    return [function for function in found if function.__name__ not in ignored]


@of_this_torch
def test_every_public_function_is_decided():
    """segment_reduce and the functions of torch.sparse can be overridden too, although they are not listed."""
    functions = public()
    assert undecided(functions) == []
    assert torch.segment_reduce in functions
    assert torch.sparse.mm in functions


def test_what_has_no_rule_says_why():
    names = FAMILIES[Family.UNCOVERED].split()
    assert names
    assert all(op_named(name).reason for name in names)
    assert not any(
        op.reason for name in " ".join(FAMILIES.values()).split() if (op := op_named(name)) and name not in names
    )


def test_what_is_listed_as_not_differentiable_is_not():
    listed = [func for func in FUNCTIONS if op_of(func) is None and not isinstance(func, type)]
    assert wrongly_listed(listed) == []


def test_the_checks_themselves_notice():
    def frobnicate(x: Tensor) -> Tensor:
        return x * x

    frobnicate.__module__ = "torch"  # what a function of a newer torch would look like
    assert undecided([torch.add, frobnicate]) == [display_name(frobnicate)]
    assert wrongly_listed([torch.argmax, torch.Tensor.eq_, torch.sin, frobnicate]) == [
        "torch.sin",
        display_name(frobnicate),
    ]


def test_no_name_is_listed_twice_and_none_needlessly():
    names = " ".join(FAMILIES.values()).split()
    assert len(names) == len(set(names))
    assert op_of(torch.det) == Op("det", Family.UNCOVERED)
    assert op_of(torch.det).reason.startswith("a factorization, an inverse")
    assert not {name_of(func) for func in FUNCTIONS if op_of(func)} & LISTED


def test_positions_and_keywords_name_the_same_arguments():
    signatures = get_testing_overrides()
    checked = set()
    for func in FUNCTIONS:
        op = op_of(func)
        if op is None or func not in signatures:
            continue
        parameters = list(inspect.signature(signatures[func]).parameters)
        for field in (op.addends, op.held):
            named = {parameters[i] for i in field if isinstance(i, int) and i < len(parameters)}
            assert named <= field | {"self"}, display_name(func)
            checked |= {op.name} if named else set()
    assert {"linear", "addmm", "batch_norm", "div", "rdiv", "addcdiv", "lerp", "grid_sample"} <= checked


ALIASES = """
    add: torch.add Tensor.add Tensor.add_ Tensor.__add__ Tensor.__radd__ Tensor.__iadd__ operator.add operator.iadd
    sub: torch.sub torch.subtract Tensor.__sub__ Tensor.__isub__ Tensor.sub_ operator.sub
    rsub: torch.rsub Tensor.__rsub__ torch.sub
    mul: torch.mul torch.multiply Tensor.__mul__ Tensor.__rmul__ Tensor.__imul__ operator.mul operator.imul
    div: torch.div torch.divide torch.true_divide Tensor.__truediv__ Tensor.__itruediv__ operator.truediv
    rdiv: Tensor.__rtruediv__ Tensor.__rdiv__ torch.div
    pow: torch.pow Tensor.__pow__ Tensor.__ipow__ Tensor.__rpow__ operator.pow pow
    matmul: torch.matmul torch.linalg.matmul Tensor.__matmul__ Tensor.__rmatmul__ operator.matmul operator.imatmul
    neg: torch.neg torch.negative Tensor.__neg__ operator.neg
    abs: torch.abs torch.absolute Tensor.abs_ Tensor.__abs__ operator.abs abs
    remainder: torch.remainder Tensor.__mod__ Tensor.__rmod__ operator.mod operator.imod
    floor_divide: torch.floor_divide Tensor.__floordiv__ Tensor.__rfloordiv__ operator.floordiv
    getitem: Tensor.__getitem__ operator.getitem
    setitem: Tensor.__setitem__ operator.setitem
    unbind: torch.unbind Tensor.unbind Tensor.__iter__
    relu: F.relu torch.relu torch.relu_ F.relu_ Tensor.relu_
    gelu: F.gelu torch._C._nn.gelu
    hardswish: F.hardswish torch._C._nn.hardswish_
    sigmoid: torch.sigmoid torch.special.expit F.sigmoid Tensor.sigmoid_
    logsigmoid: F.logsigmoid torch._C._nn.log_sigmoid
    threshold: F.threshold torch.threshold torch.threshold_
    softmax: F.softmax torch.softmax torch.special.softmax Tensor.softmax torch._softmax torch._safe_softmax
    layer_norm: F.layer_norm torch.layer_norm
    native_batch_norm: torch.native_batch_norm torch.batch_norm torch.cudnn_batch_norm torch.ops.aten.batch_norm
    norm: torch.norm Tensor.norm torch.linalg.norm torch.functional.norm
    linear: F.linear torch._C._nn.linear torch.ops.aten.linear torch.ops.aten.linear.default
    conv2d: F.conv2d torch.conv2d
    cat: torch.cat torch.concat torch.concatenate torch.ops.aten.cat.default
    transpose: torch.transpose torch.swapaxes Tensor.swapdims Tensor.transpose_ torch.transpose_copy
    split: torch.split Tensor.split torch._VF.split torch.unsafe_split
    max_pool2d: F.max_pool2d torch.max_pool2d F.max_pool2d_with_indices
    interpolate: F.interpolate F.upsample torch._C._nn.upsample_nearest2d F.upsample_bilinear
    pad: F.pad torch.constant_pad_nd torch._C._nn.reflection_pad1d
    mH: torch.adjoint Tensor.mH.__get__
    real: torch.real Tensor.real.__get__
    fft: torch.fft.fft torch.ops.aten.fft_fft
    clamp: torch.clamp torch.clip Tensor.clip_
"""
NAMESPACE = {"torch": torch, "Tensor": Tensor, "F": F, "nn": torch.nn, "operator": operator}


@pytest.mark.parametrize(("name", "group"), parse(ALIASES).items())
def test_aliases_are_one_operation(name: str, group: list[str]):
    first, *others = (op_of(eval(alias, dict(NAMESPACE))) for alias in group)
    assert first is not None
    assert first.name == name
    assert all(other is not None and same_op(first, other) for other in others)


def test_what_is_not_the_same_is_kept_apart():
    pairs = [
        (torch.add, torch.sub),
        (torch.div, torch.mul),
        (torch.max, torch.amax),
        (F.unfold, Tensor.unfold),  # patches, and a sliding window
        (F.batch_norm, torch.batch_norm),  # their arguments come in another order
        (F.instance_norm, torch.instance_norm),
    ]
    for one, other in pairs:
        a, b = op_of(one), op_of(other)
        assert a is not None
        assert b is not None
        assert not same_op(a, b)


class NotTorch:
    """Names that torch has, on something that is not torch's."""

    def relu(self, x: Tensor) -> Tensor:
        return x


NO_OPERATION = """
    torch.nn.ReLU torch.device torch.nn.init.uniform_ torch.detach torch.argmax torch.zeros Tensor.shape.__get__
    Tensor.real.__set__ Tensor.__float__ Tensor.__complex__ Tensor.__len__ operator.concat operator.index str.split
    max iter NotTorch NotTorch.relu NotTorch().relu object()
"""


@pytest.mark.parametrize("name", NO_OPERATION.split())
def test_no_operation(name: str):
    assert op_of(eval(name, {"NotTorch": NotTorch} | NAMESPACE)) is None


class Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Op, bool]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (op := op_of(func)) is not None:
            self.seen.append((op, mutates(func, args, kwargs)))
        return func(*args, **(kwargs or {}))


EXPRESSIONS = """
    x + y: add; 1 + x: add; x - y: sub; 1 - x: rsub; x * y: mul; 2 * x: mul; x / y: div; 1 / x: rdiv; x ** 2: pow
    2 ** x: rpow; x @ y: matmul; x // 2: floor_divide; 2 // x: rfloor_divide; x % 2: remainder; 2 % x: rremainder
    -x: neg; +x: positive; abs(x): abs; x[0]: getitem; x.T: T; x.mT: mT; x.H: H; x.mH: mH; x.real: real
    list(x): unbind; reversed(x): flip; x += y: add!; x -= y: sub!; x *= y: mul!; x /= y: div!; x **= 2: pow!
    x //= 2: floor_divide!; x %= 2: remainder!; x @= y: matmul; x[0] = 1: setitem!; x.add_(y): add!
    F.relu(x, inplace=True): relu!; F.relu(x, True): relu!; F.relu(x): relu; F.relu_(x): relu!
    F.dropout(x, 0.5, False, True): dropout!; F.dropout(x, 0.5, False): dropout; F.elu(x, 1.0, True): elu!
    F.elu(x, 1.0): elu; F.hardtanh(x, -1, 1, True): hardtanh!; F.threshold(x, 0, 0, True): threshold!
    F.gelu(x): gelu; F.hardswish(x): hardswish; torch.add(x, y, out=z): add!; torch.add(x, y): add
    F.normalize(x, 2.0, 1, 1e-12, z): normalize!; F.normalize(x): normalize; torch.special.expit(x): sigmoid
    torch.linalg.vector_norm(x): vector_norm; F.linear(x, y): linear; x.t_(): t!
    torch.ops.aten.mul.Tensor(x, y): mul; torch.ops.aten.relu_(x): relu!; x.float(): float
    F.max_pool1d(x, 1): max_pool1d; F.scaled_dot_product_attention(x, y, z): scaled_dot_product_attention
    torch.einsum("ij,jk->ik", x, y): einsum; nn.MultiheadAttention(3, 1)(x, x, x): multi_head_attention_forward
    nn.Softmax(1)(x): softmax; nn.Sigmoid()(x): sigmoid; F.log_softmax(x, 1): log_softmax
    F.layer_norm(x, (3,)): layer_norm; torch.split(x, 1): split; x.split(1): split; x.requires_grad_():; x.shape:
    x.detach():; x < y:; x.argmax():; torch.ones_like(x):; x.data:; len(x):
"""
ENTRIES = [entry.strip() for entry in EXPRESSIONS.replace("\n", ";").split(";") if entry.strip()]


@pytest.mark.parametrize("entry", ENTRIES)
def test_python_expressions_as_a_mode_sees_them(entry: str):
    expression, _, expected = entry.rpartition(":")
    x, y, z = torch.rand(3, 3, 3).unbind()
    with Recorder() as recorder:
        exec(expression, {"x": x, "y": y, "z": z} | NAMESPACE)
    seen = [op.name + "!" * changes for op, changes in recorder.seen]
    assert [name for name in seen if name != "uniform!"] == expected.split()  # the initial weights of a module


def test_what_mutates():
    x = torch.rand(2, 2)
    assert mutates(Tensor.__iadd__, (x, x))
    assert mutates(operator.iadd, (x, x))
    assert mutates(F.hardtanh, (x, -1, 1, True))  # a mode gets these by keyword, a direct call may not
    assert mutates(F.normalize, (x, 2.0, 1, 1e-12, x))
    assert not mutates(F.hardtanh, (x, -1, 1))
    assert mutates(Tensor.real.__set__, (x, x))
    assert mutates(torch.nn.init.zeros_, (), {"tensor": x})
    for func in (Tensor.requires_grad_, Tensor.detach_, Tensor.__invert__, Tensor.__index__, operator.and_):
        assert not mutates(func, (x, x))
    assert not mutates(operator.imatmul, (x, x))  # tensors have no in-place matmul: python makes a new one
    assert not mutates(torch.add, (x, x), {"out": None})
    assert not mutates(F.relu, (x,), {"inplace": False})


DISPLAYED = """
    torch.add torch.einsum torch.special.expit torch.fft.fft torch.linalg.norm torch._C._nn.gelu_ F.gelu F.relu
    F.logsigmoid F.threshold Tensor.add_ Tensor.__rsub__ operator.add abs max
"""


@pytest.mark.parametrize("name", DISPLAYED.split())
def test_display_name_is_what_one_would_write(name: str):
    assert display_name(eval(name, dict(NAMESPACE))) == name


def test_other_display_names():
    assert display_name(Tensor.T.__get__) == "Tensor.T"
    assert display_name(torch.ops.aten.add.Tensor) == "torch.ops.aten.add"
    assert display_name(torch.sparse.mm) == "torch.sparse.mm"
    assert display_name(NotTorch.relu) == f"{__name__}.NotTorch.relu"


def family_of(func: Any) -> Family | None:
    return None if (op := op_of(func)) is None or isinstance(func, type) else op.family


def once_each(family: Family) -> Iterator[tuple[Any, Op]]:
    """One function for each op of a family, a method only where torch has no such function."""
    plain = sorted(FUNCTIONS, key=lambda func: display_name(func).startswith("Tensor.") + mutates(func))
    yield from {op_of(func).name: (func, op_of(func)) for func in reversed(plain) if family_of(func) is family}.values()


IMAGE = (1, 2, 4, 4)
MORE_MOVEMENT = {
    F.pad: lambda x: (x, (1, 1)),
    F.max_pool1d: lambda x: (x[0], 2),
    F.max_pool2d: lambda x: (x, 2),
    F.max_pool3d: lambda x: (x, (1, 2, 2)),
    F.fractional_max_pool2d: lambda x: (x, 2, 2),
    F.fractional_max_pool3d: lambda x: (x, 1, (1, 2, 2)),
    F.adaptive_max_pool1d: lambda x: (x[0], 2),
    F.adaptive_max_pool2d: lambda x: (x, 2),
    F.adaptive_max_pool3d: lambda x: (x, (1, 2, 2)),
    F.max_unpool1d: lambda x: (x[0, :, :, 0], torch.tensor([[0, 2, 5, 6]] * 2), 2),
    F.max_unpool2d: lambda x: (x[0], 2 * torch.arange(32).reshape(2, 4, 4), 2),
    F.max_unpool3d: lambda x: (x, 4 * torch.arange(32).reshape(1, 2, 4, 4), 2),
    F.unfold: lambda x: (x, 2),
    Tensor.unfold: lambda x: (x, 2, 2, 1),
    F.pixel_shuffle: lambda x: (x.view(1, 4, 2, 4), 2),
    F.pixel_unshuffle: lambda x: (x, 2),
    F.channel_shuffle: lambda x: (x, 2),
    F.embedding: lambda x: (INDEX, x[0, 0]),
    F.dropout: lambda x: (x, 0.5, False),
    F.dropout1d: lambda x: (x[0], 0.5, False),
    F.dropout2d: lambda x: (x, 0.5, False),
    F.dropout3d: lambda x: (x, 0.5, False),
    F.alpha_dropout: lambda x: (x, 0.5, False),
    F.feature_alpha_dropout: lambda x: (x, 0.5, False),
    torch.feature_dropout: lambda x: (x, 0.5, False),
    torch.rot90: lambda x: (x, 1, (2, 3)),
    torch.roll: lambda x: (x, 1, 2),
    torch.movedim: lambda x: (x, 0, 2),
    torch.unflatten: lambda x: (x, 2, (2, 2)),
    torch.slice_scatter: lambda x: (x, x[:, :, :2] * 1, 2, 1, 3),
    torch.select_scatter: lambda x: (x, x[0] * 1, 0, 0),
    torch.diagonal_scatter: lambda x: (x[0, 0], x[0, 1, 0] * 1),
    torch.as_strided: lambda x: (x, (2, 2), (1, 3)),
    torch.narrow: lambda x: (x, 2, 1, 2),
    torch.meshgrid: lambda x: (x[0, 0, 0] * 1, x[0, 0, 1] * 1),
    torch.view_as_complex: lambda x: (x.view(4, 4, 2),),
    torch.view_as_real: lambda x: (torch.complex(x, x.flip(3)),),
    torch.imag: lambda x: (torch.complex(x, x[0, 0, 0, 0]),),
    torch.index_select: lambda x: (x, 2, INDEX[0]),
    torch.as_tensor: lambda x: (x,),
    Tensor.to_dense: lambda x: (x.to_sparse(),),
    torch.kthvalue: lambda x: (x, 3),
    torch.topk: lambda x: (x, 2),
    torch.median: lambda x: (x,),
    torch.tensor_split: lambda x: (x, 3, 2),
    torch.dsplit: lambda x: (x, 2),
    torch.masked_fill: lambda x: (x, x > 20, 0),
    torch.nan_to_num: lambda x: (x,),
    torch._C._nn.pad_sequence: lambda x: ([x[0, 0], x[0, 0, :2]],),
    Tensor.fill_: lambda x: (torch.zeros(3, dtype=x.dtype), x.flatten()[0]),
    Tensor.copy_: lambda x: (torch.zeros(IMAGE, dtype=x.dtype), x),
}


def moves_exactly(inputs: tuple[Tensor, ...], output: Tensor) -> bool | None:
    """Whether each element of the output copies one of the inputs' (all distinct) or none, and its gradient says so.

    None where torch has no gradient to check.
    """
    output = output if output.layout == torch.strided else output.to_dense()
    output = torch.view_as_real(output.resolve_conj()) if output.is_complex() else output
    weight = torch.rand_like(output)
    expected = [torch.zeros(leaf.shape, dtype=torch.float64) for leaf in inputs]
    for value, w in zip(output.flatten().tolist(), weight.flatten().tolist(), strict=True):
        for leaf, wanted in zip(inputs, expected, strict=True):
            wanted[leaf == value] += w
    tolerance = 1e-2 if output.dtype in (torch.float16, torch.bfloat16) else 1e-6
    found = gradients(output, weight, *inputs)
    return all(map(partial(torch.allclose, rtol=tolerance), found, expected)) if found else None


@of_this_torch
def test_movement_copies_elements():
    moved = set()
    for func, op in once_each(Family.MOVEMENT):
        for shape in ((2, 3), (6,), (3, 3)) if not op.traits.dropout else ():
            # distinct integers: exact in every dtype, and none of them is in the patterns
            values = 10.0 + torch.randperm(2 * torch.Size(shape).numel(), dtype=torch.float64).view(2, *shape)
            for _, outputs, a, b in calls(func, *values):
                verdicts = {moves_exactly((a, b), out) for out in outputs}
                assert False not in verdicts, (display_name(func), shape)
                moved |= {op.name} if True in verdicts else set()
    for func, arguments in MORE_MOVEMENT.items():
        x = (10.0 + torch.randperm(32, dtype=torch.float64).view(IMAGE)).requires_grad_()
        outputs = [out for out in tensors(func(*arguments(x * 1))) if out.requires_grad]
        assert outputs, display_name(func)
        assert all(moves_exactly((x,), out) for out in outputs), display_name(func)
        moved.add(op_of(func).name)
    untried = set(FAMILIES[Family.MOVEMENT].split()) - moved
    assert untried <= set(NOT_TRIED.split())


def test_movement_check_notices():
    x = torch.arange(10.0, 16.0, dtype=torch.float64).requires_grad_()
    assert moves_exactly((x,), x.flip(0))
    wrong = (2 * x, x + x.detach(), x.relu() * 1.5, x.cumsum(0), x.flip(0) + 0.1 * x)
    assert not any(moves_exactly((x,), out) for out in wrong)


NOT_TRIED = """
    cuda ipu mtia xpu pin_memory to_mkldnn rename refine_names align_to align_as as_subclass asarray lift_fresh
    resize imag autocast_to_full_precision autocast_to_reduced_precision coalesce values sparse_mask
    sparse_mask_projection to_padded_tensor to_sparse_coo to_sparse_csr to_sparse_csc to_sparse_bsr to_sparse_bsc
    pack_padded_sequence pad_packed_sequence slow_conv
"""  # needs another device, a sparse or a nested tensor, or another version of torch

MORE_PRODUCTS: dict[Any, tuple[Any, ...]] = {
    F.linear: (r(2, 3), r(4, 3), r(4)),
    F.bilinear: (r(2, 3), r(2, 4), r(5, 3, 4), r(5)),
    F.conv1d: (r(1, 2, 6), r(3, 2, 2), r(3)),
    F.conv2d: (r(1, 2, 6, 6), r(3, 2, 2, 2), r(3)),
    F.conv3d: (r(1, 2, 3, 4, 4), r(3, 2, 2, 2, 2), r(3)),
    F.conv_transpose1d: (r(1, 2, 6), r(2, 3, 2), r(3)),
    F.conv_transpose2d: (r(1, 2, 4, 4), r(2, 3, 2, 2), r(3)),
    F.conv_transpose3d: (r(1, 2, 3, 4, 4), r(2, 3, 2, 2, 2), r(3)),
    F.conv_tbc: (r(6, 1, 2), r(2, 2, 3), r(3)),
    torch.convolution: (r(1, 2, 6), r(3, 2, 2), r(3), (1,), (0,), (1,), False, (0,), 1),
    F.batch_norm: (r(4, 3), torch.zeros(3).double(), r(3), r(3), r(3)),
    F.embedding_bag: (INDEX, r(4, 3), None, None, 2.0, False, "sum", False, r(2, 3)),
    torch.addmm: (r(2, 4), r(2, 3), r(3, 4)),
    torch.addbmm: (r(2, 4), r(5, 2, 3), r(5, 3, 4)),
    torch.baddbmm: (r(5, 2, 4), r(5, 2, 3), r(5, 3, 4)),
    torch.addmv: (r(2), r(2, 3), r(3)),
    torch.addr: (r(2, 3), r(2), r(3)),
    torch.addcmul: (r(2, 3), r(2, 3), r(2, 3)),
    torch.addcdiv: (r(2, 3), r(2, 3), r(2, 3)),
    torch.bmm: (r(5, 2, 3), r(5, 3, 4)),
    torch.mv: (r(2, 3), r(3)),
    torch.dot: (r(3), r(3)),
    torch.vdot: (r(3), r(3)),
    torch.outer: (r(3), r(4)),
    torch.einsum: ("ij,jk,k->i", r(2, 3), r(3, 4), r(4)),
    torch.tensordot: (r(2, 3), r(3, 4), 1),
    torch.chain_matmul: (r(2, 3), r(3, 4), r(4, 2)),
    torch.linalg.cross: (r(2, 3), r(2, 3)),
    torch.linalg.multi_dot: ([r(2, 3), r(3, 4), r(4, 2)],),
    torch.put: (r(3), INDEX[0, :2], r(2), True),
    torch.lerp: (r(2, 3), r(2, 3), r(2, 3)),
    torch.rsub: (r(2, 3), r(2, 3)),
    torch.index_put: (r(3), (INDEX[0],), r(3), True),
    F.avg_pool1d: (r(1, 2, 6), 2),
    F.avg_pool2d: (r(1, 2, 6, 6), 2),
    F.avg_pool3d: (r(1, 2, 4, 4, 4), 2),
    F.adaptive_avg_pool1d: (r(1, 2, 6), 2),
    F.adaptive_avg_pool2d: (r(1, 2, 6, 6), 2),
    F.adaptive_avg_pool3d: (r(1, 2, 4, 4, 4), 2),
    F.interpolate: (r(1, 2, 3, 3), (5, 5), None, "bicubic"),
    F.grid_sample: (r(1, 2, 4, 4), r(1, 3, 3, 2) - 1, "bilinear", "zeros", False),
    F.affine_grid: (r(1, 2, 3), (1, 1, 4, 4), False),
    F.fold: (r(1, 8, 9), (4, 4), 2),
    torch.stft: (r(16), 4, 2, 4, r(4), False, "reflect", False, True, True),
    torch.istft: (torch.complex(r(3, 9), r(3, 9)), 4, 2, 4, r(4)),
}
if hasattr(torch, "_grouped_mm"):  # newer than torch 2.4
    MORE_PRODUCTS[torch._grouped_mm] = (r(2, 16, 16).float(), r(2, 16, 16).float())


def affine_in(func: Callable[..., Any], args: tuple[Any, ...], places: list[int], through_0: bool) -> bool:
    """Whether `func` is affine, or linear, in the tensors at these places together, at two random points."""

    def at(scale_u: float, scale_v: float) -> Tensor:
        mixed = {i: scale_u * u[i] + scale_v * v[i] for i in places}
        return tensors(func(*(mixed.get(i, arg) for i, arg in enumerate(args))))[0]

    u, v = ({i: torch.rand_like(args[i]) for i in places} for _ in range(2))
    origin = at(0, 0)
    close = partial(torch.allclose, rtol=1e-6, atol=1e-3 if origin.dtype == torch.float32 else 1e-6)
    linear = close(at(2, -3) - origin, 2 * (at(1, 0) - origin) - 3 * (at(0, 1) - origin))
    return linear and not (through_0 and origin.any())


def is_as_linear_as_it_says(func: Callable[..., Any], op: Op, args: tuple[Any, ...]) -> bool:
    """Affine in all that is not held together; where it multiplies, linear in each factor together with the addends."""
    if isinstance(args[0], list):
        return is_as_linear_as_it_says(lambda *parts: func(parts), op, tuple(args[0]))
    places = [i for i, arg in enumerate(args) if isinstance(arg, Tensor) and i not in op.held]
    free = [i for i in places if args[i].is_floating_point() or args[i].is_complex()]
    added = [i for i in free if i in op.addends]
    together = [[i, *added] for i in free if i not in added] if op.multiplies else [free]
    return all(affine_in(func, args, places, op.multiplies) for places in together)


@of_this_torch
def test_linear_products_and_contractions_are_as_linear_as_they_say():
    families = (Family.LINEAR, Family.PRODUCT, Family.CONTRACTION, Family.DIVISION)
    tried = set()
    for func, op in (pair for family in families for pair in once_each(family) if pair[1].name not in BY_HAND):
        for shape in ((2, 3), (3, 3)):
            for args, outputs, _, _ in calls(func, r(*shape), r(*shape)):
                if outputs and outputs[0].isfinite().all() and not isinstance(args[0], list):
                    constant = tuple(arg.detach() if isinstance(arg, Tensor) else arg for arg in args)
                    assert is_as_linear_as_it_says(func, op, constant), (display_name(func), args)
                    tried.add(op.name)
    for func, args in MORE_PRODUCTS.items():
        assert family_of(func) in families
        assert is_as_linear_as_it_says(func, op_of(func), args), display_name(func)
        tried.add(op_of(func).name)
    untried = set(" ".join(FAMILIES[family] for family in families).split()) - tried
    assert untried <= {*NOT_TRIED.split(), *BY_HAND}


def test_linear_check_notices():
    x, y, plain = r(2, 3), r(2, 3), op_of(torch.add)
    assert is_as_linear_as_it_says(torch.add, plain, (x, y))
    assert not is_as_linear_as_it_says(torch.mul, plain, (x, y))  # it multiplies
    assert not is_as_linear_as_it_says(torch.square, plain, (x,))
    assert not is_as_linear_as_it_says(torch.addcmul, replace(op_of(torch.addcmul), addends=frozenset()), (x, x, y))


# quantiles are linear between changes of the order only; the patterns meet addcmul and addcdiv in a deprecated order
BY_HAND = {"quantile", "nanquantile", "addcmul", "addcdiv", "solve_triangular"}
# products of elements, and what reduces as its argument says: see tests/rules/test_uniform_elements.py
BY_HAND |= {name for name, traits in TRAITS.items() if traits.element_sum is not None}


MORE_ACTIVATIONS = {
    F.prelu: lambda x: (x, r(3)),
    F.hardswish: lambda x: (x,),
    F.hardsigmoid: lambda x: (x,),
    torch.polygamma: lambda x: (1, x),
    torch.fake_quantize_per_tensor_affine: lambda x: (x, 0.1, 0, -100, 100),
    torch.fake_quantize_per_channel_affine: lambda x: (x, r(3).float(), torch.zeros(3), 1, -100, 100),
}
NO_DERIVATIVE = ("bessel", "polynomial", "airy")  # torch has none for these


def is_elementwise(output: Tensor, x: Tensor) -> bool | None:
    """Whether the jacobian is diagonal; None where it cannot be told."""
    rows = [gradients(output, one, x) for one in torch.eye(6, dtype=output.dtype).view(6, *output.shape)]
    if not output.isfinite().all() or not all(rows):
        return None
    jacobian = torch.stack([row[0].flatten() for row in rows])
    return torch.equal(jacobian, jacobian.diag().diag())


@of_this_torch
def test_activations_are_elementwise():
    tried = {"fused_moving_avg_obs_fake_quant"}  # takes and changes ten arguments
    for start in (0.1, 1.5):  # where a function is defined on one side of 1 only, one of them is inside
        for func, op in once_each(Family.ACTIVATION):
            for _, outputs, a, _ in calls(func, start + 0.3 * r(2, 3), r(2, 3)):
                verdicts = {is_elementwise(out, a) for out in outputs}
                assert False not in verdicts, display_name(func)
                tried |= {op.name} if True in verdicts else set()
        for func, arguments in MORE_ACTIVATIONS.items():
            x = (start + 0.3 * r(2, 3)).requires_grad_()
            assert family_of(func) is Family.ACTIVATION
            assert is_elementwise(func(*arguments(x)), x), display_name(func)
            tried.add(op_of(func).name)
    untried = set(FAMILIES[Family.ACTIVATION].split()) - tried
    assert not [name for name in untried if not any(part in name for part in NO_DERIVATIVE)]


def test_elementwise_check_notices():
    x = r(2, 3).requires_grad_()
    assert is_elementwise(x.tanh(), x)
    assert not any(is_elementwise(out, x) for out in (x.softmax(1), x.cumsum(0), x.flip(1)))
