"""Taps make inputs carriers: floating point inputs directly, integers where values are looked up by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..autograd.marks import mark_seen
from ..autograd.sharded import in_each_process, is_sharded, whole
from ..autograd.trees import map_tensors
from ..errors import AttributionError, RegistrationError, place
from ..ops import Effect, display_name, integers_of, makes_integers
from ..rules import GRADIENT, Epsilon
from ..runtime.registration import Registration
from ..target_module import explained
from ..torch_internals import modes_off
from .failures import telling
from .inputs import Inputs
from .lookups import Following


class NotLookedUpError(AttributionError):
    """Nothing was computed from the integers that a model was given."""


class RoundedError(AttributionError):
    """A model has looked something up by rounded floating point numbers, which must be followed too."""


class _Leaf:
    """A carrier made of an input: the input itself, or looked up values with their origins."""

    def __init__(self, values: Tensor, name: str = "", origins: Tensor | None = None, *, as_numbers: bool = False):
        self.carrier, self.name, self.origins = values.detach(), name, origins
        self.as_numbers = as_numbers
        if self.carrier.is_inference():
            self.carrier = self.carrier.clone()
        self.carrier.requires_grad_()

    def rows(self, relevance: Tensor) -> Tensor:
        """Return relevance of looked up values, one row for each origin."""
        assert self.origins is not None
        return relevance.reshape(self.origins.numel(), -1)


class Taps:
    """Makes carriers of the model's inputs, and keeps them; a context manager around forward passes.

    A floating point input is passed on as a copy, so that a model may change it in place. Integers are followed: the
    rows of tables that are looked up by them become carriers with the same values, cut off from what made them, and
    their relevance is that of the integers. Floating point inputs are followed too if a model looks something up by
    what it rounds of them; that is found out by doing without.

    Args:
        registration: of the composite.
        floats: whether to follow floating point inputs.
    """

    following_kind: ClassVar[type[Following]] = Following

    def __init__(self, registration: Registration, floats: bool = False) -> None:
        self._floats = floats
        self._registration, self._session = registration, registration.session
        self._open = False
        self._leaves: list[_Leaf] = []
        self._ids: dict[str, Tensor] = {}
        """All inputs that are followed."""
        self._following: Following | None = None
        self._lost: dict[str, None] = {}

    def __enter__(self) -> Taps:
        self._session.inputs_alone = True
        return self

    def __exit__(self, *_: object) -> None:
        self._session.inputs_alone = False
        self._session.following = self._session.rounded = None

    @property
    def leaves(self) -> list[Tensor]:
        """The carriers made of the inputs in the last forward pass."""
        return [leaf.carrier for leaf in self._leaves]

    @property
    def met_strangers(self) -> bool:
        """Whether weights were used that the model does not hold as its own."""
        return self._session.has_strangers

    def call(self, model: nn.Module, batch: Inputs) -> Any:
        """Return the output of the model; afterwards ``leaves`` holds the carriers.

        Raises:
            AttributionError: the integers were not used, or values were looked up by them inside a module with a rule.
        """
        batch = batch.copied()
        self._leaves = [_Leaf(x, name) for name, x in batch.carriers.items()]
        copies = {leaf.name: leaf.carrier.clone() for leaf in self._leaves}
        exchanged = {id(batch.carriers[name]): copy for name, copy in copies.items()}
        args, kwargs = map_tensors(lambda x: exchanged.get(id(x), x), (batch.args, batch.kwargs))
        self._ids = {**batch.ids, **batch.beside, **(copies if self._floats else {})}
        self._following = self.following_kind(self._ids, batch.beside, self, floats=self._floats) if self._ids else None
        self._session.following, self._session.rounded = self._following, self._rounded
        self._open, self._lost = True, {}
        try:
            with telling(model, batch):
                output = model(*args, **kwargs)
        except RegistrationError as error:
            if not self._leaves:
                raise self._not_looked_up(model) from error
            raise
        finally:
            self._open = False
        met = {name for leaf in self._leaves for name in self._names_of(leaf)}
        if not met - batch.beside.keys():
            raise self._not_looked_up(model)
        self._session.tally.remarks.update(dict.fromkeys(batch.remarks))
        for name in batch.ids.keys() - met:
            note = f"{name} was looked up nowhere, nor computed with, so it carries no relevance"
            self._session.tally.remarks[note] = None
        return output

    def _names_of(self, leaf: _Leaf) -> list[str]:
        """Return the inputs that a leaf comes from."""
        return (
            [leaf.name] if leaf.origins is None else [name for name in self._ids if bool(self._own(leaf, name).any())]
        )

    def _own(self, leaf: _Leaf, name: str) -> Tensor:
        """Return which rows of looked up values are those of an input."""
        assert leaf.origins is not None
        assert self._following is not None
        start = self._following.starts[name]
        return (leaf.origins.flatten() >= start) & (leaf.origins.flatten() < start + self._ids[name].numel())

    def by_input(self, relevance: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the relevance of each input from that of the leaves; of integers [*shape, features].

        What was looked up several times gets the sum, feature by feature; shorter rows count for the first features.
        Integers that the model computed with directly have no features.
        """
        found = {leaf.name: r for leaf, r in zip(self._leaves, relevance, strict=True) if leaf.origins is None}
        given = dict(found)
        for name, ids in self._ids.items():
            own = [
                (leaf, leaf.rows(r))
                for leaf, r in zip(self._leaves, relevance, strict=True)
                if leaf.origins is not None and name in self._names_of(leaf)
            ]
            if not own:
                continue
            features = max(rows.shape[1] for _, rows in own)
            total = own[0][1].new_zeros(ids.numel(), features)
            for leaf, rows in own:
                mine = self._own(leaf, name)
                places = leaf.origins.flatten()[mine] - self._following.starts[name]  # type: ignore[union-attr]
                total[:, : rows.shape[1]].index_add_(0, places, rows[mine].to(total))
            if name in given:
                found[name] = given[name] + total.sum(1).reshape(ids.shape)
                continue
            numbers = features == 1 and all(leaf.as_numbers for leaf, _ in own)
            found[name] = total.reshape(ids.shape if numbers else (*ids.shape, features))
        return found

    # ---- what the integers become ------------------------------------------------------------------------------------

    def looked_up(self, values: Tensor, origins: Tensor, *, as_numbers: bool) -> Tensor:
        """See :class:`~.lookups.Listener`."""
        if is_sharded(values):  # the table is spread over processes
            made = in_each_process(self.looked_up(whole(values), origins, as_numbers=as_numbers), values)
            mark_seen((made,))
            return made
        self._check_not_shadowed()
        leaf = _Leaf(values, origins=origins, as_numbers=as_numbers)
        if self._open:  # and not run again by activation checkpointing
            self._leaves.append(leaf)
        if not torch.is_grad_enabled():
            self._session.tally.cut[f"a look-up without gradients in {place(self._path())}"] = None
        constant = origins <= 0
        if not bool(constant.any()):
            return leaf.carrier.clone()
        mask = constant.reshape(*constant.shape, *[1] * (values.dim() - constant.dim()))
        return torch.where(mask, values, leaf.carrier)

    def carries(self, x: Tensor) -> bool:
        """See :class:`~.lookups.Listener`."""
        return x.requires_grad

    def lost(self, func: Callable[..., Any]) -> None:
        """See :class:`~.lookups.Listener`."""
        if self._following is not None and self._following.rounds and not self._floats:
            raise RoundedError("floating point inputs are rounded and looked up")
        note = "made of integers of an input that several elements have made together, or in a way that is not followed"
        self._session.tally.uncovered(self._path(), display_name(func), note)
        self._lost[f"{display_name(func)} in {place(self._path())}"] = None

    def _rounded(self, func: Callable[..., Any], args: Any, kwargs: Any, output: Tensor) -> None:
        """Note a function that made something without gradients of carriers, if it converted them to integers."""
        effect = getattr(integers_of(func), "effect", None)
        if effect is Effect.ROUNDS and output.is_floating_point() and not self._floats:
            raise RoundedError("floating point inputs are rounded")
        if not makes_integers(func, args, kwargs, output):
            return
        with modes_off():
            if self._following is None:
                self._following = self._session.following = Following({}, (), self, floats=self._floats)
            self._following.unknown(output, (args, kwargs))

    def left(self, func: Callable[..., Any], *, content: bool) -> None:
        """See :class:`~.lookups.Listener`."""
        where = f"{display_name(func)} in {place(self._path())}"
        self._lost[where] = None
        if content:
            note = "integers of an input become numbers of Python: what is looked up by those cannot be followed"
            self._session.tally.uncovered(self._path(), display_name(func), note)
            return
        note = f"integers of the inputs became numbers of Python by {where}: what is made of those is a constant"
        self._session.tally.remarks[note] = None

    def _path(self) -> str:
        frame = self._session.stack.innermost()
        return "" if frame is None else frame.path

    def _not_looked_up(self, model: nn.Module) -> NotLookedUpError:
        how = f" but by {', '.join(self._lost)}, where they cannot be followed" if self._lost else ""
        return NotLookedUpError(
            f"{type(explained(model)).__name__} looked up no table (nn.Embedding, table[ids]) by the integer input "
            f"{', '.join(self._ids)}, nor computed with it{how}; pass floating point inputs, such as inputs_embeds="
        )

    def _check_not_shadowed(self) -> None:
        """Raise if a look-up is inside a module whose rule has already begun, without this carrier."""
        reg, frames = self._registration, self._session.stack.frames
        frame = next((f for f in frames if f.context.shadowed_by is not None and f.context.shadowed_by == f.path), None)
        binding = frame.site.binding if frame is not None else None
        if frame is None or binding is None or type(frame.site.module).forward is nn.Embedding.forward:
            return
        rule = binding.assignment.rule
        if reg.formulation == GRADIENT and isinstance(rule, Epsilon):
            return  # inside is the plain gradient, wherever it begins
        raise AttributionError(
            f"{', '.join(self._ids)} is looked up inside {frame.path or 'the model itself'!r}, which has {rule} as a "
            f"whole, so that rule would see no relevance go in; bind it to modules after the look-up, or pass "
            f"inputs_embeds="
        )
