"""Dictionaries, whose directions and features are units: codes of a module's output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .keys import Part, UnitKey, read_key


class Dictionary:
    """Units that are codes of a tensor: features of a sparse autoencoder, or directions of the residual stream.

    The tensor is ``x = decode(f) + e`` with the codes ``f = encode(x)``, which are the units, and an error e that
    belongs to none of them. Relevance passes the decoder, the codes and the encoder under the rules of the composite
    (the error keeps its share); interventions add ``decode(f') - decode(f)``, so the error stays.

    ``dictionary[3]`` or ``dictionary[0:10]`` are some of the units.

    Args:
        at: where: a name of modules as for units, ``"layers.3"`` or ``"layers.3:input"``, without units in brackets.
        codes: a module with methods ``encode`` and ``decode`` (a sparse autoencoder), a pair of such functions, or a
            matrix [units, features] whose rows are directions. The codes of directions D are ``x D^+`` with the
            pseudo-inverse: ``decode(f) = f D`` is the projection of x on what the directions span.
        names: what the units are called.

    Raises:
        TypeError: the codes are none of these.
        ValueError: the matrix has another number of dimensions, or ``at`` names units itself.

    Source: features: Marks et al. 2024 (sparse feature circuits), section 3; the projection is least squares.
    """

    def __init__(self, at: str, codes: Any, *, names: Sequence[str] | None = None) -> None:
        self.key = read_key(at)
        if self.key.index is not None:
            raise ValueError(f"{at!r} names units; those of a dictionary follow it: Dictionary(at, codes)[3]")
        self.names = None if names is None else tuple(names)
        given = codes if isinstance(codes, (tuple, list)) else (codes,)
        self._modules = [part for part in given if isinstance(part, nn.Module)]
        if isinstance(codes, Tensor):
            self._encode, self._decode = _projection(codes)
        elif callable(getattr(codes, "encode", None)) and callable(getattr(codes, "decode", None)):
            self._encode, self._decode = codes.encode, codes.decode
        elif isinstance(codes, (tuple, list)) and len(codes) == 2 and all(map(callable, codes)):
            self._encode, self._decode = codes
        else:
            raise TypeError(
                f"a dictionary needs a module with encode() and decode(), a pair of such functions, or a matrix "
                f"[units, features], got {type(codes).__name__}"
            )

    def __getitem__(self, index: Part | str | Sequence[Part]) -> DictionaryUnits:
        """Return some of the units: by number, range, or name."""
        given = index if isinstance(index, (tuple, list)) else (index,)
        return DictionaryUnits(self, tuple(self._number(part) for part in given))

    def _number(self, part: Any) -> Part:
        if isinstance(part, str):
            if self.names is None or part not in self.names:
                raise KeyError(f"no unit of the dictionary at {self.key.text!r} is called {part!r}")
            return self.names.index(part)
        if isinstance(part, slice) or (isinstance(part, int) and not isinstance(part, bool)):
            return part
        raise TypeError(f"units of a dictionary are numbers, ranges or names, got {part!r}")

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes [..., units] of a tensor [..., features]."""
        found: Tensor = self._encode(x)
        return found

    def decode(self, codes: Tensor) -> Tensor:
        """Return the tensor that codes stand for: [..., features]."""
        found: Tensor = self._decode(codes)
        return found

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Keep the parameters of the dictionary's modules constant."""
        trained = [p for module in self._modules for p in module.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)


class DictionaryUnits:
    """Some units of a :class:`Dictionary`."""

    def __init__(self, dictionary: Dictionary, index: tuple[Part, ...] | None) -> None:
        self.dictionary, self.index = dictionary, index

    @property
    def key(self) -> UnitKey:
        """The units as a key at the place of the dictionary."""
        key = self.dictionary.key
        return UnitKey(key.text, key.pattern, key.side, key.call, self.index, key.at)


def _projection(directions: Tensor) -> tuple[Any, Any]:
    if directions.dim() == 1:
        directions = directions[None]
    if directions.dim() != 2:
        raise ValueError(f"directions are a matrix [units, features], got the shape {list(directions.shape)}")
    rows = directions.detach()
    inverse = torch.linalg.pinv(rows.double())

    def encode(x: Tensor) -> Tensor:
        return x @ inverse.to(x)

    def decode(codes: Tensor) -> Tensor:
        return codes @ rows.to(codes)

    return encode, decode
