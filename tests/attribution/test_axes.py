"""What dimensions are called: by the user, by the names of inputs, by the layers that they meet first."""

import pytest
import torch
from support import Fn, assert_close
from torch import nn
from torch.nn import functional as F

from lxt_compose import Attribution, Composite, attribute
from lxt_compose.attribution.axes import find_dims, parse_dims

EXACT = Composite(formulation="gradient")


def pooled(x):
    """The mean of each row: two numbers for each sample, whatever the shape."""
    y = x.flatten(1).mean(1)
    return torch.stack([y, -y], 1)


def dims_of(forward, x, **children):
    """What is found out about the one input of a model."""
    model = Fn(lambda self, x: pooled(forward(self, x)), **children).eval()
    return " ".join(find_dims(model, {"x": x}, {}, (x,), {})["x"])


LAYERS = {
    "conv1d": (lambda self, x: self.a(x), (2, 3, 9), {"a": nn.Conv1d(3, 4, 3)}, "batch channel time"),
    "conv1d behind a transposition": (
        lambda self, x: self.a(x.transpose(1, 2)), (2, 9, 3), {"a": nn.Conv1d(3, 4, 3)}, "batch time channel",
    ),
    "of equal sizes": (
        lambda self, x: self.a(x.mT.contiguous() / 2), (3, 3, 3), {"a": nn.Conv1d(3, 4, 3)}, "batch time channel",
    ),
    "a function": (
        lambda self, x: F.conv1d((x - x.mean()) / 3, torch.ones(2, 3, 3)), (2, 3, 9), {}, "batch channel time",
    ),
    "conv3d": (
        lambda self, x: self.a(x), (2, 1, 5, 6, 7), {"a": nn.Conv3d(1, 2, 3)}, "batch channel depth height width",
    ),
    "frames one by one": (
        lambda self, x: self.a(x.flatten(0, 1)).unflatten(0, x.shape[:2]), (2, 4, 3, 6, 7), {"a": nn.Conv2d(3, 2, 3)},
        "batch frame channel height width",
    ),
    "channels last": (
        lambda self, x: self.a(x.permute(0, 3, 1, 2)), (2, 6, 7, 3), {"a": nn.Conv2d(3, 2, 3)},
        "batch height width channel",
    ),
    "images": (lambda self, x: self.a(x), (2, 3, 6, 7), {"a": nn.Conv2d(3, 2, 3)}, "batch channel height width"),
    "flattened images": (lambda self, x: x, (2, 1, 6, 7), {}, "batch channel height width"),
    "linear": (lambda self, x: self.a(x), (2, 9, 3), {"a": nn.Linear(3, 4)}, "batch token feature"),
    "linear behind a transposition": (
        lambda self, x: self.a(x.movedim(1, -1)), (2, 3, 9), {"a": nn.Linear(3, 4)}, "batch feature token",
    ),
    "a norm": (lambda self, x: self.a(x), (2, 9, 3), {"a": nn.LayerNorm(3)}, "batch token feature"),
    "a norm over two": (lambda self, x: self.a(x), (2, 9, 3), {"a": nn.LayerNorm((9, 3))}, "batch ? ?"),
    "lstm": (lambda self, x: self.a(x)[0], (2, 9, 3), {"a": nn.LSTM(3, 4, batch_first=True)}, "batch time feature"),
    "lstm, batch second": (lambda self, x: self.a(x)[0].mT, (9, 2, 3), {"a": nn.LSTM(3, 4)}, "time batch feature"),
    "attention, batch second": (
        lambda self, x: self.a(self.b(x)).transpose(0, 1), (9, 2, 8),
        {"a": nn.TransformerEncoderLayer(8, 2, 8), "b": nn.Linear(8, 8)}, "token batch feature",
    ),
    "attention": (
        lambda self, x: self.a(x), (2, 9, 8), {"a": nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)},
        "batch token feature",
    ),
    "windows before attention": (
        lambda self, x: self.a(torch.einsum("ntik,k->nti", F.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1), torch.ones(3))),
        (3, 4, 8), {"a": nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)}, "batch token feature",
    ),
    "one pixel in a row": (lambda self, x: self.a(x[:, None]), (2, 9), {"a": nn.Conv1d(1, 4, 3)}, "batch feature"),
    "nothing that tells": (lambda self, x: x, (2, 9, 3), {}, "batch ? ?"),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYERS)
