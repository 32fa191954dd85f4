"""Autograd functions of the model's own: registered ones have the default of their family, and can be keys."""

import threading
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lxt_compose import (
    AttributionError,
    Composite,
    Epsilon,
    Family,
    Gamma,
    Identity,
    RegistrationError,
    attribute,
    default_rules,
    register_operation,
)
from lxt_compose.ops import Traits
from lxt_compose.ops.registry import _BY_NAME, _BY_OBJECT, store
from lxt_compose.runtime import custom_functions

FORMULATIONS = ("relevance", "gradient")


@pytest.fixture(autouse=True)
def _forgotten():
    objects, names = dict(_BY_OBJECT), dict(_BY_NAME)
    yield
    for kept, before in ((_BY_OBJECT, objects), (_BY_NAME, names)):
        kept.clear()
        kept.update(before)


def matrix_product():
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(weight)
            return x @ weight.T

        @staticmethod
        def backward(ctx, slot):
            return slot @ ctx.saved_tensors[0], None

    return Product


def squashing():
    class Squash(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.tanh(x)

        @staticmethod
        def backward(ctx, slot):
            return slot * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)

    return Squash


def turning():
    class Turn(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.flip(-1)

        @staticmethod
        def backward(ctx, slot):
            return slot.flip(-1)

    return Turn


class Net(nn.Module):
    def __init__(self, function, *args):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4).double(), nn.Linear(4, 3).double()
        self.function, self.args = function, args

    def forward(self, x):
        return self.last(self.function(self.first(x), *self.args))


def explained(model, composite):
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with composite.register(model) as registration, registration.ledger() as ledger:
        y = model(x)
        y.backward(y.detach() if composite.formulation == "relevance" else torch.ones_like(y))
    return y.detach(), x.grad, registration.report(), ledger


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize(
    ("make", "family", "same"),
    [
        (turning, Family.MOVEMENT, lambda x: x.flip(-1)),
        (squashing, Family.ACTIVATION, torch.tanh),
    ],
)
def test_a_registered_function_is_explained_as_the_operation_of_torch(make, family, same, formulation):
    function = make()
    register_operation(function, family)
    torch.manual_seed(0)
    model = Net(lambda x: function.apply(x))
    y, relevance, report, ledger = explained(model, Composite(formulation=formulation))
    assert report.complete, str(report)
    assert ledger.unaccounted < 1e-9
    assert ".apply" in str(report)
    model.function = same
    y_same, right, *_ = explained(model, Composite(formulation=formulation))
    assert torch.equal(y, y_same)
    torch.testing.assert_close(relevance, right)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("rules", [{}, {nn.Linear: Gamma(0.25), F.linear: Gamma(0.25)}])
def test_a_registered_linear_function_with_steps_is_a_layer(rules, formulation):
    function = matrix_product()
    register_operation(function, Family.LINEAR, steps=F.linear)
    torch.manual_seed(0)
    weight = torch.randn(4, 4, dtype=torch.float64)
    model = Net(lambda x, w: function.apply(x, w), weight)
    y, relevance, report, ledger = explained(model, Composite(rules, formulation=formulation))
    assert report.complete, str(report)
    assert ledger.unaccounted < 1e-9
    model.function = F.linear
    y_same, right, *_ = explained(model, Composite(rules, formulation=formulation))
    torch.testing.assert_close(y, y_same)
    torch.testing.assert_close(relevance, right)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_function_that_is_not_registered_is_uncovered_until_it_is_a_key(formulation):
    function = squashing()
    torch.manual_seed(0)
    model = Net(lambda x: function.apply(x))
    *_, report, _ = explained(model, Composite(formulation=formulation))
    assert not report.complete
    assert "Squash.apply" in str(report)
    _, relevance, report, _ = explained(model, Composite({function: Identity()}, formulation=formulation))
    assert report.complete, str(report)
    model.function = torch.tanh
    torch.testing.assert_close(relevance, explained(model, Composite(formulation=formulation))[1])


def test_apply_is_what_it_was_once_the_registrations_are_removed():
    class Own(turning()):
        @classmethod
        def apply(cls, *args):
            return super().apply(*args)

    plain = turning()
    own = vars(Own)["apply"]
    register_operation(plain, Family.MOVEMENT)
    register_operation(Own, Family.MOVEMENT)
    first, second = Composite().register(nn.Linear(2, 2)), Composite().register(nn.Linear(2, 2))
    assert "apply" in vars(plain)
    first.remove()
    assert "apply" in vars(plain)
    second.remove()
    assert "apply" not in vars(plain)
    assert vars(Own)["apply"] is own


