"""Following integers through a forward pass to what a model makes of them: rows of tables, and floating point numbers.

Models look ids up more than once and in many ways: in an encoder and a decoder, in a table for each layer or column, by
``F.embedding``, ``table[ids]`` or one-hot rows. All such look-ups are caught here, with the origins of the ids.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..autograd.trees import PLAIN, map_tensors, tensors_in
from ..ops import Effect, Integers, integers_of, mutates
from ..runtime.decisions import written as changed_by
from ..torch_internals import modes_off
from .inputs import is_integer
from .origins import CHOSEN, UNKNOWN, Origins, after, index_in, on_origins, values_in, written

_BAG = inspect.signature(F.embedding_bag)


class Listener(Protocol):
    """The interface of objects that handle look-ups."""

    def looked_up(self, values: Tensor, origins: Tensor, *, as_numbers: bool) -> Tensor:
        """Return the tensor that replaces floating point values that come from an input.

        Args:
            values: what was looked up.
            origins: where in the inputs each came from: of the shape of the values, or of their first dimensions. Some
                may be constants.
            as_numbers: whether the values are the integers themselves.
        """

    def carries(self, x: Tensor) -> bool:
        """Return whether a tensor carries relevance to an input already."""

    def lost(self, func: Callable[..., Any]) -> None:
        """Note that a function made floating point values of unknown integers of an input."""

    def left(self, func: Callable[..., Any], *, content: bool) -> None:
        """Note that integers of an input became numbers of Python or an array of numpy.

        Args:
            func: the function by which they did.
            content: whether they are the integers themselves, or made of them, so that something may be looked up by
                them. Else they are the largest of several, or say where or of what kind something is.
        """


class Following:
    """Follows the integers of some inputs through all functions of torch that it runs.

    Args:
        inputs: integer tensors by name; no two share memory.
        beside: the names of those that say where or of what kind something is, such as positions. What is computed
            from their numbers is a constant; look-ups count.
        listener: handles look-ups.
        floats: whether there are floating point tensors among them, to be followed until something is added up.
    """

    def __init__(
        self, inputs: Mapping[str, Tensor], beside: Iterable[str], listener: Listener, *, floats: bool = False
    ) -> None:
        self.starts: dict[str, int] = {}
        """The origin of the first element of each input."""
        self._origins, self._listener = Origins(floats=floats), listener
        self._known: dict[Any, Integers | None] = {}
        self.rounds = False
        """Whether integers were made of floating point numbers that are not followed."""
        self._beside, start = set(beside), 1
        self._spans: list[tuple[int, int]] = []
        for name, x in inputs.items():
            self.starts[name] = start
            self._origins.put(x, torch.arange(start, start + x.numel(), device=x.device).reshape(x.shape))
            if name in self._beside:
                self._spans.append((start, start + x.numel()))
            start += x.numel()

    def run(self, call: Callable[..., Any], func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a function, and return its output, with values that were looked up exchanged.

        Args:
            call: runs the function, given it, its arguments and its keyword arguments.
            func: the function.
            args: its arguments.
            kwargs: its keyword arguments.
        """
        plain = all(x.is_floating_point() if isinstance(x, Tensor) else type(x) in PLAIN for x in args)
        if (plain and not kwargs and not self._origins.floats) or not self._origins.among((args, kwargs)):
            return call(func, args, kwargs)
        if func not in self._known:
            self._known[func] = integers_of(func)
        known = self._known[func]
        effect = None if known is None else known.effect
        if effect is Effect.BAGS:
            return self._bag(call, func, args, kwargs)
        if known is not None and effect is Effect.MOVES:
            args, kwargs = self._in_one_type(known, call, args, kwargs)
        output = call(func, args, kwargs)
        if effect is Effect.LEAVES:
            self._leave(func, self._origins.among((args, kwargs)))
        if effect in (Effect.FORGETS, Effect.LEAVES) or getattr(func, "__name__", "") == "__set__":
            return output
        with modes_off():
            if mutates(func, args, kwargs):
                self._changed(known, func, args, kwargs)
                return output
            return self._made(known, func, args, kwargs, output)

    def _in_one_type(self, known: Integers, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return arguments whose integers, where they are joined with carriers, are numbers of their type."""
        values = list(tensors_in(values_in(known, args, kwargs)))
        whole = [x for x in values if is_integer(x) and self._origins.knows(x)]
        floats = [x for x in values if x.is_floating_point()]
        if not whole or not any(map(self._listener.carries, floats)):
            return args, kwargs
        dtype = reduce(torch.promote_types, (x.dtype for x in floats))
        turned = {id(x): self.run(call, Tensor.to, (x, dtype), {}) for x in whole}
        return map_tensors(lambda x: turned.get(id(x), x), (args, kwargs))

    def unknown(self, x: Tensor, arguments: Any) -> None:
        """Note that integers were made of floating point numbers, which are not followed."""
        if not self._origins.among(arguments):
            self.rounds = True
            self._origins.put(x, torch.tensor(UNKNOWN))

    def _leave(self, func: Callable[..., Any], given: Iterable[Tensor]) -> None:
        """Tell the listener that integers become numbers of Python, if they come from an input."""
        with modes_off(), torch.no_grad():
            for x in given:
                if bool((self._origins.of(x) != 0).any()) and not self._origins.is_indicator(x):
                    self._listener.left(func, content=self._is_content(x))

    def _is_content(self, x: Tensor) -> bool:
        """Return whether a tensor was made of more than what says where or of what kind something is."""
        origins = self._origins.of(x)
        content = (origins > 0) | (origins == UNKNOWN)
        for start, stop in self._spans:
            content &= (origins < start) | (origins >= stop)
        return bool(content.any())

    def _made(self, known: Integers | None, func: Callable[..., Any], args: Any, kwargs: Any, output: Any) -> Any:
        """Note the origins of the outputs of a function."""
        outputs = list(tensors_in(output))
        made = [(place, x) for place, x in enumerate(outputs) if not self._origins.knows(x)]
        if not made:  # views of known tensors, or no tensors
            return output
        given = self._origins.among((args, kwargs))
        found = None
        if known is not None:
            try:
                with torch.no_grad():
                    found = after(known, func, args, kwargs, output, self._origins)
            except (RuntimeError, TypeError, IndexError, ValueError):
                pass  # a call of a form that is not known
        indicator = known is not None and (
            known.effect in (Effect.ONE_HOT, Effect.EQUALS) or any(map(self._origins.is_indicator, given))
        )
        looks_up = known is not None and bool(index_in(known, args, kwargs, self._origins))
        of_integers = any(not x.is_floating_point() for x in given)
        exchanged: dict[int, Tensor] = {}
        for place, x in made:
            origins = found[place] if found is not None and len(found) == len(outputs) else None
            if x.is_floating_point() or x.is_complex():
                if not of_integers:
                    if origins is not None and bool((origins > 0).any()):
                        self._origins.put(x, origins)
                elif not self._listener.carries(x):
                    exchanged[id(x)] = self._looked_up(func, x, origins, as_numbers=not (indicator or looks_up))
                elif not (looks_up and not self._origins.among(values_in(known, args, kwargs))):  # type: ignore[arg-type]
                    self._listener.lost(func)
            elif x.dtype != torch.bool:
                origins = torch.tensor(UNKNOWN) if origins is None else origins
                if bool((origins == UNKNOWN).any()) and not any(map(self._is_content, given)):
                    origins = torch.where(origins == UNKNOWN, CHOSEN, origins)  # sums of sizes, say
                self._origins.put(x, origins, indicator=indicator)
            elif indicator and origins is not None:
                self._origins.put(x, origins, indicator=True)
        return map_tensors(lambda x: exchanged.get(id(x), x), output) if exchanged else output

    def _looked_up(self, func: Callable[..., Any], x: Tensor, origins: Tensor | None, *, as_numbers: bool) -> Tensor:
        """Return what replaces floating point values that were made of integers."""
        with torch.no_grad():
            if origins is None or x.is_complex() or bool((origins < 0).any()):
                self._listener.lost(func)
            if origins is None or x.is_complex():
                return x
            for start, stop in self._spans if as_numbers else ():
                origins = torch.where((origins >= start) & (origins < stop), 0, origins)
            while origins.dim() == x.dim() and x.dim() and x.shape[-1] > 1:  # features
                if not bool((origins == origins[..., :1]).all()):
                    break
                origins = origins[..., 0]
            if not bool((origins > 0).any()):
                return x
        # A copy, since the model may go on to change the integers in place.
        return self._listener.looked_up(x, origins.clone(), as_numbers=as_numbers)

    # ---- what is changed in place ------------------------------------------------------------------------------------

    def _changed(self, known: Integers | None, func: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Note the origins of tensors that a function has changed in place."""
        target = next(changed_by(args, kwargs), None)
        if target is not None and target.is_floating_point() and self._origins.knows(target):
            self._origins.inside(target).fill_(UNKNOWN)
            return
        if target is None or (target.dtype == torch.bool and not self._origins.knows(target)):
            return
        floating = target.is_floating_point() or target.is_complex()
        as_numbers = known is not None and not index_in(known, args, kwargs, self._origins)
        with torch.no_grad():
            before = torch.zeros(target.shape, dtype=torch.long, device=target.device)
            origins = before if floating else self._origins.inside(target)
            try:
                found = self._after_change(known, func, args, kwargs, target, origins)
            except (RuntimeError, TypeError, IndexError, ValueError):
                found = None
            if found is not origins:
                origins.copy_(torch.tensor(UNKNOWN) if found is None else found)
        if not floating:
            return
        if self._listener.carries(target):
            if as_numbers:  # else carriers were written at integers
                self._listener.lost(func)
            return
        if not bool((origins == 0).all()):
            with torch.no_grad():
                copy = target.clone()
            values = self._looked_up(func, copy, origins, as_numbers=as_numbers)
            if values is not copy:
                target.copy_(values)

    def _after_change(
        self, known: Integers | None, func: Callable[..., Any], args: Any, kwargs: Any, target: Tensor, origins: Tensor
    ) -> Tensor | None:
        if known is None or "out" in kwargs:
            return None
        if known.effect is Effect.MOVES and not index_in(known, args, kwargs, self._origins):
            if "dtype" not in kwargs:
                on_origins(known, func, args, kwargs, self._origins, {id(target): origins})
                return origins
        elif known.effect is Effect.MOVES:
            return written(known, args, kwargs, self._origins)
        found = after(known, func, args, kwargs, target, self._origins)
        return None if found is None else found[0]

    # ---- bags --------------------------------------------------------------------------------------------------------

    def _bag(self, call: Callable[..., Any], func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run ``F.embedding_bag`` on a table of exactly the rows that it adds, so that each row has relevance."""
        given = _BAG.bind(*args, **kwargs) if func is F.embedding_bag else None
        if given is None or given.arguments.get("max_norm") is not None:
            self._listener.lost(func)
            return call(func, args, kwargs)
        values: dict[str, Any] = given.arguments
        ids: Tensor = values["input"]
        if not self._origins.knows(ids):
            return call(func, args, kwargs)
        with modes_off():
            with torch.no_grad():
                rows = F.embedding(ids, values["weight"])
            carriers = self._looked_up(func, rows, self._origins.of(ids), as_numbers=False)
            if carriers is rows:
                return call(func, args, kwargs)
            carriers, places = carriers.reshape(-1, carriers.shape[-1]), torch.arange(ids.numel(), device=ids.device)
            places = places.reshape(ids.shape).to(ids.dtype)
            padding = values.get("padding_idx")
            if padding is not None:  # padding is left out: it reads the row behind the others
                places = places.masked_fill(ids == padding % len(values["weight"]), len(carriers))
                carriers, values["padding_idx"] = F.pad(carriers, (0, 0, 0, 1)), len(carriers)
        values |= {"input": places, "weight": carriers, "scale_grad_by_freq": False, "sparse": False}
        return call(func, given.args, given.kwargs)


class FollowingMode(TorchFunctionMode):
    """Follows a model's integers where no composite is registered."""

    def __init__(self, following: Following) -> None:
        super().__init__()
        self._following = following

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._following.run(lambda func, args, kwargs: func(*args, **kwargs), func, args, kwargs or {})
