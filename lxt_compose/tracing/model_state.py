"""What of a model a graph was written down from: its modules, their mode and hooks, and which tensors it owns."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..torch_internals.traces import tables_of

State = tuple[Any, ...]


class ModelState:
    """The state of a model at one time, to tell whether it is still the same.

    Values of weights do not count: a graph computes with the tensors themselves. What a model reads from attributes
    that are no modules, parameters or buffers (a configuration, say) is not seen. It holds no reference to the model
    itself.
    """

    def __init__(self, model: nn.Module) -> None:
        named = list(model.named_modules())
        self._names = [f"{name!r} ({type(module).__name__})" for name, module in named]
        self._names[0] = f"the model ({type(model).__name__})"
        modules = [module for _, module in named]
        self._owned = [vars(module) for module in modules]
        self._training = [module.training for module in modules]
        self._forwards = [owned.get("forward") for owned in self._owned]
        tables = [(place, kind, table) for place, each in enumerate(modules) for kind, table in tables_of(each)]
        self._hooks = [(table, _foreign(table)) for _, kind, table in tables if "hooks" in kind]
        self._sizes = [(table, len(table)) for _, kind, table in tables if "hooks" not in kind]
        self._entries = [(table, name, value) for table, _ in self._sizes for name, value in table.items()]
        self._owners = {id(table): (place, kind) for place, kind, table in tables}

    def change(self) -> str:
        """Return what has changed, in words; empty if nothing has."""
        training = [owned["training"] for owned in self._owned]
        if training != self._training:
            return self._mode(training)
        if [owned.get("forward") for owned in self._owned] != self._forwards:
            return "the forward of a module was exchanged"
        for table, size in self._sizes:
            if len(table) != size:
                return f"{self._where(table)} were added or taken away"
        for table, name, value in self._entries:
            if table.get(name, self) is not value:
                return f"{self._where(table)} were exchanged ({name})"
        for table, before in self._hooks:
            if (table or before) and _foreign(table) != before:
                return f"{self._where(table)} were put on or taken off"
        return ""

    def where(self, tensor: Any) -> str:
        """Return what a tensor of the model is called, in words."""
        places = (f"{name!r} among the {self._where(table)}" for table, name, value in self._entries if value is tensor)
        return next(places, f"a tensor of shape {list(tensor.shape)}")

    @staticmethod
    def key(model: nn.Module) -> State:
        """Return the same as something to look up by; it holds while the model's modules and tensors live.

        Hooks of a registration do not count.
        """

        def owned(module: nn.Module) -> list[int]:
            values = (value for _, table in tables_of(module) for value in (*table.values(), None))
            return [id(value) for value in values if not _is_ours(value)]

        modules = model.modules()
        return tuple((id(each), each.training, id(vars(each).get("forward")), *owned(each)) for each in modules)

    def _mode(self, training: list[bool]) -> str:
        pairs = zip(training, self._training, strict=True)
        place = next(place for place, (now, was) in enumerate(pairs) if now is not was)
        now, then = ("train", "eval") if training[place] else ("eval", "train")
        return f"{self._names[place]} is in {now} mode now; call model.{then}() first"

    def _where(self, table: Any) -> str:
        place, kind = self._owners[id(table)]
        return f"{kind} of {self._names[place]}"


def _is_ours(hook: Any) -> bool:
    """Return whether this is a hook of a registration, which has a session."""
    return hasattr(hook, "session")


def _foreign(table: dict[Any, Any]) -> list[Any]:
    return [hook for hook in table.values() if not _is_ours(hook)]
