"""Merging batch norms: the right weights, found by running order, no trace; oracles are dense and written slowly."""

import copy
import io
import pickle
import threading

import pytest
import support
import torch
from support import assert_close, fingerprint, label
from torch import nn
from torch.nn import functional as F

from lxt_compose import AlphaBeta, Composite, Epsilon, Gamma, MatchError, RegistrationError
from lxt_compose.canonizers.merge_batch_norm import MergeBatchNorm
from lxt_compose.canonizers.module_order import followed_by


class Fn(support.Fn):
    """Unlike one with *args, it can be traced."""

    def forward(self, x):
        return self.function(self, x)


def randomize(model, eps=0.3):
    """Statistics, scales and eps that make every part of the formula matter."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eps = eps
            if module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.1, 3)
            if module.weight is not None:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.double().eval()


def values_of(model):
    """Copies of all that can be saved of a model."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_values(model, values):
    assert list(model.state_dict()) == list(values)
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())


def dense(layer, norm, shape):
    """W' [outputs, inputs] and b' [outputs] of ``norm(layer(x))`` as one affine map, probed input by input."""
    with torch.no_grad():
        # what the batch norm does to a channel, from its definition
        sigma = (norm.running_var + norm.eps) ** 0.5
        gamma = torch.ones_like(sigma) if norm.weight is None else norm.weight
        beta = torch.zeros_like(sigma) if norm.bias is None else norm.bias

        def both(x):
            z = layer(x)
            scaled = [(z[:, c] - norm.running_mean[c]) / sigma[c] * gamma[c] + beta[c] for c in range(len(sigma))]
            return torch.stack(scaled, 1).flatten()

        offset = both(torch.zeros(1, *shape, dtype=torch.float64))
        count = torch.Size(shape).numel()
        columns = [both(one.reshape(1, *shape)) - offset for one in torch.eye(count, dtype=torch.float64)]
    return torch.stack(columns, 1), offset


def stabilized(z, epsilon=1e-6):
    return z + torch.where(z >= 0, epsilon, -epsilon)


def relevance_of(rule, weight, bias, x, relevance):
    """The rule's formula on a dense layer; x [inputs], relevance [outputs]."""
    contributions = weight * x
    positive, negative = contributions.clamp(min=0), contributions.clamp(max=0)
    if isinstance(rule, Epsilon):
        return (contributions * (relevance / stabilized(contributions.sum(1) + bias))[:, None]).sum(0)
    if isinstance(rule, AlphaBeta):
        up = relevance / stabilized(positive.sum(1) + bias.clamp(min=0))
        down = relevance / stabilized(negative.sum(1) + bias.clamp(max=0))
        return (rule.alpha * positive * up[:, None] - rule.beta * negative * down[:, None]).sum(0)
    z = contributions.sum(1) + bias
    same = torch.where((z >= 0)[:, None], positive, negative)
    same_bias = torch.where(z >= 0, bias.clamp(min=0), bias.clamp(max=0))
    weighted = contributions + rule.gamma * same
    return (weighted * (relevance / stabilized(weighted.sum(1) + bias + rule.gamma * same_bias))[:, None]).sum(0)


LAYERS = {
    "linear": (lambda bias: nn.Linear(5, 4, bias), nn.BatchNorm1d, (5,)),
    "conv1d": (lambda bias: nn.Conv1d(2, 4, 3, stride=2, padding=1, bias=bias), nn.BatchNorm1d, (2, 7)),
    "conv2d": (lambda bias: nn.Conv2d(4, 6, 3, groups=2, dilation=2, padding=2, bias=bias), nn.BatchNorm2d, (4, 5, 5)),
    "conv3d": (lambda bias: nn.Conv3d(2, 4, 2, bias=bias), nn.BatchNorm3d, (2, 3, 3, 3)),
    "transposed 1d": (lambda bias: nn.ConvTranspose1d(3, 4, 3, stride=2, bias=bias), nn.BatchNorm1d, (3, 4)),
    "transposed 2d": (
        lambda bias: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, bias=bias),
        nn.BatchNorm2d,
        (4, 3, 3),
    ),
    "transposed 3d": (lambda bias: nn.ConvTranspose3d(2, 4, 2, groups=2, bias=bias), nn.BatchNorm3d, (2, 2, 2, 2)),
}