def test_a_class_derived_from_a_registered_one_is_not_taken_for_it():
    base = turning()
    register_operation(base, Family.MOVEMENT)

    class Derived(base):
        @staticmethod
        def forward(ctx, x):
            return x.flip(-1) * 2

    with Composite().register(nn.Linear(2, 2)):
        x = torch.randn(3, requires_grad=True)
        assert type(Derived.apply(x).grad_fn).__name__ == "DerivedBackward"


def test_other_threads_and_models_without_a_registration_are_not_affected():
    function = turning()
    register_operation(function, Family.MOVEMENT)
    x, found = torch.randn(3, requires_grad=True), []
    with Composite().register(nn.Linear(2, 2)):
        thread = threading.Thread(target=lambda: found.append(function.apply(x)))
        thread.start()
        thread.join()
    assert torch.equal(found[0], x.flip(-1))


def test_an_autograd_function_is_known_by_its_dotted_name():
    function = turning()
    store(f"{__name__}.Turn", register_operation(f"{__name__}.Turn", Family.MOVEMENT))
    function.__qualname__ = "Turn"
    globals()["Turn"] = function
    try:
        torch.manual_seed(0)
        assert explained(Net(lambda x: function.apply(x)), Composite())[2].complete
    finally:
        del globals()["Turn"]


def test_a_rule_that_finds_no_weight_is_bound_to_an_autograd_function_and_says_so():
    function = matrix_product()
    model = Net(lambda x, w: function.apply(x, w), torch.eye(4, dtype=torch.float64))
    _, relevance, report, _ = explained(model, Composite({function: Epsilon(1e-9)}))
    assert report.complete, str(report)
    assert torch.isfinite(relevance).all()


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("registered", [True, False])
def test_an_apply_that_was_taken_from_its_class_before_is_seen(registered, formulation):
    """As libraries write it: ``squash = Squash.apply``, once, where the module is imported or made."""
    function = squashing()
    alias = function.apply
    if registered:
        register_operation(function, Family.ACTIVATION)
    torch.manual_seed(0)
    model = Net(alias)
    rules = {} if registered else {function: Identity()}
    y, relevance, report, ledger = explained(model, Composite(rules, formulation=formulation))
    assert report.complete, str(report)
    assert ledger.unaccounted < 1e-9
    model.function = torch.tanh
    y_same, right, *_ = explained(model, Composite(formulation=formulation))
    assert torch.equal(y, y_same)
    torch.testing.assert_close(relevance, right)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_an_apply_under_a_mode_of_the_model_itself_is_seen(formulation):
    """The model's own mode is inside of ours: it is given the call first, and hands it on."""
    function = squashing()
    register_operation(function, Family.ACTIVATION)
    seen = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    def under_watch(x):
        with Watch():
            return function.apply(x)

    torch.manual_seed(0)
    model = Net(under_watch)
    y, relevance, report, ledger = explained(model, Composite(formulation=formulation))
    assert report.complete, str(report)
    assert len(seen) == 1
    assert ledger.unaccounted < 1e-9
    model.function = torch.tanh
    y_same, right, *_ = explained(model, Composite(formulation=formulation))
    assert torch.equal(y, y_same)
    torch.testing.assert_close(relevance, right)


def test_a_function_that_calls_itself_is_seen_once_from_outside():
    """Its inner call is another one, which runs without gradients inside of its own forward."""
    calls = []

    class Nested(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, depth):
            calls.append(depth)
            return Nested.apply(x, depth - 1) if depth else x * 2

        @staticmethod
        def backward(ctx, slot):
            return slot * 2, None

    register_operation(Nested, Family.LINEAR)
    alias = Nested.apply
    with Composite().register(Net(alias, 1)) as registration:
        registration.model(torch.randn(2, 4, dtype=torch.float64).requires_grad_())
    assert calls == [1, 0]
    assert next(row for row in registration.report().rows if "Nested" in row.target).calls == 1


def test_where_calls_of_functions_end_is_as_it_was_afterwards():
    end = torch.autograd.Function.__mro__[1]
    before = dict(vars(end))
    register_operation(turning(), Family.MOVEMENT)
    first, second = Composite().register(nn.Linear(2, 2)), Composite().register(nn.Linear(2, 2))
    assert "apply" in vars(end)
    first.remove()
    assert "apply" in vars(end)
    second.remove()
    assert dict(vars(end)) == before


