"""Graphs are valid for the Python values that a model, its targets and its composite read, and for no others."""

import functools
import gc
import random
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lxt_compose import Composite, Gamma, TraceError, attribute, presets, where
from lxt_compose.tracing.surroundings import Surroundings

FACTOR = 1.5
INDEX = 0


class Settings:
    power = 1.0


def activation(h):
    return torch.tanh(h) * FACTOR


def other_activation(h):
    return torch.sigmoid(h)


class Base(nn.Module):
    level = 1.0

    def forward(self, x):
        return self.second(self.between(self.first(x)))


class Model(Base):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)
        self.scale, self.flag, self.function = 2.0, True, torch.relu
        self.config, self.several = SimpleNamespace(inner={"k": [1.0]}), [1.0, 2.0]
        self.plain, self.array = torch.ones(5), np.ones(5, dtype="float32")

    def between(self, h):
        h = self.function(h) * self.scale * self.config.inner["k"][0] * self.several[1] * self.plain
        h = h * float(self.array[0]) if self.flag else h + self.half
        return activation(h) * self.level * Settings.power

    @property
    def half(self):
        return 0.5


def samples():
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(1))


def set_to(name, value):
    return lambda model, patch: patch.setattr(model, name, value)


CHANGES = {
    "a number": set_to("scale", 5.0),
    "a flag": set_to("flag", False),
    "a function": set_to("function", torch.tanh),
    "a value inside of an object": lambda model, patch: model.config.inner["k"].__setitem__(0, 3.0),
    "an entry of a list": lambda model, patch: model.several.__setitem__(1, 7.0),
    "a tensor": set_to("plain", torch.full((5,), 3.0)),
    "an array": lambda model, patch: model.array.fill(4.0),
    "an attribute of the class that an object gets": set_to("level", 3.0),
    "an attribute of the class": lambda model, patch: patch.setattr(Base, "level", 3.0),
    "a class as a namespace": lambda model, patch: patch.setattr(Settings, "power", 3.0),
    "a global of a function": lambda model, patch: patch.setitem(globals(), "FACTOR", 4.0),
    "a function of the module": lambda model, patch: patch.setitem(globals(), "activation", other_activation),
    "a method": lambda model, patch: patch.setattr(Model, "between", lambda self, h: h.relu()),
    "forward": lambda model, patch: patch.setattr(Base, "forward", lambda self, x: self.second(self.first(x).relu())),
    "an attribute of a module of torch": lambda model, patch: patch.setattr(model.norm, "eps", 1.0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_value_that_the_model_reads_is_seen_when_it_changes(change, monkeypatch):
    model, x = Model(), samples()
    model.norm = nn.LayerNorm(4)
    first, model.first = model.first, nn.Sequential(model.norm, model.first)
    assert first is model.first[1]
    traced = presets.attnlrp().trace(model, x, target=1)
    for _ in range(3):
        before = attribute(model, x, target=1, traced="auto")
    assert before.ran == "one graph"
    change(model, monkeypatch)
    with pytest.raises(TraceError, match=r"is not what was traced: .*; set it back, or trace it anew"):
        traced(x)
    expected = attribute(model, x, target=1)
    assert not torch.equal(expected.relevance, before.relevance)
    for _ in range(2):
        found = attribute(model, x, target=1, traced="auto")
        assert torch.equal(found.relevance, expected.relevance)
        assert torch.equal(found.output, expected.output)
    assert found.ran == "one graph"
    with Composite(formulation="gradient").register(model):
        assert not Surroundings(model).change()


def test_values_that_are_set_again_and_graphs_for_both_values():
    model, x = Model(), samples()
    traced = presets.attnlrp().trace(model, x, target=1)
    model.scale, model.several, model.config = float("2"), model.several, model.config
    traced(x)
    for scale in (2.0, 2.0, 3.0, 2.0, 3.0):
        model.scale = scale
        found = attribute(model, x, target=1, traced="auto")
        assert torch.equal(found.relevance, attribute(model, x, target=1).relevance)
    assert found.ran == "one graph"


def test_values_that_change_each_time_get_no_graphs_without_end():
    model, x = Model(), samples()
    for step in range(7):
        model.scale = 1.0 + step
        found = attribute(model, x, target=1, traced="auto")
        assert torch.equal(found.relevance, attribute(model, x, target=1).relevance)
    assert "another change each time: attribute 'scale' of Model" in found.ran


def of_index(y):
    return y[:, INDEX]


def calls_another(y):
    return of_index(y)


class Chosen:
    place = 0

    def __call__(self, y):
        return y[:, self.place]

    def method(self, y):
        return y[:, self.place]


def closed_over(places):
    return lambda y: y[:, places[0]]


TARGETS = {
    "a global": lambda: (of_index, lambda patch: patch.setitem(globals(), "INDEX", 2)),
    "a global of a function that it calls": lambda: (calls_another, lambda patch: patch.setitem(globals(), "INDEX", 2)),
    "an object": lambda: (chosen := Chosen(), lambda patch: setattr(chosen, "place", 2)),
    "a method": lambda: ((chosen := Chosen()).method, lambda patch: setattr(chosen, "place", 2)),
    "a closure": lambda: (closed_over(places := [0]), lambda patch: places.__setitem__(0, 2)),
    "a partial": lambda: (
        functools.partial(lambda y, at: y[:, at["k"]], at=(at := {"k": 0})),
        lambda patch: at.__setitem__("k", 2),
    ),
}


@pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS)
def test_a_value_that_a_target_function_reads_is_seen_when_it_changes(make, monkeypatch):
    model, x = Model(), samples()
    target, change = make()
    traced = presets.attnlrp().trace(model, x, target=target)
    for _ in range(3):
        found = attribute(model, x, target=target, traced="auto")
    assert found.ran == "one graph"
    change(monkeypatch)
    with pytest.raises(TraceError, match="is not what was traced"):
        traced(x)
    expected = attribute(model, x, target=target)
    for _ in range(2):
        found = attribute(model, x, target=target, traced="auto")
        assert torch.equal(found.output, expected.output)


def test_another_function_in_the_place_of_one_that_is_gone_is_another():
    model, x = Model(), samples()
    expected = [attribute(model, x, target=place).output for place in range(3)]
    for turn in range(30):
        found = attribute(model, x, target=closed_over([turn % 3]), traced="auto")
        assert torch.equal(found.output, expected[turn % 3])


def test_a_predicate_and_a_replacement_of_a_composite_are_compared():
    model, x, chosen = Model(), samples(), {"name": "first"}
    composite = Composite({where(lambda name, module: name == chosen["name"]): Gamma(9.0)})
    for _ in range(3):
        assert attribute(model, x, target=1, composite=composite, traced="auto").report
    chosen["name"] = "second"
    expected = attribute(model, x, target=1, composite=composite)
    found = attribute(model, x, target=1, composite=composite, traced="auto")
    assert torch.equal(found.relevance, expected.relevance)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.calls, self.last, self.shape, self.met = nn.Linear(4, 3), 0, None, None, []

    def forward(self, x):
        self.calls += 1
        return self.linear(x) / self.calls


class Keeping(Counting):
    def forward(self, x):
        self.last, self.shape = self.linear(x), tuple(x.shape)
        return self.last.relu()


def test_a_number_that_the_model_counts_is_named_and_no_such_graph_is_kept():
    model, x = Counting(), samples()
    traced = presets.attnlrp().trace(model, x, target=1)
    assert any("'calls'" in note and "has the example's" in note for note in traced.notes)
    traced(x)
    for _ in range(3):
        found = attribute(model, x, target=1, traced="auto")
        expected = model(x)[:, 1] * model.calls / (model.calls - 1)
        assert torch.allclose(found.output, expected)
    assert "eager: in each call the model changes attribute 'calls' of Counting" in found.ran


def test_what_a_model_keeps_of_its_last_call_is_no_change():
    model, x = Keeping(), samples()
    traced = presets.attnlrp().trace(model, x, target=1, dynamic=True)
    model(torch.randn(5, 4))
    assert traced(x).relevance.shape == (2, 4)
    assert [attribute(model, x, target=1, traced="auto").ran for _ in range(3)][2] == "one graph"


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_random_numbers_of_python_and_numpy_are_no_graph(draw):
    model = Model()
    model.function = lambda h: h * draw()
    with pytest.raises(TraceError, match="draws random numbers"):
        presets.attnlrp().trace(model, samples(), target=1)


def test_autocast_the_default_dtype_and_modes_belong_to_a_graph():
    model, x = Model(), samples()
    traced = presets.attnlrp().trace(model, x, target=1)
    for _ in range(3):
        attribute(model, x, target=1, traced="auto")

    def check(said):
        with pytest.raises(TraceError, match=said):
            traced(x)
        expected = attribute(model, x, target=1)
        for _ in range(3):
            found = attribute(model, x, target=1, traced="auto")
            assert torch.equal(found.relevance, expected.relevance)
            assert torch.equal(found.output, expected.output)
            assert found.relevance.dtype == expected.relevance.dtype
        assert found.ran == "one graph"

    with torch.autocast("cpu", torch.bfloat16):
        check("autocast was off and is")
    with torch.device("cpu"):
        check("the stack of torch function modes was off and is")
    torch.set_default_dtype(torch.float64)
    try:
        check("the default dtype was torch.float32 and is torch.float64")
    finally:
        torch.set_default_dtype(torch.float32)
    assert attribute(model, x, target=1, traced="auto").ran == "one graph"


def test_relevance_that_is_differentiated_sees_a_value_that_changes():
    model, x = Model().double(), samples().double().requires_grad_()
    composite, slopes = Composite(formulation="gradient"), []
    for scale in (1.0, 3.0):
        model.scale = scale
        with composite.register(model):
            y = model(x)[:, 1].sum()
            (expected,) = torch.autograd.grad(y, x, retain_graph=True)
            (found,) = torch.autograd.grad(y, x, create_graph=True)
        assert torch.allclose(found, expected)
        slopes.append(found.detach())
    assert not torch.allclose(*slopes)


def test_a_model_that_its_target_function_holds_is_not_kept():
    model, x = Model(), samples()
    target = (lambda held: lambda y: y[:, 0] * held.scale)(model)
    for _ in range(3):
        found = attribute(model, x, target=target, traced="auto")
    assert found.ran == "one graph"
    gone = weakref.ref(model)
    del model, target
    gc.collect()
    assert gone() is None
