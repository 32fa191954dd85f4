"""LRP as an attribution method of Captum: for its metrics, its visualizations, and code that is written for it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.run import composite_of
from ..composite import Composite
from ..errors import AttributionError
from ..rules import GRADIENT


def captum_lrp(model: nn.Module, composite: str | Composite = "attnlrp") -> Any:
    """Return the composite's attribution of the model as a ``captum.attr.Attribution``.

    Its ``attribute(inputs, target=None, additional_forward_args=None, return_convergence_delta=False)`` takes what
    Captum's own methods take, and returns relevance of the shape of the inputs; the delta of a sample is its output
    less the sum of its relevance (what biases and softmax absorbed). ``report`` is the coverage report of the last
    call. Additional arguments are constants. Integer ids carry nothing here: explain embeddings, or call
    :func:`lxt_compose.attribute`.

    Args:
        model: any module, in ``eval()`` mode.
        composite: the name of a preset, or a :class:`Composite`.

    Raises:
        ImportError: Captum is not installed.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"captum_lrp() takes a torch.nn.Module, got {model!r} of type {type(model).__name__}")
    return _class()(model, composite_of(composite))


@lru_cache
def _class() -> type:
    """Return the class, which needs Captum's base class and so is made when Captum is imported."""
    try:
        from captum.attr import Attribution
        from captum.log import log_usage
    except ImportError:
        raise ImportError("captum_lrp() needs Captum: pip install captum") from None

    class ComposedLRP(Attribution):  # type: ignore[misc]
        """Layer-wise relevance propagation by a composite of rules."""

        def __init__(self, model: nn.Module, composite: Composite) -> None:
            super().__init__(model)
            self.model, self.composite, self.report = model, composite, None

        def has_convergence_delta(self) -> bool:
            return True

        @log_usage()  # type: ignore[untyped-decorator]  # Captum looks for what it wraps
        def attribute(
            self,
            inputs: Any,
            target: Any = None,
            additional_forward_args: Any = None,
            return_convergence_delta: bool = False,
        ) -> Any:
            """Return the relevance of the inputs, a tensor or a tuple as they are; see :func:`captum_lrp`."""
            tensors = inputs if isinstance(inputs, tuple) else (inputs,)
            found, delta, self.report = relevance_of(
                self.model, self.composite, tensors, target, additional_forward_args
            )
            given = found if isinstance(inputs, tuple) else found[0]
            return (given, delta) if return_convergence_delta else given

    return ComposedLRP


def relevance_of(
    model: nn.Module, composite: Composite, inputs: tuple[Tensor, ...], target: Any, more: Any
) -> tuple[tuple[Tensor, ...], Tensor, Any]:
    """Return the relevance of each input, the delta of each sample [n], and the coverage report.

    Raises:
        TypeError: an input is no floating point tensor.
        ValueError: the target does not choose one number for each sample.
        AttributionError: the output depends on no input.
    """
    for place, x in enumerate(inputs):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"input {place} carries no relevance here: it is {kind}; explain its embeddings")
    more = () if more is None else more if isinstance(more, tuple) else (more,)
    with torch.enable_grad(), composite.register(model) as registration:
        leaves = [x.detach().requires_grad_() for x in inputs]
        value = chosen(model(*leaves, *more), target)
        in_slots = composite.formulation == GRADIENT or composite.picture == "slot"
        if not value.requires_grad:
            raise AttributionError(f"the output of {type(model).__name__} depends on none of the inputs")
        start = torch.ones_like(value) if in_slots else value.detach()
        slots = torch.autograd.grad(value, leaves, start, allow_unused=True)
        report = registration.report()
    times_input = composite.formulation == GRADIENT and composite.picture != "slot"
    found = tuple(
        torch.zeros_like(x) if slot is None else x.detach() * slot if times_input else slot
        for x, slot in zip(leaves, slots, strict=True)
    )
    total = sum(r.flatten(1).sum(1) for r in found if r.dim() > 1)
    return found, value.detach() - total, report


def chosen(output: Any, target: Any) -> Tensor:
    """Return one number for each sample [n], by Captum's ways to write a target.

    None for an output that has one number a sample; an index, or one for each sample as a list or tensor [n]; for an
    output of more dimensions a tuple of indices, or a list of such tuples, one for each sample.

    Raises:
        ValueError: it chooses something else.
    """
    if not isinstance(output, Tensor):
        raise ValueError(f"the output must be a tensor, got {type(output).__name__}: wrap the model to return one")
    samples, shape = len(output), list(output.shape)
    if target is None:
        if output.numel() != samples:
            raise ValueError(f"a target is needed: the output has {shape[1:]} numbers for each sample")
        return output.reshape(samples)
    places: Any = target.tolist() if isinstance(target, Tensor) else target
    if isinstance(places, list) and len(places) == 1:
        places = places * samples
    each = places if isinstance(places, list) else [places] * samples
    each = [place if isinstance(place, tuple) else (place,) for place in each]
    if len(each) != samples or any(len(place) != output.dim() - 1 for place in each):
        raise ValueError(f"the target {target!r} does not choose one number for each sample of an output {shape}")
    return torch.stack([of_one[place] for of_one, place in zip(output, each, strict=True)])
