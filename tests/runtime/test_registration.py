"""Registrations from beginning to end: no trace is left, whatever happens in between."""

import copy
import gc
import io
import pickle
import threading

import pytest
import torch
from support import (
    FORMULATIONS,
    RULES,
    ZOO,
    Bang,
    Fn,
    Residual,
    assert_close,
    attribute,
    bang,
    both_formulations,
    exact,
    fingerprint,
    in_threads,
    input_times_gradient,
    label,
    linear,
    make,
    mlp,
    residual,
    x6,
)
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from lxt_compose import (
    Composite,
    Epsilon,
    Gamma,
    Identity,
    Norm,
    Pass,
    Registration,
    RegistrationError,
    RuleError,
    Stop,
    UncoveredError,
    Uniform,
    remove,
)
from lxt_compose.autograd import saved_values as saving

# ---- nothing is left -------------------------------------------------------------------------------------------------


@both_formulations
@pytest.mark.parametrize("name", ZOO)
def test_no_trace_and_the_same_values(name, formulation):
    """Fingerprint equal before and after; forward values bit-identical while the rules are on."""
    model, x = make(name)
    before, plain = fingerprint(model), model(x)
    with Composite(RULES, formulation=formulation).register(model) as registration:
        assert torch.equal(model(x.clone().requires_grad_()), plain)
        with torch.no_grad():
            assert torch.equal(model(x), plain)
        assert registration.report().complete
    assert fingerprint(model) == before
    assert torch.equal(model(x), plain)


