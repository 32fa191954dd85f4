"""Carriers inside a model that come from none of its inputs: weights that it does not hold, and results of weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..autograd.marks import MARK
from ..autograd.trees import map_tensors
from ..errors import place
from ..target_module import TARGET
from ..torch_internals import in_backward, in_transform, node_number
from .call_stack import Frame
from .session import Session


def is_stranger(session: Session, x: Tensor, frame: Frame) -> bool:
    """Return whether a carrier should be a constant, since relevance was not meant to flow to it.

    A parameter is a constant wherever it is: in a module that the model has in a list or that came after it was
    registered, in a target function. So is what was computed from parameters before the forward pass and kept (a table
    of positions, a weight under ``parametrize.cached()``). Without that a product would hand them a share of the
    relevance. For any other tensor that requires grad relevance may be wanted (weights under
    ``torch.func.functional_call``, the output of a hook), unless only the inputs of the model are explained.

    Args:
        session: of the registration.
        x: a carrier without a mark.
        frame: the module that uses it.
    """
    source: Any = x.grad_fn
    if source is not None and node_number(source) >= session.stack.began:
        return False
    if in_transform() or any(x is known for known in session.stack.root_inputs):
        return False
    if _of_parameters(x):
        return True
    if in_backward():  # a checkpoint has made leaves of what it was given
        return False
    if session.inputs_alone:
        return True
    if not any(x is held for held in frame.site.module.parameters(recurse=False)):  # as under functional_call
        note = (
            f"relevance also ends at a tensor that requires grad and is no input of the model, in {place(frame.path)}"
        )
        session.tally.remarks[note] = None
    return False


def without_strangers(
    session: Session, carriers: list[Tensor], frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with constants in the place of strangers; leaves are constants from now on."""
    exchanged: dict[int, Tensor] = {}
    for x in carriers:
        source: Any = x.grad_fn
        if (source is not None and MARK in source.metadata) or not is_stranger(session, x, frame):
            continue
        if source is not None:
            session.has_strangers, exchanged[id(x)] = True, x.detach()
            session.policy.frozen.note(exchanged[id(x)])
        elif session.hold(x) and frame.path != TARGET:
            note = f"weights that the model does not hold as its own, in {place(frame.path)}: they are constants, and "
            session.tally.remarks[f"{note}keys by module do not reach them"] = None
    found: tuple[tuple[Any, ...], dict[str, Any]] = map_tensors(lambda x: exchanged.get(id(x), x), (args, kwargs))
    return found


def _of_parameters(x: Tensor) -> bool:
    """Return whether a tensor is a parameter, or was computed from parameters alone."""
    if x.grad_fn is None:
        return isinstance(x, nn.Parameter)
    pending: list[Any] = [x.grad_fn]
    met, leaves = set[Any](), list[Any]()
    while pending:
        node = pending.pop()
        if node is None or node in met:
            continue
        met.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        pending += [source for source, _ in node.next_functions]
    return all(isinstance(leaf, nn.Parameter) for leaf in leaves)