def test_a_registration_that_ends_while_another_begins_does_not_wait_for_it():
    """As one does that is collected as garbage just then, in the same thread."""
    plain = turning()
    register_operation(plain, Family.MOVEMENT)
    registration = Composite().register(nn.Linear(2, 2))
    with custom_functions._LOCK:
        ending = threading.Thread(target=registration.remove)
        ending.start()
        ending.join(10)
        assert not ending.is_alive()
    Composite().register(nn.Linear(2, 2)).remove()
    assert "apply" not in vars(plain)


def shifted_softmax():
    """Subtracts the maximum in place, before anything else, as sparsemax in libraries does."""

    class Shifted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            x -= x.max(-1, keepdim=True)[0]
            p = x.softmax(-1)
            ctx.save_for_backward(p)
            return p

        @staticmethod
        def backward(ctx, slot):
            (p,) = ctx.saved_tensors
            return p * (slot - (slot * p).sum(-1, keepdim=True))

    return Shifted


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_function_that_changes_its_input_in_place_spoils_nothing(formulation):
    function = shifted_softmax()
    register_operation(function, Family.SOFTMAX, traits=Traits(spoils_inputs=True))
    torch.manual_seed(0)
    model = Net(lambda x: function.apply(x * 3))
    y, relevance, report, ledger = explained(model, Composite(formulation=formulation))
    assert report.complete, str(report)
    assert ledger.unaccounted < 1e-9
    model.function = lambda x: (x * 3).softmax(-1)
    y_same, right, *_ = explained(model, Composite(formulation=formulation))
    torch.testing.assert_close(y, y_same)
    torch.testing.assert_close(relevance, right)


LIBRARY = torch.library.Library("sampling_tests", "DEF")
LIBRARY.define("sampled(Tensor x, Tensor where, Tensor weight, Tensor? bias) -> Tensor")


def at(x, where, weight, bias):
    """What lies at fractional places of each row, weighted: differentiable in the places too."""
    left = where.detach().floor().long().clamp(0, x.shape[-1] - 2)
    part = where - left
    found = x.gather(-1, left) * (1 - part) + x.gather(-1, left + 1) * part
    return F.linear(found, weight, bias)


LIBRARY.impl("sampled", at, "CompositeImplicitAutograd")


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_arguments_that_are_held_get_nothing_and_biases_keep_their_share(formulation):
    """As deformable convolutions and pooled regions have it: where to sample is a constant."""

    class Sampling(Net):
        def forward(self, x):
            h, where = self.first(x), self.last(x).sigmoid() * 3
            where = where.detach() if self.args[0] else where
            return self.function(h, where, torch.eye(3).double() * 2, torch.ones(3).double())

    register_operation(
        torch.ops.sampling_tests.sampled, Family.CONTRACTION, held=(1, "where"), bias=(3, "bias"), name="sampled"
    )
    exact = Composite(formulation=formulation, defaults=default_rules(formulation, epsilon=0.0))
    torch.manual_seed(0)
    model = Sampling(torch.ops.sampling_tests.sampled, False)
    y, relevance, report, ledger = explained(model, exact)
    assert report.complete, str(report)
    assert ledger.unaccounted < 1e-9
    model.function, model.args = at, (True,)
    y_same, right, _, other = explained(model, exact)
    torch.testing.assert_close(y, y_same)
    torch.testing.assert_close(relevance, right)
    torch.testing.assert_close(ledger.absorbed["bias"], other.absorbed["bias"])


class InPlaceTanh(torch.autograd.Function):
    """Changes its input where it is asked to, and saves what it has put out."""

    @staticmethod
    def forward(ctx, x, inplace=True):
        if inplace:
            ctx.mark_dirty(x)
        y = x.tanh_() if inplace else x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, slot):
        return slot * (1 - ctx.saved_tensors[0] ** 2), None


class InPlaceScaled(torch.autograd.Function):
    """Changes the second of two inputs, and returns another result before it."""

    @staticmethod
    def forward(ctx, weight, x):
        ctx.save_for_backward(weight)
        before = x.flip(-1)
        ctx.mark_dirty(x)
        return before, x.mul_(weight)

    @staticmethod
    def backward(ctx, before, slot):
        return None, before.flip(-1) + slot * ctx.saved_tensors[0]


def _of_a_part(x):
    x = x * 1
    InPlaceTanh.apply(x[:, 1:])
    return x


def _used_before(x):
    x = x * 1
    y = x.sin()
    return y + InPlaceTanh.apply(x)


def _of_a_layer(x):
    assert InPlaceTanh.apply(x) is x
    return x


