"""Each trick on torch's private parts still works on this version of torch; when one breaks, its test names it."""

import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from support import twice
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from lxt_compose import torch_internals as internals
from lxt_compose.errors import TraceError
from lxt_compose.torch_internals import backward_hooks, checkpoints, readings, traces
from lxt_compose.torch_internals.attention import attention_body


class Seen(TorchFunctionMode):
    """Notes the names of the functions that it sees."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


class Double(torch.autograd.Function):
    """Twice the input; `note` is called in its forward."""

    note = staticmethod(lambda: None)

    @staticmethod
    def forward(ctx, x):
        Double.note()
        return x * 2

    @staticmethod
    def backward(ctx, slot):
        return slot * 2


def leaf(*shape):
    return torch.randn(*shape or (3,), requires_grad=True)


def test_no_function_mode_sees_what_runs_with_modes_off():
    with Seen() as mode:
        with internals.modes_off():
            torch.ones(2).add(1)
        torch.zeros(2).sub(1)
        assert internals.function_modes() == [mode]
    assert "add" not in mode.names
    assert "sub" in mode.names
    assert internals.function_modes() == []


def test_compiled_code_is_known_while_it_runs():
    found = []

    @torch._dynamo.disable
    def ask():
        found.append(bool(internals.is_compiled_code()))

    ask()
    assert not internals.is_compiled_code()
    internals.refuse_compiled("nothing")
    assert found == [False]


def test_it_is_known_that_a_graph_is_written_down_and_whether_for_all_shapes():
    seen = []

    def function(x):
        seen.append((traces.is_traced(), traces.has_symbolic_shape(x)))
        return x + 1

    make_fx(function)(torch.ones(2))
    make_fx(function, tracing_mode="symbolic")(torch.ones(2))
    function(torch.ones(2))
    assert seen == [(True, False), (True, True), (False, False)]


def test_a_condition_is_an_operation_of_a_graph_with_both_ways_in_it():
    def function(x):
        return traces.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos().mul_(2), (x,))

    graph = make_fx(function)(torch.ones(2))
    for x in (torch.ones(2), -torch.ones(2)):
        assert torch.equal(graph(x), x.sin() if x.sum() > 0 else x.cos() * 2)


def test_a_graph_for_derivatives_knows_the_statistics_of_norms_and_changes_nothing_in_place():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def function(x):
        return torch.native_layer_norm(x, (4,), None, None, 1e-5)[2].mul_(2)

    graph = traces.differentiable_graph_of(traces.graph_of(function, [x.detach()]), [x.detach()])
    assert not any(str(node.target).endswith("_.Tensor") for node in graph.graph.nodes)
    assert torch.autograd.gradcheck(graph, x)


def test_values_can_be_computed_beside_a_graph_and_models_be_told_of_it():
    seen = []

    def function(x):
        with traces.untraced():
            seen.append(bool(torch.ones(2).sum() > 1))
        with traces.as_compilers_see():
            seen.append(torch.compiler.is_compiling())
        return x + 1

    graph = traces.graph_of(function, [torch.ones(2)])
    assert [str(node.target) for node in graph.graph.nodes if node.op == "call_function"] == ["aten.add.Tensor"]
    assert seen == [True, True]
    assert not torch.compiler.is_compiling()


def test_the_tables_of_a_module_are_found():
    words = [word for word, _ in traces.tables_of(nn.BatchNorm1d(2))]
    assert words == ["modules", "parameters", "buffers", "forward pre-hooks", "forward hooks"]
    assert [list(table) for _, table in traces.tables_of(nn.Linear(2, 2))][1] == ["weight", "bias"]
    assert callable(traces.NN_FUNCTIONS.gelu)


def test_the_frame_of_a_module_call_is_on_the_stack_for_as_long_as_it_runs():
    calls, found, last = [], [], internals.Depth()
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_forward_pre_hook(lambda *_: calls.append(SimpleNamespace(python=internals.module_call())))
    model[0].register_forward_hook(lambda *_: found.append(internals.innermost(calls, last)))
    model(torch.randn(1, 2))
    assert found == calls
    assert internals.innermost(calls, last) is None
    assert calls == []
    assert internals.module_call() is None
    assert internals.this_call() is sys._getframe()


def test_the_forward_of_a_custom_autograd_function_is_known():
    found = []
    Double.note = lambda: found.append(internals.custom_function())
    output = Double.apply(leaf())
    Double.note = lambda: None
    assert found == [output.grad_fn]
    assert internals.custom_function() is None


def test_a_method_that_looks_up_a_name_is_known():
    class InPlace(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="cpu")
        def forward(ctx, x):
            ctx.mark_dirty(x)
            return x.mul_(2)

    assert internals.looks_up("mark_dirty", InPlace.forward)
    assert not internals.looks_up("mark_dirty", Double.forward)
    assert not internals.looks_up("mark_dirty", InPlace.setup_context)


def test_what_the_node_of_a_custom_function_holds_can_be_kept_from_its_forward_on():
    kept = []
    Double.note = lambda: kept.append(internals.custom_function().metadata)
    output = Double.apply(leaf())
    Double.note = lambda: None
    output.grad_fn.metadata["note"] = "made after the forward"
    del output
    assert kept == [{"note": "made after the forward"}]


@pytest.mark.parametrize("reentrant", [True, False])
def test_the_function_of_a_checkpoint_can_be_reached(reentrant):
    found = []

    def block(x):
        if reentrant:
            found.append(internals.reentrant_function_holder(None))
        else:
            hook = internals.checkpoint_hook()
            found.append(internals.checkpoint_function_holder(hook))
        return F.gelu(x)

    checkpoint(block, leaf(), use_reentrant=reentrant).sum()
    holder, name = found[0]
    assert callable(getattr(holder, name))
    assert internals.checkpoint_hook() is None
    assert internals.reentrant_function_holder(None) is None


def test_checkpoints_are_found_on_the_stack_where_torch_does_not_tell(monkeypatch):
    monkeypatch.setattr(checkpoints, "_innermost_hooks", None)
    found = []
    checkpoint(lambda x: found.append(internals.checkpoint_hook()) or x * 2, leaf(), use_reentrant=False)
    assert hasattr(found[0], "recompute_fn")
    assert internals.checkpoint_hook() is None
    assert internals.packs_saved_tensors()


def test_hooks_that_pack_saved_tensors_are_known():
    tells = hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks")  # before torch 2.6 they may always be there
    assert internals.packs_saved_tensors() is not tells
    with torch.autograd.graph.save_on_cpu():
        assert internals.packs_saved_tensors()


def test_nodes_are_numbered_in_the_order_in_which_they_are_made():
    x = leaf()
    first = internals.next_node_number()
    y = x * 2
    z = y + 1
    assert first <= internals.node_number(y.grad_fn) < internals.node_number(z.grad_fn) < internals.next_node_number()


def test_marks_on_nodes_stay_while_the_graph_lives():
    """`Node.metadata` is public; it belongs to the node, not to the Python object that stands for it."""
    y = leaf() * 2
    y.grad_fn.metadata["mark"] = 1
    z = Double.apply(y)
    z.grad_fn.metadata["mark"] = 2
    assert y.grad_fn.metadata["mark"] == 1
    assert z.grad_fn.metadata["mark"] == 2
    assert "mark" not in (y + 1).grad_fn.metadata


def test_a_backward_pass_is_known_while_it_runs():
    x, found = leaf(), []
    y = x * 2
    y.register_hook(lambda slot: found.append(internals.in_backward()))
    y.sum().backward()
    assert found == [True]
    assert not internals.in_backward()


def test_changes_are_not_counted_where_the_version_is_preserved():
    x = torch.zeros(2)
    with internals.preserve_version(x):
        x.add_(1)
    assert x._version == 0


def test_saved_tensors_can_be_exchanged_until_they_are_freed():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            Square.ctx = ctx
            return x * x

        @staticmethod
        def backward(ctx, slot):
            return 2 * ctx.saved_tensors[0] * slot

    x = leaf()
    value = x.detach().clone()
    y = Square.apply(x)
    internals.exchange_saved(Square.ctx, 0, torch.clone)
    with torch.no_grad():
        x.zero_()
    y.sum().backward()
    torch.testing.assert_close(x.grad, 2 * value)
    internals.exchange_saved(Square.ctx, 0, torch.clone)  # it is freed: nothing is done


def test_layer_norm_tells_its_statistic():
    x = leaf(2, 5)
    z = F.layer_norm(x, (5,))
    expected = (x.var(1, correction=0, keepdim=True) + 1e-5).rsqrt()
    torch.testing.assert_close(internals.layer_norm_rstd(z), expected.detach())
    assert internals.layer_norm_rstd(x * 2) is None


def test_views_have_the_memory_of_their_base():
    x = torch.randn(4, 3)
    assert internals.storage_of(x) == internals.storage_of(x[1:].t())
    assert internals.storage_of(x) != internals.storage_of(x.clone())
    sparse = x.to_sparse()
    assert internals.storage_of(sparse) == id(sparse)


def test_transforms_and_batches_of_slots_are_known():
    found = []

    def f(x):
        found.append((bool(internals.in_transform()), internals.is_batched(x)))
        return x * 2

    torch.func.vmap(f)(torch.randn(3, 2))
    assert found == [(True, True)]
    assert not internals.in_transform()
    assert not internals.is_batched(torch.randn(2))


def test_hooks_of_a_module_are_listed_and_removed():
    def hook(*_):
        return None

    module = nn.Linear(2, 2)
    module.register_forward_pre_hook(hook, with_kwargs=True)
    module.register_forward_hook(hook, always_call=True, with_kwargs=True)
    assert internals.pre_hooks_of(module) == [hook]
    internals.remove_hooks(module, hook)
    assert internals.pre_hooks_of(module) == []
    assert not module._forward_hooks_always_called
    assert not module._forward_hooks_with_kwargs


def test_all_hooks_of_a_copy_are_cleared():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_forward_hook(lambda *_: pytest.fail("it ran"))
    model.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    internals.clear_hooks(model)
    assert model(torch.randn(1, 2)).shape == (1, 2)


def test_modules_that_were_compiled_in_place_are_known():
    module = nn.Linear(2, 2)
    assert not internals.is_compiled(module)
    module.compile(backend="eager")
    assert internals.is_compiled(module)


@pytest.mark.parametrize("depth", [0, 1, 2, 7, 10**6])
def test_where_a_call_was_found_last_is_only_a_hint(depth):
    last, calls = internals.Depth(), [SimpleNamespace(python=internals.this_call()), SimpleNamespace(python=None)]
    calls[1].python = object()  # of a call that has ended
    last.depth = depth
    assert internals.innermost(calls, last) is calls[0]
    assert len(calls) == 1
    assert last.depth == 1


def test_tables_of_buffers_are_those_of_all_parts():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    tables = list(internals.buffers_of(model))
    assert [set(table) for table in tables] == [set(), {"running_mean", "running_var", "num_batches_tracked"}, set()]


def test_the_call_stack_is_that_of_the_thread():
    frames = []

    def elsewhere(frame):
        frames.append(internals.innermost([SimpleNamespace(python=frame)], internals.Depth()))

    thread = threading.Thread(target=elsewhere, args=(internals.this_call(),))
    thread.start()
    thread.join()
    assert frames == [None]


def test_an_autograd_function_can_be_applied_without_what_transforms_need():
    class Twice(torch.autograd.Function):
        apply = internals.apply_alone

        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, slot):
            return slot * 3

    x = torch.ones(2, requires_grad=True)
    y = Twice.apply(x)
    assert y.tolist() == [2, 2]
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [3, 3]
    assert y.grad_fn.name() == "TwiceBackward"


def test_calls_of_autograd_functions_end_in_one_class_however_they_are_reached(monkeypatch):
    Twice = twice()
    alias, seen = Twice.apply, []

    def apply(kind, *args):
        seen.append(kind)
        return super(internals.base_of_functions, kind).apply(*args)

    monkeypatch.setattr(internals.base_of_functions, "apply", classmethod(apply), raising=False)
    x = torch.ones(2, requires_grad=True)
    assert alias(x).tolist() == Twice.apply(x).tolist() == [2, 2]
    assert seen == [Twice, Twice]


class Exchanges:
    """Has a way to exchange arguments, as the hooks of a registration have."""

    def __init__(self):
        self.given = []

    def exchange(self, args):
        self.given.append(args)
        return tuple(x * 2 if isinstance(x, torch.Tensor) else x for x in args)


def test_arguments_are_exchanged_after_full_backward_hooks_were_put_on_them():
    module, owner, seen, x = nn.Bilinear(3, 3, 2), Exchanges(), [], leaf(1, 3)
    late = backward_hooks.late_arguments(owner.exchange)
    module.register_forward_pre_hook(lambda _, args: tuple.__new__(late, args))
    module(x, x)
    assert owner.given == []  # nothing looks at them
    module.register_full_backward_hook(lambda _, into, out: seen.append(into))
    module(x, x).sum().backward()
    assert [type(each) for each in owner.given] == [tuple]
    assert all(type(each.grad_fn) is backward_hooks.HOOKED_NODE for each in owner.given[0])
    assert backward_hooks.past_hooks(owner.given[0][1].grad_fn, 1) == torch.autograd.graph.get_gradient_edge(x)[:2]
    torch.testing.assert_close(sum(seen[0]), x.grad)  # the exchange is inside


def test_arguments_are_left_alone_once_their_owner_is_gone():
    owner = Exchanges()
    late = backward_hooks.late_arguments(owner.exchange)
    del owner
    assert late(1, 2) == (1, 2)


def test_it_is_known_whether_a_module_has_full_backward_hooks():
    module = nn.Linear(2, 2)
    assert not backward_hooks.has_full_backward_hooks(module)
    for register in (module.register_full_backward_hook, module.register_full_backward_pre_hook):
        handle = register(lambda *_: None)
        assert backward_hooks.has_full_backward_hooks(module)
        handle.remove()
    module = nn.Linear(2, 2)
    module.register_backward_hook(lambda *_: None)
    assert not backward_hooks.has_full_backward_hooks(module)
    handle = nn.modules.module.register_module_full_backward_pre_hook(lambda *_: None)
    assert backward_hooks.has_full_backward_hooks(module)
    handle.remove()
    assert backward_hooks.are_looked_at((1, leaf()))
    assert not backward_hooks.are_looked_at((torch.ones(2), [leaf()]))


def test_compiled_modules_are_known_and_lead_to_the_original():
    plain, wrapped = nn.Linear(2, 2), nn.Linear(2, 2)
    compiled, in_place = torch.compile(wrapped), nn.Linear(2, 2)
    in_place.compile()
    assert [internals.is_compiled(module) for module in (plain, compiled, in_place)] == [False, True, True]
    assert internals.eager(compiled) is wrapped
    assert internals.eager(plain) is plain


def test_a_layer_runs_on_another_weight_without_its_hooks():
    layer, weight, ran = nn.Linear(2, 2, bias=False), torch.eye(2, requires_grad=True), []
    before = layer.weight
    layer.register_forward_hook(lambda *_: ran.append(1))
    x = torch.ones(1, 2)
    output = internals.run_with_weight(layer, weight, x)
    assert torch.equal(output, x)
    assert output.requires_grad
    assert layer.weight is before
    assert ran == []


def test_operations_of_aten_have_a_schema_and_python_functions_none():
    assert traces.schema_of(torch.ops.aten.add_.Tensor).is_mutable
    assert not traces.schema_of(torch.ops.aten.add.Tensor).is_mutable
    assert traces.schema_of(len) is None


def test_the_body_of_attention_runs_under_a_function_mode_and_shows_what_is_inside():
    attention, x = nn.MultiheadAttention(4, 2), torch.randn(3, 1, 4)
    weights = attention.in_proj_weight, attention.in_proj_bias, None, None, False, 0.0
    given = x, x, x, 4, 2, *weights, attention.out_proj.weight, attention.out_proj.bias
    expected, _ = F.multi_head_attention_forward(*given)
    with Seen() as mode:
        output, _ = attention_body()(*given)
    assert torch.equal(output, expected)
    assert "multi_head_attention_forward" not in mode.names
    assert "linear" in mode.names


def test_an_active_function_mode_is_known_unless_it_is_off():
    assert not internals.is_mode_on()
    with Seen():
        assert internals.is_mode_on()
        with internals.modes_off():
            assert not internals.is_mode_on()


def test_operations_of_a_plain_subclass_give_plain_tensors():
    class Own(torch.Tensor):
        __torch_function__ = internals.plain_torch_function

    assert type(torch.ones(2).as_subclass(Own) + 1) is torch.Tensor


def test_all_hooks_of_a_module_are_listed():
    module, before, after = nn.Linear(2, 2), lambda *_: None, lambda *_: None
    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)
    assert internals.hooks_of(module) == [before, after]


def test_the_edge_behind_a_full_backward_hook_is_found():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.register_full_backward_hook(lambda *_: None)
    given = []
    second.register_forward_hook(lambda module, args, output: given.append((args[0].grad_fn, output.grad_fn)))
    x = first(torch.ones(1, 2))
    second(x)
    hooked, own = given[0]
    assert type(hooked) is backward_hooks.HOOKED_NODE
    assert backward_hooks.behind_hook((hooked, 0))[0] is x.grad_fn
    assert backward_hooks.behind_hook((own, 0)) is None


def test_tensors_in_a_trace_have_proxies_and_fills_are_known_by_their_nodes():
    found = []

    def function(x):
        filled = torch.full_like(x, 3.0).view(-1)
        found.append([traces.proxy_of(t) for t in (x, filled, constant)])
        found.append([readings.filled_with(proxy.proxy.node) for proxy in found[0][:2]])
        found.append(readings.number_in(filled))
        return x + filled.sum()

    constant = torch.ones(2)
    make_fx(function)(torch.ones(2))
    assert found[0][2] is None
    assert found[1:] == [[None, 3.0], 3.0]
    assert traces.proxy_of(constant) is None


def test_a_graph_for_any_size_knows_sizes_by_name_and_of_the_example():
    seen = []

    def function(x):
        seen.append((traces.is_fake(x), traces.has_symbolic_shape(x), traces.example_shape(x)))
        return x.sum(0) if x.shape[0] > 2 else x[0]

    graph, holds = traces.symbolic_graph_of(function, [torch.ones(4, 3)], [("batch", None)])
    assert seen == [(True, True, torch.Size([4, 3]))]
    assert graph(torch.ones(7, 3)).tolist() == [7.0] * 3
    assert holds({"batch": 5})
    assert not holds({"batch": 2})
    assert not traces.is_fake(torch.ones(1))


def test_values_that_a_trace_reads_are_recorded_until_they_change():
    weight, scale = torch.tensor([2.0]), torch.tensor([3.0])

    def function(x):
        with readings.values_of(scale):
            number = float(scale.sum())
        with readings.WatchingModels():
            return x * weight.item() * number

    with readings.noting_readings() as noted:
        graph = make_fx(function)(torch.ones(2))
    assert graph(torch.ones(2)).tolist() == [6.0, 6.0]
    assert {id(reading.tensor) for reading in noted.values()} == {id(weight), id(scale)}
    assert all(reading.holds() for reading in noted.values())
    weight.fill_(2.0)
    assert noted[id(weight)].holds()
    weight.fill_(5.0)
    assert not noted[id(weight)].holds()


def test_a_value_that_the_graph_computes_cannot_be_read():
    with pytest.raises(TraceError, match=r"the value of a tensor of shape \[2\] decides .* make it a number"):
        make_fx(lambda x: x * readings.number_in(x + 1))(torch.ones(2))


def test_what_changes_a_tensor_is_not_removed_with_what_nothing_uses():
    def function(x):
        y = x.clone()
        y[0].add_(1)
        x.sin()
        return y + x

    graph = traces.graph_of(function, [torch.ones(2, 2)])
    traces.remove_unused(graph.graph)
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert names == ["aten.clone.default", "aten.select.int", "aten.add_.Tensor", "aten.add.Tensor"]
