"""A model and a function of its output as one module, so that rules reach the function too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

TARGET = "(target)"
"""The path of what runs in the function."""


class WithTarget(nn.Module):
    """A model whose output is a function of that of another; made by :func:`with_target`."""

    def __init__(self, model: nn.Module, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.model, self.function, self.training = model, function, model.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the function of the model's output."""
        return self.function(self.model(*args, **kwargs))


def with_target(model: nn.Module, function: Callable[[Any], Any]) -> nn.Module:
    """Make a function of a model's output a part of the model.

    A composite sees what runs while the model runs. What is done to the output afterwards passes the plain gradient,
    under which the relevance of a cosine or a log-probability sums to 0, not to its value. So register on this::

        probability = with_target(model, lambda output: output.softmax(-1)[:, 3])
        with Composite().register(probability):
            y = probability(x.requires_grad_())
            y.backward(y.detach())

    Keys, reports and ledgers name the modules as those of the model alone; what runs in the function is at
    ``(target)``. :func:`attribute` does this with a target that is a function.

    Args:
        model: any module; it is not changed.
        function: what is explained, of the model's output; a module, such as a head, may be given too.

    Raises:
        TypeError: the model is no module, or the function cannot be called.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"with_target() takes a torch.nn.Module, got {model!r} of type {type(model).__name__}")
    if not callable(function):
        raise TypeError(f"with_target() takes a function of the model's output, got {function!r}")
    return WithTarget(model, function)


def explained(model: nn.Module) -> nn.Module:
    """Return the model itself, without the function of its output."""
    return model.model if isinstance(model, WithTarget) else model


def target_names(model: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    """Return the names of modules that the model does not have itself: the function, and those inside it."""
    if not isinstance(model, WithTarget):
        return {}
    known = set(model.model.modules())
    found: dict[nn.Module, tuple[str, ...]] = {model: (TARGET,)}
    if isinstance(model.function, nn.Module):
        for name, module in model.function.named_modules():
            if module not in known:
                found[module] = (f"{TARGET}.{name}" if name else TARGET,)
    return found
