"""Values that are read while a graph is written down: outside of it, and it holds only as long as they do."""

from itertools import count

import pytest
import torch
from support import Fn
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from lxt_compose import Composite, Identity, TraceError, attribute, presets

numbers = count(1)


def never_used():
    """A number that no function has been called with yet."""
    return 0.3 + 1e-9 * next(numbers)


def activations(k):
    functions = [
        lambda x: torch.cos(x + k), lambda x: x * torch.sigmoid(x * k), lambda x: F.softplus(x, beta=1 + k),
        lambda x: torch.exp(x * k), lambda x: (x + k) ** 2, lambda x: torch.where(x > k, x, x * k),
        lambda x: x.clamp(min=-k), lambda x: torch.rsqrt(x * x + k), lambda x: torch.pow(x.abs() + k, 1.5),
        lambda x: 1 / (k + torch.exp(-x)), lambda x: F.threshold(x, k, 0.2),
    ]  # fmt: skip
    modules = [
        nn.Softplus(beta=1 + k), nn.ELU(k), nn.CELU(k), nn.LeakyReLU(k), nn.Hardtanh(-k, 1 + k), nn.Threshold(k, 0.2),
        nn.PReLU(3, k), nn.Softshrink(k), nn.Hardshrink(k), nn.Mish(), nn.LogSigmoid(), nn.Tanhshrink(),
    ]  # fmt: skip
    return [*(Fn(lambda m, x, f=f: f(x)) for f in functions), *modules]


def net(k):
    """All of them side by side, each on a row of its own."""
    torch.manual_seed(0)
    acts = {f"act{i}": act for i, act in enumerate(activations(k))}

    def forward(m, x):
        rows = m.first(x).unbind(1)
        return m.last(torch.stack([m._modules[name](row) for name, row in zip(acts, rows, strict=True)], 1))

    return Fn(forward, first=nn.Linear(4, 3), last=nn.Linear(3, 2), **acts).double().eval()


def relevance(model, composite, x):
    """Return the slot of the input: [samples, rows, features]."""
    with composite.register(model):
        x = x.detach().clone().requires_grad_()
        z = model(x)[..., 0]
        start = z.detach() if composite.formulation == "relevance" else torch.ones_like(z)
        return torch.autograd.grad(z, x, start)[0]


