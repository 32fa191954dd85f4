"""Leaves inside a model that are no inputs of it: weights of modules that the model does not know."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import place
from ..target_module import TARGET
from ..torch_internals import in_transform
from .call_stack import Frame
from .session import Session


def hold_if_stranger(session: Session, leaf: Tensor, frame: Frame) -> bool:
    """Make a leaf a constant if it is one that nothing was to flow to, until the composite is removed.

    A parameter is a constant wherever it is: in a module that the model has in a list or that came after it was
    registered, in a target function. Without that a product with it would hand it a share of the relevance. Another
    tensor that requires grad may be wanted by who made it (weights under ``torch.func.functional_call``, the output of
    a hook), unless what the model is given is all that is explained.

    Args:
        session: of the registration.
        leaf: a carrier that no operation made.
        frame: the module that uses it.

    Returns:
        Whether it is a constant from now on.
    """
    if in_transform() or any(leaf is known for known in session.stack.root_inputs):
        return False
    tally, where = session.tally, place(frame.path)
    if not (session.inputs_alone or isinstance(leaf, nn.Parameter)):
        if not _is_held(leaf, frame.site.module):
            note = f"relevance also ends at a tensor that requires grad and is no input of the model, in {where}"
            tally.remarks[note] = None
        return False
    if session.hold(leaf) and frame.path != TARGET:
        note = f"weights that the model does not hold as its own, in {where}: they are constants, and keys by module"
        tally.remarks[f"{note} do not reach them"] = None
    return True


def _is_held(leaf: Tensor, module: nn.Module) -> bool:
    """Return whether a tensor stands in the place of a parameter, as under functional_call."""
    return any(leaf is held for held in module.parameters(recurse=False))