@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
@pytest.mark.parametrize("rule", [Epsilon(1e-6), Gamma(0.5), AlphaBeta(2.0, 1.0)], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", LAYERS)
def test_relevance_is_that_of_the_merged_layer(name, bias, rule, formulation):
    torch.manual_seed(0)
    build, norm, shape = LAYERS[name]
    layer = build(bias)
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    model = randomize(nn.Sequential(layer, norm(channels)), eps=0.7)
    weight, offset = dense(model[0], model[1], shape)
    x = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    plain = model(x).detach()
    with Composite({type(layer): rule}, formulation=formulation, canonizers=[MergeBatchNorm()]).register(model):
        y = model(x)
        assert_close(y.detach(), plain, 1e-13)
        given = torch.randn_like(y)
        y.backward(given)
    found = x.grad if formulation == "relevance" else x.detach() * x.grad
    start = given if formulation == "relevance" else given * y.detach()
    for sample in range(2):
        expected = relevance_of(rule, weight, offset, x[sample].detach().flatten(), start[sample].flatten())
        assert_close(found[sample].flatten(), expected, 1e-9)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_forward_is_equal_to_float_tolerance_and_the_model_is_never_changed(dtype, affine):
    torch.manual_seed(0)
    model = randomize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=affine), nn.ReLU())).to(dtype)
    x = torch.randn(2, 3, 6, 6).to(dtype)
    values, before, plain = values_of(model), fingerprint(model), model(x).detach()
    handle = MergeBatchNorm().apply(model)
    tolerance = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(model(x), plain, rtol=tolerance, atol=tolerance * float(plain.abs().max()))
    assert_same_values(model, values)  # bit for bit, also while it is merged
    handle.remove()
    handle.remove()
    assert fingerprint(model) == before
    assert_same_values(model, values)
    assert torch.equal(model(x), plain)


class Block(nn.Module):
    """Lists in another order than they run in, an optional argument, and a residual."""

    def __init__(self, channels=4):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, x, scale=None):
        y = F.relu(self.norms[1](self.convs[0](x)))
        y = self.norms[0](self.convs[1](y))
        if scale is not None:
            y = y * scale
        return F.relu(x + y)


