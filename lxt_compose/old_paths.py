"""Import paths of version 0.1 that have moved; each still gives the names that it gave.

``from lxt_compose.matching import where`` goes on to work. The names are looked up where they are now.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_MOVED = """
    matching: keys    numerics: autograd.numerics autograd.trees    gradients: autograd.functions
    saving: autograd.saved_values    as_trained: runtime.frozen_weights
    written_out: runtime.decompositions torch_internals.attention
    ops.resolve: ops.lookup    canonize: canonizers canonizers.merge_batch_norm
    merging: canonizers.merging canonizers.stand_ins
    running_order: canonizers.module_order    coverage_rows: coverage.rows    tally: coverage.tally runtime.call_stack
    folding: text.folding    observing: runtime.observer    function_mode: runtime.function_mode
    hooks: runtime.module_hooks    units: runtime.activation_modules    rejoining: runtime.checkpointing
    registration: runtime.registration    checkpoint: cli.model_files    commands: cli.commands
    rules.bypass: rules.uniform rules.identity rules.passing rules.stop    rules.first: rules.input_layer
    rules.gates: rules.gated    rules.normalisation: rules.norm    rules.residual: rules.residual_gamma
    rules.taylor: rules.taylor_decomposition    rules.lookup: rules.embedding    rules.dropins: lxt.rules
    rules.jacobian: rules.linear_layers.jacobian    rules.layers: rules.linear_layers.layer
    rules.known_layers: rules.linear_layers.recognize    rules.parts: rules.linear_layers.weight_parts
    heatmap.colours: heatmap.colors    evaluate.randomising: evaluate.randomization
"""


def _table() -> dict[str, list[str]]:
    package, found, new = __name__.rpartition(".")[0], dict[str, list[str]](), list[str]()
    for word in _MOVED.split():
        if word.endswith(":"):
            new = found.setdefault(f"{package}.{word[:-1]}", [])
        else:
            new.append(f"{package}.{word}")
    return found


def _american(name: str) -> str:
    """Return a name as it is spelled now: ``colour_map`` is ``color_map``, ``stabilise`` is ``stabilize``."""
    for old, new in (("olour", "olor"), ("OLOUR", "OLOR"), ("tabilis", "tabiliz"), ("ormalis", "ormaliz")):
        name = name.replace(old, new)
    return name


class _Finder:
    """Finds modules under their old names."""

    moved = _table()

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """Return a spec for an old name, and None for any other."""
        return ModuleSpec(name, self) if name in self.moved else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """Let the import system make an empty module."""

    def exec_module(self, module: ModuleType) -> None:
        """Look names up in the modules that took its place, the first that has them."""
        sources = [importlib.import_module(name) for name in self.moved[module.__name__]]

        def look_up(name: str) -> Any:
            for source in sources:
                for spelled in (name, _american(name)):
                    if spelled in vars(source):
                        return getattr(source, spelled)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__getattr__ = look_up  # type: ignore[method-assign]


def attribute(name: str) -> ModuleType:
    """Return a module that was an attribute of the package: ``lxt_compose.matching``."""
    package = __name__.rpartition(".")[0]
    if f"{package}.{name}" in _Finder.moved:
        return importlib.import_module(f"{package}.{name}")
    raise AttributeError(f"module {package!r} has no attribute {name!r}")


def install() -> None:
    """Make the old paths importable; installing twice does nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
