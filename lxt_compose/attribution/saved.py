"""Graphs as files of ``torch.export``, for which torch alone is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TraceError
from ..torch_internals.packages import from_package, is_package, package
from .goals import Goals
from .graph_inputs import tensors_of
from .inputs import Inputs
from .joining import one_after_the_other
from .joint import NOTHING, Joint

_FILE = "lxt_compose.json"


class _Written(nn.Module):
    """The graph with named outputs, for `torch.export`."""

    def __init__(self, joint: Joint, given: Inputs) -> None:
        super().__init__()
        self._joint, self._given, self.written = joint, given, joint.program.graph

    def forward(self, *tensors: Tensor) -> dict[str, Any]:
        """Run the graph."""
        found = self._joint.program.nested(self.written(*tensors))
        if len(found) == 1:
            whole: dict[str, Any] = found[0]
            return whole
        woven = one_after_the_other([{**NOTHING, **each} for each in found], self._given, self._joint.layer_dims)
        return {name: value for name, value in woven.items() if value is not None}


def save(joint: Joint, goals: Goals, path: str | Path, *, compiled: bool, options: Mapping[str, Any]) -> None:
    """Write a graph as a ``.pt2`` file, as :meth:`TracedAttribution.save` does.

    The tensors that it is called with are those among the model's arguments, in order, and then the indices of the
    target, if one was given. The names of all are in the file ``lxt_compose.json`` inside, or in the metadata of what
    is compiled.

    Raises:
        TraceError: `torch.export` or the compiler cannot write it.
    """
    if not hasattr(torch.export.Dim, "AUTO"):
        raise TraceError(f"a graph is saved by torch 2.5 or newer; this is torch {torch.__version__}")
    tensors = [x.detach() for x in tensors_of(joint.given, goals)]
    shapes = tuple(
        {place: torch.export.Dim.AUTO for place, name in enumerate(names) if name is not None} for names in joint.names
    )
    told = {"inputs": _names(joint.given), "targets": len(tensors) - len(_names(joint.given)), "notes": joint.notes,
            "report": str(joint.report), "target_names": goals.names}  # fmt: skip
    sizes = [x.new_zeros(()).expand(shape).clone() for x, shape in _examples(joint, tensors)]
    what = "torch.export"
    try:
        with torch.no_grad():
            program = torch.export.export(
                _Written(joint, joint.given), tuple(sizes), dynamic_shapes={"tensors": shapes}, strict=False
            )
        if not compiled:
            torch.export.save(program, path, extra_files={_FILE: json.dumps(told)})
            return
        what = "the compiler (AOTInductor, which needs g++ or another C++ compiler)"
        package(program, path, {_FILE: json.dumps(told)}, options)
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise TraceError(f"{what} cannot write the graph: {said}") from error


def _examples(joint: Joint, tensors: Sequence[Tensor]) -> list[tuple[Tensor, list[int]]]:
    """Return each tensor with a shape in which no dimension that may be of any size has size 1."""
    pairs = zip(tensors, joint.names, strict=True)
    return [
        (x, [size + (name is not None and size == 1) for size, name in zip(x.shape, names, strict=True)])
        for x, names in pairs
    ]


def _names(given: Inputs) -> list[str]:
    """Return the names of the tensors among the arguments."""
    known = {id(x): name for name, x in given.all.items()}
    known |= {id(x): name for name, x in given.kwargs.items() if isinstance(x, Tensor)}
    return [known.get(id(x), f"argument{place}") for place, x in enumerate(tensors_of(given, Goals(())))]


class SavedAttribution:
    """A graph read from a file; it is called with the tensors of the model's arguments, by order or by name.

    ``inputs`` are the names of the tensors, ``targets`` is how many tensors of indices follow, ``report`` the coverage
    report as text, ``compiled`` whether the file holds machine code.
    """

    def __init__(self, path: str | Path) -> None:
        extra = {_FILE: ""}
        self.compiled = is_package(path)
        if self.compiled:
            self._run, known = from_package(path)
            extra |= known
        else:
            self._run = torch.export.load(path, extra_files=extra).module()
        told = json.loads(extra[_FILE] or "{}")
        if not told:
            raise ValueError(f"{path} is no file that TracedAttribution.save() wrote")
        self.inputs, self.targets = list(told["inputs"]), int(told["targets"])
        self.report, self.notes = str(told["report"]), tuple(told["notes"])

    def __call__(self, inputs: Any, *targets: Tensor) -> dict[str, Any]:
        """Explain inputs.

        Args:
            inputs: a tensor, a tuple of tensors, or a mapping by name.
            *targets: the indices, one for each sample.

        Raises:
            TraceError: there are more or fewer tensors than the graph has.
        """
        if isinstance(inputs, Mapping):
            inputs = [inputs[name] for name in self.inputs]
        tensors = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        if len(tensors) != len(self.inputs) or len(targets) != self.targets:
            raise TraceError(
                f"the graph takes {len(self.inputs)} inputs ({', '.join(self.inputs)}) and {self.targets} tensors of "
                f"indices, but was given {len(tensors)} and {len(targets)}"
            )
        with torch.no_grad():
            found: dict[str, Any] = self._run(*tensors, *targets)
        return found
