"""Activation checkpointing and other packing of saved tensors, on several levels: as without."""

import warnings
from functools import partial

import pytest
import torch
from support import (
    FORMULATIONS,
    RULES,
    Bang,
    Fn,
    assert_close,
    attribute,
    bang,
    both_formulations,
    fingerprint,
    in_threads,
    label,
    linear,
    start_at,
    x6,
)
from torch import nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from lxt_compose import AlphaBeta, Composite, Epsilon, Gamma, Identity, Norm, Pass, Stop, UniformEpsilon
from lxt_compose.runtime import module_hooks, operations
from lxt_compose.torch_internals import checkpoint_hook


class Block(nn.Module):
    """Norm, layers, a gate, a residual; an activation in place in the midst of it."""

    def __init__(self):
        super().__init__()
        self.norm, self.fc1, self.act, self.fc2 = nn.LayerNorm(6), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        h = self.fc1(self.norm(x))
        h.mul_(-0.5).add_(1.0)  # changes every value that a rule may have saved
        h.relu_()
        return x + self.drop(self.fc2(self.act(h))) * torch.sigmoid(x)


class Whole(nn.Module):
    """A whole block within which another is in a checkpoint."""

    def __init__(self, call):
        super().__init__()
        self.block, self.call = Block(), call

    def forward(self, x):
        return torch.tanh(self.call(self.block, x))


class Nested(nn.Module):
    """Checkpoints in checkpoints, also in a block that may have a rule."""

    def __init__(self, call):
        super().__init__()
        self.whole, self.block, self.call = Whole(call), Block(), call
        self.layers = nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 6))

    def forward(self, x):
        x = self.call(self.whole, x * 1.0) + x
        return self.call(self.layers, self.call(self.block, x))


class Deeper(Nested):
    def forward(self, x):
        return self.call(self.whole, self.call(self.whole, x))


def direct(function, *args):
    return function(*args)


def reentrant(function, *args):
    return checkpoint(function, *args, use_reentrant=True, preserve_rng_state=True)


def saved(function, *args):
    return checkpoint(function, *args, use_reentrant=False)


def saved_without_early_stop(function, *args):
    with torch.utils.checkpoint.set_checkpoint_early_stop(False):
        return checkpoint(function, *args, use_reentrant=False)


CALLS = [reentrant, saved, saved_without_early_stop]
CHECKPOINT_RULES = [
    {},
    {nn.Linear: Gamma()},
    {"whole": Epsilon()},
    {"whole": Gamma(), "block": Epsilon()},
    {"": Epsilon()},
    {"whole.block": Epsilon(), "layers": AlphaBeta()},
    {nn.LayerNorm: Norm(), nn.GELU: Identity(), nn.Linear: UniformEpsilon(), torch.tanh: Pass()},
    {"whole": Norm(), torch.sigmoid: Stop()},
]


@both_formulations
@pytest.mark.parametrize("rules", CHECKPOINT_RULES, ids=label)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", [Nested, Deeper])
def test_checkpoints_of_every_level(kind, call, rules, formulation):
    """Around and within bound modules, on several levels, with in-place operations: as without checkpoints."""
    composite = Composite(rules, formulation=formulation)
    found = []
    for how in (call, direct):
        torch.manual_seed(0)
        model = kind(how).double().eval()
        before = fingerprint(model)
        found.append(attribute(model, x6(), composite, 0))
        assert fingerprint(model) == before
    assert_close(found[0], found[1], 1e-12)


@pytest.mark.parametrize("how", [True, False])
def test_checkpoint_sequential(how):
    """Its segments call the modules of a Sequential one by one, in-place ones too."""
    layers = nn.Sequential(linear(), nn.ReLU(inplace=True), linear(), nn.ReLU(inplace=True), linear(), nn.GELU())
    cut = Fn(lambda self, x: checkpoint_sequential(self.layers, 3, x, use_reentrant=how), layers=layers)
    for formulation in FORMULATIONS:
        for rules in ({}, {nn.Linear: Gamma()}):
            composite = Composite(rules, formulation=formulation)
            assert_close(attribute(cut, x6(), composite), attribute(layers, x6(), composite), 1e-12)


