"""Autograd functions for rules: each changes what flows back in the backward pass, and no forward value.

The *slot* is what autograd passes back at a tensor: relevance R in the relevance formulation, R / tensor in the
gradient formulation. Outputs share the memory of their inputs, so they cost nothing in the forward pass.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function

from ..errors import RuleError
from ..torch_internals import apply_alone, preserve_version
from .numerics import componentwise, over_stabilized, sum_to
from .saved_values import save

Slots = tuple[Tensor | None, ...]


class RelevanceFunction(Function):
    """Base of this library's autograd functions, which tells them from the model's own."""

    apply = apply_alone

    quiet: ClassVar[bool] = False
    """Whether a subclass switches off zeros for missing slots itself; the most frequent one does, which saves a
    call."""

    def __init_subclass__(cls) -> None:
        """Send no slot where the output got none, instead of computing zeros."""
        if vars(cls).get("quiet"):
            return
        forward, backward = cls.forward, cls.backward

        def without_zeros(ctx: Any, *args: Any) -> Any:
            ctx.set_materialize_grads(False)
            return forward(ctx, *args)

        def of_slots(ctx: Any, *slots: Tensor | None) -> Any:
            return backward(ctx, *slots) if slots[0] is not None else (None,) * len(ctx.needs_input_grad)

        if "forward" in vars(cls):
            cls.forward = staticmethod(without_zeros)  # type: ignore[method-assign]
        if "backward" in vars(cls):
            cls.backward = staticmethod(of_slots)  # type: ignore[method-assign]


class TimesInput(RelevanceFunction):
    """x -> x; slot -> slot * x * share: turns the gradient behind x into the relevance of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.share = share
        save(ctx, x)
        return x.detach()

    @staticmethod
    def backward(ctx: Any, slot: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        relevance = componentwise(torch.mul, slot, x)
        return relevance if ctx.share == 1 else relevance * ctx.share, None


class Stabilized(RelevanceFunction):
    """z -> z; base of those whose backward divides by the stabilized z."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, epsilon: float, share: float) -> Tensor:
        ctx.epsilon, ctx.share = epsilon, share
        save(ctx, z)
        return z.detach()


class OverOutput(Stabilized):
    """z -> z; slot -> share * slot / stabilized z: turns the relevance of z into a gradient at z."""

    @staticmethod
    def backward(ctx: Any, slot: Tensor) -> tuple[Tensor, None, None]:
        (z,) = ctx.saved_tensors
        slot = over_stabilized(slot, z, ctx.epsilon)
        return slot if ctx.share == 1 else slot * ctx.share, None, None


class Damp(Stabilized):
    """z -> z; slot -> share * slot * z / stabilized z: the stabilizer's part in the gradient formulation.

    Nothing is taken off at scores of -inf, which a mask has made: the limit of ``z / (z + e sign z)`` is 1.
    """

    @staticmethod
    def backward(ctx: Any, slot: Tensor) -> tuple[Tensor, None, None]:
        (z,) = ctx.saved_tensors
        damping = torch.nan_to_num(over_stabilized(z, z, ctx.epsilon), nan=1.0)
        slot = componentwise(torch.mul, slot, damping)
        return slot if ctx.share == 1 else slot * ctx.share, None, None


class Share(RelevanceFunction):
    """x -> x; slot -> share * slot, for a number or a tensor without a history."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float | Tensor) -> Tensor:
        ctx.share = share
        return x.detach()

    @staticmethod
    def backward(ctx: Any, slot: Tensor) -> tuple[Tensor, None]:
        return slot * ctx.share, None


class Link(RelevanceFunction):
    """x -> zeros that take no memory; slot -> slot: a tensor with the graph of x that does not keep x alive."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.new_zeros(()).expand(x.shape)

    @staticmethod
    def backward(ctx: Any, slot: Tensor) -> Tensor:
        return slot


class FiniteAtZero(RelevanceFunction):
    """x -> x; slot -> slot, but 0 where x is 0 and the slot is not finite: x has no derivative there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        save(ctx, x)
        return x.detach()

    @staticmethod
    def backward(ctx: Any, slot: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return slot.masked_fill((x == 0) & ~slot.isfinite(), 0)


class Bypass(RelevanceFunction):
    """z -> z, computed from the carriers; the slots of the carriers are ``backward(slot, *saved)``.

    The operation's own graph is not used: `backward` alone gives what flows back. `backward` holds no tensors; those
    that it needs are `saved`, so freeing, checkpointing and reuse work as for PyTorch's own nodes.

    It can be differentiated again (``create_graph=True``) where nothing is saved: saved tensors have no graph, and
    derivatives through them would be lost.
    """

    quiet = True

    @staticmethod
    def forward(ctx: Any, backward: Callable[..., Slots], kept: tuple[Tensor, ...], *carriers: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.slots = backward
        z, *saved = kept
        if saved:
            save(ctx, *saved)
        return z.detach()

    @staticmethod
    def backward(ctx: Any, slot: Tensor | None) -> tuple[Tensor | None, ...]:
        if slot is None:
            return (None,) * len(ctx.needs_input_grad)
        if torch.is_grad_enabled() and ctx.saved_tensors:
            raise RuleError(
                f"create_graph=True: relevance cannot be differentiated here ({_name_of(ctx.slots)}), since the rule's "
                f"backward has no derivative, and part of it would be lost; call backward() or grad() without "
                f"create_graph=True, or use rules that are the operation's own gradient"
            )
        return None, None, *ctx.slots(slot, *ctx.saved_tensors)


class BypassOwn(Bypass):
    """The same for tensors that the operation's own node saves too: to change one in place is an error in any case."""

    quiet = True

    @staticmethod
    def forward(ctx: Any, backward: Callable[..., Slots], kept: tuple[Tensor, ...], *carriers: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.slots = backward
        ctx.save_for_backward(*kept[1:])
        return kept[0].detach()


def bypass(
    backward: Callable[..., Slots], z: Tensor, saved: Sequence[Tensor], carriers: Sequence[Tensor], *, own: bool = False
) -> Tensor:
    """Return the output z, whose only path back to the carriers is `backward`: see :class:`Bypass`, or BypassOwn."""
    plain = [t.detach() if t.requires_grad else t for t in saved]
    function = BypassOwn if own else Bypass
    result: Tensor = function.apply(backward, (z, *plain), *carriers)  # tensors in a tuple are no inputs to autograd
    return result


def _name_of(backward: Any) -> str:
    """Return the name of a rule's backward, for errors."""
    function = getattr(backward, "func", backward)
    return str(getattr(function, "__qualname__", type(function).__name__)).strip("_")


class Graft(RelevanceFunction):
    """z, other -> z; the slot goes to `other`: relevance takes the graph of another computation of the same values."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, other: Tensor) -> Tensor:
        ctx.dtype = other.dtype
        return z.detach()

    @staticmethod
    def backward(ctx: Any, slot: Tensor) -> tuple[None, Tensor]:
        return None, slot.to(ctx.dtype)


class GraftRounded(RelevanceFunction):
    """z, other -> z; relevance R goes to `other` as ``R * other / z``, which keeps the gradient ``R / z``.

    For another computation that gives nearly the same values. The difference, ``R * (z - other) / z``, is rounding.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, other: Tensor) -> Tensor:
        save(ctx, z, other.detach())
        return z.detach()

    @staticmethod
    def backward(ctx: Any, slot: Tensor) -> tuple[None, Tensor]:
        z, other = ctx.saved_tensors
        return None, torch.where(z == 0, slot, slot * (other / z)).to(other.dtype)


def graft(value: Tensor, way: Tensor, *, rounded: bool = False) -> Tensor:
    """Return the value, with the backward of another computation of it, if that has one.

    Args:
        value: the value.
        way: the other computation.
        rounded: what flows back is relevance, and the other computation gives nearly the same values only.
    """
    kind = GraftRounded if rounded else Graft
    grafted: Tensor = kind.apply(value.detach(), way) if way.requires_grad else value.detach()
    return grafted


def backward_of(z: Tensor) -> Callable[..., Slots] | None:
    """Return the `backward` that :func:`bypass` gave an output; None if its node is another."""
    return getattr(z.grad_fn, "slots", None)


class Rebind(RelevanceFunction):
    """Make x the result of an in-place operation that has already changed its memory: x now comes from `result`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, result: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, slot: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(slot), slot  # zeros, not None: where x is a view, None would leave `slot` in place


def rebind(x: Tensor, result: Tensor) -> None:
    """Make x, whose memory an in-place operation has changed, the tensor `result` for autograd too."""
    # No value changes here, so this must not count as a change of tensors that were saved with the new values.
    with preserve_version(x):
        Rebind.apply(x, result)


class NoRelevance(RelevanceFunction):
    """z -> z; slot -> zeros for every input: an output that rules cut off from all inputs still has a backward."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, *inputs: Tensor) -> Tensor:
        ctx.like = [(x.shape, x.dtype, x.device) for x in inputs]
        return z.detach()

    @staticmethod
    def backward(ctx: Any, slot: Tensor) -> tuple[Tensor | None, ...]:
        zeros = (torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.like)
        return None, *zeros


class AllStopped(NoRelevance):
    """The same where rules have stopped all relevance on its way to every input of the model."""


def shared(shapes: list[torch.Size], shares: list[float], slot: Tensor) -> Slots:
    """Return shares of the slot for inputs of these shapes, summed over broadcast dimensions."""
    if len(set(shares)) == 1:
        part = slot if len(shapes) == 1 else slot / len(shapes)
        return tuple(sum_to(part, shape) for shape in shapes)
    return tuple(sum_to(slot * share, shape) for shape, share in zip(shapes, shares, strict=True))


def taylor_softmax(total: Callable[[Tensor], Tensor], sign: float, slot: Tensor, x: Tensor, s: Tensor) -> Slots:
    """Return ``sign * x * (R - s * sum R)``, ``s = softmax(sign * x)``, the sum by `total`; 0 where x is infinite."""
    relevance = sign * x * (slot - s * total(slot)).to(x.dtype)
    return (relevance.masked_fill(x.isinf(), 0),)