def test_the_first_layers_tell(case):
    forward, shape, children, expected = LAYERS[case]
    assert dims_of(forward, torch.randn(shape), **children) == expected


def test_looking_leaves_inputs_and_random_numbers_alone():
    model, x = Fn(lambda self, x: pooled(self.a(x.mul_(2)) * torch.rand(())), a=nn.Conv1d(3, 4, 3)), torch.ones(1, 3, 9)
    state = torch.get_rng_state()
    assert find_dims(model, {"x": x}, {}, (x,), {})["x"] == ("batch", "channel", "time")
    assert bool((x == 1).all())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_model_runs_no_further_than_it_must():
    def forward(self, x):
        self.a(x)
        raise AssertionError("the first layer has told all")

    assert dims_of(forward, torch.randn(2, 3, 9), a=nn.Conv1d(3, 4, 3)) == "batch channel time"


@pytest.mark.parametrize("size", [None, 1])
def test_scores_of_a_series_are_those_of_points_in_time(size):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    found = attribute(model, torch.randn(2, 2, 30), batch_size=size)
    assert found.dims == {"input": ("batch", "channel", "time")}
    assert_close(found.scores, found.relevance.sum(1))


@pytest.mark.parametrize("size", [None, 1])
def test_samples_that_are_not_counted_by_the_first_dimension(size):
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 4).double()
    second = Fn(lambda self, x: self.a(x)[0][-1], a=lstm).eval()
    first = Fn(lambda self, x: self.a(x.transpose(0, 1))[0][-1], a=lstm).eval()
    x = torch.randn(7, 2, 3, dtype=torch.float64)
    found = attribute(second, x, target=[0, 3], batch_size=size)
    expected = attribute(first, x.transpose(0, 1).contiguous(), dims="batch time feature", target=[0, 3])
    assert len(found) == 2
    assert found.relevance.shape == x.shape
    assert_close(found.scores, expected.relevance.sum(-1))
    assert_close(found.output, expected.output)


class TestTheUsersWord:
    def test_in_all_its_forms(self):
        assert parse_dims("batch channel time", ["x"]) == {"x": ("batch", "channel", "time")}
        assert parse_dims("batch, time", ["x", "y"]) == {"x": ("batch", "time"), "y": ("batch", "time")}
        assert parse_dims(("node", "feature"), ["x"]) == {"x": ("node", "feature")}
        assert parse_dims({"y": "batch time"}, ["x", "y"]) == {"y": ("batch", "time")}
        assert parse_dims(None, ["x"]) == {}

    @pytest.mark.parametrize(
        ("dims", "error", "message"),
        [
            ("batch chanel time", ValueError, "there is no dimension called 'chanel'; dims= knows batch, channel, "),
            ("batch batch time", ValueError, "dims names the batch twice"),
            (3, TypeError, "dims must be a string such as 'batch channel time' or a tuple of names, got 3"),
            ("batch time", ValueError, r"names 2 dimensions, 'batch time', but args0 has the shape \[2, 3, 9\]"),
        ],
    )
    def test_wrong_ones(self, dims, error, message):
        model = Fn(lambda self, x: pooled(x)).eval()
        with pytest.raises(error, match=message):
            attribute(model, torch.randn(2, 3, 9), dims=dims)

    def test_it_stands_above_what_is_found_out(self):
        model = Fn(lambda self, x: pooled(self.a(x)), a=nn.Conv1d(3, 4, 3)).eval()
        found = attribute(model, torch.randn(2, 3, 9), dims="batch time channel", composite=EXACT)
        assert_close(found.scores, found.relevance.sum(2))

    def test_a_table_keeps_its_features(self):
        found = attribute(nn.Linear(3, 2).eval(), torch.randn(4, 3))
        assert found.dims == {"input": ("batch", "feature")}
        assert_close(found.scores, found.relevance)


def test_what_is_not_known_is_refused_with_the_choices():
    found = attribute(Fn(lambda self, x: pooled(x)).eval(), torch.randn(2, 3, 9), composite=EXACT)
    assert found.relevance.shape == (2, 3, 9)
    for ask in (lambda: found.scores, found.heatmap, found.tokens):
        with pytest.raises(
            ValueError, match=r"args0, of shape \[2, 3, 9\], are: pass attribute\(\.\.\., dims=\), such as"
        ):
            ask()


