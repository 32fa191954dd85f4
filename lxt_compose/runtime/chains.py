"""Chains: elementwise functions of one tensor that plain code writes as several operations.

``x * sigmoid(x)`` is SiLU, ``1 / (1 + exp(-x))`` the sigmoid. Whatever is computed element by element from one tensor,
the *source*, and from numbers is one function f of it, and gets the relevance of one,
``R_x = R * (f(x) - f(0)) / f(x)`` (:class:`~lxt_compose.rules.Identity`). The rules of the steps give that as long as
each step is 0 where the source is 0. After a step that is c != 0 there, the next one has to be expanded at c: then it
hands its relevance to the last tensor before it that is 0 there (:class:`~lxt_compose.rules.chained.Chained`). Of a
product ``t * s`` of two functions of one source, of which t is 0 where the source is and s is not, all goes to t.

What is known of a tensor is a mark on its autograd node. f is known by its values at some points (`curves`).
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

from torch import Tensor

from ..autograd.functions import Link
from ..autograd.nodes import Edge, origin_of, past_links
from ..torch_internals.backward_hooks import HOOKED_NODE, past_hooks
from .curves import POINTS, Curve

MARK = "lxt_compose: chain"
"""The key in the metadata of an autograd node."""


class Base(NamedTuple):
    """A tensor that is 0 where the source of a chain is 0.

    Attributes:
        tensor: the tensor, or a link to it, which has its autograd graph and no values.
        ratio: what it is a multiple of the source by, if it is one: then each function of the source is one of it.
        part: else what the tensor that it is the base of is as a function of it.
        value: its values, where they are needed.
        linked: whether `tensor` is a link.
    """

    tensor: Tensor
    ratio: float | None
    part: Curve = POINTS
    value: Tensor | None = None
    linked: bool = False

    @property
    def edge(self) -> Edge:
        """The edge of the autograd graph that the tensor stands for."""
        return past_links(origin_of(self.tensor))

    def kept(self, *, relevance: bool, changes: bool) -> Base:
        """Return the base in a form that keeps no tensor alive and that in-place changes do not reach.

        Args:
            relevance: in the relevance formulation its values are not needed.
            changes: whether it is about to be changed in place.
        """
        if self.linked or not (relevance or changes):
            return self
        value = None if relevance else self.tensor.detach().clone()
        return self._replace(tensor=Link.apply(self.tensor), value=value, linked=True)


class Chain:
    """What is known of a tensor that is an elementwise function of another one, its source.

    Attributes:
        source: the edge of the autograd graph that the source stands for.
        curve: the function of the source.
        at_zero: its value where the source is 0.
        active: whether a step was an activation, and not a polynomial.
        checkpoint: the activation checkpoint that recorded the tensor.
    """

    __slots__ = (
        "__weakref__", "_anchor", "_origin", "_root", "_seen", "_source", "_versions", "active", "at_zero",
        "checkpoint", "curve", "source",
    )  # fmt: skip

    def __init__(self, source: Edge, curve: Curve, checkpoint: Any, *, active: bool = False) -> None:
        self.source, self.checkpoint, self.active = source, checkpoint, active
        self.curve, self.at_zero = curve, curve.at_zero
        self._anchor: Base | None = None
        self._origin: Base | None = None
        self._root: Base | None = None
        self._versions: tuple[Any, ...] = ()
        self._source: tuple[Tensor, int] | None = None
        self._seen: tuple[weakref.ref[Tensor], float, tuple[int, Edge]] | None = None

    def base(self, x: Tensor) -> Base | None:
        """Return the last tensor in the chain of x that is 0 where the source is; None if it was changed in place."""
        if not self.at_zero:
            return Base(x, self.curve.ratio)
        return self._from_source() or self._as_it_was(self._anchor, 0)

    def origin(self, x: Tensor) -> Base | None:
        """Return a multiple of the source, if one is kept."""
        for known in (self.base(x), self._from_source(), self._as_it_was(self._origin, 1)):
            if known is not None and known.ratio is not None:
                return known
        return None

    def root(self) -> Base | None:
        """Return an earlier tensor that is 0 where the source is, and no multiple of it, if one is kept."""
        return self._as_it_was(self._root, 2)

    @property
    def keeps(self) -> bool:
        """Whether it keeps a tensor alive."""
        return any(kept is not None for kept in (self._source, self._anchor, self._origin, self._root))

    def keep_source(self, x: Tensor) -> None:
        """Keep the source, x, until the forward pass is over."""
        self._source = x, x._version

    def see(self, x: Tensor, ratio: float) -> None:
        """Remember a multiple of the source as long as the model itself keeps it."""
        self._seen = weakref.ref(x), ratio, (x._version, origin_of(x))

    def see_what(self, before: Chain) -> None:
        """Remember what another chain remembers."""
        self._seen = before._seen

    def seen(self) -> Base | None:
        """Return the multiple of the source that is remembered; None if it is gone, or was changed in place."""
        if self._seen is None:
            return None
        reference, ratio, version = self._seen
        x = reference()
        return Base(x, ratio) if x is not None and (x._version, origin_of(x)) == version else None

    def keep(self, anchor: Base | None, origin: Base | None, root: Base | None = None) -> None:
        """Keep the base, the origin and the root of the tensor until the forward pass is over."""
        self._anchor = anchor if self.at_zero else None
        self._origin = None if self.curve.ratio is not None else origin
        self._root = root
        self._versions = _version_of(self._anchor), _version_of(self._origin), _version_of(root)

    def skip_to(self, before: Chain, x: Tensor) -> None:
        """Make x the base, a tensor in the chain that is known by `before`: the steps since are one unit."""
        base = None if before.at_zero else before.base(x)
        if base is not None and base.ratio is not None and self._anchor is not None and not self._anchor.linked:
            self.keep(base, None)

    def let_go(self) -> None:
        """Drop the tensors that are kept alive."""
        self._anchor = self._origin = self._root = self._source = None

    def _from_source(self) -> Base | None:
        if self._source is None:
            return None
        x, version = self._source
        return Base(x, 1.0) if x._version == version and origin_of(x) == self.source else None

    def _as_it_was(self, base: Base | None, place: int) -> Base | None:
        return base if base is not None and _version_of(base) == self._versions[place] else None


def _version_of(base: Base | None) -> tuple[int, Edge] | None:
    return None if base is None or base.linked else (base.tensor._version, origin_of(base.tensor))


class Conditions:
    """Comparisons of tensors with numbers, each as a function of the source.

    Both are held weakly; sources that are compared are kept until the forward pass is over.
    """

    def __init__(self) -> None:
        self._numbers: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._known: dict[int, tuple[weakref.ref[Tensor], Edge, Any, Curve]] = {}
        self._origins: dict[Edge, tuple[Base, Any]] = {}

    def __bool__(self) -> bool:
        return bool(self._known)

    @property
    def noted(self) -> bool:
        """Whether there is any comparison, or tensor of one number."""
        return bool(self._known or self._numbers)

    def note(self, tensor: Tensor, source: Edge, checkpoint: Any, curve: Curve, origin: Base | None) -> None:
        """Note a comparison, and a multiple of its source."""
        self._known[id(tensor)] = weakref.ref(tensor), source, checkpoint, curve
        if origin is not None:
            self._origins[source] = origin, _version_of(origin)

    def note_number(self, tensor: Any) -> None:
        """Write down that all elements of a tensor are one number."""
        if isinstance(tensor, Tensor):
            self._numbers[id(tensor)] = weakref.ref(tensor), tensor._version

    def is_number(self, tensor: Tensor) -> bool:
        """Return whether all elements of a tensor are known to be one number: it was made so, or expanded."""
        if all(stride == 0 or size == 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
            return tensor.numel() > 0
        found = self._numbers.get(id(tensor))
        return found is not None and found[0]() is tensor and found[1] == tensor._version and tensor.numel() > 0

    def origin(self, source: Edge) -> Base | None:
        """Return a multiple of a source that was compared; None if it was changed in place."""
        base, version = self._origins.get(source, (None, None))
        return base if base is not None and _version_of(base) == version else None

    def find(self, tensor: Tensor, source: Edge, checkpoint: Any) -> Curve | None:
        """Return a comparison as a function of a source; None if a tensor is no comparison of that."""
        found = self._known.get(id(tensor))
        if found is None or found[0]() is not tensor or found[1:3] != (source, checkpoint):
            return None
        return found[3]

    def clear(self) -> None:
        """Drop all comparisons."""
        self._known.clear()
        self._origins.clear()
        self._numbers.clear()


def source_of(x: Tensor, checkpoint: Any) -> Edge:
    """Return the edge of the tensor that another one is a function of; its own by default."""
    found = known_chain(x, checkpoint)
    return origin_of(x) if found is None else found.source


def mark(output: Any, chain: Chain) -> None:
    """Mark an output with its chain.

    An output that is the source itself, which a copy may return, gets none: a node that holds itself is never freed.
    """
    node: Any = output.grad_fn if isinstance(output, Tensor) and output.output_nr == 0 else None
    if node is not None and node is not chain.source[0]:
        node.metadata[MARK] = chain


def mark_of(x: Any) -> Chain | None:
    """Return the chain in the mark of a tensor."""
    node: Any = x.grad_fn if isinstance(x, Tensor) else None
    place = 0 if node is None else x.output_nr
    if type(node) is HOOKED_NODE:
        node, place = past_hooks(node, place)
    return None if node is None or place else node.metadata.get(MARK)


def known_chain(x: Tensor, checkpoint: Any) -> Chain | None:
    """Return the chain of a tensor; None if it has none, or if another checkpoint recorded it."""
    found = mark_of(x)
    return found if found is not None and found.checkpoint is checkpoint else None


def chain_of(x: Tensor, checkpoint: Any) -> Chain:
    """Return the chain of a tensor; by default that of a source."""
    return known_chain(x, checkpoint) or Chain(origin_of(x), POINTS, checkpoint)
