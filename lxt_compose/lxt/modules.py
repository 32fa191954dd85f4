"""Drop-in modules, which compute what torch's modules do, and whose gradients are relevance.

Each is built with ``from_torch`` from a module of torch, whose parameters it shares. They need no composite, as the
functions in :mod:`lxt_compose.functional`; as values in a composite (``nn.Linear: LinearEpsilon``) they stand for the
rules of the same equations, and the model keeps its own modules. Names and arguments are those of LXT.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..autograd.numerics import EPSILON, check_epsilon, check_flag, check_number, check_positive
from ..rules.stop import Stop
from . import functional as R
from .drop_in import under

__all__ = [
    "LayerNormEpsilon",
    "LinearEpsilon",
    "MultiheadAttentionCP",
    "MultiheadAttention_CP",
    "RMSNormIdentity",
    "SoftmaxDT",
]

Kind = TypeVar("Kind", bound=nn.Module)


def _take_over(new: nn.Module, module: nn.Module) -> None:
    """Share the parameters of a module, and its mode."""
    for name, parameter in module.named_parameters(recurse=False):
        new._parameters[name] = parameter
    new.train(module.training)


def _expected(module: nn.Module, kind: type[Kind], into: type[nn.Module]) -> Kind:
    name, made = type(module).__name__, f"{into.__name__}.from_torch"
    if not isinstance(module, kind):
        raise TypeError(f"{made} takes a torch.nn.{kind.__name__}, got {name}")
    if type(module).forward not in (kind.forward, into.forward) or "forward" in vars(module):
        raise TypeError(f"{made} computes what torch.nn.{kind.__name__} does, but {name} has a forward of its own")
    if hasattr(module, "parametrizations"):
        raise TypeError(f"{made} shares parameters, but those of {name} are computed in each forward")
    return module


def _detached(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.detach()


class LinearEpsilon(nn.Linear):
    """``nn.Linear`` under the epsilon rule (see :func:`~lxt_compose.functional.linear_epsilon`).

    Args:
        in_features: as of ``nn.Linear``, like the others not named here.
        epsilon: stabilizer (see :class:`~lxt_compose.Epsilon`).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        epsilon: float = EPSILON,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        check_epsilon(epsilon)
        self.epsilon = epsilon

    @classmethod
    def from_torch(cls, module: nn.Module, epsilon: float = EPSILON) -> LinearEpsilon:
        """Return the same layer under the rule; TypeError for anything but ``nn.Linear``."""
        given = _expected(module, nn.Linear, cls)
        new = cls(given.in_features, given.out_features, given.bias is not None, device="meta", epsilon=epsilon)
        _take_over(new, module)
        return new

    def forward(self, input: Tensor) -> Tensor:
        """Return [..., in_features] to [..., out_features]."""
        return R.linear_epsilon(input, self.weight, self.bias, self.epsilon)