def test_names_are_kept_in_a_file(tmp_path):
    found = attribute(
        Fn(lambda self, x: pooled(x)).eval(), torch.randn(2, 3, 9), composite=EXACT, dims="batch channel time"
    )
    found.save(tmp_path / "found.pt")
    again = Attribution.load(tmp_path / "found.pt")
    assert again.dims == found.dims
    assert_close(again.scores, found.relevance.sum(1))


ARGUMENTS = {
    "Whisper": ("input_features", (1, 80, 200), {"num_mel_bins": 80}, "batch mel time"),
    "Speech2Text": ("input_features", (1, 200, 80), {"input_feat_per_channel": 80}, "batch time mel"),
    "AST": ("input_values", (1, 200, 16), {"num_mel_bins": 16}, "batch time mel"),
    "a wave": ("input_values", (1, 400), {}, "batch time"),
    "a video": ("pixel_values", (1, 4, 3, 8, 8), {"num_frames": 4}, "batch frame channel height width"),
    "several images": ("pixel_values", (1, 4, 3, 8, 8), {}, "batch image channel height width"),
    "an image": ("pixel_values", (1, 2, 8, 8), {}, "batch channel height width"),
    "patches": ("pixel_values", (16, 12), {}, "patch feature"),
    "embeddings": ("inputs_embeds", (1, 4, 8), {}, "batch token feature"),
    "a forecast": ("past_values", (1, 9, 2), {}, "batch time channel"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_names_of_arguments_tell(case):
    name, shape, config, expected = ARGUMENTS[case]
    model = nn.Module()
    model.config = type("Config", (), config)()
    assert " ".join(find_dims(model, {name: torch.randn(shape)}, {}, (), {})[name]) == expected


def test_ids_of_any_shape():
    model = nn.Module()
    for shape, expected in (((4,), "batch"), ((2, 4), "batch token"), ((2, 3, 4), "batch sequence token")):
        x = torch.zeros(shape, dtype=torch.long)
        assert " ".join(find_dims(model, {"input_ids": x}, {}, (), {})["input_ids"]) == expected


class Neighbors(nn.Module):
    """A net for graphs, with the arguments that such nets have."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x, edge_index, edge_weight=None, batch=None):
        source, into = edge_index
        messages = self.a(x)[source]
        if edge_weight is not None:
            messages = messages * edge_weight[:, None]
        return self.b(F.relu(torch.zeros(len(x), 6, dtype=x.dtype).index_add(0, into, messages)))


def test_nodes_of_a_graph_are_no_samples():
    torch.manual_seed(0)
    model, x = Neighbors().double().eval(), torch.randn(7, 3, dtype=torch.float64)
    edges = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])
    found = attribute(model, {"x": x, "edge_index": edges}, target=lambda out: out[3, 1], composite=EXACT)
    assert found.dims == {"x": ("node", "feature")}
    assert len(found) == 1
    assert found.scores.shape == (7,)
    assert found.scores.nonzero().flatten().tolist() == [2]  # the one neighbor
    whole = attribute(model, (x, edges), target=lambda out: out[:, 1].sum(), composite=EXACT)
    assert whole.scores.nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
    weights = {"x": x, "edge_index": edges, "edge_weight": torch.rand(5, dtype=torch.float64)}
    weights["batch"] = torch.zeros(7, dtype=torch.long)
    both = attribute(model, weights, target=lambda out: out[3, 1], composite=EXACT)
    assert both.dims == {"x": ("node", "feature"), "edge_weight": ("edge",)}
    assert both.scores["edge_weight"].nonzero().flatten().tolist() == [2]


def test_instances_of_a_bag_are_no_samples():
    torch.manual_seed(0)
    model = Fn(lambda self, x: self.a(x.amax(0))[None], a=nn.Linear(3, 2)).eval()
    found = attribute(model, torch.randn(6, 3), dims="instance feature", target=1, composite=EXACT)
    assert len(found) == 1
    assert found.scores.shape == (6,)
    assert float(found.scores.sum()) == pytest.approx(float((found.output - model.a.bias[1]).detach()), abs=1e-6)


def test_a_forward_pass_that_needs_gradients_says_so_when_dimensions_stay_unknown():
    def energy(self, x):
        with torch.enable_grad():
            (slope,) = torch.autograd.grad((x**2).sum(), x)
        return slope

    x = torch.randn(2, 3, 4, 5, 6)
    with pytest.warns(UserWarning, match="dimensions of x are was not found: .* raised RuntimeError: .*dims="):
        assert dims_of(energy, x) == "batch ? ? ? ?"
