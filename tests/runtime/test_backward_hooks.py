"""Full backward hooks of the user's are given what flows at their module, may replace it, and change nothing else.

What they must be given is read by hooks on the tensors themselves, in a model without full backward hooks.
"""

import gc
import weakref
from contextlib import contextmanager

import pytest
import torch
from small_transformers import bert, gpt2, ids, llama, t5
from support import FORMULATIONS, Attention, Fn, Residual, both_formulations, fingerprint, label
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as all_modules
from torch.utils.checkpoint import checkpoint

from lxt_compose import (
    AlphaBeta,
    Composite,
    Epsilon,
    Flat,
    Gamma,
    Gated,
    Identity,
    Norm,
    Pass,
    Stop,
    Uniform,
    WSquare,
    ZPlus,
    attribute,
    functional,
    modules,
)
from lxt_compose import (
    Attention as AttentionRule,
)
from lxt_compose.errors import RegistrationError, RuleError


def x6(*shape):
    return torch.randn(*shape or (2, 6), generator=torch.Generator().manual_seed(1)).double()


@contextmanager
def hooked(parts, hook=lambda *_: None, pre_hook=lambda *_: None):
    """Full backward hooks of both kinds on modules, for a while."""
    handles = [part.register_full_backward_hook(hook) for part in parts]
    handles += [part.register_full_backward_pre_hook(pre_hook) for part in parts]
    yield
    for handle in handles:
        handle.remove()


def explained(model, x, composite):
    """Output, relevance (or gradient) of the input, and the report."""
    x = x.clone().requires_grad_()
    with composite.register(model) as registration:
        y = model(x)
        y.sum().backward()
        return y.detach(), x.grad, registration.report()


class Written(nn.Module):
    """GPT-2's activation, written out, with parts that are modules."""

    def __init__(self):
        super().__init__()
        self.same, self.tanh = nn.Identity(), nn.Tanh()

    def forward(self, x):
        return 0.5 * self.same(x) * (1 + self.tanh(x + 0.1 * x**3))


class Two(nn.Module):
    """Several tensors in and out, between a number and a constant."""

    def forward(self, a, number, constant, b):
        return a * number + constant, b


class Gates(nn.Module):
    """A signal, and a gate that passes through modules on its way to it."""

    def __init__(self):
        super().__init__()
        self.layer, self.opens, self.same, self.two = nn.Linear(6, 6), nn.Sigmoid(), nn.Identity(), Two()

    def forward(self, x):
        signal, gate = self.two(self.layer(x), 2.0, torch.ones(6).double(), self.same(self.opens(x)))
        return signal * gate


class WrittenSoftmax(nn.Module):
    """A softmax whose steps are modules."""

    def __init__(self):
        super().__init__()
        self.layer, self.power, self.total = nn.Linear(6, 6), Fn(lambda _, z: z.exp()), Fn(lambda _, p: p.sum(-1, True))
        self.shift = Fn(lambda _, z: z - z.amax(-1, keepdim=True))

    def forward(self, x):
        powers = self.power(self.shift(self.layer(x)))
        return powers / self.total(powers) * x


def made(kind):
    torch.manual_seed(0)
    return kind().double()


MODELS = {
    "gates": Gates,
    "written softmax": WrittenSoftmax,
    "written activation": lambda: nn.Sequential(nn.Linear(6, 6), Written(), nn.Linear(6, 3)),
    "residual": lambda: nn.Sequential(Residual(6), nn.LayerNorm(6), Residual(6)),
    "attention": lambda: nn.Sequential(nn.LayerNorm(6), nn.Unflatten(0, (1, 2)), Attention(6)),
    "multi-head attention": lambda: Fn(
        lambda self, x: self.inner(x[None], x[None], x[None])[0], inner=nn.MultiheadAttention(6, 2, batch_first=True)
    ),
    "lstm": lambda: Fn(lambda self, x: self.inner(x)[0], inner=nn.LSTM(6, 4)),
    "convolutions": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4).eval(), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten()
    ),
}
RULES_OF_MODULES = [
    {},
    {nn.Linear: Gamma(), nn.Conv1d: AlphaBeta(), nn.LayerNorm: Norm(), Written: Identity()},
    {(nn.Linear, nn.Sigmoid, nn.ReLU): Epsilon(), nn.MultiheadAttention: AttentionRule(), Two: Epsilon()},
    {Residual: Epsilon(), Attention: Epsilon(), nn.LSTM: Epsilon(), nn.Sigmoid: Pass(), nn.Identity: Pass()},
]