WEIGHT = torch.linspace(-1, 2, 4, dtype=torch.float64)
IN_PLACE = {
    "of a layer's output": (_of_a_layer, torch.tanh),
    "of a part": (_of_a_part, lambda x: torch.cat([x[:, :1], x[:, 1:].tanh()], 1)),
    "after another use": (_used_before, lambda x: x.sin() + x.tanh()),
    "as it is asked": (lambda x: InPlaceTanh.apply(x * 1, False), torch.tanh),
    "second of two": (lambda x: sum(InPlaceScaled.apply(WEIGHT, x)), lambda x: x.flip(-1) + x * WEIGHT),
}


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("kind", IN_PLACE)
def test_a_function_that_marks_its_input_as_dirty_is_the_operation_that_makes_a_new_tensor(kind, formulation):
    register_operation(InPlaceTanh, Family.ACTIVATION)
    register_operation(InPlaceScaled, Family.LINEAR)
    function, same = IN_PLACE[kind]
    torch.manual_seed(0)
    model = Net(function)
    y, relevance, report, ledger = explained(model, Composite(formulation=formulation))
    assert report.complete, str(report)
    assert ledger.unaccounted < 1e-9
    model.function = same
    y_same, right, *_ = explained(model, Composite(formulation=formulation))
    torch.testing.assert_close(y, y_same)
    torch.testing.assert_close(relevance, right, rtol=1e-3, atol=1e-5)  # stabilizers of the steps in between


def test_apply_stands_for_its_function():
    function = matrix_product()
    register_operation(function.apply, Family.LINEAR)
    assert function in _BY_OBJECT
    other, weight = matrix_product(), torch.randn(4, 4, dtype=torch.float64)
    *_, report, _ = explained(Net(other.apply, weight), Composite({other.apply: Epsilon()}))
    assert report.complete, str(report)


@pytest.mark.parametrize("what", [nn.Linear, nn.Linear(2, 2), lambda x: x], ids=["class", "module", "function"])
def test_what_no_mode_sees_cannot_be_registered(what):
    with pytest.raises(TypeError, match="are not seen, but those of what it calls are"):
        register_operation(what, Family.LINEAR)


@pytest.mark.parametrize("wrong", [{"bias": 2}, {"bias": (2,)}, {"bias": ("bias", 2)}, {"held": [None]}], ids=str)
def test_arguments_are_named_by_position_and_keyword(wrong):
    with pytest.raises(TypeError, match=r"such as (bias=\(2, 'bias'\)|held=\(1, 'mask'\))"):
        register_operation(matrix_product(), Family.LINEAR, **wrong)


STEPS = {
    "other arguments": (lambda x: x, r"the steps of Product.apply, in the model itself, failed.*2 were given"),
    "other shapes": (
        lambda x, weight: x.T,
        r"compute tensors of the shapes \[\(4, 5\)\] where it computes \[\(5, 4\)\]",
    ),
}


@pytest.mark.parametrize("kind", STEPS)
def test_steps_that_do_not_fit_are_named(kind):
    steps, told = STEPS[kind]
    function = matrix_product()
    register_operation(function, Family.LINEAR, steps=steps)
    with pytest.raises(RegistrationError, match=told):
        explained(Net(function.apply, torch.eye(4, dtype=torch.float64)), Composite())


def test_steps_that_compute_something_else_warn_once():
    function, weight = matrix_product(), torch.eye(4, dtype=torch.float64)
    register_operation(function, Family.LINEAR, steps=lambda x, weight: x @ weight * 2)
    with pytest.warns(UserWarning, match=r"the steps of Product.apply.*numbers differ by 100%, and relevance is"):
        explained(Net(function.apply, weight), Composite())
    register_operation(function, Family.LINEAR, steps=lambda x, weight: x @ weight.T * 1.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explained(Net(function.apply, weight), Composite())


def test_a_backward_that_is_not_there_is_told_how_to_get_one():
    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, slot):
            raise NotImplementedError

    with pytest.raises(AttributionError, match=r"failed: NotImplementedError; give the operation one by register_op"):
        attribute(Net(Kernel.apply), torch.randn(2, 4, dtype=torch.float64), target=0)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_bias_is_added_in_place_to_what_a_kernel_with_steps_has_put_out(formulation):
    function, weight = matrix_product(), torch.randn(4, 4, dtype=torch.float64)
    register_operation(function, Family.LINEAR, steps=F.linear)

    def biased(x):
        y = function.apply(x, weight)
        y += weight[0]
        return y

    _, relevance, report, _ = explained(Net(biased), Composite(formulation=formulation))
    assert report.complete, str(report)
    assert relevance.isfinite().all()
