"""One operation under one rule: the steps before and after it runs, for modules and functions alike."""

from typing import Any

import torch
from torch import Tensor

from ..autograd.functions import Share, rebind
from ..autograd.marks import Constants, mark
from ..autograd.trees import map_tensors, tensors_in
from ..errors import RuleError
from ..rules.base import Call, Rule, exchange
from ..torch_internals import storage_of


def enter(rule: Rule, call: Call, constants: Constants) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments for the operation, with the results of the rule's `enter` in place of the carriers.

    Args:
        rule: the rule.
        call: the call.
        constants: keeps what is known of tensors that the rule makes constants of.
    """
    known = call.known if call.op is None else ()  # before anything is changed
    call.values, call.versions, call.inputs = list(call.carriers), [], []
    for place, x in enumerate(call.carriers):
        call.versions.append(x._version)
        call.inputs.append(rule.enter(call, place))
    if call.module is not None:  # a module may change in place a tensor that it was given twice
        first = {id(x): given for x, given in reversed(list(zip(call.carriers, call.inputs, strict=True)))}
        call.inputs = [first[id(x)] for x in call.carriers]
    for x, given, history in zip(call.carriers, call.inputs, known, strict=False):
        if given is not x:
            constants.give(given, history)
    args, kwargs = exchange(call)
    if call.module is not None:
        call.given, call.given_tensors = (args, kwargs), [id(tensor) for tensor in tensors_in((args, kwargs))]
    return args, kwargs


def keep_values(call: Call, tensor: Tensor) -> None:
    """Keep a copy of those carriers that share memory with `tensor`, which is about to be changed in place.

    Raises:
        RuntimeError: a carrier is a leaf; PyTorch forbids this too, but would not see it through the exchange.
    """
    memory = storage_of(tensor)
    for place, x in enumerate(call.carriers):
        if storage_of(x) == memory:
            if x.is_leaf:
                raise RuntimeError(
                    f"{call.where} changes in place a leaf tensor that requires grad; give the model a copy: x.clone()"
                )
            call.values[place] = x.detach().clone()


def write_into(target: Tensor, result: Tensor) -> Tensor:
    """Return `target` with the values of `result`; for autograd it becomes that result."""
    with torch.no_grad():
        target.copy_(result)
    rebind(target, result)
    return target


def leave(rule: Rule, call: Call, output: Any, constants: Constants) -> Any:
    """Return the output that the rest of the model uses; tensors that were changed in place become outputs too.

    What wraps the output of a module, or of a function that is no operation, takes over the history of that output.

    Raises:
        RuleError: a module hands tensors on by changing a list or a dict that it was given.
    """
    if call.op is not None:
        return _leave(rule, call, output)
    known = [constants.get(tensor) for tensor in tensors_in(output)]
    wrapped = _leave(rule, call, output)
    for tensor, history in zip(tensors_in(wrapped), known, strict=True):
        if history is not None:
            mark((tensor,), history)
    return wrapped


def _leave(rule: Rule, call: Call, output: Any) -> Any:
    if isinstance(output, Tensor) and call.module is None and call.target is None:
        return rule.leave(call, [output])[0]
    if [id(tensor) for tensor in tensors_in(call.given)] != call.given_tensors:
        raise RuleError(
            f"{call.where} changes a list or dict that it was given, where {rule} cannot follow what it puts there; "
            f"put rules on the modules inside"
        )
    written, constants = _written(call)
    stand_in = {id(x): result for x, result in written}
    unwrapped: dict[int, Tensor] = {}
    for tensor in (*(stand_in.get(id(t), t) for t in tensors_in(output)), *stand_in.values()):
        if id(tensor) not in constants and (tensor.is_floating_point() or tensor.is_complex()):
            unwrapped.setdefault(id(tensor), tensor)
    wrapped = dict(zip(unwrapped, rule.leave(call, list(unwrapped.values())), strict=True)) if unwrapped else {}
    for x, result in written:
        # The operation wrote into the memory of x: from now on x is its result, for autograd too.
        rebind(x, wrapped[id(result)])
        wrapped[id(result)] = x
    return map_tensors(lambda tensor: wrapped.get(id(stand_in.get(id(tensor), tensor)), tensor), output)


def _written(call: Call) -> tuple[list[tuple[Tensor, Tensor]], set[int]]:
    """Return the arguments that were written into, each with its result."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for x, given, version in zip(call.carriers, call.inputs, call.versions, strict=True):
        if x._version != version and (call.module is not None or x is call.target):
            found.setdefault(id(x), (x, given))
    carriers, constants = {id(x) for x in call.carriers}, set()
    for tensor in tensors_in((call.args, call.kwargs)):
        if id(tensor) in carriers:
            continue
        if tensor is call.target or tensor.requires_grad:  # a constant until a carrier was written into it
            found[id(tensor)] = tensor, tensor
        else:
            constants.add(id(tensor))
    # A rule must not save the tensor itself, whose graph leads to the node that saves: a reference cycle.
    return [(x, _double(x) if result is x else result) for x, result in found.values()], constants


def _double(x: Tensor) -> Tensor:
    """Return another tensor with the memory and the graph of x."""
    double: Tensor = Share.apply(x, 1.0) if x.requires_grad else x.detach()
    return double
