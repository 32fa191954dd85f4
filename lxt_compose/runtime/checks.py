"""Requirements of a model for a composite to work on it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import fields, is_dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..errors import RegistrationError, RuleError
from ..rules import RELEVANCE, Rule
from ..torch_internals import eager, is_compiled, pre_hooks_of
from .module_hooks import is_our_hook


def check_model(model: nn.Module) -> None:
    """Raise if a composite cannot work on this model, or one is on it already."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"register() takes a torch.nn.Module, got {model!r} of type {type(model).__name__}")
    for name, module in model.named_modules():
        where = f"{name!r} in {type(model).__name__}" if name else type(model).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise RegistrationError(
                f"{where} is a TorchScript module, whose operations cannot be seen; use the original"
            )
        if any(is_lazy(parameter) for parameter in module.parameters(recurse=False)):
            raise RegistrationError(
                f"{where} has parameters that are not initialized yet; run a forward pass before you register"
            )
        if any(parameter.is_inference() for parameter in module.parameters(recurse=False)):
            raise RegistrationError(
                f"{where} has parameters that were made in inference mode, which autograd refuses; build or load the "
                f"model outside torch.inference_mode()"
            )
        if any(is_our_hook(hook) for hook in pre_hooks_of(module)):
            raise RegistrationError(
                f"{where} has a composite registered already; call remove() on that registration, or "
                f"lxt_compose.remove(model), or leave its with block first"
            )


def run_eagerly(model: nn.Module, stack: ExitStack) -> list[str]:
    """Have compiled modules run eagerly until the stack is closed, since compiled code runs neither hooks nor modes.

    Returns:
        What the report is to say of it.

    Raises:
        RegistrationError: there are some, and this version of torch has no ``torch.compiler.set_stance`` (before 2.6).
    """
    compiled = [name for name, part in model.named_modules() if is_compiled(part)]
    if not compiled:
        return []
    where = ", ".join(repr(name) if name else type(eager(model)).__name__ for name in compiled)
    stance = getattr(torch.compiler, "set_stance", None)
    if stance is None:
        raise RegistrationError(
            f"{where} is compiled, and compiled code does not run hooks; register on the model before torch.compile "
            f"(model._orig_mod of a compiled one), or use torch 2.6 or newer"
        )
    stack.enter_context(stance("force_eager"))
    return [f"compiled, but run eagerly while registered, so that operations can be seen: {where}"]


def check_sizes(rules: Iterable[Rule], model: nn.Module) -> None:
    """Raise if a number of a rule is beyond those of the dtype that the model computes in.

    Raises:
        RuleError: one is; half precision counts as float32, in which split rules compute.
    """
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()} or {torch.get_default_dtype()}
    dtype = torch.float64 if dtypes == {torch.float64} else torch.float32
    largest = torch.finfo(dtype).max
    for rule in rules:
        for one in fields(rule) if is_dataclass(rule) else ():
            value = getattr(rule, one.name)
            if isinstance(value, (int, float)) and abs(value) > largest:
                name = str(dtype).removeprefix("torch.")
                raise RuleError(
                    f"{rule}: {one.name}={value!r} is beyond the numbers of {name}, in which {type(model).__name__} "
                    f"computes; the largest is {largest:.2g}"
                )


def notes_on_dtype(model: nn.Module, formulation: str) -> list[str]:
    """Return the notes of a report on the dtype of the model's parameters."""
    half = {p.dtype for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)}
    if formulation != RELEVANCE or not half:
        return []
    names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in half))
    return [
        f"in {names} the relevance formulation divides by rounded outputs, with a stabilizer that takes a part of the "
        f"relevance: use formulation='gradient', which has none, or a model in float32"
    ]