@both_formulations
@pytest.mark.parametrize("call", CALLS)
def test_a_torch_whose_checkpoints_cannot_be_reached(call, formulation, monkeypatch):
    """Modules bring their rules in again by themselves; a function that is no module is reported as uncovered."""
    for user in (module_hooks, operations):
        monkeypatch.setattr(
            user, "rejoin", lambda session, frame: checkpoint_hook() is None and torch.is_grad_enabled()
        )
    for rules in CHECKPOINT_RULES:
        found, composite = [], Composite(rules, formulation=formulation)
        for how in (call, direct):
            torch.manual_seed(0)
            found.append(attribute(Nested(how).double().eval(), x6(), composite, 0))
        assert_close(found[0], found[1], 1e-12)
    model = Fn(lambda self, x: self.b(call(lambda x: F.gelu(self.a(x)) + x, x * 1.0)), a=linear(), b=linear())
    with Composite(formulation=formulation).register(model) as registration:
        model(x6().requires_grad_()).sum().backward()
        report = registration.report()
    assert {row.note for row in report.uncovered} == {"in a checkpointed function that is no module"}


@both_formulations
@pytest.mark.parametrize("call", CALLS)
def test_a_checkpointed_function_that_is_no_module_is_recomputed_in_the_module_it_ran_in(call, formulation):
    """As a block does that checkpoints its own forward: what is recomputed has its rules, and the module's path."""
    parts = {"a": linear(), "b": linear()}
    models = [
        Fn(lambda self, x, call=call: self.b(call(lambda x: F.gelu(self.a(x)) + x, x * 1.0)), **parts)
        for call in (call, direct)
    ]
    found = [attribute(model, x6(), Composite(formulation=formulation, strict=True)) for model in models]
    assert_close(found[0], found[1], 1e-12)
    with Composite(formulation=formulation).register(models[0]) as registration:
        models[0](x6().requires_grad_()).sum().backward()
    report = registration.report()
    assert report.complete
    assert {("", "gelu"), ("", "add"), ("a", "linear")} <= {(row.path, row.target) for row in report.rows}


def test_dropout_in_train_mode_is_recomputed_as_it_was():
    """preserve_rng_state: the same elements are dropped when a block is recomputed."""
    model = Nested(saved).double().train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = []
        for call in (saved, direct):
            for module in model.modules():
                if hasattr(module, "call"):
                    module.call = call
            torch.manual_seed(5)
            found.append(attribute(model, x6(), Composite()))
    assert_close(found[0], found[1], 1e-12)


@both_formulations
@pytest.mark.parametrize("call", CALLS)
def test_a_backward_pass_in_another_thread(call, formulation):
    """As on an accelerator: blocks are recomputed in a thread that has seen no forward pass."""
    for rules in CHECKPOINT_RULES:
        composite = Composite(rules, formulation=formulation)
        expected = attribute(make_nested(direct), x6(), composite, 0)
        model, x = make_nested(call), x6().requires_grad_()
        with composite.register(model):
            y = model(x)
            slot = start_at(y, 0) * (y.detach() if formulation == "relevance" else 1)
            in_threads([partial(y.backward, slot)])
        assert_close(x.grad if formulation == "relevance" else x.detach() * x.grad, expected, 1e-12)


def make_nested(call):
    torch.manual_seed(0)
    return Nested(call).double().eval()


def test_an_exception_in_a_recomputed_block():
    """backward() raises, nothing is left, and the next one works."""
    calls = []

    def fail_second(self, x):
        calls.append(None)
        return bang() if len(calls) == 2 else self.inner(x)

    for call in (reentrant, saved):
        calls.clear()
        model = Fn(lambda self, x, call=call: call(self.part, x * 1.0), part=Fn(fail_second, inner=linear()))
        before = fingerprint(model)
        with Composite(RULES).register(model):
            with pytest.raises(Bang):
                model(x6().requires_grad_()).sum().backward()
            assert _get_current_function_mode_stack() == []
            model(x6().requires_grad_()).sum().backward()
        assert fingerprint(model) == before


@pytest.mark.parametrize("how", ["save_on_cpu", "saved_tensors_hooks"])
def test_saved_tensors_that_somebody_packs(how):
    """Offloading of saved tensors, with in-place operations: the same relevance."""
    model, x = Nested(direct).double().eval(), x6()
    expected = attribute(model, x, Composite(RULES))
    packing = (
        torch.autograd.graph.save_on_cpu()
        if how == "save_on_cpu"
        else torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t)
    )
    with packing:
        found = attribute(model, x, Composite(RULES))
    assert_close(found, expected, 1e-12)
