"""Calls that are only counted and run: the rule, the report and the marks are those of the way that looks at all."""

import pytest
import torch
from fast_ways import calls_kept, keep_nothing
from support import Fn
from torch import nn
from torch.nn import functional as F

from lxt_compose import Composite, Stop, check_conservation, presets
from lxt_compose.autograd.marks import SIGNAL, Gate, history_of

W = torch.randn(6, 6)


def made_of(forward):
    """A model that computes this; one without parameters might be an activation module, whose steps are followed."""
    return Fn(lambda _, x: forward(x), unused=nn.Linear(2, 2))


@pytest.fixture
def plain(monkeypatch):
    """The names of the functions that ran as plain calls."""
    return calls_kept(monkeypatch)


def thrice(forward, composite=None, x=None):
    """Run a model three times under a composite: what is decided in the first pass is looked up in the next ones."""
    x = torch.randn(3, 6) if x is None else x
    with (composite or Composite(formulation="gradient")).register(made_of(forward)) as registration:
        outputs = [registration.session.model(x.clone().requires_grad_()) for _ in range(3)]
    return outputs[-1], registration.report()


LAYERS = {
    "linear": lambda x: F.linear(x, W),
    "transpose": lambda x: x.transpose(0, 1),
    "getitem": lambda x: x[..., :2],
    "cat": lambda x: torch.cat([x @ W, x @ W], dim=-1),
    "mean": lambda x: x.mean(-1, keepdim=True),
    "add": lambda x: x @ W + F.linear(x, W),
    "mul": lambda x: (x @ W) * W[:3],
    "contiguous": lambda x: x.t().contiguous(),
    "dropout": lambda x: F.dropout(x, 0.1, False),
}


@pytest.mark.parametrize("name", LAYERS)
def test_what_was_decided_once_is_run_at_once(name, plain):
    output, report = thrice(LAYERS[name])
    assert name in plain
    assert history_of(output) == SIGNAL
    assert all(row.calls in (3, 6) for row in report.rows)


CLOSE_TO = {
    "a gate": lambda x: torch.sigmoid(x) * W[:3],
    "a function of one tensor": lambda x: x * torch.sigmoid(x) + x,
    "a constant of one number": lambda x: x * torch.full((1,), 2.0).expand(3, 6),
    "a change in place": lambda x: (x @ W).add_(W[:3]),
    "a drop of elements": lambda x: F.dropout(x, 0.5, True),
    "another output": lambda x: torch.mul(x @ W, W[:3], out=None),
    "a mask": lambda x: torch.where(x > 0, x, 0.0),
    "a shape alone": lambda x: torch.sigmoid(x)[:1].expand_as(x @ W) * x,
    "gates that are joined": lambda x: torch.cat([torch.sigmoid(x), x @ W]) * torch.cat([x, x]),
    "a layer of products": lambda x: F.linear((x @ W) * (x @ W.t()), W) * x.tanh(),
}


@pytest.mark.filterwarnings("ignore:.*dropout")
@pytest.mark.parametrize("name", CLOSE_TO)
@pytest.mark.parametrize("preset", ["attnlrp", "cp_lrp"])
def test_relevance_is_that_of_calls_that_are_looked_at(name, preset, monkeypatch):
    def run():
        torch.manual_seed(0)
        x = torch.randn(3, 6, requires_grad=True)
        model = made_of(lambda x: CLOSE_TO[name](x).cos())
        with presets.get(preset).register(model) as registration:
            for _ in range(3):
                x.grad = None
                torch.manual_seed(1)
                model(x).sum().backward()
        return x.grad, registration.report().to_string()

    found, report = run()
    keep_nothing(monkeypatch)
    expected, whole = run()
    assert torch.equal(found, expected)
    assert report == whole


def test_gates_that_are_moved_stay_gates(plain):
    output, _ = thrice(lambda x: torch.sigmoid(x).transpose(0, 1))
    assert plain == ["sigmoid", "transpose"] * 2
    assert history_of(output).gate is Gate.OPENS


def test_a_key_is_heeded(plain):
    x = torch.randn(3, 6, requires_grad=True)
    model = made_of(lambda x: (x @ W + F.linear(x, W)) * x)
    with Composite({torch.add: Stop()}, formulation="gradient").register(model):
        for _ in range(3):
            (grad,) = torch.autograd.grad(model(x).sum(), x)
            assert torch.equal(grad, (x @ W + F.linear(x, W)).detach())
    assert plain.count("add") == 2


def test_an_observer_sees_all(plain):
    model = nn.Linear(6, 2)
    with Composite(formulation="gradient").register(model) as registration:
        model(torch.randn(3, 6, requires_grad=True))
        with check_conservation(registration):
            model(torch.randn(3, 6, requires_grad=True)).sum().backward()
    assert plain == []


def test_what_runs_without_gradients_is_no_plain_call(plain):
    model = made_of(lambda x: (x.transpose(0, 1), torch.no_grad()(lambda: x.transpose(0, 1))())[0])
    with Composite(formulation="gradient").register(model):
        for _ in range(2):
            model(torch.randn(3, 6, requires_grad=True))
    assert plain == ["transpose"]


class WithoutBackward(torch.Tensor):
    """A weight whose kernels have no backward."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        output = super().__torch_function__(func, types, args, kwargs)
        return output.detach().as_subclass(torch.Tensor) if func is F.linear else output


def test_a_plain_call_that_cuts_relevance_off_is_uncovered_each_time(plain):
    weight = W.as_subclass(WithoutBackward)
    _, report = thrice(lambda x: x + F.linear(x, weight))
    assert plain.count("linear") == 2
    assert [(row.target, row.calls) for row in report.uncovered] == [("linear", 3)]
    assert [row["status"] for row in report.to_dicts() if row["target"] == "linear"] == ["uncovered"]
