"""Kernels that are several operations: values of the kernel, relevance of what it is made of."""

import pytest
import torch
from support import FORMULATIONS, Fn, assert_close, attribute, exact, input_times_gradient
from torch import Tensor, nn
from torch.nn import functional as F

from lxt_compose import Composite, Epsilon, Gamma, Status, UncoveredError, Uniform, presets
from lxt_compose import attribute as explain
from lxt_compose.autograd.trees import tensors_in

KINDS = {
    "lstm": (nn.LSTM, {}),
    "lstm, projected": (nn.LSTM, {"proj_size": 3}),
    "lstm without bias": (nn.LSTM, {"bias": False}),
    "lstm, projected, without bias": (nn.LSTM, {"bias": False, "proj_size": 3}),
    "gru": (nn.GRU, {}),
    "gru without bias": (nn.GRU, {"bias": False}),
    "tanh": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
}
LAYOUTS = {
    "plain": {},
    "deep": {"num_layers": 2},
    "both ways": {"bidirectional": True},
    "deep, both ways, batch first": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "batch first": {"batch_first": True},
}


def net(kind, dtype=torch.float64, **options):
    torch.manual_seed(0)
    build, more = KINDS[kind]
    return build(4, 5, **more, **options).to(dtype)


def sequences(dtype=torch.float64):
    return torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


# ---- the slow way: each cell by its equations, relevance as gradient x input of a function with the same slopes


def slope(f, x):
    """f(x) with the slope f(x) / x: the identity rule."""
    return x * (f(x) / x).detach()


def gated(gate, signal):
    """gate * signal, with the whole slope for the signal (Arras et al. 2017)."""
    return gate.detach() * signal


def cell(kind, x, state, weights):
    """One position as the documentation of PyTorch writes it."""
    projected = "projected" in kind
    w_ih, w_hh, *biases = weights[:-1] if projected else weights
    b_ih, b_hh = biases or (torch.zeros(len(w_ih)).double(),) * 2
    h = state[0]
    if kind.startswith("lstm"):
        i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, -1)
        i, f, o = (slope(torch.sigmoid, t) for t in (i, f, o))
        c = gated(f, state[1]) + gated(i, slope(torch.tanh, g))
        h = gated(o, slope(torch.tanh, c))
        return (h @ weights[-1].T if projected else h), c
    if kind.startswith("gru"):
        size = h.shape[-1]
        left, right = x @ w_ih.T + b_ih, h @ w_hh.T + b_hh
        r, z = slope(torch.sigmoid, (left + right)[:, : 2 * size]).chunk(2, -1)
        n = slope(torch.tanh, left[:, 2 * size :] + gated(r, right[:, 2 * size :]))
        return (gated(1 - z, n) + gated(z, h),)
    f = torch.tanh if kind == "tanh" else torch.relu
    return (slope(f, x @ w_ih.T + b_ih + h @ w_hh.T + b_hh),)