class SoftmaxDT(nn.Softmax):
    """``nn.Softmax`` by a Taylor expansion at its input (see :func:`~lxt_compose.functional.softmax`).

    Args:
        dim: the dimension along which the result sums to 1.
        dtype: the dtype of the result.
        temperature: divides the input.
        inplace: changes nothing.
    """

    def __init__(
        self, dim: int, dtype: torch.dtype | None = None, temperature: float = 1.0, inplace: bool = False
    ) -> None:
        super().__init__(dim)
        check_positive("temperature", temperature)
        check_flag("inplace", inplace)
        self.dtype, self.temperature, self.inplace = dtype, temperature, inplace

    @classmethod
    def from_torch(cls, module: nn.Module) -> SoftmaxDT:
        """Return the same softmax under the rule; TypeError for anything but ``nn.Softmax`` with a dim."""
        dim = _expected(module, nn.Softmax, cls).dim
        if dim is None:
            raise TypeError(f"SoftmaxDT.from_torch takes a torch.nn.Softmax with a dim, got {module!r}")
        new = cls(dim)
        _take_over(new, module)
        return new

    def forward(self, input: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
        assert self.dim is not None
        return R.softmax(input, self.dim, self.dtype, self.temperature, self.inplace)


class RMSNormIdentity(nn.Module):
    """RMS normalization that relevance passes unchanged (see :func:`~lxt_compose.functional.rms_norm_identity`).

    Args:
        hidden_size: size of the last dimension, or the shape of the last dimensions.
        eps: is added to the mean square.
    """

    def __init__(self, hidden_size: int | tuple[int, ...], eps: float = 1e-6) -> None:
        super().__init__()
        check_number("eps", eps, low=0.0)
        self.weight: nn.Parameter | None = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    @classmethod
    def from_torch(cls, module: nn.Module) -> RMSNormIdentity:
        """Return the same normalization under the rule.

        Args:
            module: ``nn.RMSNorm``, or any module with a ``weight`` and a ``variance_epsilon`` or ``eps`` that computes
                the same (a trial on random numbers must show it, so one that scales by 1 + weight is refused).

        Raises:
            TypeError: it is none of these.
        """
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.RMSNorm):
            shape = module.normalized_shape
            eps = torch.finfo(torch.float32 if weight is None else weight.dtype).eps if eps is None else eps
        elif isinstance(weight, Tensor) and isinstance(eps, float) and not isinstance(module, nn.LayerNorm):
            shape = tuple(weight.shape)
        else:
            raise TypeError(f"RMSNormIdentity.from_torch takes an RMSNorm, got {type(module).__name__}")
        new = cls(shape, eps)
        new.register_parameter("weight", None)
        _take_over(new, module)
        _compare(new, module, shape, weight)
        return new

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return [..., hidden_size] to the same."""
        return R.rms_norm_identity(hidden_states, self.weight, self.variance_epsilon)


def _compare(new: nn.Module, module: nn.Module, shape: tuple[int, ...], weight: Tensor | None) -> None:
    """Raise TypeError if the two do not compute the same."""
    like = torch.empty(0) if weight is None else weight.detach()
    if like.device.type == "meta":
        return
    generator = torch.Generator(like.device).manual_seed(0)
    x = torch.randn(2, *shape, dtype=like.dtype, device=like.device, generator=generator)
    with torch.no_grad():
        expected, found = module(x), new(x)
    tolerance = 8 * torch.finfo(like.dtype).eps
    if not torch.allclose(found, expected, tolerance, tolerance):
        raise TypeError(f"{type(module).__name__} is no plain RMSNorm: {type(new).__name__} computes other values")


class LayerNormEpsilon(nn.LayerNorm):
    """``nn.LayerNorm`` with the standard deviation held constant (see :func:`~lxt_compose.functional.layer_norm`)."""

    @classmethod
    def from_torch(cls, module: nn.Module) -> LayerNormEpsilon:
        """Return the same normalization under the rule; TypeError for anything but ``nn.LayerNorm``."""
        given = _expected(module, nn.LayerNorm, cls)
        has_bias = given.bias is not None
        new = cls(given.normalized_shape, given.eps, given.elementwise_affine, has_bias, device="meta")
        _take_over(new, module)
        return new

    def forward(self, input: Tensor) -> Tensor:
        """Return [..., *normalized_shape] to the same."""
        return R.layer_norm(input, self.weight, self.bias, self.eps, normalized_shape=self.normalized_shape)


class MultiheadAttentionCP(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` with its weights held constant: relevance goes to the values alone.

    ``O = A V`` with ``A = softmax(Q K^T / sqrt(d))`` constant; the projection of the values, their sum weighted by A,
    and the output projection get the epsilon rule, queries and keys get 0.

    Args:
        args: those of ``nn.MultiheadAttention``.
        epsilon: stabilizer (see :class:`~lxt_compose.Epsilon`).
        kwargs: those of ``nn.MultiheadAttention``.

    Source: Ali et al. 2022 (CP-LRP), section 3.2.
    """

    def __init__(self, *args: Any, epsilon: float = EPSILON, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_epsilon(epsilon)
        self.epsilon = epsilon

    @classmethod
    def from_torch(cls, module: nn.Module, epsilon: float = EPSILON) -> MultiheadAttentionCP:
        """Return the same attention under the rule; TypeError for anything but ``nn.MultiheadAttention``."""
        given = _expected(module, nn.MultiheadAttention, cls)
        new = cls(
            given.embed_dim, given.num_heads, given.dropout, add_zero_attn=given.add_zero_attn, kdim=given.kdim,
            vdim=given.vdim, batch_first=given.batch_first, device="meta", epsilon=epsilon,
        )  # fmt: skip
        for name in ("in_proj_bias", "bias_k", "bias_v"):
            setattr(new, name, getattr(given, name))
        new.out_proj = given.out_proj
        _take_over(new, module)
        return new

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attended values, and the attention weights if they are wanted."""
        masks = (key_padding_mask, attn_mask, is_causal)
        weights: Tensor = under(Stop(), "MultiheadAttentionCP", self._weights, query, key, value, *masks)
        output = self._attend(weights, value)
        if not need_weights:
            return output, None
        return output, weights.mean(-3) if average_attn_weights else weights

    def _weights(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None,
        is_causal: bool,
    ) -> Tensor | None:
        """Return ``softmax(Q K^T / sqrt(d))``, [(batch,) heads, targets, sources]."""
        if query.dim() == 3 and self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        separate = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        # torch chooses the kernel by whether a weight requires grad, so all are constants here.
        weights = {name: _detached(getattr(self, name)) for name in (*separate, "in_proj_weight", "in_proj_bias")}
        return F.multi_head_attention_forward(
            query, key, value, self.embed_dim, self.num_heads, weights.pop("in_proj_weight"),
            weights.pop("in_proj_bias"), _detached(self.bias_k), _detached(self.bias_v), self.add_zero_attn,
            self.dropout, self.out_proj.weight.detach(), _detached(self.out_proj.bias), self.training,
            key_padding_mask, True, attn_mask, not self._qkv_same_embed_dim, **weights, average_attn_weights=False,
            is_causal=is_causal,
        )[1]  # fmt: skip

    def _attend(self, weights: Tensor, value: Tensor) -> Tensor:
        """Return weights [(batch,) heads, targets, sources] applied to the projected values."""
        sequence_first = value.dim() == 3 and not self.batch_first
        values = self._project(value.transpose(0, 1) if sequence_first else value)
        if self.bias_v is not None:
            shape = (*values.shape[:-2], 1, self.embed_dim)
            values = torch.cat([values, self.bias_v.detach().reshape(self.embed_dim).expand(shape)], -2)
        if self.add_zero_attn:
            values = F.pad(values, (0, 0, 0, 1))
        heads = values.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)
        attended = R.matmul(weights, heads, epsilon=self.epsilon).transpose(-2, -3).flatten(-2)
        output = R.linear_epsilon(attended, self.out_proj.weight, self.out_proj.bias, self.epsilon)
        return output.transpose(0, 1) if sequence_first else output

    def _project(self, value: Tensor) -> Tensor:
        weight = self.in_proj_weight[-self.embed_dim :] if self._qkv_same_embed_dim else self.v_proj_weight
        bias = None if self.in_proj_bias is None else self.in_proj_bias[-self.embed_dim :]
        return R.linear_epsilon(value, weight, bias, self.epsilon)


MultiheadAttention_CP = MultiheadAttentionCP
"""LXT's name."""