@both_formulations
@pytest.mark.parametrize("rules", RULES_OF_MODULES, ids=label)
@pytest.mark.parametrize("name", MODELS)
def test_hooks_that_return_nothing_change_nothing(name, rules, formulation):
    """Values and relevance are the same to the last bit, and the report row by row; nothing is left behind."""
    model, composite = made(MODELS[name]), Composite(rules, formulation=formulation)
    plain = explained(model, x6(), composite)
    with hooked(list(model.modules())):
        before = fingerprint(model)
        found = explained(model, x6(), composite)
        assert fingerprint(model) == before
    assert torch.equal(found[0], plain[0])
    assert torch.equal(found[1], plain[1])
    assert found[2].to_dicts() == plain[2].to_dicts()


@pytest.mark.parametrize(
    ("make", "formulation"), [(bert, "relevance"), (gpt2, "gradient"), (llama, "relevance"), (t5, "gradient")]
)
def test_hooks_on_all_of_a_transformer_change_nothing(make, formulation):
    model, given = make(), {"input_ids": ids()}
    if make is t5:
        given["decoder_input_ids"] = ids(seed=2)
    options = {"composite": Composite(formulation=formulation), "ledger": True}
    plain, seen = attribute(model, given, **options), []
    leaves = [part for part in model.modules() if not list(part.children())]
    parts = [part for part in leaves if not isinstance(part, nn.Embedding)]  # whose inputs carry nothing
    with hooked(parts, lambda *_: seen.append(1)):
        found = attribute(model, given, **options)
    assert seen
    torch.testing.assert_close(found.relevance, plain.relevance, rtol=0, atol=0)
    assert found.report.to_dicts() == plain.report.to_dicts()
    for kind, amount in plain.ledger.absorbed.items():
        torch.testing.assert_close(found.ledger.absorbed[kind], amount, rtol=1e-9, atol=1e-12)
    assert float(found.ledger.unaccounted) < 1e-9


class Around(nn.Module):
    """A module between a layer for each of its inputs and one behind."""

    def __init__(self, inner, inputs=1):
        super().__init__()
        self.before = nn.ModuleList(nn.Linear(6, 6) for _ in range(inputs))
        self.inner, self.after = inner, nn.Linear(6, 3)

    def forward(self, x):
        given = [layer(x) for layer in self.before]
        outputs = self.inner(*given)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        self.tensors = given, outputs
        return sum(self.after(output) * place for place, output in enumerate(outputs, 1))


def slots_at(model, x, composite):
    """What arrives at the outputs of the inner module and leaves its inputs, by hooks on tensors."""
    x = x.clone().requires_grad_()
    with composite.register(model):
        y, slots = model(x), {}
        for side, tensors in zip(("in", "out"), model.tensors, strict=True):
            for place, tensor in enumerate(tensors):
                tensor.register_hook(lambda slot, key=(side, place): slots.__setitem__(key, slot.clone()))
        y.sum().backward()
    count = [len(tensors) for tensors in model.tensors]
    return [[slots[side, place] for place in range(n)] for side, n in zip(("in", "out"), count, strict=True)]