class Untraceable(nn.Module):
    """Control flow on values, around parts that can be traced."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.blocks = nn.ModuleList([Block(), Block()])
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(self.conv(x)) if x.sum() > 0 else x


def report_of(model, x, **options):
    with Composite(canonizers=[MergeBatchNorm(**options)]).register(model) as registration:
        model(x.requires_grad_())
        return registration.report()


def test_pairs_are_found_by_running_order_not_by_definition():
    model = randomize(Block())
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    plain = model(x)
    handle = MergeBatchNorm().apply(model)
    assert handle.notes == ("batch norms merged: convs.1 + norms.0; convs.0 + norms.1",)
    assert_close(model(x).detach(), plain.detach(), 1e-13)
    handle.remove()


def test_what_does_not_trace_is_taken_apart_and_the_rest_is_named():
    model = randomize(Untraceable())
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    plain = model(x)
    report = report_of(model, x)
    assert report.notes == (
        "batch norms merged: stem: 0 + 1; blocks.{0,1}: convs.1 + norms.0; blocks.{0,1}: convs.0 + norms.1",
        "batch norms not merged: norm: it is not known what it takes, since the model does not trace (TraceError: "
        "symbolically traced variables cannot be used as inputs to control flow)",
    )
    assert report.complete
    first = next(row for row in report.rows if row.target == "BatchNorm2d")
    assert (first.path, first.rule, first.key) == ("stem.1", "Pass()", "MergeBatchNorm")
    named = report_of(model, x, pairs=[("conv", "norm")])
    assert named.notes == ("batch norms merged: conv + norm",)
    assert torch.equal(model(x), plain)


def test_pairs_by_pattern():
    model = randomize(Untraceable())
    model.extra = nn.Conv2d(4, 4, 1)  # with no batch norm beside it
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    plain = model(x)
    pairs = [("blocks.*.convs.0", "blocks.*.norms.1"), ("stem.0", "stem.1"), ("con*", "nor*")]
    with pytest.raises(MatchError):
        MergeBatchNorm(pairs=pairs).apply(model)
    pairs[-1] = ("*conv", "*norm")
    handle = MergeBatchNorm(pairs=pairs).apply(model)
    assert handle.notes == ("batch norms merged: blocks.{0,1}: convs.0 + norms.1; stem: 0 + 1; conv + norm",)
    assert_close(model(x).detach(), plain.detach(), 1e-13)
    handle.remove()


def conv_used_twice(m, x):
    return m.norm(m.conv(x)) + m.conv(x)


def output_used_elsewhere(m, x):
    y = m.conv(x)
    return m.norm(y) + y


def norm_used_twice(m, x):
    return m.norm(m.conv(x)) + m.norm(m.other(x))


def activation_between(m, x):
    return m.norm(F.relu(m.conv(x)))


def norm_first(m, x):
    return m.conv(m.norm(x))


def together_twice(m, x):
    return m.norm(m.conv(m.norm(m.conv(x))))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (conv_used_twice, "the output of conv is used elsewhere too"),
        (output_used_elsewhere, "the output of conv is used elsewhere too"),
        (norm_used_twice, "it does not always take the output of one and the same layer"),
        (activation_between, "it does not take the output of such a layer directly"),
        (norm_first, "it does not take the output of such a layer directly"),
        (together_twice, None),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_only_what_always_follows_is_merged(function, reason):
    children = {"conv": nn.Conv2d(3, 3, 1), "other": nn.Conv2d(3, 3, 1), "norm": nn.BatchNorm2d(3)}
    model = randomize(Fn(function, **children))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    plain = model(x)
    handle = MergeBatchNorm().apply(model)
    expected = "batch norms merged: conv + norm" if reason is None else f"batch norms not merged: norm: {reason}"
    assert handle.notes == (expected,)
    assert_close(model(x).detach(), plain.detach(), 1e-13)
    handle.remove()


@pytest.mark.parametrize("shared", ["conv", "norm"])
def test_a_module_that_is_mounted_twice_in_what_does_not_trace_is_not_merged(shared):
    class Picky(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    conv, norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
    other = nn.Sequential(conv, nn.ReLU()) if shared == "conv" else nn.Sequential(nn.ReLU(), norm)
    model = randomize(nn.Sequential(nn.Sequential(conv, norm, Picky()), other))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    plain = model(x)
    handle = MergeBatchNorm().apply(model)
    assert handle.notes[0].startswith("batch norms not merged: ")
    assert torch.equal(model(x), plain)
    handle.remove()


def test_a_pair_that_turns_out_not_to_follow_raises_in_forward():
    model = randomize(Fn(norm_used_twice, conv=nn.Conv2d(3, 3, 1), other=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3)))
    before = fingerprint(model)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    composite = Composite(canonizers=[MergeBatchNorm(pairs=[("conv", "norm")])])
    with composite.register(model), pytest.raises(RegistrationError, match="'norm' is merged into 'conv', but takes"):
        model(x)
    assert fingerprint(model) == before


def test_linear_on_sequences_has_its_outputs_in_another_dimension_than_the_batch_norm():
    model = randomize(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)))
    with Composite(canonizers=[MergeBatchNorm()]).register(model):
        model(torch.randn(3, 5, dtype=torch.float64, requires_grad=True))
        with pytest.raises(RegistrationError, match=r"'1' normalizes dimension 1 of \(3, 4, 4\)"):
            model(torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True))


def two_norms():
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))


class TestRefusals:
    @pytest.mark.parametrize("options", [{}, {"pairs": [("0", "1"), ("2", "3")]}])
    def test_train_mode(self, options):
        model = two_norms()
        model[1].eval()
        before = fingerprint(model)
        with pytest.raises(RegistrationError, match=r"train mode .* '3'; call model.eval\(\) first"):
            Composite({nn.Conv2d: Gamma()}, canonizers=[MergeBatchNorm(**options)]).register(model)
        assert fingerprint(model) == before

    def test_train_mode_while_merged(self):
        model = randomize(two_norms())
        x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
        values = values_of(model)
        with Composite(canonizers=[MergeBatchNorm()]).register(model):
            model.train()
            with pytest.raises(RegistrationError, match="'1' was put into train mode while it is merged into '0'"):
                model(x)
        assert_same_values(model, values)

    @pytest.mark.parametrize(
        ("pairs", "message"),
        [
            ([("0", "2")], "Conv2d has no running_mean"),
            ([("1", "3")], "BatchNorm2d has no weight of two"),
            ([("0", "1"), ("0", "3")], "is in several pairs"),
            ([("0", "1"), ("2", "1")], "is in several pairs"),
            ([("wide", "1")], "normalizes 3 channels, but the layer before has 5 outputs"),
            ([("0", "batchwise")], "no running statistics"),
        ],
    )
    def test_named_pairs(self, pairs, message):
        model = two_norms()
        model.add_module("wide", nn.Conv2d(3, 5, 1))
        model.add_module("batchwise", nn.BatchNorm2d(3, track_running_stats=False))
        model.eval()
        before = fingerprint(model)
        with pytest.raises(RegistrationError, match=message):
            MergeBatchNorm(pairs=pairs).apply(model)
        assert fingerprint(model) == before

    def test_unknown_name(self):
        with pytest.raises(MatchError, match="no module is named 'conf' in Fn; closest: 'conv'"):
            MergeBatchNorm(pairs=[("conf", "norm")]).apply(Fn(norm_first, conv=nn.Conv2d(3, 3, 1)))

    def test_unknown_names_by_pattern(self):
        with pytest.raises(MatchError, match=r"no two modules in Untraceable are named '\*\.conv' and '\*\.norm'"):
            MergeBatchNorm(pairs=[("*.conv", "*.norm")]).apply(randomize(Untraceable()))

    def test_patterns_that_do_not_fit_each_other(self):
        with pytest.raises(ValueError, match=r"so both need as many \*"):
            MergeBatchNorm(pairs=[("*.conv", "norm")])

    @pytest.mark.parametrize("pairs", [["conv1"], [("a", "b", "c")], 3, [(1, 2)], []])
    def test_wrong_pairs(self, pairs):
        with pytest.raises(TypeError, match="pairs must be pairs of names such as"):
            MergeBatchNorm(pairs=pairs)

    @pytest.mark.parametrize("canonizers", [MergeBatchNorm(), MergeBatchNorm, 3], ids=["one", "class", "number"])
    def test_no_list_of_canonizers(self, canonizers):
        with pytest.raises(TypeError, match=r"canonizers must be a list, such as \[MergeBatchNorm\(\)\], got"):
            Composite(canonizers=canonizers)

    def test_a_canonizer_without_a_handle(self):
        class Forgets:
            def apply(self, model):
                return None

        model = randomize(two_norms())
        before = fingerprint(model)
        with pytest.raises(TypeError, match=r"must return a handle with remove\(\), got None"):
            Composite(canonizers=[MergeBatchNorm(), Forgets()]).register(model)
        assert fingerprint(model) == before

    @pytest.mark.parametrize("canonizer", [MergeBatchNorm, 3, "merge", nn.ReLU()], ids=label)
    def test_wrong_canonizer(self, canonizer):
        with pytest.raises(TypeError, match=r"a canonizer is an object with apply\(model\)"):
            Composite(canonizers=[canonizer])

    def test_merging_twice(self):
        model = randomize(two_norms())
        handle = MergeBatchNorm().apply(model)
        with pytest.raises(RegistrationError, match="it is merged already"):
            MergeBatchNorm(pairs=[("0", "1")]).apply(model)
        handle.remove()

    def test_layers_that_compute_otherwise_are_left(self):
        class Standardized(nn.Conv2d):
            def forward(self, x):
                return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

        parametrized = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1))
        model = nn.Sequential(Standardized(3, 3, 1), nn.BatchNorm2d(3), parametrized, nn.BatchNorm2d(3))
        randomize(model.append(nn.BatchNorm2d(3, track_running_stats=False)))
        x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
        plain = model(x)
        with pytest.warns(
            UserWarning, match="MergeBatchNorm merges nothing in Sequential; batch norms not merged: 4: "
        ):
            handle = MergeBatchNorm().apply(model)
        assert not handle.identities
        reasons = ("1: with merged values they compute", "3: the weight of 2 is computed", "4: it does not take")
        assert len(handle.notes) == 3
        assert all(any(reason in note for note in handle.notes) for reason in reasons)
        assert torch.equal(model(x), plain)
        handle.remove()

    def test_parameters_that_carry_relevance(self):
        model = randomize(two_norms())
        leaves = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
        x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
        composite = Composite(canonizers=[MergeBatchNorm()])
        with composite.register(model), pytest.raises(RegistrationError, match="a parameter of '0' or '1' carries"):
            torch.func.functional_call(model, leaves, (x,))


class Thrower(nn.Module):
    fails = True

    def forward(self, x):
        if self.fails:
            raise ValueError("thrown")
        return x


class TestNoTrace:
    def test_after_an_exception_in_the_model(self):
        model = randomize(nn.Sequential(*two_norms(), Thrower()))
        before, values = fingerprint(model), values_of(model)
        x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
        with pytest.raises(ValueError, match="thrown"), Composite(canonizers=[MergeBatchNorm()]).register(model):
            model(x)
        assert fingerprint(model) == before
        assert_same_values(model, values)

    def test_after_an_exception_in_the_next_canonizer(self):
        class Faulty:
            def apply(self, model):
                raise ValueError("faulty")

        model = randomize(two_norms())
        before = fingerprint(model)
        with pytest.raises(ValueError, match="faulty"):
            Composite(canonizers=[MergeBatchNorm(), Faulty()]).register(model)
        assert fingerprint(model) == before

    def test_canonizers_are_taken_back_in_reverse(self):
        log = []

        class Noted:
            def __init__(self, name):
                self.name = name

            def apply(self, model):
                log.append(f"apply {self.name}")
                return self

            def remove(self):
                log.append(f"remove {self.name}")

        with Composite(canonizers=[Noted("a"), Noted("b")]).register(nn.Linear(2, 2)):
            pass
        assert log == ["apply a", "apply b", "remove b", "remove a"]

    def test_tracing_leaves_nothing_in_modules_that_remember(self):
        class Remembers(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.norm, self.seen = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), []
                self.register_buffer("steps", torch.zeros(()))

            def forward(self, x):
                self.last = x
                self.seen.append(x)
                self.steps += 1
                return self.norm(self.conv(x + torch.rand(())))

        model = randomize(Remembers())
        called = []
        model.register_forward_hook(lambda *given: called.append(given))
        before, state = fingerprint(model), torch.get_rng_state()
        found, _ = followed_by(model, lambda m: isinstance(m, nn.Conv2d), lambda m: isinstance(m, nn.BatchNorm2d))
        assert found == [("conv", "norm")]
        assert fingerprint(model) == before
        assert (model.seen, float(model.steps), called) == ([], 0.0, [])
        assert torch.equal(torch.get_rng_state(), state)

    def test_a_forward_in_another_thread_is_not_disturbed_by_tracing(self):
        inside, go_on = threading.Event(), threading.Event()

        class Slow(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

            def forward(self, x):
                inside.set()
                assert go_on.wait(20)
                return self.norm(self.conv(x))

        traced, other = randomize(Slow()), randomize(two_norms())
        x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
        plain = other(x)
        handles = []
        thread = threading.Thread(target=lambda: handles.append(MergeBatchNorm().apply(traced)))
        thread.start()
        assert inside.wait(20)
        during = other(x)  # while torch.fx holds nn.Module.__call__ diverted
        go_on.set()
        thread.join()
        assert torch.equal(during, plain)
        assert handles[0].notes == ("batch norms merged: conv + norm",)
        handles[0].remove()

    @pytest.mark.parametrize("copying", ["deepcopy", "pickle", "torch.save"])
    def test_copies_of_a_merged_model_work_on_their_own_values(self, copying):
        model = randomize(two_norms())
        x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
        plain = model(x)
        with Composite(canonizers=[MergeBatchNorm()]).register(model):
            if copying == "deepcopy":
                twin = copy.deepcopy(model)
            elif copying == "pickle":
                twin = pickle.loads(pickle.dumps(model))
            else:
                buffer = io.BytesIO()
                torch.save(model, buffer)
                buffer.seek(0)
                twin = torch.load(buffer, weights_only=False)
            own = dict(twin.named_parameters())
            assert twin[0].weight is own["0.weight"]
            assert twin[1].bias is own["1.bias"]
        assert torch.equal(twin(x), plain)
        with torch.no_grad():
            twin[0].weight.zero_()
            twin[0].bias.zero_()
            twin[1].running_mean.zero_()
            twin[1].bias.fill_(3)
            twin[2].weight.zero_()
        assert not torch.equal(twin(x), plain)
        assert torch.equal(model(x), plain)
        assert all("weight" not in vars(module) for module in twin.modules())

    def test_a_weight_that_changes_meanwhile_is_merged_anew(self):
        model = randomize(two_norms())
        x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
        with Composite(canonizers=[MergeBatchNorm()]).register(model):
            first = model(x)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.5)
                dict(model.named_buffers())["1.running_mean"].add_(1)
            second = model(x)
            model.float()
            assert model(x.float()).dtype == torch.float32
            model.double()
        plain = model(x)
        assert not torch.allclose(first, plain)
        assert_close(second.detach(), plain.detach(), 1e-5)
        assert_close(MergedForward(model)(x), plain.detach(), 1e-12)

    def test_parameters_are_frozen_and_get_no_gradient(self):
        model = randomize(two_norms())
        flags = [p.requires_grad for p in model.parameters()]
        x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
        with Composite(canonizers=[MergeBatchNorm()]).register(model):
            model(x).sum().backward()
        assert [p.requires_grad for p in model.parameters()] == flags
        assert all(p.grad is None for p in model.parameters())


class MergedForward:
    """The output of a model while its batch norms are merged."""

    def __init__(self, model):
        self.model = model

    def __call__(self, x):
        handle = MergeBatchNorm().apply(self.model)
        try:
            return self.model(x).detach()
        finally:
            handle.remove()


def test_a_key_of_the_composite_goes_before_the_rule_for_merged_norms():
    model = randomize(two_norms())
    composite = Composite({"1": Epsilon(0.5)}, canonizers=[MergeBatchNorm()])
    with composite.register(model) as registration:
        model(torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True))
        rows = {row.path: (row.rule, row.key) for row in registration.report().rows if row.target == "BatchNorm2d"}
    assert rows == {"1": ("Epsilon(epsilon=0.5)", "'1'"), "3": ("Pass()", "MergeBatchNorm")}


def test_on_the_meta_device():
    with torch.device("meta"):
        model = two_norms().eval()
    handle = MergeBatchNorm().apply(model)
    assert handle.notes == ("batch norms merged: 0 + 1; 2 + 3",)
    assert model(torch.empty(1, 3, 4, 4, device="meta")).shape == (1, 3, 4, 4)
    handle.remove()