COMPOSITES = {
    **{name: lambda name=name: presets.get(name) for name in presets.available() if name != "epsilon_gamma_box"},
    "epsilon_gamma_box": lambda: presets.get("epsilon_gamma_box", low=-9.0, high=9.0),
    "modules": lambda: Composite({"act*": Identity()}),
    "modules, gradients": lambda: Composite({"act*": Identity()}, formulation="gradient"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOSITES)
def test_activations_that_have_never_been_evaluated_are_right_in_a_graph_of_ones_own(name):
    composite, model, same = COMPOSITES[name](), net(never_used()), net(never_used())
    x, other = torch.randn(2, 3, 23, 4, generator=torch.Generator().manual_seed(1)).double()
    graph = make_fx(lambda x: relevance(model, composite, x))(x)
    found, expected = graph(other), relevance(same, composite, other)  # of other numbers, so nothing is known of it
    assert found.any()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


class Shifted(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor([0.3, -0.2, 0.7]))

    def forward(self, x):
        return (x + self.shift).cos()


def with_tensor(forward, **tensors):
    """A layer and tensors: parameters, or buffers if they require no grad."""
    model = Fn(forward, layer=nn.Linear(4, 3))
    for name, value in tensors.items():
        (model.register_parameter if isinstance(value, nn.Parameter) else model.register_buffer)(name, value)
    return model


READ = {
    "'gain' among the parameters of the model": lambda: with_tensor(
        lambda m, x: (m.layer(x) * m.gain).sigmoid(), gain=nn.Parameter(torch.tensor(1.3))
    ),
    "'log_gain' among the parameters of the model": lambda: with_tensor(
        lambda m, x: (m.layer(x) * m.log_gain.exp() + torch.full_like(x[:, :3], 0.5)).sigmoid(),
        log_gain=nn.Parameter(torch.tensor(0.3)),
    ),
    "'power' among the parameters of the model": lambda: with_tensor(
        lambda m, x: m.layer(x).abs() ** m.power, power=nn.Parameter(torch.tensor(2.5))
    ),
    "'shift' among the parameters of 'act' .Shifted.": lambda: Fn(
        lambda m, x: m.act(m.layer(x)), layer=nn.Linear(4, 3), act=Shifted()
    ),
    "'number' among the buffers of the model": lambda: with_tensor(
        lambda m, x: m.layer(x) if m.number.item() > 0 else -m.layer(x), number=torch.tensor(1.0)
    ),
    "'slope' among the buffers of the model": lambda: with_tensor(
        lambda m, x: m.layer(x) if (m.slope * 2 + torch.arange(3)).max().item() > 2 else -m.layer(x),
        slope=torch.tensor(0.5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("said", READ)
def test_a_graph_is_refused_when_a_weight_that_decided_what_it_is_has_another_value(said):
    model, x = READ[said]().double().eval(), torch.randn(3, 4).double()
    composite = Composite({"act": Identity()} if hasattr(model, "act") else {}, formulation="gradient")
    tensor = next(t for name, t in (*model.named_parameters(), *model.named_buffers()) if "layer" not in name)

    def eagerly():
        return attribute(model, x, composite=composite, target=0).relevance

    traced = composite.trace(model, x, target=0)
    assert torch.equal(traced(x).relevance, eagerly())
    model.load_state_dict(
        {name: value + (value is not tensor) for name, value in model.state_dict(keep_vars=True).items()}
    )
    assert torch.equal(traced(x).relevance, eagerly())  # the same value was written
    with torch.no_grad():
        tensor.sub_(2)
    with pytest.raises(TraceError, match=f"the graph depends on the values of {said}.*now; trace it anew"):
        traced(x)
    assert torch.equal(composite.trace(model, x, target=0)(x).relevance, eagerly())


def test_graphs_that_are_kept_are_made_anew_for_other_values():
    model, x = READ["'gain' among the parameters of the model"]().double().eval(), torch.randn(3, 4).double()
    for _ in range(2):
        found = attribute(model, x, composite="attnlrp", target=0, traced=True)
        assert found.ran == "one graph"
        assert torch.equal(found.relevance, attribute(model, x, composite="attnlrp", target=0).relevance)
        with torch.no_grad():
            model.gain.add_(1)


def test_relevance_that_is_differentiated_follows_other_values():
    model, x = READ["'gain' among the parameters of the model"]().double().eval(), torch.randn(3, 4).double()
    with Composite().register(model):
        for _ in range(2):
            y = model(x.requires_grad_())
            (found,) = torch.autograd.grad(y[:, 0], x, y[:, 0].detach(), create_graph=True)
            assert torch.equal(found.detach(), attribute_elsewhere(model, x.detach()))
            with torch.no_grad():
                model.gain.add_(1)


def attribute_elsewhere(model, x):
    same = READ["'gain' among the parameters of the model"]().double().eval()
    same.load_state_dict(model.state_dict())
    return attribute(same, x, composite=Composite(), target=0).relevance


def test_a_value_that_the_graph_itself_computes_decides_nothing():
    model = Fn(lambda m, x, y: m.layer(x).abs() ** y.detach(), layer=nn.Linear(4, 3)).double().eval()
    given = torch.randn(3, 4).double(), torch.tensor(2.5).double()
    with pytest.raises(
        TraceError, match="but the graph that is written down computes it; make it a number, a parameter"
    ):
        Composite().trace(model, given, target=0)


def eagerly(model, x):
    return attribute(model, x, composite="attnlrp", target=0).relevance


READ_NOW = {
    "positions": lambda m, x: m.layer(x) if (torch.arange(x.shape[1]).diff() == 1).all() else -m.layer(x),
    "a constant": lambda m, x: m.layer(x) * torch.tensor(3.0).sqrt() if torch.tensor(2.0) > 1 else x,
    "filled like an input": lambda m, x: m.layer(x) if torch.ones_like(x).sum() > 0 else -m.layer(x),
    "written by a constant": lambda m, x: m.layer(x) if torch.zeros(2).copy_(torch.ones(2)).any() else -m.layer(x),
}


@pytest.mark.parametrize("name", READ_NOW)
def test_what_no_input_is_behind_is_read_while_the_graph_is_written_down(name):
    model, x = with_tensor(READ_NOW[name]).eval(), torch.randn(3, 4)
    graph = presets.attnlrp().trace(model, x, target=0)
    assert not graph.notes
    for other in (x, -x):
        assert torch.equal(graph(other).relevance, eagerly(model, other))


NOT_READ = {
    "an input": lambda m, x: m.layer(x) if x.sum() > 0 else -m.layer(x),
    "written from an input": lambda m, x: m.layer(x) if torch.zeros(1).copy_(x.detach().sum()).item() > 0 else x,
    "through a view": lambda m, x: (
        z := torch.zeros(2), z[:1].copy_(x.detach().sum()), m.layer(x) if z.sum().item() > 0 else -m.layer(x)
    )[2],
    "drawn at random": lambda m, x: m.layer(x) if torch.rand(1).item() >= 0 else -m.layer(x),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_READ)
def test_what_an_input_is_behind_is_not_read(name):
    with pytest.raises(TraceError):
        presets.attnlrp().trace(with_tensor(NOT_READ[name]).eval(), torch.randn(3, 4), target=0)