INNER = {
    "linear": (lambda: nn.Linear(6, 6), 1),
    "activation": (Written, 1),
    "block": (lambda: Residual(6), 1),
    "written layer": (lambda: Fn(lambda self, x: x @ self.inner.weight.T, inner=nn.Linear(6, 6)), 1),
    "norm": (lambda: nn.LayerNorm(6), 1),
    "bilinear": (lambda: nn.Bilinear(6, 6, 6), 2),
    "sum": (lambda: Fn(lambda _, a, b, c: a + 2 * b - c), 3),
    "swap": (lambda: Fn(lambda _, a, b: (b * 2, a * b)), 2),
    "drop-in": (lambda: Fn(lambda _, a, b: functional.mul2(a, b)), 2),
    "drop-in module": (lambda: modules.LayerNormEpsilon(6), 1),
}
SEEN = [
    ("linear", Epsilon()), ("linear", Gamma()), ("linear", AlphaBeta()), ("linear", Pass()), ("linear", ZPlus()),
    ("linear", WSquare()), ("linear", Flat()), ("linear", None), ("activation", Identity()), ("activation", None),
    ("activation", Epsilon()), ("block", Epsilon()), ("block", Pass()), ("block", Gamma()), ("written layer", Gamma()),
    ("written layer", AlphaBeta()), ("written layer", Epsilon()), ("norm", Norm()), ("norm", Pass()), ("norm", None),
    ("bilinear", Epsilon()), ("bilinear", Uniform()), ("sum", Epsilon()), ("sum", Uniform()), ("sum", None),
    ("swap", Epsilon()), ("swap", None), ("drop-in", None), ("drop-in", Epsilon()), ("drop-in module", None),
    ("drop-in module", Epsilon()),
]  # fmt: skip
SEEN_CASES = [
    (name, rule, formulation)
    for name, rule in SEEN
    for formulation in FORMULATIONS
    if formulation == "relevance" or not isinstance(rule, (Uniform, WSquare, Flat))
]


@pytest.mark.parametrize("late", [False, True], ids=["before", "while registered"])
@pytest.mark.parametrize(("name", "rule", "formulation"), SEEN_CASES, ids=label)
def test_hooks_are_given_what_flows_at_their_module(name, rule, formulation, late):
    """Of each rule, with several inputs and outputs, whether hooks were there before the composite or come later."""
    make, inputs = INNER[name]
    model = made(lambda: Around(make(), inputs))
    composite = Composite({} if rule is None else {"inner": rule}, formulation=formulation)
    entered, left = slots_at(model, x6(), composite)
    seen, pre, x = [], [], x6().requires_grad_()
    hooks = hooked([model.inner], lambda _, *slots: seen.append(slots), lambda _, slots: pre.append(slots))
    if late:
        with composite.register(model), hooks:
            model(x).sum().backward()
    else:
        with hooks, composite.register(model):
            model(x).sum().backward()
    ((of_inputs, of_outputs),), (arrived,) = seen, pre
    assert len(of_inputs) == inputs
    assert len(of_outputs) == len(arrived) == len(left)
    for given, expected in zip((*of_inputs, *of_outputs, *arrived), (*entered, *left, *left), strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "rule", "formulation"), SEEN_CASES, ids=label)
