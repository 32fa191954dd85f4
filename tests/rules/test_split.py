"""Rules for layers against dense matrices of contributions: every layer, every argument, both formulations."""

import functools

import oracles
import pytest
import torch
from support import Attention, Fn, assert_close, label
from torch import nn
from torch.nn import functional as F

from lxt_compose import AlphaBeta, Composite, Epsilon, Flat, Gamma, RuleError, Stabilizer, WSquare, ZBox, ZPlus

# All that a layer can be given: stride, dilation, groups, padding in all modes, output padding, no batch, many batches.
LAYERS = {
    "linear": (lambda **o: nn.Linear(5, 4, **o), (3, 5)),
    "linear, one sample": (lambda **o: nn.Linear(5, 4, **o), (5,)),
    "linear, three batch dimensions": (lambda **o: nn.Linear(3, 2, **o), (2, 1, 3, 3)),
    "conv1d, groups, dilation": (lambda **o: nn.Conv1d(4, 6, 3, 2, 1, dilation=2, groups=2, **o), (2, 4, 11)),
    "conv2d, uneven": (lambda **o: nn.Conv2d(2, 3, (3, 2), (2, 1), (1, 0), **o), (2, 2, 6, 5)),
    "conv2d, no batch": (lambda **o: nn.Conv2d(2, 3, 3, **o), (2, 6, 5)),
    "conv2d, depthwise": (lambda **o: nn.Conv2d(3, 6, 2, groups=3, **o), (2, 3, 4, 4)),
    "conv2d, same": (lambda **o: nn.Conv2d(2, 3, 3, padding="same", **o), (2, 2, 5, 4)),
    "conv2d, same, even kernel": (lambda **o: nn.Conv2d(2, 3, 4, padding="same", **o), (2, 2, 5, 4)),
    "conv2d, valid": (lambda **o: nn.Conv2d(2, 3, 3, padding="valid", **o), (2, 2, 5, 4)),
    "conv2d, reflect": (lambda **o: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect", **o), (2, 2, 5, 4)),
    "conv1d, circular": (lambda **o: nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular", **o), (2, 2, 6)),
    "conv3d, replicate": (lambda **o: nn.Conv3d(1, 2, 2, padding=1, padding_mode="replicate", **o), (1, 1, 3, 3, 2)),
    "conv3d": (lambda **o: nn.Conv3d(2, 2, 2, padding=1, stride=2, **o), (2, 2, 4, 3, 4)),
    "transpose1d, all arguments": (
        lambda **o: nn.ConvTranspose1d(4, 6, 3, 2, 1, output_padding=1, groups=2, dilation=2, **o),
        (2, 4, 5),
    ),
    "transpose2d, uneven": (lambda **o: nn.ConvTranspose2d(2, 3, 3, (2, 1), 1, (1, 0), **o), (2, 2, 4, 3)),
    "transpose2d, no batch": (lambda **o: nn.ConvTranspose2d(2, 3, 3, **o), (2, 4, 3)),
    "transpose3d": (lambda **o: nn.ConvTranspose3d(2, 2, 2, stride=2, **o), (1, 2, 2, 2, 3)),
}
RULES = [
    (Epsilon(), oracles.epsilon()),
    (Epsilon(0.1), oracles.epsilon(0.1)),
    (Epsilon(zero_bias=True), oracles.epsilon(bias=0)),
    (Gamma(), oracles.gamma(0.25)),
    (Gamma(100.0), oracles.gamma(100.0)),
    (Gamma(0.0), oracles.epsilon()),
    (Gamma(0.5, zero_bias=True), oracles.gamma(0.5, bias=0)),
    (AlphaBeta(), oracles.alpha_beta(2.0, 1.0)),
    (AlphaBeta(3.5, 2.5, zero_bias=True), oracles.alpha_beta(3.5, 2.5, bias=0)),
    (ZPlus(), oracles.zplus()),
    (ZPlus(zero_bias=True), oracles.zplus(bias=0)),
    (ZBox(-2.0, 3.0), oracles.zbox(-2.0, 3.0)),
    (WSquare(), oracles.wsquare()),
    (WSquare(zero_bias=True), oracles.wsquare(bias=0)),
    (Flat(), oracles.flat()),
]
IDS = [str(rule) for rule, _ in RULES]


def layer_and_input(name, kind="signed", seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    make, shape = LAYERS[name]
    layer, x = make(**options).to(dtype).requires_grad_(False), torch.randn(shape, dtype=dtype)
    if kind != "signed":
        x = x.relu()
    if kind == "zero rows":
        x.reshape(-1)[: max(1, x.numel() // 2)] = 0
    return layer, x


def relevance(model, x, rule, r, formulation="relevance", key=None):
    """The relevance of x for the relevance r of the output, which comes out unchanged."""
    expected = model(x)
    x = x.clone().requires_grad_()
    composite = Composite({nn.Module if key is None else key: rule}, formulation=formulation)
    with composite.register(model):
        z = model(x)
        assert torch.equal(z, expected)
        z.backward(r if formulation == "relevance" else r / z.detach())
    return x.grad if formulation == "relevance" else x.grad * x.detach()


def expected_relevance(layer, x, r, rule, dense=None):
    """By the oracle, each sample by itself."""
    dense = dense_of(layer, x) if dense is None else dense
    if isinstance(layer, nn.Linear):
        rows = zip(x.reshape(-1, x.shape[-1]), r.reshape(-1, r.shape[-1]), strict=True)
        return torch.stack([dense.relevance(rule, *row) for row in rows]).reshape(x.shape)
    if x.dim() < layer.weight.dim():
        return dense.relevance(rule, x, r)
    return torch.cat([dense.relevance(rule, x[i : i + 1], r[i : i + 1]) for i in range(len(x))])


def dense_of(layer, x):
    if isinstance(layer, nn.Linear):
        return oracles.Dense(layer, x.shape[-1:])
    return oracles.Dense(layer, x.shape if x.dim() < layer.weight.dim() else (1, *x.shape[1:]))


@functools.cache
def known_dense(name, bias):
    """The matrix of a layer of the table; the same for float32, which its weights were drawn in."""
    return dense_of(*layer_and_input(name, bias=bias))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("rule", "oracle"), RULES, ids=IDS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer(name, rule, oracle):
    """Trap 17 (signed inputs) and trap 19 (zero rows) among them; float64 elementwise, float32 within 1e-4."""
    for kind in ("signed", "non-negative", "zero rows"):
        for bias in (True, False):
            layer, x = layer_and_input(name, kind, bias=bias)
            z = layer(x)
            for r in (torch.randn_like(z), torch.randn_like(z) * z.relu()):
                wanted = expected_relevance(layer, x, r, oracle, known_dense(name, bias))
                assert_close(relevance(layer, x, rule, r), wanted, 1e-9)
    layer, x = layer_and_input(name, bias=True, dtype=torch.float32)
    r = torch.rand_like(layer(x)) * layer(x)
    found, wanted = relevance(layer, x, rule, r), expected_relevance(layer, x, r, oracle, known_dense(name, True))
    assert float((found - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("rule", [r for r, _ in RULES if "gradient" in r.formulations], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_relevance_is_input_times_gradient(name, rule):
    """``relevance(R = z * g) == x * gradient(g)``."""
    for kind in ("signed", "non-negative"):
        layer, x = layer_and_input(name, kind)
        z = layer(x)
        r = torch.randn_like(z) * z
        assert_close(relevance(layer, x, rule, r, "gradient"), relevance(layer, x, rule, r), 1e-10)


FUNCTIONS = {
    "linear": (F.linear, (3, 5), {"weight": (4, 5), "bias": (4,)}, {}),
    "conv1d": (F.conv1d, (2, 4, 9), {"weight": (2, 2, 3), "bias": (2,)}, {"stride": 2, "padding": 1, "groups": 2}),
    "conv2d": (F.conv2d, (2, 2, 5, 5), {"weight": (3, 2, 3, 2), "bias": (3,)}, {"dilation": (1, 2)}),
    "conv3d": (F.conv3d, (1, 1, 3, 3, 3), {"weight": (2, 1, 2, 2, 2), "bias": (2,)}, {"padding": (1, 0, 1)}),
    "conv_transpose1d": (F.conv_transpose1d, (2, 2, 4), {"weight": (2, 3, 3), "bias": (3,)}, {"stride": 2}),
    "conv_transpose2d": (
        F.conv_transpose2d, (1, 2, 3, 3), {"weight": (2, 2, 3, 3), "bias": (2,)},
        {"stride": 2, "padding": 1, "output_padding": 1},
    ),
    "conv_transpose3d": (F.conv_transpose3d, (1, 2, 2, 2, 2), {"weight": (2, 1, 2, 2, 2), "bias": (1,)}, {}),
}  # fmt: skip


@pytest.mark.parametrize(("rule", "oracle"), RULES, ids=IDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_keys(name, rule, oracle):
    """The same through ``F.linear`` and ``F.conv*`` as keys, however the arguments are given."""
    function, shape, sizes, options = FUNCTIONS[name]
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=torch.float64)
    given = {key: torch.randn(size, dtype=torch.float64) for key, size in sizes.items()}
    r = torch.randn_like(function(x, **given, **options))
    dense = oracles.Dense.of_function(lambda x, w, b: function(x, w, b, **options), x[:1].shape, *given.values())
    wanted = torch.cat([dense.relevance(oracle, x[i : i + 1], r[i : i + 1]) for i in range(len(x))])
    forms = [
        lambda _, x: function(x, given["weight"], given["bias"], **options),
        lambda _, x: function(input=x, bias=given["bias"], weight=given["weight"], **options),
        lambda _, x: function(x, **given, **options),
    ]
    for form in forms:
        assert_close(relevance(Fn(form), x, rule, r, key=function), wanted, 1e-9)


PRODUCTS = {
    "matmul": (torch.matmul, lambda x, w: torch.matmul(x, w)),
    "matmul, keywords": (torch.matmul, lambda x, w: torch.matmul(input=x, other=w)),
    "matmul, keywords turned": (torch.matmul, lambda x, w: torch.matmul(other=w, input=x)),
    "operator": (torch.matmul, lambda x, w: x @ w),
    "reversed operator": (torch.matmul, lambda x, w: w.__rmatmul__(x)),
    "from the left": (torch.matmul, lambda x, w: (w.mT @ x.mT).mT),
    "mm": (torch.mm, lambda x, w: torch.mm(mat2=w, input=x)),
    "bmm": (torch.bmm, lambda x, w: torch.bmm(x[None], w[None])[0]),
    "mv": (torch.mv, lambda x, w: torch.stack([torch.mv(w.T, row) for row in x])),
    "einsum": (torch.einsum, lambda x, w: torch.einsum("bi,io->bo", x, w)),
    "einsum, turned": (torch.einsum, lambda x, w: torch.einsum("io,bi->bo", w, x)),
    "einsum of a list": (torch.einsum, lambda x, w: torch.einsum("bi,io->bo", [x, w])),
}


@pytest.mark.parametrize("rule", [Gamma(), AlphaBeta(), WSquare()], ids=str)
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_an_input_and_a_constant(name, rule):
    key, function = PRODUCTS[name]
    torch.manual_seed(10)
    layer = nn.Linear(3, 2, bias=False).double().requires_grad_(False)
    x, r = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    wanted = expected_relevance(layer, x, r, dict(RULES)[rule])
    assert_close(relevance(Fn(lambda _, x: function(x, layer.weight.T)), x, rule, r, key=key), wanted, 1e-9)


# ---- layers of one's own -------------------------------------------------------------------------------------------


class Own(nn.Module):
    """A linear layer that torch knows nothing of: ``function(x, weight, bias)``."""

    def __init__(self, function, layer):
        super().__init__()
        self.function, self.weight, self.bias = function, layer.weight, layer.bias

    def forward(self, x):
        return self.function(x, self.weight, self.bias)


OWN = {
    "matmul and add": lambda x, w, b: x @ w.T + b,
    "matmul from the left": lambda x, w, b: (w @ x.mT).mT + b,
    "einsum": lambda x, w, b: torch.einsum("...i,oi->...o", x, w) + b,
    "addmm with factors": lambda x, w, b: torch.addmm(b / 2, x.flatten(0, -2), w.T / 4, beta=2, alpha=4).unflatten(
        0, x.shape[:-1]
    ),
    "one linear call among views": lambda x, w, b: F.linear(x.reshape(-1, 3), w, b).reshape(*x.shape[:-1], 2),
    "sum of products": lambda x, w, b: (x[..., None, :] * w).sum(-1) + b,
    "two layers": lambda x, w, b: F.linear(F.linear(x, torch.eye(3, dtype=x.dtype) * 2), w / 2) + b,
    "through fft": lambda x, w, b: F.linear(torch.fft.ifft(torch.fft.fft(x, dim=-1), dim=-1).real, w, b),
}


OWN_AND_RULES = [
    (name, rule, oracle)
    for name in OWN
    for rule, oracle in RULES
    # Rounding of the transforms makes weights of 0 that are not, and these rules see each weight, however small.
    if not isinstance(rule, Epsilon) and not (name == "through fft" and isinstance(rule, (Flat, ZBox)))
]


@pytest.mark.parametrize(("name", "rule", "oracle"), OWN_AND_RULES, ids=label)
def test_own_linear_layers_give_the_numbers_of_linear(name, rule, oracle):
    torch.manual_seed(2)
    layer = nn.Linear(3, 2).double().requires_grad_(False)
    for x in (torch.randn(2, 2, 3, dtype=torch.float64), torch.rand(2, 2, 3, dtype=torch.float64)):
        r = torch.randn(2, 2, 2, dtype=torch.float64)
        wanted = expected_relevance(layer, x, r, oracle)
        assert_close(relevance(Own(OWN[name], layer), x, rule, r), wanted, 1e-9)


def test_own_layer_with_keywords_and_constants_and_one_without_batch():
    torch.manual_seed(3)
    layer = nn.Linear(3, 2).double().requires_grad_(False)
    x, r = torch.randn(3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    wanted = expected_relevance(layer, x, r, oracles.gamma(0.25))

    class Odd(nn.Module):
        def forward(self, scale, *, inputs):
            return (layer.weight * inputs["x"]).sum(1) * scale + layer.bias

    leaf = x.clone().requires_grad_()
    with Gamma().register(module := Odd()):
        module(torch.ones(2, dtype=torch.float64), inputs={"x": leaf}).backward(r)
    assert_close(leaf.grad, wanted, 1e-10)


def test_blocks_give_the_rule_to_each_layer_inside():
    """A block of layers is no layer: Gamma on a Sequential is Gamma on its layers, Identity on its activation."""
    torch.manual_seed(4)
    block = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 2)).double()
    x, r = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    assert torch.equal(relevance(block, x, Gamma(), r, key=""), relevance(block, x, Gamma(), r, key=nn.Linear))


def test_blocks_with_products_of_two_carriers():
    """Attention inside a block: its layers get the rule, the products of queries, keys and values their own."""
    torch.manual_seed(4)
    block = Attention(4).double()
    x, r = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.equal(relevance(block, x, Gamma(), r, key=""), relevance(block, x, Gamma(), r, key=nn.Linear))


@pytest.mark.parametrize("rule", [AlphaBeta(), ZPlus()], ids=str)
def test_inputs_of_zero_have_no_slot_in_the_gradient_formulation(rule):
    """The share of a neuron without contributions is R over the stabilizer alone: it must not reach what is 0."""
    layer = nn.Linear(3, 2).double()
    for rows in ([0.0, 0.0, 0.0], [0.0, 1.0, 2.0], [0.0, -1.0, 2.0]):
        x = torch.tensor([rows], dtype=torch.float64, requires_grad=True)
        with rule.register(layer, formulation="gradient"):
            layer(x).sum().backward()
        assert torch.equal(x.grad != 0, x.detach() != 0)


@pytest.mark.parametrize("rule", [Gamma(), AlphaBeta(), ZPlus(), ZBox(0.0, 1.0), WSquare(), Flat()], ids=str)
def test_layers_that_are_not_linear_are_refused(rule):
    for module in (nn.ReLU(), nn.LayerNorm(3), nn.MaxPool1d(2), nn.Softmax(-1), nn.GroupNorm(1, 3)):
        with pytest.raises(RuleError, match=r"fits layers that are linear.*use Identity\(\).*Norm\(\).*Epsilon\(\)"):
            Composite({"": rule}).register(module)
    x = torch.randn(2, 3, requires_grad=True)
    bent = [lambda _, x: x.relu() @ torch.ones(3, 2), lambda _, x: x * x, lambda _, x: x.clamp(-1, 1) @ torch.eye(3)]
    for key, model in ((F.relu, Fn(lambda _, x: F.relu(x))), *(("", Fn(function)) for function in bent)):
        with Composite({key: rule}).register(model), pytest.raises(RuleError, match="is not: it is not W x"):
            model(x)


def test_weights_that_carry_relevance_are_refused():
    x, w = torch.randn(2, 3, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    with Composite({torch.matmul: Gamma()}).register(model := Fn(lambda _, a, b: a @ b)):
        with pytest.raises(RuleError, match=r"2 tensors carry relevance.*UniformEpsilon"):
            model(x, w)
        model(x, w.detach())


def test_too_large_a_layer_to_differentiate_says_so():
    x = torch.zeros(1, 20000, requires_grad=True)
    with Gamma().register(model := Fn(lambda _, x: torch.fft.fft(x).real)), pytest.raises(RuleError, match="too many"):
        model(x)


# ---- other linear layers -------------------------------------------------------------------------------------------


def batch_norm():
    layer = nn.BatchNorm2d(2).double().eval()
    with torch.no_grad():
        layer.running_mean.normal_(), layer.running_var.uniform_(0.5, 2), layer.weight.normal_(), layer.bias.normal_()
    return layer


OTHERS = {
    "avg_pool": lambda: nn.AvgPool2d(3, 1, 1),
    "adaptive_avg_pool": lambda: nn.AdaptiveAvgPool2d(2),
    "batch_norm": batch_norm,
    "upsample": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "zero_pad": lambda: nn.ZeroPad2d(1),
    "mean": lambda: Fn(lambda _, x: x.mean(-1)),
    "sum": lambda: Fn(lambda _, x: x.sum((1, 3), keepdim=True)),
}


@pytest.mark.parametrize(
    ("rule", "oracle"), [(r, o) for r, o in RULES if not isinstance(r, (Flat, Epsilon))], ids=label
)
@pytest.mark.parametrize("name", OTHERS)
def test_other_linear_layers(name, rule, oracle):
    """Pooling, eval batch norm and such are layers as well; what only moves relevance moves it."""
    torch.manual_seed(5)
    layer = OTHERS[name]()
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    r = torch.randn_like(layer(x))
    dense = oracles.Dense(layer, x.shape)
    wanted = dense.relevance(oracle, x, r)
    if name == "zero_pad":
        wanted = (r.flatten() @ dense.weight).reshape(x.shape)  # exact, whatever the rule
    # The square of an average is small beside the stabilizer; the rule knows that all weights of a pool are equal.
    assert_close(relevance(layer, x, rule, r), wanted, 1e-4 if "pool" in name and isinstance(rule, WSquare) else 1e-9)


def test_bilinear_is_linear_in_the_input_that_carries():
    torch.manual_seed(6)
    layer = nn.Bilinear(3, 2, 4).double().requires_grad_(False)
    x, constant, r = torch.randn(2, 3).double(), torch.randn(2, 2).double(), torch.randn(2, 4).double()
    leaf = x.clone().requires_grad_()
    with Gamma().register(layer):
        layer(leaf, constant).backward(r)
    for i in range(2):
        dense = oracles.Dense(Fn(lambda _, x, i=i: layer(x, constant[i : i + 1])), (1, 3))
        assert_close(leaf.grad[i : i + 1], dense.relevance(oracles.gamma(0.25), x[i : i + 1], r[i : i + 1]), 1e-9)


def test_bilinear_of_two_carriers_shares_evenly_by_default():
    """A product of two carriers: each gets half of what is not the bias's."""
    torch.manual_seed(6)
    layer = nn.Bilinear(3, 2, 4, bias=False).double()
    a, b = torch.randn(2, 3).double().requires_grad_(), torch.randn(2, 2).double().requires_grad_()
    with Composite().register(layer):
        z = layer(a, b)
        z.backward(z.detach())
    for x in (a, b):
        assert_close(x.grad.sum(1), z.detach().sum(1) / 2, 1e-4)


def test_embedding_bag_shares_by_contribution_to_its_sum():
    """Integers carry nothing; weights per sample do, in proportion to what they bring in."""
    torch.manual_seed(7)
    bag = nn.EmbeddingBag(6, 3, mode="sum").double()
    ids = torch.tensor([[0, 1, 2], [3, 4, 5]])
    weights = torch.rand(2, 3, dtype=torch.float64).requires_grad_()
    with Composite().register(bag) as registration:
        z = bag(ids, per_sample_weights=weights)
        z.backward(z.detach())
    wanted = (bag.weight.detach()[ids] * weights.detach()[..., None]).sum(-1)
    assert_close(weights.grad, wanted, 1e-5)
    assert registration.report().complete
    weights.grad = None
    with Gamma().register(bag):
        bag(ids, per_sample_weights=weights).backward(z.detach())
    for i in range(2):
        dense = oracles.Dense(Fn(lambda _, w, i=i: bag(ids[i : i + 1], per_sample_weights=w)), (1, 3))
        wanted = dense.relevance(oracles.gamma(0.25), weights.detach()[i : i + 1], z.detach()[i : i + 1])
        assert_close(weights.grad[i : i + 1], wanted, 1e-9)


def test_embedding_moves_relevance_to_the_rows_that_were_looked_up():
    """Ids carry nothing, and a table that does (one that is computed) gets back what was taken from it."""
    ids, table = torch.tensor([[0, 2, 2]]), torch.randn(4, 3, dtype=torch.float64).requires_grad_()
    with Composite().register(model := Fn(lambda _, table: F.embedding(ids, table))) as registration:
        z = model(table)
        z.backward(z.detach())
    assert_close(table.grad, table.detach() * torch.tensor([1.0, 0.0, 2.0, 0.0]).double()[:, None])
    assert registration.report().complete


@pytest.mark.parametrize("option", ["scale_grad_by_freq", "sparse"])
def test_embedding_with_a_gradient_for_training(option):
    ids, table = torch.tensor([[2, 0, 2]]), torch.randn(4, 3).double().requires_grad_()
    model = Fn(lambda _, table: F.embedding(ids, table, **{option: True}))
    with Composite().register(model):
        z = model(table)
        z.backward(z.detach())
    assert_close(table.grad, table.detach() * torch.tensor([1.0, 0.0, 2.0, 0.0]).double()[:, None])


# ---- numbers -------------------------------------------------------------------------------------------------------


def test_trap_16_bias_is_counted_once():
    layer = nn.Linear(2, 1).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0]])), layer.bias.fill_(-1.0)
    x, r = torch.ones(1, 2, dtype=torch.float64), torch.tensor([[-1.0]], dtype=torch.float64)
    layer.requires_grad_(False)
    assert_close(relevance(layer, x, AlphaBeta(1.0, 0.0), r), torch.tensor([[-1.0, 0.0]]).double(), 1e-5)
    assert_close(relevance(layer, x, AlphaBeta(2.0, 1.0), r), torch.tensor([[-2.0, 0.5]]).double(), 1e-5)


def test_zbox_takes_tensors_that_broadcast():
    """Bounds for each channel, and bounds that differ from sample to sample."""
    layer, x = layer_and_input("conv2d, uneven")
    r = torch.randn_like(layer(x))
    low, high = -torch.rand(1, 2, 1, 1).double() - 2, torch.rand(2, 1, 1).double() + 2
    found = relevance(layer, x, ZBox(low, high), r)
    wanted = oracles.zbox(low.expand(1, *x.shape[1:]).flatten(), high.expand(1, *x.shape[1:]).flatten())
    assert_close(found, expected_relevance(layer, x, r, wanted), 1e-9)
    each = torch.arange(3.0, 5.0).double().reshape(2, 1, 1, 1)
    found = relevance(layer, x, ZBox(-each, each), r)
    for i, bound in enumerate((3.0, 4.0)):
        wanted = expected_relevance(layer, x[i : i + 1], r[i : i + 1], oracles.zbox(-bound, bound))
        assert_close(found[i : i + 1], wanted, 1e-9)


def test_cancellation_falls_back_to_the_parts_themselves():
    """Sums that a difference would get wrong: in float32 the result stays within 1e-4 of float64's."""
    torch.manual_seed(8)
    tiny = 10.0 ** -torch.arange(0.0, 7.0)
    for x in (torch.ones(7, 3), torch.tensor([[1.0, -1.0, 1.0]]).expand(7, 3)):
        layer = nn.Linear(3, 7, bias=False).requires_grad_(False)
        layer.weight.copy_(torch.stack([tiny, -torch.ones(7), -torch.rand(7)], 1) * x.sign())
        r = torch.ones(7, 7)
        for rule, oracle in ((AlphaBeta(), oracles.alpha_beta(2.0, 1.0)), (ZPlus(), oracles.zplus())):
            for rows in (x.contiguous(), -x):
                found = relevance(layer, rows, rule, r)
                wanted = expected_relevance(layer, rows, r, oracle)
                assert float((found - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


@pytest.mark.parametrize("stabilizer", [
    Stabilizer(0.1), Stabilizer(0.1, clip=True), Stabilizer(0.1, norm_scale=True), Stabilizer(0.1, True, True, (1,)),
    lambda z: z + 0.2 * torch.where(z >= 0, 1.0, -1.0).to(z),
])  # fmt: skip
def test_stabilizers(stabilizer):
    """Any function of the denominator: added, clipped, or relative to the root mean square of a sample's outputs."""
    torch.manual_seed(9)
    layer = nn.Linear(3, 4).double().requires_grad_(False)
    x, r = torch.randn(2, 3).double(), torch.randn(2, 4).double()
    active = torch.rand(2, 3).double()

    def kept_from_zero(z):
        sign = torch.where(z >= 0, 1.0, -1.0).double()
        if not isinstance(stabilizer, Stabilizer):
            return z + 0.2 * sign
        e = 0.1 * (z.square().mean().sqrt() if stabilizer.norm_scale else 1.0)
        return sign * torch.maximum(z.abs(), torch.as_tensor(e, dtype=z.dtype)) if stabilizer.clip else z + e * sign

    for rule, oracle in (
        (Gamma(0.5, stabilizer), oracles.gamma(0.5, stabilize=kept_from_zero)),
        (Epsilon(stabilizer), oracles.gamma(0.0, stabilize=kept_from_zero)),
        (AlphaBeta(2.0, 1.0, stabilizer), oracles.alpha_beta(2.0, 1.0, stabilize=kept_from_zero)),
    ):
        assert_close(relevance(layer, x, rule, r), expected_relevance(layer, x, r, oracle), 1e-9)
        wanted = expected_relevance(layer, active, layer(active).relu(), oracle)
        assert_close(relevance(layer, active, rule, layer(active).relu()), wanted, 1e-9)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Gamma(-0.1), r"gamma must be finite and in \[0, inf\]"), (lambda: Gamma(float("inf")), "gamma must"),
    (lambda: Gamma(epsilon=-1.0), "epsilon must be finite"), (lambda: AlphaBeta(2.0, 2.0), "alpha - beta must be 1"),
    (lambda: AlphaBeta(0.5, -0.5), r"beta must be finite and in \[0"), (lambda: ZBox(1.0, 0.0), "low must not be"),
    (lambda: ZBox(float("nan"), 0.0), "low must be"), (lambda: ZBox(torch.tensor([0.0, 2.0]), 1.0), "low must not"),
    (lambda: ZPlus(-1.0), "epsilon"), (lambda: WSquare(-1.0), "epsilon"), (lambda: Flat(-1.0), "epsilon"),
    (lambda: Stabilizer(0.0), "epsilon must be above 0"), (lambda: Epsilon(float("nan")), "epsilon must be finite"),
])  # fmt: skip
def test_parameters_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_parameters_of_a_wrong_type():
    for make in (lambda: Gamma("0.25"), lambda: AlphaBeta(True, 0.0), lambda: Epsilon("1e-6")):
        with pytest.raises(TypeError, match="must be a number"):
            make()


@pytest.mark.parametrize("rule", [ZBox(0.0, 1.0), WSquare(), Flat()], ids=str)
def test_rules_that_need_the_relevance_formulation_say_so(rule):
    for key in (nn.Linear, F.linear):
        with pytest.raises(RuleError, match=r"needs formulation='relevance', not 'gradient'"):
            Composite({key: rule}, formulation="gradient").register(nn.Linear(2, 2))


def test_rules_are_values():
    assert Gamma(0.25) == Gamma()
    assert Gamma(0.5) != Gamma()
    assert ZBox(0.0, torch.ones(1, 3)) == ZBox(0.0, torch.ones(1, 3))
    assert ZBox(0.0, 1.0) != ZBox(0.0, 2.0)
    assert len({ZPlus(), ZPlus(), ZBox(0.0, 1.0), ZBox(0.0, 1.0)}) == 2
    assert str(Gamma()) == "Gamma(gamma=0.25)"
    assert str(Gamma(zero_bias=True)) == "Gamma(gamma=0.25, zero_bias=True)"
    assert str(ZBox(0.0, torch.ones(1, 3))) == "ZBox(low=0.0, high=tensor(1, 3))"