def test_flags_of_every_kind_come_back(model):
    """Frozen and free parameters, shared ones, buffers, train and eval mode."""
    model.tied = nn.Linear(6, 3)
    model.tied.weight = model[2].weight
    model[0].fc1.requires_grad_(False)
    model[1].eval()
    model.register_buffer("extra", torch.ones(3))
    before = fingerprint(model)
    registration = Composite().register(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    registration.remove()
    assert fingerprint(model) == before


def test_parameters_that_are_exchanged_meanwhile_get_the_flags_back(model):
    """``load_state_dict(assign=True)`` puts new parameters in the places of the frozen ones, and freezes them too."""
    model[1].weight.requires_grad_(False)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with Composite().register(model):
        model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags


def test_the_context_manager_gives_the_registration(model):
    with Composite().register(model) as registration:
        assert isinstance(registration, Registration)
        assert registration.model is model


def test_registering_again_after_removal_works(model):
    composite = Composite(RULES)
    found = [attribute(model, x6(), composite) for _ in range(3)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


# ---- exceptions ------------------------------------------------------------------------------------------------------


def paths(model):
    return [name for name, _ in model.named_modules()]


BOUND = [{}, {"0": Epsilon()}, {"": Epsilon()}, {nn.Linear: Gamma(), nn.LayerNorm: Norm()}]


@pytest.mark.parametrize("rules", BOUND, ids=label)
@pytest.mark.parametrize("prepend", [True, False])
@pytest.mark.parametrize("registered", ["before", "after"])
@pytest.mark.parametrize("kind", ["pre", "post"])
def test_exceptions_in_users_hooks(kind, registered, prepend, rules):
    """A hook of the user's that raises, on any module, in front of ours or behind them, leaves nothing behind."""
    torch.manual_seed(0)
    model = nn.Sequential(Residual(6), nn.LayerNorm(6), nn.Linear(6, 3)).double()
    expected = attribute(model, x6(), Composite(rules))
    for path in paths(model):
        before, composite = fingerprint(model), Composite(rules)
        module = model.get_submodule(path)
        add = module.register_forward_pre_hook if kind == "pre" else module.register_forward_hook
        handle = add(bang, prepend=prepend) if registered == "before" else None
        with composite.register(model):
            handle = handle or add(bang, prepend=prepend)
            for _ in range(2):
                with pytest.raises(Bang):
                    model(x6().requires_grad_())
                assert _get_current_function_mode_stack() == []
            handle.remove()
            x = x6().requires_grad_()  # the registration still works
            y = model(x)
            y.backward(y.detach())
            assert torch.equal(x.grad, expected)
        assert fingerprint(model) == before


@pytest.mark.parametrize("rules", BOUND, ids=label)
@pytest.mark.parametrize("error", [Bang, KeyboardInterrupt, SystemExit])
def test_exceptions_in_the_models_forward(error, rules):
    """An error anywhere in the model, an interrupt too (which passes all hooks by), leaves nothing behind."""

    def fail(self, x):
        if self.broken:
            raise error
        return self.inner(x)

    part = Fn(fail, inner=linear())
    model = nn.Sequential(nn.Sequential(linear(), part), nn.LayerNorm(6).double(), linear())
    part.broken = False
    expected = attribute(model, x6(), Composite(rules))
    before = fingerprint(model)
    with Composite(rules).register(model):
        for _ in range(2):
            part.broken = True
            before_interrupt = fingerprint(model)
            with pytest.raises(error):
                model(x6().requires_grad_())
            if error is Bang:
                assert fingerprint(model)["modes"] == before_interrupt["modes"] == 0
            part.broken = False
            x = x6().requires_grad_()
            y = model(x)
            y.backward(y.detach())
            assert torch.equal(x.grad, expected)
    assert fingerprint(model) == {**before}


@pytest.mark.parametrize("rules", BOUND, ids=label)
def test_after_an_interrupt_torch_is_itself_again(rules):
    """Even before remove(): operations outside the model are not touched by rules that an interrupt left behind."""
    part = Fn(lambda self, x: bang_interrupt())
    model = nn.Sequential(nn.Sequential(linear(), part), linear())
    registration = Composite({key: rule for key, rule in rules.items() if key != "0"}).register(model)
    with pytest.raises(KeyboardInterrupt):
        model(x6().requires_grad_())
    x = x6().requires_grad_()
    (x.sigmoid() * x).sum().backward()
    assert_close(x.grad, (x.sigmoid() + x * x.sigmoid() * (1 - x.sigmoid())).detach())
    registration.remove()
    assert _get_current_function_mode_stack() == []


def bang_interrupt():
    raise KeyboardInterrupt


def test_an_interrupt_under_a_mode_of_the_callers():
    """A function mode of the caller's own is not taken for ours: it is still there afterwards."""

    class Other(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    model = Fn(lambda self, x: self.part(x), part=Fn(lambda self, x: bang_interrupt() if self.training else x * 2.0))
    registration = Composite().register(model)
    with pytest.raises(KeyboardInterrupt):
        model(x6().requires_grad_())
    with Other() as other:
        model.eval()
        model(x6().requires_grad_())
        assert _get_current_function_mode_stack()[-1] is other
    registration.remove()


def test_an_interrupt_that_the_model_catches():
    """The modules that it ended are forgotten; the rest of the forward pass has its rules."""

    def forward(self, x):
        try:
            self.bad(x)
        except KeyboardInterrupt:
            x = x * 1.0
        return self.good(x) + x

    model = Fn(forward, bad=nn.Sequential(Fn(lambda self, x: bang_interrupt())), good=linear())
    for formulation in FORMULATIONS:
        composite = Composite({"bad": Epsilon(), nn.Linear: Gamma()}, formulation=formulation)
        plain = Composite({nn.Linear: Gamma()}, formulation=formulation)
        expected = attribute(Fn(lambda self, x: self.good(x * 1.0) + x * 1.0, good=model.good), x6(), plain)
        assert_close(attribute(model, x6(), composite), expected)


@pytest.mark.parametrize("rule", [Uniform(), Identity(), Pass()], ids=label)
def test_an_error_in_a_rule(rule):
    """A rule that does not fit what it meets raises, names the module, and leaves nothing behind."""
    model = nn.Sequential(linear(), Fn(lambda self, x: (x, x * 2.0)))
    before = fingerprint(model)
    with pytest.raises(RuleError, match=r"'1' \(Fn\) has 2"), Composite({"1": rule}).register(model):
        model(x6().requires_grad_())
    assert fingerprint(model) == before


def test_an_error_in_a_function_rule(model):
    before = fingerprint(model)
    with pytest.raises(RuleError, match="got 2 inputs that carry relevance"):
        attribute(model, x6(), Composite({torch.add: Pass()}))
    assert fingerprint(model) == before


def test_strict_raises_in_forward_and_leaves_nothing(model):
    model.append(Fn(lambda self, x: torch.atan2(x, x * x)))
    before = fingerprint(model)
    with (
        pytest.raises(UncoveredError, match=r"atan2 in '3' carries relevance.*\{'3': Epsilon\(\)\}"),
        Composite(strict=True).register(model),
    ):
        model(x6().requires_grad_())
    assert fingerprint(model) == before


# ---- all or nothing --------------------------------------------------------------------------------------------------


def steps_of_registration(model):
    """How often the installation calls each function that changes the model."""
    counts = {}
    for target, name in STEPS:
        with failing(target, name, at=None) as calls:
            Composite(RULES).register(model).remove()
        counts[target, name] = len(calls)
    return counts


STEPS = [
    (nn.Module, "register_forward_hook"),
    (nn.Module, "register_forward_pre_hook"),
    (torch.Tensor, "requires_grad_"),
]


class failing:
    """While it lasts, call number `at` of a function raises."""

    def __init__(self, target, name, at):
        self.target, self.name, self.at, self.calls = target, name, at, []

    def __enter__(self):
        self.original = getattr(self.target, self.name)

        def function(*args, **kwargs):
            self.calls.append(None)
            if len(self.calls) - 1 == self.at:
                raise Bang
            return self.original(*args, **kwargs)

        setattr(self.target, self.name, function)
        return self.calls

    def __exit__(self, *_):
        setattr(self.target, self.name, self.original)


def test_registration_is_all_or_nothing(model):
    """A failure at any step of the installation rolls back all steps before it."""
    before, counts = fingerprint(model), steps_of_registration(model)
    modules = len(list(model.modules()))
    assert counts[STEPS[0]] == counts[STEPS[1]] == modules
    for step, count in counts.items():
        half = count // 2 if step[1] == "requires_grad_" else count  # the second half restores the flags
        for at in range(half):
            with failing(*step, at=at), pytest.raises(Bang):
                Composite(RULES).register(model)
            assert fingerprint(model) == before
    Composite(RULES).register(model).remove()


def test_errors_of_matching_change_nothing(model):
    before = fingerprint(model)
    for rules in ({"nowhere": Epsilon()}, {nn.ReLU: Gamma()}):
        with pytest.raises(Exception, match=r"nowhere|Gamma"):
            Composite({nn.Linear: Epsilon(), **rules}).register(model)
        assert fingerprint(model) == before
    with pytest.raises(RuleError, match=r"needs formulation='relevance'"):
        Composite({nn.Linear: Uniform()}, formulation="gradient").register(model)
    assert fingerprint(model) == before
    with pytest.raises(TypeError, match=r"register\(\) takes a torch.nn.Module, got .* of type function"):
        Composite().register(bang)


# ---- removal ---------------------------------------------------------------------------------------------------------


def test_an_error_in_the_backward_pass(model):
    """A hook on a tensor that raises during backward: the registration goes on."""
    before, expected = fingerprint(model), attribute(model, x6(), Composite(RULES))
    with Composite(RULES).register(model):
        x = x6().requires_grad_()
        x.register_hook(bang)
        with pytest.raises(Bang):
            model(x).sum().backward()
        x = x6().requires_grad_()
        y = model(x)
        y.backward(y.detach())
    assert torch.equal(x.grad, expected)
    assert fingerprint(model) == before


def test_remove_any_number_of_times(model):
    before = fingerprint(model)
    registration = Composite(RULES).register(model)
    for _ in range(3):
        registration.remove()
        assert fingerprint(model) == before
    with pytest.raises(RegistrationError, match="this registration was removed; register the composite"), registration:
        pass
    assert fingerprint(model) == before


def test_an_old_registration_does_not_remove_a_new_one(model):
    old = Composite().register(model)
    old.remove()
    with Composite({nn.Linear: Stop()}).register(model):
        old.remove()
        x = x6().requires_grad_()
        model(x).sum().backward()
        assert x.grad.count_nonzero() == 0


@pytest.mark.parametrize("rules", [{}, {"0": Epsilon()}], ids=label)
@pytest.mark.parametrize("where", ["pre", "post", "forward"])
def test_remove_during_forward(model, where, rules):
    """remove() works at once, in the midst of a forward pass too, and the forward pass goes on with the same values."""
    before, plain = fingerprint(model), model(x6())
    registration = Composite(rules).register(model)
    act = model[0].act
    if where == "forward":
        model.insert(1, Fn(lambda self, x: registration.remove() or x))
    handle = {
        "pre": lambda: act.register_forward_pre_hook(lambda *_: registration.remove()),
        "post": lambda: act.register_forward_hook(lambda *_: registration.remove()),
        "forward": lambda: None,
    }[where]()
    assert torch.equal(model(x6().requires_grad_()), plain)
    assert _get_current_function_mode_stack() == []
    if handle is not None:
        handle.remove()
        assert fingerprint(model) == before
    Composite().register(model).remove()


def test_backward_after_removal(model):
    """The graph of a forward pass keeps its rules."""
    expected = attribute(model, x6(), Composite(RULES))
    x = x6().requires_grad_()
    with Composite(RULES).register(model):
        y = model(x)
    y.backward(y.detach())
    assert torch.equal(x.grad, expected)


# ---- a second registration -------------------------------------------------------------------------------------------


def test_a_second_registration_raises(model):
    """On the same model, a child, or a parent."""
    parent = nn.Sequential(model, nn.Linear(3, 3))
    with Composite().register(model):
        during = fingerprint(parent)
        names = {model: "Sequential", model[0]: "Residual", model[0].fc1: "Linear", parent: "'0' in Sequential"}
        for other, name in names.items():
            with pytest.raises(
                RegistrationError, match=rf"^{name} has a composite registered already; call remove\(\)"
            ):
                Composite().register(other)
            assert fingerprint(parent) == during
    Composite().register(parent).remove()


def test_a_lost_registration_is_taken_off_by_the_model(model):
    """Of the model, of a part of it, of a parent; what has none is left alone."""
    parent, before = nn.Sequential(model, nn.Linear(3, 3)), fingerprint(model)
    for part in (model, model[0].fc1, parent):
        Composite().register(model)
        remove(part)
        assert fingerprint(model) == before
        remove(part)
    registrations = [Composite().register(child) for child in parent]
    remove(parent)
    assert fingerprint(model) == before
    assert not any(registration.active for registration in registrations)
    with pytest.raises(TypeError, match=r"remove\(\) takes a torch.nn.Module, got 3 of type int"):
        remove(3)


def test_a_module_shared_with_a_registered_model_is_refused(model):
    other = nn.Sequential(linear(), model[0])
    with Composite().register(other), pytest.raises(RegistrationError, match="'0' in Sequential has a composite"):
        Composite().register(model)
    assert all(parameter.requires_grad for parameter in (*model.parameters(), *other.parameters()))


# ---- copies ----------------------------------------------------------------------------------------------------------


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_torch_save(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_torch_save])
def test_copies_of_a_registered_model(copied):
    """A copy has its own weights and the flags from before, works without rules, and can be registered itself."""
    model = residual()
    model[0].fc1.weight.requires_grad_(False)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    composite, x = Composite({nn.Linear: Gamma()}), x6()
    plain, expected = input_times_gradient(model, x), attribute(model, x, composite)
    with composite.register(model):
        model(x.clone().requires_grad_())
        twin = copied(model)
        assert {name: parameter.requires_grad for name, parameter in twin.named_parameters()} == flags
        assert_close(input_times_gradient(twin, x), plain, 0)
        swept = copied(model)
        remove(swept)
        for clean in (twin, swept):  # by its first call, and without one
            kept = [value for m in clean.modules() for name, value in vars(m).items() if "hooks" in name and value]
            assert not kept
        with composite.register(twin):
            pass
        assert torch.equal(attribute(twin, x, composite), expected)
        with torch.no_grad():
            twin[0].fc1.weight.zero_()
        assert torch.equal(model(x.clone().requires_grad_()), model(x.clone().requires_grad_()))
        assert model[0].fc1.weight.count_nonzero() > 0
    assert torch.equal(attribute(model, x, composite), expected)
    assert type(twin) is type(model)


def test_a_copy_of_a_part_of_a_registered_model(model):
    with Composite({nn.Linear: Stop()}).register(model):
        part = copy.deepcopy(model[0])
    assert all(parameter.requires_grad for parameter in part.parameters())
    assert_close(input_times_gradient(part, x6()), input_times_gradient(model[0], x6()), 0)


def test_a_copy_made_during_forward():
    """A model that copies a part of itself in its forward pass (as an exponential average does) copies no rules."""
    made = []
    model = Fn(lambda self, x: made.append(copy.deepcopy(self.part)) or self.part(x), part=mlp())
    with Composite({nn.Linear: Stop()}).register(model):
        model(x6().requires_grad_())
    assert_close(input_times_gradient(made[0], x6()), input_times_gradient(model.part, x6()), 0)


# ---- threads ---------------------------------------------------------------------------------------------------------


def test_two_threads_two_models():
    """Each thread has its own rules, at the same time."""
    composites = [Composite({nn.Linear: Gamma()}), Composite({nn.Linear: Epsilon()}, formulation="gradient")]
    models = [make("residual", seed)[0] for seed in (0, 1)]
    expected = [attribute(model, x6(), composite) for model, composite in zip(models, composites, strict=True)]
    barrier = threading.Barrier(2)

    def run(index):
        for _ in range(10):
            barrier.wait()
            found = attribute(models[index], x6(), composites[index])
            assert torch.equal(found, expected[index])

    in_threads([lambda: run(0), lambda: run(1)])


@both_formulations
def test_two_threads_one_model(formulation):
    """One registration, several threads: relevance is right in each, and all calls are counted somewhere."""
    model, _ = make("residual")
    before, composite = fingerprint(model), Composite({nn.Linear: Gamma()}, formulation=formulation)
    inputs = [x6(seed=seed) for seed in range(3)]
    expected = [attribute(model, x, composite) for x in inputs]
    with composite.register(model):

        def run(x, expected):
            for _ in range(10):
                leaf = x.clone().requires_grad_()
                y = model(leaf)
                y.backward(y.detach() if formulation == "relevance" else torch.ones_like(y))
                assert torch.equal(leaf.grad if formulation == "relevance" else x * leaf.grad, expected)
            assert _get_current_function_mode_stack() == []

        in_threads([lambda i=i: run(inputs[i], expected[i]) for i in range(3)])
    assert fingerprint(model) == before


def test_another_thread_is_not_touched():
    """The rules act on the model, not on torch: what another thread does meanwhile is plain."""
    model, seen = mlp(), []

    def elsewhere():
        x = x6().requires_grad_()
        (x.sigmoid() + x).sum().backward()
        seen.append(x.grad)

    model.act.register_forward_hook(lambda *_: in_threads([elsewhere]))
    with Composite().register(model):
        model(x6().requires_grad_())
    s = x6().sigmoid()
    assert_close(seen[0], 1 + s * (1 - s))


def test_remove_from_another_thread(model):
    """The thread whose forward pass is under way ends it with the same values, and is itself afterwards."""
    plain, registration = model(x6()), Composite(RULES).register(model)
    handle = model[0].act.register_forward_hook(lambda *_: in_threads([registration.remove]))
    assert torch.equal(model(x6().requires_grad_()), plain)
    handle.remove()
    x = x6().requires_grad_()
    x.sigmoid().sum().backward()
    assert_close(x.grad, (x.sigmoid() * (1 - x.sigmoid())).detach())
    registration.remove()  # here too, so that the function mode goes from this thread


# ---- recursion -------------------------------------------------------------------------------------------------------


class Recursive(nn.Module):
    """A module that calls itself."""

    def __init__(self):
        super().__init__()
        self.layer = linear()

    def forward(self, x, depth=3):
        x = torch.relu(self.layer(x))
        return x if depth == 0 else x + self(x, depth=depth - 1)


@both_formulations
@pytest.mark.parametrize("rules", [[], [(Recursive, Epsilon(1e-12))], [("inner.layer", Epsilon(1e-12))]], ids=label)
def test_a_module_that_calls_itself(rules, formulation):
    model = Fn(lambda self, x: self.inner(x), inner=Recursive())
    composite = exact(formulation, rules)
    assert_close(attribute(model, x6(), composite, 0), input_times_gradient(model, x6(), 0))


def test_a_recursive_module_that_catches_the_error_of_a_hook():
    """A hook that fails in the inner call, before ours began there, does not end the outer one."""

    class Careful(Recursive):
        def forward(self, x, depth=1):
            x = self.layer(x)
            try:
                return x + self(x, depth=depth - 1)
            except Bang:
                return torch.relu(x) + x

    def only_inside(module, args, kwargs):
        if kwargs:
            raise Bang

    model = Careful()
    handle = model.register_forward_pre_hook(only_inside, with_kwargs=True)
    for formulation in FORMULATIONS:
        for rules in ([], [(Careful, Epsilon(1e-12))]):
            found = attribute(model, x6(), exact(formulation, rules), 0)
            assert_close(found, input_times_gradient(model, x6(), 0))
    handle.remove()


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_ten_thousand_registrations_leave_memory_flat():
    model, composite = nn.Sequential(nn.Linear(1, 1)), Composite({nn.Linear: Epsilon()})

    def cycles(count):
        for _ in range(count):
            composite.register(model).remove()
        gc.collect()
        return len(gc.get_objects())

    cycles(100)
    first = cycles(1000)
    assert cycles(9000) - first < 50


def test_forward_passes_leave_memory_flat():
    """Neither a registration nor the notes on saved tensors grow with the number of forward passes."""
    model, x = make("cnn")
    tensors, notes = [], []
    with Composite(RULES).register(model):
        for _ in range(6):
            for _ in range(5):
                leaf = x.clone().requires_grad_()
                y = model(leaf)
                y.backward(y.detach())
            del leaf, y
            gc.collect()
            tensors.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
            notes.append(sum(node() is not None for node in saving._threads.notes))
    assert len(set(tensors[1:])) == 1
    assert len(set(notes)) == 1


def written_into_a_constant(self, x):
    h = torch.zeros_like(x)
    h.add_(self.layer(x))
    return self.layer(h)


def changed_on_a_view(self, x):
    h = self.layer(x)
    h[1:].relu_()
    return self.layer(h) + x


GRAPHS = {
    "a constant written into": written_into_a_constant,
    "a view changed": changed_on_a_view,
    "a checkpoint": lambda self, x: checkpoint(self.layer, checkpoint(self.layer, x, use_reentrant=False) * 1.0,
                                               use_reentrant=True),
    "a product with itself": lambda self, x: (h := self.layer(x)) * h,
}  # fmt: skip


@pytest.mark.parametrize("rules", [{}, {nn.Linear: Gamma()}, {"": Epsilon()}], ids=label)
@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_are_freed_without_a_backward_pass(name, rules):
    """Nothing that a rule saves refers to itself in a circle, and no registration keeps a graph alive."""
    model = Fn(GRAPHS[name], layer=linear())

    def nodes():
        gc.collect()
        return sum(type(thing).__name__ in RELEVANCE_NODES for thing in gc.get_objects())

    before = nodes()
    with Composite(rules).register(model) as registration:
        y = model(x6().requires_grad_())
        if rules != {"": Epsilon()}:
            assert nodes() > before
        del y
        assert nodes() == before
    del registration
    assert nodes() == before


RELEVANCE_NODES = {
    f"{name}Backward" for name in ("TimesInput", "OverOutput", "Bypass", "BypassOwn", "Share", "Rebind", "Absolute")
}