def test_what_hooks_return_is_passed_on(name, rule, formulation):
    """Twice what arrives and three times what leaves is six times the relevance: rules are linear in it."""
    make, inputs = INNER[name]
    model = made(lambda: Around(make(), inputs))
    composite = Composite({} if rule is None else {"inner": rule}, formulation=formulation)
    _, plain, _ = explained(model, x6(), composite)
    twice, thrice = (lambda _, out: tuple(2 * r for r in out)), (lambda _, into, out: tuple(3 * r for r in into))
    with hooked([model.inner], thrice, twice):
        y, found, _ = explained(model, x6(), composite)
    assert torch.equal(y, model(x6()))
    torch.testing.assert_close(found, 6 * plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reentrant", [True, False])
@both_formulations
def test_hooks_in_a_recomputed_block(formulation, reentrant):
    """A checkpoint changes nothing of what they are given, nor what they return."""
    inner = made(lambda: Residual(6))
    models = [
        Fn(lambda self, x: self.inner(x * 1.0), inner=inner),
        Fn(lambda self, x: checkpoint(self.inner, x * 1.0, use_reentrant=reentrant), inner=inner),
    ]
    seen, found = [[], []], []
    for place, model in enumerate(models):
        composite = Composite({nn.Linear: Gamma(), nn.ReLU: Pass()}, formulation=formulation)

        def hook(_, into, out, place=place):
            seen[place].append((*into, *out))
            return tuple(2 * slot for slot in into)

        with hooked([inner.fc1, inner.act, inner.fc2], hook):
            found.append(explained(model, x6(), composite)[1])
    assert len(seen[0]) == len(seen[1]) == 3
    for plain, recomputed in zip(*seen, strict=True):
        for one, other in zip(plain, recomputed, strict=True):
            assert torch.equal(one, other)
    assert torch.equal(*found)


def test_inputs_given_by_keyword():
    """torch tells hooks of what is given by position alone; relevance reaches both."""
    two = Fn(lambda self, a, b: self.inner(a, b=b), inner=Fn(lambda _, a, b: a + 2 * b))
    model = Fn(lambda self, x: self.two(x * 3.0, x * 4.0), two=two)
    composite, seen = Composite({"two.inner": Epsilon(1e-12)}), []
    x = torch.ones(1, 1).double()
    plain = explained(model, x, composite)[1]
    with hooked([two.inner], lambda _, *slots: seen.append(slots)):
        found = explained(model, x, composite)[1]
    assert torch.equal(plain, found)
    (((of_a,), (of_output,)),) = seen
    assert of_output.item() == pytest.approx(1.0)
    assert of_a.item() == pytest.approx(3 / 11)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_a_module_that_is_given_all_by_keyword():
    """As in torch itself: the hook is given no inputs, once relevance is at the output."""
    model, seen = made(lambda: Fn(lambda self, x: self.inner(input=2 * x), inner=nn.Linear(6, 3))), []
    plain = explained(model, x6(), Composite({nn.Linear: Epsilon()}))[1]
    with hooked([model.inner], lambda _, into, out: seen.append((into, *out))):
        found = explained(model, x6(), Composite({nn.Linear: Epsilon()}))[1]
    assert torch.equal(found, plain)
    assert seen[0][0] == ()
    assert torch.equal(seen[0][1], torch.ones(2, 3).double())


def test_hooks_for_all_modules():
    model, seen = made(lambda: nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))), []
    composite = Composite({nn.Linear: Gamma(), nn.Tanh: Epsilon()})
    plain = explained(model, x6(), composite)[1]
    handle = all_modules.register_module_full_backward_hook(lambda module, into, _: seen.append((module, into[0])))
    found = explained(model, x6(), composite)[1]
    handle.remove()
    assert torch.equal(found, plain)
    assert [module for module, _ in seen] == [*reversed(model), model]
    assert torch.equal(seen[-2][1], plain)


def test_a_hook_of_the_older_kind_changes_nothing():
    """Hooks that are not full are given what the last node sends, as in torch."""
    model = made(lambda: nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)))
    plain, seen = explained(model, x6(), Composite({nn.Linear: Gamma()}))[1], []
    handle = model[1].register_backward_hook(lambda _, into, out: seen.append(out[0]))
    found = explained(model, x6(), Composite({nn.Linear: Gamma()}))[1]
    handle.remove()
    assert torch.equal(found, plain)
    assert torch.equal(seen[0], torch.ones(2, 3).double())


@pytest.mark.parametrize("rules", [{}, {nn.ReLU: Identity()}, {nn.ReLU: Epsilon()}], ids=label)
@both_formulations
def test_a_module_that_changes_its_input_in_place_raises_as_in_torch(rules, formulation):
    def forward(self, x):
        h = self.layer(x)
        self.act(h)
        return h

    model = made(lambda: Fn(forward, layer=nn.Linear(6, 6), act=nn.ReLU(inplace=True)))
    with hooked([model.act]):
        with pytest.raises(RuntimeError, match="Output 0 of BackwardHookFunction is a view and is being modified"):
            model(x6().requires_grad_())
        with pytest.raises(RuntimeError, match="Output 0 of BackwardHookFunction is a view and"):
            explained(model, x6(), Composite(rules, formulation=formulation))


def test_where_relevance_stops_no_hook_is_called():
    model, seen = made(lambda: Fn(lambda self, x: self.inner(x * 1.0) + x, inner=nn.Linear(6, 6))), []
    with hooked([model.inner], lambda *_: seen.append(1)):
        explained(model, x6(), Composite({nn.Linear: Stop()}))
    assert seen == []


