"""The rule for layers that divide by a statistic of their own input."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..autograd.functions import Slots, backward_of, bypass
from ..autograd.numerics import over_stabilized, sum_to
from ..autograd.saved_values import Kept, keep
from ..errors import RuleError
from ..ops import Argument, Family, NormKind, Op
from ..torch_internals import packs_saved_tensors
from .absorption import BIAS, NORM, STABILIZER, bias_of_norm, constant_part
from .again import Again
from .base import GRADIENT, Amount, Call, Rule
from .layer_norm import layer_norm_backward, layer_norm_step, of_layer_norm


@dataclass(frozen=True)
class Norm(Rule):
    """Normalization with its statistic held constant: what remains is linear, and gets the epsilon rule.

    ``z = (x - mean(x)) / sigma * w + b``, sigma constant, centering linear: with ``s = w / sigma * R / z``,
    ``R_x = x * (s - mean(s))``; without centering (RMSNorm, normalize) ``R_x = x * s``. Biases keep their share: one
    that is a carrier gets ``R_b = b * R / z``; a weight that is a carrier shares its product with x, half each.
    In the gradient formulation the same with g in place of R / z. Covers layer_norm, rms_norm, group_norm,
    instance_norm, batch_norm in train mode, normalize, local_response_norm and renorm; on a module (any RMSNorm
    written by hand) the square roots, powers, variances and lengths inside are held constant.

    Source: Achtibat et al. 2024 (AttnLRP), proposition 3.4; the centering as in Ali et al. 2022, eq. 10.
    """

    families: ClassVar[frozenset[Family]] = frozenset({Family.NORMALIZATION, Family.HOMOGENEOUS, Family.STATISTIC})

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        x = call.carriers[place]
        call.kept = not call.relevance and _takes_input_alone(call)
        return x if call.kept else x.detach()

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        assert call.op is not None
        if call.op.family in (Family.STATISTIC, Family.HOMOGENEOUS):
            return [z.detach() for z in outputs]
        (z,) = outputs
        if call.kept and (quick := of_layer_norm(call.carriers, z, call.args, call.kwargs)) is not None:
            return [quick]
        kind = None if call.op.family is Family.UNCOVERED else call.op.traits.norm
        form_of = None if kind is None else _FORMS[kind]
        if form_of is None:
            raise RuleError(f"{self} does not know the normalization {call.where}; give it a key of its own")
        roles = tuple(_role(self, call, carrier) for carrier in call.carriers)
        x = call.values[roles.index("input")] if "input" in roles else _argument(call, 0, "input")
        with torch.no_grad():
            form = form_of(call, x)
        tensors = {"scale": form.scale, "weight": form.weight}
        if call.relevance or "weight" in roles:
            tensors["x"] = x
        if call.relevance:
            tensors |= {"z": z, "bias": call.values[roles.index("bias")] if "bias" in roles else None}
        saved = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        shapes = tuple(carrier.shape for carrier in call.carriers)
        step = _Step(call.relevance, roles, shapes, tuple(form.shape), form.dims, form.affine, tuple(saved))
        return [bypass(step, z, tuple(saved.values()), call.carriers)]

    def again(self, call: Call, output: Tensor) -> Again | None:
        """See :meth:`Rule.again`: of a layer norm whose input alone is a carrier."""
        if not call.kept or getattr(backward_of(output), "func", None) is not layer_norm_step:
            return None
        return Again(partial(self._again, call.op), None)

    def _again(
        self, op: Op | None, carriers: Sequence[Tensor], z: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Tensor:
        found = of_layer_norm(carriers, z, args, kwargs)
        if found is not None:
            return found
        call = Call(GRADIENT, "", tuple(args), dict(kwargs), op, carriers=list(carriers), values=list(carriers))
        return self.leave(call, [z])[0]

    def absorbed(self, call: Call) -> dict[str, Amount]:
        """See :meth:`Rule.absorbed`: as for Epsilon, of what is linear with the statistics held constant."""
        bias = bias_of_norm(call)
        if call.rerun is not None:
            in_bias = partial(_in_bias, call.relevance, keep(call.z), partial(constant_part, call))
            return {BIAS: in_bias, STABILIZER: partial(_in_stabilizer, call)}
        return {} if bias is None else {BIAS: partial(_in_bias, call.relevance, keep(call.z), lambda: bias)}

    def rest(self, call: Call) -> str:
        """See :meth:`Rule.rest`."""
        return NORM


def _takes_input_alone(call: Call) -> bool:
    """Return whether this is a layer norm in float32 or float64 whose input alone is a carrier."""
    if call.op is None or call.op.family is not Family.NORMALIZATION or len(call.carriers) != 1:
        return False
    if call.op.traits.norm is not NormKind.LAYER:
        return False
    if packs_saved_tensors():
        return False  # reading what the layer has saved would unpack it, and recompute a checkpoint
    x = call.carriers[0]
    return x is _argument(call, 0, "input") and x.dtype in (torch.float32, torch.float64)


def _in_bias(relevance: bool, z: Kept, constant: Callable[[], Tensor], slot: Tensor) -> Tensor:
    return (over_stabilized(slot, z.value, 0.0) if relevance else slot) * constant()


def _in_stabilizer(call: Call, slot: Tensor) -> Tensor:
    return slot - over_stabilized(slot, call.z, 0.0) * call.z if call.relevance else torch.zeros_like(slot)


class Form(NamedTuple):
    """``z = scale * weight * (x - mean over dims) + bias``, in a view of x; dims = () where nothing is centered."""

    scale: Tensor
    weight: Tensor | None
    shape: tuple[int, ...]
    """The view of x."""
    dims: tuple[int, ...]
    affine: tuple[int, ...] = ()
    """The shape of weight and bias in that view."""


@dataclass(frozen=True)
class _Step:
    """The slots of input, weight and bias from that of the output; `saved` names the tensors that it is given."""

    relevance: bool
    roles: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    view: tuple[int, ...]
    dims: tuple[int, ...]
    affine: tuple[int, ...]
    saved: tuple[str, ...]

    def __call__(self, slot: Tensor, *tensors: Tensor) -> Slots:
        given = dict(zip(self.saved, tensors, strict=True))
        seen = (over_stabilized(slot, given["z"], 0.0) if self.relevance else slot).reshape(self.view)
        parts = {"input": self._input, "weight": self._weight, "bias": self._bias}
        halved = {"input", "weight"} if {"input", "weight"} <= set(self.roles) else ()  # two factors of a product
        slots = []
        for role, shape in zip(self.roles, self.shapes, strict=True):
            part = parts[role](seen, given).reshape(shape)
            slots.append((part * 0.5 if role in halved else part).to(slot.dtype))
        return tuple(slots)

    def _input(self, seen: Tensor, given: dict[str, Tensor]) -> Tensor:
        size = self.view[self.dims[0] :] if self.dims else ()
        if size and size == self.affine and seen.dtype in (torch.float32, torch.float64):
            part = layer_norm_backward(seen, size, given["scale"], given.get("weight"))
        else:
            weighted = seen * given["weight"].reshape(self.affine) if "weight" in given else seen
            part = self._centered(weighted * given["scale"])
        return part * given["x"].reshape(self.view) if self.relevance else part

    def _weight(self, seen: Tensor, given: dict[str, Tensor]) -> Tensor:
        normalized = self._centered(given["x"].reshape(self.view)) * given["scale"]
        part = sum_to(seen * normalized, torch.Size(self.affine))
        return part * given["weight"].reshape(self.affine) if self.relevance else part

    def _bias(self, seen: Tensor, given: dict[str, Tensor]) -> Tensor:
        part = sum_to(seen, torch.Size(self.affine))
        return part * given["bias"].reshape(self.affine) if self.relevance else part

    def _centered(self, values: Tensor) -> Tensor:
        return values - values.mean(self.dims, keepdim=True) if self.dims else values


_INPUT = Argument(0, "input")


def _role(rule: Norm, call: Call, carrier: Tensor) -> str:
    """Return which argument of a normalization a carrier is: "input", "weight" or "bias"."""
    assert call.op is not None
    traits = call.op.traits
    for role, argument in (("input", _INPUT), ("weight", traits.weight), ("bias", traits.bias)):
        if argument is not None and argument.of(call.args, call.kwargs) is carrier:
            return role
    raise RuleError(f"{rule} knows the input, the weight and the bias as carriers, but {call.where} has another one")


def _argument(call: Call, place: int, name: str, default: Any = None) -> Any:
    if name in call.kwargs:
        return call.kwargs[name]
    return call.args[place] if len(call.args) > place else default


def _wide(x: Tensor) -> Tensor:
    """Return a half precision tensor in float32, in which torch's kernels take statistics too."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _rstd(x: Tensor, count: int, eps: float) -> Tensor:
    """Return ``1 / sqrt(var + eps)`` over the last `count` dimensions, kept with size 1."""
    # torch's layer norm gives it as a by-product, many times faster on a CPU than var() does
    return torch.native_layer_norm(_wide(x), x.shape[x.dim() - count :], None, None, eps)[2]


