"""Steps of chains (`chains.py`): the rule that an elementwise operation needs, and the chain of its output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..autograd.trees import tensors_in
from ..ops import Elements, Elementwise, Family, Op
from ..ops.slopes import curve_of
from ..rules import Gated
from ..rules.chained import Anchor, Chained
from ..torch_internals import checkpoint_hook, in_transform, storage_of
from .chain_step import SUM, How, Step, begun, ends
from .chains import Base, Chain, chain_of, known_chain, source_of
from .curves import POINTS, Followed, Function, expansion_of
from .forms import Form

_HELD = Gated()


def is_elementwise(op: Op | None) -> bool:
    """Return whether an operation can be a step of a chain."""
    if op is None or curve_of(op).opaque:
        return False
    if op.family in (Family.PRODUCT, Family.DIVISION):
        return not op.addends
    known = op.traits
    copies = known.elements is Elements.SAME_PLACE and not known.dropout
    return op.family is Family.ACTIVATION or known.elementwise is not None or copies


def is_copy(op: Op) -> bool:
    """Return whether an elementwise operation gives its input again, perhaps in another dtype, or a part of it."""
    return op.family is Family.MOVEMENT and op.traits.elementwise is not Elementwise.NONLINEAR


def _adds(op: Op) -> bool:
    return op.family is Family.LINEAR and op.traits.elementwise is Elementwise.AFFINE


def step_of(
    info: Followed,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    carriers: Sequence[Tensor],
    form: Form | None,
    how: How,
) -> Step | None:
    """Return what a call does to chains; None if its output is no element of one.

    Args:
        info: the function, with an operation for which :func:`is_elementwise`.
        args: its arguments.
        kwargs: its keyword arguments.
        carriers: the carriers among the arguments.
        form: the form of the call, if it has one.
        how: what else matters.
    """
    op, first = info.op, carriers[0]
    assert op is not None
    if form is None and len(carriers) == 1 and not how.conditions and not info.copies and _has_large(args, how):
        return None
    checkpoint = checkpoint_hook()
    if in_transform() or (len(carriers) > 1 and not _share_source(carriers, checkpoint)):
        return None
    if first.layout is not torch.strided or not first.is_floating_point():
        return None
    copies = info.copies
    if copies and not how.conditions:
        return _copied(args, kwargs, first, checkpoint)
    function = Function.of(info, args, kwargs, first, form, partial(how.find, first, checkpoint))
    if copies and (function is None or not function.conditional):
        return _copied(args, kwargs, first, checkpoint)
    return None if function is None else _of_function(op, function, carriers, checkpoint, how)


def _of_function(op: Op, function: Function, carriers: Sequence[Tensor], checkpoint: Any, how: How) -> Step | None:
    first = carriers[0]
    chooses = function.conditional or op.family is Family.MOVEMENT
    if len(carriers) == 1 and not function.conditional:
        before = known_chain(first, checkpoint)
        if ends(function, None if before is None else before.curve):
            return None
        if before is None or before.curve is POINTS:
            return _first(op, function, before, first, checkpoint, how)._replace(chooses=chooses)
    chains = [chain_of(x, checkpoint) for x in carriers]
    curve = function([chain.curve for chain in chains])
    if curve is None or not isfinite(curve.at_zero):
        return None
    active = chooses or function.divides or op.family is Family.ACTIVATION
    active = active or any(chain.active for chain in chains)
    after = Chain(chains[0].source, curve, checkpoint, active=active)
    step = _known(_Call(op, function, chains, carriers, after, how))
    return step and step._replace(chooses=chooses) if chooses else step


def _known(call: _Call) -> Step | None:
    """Return a function of tensors that are functions of one source."""
    if call.function.conditional:
        return _of_condition(call)
    if len(call.chains) == 1:
        return _of_one(call)
    step, shared = _of_several(call), _shared(call)
    return step if step is None or shared is None else step._replace(near=shared.part)


def _has_large(args: Sequence[Any], how: How) -> bool:
    """Return whether the arguments hold a constant tensor of several elements."""
    constants = [x for x in args if isinstance(x, Tensor) and not x.requires_grad]
    return any(x.numel() != 1 and x.layout is torch.strided and not how.conditions.is_number(x) for x in constants)


def _share_source(carriers: Sequence[Tensor], checkpoint: Any) -> bool:
    """Return whether all are functions of one tensor, element by element."""
    first, *others = carriers
    source = source_of(first, checkpoint)
    return all(x.shape == first.shape and source_of(x, checkpoint) == source for x in others)


def _first(op: Op, function: Function, before: Chain | None, x: Tensor, checkpoint: Any, how: How) -> Step:
    """Return a function of a source, under its default rule."""
    curve = function.alone
    assert curve is not None
    scales = curve.ratio is not None
    rule = SUM if scales and how.stabilized and _adds(op) else None
    return Step(begun(op, curve, before, x, checkpoint, how), rule, first=True)


def note_comparison(
    info: Followed, args: Sequence[Any], kwargs: Mapping[str, Any], carriers: Sequence[Tensor], output: Any, how: How
) -> None:
    """Note what a comparison that has run is as a function of the source of its carriers, if they have one."""
    checkpoint, first = checkpoint_hook(), carriers[0]
    chains = [chain_of(x, checkpoint) for x in carriers]
    if any(chain.source != chains[0].source for chain in chains) or not isinstance(output, Tensor):
        return
    function = Function.of(info, args, kwargs, first, None, partial(how.find, first, checkpoint))
    curve = None if function is None else function([chain.curve for chain in chains])
    if curve is not None and output.shape == first.shape:
        origin = chains[0].origin(first)
        origin = origin and origin.kept(relevance=how.relevance, changes=False)
        how.conditions.note(output, chains[0].source, checkpoint, curve, origin)


class _Call(NamedTuple):
    """An elementwise call: its function, and what is known of its carriers and of its output."""

    op: Op
    function: Function
    chains: Sequence[Chain]
    carriers: Sequence[Tensor]
    after: Chain
    how: How

    def keep(self, base: Base | None) -> Base | None:
        """Keep the base and the origin of the output; return the base from before the call."""
        origins = [(chain.origin(x), x) for chain, x in zip(self.chains, self.carriers, strict=True)]
        costs_nothing = self._saves_input()
        free = (known for known, x in origins if known is not None and (costs_nothing or known.tensor is not x))
        origin = next(free, None)
        if self.after.at_zero or self._changes(base):
            base = self._before(base)
        root = self._root(base) if origin is None else None
        if self.after.at_zero:
            self.after.keep(base, base if base is not None and base.ratio is not None else self._before(origin), root)
        else:
            self.after.keep(None, self._before(origin), root)
        before = self.chains[0]
        if before.curve.ratio is None:
            self.after.see_what(before)
        elif origin is None:
            self.after.see(self.carriers[0], before.curve.ratio)
        return base

    def _root(self, base: Base | None) -> Base | None:
        """Return an earlier base that other functions of it may share, where no origin is kept."""
        before = self.chains[0].root() if len(self.chains) == 1 else None
        part = None if before is None else self.function([before.part])
        if before is not None and part is not None:
            return before._replace(part=part)
        shared = base is not None and base.ratio is None and not self.after.at_zero and self._saves_input()
        return base if shared else None

    def _changes(self, base: Base | None) -> bool:
        target = self.how.target
        return base is not None and target is not None and storage_of(base.tensor) == storage_of(target)

    def _before(self, base: Base | None) -> Base | None:
        return base and base.kept(relevance=self.how.relevance, changes=self._changes(base))

    def _saves_input(self) -> bool:
        """Return whether keeping the input costs no memory: backward needs it too, or no values are needed."""
        return self.how.relevance or not curve_of(self.op).own_slope

    def by_default(self, *, whole: bool = True) -> Step:
        """Return the step under the default rule; a sum that hands on all of the relevance needs no stabilizer."""
        return Step(self.after, SUM if whole and self.how.stabilized and _adds(self.op) else None)

    def chained(self, base: Base | None) -> Step | None:
        """Return the step that gives all relevance to the base; None if there is no base, or no slope at 0."""
        if base is None:
            return None
        known = base.ratio is not None
        found = expansion_of(self.after.curve if known else base.part, base.ratio or 1.0)
        if found is None:
            return None
        anchor = Anchor(base.tensor, base.tensor.detach() if base.value is None else base.value)
        return Step(self.after, Chained(expansion=found), anchor, divides=self.function.divides)


def _copied(args: Sequence[Any], kwargs: Mapping[str, Any], x: Tensor, checkpoint: Any) -> Step | None:
    """Return a copy, or the same numbers in another dtype."""
    if sum(1 for _ in tensors_in((args, kwargs))) > 1:
        return None  # a mask, say
    before = chain_of(x, checkpoint)
    after = Chain(before.source, before.curve, before.checkpoint, active=before.active)
    if before.curve.ratio is None:
        after.keep(before.base(x), before.origin(x), before.root())
        after.see_what(before)
    return Step(after, first=before.curve is POINTS)


def _of_one(call: _Call) -> Step | None:
    """Return a function of one tensor."""
    before, after = call.chains[0], call.after
    base, own, straight = before.base(call.carriers[0]), call.function([POINTS]), before.curve.is_affine
    if own is None:
        return None
    if base is not None and base.ratio is None:
        part = call.function([base.part])
        base = None if part is None else base._replace(part=part)
    base = call.keep(base)
    if call.function.divides:
        return call.chained(base) if after.curve.is_finite else None
    scales = own.ratio is not None
    if scales or (straight and own.is_affine) or not (before.at_zero or own.is_affine):
        return call.by_default(whole=scales)
    return call.chained(base)


def _of_several(call: _Call) -> Step | None:
    """Return a function of several tensors that are functions of one source."""
    chains, base = call.chains, call.keep(_common(call))
    away = [bool(chain.at_zero) for chain in chains]
    if call.op.multiplies and not all(away):
        held = tuple(place for place, is_away in enumerate(away) if is_away)
        return Step(call.after, _HELD if held else None, held=held)
    divided = [is_away for is_away, held in zip(away, call.function.held, strict=True) if not held]
    if not any(away) or (call.op.family is Family.DIVISION and divided == [False]):
        # Terms of a sum may cancel: each would be handed far more than the sum was.
        step = call.chained(base) if call.how.relevance and _adds(call.op) else None
        return call.by_default() if step is None else step._replace(whole=True)
    if _adds(call.op) and all(chain.curve.is_affine for chain in chains):
        return Step(call.after)
    return call.chained(base)


def _of_condition(call: _Call) -> Step | None:
    """Return a choice of several functions of one source, by a comparison of that."""
    origins = [chain.origin(x) for chain, x in zip(call.chains, call.carriers, strict=True)]
    origins.append(call.how.conditions.origin(call.after.source))
    base = call.keep(next((known for known in origins if known is not None), None))
    if call.function.puts_in or any(chain.at_zero for chain in call.chains):
        return call.chained(base)
    return Step(call.after)


def _common(call: _Call) -> Base | None:
    """Return a base of which all carriers are functions: a multiple of the source, a shared one, or the source."""
    pairs = list(zip(call.chains, call.carriers, strict=True))
    origin = next((known for chain, x in pairs if (known := chain.origin(x)) is not None), None)
    if origin is not None:
        return origin
    return _shared(call, roots=True) or call.chains[0].seen()


def _shared(call: _Call, *, roots: bool = False) -> Base | None:
    """Return the base of all carriers, if they have one that is no multiple of the source; `roots` are bases too."""
    found = [_bases(chain, x, roots) for chain, x in zip(call.chains, call.carriers, strict=True)]
    for first in found[0]:
        same = [next((base for base in bases if base.edge == first.edge), None) for bases in found]
        part = None if None in same else call.function([base.part for base in same if base is not None])
        if part is not None:
            return first._replace(part=part)
    return None


def _bases(chain: Chain, x: Tensor, roots: bool) -> list[Base]:
    """Return the base of a tensor and its root, those that are no multiples of the source."""
    known = (chain.base(x), chain.root() if roots else None)
    return [base for base in known if base is not None and base.ratio is None]