def test_pre_hooks_that_come_after_the_composite():
    """One that only looks is given the inputs themselves; one that exchanges them would come too late for the rule."""
    model, seen = made(lambda: nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))), []
    plain = explained(model, x6(), Composite({"1": Epsilon()}))[1]
    x = x6().requires_grad_()
    with hooked([model[1]]), Composite({"1": Epsilon()}).register(model):
        handle = model[1].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
        model(x).sum().backward()
        handle.remove()
        assert torch.equal(x.grad, plain)
        assert torch.equal(seen[0], model[0](x6()))
        handle = model[1].register_forward_pre_hook(lambda _, args: (args[0] * 2,))
        with pytest.raises(
            RuleError, match=r"'1' \(Linear\) has a full backward hook, and a forward pre-hook that was"
        ):
            model(x6().requires_grad_())
        handle.remove()
        handle = model[1].register_forward_pre_hook(lambda _, args, kwargs: None, with_kwargs=True)
        model(x6().requires_grad_())
        handle.remove()


def test_a_later_pre_hook_of_a_module_with_inputs_by_keyword():
    inner = Fn(lambda _, a, b: a + b)
    model = Fn(lambda self, x: self.inner(x * 1.0, b=x * 2.0), inner=inner)
    with hooked([inner]), Composite({"inner": Epsilon()}).register(model):
        handle = inner.register_forward_pre_hook(lambda *_: None)
        with pytest.raises(RuleError, match="register that hook before the composite"):
            model(x6().requires_grad_())
        handle.remove()
        model(x6().requires_grad_())


def test_an_exception_between_the_hooks_leaves_no_trace():
    model = made(lambda: nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)))

    def fail(*_):
        raise ValueError("on purpose")

    with hooked([model[1]]):
        before = fingerprint(model)
        with Composite({nn.Linear: Gamma()}).register(model):
            handle = model[1].register_forward_pre_hook(fail)
            with pytest.raises(ValueError, match="on purpose"):
                model(x6().requires_grad_())
            handle.remove()
            model(x6().requires_grad_()).sum().backward()
        assert fingerprint(model) == before


def test_nothing_is_kept_alive():
    """Neither the registration nor what a pass made."""
    model = made(lambda: nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)))
    gc.collect()
    gc.disable()
    try:
        with hooked([model[1]]), Composite({nn.Linear: Gamma()}).register(model) as registration:
            y = model(x6().requires_grad_())
            kept = weakref.ref(y.grad_fn.next_functions[0][0])
            y.sum().backward()
            del y
            assert kept() is None
        gone = weakref.ref(registration)
        del registration
    finally:
        gc.enable()
    gc.collect()
    assert gone() is None


def test_relevance_that_is_differentiated_refuses_hooks():
    """Its graph is one of plain operations, from the output to the inputs: it would call none of them."""
    model = made(lambda: nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)))
    for part, where in ((model[2], "'2'"), (model, "the model itself")):
        with hooked([part]), Composite({nn.Linear: Epsilon()}).register(model):
            x = x6().requires_grad_()
            with pytest.raises(RegistrationError, match=f"{where} has a full backward hook"):
                torch.autograd.grad(model(x).sum(), x, create_graph=True)


def test_the_ledger_names_what_a_hook_takes():
    """A hook that halves relevance: half of it is booked at the hook, and nothing is unaccounted for."""
    model = made(lambda: nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 3, bias=False)))
    with hooked([model[1]], lambda _, into, out: (into[0] / 2,)):
        result = attribute(model, x6(), composite=Composite({nn.Linear: Epsilon(1e-12)}), ledger=True)
    taken = [row for row in result.ledger.to_dicts() if "BackwardHookFunction" in str(row)]
    assert sum(row["absorbed"]["constant"] for row in taken) == pytest.approx(float(result.ledger.seed.sum()) / 2)
    assert float(result.ledger.unaccounted) < 1e-9


def test_gates_are_known_behind_hooks():
    """By hand: signal 3, gate sigmoid(0) = 1/2, R = 1: the signal gets all, the gate nothing."""
    model = Fn(lambda self, x: x[:, :1] * self.opens(x[:, 1:]), opens=nn.Sigmoid())
    x = torch.tensor([[3.0, 0.0]]).double()
    with hooked([model, model.opens]):
        for composite in (Composite(), Composite({torch.mul: Gated()})):
            assert explained(model, x, composite)[1].tolist() == [[1.0, 0.0]]
    assert F.sigmoid(x)[0, 1].item() == 0.5
