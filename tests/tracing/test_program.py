"""Functions of tensors as graphs: the same numbers, made shorter, with the tensors of the model and not copies."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from lxt_compose.tracing import ByModel, Kept, ModelState, Program, bindings
from lxt_compose.tracing.hoisting import split
from lxt_compose.tracing.passes import simplify


def names(module):
    return [str(node.target) for node in module.graph.nodes if node.op in ("call_function", "call_method")]


def wide(x, weight):
    """Everything that passes look for: aliases, repeats, unused results, changes in place, random numbers, weights."""
    first, again = x.exp(), x.exp()
    x.sin()
    changed = torch.zeros_like(x)
    before = changed + 1
    changed[0] = first[0].detach()
    after = changed + 1
    return first + again * before - after, torch.rand_like(x) + torch.rand_like(x), F.gelu(x @ weight.abs().t())


def test_a_graph_has_the_same_numbers_and_is_shorter():
    weight, x = torch.randn(4, 4), torch.randn(3, 4)
    graph = make_fx(lambda x: wide(x, weight))(x)
    before = names(graph)
    simplify(graph)
    for found, expected in zip(graph(x)[::2], wide(x, weight)[::2], strict=True):
        assert torch.equal(found, expected)
    assert before.count("aten.exp.default") == 2
    assert names(graph).count("aten.exp.default") == 1
    assert not {"aten.sin.default", "aten.detach.default"} & set(names(graph))
    assert names(graph).count("aten.rand_like.default") == 2
    assert names(graph).count("aten.add.Tensor") >= 3  # two of what was changed in between


def test_what_depends_on_weights_alone_is_computed_once_until_they_change():
    weight, x = torch.randn(4, 4), torch.randn(3, 4)
    graph = make_fx(lambda x: x @ weight.abs().t())(x)
    prologue, rest = split(graph)
    assert names(rest) == ["aten.mm.default"]
    first = prologue.values()
    assert prologue.values() is first
    weight.mul_(-2)
    assert torch.equal(rest(*prologue.values(), x), x @ weight.abs().t())


def test_weights_are_the_very_tensors_and_a_program_sees_their_values():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2)), torch.randn(5, 4)
    program = Program(model, [x])
    assert any(tensor is model[0].weight for tensor in vars(program.graph)["_parameters"].values())
    for _ in range(2):
        assert torch.equal(program(x), model(x))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.5)


def test_operations_are_called_by_torchs_own_functions():
    program = Program(lambda x: F.gelu(x.view(-1) * 2).sum().add_(1), [torch.randn(2, 3)])
    x = torch.randn(2, 3)
    assert torch.equal(program(x), F.gelu(x * 2).sum() + 1)
    rest = program._run
    assert "view" in names(rest)
    assert any("method add" in name for name in names(rest))  # not in place: nobody else sees it
    assert not any(name.startswith("aten") for name in names(rest))


def test_operations_that_are_alike_are_tried_once(monkeypatch):
    tried, really = [], bindings._calls
    monkeypatch.setattr(bindings, "_calls", lambda *given: tried.append(given[1]) or really(*given))

    def deep(x, layers):
        for _ in range(layers):
            x = torch.tanh(x) * 2
        return x.sum(0) * 2  # of another shape: tried by itself

    counts = []
    for layers in (2, 9):
        x, before = torch.randn(2, 3), len(tried)
        assert torch.equal(Program(lambda x, n=layers: deep(x, n), [x])(x), deep(x, layers))
        counts.append(len(tried) - before)
    assert counts[0] == counts[1] > 0
    assert [target.overloadpacket for target in tried].count(torch.ops.aten.mul) == 2 * 2


def test_a_program_for_all_sizes_knows_for_which_it_holds():
    def function(x, y):
        return x.sum(0) if x.shape[1] > 6 else (x + y).mean(0)

    program = Program(function, [torch.randn(3, 5), torch.randn(3, 5)], [("batch", "length"), ("batch", "length")])
    assert program.dynamic
    assert program.holds({"batch": 9, "length": 6})
    assert not program.holds({"batch": 9, "length": 7})
    for shape in ((3, 5), (7, 2)):
        x, y = torch.randn(shape), torch.randn(shape)
        assert torch.equal(program(x, y), function(x, y))


def test_what_asks_for_values_is_no_graph():
    with pytest.raises(RuntimeError, match="tracing tensor"):
        Program(lambda x: x if x.sum() > 0 else -x, [torch.ones(2)])


def test_a_program_says_whether_it_draws_numbers_or_changes_weights():
    counter, x = torch.zeros(2), torch.ones(2)
    plain, random = Program(lambda x: x + 1, [x]), Program(lambda x: F.dropout(x), [x])
    counting = Program(lambda x: counter.add_(x) * 1, [x])
    assert (plain.is_random, random.is_random, counting.is_random) == (False, True, False)
    assert (plain.changes_weights, random.changes_weights, counting.changes_weights) == (False, False, True)


# ---- models ----------------------------------------------------------------------------------------------------------


def net():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()


def rename(table, *names):
    """Give the values of a table other names, in the order that they had."""
    values = list(table.values())
    table.clear()
    table.update(zip(names, values, strict=True))


CHANGES = {
    "the model (Sequential) is in train mode now; call model.eval() first": lambda model: model.train(),
    "'1' (BatchNorm1d) is in train mode now": lambda model: model[1].train(),
    "modules of the model (Sequential) were added": lambda model: model.append(nn.ReLU()),
    "modules of the model (Sequential) were exchanged (0)": lambda model: model.__setitem__(0, nn.Linear(4, 3)),
    "parameters of '0' (Linear) were exchanged (weight)": lambda model: setattr(
        model[0], "weight", nn.Parameter(torch.ones(3, 4))
    ),
    "buffers of '1' (BatchNorm1d) were exchanged (running_mean)": lambda model: setattr(
        model[1], "running_mean", torch.ones(3)
    ),
    "forward hooks of '0' (Linear) were put on or taken off": lambda model: model[0].register_forward_hook(
        lambda *_: None
    ),
    "parameters of '1' (BatchNorm1d) were exchanged (weight)": lambda model: rename(
        model[1]._parameters, "bias", "weight"
    ),
    "parameters of '0' (Linear) were added or taken away": lambda model: (
        setattr(model[0], "bias", None) or model[0]._parameters.pop("bias")
    ),
    "buffers of the model (Sequential) were added": lambda model: model.register_buffer("mask", torch.ones(1)),
    "the forward of a module was exchanged": lambda model: setattr(model[0], "forward", lambda x: x),
}


@pytest.mark.parametrize("said", CHANGES)
def test_a_change_of_a_model_is_told(said):
    model = net()
    state, key = ModelState(model), ModelState.key(model)
    assert state.change() == ""
    model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})
    assert state.change() == ""
    assert ModelState.key(model) == key
    CHANGES[said](model)
    assert said in state.change()
    assert ModelState.key(model) != key


def test_the_order_of_parameters_is_no_change_and_their_names_are():
    model = net()
    state, table = ModelState(model), next(m for m in model.modules() if len(m._parameters) > 1)._parameters
    first = next(iter(table))
    table[first] = table.pop(first)
    assert state.change() == ""
    table["other"] = table.pop(first)
    assert "parameters" in state.change()


def test_what_is_kept_for_a_model_is_limited_and_goes_with_it():
    kept, made = Kept(limit=2), []
    for key in (1, 2, 1, 3, 1, 2):
        kept.get(key, lambda key=key: made.append(key))
    assert made == [1, 2, 3, 2]
    assert len(kept) == 2
    by_model, model, owner = ByModel(), net(), net()
    by_model.of(owner, model).get(1, lambda: "made")
    assert by_model.of(owner, model).get(1, lambda: "again") == "made"
    del model
    assert not len(next(iter(by_model._kept.values())))


def shapes_alone(x):
    """Views of views, and tensors that hold one number, one of them changed in place."""
    y = x.view(2, 6).view(3, 4).view(12).view(4, 3)
    changed = torch.zeros_like(y)
    changed[0] += 2
    return y.t() * torch.ones_like(x) + x.new_full((), 2.0), changed, torch.zeros_like(x), x.transpose(0, 1).reshape(12)


def test_views_of_views_and_tensors_of_one_number_are_made_once():
    x = torch.randn(3, 4)
    program = Program(shapes_alone, [x])
    assert names(program.graph).count("aten.view.default") == 1
    assert not {"aten.ones_like.default", "aten.new_full.default"} & set(names(program.graph))
    assert names(program.graph).count("aten.zeros_like.default") == 1
    for _ in range(2):
        x = torch.randn(3, 4)
        for found, expected in zip(program(x), shapes_alone(x), strict=True):
            assert torch.equal(found, expected)
            found.add_(1)  # what a call has returned is nobody else's
