"""Where the relevance of a logit ends up: the means to add up every source of it, none of them the library's own.

A logit closes when it equals the sum of ``t * t.grad`` over all that is *added* somewhere in the model: the inputs,
biases, tables of positions and types, class tokens. They are made leaves through ``torch.func.functional_call``. Which
parameters are added and which multiply is found by watching one plain forward pass. Numbers that a model adds
(``up + 1``) and, in AttnLRP, what the softmax absorbs are read off while the model runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lxt_compose import Attention, Family, SoftmaxTaylor

_ADDS = {"add", "iadd", "radd", "sub", "isub", "rsub", "rsub_"}
_PLACES = {"cat", "concat", "stack", "where", "masked_fill", "setitem", "index_put", "copy", "embedding", "scatter"}
_MOVES = set(
    """
    getitem index_select gather repeat repeat_interleave interpolate to float double type type_as clone contiguous
    reshape flatten expand embedding permute transpose unsqueeze squeeze view chunk split unbind pad roll masked_fill
""".split()
)
# Which arguments are inputs and which are added; the others are weights.
_INPUTS: dict[str, dict[int, str]] = {
    "linear": {0: "input", 2: "bias"}, "conv1d": {0: "input", 2: "bias"}, "conv2d": {0: "input", 2: "bias"},
    "layer_norm": {0: "input", 3: "bias"}, "group_norm": {0: "input", 3: "bias"}, "batch_norm": {0: "input", 4: "bias"},
    "addmm": {0: "input"}, "baddbmm": {0: "input"}, "scaled_dot_product_attention": {3: "attn_mask"},
    "multi_head_attention_forward": {
        0: "query", 1: "key", 2: "value", 6: "in_proj_bias", 7: "bias_k", 8: "bias_v", 12: "out_proj_bias",
    },
}  # fmt: skip


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", "").strip("_")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


class KeepDouble(TorchFunctionMode):
    """Architectures that force a softmax or a norm to float32 stay in float64, so that sums can be compared closely."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.float:
            return args[0] if args[0].dtype == torch.float64 else args[0].double()
        if func is not torch.finfo:
            args = tuple(torch.float64 if value is torch.float32 else value for value in args)
            kwargs = {k: torch.float64 if value is torch.float32 else value for k, value in kwargs.items()}
        return func(*args, **kwargs)


class _Watch(TorchFunctionMode):
    """Notes which parameters and buffers are added to something, directly or after they were moved around."""

    def __init__(self, named: dict[str, Tensor]) -> None:
        super().__init__()
        self.memory = {t.untyped_storage().data_ptr(): name for name, t in named.items() if t.numel()}
        self.derived: dict[int, tuple[Tensor, str]] = {}
        self.added: set[str] = set()

    def _origin(self, tensor: Tensor) -> str | None:
        if id(tensor) in self.derived:
            return self.derived[id(tensor)][1]
        try:
            return self.memory.get(tensor.untyped_storage().data_ptr())
        except NotImplementedError:  # inside of vmap, where masks are made
            return None

    def _note(self, values: Any) -> None:
        self.added |= {origin for tensor in _tensors(values) if (origin := self._origin(tensor))}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = _name(func)
        if name in _ADDS or name in _PLACES:
            self._note((*args, *kwargs.values()))
        for place, keyword in _INPUTS.get(name, {}).items():
            self._note(args[place] if len(args) > place else kwargs.get(keyword))
        output = func(*args, **kwargs)
        if name in _MOVES:
            origins = {origin for tensor in _tensors(args) if (origin := self._origin(tensor))}
            if len(origins) == 1:
                for tensor in _tensors(output):
                    self.derived[id(tensor)] = (tensor, next(iter(origins)))
        return output


def sources_of(model: nn.Module, inputs: dict[str, Any]) -> list[str]:
    """The names of the parameters and buffers that an unregistered model adds to something in a forward pass."""
    named = {name: t for name, t in (*model.named_parameters(), *model.named_buffers()) if t.is_floating_point()}
    with torch.no_grad(), _Watch(named) as watch:
        model(**inputs)
    return sorted(watch.added)