def by_hand(kind, module, x):
    """The outputs for one sequence [positions, features], all layers and directions, one position after the other."""
    rows = list(x)
    for layer in range(module.num_layers):
        ways = []
        for suffix in ("", "_reverse")[: 1 + module.bidirectional]:
            names = [
                "weight_ih",
                "weight_hh",
                *["bias_ih", "bias_hh"] * module.bias,
                *["weight_hr"] * (module.proj_size > 0),
            ]
            weights = [getattr(module, f"{name}_l{layer}{suffix}").detach() for name in names]
            h = torch.zeros(1, module.proj_size or module.hidden_size).double()
            state = (h, torch.zeros(1, module.hidden_size).double()) if kind.startswith("lstm") else (h,)
            outputs = []
            for row in rows[::-1] if suffix else rows:
                state = cell(kind, row[None], state, weights)
                outputs.append(state[0][0])
            ways.append(outputs[::-1] if suffix else outputs)
        rows = [torch.cat(both) for both in zip(*ways, strict=True)]
    return torch.stack(rows)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("name", ["attnlrp", "cp_lrp"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_signal_takes_all(kind, name, formulation):
    """Sigmoids are gates, also 1 - sigmoid; what passes a tanh is a signal."""
    module, leaf = net(kind, num_layers=2), sequences().requires_grad_()
    slow = torch.stack([by_hand(kind, module, sequence) for sequence in leaf])
    (expected,) = torch.autograd.grad(slow.sum(), leaf)
    model = Fn(lambda self, x: self.net(x.transpose(0, 1))[0].transpose(0, 1), net=module)
    found = attribute(model, leaf.detach(), presets.get(name, formulation=formulation, strict=True))
    assert_close(found, leaf.detach() * expected, 1e-9)


@pytest.mark.parametrize("kind", ["lstm", "gru", "tanh"])
def test_long_sequences_stay_within_bounds(kind):
    """A sigmoid that takes half of the relevance multiplies it by sigmoid(z) / z at each position."""
    module = net(kind, batch_first=True)
    model = Fn(lambda self, x: self.net(x)[0][:, -1], net=module)
    x = torch.randn(2, 200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = explain(model, x, target=0)
    assert float(result.relevance.abs().sum((1, 2)).max()) < 100 * float(result.output.abs().max())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_relevance_is_that_of_the_equations(kind, layout):
    module, x = net(kind, **LAYOUTS[layout]), sequences()
    leaf = x.clone().requires_grad_()
    slow = torch.stack([by_hand(kind, module, sequence) for sequence in leaf])
    seed = torch.randn_like(slow)
    (expected,) = torch.autograd.grad(slow, leaf, seed)
    for formulation in FORMULATIONS:
        composite = exact(formulation, strict=True)
        leaf = x.clone().requires_grad_()
        with composite.register(module):
            y = module(leaf if module.batch_first else leaf.transpose(0, 1))[0]
            y = y if module.batch_first else y.transpose(0, 1)
            assert_close(y, slow, 1e-12)
            y.backward(y.detach() * seed if formulation == "relevance" else seed)
        found = leaf.grad if formulation == "relevance" else x * leaf.grad
        assert_close(found, x * expected, 1e-6)


@pytest.mark.parametrize("rules", [{}, {"": Epsilon()}], ids=["taken apart", "one unit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_kernels_own(kind, layout, dtype, rules):
    """To the last bit, outputs and states, also of batches that are scattered in memory; and nothing is left."""
    if "projected" in kind and dtype is torch.bfloat16:
        dtype = torch.float32  # torch has no such kernel
    module, x = net(kind, dtype, **LAYOUTS[layout]), sequences(dtype)
    for given in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):
        plain = list(tensors_in(module(given.requires_grad_())))
        with Composite(rules).register(module) as registration:
            found = list(tensors_in(module(given)))
            assert registration.report().complete
        for ours, theirs in zip(found, plain, strict=True):
            assert torch.equal(ours, theirs)
            assert ours.stride() == theirs.stride()
        given.requires_grad_(False)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences_are_their_samples_one_by_one(kind, formulation):
    module, x, lengths = net(kind, num_layers=2, bidirectional=True, batch_first=True), sequences(), (4, 6, 2)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        outputs, states = self.net(packed)
        last = states[0] if isinstance(states, tuple) else states
        return nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True)[0].sum((1, 2)) + last.sum((0, 2))

    model, composite = Fn(forward, net=module), Composite(formulation=formulation, strict=True)
    whole = attribute(model, x, composite, lengths=torch.tensor(lengths))
    for sample, length in enumerate(lengths):
        alone = attribute(model, x[sample : sample + 1, :length], composite, lengths=torch.tensor([length]))
        assert_close(whole[sample : sample + 1, :length], alone, 1e-9)
        assert not whole[sample, length:].any()


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("carried", [True, False])
def test_cells_are_nets_of_one_position(kind, carried):
    """A loop over a cell gives what the net gives, from a state that carries relevance and from a constant."""
    torch.manual_seed(0)
    module, x = {nn.LSTMCell: nn.LSTM, nn.GRUCell: nn.GRU, nn.RNNCell: nn.RNN}[kind](4, 5).double(), sequences()
    single = kind(4, 5).double()
    single.load_state_dict({name.removesuffix("_l0"): value for name, value in module.state_dict().items()})

    def loop(self, x):
        state = torch.ones(3, 5, dtype=x.dtype) * (x.sum() if carried else 0.5)
        state = (state, state) if kind is nn.LSTMCell else state
        for row in x.unbind(1):
            state = self.cell(row, state)
        return state[0] if kind is nn.LSTMCell else state

    def at_once(self, x):
        state = (torch.ones(3, 5, dtype=x.dtype) * (x.sum() if carried else 0.5))[None]
        return self.net(x.transpose(0, 1), (state, state) if kind is nn.LSTMCell else state)[0][-1]

    composite = Composite(formulation="gradient", strict=True)
    expected = attribute(Fn(at_once, net=module), x, composite)
    assert_close(attribute(Fn(loop, cell=single), x, composite), expected, 1e-10)


@pytest.mark.parametrize("name", ["attnlrp", "cp_lrp"])
@pytest.mark.parametrize("kind", ["lstm without bias", "lstm, projected, without bias", "relu"])
def test_without_biases_relevance_adds_up_to_the_output(kind, name):
    module = net(kind, num_layers=2, batch_first=True)
    for parameter in module.parameters():
        if parameter.dim() == 1:
            nn.init.zeros_(parameter)
    result = explain(
        Fn(lambda self, x: self.net(x)[0][:, -1], net=module), sequences(), target=1, composite=name, ledger=True
    )
    assert_close(result.relevance.sum((1, 2)), result.output, 1e-10)
    assert result.ledger.unaccounted < 1e-12
    assert result.ledger.check.complete


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_ledger_of_a_recurrent_net_closes(kind, formulation):
    module = Fn(lambda self, x: self.net(x)[0][:, -1], net=net(kind, batch_first=True))
    composite = Composite(formulation=formulation)
    ledger = explain(module, sequences(), target=1, composite=composite, ledger=True).ledger
    assert ledger.unaccounted < 1e-8
    assert not ledger.uncovered


def test_keys_for_functions_act_inside():
    module, x = net("lstm", batch_first=True), sequences().requires_grad_()
    with Composite({F.linear: Gamma(0.5), torch.mul: Uniform()}).register(module) as registration:
        module(x)
        rows = {row.target: (row.rule, row.status) for row in registration.report().rows}
    assert rows["linear"] == (str(Gamma(0.5)), Status.RULED)
    assert rows["lstm"] == ("(taken apart)", Status.DEFAULT)
    with Composite({torch.lstm: Epsilon()}).register(module) as registration:
        module(x)
        assert [row.target for row in registration.report().rows] == ["lstm"]
    with Composite(defaults=False).register(module) as registration:
        module(x)
        assert [row.target for row in registration.report().uncovered] == ["lstm"]


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_rule_on_the_module_takes_it_as_one_unit(formulation):
    model = Fn(lambda self, x: self.net(x)[0], net=net("gru", batch_first=True))
    found = attribute(model, sequences(), exact(formulation, {"net": Epsilon(1e-15)}.items(), strict=True))
    assert_close(found, input_times_gradient(model, sequences()), 1e-7)


def test_dropout_between_layers_cannot_be_taken_apart():
    module = net("lstm", num_layers=2, dropout=0.5).train()
    with Composite().register(module) as registration:
        module(sequences().requires_grad_())
        (row,) = registration.report().uncovered
    assert (row.target, row.note) == ("lstm", "dropout between its layers is active")
    with Composite(strict=True).register(module), pytest.raises(UncoveredError, match="lstm in the model itself"):
        module(sequences().requires_grad_())
    with Composite(strict=True).register(module.eval()):
        module(sequences().requires_grad_())


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_recomputed_by_a_checkpoint(formulation):
    module, composite = net("lstm", batch_first=True), Composite(formulation=formulation, strict=True)

    def forward(self, x, again=False):
        def inside(x: Tensor) -> Tensor:
            return self.block(x)

        return torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=False) if again else inside(x)

    model = Fn(forward, block=Fn(lambda self, x: self.net(x)[0], net=module))
    expected = attribute(model, sequences(), composite)
    assert_close(attribute(model, sequences(), composite, again=True), expected, 1e-12)


def test_presets_of_image_models_take_them_apart_too():
    model = Fn(lambda self, x: self.head(self.net(x)[0][:, -1]), net=net("gru", batch_first=True), head=nn.Linear(5, 2))
    assert explain(model.double(), sequences(), composite=presets.epsilon_plus()).report.complete


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_gated_linear_units(formulation):
    """All of the relevance to the signal, none to the gate, along any dimension."""
    x = sequences()
    for dim in (-1, 1):
        leaf = x.clone().requires_grad_()
        signal, gate = leaf.chunk(2, dim)
        (expected,) = torch.autograd.grad(gated(torch.sigmoid(gate), signal).sum(), leaf)
        model = Fn(lambda self, x, dim=dim: F.glu(x, dim))
        assert_close(attribute(model, x, exact(formulation, strict=True)), x * expected, 1e-9)
        plain = F.glu(x, dim)
        with Composite(formulation=formulation).register(model):
            assert torch.equal(model(x.clone().requires_grad_()), plain)
    module = nn.GLU()
    assert_close(
        attribute(Fn(lambda self, x: self.act(x), act=module), x, exact(formulation)),
        attribute(Fn(lambda self, x: F.glu(x)), x, exact(formulation)),
        1e-12,
    )


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_cosine_similarity(formulation):
    """Each vector over its norm, which is held constant; each factor of a product gets half."""
    x = torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = Fn(lambda self, x: F.cosine_similarity(x[:, 0], x[:, 1], dim=-1))
    y = F.cosine_similarity(x[:, 0], x[:, 1], dim=-1)
    unit = x / x.norm(dim=-1, keepdim=True)
    expected = 0.5 * (unit[:, 0] * unit[:, 1])[:, None].expand_as(x)
    found = attribute(model, x, exact(formulation, strict=True))
    assert_close(found, expected, 1e-9)
    assert_close(found.sum((1, 2)), y, 1e-9)


@pytest.mark.parametrize("dim", [1, -2, -1])
def test_cosine_similarity_of_shapes_that_broadcast(dim):
    """Without biases relevance adds up to the output, whichever operand is stretched along which dimension."""
    table = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for function in (
        lambda self, x: F.cosine_similarity(x, table, dim=dim),
        lambda self, x: F.cosine_similarity(x, x.mean(-1, keepdim=True), dim=-1),
    ):
        model = Fn(function)
        found = attribute(model, x, exact("gradient", strict=True))
        assert_close(found.sum(), model(x).sum(), 1e-9)


MEANS = {
    "all": (lambda f, x: f(x), lambda x: x.mean()),
    "all, biased": (lambda f, x: f(x, False), lambda x: x.mean()),
    "all, correction": (lambda f, x: f(x, correction=0), lambda x: x.mean()),
    "a dimension": (lambda f, x: f(x, -1), lambda x: x.mean(-1)),
    "dimensions": (lambda f, x: f(x, (1, 2), keepdim=True), lambda x: x.mean((1, 2), keepdim=True)),
    "biased": (lambda f, x: f(x, 1, False, True), lambda x: x.mean(1, keepdim=True)),
    "axis": (lambda f, x: f(x, axis=-1, keepdim=True), lambda x: x.mean(-1, keepdim=True)),
    "correction": (lambda f, x: f(x, dim=0, correction=0, keepdim=True), lambda x: x.mean(0, keepdim=True)),
}


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("function", [torch.var_mean, torch.std_mean], ids=["var", "std"])
@pytest.mark.parametrize("name", MEANS)
def test_a_mean_that_comes_with_a_spread(name, function, formulation):
    """Whatever way it is called: as the mean and the spread, each by itself."""
    call, mean = MEANS[name]
    spread = torch.var if function is torch.var_mean else torch.std
    x, composite = sequences(), exact(formulation, strict=True)
    together = Fn(lambda self, x: (lambda spread, m: (m * (1 + spread)).exp())(*call(function, x)))
    apart = Fn(lambda self, x: (mean(x) * (1 + call(spread, x))).exp())
    plain = together(x)
    with composite.register(together):
        assert torch.equal(together(x.clone().requires_grad_()), plain)
    assert_close(attribute(together, x, composite), attribute(apart, x, composite), 1e-9)
