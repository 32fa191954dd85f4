"""Parameters as constants while a composite is registered."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from torch import nn

from ..autograd.sharded import is_sharded
from .policy import Policy


def freeze(model: nn.Module, policy: Policy, stack: ExitStack) -> list[nn.Parameter]:
    """Make all parameters constants, put what restores their flags on the stack, and return those that it changed."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            policy.fixed.add(parameter)
    return _freeze(model, policy, stack, lambda parameter: True)


def freeze_sharded(model: nn.Module, policy: Policy, stack: ExitStack) -> list[nn.Parameter]:
    """Freeze the parameters that were sharded since the composite was registered.

    Sharding puts new parameters in the place of the old ones, and some of its ways have them require grad.
    """
    return _freeze(model, policy, stack, is_sharded)


def without_averaging(model: nn.Module, stack: ExitStack) -> None:
    """Keep ``DistributedDataParallel`` from getting ready to average gradients: those of constants never come.

    It would wait for them, and learn from a pass of relevance which parameters training uses (``static_graph=True``).
    A pass leaves behind what one without gradients does.
    """
    for module in model.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            stack.enter_context(module.no_sync())
            stack.callback(setattr, module, "static_graph", module.static_graph)
            module.static_graph = False


def _freeze(
    model: nn.Module, policy: Policy, stack: ExitStack, chosen: Callable[[nn.Parameter], bool]
) -> list[nn.Parameter]:
    found = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and chosen(parameter):
                stack.callback(partial(_thaw, module, name, parameter))
                policy.frozen.add(parameter)
                found.append(parameter)
                parameter.requires_grad_(False)
    return found


def _thaw(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Restore the flag of a parameter, or of the one that has taken its place and its flag meanwhile."""
    parameter.requires_grad_(True)
    successor = getattr(module, name, None)
    if isinstance(successor, nn.Parameter) and successor is not parameter:
        successor.requires_grad_(True)
