"""Relevance that is differentiated (``create_graph=True``): by the inputs, by what it starts with, by the parameters.

The graph that a registered model leaves behind has the backward of rules, and its parameters are constants. What it
gives is relevance R(x, w, s), of the inputs x, the parameters w and the slots s that it starts with; what autograd
would make of that graph is not the derivative of R. So where a backward pass is recorded, the forward pass and its
relevance are written down as one graph of plain operations (:class:`~lxt_compose.tracing.Program`), without rules or
hooks, and that graph is run on the live parameters. Its derivatives are autograd's own.

Source: double backpropagation, Drucker and LeCun 1992; a loss on relevance, Ross et al. 2017, Sun et al. 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..autograd.functions import RelevanceFunction
from ..autograd.nodes import edge_of
from ..autograd.trees import PLAIN, map_tensors, tensors_in
from ..errors import RegistrationError
from ..errors import place as place_of
from ..keys import Assignment
from ..rules.linear_layers.branches import without_choices
from ..torch_internals import in_transform, is_batched
from ..torch_internals.backward_hooks import has_full_backward_hooks
from ..tracing import Kept, ModelState, Program, Written

Slots = tuple[Tensor | None, ...]


class Owner(Protocol):
    """The registration that a forward pass belongs to."""

    active: bool
    merged: bool
    has_strangers: bool
    frozen: list[nn.Parameter]
    entries: tuple[Assignment, ...]
    programs: Kept[Written]

    def thaw(self) -> None:
        """Let the parameters require grad again, until the next forward pass begins."""

    def quietly(self) -> Any:
        """Return a context in which the model runs without being counted."""


@dataclass(eq=False)
class Pass:
    """One forward pass of an outermost module, of which relevance can be asked."""

    owner: Owner
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    roots: list[Tensor]
    """The carriers among the arguments."""
    versions: list[int]

    @classmethod
    def of(cls, owner: Owner, module: nn.Module, given: tuple[Any, Any], roots: list[Tensor]) -> Pass:
        """Return the pass that a module has just made."""
        return cls(owner, module, *given, roots, [x._version for x in roots])

    @property
    def name(self) -> str:
        """The class of the module."""
        return type(self.module).__name__


class Recorded(RelevanceFunction):
    """One output of a forward pass -> the same; a backward pass that is recorded leads from it to the roots at once.

    Any other backward pass goes on to what made the output.
    """

    @staticmethod
    def forward(ctx: Any, made: Pass, place: int, z: Tensor, *roots: Tensor) -> Tensor:  # noqa: D102
        ctx.made, ctx.place = made, place
        return z.detach()

    @staticmethod
    def backward(ctx: Any, slot: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        made: Pass = ctx.made
        if not torch.is_grad_enabled():
            return (None, None, slot, *[None] * len(made.roots))
        _check_leaves(made, ctx.next_functions[0][0])
        return (None, None, None, *_relevance(made, ctx.place, slot))


def recorded(made: Pass, output: Any) -> Any:
    """Return the output of a forward pass, such that its relevance can be differentiated."""
    if not made.roots or in_transform():
        return output
    exchanged: dict[int, Tensor] = {}
    for place, z in enumerate(_outputs(output)):
        new: Tensor = Recorded.apply(made, place, z, *made.roots)
        if z.grad_fn is not None and new.grad_fn is not None:
            node: Any = new.grad_fn
            node.metadata.update(z.grad_fn.metadata)
        exchanged[id(z)] = new
    return map_tensors(lambda z: exchanged.get(id(z), z), output) if exchanged else output


def _outputs(output: Any) -> list[Tensor]:
    """Return the outputs that relevance can start at."""
    return list({id(z): z for z in tensors_in(output) if z.requires_grad and z.is_floating_point()}.values())


def _relevance(made: Pass, place: int, slot: Tensor) -> Slots:
    """Return the slots of the roots, with a graph behind them.

    Raises:
        RegistrationError: the composite is no longer there, or this pass cannot be run again as it was.
    """
    if not made.owner.active:
        raise _refused(made, "the composite has been removed; ask for it inside the with block, or before remove()")
    if any(x._version != version for x, version in zip(made.roots, made.versions, strict=True)):
        raise _refused(made, "an input was changed in place since the forward pass; give the model a copy")
    if made.owner.merged and made.owner.frozen:
        raise _refused(
            made,
            "canonizers compute with other weights than the parameters, which so have no gradient; leave the "
            "canonizers out, or call requires_grad_(False) on the model before register()",
        )
    if made.owner.has_strangers:
        raise _refused(made, "it uses weights that it does not hold as its own; make their modules its submodules")
    hooked = next((name for name, part in made.module.named_modules() if has_full_backward_hooks(part)), None)
    if hooked is not None:
        raise _refused(made, f"{place_of(hooked)} has a full backward hook, which its graph would not call; remove it")
    if _hangs_on_a_pass(slot):
        raise _refused(
            made,
            "it starts with a function of what the registered model put out, whose backward pass is relevance and no "
            "derivative; start with y.detach(), a constant, or with what the model puts out before register(), or use "
            "composite.trace(..., differentiable=True)",
        )
    constants = [x for x in tensors_in((made.args, made.kwargs)) if not x.requires_grad]
    given = [*made.roots, *constants, slot]
    key = _key(made, place, given)
    written = made.owner.programs.get(key, lambda: _written_down(made, place, given), good=Written.holds)
    made.owner.thaw()
    found: Slots = tuple(written.program.differentiable(*given))
    return found


def _check_leaves(made: Pass, node: Any) -> None:
    """Raise if relevance has a path to a leaf that is no argument, for which there would be no derivative.

    Raises:
        RegistrationError: there is one.
    """
    ends = {edge_of(x)[0] for x in made.roots}
    pending, met = [node], set[Any]()
    while pending:
        one = pending.pop()
        if one is None or one in met or one in ends:
            continue
        met.add(one)
        if hasattr(one, "variable"):
            shape = list(one.variable.shape)
            raise _refused(made, f"a tensor of shape {shape} carries relevance that is no argument; pass it as one")
        pending += [source for source, _ in one.next_functions]


def _hangs_on_a_pass(slot: Tensor) -> bool:
    """Return whether a derivative by the slot would go on through the rules of a registered model."""
    pending, met = [slot.grad_fn], set[Any]()
    while pending:
        node: Any = pending.pop()
        if getattr(node, "_forward_cls", None) is Recorded:
            return True
        if node is not None and node not in met:
            met.add(node)
            pending += [source for source, _ in node.next_functions]
    return False


def _written_down(made: Pass, place: int, given: Sequence[Tensor]) -> Written:
    state = ModelState(made.module, chain.from_iterable(entry.own_code for entry in made.owner.entries))
    stand_ins = [torch.ones_like(x[0]) if is_batched(x) else x.detach() for x in given]
    try:
        with made.owner.quietly(), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), without_choices():
            program = Program(_function(made, place), stand_ins, differentiable=True)
    except Exception as error:
        raise _refused(made, f"its relevance cannot be written down as one graph: {error}") from error
    if program.is_random or program.changes_weights:
        raise _refused(made, "it draws random numbers or changes its buffers while it runs; call model.eval() first")
    state.settle()
    return Written(program, state)


def _function(made: Pass, place: int) -> Callable[..., list[Tensor]]:
    """Return the slots of the roots as a function of roots, other tensors among the arguments, and the slot."""

    def relevance(*given: Tensor) -> list[Tensor]:
        count = len(made.roots)
        leaves = [x.detach().requires_grad_() for x in given[:count]]
        carriers, constants = iter([x.clone() for x in leaves]), iter(given[count:])
        args, kwargs = map_tensors(
            lambda x: next(carriers) if x.requires_grad else next(constants), (made.args, made.kwargs)
        )
        output = _outputs(made.module(*args, **kwargs))[place]
        found = torch.autograd.grad(output, leaves, next(constants), allow_unused=True)
        return [torch.zeros_like(x) if r is None else r for x, r in zip(leaves, found, strict=True)]

    return relevance


def _key(made: Pass, place: int, given: Sequence[Tensor]) -> Any:
    """Return what a graph belongs to.

    Raises:
        RegistrationError: an argument may have been changed by the model.
    """
    plain, shapes = tuple(_plain(made, (made.args, made.kwargs))), tuple((x.shape, x.dtype, x.device) for x in given)
    return ModelState.key(made.module), id(made.module), plain, place, shapes


def _plain(made: Pass, tree: Any) -> Iterator[Any]:
    if isinstance(tree, Tensor):
        yield tree.requires_grad
    elif isinstance(tree, (tuple, list)):
        yield len(tree)
        for value in tree:
            yield from _plain(made, value)
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield key
            yield from _plain(made, value)
    elif type(tree) in PLAIN:
        yield (type(tree), tree)
    else:
        kind = type(tree).__name__
        raise _refused(made, f"an argument of type {kind} may have been changed by the model; leave it out")


def _refused(made: Pass, why: str) -> RegistrationError:
    return RegistrationError(f"create_graph=True: the relevance of {made.name} cannot be differentiated: {why}")