class Constants(TorchFunctionMode):
    """Relevance (gradient formulation) of numbers and constant tensors that a model adds to what carries relevance."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        constant = self._constant(_name(func), args, kwargs)
        output = func(*args, **kwargs)
        if constant is not None and isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(lambda slot: self._count(slot, constant))
        return output

    def _constant(self, name: str, args: Any, kwargs: Any) -> Any:
        """What is added in this call that carries no relevance, with its sign and factor."""
        if name == "baddbmm":
            if args[0].requires_grad:
                return None
            return kwargs.get("beta", 1) * args[0].detach().clone()
        if name == "batch_norm" and not kwargs.get("training"):  # what the running mean takes off
            weight = kwargs.get("weight")
            scale = (args[2] + kwargs["eps"]).rsqrt() * (1 if weight is None else weight.detach())
            return -(args[1] * scale).reshape(-1, *[1] * (args[0].dim() - 2))
        if name not in _ADDS or len(args) < 2:
            return None
        signs = {"sub": (1, -1), "isub": (1, -1), "rsub": (-1, 1)}.get(name, (1, 1))
        for value, sign in zip(args[:2], signs, strict=True):
            if not (isinstance(value, Tensor) and value.requires_grad):
                value = value.detach().clone() if isinstance(value, Tensor) else value
                return sign * kwargs.get("alpha", 1) * value
        return None

    def _count(self, slot: Tensor, constant: Any) -> None:
        share = torch.where(slot == 0, torch.zeros_like(slot), slot * constant)
        self.total += float(share.sum())


@dataclass(frozen=True)
class SinkingSoftmax(SoftmaxTaylor):
    """The Taylor rule, with a note of what it absorbs: R of the softmax's output less R of its input (prop. 3.1)."""

    absorbed: list[float] = None  # type: ignore[assignment]

    __hash__ = object.__hash__

    def leave(self, call: Any, outputs: list[Tensor]) -> list[Tensor]:
        x = call.values[0].detach()
        (softmax,) = super().leave(call, outputs)
        dim = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else -1)

        def count(slot: Tensor) -> None:
            s = softmax.detach()
            relevance = s * slot
            handed_on = x * (relevance - s * relevance.sum(dim, keepdim=True))
            handed_on = torch.where(s == 0, torch.zeros_like(handed_on), handed_on)
            self.absorbed.append(float(relevance.sum() - handed_on.sum()))

        softmax.register_hook(count)
        return [softmax]


@dataclass(frozen=True)
class SinkingAttention(Attention):
    """Attention in parts, as ``multi_head_attention_forward`` runs it, with the same note taken at its softmax."""

    families: ClassVar[frozenset[Family]] = frozenset({Family.ATTENTION, Family.SOFTMAX})
    epsilon: float = 0.0
    absorbed: list[float] = None  # type: ignore[assignment]

    __hash__ = object.__hash__

    def enter(self, call: Any, place: int) -> Tensor:
        inner = call.op.family is Family.SOFTMAX
        return SinkingSoftmax(self.absorbed).enter(call, place) if inner else super().enter(call, place)

    def leave(self, call: Any, outputs: list[Tensor]) -> list[Tensor]:
        inner = call.op.family is Family.SOFTMAX
        return SinkingSoftmax(self.absorbed).leave(call, outputs) if inner else super().leave(call, outputs)

    def idle(self, call: Any) -> bool:
        return call.op.family is not Family.SOFTMAX and super().idle(call)


def sinking_rules(absorbed: list[float]) -> dict[Any, Any]:
    """Keys for AttnLRP that note in `absorbed` what each softmax absorbs during a backward pass."""
    return {
        F.softmax: SinkingSoftmax(absorbed=absorbed),
        F.multi_head_attention_forward: SinkingAttention(absorbed=absorbed),
    }


@dataclass
class Closing:
    """One logit, and where its relevance went."""

    logit: float
    leaves: dict[str, float]
    constants: float
    sink: float

    @property
    def gap(self) -> float:
        """What is missing, in the units of the logit."""
        return abs(self.logit - sum(self.leaves.values()) - self.constants - self.sink)


def close(
    model: nn.Module,
    inputs: dict[str, Any],
    names: list[str],
    select: Callable[[Any], Tensor],
    absorbed: list[float] | None = None,
) -> Closing:
    """Run the registered `model` (gradient formulation) and add up the relevance of one logit.

    names: the parameters and buffers that are sources; select: from the model's output to a scalar; absorbed: the list
    that :func:`sinking_rules` were given.
    """
    named = dict((*model.named_parameters(), *model.named_buffers()))
    leaves = {name: named[name].detach().clone().requires_grad_() for name in names}
    floating = {name for name, value in inputs.items() if isinstance(value, Tensor) and value.is_floating_point()}
    given = {
        name: value.detach().clone().requires_grad_() if name in floating else value for name, value in inputs.items()
    }
    absorbed = [] if absorbed is None else absorbed
    absorbed.clear()
    with Constants() as constants:
        logit = select(functional_call(model, leaves, (), given))
    logit.backward()
    carriers = {**leaves, **{name: given[name] for name in floating}}
    shares = {name: float((t.detach() * t.grad).sum()) for name, t in carriers.items() if t.grad is not None}
    return Closing(float(logit), shares, constants.total, sum(absorbed))
