"""What of a model a graph was written down from: its modules, their mode and hooks, and which tensors it owns."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..torch_internals.traces import tables_of

State = tuple[Any, ...]


class ModelState:
    """The state of a model at one time, to tell whether it is still the same.

    Values of weights do not count: a graph computes with the tensors themselves. What a model reads from attributes
    that are no modules, parameters or buffers (a configuration, say) is not seen.
    """

    def __init__(self, model: nn.Module) -> None:
        named = list(model.named_modules())
        self._names = {module: name for name, module in named}
        self._modules = [module for _, module in named]
        self._training = [module.training for module in self._modules]
        self._forwards = [vars(module).get("forward") for module in self._modules]
        tables = [(module, kind, table) for module in self._modules for kind, table in tables_of(module)]
        self._sizes = [(table, len(table)) for *_, table in tables]
        self._entries = [(table, name, value) for *_, table in tables for name, value in table.items()]
        self._owners = {id(table): (module, kind) for module, kind, table in tables}

    def change(self) -> str:
        """Return what has changed, in words; empty if nothing has."""
        if [module.training for module in self._modules] != self._training:
            return self._mode()
        if [vars(module).get("forward") for module in self._modules] != self._forwards:
            return "the forward of a module was exchanged"
        for table, size in self._sizes:
            if len(table) != size:
                return f"{self._where(table)} were added or taken away"
        for table, name, value in self._entries:
            if table.get(name, self) is not value:
                return f"{self._where(table)} were exchanged ({name})"
        return ""

    @staticmethod
    def key(model: nn.Module) -> State:
        """Return the same as something to look up by; it holds while the model's modules and tensors live.

        Hooks of a registration do not count.
        """

        def owned(module: nn.Module) -> list[int]:
            values = (value for _, table in tables_of(module) for value in (*table.values(), None))
            return [id(value) for value in values if not hasattr(value, "session")]

        modules = model.modules()
        return tuple((id(each), each.training, id(vars(each).get("forward")), *owned(each)) for each in modules)

    def _mode(self) -> str:
        module, was = next(
            (module, was)
            for module, was in zip(self._modules, self._training, strict=True)
            if module.training is not was
        )
        now, then = ("eval", "train") if was else ("train", "eval")
        return f"{self._called(module)} is in {now} mode now; call model.{then}() first"

    def _where(self, table: Any) -> str:
        module, kind = self._owners[id(table)]
        return f"{kind} of {self._called(module)}"

    def _called(self, module: nn.Module) -> str:
        name = self._names[module]
        return f"{name!r} ({type(module).__name__})" if name else f"the model ({type(module).__name__})"