def _layer_norm(call: Call, x: Tensor) -> Form:
    size = tuple(_argument(call, 1, "normalized_shape"))
    scale = _rstd(x, len(size), _argument(call, 4, "eps", 1e-5))
    return Form(scale, _argument(call, 2, "weight"), x.shape, _last(x, len(size)), size)


def _rms_norm(call: Call, x: Tensor) -> Form:
    size = tuple(_argument(call, 1, "normalized_shape"))
    eps = _argument(call, 3, "eps")
    square = _wide(x).square().mean(_last(x, len(size)), keepdim=True)
    scale = (square + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt()
    return Form(scale, _argument(call, 2, "weight"), x.shape, (), size)


def _last(x: Tensor, count: int) -> tuple[int, ...]:
    return tuple(range(x.dim() - count, x.dim()))


def _grouped(x: Tensor, groups: int, weight: Tensor | None, eps: float) -> Form:
    """Return the form for channels in groups: the view (batch, groups, C / groups, ...)."""
    shape = (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    affine = (*shape[1:3], *[1] * (x.dim() - 2))
    return Form(_rstd(x.reshape(shape), x.dim() - 1, eps), weight, shape, tuple(range(2, x.dim() + 1)), affine)


def _group_norm(call: Call, x: Tensor) -> Form:
    groups, eps = int(_argument(call, 1, "num_groups")), _argument(call, 4, "eps", 1e-5)
    return _grouped(x, groups, _argument(call, 2, "weight"), eps)


def _per_channel(x: Tensor) -> tuple[int, ...]:
    return (x.shape[1], *[1] * (x.dim() - 2))


def _instance_norm(call: Call, x: Tensor) -> Form:
    weight, eps = _argument(call, 3, "weight"), _argument(call, 7, "eps", 1e-5)
    if _argument(call, 5, "use_input_stats", True):
        return _grouped(x, x.shape[1], weight, eps)
    scale = (_argument(call, 2, "running_var") + eps).rsqrt().reshape(_per_channel(x))
    return Form(scale, weight, x.shape, (), _per_channel(x))


def _batch_norm(call: Call, x: Tensor) -> Form:
    dims = (0, *range(2, x.dim()))
    scale = (_wide(x).var(dims, correction=0, keepdim=True) + _argument(call, 7, "eps", 1e-5)).rsqrt()
    return Form(scale, _argument(call, 3, "weight"), x.shape, dims, _per_channel(x))


def _normalize(call: Call, x: Tensor) -> Form:
    power, dim, eps = _argument(call, 1, "p", 2.0), _argument(call, 2, "dim", 1), _argument(call, 3, "eps", 1e-12)
    length = torch.linalg.vector_norm(x, power, dim, keepdim=True).clamp_min(eps)
    return Form(length.reciprocal(), None, x.shape, ())


def _local_response_norm(call: Call, x: Tensor) -> Form:
    # The output is x / divisor(x): where x is 0 any divisor explains it, so take 1.
    options = {name: value for name, value in call.kwargs.items() if name != "input"}
    z = torch.nn.functional.local_response_norm(x, *call.args[1:], **options)
    one = torch.ones_like(x)
    return Form(torch.where(x == 0, one, z / torch.where(x == 0, one, x)), None, x.shape, ())


def _renorm(call: Call, x: Tensor) -> Form:
    power, dim = _argument(call, 1, "p"), _argument(call, 2, "dim") % x.dim()
    limit = _argument(call, 3, "maxnorm")
    length = torch.linalg.vector_norm(_wide(x), power, [d for d in range(x.dim()) if d != dim], keepdim=True)
    return Form(torch.where(length > limit, limit / (length + 1e-7), 1.0), None, x.shape, ())


_FORMS = {
    NormKind.LAYER: _layer_norm,
    NormKind.RMS: _rms_norm,
    NormKind.GROUP: _group_norm,
    NormKind.INSTANCE: _instance_norm,
    NormKind.BATCH: _batch_norm,
    NormKind.LENGTH: _normalize,
    NormKind.RESPONSE: _local_response_norm,
    NormKind.LIMITED: _renorm,
}
